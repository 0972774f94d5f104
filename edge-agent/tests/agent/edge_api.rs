//! The edge API over real sockets: what it takes, what it refuses and how it says so.

use std::{net::SocketAddr, time::Duration};

use crate::{PATIENCE, get_json, post, quiet, start, until, url};
use fleet_edge_agent::run::Handle;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time,
};

const TELEMETRY: &str = "/api/v1/telemetry";
const EVENTS: &str = "/api/v1/events";

async fn held(agent: &Handle) -> u64 {
    get_json(&url(agent, "/api/v1/outbox")).await["held_records"].as_u64().unwrap()
}

/// Sends bytes as they are and reads until the agent closes.
async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = String::new();
    let read = time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("the agent closes");
    read.unwrap();
    answer
}

#[tokio::test]
async fn it_tells_how_the_agent_is() {
    let (_folder, config) = quiet("api-1");
    let agent = start(config).await;
    for path in ["/healthz", "/api/health"] {
        let health = get_json(&url(&agent, path)).await;
        assert_eq!((&health["status"], &health["node_id"]), (&json!("ok"), &json!("api-1")));
    }
    let status = get_json(&url(&agent, "/api/v1/status")).await;
    assert_eq!(
        (&status["node_id"], &status["status"], &status["cloud"]),
        (&json!("api-1"), &json!("offline"), &json!(false))
    );
    assert_eq!(status["outbox"]["held_records"], 0);
    let page = reqwest::get(url(&agent, "/metrics")).await.unwrap().text().await.unwrap();
    assert!(
        page.contains(r#"fleet_agent_info{node="api-1""#) && page.contains("fleet_agent_connected 0"),
        "{page}"
    );
    assert!(page.contains(r#"fleet_agent_http_requests_total{code="200"} 3"#), "{page}");
    agent.stop().await;
}

#[tokio::test]
async fn what_it_accepts_is_on_disk() {
    let (_folder, config) = quiet("api-2");
    let agent = start(config.clone()).await;
    let samples = json!({"device": "shed", "samples": [
        {"metric": "t", "value": 21.5, "unit": "Cel", "time_ms": 1_785_542_400_000_i64},
        {"metric": "t \"quoted\"", "value": -3},
    ]});
    assert_eq!(post(&url(&agent, TELEMETRY), &samples).await, (202, json!({"accepted": 2})));
    let event =
        json!({"kind": "door", "severity": "warn", "message": "open", "data": {"n": [1, null]}, "id": "7"});
    assert_eq!(post(&url(&agent, EVENTS), &event).await, (202, json!({"accepted": 1})));
    let other = json!({"kind": "door", "severity": "warn", "message": "open"});
    assert_eq!(post(&url(&agent, EVENTS), json!([other, other])).await, (202, json!({"accepted": 2})));
    assert_eq!(post(&url(&agent, TELEMETRY), json!({"samples": []})).await, (202, json!({"accepted": 0})));
    assert_eq!(held(&agent).await, 5);
    agent.stop().await;
    let agent = start(config).await;
    assert_eq!(held(&agent).await, 5);
    agent.stop().await;
}

/// Posts with a name for the write.
async fn post_named(url: &str, name: &str, body: &Value) -> (u16, Value) {
    let request = reqwest::Client::new().post(url).header("content-type", "application/json");
    let answer = request.header("idempotency-key", name).body(body.to_string()).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn a_write_that_is_repeated_is_one_record_also_after_a_restart() {
    let (_folder, config) = quiet("api-10");
    let mut agent = start(config.clone()).await;
    let sample =
        |value: f64| json!({"samples": [{"metric": "t", "value": value}, {"metric": "u", "value": 1}]});
    let event =
        |id: &str, message: &str| json!({"kind": "door", "severity": "info", "message": message, "id": id});
    for round in 0..3_u64 {
        let repeated =
            if round == 0 { json!({"accepted": 2}) } else { json!({"accepted": 2, "repeated": 2}) };
        let told = post_named(&url(&agent, TELEMETRY), "n 1", &sample(1.0)).await;
        assert_eq!(told, (202, repeated.clone()), "in round {round}");
        let told = post_named(&url(&agent, TELEMETRY), "\"n 1\"", &sample(1.0)).await;
        assert_eq!(told, (202, json!({"accepted": 2, "repeated": 2})), "quoted, in round {round}");
        // Each event's own id, with one that has none.
        let events = json!([event("a", "open"), event("b", "open"), event("a", "open")]);
        let (status, told) = post(&url(&agent, EVENTS), &events).await;
        assert_eq!((status, &told["repeated"]), (202, &json!(if round == 0 { 1 } else { 3 })), "{told}");
        // Another name is another record, and the same name for something else a mistake.
        let told = post_named(&url(&agent, TELEMETRY), &format!("other {round}"), &sample(1.0)).await;
        assert_eq!(told, (202, json!({"accepted": 2})));
        let (status, problem) = post_named(&url(&agent, TELEMETRY), "n 1", &sample(2.0)).await;
        assert_eq!(status, 409, "{problem}");
        let (status, problem) = post(&url(&agent, EVENTS), event("b", "shut")).await;
        assert_eq!((status, &problem["pointer"]), (409, &json!("/id")), "{problem}");
        let (status, problem) =
            post(&url(&agent, EVENTS), json!([event("c", "new"), event("a", "shut")])).await;
        assert_eq!((status, &problem["pointer"]), (409, &json!("/1/id")), "all or none: {problem}");
        assert_eq!(held(&agent).await, 2 + 2 + 2 * (round + 1));
        agent.stop().await;
        agent = start(config.clone()).await;
    }
    let long = "x".repeat(256);
    assert_eq!(post_named(&url(&agent, TELEMETRY), &long, &sample(1.0)).await.0, 400);
    agent.stop().await;
}

#[tokio::test]
async fn gateways_in_the_field_are_answered_in_their_words() {
    let (_folder, config) = quiet("api-11");
    let agent = start(config).await;
    let reading = json!({"node_id": "esp-7", "sensor_type": "temperature", "value": 23.5, "unit": "C", "timestamp": 1_785_542_400});
    let told = post(&url(&agent, "/report"), &reading).await;
    assert_eq!(told, (201, json!({"status": "accepted", "node_id": "esp-7", "buffer_size": 1})));
    let batch = json!({"gateway_id": "gw", "readings": [reading, {"node_id": "esp-8", "sensor_type": "humidity", "value": 4}],
        "batch_timestamp": "2026-08-01T00:00:00Z"});
    let told = post(&url(&agent, "/batch"), &batch).await;
    assert_eq!(told, (201, json!({"status": "accepted", "node_id": "gw", "buffer_size": 3})));
    let change = |field: &str, value: Value| {
        let mut reading = reading.clone();
        reading[field] = value;
        reading
    };
    for (path, body, pointer) in [
        ("/report", json!([]), ""),
        ("/report", change("node_id", Value::Null), "/node_id"),
        ("/report", change("node_id", json!("x".repeat(64))), "/node_id"),
        ("/report", change("sensor_type", json!("a\u{7}")), "/sensor_type"),
        ("/report", change("value", json!("warm")), "/value"),
        ("/report", change("unit", json!(1)), "/unit"),
        ("/report", change("timestamp", json!("yesterday")), "/timestamp"),
        ("/batch", json!({"gateway_id": "gw"}), "/readings"),
        ("/batch", json!({"readings": []}), "/gateway_id"),
        ("/batch", json!({"gateway_id": "gw", "readings": [], "batch_timestamp": []}), "/batch_timestamp"),
        ("/batch", json!({"gateway_id": "gw", "readings": [reading, 1]}), "/readings/1"),
        (
            "/batch",
            json!({"gateway_id": "gw", "readings": [change("value", json!(null))]}),
            "/readings/0/value",
        ),
    ] {
        let (status, problem) = post(&url(&agent, path), &body).await;
        assert_eq!((status, &problem["pointer"]), (422, &json!(pointer)), "{body}: {problem}");
    }
    let ledger = get_json(&url(&agent, "/api/v1/ledger")).await;
    assert_eq!((&ledger["balanced"], &ledger["pending_samples"]), (&json!(true), &json!(3)));
    agent.stop().await;
}

/// An address of this machine that is not loopback, if it has one.
fn outside() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket
        .local_addr()
        .ok()
        .map(|address| address.ip())
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[tokio::test]
async fn other_machines_need_the_token() {
    let Some(ip) = outside() else { return };
    let (_folder, mut config) = quiet("api-12");
    config.api.listen = "0.0.0.0:0".parse().unwrap();
    let agent = start(config.clone()).await;
    let token = std::fs::read_to_string(config.data.join("api-token")).unwrap();
    let (inside, outside) =
        (url(&agent, "/api/v1/status"), format!("http://{ip}:{}/api/v1/status", agent.api().port()));
    let ask = async |url: &str, token: Option<&str>| {
        let mut request = reqwest::Client::new().get(url);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.send().await.unwrap()
    };
    let inside = inside.replace("0.0.0.0", "127.0.0.1");
    assert_eq!(ask(&inside, None).await.status(), 200, "this machine needs none");
    let refused = ask(&outside, None).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["www-authenticate"]),
        (401, &"Bearer".parse().unwrap())
    );
    assert_eq!(ask(&outside, Some("wrong")).await.status(), 401);
    assert_eq!(ask(&outside, Some(token.trim())).await.status(), 200);
    agent.stop().await;
    // No token, no listening.
    config.api.token_file = Some("/nowhere/token".into());
    let refused = fleet_edge_agent::run::start(config).await.expect_err("no token").to_string();
    assert!(refused.contains("/nowhere/token") && refused.contains("127.0.0.1"), "{refused}");
}

#[tokio::test]
async fn mistakes_are_answered_with_a_pointer() {
    let (_folder, config) = quiet("api-3");
    let agent = start(config).await;
    let sample = |change: Value| {
        let mut good = json!({"metric": "t", "value": 1.0});
        good.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        json!({"samples": [{"metric": "t", "value": 1}, good]})
    };
    let event = |change: Value| {
        let mut good = json!({"kind": "k", "severity": "info", "message": "m"});
        good.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        good
    };
    let long = "x".repeat(64);
    let deep = (0..12).fold(json!(1), |inner, _| json!([inner]));
    for (path, body, pointer) in [
        (TELEMETRY, json!([]), ""),
        (TELEMETRY, json!({}), "/samples"),
        (TELEMETRY, json!({"samples": 1}), "/samples"),
        (TELEMETRY, json!({"samples": [1]}), "/samples/0"),
        (TELEMETRY, json!({"device": 1, "samples": []}), "/device"),
        (TELEMETRY, json!({"device": long, "samples": []}), "/device"),
        (TELEMETRY, json!({"samples": [{"value": 1}]}), "/samples/0/metric"),
        (TELEMETRY, sample(json!({"metric": ""})), "/samples/1/metric"),
        (TELEMETRY, sample(json!({"metric": "a\u{7}"})), "/samples/1/metric"),
        (TELEMETRY, sample(json!({"value": "warm"})), "/samples/1/value"),
        (TELEMETRY, sample(json!({"value": null})), "/samples/1/value"),
        (TELEMETRY, sample(json!({"unit": long})), "/samples/1/unit"),
        (TELEMETRY, sample(json!({"time_ms": "now"})), "/samples/1/time_ms"),
        (EVENTS, json!("x"), ""),
        (EVENTS, event(json!({"kind": ""})), "/kind"),
        (EVENTS, event(json!({"severity": "bad"})), "/severity"),
        (EVENTS, event(json!({"message": 1})), "/message"),
        (EVENTS, event(json!({"message": "x".repeat(5_000)})), "/message"),
        (EVENTS, event(json!({"data": "x".repeat(40_000)})), "/data"),
        (EVENTS, event(json!({"data": deep})), "/data"),
        (EVENTS, event(json!({"device": long})), "/device"),
        (EVENTS, event(json!({"id": ""})), "/id"),
        (EVENTS, json!([event(json!({})), event(json!({"id": long}))]), "/1/id"),
        (EVENTS, json!([event(json!({})), event(json!({"severity": 1}))]), "/1/severity"),
    ] {
        let (status, problem) = post(&url(&agent, path), &body).await;
        assert_eq!((status, &problem["pointer"]), (422, &json!(pointer)), "{body}: {problem}");
        assert_eq!((&problem["status"], &problem["type"]), (&json!(422), &json!("about:blank")));
    }
    assert_eq!(held(&agent).await, 0);
    agent.stop().await;
}

#[tokio::test]
async fn what_is_no_request_of_ours_is_refused() {
    let (_folder, config) = quiet("api-4");
    let agent = start(config).await;
    let telemetry = url(&agent, TELEMETRY);
    for body in [
        "",
        "{",
        "{\"samples\":[{\"metric\":\"t\",\"value\":NaN}]}",
        "{\"samples\":[{\"metric\":\"t\",\"value\":1e999}]}",
    ] {
        assert_eq!(post(&telemetry, body).await.0, 400, "{body}");
    }
    let large = format!("{{\"samples\":[],\"x\":\"{}\"}}", "y".repeat(300_000));
    assert_eq!(post(&telemetry, &large).await.0, 413);
    let events: Vec<_> = (0..101).map(|_| json!({"kind": "k", "severity": "info", "message": "m"})).collect();
    assert_eq!(post(&url(&agent, EVENTS), json!(events)).await.0, 413);
    let client = reqwest::Client::new();
    let untyped = client.post(&telemetry).body("{}").send().await.unwrap();
    assert_eq!(untyped.status(), 415);
    assert_eq!(untyped.headers()["content-type"], "application/problem+json");
    let form = client.post(&telemetry).header("content-type", "text/plain").body("{}").send().await.unwrap();
    assert_eq!(form.status(), 415);
    assert_eq!(client.get(&telemetry).send().await.unwrap().status(), 405);
    assert_eq!(client.get(url(&agent, "/nowhere")).send().await.unwrap().status(), 404);
    let chunks = format!(
        "POST {TELEMETRY} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    );
    let mut bytes = chunks.into_bytes();
    for _ in 0..5 {
        bytes.extend_from_slice(b"10000\r\n");
        bytes.extend(std::iter::repeat_n(b' ', 0x10000));
        bytes.extend_from_slice(b"\r\n");
    }
    let mut stream = TcpStream::connect(agent.api()).await.unwrap();
    // The agent may close before it has read everything.
    let _ = stream.write_all(&bytes).await;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    assert!(raw(agent.api(), b"\x16\x03\x01nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    agent.stop().await;
}

#[tokio::test]
async fn slow_clients_are_cut_off() {
    let (_folder, mut config) = quiet("api-5");
    config.api.read = Duration::from_millis(200);
    let agent = start(config).await;
    // A head that never ends: closed, and so is a connection on which nothing is said.
    raw(agent.api(), b"GET /healthz HTTP/1.1\r\nhost:").await;
    raw(agent.api(), b"").await;
    // A body that never ends is answered.
    let head = format!(
        "POST {TELEMETRY} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{{"
    );
    let answer = raw(agent.api(), head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    agent.stop().await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let (_folder, mut config) = quiet("api-6");
    config.api.connections = 2;
    let agent = start(config).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(agent.api()).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        open.push(stream);
    }
    let refused = raw(agent.api(), b"").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 1"), "{refused}");
    open.pop();
    let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let room = async || raw(agent.api(), request).await;
    until("room for another connection", room, |answer| answer.starts_with("HTTP/1.1 200")).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_unix_socket_serves_the_same() {
    let (folder, mut config) = quiet("api-7");
    let path = folder.path().join("agent.sock");
    config.api.socket = Some(path.clone());
    // What an agent that was killed leaves behind does not stand in the way.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let agent = start(config).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("api-7"), "{answer}");
    agent.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn events_are_refused_when_the_outbox_is_full_and_none_is_dropped() {
    let (_folder, mut config) = quiet("api-8");
    config.outbox.quota_bytes = Some(1024 * 1024);
    let agent = start(config).await;
    let mut accepted = 0;
    let problem = loop {
        // Noise, so that nothing compresses.
        let noise: String = (0..30_000)
            .map(|_| char::from(b' ' + 1 + fleet_edge_agent::clock::random::<1>()[0] % 90))
            .collect();
        let event = json!({"kind": "k", "severity": "info", "message": "m", "data": noise});
        match post(&url(&agent, EVENTS), &event).await {
            (202, _) => accepted += 1,
            (507, problem) => break problem,
            other => panic!("{other:?}"),
        }
        assert!(accepted < 200, "the quota is not kept");
    };
    assert!(problem["detail"].as_str().unwrap().contains("fleet-agent status"), "{problem}");
    assert_eq!(held(&agent).await, accepted);
    let page = reqwest::get(url(&agent, "/metrics")).await.unwrap().text().await.unwrap();
    assert!(page.contains(r#"fleet_agent_refused_total{reason="full"} 1"#), "{page}");
    agent.stop().await;
}

#[tokio::test]
async fn concurrent_posts_are_all_answered_and_all_kept() {
    let (_folder, config) = quiet("api-9");
    let agent = start(config).await;
    let address = url(&agent, TELEMETRY);
    let posts: Vec<_> = (0..16)
        .map(|poster| {
            let address = address.clone();
            tokio::spawn(async move {
                for at in 0..10 {
                    let body = json!({"samples": [{"metric": format!("m{poster}"), "value": at}]});
                    assert_eq!(post(&address, body).await.0, 202);
                }
            })
        })
        .collect();
    for post in posts {
        post.await.unwrap();
    }
    assert_eq!(held(&agent).await, 160);
    agent.stop().await;
}
