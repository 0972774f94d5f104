//! A simulated node: the real uplink on a simulated card, with a clock that may be wrong and a card that may be set
//! back or copied.

use std::{collections::BTreeSet, time::Duration};

use fleet_edge_agent::{
    core::{Now as EdgeNow, config::Running, queue::Act},
    store::sim_disk::SimFile,
    uplink::{Config, Handed, Outgoing, Profile, Submission, Uplink},
};
use fleet_schemas::{
    DeviceId, MetricName, NodeId, SessionId, StreamId, batch::Clock, event::Event, event::Severity,
    session::Versions, telemetry::Sample, update::RUNNING,
};
use rand::{RngExt as _, rngs::StdRng};

use super::{
    net, settings,
    update::{self, Fate, Images, Sight},
    work,
};

/// What an agent accepted, by the number each record carries.
#[derive(Debug, Default, Clone)]
pub(super) struct Truth {
    /// Answered with yes.
    pub accepted: BTreeSet<u64>,
    /// Under way when the disk failed: may be stored or not.
    pub maybe: BTreeSet<u64>,
    /// Accepted since its card was last tampered with, by the machine that stays.
    pub since: BTreeSet<u64>,
    /// Whether its card was set back, copied or wiped: then records may be stored twice, or be gone unseen.
    pub tampered: bool,
}

/// One machine.
pub(super) struct Edge {
    pub node: NodeId,
    pub card: SimFile,
    pub uplink: Option<Uplink>,
    pub connection: Option<(u64, SessionId)>,
    /// Not before this time it connects, or starts again.
    pub wait_until: u64,
    pub partitioned_until: u64,
    pub card_full_until: u64,
    /// Which hub it talks to.
    pub hub: usize,
    /// The programs that run on it.
    pub work: work::Work,
    /// What documents of the hub make of it.
    pub machine: settings::Machine,
    /// Image of the card and the numbers accepted by then.
    pub image: Option<SimFile>,
    /// What is updated on it, where that is simulated, and the image of that.
    pub updates: Option<update::Machine>,
    pub updates_image: Option<update::Machine>,
    orders: Vec<Act>,
    is_twin: bool,
    booted_at: u64,
    boot: [u8; 8],
    clock: (i64, Clock),
    quota_bytes: u64,
}

impl Edge {
    pub(super) fn new(node: NodeId, rng: &mut StdRng, quota_bytes: u64) -> Self {
        Self {
            node,
            card: SimFile::new(),
            uplink: None,
            connection: None,
            wait_until: 0,
            partitioned_until: 0,
            card_full_until: 0,
            hub: 0,
            image: None,
            updates: None,
            updates_image: None,
            orders: Vec::new(),
            work: work::Work::default(),
            machine: settings::Machine::default(),
            is_twin: false,
            booted_at: 0,
            boot: net::bytes(rng),
            clock: (0, Clock::Synced),
            quota_bytes,
        }
    }

    /// A second machine with a copy of the card.
    pub(super) fn clone_of(&mut self, rng: &mut StdRng, now: u64) -> Self {
        let mut twin = Self::new(self.node.clone(), rng, self.quota_bytes);
        twin.card = self.card.image();
        twin.is_twin = true;
        twin.booted_at = now;
        twin.hub = self.hub;
        twin.updates = self.updates.as_mut().map(update::Machine::copy);
        twin
    }

    pub(super) fn now(&self, now: u64, start_ms: i64) -> EdgeNow {
        let (offset, clock) = self.clock;
        let up = Duration::from_millis(now - self.booted_at);
        let true_ms = start_ms + i64::try_from(now).unwrap_or(i64::MAX);
        // A board without a clock counts from 1970.
        let wall_ms = match clock {
            Clock::Synced => true_ms + offset,
            Clock::Unsynced => offset + i64::try_from(up.as_millis()).unwrap_or(i64::MAX),
        };
        EdgeNow { wall_ms, up, clock }
    }

    /// The wall clock jumps, or is lost.
    pub(super) fn set_clock(&mut self, offset_ms: i64, clock: Clock) {
        self.clock = (offset_ms, clock);
    }

    /// The power goes and comes back after `down` milliseconds.
    pub(super) fn reboot(&mut self, rng: &mut StdRng, now: u64, down: u64) {
        self.end(true, now);
        self.wait_until = now + down;
        self.boot = net::bytes(rng);
        self.booted_at = now;
    }

    /// Only the agent's process dies: same boot.
    pub(super) fn kill(&mut self, now: u64, down: u64) {
        self.end(false, now);
        self.wait_until = now + down;
    }

    fn end(&mut self, by_power: bool, now: u64) {
        self.uplink = None;
        self.work.die();
        self.machine.die();
        self.orders.clear();
        if let Some(updates) = &mut self.updates {
            updates.die(by_power, now);
        }
        self.connection = None;
        self.card.crash();
    }

    /// Whether there is a process that does nothing.
    pub(super) fn hangs(&self) -> bool {
        self.updates.as_ref().is_some_and(|updates| updates.hangs)
    }

    pub(super) fn start(&mut self, rng: &mut StdRng, images: &Images, now: u64, start_ms: i64) {
        if let Some(updates) = &mut self.updates {
            if let Err(pause) = updates.start(images, now) {
                self.wait_until = now + pause;
                return;
            }
            if updates.hangs {
                return;
            }
        }
        let versions = self.updates.as_ref().map(update::Machine::versions);
        let stream = StreamId(net::bytes(rng));
        let profile = Profile {
            node: self.node.clone(),
            boot: self.boot,
            instance: stream.0.first_chunk().copied(),
            kind: "picclaw".to_owned(),
            name: None,
            capabilities: Vec::new(),
            versions: versions.unwrap_or(Versions { agent: "0".to_owned(), ..Versions::default() }),
            machine: self.updates.iter().map(|_| ("arch".to_owned(), "sim".to_owned())).collect(),
            heartbeat: Duration::from_secs(10),
        };
        let config = Config {
            quota_bytes: self.quota_bytes,
            upload: Duration::from_secs(5),
            batch_samples: 40,
            prompt: Duration::from_secs(2),
            keep: Duration::from_secs(600),
            ..Config::default()
        };
        let opened = Uplink::open(self.card.backend(), profile, config, stream, self.now(now, start_ms));
        match opened {
            Ok(mut uplink) => {
                uplink.take_commands(work::judge(), &BTreeSet::new());
                let (probation, at) = (Duration::from_secs(settings::PROBATION_S), self.now(now, start_ms));
                match uplink.take_config(probation, Running::Unknown, None, at) {
                    Ok(()) => self.uplink = Some(uplink),
                    Err(_) => self.kill(now, 1_000),
                }
            }
            Err(_) => self.kill(now, 1_000),
        }
    }

    /// Submits some records; notes what was accepted.
    pub(super) fn submit(
        &mut self,
        rng: &mut StdRng,
        truth: &mut Truth,
        next: &mut u64,
        now: u64,
        start_ms: i64,
    ) {
        let edge_now = self.now(now, start_ms);
        let Some(uplink) = &mut self.uplink else { return };
        let mut submissions = Vec::new();
        let mut numbers: Vec<Vec<u64>> = Vec::new();
        let mut take = |count: u64| {
            let first = *next;
            *next += count;
            (first..*next).collect::<Vec<_>>()
        };
        if rng.random_bool(0.9) {
            let samples = take(rng.random_range(1..12));
            let device = DeviceId::parse(["", "a", "b"][rng.random_range(0..3)]).expect("a device id");
            let sample = |number: &u64| Sample {
                time_ms: edge_now.wall_ms,
                device: device.clone(),
                metric: MetricName::parse("n").expect("a metric name"),
                unit: None,
                value: *number as f64,
            };
            submissions.push(Submission::Samples(samples.iter().map(sample).collect()));
            numbers.push(samples);
        }
        if rng.random_bool(0.2) {
            let events = take(1);
            let event = |number: &u64| Event {
                time_ms: edge_now.wall_ms,
                kind: MetricName::parse("n").expect("a kind"),
                severity: Severity::Info,
                message: number.to_string(),
                data: None,
                device: None,
                id: None,
            };
            submissions.push(Submission::Events(events.iter().map(event).collect()));
            numbers.push(events);
        }
        match uplink.submit(submissions, edge_now) {
            Ok(results) => {
                let taken = results.iter().zip(numbers).filter(|(result, _)| result.is_ok());
                let taken: Vec<u64> = taken.flat_map(|(_, numbers)| numbers).collect();
                if !self.is_twin {
                    truth.since.extend(&taken);
                }
                truth.accepted.extend(taken);
            }
            Err(_) => {
                truth.maybe.extend(numbers.into_iter().flatten());
                self.kill(now, 500);
            }
        }
    }

    /// Does what the command queues say; an error is the end of the process.
    pub(super) fn run(&mut self, book: &mut work::Book, now: u64, start_ms: i64) {
        let edge_now = self.now(now, start_ms);
        let Some(uplink) = &mut self.uplink else { return };
        let mut acts = Vec::new();
        for act in uplink.acts() {
            let is_order = match &act {
                Act::Start(command) => command.kind.as_str() == fleet_schemas::update::COMMAND,
                Act::Stop(id, _) => {
                    let is_it = |order: &Act| matches!(order, Act::Start(command) if command.id == *id);
                    self.updates.as_ref().is_some_and(|updates| updates.knows(*id))
                        || self.orders.iter().any(is_it)
                }
            };
            if is_order { self.orders.push(act) } else { acts.push(act) }
        }
        let ends = self.work.take(book, &self.node, acts, now);
        for (id, end) in ends {
            uplink.output(id, b"done\n", edge_now);
            if uplink.finished(id, end, edge_now).is_err() {
                return self.kill(now, 500);
            }
        }
    }

    /// Goes on with updates. What becomes of the process.
    pub(super) fn update(
        &mut self,
        images: &Images,
        (truth, next): (&mut Truth, &mut u64),
        chaos: bool,
        now: u64,
        start_ms: i64,
    ) -> Fate {
        let at = self.now(now, start_ms);
        let Some(updates) = &mut self.updates else { return Fate::Lives };
        let status = self.uplink.as_ref().map(Uplink::status);
        let heard = status.and_then(|status| Some((status.hub_ms?, status.last_ack?)));
        let connected = self.connection.is_some() && !self.machine.cuts();
        let sight = Sight { images, connected, heard, now, at, boot: self.boot, chaos };
        let mut said = update::Said::default();
        for act in std::mem::take(&mut self.orders) {
            match act {
                Act::Start(command) => {
                    updates.order(command.id, &command.params, command.timeout_ms, &sight, &mut said);
                }
                Act::Stop(id, why) => updates.stop(id, why),
            }
        }
        let fate = updates.step(&sight, &mut said);
        let Some(uplink) = &mut self.uplink else { return fate };
        for (kind, data) in said.events {
            let number = *next;
            *next += 1;
            let event = Event {
                time_ms: at.wall_ms,
                kind: MetricName::parse(kind).expect("a kind"),
                severity: Severity::Info,
                // As with all others, its number is what the account is made by.
                message: number.to_string(),
                data: Some(data),
                device: None,
                id: None,
            };
            // As the agent does it: of the rest, the command's result says the same in the end.
            let even_if_full = kind == RUNNING;
            let handed = Handed { even_if_full, ..Submission::Events(vec![event]).into() };
            match uplink.submit_once(vec![handed], at) {
                Ok(results) => {
                    let taken = results.iter().any(Result::is_ok);
                    truth.accepted.extend(taken.then_some(number));
                    truth.since.extend((taken && !self.is_twin).then_some(number));
                }
                Err(_) => {
                    truth.maybe.insert(number);
                    return Fate::Ends(500);
                }
            }
        }
        if let Some(versions) = said.versions {
            uplink.set_versions(versions);
        }
        for (id, end) in said.ends {
            if uplink.finished(id, end, at).is_err() {
                return Fate::Ends(500);
            }
        }
        fate
    }

    /// Applies documents of the hub; an error is the end of the process.
    pub(super) fn configure(&mut self, now: u64, start_ms: i64) {
        let edge_now = self.now(now, start_ms);
        let Some(uplink) = &mut self.uplink else { return };
        if self.machine.step(uplink, now, edge_now).is_err() {
            self.kill(now, 500);
        }
    }

    /// Polls the uplink; an error is the end of the process.
    pub(super) fn poll(&mut self, now: u64, start_ms: i64) -> Vec<Outgoing> {
        let edge_now = self.now(now, start_ms);
        let Some(uplink) = &mut self.uplink else { return Vec::new() };
        match uplink.poll(edge_now) {
            Ok(outgoing) => outgoing,
            Err(_) => {
                self.kill(now, 500);
                Vec::new()
            }
        }
    }
}
