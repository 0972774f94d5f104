//! The four lanes of a node's uplink, in order of precedence.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A durable, ordered, deduplicated path from a node to its hub. The order of the variants is the order of
/// precedence at the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Events: sent at once.
    Event,
    /// Reports on commands.
    Command,
    /// Samples that were sealed while the node was connected and had credit.
    Telemetry,
    /// Samples that were sealed while it was not.
    Backfill,
}

impl Lane {
    /// All lanes in order of precedence.
    pub const ALL: [Self; 4] = [Self::Event, Self::Command, Self::Telemetry, Self::Backfill];

    /// The last level of the lane's topic, and its key in birth, heartbeat and ack.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Command => "command",
            Self::Telemetry => "telemetry",
            Self::Backfill => "backfill",
        }
    }

    /// Whether the lane carries samples (telemetry and backfill).
    #[must_use]
    pub fn carries_samples(self) -> bool {
        matches!(self, Self::Telemetry | Self::Backfill)
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no lane.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no lane; lanes are event, command, telemetry, backfill")]
pub struct UnknownLane(pub String);

impl FromStr for Lane {
    type Err = UnknownLane;

    fn from_str(text: &str) -> Result<Self, UnknownLane> {
        Self::ALL.into_iter().find(|lane| lane.as_str() == text).ok_or_else(|| UnknownLane(text.to_owned()))
    }
}
