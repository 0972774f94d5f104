//! What the hub may say of a single batch, and a batch that rotted on the card: the lane goes on, and what is gone is
//! declared.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, time::Duration};

use fleet_edge_agent::{
    core::Now,
    store::{
        outbox::{Outbox, Write},
        rows::Held,
        sim_disk::SimFile,
    },
    uplink::{Config, Profile, Submission, Uplink},
};
use fleet_schemas::{
    Lane, MetricName, NodeId, SessionId, StoreId, StreamId, Topic, VERSION,
    ack::{Ack, StreamAck, Verdict},
    batch::{Batch, Clock, Envelope, Lost},
    cbor::{self, Unpacker},
    event::{self, Event, Severity},
    session::{Birth, StreamState, Versions},
    topic::{Down, Up},
};
use redb::StorageBackend as _;

const SESSION: SessionId = SessionId([7; 8]);
const NOW: Now = Now { wall_ms: 1_790_000_000_000, up: Duration::from_secs(100), clock: Clock::Synced };

fn open(card: &SimFile, stream: u8) -> Uplink {
    open_with(card, stream, Config::default())
}

fn open_with(card: &SimFile, stream: u8, config: Config) -> Uplink {
    let profile = Profile {
        node: NodeId::parse("edge-1").unwrap(),
        boot: [1; 8],
        instance: Some([stream; 8]),
        kind: "picclaw".to_owned(),
        name: None,
        capabilities: Vec::new(),
        versions: Versions::default(),
        machine: BTreeMap::new(),
        heartbeat: Duration::from_secs(30),
    };
    Uplink::open(card.backend(), profile, config, StreamId([stream; 16]), NOW).unwrap()
}

fn submit(uplink: &mut Uplink, message: &str) {
    let event = Event {
        time_ms: NOW.wall_ms,
        kind: MetricName::parse("test").unwrap(),
        severity: Severity::Info,
        message: message.to_owned(),
        data: None,
        device: None,
        id: None,
    };
    assert_eq!(uplink.submit(vec![Submission::Events(vec![event])], NOW).unwrap(), [Ok(())]);
}

fn hear(uplink: &mut Uplink, birth: bool, streams: &[(u8, u64, Verdict)]) {
    let stream = |(id, seq, verdict): &(u8, u64, Verdict)| StreamAck {
        stream: StreamId([*id; 16]),
        seq: *seq,
        verdict: verdict.clone(),
    };
    let lanes = [(Lane::Event, streams.iter().map(stream).collect())].into();
    let (v, store_id, session) = (VERSION, StoreId([9; 16]), SESSION);
    let ack = Ack { v, store_id, session, birth, hub_ms: NOW.wall_ms, credit: 16, lanes };
    uplink.receive(Down::Ack, &cbor::encode(&ack), NOW).unwrap();
}

/// The event batches that are sent now.
fn sent(uplink: &mut Uplink) -> Vec<Batch> {
    let outgoing = uplink.poll(NOW).unwrap();
    let events = outgoing.iter().filter(|o| matches!(o.topic, Topic::Up(_, Up::Lane(Lane::Event))));
    let decoded = events.filter_map(|o| {
        match Batch::decode(Unpacker::default().unpack(&o.payload).unwrap()).unwrap() {
            Envelope::Known(batch) => Some(batch),
            Envelope::Unknown(_) => None,
        }
    });
    decoded.collect()
}

fn messages(batches: &[Batch]) -> Vec<String> {
    batches.iter().flat_map(|b| event::decode(&b.body).unwrap()).map(|event| event.message).collect()
}

#[test]
fn a_fork_is_sealed_again_under_a_new_stream_and_what_was_acked_stays() {
    let card = SimFile::new();
    let mut uplink = open(&card, 1);
    ["a", "b", "c"].iter().for_each(|message| submit(&mut uplink, message));
    uplink.connected(SESSION, NOW);
    hear(&mut uplink, true, &[(1, 1, Verdict::Ok)]);
    assert_eq!(messages(&sent(&mut uplink)), ["b", "c"]);
    hear(&mut uplink, false, &[(1, 1, Verdict::Fork { seq: 2 })]);
    let again = sent(&mut uplink);
    assert_eq!(messages(&again), ["b", "c"]);
    assert!(again.iter().all(|batch| batch.stream != StreamId([1; 16])));
    assert_eq!(again.iter().map(|batch| (batch.seq, batch.first)).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
    // The hub is set back to a backup: the acked batch is still there to be sent, also after a restart.
    drop(uplink);
    let mut uplink = open(&card, 2);
    uplink.connected(SESSION, NOW);
    hear(&mut uplink, true, &[(1, 0, Verdict::Ok)]);
    let mut all = messages(&sent(&mut uplink));
    all.sort();
    assert_eq!(all, ["a", "b", "c"]);
}

#[test]
fn a_batch_of_a_newer_agent_that_the_hub_refuses_is_declared_lost() {
    let card = SimFile::new();
    {
        let (outbox, _) = Outbox::open(card.backend()).unwrap();
        let newer = Batch {
            v: VERSION + 1,
            stream: StreamId([1; 16]),
            seq: 1,
            seq_to: None,
            first: 1,
            count: 3,
            boot: [1; 8],
            up_ms: 1,
            clock: Clock::Synced,
            sealed_ms: 0,
            lost: None,
            body: vec![0x80],
        };
        let payload = cbor::encode(&newer);
        let held = Held { tombstone: false, seq_to: 1, first: 1, count: 3, sealed_ms: 0, payload };
        let (lane, number) = (Lane::Event, 1);
        let writes = [
            Write::Stream { number, id: newer.stream },
            Write::Batch { lane, number, seq: 1, held },
            Write::Position { lane, number, at: (2, 4, 0, 0) },
        ];
        outbox.apply(&writes).unwrap();
    }
    let mut uplink = open(&card, 2);
    submit(&mut uplink, "after");
    uplink.connected(SESSION, NOW);
    hear(&mut uplink, true, &[(1, 0, Verdict::Ok)]);
    assert_eq!(messages(&sent(&mut uplink)), ["after"]);
    // An older hub cannot tell: the batch waits. A hub of our own version settles it.
    let refused = |max_v| Verdict::Refused { seq: 1, reason: "newer".to_owned(), max_v };
    hear(&mut uplink, false, &[(1, 0, refused(0))]);
    assert_eq!(uplink.status().lost, 0);
    hear(&mut uplink, false, &[(1, 0, refused(VERSION))]);
    let declared = sent(&mut uplink);
    let told: Vec<_> = declared.iter().map(|b| (b.seq, b.first, b.count, b.lost)).collect();
    assert_eq!(told, [(1, 1, 3, Some(Lost::Refused))]);
    assert_eq!(uplink.status().lost, 3);
}

#[test]
fn a_batch_that_rotted_on_the_card_is_declared_and_the_lane_goes_on() {
    let card = SimFile::new();
    {
        let mut uplink = open(&card, 1);
        ["before", "rotten-needle", "after"].iter().for_each(|message| submit(&mut uplink, message));
    }
    rot(&card, b"rotten-needle");
    let mut uplink = open(&card, 2);
    uplink.connected(SESSION, NOW);
    hear(&mut uplink, true, &[(1, 0, Verdict::Ok)]);
    let batches = sent(&mut uplink);
    let told: Vec<_> = batches.iter().map(|b| (b.seq, b.first, b.count, b.lost)).collect();
    assert_eq!(told, [(1, 1, 1, None), (2, 2, 1, Some(Lost::EdgeCorrupt)), (3, 3, 1, None)]);
    let state = uplink.status().lanes[&Lane::Event].streams[0].0;
    assert_eq!((state.counted, state.tombstoned, state.next_record - state.floor_record), (2, 1, 3));
}

/// 600 letters that no compression makes fewer than 375 bytes of (5 bits each).
fn noise(seed: u64) -> String {
    let mut state = seed;
    let letter = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b"abcdefghijklmnopqrstuvwxyz012345"[(state >> 59) as usize])
    };
    (0..600).map(letter).collect()
}

/// An outbox of 8 kB with twelve events of 400 bytes that a hub has acked, which is more than the half of it.
fn acked_by_another_hub(card: &SimFile) -> Uplink {
    let mut uplink = open_with(card, 1, Config { quota_bytes: 8_000, ..Config::default() });
    for number in 1..=12 {
        submit(&mut uplink, &noise(number));
    }
    uplink.connected(SESSION, NOW);
    hear(&mut uplink, true, &[(1, 0, Verdict::Ok)]);
    assert_eq!(sent(&mut uplink).len(), 12);
    hear(&mut uplink, false, &[(1, 12, Verdict::Ok)]);
    assert!(uplink.status().outbox.bytes > 4_000, "{:?}", uplink.status().outbox);
    uplink.disconnected();
    uplink.connected(SESSION, NOW);
    uplink
}

fn born(uplink: &mut Uplink, now: Now) -> Option<StreamState> {
    let outgoing = uplink.poll(now).unwrap();
    let birth = outgoing.iter().find(|o| matches!(o.topic, Topic::Up(_, Up::Birth)))?;
    let birth: Birth = cbor::decode(Unpacker::default().unpack(&birth.payload).unwrap()).unwrap();
    Some(birth.lanes[&Lane::Event][0])
}

#[test]
fn what_a_birth_announced_is_held_until_it_is_answered() {
    let card = SimFile::new();
    let mut uplink = acked_by_another_hub(&card);
    let floor = born(&mut uplink, NOW).unwrap().floor_seq;
    submit(&mut uplink, &noise(13));
    assert_eq!(sent(&mut uplink).len(), 1, "what one may say before the answer");
    assert_eq!(uplink.status().lanes[&Lane::Event].streams[0].0.floor_seq, floor, "the hub may yet want it");
    // It was another hub, or this one was set back: it wants all there is.
    hear(&mut uplink, true, &[(1, floor - 1, Verdict::Ok)]);
    let again = sent(&mut uplink);
    assert_eq!(again.iter().map(|batch| batch.seq).collect::<Vec<_>>(), (floor..=13).collect::<Vec<_>>());
}

#[test]
fn what_a_full_outbox_gave_up_before_the_answer_is_told_by_another_birth() {
    let card = SimFile::new();
    let mut uplink = acked_by_another_hub(&card);
    let before = born(&mut uplink, NOW).unwrap();
    for number in 13..=24 {
        submit(&mut uplink, &noise(number));
    }
    sent(&mut uplink);
    let floor = uplink.status().lanes[&Lane::Event].streams[0].0.floor_seq;
    assert!(floor > before.floor_seq, "a full outbox keeps what nobody has");
    hear(&mut uplink, true, &[(1, before.floor_seq - 1, Verdict::Ok)]);
    assert_eq!(
        born(&mut uplink, NOW),
        None,
        "not in the same moment, lest a hub that cannot answer is flooded"
    );
    let later = Now { up: NOW.up + Duration::from_secs(1), ..NOW };
    assert_eq!(born(&mut uplink, later).unwrap().floor_seq, floor);
}

/// Flips a bit wherever the bytes lie on the card.
fn rot(card: &SimFile, needle: &[u8]) {
    let file = card.backend();
    let mut bytes = vec![0; card.len()];
    file.read(0, &mut bytes).unwrap();
    let places: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(needle)).collect();
    assert!(!places.is_empty());
    for at in places {
        file.write(at as u64, &[bytes[at] ^ 1]).unwrap();
    }
    file.sync_data().unwrap();
}
