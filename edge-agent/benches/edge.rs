//! The edge API under load, against a real `fleet-agent` process on this machine's disk.
//!
//! `cargo bench -p fleet-edge-agent` prints: samples a second and CPU a sample of one gRPC stream of batches, each
//! answered when it is on disk; how long single writes take at 500 a second; and the memory of an agent with 50 boards
//! at its MQTT listener, each with a reading a second. `FLEET_AGENT_BIN` names another
//! program than the one just built.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use fleet_edge_agent::{
    api::grpc::pb::{self, telemetry_client::TelemetryClient},
    clock::{self, Clock},
};
use rumqttc::{AsyncClient, MqttOptions, QoS};
use tokio::{task::JoinSet, time};
use tonic::transport::Endpoint;

/// How long each part takes.
const SPAN: Duration = Duration::from_secs(8);
/// Samples in a batch: ten metrics at 200 instants.
const SAMPLES: usize = 2_000;
/// Single writes a second.
const WRITES: u32 = 500;
/// Boards at the MQTT listener.
const BOARDS: usize = 50;

struct Agent {
    child: Child,
    api: SocketAddr,
    devices: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    fn start(listener: bool) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let own = env!("CARGO_BIN_EXE_fleet-agent").into();
        let mut child = Command::new(std::env::var_os("FLEET_AGENT_BIN").unwrap_or(own))
            .args(["run", "--api", "127.0.0.1:0", "--node", "bench", "--data"])
            .arg(folder.path())
            .env_clear()
            .env("FLEET_OUTBOX_QUOTA_BYTES", "4000000000")
            .envs(
                listener
                    .then_some([("FLEET_DEVICES_LISTEN", "127.0.0.1:0"), ("FLEET_DEVICES_OPEN", "true")])
                    .into_iter()
                    .flatten(),
            )
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let mut told = |key: &str| loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the agent ended before it ran");
            if let Some((_, rest)) = line.split_once(key) {
                break rest.split_whitespace().next().unwrap().parse().unwrap();
            }
        };
        let api = told("api=");
        let devices = if listener { told("address=") } else { api };
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, api, devices, _folder: folder }
    }

    /// CPU time so far, in seconds: ticks of 10 ms.
    fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
    }

    /// Resident memory now and at its highest, in MB.
    fn memory(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let of = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
        };
        (of("VmRSS:"), of("VmHWM:"))
    }
}

fn batch(number: usize) -> pb::TelemetryBatch {
    let samples = (0..SAMPLES).map(|at| pb::Sample {
        metric: format!("metric_{}", at % 10),
        value: Some((at % 10) as f64 + ((number + at) % 97) as f64 / 10.0),
        unit: "Cel".to_owned(),
        time_ms: Some(1_790_000_000_000 + ((number * SAMPLES + at) / 10 * 100) as i64),
    });
    pb::TelemetryBatch { device: "bench".to_owned(), samples: samples.collect(), id: String::new() }
}

async fn stream(agent: &Agent) {
    let channel = Endpoint::from_shared(format!("http://{}", agent.api)).unwrap().connect().await.unwrap();
    let mut client = TelemetryClient::new(channel);
    let clock = Clock::new(clock::Config::default());
    let (before, begun) = (agent.cpu(), clock.now().up);
    let now = clock.clone();
    let batches = (0..).map_while(move |number| (now.now().up < begun + SPAN).then(|| batch(number)));
    let mut answers = client.submit_stream(futures_util::stream::iter(batches)).await.unwrap().into_inner();
    let mut records = 0;
    while let Some(told) = answers.message().await.unwrap() {
        records = told.records;
    }
    let (cpu, took) = (agent.cpu() - before, clock.now().up - begun);
    println!(
        "one stream of batches of {SAMPLES}: {:.0} samples/s on disk, {:.2} us of agent CPU a sample, at most {} MB",
        records as f64 / took.as_secs_f64(),
        cpu * 1e6 / records as f64,
        agent.memory().1
    );
}

async fn writes(agent: &Agent) {
    let channel = Endpoint::from_shared(format!("http://{}", agent.api)).unwrap().connect().await.unwrap();
    let mut tick = time::interval(Duration::from_secs(1) / WRITES);
    let mut writing = JoinSet::new();
    for at in 0..WRITES * u32::try_from(SPAN.as_secs()).unwrap() {
        let due = tick.tick().await;
        let mut client = TelemetryClient::new(channel.clone());
        writing.spawn(async move {
            let sample =
                pb::Sample { metric: "m".to_owned(), value: Some(f64::from(at)), ..Default::default() };
            client.submit(pb::SubmitRequest { sample: Some(sample), ..Default::default() }).await.unwrap();
            // From when it was due: a write that had to wait for its turn counts in full.
            due.elapsed()
        });
    }
    let mut took = writing.join_all().await;
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!("{WRITES} writes/s: p50 {:?}, p99 {:?}, longest {:?}", at(0.5), at(0.99), at(1.0));
}

async fn boards(agent: &Agent) {
    let mut boards = JoinSet::new();
    for n in 0..BOARDS {
        let mut options =
            MqttOptions::new(format!("esp-{n}"), agent.devices.ip().to_string(), agent.devices.port());
        options.set_keep_alive(Duration::from_secs(60));
        let (client, mut events) = AsyncClient::new(options, 16);
        boards.spawn(async move {
            let says = async {
                let mut tick = time::interval(Duration::from_secs(1));
                for at in 0..SPAN.as_secs() {
                    tick.tick().await;
                    let topic = format!("clawland/esp-{n}/sensors/temperature");
                    let payload = format!("{{\"value\":{at}.50,\"unit\":\"C\"}}");
                    client.publish(topic, QoS::AtMostOnce, false, payload).await.unwrap();
                }
            };
            let serves = async { while events.poll().await.is_ok() {} };
            tokio::select! {
                () = says => {}
                () = serves => panic!("board {n} was cut off"),
            }
            // Open until the memory was looked at.
            (client, events)
        });
    }
    let open = boards.join_all().await;
    let (now, most) = agent.memory();
    println!(
        "{} boards at the MQTT listener, one reading a second each: {now} MB, at most {most} MB",
        open.len()
    );
}

fn main() {
    // `cargo test --benches` only asks whether it builds.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let agent = Agent::start(false);
        println!("idle: {} MB", agent.memory().0);
        stream(&agent).await;
        drop(agent);
        let agent = Agent::start(false);
        writes(&agent).await;
        drop(agent);
        let agent = Agent::start(true);
        boards(&agent).await;
    });
}
