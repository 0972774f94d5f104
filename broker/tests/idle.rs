//! What an idle session costs in memory. In a process of its own: memory that another test gave back would hide it.

#![cfg(target_os = "linux")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    sync::Arc,
    time::Duration,
};

use common::{Anyone, config, connect, publish, resident_bytes};
use fleet_broker::Broker;

#[test]
fn an_idle_session_costs_at_most_4_kb() {
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
