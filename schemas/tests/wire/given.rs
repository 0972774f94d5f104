//! One full example of every payload. Knows no check.

use std::collections::BTreeMap;

use ciborium::Value;
use fleet_schemas::{
    CommandId, DeviceId, Lane, MetricName, SessionId, StoreId, StreamId, VERSION,
    ack::{Ack, StreamAck, Verdict},
    batch::{Batch, Clock, Lost},
    cbor,
    command::{Offer, Orders, Output, Reason, Report, State},
    config::{self, Desired, Failed, Held, Reported, Version},
    device,
    event::{Event, Severity},
    session::{Birth, Death, Heartbeat, OutboxUse, Pending, StreamState, Versions},
    telemetry::{Builder, Sample, Samples},
    update::{self, Digest, Kind, Order, Running, Window},
};

/// Monday, 23 November 2026, 12:00 UTC.
pub(crate) const NOON: i64 = 1_795_435_200_000;

pub(crate) fn birth() -> Birth {
    Birth {
        v: VERSION,
        session: SessionId([1, 2, 3, 4, 5, 6, 7, 8]),
        epoch: 42,
        boot: [0xb0; 8],
        instance: Some([0x1d; 8]),
        up_ms: 86_400_000,
        clock: Clock::Synced,
        time_ms: NOON,
        interval_ms: 30_000,
        kind: "picclaw".into(),
        name: Some("Rack A, position 1".into()),
        capabilities: vec!["sensor".into(), "exec".into()],
        versions: Versions {
            agent: "0.1.0".into(),
            firmware: Some("2026.11".into()),
            skills: BTreeMap::from([("thermostat".into(), "1.4.2".into())]),
            running: vec![
                running(Kind::Skill, "thermostat", "1.4.2", None),
                running(Kind::DeviceFirmware, "esp32", "0.2.0", Some("esp-7")),
            ],
        },
        machine: BTreeMap::from([
            ("arch".into(), "aarch64".into()),
            ("hostname".into(), "dc-rack-a1".into()),
        ]),
        lanes: lanes(),
        partial: false,
        pending: Pending { samples: 12 },
        commands: Some(vec![CommandId([0xc1; 16]), CommandId([0xc2; 16])]),
        config: Some(Reported { received: Some(held(7)), applied: Some(held(7)), failed: None }),
    }
}

pub(crate) fn death() -> Death {
    Death { v: VERSION, session: SessionId([1, 2, 3, 4, 5, 6, 7, 8]), until_ms: Some(NOON + 3_600_000) }
}

pub(crate) fn heartbeat() -> Heartbeat {
    Heartbeat {
        v: VERSION,
        session: SessionId([1, 2, 3, 4, 5, 6, 7, 8]),
        boot: [0xb0; 8],
        up_ms: 86_430_000,
        clock: Clock::Unsynced,
        time_ms: NOON + 30_000,
        interval_ms: 30_000,
        system: BTreeMap::from([
            ("cpu_percent".into(), 12.5),
            ("load1".into(), 0.07),
            ("mem_used_bytes".into(), 187_432_960.0),
        ]),
        lanes: lanes(),
        partial: true,
        pending: Pending { samples: 90 },
        outbox: OutboxUse { bytes: 1_048_576, quota_bytes: 268_435_456 },
        config: Some(Reported {
            received: Some(held(8)),
            applied: Some(held(7)),
            failed: Some(Failed {
                code: "lost_hub".into(),
                message: "the hub was not reached for 120 s".into(),
            }),
        }),
    }
}

fn held(n: u64) -> Held {
    Held { version: Version { epoch: 1, n }, hash: config::hash(&n.to_le_bytes()), retry: 0 }
}

pub(crate) fn orders() -> Orders {
    let label = |text| MetricName::parse(text).unwrap();
    let params = Value::Map(vec![("name".into(), "df".into())]);
    let first = Offer {
        id: CommandId([0xc1; 16]),
        no: 41,
        queue: label("main"),
        priority: -3,
        kind: label("exec"),
        params,
        left_ms: 600_000,
        delay_ms: 5_000,
        timeout_ms: 30_000,
        idempotent: true,
        supersedes: Some(label("df")),
        signature: Some(vec![1, 2, 3]),
    };
    let second = Offer {
        id: CommandId([0xc2; 16]),
        no: 42,
        priority: 0,
        kind: label("ping"),
        params: Value::Null,
        delay_ms: 0,
        idempotent: false,
        supersedes: None,
        signature: None,
        ..first.clone()
    };
    Orders {
        v: VERSION,
        store_id: StoreId([0xcc; 16]),
        session: SessionId([1, 2, 3, 4, 5, 6, 7, 8]),
        hub_ms: NOON + 18,
        offers: vec![first, second],
        cancels: vec![CommandId([0xc0; 16])],
    }
}

pub(crate) fn reports() -> Vec<Report> {
    let accepted = Report {
        id: CommandId([0xc1; 16]),
        state: State::Accepted,
        time_ms: NOON + 30,
        reason: None,
        exit_code: None,
        output: None,
        result: None,
        too_late: false,
    };
    let output = Output { from: 0, bytes: b"Filesystem\n".to_vec(), cut: true };
    let running = Report { state: State::Running, output: Some(output), ..accepted.clone() };
    let reason = Reason {
        code: "agent_state_lost".into(),
        message: "the node lost its storage while it ran".into(),
        may_have_executed: true,
    };
    let failed = Report {
        state: State::Failed,
        reason: Some(reason),
        exit_code: Some(-9),
        result: Some(Value::Array(vec![1.into()])),
        too_late: true,
        ..accepted.clone()
    };
    vec![accepted, running, failed]
}

pub(crate) fn command_batch() -> Batch {
    batch(3, cbor::encode(&reports()))
}

pub(crate) fn desired() -> Desired {
    let doc = Value::Map(vec![("upload_s".into(), 30.into()), ("labels".into(), Value::Map(vec![]))]);
    Desired {
        v: VERSION,
        store_id: StoreId([0xcc; 16]),
        session: SessionId([1, 2, 3, 4, 5, 6, 7, 8]),
        hub_ms: NOON + 19,
        version: Version { epoch: 1, n: 8 },
        doc: cbor::encode(&doc),
        retry: 2,
    }
}

fn lanes() -> BTreeMap<Lane, Vec<StreamState>> {
    let state = StreamState {
        stream: StreamId([0xaa; 16]),
        floor_seq: 3,
        floor_record: 2_001,
        next_seq: 9,
        next_record: 8_001,
        counted: 5_900,
        tombstoned: 100,
    };
    let older = StreamState { stream: StreamId([0xbb; 16]), ..state };
    BTreeMap::from([(Lane::Event, vec![]), (Lane::Telemetry, vec![older, state])])
}

pub(crate) fn ack() -> Ack {
    let mark = |stream: u8, seq, verdict| StreamAck { stream: StreamId([stream; 16]), seq, verdict };
    Ack {
        v: VERSION,
        store_id: StoreId([0xcc; 16]),
        session: SessionId([1, 2, 3, 4, 5, 6, 7, 8]),
        birth: true,
        hub_ms: NOON + 17,
        credit: 16,
        lanes: BTreeMap::from([
            (Lane::Event, vec![mark(0xaa, 0, Verdict::Ok)]),
            (
                Lane::Telemetry,
                vec![
                    mark(0xaa, 8, Verdict::Ok),
                    mark(
                        0xbb,
                        2,
                        Verdict::Refused { seq: 3, reason: "version 9 is newer".into(), max_v: VERSION },
                    ),
                ],
            ),
            (Lane::Backfill, vec![mark(0xdd, 11, Verdict::Fork { seq: 12 })]),
        ]),
    }
}

/// The envelope around `body`.
pub(crate) fn batch(count: u64, body: Vec<u8>) -> Batch {
    Batch {
        v: VERSION,
        stream: StreamId([0xaa; 16]),
        seq: 8,
        seq_to: None,
        first: 7_001,
        count,
        boot: [0xb0; 8],
        up_ms: 86_420_000,
        clock: Clock::Synced,
        sealed_ms: NOON + 20_000,
        lost: None,
        body,
    }
}

pub(crate) fn tombstone() -> Batch {
    Batch { seq_to: Some(11), count: 4_000, lost: Some(Lost::OutboxFull), ..batch(0, vec![]) }
}

pub(crate) fn device_report() -> device::Report {
    let name = |text: &str| MetricName::parse(text).unwrap();
    device::Report {
        device: DeviceId::parse("esp-7").unwrap(),
        state: device::State::Sleeping,
        kind: Some(name("microclaw")),
        name: Some("The shed".into()),
        firmware: Some(name("0.2.0")),
        capabilities: vec![name("temperature"), name("humidity")],
        heartbeat_ms: Some(60_000),
        sleep_ms: Some(300_000),
        until_ms: Some(NOON + 300_000),
        last_seen_ms: Some(NOON),
        unsequenced: true,
    }
}

fn running(kind: Kind, name: &str, version: &str, device: Option<&str>) -> Running {
    Running {
        kind,
        name: MetricName::parse(name).unwrap(),
        version: MetricName::parse(version).unwrap(),
        digest: Digest([0xd1; 32]),
        device: device.map(|device| DeviceId::parse(device).unwrap()),
    }
}

pub(crate) fn update_order() -> Order {
    Order {
        target: "device-firmware/esp32/0.3.0/any".parse().unwrap(),
        digest: Digest([0xd2; 32]),
        rollout: Some(MetricName::parse("esp32-0.3.0-1").unwrap()),
        device: Some(DeviceId::parse("esp-7").unwrap()),
        back: true,
        probation_ms: Some(600_000),
        window: Some(Window {
            hours: Some("22:00-04:00".into()),
            zone: Some("Europe/Berlin".into()),
            on_power: true,
            unmetered: true,
        }),
        offline_ok: true,
    }
}

pub(crate) fn update_report() -> update::Report {
    let order = update_order();
    update::Report {
        command: CommandId([0xc1; 16]),
        target: order.target,
        digest: order.digest,
        rollout: order.rollout,
        device: order.device,
        state: update::State::RolledBack,
        reason: Some(Reason {
            code: update::INCONCLUSIVE.into(),
            message: "neither release reached the hub".into(),
            may_have_executed: false,
        }),
        bytes: Some(1_048_576),
        total: Some(1_048_576),
        from: Some(Digest([0xd1; 32])),
    }
}

pub(crate) fn events() -> Vec<Event> {
    let data = Value::Map(vec![
        ("limit".into(), 27.0.into()),
        ("values".into(), Value::Array(vec![26.5.into(), 27.25.into(), Value::Null])),
        ("raw".into(), Value::Bytes(vec![0, 255])),
    ]);
    vec![
        Event {
            time_ms: NOON + 5,
            kind: MetricName::parse("too_hot").unwrap(),
            severity: Severity::Critical,
            message: "27.25 °C is above 27 °C".into(),
            data: Some(data),
            device: Some(DeviceId::parse("esp-7").unwrap()),
            id: Some("e-1".into()),
        },
        Event {
            time_ms: NOON + 6,
            kind: MetricName::parse("door_opened").unwrap(),
            severity: Severity::Info,
            message: String::new(),
            data: None,
            device: None,
            id: None,
        },
    ]
}

/// Samples that make the encoder write every kind of column it writes: all widths, scaled, as differences,
/// floats, with gaps.
pub(crate) fn samples() -> Samples {
    let mut builder = Builder::default();
    for row in 0..24_i32 {
        let step = f64::from(row);
        let alternate = |low: f64, high: f64| if row % 2 == 0 { low } else { high };
        let columns = [
            ("", "uint8", None, alternate(0.0, 255.0)),
            ("", "sint8", None, alternate(-128.0, 127.0)),
            ("", "uint16", None, alternate(0.0, 65_535.0)),
            ("", "sint16", None, alternate(-32_768.0, 32_767.0)),
            ("", "uint32", None, alternate(0.0, 4_294_967_295.0)),
            ("", "sint32", None, alternate(-2_147_483_648.0, 2_147_483_647.0)),
            ("", "sint64", Some("By"), alternate(-9_007_199_254_740_992.0, 9_007_199_254_740_992.0)),
            ("", "counter", Some("By"), 8_000_000_000.0 + 100.0 * step),
            ("esp-7", "temperature", Some("Cel"), (2_150.0 + 3.0 * step) / 100.0),
            ("esp-7", "float", Some("V"), (step + 0.5).sqrt()),
            ("esp-7", "minus_zero", None, alternate(-0.0, 0.0)),
        ];
        for (device, metric, unit, value) in columns {
            // Every third row of the board is missing, with a gap that ends inside a byte.
            if device == "esp-7" && row % 3 == 1 {
                continue;
            }
            push(&mut builder, NOON + i64::from(row) * 1_000, device, metric, unit, value);
        }
    }
    builder.build()
}

pub(crate) fn push(
    builder: &mut Builder,
    time_ms: i64,
    device: &str,
    metric: &str,
    unit: Option<&str>,
    value: f64,
) {
    let sample = Sample {
        time_ms,
        device: DeviceId::parse(device).unwrap(),
        metric: MetricName::parse(metric).unwrap(),
        unit: unit.map(|unit| MetricName::parse(unit).unwrap()),
        value,
    };
    assert_eq!(builder.push(sample), None);
}

pub(crate) fn telemetry() -> Batch {
    let samples = samples();
    batch(samples.count(), samples.encode())
}

pub(crate) fn event_batch() -> Batch {
    batch(2, cbor::encode(&events()))
}
