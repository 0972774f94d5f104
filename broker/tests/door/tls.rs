//! MQTT over TLS: identities, handshakes that fail or do not end, keys that change, and the end of a session.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr},
    sync::Arc,
    time::Duration,
};

use fleet_broker::{Broker, Link, Reason};
use fleet_schemas::{
    NodeId, Topic,
    topic::{ALL_UP, Down},
};
use rcgen::SanType;
use rustls::{ClientConfig, ClientConnection};

use crate::{
    pki::{ByCertificate, Held, Pki, Secure, config, dial, node_uri, provider},
    receive, until,
    wire::{Client, Hello, packet, publish, text},
};

const EVENT: &str = "fleet/v1/edge-1/up/event";

struct Site {
    pki: Pki,
    keys: Arc<Held>,
    broker: Broker,
    link: Link,
}

fn site() -> Site {
    let pki = Pki::new();
    let keys = pki.keys();
    let (broker, link) = Broker::start(config(keys.clone()), Arc::new(ByCertificate)).unwrap();
    Site { pki, keys, broker, link }
}

impl Site {
    fn addr(&self) -> SocketAddr {
        self.broker.mqtts_addr().unwrap()
    }

    /// A client with the certificate of a node.
    fn node(&self, id: &str) -> Client<Secure> {
        self.with(&self.pki.client(Some(&node_uri(id))))
    }

    fn with(&self, config: &Arc<ClientConfig>) -> Client<Secure> {
        Client { stream: dial(self.addr(), config) }
    }

    fn reason(&self, reason: Reason) -> u64 {
        self.broker.stats().reason(reason)
    }
}

#[test]
fn a_node_is_who_its_certificate_names() {
    let mut site = site();
    for version in [4, 5] {
        let mut client = site.node("edge-1").open(&Hello::new(version, "edge-1"));
        client.say(version, EVENT, b"payload");
        let message = receive(&mut site.link, 1).remove(0);
        assert_eq!((message.topic.to_string().as_str(), &message.payload[..]), (EVENT, &b"payload"[..]));
        client.send(&[0xE0, 0]);
        assert_eq!(client.read(), None);
        let other = if version == 5 { 0x85 } else { 2 };
        site.node("edge-1").refused(&Hello::new(version, "edge-2"), other);
    }
    until("both are counted", || site.reason(Reason::ClientId) == 2);
    assert_eq!(site.broker.stats().sessions_opened.get(), 2);
}

#[test]
fn tls_1_2_is_as_good() {
    let mut site = site();
    let uri = SanType::URI(node_uri("edge-1").try_into().unwrap());
    let (chain, key) = site.pki.issue(uri, (2020, 2099));
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(site.pki.roots())
        .with_client_auth_cert(chain, key)
        .unwrap();
    let mut client = site.with(&Arc::new(config)).open(&Hello::new(4, "edge-1"));
    client.say(4, EVENT, &[1; 100_000]);
    assert_eq!(receive(&mut site.link, 1)[0].payload.len(), 100_000);
    client.send(&[0xE0, 0]);
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn without_a_certificate_a_password_is_needed_and_is_a_tool_s() {
    let mut site = site();
    let nameless = site.pki.client(None);
    site.with(&nameless).refused(&Hello::new(5, "edge-1"), 0x86);
    site.with(&nameless).refused(&Hello::new(4, "edge-1"), 4);
    let wrong = Hello { login: Some(("grafana", "wrong")), ..Hello::new(5, "g") };
    site.with(&nameless).refused(&wrong, 0x86);
    let mut tool =
        site.with(&nameless).open(&Hello { login: Some(("grafana", "tool")), ..Hello::new(4, "g") });
    let mut body = vec![0, 1];
    text(&mut body, ALL_UP.as_bytes());
    body.push(0);
    tool.send(&packet(0x82, &body));
    assert_eq!(tool.read(), Some((0x90, vec![0, 1, 0])));
    let mut node = site.node("edge-1").open(&Hello::new(5, "edge-1"));
    node.say(5, EVENT, &[7; 50_000]);
    receive(&mut site.link, 1);
    assert_eq!(tool.read(), Some((0x30, publish(4, 0x30, EVENT, 0, &[7; 50_000])[4..].to_vec())));
}

#[test]
fn what_is_told_to_a_node_reaches_it_whatever_its_size() {
    let site = site();
    let mut node = site.node("edge-1").open(&Hello::new(4, "edge-1"));
    let mut body = vec![0, 1];
    text(&mut body, b"fleet/v1/edge-1/down/#");
    body.push(1);
    node.send(&packet(0x82, &body));
    assert_eq!(node.read(), Some((0x90, vec![0, 1, 1])));
    let topic = Topic::Down(NodeId::parse("edge-1").unwrap(), Down::Command);
    for size in [0, 1, 16_384, 200_000] {
        assert_eq!(site.link.publisher().publish_many([(topic.clone(), vec![9; size].into())]), 1);
        let (first, body) = node.read().unwrap();
        assert_eq!((first, body[body.len() - size..].iter().all(|byte| *byte == 9)), (0x32, true));
        let at = 2 + topic.to_string().len();
        node.send(&packet(0x40, &body[at..at + 2]));
    }
}

#[test]
fn packets_cut_into_the_smallest_records_and_bytes_arrive() {
    let mut site = site();
    let mut config = ClientConfig::clone(&site.pki.client(Some(&node_uri("edge-1"))));
    config.max_fragment_size = Some(64);
    let mut node = site.with(&Arc::new(config)).open(&Hello::new(5, "edge-1"));
    node.say(5, EVENT, &[1; 10_000]);
    assert_eq!(receive(&mut site.link, 1)[0].payload.len(), 10_000);
    // The same bytes, one by one: each record waits until it is whole.
    node.stream.conn.writer().write_all(&publish(5, 0x32, EVENT, 9, &[2; 300])).unwrap();
    let mut sealed = vec![];
    while node.stream.conn.wants_write() {
        node.stream.conn.write_tls(&mut sealed).unwrap();
    }
    for byte in sealed {
        node.stream.sock.write_all(&[byte]).unwrap();
    }
    assert_eq!(node.read(), Some((0x40, vec![0, 9])));
    assert_eq!(receive(&mut site.link, 1)[0].payload.len(), 300);
}

#[test]
fn a_certificate_that_ended_reaches_the_directory_and_is_refused_with_a_code() {
    let site = site();
    let config = |years| site.pki.client_of(&site.pki, Some(&node_uri("expired-1")), years);
    for years in [(2000, 2002), (2098, 2101)] {
        site.with(&config(years)).refused(&Hello::new(5, "expired-1"), 0x87);
        site.with(&config(years)).refused(&Hello::new(4, "expired-1"), 5);
    }
    until("all are counted", || site.reason(Reason::Expired) == 4);
}

#[test]
fn a_certificate_of_a_foreign_ca_ends_the_handshake() {
    let site = site();
    let stranger = Pki::new();
    let config = site.pki.client_of(&stranger, Some(&node_uri("edge-1")), (2020, 2099));
    let mut client = site.with(&config);
    // In TLS 1.3 the client may write before the hub has looked.
    let error = client
        .stream
        .write_all(&Hello::new(5, "edge-1").bytes())
        .and_then(|()| client.stream.read_exact(&mut [0]))
        .unwrap_err();
    assert!(error.to_string().contains("received fatal alert"), "{error}");
    until("it is counted", || site.reason(Reason::TlsFailed) == 1);
    assert_eq!(site.broker.stats().sessions_opened.get(), 0);
    drop(site.node("edge-1").open(&Hello::new(5, "edge-1")));
}

#[test]
fn a_client_that_does_not_trust_the_hub_is_counted() {
    let site = site();
    let config = Pki::new().client(None);
    assert!(site.with(&config).stream.write_all(b"x").is_err());
    until("it is counted", || site.reason(Reason::TlsFailed) + site.reason(Reason::Lost) == 1);
}

#[test]
fn new_keys_are_for_new_connections_and_old_sessions_live_on() {
    let mut site = site();
    let mut old = site.node("edge-1").open(&Hello::new(5, "edge-1"));
    let next = Pki::new();
    *site.keys.0.lock().unwrap() = next.server();
    let mut new = site.with(&next.client(Some(&node_uri("edge-2")))).open(&Hello::new(5, "edge-2"));
    old.say(5, EVENT, b"old");
    new.say(5, "fleet/v1/edge-2/up/event", b"new");
    receive(&mut site.link, 2);
    assert!(site.node("edge-3").stream.write_all(b"x").is_err(), "the hub shows its new certificate");
    assert_eq!(site.broker.stats().sessions.get(), 2);
}

#[test]
fn handshakes_that_do_not_end_are_ended() {
    let site = site();
    let hello = first_flight(&site.pki.client(None));
    let mut silent = Client::plain(site.addr());
    let mut partial = Client::plain(site.addr());
    partial.send(&hello[..hello.len() / 2]);
    // Not the client's part of the end either.
    let mut halfway = Client::plain(site.addr());
    halfway.send(&hello);
    let mut drip = Client::plain(site.addr());
    drip.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut sent = 0;
    while sent < hello.len() - 1 {
        // The end of the connection shows in either.
        if drip.stream.write_all(&hello[sent..=sent]).is_err() {
            break;
        }
        sent += 1;
        match drip.stream.read(&mut [0; 64]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Ok(0) | Err(_) => break,
            Ok(_) => panic!("an answer to half a hello"),
        }
    }
    assert!(sent < hello.len() - 1, "it was let to drip to the end");
    for mut client in
        [silent.stream.try_clone().unwrap(), partial.stream.try_clone().unwrap(), halfway.stream]
    {
        let mut rest = vec![];
        // Closed or reset: it is over.
        drop(client.read_to_end(&mut rest));
    }
    assert_eq!((silent.read(), partial.read()), (None, None));
    until("all are counted", || site.reason(Reason::HandshakeLate) == 4);
    until("all are gone", || site.broker.stats().connections.get() == 0);
}

#[test]
fn after_the_handshake_connect_has_a_deadline_of_its_own() {
    let site = site();
    let mut client = site.node("edge-1");
    while client.stream.conn.is_handshaking() {
        client.stream.conn.complete_io(&mut client.stream.sock).unwrap();
    }
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0, "closed by TLS's own end");
    until("it is counted", || site.reason(Reason::ConnectLate) == 1);
    assert_eq!(site.reason(Reason::HandshakeLate), 0);
}

#[test]
fn other_bytes_at_the_tls_port_and_tls_at_the_plain_port_are_turned_away() {
    let site = site();
    for bytes in [
        &Hello::new(5, "edge-1").bytes()[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 600],
        &[0x16, 3, 1, 0xFF, 0xFF, 1],
    ] {
        let mut client = Client::plain(site.addr());
        client.send(bytes);
        let mut answer = vec![];
        drop(client.stream.read_to_end(&mut answer));
        // At most an alert (RFC 8446 §6).
        assert!(answer.is_empty() || answer[0] == 0x15, "{answer:x?}");
    }
    let mut client = Client::plain(site.broker.mqtt_addr());
    client.send(&first_flight(&site.pki.client(None)));
    assert_eq!(client.read(), None);
    until("all are counted", || (site.reason(Reason::TlsFailed), site.reason(Reason::Malformed)) == (4, 1));
}

#[test]
fn a_session_ends_with_tls_s_own_end_on_either_side() {
    let mut site = site();
    let hello = Hello { will: true, ..Hello::new(5, "edge-1") };
    let mut kicked = site.node("edge-1").open(&hello);
    site.broker.kick(&NodeId::parse("edge-1").unwrap(), "revoked");
    assert_eq!(kicked.read(), Some((0xE0, vec![0x98])));
    assert_eq!(kicked.stream.read(&mut [0]).unwrap(), 0, "not a cut cable");
    let will = |link: &mut Link| assert_eq!(&receive(link, 1)[0].payload[..], b"will");
    will(&mut site.link);
    let mut polite = site.node("edge-1").open(&hello);
    polite.stream.conn.send_close_notify();
    polite.stream.flush().unwrap();
    will(&mut site.link);
    let cut = site.node("edge-1").open(&hello);
    cut.stream.sock.shutdown(Shutdown::Write).unwrap();
    will(&mut site.link);
    let mut broken = site.node("edge-1").open(&hello);
    broken.stream.sock.write_all(&[0x17, 3, 3, 0, 40]).unwrap();
    broken.stream.sock.write_all(&[1; 40]).unwrap();
    will(&mut site.link);
    until("all are counted", || (site.reason(Reason::Lost), site.reason(Reason::TlsFailed)) == (3, 1));
}

#[test]
fn keepalive_counts_packets_and_no_other_bytes() {
    let site = site();
    let mut node = site.node("edge-1").open(&Hello { keepalive: 1, ..Hello::new(5, "edge-1") });
    node.stream.sock.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut updates = 0;
    let ended = loop {
        // A new key is traffic, and no packet of MQTT.
        node.stream.conn.refresh_traffic_keys().unwrap();
        updates += 1;
        if node.stream.flush().is_err() {
            break None;
        }
        let mut bytes = [0; 3];
        match node.stream.read(&mut bytes) {
            Ok(n) => break Some(bytes[..n].to_vec()),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
            }
        }
        assert!(updates < 20, "it lives by what is no packet");
    };
    assert_eq!(ended, Some(vec![0xE0, 1, 0x8D]));
    until("it is counted", || site.reason(Reason::KeepAlive) == 1);
}

#[test]
fn a_shutdown_says_goodbye_over_tls_too() {
    let site = site();
    let mut node = site.node("edge-1").open(&Hello::new(5, "edge-1"));
    let closing = std::thread::spawn(move || site.broker.shutdown());
    assert_eq!(node.read(), Some((0xE0, vec![0x8B])));
    assert_eq!(node.stream.read(&mut [0]).unwrap(), 0);
    drop(node);
    closing.join().unwrap();
}

/// What a client says first.
fn first_flight(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = fleet_schemas::enrol::HUB_NAME.try_into().unwrap();
    let mut connection = ClientConnection::new(config.clone(), name).unwrap();
    let mut bytes = vec![];
    connection.write_tls(&mut bytes).unwrap();
    assert!(bytes.len() > 100);
    bytes
}
