//! What nodes and their devices said: samples, events, devices, published texts.

use serde::{Deserialize, Serialize};

/// The answer of a telemetry query.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Telemetry {
    /// Series, sorted by device and metric.
    pub series: Vec<Series>,
}

/// One series and its points.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
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

/// A device behind a node, as its node reports it and its series show it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Device {
    /// Its id.
    pub id: String,
    /// `online|late|offline|sleeping|unknown`: `unknown` while its node is not there, and of a device that its node never
    /// reported.
    #[serde(default)]
    pub state: String,
    /// Since when, by the node's last report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<i64>,
    /// What kind of board.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The version that it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// What it can do.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// When it was last heard, as far as the hub knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_ms: Option<i64>,
    /// Until when it sleeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
    /// How often it speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
    /// How long it sleeps at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep_ms: Option<u64>,
    /// Whether its records have time and number of their arrival at the node, because it tells none.
    #[serde(default)]
    pub unsequenced: bool,
    /// Its metrics.
    pub metrics: Vec<String>,
    /// The time of its newest sample.
    pub last_ms: Option<i64>,
}

/// One event as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
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

/// A gene in the list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Gene {
    /// SHA-256 of its canonical JSON without `asset_id`, hexadecimal: names it.
    pub digest: String,
    /// The `asset_id` that its publisher gave it.
    pub asset_id: Option<String>,
    /// Whether that is the digest.
    pub verified: bool,
    /// Its own id, where it has one.
    pub id: Option<String>,
    /// What kind of gene.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The node that published it first.
    pub node: String,
    /// When it came first.
    pub first_ms: i64,
    /// Its JSON, in `GET genes/{digest}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gene: Option<serde_json::Value>,
}
