//! How fast the alert engine judges: 10,000 nodes with ten rules each, by the clock and by samples.
//!
//! `cargo bench --bench alerts`. Prints judgements a second on one core, the engine alone; the goal is 100,000.
#![expect(clippy::unwrap_used, reason = "a benchmark may fail")]

use std::{fmt::Write as _, time::Duration};

use fleet_manager::{
    clock,
    core::{
        alert::{Arrived, Engine, Found, scope},
        fleet::{Node, NodeNo, Record},
        presence::State,
    },
};
use fleet_schemas::{
    DeviceId, MetricName, NodeId,
    rule::{self, Rule},
    telemetry::{Builder, Sample, Samples},
};

const NODES: NodeNo = 10_000;
const START_MS: i64 = 1_790_000_000_000;
/// Time that each figure takes, at least.
const SPAN: Duration = Duration::from_secs(2);

fn rules(each: &str) -> Vec<Rule> {
    let mut text = "rules:\n".to_owned();
    for n in 0..10 {
        writeln!(
            text,
            "  - {{id: r{n}, sensor: board, field: m{n}, for: 30s, condition: '{}'}}",
            each.replace('N', &n.to_string())
        )
        .unwrap();
    }
    rule::read(&text, scope()).unwrap()
}

fn samples(at_ms: i64, value: f64) -> Samples {
    let mut builder = Builder::default();
    for n in 0..10 {
        let (device, metric) =
            (DeviceId::parse("board").unwrap(), MetricName::parse(&format!("m{n}")).unwrap());
        builder.push(Sample { time_ms: at_ms, device, metric, unit: None, value });
    }
    builder.build()
}

/// An engine that knows every node and has one sample of each series.
fn engine(rules: Vec<Rule>) -> Engine {
    let mut engine = Engine::new(Found::default(), START_MS);
    engine.replace(rules, START_MS);
    for number in 1..=NODES {
        let mut record = Record::new(NodeId::parse(&format!("n{number}")).unwrap(), START_MS);
        record.presence.state = State::Online;
        let facts = engine.look(&Node::new(number, record), Duration::ZERO);
        engine.node(facts, START_MS);
        arrive(&mut engine, number, START_MS, 20.0);
    }
    engine.take();
    engine
}

fn arrive(engine: &mut Engine, node: NodeNo, at_ms: i64, value: f64) {
    let samples = samples(at_ms, value);
    engine.samples(Arrived { node, late: false, recv_ms: at_ms, shift_ms: 0, samples: &samples });
}

fn measure(what: &str, mut engine: Engine, mut round: impl FnMut(&mut Engine, i64)) {
    let (began, before) = (clock::mono(), engine.judgements());
    let mut at_ms = START_MS;
    let mut rounds = 0;
    while clock::mono() - began < SPAN {
        at_ms += 1_000;
        round(&mut engine, at_ms);
        engine.take();
        rounds += 1;
    }
    let took = clock::mono() - began;
    let judged = engine.judgements() - before;
    let rate = judged as f64 / took.as_secs_f64();
    println!("{what:44} {judged:>10} judgements in {rounds} rounds, {rate:>12.0} a second");
}

fn main() {
    let by_clock = rules(r#"avg_over("mN", "5m") > 27 && last_seen_s < 3600"#);
    measure("by the clock, windows", engine(by_clock), |engine, now_ms| engine.tick(now_ms));
    let silent = rules("last_seen_s > 86400 || value > 1000");
    measure("by the clock, silence", engine(silent), |engine, now_ms| engine.tick(now_ms));
    measure("by samples, thresholds that hold for nobody", engine(rules("value > 27")), |engine, now_ms| {
        for node in 1..=NODES {
            arrive(engine, node, now_ms, 20.0);
        }
    });
    measure("by samples, every one changes its alert", engine(rules("value > 27")), |engine, now_ms| {
        let value = if now_ms / 1_000 % 2 == 0 { 20.0 } else { 30.0 };
        for node in 1..=NODES {
            arrive(engine, node, now_ms, value);
        }
    });
}
