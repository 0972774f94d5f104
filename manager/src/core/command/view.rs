//! How executions look to whoever asks or follows. Pure.

use std::{cmp::Reverse, sync::Arc};

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

/// An execution that is not over.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenAt {
    /// The command.
    pub command: Arc<Command>,
    /// Where it stands at the node.
    pub execution: Execution,
}

/// An execution that is not over, for whoever gives commands to a node in another way than by [`super::Orders`].
#[derive(Debug, Clone, PartialEq)]
pub struct Due {
    /// Its command.
    pub command: Arc<Command>,
    /// Where it stands.
    pub state: State,
    /// Since when, Unix milliseconds.
    pub since_ms: i64,
    /// Whether its turn has come.
    pub is_due: bool,
    /// Whether a cancel waits for its answer.
    pub cancel: bool,
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

    /// Nodes at which a command is not over.
    pub fn nodes_of(&self, id: CommandId) -> impl Iterator<Item = NodeNo> {
        self.commands.get(&id).into_iter().flat_map(|open| open.nodes.iter().copied())
    }

    /// What of a node is not over, in the order in which its queues run it: what runs first, then by priority and
    /// age.
    #[must_use]
    pub fn open_at(&self, node: NodeNo) -> Vec<OpenAt> {
        let Some(agenda) = self.agendas.get(&node) else { return Vec::new() };
        let open = agenda.open.iter().filter_map(|(no, execution)| {
            Some(OpenAt { command: self.command(*no)?.clone(), execution: execution.clone() })
        });
        let mut open: Vec<_> = open.collect();
        open.sort_by_key(|OpenAt { command, execution }| {
            (execution.state() != State::Running, Reverse(command.priority), command.no)
        });
        open
    }

    /// Whether a node's agent takes commands, by its last birth since the hub's start.
    #[must_use]
    pub fn takes(&self, node: NodeNo) -> bool {
        self.agendas.get(&node).is_some_and(|agenda| agenda.takes)
    }

    /// What is not over at a node, for whoever gives it commands in another way, in the same order.
    #[must_use]
    pub fn due_at(&self, node: NodeNo, now_ms: i64) -> Vec<Due> {
        let due = |OpenAt { command, execution }: OpenAt| {
            let begins_ms = command.not_before_ms.unwrap_or(0).max(execution.slot_ms);
            Due {
                is_due: begins_ms <= now_ms && now_ms < command.not_after_ms && !execution.held,
                cancel: execution.cancel_ms.is_some() && !execution.too_late,
                since_ms: execution.history.last().map_or(command.created_ms, |step| step.at_ms),
                state: execution.state(),
                command,
            }
        };
        self.open_at(node).into_iter().map(due).collect()
    }

    /// At how many nodes a command waits for approval after a restore.
    #[must_use]
    pub fn held_of(&self, id: &CommandId) -> usize {
        let Some(open) = self.commands.get(id) else { return 0 };
        let held = |node: &&NodeNo| {
            let execution = self.agendas.get(node).and_then(|agenda| agenda.open.get(&open.command.no));
            execution.is_some_and(|execution| execution.held)
        };
        open.nodes.iter().filter(held).count()
    }

    /// Executions that wait for approval after a restore.
    #[must_use]
    pub fn held(&self) -> usize {
        self.commands.keys().map(|id| self.held_of(id)).sum()
    }

    /// How much waits.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        Waiting { commands: self.commands.len(), executions: self.executions }
    }
}
