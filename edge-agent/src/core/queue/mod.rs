//! The node's command queues: what is accepted, what begins, what ends and what is remembered. DESIGN section 6.
//!
//! Pure: a view, an input and a time in, [`Effects`] out. The shell writes them in one transaction, then sends and acts.
//! Knows no program, file or socket; whether a kind and its parameters are allowed is asked before and comes in as an
//! argument. After an effect could not be written the value is dead, like the uplink that owns it.

mod cancel;
mod effects;
mod end;
mod local;
mod order;
mod start;
mod window;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ciborium::Value;
use fleet_schemas::{
    CommandId, DeviceId, MetricName, cbor,
    command::{Reason, State},
};
use serde::{Deserialize, Serialize};

pub use effects::{Act, Change, Effects, Note, reason};
pub use end::End;
pub use local::{LocalReport, Take};
pub use order::{Ask, View};
pub use window::{Limit, Passed, Time};

/// How long the end of an update that was told to stop is waited for: once it has switched, it is seen to its end.
pub const UPDATE_PATIENCE: Duration = Duration::from_secs(86_400);
/// Queues that run at a time: a node has one to four cores.
pub const PARALLEL: usize = 8;
/// Bytes of parameters that all commands held may have together: a node may have 64 MB of memory.
pub const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// How often an idempotent command that was broken off begins again: one that brings the machine down must not do so for
/// ever.
pub const ATTEMPTS: u8 = 3;
/// How long the end of a command that was told to stop is waited for before its queue goes on without it.
pub const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Longest that a command may wait to begin, or may run.
pub const LIFE: Duration = Duration::from_secs(7 * 86_400);
/// Results that are remembered, at about 200 bytes each but for the newest.
pub const REMEMBERED: u64 = 100_000;
/// The newest of them, which are remembered with what they gave and printed: 8 MB at most.
pub const REMEMBERED_WHOLE: u64 = 1_000;
/// How long a result is remembered, in time that the agent runs.
pub const REMEMBER: Duration = Duration::from_secs(30 * 86_400);
/// How long a result of a command that must not run twice is remembered even when there are too many: a day longer than
/// any command lives.
pub const REMEMBER_AT_LEAST: Duration = Duration::from_secs(8 * 86_400);
/// Largest result value that is remembered, in bytes of CBOR; a larger one is reported and not kept.
pub const RESULT_BYTES: usize = 4 * 1024;
/// Output of a command of the node itself that is kept with its result, in bytes: nobody else has it.
pub const OUTPUT_KEPT_BYTES: usize = 4 * 1024;

/// The kind whose effect is that the agent starts again: the next start completes it.
pub const RESTART: &str = "restart";
/// The kind by which the node leaves for another hub. What it did is on disk, so that a start of the agent goes on.
pub const MOVE: &str = "move";
/// The kind that an app on the node takes and does.
pub const LOCAL: &str = "local";
/// The kind that the updater does. It keeps its own account on disk: a start of the agent goes on where it was, as often
/// as that takes, and what runs gives way to a newer order with the same `supersedes`, as far as it still can.
pub const UPDATE: &str = fleet_schemas::update::COMMAND;
/// The kind that a device behind the node does; its parameters name it under `device`.
pub const DEVICE: &str = "device";

/// Who asked for a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The hub.
    Hub,
    /// A program on the node, over the edge API: the hub hears of its end by an event.
    Node,
}

/// What was asked; it never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Its id.
    pub id: CommandId,
    /// Its place: within a queue, the higher priority goes first and then the smaller number.
    pub no: u64,
    /// Its queue.
    pub queue: MetricName,
    /// Higher goes first.
    pub priority: i8,
    /// What to do.
    pub kind: MetricName,
    /// With what.
    pub params: Value,
    /// Most milliseconds that it may run.
    pub timeout_ms: u64,
    /// Whether doing it twice is the same as doing it once.
    pub idempotent: bool,
    /// Waiting commands with the same key give way to the newest.
    pub supersedes: Option<MetricName>,
    /// Who asked.
    pub origin: Origin,
    /// It must not begin before.
    pub opens: Option<Limit>,
    /// It must not begin any more.
    pub closes: Limit,
}

/// A command that is not over, as it lies on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// What was asked.
    pub command: Command,
    /// Counts the node's commands in the order in which they came.
    pub arrival: u64,
    /// Where it stands.
    pub stage: Stage,
}

/// Where a command stands that is not over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// For its turn. `begun` counts how often it began and was broken off; then it is idempotent.
    Waiting {
        /// How often it began.
        begun: u8,
    },
    /// Begun: this is written before it has any effect.
    Running(Run),
}

/// One run of a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// How often it began, this time included.
    pub begun: u8,
    /// When it has to be over.
    pub until: Limit,
    /// How long the app that took it has it; absent unless of the kind `local`.
    pub lease: Option<Lease>,
    /// What only this process knows of it.
    #[serde(skip)]
    pub(super) live: Live,
}

/// For how long an app has a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Milliseconds that it asked for.
    pub span_ms: u64,
    /// Until when; extending it moves it in memory alone, and a start of the agent gives the span anew.
    pub until: Limit,
}

/// What a process knows of a run beside what lies on disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Live {
    // Found on disk: whoever ran it is gone.
    found: bool,
    // Told to stop: why, and when that is given up.
    ending: Option<(Ending, Duration)>,
    // A cancel that came too late was answered.
    told_late: bool,
    // Output bytes so far, and whether more came than is kept.
    output: usize,
    cut: bool,
    kept: Vec<u8>,
}

/// Why a run is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It was canceled.
    Cancel,
    /// It took too long.
    Timeout,
    /// A newer one wants its place.
    Superseded,
}

/// A command that is over, as it is remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Over {
    /// Its id.
    pub id: CommandId,
    /// What was to be done; absent when it was canceled before it came.
    pub kind: Option<MetricName>,
    /// How it ended.
    pub state: State,
    /// When, by the agent's clock, Unix milliseconds.
    pub time_ms: i64,
    /// About when by trusted time, Unix milliseconds.
    pub true_ms: Option<i64>,
    /// How long the agent had run by then, all its starts together, in milliseconds. Never more than the time that
    /// passed, whatever clocks said: by this it is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lived_ms: Option<u64>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The exit code of a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// What it gave, if it is small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// The first bytes of its output, of a command of the node itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "serde_bytes")]
    pub output: Vec<u8>,
    /// Who asked.
    pub origin: Origin,
    /// A cancel that came too late was answered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub too_late: bool,
    /// Whether it may be forgotten early, because running it once more would do no harm or nobody can ask for it again.
    pub harmless: bool,
    /// Counts results in the order in which they came.
    pub order: u64,
}

/// Everything that is held, and how many results are remembered.
#[derive(Debug, Clone, Default)]
pub struct Queues {
    held: BTreeMap<CommandId, Held>,
    bytes: usize,
    next_arrival: u64,
    next_order: u64,
    // Something changed since the last look for what may begin.
    stirred: bool,
    due: Option<Duration>,
    // Devices that hear commands now.
    hearing: BTreeSet<DeviceId>,
}

impl Over {
    /// What is remembered of it in the long run: that it is over and how it ended. `None`: nothing else is.
    #[must_use]
    pub fn thinned(&self) -> Option<Self> {
        let is_thin = self.result.is_none() && self.output.is_empty();
        (!is_thin).then(|| Self { result: None, output: Vec::new(), ..self.clone() })
    }
}

impl Queues {
    /// What was found on disk. Runs among it are settled by the next [`Queues::advance`], unless they are
    /// [claimed](Queues::claim) before. `next_order` is above the order of every result.
    #[must_use]
    pub fn found(held: Vec<Held>, next_order: u64) -> Self {
        let mut queues = Self { next_arrival: 1, next_order, stirred: !held.is_empty(), ..Self::default() };
        for mut one in held {
            if let Stage::Running(run) = &mut one.stage {
                run.live.found = true;
            }
            queues.next_arrival = queues.next_arrival.max(one.arrival + 1);
            queues.bytes += size(&one.command);
            queues.held.insert(one.command.id, one);
        }
        queues
    }

    /// These runs go on although the file was opened anew: this process runs them.
    pub fn claim(&mut self, alive: &BTreeSet<CommandId>) {
        for id in alive {
            if let Some(Held { stage: Stage::Running(run), .. }) = self.held.get_mut(id) {
                run.live.found = false;
            }
        }
    }

    /// A device hears commands from now on, or does not any more: those for it begin only while it does.
    pub fn hears(&mut self, device: &DeviceId, hears: bool) {
        if hears {
            self.stirred |= self.hearing.insert(device.clone()) && !self.held.is_empty();
        } else {
            self.hearing.remove(device);
        }
    }

    /// What is held, by id.
    pub fn held(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }

    /// One that is held.
    #[must_use]
    pub fn get(&self, id: CommandId) -> Option<&Held> {
        self.held.get(&id)
    }

    /// Time since boot at which [`Queues::advance`] has something to do.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        if self.stirred { Some(Duration::ZERO) } else { self.due }
    }

    /// Trusted time became known, or changed: what waited for it is looked at again.
    pub fn stir(&mut self) {
        self.stirred |= !self.held.is_empty();
    }

    fn hold(&mut self, held: Held, effects: &mut Effects) {
        effects.writes.push(Change::Hold(Box::new(held.clone())));
        self.bytes += size(&held.command);
        self.stirred = true;
        if let Some(old) = self.held.insert(held.command.id, held) {
            self.bytes -= size(&old.command);
        }
    }
}

impl Held {
    /// The state that it has towards whoever asked.
    #[must_use]
    pub fn state(&self) -> State {
        match &self.stage {
            Stage::Waiting { begun: 0 } => State::Accepted,
            Stage::Waiting { .. } | Stage::Running(_) => State::Running,
        }
    }

    /// Whether the updater does it.
    #[must_use]
    pub fn is_update(&self) -> bool {
        self.command.kind.as_str() == UPDATE
    }

    /// Whether an app on the node does it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.command.kind.as_str() == LOCAL
    }
}

/// The device that a command is for, if it is for one.
#[must_use]
pub fn device_of(command: &Command) -> Option<&str> {
    device_in(&command.kind, &command.params)
}

/// The same of its kind and its parameters.
#[must_use]
pub fn device_in<'a>(kind: &MetricName, params: &'a Value) -> Option<&'a str> {
    let params = params.as_map().filter(|_| kind.as_str() == DEVICE)?;
    params.iter().find(|(key, _)| key.as_text() == Some("device"))?.1.as_text()
}

fn size(command: &Command) -> usize {
    cbor::encode(&command.params).len()
}
