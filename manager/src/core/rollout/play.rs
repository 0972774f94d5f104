//! A fleet in a test: nodes that behave in some way, and a hub of which everything but its disk and its bus is real.
//!
//! Time goes in seconds. What is committed is kept beside the hub, so that it can be killed and go on from there.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fleet_schemas::{
    CommandId, DeviceId, Lane, MetricName, NodeId, SessionId, StreamId, VERSION,
    batch::{Batch, Clock},
    command::{self as wire, Offer, Reason},
    event::{Event, Severity},
    session::{Birth, Death, Pending, StreamState, Versions},
    update::{self, Digest, Kind, Order, Report, Running, State as Said, Target},
};
use sha2::{Digest as _, Sha256};

use super::{
    Act, Approval, Artifact, Found, Head, Id, MaxUnavailable, Member, OnFailure, Release, RolloutError,
    Rollouts, Seat, Size, Strikes, Terms, Wanted, act, advance, create,
};
use crate::core::{
    Now,
    command::{self, Command, Dispatch, Execution},
    fleet::{Fleet, NodeNo},
    identity::Identities,
    intake::{self, Body, Effects, Input},
    registry::{self, Intent, Order as Wish},
};

/// Hub time at the start, Unix milliseconds.
pub(super) const START_MS: i64 = 1_790_000_000_000;
/// A group after which nothing is heard is this long, in seconds.
const SECOND: i64 = 1;

/// The reason of a node that did not get back.
const UNDO: &str = "undo_failed";

/// How a node takes an update.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Manner {
    /// It is confirmed after half a minute.
    Good,
    /// It does not pass its probation and goes back.
    RollsBack(String),
    /// It does not come to run.
    Fails(String),
    /// It runs it, is not well, and does not get back.
    Sticks,
    /// Its disk is full.
    Full,
    /// It is confirmed, and does not go back.
    Stays,
    /// It refuses.
    Rejects(String),
    /// It accepts, and says nothing more.
    Silent,
    /// It says that it is confirmed, and runs what it ran.
    Lies,
    /// It goes away while it switches.
    Vanishes,
    /// It loses the link with both releases.
    Unlinked,
    /// It is confirmed, and goes back that many seconds later by itself.
    Regrets(i64),
    /// It takes that many seconds.
    Slow(i64),
    /// It is confirmed, and every event of it is lost: only the end of the command is told.
    Mute,
}

#[derive(Debug, Clone)]
enum Deed {
    Step(Said, Option<(String, String)>),
    Run(String),
    End(wire::State, Said, Option<(String, String)>),
    Vanish,
}

#[derive(Debug, Clone)]
pub(super) struct Sim {
    pub id: NodeId,
    pub number: NodeNo,
    pub arch: String,
    pub kind: String,
    pub manner: Manner,
    pub online: bool,
    pub takes: bool,
    pub running: Option<String>,
    /// Devices behind it: their kind, and what they run.
    pub devices: BTreeMap<DeviceId, (String, Option<String>)>,
    /// The release that runs again when one does not pass.
    before: Option<String>,
    session: u64,
    sequences: BTreeMap<Lane, u64>,
    orders: BTreeMap<CommandId, Order>,
    open: Vec<CommandId>,
    deeds: BTreeMap<i64, Vec<(CommandId, Deed)>>,
    /// What it could not say while it was offline.
    held: Vec<(Lane, Body)>,
    /// Whether it is down because of an update.
    pub updating: bool,
}

/// The store beside the hub.
#[derive(Debug, Default)]
struct Kept {
    heads: BTreeMap<Id, Head>,
    members: BTreeMap<(Id, Seat), Member>,
    strikes: BTreeMap<(NodeNo, Digest), Strikes>,
    commands: BTreeMap<CommandId, Arc<Command>>,
    executions: BTreeMap<(CommandId, NodeNo), Execution>,
}

pub(super) struct Play {
    pub fleet: Fleet,
    pub sims: BTreeMap<String, Sim>,
    kept: Kept,
    pub second: i64,
    /// By how much the hub's clock is ahead of that.
    pub ahead_ms: i64,
    /// Events that the hub raised, with their second.
    pub raised: Vec<(i64, String, String)>,
    /// Orders as nodes got them.
    pub ordered: Vec<(NodeId, Order)>,
    inputs: Vec<(NodeId, Input)>,
}

pub(super) fn digest(version: &str) -> Digest {
    Digest(Sha256::digest(version.as_bytes()).into())
}

pub(super) fn name(text: &str) -> MetricName {
    MetricName::parse(text).unwrap()
}

fn version_of(held: Digest) -> String {
    let known = ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"];
    known.into_iter().find(|version| digest(version) == held).unwrap_or("?").to_owned()
}

impl Sim {
    fn versions(&self) -> Versions {
        let agent = Running {
            kind: Kind::Agent,
            name: name(update::AGENT),
            version: name("0.1.0"),
            digest: digest("agent"),
            device: None,
        };
        let skill = self.running.as_ref().map(|version| Running {
            kind: Kind::Skill,
            name: name("greeter"),
            version: name(version),
            digest: digest(version),
            device: None,
        });
        let devices = self.devices.iter().filter_map(|(device, (_, version))| {
            let version = version.as_ref()?;
            Some(Running {
                kind: Kind::DeviceFirmware,
                name: name("greeter"),
                version: name(version),
                digest: digest(version),
                device: Some(device.clone()),
            })
        });
        let all = std::iter::once(agent).chain(skill).chain(devices);
        let running = if self.takes { all.collect() } else { Vec::new() };
        Versions { agent: "0.1.0".into(), running, ..Versions::default() }
    }

    /// What it does from the second on in which it is told.
    fn plan(&mut self, at: i64, id: CommandId, order: &Order) {
        let version = version_of(order.digest);
        self.before.clone_from(&self.running);
        let old = match &order.device {
            Some(device) => self.devices[device].1.clone(),
            None => self.running.clone(),
        };
        let mut when = |after: i64, deed: Deed| self.deeds.entry(at + after).or_default().push((id, deed));
        let why = |code: &str, text: &str| Some((code.to_owned(), text.to_owned()));
        let steps = |when: &mut dyn FnMut(i64, Deed), to: usize| {
            let all = [
                Said::Accepted,
                Said::Downloading,
                Said::Downloaded,
                Said::Installing,
                Said::Switching,
                Said::Probation,
            ];
            for (n, state) in (1..).zip(all.into_iter().take(to)) {
                when(n, Deed::Step(state, None));
            }
        };
        let confirm = |when: &mut dyn FnMut(i64, Deed), after: i64| {
            when(5, Deed::Run(version.clone()));
            when(after, Deed::Run(version.clone()));
            when(after, Deed::Step(Said::Confirmed, None));
            when(after, Deed::End(wire::State::Succeeded, Said::Confirmed, None));
        };
        match self.manner.clone() {
            Manner::Stays if order.back => {
                let text = "1.1.0 is lower than 1.2.0, which runs";
                when(1, Deed::Step(Said::Rejected, why("downgrade", text)));
                when(1, Deed::End(wire::State::Rejected, Said::Rejected, why("downgrade", text)));
            }
            // What else goes back goes back well.
            _ if order.back => {
                steps(&mut when, 6);
                confirm(&mut when, 20);
            }
            Manner::Good | Manner::Stays => {
                steps(&mut when, 6);
                confirm(&mut when, 30);
            }
            Manner::Slow(after) => {
                steps(&mut when, 6);
                confirm(&mut when, after.max(7));
            }
            Manner::Mute => {
                when(30, Deed::Run(version.clone()));
                when(31, Deed::End(wire::State::Succeeded, Said::Confirmed, None));
            }
            Manner::Regrets(after) => {
                steps(&mut when, 6);
                confirm(&mut when, 30);
                when(30 + after, Deed::Run(old.unwrap_or_default()));
            }
            Manner::RollsBack(text) => {
                steps(&mut when, 6);
                when(5, Deed::Run(version.clone()));
                when(20, Deed::Run(old.unwrap_or_default()));
                when(20, Deed::Step(Said::RolledBack, why("probe_failed", &text)));
                when(20, Deed::End(wire::State::Failed, Said::RolledBack, why("probe_failed", &text)));
            }
            Manner::Unlinked => {
                steps(&mut when, 6);
                let text = "neither release reached the hub";
                when(20, Deed::Step(Said::RolledBack, why(update::INCONCLUSIVE, text)));
                when(20, Deed::End(wire::State::Failed, Said::RolledBack, why(update::INCONCLUSIVE, text)));
            }
            Manner::Fails(text) => {
                steps(&mut when, 3);
                when(5, Deed::Step(Said::Failed, why("install_failed", &text)));
                when(5, Deed::End(wire::State::Failed, Said::Failed, why("install_failed", &text)));
            }
            Manner::Sticks => {
                steps(&mut when, 6);
                when(5, Deed::Run(version.clone()));
                let text = "what ran before could not be brought back";
                when(20, Deed::Step(Said::Failed, why(UNDO, text)));
                when(20, Deed::End(wire::State::Failed, Said::Failed, why(UNDO, text)));
            }
            Manner::Full => {
                steps(&mut when, 2);
                let text = "it needs 40 MB, and 3 MB are free";
                when(3, Deed::Step(Said::Failed, why("no_space", text)));
                when(3, Deed::End(wire::State::Failed, Said::Failed, why("no_space", text)));
            }
            Manner::Rejects(text) => {
                when(1, Deed::Step(Said::Rejected, why("bad_signature", &text)));
                when(1, Deed::End(wire::State::Rejected, Said::Rejected, why("bad_signature", &text)));
            }
            Manner::Silent => steps(&mut when, 2),
            Manner::Lies => {
                steps(&mut when, 6);
                when(30, Deed::Step(Said::Confirmed, None));
                when(30, Deed::End(wire::State::Succeeded, Said::Confirmed, None));
            }
            Manner::Vanishes => {
                steps(&mut when, 5);
                when(6, Deed::Vanish);
            }
        }
    }
}

pub(super) fn terms() -> Terms {
    Terms {
        waves: vec![Size::Nodes(1), Size::Percent(25.0), Size::Percent(100.0)],
        soak_ms: 60_000,
        max_failures: 0.1,
        min_executed: 3,
        max_unavailable: None,
        rate: None,
        window: None,
        gates: Vec::new(),
        on_failure: OnFailure::Pause,
        approval: Approval::No,
        deadline_ms: 3_600_000,
        timeout_ms: 300_000,
        offline_ms: 120_000,
        probation_ms: None,
        offline_ok: false,
        allowance: 0.2,
    }
}

pub(super) fn release(version: &str, archs: &[&str]) -> Release {
    let artifact =
        Artifact { digest: digest(version), length: 20_000_000, custom: update::Custom::default() };
    let targets = archs.iter().map(|arch| (name(arch), artifact.clone())).collect();
    Release { name: name("greeter"), version: name(version), kind: Kind::Skill, targets }
}

impl Play {
    pub(super) fn new() -> Self {
        Self {
            fleet: Fleet::default(),
            sims: BTreeMap::new(),
            kept: Kept::default(),
            second: 0,
            ahead_ms: 0,
            raised: Vec::new(),
            ordered: Vec::new(),
            inputs: Vec::new(),
        }
    }

    pub(super) fn now(&self) -> Now {
        let mono = Duration::from_secs(u64::try_from(self.second).unwrap());
        Now { wall_ms: START_MS + self.second * 1_000 + self.ahead_ms, mono }
    }

    /// A node of which nothing is heard yet.
    pub(super) fn add(&mut self, id: &str, site: &str, arch: &str, kind: &str, runs: Option<&str>) {
        let number = NodeNo::try_from(self.sims.len()).unwrap() + 1;
        let node = NodeId::parse(id).unwrap();
        let mut record = crate::core::fleet::Record::new(node.clone(), START_MS);
        record.site = (!site.is_empty()).then(|| site.to_owned());
        self.fleet.insert(crate::core::fleet::Node::new(number, record));
        let sim = Sim {
            id: node,
            number,
            arch: arch.to_owned(),
            kind: kind.to_owned(),
            manner: Manner::Good,
            online: false,
            takes: true,
            running: runs.map(str::to_owned),
            devices: BTreeMap::new(),
            before: None,
            session: 0,
            sequences: BTreeMap::new(),
            orders: BTreeMap::new(),
            open: Vec::new(),
            deeds: BTreeMap::new(),
            held: Vec::new(),
            updating: false,
        };
        self.sims.insert(id.to_owned(), sim);
    }

    /// An operator says in which time zone a site is.
    pub(super) fn zone(&mut self, site: &str, zone: Option<&str>) {
        self.group_with(|fleet, effects, now| {
            let intent = match zone {
                Some(tz) => Intent::PutSite { name: site.to_owned(), tz: tz.to_owned() },
                None => Intent::RemoveSite(site.to_owned()),
            };
            let order = Wish { by: "operator ada".to_owned(), intent };
            registry::take(fleet, &mut Identities::default(), effects, order, 0, now).unwrap();
        });
    }

    /// An admin removes a node.
    pub(super) fn remove(&mut self, id: &str) {
        let node = self.sims.remove(id).unwrap().id;
        self.group_with(|fleet, effects, now| {
            let order = Wish { by: "operator ada".to_owned(), intent: Intent::RemoveNode(node) };
            registry::take(fleet, &mut Identities::default(), effects, order, 0, now).unwrap();
        });
    }

    /// A session of a node begins.
    pub(super) fn online(&mut self, id: &str) {
        let now_ms = self.now().wall_ms;
        let sim = self.sims.get_mut(id).unwrap();
        sim.online = true;
        sim.updating = false;
        sim.session += 1;
        let stream = |lane: Lane, next: u64| StreamState {
            stream: stream_of(sim.number, lane),
            floor_seq: next,
            floor_record: next,
            next_seq: next,
            next_record: next,
            counted: 0,
            tombstoned: 0,
        };
        let next = |lane| sim.sequences.get(&lane).copied().unwrap_or(0) + 1;
        let lanes = [Lane::Event, Lane::Command].map(|lane| (lane, vec![stream(lane, next(lane))]));
        let birth = Birth {
            v: VERSION,
            session: session_of(sim.number, sim.session),
            epoch: sim.session,
            boot: [1; 8],
            instance: None,
            up_ms: 0,
            clock: Clock::Synced,
            time_ms: now_ms,
            interval_ms: 24 * 3_600_000,
            kind: sim.kind.clone(),
            name: None,
            capabilities: Vec::new(),
            versions: sim.versions(),
            machine: [("arch".to_owned(), sim.arch.clone())].into(),
            lanes: lanes.into(),
            partial: false,
            pending: Pending::default(),
            commands: Some(sim.open.clone()),
            config: None,
        };
        let node = sim.id.clone();
        self.inputs.push((node, Input::Birth(Box::new(birth))));
        let held = std::mem::take(&mut self.sims.get_mut(id).unwrap().held);
        for (lane, body) in held {
            self.send(id, lane, body);
        }
    }

    /// The link of a node is cut; the hub calls it offline ten seconds later.
    pub(super) fn offline(&mut self, id: &str) {
        let sim = self.sims.get_mut(id).unwrap();
        if sim.online {
            sim.online = false;
            let session = session_of(sim.number, sim.session);
            self.inputs.push((sim.id.clone(), Input::Death(Death { v: VERSION, session, until_ms: None })));
        }
    }

    fn send(&mut self, id: &str, lane: Lane, body: Body) {
        let now_ms = self.now().wall_ms;
        let sim = self.sims.get_mut(id).unwrap();
        if !sim.online {
            sim.held.push((lane, body));
            return;
        }
        let sequence = sim.sequences.entry(lane).or_default();
        *sequence += 1;
        let batch = Batch {
            v: VERSION,
            stream: stream_of(sim.number, lane),
            seq: *sequence,
            seq_to: None,
            first: *sequence,
            count: 1,
            boot: [1; 8],
            up_ms: 0,
            clock: Clock::Synced,
            sealed_ms: now_ms,
            lost: None,
            body: Vec::new(),
        };
        let digest = sequence.to_le_bytes();
        self.inputs.push((sim.id.clone(), Input::Batch { lane, batch, digest, body }));
    }

    fn event(&mut self, id: &str, kind: &str, data: ciborium::Value) {
        let event = Event {
            time_ms: self.now().wall_ms,
            kind: name(kind),
            severity: Severity::Info,
            message: String::new(),
            data: Some(data),
            device: None,
            id: None,
        };
        self.send(id, Lane::Event, Body::Events(vec![event]));
    }

    /// A node says what it runs.
    pub(super) fn run(&mut self, id: &str, version: &str) {
        let sim = self.sims.get_mut(id).unwrap();
        sim.running = (!version.is_empty()).then(|| version.to_owned());
        let data = ciborium::Value::serialized(&sim.versions()).unwrap();
        self.event(id, update::RUNNING, data);
    }

    fn report(&self, id: &str, command: CommandId, state: Said, why: Option<&(String, String)>) -> Report {
        let order = &self.sims[id].orders[&command];
        let why = why.map(|(code, message)| Reason {
            code: code.clone(),
            message: message.clone(),
            may_have_executed: code == UNDO,
        });
        Report {
            command,
            target: order.target.clone(),
            digest: order.digest,
            rollout: order.rollout.clone(),
            device: order.device.clone(),
            state,
            reason: why,
            bytes: None,
            total: None,
            from: None,
        }
    }

    fn deed(&mut self, id: &str, command: CommandId, deed: Deed) {
        match deed {
            Deed::Step(state, why) => {
                let sim = self.sims.get_mut(id).unwrap();
                sim.updating |= state == Said::Switching;
                if state.is_terminal() {
                    sim.updating = false;
                }
                let report = self.report(id, command, state, why.as_ref());
                self.event(id, update::EVENT, report.to_data());
            }
            Deed::Run(version) => {
                let sim = self.sims.get_mut(id).unwrap();
                match sim.orders[&command].device.clone() {
                    Some(device) => {
                        sim.devices.get_mut(&device).unwrap().1 = (!version.is_empty()).then_some(version);
                        let data = ciborium::Value::serialized(&sim.versions()).unwrap();
                        self.event(id, update::RUNNING, data);
                    }
                    None => self.run(id, &version),
                }
            }
            Deed::Vanish => self.offline(id),
            Deed::End(state, said, why) => {
                let report = self.report(id, command, said, why.as_ref());
                let sim = self.sims.get_mut(id).unwrap();
                sim.open.retain(|open| *open != command);
                let body = wire::Report {
                    id: command,
                    state,
                    time_ms: self.now().wall_ms,
                    reason: report.reason.clone(),
                    exit_code: None,
                    output: None,
                    result: Some(report.to_data()),
                    too_late: false,
                };
                self.send(id, Lane::Command, Body::Reports(vec![body]));
            }
        }
    }

    /// Lets a second pass.
    pub(super) fn tick(&mut self) {
        self.second += SECOND;
        self.deeds();
        self.group();
    }

    /// The hub is not there for some seconds, then goes on from what it had committed; nodes go on without it.
    pub(super) fn away(&mut self, seconds: i64) {
        let there: Vec<String> =
            self.sims.iter().filter(|(_, sim)| sim.online).map(|(id, _)| id.clone()).collect();
        self.sims.values_mut().for_each(|sim| sim.online = false);
        for _ in 0..seconds {
            self.second += SECOND;
            self.deeds();
        }
        self.restart();
        there.iter().for_each(|id| self.online(id));
    }

    fn deeds(&mut self) {
        let ids: Vec<String> = self.sims.keys().cloned().collect();
        for id in ids {
            let sim = self.sims.get_mut(&id).unwrap();
            let due = sim.deeds.remove(&self.second).unwrap_or_default();
            for (command, deed) in due {
                self.deed(&id, command, deed);
            }
        }
    }

    /// One group of the consumer.
    pub(super) fn group(&mut self) {
        self.group_with(|_, _, _| ());
    }

    fn group_with<T>(&mut self, intent: impl FnOnce(&mut Fleet, &mut Effects, Now) -> T) -> T {
        let now = self.now();
        let mut effects = Effects::default();
        for (node, input) in std::mem::take(&mut self.inputs) {
            intake::take(&mut self.fleet, &mut effects, &node, input, 0, now);
        }
        let answer = intent(&mut self.fleet, &mut effects, now);
        intake::handle_timeouts(&mut self.fleet, &mut effects, now);
        command::advance(&mut self.fleet, &mut effects.commands, now);
        advance(&mut self.fleet, &mut effects, now);
        self.commit(effects);
        answer
    }

    fn commit(&mut self, effects: Effects) {
        let rows = self.fleet.rollouts.rows(&effects.rollouts);
        for id in rows.removed {
            self.kept.heads.remove(&id);
            self.kept.members.retain(|(of, _), _| *of != id);
        }
        self.kept.heads.extend(rows.heads.into_iter().map(|head| (head.spec.id.clone(), head)));
        self.kept.members.extend(rows.members.into_iter().map(|(id, seat, member)| ((id, seat), member)));
        for (key, strikes) in rows.strikes {
            match strikes {
                Some(strikes) => drop(self.kept.strikes.insert(key, strikes)),
                None => drop(self.kept.strikes.remove(&key)),
            }
        }
        let commands = effects.commands;
        self.kept.commands.extend(commands.made.into_iter().map(|command| (command.id, command)));
        self.kept.executions.extend(commands.rows.into_iter().map(|(key, row)| (key, row.execution)));
        for new in effects.events.into_iter().filter(|new| new.by_hub) {
            self.raised.push((self.second, new.event.kind.to_string(), new.event.message));
        }
        for (node, orders) in commands.orders {
            for offer in orders.offers {
                self.told(&node, &offer);
            }
            for cancel in orders.cancels {
                self.canceled(&node, cancel);
            }
        }
    }

    fn told(&mut self, node: &NodeId, offer: &Offer) {
        let second = self.second;
        let sim = self.sims.get_mut(node.as_str()).unwrap();
        if !sim.online || sim.orders.contains_key(&offer.id) {
            return;
        }
        let order: Order = offer.params.deserialized().unwrap();
        sim.orders.insert(offer.id, order.clone());
        self.ordered.push((node.clone(), order.clone()));
        sim.open.push(offer.id);
        sim.plan(second, offer.id, &order);
        let accepted = wire::Report {
            id: offer.id,
            state: wire::State::Accepted,
            time_ms: self.now().wall_ms,
            reason: None,
            exit_code: None,
            output: None,
            result: None,
            too_late: false,
        };
        self.send(node.as_str(), Lane::Command, Body::Reports(vec![accepted]));
    }

    /// A node that has not switched lets it be.
    fn canceled(&mut self, node: &NodeId, command: CommandId) {
        let id = node.as_str();
        let sim = self.sims.get_mut(id).unwrap();
        if !sim.online || !sim.open.contains(&command) || sim.updating {
            return;
        }
        sim.deeds.values_mut().for_each(|deeds| deeds.retain(|(of, _)| *of != command));
        self.deed(id, command, Deed::Step(Said::Canceled, None));
        self.deed(id, command, Deed::End(wire::State::Canceled, Said::Canceled, None));
    }

    /// Everybody who is there, each node by its name.
    pub(super) fn wanted(
        &self,
        version: &str,
        archs: &[&str],
        terms: Terms,
        selector: Option<&str>,
    ) -> Wanted {
        let release = release(version, archs);
        let parsed = crate::core::selector::Selector::parse(selector.unwrap_or_default()).unwrap();
        let matching = self.fleet.nodes.values().filter(|node| parsed.matches(&***node));
        let before = ["1.0.0", "1.1.0", "1.2.0", "1.3.0"].into_iter().map(|version| {
            let target = Target::new(Kind::Skill, "greeter", version, "any").unwrap();
            let artifact =
                Artifact { digest: digest(version), length: 10_000_000, custom: update::Custom::default() };
            (digest(version), (target, artifact))
        });
        Wanted {
            id: self.fleet.rollouts.next_id(&release),
            release,
            before: before.collect(),
            seats: matching.map(|node| (node.record.id.clone(), DeviceId::node(), None)).collect(),
            selector: selector.map(str::to_owned),
            terms,
            by: "operator ada".to_owned(),
        }
    }

    /// The same for the devices of a kind behind those nodes.
    pub(super) fn wanted_for(&self, kind: &str, wanted: Wanted) -> Wanted {
        let mut release = wanted.release;
        release.kind = Kind::DeviceFirmware;
        release.targets.values_mut().for_each(|artifact| artifact.custom.device_kind = Some(kind.to_owned()));
        let seats = wanted.seats.into_iter().flat_map(|(node, _, _)| {
            let devices = &self.sims[node.as_str()].devices;
            let of = devices.iter().filter(|(_, (of, _))| of == kind);
            of.map(|(device, _)| (node.clone(), device.clone(), Some(kind.to_owned()))).collect::<Vec<_>>()
        });
        let before = wanted.before.into_iter().map(|(digest, (target, artifact))| {
            (digest, (Target { kind: Kind::DeviceFirmware, ..target }, artifact))
        });
        Wanted { release, before: before.collect(), seats: seats.collect(), ..wanted }
    }

    pub(super) fn create(&mut self, wanted: &Wanted) -> Result<(), RolloutError> {
        self.group_with(|fleet, effects, now| create(fleet, effects, wanted, now))
    }

    pub(super) fn act(&mut self, id: &str, what: Act, by: &str) -> Result<(), RolloutError> {
        let id = name(id);
        self.group_with(|fleet, effects, now| act(fleet, effects, &id, what, by, now))
    }

    /// The hub is killed and goes on from what was committed; nodes are born again five seconds later.
    pub(super) fn restart(&mut self) {
        let now = self.now();
        let found = Found {
            heads: self.kept.heads.values().cloned().collect(),
            members: (self.kept.members.iter())
                .map(|((id, seat), member)| (id.clone(), seat.clone(), member.clone()))
                .collect(),
            strikes: self.kept.strikes.iter().map(|(key, strikes)| (*key, strikes.clone())).collect(),
        };
        self.fleet.rollouts = Rollouts::new(found, now);
        let mut open: BTreeMap<CommandId, Vec<(NodeNo, Execution)>> = BTreeMap::new();
        for ((id, node), execution) in &self.kept.executions {
            if !execution.state().is_terminal() {
                open.entry(*id).or_default().push((*node, execution.clone()));
            }
        }
        let last = self.kept.commands.values().map(|command| command.no).max().unwrap_or(0);
        let open = open.into_iter().map(|(id, of)| ((*self.kept.commands[&id]).clone(), of));
        self.fleet.commands = Dispatch::new(last, open.collect());
        let ids: Vec<NodeId> = self.fleet.nodes.keys().cloned().collect();
        for id in ids {
            self.fleet.presence(&id, |presence| presence.hub_restart(now));
        }
        self.inputs.clear();
    }
}

fn stream_of(node: NodeNo, lane: Lane) -> StreamId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&node.to_be_bytes());
    bytes[4] = lane as u8 + 1;
    bytes[5] = 7;
    StreamId(bytes)
}

fn session_of(node: NodeNo, count: u64) -> SessionId {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&node.to_be_bytes());
    bytes[4..].copy_from_slice(&u32::try_from(count).unwrap().to_be_bytes());
    SessionId(bytes)
}

/// `5m`, `90s` or `2h` in milliseconds.
pub(super) fn millis(text: &str) -> i64 {
    if text == "0s" {
        return 0;
    }
    i64::try_from(fleet_schemas::rule::span(text).unwrap().as_millis()).unwrap()
}

/// `10%` as a part.
pub(super) fn part(text: &str) -> f64 {
    text.trim_end_matches('%').parse::<f64>().unwrap() / 100.0
}

/// Terms as scenarios write them: `waves=1,25%,100% soak=10m …`.
pub(super) fn read_terms(words: &[&str]) -> Terms {
    let mut terms = terms();
    for word in words {
        let Some((key, value)) = word.split_once('=') else { continue };
        match key {
            "waves" => terms.waves = value.split(',').map(|size| Size::parse(size).unwrap()).collect(),
            "soak" => terms.soak_ms = millis(value),
            "max-failures" => terms.max_failures = part(value),
            "min-executed" => terms.min_executed = value.parse().unwrap(),
            "max-unavailable" => {
                let (nodes, per_site) =
                    value.strip_suffix("/site").map_or((value, false), |nodes| (nodes, true));
                terms.max_unavailable = Some(MaxUnavailable { nodes: nodes.parse().unwrap(), per_site });
            }
            "rate" => terms.rate = Some(value.parse().unwrap()),
            "on-failure" => {
                terms.on_failure = match value {
                    "pause" => OnFailure::Pause,
                    "stop" => OnFailure::Stop,
                    "rollback" => OnFailure::Rollback,
                    other => panic!("{other}"),
                };
            }
            "approve" => terms.approval = if value == "other" { Approval::Other } else { Approval::Any },
            "gate" => terms.gates.push(value.replace('~', " ")),
            "deadline" => terms.deadline_ms = millis(value),
            "timeout" => terms.timeout_ms = millis(value),
            "offline" => terms.offline_ms = millis(value),
            "probation" => terms.probation_ms = Some(millis(value)),
            "allowance" => terms.allowance = part(value),
            "hours" => terms.window.get_or_insert_default().hours = Some(value.to_owned()),
            "zone" => terms.window.get_or_insert_default().zone = Some(value.to_owned()),
            "arch" | "select" | "device-kind" => {}
            other => panic!("{other} is no term"),
        }
    }
    terms
}
