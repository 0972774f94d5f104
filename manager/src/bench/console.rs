//! The console: how long its pages take with a large fleet, and what open pages cost while the fleet changes.

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf, sync::Arc, time::Duration};

use fleet_schemas::{
    NodeId, SessionId, Topic, VERSION,
    batch::Clock,
    cbor,
    session::{Heartbeat, OutboxUse, Pending},
    topic::Up,
};
use futures_util::StreamExt as _;
use reqwest::{
    Client, StatusCode,
    header::{COOKIE, SET_COOKIE},
    redirect::Policy,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{self, MissedTickBehavior},
};

use super::{
    Error, Report,
    Target::AtMost,
    child, data, latencies,
    node::{connect, publish_birth},
    note_latency, proc, quantile_ms,
    wire::{self, Socket},
};
use crate::clock;

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The binary `fleet`.
    pub fleet: PathBuf,
    /// Where the temporary folder is made.
    pub folder: Option<PathBuf>,
    /// Nodes that the hub knows.
    pub nodes: u16,
    /// Open pages.
    pub browsers: u16,
    /// Heartbeats a second, each of another node.
    pub changes: u16,
    /// How long open pages are watched.
    pub seconds: u16,
}

/// Times that each page is asked for.
const ASKED: u32 = 150;
/// Sessions that open at a time.
const AT_ONCE: usize = 200;
/// Heartbeats go out in so many turns a second.
const TURNS: u16 = 20;
/// Longest that the first look at a large fleet may take.
const PAGE_MS: f64 = 300.0;
/// Most that open pages may take of a core.
const SHARE: f64 = 10.0;
/// Pages that are asked for: name, path.
const PAGES: [(&str, &str); 4] = [
    ("fleet", "/"),
    ("search", "/?q=7"),
    ("selector", "/?selector=site+in+(site-1,site-2),state%21%3Doffline"),
    ("last page", "/?page=200"),
];

/// A node that only says that it is there.
struct Node {
    id: NodeId,
    session: SessionId,
    socket: Socket,
    beats: u64,
}

/// Runs it.
///
/// # Errors
/// [`Error`].
pub async fn run(config: &Config) -> Result<Report, Error> {
    let folder = child::Folder::new(config.folder.as_deref())?;
    let hub = child::hub(&config.fleet, folder.path(), None).await?;
    let base = format!("http://{}", hub.addresses.http);
    import(&hub.http, &base, config.nodes).await?;
    let cookie = log_in(&hub, &base).await?;
    let client = Client::builder().redirect(Policy::none()).build()?;
    let mut report = Report::new("console");
    report.add("nodes", f64::from(config.nodes), "nodes");
    for (name, path) in PAGES {
        let mut took = latencies();
        let mut bytes = 0;
        for _ in 0..ASKED {
            let began = clock::mono();
            let answer = client.get(format!("{base}{path}")).header(COOKIE, &cookie).send().await?;
            let status = answer.status();
            bytes = answer.bytes().await?.len();
            note_latency(&mut took, clock::mono().saturating_sub(began));
            if status != StatusCode::OK {
                return Err(Error::Answer(format!("{path} is answered {status}")));
            }
        }
        report.add(format!("{name} p50"), quantile_ms(&took, 0.5), "ms");
        report.judge(format!("{name} p99"), quantile_ms(&took, 0.99), "ms", AtMost(PAGE_MS));
        report.add(format!("{name} size"), bytes as f64 / 1_024.0, "KiB");
    }
    let nodes = open(config.changes, hub.addresses.mqtt).await?;
    let mut beating = tokio::spawn(beat(nodes));
    let watched = watch(config, &hub, &client, &base, &cookie, &mut report);
    tokio::select! {
        watched = watched => watched?,
        ended = &mut beating => {
            return Err(ended.map_err(|error| Error::Child(format!("the nodes: {error}")))?.err().unwrap_or(
                Error::Child("the nodes of the load ended".to_owned()),
            ));
        }
    }
    beating.abort();
    report.note("pages: from the request to the last byte, one at a time; every node is looked at for each");
    report.note("open pages: processor time of all threads of the hub with them, less that without");
    hub.process.stop().await?;
    Ok(report)
}

/// What the hub takes for the changes alone, and what with open pages.
async fn watch(
    config: &Config,
    hub: &child::OwnHub,
    client: &Client,
    base: &str,
    cookie: &str,
    report: &mut Report,
) -> Result<(), Error> {
    let (pid, window) = (hub.process.pid(), Duration::from_secs(config.seconds.into()));
    time::sleep(Duration::from_secs(2)).await;
    let alone = share(pid, window).await?;
    let mut pages = JoinSet::new();
    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..config.browsers {
        let answer = client.get(format!("{base}/live")).header(COOKIE, cookie).send().await?;
        if answer.status() != StatusCode::OK {
            return Err(Error::Answer(format!("/live is answered {}", answer.status())));
        }
        let told = told.clone();
        pages.spawn(async move {
            let mut body = answer.bytes_stream();
            while let Some(Ok(bytes)) = body.next().await {
                // An error means that nobody counts any more.
                let _ = told.send(bytes.len());
            }
        });
    }
    time::sleep(Duration::from_secs(2)).await;
    while tells.try_recv().is_ok() {}
    let with = share(pid, window).await?;
    let (mut messages, mut bytes) = (0_u64, 0_u64);
    while let Ok(length) = tells.try_recv() {
        messages += 1;
        bytes += length as u64;
    }
    if messages == 0 {
        return Err(Error::Answer("no open page was told anything".to_owned()));
    }
    let seconds = window.as_secs_f64();
    report.add("open pages", f64::from(config.browsers), "pages");
    report.add("changes", f64::from(config.changes), "1/s");
    report.add("hub without open pages", alone, "% of a core");
    report.judge("open pages alone", (with - alone).max(0.0), "% of a core", AtMost(SHARE));
    report.add("told to a page", messages as f64 / seconds / f64::from(config.browsers), "pieces/s");
    report.add("told to all", bytes as f64 / seconds / 1_024.0, "KiB/s");
    pages.shutdown().await;
    Ok(())
}

/// Processor time over a while, in percent of a core.
async fn share(pid: u32, window: Duration) -> Result<f64, Error> {
    let (before, began) = (proc::cpu(pid)?, clock::mono());
    time::sleep(window).await;
    let used = proc::cpu(pid)?.since(&before).of(|_| true);
    Ok(used.as_secs_f64() / clock::mono().saturating_sub(began).as_secs_f64() * 100.0)
}

async fn import(http: &Client, base: &str, nodes: u16) -> Result<(), Error> {
    let mut csv = "id,site\n".to_owned();
    for n in 0..nodes {
        let _ = writeln!(csv, "node-{n:05},site-{}", n % 40);
    }
    let request = http.post(format!("{base}/api/v1/nodes/import")).header("content-type", "text/csv");
    let answer = request.body(csv).send().await?;
    match answer.status() {
        StatusCode::OK => Ok(()),
        status => Err(Error::Answer(format!("the import is answered {status}"))),
    }
}

/// Logs in as a browser does; gives the cookie.
async fn log_in(hub: &child::OwnHub, base: &str) -> Result<String, Error> {
    let browser = Client::builder().redirect(Policy::none()).build()?;
    let path = hub.data.join(crate::cli::ADMIN);
    let kept = std::fs::read_to_string(&path).map_err(Error::io(format!("read {}", path.display())))?;
    let token = kept.lines().nth(1).unwrap_or_default();
    let form = browser.get(format!("{base}/login")).send().await?;
    let odd = || Error::Answer("the login form sets no cookie".to_owned());
    let cookie = pair(&form).ok_or_else(odd)?;
    let (_, csrf) = cookie.split_once('=').ok_or_else(odd)?;
    let fields = [("csrf", csrf), ("token", token)];
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let request = browser.post(format!("{base}/login")).header(COOKIE, &cookie).body(body);
    let answer = request.header("content-type", "application/x-www-form-urlencoded").send().await?;
    pair(&answer).ok_or_else(|| Error::Answer(format!("the login is answered {}", answer.status())))
}

fn pair(answer: &reqwest::Response) -> Option<String> {
    Some(answer.headers().get(SET_COOKIE)?.to_str().ok()?.split(';').next()?.to_owned())
}

async fn open(nodes: u16, address: std::net::SocketAddr) -> Result<Vec<Node>, Error> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut opening = JoinSet::new();
    for n in 0..nodes {
        let places = places.clone();
        opening.spawn(async move {
            let _place = places.acquire().await;
            // First by name: the first page of the list is full of them.
            let id = NodeId::parse(&format!("bench-{n:05}")).expect("a node id");
            let session = SessionId(clock::random());
            let mut socket = connect(address, None, &id, "a secret of a benchmark", session).await?;
            publish_birth(&mut socket.out, &id, session, BTreeMap::new(), None);
            Ok::<_, Error>(Node { id, session, socket, beats: 0 })
        });
    }
    let mut nodes = Vec::new();
    while let Some(opened) = opening.join_next().await {
        nodes.push(opened.map_err(|error| Error::Child(format!("a session: {error}")))??);
    }
    Ok(nodes)
}

/// Has each node say once a second that it is there.
async fn beat(mut nodes: Vec<Node>) -> Result<(), Error> {
    let mut turns = time::interval(Duration::from_secs(1) / u32::from(TURNS));
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let each = nodes.len().div_ceil(TURNS.into()).max(1);
    loop {
        for some in nodes.chunks_mut(each) {
            turns.tick().await;
            for node in some {
                node.beat()?;
            }
        }
    }
}

impl Node {
    fn beat(&mut self) -> Result<(), Error> {
        let lost =
            |error: std::io::Error| Error::Session { node: self.id.to_string(), why: error.to_string() };
        self.beats += 1;
        let beat = Heartbeat {
            v: VERSION,
            session: self.session,
            boot: data::BOOT,
            up_ms: data::BORN_UP_MS + self.beats * 1_000,
            clock: Clock::Synced,
            time_ms: clock::wall_ms(),
            interval_ms: 3_600_000,
            system: [
                ("cpu_percent".to_owned(), (self.beats % 100) as f64),
                ("mem_used_bytes".to_owned(), (self.beats % 64) as f64),
                ("mem_total_bytes".to_owned(), 64.0),
            ]
            .into(),
            lanes: BTreeMap::new(),
            partial: false,
            pending: Pending::default(),
            config: None,
            outbox: OutboxUse { bytes: 0, quota_bytes: 1 << 28 },
        };
        let topic = Topic::Up(self.id.clone(), Up::Heartbeat).to_string();
        wire::publish(&mut self.socket.out, &topic, &cbor::encode(&beat), None);
        self.socket.flush().map_err(lost)
    }
}
