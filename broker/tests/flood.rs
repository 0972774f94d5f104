//! A flood of connections, and a node that comes back meanwhile. In a process of its own, because it reads the memory
//! of the whole process.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use fleet_broker::{Broker, Reason};
use rustls::{ClientConfig, ClientConnection};
use tokio::{io::AsyncWriteExt, net::TcpSocket, net::TcpStream, runtime, time};

#[path = "common/memory.rs"]
mod memory;
#[path = "common/pki.rs"]
mod pki;

use memory::resident_bytes;
use pki::{ByCertificate, Pki, Secure, config, dial, node_uri};

/// One flood at a time.
static ALONE: Mutex<()> = Mutex::new(());
/// A known node must be back within this time.
const BACK: Duration = Duration::from_secs(5);
/// What a flood may leave behind: what the allocator keeps for the next one.
const LEFT: usize = 12 * 1024 * 1024;

#[expect(clippy::disallowed_methods, reason = "measures time")]
fn now() -> Instant {
    Instant::now()
}

struct Site {
    pki: Pki,
    broker: Broker,
    _link: fleet_broker::Link,
}

fn site(change: impl FnOnce(&mut fleet_broker::Config)) -> Site {
    let pki = Pki::new();
    let mut config = config(pki.keys());
    change(&mut config);
    let (broker, link) = Broker::start(config, Arc::new(ByCertificate)).unwrap();
    let site = Site { pki, broker, _link: link };
    // What all sessions share is paid for.
    for _ in 0..10 {
        site.come_back();
    }
    site
}

impl Site {
    fn addr(&self) -> SocketAddr {
        self.broker.mqtts_addr().unwrap()
    }

    /// A known node opens a session; how long that took.
    fn come_back(&self) -> Duration {
        let config = self.pki.client(Some(&node_uri("edge-1")));
        let started = now();
        let mut node = dial(self.addr(), &config);
        open(&mut node);
        let took = now().duration_since(started);
        node.write_all(&[0xE0, 0]).unwrap();
        assert_eq!(node.read(&mut [0]).unwrap(), 0);
        took
    }

    /// Waits until all is closed and says what is resident.
    fn after(&self) -> usize {
        let deadline = now() + Duration::from_secs(15);
        while self.broker.stats().connections.get() > 0 {
            assert!(now() < deadline, "connections stay");
            thread::yield_now();
        }
        resident_bytes()
    }
}

fn open(node: &mut Secure) {
    node.write_all(b"\x10\x12\0\x04MQTT\x04\x02\0\x3C\0\x06edge-1").unwrap();
    let mut answer = [0; 4];
    node.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [0x20, 2, 0, 0]);
}

/// A connection from 127.0.0.`from`.
async fn connect(addr: SocketAddr, from: u8) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((IpAddr::from(Ipv4Addr::new(127, 0, 0, from)), 0)))?;
    socket.connect(addr).await
}

/// What a client says first.
fn first_flight(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = fleet_schemas::enrol::HUB_NAME.try_into().unwrap();
    let mut connection = ClientConnection::new(config.clone(), name).unwrap();
    let mut bytes = vec![];
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

fn runtime() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_node_comes_back_under_500_handshakes_that_do_not_end() {
    let _alone = ALONE.lock().unwrap();
    let site = site(|_| ());
    let before = site.after();
    let hello = first_flight(&site.pki.client(None));
    let mut open = vec![];
    runtime().block_on(async {
        for n in 0..500_usize {
            // From the node's own address too: many share a carrier's.
            let mut stream = connect(site.addr(), 1 + u8::try_from(n % 3).unwrap()).await.unwrap();
            let said = match n % 4 {
                0 => &[][..],
                1 => &hello[..1],
                2 => &hello[..hello.len() / 2],
                _ => &hello[..],
            };
            stream.write_all(said).await.unwrap();
            open.push(stream);
        }
    });
    let worst = (0..20).map(|_| site.come_back()).max().unwrap();
    let held = resident_bytes().saturating_sub(before);
    println!("500 handshakes that do not end: back after {worst:?} at worst, {held} bytes resident more");
    assert!(worst < BACK, "{worst:?}");
    let left = site.after().saturating_sub(before);
    println!("and {left} bytes when they are over");
    assert_eq!(site.broker.stats().reason(Reason::HandshakeLate), 500);
    assert!(left < LEFT, "{left} bytes");
}

#[test]
fn a_node_comes_back_under_2_000_connections_a_second() {
    let _alone = ALONE.lock().unwrap();
    flood(&site(|_| ()), Duration::from_secs(10));
}

/// With caps that the flood reaches within the second, from an address each for every connection it opens.
#[test]
fn a_node_comes_back_while_every_place_is_taken() {
    let _alone = ALONE.lock().unwrap();
    let site = site(|config| config.max_handshakes = 200);
    let crowded = flood(&site, Duration::from_secs(4));
    assert!(crowded > 1_000, "{crowded} made room");
}

/// 2,000 bare connections a second from other addresses, held open as long as the gate lets them; says how many
/// made room.
fn flood(site: &Site, lasts: Duration) -> u64 {
    const EACH_10_MS: usize = 20;
    /// Both ends are in this process: so many are held open at most.
    const HELD: usize = 3_000;
    let before = site.after();
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let attack = {
        let (addr, stop, made) = (site.addr(), stop.clone(), made.clone());
        move || {
            runtime().block_on(async {
                let mut beat = time::interval(Duration::from_millis(10));
                let mut held = std::collections::VecDeque::new();
                for n in 0_usize.. {
                    beat.tick().await;
                    if stop.load(Relaxed) {
                        return;
                    }
                    for at in 0..EACH_10_MS {
                        let from = 2 + u8::try_from((n * EACH_10_MS + at) % 250).unwrap();
                        // A full queue of the system is the attack's own affair.
                        if let Ok(Ok(stream)) =
                            time::timeout(Duration::from_secs(1), connect(addr, from)).await
                        {
                            held.push_back(stream);
                            made.fetch_add(1, Relaxed);
                        }
                    }
                    while held.len() > HELD {
                        held.pop_front();
                    }
                }
            });
        }
    };
    let attack = thread::spawn(attack);
    let until = now() + lasts;
    let (mut worst, mut times, mut peak) = (Duration::ZERO, 0, 0);
    while now() < until {
        worst = worst.max(site.come_back());
        times += 1;
        peak = peak.max(resident_bytes().saturating_sub(before));
    }
    stop.store(true, Relaxed);
    attack.join().unwrap();
    let made = made.load(Relaxed);
    let crowded = site.broker.stats().reason(Reason::Crowded);
    let left = site.after().saturating_sub(before);
    println!(
        "{made} connections in {lasts:?}, {crowded} made room: a node came back {times} times, after {worst:?} at \
         worst; {peak} bytes resident more at most, {left} left"
    );
    assert!(made > 500 * usize::try_from(lasts.as_secs()).unwrap(), "no flood: {made}");
    assert!(worst < BACK, "{worst:?}");
    assert!(left < LEFT, "{left} bytes");
    crowded
}
