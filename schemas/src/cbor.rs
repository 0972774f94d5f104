//! CBOR (RFC 8949) in and out, and the optional zstd frame (RFC 8878) around it.
//!
//! Decoding is bounded before anything is allocated: size, window, depth, items. Knows no payload.

use ciborium_ll::{Decoder, Header};
use serde::{Serialize, de::DeserializeOwned};
use zstd::zstd_safe;

use crate::limits;

/// Why bytes are not a payload. The text fits after "failed to decode: "; [`DecodeError::reason`] is the label
/// under which it is counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than [`limits::PACKET_BYTES`] on the wire or [`limits::DECOMPRESSED_BYTES`] after it.
    #[error("payload is larger than {max} bytes")]
    Large {
        /// The limit in bytes.
        max: usize,
    },
    /// Not one whole zstd frame, or one that asks for a larger window than allowed.
    #[error("zstd frame is broken: {0}")]
    Zstd(String),
    /// Not one well-formed CBOR item.
    #[error("not one well-formed CBOR item (byte {at})")]
    Malformed {
        /// Where reading stopped, in bytes.
        at: usize,
    },
    /// Nested deeper than [`limits::CBOR_DEPTH`].
    #[error("CBOR is nested deeper than {}", limits::CBOR_DEPTH)]
    Deep,
    /// More items than [`limits::CBOR_ITEMS`].
    #[error("CBOR has more than {} items", limits::CBOR_ITEMS)]
    Items,
    /// Well-formed, but not this payload.
    #[error("not this payload: {0}")]
    Shape(String),
}

impl DecodeError {
    /// A short stable word for counters and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Large { .. } => "too_large",
            Self::Zstd(_) => "bad_zstd",
            Self::Malformed { .. } => "malformed",
            Self::Deep => "too_deep",
            Self::Items => "too_many_items",
            Self::Shape(_) => "wrong_shape",
        }
    }
}

/// Encodes a value; our own types cannot fail.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    ciborium::into_writer(value, &mut bytes).expect("our payloads have text keys and write to memory");
    bytes
}

/// Decodes one CBOR item after [`check`].
///
/// # Errors
/// [`DecodeError`], never [`DecodeError::Zstd`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    check(bytes)?;
    ciborium::from_reader(bytes).map_err(|error| DecodeError::Shape(error.to_string()))
}

/// Checks that the bytes are exactly one well-formed CBOR item within the limits on depth and items, without
/// allocating.
///
/// # Errors
/// [`DecodeError::Malformed`], [`DecodeError::Deep`] or [`DecodeError::Items`].
pub fn check(bytes: &[u8]) -> Result<(), DecodeError> {
    // Items still due at each open level; `None` is an indefinite length, ended by a break.
    let mut due: [Option<u64>; limits::CBOR_DEPTH + 1] = [Some(0); limits::CBOR_DEPTH + 1];
    let mut depth = 0;
    due[0] = Some(1);
    let mut items = 0_usize;
    let mut at = 0;
    loop {
        while due[depth] == Some(0) {
            if depth == 0 {
                return if at == bytes.len() { Ok(()) } else { Err(DecodeError::Malformed { at }) };
            }
            depth -= 1;
        }
        let malformed = DecodeError::Malformed { at };
        let mut decoder = Decoder::from(&bytes[at..]);
        let header = decoder.pull().map_err(|_| malformed.clone())?;
        at += decoder.offset();
        items += 1;
        if items > limits::CBOR_ITEMS {
            return Err(DecodeError::Items);
        }
        if header == Header::Break {
            if due[depth].is_some() {
                return Err(malformed);
            }
            due[depth] = Some(0);
            continue;
        }
        if let Some(left) = &mut due[depth] {
            *left -= 1;
        }
        let opens = match header {
            Header::Positive(_) | Header::Negative(_) | Header::Float(_) | Header::Simple(_) => continue,
            Header::Break => unreachable!("handled above"),
            Header::Bytes(Some(len)) | Header::Text(Some(len)) => {
                at = at.checked_add(len).filter(|end| *end <= bytes.len()).ok_or(malformed)?;
                continue;
            }
            // Chunks of an indefinite string are definite strings; that they are of the same type is left to
            // the decoder behind this check.
            Header::Bytes(None) | Header::Text(None) => None,
            Header::Tag(_) => Some(1),
            Header::Array(len) => len.map(|len| len as u64),
            Header::Map(len) => len.map(|len| (len as u64).saturating_mul(2)),
        };
        // Every item takes a byte at least: a count beyond the input is a lie told to make us allocate.
        if opens.is_some_and(|count| count > (bytes.len() - at) as u64) {
            return Err(malformed);
        }
        depth += 1;
        if depth > limits::CBOR_DEPTH {
            return Err(DecodeError::Deep);
        }
        due[depth] = opens;
    }
}

/// Wraps payloads into zstd frames where that saves bytes. Keeps its context: make one per thread, not per call.
pub struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    /// A packer at `level` (zstd 1–22; agents send at [`limits::ZSTD_LEVEL`]).
    #[must_use]
    pub fn new(level: i32) -> Self {
        Self(zstd::bulk::Compressor::new(level).expect("a zstd context needs only memory"))
    }

    /// The payload as it travels: itself, or one zstd frame when it has more than
    /// [`limits::COMPRESS_ABOVE_BYTES`] and the frame is smaller.
    #[must_use]
    pub fn pack(&mut self, plain: Vec<u8>) -> Vec<u8> {
        if plain.len() <= limits::COMPRESS_ABOVE_BYTES {
            return plain;
        }
        match self.0.compress(&plain) {
            Ok(frame) if frame.len() < plain.len() => frame,
            Ok(_) | Err(_) => plain,
        }
    }
}

/// Takes payloads out of their zstd frames, bounded. Keeps its context and buffer: make one per thread.
pub struct Unpacker {
    context: zstd::bulk::Decompressor<'static>,
    buffer: Vec<u8>,
}

impl Default for Unpacker {
    fn default() -> Self {
        let context = zstd::bulk::Decompressor::new().expect("a zstd context needs only memory");
        Self { context, buffer: Vec::new() }
    }
}

impl Unpacker {
    /// The plain CBOR of a payload as it travelled. The zstd magic number tells a frame from CBOR (where its
    /// first byte, 0x28, is a negative integer and no payload of ours).
    ///
    /// # Errors
    /// [`DecodeError::Large`] or [`DecodeError::Zstd`].
    pub fn unpack<'a>(&'a mut self, payload: &'a [u8]) -> Result<&'a [u8], DecodeError> {
        if payload.len() > limits::PACKET_BYTES {
            return Err(DecodeError::Large { max: limits::PACKET_BYTES });
        }
        if !payload.starts_with(&zstd_safe::MAGICNUMBER.to_le_bytes()) {
            return Ok(payload);
        }
        let large = DecodeError::Large { max: limits::DECOMPRESSED_BYTES };
        let frame = zstd_safe::find_frame_compressed_size(payload)
            .map_err(|code| DecodeError::Zstd(zstd_safe::get_error_name(code).to_owned()))?;
        if frame != payload.len() {
            return Err(DecodeError::Zstd("data follows the frame".to_owned()));
        }
        if window(payload) > 1 << limits::ZSTD_WINDOW_LOG {
            return Err(DecodeError::Zstd("the window is larger than allowed".to_owned()));
        }
        let size = match zstd_safe::get_frame_content_size(payload) {
            Ok(Some(size)) if size > limits::DECOMPRESSED_BYTES as u64 => return Err(large),
            Ok(Some(size)) => usize::try_from(size).map_err(|_| large)?,
            // A streaming encoder does not say: the output is cut off at the limit instead.
            Ok(None) => limits::DECOMPRESSED_BYTES,
            Err(_) => return Err(DecodeError::Zstd("unreadable content size".to_owned())),
        };
        // A large payload must not keep its memory for the small ones that follow.
        if self.buffer.capacity() > 4 * limits::PACKET_BYTES && size < limits::PACKET_BYTES {
            self.buffer = Vec::new();
        }
        self.buffer.clear();
        self.buffer.reserve(size);
        self.context
            .decompress_to_buffer(payload, &mut self.buffer)
            .map_err(|error| DecodeError::Zstd(error.to_string()))?;
        Ok(&self.buffer)
    }
}

/// The window in bytes that a whole frame declares (RFC 8878 §3.1.1.1.2); 0 when the content is the window. Zstd
/// itself looks at it only in streaming mode, and a reader of ours may be one that streams.
fn window(frame: &[u8]) -> u64 {
    const SINGLE_SEGMENT: u8 = 0x20;
    match frame.get(4..6) {
        Some(&[flags, descriptor]) if flags & SINGLE_SEGMENT == 0 => {
            let base = 1_u64 << (10 + (descriptor >> 3));
            base + base / 8 * u64::from(descriptor & 7)
        }
        Some(_) | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| {
            let mut bytes = vec![0x81; depth];
            bytes.push(0);
            bytes
        };
        assert_eq!(check(&nested(limits::CBOR_DEPTH)), Ok(()));
        assert_eq!(check(&nested(limits::CBOR_DEPTH + 1)), Err(DecodeError::Deep));
        assert_eq!(check(&nested(100_000)), Err(DecodeError::Deep));
    }

    #[test]
    fn counts_beyond_the_input_are_refused() {
        assert_eq!(
            check(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            Err(DecodeError::Malformed { at: 0 })
        );
        assert_eq!(check(&[0x5a, 0xff, 0xff, 0xff, 0xff, 0]), Err(DecodeError::Malformed { at: 0 }));
        assert!(check(&[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]).is_err());
    }

    #[test]
    fn indefinite_lengths_and_trailing_bytes() {
        assert_eq!(check(&[0x9f, 0x01, 0x9f, 0xff, 0xff]), Ok(()));
        assert_eq!(check(&[0xbf, 0x61, b'a', 0x01, 0xff]), Ok(()));
        assert_eq!(check(&[0x5f, 0x41, 0x00, 0x41, 0x01, 0xff]), Ok(()));
        assert!(check(&[0xff]).is_err());
        assert!(check(&[0x81, 0xff]).is_err());
        assert_eq!(check(&[0x01, 0x01]), Err(DecodeError::Malformed { at: 1 }));
        assert!(check(&[]).is_err());
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = zstd::bulk::compress(&vec![0; limits::DECOMPRESSED_BYTES + 1], 3).unwrap();
        assert!(bomb.len() < limits::PACKET_BYTES);
        let mut unpacker = Unpacker::default();
        assert_eq!(unpacker.unpack(&bomb), Err(DecodeError::Large { max: limits::DECOMPRESSED_BYTES }));
        // The same without a declared size: cut off while it is decompressed.
        let silent = zstd::stream::encode_all(&vec![0; limits::DECOMPRESSED_BYTES + 1][..], 3).unwrap();
        assert!(unpacker.unpack(&silent).is_err());
        assert!(unpacker.buffer.capacity() <= 2 * limits::DECOMPRESSED_BYTES);
    }

    #[test]
    fn frames_round_trip_and_small_payloads_stay_plain() {
        let mut packer = Packer::new(limits::ZSTD_LEVEL);
        let mut unpacker = Unpacker::default();
        for len in [0, 10, 200, 201, 5_000, 300_000] {
            let plain = vec![7; len];
            let packed = packer.pack(plain.clone());
            assert_eq!(packed.len() < len, len > limits::COMPRESS_ABOVE_BYTES);
            assert_eq!(unpacker.unpack(&packed), Ok(&plain[..]));
        }
        let mut cut = packer.pack(vec![7; 5_000]);
        cut.push(0);
        assert!(matches!(unpacker.unpack(&cut), Err(DecodeError::Zstd(_))));
        cut.truncate(9);
        assert!(matches!(unpacker.unpack(&cut), Err(DecodeError::Zstd(_))));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let mut framed = zstd_safe::MAGICNUMBER.to_le_bytes().to_vec();
            framed.extend(&bytes);
            for payload in [&bytes, &framed] {
                if let Ok(plain) = Unpacker::default().unpack(payload) {
                    let _ = decode::<crate::batch::Batch>(plain);
                    let _ = decode::<crate::session::Birth>(plain);
                    let _ = decode::<crate::session::Heartbeat>(plain);
                    let _ = decode::<crate::ack::Ack>(plain);
                    let _ = crate::telemetry::Samples::decode(plain);
                    let _ = crate::event::decode(plain);
                }
            }
        }

        #[test]
        fn what_ciborium_writes_the_check_accepts(value in arbitrary_value()) {
            prop_assert_eq!(check(&encode(&value)), Ok(()));
        }
    }

    fn arbitrary_value() -> impl Strategy<Value = ciborium::Value> {
        use ciborium::Value;
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            prop::collection::vec(any::<u8>(), 0..8).prop_map(Value::from),
            Just(Value::Null),
        ];
        leaf.prop_recursive(6, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                prop::collection::vec((inner.clone(), inner.clone()), 0..6).prop_map(Value::Map),
                (any::<u64>(), inner).prop_map(|(tag, value)| Value::Tag(tag, Box::new(value))),
            ]
        })
    }
}
