//! Retained messages.

use crate::{
    client::{Client, Hello},
    hub::Hub,
};

#[track_caller]
fn tool(hub: &Hub, version: u8, client_id: &str) -> Client {
    hub.open(version, &Hello { client_id: client_id.as_bytes(), ..Hello::new("all") })
}

/// 3.1.1: [MQTT-3.3.1-5] [MQTT-3.3.1-6] [MQTT-3.3.1-7] [MQTT-3.3.1-8] [MQTT-3.3.1-9]; 5: [MQTT-3.3.1-5] [MQTT-3.3.1-9]
/// [MQTT-3.3.1-12] [MQTT-3.8.4-8]
#[test]
fn a_new_subscription_is_given_the_newest_retained_message_with_its_qos_and_flag() {
    let hub = Hub::start();
    for version in [4, 5] {
        let mut speaker = tool(&hub, version, "speaker");
        let mut ear = tool(&hub, version, "ear");
        assert_eq!(ear.subscribe(&[("+/live", 1)]), [1]);
        for (first, payload) in [(0x33, &b"old"[..]), (0x31, b"new")] {
            speaker.publish(first, "a/live", 7, payload);
            let heard = ear.hear();
            assert_eq!((heard.first & 1, &heard.payload[..]), (0, payload), "live, it has no flag");
            if first == 0x33 {
                ear.acknowledge(heard.id);
                assert_eq!(speaker.read(), Some((0x40, vec![0, 7])));
            }
        }
        speaker.say(0x33, "a/kept", b"kept");
        for (filter, qos) in [("a/#", 1), ("a/#", 0)] {
            let mut late = tool(&hub, version, "late");
            assert_eq!(late.subscribe(&[(filter, qos)]), [qos]);
            let (one, other) = (late.hear(), late.hear());
            assert_eq!(
                (one.first, &one.topic[..], &one.payload[..]),
                (0x31 | (qos << 1), "a/kept", &b"kept"[..])
            );
            assert_eq!((other.first, &other.topic[..], &other.payload[..]), (0x31, "a/live", &b"new"[..]));
        }
        for topic in ["a/live", "a/kept"] {
            speaker.say(0x33, topic, b"");
        }
    }
}

/// 3.1.1: [MQTT-3.3.1-10] [MQTT-3.3.1-11] [MQTT-3.3.1-12]; 5: [MQTT-3.3.1-6] [MQTT-3.3.1-7] [MQTT-3.3.1-8]
#[test]
fn only_an_empty_retained_message_clears_and_it_is_said_like_any_other() {
    let hub = Hub::start();
    for version in [4, 5] {
        let (mut speaker, mut ear) = (tool(&hub, version, "speaker"), tool(&hub, version, "ear"));
        let asked = |payload: &[u8]| {
            let mut late = tool(&hub, version, "late");
            assert_eq!(late.subscribe(&[("a", 0), ("z", 0)]), [0, 0]);
            let heard = late.hear();
            (heard.topic == "a" && heard.payload == payload, heard.topic == "z")
        };
        speaker.say(0x33, "z", b"after it");
        speaker.say(0x33, "a", b"kept");
        assert_eq!(asked(b"kept"), (true, false));
        speaker.say(0x32, "a", b"not kept");
        speaker.say(0x32, "a", b"");
        assert_eq!(asked(b"kept"), (true, false), "neither stored nor cleared");
        assert_eq!(ear.subscribe(&[("a", 0)]), [0]);
        assert_eq!(ear.hear().payload, b"kept");
        speaker.say(0x33, "a", b"");
        let heard = ear.hear();
        assert_eq!((heard.first, &heard.payload[..]), (0x30, &b""[..]));
        assert_eq!(asked(b""), (false, true));
        speaker.say(0x33, "z", b"");
    }
}

/// 3.1.1: [MQTT-3.8.4-3]; 5: [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11] [MQTT-3.8.4-4]
#[test]
fn retained_messages_come_with_a_subscription_as_often_as_it_asks() {
    let hub = Hub::start();
    let mut speaker = tool(&hub, 5, "speaker");
    speaker.say(0x33, "a", b"kept");
    let mut four = tool(&hub, 4, "four");
    for _ in 0..2 {
        assert_eq!(four.subscribe(&[("a", 0)]), [0]);
        assert_eq!(four.hear().first, 0x31);
    }
    let mut five = tool(&hub, 5, "five");
    // Never; only if it is new, which it is not; only if it is new, which the other is; always.
    assert_eq!(five.subscribe(&[("a", 0x20)]), [0]);
    assert_eq!(five.subscribe(&[("a", 0x10)]), [0]);
    five.ask(&[(b"+", 0x10)], &[0x0B, 5]);
    assert_eq!(five.read().unwrap().0, 0x90);
    let heard = five.hear();
    assert_eq!((heard.first, &heard.properties[..]), (0x31, &[0x0B, 5][..]), "as that subscription's");
    assert_eq!(five.subscribe(&[("a", 0)]), [0]);
    assert_eq!((five.hear().properties.len(), five.unsubscribe(&["a", "+"])), (0, vec![0, 0]));
    five.ping();
}

/// [MQTT-3.3.1-13]
#[test]
fn retain_as_published_keeps_the_flag() {
    let hub = Hub::start();
    let (mut speaker, mut ear) = (tool(&hub, 5, "speaker"), tool(&hub, 5, "ear"));
    assert_eq!(ear.subscribe(&[("a", 8)]), [0]);
    speaker.say(0x33, "a", b"kept");
    speaker.say(0x32, "a", b"said");
    assert_eq!((ear.hear().first, ear.hear().first), (0x31, 0x30));
}

/// [MQTT-3.2.2-13]: retained messages are for tools only, and a node is told so.
#[test]
fn a_node_retains_nothing() {
    let hub = Hub::start();
    let mut node = hub.connect(5);
    let (_, body) = node.hello(&Hello::new("edge-1")).unwrap();
    assert!(body.windows(2).any(|property| property == [0x25, 0]));
    node.publish(0x31, "fleet/v1/edge-1/up/event", 0, b"x");
    node.ends(0x9A);
}
