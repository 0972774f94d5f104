//! A hub whose data folder is set back to an earlier copy: what the nodes still keep comes again, the rest is booked,
//! and every ledger is settled within two heartbeats.

use std::{fs, path::Path, time::Duration};

use fleet_manager::clock;

use crate::{
    compare::{self, EVENTS, SAMPLES, Stored},
    generator::Generator,
    given::{Agent, Hub, until},
};

const HEARTBEAT: Duration = Duration::from_secs(5);

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Hands in some batches of samples and some events, and waits until the hub has them.
async fn deliver(agent: &Agent, generator: &mut Generator, batches: u64) {
    for _ in 0..batches {
        assert!(generator.samples(50).await && generator.events(1).await);
        agent.drained().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_set_back_gets_again_what_is_kept_and_books_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let (data, backup) = (folder.path().join("hub"), folder.path().join("backup"));
    let mut hub = Hub::start(&data).await;
    let slow = [("NODE_HEARTBEAT_S", "5")];
    let keeper = Agent::new(folder.path(), "keeper", hub.mqtt, &slow).started().await;
    let mut loser = Agent::new(folder.path(), "loser", hub.mqtt, &slow).started().await;
    // A node that the backup has never heard of.
    let newcomer = Agent::new(folder.path(), "newcomer", hub.mqtt, &slow);
    let (mut kept, mut lost) =
        (Generator::new(1, keeper.door.clone()), Generator::new(2, loser.door.clone()));
    let mut new = Generator::new(3, newcomer.door.clone());
    deliver(&keeper, &mut kept, 3).await;
    deliver(&loser, &mut lost, 3).await;
    let backed_up = (lost.truth.samples.len() as u64, lost.truth.events.len() as u64);
    hub.end().await;
    copy(&data, &backup);
    hub.up().await;
    let newcomer = newcomer.started().await;
    deliver(&newcomer, &mut new, 2).await;
    deliver(&keeper, &mut kept, 4).await;
    deliver(&loser, &mut lost, 4).await;
    hub.kill();
    // Its keep runs out: what was acked goes when it starts again.
    loser.end().await;
    loser.set("OUTBOX_KEEP_S", "0.001");
    loser.up().await;
    until(
        "nothing is kept",
        async || loser.get("/api/v1/outbox").await["held_records"].as_u64(),
        |held| *held == Some(0),
    )
    .await;
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&backup, &data).unwrap();
    hub.up().await;
    for agent in [&keeper, &loser, &newcomer] {
        let answered = async || agent.get("/api/v1/status").await["cloud"] == true;
        until("the birth is answered", answered, |answered| *answered).await;
    }
    let answered = clock::mono();
    let ledger = compare::settled(&hub).await;
    let took = clock::mono().saturating_sub(answered);
    assert!(took < 2 * HEARTBEAT, "settled {took:?} after the births were answered");

    for (agent, generator) in [(&keeper, &kept), (&newcomer, &new)] {
        agent.drained().await;
        let stored = Stored::of(&hub, &agent.node, generator.truth.last).await;
        stored.check_all(&agent.node, &generator.truth);
        compare::check_ledger(&ledger, &agent.node, &stored);
        assert_eq!(compare::term(&ledger, &agent.node, compare::ALL, "lost"), 0);
    }
    let stored = Stored::of(&hub, "loser", lost.truth.last).await;
    stored.check_foreign("loser", &lost.truth);
    compare::check_ledger(&ledger, "loser", &stored);
    assert_eq!((stored.samples.len() as u64, stored.events.len() as u64), backed_up);
    let missing =
        (lost.truth.samples.len() as u64 - backed_up.0, lost.truth.events.len() as u64 - backed_up.1);
    let booked =
        (compare::term(&ledger, "loser", SAMPLES, "lost"), compare::term(&ledger, "loser", EVENTS, "lost"));
    assert_eq!(booked, missing);
    let reported: u64 = (stored.by_hub.iter())
        .filter(|(kind, text)| kind == "records_lost" && text.ends_with("hub_rollback"))
        .map(|(_, text)| text.split(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(reported, missing.0 + missing.1, "{:?}", stored.by_hub);
    // Life goes on for all of them.
    for (agent, generator) in [(&keeper, &mut kept), (&loser, &mut lost), (&newcomer, &mut new)] {
        deliver(agent, generator, 1).await;
    }
    compare::settled(&hub).await;
}
