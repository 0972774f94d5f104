//! What the hub tells tools over MQTT: real clients hear JSON of what was committed, once, and what is retained.

use std::{collections::BTreeMap, time::Duration};

use fleet_manager::clock;
use fleet_schemas::limits;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    alerts::{HOT, alerts, put},
    cli::on,
    given::{Node, PATIENCE, Site},
};

/// A third-party program: what it hears, in order.
pub(crate) struct Tool {
    client: AsyncClient,
    heard: mpsc::UnboundedReceiver<(String, Value, bool)>,
    polling: tokio::task::JoinHandle<()>,
}

impl Drop for Tool {
    fn drop(&mut self) {
        self.polling.abort();
    }
}

impl Tool {
    /// Connects and subscribes; returns when the hub has agreed.
    pub(crate) async fn on(site: &Site, name: &str, filter: &str) -> Self {
        let mut options = MqttOptions::new(name, site.mqtt.ip().to_string(), site.mqtt.port());
        options.set_credentials(name, "secret");
        options.set_max_packet_size(limits::PACKET_BYTES, limits::PACKET_BYTES);
        let (client, mut events) = AsyncClient::new(options, 64);
        let (said, heard) = mpsc::unbounded_channel();
        let (agreed, mut agreement) = mpsc::channel(1);
        let polling = tokio::spawn(async move {
            while let Ok(event) = events.poll().await {
                match event {
                    Event::Incoming(Packet::SubAck(_)) => drop(agreed.try_send(())),
                    Event::Incoming(Packet::Publish(publish)) => {
                        let payload = if publish.payload.is_empty() {
                            Value::Null
                        } else {
                            serde_json::from_slice(&publish.payload).unwrap()
                        };
                        drop(said.send((publish.topic, payload, publish.retain)));
                    }
                    _ => {}
                }
            }
        });
        client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        tokio::time::timeout(PATIENCE, agreement.recv()).await.unwrap().unwrap();
        Self { client, heard, polling }
    }

    /// Waits until a topic is said to be empty.
    async fn cleared(&mut self, topic: &str) {
        while self.next(topic).await.0 != Value::Null {}
    }

    /// The topics that were heard until then, with one that comes at last.
    async fn heard_until(&mut self, mut last: impl FnMut(&str, &Value) -> bool) -> Vec<String> {
        let mut topics = Vec::new();
        let all = async {
            loop {
                let (topic, payload, _) = self.heard.recv().await.expect("the tool is connected");
                let is_last = last(&topic, &payload);
                topics.push(topic);
                if is_last {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("the last comes");
        topics
    }

    /// The next message on a topic; others are passed over.
    pub(crate) async fn next(&mut self, topic: &str) -> (Value, bool) {
        let next = async {
            loop {
                let (on, payload, retained) = self.heard.recv().await.expect("the tool is connected");
                if on == topic {
                    return (payload, retained);
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.unwrap_or_else(|_| panic!("nothing on {topic}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_told_once_and_what_is_now_is_retained() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    let t = clock::wall_ms();
    node.measures(&[(t, "", "x", 1.5), (t, "probe", "y", 2.5)]).await;
    let mut tool = Tool::on(&site, "tool-1", "fleet/v1/hub/#").await;
    let (latest, retained) = tool.next("fleet/v1/hub/latest/edge-1").await;
    let both = json!({"time_ms": t, "values": {"x": 1.5}, "devices": {"probe": {"y": 2.5}}});
    assert_eq!((latest, retained), (both, true));
    let mut other = Tool::on(&site, "tool-2", "fleet/v1/hub/node/+").await;
    let (shown, retained) = other.next("fleet/v1/hub/node/edge-1").await;
    let asked = site.get("/api/v1/nodes/edge-1").await;
    for key in ["id", "name", "state", "kind", "versions", "labels", "devices_count", "first_seen_ms"] {
        assert_eq!(shown[key], asked[key], "{key}");
    }
    assert!(retained);
    // Told from now on, each once; what was committed a moment before may be the first.
    for n in 0..5 {
        node.measures(&[(t + 1 + n, "", "x", n as f64)]).await;
        let (mut samples, mut retained) = tool.next("fleet/v1/hub/samples/edge-1").await;
        if n == 0 && samples[0]["time_ms"] == t {
            (samples, retained) = tool.next("fleet/v1/hub/samples/edge-1").await;
        }
        let one = json!([{
            "time_ms": t + 1 + n, "device": "", "metric": "x", "value": n as f64, "unit": "Cel", "late": false,
        }]);
        assert_eq!((samples, retained), (one, false));
    }
    node.told("door_opened", "left").await;
    let (event, _) = tool.next("fleet/v1/hub/event/edge-1").await;
    assert_eq!(site.get("/api/v1/nodes/edge-1/events?limit=1").await["items"], json!([event]));
    // A change of the summary, and newest values with everything that is known.
    site.ask(reqwest::Method::PATCH, "/api/v1/nodes/edge-1", Some(r#"{"site": "berlin"}"#)).await;
    while other.next("fleet/v1/hub/node/edge-1").await.0["site"] != "berlin" {}
    node.measures(&[(t + 9, "", "x", 9.0)]).await;
    let latest = loop {
        let (latest, _) = tool.next("fleet/v1/hub/latest/edge-1").await;
        if latest["time_ms"] == t + 9 {
            break latest;
        }
    };
    assert_eq!(latest, json!({"time_ms": t + 9, "values": {"x": 9.0}, "devices": {"probe": {"y": 2.5}}}));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_batch_is_told_whole_in_several_messages() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    let mut tool = Tool::on(&site, "tool-1", "fleet/v1/hub/samples/+").await;
    let t = clock::wall_ms();
    let large: Vec<_> = (0..5_000).map(|i| (t + i, "", "large", i as f64)).collect();
    node.measures(&large).await;
    let mut values = Vec::new();
    while values.len() < large.len() {
        let (part, _) = tool.next("fleet/v1/hub/samples/edge-1").await;
        values.extend(part.as_array().unwrap().iter().map(|sample| sample["value"].as_f64().unwrap()));
    }
    assert_eq!(values, (0..5_000).map(f64::from).collect::<Vec<_>>());
    node.measures(&[(t, "", "last", 1.0)]).await;
    let (last, _) = tool.next("fleet/v1/hub/samples/edge-1").await;
    assert_eq!(last[0]["metric"], "last", "nothing comes twice");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newest_values_are_told_once_a_second_at_most() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    let mut tool = Tool::on(&site, "tool-1", "fleet/v1/hub/latest/edge-1").await;
    let began = clock::mono();
    let t = clock::wall_ms();
    let mut n = 0;
    while clock::mono() < began + Duration::from_millis(2_500) {
        node.measures(&[(t + n, "", "x", n as f64)]).await;
        n += 1;
    }
    let mut told = 0;
    loop {
        let (latest, retained) = tool.next("fleet/v1/hub/latest/edge-1").await;
        told += usize::from(!retained);
        if latest["values"]["x"] == (n - 1) as f64 {
            break;
        }
    }
    let seconds = (clock::mono() - began).as_secs() as usize + 1;
    assert!(n > 3 && told <= seconds + 1, "{told} messages in {seconds} s, of {n} batches");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn home_assistant_discovers_nodes_devices_and_new_metrics() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    let t = clock::wall_ms();
    node.measures(&[(t, "", "temperature", 1.5), (t, "probe", "y", 2.5)]).await;
    let mut tool = Tool::on(&site, "tool-ha", "homeassistant/#").await;
    let own = "homeassistant/device/fleet_edge-1/config";
    let sensors = |config: &Value| config["cmps"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let found = loop {
        let (config, _) = tool.next(own).await;
        if sensors(&config) == ["fleet_edge-1__temperature"] {
            break config;
        }
    };
    let sensor = &found["cmps"]["fleet_edge-1__temperature"];
    assert_eq!((&sensor["dev_cla"], &sensor["unit_of_meas"]), (&json!("temperature"), &json!("°C")));
    assert_eq!(sensor["stat_t"], "fleet/v1/hub/latest/edge-1");
    node.measures(&[(t, "", "pressure", 3.5)]).await;
    while sensors(&tool.next(own).await.0).len() < 2 {}
    // What it was told is retained, and said again when it starts.
    let mut late = Tool::on(&site, "tool-late", "homeassistant/device/+/config").await;
    let mut retained = BTreeMap::new();
    while retained.len() < 2 {
        let (topic, config, is_retained) = late.heard.recv().await.unwrap();
        assert!(is_retained);
        retained.insert(topic, config);
    }
    let device = &retained["homeassistant/device/fleet_edge-1__probe/config"]["dev"];
    assert_eq!(device["via_device"], "fleet_edge-1");
    tool.client.publish("homeassistant/status", QoS::AtLeastOnce, false, "\"no\"").await.unwrap();
    late.client.publish("homeassistant/status", QoS::AtLeastOnce, false, "online").await.unwrap();
    let (again, is_retained) = late.next(own).await;
    assert_eq!((&again, is_retained), (&retained[own], false));
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_listens_hears_that_a_purged_node_is_gone_and_nothing_of_it_is_retained() {
    let site = Site::start().await;
    put(&site, "/api/v1/rules", HOT).await;
    let mut node = Node::born(&site, "edge-1").await;
    let mut other = Node::born(&site, "edge-2").await;
    let t = clock::wall_ms();
    node.measures(&[(t, "dht22", "temperature", 28.5)]).await;
    other.measures(&[(t, "", "x", 1.0)]).await;
    alerts(&site, "state=firing", 1).await;
    let retained = [
        "fleet/v1/hub/node/edge-1",
        "fleet/v1/hub/latest/edge-1",
        "fleet/v1/hub/alert/hot/edge-1",
        "homeassistant/device/fleet_edge-1/config",
        "homeassistant/device/fleet_edge-1__dht22/config",
    ];
    // Two that read everything, and for each topic one that reads it alone.
    let (hub, home) = ("fleet/v1/hub/#", "homeassistant/device/+/config");
    let mut all = [Tool::on(&site, "tool-hub", hub).await, Tool::on(&site, "tool-home", home).await];
    let mut alone = Vec::new();
    for (n, topic) in retained.iter().enumerate() {
        let mut tool = Tool::on(&site, &format!("tool-{n}"), topic).await;
        assert_ne!(tool.next(topic).await.0, Value::Null, "{topic} is retained");
        alone.push(tool);
    }
    let (code, _, error) = on(&site, &["node", "rm", "edge-1", "--purge", "--yes"]).await;
    assert_eq!(code, 0, "{error}");
    for (topic, tool) in retained.iter().zip(&mut alone) {
        tool.cleared(topic).await;
    }
    for (tool, root) in all.iter_mut().zip(["fleet/", "homeassistant/"]) {
        let mut left: Vec<&str> = retained.into_iter().filter(|topic| topic.starts_with(root)).collect();
        let is_last = |topic: &str, payload: &Value| {
            left.retain(|one| *one != topic || *payload != Value::Null);
            left.is_empty()
        };
        tool.heard_until(is_last).await;
    }
    // Who comes now hears of the other node alone; what is said now comes last.
    let mut late = Tool::on(&site, "tool-late-hub", hub).await;
    other.measures(&[(t + 1, "", "x", 2.0)]).await;
    let samples = "fleet/v1/hub/samples/edge-2";
    let topics = late.heard_until(|topic, said| topic == samples && said[0]["value"] == 2.0).await;
    assert!(topics.iter().any(|topic| topic == "fleet/v1/hub/node/edge-2"), "{topics:?}");
    assert!(!topics.iter().any(|topic| topic.contains("edge-1")), "{topics:?}");
    let mut late = Tool::on(&site, "tool-late-home", home).await;
    let config = "homeassistant/device/fleet_edge-2/config";
    let retained = late.heard_until(|topic, _| topic == config).await;
    // Sooner, what is retained and what is said anew might be one message.
    late.client.publish("homeassistant/status", QoS::AtLeastOnce, false, "online").await.unwrap();
    let again = late.heard_until(|topic, _| topic == config).await;
    assert!(!retained.iter().chain(&again).any(|topic| topic.contains("edge-1")), "{retained:?} {again:?}");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_newest_values_alone_hears_too_that_a_node_is_gone() {
    let site = Site::start().await;
    let mut node = Node::born(&site, "edge-1").await;
    node.measures(&[(clock::wall_ms(), "", "x", 1.0)]).await;
    let latest = "fleet/v1/hub/latest/edge-1";
    let mut tool = Tool::on(&site, "tool-1", "fleet/v1/hub/latest/+").await;
    assert_ne!(tool.next(latest).await.0, Value::Null);
    let (code, _, error) = on(&site, &["node", "rm", "edge-1", "--keep-data"]).await;
    assert_eq!(code, 0, "{error}");
    tool.cleared(latest).await;
    site.stop().await;
}
