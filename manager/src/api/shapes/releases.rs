//! Artifacts, uploads and releases.

use serde::{Deserialize, Serialize};

/// An artifact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Artifact {
    /// Its SHA-256, 64 hexadecimal digits.
    pub digest: String,
    /// Its length in bytes.
    pub length: u64,
    /// What it was pushed as, oldest first.
    pub pushed: Vec<Pushed>,
    /// The targets as which it is signed.
    pub released: Vec<String>,
}

/// What an artifact was pushed as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Pushed {
    /// `kind/name/version/arch`.
    pub target: String,
    /// When.
    pub at_ms: i64,
    /// By whom.
    pub by: String,
    /// The lowest version that may be updated from, as its maker wishes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_from: Option<String>,
    /// The kind of device that it fits, as its maker wishes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_kind: Option<String>,
}

/// Where an upload stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Upload {
    /// The SHA-256 that was announced.
    pub digest: String,
    /// Bytes that are there: go on from here.
    pub offset: u64,
    /// Bytes that it will have.
    pub length: u64,
    /// Whether it is an artifact by now.
    pub complete: bool,
}

/// A release: a version of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Release {
    /// `NAME@VERSION`.
    pub id: String,
    /// `skill|agent|firmware|device-firmware`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One for each architecture.
    pub targets: Vec<ReleaseTarget>,
}

/// A release for one architecture, as it is signed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ReleaseTarget {
    /// `kind/name/version/arch`.
    pub target: String,
    /// The architecture, or `any`.
    pub arch: String,
    /// The SHA-256 of its artifact.
    pub digest: String,
    /// Its length in bytes.
    pub length: u64,
    /// The security epoch.
    pub epoch: u64,
    /// The lowest version that may be updated from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_from: Option<String>,
    /// Whether nodes that run a higher version may go to this one.
    pub downgrade: bool,
    /// The kind of device that it fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_kind: Option<String>,
    /// When it was signed.
    pub signed_ms: i64,
}

/// Where the signed metadata of releases stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ReleaseMetadata {
    /// Whether releases have keys.
    pub initialised: bool,
    /// The roles that there are.
    pub roles: Vec<ReleaseRole>,
    /// The version that the next targets have to have.
    #[serde(default)]
    pub next_targets: u64,
    /// The hub's public key for snapshots, as a root has it.
    pub snapshot_key: serde_json::Value,
    /// The hub's public key for timestamps, as a root has it.
    pub timestamp_key: serde_json::Value,
}

/// A role of the signed metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ReleaseRole {
    /// `root|targets|snapshot|timestamp`.
    pub role: String,
    /// Its version.
    pub version: u64,
    /// When it ends.
    pub expires_ms: i64,
}
