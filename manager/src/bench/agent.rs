//! What an agent costs its machine: memory at rest, flash writes at default settings, processor time under load.

use std::{path::PathBuf, sync::Arc, time::Duration};

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time};

use super::{
    Error, Report,
    Target::AtMost,
    child,
    data::{METRICS, Walker},
    event::post,
    latencies, note_latency, proc, quantile_ms,
};
use crate::clock;

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The binary `fleet`; the agent is the one beside it.
    pub fleet: PathBuf,
    /// Where the temporary folder is made.
    pub folder: Option<PathBuf>,
    /// How long samples are handed in.
    pub seconds: u16,
    /// Upload intervals over which flash writes are counted; 0 leaves it out.
    pub intervals: u16,
}

/// Samples of a POST.
const POST: u32 = 100;
/// Samples a second.
const RATE: u32 = 20_000;
/// Programs that hand in at a time.
const CALLERS: u32 = 8;
/// What is counted begins so long after the first upload, which also carries what starting costs.
const SETTLE: Duration = Duration::from_secs(5);
/// Memory is taken after so long without work when no upload is waited for.
const IDLE: Duration = Duration::from_secs(15);
const DAY: f64 = 86_400.0;

/// Runs it.
///
/// # Errors
/// [`Error`].
pub async fn run(config: &Config) -> Result<Report, Error> {
    let program = child::beside(&config.fleet, "fleet-agent")?;
    let folder = child::Folder::new(config.folder.as_deref())?;
    let hub = child::hub(&config.fleet, folder.path(), None).await?;
    let agent = child::agent(&program, folder.path(), "bench-agent", hub.addresses.mqtt).await?;
    let pid = agent.process.pid();
    let mut report = Report::new("agent");
    if config.intervals > 0 {
        let upload = fleet_edge_agent::outbox::Config::default().upload;
        time::sleep(upload + SETTLE).await;
        let (before, began) = (proc::written(pid)?, clock::mono());
        let cpu = proc::cpu(pid)?;
        time::sleep(upload * config.intervals.into()).await;
        let written = proc::written(pid)?.saturating_sub(before) as f64;
        let idle = proc::cpu(pid)?.since(&cpu).total.as_secs_f64();
        let seconds = clock::mono().saturating_sub(began).as_secs_f64();
        report.add("upload intervals", f64::from(config.intervals), "intervals");
        report.add("an upload interval", upload.as_secs_f64(), "s");
        report.add("written in an interval", written / f64::from(config.intervals) / 1_024.0, "KiB");
        report.judge("written in a day", written / seconds * DAY / 1_048_576.0, "MiB", AtMost(50.0));
        report.add("CPU at rest", idle / seconds * 100.0, "% of a core");
    } else {
        time::sleep(IDLE).await;
    }
    report.judge("memory at rest", proc::rss(pid)? as f64 / 1_048_576.0, "MiB", AtMost(10.0));
    let before = proc::cpu(pid)?;
    let load = load(&agent.api, config.seconds).await?;
    let used = proc::cpu(pid)?.since(&before).total.as_secs_f64();
    let samples = f64::from(load.posts) * f64::from(POST);
    report.add("samples handed in", samples / load.seconds, "samples/s");
    report.add("samples wanted", f64::from(RATE), "samples/s");
    report.add("POST to 202 p50", quantile_ms(&load.latency, 0.5), "ms");
    report.add("POST to 202 p99", quantile_ms(&load.latency, 0.99), "ms");
    report.judge("CPU under load", used / load.seconds * 100.0, "% of a core", AtMost(20.0));
    report.add("CPU by sample", used * 1e6 / samples, "µs/sample");
    report.add("memory after the load", proc::rss(pid)? as f64 / 1_048_576.0, "MiB");
    let size = std::fs::metadata(&program).map_err(Error::io("look at the agent's file"))?.len();
    report.judge("the agent's file", size as f64 / 1_048_576.0, "MiB", AtMost(12.0));
    report.note(format!("{CALLERS} programs hand in POSTs of {POST}; the hub runs and takes all of it"));
    agent.process.stop().await?;
    hub.process.stop().await?;
    Ok(report)
}

struct Load {
    posts: u32,
    seconds: f64,
    latency: Histogram<u64>,
}

/// POSTs at a steady rate from several callers.
async fn load(api: &str, seconds: u16) -> Result<Load, Error> {
    let http = reqwest::Client::new();
    let url: Arc<str> = format!("{api}/api/v1/telemetry").into();
    let mut callers = JoinSet::new();
    let began = clock::mono();
    let end = began + Duration::from_secs(seconds.into());
    for caller in 0..CALLERS {
        callers.spawn(hand_in(http.clone(), url.clone(), caller, end));
    }
    let (mut posts, mut latency) = (0, latencies());
    while let Some(ended) = callers.join_next().await {
        let one = ended.map_err(|error| Error::Child(format!("a caller: {error}")))??;
        posts += u32::try_from(one.len()).unwrap_or(u32::MAX);
        latency.add(&one).expect("the same bounds");
    }
    Ok(Load { posts, seconds: clock::mono().saturating_sub(began).as_secs_f64(), latency })
}

async fn hand_in(
    http: reqwest::Client,
    url: Arc<str>,
    caller: u32,
    end: Duration,
) -> Result<Histogram<u64>, Error> {
    let mut walker = Walker::new(u64::from(caller) + 1, clock::wall_ms() - 86_400_000);
    let mut latency = latencies();
    let mut ticks = time::interval(Duration::from_secs(1) * (POST * CALLERS) / RATE);
    while clock::mono() < end {
        ticks.tick().await;
        let samples: Vec<Value> = (0..POST as usize / METRICS)
            .flat_map(|_| {
                let instant = walker.instant();
                instant.map(|(metric, unit, time_ms, value)| {
                    json!({ "metric": metric, "unit": unit, "time_ms": time_ms, "value": value })
                }).collect::<Vec<_>>()
            })
            .collect();
        let body = json!({ "device": format!("caller-{caller}"), "samples": samples });
        let asked = clock::mono();
        post(&http, &url, &body).await?;
        note_latency(&mut latency, clock::mono().saturating_sub(asked));
    }
    Ok(latency)
}
