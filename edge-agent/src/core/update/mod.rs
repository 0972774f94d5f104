//! One update on its way through the node, whatever it is for: what is done next, what is written before, what is told.
//!
//! Pure: [`Update::decide`] takes an input, a view and a time, changes the value and gives [`Effects`]. The shell writes
//! the value as it then is (with all else that the effects name, in one transaction), tells, and only then does what is
//! next; its outcome comes back as the next input. So every step begins only once it is on disk that it does, and after
//! a power cut [`Input::Begin`] takes up whatever stage was found. What a step does to a skill, the agent, the firmware
//! or a device is a slot's affair (the trait `Slot` in the room `update`): this room knows only their names.

mod check;
mod history;
mod steps;
#[cfg(test)]
mod tests;
pub mod version;
pub mod window;

use std::time::Duration;

use fleet_schemas::{
    CommandId,
    command::Reason,
    update::{Custom, Digest, Order, Report, State},
};
use serde::{Deserialize, Serialize};

pub use history::{History, Release};

use self::window::Gate;
use crate::core::queue::{Limit, reason};

/// How often a step may be broken off by the end of its process before it counts as the reason for that end.
pub const TRIES: u8 = 20;
/// How often a digest may fail on this node before it is quarantined.
pub const FAILURES: u8 = 2;
/// How often committing may fail before the update is undone.
const COMMITS: u32 = 5;
/// How often what the hub shows may not fit together before it is refused for that: about a minute.
const LOOKS: u32 = 5;
/// How often undoing may fail before it is given up: with the pauses between, about half a day.
const UNDOS: u32 = 80;
/// How often the hub may deny bytes that it signed for before that is believed.
const DENIALS: u32 = 8;
/// First pause after something failed that may pass, doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// Longest such pause.
const RETRY_LAST: Duration = Duration::from_secs(600);
/// How often a new release is looked at while it is on trial.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Disk that is left free beside what an update needs: the outbox and the log go on.
pub const RESERVE_BYTES: u64 = 16 * 1024 * 1024;

/// Reasons, as the hub and its users see them. Stable. Those of signed metadata are of
/// [`TufError::code`](crate::core::tuf::TufError::code).
pub mod code {
    /// Other bytes than those that were signed or ordered.
    pub const DIGEST: &str = "digest_mismatch";
    /// More or fewer bytes than were signed.
    pub const LENGTH: &str = "length_mismatch";
    /// Made for another architecture.
    pub const ARCH: &str = "wrong_arch";
    /// Lower than what runs.
    pub const DOWNGRADE: &str = "downgrade";
    /// Of a lower security epoch than one that was confirmed here.
    pub const EPOCH: &str = "epoch";
    /// What runs is older than what it may be updated from.
    pub const MIN_FROM: &str = "min_from";
    /// It failed here too often.
    pub const QUARANTINED: &str = "quarantined";
    /// The disk is too full.
    pub const NO_SPACE: &str = "no_space";
    /// The disk failed.
    pub const DISK: &str = "disk";
    /// The window of the order cannot be read.
    pub const WINDOW: &str = "bad_window";
    /// It runs already.
    pub const RUNS: &str = "already_running";
    /// The hub does not hand out the bytes.
    pub const DENIED: &str = "not_served";
    /// Its time was over.
    pub const TIMED_OUT: &str = "timed_out";
    /// Called off.
    pub const CANCELED: &str = "canceled";
    /// Another took its place.
    pub const SUPERSEDED: &str = "superseded";
    /// A step was begun and broken off again and again.
    pub const RESTARTS: &str = "restarts";
    /// The new release was not healthy in time.
    pub const UNHEALTHY: &str = "unhealthy";
    /// With the new release the hub was not reached, and with the one before it was.
    pub const NO_HUB: &str = "hub_not_reached";
    /// What ran before could not be brought back.
    pub const UNDO: &str = "undo_failed";
    /// Nobody can tell what runs. Of a step that is undone, never of an update.
    pub const UNSURE: &str = "unsure";
}

/// An update that the node has, as it lies on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// The command that ordered it.
    pub command: CommandId,
    /// What was ordered.
    pub order: Order,
    /// How far it is.
    pub stage: Stage,
    /// It must be confirmed by then.
    pub deadline: Limit,
    /// What the signed metadata says of the target, once that was verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<Signed>,
    /// What ran before, if anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Release>,
    /// How often this stage was begun and broken off by the end of the process.
    #[serde(default)]
    pub tries: u8,
    // Failures in a row in this stage, and how often the hub denied the bytes: known to this process alone.
    #[serde(skip)]
    failures: u32,
    #[serde(skip)]
    denials: u32,
}

/// What the signed metadata says of the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// Bytes that it has.
    pub length: u64,
    /// The rest.
    pub custom: Custom,
}

/// How far an update is. Finer than [`State`]: going back is written down before it is done, too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Its signatures are to be verified.
    Accepted,
    /// Bytes are to be fetched.
    Downloading,
    /// They are there; it waits for its window.
    Downloaded,
    /// It is to be put beside what runs.
    Installing,
    /// It is to run.
    Switching,
    /// It runs, on trial.
    Probation(Trial),
    /// It passed; what makes that final is to be done.
    Committing,
    /// What ran before is to run again; then this is how it ends.
    Undoing(Verdict),
    /// What ran before runs again; whether that reaches the hub is to be seen.
    Judging(Verdict, Trial),
    /// What was put on disk is to be removed; then this is how it ends.
    Discarding(Verdict),
    /// It is over; that is to be told.
    Over(Verdict),
}

/// A trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// When it began.
    pub since: Limit,
    /// It lasts until then.
    pub until: Limit,
    /// The hub must have been reached by then.
    pub reach: Limit,
    /// How long it lasts, in milliseconds.
    pub span_ms: u64,
    /// How long the hub is waited for, the trial included, in milliseconds.
    pub reach_ms: u64,
}

/// How an update ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// A terminal state.
    pub state: State,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// What the machine hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// It was taken in, or found on disk by a process that has just begun.
    Begin,
    /// The wait is over.
    Tick,
    /// It is not wanted any more.
    Stop(Why),
    /// The outcome of [`Step::Verify`].
    Verified(Result<Found, Refusal>),
    /// The outcome of [`Step::Download`].
    Arrived(Arrival),
    /// The outcome of [`Step::Install`].
    Installed(Result<(), Trouble>),
    /// The outcome of [`Step::Switch`].
    Switched(Result<Switched, Trouble>),
    /// The outcome of [`Step::Probe`].
    Probed(Health),
    /// The outcome of [`Step::Undo`].
    Undone(Result<Switched, Trouble>),
    /// The outcome of [`Step::Commit`].
    Committed(Result<(), Trouble>),
    /// [`Step::Discard`] is done, as far as it could be.
    Discarded,
}

/// Why an update is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It was called off.
    Cancel,
    /// Its time is over.
    Timeout,
    /// A newer one is there.
    Superseded,
}

/// A target that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The digest in the signed metadata.
    pub digest: Digest,
    /// The rest of what it says.
    pub signed: Signed,
    /// What runs now.
    pub runs: Option<Release>,
    /// Bytes of disk that it will need.
    pub needs: u64,
}

/// A target that was not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It never will be.
    Never(Trouble),
    /// It may be later, whenever that is: the hub was not reached.
    Later(String),
    /// It may be soon: what the hub shows does not fit together yet, or is out of date. If it stays so, that is how the
    /// update ends.
    Soon(Trouble),
}

/// How a download went on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// All of it is on disk and has the digest.
    Whole,
    /// The window closed, or the budget is used up: what came is kept.
    Paused,
    /// The connection broke or went silent: what came is kept.
    Broken {
        /// What went wrong.
        why: String,
        /// Whether bytes came before.
        moved: bool,
    },
    /// The hub does not hand it out.
    Denied(String),
    /// It can never be right, or there is no place for it.
    Failed(Trouble),
}

/// A step could not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// A stable word, at most 63 bytes: one of [`code`], or a word of the slot's own.
    pub code: String,
    /// What went wrong, and what to do about it.
    pub message: String,
    /// Whether trying again may help; then it is tried again for a while.
    pub passing: bool,
}

/// How far a switch, or the way back, came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switched {
    /// It is done.
    Done,
    /// This process, or the machine, will end for it: the next start goes on. If it has not ended after a while, the
    /// step is done again.
    Away,
}

/// How a release on trial is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Well.
    Well,
    /// Not well yet: that is a failure only when the trial ends.
    NotYet(String),
    /// It failed: what ran before is to run again at once.
    Sick(Trouble),
}

/// What the machine sees beside the update.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Of this name on this node.
    pub history: &'a History,
    /// How often the digest has failed here.
    pub failures: u8,
    /// The machine's architecture, as the birth says it.
    pub arch: &'a str,
    /// Whether downloading and switching may begin.
    pub gate: Gate,
    /// Bytes that are free for it; absent: nobody knows.
    pub free: Option<u64>,
    /// Time since boot at which this process last heard of the hub that it stored something.
    pub heard: Option<Duration>,
    /// How long a trial lasts when the order does not say.
    pub probation: Duration,
    /// How long after the trial the hub is waited for.
    pub reach: Duration,
}

/// What follows.
#[derive(Debug, Clone, PartialEq)]
pub struct Effects {
    /// Whether the update is to be written, and with it all below, before anything else.
    pub write: bool,
    /// The history, changed.
    pub history: Option<History>,
    /// Whether its digest has failed here once more.
    pub failed: bool,
    /// What runs from now on, if that changed.
    pub runs: Option<Runs>,
    /// Whether its state is to be told; after what runs, if that changed.
    pub tell: bool,
    /// What is to be done then.
    pub next: Next,
}

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// What was ordered.
    New,
    /// What ran before.
    Before,
    /// Nobody knows.
    Unknown,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A step; its outcome is the next input.
    Do(Step),
    /// Nothing: [`Input::Tick`] comes after this long.
    Wait(Duration),
    /// The same after a failure that others may have as well: somewhere between half of this and all of it.
    Again(Duration),
    /// Nothing more: it is over.
    Nothing,
}

/// A step. Each may be done again after the process or the machine ended in the middle of it, or just after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Fetch the metadata and verify what it says of the target.
    Verify,
    /// Fetch bytes.
    Download,
    /// Put it beside what runs.
    Install,
    /// Let it run.
    Switch,
    /// Look how it is.
    Probe,
    /// Make it final.
    Commit,
    /// Let run what ran before.
    Undo,
    /// Remove what was put on disk.
    Discard,
}

impl Trouble {
    /// One that trying again does not help.
    #[must_use]
    pub fn lasting(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), passing: false }
    }

    /// One that may pass.
    #[must_use]
    pub fn passing(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), passing: true }
    }

    fn reason(&self) -> Reason {
        reason(&self.code, self.message.as_str(), false)
    }
}

impl Verdict {
    pub(super) fn new(state: State, code: &str, message: impl Into<String>) -> Self {
        Self { state, reason: Some(reason(code, message, false)) }
    }

    pub(super) fn of(state: State, trouble: &Trouble) -> Self {
        Self { state, reason: Some(trouble.reason()) }
    }

    /// The same where nobody knows whether it was brought back, and so nobody says that it was.
    pub(super) fn unsure(mut self, message: &str) -> Self {
        if self.state == State::RolledBack {
            self.state = State::Failed;
        }
        if let Some(reason) = &mut self.reason {
            reason.message = format!("{}; {message}", reason.message);
        }
        self.in_doubt()
    }

    /// The same where what was ordered may run, now or later.
    pub(super) fn in_doubt(mut self) -> Self {
        if let Some(reason) = &mut self.reason {
            reason.may_have_executed = true;
        }
        self
    }

    /// The code of its reason.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.reason.as_ref().map(|reason| reason.code.as_str())
    }
}

impl Update {
    /// One that was just ordered.
    #[must_use]
    pub fn new(command: CommandId, order: Order, deadline: Limit) -> Self {
        Self {
            command,
            order,
            stage: Stage::Accepted,
            deadline,
            signed: None,
            from: None,
            tries: 0,
            failures: 0,
            denials: 0,
        }
    }

    /// The state that it has towards the hub.
    #[must_use]
    pub fn state(&self) -> State {
        match &self.stage {
            Stage::Accepted => State::Accepted,
            Stage::Downloading => State::Downloading,
            Stage::Downloaded => State::Downloaded,
            Stage::Installing | Stage::Discarding(_) => State::Installing,
            Stage::Switching => State::Switching,
            Stage::Probation(_) | Stage::Committing | Stage::Undoing(_) | Stage::Judging(..) => {
                State::Probation
            }
            Stage::Over(verdict) => verdict.state,
        }
    }

    /// What is said of it; `bytes` are those on disk.
    #[must_use]
    pub fn report(&self, bytes: Option<u64>) -> Report {
        let Order { target, digest, rollout, device, .. } = self.order.clone();
        let reason = match &self.stage {
            Stage::Over(verdict) => verdict.reason.clone(),
            _ => None,
        };
        Report {
            command: self.command,
            target,
            digest,
            rollout,
            device,
            state: self.state(),
            reason,
            bytes,
            total: self.signed.as_ref().map(|signed| signed.length),
            from: self.from.as_ref().map(|from| from.digest),
        }
    }

    /// What it brings, as the history remembers it.
    #[must_use]
    pub fn release(&self) -> Release {
        Release {
            version: self.order.target.version.clone(),
            digest: self.order.digest,
            epoch: self.signed.as_ref().map_or(0, |signed| signed.custom.epoch),
        }
    }
}
