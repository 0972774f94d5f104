//! Ingest: many nodes send sealed batches as fast as the hub makes them durable; meanwhile somebody looks at charts.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use fleet_schemas::{NodeId, StreamId};
use hdrhistogram::Histogram;
use tokio::{sync::Barrier, task::JoinSet, time};

use super::{
    Error, Report,
    Target::{AtLeast, AtMost},
    child,
    data::Stock,
    latencies,
    node::{Found, Node},
    note_latency, proc, quantile_ms,
};
use crate::{api::shapes::Ledger, clock};

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The binary `fleet`, for a hub of our own.
    pub fleet: PathBuf,
    /// Where the temporary folder is made.
    pub folder: Option<PathBuf>,
    /// A hub that runs already, by HTTP and MQTT address: then nothing is known of its process.
    pub hub: Option<(String, SocketAddr)>,
    /// An operator's token for that hub.
    pub token: Option<String>,
    /// Sessions.
    pub nodes: u16,
    /// Samples of a batch, a multiple of 10.
    pub batch: u16,
    /// How long.
    pub seconds: u16,
    /// Most batches a node sends; by default more than the hub can take in the time.
    pub most: Option<usize>,
    /// Threads of the generator.
    pub threads: u16,
}

/// Samples and batches a second that the stock is made for.
const MOST_SAMPLES: usize = 50_000_000;
const MOST_BATCHES: usize = 120_000;
/// Different streams: nodes share them, since sealing a stock for each would take longer than the run.
const STREAMS: usize = 4;
/// Between two looks at a chart.
const QUERY: Duration = Duration::from_millis(50);
const HOUR_MS: i64 = 3_600_000;
/// How long sealing may go on after the load.
const SEALING: Duration = Duration::from_secs(120);

/// The load as it ran.
struct Load {
    found: Vec<Found>,
    began: Duration,
    ended: Duration,
    charts: Histogram<u64>,
    raw: Histogram<u64>,
}

/// What the run needs to know of the hub.
struct Hub {
    http: String,
    client: reqwest::Client,
    mqtt: SocketAddr,
    /// Process and data folder, when it is ours.
    own: Option<(u32, PathBuf)>,
}

/// Runs it.
///
/// # Errors
/// [`Error`].
pub async fn run(config: &Config) -> Result<Report, Error> {
    let folder = child::Folder::new(config.folder.as_deref())?;
    let mut own = None;
    let hub = match &config.hub {
        Some((http, mqtt)) => {
            let (http, client) =
                (http.trim_end_matches('/').to_owned(), child::client(config.token.as_deref())?);
            Hub { http, client, mqtt: *mqtt, own: None }
        }
        None => {
            let started = own.insert(child::hub(&config.fleet, folder.path(), None).await?);
            let process = (started.process.pid(), folder.path().join("hub"));
            let http = format!("http://{}", started.addresses.http);
            let client = started.http.clone();
            Hub { http, client, mqtt: started.addresses.mqtt, own: Some(process) }
        }
    };
    let stocks = stocks(config);
    let run = hex(&clock::random::<4>());
    let ids = ids(&run, config.nodes);
    let mut report = Report::new("ingest");
    let before = Usage::of(&hub)?;
    let load = load(config, &hub, &stocks, &ids).await?;
    let after = Usage::of(&hub)?;
    rates(&mut report, config, &stocks, &load);
    account(&mut report, config, &hub, &run, &load).await?;
    if let (Some(before), Some(after)) = (before, after) {
        let samples = load.batches() as f64 * f64::from(config.batch);
        processor(&mut report, &after.cpu.since(&before.cpu), samples, load.batches() as f64);
        let sealed = sealed(&hub, own.as_mut()).await?;
        let end = Usage::of(&hub)?.unwrap_or(after);
        let wire = sent_bytes(&stocks, &load);
        let written = end.written.saturating_sub(before.written) as f64;
        if let Some(started) = own {
            started.process.stop().await?;
        }
        let judged = config.batch >= 1_000;
        store(&mut report, &hub, &Stored { sealed, samples, wire, written }, judged)?;
        let all = end.cpu.since(&before.cpu).of(is_manager).as_secs_f64();
        let name = "manager CPU with all sealing";
        if judged {
            report.judge(name, all * 1e6 / samples, "µs/sample", AtMost(0.2));
        } else {
            report.add(name, all * 1e6 / samples, "µs/sample");
        }
    } else {
        report.note("a hub that runs already: its processor time, memory and files are not known from here");
    }
    Ok(report)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ids(run: &str, nodes: u16) -> Vec<NodeId> {
    (0..nodes).map(|n| NodeId::parse(&format!("bench-{run}-{n}")).expect("a node id")).collect()
}

/// Sealed ahead: the generator shares the machine with what it measures.
fn stocks(config: &Config) -> Vec<Arc<Stock>> {
    let rate = MOST_BATCHES.min(MOST_SAMPLES / usize::from(config.batch));
    let most = rate * usize::from(config.seconds) / usize::from(config.nodes) + 1;
    let count = config.most.unwrap_or(most);
    let now_ms = clock::wall_ms();
    thread::scope(|scope| {
        let sealing: Vec<_> = (0..STREAMS.min(usize::from(config.nodes)))
            .map(|at| {
                let stream = StreamId(clock::random());
                let seal = move || Stock::seal(stream, at as u64 + 1, count, u64::from(config.batch), now_ms);
                scope.spawn(seal)
            })
            .collect();
        (sealing.into_iter()).map(|thread| Arc::new(thread.join().expect("sealing does not panic"))).collect()
    })
}

async fn load(config: &Config, hub: &Hub, stocks: &[Arc<Stock>], ids: &[NodeId]) -> Result<Load, Error> {
    let marks: Vec<Arc<AtomicU64>> = ids.iter().map(|_| Arc::default()).collect();
    let threads = usize::from(config.threads);
    let ready = Arc::new(Barrier::new(ids.len() + 1));
    let seconds = Duration::from_secs(config.seconds.into());
    let mut running = Vec::new();
    for at in 0..threads {
        let mine: Vec<_> = (at..ids.len())
            .step_by(threads)
            .map(|n| (ids[n].clone(), stocks[n % stocks.len()].clone(), marks[n].clone()))
            .collect();
        let (mqtt, ready) = (hub.mqtt, ready.clone());
        let run = move || generate(mqtt, mine, &ready, seconds);
        running.push(tokio::task::spawn_blocking(run));
    }
    let broken = async {
        // Without a session the others would wait at the barrier for ever.
        let (first, _, rest) = futures_util::future::select_all(&mut running).await;
        (first, rest.len())
    };
    tokio::select! {
        _ = ready.wait() => {}
        (first, _) = broken => {
            first.map_err(|error| Error::Child(format!("the generator: {error}")))??;
            return Err(Error::Child("the generator ended before it began".to_owned()));
        }
    }
    let began = clock::mono();
    let mut charts = (latencies(), latencies());
    let looking = look(hub, stocks, ids, &marks, &mut charts);
    let mut found = Vec::new();
    let all = futures_util::future::join_all(running);
    tokio::select! {
        ended = all => for thread in ended {
            found.extend(thread.map_err(|error| Error::Child(format!("the generator: {error}")))??);
        },
        failed = looking => return Err(failed),
    }
    let ended = found.iter().map(|found: &Found| found.last_ack).max().unwrap_or(began);
    Ok(Load { found, began, ended, charts: charts.0, raw: charts.1 })
}

/// One thread of the generator.
fn generate(
    mqtt: SocketAddr,
    nodes: Vec<(NodeId, Arc<Stock>, Arc<AtomicU64>)>,
    ready: &Arc<Barrier>,
    seconds: Duration,
) -> Result<Vec<Found>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::io("start a runtime"))?;
    runtime.block_on(async {
        let mut sessions = JoinSet::new();
        for (id, stock, mark) in nodes {
            let ready = ready.clone();
            sessions.spawn(async move {
                let node = Node::open(mqtt, id, "a secret of a benchmark", stock, mark).await?;
                ready.wait().await;
                node.run(clock::mono() + seconds).await
            });
        }
        let mut found = Vec::new();
        while let Some(ended) = sessions.join_next().await {
            found.push(ended.map_err(|error| Error::Child(format!("the generator: {error}")))??);
        }
        Ok(found)
    })
}

/// Asks for one node's last hour, by turns as a chart of minutes and raw. Ends only when it fails.
async fn look(
    hub: &Hub,
    stocks: &[Arc<Stock>],
    ids: &[NodeId],
    marks: &[Arc<AtomicU64>],
    (charts, raw): &mut (Histogram<u64>, Histogram<u64>),
) -> Error {
    let http = &hub.client;
    let mut ticks = time::interval(QUERY);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    for turn in 0_usize.. {
        ticks.tick().await;
        let n = turn % ids.len();
        let stock = &stocks[n % stocks.len()];
        let mark = i64::try_from(marks[n].load(Ordering::Relaxed)).unwrap_or(0);
        let to = stock.start_ms + mark * stock.span_ms();
        let mut url =
            format!("{}/api/v1/nodes/{}/telemetry?from_ms={}&to_ms={to}", hub.http, ids[n], to - HOUR_MS);
        let chart = turn % 4 != 3;
        url.push_str(if chart { "&step_ms=60000" } else { "&metric=temperature" });
        let asked = clock::mono();
        let answer = match http.get(url).send().await {
            Ok(answer) => answer.error_for_status(),
            Err(error) => return error.into(),
        };
        match answer {
            Ok(answer) => match answer.bytes().await {
                Ok(_) => {
                    let took = clock::mono().saturating_sub(asked);
                    note_latency(if chart { &mut *charts } else { &mut *raw }, took);
                }
                Err(error) => return error.into(),
            },
            Err(error) => return error.into(),
        }
    }
    Error::Late("the benchmark")
}

impl Load {
    fn batches(&self) -> u64 {
        self.found.iter().map(|found| found.acked).sum()
    }
}

fn rates(report: &mut Report, config: &Config, stocks: &[Arc<Stock>], load: &Load) {
    let seconds = load.ended.saturating_sub(load.began).as_secs_f64();
    let batches = load.batches() as f64;
    let samples = batches * f64::from(config.batch);
    let mut latency = latencies();
    for found in &load.found {
        latency.add(&found.latency).expect("the same bounds");
    }
    report.add("nodes", f64::from(config.nodes), "sessions");
    report.add("samples in a batch", f64::from(config.batch), "samples");
    report.add("time", seconds, "s");
    report.add("batches acked", batches, "batches");
    if config.batch >= 1_000 {
        report.judge("durable samples", samples / seconds, "samples/s", AtLeast(5e6));
        report.add("durable batches", batches / seconds, "batches/s");
    } else {
        report.add("durable samples", samples / seconds, "samples/s");
        report.judge("durable batches", batches / seconds, "batches/s", AtLeast(30_000.0));
    }
    report.add("ack p50", quantile_ms(&latency, 0.5), "ms");
    report.judge("ack p99", quantile_ms(&latency, 0.99), "ms", AtMost(100.0));
    report.add("ack max", quantile_ms(&latency, 1.0), "ms");
    report.add("batches sent again", load.found.iter().map(|found| found.resent as f64).sum(), "batches");
    report.add("charts of an hour", load.charts.len() as f64, "queries");
    if !load.charts.is_empty() && !load.raw.is_empty() {
        report.add("chart p50", quantile_ms(&load.charts, 0.5), "ms");
        report.judge("chart p99", quantile_ms(&load.charts, 0.99), "ms", AtMost(50.0));
        report.judge("raw hour of a metric p99", quantile_ms(&load.raw, 0.99), "ms", AtMost(50.0));
    }
    let most = stocks.first().map_or(0, |stock| stock.batches.len() as u64);
    if config.most.is_none() && load.found.iter().any(|found| found.acked >= most) {
        report.note("a node ran out of batches before the time was over: the rate is a lower bound");
    }
}

/// Compares what we believe with what the hub's ledger says of the same nodes.
async fn account(
    report: &mut Report,
    config: &Config,
    hub: &Hub,
    run: &str,
    load: &Load,
) -> Result<(), Error> {
    let prefix = format!("bench-{run}-");
    let acked = load.batches() * u64::from(config.batch);
    let ledger: Ledger = hub
        .client
        .get(format!("{}/api/v1/ledger", hub.http))
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    let accounts = ledger.accounts.iter().filter(|account| account.node.starts_with(&prefix));
    let (mut stored, mut broken) = (0, 0);
    for account in accounts {
        stored += account.stored;
        broken += usize::from(account.state == "broken");
    }
    report.add("samples acked", acked as f64, "samples");
    report.add("samples in the ledger", stored as f64, "samples");
    if stored != acked || broken > 0 {
        let why =
            format!("{acked} samples were acked, the ledger has {stored}, {broken} accounts are broken");
        return Err(Error::Answer(why));
    }
    Ok(())
}

/// Whose processor time is the manager's.
fn is_manager(thread: &str) -> bool {
    thread == "consumer" || thread == "tidier"
}

fn processor(report: &mut Report, used: &proc::Cpu, samples: f64, batches: f64) {
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let manager = used.of(is_manager);
    let http = used.of(|thread| thread.starts_with("tokio"));
    let plane = used.total.saturating_sub(manager + http);
    report.add("manager CPU", micros(manager) / samples, "µs/sample");
    report.add("manager CPU by batch", micros(manager) / batches, "µs/batch");
    report.add("gate and router CPU by batch", micros(plane) / batches, "µs/batch");
    report.add("hub CPU", micros(used.total) / samples, "µs/sample");
    let mut threads: Vec<_> = used.threads.iter().filter(|(_, time)| !time.is_zero()).collect();
    threads.sort_by_key(|(_, time)| std::cmp::Reverse(**time));
    let threads: Vec<_> =
        threads.into_iter().map(|(name, time)| format!("{name} {:.2} s", time.as_secs_f64())).collect();
    report.note(format!("processor time under load: {}", threads.join(", ")));
}

/// Processor time and written bytes of the hub.
struct Usage {
    cpu: proc::Cpu,
    written: u64,
}

impl Usage {
    fn of(hub: &Hub) -> Result<Option<Self>, Error> {
        let read = |pid: u32| Ok(Self { cpu: proc::cpu(pid)?, written: proc::written(pid)? });
        hub.own.as_ref().map(|(pid, _)| read(*pid)).transpose()
    }
}

/// Waits until sealing has nothing more to do; says how many samples are sealed.
async fn sealed(hub: &Hub, own: Option<&mut child::OwnHub>) -> Result<f64, Error> {
    let _alive = own;
    let deadline = clock::mono() + SEALING;
    let mut last = (f64::NAN, clock::mono());
    loop {
        let page =
            hub.client.get(format!("{}/metrics", hub.http)).send().await?.error_for_status()?.text().await?;
        let value = |name: &str| {
            (page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok()))
                .ok_or_else(|| Error::Answer(format!("the hub's metrics do not tell {name}")))
        };
        let waiting = value(crate::metrics::catalogue::UNSEALED.name)?;
        let now = clock::mono();
        if waiting != last.0 {
            last = (waiting, now);
        } else if now.saturating_sub(last.1) > Duration::from_secs(2) {
            return value(crate::metrics::catalogue::SEALED.name);
        }
        if now > deadline {
            return Err(Error::Late("sealing"));
        }
        time::sleep(Duration::from_millis(200)).await;
    }
}

fn sent_bytes(stocks: &[Arc<Stock>], load: &Load) -> f64 {
    // All batches are alike: the mean stands for those that were sent.
    let (bytes, count) = stocks
        .iter()
        .flat_map(|stock| &stock.batches)
        .fold((0, 0), |(bytes, count), batch| (bytes + batch.len(), count + 1));
    bytes as f64 / f64::from(u32::try_from(count).unwrap_or(u32::MAX)) * load.batches() as f64
}

/// What became of the bytes.
struct Stored {
    sealed: f64,
    samples: f64,
    wire: f64,
    written: f64,
}

fn store(report: &mut Report, hub: &Hub, it: &Stored, judged: bool) -> Result<(), Error> {
    let Some((_, data)) = &hub.own else { return Ok(()) };
    let weeks = week_bytes(&data.join("telemetry"))?;
    report.add("sealed", it.sealed / it.samples * 100.0, "%");
    report.add("on the wire", it.wire / it.samples, "bytes/sample");
    if it.sealed > 0.0 {
        let each = weeks / it.sealed;
        report.judge("stored after sealing", each, "bytes/sample", AtMost(2.5));
        let times = it.written / (each * it.samples);
        if judged {
            report.judge("written by stored", times, "times", AtMost(3.0));
        } else {
            // The envelope of a small batch is many times its samples, and is written once before they are sealed.
            report.add("written by stored", times, "times");
        }
    }
    report.judge("written by payload", it.written / it.wire, "times", AtMost(3.0));
    Ok(())
}

/// Bytes that the week files take on the disk.
fn week_bytes(folder: &Path) -> Result<f64, Error> {
    use std::os::unix::fs::MetadataExt as _;
    let failed = |source| Error::io(format!("list {}", folder.display()))(source);
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with(|first: char| first.is_ascii_digit()) {
            bytes += entry.metadata().map_err(failed)?.blocks() * 512;
        }
    }
    Ok(bytes as f64)
}
