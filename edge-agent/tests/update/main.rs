//! Updates of a whole agent by a hub over real HTTPS and MQTT: signed metadata, downloads, switching, and being killed on
//! the way.
//!
//! Here is what the tests share: a node that has joined, and waiting for a condition with a deadline.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agent;
mod attack;
mod flow;
#[path = "../commands/hub.rs"]
#[expect(dead_code, reason = "shared with tests that do more with it")]
mod hub;
mod kill;
mod repo;
#[path = "../agent/site.rs"]
#[expect(dead_code, reason = "shared with tests that do more with it")]
mod site;

use std::{
    fmt::Debug,
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use fleet_edge_agent::{
    clock::Clock,
    config::Config,
    core::devices::Register,
    identity::join::{Outcome, Wish, WishedId, join},
};
use fleet_schemas::{
    CommandId, MetricName, NodeId,
    command::{Offer, Report},
    update::{self, Order, State},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time;

use crate::{
    hub::offer,
    repo::Repo,
    site::{FRESH, Site},
};

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn clock() -> Clock {
    Clock::new(Default::default())
}

/// A hub with releases, and a node that has joined it.
pub(crate) struct Field {
    pub(crate) site: Site,
    pub(crate) repo: Repo,
    pub(crate) config: Config,
    _folder: TempDir,
}

impl Field {
    pub(crate) async fn new(node: &str) -> Self {
        let site = Site::start().await;
        let repo = Repo::new();
        {
            let mut book = site.book();
            book.life = FRESH;
            book.releases = Some(repo.serve());
        }
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config { data: folder.path().join("data"), ..Config::default() };
        config.api.listen = "127.0.0.1:0".parse().unwrap();
        config.system.interval = Duration::ZERO;
        config.devices.register = Register::Off;
        let wish = Wish {
            hub: site.https.to_string().parse().unwrap(),
            token: site.token(1),
            node: WishedId::Told(NodeId::parse(node).unwrap()),
            name: None,
            data: config.data.clone(),
            force: false,
        };
        let outcome = join(&wish, |_| ()).await.unwrap();
        assert!(matches!(outcome, Outcome::Joined(_)), "{outcome:?}");
        Self { site, repo, config, _folder: folder }
    }

    pub(crate) fn skill(&self) -> PathBuf {
        self.config.data.join("releases/skill/greeter")
    }

    /// What the app would start: the version in `current`, if that is one whole release.
    pub(crate) fn runs(&self) -> Option<String> {
        let current = self.skill().join("current");
        let version = fs::read_to_string(current.join("version")).ok()?;
        assert_eq!(fs::read(current.join("data")).unwrap(), repo::data(&version), "{version} is whole");
        Some(version)
    }

    /// Orders a skill.
    pub(crate) fn order(&self, number: u64, version: &str, change: impl FnOnce(&mut Order)) -> CommandId {
        self.order_of(number, &format!("skill/greeter/{version}/any"), "update/skill/greeter", change)
    }

    /// Orders a skill, to be done within so many milliseconds.
    pub(crate) fn order_within(&self, number: u64, version: &str, timeout_ms: u64) -> CommandId {
        let target = format!("skill/greeter/{version}/any");
        self.order_in(number, &target, "update/skill/greeter", timeout_ms, |_| ())
    }

    /// Orders anything.
    pub(crate) fn order_of(
        &self,
        number: u64,
        target: &str,
        supersedes: &str,
        change: impl FnOnce(&mut Order),
    ) -> CommandId {
        self.order_in(number, target, supersedes, 600_000, change)
    }

    fn order_in(
        &self,
        number: u64,
        target: &str,
        supersedes: &str,
        timeout_ms: u64,
        change: impl FnOnce(&mut Order),
    ) -> CommandId {
        let target: update::Target = target.parse().unwrap();
        let digest = self.repo.digest(&target.to_string());
        let order = json!({"target": target.to_string(), "digest": digest, "probation_ms": 0});
        let mut order: Order = serde_json::from_value(order).unwrap();
        change(&mut order);
        let params = serde_json::to_value(&order).unwrap();
        let queue = MetricName::parse("update").unwrap();
        let supersedes = Some(MetricName::parse(supersedes).unwrap());
        let offer = Offer {
            queue,
            supersedes,
            idempotent: true,
            timeout_ms,
            left_ms: 600_000,
            ..offer(number, "update", &params)
        };
        self.site.hub.want(offer)
    }

    /// Waits for the end of an order: of its command, and what the result says.
    pub(crate) async fn end(&self, id: CommandId) -> (Report, update::Report) {
        let (report, _) = self.site.hub.end(id).await;
        let result = report.result.as_ref().unwrap_or_else(|| panic!("{report:?}"));
        let result = update::Report::read(result).unwrap();
        assert_eq!(result.command, id);
        (report, result)
    }

    /// The states that events told of an order.
    pub(crate) fn told(&self, id: CommandId) -> Vec<State> {
        let events = self.site.hub.events();
        let reports = events.iter().filter_map(update::Report::of);
        reports.filter(|report| report.command == id).map(|report| report.state).collect()
    }
}

/// A running agent, the program; killed when a test fails.
pub(crate) struct Process {
    child: Child,
    pub(crate) api: SocketAddr,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Runs the program, and reads from its log where it listens.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.env_clear().stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let api = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the agent ended before it ran");
            if let Some((_, rest)) = line.split_once("api=") {
                break rest.split_whitespace().next().unwrap().parse().unwrap();
            }
        };
        // Somebody must read the log on, or the agent would wait for it.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, api }
    }

    pub(crate) fn run(data: &Path) -> Self {
        let mut command = Command::new(BINARY);
        command.args(["run", "--api", "127.0.0.1:0", "--data"]).arg(data);
        Self::start(command)
    }

    pub(crate) async fn status(&self) -> Value {
        let url = format!("http://{}/api/v1/status", self.api);
        reqwest::get(url).await.unwrap().json().await.unwrap()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_fleet-agent");

/// Asks again and again until the answer pleases, and gives it.
pub(crate) async fn until<T: Debug>(
    what: &str,
    mut ask: impl AsyncFnMut() -> T,
    mut pleases: impl FnMut(&T) -> bool,
) -> T {
    let asked = async {
        loop {
            let answer = ask().await;
            if pleases(&answer) {
                return answer;
            }
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    match time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer,
        Err(_) => panic!("never: {what}; the last answer is {:?}", ask().await),
    }
}
