//! How executions look to whoever asks or follows. Pure.

use fleet_schemas::{
    CommandId, MetricName,
    command::{Output, State},
};

use super::{Command, Dispatch, Execution, Step};
use crate::core::fleet::NodeNo;

/// Something happened to an execution, or a command was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The command.
    pub command: CommandId,
    /// Its kind.
    pub kind: MetricName,
    /// The node; none: the command was made, and all its executions are queued.
    pub node: Option<NodeNo>,
    /// The state, since when, and why.
    pub step: Step,
    /// A cancel is asked for.
    pub cancel_asked: bool,
    /// A cancel came too late.
    pub too_late: bool,
    /// The exit code of a program.
    pub exit_code: Option<i32>,
    /// More of its output.
    pub output: Option<Output>,
}

/// How much waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Commands that are not over.
    pub commands: usize,
    /// Executions that are not over.
    pub executions: usize,
}

impl Change {
    pub(super) fn new(command: &Command, node: NodeNo, execution: &Execution) -> Self {
        let start = Step { state: State::Queued, at_ms: command.created_ms, reason: None };
        Self {
            command: command.id,
            kind: command.kind.clone(),
            node: Some(node),
            step: execution.history.last().cloned().unwrap_or(start),
            cancel_asked: execution.cancel_ms.is_some(),
            too_late: execution.too_late,
            exit_code: execution.exit_code,
            output: None,
        }
    }

    pub(super) fn made(command: &Command) -> Self {
        Self {
            command: command.id,
            kind: command.kind.clone(),
            node: None,
            step: Step { state: State::Queued, at_ms: command.created_ms, reason: None },
            cancel_asked: false,
            too_late: false,
            exit_code: None,
            output: None,
        }
    }
}

impl Dispatch {
    /// How many executions of a node are not over.
    #[must_use]
    pub fn waiting_for(&self, node: NodeNo) -> usize {
        self.agendas.get(&node).map_or(0, |agenda| agenda.open.len())
    }

    /// How much waits.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        Waiting { commands: self.commands.len(), executions: self.executions }
    }
}
