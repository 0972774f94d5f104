//! One node of the load: a real session that sends a stock of sealed batches within its credit, and believes only
//! what `down/ack` says.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fleet_schemas::{
    CommandId, Lane, NodeId, SessionId, StreamId, Topic, VERSION,
    ack::{Ack, Verdict},
    batch::Clock,
    cbor, limits,
    session::{Birth, Death, Heartbeat, OutboxUse, Pending, StreamState, Versions},
    topic::{self, Up},
};
use hdrhistogram::Histogram;
use rustls::ClientConfig;
use tokio::time;

use super::{
    Error, data,
    data::Stock,
    latencies, note_latency,
    wire::{self, Connect, Packet, Socket},
};
use crate::clock;

/// Unanswered for so long, everything in flight is sent again, as agents do.
const RESEND: Duration = Duration::from_secs(5);
/// How long the birth and the last ack may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before a session that was refused for want of room is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// How often a node looks whether it is over.
const LOOK: Duration = Duration::from_millis(250);
/// What a node promises about its heartbeats: longer than any run, so that none is missed.
const INTERVAL_MS: u64 = 3_600_000;

/// A node of the load.
pub(super) struct Node {
    id: NodeId,
    session: SessionId,
    lane: String,
    socket: Socket,
    stock: Arc<Stock>,
    /// Acked batches, for others to see.
    mark: Arc<AtomicU64>,
    credit: u32,
    /// Sent and not acked: number, when.
    flying: VecDeque<(u64, Duration)>,
    next: u64,
    found: Found,
}

/// What a node's run came to.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// From send to durable ack.
    pub(super) latency: Histogram<u64>,
    /// Batches acked.
    pub(super) acked: u64,
    /// When the last ack came.
    pub(super) last_ack: Duration,
    /// Batches sent a second time.
    pub(super) resent: u64,
}

impl Node {
    /// Connects, and is born: the hub has answered.
    pub(super) async fn open(
        address: SocketAddr,
        id: NodeId,
        password: &str,
        stock: Arc<Stock>,
        mark: Arc<AtomicU64>,
    ) -> Result<Self, Error> {
        let session = SessionId(clock::random());
        let socket = connect(address, None, &id, password, session).await?;
        let found = Found { latency: latencies(), acked: 0, last_ack: Duration::ZERO, resent: 0 };
        let lane = Topic::Up(id.clone(), Up::Lane(Lane::Telemetry)).to_string();
        let flying = VecDeque::new();
        let mut node = Self { id, session, lane, socket, stock, mark, credit: 0, flying, next: 1, found };
        let states = lanes(node.stock.stream, 1, 1);
        publish_birth(&mut node.socket.out, &node.id, session, states, None);
        let deadline = clock::mono() + PATIENCE;
        while node.credit == 0 {
            node.step(deadline).await?;
        }
        Ok(node)
    }

    /// Sends until `end` or until the stock is used up, then waits for what is in flight and says goodbye.
    pub(super) async fn run(mut self, end: Duration) -> Result<Found, Error> {
        let most = self.stock.batches.len() as u64;
        loop {
            let now = clock::mono();
            let window = u64::from(self.credit.min(limits::IN_FLIGHT_BATCHES));
            while now < end && self.next <= most && (self.flying.len() as u64) < window {
                self.send(self.next, now);
                self.flying.push_back((self.next, now));
                self.next += 1;
            }
            if self.flying.is_empty() && (now >= end || self.next > most) {
                break;
            }
            self.resend(now);
            self.step(end + PATIENCE).await?;
        }
        self.goodbye().await?;
        Ok(self.found)
    }

    fn send(&mut self, seq: u64, _now: Duration) {
        let at = usize::try_from(seq - 1).expect("the stock is in memory");
        wire::publish(&mut self.socket.out, &self.lane, &self.stock.batches[at], Some(packet_id(seq)));
    }

    fn resend(&mut self, now: Duration) {
        if self.flying.front().is_some_and(|(_, sent)| now.saturating_sub(*sent) > RESEND) {
            for at in 0..self.flying.len() {
                self.send(self.flying[at].0, now);
                self.flying[at].1 = now;
                self.found.resent += 1;
            }
        }
    }

    /// Moves bytes once and takes what was said.
    async fn step(&mut self, deadline: Duration) -> Result<(), Error> {
        let lost = |error: io::Error| Error::Session { node: self.id.to_string(), why: error.to_string() };
        if let Ok(stepped) = time::timeout(LOOK, self.socket.step()).await {
            stepped.map_err(lost)?;
        }
        let now = clock::mono();
        if now > deadline {
            return Err(Error::Late("an ack"));
        }
        let mut answers = Vec::new();
        let mut heard = Vec::new();
        while let Some(packet) = self.socket.next().map_err(lost)? {
            if let Packet::Publish { id, payload, .. } = packet {
                answers.extend(id);
                heard.push(cbor::decode::<Ack>(payload));
            }
        }
        for id in answers {
            wire::puback(&mut self.socket.out, id);
        }
        for ack in heard {
            let ack = ack.map_err(|error| Error::Answer(format!("an ack cannot be read: {error}")))?;
            self.hear(&ack, now)?;
        }
        Ok(())
    }

    fn hear(&mut self, ack: &Ack, now: Duration) -> Result<(), Error> {
        if ack.session != self.session {
            return Ok(());
        }
        // A hub that gives no credit would be probed by an agent; here the window stays open for one.
        self.credit = ack.credit.max(1);
        for stream in ack.lanes.get(&Lane::Telemetry).into_iter().flatten() {
            if stream.stream != self.stock.stream {
                continue;
            }
            if stream.verdict != Verdict::Ok {
                return Err(Error::Answer(format!(
                    "the hub refuses a batch of {}: {:?}",
                    self.id, stream.verdict
                )));
            }
            while let Some((_, sent)) = self.flying.pop_front_if(|(seq, _)| *seq <= stream.seq) {
                note_latency(&mut self.found.latency, now.saturating_sub(sent));
                self.found.acked += 1;
                self.found.last_ack = now;
            }
            self.mark.store(stream.seq, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A last heartbeat that settles the account, and the word that this session ends.
    async fn goodbye(&mut self) -> Result<(), Error> {
        let next_record = self.found.acked * self.stock.samples + 1;
        let up_ms = data::BORN_UP_MS + self.stock.batches.len() as u64 + 1;
        let heartbeat = Heartbeat {
            v: VERSION,
            session: self.session,
            boot: data::BOOT,
            up_ms,
            clock: Clock::Synced,
            time_ms: clock::wall_ms(),
            interval_ms: INTERVAL_MS,
            system: BTreeMap::new(),
            lanes: lanes(self.stock.stream, self.found.acked + 1, next_record),
            partial: false,
            pending: Pending::default(),
            config: None,
            outbox: OutboxUse::default(),
        };
        let topic = Topic::Up(self.id.clone(), Up::Heartbeat).to_string();
        wire::publish(&mut self.socket.out, &topic, &cbor::encode(&heartbeat), None);
        let (topic, payload) = death(&self.id, self.session);
        wire::publish(&mut self.socket.out, &topic, &payload, Some(packet_id(self.next)));
        wire::disconnect(&mut self.socket.out);
        let deadline = clock::mono() + RESEND;
        while !self.socket.out.is_empty() && clock::mono() < deadline {
            // The hub may close as soon as it has read the last packet.
            if !matches!(time::timeout(LOOK, self.socket.step()).await, Ok(Ok(()))) {
                break;
            }
        }
        Ok(())
    }
}

fn packet_id(seq: u64) -> u16 {
    u16::try_from(seq % 65_535).expect("a remainder") + 1
}

/// Where the one lane stands.
fn lanes(stream: StreamId, seq: u64, record: u64) -> BTreeMap<Lane, Vec<StreamState>> {
    let state = StreamState {
        stream,
        floor_seq: seq,
        floor_record: record,
        next_seq: seq,
        next_record: record,
        counted: 0,
        tombstoned: 0,
    };
    BTreeMap::from([(Lane::Telemetry, vec![state])])
}

fn death(id: &NodeId, session: SessionId) -> (String, Vec<u8>) {
    let death = Death { v: VERSION, session, until_ms: None };
    (Topic::Up(id.clone(), Up::Death).to_string(), cbor::encode(&death))
}

/// Opens a node's session as agents do: will, subscription to what it is told; `tls` when it comes with a certificate.
pub(super) async fn connect(
    address: SocketAddr,
    tls: Option<&Arc<ClientConfig>>,
    id: &NodeId,
    password: &str,
    session: SessionId,
) -> Result<Socket, Error> {
    let (topic, payload) = death(id, session);
    let who = Connect { id: id.as_str(), password, keep_alive: 600, will: Some((&topic, &payload)), tls };
    let filter = topic::down_filter(id);
    let deadline = clock::mono() + PATIENCE;
    let lost = |why: String| Error::Session { node: id.to_string(), why };
    loop {
        let opened = time::timeout(PATIENCE, Socket::session(address, &who, Some((&filter, 1)))).await;
        match opened.map_err(|_| lost("no answer to CONNECT".to_owned()))? {
            Ok(socket) => return Ok(socket),
            // As when many new nodes come at once: the hub writes each one's secret down.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && clock::mono() < deadline => {
                time::sleep(AGAIN).await;
            }
            Err(error) => return Err(lost(error.to_string())),
        }
    }
}

/// A birth, to be sent.
pub(super) fn publish_birth(
    out: &mut Vec<u8>,
    id: &NodeId,
    session: SessionId,
    lanes: BTreeMap<Lane, Vec<StreamState>>,
    commands: Option<Vec<CommandId>>,
) {
    let birth = Birth {
        v: VERSION,
        session,
        epoch: 1,
        boot: data::BOOT,
        instance: None,
        up_ms: data::BORN_UP_MS,
        clock: Clock::Synced,
        time_ms: clock::wall_ms(),
        interval_ms: INTERVAL_MS,
        kind: "bench".to_owned(),
        name: None,
        capabilities: Vec::new(),
        versions: Versions { agent: env!("CARGO_PKG_VERSION").to_owned(), ..Versions::default() },
        machine: BTreeMap::new(),
        lanes,
        partial: false,
        pending: Pending::default(),
        commands,
        config: None,
    };
    let topic = Topic::Up(id.clone(), Up::Birth).to_string();
    wire::publish(out, &topic, &cbor::encode(&birth), Some(u16::MAX));
}
