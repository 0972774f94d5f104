//! `asyncapi.yaml` and the topics of the code are the same, one to one, and its references lead somewhere.
#![expect(clippy::unwrap_used, reason = "functions of a test may fail it")]

use std::collections::{BTreeMap, BTreeSet};

use fleet_schemas::{
    Lane, NodeId, Topic,
    topic::{Down, Hub, Up},
};
use serde_norway::Value;

const DOCUMENT: &str = include_str!("../asyncapi.yaml");
const CDDL: &str = include_str!("../fleet.cddl");

fn document() -> Value {
    serde_norway::from_str(DOCUMENT).unwrap()
}

/// The channel that describes a topic. A topic added to the code does not compile until it has one.
fn channel(topic: &Topic) -> &'static str {
    match topic {
        Topic::Up(_, Up::Birth) => "birth",
        Topic::Up(_, Up::Death) => "death",
        Topic::Up(_, Up::Heartbeat) => "heartbeat",
        Topic::Up(_, Up::Lane(Lane::Event)) => "event",
        Topic::Up(_, Up::Lane(Lane::Command)) => "command",
        Topic::Up(_, Up::Lane(Lane::Telemetry)) => "telemetry",
        Topic::Up(_, Up::Lane(Lane::Backfill)) => "backfill",
        Topic::Down(_, Down::Ack) => "ack",
        Topic::Down(_, Down::Command) => "downCommand",
        Topic::Down(_, Down::Config) => "downConfig",
        Topic::Hub(Hub::Node(_)) => "hubNode",
        Topic::Hub(Hub::Latest(_)) => "hubLatest",
        Topic::Hub(Hub::Samples(_)) => "hubSamples",
        Topic::Hub(Hub::Event(_)) => "hubEvent",
        Topic::Hub(Hub::Alert(..)) => "hubAlert",
        Topic::Hub(Hub::Rollout(_)) => "hubRollout",
    }
}

/// Every topic, with the names of its parameters as their values.
fn topics() -> Vec<Topic> {
    let node = || NodeId::parse("node").unwrap();
    let ups = [Up::Birth, Up::Death, Up::Heartbeat].into_iter().chain(Lane::ALL.map(Up::Lane));
    let downs = [Down::Ack, Down::Command, Down::Config];
    let hubs = [
        Hub::Node(node()),
        Hub::Latest(node()),
        Hub::Samples(node()),
        Hub::Event(node()),
        Hub::Alert("rule".into(), node()),
        Hub::Rollout("rollout".into()),
    ];
    (ups.map(|up| Topic::Up(node(), up)))
        .chain(downs.map(|down| Topic::Down(node(), down)))
        .chain(hubs.map(Topic::Hub))
        .collect()
}

/// Address by channel, as the document has them; those of devices are compared where they are read, in the broker.
fn addresses() -> BTreeMap<String, String> {
    all_addresses().into_iter().filter(|(_, address)| address.starts_with("fleet/")).collect()
}

fn all_addresses() -> BTreeMap<String, String> {
    let document = document();
    let channels = document["channels"].as_mapping().unwrap();
    channels
        .iter()
        .map(|(name, channel)| {
            (name.as_str().unwrap().to_owned(), channel["address"].as_str().unwrap().to_owned())
        })
        .collect()
}

#[test]
fn every_topic_is_described_and_nothing_else() {
    let ours: BTreeMap<String, String> =
        topics().iter().map(|topic| (channel(topic).to_owned(), topic.to_string())).collect();
    let described: BTreeMap<String, String> =
        addresses().into_iter().map(|(name, address)| (name, address.replace(['{', '}'], ""))).collect();
    assert_eq!(described, ours);
}

#[test]
fn every_address_parses_as_the_topic_it_describes() {
    for (name, address) in addresses() {
        let text = address.replace("{node}", "edge-1").replace("{rule}", "hot").replace("{rollout}", "r-1");
        let topic = Topic::parse(&text).unwrap_or_else(|error| panic!("{address}: {error}"));
        assert_eq!(channel(&topic), name);
    }
}

#[test]
fn parameters_are_those_of_the_address() {
    let document = document();
    for (name, address) in all_addresses() {
        let of_address: BTreeSet<_> =
            address.split('/').filter_map(|level| level.strip_prefix('{')?.strip_suffix('}')).collect();
        let parameters = document["channels"][name.as_str()]["parameters"].as_mapping().unwrap();
        let declared: BTreeSet<_> = parameters.keys().map(|key| key.as_str().unwrap()).collect();
        assert_eq!(declared, of_address, "{name}");
    }
}

#[test]
fn every_channel_has_one_operation_in_the_right_direction() {
    let document = document();
    let mut directions = BTreeMap::new();
    for (_, operation) in document["operations"].as_mapping().unwrap() {
        let target = operation["channel"]["$ref"].as_str().unwrap();
        let name = target.strip_prefix("#/channels/").unwrap().to_owned();
        assert_eq!(directions.insert(name, operation["action"].as_str().unwrap()), None, "{target}");
    }
    for topic in topics() {
        let expected = match topic {
            Topic::Up(..) => "receive",
            Topic::Down(..) | Topic::Hub(_) => "send",
        };
        assert_eq!(directions.remove(channel(&topic)), Some(expected), "{topic}");
    }
    let addresses = all_addresses();
    let ours: Vec<_> = directions.keys().filter(|name| addresses[*name].starts_with("fleet/")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[test]
fn references_and_rules_lead_somewhere() {
    let document = document();
    let (mut references, mut rules) = (0, 0);
    walk(&document, &mut |key, text| {
        if key == "$ref" {
            let path = text.strip_prefix("#/").unwrap_or_else(|| panic!("{text} leaves the document"));
            let found = path.split('/').try_fold(&document, |place, step| place.get(step));
            assert!(found.is_some(), "{text} leads nowhere");
            references += 1;
        } else if key == "schema" {
            assert!(CDDL.lines().any(|line| line.starts_with(&format!("{text} "))), "no rule {text}");
            rules += 1;
        }
    });
    assert!(references > 40 && rules >= 8, "{references} references, {rules} rules");
}

/// Calls `seen` with every text in a map and its key.
fn walk(value: &Value, seen: &mut impl FnMut(&str, &str)) {
    match value {
        Value::Mapping(entries) => {
            for (key, inner) in entries {
                if let (Some(key), Some(text)) = (key.as_str(), inner.as_str()) {
                    seen(key, text);
                }
                walk(inner, seen);
            }
        }
        Value::Sequence(items) => items.iter().for_each(|item| walk(item, seen)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Tagged(_) => {}
    }
}
