//! The JSON of the HTTP API, as the hub writes it and the CLI reads it.
//!
//! Owns field names only. Holds no logic; times are Unix milliseconds, lists are `{items, next}`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One page of a list; `next` is the cursor of the following page, absent on the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Hand it back as `cursor`.
    pub next: Option<String>,
}

/// One node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: String,
    /// Its name for people.
    #[serde(default)]
    pub name: Option<String>,
    /// What kind of machine.
    #[serde(default)]
    pub kind: String,
    /// Presence: `new|online|suspect|offline|sleeping|unknown`.
    pub state: String,
    /// Where it belongs.
    #[serde(default)]
    pub site: Option<String>,
    /// Where it is.
    #[serde(default)]
    pub location: Option<Location>,
    /// Labels an operator gave.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it can do.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// What it runs.
    #[serde(default)]
    pub versions: Versions,
    /// When it was first seen.
    #[serde(default)]
    pub first_seen_ms: Option<i64>,
    /// When it was last seen.
    #[serde(default)]
    pub last_seen_ms: Option<i64>,
    /// Its count of sessions.
    #[serde(default)]
    pub session_epoch: u64,
    /// Figures of the last heartbeat by metric.
    #[serde(default)]
    pub system: BTreeMap<String, f64>,
    /// Host name, operating system and the like.
    #[serde(default)]
    pub machine: BTreeMap<String, String>,
    /// What its outbox holds by the last heartbeat.
    #[serde(default)]
    pub outbox: Option<Outbox>,
    /// Devices with series, the node itself aside.
    #[serde(default)]
    pub devices_count: usize,
    /// Wanted and told configuration versions.
    #[serde(default)]
    pub config: ConfigVersions,
}

/// Degrees, WGS 84.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Location {
    /// -90 to 90.
    pub lat: f64,
    /// -180 to 180.
    pub lon: f64,
}

/// What a node runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    /// The agent.
    #[serde(default)]
    pub agent: String,
    /// The firmware or system image, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// Skills by name.
    #[serde(default)]
    pub skills: BTreeMap<String, String>,
}

/// What an outbox holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Outbox {
    /// Records that the hub has not yet accounted for.
    pub records: u64,
    /// Bytes held.
    pub bytes: u64,
    /// Bytes it may hold.
    pub quota_bytes: u64,
}

/// Versions of the configuration; absent while there is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigVersions {
    /// Wanted.
    #[serde(default)]
    pub desired_version: Option<String>,
    /// Told.
    #[serde(default)]
    pub reported_version: Option<String>,
}

/// The answer of a telemetry query.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// Series, sorted by device and metric.
    pub series: Vec<Series>,
}

/// One series and its points.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The device, empty for the node itself.
    pub device: String,
    /// The metric.
    pub metric: String,
    /// The unit, where known.
    #[serde(default)]
    pub unit: Option<String>,
    /// `[time_ms, value]`, ascending.
    pub points: Vec<(i64, f64)>,
}

/// A device behind a node, as its series show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Its id.
    pub id: String,
    /// Its metrics.
    pub metrics: Vec<String>,
    /// The time of its newest sample.
    pub last_ms: Option<i64>,
}

/// One event as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The node.
    pub node: String,
    /// When it happened, corrected where the node's clock was wrong.
    pub time_ms: i64,
    /// When the hub stored it.
    #[serde(default)]
    pub stored_ms: i64,
    /// What kind of thing.
    pub kind: String,
    /// `info|warning|error|critical`.
    pub severity: String,
    /// A sentence.
    pub message: String,
    /// The device, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The submitter's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Anything more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
}

/// A saved selector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// What it selects.
    pub selector: String,
    /// How many nodes that is now.
    #[serde(default)]
    pub nodes_count: usize,
}

/// The account of every record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Time of the snapshot.
    pub as_of_ms: i64,
    /// Why it is broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What counting rows found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// What became of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// Whether nothing was changed on purpose.
    pub dry_run: bool,
    /// Lines that were (or would be) applied.
    pub applied: usize,
    /// Lines that were not.
    pub failed: usize,
    /// One per line of the file, the header aside.
    pub lines: Vec<ImportLine>,
}

/// What became of one line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportLine {
    /// Its number in the file, from 1.
    pub line: u64,
    /// The node, where it could be read.
    pub id: String,
    /// `created|changed|unchanged|failed`.
    pub result: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A problem (RFC 9457).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable word: `about:blank` or `urn:clawland:fleet:…`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The status in words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong and what to do.
    #[serde(default)]
    pub detail: String,
    /// Which members of the input are wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
}

/// One wrong member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// JSON pointer (RFC 6901) into the body, or `?name` for a query parameter.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}
