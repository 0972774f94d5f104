//! `fleet bench`: flags and report of [`crate::bench`].

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Common, Failure,
    output::{Cell, Out, Table, Tone, paint},
};
use crate::bench::{
    Error, Figure, Report, Target, agent, commands, console, event, fan_in, flash, ingest, sessions,
};

/// Measure a hub or an agent; starts its own unless told otherwise
#[derive(Debug, Clone, Subcommand)]
pub(super) enum BenchVerb {
    /// Batches from many nodes, durable and acked
    #[command(after_help = "Examples:\n  fleet bench ingest\n  fleet bench ingest --batch 10\n  \
        fleet bench ingest --hub http://127.0.0.1:8080 --mqtt 127.0.0.1:1883 --nodes 5 --seconds 3")]
    Ingest {
        /// Sessions
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=5_000))]
        nodes: u16,
        /// Samples of a batch, a multiple of 10
        #[arg(long, default_value_t = 1_000, value_parser = batch)]
        batch: u16,
        /// How long
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=120))]
        seconds: u16,
        /// Most batches a node sends; more than the hub can take unless given
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        most: Option<u32>,
        /// Threads of the generator
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
        threads: u16,
        /// MQTT address of a hub that runs already; needs --hub too
        #[arg(long, value_name = "ADDR", requires = "hub")]
        mqtt: Option<SocketAddr>,
        #[command(flatten)]
        place: Place,
    },
    /// Memory of idle sessions, processor time of new ones
    #[command(after_help = "Examples:\n  fleet bench sessions --nodes 5000\n  fleet bench sessions --tls")]
    Sessions {
        /// Sessions; at most 8000 with --tls
        #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u16).range(1..=16_000))]
        nodes: u16,
        /// Over TLS, with a certificate for every node
        #[arg(long)]
        tls: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Messages through gate and router, beside a bare rumqttd, and mosquitto where there is one
    #[command(after_help = "Examples:\n  fleet bench fan-in\n  fleet bench fan-in --tls\n  \
        fleet bench fan-in --clients 100 --bytes 2200 --rounds 5 -o json")]
    FanIn {
        /// Publishers
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1_000))]
        clients: u16,
        /// Payload of a message
        #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        bytes: u32,
        /// How long, for each broker in a round
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=60))]
        seconds: u16,
        /// How often each broker has its turn; odd, so that one round is the middle
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
        rounds: u16,
        /// Publishers over TLS with certificates, beside mosquitto with the same
        #[arg(long)]
        tls: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Be the bare rumqttd that fan-in compares with, until ended
    #[command(hide = true)]
    Rumqttd {
        /// Where to listen
        listen: SocketAddr,
    },
    /// From the edge API's 202 to the hub's stream
    #[command(
        after_help = "Examples:\n  fleet bench event\n  fleet bench event --events 500 --backlog 1000000"
    )]
    Event {
        /// Events without a backlog
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        events: u32,
        /// Samples that wait when the hub comes up
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(0..=5_000_000))]
        backlog: u32,
        #[command(flatten)]
        place: Place,
    },
    /// Commands: to many nodes, to one, and pages of very many executions
    #[command(after_help = "Examples:\n  fleet bench commands\n  \
        fleet bench commands --nodes 5000 --stored 1000000\n  fleet bench commands --nodes 50 --single 20 --stored 500")]
    Commands {
        /// Sessions that a command goes to
        #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        nodes: u16,
        /// Commands to one real agent
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        single: u32,
        /// Executions that are stored before pages are read
        #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(0..=5_000_000))]
        stored: u32,
        #[command(flatten)]
        place: Place,
    },
    /// The console: its pages with a large fleet, and open pages while the fleet changes
    #[command(
        after_help = "Examples:\n  fleet bench console\n  fleet bench console --browsers 10 --changes 100"
    )]
    Console {
        /// Nodes that the hub knows
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u16).range(1..=50_000))]
        nodes: u16,
        /// Open pages
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=500))]
        browsers: u16,
        /// Heartbeats a second, each of another node
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=5_000))]
        changes: u16,
        /// How long open pages are watched, and the hub without them
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=120))]
        seconds: u16,
        #[command(flatten)]
        place: Place,
    },
    /// What an agent costs its machine
    #[command(after_help = "Examples:\n  fleet bench agent\n  fleet bench agent --seconds 5 --intervals 2")]
    Agent {
        /// How long samples are handed in
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=120))]
        seconds: u16,
        /// Upload intervals over which flash writes are counted, 90 s each at default settings; 0 leaves it out
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=60))]
        intervals: u16,
        #[command(flatten)]
        place: Place,
    },
    /// What an agent writes to its flash for the records of one device: by record and by hour
    #[command(
        after_help = "Examples:\n  fleet bench flash\n  fleet bench flash --minutes 60 --every 60 --metrics 20\n\n\
        Counted are what the agent has the kernel write (/proc/PID/io), and beside it what the disk wrote meanwhile for\n\
        everybody (/proc/diskstats)."
    )]
    Flash {
        /// How long
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=240))]
        minutes: u16,
        /// Seconds from one reading of the device to the next
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=3_600))]
        every: u16,
        /// Metrics of a reading
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1_000))]
        metrics: u16,
        #[command(flatten)]
        place: Place,
    },
}

/// Where, and how strictly.
#[derive(Debug, Clone, Args)]
pub(super) struct Place {
    /// Parent of the temporary folder; the system's own unless given
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Fail when a figure misses its target
    #[arg(long)]
    check: bool,
}

fn batch(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(samples @ 10..=10_000) if samples % 10 == 0 => Ok(samples),
        Ok(_) | Err(_) => Err("a multiple of 10, from 10 to 10000".to_owned()),
    }
}

pub(super) async fn run(verb: BenchVerb, common: &Common, out: Out) -> Result<(), Failure> {
    let fleet =
        std::env::current_exe().map_err(|error| Failure::Failed(format!("find this program: {error}")))?;
    let failed = |error: Error| Failure::Failed(format!("failed to measure: {error}"));
    let (report, check) = tokio::select! {
        measured = measure(verb, common, fleet) => measured.map_err(failed)?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::Failed("interrupted".to_owned())),
    };
    let value = json!({
        "bench": report.bench,
        "met": report.met(),
        "figures": report.figures.iter().map(figure).collect::<Vec<_>>(),
        "notes": report.notes,
    });
    out.show(&value, || table(&report, out.color))?;
    if check && !report.met() {
        return Err(Failure::Failed("a figure misses its target".to_owned()));
    }
    Ok(())
}

async fn measure(verb: BenchVerb, common: &Common, fleet: PathBuf) -> Result<(Report, bool), Error> {
    match verb {
        BenchVerb::Ingest { nodes, batch, seconds, most, threads, mqtt, place } => {
            let hub = mqtt.and_then(|mqtt| Some((common.hub.clone()?, mqtt)));
            let token = hub.as_ref().and_then(|_| super::target::find(common).ok()?.token);
            let most = most.map(|most| most as usize);
            let folder = place.folder;
            let config = ingest::Config { fleet, folder, hub, token, nodes, batch, seconds, most, threads };
            Ok((ingest::run(&config).await?, place.check))
        }
        BenchVerb::Sessions { nodes, tls, place } => {
            let config = sessions::Config { fleet, folder: place.folder, nodes, tls };
            Ok((sessions::run(&config).await?, place.check))
        }
        BenchVerb::FanIn { clients, bytes, seconds, rounds, tls, place } => {
            let (bytes, folder) = (bytes as usize, place.folder);
            let config = fan_in::Config { fleet, folder, clients, bytes, seconds, rounds, tls };
            Ok((fan_in::run(&config).await?, place.check))
        }
        BenchVerb::Rumqttd { listen } => Err(fan_in::rumqttd::serve(listen).await),
        BenchVerb::Event { events, backlog, place } => {
            let config = event::Config { fleet, folder: place.folder, events, backlog };
            Ok((event::run(&config).await?, place.check))
        }
        BenchVerb::Commands { nodes, single, stored, place } => {
            let config = commands::Config { fleet, folder: place.folder, nodes, single, stored };
            Ok((commands::run(&config).await?, place.check))
        }
        BenchVerb::Console { nodes, browsers, changes, seconds, place } => {
            let config = console::Config { fleet, folder: place.folder, nodes, browsers, changes, seconds };
            Ok((console::run(&config).await?, place.check))
        }
        BenchVerb::Agent { seconds, intervals, place } => {
            let config = agent::Config { fleet, folder: place.folder, seconds, intervals };
            Ok((agent::run(&config).await?, place.check))
        }
        BenchVerb::Flash { minutes, every, metrics, place } => {
            let config = flash::Config { fleet, folder: place.folder, minutes, every, metrics };
            Ok((flash::run(&config).await?, place.check))
        }
    }
}

fn figure(figure: &Figure) -> serde_json::Value {
    let mut value = json!({ "name": figure.name, "value": figure.value, "unit": figure.unit });
    if let (Some(target), Some(met)) = (figure.target, figure.met()) {
        value["target"] = json!(target);
        value["met"] = json!(met);
    }
    value
}

fn table(report: &Report, color: bool) -> String {
    let mut table = Table::new(&["figure", "value", "unit", "target", ""]);
    for figure in &report.figures {
        let target = figure.target.map_or_else(String::new, |target| match target {
            Target::AtLeast(least) => format!("≥ {}", short(least)),
            Target::AtMost(most) => format!("≤ {}", short(most)),
        });
        let verdict = match figure.met() {
            Some(true) => Cell::toned("met", Tone::Good),
            Some(false) => Cell::toned("missed", Tone::Bad),
            None => Cell::left(""),
        };
        let value = Cell::right(short(figure.value));
        table.row(vec![
            Cell::left(&figure.name),
            value,
            Cell::left(figure.unit),
            Cell::left(target),
            verdict,
        ]);
    }
    let mut text = table.text(color);
    for note in &report.notes {
        text.push_str(&paint(&format!("{note}\n"), Tone::Faint, color));
    }
    text
}

/// A number as people compare it: whole from a hundred on, three digits below.
fn short(value: f64) -> String {
    if value.abs() >= 100.0 {
        let sign = if value < 0.0 { "-" } else { "" };
        return format!("{sign}{}", super::output::count(value.abs().round() as u64));
    }
    super::output::number(value)
}
