//! The messages of Prometheus' remote read protocol, and their frame: one snappy block around one protobuf message.
//!
//! Field numbers are those of the public protocol (`prometheus/prompb/remote.proto`, `types.proto`). Bounds what a
//! body may unfold to before anything is allocated.

use prost::Message;

/// Largest request, unpacked, in bytes: selectors are short.
const REQUEST_BYTES: usize = 1024 * 1024;
/// The response type that is spoken here: `SAMPLES`.
const SAMPLES: i32 = 0;

/// Several queries, answered in their order.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ReadRequest {
    #[prost(message, repeated, tag = "1")]
    pub queries: Vec<Query>,
    /// What the client reads, in its order of liking; nothing means samples.
    #[prost(int32, repeated, tag = "2")]
    pub accepted_response_types: Vec<i32>,
}

/// One selector over a range that includes both ends.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Query {
    #[prost(int64, tag = "1")]
    pub start_timestamp_ms: i64,
    #[prost(int64, tag = "2")]
    pub end_timestamp_ms: i64,
    #[prost(message, repeated, tag = "3")]
    pub matchers: Vec<LabelMatcher>,
    #[prost(message, optional, tag = "4")]
    pub hints: Option<ReadHints>,
}

/// 0 `=`, 1 `!=`, 2 `=~`, 3 `!~`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LabelMatcher {
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub value: String,
}

/// What the query is for; a server may use it to give less.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ReadHints {
    /// Between evaluations; 0 for one instant.
    #[prost(int64, tag = "1")]
    pub step_ms: i64,
    /// The function right around the selector.
    #[prost(string, tag = "2")]
    pub func: String,
    /// The selector's own range, `[5m]`; 0 without.
    #[prost(int64, tag = "7")]
    pub range_ms: i64,
}

/// A result for every query.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ReadResponse {
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<QueryResult>,
}

/// The series of one query.
#[derive(Clone, PartialEq, Message)]
pub(super) struct QueryResult {
    #[prost(message, repeated, tag = "1")]
    pub timeseries: Vec<TimeSeries>,
}

/// One series, its labels by name and its samples by time.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    pub samples: Vec<Sample>,
}

/// A label; one without a value is not sent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Message)]
pub(super) struct Label {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A value at an instant, Unix milliseconds.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Sample {
    #[prost(double, tag = "1")]
    pub value: f64,
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
}

/// Why a body is not a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadBody {
    #[error("the body is not one snappy block: {0}; send it with Content-Encoding: snappy")]
    Snappy(#[from] snap::Error),
    #[error("the body unfolds to {0} bytes, and at most {REQUEST_BYTES} are read; use fewer matchers")]
    Large(usize),
    #[error("the body is not a prometheus.ReadRequest: {0}")]
    Protobuf(#[from] prost::DecodeError),
}

impl ReadRequest {
    /// Reads a body as it came.
    pub(super) fn unpack(body: &[u8]) -> Result<Self, BadBody> {
        let bytes = snap::raw::decompress_len(body)?;
        if bytes > REQUEST_BYTES {
            return Err(BadBody::Large(bytes));
        }
        let plain = snap::raw::Decoder::new().decompress_vec(body)?;
        Ok(Self::decode(&plain[..])?)
    }

    /// Whether the client takes samples.
    pub(super) fn takes_samples(&self) -> bool {
        self.accepted_response_types.is_empty() || self.accepted_response_types.contains(&SAMPLES)
    }
}

impl ReadResponse {
    /// The body as it goes.
    pub(super) fn pack(&self) -> Result<Vec<u8>, snap::Error> {
        snap::raw::Encoder::new().compress_vec(&self.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snappy(plain: &[u8]) -> Vec<u8> {
        snap::raw::Encoder::new().compress_vec(plain).unwrap()
    }

    #[test]
    fn a_request_has_the_public_field_numbers() {
        // protoc's text form: queries { start_timestamp_ms: 1 end_timestamp_ms: 300
        //   matchers { type: RE name: "node" value: "a.*" }
        //   hints { step_ms: 15 func: "rate" start_ms: 1 end_ms: 2 range_ms: 60 } } accepted_response_types: [1, 0]
        let matcher = b"\x08\x02\x12\x04node\x1a\x03a.*";
        let hints = b"\x08\x0f\x12\x04rate\x18\x01\x20\x02\x38\x3c";
        let mut query = b"\x08\x01\x10\xac\x02\x1a".to_vec();
        query.push(matcher.len() as u8);
        query.extend(matcher);
        query.push(0x22);
        query.push(hints.len() as u8);
        query.extend(hints);
        let mut plain = vec![0x0a, query.len() as u8];
        plain.extend(query);
        plain.extend(b"\x12\x02\x01\x00");
        let request = ReadRequest::unpack(&snappy(&plain)).unwrap();
        assert!(request.takes_samples());
        let query = &request.queries[0];
        assert_eq!((query.start_timestamp_ms, query.end_timestamp_ms), (1, 300));
        let matcher = LabelMatcher { kind: 2, name: "node".to_owned(), value: "a.*".to_owned() };
        assert_eq!(query.matchers, [matcher]);
        let hints = ReadHints { step_ms: 15, func: "rate".to_owned(), range_ms: 60 };
        assert_eq!(query.hints, Some(hints));
    }

    #[test]
    fn a_response_has_the_public_field_numbers() {
        let label = Label { name: "node".to_owned(), value: "a".to_owned() };
        let series = TimeSeries { labels: vec![label], samples: vec![Sample { value: 1.0, timestamp: 5 }] };
        let response = ReadResponse { results: vec![QueryResult { timeseries: vec![series] }] };
        let packed = response.pack().unwrap();
        let plain = snap::raw::Decoder::new().decompress_vec(&packed).unwrap();
        let expected =
            b"\x0a\x1a\x0a\x18\x0a\x09\x0a\x04node\x12\x01a\x12\x0b\x09\0\0\0\0\0\0\xf0\x3f\x10\x05";
        assert_eq!(plain, expected);
    }

    #[test]
    fn a_block_that_claims_to_be_large_is_refused_unread() {
        // The preamble says 2^31 bytes; nothing follows.
        let refused = ReadRequest::unpack(b"\x80\x80\x80\x80\x08").unwrap_err();
        assert!(matches!(refused, BadBody::Large(bytes) if bytes == 1 << 31), "{refused}");
        let chunks = ReadRequest { queries: Vec::new(), accepted_response_types: vec![1] };
        assert!(!ReadRequest::unpack(&snappy(&chunks.encode_to_vec())).unwrap().takes_samples());
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ReadRequest::unpack(&bytes);
            let _ = ReadRequest::unpack(&snappy(&bytes));
        }
    }
}
