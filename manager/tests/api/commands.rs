//! Commands over HTTP to a node on a socket: made, told, reported, listed, canceled.

use std::{collections::BTreeMap, time::Duration};

use fleet_manager::{clock, consume::FeedItem};
use fleet_schemas::{
    CommandId, Lane, NodeId, SessionId, StreamId, Topic, VERSION,
    batch::{Batch, Clock},
    cbor,
    command::{Orders, Output, Report, State},
    limits,
    session::{Birth, Death, Pending, Versions},
    topic::{Down, Up},
};
use reqwest::{Method, StatusCode};
use rumqttc::{AsyncClient, Event, EventLoop, LastWill, MqttOptions, Packet, QoS};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::given::{PATIENCE, Site};

/// What a machine does with a command that it has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Does {
    /// Prints a line and exits with this code.
    Exits(i32),
    /// Goes on.
    Runs,
}

/// A machine that takes commands, until it is dropped.
pub(crate) struct Machine(tokio::task::JoinHandle<()>);

impl Drop for Machine {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Machine {
    /// Connects and is born.
    pub(crate) async fn born(site: &Site, id: &str, does: Does) -> Self {
        let mut feed = site.hub.feed();
        let node = NodeId::parse(id).unwrap();
        let mut options = MqttOptions::new(id, site.mqtt.ip().to_string(), site.mqtt.port());
        options.set_credentials(id, "secret");
        options.set_max_packet_size(limits::PACKET_BYTES, limits::PACKET_BYTES);
        let session = SessionId(clock::random());
        let death = cbor::encode(&Death { v: VERSION, session, until_ms: None });
        let will = Topic::Up(node.clone(), Up::Death).to_string();
        options.set_last_will(LastWill::new(will, death, QoS::AtLeastOnce, false));
        let (mqtt, events) = AsyncClient::new(options, 64);
        let machine = Self(tokio::spawn(live(node.clone(), session, does, mqtt, events)));
        let seen = async {
            loop {
                if matches!(&*feed.recv().await.unwrap(), FeedItem::Node(id) if *id == node) {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.expect("the node is born");
        machine
    }
}

async fn live(node: NodeId, session: SessionId, does: Does, mqtt: AsyncClient, mut events: EventLoop) {
    let stream = StreamId(clock::random());
    let (mut next, mut known) = ((1, 1), BTreeMap::<CommandId, State>::new());
    let say = |up: Up, payload: Vec<u8>| {
        mqtt.try_publish(Topic::Up(node.clone(), up).to_string(), QoS::AtLeastOnce, false, payload).unwrap();
    };
    loop {
        let Ok(event) = events.poll().await else { return };
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                let down = fleet_schemas::topic::down_filter(&node);
                mqtt.try_subscribe(down, QoS::AtLeastOnce).unwrap();
            }
            Event::Incoming(Packet::SubAck(_)) => say(Up::Birth, cbor::encode(&birth(session))),
            Event::Incoming(Packet::Publish(publish)) => {
                if Topic::parse(&publish.topic) != Ok(Topic::Down(node.clone(), Down::Command)) {
                    continue;
                }
                let orders: Orders = cbor::decode(&publish.payload).unwrap();
                assert_eq!(orders.session, session);
                let reports = answers(&orders, does, &mut known);
                if !reports.is_empty() {
                    say(Up::Lane(Lane::Command), cbor::encode(&sealed(stream, next, &reports)));
                    next = (next.0 + 1, next.1 + reports.len() as u64);
                }
            }
            _ => {}
        }
    }
}

fn answers(orders: &Orders, does: Does, known: &mut BTreeMap<CommandId, State>) -> Vec<Report> {
    let say = |id, state| {
        let time_ms = clock::wall_ms();
        let (reason, exit_code, output, result, too_late) = (None, None, None, None, false);
        Report { id, state, time_ms, reason, exit_code, output, result, too_late }
    };
    let mut reports = Vec::new();
    for id in orders.offers.iter().map(|offer| offer.id) {
        if known.contains_key(&id) {
            continue;
        }
        reports.extend([say(id, State::Accepted), say(id, State::Running)]);
        known.insert(id, State::Running);
        if let Does::Exits(code) = does {
            let output = Output { from: 0, bytes: b"hello\n".to_vec(), cut: false };
            reports.push(Report { output: Some(output), ..say(id, State::Running) });
            let state = if code == 0 { State::Succeeded } else { State::Failed };
            reports.push(Report { exit_code: Some(code), ..say(id, state) });
            known.insert(id, state);
        }
    }
    for id in &orders.cancels {
        if known.get(id) == Some(&State::Running) {
            reports.push(say(*id, State::Canceled));
            known.insert(*id, State::Canceled);
        }
    }
    reports
}

/// A batch by its number and that of its first record.
fn sealed(stream: StreamId, (seq, first): (u64, u64), reports: &[Report]) -> Batch {
    Batch {
        v: VERSION,
        stream,
        seq,
        seq_to: None,
        first,
        count: reports.len() as u64,
        boot: [1; 8],
        up_ms: 2_000,
        clock: Clock::Synced,
        sealed_ms: clock::wall_ms(),
        lost: None,
        body: cbor::encode(&reports),
    }
}

fn birth(session: SessionId) -> Birth {
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
        capabilities: vec!["exec".to_owned()],
        versions: Versions::default(),
        machine: BTreeMap::new(),
        lanes: BTreeMap::new(),
        partial: false,
        pending: Pending::default(),
        commands: Some(Vec::new()),
        config: None,
    }
}

async fn post(site: &Site, body: Value) -> (StatusCode, Value) {
    site.ask(Method::POST, "/api/v1/commands", Some(&body.to_string())).await
}

/// The command, once an execution of it is in this state.
pub(crate) async fn until(site: &Site, id: &str, state: &str) -> Value {
    let mut feed = site.hub.feed();
    let seen = async {
        loop {
            let shown = site.get(&format!("/api/v1/commands/{id}")).await;
            if shown["states"].get(state).is_some() {
                return shown;
            }
            while !matches!(&*feed.recv().await.unwrap(), FeedItem::Execution(_)) {}
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("{id} is {state} in time"))
}

fn states(execution: &Value) -> Vec<&str> {
    execution["history"].as_array().unwrap().iter().map(|step| step["state"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_and_its_history_output_and_exit_code_are_shown() {
    let site = Site::start().await;
    let _machine = Machine::born(&site, "edge-1", Does::Exits(3)).await;
    let body = json!({ "nodes": ["edge-1"], "kind": "exec", "params": { "argv": ["df"] }, "timeout_s": 5 });
    let (status, made) = post(&site, body).await;
    assert_eq!(
        (status, &made["executions"]),
        (StatusCode::ACCEPTED, &json!([{ "node": "edge-1", "state": "sent" }]))
    );
    let id = made["id"].as_str().unwrap();
    let shown = until(&site, id, "failed").await;
    assert_eq!((&shown["params"], &shown["timeout_ms"]), (&json!({ "argv": ["df"] }), &json!(5_000)));
    let execution = &shown["executions"][0];
    assert_eq!(states(execution), ["queued", "sent", "accepted", "running", "failed"]);
    assert_eq!((&execution["exit_code"], &execution["output"]), (&json!(3), &json!("hello\n")));
    let ledger = site.get("/api/v1/ledger?verify=true").await;
    let account = ledger["accounts"].as_array().unwrap().iter().find(|account| account["lane"] == "command");
    assert_eq!((&ledger["balanced"], &account.unwrap()["stored"]), (&json!(true), &json!(4)));
    assert_eq!(ledger["findings"], json!([]));
    let audit = site.get("/api/v1/audit").await;
    assert!(
        audit["items"].as_array().unwrap().iter().any(|entry| entry["action"] == "command.create"),
        "{audit}"
    );
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_offline_gets_it_on_return_and_lists_have_filters() {
    let site = Site::start().await;
    let machine = Machine::born(&site, "edge-1", Does::Exits(0)).await;
    let _other = Machine::born(&site, "edge-2", Does::Exits(0)).await;
    let mut feed = site.hub.feed();
    drop(machine);
    let gone = async {
        while site.get("/api/v1/nodes/edge-1").await["state"] == json!("online") {
            feed.recv().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    let (_, short) = post(&site, json!({ "nodes": ["edge-1"], "kind": "ping", "ttl_s": 0.05 })).await;
    let (status, made) = post(&site, json!({ "all": true, "kind": "ping" })).await;
    assert_eq!((status, made["executions"].as_array().unwrap().len()), (StatusCode::ACCEPTED, 2));
    let short = until(&site, short["id"].as_str().unwrap(), "expired").await;
    assert_eq!(short["executions"][0]["history"][1]["reason"]["code"], json!("not_sent"));
    let id = made["id"].as_str().unwrap();
    let shown = until(&site, id, "succeeded").await;
    assert_eq!(shown["states"]["queued"], json!(1));
    let _machine = Machine::born(&site, "edge-1", Does::Exits(0)).await;
    let done = async {
        while until(&site, id, "succeeded").await["states"]["succeeded"] != json!(2) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, done).await.unwrap();
    let ids = async |query: &str| -> Vec<String> {
        let page = site.get(&format!("/api/v1/{query}")).await;
        page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
    };
    let short = short["id"].as_str().unwrap();
    assert_eq!(ids("commands").await, [id, short]);
    assert_eq!(ids("commands?limit=1").await, [id]);
    assert_eq!(ids(&format!("commands?cursor={id}")).await, [short]);
    assert_eq!(ids("commands?state=expired").await, [short]);
    assert_eq!(ids("commands?node=edge-2&state=succeeded").await, [id]);
    assert_eq!(ids("nodes/edge-1/commands?state=expired").await, [short]);
    assert!(ids("commands?kind=exec").await.is_empty());
    let own = site.get("/api/v1/nodes/edge-1/commands").await;
    assert_eq!(own["items"][0]["executions"][0]["state"], json!("succeeded"));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_is_asked_of_the_node_and_told_on_the_stream() {
    let site = Site::start().await;
    let _machine = Machine::born(&site, "edge-1", Does::Runs).await;
    let (_, made) = post(&site, json!({ "selector": "capability=exec", "kind": "exec" })).await;
    let id = made["id"].as_str().unwrap();
    until(&site, id, "running").await;
    let path = format!("/api/v1/commands/{id}/cancel");
    let (status, told) = site.ask(Method::POST, &path, None).await;
    assert_eq!((status, &told["executions"][0]["node"]), (StatusCode::ACCEPTED, &json!("edge-1")));
    let shown = until(&site, id, "canceled").await;
    assert!(shown["executions"][0]["cancel_asked_ms"].is_i64(), "{shown}");
    // Counted once it is committed, and so after it can be read.
    let ended = "fleet_command_executions_finished_total{state=\"canceled\"} 1";
    let counted = async {
        while !site.get("/metrics").await.as_str().is_some_and(|text| text.lines().any(|line| line == ended))
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.unwrap();
    let (status, _) = site.ask(Method::POST, &path, None).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let unknown = "/api/v1/commands/0194a3f0-5b6c-7def-8123-456789abcdef/cancel";
    assert_eq!(site.ask(Method::POST, unknown, None).await.0, StatusCode::NOT_FOUND);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_commands_are_refused_with_their_place() {
    let site = Site::start().await;
    let _machine = Machine::born(&site, "edge-1", Does::Runs).await;
    let pointer = async |body: Value| -> (u16, Value) {
        let (status, problem) = post(&site, body).await;
        (status.as_u16(), problem["errors"][0]["pointer"].clone())
    };
    let long = "x".repeat(limits::COMMAND_PARAMS_BYTES);
    let cases = [
        (json!({ "kind": "ping" }), "/nodes"),
        (json!({ "kind": "ping", "nodes": ["edge-1"], "all": true }), "/nodes"),
        (json!({ "kind": "ping", "nodes": ["edge-1", "edge-9"] }), "/nodes/1"),
        (json!({ "kind": "ping", "selector": "site=" }), "/selector"),
        (json!({ "kind": "ping", "selector": " " }), "/selector"),
        (json!({ "kind": "ping", "selector": "site in berlin" }), "/selector"),
        (json!({ "kind": "dance", "nodes": ["edge-1"] }), "/kind"),
        (json!({ "kind": "exec", "nodes": ["edge-1"], "params": long }), "/params"),
        (json!({ "kind": "exec", "nodes": ["edge-1"], "ttl_s": -1 }), "/ttl_s"),
        (json!({ "kind": "exec", "nodes": ["edge-1"], "rate": { "per_s": 0 } }), "/rate/per_s"),
    ];
    for (body, expected) in cases {
        assert_eq!(pointer(body.clone()).await, (422, json!(expected)), "{body}");
    }
    let (_, problem) = post(&site, json!({ "kind": "ping", "selector": "site in berlin" })).await;
    let detail = problem["errors"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("at character 9"), "{detail}");
    assert_eq!(
        post(&site, json!({ "kind": "ping", "all": true, "when": "now" })).await.0,
        StatusCode::BAD_REQUEST
    );
    let viewer =
        crate::given::operator(&site.hub, "eve", fleet_manager::core::identity::Role::Viewer, None).await;
    let body = json!({ "kind": "ping", "all": true }).to_string();
    let (status, _) = site.ask_as(Some(&viewer), Method::POST, "/api/v1/commands", Some(&body)).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(site.get("/api/v1/commands").await["items"], json!([]));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_makes_one_command() {
    let site = Site::start().await;
    let _machine = Machine::born(&site, "edge-1", Does::Runs).await;
    let send = async |body: &str| {
        let request = site.client().post(site.url("/api/v1/commands")).header("idempotency-key", "k");
        let response =
            request.header("content-type", "application/json").body(body.to_owned()).send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    };
    let body = json!({ "kind": "ping", "all": true }).to_string();
    assert_eq!(send(&body).await, send(&body).await);
    assert_eq!(send(&json!({ "kind": "exec", "all": true }).to_string()).await.0, StatusCode::CONFLICT);
    assert_eq!(site.get("/api/v1/commands").await["items"].as_array().unwrap().len(), 1);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_made_once_also_for_a_client_that_hangs_up() {
    const TIMES: usize = 40;
    let site = Site::start().await;
    let _machine = Machine::born(&site, "edge-1", Does::Exits(0)).await;
    let body = json!({ "kind": "ping", "all": true }).to_string();
    for n in 0..TIMES {
        let (host, token, length) = (site.http, &site.admin, body.len());
        let head = format!(
            "POST /api/v1/commands HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\nidempotency-key: k{n}\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let mut socket = TcpStream::connect(site.http).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        // Now here, now there in what the hub does with it.
        tokio::time::sleep(Duration::from_micros(100 * n as u64)).await;
        drop(socket);
        let again = async || {
            let request = site.client().post(site.url("/api/v1/commands"));
            let request = request.header("idempotency-key", format!("k{n}"));
            request
                .header("content-type", "application/json")
                .body(body.clone())
                .send()
                .await
                .unwrap()
                .status()
        };
        let repeated = async {
            // The first is not done yet.
            while again().await == StatusCode::CONFLICT {}
        };
        tokio::time::timeout(PATIENCE, repeated).await.unwrap();
        assert_eq!(again().await, StatusCode::ACCEPTED);
    }
    let made = site.get("/api/v1/commands?limit=1000").await;
    assert_eq!(made["items"].as_array().unwrap().len(), TIMES);
    site.stop().await;
}

/// From the call until the hub knows that it runs, p99 under 100 ms in a release build.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_to_an_online_node_runs_at_once() {
    let site = Site::start().await;
    let _machine = Machine::born(&site, "edge-1", Does::Exits(0)).await;
    let mut feed = site.hub.feed();
    let mut took = Vec::new();
    for _ in 0..100 {
        let began = clock::mono();
        let (_, made) = post(&site, json!({ "nodes": ["edge-1"], "kind": "ping" })).await;
        let id: CommandId = made["id"].as_str().unwrap().parse().unwrap();
        let runs = |item: &FeedItem| matches!(item, FeedItem::Execution(change) if change.command == id && change.step.state == State::Running);
        let seen = async { while !runs(&feed.recv().await.unwrap()) {} };
        tokio::time::timeout(PATIENCE, seen).await.unwrap();
        took.push(clock::mono() - began);
    }
    took.sort_unstable();
    println!("p50 {:?}, p99 {:?}", took[49], took[98]);
    assert!(took[98] < Duration::from_secs(2), "{:?}", took[98]);
    site.stop().await;
}
