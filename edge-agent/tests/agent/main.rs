//! The whole agent over real sockets, files and programs.
//!
//! Here is what its tests share: an agent in a folder of its own, and waiting for a condition with a deadline.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/board.rs"]
#[expect(dead_code, reason = "shared with tests that do more with it")]
mod board;
mod budget;
mod config;
mod devices;
mod drivers;
mod edge_api;
mod grpc;
mod grpc_kill;
mod hostile;
mod hub;
mod identity;
mod join;
mod listener;
mod openapi;
mod process;
mod rules;
mod site;
mod tls;

use std::{fmt::Debug, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use fleet_edge_agent::{
    config::Config,
    core::devices::Register,
    mqtt::Secret,
    run::{self, Handle},
};
use fleet_schemas::NodeId;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time;

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// An agent's folder and a configuration that collects nothing and listens on a port of its own.
pub(crate) fn quiet(node: &str) -> (TempDir, Config) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config { data: folder.path().join("data"), ..Config::default() };
    config.node.id = Some(NodeId::parse(node).unwrap());
    config.api.listen = "127.0.0.1:0".parse().unwrap();
    config.system.interval = Duration::ZERO;
    // Each new device is an event of its own: tests that count records want none but theirs.
    config.devices.register = Register::Off;
    config.hub.secret = Some(Secret(format!("secret-{node}")));
    (folder, config)
}

pub(crate) async fn start(config: Config) -> Handle {
    run::start(config).await.unwrap()
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
            time::sleep(Duration::from_millis(10)).await;
        }
    };
    match time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer,
        Err(_) => panic!("never: {what}; the last answer is {:?}", ask().await),
    }
}

pub(crate) fn url(agent: &Handle, path: &str) -> String {
    format!("http://{}{path}", agent.api())
}

pub(crate) async fn get_json(url: &str) -> Value {
    reqwest::get(url).await.unwrap().json().await.unwrap()
}

/// Posts a body of JSON; status and answer.
pub(crate) async fn post(url: &str, body: impl ToString) -> (u16, Value) {
    let request = reqwest::Client::new().post(url).header("content-type", "application/json");
    let answer = request.body(body.to_string()).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Writes a script that can be run.
pub(crate) fn script(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}
