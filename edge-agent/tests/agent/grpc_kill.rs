//! The agent killed and stopped under clients that stream: what was answered reaches the hub, and nothing does twice.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use fleet_edge_agent::api::grpc::pb::{self, telemetry_client::TelemetryClient};
use fleet_schemas::{Lane, StreamId, batch::Batch, telemetry::Samples};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time;

use crate::{
    PATIENCE, get_json,
    grpc::{batch, channel, sample},
    hub::{Hub, Said},
    process::{Process, command},
};

/// Times that the agent is brought down, the last time by its own stop.
const ROUNDS: u64 = 6;
/// New batches in each round.
const BATCHES: u64 = 600;
/// Samples in a batch.
const SAMPLES: usize = 20;

fn run(data: &std::path::Path, hub: &Hub) -> Process {
    let mut run = command(data, "run");
    run.args(["--api", "127.0.0.1:0", "--node", "killed", "--hub", &format!("mqtt://{}", hub.address)]);
    run.env("FLEET_SYSTEM_INTERVAL_S", "0").env("FLEET_SECRET", "secret-killed");
    run.env("FLEET_OUTBOX_PROMPT_S", "0.1");
    Process::start(run)
}

/// What the hub was told: each batch once, however often it was sent.
#[derive(Default)]
struct Told {
    batches: BTreeMap<(Lane, StreamId, u64), Batch>,
    // How often each sample is in them, by number of the client's batch and place in it.
    samples: BTreeMap<(u64, i64), usize>,
}

impl Told {
    /// Listens until the samples of so many batches of the client's are there.
    fn until(&mut self, hub: &Hub, wanted: usize) {
        while self.samples.len() < wanted * SAMPLES {
            let said = hub.said.recv_timeout(PATIENCE);
            let said = said.unwrap_or_else(|_| panic!("never: more than {} samples", self.samples.len()));
            let Said::Batch(lane @ (Lane::Telemetry | Lane::Backfill), batch) = said else { continue };
            match self.batches.entry((lane, batch.stream, batch.seq)) {
                Entry::Occupied(kept) => assert_eq!(*kept.get(), batch, "what is sent again is the same"),
                Entry::Vacant(new) => count(new.insert(batch), &mut self.samples),
            }
        }
    }
}

fn count(batch: &Batch, found: &mut BTreeMap<(u64, i64), usize>) {
    let samples = Samples::decode(&batch.body).unwrap();
    let times = samples.times();
    for values in samples.series.iter().map(|series| samples.values(series)) {
        for (time_ms, value) in times.iter().zip(values).filter(|(_, value)| !value.is_nan()) {
            *found.entry((value as u64, *time_ms)).or_default() += 1;
        }
    }
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
    let hub = Hub::start("127.0.0.1:0", true);
    // Batches that were sent, and those of them that were answered.
    let mut sent = BTreeSet::new();
    let mut safe = BTreeSet::new();
    for round in 0..ROUNDS {
        let mut agent = run(folder.path(), &hub);
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
    let mut agent = run(folder.path(), &hub);
    let doubtful: Vec<u64> = sent.difference(&safe).copied().collect();
    let mut client = TelemetryClient::new(channel(agent.api).await);
    for number in doubtful {
        let told = client.submit_batch(numbered(number)).await.unwrap().into_inner();
        assert_eq!(told.accepted, SAMPLES as u64);
    }
    assert_eq!(held(&agent).await, (sent.len() * SAMPLES) as u64, "each batch is there once");
    let mut at_hub = Told::default();
    at_hub.until(&hub, sent.len());
    let doubled: Vec<_> = at_hub.samples.into_iter().filter(|(_, times)| *times != 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
    assert_eq!(agent.end(Signal::TERM).await, Some(0));
}
