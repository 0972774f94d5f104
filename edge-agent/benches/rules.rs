//! How fast local rules judge: samples as they are accepted, and what time can change, once a second.
//!
//! `cargo bench -p fleet-edge-agent --bench rules` prints, for kits of several sizes: samples judged a second and time
//! for one evaluation of one rule; and how long a tick takes with as many devices as a node may have.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

use std::{collections::BTreeSet, fmt::Write as _, hint::black_box, time::Duration};

use fleet_edge_agent::{
    clock::{self, Clock},
    core::rules::{Kept, Rules, Seen},
};
use fleet_schemas::{
    DeviceId, MetricName, limits,
    rule::{Scope, read},
};

const START_MS: i64 = 1_790_000_000_000;
/// How long each part takes.
const SPAN: Duration = Duration::from_secs(2);
/// Devices that speak, each with ten metrics.
const DEVICES: usize = 50;
/// Values in a round, as in a batch.
const VALUES: usize = 2_000;

/// Rules as kits ship them: a threshold most of them; of eight one with a window, and one about silence.
fn kit(rules: usize) -> Rules {
    let mut text = "alerts:\n".to_owned();
    for at in 0..rules {
        let condition = match at % 8 {
            3 => "avg_over('5m') > 60",
            7 => "last_seen_s > 120",
            _ => "value > 90",
        };
        let field = if at % 8 == 7 { String::new() } else { format!("field: m{}, ", at % 10) };
        writeln!(
            text,
            "  - {{id: r{at}, sensor: any, {field}condition: \"{condition}\", severity: warn, message: '{{{{sensor}}}}'}}"
        )
        .unwrap();
    }
    let mut kit = Rules::new("bench", Kept::default(), START_MS);
    assert_eq!(kit.replace(read(&text, Scope::default()).unwrap(), START_MS), []);
    kit
}

fn device(number: usize) -> DeviceId {
    DeviceId::parse(&format!("board-{number}")).unwrap()
}

/// A round of values: every device and metric in turn, below every threshold.
fn round(number: i64) -> Seen {
    let value = |at: usize| {
        let metric = MetricName::parse(&format!("m{}", at / DEVICES % 10)).unwrap();
        let time_ms = START_MS + number * 1_000 + (at / (DEVICES * 10)) as i64;
        (device(at % DEVICES), metric, time_ms, (at % 50) as f64)
    };
    let devices: BTreeSet<_> = (0..DEVICES).map(device).collect();
    Seen { devices, values: (0..VALUES).map(value).collect() }
}

fn judge(rules: usize, clock: &Clock) {
    let mut kit = kit(rules);
    // Rules that look at one metric of ten: those without a field are judged by the clock.
    let judged = (0..rules).filter(|at| at % 8 != 7).count() as f64 / 10.0;
    let (mut took, mut rounds) = (Duration::ZERO, 0_i64);
    while took < SPAN {
        rounds += 1;
        let (seen, at) = (round(rounds), START_MS + rounds * 1_000);
        let begun = clock.now().up;
        black_box(kit.take(seen, at, at));
        took += clock.now().up.saturating_sub(begun);
    }
    let samples = rounds as f64 * VALUES as f64;
    println!(
        "{rules} rules, {DEVICES} devices: {:.0} samples/s judged, {:.0} ns for one evaluation",
        samples / took.as_secs_f64(),
        took.as_secs_f64() * 1e9 / (samples * judged)
    );
}

fn tick(rules: usize, clock: &Clock) {
    let mut kit = kit(rules);
    let devices = (0..limits::DEVICES_PER_NODE).map(device).collect();
    kit.take(Seen { devices, values: Vec::new() }, START_MS, START_MS);
    let (mut took, mut ticks) = (Duration::ZERO, 0_u32);
    while took < SPAN {
        ticks += 1;
        let begun = clock.now().up;
        // Time stands, so that nobody falls silent.
        black_box(kit.tick(START_MS + 1_000));
        took += clock.now().up.saturating_sub(begun);
    }
    println!("{rules} rules, {} devices: a tick takes {:?}", limits::DEVICES_PER_NODE, took / ticks);
}

fn main() {
    // `cargo test --benches` only asks whether it builds.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let clock = Clock::new(clock::Config::default());
    for rules in [8, 64, 256] {
        judge(rules, &clock);
        tick(rules, &clock);
    }
}
