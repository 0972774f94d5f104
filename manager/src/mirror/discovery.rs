//! Device discovery of Home Assistant's MQTT integration: what is published on `{prefix}/device/{id}/config`. Pure.
//!
//! One message a node, and one for each device behind it; every series becomes a sensor that reads `hub/latest/{node}`.
//! Owns the names of things there. They are for ever: Home Assistant keeps entities by them.

use fleet_schemas::{DeviceId, MetricName, NodeId, Topic, batch::digest, topic::Hub};
use serde_json::{Map, Value, json};

use super::{latest::Table, units};

/// Sensors of one message, at most: about 400 bytes each, so that it stays a packet.
const SENSORS: usize = 400;
/// Longest id that is made of names as they are.
const ID_BYTES: usize = 120;

/// What a node is called there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Called<'a> {
    /// Its id.
    pub id: &'a NodeId,
    /// Its name for people.
    pub name: &'a str,
    /// What kind of machine.
    pub kind: &'a str,
    /// The version of its agent.
    pub agent: &'a str,
    /// Where it is.
    pub site: Option<&'a str>,
}

/// The messages of a node: topic and payload, the node's own first.
pub(super) fn messages(prefix: &str, node: &Called<'_>, table: &Table) -> Vec<(String, Vec<u8>)> {
    let mut messages: Vec<(DeviceId, Map<String, Value>)> = vec![(DeviceId::node(), Map::new())];
    for (device, metric, unit) in table.series() {
        // Ordered by device.
        if messages.last().is_none_or(|(last, _)| last != device) {
            messages.push((device.clone(), Map::new()));
        }
        if let Some((_, sensors)) = messages.last_mut().filter(|(_, sensors)| sensors.len() < SENSORS) {
            let id = format!("{}__{}", device_id(node.id, device), escaped(metric.as_str()));
            let id = short(id);
            let sensor = sensor(node.id, device, metric, unit, &id);
            sensors.insert(id, sensor);
        }
    }
    let message = |(device, sensors): (DeviceId, Map<String, Value>)| {
        let payload = json!({
            "dev": described(node, &device),
            "o": {"name": "Clawland Fleet", "sw": env!("CARGO_PKG_VERSION")},
            "cmps": sensors,
            "avty": [{
                "t": Topic::Hub(Hub::Node(node.id.clone())).to_string(),
                "val_tpl": "{{ 'online' if value_json.state in ['online', 'suspect', 'sleeping'] else 'offline' }}",
            }],
            "qos": 1,
        });
        (topic(prefix, node.id, &device), payload.to_string().into_bytes())
    };
    messages.into_iter().map(message).collect()
}

fn described(node: &Called<'_>, device: &DeviceId) -> Value {
    let id = short(device_id(node.id, device));
    if !device.is_node() {
        return json!({
            "ids": [id],
            "name": format!("{} {device}", node.name),
            "via_device": short(device_id(node.id, &DeviceId::node())),
        });
    }
    let mut described = json!({"ids": [id], "name": node.name, "sw": node.agent});
    if !node.kind.is_empty() {
        described["mdl"] = json!(node.kind);
    }
    if let Some(site) = node.site {
        described["sa"] = json!(site);
    }
    described
}

fn sensor(
    node: &NodeId,
    device: &DeviceId,
    metric: &MetricName,
    unit: Option<&MetricName>,
    id: &str,
) -> Value {
    let name = metric.as_str().replace('_', " ");
    let metric = quoted(metric.as_str());
    // `value_json.values` would be the method of a mapping.
    let template = if device.is_node() {
        format!("{{{{ value_json['values'].get({metric}) }}}}")
    } else {
        let device = quoted(device.as_str());
        format!("{{{{ value_json['devices'].get({device}, {{}}).get({metric}) }}}}")
    };
    let mut sensor = json!({
        "p": "sensor",
        "uniq_id": id,
        "name": name,
        "stat_t": Topic::Hub(Hub::Latest(node.clone())).to_string(),
        "val_tpl": template,
    });
    let looks = units::looks(&name, unit.map(MetricName::as_str));
    sensor["stat_cla"] = json!(looks.state_class);
    if let Some(unit) = looks.unit {
        sensor["unit_of_meas"] = json!(unit);
    }
    if let Some(class) = looks.device_class {
        sensor["dev_cla"] = json!(class);
    }
    sensor
}

/// Where a device is announced.
fn topic(prefix: &str, node: &NodeId, device: &DeviceId) -> String {
    format!("{prefix}/device/{}/config", short(device_id(node, device)))
}

fn device_id(node: &NodeId, device: &DeviceId) -> String {
    let node = escaped(node.as_str());
    match device.as_str() {
        "" => format!("fleet_{node}"),
        device => format!("fleet_{node}__{}", escaped(device)),
    }
}

/// Letters, digits and hyphens as they are, every other byte as `_` and two digits: two names never become one, and
/// `__` stands in none.
fn escaped(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => escaped.push(char::from(byte)),
            other => escaped.push_str(&format!("_{other:02x}")),
        }
    }
    escaped
}

/// An id, or a digest of it where it is too long for a topic.
fn short(id: String) -> String {
    if id.len() <= ID_BYTES {
        return id;
    }
    let hex: String = digest(id.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("fleet_{hex}")
}

/// A text as a literal of a template.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::telemetry::Latest;

    fn latest(device: &str, metric: &str, unit: Option<&str>) -> Latest {
        let (device, metric) = (DeviceId::parse(device).unwrap(), MetricName::parse(metric).unwrap());
        let unit = unit.map(|unit| MetricName::parse(unit).unwrap());
        Latest { device, metric, unit, time_ms: 1, value: 0.5 }
    }

    fn called(id: &NodeId) -> Called<'_> {
        Called { id, name: "Roof", kind: "picclaw", agent: "0.1.0", site: Some("Berlin") }
    }

    #[test]
    fn a_node_and_its_devices_are_announced() {
        let id = NodeId::parse("edge.1").unwrap();
        let table = Table::of(vec![
            latest("", "cpu_percent", Some("%")),
            latest("", "temperature", Some("Cel")),
            latest("probe/1", "humidity", Some("%")),
            latest("probe/1", "o'clock", None),
        ]);
        let messages = messages("homeassistant", &called(&id), &table);
        let shown: String = (messages.iter())
            .map(|(topic, payload)| {
                let payload: Value = serde_json::from_slice(payload).unwrap();
                format!("{topic}\n{payload:#}\n")
            })
            .collect();
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn names_become_ids_that_home_assistant_takes_and_never_the_same() {
        let names = ["a", "a_", "a__b", "a.b", "a_2eb", "ä", "a b", "A"];
        let ids: std::collections::BTreeSet<_> = names.iter().map(|name| escaped(name)).collect();
        assert_eq!(ids.len(), names.len());
        let plain = |id: &String| id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        assert!(ids.iter().all(|id| plain(id) && !id.contains("__")));
        let node = NodeId::parse(&"n.".repeat(31)).unwrap();
        let device = DeviceId::parse(&"/".repeat(63)).unwrap();
        assert!(topic("homeassistant", &node, &device).len() < fleet_schemas::limits::TOPIC_BYTES);
    }

    #[test]
    fn a_node_with_every_series_it_may_have_stays_a_packet() {
        let id = NodeId::parse(&"n".repeat(63)).unwrap();
        let name = |n: usize| format!("{n:_>63}");
        let table = Table::of((0..4_096).map(|n| latest("", &name(n), Some(&name(n)))).collect());
        let messages = messages("homeassistant", &called(&id), &table);
        assert_eq!(messages.len(), 1);
        assert!(messages[0].1.len() < fleet_schemas::limits::PACKET_BYTES - 512, "{}", messages[0].1.len());
    }
}
