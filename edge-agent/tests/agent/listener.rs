//! The MQTT listener for devices: boards over real sockets, into the outbox and on to a hub.

use std::{net::SocketAddr, time::Duration};

use fleet_edge_agent::{
    api::grpc::pb::{self, telemetry_client::TelemetryClient},
    config::Config,
    core::devices::Register,
    devices::passwords,
    run::Handle,
};
use fleet_schemas::{DeviceId, Lane, batch::Batch, telemetry::Samples};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use rumqttc::ConnectReturnCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{board::Board, get_json, grpc, hub, post, start, until, url};

const READING: &str = r#"{"value":23.50,"unit":"C"}"#;

/// An agent that lets boards in without a password.
fn open(node: &str) -> (TempDir, Config) {
    let (folder, mut config) = crate::quiet(node);
    config.devices.register = Register::Auto;
    config.devices.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    config.devices.open = true;
    (folder, config)
}

fn listener(agent: &Handle) -> SocketAddr {
    agent.devices().expect("it listens")
}

fn device(id: &str) -> DeviceId {
    DeviceId::parse(id).unwrap()
}

async fn shown(agent: &Handle, id: &str) -> Value {
    get_json(&url(agent, &format!("/api/v1/devices/{id}"))).await
}

/// Samples held: events are raised for each new device, too.
async fn samples(agent: &Handle) -> u64 {
    let outbox = get_json(&url(agent, "/api/v1/outbox")).await;
    let held = |value: &Value| value["held_records"].as_u64().unwrap();
    held(&outbox) - held(&outbox["lanes"]["event"])
}

async fn metric(agent: &Handle, line: &str) -> Option<f64> {
    agent.metrics().lines().find_map(|text| text.strip_prefix(line)?.trim().parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_board_is_registered_by_its_first_word_and_its_readings_are_records() {
    let hub = hub::Hub::start("127.0.0.1:0", true);
    let (_folder, mut config) = open("listen-1");
    config.hub.url = Some(format!("mqtt://{}", hub.address).parse().unwrap());
    config.outbox.upload = Duration::from_millis(100);
    let agent = start(config).await;
    let mut board = Board::open(listener(&agent), "esp32-a1").await;
    board
        .client
        .publish(
            "clawland/shed/status",
            rumqttc::QoS::AtMostOnce,
            true,
            r#"{"status":"online","version":"0.2.0"}"#,
        )
        .await
        .unwrap();
    board.say("clawland/shed/sensors/temperature", READING).await;
    let seen = async || shown(&agent, "shed").await;
    let seen = until("the device is known", seen, |device| device["unsequenced"] == true).await;
    let facts = ["id", "kind", "firmware", "state", "registered"].map(|key| seen[key].clone());
    assert_eq!(json!(facts), json!(["shed", "microclaw", "0.2.0", "online", "auto"]));
    let batch = hub.batch(Lane::Telemetry);
    let read = Samples::decode(&batch.body).unwrap();
    let series = &read.series[0];
    assert_eq!((series.d.as_str(), series.m.as_str()), ("shed", "temperature"));
    assert_eq!(series.u.as_ref().unwrap().as_str(), "Cel");
    assert_eq!(read.values(series), [23.5]);

    // Held to its id from its first topic on.
    board.say("clawland/barn/sensors/temperature", READING).await;
    board.ended().await;
    assert_eq!(shown(&agent, "barn").await["status"], 404);
    let refused = r#"fleet_agent_device_refusals_total{reason="publish_denied"}"#;
    until("it is counted", async || metric(&agent, refused).await, |count| *count == Some(1.0)).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_board_needs_its_password_and_loses_its_session_with_it() {
    let (_folder, mut config) = open("listen-2");
    config.devices.open = false;
    config.devices.register = Register::Explicit;
    let agent = start(config.clone()).await;
    let connect = async |login| Board::connect(listener(&agent), "c", login).await.map(drop);
    let no = Err(ConnectReturnCode::BadUserNamePassword);
    assert_eq!(connect(None).await, no);
    let password = passwords::set(&config.data, &device("shed"), true, false).unwrap().unwrap();
    assert_eq!(connect(Some(("shed", "guess"))).await, no);
    assert_eq!(connect(Some(("barn", &password))).await, no);
    let mut board = Board::connect(listener(&agent), "c", Some(("shed", &password))).await.unwrap();
    // Whoever gives a device a password has registered it.
    board.say_safely("clawland/shed/sensors/t", "1").await;
    assert_eq!(shown(&agent, "shed").await["registered"], "explicit");
    assert_eq!(samples(&agent).await, 1);
    assert!(passwords::remove(&config.data, &device("shed")).unwrap());
    board.ended().await;
    assert_eq!(connect(Some(("shed", &password))).await, no);
    agent.stop().await;
}

#[tokio::test]
async fn in_an_open_place_a_password_protects_its_device_and_strangers_are_ended() {
    let (_folder, mut config) = open("listen-3");
    config.devices.register = Register::Explicit;
    std::fs::create_dir(&config.data).unwrap();
    let password = passwords::set(&config.data, &device("shed"), true, false).unwrap().unwrap();
    let agent = start(config).await;
    let mut impostor = Board::open(listener(&agent), "x").await;
    impostor.say("clawland/shed/sensors/t", "666").await;
    impostor.ended().await;
    let mut stranger = Board::open(listener(&agent), "y").await;
    stranger.say("clawland/barn/sensors/t", "666").await;
    stranger.ended().await;
    assert_eq!(samples(&agent).await, 0);
    let list = get_json(&url(&agent, "/api/v1/devices")).await;
    assert_eq!(list["items"], json!([]));
    let mut board = Board::connect(listener(&agent), "z", Some(("shed", &password))).await.unwrap();
    board.say_safely("clawland/shed/sensors/t", "1").await;
    assert_eq!(samples(&agent).await, 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_gateway_speaks_for_others_by_permission_and_what_is_wrong_is_counted() {
    let (_folder, config) = open("listen-4");
    let agent = start(config.clone()).await;
    let mut gateway = Board::open(listener(&agent), "gw").await;
    let batch =
        json!([{"device": "a", "sensor": "t", "value": 1}, {"device": "b", "sensor": "t", "value": 2}]);
    // At QoS 1 it is acknowledged all the same: said again, it would be as wrong.
    gateway.say_safely("clawland/gw/batch", &batch).await;
    gateway.say_safely("clawland/gw/sensors/t", r#"{"value":nan}"#).await;
    assert_eq!(samples(&agent).await, 0);
    let count = async |result: &str| {
        metric(&agent, &format!("fleet_agent_device_messages_total{{result=\"{result}\"}}")).await
    };
    assert_eq!((count("foreign").await, count("json").await), (Some(1.0), Some(1.0)));
    assert_eq!(count("taken").await, None, "a session that opens says nothing");
    passwords::set(&config.data, &device("gw"), false, true).unwrap();
    let again = async || {
        gateway.say_safely("clawland/gw/batch", &batch).await;
        samples(&agent).await
    };
    until("the permission is known", again, |samples| *samples >= 2).await;
    let list = get_json(&url(&agent, "/api/v1/devices")).await;
    let ids: Vec<_> = list["items"].as_array().unwrap().iter().map(|device| device["id"].clone()).collect();
    assert_eq!(json!(ids), json!(["a", "b", "gw"]));
    agent.stop().await;
}

#[tokio::test]
async fn a_gateway_goes_on_when_one_behind_it_is_not_registered() {
    let (_folder, mut config) = open("listen-8");
    config.devices.open = false;
    config.devices.register = Register::Explicit;
    let agent = start(config.clone()).await;
    let password = passwords::set(&config.data, &device("gw"), true, true).unwrap().unwrap();
    let mut gateway = Board::connect(listener(&agent), "c", Some(("gw", &password))).await.unwrap();
    let stranger = json!([{"device": "barn", "sensor": "t", "value": 1}, {"sensor": "t", "value": 2}]);
    gateway.say_safely("clawland/gw/batch", &stranger).await;
    assert_eq!(samples(&agent).await, 0, "all of a message or nothing");
    gateway.say_safely("clawland/gw/batch", json!([{"sensor": "t", "value": 2}])).await;
    assert_eq!(samples(&agent).await, 1);
    agent.stop().await;
}

#[tokio::test]
async fn fifty_boards_are_heard_whole_and_in_order() {
    const BOARDS: u64 = 50;
    const READINGS: u64 = 20;
    let (_folder, config) = open("listen-5");
    let agent = start(config.clone()).await;
    let mut boards = Vec::new();
    for n in 0..BOARDS {
        boards.push(Board::open(listener(&agent), &format!("esp-{n}")).await);
    }
    for reading in 0..READINGS {
        for (n, board) in boards.iter().enumerate() {
            board.say(&format!("clawland/esp-{n}/sensors/t"), json!({"value": reading, "unit": "C"})).await;
        }
    }
    let all = BOARDS * READINGS;
    until("all readings are held", async || samples(&agent).await, |held| *held == all).await;
    let sessions = "fleet_agent_device_sessions ";
    until("they are counted", async || metric(&agent, sessions).await, |count| *count == Some(BOARDS as f64))
        .await;
    let list = get_json(&url(&agent, "/api/v1/devices")).await;
    assert_eq!(list["items"].as_array().unwrap().len() as u64, BOARDS);
    // A stop and a start lose nothing of it.
    agent.stop().await;
    let agent = start(config).await;
    assert_eq!(samples(&agent).await, all);
    agent.stop().await;
}

#[tokio::test]
async fn a_deep_sleeper_is_not_late_while_it_sleeps() {
    let (_folder, config) = open("listen-6");
    let agent = start(config).await;
    let mut board = Board::open(listener(&agent), "c").await;
    let report = json!({"boot_count": 7, "temperature": 21.5, "battery_voltage": 3.7, "wifi_rssi": -61, "sleep_s": 900});
    board.say_safely("clawland/shed/deep_sleep", &report).await;
    board.client.disconnect().await.unwrap();
    let shed = shown(&agent, "shed").await;
    assert_eq!((&shed["state"], samples(&agent).await), (&json!("sleeping"), 4), "{shed}");
    assert!(shed["until_ms"].as_i64().unwrap() > shed["last_seen_ms"].as_i64().unwrap() + 800_000, "{shed}");
    agent.stop().await;
}

/// What is said of one device, over whatever.
fn rows(batches: &[Batch], device: &str) -> Vec<(i64, String, Option<String>, u64)> {
    let mut rows = Vec::new();
    for batch in batches {
        let samples = Samples::decode(&batch.body).unwrap();
        for series in samples.series.iter().filter(|series| series.d.as_str() == device) {
            let unit = series.u.as_ref().map(|unit| unit.as_str().to_owned());
            let points = samples.times().into_iter().zip(samples.values(series));
            for (time_ms, value) in points.filter(|(_, value)| !value.is_nan()) {
                // A column of whole numbers knows no negative zero.
                rows.push((time_ms, series.m.as_str().to_owned(), unit.clone(), (value + 0.0).to_bits()));
            }
        }
    }
    rows.sort();
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rest_grpc_and_mqtt_forms_of_a_sample_are_the_same_record() {
    const SAMPLES: usize = 150;
    let unit =
        prop_oneof![Just(None), Just(Some("Cel")), Just(Some("%")), Just(Some("ug/m3")), Just(Some("Ω"))];
    let value =
        prop_oneof![any::<i32>().prop_map(f64::from), proptest::num::f64::NORMAL, Just(-0.0), Just(0.1)];
    let sample = (0_i64..2_000_000_000_000, "[a-zA-Z][a-z_ é0-9]{0,20}", unit, value);
    let mut runner = TestRunner::new_with_rng(
        Default::default(),
        TestRng::from_seed(RngAlgorithm::ChaCha, &fleet_edge_agent::clock::random::<32>()),
    );
    let drawn = proptest::collection::vec(sample, SAMPLES).new_tree(&mut runner).unwrap().current();

    let hub = hub::Hub::start("127.0.0.1:0", true);
    let (_folder, mut config) = open("listen-7");
    config.hub.url = Some(format!("mqtt://{}", hub.address).parse().unwrap());
    config.outbox.upload = Duration::from_millis(100);
    let agent = start(config).await;
    let mut grpc = TelemetryClient::new(grpc::channel(agent.api()).await);
    let mut board = Board::open(listener(&agent), "c").await;
    for (time_ms, metric, unit, value) in &drawn {
        let one = json!({"metric": metric, "value": value, "unit": unit, "time_ms": time_ms});
        let body = json!({"device": "rest", "samples": [one]});
        assert_eq!(post(&url(&agent, "/api/v1/telemetry"), body).await.0, 202);
        let sample = pb::Sample {
            metric: metric.clone(),
            value: Some(*value),
            unit: unit.unwrap_or_default().to_owned(),
            time_ms: Some(*time_ms),
        };
        let request = pb::SubmitRequest { device: "grpc".into(), sample: Some(sample), id: String::new() };
        grpc.submit(request).await.unwrap();
        board.say_safely("clawland/mqtt/batch", json!([one])).await;
    }
    let mut batches = Vec::new();
    let of = |batch: &Batch| Samples::decode(&batch.body).unwrap().count();
    while batches.iter().map(of).sum::<u64>() < 3 * SAMPLES as u64 {
        batches.push(hub.hear("all samples", |said| match said {
            hub::Said::Batch(Lane::Telemetry | Lane::Backfill, batch) => Some(batch),
            hub::Said::Birth(_) | hub::Said::Death(_) | hub::Said::Heartbeat(_) | hub::Said::Batch(..) => {
                None
            }
        }));
    }
    let rest = rows(&batches, "rest");
    assert_eq!(rest.len(), SAMPLES);
    assert_eq!(rows(&batches, "grpc"), rest);
    assert_eq!(rows(&batches, "mqtt"), rest);
    assert_eq!(shown(&agent, "mqtt").await["unsequenced"], false, "it told the time of all of it");
    agent.stop().await;
}
