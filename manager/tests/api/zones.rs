//! Times at nodes, by the clocks of their sites: on the command line and in the console; in JSON they stay what they are.

use fleet_manager::{clock, core::identity::Role};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    alerts::{HOT, alerts, put},
    cli::on,
    commands::{Does, Machine, until},
    console::Browser,
    given::{Node, Site, operator, sign_greeter},
};

/// A zone without summer time, whose abbreviation nobody else has.
const TOKYO: &str = "Asia/Tokyo";

/// What a verb prints, which has to succeed.
async fn said(site: &Site, verb: &[&str]) -> String {
    let (code, out, err) = on(site, verb).await;
    assert_eq!(code, 0, "{verb:?}: {out}{err}");
    out + &err
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_at_a_node_is_told_by_the_clocks_of_its_site_wherever_it_stands() {
    let site = Site::start().await;
    assert_eq!(put(&site, "/api/v1/rules", HOT).await.0, StatusCode::OK);
    let _machine = Machine::born(&site, "edge-1", Does::Exits(0)).await;
    let mut node = Node::born(&site, "edge-2").await;
    let mut elsewhere = Node::born(&site, "edge-3").await;
    for id in ["edge-1", "edge-2"] {
        said(&site, &["node", "set", id, "--site", "roof"]).await;
    }
    said(&site, &["site", "set", "roof", "--tz", TOKYO]).await;
    node.measures(&[(clock::wall_ms(), "dht22", "temperature", 28.5)]).await;
    elsewhere.measures(&[(clock::wall_ms(), "", "temperature", 20.0)]).await;

    // Alerts, and what keeps them quiet.
    let alert = alerts(&site, "state=firing", 1).await.remove(0);
    assert_eq!((&alert["tz"], alert["since_ms"].is_i64()), (&json!(TOKYO), true), "{alert}");
    let id = alert["id"].as_str().unwrap();
    let text = said(&site, &["alert", "get", id]).await;
    assert!(text.contains("fires since") && text.contains(" JST ("), "{text}");
    let text = said(&site, &["alert", "silence", "--site", "roof", "--for", "2h"]).await;
    assert!(text.contains(" JST: site roof"), "{text}");
    assert!(said(&site, &["alert", "silences"]).await.contains(" JST  "));

    // The ledger has nodes of several sites; those of none are told in UTC, and say so.
    let text = said(&site, &["ledger"]).await;
    let of = |id: &str| text.lines().find(|line| line.starts_with(id)).unwrap().to_owned();
    assert!(of("edge-2").ends_with(" JST") && of("edge-3").ends_with(" UTC"), "{text}");

    // Commands: as they run, as they stand, and why.
    let text = said(&site, &["command", "run", "edge-1", "--", "df"]).await;
    assert!(text.contains(" JST  edge-1  succeeded"), "{text}");
    let run = ["command", "run", "edge-1", "edge-3", "--kind", "ping", "--not-before", "30m", "--no-wait"];
    let text = said(&site, &run).await;
    let waits = text.split_whitespace().next().unwrap();
    let text = said(&site, &["command", "get", waits]).await;
    let turns: Vec<_> = text.lines().filter(|line| line.contains("its turn comes at")).collect();
    assert!(turns[0].ends_with(" JST") && turns[1].ends_with(" UTC"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("expires") && line.contains(" UTC (")), "{text}");
    let text = said(&site, &["why", waits]).await;
    let of = |id: &str| text.lines().find(|line| line.contains(&format!("queued for {id}"))).unwrap();
    assert!(of("edge-1").contains(" JST  ping") && of("edge-3").contains(" UTC  ping"), "{text}");
    assert!(said(&site, &["why", "edge-2"]).await.contains(" JST  edge-2 is online"));
    let ran = site.get("/api/v1/commands?kind=exec").await["items"][0].clone();
    assert_eq!(ran["tz"], TOKYO, "it was for one node");
    let ran = until(&site, ran["id"].as_str().unwrap(), "succeeded").await;
    let text = said(&site, &["command", "get", ran["id"].as_str().unwrap()]).await;
    assert!(text.lines().any(|line| line.starts_with("expires") && line.contains(" JST (")), "{text}");

    // A rollout's nodes.
    sign_greeter(&site.hub);
    let body = r#"{"release": "greeter@1.0.0", "all": true}"#;
    let (status, made) = site.ask(Method::POST, "/api/v1/rollouts", Some(body)).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let rollout = site.get("/api/v1/rollouts/greeter-1.0.0-1").await;
    let zones: Vec<&Value> = rollout["nodes"].as_array().unwrap().iter().map(|node| &node["tz"]).collect();
    assert_eq!(zones, [&json!(TOKYO), &json!(TOKYO), &Value::Null]);

    // The console's pages of the same.
    let token = operator(&site.hub, "ada", Role::Operator, None).await;
    let mut browser = Browser::of(&site, &token).await;
    let command = format!("/commands/{waits}");
    for path in ["/", "/alerts", "/rollouts/greeter-1.0.0-1", "/nodes/edge-2", "/nodes/edge-1", &command] {
        let page = browser.page(path).await;
        assert!(page.contains("JST\">") && page.contains("data-there=\"20"), "{path}: {page}");
    }
    assert!(browser.page("/nodes/edge-2").await.contains(" JST</time>"), "the axis of its charts");
    site.stop().await;
}
