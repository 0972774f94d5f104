//! What the plane costs: memory under a slow hub and time per message, through its public face only.
//!
//! In a process of its own, because it reads the memory of the whole process. The bounds leave room for a loaded
//! machine and an unoptimised build; the figures are printed (`--nocapture`).

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod common;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fleet_broker::{Broker, Link, Reason};
use fleet_schemas::{
    NodeId, Topic,
    topic::{ALL_UP, Down},
};

use common::{Anyone, config, connect, hello, publish, resident_bytes};

/// One measurement at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[expect(clippy::disallowed_methods, reason = "measures time")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(target_os = "linux")]
#[test]
fn a_hub_that_takes_nothing_costs_little_more_than_its_budget() {
    let _alone = ALONE.lock().unwrap();
    let (broker, mut link) = Broker::start(config(), Arc::new(Anyone)).unwrap();
    let before = resident_bytes();
    let senders: Vec<_> = (0..50)
        .map(|n| {
            let id = format!("edge-{n}");
            let mut socket = connect(broker.mqtt_addr(), &id);
            socket.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            let chunk = publish(&id).repeat(100);
            // Until the gate reads no more and the socket is full.
            thread::spawn(move || while socket.write_all(&chunk).is_ok() {})
        })
        .collect();
    let (mut messages, mut peak) = (vec![], 0);
    while !senders.iter().all(thread::JoinHandle::is_finished) {
        link.recv(&mut messages, 4_096, Duration::from_millis(10)).unwrap();
        peak = peak.max(resident_bytes().saturating_sub(before));
    }
    let in_flight = broker.stats().in_flight_bytes.get();
    println!("a hub that takes nothing: {in_flight} bytes counted, {peak} bytes resident at most");
    assert!(broker.stats().pauses.get() > 0);
    assert!(peak < 40 * 1024 * 1024, "{peak} bytes");
}

#[test]
fn a_message_to_each_of_1_000_nodes_is_fast() {
    const NODES: usize = 1_000;
    let _alone = ALONE.lock().unwrap();
    let (broker, link) = Broker::start(config(), Arc::new(Anyone)).unwrap();
    let ids: Vec<_> = (0..NODES).map(|n| NodeId::parse(&format!("edge-{n:03}")).unwrap()).collect();
    let mut clients: Vec<_> = ids.iter().map(|id| connect(broker.mqtt_addr(), id.as_str())).collect();
    for (client, id) in clients.iter_mut().zip(&ids) {
        let filter = format!("fleet/v1/{id}/down/#");
        let mut packet = vec![0x82, u8::try_from(filter.len() + 5).unwrap(), 0, 1, 0];
        packet.push(u8::try_from(filter.len()).unwrap());
        packet.extend(filter.as_bytes());
        packet.push(1);
        client.write_all(&packet).unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
    }
    let started = now();
    let messages = ids.iter().map(|id| (Topic::Down(id.clone(), Down::Ack), Bytes::from_static(&[7; 60])));
    assert_eq!(link.publisher().publish_many(messages), NODES);
    for (client, id) in clients.iter_mut().zip(&ids) {
        let length = 2 + 2 + format!("fleet/v1/{id}/down/ack").len() + 2 + 60;
        client.read_exact(&mut vec![0; length]).unwrap();
    }
    let took = now().duration_since(started);
    println!("one message to each of {NODES} nodes, QoS 1: {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn fan_in_is_fast() {
    let _alone = ALONE.lock().unwrap();
    let (broker, mut link) = Broker::start(config(), Arc::new(Anyone)).unwrap();
    let rate = fan_in(&broker, &mut link);
    println!("fan-in, QoS 1, 150 B, 100 clients: {rate:.0} messages a second, {}", pauses(&broker));
    assert_eq!(broker.stats().router_recovered.get(), 0);
    assert!(rate > 50_000.0, "{rate:.0} messages a second");
}

#[test]
fn fan_in_is_fast_whatever_a_tool_does() {
    let _alone = ALONE.lock().unwrap();
    let (broker, mut link) = Broker::start(config(), Arc::new(Anyone)).unwrap();
    let stats = broker.stats();
    let _deaf = tool(broker.mqtt_addr());
    let rate = fan_in(&broker, &mut link);
    let cut = stats.reason(Reason::ToolSlow);
    println!("the same beside a tool that never reads: {rate:.0} messages a second, {cut} cut");
    assert!(rate > 50_000.0 && cut == 1, "{rate:.0} messages a second");
    let mut quick = tool(broker.mqtt_addr());
    let reader = thread::spawn(move || {
        let (mut bytes, mut buffer) = (0, vec![0; 64 * 1024]);
        while let Ok(n @ 1..) = quick.read(&mut buffer) {
            bytes += n;
        }
        bytes
    });
    let rate = fan_in(&broker, &mut link);
    // The tool may be cut off if it gets no share of the processor; what was counted was copied for it.
    let (copied, cut) = (stats.tool_messages.get(), stats.reason(Reason::ToolSlow) - cut);
    broker.shutdown();
    let bytes = reader.join().unwrap();
    println!(
        "beside one that reads: {rate:.0} messages a second, {copied} copied, {bytes} bytes read, {cut} cut"
    );
    assert!(rate > 50_000.0, "{rate:.0} messages a second");
}

fn pauses(broker: &Broker) -> String {
    format!("{} pauses", broker.stats().pauses.get())
}

/// 100 nodes publish 600,000 messages, each waiting for the acknowledgements of the last 100; messages a second.
fn fan_in(broker: &Broker, link: &mut Link) -> f64 {
    const CLIENTS: usize = 100;
    const CHUNK: usize = 100;
    const ROUNDS: usize = 60;
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let id = format!("edge-{n}");
            (connect(broker.mqtt_addr(), &id), publish(&id).repeat(CHUNK))
        })
        .collect();
    let started = now();
    let sender = thread::spawn(move || {
        let mut acks = [0; 4 * CHUNK];
        for _ in 0..ROUNDS {
            for (socket, chunk) in &mut clients {
                socket.write_all(chunk).unwrap();
            }
            for (socket, _) in &mut clients {
                socket.read_exact(&mut acks).unwrap();
            }
        }
    });
    let total = CLIENTS * CHUNK * ROUNDS;
    let (mut messages, mut count) = (vec![], 0);
    while count < total {
        count += link.recv(&mut messages, 4_096, Duration::from_secs(5)).unwrap();
        link.taken(&messages);
        messages.clear();
    }
    let seconds = now().duration_since(started).as_secs_f64();
    sender.join().unwrap();
    f64::from(u32::try_from(total).unwrap()) / seconds
}

/// A tool that hears all that nodes say.
fn tool(addr: SocketAddr) -> TcpStream {
    let mut socket = hello(addr, b"\0\x04MQTT\x04\x82\x0E\x10\0\x04tool\0\x04user");
    let mut packet = vec![0x82, u8::try_from(ALL_UP.len() + 5).unwrap(), 0, 1, 0];
    packet.push(u8::try_from(ALL_UP.len()).unwrap());
    packet.extend(ALL_UP.as_bytes());
    packet.push(0);
    socket.write_all(&packet).unwrap();
    let mut suback = [0; 5];
    socket.read_exact(&mut suback).unwrap();
    assert_eq!(suback, [0x90, 3, 0, 1, 0]);
    socket
}
