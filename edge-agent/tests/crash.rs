//! The power fails at every sync of a scripted run of the uplink, before and after the sync reached the card.
//!
//! What was accepted is then held or was acked, numbers never go back, the figures agree with the rows, and in the end
//! everything is at the hub exactly once, or declared lost by a tombstone.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fleet_edge_agent::{
    core::Now,
    store::{outbox::Outbox, sim_disk::SimFile},
    uplink::{Config, Error, Profile, Submission, Uplink},
};
use fleet_schemas::{
    DeviceId, Lane, MetricName, NodeId, SessionId, StoreId, StreamId, Topic, VERSION,
    ack::{Ack, StreamAck, Verdict},
    batch::{self, Batch, Clock, Digest, Envelope},
    cbor::{self, Unpacker},
    event::{self, Event, Severity},
    session::{Birth, Heartbeat, StreamState, Versions},
    telemetry::{Sample, Samples},
    topic::{Down, Up},
};

/// Small enough that the script fills it several times.
const QUOTA_BYTES: u64 = 12_000;
/// When the script begins, Unix milliseconds.
const START_MS: i64 = 1_790_000_000_000;

/// One step of the script.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// That many samples in one submission.
    Samples(u64),
    /// That many events in one submission, with a sample beside them.
    Events(u64),
    /// Time passes, in seconds; what is due is sent and answered.
    Pass(u64),
    Connect,
    Disconnect,
    /// What the hub says gets lost, or no longer.
    Deaf(bool),
    /// A clean end and a new start.
    Reopen,
}

/// The records of a batch, by the number that each carries.
fn records(unpacker: &mut Unpacker, lane: Lane, payload: &[u8]) -> (Batch, Vec<u64>) {
    let Envelope::Known(batch) = Batch::decode(unpacker.unpack(payload).unwrap()).unwrap() else {
        panic!("our own batches are of our version")
    };
    let numbers: Vec<u64> = match lane {
        _ if batch.is_tombstone() => Vec::new(),
        Lane::Telemetry | Lane::Backfill => {
            let samples = Samples::decode(&batch.body).unwrap();
            let values = samples.series.iter().flat_map(|series| samples.values(series));
            values.filter(|value| !value.is_nan()).map(|value| value as u64).collect()
        }
        Lane::Event => {
            event::decode(&batch.body).unwrap().iter().map(|event| event.message.parse().unwrap()).collect()
        }
        Lane::Command => panic!("nothing is sent on the command lane"),
    };
    assert!(batch.is_tombstone() || batch.count == numbers.len() as u64);
    (batch, numbers)
}

/// A hub that keeps everything and trusts nobody.
#[derive(Default)]
struct Hub {
    marks: BTreeMap<(Lane, StreamId), Mark>,
    stored: BTreeMap<u64, u64>,
    lost: u64,
    session: Option<SessionId>,
    epoch: u64,
    unpacker: Unpacker,
}

#[derive(Default)]
struct Mark {
    seq: u64,
    next_record: u64,
    // By first number: last number, and what tells a resend from something else.
    digests: BTreeMap<u64, (u64, Digest)>,
}

impl Hub {
    /// Takes a message; the answer, if it needs one.
    fn take(&mut self, up: Up, payload: &[u8], session: SessionId) -> Option<Ack> {
        let mut ack = Ack {
            v: VERSION,
            store_id: StoreId([1; 16]),
            session,
            birth: false,
            hub_ms: 0,
            credit: 16,
            lanes: BTreeMap::new(),
        };
        match up {
            Up::Birth => {
                let birth: Birth = cbor::decode(self.unpacker.unpack(payload).unwrap()).unwrap();
                if self.session != Some(birth.session) {
                    assert!(birth.epoch > self.epoch, "the count of sessions went back");
                    (self.session, self.epoch) = (Some(birth.session), birth.epoch);
                }
                self.compare(&birth.lanes);
                ack.birth = true;
                for (lane, states) in &birth.lanes {
                    let told = |state: &StreamState| self.told(*lane, state.stream);
                    ack.lanes.insert(*lane, states.iter().map(told).collect());
                }
            }
            Up::Heartbeat => {
                let heartbeat: Heartbeat = cbor::decode(self.unpacker.unpack(payload).unwrap()).unwrap();
                self.compare(&heartbeat.lanes);
                return None;
            }
            Up::Death => return None,
            Up::Lane(lane) => {
                let stream = self.batch(lane, payload);
                ack.lanes.insert(lane, vec![self.told(lane, stream)]);
            }
        }
        Some(ack)
    }

    fn told(&self, lane: Lane, stream: StreamId) -> StreamAck {
        let seq = self.marks.get(&(lane, stream)).map_or(0, |mark| mark.seq);
        StreamAck { stream, seq, verdict: Verdict::Ok }
    }

    /// What the edge says of itself must never break the ledger.
    fn compare(&self, lanes: &BTreeMap<Lane, Vec<StreamState>>) {
        for (lane, states) in lanes {
            for state in states {
                let (mark, record) =
                    self.marks.get(&(*lane, state.stream)).map_or((0, 1), |m| (m.seq, m.next_record));
                assert!(state.floor_seq <= mark + 1, "{lane}: floor above the mark {mark}: {state:?}");
                assert!(state.next_seq > mark, "{lane}: next below the mark {mark}: {state:?}");
                assert!(state.next_record >= record, "{lane}: records went back below {record}: {state:?}");
                let held = state.next_record - state.floor_record;
                assert_eq!(state.counted + state.tombstoned, held, "{lane}: {state:?}");
            }
        }
    }

    fn batch(&mut self, lane: Lane, payload: &[u8]) -> StreamId {
        let (batch, numbers) = records(&mut self.unpacker, lane, payload);
        let fresh = || Mark { next_record: 1, ..Mark::default() };
        let mark = self.marks.entry((lane, batch.stream)).or_insert_with(fresh);
        let digest = batch::digest(payload);
        if batch.seq <= mark.seq {
            let known = mark.digests.get(&batch.seq);
            assert_eq!(known, Some(&(batch.last_seq(), digest)), "{lane} {}: a resend differs", batch.seq);
        } else if batch.seq == mark.seq + 1 {
            assert_eq!(batch.first, mark.next_record, "{lane} {}: its records", batch.seq);
            mark.digests.insert(batch.seq, (batch.last_seq(), digest));
            (mark.seq, mark.next_record) = (batch.last_seq(), batch.next_record());
            if batch.is_tombstone() {
                self.lost += batch.count;
            }
            for number in numbers {
                *self.stored.entry(number).or_default() += 1;
            }
        }
        batch.stream
    }
}

/// Records, records of tombstones, batches by first number with their last.
type Rows = (u64, u64, BTreeMap<u64, u64>);

/// What lies on a card.
#[derive(Default)]
struct Card {
    numbers: BTreeMap<u64, u64>,
    streams: BTreeMap<(Lane, StreamId), Rows>,
    pending: u64,
    bytes: u64,
    // Records of tombstones that the hub has not taken.
    lost: u64,
}

fn look(card: &SimFile, hub: &Hub) -> Card {
    let (outbox, found) = Outbox::open(card.image().backend()).unwrap();
    let mut unpacker = Unpacker::default();
    let mut seen = Card { bytes: found.row_bytes, ..Card::default() };
    assert_eq!(found.damaged_rows, 0);
    for sample in found.rows.into_values().flatten() {
        *seen.numbers.entry(sample.value as u64).or_default() += 1;
        seen.pending += 1;
    }
    for lane in Lane::ALL {
        for (number, stream) in &found.lanes.get(lane).streams {
            let entry = seen.streams.entry((lane, stream.id)).or_default();
            let mark = hub.marks.get(&(lane, stream.id)).map_or(0, |mark| mark.seq);
            let mut from = 0;
            while let Some((seq, held)) = outbox.batch(lane, *number, from).unwrap() {
                let held = held.expect("no row is damaged");
                let (batch, numbers) = records(&mut unpacker, lane, &held.payload);
                assert_eq!((batch.stream, batch.seq, batch.last_seq()), (stream.id, seq, held.seq_to));
                assert!(from == 0 || seq == from, "{lane}: a batch is missing before {seq}");
                *(if held.tombstone { &mut entry.1 } else { &mut entry.0 }) += batch.count;
                seen.lost += if held.tombstone && seq > mark { batch.count } else { 0 };
                entry.2.insert(seq, held.seq_to);
                seen.bytes += held.row_bytes();
                for number in numbers {
                    *seen.numbers.entry(number).or_default() += 1;
                }
                from = held.seq_to + 1;
            }
        }
    }
    seen
}

/// A node, its card and its hub.
struct World {
    card: SimFile,
    uplink: Option<Uplink>,
    hub: Hub,
    up_ms: u64,
    boots: u8,
    sessions: u8,
    session: Option<SessionId>,
    deaf: bool,
    next_number: u64,
    accepted: BTreeSet<u64>,
    // Under way when the power failed.
    maybe: BTreeSet<u64>,
    refused: u64,
}

impl World {
    fn new() -> Self {
        Self {
            card: SimFile::new(),
            uplink: None,
            hub: Hub::default(),
            up_ms: 0,
            boots: 0,
            sessions: 0,
            session: None,
            deaf: false,
            next_number: 1,
            accepted: BTreeSet::new(),
            maybe: BTreeSet::new(),
            refused: 0,
        }
    }

    fn now(&self) -> Now {
        // The wall clock is wrong on every second boot.
        let wrong = if self.boots.is_multiple_of(2) { START_MS } else { 0 };
        let wall_ms = START_MS - wrong + i64::try_from(self.up_ms).unwrap();
        Now { wall_ms, up: Duration::from_millis(self.up_ms), clock: Clock::Synced }
    }

    fn start(&mut self) -> Result<(), Error> {
        self.boots += 1;
        self.up_ms = 0;
        let profile = Profile {
            node: NodeId::parse("crash").unwrap(),
            boot: [self.boots; 8],
            instance: Some([self.boots; 8]),
            kind: "picclaw".to_owned(),
            name: None,
            capabilities: Vec::new(),
            versions: Versions::default(),
            machine: BTreeMap::new(),
            heartbeat: Duration::from_secs(10),
        };
        let config = Config {
            quota_bytes: QUOTA_BYTES,
            upload: Duration::from_secs(5),
            batch_samples: 25,
            prompt: Duration::from_secs(60),
            keep: Duration::from_secs(20),
            ..Config::default()
        };
        let stream = StreamId([self.boots; 16]);
        self.uplink = Some(Uplink::open(self.card.backend(), profile, config, stream, self.now())?);
        Ok(())
    }

    fn uplink(&mut self) -> &mut Uplink {
        self.uplink.as_mut().expect("the agent runs")
    }

    fn run(&mut self, step: Step) -> Result<(), Error> {
        match step {
            Step::Samples(count) => {
                let samples = self.samples(count);
                self.submit(vec![samples])?;
            }
            Step::Events(count) => {
                let (events, sample) = (self.events(count), self.samples(1));
                self.submit(vec![events, sample])?;
            }
            Step::Pass(seconds) => {
                for _ in 0..seconds {
                    self.up_ms += 1_000;
                    self.talk()?;
                }
            }
            Step::Connect => {
                self.sessions += 1;
                let session = SessionId([self.sessions; 8]);
                self.session = Some(session);
                let now = self.now();
                self.uplink().connected(session, now);
                self.talk()?;
            }
            Step::Disconnect => {
                self.session = None;
                self.uplink().disconnected();
            }
            Step::Deaf(deaf) => self.deaf = deaf,
            Step::Reopen => {
                let now = self.now();
                self.uplink().goodbye(now)?;
                (self.uplink, self.session) = (None, None);
                self.start()?;
            }
        }
        Ok(())
    }

    fn samples(&mut self, count: u64) -> Submission {
        let time_ms = self.now().wall_ms;
        let sample = |number: u64| Sample {
            time_ms: time_ms + number as i64,
            device: DeviceId::parse(["", "a", "b"][number as usize % 3]).unwrap(),
            metric: MetricName::parse("n").unwrap(),
            unit: None,
            value: number as f64,
        };
        let first = self.next_number;
        self.next_number += count;
        Submission::Samples((first..self.next_number).map(sample).collect())
    }

    fn events(&mut self, count: u64) -> Submission {
        let time_ms = self.now().wall_ms;
        let event = |number: u64| Event {
            time_ms,
            kind: MetricName::parse("n").unwrap(),
            severity: Severity::Info,
            message: number.to_string(),
            data: None,
            device: None,
            id: None,
        };
        let first = self.next_number;
        self.next_number += count;
        Submission::Events((first..self.next_number).map(event).collect())
    }

    fn submit(&mut self, submissions: Vec<Submission>) -> Result<(), Error> {
        let numbers: Vec<Vec<u64>> = submissions
            .iter()
            .map(|submission| match submission {
                Submission::Samples(samples) => samples.iter().map(|sample| sample.value as u64).collect(),
                Submission::Events(events) => events.iter().map(|e| e.message.parse().unwrap()).collect(),
            })
            .collect();
        let now = self.now();
        match self.uplink().submit(submissions, now) {
            Ok(results) => {
                for (result, numbers) in results.into_iter().zip(numbers) {
                    match result {
                        Ok(()) => self.accepted.extend(numbers),
                        Err(_) => self.refused += 1,
                    }
                }
                Ok(())
            }
            Err(error) => {
                self.maybe.extend(numbers.into_iter().flatten());
                Err(error)
            }
        }
    }

    /// Sends what is due and takes the answers, until neither side has anything to say.
    fn talk(&mut self) -> Result<(), Error> {
        loop {
            let now = self.now();
            let outgoing = self.uplink().poll(now)?;
            let Some(session) = self.session else { return Ok(()) };
            let mut answered = false;
            for message in outgoing {
                let Topic::Up(_, up) = message.topic else { panic!("a node speaks upwards") };
                let Some(ack) = self.hub.take(up, &message.payload, session) else { continue };
                if !self.deaf {
                    answered = true;
                    self.uplink().receive(Down::Ack, &cbor::encode(&ack), now)?;
                }
            }
            if !answered {
                return Ok(());
            }
        }
    }

    /// The power fails and comes back.
    fn crash(&mut self) {
        (self.uplink, self.session) = (None, None);
        self.card.crash();
        self.check(&look(&self.card, &self.hub), "after the crash");
        self.start().unwrap();
        self.check_status();
    }

    /// What was accepted is on the card or at the hub, or declared lost; nothing is on the card twice.
    fn check(&self, seen: &Card, when: &str) {
        let twice: Vec<_> = seen.numbers.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{when}: held twice: {twice:?}");
        let foreign = |number: &&u64| !self.accepted.contains(number) && !self.maybe.contains(number);
        assert_eq!(seen.numbers.keys().find(foreign), None, "{when}: nobody submitted it");
        let gone = |n: &&u64| !seen.numbers.contains_key(n) && !self.hub.stored.contains_key(n);
        let missing = self.accepted.iter().filter(gone).count() as u64;
        let lost = self.hub.lost + seen.lost;
        let slack = self.maybe.len() as u64;
        assert!(
            missing <= lost && lost <= missing + slack,
            "{when}: {missing} missing, {lost} declared lost, {slack} in doubt"
        );
        for (lane, stream) in self.hub.marks.keys() {
            let mark = &self.hub.marks[&(*lane, *stream)];
            let Some((_, _, batches)) = seen.streams.get(&(*lane, *stream)) else { continue };
            let below = batches.iter().find(|(seq, last)| **seq <= mark.seq && **last > mark.seq);
            assert_eq!(below, None, "{when}: {lane}: a batch reaches over the mark {}", mark.seq);
        }
    }

    /// What the agent says of its outbox is what lies on the card.
    fn check_status(&mut self) {
        let seen = look(&self.card, &self.hub);
        let status = self.uplink().status();
        assert_eq!((status.pending.samples, status.damaged_rows), (seen.pending, 0));
        assert_eq!(status.outbox.bytes, seen.bytes);
        let states = status.lanes.iter().flat_map(|(lane, l)| l.streams.iter().map(|(s, _)| (*lane, *s)));
        let mut streams = 0;
        for (lane, state) in states {
            let (counted, tombstoned, batches) = &seen.streams[&(lane, state.stream)];
            assert_eq!((state.counted, state.tombstoned), (*counted, *tombstoned), "{lane}: {state:?}");
            let floor = batches.keys().next().copied().unwrap_or(state.next_seq);
            let next = batches.values().last().map_or(state.next_seq, |last| last + 1);
            assert_eq!((state.floor_seq, state.next_seq), (floor, next), "{lane}");
            streams += 1;
        }
        assert_eq!(streams, seen.streams.len());
    }

    /// The hub is reached again: everything arrives.
    fn settle(&mut self) {
        self.deaf = false;
        self.run(Step::Connect).unwrap();
        self.run(Step::Pass(400)).unwrap();
        let status = self.uplink().status();
        assert_eq!(status.pending.samples, 0);
        for (lane, lane_status) in &status.lanes {
            for (state, mark) in &lane_status.streams {
                assert_eq!(state.next_seq, mark + 1, "{lane} is not drained");
            }
        }
        self.check_status();
        let twice: Vec<_> = self.hub.stored.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "stored twice: {twice:?}");
        let foreign = |number: &&u64| !self.accepted.contains(number) && !self.maybe.contains(number);
        assert_eq!(self.hub.stored.keys().find(foreign), None);
        let missing = self.accepted.iter().filter(|n| !self.hub.stored.contains_key(n)).count() as u64;
        let slack = self.maybe.len() as u64;
        assert!(
            missing <= self.hub.lost && self.hub.lost <= missing + slack,
            "{missing} missing, {} declared lost, {slack} in doubt",
            self.hub.lost
        );
    }
}

fn script() -> Vec<Step> {
    use Step::{Connect, Deaf, Disconnect, Events, Pass, Reopen, Samples};
    let mut script = vec![
        Samples(3),
        Events(1),
        Samples(7),
        // A first backlog, then a session that drains it.
        Pass(6),
        Connect,
        Samples(30),
        Events(2),
        Pass(8),
        Samples(4),
        Pass(6),
        // Acks are lost; what was sent is sent again.
        Deaf(true),
        Samples(40),
        Pass(12),
        Deaf(false),
        Pass(22),
        Disconnect,
        Samples(5),
        Reopen,
        Samples(26),
        Connect,
        Pass(6),
        Disconnect,
    ];
    // Full while the hub is away: the oldest that was never sent goes. Some batches were sent into silence before
    // and are pinned.
    script.extend([Deaf(true), Connect, Samples(25), Pass(1), Disconnect]);
    for _ in 0..40 {
        script.extend([Samples(24), Pass(5)]);
    }
    script.extend([Events(3), Reopen]);
    for _ in 0..10 {
        script.extend([Samples(25), Pass(1)]);
    }
    script.extend([Deaf(false), Connect, Pass(10), Samples(50), Events(1), Pass(30), Disconnect, Samples(2)]);
    script
}

#[test]
fn the_power_may_fail_at_any_sync_of_the_outbox() {
    let mut world = World::new();
    world.start().unwrap();
    for step in script() {
        world.run(step).unwrap();
        world.check(&look(&world.card, &world.hub), "undisturbed");
    }
    let syncs = world.card.syncs();
    world.settle();
    assert!(world.hub.lost > 100, "the script fills the outbox: {}", world.hub.lost);
    assert!(world.hub.stored.len() > 400 && world.maybe.is_empty(), "{}", world.hub.stored.len());
    let missing = world.accepted.iter().filter(|n| !world.hub.stored.contains_key(n)).count() as u64;
    assert_eq!(missing, world.hub.lost);
    assert!(syncs > 100, "{syncs}");
    for sync in 1..=syncs {
        for reaches in [false, true] {
            let mut world = World::new();
            match reaches {
                true => world.card.freeze_after(sync),
                false => world.card.freeze_at(sync),
            }
            let mut crashed = world.start().is_err();
            if crashed {
                world.crash();
            }
            for step in script() {
                if world.run(step).is_err() {
                    assert!(!crashed, "sync {sync}: the card failed a second time");
                    crashed = true;
                    world.crash();
                    if matches!(step, Step::Connect) {
                        world.run(Step::Connect).unwrap();
                    }
                }
            }
            world.settle();
        }
    }
}
