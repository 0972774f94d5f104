//! Configuration over HTTP and on the command line, to nodes on sockets that apply what they are told, or fail to.

use std::{collections::BTreeMap, process::Stdio, sync::Arc, time::Duration};

use fleet_manager::{clock, core::identity::Role, store::disk::Memory};
use fleet_schemas::{
    NodeId, SessionId, Topic, VERSION,
    batch::Clock,
    cbor,
    config::{Desired, Failed, Held, Reported, hash},
    limits,
    session::{Birth, Death, Heartbeat, OutboxUse, Pending, Versions},
    topic::{Down, Up},
};
use reqwest::{Method, StatusCode};
use rumqttc::{AsyncClient, Event, EventLoop, LastWill, MqttOptions, Packet, QoS};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::given::{PATIENCE, Site, operator};

/// A node that applies configuration, but none in which `bad` is true, until it is dropped.
struct Machine(JoinHandle<()>);

impl Drop for Machine {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Machine {
    fn start(site: &Site, id: &str) -> Self {
        Self::with(site, id, Reported::default())
    }

    fn with(site: &Site, id: &str, reported: Reported) -> Self {
        let node = NodeId::parse(id).unwrap();
        let mut options = MqttOptions::new(id, site.mqtt.ip().to_string(), site.mqtt.port());
        options.set_credentials(id, "secret");
        options.set_max_packet_size(limits::PACKET_BYTES, limits::PACKET_BYTES);
        let session = SessionId(clock::random());
        let death = cbor::encode(&Death { v: VERSION, session, until_ms: None });
        let will = Topic::Up(node.clone(), Up::Death).to_string();
        options.set_last_will(LastWill::new(will, death, QoS::AtLeastOnce, false));
        let (mqtt, events) = AsyncClient::new(options, 64);
        Self(tokio::spawn(live(node, session, reported, mqtt, events)))
    }
}

async fn live(
    node: NodeId,
    session: SessionId,
    mut reported: Reported,
    mqtt: AsyncClient,
    mut events: EventLoop,
) {
    let say = |up: Up, payload: Vec<u8>| {
        mqtt.try_publish(Topic::Up(node.clone(), up).to_string(), QoS::AtLeastOnce, false, payload).unwrap();
    };
    loop {
        let Ok(event) = events.poll().await else { return };
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                mqtt.try_subscribe(fleet_schemas::topic::down_filter(&node), QoS::AtLeastOnce).unwrap();
            }
            Event::Incoming(Packet::SubAck(_)) => say(Up::Birth, cbor::encode(&birth(session, &reported))),
            Event::Incoming(Packet::Publish(publish))
                if Topic::parse(&publish.topic) == Ok(Topic::Down(node.clone(), Down::Config)) =>
            {
                let desired: Desired = cbor::decode(&publish.payload).unwrap();
                assert_eq!(desired.session, session);
                let doc: Value = cbor::decode(&desired.doc).unwrap();
                let held = Held { version: desired.version, hash: hash(&desired.doc), retry: desired.retry };
                assert!(reported.received.is_none_or(|had| had.version <= held.version), "never backwards");
                reported.received = Some(held);
                reported.failed = (doc["bad"] == true)
                    .then(|| Failed { code: "self_check".to_owned(), message: "it is bad".to_owned() });
                if reported.failed.is_none() {
                    reported.applied = Some(held);
                }
                say(Up::Heartbeat, cbor::encode(&heartbeat(session, &reported)));
            }
            Event::Incoming(_) | Event::Outgoing(_) => {}
        }
    }
}

fn birth(session: SessionId, reported: &Reported) -> Birth {
    Birth {
        v: VERSION,
        session,
        epoch: 1,
        boot: [1; 8],
        instance: None,
        up_ms: 1_000,
        clock: Clock::Synced,
        time_ms: clock::wall_ms(),
        interval_ms: 60_000,
        kind: "picclaw".to_owned(),
        name: None,
        capabilities: Vec::new(),
        versions: Versions::default(),
        machine: BTreeMap::new(),
        lanes: BTreeMap::new(),
        partial: false,
        pending: Pending::default(),
        commands: None,
        config: Some(reported.clone()),
    }
}

fn heartbeat(session: SessionId, reported: &Reported) -> Heartbeat {
    Heartbeat {
        v: VERSION,
        session,
        boot: [1; 8],
        up_ms: 2_000,
        clock: Clock::Synced,
        time_ms: clock::wall_ms(),
        interval_ms: 60_000,
        system: BTreeMap::new(),
        lanes: BTreeMap::new(),
        partial: false,
        pending: Pending::default(),
        outbox: OutboxUse::default(),
        config: Some(reported.clone()),
    }
}

async fn until(site: &Site, id: &str, state: &str) -> Value {
    let path = format!("/api/v1/nodes/{id}/config");
    let wait = async {
        loop {
            // A node is unknown before its birth.
            let (_, shown) = site.ask(Method::GET, &path, None).await;
            if shown["state"] == state {
                return shown;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{id} never is {state}"))
}

async fn known(site: &Site, id: &str, place: &str) {
    let csv = format!("id,site\n{id},{place}\n");
    let request = site.client().post(site.url("/api/v1/nodes/import")).header("content-type", "text/csv");
    assert_eq!(request.body(csv).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_reaches_the_nodes_of_its_layer_and_shows_where_it_comes_from() {
    let site = Site::start().await;
    known(&site, "edge-1", "roof").await;
    known(&site, "edge-2", "cellar").await;
    known(&site, "edge-3", "Hall 3/b").await;
    let (status, shown) =
        site.ask(Method::PUT, "/api/v1/config/fleet", Some(r#"{"upload_s": 90, "a": 1}"#)).await;
    assert_eq!(
        (status, &shown["revision"], &shown["nodes_count"]),
        (StatusCode::OK, &json!(1), &json!(3)),
        "{shown}"
    );
    let dry = "/api/v1/config/site/roof?dry_run=true";
    let (status, shown) = site.ask(Method::PATCH, dry, Some(r#"{"upload_s": 30}"#)).await;
    let expected =
        json!([{"nodes": ["edge-1"], "differences": [{"pointer": "/upload_s", "before": 90, "after": 30}]}]);
    assert_eq!((status, &shown["changes"], &shown["dry_run"]), (StatusCode::OK, &expected, &json!(true)));
    assert_eq!(site.get("/api/v1/config/site/roof").await["revision"], 0, "a dry run does nothing");
    site.ask(Method::PATCH, "/api/v1/config/site/roof", Some(r#"{"upload_s": 30}"#)).await;
    let (_, shown) = site.ask(Method::PUT, "/api/v1/config/site/Hall%203%2Fb", Some(r#"{"c": 1}"#)).await;
    assert_eq!((&shown["layer"], &shown["nodes_count"]), (&json!("site/Hall 3/b"), &json!(1)));

    assert_eq!(until(&site, "edge-1", "offline").await["reported"], Value::Null, "it was never heard");
    let _machines = ["edge-1", "edge-2"].map(|id| Machine::start(&site, id));
    let shown = until(&site, "edge-1", "in_sync").await;
    assert_eq!(shown["desired"]["doc"], json!({"upload_s": 30, "a": 1}));
    assert_eq!(shown["desired"]["version"], shown["reported"]["applied"]["version"]);
    assert_eq!(
        (&shown["why"]["/upload_s"]["layer"], &shown["why"]["/a"]["layer"]),
        (&json!("site/roof"), &json!("fleet"))
    );
    assert_eq!((&shown["why"]["/a"]["by"], &shown["diff"]), (&json!("operator admin"), &json!([])));
    let node = site.get("/api/v1/nodes/edge-1").await;
    assert_eq!(
        node["config"],
        json!({"desired_version": "0.2", "reported_version": "0.2", "state": "in_sync"})
    );
    assert_eq!(until(&site, "edge-2", "in_sync").await["desired"]["doc"], json!({"upload_s": 90, "a": 1}));

    // It moves.
    let moved = site.ask(Method::PATCH, "/api/v1/nodes/edge-1", Some(r#"{"site": "cellar"}"#)).await;
    assert_eq!(moved.0, StatusCode::OK);
    let in_sync =
        async { while until(&site, "edge-1", "in_sync").await["desired"]["doc"]["upload_s"] != 90 {} };
    tokio::time::timeout(PATIENCE, in_sync).await.expect("it follows its new site");
    let layers = site.get("/api/v1/config?limit=2").await;
    let names: Vec<_> =
        layers["items"].as_array().unwrap().iter().map(|layer| layer["layer"].clone()).collect();
    assert_eq!(names, ["fleet", "site/Hall 3/b"]);
    let rest = site.get(&format!("/api/v1/config?cursor={}", "site%2FHall%203%2Fb")).await;
    assert_eq!(
        (&rest["items"][0]["layer"], &rest["items"][0]["nodes_count"]),
        (&json!("site/roof"), &json!(0))
    );
    let follow = &site.get("/api/v1/config/fleet").await["nodes"];
    assert_eq!((&follow["count"], &follow["by_state"]["in_sync"]), (&json!(3), &json!(2)), "{follow}");
    let (_, metrics) = site.ask(Method::GET, "/metrics", None).await;
    assert!(metrics.as_str().unwrap().contains("fleet_config_nodes{state=\"in_sync\"} 2"), "{metrics}");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_told_and_tried_again_only_when_asked() {
    let site = Site::start().await;
    let _machine = Machine::start(&site, "edge-1");
    site.ask(Method::PUT, "/api/v1/config/fleet", Some(r#"{"x": 1}"#)).await;
    until(&site, "edge-1", "in_sync").await;
    let (status, _) = site.ask(Method::POST, "/api/v1/nodes/edge-1/config/retry", None).await;
    assert_eq!(status, StatusCode::CONFLICT, "nothing failed");
    site.ask(Method::PATCH, "/api/v1/config/fleet", Some(r#"{"bad": true}"#)).await;
    let shown = until(&site, "edge-1", "failed").await;
    assert_eq!(shown["reported"]["failed"], json!({"code": "self_check", "message": "it is bad"}));
    assert_eq!(shown["diff"], json!([{"pointer": "/bad", "after": true}]), "what it runs is known");
    assert!(shown["reasons"][0].as_str().unwrap().contains("fleet config retry edge-1"), "{shown}");
    // The event is committed with the state, which is seen a moment before.
    let told = async {
        while site.get("/api/v1/nodes/edge-1/events").await["items"][0]["kind"] != "config_failed" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("it is an event");
    let (status, shown) = site.ask(Method::POST, "/api/v1/nodes/edge-1/config/retry", None).await;
    assert_eq!((status, &shown["desired"]["retry"]), (StatusCode::OK, &json!(1)), "{shown}");
    until(&site, "edge-1", "failed").await;
    let back = Some(r#"{"to": 1}"#);
    let (status, shown) = site.ask(Method::POST, "/api/v1/config/fleet/rollback", back).await;
    assert_eq!((status, &shown["revision"], &shown["doc"]), (StatusCode::OK, &json!(3), &json!({"x": 1})));
    assert_eq!(until(&site, "edge-1", "in_sync").await["desired"]["version"], "0.3");
    let revisions = site.get("/api/v1/config/fleet/revisions").await;
    let numbers: Vec<_> =
        revisions["items"].as_array().unwrap().iter().map(|one| one["revision"].clone()).collect();
    assert_eq!(
        (numbers, &revisions["items"][0]["returned_to"]),
        (vec![json!(3), json!(2), json!(1)], &json!(1))
    );
    let second = site.get("/api/v1/config/fleet/revisions/2").await;
    assert_eq!(second["doc"], json!({"x": 1, "bad": true}));
    let audit = site.get("/api/v1/audit").await;
    let actions: Vec<_> =
        audit["items"].as_array().unwrap().iter().map(|one| one["action"].clone()).take(4).collect();
    assert_eq!(actions, ["config.rollback", "config.retry", "config.patch", "config.put"]);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_started_again_has_all_of_it_and_a_node_of_another_hub_is_taken_over() {
    let disk = Memory::default();
    let site = Site::on(Arc::new(disk.clone()), tempfile::tempdir().unwrap()).await;
    site.ask(Method::PUT, "/api/v1/config/fleet", Some(r#"{"x": 1}"#)).await;
    site.ask(Method::PUT, "/api/v1/config-schema", Some(r#"{"type": "object"}"#)).await;
    // Another hub counted further.
    let doc = cbor::encode(&json!({"x": 7}));
    let version = fleet_schemas::config::Version { epoch: 4, n: 9 };
    let held = Some(Held { version, hash: hash(&doc), retry: 0 });
    let _machine = Machine::with(&site, "edge-1", Reported { received: held, applied: held, failed: None });
    let shown = until(&site, "edge-1", "in_sync").await;
    assert_eq!((&shown["desired"]["version"], &shown["desired"]["doc"]), (&json!("4.10"), &json!({"x": 1})));
    let events = site.get("/api/v1/nodes/edge-1/events").await;
    assert_eq!(events["items"][0]["kind"], "config_foreign");
    site.stop().await;
    let again = Site::on(Arc::new(disk), tempfile::tempdir().unwrap()).await;
    let layer = again.get("/api/v1/config/fleet").await;
    assert_eq!((&layer["revision"], &layer["doc"]), (&json!(1), &json!({"x": 1})));
    assert_eq!(again.get("/api/v1/config-schema").await["schema"], json!({"type": "object"}));
    let _machine = Machine::with(&again, "edge-1", Reported::default());
    assert_eq!(until(&again, "edge-1", "in_sync").await["desired"]["version"], "4.10");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_with_its_place() {
    let site = Site::start().await;
    known(&site, "edge-1", "roof").await;
    let ask = async |method: Method, path: &str, body: &str| {
        let (status, problem) = site.ask(method, &format!("/api/v1/{path}"), Some(body)).await;
        (status.as_u16(), problem)
    };
    let put = Method::PUT;
    assert_eq!(ask(put.clone(), "config/fleet", r#"{"x": 1}"#).await.0, 200);
    let (status, problem) = ask(put.clone(), "config/fleet?revision=0", r#"{"x": 2}"#).await;
    assert_eq!((status, &problem["revision"]), (409, &json!(1)), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("at revision 1"), "{problem}");
    let tagged = site.client().get(site.url("/api/v1/config/fleet")).send().await.unwrap();
    assert_eq!(tagged.headers()["etag"], "\"1\"");
    let matched = async |tag: &str| {
        let request =
            site.client().put(site.url("/api/v1/config/fleet")).header("content-type", "application/json");
        request.header("if-match", tag).body(r#"{"x": 3}"#).send().await.unwrap().status().as_u16()
    };
    assert_eq!((matched("\"7\"").await, matched("7").await, matched("\"1\"").await), (409, 400, 200));
    for (method, path, body, expected) in [
        (Method::PUT, "config/fleet", "[1]", 422),
        (Method::PATCH, "config/fleet", "3", 422),
        (Method::PUT, "config/fleet", "{", 400),
        (Method::PUT, "config/nonsense/x", "{}", 404),
        (Method::GET, "config/node/A%20B", "", 404),
        (Method::PUT, "config/node/nobody", r#"{"x": 1}"#, 404),
        (Method::PUT, "config/group/none", r#"{"x": 1}"#, 404),
        (Method::GET, "config/group/none", "", 404),
        (Method::GET, "nodes/nobody/config", "", 404),
        (Method::POST, "nodes/nobody/config/retry", "", 404),
        (Method::POST, "config/fleet/rollback", r#"{"to": 77}"#, 404),
        (Method::POST, "config/fleet/rollback", r#"{"no": 1}"#, 422),
        (Method::PUT, "config-schema", r#"{"type": 7}"#, 422),
        (Method::PUT, "config/fleet?dry_run=maybe", "{}", 422),
        (Method::PUT, "config/fleet?dry=true", "{}", 422),
    ] {
        let (status, problem) = ask(method, path, body).await;
        assert_eq!(status, expected, "{path} {body}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{path}: {problem}");
    }
    let long = format!(r#"{{"x": "{}"}}"#, "x".repeat(limits::CONFIG_BYTES));
    let (status, problem) = ask(put.clone(), "config/fleet", &long).await;
    assert!(status == 422 && problem.to_string().contains("65536"), "{status} {problem}");
    let strict = r#"{"properties": {"upload_s": {"type": "integer", "minimum": 5}}}"#;
    assert_eq!(ask(put.clone(), "config-schema", strict).await.0, 200);
    let (status, problem) = ask(put.clone(), "config/site/roof", r#"{"upload_s": 1}"#).await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("/upload_s")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("node/edge-1"), "{problem}");
    ask(put.clone(), "config/site/roof", r#"{"upload_s": 7}"#).await;
    let stricter = r#"{"properties": {"upload_s": {"minimum": 9}}}"#;
    assert_eq!(ask(put, "config-schema", stricter).await.0, 422);
    let viewer = operator(&site.hub, "eve", Role::Viewer, None).await;
    let denied = site.ask_as(Some(&viewer), Method::PUT, "/api/v1/config/fleet", Some("{}")).await;
    assert_eq!(denied.0, StatusCode::FORBIDDEN);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_change_different_keys_at_once_both_do() {
    let site = Site::start().await;
    let change = async |n: u32| {
        let (status, problem) =
            site.ask(Method::PATCH, "/api/v1/config/fleet", Some(&format!(r#"{{"k{n}": {n}}}"#))).await;
        assert_eq!(status, StatusCode::OK, "{problem}");
    };
    tokio::join!(change(1), change(2), change(3));
    assert_eq!(site.get("/api/v1/config/fleet").await["doc"], json!({"k1": 1, "k2": 2, "k3": 3}));
    site.stop().await;
}

/// The command line on the site's folder.
async fn fleet(site: &Site, arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_fleet"));
    command.arg("--data").arg(site.data.path()).args(arguments).kill_on_drop(true);
    for name in ["FLEET_HUB", "FLEET_TOKEN", "FLEET_DATA", "FLEET_CA", "FLEET_CA_PIN"] {
        command.env_remove(name);
    }
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_sets_shows_and_follows() {
    let site = Site::start().await;
    known(&site, "edge-1", "roof").await;
    known(&site, "edge-2", "cellar").await;
    let _machine = Machine::start(&site, "edge-1");
    let run = async |arguments: &[&str]| {
        let all = [&["config"], arguments].concat();
        fleet(&site, &all, "").await
    };
    let ok = async |arguments: &[&str]| {
        let (code, out, err) = run(arguments).await;
        assert_eq!(code, 0, "{arguments:?}: {out}{err}");
        out
    };
    assert!(ok(&["get"]).await.contains("no settings yet"));
    let (code, out, _) =
        fleet(&site, &["config", "set", "fleet", "--file", "-"], r#"{"upload_s": 90}"#).await;
    assert!(code == 0 && out.contains("revision 1; 2 nodes change"), "{out}");
    until(&site, "edge-1", "in_sync").await;
    let dry = ok(&["set", "site/roof", "upload_s=30", "drivers.dht22.every_s=10", "--dry-run"]).await;
    assert!(
        dry.contains("would be at revision 1; 1 node changes") && dry.contains("/drivers/dht22/every_s"),
        "{dry}"
    );
    assert!(dry.contains("edge-1") && !dry.contains("edge-2"), "{dry}");
    let out = ok(&["set", "site/roof", "upload_s=30", "--expect", "0", "--wait"]).await;
    assert!(out.contains("site/roof is at revision 1"), "{out}");
    let (code, _, err) = run(&["set", "site/roof", "upload_s=31", "--expect", "0"]).await;
    assert!(code == 7 && err.contains("revision 1"), "{code} {err}");
    let why = ok(&["get", "edge-1", "--why"]).await;
    assert!(why.contains("in_sync") && why.contains("site/roof") && why.contains("operator admin"), "{why}");
    let json: Value = serde_json::from_str(&ok(&["get", "edge-1", "-o", "json"]).await).unwrap();
    assert_eq!((&json["state"], &json["desired"]["doc"]), (&json!("in_sync"), &json!({"upload_s": 30})));
    assert!(ok(&["get", "site/roof", "-o", "yaml"]).await.contains("upload_s: 30"));
    assert!(ok(&["get", "site/roof"]).await.contains("1 of 1 nodes follow"));
    assert!(ok(&["diff", "site/roof", "0"]).await.contains("/upload_s"));
    let null = ok(&["set", "site/roof", "upload_s=null"]).await;
    assert!(null.contains("edge-1") && null.contains("30"), "{null}");
    assert_eq!(site.get("/api/v1/config/site/roof").await["doc"], json!({"upload_s": null}));
    ok(&["unset", "site/roof", "upload_s"]).await;
    assert_eq!(until(&site, "edge-1", "in_sync").await["desired"]["doc"], json!({"upload_s": 90}));
    let history = ok(&["history", "site/roof"]).await;
    assert_eq!(history.lines().count(), 4, "{history}");
    assert!(ok(&["rollback", "site/roof", "1", "--wait"]).await.contains("revision 4"));
    assert!(ok(&["get"]).await.contains("site/roof"));

    // One that is not connected, and one that fails.
    let (code, _, err) = run(&["set", "node/edge-2", "x=1", "--wait"]).await;
    assert!(code == 6 && err.contains("edge-2 was never connected"), "{code} {err}");
    let (code, _, err) = run(&["set", "fleet", "bad=true", "--wait"]).await;
    assert!(
        code == 6 && err.contains("it is bad") && err.contains("fleet config retry edge-1"),
        "{code} {err}"
    );
    let diff = ok(&["diff", "edge-1"]).await;
    assert!(diff.contains("/bad") && diff.contains("true"), "{diff}");
    let (code, _, err) = run(&["retry", "edge-1", "--wait"]).await;
    assert!(code == 6 && err.contains("it is bad"), "{code} {err}");

    let path = site.data.path().join("schema.json");
    std::fs::write(&path, r#"{"properties": {"upload_s": {"minimum": 10}}}"#).unwrap();
    assert!(ok(&["schema", "get"]).await.contains("no schema"));
    ok(&["schema", "set", path.to_str().unwrap()]).await;
    assert!(ok(&["schema", "get"]).await.contains("minimum"));
    for (arguments, expected) in [
        (&["set", "site/roof", "upload_s=1"][..], 2),
        (&["set", "site/roof", "upload_s"], 2),
        (&["set", "sites/roof", "upload_s=1"], 2),
        (&["set", "node/nobody", "upload_s=20"], 3),
        (&["get", "nobody"], 3),
        (&["get", "A B"], 2),
        (&["rollback", "site/roof", "99"], 3),
        (&["retry", "edge-2"], 7),
        (&["diff", "edge-1", "1"], 2),
        (&["set", "fleet", "--file", "/nonexistent"], 2),
    ] {
        let (code, _, err) = run(arguments).await;
        assert_eq!(code, expected, "{arguments:?}: {err}");
        assert!(!err.is_empty(), "{arguments:?}");
    }
    ok(&["schema", "rm"]).await;
    ok(&["unset", "site/roof", "--all"]).await;
    site.stop().await;
}
