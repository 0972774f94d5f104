//! What a rollout is: the release, the terms, where each wave and each node stands. Rows of the store are made of these.

use std::collections::BTreeMap;

use fleet_schemas::{
    CommandId, DeviceId, MetricName,
    command::Reason,
    update::{Custom, Digest, Kind, State as Said, Target, Window},
};
use serde::{Deserialize, Serialize};

use crate::core::fleet::NodeNo;

/// A rollout's name: `NAME-VERSION-N`, and `…-back` for the way back of another.
pub type Id = MetricName;

/// What is updated: a node, and the device behind it (that of the node itself for all kinds but `device-firmware`).
pub type Seat = (NodeNo, DeviceId);

/// The bytes for one architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Their SHA-256.
    pub digest: Digest,
    /// How many there are.
    pub length: u64,
    /// What the signed metadata says of them.
    #[serde(default)]
    pub custom: Custom,
}

/// A version of something, with its bytes by architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Its name.
    pub name: MetricName,
    /// Its version.
    pub version: MetricName,
    /// What it is for.
    pub kind: Kind,
    /// By architecture, as births have it, or `any`.
    pub targets: BTreeMap<MetricName, Artifact>,
}

/// How large a wave is, counted from the first node of the rollout: waves `1,5%,100%` end at the first node, at one
/// node in twenty, and at the last.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// So many nodes.
    Nodes(u32),
    /// Such a part of all, in percent: above 0, at most 100.
    Percent(f64),
}

/// How many nodes may be down through the rollout at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaxUnavailable {
    /// So many.
    pub nodes: u32,
    /// Of each site, instead of all together.
    pub per_site: bool,
}

/// What happens when too many nodes fail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// No node is told any more until an operator says so.
    #[default]
    Pause,
    /// It is over.
    Stop,
    /// It is over, and every node that has the release goes back.
    Rollback,
}

/// Whether somebody has to approve before the first node is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// No.
    #[default]
    No,
    /// Any operator who may make rollouts.
    Any,
    /// Another one than who made it.
    Other,
}

/// The terms of a rollout. They never change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// The waves, growing; the last is all nodes.
    pub waves: Vec<Size>,
    /// How long a wave is watched after its last node, in milliseconds.
    pub soak_ms: i64,
    /// The part of the nodes that may fail, 0 to 1: of each wave, counting those that came to an end.
    pub max_failures: f64,
    /// So many nodes of a wave come to an end before the part that failed counts; of a smaller wave, all.
    pub min_executed: u32,
    /// How many may be down at once; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<MaxUnavailable>,
    /// How many nodes are told in a minute; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// When nodes may download and switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Conditions over the telemetry of a wave's nodes that hold before the next wave begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<String>,
    /// What happens when too many fail.
    pub on_failure: OnFailure,
    /// Who has to approve.
    pub approval: Approval,
    /// How long the whole may take from its making, in milliseconds.
    pub deadline_ms: i64,
    /// How long one node may take from being told, in milliseconds.
    pub timeout_ms: i64,
    /// How long a node may be offline in the middle of its update, in milliseconds.
    pub offline_ms: i64,
    /// How long the release is on trial at a node, in milliseconds; absent: the node's own setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probation_ms: Option<i64>,
    /// Whether a node may keep the release although it cannot reach the hub.
    pub offline_ok: bool,
    /// The part of a wave, 0 to 1, that may be offline when its turn comes without counting as failed.
    pub allowance: f64,
}

/// What a rollout does to whom, as it was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Its name.
    pub id: Id,
    /// Its place among all rollouts: grows.
    pub no: u64,
    /// The release; of a way back, the one that is left.
    pub release: Release,
    /// What nodes are told to run: the release's targets, or, on a way back, what they ran before.
    pub goals: Vec<(Target, Artifact)>,
    /// Other signed releases of the name, by digest: what a node can go back to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub before: BTreeMap<Digest, (Target, Artifact)>,
    /// The selector that chose the nodes, where one did: nodes that match it later join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The terms.
    pub terms: Terms,
    /// Who made it, such as `operator NAME`.
    pub by: String,
    /// When, hub time, Unix milliseconds.
    pub created_ms: i64,
    /// The rollout that this one undoes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_of: Option<Id>,
}

/// Where a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nobody approved it yet.
    WaitingApproval,
    /// Nodes are told, wave by wave.
    Running,
    /// No further node is told; those that were go on.
    Paused,
    /// Another rollout takes its nodes back.
    RollingBack,
    /// Every wave passed.
    Done,
    /// Called off; nodes that have the release keep it.
    Stopped,
    /// All nodes that had the release went back.
    RolledBack,
    /// Its deadline passed before the waves did, or nodes were to go back and did not.
    Failed,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::WaitingApproval,
        Self::Running,
        Self::Paused,
        Self::RollingBack,
        Self::Done,
        Self::Stopped,
        Self::RolledBack,
        Self::Failed,
    ];

    /// Whether it never changes again.
    #[must_use]
    pub fn is_final(self) -> bool {
        self >= Self::Done
    }

    /// The word in REST, CLI and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WaitingApproval => "waiting_approval",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::RollingBack => "rolling_back",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
        }
    }
}

/// Where a wave stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The one before has not passed.
    Waiting,
    /// Its nodes are told, and report.
    Running,
    /// All came to an end; it is watched.
    Soaking,
    /// Its gates are asked.
    Gating,
    /// The next may begin.
    Passed,
    /// It does not go on.
    Halted,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Waiting, Self::Running, Self::Soaking, Self::Gating, Self::Passed, Self::Halted];

    /// The word in REST and CLI.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Soaking => "soaking",
            Self::Gating => "gating",
            Self::Passed => "passed",
            Self::Halted => "halted",
        }
    }
}

/// Where a seat of a rollout stands: what its node says of the update, and what the hub knows beyond that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stand {
    /// Not told yet.
    Waiting,
    /// As the node says.
    Said(Said),
    /// It went back because neither release reached the hub: nothing is proven against the new one.
    Inconclusive,
    /// It was confirmed, and later ran something else.
    Drifted,
}

impl Stand {
    /// The word in REST, CLI and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Said(said) => said.as_str(),
            Self::Inconclusive => "inconclusive",
            Self::Drifted => "drifted",
        }
    }

    /// Whether the node was told and has not come to an end.
    #[must_use]
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Said(said) if !said.is_terminal())
    }

    /// Whether it counts as failed.
    #[must_use]
    pub fn is_bad(self) -> bool {
        matches!(
            self,
            Self::Said(Said::RolledBack | Said::Failed | Said::TimedOut | Said::Rejected) | Self::Drifted
        )
    }
}

/// A seat of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// The wave that counts it; the last one is for latecomers.
    pub wave: u16,
    /// Its turn within the wave.
    pub turn: u32,
    /// Its site when it was planned, by its place among the sites of the plan.
    pub site: u16,
    /// What it is to run, by its place among the goals; none: nothing fits.
    pub goal: Option<u16>,
    /// Where it stands.
    pub stand: Stand,
    /// Since when, hub time, Unix milliseconds.
    pub since_ms: i64,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Box<Reason>>,
    /// Whether its turn comes once more, in the trailing wave.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// The command that tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandId>,
    /// When it was told, hub time, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_ms: Option<i64>,
    /// It says that the release is confirmed, since then; whether it runs has to be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_ms: Option<i64>,
    /// Offline in the middle of its update since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline_ms: Option<i64>,
    /// It came to an end while it was not online: it is down through the rollout until it is back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub down: bool,
    /// Its event of the confirmation is here: what events say of what runs is newer than that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub settled: bool,
    /// What ran before it was told: version and digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<(MetricName, Digest)>,
    /// Bytes that are on its disk, and all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<(u64, u64)>,
}

impl Member {
    /// Whose turn is still to come.
    #[must_use]
    pub fn new(wave: u16, turn: u32, site: u16, goal: Option<u16>, now_ms: i64) -> Self {
        Self {
            wave,
            turn,
            site,
            goal,
            stand: Stand::Waiting,
            since_ms: now_ms,
            reason: None,
            again: false,
            command: None,
            told_ms: None,
            claimed_ms: None,
            offline_ms: None,
            down: false,
            settled: false,
            from: None,
            bytes: None,
        }
    }
}

/// Where a wave stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wave {
    /// Such as `5%`, or `trailing`.
    pub name: String,
    /// Where it stands.
    pub stage: Stage,
    /// Since when, hub time, Unix milliseconds.
    pub since_ms: i64,
    /// Why, where there is more to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Nodes that were offline when their turn came, and wait for the trailing wave.
    #[serde(default)]
    pub moved: u32,
    /// Failures that an operator has seen and gone on from.
    #[serde(default)]
    pub forgiven: u32,
    /// Seats by where they stand.
    #[serde(default)]
    pub tally: BTreeMap<Stand, u32>,
}

impl Wave {
    /// How many stand so.
    #[must_use]
    pub fn of(&self, stand: Stand) -> u32 {
        self.tally.get(&stand).copied().unwrap_or(0)
    }

    /// How many failed.
    #[must_use]
    pub fn bad(&self) -> u32 {
        self.tally.iter().filter(|(stand, _)| stand.is_bad()).map(|(_, count)| count).sum()
    }

    /// How many were confirmed.
    #[must_use]
    pub fn confirmed(&self) -> u32 {
        self.of(Stand::Said(Said::Confirmed))
    }

    /// How many it has.
    #[must_use]
    pub fn nodes(&self) -> u32 {
        self.tally.values().sum()
    }
}

/// Where a rollout stands; its row in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// What was asked for.
    pub spec: Spec,
    /// Where it stands.
    pub state: State,
    /// Since when, hub time, Unix milliseconds.
    pub since_ms: i64,
    /// Why, in a sentence.
    pub reason: String,
    /// Who approved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
    /// Its waves; the last is for latecomers.
    pub waves: Vec<Wave>,
    /// Sites of its seats; the first has no name.
    pub sites: Vec<String>,
    /// When the next node may be told, hub time, Unix microseconds.
    #[serde(default)]
    pub next_us: i64,
    /// The rollout that takes its nodes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<Id>,
}

impl Head {
    /// When its time ends, hub time, Unix milliseconds.
    #[must_use]
    pub fn deadline_ms(&self) -> i64 {
        self.spec.created_ms.saturating_add(self.spec.terms.deadline_ms)
    }

    /// Seats by where they stand, over all waves.
    #[must_use]
    pub fn tally(&self) -> BTreeMap<Stand, u32> {
        let mut sum = BTreeMap::new();
        for (stand, count) in self.waves.iter().flat_map(|wave| &wave.tally).filter(|(_, count)| **count > 0)
        {
            *sum.entry(*stand).or_default() += count;
        }
        sum
    }
}

/// A release that failed at a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strikes {
    /// How often.
    pub count: u32,
    /// When last, hub time, Unix milliseconds.
    pub at_ms: i64,
    /// Why last.
    pub reason: String,
}

/// So often a release may fail at a node; then that node is not told to run it again.
pub const STRIKES: u32 = 2;

impl Terms {
    /// How long one node may take at most, in milliseconds: within a window of hours it may have to wait for a day.
    #[must_use]
    pub fn node_ms(&self) -> i64 {
        let waits = self.window.as_ref().is_some_and(|window| window.hours.is_some());
        let window = if waits { 24 * 3_600_000 } else { 0 };
        self.timeout_ms.saturating_add(self.probation_ms.unwrap_or(0)).saturating_add(window)
    }
}
