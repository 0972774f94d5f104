//! Scenes of one or two nodes: what is decided, step by step.

use fleet_schemas::{
    VERSION,
    batch::{Batch, Clock},
    session::{Birth, Heartbeat, OutboxUse, Pending, StreamState, Versions},
};

use super::*;
use crate::core::{
    Now,
    fleet::{Fleet, Node, Record},
    intake::{self, Body, Input},
    registry::RegistryError,
};
use fleet_schemas::{Lane, limits};

const START: i64 = 1_790_000_000_000;
const STREAM: StreamId = StreamId([9; 16]);

/// A hub with a node `a` of site `x` and a node `b` of site `y`.
struct Scene {
    fleet: Fleet,
    now_ms: i64,
    seq: u64,
    session: u8,
    wanted: u8,
}

impl Scene {
    fn new() -> Self {
        let mut fleet = Fleet::default();
        for (number, (name, site)) in (1..).zip([("a", "x"), ("b", "y")]) {
            let mut record = Record::new(node(name), START);
            record.site = Some(site.to_owned());
            fleet.insert(Node::new(number, record));
        }
        Self { fleet, now_ms: START, seq: 1, session: 0, wanted: 0 }
    }

    fn now(&self) -> Now {
        let mono = Duration::from_millis(u64::try_from(self.now_ms - START).unwrap());
        Now { wall_ms: self.now_ms, mono }
    }

    fn wait(&mut self, seconds: i64) -> Effects {
        self.now_ms += seconds * 1_000;
        self.take(|_, _| {})
    }

    fn take(&mut self, change: impl FnOnce(&mut Fleet, &mut intake::Effects)) -> Effects {
        let mut effects = intake::Effects::default();
        let now = self.now();
        change(&mut self.fleet, &mut effects);
        advance(&mut self.fleet, &mut effects.commands, now);
        effects.commands
    }

    fn make(&mut self, wanted: Wanted) -> (CommandId, Effects) {
        self.wanted += 1;
        let id = CommandId([self.wanted; 16]);
        let (now, wanted) = (self.now(), Wanted { id, ..wanted });
        let effects = self.take(|fleet, effects| make(fleet, &mut effects.commands, wanted, now).unwrap());
        (id, effects)
    }

    fn refused(&mut self, wanted: Wanted) -> RegistryError {
        let now = self.now();
        make(&mut self.fleet, &mut Effects::default(), wanted, now).unwrap_err()
    }

    fn born(&mut self, commands: &[CommandId], next_seq: u64) -> Effects {
        self.session += 1;
        self.born_again(commands, next_seq)
    }

    /// A birth of the present session, perhaps said again.
    fn born_again(&mut self, commands: &[CommandId], next_seq: u64) -> Effects {
        let state = self.stream_state(next_seq);
        let birth = Birth {
            v: VERSION,
            session: SessionId([self.session; 8]),
            epoch: self.session.into(),
            boot: [1; 8],
            instance: None,
            up_ms: 0,
            clock: Clock::Synced,
            time_ms: self.now_ms,
            interval_ms: 3_600_000,
            kind: String::new(),
            name: None,
            capabilities: Vec::new(),
            versions: Versions::default(),
            machine: BTreeMap::new(),
            lanes: [(Lane::Command, vec![state])].into(),
            partial: false,
            pending: Pending::default(),
            commands: Some(commands.to_vec()),
            config: None,
        };
        self.say(Input::Birth(Box::new(birth)))
    }

    fn stream_state(&self, next_seq: u64) -> StreamState {
        StreamState {
            stream: STREAM,
            floor_seq: self.seq,
            floor_record: self.seq,
            next_seq,
            next_record: next_seq,
            counted: next_seq - self.seq,
            tombstoned: 0,
        }
    }

    fn heartbeat(&mut self, next_seq: u64) -> Effects {
        let heartbeat = Heartbeat {
            v: VERSION,
            session: SessionId([self.session; 8]),
            boot: [1; 8],
            up_ms: 0,
            clock: Clock::Synced,
            time_ms: self.now_ms,
            interval_ms: 3_600_000,
            system: BTreeMap::new(),
            lanes: [(Lane::Command, vec![self.stream_state(next_seq)])].into(),
            partial: false,
            pending: Pending::default(),
            outbox: OutboxUse::default(),
            config: None,
        };
        self.say(Input::Heartbeat(Box::new(heartbeat)))
    }

    fn report(&mut self, id: CommandId, state: State) -> Effects {
        let (time_ms, seq) = (self.now_ms, self.seq);
        self.seq += 1;
        let reports = vec![Report {
            id,
            state,
            time_ms,
            reason: None,
            exit_code: None,
            output: None,
            result: None,
            too_late: false,
        }];
        let batch = Batch {
            v: VERSION,
            stream: STREAM,
            seq,
            seq_to: None,
            first: seq,
            count: 1,
            boot: [1; 8],
            up_ms: 0,
            clock: Clock::Synced,
            sealed_ms: time_ms,
            lost: None,
            body: Vec::new(),
        };
        let digest = u64::from(id.0[0]).wrapping_add(seq << 8).to_le_bytes();
        self.say(Input::Batch { lane: Lane::Command, batch, digest, body: Body::Reports(reports) })
    }

    fn say(&mut self, input: Input) -> Effects {
        let now = self.now();
        self.take(|fleet, effects| intake::take(fleet, effects, &node("a"), input, 2, now))
    }

    fn cancel(&mut self, id: CommandId) -> Effects {
        let now = self.now();
        self.take(|fleet, effects| cancel(fleet, &mut effects.commands, id, None, now))
    }
}

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn word(text: &str) -> MetricName {
    MetricName::parse(text).unwrap()
}

fn ping(nodes: &[&str]) -> Wanted {
    Wanted {
        id: CommandId([0; 16]),
        by: "operator test".to_owned(),
        nodes: nodes.iter().map(|name| node(name)).collect(),
        kind: word("ping"),
        params: Value::Null,
        queue: word("main"),
        priority: 0,
        idempotent: false,
        supersedes: None,
        ttl: Duration::from_secs(600),
        timeout: Duration::from_secs(60),
        not_before_ms: None,
        rate: None,
        selector: None,
    }
}

/// Ids offered to `a`, and ids to be canceled there; none when it is told nothing.
fn told(effects: &Effects) -> Option<(Vec<CommandId>, Vec<CommandId>)> {
    let (_, orders) = effects.orders.iter().find(|(to, _)| *to == node("a"))?;
    Some((orders.offers.iter().map(|offer| offer.id).collect(), orders.cancels.clone()))
}

/// What is left of the time of each that is offered to `a`, in milliseconds.
fn left(effects: &Effects) -> Vec<u64> {
    let orders = effects.orders.iter().filter(|(to, _)| *to == node("a"));
    orders.flat_map(|(_, orders)| orders.offers.iter().map(|offer| offer.left_ms)).collect()
}

/// The state of a command at `a` by the rows that are to be written, and the code of its reason.
fn ended(effects: &Effects, id: CommandId) -> Option<(State, String)> {
    let row = effects.rows.get(&(id, 1))?;
    let step = row.execution.history.last().unwrap();
    Some((step.state, step.reason.as_ref().map(|why| why.code.clone()).unwrap_or_default()))
}

fn is(state: State, code: &str) -> Option<(State, String)> {
    Some((state, code.to_owned()))
}

#[test]
fn an_online_node_is_told_with_the_call_and_the_row_says_sent() {
    let mut scene = Scene::new();
    scene.born(&[], 1);
    let (id, effects) = scene.make(ping(&["a", "b"]));
    assert_eq!(told(&effects), Some((vec![id], vec![])));
    assert_eq!(ended(&effects, id), is(State::Sent, ""));
    assert_eq!(effects.rows[&(id, 2)].execution.state(), State::Queued);
    assert_eq!(effects.orders[0].1.offers[0].left_ms, 600_000);
    assert_eq!(told(&scene.wait(9)), None);
}

#[test]
fn what_is_not_accepted_is_told_again_later_and_later() {
    let mut scene = Scene::new();
    scene.born(&[], 1);
    let (id, _) = scene.make(ping(&["a"]));
    let mut at = Vec::new();
    for second in 1..=220 {
        if told(&scene.wait(1)).is_some() {
            at.push(second);
        }
    }
    assert_eq!(at, [10, 40, 100, 160, 220]);
    scene.report(id, State::Accepted);
    assert_eq!(told(&scene.wait(300)), None);
}

#[test]
fn an_offline_node_is_told_at_its_birth_or_never() {
    let mut scene = Scene::new();
    let (first, _) = scene.make(ping(&["a"]));
    let effects = scene.wait(600);
    assert_eq!(ended(&effects, first), is(State::Expired, "not_sent"));
    let (second, _) = scene.make(ping(&["a"]));
    scene.wait(100);
    let effects = scene.born(&[], 1);
    assert_eq!(told(&effects), Some((vec![second], vec![])));
    assert_eq!(effects.orders[0].1.offers[0].left_ms, 500_000);
}

#[test]
fn an_agent_that_takes_no_commands_is_told_none() {
    let mut scene = Scene::new();
    scene.fleet.commands.agendas.entry(1).or_default().takes = false;
    let (id, effects) = scene.make(ping(&["a"]));
    assert_eq!((told(&effects), ended(&effects, id)), (None, is(State::Queued, "")));
}

#[test]
fn what_was_accepted_and_is_gone_is_not_done_twice() {
    let mut scene = Scene::new();
    scene.born(&[], 1);
    let (once, _) = scene.make(ping(&["a"]));
    let (often, _) = scene.make(Wanted { idempotent: true, ..ping(&["a"]) });
    scene.report(once, State::Accepted);
    scene.report(often, State::Accepted);
    // It has reported one thing more than has come: nothing is proved yet.
    let effects = scene.born(&[], 4);
    assert_eq!((told(&effects), ended(&effects, once)), (None, None));
    let effects = scene.report(CommandId([99; 16]), State::Running);
    assert_eq!(ended(&effects, once), is(State::Failed, "agent_state_lost"));
    assert!(
        effects.rows[&(once, 1)].execution.history.last().unwrap().reason.as_ref().unwrap().may_have_executed
    );
    assert_eq!(told(&effects), Some((vec![often], vec![])));
    // The same birth once more proves nothing against what was offered since.
    let effects = scene.born_again(&[], 4);
    assert_eq!((told(&effects), ended(&effects, often)), (Some((vec![often], vec![])), None));
    let effects = scene.report(often, State::Succeeded);
    assert_eq!(ended(&effects, often), is(State::Succeeded, ""));
}

#[test]
fn what_was_sent_and_never_arrived_is_told_again_or_expires_by_proof() {
    let mut scene = Scene::new();
    scene.born(&[], 1);
    let (id, _) = scene.make(ping(&["a"]));
    assert_eq!(told(&scene.born(&[], 1)), Some((vec![id], vec![])));
    let effects = scene.wait(700);
    assert_eq!((told(&effects), ended(&effects, id)), (Some((vec![id], vec![])), None));
    let effects = scene.born(&[], 1);
    assert_eq!(ended(&effects, id), is(State::Expired, "not_received"));
    assert_eq!(scene.fleet.commands.waiting(), Waiting::default());
}

#[test]
fn what_was_offered_in_a_session_is_asked_for_when_its_time_is_over() {
    let mut scene = Scene::new();
    scene.born(&[], 1);
    let (id, _) = scene.make(ping(&["a"]));
    let effects = scene.wait(600);
    assert_eq!((told(&effects), left(&effects)), (Some((vec![id], vec![])), vec![0]));
    // What may still run comes first.
    let (next, effects) = scene.make(ping(&["a"]));
    assert_eq!((told(&effects), left(&effects)), (Some((vec![next, id], vec![])), vec![600_000, 0]));
    scene.report(next, State::Accepted);
    assert_eq!(told(&scene.wait(9)), None);
    assert_eq!(told(&scene.wait(1)), Some((vec![id], vec![])));
    let effects = scene.report(id, State::Succeeded);
    assert_eq!(ended(&effects, id), is(State::Succeeded, ""));
    assert_eq!(told(&scene.wait(100)), None);
}

#[test]
fn what_was_offered_anew_is_asked_for_when_its_time_is_over() {
    let mut scene = Scene::new();
    scene.born(&[], 1);
    let (id, _) = scene.make(Wanted { idempotent: true, ..ping(&["a"]) });
    scene.report(id, State::Accepted);
    assert_eq!(told(&scene.wait(600)), None, "the node has it");
    let (id, _) = scene.make(Wanted { idempotent: true, ..ping(&["a"]) });
    scene.report(id, State::Accepted);
    assert_eq!(told(&scene.born(&[], 3)), Some((vec![id], vec![])));
    let effects = scene.wait(600);
    assert_eq!((told(&effects), left(&effects)), (Some((vec![id], vec![])), vec![0]));
    let effects = scene.report(id, State::Expired);
    assert_eq!(ended(&effects, id), is(State::Expired, ""));
}

#[test]
fn what_was_made_by_a_clock_that_was_years_ahead_is_asked_for_with_nothing_left() {
    let mut scene = Scene::new();
    scene.born(&[], 1);
    scene.now_ms += 315_360_000_000;
    let (old, _) = scene.make(ping(&["a"]));
    scene.now_ms -= 315_360_000_000;
    let (new, effects) = scene.make(ping(&["a"]));
    assert_eq!((told(&effects), left(&effects)), (Some((vec![new, old], vec![])), vec![600_000, 0]));
}

#[test]
fn what_a_node_still_has_is_waited_for_but_not_for_ever() {
    let mut scene = Scene::new();
    scene.born(&[], 1);
    let (id, _) = scene.make(ping(&["a"]));
    scene.wait(700);
    let effects = scene.born(&[id], 1);
    assert_eq!(ended(&effects, id), None);
    let effects = scene.wait(7 * 24 * 3_600);
    assert_eq!(ended(&effects, id), is(State::Expired, "unsettled"));
    let effects = scene.report(id, State::Succeeded);
    assert_eq!((effects.rows.len(), effects.reports[0].kept), (0, Kept::Unsure));
}

#[test]
fn a_cancel_is_at_once_here_and_asked_for_there() {
    let mut scene = Scene::new();
    let (first, _) = scene.make(ping(&["a"]));
    assert_eq!(ended(&scene.cancel(first), first), is(State::Canceled, "canceled"));
    scene.born(&[], 1);
    let (second, _) = scene.make(ping(&["a"]));
    let effects = scene.cancel(second);
    assert_eq!(told(&effects), Some((vec![], vec![second])));
    assert_eq!(ended(&effects, second), is(State::Sent, ""));
    assert_eq!(told(&scene.cancel(second)), None);
    assert_eq!(told(&scene.wait(10)), Some((vec![], vec![second])));
    scene.report(second, State::Canceled);
    assert_eq!(told(&scene.wait(100)), None);
}

#[test]
fn a_canceled_one_that_never_arrived_ends_with_the_next_birth() {
    let mut scene = Scene::new();
    scene.born(&[], 1);
    let (id, _) = scene.make(ping(&["a"]));
    scene.cancel(id);
    assert_eq!(ended(&scene.born(&[], 1), id), is(State::Canceled, "canceled"));
}

#[test]
fn a_newer_command_takes_the_place_of_a_waiting_one_with_its_key() {
    let mut scene = Scene::new();
    let keyed = || Wanted { supersedes: Some(word("led")), ..ping(&["a"]) };
    let (first, _) = scene.make(keyed());
    let (other, _) = scene.make(ping(&["a"]));
    let (second, effects) = scene.make(keyed());
    assert_eq!(ended(&effects, first), is(State::Superseded, "superseded"));
    assert_eq!(told(&scene.born(&[], 1)), Some((vec![other, second], vec![])));
}

#[test]
fn the_first_of_each_queue_comes_first_and_a_message_has_an_end() {
    let mut scene = Scene::new();
    let large = || Wanted { params: Value::Bytes(vec![0; 60_000]), ..ping(&["a"]) };
    let ids: Vec<_> = (0..5).map(|_| scene.make(large()).0).collect();
    let (urgent, _) = scene.make(Wanted { priority: 5, ..ping(&["a"]) });
    let effects = scene.born(&[], 1);
    assert_eq!(told(&effects), Some((vec![urgent, ids[0], ids[1], ids[2]], vec![])));
    assert!(cbor_len(&effects) < limits::PACKET_BYTES, "{}", cbor_len(&effects));
    scene.report(urgent, State::Accepted);
    let effects = scene.report(ids[0], State::Accepted);
    assert_eq!(told(&effects), Some((vec![ids[1], ids[2], ids[3]], vec![])));
}

fn cbor_len(effects: &Effects) -> usize {
    fleet_schemas::cbor::encode(&effects.orders[0].1).len()
}

#[test]
fn a_command_waits_for_its_time_and_its_turn() {
    let mut scene = Scene::new();
    scene.born(&[], 1);
    let later = Wanted { not_before_ms: Some(START + 300_000), ..ping(&["a"]) };
    let (id, effects) = scene.make(later);
    assert_eq!(told(&effects), None);
    assert_eq!(told(&scene.wait(239)), None);
    let effects = scene.wait(1);
    assert_eq!(told(&effects), Some((vec![id], vec![])));
    assert_eq!(
        (effects.orders[0].1.offers[0].delay_ms, effects.orders[0].1.offers[0].left_ms),
        (60_000, 660_000)
    );
    let paced = Wanted { rate: Some(Rate { per_s: 0.5, per_site: None }), ..ping(&["b", "a"]) };
    let (id, effects) = scene.make(paced);
    assert_eq!((told(&effects), ended(&effects, id)), (None, is(State::Queued, "")));
    assert_eq!(told(&scene.wait(1)), None);
    let offered = told(&scene.wait(1)).unwrap().0;
    assert!(offered.contains(&id), "{offered:?}");
}

#[test]
fn wrong_commands_are_refused_by_their_field() {
    let mut scene = Scene::new();
    let pointer = |error| match error {
        RegistryError::Field { pointer, .. } => pointer,
        other => other.to_string(),
    };
    let large = Value::Bytes(vec![0; limits::COMMAND_PARAMS_BYTES]);
    let deep = (0..20).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
    let week = Duration::from_secs(7 * 24 * 3_600);
    let cases = [
        (Wanted { kind: word("dance"), ..ping(&["a"]) }, "/kind"),
        (Wanted { params: large, ..ping(&["a"]) }, "/params"),
        (Wanted { params: deep, ..ping(&["a"]) }, "/params"),
        (ping(&[]), "/nodes"),
        (Wanted { ttl: Duration::ZERO, ..ping(&["a"]) }, "/ttl_s"),
        (Wanted { timeout: week * 2, ..ping(&["a"]) }, "/timeout_s"),
        (Wanted { ttl: week, not_before_ms: Some(START + 1_000), ..ping(&["a"]) }, "/not_before_ms"),
        (Wanted { rate: Some(Rate { per_s: 0.0, per_site: None }), ..ping(&["a"]) }, "/rate/per_s"),
        (Wanted { rate: Some(Rate { per_s: 0.001, per_site: None }), ..ping(&["a", "b"]) }, "/rate"),
        (ping(&["nobody"]), "there is no node \"nobody\""),
    ];
    for (wanted, expected) in cases {
        assert_eq!(pointer(scene.refused(wanted)), expected);
    }
    for n in 0..limits::QUEUE_LENGTH {
        let id = CommandId(u128::try_from(n).unwrap().to_be_bytes());
        let now = scene.now();
        make(&mut scene.fleet, &mut Effects::default(), Wanted { id, ..ping(&["a"]) }, now).unwrap();
    }
    let id = CommandId([255; 16]);
    assert_eq!(pointer(scene.refused(Wanted { id, ..ping(&["a", "b"]) })), "/nodes");
    assert!(!scene.fleet.commands.commands.contains_key(&id));
}

#[test]
fn output_ends_at_its_limit_and_is_told() {
    use fleet_schemas::command::Output;
    let mut scene = Scene::new();
    scene.born(&[], 1);
    let (id, _) = scene.make(ping(&["a"]));
    let mut effects = Effects::default();
    for n in 0..3 {
        let output = Output { from: n * 30_000, bytes: vec![b'x'; 30_000], cut: false };
        let report = Report {
            id,
            state: State::Running,
            time_ms: START,
            reason: None,
            exit_code: None,
            output: Some(output),
            result: None,
            too_late: false,
        };
        let new = NewReport { node: 1, recv_ms: START, at_ms: START, report, kept: Kept::Execution };
        super::report(&mut scene.fleet.commands, &mut effects, new);
    }
    let kept: usize =
        effects.reports.iter().filter_map(|new| new.report.output.as_ref()).map(|o| o.bytes.len()).sum();
    assert_eq!(kept, limits::COMMAND_OUTPUT_BYTES);
    assert!(effects.rows[&(id, 1)].execution.cut);
    assert_eq!(effects.changes.len(), 3);
}

#[test]
fn a_node_that_loses_its_place_loses_what_waits_for_it() {
    let mut scene = Scene::new();
    let (id, _) = scene.make(ping(&["a"]));
    let now = scene.now();
    let effects = scene.take(|fleet, effects| abandon(fleet, &mut effects.commands, &node("a"), now));
    assert_eq!(ended(&effects, id), is(State::Failed, "replaced"));
    assert_eq!(scene.fleet.commands.waiting(), Waiting::default());
    assert!(scene.fleet.commands.agendas.is_empty() && scene.fleet.commands.due.is_empty());
}

#[test]
fn a_card_that_was_set_back_leaves_doubt() {
    let mut scene = Scene::new();
    scene.born(&[], 1);
    scene.born(&[], 1);
    let (once, _) = scene.make(ping(&["a"]));
    let (often, _) = scene.make(Wanted { idempotent: true, ..ping(&["a"]) });
    // Its count of sessions begins again.
    scene.session = 0;
    scene.fleet.nodes.get_mut(&node("a")).unwrap().record.session = Some(SessionId([77; 8]));
    let effects = scene.born(&[], 1);
    assert_eq!(ended(&effects, once), is(State::Failed, "agent_state_lost"));
    assert_eq!(told(&effects), Some((vec![often], vec![])));
}

#[test]
fn what_was_made_by_a_clock_that_was_years_ahead_is_not_told_for_years() {
    let mut scene = Scene::new();
    scene.now_ms += 315_360_000_000;
    let (queued, _) = scene.make(ping(&["b"]));
    let (waiting, _) = scene.make(ping(&["a"]));
    scene.born(&[], 1);
    // The hub's next start: its clock is right.
    scene.now_ms -= 315_360_000_000;
    scene.fleet.commands.touch(2);
    let effects = scene.born(&[], 1);
    assert_eq!(told(&effects), None);
    assert_eq!(ended(&effects, waiting), is(State::Expired, "not_received"));
    assert_eq!(effects.rows[&(queued, 2)].execution.state(), State::Expired);
}

#[test]
fn a_forked_stream_of_which_nothing_is_owed_is_not_waited_for() {
    let mut scene = Scene::new();
    scene.born(&[], 1);
    let (id, _) = scene.make(Wanted { idempotent: true, ..ping(&["a"]) });
    scene.report(id, State::Accepted);
    // The twin of its card has something else under the number, and is told so.
    scene.seq = 1;
    scene.report(CommandId([98; 16]), State::Running);
    // The machine that stays lists what it keeps for a hub that is set back: batch 1, which is acked.
    scene.seq = 1;
    let effects = scene.born(&[], 2);
    assert_eq!((told(&effects), ended(&effects, id)), (None, None), "a birth alone says nothing of a fork");
    let effects = scene.heartbeat(2);
    assert_eq!(told(&effects), Some((vec![id], vec![])));
}

#[test]
fn a_fork_that_was_told_is_waited_for_until_it_is_sealed_anew() {
    let mut scene = Scene::new();
    scene.born(&[], 1);
    let (id, _) = scene.make(Wanted { idempotent: true, ..ping(&["a"]) });
    scene.report(id, State::Accepted);
    scene.seq = 1;
    scene.born(&[], 3);
    scene.report(CommandId([98; 16]), State::Running);
    scene.seq = 1;
    let effects = scene.heartbeat(2);
    assert_eq!((told(&effects), ended(&effects, id)), (None, None));
    let effects = scene.heartbeat(1);
    assert_eq!(told(&effects), Some((vec![id], vec![])));
}

/// The scene as a store has it that was restored from a backup of now: what is in doubt is held. Gives how many are.
fn restore(scene: &mut Scene) -> u64 {
    let at = scene.fleet.commands.open_at(1).into_iter();
    let mut open: Vec<_> = at.map(|at| ((*at.command).clone(), vec![(1, at.execution)])).collect();
    let mut effects = Effects::default();
    let held = hold(&mut effects, &mut open);
    assert_eq!(effects.rows.len() as u64, held);
    let last = open.iter().map(|(command, _)| command.no).max().unwrap_or(0);
    scene.fleet.commands = Dispatch::new(last, open);
    held
}

#[test]
fn what_a_restored_hub_is_in_doubt_of_waits_for_an_operator() {
    let mut scene = Scene::new();
    let (once, _) = scene.make(ping(&["a"]));
    let (again, _) = scene.make(Wanted { idempotent: true, ..ping(&["a"]) });
    assert_eq!(restore(&mut scene), 1);
    assert_eq!(told(&scene.born(&[], 1)), Some((vec![again], vec![])), "what may be done twice goes on");
    assert_eq!(scene.fleet.commands.held_of(&once), 1);
    let approved = scene.take(|fleet, effects| approve(fleet, &mut effects.commands, once, None));
    assert!(told(&approved).is_some_and(|(offers, _)| offers.contains(&once)), "{approved:?}");
    assert_eq!((ended(&approved, once).unwrap().0, scene.fleet.commands.held()), (State::Sent, 0));
    // Nothing of it is held any more: a second word changes nothing.
    let again = scene.take(|fleet, effects| approve(fleet, &mut effects.commands, once, None));
    assert!(again.rows.is_empty());
}

#[test]
fn what_is_held_ends_by_its_time_by_a_cancel_or_by_the_nodes_own_word() {
    for (end, state) in [(0, State::Expired), (1, State::Canceled), (2, State::Succeeded)] {
        let mut scene = Scene::new();
        let (id, _) = scene.make(ping(&["a"]));
        assert_eq!(restore(&mut scene), 1);
        scene.born(&[], 1);
        let effects = match end {
            0 => scene.wait(601),
            1 => scene.cancel(id),
            _ => scene.report(id, State::Succeeded),
        };
        let step = effects.rows[&(id, 1)].execution.history.last().unwrap().clone();
        assert_eq!(step.state, state);
        let may = step.reason.is_some_and(|why| why.may_have_executed);
        assert_eq!(may, end < 2, "only the node knows");
        assert!(!effects.rows[&(id, 1)].execution.is_held());
    }
}

#[test]
fn what_the_node_has_accepted_is_not_held() {
    let mut scene = Scene::new();
    let (id, _) = scene.make(ping(&["a"]));
    scene.born(&[], 1);
    scene.report(id, State::Accepted);
    assert_eq!(restore(&mut scene), 0);
    assert_eq!(told(&scene.born(&[id], 2)), None, "and never sent again");
}
