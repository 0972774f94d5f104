//! The power fails at every sync of a scripted run of the command queues, before and after the sync reached the card.
//!
//! Whatever happens: what must not run twice does not, what is too old does not begin, a queue keeps its order, every
//! command has one end at the hub, and that end agrees with what was done.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ciborium::Value;
use fleet_edge_agent::{
    core::{
        Now,
        queue::{Act, Command, End, reason},
    },
    store::sim_disk::SimFile,
    uplink::{Config, Error, Judge, Profile, Uplink},
};
use fleet_schemas::{
    CommandId, Lane, MetricName, NodeId, SessionId, StoreId, StreamId, Topic, VERSION,
    ack::{Ack, StreamAck, Verdict},
    batch::{Batch, Clock, Envelope},
    cbor::{self, Unpacker},
    command::{self, Offer, Orders, Reason, Report, State},
    session::{Birth, Versions},
    topic::{Down, Up},
};

/// When the script begins, Unix milliseconds.
const START_MS: i64 = 1_790_000_000_000;

/// One step of the script.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The hub wants these done.
    Want(u64, u64),
    /// The hub wants this one done no more.
    Cancel(u64),
    /// Time passes, in seconds; what is due is said and answered.
    Pass(u64),
    /// The oldest run ends, well or not.
    Finish(i32),
    /// The run ends that was told to.
    Obey,
    Connect,
    Disconnect,
    /// What the node says gets lost, or no longer.
    Deaf(bool),
    /// The agent is killed and started again; the machine goes on.
    Restart,
    /// The machine is booted again.
    Reboot,
}

/// Does everything but dance.
struct Feet;

impl Judge for Feet {
    fn judge(&self, kind: &MetricName, _: &Value) -> Result<(), Reason> {
        match kind.as_str() {
            "dance" => Err(reason("unknown_kind", "it has no feet", false)),
            _ => Ok(()),
        }
    }
}

fn id(number: u64) -> CommandId {
    let mut bytes = [7; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    CommandId(bytes)
}

fn number(id: CommandId) -> u64 {
    u64::from_be_bytes(*id.0.last_chunk().unwrap())
}

/// Every third is idempotent, every seventh cannot be done, every tenth has little time.
fn wanted(number: u64) -> Offer {
    let name = |text: &str| MetricName::parse(text).unwrap();
    Offer {
        id: id(number),
        no: number,
        queue: name(if number.is_multiple_of(2) { "even" } else { "odd" }),
        priority: 0,
        kind: name(if number.is_multiple_of(7) { "dance" } else { "walk" }),
        params: Value::Null,
        left_ms: if number.is_multiple_of(10) { 15_000 } else { 900_000 },
        delay_ms: 0,
        timeout_ms: 60_000,
        idempotent: number.is_multiple_of(3),
        supersedes: None,
        signature: None,
    }
}

/// One command at the hub.
struct Execution {
    offer: Offer,
    deadline_ms: i64,
    state: State,
    end: Option<Report>,
}

/// A hub that offers what it has not heard accepted, and takes each report once and in order.
#[derive(Default)]
struct Hub {
    executions: BTreeMap<u64, Execution>,
    cancels: BTreeSet<u64>,
    marks: BTreeMap<(Lane, StreamId), u64>,
    unpacker: Unpacker,
}

impl Hub {
    fn orders(&self, session: SessionId, hub_ms: i64) -> Orders {
        let open =
            self.executions.values().filter(|one| one.state < State::Accepted && one.deadline_ms > hub_ms);
        let offer =
            |one: &Execution| Offer { left_ms: (one.deadline_ms - hub_ms) as u64, ..one.offer.clone() };
        let cancels = self.cancels.iter().filter(|number| !self.executions[number].state.is_terminal());
        Orders {
            v: VERSION,
            store_id: StoreId([1; 16]),
            session,
            hub_ms,
            offers: open.map(offer).collect(),
            cancels: cancels.map(|number| id(*number)).collect(),
        }
    }

    fn take(&mut self, up: Up, payload: &[u8], session: SessionId, hub_ms: i64) -> Option<Ack> {
        let store_id = StoreId([1; 16]);
        let lanes = BTreeMap::new();
        let mut ack = Ack { v: VERSION, store_id, session, birth: false, hub_ms, credit: 16, lanes };
        let mark = |marks: &BTreeMap<_, u64>, lane, stream| {
            let seq = marks.get(&(lane, stream)).copied().unwrap_or(0);
            StreamAck { stream, seq, verdict: Verdict::Ok }
        };
        match up {
            Up::Birth => {
                let birth: Birth = cbor::decode(self.unpacker.unpack(payload).unwrap()).unwrap();
                birth.check().unwrap();
                ack.birth = true;
                for (lane, states) in &birth.lanes {
                    let told = states.iter().map(|state| mark(&self.marks, *lane, state.stream));
                    ack.lanes.insert(*lane, told.collect());
                }
            }
            Up::Heartbeat | Up::Death => return None,
            Up::Lane(lane) => {
                let plain = self.unpacker.unpack(payload).unwrap();
                let Envelope::Known(batch) = Batch::decode(plain).unwrap() else { panic!("our own version") };
                assert_eq!(lane, Lane::Command);
                let seq = self.marks.entry((lane, batch.stream)).or_default();
                if batch.seq == *seq + 1 {
                    *seq = batch.seq;
                    for report in command::decode(&batch.body).unwrap() {
                        self.report(report);
                    }
                }
                ack.lanes.insert(lane, vec![mark(&self.marks, lane, batch.stream)]);
            }
        }
        Some(ack)
    }

    fn report(&mut self, report: Report) {
        let one = self.executions.get_mut(&number(report.id)).unwrap();
        if let Some(end) = &one.end {
            assert_eq!(end.state, report.state, "{}: two ends", number(report.id));
            return;
        }
        assert!(report.state >= one.state, "{}: {:?} after {:?}", number(report.id), report.state, one.state);
        one.state = report.state;
        if report.state.is_terminal() {
            one.end = Some(report);
        }
    }
}

/// A node, its card, what its programs did, and its hub.
struct World {
    card: SimFile,
    uplink: Option<Uplink>,
    hub: Hub,
    // By the world's clock, and since the machine was booted.
    world_ms: i64,
    up_ms: u64,
    boots: u8,
    starts: u8,
    sessions: u8,
    session: Option<SessionId>,
    deaf: bool,
    running: Vec<Command>,
    told: Vec<CommandId>,
    // How often each began, and the order in which each queue began them first.
    ran: BTreeMap<u64, u32>,
    order: BTreeMap<MetricName, Vec<u64>>,
}

impl World {
    fn new() -> Self {
        Self {
            card: SimFile::new(),
            uplink: None,
            hub: Hub::default(),
            world_ms: START_MS,
            up_ms: 0,
            boots: 1,
            starts: 0,
            sessions: 0,
            session: None,
            deaf: false,
            running: Vec::new(),
            told: Vec::new(),
            ran: BTreeMap::new(),
            order: BTreeMap::new(),
        }
    }

    fn now(&self) -> Now {
        // The wall clock knows nothing: only the hub tells the time.
        Now { wall_ms: self.up_ms as i64, up: Duration::from_millis(self.up_ms), clock: Clock::Unsynced }
    }

    fn start(&mut self) -> Result<(), Error> {
        self.starts += 1;
        let profile = Profile {
            node: NodeId::parse("crash").unwrap(),
            boot: [self.boots; 8],
            instance: Some([self.starts; 8]),
            kind: "picclaw".to_owned(),
            name: None,
            capabilities: Vec::new(),
            versions: Versions::default(),
            machine: BTreeMap::new(),
            heartbeat: Duration::from_secs(30),
        };
        let stream = StreamId([self.starts; 16]);
        let mut uplink = Uplink::open(self.card.backend(), profile, Config::default(), stream, self.now())?;
        uplink.take_commands(Arc::new(Feet), &BTreeSet::new());
        self.uplink = Some(uplink);
        Ok(())
    }

    fn uplink(&mut self) -> &mut Uplink {
        self.uplink.as_mut().expect("the agent runs")
    }

    fn run(&mut self, step: Step) -> Result<(), Error> {
        match step {
            Step::Want(from, to) => {
                for number in from..=to {
                    let offer = wanted(number);
                    let deadline_ms = self.world_ms + offer.left_ms as i64;
                    let one = Execution { offer, deadline_ms, state: State::Queued, end: None };
                    self.hub.executions.entry(number).or_insert(one);
                }
                self.talk()?;
            }
            Step::Cancel(number) => {
                self.hub.cancels.insert(number);
                self.talk()?;
            }
            Step::Pass(seconds) => {
                for _ in 0..seconds {
                    self.up_ms += 1_000;
                    self.world_ms += 1_000;
                    self.talk()?;
                    // Whatever is told to end does so within the patience of the queues.
                    if self.up_ms.is_multiple_of(5_000) {
                        self.run(Step::Obey)?;
                    }
                }
            }
            Step::Finish(code) => {
                if !self.running.is_empty() {
                    let id = self.running[0].id;
                    self.finish(id, End::Exited { code })?;
                }
            }
            Step::Obey => {
                while let Some(id) = self.told.pop() {
                    self.finish(id, End::Stopped)?;
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
            Step::Restart | Step::Reboot => {
                self.die(matches!(step, Step::Reboot));
                self.start()?;
                self.talk()?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, id: CommandId, end: End) -> Result<(), Error> {
        let now = self.now();
        self.uplink().finished(id, end, now)?;
        self.running.retain(|command| command.id != id);
        self.obey();
        self.talk()
    }

    /// The process is gone, and its programs with it.
    fn die(&mut self, reboot: bool) {
        (self.uplink, self.session) = (None, None);
        (self.running, self.told) = (Vec::new(), Vec::new());
        if reboot {
            self.boots += 1;
            self.up_ms = 1_000;
        }
    }

    /// The power fails and comes back.
    fn crash(&mut self) {
        self.die(true);
        self.card.crash();
        self.start().unwrap();
    }

    /// Does what the queues say.
    fn obey(&mut self) {
        for act in self.uplink().acts() {
            match act {
                Act::Start(command) => {
                    let number = number(command.id);
                    let deadline_ms = self.hub.executions[&number].deadline_ms;
                    assert!(self.world_ms < deadline_ms, "{number} began after its time");
                    let busy = self.running.iter().any(|other| other.queue == command.queue);
                    assert!(!busy, "{number} began beside another of its queue");
                    let times = self.ran.entry(number).or_default();
                    *times += 1;
                    assert!(*times == 1 || command.idempotent, "{number} began twice");
                    if *times == 1 {
                        self.order.entry(command.queue.clone()).or_default().push(number);
                    }
                    self.running.push(*command);
                }
                Act::Stop(id, _) => self.told.push(id),
            }
        }
    }

    /// Says what is due and takes the answers and orders, until neither side has anything to say.
    fn talk(&mut self) -> Result<(), Error> {
        loop {
            let (now, hub_ms) = (self.now(), self.world_ms);
            let outgoing = self.uplink().poll(now)?;
            self.obey();
            let Some(session) = self.session else { return Ok(()) };
            let mut answered = false;
            for message in outgoing {
                let Topic::Up(_, up) = message.topic else { panic!("a node speaks upwards") };
                if self.deaf && up != Up::Birth {
                    continue;
                }
                let Some(ack) = self.hub.take(up, &message.payload, session, hub_ms) else { continue };
                answered = true;
                self.uplink().receive(Down::Ack, &cbor::encode(&ack), now)?;
                let orders = self.hub.orders(session, hub_ms);
                self.uplink().receive(Down::Command, &cbor::encode(&orders), now)?;
                self.obey();
            }
            if !answered {
                let orders = self.hub.orders(session, hub_ms);
                self.uplink().receive(Down::Command, &cbor::encode(&orders), now)?;
                self.obey();
                let outgoing = self.uplink().deadline().is_some_and(|due| due <= now.up);
                if !outgoing || self.deaf {
                    return Ok(());
                }
            }
        }
    }

    /// Everything comes to its end.
    fn settle(&mut self) {
        self.deaf = false;
        self.run(Step::Connect).unwrap();
        for _ in 0..40 {
            for step in [Step::Finish(0), Step::Obey, Step::Finish(0), Step::Pass(30)] {
                self.run(step).unwrap();
            }
        }
        for (number, one) in &self.hub.executions {
            let ran = self.ran.get(number).copied().unwrap_or(0);
            if one.state == State::Queued {
                assert!(one.deadline_ms <= self.world_ms && ran == 0, "{number} never came to the node");
                continue;
            }
            let end = one.end.as_ref().unwrap_or_else(|| panic!("{number} is {:?} for ever", one.state));
            let may = end.reason.as_ref().is_some_and(|reason| reason.may_have_executed);
            match end.state {
                State::Succeeded => assert!(ran >= 1, "{number} succeeded without being done"),
                State::Failed => assert!(may || ran >= 1, "{number} failed without being done"),
                State::TimedOut => assert!(ran >= 1 && may, "{number} took long without being done"),
                State::Rejected => assert!(ran == 0 && number.is_multiple_of(7), "{number}"),
                State::Canceled | State::Expired => assert!(ran == 0 || may, "{number} ran and denies it"),
                other => panic!("{number} ended {other:?}"),
            }
        }
        for (queue, order) in &self.order {
            assert!(order.is_sorted(), "{queue} began out of order: {order:?}");
        }
        assert_eq!(self.uplink().held_commands(), [], "nothing is left");
    }
}

fn script() -> Vec<Step> {
    use Step::{Cancel, Connect, Deaf, Disconnect, Finish, Obey, Pass, Reboot, Restart, Want};
    vec![
        Connect,
        Want(1, 4),
        Finish(0),
        Pass(2),
        Finish(1),
        Want(5, 8),
        Cancel(8),
        Finish(0),
        // The agent is killed while two run, and again.
        Restart,
        Connect,
        Finish(0),
        Restart,
        Connect,
        // One is canceled while it runs; another is too fast for its cancel.
        Want(9, 13),
        Finish(0),
        Cancel(11),
        Finish(0),
        Obey,
        // Orders come, and what the node says of it gets lost.
        Deaf(true),
        Want(14, 18),
        Finish(0),
        Finish(3),
        Disconnect,
        Pass(5),
        Finish(0),
        Deaf(false),
        Connect,
        Pass(25),
        // A reboot without a clock: what waits, waits for the hub to tell the time.
        Want(19, 24),
        Reboot,
        Pass(20),
        Connect,
        Finish(0),
        // One hangs until it is ended.
        Pass(61),
        Obey,
        Finish(0),
        Want(25, 27),
        Cancel(27),
        Disconnect,
        Pass(70),
        Connect,
        Want(28, 30),
        Finish(0),
    ]
}

#[test]
fn the_power_may_fail_at_any_sync_of_the_queues() {
    let mut world = World::new();
    world.start().unwrap();
    for step in script() {
        world.run(step).unwrap();
    }
    let syncs = world.card.syncs();
    world.settle();
    let ends: BTreeSet<_> =
        world.hub.executions.values().filter_map(|one| one.end.as_ref()).map(|end| end.state).collect();
    use State::{Canceled, Expired, Failed, Rejected, Succeeded, TimedOut};
    for state in [Succeeded, Failed, TimedOut, Rejected, Canceled, Expired] {
        assert!(ends.contains(&state), "the script never ends in {state:?}");
    }
    assert!(world.ran.values().any(|times| *times > 1), "nothing ran twice that may");
    assert!(syncs > 50, "{syncs}");
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
                    world.run(Step::Connect).unwrap();
                }
            }
            world.settle();
        }
    }
}
