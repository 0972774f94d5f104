//! Events: something that happened at the edge. The body of the event lane is an array of them.

use ciborium::Value;
use serde::{Deserialize, Serialize};

use crate::{
    cbor::{self, DecodeError},
    id::{DeviceId, MetricName},
    limits,
};

/// How bad it is, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing to do.
    Info,
    /// Look at it some time.
    #[serde(alias = "warn")]
    Warning,
    /// Something does not work.
    Error,
    /// Somebody must act now.
    #[serde(alias = "emergency")]
    Critical,
}

impl Severity {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened by the agent's clock, Unix milliseconds.
    pub time_ms: i64,
    /// What kind of thing, such as `door_opened`; 1 to 63 bytes.
    pub kind: MetricName,
    /// How bad.
    pub severity: Severity,
    /// A sentence for people; at most 4 KiB.
    pub message: String,
    /// Anything more, at most 32 KiB of CBOR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// The device it happened at; absent for the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// The id the submitter gave it, for tracing; at most 63 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl Event {
    /// Checks the limits on lengths.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.message.len() > limits::EVENT_MESSAGE_BYTES {
            return Err("message is longer than 4096 bytes");
        }
        if self.data.as_ref().is_some_and(|data| cbor::encode(data).len() > limits::EVENT_DATA_BYTES) {
            return Err("data is larger than 32768 bytes");
        }
        if self.id.as_ref().is_some_and(|id| id.is_empty() || id.len() > limits::LABEL_BYTES) {
            return Err("id is not within 1 to 63 bytes");
        }
        Ok(())
    }
}

/// Reads the body of an event batch: an array of events.
///
/// # Errors
/// [`DecodeError`], also when an event breaks a limit.
pub fn decode(body: &[u8]) -> Result<Vec<Event>, DecodeError> {
    let events: Vec<Event> = cbor::decode(body)?;
    for event in &events {
        event.check().map_err(|what| DecodeError::Shape(what.to_owned()))?;
    }
    Ok(events)
}
