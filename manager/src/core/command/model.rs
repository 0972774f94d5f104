//! Any interleaving of operators, nodes and time, against what must hold of every one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fleet_schemas::{
    Lane, VERSION,
    batch::{Batch, Clock},
    session::{Birth, Death, Pending, StreamState, Versions},
};
use proptest::prelude::*;

use super::*;
use crate::core::{
    Now,
    fleet::{Fleet, Node, Record},
    intake::{self, Body, Input},
};

const START: i64 = 1_790_000_000_000;
const NODES: usize = 2;

/// Something that happens.
#[derive(Debug, Clone)]
enum Act {
    Make {
        nodes: u8,
        queue: u8,
        priority: i8,
        idempotent: bool,
        key: bool,
        ttl_s: u16,
        later_s: u16,
    },
    Cancel(u8),
    Wait(u16),
    Connect(u8),
    Disconnect(u8),
    /// The node hears what it was told last.
    Hear(u8),
    /// What it was told is lost.
    Deaf(u8),
    /// Its agent does one step of its work.
    Work(u8),
    /// The hub gets its next report.
    Report(u8),
    /// Its card is wiped.
    Wipe(u8),
    RestartHub,
}

fn act() -> impl Strategy<Value = Act> {
    let make = (1..4_u8, 0..2_u8, 0..2_i8, any::<bool>(), any::<bool>(), 1..900_u16, 0..200_u16).prop_map(
        |(nodes, queue, priority, idempotent, key, ttl_s, later_s)| {
            let later_s = later_s.saturating_sub(100);
            Act::Make { nodes, queue, priority, idempotent, key: key && queue == 1, ttl_s, later_s }
        },
    );
    let node = || 0..2_u8;
    prop_oneof![
        4 => make,
        1 => any::<u8>().prop_map(Act::Cancel),
        3 => (1..400_u16).prop_map(Act::Wait),
        2 => node().prop_map(Act::Connect),
        1 => node().prop_map(Act::Disconnect),
        5 => node().prop_map(Act::Hear),
        1 => node().prop_map(Act::Deaf),
        8 => node().prop_map(Act::Work),
        8 => node().prop_map(Act::Report),
        1 => node().prop_map(Act::Wipe),
        1 => Just(Act::RestartHub),
    ]
}

/// What an agent has of a command.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    state: State,
    no: u64,
    priority: i8,
    queue: u8,
    not_before_ms: i64,
    not_after_ms: i64,
}

/// An agent as DESIGN section 6 wants it.
#[derive(Debug)]
struct Agent {
    held: BTreeMap<CommandId, Held>,
    session: Option<SessionId>,
    epoch: u64,
    stream: u8,
    next_seq: u64,
    out: VecDeque<(u64, Report)>,
    mail: Option<Orders>,
}

/// The hub, its store, its nodes, and what was really done.
struct Model {
    fleet: Fleet,
    now_ms: i64,
    agents: Vec<Agent>,
    sessions: u8,
    made: Vec<Arc<Command>>,
    store: BTreeMap<(CommandId, NodeNo), Execution>,
    ran: BTreeMap<(CommandId, NodeNo), u32>,
    wiped: BTreeSet<NodeNo>,
    offered: BTreeSet<(SessionId, CommandId)>,
}

fn node_id(index: usize) -> NodeId {
    NodeId::parse(&format!("node-{index}")).unwrap()
}

fn number(index: usize) -> NodeNo {
    NodeNo::try_from(index + 1).unwrap()
}

impl Agent {
    fn new() -> Self {
        Self {
            held: BTreeMap::new(),
            session: None,
            epoch: 0,
            stream: 1,
            next_seq: 1,
            out: VecDeque::new(),
            mail: None,
        }
    }

    fn say(&mut self, id: CommandId, state: State, now_ms: i64) {
        let (reason, exit_code, output, result, too_late) = (None, None, None, None, false);
        let report = Report { id, state, time_ms: now_ms, reason, exit_code, output, result, too_late };
        self.out.push_back((self.next_seq, report));
        self.next_seq += 1;
    }

    fn to(&mut self, id: CommandId, state: State, now_ms: i64) {
        if let Some(held) = self.held.get_mut(&id) {
            held.state = state;
        }
        self.say(id, state, now_ms);
    }

    fn hear(&mut self, orders: &Orders, now_ms: i64) {
        if self.session != Some(orders.session) {
            return;
        }
        for offer in &orders.offers {
            if let Some(held) = self.held.get(&offer.id) {
                // Known: the hub may have lost its last word.
                if held.state.is_terminal() {
                    self.say(offer.id, held.state, now_ms);
                }
                continue;
            }
            let held = Held {
                state: State::Accepted,
                no: offer.no,
                priority: offer.priority,
                queue: u8::from(offer.queue.as_str() == "q1"),
                not_before_ms: orders.hub_ms + i64::try_from(offer.delay_ms).unwrap(),
                not_after_ms: orders.hub_ms + i64::try_from(offer.left_ms).unwrap(),
            };
            self.held.insert(offer.id, held);
            self.say(offer.id, State::Accepted, now_ms);
        }
        for id in &orders.cancels {
            if self.held.get(id).is_some_and(|held| held.state == State::Accepted) {
                self.to(*id, State::Canceled, now_ms);
            }
        }
    }

    /// Ends what runs, else begins the first of a queue. Says what begins.
    fn work(&mut self, now_ms: i64) -> Option<CommandId> {
        let running = self.held.iter().find(|(_, held)| held.state == State::Running).map(|(id, _)| *id);
        if let Some(id) = running {
            self.to(id, State::Succeeded, now_ms);
            return None;
        }
        let ready = |held: &Held| held.state == State::Accepted && held.not_before_ms <= now_ms;
        let ready = self.held.iter().filter(|(_, held)| ready(held));
        let (id, held) =
            ready.min_by_key(|(_, held)| (held.queue, std::cmp::Reverse(held.priority), held.no))?;
        let (id, late) = (*id, held.not_after_ms <= now_ms);
        self.to(id, if late { State::Expired } else { State::Running }, now_ms);
        (!late).then_some(id)
    }
}

impl Model {
    fn new() -> Self {
        let mut fleet = Fleet::default();
        for index in 0..NODES {
            fleet.insert(Node::new(number(index), Record::new(node_id(index), START)));
        }
        Self {
            fleet,
            now_ms: START,
            agents: (0..NODES).map(|_| Agent::new()).collect(),
            sessions: 0,
            made: Vec::new(),
            store: BTreeMap::new(),
            ran: BTreeMap::new(),
            wiped: BTreeSet::new(),
            offered: BTreeSet::new(),
        }
    }

    fn now(&self) -> Now {
        let mono = Duration::from_millis(u64::try_from(self.now_ms - START).unwrap());
        Now { wall_ms: self.now_ms, mono }
    }

    /// One group: change, let time pass, write, then speak.
    fn group(&mut self, change: impl FnOnce(&mut Fleet, &mut intake::Effects)) {
        let mut effects = intake::Effects::default();
        change(&mut self.fleet, &mut effects);
        let now = self.now();
        intake::handle_timeouts(&mut self.fleet, &mut effects, now);
        advance(&mut self.fleet, &mut effects.commands, now);
        let effects = effects.commands;
        self.made.extend(effects.made);
        for (key, row) in effects.rows {
            if let Some(before) = self.store.get(&key) {
                assert_eq!(row.was, Some(before.state()));
                assert!(row.execution.history.starts_with(&before.history), "history is rewritten");
                assert!(!before.state().is_terminal() || row.execution.history == before.history, "two ends");
            } else {
                assert_eq!(row.was, None);
            }
            assert!(row.execution.history.windows(2).all(|pair| pair[0].state < pair[1].state), "backwards");
            self.store.insert(key, row.execution);
        }
        for (to, orders) in effects.orders {
            let index = (0..NODES).find(|index| node_id(*index) == to).unwrap();
            self.check(index, &orders);
            self.offered.extend(orders.offers.iter().map(|offer| (orders.session, offer.id)));
            if self.agents[index].session == Some(orders.session) {
                self.agents[index].mail = Some(orders);
            }
        }
    }

    /// What must hold of everything that a node is told.
    fn check(&self, index: usize, orders: &Orders) {
        let rank = |command: &Command| (std::cmp::Reverse(command.priority), command.no);
        assert!(orders.offers.is_sorted_by_key(|offer| offer.left_ms == 0), "what is over stands in the way");
        for queue in ["q0", "q1"] {
            let live = orders.offers.iter().filter(|offer| offer.left_ms > 0);
            let offered: Vec<_> = live.filter(|offer| offer.queue.as_str() == queue).collect();
            let ranks: Vec<_> =
                offered.iter().map(|offer| (std::cmp::Reverse(offer.priority), offer.no)).collect();
            assert!(ranks.is_sorted(), "{queue} is out of order");
            let Some(last) = ranks.last() else { continue };
            for command in self.made.iter().filter(|command| command.queue.as_str() == queue) {
                let Some(execution) = self.store.get(&(command.id, number(index))) else { continue };
                let waits = match execution.state() {
                    State::Queued => execution.slot_ms <= self.now_ms,
                    State::Sent => execution.cancel_ms.is_none() && !execution.doubt,
                    _ => false,
                };
                if waits && command.not_after_ms > self.now_ms && rank(command) < *last {
                    assert!(offered.iter().any(|offer| offer.id == command.id), "a gap in {queue}");
                }
            }
        }
        for offer in &orders.offers {
            let command = self.made.iter().find(|command| command.id == offer.id).unwrap();
            let execution = &self.store[&(offer.id, number(index))];
            let (ended, asks) = (self.now_ms >= command.not_after_ms, offer.left_ms == 0);
            assert_eq!(ended, asks, "offered to begin after its end");
            let again = self.offered.contains(&(orders.session, offer.id));
            assert!(!asks || again, "asked for although a birth can prove it");
            assert!(!execution.state().is_terminal(), "offered although it is over");
            assert!(execution.state() >= State::Sent, "said before it was written");
            let known = execution.history.iter().any(|step| step.state >= State::Accepted);
            assert!(command.idempotent || !known, "a thing to be done once is offered twice");
        }
    }

    fn say(&mut self, index: usize, input: Input) {
        let now = self.now();
        self.group(|fleet, effects| intake::take(fleet, effects, &node_id(index), input, 9, now));
    }

    fn connect(&mut self, index: usize) {
        self.disconnect(index);
        self.sessions = self.sessions.wrapping_add(1);
        let agent = &mut self.agents[index];
        agent.session = Some(SessionId([self.sessions; 8]));
        agent.epoch += 1;
        agent.mail = None;
        let floor = agent.out.front().map_or(agent.next_seq, |(seq, _)| *seq);
        let state = StreamState {
            stream: StreamId([agent.stream; 16]),
            floor_seq: floor,
            floor_record: floor,
            next_seq: agent.next_seq,
            next_record: agent.next_seq,
            counted: agent.next_seq - floor,
            tombstoned: 0,
        };
        let open = agent.held.iter().filter(|(_, held)| !held.state.is_terminal());
        let birth = Birth {
            v: VERSION,
            session: SessionId([self.sessions; 8]),
            epoch: agent.epoch,
            boot: [agent.stream; 8],
            instance: None,
            up_ms: u64::try_from(self.now_ms - START).unwrap(),
            clock: Clock::Synced,
            time_ms: self.now_ms,
            interval_ms: 24 * 3_600_000,
            kind: String::new(),
            name: None,
            capabilities: Vec::new(),
            versions: Versions::default(),
            machine: BTreeMap::new(),
            lanes: [(Lane::Command, vec![state])].into(),
            partial: false,
            pending: Pending::default(),
            commands: Some(open.map(|(id, _)| *id).collect()),
            config: None,
        };
        self.say(index, Input::Birth(Box::new(birth)));
    }

    fn disconnect(&mut self, index: usize) {
        if let Some(session) = self.agents[index].session.take() {
            self.agents[index].mail = None;
            self.say(index, Input::Death(Death { v: VERSION, session, until_ms: None }));
        }
    }

    fn report(&mut self, index: usize) {
        let agent = &mut self.agents[index];
        let Some((seq, report)) = agent.session.and_then(|_| agent.out.pop_front()) else { return };
        let batch = Batch {
            v: VERSION,
            stream: StreamId([agent.stream; 16]),
            seq,
            seq_to: None,
            first: seq,
            count: 1,
            boot: [agent.stream; 8],
            up_ms: u64::try_from(self.now_ms - START).unwrap(),
            clock: Clock::Synced,
            sealed_ms: self.now_ms,
            lost: None,
            body: Vec::new(),
        };
        let body = Body::Reports(vec![report]);
        self.say(index, Input::Batch { lane: Lane::Command, batch, digest: seq.to_le_bytes(), body });
    }

    fn work(&mut self, index: usize) {
        if let Some(id) = self.agents[index].work(self.now_ms) {
            let command = self.made.iter().find(|command| command.id == id).unwrap();
            assert!(self.now_ms < command.not_after_ms, "ran after its end");
            assert!(command.not_before_ms.is_none_or(|at| at <= self.now_ms), "ran before its time");
            let runs = self.ran.entry((id, number(index))).or_default();
            *runs += 1;
            assert!(command.idempotent || *runs == 1, "a thing to be done once was done twice");
        }
    }

    fn make(&mut self, act: &Act) {
        let Act::Make { nodes, queue, priority, idempotent, key, ttl_s, later_s } = *act else { return };
        let word = |text: &str| MetricName::parse(text).unwrap();
        let wanted = Wanted {
            id: CommandId((1 + self.made.len() as u128).to_be_bytes()),
            by: String::new(),
            nodes: (0..NODES).filter(|index| nodes & (1 << index) != 0).map(node_id).collect(),
            kind: word("ping"),
            params: Value::Null,
            queue: word(["q0", "q1"][usize::from(queue)]),
            priority,
            idempotent,
            supersedes: key.then(|| word("key")),
            ttl: Duration::from_secs(ttl_s.into()),
            timeout: Duration::from_secs(60),
            not_before_ms: (later_s > 0).then(|| self.now_ms + i64::from(later_s) * 1_000),
            rate: (later_s % 3 == 1).then_some(Rate { per_s: 1.0, per_site: None }),
            selector: None,
        };
        let now = self.now();
        self.group(|fleet, effects| {
            // At this pace the last turn may come too late: refused, and nothing is done.
            let _ = make(fleet, &mut effects.commands, wanted, now);
        });
    }

    fn act(&mut self, act: &Act) {
        let now = self.now();
        match *act {
            Act::Make { .. } => self.make(act),
            Act::Cancel(which) => {
                if let Some(command) = self.made.get(usize::from(which) % self.made.len().max(1)) {
                    let id = command.id;
                    self.group(|fleet, effects| cancel(fleet, &mut effects.commands, id, None, now));
                }
            }
            Act::Wait(seconds) => {
                self.now_ms += i64::from(seconds) * 1_000;
                self.group(|_, _| {});
            }
            Act::Connect(index) => self.connect(index.into()),
            Act::Disconnect(index) => self.disconnect(index.into()),
            Act::Hear(index) => {
                let agent = &mut self.agents[usize::from(index)];
                if let Some(orders) = agent.mail.take() {
                    agent.hear(&orders, self.now_ms);
                }
            }
            Act::Deaf(index) => self.agents[usize::from(index)].mail = None,
            Act::Work(index) => self.work(index.into()),
            Act::Report(index) => self.report(index.into()),
            Act::Wipe(index) => {
                let index = usize::from(index);
                self.disconnect(index);
                let stream = self.agents[index].stream;
                self.agents[index] = Agent { stream: stream + 1, ..Agent::new() };
                self.wiped.insert(number(index));
            }
            Act::RestartHub => self.restart_hub(),
        }
    }

    /// Everything is read from the store again; all sessions are gone.
    fn restart_hub(&mut self) {
        let last_no = self.fleet.commands.last_no;
        let open = self.made.iter().map(|command| {
            let of = |(key, execution): (&(CommandId, NodeNo), &Execution)| {
                let mine = key.0 == command.id && !execution.state().is_terminal();
                let mut stored = execution.clone();
                (stored.place, stored.offered_in) = (Place::Unsure, None);
                mine.then_some((key.1, stored))
            };
            (Command::clone(command), self.store.iter().filter_map(of).collect::<Vec<_>>())
        });
        let open = open.filter(|(_, executions)| !executions.is_empty()).collect();
        let mut fleet = Fleet::default();
        let now = self.now();
        for node in self.fleet.nodes.values() {
            let mut record = node.record.clone();
            record.presence.hub_restart(now);
            let mut again = Node::new(node.number, record);
            again.marks = node.marks.clone();
            fleet.insert(again);
        }
        fleet.commands = Dispatch::new(last_no, open);
        self.fleet = fleet;
        self.agents.iter_mut().for_each(|agent| (agent.session, agent.mail) = (None, None));
        self.group(|_, _| {});
    }

    /// Everybody comes back once, and the orders of that birth are lost; then everything arrives. Every execution is over
    /// without another birth.
    fn settle_in_one_session(&mut self) {
        for index in 0..NODES {
            self.connect(index);
            self.act(&Act::Deaf(u8::try_from(index).unwrap()));
        }
        self.act(&Act::Wait(1_500));
        for _ in 0..20 {
            for index in 0..NODES {
                for _ in 0..200 {
                    self.act(&Act::Hear(u8::try_from(index).unwrap()));
                    self.work(index);
                    self.report(index);
                }
            }
            self.act(&Act::Wait(60));
        }
        assert_eq!(self.fleet.commands.waiting(), Waiting::default());
    }

    /// Calm: everybody comes back and does what is left; then every execution is over.
    fn settle(&mut self) {
        for _ in 0..3 {
            for index in 0..NODES {
                self.connect(index);
                for _ in 0..2_000 {
                    self.act(&Act::Hear(u8::try_from(index).unwrap()));
                    self.work(index);
                    self.report(index);
                }
            }
            self.act(&Act::Wait(1_500));
        }
        for index in 0..NODES {
            self.connect(index);
        }
        assert_eq!(self.fleet.commands.waiting(), Waiting::default());
        for ((id, node), execution) in &self.store {
            let last = execution.history.last().unwrap();
            assert!(last.state.is_terminal(), "{id} at {node} is {:?}", last.state);
            let may = last.reason.as_ref().is_some_and(|why| why.may_have_executed);
            let ran = self.ran.get(&(*id, *node)).copied().unwrap_or(0);
            let quiet = [State::Expired, State::Canceled, State::Superseded, State::Rejected];
            if quiet.contains(&last.state) && !may && !self.wiped.contains(node) {
                assert_eq!(ran, 0, "{id} at {node} ran and is {:?}", last.state);
            }
            if last.state == State::Succeeded {
                assert!(ran > 0, "{id} at {node} is done and never ran");
            }
            if last.state == State::Failed {
                assert!(self.wiped.contains(node), "{id} at {node}: {last:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_promise_holds(acts in prop::collection::vec(act(), 1..120)) {
        let mut model = Model::new();
        for act in &acts {
            model.act(act);
        }
        model.settle();
    }

    #[test]
    fn what_is_lost_within_a_session_needs_no_other(acts in prop::collection::vec(act(), 1..120)) {
        let mut model = Model::new();
        for act in &acts {
            model.act(act);
        }
        model.settle_in_one_session();
        model.settle();
    }
}
