//! Devices behind nodes, folded from the reports that their nodes send as events.
//!
//! Pure. A report is whole, so the latest to arrive is what is known; the lane of events keeps them in order.

use fleet_schemas::{
    DeviceId,
    device::{Report, State},
};
use serde::{Deserialize, Serialize};

use super::{
    fleet::NodeNo,
    intake::{Effects, NewEvent},
    presence,
};

/// What is known of a device, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What its node said last, with times corrected to hub time.
    pub report: Report,
    /// When that happened, corrected, Unix milliseconds.
    pub at_ms: i64,
    /// When it arrived, hub time, Unix milliseconds.
    pub recv_ms: i64,
}

/// Rows that follow: `None` removes one.
pub type Changes = Vec<(NodeNo, DeviceId, Option<Device>)>;

/// The rows that follow from what is to be stored, in order; the last of a device counts.
#[must_use]
pub fn fold(effects: &Effects) -> Changes {
    effects.events.iter().filter_map(change).collect()
}

fn change(new: &NewEvent) -> Option<(NodeNo, DeviceId, Option<Device>)> {
    if new.by_hub {
        return None;
    }
    let mut report = Report::of(&new.event)?;
    let correct = |ms: &mut i64| *ms = ms.saturating_add(new.shift_ms);
    report.until_ms.iter_mut().for_each(correct);
    report.last_seen_ms.iter_mut().for_each(correct);
    let id = report.device.clone();
    let at_ms = new.event.time_ms.saturating_add(new.shift_ms);
    let kept = (report.state != State::Removed).then_some(Device { report, at_ms, recv_ms: new.recv_ms });
    Some((new.number, id, kept))
}

/// How a device is, given how its node is: of one behind a node that does not speak nobody knows.
#[must_use]
pub fn state(node: presence::State, device: Option<&Device>) -> &'static str {
    match node {
        presence::State::Online | presence::State::Suspect { .. } => {
            device.map_or("unknown", |device| device.report.state.as_str())
        }
        presence::State::New | presence::State::Offline | presence::State::Sleeping { .. } => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use fleet_schemas::{
        MetricName,
        event::{Event, Severity},
    };

    use super::*;

    fn event(state: &str, by_hub: bool) -> NewEvent {
        let data = format!(r#"{{"device":"shed","state":"{state}","until_ms":500,"last_seen_ms":100}}"#);
        let data: serde_json::Value = serde_json::from_str(&data).unwrap();
        let event = Event {
            time_ms: 100,
            kind: MetricName::parse("device").unwrap(),
            severity: Severity::Info,
            message: String::new(),
            data: Some(ciborium::Value::serialized(&data).unwrap()),
            device: None,
            id: None,
        };
        NewEvent { number: 7, recv_ms: 1_200, shift_ms: 1_000, by_hub, event }
    }

    fn folded(events: Vec<NewEvent>) -> Changes {
        fold(&Effects { events, ..Effects::default() })
    }

    #[test]
    fn reports_are_folded_with_their_times_corrected() {
        let changes = folded(vec![event("sleeping", false), event("dancing", false), event("online", true)]);
        let [(7, id, Some(device))] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!((id.as_str(), device.at_ms, device.recv_ms), ("shed", 1_100, 1_200));
        assert_eq!((device.report.until_ms, device.report.last_seen_ms), (Some(1_500), Some(1_100)));
        assert_eq!(folded(vec![event("removed", false)])[0].2, None);
    }

    #[test]
    fn nothing_is_known_of_devices_behind_a_silent_node() {
        let device = folded(vec![event("late", false)])[0].2.clone().unwrap();
        let of = |node| state(node, Some(&device));
        assert_eq!(of(presence::State::Online), "late");
        assert_eq!(of(presence::State::Suspect { cause: presence::Cause::Late }), "late");
        assert_eq!(of(presence::State::Offline), "unknown");
        assert_eq!(of(presence::State::Sleeping { until_ms: 1 }), "unknown");
        assert_eq!(state(presence::State::Online, None), "unknown");
    }
}
