//! Payloads of `fleet/v1/hub/…` as the HTTP API writes the same things.

use fleet_schemas::{NodeId, limits};

use crate::{
    api,
    consume::{Shared, StoredEvent},
    core::fleet::Node,
    feed::json::Sample,
    store::state::EventRow,
};

/// Bytes of a payload, at most: with its topic it is a packet.
pub(super) const MESSAGE_BYTES: usize = limits::PACKET_BYTES - limits::TOPIC_BYTES - 64;
/// Samples of one message, at most: 520 bytes each when all names are as long as they may be, and of quotes.
pub(super) const SAMPLES: usize = 500;

/// `hub/node/{node}`.
pub(super) fn node(shared: &Shared, node: &Node, devices_count: usize) -> Vec<u8> {
    serde_json::to_vec(&api::node_shown(shared, node, devices_count)).expect("our own shapes are JSON")
}

/// `hub/samples/{node}`, in as many messages as it takes.
pub(super) fn samples<'a>(samples: &'a [Sample<'_>]) -> impl Iterator<Item = Vec<u8>> + 'a {
    samples.chunks(SAMPLES).map(|part| serde_json::to_vec(part).expect("our own shapes are JSON"))
}

/// `hub/event/{node}`.
pub(super) fn event(number: u64, node: NodeId, row: EventRow) -> Vec<u8> {
    let EventRow { time_ms, recv_ms, by_hub, event, .. } = row;
    let stored = StoredEvent { number, node, time_ms, recv_ms, by_hub, event };
    serde_json::to_vec(&api::event_shown(&stored)).expect("our own shapes are JSON")
}

#[cfg(test)]
mod tests {
    use fleet_schemas::{DeviceId, MetricName};

    use super::*;

    #[test]
    fn the_longest_samples_fit_their_messages() {
        let long = |byte: char| byte.to_string().repeat(limits::LABEL_BYTES);
        let (device, metric) =
            (DeviceId::parse(&long('"')).unwrap(), MetricName::parse(&long('\\')).unwrap());
        let sample = Sample {
            time_ms: i64::MIN,
            device: &device,
            metric: &metric,
            value: -f64::MAX / 3.0,
            unit: Some(&metric),
            late: false,
        };
        let all = vec![sample; 2 * SAMPLES + 1];
        let messages: Vec<_> = samples(&all).collect();
        assert_eq!(messages.len(), 3);
        assert!(messages.iter().all(|message| message.len() <= MESSAGE_BYTES), "{}", messages[0].len());
    }
}
