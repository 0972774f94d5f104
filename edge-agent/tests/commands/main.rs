//! Commands of a hub to a whole agent: real sockets, files and programs.
//!
//! Here is what the tests share: an agent in a folder of its own with a hub, and waiting with a deadline.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod apps;
#[path = "../common/board.rs"]
#[expect(dead_code, reason = "shared with tests that do more with it")]
mod board;
mod devices;
mod hub;
mod programs;
mod starts;

use std::{fmt::Debug, time::Duration};

use fleet_edge_agent::{
    clock::Clock,
    config::Config,
    mqtt::Secret,
    run::{self, Handle},
};
use fleet_schemas::NodeId;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time;

use crate::hub::Hub;

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn clock() -> Clock {
    Clock::new(Default::default())
}

/// A hub, and an agent that it reaches and that allows what is listed.
pub(crate) struct Site {
    pub(crate) hub: Hub,
    pub(crate) agent: Handle,
    pub(crate) folder: TempDir,
    pub(crate) config: Config,
}

impl Site {
    pub(crate) async fn start(node: &str, allowed: &str) -> Self {
        Self::start_with(node, allowed, |_| {}).await
    }

    pub(crate) async fn start_with(node: &str, allowed: &str, change: impl FnOnce(&mut Config)) -> Self {
        let hub = Hub::start(node);
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config { data: folder.path().join("data"), ..Config::default() };
        config.node.id = Some(NodeId::parse(node).unwrap());
        config.api.listen = "127.0.0.1:0".parse().unwrap();
        config.system.interval = Duration::ZERO;
        config.hub.secret = Some(Secret(format!("secret-{node}")));
        config.hub.url = Some(format!("mqtt://{}", hub.address).parse().unwrap());
        change(&mut config);
        std::fs::create_dir(&config.data).unwrap();
        std::fs::write(config.data.join("commands.toml"), allowed).unwrap();
        let agent = run::start(config.clone()).await.unwrap();
        let site = Self { hub, agent, folder, config };
        until("a birth", async || site.hub.births().len(), |births| *births > 0).await;
        site
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.agent.api())
    }
}

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

pub(crate) async fn get_json(url: &str) -> (u16, Value) {
    let answer = reqwest::get(url).await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Posts a body of JSON; status and answer, which may be nothing.
pub(crate) async fn post(url: &str, body: impl ToString) -> (u16, Value) {
    let request = reqwest::Client::new().post(url).header("content-type", "application/json");
    let answer = request.body(body.to_string()).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
}
