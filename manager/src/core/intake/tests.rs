//! What runs at a node, by its births and events.

use fleet_schemas::{
    SessionId,
    batch::Clock,
    session::{Heartbeat, OutboxUse, Pending, Versions},
    update::{self, Kind, Running},
};

use super::*;

const NOW: Now = Now { mono: std::time::Duration::from_secs(100), wall_ms: 1_790_000_000_000 };
const STREAM: StreamId = StreamId([7; 16]);

fn runs(digest: u8) -> Versions {
    let name = |text| fleet_schemas::MetricName::parse(text).unwrap();
    let one = Running {
        kind: Kind::Skill,
        name: name("greeter"),
        version: name("1.0.0"),
        digest: update::Digest([digest; 32]),
        device: None,
    };
    Versions { agent: "0.1.0".to_owned(), running: vec![one], ..Versions::default() }
}

/// A birth of a node that has sealed its events up to the batch before `next`.
fn birth(versions: Versions, next: u64) -> Birth {
    let state = StreamState {
        stream: STREAM,
        floor_seq: 1,
        floor_record: 1,
        next_seq: next,
        next_record: next,
        counted: next - 1,
        tombstoned: 0,
    };
    Birth {
        v: VERSION,
        session: SessionId([1; 8]),
        epoch: 1,
        boot: [1; 8],
        instance: None,
        up_ms: 1_000,
        clock: Clock::Synced,
        time_ms: NOW.wall_ms,
        interval_ms: 60_000,
        kind: "picclaw".to_owned(),
        name: None,
        capabilities: vec![],
        versions,
        machine: BTreeMap::new(),
        lanes: BTreeMap::from([(Lane::Event, vec![state])]),
        partial: false,
        pending: Pending::default(),
        commands: None,
        config: None,
    }
}

/// The event of that number, which tells what runs.
fn told(versions: &Versions, seq: u64) -> Input {
    let event = Event {
        time_ms: NOW.wall_ms,
        kind: fleet_schemas::MetricName::parse(update::RUNNING).unwrap(),
        severity: Severity::Info,
        message: String::new(),
        data: Some(ciborium::Value::serialized(versions).unwrap()),
        device: None,
        id: None,
    };
    let batch = Batch {
        v: VERSION,
        stream: STREAM,
        seq,
        seq_to: None,
        first: seq,
        count: 1,
        boot: [1; 8],
        up_ms: 1_000,
        clock: Clock::Synced,
        sealed_ms: NOW.wall_ms,
        lost: None,
        body: Vec::new(),
    };
    let digest = seq.to_le_bytes();
    Input::Batch { lane: Lane::Event, batch, digest, body: Body::Events(vec![event]) }
}

#[test]
fn what_ran_before_a_birth_is_old_news_although_it_comes_later() {
    let id = NodeId::parse("a").unwrap();
    let (mut fleet, mut effects) = (Fleet::default(), Effects::default());
    let mut take = |fleet: &mut Fleet, input| take(fleet, &mut effects, &id, input, 0, NOW);
    take(&mut fleet, Input::Birth(Box::new(birth(runs(2), 2))));
    let known = |fleet: &Fleet| fleet.nodes[&id].record.versions.clone();
    take(&mut fleet, told(&runs(1), 1));
    assert_eq!(known(&fleet), runs(2), "the first batch was sealed before the birth");
    take(&mut fleet, told(&runs(3), 2));
    assert_eq!(known(&fleet), runs(3));
}

#[test]
fn samples_without_a_number_are_those_that_the_latest_word_tells_of() {
    let id = NodeId::parse("a").unwrap();
    let (mut fleet, mut effects) = (Fleet::default(), Effects::default());
    let mut take = |fleet: &mut Fleet, input| take(fleet, &mut effects, &id, input, 0, NOW);
    let at_edge = |fleet: &Fleet| fleet.nodes[&id].sum(Lane::Telemetry).at_edge;
    let born = birth(runs(1), 1);
    take(&mut fleet, Input::Birth(Box::new(born.clone())));
    let heartbeat = Heartbeat {
        v: VERSION,
        session: born.session,
        boot: born.boot,
        up_ms: 2_000,
        clock: Clock::Synced,
        time_ms: NOW.wall_ms,
        interval_ms: born.interval_ms,
        system: BTreeMap::new(),
        lanes: BTreeMap::new(),
        partial: false,
        pending: Pending { samples: 11 },
        outbox: OutboxUse::default(),
        config: None,
    };
    take(&mut fleet, Input::Heartbeat(Box::new(heartbeat)));
    assert_eq!(at_edge(&fleet), 11);
    // A birth that comes twice is older than the heartbeat.
    take(&mut fleet, Input::Birth(Box::new(born.clone())));
    assert_eq!(at_edge(&fleet), 11);
    let next = Birth { session: SessionId([2; 8]), epoch: 2, pending: Pending { samples: 3 }, ..born };
    take(&mut fleet, Input::Birth(Box::new(next)));
    assert_eq!(at_edge(&fleet), 3);
}
