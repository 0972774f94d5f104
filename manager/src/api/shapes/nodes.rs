//! Nodes, groups and what is known of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Node {
    /// Its id.
    pub id: String,
    /// Its name for people.
    #[serde(default)]
    pub name: Option<String>,
    /// What kind of machine.
    #[serde(default)]
    pub kind: String,
    /// Presence: `new|online|suspect|offline|sleeping|unknown`; `removed` once it is no part of the fleet any more.
    pub state: String,
    /// Where it belongs.
    #[serde(default)]
    pub site: Option<String>,
    /// The time zone of its site, by the IANA name; none was set when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
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
    /// Devices that it reported or that have series, the node itself aside.
    #[serde(default)]
    pub devices_count: usize,
    /// Wanted and told configuration versions.
    #[serde(default)]
    pub config: ConfigVersions,
    /// Whether it may come in.
    #[serde(default)]
    pub enrolment: Enrolment,
    /// When it was removed from the fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_ms: Option<i64>,
}

/// Whether a node may come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Enrolment {
    /// `none|pending|enrolled|revoked`; `none` for a node without a certificate.
    pub state: String,
    /// When its certificate ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after_ms: Option<i64>,
    /// When it was shut out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_ms: Option<i64>,
    /// Why it was shut out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Default for Enrolment {
    fn default() -> Self {
        Self { state: "none".to_owned(), not_after_ms: None, revoked_ms: None, reason: None }
    }
}

/// Degrees, WGS 84.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Location {
    /// -90 to 90.
    pub lat: f64,
    /// -180 to 180.
    pub lon: f64,
}

/// What a node runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
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
#[cfg_attr(test, derive(utoipa::ToSchema))]
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
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ConfigVersions {
    /// Wanted.
    #[serde(default)]
    pub desired_version: Option<String>,
    /// Told: the one that runs.
    #[serde(default)]
    pub reported_version: Option<String>,
    /// `unmanaged|in_sync|pending|failed|offline`.
    #[serde(default)]
    pub state: String,
}

/// Where nodes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Site {
    /// Its name.
    pub site: String,
    /// Its time zone, by the IANA name; none was set, and it counts as UTC, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
    /// How many nodes it has.
    #[serde(default)]
    pub nodes_count: usize,
}

/// A saved selector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Group {
    /// Its name.
    pub name: String,
    /// What it selects.
    pub selector: String,
    /// How many nodes that is now.
    #[serde(default)]
    pub nodes_count: usize,
}

/// What became of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
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
#[cfg_attr(test, derive(utoipa::ToSchema))]
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
