//! What receivers are told, as JSON: CloudEvents 1.0, and alerts of Alertmanager's API v2. Pure.

use std::collections::BTreeMap;

use fleet_schemas::StoreId;
use serde_json::{Value, json};

use crate::{alerts, core::alert::Alert, store::state::Notice};

/// How long an Alertmanager takes an alert for firing when it hears no more of it: three times [`super::work::AGAIN`].
const LIFE_MS: i64 = 180_000;

/// A time as RFC 3339; the number itself when no calendar has it.
fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| time.to_string())
}

/// One event. Its id stays the same however often it is said.
pub(super) fn cloud_event(store: StoreId, number: u64, notice: &Notice) -> Value {
    let alert = &notice.alert;
    let subject = match alert.device.as_str() {
        "" => format!("{}/{}", alert.rule, alert.node),
        device => format!("{}/{}/{device}", alert.rule, alert.node),
    };
    json!({
        "specversion": "1.0",
        "id": format!("{store}-{number}"),
        "source": format!("/fleet/hub/{store}"),
        "type": format!("fleet.alert.{}", notice.word),
        "subject": subject,
        "time": time(notice.at_ms),
        "datacontenttype": "application/json",
        "data": alerts::shown(alert),
    })
}

/// One alert as Alertmanager takes it. The labels are the same while it fires and when it is over: they are its name.
pub(super) fn alertmanager(alert: &Alert, ends_ms: Option<i64>, now_ms: i64) -> Value {
    let mut labels: BTreeMap<String, &str> = BTreeMap::new();
    for (key, value) in &alert.labels {
        labels.insert(label(key), value);
    }
    let own = [
        ("alertname", alert.rule.as_str()),
        ("node", alert.node.as_str()),
        ("device", alert.device.as_str()),
        ("site", alert.site.as_deref().unwrap_or_default()),
        ("severity", alert.severity.as_str()),
    ];
    labels.extend(own.map(|(key, value)| (key.to_owned(), value)));
    labels.retain(|_, value| !value.is_empty());
    let mut annotations =
        BTreeMap::from([("summary", alert.message.clone()), ("alert_id", alert.number.to_string())]);
    if let Some(value) = alert.value {
        annotations.insert("value", value.to_string());
    }
    json!({
        "labels": labels,
        "annotations": annotations,
        "startsAt": time(alert.fired_ms.unwrap_or(alert.since_ms)),
        "endsAt": time(ends_ms.unwrap_or(now_ms.saturating_add(LIFE_MS))),
    })
}

/// A label's name as Prometheus has them: `[a-zA-Z_][a-zA-Z0-9_]*`.
fn label(key: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut name: String = key.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert(0, '_');
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_labels_are_those_of_prometheus() {
        assert_eq!(["team", "rack-1", "1st", "größe"].map(label), ["team", "rack_1", "_1st", "gr__e"]);
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time(1_790_000_000_123), "2026-09-21T14:13:20.123Z");
    }
}
