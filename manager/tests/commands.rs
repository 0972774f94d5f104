//! Many executions: a command to a whole fleet by the consumer alone, and pages of a large store.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use fleet_manager::{
    clock,
    consume::{CREDIT, Consumer, Spoken},
    core::{
        Now,
        command::{Command, Effects, Execution, Row, Step, TIMEOUT, TTL, Wanted},
        registry::{Intent, Order},
    },
    store::{
        disk::{Folder, Memory, When},
        state::{CommandFilter, Commit, ExecutionFilter, StateStore},
        telemetry,
    },
};
use fleet_schemas::{
    CommandId, Lane, MetricName, NodeId, SessionId, StoreId, StreamId, Topic, VERSION,
    batch::{Batch, Clock},
    cbor,
    command::{Orders, Report, State},
    session::{Birth, Pending, Versions},
    topic::{Down, Up},
};

const START: i64 = 1_790_000_000_000;
const NODES: usize = 5_000;

fn now(seconds: u64) -> Now {
    Now { wall_ms: START + i64::try_from(seconds * 1_000).unwrap(), mono: Duration::from_secs(seconds) }
}

fn word(text: &str) -> MetricName {
    MetricName::parse(text).unwrap()
}

fn node(index: usize) -> NodeId {
    NodeId::parse(&format!("node-{index:05}")).unwrap()
}

fn session(index: usize) -> SessionId {
    SessionId((index as u64).to_be_bytes())
}

fn birth(index: usize) -> (Topic, Bytes) {
    let birth = Birth {
        v: VERSION,
        session: session(index),
        epoch: 1,
        boot: [1; 8],
        instance: None,
        up_ms: 0,
        clock: Clock::Synced,
        time_ms: START,
        interval_ms: 60_000,
        kind: "picclaw".to_owned(),
        name: None,
        capabilities: Vec::new(),
        versions: Versions::default(),
        machine: BTreeMap::new(),
        lanes: BTreeMap::new(),
        partial: false,
        pending: Pending::default(),
        commands: Some(Vec::new()),
        config: None,
    };
    (Topic::Up(node(index), Up::Birth), cbor::encode(&birth).into())
}

fn accepts(topic: &Topic, payload: &[u8]) -> Option<(Topic, Bytes)> {
    let Topic::Down(node, Down::Command) = topic else { return None };
    let orders: Orders = cbor::decode(payload).unwrap();
    let (reason, exit_code, output, result, too_late) = (None, None, None, None, false);
    let offers = orders.offers.iter().map(|offer| offer.id);
    let reports: Vec<Report> = offers
        .map(|id| Report {
            id,
            state: State::Accepted,
            time_ms: START,
            reason: reason.clone(),
            exit_code,
            output: output.clone(),
            result: result.clone(),
            too_late,
        })
        .collect();
    let batch = Batch {
        v: VERSION,
        stream: StreamId([1; 16]),
        seq: 1,
        seq_to: None,
        first: 1,
        count: reports.len() as u64,
        boot: [1; 8],
        up_ms: 1,
        clock: Clock::Synced,
        sealed_ms: START,
        lost: None,
        body: cbor::encode(&reports),
    };
    Some((Topic::Up(node.clone(), Up::Lane(Lane::Command)), cbor::encode(&batch).into()))
}

fn ping(nodes: Vec<NodeId>) -> Wanted {
    Wanted {
        id: CommandId([1; 16]),
        by: "operator test".to_owned(),
        nodes,
        kind: word("ping"),
        params: ciborium::Value::Null,
        queue: word("main"),
        priority: 0,
        idempotent: false,
        supersedes: None,
        ttl: TTL,
        timeout: TIMEOUT,
        not_before_ms: None,
        rate: None,
        selector: None,
    }
}

/// Samples that nobody can read: they are kept raw.
fn rubbish(index: usize) -> (Topic, Bytes) {
    let batch = Batch {
        v: VERSION,
        stream: StreamId([2; 16]),
        seq: 1,
        seq_to: None,
        first: 1,
        count: 1,
        boot: [1; 8],
        up_ms: 1,
        clock: Clock::Synced,
        sealed_ms: START,
        lost: None,
        body: vec![0xff; 16],
    };
    (Topic::Up(node(index), Up::Lane(Lane::Telemetry)), cbor::encode(&batch).into())
}

fn open(disk: &Memory, at: Now) -> Consumer {
    Consumer::open(Arc::new(disk.clone()), telemetry::Config::default(), StoreId([3; 16]), at).unwrap()
}

fn take(consumer: &mut Consumer, messages: &[(Topic, Bytes)], orders: Vec<Order>, at: Now) -> Spoken {
    let group = messages.iter().map(|(topic, payload)| (topic, payload));
    consumer.consume(group, orders, CREDIT, at).unwrap()
}

/// The hub's part of a command to 5,000 nodes: five seconds are allowed for all of it, sockets and agents included.
#[test]
fn a_command_to_five_thousand_nodes_takes_a_few_groups() {
    let disk = Memory::default();
    let mut consumer = open(&disk, now(0));
    let births: Vec<_> = (0..NODES).map(birth).collect();
    for group in births.chunks(1_000) {
        take(&mut consumer, group, Vec::new(), now(1));
    }
    let wanted = ping((0..NODES).map(node).collect());
    let id = wanted.id;
    let began = clock::mono();
    let order = Order { by: wanted.by.clone(), intent: Intent::Command(Box::new(wanted)) };
    let (mut orders, mut messages, mut rounds) = (vec![order], Vec::new(), 0);
    while consumer
        .shared()
        .state()
        .command(id)
        .unwrap()
        .is_none_or(|(_, counts)| counts.of(State::Accepted) < 5_000)
    {
        let group: Vec<_> = messages.drain(..messages.len().min(1_000)).collect();
        let spoken = take(&mut consumer, &group, std::mem::take(&mut orders), now(2));
        messages.extend(spoken.downs.iter().filter_map(|(topic, payload)| accepts(topic, payload)));
        rounds += 1;
        assert!(rounds < 50, "{:?}", consumer.shared().state().command(id));
    }
    let took = clock::mono() - began;
    println!("{NODES} accepted in {rounds} groups and {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    let waiting = consumer.shared().fleet().commands.waiting();
    assert_eq!((waiting.commands, waiting.executions), (1, NODES));
    drop(consumer);
    let again = open(&disk, now(3));
    assert_eq!(again.shared().fleet().commands.waiting(), waiting, "a start finds what a stop left");
    assert_eq!(again.shared().state().recount_reports().unwrap().values().sum::<u64>(), 5_000);
}

/// A group's orders are committed before its samples: whoever gave one must not give it again when those fail.
#[test]
fn an_order_that_was_committed_is_answered_although_the_samples_of_its_group_were_not() {
    let mut done = 0;
    for sync in 1.. {
        let disk = Memory::default();
        let mut consumer = open(&disk, now(0));
        take(&mut consumer, &[birth(0)], Vec::new(), now(1));
        disk.freeze_at(disk.syncs() + sync, When::Before);
        let order =
            Order { by: "operator test".to_owned(), intent: Intent::Command(Box::new(ping(vec![node(0)]))) };
        let (topic, payload) = rubbish(0);
        let failed = consumer.consume([(&topic, &payload)], vec![order], CREDIT, now(2)).is_err();
        let settled = consumer.settled();
        disk.crash();
        if !failed {
            assert!(settled.outcomes.is_empty());
            break;
        }
        consumer.reopen(now(3)).unwrap();
        let open = consumer.shared().fleet().commands.waiting().executions;
        match settled.outcomes.as_slice() {
            [] => assert_eq!(open, 0, "sync {sync}"),
            [Ok(())] => {
                assert_eq!(open, 1, "sync {sync}");
                done += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(done > 0, "its samples never failed");
}

/// Any page within 50 ms of a release build; `FLEET_EXECUTIONS=1000000` makes the store as large as it is meant to be.
#[test]
fn pages_of_a_large_store_come_at_once() {
    let executions: u32 = std::env::var("FLEET_EXECUTIONS").map_or(40_000, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let store = StateStore::open(&Folder::new(folder.path()), StoreId([1; 16])).unwrap();
    let (per_command, kinds) = (10, ["ping", "exec"]);
    let id = |n: u32| CommandId(u128::from(n + 1).to_be_bytes());
    for first in (0..executions / per_command).step_by(2_000) {
        let mut effects = Effects::default();
        for n in first..(first + 2_000).min(executions / per_command) {
            let command = command(id(n), kinds[usize::from(n % 100 == 7)]);
            for node in 1..=per_command {
                let state = if n % 1_000 == 3 { State::Failed } else { State::Succeeded };
                let execution = ended(state);
                effects.rows.insert((command.id, node), Row { was: None, execution });
            }
            effects.made.push(Arc::new(command));
        }
        store.apply(&Commit { commands: effects, ..Commit::default() }).unwrap();
    }
    let mut slowest = Duration::ZERO;
    let mut page = |filter: CommandFilter| {
        let filter = CommandFilter { limit: 100, ..filter };
        let began = clock::mono();
        let page = store.commands(&filter).unwrap();
        slowest = slowest.max(clock::mono() - began);
        page
    };
    let exec = Some("exec".to_owned());
    let middle = Some(id(executions / per_command / 2));
    assert_eq!(page(CommandFilter::default()).items.len(), 100);
    assert_eq!(page(CommandFilter { before: middle, ..CommandFilter::default() }).items.len(), 100);
    assert_eq!(
        page(CommandFilter { node: Some(3), before: middle, ..CommandFilter::default() }).items.len(),
        100
    );
    let failed = page(CommandFilter { state: Some(State::Failed), ..CommandFilter::default() });
    assert!(
        !failed.items.is_empty() && failed.items.iter().all(|(_, counts)| counts.of(State::Failed) == 10)
    );
    assert!(page(CommandFilter { state: Some(State::Queued), ..CommandFilter::default() }).items.is_empty());
    assert!(!page(CommandFilter { kind: exec.clone(), ..CommandFilter::default() }).items.is_empty());
    // Nothing is of both: the page ends early, and says where to go on.
    let mut both = CommandFilter {
        state: Some(State::Succeeded),
        kind: exec,
        node: Some(11),
        ..CommandFilter::default()
    };
    assert_eq!(page(both.clone()).items, []);
    both.node = Some(3);
    let (mut found, mut pages) = (0, 0);
    loop {
        let next = page(both.clone());
        found += next.items.len();
        pages += 1;
        both.before = next.next;
        if both.before.is_none() {
            break;
        }
    }
    assert_eq!(found as u32, executions / per_command / 100, "over {pages} pages");
    let few = store.executions(id(0), &ExecutionFilter { limit: 4, ..ExecutionFilter::default() }).unwrap();
    assert_eq!((few.items.len(), few.next), (4, Some(4)));
    println!("{executions} executions, slowest page {slowest:?}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    assert_eq!(store.open_commands().unwrap().1.len(), 0);
    assert_eq!(store.expire_commands(START + 1, 50).unwrap(), 50);
    assert_eq!(store.command(id(0)).unwrap(), None);
    assert!(
        store
            .commands(&CommandFilter { node: Some(3), limit: 1, ..CommandFilter::default() })
            .unwrap()
            .next
            .is_some()
    );
}

fn command(id: CommandId, kind: &str) -> Command {
    Command {
        id,
        no: 1,
        kind: word(kind),
        params: ciborium::Value::Null,
        params_bytes: 1,
        queue: word("main"),
        priority: 0,
        idempotent: false,
        supersedes: None,
        created_ms: START,
        not_before_ms: None,
        not_after_ms: START + 1,
        timeout_ms: 1,
        by: "operator test".to_owned(),
        selector: None,
    }
}

fn ended(state: State) -> Execution {
    let states = [State::Queued, State::Sent, State::Accepted, State::Running, state];
    let mut execution = Execution::new(START, START);
    execution.history = states.map(|state| Step { state, at_ms: START, reason: None }).to_vec();
    execution
}
