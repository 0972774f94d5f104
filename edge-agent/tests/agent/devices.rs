//! Devices over the edge API: registered by hand and by their first word, bounded, kept over a start, told as events.

use fleet_edge_agent::{config::Config, core::devices::Register, run::Handle};
use fleet_schemas::limits;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{get_json, post, start, until, url};

const DEVICES: &str = "/api/v1/devices";

fn quiet(node: &str) -> (TempDir, Config) {
    let (folder, mut config) = crate::quiet(node);
    config.devices.register = Register::Auto;
    (folder, config)
}

async fn ask(agent: &Handle, method: Method, path: &str, body: Value) -> (u16, Value) {
    let request = reqwest::Client::new().request(method, url(agent, path));
    let request = request.header("content-type", "application/json").body(body.to_string());
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or(Value::Null))
}

async fn held(agent: &Handle) -> u64 {
    get_json(&url(agent, "/api/v1/outbox")).await["held_records"].as_u64().unwrap()
}

fn sample(device: &str) -> Value {
    json!({"device": device, "samples": [{"metric": "t", "value": 1}]})
}

async fn ids(agent: &Handle) -> Vec<String> {
    let list = get_json(&url(agent, DEVICES)).await;
    let id = |device: &Value| device["id"].as_str().unwrap().to_owned();
    list["items"].as_array().unwrap().iter().map(id).collect()
}

#[tokio::test]
async fn devices_are_registered_by_hand_and_by_their_first_word() {
    let (_folder, config) = quiet("devices-1");
    let agent = start(config.clone()).await;
    let body = json!({"kind": "microclaw", "name": "The shed", "firmware": "0.2.0",
        "capabilities": ["temperature"], "heartbeat_s": 60});
    let path = "/api/v1/devices/shed%201";
    let (status, device) = ask(&agent, Method::PUT, path, body).await;
    assert_eq!(status, 201, "{device}");
    let facts = ["id", "kind", "state", "registered", "heartbeat_s"].map(|key| device[key].clone());
    assert_eq!(json!(facts), json!(["shed 1", "microclaw", "online", "explicit", 60.0]));
    assert_eq!(ask(&agent, Method::POST, path, json!({"firmware": "0.3.0"})).await.0, 200);
    assert_eq!(get_json(&url(&agent, path)).await["firmware"], "0.3.0");
    assert_eq!(post(&url(&agent, "/api/v1/telemetry"), sample("probe")).await.0, 202);
    let event = json!({"kind": "k", "severity": "info", "message": "m", "device": "door"});
    assert_eq!(post(&url(&agent, "/api/v1/events"), event).await.0, 202);
    assert_eq!(ids(&agent).await, ["door", "probe", "shed 1"]);
    assert_eq!(get_json(&url(&agent, "/api/v1/devices/probe")).await["registered"], "auto");
    let (status, device) =
        ask(&agent, Method::POST, "/api/v1/devices/door/sleep", json!({"for_s": 600})).await;
    assert_eq!((status, &device["state"]), (200, &json!("sleeping")), "{device}");
    // A sample, an event, and one event for each of: two registered, one changed, two heard first, one asleep.
    assert_eq!(held(&agent).await, 2 + 5);
    agent.stop().await;
    let agent = start(config).await;
    assert_eq!(ids(&agent).await, ["door", "probe", "shed 1"]);
    assert_eq!(get_json(&url(&agent, "/api/v1/devices/door")).await["state"], "sleeping");
    assert_eq!(ask(&agent, Method::DELETE, "/api/v1/devices/door", Value::Null).await.0, 204);
    assert_eq!(ask(&agent, Method::DELETE, "/api/v1/devices/door", Value::Null).await.0, 404);
    assert_eq!(ask(&agent, Method::GET, "/api/v1/devices/door", Value::Null).await.0, 404);
    assert_eq!(held(&agent).await, 2 + 5 + 1);
    agent.stop().await;
}

#[tokio::test]
async fn mistakes_are_answered_with_a_pointer() {
    let (_folder, config) = quiet("devices-2");
    let agent = start(config).await;
    let long = "x".repeat(64);
    for (body, pointer) in [
        (json!({"kind": ""}), "/kind"),
        (json!({"kind": 1}), "/kind"),
        (json!({"name": "x".repeat(257)}), "/name"),
        (json!({"firmware": long}), "/firmware"),
        (json!({"capabilities": ["a", ""]}), "/capabilities/1"),
        (json!({"capabilities": vec!["a"; 33]}), "/capabilities"),
        (json!({"heartbeat_s": -1}), "/heartbeat_s"),
        (json!({"sleep_s": 1e9}), "/sleep_s"),
        (json!({"colour": "red"}), "/colour"),
        (json!([]), ""),
    ] {
        let (status, problem) = ask(&agent, Method::PUT, "/api/v1/devices/shed", body.clone()).await;
        assert_eq!((status, &problem["pointer"]), (422, &json!(pointer)), "{body}: {problem}");
    }
    let long = format!("/api/v1/devices/{}", "x".repeat(64));
    assert_eq!(ask(&agent, Method::PUT, &long, json!({})).await.0, 400);
    assert_eq!(ask(&agent, Method::PUT, "/api/v1/devices/a%07", json!({})).await.0, 400);
    assert_eq!(ids(&agent).await, [""; 0]);
    agent.stop().await;
}

#[tokio::test]
async fn ten_thousand_ids_are_bounded_and_leave_the_known_alone() {
    let (_folder, config) = quiet("devices-3");
    let agent = start(config).await;
    let telemetry = url(&agent, "/api/v1/telemetry");
    assert_eq!(post(&telemetry, sample("known")).await.0, 202);
    let client = reqwest::Client::new();
    let mut answers = std::collections::BTreeMap::new();
    for n in 0..10_000 {
        let body = sample(&format!("esp-{n}")).to_string();
        let request = client.post(&telemetry).header("content-type", "application/json").body(body);
        let answer = request.send().await.unwrap();
        *answers.entry(answer.status().as_u16()).or_insert(0) += 1;
        if n == 9_999 {
            let problem: Value = answer.json().await.unwrap();
            assert!(problem["detail"].as_str().unwrap().contains("DELETE /api/v1/devices"), "{problem}");
        }
    }
    let fit = limits::DEVICES_PER_NODE - 1;
    assert_eq!(answers, [(202, fit), (409, 10_000 - fit)].into());
    assert_eq!(ids(&agent).await.len(), limits::DEVICES_PER_NODE);
    assert_eq!(post(&telemetry, sample("known")).await.0, 202);
    agent.stop().await;
}

#[tokio::test]
async fn where_devices_have_to_be_registered_strangers_are_refused() {
    let (_folder, mut config) = quiet("devices-4");
    config.devices.register = Register::Explicit;
    let agent = start(config).await;
    let telemetry = url(&agent, "/api/v1/telemetry");
    let (status, problem) = post(&telemetry, sample("shed")).await;
    assert_eq!((status, &problem["pointer"]), (422, &json!("/device")), "{problem}");
    assert_eq!(ask(&agent, Method::PUT, "/api/v1/devices/shed", json!({})).await.0, 201);
    assert_eq!(post(&telemetry, sample("shed")).await.0, 202);
    agent.stop().await;
}

#[tokio::test]
async fn a_device_that_falls_silent_is_told_by_itself() {
    let (_folder, config) = quiet("devices-5");
    let agent = start(config).await;
    ask(&agent, Method::PUT, "/api/v1/devices/shed", json!({"heartbeat_s": 1})).await;
    let state = async || get_json(&url(&agent, "/api/v1/devices/shed")).await["state"].clone();
    until("the device is offline", state, |state| state == "offline").await;
    assert_eq!(held(&agent).await, 3, "registered, late, offline");
    agent.stop().await;
}
