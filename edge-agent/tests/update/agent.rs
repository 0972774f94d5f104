//! The agent updates itself through its launcher, and both are killed at every step: one verified release always runs, and
//! nobody has to repair anything.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use fleet_edge_agent::launch::{Folder, digest_of};
use fleet_schemas::{
    CommandId, NodeId, command,
    update::{State, Target, Window},
};
use rustix::process::{Pid, Signal, kill_process};
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

/// The states at which the node has written down what it does next.
const STEPS: [&str; 6] = ["accepted", "downloading", "downloaded", "installing", "switching", "probation"];

/// One release after the other, each killed once at every step.
struct Rounds {
    field: Field,
    /// While this file is there, what was fetched is not put to use.
    metered: PathBuf,
    killed: BTreeMap<&'static str, usize>,
}

impl Rounds {
    /// Starts it until it is at a step, and kills launcher and agent there. The step may be over before it was seen:
    /// then it is not counted.
    async fn kill_at(&mut self, step: &'static str, runs: &str) {
        let agent = Launched::start(&self.field);
        let place = |word: &str| STEPS.iter().position(|step| *step == word);
        let seen = until(
            step,
            async || agent.status().await,
            |status| {
                let state = status["updates"]["updates"][0]["state"].as_str().and_then(place);
                state >= place(step)
            },
        )
        .await;
        if is_at(&seen, step) {
            assert_eq!(agent.runs().await, runs, "at {step}");
            *self.killed.entry(step).or_default() += 1;
        }
        agent.kill();
    }

    /// The launcher stands still: the agent writes that another is to be started, and ends; nobody starts it.
    async fn kill_while_nothing_runs(&mut self, target: &Target) {
        let agent = Launched::start(&self.field);
        let launcher = Pid::from_child(&agent.process.child);
        kill_process(launcher, Signal::STOP).unwrap();
        until("the agent ended", async || agent.status().await, Value::is_null).await;
        let record = Folder::new(&self.field.config.data).load().unwrap();
        assert_eq!(record.trial.unwrap().release.version, target.version, "the next start is written down");
        *self.killed.entry("switching").or_default() += 1;
        agent.kill();
    }

    /// Whether the hub lets the node in.
    fn open(&self, open: bool) {
        let node = NodeId::parse("agent-4").unwrap();
        self.field.site.book().nodes.get_mut(&node).unwrap().revoked = !open;
    }

    /// Gives what runs in the end.
    async fn round(&mut self, round: u64, old: &str) -> String {
        let text = format!("agent/fleet-agent/9.{round}.0/any");
        let target: Target = text.parse().unwrap();
        let program = [PROGRAM.as_slice(), round.to_string().as_bytes()].concat();
        let held = program.len() - 100_000;
        self.field.repo.release(&text, program, &json!({}));
        let new = self.field.repo.digest(&text);
        let hold = self.field.repo.hold("/v1/tuf/timestamp.json", 0);
        let id = self.field.order_of(100 + round, &text, "update/agent/fleet-agent", |order| {
            order.probation_ms = Some(0);
            order.window = Some(Window { unmetered: true, ..Window::default() });
        });
        self.kill_at("accepted", old).await;
        drop(hold);
        let hold = self.field.repo.hold("/v1/artifacts", held);
        self.kill_at("downloading", old).await;
        // The link begins to cost just before the last bytes come: what is there waits.
        let asked = self.field.repo.ranges().len();
        let agent = Launched::start(&self.field);
        let file = self.field.config.data.join("releases/downloads").join(&new);
        let there = async || {
            let length = fs::metadata(&file).map_or(0, |file| file.len());
            (self.field.repo.ranges().len() > asked).then_some(length)
        };
        let most = held as u64 - 200_000;
        until("all but the last bytes", there, |length| length.is_some_and(|length| length > most)).await;
        fs::write(&self.metered, "").unwrap();
        drop(hold);
        let waits = |status: &Value| {
            is_at(status, "downloaded") || status["updates"]["updates"][0]["reason"].is_string()
        };
        let seen = until("it waits", async || agent.status().await, waits).await;
        *self.killed.entry("downloaded").or_default() += usize::from(is_at(&seen, "downloaded"));
        agent.kill();
        fs::remove_file(&self.metered).unwrap();
        self.kill_at("installing", old).await;
        self.kill_while_nothing_runs(&target).await;
        // On trial it has to be heard by the hub, which does not let it in for now.
        self.open(false);
        self.kill_at("probation", &new).await;
        self.open(true);
        let agent = Launched::start(&self.field);
        let (report, result) = self.field.end(id).await;
        assert_eq!((report.state, result.state), (command::State::Succeeded, State::Confirmed), "{result:?}");
        assert_eq!(agent.runs().await, new);
        agent.kill();
        let told = self.field.told(id);
        assert!(told.is_sorted(), "each step was told once and in order, whatever was killed: {told:?}");
        new
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_persisted_step_of_an_agents_update_survives_ten_kills() {
    let field = Field::new("agent-4").await;
    let metered = field.config.data.join("metered");
    let file = format!("[update]\nmetered_while = {:?}\n", metered.display().to_string());
    fs::write(field.config.data.join("agent.toml"), file).unwrap();
    let mut runs = digest_of(Path::new(BINARY)).unwrap().to_string();
    let mut rounds = Rounds { field, metered, killed: BTreeMap::new() };
    let enough = |rounds: &Rounds| STEPS.iter().all(|step| rounds.killed.get(step) >= Some(&KILLS));
    // A step that was over before it was seen is killed in a later round.
    for round in 0..3 * KILLS as u64 {
        if enough(&rounds) {
            break;
        }
        runs = rounds.round(round, &runs).await;
    }
    assert!(enough(&rounds), "{:?}", rounds.killed);
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
