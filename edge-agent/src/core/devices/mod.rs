//! The devices behind the node: which there are, and whether each is online, late, offline or asleep.
//!
//! Pure: a word of a device and a time in, [`Effects`] out. Driven by what devices say and by one deadline each on the
//! node's monotonic clock; the time that a device tells is never asked. Whoever gives commands to devices and listens to
//! them is none of this room's business.

mod watch;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fleet_schemas::{
    DeviceId, MetricName,
    device::{Report, State},
    event::Severity,
    limits,
};
use serde::{Deserialize, Serialize};

use self::watch::Watched;
use crate::core::Now;

/// Whether a device has to be registered before it may say something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Register {
    /// Its first word registers it.
    #[default]
    Auto,
    /// Somebody has to do it.
    Explicit,
    /// Devices are not kept at all: for load generators and the simulator.
    #[serde(skip)]
    Off,
}

/// How devices are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Who may register.
    pub register: Register,
    /// The heartbeat of those that declare none; zero: they are never late.
    pub heartbeat: Duration,
}

/// What is known of a device, as it lies on disk. Written when something of it changes but for `last_seen_ms`, which goes
/// along.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// What kind of board.
    pub kind: Option<MetricName>,
    /// A name for people.
    pub name: Option<String>,
    /// The version that it runs.
    pub firmware: Option<MetricName>,
    /// What it can do.
    pub capabilities: Vec<MetricName>,
    /// How often it speaks, by declaration, in milliseconds.
    pub heartbeat_ms: Option<u64>,
    /// It sleeps so long after each word, by declaration, in milliseconds.
    pub schedule_ms: Option<u64>,
    /// Somebody registered it, and did not wait for its first word.
    pub explicit: bool,
    /// It tells neither time nor number of what it says.
    pub unsequenced: bool,
    /// How it is.
    pub state: State,
    /// Since when, Unix milliseconds.
    pub since_ms: i64,
    /// How long it sleeps at a time, by its last word on that, in milliseconds.
    pub sleep_ms: Option<u64>,
    /// Until when it sleeps, Unix milliseconds.
    pub until_ms: Option<i64>,
    /// When it was registered, Unix milliseconds.
    pub registered_ms: i64,
    /// When it was last heard, Unix milliseconds.
    pub last_seen_ms: Option<i64>,
}

/// What somebody declares of a device; what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Declared {
    /// See [`Device::kind`].
    pub kind: Option<MetricName>,
    /// See [`Device::name`].
    pub name: Option<String>,
    /// See [`Device::firmware`].
    pub firmware: Option<MetricName>,
    /// See [`Device::capabilities`].
    pub capabilities: Option<Vec<MetricName>>,
    /// See [`Device::heartbeat_ms`]; zero takes it back.
    pub heartbeat: Option<Duration>,
    /// See [`Device::schedule_ms`]; zero takes it back.
    pub schedule: Option<Duration>,
}

/// A word of a device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sight {
    /// The kind it has by the way it speaks; does not replace another.
    pub kind: Option<MetricName>,
    /// The version that it tells.
    pub firmware: Option<MetricName>,
    /// It goes to sleep for so long.
    pub sleep: Option<Duration>,
    /// It told neither time nor number.
    pub unsequenced: bool,
}

/// Why a device is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Devices have to be registered here, and this one is not.
    #[error("device {0:?} is not registered; register it first: PUT /api/v1/devices/{{id}}")]
    Unknown(DeviceId),
    /// There are as many as there may be.
    #[error(
        "this node has {} devices already; remove one that is gone: DELETE /api/v1/devices/{{id}}",
        limits::DEVICES_PER_NODE
    )]
    Full,
}

/// What follows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effects {
    /// Rows.
    pub writes: Vec<Change>,
    /// Events, in order.
    pub notes: Vec<Note>,
}

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It is new, or changed.
    Put(Box<Device>),
    /// It is gone.
    Remove(DeviceId),
}

/// A change to be told.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// All that is known of it.
    pub report: Report,
    /// How bad.
    pub severity: Severity,
    /// For people.
    pub message: String,
}

/// All devices.
#[derive(Debug, Clone)]
pub struct Devices {
    policy: Policy,
    all: BTreeMap<DeviceId, Watched>,
    // No deadline is before this; looking anew costs a look at each.
    due: Option<Duration>,
}

impl Devices {
    /// What was found on disk: each has all its time from now on.
    #[must_use]
    pub fn found(policy: Policy, rows: Vec<Device>, now: Now) -> Self {
        let found = rows.into_iter().map(|row| (row.id.clone(), Watched::found(row, now)));
        let mut devices = Self { policy, all: found.collect(), due: None };
        devices.look();
        devices
    }

    /// All of them, by id.
    pub fn all(&self) -> impl Iterator<Item = &Device> {
        self.all.values().map(|watched| &watched.device)
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: &DeviceId) -> Option<&Device> {
        self.all.get(id).map(|watched| &watched.device)
    }

    /// Whether all of these may say something.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn admit<'a>(&self, ids: impl IntoIterator<Item = &'a DeviceId>) -> Result<(), Refused> {
        if self.policy.register == Register::Off {
            return Ok(());
        }
        let new: BTreeSet<_> =
            ids.into_iter().filter(|id| !id.is_node() && !self.all.contains_key(*id)).collect();
        match new.first() {
            Some(first) if self.policy.register == Register::Explicit => {
                Err(Refused::Unknown((*first).clone()))
            }
            Some(_) if self.all.len() + new.len() > limits::DEVICES_PER_NODE => Err(Refused::Full),
            Some(_) | None => Ok(()),
        }
    }

    /// A device said something.
    ///
    /// # Errors
    /// [`Refused`]: nothing changed.
    pub fn see(&mut self, id: &DeviceId, sight: &Sight, now: Now) -> Result<Effects, Refused> {
        let mut effects = Effects::default();
        self.admit([id])?;
        if id.is_node() || self.policy.register == Register::Off {
            return Ok(effects);
        }
        let new = !self.all.contains_key(id);
        let watched =
            self.all.entry(id.clone()).or_insert_with(|| Watched::new(Device::new(id, false, now), now));
        watched.see(sight, new, now, &mut effects);
        self.note_due(id);
        Ok(effects)
    }

    /// Somebody declares a device. Says whether it is new.
    ///
    /// # Errors
    /// [`Refused`]: nothing changed.
    pub fn declare(
        &mut self,
        id: &DeviceId,
        declared: Declared,
        now: Now,
    ) -> Result<(bool, Effects), Refused> {
        let mut effects = Effects::default();
        let new = !self.all.contains_key(id);
        if new && self.all.len() >= limits::DEVICES_PER_NODE {
            return Err(Refused::Full);
        }
        let watched =
            self.all.entry(id.clone()).or_insert_with(|| Watched::new(Device::new(id, true, now), now));
        watched.declare(declared, new, &mut effects);
        self.note_due(id);
        Ok((new, effects))
    }

    /// It is none any more; `None` if it was none.
    pub fn remove(&mut self, id: &DeviceId) -> Option<Effects> {
        let Watched { mut device, .. } = self.all.remove(id)?;
        device.state = State::Removed;
        let note = Note {
            report: device.report(),
            severity: Severity::Info,
            message: format!("device {id} was removed"),
        };
        Some(Effects { writes: vec![Change::Remove(id.clone())], notes: vec![note] })
    }

    /// Its connection is open, which shows that it is there, or is not any more.
    pub fn link(&mut self, id: &DeviceId, open: bool, now: Now) {
        if let Some(watched) = self.all.get_mut(id) {
            watched.link(open, now);
            self.note_due(id);
        }
    }

    /// When [`Self::advance`] has something to do, on the monotonic clock.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Lets deadlines pass.
    pub fn advance(&mut self, now: Now) -> Effects {
        let mut effects = Effects::default();
        if self.due.is_none_or(|due| due > now.up) {
            return effects;
        }
        for watched in self.all.values_mut() {
            watched.advance(self.policy.heartbeat, now, &mut effects);
        }
        self.look();
        effects
    }

    fn note_due(&mut self, id: &DeviceId) {
        let due = self.all.get(id).and_then(|watched| watched.due(self.policy.heartbeat));
        self.due = self.due.into_iter().chain(due).min();
    }

    fn look(&mut self) {
        self.due = self.all.values().filter_map(|watched| watched.due(self.policy.heartbeat)).min();
    }
}

impl Device {
    fn new(id: &DeviceId, explicit: bool, now: Now) -> Self {
        Self {
            id: id.clone(),
            kind: None,
            name: None,
            firmware: None,
            capabilities: Vec::new(),
            heartbeat_ms: None,
            schedule_ms: None,
            explicit,
            unsequenced: false,
            // Of one that was registered and never heard, too: it has its first heartbeat to come.
            state: State::Online,
            since_ms: now.wall_ms,
            sleep_ms: None,
            until_ms: None,
            registered_ms: now.wall_ms,
            last_seen_ms: None,
        }
    }

    /// As it is told to the hub.
    #[must_use]
    pub fn report(&self) -> Report {
        Report {
            device: self.id.clone(),
            state: self.state,
            kind: self.kind.clone(),
            name: self.name.clone(),
            firmware: self.firmware.clone(),
            capabilities: self.capabilities.clone(),
            heartbeat_ms: self.heartbeat_ms,
            sleep_ms: self.sleep_ms,
            until_ms: self.until_ms,
            last_seen_ms: self.last_seen_ms,
            unsequenced: self.unsequenced,
        }
    }
}
