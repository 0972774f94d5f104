//! The agent updates itself through its launcher, and both are killed at every step: one verified release always runs, and
//! nobody has to repair anything.

use std::{fs, net::TcpListener, path::Path, process::Command, sync::LazyLock};

use fleet_edge_agent::launch::{Folder, digest_of};
use fleet_schemas::{CommandId, command, update::State};
use serde_json::{Value, json};

use crate::{BINARY, Field, Process, until};

/// How often each step is killed.
const KILLS: usize = 10;
/// The next release.
const NEXT: &str = "agent/fleet-agent/9.0.0/any";

/// Another agent than the one that is installed: the same without what debuggers read, and with something behind it.
static PROGRAM: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let stripped = folder.path().join("agent");
    let done = Command::new("strip").args(["--strip-all", "-o"]).arg(&stripped).arg(BINARY).status().unwrap();
    assert!(done.success(), "strip comes with the linker");
    let mut bytes = fs::read(stripped).unwrap();
    bytes.extend(b"another release");
    bytes
});

/// A launcher, and its agent at an address that stays the same for all its releases.
struct Launched {
    process: Process,
    api: String,
}

impl Launched {
    fn start(field: &Field) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = listener.local_addr().unwrap().to_string();
        drop(listener);
        let mut command = Command::new(BINARY);
        command.args(["launch", "--grace-s", "5", "--data"]).arg(&field.config.data);
        command.args(["--", "--api", &api]);
        Self { process: Process::start(command), api }
    }

    /// Nothing while one release takes the other's place.
    async fn status(&self) -> Value {
        let Ok(answer) = reqwest::get(format!("http://{}/api/v1/status", self.api)).await else {
            return Value::Null;
        };
        answer.json().await.unwrap_or(Value::Null)
    }

    /// What runs, once something does.
    async fn runs(&self) -> String {
        let status = until("it runs", async || self.status().await, |status| runs(status).is_some()).await;
        runs(&status).unwrap().to_owned()
    }

    fn kill(self) {
        self.process.kill();
    }
}

fn order(field: &Field, number: u64, probation_ms: u64) -> CommandId {
    field.order_of(number, NEXT, "update/agent/fleet-agent", |order| order.probation_ms = Some(probation_ms))
}

fn runs(status: &Value) -> Option<&str> {
    let running = status["updates"]["running"].as_array()?;
    running.iter().find(|one| one["kind"] == "agent")?["digest"].as_str()
}

fn is_at(status: &Value, state: &str) -> bool {
    status["updates"]["updates"][0]["state"] == state
}

/// Two installed programs: what was there, and what is released.
fn digests(field: &Field) -> [String; 2] {
    [digest_of(Path::new(BINARY)).unwrap().to_string(), field.repo.digest(NEXT)]
}

/// Starts it until it is at a state, and kills launcher and agent there.
async fn kill_at(field: &Field, state: &str, allowed: &[&String]) {
    for _ in 0..KILLS {
        let agent = Launched::start(field);
        let is_over = |status: &Value| status["updates"].get("last").is_some_and(|last| !last.is_null());
        until(state, async || agent.status().await, |status| is_at(status, state) || is_over(status)).await;
        let runs = agent.runs().await;
        assert!(allowed.contains(&&runs), "{state}: {runs} runs");
        agent.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_at_any_step_of_its_own_update_runs_on() {
    let field = Field::new("agent-1").await;
    field.repo.release(NEXT, PROGRAM.clone(), &json!({}));
    let [old, new] = digests(&field);
    assert_ne!(old, new);
    let hold = field.repo.hold("/v1/tuf/timestamp.json", 0);
    let id = order(&field, 1, 600_000);
    kill_at(&field, "accepted", &[&old]).await;
    drop(hold);
    let hold = field.repo.hold("/v1/artifacts", PROGRAM.len() - 100_000);
    kill_at(&field, "downloading", &[&old]).await;
    drop(hold);
    // Through the switch to its trial: it is killed more often there than a trial may start, and the old one is back.
    kill_at(&field, "probation", &[&old, &new]).await;
    let agent = Launched::start(&field);
    let (report, result) = field.end(id).await;
    assert_eq!((report.state, result.state), (command::State::Failed, State::RolledBack));
    assert_eq!(result.reason.unwrap().code, "crashed");
    assert_eq!(agent.runs().await, old);
    agent.kill();
    let told = field.told(id);
    assert!(told.contains(&State::Probation) && told.last() == Some(&State::RolledBack), "{told:?}");
    // Left alone it passes: it runs, it reached the hub, and the launcher keeps it.
    let agent = Launched::start(&field);
    let (report, result) = field.end(order(&field, 2, 0)).await;
    assert_eq!((report.state, result.state), (command::State::Succeeded, State::Confirmed), "{report:?}");
    agent.kill();
    let kept = Folder::new(&field.config.data).load().unwrap();
    assert_eq!(kept.current.unwrap().digest.to_string(), new);
    let agent = Launched::start(&field);
    assert_eq!(agent.runs().await, new);
    agent.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_crashes_at_boot_is_reported_by_the_one_before() {
    let field = Field::new("agent-2").await;
    field.repo.release(NEXT, b"#!/bin/sh\nkill -SEGV $$\n".to_vec(), &json!({}));
    let [old, _] = digests(&field);
    let agent = Launched::start(&field);
    let (report, result) = field.end(order(&field, 1, 0)).await;
    assert_eq!((report.state, result.state), (command::State::Failed, State::Failed));
    assert_eq!(result.reason.unwrap().code, "crashed");
    agent.kill();
    let agent = Launched::start(&field);
    assert_eq!(agent.runs().await, old);
    agent.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_launcher_the_order_is_refused_with_the_way_out() {
    let field = Field::new("agent-3").await;
    field.repo.release(NEXT, b"#!/bin/sh\n".to_vec(), &json!({}));
    let agent = Process::run(&field.config.data);
    let (report, result) = field.end(order(&field, 1, 0)).await;
    assert_eq!((report.state, result.state), (command::State::Rejected, State::Rejected));
    let reason = result.reason.unwrap();
    assert!(reason.code == "no_launcher" && reason.message.contains("fleet-agent launch"), "{reason:?}");
    agent.kill();
}
