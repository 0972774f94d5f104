//! Strategies that vary every field of every payload within what an agent or hub may write. Knows no check.

use std::collections::BTreeMap;

use ciborium::Value;
use fleet_schemas::{
    CommandId, DeviceId, Lane, MetricName, SessionId, StoreId, StreamId, VERSION,
    ack::{Ack, StreamAck, Verdict},
    batch::{Batch, Clock, Lost},
    cbor,
    command::{Output, Reason, Report, State},
    config::{Failed, Held, Reported, Version},
    event::{Event, Severity},
    session::{Birth, Death, Heartbeat, OutboxUse, Pending, StreamState, Versions},
    telemetry::Builder,
    update::{Digest, Kind, Running},
};
use proptest::{option, prelude::*};

use crate::given::{NOON, push};

fn clocks() -> impl Strategy<Value = Clock> {
    prop_oneof![Just(Clock::Synced), Just(Clock::Unsynced)]
}

fn reasons() -> impl Strategy<Value = Lost> {
    prop_oneof![
        Just(Lost::OutboxFull),
        Just(Lost::Refused),
        Just(Lost::EdgeCorrupt),
        Just(Lost::EdgeStateLost),
        Just(Lost::HubRollback),
        Just(Lost::Budget),
        Just(Lost::Moved),
        Just(Lost::Other),
    ]
}

fn numbers() -> impl Strategy<Value = u64> {
    prop_oneof![1..100_u64, 1..=u64::MAX / 2]
}

fn counts() -> impl Strategy<Value = u64> {
    prop_oneof![0..100_u64, 0..=u64::MAX / 4]
}

fn names() -> impl Strategy<Value = MetricName> {
    "[a-zäé°/_]{1,20}".prop_map(|name| MetricName::parse(&name).unwrap())
}

fn per_lane<T: std::fmt::Debug>(
    streams: impl Strategy<Value = T>,
) -> impl Strategy<Value = BTreeMap<Lane, Vec<T>>> {
    prop::collection::btree_map(
        prop::sample::select(&Lane::ALL[..]),
        prop::collection::vec(streams, 0..4),
        0..5,
    )
}

prop_compose! {
    fn states()(
        stream in any::<[u8; 16]>(),
        floor in (numbers(), numbers()),
        next in (numbers(), numbers()),
        counted in counts(),
        tombstoned in counts(),
    ) -> StreamState {
        StreamState {
            stream: StreamId(stream),
            floor_seq: floor.0,
            floor_record: floor.1,
            next_seq: next.0,
            next_record: next.1,
            counted,
            tombstoned,
        }
    }
}

fn texts() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(".{1,8}", ".{0,8}", 0..4)
}

prop_compose! {
    fn held()((epoch, n, hash, retry) in any::<(u64, u64, [u8; 32], u64)>()) -> Held {
        Held { version: Version { epoch, n }, hash, retry }
    }
}

prop_compose! {
    fn reported()(
        received in option::of(held()),
        applied in option::of(held()),
        failed in option::of((".{0,8}", ".{0,8}")),
    ) -> Reported {
        Reported { received, applied, failed: failed.map(|(code, message)| Failed { code, message }) }
    }
}

prop_compose! {
    fn running()(
        kind in prop::sample::select(Kind::ALL.to_vec()),
        (name, version) in ("[a-z]{1,8}", "[0-9.+-]{1,8}"),
        digest in any::<[u8; 32]>(),
        device in option::of("[a-z]{1,8}"),
    ) -> Running {
        Running {
            kind,
            name: MetricName::parse(&name).unwrap(),
            version: MetricName::parse(&version).unwrap(),
            digest: Digest(digest),
            device: device.map(|device| DeviceId::parse(&device).unwrap()),
        }
    }
}

prop_compose! {
    pub(crate) fn births()(
        (epoch, session, boot, instance) in any::<(u64, [u8; 8], [u8; 8], Option<[u8; 8]>)>(),
        (up_ms, time_ms, interval_ms) in any::<(u64, i64, u64)>(),
        clock in clocks(),
        kind in ".{0,8}",
        name in option::of(".{0,8}"),
        capabilities in prop::collection::vec(".{0,8}", 0..4),
        agent in ".{0,8}",
        firmware in option::of(".{0,8}"),
        (skills, running) in (texts(), prop::collection::vec(running(), 0..3)),
        machine in texts(),
        lanes in per_lane(states()),
        (partial, samples) in any::<(bool, u64)>(),
        commands in option::of(prop::collection::vec(any::<[u8; 16]>().prop_map(CommandId), 0..4)),
        config in option::of(reported()),
    ) -> Birth {
        Birth {
            v: VERSION, session: SessionId(session), epoch, boot, instance, up_ms, clock, time_ms, interval_ms, kind,
            name, capabilities, versions: Versions { agent, firmware, skills, running },
            machine, lanes, partial, pending: Pending { samples }, commands, config,
        }
    }
}

prop_compose! {
    pub(crate) fn deaths()(session in any::<[u8; 8]>(), until_ms in any::<Option<i64>>()) -> Death {
        Death { v: VERSION, session: SessionId(session), until_ms }
    }
}

prop_compose! {
    pub(crate) fn heartbeats()(
        (session, boot) in any::<([u8; 8], [u8; 8])>(),
        (up_ms, time_ms, interval_ms) in any::<(u64, i64, u64)>(),
        clock in clocks(),
        system in prop::collection::btree_map(".{1,8}", finite(), 0..4),
        lanes in per_lane(states()),
        (partial, samples, bytes, quota_bytes) in any::<(bool, u64, u64, u64)>(),
        config in option::of(reported()),
    ) -> Heartbeat {
        Heartbeat {
            v: VERSION, session: SessionId(session), boot, up_ms, clock, time_ms, interval_ms, system, lanes,
            partial, pending: Pending { samples }, outbox: OutboxUse { bytes, quota_bytes },
            config,
        }
    }
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Ok),
        (numbers(), ".{0,20}", any::<u16>()).prop_map(|(seq, reason, max_v)| Verdict::Refused {
            seq,
            reason,
            max_v
        }),
        numbers().prop_map(|seq| Verdict::Fork { seq }),
    ]
}

prop_compose! {
    fn marks()(stream in any::<[u8; 16]>(), seq in prop_oneof![Just(0), numbers()], verdict in verdicts())
        -> StreamAck
    {
        StreamAck { stream: StreamId(stream), seq, verdict }
    }
}

prop_compose! {
    pub(crate) fn acks()(
        (store, session) in any::<([u8; 16], [u8; 8])>(),
        (birth, hub_ms, credit) in any::<(bool, i64, u32)>(),
        lanes in per_lane(marks()),
    ) -> Ack {
        Ack { v: VERSION, store_id: StoreId(store), session: SessionId(session), birth, hub_ms, credit, lanes }
    }
}

prop_compose! {
    /// An envelope around nothing, to be given a body or made a tombstone.
    fn envelopes()(
        (stream, boot) in any::<([u8; 16], [u8; 8])>(),
        (up_ms, sealed_ms) in any::<(u64, i64)>(),
        (seq, first) in (numbers(), numbers()),
        clock in clocks(),
    ) -> Batch {
        Batch {
            v: VERSION, stream: StreamId(stream), seq, seq_to: None, first, count: 0, boot, up_ms, clock,
            sealed_ms, lost: None, body: vec![],
        }
    }
}

prop_compose! {
    pub(crate) fn tombstones()(
        envelope in envelopes(),
        more in option::of(0..1_000_u64),
        count in counts(),
        lost in reasons(),
    ) -> Batch {
        let seq_to = more.map(|more| (envelope.seq + more).min(u64::MAX / 2));
        Batch { seq_to, count, lost: Some(lost), ..envelope }
    }
}

pub(crate) fn finite() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>().prop_filter("finite", |value| value.is_finite()),
        (-30_000_i32..30_000).prop_map(|number| f64::from(number) / 100.0),
        any::<i64>().prop_map(|number| number as f64),
        (0..3_u8).prop_map(f64::from),
    ]
}

prop_compose! {
    pub(crate) fn telemetries()(
        envelope in envelopes(),
        given in prop::collection::vec(
            (0..100_000_i64, prop::sample::select(vec!["", "esp-7"]), 0..5_u8, finite()),
            1..120,
        ),
        unit in option::of(names()),
    ) -> Batch {
        let mut builder = Builder::default();
        let unit = unit.as_ref().map(MetricName::as_str);
        for (offset, device, metric, value) in given {
            push(&mut builder, NOON + offset, device, &format!("m{metric}"), unit, value);
        }
        let samples = builder.build();
        Batch { count: samples.count(), body: samples.encode(), ..envelope }
    }
}

fn data() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Value::from),
        finite().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::collection::vec(any::<u8>(), 0..8).prop_map(Value::from),
        Just(Value::Null),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(".{1,4}", inner, 0..4).prop_map(|map| Value::Map(
                map.into_iter().map(|(key, value)| (key.into(), value)).collect()
            )),
        ]
    })
}

prop_compose! {
    fn one_event()(
        time_ms in any::<i64>(),
        kind in names(),
        severity in prop::sample::select(
            vec![Severity::Info, Severity::Warning, Severity::Error, Severity::Critical],
        ),
        message in ".{0,40}",
        data in option::of(data()),
        device in option::of("[a-z0-9-]{0,20}"),
        id in option::of("[a-zA-Z0-9-]{1,36}"),
    ) -> Event {
        let device = device.map(|device| DeviceId::parse(&device).unwrap());
        Event { time_ms, kind, severity, message, data, device, id }
    }
}

prop_compose! {
    pub(crate) fn event_batches()(
        envelope in envelopes(),
        events in prop::collection::vec(one_event(), 1..6),
    ) -> Batch {
        Batch { count: events.len() as u64, body: cbor::encode(&events), ..envelope }
    }
}

prop_compose! {
    fn one_report()(
        id in any::<[u8; 16]>(),
        state in prop::sample::select(&State::ALL[2..]),
        time_ms in any::<i64>(),
        reason in option::of((".{0,8}", ".{0,8}", any::<bool>())),
        exit_code in any::<Option<i32>>(),
        output in option::of((any::<u64>(), prop::collection::vec(any::<u8>(), 0..8), any::<bool>())),
        result in option::of(data()),
        too_late in any::<bool>(),
    ) -> Report {
        let reason = reason
            .map(|(code, message, may_have_executed)| Reason { code, message, may_have_executed });
        let output = output.map(|(from, bytes, cut)| Output { from, bytes, cut });
        Report { id: CommandId(id), state, time_ms, reason, exit_code, output, result, too_late }
    }
}

prop_compose! {
    pub(crate) fn command_batches()(
        envelope in envelopes(),
        reports in prop::collection::vec(one_report(), 1..6),
    ) -> Batch {
        Batch { count: reports.len() as u64, body: cbor::encode(&reports), ..envelope }
    }
}
