//! The router dies under load: sessions stay, nothing acknowledged is lost, nothing comes twice or out of order.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use fleet_schemas::{Topic, topic::Down};

use super::*;

fn kill(broker: &Broker) {
    broker.running.as_ref().unwrap().1.kill_router();
}

#[test]
fn a_router_killed_under_load_loses_no_acknowledged_message_and_no_session() {
    const NODES: usize = 8;
    let (broker, mut link) = plane();
    let (addr, stats) = (broker.mqtt_addr(), broker.stats());
    let stop = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..NODES)
        .map(|n| {
            let stop = stop.clone();
            thread::spawn(move || {
                let id = format!("edge-{n}");
                let mut client = Client::open(addr, &Hello::new(V4, &id));
                let topic = format!("fleet/v1/{id}/up/telemetry");
                let mut sent = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    let packets: Vec<u8> = (sent..sent + 200)
                        .flat_map(|i| publish(V4, 0x32, &topic, 1, &i.to_be_bytes()))
                        .collect();
                    client.send(&packets);
                    (0..200).for_each(|_| assert_eq!(client.read().expect("the session lives").0, 0x40));
                    sent += 200;
                }
                sent
            })
        })
        .collect();
    let mut messages = vec![];
    for kills in 1..=5 {
        messages.extend(receive(&mut link, 20_000));
        kill(&broker);
        until("a new router", || {
            messages.extend(receive(&mut link, 1));
            stats.router_rebuilds.get() == kills
        });
    }
    messages.extend(receive(&mut link, 20_000));
    stop.store(true, Ordering::Relaxed);
    // What is left fits the budget, so the senders end without the consumer.
    let mut sent = 0;
    for sender in senders {
        until("the sender ends", || {
            let n = link.recv(&mut messages, 4_096, Duration::from_millis(1)).unwrap();
            link.taken(&messages[messages.len() - n..]);
            sender.is_finished()
        });
        sent += sender.join().unwrap() as usize;
    }
    let left = sent - messages.len();
    messages.extend(receive(&mut link, left));
    let mut next = std::collections::HashMap::new();
    for message in messages {
        let next = next.entry(message.topic).or_insert(0_u32);
        assert_eq!(message.payload[..], next.to_be_bytes());
        *next += 1;
    }
    assert_eq!(next.values().map(|next| *next as usize).sum::<usize>(), sent);
    assert_eq!((stats.router_rebuilds.get(), stats.sessions_opened.get()), (5, NODES as u64));
    assert_eq!(stats.in_flight_bytes.get(), 0);
}

#[test]
fn messages_down_survive_a_rebuild_too() {
    let (broker, link) = plane();
    let mut client = Client::open(broker.mqtt_addr(), &Hello::new(V4, "edge-1"));
    client.send(&subscribe(V4, "fleet/v1/edge-1/down/#", 0));
    client.read().unwrap();
    let topic = Topic::Down(node("edge-1"), Down::Command);
    for i in 0..200_u8 {
        if i == 100 {
            kill(&broker);
        }
        link.publisher().publish(&topic, Bytes::from(vec![i])).unwrap();
    }
    for i in 0..200_u8 {
        assert_eq!(client.read().unwrap().1.last(), Some(&i));
    }
    until("a new router", || broker.stats().router_rebuilds.get() == 1);
}

#[test]
fn an_idle_router_that_died_is_replaced_without_a_message() {
    let (broker, mut link) = plane();
    kill(&broker);
    until("a new router", || broker.stats().router_rebuilds.get() == 1);
    let mut client = Client::open(broker.mqtt_addr(), &Hello::new(V5, "edge-1"));
    client.send(&publish(V5, 0x32, "fleet/v1/edge-1/up/event", 1, b"after"));
    assert_eq!(&receive(&mut link, 1)[0].payload[..], b"after");
}

#[test]
fn many_planes_come_and_go_in_one_process() {
    for _ in 0..10 {
        let (broker, mut link) = plane();
        drop(Client::open(broker.mqtt_addr(), &Hello::new(V5, "edge-1")));
        broker.shutdown();
        assert_eq!(link.recv(&mut vec![], 1, Duration::ZERO), Err(crate::LinkClosed));
    }
    #[cfg(target_os = "linux")]
    until("their routers are gone, but for those of other tests", || router_threads() < 10);
}

#[test]
fn a_router_that_lives_and_does_not_return_probes_is_replaced() {
    let (broker, mut link) = plane();
    let mut client = Client::open(broker.mqtt_addr(), &Hello::new(V5, "edge-1"));
    broker.running.as_ref().unwrap().1.deafen_router();
    until("a new router", || broker.stats().router_rebuilds.get() == 1);
    client.send(&publish(V5, 0x32, "fleet/v1/edge-1/up/event", 1, b"after"));
    assert_eq!(client.read(), Some((0x40, vec![0, 1])));
    assert_eq!(&receive(&mut link, 1)[0].payload[..], b"after");
}

/// Threads of this process that are routers.
#[cfg(target_os = "linux")]
fn router_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names
        .filter(|name| name.trim_end().strip_prefix("router-").is_some_and(|id| id.parse::<u32>().is_ok()))
        .count()
}
