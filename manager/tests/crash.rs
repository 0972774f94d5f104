//! The power fails at every sync of a scripted run of the consumer on both of its stores, before and after the sync
//! reached the disk.
//!
//! What was acked is there, marks, counters and a recount agree, and after the node has sent again everything is stored
//! exactly once. The node here is as plain as can be: it keeps all it ever sealed and sends what is above the marks.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use fleet_manager::{
    consume::{self, CREDIT, Consumer},
    core::{
        Now,
        config::{self, Edit, Layer},
        ledger::{self, Standing},
        registry::{Intent, Order},
    },
    store::{
        disk::{Memory, When},
        state::EventFilter,
        telemetry::{self, Query},
    },
};
use fleet_schemas::{
    DeviceId, Lane, MetricName, NodeId, SessionId, StoreId, StreamId, Topic, VERSION,
    ack::{Ack, Verdict},
    batch::{Batch, Clock, Lost},
    cbor,
    config::{Desired, Held, Reported},
    event::{Event, Severity},
    session::{Birth, Heartbeat, OutboxUse, Pending, StreamState, Versions},
    telemetry::{Builder, Sample},
    topic::{Down, Up},
};

const START_MS: i64 = 1_790_000_000_000;

/// What a batch of the script is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Good,
    /// Its body is not what the lane carries.
    Bad,
    /// It stands for three batches that are gone.
    Tombstone,
}

/// A sealed batch and what it must come to.
struct Sealed {
    first_seq: u64,
    last_seq: u64,
    payload: Bytes,
    numbers: Vec<u64>,
    quarantined: u64,
    lost: u64,
}

#[derive(Default)]
struct LaneOut {
    sealed: Vec<Sealed>,
    next_seq: u64,
    next_record: u64,
    /// The hub's mark as it was acked.
    acked: u64,
}

/// One node.
struct Node {
    id: NodeId,
    lanes: BTreeMap<Lane, LaneOut>,
    session: u8,
    up_ms: u64,
    born: bool,
    config: Reported,
}

impl Node {
    fn new(id: &str) -> Self {
        let id = NodeId::parse(id).unwrap();
        let fresh = || LaneOut { next_seq: 1, next_record: 1, ..LaneOut::default() };
        let lanes = Lane::ALL.into_iter().map(|lane| (lane, fresh())).collect();
        Self { id, lanes, session: 0, up_ms: 1_000, born: false, config: Reported::default() }
    }

    fn session(&self) -> SessionId {
        SessionId([self.session; 8])
    }

    fn stream(&self) -> StreamId {
        let mut stream = [7; 16];
        stream[..self.id.as_str().len()].copy_from_slice(self.id.as_str().as_bytes());
        StreamId(stream)
    }

    /// Seals `count` records on a lane.
    fn seal(&mut self, lane: Lane, kind: Kind, count: u64, next_number: &mut u64) {
        self.up_ms += 10;
        let first = *next_number;
        let good = kind == Kind::Good;
        *next_number += if good { count } else { 0 };
        let numbers: Vec<u64> = (first..*next_number).collect();
        let body = match (kind, lane) {
            (Kind::Tombstone, _) => Vec::new(),
            (Kind::Good, Lane::Telemetry | Lane::Backfill) => samples(&numbers),
            (Kind::Good, Lane::Event) => events(&numbers),
            (Kind::Bad, _) | (Kind::Good, Lane::Command) => vec![0x63, b'b', b'a', b'd'],
        };
        let (boot, stream) = ([1; 8], self.stream());
        let out = self.lanes.get_mut(&lane).unwrap();
        let (seq, tombstone) = (out.next_seq, kind == Kind::Tombstone);
        let seq_to = tombstone.then_some(seq + 2);
        let batch = Batch {
            v: VERSION,
            stream,
            seq,
            seq_to,
            first: out.next_record,
            count,
            boot,
            up_ms: self.up_ms,
            clock: Clock::Synced,
            sealed_ms: START_MS,
            lost: tombstone.then_some(Lost::OutboxFull),
            body,
        };
        out.next_seq = batch.last_seq() + 1;
        out.next_record += count;
        let stored = good && lane != Lane::Command;
        out.sealed.push(Sealed {
            first_seq: seq,
            last_seq: batch.last_seq(),
            payload: cbor::encode(&batch).into(),
            numbers: if stored { numbers } else { Vec::new() },
            quarantined: if stored || tombstone { 0 } else { count },
            lost: if tombstone { count } else { 0 },
        });
    }

    fn states(&self) -> BTreeMap<Lane, Vec<StreamState>> {
        let sealed = self.lanes.iter().filter(|(_, out)| out.next_seq > 1);
        let state = |out: &LaneOut| StreamState {
            stream: self.stream(),
            floor_seq: 1,
            floor_record: 1,
            next_seq: out.next_seq,
            next_record: out.next_record,
            counted: out.next_record - 1 - out.sealed.iter().map(|sealed| sealed.lost).sum::<u64>(),
            tombstoned: out.sealed.iter().map(|sealed| sealed.lost).sum(),
        };
        sealed.map(|(lane, out)| (*lane, vec![state(out)])).collect()
    }

    fn say(&self, up: Up, payload: Vec<u8>) -> (Topic, Bytes) {
        (Topic::Up(self.id.clone(), up), payload.into())
    }

    fn birth(&mut self) -> (Topic, Bytes) {
        self.session += 1;
        self.up_ms += 10;
        let birth = Birth {
            v: VERSION,
            session: self.session(),
            epoch: self.session.into(),
            boot: [1; 8],
            instance: None,
            up_ms: self.up_ms,
            clock: Clock::Synced,
            time_ms: START_MS,
            interval_ms: 10_000,
            kind: "picclaw".to_owned(),
            name: None,
            capabilities: Vec::new(),
            versions: Versions::default(),
            machine: BTreeMap::new(),
            lanes: self.states(),
            partial: false,
            pending: Pending::default(),
            commands: None,
            config: Some(self.config.clone()),
        };
        self.say(Up::Birth, cbor::encode(&birth))
    }

    fn heartbeat(&mut self) -> (Topic, Bytes) {
        self.up_ms += 10;
        let heartbeat = Heartbeat {
            v: VERSION,
            session: self.session(),
            boot: [1; 8],
            up_ms: self.up_ms,
            clock: Clock::Synced,
            time_ms: START_MS,
            interval_ms: 10_000,
            system: BTreeMap::new(),
            lanes: self.states(),
            partial: false,
            pending: Pending::default(),
            config: Some(self.config.clone()),
            outbox: OutboxUse::default(),
        };
        self.say(Up::Heartbeat, cbor::encode(&heartbeat))
    }

    /// Everything above the marks, as an agent that was not acked sends it again.
    fn unacked(&self) -> Vec<(Topic, Bytes)> {
        let lanes = self.lanes.iter();
        lanes
            .flat_map(|(lane, out)| {
                let due = out.sealed.iter().filter(|sealed| sealed.last_seq > out.acked);
                due.map(|s| (Topic::Up(self.id.clone(), Up::Lane(*lane)), s.payload.clone()))
            })
            .collect()
    }

    fn configured(&mut self, desired: &Desired) {
        if desired.session != self.session() {
            return;
        }
        let (version, retry) = (desired.version, desired.retry);
        let known = self.config.received.map(|held| held.version);
        assert!(known <= Some(version), "{}: configuration goes back from {known:?} to {version:?}", self.id);
        let held = Some(Held { version, hash: fleet_schemas::config::hash(&desired.doc), retry });
        self.config = Reported { received: held, applied: held, failed: None };
    }

    fn acked(&mut self, ack: &Ack) {
        if ack.session != self.session() {
            return;
        }
        self.born |= ack.birth;
        for (lane, streams) in &ack.lanes {
            for stream in streams {
                assert_eq!((stream.stream, &stream.verdict), (self.stream(), &Verdict::Ok));
                let out = self.lanes.get_mut(lane).unwrap();
                assert!(stream.seq >= out.acked, "{lane}: the mark went back from {}", out.acked);
                out.acked = stream.seq;
            }
        }
    }
}

fn samples(numbers: &[u64]) -> Vec<u8> {
    let mut builder = Builder::default();
    for number in numbers {
        let pushed = builder.push(Sample {
            time_ms: START_MS + *number as i64,
            device: DeviceId::parse(["", "a"][*number as usize % 2]).unwrap(),
            metric: MetricName::parse("n").unwrap(),
            unit: None,
            value: *number as f64,
        });
        assert_eq!(pushed, None);
    }
    builder.build().encode()
}

fn events(numbers: &[u64]) -> Vec<u8> {
    let event = |number: &u64| Event {
        time_ms: START_MS,
        kind: MetricName::parse("n").unwrap(),
        severity: Severity::Info,
        message: number.to_string(),
        data: None,
        device: None,
        id: None,
    };
    cbor::encode(&numbers.iter().map(event).collect::<Vec<_>>())
}

/// One step of the script.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Both nodes open a session.
    Birth,
    /// One node seals on a lane.
    Seal(usize, Lane, Kind, u64),
    /// What is unacked is sent in one group; with every second step twice, as after a lost ack.
    Send,
    Heartbeat,
    /// An operator changes a setting of all nodes.
    Edit,
    /// Samples go into week files.
    Tidy,
    /// Last-seen times are written.
    Snapshot,
}

struct World {
    disk: Memory,
    consumer: Option<Consumer>,
    nodes: Vec<Node>,
    next_number: u64,
    steps: u64,
    /// The step of the last change that was confirmed.
    edited: u64,
}

impl World {
    fn new() -> Self {
        let nodes = ["north", "south"].map(Node::new).into();
        Self { disk: Memory::default(), consumer: None, nodes, next_number: 1, steps: 0, edited: 0 }
    }

    fn now(&self) -> Now {
        let passed = Duration::from_secs(self.steps);
        Now { wall_ms: START_MS + 1_000 * self.steps as i64, mono: passed }
    }

    fn open(&mut self) -> Result<(), consume::Error> {
        let config = telemetry::Config {
            seal_bytes: 500,
            seal_age: Duration::from_secs(3),
            ..telemetry::Config::default()
        };
        let disk = Arc::new(self.disk.clone());
        self.consumer = Some(Consumer::open(disk, config, StoreId([5; 16]), self.now())?);
        Ok(())
    }

    fn run(&mut self, step: Step) -> Result<(), consume::Error> {
        self.steps += 1;
        match step {
            Step::Birth => {
                let births: Vec<_> = self.nodes.iter_mut().map(Node::birth).collect();
                self.consume(&births, Vec::new())
            }
            Step::Seal(node, lane, kind, count) => {
                self.nodes[node].seal(lane, kind, count, &mut self.next_number);
                Ok(())
            }
            Step::Send => {
                let mut group: Vec<_> = self.nodes.iter().flat_map(Node::unacked).collect();
                if self.steps.is_multiple_of(2) {
                    group.extend(group.clone());
                }
                self.consume(&group, Vec::new())
            }
            Step::Heartbeat => {
                let heartbeats: Vec<_> = self.nodes.iter_mut().map(Node::heartbeat).collect();
                self.consume(&heartbeats, Vec::new())
            }
            Step::Edit => {
                let doc = serde_json::json!({ "step": self.steps });
                let edit = Box::new(Edit::Put { layer: Layer::Fleet, doc, expected: None });
                let by = "operator ann".to_owned();
                let order = Order { by: by.clone(), intent: Intent::EditConfig { edit, by } };
                self.consume(&[], vec![order])?;
                self.edited = self.steps;
                Ok(())
            }
            Step::Tidy => {
                let shared = self.consumer.as_ref().unwrap().shared();
                while shared.telemetry.seal(self.now().wall_ms)?.more {}
                Ok(())
            }
            Step::Snapshot => self.consumer.as_mut().unwrap().snapshot(),
        }
    }

    fn consume(&mut self, group: &[(Topic, Bytes)], orders: Vec<Order>) -> Result<(), consume::Error> {
        let now = self.now();
        let group = group.iter().map(|(topic, payload)| (topic, payload));
        let spoken = self.consumer.as_mut().unwrap().consume(group, orders, CREDIT, now)?;
        assert!(spoken.outcomes.iter().all(Result::is_ok), "{:?}", spoken.outcomes);
        for (topic, payload) in spoken.downs {
            let Topic::Down(id, down) = topic else { panic!("the hub speaks downwards") };
            let node = self.nodes.iter_mut().find(|node| node.id == id).unwrap();
            match down {
                Down::Ack => node.acked(&cbor::decode(&payload).unwrap()),
                Down::Config => node.configured(&cbor::decode(&payload).unwrap()),
                Down::Command => panic!("nobody made a command"),
            }
        }
        Ok(())
    }

    /// The power fails and comes back; the nodes open new sessions and send again what is not acked.
    fn crash(&mut self) {
        self.consumer = None;
        self.disk.crash();
        self.open().unwrap();
        self.check("after the crash");
        for step in [Step::Birth, Step::Send, Step::Tidy] {
            self.run(step).unwrap();
        }
        self.check("after sending again");
    }

    /// Exactly the batches up to each mark are in the store, and every account says so.
    fn check(&self, when: &str) {
        let shared = self.consumer.as_ref().unwrap().shared();
        self.check_config(when);
        let counters = shared.counters().unwrap();
        let counted_events = shared.state().recount_events().unwrap();
        for node in &self.nodes {
            let id = &node.id;
            let fleet = shared.fleet();
            let Some(known) = fleet.nodes.get(id) else {
                assert!(node.lanes.values().all(|out| out.acked == 0), "{when}: {id} is forgotten");
                continue;
            };
            let mut expected = Vec::new();
            for (lane, out) in &node.lanes {
                let mark = known.marks.get(&(*lane, node.stream())).map_or(0, |mark| mark.seq);
                assert!(mark >= out.acked, "{when}: {id} {lane}: acked {}, stored {mark}", out.acked);
                let passed = || out.sealed.iter().filter(|sealed| sealed.last_seq <= mark);
                let cut = out.sealed.iter().find(|sealed| sealed.first_seq <= mark && sealed.last_seq > mark);
                assert!(cut.is_none(), "{when}: {id} {lane}: the mark {mark} lies inside of a batch");
                let account = ledger::account(id, *lane, known.sum(*lane), counters(known.number, *lane));
                assert!(account.state != Standing::Broken, "{when}: {account:?}");
                let sum = |of: fn(&Sealed) -> u64| passed().map(of).sum::<u64>();
                let found = account.counters;
                assert_eq!(
                    (found.stored, found.quarantined, found.lost),
                    (sum(|s| s.numbers.len() as u64), sum(|s| s.quarantined), sum(|s| s.lost)),
                    "{when}: {id} {lane}: mark {mark}"
                );
                let recounted = match lane {
                    Lane::Telemetry | Lane::Backfill => {
                        shared.telemetry.recount(known.number, *lane).unwrap()
                    }
                    Lane::Event => counted_events.get(&known.number).copied().unwrap_or(0),
                    Lane::Command => 0,
                };
                assert_eq!(recounted, found.stored, "{when}: {id} {lane}: rows");
                expected.extend(passed().flat_map(|sealed| sealed.numbers.iter().copied()));
            }
            expected.sort_unstable();
            assert_eq!(self.stored(known.number), expected, "{when}: {id}");
        }
    }

    /// What was confirmed is there, and every node is to have it.
    fn check_config(&self, when: &str) {
        let shared = self.consumer.as_ref().unwrap().shared();
        let fleet = shared.fleet();
        let current = fleet.config.settings().current(&Layer::Fleet);
        let step = current.map_or(0, |revision| revision.doc["step"].as_u64().unwrap());
        assert!(step >= self.edited, "{when}: the change of step {} is gone", self.edited);
        let stored = shared.state().revisions(Some(&Layer::Fleet), None, 1_000).unwrap();
        assert_eq!(stored.first(), current, "{when}");
        assert!(stored.windows(2).all(|pair| pair[0].number == pair[1].number + 1), "{when}: {stored:?}");
        for node in fleet.nodes.values().filter(|_| current.is_some()) {
            let doc = fleet.config.settings().merged(&config::place(&fleet.config, node)).doc;
            let wanted = node.wanted.map(|wanted| wanted.hash);
            assert_eq!(wanted, Some(config::encoded(&doc).1), "{when}: {}", node.record.id);
        }
    }

    /// The numbers of all records that the store has of a node.
    fn stored(&self, node: u32) -> Vec<u64> {
        let shared = self.consumer.as_ref().unwrap().shared();
        let query = Query {
            node,
            device: None,
            metric: None,
            from_ms: i64::MIN / 4,
            to_ms: i64::MAX / 4,
            step: None,
            series_max: 100,
            points_max: 100_000,
        };
        let series = shared.telemetry.query(&query).unwrap();
        let mut stored: Vec<_> =
            series.iter().flat_map(|series| &series.points).map(|(_, value)| *value as u64).collect();
        let filter = EventFilter { node: Some(node), limit: 100_000, ..EventFilter::default() };
        let events = shared.state().events(filter).unwrap();
        let own = events.iter().filter(|(_, row)| !row.by_hub);
        stored.extend(own.map(|(_, row)| row.event.message.parse::<u64>().unwrap()));
        stored.sort_unstable();
        stored
    }

    /// Everything that was ever sealed is at the hub now.
    fn finish(&mut self) {
        for step in [Step::Birth, Step::Send, Step::Heartbeat] {
            self.run(step).unwrap();
        }
        self.check("at the end");
        let fleet = self.consumer.as_ref().unwrap().shared().fleet();
        for node in &self.nodes {
            let state = config::state(&fleet.nodes[&node.id]);
            assert_eq!(state, config::State::InSync, "{}", node.id);
            for (lane, out) in &node.lanes {
                assert_eq!(out.acked, out.next_seq - 1, "{} {lane}", node.id);
                assert_eq!(fleet.nodes[&node.id].sum(*lane).at_edge, 0);
            }
        }
    }
}

fn script() -> Vec<Step> {
    use Lane::{Backfill, Command, Telemetry};
    let mut script = vec![Step::Birth];
    for round in 0..8 {
        let (one, other) = (round % 2, (round + 1) % 2);
        script.extend([
            Step::Seal(one, Telemetry, Kind::Good, 20),
            Step::Seal(one, Lane::Event, Kind::Good, 2),
            Step::Send,
            Step::Seal(one, Backfill, Kind::Good, 15),
            Step::Seal(other, Backfill, if round == 3 { Kind::Tombstone } else { Kind::Good }, 30),
            Step::Seal(other, Telemetry, if round == 4 { Kind::Bad } else { Kind::Good }, 7),
            Step::Seal(other, Lane::Event, if round == 5 { Kind::Bad } else { Kind::Good }, 1),
            Step::Seal(one, Command, Kind::Bad, 3),
            Step::Send,
            Step::Heartbeat,
            Step::Tidy,
        ]);
        if round % 2 == 0 {
            script.push(Step::Edit);
        }
        if round % 3 == 2 {
            script.extend([Step::Snapshot, Step::Birth]);
        }
    }
    script
}

#[test]
fn the_power_may_fail_at_any_sync_of_the_hubs_stores() {
    let mut world = World::new();
    world.open().unwrap();
    for step in script() {
        world.run(step).unwrap();
        world.check("undisturbed");
    }
    let syncs = world.disk.syncs();
    world.finish();
    assert!(syncs > 60, "{syncs}");
    for (sync, when) in (1..=syncs).flat_map(|sync| [(sync, When::Before), (sync, When::After)]) {
        let mut world = World::new();
        world.disk.freeze_at(sync, when);
        let mut crashed = world.open().is_err();
        if crashed {
            world.crash();
        }
        for step in script() {
            if world.run(step).is_err() {
                assert!(!crashed, "sync {sync} {when:?}: the disk failed a second time");
                crashed = true;
                world.crash();
            }
        }
        world.finish();
    }
}

#[test]
fn the_stores_may_fail_at_any_sync_and_be_opened_again_without_a_restart() {
    let mut world = World::new();
    world.open().unwrap();
    script().into_iter().for_each(|step| world.run(step).unwrap());
    for (sync, when) in (1..=world.disk.syncs()).flat_map(|sync| [(sync, When::Before), (sync, When::After)])
    {
        let mut world = World::new();
        if world.open().is_err() {
            continue;
        }
        let opened = world.disk.syncs();
        if sync <= opened {
            continue;
        }
        world.disk.freeze_at(sync, when);
        for step in script() {
            if world.run(step).is_err() {
                world.disk.crash();
                let now = world.now();
                world.consumer.as_mut().unwrap().reopen(now).unwrap();
                world.check("opened again");
                // Sessions stay: nobody is born again, what is unacked is sent again.
                world.run(Step::Send).unwrap();
                world.check("after sending again");
            }
        }
        world.finish();
    }
}
