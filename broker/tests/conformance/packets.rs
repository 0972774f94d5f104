//! Packets and what is wrong with them: structure, flags, identifiers, strings, properties.

use crate::{
    client::{Hello, packet, text},
    hub::Hub,
};

/// What is wrong, its bytes in a version, and its code in MQTT 5.
type Wrong<'a> = (&'a str, &'a dyn Fn(u8) -> Vec<u8>, u8);

/// Sends bytes in a fresh session of a tool, and expects it to end: in MQTT 5 with this code.
#[track_caller]
fn breaks(hub: &Hub, what: &str, bytes: impl Fn(u8) -> Vec<u8>, code: u8) {
    for version in [4, 5] {
        let mut client = hub.session(version, "all");
        client.send(&bytes(version));
        if version == 5 {
            assert_eq!(client.read(), Some((0xE0, vec![code])), "{what}");
        }
        assert_eq!(client.read(), None, "{what} in {version}");
    }
}

/// A body with a packet id, in MQTT 5 without properties, and strings with a byte behind each if there is one.
fn body(version: u8, id: u16, filters: &[&[u8]], options: Option<u8>) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend((version == 5).then_some(0));
    for filter in filters {
        text(&mut body, filter);
        body.extend(options);
    }
    body
}

/// 3.1.1: [MQTT-1.5.3-1] [MQTT-1.5.3-2] [MQTT-2.2.2-2] [MQTT-2.3.1-1] [MQTT-3.1.0-2] [MQTT-3.3.1-4] [MQTT-3.3.2-1]
/// [MQTT-3.3.2-2] [MQTT-3.8.1-1] [MQTT-3.8.3-1] [MQTT-3.8.3-3] [MQTT-3.8.3-4] [MQTT-3.10.1-1] [MQTT-3.10.3-1]
/// [MQTT-3.10.3-2] [MQTT-3.14.1-1] [MQTT-4.7.1-1] [MQTT-4.7.3-1] [MQTT-4.7.3-2] [MQTT-4.8.0-1]
///
/// 5: [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-2.1.3-1] [MQTT-2.2.1-3] [MQTT-3.1.0-2] [MQTT-3.3.1-2] [MQTT-3.3.1-4]
/// [MQTT-3.3.2-1] [MQTT-3.3.2-2] [MQTT-3.8.1-1] [MQTT-3.8.3-1] [MQTT-3.8.3-2] [MQTT-3.8.3-5] [MQTT-3.10.1-1]
/// [MQTT-3.10.3-1] [MQTT-3.10.3-2] [MQTT-3.14.1-1] [MQTT-4.7.0-1] [MQTT-4.7.3-1] [MQTT-4.7.3-2] [MQTT-4.13.1-1]
#[test]
fn what_is_malformed_or_out_of_place_ends_the_session_with_its_code() {
    let hub = Hub::start();
    let publish = |version: u8, first: u8, topic: &[u8], id: &[u8]| {
        let mut body = vec![];
        text(&mut body, topic);
        body.extend(id);
        body.extend((version == 5).then_some(0));
        packet(first, &body)
    };
    let cases: [Wrong<'_>; 27] = [
        ("a second CONNECT", &|version| Hello::new("all").bytes(version), 0x82),
        ("a server's CONNACK", &|_| packet(0x20, &[0, 0]), 0x82),
        ("a server's SUBACK", &|_| packet(0x90, &[0, 1, 0]), 0x82),
        ("a server's UNSUBACK", &|_| packet(0xB0, &[0, 1]), 0x82),
        ("a server's PINGRESP", &|_| packet(0xD0, &[]), 0x82),
        ("a PUBREC, QoS 2 is not offered", &|_| packet(0x50, &[0, 1]), 0x82),
        ("packet type 0", &|_| packet(0x00, &[]), 0x81),
        ("flags of SUBSCRIBE", &|version| packet(0x80, &body(version, 1, &[b"a"], Some(0))), 0x81),
        ("flags of UNSUBSCRIBE", &|version| packet(0xA0, &body(version, 1, &[b"a"], None)), 0x81),
        ("flags of PINGREQ", &|_| packet(0xC1, &[]), 0x81),
        ("flags of DISCONNECT", &|_| packet(0xE1, &[]), 0x81),
        ("a DUP flag at QoS 0", &|version| publish(version, 0x38, b"a", b""), 0x81),
        ("QoS 3", &|version| publish(version, 0x36, b"a", b"\0\x01"), 0x81),
        ("packet id 0 of PUBLISH", &|version| publish(version, 0x32, b"a", b"\0\0"), 0x82),
        ("packet id 0 of SUBSCRIBE", &|version| packet(0x82, &body(version, 0, &[b"a"], Some(0))), 0x82),
        ("packet id 0 of UNSUBSCRIBE", &|version| packet(0xA2, &body(version, 0, &[b"a"], None)), 0x82),
        ("a topic that is no UTF-8", &|version| publish(version, 0x30, b"a/\xC3\x28", b""), 0x81),
        ("a surrogate in a topic", &|version| publish(version, 0x30, b"a/\xED\xA0\x80", b""), 0x81),
        ("U+0000 in a topic", &|version| publish(version, 0x30, b"a/\0", b""), 0x81),
        ("a wildcard in a topic", &|version| publish(version, 0x30, b"a/+", b""), 0x81),
        ("no topic", &|version| publish(version, 0x30, b"", b""), 0x82),
        ("no filter in SUBSCRIBE", &|version| packet(0x82, &body(version, 1, &[], None)), 0x82),
        ("no filter in UNSUBSCRIBE", &|version| packet(0xA2, &body(version, 1, &[], None)), 0x82),
        ("an empty filter", &|version| packet(0x82, &body(version, 1, &[b""], Some(0))), 0x82),
        ("a filter that is no UTF-8", &|version| packet(0x82, &body(version, 1, &[b"\xFF"], Some(0))), 0x81),
        ("reserved bits of options", &|version| packet(0x82, &body(version, 1, &[b"a"], Some(0xC0))), 0x81),
        ("a filter cut short", &|version| packet(0xA2, &body(version, 1, &[b"a"], None)[..4]), 0x81),
    ];
    for (what, bytes, code) in cases {
        breaks(&hub, what, bytes, code);
    }
}

/// 3.1.1 §2.2.3, and the limit that the gate announces to MQTT 5 (§3.2.2.3.6).
#[test]
fn a_remaining_length_above_the_limit_or_of_five_bytes_ends_the_session() {
    let hub = Hub::start();
    breaks(&hub, "256 MB", |_| vec![0x30, 0xFF, 0xFF, 0xFF, 0x7F], 0x95);
    breaks(&hub, "five bytes", |_| vec![0x30, 0x80, 0x80, 0x80, 0x80, 0x01], 0x81);
}

/// [MQTT-3.3.2-8] [MQTT-3.3.2-13] [MQTT-3.3.2-14] [MQTT-3.3.2-19] [MQTT-3.3.4-6] [MQTT-3.8.3-4] [MQTT-1.5.7-1]
/// §2.2.2, §3.8.2.1.2, §3.8.3.1, §3.15
#[test]
fn properties_of_mqtt_5_that_are_wrong_or_not_offered_end_the_session_with_their_code() {
    let hub = Hub::start();
    let publish = |properties: &[u8]| {
        let mut body = vec![0, 1, b'a', u8::try_from(properties.len()).unwrap()];
        body.extend(properties);
        packet(0x30, &body)
    };
    let subscribe = |properties: &[u8], filter: &[u8], options: u8| {
        let mut body = vec![0, 1, u8::try_from(properties.len()).unwrap()];
        body.extend(properties);
        text(&mut body, filter);
        body.push(options);
        packet(0x82, &body)
    };
    let cases = [
        ("a topic alias", publish(&[0x23, 0, 1]), 0x94),
        ("topic alias 0", publish(&[0x23, 0, 0]), 0x94),
        ("a subscription identifier from a client", publish(&[0x0B, 1]), 0x82),
        ("a property of another packet", publish(&[0x21, 0, 1]), 0x81),
        ("an unknown property", publish(&[0x7E]), 0x81),
        ("a property twice", publish(&[0x01, 0, 0x01, 0]), 0x82),
        ("a payload format above 1", publish(&[0x01, 2]), 0x82),
        ("a response topic with a wildcard", publish(&[0x08, 0, 1, b'#']), 0x82),
        ("a response topic that is no UTF-8", publish(&[0x08, 0, 1, 0xFF]), 0x81),
        ("a content type that is no UTF-8", publish(&[0x03, 0, 1, 0xFF]), 0x81),
        ("a user property with U+0000", publish(&[0x26, 0, 1, 0, 0, 0]), 0x81),
        ("a property cut short", publish(&[0x02, 0, 0]), 0x81),
        ("properties longer than the packet", vec![0x30, 4, 0, 1, b'a', 9], 0x81),
        ("subscription identifier 0", subscribe(&[0x0B, 0], b"a", 0), 0x82),
        ("two subscription identifiers", subscribe(&[0x0B, 1, 0x0B, 2], b"a", 0), 0x82),
        ("retain handling 3", subscribe(&[], b"a", 0x30), 0x82),
        ("maximum QoS 3", subscribe(&[], b"a", 3), 0x82),
        ("no local on a shared subscription", subscribe(&[], b"$share/g/a", 4), 0x82),
        ("AUTH without an authentication method", packet(0xF0, &[0x19, 0]), 0x82),
    ];
    for (what, bytes, code) in cases {
        let mut client = hub.session(5, "all");
        client.send(&bytes);
        assert_eq!(client.read(), Some((0xE0, vec![code])), "{what}");
        assert_eq!(client.read(), None, "{what}");
    }
}

/// 3.1.1: [MQTT-2.3.1-6] [MQTT-2.3.1-7] [MQTT-3.12.4-1]; 5: [MQTT-2.2.1-5] [MQTT-2.2.1-6] [MQTT-3.12.4-1]
#[test]
fn acknowledgements_carry_the_packet_id_they_are_about() {
    let hub = Hub::start();
    for version in [4, 5] {
        let mut client = hub.session(version, "all");
        for id in [1, 255, 256, u16::MAX] {
            let bytes = id.to_be_bytes().to_vec();
            client.publish(0x32, "a", id, b"");
            assert_eq!(client.read(), Some((0x40, bytes.clone())));
            client.send(&packet(0x82, &body(version, id, &[b"a"], Some(0))));
            assert_eq!(client.read().unwrap().1[..2], bytes);
            client.send(&packet(0xA2, &body(version, id, &[b"a"], None)));
            assert_eq!(client.read().unwrap().1[..2], bytes);
            client.ping();
        }
    }
}

/// Packets may come in any pieces, and many at once (3.1.1 §4.2, 5 §4.2: an ordered stream of bytes).
#[test]
fn packets_are_read_however_they_are_cut() {
    let hub = Hub::start();
    for version in [4, 5] {
        let mut client = hub.session(version, "all");
        let mut publish = vec![];
        text(&mut publish, b"a");
        publish.extend([0, 5]);
        publish.extend((version == 5).then_some(0));
        let stream = [packet(0x32, &publish), vec![0xC0, 0]].concat().repeat(3);
        stream.iter().for_each(|byte| client.send(&[*byte]));
        client.send(&stream);
        for _ in 0..6 {
            assert_eq!(client.read(), Some((0x40, vec![0, 5])));
            assert_eq!(client.read(), Some((0xD0, vec![])));
        }
    }
}
