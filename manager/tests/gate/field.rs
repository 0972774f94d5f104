//! Agents in the field, over real sockets: what they say exactly as they say it, with and without TLS.

use std::{net::SocketAddr, time::Duration};

use fleet_manager::{
    api::token,
    clock,
    config::Config,
    core::{
        command::Wanted,
        identity::{Change, FieldToken, Operator, Role},
        registry::Intent,
    },
    run::{self, RunningHub},
    store::state::EventFilter,
};
use fleet_schemas::{CommandId, Lane, MetricName, NodeId, command::State};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time,
};

use crate::given::{PATIENCE, Site, dial};

/// A hub that agents in the field find.
struct Hub {
    running: RunningHub,
    data: TempDir,
}

/// An answer, with its headers.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Hub {
    async fn start(data: TempDir) -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut config = Config { data: data.path().to_owned(), ..Config::default() };
        let listen = &mut config.listen;
        (listen.http, listen.mqtt, listen.mqtts, listen.node_https) = (any, any, any, any);
        listen.legacy_http = Some(any);
        Self { running: run::start(&config).await.unwrap(), data }
    }

    async fn new() -> Self {
        Self::start(TempDir::new().unwrap()).await
    }

    async fn restarted(self) -> Self {
        self.running.stop().await;
        Self::start(self.data).await
    }

    async fn intend(&self, change: Change) {
        self.running.hub.intend("operator test", Intent::Identity(change)).await.unwrap();
    }

    /// A field token; gives its text.
    async fn token(&self, id: &str, named: Option<&str>) -> String {
        let text = format!("fleet-field.{id}.secret-of-{id}");
        let token = FieldToken {
            id: id.to_owned(),
            text: token::hash(&text),
            created_ms: 0,
            created_by: "test".to_owned(),
            expires_ms: None,
            labels: Default::default(),
            named: named.is_some(),
            node: named.map(|id| NodeId::parse(id).unwrap()),
            bound_ms: None,
        };
        self.intend(Change::PutField(token)).await;
        text
    }

    async fn operator(&self) -> String {
        let text = token::text(&clock::random());
        let operator = Operator {
            name: "looks".to_owned(),
            role: Role::Viewer,
            token: token::hash(&text),
            created_ms: 0,
            created_by: "test".to_owned(),
            expires_ms: None,
            on: None,
            used_ms: None,
        };
        self.intend(Change::PutOperator(operator)).await;
        text
    }

    /// Asks over TLS.
    async fn tls(&self, token: &str, method: &str, path: &str, body: &Value) -> Answer {
        let address = self.running.addresses.node_https.unwrap();
        let tls = dial(address, &self.running.pki.ca_pem(), None).await.unwrap();
        fetch(tls, token, method, path, &body.to_string()).await
    }

    /// Asks without TLS.
    async fn plain(&self, token: &str, method: &str, path: &str, body: &Value) -> Answer {
        self.raw(token, method, path, &body.to_string()).await
    }

    async fn raw(&self, token: &str, method: &str, path: &str, body: &str) -> Answer {
        let stream = TcpStream::connect(self.running.addresses.legacy_http.unwrap()).await.unwrap();
        fetch(stream, token, method, path, body).await
    }

    async fn post(&self, token: &str, path: &str, body: Value) -> Answer {
        self.plain(token, "POST", path, &body).await
    }

    fn state(&self, node: &str) -> &'static str {
        self.running.hub.with_fleet(|fleet| {
            fleet.nodes.get(node).map_or("none", |node| node.record.presence.state.as_str())
        })
    }

    /// Kinds of the events that a node sent, oldest first.
    fn events(&self, node: &str) -> Vec<String> {
        let events =
            self.running.hub.events(EventFilter { limit: 500, after: Some(0), ..EventFilter::default() });
        let mine = |event: &fleet_manager::consume::StoredEvent| event.node.as_str() == node;
        events.unwrap().into_iter().filter(mine).map(|event| event.event.kind.to_string()).collect()
    }

    /// The account of a lane: how it stands, and records stored.
    fn account(&self, node: &str, lane: Lane) -> (&'static str, u64) {
        let accounts = self.running.hub.ledger().unwrap();
        let mine = accounts.iter().find(|account| account.node.as_str() == node && account.lane == lane);
        mine.map_or(("none", 0), |account| (account.state.as_str(), account.counters.stored))
    }

    /// Makes a command for a node.
    async fn command(&self, node: &str, kind: &str, idempotent: bool, timeout: Duration) -> CommandId {
        let word = |text: &str| MetricName::parse(text).unwrap();
        let wanted = Wanted {
            id: CommandId(clock::random()),
            by: "operator test".to_owned(),
            nodes: vec![NodeId::parse(node).unwrap()],
            kind: word(kind),
            params: ciborium::Value::serialized(&json!({ "service": "sensor" })).unwrap(),
            queue: word("main"),
            priority: 0,
            idempotent,
            supersedes: None,
            ttl: Duration::from_secs(600),
            timeout,
            not_before_ms: None,
            rate: None,
            selector: None,
        };
        let id = wanted.id;
        self.running.hub.intend("operator test", Intent::Command(Box::new(wanted))).await.unwrap();
        id
    }

    /// Every state that a command had at a node.
    fn history(&self, node: &str, id: CommandId) -> Vec<State> {
        let number = self.running.hub.with_fleet(|fleet| fleet.nodes[node].number);
        let execution = self.running.hub.state().execution(id, number).unwrap().unwrap();
        execution.history.iter().map(|step| step.state).collect()
    }
}

async fn fetch(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    token: &str,
    method: &str,
    path: &str,
    body: &str,
) -> Answer {
    let auth = if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
    // As Go's client does: it would like to keep the connection.
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: hub.example:8443\r\n{auth}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // One that is refused early may be closed before all of it was sent.
    let _ = stream.write_all(body.as_bytes()).await;
    let mut text = Vec::new();
    let _ = time::timeout(PATIENCE, stream.read_to_end(&mut text)).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer {
        status,
        head: head.to_ascii_lowercase(),
        body: serde_json::from_str(body).unwrap_or(Value::Null),
    }
}

fn picclaw() -> Value {
    json!({"node_id": "dc-rack-a1", "node_name": "picclaw-edge", "type": "picclaw",
        "capabilities": ["sensor", "exec", "cron", "alert"], "version": "0.1.0"})
}

fn beat() -> Value {
    json!({"node_id": "dc-rack-a1", "status": "online", "timestamp": "2026-11-18T12:00:00Z", "gene_stats": {"total": 2}})
}

fn alert(n: u32) -> Value {
    json!({"node_id": "dc-rack-a1", "type": "alert", "data": {"n": n}, "timestamp": "2026-11-18T12:00:00Z"})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picclaw_lives_through_restarts_of_the_hub_and_of_itself() {
    let hub = Hub::new().await;
    let token = hub.token("pic", None).await;
    let registered = hub.tls(&token, "POST", "/fleet/register", &picclaw()).await;
    assert_eq!(
        (registered.status, &registered.body["status"]),
        (200, &json!("registered")),
        "{registered:?}"
    );
    assert!(registered.head.contains("connection: close"), "{registered:?}");
    assert_eq!(hub.state("dc-rack-a1"), "online");
    let (kind, version, interval_ms) = hub.running.hub.with_fleet(|fleet| {
        let record = &fleet.nodes["dc-rack-a1"].record;
        (record.kind.clone(), record.versions.agent.clone(), record.presence.interval_ms)
    });
    assert_eq!((kind.as_str(), version.as_str(), interval_ms), ("picclaw", "0.1.0", 30_000));
    assert_eq!(hub.tls(&token, "POST", "/fleet/heartbeat", &beat()).await.status, 200);
    for n in 0..3 {
        let stored = hub.tls(&token, "POST", "/fleet/events", &alert(n)).await;
        assert_eq!((stored.status, &stored.body["events_stored"]), (200, &json!(1)), "{stored:?}");
    }
    assert_eq!(hub.events("dc-rack-a1"), ["alert"; 3]);

    // The hub is restarted; PicClaw does not register again, and knows nothing of it.
    let hub = hub.restarted().await;
    assert_eq!(hub.state("dc-rack-a1"), "suspect");
    assert_eq!(hub.tls(&token, "POST", "/fleet/heartbeat", &beat()).await.status, 200);
    assert_eq!(hub.state("dc-rack-a1"), "online");
    assert_eq!(hub.tls(&token, "POST", "/fleet/events", &alert(3)).await.status, 200);
    // PicClaw is restarted: it registers again, twice even.
    for _ in 0..2 {
        assert_eq!(hub.tls(&token, "POST", "/fleet/register", &picclaw()).await.status, 200);
    }
    assert_eq!(hub.tls(&token, "POST", "/fleet/events", &alert(4)).await.status, 200);
    assert_eq!(hub.events("dc-rack-a1"), ["alert"; 5], "no word of lost or repeated records");
    assert_eq!(hub.account("dc-rack-a1", Lane::Event), ("balanced", 5));
    let (streams, kind) = hub.running.hub.with_fleet(|fleet| {
        let node = &fleet.nodes["dc-rack-a1"];
        let streams: Vec<_> =
            node.marks.keys().filter(|(lane, _)| *lane == Lane::Event).map(|(_, s)| *s).collect();
        (streams, node.record.kind.clone())
    });
    assert!(
        streams.len() == 1 && streams[0].is_unsequenced(),
        "one stream, which says what it is: {streams:?}"
    );
    assert_eq!(kind, "picclaw", "the heartbeat after the restart left what was registered");
    let verified = hub.running.hub.verify_ledger(None).unwrap();
    assert!(verified.iter().all(|found| found.account.counters.stored == found.found), "{verified:?}");
    // What a heartbeat measures is a sample.
    assert_eq!(hub.account("dc-rack-a1", Lane::Telemetry), ("balanced", 2));
    hub.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_is_served_and_answered_in_its_own_words() {
    let hub = Hub::new().await;
    let open = hub.token("open", None).await;
    let hello = json!({"node_id": "esp-1", "node_type": "microclaw", "hardware": {"chip": "esp32"}, "capabilities": []});
    let answer = hub.post(&open, "/api/v1/fleet/register", hello).await;
    assert_eq!(
        (answer.status, &answer.body["node_id"], answer.body["token"].as_str()),
        (200, &json!("esp-1"), Some(&*open))
    );
    let port = hub.running.addresses.mqtts.unwrap().port();
    assert_eq!(answer.body["fleet_broker"], format!("mqtts://hub.example:{port}"));
    let beat = json!({"node_id": "esp-1", "uptime_seconds": 5, "free_memory_kb": 100, "sensors_active": 1, "wifi_rssi": -60});
    let answer = hub.post(&open, "/api/v1/fleet/heartbeat", beat).await;
    assert_eq!(answer.body, json!({"status": "ok", "next_heartbeat_seconds": 60, "commands_pending": 0}));
    let system =
        hub.running.hub.with_fleet(|fleet| fleet.nodes["esp-1"].vital.as_ref().map(|vital| vital.system()));
    assert!(system.is_none_or(|system| system["wifi_rssi"] == -60.0));
    let events = json!({"node_id": "esp-1", "events": [
        {"event_type": "sensor_reading", "sensor_type": "temperature", "severity": "info", "data": {"value": 20.5, "unit": "C"}},
        {"event_type": "alert", "severity": "critical", "message": "fire"}]});
    let answer = hub.post(&open, "/api/v1/fleet/events", events).await;
    assert_eq!(
        (answer.status, &answer.body["events_received"], &answer.body["events_stored"]),
        (200, &json!(2), &json!(2))
    );
    assert_eq!(hub.events("esp-1"), ["alert"]);
    assert_eq!(hub.account("esp-1", Lane::Telemetry), ("balanced", 5));
    let many = json!({ "node_id": "esp-1", "events": vec![json!({"event_type": "alert"}); 101] });
    assert_eq!(hub.post(&open, "/api/v1/fleet/events", many).await.status, 413);

    let fork = hub.token("fork", None).await;
    assert_eq!(
        hub.post(&fork, "/fleet/register", json!({"id": "fork-1", "name": "north"})).await.status,
        201
    );
    let answer = hub.post(&fork, "/fleet/heartbeat", json!({"id": "fork-1", "metrics": {"cpu": 0.5}})).await;
    assert_eq!((answer.status, &answer.body["id"]), (200, &json!("fork-1")), "{answer:?}");
    let molt = hub.token("molt", None).await;
    // A heartbeat of one that never registered makes a stub.
    let answer = hub
        .post(&molt, "/fleet/heartbeat", json!({"agentId": "Molt-1", "load": 0.5, "status": "idle"}))
        .await;
    assert_eq!((answer.status, &answer.body), (200, &json!({"success": true, "ack": true})));
    let nano = hub.token("nano", None).await;
    let reading = json!({"node_id": "nano-1", "sensor_type": "humidity", "value": 41, "unit": "%"});
    let answer = hub.post(&nano, "/report", reading).await;
    assert_eq!(
        (answer.status, &answer.body["status"], &answer.body["node_id"]),
        (201, &json!("accepted"), &json!("nano-1"))
    );
    let batch = json!({"gateway_id": "nano-1", "batch_timestamp": "2026-11-18T12:00:00Z",
        "readings": [{"node_id": "board-7", "sensor_type": "t", "value": 1}]});
    assert_eq!(hub.post(&nano, "/batch", batch).await.status, 201);
    assert_eq!(hub.account("nano-1", Lane::Telemetry), ("balanced", 2));

    for node in ["esp-1", "fork-1", "molt-1", "nano-1"] {
        assert_eq!(hub.state(node), "online", "{node}");
    }
    let looks = hub.operator().await;
    let list = hub.plain(&looks, "GET", "/fleet/nodes", &Value::Null).await;
    let names: Vec<_> =
        list.body.as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["esp-1", "fork-1", "molt-1", "nano-1"]);
    let list = hub.tls(&looks, "GET", "/api/v1/fleet/nodes?node_type=microclaw&limit=5", &Value::Null).await;
    assert_eq!((&list.body["count"], &list.body["nodes"][0]["status"]), (&json!(1), &json!("online")));
    assert_eq!(
        hub.tls(&open, "GET", "/api/v1/fleet/nodes", &Value::Null).await.body["total"],
        1,
        "its own only"
    );
    assert_eq!(
        hub.tls(&open, "GET", "/api/v1/fleet/nodes/esp-1", &Value::Null).await.body["node_type"],
        "microclaw"
    );
    assert_eq!(hub.tls(&open, "GET", "/api/v1/fleet/nodes/fork-1", &Value::Null).await.status, 404);
    hub.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_serves_its_node_until_it_is_taken_back() {
    let hub = Hub::new().await;
    let token = hub.token("f", None).await;
    for (bearer, status) in
        [("", 401), ("nonsense", 401), ("fleet-field.f.guess", 401), ("fleet-field.g.secret-of-g", 401)]
    {
        let answer = hub.post(bearer, "/fleet/register", picclaw()).await;
        assert_eq!(answer.status, status, "{bearer}: {answer:?}");
    }
    assert_eq!(hub.post(&token, "/fleet/register", picclaw()).await.status, 200);
    let other = hub.post(&token, "/fleet/heartbeat", json!({"node_id": "somebody-else"})).await;
    assert_eq!(other.status, 403);
    assert!(other.body["error"].as_str().unwrap().contains("dc-rack-a1"), "{other:?}");
    assert_eq!(hub.state("somebody-else"), "none");
    let second = hub.token("second", None).await;
    assert_eq!(hub.post(&second, "/fleet/register", picclaw()).await.status, 403, "the place is taken");
    let named = hub.token("named", Some("dc-rack-a1")).await;
    assert_eq!(hub.post(&named, "/fleet/register", picclaw()).await.status, 200, "an admin said so");
    hub.intend(Change::RemoveField("f".to_owned())).await;
    assert_eq!(hub.post(&token, "/fleet/heartbeat", beat()).await.status, 401);
    assert_eq!(hub.post(&named, "/fleet/heartbeat", beat()).await.status, 200);
    let node = NodeId::parse("dc-rack-a1").unwrap();
    hub.intend(Change::Revoke { node, reason: "stolen".to_owned() }).await;
    assert_eq!(hub.post(&named, "/fleet/heartbeat", beat()).await.status, 403);
    // Guessing is slowed, and nobody else is.
    let mut slowed = 0;
    for n in 0..30 {
        slowed += u32::from(
            hub.post(&format!("fleet-field.f.{n}"), "/fleet/heartbeat", beat()).await.status == 429,
        );
    }
    assert!(slowed >= 5, "{slowed} of 30");
    let good = hub.token("good", None).await;
    assert_eq!(hub.post(&good, "/fleet/heartbeat", json!({"node_id": "good-1"})).await.status, 200);
    // Nothing else is served without TLS.
    assert_eq!(hub.plain("", "GET", "/v1/trust", &Value::Null).await.status, 404);
    hub.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_s_text_lets_a_field_agent_in() {
    let site = Site::start().await;
    let join = site.token(|_| ()).await.to_string();
    let dialled = async || dial(site.running.addresses.node_https.unwrap(), &site.ca(), None).await.unwrap();
    for path in ["/fleet/register", "/fleet/heartbeat", "/fleet/register"] {
        let answer = fetch(dialled().await, &join, "POST", path, &picclaw().to_string()).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_given_once_and_what_became_of_them_is_kept() {
    let hub = Hub::new().await;
    let token = hub.token("f", None).await;
    assert_eq!(hub.post(&token, "/fleet/register", picclaw()).await.status, 200);
    let hour = Duration::from_secs(3_600);
    let restart = hub.command("dc-rack-a1", "restart", false, hour).await;
    let ping = hub.command("dc-rack-a1", "ping", false, hour).await;
    assert_eq!(hub.post(&token, "/fleet/heartbeat", beat()).await.body["commands_pending"], 2);
    let polls = futures_util::future::join_all(
        (0..4).map(|_| hub.post(&token, "/fleet/command", json!({"node_id": "dc-rack-a1"}))),
    )
    .await;
    let given: Vec<_> = polls.iter().flat_map(|answer| answer.body["commands"].as_array().unwrap()).collect();
    let told: Vec<_> = given
        .iter()
        .map(|it| (it["command_id"].as_str().unwrap().to_owned(), it["command_type"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [(restart.to_string(), "restart"), (ping.to_string(), "custom")], "once, in order");
    assert_eq!(given[0]["params"], json!({"service": "sensor"}));
    assert_eq!(hub.history("dc-rack-a1", restart), [State::Queued, State::Accepted]);

    // The hub is restarted: what was given is not given again, and is still waited for.
    let hub = hub.restarted().await;
    assert_eq!(hub.post(&token, "/api/v1/fleet/command", json!({})).await.body, json!({"commands": []}));
    let ack = json!({"command_id": restart.to_string(), "status": "success", "executed_at": "2026-11-18T12:00:00Z", "result": {"pid": 7}});
    for _ in 0..2 {
        assert_eq!(hub.post(&token, "/fleet/command/ack", ack.clone()).await.body, json!({"status": "ok"}));
    }
    let ack = json!({"command_id": ping.to_string(), "status": "failed", "result": "no"});
    assert_eq!(hub.post(&token, "/fleet/command/ack", ack).await.status, 200);
    assert_eq!(hub.history("dc-rack-a1", restart), [State::Queued, State::Accepted, State::Succeeded]);
    assert_eq!(hub.history("dc-rack-a1", ping), [State::Queued, State::Accepted, State::Failed]);
    let unknown = json!({"command_id": CommandId([9; 16]).to_string(), "status": "success"});
    let answer = hub.post(&token, "/fleet/command/ack", unknown).await;
    assert_eq!((answer.status, &answer.body["pointer"]), (404, &json!("/command_id")));

    // One that was canceled in time is never given; one that was given and is not answered times out.
    let canceled = hub.command("dc-rack-a1", "restart", false, hour).await;
    let cancel = Intent::CancelCommand { id: canceled, nodes: None };
    hub.running.hub.intend("operator test", cancel).await.unwrap();
    let brief = hub.command("dc-rack-a1", "update", false, Duration::from_millis(1)).await;
    let given = hub.post(&token, "/fleet/command", json!({})).await;
    assert_eq!(given.body["commands"].as_array().unwrap().len(), 1, "{given:?}");
    assert_eq!(given.body["commands"][0]["command_id"], brief.to_string());
    let ended = [State::Queued, State::Accepted, State::TimedOut];
    let times_out = async {
        while hub.history("dc-rack-a1", brief) != ended {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    time::timeout(PATIENCE, times_out).await.expect("what was given and is not answered times out");
    assert_eq!(hub.history("dc-rack-a1", canceled), [State::Queued, State::Canceled]);
    assert_eq!(hub.account("dc-rack-a1", Lane::Command).0, "balanced");
    hub.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn genes_are_kept_once_and_told() {
    let hub = Hub::new().await;
    let token = hub.token("f", None).await;
    let gene = json!({"node_id": "a", "gene": {"type": "Gene", "id": "g1", "asset_id": "sha256:00", "strategy": ["x"]}, "timestamp": "2026-11-18T12:00:00Z"});
    for _ in 0..2 {
        let answer = hub.post(&token, "/fleet/genes/publish", gene.clone()).await;
        assert_eq!((answer.status, &answer.body["verified"]), (200, &json!(false)), "{answer:?}");
    }
    assert_eq!(hub.running.hub.state().genes("", 10).unwrap().len(), 1);
    assert_eq!(hub.events("a"), ["gene_published"]);
    hub.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_sent_is_answered_and_harms_nobody() {
    let hub = Hub::new().await;
    let token = hub.token("f", None).await;
    let nest =
        |depth: usize| format!("{{\"node_id\":\"a\",\"x\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    for (body, status, pointer) in [
        ("{".to_owned(), 400, None),
        (nest(100), 422, Some("")),
        (nest(100_000), 400, None),
        ("[]".to_owned(), 422, Some("")),
        ("{}".to_owned(), 422, Some("/node_id")),
        (r#"{"node_id":"with blanks"}"#.to_owned(), 422, Some("/node_id")),
        (r#"{"node_id":"a","metrics":{"cpu":"hot"}}"#.to_owned(), 422, Some("/metrics/cpu")),
        (format!(r#"{{"node_id":"a","blob":"{}"}}"#, "x".repeat(300 * 1024)), 413, None),
    ] {
        let answer = hub.raw(&token, "POST", "/fleet/heartbeat", &body).await;
        assert_eq!(answer.status, status, "{}: {answer:?}", &body[..body.len().min(60)]);
        assert_eq!(answer.body["pointer"].as_str(), pointer, "{answer:?}");
        assert!(answer.body["error"].is_string(), "{answer:?}");
    }
    assert_eq!(hub.raw("", "POST", "/fleet/heartbeat", "{}").await.status, 401, "who it is comes first");
    assert_eq!(hub.raw(&token, "GET", "/fleet/heartbeat", "").await.status, 405);
    assert_eq!(hub.raw(&token, "POST", "/fleet/nonsense", "{}").await.status, 404);
    let molt = hub.raw(&token, "POST", "/fleet/heartbeat", r#"{"agentId":"no no"}"#).await;
    assert_eq!((molt.status, &molt.body["success"]), (422, &json!(false)));
    assert_eq!(hub.state("a"), "none");

    // A flood with one token is slowed; another agent is not.
    let quiet = hub.token("quiet", None).await;
    let flood = (0..400).map(|_| hub.post(&token, "/fleet/heartbeat", json!({"node_id": "a"})));
    let statuses: Vec<_> =
        futures_util::future::join_all(flood).await.iter().map(|answer| answer.status).collect();
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&429) && statuses.contains(&200), "{statuses:?}");
    assert_eq!(hub.post(&quiet, "/fleet/heartbeat", json!({"node_id": "b"})).await.status, 200);
    hub.running.stop().await;
}
