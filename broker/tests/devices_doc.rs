//! What `asyncapi.yaml` says of the devices' topics is what the front reads, and the other way round.

use std::collections::{BTreeMap, BTreeSet};

use fleet_broker::policy::device::{self, Cmd, Leaf};
use serde_norway::Value;

const DOCUMENT: &str = include_str!("../../schemas/asyncapi.yaml");

/// The channel of a topic on which a device speaks. A leaf added to the code does not compile until it has one.
fn channel(id: Option<&str>, leaf: Leaf<'_>) -> &'static str {
    match (id.is_some(), leaf) {
        (true, Leaf::Sensor(_)) => "deviceSensor",
        (true, Leaf::Sensors) => "deviceSensors",
        (true, Leaf::Status) => "deviceStatus",
        (true, Leaf::DeepSleep) => "deviceDeepSleep",
        (true, Leaf::Batch) => "deviceBatch",
        (false, Leaf::Sensor(_)) => "oldSensor",
        (false, Leaf::Sensors) => "oldSensors",
        (false, Leaf::Status) => "oldStatus",
        (false, Leaf::DeepSleep) => "oldDeepSleep",
        (false, Leaf::Batch) => panic!("the older tree has no batch"),
    }
}

#[test]
fn every_described_topic_is_read_and_every_leaf_is_described() {
    let document: Value = serde_norway::from_str(DOCUMENT).unwrap();
    let mut actions = BTreeMap::new();
    for (_, operation) in document["operations"].as_mapping().unwrap() {
        let channel = operation["channel"]["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
        actions.insert(channel, operation["action"].as_str().unwrap());
    }
    let mut spoken = BTreeSet::new();
    for (name, channel_of) in document["channels"].as_mapping().unwrap() {
        let (name, address) = (name.as_str().unwrap(), channel_of["address"].as_str().unwrap());
        if address.starts_with("fleet/") {
            continue;
        }
        let topic = address.replace("{device}", "shed").replace("{type}", "temperature");
        if let Ok(place) = device::place(&topic) {
            assert_eq!((channel(place.id, place.leaf), actions[name]), (name, "receive"));
            spoken.insert(name);
        } else {
            let old = match device::cmd(&topic).unwrap() {
                Cmd::Of(id) => {
                    assert_eq!((id, name), ("shed", "deviceCommand"));
                    false
                }
                Cmd::Unnamed => {
                    assert_eq!(name, "oldCommand");
                    true
                }
            };
            assert_eq!((device::cmd_topic("shed", old), actions[name]), (topic, "send"));
        }
    }
    assert_eq!(spoken.len(), 9, "{spoken:?}");
}
