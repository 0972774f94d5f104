//! The engine over real stores: power failures at every sync, and a fleet that goes dark at once.

use std::{sync::Arc, thread, time::Duration};

use bytes::Bytes;
use fleet_schemas::{
    DeviceId, Lane, MetricName, NodeId, SessionId, StoreId, StreamId, Topic, VERSION,
    batch::{Batch, Clock},
    cbor,
    device::{Report, State},
    session::{Birth, Pending, Versions},
    telemetry::{Builder, Sample, Samples},
    topic::Up,
};
use tempfile::TempDir;

use super::{Judge, rules::Files};
use crate::{
    consume::{CREDIT, Consumer, Shared},
    core::{
        Now,
        alert::{Alert, Stage, route::Wants},
        devices::Device,
        registry::{Intent, NodePatch, Order},
    },
    store::{
        disk::{Memory, When},
        state::{AlertFilter, Commit},
        telemetry::{Config, InboxBatch},
    },
};

const START_MS: i64 = 1_795_000_000_000;
const HOT: &str = "rules: [{id: hot, sensor: any, field: t, condition: 'value > 27'}]";

fn now(seconds: u64) -> Now {
    let mono = Duration::from_secs(seconds);
    Now { wall_ms: START_MS + i64::try_from(seconds).unwrap() * 1_000, mono }
}

fn open(disk: &Memory, at: Now) -> Consumer {
    Consumer::open(Arc::new(disk.clone()), Config::default(), StoreId([5; 16]), at).unwrap()
}

fn folder(rules: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("rules.yaml"), rules).unwrap();
    folder
}

fn judge(shared: &Shared, folder: &TempDir, at: Now) -> Result<Judge, crate::consume::Error> {
    let routes = vec![("ops".to_owned(), Wants::default())];
    Judge::open(shared, Files::new(folder.path(), None), routes, at)
}

fn import(consumer: &mut Consumer, names: impl Iterator<Item = String>, at: Now) {
    let nodes = names.map(|name| (NodeId::parse(&name).unwrap(), NodePatch::default())).collect();
    let order = Order { by: "hub".to_owned(), intent: Intent::ImportNodes(nodes) };
    let spoken = consumer.consume([], vec![order], CREDIT, at).unwrap();
    assert!(spoken.outcomes.iter().all(Result::is_ok));
}

fn sample(value: f64, at: Now) -> Samples {
    let mut builder = Builder::default();
    let (device, metric) = (DeviceId::parse("dht22").unwrap(), MetricName::parse("t").unwrap());
    builder.push(Sample { time_ms: at.wall_ms, device, metric, unit: None, value });
    builder.build()
}

fn measure(shared: &Shared, lane: Lane, value: f64, at: Now) {
    let samples = sample(value, at);
    let body = samples.encode();
    let mut write = shared.telemetry.begin().unwrap();
    let batch = InboxBatch {
        node: 1,
        lane,
        recv_ms: at.wall_ms,
        shift_ms: 0,
        samples: &samples,
        body: &body,
        payload: None,
    };
    write.append(&batch).unwrap();
    write.commit().unwrap();
}

fn of_rule(shared: &Shared, rule: &str) -> Vec<Alert> {
    let all = shared.state().alerts(&AlertFilter { limit: 100_000, ..AlertFilter::default() }).unwrap().0;
    all.into_iter().rev().filter(|alert| alert.rule.as_str() == rule).collect()
}

/// What is committed, and the process dies before it is judged, raises its alert at the next start.
#[test]
fn a_kill_between_commit_and_judgement_loses_no_alert() {
    let (disk, folder) = (Memory::default(), folder(HOT));
    let mut consumer = open(&disk, now(0));
    import(&mut consumer, ["a".to_owned()].into_iter(), now(0));
    drop(judge(consumer.shared(), &folder, now(0)).unwrap());
    measure(consumer.shared(), Lane::Telemetry, 30.0, now(1));
    // It was over before the hub was back, and is told of nevertheless.
    measure(consumer.shared(), Lane::Telemetry, 20.0, now(2));
    measure(consumer.shared(), Lane::Backfill, 99.0, now(3));
    drop(consumer);
    disk.crash();
    let consumer = open(&disk, now(3600));
    let mut judge = judge(consumer.shared(), &folder, now(3600)).unwrap();
    judge.round(now(3600)).unwrap();
    let alerts = of_rule(consumer.shared(), "hot");
    let seen: Vec<_> = alerts.iter().map(|alert| (alert.stage, alert.fired_ms, alert.resolved_ms)).collect();
    assert_eq!(seen, [(Stage::Resolved, Some(now(1).wall_ms), Some(now(2).wall_ms))]);
    let words: Vec<_> = judge.told().notices.into_iter().map(|(_, notice)| notice.word).collect();
    assert_eq!(words, ["firing", "resolved"]);
    assert_eq!(consumer.shared().state().notices().unwrap().len(), 2, "they wait until they are taken");
}

/// Power fails at every sync of the engine in turn: each alert is there once, and its words wait.
#[test]
fn a_power_failure_at_any_sync_neither_loses_nor_repeats_an_alert() {
    let mut failures = 0;
    for sync in 1.. {
        let (disk, folder) = (Memory::default(), folder(HOT));
        let mut consumer = open(&disk, now(0));
        import(&mut consumer, ["a".to_owned()].into_iter(), now(0));
        drop(judge(consumer.shared(), &folder, now(0)).unwrap());
        let values = [30.0, 20.0, 31.0, 19.0, 32.0];
        for (at, value) in values.into_iter().enumerate() {
            measure(consumer.shared(), Lane::Telemetry, value, now(1 + at as u64));
        }
        disk.freeze_at(disk.syncs() + sync, When::Before);
        let died =
            judge(consumer.shared(), &folder, now(10)).and_then(|mut judge| judge.round(now(10))).is_err();
        drop(consumer);
        disk.crash();
        let consumer = open(&disk, now(20));
        let mut judge = judge(consumer.shared(), &folder, now(20)).unwrap();
        judge.round(now(20)).unwrap();
        let alerts = of_rule(consumer.shared(), "hot");
        let seen: Vec<_> =
            alerts.iter().map(|alert| (alert.stage, alert.fired_ms.unwrap() - START_MS)).collect();
        let expected = [(Stage::Resolved, 1_000), (Stage::Resolved, 3_000), (Stage::Firing, 5_000)];
        assert_eq!(seen, expected, "sync {sync}");
        let waiting = consumer.shared().state().notices().unwrap();
        let words: Vec<_> =
            waiting.iter().map(|(_, notice)| (notice.alert.number, notice.word.as_str())).collect();
        let [a, b, c] = [0, 1, 2].map(|at: usize| alerts[at].number);
        assert_eq!(words, [(a, "firing"), (a, "resolved"), (b, "firing"), (b, "resolved"), (c, "firing")]);
        failures += u32::from(died);
        if !died {
            break;
        }
    }
    assert!(failures > 0, "no sync failed");
}

#[test]
fn a_restart_raises_no_storm_and_forgets_no_silence() {
    let (disk, folder) = (Memory::default(), folder(HOT));
    let mut consumer = open(&disk, now(0));
    import(&mut consumer, ["a".to_owned()].into_iter(), now(0));
    let mut first = judge(consumer.shared(), &folder, now(0)).unwrap();
    measure(consumer.shared(), Lane::Telemetry, 30.0, now(1));
    first.round(now(1)).unwrap();
    assert_eq!(first.told().notices.len(), 1);
    drop(first);
    for start in 1..4 {
        // Also with a file that is wrong: the rules that counted before go on.
        if start == 2 {
            std::fs::write(folder.path().join("rules.yaml"), "rules: [{id: hot}]").unwrap();
        }
        let mut again = judge(consumer.shared(), &folder, now(10 * start)).unwrap();
        again.round(now(10 * start + 2)).unwrap();
        assert_eq!(again.rules().refused.is_some(), start >= 2);
        assert_eq!((again.told().notices, of_rule(consumer.shared(), "hot").len()), (vec![], 1));
    }
}

/// Its node tells of it when it changes, which may have been long ago.
#[test]
fn after_a_restart_a_rule_on_one_device_knows_how_that_is() {
    let (disk, folder) = (Memory::default(), folder("rules: []"));
    let mut consumer = open(&disk, now(0));
    let (topic, payload) = birth("a");
    consumer.consume([(&topic, &payload)], vec![], CREDIT, now(1)).unwrap();
    let pump = DeviceId::parse("pump").unwrap();
    let report = Report {
        device: pump.clone(),
        state: State::Offline,
        kind: None,
        name: None,
        firmware: None,
        capabilities: vec![],
        heartbeat_ms: None,
        sleep_ms: None,
        until_ms: None,
        last_seen_ms: None,
        unsequenced: false,
    };
    let device = Device { report, at_ms: now(1).wall_ms, recv_ms: now(1).wall_ms };
    let commit = Commit { devices: vec![(1, pump.clone(), Some(device))], ..Commit::default() };
    consumer.shared().state().apply(&commit).unwrap();
    drop(consumer);
    let rule = "rules: [{id: dry, sensor: pump, condition: 'device_state == \"offline\"'}]";
    std::fs::write(folder.path().join("rules.yaml"), rule).unwrap();
    let mut consumer = open(&disk, now(100));
    consumer.consume([(&topic, &payload)], vec![], CREDIT, now(101)).unwrap();
    let mut judge = judge(consumer.shared(), &folder, now(102)).unwrap();
    for second in [103, 130, 160] {
        judge.round(now(second)).unwrap();
    }
    let alerts = of_rule(consumer.shared(), "dry");
    let seen: Vec<_> = alerts.iter().map(|alert| (alert.stage, &alert.device)).collect();
    assert_eq!(seen, [(Stage::Firing, &pump)]);
}

/// Its number stays with its history.
#[test]
fn alerts_of_a_node_that_was_removed_with_its_history_kept_are_over() {
    let (disk, folder) = (Memory::default(), folder(HOT));
    let mut consumer = open(&disk, now(0));
    import(&mut consumer, ["a".to_owned()].into_iter(), now(0));
    let mut judge = judge(consumer.shared(), &folder, now(0)).unwrap();
    measure(consumer.shared(), Lane::Telemetry, 30.0, now(1));
    judge.round(now(1)).unwrap();
    assert_eq!(of_rule(consumer.shared(), "hot")[0].stage, Stage::Firing);
    let intent = Intent::RemoveNode(NodeId::parse("a").unwrap());
    consumer.consume([], vec![Order { by: "operator ann".to_owned(), intent }], CREDIT, now(2)).unwrap();
    judge.round(now(60)).unwrap();
    let over = of_rule(consumer.shared(), "hot");
    assert_eq!((over[0].stage, over[0].reason.as_deref()), (Stage::Resolved, Some("the node was removed")));
}

fn birth(name: &str) -> (Topic, Bytes) {
    let birth = Birth {
        v: VERSION,
        session: SessionId([1; 8]),
        epoch: 1,
        boot: [1; 8],
        instance: None,
        up_ms: 1_000,
        clock: Clock::Synced,
        time_ms: START_MS,
        interval_ms: 30_000,
        kind: "picclaw".to_owned(),
        name: None,
        capabilities: vec![],
        versions: Versions::default(),
        machine: Default::default(),
        lanes: Default::default(),
        partial: false,
        pending: Pending::default(),
        commands: None,
        config: None,
    };
    (Topic::Up(NodeId::parse(name).unwrap(), Up::Birth), Bytes::from(cbor::encode(&birth)))
}

fn delivery(name: &str, seq: u64, at: Now) -> (Topic, Bytes) {
    let batch = Batch {
        v: VERSION,
        stream: StreamId([1; 16]),
        seq,
        seq_to: None,
        first: seq,
        count: 1,
        boot: [1; 8],
        up_ms: 1_000 + seq,
        clock: Clock::Synced,
        sealed_ms: at.wall_ms,
        lost: None,
        body: sample(20.0, at).encode(),
    };
    let topic = Topic::Up(NodeId::parse(name).unwrap(), Up::Lane(Lane::Telemetry));
    (topic, Bytes::from(cbor::encode(&batch)))
}

/// Nodes that deliver while they are looked at are no broken accounts: neither between two parts of a pass, nor while a
/// group is half committed.
#[test]
fn a_fleet_that_delivers_while_it_is_looked_at_has_no_broken_account() {
    let (disk, folder) = (Memory::default(), folder(""));
    let names: Vec<String> = (0..600).map(|n| format!("n{n}")).collect();
    let mut consumer = open(&disk, now(0));
    let births: Vec<_> = names.iter().map(|name| birth(name)).collect();
    consumer.consume(births.iter().map(|(topic, payload)| (topic, payload)), vec![], CREDIT, now(1)).unwrap();
    let mut judge = judge(consumer.shared(), &folder, now(2)).unwrap();
    let delivering = thread::spawn(move || {
        for seq in 1..=60 {
            let all: Vec<_> = names.iter().map(|name| delivery(name, seq, now(2))).collect();
            let messages = all.iter().map(|(topic, payload)| (topic, payload));
            consumer.consume(messages, vec![], CREDIT, now(3)).unwrap();
        }
        consumer
    });
    let (mut seconds, mut passes) = (20, 0);
    while !delivering.is_finished() {
        judge.round(now(seconds)).unwrap();
        // A pass ends, and the next begins.
        seconds += if judge.is_busy() { 0 } else { 20 };
        passes += u32::from(!judge.is_busy());
    }
    let consumer = delivering.join().unwrap();
    assert!(passes > 2, "{passes}");
    assert_eq!(of_rule(consumer.shared(), "ledger-broken"), []);
    let stored = consumer.shared().counters().unwrap()(1, Lane::Telemetry).stored;
    assert_eq!(stored, 60, "they were delivered");
}

/// 10,000 nodes go dark at once: one alert is told, and the consumer commits meanwhile.
#[test]
fn a_fleet_that_goes_dark_is_one_alert_and_the_hub_goes_on() {
    const NODES: usize = 10_000;
    let (disk, folder) = (Memory::default(), folder(""));
    let mut consumer = open(&disk, now(0));
    for part in (0..NODES).collect::<Vec<_>>().chunks(1_000) {
        let births: Vec<_> = part.iter().map(|n| birth(&format!("n{n}"))).collect();
        consumer
            .consume(births.iter().map(|(topic, payload)| (topic, payload)), vec![], CREDIT, now(1))
            .unwrap();
    }
    let mut judge = judge(consumer.shared(), &folder, now(2)).unwrap();
    judge.round(now(2)).unwrap();
    assert_eq!(judge.engine().alerts().len(), 0);
    // Late, then offline: each of them at once.
    for at in [60, 120] {
        consumer.consume([], vec![], CREDIT, now(at)).unwrap();
    }
    let judging = thread::spawn(move || {
        let mut seconds = 130;
        let mut told = Vec::new();
        while judge.is_busy() || seconds < 150 {
            judge.round(now(seconds)).unwrap();
            told.extend(judge.told().notices);
            seconds += u64::from(!judge.is_busy());
        }
        (judge, told)
    });
    let (mut commits, mut longest) = (0, Duration::ZERO);
    let one = birth("n0");
    while !judging.is_finished() {
        let began = crate::clock::mono();
        consumer.consume([(&one.0, &one.1)], vec![], CREDIT, now(121)).unwrap();
        longest = longest.max(crate::clock::mono() - began);
        commits += 1;
    }
    let (mut judge, told) = judging.join().unwrap();
    let words: Vec<_> = told.iter().map(|(_, notice)| (notice.word.as_str(), &notice.alert)).collect();
    let [("firing", cause)] = words.as_slice() else { panic!("{} words", words.len()) };
    assert!(cause.message.starts_with("the fleet is dark: "), "{}", cause.message);
    let behind =
        judge.engine().alerts().values().filter(|alert| alert.inhibited_by == Some(cause.number)).count();
    assert!(behind >= NODES - 2, "{behind}");
    assert!(commits > 1 && longest < Duration::from_secs(5), "{commits} commits, {longest:?} at most");
}
