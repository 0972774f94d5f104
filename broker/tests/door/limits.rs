//! Limits against abuse: publish rates, slow readers, takeovers, connections, and sessions that have to end at once.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::Arc,
    thread,
    time::Duration,
};

use fleet_broker::{Broker, Config, Link, PublishLimit, Reason};
use fleet_schemas::{NodeId, Topic, topic::Down};

use crate::{
    now,
    pki::{ByCertificate, Pki, Secure, config, dial, node_uri},
    receive, until,
    wire::{Client, Hello, packet, publish, text},
};

struct Site {
    pki: Pki,
    broker: Broker,
    link: Link,
}

fn site(change: impl FnOnce(&mut Config)) -> Site {
    let pki = Pki::new();
    let mut config = config(pki.keys());
    change(&mut config);
    let (broker, link) = Broker::start(config, Arc::new(ByCertificate)).unwrap();
    Site { pki, broker, link }
}

impl Site {
    fn node(&self, id: &str) -> Client<Secure> {
        let addr = self.broker.mqtts_addr().unwrap();
        Client { stream: dial(addr, &self.pki.client(Some(&node_uri(id)))) }
    }

    fn reason(&self, reason: Reason) -> u64 {
        self.broker.stats().reason(reason)
    }
}

fn subscribe(client: &mut Client<Secure>, id: &str) {
    let mut body = vec![0, 1];
    text(&mut body, format!("fleet/v1/{id}/down/#").as_bytes());
    body.push(0);
    client.send(&packet(0x82, &body));
    assert_eq!(client.read(), Some((0x90, vec![0, 1, 0])));
}

fn node(id: &str) -> NodeId {
    NodeId::parse(id).unwrap()
}

const BURST: Duration = Duration::from_millis(100);

#[test]
fn a_node_above_its_message_rate_is_read_more_slowly_and_loses_nothing() {
    let limit = PublishLimit { messages_per_s: 200, bytes_per_s: 0, burst: BURST };
    let mut site = site(|config| config.publish_limit = limit);
    let mut greedy = site.node("edge-1").open(&Hello::new(4, "edge-1"));
    let mut modest = site.node("edge-2").open(&Hello::new(4, "edge-2"));
    let topic = "fleet/v1/edge-1/up/event";
    let started = now();
    for n in 0..4_u16 {
        greedy.send(&(0..50).flat_map(|m| publish(4, 0x32, topic, n * 50 + m + 1, b"x")).collect::<Vec<_>>());
        modest.say(4, "fleet/v1/edge-2/up/event", b"unhindered");
        for m in 0..50 {
            assert_eq!(greedy.read(), Some((0x40, (n * 50 + m + 1).to_be_bytes().to_vec())));
        }
    }
    // 20 at once, and 200 a second: 180 take 0.9 s, but for the last ones, which are answered before the wait.
    let took = now().duration_since(started);
    assert!(took > Duration::from_millis(500), "{took:?}");
    assert_eq!(receive(&mut site.link, 204).len(), 204);
    assert!(site.broker.stats().throttles.get() >= 3);
    until("nobody waits", || site.broker.stats().paused_sessions.get() == 0);
    assert_eq!(site.broker.stats().sessions.get(), 2);
}

#[test]
fn a_node_above_its_byte_rate_outlives_its_own_keepalive() {
    let limit = PublishLimit { messages_per_s: 0, bytes_per_s: 40_000, burst: BURST };
    let mut site = site(|config| config.publish_limit = limit);
    let mut greedy = site.node("edge-1").open(&Hello { keepalive: 1, ..Hello::new(5, "edge-1") });
    greedy.send(&publish(5, 0x30, "fleet/v1/edge-1/up/telemetry", 0, &[1; 100_000]));
    receive(&mut site.link, 1);
    // 2.5 seconds' worth: read as it comes, and then nothing for longer than one and a half keepalives.
    until("it waits", || site.broker.stats().paused_sessions.get() == 1);
    assert_eq!(greedy.read(), Some((0xD0, vec![])), "it is told that the hub lives");
    until("it is read again", || site.broker.stats().paused_sessions.get() == 0);
    greedy.send(&publish(5, 0x32, "fleet/v1/edge-1/up/event", 9, b"x"));
    let answer = std::iter::from_fn(|| greedy.read()).find(|(first, _)| *first != 0xD0);
    assert_eq!(answer, Some((0x40, vec![0, 9])));
    assert_eq!(site.reason(Reason::KeepAlive), 0);
}

#[test]
fn without_a_limit_nobody_waits() {
    let limit = PublishLimit { messages_per_s: 0, bytes_per_s: 0, burst: Duration::ZERO };
    let mut site = site(|config| config.publish_limit = limit);
    let mut greedy = site.node("edge-1").open(&Hello::new(4, "edge-1"));
    let chunk = publish(4, 0x30, "fleet/v1/edge-1/up/event", 0, &[1; 100]).repeat(1_000);
    let sender = thread::spawn(move || (0..20).for_each(|_| greedy.send(&chunk)));
    receive(&mut site.link, 20_000);
    sender.join().unwrap();
    assert_eq!(site.broker.stats().throttles.get(), 0);
}

#[test]
fn a_node_that_sends_and_never_reads_is_cut_with_its_reason() {
    let site = site(|_| ());
    let mut deaf = site.node("edge-1").open(&Hello { keepalive: 2, ..Hello::new(4, "edge-1") });
    subscribe(&mut deaf, "edge-1");
    let topic = Topic::Down(node("edge-1"), Down::Command);
    let publisher = site.link.publisher();
    let tell = || publisher.publish_many([(topic.clone(), vec![0; 100_000].into())]);
    // Until the sockets are full.
    until("its queue overflows", || {
        tell();
        site.broker.stats().down_overflow.get() > 0
    });
    // Its packets arrive, so that its keepalive is kept.
    deaf.stream.sock.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    until("it is cut", || {
        let alive = deaf.stream.write_all(&[0xC0, 0]).and_then(|()| deaf.stream.flush());
        alive.is_err() || site.broker.stats().sessions.get() == 0
    });
    until("the reason is counted", || site.reason(Reason::NodeSlow) + site.reason(Reason::KeepAlive) == 1);
    assert_eq!(site.reason(Reason::NodeSlow), 1);
    let others = site.node("edge-2").open(&Hello::new(4, "edge-2"));
    drop(others);
}

#[test]
fn kick_is_immediate_for_a_session_that_does_not_read() {
    let site = site(|_| ());
    let mut deaf = site.node("edge-1").open(&Hello { will: true, ..Hello::new(5, "edge-1") });
    let mut body = vec![0, 1, 0];
    text(&mut body, b"fleet/v1/edge-1/down/#");
    body.push(0);
    deaf.send(&packet(0x82, &body));
    assert!(deaf.read().is_some());
    let topic = Topic::Down(node("edge-1"), Down::Command);
    let publisher = site.link.publisher();
    until("its queue overflows", || {
        publisher.publish_many([(topic.clone(), vec![0; 100_000].into())]);
        site.broker.stats().down_overflow.get() > 0
    });
    kicked_at_once(&site, &mut deaf);
}

#[test]
fn kick_is_immediate_for_a_session_that_is_not_read() {
    let site = site(|config| config.budget_bytes = 64 * 1024);
    let mut paused = site.node("edge-1").open(&Hello { will: true, ..Hello::new(5, "edge-1") });
    // Nobody takes what it says.
    let big = publish(5, 0x30, "fleet/v1/edge-1/up/telemetry", 0, &[1; 100_000]);
    paused.send(&big);
    until("it is paused", || site.broker.stats().paused_sessions.get() == 1);
    kicked_at_once(&site, &mut paused);
}

#[test]
fn kick_is_immediate_for_a_session_above_its_rate() {
    let limit = PublishLimit { messages_per_s: 1, bytes_per_s: 0, burst: BURST };
    let site = site(|config| config.publish_limit = limit);
    let mut throttled = site.node("edge-1").open(&Hello { will: true, ..Hello::new(5, "edge-1") });
    throttled.send(&publish(5, 0x30, "fleet/v1/edge-1/up/event", 0, b"x").repeat(100));
    until("it is paused", || site.broker.stats().paused_sessions.get() == 1);
    kicked_at_once(&site, &mut throttled);
}

fn kicked_at_once(site: &Site, client: &mut Client<Secure>) {
    let before = now();
    site.broker.kick(&node("edge-1"), "revoked");
    until("it is gone", || site.broker.stats().sessions.get() == 0);
    let took = now().duration_since(before);
    // Milliseconds, but for a machine that does something else meanwhile.
    assert!(took < Duration::from_millis(300), "{took:?}");
    assert_eq!(site.reason(Reason::Kicked), 1);
    let mut rest = vec![];
    drop(client.stream.read_to_end(&mut rest));
    until("its socket is closed", || site.broker.stats().connections.get() == 0);
    let took = now().duration_since(before);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn two_instances_of_one_node_stop_cutting_each_other() {
    let mut site = site(|_| ());
    let hello = Hello::new(5, "edge-1");
    let mut holder = site.node("edge-1").open(&hello);
    for n in 0..5 {
        let next = site.node("edge-1").open(&hello);
        let mut former = std::mem::replace(&mut holder, next);
        assert_eq!(former.read(), Some((0xE0, vec![0x8E])), "takeover {n}");
    }
    for _ in 0..3 {
        site.node("edge-1").refused(&hello, 0x89);
        site.node("edge-1").refused(&Hello::new(4, "edge-1"), 3);
    }
    until("all are counted", || site.reason(Reason::TakeoverBackoff) == 6);
    holder.say(5, "fleet/v1/edge-1/up/event", b"undisturbed");
    receive(&mut site.link, 1);
    drop(site.node("edge-2").open(&Hello::new(5, "edge-2")));
    drop(holder);
    until("the holder is gone", || site.broker.stats().sessions.get() == 0);
    drop(site.node("edge-1").open(&hello));
    // Four seconds later the next takeover is let in.
    let started = now();
    until("there is a session", || site.broker.stats().sessions.get() == 0);
    let holder = site.node("edge-1").open(&hello);
    let newcomer = loop {
        let mut client = site.node("edge-1");
        client.send(&hello.bytes());
        match client.read() {
            Some((0x20, body)) if body[1] == 0 => break client,
            Some((0x20, body)) => assert_eq!(body[1], 0x89),
            other => panic!("{other:?}"),
        }
        assert!(now().duration_since(started) < Duration::from_secs(20), "never let in");
    };
    drop((holder, newcomer));
}

#[test]
fn the_plain_listener_too_makes_room_for_newcomers() {
    let site = site(|config| config.max_handshakes = 8);
    let addr: SocketAddr = site.broker.mqtt_addr();
    let login = Hello { login: Some(("grafana", "tool")), ..Hello::new(4, "g") };
    let silent: Vec<_> = (0..20).map(|_| Client::plain(addr)).collect();
    drop(Client::plain(addr).open(&login));
    assert!(site.reason(Reason::Crowded) >= 12);
    until("the others are gone", || site.broker.stats().connections.get() <= 8);
    drop(silent);
}

#[test]
fn one_address_may_have_so_many_connections_over_tls() {
    let site = site(|config| config.max_tls_connections_per_address = 2);
    let _first = site.node("edge-1").open(&Hello::new(5, "edge-1"));
    let _second = site.node("edge-2").open(&Hello::new(5, "edge-2"));
    assert!(site.node("edge-3").stream.write_all(b"x").is_err());
    until("it is counted", || site.reason(Reason::AddressBusy) == 1);
    // The other listener has a cap of its own.
    let login = Hello { login: Some(("grafana", "tool")), ..Hello::new(4, "g") };
    drop(Client::plain(site.broker.mqtt_addr()).open(&login));
}

#[test]
fn plain_mqtt_beyond_the_loopback_is_for_who_says_so() {
    let anywhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let open = |plain_anywhere| {
        let config = Config { mqtt: anywhere, plain_anywhere, ..Config::default() };
        Broker::start(config, Arc::new(ByCertificate))
    };
    assert!(open(false).err().unwrap().to_string().contains("bind it to 127.0.0.1"));
    let (broker, _link) = open(true).unwrap();
    let login = Hello { login: Some(("grafana", "tool")), ..Hello::new(4, "g") };
    let addr = SocketAddr::from(([127, 0, 0, 1], broker.mqtt_addr().port()));
    drop(Client::plain(addr).open(&login));
    assert_eq!(broker.mqtts_addr(), None);
}
