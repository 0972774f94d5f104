//! What the plane costs: memory per idle session and time per message, through its public face only.
//!
//! In a process of its own, because it reads the memory of the whole process. The bounds leave room for a loaded
//! machine and an unoptimised build; the figures are printed (`--nocapture`).

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fleet_broker::{Broker, Config, Credentials, Directory, Identity, Refusal};
use fleet_schemas::{NodeId, Topic, topic::Down};

struct Anyone;

impl Directory for Anyone {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Identity, Refusal> {
        NodeId::parse(credentials.client_id).map(Identity::Node).map_err(|_| Refusal::NotAuthorized)
    }
}

/// One measurement at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[expect(clippy::disallowed_methods, reason = "measures time")]
fn now() -> Instant {
    Instant::now()
}

fn config() -> Config {
    Config { mqtt: "127.0.0.1:0".parse().unwrap(), ..Config::default() }
}

fn connect(addr: SocketAddr, id: &str) -> TcpStream {
    let mut socket = TcpStream::connect(addr).unwrap();
    let mut body = b"\0\x04MQTT\x04\x02\x0E\x10".to_vec();
    body.extend(u16::try_from(id.len()).unwrap().to_be_bytes());
    body.extend(id.as_bytes());
    let mut packet = vec![0x10, u8::try_from(body.len()).unwrap()];
    packet.extend(body);
    socket.write_all(&packet).unwrap();
    let mut connack = [0; 4];
    socket.read_exact(&mut connack).unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
    socket
}

/// QoS 1, packet id 1, 150 bytes of payload.
fn publish(id: &str) -> Vec<u8> {
    let topic = format!("fleet/v1/{id}/up/telemetry");
    let length = 2 + topic.len() + 2 + 150;
    let mut packet =
        vec![0x32, u8::try_from(length & 0x7F | 0x80).unwrap(), u8::try_from(length >> 7).unwrap()];
    packet.extend(u16::try_from(topic.len()).unwrap().to_be_bytes());
    packet.extend(topic.as_bytes());
    packet.extend([0, 1]);
    packet.extend([7; 150]);
    packet
}

#[cfg(target_os = "linux")]
fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[cfg(target_os = "linux")]
#[test]
fn an_idle_session_costs_at_most_4_kb() {
    let _alone = ALONE.lock().unwrap();
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let files: usize = files.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX);
    // Both ends are in this process.
    let sessions = (files.saturating_sub(200) / 2).min(5_000);
    let (broker, mut link) = Broker::start(config(), Arc::new(Anyone)).unwrap();
    // The first sessions pay for what all share.
    let mut open: Vec<_> = (0..100).map(|n| connect(broker.mqtt_addr(), &format!("warm-{n}"))).collect();
    let before = resident_bytes();
    for n in 0..sessions {
        let id = format!("edge-{n}");
        let mut socket = connect(broker.mqtt_addr(), &id);
        socket.write_all(&publish(&id)).unwrap();
        socket.read_exact(&mut [0; 4]).unwrap();
        let mut messages = vec![];
        while link.recv(&mut messages, 1, Duration::from_secs(5)).unwrap() == 0 {}
        link.taken(&messages);
        open.push(socket);
    }
    let each = (resident_bytes().saturating_sub(before)) / sessions;
    println!("{sessions} idle sessions that published once: {each} bytes each");
    assert_eq!(broker.stats().sessions.get(), sessions as u64 + 100);
    assert!(each <= 4096, "{each} bytes");
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
    const CLIENTS: usize = 100;
    const CHUNK: usize = 100;
    const ROUNDS: usize = 60;
    let _alone = ALONE.lock().unwrap();
    let (broker, mut link) = Broker::start(config(), Arc::new(Anyone)).unwrap();
    let addr = broker.mqtt_addr();
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let id = format!("edge-{n}");
            (connect(addr, &id), publish(&id).repeat(CHUNK))
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
    let rate = f64::from(u32::try_from(total).unwrap()) / seconds;
    let stats = broker.stats();
    println!(
        "fan-in, QoS 1, 150 B, {CLIENTS} clients: {rate:.0} messages a second, {} pauses",
        stats.pauses.get()
    );
    assert_eq!(stats.router_recovered.get(), 0);
    assert!(rate > 50_000.0, "{rate:.0} messages a second");
}
