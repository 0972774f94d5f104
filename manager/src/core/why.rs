//! Why a node, or a command at a node, is in the state it is in: the chain of causes, out of what is stored.
//!
//! Pure: takes a view, gives sentences with times. Judges nothing anew; it reads the same facts that the decisions were
//! made from.

mod execution;
mod node;
mod rollout;

#[cfg(test)]
mod tests;

use fleet_schemas::NodeId;

use super::{
    command::{Command, Execution, OpenAt},
    config,
    identity::Standing,
    ledger::Account,
    presence::Presence,
};

pub use execution::execution;
pub use node::node;
pub use rollout::{of_node as updates, rollout};

/// Causes of one kind that are told of a node, at most.
const LISTED: usize = 5;

/// A state or an event, and what led to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cause {
    /// Since when or when, hub time, Unix milliseconds.
    pub at_ms: Option<i64>,
    /// Until when, where it is over or has an end.
    pub until_ms: Option<i64>,
    /// The time zone of these times and of those of what led to it, where they are those of a node with one.
    pub tz: Option<String>,
    /// What is so, in a sentence.
    pub what: String,
    /// What led to it.
    pub because: Vec<Cause>,
}

/// What is known of a node.
#[derive(Debug)]
pub struct NodeView<'a> {
    /// Its id.
    pub id: &'a NodeId,
    /// Whether it is there, and was.
    pub presence: &'a Presence,
    /// When it was heard last, hub time, Unix milliseconds.
    pub last_seen_ms: i64,
    /// It was lost often lately.
    pub is_flapping: bool,
    /// Whether it may come in; none: it came in by a secret, not by joining.
    pub standing: Option<&'a Standing>,
    /// Whether its agent takes commands.
    pub takes: bool,
    /// What is not over, in the order in which its queues run it.
    pub open: &'a [OpenAt],
    /// Whether it has the configuration it is to have.
    pub config: config::State,
    /// Sentences on that: where it stands, then where its settings come from.
    pub config_why: &'a [String],
    /// Its accounts.
    pub accounts: &'a [Account],
    /// Its last events, newest first.
    pub events: &'a [Told],
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// When, hub time, Unix milliseconds.
    pub at_ms: i64,
    /// Its kind.
    pub kind: String,
    /// Its message.
    pub message: String,
    /// Whether it is a warning or worse.
    pub is_bad: bool,
}

/// What is known of a command at a node.
#[derive(Debug)]
pub struct ExecutionView<'a> {
    /// The node. Its accounts and events are not looked at.
    pub node: &'a NodeView<'a>,
    /// The command.
    pub command: &'a Command,
    /// Where it stands.
    pub execution: &'a Execution,
}

impl Cause {
    fn new(at_ms: i64, what: impl Into<String>) -> Self {
        Self { at_ms: Some(at_ms), what: what.into(), ..Self::default() }
    }

    /// Something that has no time of its own.
    fn still(what: impl Into<String>) -> Self {
        Self { what: what.into(), ..Self::default() }
    }

    fn until(self, until_ms: i64) -> Self {
        Self { until_ms: Some(until_ms), ..self }
    }

    /// The same by the clocks of a site.
    #[must_use]
    pub fn at(self, tz: Option<String>) -> Self {
        Self { tz, ..self }
    }

    fn because(self, because: impl IntoIterator<Item = Self>) -> Self {
        Self { because: because.into_iter().collect(), ..self }
    }
}

/// `1 command`, `3 commands`.
fn count(many: usize, one: &str) -> String {
    format!("{many} {one}{}", if many == 1 { "" } else { "s" })
}
