//! An event's way: from the 202 of the edge API, through the agent's outbox and the hub's commit, to a reader of the
//! hub's stream. First while the node drains a backlog, then at rest.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use fleet_schemas::NodeId;
use futures_util::StreamExt as _;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time};

use super::{
    Error, Report,
    Target::AtMost,
    child,
    data::{INSTANT_MS, METRICS, Walker},
    latencies, note_latency, quantile_ms,
};
use crate::{
    api::shapes::{Account, Ledger},
    clock,
};

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The binary `fleet`; the agent is the one beside it.
    pub fleet: PathBuf,
    /// Where the temporary folder is made.
    pub folder: Option<PathBuf>,
    /// Events at rest.
    pub events: u32,
    /// Samples that wait at the node when the hub comes up.
    pub backlog: u32,
}

/// Instants of a POST of the backlog: its body stays below the edge API's 256 KiB.
const INSTANTS: u32 = 200;
/// Between two events at rest.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most events during the drain.
const MOST: u32 = 20_000;
const NODE: &str = "bench-event";

/// What the stream told, and when.
enum Told {
    /// The node changed: its session began.
    Node,
    /// The event with this id is committed.
    Event(String, Duration),
}

/// Runs it.
///
/// # Errors
/// [`Error`].
pub async fn run(config: &Config) -> Result<Report, Error> {
    let program = child::beside(&config.fleet, "fleet-agent")?;
    let folder = child::Folder::new(config.folder.as_deref())?;
    let mqtt = child::free_address()?;
    let node = NodeId::parse(NODE).expect("a node id");
    let agent = child::agent(&program, folder.path(), node.as_str(), mqtt).await?;
    let http = reqwest::Client::new();
    let filled = clock::mono();
    fill(&http, &agent.api, config.backlog).await?;
    let filled = clock::mono().saturating_sub(filled);
    let hub = child::hub(&config.fleet, folder.path(), Some(mqtt)).await?;
    let mut told = listen(&hub.http, &format!("http://{}", hub.addresses.http)).await?;
    let mut report = Report::new("event");
    let began = until_born(&mut told).await?;
    if config.backlog > 0 {
        let mut drain = Run::default();
        let mut drained = None;
        while drained.is_none() && drain.sent < MOST {
            drain.one(&http, &agent.api).await?;
            if drain.sent.is_multiple_of(4) && is_drained(&http, &agent.api).await? {
                drained = Some(clock::mono().saturating_sub(began));
            }
        }
        let stored = stored(&hub.http, &format!("http://{}", hub.addresses.http)).await?;
        if stored + unsealed() < u64::from(config.backlog) {
            let why =
                format!("the agent calls its backlog drained, the hub has {stored} of {}", config.backlog);
            return Err(Error::Answer(why));
        }
        let found = drain.found(&mut told).await?;
        report.add("backlog", f64::from(config.backlog), "samples");
        report.add("stored when drained", stored as f64, "samples");
        report.add("backlog handed in", filled.as_secs_f64(), "s");
        let drained = drained.ok_or(Error::Late("draining the backlog"))?;
        report.add("backlog drained", drained.as_secs_f64(), "s");
        add(&mut report, "during the drain", &found);
    }
    let mut rest = Run { first: MOST, ..Run::default() };
    let mut ticks = time::interval(PAUSE);
    for _ in 0..config.events {
        ticks.tick().await;
        rest.one(&http, &agent.api).await?;
    }
    let found = rest.found(&mut told).await?;
    add(&mut report, "at rest", &found);
    report.note(
        "an event is handed in when the one before is answered; each answer waits for the agent's disk",
    );
    drop(told);
    agent.process.stop().await?;
    hub.process.stop().await?;
    Ok(report)
}

fn add(report: &mut Report, when: &str, found: &Histogram<u64>) {
    report.add(format!("events {when}"), found.len() as f64, "events");
    report.add(format!("202 to stream {when} p50"), quantile_ms(found, 0.5), "ms");
    report.judge(format!("202 to stream {when} p99"), quantile_ms(found, 0.99), "ms", AtMost(250.0));
    report.add(format!("202 to stream {when} max"), quantile_ms(found, 1.0), "ms");
}

/// Fewer samples than make a batch by the agent's default: they wait for its schedule.
fn unsealed() -> u64 {
    fleet_edge_agent::outbox::Config::default().batch_samples as u64
}

async fn fill(http: &reqwest::Client, api: &str, backlog: u32) -> Result<(), Error> {
    let instants = backlog.div_ceil(METRICS as u32);
    let mut walker = Walker::new(1, clock::wall_ms() - i64::from(instants) * INSTANT_MS);
    let mut left = instants;
    while left > 0 {
        let now = left.min(INSTANTS);
        left -= now;
        let mut samples = Vec::with_capacity(now as usize * METRICS);
        for _ in 0..now {
            samples.extend(walker.instant().map(|(metric, unit, time_ms, value)| {
                json!({ "metric": metric, "unit": unit, "time_ms": time_ms, "value": value })
            }));
        }
        post(http, &format!("{api}/api/v1/telemetry"), &json!({ "samples": samples })).await?;
    }
    Ok(())
}

/// POSTs and expects 202.
pub(super) async fn post(http: &reqwest::Client, url: &str, body: &Value) -> Result<(), Error> {
    let answer = http.post(url).json(body).send().await?;
    let status = answer.status();
    let text = answer.text().await?;
    if status != reqwest::StatusCode::ACCEPTED {
        return Err(Error::Answer(format!("the edge API answers {status} instead of 202: {text}")));
    }
    Ok(())
}

/// Whether the hub has acked all that the agent has sealed; less than a batch waits for the next upload.
async fn is_drained(http: &reqwest::Client, api: &str) -> Result<bool, Error> {
    let status: Value = http.get(format!("{api}/api/v1/status")).send().await?.json().await?;
    let count = |pointer: &str| {
        let told = || Error::Answer(format!("the agent's status does not tell {pointer}"));
        status.pointer(pointer).and_then(Value::as_u64).ok_or_else(told)
    };
    let lane = |lane: &str| count(&format!("/outbox/lanes/{lane}/unacked_batches")).or(Ok::<_, Error>(0));
    Ok(lane("telemetry")? + lane("backfill")? == 0 && count("/outbox/pending_samples")? < unsealed())
}

/// Samples that the hub has of the node.
async fn stored(http: &reqwest::Client, hub: &str) -> Result<u64, Error> {
    let answer = http.get(format!("{hub}/api/v1/ledger?node={NODE}")).send().await?;
    let ledger: Ledger = answer.error_for_status()?.json().await?;
    let carries = |account: &&Account| account.lane == "telemetry" || account.lane == "backfill";
    Ok(ledger.accounts.iter().filter(carries).map(|account| account.stored).sum())
}

/// Reads the hub's stream in a task of its own.
async fn listen(http: &reqwest::Client, hub: &str) -> Result<mpsc::UnboundedReceiver<Told>, Error> {
    let answer = http.get(format!("{hub}/api/v1/stream?kind=node,event&node={NODE}")).send().await?;
    let mut chunks = answer.error_for_status()?.bytes_stream();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut rest = Vec::new();
        let mut kind = String::new();
        while let Some(Ok(chunk)) = chunks.next().await {
            let now = clock::mono();
            rest.extend_from_slice(&chunk);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                if let Some(name) = line.strip_prefix("event:") {
                    name.trim().clone_into(&mut kind);
                }
                let Some(data) = line.strip_prefix("data:") else { continue };
                let said = match kind.as_str() {
                    "node" => Some(Told::Node),
                    "event" => serde_json::from_str::<Value>(data)
                        .ok()
                        .and_then(|event| Some(Told::Event(event.get("id")?.as_str()?.to_owned(), now))),
                    _ => None,
                };
                if said.is_some_and(|said| tell.send(said).is_err()) {
                    return;
                }
            }
        }
    });
    Ok(told)
}

async fn until_born(told: &mut mpsc::UnboundedReceiver<Told>) -> Result<Duration, Error> {
    let born = time::timeout(PATIENCE, told.recv()).await.map_err(|_| Error::Late("the node's birth"))?;
    born.map(|_| clock::mono()).ok_or_else(|| Error::Child("the hub's stream ended".to_owned()))
}

/// Events that were handed in.
#[derive(Debug, Default)]
struct Run {
    first: u32,
    sent: u32,
    answered: HashMap<String, Duration>,
}

impl Run {
    async fn one(&mut self, http: &reqwest::Client, api: &str) -> Result<(), Error> {
        let id = format!("e{}", self.first + self.sent);
        let body = json!({ "kind": "bench", "severity": "info", "message": "measured", "id": id });
        post(http, &format!("{api}/api/v1/events"), &body).await?;
        self.answered.insert(id, clock::mono());
        self.sent += 1;
        Ok(())
    }

    /// Waits until the stream told all of them.
    async fn found(mut self, told: &mut mpsc::UnboundedReceiver<Told>) -> Result<Histogram<u64>, Error> {
        let mut found = latencies();
        while !self.answered.is_empty() {
            let next = time::timeout(PATIENCE, told.recv()).await.map_err(|_| Error::Late("an event"))?;
            match next.ok_or_else(|| Error::Child("the hub's stream ended".to_owned()))? {
                Told::Node => {}
                Told::Event(id, at) => {
                    if let Some(answered) = self.answered.remove(&id) {
                        note_latency(&mut found, at.saturating_sub(answered));
                    }
                }
            }
        }
        Ok(found)
    }
}
