//! The outbox runs full while the hub is away: the oldest samples go, each is declared, and the ledger balances.

use crate::{
    compare::{self, SAMPLES, Stored},
    generator::Generator,
    given::{Agent, Hub, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_declared_lost_to_the_record() {
    let folder = tempfile::tempdir().unwrap();
    let mut hub = Hub::start(&folder.path().join("hub")).await;
    let quota = [("OUTBOX_QUOTA_BYTES", "1048576"), ("OUTBOX_BATCH_SAMPLES", "1000")];
    let agent = Agent::new(folder.path(), "full", hub.mqtt, &quota).started().await;
    let mut generator = Generator::new(1, agent.door.clone());
    // The node is known, and some of it was delivered, before the hub goes away.
    assert!(generator.samples(500).await && generator.events(2).await);
    agent.drained().await;
    let before = generator.truth.last;
    hub.kill();
    let mut agent = agent;
    let lost = async || agent.get("/api/v1/outbox").await["lost_records"].as_u64().unwrap();
    while lost().await < 20_000 {
        assert!(generator.samples(2_000).await, "samples are never refused for want of space");
    }
    assert!(generator.events(3).await);
    let lost = lost().await;
    // Restarted, it knows of its tombstones from the disk alone; and it does not wait before it connects.
    agent.end().await;
    hub.up().await;
    agent.up().await;
    agent.drained().await;
    let ledger = compare::settled(&hub).await;
    let stored = Stored::of(&hub, "full", generator.truth.last).await;
    let truth = &generator.truth;
    stored.check_foreign("full", truth);
    compare::check_ledger(&ledger, "full", &stored);
    assert!(truth.maybe.is_empty());
    assert_eq!(stored.events.len(), truth.events.len());
    let declared = compare::term(&ledger, "full", SAMPLES, "lost");
    assert!(declared >= lost, "{declared} at the hub, {lost} at the edge");
    assert_eq!(truth.samples.len() as u64, stored.samples.len() as u64 + declared);
    // The oldest went: what is missing was handed in before everything that came after the hub was gone.
    let missing = truth.samples.iter().filter(|number| !stored.samples.contains_key(number));
    let first_kept = stored.samples.keys().find(|number| **number > before).unwrap();
    assert!(missing.clone().all(|number| *number > before && number < first_kept));
    let reports =
        stored.by_hub.iter().filter(|(kind, text)| kind == "records_lost" && text.contains("outbox_full"));
    assert!(reports.count() > 0, "{:?}", stored.by_hub);
    until(
        "nothing is broken",
        async || hub.metric("fleet_ledger_accounts{state=\"broken\"}").await,
        |n| *n == 0.0,
    )
    .await;
}
