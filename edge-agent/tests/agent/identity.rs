//! The identity of a running agent: what it proves itself with, how it is renewed, and a hub that changes its mind.

use std::{sync::Arc, time::Duration};

use fleet_edge_agent::{
    config::Config,
    identity::{
        folder::Folder,
        join::{Outcome, Wish, WishedId, join},
        record::Joined,
    },
    run::{self, Handle, StartError},
};
use fleet_schemas::NodeId;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    get_json, quiet,
    site::{Asked, DUE, ENDED, FRESH, Site},
    start, until, url,
};

/// A node that has joined, with a certificate of this life; what it asks of the hub, it asks soon.
async fn joined(site: &Site, node: &str, life: (i64, i64)) -> (TempDir, Config) {
    let (folder, mut config) = quiet(node);
    site.book().life = life;
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
    site.book().life = FRESH;
    site.book().asked.clear();
    config.hub.secret = None;
    config.hub.trust = Duration::from_secs(1);
    (folder, config)
}

fn stored(config: &Config) -> Joined {
    Folder::new(&config.data).load().unwrap().unwrap()
}

/// The keys of sessions, and whether they were opened.
fn sessions(site: &Site) -> Vec<(Vec<u8>, bool)> {
    let session = |asked| match asked {
        Asked::Session(key, opened) => Some((key, opened)),
        Asked::Enrol(_) | Asked::Renew(_) | Asked::Trust => None,
    };
    site.asked().into_iter().filter_map(session).collect()
}

fn renewals(site: &Site) -> Vec<Vec<u8>> {
    let renewal = |asked| match asked {
        Asked::Renew(key) => Some(key),
        Asked::Enrol(_) | Asked::Session(..) | Asked::Trust => None,
    };
    site.asked().into_iter().filter_map(renewal).collect()
}

async fn status(agent: &Handle) -> Value {
    get_json(&url(agent, "/api/v1/status")).await
}

async fn online(agent: &Handle) {
    until("online", async || status(agent).await, |status| status["status"] == "online").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_due_is_renewed_with_a_new_key_and_takes_over() {
    let site = Site::start().await;
    let (_folder, config) = joined(&site, "renew-1", DUE).await;
    let old = stored(&config).current;
    let agent = start(config.clone()).await;
    let renewed = async || stored(&config);
    let after =
        until("the new pair took over", renewed, |joined| joined.next.is_none() && joined.current != old)
            .await;
    online(&agent).await;
    let (old_key, new_key) = (old.key.public_key().unwrap(), after.current.key.public_key().unwrap());
    assert_ne!(old_key, new_key);
    let sessions = sessions(&site);
    assert_eq!(sessions.last(), Some(&(new_key.clone(), true)));
    assert!(sessions.iter().all(|(_, opened)| *opened), "nobody was refused on the way");
    assert_eq!(renewals(&site), [new_key], "asked once");
    let view = status(&agent).await;
    assert_eq!(view["identity"]["renewed"], false);
    assert!(view["identity"]["certificate_ends_ms"].as_i64().unwrap() > crate::site::now_ms() + FRESH.1 / 2);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_ended_while_the_node_was_off_is_renewed_before_the_first_session() {
    let site = Site::start().await;
    let (_folder, config) = joined(&site, "renew-2", ENDED).await;
    let agent = start(config).await;
    online(&agent).await;
    let sessions = sessions(&site);
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    assert_eq!(renewals(&site), [sessions[0].0.clone()]);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_is_asked_for_with_the_same_key_also_after_a_restart() {
    let site = Site::start().await;
    let (_folder, config) = joined(&site, "renew-3", DUE).await;
    site.book().lost_answers = usize::MAX;
    let agent = start(config.clone()).await;
    until("it asks twice", async || renewals(&site).len(), |asked| *asked >= 2).await;
    agent.stop().await;
    assert!(stored(&config).next.is_some_and(|next| next.certificate.is_none()));
    site.book().lost_answers = 0;
    let agent = start(config.clone()).await;
    until("renewed", async || stored(&config), |joined| joined.next.is_none()).await;
    let keys = renewals(&site);
    assert!(keys.iter().all(|key| *key == keys[0]));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_pair_that_the_hub_does_not_take_leaves_the_old_one_at_work_until_there_is_a_better_one() {
    let site = Site::start().await;
    let (_folder, config) = joined(&site, "renew-4", DUE).await;
    site.book().spoils = true;
    let old = stored(&config).current;
    let old_key = old.key.public_key().unwrap();
    let agent = start(config.clone()).await;
    let after_refusal = |all: &Vec<(Vec<u8>, bool)>| {
        let refused = all.iter().position(|(key, opened)| !opened && *key != old_key);
        refused.is_some_and(|at| all[at..].contains(&(old_key.clone(), true)))
    };
    until("the new one is refused, the old one taken", async || sessions(&site), after_refusal).await;
    assert_eq!(stored(&config).current, old);
    site.book().spoils = false;
    until("another one took over", async || stored(&config), |joined| joined.current != old).await;
    let renewals = renewals(&site);
    let new_key = stored(&config).current.key.public_key().unwrap();
    assert!(renewals.len() >= 2 && new_key != renewals[0], "the one that was not taken is not kept");
    online(&agent).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_changes_its_ca_under_a_running_agent() {
    let site = Site::start().await;
    let (_folder, config) = joined(&site, "rotate-1", FRESH).await;
    let agent = start(config.clone()).await;
    online(&agent).await;
    site.add_ca();
    let renewed = async || stored(&config);
    let both = until("both are trusted, and it has a certificate of the new one", renewed, |joined| {
        joined.ca.len() == 2 && joined.next.as_ref().is_some_and(|next| next.certificate.is_some())
    })
    .await;
    assert_eq!(both.ca[0], site.book().cas[0].pem);
    assert_eq!(renewals(&site).len(), 1, "once for a change");
    site.drop_old_ca();
    site.hub.broker.as_ref().unwrap().kick(&NodeId::parse("rotate-1").unwrap(), "for the test");
    let after = until(
        "only the new one is trusted",
        async || stored(&config),
        |joined| joined.ca.len() == 1 && joined.next.is_none(),
    )
    .await;
    assert_eq!(after.ca, [site.book().cas[0].pem.clone()]);
    online(&agent).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_says_so_keeps_its_records_and_returns_when_it_is_let_in() {
    let site = Site::start().await;
    let (_folder, config) = joined(&site, "revoked-1", FRESH).await;
    let node = NodeId::parse("revoked-1").unwrap();
    let agent = start(config).await;
    online(&agent).await;
    site.book().nodes.get_mut(&node).unwrap().revoked = true;
    site.hub.broker.as_ref().unwrap().kick(&node, "revoked");
    let refused = async || status(&agent).await["identity"]["refused"].to_string();
    let text = until("it says why", refused, |text| text.contains("revoked")).await;
    assert!(text.contains("--force"), "{text}");
    let tries = sessions(&site).len();
    until("it tries again", async || sessions(&site).len(), |now| *now > tries).await;
    site.book().nodes.get_mut(&node).unwrap().revoked = false;
    online(&agent).await;
    assert!(status(&agent).await["identity"].get("refused").is_none());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hubs_time_is_kept_for_the_next_start_and_written_rarely() {
    let site = Site::start().await;
    let (_folder, config) = joined(&site, "time-1", FRESH).await;
    assert_eq!(stored(&config).hub_ms, 0);
    let agent = start(config.clone()).await;
    let kept = until("kept", async || stored(&config).hub_ms, |hub_ms| *hub_ms > 0).await;
    assert!((crate::site::now_ms() - kept).abs() < 60_000);
    let asked = site.asked().len();
    until("asked again", async || site.asked().len(), |now| *now > asked + 1).await;
    assert_eq!(stored(&config).hub_ms, kept, "less than a day is not worth a write");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_moved_is_found_by_its_address_alone() {
    let site = Site::start().await;
    let (_folder, mut config) = joined(&site, "moved-1", FRESH).await;
    // A name that no certificate holds.
    config.hub.url = Some(format!("mqtts://localhost:{}", site.mqtts.port()).parse().unwrap());
    let agent = start(config).await;
    online(&agent).await;
    until("asked there, too", async || site.asked(), |asked| asked.contains(&Asked::Trust)).await;
    assert_eq!(status(&agent).await["identity"]["hub"], format!("localhost:{}", site.https.port()));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_not_joined_or_is_somebody_else_is_told_what_to_do() {
    let site = Site::start().await;
    let (_folder, mut config) = quiet("stranger-1");
    config.hub.url = Some("mqtts://127.0.0.1:1".parse().unwrap());
    let error = run::start(config).await.unwrap_err();
    assert!(matches!(error, StartError::NotJoined(_)), "{error}");
    assert!(error.to_string().contains("fleet-agent join"), "{error}");
    let (_folder, mut config) = joined(&site, "stranger-2", FRESH).await;
    config.node.id = Some(NodeId::parse("other").unwrap());
    let error = run::start(config.clone()).await.unwrap_err();
    assert!(matches!(error, StartError::OtherNode { .. }), "{error}");
    // Two agents on one identity.
    config.node.id = None;
    let agent = start(config.clone()).await;
    let error = run::start(config).await.unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    drop(Arc::new(agent));
}
