//! Alerts, silences, rules and receivers as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One alert: one time that a rule held for a device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Alert {
    /// Its id.
    pub id: String,
    /// The rule.
    pub rule: String,
    /// The node.
    pub node: String,
    /// The device behind it; absent for the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The node's site when it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The time zone of that site, by the IANA name; only in answers of `alerts`, and absent when none was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
    /// The rule's field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// `info|warning|error|critical`.
    pub severity: String,
    /// `pending|firing|resolved`.
    pub state: String,
    /// Since when the condition holds.
    pub since_ms: i64,
    /// When it began to fire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fired_ms: Option<i64>,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_ms: Option<i64>,
    /// Why it is over, where that is not the condition's doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The value that decided last; null where there is none.
    pub value: Option<f64>,
    /// What people are told.
    pub message: String,
    /// The rule's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Who takes care of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_by: Option<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_ms: Option<i64>,
    /// What they had to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Until when nobody is told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silenced_until_ms: Option<i64>,
    /// The id of the alert that stands for it: nobody is told of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inhibited_by: Option<String>,
    /// The part of the fleet that it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<Outage>,
}

/// A part of the fleet that is dark together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Outage {
    /// The site; null: the whole fleet.
    pub site: Option<String>,
    /// How many of its nodes do not answer,
    pub down: usize,
    /// of how many.
    pub nodes: usize,
}

/// A silence: nobody is told of the alerts that it fits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Silence {
    /// Its id.
    pub id: String,
    /// Of this rule only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// At this node only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// At this device only; empty for the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// At this site only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The time zone of that node's site, or of that site, by the IANA name; none was set when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
    /// Since when.
    pub since_ms: i64,
    /// Until when.
    pub until_ms: i64,
    /// Who wanted it.
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// A rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Rule {
    /// Its id.
    pub id: String,
    /// Where it comes from: `default`, `rules.yaml` or `kit NAME`.
    pub source: String,
    /// Whether it is judged.
    pub enabled: bool,
    /// The device that it judges: `any`, `node`, or one.
    pub sensor: String,
    /// The metric that `value` means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// When it fires.
    pub condition: String,
    /// When it resolves, in place of the condition's opposite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clear: Option<String>,
    /// How far thresholds of the field move away while it fires.
    pub hysteresis: f64,
    /// How long the condition holds before it fires.
    pub for_s: f64,
    /// Least time from one firing to the next.
    pub cooldown_s: f64,
    /// `info|warning|error|critical`.
    pub severity: String,
    /// Labels of its alerts.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Which nodes it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Alerts of it that are pending or fire.
    #[serde(default)]
    pub open_count: usize,
}

/// All rules.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Rules {
    /// They, by id; all on one page.
    pub items: Vec<Rule>,
    /// Always null.
    pub next: Option<String>,
    /// Why files that changed are not taken; the rules are those before.
    #[serde(default)]
    pub refused: Option<RefusedRules>,
}

/// Why a file of rules is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct RefusedRules {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// The column, from 1.
    pub column: u64,
    /// What is wrong.
    pub reason: String,
}

/// Somebody who is told of alerts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Receiver {
    /// Its name.
    pub name: String,
    /// `alertmanager|webhook`.
    pub kind: String,
    /// Where it is.
    pub url: String,
    /// Told of alerts that are at least this bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// Told of alerts with these labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Notifications that wait for it.
    #[serde(default)]
    pub pending_count: usize,
    /// Notifications that it took since the hub's start.
    #[serde(default)]
    pub sent_count: u64,
    /// Why the last attempt failed, until one succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}
