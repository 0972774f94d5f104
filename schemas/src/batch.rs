//! The batch envelope: the same on all four lanes.
//!
//! Owns what the ledger needs to know of a batch. Does not look into its body.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    VERSION,
    cbor::{self, DecodeError},
    id::StreamId,
    limits,
};

/// Whether an agent trusts its wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// Set by NTP, GPS or a battery-backed clock that agrees with the hub.
    Synced,
    /// Not known to be right: the hub corrects times by `boot` and `up_ms`.
    Unsynced,
}

/// Why records are gone. Declared by a tombstone at the edge, or booked by the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lost {
    /// The outbox was full: the oldest batches that were never sent went.
    OutboxFull,
    /// The hub refused the payload version and the agent cannot encode an older one.
    Refused,
    /// A batch or row at the edge failed its checksum.
    EdgeCorrupt,
    /// The edge has no memory of records it once announced (wiped or restored storage).
    EdgeStateLost,
    /// The hub was restored from a backup older than what the edge still holds.
    HubRollback,
    /// The byte budget of a metered link was gone, and the policy is not to wait.
    Budget,
    /// The node had already delivered them to another hub.
    Moved,
    /// A reason that this build does not know.
    #[serde(other)]
    Other,
}

impl Lost {
    /// A short stable word for counters and accounts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OutboxFull => "outbox_full",
            Self::Refused => "refused",
            Self::EdgeCorrupt => "edge_corrupt",
            Self::EdgeStateLost => "edge_state_lost",
            Self::HubRollback => "hub_rollback",
            Self::Budget => "budget",
            Self::Moved => "moved",
            Self::Other => "other",
        }
    }
}

/// A sealed batch: records `first … first + count - 1` of one (lane, stream). Never changes once sealed; a
/// resend is byte-identical.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Payload version.
    pub v: u16,
    /// The opening of the outbox that sealed it.
    pub stream: StreamId,
    /// Number of the batch within (lane, stream), from 1.
    pub seq: u64,
    /// Only in a tombstone: the last of the numbers it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_to: Option<u64>,
    /// Number of its first record within (lane, stream), from 1.
    pub first: u64,
    /// How many records.
    pub count: u64,
    /// The boot in which it was sealed: the first 8 bytes of the kernel's boot id.
    #[serde(with = "serde_bytes")]
    pub boot: [u8; 8],
    /// Milliseconds since that boot at sealing, monotonic.
    pub up_ms: u64,
    /// Whether `sealed_ms` and the times in the body can be trusted.
    pub clock: Clock,
    /// The agent's wall clock at sealing, Unix milliseconds.
    pub sealed_ms: i64,
    /// Only in a tombstone: why the records are gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Lost>,
    /// CBOR of the records; empty in a tombstone.
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}

/// Enough of an envelope to answer a version that this build does not read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Head {
    /// Payload version.
    pub v: u16,
    /// The opening of the outbox.
    pub stream: StreamId,
    /// Number of the batch.
    pub seq: u64,
}

/// What an envelope turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Envelope {
    /// A version we read.
    Known(Batch),
    /// One we do not.
    Unknown(Head),
}

/// What tells a duplicate from a fork: the first 8 bytes of the SHA-256 of the payload as it travelled.
pub type Digest = [u8; 8];

/// The digest of a payload as it travelled.
#[must_use]
pub fn digest(payload: &[u8]) -> Digest {
    let hash = Sha256::digest(payload);
    let mut digest = Digest::default();
    digest.copy_from_slice(&hash[..8]);
    digest
}

impl Batch {
    /// The last number it covers: `seq`, or `seq_to` in a tombstone.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.seq_to.unwrap_or(self.seq)
    }

    /// The number of the record after its last.
    #[must_use]
    pub fn next_record(&self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// Whether it stands for records that are gone.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.lost.is_some()
    }

    /// Reads plain CBOR (see [`cbor::Unpacker`]).
    ///
    /// # Errors
    /// [`DecodeError`] when not even a [`Head`] can be read, or when the numbers contradict each other.
    pub fn decode(plain: &[u8]) -> Result<Envelope, DecodeError> {
        cbor::check(plain)?;
        let read: Result<Self, _> = ciborium::from_reader(plain);
        let batch = match read {
            Ok(batch) if batch.v == VERSION => batch,
            Ok(Self { v, stream, seq, .. }) => return Ok(Envelope::Unknown(Head { v, stream, seq })),
            Err(error) => {
                return match ciborium::from_reader::<Head, _>(plain) {
                    Ok(head) if head.v != VERSION => Ok(Envelope::Unknown(head)),
                    Ok(_) | Err(_) => Err(DecodeError::Shape(error.to_string())),
                };
            }
        };
        batch
            .consistent()
            .map(|()| Envelope::Known(batch))
            .map_err(|what| DecodeError::Shape(what.to_owned()))
    }

    fn consistent(&self) -> Result<(), &'static str> {
        if self.seq == 0 || self.first == 0 {
            return Err("seq and first count from 1");
        }
        if self.seq > u64::MAX / 2 || self.first > u64::MAX / 2 || self.count > u64::MAX / 4 {
            return Err("a number is out of range");
        }
        if self.seq_to.is_some_and(|to| to < self.seq || to > u64::MAX / 2) {
            return Err("seq_to is before seq");
        }
        if self.seq_to.is_some() && self.lost.is_none() {
            return Err("seq_to without lost");
        }
        if self.lost.is_none() && (self.count == 0 || self.count > limits::BATCH_RECORDS as u64) {
            return Err("count is not within 1 to 10,000");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        Batch {
            v: VERSION,
            stream: StreamId([1; 16]),
            seq: 3,
            seq_to: None,
            first: 7,
            count: 2,
            boot: [9; 8],
            up_ms: 1_000,
            clock: Clock::Synced,
            sealed_ms: 1_790_000_000_000,
            lost: None,
            body: vec![0x80],
        }
    }

    #[test]
    fn envelopes_round_trip() {
        let tombstone =
            Batch { seq_to: Some(9), lost: Some(Lost::OutboxFull), count: 70, body: vec![], ..batch() };
        for batch in [batch(), tombstone] {
            assert_eq!(Batch::decode(&cbor::encode(&batch)), Ok(Envelope::Known(batch)));
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for wrong in [
            Batch { seq: 0, ..batch() },
            Batch { first: 0, ..batch() },
            Batch { count: 0, ..batch() },
            Batch { count: u64::MAX, ..batch() },
            Batch { seq: u64::MAX, ..batch() },
            Batch { seq_to: Some(9), ..batch() },
            Batch { seq_to: Some(2), lost: Some(Lost::Refused), ..batch() },
        ] {
            assert!(matches!(Batch::decode(&cbor::encode(&wrong)), Err(DecodeError::Shape(_))), "{wrong:?}");
        }
    }

    #[test]
    fn an_unknown_version_is_told_by_its_head() {
        let newer = Batch { v: 9, ..batch() };
        let head = Head { v: 9, stream: newer.stream, seq: 3 };
        assert_eq!(Batch::decode(&cbor::encode(&newer)), Ok(Envelope::Unknown(head)));
    }

    #[test]
    fn an_unknown_reason_is_other() {
        let lost: Lost = cbor::decode(&cbor::encode(&"meteorite")).unwrap();
        assert_eq!(lost, Lost::Other);
    }
}
