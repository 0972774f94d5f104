//! What a session costs the hub: memory of an idle one, before the node's birth and with all that the registry knows of
//! it, and processor time of a new one. Over plain MQTT, or over TLS with a certificate for every node.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use fleet_schemas::{NodeId, SessionId};
use tokio::{sync::Semaphore, task::JoinSet, time};

use super::{
    Error, Report,
    Target::AtMost,
    certificates::Certificates,
    child,
    node::{connect, publish_birth},
    proc,
    wire::{Packet, Socket},
};
use crate::clock;

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The binary `fleet`.
    pub fleet: PathBuf,
    /// Where the temporary folder is made.
    pub folder: Option<PathBuf>,
    /// Sessions.
    pub nodes: u16,
    /// Whether they come over TLS, with certificates of the hub's own CA.
    pub tls: bool,
}

/// Where nodes connect, and with what.
#[derive(Clone)]
struct Door {
    address: SocketAddr,
    certificates: Option<Arc<Certificates>>,
}

/// Sessions that open at a time.
const AT_ONCE: usize = 200;
/// The hub's memory is taken when it has not grown for so long.
const STILL: Duration = Duration::from_secs(2);
/// What the hub takes over TLS from one address, with room for those that connect again.
const TLS_MOST: u16 = 8_000;
/// Longest wait for that.
const PATIENCE: Duration = Duration::from_secs(30);

/// Most memory of an idle session with its node.
const PLAIN_KIB: f64 = 4.0;
/// The same over TLS: 30 kB.
const TLS_KIB: f64 = 30_000.0 / 1_024.0;
/// Most processor time of a new session over TLS with certificates on both sides.
const TLS_CPU_MS: f64 = 3.0;

type Session = (NodeId, SessionId, Socket);

/// Runs it.
///
/// # Errors
/// [`Error`].
pub async fn run(config: &Config) -> Result<Report, Error> {
    if config.tls && config.nodes > TLS_MOST {
        let why = format!("a hub takes at most {TLS_MOST} sessions over TLS from one address; ask for fewer");
        return Err(Error::Answer(why));
    }
    let folder = child::Folder::new(config.folder.as_deref())?;
    let hub = child::hub(&config.fleet, folder.path(), None).await?;
    let pid = hub.process.pid();
    let door = door(config.tls, &hub)?;
    // The first session and the first birth make what all share.
    let mut first = open(&door, 0).await?;
    bear(&mut first).await?;
    let bare = still(pid).await?;
    let mut report = Report::new("sessions");
    let nodes = f64::from(config.nodes);
    report.add("sessions", nodes, "sessions");
    report.add("hub without them", bare as f64 / 1_024.0, "KiB");
    let before = proc::cpu(pid)?;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut opening = JoinSet::new();
    for n in 1..=config.nodes {
        let (places, door) = (places.clone(), door.clone());
        opening.spawn(async move {
            let _place = places.acquire().await;
            open(&door, n).await
        });
    }
    let mut sessions = all(opening).await?;
    let used = proc::cpu(pid)?.since(&before).of(|_| true).as_secs_f64() * 1_000.0 / nodes;
    let each = |rss: u64| rss.saturating_sub(bare) as f64 / nodes / 1_024.0;
    report.add("memory of a session", each(still(pid).await?), "KiB");
    let mut bearing = JoinSet::new();
    for mut session in std::mem::take(&mut sessions) {
        let places = places.clone();
        bearing.spawn(async move {
            let _place = places.acquire().await;
            bear(&mut session).await?;
            Ok(session)
        });
    }
    sessions = all(bearing).await?;
    let whole = each(still(pid).await?);
    if config.tls {
        report.judge("memory of a session and its node", whole, "KiB", AtMost(TLS_KIB));
        report.judge("CPU of a new session", used, "ms", AtMost(TLS_CPU_MS));
        report.note("MQTT over TLS 1.3; a certificate a node, of one P-256 key; nothing is resumed");
        report.note("nodes have no row of enrolment: the hub lets them in by its CA's signature");
    } else {
        report.judge("memory of a session and its node", whole, "KiB", AtMost(PLAIN_KIB));
        report.add("CPU of a new session", used, "ms");
        report.note("plain MQTT; a new node's secret is written down at its first CONNECT");
    }
    report.note(
        "memory: resident of the hub, less that with one node, by sessions; CPU: all threads of the hub",
    );
    drop(sessions);
    hub.process.stop().await?;
    Ok(report)
}

async fn all(mut tasks: JoinSet<Result<Session, Error>>) -> Result<Vec<Session>, Error> {
    let mut sessions = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        sessions.push(ended.map_err(|error| Error::Child(format!("a session: {error}")))??);
    }
    Ok(sessions)
}

fn door(tls: bool, hub: &child::OwnHub) -> Result<Door, Error> {
    if !tls {
        return Ok(Door { address: hub.addresses.mqtt, certificates: None });
    }
    let none = || Error::Child("the hub serves no MQTT over TLS".to_owned());
    let address = hub.addresses.mqtts.ok_or_else(none)?;
    Ok(Door { address, certificates: Some(Arc::new(Certificates::of(&hub.data)?)) })
}

async fn open(door: &Door, n: u16) -> Result<Session, Error> {
    let id = NodeId::parse(&format!("bench-idle-{n}")).expect("a node id");
    let session = SessionId(clock::random());
    let tls = door.certificates.as_ref().map(|certificates| certificates.node(&id)).transpose()?;
    let mut socket = connect(door.address, tls.as_ref(), &id, "a secret of a benchmark", session).await?;
    socket.rest();
    Ok((id, session, socket))
}

/// Sends the birth and waits for its answer.
async fn bear((id, session, socket): &mut Session) -> Result<(), Error> {
    let lost = |why: String| Error::Session { node: id.to_string(), why };
    publish_birth(&mut socket.out, id, *session, BTreeMap::new(), None);
    let deadline = clock::mono() + PATIENCE;
    loop {
        let stepped = time::timeout(PATIENCE, socket.step()).await.map_err(|_| Error::Late("a birth"))?;
        stepped.map_err(|error| lost(error.to_string()))?;
        let mut answered = None;
        while let Some(packet) = socket.next().map_err(|error| lost(error.to_string()))? {
            if let Packet::Publish { id: Some(id), .. } = packet {
                answered = Some(id);
            }
        }
        if let Some(id) = answered {
            super::wire::puback(&mut socket.out, id);
            socket.flush().map_err(|error| lost(error.to_string()))?;
            socket.rest();
            return Ok(());
        }
        if clock::mono() > deadline {
            return Err(Error::Late("a birth"));
        }
    }
}

/// Resident memory, once it has settled.
async fn still(pid: u32) -> Result<u64, Error> {
    let deadline = clock::mono() + PATIENCE;
    let mut last = (proc::rss(pid)?, clock::mono());
    loop {
        time::sleep(Duration::from_millis(200)).await;
        let (rss, now) = (proc::rss(pid)?, clock::mono());
        if rss.abs_diff(last.0) > 64 * 1_024 {
            last = (rss, now);
        } else if now.saturating_sub(last.1) > STILL || now > deadline {
            return Ok(rss);
        }
    }
}
