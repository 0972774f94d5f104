//! Commands by asking: what is given to a node that polls, and what it says became of them.
//!
//! A command is given once the hub has committed that it is accepted, so one that is to be done once is given once. An
//! answer that is lost on its way loses it: after its timeout it is `timed_out` and may have been done. One that may be
//! done twice is given again while it is not over.

use std::time::Duration;

use axum::http::StatusCode;
use fleet_schemas::{
    CommandId, NodeId,
    command::{Reason, Report, State},
};

use super::{refusal::Refusal, seal, stand_in::Turn};
use crate::{
    core::{command::Due, time::millis},
    hub::Hub,
};

/// Most commands of one answer.
const GIVEN: usize = 64;
/// When one that may be done twice is given again.
const AGAIN: Duration = Duration::from_secs(60);

/// What is not over at a node, in the order in which it is to run.
fn open(hub: &Hub, node: &NodeId) -> Vec<Due> {
    let now_ms = hub.clock().now().wall_ms;
    hub.with_fleet(|fleet| match fleet.nodes.get(node) {
        Some(node) => fleet.commands.due_at(node.number, now_ms),
        None => Vec::new(),
    })
}

/// How many commands wait for a node to ask.
pub(super) fn pending(hub: &Hub, node: &NodeId) -> usize {
    open(hub, node).iter().filter(|due| waits(due)).count()
}

fn waits(due: &Due) -> bool {
    let given_before = due.state == State::Sent;
    due.is_due && !due.cancel && (due.state == State::Queued || given_before && due.command.idempotent)
}

fn report(id: CommandId, state: State, now_ms: i64) -> Report {
    let (reason, exit_code, output, result, too_late) = (None, None, None, None, false);
    Report { id, state, time_ms: now_ms, reason, exit_code, output, result, too_late }
}

/// What time has made of commands: those that ran out of it, and cancels that came too late. Pure.
fn settled(open: &[Due], now_ms: i64) -> Vec<Report> {
    let given = open.iter().filter(|due| matches!(due.state, State::Accepted | State::Running));
    let ended = given.filter_map(|due| {
        let id = due.command.id;
        let timeout_ms = i64::try_from(due.command.timeout_ms).unwrap_or(i64::MAX);
        if due.since_ms.saturating_add(timeout_ms) <= now_ms {
            let reason = Reason {
                code: "no_answer".to_owned(),
                message: "the node asked for it and has not said what became of it; look there".to_owned(),
                may_have_executed: true,
            };
            return Some(Report { reason: Some(reason), ..report(id, State::TimedOut, now_ms) });
        }
        due.cancel.then(|| Report { too_late: true, ..report(id, due.state, now_ms) })
    });
    ended.collect()
}

/// Whether there is something to say of what time has made of a node's commands.
pub(super) fn is_overdue(hub: &Hub, node: &NodeId) -> bool {
    !settled(&open(hub, node), hub.clock().now().wall_ms).is_empty()
}

/// Says what time has made of a node's commands.
pub(super) async fn settle(turn: &mut Turn<'_>, hub: &Hub, node: &NodeId) -> Result<(), Refusal> {
    let reports = settled(&open(hub, node), hub.clock().now().wall_ms);
    turn.store(seal::reports(reports)).await
}

/// Gives what waits.
pub(super) async fn poll(turn: &mut Turn<'_>, hub: &Hub, node: &NodeId) -> Result<Vec<Due>, Refusal> {
    settle(turn, hub, node).await?;
    let now_ms = hub.clock().now().wall_ms;
    let new: Vec<_> =
        open(hub, node).iter().filter(|due| waits(due)).map(|due| due.command.id).take(GIVEN).collect();
    let accepted = new.iter().map(|id| report(*id, State::Accepted, now_ms)).collect();
    turn.store(seal::reports(accepted)).await?;
    let again = |due: &Due| {
        due.command.idempotent && due.is_due && due.since_ms.saturating_add(millis(AGAIN)) <= now_ms
    };
    // As it is committed: one that was canceled meanwhile is over.
    let mut given = open(hub, node);
    given.retain(|due| due.state == State::Accepted && (new.contains(&due.command.id) || again(due)));
    given.truncate(GIVEN);
    // "Again" is told of those that were given before.
    given.iter_mut().filter(|due| new.contains(&due.command.id)).for_each(|due| due.state = State::Queued);
    Ok(given)
}

/// Takes what a node says of a command.
pub(super) async fn ack(
    turn: &mut Turn<'_>,
    hub: &Hub,
    node: &NodeId,
    report: Report,
) -> Result<(), Refusal> {
    let id = report.id;
    if !open(hub, node).iter().any(|due| due.command.id == id) {
        let number = hub.with_fleet(|fleet| fleet.nodes.get(node).map(|node| node.number));
        let state = hub.state();
        let asked = tokio::task::spawn_blocking(move || match number {
            Some(number) => state.execution(id, number),
            None => Ok(None),
        });
        let known = asked.await.map_err(|error| Refusal::unavailable(error.to_string()))?;
        match known.map_err(|error| Refusal::unavailable(error.to_string()))? {
            // Told twice.
            Some(known) if known.state() == report.state => return Ok(()),
            Some(_) => {}
            None => {
                let why = format!("this node has no command {id}");
                return Err(Refusal {
                    pointer: Some("/command_id".to_owned()),
                    ..Refusal::new(StatusCode::NOT_FOUND, why)
                });
            }
        }
    }
    turn.store(seal::reports(vec![report])).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fleet_schemas::MetricName;

    use super::*;
    use crate::core::command::Command;

    fn due(state: State, since_ms: i64, cancel: bool) -> Due {
        let word = |text: &str| MetricName::parse(text).unwrap();
        let command = Command {
            id: CommandId([1; 16]),
            no: 1,
            kind: word("restart"),
            params: ciborium::Value::Null,
            params_bytes: 1,
            queue: word("main"),
            priority: 0,
            idempotent: false,
            supersedes: None,
            created_ms: 0,
            not_before_ms: None,
            not_after_ms: 1_000_000,
            timeout_ms: 60_000,
            by: String::new(),
            selector: None,
        };
        Due { command: Arc::new(command), state, since_ms, is_due: true, cancel }
    }

    #[test]
    fn what_was_given_and_not_answered_times_out_and_may_have_been_done() {
        assert_eq!(settled(&[due(State::Accepted, 1_000, false)], 60_999), []);
        let ended = settled(&[due(State::Accepted, 1_000, false), due(State::Queued, 1_000, false)], 61_000);
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].state, State::TimedOut);
        assert!(ended[0].reason.as_ref().unwrap().may_have_executed);
    }

    #[test]
    fn a_cancel_of_what_was_given_comes_too_late_and_of_what_waits_is_none_of_ours() {
        let told = settled(&[due(State::Accepted, 1_000, true), due(State::Queued, 1_000, true)], 2_000);
        assert_eq!(
            told.iter().map(|report| (report.state, report.too_late)).collect::<Vec<_>>(),
            [(State::Accepted, true)]
        );
        assert!(!waits(&due(State::Queued, 0, true)) && waits(&due(State::Queued, 0, false)));
        assert!(!waits(&due(State::Sent, 0, false)), "it may be with whoever was this node before");
    }
}
