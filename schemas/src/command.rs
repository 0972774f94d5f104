//! Commands: what the hub asks of a node (`down/command`), what the node reports (body of the command lane), and the
//! states an execution goes through.
//!
//! Both directions are level-triggered. An [`Orders`] message lists, for every queue that has any, what the hub has not
//! yet heard accepted, oldest first and without a gap: a lost or late message loses nothing and changes no order. What
//! the node reports travels on the command lane, so it arrives once and in order.

use ciborium::Value;
use serde::{Deserialize, Serialize};

use crate::{
    cbor::{self, DecodeError},
    id::{CommandId, MetricName, SessionId, StoreId},
    limits,
};

/// The queue of a command that names none.
pub const DEFAULT_QUEUE: &str = "main";

/// Where one execution (a command at one node) stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits at the hub.
    Queued,
    /// Said to the node at least once; whether it arrived is not known.
    Sent,
    /// On the node's disk.
    Accepted,
    /// Begun.
    Running,
    /// Done.
    Succeeded,
    /// Done and wrong, or lost on the way of doing it.
    Failed,
    /// Ran longer than it may and was ended.
    TimedOut,
    /// The node does not do this.
    Rejected,
    /// Taken back in time.
    Canceled,
    /// Did not begin in time.
    Expired,
    /// A newer command took its place before it began.
    Superseded,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Queued,
        Self::Sent,
        Self::Accepted,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::TimedOut,
        Self::Rejected,
        Self::Canceled,
        Self::Expired,
        Self::Superseded,
    ];

    /// Whether it is over: such a state never changes.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// Whether an execution may go from here to `next`: forwards only, and nowhere from a terminal state.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        !self.is_terminal() && next > self
    }

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sent => "sent",
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Rejected => "rejected",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
        }
    }
}

/// What the hub wants done, and what it wants no more. Latest wins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Orders {
    /// Payload version.
    pub v: u16,
    /// Which life of the hub's store speaks.
    pub store_id: StoreId,
    /// The session it is meant for: an agent ignores what was meant for an earlier one.
    pub session: SessionId,
    /// The hub's wall clock, Unix milliseconds.
    pub hub_ms: i64,
    /// Commands that the hub has not heard accepted: per queue a run without a gap, in the order in which they are to
    /// run; then those of them whose time is over, with nothing left, until the node has said what became of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offers: Vec<Offer>,
    /// Commands to cancel, listed until each has reported a terminal state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cancels: Vec<CommandId>,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Its id: an agent that knows it answers and does not run it again.
    pub id: CommandId,
    /// Its place among the node's commands: grows with every command of the node. Within a queue, the higher
    /// priority goes first and then the smaller number.
    pub no: u64,
    /// The queue: one command of it runs at a time. 1 to 63 bytes.
    pub queue: MetricName,
    /// Higher goes first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i8,
    /// What to do, such as `exec` or `ping`. 1 to 63 bytes.
    pub kind: MetricName,
    /// With what; at most 64 KiB of CBOR.
    #[serde(default = "nothing", skip_serializing_if = "Value::is_null")]
    pub params: Value,
    /// Milliseconds from the sending of this message until it may not begin any more. The time left, not the
    /// deadline: a node may have no clock. 0: it may not begin, and one that the agent does not know has expired.
    pub left_ms: u64,
    /// Milliseconds from the sending of this message before which it must not begin.
    #[serde(default, skip_serializing_if = "is_now")]
    pub delay_ms: u64,
    /// Most milliseconds that it may run.
    pub timeout_ms: u64,
    /// Whether doing it twice is the same as doing it once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub idempotent: bool,
    /// A command with the same key that waits at the node gives way to this one. 1 to 63 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supersedes: Option<MetricName>,
    /// Reserved for a signature over the command; ignored by this version.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes")]
    pub signature: Option<Vec<u8>>,
}

/// What a node says of one execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The command.
    pub id: CommandId,
    /// The state it has now: [`State::Accepted`] or later.
    pub state: State,
    /// When, by the agent's clock, Unix milliseconds.
    pub time_ms: i64,
    /// Why, where there is more to say than the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The exit code of a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// More of its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Output>,
    /// What it gave, for kinds that give something; at most 32 KiB of CBOR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// A cancel came too late to be heeded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub too_late: bool,
}

/// Why an execution is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A stable word, such as `not_allowed`, `unknown_kind`, `bad_params`, `agent_state_lost`.
    pub code: String,
    /// A sentence that says what to do.
    pub message: String,
    /// Whether it may have been done, wholly or in part, although nobody can tell.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_have_executed: bool,
}

/// A piece of the output of a program, standard output and standard error as they came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Bytes of output before it.
    pub from: u64,
    /// The bytes; together at most 64 KiB of one execution.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// There was more, which was not kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

fn nothing() -> Value {
    Value::Null
}

fn is_zero(priority: &i8) -> bool {
    *priority == 0
}

fn is_now(delay_ms: &u64) -> bool {
    *delay_ms == 0
}

impl Offer {
    /// Checks the limits.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), &'static str> {
        if cbor::encode(&self.params).len() > limits::COMMAND_PARAMS_BYTES {
            return Err("params are larger than 65536 bytes");
        }
        Ok(())
    }
}

impl Report {
    /// Checks the limits.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.state < State::Accepted {
            return Err("state is one that only the hub gives");
        }
        if self.output.as_ref().is_some_and(|output| output.bytes.len() > limits::COMMAND_OUTPUT_BYTES) {
            return Err("output is longer than 65536 bytes");
        }
        if self.result.as_ref().is_some_and(|result| cbor::encode(result).len() > limits::EVENT_DATA_BYTES) {
            return Err("result is larger than 32768 bytes");
        }
        if self.reason.as_ref().is_some_and(|reason| {
            reason.code.len() > limits::LABEL_BYTES || reason.message.len() > limits::EVENT_MESSAGE_BYTES
        }) {
            return Err("reason is longer than 63 bytes of code and 4096 of message");
        }
        Ok(())
    }
}

/// Reads the body of a command batch: an array of reports.
///
/// # Errors
/// [`DecodeError`], also when a report breaks a limit.
pub fn decode(body: &[u8]) -> Result<Vec<Report>, DecodeError> {
    let reports: Vec<Report> = cbor::decode(body)?;
    for report in &reports {
        report.check().map_err(|what| DecodeError::Shape(what.to_owned()))?;
    }
    Ok(reports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_go_forwards_and_end_once() {
        for from in State::ALL {
            for to in State::ALL {
                let allowed = from.may_become(to);
                assert!(!(allowed && to.may_become(from)), "{from:?} {to:?}");
                assert!(!(allowed && from.is_terminal()), "{from:?} {to:?}");
            }
        }
        assert!(State::Queued.may_become(State::Expired) && State::Sent.may_become(State::Running));
        assert!(!State::Running.may_become(State::Accepted) && !State::Failed.may_become(State::Succeeded));
        let words: std::collections::BTreeSet<_> = State::ALL.map(State::as_str).into();
        assert_eq!(words.len(), State::ALL.len());
    }

    #[test]
    fn a_minimal_report_is_read() {
        let report = Report {
            id: CommandId([1; 16]),
            state: State::Running,
            time_ms: 5,
            reason: None,
            exit_code: None,
            output: None,
            result: None,
            too_late: false,
        };
        let body = cbor::encode(&vec![report.clone()]);
        assert!(body.len() < 60, "{}", body.len());
        assert_eq!(decode(&body).unwrap(), std::slice::from_ref(&report));
        assert!(decode(&cbor::encode(&vec![Report { state: State::Sent, ..report }])).is_err());
    }
}
