//! Commands, where they stand, and why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A new command, or one that is being canceled.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct BriefCommand {
    /// Its id, a UUIDv7.
    pub id: String,
    /// Where it stands at each node, at most 10,000.
    pub executions: Vec<BriefExecution>,
    /// Where the next page of `commands/{id}` begins, when there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Where a command stands at one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct BriefExecution {
    /// The node.
    pub node: String,
    /// `queued|sent|accepted|running|succeeded|failed|timed_out|rejected|canceled|expired|superseded`.
    pub state: String,
    /// The node was asked to cancel it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_asked: bool,
    /// It waits for approval, because the hub was restored from a backup of before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

/// One command.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Command {
    /// Its id, a UUIDv7.
    pub id: String,
    /// What to do.
    pub kind: String,
    /// With what; only of one command, not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<serde_json::Value>,
    /// Its queue.
    pub queue: String,
    /// Higher goes first.
    #[serde(default)]
    pub priority: i8,
    /// Whether doing it twice is the same as doing it once.
    #[serde(default)]
    pub idempotent: bool,
    /// Waiting commands with the same key gave way to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supersedes: Option<String>,
    /// Of a command to one node: the time zone of its site, by the IANA name; none was set when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
    /// When it was made.
    pub created_ms: i64,
    /// It does not begin before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<i64>,
    /// It does not begin after.
    pub not_after_ms: i64,
    /// Most that it may run.
    pub timeout_ms: u64,
    /// Who wanted it.
    #[serde(default)]
    pub by: String,
    /// The selector that chose the nodes, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// How many nodes it is for.
    #[serde(default)]
    pub nodes_count: u32,
    /// At how many of them it waits for approval since the hub was restored.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held_count: u32,
    /// Executions by state, without zeros.
    #[serde(default)]
    pub states: BTreeMap<String, u32>,
    /// Of one command: a page of its executions. Of a node's list: its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub executions: Vec<Execution>,
    /// Hand it back as `cursor` for more executions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A command at one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Execution {
    /// The node.
    pub node: String,
    /// As in [`BriefExecution`].
    pub state: String,
    /// The time zone of the node's site, by the IANA name; none was set when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
    /// Every state it had, oldest first.
    #[serde(default)]
    pub history: Vec<Step>,
    /// It waits at the hub until then, for its time or its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<i64>,
    /// When a cancel was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_asked_ms: Option<i64>,
    /// The node said that the cancel came too late.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub too_late: bool,
    /// It waits for approval, because the hub was restored from a backup of before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// The exit code of a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Its output, at most 64 KiB; bytes that are no UTF-8 are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Bytes of output that are kept.
    #[serde(default)]
    pub output_bytes: u64,
    /// There was more output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub output_cut: bool,
    /// What it gave, for kinds that give something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
    /// What the node said after it was over here, where that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Step>,
}

/// A state and since when.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Step {
    /// The state.
    pub state: String,
    /// Since when.
    pub at_ms: i64,
    /// Why, where there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// Why an execution is where it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Reason {
    /// A stable word.
    pub code: String,
    /// A sentence.
    pub message: String,
    /// Whether it may have been done, wholly or in part.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_have_executed: bool,
}

/// Why a node is in its state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct NodeWhy {
    /// The node.
    pub node: String,
    /// Its state, as in [`Node`].
    pub state: String,
    /// The state with what led to it, then whatever else is the matter.
    pub causes: Vec<Cause>,
}

/// Why a command is where it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct CommandWhy {
    /// Its id.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// Executions by state, without zeros.
    #[serde(default)]
    pub states: BTreeMap<String, u32>,
    /// By node.
    pub items: Vec<ExecutionWhy>,
    /// Hand it back as `cursor` for more.
    #[serde(default)]
    pub next: Option<String>,
}

/// Why a command is where it is at one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct ExecutionWhy {
    /// The node.
    pub node: String,
    /// As in [`BriefExecution`].
    pub state: String,
    /// The state, with what led to it.
    pub causes: Vec<Cause>,
}

/// A state or an event, and what led to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Cause {
    /// Since when or when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<i64>,
    /// Until when, where it is over or has an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
    /// Whose clocks tell these times, and those of what led to it: the time zone of a node's site, by the IANA name.
    /// Absent: as of what it led to; UTC where there is no such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
    /// What is so, in a sentence.
    pub what: String,
    /// What led to it, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, schema(no_recursion))]
    pub because: Vec<Cause>,
}
