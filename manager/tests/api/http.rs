//! Lists, changes, queries, refusals, health.

use std::{collections::BTreeSet, sync::Arc};

use fleet_manager::{
    clock,
    metrics::catalogue,
    notify,
    store::disk::{Folder, Memory},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    alerts::receiver,
    given::{Node, PATIENCE, Site, sign_greeter},
};

fn ids(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_listed_selected_and_paged() {
    let site = Site::start().await;
    let _nodes =
        [Node::born(&site, "a-1").await, Node::born(&site, "b-2").await, Node::born(&site, "c-3").await];
    let all = site.get("/api/v1/nodes").await;
    assert_eq!((ids(&all), &all["next"]), (vec!["a-1", "b-2", "c-3"], &Value::Null));
    let node = &all["items"][0];
    assert_eq!(
        (&node["state"], &node["kind"], &node["session_epoch"]),
        (&json!("online"), &json!("picclaw"), &json!(1))
    );
    assert_eq!(node["versions"], json!({"agent": "0.1.0", "skills": {}}));
    let first = site.get("/api/v1/nodes?limit=2").await;
    assert_eq!(ids(&first), ["a-1", "b-2"]);
    let next = first["next"].as_str().unwrap();
    assert_eq!(ids(&site.get(&format!("/api/v1/nodes?limit=2&cursor={next}")).await), ["c-3"]);
    let found = site.get("/api/v1/nodes?selector=id%20in%20(b-2,c-3),capability%3Dsensor,id!%3Dc-3").await;
    assert_eq!(ids(&found), ["b-2"]);
    let (status, problem) = site.ask(Method::GET, "/api/v1/nodes?selector=a%20b", None).await;
    assert_eq!((status.as_u16(), &problem["errors"][0]["pointer"]), (422, &json!("?selector")));
    assert!(problem["errors"][0]["detail"].as_str().unwrap().contains("character 3"), "{problem}");
    let (status, _) = site.ask(Method::GET, "/api/v1/nodes?selectr=a", None).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "a misspelt filter must not select everything");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_is_merged_committed_and_refused_with_pointers() {
    let site = Site::start().await;
    let _node = Node::born(&site, "edge-1").await;
    let path = "/api/v1/nodes/edge-1";
    let body = r#"{"name": "Kiln", "site": "berlin", "location": {"lat": 52.5, "lon": 13.4}, "labels": {"rack": "1"}}"#;
    let (status, node) = site.ask(Method::PATCH, path, Some(body)).await;
    assert_eq!(
        (status, &node["name"], &node["labels"]),
        (StatusCode::OK, &json!("Kiln"), &json!({"rack": "1"}))
    );
    let (_, node) = site.ask(Method::PATCH, path, Some(r#"{"site": null, "labels": {"row": "2"}}"#)).await;
    assert_eq!((&node["site"], &node["labels"]), (&Value::Null, &json!({"rack": "1", "row": "2"})));
    assert_eq!(site.get(path).await["name"], "Kiln");

    let bad = r#"{"state": "x", "name": 5, "labels": {"kind": "x"}}"#;
    let (status, problem) = site.ask(Method::PATCH, path, Some(bad)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let pointers: BTreeSet<_> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| fault["pointer"].as_str().unwrap())
        .collect();
    assert_eq!(pointers, ["/labels/kind", "/name", "/state"].into());
    let long = format!(r#"{{"site": "{}"}}"#, "x".repeat(200));
    let (status, problem) = site.ask(Method::PATCH, path, Some(&long)).await;
    assert_eq!((status.as_u16(), &problem["errors"][0]["pointer"]), (422, &json!("/site")));
    let (status, problem) = site.ask(Method::PATCH, "/api/v1/nodes/nobody", Some("{}")).await;
    assert_eq!((status.as_u16(), &problem["status"]), (404, &json!(404)));
    for (method, body, expected) in [(Method::PATCH, Some("{"), 400), (Method::POST, None, 405)] {
        assert_eq!(site.ask(method, path, body).await.0.as_u16(), expected);
    }
    assert_eq!(site.ask(Method::GET, "/api/v2/nodes", None).await.0, StatusCode::NOT_FOUND);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_if_match_is_refused() {
    let site = Site::start().await;
    let _node = Node::born(&site, "edge-1").await;
    let client = site.client();
    let url = site.url("/api/v1/nodes/edge-1");
    let tag = client.get(&url).send().await.unwrap().headers()["etag"].clone();
    let patch = |tag: &reqwest::header::HeaderValue, site: &str| {
        let request = client.patch(&url).header("if-match", tag).header("content-type", "application/json");
        request.body(json!({ "site": site }).to_string()).send()
    };
    let first = patch(&tag, "a").await.unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    assert_eq!(patch(&tag, "b").await.unwrap().status(), StatusCode::PRECONDITION_FAILED);
    assert_eq!(patch(&first.headers()["etag"].clone(), "c").await.unwrap().status(), StatusCode::OK);
    assert_eq!(site.get("/api/v1/nodes/edge-1").await["site"], "c");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry_is_the_same_in_json_and_csv() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    let t = clock::wall_ms() - 60_000;
    let t = t - t.rem_euclid(10_000);
    node.measures(&[
        (t, "", "temperature", 20.5),
        (t + 1_000, "", "temperature", 21.25),
        (t + 1_000, "probe", "temperature", -3.0),
        (t + 12_000, "", "temperature", 0.1 + 0.2),
    ])
    .await;
    let query = format!("/api/v1/nodes/edge-1/telemetry?from_ms={t}&to_ms={}", t + 60_000);
    let json = site.get(&query).await;
    assert_eq!(json["series"][0]["points"], json!([[t, 20.5], [t + 1_000, 21.25], [t + 12_000, 0.1 + 0.2]]));
    assert_eq!((&json["series"][1]["device"], &json["series"][1]["unit"]), (&json!("probe"), &json!("Cel")));
    let client = site.client();
    let response = client.get(site.url(&query)).header("accept", "text/csv").send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/csv"));
    let text = response.text().await.unwrap();
    let mut expected = vec!["time_ms,device,metric,unit,value".to_owned()];
    for series in json["series"].as_array().unwrap() {
        let name = ["device", "metric", "unit"].map(|key| series[key].as_str().unwrap()).join(",");
        let points = series["points"].as_array().unwrap().iter();
        expected.extend(points.map(|point| format!("{},{name},{}", point[0], point[1].as_f64().unwrap())));
    }
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);

    let stepped =
        |agg: &str| site_path(&query, &format!("&metric=temperature&device=&step_ms=10000&agg={agg}"));
    for (agg, values) in [("avg", [20.875, 0.1 + 0.2]), ("min", [20.5, 0.1 + 0.2]), ("count", [2.0, 1.0])] {
        let found = site.get(&stepped(agg)).await;
        assert_eq!(found["series"][0]["points"], json!([[t, values[0]], [t + 10_000, values[1]]]), "{agg}");
        assert_eq!(found["series"].as_array().unwrap().len(), 1, "device= is the node itself");
    }
    for bad in ["&step_ms=0", "&agg=avg", "&step_ms=1&agg=median", "&from_ms=x"] {
        let (status, _) = site.ask(Method::GET, &site_path(&query, bad), None).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{bad}");
    }
    let devices = site.get("/api/v1/nodes/edge-1/devices").await;
    let probe = json!({"id": "probe", "state": "unknown", "capabilities": [], "unsequenced": false,
        "metrics": ["temperature"], "last_ms": t + 1_000, "last_seen_ms": t + 1_000});
    assert_eq!(devices["items"], json!([probe]));
    assert_eq!(site.get("/api/v1/nodes/edge-1").await["devices_count"], 1);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_shown_as_their_node_reports_them() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    assert_eq!(site.get("/api/v1/nodes/edge-1").await["devices_count"], 0);
    let t = clock::wall_ms() - 60_000;
    node.measures(&[(t, "shed", "temperature", 4.0), (t, "probe", "temperature", 4.0)]).await;
    node.reports(json!({"device": "shed", "state": "sleeping", "kind": "microclaw", "firmware": "0.2.0",
        "capabilities": ["temperature"], "sleep_ms": 300_000, "until_ms": t - 1, "last_seen_ms": t - 300_001,
        "unsequenced": true}))
        .await;
    node.reports(json!({"device": "door", "state": "offline"})).await;
    node.reports(json!({"device": "door", "state": "late"})).await;
    // Not a word of a device: an event like any other.
    node.reports(json!({"device": "", "state": "online"})).await;
    let shown = async || -> Vec<Value> {
        let devices = site.get("/api/v1/nodes/edge-1/devices").await;
        let state = |device: &Value| json!([device["id"], device["state"]]);
        devices["items"].as_array().unwrap().iter().map(state).collect()
    };
    let expected = [json!(["door", "late"]), json!(["probe", "unknown"]), json!(["shed", "sleeping"])];
    assert_eq!(shown().await, expected);
    let shed = site.get("/api/v1/nodes/edge-1/devices").await["items"][2].clone();
    let keys = ["kind", "firmware", "unsequenced", "last_seen_ms", "until_ms", "metrics"];
    let facts = keys.map(|key| shed[key].clone());
    let until = t + 300_000;
    assert_eq!(json!(facts), json!(["microclaw", "0.2.0", true, t, until, ["temperature"]]));
    assert_eq!(site.get("/api/v1/nodes/edge-1").await["devices_count"], 3);
    node.reports(json!({"device": "door", "state": "removed"})).await;
    assert_eq!(shown().await.len(), 2);
    let count = async || site.get("/api/v1/nodes/edge-1").await["devices_count"] == 2;
    let counted = async { while !count().await {} };
    tokio::time::timeout(crate::given::PATIENCE, counted).await.expect("the removed one is not counted");
    // Nobody knows how devices are behind a node that is not there.
    node.leaves().await;
    assert_eq!(shown().await, [json!(["probe", "unknown"]), json!(["shed", "unknown"])]);
    site.stop().await;
}

fn site_path(query: &str, more: &str) -> String {
    format!("{query}{more}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_balances_and_recounts() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    let t = clock::wall_ms();
    node.measures(&[(t, "", "x", 1.0), (t + 1, "", "x", 2.0)]).await;
    node.told("door_opened", "left").await;
    node.told("door_closed", "right").await;
    let ledger = site.get("/api/v1/ledger?verify=true").await;
    assert_eq!((&ledger["balanced"], &ledger["findings"]), (&json!(true), &json!([])), "{ledger}");
    let stored: Vec<_> = ledger["accounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| (a["lane"].as_str().unwrap(), a["stored"].clone()))
        .collect();
    assert_eq!(stored, [("event", json!(2)), ("telemetry", json!(2))]);
    assert_eq!(site.ask(Method::GET, "/api/v1/ledger?node=nobody", None).await.0, StatusCode::NOT_FOUND);

    let events = site.get("/api/v1/nodes/edge-1/events?limit=1").await;
    assert_eq!(events["items"][0]["kind"], "door_closed", "newest first");
    let cursor = events["next"].as_str().unwrap();
    let rest = site.get(&format!("/api/v1/nodes/edge-1/events?cursor={cursor}")).await;
    assert_eq!((rest["items"][0]["message"].as_str(), &rest["next"]), (Some("left"), &Value::Null));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_saved_selectors() {
    let site = Site::start().await;
    let _nodes = [Node::born(&site, "a-1").await, Node::born(&site, "b-2").await];
    let path = "/api/v1/groups/firsts";
    let (status, group) = site.ask(Method::PUT, path, Some(r#"{"selector": "id=a-1"}"#)).await;
    assert_eq!((status.as_u16(), &group["nodes_count"]), (201, &json!(1)));
    assert_eq!(ids(&site.get("/api/v1/nodes?group=firsts").await), ["a-1"]);
    assert_eq!(site.ask(Method::PUT, path, Some(r#"{"selector": "!none"}"#)).await.0, StatusCode::OK);
    assert_eq!(site.get("/api/v1/groups").await["items"][0]["nodes_count"], 2);
    let (status, problem) = site.ask(Method::PUT, path, Some(r#"{"selector": "a in"}"#)).await;
    assert_eq!((status.as_u16(), &problem["errors"][0]["pointer"]), (422, &json!("/selector")));
    assert_eq!(site.ask(Method::DELETE, path, None).await.0, StatusCode::NO_CONTENT);
    assert_eq!(site.ask(Method::DELETE, path, None).await.0, StatusCode::NOT_FOUND);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_foreign_page_sends_is_refused() {
    let site = Site::start().await;
    let client = site.client();
    for (header, value) in [("host", "evil.example"), ("origin", "http://evil.example")] {
        let response = client.get(site.url("/api/v1/nodes")).header(header, value).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{header}");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
    let plain = client.patch(site.url("/api/v1/nodes/x")).header("content-type", "text/plain").body("{}");
    assert_eq!(plain.send().await.unwrap().status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let large = client.patch(site.url("/api/v1/nodes/x")).header("content-type", "application/json");
    let response = large.body(vec![b' '; 300_000]).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_scraped_is_in_the_catalogue_and_the_other_way_round() {
    let data = tempfile::tempdir().unwrap();
    let disk = Arc::new(Folder::new(data.path()));
    let nobody = receiver("nobody", notify::Kind::Webhook, "http://127.0.0.1:9/".to_owned());
    let site = Site::telling(disk, data, false, false, vec![nobody]).await;
    let mut node = Node::born(&site, "edge-1").await;
    node.measures(&[(clock::wall_ms(), "", "x", 1.0)]).await;
    // A payload that cannot be read, so that refusals have something to tell.
    node.garbage().await;
    node.told("after", "the garbage").await;
    site.get("/version").await;
    // Releases that are signed end some time; how a rollout's nodes stand is told while it is open.
    sign_greeter(&site.hub);
    let rollout = Some(r#"{"release": "greeter@1.0.0", "all": true}"#);
    assert_eq!(site.ask(Method::POST, "/api/v1/rollouts", rollout).await.0, StatusCode::CREATED);
    // A remote read, refused, so that its duration is told.
    assert!(site.ask(Method::POST, "/api/v1/prom/read", Some("{}")).await.0.is_client_error());
    let (_, text) = site.ask(Method::GET, "/metrics", None).await;
    let text = text.as_str().unwrap();
    let told: BTreeSet<_> = (text.lines().filter_map(|line| line.strip_prefix("# TYPE ")))
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let listed: BTreeSet<_> = catalogue::ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(told, listed);
    assert!(text.contains("fleet_node_up{node=\"edge-1\"} 1"), "{text}");
    assert!(text.contains("fleet_ingest_samples_total 1"), "{text}");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_by_readyz_and_refuses_changes() {
    let disk = Memory::default();
    let site = Site::on(Arc::new(disk.clone()), tempfile::tempdir().unwrap()).await;
    assert_eq!(site.get("/readyz").await, json!({"ready": true, "reasons": []}));
    assert_eq!(site.get("/livez").await, json!({"live": true}));
    disk.set_capacity(Some(0));
    let changes = async {
        loop {
            let body = format!(r#"{{"selector": "x in ({})"}}"#, "y".repeat(900));
            let path = format!("/api/v1/groups/{:x}", clock::mono().as_nanos());
            let (status, problem) = site.ask(Method::PUT, &path, Some(&body)).await;
            if status == StatusCode::SERVICE_UNAVAILABLE {
                return problem;
            }
            assert!(status.is_success(), "{problem}");
        }
    };
    let problem = tokio::time::timeout(PATIENCE, changes).await.expect("a full disk fails in the end");
    assert_eq!(problem["title"], "Service Unavailable");
    let (status, ready) = site.ask(Method::GET, "/readyz", None).await;
    assert_eq!((status, &ready["ready"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(false)));
    assert!(!ready["reasons"].as_array().unwrap().is_empty());
    disk.set_capacity(None);
    // Something has to be stored before the store is believed again.
    let recovered = async {
        while site.ask(Method::GET, "/readyz", None).await.0 != StatusCode::OK {
            site.ask(Method::PUT, "/api/v1/groups/after", Some(r#"{"selector": "x"}"#)).await;
        }
    };
    tokio::time::timeout(PATIENCE, recovered).await.expect("the hub recovers without a restart");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_no_token_takes_nobody_s_place() {
    let site = Site::start().await;
    let login = async || reqwest::get(site.url("/login")).await.unwrap().status();
    assert_eq!(login().await, StatusCode::OK);
    let mut strangers = Vec::new();
    for _ in 0..300 {
        let mut socket = TcpStream::connect(site.http).await.unwrap();
        let host = site.http;
        let head = format!(
            "POST /login HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             content-length: 10\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        strangers.push(socket);
    }
    let until = async |wanted| {
        let seen = async { while login().await != wanted {} };
        tokio::time::timeout(PATIENCE, seen).await.unwrap();
    };
    until(StatusCode::SERVICE_UNAVAILABLE).await;
    site.get("/api/v1/nodes").await;
    // They have seconds, though they stay.
    until(StatusCode::OK).await;
    drop(strangers);
    site.stop().await;
}
