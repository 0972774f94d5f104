//! How long a rollout over 10,000 nodes takes to plan and to step.
//!
//! `cargo bench --bench rollout`. Prints milliseconds; the goal is 50 for the plan and for every step.
#![expect(clippy::unwrap_used, reason = "a benchmark may fail")]

use std::{collections::BTreeMap, time::Duration};

use fleet_manager::{
    clock,
    core::{
        Now, command,
        fleet::{Fleet, Node, NodeNo, Record},
        intake,
        presence::State,
        rollout::{
            self, Approval, Artifact, Heard, MaxUnavailable, OnFailure, Release, Size, Terms, Wanted, Word,
        },
    },
};
use fleet_schemas::{
    DeviceId, MetricName, NodeId, SessionId,
    update::{Custom, Digest, Kind, Report, Running, State as Said},
};

const NODES: NodeNo = 10_000;
const START_MS: i64 = 1_790_000_000_000;

fn name(text: &str) -> MetricName {
    MetricName::parse(text).unwrap()
}

fn running(digest: Digest) -> Running {
    Running { kind: Kind::Skill, name: name("greeter"), version: name("1.0.0"), digest, device: None }
}

fn fleet() -> Fleet {
    let mut fleet = Fleet::default();
    for number in 1..=NODES {
        let mut record = Record::new(NodeId::parse(&format!("n{number}")).unwrap(), START_MS);
        record.presence.state = State::Online;
        record.presence.session = Some(SessionId([1; 8]));
        record.site = Some(format!("s{}", number % 100));
        record.machine = [("arch".to_owned(), ["aarch64", "x86_64"][number as usize % 2].to_owned())].into();
        record.versions.running = vec![running(Digest([1; 32]))];
        fleet.insert(Node::new(number, record));
    }
    fleet
}

fn wanted(fleet: &Fleet, max_unavailable: Option<MaxUnavailable>) -> Wanted {
    let artifact = Artifact { digest: Digest([2; 32]), length: 20_000_000, custom: Custom::default() };
    let targets = [(name("any"), artifact)].into();
    let release = Release { name: name("greeter"), version: name("1.1.0"), kind: Kind::Skill, targets };
    Wanted {
        id: fleet.rollouts.next_id(&release),
        release,
        before: BTreeMap::new(),
        seats: fleet.nodes.keys().map(|id| (id.clone(), DeviceId::node(), None)).collect(),
        selector: None,
        terms: Terms {
            waves: vec![Size::Nodes(1), Size::Percent(5.0), Size::Percent(25.0), Size::Percent(100.0)],
            soak_ms: 1_000,
            max_failures: 0.02,
            min_executed: 5,
            max_unavailable,
            rate: None,
            window: None,
            gates: Vec::new(),
            on_failure: OnFailure::Pause,
            approval: Approval::No,
            deadline_ms: 86_400_000,
            timeout_ms: 3_600_000,
            offline_ms: 900_000,
            probation_ms: None,
            offline_ok: false,
            allowance: 0.1,
        },
        by: "operator ada".to_owned(),
    }
}

fn run(what: &str, max_unavailable: Option<MaxUnavailable>) {
    let mut fleet = fleet();
    let wanted = wanted(&fleet, max_unavailable);
    let mut ms = 0_i64;
    let now =
        |ms: i64| Now { wall_ms: START_MS + ms, mono: Duration::from_millis(u64::try_from(ms).unwrap()) };
    let began = clock::mono();
    let mut effects = intake::Effects::default();
    rollout::create(&mut fleet, &mut effects, &wanted, now(ms)).unwrap();
    let planned = clock::mono() - began;
    let (mut longest, mut sum, mut steps) = (Duration::ZERO, Duration::ZERO, 0_u32);
    let mut told = Vec::new();
    loop {
        ms += 200;
        // Every node that was told a step ago is confirmed now.
        let mut heard = Vec::new();
        for (node, report) in told.drain(..) {
            let version = running(Digest([2; 32]));
            let id = fleet.ids.get(&node).unwrap().clone();
            fleet.nodes.get_mut(&id).unwrap().record.versions.running = vec![version.clone()];
            heard.push(Heard { node, word: Word::Runs { running: vec![version], born: false } });
            heard.push(Heard { node, word: Word::Step(Box::new(report)) });
        }
        let mut effects = intake::Effects { heard, ..intake::Effects::default() };
        let began = clock::mono();
        rollout::advance(&mut fleet, &mut effects, now(ms));
        let took = clock::mono() - began;
        (longest, sum, steps) = (longest.max(took), sum + took, steps + 1);
        for (command, node) in effects.commands.rows.keys() {
            let report = Report {
                command: *command,
                target: "skill/greeter/1.1.0/any".parse().unwrap(),
                digest: Digest([2; 32]),
                rollout: None,
                device: None,
                state: Said::Confirmed,
                reason: None,
                bytes: None,
                total: None,
                from: None,
            };
            told.push((*node, report));
        }
        let mut commands = command::Effects::default();
        command::advance(&mut fleet, &mut commands, now(ms));
        let live = fleet.rollouts.get(wanted.id.as_str()).unwrap();
        if live.head.state.is_final() {
            println!(
                "{what:34} planned in {:6.1} ms; {steps} steps, longest {:6.1} ms, mean {:6.2} ms; {}",
                planned.as_secs_f64() * 1e3,
                longest.as_secs_f64() * 1e3,
                sum.as_secs_f64() * 1e3 / f64::from(steps),
                live.head.reason
            );
            return;
        }
    }
}

fn main() {
    run("10,000 nodes, any number down", None);
    run("10,000 nodes, 1 of a site down", Some(MaxUnavailable { nodes: 1, per_site: true }));
    run("10,000 nodes, 50 down", Some(MaxUnavailable { nodes: 50, per_site: false }));
}
