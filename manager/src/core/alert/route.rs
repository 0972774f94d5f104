//! Which receivers are told of an alert: by its severity and its labels.

use std::collections::BTreeMap;

use fleet_schemas::event::Severity;

use super::Alert;

/// What a receiver wants to be told of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wants {
    /// Alerts that are at least this bad.
    pub least: Option<Severity>,
    /// Those with all of these labels: of the rule, or `rule`, `node`, `device`, `site`, `severity`.
    pub labels: BTreeMap<String, String>,
}

impl Wants {
    /// Whether it is told of this alert.
    #[must_use]
    pub fn fits(&self, alert: &Alert) -> bool {
        self.least.is_none_or(|least| alert.severity >= least)
            && self.labels.iter().all(|(key, value)| label(alert, key) == Some(value.as_str()))
    }
}

fn label<'a>(alert: &'a Alert, key: &str) -> Option<&'a str> {
    match key {
        "rule" => Some(alert.rule.as_str()),
        "node" => Some(alert.node.as_str()),
        "device" => Some(alert.device.as_str()),
        "site" => alert.site.as_deref(),
        "severity" => Some(alert.severity.as_str()),
        other => alert.labels.get(other).map(String::as_str),
    }
}
