//! What a command costs: to many nodes until the last has it on its disk, to one real agent until it runs, and to read
//! pages of executions when there are very many.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fleet_schemas::{
    CommandId, Lane, NodeId, SessionId, StreamId, Topic, VERSION,
    batch::{Batch, Clock},
    cbor,
    command::{Orders, Report as Said, State},
    topic::Up,
};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time,
};

use super::{
    Error, Report,
    Target::AtMost,
    child, data, latencies,
    node::{connect, publish_birth},
    note_latency, proc, quantile_ms,
    wire::{self, Packet, Socket},
};
use crate::clock;

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The binary `fleet`; the agent is the one beside it.
    pub fleet: PathBuf,
    /// Where the temporary folder is made.
    pub folder: Option<PathBuf>,
    /// Nodes of the large selection.
    pub nodes: u16,
    /// Commands to one node, one after the other.
    pub single: u32,
    /// Executions that are stored when pages are read; made in commands to all nodes.
    pub stored: u32,
}

/// Sessions that open at a time.
const AT_ONCE: usize = 200;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between looks at a command.
const LOOK: Duration = Duration::from_millis(20);
/// Pages of each kind that are read.
const PAGES: u32 = 40;
const PAGE: u32 = 100;
const AGENT: &str = "bench-command";
/// Longest until the last of the nodes has a command.
const SPREAD_S: f64 = 5.0;
/// Most that the hub grows by it.
const GROWTH_MIB: f64 = 100.0;
/// Longest from the call until the command runs at one node.
const RUNNING_MS: f64 = 100.0;
/// Longest that any page takes.
const PAGE_MS: f64 = 50.0;

/// One node of the load: takes every offer at once, and keeps what it said in memory.
struct Node {
    id: NodeId,
    session: SessionId,
    socket: Socket,
    stream: StreamId,
    seq: u64,
    /// Reports said so far.
    records: u64,
    done: BTreeMap<CommandId, State>,
    /// Whether commands are done as soon as they are there.
    quick: Arc<AtomicBool>,
}

/// Runs it.
///
/// # Errors
/// [`Error`].
pub async fn run(config: &Config) -> Result<Report, Error> {
    let folder = child::Folder::new(config.folder.as_deref())?;
    let hub = child::hub(&config.fleet, folder.path(), None).await?;
    let api = Api { http: hub.http.clone(), url: format!("http://{}/api/v1", hub.addresses.http) };
    let mut report = Report::new("commands");
    let program = child::beside(&config.fleet, "fleet-agent")?;
    let agent = child::agent(&program, folder.path(), AGENT, hub.addresses.mqtt).await?;
    single(&api, config.single, &mut report).await?;
    agent.process.stop().await?;
    let quick = Arc::new(AtomicBool::new(false));
    let nodes = open(config.nodes, hub.addresses.mqtt, &quick).await?;
    let mut running = JoinSet::new();
    nodes.into_iter().for_each(|node| drop(running.spawn(node.run())));
    let pid = hub.process.pid();
    let work = async {
        spread(&api, config.nodes, pid, &mut report).await?;
        quick.store(true, Ordering::Relaxed);
        store(&api, config, &mut report).await?;
        pages(&api, &mut report).await
    };
    tokio::select! {
        done = work => done?,
        Some(ended) = running.join_next() => {
            return Err(ended.map_err(|error| Error::Child(format!("a node: {error}")))?.err().unwrap_or(
                Error::Child("a node of the load ended".to_owned()),
            ));
        }
    }
    running.shutdown().await;
    hub.process.stop().await?;
    Ok(report)
}

/// Commands to one real agent, one after the other.
async fn single(api: &Api, commands: u32, report: &mut Report) -> Result<(), Error> {
    let mut told = api.follow(AGENT).await?;
    api.until_known(AGENT).await?;
    let (mut runs, mut ends) = (latencies(), latencies());
    for _ in 0..commands {
        let began = clock::mono();
        let id = api.command(&json!({ "nodes": [AGENT], "kind": "ping" })).await?;
        let mut ran = false;
        loop {
            let next = time::timeout(PATIENCE, told.recv()).await.map_err(|_| Error::Late("a command"))?;
            let (of, state, at) = next.ok_or_else(|| Error::Child("the hub's stream ended".to_owned()))?;
            if of != id || !matches!(state.as_str(), "running" | "succeeded") {
                continue;
            }
            if !ran {
                note_latency(&mut runs, at.saturating_sub(began));
                ran = true;
            }
            if state == "succeeded" {
                note_latency(&mut ends, at.saturating_sub(began));
                break;
            }
        }
    }
    report.add("commands to one agent", f64::from(commands), "commands");
    report.add("call to running p50", quantile_ms(&runs, 0.5), "ms");
    report.judge("call to running p99", quantile_ms(&runs, 0.99), "ms", AtMost(RUNNING_MS));
    report.add("call to succeeded p99", quantile_ms(&ends, 0.99), "ms");
    report.note("one agent: a real fleet-agent with default settings; its disk and the hub's are waited for");
    Ok(())
}

/// One command to all nodes, until the last has it.
async fn spread(api: &Api, nodes: u16, pid: u32, report: &mut Report) -> Result<(), Error> {
    let (before, cpu) = (proc::rss(pid)?, proc::cpu(pid)?);
    let began = clock::mono();
    let id = api.command(&json!({ "selector": "kind=bench", "kind": "ping", "ttl_s": 600 })).await?;
    let answered = clock::mono().saturating_sub(began);
    let most = api.until_reached(&id, nodes, &["queued", "sent"], || proc::rss(pid)).await?;
    let took = clock::mono().saturating_sub(began);
    let used = proc::cpu(pid)?.since(&cpu).of(|_| true);
    report.add("nodes", f64::from(nodes), "sessions");
    report.add("answer to the call", answered.as_secs_f64(), "s");
    report.judge("all accepted after the call", took.as_secs_f64(), "s", AtMost(SPREAD_S));
    let growth = most.saturating_sub(before) as f64 / 1_048_576.0;
    report.judge("growth of the hub's memory", growth, "MiB", AtMost(GROWTH_MIB));
    report.add("CPU of an execution", used.as_secs_f64() * 1e6 / f64::from(nodes), "µs");
    report.note("many nodes: sessions over plain MQTT that keep what they accepted in memory");
    Ok(())
}

/// Commands to all nodes until so many executions are stored.
async fn store(api: &Api, config: &Config, report: &mut Report) -> Result<(), Error> {
    let commands = config.stored.div_ceil(u32::from(config.nodes).max(1));
    let began = clock::mono();
    let doing = ["queued", "sent", "accepted", "running"];
    for _ in 0..commands {
        let id = api.command(&json!({ "selector": "kind=bench", "kind": "ping", "ttl_s": 600 })).await?;
        api.until_reached(&id, config.nodes, &doing, || Ok(0)).await?;
    }
    let took = clock::mono().saturating_sub(began).as_secs_f64();
    let stored = f64::from(commands) * f64::from(config.nodes);
    report.add("executions stored", stored, "executions");
    if took > 0.0 && stored > 0.0 {
        report.add("executions from call to end", stored / took, "1/s");
    }
    Ok(())
}

/// Pages of what is stored.
async fn pages(api: &Api, report: &mut Report) -> Result<(), Error> {
    let mut slowest = 0.0_f64;
    let newest = api.get("commands?limit=1").await?;
    let id = newest.pointer("/items/0/id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let ways = [
        ("pages of commands", "commands?".to_owned()),
        ("pages of commands by state", "commands?state=succeeded&".to_owned()),
        ("pages of commands that none is like", "commands?state=expired&".to_owned()),
        ("pages of one node's commands", "nodes/bench-1/commands?".to_owned()),
        ("pages of one command's executions", format!("commands/{id}?")),
        ("pages of its executions in a state", format!("commands/{id}?state=succeeded&")),
    ];
    for (name, path) in ways {
        let mut took = latencies();
        let mut cursor = String::new();
        for _ in 0..PAGES {
            let began = clock::mono();
            let page = api.get(&format!("{path}limit={PAGE}{cursor}")).await?;
            note_latency(&mut took, clock::mono().saturating_sub(began));
            cursor = page
                .get("next")
                .and_then(Value::as_str)
                .map_or_else(String::new, |next| format!("&cursor={next}"));
        }
        report.add(format!("{name} p99"), quantile_ms(&took, 0.99), "ms");
        slowest = slowest.max(quantile_ms(&took, 1.0));
    }
    report.judge("slowest page", slowest, "ms", AtMost(PAGE_MS));
    Ok(())
}

/// The hub's API.
struct Api {
    http: reqwest::Client,
    url: String,
}

impl Api {
    async fn get(&self, path: &str) -> Result<Value, Error> {
        let answer = self.http.get(format!("{}/{path}", self.url)).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    /// Makes a command and gives its id.
    async fn command(&self, body: &Value) -> Result<String, Error> {
        let answer = self.http.post(format!("{}/commands", self.url)).json(body).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        let told = serde_json::from_str::<Value>(&text).ok();
        let id = told.as_ref().and_then(|told| told.get("id")?.as_str());
        id.map(str::to_owned)
            .ok_or_else(|| Error::Answer(format!("the hub answers {status} to a command: {text}")))
    }

    /// Waits until no execution is in one of these states any more; gives the most of what `look` saw.
    async fn until_reached(
        &self,
        id: &str,
        nodes: u16,
        before: &[&str],
        look: impl Fn() -> Result<u64, Error>,
    ) -> Result<u64, Error> {
        let deadline = clock::mono() + PATIENCE;
        let mut most = 0;
        loop {
            most = most.max(look()?);
            let command = self.get(&format!("commands/{id}?limit=1")).await?;
            let count = |state: &str| command.pointer(&format!("/states/{state}")).and_then(Value::as_u64);
            let all = State::ALL.iter().filter_map(|state| count(state.as_str())).sum::<u64>();
            let waiting = before.iter().filter_map(|state| count(state)).sum::<u64>();
            if all == u64::from(nodes) && waiting == 0 {
                return Ok(most);
            }
            if clock::mono() > deadline {
                return Err(Error::Answer(format!("{waiting} of {all} nodes never took {id}")));
            }
            time::sleep(LOOK).await;
        }
    }

    async fn until_known(&self, node: &str) -> Result<(), Error> {
        let deadline = clock::mono() + PATIENCE;
        while clock::mono() < deadline {
            let found = self.http.get(format!("{}/nodes/{node}", self.url)).send().await?;
            if found.status().is_success() {
                let node: Value = found.json().await?;
                if node.get("state").and_then(Value::as_str) == Some("online") {
                    return Ok(());
                }
            }
            time::sleep(LOOK).await;
        }
        Err(Error::Late("the agent's birth"))
    }

    /// States of a node's executions as the stream tells them: command, state, when.
    async fn follow(&self, node: &str) -> Result<mpsc::UnboundedReceiver<(String, String, Duration)>, Error> {
        let url = format!("{}/stream?kind=execution,node", self.url);
        let mut chunks = self.http.get(url).send().await?.error_for_status()?.bytes_stream();
        let (tell, told) = mpsc::unbounded_channel();
        let node = node.to_owned();
        tokio::spawn(async move {
            let mut rest = Vec::new();
            while let Some(Ok(chunk)) = chunks.next().await {
                let now = clock::mono();
                rest.extend_from_slice(&chunk);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    let change = line
                        .strip_prefix(b"data:")
                        .and_then(|data| serde_json::from_slice::<Value>(data).ok())
                        .filter(|change| change.get("node").and_then(Value::as_str) == Some(&node));
                    let word = |change: &Value, key: &str| Some(change.get(key)?.as_str()?.to_owned());
                    let told = change.and_then(|it| Some((word(&it, "id")?, word(&it, "state")?, now)));
                    if told.is_some_and(|told| tell.send(told).is_err()) {
                        return;
                    }
                }
            }
        });
        Ok(told)
    }
}

async fn open(
    nodes: u16,
    address: std::net::SocketAddr,
    quick: &Arc<AtomicBool>,
) -> Result<Vec<Node>, Error> {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut opening = JoinSet::new();
    for n in 1..=nodes {
        let (places, quick) = (places.clone(), quick.clone());
        opening.spawn(async move {
            let _place = places.acquire().await;
            Node::open(n, address, quick).await
        });
    }
    let mut opened = Vec::with_capacity(usize::from(nodes));
    while let Some(node) = opening.join_next().await {
        opened.push(node.map_err(|error| Error::Child(format!("a node: {error}")))??);
    }
    Ok(opened)
}

impl Node {
    /// Connects, and is born: the hub has answered.
    async fn open(n: u16, address: std::net::SocketAddr, quick: Arc<AtomicBool>) -> Result<Self, Error> {
        let id = NodeId::parse(&format!("bench-{n}")).expect("a node id");
        let session = SessionId(clock::random());
        let mut socket = connect(address, None, &id, "a secret of a benchmark", session).await?;
        publish_birth(&mut socket.out, &id, session, BTreeMap::new(), Some(Vec::new()));
        let stream = StreamId(clock::random());
        let mut node = Self { id, session, socket, stream, seq: 0, records: 0, done: BTreeMap::new(), quick };
        let deadline = clock::mono() + PATIENCE;
        while !node.step().await? {
            if clock::mono() > deadline {
                return Err(Error::Late("a birth"));
            }
        }
        Ok(node)
    }

    async fn run(mut self) -> Result<(), Error> {
        loop {
            self.step().await?;
        }
    }

    /// Moves bytes once and answers what was said; whether anything was.
    async fn step(&mut self) -> Result<bool, Error> {
        let lost =
            |error: std::io::Error| Error::Session { node: self.id.to_string(), why: error.to_string() };
        self.socket.step().await.map_err(lost)?;
        let (mut answers, mut heard) = (Vec::new(), Vec::new());
        let mut any = false;
        while let Some(packet) = self.socket.next().map_err(lost)? {
            if let Packet::Publish { topic, id, payload } = packet {
                any = true;
                answers.extend(id);
                if topic.ends_with(b"/command") {
                    heard.push(cbor::decode::<Orders>(payload));
                }
            }
        }
        answers.into_iter().for_each(|id| wire::puback(&mut self.socket.out, id));
        for orders in heard {
            let orders = orders.map_err(|error| Error::Answer(format!("orders cannot be read: {error}")))?;
            self.take(&orders);
        }
        self.socket
            .flush()
            .map_err(|error| Error::Session { node: self.id.to_string(), why: error.to_string() })?;
        Ok(any)
    }

    fn take(&mut self, orders: &Orders) {
        if orders.session != self.session {
            return;
        }
        let state = if self.quick.load(Ordering::Relaxed) { State::Succeeded } else { State::Accepted };
        let mut said = Vec::new();
        for offer in &orders.offers {
            if self.done.get(&offer.id) == Some(&state) {
                continue;
            }
            self.done.insert(offer.id, state);
            said.push(Said {
                id: offer.id,
                state,
                time_ms: clock::wall_ms(),
                reason: None,
                exit_code: None,
                output: None,
                result: None,
                too_late: false,
            });
        }
        if said.is_empty() {
            return;
        }
        self.seq += 1;
        let (seq, count) = (self.seq, said.len() as u64);
        let first = self.records + 1;
        self.records += count;
        let batch = Batch {
            v: VERSION,
            stream: self.stream,
            seq,
            seq_to: None,
            first,
            count,
            boot: data::BOOT,
            up_ms: data::BORN_UP_MS + seq,
            clock: Clock::Synced,
            sealed_ms: clock::wall_ms(),
            lost: None,
            body: cbor::encode(&said),
        };
        let topic = Topic::Up(self.id.clone(), Up::Lane(Lane::Command)).to_string();
        let id = u16::try_from(seq % 65_535).expect("a remainder") + 1;
        wire::publish(&mut self.socket.out, &topic, &cbor::encode(&batch), Some(id));
    }
}
