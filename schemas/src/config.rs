//! Configuration: what the hub desires (`down/config`) and what a node says it has (in birth and heartbeat).
//!
//! Level-triggered: the hub sends the desired document while what the node has `received` differs. A document that
//! failed to apply is not tried again before there is a new version, or an operator says so.

use ciborium::Value;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    cbor::{self, DecodeError},
    id::{SessionId, StoreId},
    limits,
};

/// A version of a node's configuration. A hub that was restored from a backup counts in a higher epoch, so its
/// versions are never older than those it had given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The hub's epoch.
    pub epoch: u64,
    /// Counts within it.
    pub n: u64,
}

/// SHA-256 of a document's bytes.
pub type Hash = [u8; 32];

/// What the hub wants a node to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Payload version.
    pub v: u16,
    /// Which life of the hub's store speaks.
    pub store_id: StoreId,
    /// The session it is meant for: an agent ignores what was meant for an earlier one.
    pub session: SessionId,
    /// The hub's wall clock, Unix milliseconds.
    pub hub_ms: i64,
    /// Its version.
    pub version: Version,
    /// CBOR of the document, a map with text keys; at most 64 KiB.
    #[serde(with = "serde_bytes")]
    pub doc: Vec<u8>,
    /// Whether to try it again although it failed before: counts an operator's wishes. 0: never asked for.
    #[serde(default, skip_serializing_if = "is_none")]
    pub retry: u64,
}

/// What a node says of its configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// The newest it has on its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<Held>,
    /// The one it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Held>,
    /// Why the newest is not the one it runs, when it was tried and failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
}

/// A document that a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its version.
    pub version: Version,
    /// SHA-256 of its bytes.
    #[serde(with = "serde_bytes")]
    pub hash: Hash,
    /// The last [`Desired::retry`] that it was tried for.
    #[serde(default, skip_serializing_if = "is_none")]
    pub retry: u64,
}

/// A document that could not be applied; the one before it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// A stable word, such as `invalid`, `self_check`, `lost_hub`.
    pub code: String,
    /// A sentence that says what to do.
    pub message: String,
}

fn is_none(retry: &u64) -> bool {
    *retry == 0
}

/// SHA-256 of a document's bytes.
#[must_use]
pub fn hash(doc: &[u8]) -> Hash {
    Sha256::digest(doc).into()
}

impl Desired {
    /// Reads the document.
    ///
    /// # Errors
    /// [`DecodeError`], also when it is too large or no map.
    pub fn document(&self) -> Result<Value, DecodeError> {
        if self.doc.len() > limits::CONFIG_BYTES {
            return Err(DecodeError::Shape("the document is larger than 65536 bytes".to_owned()));
        }
        match cbor::decode(&self.doc)? {
            doc @ Value::Map(_) => Ok(doc),
            _ => Err(DecodeError::Shape("the document is no map".to_owned())),
        }
    }
}

impl Reported {
    /// Checks the limits on lengths.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), &'static str> {
        match &self.failed {
            Some(failed)
                if failed.code.len() > limits::LABEL_BYTES
                    || failed.message.len() > limits::EVENT_MESSAGE_BYTES =>
            {
                Err("failed is longer than 63 bytes of code and 4096 of message")
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_a_restored_hub_are_newer() {
        assert!(Version { epoch: 1, n: 1 } > Version { epoch: 0, n: 900 });
        assert!(Version { epoch: 1, n: 2 } > Version { epoch: 1, n: 1 });
    }

    #[test]
    fn only_a_map_is_a_document() {
        let desired = |doc: &Value| Desired {
            v: crate::VERSION,
            store_id: StoreId([1; 16]),
            session: SessionId([2; 8]),
            hub_ms: 3,
            version: Version::default(),
            doc: cbor::encode(doc),
            retry: 0,
        };
        let map = Value::Map(vec![("upload_s".into(), 30.into())]);
        assert_eq!(desired(&map).document(), Ok(map));
        assert!(desired(&Value::Null).document().is_err());
        let long = Value::Map(vec![("a".into(), Value::Bytes(vec![0; limits::CONFIG_BYTES]))]);
        assert!(desired(&long).document().is_err());
    }
}
