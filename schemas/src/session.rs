//! Birth, death and heartbeat: a node's session, and where its lanes stand.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    batch::Clock,
    config::Reported,
    id::{CommandId, SessionId, StreamId},
    lane::{self, Lane},
    limits,
    update::Running,
};

/// The first message of a session; repeated until it is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Birth {
    /// Payload version.
    pub v: u16,
    /// The session it opens.
    pub session: SessionId,
    /// Counts the agent's sessions; informational.
    pub epoch: u64,
    /// The boot: the first 8 bytes of the kernel's boot id.
    #[serde(with = "serde_bytes")]
    pub boot: [u8; 8],
    /// The agent's process: 8 random bytes for each start. Two that alternate are two agents under one id; one that
    /// reconnects, from wherever, keeps its own, and one that was started again does not return to an old one.
    #[serde(default, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
    pub instance: Option<[u8; 8]>,
    /// Milliseconds since boot, monotonic.
    pub up_ms: u64,
    /// Whether `time_ms` can be trusted.
    pub clock: Clock,
    /// The agent's wall clock, Unix milliseconds.
    pub time_ms: i64,
    /// How often it will send a heartbeat, in milliseconds.
    pub interval_ms: u64,
    /// What kind of machine, such as `picclaw`.
    pub kind: String,
    /// A name for people, if the node has an opinion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it can do, such as `sensor`, `exec`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// What it runs.
    pub versions: Versions,
    /// The machine: `hostname`, `os`, `arch`, `kernel`, `model` where known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub machine: BTreeMap<String, String>,
    /// Where its lanes stand.
    #[serde(deserialize_with = "lane::known")]
    pub lanes: BTreeMap<Lane, Vec<StreamState>>,
    /// Set when `lanes` leaves streams out because there are more than
    /// [`STREAMS_PER_LANE`](crate::limits::STREAMS_PER_LANE): then absence means nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Samples that are not yet sealed.
    pub pending: Pending,
    /// Commands that are on its disk and not over; absent from an agent that takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands: Option<Vec<CommandId>>,
    /// What configuration it has; absent from an agent that takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Reported>,
}

/// What a node runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The agent.
    pub agent: String,
    /// The firmware or system image, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// Skills by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skills: BTreeMap<String, String>,
    /// All of it by digest, the agent included; at most 320. Agents that take updates have the
    /// capability [`CAPABILITY`](crate::update::CAPABILITY), also while nothing is listed here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub running: Vec<Running>,
}

/// The will, or a goodbye: the session ended. Acts only on the session it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// Payload version.
    pub v: u16,
    /// The session that ended.
    pub session: SessionId,
    /// Set in a goodbye: the node sleeps until then by its own plan, Unix milliseconds by hub time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
}

/// Still here, with the machine's figures and one read transaction's snapshot of the outbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Payload version.
    pub v: u16,
    /// The session it belongs to.
    pub session: SessionId,
    /// The boot: the first 8 bytes of the kernel's boot id.
    #[serde(with = "serde_bytes")]
    pub boot: [u8; 8],
    /// Milliseconds since boot, monotonic.
    pub up_ms: u64,
    /// Whether `time_ms` can be trusted.
    pub clock: Clock,
    /// The agent's wall clock, Unix milliseconds.
    pub time_ms: i64,
    /// How often it sends a heartbeat, in milliseconds.
    pub interval_ms: u64,
    /// The machine's figures by metric name (`cpu_percent`, `load1`, `mem_used_bytes`, …).
    #[serde(default, deserialize_with = "numbers", skip_serializing_if = "BTreeMap::is_empty")]
    pub system: BTreeMap<String, f64>,
    /// Where its lanes stand.
    #[serde(deserialize_with = "lane::known")]
    pub lanes: BTreeMap<Lane, Vec<StreamState>>,
    /// Set when `lanes` leaves streams out because there are more than
    /// [`STREAMS_PER_LANE`](crate::limits::STREAMS_PER_LANE): then absence means nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Samples that are not yet sealed.
    pub pending: Pending,
    /// The outbox's size and quota.
    pub outbox: OutboxUse,
    /// What configuration it has; absent from an agent that takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Reported>,
}

/// A number as writers in other languages put it: a float or an integer.
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl de::Visitor<'_> for Any {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }
            fn visit_f64<E>(self, number: f64) -> Result<Number, E> {
                Ok(Number(number))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Number, E> {
                Ok(Number(number as f64))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number as f64))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let numbers = BTreeMap::<String, Number>::deserialize(deserializer)?;
    Ok(numbers.into_iter().map(|(name, Number(number))| (name, number)).collect())
}

impl Birth {
    /// Checks the limits on lengths.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), &'static str> {
        let short = |text: &String| text.len() <= limits::LABEL_BYTES;
        if !short(&self.kind) || self.name.as_ref().is_some_and(|name| name.len() > limits::TEXT_BYTES) {
            return Err("kind or name is too long");
        }
        if self.capabilities.len() > limits::LABELS_PER_NODE || !self.capabilities.iter().all(short) {
            return Err("too many capabilities, or one is too long");
        }
        if self.machine.len() > limits::LABELS_PER_NODE
            || !self.machine.iter().all(|(key, value)| short(key) && value.len() <= limits::TEXT_BYTES)
        {
            return Err("too many entries in machine, or one is too long");
        }
        self.versions.check()?;
        if self.commands.as_ref().is_some_and(|commands| commands.len() > limits::QUEUE_LENGTH) {
            return Err("too many commands");
        }
        self.config.as_ref().map_or(Ok(()), Reported::check)?;
        check_lanes(&self.lanes)
    }
}

impl Versions {
    /// Whether it keeps within the limits.
    ///
    /// # Errors
    /// Which limit it breaks.
    pub fn check(&self) -> Result<(), &'static str> {
        let Self { agent, firmware, skills, running } = self;
        let versions = [agent].into_iter().chain(firmware).chain(skills.keys()).chain(skills.values());
        let short = |text: &String| text.len() <= limits::LABEL_BYTES;
        if skills.len() > limits::SKILLS_PER_NODE || !versions.into_iter().all(short) {
            return Err("too many skills, or a version is too long");
        }
        if running.len() > limits::RUNNING_PER_NODE {
            return Err("more runs than a node may list");
        }
        Ok(())
    }
}

impl Heartbeat {
    /// Checks the limits on lengths.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), &'static str> {
        let fits = |(name, number): (&String, &f64)| name.len() <= limits::LABEL_BYTES && number.is_finite();
        if self.system.len() > limits::FIGURES_PER_NODE || !self.system.iter().all(fits) {
            return Err("too many system figures, or one is too long or not finite");
        }
        self.config.as_ref().map_or(Ok(()), Reported::check)?;
        check_lanes(&self.lanes)
    }
}

fn check_lanes(lanes: &BTreeMap<Lane, Vec<StreamState>>) -> Result<(), &'static str> {
    let sane = |state: &StreamState| {
        state.floor_seq >= 1
            && state.floor_record >= 1
            && state.floor_seq <= state.next_seq
            && state.floor_record <= state.next_record
            && state.next_seq <= u64::MAX / 2
            && state.next_record <= u64::MAX / 2
    };
    match lanes.values().all(|states| states.len() <= limits::STREAMS_PER_LANE && states.iter().all(sane)) {
        true => Ok(()),
        false => Err("a lane lists too many streams, or numbers that contradict each other"),
    }
}

/// Where one (lane, stream) stands at the edge. `floor` is the oldest batch still held; when none is held,
/// floor and next are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// The stream.
    pub stream: StreamId,
    /// Number of the oldest batch still held.
    pub floor_seq: u64,
    /// Number of the first record of that batch.
    pub floor_record: u64,
    /// Number the next sealed batch will have.
    pub next_seq: u64,
    /// Number the next record will have.
    pub next_record: u64,
    /// Records found by counting what is held, tombstones aside.
    pub counted: u64,
    /// Records that held tombstones stand for.
    pub tombstoned: u64,
}

/// Records that were accepted but not yet sealed into a batch; they will go to telemetry or backfill. (Events
/// are sealed as they are accepted.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Samples.
    pub samples: u64,
}

/// The outbox's size and quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxUse {
    /// Bytes of sealed batches and unsealed records held.
    pub bytes: u64,
    /// Bytes it may hold.
    pub quota_bytes: u64,
}
