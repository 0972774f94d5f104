//! Tables of what is said in the field, and of what is answered.

use std::time::Duration;

use axum::http::StatusCode;
use fleet_schemas::{CommandId, NodeId, command::State as Done, event::Severity};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    family::{About, Family, interval},
    said::{self, Told, Wrong},
};
use crate::core::presence::{Cause, State};

const NOW: i64 = 1_795_000_000_000;

fn node(id: &str) -> NodeId {
    NodeId::parse(id).unwrap()
}

fn at(error: Wrong) -> String {
    match error {
        Wrong::Field(fault) => fault.pointer,
        Wrong::Many(_) => "many".to_owned(),
    }
}

#[test]
fn every_register_of_the_field_is_read() {
    let picclaw = json!({"node_id": "dc-rack-a1", "node_name": "picclaw-edge", "type": "picclaw",
        "capabilities": ["sensor", "exec", "cron", "alert"], "version": "0.1.0"});
    let hello = said::hello(&picclaw).unwrap();
    assert_eq!(hello.node, Some(node("dc-rack-a1")));
    assert_eq!((hello.kind.as_deref(), hello.name.as_deref()), (Some("picclaw"), Some("picclaw-edge")));
    assert_eq!((hello.version.as_deref(), hello.capabilities.len()), (Some("0.1.0"), 4));

    let openapi = json!({"node_id": "ESP32-A", "node_type": "microclaw", "capabilities": ["sensor"],
        "hardware": {"chip": "esp32s3", "ram_kb": 512, "flash_mb": 8, "model": "devkit"},
        "metadata": {"location": "roof", "version": "2.0"}});
    let hello = said::hello(&openapi).unwrap();
    assert_eq!((hello.node, hello.kind.as_deref()), (Some(node("esp32-a")), Some("microclaw")));
    let machine: Vec<_> = hello.machine.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let expected = [
        ("chip", "esp32s3"),
        ("flash_mb", "8"),
        ("location", "roof"),
        ("model", "devkit"),
        ("ram_kb", "512"),
        ("version", "2.0"),
    ];
    assert_eq!((machine, hello.version.as_deref()), (expected.to_vec(), Some("2.0")));

    let moltclaw = json!({"agentId": "molt-1", "hardware": "jetson", "capabilities": []});
    let hello = said::hello(&moltclaw).unwrap();
    assert_eq!((hello.node, hello.machine["hardware"].as_str()), (Some(node("molt-1")), "jetson"));
    let fork = said::hello(&json!({"id": "fork-1", "name": "north", "location": "hall 3"})).unwrap();
    assert_eq!((fork.node, fork.machine["location"].as_str()), (Some(node("fork-1")), "hall 3"));

    for (body, pointer) in [
        (json!([]), ""),
        (json!({"node_id": "no blanks"}), "/node_id"),
        (json!({"node_id": ["a"]}), "/node_id"),
        (json!({"id": "hub"}), "/id"),
        (json!({"agentId": "x".repeat(64)}), "/agentId"),
        (json!({"node_id": "a", "type": {}}), "/type"),
        (json!({"node_id": "a", "capabilities": "sensor"}), "/capabilities"),
        (json!({"node_id": "a", "capabilities": ["a", 5]}), "/capabilities/1"),
        (json!({"node_id": "a", "capabilities": vec!["a"; 33]}), "/capabilities"),
        (json!({"node_id": "a", "version": "v".repeat(64)}), "/version"),
    ] {
        assert_eq!(said::hello(&body).unwrap_err().pointer, pointer, "{body}");
    }
}

#[test]
fn every_heartbeat_of_the_field_is_read() {
    let figures = |body: Value| {
        let beat = said::beat(&body, NOW).unwrap();
        let told: Vec<_> = beat.figures.iter().map(|(key, value)| format!("{key}={value}")).collect();
        (beat.status.unwrap_or_default(), told.join(" "))
    };
    for (body, status, expected) in [
        (
            json!({"node_id": "a", "status": "online", "timestamp": "2026-11-18T12:26:40Z", "gene_stats": {"total": 3, "last": "x"}}),
            "online",
            "gene_stats.total=3",
        ),
        (
            json!({"node_id": "a", "uptime_seconds": 7, "free_memory_kb": 120, "sensors_active": 2, "wifi_rssi": -61}),
            "",
            "free_memory_kb=120 sensors_active=2 uptime_seconds=7 wifi_rssi=-61",
        ),
        (json!({"id": "a", "metrics": {"cpu": 0.5, "on": true}}), "", "cpu=0.5 on=1"),
        (json!({"agentId": "a", "load": 0.25, "status": "Idle"}), "idle", "load=0.25"),
        (
            json!({"node_id": "a", "node_group": "g", "uptime_seconds": 1, "system": {"cpu_percent": 3, "mem_used_mb": 4},
                "channels": {"mqtt": {"queue": 5}}, "agent": {"version": "1"}}),
            "",
            "channels.mqtt.queue=5 cpu_percent=3 mem_used_mb=4 uptime_seconds=1",
        ),
    ] {
        assert_eq!(figures(body), (status.to_owned(), expected.to_owned()));
    }
    for (body, pointer) in [
        (json!({"metrics": []}), "/metrics"),
        (json!({"metrics": {"cpu": "hot"}}), "/metrics/cpu"),
        (json!({"metrics": {"a/b": null}}), "/metrics/a~1b"),
        (json!({"timestamp": "yesterday"}), "/timestamp"),
        (json!({"status": []}), "/status"),
    ] {
        assert_eq!(said::beat(&body, NOW).unwrap_err().pointer, pointer, "{body}");
    }
    let many: serde_json::Map<_, _> = (0..200).map(|n| (format!("m{n}"), json!(n))).collect();
    assert_eq!(said::beat(&json!({ "metrics": many }), NOW).unwrap_err().pointer, "/metrics");
}

#[test]
fn times_that_cannot_be_true_give_way_to_the_hub_s() {
    let time = |value: Value| said::beat(&json!({ "timestamp": value }), NOW).unwrap().time.unwrap();
    assert_eq!(time(json!(NOW - 1_000)).time_ms, NOW - 1_000);
    assert_eq!(time(json!((NOW - 1_000) / 1_000)).time_ms, NOW - 1_000);
    assert_eq!(time(json!("2026-11-18T00:00:00+01:00")).time_ms, 1_794_956_400_000);
    for wrong in [json!(0), json!("1970-01-01T00:03:00Z"), json!(NOW + 600_000)] {
        let given = time(wrong);
        assert_eq!((given.time_ms, given.wrong_ms.is_some()), (NOW, true));
    }
}

fn data(told: &Told, index: usize) -> Value {
    told.events[index].data.as_ref().unwrap().deserialized().unwrap()
}

#[test]
fn every_event_of_the_field_is_read() {
    let picclaw = json!({"node_id": "a", "type": "alert", "data": {"sensor": "t", "value": 31.5, "message": "hot"},
        "timestamp": "2026-11-18T11:00:00Z"});
    let told = said::events(&picclaw, None, NOW).unwrap();
    let event = &told.events[0];
    assert_eq!(
        (event.kind.as_str(), event.severity, event.message.as_str()),
        ("alert", Severity::Warning, "hot")
    );
    assert_eq!(data(&told, 0), json!({"sensor": "t", "value": 31.5, "message": "hot", "unsequenced": true}));
    assert!(told.samples.is_empty(), "an alert is no reading");

    let openapi = json!({"node_id": "a", "events": [
        {"event_type": "sensor_reading", "timestamp": NOW, "sensor_type": "temperature", "severity": "info",
            "data": {"value": 21.5, "unit": "C"}},
        {"event_type": "sensor_reading", "sensor_type": "temperature", "severity": "critical", "data": {"value": 99}},
        {"event_type": "status_change", "severity": "warn", "message": "door", "data": null},
        {"event_type": "error", "message": "broken"},
    ]});
    let told = said::events(&openapi, None, NOW).unwrap();
    assert_eq!((told.received, told.samples.len(), told.events.len()), (4, 2, 3));
    let sample = &told.samples[0];
    assert_eq!(
        (sample.metric.as_str(), sample.value, sample.unit.as_ref().unwrap().as_str()),
        ("temperature", 21.5, "Cel")
    );
    let severities: Vec<_> = told.events.iter().map(|event| event.severity).collect();
    assert_eq!(severities, [Severity::Critical, Severity::Warning, Severity::Error]);
    assert_eq!(data(&told, 0)["sensor_type"], "temperature");

    // The design text names the event by `id`, the token tells the node.
    let design = json!({"id": "e-1", "type": "overheat", "severity": "emergency", "source": "ds18b20",
        "payload": {"c": 80}, "action_taken": "fan", "requires_escalation": true});
    let told = said::events(&design, Some(&node("a")), NOW).unwrap();
    assert_eq!((told.node.clone(), told.events[0].id.as_deref()), (None, Some("e-1")));
    assert_eq!(told.events[0].severity, Severity::Critical);
    let expected = json!({"c": 80, "source": "ds18b20", "action_taken": "fan", "requires_escalation": true,
        "unstamped": true, "unsequenced": true});
    assert_eq!(data(&told, 0), expected);
    assert_eq!(
        said::events(&json!({"id": "A", "type": "x"}), Some(&node("a")), NOW).unwrap().node,
        Some(node("a"))
    );
    assert_eq!(said::events(&json!({"id": "b", "type": "x"}), None, NOW).unwrap().node, Some(node("b")));
    let list = said::events(&json!([{"type": "x"}, {"type": "y z", "data": [1]}]), None, NOW).unwrap();
    assert_eq!((list.events[1].kind.as_str(), &data(&list, 1)["value"]), ("y_z", &json!([1])));

    for (word, severity) in [
        ("info", Severity::Info),
        ("warning", Severity::Warning),
        ("WARN", Severity::Warning),
        ("error", Severity::Error),
        ("critical", Severity::Critical),
        ("emergency", Severity::Critical),
    ] {
        assert_eq!(said::severity(word), Some(severity));
    }
    let hundred = |n: usize| json!({ "node_id": "a", "events": vec![json!({"type": "x"}); n] });
    assert_eq!(said::events(&hundred(100), None, NOW).unwrap().events.len(), 100);
    assert_eq!(at(said::events(&hundred(101), None, NOW).unwrap_err()), "many");
    let deep = (0..12).fold(json!(1), |inner, _| json!({ "x": inner }));
    for (body, pointer) in [
        (json!(5), ""),
        (json!({"events": {}}), "/events"),
        (json!({"events": [{"type": "x"}, 5]}), "/events/1"),
        (json!({"events": [{"type": "x"}, {"message": "m"}]}), "/events/1/type"),
        (json!({"events": [{"type": "x", "severity": "awful"}]}), "/events/0/severity"),
        (json!({"type": "x", "timestamp": "soon"}), "/timestamp"),
        (json!({"type": "x", "message": "m".repeat(5_000)}), "/message"),
        (json!({"type": "x", "data": {"blob": "b".repeat(40_000)}}), "/data"),
        (json!({"type": "x", "data": deep}), "/data"),
        (json!({"type": "x", "device": "d".repeat(64)}), "/device"),
    ] {
        assert_eq!(at(said::events(&body, None, NOW).unwrap_err()), pointer, "{body}");
    }
}

#[test]
fn readings_of_a_nanoclaw_are_samples_of_their_boards() {
    let report = json!({"node_id": "nano-1", "sensor_type": "humidity", "value": 40.5, "unit": "%"});
    let told = said::report(&report, NOW).unwrap();
    assert_eq!(
        (told.node, told.samples[0].device.as_str(), told.samples[0].time_ms),
        (Some(node("nano-1")), "", NOW)
    );
    let batch = json!({"gateway_id": "gw", "batch_timestamp": NOW - 5_000, "readings": [
        {"node_id": "b1", "sensor_type": "t", "value": 1, "unit": "F", "timestamp": NOW - 7_000},
        {"node_id": "gw", "sensor": "t", "value": 2},
        {"device_id": "b2", "values": {"t": 3, "h": 4}},
    ]});
    let told = said::batch(&batch, NOW).unwrap();
    assert_eq!((told.node, told.received), (Some(node("gw")), 3));
    let samples: Vec<_> = told
        .samples
        .iter()
        .map(|s| (s.device.as_str(), s.metric.as_str(), s.value, s.time_ms - NOW))
        .collect();
    assert_eq!(
        samples,
        [
            ("b1", "t", 1.0, -7_000),
            ("", "t", 2.0, -5_000),
            ("b2", "h", 4.0, -5_000),
            ("b2", "t", 3.0, -5_000)
        ]
    );
    for (body, pointer) in [
        (json!({"node_id": "a", "value": 1}), "/sensor_type"),
        (json!({"node_id": "a", "sensor_type": "t"}), "/value"),
        (json!({"node_id": "a", "sensor_type": "t", "value": "hot"}), "/value"),
    ] {
        assert_eq!(at(said::report(&body, NOW).unwrap_err()), pointer);
    }
    assert_eq!(at(said::batch(&json!({"gateway_id": "gw"}), NOW).unwrap_err()), "/readings");
    let many = json!({"gateway_id": "gw", "readings": vec![json!({"sensor": "t", "value": 1}); 1_001]});
    assert_eq!(at(said::batch(&many, NOW).unwrap_err()), "many");
}

#[test]
fn acks_of_the_field_are_states() {
    let id = CommandId([7; 16]).to_string();
    for (word, state) in [("success", Done::Succeeded), ("failed", Done::Failed), ("timeout", Done::TimedOut)]
    {
        let body = json!({"command_id": id, "status": word, "executed_at": "2026-11-18T12:00:00Z", "result": {"exit_code": 3, "message": "m"}});
        let report = said::ack(&body, NOW).unwrap();
        assert_eq!((report.state, report.exit_code), (state, Some(3)));
        assert_eq!(report.reason.map(|why| why.message), (state > Done::Succeeded).then(|| "m".to_owned()));
    }
    for (body, pointer) in [
        (json!({"status": "success"}), "/command_id"),
        (json!({"command_id": "7", "status": "success"}), "/command_id"),
        (json!({"command_id": id, "status": "maybe"}), "/status"),
        (json!({"command_id": id, "status": "success", "result": "r".repeat(40_000)}), "/result"),
    ] {
        assert_eq!(said::ack(&body, NOW).unwrap_err().pointer, pointer);
    }
}

#[test]
fn the_family_is_told_by_path_and_fields() {
    for (versioned, body, family) in [
        (false, json!({"node_id": "a"}), Family::PicClaw),
        (true, json!({"node_id": "a", "node_name": "n"}), Family::OpenApi),
        (false, json!({"id": "a"}), Family::Fork),
        (false, json!({"node_id": "a", "metrics": {}}), Family::Fork),
        (false, json!({"agentId": "a"}), Family::MoltClaw),
        (true, json!({"agentId": "a"}), Family::MoltClaw),
        (false, json!([]), Family::PicClaw),
    ] {
        assert_eq!(Family::of(versioned, &body), family, "{body}");
    }
}

#[test]
fn each_family_is_answered_in_its_words() {
    let about = About {
        node: "a".to_owned(),
        now_ms: NOW,
        interval_s: 60,
        pending: 2,
        token: "t".to_owned(),
        broker: Some("mqtts://hub:8883".to_owned()),
        received: 3,
        stored: 3,
        ..About::default()
    };
    let keys = |answer: (StatusCode, Value)| {
        let keys: Vec<_> = answer.1.as_object().unwrap().keys().cloned().collect();
        (answer.0.as_u16(), keys.join(" "))
    };
    for (family, registered, heard, stored) in [
        (
            Family::PicClaw,
            (200, "message next_heartbeat_seconds node_id status timestamp token"),
            (200, "commands_pending next_check_seconds next_heartbeat_seconds node_id received status"),
            (200, "events_received events_stored status"),
        ),
        (
            Family::OpenApi,
            (200, "expires_at fleet_broker node_id token"),
            (200, "commands_pending next_heartbeat_seconds status"),
            (200, "events_received events_stored status"),
        ),
        (
            Family::Fork,
            (201, "id node_id registered_at status token"),
            (200, "commands_pending id next_heartbeat_seconds node_id status"),
            (201, "events_received events_stored status"),
        ),
        (Family::MoltClaw, (200, "ack success"), (200, "ack success"), (200, "ack success")),
    ] {
        let expected = [registered, heard, stored].map(|(status, keys)| (status, keys.to_owned()));
        let told = [family.registered(&about), family.heard(&about), family.stored(&about)].map(keys);
        assert_eq!(told, expected, "{family:?}");
    }
    let (status, body) = Family::NanoClaw.stored(&about);
    assert_eq!(
        (status.as_u16(), &body["status"], &body["buffer_size"]),
        (201, &json!("accepted"), &json!(0))
    );
    let warned = About { warning: true, ..about };
    assert_eq!(Family::OpenApi.heard(&warned).1["status"], "warning");
    assert!(Family::Fork.nodes(vec![json!(1)], 1, 1, 100).1.is_array());
    assert_eq!(
        Family::OpenApi.nodes(vec![json!(1)], 7, 2, 1).1,
        json!({"nodes": [1], "count": 1, "total": 7, "page": 2, "limit": 1})
    );
    let late = State::Suspect { cause: Cause::Late };
    let words = [Family::OpenApi, Family::Fork, Family::PicClaw]
        .map(|family| [State::Online, late, State::Offline].map(|state| family.status(state)));
    let forks = ["online", "degraded", "offline"];
    assert_eq!(words, [["online", "offline", "down"], forks, forks]);
}

#[test]
fn an_agent_s_own_pace_is_learned_and_one_pause_is_none() {
    let usual = Duration::from_secs(30);
    let gap = |seconds: u64| Some(Duration::from_secs(seconds));
    for (gaps, seconds) in [
        ([None, None], 30),
        ([gap(300), None], 30),
        ([gap(30), gap(900)], 30),
        ([gap(31), gap(33)], 30),
        ([gap(300), gap(301)], 301),
        ([gap(300_000), gap(300_000)], 86_400),
    ] {
        assert_eq!(interval(usual, gaps), Duration::from_secs(seconds));
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec![
        "node_id",
        "id",
        "agentId",
        "type",
        "event_type",
        "events",
        "data",
        "payload",
        "severity",
        "timestamp",
        "metrics",
        "system",
        "values",
        "value",
        "unit",
        "sensor_type",
        "readings",
        "capabilities",
        "hardware",
        "metadata",
        "status",
        "command_id",
        "result",
        "message",
        "gene",
        "asset_id",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!("sensor_reading")),
        Just(json!("a")),
        Just(json!("2026-11-18T12:00:00Z")),
    ];
    leaf.prop_recursive(5, 60, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..8)
                .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_json_is_taken_amiss_and_what_is_taken_can_be_read_by_the_consumer(body in any_json()) {
        let told = [said::events(&body, None, NOW), said::report(&body, NOW), said::batch(&body, NOW)];
        for told in told.into_iter().flatten() {
            for part in super::seal::events(told.events) {
                prop_assert_eq!(fleet_schemas::event::decode(&part.bytes).unwrap().len() as u64, part.count);
            }
            for part in super::seal::samples(told.samples) {
                prop_assert_eq!(fleet_schemas::telemetry::Samples::decode(&part.bytes).unwrap().count(), part.count);
            }
        }
        if let Ok(beat) = said::beat(&body, NOW) {
            prop_assert!(beat.figures.values().all(|figure| figure.is_finite()));
        }
        let _ = (said::hello(&body), said::ack(&body, NOW), super::genes::gene(&body));
    }
}
