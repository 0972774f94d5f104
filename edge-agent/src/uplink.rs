//! The agent without its shell: what is accepted goes to the outbox, what the outbox holds goes to the hub, until the
//! hub's mark covers it.
//!
//! Synchronous and owned by one thread; time, randomness and the file are arguments, so the simulator runs exactly
//! this. Every decision is made on `Lanes` in memory, written in one transaction, and only then acted on. After an
//! error the value is dead: open a new one on the same file.

mod accept;
mod commands;
mod config;
mod depart;
mod devices;
mod evict;
mod once;
mod receive;
mod send;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fleet_schemas::{
    Lane, NodeId, SessionId, StoreId, StreamId, Topic, VERSION,
    cbor::{self, Packer, Unpacker},
    limits,
    session::{Birth, Death, Heartbeat, OutboxUse, Pending, StreamState, Versions},
    telemetry::Sample,
    topic::Up,
};
use redb::StorageBackend;

pub use crate::store::outbox::Error;
pub use accept::{Submission, SubmitError};
pub use commands::Judge;
pub use devices::Told;
pub use once::{Handed, Name, Names, Receipt};

use self::{commands::Commands, config::Following};
use crate::{
    core::{
        Now, config as configuration,
        devices::{Devices, Policy, Register},
        lanes::{Lanes, Stream, StreamNo},
        upload::{self, Budgets, Meter},
    },
    store::{
        outbox::{Outbox, Write},
        rows::Held,
    },
};

/// How long an unanswered birth is waited for before it is sent again.
const BIRTH_AGAIN: Duration = Duration::from_secs(10);
/// How long after an answer that asks for what is gone a birth says so.
const STATE_ANEW: Duration = Duration::from_secs(1);
/// Pause between probes while the hub gives no credit.
const PROBE: Duration = Duration::from_secs(30);
/// How long a mark may be known in memory only; after a crash it costs duplicates, never records.
const MARKS_AT_LATEST: Duration = Duration::from_secs(600);

/// Who the node is; fixed while the agent runs, but for what it runs.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Its id.
    pub node: NodeId,
    /// The boot: the first 8 bytes of the kernel's boot id.
    pub boot: [u8; 8],
    /// This start of the agent: 8 random bytes.
    pub instance: Option<[u8; 8]>,
    /// What kind of machine, such as `picclaw`.
    pub kind: String,
    /// A name for people.
    pub name: Option<String>,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// What it runs.
    pub versions: Versions,
    /// The machine: `hostname`, `os`, `arch`, …
    pub machine: BTreeMap<String, String>,
    /// How often it sends a heartbeat.
    pub heartbeat: Duration,
}

/// How the outbox behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Bytes it may hold.
    pub quota_bytes: u64,
    /// How often the agent's own samples are sealed and sent.
    pub upload: Duration,
    /// How soon samples are sealed and sent that somebody submitted: they cost a flash write anyway, and somebody
    /// waits for them. At most `upload`.
    pub prompt: Duration,
    /// Samples that make a batch at once, at most [`limits::BATCH_RECORDS`].
    pub batch_samples: usize,
    /// How long acked batches are kept for a hub that is restored from a backup.
    pub keep: Duration,
    /// How devices are kept.
    pub devices: Policy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            quota_bytes: 256 * 1024 * 1024,
            // Each upload costs the flash about 36 kB: at 90 s that is 35 MB a day. Heartbeats tell the latest
            // figures more often, and cost it nothing.
            upload: Duration::from_secs(90),
            prompt: Duration::from_secs(5),
            batch_samples: 5_000,
            keep: Duration::from_secs(48 * 3600),
            devices: Policy { register: Register::Off, heartbeat: Duration::ZERO },
        }
    }
}

/// A message for the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub topic: Topic,
    /// What.
    pub payload: Vec<u8>,
    /// 0 for heartbeats, else 1.
    pub qos: u8,
}

/// What the agent says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Whether a session is open.
    pub connected: bool,
    /// Whether its birth was answered.
    pub answered: bool,
    /// The session.
    pub session: Option<SessionId>,
    /// Sessions so far.
    pub epoch: u64,
    /// The hub's store, once it answered.
    pub store_id: Option<StoreId>,
    /// Batches the hub lets us have in flight.
    pub credit: u32,
    /// Hub time minus ours at the last ack, in milliseconds.
    pub hub_offset_ms: Option<i64>,
    /// Hub time at the last ack, Unix milliseconds.
    pub hub_ms: Option<i64>,
    /// Time since boot at the last ack.
    pub last_ack: Option<Duration>,
    /// Streams per lane with the hub's mark and the batches in flight on the lane.
    pub lanes: BTreeMap<Lane, LaneStatus>,
    /// Samples not yet sealed.
    pub pending: Pending,
    /// Size and quota.
    pub outbox: OutboxUse,
    /// Bytes used of the budgets.
    pub budgets: Budgets,
    /// Records declared lost since the file was opened.
    pub lost: u64,
    /// Rows found damaged when the file was opened.
    pub damaged_rows: u64,
    /// The figures that heartbeats carry.
    pub system: BTreeMap<String, f64>,
    /// Where the configuration stands.
    pub config: configuration::View,
}

/// One lane's part of [`Status`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneStatus {
    /// Each stream with its mark.
    pub streams: Vec<(StreamState, u64)>,
    /// Batches in flight.
    pub in_flight: u32,
}

#[derive(Debug)]
struct Session {
    id: SessionId,
    answered: bool,
    credit: u32,
    birth_due: Duration,
    heartbeat_due: Duration,
    probe_due: Duration,
}

/// The agent without its shell.
pub struct Uplink {
    outbox: Outbox,
    lanes: Lanes,
    profile: Profile,
    config: Config,
    packer: Packer,
    unpacker: Unpacker,
    // The stream that sealing appends to; its number is taken when something is sealed.
    stream: StreamId,
    number: Option<StreamNo>,
    next_stream: StreamNo,
    epoch: u64,
    // On disk and not sealed; `row_to` is the last row.
    pending: Vec<Sample>,
    row_to: u64,
    row_bytes: u64,
    // Not even on disk.
    lazy: Vec<Sample>,
    seal_due: Duration,
    sweep_due: Duration,
    // Changes for the next transaction, and batches in it that may be wanted at once.
    staged: Vec<Write>,
    fresh: BTreeMap<(Lane, StreamNo, u64), Held>,
    moved: BTreeSet<(Lane, StreamNo)>,
    marks_due: Option<Duration>,
    session: Option<Session>,
    system: BTreeMap<String, f64>,
    store_id: Option<StoreId>,
    hub_offset_ms: Option<i64>,
    hub_ms: Option<i64>,
    last_ack: Option<Duration>,
    lost: u64,
    damaged_rows: u64,
    commands: Commands,
    meter: Meter,
    following: Following,
    used: once::Used,
    devices: Devices,
    leaving: bool,
    // Stamps of the latest batch and of the latest birth or heartbeat. A batch that a heartbeat does not know is
    // stamped later than it, so that the hub can order them whatever the network does.
    sealed_up_ms: u64,
    said_up_ms: u64,
}

impl Uplink {
    /// Opens the outbox. `stream` is 16 fresh random bytes.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(
        backend: impl StorageBackend,
        profile: Profile,
        config: Config,
        stream: StreamId,
        now: Now,
    ) -> Result<Self, Error> {
        let (outbox, found) = Outbox::open(backend)?;
        Ok(Self {
            outbox,
            lanes: found.lanes,
            profile,
            config,
            packer: Packer::new(limits::ZSTD_LEVEL),
            unpacker: Unpacker::default(),
            stream,
            number: None,
            next_stream: found.next_stream,
            epoch: found.epoch,
            row_to: found.rows.keys().last().copied().unwrap_or(0),
            pending: found.rows.into_values().flatten().collect(),
            row_bytes: found.row_bytes,
            lazy: Vec::new(),
            seal_due: now.up + config.upload,
            sweep_due: now.up,
            staged: Vec::new(),
            fresh: BTreeMap::new(),
            moved: BTreeSet::new(),
            marks_due: None,
            session: None,
            system: BTreeMap::new(),
            store_id: None,
            hub_offset_ms: None,
            hub_ms: None,
            last_ack: None,
            lost: 0,
            damaged_rows: found.damaged_rows,
            commands: Commands::new(found.commands, now),
            meter: Meter::new(upload::Policy::default(), found.spent, now),
            following: Following::new(found.config),
            used: once::Used::found(found.names),
            devices: Devices::found(config.devices, found.devices, now),
            leaving: false,
            sealed_up_ms: 0,
            said_up_ms: 0,
        })
    }

    /// When records go up from now on, and how many bytes they may take. What was used stays used.
    pub fn set_upload(&mut self, policy: upload::Policy, now: Now) {
        if *self.meter.policy() != policy {
            self.meter.set(policy);
            self.seal_due = self.meter.next_seal(self.config.upload, now);
        }
    }

    /// The will for a session: topic and payload.
    #[must_use]
    pub fn will(&self, session: SessionId) -> (Topic, Vec<u8>) {
        let death = Death { v: VERSION, session, until_ms: None };
        (Topic::Up(self.profile.node.clone(), Up::Death), cbor::encode(&death))
    }

    /// A fresh connection is up and subscribed: the next poll sends a birth.
    pub fn connected(&mut self, session: SessionId, now: Now) {
        self.epoch += 1;
        self.staged.push(Write::Epoch(self.epoch));
        self.lanes.rewind();
        self.session = Some(Session {
            id: session,
            answered: false,
            credit: 1,
            birth_due: now.up,
            heartbeat_due: now.up,
            probe_due: now.up,
        });
    }

    /// The connection is gone. What was in flight is sent again in the next session.
    pub fn disconnected(&mut self) {
        self.session = None;
        self.lanes.rewind();
    }

    /// A clean end: writes down what is only in memory and gives what is still to be said, a goodbye last.
    ///
    /// # Errors
    /// [`Error`].
    pub fn goodbye(&mut self, now: Now) -> Result<Vec<Outgoing>, Error> {
        self.stage_lazy();
        self.commit()?;
        let Some(session) = self.session.take() else { return Ok(Vec::new()) };
        let last = self.depart(session.id, now)?;
        let (topic, payload) = self.will(session.id);
        Ok(last.into_iter().chain([Outgoing { topic, payload, qos: 1 }]).collect())
    }

    /// The figures that the next heartbeats carry, by metric name.
    pub fn set_system(&mut self, figures: BTreeMap<String, f64>) {
        self.system = figures;
    }

    /// What the next birth says of what runs. The hub of this session is told by an event.
    pub fn set_versions(&mut self, versions: Versions) {
        self.profile.versions = versions;
    }

    /// The node this is.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.profile.node
    }

    /// Where everything stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let lane = |lane: &Lane| {
            let state = self.lanes.get(*lane);
            let streams = (state.streams.values()).map(|stream| (stream.state(), stream.mark)).collect();
            (*lane, LaneStatus { streams, in_flight: state.in_flight() })
        };
        Status {
            connected: self.session.is_some(),
            answered: self.session.as_ref().is_some_and(|session| session.answered),
            session: self.session.as_ref().map(|session| session.id),
            epoch: self.epoch,
            store_id: self.store_id,
            credit: self.session.as_ref().map_or(0, |session| session.credit),
            hub_offset_ms: self.hub_offset_ms,
            hub_ms: self.hub_ms,
            last_ack: self.last_ack,
            lanes: Lane::ALL.iter().map(lane).collect(),
            pending: self.pending(),
            outbox: self.outbox_use(),
            budgets: self.meter.view(),
            lost: self.lost,
            damaged_rows: self.damaged_rows,
            system: self.system.clone(),
            config: self.config_view(),
        }
    }

    fn pending(&self) -> Pending {
        Pending { samples: self.pending.len() as u64 }
    }

    fn outbox_use(&self) -> OutboxUse {
        OutboxUse { bytes: self.used_bytes(), quota_bytes: self.config.quota_bytes }
    }

    fn used_bytes(&self) -> u64 {
        self.lanes.bytes() + self.row_bytes
    }

    fn stamp_said(&mut self, now: Now) -> u64 {
        self.said_up_ms = now.up_ms().max(self.sealed_up_ms);
        self.said_up_ms
    }

    fn stamp_sealed(&mut self, now: Now) -> u64 {
        self.sealed_up_ms = now.up_ms().max(self.said_up_ms + 1);
        self.sealed_up_ms
    }

    /// From one heartbeat to the next: as it is configured, or as often as the budgets of the link allow.
    fn interval(&self) -> Duration {
        self.profile.heartbeat.max(self.meter.hello_every())
    }

    fn birth(&mut self, session: SessionId, now: Now) -> Outgoing {
        let up_ms = self.stamp_said(now);
        let (lanes, partial) = self.lanes.states(limits::STREAMS_PER_LANE);
        let birth = Birth {
            v: VERSION,
            session,
            epoch: self.epoch,
            boot: self.profile.boot,
            instance: self.profile.instance,
            up_ms,
            clock: now.clock,
            time_ms: now.wall_ms,
            interval_ms: u64::try_from(self.interval().as_millis()).unwrap_or(u64::MAX),
            kind: self.profile.kind.clone(),
            name: self.profile.name.clone(),
            capabilities: self.profile.capabilities.clone(),
            versions: self.profile.versions.clone(),
            machine: self.profile.machine.clone(),
            lanes,
            partial,
            pending: self.pending(),
            commands: self.held_ids(),
            config: self.following.tell(),
        };
        Outgoing {
            topic: Topic::Up(self.profile.node.clone(), Up::Birth),
            payload: cbor::encode(&birth),
            qos: 1,
        }
    }

    fn heartbeat(&mut self, session: SessionId, now: Now) -> Outgoing {
        let up_ms = self.stamp_said(now);
        let (lanes, partial) = self.lanes.states(limits::STREAMS_PER_LANE);
        let heartbeat = Heartbeat {
            v: VERSION,
            session,
            boot: self.profile.boot,
            up_ms,
            clock: now.clock,
            time_ms: now.wall_ms,
            interval_ms: u64::try_from(self.interval().as_millis()).unwrap_or(u64::MAX),
            system: self.system.clone(),
            lanes,
            partial,
            pending: self.pending(),
            config: self.following.tell(),
            outbox: self.outbox_use(),
        };
        let topic = Topic::Up(self.profile.node.clone(), Up::Heartbeat);
        Outgoing { topic, payload: cbor::encode(&heartbeat), qos: 0 }
    }

    /// Writes what is staged, and with it the marks that moved. Nothing staged and no mark overdue: no write.
    fn commit(&mut self) -> Result<(), Error> {
        if self.staged.is_empty() && self.moved.is_empty() {
            return Ok(());
        }
        for (lane, number) in std::mem::take(&mut self.moved) {
            if let Some(stream) = self.lanes.get(lane).streams.get(&number) {
                self.staged.push(Write::position(lane, number, stream));
            }
        }
        let staged = std::mem::take(&mut self.staged);
        self.marks_due = None;
        self.outbox.apply(&staged)?;
        self.fresh.clear();
        self.committed();
        Ok(())
    }

    /// What waited for the transaction may be done.
    fn committed(&mut self) {
        self.commands.committed();
        self.following.committed();
    }

    /// The stream that sealing appends to, on one lane.
    fn current(&mut self, lane: Lane) -> (StreamNo, &mut Stream) {
        let number = *self.number.get_or_insert_with(|| {
            let number = self.next_stream;
            self.next_stream += 1;
            self.staged.push(Write::Stream { number, id: self.stream });
            number
        });
        let stream =
            (self.lanes.get_mut(lane).streams.entry(number)).or_insert_with(|| Stream::new(self.stream));
        (number, stream)
    }
}
