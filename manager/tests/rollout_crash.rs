//! The power fails at every sync while rollouts run on the real store, before and after the sync reached the disk; the hub
//! goes on from what was committed.
//!
//! No node is ever told twice, no wave begins before the one before it passed, and both rollouts come to the end that they
//! have without a crash. Nodes are as plain as can be: they keep all they sealed and send what is above the marks.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fleet_manager::{
    consume::{self, CREDIT, Consumer},
    core::{
        Now,
        registry::{Intent, Order as Asked},
        rollout::{self, Approval, Artifact, OnFailure, Release, Size, Stage, Stand, Terms, Wanted},
    },
    store::{
        disk::{Memory, When},
        telemetry,
    },
};
use fleet_schemas::{
    CommandId, DeviceId, Lane, MetricName, NodeId, SessionId, StoreId, StreamId, Topic, VERSION,
    ack::Ack,
    batch::{Batch, Clock},
    cbor,
    command::{self, Orders, Reason},
    event::{Event, Severity},
    session::{Birth, Pending, StreamState, Versions},
    topic::{Down, Up},
    update::{self, Custom, Digest, Kind, Order, Running, State},
};
use sha2::{Digest as _, Sha256};

const START_MS: i64 = 1_790_000_000_000;
const NODES: [&str; 4] = ["a", "b", "c", "d"];
/// Longest that both take together, in seconds of the test.
const SECONDS: u64 = 120;
/// What every node takes, and what none does.
const GOOD: &str = "1.0.0";
const BAD: &str = "1.1.0";

fn name(text: &str) -> MetricName {
    MetricName::parse(text).unwrap()
}

fn digest(version: &str) -> Digest {
    Digest(Sha256::digest(version).into())
}

/// Batches of one lane, all of them.
#[derive(Default)]
struct Out {
    sealed: Vec<Bytes>,
    acked: u64,
}

struct Node {
    id: NodeId,
    lanes: BTreeMap<Lane, Out>,
    session: u8,
    runs: Option<String>,
    /// What it was told, and how far it is with it.
    orders: BTreeMap<CommandId, (Order, u8)>,
    open: BTreeSet<CommandId>,
}

impl Node {
    fn new(id: &str) -> Self {
        let lanes = [Lane::Event, Lane::Command].map(|lane| (lane, Out::default())).into();
        let id = NodeId::parse(id).unwrap();
        Self { id, lanes, session: 0, runs: None, orders: BTreeMap::new(), open: BTreeSet::new() }
    }

    fn stream(&self) -> StreamId {
        StreamId([self.id.as_str().as_bytes()[0]; 16])
    }

    fn session(&self) -> SessionId {
        SessionId([self.session; 8])
    }

    fn versions(&self) -> Versions {
        let running = |kind, what: &str, version: &str| Running {
            kind,
            name: name(what),
            version: name(version),
            digest: digest(version),
            device: None,
        };
        let agent = running(Kind::Agent, update::AGENT, "0.1.0");
        let skill = self.runs.as_deref().map(|version| running(Kind::Skill, "greeter", version));
        Versions {
            agent: "0.1.0".to_owned(),
            running: std::iter::once(agent).chain(skill).collect(),
            ..Versions::default()
        }
    }

    fn birth(&mut self) -> (Topic, Bytes) {
        self.session += 1;
        let state = |out: &Out| {
            let next = out.sealed.len() as u64 + 1;
            StreamState {
                stream: self.stream(),
                floor_seq: 1,
                floor_record: 1,
                next_seq: next,
                next_record: next,
                counted: next - 1,
                tombstoned: 0,
            }
        };
        let birth = Birth {
            v: VERSION,
            session: self.session(),
            epoch: self.session.into(),
            boot: [1; 8],
            instance: None,
            up_ms: 1_000,
            clock: Clock::Synced,
            time_ms: START_MS,
            interval_ms: 24 * 3_600_000,
            kind: "picclaw".to_owned(),
            name: None,
            capabilities: Vec::new(),
            versions: self.versions(),
            machine: BTreeMap::new(),
            lanes: self.lanes.iter().map(|(lane, out)| (*lane, vec![state(out)])).collect(),
            partial: false,
            pending: Pending::default(),
            commands: Some(self.open.iter().copied().collect()),
            config: None,
        };
        (Topic::Up(self.id.clone(), Up::Birth), cbor::encode(&birth).into())
    }

    fn seal(&mut self, lane: Lane, body: Vec<u8>) {
        let stream = self.stream();
        let out = self.lanes.get_mut(&lane).unwrap();
        let seq = out.sealed.len() as u64 + 1;
        let batch = Batch {
            v: VERSION,
            stream,
            seq,
            seq_to: None,
            first: seq,
            count: 1,
            boot: [1; 8],
            up_ms: 1_000 + seq,
            clock: Clock::Synced,
            sealed_ms: START_MS,
            lost: None,
            body,
        };
        out.sealed.push(cbor::encode(&batch).into());
    }

    fn tell(&mut self, kind: &str, data: ciborium::Value) {
        let event = Event {
            time_ms: START_MS,
            kind: name(kind),
            severity: Severity::Info,
            message: String::new(),
            data: Some(data),
            device: None,
            id: None,
        };
        self.seal(Lane::Event, cbor::encode(&[event]));
    }

    fn report(&mut self, id: CommandId, state: command::State, result: Option<ciborium::Value>) {
        let report = command::Report {
            id,
            state,
            time_ms: START_MS,
            reason: None,
            exit_code: None,
            output: None,
            result,
            too_late: false,
        };
        self.seal(Lane::Command, cbor::encode(&[report]));
    }

    /// Takes one step of every order that is not over.
    fn act(&mut self) {
        let due: Vec<_> = self.open.iter().map(|id| (*id, self.orders[id].clone())).collect();
        for (id, (order, step)) in due {
            let is_good = order.target.version.as_str() == GOOD;
            let said = |state: State| update::Report {
                command: id,
                target: order.target.clone(),
                digest: order.digest,
                rollout: order.rollout.clone(),
                device: None,
                state,
                reason: (!is_good && state.is_terminal()).then(|| Reason {
                    code: "unhealthy".to_owned(),
                    message: "it hums".to_owned(),
                    may_have_executed: false,
                }),
                bytes: None,
                total: None,
                from: None,
            };
            let end = if is_good { State::Confirmed } else { State::RolledBack };
            match step {
                0 => self.report(id, command::State::Accepted, None),
                1 => self.tell(update::EVENT, said(State::Probation).to_data()),
                2 => {
                    if is_good {
                        self.runs = Some(GOOD.to_owned());
                        let runs = ciborium::Value::serialized(&self.versions()).unwrap();
                        self.tell(update::RUNNING, runs);
                    }
                    self.tell(update::EVENT, said(end).to_data());
                }
                _ => {
                    let state = if is_good { command::State::Succeeded } else { command::State::Failed };
                    self.report(id, state, Some(said(end).to_data()));
                    self.open.remove(&id);
                }
            }
            self.orders.get_mut(&id).unwrap().1 += 1;
        }
    }

    fn unacked(&self) -> Vec<(Topic, Bytes)> {
        let of = |(lane, out): (&Lane, &Out)| {
            let due = out.sealed.iter().skip(usize::try_from(out.acked).unwrap());
            let topic = Topic::Up(self.id.clone(), Up::Lane(*lane));
            due.map(|payload| (topic.clone(), payload.clone())).collect::<Vec<_>>()
        };
        self.lanes.iter().flat_map(of).collect()
    }

    fn hear(&mut self, down: Down, payload: &[u8]) {
        match down {
            Down::Ack => {
                let ack: Ack = cbor::decode(payload).unwrap();
                let mine = ack.session == self.session();
                for (lane, streams) in ack.lanes.iter().filter(|_| mine) {
                    let Some(out) = self.lanes.get_mut(lane) else { continue };
                    out.acked = streams.iter().map(|stream| stream.seq).max().unwrap_or(0).max(out.acked);
                }
            }
            Down::Command => {
                let orders: Orders = cbor::decode(payload).unwrap();
                let mine = orders.session == self.session();
                for offer in orders.offers.iter().filter(|_| mine) {
                    let order: Order = offer.params.deserialized().unwrap();
                    let again = self.orders.contains_key(&offer.id);
                    let same = |(_, (other, _)): (&CommandId, &(Order, u8))| other.rollout == order.rollout;
                    assert!(again || !self.orders.iter().any(same), "{} is told a second time", self.id);
                    if !again {
                        self.open.insert(offer.id);
                        self.orders.insert(offer.id, (order, 0));
                    }
                }
            }
            Down::Config => {}
        }
    }
}

struct World {
    disk: Memory,
    consumer: Option<Consumer>,
    nodes: Vec<Node>,
    second: u64,
    crashes: u32,
}

impl World {
    fn new() -> Self {
        let nodes = NODES.map(Node::new).into();
        Self { disk: Memory::default(), consumer: None, nodes, second: 0, crashes: 0 }
    }

    fn now(&self) -> Now {
        let passed = Duration::from_secs(self.second);
        Now { wall_ms: START_MS + 1_000 * self.second as i64, mono: passed }
    }

    fn open(&mut self) -> Result<(), consume::Error> {
        let disk = Arc::new(self.disk.clone());
        self.consumer =
            Some(Consumer::open(disk, telemetry::Config::default(), StoreId([5; 16]), self.now())?);
        let births: Vec<_> = self.nodes.iter_mut().map(Node::birth).collect();
        self.consume(&births, Vec::new())
    }

    fn consume(&mut self, group: &[(Topic, Bytes)], orders: Vec<Asked>) -> Result<(), consume::Error> {
        let now = self.now();
        let group = group.iter().map(|(topic, payload)| (topic, payload));
        let spoken = self.consumer.as_mut().unwrap().consume(group, orders, CREDIT, now)?;
        assert!(spoken.outcomes.iter().all(Result::is_ok), "{:?}", spoken.outcomes);
        for (topic, payload) in spoken.downs {
            let Topic::Down(id, down) = topic else { panic!("the hub speaks downwards") };
            self.nodes.iter_mut().find(|node| node.id == id).unwrap().hear(down, &payload);
        }
        Ok(())
    }

    /// Does it, and after a crash goes on from what the disk has.
    fn surely(&mut self, step: impl Fn(&mut Self) -> Result<(), consume::Error>) {
        while step(self).is_err() {
            self.crashes += 1;
            assert_eq!(self.crashes, 1, "the disk fails once");
            self.consumer = None;
            self.disk.crash();
            if self.open().is_err() {
                panic!("it fails a second time");
            }
        }
    }

    fn tick(&mut self) {
        self.second += 1;
        for node in &mut self.nodes {
            node.act();
        }
        self.surely(|world| {
            let group: Vec<_> = world.nodes.iter().flat_map(Node::unacked).collect();
            world.consume(&group, Vec::new())
        });
        self.check();
    }

    /// No wave is under way before the one before it passed.
    fn check(&self) {
        let fleet = self.consumer.as_ref().unwrap().shared().fleet();
        for live in fleet.rollouts.all() {
            let waves = &live.head.waves;
            let begun = |member: &rollout::Member| member.told_ms.is_some();
            for (seat, member) in live.members().iter().filter(|(_, member)| begun(member)) {
                let before = &waves[..usize::from(member.wave)];
                let id = &live.head.spec.id;
                assert!(
                    before.iter().all(|wave| wave.stage == Stage::Passed),
                    "{id}: {seat:?} was told early"
                );
            }
        }
    }

    /// Makes a rollout unless it is there already: it was committed, and the answer was lost.
    fn create(&mut self, version: &str) {
        let wanted = wanted(version);
        self.surely(|world| {
            let known =
                world.consumer.as_ref().unwrap().shared().fleet().rollouts.get(wanted.id.as_str()).is_some();
            let intent = Intent::Rollout(Box::new(wanted.clone()));
            let order = Asked { by: "operator ada".to_owned(), intent };
            world.consume(&[], if known { Vec::new() } else { vec![order] })
        });
    }

    fn state(&self, version: &str) -> rollout::State {
        let fleet = self.consumer.as_ref().unwrap().shared().fleet();
        fleet.rollouts.get(wanted(version).id.as_str()).unwrap().head.state
    }

    fn run(&mut self) {
        self.surely(|world| if world.consumer.is_none() { world.open() } else { Ok(()) });
        for (version, end) in [(GOOD, rollout::State::Done), (BAD, rollout::State::Stopped)] {
            self.create(version);
            while !self.state(version).is_final() {
                assert!(self.second < SECONDS, "{version} does not come to an end");
                self.tick();
            }
            assert_eq!(self.state(version), end, "{version}");
        }
        // What is still on its way arrives.
        (0..5).for_each(|_| self.tick());
        self.finish();
    }

    fn finish(&self) {
        let shared = self.consumer.as_ref().unwrap().shared();
        let fleet = shared.fleet();
        let tally = |version: &str| fleet.rollouts.get(wanted(version).id.as_str()).unwrap().head.tally();
        let said = Stand::Said;
        assert_eq!(tally(GOOD), [(said(State::Confirmed), 4)].into());
        assert_eq!(tally(BAD), [(said(State::RolledBack), 1), (said(State::Canceled), 3)].into());
        let told = |version: &str| {
            let of = |node: &&Node| {
                node.orders.values().any(|(order, _)| order.target.version.as_str() == version)
            };
            self.nodes.iter().filter(of).count()
        };
        assert_eq!((told(GOOD), told(BAD)), (4, 1), "a bad one reaches one node");
        assert!(self.nodes.iter().all(|node| node.runs.as_deref() == Some(GOOD)));
        assert_eq!(fleet.commands.waiting().executions, 0, "nothing is left open");
        // The store has what the memory has.
        let found = shared.state().rollouts().unwrap();
        for head in found.heads {
            assert_eq!(head, fleet.rollouts.get(head.spec.id.as_str()).unwrap().head);
        }
    }
}

fn wanted(version: &str) -> Wanted {
    let artifact = Artifact { digest: digest(version), length: 9, custom: Custom::default() };
    let release = Release {
        name: name("greeter"),
        version: name(version),
        kind: Kind::Skill,
        targets: [(name(update::ANY_ARCH), artifact)].into(),
    };
    let terms = Terms {
        waves: vec![Size::Nodes(1), Size::Percent(50.0), Size::Percent(100.0)],
        soak_ms: 2_000,
        max_failures: 0.0,
        min_executed: 1,
        max_unavailable: None,
        rate: None,
        window: None,
        gates: Vec::new(),
        on_failure: OnFailure::Stop,
        approval: Approval::No,
        deadline_ms: 3_600_000,
        timeout_ms: 600_000,
        offline_ms: 600_000,
        probation_ms: None,
        offline_ok: false,
        allowance: 0.0,
    };
    Wanted {
        id: name(&format!("greeter-{version}-1")),
        release,
        before: BTreeMap::new(),
        seats: NODES.map(|node| (NodeId::parse(node).unwrap(), DeviceId::node(), None)).into(),
        selector: None,
        terms,
        by: "operator ada".to_owned(),
    }
}

#[test]
fn the_power_may_fail_at_any_sync_of_a_rollout() {
    let mut world = World::new();
    world.run();
    let (syncs, seconds) = (world.disk.syncs(), world.second);
    assert!(syncs > 30 && seconds > 15, "{syncs} syncs in {seconds} s");
    let mut crashes = 0;
    for (sync, when) in (1..=syncs).flat_map(|sync| [(sync, When::Before), (sync, When::After)]) {
        let mut world = World::new();
        world.disk.freeze_at(sync, when);
        world.run();
        crashes += world.crashes;
    }
    assert!(u64::from(crashes) > syncs, "{crashes} crashes at {syncs} syncs");
}
