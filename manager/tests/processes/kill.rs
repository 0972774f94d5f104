//! SIGKILL at random moments, under load: nothing that was accepted is lost, and nothing is stored twice.

use std::{sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
    time,
};

use crate::{
    compare::{self, ALL, Stored},
    generator::{Generator, Truth},
    given::{Agent, Hub},
};

/// Nodes under load.
const NODES: usize = 3;
/// Pause between two requests of one generator.
const PACE: Duration = Duration::from_millis(10);
/// Longest life of a process.
const LIFE_MS: u64 = 2_500;

/// How often each process is killed.
fn kills() -> u64 {
    std::env::var("FLEET_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

fn seed() -> u64 {
    let given = std::env::var("FLEET_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| u64::from_le_bytes(fleet_manager::clock::random()))
}

/// Posts until told to stop.
fn load(mut generator: Generator, stop: watch::Receiver<bool>) -> JoinHandle<Truth> {
    tokio::spawn(async move {
        let mut pace = time::interval(PACE);
        pace.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        while !*stop.borrow() {
            pace.tick().await;
            generator.load().await;
        }
        generator.truth
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_accepted_is_lost_or_doubled_by_kills() {
    let (kills, seed) = (kills(), seed());
    println!("seed {seed}: FLEET_SEED={seed} draws the same moments and records again");
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&folder.path().join("hub")).await;
    let mqtt = hub.mqtt;
    let hub = Arc::new(Mutex::new(hub));
    let (stop, stopping) = watch::channel(false);
    let mut loads = Vec::new();
    let mut killers = Vec::new();
    for n in 0..NODES {
        let mut agent = Agent::new(folder.path(), &format!("kill-{n}"), mqtt, &[]).started().await;
        let own = seed.wrapping_add(n as u64);
        loads.push(load(Generator::new(own, agent.door.clone()), stopping.clone()));
        killers.push(tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(own);
            for _ in 0..kills {
                time::sleep(Duration::from_millis(rng.random_range(0..LIFE_MS))).await;
                agent.kill();
                agent.up().await;
            }
            agent
        }));
    }
    let killed = hub.clone();
    let hub_killer = tokio::spawn(async move {
        let mut rng = StdRng::seed_from_u64(!seed);
        for _ in 0..kills {
            time::sleep(Duration::from_millis(rng.random_range(0..LIFE_MS))).await;
            let mut hub = killed.lock().await;
            hub.kill();
            hub.up().await;
        }
    });
    hub_killer.await.unwrap();
    let mut agents = Vec::new();
    for killer in killers {
        agents.push(killer.await.unwrap());
    }
    stop.send_replace(true);
    let mut truths = Vec::new();
    for load in loads {
        truths.push(load.await.unwrap());
    }
    // Once more, so that none waits for long before it tries to connect.
    for agent in &mut agents {
        agent.kill();
        agent.up().await;
    }
    for agent in &agents {
        agent.drained().await;
    }
    let hub = hub.lock().await;
    let ledger = compare::settled(&hub).await;
    let broken = hub.get("/api/v1/alerts?rule=ledger-broken").await;
    assert_eq!(
        broken["items"],
        serde_json::json!([]),
        "an account that comes out was called broken on the way"
    );
    let mut accepted = 0;
    for (agent, truth) in agents.iter().zip(&truths) {
        let node = &agent.node;
        let stored = Stored::of(&hub, node, truth.last).await;
        stored.check_all(node, truth);
        assert_eq!(stored.by_hub, [], "{node}: kills are no reason for a report");
        compare::check_ledger(&ledger, node, &stored);
        for absent in ["lost", "quarantined", "written_off", "expired"] {
            assert_eq!(compare::term(&ledger, node, ALL, absent), 0, "{node}: {absent}");
        }
        assert!(truth.samples.len() > 100 && truth.events.len() > 5, "{node} was under load");
        accepted += truth.samples.len() + truth.events.len();
        println!(
            "{node}: {} samples, {} events accepted, {} without an answer",
            truth.samples.len(),
            truth.events.len(),
            truth.maybe.len()
        );
    }
    println!("{accepted} records, {kills} kills of each of {} processes", NODES + 1);
}
