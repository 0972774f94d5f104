//! The way down: to the right node, in order, at the granted QoS, and a node that does not read loses its own only.

use bytes::Bytes;
use fleet_schemas::{Topic, topic::Down};

use super::*;

fn listening(broker: &Broker, version: Version, id: &str, qos: u8) -> Client {
    let mut client = Client::open(broker.mqtt_addr(), &Hello::new(version, id));
    client.send(&subscribe(version, &format!("fleet/v1/{id}/down/#"), qos));
    assert_eq!(client.read().unwrap().0, 0x90);
    client
}

fn ack(id: &str) -> Topic {
    Topic::Down(node(id), Down::Ack)
}

#[test]
fn each_node_hears_its_own_messages_in_order() {
    const NODES: usize = 20;
    let (broker, link) = plane();
    let mut clients: Vec<_> = (0..NODES)
        .map(|n| listening(&broker, if n % 2 == 0 { V4 } else { V5 }, &format!("edge-{n}"), 0))
        .collect();
    let publisher = link.publisher();
    let messages =
        (0..50_u8).flat_map(|i| (0..NODES).map(move |n| (ack(&format!("edge-{n}")), Bytes::from(vec![i]))));
    assert_eq!(publisher.publish_many(messages), 50 * NODES);
    for (n, client) in clients.iter_mut().enumerate() {
        for i in 0..50_u8 {
            let (first, body) = client.read().unwrap();
            assert_eq!(first, 0x30);
            let topic = format!("fleet/v1/edge-{n}/down/ack");
            assert_eq!(&body[2..2 + topic.len()], topic.as_bytes());
            assert_eq!(body.last(), Some(&i));
        }
    }
    assert_eq!(broker.stats().down_messages.get(), 50 * NODES as u64);
}

#[test]
fn qos_1_is_delivered_with_ids_and_waits_for_acknowledgements() {
    let (broker, link) = plane();
    let mut client = listening(&broker, V5, "edge-1", 1);
    for i in 0..100_u8 {
        link.publisher().publish(&ack("edge-1"), Bytes::from(vec![i])).unwrap();
    }
    let topic_len = "fleet/v1/edge-1/down/ack".len();
    for i in 0..100_u8 {
        let (first, body) = client.read().unwrap();
        assert_eq!((first, body.last()), (0x32, Some(&i)));
        let id = [body[2 + topic_len], body[3 + topic_len]];
        client.send(&packet(0x40, &id));
    }
}

#[test]
fn what_a_node_did_not_subscribe_it_does_not_hear() {
    let (broker, link) = plane();
    let mut client = Client::open(broker.mqtt_addr(), &Hello::new(V4, "edge-1"));
    client.send(&subscribe(V4, "fleet/v1/edge-1/down/config", 0));
    client.read().unwrap();
    let publisher = link.publisher();
    publisher.publish(&ack("edge-1"), Bytes::from_static(b"no")).unwrap();
    publisher.publish(&ack("edge-9"), Bytes::from_static(b"nobody")).unwrap();
    publisher.publish(&Topic::Down(node("edge-1"), Down::Config), Bytes::from_static(b"yes")).unwrap();
    assert!(client.read().unwrap().1.ends_with(b"yes"));
    let mut unsubscribe = vec![0, 3];
    text(&mut unsubscribe, b"fleet/v1/edge-1/down/config");
    client.send(&packet(0xA2, &unsubscribe));
    assert_eq!(client.read(), Some((0xB0, vec![0, 3])));
    publisher.publish(&Topic::Down(node("edge-1"), Down::Config), Bytes::from_static(b"late")).unwrap();
    let stats = broker.stats();
    until("all are accounted for", || stats.down_unwanted.get() == 2 && stats.down_unrouted.get() == 1);
    let up = Topic::parse("fleet/v1/edge-1/up/birth").unwrap();
    assert_eq!(publisher.publish(&up, Bytes::new()), Err(crate::PublishError::NotDown));
    let large = Bytes::from(vec![0; fleet_schemas::limits::PACKET_BYTES]);
    assert_eq!(publisher.publish(&ack("edge-1"), large), Err(crate::PublishError::TooLarge));
}

#[test]
fn a_node_that_never_reads_loses_its_own_messages_only() {
    let (broker, link) = plane();
    let _deaf = listening(&broker, V4, "deaf", 0);
    let mut other = listening(&broker, V4, "other", 0);
    let (publisher, stats) = (link.publisher(), broker.stats());
    let large = Bytes::from(vec![1; 64 * 1024]);
    for sent in 1..=600_u64 {
        publisher.publish(&ack("deaf"), large.clone()).unwrap();
        publisher.publish(&ack("other"), Bytes::from_static(b"small")).unwrap();
        assert!(other.read().unwrap().1.ends_with(b"small"));
        until("it is settled", || stats.down_in_flight_bytes.get() == 0);
        assert!(stats.down_overflow.get() < sent);
    }
    assert!(stats.down_overflow.get() > 0);
}

#[test]
fn a_full_down_path_drops_and_counts() {
    let (broker, link) = plane_with(|config| config.down_budget_bytes = 0);
    let full = link.publisher().publish(&ack("edge-1"), Bytes::new());
    assert_eq!(full, Err(crate::PublishError::Full));
    assert_eq!(broker.stats().down_dropped.get(), 1);
}

#[test]
fn a_node_that_is_gone_while_much_waits_for_it_is_noticed_at_once() {
    let (broker, link) = plane();
    let gone = listening(&broker, V4, "edge-1", 0);
    let stats = broker.stats();
    let large = Bytes::from(vec![1; 200 * 1024]);
    until("its socket is full", || {
        // What the plane has no room for is as good as sent here.
        let _ = link.publisher().publish(&ack("edge-1"), large.clone());
        stats.down_overflow.get() > 0
    });
    drop(gone);
    until("the session ended", || stats.sessions.get() == 0);
}

#[test]
fn a_queue_longer_than_one_write_goes_out_without_another_reason_to_look() {
    let (broker, link) = plane();
    let mut client = listening(&broker, V4, "edge-1", 0);
    let messages = (0..200_u8).map(|i| (ack("edge-1"), Bytes::from(vec![i; 2_000])));
    assert_eq!(link.publisher().publish_many(messages), 200);
    for i in 0..200_u8 {
        assert_eq!(client.read().expect("the session lives").1.last(), Some(&i));
    }
}
