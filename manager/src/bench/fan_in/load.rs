//! The load of fan-in and what it is counted by: publishers on a thread of their own, a subscriber on another.
//!
//! The same for every broker. Starts none.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use fleet_schemas::{
    Lane, NodeId, Topic,
    topic::{ALL_UP, Up},
};
use rustls::ClientConfig;
use tokio::{
    task::{JoinHandle, JoinSet},
    time,
};

use super::{
    super::{
        Error,
        certificates::Certificates,
        wire::{self, Connect, Packet, Socket},
    },
    Config,
};
use crate::clock;

/// Publishes of a client that may be unanswered.
pub(super) const WINDOW: usize = 100;
/// Not counted at the beginning.
const WARM_UP: Duration = Duration::from_secs(1);
/// Between looks at whether it began, or is over.
const LOOK: Duration = Duration::from_millis(20);
/// Long enough for any run; not 0, which rumqttd refuses.
const KEEP_ALIVE: u16 = 600;
/// Client id of subscribers.
pub(super) const SUBSCRIBER: &str = "consumer";

/// Counts what somebody got, until told to stop.
#[derive(Debug, Default)]
pub(super) struct Tally {
    messages: AtomicU64,
    stop: AtomicBool,
}

impl Tally {
    pub(super) fn add(&self, messages: usize) {
        self.messages.fetch_add(messages as u64, Ordering::Relaxed);
    }

    fn got(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Tells whoever counts here to end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Where publishers connect, and with what.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) address: SocketAddr,
    pub(super) certificates: Option<Arc<Certificates>>,
}

/// A subscriber that runs.
pub(super) struct Subscriber {
    pub(super) tally: Arc<Tally>,
    task: JoinHandle<Result<(), Error>>,
}

impl Subscriber {
    /// Starts one, over plain MQTT.
    pub(super) fn start(address: SocketAddr, qos: u8) -> Self {
        let tally = Arc::new(Tally::default());
        let counting = tally.clone();
        let task = tokio::task::spawn_blocking(move || own_runtime(subscribe(address, qos, &counting)));
        Self { tally, task }
    }

    /// Waits until it ended.
    pub(super) async fn end(self) -> Result<(), Error> {
        self.tally.stop();
        self.task.await.map_err(|error| Error::Child(format!("the subscriber: {error}")))?
    }
}

/// Messages a second at each of `tallies`, while publishers say what they can. Stops all of them.
pub(super) async fn measure(
    config: &Config,
    door: &Door,
    tallies: &[&Arc<Tally>],
) -> Result<Vec<f64>, Error> {
    let (clients, bytes, door) = (config.clients, config.bytes, door.clone());
    let stop = Arc::new(Tally::default());
    let stopping = stop.clone();
    let publishers =
        tokio::task::spawn_blocking(move || own_runtime(publish(door, clients, bytes, stopping)));
    let timed = async {
        // The sessions are open when messages arrive.
        while tallies.iter().any(|tally| tally.got() == 0) {
            time::sleep(LOOK).await;
        }
        time::sleep(WARM_UP).await;
        let count = || tallies.iter().map(|tally| tally.got()).collect::<Vec<_>>();
        let (first, began) = (count(), clock::mono());
        time::sleep(Duration::from_secs(config.seconds.into())).await;
        let (last, ended) = (count(), clock::mono());
        let seconds = ended.saturating_sub(began).as_secs_f64();
        last.iter().zip(&first).map(|(last, first)| (last - first) as f64 / seconds).collect()
    };
    let most = WARM_UP * 10 + Duration::from_secs(config.seconds.into());
    let rates = time::timeout(most, timed).await;
    stop.stop();
    tallies.iter().for_each(|tally| tally.stop());
    publishers.await.map_err(|error| Error::Child(format!("the generator: {error}")))??;
    rates.map_err(|_| Error::Late("fan-in"))
}

fn own_runtime<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::io("start a runtime"))?.block_on(work)
}

async fn subscribe(address: SocketAddr, qos: u8, tally: &Tally) -> Result<(), Error> {
    let lost =
        |error: std::io::Error| Error::Session { node: "the subscriber".to_owned(), why: error.to_string() };
    let who = Connect { id: SUBSCRIBER, password: "x", keep_alive: KEEP_ALIVE, will: None, tls: None };
    let mut socket = Socket::session(address, &who, Some((ALL_UP, qos))).await.map_err(lost)?;
    let mut answers = Vec::new();
    while !tally.stopped() {
        if let Ok(stepped) = time::timeout(WARM_UP, socket.step()).await {
            stepped.map_err(lost)?;
        }
        let mut messages = 0;
        while let Some(packet) = socket.next().map_err(lost)? {
            if let Packet::Publish { id, .. } = packet {
                messages += 1;
                answers.extend(id);
            }
        }
        tally.add(messages);
        for id in answers.drain(..) {
            wire::puback(&mut socket.out, id);
        }
    }
    Ok(())
}

async fn publish(door: Door, clients: u16, bytes: usize, stop: Arc<Tally>) -> Result<(), Error> {
    let mut all = JoinSet::new();
    for n in 0..clients {
        let id = NodeId::parse(&format!("bench-{n}")).expect("a node id");
        let tls = door.certificates.as_ref().map(|certificates| certificates.node(&id)).transpose()?;
        all.spawn(client(door.address, tls, id, bytes, stop.clone()));
    }
    while let Some(ended) = all.join_next().await {
        ended.map_err(|error| Error::Child(format!("the generator: {error}")))??;
    }
    Ok(())
}

async fn client(
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    id: NodeId,
    bytes: usize,
    stop: Arc<Tally>,
) -> Result<(), Error> {
    let lost = |error: std::io::Error| Error::Session { node: id.to_string(), why: error.to_string() };
    let tls = tls.as_ref();
    let who = Connect { id: id.as_str(), password: "x", keep_alive: KEEP_ALIVE, will: None, tls };
    let mut socket = Socket::session(address, &who, None).await.map_err(lost)?;
    let topic = Topic::Up(id.clone(), Up::Lane(Lane::Telemetry)).to_string();
    let payload = vec![b'x'; bytes];
    let (mut flying, mut next) = (0, 1);
    while !stop.stopped() {
        while flying < WINDOW {
            wire::publish(&mut socket.out, &topic, &payload, Some(next));
            next = if next == u16::MAX { 1 } else { next + 1 };
            flying += 1;
        }
        if let Ok(stepped) = time::timeout(WARM_UP, socket.step()).await {
            stepped.map_err(lost)?;
        }
        while let Some(packet) = socket.next().map_err(lost)? {
            if packet == Packet::PubAck {
                flying -= 1;
            }
        }
    }
    Ok(())
}
