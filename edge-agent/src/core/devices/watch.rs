//! One device: `online → late → offline` and back, and asleep by its own word or by its schedule.

use std::time::Duration;

use fleet_schemas::{device::State, event::Severity};

use super::{Change, Declared, Device, Effects, Note, Sight};
use crate::core::Now;

/// One that slept and speaks is online after this time, unless it goes to sleep again: boards that wake to say one thing
/// would change their state twice each time.
pub(super) const AWAKE: Duration = Duration::from_secs(60);
/// Shortest heartbeat and sleep that count, and the longest, or a nonsensical one would make a device late always or never.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(31 * 86_400);
/// Least that a sleeper may be late.
const OVERSLEEP: Duration = Duration::from_secs(30);

/// A device, and what only this process knows of it.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub(super) device: Device,
    // When it was last heard.
    seen: Duration,
    // Until when it sleeps, and for how long it said so.
    sleep: Option<(Duration, Duration)>,
    // Since when it speaks although it sleeps.
    awake: Option<Duration>,
    // When one that is late is given up.
    give_up: Duration,
    linked: bool,
}

impl Watched {
    pub(super) fn new(device: Device, now: Now) -> Self {
        Self { device, seen: now.up, sleep: None, awake: None, give_up: now.up, linked: false }
    }

    pub(super) fn found(device: Device, now: Now) -> Self {
        let sleep = device.sleep_ms.filter(|_| device.state == State::Sleeping).map(|span| {
            let span = Duration::from_millis(span).clamp(SHORTEST, LONGEST);
            let left = device.until_ms.unwrap_or(now.wall_ms).saturating_sub(now.wall_ms);
            // One that slept on, as it said before, wrote nothing: where in its sleep it is nobody knows.
            let left = u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_millis);
            (now.up + left.unwrap_or(span).min(span), span)
        });
        // One that was late is given another heartbeat: nobody listened meanwhile.
        let give_up = now.up + heartbeat(&device, OVERSLEEP).unwrap_or(OVERSLEEP) * 3;
        Self { sleep, give_up, ..Self::new(device, now) }
    }

    pub(super) fn see(&mut self, sight: &Sight, new: bool, now: Now, effects: &mut Effects) {
        self.seen = now.up;
        let device = &mut self.device;
        device.last_seen_ms = Some(now.wall_ms);
        let before = (device.firmware.clone(), device.kind.clone(), device.unsequenced);
        device.unsequenced |= sight.unsequenced;
        if device.kind.is_none() {
            device.kind.clone_from(&sight.kind);
        }
        if sight.firmware.is_some() {
            device.firmware.clone_from(&sight.firmware);
        }
        let schedule = device.schedule_ms.map(Duration::from_millis);
        let (was, slept) = (device.state, device.sleep_ms);
        match sight.sleep.or(schedule) {
            Some(span) => self.fall_asleep(span.clamp(SHORTEST, LONGEST), now),
            None if was == State::Sleeping => drop(self.awake.get_or_insert(now.up)),
            None => self.to(State::Online, now),
        }
        let device = &self.device;
        let news = if new {
            Some(format!("device {} is registered by its first word", device.id))
        } else if device.state != was {
            Some(self.word())
        } else if before.0 != device.firmware {
            Some(self.update(before.0.as_ref().map_or("none", |old| old.as_str())))
        } else if (before.1, before.2) != (device.kind.clone(), device.unsequenced)
            || device.sleep_ms != slept
        {
            Some(format!("device {} is known better", device.id))
        } else {
            None
        };
        if let Some(message) = news {
            self.tell(Severity::Info, message, effects);
        }
    }

    pub(super) fn declare(&mut self, declared: Declared, new: bool, effects: &mut Effects) {
        let before = self.device.clone();
        let device = &mut self.device;
        let Declared { kind, name, firmware, capabilities, heartbeat, schedule } = declared;
        let millis = |span: Duration| u64::try_from(span.as_millis()).ok().filter(|millis| *millis > 0);
        device.kind = kind.or(device.kind.take());
        device.name = name.or(device.name.take());
        device.firmware = firmware.or(device.firmware.take());
        device.capabilities = capabilities.unwrap_or(std::mem::take(&mut device.capabilities));
        device.heartbeat_ms = heartbeat.map_or(device.heartbeat_ms, millis);
        device.schedule_ms = schedule.map_or(device.schedule_ms, millis);
        device.explicit = true;
        let firmware_changed = before.firmware != device.firmware;
        if new {
            let message = format!("device {} is registered", device.id);
            self.tell(Severity::Info, message, effects);
        } else if firmware_changed {
            let message = self.update(before.firmware.as_ref().map_or("none", |old| old.as_str()));
            self.tell(Severity::Info, message, effects);
        } else if before != self.device {
            let message = format!("device {} is declared anew", self.device.id);
            self.tell(Severity::Info, message, effects);
        }
    }

    pub(super) fn link(&mut self, open: bool, now: Now) {
        if self.linked {
            self.seen = now.up;
        }
        self.linked = open;
    }

    pub(super) fn due(&self, default: Duration) -> Option<Duration> {
        match self.device.state {
            State::Online if self.linked => None,
            State::Online => heartbeat(&self.device, default).map(|every| self.seen + every * 3 / 2),
            State::Late => Some(self.give_up),
            State::Sleeping => match (self.awake, self.sleep) {
                (Some(since), _) => Some(since + AWAKE),
                (None, Some((until, span))) => Some(until + (span / 4).max(OVERSLEEP)),
                (None, None) => Some(self.seen + OVERSLEEP),
            },
            State::Offline | State::Removed => None,
        }
    }

    pub(super) fn advance(&mut self, default: Duration, now: Now, effects: &mut Effects) {
        while self.due(default).is_some_and(|due| due <= now.up) {
            let severity = match self.device.state {
                State::Online => {
                    let every = heartbeat(&self.device, default).unwrap_or(SHORTEST);
                    self.give_up = self.seen + every * 3;
                    self.to(State::Late, now);
                    Severity::Info
                }
                State::Sleeping if self.awake.is_some() => {
                    self.to(State::Online, now);
                    Severity::Info
                }
                State::Sleeping => {
                    let (until, span) = self.sleep.unwrap_or((self.seen, OVERSLEEP));
                    self.give_up = until + span.max(OVERSLEEP * 2);
                    self.to(State::Late, now);
                    Severity::Info
                }
                State::Late => {
                    self.to(State::Offline, now);
                    Severity::Warning
                }
                State::Offline | State::Removed => return,
            };
            let message = self.word();
            self.tell(severity, message, effects);
        }
    }

    fn fall_asleep(&mut self, span: Duration, now: Now) {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.to(State::Sleeping, now);
        self.sleep = Some((now.up + span, span));
        self.device.sleep_ms = Some(millis);
        self.device.until_ms = Some(now.wall_ms.saturating_add_unsigned(millis));
    }

    fn to(&mut self, state: State, now: Now) {
        self.awake = None;
        if state != State::Sleeping {
            self.sleep = None;
            self.device.sleep_ms = None;
            self.device.until_ms = None;
        }
        if self.device.state != state {
            self.device.state = state;
            self.device.since_ms = now.wall_ms;
        }
    }

    fn word(&self) -> String {
        let id = &self.device.id;
        match self.device.state {
            State::Online => format!("device {id} is online"),
            State::Late => format!("device {id} is late"),
            State::Offline => format!("device {id} is offline: it has not been heard for three heartbeats"),
            State::Sleeping => format!("device {id} sleeps"),
            State::Removed => format!("device {id} was removed"),
        }
    }

    fn update(&self, old: &str) -> String {
        let new = self.device.firmware.as_ref().map_or("none", |firmware| firmware.as_str());
        format!("device {} runs firmware {new} (before: {old})", self.device.id)
    }

    fn tell(&self, severity: Severity, message: String, effects: &mut Effects) {
        effects.writes.push(Change::Put(Box::new(self.device.clone())));
        effects.notes.push(Note { report: self.device.report(), severity, message });
    }
}

/// How often it speaks: by its own declaration, else `default`; `None`: nobody knows.
fn heartbeat(device: &Device, default: Duration) -> Option<Duration> {
    let declared = device.heartbeat_ms.map(Duration::from_millis);
    declared.or((!default.is_zero()).then_some(default)).map(|every| every.clamp(SHORTEST, LONGEST))
}
