//! The telemetry store under the load it is made for: appends with group commits beside a running sealer and
//! queries, on a real folder. Prints figures; judges nothing.
//!
//! `cargo bench -p fleet-manager --bench telemetry_store`

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use fleet_manager::store::{
    disk::Folder,
    telemetry::{Config, InboxBatch, MarkKey, Query, SealReport, TelemetryStore},
};
use fleet_schemas::{
    DeviceId, Lane, MetricName, StreamId,
    batch::{Batch, Clock},
    cbor::{Packer, Unpacker, encode},
    limits,
    telemetry::{Builder, Sample, Samples},
};

const START_MS: i64 = 1_795_000_000_000;
/// What a mark of the ledger takes: two numbers and 32 digests.
const MARK: [u8; 280] = [7; 280];

struct Load {
    name: &'static str,
    nodes: u32,
    /// Batches of each node.
    rounds: i64,
    /// Instants of a batch, one a second, with ten metrics each.
    instants: i64,
    /// Batches in one commit.
    group: usize,
}

struct Made {
    samples: Samples,
    body: Vec<u8>,
    payload: Vec<u8>,
}

fn main() {
    let root = std::env::temp_dir().join(format!("fleet-bench-{}", std::process::id()));
    let big = Load { name: "batches of 1,000", nodes: 500, rounds: 40, instants: 100, group: 200 };
    let small = Load { name: "batches of 10", nodes: 2_000, rounds: 100, instants: 1, group: 1_000 };
    for load in [big, small] {
        run(&load, &root.join(load.nodes.to_string()));
    }
    let _ = fs::remove_dir_all(root);
}

fn run(load: &Load, root: &PathBuf) {
    let made: Vec<Made> = (0..load.rounds).map(|round| make(load, round)).collect();
    let batches = i64::from(load.nodes) * load.rounds;
    let samples = (batches * load.instants * 10) as f64;
    println!("\n{}: {batches} batches of {} nodes", load.name, load.nodes);
    println!("  a payload takes {} bytes, its body {}", made[0].payload.len(), made[0].body.len());
    decode(&made, samples / batches as f64);

    let store =
        TelemetryStore::open(Arc::new(Folder::new(root)), Config::default(), START_MS).expect("opens");
    let now = AtomicU32::new(0);
    let done = AtomicBool::new(false);
    let (written, cpu, begun) = (written_bytes(), cpu(), instant());
    std::thread::scope(|scope| {
        let sealer = scope.spawn(|| sealer(&store, &now, &done, load));
        let reader = scope.spawn(|| reader(&store, &now, &done, load));
        let append = append(&store, &made, load, &now);
        let seconds = begun.elapsed_s();
        println!(
            "  append and commit beside sealer and reader: {:.2} M samples/s, {:.0} batches/s, commit p50 {:.1} ms, p99 {:.1} ms",
            samples / seconds / 1e6,
            batches as f64 / seconds,
            append.0,
            append.1
        );
        done.store(true, Ordering::Release);
        sealer.join().expect("seals");
        reader.join().expect("reads");
    });
    let all = cpu_since(cpu);
    let wire: f64 = made.iter().map(|made| made.payload.len() as f64).sum::<f64>() * f64::from(load.nodes);
    let disk = (written_bytes() - written) as f64;
    println!("  whole process, sealing and queries included: {:.3} µs CPU a sample", all * 1e6 / samples);
    println!("  written {:.2} bytes a sample, {:.2} times the payloads", disk / samples, disk / wire);
    println!("  {:.1} s in all; {:?}", begun.elapsed_s(), store.stats(START_MS).expect("open"));
    let recount = store.recount(1, Lane::Telemetry).expect("counts");
    assert_eq!(recount as i64, load.rounds * load.instants * 10);
}

fn make(load: &Load, round: i64) -> Made {
    let mut builder = Builder::default();
    let mut seed = 7 + round as u32;
    for i in 0..load.instants {
        for metric in 0..10 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = f64::from(seed >> 24) / 100.0;
            let value = ((20.0 + f64::from(metric) * 3.0 + noise) * 100.0).round() / 100.0;
            let metric = MetricName::parse(&format!("metric_{metric}")).expect("a name");
            let time_ms = START_MS + (round * load.instants + i) * 1_000;
            let sample = Sample { time_ms, device: DeviceId::node(), metric, unit: None, value };
            assert_eq!(builder.push(sample), None);
        }
    }
    let samples = builder.build();
    let body = samples.encode();
    let batch = Batch {
        v: 1,
        stream: StreamId([5; 16]),
        seq: round as u64 + 1,
        seq_to: None,
        first: 1,
        count: samples.count(),
        boot: [1; 8],
        up_ms: 123_456_789,
        clock: Clock::Synced,
        sealed_ms: START_MS,
        lost: None,
        body: body.clone(),
    };
    let payload = Packer::new(limits::ZSTD_LEVEL).pack(encode(&batch));
    Made { samples, body, payload }
}

/// What the consumer does before it appends.
fn decode(made: &[Made], each: f64) {
    let mut unpacker = Unpacker::default();
    let cpu = cpu();
    let rounds = 1 + 20_000 / made.len();
    for made in (0..rounds).flat_map(|_| made) {
        let batch = Batch::decode(unpacker.unpack(&made.payload).expect("a frame")).expect("a batch");
        std::hint::black_box(batch);
        std::hint::black_box(Samples::decode(&made.body).expect("samples"));
    }
    println!(
        "  unpack and decode: {:.3} µs a sample",
        cpu_since(cpu) * 1e6 / (rounds * made.len()) as f64 / each
    );
}

fn append(store: &TelemetryStore, made: &[Made], load: &Load, now: &AtomicU32) -> (f64, f64) {
    let mut commits = Vec::new();
    for (round, made) in made.iter().enumerate() {
        let nodes: Vec<u32> = (1..=load.nodes).collect();
        for group in nodes.chunks(load.group) {
            let begun = instant();
            let mut write = store.begin().expect("open");
            for node in group {
                let key = MarkKey { node: *node, lane: Lane::Telemetry, stream: StreamId([*node as u8; 16]) };
                std::hint::black_box(write.mark(&key).expect("reads"));
                let batch = InboxBatch {
                    node: *node,
                    lane: Lane::Telemetry,
                    recv_ms: clock(load, round as u32),
                    shift_ms: 0,
                    samples: &made.samples,
                    body: &made.body,
                    payload: Some(&made.payload),
                };
                write.append(&batch).expect("appends");
                write.set_mark(key, &MARK);
            }
            write.commit().expect("commits");
            commits.push(begun.elapsed_s() * 1e3);
        }
        now.store(round as u32, Ordering::Release);
    }
    percentiles(commits)
}

fn sealer(store: &TelemetryStore, now: &AtomicU32, done: &AtomicBool, load: &Load) {
    let (mut bytes, mut samples, mut blobs, mut longest) = (0, 0, 0, 0.0_f64);
    let mut slowest = SealReport::default();
    loop {
        let finished = done.load(Ordering::Acquire);
        let later = if finished { 3_600_000 } else { 0 };
        let begun = instant();
        let report = store.seal(clock(load, now.load(Ordering::Acquire)) + later).expect("seals");
        let took = begun.elapsed_s() * 1e3;
        if took > longest {
            (longest, slowest) = (took, report.clone());
        }
        bytes += report.bytes;
        samples += report.samples;
        blobs += report.blobs;
        if !report.more {
            if finished {
                break;
            }
            std::thread::yield_now();
        }
    }
    println!(
        "  sealed {:.2} bytes a sample in {blobs} blobs of {:.0} samples; longest step {longest:.0} ms: {slowest:?}",
        bytes as f64 / samples as f64,
        samples as f64 / blobs as f64
    );
}

fn reader(store: &TelemetryStore, now: &AtomicU32, done: &AtomicBool, load: &Load) {
    let mut took = Vec::new();
    let mut node = 0;
    let mut points = 0;
    while !done.load(Ordering::Acquire) {
        node = node % load.nodes + 1;
        let to_ms = clock(load, now.load(Ordering::Acquire));
        let query = Query {
            node,
            device: None,
            metric: None,
            from_ms: to_ms - 3_600_000,
            to_ms,
            step: None,
            series_max: 100,
            points_max: 1_000_000,
        };
        let begun = instant();
        let found = store.query(&query).expect("answers");
        took.push(begun.elapsed_s() * 1e3);
        points = found.iter().map(|series| series.points.len()).sum();
        // A hundred queries a second: readers are not the load.
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let count = took.len();
    let (p50, p99) = percentiles(took);
    println!("  last hour of a node ({points} points): p50 {p50:.1} ms, p99 {p99:.1} ms of {count}");
}

fn clock(load: &Load, round: u32) -> i64 {
    START_MS + (i64::from(round) + 1) * load.instants * 1_000
}

fn percentiles(mut all: Vec<f64>) -> (f64, f64) {
    all.sort_by(f64::total_cmp);
    let at = |share: f64| all.get((all.len() as f64 * share) as usize).or(all.last()).copied().unwrap_or(0.0);
    (at(0.5), at(0.99))
}

struct Begun(Instant);

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn instant() -> Begun {
    Begun(Instant::now())
}

impl Begun {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
    fn elapsed_s(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// Bytes that this process has handed to write calls (Linux; elsewhere 0).
fn written_bytes() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// Processor time of this process in hundredths of a second (Linux; elsewhere 0).
fn cpu() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    [11, 12].iter().filter_map(|field| fields.get(*field)?.parse::<u64>().ok()).sum()
}

fn cpu_since(before: u64) -> f64 {
    (cpu() - before) as f64 / 100.0
}
