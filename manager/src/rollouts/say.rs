//! `fleet/v1/hub/rollout/{rollout}`: progress as `GET rollouts/{id}` shows it, retained.

use std::{collections::BTreeSet, ops::ControlFlow};

use bytes::Bytes;
use fleet_broker::{HubKind, Publisher};
use fleet_schemas::{Topic, topic::Hub as Told};

use crate::{
    api,
    consume::Shared,
    core::{
        fleet::Fleet,
        rollout::{Id, Live},
    },
    hub::Hub,
};

fn topic(id: &str) -> Topic {
    Topic::Hub(Told::Rollout(id.to_owned()))
}

fn payload(live: &Live) -> Vec<u8> {
    serde_json::to_vec(&api::rollouts::brief(live)).expect("our own shapes are JSON")
}

/// Says where those stand that changed.
pub(super) fn publish(hub: &Hub, publisher: &Publisher, changed: &BTreeSet<Id>) {
    if changed.is_empty() || !publisher.wanted_kind(HubKind::Rollout) {
        return;
    }
    for id in changed {
        let topic = topic(id.as_str());
        // One that is forgotten leaves nothing retained.
        let look = |fleet: &Fleet| fleet.rollouts.get(id.as_str()).map_or_else(Vec::new, payload);
        if publisher.wanted(&topic)
            && let Err(error) = publisher.publish(&topic, Bytes::from(hub.with_fleet(look)))
        {
            tracing::warn!(%error, %topic, "a rollout was not said on its topic: subscribers do not keep up");
        }
    }
}

/// Shows what is retained on the topics of rollouts that a filter matches, until `visit` breaks.
pub(crate) fn retained(shared: &Shared, filter: &str, visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>) {
    let found: Vec<(String, Vec<u8>)> = {
        let fleet = shared.fleet();
        let named = fleet
            .rollouts
            .all()
            .into_iter()
            .map(|live| (topic(live.head.spec.id.as_str()).to_string(), live));
        named
            .filter(|(topic, _)| matches(filter, topic))
            .map(|(topic, live)| (topic, payload(live)))
            .collect()
    };
    for (topic, payload) in found {
        if visit(&topic, &payload).is_break() {
            return;
        }
    }
}

/// Whether a filter matches a topic (MQTT 3.1.1 §4.7).
fn matches(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    for level in filter.split('/') {
        match (level, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (level, Some(other)) if level == other => {}
            (_, _) => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_brokers_match_them() {
        let topic = topic("greeter-1.2.0-1").to_string();
        assert_eq!(topic, "fleet/v1/hub/rollout/greeter-1.2.0-1");
        for filter in
            ["#", "fleet/v1/hub/#", "fleet/v1/hub/rollout/+", "fleet/v1/hub/rollout/#", "+/+/+/+/+", &topic]
        {
            assert!(matches(filter, &topic), "{filter}");
        }
        for filter in ["fleet/v1/hub/rollout", "fleet/v1/hub/node/+", "fleet/v1/+", "+/+/+/+/+/+", ""] {
            assert!(!matches(filter, &topic), "{filter}");
        }
    }
}
