//! CONNECT, CONNACK, keepalive, takeover, wills and DISCONNECT.

use crate::{
    client::{Client, Hello, Will, packet},
    hub::Hub,
};

/// The properties of a CONNACK of MQTT 5, without their length.
#[track_caller]
fn welcome(client: &mut Client, hello: &Hello<'_>) -> Vec<u8> {
    let (first, body) = client.hello(hello).expect("CONNACK");
    assert_eq!((first, &body[..2]), (0x20, &[0, 0][..]));
    assert_eq!(usize::from(body[2]), body.len() - 3);
    body[3..].to_vec()
}

fn has(properties: &[u8], property: &[u8]) -> bool {
    properties.windows(property.len()).any(|window| window == property)
}

/// 3.1.1 and 5: [MQTT-3.1.0-1]
#[test]
fn the_first_packet_has_to_be_connect() {
    let hub = Hub::start();
    for bytes in [&[0xC0, 0][..], &[0x30, 3, 0, 1, b'a'], &[0xE0, 0], &[0x82, 6, 0, 1, 0, 1, b'a', 0]] {
        let mut client = hub.connect(4);
        client.send(bytes);
        assert_eq!(client.read(), None, "5: [MQTT-3.14.0-1], no DISCONNECT before a CONNACK");
    }
}

/// 3.1.1: [MQTT-3.1.2-2] [MQTT-3.1.2-3] [MQTT-3.1.2-13] [MQTT-3.1.2-14] [MQTT-3.1.2-15] [MQTT-3.1.2-22] [MQTT-3.1.3-3]
/// [MQTT-3.1.3-4] [MQTT-3.1.4-1]; 5: [MQTT-3.1.2-1] [MQTT-3.1.2-2] [MQTT-3.1.2-3] [MQTT-3.1.2-11] [MQTT-3.1.2-12]
/// [MQTT-3.1.2-13] [MQTT-3.1.3-3] [MQTT-3.1.3-4] [MQTT-3.1.4-1] [MQTT-3.2.2-6] [MQTT-3.2.2-7]
#[test]
fn a_connect_that_is_not_sound_is_refused() {
    let hub = Hub::start();
    let connect = |version: u8, flags: u8, rest: &[u8]| {
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', version, flags, 0, 60];
        body.extend((version == 5).then_some(0));
        body.extend(rest);
        packet(0x10, &body)
    };
    let (id, login) = (&b"\0\x03all"[..], &b"\0\x03all\0\x04tool"[..]);
    let sound = [id, login].concat();
    for (what, flags, rest, code) in [
        ("the reserved flag", 0xC3, &sound[..], 0x81),
        ("will QoS without a will", 0xCA, &sound, 0x81),
        ("will retain without a will", 0xE2, &sound, 0x81),
        ("will QoS 3", 0xDE, &[id, b"\0\x01a\0\x01w", login].concat(), 0x81),
        ("no client id", 0xC2, b"", 0x81),
        ("a client id that is no UTF-8", 0xC2, &[b"\0\x01\xFF", login].concat(), 0x81),
        ("a user name that is missing", 0xC2, id, 0x81),
        ("a will that is missing", 0xC6, &[id, b"\0\x01a"].concat(), 0x81),
        ("more than there should be", 0xC2, &[&sound, &b"x"[..]].concat(), 0x81),
    ] {
        for version in [4, 5] {
            let mut client = hub.connect(version);
            client.send(&connect(version, flags, rest));
            if version == 5 {
                assert_eq!(client.read(), Some((0x20, vec![0, code, 0])), "{what}");
            }
            assert_eq!(client.read(), None, "{what} in {version}");
        }
    }
    let mut lone_password = hub.connect(4);
    lone_password.send(&connect(4, 0x42, &[id, b"\0\x04tool"].concat()));
    assert_eq!(lone_password.read(), None, "3.1.1: [MQTT-3.1.2-22]");
    for (name, level, answer) in
        [(&b"MQTT"[..], 3, true), (b"MQTT", 6, true), (b"MQIsdp", 3, true), (b"HTTP", 4, false)]
    {
        let mut body = vec![0, u8::try_from(name.len()).unwrap()];
        body.extend(name);
        body.extend([level, 2, 0, 60, 0, 1, b'a']);
        let mut client = hub.connect(4);
        client.send(&packet(0x10, &body));
        if answer {
            assert_eq!(client.read(), Some((0x20, vec![0, 1])));
        }
        assert_eq!(client.read(), None);
    }
}

/// §3.1.2.11: [MQTT-3.1.4-1]; extended authentication is not offered: [MQTT-4.12.0-1]
#[test]
fn properties_of_a_connect_that_are_wrong_or_not_offered_are_refused() {
    let hub = Hub::start();
    for (properties, code) in [
        (&[0x21, 0, 0][..], 0x82),
        (&[0x27, 0, 0, 0, 0], 0x82),
        (&[0x17, 2], 0x82),
        (&[0x19, 2], 0x82),
        (&[0x21, 0, 9, 0x21, 0, 9], 0x82),
        (&[0x16, 0, 1, 7], 0x82),
        (&[0x24, 1], 0x81),
        (&[0x15, 0, 1, b'm'], 0x8C),
        // Smaller than what has to be answered: [MQTT-3.1.2-24]
        (&[0x27, 0, 0, 0, 20], 0x95),
    ] {
        let mut client = hub.connect(5);
        let answer = client.hello(&Hello { properties, ..Hello::new("all") });
        assert_eq!(answer, Some((0x20, vec![0, code, 0])), "{properties:x?}");
        assert_eq!(client.read(), None);
    }
}

/// 3.1.1: [MQTT-3.1.3-5] [MQTT-3.1.3-6] [MQTT-3.1.3-8] [MQTT-3.1.4-4] [MQTT-3.2.0-1] [MQTT-3.2.2-1] [MQTT-3.2.2-4]
/// [MQTT-3.2.2-5]; 5: [MQTT-3.1.2-4] [MQTT-3.1.2-6] [MQTT-3.1.3-5] [MQTT-3.1.3-6] [MQTT-3.1.3-7] [MQTT-3.1.4-5]
/// [MQTT-3.2.0-1] [MQTT-3.2.0-2] [MQTT-3.2.2-1] [MQTT-3.2.2-2] [MQTT-3.2.2-3] [MQTT-3.2.2-9] [MQTT-3.2.2-16]
/// [MQTT-3.2.2-21] [MQTT-4.12.0-6]
#[test]
fn a_connack_says_what_was_agreed_on() {
    let hub = Hub::start();
    let every = b"0123456789abcdefghijklmABCDEFGHIJKLMNOPQRSTUVWXYZnopqrstuvwxyz";
    for client_id in every.chunks(23) {
        let mut client = hub.connect(4);
        let answer = client.hello(&Hello { client_id, ..Hello::new("all") });
        assert_eq!(answer, Some((0x20, vec![0, 0])));
        client.ping();
    }
    let mut assigned = vec![];
    for _ in 0..2 {
        let mut client = hub.connect(5);
        let properties = welcome(&mut client, &Hello { client_id: b"", ..Hello::new("all") });
        let at = properties.windows(3).position(|window| window == [0x12, 0, 6]).expect("a client id");
        assigned.push(properties[at + 3..at + 9].to_vec());
        assert!(hub.connect(4).hello(&Hello { client_id: b"", ..Hello::new("all") }).unwrap().1 == [0, 0]);
    }
    assert_ne!(assigned[0], assigned[1]);
    // What is not offered is said: kept sessions, QoS 2, aliases, shared subscriptions.
    let kept: &[u8] = &[0x11, 0, 0, 0x0E, 0x10];
    let properties =
        welcome(&mut hub.connect(5), &Hello { clean: false, properties: kept, ..Hello::new("all") });
    for property in [&[0x11, 0, 0, 0, 0][..], &[0x24, 1], &[0x22, 0, 0], &[0x2A, 0], &[0x27, 0, 4, 0, 0]] {
        assert!(has(&properties, property), "{property:x?} in {properties:x?}");
    }
    assert!(!properties.contains(&0x15) && !has(&properties, &[0x13]));
    let properties = welcome(&mut hub.connect(5), &Hello { keepalive: 0, ..Hello::new("all") });
    assert!(has(&properties, &[0x13, 0x0E, 0x10]), "an hour, for who asks for no keepalive");
}

/// 3.1.1: [MQTT-3.1.2-4]; MQTT 5 has a word for it, 3.1.1 only a refusal.
#[test]
fn a_session_that_is_to_be_kept_is_refused_in_3_1_1() {
    let hub = Hub::start();
    let mut client = hub.connect(4);
    assert_eq!(client.hello(&Hello { clean: false, ..Hello::new("all") }), Some((0x20, vec![0, 5])));
    assert_eq!(client.read(), None, "[MQTT-3.2.2-5]");
    let mut nameless = hub.connect(4);
    let hello = Hello { clean: false, client_id: b"", ..Hello::new("all") };
    assert_eq!(nameless.hello(&hello), Some((0x20, vec![0, 2])), "[MQTT-3.1.3-8]");
    assert_eq!(nameless.read(), None);
}

/// 3.1.1: [MQTT-3.1.4-5]; 5: [MQTT-3.1.4-2] [MQTT-3.1.4-6]
#[test]
fn what_comes_behind_a_refused_connect_is_not_processed() {
    let hub = Hub::start();
    for version in [4, 5] {
        let mut client = hub.connect(version);
        let hello = Hello { password: "wrong", ..Hello::new("all") };
        let mut publish = b"\0\x06apps/a".to_vec();
        publish.extend((version == 5).then_some(0));
        client.send(&[hello.bytes(version), packet(0x30, &publish)].concat());
        assert_eq!(client.read().unwrap().1[1], if version == 5 { 0x86 } else { 4 });
        assert_eq!(client.read(), None);
        assert!(hub.said(None).is_empty());
    }
}

/// 3.1.1: [MQTT-3.1.4-2]; 5: [MQTT-3.1.4-3] [MQTT-4.13.2-1]
#[test]
fn a_client_id_that_connects_again_ends_the_session_before() {
    let hub = Hub::start();
    for version in [4, 5] {
        let mut first = hub.session(version, "all");
        let mut second = hub.session(version, "all");
        first.ends(0x8E);
        second.ping();
    }
}

/// 3.1.1: [MQTT-3.1.2-24]; 5: [MQTT-3.1.2-22] (one and a half keepalives), [MQTT-3.2.2-22]
#[test]
fn a_client_that_is_silent_for_one_and_a_half_keepalives_is_cut_off_and_its_will_said() {
    let hub = Hub::start();
    for version in [4, 5] {
        let will = Some(Will::new("apps/silent"));
        let mut client = hub.open(version, &Hello { keepalive: 1, will, ..Hello::new("all") });
        client.ends(0x8D);
        assert_eq!(hub.said(None), ["apps/silent"]);
    }
}

/// 3.1.1: [MQTT-3.1.2-8] [MQTT-3.1.2-10] [MQTT-3.1.2-12] [MQTT-3.14.4-3]; 5: [MQTT-3.1.2-7] [MQTT-3.1.2-8]
/// [MQTT-3.1.2-10] [MQTT-3.14.4-3], §3.14.2.1 (0x04)
#[test]
fn a_will_is_said_unless_the_client_says_goodbye() {
    let hub = Hub::start();
    for version in [4, 5] {
        let will = Some(Will { qos: 1, ..Will::new("apps/gone") });
        let hello = Hello { will, ..Hello::new("all") };
        let mut ear = hub.open(version, &Hello { client_id: b"ear", ..Hello::new("all") });
        assert_eq!(ear.subscribe(&[("apps/#", 1)]), [1]);
        let mut polite = hub.open(version, &hello);
        polite.send(&[0xE0, 0]);
        assert_eq!(polite.read(), None);
        assert!(hub.said(None).is_empty());
        drop(hub.open(version, &hello));
        let heard = ear.hear();
        assert_eq!((heard.first, &heard.topic[..], &heard.payload[..]), (0x32, "apps/gone", &b"will"[..]));
        ear.acknowledge(heard.id);
        // A protocol error ends a session like a lost connection does, and another session of the same client too.
        let mut wrong = hub.open(version, &hello);
        wrong.send(&[0x00, 0]);
        wrong.ends(0x81);
        let second = ear.hear();
        ear.acknowledge(second.id);
        let mut first = hub.open(version, &hello);
        let mut last = hub.open(version, &Hello { will: None, ..hello });
        first.ends(0x8E);
        let third = ear.hear();
        assert_eq!((second.topic, third.topic), ("apps/gone".to_owned(), "apps/gone".to_owned()));
        last.ping();
        if version == 5 {
            let mut client = hub.open(5, &Hello { client_id: b"other", ..hello });
            client.send(&[0xE0, 1, 4]);
            assert_eq!((ear.hear().topic, client.read()), ("apps/gone".to_owned(), None));
        }
        hub.said(None);
    }
}

/// 3.1.1: [MQTT-3.1.2-16] [MQTT-3.1.2-17]; 5: [MQTT-3.1.2-14] [MQTT-3.1.2-15] [MQTT-3.1.3-10], §3.1.3.2
#[test]
fn a_will_is_retained_if_it_asks_for_that_and_keeps_its_properties() {
    let hub = Hub::start();
    let properties = &[0x18, 0, 0, 0, 9, 0x26, 0, 1, b'a', 0, 1, b'b', 0x26, 0, 1, b'a', 0, 1, b'c'][..];
    let mut ear = hub.open(5, &Hello { client_id: b"ear", ..Hello::new("all") });
    for (topic, retain) in [("apps/kept", true), ("apps/said", false)] {
        let will = Some(Will { retain, properties, ..Will::new(topic) });
        drop(hub.open(5, &Hello { will, ..Hello::new("all") }));
        assert!((0..1_000).any(|_| !hub.said(None).is_empty()), "{topic} was never said");
    }
    assert_eq!(ear.subscribe(&[("apps/#", 0)]), [0]);
    let heard = ear.hear();
    assert_eq!((heard.first, &heard.topic[..]), (0x31, "apps/kept"));
    assert_eq!(
        heard.properties,
        properties[5..],
        "without the delay, which a session that ends does not wait for"
    );
    ear.ping();
    hub.open(5, &Hello::new("all")).say(0x33, "apps/kept", b"");
}

/// 3.1.1: [MQTT-3.14.4-1] (the other end); 5: §3.14.2.2.2
#[test]
fn a_disconnect_cannot_ask_for_what_the_connect_did_not() {
    let hub = Hub::start();
    let keeps = [0xE0, 7, 0, 5, 0x11, 0, 0, 0, 9];
    let mut client = hub.session(5, "all");
    client.send(&keeps);
    client.ends(0x82);
    let mut asked = hub.open(5, &Hello { properties: &[0x11, 0, 0, 0, 9], ..Hello::new("all") });
    asked.send(&keeps);
    assert_eq!(asked.read(), None);
}

/// The hub's own end: MQTT 5 §4.13, [MQTT-3.14.2-2]
#[test]
fn a_hub_that_stops_says_so() {
    let hub = Hub::start();
    let (mut five, mut four) = (hub.session(5, "all"), hub.session(4, "reader"));
    let closing = std::thread::spawn(move || drop(hub));
    five.ends(0x8B);
    four.ends(0x8B);
    drop((five, four));
    closing.join().unwrap();
}
