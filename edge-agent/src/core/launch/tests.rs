//! A launcher and its agents in memory, with a crash between any two steps.

use proptest::prelude::*;

use super::*;

const LIMIT: Duration = Duration::from_secs(600);

fn release(n: u8) -> Release {
    Release { version: MetricName::parse(&format!("1.{n}.0")).unwrap(), digest: Digest([n; 32]) }
}

fn sound(_: &Release) -> bool {
    true
}

fn end(exit: Exit, lasted_s: u64) -> End {
    End { exit, told: false, over: false, lasted: Duration::from_secs(lasted_s) }
}

const CRASH: Exit = Exit::Signal(11);

/// A node whose current release is 1 and that is to try 2.
fn tried() -> Record {
    let mut record = Record::default();
    record.offer(release(1), LIMIT);
    assert!(record.confirm(Digest([1; 32])));
    record.offer(release(2), LIMIT);
    record
}

#[test]
fn the_first_node_runs_what_was_installed() {
    let mut record = Record::default();
    assert_eq!(record.begin(sound), Pick { release: None, left: None });
    assert_eq!(record, Record::default());
}

#[test]
fn a_trial_that_is_confirmed_stays_and_what_was_before_is_kept() {
    let mut record = tried();
    let pick = record.begin(sound);
    assert_eq!(pick, Pick { release: Some(release(2)), left: Some(LIMIT) });
    assert!(
        record.confirm(Digest([2; 32])) && record.confirm(Digest([2; 32])),
        "and once more after a crash"
    );
    assert_eq!((record.current.as_ref(), record.previous.as_ref()), (Some(&release(2)), Some(&release(1))));
    assert!(!record.tries(&pick), "its time is not over any more");
    // Crashes of what was confirmed are no reason to leave it.
    for _ in 0..3 * STARTS {
        let pick = record.begin(sound);
        assert_eq!(pick, Pick { release: Some(release(2)), left: None });
        assert!(!record.ended(&pick, &end(CRASH, 1)));
    }
    assert!(!record.confirm(Digest([1; 32])), "what does not run cannot be confirmed");
}

#[test]
fn a_trial_that_crashes_at_boot_is_left_after_its_starts() {
    let mut record = tried();
    for start in 1..=STARTS {
        let pick = record.begin(sound);
        assert_eq!(
            (pick.release.as_ref(), record.trial.as_ref().unwrap().starts),
            (Some(&release(2)), start)
        );
        record.ended(&pick, &end(CRASH, 0));
        assert_eq!(record.is_spent(), start == STARTS);
    }
    assert_eq!(record.begin(sound), Pick { release: Some(release(1)), left: None });
    assert_eq!(record.undone, Some(Undone { release: release(2), why: Why::Crashed }));
    assert_eq!(record.current, Some(release(1)));
}

#[test]
fn a_trial_that_only_runs_is_left_when_its_time_is_over() {
    let mut record = tried();
    let pick = record.begin(sound);
    record.ended(&pick, &End { over: true, ..end(Exit::Signal(9), 600) });
    assert_eq!(record.begin(sound).release, Some(release(1)));
    assert_eq!(record.undone.unwrap().why, Why::Unconfirmed);
    // Ends that were wished for use up no starts, but time: no trial lasts for ever.
    let mut record = tried();
    let mut runs = 0;
    while record.trial.is_some() {
        let pick = record.begin(sound);
        if record.trial.is_none() {
            break;
        }
        runs += 1;
        record.ended(&pick, &end(Exit::Code(AGAIN), 60));
    }
    assert_eq!((runs, record.undone.unwrap().why), (10, Why::Unconfirmed));
}

#[test]
fn a_release_that_is_not_what_was_installed_is_not_started() {
    let mut record = tried();
    let pick = record.begin(|release| release.digest == Digest([1; 32]));
    assert_eq!(pick.release, Some(release(1)));
    assert_eq!(record.undone.as_ref().unwrap().why, Why::Corrupt);
    // What stays is corrupt: what was before, for as long; then the launcher's own.
    let mut record = tried();
    record.confirm(Digest([2; 32]));
    let before = record.clone();
    assert_eq!(record.begin(|release| release.digest == Digest([1; 32])).release, Some(release(1)));
    assert_eq!(record.begin(|_| false).release, None);
    assert_eq!(record.begin(sound).release, Some(release(2)));
    assert_eq!(record, before);
}

#[test]
fn what_cannot_be_executed_is_left_at_once_and_what_gives_up_says_why() {
    let mut record = tried();
    let pick = record.begin(sound);
    record.ended(&pick, &end(Exit::Code(UNRUNNABLE), 0));
    assert_eq!(record.begin(sound).release, Some(release(1)));
    assert_eq!(record.undone.as_ref().unwrap().why, Why::Unrunnable);
    let mut record = tried();
    record.begin(sound);
    assert!(!record.undo(Digest([1; 32]), "x") && record.undo(Digest([2; 32]), "unreachable"));
    assert_eq!(record.undone.as_ref().unwrap().why.code(), "unreachable");
    assert_eq!(record.begin(sound).release, Some(release(1)));
}

#[test]
fn what_stays_can_be_left_and_installed_anew() {
    let mut record = tried();
    record.confirm(Digest([2; 32]));
    // Installed anew, and confirmed: what was before is still known.
    record.offer(release(2), LIMIT);
    assert!(record.confirm(Digest([2; 32])));
    assert_eq!(record.previous, Some(release(1)));
    // Installed anew, and still wrong: what was before runs.
    let mut again = record.clone();
    again.offer(release(2), LIMIT);
    assert!(again.undo(Digest([2; 32]), "unhealthy"));
    assert_eq!(again.begin(sound).release, Some(release(1)));
    // Left although it was confirmed.
    assert!(record.undo(Digest([2; 32]), "undone") && !record.undo(Digest([2; 32]), "undone"));
    assert_eq!(record.begin(sound).release, Some(release(1)));
    assert!(record.forgive(Digest([2; 32])) && !record.forgive(Digest([2; 32])));
    assert_eq!((record.undone.take(), record.previous.take()), (None, None));
}

#[test]
fn what_follows_a_run_depends_on_how_it_ended() {
    let stays = Pick { release: Some(release(1)), left: None };
    let trial = Pick { release: Some(release(2)), left: Some(LIMIT) };
    let told = |exit| End { told: true, ..end(exit, 1) };
    let rows = [
        (&stays, told(Exit::Code(0)), 0, Next::Quit(0)),
        (&trial, told(Exit::Signal(9)), 0, Next::Quit(137)),
        (&stays, end(Exit::Code(AGAIN), 1), 0, Next::Start(Duration::ZERO)),
        (&stays, end(Exit::Code(AGAIN), 0), 0, Next::Start(PAUSE_LEAST)),
        (&stays, end(Exit::Code(0), 1), 0, Next::Quit(0)),
        (&stays, end(Exit::Code(USAGE), 1), 0, Next::Quit(2)),
        (&trial, end(Exit::Code(0), 1), 0, Next::Start(PAUSE_LEAST)),
        (&trial, end(Exit::Code(USAGE), 1), 1, Next::Start(PAUSE_LEAST * 2)),
        (&stays, end(Exit::Code(1), 1), 3, Next::Start(PAUSE_LEAST * 8)),
        (&stays, end(CRASH, 1), 1_000, Next::Start(PAUSE_MOST)),
        (&trial, End { over: true, ..end(Exit::Signal(9), 600) }, 4, Next::Start(Duration::ZERO)),
    ];
    for (pick, end, failures, next) in rows {
        assert_eq!(after(pick, &end, failures, false), next, "{pick:?} {end:?}");
    }
    assert_eq!(
        after(&trial, &end(CRASH, 0), 4, true),
        Next::Start(Duration::ZERO),
        "no pause before what works"
    );
    assert!(failed(&end(CRASH, 1)) && !failed(&end(CRASH, 61)));
}

#[test]
fn the_file_reads_as_it_was_written_and_with_keys_of_later_releases() {
    let mut record = tried();
    record.begin(sound);
    let text = serde_json::to_string(&record).unwrap();
    let frozen = format!(
        r#"{{"format":1,"current":{{"version":"1.1.0","digest":"{}"}},"trial":{{"release":{{"version":"1.2.0","digest":"{}"}},"starts":1,"ran_ms":0,"limit_ms":600000}}}}"#,
        Digest([1; 32]),
        Digest([2; 32]),
    );
    assert_eq!(text, frozen);
    let later = text.replacen("{", r#"{"colour":"blue","#, 1);
    assert_eq!(serde_json::from_str::<Record>(&later).unwrap(), record);
}

/// What happens in one run of the agent, or instead of it.
#[derive(Debug, Clone)]
enum Step {
    /// The power fails before the record is written.
    CutBeforeWrite,
    /// It fails after that, before or during the run: nobody books the end.
    CutAfterWrite,
    /// The agent runs and ends.
    Run { exit: i32, lasted_s: u64, told: bool },
    /// The agent runs, confirms itself, and the power fails at once.
    Confirm,
    /// The agent runs and gives itself up.
    Undo,
    /// The agent that stays offers another release.
    Offer(u8),
    /// A file rots.
    Rot(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let run = (prop::sample::select(vec![0, 1, 2, AGAIN, UNRUNNABLE]), 0_u64..400, any::<bool>());
    let step = prop_oneof![
        1 => Just(Step::CutBeforeWrite),
        3 => Just(Step::CutAfterWrite),
        5 => run.prop_map(|(exit, lasted_s, told)| Step::Run { exit, lasted_s, told }),
        1 => Just(Step::Confirm),
        1 => Just(Step::Undo),
        3 => (3_u8..9).prop_map(Step::Offer),
        1 => (1_u8..9).prop_map(Step::Rot),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    /// Whatever happens in whatever order, what is started is sound and was confirmed or is on trial; no release is tried
    /// more often than it may be; and what was confirmed is what is returned to.
    #[test]
    fn a_sound_release_runs_always(steps in steps()) {
        let mut disk = tried();
        let mut rotten: Vec<u8> = Vec::new();
        let mut confirmed = vec![release(1)];
        let mut cuts = 0;
        for step in steps {
            let is_sound = |release: &Release| !rotten.contains(&release.digest.0[0]);
            let mut record = disk.clone();
            let pick = record.begin(is_sound);
            if matches!(step, Step::CutBeforeWrite) {
                continue;
            }
            let tried_before = disk.trial.clone();
            disk = record;
            prop_assert!(pick.release.as_ref().is_none_or(is_sound));
            if disk.tries(&pick) {
                prop_assert!(disk.trial.as_ref().unwrap().starts <= STARTS);
                // Counted before it starts.
                prop_assert_eq!(disk.trial.as_ref().unwrap().starts, tried_before.unwrap().starts + 1);
            } else if let Some(release) = &pick.release {
                prop_assert!(confirmed.contains(release));
            } else {
                let sound = disk.current.iter().chain(&disk.previous).any(is_sound);
                prop_assert!(!sound, "a sound release is left for what was installed");
            }
            match step {
                Step::CutBeforeWrite => {}
                Step::CutAfterWrite => cuts += 1,
                Step::Run { exit, lasted_s, told } => {
                    let end = End { told, ..end(Exit::Code(exit), lasted_s) };
                    disk.ended(&pick, &end);
                }
                Step::Confirm => if let Some(release) = &pick.release {
                    let stays = disk.current.clone();
                    if disk.confirm(release.digest) && stays.as_ref() != Some(release) {
                        prop_assert_eq!(&disk.previous, &stays);
                        confirmed.push(release.clone());
                    }
                },
                Step::Undo => if let Some(release) = &pick.release {
                    disk.undo(release.digest, "unhealthy");
                },
                Step::Offer(n) => if pick.left.is_none() && disk.current != Some(release(n)) {
                    disk.offer(release(n), LIMIT);
                },
                Step::Rot(n) => rotten.push(n),
            }
        }
        // Left alone, any trial comes to its end.
        let mut starts = 0;
        while disk.trial.is_some() {
            disk.begin(|_| true);
            starts += 1;
            prop_assert!(starts <= STARTS + 1, "{cuts} cuts");
        }
    }
}
