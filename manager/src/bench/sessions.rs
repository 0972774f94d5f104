//! What an idle session costs the hub in memory: before the node's birth, and with all that the registry knows of it.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use fleet_schemas::{NodeId, SessionId};
use tokio::{sync::Semaphore, task::JoinSet, time};

use super::{
    Error, Report,
    Target::AtMost,
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
}

/// Sessions that open at a time.
const AT_ONCE: usize = 200;
/// The hub's memory is taken when it has not grown for so long.
const STILL: Duration = Duration::from_secs(2);
/// Longest wait for that.
const PATIENCE: Duration = Duration::from_secs(30);

type Session = (NodeId, SessionId, Socket);

/// Runs it.
///
/// # Errors
/// [`Error`].
pub async fn run(config: &Config) -> Result<Report, Error> {
    let folder = child::Folder::new(config.folder.as_deref())?;
    let hub = child::hub(&config.fleet, folder.path(), None).await?;
    let (pid, mqtt) = (hub.process.pid(), hub.addresses.mqtt);
    // The first session and the first birth make what all share.
    let mut first = open(mqtt, 0).await?;
    bear(&mut first).await?;
    let bare = still(pid).await?;
    let mut report = Report::new("sessions");
    let nodes = f64::from(config.nodes);
    report.add("sessions", nodes, "sessions");
    report.add("hub without them", bare as f64 / 1_024.0, "KiB");
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut opening = JoinSet::new();
    for n in 1..=config.nodes {
        let places = places.clone();
        opening.spawn(async move {
            let _place = places.acquire().await;
            open(mqtt, n).await
        });
    }
    let mut sessions = all(opening).await?;
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
    report.judge("memory of a session and its node", each(still(pid).await?), "KiB", AtMost(4.0));
    report.note("resident memory of the hub, less that with one node, by sessions; plain MQTT");
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

async fn open(mqtt: SocketAddr, n: u16) -> Result<Session, Error> {
    let id = NodeId::parse(&format!("bench-idle-{n}")).expect("a node id");
    let session = SessionId(clock::random());
    let mut socket = connect(mqtt, &id, "a secret of a benchmark", session).await?;
    socket.rest();
    Ok((id, session, socket))
}

/// Sends the birth and waits for its answer.
async fn bear((id, session, socket): &mut Session) -> Result<(), Error> {
    let lost = |why: String| Error::Session { node: id.to_string(), why };
    publish_birth(&mut socket.out, id, *session, BTreeMap::new());
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
