//! Clients that mean no good, or know no better: what they send is refused clearly, what they make the agent hold is
//! bounded, and neighbours do not notice.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use fleet_edge_agent::{
    api::grpc::pb::telemetry_client::TelemetryClient, core::devices::Register, run::Handle,
};
use fleet_schemas::limits;
use reqwest::Client;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time,
};
use tonic::Code;

use crate::{
    PATIENCE, get_json,
    grpc::{batch, channel, sample},
    post,
    process::{Process, command},
    quiet, start, url,
};

/// What all clients together may make the agent hold, in MB, beside the little it holds at rest: bodies, their trees
/// and records on the way to the disk. Far below what they send.
const HELD_MB: u64 = 48;

fn run(data: &std::path::Path) -> Process {
    let mut run = command(data, "run");
    run.args(["--api", "127.0.0.1:0", "--node", "hostile"]).env("FLEET_SYSTEM_INTERVAL_S", "0");
    run.env("FLEET_OUTBOX_QUOTA_BYTES", "8388608");
    Process::start(run)
}

/// Memory of a process at its highest, in MB.
fn highest(agent: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1_024
}

/// A request that begins and goes on for 100 MB, or until it is answered.
async fn endless(api: SocketAddr, head: &str, part: &[u8]) -> String {
    let mut stream = TcpStream::connect(api).await.unwrap();
    let head = format!("POST {head}content-type: application/json\r\nhost: x\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut from, mut to) = stream.split();
    let sent = async {
        // It ends when the agent reads no more.
        for _ in 0..(100 << 20) / part.len() {
            if to.write_all(part).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut answer = vec![0; 12];
    let answered = async {
        tokio::select! {
            read = from.read_exact(&mut answer) => read.map(drop).unwrap_or_default(),
            () = sent => {}
        }
    };
    time::timeout(PATIENCE, answered).await.expect("it is answered or cut off");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Posts a sample of the neighbour's again and again until told to stop; how many were taken.
async fn neighbour(api: SocketAddr, mut until: watch::Receiver<bool>) -> u64 {
    let client = Client::new();
    let mut taken = 0;
    while !*until.borrow_and_update() {
        let body = json!({"device": "neighbour", "samples": [{"metric": "n", "value": taken}]});
        let request = client.post(format!("http://{api}/api/v1/telemetry")).json(&body);
        let answer = time::timeout(PATIENCE, request.send()).await.expect("it is answered").unwrap();
        assert_eq!(answer.status(), 202, "{:?}", answer.text().await);
        taken += 1;
    }
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_and_bodies_without_end_stay_bounded_beside_a_neighbour() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = run(folder.path());
    let (api, before) = (agent.api, highest(&agent));
    let (over, until) = watch::channel(false);
    let beside = tokio::spawn(neighbour(api, until));
    let path = "/api/v1/telemetry HTTP/1.1\r\n";
    let declared = format!("{path}content-length: 104857600\r\n");
    assert!(endless(api, &declared, &[b' '; 65_536]).await.starts_with("HTTP/1.1 413"));
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 65_536], b"\r\n"].concat();
    let chunked = format!("{path}transfer-encoding: chunked\r\n");
    let answer = endless(api, &chunked, &chunk).await;
    // The answer may be lost when the agent closes before it has read everything.
    assert!(answer.starts_with("HTTP/1.1 413") || answer.starts_with('\0'), "{answer}");
    // Bodies as large as they may be, over most of the connections, as fast as they are answered.
    let samples: Vec<_> = (0..9_000).map(|n| json!({"metric": "m", "value": n})).collect();
    let body = json!({"device": "flood", "samples": samples}).to_string();
    assert!(body.len() < fleet_edge_agent::api::BODY_BYTES, "{}", body.len());
    let mut flood = JoinSet::new();
    for _ in 0..24 {
        let body = body.clone();
        flood.spawn(async move {
            let client = Client::new();
            let mut told = BTreeMap::new();
            for _ in 0..8 {
                let request = client.post(format!("http://{api}/api/v1/telemetry"));
                let request = request.header("content-type", "application/json").body(body.clone());
                *told.entry(request.send().await.unwrap().status().as_u16()).or_insert(0) += 1;
            }
            told
        });
    }
    for told in flood.join_all().await {
        assert_eq!(told, BTreeMap::from([(202, 8)]), "slowed down, not refused: what is oldest makes room");
    }
    over.send_replace(true);
    assert!(beside.await.unwrap() > 0);
    let held = highest(&agent).saturating_sub(before);
    assert!(held <= HELD_MB, "{held} MB");
    let ledger: Value = get_json(&format!("http://{api}/api/v1/ledger")).await;
    assert_eq!(ledger["balanced"], true, "{ledger}");
    assert_eq!(agent.end(Signal::TERM).await, Some(0));
}

#[tokio::test]
async fn deep_json_is_refused_wherever_it_stands() {
    let (_folder, config) = quiet("hostile-2");
    let agent = start(config).await;
    let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    let told = |body: String, path: &'static str| {
        let url = url(&agent, path);
        async move { post(&url, body).await }
    };
    for levels in [200, 100_000] {
        for path in ["/api/v1/telemetry", "/api/v1/events", "/api/v1/command", "/report", "/batch"] {
            let (status, problem) = told(deep(levels), path).await;
            assert!(matches!(status, 400 | 422), "{path}: {problem}");
        }
        let body = format!(r#"{{"samples":[{{"metric":"t","value":{}}}]}}"#, deep(levels));
        let (status, problem) = told(body, "/api/v1/telemetry").await;
        assert!(matches!(status, 400 | 422), "{problem}");
    }
    for levels in [11, 100] {
        let event = r#"{"kind":"k","severity":"info","message":"m","data":"#;
        let (status, problem) = told(format!("{event}{}}}", deep(levels)), "/api/v1/events").await;
        assert_eq!((status, &problem["pointer"]), (422, &json!("/data")), "{problem}");
        let command = r#"{"kind":"local","params":"#;
        let (status, problem) = told(format!("{command}{}}}", deep(levels)), "/api/v1/command").await;
        assert_eq!((status, &problem["pointer"]), (422, &json!("/params")), "{problem}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn wrong_types_are_pointed_at_on_every_route_that_takes_a_body() {
    let (_folder, config) = quiet("hostile-3");
    let agent = start(config).await;
    let id = "/api/v1/local/01940000-0000-7000-8000-000000000000";
    for (path, body, pointer) in [
        ("/api/v1/command".to_owned(), json!({"kind": 1}), "/kind"),
        ("/api/v1/command".to_owned(), json!({"params": {}}), "/kind"),
        ("/api/v1/command".to_owned(), json!({"kind": "a", "ttl_s": "1"}), "/ttl_s"),
        ("/api/v1/command".to_owned(), json!({"kind": "a", "ttl_s": 0}), "/ttl_s"),
        ("/api/v1/command".to_owned(), json!({"kind": "a", "idempotent": 1}), "/idempotent"),
        ("/api/v1/local/take".to_owned(), json!({"kinds": ["a", 1]}), "/kinds/1"),
        ("/api/v1/local/take".to_owned(), json!({"wait_s": -1}), "/wait_s"),
        ("/api/v1/local/take".to_owned(), json!([]), ""),
        (format!("{id}/extend"), json!({"lease_s": "x"}), "/lease_s"),
        (format!("{id}/report"), json!({"state": "well"}), "/state"),
        (format!("{id}/report"), json!({}), "/state"),
        ("/api/v1/devices/d/sleep".to_owned(), json!({}), "/for_s"),
        ("/api/v1/devices/d/sleep".to_owned(), json!({"for_s": "x"}), "/for_s"),
        ("/api/v1/devices/d".to_owned(), json!({"capabilities": [1]}), "/capabilities/0"),
        ("/report".to_owned(), json!({"node_id": 1}), "/node_id"),
        ("/report".to_owned(), json!({"node_id": "n", "sensor_type": "t", "value": "x"}), "/value"),
        ("/batch".to_owned(), json!({"gateway_id": "g", "readings": [1]}), "/readings/0"),
    ] {
        let (status, problem) = post(&url(&agent, &path), &body).await;
        assert_eq!((status, &problem["pointer"]), (422, &json!(pointer)), "{path} {body}: {problem}");
    }
    // What JSON leaves open: a field that is given twice.
    for (path, body, pointer) in [
        ("/api/v1/telemetry", r#"{"device":"a","device":"b","samples":[]}"#, "/device"),
        (
            "/api/v1/telemetry",
            r#"{"samples":[{"metric":"t","value":1},{"metric":"t","value":1,"value":2}]}"#,
            "/samples/1/value",
        ),
        ("/api/v1/events", r#"{"kind":"a","kind":"b","severity":"info","message":"m"}"#, "/kind"),
        ("/api/v1/command", r#"{"kind":"a","kind":"b"}"#, "/kind"),
    ] {
        let (status, problem) = post(&url(&agent, path), body).await;
        assert_eq!((status, &problem["pointer"]), (422, &json!(pointer)), "{path} {body}: {problem}");
    }
    agent.stop().await;
}

async fn devices(agent: &Handle) -> Vec<Value> {
    get_json(&url(agent, "/api/v1/devices")).await["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn one_device_that_many_claim_to_be_is_one_device() {
    let (_folder, mut config) = quiet("hostile-4");
    config.devices.register = Register::Auto;
    let agent = start(config).await;
    let mut claims = JoinSet::new();
    for claim in 0..16 {
        let (declare, telemetry) = (url(&agent, "/api/v1/devices/twin"), url(&agent, "/api/v1/telemetry"));
        claims.spawn(async move {
            let body = json!({"device": "twin", "samples": [{"metric": "m", "value": claim}]});
            assert_eq!(post(&telemetry, body).await.0, 202);
            let declared = Client::new().put(&declare).json(&json!({"kind": format!("kind-{claim}")}));
            declared.send().await.unwrap().status().as_u16()
        });
    }
    let told = claims.join_all().await;
    assert!(told.iter().all(|status| *status == 200), "known by its first word: {told:?}");
    let found = devices(&agent).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0]["kind"].as_str().unwrap().starts_with("kind-"), "{found:?}");
    agent.stop().await;
}

#[tokio::test]
async fn ten_thousand_ids_over_grpc_are_bounded_and_leave_the_known_alone() {
    let (_folder, mut config) = quiet("hostile-5");
    config.devices.register = Register::Auto;
    let agent = start(config).await;
    let mut telemetry = TelemetryClient::new(channel(agent.api()).await);
    let of = |device: String| {
        let mut batch = batch("", vec![sample("m", 1.0)]);
        batch.device = device;
        batch
    };
    telemetry.submit_batch(of("known".to_owned())).await.unwrap();
    let (mut taken, mut refused) = (0, 0);
    for n in 0..10_000 {
        match telemetry.submit_batch(of(format!("esp-{n}"))).await {
            Ok(_) => taken += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                assert!(status.message().contains("DELETE /api/v1/devices"), "{status}");
                refused += 1;
            }
        }
    }
    assert_eq!((taken, refused), (limits::DEVICES_PER_NODE - 1, 10_000 - limits::DEVICES_PER_NODE + 1));
    telemetry.submit_batch(of("known".to_owned())).await.unwrap();
    // A stream ends at the first that is too many, and what it said before stays.
    let stream = futures_util::stream::iter([of("known".to_owned()), of("esp-x".to_owned())]);
    let mut answers = telemetry.submit_stream(stream).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().records, 1);
    assert_eq!(answers.message().await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(devices(&agent).await.len(), limits::DEVICES_PER_NODE);
    agent.stop().await;
}

#[tokio::test]
async fn requests_that_stall_give_their_places_back() {
    let (_folder, mut config) = quiet("hostile-6");
    config.api.read = Duration::from_millis(300);
    config.api.connections = 8;
    let agent = start(config).await;
    let api = agent.api();
    let head = "POST /api/v1/telemetry HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    let mut stalled = JoinSet::new();
    for _ in 0..7 {
        stalled.spawn(async move {
            let mut stream = TcpStream::connect(api).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer);
            time::timeout(PATIENCE, read).await.expect("it is cut off").unwrap();
            answer
        });
    }
    // Beside them and after them, over the one connection that is left.
    let client = Client::new();
    for value in 0..20 {
        let body = json!({"samples": [{"metric": "n", "value": value}]});
        let request = client.post(url(&agent, "/api/v1/telemetry")).json(&body);
        let answer = time::timeout(PATIENCE, request.send()).await.expect("it is answered").unwrap();
        assert_eq!(answer.status(), 202);
    }
    for answer in stalled.join_all().await {
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    agent.stop().await;
}
