//! How runs go on and end: output, the runner's last word, and what is made of it.

use std::fmt;

use ciborium::Value;
use fleet_schemas::{
    CommandId,
    command::{Output, Reason, State},
    limits,
};

use super::{Effects, Ending, OUTPUT_KEPT_BYTES, Origin, Queues, Stage, Time, reason};

/// Longest piece of output in one report: several share a batch.
const PIECE_BYTES: usize = 16 * 1024;
/// What is added to the number of the signal that ended a program, as shells do.
const SIGNALED: i32 = 128;

/// The runner's last word on a run.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// A program ended by itself.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// A program was ended by a signal that was not ours.
    Killed {
        /// The signal.
        signal: i32,
    },
    /// Done, and this is what it gave.
    Done {
        /// At most 32 KiB of CBOR.
        result: Value,
    },
    /// It could not be done.
    Failed(Reason),
    /// The node does not do this; nothing happened.
    Refused(Reason),
    /// It ran longer than this node allows, and was ended.
    Overran,
    /// It ended because it was told to.
    Stopped,
    /// An update is over.
    Updated(Box<fleet_schemas::update::Report>),
}

/// For the log: what it gave is told to whoever asked for it.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exit code {code}"),
            Self::Killed { signal } => write!(f, "killed by signal {signal}"),
            Self::Done { .. } => f.write_str("done"),
            Self::Failed(reason) => write!(f, "failed: {}: {}", reason.code, reason.message),
            Self::Refused(reason) => write!(f, "refused: {}: {}", reason.code, reason.message),
            Self::Overran => f.write_str("ran too long"),
            Self::Stopped => f.write_str("stopped"),
            Self::Updated(report) => write!(f, "{} {}", report.target, report.state.as_str()),
        }
    }
}

/// How a command is over.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    pub(super) state: State,
    pub(super) reason: Option<Reason>,
    pub(super) exit_code: Option<i32>,
    pub(super) result: Option<Value>,
    pub(super) too_late: bool,
}

impl Facts {
    pub(super) fn new(state: State) -> Self {
        Self { state, reason: None, exit_code: None, result: None, too_late: false }
    }

    pub(super) fn because(state: State, code: &str, message: &str, may_have_executed: bool) -> Self {
        Self { reason: Some(reason(code, message, may_have_executed)), ..Self::new(state) }
    }

    /// It ended because it was told to.
    pub(super) fn ended(why: Ending) -> Self {
        match why {
            Ending::Cancel => {
                Self::because(State::Canceled, "canceled", "it was canceled while it ran", true)
            }
            Ending::Timeout => {
                Self::because(State::TimedOut, "timed_out", "it ran longer than it may and was ended", true)
            }
            Ending::Superseded => {
                Self::because(State::Superseded, "superseded", "a newer one took its place", true)
            }
        }
    }

    /// What an update's last word makes of its command.
    fn updated(report: &fleet_schemas::update::Report) -> Self {
        use fleet_schemas::update::State as Update;
        let state = match report.state {
            Update::Confirmed | Update::Skipped => State::Succeeded,
            Update::Rejected => State::Rejected,
            Update::Canceled => State::Canceled,
            Update::Superseded => State::Superseded,
            Update::RolledBack | Update::Failed | Update::TimedOut => State::Failed,
            // No last word.
            Update::Offered
            | Update::Accepted
            | Update::Downloading
            | Update::Downloaded
            | Update::Installing
            | Update::Switching
            | Update::Probation => State::Failed,
        };
        Self { reason: report.reason.clone(), result: Some(report.to_data()), ..Self::new(state) }
    }

    /// It was told to end and nobody said that it did.
    pub(super) fn given_up(why: Ending) -> Self {
        let message = "it did not end when it was told to, and may still run; look at the node";
        match why {
            Ending::Cancel => Self::because(State::Canceled, "canceled", message, true),
            Ending::Timeout => Self::because(State::TimedOut, "timed_out", message, true),
            Ending::Superseded => Self::because(State::Superseded, "superseded", message, true),
        }
    }
}

impl Queues {
    /// More output of a run. What exceeds [`limits::COMMAND_OUTPUT_BYTES`] in all is cut; with `room` unset, everything is.
    pub fn output(&mut self, id: CommandId, bytes: &[u8], room: bool, time: &Time) -> Effects {
        let mut effects = Effects::default();
        let Some(held) = self.held.get_mut(&id) else { return effects };
        let Stage::Running(run) = &mut held.stage else { return effects };
        let live = &mut run.live;
        if live.cut || bytes.is_empty() {
            return effects;
        }
        let most = if room { limits::COMMAND_OUTPUT_BYTES - live.output } else { 0 };
        let (taken, rest) = bytes.split_at(bytes.len().min(most));
        live.cut = !rest.is_empty();
        if held.command.origin == Origin::Node {
            let space = OUTPUT_KEPT_BYTES - live.kept.len();
            live.kept.extend(&taken[..taken.len().min(space)]);
        }
        let mut pieces: Vec<_> = taken.chunks(PIECE_BYTES).collect();
        if pieces.is_empty() {
            pieces.push(&[]);
        }
        let last = pieces.len() - 1;
        for (at, piece) in pieces.into_iter().enumerate() {
            let output =
                Output { from: live.output as u64, bytes: piece.to_vec(), cut: live.cut && at == last };
            live.output += piece.len();
            effects.say_output(&held.command, output, time);
        }
        effects
    }

    /// The runner says that a run ended. `None` when it is not running (any more): the word came too late.
    pub fn finish(&mut self, id: CommandId, end: End, time: &Time) -> Option<Effects> {
        let held = self.held.get(&id).filter(|held| !held.is_local())?;
        let Stage::Running(run) = &held.stage else { return None };
        let ending = run.live.ending.map(|(why, _)| why);
        let mut facts = match (end, ending) {
            (End::Exited { code: 0 }, _) => Facts { exit_code: Some(0), ..Facts::new(State::Succeeded) },
            (End::Exited { code }, _) => Facts { exit_code: Some(code), ..Facts::new(State::Failed) },
            (End::Killed { signal }, _) => {
                let message =
                    format!("it was ended by signal {signal}; look for who sent it, or for a lack of memory");
                let facts = Facts::because(State::Failed, "killed", &message, true);
                Facts { exit_code: Some(SIGNALED + signal), ..facts }
            }
            (End::Done { result }, _) => {
                let result = Some(result).filter(|result| !result.is_null());
                Facts { result, ..Facts::new(State::Succeeded) }
            }
            (End::Failed(reason), _) => Facts { reason: Some(reason), ..Facts::new(State::Failed) },
            (End::Refused(reason), _) => Facts { reason: Some(reason), ..Facts::new(State::Rejected) },
            (End::Updated(report), _) => Facts::updated(&report),
            (End::Overran, _) => Facts::ended(Ending::Timeout),
            (End::Stopped, Some(why)) => Facts::ended(why),
            (End::Stopped, None) => Facts::because(State::Failed, "interrupted", "its runner gave up", true),
        };
        facts.too_late = ending == Some(Ending::Cancel) && facts.state != State::Canceled;
        let mut effects = Effects::default();
        self.end(id, facts, time, &mut effects);
        Some(effects)
    }
}
