//! The four lanes of a node's uplink, in order of precedence.

use std::{collections::BTreeMap, fmt, marker::PhantomData, str::FromStr};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, Visitor},
};

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

/// Reads a map by lane and leaves out the lanes that this build does not know: a peer with more lanes must stay
/// readable.
pub(crate) fn known<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<Lane, T>, D::Error> {
    struct Lanes<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Lanes<T> {
        type Value = BTreeMap<Lane, T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map by lane")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut lanes = BTreeMap::new();
            while let Some(name) = map.next_key::<String>()? {
                match name.parse() {
                    Ok(lane) => {
                        lanes.insert(lane, map.next_value()?);
                    }
                    Err(UnknownLane(_)) => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
            Ok(lanes)
        }
    }

    deserializer.deserialize_map(Lanes(PhantomData))
}
