//! The way up: order, wills, takeover, and that a burst of many sessions arrives whole.

use super::*;
use crate::Reason;

#[test]
fn every_node_s_messages_arrive_whole_and_in_order() {
    const NODES: usize = 40;
    const EACH: u16 = 2_000;
    let (broker, mut link) = plane();
    let addr = broker.mqtt_addr();
    let senders: Vec<_> = (0..NODES)
        .map(|n| {
            thread::spawn(move || {
                let id = format!("edge-{n}");
                let mut client = Client::open(addr, &Hello::new(V4, &id));
                let topic = format!("fleet/v1/{id}/up/telemetry");
                for chunk in (1..=EACH).collect::<Vec<_>>().chunks(100) {
                    let packets: Vec<u8> =
                        chunk.iter().flat_map(|i| publish(V4, 0x32, &topic, *i, &i.to_be_bytes())).collect();
                    client.send(&packets);
                    for i in chunk {
                        assert_eq!(client.read(), Some((0x40, i.to_be_bytes().to_vec())));
                    }
                }
            })
        })
        .collect();
    let mut next = std::collections::HashMap::new();
    for message in receive(&mut link, NODES * usize::from(EACH)) {
        let next = next.entry(message.topic).or_insert(1_u16);
        assert_eq!(message.payload[..], next.to_be_bytes());
        *next += 1;
    }
    assert_eq!(next.len(), NODES);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    let stats = broker.stats();
    assert_eq!(
        (stats.router_recovered.get(), stats.router_foreign.get(), stats.in_flight_bytes.get()),
        (0, 0, 0)
    );
}

#[test]
fn an_empty_payload_and_the_largest_packet_arrive() {
    let (broker, mut link) = plane();
    let topic = "fleet/v1/edge-1/up/backfill";
    let mut client = Client::open(broker.mqtt_addr(), &Hello::new(V4, "edge-1"));
    let head = 4 + 2 + topic.len();
    let largest = vec![7; fleet_schemas::limits::PACKET_BYTES - head];
    client.send(&publish(V4, 0x30, topic, 0, b""));
    client.send(&publish(V4, 0x30, topic, 0, &largest));
    let messages = receive(&mut link, 2);
    assert!(messages[0].payload.is_empty());
    assert_eq!(messages[1].payload, largest);
}

#[test]
fn the_will_is_said_when_the_connection_is_lost_and_not_after_disconnect() {
    let (broker, mut link) = plane();
    let topic = "fleet/v1/edge-1/up/death";
    for version in [V4, V5] {
        let hello = Hello { will: Some((topic, b"session", 0x08)), ..Hello::new(version, "edge-1") };
        let mut polite = Client::open(broker.mqtt_addr(), &hello);
        polite.send(&[0xE0, 0]);
        polite.expect_end();
        drop(Client::open(broker.mqtt_addr(), &hello));
        let message = receive(&mut link, 1).remove(0);
        assert_eq!((message.topic.to_string().as_str(), &message.payload[..]), (topic, &b"session"[..]));
        let mut broken = Client::open(broker.mqtt_addr(), &hello);
        broken.send(&[0xFF, 0xFF]);
        receive(&mut link, 1);
    }
    let mut asking = Client::open(
        broker.mqtt_addr(),
        &Hello { will: Some((topic, b"asked", 0)), ..Hello::new(V5, "edge-1") },
    );
    asking.send(&[0xE0, 1, 0x04]);
    assert_eq!(&receive(&mut link, 1)[0].payload[..], b"asked", "DISCONNECT with will message");
    assert_eq!(broker.stats().up_messages.get(), 5);
}

#[test]
fn a_newer_session_of_a_node_ends_the_older_one() {
    let (broker, mut link) = plane();
    let hello =
        |payload| Hello { will: Some(("fleet/v1/edge-1/up/death", payload, 0)), ..Hello::new(V5, "edge-1") };
    let mut old = Client::open(broker.mqtt_addr(), &hello(b"old"));
    let mut new = Client::open(broker.mqtt_addr(), &hello(b"new"));
    assert_eq!(old.read(), Some((0xE0, vec![0x8E])));
    old.expect_end();
    assert_eq!(&receive(&mut link, 1)[0].payload[..], b"old");
    new.send(&publish(V5, 0x32, "fleet/v1/edge-1/up/birth", 1, b"b"));
    assert_eq!(new.read(), Some((0x40, vec![0, 1])));
    receive(&mut link, 1);
    assert_eq!((broker.stats().reason(Reason::TakenOver), broker.stats().sessions.get()), (1, 1));
}

#[test]
fn an_operator_ends_a_session_and_its_will_is_said() {
    let (broker, mut link) = plane();
    let hello = Hello { will: Some(("fleet/v1/edge-1/up/death", b"w", 0)), ..Hello::new(V5, "edge-1") };
    let mut client = Client::open(broker.mqtt_addr(), &hello);
    broker.kick(&node("edge-1"), "revoked");
    assert_eq!(client.read(), Some((0xE0, vec![0x98])));
    receive(&mut link, 1);
    until("it is gone", || broker.stats().sessions.get() == 0);
}

#[test]
fn packets_cut_into_single_bytes_arrive() {
    let (broker, mut link) = plane();
    let mut client = Client::silent(broker.mqtt_addr());
    let mut bytes = Hello::new(V5, "edge-1").bytes();
    bytes.extend(publish(V5, 0x32, "fleet/v1/edge-1/up/event", 1, &[1; 200]));
    for byte in bytes {
        client.send(&[byte]);
    }
    assert_eq!(receive(&mut link, 1)[0].payload.len(), 200);
}
