//! The follower's decisions, one fact each.

use fleet_schemas::{SessionId, VERSION, batch::Clock, cbor, config::Version};

use super::*;

const PROBATION: Duration = Duration::from_secs(600);
const STORE: StoreId = StoreId([1; 16]);
const OTHER: StoreId = StoreId([2; 16]);

fn at(seconds: u64) -> Now {
    Now { wall_ms: 0, up: Duration::from_secs(seconds), clock: Clock::Unsynced }
}

/// What the hub says: a version, what is in the document, and how often it was asked for.
fn desired((epoch, n): (u64, u64), what: &str, retry: u64) -> Desired {
    Desired {
        v: VERSION,
        store_id: STORE,
        session: SessionId([0; 8]),
        hub_ms: 0,
        version: Version { epoch, n },
        doc: cbor::encode(&std::collections::BTreeMap::from([("what", what)])),
        retry,
    }
}

fn held(desired: &Desired) -> Held {
    Held { version: desired.version, hash: hash(&desired.doc), retry: desired.retry }
}

/// A follower whose node runs its own configuration.
fn follower() -> Follower {
    let mut follower = Follower::default();
    let effects = follower.attach(PROBATION, Running::Unknown, None, at(0));
    assert_eq!(effects.run, Some(Run { doc: None, trial: false }));
    assert_eq!(follower.ran(None, Ok(()), at(0)), Effects::default());
    follower
}

/// What it was given to apply is applied.
fn applies(follower: &mut Follower, effects: &Effects, seconds: u64) -> Effects {
    let doc = effects.run.as_ref().unwrap().doc.as_ref();
    follower.ran(doc.map(|doc| doc.held), Ok(()), at(seconds))
}

/// Received, applied and proven.
fn proven(follower: &mut Follower, desired: &Desired, seconds: u64) {
    let effects = follower.receive(desired, at(seconds));
    applies(follower, &effects, seconds);
    let effects = follower.heard(at(seconds + 30));
    assert_eq!(effects.write.unwrap().newest.unwrap().1, Stage::Applied);
    assert_eq!(follower.reported().unwrap().applied, Some(held(desired)));
}

/// The agent's process begins with what is on disk.
fn again(effects: &Effects) -> (Follower, Effects) {
    let mut follower = Follower::found(effects.write.clone().unwrap());
    let effects = follower.attach(PROBATION, Running::Unknown, None, at(0));
    (follower, effects)
}

fn state(follower: &Follower) -> (&'static str, Option<u64>, Option<u64>) {
    let view = follower.view();
    let n = |held: Option<Held>| held.map(|held| held.version.n);
    (view.state, n(view.reported.received), n(view.reported.applied))
}

fn code(follower: &Follower) -> Option<String> {
    follower.reported().unwrap().failed.map(|failed| failed.code)
}

#[test]
fn a_document_is_tried_then_on_probation_then_applied() {
    let mut follower = follower();
    assert_eq!(state(&follower), ("none", None, None));
    let first = desired((0, 1), "a", 0);
    let effects = follower.receive(&first, at(10));
    // The intent is on disk before it is handed out.
    let (doc, stage) = effects.write.as_ref().unwrap().newest.as_ref().unwrap();
    assert_eq!((doc.held, stage), (held(&first), &Stage::Trying { starts: 1 }));
    assert!(effects.run.as_ref().unwrap().trial);
    assert_eq!(state(&follower), ("trying", Some(1), None));
    applies(&mut follower, &effects, 10);
    assert_eq!(state(&follower), ("probation", Some(1), Some(1)));
    // Too early: what programs make of it shows a little later.
    assert_eq!(follower.heard(at(39)), Effects::default());
    assert_eq!((follower.asks_from(), follower.due()), (Some(at(40).up), Some(at(610).up)));
    assert!(follower.heard(at(40)).write.is_some());
    assert_eq!(state(&follower), ("applied", Some(1), Some(1)));
    assert_eq!(follower.due(), None);
    assert_eq!(follower.heard(at(41)), Effects::default());
}

#[test]
fn the_hub_lost_in_probation_brings_the_one_before_back_once() {
    let mut follower = follower();
    proven(&mut follower, &desired((0, 1), "a", 0), 0);
    let second = desired((0, 2), "b", 0);
    let effects = follower.receive(&second, at(100));
    applies(&mut follower, &effects, 100);
    let mut effects = Effects::default();
    follower.advance(at(699), &mut effects);
    assert_eq!(effects, Effects::default());
    follower.advance(at(700), &mut effects);
    assert_eq!(code(&follower).as_deref(), Some("lost_hub"));
    let run = effects.run.clone().unwrap();
    assert_eq!((run.doc.unwrap().held.version.n, run.trial), (1, false));
    assert_eq!(applies(&mut follower, &effects, 701), Effects::default());
    assert_eq!(state(&follower), ("failed", Some(2), Some(1)));
    // Not tried again: not when the hub says it again, not after a start.
    assert_eq!(follower.receive(&second, at(800)), Effects::default());
    let (mut next, effects) = again(&effects);
    assert!(effects.write.is_none() && !effects.run.as_ref().unwrap().trial);
    applies(&mut next, &effects, 1);
    assert_eq!(state(&next), ("failed", Some(2), Some(1)));
    // An operator asks for another try.
    let effects = next.receive(&desired((0, 2), "b", 1), at(10));
    assert!(effects.run.as_ref().unwrap().trial);
    assert_eq!(next.receive(&desired((0, 2), "b", 1), at(11)), Effects::default());
    applies(&mut next, &effects, 12);
    assert_eq!(code(&next), None);
    assert_eq!(next.reported().unwrap().applied.unwrap().retry, 1);
}

#[test]
fn a_document_that_cannot_be_applied_is_left_behind() {
    let mut follower = follower();
    proven(&mut follower, &desired((0, 1), "a", 0), 0);
    let second = desired((0, 2), "b", 0);
    follower.receive(&second, at(100));
    let wrong = failed("self_check", "driver x: gone".into());
    let effects = follower.ran(Some(held(&second)), Err(wrong.clone()), at(101));
    assert_eq!(effects.write.as_ref().unwrap().newest.as_ref().unwrap().1, Stage::Failed(wrong));
    assert_eq!(effects.run.as_ref().unwrap().doc.as_ref().unwrap().held.version.n, 1);
    assert_eq!(state(&follower), ("failed", Some(2), Some(1)));
    // The next version is tried, with the first one still behind it.
    applies(&mut follower, &effects, 101);
    let effects = follower.receive(&desired((0, 3), "c", 0), at(110));
    assert_eq!(effects.write.unwrap().before.unwrap().held.version.n, 1);
}

#[test]
fn one_that_cannot_be_read_is_received_and_failed() {
    let mut follower = follower();
    let bad = Desired { doc: vec![0xff], ..desired((0, 1), "", 0) };
    let effects = follower.receive(&bad, at(1));
    assert!(effects.run.is_none() && effects.write.is_some());
    assert_eq!((state(&follower), code(&follower).as_deref()), (("failed", Some(1), None), Some("invalid")));
    assert_eq!(follower.reported().unwrap().received, Some(held(&bad)));
}

#[test]
fn older_versions_of_the_same_store_are_ignored() {
    let mut follower = follower();
    proven(&mut follower, &desired((1, 5), "a", 0), 0);
    assert_eq!(follower.receive(&desired((1, 4), "b", 0), at(50)), Effects::default());
    assert_eq!(follower.receive(&desired((0, 9), "b", 0), at(50)), Effects::default());
    // A hub that was restored counts in a higher epoch.
    let effects = follower.receive(&desired((2, 1), "b", 0), at(50));
    applies(&mut follower, &effects, 50);
    // Another hub counts by itself, and the same version of another past is another document.
    let moved = Desired { store_id: OTHER, ..desired((0, 1), "c", 0) };
    let effects = follower.receive(&moved, at(60));
    applies(&mut follower, &effects, 60);
    let effects = follower.receive(&Desired { store_id: OTHER, ..desired((0, 1), "d", 0) }, at(70));
    assert!(effects.run.unwrap().trial);
}

#[test]
fn starts_that_die_while_they_try_it_are_counted() {
    let mut follower = follower();
    proven(&mut follower, &desired((0, 1), "a", 0), 0);
    let mut effects = follower.receive(&desired((0, 2), "b", 0), at(100));
    for starts in 2..=STARTS {
        let (next, then) = again(&effects);
        let stage = &then.write.as_ref().unwrap().newest.as_ref().unwrap().1;
        assert_eq!(stage, &Stage::Trying { starts });
        // Until it is proven, the hub hears of the one before it.
        assert_eq!(state(&next), ("trying", Some(2), Some(1)));
        effects = then;
    }
    let (next, effects) = again(&effects);
    assert_eq!(code(&next).as_deref(), Some("crashed"));
    assert_eq!(effects.run.unwrap().doc.unwrap().held.version.n, 1);
}

#[test]
fn a_start_in_probation_begins_it_again() {
    let mut follower = follower();
    let effects = follower.receive(&desired((0, 1), "a", 0), at(100));
    let effects = applies(&mut follower, &effects, 100);
    let (mut next, effects) = again(&effects);
    assert!(effects.run.as_ref().unwrap().trial);
    applies(&mut next, &effects, 1);
    assert_eq!(next.due(), Some(at(601).up));
    next.heard(at(31));
    assert_eq!(state(&next), ("applied", Some(1), Some(1)));
}

#[test]
fn a_disk_that_is_opened_anew_is_no_start() {
    let mut follower = follower();
    let effects = follower.receive(&desired((0, 1), "a", 0), at(100));
    // While it is being applied.
    let (running, busy) = follower.standing();
    let mut next = Follower::found(effects.write.clone().unwrap());
    assert_eq!(next.attach(PROBATION, running, busy, at(110)).run, None);
    let effects = applies(&mut next, &effects, 111);
    assert_eq!(state(&next), ("probation", Some(1), Some(1)));
    // While it is on probation.
    let (running, busy) = next.standing();
    let mut last = Follower::found(effects.write.unwrap());
    assert_eq!(last.attach(PROBATION, running, busy, at(120)), Effects::default());
    assert_eq!(last.due(), Some(at(720).up));
    // A new file knows of none: the node's own configuration is returned to.
    let (running, busy) = last.standing();
    let mut empty = Follower::default();
    let effects = empty.attach(PROBATION, running, busy, at(130));
    assert_eq!(effects.run, Some(Run { doc: None, trial: false }));
}

#[test]
fn a_newer_document_takes_the_place_of_one_that_is_tried() {
    let mut follower = follower();
    proven(&mut follower, &desired((0, 1), "a", 0), 0);
    let second = follower.receive(&desired((0, 2), "b", 0), at(100));
    let third = follower.receive(&desired((0, 3), "c", 0), at(101));
    // One at a time.
    assert!(third.run.is_none());
    let third = applies(&mut follower, &second, 102);
    assert_eq!(third.run.as_ref().unwrap().doc.as_ref().unwrap().held.version.n, 3);
    // Meanwhile the second one runs, whatever the disk says.
    assert_eq!(state(&follower), ("trying", Some(3), Some(2)));
    applies(&mut follower, &third, 103);
    assert_eq!(state(&follower), ("probation", Some(3), Some(3)));
    // What was given up goes back to what was proven.
    let mut effects = Effects::default();
    follower.advance(at(703), &mut effects);
    assert_eq!(effects.run.unwrap().doc.unwrap().held.version.n, 1);
}

#[test]
fn what_was_applied_and_cannot_be_any_more_is_left_too() {
    // As after a downgrade of the agent: neither can be read.
    let mut follower = follower();
    let (first, second) = (desired((0, 1), "a", 0), desired((0, 2), "b", 0));
    proven(&mut follower, &first, 0);
    let effects = follower.receive(&second, at(100));
    applies(&mut follower, &effects, 100);
    let (mut next, effects) = again(&follower.heard(at(130)));
    assert!(!effects.run.unwrap().trial);
    let wrong = || Err(failed("invalid", "/x: unknown".into()));
    let effects = next.ran(Some(held(&second)), wrong(), at(1));
    assert_eq!(
        (code(&next).as_deref(), effects.run.unwrap().doc.unwrap().held),
        (Some("invalid"), held(&first))
    );
    let effects = next.ran(Some(held(&first)), wrong(), at(2));
    assert_eq!(effects.run, Some(Run { doc: None, trial: false }));
    assert_eq!(applies(&mut next, &effects, 3), Effects::default());
    assert_eq!(state(&next), ("failed", Some(2), None));
}

#[test]
fn an_agent_without_anybody_to_apply_documents_says_nothing() {
    let follower = Follower::default();
    assert_eq!((follower.reported(), follower.is_attached()), (None, false));
}
