//! A simulated hub: the real consumer on a disk in memory, which may be killed between any two of its steps, run full,
//! be set back to a backup, and have its clock set wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fleet_schemas::{Lane, NodeId, StoreId, StreamId, Topic, ack::Ack, cbor, topic::Down};
use rand::{RngExt as _, rngs::StdRng};

use super::net;
use crate::{
    consume::{CREDIT, Consumer, FeedItem, Spoken},
    core::{
        Now,
        registry::Order,
        time::{Reading, Steady},
    },
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
    /// The highest mark that was acked, by node, lane and stream: what a later life of the hub must still have.
    pub acked: BTreeMap<(NodeId, Lane, StreamId), u64>,
    /// Promises that were found broken while it ran.
    pub wrong: Vec<String>,
    /// Kinds of the events that hubs noticed themselves, by node.
    pub reports: BTreeMap<NodeId, BTreeSet<String>>,
    steady: Option<Steady>,
    /// When the hub last ran with a clock that was not in doubt: kept over its restarts.
    known_ms: Option<i64>,
    wall_offset_ms: i64,
    booted_at: u64,
    doomed: Option<Kill>,
    broken: bool,
    /// The disk is one from a backup, and whoever put it there did as `fleet restore` does: versions of the
    /// configuration are counted anew.
    pub recounts: bool,
}

impl Site {
    pub(super) fn new() -> Self {
        Self {
            disk: Memory::default(),
            consumer: None,
            queue: Vec::new(),
            wait_until: 0,
            full_until: 0,
            acked: BTreeMap::new(),
            wrong: Vec::new(),
            reports: BTreeMap::new(),
            steady: None,
            known_ms: None,
            wall_offset_ms: 0,
            booted_at: 0,
            doomed: None,
            broken: false,
            recounts: false,
        }
    }

    pub(super) fn now(&mut self, now: u64, start_ms: i64) -> Now {
        let mono = Duration::from_millis(now - self.booted_at);
        let wall_ms = start_ms + i64::try_from(now).unwrap_or(i64::MAX) + self.wall_offset_ms;
        let at = Reading { wall_ms, mono, set: None };
        let (now, doubt) = self.steady.get_or_insert_with(|| Steady::new(at, self.known_ms)).read(at);
        if doubt.is_none() {
            self.known_ms = Some(now.wall_ms);
        }
        now
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
        let open = || Consumer::open(Arc::new(self.disk.clone()), config, fresh, at);
        if self.recounts {
            let counted = open().map(|consumer| consumer.shared().state().raise_config_epoch().is_ok());
            self.recounts = !counted.is_ok_and(|counted| counted);
        }
        match open() {
            Ok(consumer) => {
                self.consumer = Some(consumer);
                self.check_acked();
            }
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
    pub(super) fn round(
        &mut self,
        rng: &mut StdRng,
        now: u64,
        start_ms: i64,
        orders: Vec<Order>,
    ) -> Option<Spoken> {
        let at = self.now(now, start_ms);
        if self.doomed == Some(Kill::Idle) {
            return None;
        }
        if self.broken {
            if self.doomed.is_some() {
                return None;
            }
            if rng.random_bool(0.1) && self.consumer.as_mut()?.reopen(at).is_ok() {
                self.broken = false;
                self.check_acked();
            } else {
                return Some(Spoken::default());
            }
        }
        let group: Vec<_> = self.queue.drain(..).collect();
        let group = group.iter().map(|(topic, payload)| (topic, payload));
        match self.consumer.as_mut()?.consume(group, orders, CREDIT, at) {
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

    /// Commit, then speak: whatever was acked is in the stores, whenever they are opened.
    fn check_acked(&mut self) {
        let Some(consumer) = &self.consumer else { return };
        let fleet = consumer.shared().fleet();
        for ((node, lane, stream), acked) in &self.acked {
            let mark = fleet.nodes.get(node).and_then(|known| known.marks.get(&(*lane, *stream)));
            let stored = mark.map_or(0, |mark| mark.seq);
            if stored < *acked {
                self.wrong.push(format!("{node}: {lane}: {acked} was acked, {stored} is stored"));
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
        for (topic, payload) in &spoken.downs {
            let Topic::Down(node, Down::Ack) = topic else { continue };
            let ack: Ack = cbor::decode(payload).expect("our own acks can be read");
            for (lane, streams) in ack.lanes {
                for told in streams {
                    let acked = self.acked.entry((node.clone(), lane, told.stream)).or_default();
                    *acked = told.seq.max(*acked);
                }
            }
        }
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
