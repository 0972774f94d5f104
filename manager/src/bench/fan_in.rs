//! Fan-in: QoS 1 publishes of many clients through gate and router to one consumer in this process, and the same
//! generator against mosquitto where that is installed.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use fleet_broker::{Broker, Credentials, Directory, Identity, Refusal, Verdict};
use fleet_schemas::{
    Lane, NodeId, Topic,
    topic::{ALL_UP, Up},
};
use tokio::{task::JoinSet, time};

use super::{
    Error, Report,
    Target::AtLeast,
    child,
    wire::{self, Connect, Packet, Socket},
};
use crate::clock;

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the temporary folder is made.
    pub folder: Option<PathBuf>,
    /// Publishers.
    pub clients: u16,
    /// Payload of a message, in bytes.
    pub bytes: usize,
    /// How long each broker is measured.
    pub seconds: u16,
}

/// Publishes of a client that may be unanswered.
const WINDOW: usize = 100;
/// Not counted at the beginning.
const WARM_UP: Duration = Duration::from_secs(1);
/// Messages that the consumer takes at once, and how long it waits for them.
const TAKE: (usize, Duration) = (1_000, Duration::from_millis(20));

/// Counts what the consumer got, until told to stop.
#[derive(Debug, Default)]
struct Tally {
    messages: AtomicU64,
    stop: AtomicBool,
}

impl Tally {
    fn add(&self, messages: usize) {
        self.messages.fetch_add(messages as u64, Ordering::Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// Runs it.
///
/// # Errors
/// [`Error`].
pub async fn run(config: &Config) -> Result<Report, Error> {
    let mut report = Report::new("fan-in");
    report.add("clients", f64::from(config.clients), "sessions");
    report.add("payload", config.bytes as f64, "bytes");
    let ours = ours(config).await?;
    report.add("gate and router", ours, "messages/s");
    match mosquitto(config).await? {
        Ok((version, theirs)) => {
            report.add("mosquitto", theirs, "messages/s");
            report.judge("gate and router by mosquitto", ours / theirs, "times", AtLeast(6.0));
            report.note(format!("{version}; QoS 1 to one subscriber, nothing limited, nothing persisted"));
        }
        Err(why) => report.note(format!("mosquitto: skipped, {why}")),
    }
    report
        .note(format!("{WINDOW} publishes of a client in flight; generator and consumer share the machine"));
    Ok(report)
}

/// Everybody is the node that its client id says.
struct Everybody;

impl Directory for Everybody {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict {
        NodeId::parse(credentials.client_id).map(Identity::Node).map_err(|_| Refusal::ClientId).into()
    }
}

async fn ours(config: &Config) -> Result<f64, Error> {
    let broker =
        fleet_broker::Config { mqtt: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), ..Default::default() };
    let (broker, mut link) =
        Broker::start(broker, Arc::new(Everybody)).map_err(|error| Error::Child(error.to_string()))?;
    let tally = Arc::new(Tally::default());
    let counting = tally.clone();
    let consumer = thread::spawn(move || {
        let mut messages = Vec::new();
        while link.recv(&mut messages, TAKE.0, TAKE.1).is_ok() {
            counting.add(messages.len());
            link.taken(&messages);
            messages.clear();
        }
    });
    let rate = measure(config, broker.mqtt_addr(), &tally).await;
    let joined = tokio::task::spawn_blocking(move || {
        broker.shutdown();
        consumer.join()
    });
    match joined.await {
        Ok(Ok(())) => rate,
        Ok(Err(_)) | Err(_) => Err(Error::Child("the consumer's thread panicked".to_owned())),
    }
}

/// Version and rate, or why there is none.
async fn mosquitto(config: &Config) -> Result<Result<(String, f64), String>, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let Some(program) = folders.map(|folder| folder.join("mosquitto")).find(|path| path.is_file()) else {
        return Ok(Err("no program of that name is on PATH".to_owned()));
    };
    let help =
        Command::new(&program).arg("-h").output().map_err(Error::io("ask mosquitto for its version"))?;
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let version = help.lines().next().unwrap_or_default().to_owned();
    if !version.contains("version 2.") {
        return Ok(Err(format!("{version:?} is no version 2")));
    }
    let folder = child::Folder::new(config.folder.as_deref())?;
    let address = child::free_address()?;
    let text = format!(
        "listener {} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_inflight_messages 0\n\
         max_queued_messages 0\nset_tcp_nodelay true\nlog_type error\n",
        address.port()
    );
    let file = folder.path().join("mosquitto.conf");
    fs::write(&file, text).map_err(Error::io("write mosquitto's configuration"))?;
    let file = file.display().to_string();
    let log = folder.path().join("mosquitto.log");
    let mut process = child::Process::start("mosquitto", &program, &["-c", &file], &log)?;
    process.until(async || Socket::open(address).await.ok()).await?;
    let tally = Arc::new(Tally::default());
    let counting = tally.clone();
    let subscriber = tokio::task::spawn_blocking(move || own_runtime(subscribe(address, counting)));
    let rate = measure(config, address, &tally).await;
    let subscribed = subscriber.await.map_err(|error| Error::Child(format!("the subscriber: {error}")))?;
    process.stop().await?;
    subscribed?;
    rate.map(|rate| Ok((version, rate)))
}

async fn subscribe(address: SocketAddr, tally: Arc<Tally>) -> Result<(), Error> {
    let lost =
        |error: std::io::Error| Error::Session { node: "the subscriber".to_owned(), why: error.to_string() };
    let who = Connect { id: "consumer", password: "x", keep_alive: 0, will: None };
    let mut socket = Socket::session(address, &who, Some((ALL_UP, 1))).await.map_err(lost)?;
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

fn own_runtime<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::io("start a runtime"))?.block_on(work)
}

/// Messages a second at the consumer.
async fn measure(config: &Config, address: SocketAddr, tally: &Arc<Tally>) -> Result<f64, Error> {
    let (clients, bytes, publishing) = (config.clients, config.bytes, tally.clone());
    let publishers =
        tokio::task::spawn_blocking(move || own_runtime(publish(address, clients, bytes, publishing)));
    let timed = async {
        // The sessions are open when messages arrive.
        while tally.messages.load(Ordering::Relaxed) == 0 {
            time::sleep(TAKE.1).await;
        }
        time::sleep(WARM_UP).await;
        let (first, began) = (tally.messages.load(Ordering::Relaxed), clock::mono());
        time::sleep(Duration::from_secs(config.seconds.into())).await;
        let (last, ended) = (tally.messages.load(Ordering::Relaxed), clock::mono());
        (last - first) as f64 / ended.saturating_sub(began).as_secs_f64()
    };
    let most = WARM_UP * 10 + Duration::from_secs(config.seconds.into());
    let rate = time::timeout(most, timed).await;
    tally.stop.store(true, Ordering::Release);
    publishers.await.map_err(|error| Error::Child(format!("the generator: {error}")))??;
    rate.map_err(|_| Error::Late("fan-in"))
}

async fn publish(address: SocketAddr, clients: u16, bytes: usize, tally: Arc<Tally>) -> Result<(), Error> {
    let mut all = JoinSet::new();
    for n in 0..clients {
        all.spawn(client(address, n, bytes, tally.clone()));
    }
    while let Some(ended) = all.join_next().await {
        ended.map_err(|error| Error::Child(format!("the generator: {error}")))??;
    }
    Ok(())
}

async fn client(address: SocketAddr, n: u16, bytes: usize, tally: Arc<Tally>) -> Result<(), Error> {
    let id = NodeId::parse(&format!("bench-{n}")).expect("a node id");
    let lost = |error: std::io::Error| Error::Session { node: format!("bench-{n}"), why: error.to_string() };
    let who = Connect { id: id.as_str(), password: "x", keep_alive: 0, will: None };
    let mut socket = Socket::session(address, &who, None).await.map_err(lost)?;
    let topic = Topic::Up(id.clone(), Up::Lane(Lane::Telemetry)).to_string();
    let payload = vec![b'x'; bytes];
    let (mut flying, mut next) = (0, 1);
    while !tally.stopped() {
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
