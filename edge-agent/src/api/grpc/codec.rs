//! Messages on the wire: prost's, after a look at how many fields one claims to have.
//!
//! A field of two bytes may become a structure of a hundred, so what is allocated is bounded before it is.

use std::marker::PhantomData;

use bytes::Buf as _;
use fleet_schemas::limits;
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Most fields at the top of a message: a full batch, and what stands beside it.
const FIELDS: usize = limits::BATCH_RECORDS + 64;

/// Encodes `T`, decodes `U`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounded<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Bounded<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Bounded<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = BoundedEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        BoundedEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

/// The encoding half.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BoundedEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for BoundedEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

/// The decoding half.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BoundedDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        if fields(&bytes).is_some_and(|fields| fields > FIELDS) {
            let detail =
                format!("more than {} records in a message; send them in parts", limits::BATCH_RECORDS);
            return Err(Status::invalid_argument(detail));
        }
        let wrong =
            |error| Status::invalid_argument(format!("the message is not one of edge.proto: {error}"));
        U::decode(bytes).map(Some).map_err(wrong)
    }
}

/// Fields at the top of a message, at most one more than allowed; `None` when it is none.
fn fields(mut bytes: &[u8]) -> Option<usize> {
    let mut fields = 0;
    while !bytes.is_empty() && fields <= FIELDS {
        let skip = match varint(&mut bytes)? & 7 {
            0 => varint(&mut bytes).map(|_| 0)?,
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).ok()?,
            5 => 4,
            _ => return None,
        };
        bytes = bytes.get(skip..)?;
        fields += 1;
    }
    Some(fields)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for at in 0..10 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::pb, *};

    #[test]
    fn fields_are_counted_before_anything_is_made() {
        let sample =
            pb::Sample { metric: "t".into(), value: Some(1.0), unit: "Cel".into(), time_ms: Some(-1) };
        let batch = pb::TelemetryBatch { device: "d".into(), samples: vec![sample; 3], id: "i".into() };
        assert_eq!(fields(&batch.encode_to_vec()), Some(5));
        let empty = [0x12, 0].repeat(FIELDS + 500);
        assert_eq!(fields(&empty), Some(FIELDS + 1));
    }

    proptest! {
        #[test]
        fn what_prost_reads_has_a_count(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let counted = fields(&bytes).is_some();
            // Groups (wire types 3 and 4) are read over by prost, and are not in our messages.
            let groups = bytes.iter().any(|byte| matches!(byte & 7, 3 | 4));
            if pb::TelemetryBatch::decode(bytes.as_slice()).is_ok() && !groups {
                prop_assert!(counted);
            }
        }
    }
}
