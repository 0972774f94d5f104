//! What the engine keeps and says: alerts, silences, and what follows from one step of it.

use std::collections::BTreeMap;

use fleet_schemas::{DeviceId, MetricName, NodeId, event::Severity, rule::RuleId};
use serde::{Deserialize, Serialize};

use crate::core::fleet::NodeNo;

/// Where an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The condition holds, and nobody was told: not for long enough yet, or too soon after the last time.
    Pending,
    /// It fires.
    Firing,
    /// It is over.
    Resolved,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Firing, Self::Resolved];

    /// The word in REST, CLI and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }

    /// Reads that word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.as_str() == text)
    }
}

/// One time that a rule held for a device; its row in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Its number: its id, and the order in which alerts began.
    pub number: u64,
    /// The rule.
    pub rule: RuleId,
    /// The node's number in the store.
    pub node_no: NodeNo,
    /// The node.
    pub node: NodeId,
    /// The device; empty for the node itself.
    pub device: DeviceId,
    /// The node's site when it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The rule's field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<MetricName>,
    /// As the rule says.
    pub severity: Severity,
    /// The rule's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Where it stands.
    pub stage: Stage,
    /// Since when the condition holds, Unix milliseconds.
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
    /// The value that decided last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// What people are told.
    pub message: String,
    /// Who takes care of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<Acknowledged>,
    /// Until when nobody is told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silenced_until_ms: Option<i64>,
    /// The alert that stands for it: nobody is told of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inhibited_by: Option<u64>,
    /// The outage that it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<Outage>,
    /// Whether receivers were told that it fires.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told: bool,
}

/// Who takes care of an alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// Who, such as `operator NAME`.
    pub by: String,
    /// When, Unix milliseconds.
    pub at_ms: i64,
    /// What they had to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// A part of the fleet that is dark together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// The site; none: the whole fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// How many of its nodes do not answer,
    pub down: usize,
    /// of how many.
    pub nodes: usize,
}

/// Nobody is told of alerts that it fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// Its number.
    pub number: u64,
    /// Of this rule; absent: of any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleId>,
    /// At this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// At this device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// At this site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Until when, Unix milliseconds.
    pub until_ms: i64,
    /// Since when.
    pub since_ms: i64,
    /// Who wanted it.
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

impl Silence {
    /// Whether it is about this alert.
    #[must_use]
    pub fn fits(&self, alert: &Alert) -> bool {
        self.rule.as_ref().is_none_or(|rule| *rule == alert.rule)
            && self.node.as_ref().is_none_or(|node| *node == alert.node)
            && self.device.as_ref().is_none_or(|device| *device == alert.device)
            && self.site.as_ref().is_none_or(|site| Some(site) == alert.site.as_ref())
    }
}

/// Records that a node lost lately: what the facts `ledger_lost` and `ledger_quarantined` count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// All that were ever lost,
    pub lost: u64,
    /// and put into quarantine.
    pub quarantined: u64,
    /// Of the last hour: when, how many were lost, how many quarantined.
    pub recent: Vec<(i64, u64, u64)>,
}

/// What receivers are told of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// It fires.
    Firing,
    /// It is over.
    Resolved,
}

impl Word {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// What follows from a step: rows to write, then words to say.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// Alerts as they stand now; none: it was pending, and is over before anybody was told.
    pub alerts: BTreeMap<u64, Option<Alert>>,
    /// Alerts that receivers are to be told of, in order.
    pub words: Vec<(u64, Word)>,
    /// Silences; none: it has ended.
    pub silences: BTreeMap<u64, Option<Silence>>,
    /// What nodes lost; none: the node is gone.
    pub losses: BTreeMap<NodeNo, Option<Losses>>,
}

impl Effects {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.alerts.is_empty() && self.words.is_empty() && self.silences.is_empty() && self.losses.is_empty()
    }
}

/// Why something about alerts is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AlertError {
    /// No such alert is open.
    #[error("there is no open alert {0}; `fleet alert ls` lists them")]
    Unknown(u64),
    /// No such silence.
    #[error("there is no silence {0}; `fleet alert silences` lists them")]
    NoSilence(u64),
    /// Too many silences.
    #[error("there are {} silences already; end one first", super::SILENCES)]
    Silences,
    /// It ends before it begins, or too late.
    #[error("a silence ends in the future, at most {} days ahead", super::SILENCE_DAYS)]
    Until,
    /// It would fit every alert there is.
    #[error("name a rule, a node, a device or a site: a silence of everything hides everything")]
    Everything,
}
