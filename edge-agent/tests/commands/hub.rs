//! A hub reduced to its broker, the rule of the ledger and that of orders: what is not heard accepted is offered.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ciborium::Value;
use fleet_broker::{Broker, Credentials, Directory, Identity, Link, Publisher, Refusal, Verdict};
use fleet_edge_agent::clock::Clock;
use fleet_schemas::{
    CommandId, Lane, MetricName, NodeId, SessionId, StoreId, StreamId, Topic, VERSION,
    ack::{self, Ack, StreamAck},
    batch::{Batch, Envelope},
    cbor::{self, Unpacker},
    command::{self, Offer, Orders, Report, State},
    event::{self, Event},
    session::Birth,
    topic::{Down, Up},
};
use serde_json::Value as Json;

use crate::{clock, until};

/// Knows every node by the password `secret-{node}`.
struct Fleet;

impl Directory for Fleet {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict {
        let known = |node: &NodeId| credentials.password == Some(format!("secret-{node}").as_bytes());
        let node = credentials.user.and_then(|user| NodeId::parse(user).ok()).filter(known);
        node.map(Identity::Node).ok_or(Refusal::BadCredentials).into()
    }
}

/// What the hub knows of its one node.
#[derive(Default)]
struct Known {
    node: Option<NodeId>,
    session: Option<SessionId>,
    births: Vec<Birth>,
    offers: Vec<Offer>,
    cancels: BTreeSet<CommandId>,
    reports: Vec<Report>,
    events: Vec<Event>,
    marks: BTreeMap<(Lane, StreamId), u64>,
}

pub(crate) struct Hub {
    pub(crate) broker: Option<Broker>,
    state: Arc<Mutex<Known>>,
    consumer: Option<thread::JoinHandle<()>>,
    quit: Arc<AtomicBool>,
    publisher: Publisher,
    pub(crate) address: SocketAddr,
}

/// A command that does harm when done twice, with a minute to begin and half a minute to run.
pub(crate) fn offer(number: u64, kind: &str, params: &Json) -> Offer {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    Offer {
        id: CommandId(bytes),
        no: number,
        queue: MetricName::parse("main").unwrap(),
        priority: 0,
        kind: MetricName::parse(kind).unwrap(),
        params: if params.is_null() { Value::Null } else { Value::serialized(params).unwrap() },
        left_ms: 60_000,
        delay_ms: 0,
        timeout_ms: 30_000,
        idempotent: false,
        supersedes: None,
        signature: None,
    }
}

impl Hub {
    pub(crate) fn start(node: &str) -> Self {
        let mqtt = "127.0.0.1:0".parse().unwrap();
        let hub = Self::serve(fleet_broker::Config { mqtt, ..Default::default() }, Arc::new(Fleet), true);
        hub.with(|state| state.node = Some(NodeId::parse(node).unwrap()));
        hub
    }

    /// One that hears its node's name from the node itself.
    pub(crate) fn serve(config: fleet_broker::Config, directory: Arc<dyn Directory>, acks: bool) -> Self {
        assert!(acks, "a hub that takes reports acks them");
        let config = fleet_broker::Config { gate_threads: 1, ..config };
        let (broker, link) = Broker::start(config, directory).unwrap();
        let state = Arc::new(Mutex::new(Known::default()));
        let quit = Arc::new(AtomicBool::new(false));
        let (address, publisher) = (broker.mqtt_addr(), link.publisher());
        let (told, quitting) = (state.clone(), quit.clone());
        let consumer = thread::spawn(move || consume(link, &told, &quitting));
        Self { broker: Some(broker), state, consumer: Some(consumer), quit, publisher, address }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    /// Wants this done.
    pub(crate) fn want(&self, offer: Offer) -> CommandId {
        let id = offer.id;
        self.with(|state| {
            state.offers.push(offer);
            say(state, &self.publisher);
        });
        id
    }

    /// Wants this done no more.
    pub(crate) fn cancel(&self, id: CommandId) {
        self.with(|state| {
            state.cancels.insert(id);
            say(state, &self.publisher);
        });
    }

    /// Says its orders again, whatever was heard.
    pub(crate) fn insist(&self, offer: Offer) {
        self.with(|state| publish(state, vec![offer], &self.publisher));
    }

    pub(crate) fn reports(&self, id: CommandId) -> Vec<Report> {
        self.with(|state| state.reports.iter().filter(|report| report.id == id).cloned().collect())
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.with(|state| state.events.clone())
    }

    pub(crate) fn births(&self) -> Vec<Birth> {
        self.with(|state| state.births.clone())
    }

    /// Waits until it is in this state or over.
    pub(crate) async fn reaches(&self, id: CommandId, wanted: State) -> Vec<Report> {
        let there =
            |reports: &Vec<Report>| reports.iter().any(|r| r.state == wanted || r.state.is_terminal());
        until(&format!("{wanted:?}"), async || self.reports(id), there).await
    }

    /// Waits for its end: the last report, and all of its output.
    pub(crate) async fn end(&self, id: CommandId) -> (Report, String) {
        let over = |reports: &Vec<Report>| reports.iter().any(|report| report.state.is_terminal());
        let reports = until("an end", async || self.reports(id), over).await;
        let states: Vec<_> = reports.iter().map(|report| report.state).collect();
        assert!(states.is_sorted(), "{states:?}");
        let mut output = Vec::new();
        for piece in reports.iter().filter_map(|report| report.output.as_ref()) {
            assert_eq!(piece.from, output.len() as u64, "output without a gap");
            output.extend(&piece.bytes);
        }
        (reports.last().unwrap().clone(), String::from_utf8(output).unwrap())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.quit.store(true, Ordering::Relaxed);
        let _ = self.consumer.take().unwrap().join();
        self.broker.take().unwrap().shutdown();
    }
}

fn say(state: &Known, publisher: &Publisher) {
    let heard = |id: CommandId| state.reports.iter().any(|report| report.id == id);
    let open = state.offers.iter().filter(|offer| !heard(offer.id)).cloned().collect();
    publish(state, open, publisher);
}

fn publish(state: &Known, offers: Vec<Offer>, publisher: &Publisher) {
    let (Some(session), Some(node)) = (state.session, &state.node) else { return };
    let over = |id: &CommandId| state.reports.iter().any(|r| r.id == *id && r.state.is_terminal());
    let cancels = state.cancels.iter().filter(|id| !over(id)).copied().collect();
    let orders = Orders {
        v: VERSION,
        store_id: StoreId([9; 16]),
        session,
        hub_ms: clock().now().wall_ms,
        offers,
        cancels,
    };
    publisher.publish(&Topic::Down(node.clone(), Down::Command), cbor::encode(&orders).into()).unwrap();
}

fn consume(mut link: Link, state: &Mutex<Known>, quit: &AtomicBool) {
    let publisher = link.publisher();
    let mut unpacker = Unpacker::default();
    let clock: Clock = clock();
    while !quit.load(Ordering::Relaxed) {
        let mut messages = Vec::new();
        if link.recv(&mut messages, 64, Duration::from_millis(20)).is_err() {
            return;
        }
        link.taken(&messages);
        for message in messages {
            let Topic::Up(node, up) = message.topic else { panic!("{}", message.topic) };
            let plain = unpacker.unpack(&message.payload).unwrap();
            let mut state = state.lock().unwrap();
            state.node = Some(node.clone());
            let mut lanes = BTreeMap::new();
            let birth = up == Up::Birth;
            match up {
                Up::Birth => {
                    let birth: Birth = cbor::decode(plain).unwrap();
                    state.session = Some(birth.session);
                    for (lane, streams) in &birth.lanes {
                        let told =
                            streams.iter().map(|at| acked(&state, *lane, at.stream)).collect::<Vec<_>>();
                        lanes.insert(*lane, told);
                    }
                    state.births.push(birth);
                }
                Up::Death | Up::Heartbeat => continue,
                Up::Lane(lane) => {
                    let Envelope::Known(batch) = Batch::decode(plain).unwrap() else { panic!("our version") };
                    let mark = state.marks.entry((lane, batch.stream)).or_default();
                    if batch.seq == *mark + 1 {
                        *mark = batch.last_seq();
                        match lane {
                            Lane::Command => state.reports.extend(command::decode(&batch.body).unwrap()),
                            Lane::Event => state.events.extend(event::decode(&batch.body).unwrap()),
                            Lane::Telemetry | Lane::Backfill => {}
                        }
                    }
                    lanes.insert(lane, vec![acked(&state, lane, batch.stream)]);
                }
            }
            let Some(session) = state.session else { continue };
            let (store_id, hub_ms) = (StoreId([9; 16]), clock.now().wall_ms);
            let ack = Ack { v: VERSION, store_id, session, birth, hub_ms, credit: 8, lanes };
            publisher.publish(&Topic::Down(node, Down::Ack), cbor::encode(&ack).into()).unwrap();
            if birth {
                say(&state, &publisher);
            }
        }
    }
}

fn acked(state: &Known, lane: Lane, stream: StreamId) -> StreamAck {
    let seq = state.marks.get(&(lane, stream)).copied().unwrap_or(0);
    StreamAck { stream, seq, verdict: ack::Verdict::Ok }
}
