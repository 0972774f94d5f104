//! The account of every record, and how the hub is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The account of every record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Ledger {
    /// Whether no account is `broken`.
    pub balanced: bool,
    /// One per node and lane.
    pub accounts: Vec<Account>,
    /// With `verify`: what counting rows found to differ from the marks; empty when nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub findings: Option<Vec<Finding>>,
}

/// One node's lane, in records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Account {
    /// The node.
    pub node: String,
    /// The lane.
    pub lane: String,
    /// `balanced|pending|broken`.
    pub state: String,
    /// Sum of the terms.
    pub produced: u64,
    /// In the store.
    pub stored: u64,
    /// Stored once, and gone by retention.
    pub expired: u64,
    /// Kept raw because the body was bad.
    pub quarantined: u64,
    /// Declared gone.
    pub lost: u64,
    /// Given up with the node.
    pub written_off: u64,
    /// Still in the outbox.
    pub at_edge: u64,
    /// Records that came again and were not stored again.
    pub duplicates: u64,
    /// The time zone of the node's site, by the IANA name; none was set when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
    /// Time of the snapshot.
    pub as_of_ms: i64,
    /// Why it is broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What counting rows found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Finding {
    /// The node.
    pub node: String,
    /// The lane.
    pub lane: String,
    /// Records by the marks.
    pub expected: u64,
    /// Records by counting.
    pub counted: u64,
}

/// The hub in one look.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Status {
    /// Version of the hub.
    pub version: String,
    /// The hub's clock.
    pub now_ms: i64,
    /// Whether it accepts data.
    pub ready: bool,
    /// Why not.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Nodes by presence state.
    #[serde(default)]
    pub nodes_by_state: BTreeMap<String, u64>,
    /// Accounts by state.
    #[serde(default)]
    pub accounts_by_state: BTreeMap<String, u64>,
    /// Sums of all accounts, in records.
    #[serde(default)]
    pub records: BTreeMap<String, u64>,
    /// Figures since the start of the hub, by name.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
    /// The filesystem that holds its data, where that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskSpace>,
    /// Where it listens: `http`, `https` (instead of it), `mqtt`, `mqtts`, `node_https`.
    #[serde(default)]
    pub listeners: BTreeMap<String, String>,
    /// How far the nodes have come since this hub was restored from a backup, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
}

/// What became of a restore.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Restored {
    /// When it was restored.
    pub at_ms: i64,
    /// When the backup was made.
    pub backup_ms: i64,
    /// Nodes that the hub knows.
    pub nodes: u64,
    /// Those of them that were born since.
    pub nodes_back: u64,
    /// Those of them that delivered all they had at that birth.
    pub nodes_settled: u64,
    /// Some of those that did not come back yet.
    #[serde(default)]
    pub nodes_missing: Vec<String>,
    /// Records that nodes had at that birth, and that this hub has by now: kept by them, or never delivered before.
    pub records_again: u64,
    /// Those of them that did not come yet.
    pub records_due: u64,
    /// Records that neither side had, booked as lost at that birth.
    pub records_lost: u64,
    /// Samples of past weeks that the backup left out, booked as lost.
    pub samples_missing: u64,
    /// Executions of commands that wait for approval.
    pub held: u64,
}

/// A filesystem.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct DiskSpace {
    /// Bytes that are left for the hub.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// `fine`, `high` from 80 % on, `full` from 95 % on; each ends five points below.
    #[serde(default)]
    pub level: String,
    /// Bytes used, by `telemetry`, `state`, `artifacts` and `elsewhere`.
    #[serde(default)]
    pub used_bytes: BTreeMap<String, u64>,
    /// Bytes that telemetry may take, as retention reckons it now.
    #[serde(default)]
    pub telemetry_most_bytes: u64,
    /// Days that samples are kept unless size decides.
    #[serde(default)]
    pub keep_days: u32,
    /// How long the hub has looked, in seconds: a forecast needs six hours.
    #[serde(default)]
    pub watched_s: u64,
    /// What is to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<DiskForecast>,
}

/// What is to come on a filesystem.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct DiskForecast {
    /// Bytes that are added in a day, over the last week, by the same names.
    pub daily_bytes: BTreeMap<String, i64>,
    /// Which retention removes telemetry next, `age` or `size`,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// and in how many days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_days: Option<f64>,
    /// Days of samples that there is room for, where that is less than `keep_days`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_days: Option<f64>,
    /// In how many days 95 % are used although retention acts; absent: not within ten years.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_days: Option<f64>,
}
