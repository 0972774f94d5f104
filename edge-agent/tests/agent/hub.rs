//! The agent's session with a real gate: birth, batches, acks, and a broker that goes away and comes back.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use fleet_broker::{Broker, Credentials, Directory, Identity, Link, Publisher, Refusal};
use fleet_edge_agent::{clock::Clock, config::Config, run::Handle};
use fleet_schemas::{
    Lane, NodeId, SessionId, StoreId, StreamId, Topic, VERSION,
    ack::{Ack, StreamAck, Verdict},
    batch::{Batch, Envelope},
    cbor::{self, Unpacker},
    session::{Birth, Death, Heartbeat},
    telemetry::Samples,
    topic::{Down, Up},
};
use serde_json::json;

use crate::{PATIENCE, get_json, post, quiet, start, until, url};

/// Knows every node by the password `secret-{node}`.
struct Fleet;

impl Directory for Fleet {
    fn authenticate(&self, credentials: &Credentials<'_>) -> fleet_broker::Verdict {
        let known = |node: &NodeId| credentials.password == Some(format!("secret-{node}").as_bytes());
        let node = credentials.user.and_then(|user| NodeId::parse(user).ok()).filter(known);
        node.map(Identity::Node).ok_or(Refusal::BadCredentials).into()
    }
}

/// What a node said, read.
#[derive(Debug)]
pub(crate) enum Said {
    Birth(Box<Birth>),
    Death(Death),
    Heartbeat(Box<Heartbeat>),
    Batch(Lane, Batch),
}

/// A hub reduced to its broker and the rule of the ledger: what is next is marked and acked.
pub(crate) struct Hub {
    pub(crate) broker: Option<Broker>,
    pub(crate) said: mpsc::Receiver<Said>,
    consumer: Option<thread::JoinHandle<()>>,
    quit: Arc<std::sync::atomic::AtomicBool>,
    pub(crate) publisher: Publisher,
    pub(crate) address: SocketAddr,
}

impl Hub {
    pub(crate) fn start(address: &str, acks: bool) -> Self {
        let config = fleet_broker::Config { mqtt: address.parse().unwrap(), ..Default::default() };
        Self::serve(config, Arc::new(Fleet), acks)
    }

    pub(crate) fn serve(config: fleet_broker::Config, directory: Arc<dyn Directory>, acks: bool) -> Self {
        let config = fleet_broker::Config { gate_threads: 1, ..config };
        let (broker, link) = Broker::start(config, directory).unwrap();
        let (says, said) = mpsc::channel();
        let quit = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (quitting, publisher) = (quit.clone(), link.publisher());
        let consumer = thread::spawn(move || consume(link, &says, acks, &quitting));
        let address = broker.mqtt_addr();
        Self { broker: Some(broker), said, consumer: Some(consumer), quit, publisher, address }
    }

    /// The next thing said that pleases; others are passed over.
    pub(crate) fn hear<T>(&self, what: &str, mut pleases: impl FnMut(Said) -> Option<T>) -> T {
        loop {
            let said = self.said.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("never heard: {what}"));
            if let Some(heard) = pleases(said) {
                return heard;
            }
        }
    }

    pub(crate) fn birth(&self) -> Birth {
        self.hear("a birth", |said| match said {
            Said::Birth(birth) => Some(*birth),
            Said::Death(_) | Said::Heartbeat(_) | Said::Batch(..) => None,
        })
    }

    pub(crate) fn batch(&self, wanted: Lane) -> Batch {
        self.hear("a batch", |said| match said {
            Said::Batch(lane, batch) if lane == wanted => Some(batch),
            Said::Birth(_) | Said::Death(_) | Said::Heartbeat(_) | Said::Batch(..) => None,
        })
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.quit.store(true, std::sync::atomic::Ordering::Relaxed);
        let _ = self.consumer.take().unwrap().join();
        self.broker.take().unwrap().shutdown();
    }
}

fn consume(mut link: Link, says: &mpsc::Sender<Said>, acks: bool, quit: &std::sync::atomic::AtomicBool) {
    let publisher = link.publisher();
    let mut unpacker = Unpacker::default();
    let mut sessions: BTreeMap<NodeId, SessionId> = BTreeMap::new();
    let mut marks: BTreeMap<(NodeId, Lane, StreamId), u64> = BTreeMap::new();
    while !quit.load(std::sync::atomic::Ordering::Relaxed) {
        let mut messages = Vec::new();
        if link.recv(&mut messages, 64, Duration::from_millis(50)).is_err() {
            return;
        }
        link.taken(&messages);
        for message in messages {
            let Topic::Up(node, up) = message.topic else { panic!("{}", message.topic) };
            let plain = unpacker.unpack(&message.payload).unwrap();
            let said = match up {
                Up::Birth => Said::Birth(Box::new(cbor::decode(plain).unwrap())),
                Up::Death => Said::Death(cbor::decode(plain).unwrap()),
                Up::Heartbeat => Said::Heartbeat(Box::new(cbor::decode(plain).unwrap())),
                Up::Lane(lane) => match Batch::decode(plain).unwrap() {
                    Envelope::Known(batch) => Said::Batch(lane, batch),
                    Envelope::Unknown(head) => panic!("{head:?}"),
                },
            };
            let mut lanes = BTreeMap::new();
            let answered = match &said {
                Said::Birth(birth) => {
                    sessions.insert(node.clone(), birth.session);
                    for (lane, streams) in &birth.lanes {
                        let ack = |stream: StreamId| {
                            let seq = marks.get(&(node.clone(), *lane, stream)).copied().unwrap_or(0);
                            StreamAck { stream, seq, verdict: Verdict::Ok }
                        };
                        lanes
                            .insert(*lane, streams.iter().map(|state| ack(state.stream)).collect::<Vec<_>>());
                    }
                    true
                }
                Said::Batch(lane, batch) => {
                    let mark = marks.entry((node.clone(), *lane, batch.stream)).or_default();
                    if batch.seq == *mark + 1 {
                        *mark = batch.last_seq();
                    }
                    let ack = StreamAck { stream: batch.stream, seq: *mark, verdict: Verdict::Ok };
                    lanes.insert(*lane, vec![ack]);
                    true
                }
                Said::Death(_) | Said::Heartbeat(_) => false,
            };
            if acks && answered {
                let ack = Ack {
                    v: VERSION,
                    store_id: StoreId([9; 16]),
                    session: sessions[&node],
                    birth: matches!(said, Said::Birth(_)),
                    hub_ms: Clock::new(Default::default()).now().wall_ms,
                    credit: 8,
                    lanes,
                };
                publisher.publish(&Topic::Down(node, Down::Ack), cbor::encode(&ack).into()).unwrap();
            }
            let _ = says.send(said);
        }
    }
}

pub(crate) fn connected(node: &str, hub: SocketAddr) -> (tempfile::TempDir, Config) {
    let (folder, mut config) = quiet(node);
    config.hub.url = Some(format!("mqtt://{hub}").parse().unwrap());
    config.outbox.upload = Duration::from_millis(100);
    config.node.heartbeat = Duration::from_millis(200);
    (folder, config)
}

async fn status(agent: &Handle) -> serde_json::Value {
    get_json(&url(agent, "/api/v1/status")).await
}

async fn post_sample(agent: &Handle, value: f64) {
    let body = json!({"device": "d", "samples": [{"metric": "m", "value": value, "time_ms": 1_790_000_000_000_i64}]});
    assert_eq!(post(&url(agent, "/api/v1/telemetry"), body).await.0, 202);
}

fn values(batch: &Batch) -> Vec<f64> {
    let samples = Samples::decode(&batch.body).unwrap();
    samples.series.iter().flat_map(|series| samples.values(series)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_opens_with_a_birth_carries_batches_and_ends_with_a_goodbye() {
    let hub = Hub::start("127.0.0.1:0", true);
    let (_folder, mut config) = connected("hub-1", hub.address);
    config.system.interval = Duration::from_millis(100);
    let agent = start(config).await;
    let birth = hub.birth();
    assert_eq!((birth.kind.as_str(), birth.interval_ms, birth.epoch), ("picclaw", 200, 1));
    assert_eq!(birth.versions.agent, fleet_edge_agent::run::VERSION);
    until("online", async || status(&agent).await, |status| status["status"] == "online").await;
    let event = json!({"kind": "door", "severity": "critical", "message": "open"});
    assert_eq!(post(&url(&agent, "/api/v1/events"), event).await.0, 202);
    let events = fleet_schemas::event::decode(&hub.batch(Lane::Event).body).unwrap();
    assert_eq!((events[0].kind.as_str(), events[0].message.as_str()), ("door", "open"));
    let heartbeat = hub.hear("a heartbeat with figures", |said| match said {
        Said::Heartbeat(heartbeat) if !heartbeat.system.is_empty() => Some(heartbeat),
        Said::Heartbeat(_) | Said::Birth(_) | Said::Death(_) | Said::Batch(..) => None,
    });
    assert_eq!(heartbeat.session, birth.session);
    assert!(heartbeat.system["mem_total_bytes"] > 0.0);
    assert!(Samples::decode(&hub.batch(Lane::Telemetry).body).unwrap().count() >= 12);
    until(
        "everything acked",
        async || status(&agent).await,
        |status| status["outbox"]["unacked_batches"] == 0,
    )
    .await;
    agent.stop().await;
    let death = hub.hear("the goodbye", |said| match said {
        Said::Death(death) => Some(death),
        Said::Birth(_) | Said::Heartbeat(_) | Said::Batch(..) => None,
    });
    assert_eq!(death.session, birth.session);
    assert!(
        hub.said.recv_timeout(Duration::from_millis(200)).is_err(),
        "nothing follows a goodbye, no will either"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_acked_is_sent_again_when_the_broker_comes_back() {
    let hub = Hub::start("127.0.0.1:0", false);
    let address = hub.address;
    let (_folder, config) = connected("hub-2", address);
    let agent = start(config).await;
    let first = hub.birth();
    post_sample(&agent, 1.0).await;
    let event = json!({"kind": "k", "severity": "info", "message": "m"});
    assert_eq!(post(&url(&agent, "/api/v1/events"), event).await.0, 202);
    let sent = hub.batch(Lane::Event);
    drop(hub);
    until("offline", async || agent.metrics(), |page| page.contains("fleet_agent_connected 0")).await;
    post_sample(&agent, 2.0).await;
    let hub = Hub::start(&address.to_string(), true);
    let second = hub.birth();
    assert_ne!(second.session, first.session);
    assert!(first.instance.is_some() && second.instance == first.instance, "the same process");
    // The hub's answer to the birth may cross a batch, which then comes twice.
    let mut events = Vec::new();
    let mut found = Vec::new();
    while events.is_empty() || !(found.contains(&1.0) && found.contains(&2.0)) {
        let (lane, batch) = hub.hear("the batches", |said| match said {
            Said::Batch(lane, batch) => Some((lane, batch)),
            Said::Birth(_) | Said::Death(_) | Said::Heartbeat(_) => None,
        });
        if lane.carries_samples() {
            found.extend(values(&batch));
        } else {
            events.push(batch);
        }
    }
    assert!(events.iter().all(|event| *event == sent), "a resend is the same batch: {events:?}");
    until(
        "everything acked",
        async || status(&agent).await,
        |status| status["outbox"]["unacked_batches"] == 0,
    )
    .await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_secret_is_no_session_and_loses_nothing() {
    let hub = Hub::start("127.0.0.1:0", true);
    let (_folder, mut config) = connected("hub-3", hub.address);
    config.hub.secret = Some(fleet_edge_agent::mqtt::Secret("wrong".into()));
    let agent = start(config).await;
    post_sample(&agent, 1.0).await;
    let failed = async || agent.metrics();
    until("a refusal", failed, |page| page.contains("fleet_agent_connect_failures_total 1")).await;
    let status = status(&agent).await;
    assert_eq!((&status["status"], &status["outbox"]["held_records"]), (&json!("offline"), &json!(1)));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_is_found_at_an_ipv6_address() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        // A machine without IPv6 has no such address to try.
        return;
    }
    let hub = Hub::start("[::1]:0", true);
    let (_folder, config) = connected("hub-6", hub.address);
    let agent = start(config.clone()).await;
    let first = hub.birth();
    agent.stop().await;
    let agent = start(config).await;
    assert_ne!(hub.birth().instance, first.instance, "another process, as far as the hub can tell");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_agents_share_a_process() {
    let hub = Hub::start("127.0.0.1:0", true);
    let mut agents = Vec::new();
    for number in 0..20 {
        let (folder, config) = connected(&format!("many-{number}"), hub.address);
        agents.push((start(config).await, folder));
    }
    for (agent, _) in &agents {
        until("online", async || agent.status().await.unwrap().status, |status| status == "online").await;
    }
    for (agent, _) in agents {
        agent.stop().await;
    }
}
