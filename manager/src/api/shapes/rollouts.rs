//! Rollouts, their waves, and where each node stands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Cause;

/// One rollout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Rollout {
    /// Its name.
    pub id: String,
    /// What is rolled out, `NAME@VERSION`.
    pub release: String,
    /// `skill|agent|firmware|device-firmware`.
    #[serde(default)]
    pub kind: String,
    /// `waiting_approval|running|paused|rolling_back|done|stopped|rolled_back|failed`.
    pub state: String,
    /// Since when.
    pub since_ms: i64,
    /// Why, in a sentence.
    pub reason: String,
    /// What holds it up now; absent: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub waits_for: String,
    /// Its waves; the last, `trailing`, is for nodes that come late.
    pub waves: Vec<RolloutWave>,
    /// How many nodes stand where, without zeros: `waiting`, the states of an update, `inconclusive`, `drifted`.
    pub nodes_by_state: BTreeMap<String, u32>,
    /// How many nodes take part.
    pub nodes_count: u32,
    /// When it was made.
    pub created_ms: i64,
    /// Who made it.
    pub by: String,
    /// Who approved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
    /// When its time ends.
    pub deadline_ms: i64,
    /// When its waves will have passed, if nothing comes between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_ms: Option<i64>,
    /// The rollout that takes its nodes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<String>,
    /// The rollout that it undoes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_of: Option<String>,
    /// The selector that chose its nodes, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Its terms; only of one rollout, not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<RolloutTerms>,
    /// The plan in sentences; only of one rollout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plan: Vec<String>,
    /// A page of its nodes; only of one rollout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<RolloutNode>,
    /// Hand it back as `cursor` for more nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A wave.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct RolloutWave {
    /// Such as `5%`, or `trailing`.
    pub name: String,
    /// `waiting|running|soaking|gating|passed|halted`.
    pub state: String,
    /// Since when.
    pub since_ms: i64,
    /// Why, where there is more to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// How many nodes it has.
    pub nodes: u32,
    /// How many were confirmed.
    pub confirmed: u32,
    /// How many failed, went back, timed out, refused or drifted.
    pub failed: u32,
    /// How many are under way.
    pub under_way: u32,
    /// How many are skipped, canceled or superseded.
    pub skipped: u32,
    /// How many are not told yet.
    pub waiting: u32,
    /// How many were offline when their turn came, and wait in `trailing`.
    pub moved: u32,
    /// Until when it is watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soaks_until_ms: Option<i64>,
}

/// Where a node stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct RolloutNode {
    /// The node.
    pub node: String,
    /// The device behind it, of device firmware.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// The wave that counts it.
    pub wave: String,
    /// `waiting`, a state of an update, `inconclusive` or `drifted`.
    pub state: String,
    /// The time zone of the node's site, by the IANA name; none was set when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
    /// Since when.
    pub since_ms: i64,
    /// A stable word for why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Why, in the words of the node or of the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The command that told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// What it ran before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Bytes that are on its disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Bytes that there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

/// The terms of a rollout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RolloutTerms {
    /// Sizes of the waves, counted from the first node; the last is `100%`. `["1", "5%", "25%", "100%"]` unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<String>,
    /// How long a wave is watched, in seconds; 600 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soak_s: Option<f64>,
    /// The part of a wave that may fail, `2%` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<String>,
    /// So many come to an end before that counts; 5 unless given, of a smaller wave all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_executed: Option<u32>,
    /// How many may be down at once: `3`, or `1/site`; any number unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<String>,
    /// How many are told in a minute; any number unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_minute: Option<f64>,
    /// When nodes may download and switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<RolloutWindow>,
    /// Conditions over the telemetry of a wave's nodes, such as `avg_over("cpu_percent", "5m") < 80`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<String>,
    /// `pause|stop|rollback`; `pause` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<String>,
    /// Who has to approve it before the first node is told: `none|any|other` (than who makes it); `none` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approve: Option<String>,
    /// How long the whole may take, in seconds; a day unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<f64>,
    /// How long one node may take, in seconds; an hour unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<f64>,
    /// How long a node may be offline in the middle of its update, in seconds; 900 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline_s: Option<f64>,
    /// How long the release is on trial at a node, in seconds; the node's own setting unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probation_s: Option<f64>,
    /// Whether a node may keep the release although it cannot reach the hub.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub offline_ok: bool,
    /// The part of a wave that may be offline without counting as failed; `10%` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowance: Option<String>,
}

/// When nodes may download and switch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RolloutWindow {
    /// `22:00-04:00`; all day unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<String>,
    /// The time zone, by its IANA name; that of each node's site unless given, else UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Only on outside power.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_power: bool,
    /// Not over a link that is paid by the byte.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmetered: bool,
}

/// The body of a new rollout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RolloutAsk {
    /// What is rolled out: `NAME@VERSION`, signed.
    pub release: String,
    /// Nodes by name; exactly one of `nodes`, `selector` and `all` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Vec<String>>,
    /// Nodes by label and field; those that match it later join the trailing wave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Every node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// The terms.
    #[serde(default)]
    pub terms: RolloutTerms,
}

/// What a rollout would be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct RolloutDraft {
    /// The name that it would have.
    pub id: String,
    /// What would be rolled out.
    pub release: String,
    /// The waves, with their nodes.
    pub waves: Vec<DraftWave>,
    /// Nodes that would be left out, by reason.
    pub left_out: BTreeMap<String, Vec<String>>,
    /// The plan in sentences.
    pub plan: Vec<String>,
    /// How long it takes, if every node takes as long as a healthy one.
    pub duration_s: f64,
    /// Bytes that nodes download.
    pub bytes: u64,
    /// What to know before it begins.
    pub warnings: Vec<String>,
}

/// A wave that would be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct DraftWave {
    /// Such as `5%`, or `trailing`.
    pub name: String,
    /// Its nodes in their order, at most 1,000.
    pub nodes: Vec<String>,
    /// How many there are.
    pub nodes_count: usize,
}

/// Why something is done with a rollout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RolloutReason {
    /// For whoever reads it later, at most 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Why a rollout is where it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct RolloutWhy {
    /// The rollout.
    pub id: String,
    /// Its state.
    pub state: String,
    /// Why: the present state with what led to it.
    pub causes: Vec<Cause>,
}
