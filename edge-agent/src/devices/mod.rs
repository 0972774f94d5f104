//! Devices behind the node: how they are kept, and the local MQTT listener that serves them.
//!
//! Owns the settings. Which devices there are is decided in `core/devices`; sessions and topics are those of
//! [`fleet_broker::local`].

mod dialect;
mod line;
pub(crate) mod listen;
pub(crate) mod offers;
pub mod passwords;

use std::{net::SocketAddr, time::Duration};

use fleet_schemas::limits;
use serde::{Deserialize, Serialize};

pub use self::listen::Error as ListenError;
pub(crate) use self::{
    line::{Line, Order},
    offers::Offers,
};
use crate::{
    config::seconds,
    core::devices::{Policy, Register},
};

/// How devices are kept, and whether they are served over MQTT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `auto`: a device's first word registers it; `explicit`: somebody has to.
    pub register: Register,
    /// The heartbeat of devices that declare none, in seconds; 0: they are never late.
    #[serde(rename = "heartbeat_s", with = "seconds")]
    pub heartbeat: Duration,
    /// Where devices are served over MQTT 3.1.1, in the clear; absent: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Devices need no password, but for those that have one: only on a loopback address or that of a private network.
    pub open: bool,
    /// Most sessions of devices.
    pub sessions: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            register: Register::Auto,
            // Longer than most boards are silent, short enough that a dead one is known within the hour.
            heartbeat: Duration::from_secs(900),
            listen: None,
            open: false,
            sessions: limits::DEVICES_PER_NODE,
        }
    }
}

impl Config {
    pub(crate) fn policy(&self) -> Policy {
        Policy { register: self.register, heartbeat: self.heartbeat }
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// What is wrong, and what would be allowed.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !(1..=SESSIONS).contains(&self.sessions) {
            return Err(format!("sessions is {}; it may be 1 to {SESSIONS}", self.sessions));
        }
        match self.listen {
            Some(address) if self.open && !listen::is_private(address.ip()) => Err(format!(
                "open lets in whoever reaches {address}; write the node's own address on a private network into \
                 listen, or give each device a password (fleet-agent device add ID) and leave open away"
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// Most sessions that may be configured: some for each device.
const SESSIONS: usize = 4 * limits::DEVICES_PER_NODE;
