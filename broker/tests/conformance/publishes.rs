//! PUBLISH and PUBACK in both directions: QoS, order, flow control, properties.

use std::time::Duration;

use crate::{
    client::{Client, Heard, Hello},
    hub::Hub,
};

/// A tool with a client id of its own.
#[track_caller]
fn tool(hub: &Hub, version: u8, client_id: &str) -> Client {
    hub.open(version, &Hello { client_id: client_id.as_bytes(), ..Hello::new("all") })
}

fn heard(first: u8, topic: &str, id: u16, payload: &[u8]) -> Heard {
    Heard { first, topic: topic.into(), id, properties: vec![], payload: payload.into() }
}

/// 3.1.1: [MQTT-2.3.1-5] [MQTT-3.3.1-2] [MQTT-3.3.1-3] [MQTT-3.3.2-3] [MQTT-3.3.4-1] [MQTT-3.8.4-6] [MQTT-4.3.1-1]
/// [MQTT-4.3.2-2]; 5: [MQTT-2.2.1-2] [MQTT-2.2.1-4] [MQTT-2.2.2-1] [MQTT-3.3.1-1] [MQTT-3.3.1-2] [MQTT-3.3.1-3]
/// [MQTT-3.3.2-3] [MQTT-3.3.4-1] [MQTT-3.4.2-1] [MQTT-3.8.4-8] [MQTT-4.3.1-1] [MQTT-4.3.2-1] [MQTT-4.3.2-2]
/// [MQTT-4.3.2-4] [MQTT-4.3.2-5]
#[test]
fn a_message_is_delivered_at_the_lesser_qos_and_its_dup_flag_is_its_own() {
    let hub = Hub::start();
    for version in [4, 5] {
        let (mut at_0, mut at_1) = (tool(&hub, version, "at-0"), tool(&hub, version, "at-1"));
        assert_eq!((at_0.subscribe(&[("a", 0)]), at_1.subscribe(&[("a", 1)])), (vec![0], vec![1]));
        let mut speaker = tool(&hub, version, "speaker");
        speaker.publish(0x30, "a", 0, b"0");
        speaker.ping();
        for (first, payload) in [(0x32, b"1"), (0x3A, b"2")] {
            speaker.publish(first, "a", 7, payload);
            assert_eq!(speaker.read(), Some((0x40, vec![0, 7])), "the same id again is a new message");
        }
        for payload in [b"0", b"1", b"2"] {
            assert_eq!(at_0.hear(), heard(0x30, "a", 0, payload));
        }
        assert_eq!(at_1.hear(), heard(0x30, "a", 0, b"0"));
        for (id, payload) in [(1, b"1"), (2, b"2")] {
            assert_eq!(at_1.hear(), heard(0x32, "a", id, payload));
            at_1.acknowledge(id);
        }
        at_1.ping();
    }
}

/// QoS 2 is not offered: 3.1.1 §3.3.1.2 leaves the end of the connection, 5 has a code (§3.2.2.3.4, 0x9B) and
/// [MQTT-3.2.2-10] [MQTT-3.2.2-12].
#[test]
fn qos_2_is_refused_in_publishes_and_wills_and_granted_as_1_in_subscriptions() {
    let hub = Hub::start();
    for version in [4, 5] {
        let mut client = tool(&hub, version, "all");
        assert_eq!(client.subscribe(&[("a", 2)]), [1]);
        client.publish(0x34, "a", 1, b"");
        client.ends(0x9B);
        let will = Some(crate::client::Will { qos: 2, ..crate::client::Will::new("a") });
        let mut client = hub.connect(version);
        let (_, body) = client.hello(&Hello { will, ..Hello::new("all") }).unwrap();
        assert_eq!(body[1], if version == 5 { 0x9B } else { 5 });
        assert_eq!(client.read(), None);
    }
}

/// 3.1.1: [MQTT-3.3.5-2]; 5: §3.4.2.1 (0x87, 0x90)
#[test]
fn a_publish_that_is_not_allowed_is_never_acknowledged_as_if_it_were() {
    let hub = Hub::start();
    let mut five = hub.session(5, "reader");
    five.publish(0x32, "apps/a", 7, b"");
    assert_eq!(five.read(), Some((0x40, vec![0, 7, 0x87])));
    five.publish(0x30, "apps/a", 0, b"");
    let mut apps = hub.session(5, "apps");
    apps.publish(0x32, "homeassistant/\u{e9}", 8, b"");
    assert_eq!(apps.read(), Some((0x40, vec![0, 8, 0x90])));
    let mut four = hub.open(4, &Hello { client_id: b"four", ..Hello::new("reader") });
    four.publish(0x32, "apps/a", 7, b"");
    assert_eq!(four.read(), None);
    assert!(hub.said(Some(&mut five)).is_empty());
}

/// 3.1.1: [MQTT-4.6.0-5] [MQTT-4.6.0-6]; 5: [MQTT-4.6.0-5] [MQTT-4.6.0-6]
#[test]
fn messages_of_one_client_on_one_topic_come_in_their_order() {
    const MESSAGES: u16 = 2_000;
    let hub = Hub::start();
    for version in [4, 5] {
        let mut ear = tool(&hub, version, "ear");
        assert_eq!(ear.subscribe(&[("a/#", 1)]), [1]);
        let mut speaker = tool(&hub, version, "speaker");
        let speaking = std::thread::spawn(move || {
            for n in 0..MESSAGES {
                speaker.say(0x32, "a/b", &n.to_be_bytes());
            }
            speaker
        });
        for n in 0..MESSAGES {
            let heard = ear.hear();
            assert_eq!(heard.payload, n.to_be_bytes());
            ear.acknowledge(heard.id);
        }
        speaking.join().unwrap();
    }
}

/// [MQTT-3.3.4-9] [MQTT-3.3.4-10] [MQTT-4.9.0-1] [MQTT-4.9.0-2] [MQTT-4.9.0-3] [MQTT-4.4.0-2]
#[test]
fn no_more_than_the_receive_maximum_is_in_flight_and_everything_else_goes_on() {
    let hub = Hub::start();
    let mut ear = hub.open(5, &Hello { properties: &[0x21, 0, 1], client_id: b"ear", ..Hello::new("all") });
    assert_eq!(ear.subscribe(&[("a", 1)]), [1]);
    let mut speaker = tool(&hub, 5, "speaker");
    for payload in [b"1", b"2", b"3"] {
        speaker.say(0x32, "a", payload);
    }
    assert_eq!(ear.hear(), heard(0x32, "a", 1, b"1"));
    ear.ping();
    assert_eq!(ear.subscribe(&[("b", 0)]), [0]);
    ear.ping();
    // Refused is done with as well, and so is what nobody sent.
    ear.acknowledge(99);
    ear.send(&[0x40, 4, 0, 1, 0x80, 0]);
    assert_eq!(ear.hear(), heard(0x32, "a", 2, b"2"));
    ear.acknowledge(2);
    assert_eq!(ear.hear(), heard(0x32, "a", 3, b"3"));
}

/// [MQTT-3.1.2-24] [MQTT-3.1.2-25]
#[test]
fn what_is_larger_than_the_client_takes_is_left_out_and_the_next_comes() {
    let hub = Hub::start();
    let mut ear =
        hub.open(5, &Hello { properties: &[0x27, 0, 0, 0, 100], client_id: b"ear", ..Hello::new("all") });
    assert_eq!(ear.subscribe(&[("a", 1)]), [1]);
    let mut speaker = tool(&hub, 5, "speaker");
    // A PUBLISH has 8 bytes beside its payload here.
    for length in [101, 93, 92] {
        speaker.say(0x32, "a", &vec![7; length]);
    }
    assert_eq!(ear.hear(), heard(0x32, "a", 1, &[7; 92]));
}

/// [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18] [MQTT-3.3.2-20] [MQTT-3.1.2-26]
#[test]
fn properties_come_through_unaltered_and_in_order() {
    let hub = Hub::start();
    let mut ear = hub.open(5, &Hello { properties: &[0x22, 0, 9], client_id: b"ear", ..Hello::new("all") });
    assert_eq!(ear.subscribe(&[("a", 0)]), [0]);
    let mut old = tool(&hub, 4, "old");
    assert_eq!(old.subscribe(&[("a", 0)]), [0]);
    let properties = [
        &[0x26, 0, 1, b'z', 0, 0][..],
        &[0x01, 1],
        &[0x26, 0, 1, b'a', 0, 2, 0xC3, 0xA9],
        &[0x08, 0, 3, b'r', b'/', b't'],
        &[0x09, 0, 3, 0, 0xFF, 1],
        &[0x26, 0, 1, b'z', 0, 1, b'2'],
        &[0x03, 0, 4, b't', b'e', b'x', b't'],
    ]
    .concat();
    let mut speaker = tool(&hub, 5, "speaker");
    speaker.publish_with(0x30, b"a", 0, &properties, b"payload");
    assert_eq!(ear.hear(), Heard { properties, ..heard(0x30, "a", 0, b"payload") }, "and no alias");
    assert_eq!(old.hear(), heard(0x30, "a", 0, b"payload"));
}

/// [MQTT-3.3.2-5] [MQTT-3.3.2-6]
#[test]
fn a_message_says_how_long_it_is_still_worth_delivering_and_is_dropped_when_it_is_not() {
    let hub = Hub::start();
    let mut ears = [5, 4].map(|version| {
        // One at a time, so that the second waits in the gate.
        let properties: &[u8] = if version == 5 { &[0x21, 0, 1] } else { &[] };
        let client_id = [b'e', version];
        let mut ear = hub.open(version, &Hello { properties, client_id: &client_id, ..Hello::new("all") });
        assert_eq!(ear.subscribe(&[("a", 1)]), [1]);
        ear
    });
    let mut speaker = tool(&hub, 5, "speaker");
    let mut say = |payload: &[u8], seconds: Option<u8>| {
        let properties = seconds.map_or(vec![], |seconds| vec![2, 0, 0, 0, seconds]);
        speaker.publish_with(0x32, b"a", 7, &properties, payload);
        assert_eq!(speaker.read(), Some((0x40, vec![0, 7])));
    };
    say(b"first", Some(200));
    say(b"short", Some(1));
    say(b"long", Some(200));
    let heard = ears[0].hear();
    assert_eq!((&heard.payload[..], &heard.properties[..]), (&b"first"[..], &[2, 0, 0, 0, 200][..]));
    // The others wait for the acknowledgement until one of them is too old: time itself is what is tried here.
    std::thread::sleep(Duration::from_millis(2_100));
    ears[0].acknowledge(heard.id);
    let heard = ears[0].hear();
    assert_eq!(heard.payload, b"long");
    assert!(heard.properties[..4] == [2, 0, 0, 0] && (190..=198).contains(&heard.properties[4]), "{heard:?}");
    for payload in [&b"first"[..], b"short", b"long"] {
        let heard = ears[1].hear();
        assert_eq!(heard.payload, payload, "it read in time, and 3.1.1 knows no properties");
    }
}
