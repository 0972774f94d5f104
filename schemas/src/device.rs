//! Devices behind a node: what an agent reports of one. The data of an event of kind [`KIND`].
//!
//! A report is whole: it says all that is known of the device, so the latest one is enough.

use ciborium::Value;
use serde::{Deserialize, Serialize};

use crate::{
    event::Event,
    id::{DeviceId, MetricName},
    limits,
};

/// The kind of events that report a device.
pub const KIND: &str = "device";

/// How a device is, by its node's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Heard within its own heartbeat.
    Online,
    /// One heartbeat late.
    Late,
    /// Silent for three of its heartbeats.
    Offline,
    /// Silent by its own announcement, or by its schedule.
    Sleeping,
    /// Not a device of the node any more.
    Removed,
}

impl State {
    /// The word on the wire and in REST.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Late => "late",
            Self::Offline => "offline",
            Self::Sleeping => "sleeping",
            Self::Removed => "removed",
        }
    }
}

/// What a node says of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Which.
    pub device: DeviceId,
    /// How it is.
    pub state: State,
    /// What kind of board, such as `microclaw`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<MetricName>,
    /// A name for people; at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The version that it runs; 1 to 63 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<MetricName>,
    /// What it can do; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<MetricName>,
    /// How often it speaks, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
    /// How long it sleeps at a time, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep_ms: Option<u64>,
    /// Until when it sleeps, by the agent's clock, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
    /// When it was last heard, by the agent's clock, Unix milliseconds; absent if it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_ms: Option<i64>,
    /// Whether it tells neither time nor number of what it says: its records have those of their arrival at the node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsequenced: bool,
}

impl Report {
    /// What an event says of a device; `None` for events about something else.
    #[must_use]
    pub fn of(event: &Event) -> Option<Self> {
        if event.kind.as_str() != KIND {
            return None;
        }
        let report: Self = event.data.as_ref()?.deserialized().ok()?;
        (!report.device.is_node() && report.is_bounded()).then_some(report)
    }

    /// As the data of an event.
    #[must_use]
    pub fn to_data(&self) -> Value {
        Value::serialized(self).expect("a report has only texts and numbers under text keys")
    }

    fn is_bounded(&self) -> bool {
        let name = self.name.as_ref().is_none_or(|name| name.len() <= limits::TEXT_BYTES);
        name && self.capabilities.len() <= limits::LABELS_PER_NODE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Severity;

    fn report() -> Report {
        Report {
            device: DeviceId::parse("shed").unwrap(),
            state: State::Sleeping,
            kind: Some(MetricName::parse("microclaw").unwrap()),
            name: None,
            firmware: Some(MetricName::parse("0.2.0").unwrap()),
            capabilities: vec![MetricName::parse("temperature").unwrap()],
            heartbeat_ms: None,
            sleep_ms: Some(300_000),
            until_ms: Some(5),
            last_seen_ms: Some(4),
            unsequenced: true,
        }
    }

    fn event(data: Value) -> Event {
        Event {
            time_ms: 1,
            kind: MetricName::parse(KIND).unwrap(),
            severity: Severity::Info,
            message: String::new(),
            data: Some(data),
            device: None,
            id: None,
        }
    }

    #[test]
    fn a_report_is_read_back_from_its_event_and_from_no_other() {
        let good = event(report().to_data());
        assert_eq!(Report::of(&good), Some(report()));
        let other = Event { kind: MetricName::parse("door").unwrap(), ..good };
        assert_eq!(Report::of(&other), None);
        let spoilt = |change: fn(&mut Report)| {
            let mut report = report();
            change(&mut report);
            Report::of(&event(report.to_data()))
        };
        assert_eq!(spoilt(|report| report.device = DeviceId::node()), None);
        assert_eq!(spoilt(|report| report.name = Some("x".repeat(257))), None);
        assert_eq!(spoilt(|report| report.capabilities = vec![report.capabilities[0].clone(); 33]), None);
        assert_eq!(Report::of(&event(Value::from(7))), None);
    }
}
