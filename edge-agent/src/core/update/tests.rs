//! Updates from order to end: what is told, what is done, and what a start makes of every stage.

use fleet_schemas::{
    MetricName,
    batch::Clock,
    update::{Digest, INCONCLUSIVE, State},
};

use super::*;
use crate::core::{Now, queue::Time};

const BOOT: [u8; 8] = [1; 8];

fn at(s: u64) -> Time {
    let now = Now { wall_ms: 0, up: Duration::from_secs(s), clock: Clock::Synced };
    Time { now, boot: BOOT, true_ms: Some(1_000 * i64::try_from(s).unwrap()) }
}

fn order() -> Order {
    let text = format!(r#"{{"target": "skill/greeter/1.2.0/any", "digest": "{}"}}"#, Digest([2; 32]));
    serde_json::from_str(&text).unwrap()
}

fn release(version: &str, digest: u8, epoch: u64) -> Release {
    Release { version: MetricName::parse(version).unwrap(), digest: Digest([digest; 32]), epoch }
}

fn found() -> Found {
    Found {
        digest: Digest([2; 32]),
        signed: Signed { length: 1_000, custom: Custom::default() },
        runs: Some(release("1.1.0", 1, 0)),
        needs: 3_000,
    }
}

fn view(history: &History) -> View<'_> {
    View {
        history,
        failures: 0,
        arch: "aarch64",
        gate: Gate::Open,
        free: Some(1 << 40),
        heard: None,
        probation: Duration::from_secs(60),
        reach: Duration::from_secs(100),
    }
}

fn fresh() -> Update {
    Update::new(CommandId([1; 16]), order(), Limit::after(Duration::from_secs(3_600), &at(0)))
}

/// Brought to a stage by the outcomes that lead there.
fn brought(to: State) -> Update {
    let history = History::default();
    let view = view(&history);
    let mut update = fresh();
    for input in [
        Input::Begin,
        Input::Verified(Ok(found())),
        Input::Arrived(Arrival::Whole),
        Input::Tick,
        Input::Installed(Ok(())),
        Input::Switched(Ok(Switched::Done)),
    ] {
        if update.state() == to {
            break;
        }
        update.decide(input, &view, &at(1));
    }
    assert_eq!(update.state(), to);
    update
}

fn code_of(update: &Update) -> (State, Option<&str>) {
    match &update.stage {
        Stage::Over(verdict) | Stage::Discarding(verdict) | Stage::Undoing(verdict) => {
            (verdict.state, verdict.code())
        }
        stage => panic!("{stage:?}"),
    }
}

/// The words are the schema's, for both ends; the codes are given here.
#[test]
fn what_says_nothing_of_a_release_is_called_so_by_both_ends() {
    let codes = [INCONCLUSIVE, code::NO_SPACE, code::DISK, code::DENIED, code::DIGEST, code::LENGTH];
    assert_eq!(fleet_schemas::update::HARMLESS, codes);
}

#[test]
fn a_good_release_goes_its_way_and_each_step_is_written_before_it_is_done() {
    let history = History::default();
    let mut view = view(&history);
    let mut update = fresh();
    let mut told = Vec::new();
    let way = [
        (1, Input::Begin, Next::Do(Step::Verify)),
        (1, Input::Verified(Ok(found())), Next::Wait(Duration::ZERO)),
        (2, Input::Arrived(Arrival::Whole), Next::Wait(Duration::ZERO)),
        (2, Input::Tick, Next::Do(Step::Install)),
        (3, Input::Installed(Ok(())), Next::Do(Step::Switch)),
        (4, Input::Switched(Ok(Switched::Done)), Next::Do(Step::Probe)),
    ];
    for (s, input, next) in way {
        let effects = update.decide(input, &view, &at(s));
        assert!(effects.write && effects.tell && !effects.failed);
        assert_eq!(effects.next, next);
        assert_eq!(effects.runs, (update.state() == State::Probation).then_some(Runs::New));
        told.push(update.state());
    }
    assert_eq!(told, State::ALL[1..7]);
    // Well, but the trial is not over; then it is, but the hub was not reached; then it was.
    view.heard = Some(Duration::from_secs(3));
    for s in [5, 63, 64, 100] {
        let effects = update.decide(Input::Probed(Health::Well), &view, &at(s));
        assert_eq!(effects, Effects { write: false, ..wait(PROBE_EVERY) });
    }
    view.heard = Some(Duration::from_secs(101));
    let effects = update.decide(Input::Probed(Health::Well), &view, &at(102));
    assert!(effects.write && !effects.tell, "it is on probation until that is final");
    assert_eq!(effects.next, Next::Do(Step::Commit));
    let effects = update.decide(Input::Committed(Ok(())), &view, &at(102));
    assert!(effects.write && effects.tell && effects.next == Next::Nothing);
    assert_eq!(update.state(), State::Confirmed);
    let history = effects.history.unwrap();
    assert_eq!(history.last_good(), Some(&release("1.2.0", 2, 0)));
    assert!(
        history.knows(Digest([1; 32])),
        "what ran before is a way back, also if it came with the machine"
    );
    assert_eq!(update.report(None).from, Some(Digest([1; 32])));
}

fn wait(span: Duration) -> Effects {
    Effects { write: true, history: None, failed: false, runs: None, tell: false, next: Next::Wait(span) }
}

/// The end of an update whose target was verified so.
fn judged(order: Order, found: Found, view: &View<'_>) -> (State, Option<String>) {
    let mut update = Update { order, ..fresh() };
    update.decide(Input::Begin, view, &at(1));
    let effects = update.decide(Input::Verified(Ok(found)), view, &at(1));
    assert!(effects.write && effects.tell);
    match update.stage {
        Stage::Over(verdict) => (verdict.state, verdict.reason.map(|reason| reason.code)),
        _ => (update.state(), None),
    }
}

#[test]
fn what_may_not_run_is_refused_with_its_reason() {
    let history = History::default().with(release("1.3.0", 3, 0)).with(release("1.1.0", 1, 2));
    let epoch = |epoch| Signed { length: 1, custom: Custom { epoch, ..Custom::default() } };
    let good = Found { signed: epoch(2), ..found() };
    let view = view(&history);
    let refused = |order: Order, found: Found, view: &View<'_>, why: &str| {
        assert_eq!(judged(order, found, view), (State::Rejected, Some(why.to_owned())));
    };
    let taken = |order: Order, found: Found, view: &View<'_>| {
        assert_eq!(judged(order, found, view), (State::Downloading, None));
    };
    taken(order(), good.clone(), &view);
    refused(order(), Found { digest: Digest([9; 32]), ..good.clone() }, &view, code::DIGEST);
    let with_target = |target: &str| Order { target: target.parse().unwrap(), ..order() };
    refused(with_target("skill/greeter/1.2.0/x86_64"), good.clone(), &view, code::ARCH);
    taken(with_target("skill/greeter/1.2.0/aarch64"), good.clone(), &view);
    refused(order(), Found { signed: epoch(1), ..good.clone() }, &view, code::EPOCH);
    let quarantined = View { failures: FAILURES, ..view };
    refused(order(), good.clone(), &quarantined, code::QUARANTINED);
    taken(Order { back: true, ..order() }, good.clone(), &quarantined);
    let higher = Found { runs: Some(release("1.10.0", 7, 0)), ..good.clone() };
    refused(order(), higher.clone(), &view, code::DOWNGRADE);
    let custom = Custom { downgrade: true, epoch: 2, ..Custom::default() };
    taken(order(), Found { signed: Signed { length: 1, custom }, ..higher.clone() }, &view);
    refused(Order { back: true, ..order() }, higher.clone(), &view, code::DOWNGRADE);
    let confirmed = history.with(release("1.2.0", 2, 2));
    let back = View { history: &confirmed, ..view };
    taken(Order { back: true, ..order() }, higher.clone(), &back);
    taken(with_target("firmware/rootfs/1.2.0/any"), higher, &view);
    let custom = Custom { min_from: Some("1.1.5".into()), epoch: 2, ..Custom::default() };
    refused(order(), Found { signed: Signed { length: 1, custom }, ..good.clone() }, &view, code::MIN_FROM);
    let full = View { free: Some(good.needs + RESERVE_BYTES - 1), ..view };
    refused(order(), good.clone(), &full, code::NO_SPACE);
    taken(order(), good.clone(), &View { free: Some(good.needs + RESERVE_BYTES), ..view });
    let hours = |hours: &str| {
        let window = fleet_schemas::update::Window { hours: Some(hours.into()), ..Default::default() };
        Order { window: Some(window), ..order() }
    };
    refused(hours("22-4"), good.clone(), &view, code::WINDOW);
    taken(hours("22:00-04:00"), good.clone(), &view);
    let runs = Found { runs: Some(release("1.2.0", 2, 0)), ..good };
    assert_eq!(judged(order(), runs, &view), (State::Confirmed, Some(code::RUNS.to_owned())));
}

#[test]
fn a_start_takes_up_every_stage_where_it_was() {
    let history = History::default();
    let view = view(&history);
    let steps = [
        (State::Accepted, Next::Do(Step::Verify)),
        (State::Downloading, Next::Wait(Duration::ZERO)),
        (State::Downloaded, Next::Wait(Duration::ZERO)),
        (State::Installing, Next::Do(Step::Install)),
        (State::Switching, Next::Do(Step::Switch)),
        (State::Probation, Next::Do(Step::Probe)),
    ];
    for (state, next) in steps {
        let before = brought(state);
        let bytes = fleet_schemas::cbor::encode(&before);
        let mut update: Update = fleet_schemas::cbor::decode(&bytes).unwrap();
        let effects = update.decide(Input::Begin, &view, &at(2));
        assert_eq!((effects.write, effects.tell, effects.next), (true, true, next), "{state:?}");
        assert_eq!(update.stage, before.stage);
    }
}

#[test]
fn a_step_that_ends_the_machine_each_time_is_given_up() {
    let history = History::default();
    let view = view(&history);
    for (state, end) in [
        (State::Installing, State::Failed),
        (State::Switching, State::RolledBack),
        (State::Probation, State::RolledBack),
    ] {
        let mut update = brought(state);
        for _ in 0..TRIES {
            let effects = update.decide(Input::Begin, &view, &at(2));
            assert_eq!(
                effects.next,
                Next::Do(match state {
                    State::Installing => Step::Install,
                    State::Switching => Step::Switch,
                    _ => Step::Probe,
                })
            );
        }
        update.decide(Input::Begin, &view, &at(2));
        assert_eq!(code_of(&update), (end, Some(code::RESTARTS)));
    }
}

#[test]
fn after_a_boot_the_trial_begins_again() {
    let history = History::default();
    let view = View { heard: Some(Duration::from_secs(5)), ..view(&history) };
    let mut update = brought(State::Probation);
    let boot = |s| Time { boot: [2; 8], ..at(s) };
    update.decide(Input::Begin, &view, &boot(3));
    assert!(!update.decide(Input::Probed(Health::Well), &view, &boot(62)).write);
    let effects = update.decide(Input::Probed(Health::Well), &view, &boot(63));
    assert_eq!(effects.next, Next::Do(Step::Commit));
}

#[test]
fn until_it_switches_it_can_be_called_off_and_times_out() {
    let history = History::default();
    let view = view(&history);
    let ends = [
        (Why::Cancel, State::Canceled),
        (Why::Timeout, State::TimedOut),
        (Why::Superseded, State::Superseded),
    ];
    for state in [State::Accepted, State::Downloading, State::Downloaded, State::Installing] {
        for (why, end) in ends {
            let mut update = brought(state);
            assert!(update.is_stoppable());
            let effects = update.decide(Input::Stop(why), &view, &at(2));
            assert!(effects.write);
            assert_eq!(code_of(&update).0, end);
            if state != State::Accepted {
                assert_eq!(effects.next, Next::Do(Step::Discard));
                assert_eq!(update.decide(Input::Discarded, &view, &at(2)).next, Next::Nothing);
            }
            assert_eq!(update.state(), end);
        }
        let mut late = brought(state);
        late.decide(Input::Tick, &view, &at(3_600));
        assert_eq!(code_of(&late), (State::TimedOut, Some(code::TIMED_OUT)));
    }
    for (state, why) in
        [(State::Switching, Why::Cancel), (State::Switching, Why::Timeout), (State::Probation, Why::Cancel)]
    {
        let mut update = brought(state);
        assert!(!update.is_stoppable());
        let before = update.clone();
        assert!(!update.decide(Input::Stop(why), &view, &at(2)).write);
        assert_eq!(update, before);
    }
}

#[test]
fn a_trial_that_is_not_passed_brings_back_what_ran() {
    let history = History::default();
    let view = View { heard: Some(Duration::from_secs(50)), ..view(&history) };
    let sick = Health::Sick(Trouble::lasting("crashed", "it ended"));
    let not_yet = || Health::NotYet("port closed".into());
    let cases = [
        (5, sick, State::RolledBack, "crashed"),
        (61, not_yet(), State::RolledBack, code::UNHEALTHY),
        (3_600, not_yet(), State::TimedOut, code::TIMED_OUT),
    ];
    for (s, health, state, why) in cases {
        let mut update = brought(State::Probation);
        let effects = update.decide(Input::Probed(health), &view, &at(s));
        assert_eq!((effects.write, effects.next), (true, Next::Do(Step::Undo)));
        assert_eq!(code_of(&update), (state, Some(why)));
        // What cannot be undone at once is tried again.
        let broken = Input::Undone(Err(Trouble::lasting("disk", "it hangs")));
        assert!(matches!(update.decide(broken, &view, &at(s)).next, Next::Again(_)));
        let effects = update.decide(Input::Undone(Ok(Switched::Done)), &view, &at(s));
        assert_eq!((effects.runs, effects.next), (Some(Runs::Before), Next::Do(Step::Discard)));
        let effects = update.decide(Input::Discarded, &view, &at(s));
        assert_eq!(effects.failed, state == State::RolledBack, "a late one may be tried again");
        assert_eq!((update.state(), effects.next), (state, Next::Nothing));
    }
}

#[test]
fn what_may_have_gone_back_and_what_cannot_is_not_tried_for_ever_and_not_claimed() {
    let history = History::default();
    let view = view(&history);
    let undoing = || {
        let mut update = brought(State::Probation);
        let sick = Health::Sick(Trouble::lasting("crashed", "it ended"));
        update.decide(Input::Probed(sick), &view, &at(5));
        update
    };
    let mut update = undoing();
    let unsure = Trouble::lasting(code::UNSURE, "nobody heard of it");
    let effects = update.decide(Input::Undone(Err(unsure)), &view, &at(6));
    assert_eq!((effects.runs, effects.next), (Some(Runs::Unknown), Next::Do(Step::Discard)));
    assert_eq!(code_of(&update), (State::Failed, Some("crashed")));
    update.decide(Input::Discarded, &view, &at(7));
    let message = update.report(None).reason.unwrap().message;
    assert_eq!(message, "it ended; nobody heard of it");
    let mut update = undoing();
    let no_way = Trouble::lasting(code::UNDO, "it is not kept");
    let effects = update.decide(Input::Undone(Err(no_way)), &view, &at(6));
    assert_eq!((effects.runs, effects.next), (None, Next::Nothing));
    assert_eq!(code_of(&update), (State::Failed, Some(code::UNDO)));
}

#[test]
fn whether_the_link_or_the_release_is_to_blame_is_seen_by_going_back() {
    let history = History::default();
    let mut view = view(&history);
    for (heard, end, failed) in
        [(Some(Duration::from_secs(165)), code::NO_HUB, true), (None, INCONCLUSIVE, false)]
    {
        let mut update = brought(State::Probation);
        view.heard = None;
        assert!(!update.decide(Input::Probed(Health::Well), &view, &at(160)).write);
        update.decide(Input::Probed(Health::Well), &view, &at(161));
        assert_eq!(code_of(&update), (State::RolledBack, Some(code::NO_HUB)));
        update.decide(Input::Undone(Ok(Switched::Done)), &view, &at(162));
        view.heard = heard;
        let mut s = 163;
        while let Stage::Judging(..) = update.stage {
            update.decide(Input::Tick, &view, &at(s));
            s += 1;
        }
        assert_eq!(s, if failed { 164 } else { 263 }, "it is looked until it is known");
        let effects = update.decide(Input::Discarded, &view, &at(s));
        assert_eq!(code_of(&update), (State::RolledBack, Some(end)));
        assert_eq!(effects.failed, failed);
    }
    let mut update = brought(State::Probation);
    update.order.offline_ok = true;
    view.heard = None;
    assert_eq!(update.decide(Input::Probed(Health::Well), &view, &at(61)).next, Next::Do(Step::Commit));
}

#[test]
fn what_may_pass_is_tried_again_with_growing_pauses_and_a_limit() {
    let history = History::default();
    let view = view(&history);
    let mut update = brought(State::Downloading);
    let broken = |moved| Input::Arrived(Arrival::Broken { why: "reset".into(), moved });
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let Next::Again(pause) = update.decide(broken(false), &view, &at(2)).next else { panic!() };
        pauses.push(pause.as_secs());
    }
    assert_eq!(pauses[..4], [2, 4, 8, 16]);
    assert_eq!(pauses[11], 600);
    assert_eq!(update.decide(broken(true), &view, &at(2)).next, Next::Again(RETRY_FIRST));
    for _ in 0..DENIALS {
        update.decide(Input::Arrived(Arrival::Denied("404".into())), &view, &at(2));
        assert_eq!(update.state(), State::Downloading);
    }
    update.decide(Input::Arrived(Arrival::Denied("404".into())), &view, &at(2));
    assert_eq!(code_of(&update), (State::Failed, Some(code::DENIED)));
    assert!(!update.decide(Input::Discarded, &view, &at(2)).failed);

    let mut update = brought(State::Installing);
    let passing = || Input::Installed(Err(Trouble::passing(code::DISK, "read error")));
    for _ in 0..COMMITS {
        assert!(matches!(update.decide(passing(), &view, &at(2)).next, Next::Again(_)));
    }
    update.decide(passing(), &view, &at(2));
    assert_eq!(code_of(&update), (State::Failed, Some(code::DISK)));

    let mut update = brought(State::Installing);
    update.decide(Input::Installed(Err(Trouble::lasting("bad_archive", "no tar"))), &view, &at(2));
    assert!(update.decide(Input::Discarded, &view, &at(2)).failed, "that says something about the release");

    let mut update = brought(State::Switching);
    update.decide(Input::Switched(Err(Trouble::lasting("reverted", "it crashed"))), &view, &at(2));
    assert_eq!(code_of(&update), (State::Failed, Some("reverted")));
    assert_eq!(update.decide(Input::Tick, &view, &at(2)).next, Next::Do(Step::Undo));
}

#[test]
fn a_closed_window_holds_it_until_it_opens_or_its_time_is_over() {
    let history = History::default();
    let closed = View { gate: Gate::Closed("hours", Duration::from_secs(60)), ..view(&history) };
    for state in [State::Downloading, State::Downloaded] {
        let mut update = brought(state);
        let waits = update.decide(Input::Tick, &closed, &at(2));
        assert_eq!((waits.write, waits.next), (false, Next::Wait(Duration::from_secs(60))));
        let mut late = update.clone();
        late.decide(Input::Tick, &closed, &at(3_600));
        let Stage::Discarding(verdict) = &late.stage else { panic!() };
        assert!(verdict.reason.as_ref().unwrap().message.contains("hours"));
        let opened = update.decide(Input::Tick, &view(&history), &at(3)).next;
        let step = if state == State::Downloading { Step::Download } else { Step::Install };
        assert_eq!(opened, Next::Do(step));
    }
}

#[test]
fn metadata_that_is_not_there_yet_is_waited_for_and_that_is_wrong_is_not() {
    let history = History::default();
    let view = view(&history);
    let mut update = fresh();
    let later = Input::Verified(Err(Refusal::Later("no link".into())));
    assert!(matches!(update.decide(later, &view, &at(1)).next, Next::Again(_)));
    let soon = || Input::Verified(Err(Refusal::Soon(Trouble::lasting("expired", "yesterday"))));
    for _ in 0..LOOKS {
        assert!(matches!(update.decide(soon(), &view, &at(1)).next, Next::Again(_)));
    }
    let mut stale = update.clone();
    stale.decide(soon(), &view, &at(1));
    assert_eq!(code_of(&stale), (State::Rejected, Some("expired")));
    let never = Refusal::Never(Trouble::lasting("bad_signature", "one of two"));
    let effects = update.decide(Input::Verified(Err(never)), &view, &at(1));
    assert_eq!((code_of(&update), effects.next), ((State::Rejected, Some("bad_signature")), Next::Nothing));
}
