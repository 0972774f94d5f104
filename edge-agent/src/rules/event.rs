//! What the hub is told: events of alerts, and of files that were refused.

use ciborium::Value;
use fleet_schemas::{
    MetricName,
    event::{Event, Severity},
    limits,
    rule::Transition,
};

use super::load::Refusal;
use crate::core::rules::Alert;

/// `alert`: `data` is `{rule, device, metric?, value?, state, severity}`.
pub(super) fn alert(alert: &Alert, time_ms: i64) -> Event {
    let text = |key: &str, value: &str| (Value::from(key), Value::from(value));
    let mut data = vec![
        text("rule", alert.rule.as_str()),
        text("device", alert.device.as_str()),
        text("state", alert.transition.as_str()),
        text("severity", alert.severity.as_str()),
    ];
    data.extend(alert.metric.as_ref().map(|metric| text("metric", metric.as_str())));
    data.extend(alert.value.map(|value| (Value::from("value"), Value::from(value))));
    Event {
        time_ms,
        kind: MetricName::parse("alert").expect("our kinds are valid"),
        severity: match alert.transition {
            Transition::Firing => alert.severity,
            Transition::Resolved | Transition::Pending | Transition::Dropped => Severity::Info,
        },
        message: shortened(alert.message.clone()),
        data: Some(Value::Map(data)),
        device: Some(alert.device.clone()).filter(|device| !device.is_node()),
        id: None,
    }
}

/// `rules_refused`: `data` is `{file, line?, column?}`.
pub(super) fn refused(refusal: &Refusal, time_ms: i64) -> Event {
    let mut data = vec![(Value::from("file"), Value::from(refusal.file.display().to_string()))];
    if let Some((line, column)) = refusal.place {
        data.push((Value::from("line"), Value::from(line)));
        data.push((Value::from("column"), Value::from(column)));
    }
    Event {
        time_ms,
        kind: MetricName::parse("rules_refused").expect("our kinds are valid"),
        severity: Severity::Error,
        message: shortened(format!("rules are refused, and those before them stay: {refusal}")),
        data: Some(Value::Map(data)),
        device: None,
        id: None,
    }
}

fn shortened(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(limits::EVENT_MESSAGE_BYTES));
    message
}
