//! A budget of bytes against what a wire really carries.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fleet_edge_agent::{run::Handle, upload::Gone};
use fleet_schemas::{Lane, StreamId};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    get_json,
    hub::{Hub, Said, connected},
    post, start, until, url,
};

const BUDGET: u64 = 64 * 1024;
const HOUR_MS: i64 = 3_600_000;
const POSTS: u64 = 20;
const SAMPLES: u64 = 1_000;

/// Passes on to `hub`, and counts what goes up.
async fn counting(hub: SocketAddr) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, counted) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let count = counted.clone();
    tokio::spawn(async move {
        while let Ok((agent, _)) = listener.accept().await {
            let (hub, count) = (TcpStream::connect(hub).await.unwrap(), count.clone());
            let (mut from_agent, mut to_agent) = agent.into_split();
            let (mut from_hub, mut to_hub) = hub.into_split();
            tokio::spawn(async move { drop(tokio::io::copy(&mut from_hub, &mut to_agent).await) });
            tokio::spawn(async move {
                let mut bytes = vec![0; 16 * 1024];
                while let Ok(read @ 1..) = from_agent.read(&mut bytes).await {
                    count.fetch_add(read as u64, Ordering::Relaxed);
                    if to_hub.write_all(&bytes[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, counted)
}

/// Records that came, and records that are declared lost, by (lane, stream, number), however often each came.
fn count(hub: &Hub, batches: &mut BTreeMap<(Lane, StreamId, u64), (u64, bool)>) -> (u64, u64) {
    while let Ok(said) = hub.said.try_recv() {
        if let Said::Batch(lane, batch) = said {
            batches.insert((lane, batch.stream, batch.seq), (batch.count, batch.lost.is_some()));
        }
    }
    let sum = |lost| batches.values().filter(|(_, is)| *is == lost).map(|(count, _)| count).sum();
    (sum(false), sum(true))
}

async fn outbox(agent: &Handle) -> Value {
    get_json(&url(agent, "/api/v1/outbox")).await
}

/// Noise, so that nothing compresses.
async fn say_a_lot(agent: &Handle) {
    let mut noise = 1_u64;
    for _ in 0..POSTS {
        let mut samples = Vec::new();
        for _ in 0..SAMPLES {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            samples.push(json!({"metric": "m", "value": (noise >> 11) as f64 / 3.0}));
        }
        let body = json!({"device": "d", "samples": samples});
        assert_eq!(post(&url(agent, "/api/v1/telemetry"), body).await.0, 202);
    }
}

/// An hour that turns in the middle gives one more budget.
async fn within(agent: &Handle, hour: i64, counted: &AtomicU64) {
    let carried = counted.load(Ordering::Relaxed);
    let turned = agent.status().await.unwrap().time_ms / HOUR_MS - hour;
    assert!(carried <= BUDGET * (1 + turned.unsigned_abs()), "{carried} bytes in {turned} turns");
    assert!(carried > BUDGET / 4, "it is used: {carried}");
}

async fn holds(gone: Gone, node: &str) {
    let hub = Hub::start("127.0.0.1:0", true);
    let (wire, counted) = counting(hub.address).await;
    let (_folder, mut config) = connected(node, wire);
    config.node.heartbeat = Duration::from_secs(3_600);
    config.upload.every = Some(Duration::from_millis(100));
    config.upload.hour_bytes = Some(BUDGET);
    config.upload.when_gone = gone;
    let agent = start(config.clone()).await;
    let online = async |agent: &Handle| {
        until("online", async || agent.status().await.unwrap().status, |status| status == "online").await;
    };
    online(&agent).await;
    let hour = agent.status().await.unwrap().time_ms / HOUR_MS;
    say_a_lot(&agent).await;
    let held_back = until(
        "the budget is gone",
        async || outbox(&agent).await,
        |outbox| outbox["waits_for_budget"] == true && (gone == Gone::Wait || outbox["lost_records"] != 0),
    )
    .await;
    assert_eq!(held_back["hour_budget"]["budget_bytes"], BUDGET);
    within(&agent, hour, &counted).await;
    let mut batches = BTreeMap::new();
    assert!(count(&hub, &mut batches).0 < POSTS * SAMPLES, "not all of it fits");
    agent.stop().await;
    // What was used is remembered.
    let agent = start(config.clone()).await;
    online(&agent).await;
    let waits = |outbox: &Value| {
        // What may not wait may have been declared by now, all of it.
        let is_over = outbox["unacked_batches"] == 0 && outbox["pending_samples"] == 0;
        outbox["waits_for_budget"] == true || (gone == Gone::Drop && is_over)
    };
    until("it waits still", async || outbox(&agent).await, waits).await;
    within(&agent, hour, &counted).await;
    agent.stop().await;
    // Without a budget the rest comes; nothing is missing from the account.
    config.upload.hour_bytes = None;
    let agent = start(config).await;
    let (came, lost) = until(
        "everything is accounted for",
        async || count(&hub, &mut batches),
        |(came, lost)| came + lost == POSTS * SAMPLES,
    )
    .await;
    assert!(came > 0 && (lost > 0) == (gone == Gone::Drop), "{came} came, {lost} are lost");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_budget_holds_back_waits_and_comes_later() {
    holds(Gone::Wait, "budget-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_budget_holds_back_is_declared_where_it_may_not_wait() {
    holds(Gone::Drop, "budget-2").await;
}
