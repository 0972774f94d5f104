//! The agent killed and stopped under clients that stream: what was answered is there, and nothing is there twice.

use std::collections::BTreeSet;

use fleet_edge_agent::api::grpc::pb::{self, telemetry_client::TelemetryClient};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time;

use crate::{
    PATIENCE, get_json,
    grpc::{batch, channel, sample},
    process::{Process, command},
};

/// Times that the agent is brought down, the last time by its own stop.
const ROUNDS: u64 = 6;
/// New batches in each round.
const BATCHES: u64 = 600;
/// Samples in a batch.
const SAMPLES: usize = 20;

fn run(data: &std::path::Path) -> Process {
    let mut run = command(data, "run");
    run.args(["--api", "127.0.0.1:0", "--node", "killed"]).env("FLEET_SYSTEM_INTERVAL_S", "0");
    Process::start(run)
}

fn numbered(number: u64) -> pb::TelemetryBatch {
    let samples =
        (0..SAMPLES).map(|at| pb::Sample { time_ms: Some(at as i64), ..sample("m", number as f64) });
    batch(&format!("batch {number}"), samples.collect())
}

async fn held(agent: &Process) -> u64 {
    let view: Value = get_json(&format!("http://{}/api/v1/outbox", agent.api)).await;
    view["held_records"].as_u64().unwrap()
}

/// Streams what is to be sent until the agent goes; counts what was answered.
async fn stream(agent: std::net::SocketAddr, numbers: Vec<u64>, answered: tokio::sync::watch::Sender<u64>) {
    let mut client = TelemetryClient::new(channel(agent).await);
    let batches = futures_util::stream::iter(numbers.into_iter().map(numbered));
    let Ok(answers) = client.submit_stream(batches).await else { return };
    let mut answers = answers.into_inner();
    while let Ok(Some(told)) = answers.message().await {
        answered.send_replace(told.batches);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_to_a_stream_survives_a_kill_and_is_there_once() {
    let folder = tempfile::tempdir().unwrap();
    // Batches that were sent, and those of them that were answered.
    let mut sent = BTreeSet::new();
    let mut safe = BTreeSet::new();
    for round in 0..ROUNDS {
        let mut agent = run(folder.path());
        let per_batch = SAMPLES as u64;
        let found = held(&agent).await;
        assert!(
            (safe.len() as u64 * per_batch..=sent.len() as u64 * per_batch).contains(&found),
            "round {round}: {found} of {} answered and {} sent",
            safe.len(),
            sent.len()
        );
        // What was in doubt is sent again with what is new: it is stored once.
        let doubtful = sent.difference(&safe).copied();
        let first = sent.last().map_or(0, |last| last + 1);
        let numbers: Vec<u64> = doubtful.chain(first..first + BATCHES).collect();
        let (answered, mut told) = tokio::sync::watch::channel(0);
        let streaming = tokio::spawn(stream(agent.api, numbers.clone(), answered));
        let enough = 20 + 30 * round;
        let ended = time::timeout(PATIENCE, told.wait_for(|told| *told >= enough)).await;
        assert!(ended.is_ok_and(|told| told.is_ok()), "round {round}: the stream is not answered");
        let signal = if round + 1 == ROUNDS { Signal::TERM } else { Signal::KILL };
        agent.end(signal).await;
        time::timeout(PATIENCE, streaming).await.expect("the client hears of it").unwrap();
        let told = usize::try_from(*told.borrow()).unwrap();
        safe.extend(&numbers[..told]);
        // All of those behind may have arrived, and answers may have been lost on the way.
        sent.extend(&numbers);
    }
    let mut agent = run(folder.path());
    let doubtful: Vec<u64> = sent.difference(&safe).copied().collect();
    let mut client = TelemetryClient::new(channel(agent.api).await);
    for number in doubtful {
        let told = client.submit_batch(numbered(number)).await.unwrap().into_inner();
        assert_eq!(told.accepted, SAMPLES as u64);
    }
    assert_eq!(held(&agent).await, (sent.len() * SAMPLES) as u64, "each batch is there once");
    assert_eq!(agent.end(Signal::TERM).await, Some(0));
}
