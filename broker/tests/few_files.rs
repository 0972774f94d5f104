//! A hub that may open few files, under a flood: in a process of its own, because the limit is the process's. The
//! flood comes from another process, which is this program again.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_broker::{Broker, Reason};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[path = "common/pki.rs"]
mod pki;

use pki::{ByCertificate, Pki, config, dial, node_uri};

const FLOOD: &str = "FLEET_TEST_FLOOD";
const FILES: u64 = 250;
/// More than the hub may open.
const CONNECTIONS: usize = 1_500;

#[expect(clippy::disallowed_methods, reason = "measures time")]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn a_node_comes_back_although_a_flood_took_every_file() {
    if let Ok(addr) = env::var(FLOOD) {
        return flood(&addr);
    }
    let pki = Pki::new();
    let (broker, _link) = Broker::start(config(pki.keys()), Arc::new(ByCertificate)).unwrap();
    let addr = broker.mqtts_addr().unwrap();
    let mut flood = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_node_comes_back_although_a_flood_took_every_file", "--nocapture"])
        .env(FLOOD, addr.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(flood.stdout.take().unwrap());
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(FILES), maximum }).unwrap();
    flood.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let mut line = String::new();
    while !line.contains("open") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "the flood ended");
    }
    let client = pki.client(Some(&node_uri("edge-1")));
    let started = now();
    // The client's own socket is one of this process's few files too.
    while TcpStream::connect(addr).is_err() {
        assert!(now().duration_since(started) < Duration::from_secs(5));
    }
    let mut node = dial(addr, &client);
    node.write_all(b"\x10\x12\0\x04MQTT\x04\x02\0\x3C\0\x06edge-1").unwrap();
    node.read_exact(&mut [0; 4]).unwrap();
    let took = now().duration_since(started);
    println!("back after {took:?}, {} times without a file", broker.stats().reason(Reason::Exhausted));
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(broker.stats().reason(Reason::Exhausted) > 0, "no flood");
    drop(flood.stdin.take());
    assert!(flood.wait().unwrap().success());
}

/// Holds many connections open until its input ends.
fn flood(addr: &str) {
    let mut input = std::io::stdin().lock();
    input.read_line(&mut String::new()).unwrap();
    let held: Vec<_> = (0..CONNECTIONS).filter_map(|_| TcpStream::connect(addr).ok()).collect();
    println!("{} open", held.len());
    input.read_to_string(&mut String::new()).unwrap();
}
