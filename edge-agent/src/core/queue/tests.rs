//! What the queues decide, told by their effects.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ciborium::Value;
use fleet_schemas::{
    CommandId, MetricName, SessionId, StoreId, VERSION,
    batch::Clock,
    command::{Offer, Orders, Report, State},
    limits,
};
use proptest::prelude::*;

use super::*;
use crate::core::Now;

const HUB_MS: i64 = 1_790_000_000_000;

fn at(up_s: u64) -> Time {
    in_boot(1, up_s, Some(HUB_MS + up_s as i64 * 1_000))
}

fn in_boot(boot: u8, up_s: u64, true_ms: Option<i64>) -> Time {
    let now = Now { wall_ms: 0, up: Duration::from_secs(up_s), clock: Clock::Unsynced };
    Time { now, boot: [boot; 8], true_ms }
}

fn name(text: &str) -> MetricName {
    MetricName::parse(text).unwrap()
}

fn id(number: u64) -> CommandId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    CommandId(bytes)
}

fn number(id: CommandId) -> u64 {
    u64::from_be_bytes(*id.0.last_chunk().unwrap())
}

fn offer(number: u64) -> Offer {
    Offer {
        id: id(number),
        no: number,
        queue: name("main"),
        priority: 0,
        kind: name("exec"),
        params: Value::Null,
        left_ms: 60_000,
        delay_ms: 0,
        timeout_ms: 10_000,
        idempotent: false,
        supersedes: None,
        signature: None,
    }
}

fn orders(offers: Vec<Offer>, cancels: Vec<CommandId>) -> Orders {
    let (store_id, session) = (StoreId([1; 16]), SessionId([1; 8]));
    Orders { v: VERSION, store_id, session, hub_ms: HUB_MS, offers, cancels }
}

/// Queues with what a shell does for them: it keeps results, and knows what was started.
#[derive(Default)]
struct Node {
    queues: Queues,
    over: BTreeMap<CommandId, Over>,
    disk: BTreeMap<CommandId, Held>,
    reports: Vec<Report>,
    started: Vec<u64>,
    stopped: Vec<(u64, Ending)>,
    refused: BTreeMap<CommandId, Reason>,
    drained: bool,
}

impl Node {
    fn carry_out(&mut self, effects: Effects) {
        for change in effects.writes {
            match change {
                Change::Hold(held) => drop(self.disk.insert(held.command.id, *held)),
                Change::Over(over) => {
                    self.disk.remove(&over.id);
                    assert_eq!(self.over.insert(over.id, *over), None, "it ends once");
                }
                Change::Amend(over) => assert!(self.over.insert(over.id, *over).is_some()),
            }
        }
        self.reports.extend(effects.reports);
        for act in effects.acts {
            match act {
                Act::Start(command) => self.started.push(number(command.id)),
                Act::Stop(id, why) => self.stopped.push((number(id), why)),
            }
        }
    }

    fn order(&mut self, offers: Vec<Offer>, cancels: Vec<CommandId>, time: Time) {
        let view = View {
            known: self.over.clone(),
            refused: self.refused.clone(),
            drained: self.drained,
            age: Duration::ZERO,
            room: true,
        };
        let effects = self.queues.take_orders(&orders(offers, cancels), &view, &time);
        self.carry_out(effects);
        self.advance(time);
    }

    fn advance(&mut self, time: Time) {
        let effects = self.queues.advance(&time);
        self.carry_out(effects);
        assert!(self.queues.due().is_none_or(|due| due > time.now.up), "what is due is done");
    }

    fn finish(&mut self, number: u64, end: End, time: Time) -> bool {
        let Some(effects) = self.queues.finish(id(number), end, &time) else { return false };
        self.carry_out(effects);
        self.advance(time);
        true
    }

    /// The process dies; what is on disk is found again.
    fn restart(&mut self) {
        let held: Vec<Held> = self.disk.values().cloned().map(bare).collect();
        let next_order = self.over.len() as u64 + 1;
        self.queues = Queues::found(held, next_order);
    }

    fn states(&mut self) -> Vec<(u64, State)> {
        std::mem::take(&mut self.reports).iter().map(|said| (number(said.id), said.state)).collect()
    }
}

/// What a row keeps.
fn bare(mut held: Held) -> Held {
    if let Stage::Running(run) = &mut held.stage {
        run.live = Live::default();
    }
    held
}

const DONE: End = End::Exited { code: 0 };

#[test]
fn one_of_a_queue_runs_at_a_time_and_queues_run_side_by_side() {
    let mut node = Node::default();
    let other = |number| Offer { queue: name("other"), ..offer(number) };
    node.order(vec![offer(1), offer(2), other(3)], vec![], at(0));
    assert_eq!(node.started, [1, 3]);
    use State::{Accepted, Running, Succeeded};
    assert_eq!(node.states(), [(1, Accepted), (2, Accepted), (3, Accepted), (1, Running), (3, Running)]);
    assert!(node.finish(1, DONE, at(1)));
    assert_eq!(node.started, [1, 3, 2]);
    assert_eq!(node.states(), [(1, Succeeded), (2, Running)]);
    assert!(!node.finish(1, DONE, at(2)), "it is over");
}

#[test]
fn priority_goes_before_number_and_number_before_arrival() {
    let mut node = Node::default();
    let urgent = Offer { priority: 5, ..offer(4) };
    node.order(vec![offer(1)], vec![], at(0));
    node.order(vec![offer(3), offer(2), urgent], vec![], at(0));
    for number in [1, 4, 2, 3] {
        assert_eq!(node.started.last(), Some(&number));
        node.finish(number, DONE, at(1));
    }
}

#[test]
fn at_most_eight_run_at_a_time() {
    let mut node = Node::default();
    let offers = (1..=20).map(|number| Offer { queue: name(&format!("q{number}")), ..offer(number) });
    node.order(offers.collect(), vec![], at(0));
    assert_eq!(node.started, (1..=8).collect::<Vec<_>>());
    node.finish(3, DONE, at(1));
    assert_eq!(node.started.last(), Some(&9));
}

#[test]
fn an_id_that_is_known_is_never_taken_twice() {
    let mut node = Node::default();
    node.order(vec![offer(1)], vec![], at(0));
    node.states();
    node.order(vec![offer(1)], vec![], at(1));
    assert_eq!(node.states(), [], "its report is on the way");
    node.drained = true;
    node.order(vec![offer(1)], vec![], at(2));
    assert_eq!(node.states(), [(1, State::Running)], "its report got lost");
    node.finish(1, End::Exited { code: 3 }, at(3));
    node.states();
    node.order(vec![offer(1)], vec![], at(4));
    assert_eq!(node.reports[0].exit_code, Some(3));
    assert_eq!((node.states(), node.started.len()), (vec![(1, State::Failed)], 1));
}

#[test]
fn what_is_not_done_here_is_refused_and_stays_so() {
    let mut node = Node::default();
    node.refused.insert(id(1), reason("unknown_kind", "no", false));
    node.order(vec![offer(1)], vec![], at(0));
    assert_eq!((node.states(), node.started.len()), (vec![(1, State::Rejected)], 0));
    node.refused.clear();
    node.order(vec![offer(1)], vec![], at(1));
    assert_eq!((node.states(), node.started.len()), (vec![], 0));
}

#[test]
fn a_full_queue_refuses_by_number_and_by_size() {
    let mut node = Node::default();
    let many = limits::QUEUE_LENGTH as u64;
    node.order((1..=many).map(offer).collect(), vec![], at(0));
    node.order(vec![offer(many + 1)], vec![], at(0));
    assert_eq!(node.over[&id(many + 1)].reason.as_ref().unwrap().code, "queue_full");
    let mut node = Node::default();
    let large = Value::Bytes(vec![0; 60 * 1024]);
    node.order(
        (1..=80).map(|number| Offer { params: large.clone(), ..offer(number) }).collect(),
        vec![],
        at(0),
    );
    let refused = node.over.values().filter(|over| over.state == State::Rejected).count();
    assert_eq!(refused, 80 - QUEUE_BYTES / (60 * 1024 + 3));
    let huge = Offer { params: Value::Bytes(vec![0; 64 * 1024]), ..offer(99) };
    node.order(vec![huge], vec![], at(0));
    assert_eq!(node.over[&id(99)].reason.as_ref().unwrap().code, "bad_params");
}

#[test]
fn nothing_begins_after_its_time_or_before_it() {
    let mut node = Node::default();
    let later = Offer { delay_ms: 30_000, ..offer(2) };
    node.order(vec![offer(1), later, offer(3)], vec![], at(0));
    assert_eq!(node.queues.due(), Some(Duration::from_secs(10)), "the timeout of the first");
    node.finish(1, DONE, at(5));
    assert_eq!(node.started, [1, 3], "one whose time has not come is not in line");
    node.finish(3, DONE, at(9));
    node.advance(at(29));
    assert_eq!(node.started, [1, 3]);
    node.advance(at(30));
    assert_eq!(node.started, [1, 3, 2]);
    node.order(vec![offer(4), Offer { left_ms: 0, ..offer(5) }], vec![], at(31));
    node.states();
    node.advance(at(40));
    assert_eq!(node.stopped, [(2, Ending::Timeout)]);
    node.advance(at(91));
    assert_eq!(node.states().last(), Some(&(4, State::Expired)), "it waited behind one that hung");
    assert_eq!(node.over[&id(5)].state, State::Expired);
    assert_eq!(node.started, [1, 3, 2]);
}

#[test]
fn what_takes_too_long_is_stopped_and_then_given_up() {
    let mut node = Node::default();
    node.order(vec![offer(1), offer(2)], vec![], at(0));
    node.advance(at(10));
    assert_eq!(node.stopped, [(1, Ending::Timeout)]);
    node.states();
    node.advance(at(20));
    assert_eq!(node.states(), [(1, State::TimedOut), (2, State::Running)], "its queue goes on");
    assert!(node.over[&id(1)].reason.as_ref().unwrap().may_have_executed);
    assert!(!node.finish(1, End::Stopped, at(21)));
    node.advance(at(30));
    assert!(node.finish(2, End::Stopped, at(31)));
    assert_eq!(node.states(), [(2, State::TimedOut)]);
}

#[test]
fn cancels_come_in_time_or_say_that_they_do_not() {
    let mut node = Node::default();
    node.order(vec![offer(1), offer(2)], vec![], at(0));
    node.states();
    node.order(vec![], vec![id(1), id(2)], at(1));
    assert_eq!(
        (node.states(), node.stopped.clone()),
        (vec![(2, State::Canceled)], vec![(1, Ending::Cancel)])
    );
    node.order(vec![], vec![id(1)], at(1));
    assert_eq!(node.stopped.len(), 1, "it is told once");
    node.finish(1, End::Stopped, at(2));
    assert_eq!(node.states(), [(1, State::Canceled)]);
    node.order(vec![offer(3)], vec![], at(3));
    node.finish(3, DONE, at(4));
    node.states();
    node.order(vec![], vec![id(3)], at(5));
    assert!(node.reports[0].too_late && node.reports[0].state == State::Succeeded);
    node.states();
    node.order(vec![], vec![id(3)], at(6));
    assert_eq!(node.states(), [], "it is said once");
    node.order(vec![offer(4)], vec![], at(7));
    node.order(vec![], vec![id(4)], at(7));
    node.finish(4, DONE, at(7));
    assert!(node.over[&id(4)].too_late, "it was faster than the cancel");
}

#[test]
fn a_cancel_may_overtake_its_command() {
    let mut node = Node::default();
    node.order(vec![], vec![id(1)], at(0));
    node.order(vec![offer(1)], vec![], at(1));
    assert_eq!((node.states(), node.started.len()), (vec![(1, State::Canceled)], 0));
    node.order(vec![offer(2)], vec![id(2)], at(1));
    assert_eq!((node.states(), node.started.len()), (vec![(2, State::Canceled)], 0));
}

#[test]
fn the_newest_of_a_key_takes_the_place_of_those_that_wait() {
    let mut node = Node::default();
    let keyed = |number| Offer { supersedes: Some(name("key")), ..offer(number) };
    node.order(vec![keyed(1), keyed(2), offer(3), keyed(5)], vec![], at(0));
    node.order(vec![keyed(4)], vec![], at(1));
    let superseded = |number| node.over.get(&id(number)).map(|over| over.state) == Some(State::Superseded);
    // The first had not begun when the second came.
    assert_eq!([1, 2, 3, 4, 5].map(superseded), [true, true, false, true, false]);
    assert_eq!(node.started, [3]);
    node.finish(3, DONE, at(1));
    node.order(vec![keyed(6)], vec![], at(2));
    assert_eq!(node.started, [3, 5], "what runs is not replaced");
}

#[test]
fn what_was_broken_off_begins_again_or_is_lost() {
    let mut node = Node::default();
    let again = |number| Offer { idempotent: true, queue: name("again"), ..offer(number) };
    let restart = Offer { kind: name(RESTART), queue: name("restart"), ..offer(4) };
    node.order(vec![offer(1), again(2), again(3), restart], vec![], at(0));
    assert_eq!(node.started, [1, 2, 4]);
    node.states();
    node.restart();
    node.advance(at(1));
    assert_eq!(node.states(), [(1, State::Failed), (4, State::Succeeded)]);
    let lost = node.over[&id(1)].reason.clone().unwrap();
    assert_eq!((lost.code.as_str(), lost.may_have_executed), ("interrupted", true));
    assert_eq!(node.started, [1, 2, 4, 2], "it goes on before the one behind it");
    node.restart();
    node.advance(at(2));
    node.restart();
    node.advance(at(3));
    assert_eq!(node.over[&id(2)].state, State::Failed, "not for ever");
    assert_eq!(node.started, [1, 2, 4, 2, 2, 3]);
}

#[test]
fn what_this_process_runs_goes_on_when_the_file_is_opened_anew() {
    let mut node = Node::default();
    node.order(vec![offer(1)], vec![], at(0));
    node.restart();
    node.queues.claim(&BTreeSet::from([id(1)]));
    node.advance(at(1));
    assert!(node.finish(1, DONE, at(2)));
    assert_eq!(node.over[&id(1)].state, State::Succeeded);
}

#[test]
fn after_a_reboot_nothing_begins_until_somebody_tells_the_time() {
    let mut node = Node::default();
    node.order(vec![offer(1), offer(2)], vec![], at(0));
    node.restart();
    node.advance(in_boot(2, 5, None));
    assert_eq!(node.started, [1]);
    assert!(node.over.contains_key(&id(1)), "that it ran is known without the time");
    node.queues.stir();
    node.advance(in_boot(2, 6, Some(HUB_MS + 59_000)));
    assert_eq!(node.started, [1, 2]);
    node.order(vec![offer(3)], vec![], in_boot(2, 7, Some(HUB_MS + 60_000)));
    node.restart();
    node.advance(in_boot(3, 1, Some(HUB_MS + 120_000)));
    assert_eq!(node.over[&id(3)].state, State::Expired);
}

#[test]
fn output_is_kept_up_to_a_limit_and_says_what_is_missing() {
    let mut node = Node::default();
    node.order(vec![offer(1)], vec![], at(0));
    node.reports.clear();
    let chunk = vec![b'x'; 40 * 1024];
    for _ in 0..3 {
        let effects = node.queues.output(id(1), &chunk, true, &at(1));
        node.carry_out(effects);
    }
    let outputs: Vec<_> = node.reports.iter().map(|report| report.output.clone().unwrap()).collect();
    let mut next = 0;
    for output in &outputs {
        assert_eq!(output.from, next);
        next += output.bytes.len() as u64;
    }
    assert_eq!(next, limits::COMMAND_OUTPUT_BYTES as u64);
    assert_eq!(outputs.iter().filter(|output| output.cut).count(), 1);
}

#[test]
fn an_app_takes_a_command_and_ends_it_or_loses_it() {
    let mut node = Node::default();
    let local = |number, idempotent| {
        let params = Value::Map(vec![(Value::Text("kind".into()), Value::Text("blink".into()))]);
        Offer { kind: name(LOCAL), params, idempotent, timeout_ms: 100_000, ..offer(number) }
    };
    node.order(vec![local(1, false), local(2, true), local(3, false)], vec![], at(0));
    assert!(node.started.is_empty(), "the runner has no part in it");
    let lease = Duration::from_secs(10);
    let take = |kind: &str| Take { kinds: vec![kind.to_owned()], lease };
    assert_eq!(node.queues.take_local(&take("beep"), &at(1)), None);
    let taken = |node: &mut Node, up| {
        let (command, effects) = node.queues.take_local(&take("blink"), &at(up))?;
        node.carry_out(effects);
        node.advance(at(up));
        Some(number(command.id))
    };
    assert_eq!(taken(&mut node, 1), Some(1));
    assert_eq!(taken(&mut node, 1), None, "one of a queue at a time");
    assert!(node.queues.extend_local(id(1), lease, &at(9)).is_some());
    node.advance(at(18));
    assert!(node.over.is_empty());
    node.advance(at(19));
    assert_eq!(node.over[&id(1)].reason.as_ref().unwrap().code, "lease_lost");
    assert_eq!(taken(&mut node, 20), Some(2));
    node.advance(at(30));
    assert_eq!(taken(&mut node, 30), Some(2), "it is offered again");
    node.states();
    let said =
        LocalReport { succeeded: true, exit_code: None, message: None, result: None, output: b"hi".into() };
    let effects = node.queues.report_local(id(2), said.clone(), true, &at(31)).unwrap();
    node.carry_out(effects);
    assert_eq!(node.states(), [(2, State::Running), (2, State::Succeeded)]);
    assert_eq!(node.queues.report_local(id(2), said, true, &at(31)), None);
}

#[test]
fn a_program_on_the_node_may_ask_too() {
    let mut node = Node::default();
    node.order(vec![offer(7), offer(9)], vec![], at(0));
    let ask = Ask {
        id: id(100),
        queue: name("main"),
        priority: 0,
        kind: name("ping"),
        params: Value::Null,
        ttl: Duration::from_secs(60),
        timeout: Duration::from_secs(5),
        idempotent: true,
    };
    let effects = node.queues.ask(ask, &at(0)).unwrap();
    node.carry_out(effects);
    node.order(vec![offer(11)], vec![], at(0));
    for number in [7, 9, 100, 11] {
        assert_eq!(node.started.last(), Some(&number));
        node.finish(number, DONE, at(1));
    }
    assert!(node.reports.iter().all(|report| report.id != id(100)), "the hub does not know it");
}

/// One step of a run of one node.
#[derive(Debug, Clone)]
enum Step {
    Offer(Vec<u64>),
    Cancel(u64),
    Finish(usize, bool),
    Pass(u64),
    Kill,
    Reboot(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(0..24_u64, 1..6).prop_map(Step::Offer),
        1 => (0..24_u64).prop_map(Step::Cancel),
        4 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(at, ok)| Step::Finish(at.index(64), ok)),
        3 => (0..20_u64).prop_map(Step::Pass),
        1 => Just(Step::Kill),
        1 => any::<bool>().prop_map(Step::Reboot),
    ]
}

/// Every third is idempotent; four queues; some wait, some are urgent, some share a key.
fn varied(number: u64) -> Offer {
    Offer {
        queue: name(&format!("q{}", number % 4)),
        priority: if number.is_multiple_of(7) { 1 } else { 0 },
        idempotent: number.is_multiple_of(3),
        delay_ms: if number.is_multiple_of(5) { 5_000 } else { 0 },
        left_ms: 20_000 + number * 1_000,
        supersedes: number.is_multiple_of(6).then(|| name("key")),
        ..offer(number)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_promise_holds_whatever_happens(steps in prop::collection::vec(step(), 1..80)) {
        let mut node = Node::default();
        // When each was first offered, by true time: what decides whether it may begin.
        let mut closes = BTreeMap::new();
        let mut opens = BTreeMap::new();
        let (mut up, mut boot, mut since_start, mut told) = (0_u64, 1_u8, 0_u64, true);
        let mut looked = 0;
        for step in steps {
            let truth = HUB_MS + since_start as i64 * 1_000;
            let time = in_boot(boot, up, told.then_some(truth));
            match step {
                Step::Offer(numbers) => {
                    told = true;
                    let time = in_boot(boot, up, Some(truth));
                    node.queues.stir();
                    for number in &numbers {
                        closes.entry(*number).or_insert(truth + varied(*number).left_ms as i64);
                        opens.entry(*number).or_insert(truth + varied(*number).delay_ms as i64);
                    }
                    let mut offers: Vec<_> = numbers.into_iter().map(varied).collect();
                    offers.sort_by_key(|offer| offer.no);
                    node.order(offers, vec![], time);
                }
                Step::Cancel(number) => node.order(vec![], vec![id(number)], time),
                Step::Finish(at, ok) => {
                    let running = |held: &&Held| matches!(held.stage, Stage::Running(_));
                    let ids: Vec<_> = node.queues.held().filter(running).map(|held| held.command.id).collect();
                    if let Some(id) = ids.get(at % ids.len().max(1)) {
                        let end = if ok { DONE } else { End::Stopped };
                        node.finish(number(*id), end, time);
                    }
                }
                Step::Pass(seconds) => {
                    up += seconds;
                    since_start += seconds;
                    let truth = HUB_MS + since_start as i64 * 1_000;
                    node.advance(in_boot(boot, up, told.then_some(truth)));
                }
                Step::Kill => {
                    node.restart();
                    node.advance(time);
                }
                Step::Reboot(clock) => {
                    boot = boot.wrapping_add(1);
                    up = 0;
                    told = clock;
                    node.restart();
                    node.advance(in_boot(boot, 0, clock.then_some(truth)));
                }
            }
            let truth = HUB_MS + since_start as i64 * 1_000;
            for number in &node.started[looked..] {
                prop_assert!(truth < closes[number], "{number} began after its time");
                prop_assert!(truth >= opens[number], "{number} began before its time");
            }
            looked = node.started.len();
            let mut busy = BTreeSet::new();
            for held in node.queues.held() {
                prop_assert_eq!(node.disk.get(&held.command.id).cloned().map(bare), Some(bare(held.clone())));
                if let Stage::Running(_) = held.stage {
                    prop_assert!(busy.insert(held.command.queue.clone()), "two of a queue run");
                }
            }
        }
        let mut terminal = BTreeSet::new();
        let mut last: BTreeMap<CommandId, State> = BTreeMap::new();
        for report in &node.reports {
            let before = last.insert(report.id, report.state);
            prop_assert!(before.is_none_or(|before| before <= report.state), "{:?} went backwards", report.id);
            if report.state.is_terminal() && !report.too_late {
                prop_assert!(terminal.insert(report.id), "two ends of {:?}", report.id);
            }
        }
        let mut times: BTreeMap<u64, usize> = BTreeMap::new();
        for number in &node.started {
            *times.entry(*number).or_default() += 1;
        }
        for (number, times) in times {
            let most = if varied(number).idempotent { usize::from(ATTEMPTS) } else { 1 };
            prop_assert!(times <= most, "{number} ran {times} times");
        }
    }
}

#[test]
fn an_update_goes_on_after_every_start_gives_way_and_is_seen_to_its_end() {
    use fleet_schemas::update::{self, State as Update};
    let key = Some(name("update/skill/greeter"));
    let update = |number| Offer {
        kind: name(UPDATE),
        queue: name("update"),
        idempotent: true,
        supersedes: key.clone(),
        timeout_ms: 3_600_000,
        left_ms: 3_600_000,
        ..offer(number)
    };
    let report = |number: u64, state| {
        let reason = reason("why", "because", false);
        Box::new(update::Report {
            command: id(number),
            target: "skill/greeter/1.2.0/any".parse().unwrap(),
            digest: update::Digest([1; 32]),
            rollout: None,
            device: None,
            state,
            reason: (state != Update::Confirmed).then_some(reason),
            bytes: None,
            total: None,
            from: None,
        })
    };
    let mut node = Node::default();
    node.order(vec![update(1)], vec![], at(0));
    // As often as it takes, and also when it may not begin any more.
    for start in 1..=20 {
        node.restart();
        node.advance(at(start * 60));
    }
    assert_eq!(node.started, vec![1; 21]);
    assert_eq!(node.states().last(), Some(&(1, State::Running)));
    // A newer one waits, and the older is told; again after a start.
    node.order(vec![update(2)], vec![], at(1_300));
    node.restart();
    node.advance(at(1_301));
    assert_eq!(node.stopped, [(1, Ending::Superseded), (1, Ending::Superseded)]);
    // It had switched already: its end is waited for, and counts as it is.
    node.advance(at(1_301 + 2 * STOP_PATIENCE.as_secs()));
    node.states();
    assert!(node.finish(1, End::Updated(report(1, Update::Confirmed)), at(1_400)));
    assert_eq!(node.states(), [(1, State::Succeeded), (2, State::Running)]);
    let result = node.over[&id(1)].result.as_ref().unwrap();
    assert_eq!(update::Report::read(result), Some(*report(1, Update::Confirmed)));
    // A cancel that came too late says so.
    node.order(vec![], vec![id(2)], at(1_401));
    assert!(node.finish(2, End::Updated(report(2, Update::RolledBack)), at(1_402)));
    let over = &node.over[&id(2)];
    assert_eq!(
        (over.state, over.too_late, over.reason.as_ref().unwrap().code.as_str()),
        (State::Failed, true, "why")
    );
    for (number, (ends, state)) in (3..).zip([
        (Update::Canceled, State::Canceled),
        (Update::Superseded, State::Superseded),
        (Update::Rejected, State::Rejected),
        (Update::TimedOut, State::Failed),
    ]) {
        node.order(vec![update(number)], vec![], at(1_500));
        assert!(node.finish(number, End::Updated(report(number, ends)), at(1_500)));
        assert_eq!(node.over[&id(number)].state, state);
    }
}
