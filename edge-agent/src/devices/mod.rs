//! Devices behind the node: how they are kept.
//!
//! Owns the settings. Which devices there are is decided in `core/devices`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    config::seconds,
    core::devices::{Policy, Register},
};

/// How devices are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `auto`: a device's first word registers it; `explicit`: somebody has to.
    pub register: Register,
    /// The heartbeat of devices that declare none, in seconds; 0: they are never late.
    #[serde(rename = "heartbeat_s", with = "seconds")]
    pub heartbeat: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            register: Register::Auto,
            // Longer than most boards are silent, short enough that a dead one is known within the hour.
            heartbeat: Duration::from_secs(900),
        }
    }
}

impl Config {
    pub(crate) fn policy(&self) -> Policy {
        Policy { register: self.register, heartbeat: self.heartbeat }
    }
}
