//! The agent, killed at every step of an update: there is always one verified release, and nobody has to repair anything.

use std::{fs, path::Path, time::Duration};

use fleet_schemas::{command, update::State};
use serde_json::Value;
use tokio::time;

use crate::{Field, Process, repo, until};

/// How often each step is killed.
const KILLS: usize = 10;

/// Both a hook and a probe wait for a file.
fn waiting(gate: &Path) -> Vec<u8> {
    format!("#!/bin/sh\nwhile [ ! -e {} ]; do sleep 0.02; done\n", gate.display()).into_bytes()
}

/// At a state, or past it when it went by between two looks.
fn is_at(status: &Value, state: &str) -> bool {
    let place = |word: &str| State::ALL.iter().position(|state| state.as_str() == word);
    let found = status["updates"]["updates"][0]["state"].as_str().and_then(place);
    found >= place(state)
}

/// Starts it until it is at a state, and kills it there. What runs is looked at each time.
async fn kill_at(field: &Field, state: &str, runs: &[Option<&str>]) {
    for _ in 0..KILLS {
        let agent = Process::run(&field.config.data);
        until(state, async || agent.status().await, |status| is_at(status, state)).await;
        agent.kill();
        assert!(runs.contains(&field.runs().as_deref()), "{state}: {:?}", field.runs());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_step_leaves_one_verified_release() {
    let field = Field::new("kill-1").await;
    let gates = tempfile::tempdir().unwrap();
    let gate = |name: &str| gates.path().join(name);
    let open = |name: &str| fs::write(gate(name), "").unwrap();
    field.repo.skill("1.0.0", "", &[]);
    let agent = Process::run(&field.config.data);
    let (_, result) = field.end(field.order(1, "1.0.0", |_| ())).await;
    assert_eq!(result.state, State::Confirmed);
    agent.kill();

    let manifest = "[hooks]\nstarted = [\"./hook\"]\n[health]\ncommand = [\"./well\"]\ninterval_s = 0.05\ntimeout_s = 0.2\n";
    let mut more = vec![
        ("hook".to_owned(), waiting(&gate("switch"))),
        ("well".to_owned(), waiting(&gate("well"))),
        ("noise".to_owned(), repo::noise(9_000_000)),
    ];
    // Unpacking takes long enough to be seen.
    more.extend((0..3_000).map(|number| (format!("many/{number}"), vec![b'x'; 200])));
    field.repo.skill("2.0.0", manifest, &more);
    let (old, new) = (Some("1.0.0"), Some("2.0.0"));
    let hold = field.repo.hold("/v1/tuf/timestamp.json", 0);
    let id = field.order(2, "2.0.0", |order| order.probation_ms = Some(600_000));
    kill_at(&field, "accepted", &[old]).await;
    drop(hold);
    let hold = field.repo.hold("/v1/artifacts", 8_500_000);
    kill_at(&field, "downloading", &[old]).await;
    let ranges = field.repo.ranges();
    assert!(
        ranges.windows(2).all(|pair| pair[0] <= pair[1]),
        "what was synced is not fetched again: {ranges:?}"
    );
    drop(hold);
    kill_at(&field, "installing", &[old]).await;
    kill_at(&field, "switching", &[old, new]).await;
    assert_eq!(field.runs().as_deref(), new, "the link was switched before its hook ran");
    open("switch");
    kill_at(&field, "probation", &[new]).await;
    assert_eq!(field.runs().as_deref(), new);
    // It gets well, and each step was told once.
    let agent = Process::run(&field.config.data);
    open("well");
    until("on trial", async || agent.status().await, |status| is_at(status, "probation")).await;
    let told = until("told", async || field.told(id), |told| told.len() >= 6).await;
    let way = [
        State::Accepted,
        State::Downloading,
        State::Downloaded,
        State::Installing,
        State::Switching,
        State::Probation,
    ];
    assert_eq!(told, way, "whatever was killed");
    agent.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_while_it_goes_back_and_at_any_moment_end_well() {
    let field = Field::new("kill-2").await;
    let gates = tempfile::tempdir().unwrap();
    let gate = gates.path().join("back");
    fs::write(&gate, "").unwrap();
    let hooked = "[hooks]\nstarted = [\"./hook\"]\n";
    field.repo.skill("1.0.0", hooked, &[("hook".to_owned(), waiting(&gate))]);
    let agent = Process::run(&field.config.data);
    let (_, result) = field.end(field.order(1, "1.0.0", |_| ())).await;
    assert_eq!(result.state, State::Confirmed);
    agent.kill();
    // Going back waits in the hook of the old release.
    fs::remove_file(&gate).unwrap();
    field.repo.skill("1.1.0", "[health]\ncommand = [\"false\"]\ninterval_s = 0.05\n", &[]);
    let id = field.order(2, "1.1.0", |order| order.probation_ms = Some(0));
    for _ in 0..KILLS {
        let agent = Process::run(&field.config.data);
        // On trial, or on the way back from it.
        let on_trial = async || agent.status().await;
        until("on trial", on_trial, |status| is_at(status, "probation")).await;
        let back = async || field.runs();
        until("it is back", back, |runs| runs.as_deref() == Some("1.0.0")).await;
        agent.kill();
        assert_eq!(field.runs().as_deref(), Some("1.0.0"));
    }
    fs::write(&gate, "").unwrap();
    let agent = Process::run(&field.config.data);
    let (report, result) = field.end(id).await;
    assert_eq!((report.state, result.state), (command::State::Failed, State::RolledBack));
    agent.kill();

    // At moments that nobody chose: from order to end, again and again.
    let mut version = 2;
    for round in 0..30_u64 {
        let text = format!("{version}.0.0");
        field.repo.skill(&text, "", &[("noise".to_owned(), repo::noise(300_000))]);
        let id = field.order(10 + round, &text, |order| order.probation_ms = Some(0));
        let agent = Process::run(&field.config.data);
        time::sleep(Duration::from_millis(20 + 25 * round)).await;
        agent.kill();
        let runs = field.runs().unwrap();
        assert!(
            runs == text || version > 2 && runs == format!("{}.0.0", version - 1) || runs == "1.0.0",
            "{runs}"
        );
        if round % 3 == 2 {
            let agent = Process::run(&field.config.data);
            let (_, result) = field.end(id).await;
            assert_eq!((result.state, field.runs().as_deref()), (State::Confirmed, Some(text.as_str())));
            agent.kill();
            version += 1;
        } else {
            let agent = Process::run(&field.config.data);
            let (_, result) = field.end(id).await;
            assert_eq!(result.state, State::Confirmed);
            agent.kill();
        }
    }
}
