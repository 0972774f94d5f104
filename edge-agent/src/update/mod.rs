//! Updates: the shell around `core::update`, and what each kind of artifact does at each step.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::config::seconds;

#[expect(dead_code, reason = "the loop that calls slots comes with the first of them")]
pub(crate) mod agent;
#[expect(dead_code, reason = "the loop that calls slots comes with the first of them")]
pub mod device;
#[expect(dead_code, reason = "the loop that calls slots comes with the first of them")]
pub mod firmware;
#[expect(dead_code, reason = "the loop that calls slots comes with the first of them")]
pub(crate) mod slot;

/// How the node takes updates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether it takes any.
    pub enabled: bool,
    /// How long a new release is on trial when the order does not say, in seconds.
    #[serde(rename = "probation_s", with = "seconds")]
    pub probation: Duration,
    /// How long after the trial the hub is waited for before what ran before comes back, in seconds.
    #[serde(rename = "reach_s", with = "seconds")]
    pub reach: Duration,
    /// Bytes of artifacts that may be fetched in a day (of UTC); absent: as many as there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_day: Option<u64>,
    /// Whether the link is paid by the byte: rollouts can wait for one that is not.
    pub metered: bool,
    /// A file that is there while the link is paid by the byte, for links that change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metered_while: Option<PathBuf>,
    /// Who updates the node's system.
    pub firmware: firmware::Config,
    /// How devices are updated.
    pub device: device::Config,
    /// Whether the running executable is the agent's release; not when the agent is a part of another program.
    #[serde(skip)]
    pub own_executable: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            probation: Duration::from_secs(60),
            reach: Duration::from_secs(600),
            bytes_per_day: None,
            metered: false,
            metered_while: None,
            firmware: firmware::Config::default(),
            device: device::Config::default(),
            own_executable: false,
        }
    }
}
