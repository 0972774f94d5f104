//! After a restore: what was not accepted when the backup was made may have been done since, and only people can tell.

use fleet_schemas::{CommandId, NodeId, command::State};

use super::{Change, Command, Effects, Execution};
use crate::core::fleet::{Fleet, NodeNo};

/// Whether an execution of a restored store has to wait for an operator: it must not be done twice, and nobody said that
/// the node has it. What is accepted already is never sent again, so the node's own word settles it.
fn is_in_doubt(command: &Command, execution: &Execution) -> bool {
    match execution.state() {
        State::Queued | State::Sent => !command.idempotent && !execution.held,
        State::Accepted
        | State::Running
        | State::Succeeded
        | State::Failed
        | State::TimedOut
        | State::Rejected
        | State::Canceled
        | State::Expired
        | State::Superseded => false,
    }
}

/// Holds what is in doubt among the executions that a restored store has as open. Gives how many.
pub fn hold(effects: &mut Effects, open: &mut [(Command, Vec<(NodeNo, Execution)>)]) -> u64 {
    let mut held = 0;
    for (command, executions) in open {
        for (node, execution) in executions {
            if is_in_doubt(command, execution) {
                let was = execution.state();
                execution.held = true;
                effects.write(command.id, *node, Some(was), execution);
                held += 1;
            }
        }
    }
    held
}

/// An operator's word: a held command goes on, at some nodes or at all. What is not held stays as it is.
pub fn approve(fleet: &mut Fleet, effects: &mut Effects, id: CommandId, nodes: Option<&[NodeId]>) {
    let numbers: Option<Vec<NodeNo>> = nodes
        .map(|nodes| nodes.iter().filter_map(|id| fleet.nodes.get(id)).map(|node| node.number).collect());
    let dispatch = &mut fleet.commands;
    let Some(open) = dispatch.commands.get(&id) else { return };
    let command = open.command.clone();
    let chosen: Vec<NodeNo> = (open.nodes.iter().copied())
        .filter(|node| numbers.as_ref().is_none_or(|numbers| numbers.contains(node)))
        .collect();
    for node in chosen {
        let Some(agenda) = dispatch.agendas.get_mut(&node) else { continue };
        if !agenda.open.get(&command.no).is_some_and(|execution| execution.held) {
            continue;
        }
        agenda.say = true;
        let mut told = None;
        dispatch.change(effects, (command.no, node), |execution| {
            execution.held = false;
            told = Some(Change::new(&command, node, execution));
        });
        effects.changes.extend(told);
    }
}
