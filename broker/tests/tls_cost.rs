//! What TLS costs: memory of an idle session and processor time of a new one, through the public face only.
//!
//! In a process of its own, because it reads the memory and the time of the whole process. The clients' side of both
//! is measured alone and taken off. The figures are printed (`--nocapture`); the bounds leave room for an unoptimised
//! build.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use fleet_broker::Broker;

#[path = "common/memory.rs"]
mod memory;
#[path = "common/pki.rs"]
mod pki;

use memory::resident_bytes;
use pki::{ByCertificate, Pki, Secure, config, dial, node_uri};

/// One measurement at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[expect(clippy::disallowed_methods, reason = "measures time")]
fn now() -> Instant {
    Instant::now()
}

/// A session that published once: its socket is kept, and the client's half of TLS is not, or it would be measured
/// with the hub's.
fn idle(addr: SocketAddr, pki: &Pki, n: usize) -> TcpStream {
    let id = format!("edge-{n:05}");
    let mut node = dial(addr, &pki.client(Some(&node_uri(&id))));
    open(&mut node, &id);
    node.write_all(&publish(&id, &[7; 50])).unwrap();
    node.read_exact(&mut [0; 4]).unwrap();
    node.sock
}

fn open(node: &mut Secure, id: &str) {
    let mut connect = b"\x10\x16\0\x04MQTT\x04\x02\x0E\x10\0\x0A".to_vec();
    connect.extend(id.as_bytes());
    node.write_all(&connect).unwrap();
    let mut answer = [0; 4];
    node.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [0x20, 2, 0, 0]);
}

#[test]
fn an_idle_tls_session_costs_at_most_16_kb() {
    let _alone = ALONE.lock().unwrap();
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let files: usize = files.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX);
    // Both ends are in this process.
    let sessions = (files.saturating_sub(400) / 2).min(2_000);
    let pki = Pki::new();
    let (broker, mut link) = Broker::start(config(pki.keys()), Arc::new(ByCertificate)).unwrap();
    let addr = broker.mqtts_addr().unwrap();
    let mut messages = vec![];
    let mut take = |count| {
        while messages.len() < count {
            let n = link.recv(&mut messages, 1, Duration::from_secs(5)).unwrap();
            let at = messages.len() - n;
            link.taken(&messages[at..]);
        }
        messages.clear();
    };
    // The first sessions pay for what all share.
    let mut open = vec![];
    for n in 0..100 {
        open.push(idle(addr, &pki, n));
        take(1);
    }
    let before = resident_bytes();
    for n in 100..100 + sessions {
        open.push(idle(addr, &pki, n));
        take(1);
    }
    let each = resident_bytes().saturating_sub(before) / sessions;
    println!("{sessions} idle TLS sessions that published once: {each} bytes each");
    assert_eq!(broker.stats().sessions.get(), sessions as u64 + 100);
    assert!(each <= 16 * 1024, "{each} bytes");
}

#[test]
fn a_new_mtls_session_costs_the_hub_at_most_3_ms() {
    const SESSIONS: u32 = 300;
    let _alone = ALONE.lock().unwrap();
    let pki = Pki::new();
    let mut settings = config(pki.keys());
    settings.gate_threads = 1;
    let (broker, _link) = Broker::start(settings, Arc::new(ByCertificate)).unwrap();
    let addr = broker.mqtts_addr().unwrap();
    let client = pki.client(Some(&node_uri("edge-00001")));
    let session = || {
        let mut node = dial(addr, &client);
        open(&mut node, "edge-00001");
        node.write_all(&[0xE0, 0]).unwrap();
        assert_eq!(node.read(&mut [0]).unwrap(), 0);
    };
    (0..20).for_each(|_| session());
    let before = gate_time();
    (0..SESSIONS).for_each(|_| session());
    let each = (gate_time() - before) / SESSIONS;
    println!("a new mTLS session, opened and closed: {each:?} of the gate's thread");
    assert_eq!(broker.stats().sessions_opened.get(), u64::from(SESSIONS) + 20);
    assert!(each <= Duration::from_millis(3), "{each:?}");
}

#[test]
fn fan_in_over_tls_is_fast() {
    const CLIENTS: usize = 50;
    const CHUNK: usize = 100;
    const ROUNDS: usize = 60;
    let _alone = ALONE.lock().unwrap();
    let pki = Pki::new();
    let (broker, mut link) = Broker::start(config(pki.keys()), Arc::new(ByCertificate)).unwrap();
    let addr = broker.mqtts_addr().unwrap();
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let id = format!("edge-{n:05}");
            let mut node = dial(addr, &pki.client(Some(&node_uri(&id))));
            open(&mut node, &id);
            (node, publish(&id, &[7; 80]).repeat(CHUNK))
        })
        .collect();
    let (started, before) = (now(), gate_time());
    let sender = thread::spawn(move || {
        let mut acks = [0; 4 * CHUNK];
        for _ in 0..ROUNDS {
            for (node, chunk) in &mut clients {
                node.write_all(chunk).unwrap();
            }
            for (node, _) in &mut clients {
                node.read_exact(&mut acks).unwrap();
            }
        }
    });
    let (mut messages, mut count) = (vec![], 0);
    while count < CLIENTS * CHUNK * ROUNDS {
        count += link.recv(&mut messages, 4_096, Duration::from_secs(5)).unwrap();
        link.taken(&messages);
        messages.clear();
    }
    let (took, gate) = (now().duration_since(started), gate_time() - before);
    sender.join().unwrap();
    let rate = f64::from(u32::try_from(count).unwrap()) / took.as_secs_f64();
    let each = gate / u32::try_from(count).unwrap();
    println!(
        "fan-in over TLS, QoS 1, {CLIENTS} clients: {rate:.0} messages a second, {each:?} of the gate's each"
    );
    assert!(rate > 20_000.0, "{rate:.0} messages a second");
}

/// QoS 1, packet id 1; short enough for one byte of length.
fn publish(id: &str, payload: &[u8]) -> Vec<u8> {
    let topic = format!("fleet/v1/{id}/up/event");
    let length = 2 + topic.len() + 2 + payload.len();
    let mut packet = vec![0x32, u8::try_from(length).unwrap(), 0, u8::try_from(topic.len()).unwrap()];
    packet.extend(topic.as_bytes());
    packet.extend([0, 1]);
    packet.extend(payload);
    assert!(length < 128);
    packet
}

/// Processor time of the gate's threads so far.
fn gate_time() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let gate = tasks.filter(|task| {
        fs::read_to_string(task.join("comm"))
            .is_ok_and(|name| name.starts_with("gate-") && !name.starts_with("gate-judge"))
    });
    let nanos = |task: std::path::PathBuf| {
        let schedstat = fs::read_to_string(task.join("schedstat")).unwrap();
        schedstat.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    Duration::from_nanos(gate.map(nanos).sum())
}
