//! Packets that break the rules, in plain and in TLS, in both versions: each is answered or cut by its rule, no thread
//! panics, and a session beside them notices nothing.

use std::{
    io::{Read, Write},
    net::Shutdown,
    sync::{
        Arc, Once,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use fleet_broker::{Broker, Link, Reason};

use crate::{
    pki::{ByCertificate, Pki, Secure, config, dial, node_uri},
    receive, until,
    wire::{Client, Hello, packet, publish, text},
};

/// Panics of the gate's threads since the start.
pub(crate) static PANICS: AtomicUsize = AtomicUsize::new(0);
const ID: &str = "edge-1";
const EVENT: &str = "fleet/v1/edge-1/up/event";

/// A plane with a session that must not notice anything.
struct Site {
    pki: Pki,
    broker: Broker,
    link: Link,
    witness: Client<Secure>,
    /// So many sessions of their own had the cases.
    cases: u32,
}

/// What has to come of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// It goes on: a PINGREQ behind it is answered.
    Goes,
    /// The end: in MQTT 5 with one of these codes, in 3.1.1 without a word.
    Ends(&'static [u8]),
    /// The end without a word in both.
    Mute,
}

const MALFORMED: Due = Due::Ends(&[0x81]);
const PROTOCOL: Due = Due::Ends(&[0x82]);
const EITHER: Due = Due::Ends(&[0x81, 0x82]);
const TOO_LARGE: Due = Due::Ends(&[0x95]);

impl Site {
    fn new() -> Self {
        count_panics();
        let pki = Pki::new();
        let (broker, link) = Broker::start(config(pki.keys()), Arc::new(ByCertificate)).unwrap();
        let addr = broker.mqtts_addr().unwrap();
        let stream = dial(addr, &pki.client(Some(&node_uri("witness"))));
        let witness = Client { stream }.open(&Hello::new(5, "witness"));
        Self { pki, broker, link, witness, cases: 0 }
    }

    fn dial(&self) -> Client<Secure> {
        Client { stream: dial(self.broker.mqtts_addr().unwrap(), &self.pki.client(Some(&node_uri(ID)))) }
    }

    fn open(&mut self, version: u8) -> Client<Secure> {
        self.cases += 1;
        self.dial().open(&Hello::new(version, ID))
    }

    /// One case in a session of its own.
    #[track_caller]
    fn case(&mut self, version: u8, what: &str, bytes: &[u8], due: Due) {
        let mut client = self.open(version);
        // The gate may have ended it before all was sent.
        let _ = client.stream.write_all(bytes).and_then(|()| client.stream.write_all(&[0xC0, 0]));
        let _ = client.stream.flush();
        let mut answers = vec![];
        while let Some(answer) = client.read() {
            let done = answer.0 == 0xD0;
            answers.push(answer);
            if done {
                break;
            }
        }
        let last = answers.last().map(|(first, body)| (*first, &body[..]));
        let right = match due {
            Due::Goes => last == Some((0xD0, &[])),
            Due::Ends(codes) if version == 5 => {
                matches!(last, Some((0xE0, [code])) if codes.contains(code))
            }
            Due::Ends(_) | Due::Mute => last.is_none_or(|(first, _)| first != 0xD0 && first != 0xE0),
        };
        assert!(right, "MQTT {version}, {what}: {due:?}, and came {answers:x?}");
        drop(client);
        until("the session is over", || self.broker.stats().sessions.get() == 1);
    }

    /// Nobody else noticed, and nothing panicked.
    #[track_caller]
    fn sound(mut self) {
        self.witness.say(5, "fleet/v1/witness/up/event", b"still here");
        while !receive(&mut self.link, 1).iter().any(|message| message.payload == b"still here"[..]) {}
        let stats = self.broker.stats();
        assert_eq!(stats.sessions_opened.get(), u64::from(self.cases) + 1);
        assert_eq!((stats.router_rebuilds.get(), PANICS.load(SeqCst)), (0, 0));
        self.broker.shutdown();
        assert_eq!(PANICS.load(SeqCst), 0);
    }
}

/// Counts panics from now on.
pub(crate) fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = thread::current();
            // Tests that fail panic in threads of their own.
            if !thread.name().is_some_and(|name| name.contains("::")) {
                PANICS.fetch_add(1, SeqCst);
            }
            before(panic);
        }));
    });
}

/// A body of the version: `v5` is what stands there in MQTT 5 only.
fn body(version: u8, head: &[u8], v5: &[u8], tail: &[u8]) -> Vec<u8> {
    [head, if version == 5 { v5 } else { &[] }, tail].concat()
}

fn filters(version: u8, filter: &str, options: Option<u8>) -> Vec<u8> {
    let mut tail = vec![];
    text(&mut tail, filter.as_bytes());
    tail.extend(options);
    body(version, &[0, 1], &[0], &tail)
}

/// A packet of every type that a client may send, sound.
fn sound_packets(version: u8) -> Vec<(&'static str, u8, Vec<u8>)> {
    let hello = Hello { will: true, login: Some(("user", "password")), ..Hello::new(version, ID) }.bytes();
    let own = "fleet/v1/edge-1/down/#";
    vec![
        ("CONNECT", 0x10, hello[2..].to_vec()),
        ("PUBLISH", 0x32, publish(version, 0x32, EVENT, 1, b"payload")[2..].to_vec()),
        ("PUBACK", 0x40, vec![0, 1]),
        ("SUBSCRIBE", 0x82, filters(version, own, Some(1))),
        ("UNSUBSCRIBE", 0xA2, filters(version, own, None)),
        ("PINGREQ", 0xC0, vec![]),
        ("DISCONNECT", 0xE0, if version == 5 { vec![0, 0] } else { vec![] }),
    ]
}

#[test]
fn streams_that_end_anywhere_in_a_packet_end_the_session_and_no_more() {
    let mut site = Site::new();
    for version in [4, 5] {
        for (name, first, body) in sound_packets(version) {
            let bytes = packet(first, &body);
            for cut in 0..bytes.len() {
                let mut client = if name == "CONNECT" { site.dial() } else { site.open(version) };
                client.send(&bytes[..cut]);
                client.stream.conn.send_close_notify();
                client.stream.flush().unwrap();
                client.stream.sock.shutdown(Shutdown::Write).unwrap();
                assert_eq!(client.read(), None, "{name} cut at {cut}");
            }
        }
    }
    until("all sessions are over", || site.broker.stats().sessions.get() == 1);
    site.sound();
}

#[test]
fn packets_whose_body_is_too_short_are_refused_at_every_length() {
    let mut site = Site::new();
    for version in [4, 5] {
        for (name, first, body) in sound_packets(version) {
            for cut in 0..body.len() {
                let bytes = packet(first, &body[..cut]);
                let due = match name {
                    // The payload is what is left; in MQTT 5 the properties' length is before it.
                    "PUBLISH" if cut >= body.len() - b"payload".len() => Due::Goes,
                    // A reason and properties may be left out (MQTT 5 §3.14.2).
                    "DISCONNECT" => Due::Mute,
                    "CONNECT" => PROTOCOL,
                    _ => EITHER,
                };
                site.case(version, &format!("{name} of {cut} bytes"), &bytes, due);
            }
            if name != "CONNECT" {
                continue;
            }
            for cut in 0..body.len() {
                let mut client = site.dial();
                client.send(&packet(first, &body[..cut]));
                match client.read() {
                    None => {}
                    Some((first, answer)) => {
                        assert!(version == 5 && first == 0x20, "{answer:x?}");
                        assert!(matches!(answer[1], 0x81 | 0x82), "{answer:x?}");
                        assert_eq!(client.read(), None);
                    }
                }
            }
        }
    }
    site.sound();
}

#[test]
fn lengths_that_lie_are_cut_at_their_header() {
    let mut site = Site::new();
    for first in [0x10_u8, 0x30, 0x32, 0x40, 0x82, 0xA2, 0xC0, 0xE0] {
        for version in [4, 5] {
            let claim = [first, 0xFF, 0xFF, 0xFF, 0x7F];
            site.case(version, "256 MB", &claim, TOO_LARGE);
            site.case(version, "just too large", &[first, 0xFE, 0xFF, 0x0F], TOO_LARGE);
            site.case(version, "five bytes of length", &[first, 0x80, 0x80, 0x80, 0x80, 0x01], MALFORMED);
        }
        let mut client = site.dial();
        client.send(&[first, 0xFF, 0xFF, 0xFF, 0x7F]);
        assert_eq!(client.read(), None);
        let mut client = site.dial();
        client.send(&[first, 0x80, 0x80, 0x80, 0x80, 0x01]);
        assert_eq!(client.read(), None);
    }
    assert!(site.broker.stats().reason(Reason::TooLarge) >= 32);
    site.sound();
}

#[test]
fn every_packet_type_in_every_state() {
    let mut site = Site::new();
    for kind in 0_u8..16 {
        for flags in 0..16 {
            let first = kind << 4 | flags;
            let mut before = site.dial();
            before.send(&[first, 0]);
            if kind != 1 {
                assert_eq!(before.read(), None, "{first:x} before CONNECT");
            } else {
                // An empty CONNECT tells no version that could be answered in.
                assert_eq!(before.read(), None, "{first:x}");
            }
        }
    }
    for version in [4, 5] {
        for kind in 0_u8..16 {
            for flags in 0..16 {
                let first = kind << 4 | flags;
                let wants = match kind {
                    6 | 8 | 10 => 2,
                    _ => 0,
                };
                let due = match kind {
                    // Type 15 is AUTH in MQTT 5, which is not offered.
                    0 => MALFORMED,
                    3 => EITHER,
                    _ if flags != wants => MALFORMED,
                    12 => Due::Goes,
                    14 => Due::Mute,
                    15 if version == 4 => Due::Mute,
                    _ => EITHER,
                };
                site.case(version, &format!("an empty packet {first:x}"), &[first, 0], due);
            }
        }
        // What only a server sends, and the parts of QoS 2.
        for (first, body) in [
            (0x20_u8, vec![0, 0]),
            (0x50, vec![0, 1]),
            (0x62, vec![0, 1]),
            (0x70, vec![0, 1]),
            (0x90, vec![0, 1, 0]),
            (0xB0, vec![0, 1]),
            (0xD0, vec![]),
        ] {
            site.case(version, &format!("packet {first:x}"), &packet(first, &body), PROTOCOL);
        }
    }
    site.sound();
}

#[test]
fn fields_that_are_never_right_end_the_session() {
    let mut site = Site::new();
    for version in [4, 5] {
        let again = Hello::new(version, ID).bytes();
        site.case(version, "a second CONNECT", &again, PROTOCOL);
        site.case(version, "QoS 3", &publish(version, 0x36, EVENT, 1, b"x"), MALFORMED);
        site.case(version, "DUP with QoS 0", &publish(version, 0x38, EVENT, 0, b"x"), EITHER);
        site.case(version, "QoS 2", &publish(version, 0x34, EVENT, 1, b"x"), Due::Ends(&[0x9B]));
        site.case(version, "retain", &publish(version, 0x31, EVENT, 0, b"x"), Due::Ends(&[0x9A]));
        site.case(version, "packet id 0", &publish(version, 0x32, EVENT, 0, b"x"), EITHER);
        let id_0 = |bytes: Vec<u8>| [&[0, 0], &bytes[2..]].concat();
        let own = "fleet/v1/edge-1/down/#";
        let subscribe = packet(0x82, &id_0(filters(version, own, Some(0))));
        site.case(version, "SUBSCRIBE with id 0", &subscribe, EITHER);
        let unsubscribe = packet(0xA2, &id_0(filters(version, own, None)));
        site.case(version, "UNSUBSCRIBE with id 0", &unsubscribe, EITHER);
        site.case(version, "PUBACK with id 0", &packet(0x40, &[0, 0]), EITHER);
        site.case(
            version,
            "SUBSCRIBE of nothing",
            &packet(0x82, &body(version, &[0, 1], &[0], &[])),
            PROTOCOL,
        );
        site.case(
            version,
            "UNSUBSCRIBE of nothing",
            &packet(0xA2, &body(version, &[0, 1], &[0], &[])),
            PROTOCOL,
        );
        for options in [3, 0x40, 0x80, 0xC3] {
            let bytes = packet(0x82, &filters(version, own, Some(options)));
            site.case(version, &format!("options {options:x}"), &bytes, EITHER);
        }
        for (what, bad) in [
            ("NUL", &b"fleet/v1/edge-1/up/\0"[..]),
            ("no UTF-8", b"fleet/v1/edge-1/up/\xFF"),
            ("a surrogate", b"fleet/\xED\xA0\x80"),
        ] {
            let mut name = vec![];
            text(&mut name, bad);
            let tail = [&name[..], b"x"].concat();
            let topic = if version == 5 { [&name[..], &[0], b"x"].concat() } else { tail };
            site.case(version, &format!("{what} in a topic"), &packet(0x30, &topic), MALFORMED);
            let filter = body(version, &[0, 1], &[0], &[&name[..], &[0]].concat());
            site.case(version, &format!("{what} in a filter"), &packet(0x82, &filter), MALFORMED);
        }
    }
    site.sound();
}

#[test]
fn acknowledgements_out_of_order_twice_or_of_nothing_are_taken_as_they_come() {
    let mut site = Site::new();
    for version in [4, 5] {
        for ids in [&[9_u16, 8, 7][..], &[1, 1, 1], &[65_535]] {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| packet(0x40, &id.to_be_bytes())).collect();
            site.case(version, "PUBACKs of nothing", &bytes, Due::Goes);
        }
    }
    site.sound();
}

#[test]
fn properties_out_of_place_are_refused() {
    let mut site = Site::new();
    let publish = |properties: &[u8]| {
        let mut body = vec![];
        text(&mut body, EVENT.as_bytes());
        body.push(u8::try_from(properties.len()).unwrap());
        body.extend(properties);
        body.push(b'x');
        packet(0x30, &body)
    };
    let sound: [&[u8]; 4] =
        [&[], &[0x01, 1], &[0x26, 0, 1, b'a', 0, 1, b'b', 0x26, 0, 1, b'a', 0, 1, b'b'], &[0x02, 0, 0, 0, 9]];
    for properties in sound {
        site.case(5, &format!("{properties:x?}"), &publish(properties), Due::Goes);
    }
    let bad: [(&str, &[u8]); 8] = [
        ("session expiry", &[0x11, 0, 0, 0, 1]),
        ("receive maximum", &[0x21, 0, 1]),
        ("unknown", &[0x7E, 0]),
        ("a format twice", &[0x01, 0, 0x01, 0]),
        ("a format of 2", &[0x01, 2]),
        ("a subscription identifier of a client", &[0x0B, 1]),
        ("a value that is missing", &[0x02, 0, 0]),
        ("a response topic that is no UTF-8", &[0x08, 0, 1, 0xFF]),
    ];
    for (what, properties) in bad {
        site.case(5, what, &publish(properties), EITHER);
    }
    site.case(5, "properties longer than the packet", &packet(0x30, &[0, 1, b'a', 0x7F, 1]), MALFORMED);
    site.case(
        5,
        "a length of properties of five bytes",
        &packet(0x30, &[0, 1, b'a', 0x80, 0x80, 0x80, 0x80, 1]),
        MALFORMED,
    );
    site.case(5, "properties in a SUBSCRIBE", &packet(0x82, &[0, 1, 2, 0x01, 1, 0, 1, b'a', 0]), EITHER);
    // The same bytes are a payload in 3.1.1.
    site.case(4, "no properties in 3.1.1", &publish(&[0x11, 0, 0, 0, 1]), Due::Goes);
    for bad in [
        &[0x21_u8, 0, 0][..],
        &[0x27, 0, 0, 0, 0],
        &[0x01, 1],
        &[0x11, 0],
        &[0x17, 2],
        &[0x21, 0, 1, 0x21, 0, 1],
    ] {
        let mut body = b"\0\x04MQTT\x05\x02\0\x3C".to_vec();
        body.push(u8::try_from(bad.len()).unwrap());
        body.extend(bad);
        text(&mut body, ID.as_bytes());
        let mut client = site.dial();
        client.send(&packet(0x10, &body));
        let (first, answer) = client.read().expect("a CONNACK");
        assert!(first == 0x20 && matches!(answer[1], 0x81 | 0x82), "{bad:x?}: {answer:x?}");
        assert_eq!(client.read(), None);
    }
    site.sound();
}

#[test]
fn whatever_bytes_come_in_plain_nothing_panics() {
    let mut site = Site::new();
    // A small generator of its own, so that a run can be repeated.
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    for n in 0..400_usize {
        let hello =
            Hello { login: Some(("grafana", "tool")), ..Hello::new(if n % 2 == 0 { 4 } else { 5 }, "g") }
                .bytes();
        let mut client = Client::plain(site.broker.mqtt_addr());
        let mut bytes = if n % 4 < 2 { hello.clone() } else { vec![] };
        let noise: Vec<u8> = (0..n % 40).flat_map(|_| next()).collect();
        if n % 3 == 0 {
            // A sound packet with some bytes changed.
            let at = usize::from(noise.first().copied().unwrap_or(0)) % hello.len();
            bytes = hello;
            bytes[at] ^= noise.get(1).copied().unwrap_or(1) | 1;
        }
        bytes.extend(noise);
        let _ = client.stream.write_all(&bytes);
        let _ = client.stream.shutdown(Shutdown::Write);
        drop(client.stream.read_to_end(&mut vec![]));
    }
    until("all are gone", || site.broker.stats().connections.get() == 1);
    site.cases = 0;
    let opened = site.broker.stats().sessions_opened.get();
    assert_eq!(opened, 1, "tools are counted apart");
    site.sound();
}
