//! The hub's answer, `down/ack`: published only after the transaction that justifies it has committed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    id::{SessionId, StoreId, StreamId},
    lane::{self, Lane},
};

/// Marks, credit and hub time. Cumulative: the mark of a stream covers every batch up to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Payload version.
    pub v: u16,
    /// Which life of the hub's store speaks.
    pub store_id: StoreId,
    /// The session it is meant for: an agent ignores what was meant for an earlier one.
    pub session: SessionId,
    /// Whether it answers a birth. Only then a mark may lie below one that was acked before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub birth: bool,
    /// The hub's wall clock, Unix milliseconds.
    pub hub_ms: i64,
    /// Batches that may be in flight over all lanes; 0: wait, probe every 30 s.
    pub credit: u32,
    /// Per lane, the streams whose mark moved, was asked for, or did not move although batches arrived.
    #[serde(deserialize_with = "lane::known")]
    pub lanes: BTreeMap<Lane, Vec<StreamAck>>,
}

/// One stream's mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamAck {
    /// The stream.
    pub stream: StreamId,
    /// The mark: the last number up to which everything is stored or accounted for; 0 for nothing yet.
    pub seq: u64,
    /// What became of the batch after it.
    pub verdict: Verdict,
}

/// What the hub says beside the mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing else.
    Ok,
    /// The batch is of a version that this hub does not read: encode it anew, or declare it lost.
    Refused {
        /// Its number.
        seq: u64,
        /// Why, for people.
        reason: String,
        /// The newest version this hub reads.
        max_v: u16,
    },
    /// The batch differs from one stored under the same number: this stream was cloned or restored. The agent
    /// seals what it holds from `seq` on again, under a new stream.
    Fork {
        /// Its number.
        seq: u64,
    },
}
