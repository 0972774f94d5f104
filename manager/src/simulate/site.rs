//! A simulated hub: the real consumer on a disk in memory, which may be killed between any two of its steps, run full,
//! be set back to a backup, and have its clock set wrong.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fleet_schemas::{StoreId, Topic};
use rand::{RngExt as _, rngs::StdRng};

use super::net;
use crate::{
    consume::{CREDIT, Consumer, FeedItem, Spoken},
    core::{Now, time::Steady},
    store::{
        disk::{Memory, When},
        telemetry,
    },
};

/// Where a simulated hub is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kill {
    /// Before a group is looked at.
    Idle,
    /// At one of the next syncs.
    AtSync(u64, When),
    /// After the commit, before anything is said.
    AfterCommit,
}

/// One hub.
pub(super) struct Site {
    pub disk: Memory,
    pub consumer: Option<Consumer>,
    pub queue: Vec<(Topic, Bytes)>,
    pub wait_until: u64,
    pub full_until: u64,
    /// Kinds of the events that hubs noticed themselves, by node.
    pub reports: std::collections::BTreeMap<fleet_schemas::NodeId, std::collections::BTreeSet<String>>,
    steady: Option<Steady>,
    wall_offset_ms: i64,
    booted_at: u64,
    doomed: Option<Kill>,
    broken: bool,
}

impl Site {
    pub(super) fn new() -> Self {
        Self {
            disk: Memory::default(),
            consumer: None,
            queue: Vec::new(),
            wait_until: 0,
            full_until: 0,
            reports: std::collections::BTreeMap::new(),
            steady: None,
            wall_offset_ms: 0,
            booted_at: 0,
            doomed: None,
            broken: false,
        }
    }

    pub(super) fn now(&mut self, now: u64, start_ms: i64) -> Now {
        let mono = Duration::from_millis(now - self.booted_at);
        let wall_ms = start_ms + i64::try_from(now).unwrap_or(i64::MAX) + self.wall_offset_ms;
        self.steady.get_or_insert_with(|| Steady::new(wall_ms, mono)).read(wall_ms, mono).0
    }

    pub(super) fn set_clock(&mut self, offset_ms: i64) {
        self.wall_offset_ms = offset_ms;
    }

    pub(super) fn start(&mut self, rng: &mut StdRng, now: u64, start_ms: i64) {
        self.booted_at = now;
        self.steady = None;
        let at = self.now(now, start_ms);
        // Small enough that sealing happens within a run.
        let config = telemetry::Config {
            seal_bytes: 2_000,
            seal_age: Duration::from_secs(60),
            ..telemetry::Config::default()
        };
        let fresh = StoreId(net::bytes(rng));
        match Consumer::open(Arc::new(self.disk.clone()), config, fresh, at) {
            Ok(consumer) => self.consumer = Some(consumer),
            Err(_) => self.kill(now, 1_000),
        }
    }

    /// The process dies; unsynced writes are forgotten.
    pub(super) fn kill(&mut self, now: u64, down: u64) {
        self.consumer = None;
        self.disk.crash();
        self.queue.clear();
        self.doomed = None;
        self.broken = false;
        self.wait_until = now + down;
    }

    pub(super) fn doom(&mut self, kill: Kill) {
        self.doomed = Some(kill);
        if let Kill::AtSync(sync, when) = kill {
            self.disk.freeze_at(self.disk.syncs() + sync, when);
        }
    }

    /// One round. `None`: the process died in it.
    pub(super) fn round(&mut self, rng: &mut StdRng, now: u64, start_ms: i64) -> Option<Spoken> {
        let at = self.now(now, start_ms);
        if self.doomed == Some(Kill::Idle) {
            return None;
        }
        let consumer = self.consumer.as_mut()?;
        if self.broken {
            if self.doomed.is_some() {
                return None;
            }
            if rng.random_bool(0.1) && consumer.reopen(at).is_ok() {
                self.broken = false;
            } else {
                return Some(Spoken::default());
            }
        }
        let group: Vec<_> = self.queue.drain(..).collect();
        let group = group.iter().map(|(topic, payload)| (topic, payload));
        match consumer.consume(group, Vec::new(), CREDIT, at) {
            Ok(spoken) => {
                if self.doomed == Some(Kill::AfterCommit) {
                    return None;
                }
                self.note(&spoken);
                self.tidy(rng, at);
                if matches!(self.doomed, Some(Kill::AtSync(..))) && rng.random_bool(0.05) {
                    return None;
                }
                Some(spoken)
            }
            Err(_) if self.doomed.is_some() => None,
            Err(_) => {
                self.broken = true;
                Some(Spoken::default())
            }
        }
    }

    fn tidy(&mut self, rng: &mut StdRng, at: Now) {
        let Some(consumer) = &self.consumer else { return };
        if rng.random_bool(0.05) && consumer.shared().telemetry.seal(at.wall_ms).is_err() {
            self.broken = true;
        }
    }

    fn note(&mut self, spoken: &Spoken) {
        for item in &spoken.items {
            if let FeedItem::Event(event) = &**item
                && event.by_hub
            {
                let kinds = self.reports.entry(event.node.clone()).or_default();
                kinds.insert(event.event.kind.to_string());
            }
        }
    }
}
