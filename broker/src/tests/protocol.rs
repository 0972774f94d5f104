//! What the gate answers to whom: CONNECT, refusals, and packets that break the rules, in both versions.

use super::*;
use crate::Reason;

#[test]
fn both_versions_connect_publish_subscribe_ping_and_disconnect() {
    let (broker, mut link) = plane();
    for version in [V4, V5] {
        let mut client = Client::open(broker.mqtt_addr(), &Hello::new(version, "edge-1"));
        client.send(&publish(version, 0x32, "fleet/v1/edge-1/up/event", 7, b"payload"));
        assert_eq!(client.read(), Some((0x40, vec![0, 7])));
        client.send(&subscribe(version, "fleet/v1/edge-1/down/#", 2));
        let granted = if version == V5 { vec![0, 9, 0, 1] } else { vec![0, 9, 1] };
        assert_eq!(client.read(), Some((0x90, granted)));
        client.send(&[0xC0, 0]);
        assert_eq!(client.read(), Some((0xD0, vec![])));
        client.send(&[0xE0, 0]);
        client.expect_end();
        let message = receive(&mut link, 1).remove(0);
        assert_eq!(message.topic.to_string(), "fleet/v1/edge-1/up/event");
        assert_eq!(&message.payload[..], b"payload");
    }
    assert_eq!(broker.stats().sessions_opened.get(), 2);
}

#[test]
fn connack_says_what_mqtt_5_is_not_offered() {
    let (broker, _link) = plane();
    let mut hello = Hello::new(V5, "edge-1");
    hello.keepalive = 0;
    let mut client = Client::hello(broker.mqtt_addr(), &hello);
    let (_, body) = client.read().unwrap();
    for property in [&[0x24, 1][..], &[0x25, 0], &[0x27, 0, 4, 0, 0], &[0x2A, 0], &[0x13, 0x0E, 0x10]] {
        assert!(body.windows(property.len()).any(|window| window == property), "{property:x?} in {body:x?}");
    }
}

#[test]
fn refusals_carry_the_code_of_their_version() {
    let (broker, _link) = plane();
    let case = |user, password, client_id, v4: u8, v5: u8, reason| {
        for (version, code) in [(V4, v4), (V5, v5)] {
            let before = broker.stats().reason(reason);
            let hello = Hello { user, password, client_id, ..Hello::new(version, user) };
            let mut client = Client::hello(broker.mqtt_addr(), &hello);
            let (first, body) = client.read().expect("a CONNACK");
            assert_eq!((first, body[1]), (0x20, code), "{user} {version:?}");
            client.expect_end();
            assert_eq!(broker.stats().reason(reason), before + 1);
        }
    };
    case("edge-1", "wrong", "edge-1", 4, 0x86, Reason::BadCredentials);
    case("edge-1", "", "edge-2", 2, 0x85, Reason::ClientId);
    case("edge-1", "", "", 2, 0x85, Reason::ClientId);
    case("banned", "", "banned", 5, 0x8A, Reason::Banned);
    case("later", "", "later", 3, 0x88, Reason::Unavailable);
    case("tool", "", "tool", 5, 0x87, Reason::NotAuthorized);
}

#[test]
fn wills_outside_the_prefix_retained_or_of_qos_2_are_refused() {
    let (broker, _link) = plane();
    let mine = "fleet/v1/edge-1/up/death";
    let wills =
        [("fleet/v1/edge-2/up/death", 0, 0x87), (mine, 0x10, 0x9B), (mine, 0x20, 0x9A), ("é", 0, 0x90)];
    for (topic, bits, code) in wills {
        for version in [V4, V5] {
            let hello = Hello { will: Some((topic, b"w", bits)), ..Hello::new(version, "edge-1") };
            let (_, body) = Client::hello(broker.mqtt_addr(), &hello).read().unwrap();
            assert_eq!(body[1], if version == V5 { code } else { 5 }, "{topic}");
        }
    }
}

#[test]
fn other_versions_and_other_protocols_are_turned_away() {
    let (broker, _link) = plane();
    let mut client = Client::silent(broker.mqtt_addr());
    client.send(&packet(0x10, b"\0\x06MQIsdp\x03\x02\0\x3C\0\x01a"));
    assert_eq!(client.read(), Some((0x20, vec![0, 1])));
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &packet(0x10, b"\0\x04HTTP\x04\x02\0\0\0\0"), &[0x10, 0]] {
        let mut client = Client::silent(broker.mqtt_addr());
        client.send(bytes);
        client.expect_end();
    }
}

#[test]
fn every_packet_before_connect_ends_the_connection_without_a_word() {
    let (broker, _link) = plane();
    for kind in 0_u8..16 {
        if kind == 1 {
            continue;
        }
        let flags = if matches!(kind, 6 | 8 | 10) { 2 } else { 0 };
        let mut client = Client::silent(broker.mqtt_addr());
        client.send(&[(kind << 4) | flags, 2, 0, 0]);
        client.expect_end();
    }
    assert_eq!(broker.stats().reason(Reason::ConnectFirst), 15);
}

/// Sends `bytes` in an MQTT 5 session and expects this DISCONNECT; in a 3.1.1 session only the end.
#[track_caller]
fn breaks(broker: &Broker, bytes: impl Fn(Version) -> Vec<u8>, code: u8) {
    let mut client = Client::open(broker.mqtt_addr(), &Hello::new(V5, "edge-1"));
    client.send(&bytes(V5));
    assert_eq!(client.read(), Some((0xE0, vec![code])));
    client.expect_end();
    let mut client = Client::open(broker.mqtt_addr(), &Hello::new(V4, "edge-1"));
    client.send(&bytes(V4));
    client.expect_end();
}

#[test]
fn what_breaks_the_protocol_ends_the_session_with_its_code() {
    let (broker, _link) = plane();
    let mine = "fleet/v1/edge-1/up/event";
    breaks(&broker, |version| publish(version, 0x34, mine, 1, b"x"), 0x9B);
    breaks(&broker, |version| publish(version, 0x31, mine, 0, b"x"), 0x9A);
    breaks(&broker, |version| publish(version, 0x36, mine, 1, b"x"), 0x81);
    breaks(&broker, |version| publish(version, 0x32, mine, 0, b"x"), 0x82);
    breaks(&broker, |_| vec![0x30, 0xFF, 0xFF, 0xFF, 0x7F], 0x95);
    breaks(&broker, |_| vec![0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x01], 0x95);
    breaks(&broker, |version| Hello::new(version, "edge-1").bytes(), 0x82);
    breaks(&broker, |_| packet(0x62, &[0, 1]), 0x82);
    breaks(&broker, |version| packet(0x82, if version == V5 { &[0, 1, 0] } else { &[0, 1] }), 0x82);
    breaks(&broker, |_| vec![0x00, 0x00], 0x81);
    assert_eq!(broker.stats().reason(Reason::TooLarge), 4);
}

#[test]
fn aliases_and_subscription_identifiers_are_not_offered() {
    let (broker, _link) = plane();
    let mut body = vec![];
    text(&mut body, b"fleet/v1/edge-1/up/event");
    body.extend([3, 0x23, 0, 1]);
    let mut client = Client::open(broker.mqtt_addr(), &Hello::new(V5, "edge-1"));
    client.send(&packet(0x30, &body));
    assert_eq!(client.read(), Some((0xE0, vec![0x94])));
    let mut body = vec![0, 1, 2, 0x0B, 5];
    text(&mut body, b"fleet/v1/edge-1/down/#");
    body.push(0);
    let mut client = Client::open(broker.mqtt_addr(), &Hello::new(V5, "edge-1"));
    client.send(&packet(0x82, &body));
    assert_eq!(client.read(), Some((0xE0, vec![0xA1])));
}

#[test]
fn publishes_outside_the_prefix_are_refused_and_never_reach_the_hub() {
    let (broker, mut link) = plane();
    let foreign = "fleet/v1/edge-2/up/event";
    let mut client = Client::open(broker.mqtt_addr(), &Hello::new(V5, "edge-1"));
    client.send(&publish(V5, 0x32, foreign, 3, b"x"));
    assert_eq!(client.read(), Some((0x40, vec![0, 3, 0x87])));
    client.send(&publish(V5, 0x32, "é", 4, b"x"));
    assert_eq!(client.read(), Some((0x40, vec![0, 4, 0x90])));
    client.send(&publish(V5, 0x30, foreign, 0, b"x"));
    client.send(&publish(V5, 0x32, "fleet/v1/edge-1/up/event", 5, b"mine"));
    assert_eq!(client.read(), Some((0x40, vec![0, 5])));
    let mut old = Client::open(broker.mqtt_addr(), &Hello::new(V4, "edge-3"));
    old.send(&publish(V4, 0x32, foreign, 3, b"x"));
    old.expect_end();
    assert_eq!(&receive(&mut link, 1)[0].payload[..], b"mine");
    let mut rest = vec![];
    assert_eq!(link.recv(&mut rest, 10, Duration::from_millis(50)), Ok(0));
    assert_eq!(broker.stats().reason(Reason::PublishDenied), 4);
}

#[test]
fn subscriptions_outside_the_prefix_are_refused_one_by_one() {
    let (broker, _link) = plane();
    for (version, denied, shared) in [(V4, 0x80, 0x80), (V5, 0x87, 0x9E)] {
        let mut client = Client::open(broker.mqtt_addr(), &Hello::new(version, "edge-1"));
        let filters = [
            ("fleet/v1/edge-2/down/#", denied),
            ("fleet/v1/+/down/#", denied),
            ("#", denied),
            ("$share/g/fleet/v1/edge-1/down/#", shared),
            ("fleet/v1/edge-1/down/ack", 0),
        ];
        let mut body = vec![0, 9];
        body.extend((version == V5).then_some(0));
        for (filter, _) in filters {
            text(&mut body, filter.as_bytes());
            body.push(0);
        }
        client.send(&packet(0x82, &body));
        let (_, answer) = client.read().unwrap();
        let codes: Vec<u8> = filters.iter().map(|(_, code)| *code).collect();
        assert_eq!(answer[answer.len() - codes.len()..], codes);
    }
}

#[test]
fn a_silent_connection_ends_at_its_deadline_and_so_does_a_silent_session() {
    let (broker, _link) = plane();
    let mut silent = Client::silent(broker.mqtt_addr());
    let mut slow = Client::silent(broker.mqtt_addr());
    slow.send(&[0x10, 100, 0]);
    let mut session = Client::open(broker.mqtt_addr(), &Hello { keepalive: 1, ..Hello::new(V5, "edge-1") });
    assert_eq!(session.read(), Some((0xE0, vec![0x8D])));
    silent.expect_end();
    slow.expect_end();
    assert_eq!(broker.stats().reason(Reason::KeepAlive), 1);
    until("both are counted", || broker.stats().reason(Reason::ConnectLate) == 2);
}

#[test]
fn full_means_server_busy_and_too_many_connections_mean_the_end() {
    let (broker, _link) = plane_with(|config| {
        config.max_connections = 1;
        config.max_connections_per_address = 3;
    });
    let _open = Client::open(broker.mqtt_addr(), &Hello::new(V5, "edge-1"));
    let (_, body) = Client::hello(broker.mqtt_addr(), &Hello::new(V5, "edge-2")).read().unwrap();
    assert_eq!(body[1], 0x89);
    let _again = Client::open(broker.mqtt_addr(), &Hello::new(V5, "edge-1"));
    until("the refused and the old one are gone", || broker.stats().connections.get() == 1);
    let _others = [(); 2].map(|()| Client::silent(broker.mqtt_addr()));
    until("all are open", || broker.stats().connections.get() == 3);
    Client::silent(broker.mqtt_addr()).expect_end();
    assert_eq!(broker.stats().reason(Reason::AddressBusy), 1);
}

#[test]
fn a_public_address_is_refused_with_what_to_do() {
    let config = Config { mqtt: "0.0.0.0:0".parse().unwrap(), ..Config::default() };
    let error = Broker::start(config, Arc::new(Fleet)).err().unwrap();
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
}

#[test]
fn shutdown_says_goodbye_joins_its_threads_and_closes_the_link() {
    let (broker, mut link) = plane();
    let addr = broker.mqtt_addr();
    let hello = Hello { will: Some(("fleet/v1/edge-1/up/death", b"w", 0)), ..Hello::new(V5, "edge-1") };
    let mut client = Client::open(addr, &hello);
    client.send(&publish(V5, 0x32, "fleet/v1/edge-1/up/event", 1, b"last"));
    assert_eq!(client.read(), Some((0x40, vec![0, 1])));
    let closing = thread::spawn(move || broker.shutdown());
    assert_eq!(client.read(), Some((0xE0, vec![0x8B])));
    client.expect_end();
    drop(client);
    closing.join().unwrap();
    assert!(TcpStream::connect(addr).is_err());
    let mut messages = vec![];
    assert_eq!(link.recv(&mut messages, 10, Duration::from_secs(1)), Ok(1), "acknowledged, and no will");
    assert_eq!(link.recv(&mut messages, 10, Duration::from_secs(1)), Err(crate::LinkClosed));
}
