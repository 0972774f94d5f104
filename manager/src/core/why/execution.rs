//! Why a command is where it is at one node.

use fleet_schemas::command::{Reason, State};

use super::{Cause, ExecutionView, count, node};
use crate::core::{
    command::{OpenAt, Step},
    presence,
};

/// The present state, why, and how it came there: newest first.
#[must_use]
pub fn execution(view: &ExecutionView<'_>) -> Cause {
    let ExecutionView { command, execution, node } = view;
    let state = execution.state();
    let Some((last, before)) = execution.history.split_last() else {
        return Cause::still("nothing is known");
    };
    let mut because = match state {
        State::Queued => queued(view),
        State::Sent => sent(view),
        State::Accepted => accepted(view),
        State::Running => running(view, last),
        State::Expired => expired(view, last),
        State::Succeeded
        | State::Failed
        | State::TimedOut
        | State::Rejected
        | State::Canceled
        | State::Superseded => reason(last).into_iter().collect(),
    };
    if let Some(at_ms) = execution.cancel_ms {
        let answer = match (state, execution.too_late) {
            (_, true) => "; the node said that it was too late",
            (State::Canceled, false) => "",
            (_, false) if state.is_terminal() => "; it ended before",
            (_, false) => "; the node has not answered",
        };
        because.push(Cause::new(at_ms, format!("an operator wanted it canceled{answer}")));
    }
    if execution.held && !state.is_terminal() {
        because.push(Cause::still(
            "the hub was restored from a backup of before it was accepted, so it may have been done since: `fleet command approve` \
             sends it, `fleet command cancel` ends it",
        ));
    }
    if execution.doubt && !state.is_terminal() {
        because.push(Cause::still(
            "the node's storage was set back after it was told: once all it has to say is here, this ends as failed, because it may have run",
        ));
    }
    if let Some(after) = &execution.after {
        let what = format!("the node said {} after it was over here", after.state.as_str());
        because.push(Cause::new(after.at_ms, what).because(reason(after)));
    }
    because.extend(
        before.iter().rev().filter(|step| step.state != State::Queued).map(|step| {
            Cause::new(step.at_ms, format!("it was {}", step.state.as_str())).because(reason(step))
        }),
    );
    because.push(made(view));
    let exit = match (state, execution.exit_code) {
        (State::Failed, Some(code)) => format!(": the program ended with code {code}"),
        (State::TimedOut, _) => format!(": it may run {}", seconds(command.timeout_ms)),
        (_, _) => String::new(),
    };
    Cause::new(last.at_ms, format!("{} {} {}{exit}", command.kind, phrase(state), node.id)).because(because)
}

/// What stands between the kind and the node.
fn phrase(state: State) -> &'static str {
    match state {
        State::Queued => "is queued for",
        State::Sent => "was sent to",
        State::Accepted => "was accepted by",
        State::Running => "is running at",
        State::Succeeded => "succeeded at",
        State::Failed => "failed at",
        State::TimedOut => "timed out at",
        State::Rejected => "was rejected by",
        State::Canceled => "was canceled at",
        State::Expired => "expired at",
        State::Superseded => "was superseded at",
    }
}

fn made(view: &ExecutionView<'_>) -> Cause {
    let command = view.command;
    let by = match &command.selector {
        Some(selector) => format!("made by {} for all that match {selector}", command.by),
        None => format!("made by {}", command.by),
    };
    Cause::new(command.created_ms, by)
}

fn seconds(ms: u64) -> String {
    format!("{} s", ms as f64 / 1_000.0)
}

/// A step's own reason.
fn reason(step: &Step) -> Option<Cause> {
    let Reason { message, may_have_executed, .. } = &**step.reason.as_ref()?;
    let doubt = if *may_have_executed { "; it may have been done, wholly or in part" } else { "" };
    Some(Cause::new(step.at_ms, format!("{message}{doubt}")))
}

/// Why it is still at the hub.
fn queued(view: &ExecutionView<'_>) -> Vec<Cause> {
    let ExecutionView { node: at, command, execution } = view;
    let mut causes = Vec::new();
    let unreached = !matches!(at.presence.state, presence::State::Online);
    if unreached {
        causes.push(node::state(at));
    } else if !at.takes {
        causes.push(Cause::still(format!("the agent of {} takes no commands; update the agent", at.id)));
    }
    if execution.slot_ms > command.created_ms {
        let why = if command.not_before_ms.is_some_and(|at_ms| execution.slot_ms <= at_ms) {
            "it is not to begin before; the hub keeps it until a minute before that"
        } else {
            "its turn under the command's rate comes then"
        };
        causes.push(Cause::new(command.created_ms, why).until(execution.slot_ms));
    }
    causes.extend(behind(view));
    if causes.is_empty() {
        causes.push(Cause::still("it is about to be told to the node"));
    }
    causes.push(Cause::still("it expires if it has not begun").until(command.not_after_ms));
    causes
}

/// Why it is told and no more.
fn sent(view: &ExecutionView<'_>) -> Vec<Cause> {
    let mut causes = vec![Cause::still(
        "the node was told and has not said that it has it; it is told again at each birth and every minute at most",
    )];
    if !matches!(view.node.presence.state, presence::State::Online) {
        causes.push(node::state(view.node));
    }
    causes
}

/// Why it is at the node and does not begin.
fn accepted(view: &ExecutionView<'_>) -> Vec<Cause> {
    let command = view.command;
    let mut causes: Vec<_> = behind(view).into_iter().collect();
    if let Some(at_ms) = command.not_before_ms {
        causes.push(Cause::new(command.created_ms, "it is not to begin before").until(at_ms));
    }
    if !matches!(view.node.presence.state, presence::State::Online) {
        causes.push(node::state(view.node));
        causes.push(Cause::still(
            "the node has it and runs it without the hub; what became of it is told on its return",
        ));
    }
    if causes.is_empty() && command.kind.as_str() == "local" {
        causes.push(Cause::still("it waits for an app on the node to take it"));
    }
    if causes.is_empty() && command.kind.as_str() == "device" {
        causes.push(Cause::still(
            "it waits for its device to hear commands: connected to the node and subscribed to its topic",
        ));
    }
    if causes.is_empty() {
        causes.push(Cause::still("the node has it and is about to begin, or waits for a clock it can trust"));
    }
    causes
}

fn running(view: &ExecutionView<'_>, last: &Step) -> Vec<Cause> {
    let timeout_ms = i64::try_from(view.command.timeout_ms).unwrap_or(i64::MAX);
    let mut causes = vec![Cause::still("it may run until then").until(last.at_ms.saturating_add(timeout_ms))];
    if !matches!(view.node.presence.state, presence::State::Online) {
        causes.push(node::state(view.node));
        causes
            .push(Cause::still("the node goes on without the hub; what became of it is told on its return"));
    }
    causes
}

/// Why it did not begin in time: when the node was not there between its making and its end.
fn expired(view: &ExecutionView<'_>, last: &Step) -> Vec<Cause> {
    let ExecutionView { node: at, command, .. } = view;
    let mut causes: Vec<_> = reason(last).into_iter().collect();
    let absences = node::absences(at.presence, command.created_ms, command.not_after_ms);
    causes.extend(
        absences
            .into_iter()
            .rev()
            .map(|absence| Cause { what: format!("{}: {}", at.id, absence.what), ..absence }),
    );
    causes
}

/// What goes before it in its queue.
fn behind(view: &ExecutionView<'_>) -> Option<Cause> {
    let command = view.command;
    let ahead: Vec<&OpenAt> = view
        .node
        .open
        .iter()
        .take_while(|open| open.command.id != command.id)
        .filter(|open| open.command.queue == command.queue)
        .collect();
    let first = ahead.first()?;
    let since_ms = first.execution.history.last().map_or(first.command.created_ms, |step| step.at_ms);
    let state = first.execution.state().as_str();
    let what = format!(
        "it waits behind {} in queue {}: first comes {} {}, {state}",
        count(ahead.len(), "command"),
        command.queue,
        first.command.kind,
        first.command.id
    );
    Some(Cause::new(since_ms, what))
}
