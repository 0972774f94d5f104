//! A node that knows its secret and sends what no agent would, on every topic it may: counted by reason, kept raw where
//! the envelope can be read, never a stopped hub, never a wedged lane, and no other node notices.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use fleet_schemas::{
    CommandId, DeviceId, Lane, MetricName, NodeId, SessionId, StreamId, Topic, VERSION,
    ack::{Ack, Verdict},
    batch::{Batch, Clock},
    cbor,
    command::{Report, State},
    event::{Event, Severity},
    session::{Birth, Heartbeat, OutboxUse, Pending, StreamState, Versions},
    telemetry::{Builder, Sample},
    topic::{self, Up},
};
use rumqttc::{AsyncClient, ConnectReturnCode, Event as Mqtt, MqttOptions, Packet, QoS};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time};

use crate::{
    compare::{self, Stored},
    generator::Generator,
    given::{Agent, Hub, PATIENCE, until},
};

const LIAR: &str = "liar";
const STREAM: StreamId = StreamId([9; 16]);
const SESSION: SessionId = SessionId([1; 8]);
/// Records of the good batches before and after the bad ones, and of the bad ones.
const GOOD: [u64; 2] = [2, 4];
const BAD: [u64; 4] = [5, 3, 2, 1];
/// Number of the last batch.
const LAST: u64 = (GOOD.len() + BAD.len()) as u64;

fn options(hub: &Hub, id: &str, secret: &str) -> MqttOptions {
    let mut options = MqttOptions::new(id, hub.mqtt.ip().to_string(), hub.mqtt.port());
    options.set_credentials(id, secret);
    options.set_max_packet_size(4 << 20, 4 << 20);
    options
}

/// A session, and what the hub said on it.
struct Liar {
    mqtt: AsyncClient,
    acks: Arc<Mutex<Vec<Ack>>>,
}

impl Liar {
    async fn connect(hub: &Hub) -> Self {
        let (mqtt, mut events) = AsyncClient::new(options(hub, LIAR, "its secret"), 64);
        let acks = Arc::new(Mutex::new(Vec::new()));
        let heard = acks.clone();
        tokio::spawn(async move {
            while let Ok(event) = events.poll().await {
                if let Mqtt::Incoming(Packet::Publish(publish)) = event {
                    heard.lock().unwrap().push(cbor::decode(&publish.payload).unwrap());
                }
            }
        });
        let liar = Self { mqtt, acks };
        let id = NodeId::parse(LIAR).unwrap();
        liar.mqtt.subscribe(topic::down_filter(&id), QoS::AtLeastOnce).await.unwrap();
        liar
    }

    async fn say(&self, up: Up, payload: Vec<u8>) {
        let topic = Topic::Up(NodeId::parse(LIAR).unwrap(), up).to_string();
        self.mqtt.publish(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
    }

    /// The latest mark of each lane.
    fn marks(&self) -> BTreeMap<Lane, u64> {
        let acks = self.acks.lock().unwrap();
        acks.iter().flat_map(|ack| &ack.lanes).map(|(lane, streams)| (*lane, streams[0].seq)).collect()
    }

    /// On how many lanes a batch was refused for its version.
    fn refused(&self) -> usize {
        let acks = self.acks.lock().unwrap();
        let verdicts = acks.iter().flat_map(|ack| ack.lanes.values().flatten()).map(|stream| &stream.verdict);
        verdicts.filter(|verdict| matches!(verdict, Verdict::Refused { seq: 2, max_v: VERSION, .. })).count()
    }
}

/// Payloads that nobody can read, and the reason under which each is counted.
fn unreadable() -> Vec<(Vec<u8>, &'static str)> {
    let pack = |plain: &[u8]| zstd::bulk::compress(plain, 3).unwrap();
    let deep = [vec![0x81; 40], vec![0]].concat();
    let wide = [vec![0x9a, 0, 8, 0, 0], vec![0; 8 << 16]].concat();
    let mut broken = pack(&[1; 1_000]);
    broken.truncate(broken.len() - 4);
    vec![
        (vec![0xff], "malformed"),
        (deep, "too_deep"),
        (pack(&vec![0; 64 << 20]), "too_large"),
        (broken, "bad_zstd"),
        (pack(&wide), "too_many_items"),
        (cbor::encode(&BTreeMap::from([("v", 1)])), "wrong_shape"),
    ]
}

fn batch(seq: u64, first: u64, count: u64, body: Vec<u8>) -> Batch {
    Batch {
        v: VERSION,
        stream: STREAM,
        seq,
        seq_to: None,
        first,
        count,
        boot: [1; 8],
        up_ms: 2_000,
        clock: Clock::Synced,
        sealed_ms: 1_790_000_000_000,
        lost: None,
        body,
    }
}

/// A body as it should be.
fn good(lane: Lane, first: u64, count: u64) -> Vec<u8> {
    let kind = MetricName::parse("n").unwrap();
    if lane == Lane::Event {
        let event = |n: u64| Event {
            time_ms: 1_790_000_000_000,
            kind: kind.clone(),
            severity: Severity::Info,
            message: n.to_string(),
            data: None,
            device: None,
            id: None,
        };
        return cbor::encode(&(first..first + count).map(event).collect::<Vec<_>>());
    }
    if lane == Lane::Command {
        // On commands that nobody gave: kept all the same.
        let report = |n: u64| Report {
            id: CommandId(u128::from(n).to_be_bytes()),
            state: State::Succeeded,
            time_ms: 1_790_000_000_000,
            reason: None,
            exit_code: Some(0),
            output: None,
            result: None,
            too_late: false,
        };
        return cbor::encode(&(first..first + count).map(report).collect::<Vec<_>>());
    }
    let mut builder = Builder::default();
    for n in first..first + count {
        let device = DeviceId::parse(lane.as_str()).unwrap();
        let time_ms = 1_790_000_000_000 + n as i64;
        builder.push(Sample { time_ms, device, metric: kind.clone(), unit: None, value: n as f64 });
    }
    builder.build().encode()
}

/// What the liar says on one lane, in order.
fn lane(lane: Lane) -> Vec<Vec<u8>> {
    let mut said = vec![cbor::encode(&batch(1, 1, GOOD[0], good(lane, 1, GOOD[0])))];
    said.extend(unreadable().into_iter().map(|(payload, _)| payload));
    said.push(cbor::encode(&Batch { v: 9, ..batch(2, 3, 1, vec![]) }));
    let bodies = [
        // As many records as the envelope does not say; not what the lane carries; not CBOR; too deep.
        good(lane, 1, 2),
        vec![0x63, b'b', b'a', b'd'],
        vec![0xff],
        [vec![0x81; 40], vec![0]].concat(),
    ];
    let mut first = 1 + GOOD[0];
    for ((body, count), seq) in bodies.into_iter().zip(BAD).zip(2..) {
        said.push(cbor::encode(&batch(seq, first, count, body)));
        first += count;
    }
    said.push(cbor::encode(&batch(LAST, first, GOOD[1], good(lane, first, GOOD[1]))));
    said
}

fn birth() -> Vec<u8> {
    let lanes = Lane::ALL.map(|lane| (lane, vec![StreamState { next_seq: 1, next_record: 1, ..state() }]));
    cbor::encode(&Birth {
        v: VERSION,
        session: SESSION,
        epoch: 1,
        boot: [1; 8],
        instance: None,
        up_ms: 1_000,
        clock: Clock::Synced,
        time_ms: 1_790_000_000_000,
        interval_ms: 60_000,
        kind: "picclaw".to_owned(),
        name: None,
        capabilities: Vec::new(),
        versions: Versions::default(),
        machine: BTreeMap::new(),
        lanes: lanes.into(),
        partial: false,
        pending: Pending::default(),
        commands: None,
        config: None,
    })
}

/// A stream of which everything was delivered and nothing is kept.
fn state() -> StreamState {
    let next_record = 1 + GOOD.iter().chain(&BAD).sum::<u64>();
    StreamState {
        stream: STREAM,
        floor_seq: 1,
        floor_record: 1,
        next_seq: LAST + 1,
        next_record,
        counted: 0,
        tombstoned: 0,
    }
}

fn heartbeat() -> Vec<u8> {
    let all = state();
    let drained = StreamState { floor_seq: all.next_seq, floor_record: all.next_record, ..all };
    cbor::encode(&Heartbeat {
        v: VERSION,
        session: SESSION,
        boot: [1; 8],
        up_ms: 3_000,
        clock: Clock::Synced,
        time_ms: 1_790_000_000_000,
        interval_ms: 60_000,
        system: BTreeMap::new(),
        lanes: Lane::ALL.map(|lane| (lane, vec![drained])).into(),
        partial: false,
        pending: Pending::default(),
        config: None,
        outbox: OutboxUse::default(),
    })
}

/// Waits until a counter has reached what it must be, and does not pass it.
async fn counted(hub: &Hub, metric: &str, expected: f64) {
    let found = until(metric, async || hub.metric(metric).await, |found| *found >= expected).await;
    assert_eq!(found, expected, "{metric}");
}

/// Bytes that are no MQTT at all end the connection, each under its reason.
async fn no_mqtt(hub: &Hub) {
    for bytes in
        [&[0xf0, 0x00][..], &[0x00; 64], &[0x30, 0x03, 0, 1, b'a'], &[0x10, 0xff, 0xff, 0xff, 0xff, 1]]
    {
        let mut socket = TcpStream::connect(hub.mqtt).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        let ended = async {
            while socket.readable().await.is_ok() && socket.try_read(&mut [0; 64]).is_ok_and(|n| n > 0) {}
        };
        time::timeout(PATIENCE, ended).await.expect("the gate ends it");
    }
}

/// A packet beyond the limit ends its session; a wrong secret opens none.
async fn too_much_and_too_little(hub: &Hub) {
    let before = hub.metric("fleet_gate_refusals_total{reason=\"too_large\"}").await;
    let (mqtt, mut events) = AsyncClient::new(options(hub, "huge", "another secret"), 4);
    mqtt.publish("fleet/v1/huge/up/telemetry", QoS::AtLeastOnce, false, vec![0; 300 << 10]).await.unwrap();
    let ended = async { while events.poll().await.is_ok() {} };
    time::timeout(PATIENCE, ended).await.expect("the session is ended");
    counted(hub, "fleet_gate_refusals_total{reason=\"too_large\"}", before + 1.0).await;
    let (_mqtt, mut events) = AsyncClient::new(options(hub, LIAR, "not its secret"), 4);
    match time::timeout(PATIENCE, events.poll()).await.unwrap() {
        Err(rumqttc::ConnectionError::ConnectionRefused(ConnectReturnCode::BadUserNamePassword)) => {}
        other => panic!("the first secret binds: {other:?}"),
    }
    counted(hub, "fleet_gate_refusals_total{reason=\"bad_credentials\"}", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_node_sends_is_counted_and_no_lane_is_wedged() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(&folder.path().join("hub")).await;
    let agent = Agent::new(folder.path(), "honest", hub.mqtt, &[]).started().await;
    let mut generator = Generator::new(1, agent.door.clone());
    assert!(generator.samples(100).await);
    agent.drained().await;
    let session = agent.get("/api/v1/status").await["session"].clone();

    let liar = Liar::connect(&hub).await;
    liar.say(Up::Birth, birth()).await;
    until("the birth is answered", async || liar.marks().len(), |lanes| *lanes == Lane::ALL.len()).await;
    for up in [Up::Birth, Up::Heartbeat, Up::Death] {
        for (payload, _) in unreadable() {
            liar.say(up, payload).await;
        }
    }
    for of in Lane::ALL {
        for payload in lane(of) {
            liar.say(Up::Lane(of), payload).await;
        }
        assert!(generator.samples(10).await && generator.events(1).await);
    }
    no_mqtt(&hub).await;
    too_much_and_too_little(&hub).await;

    let all = Lane::ALL.map(|lane| (lane, LAST)).into();
    until("every lane went on to its last batch", async || liar.marks(), |marks| *marks == all).await;
    until(
        "every lane was told of the version",
        async || liar.refused(),
        |refused| *refused >= Lane::ALL.len(),
    )
    .await;
    liar.say(Up::Heartbeat, heartbeat()).await;
    for up in ["birth", "heartbeat", "death", "event", "command", "telemetry", "backfill"] {
        for (_, reason) in unreadable() {
            // Bodies count under their lane too: two of a wrong shape, one malformed, one too deep.
            let bodies = match (up, reason) {
                ("event" | "command" | "telemetry" | "backfill", "wrong_shape") => 2.0,
                ("event" | "command" | "telemetry" | "backfill", "malformed" | "too_deep") => 1.0,
                _ => 0.0,
            };
            let metric = format!("fleet_ingest_refused_total{{message=\"{up}\",reason=\"{reason}\"}}");
            counted(&hub, &metric, 1.0 + bodies).await;
        }
    }
    for lane in Lane::ALL {
        let metric = format!("fleet_ingest_refused_total{{message=\"{lane}\",reason=\"unknown_version\"}}");
        counted(&hub, &metric, 1.0).await;
    }
    agent.drained().await;
    let ledger = compare::settled(&hub).await;
    let (good, bad) = (GOOD.iter().sum::<u64>(), BAD.iter().sum::<u64>());
    for lane in Lane::ALL {
        let term = |term| compare::term(&ledger, LIAR, &[lane.as_str()], term);
        assert_eq!((term("stored"), term("quarantined")), (good, bad), "{lane}: {ledger:#}");
        assert_eq!((term("lost"), term("duplicates")), (0, 0), "{lane}");
    }
    let telemetry = hub.get("/api/v1/nodes/liar/telemetry?from_ms=0&to_ms=4000000000000").await;
    let devices: Vec<&Value> = telemetry["series"].as_array().unwrap().iter().map(|s| &s["device"]).collect();
    assert_eq!(devices, [&json!("backfill"), &json!("telemetry")]);

    let stored = Stored::of(&hub, "honest", generator.truth.last).await;
    stored.check_all("honest", &generator.truth);
    compare::check_ledger(&ledger, "honest", &stored);
    assert_eq!(agent.get("/api/v1/status").await["session"], session, "the other node noticed nothing");
    assert_eq!(hub.metric("fleet_router_rebuilds_total").await, 0.0);
    assert!(hub.metric("fleet_process_resident_memory_bytes").await < 512e6, "no bomb went off");
    time::timeout(Duration::from_secs(5), liar.mqtt.disconnect()).await.unwrap().unwrap();
}
