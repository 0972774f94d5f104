//! What follows from states and time: executions end, become due and are offered. Run at the end of every group, for
//! the nodes that something happened to and for those whose deadline has passed.

use std::{sync::Arc, time::Duration};

use fleet_schemas::command::{Reason, State};

use super::{
    Agenda, Change, Command, Dispatch, Effects, Execution, Place, doubtful, millis, orders::again_ms, reason,
    settle,
};
use crate::core::{
    Now,
    fleet::{Fleet, Node, NodeNo},
};

/// Most nodes looked at in one group: bounds one transaction and one burst of news; the others come next.
const NODES: usize = 1_000;
/// Most bytes of orders in one group: half of what the bus takes at once.
const BYTES: usize = 4 * 1024 * 1024;
/// How long after its end an execution is waited for that may be at a node: no agent holds one for longer.
const UNSETTLED: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Lets time pass for everything that is due.
pub fn advance(fleet: &mut Fleet, effects: &mut Effects, now: Now) {
    let Fleet { nodes, ids, commands: dispatch, .. } = fleet;
    while let Some((at, node)) = dispatch.due.first().copied().filter(|(at, _)| *at <= now.wall_ms) {
        dispatch.due.remove(&(at, node));
        if let Some(agenda) = dispatch.agendas.get_mut(&node) {
            agenda.due_ms = None;
        }
        dispatch.touched.insert(node);
    }
    let mut bytes = 0;
    for _ in 0..NODES {
        let Some(number) = dispatch.next_touched() else { return };
        let Some(node) = ids.get(&number).and_then(|id| nodes.get(id)) else { continue };
        settle::settle(dispatch, number, &node.marks);
        finish(dispatch, effects, number, now);
        bytes += tell(dispatch, effects, node, now);
        dispatch.touched.remove(&number);
        dispatch.plan_deadline(number, now);
        if bytes > BYTES {
            return;
        }
    }
}

/// Ends what is over by time or by proof.
fn finish(dispatch: &mut Dispatch, effects: &mut Effects, number: NodeNo, now: Now) {
    let Some(agenda) = dispatch.agendas.get(&number) else { return };
    let ends = |(no, execution): (&u64, &Execution)| {
        let (state, why) = end_of(dispatch.command(*no)?, execution, now)?;
        Some((*no, state, why))
    };
    let over: Vec<_> = agenda.open.iter().filter_map(ends).collect();
    for (no, state, why) in over {
        dispatch.end(effects, (no, number), state, now.wall_ms, Some(why));
    }
}

/// How an execution ends now, if it does.
fn end_of(command: &Command, execution: &Execution, now: Now) -> Option<(State, Reason)> {
    let is_late = command.has_ended(now);
    let lost =
        || doubtful("agent_state_lost", "the node accepted it and has it no more; look there what it did");
    let ended = |code: &str, message: &str| match execution.held {
        true => {
            doubtful("held", "nobody approved it after the hub was restored; it may have been sent before")
        }
        false => reason(code, message),
    };
    match execution.state() {
        State::Queued if is_late => {
            Some((State::Expired, ended("not_sent", "its time ended before the node could be told")))
        }
        State::Sent if execution.place == Place::Absent && execution.doubt => {
            let why = "the node's storage was set back after this was sent; look there what it did";
            Some((State::Failed, doubtful("agent_state_lost", why)))
        }
        State::Sent if execution.place == Place::Absent && execution.cancel_ms.is_some() => {
            Some((State::Canceled, ended("canceled", "the node never had it")))
        }
        State::Sent if execution.place == Place::Absent && is_late => {
            Some((State::Expired, ended("not_received", "its time ended and the node never had it")))
        }
        State::Accepted | State::Running if execution.place == Place::Absent => {
            let may_again = command.idempotent && !is_late && execution.cancel_ms.is_none();
            (!may_again).then(|| (State::Failed, lost()))
        }
        State::Sent if now.wall_ms >= unsettled_ms(command, State::Sent) => {
            Some((State::Expired, doubtful("unsettled", "the node was told and has said nothing since")))
        }
        state @ (State::Accepted | State::Running) if now.wall_ms >= unsettled_ms(command, state) => {
            Some((State::Failed, doubtful("unsettled", "the node accepted it and has said nothing since")))
        }
        State::Queued
        | State::Sent
        | State::Accepted
        | State::Running
        | State::Succeeded
        | State::Failed
        | State::TimedOut
        | State::Rejected
        | State::Canceled
        | State::Expired
        | State::Superseded => None,
    }
}

/// When the hub stops waiting for what a node may have.
fn unsettled_ms(command: &Command, state: State) -> i64 {
    let runs = if state > State::Sent { i64::try_from(command.timeout_ms).unwrap_or(i64::MAX) } else { 0 };
    command.not_after_ms.saturating_add(runs).saturating_add(millis(UNSETTLED))
}

/// Tells a node what it has to know, if there is news or it was silent for too long. Gives the size of the message.
fn tell(dispatch: &mut Dispatch, effects: &mut Effects, node: &Node, now: Now) -> usize {
    let number = node.number;
    let session = node.record.presence.reached_by();
    let Some(agenda) = dispatch.agendas.get_mut(&number) else { return 0 };
    let Some(session) = session.filter(|_| agenda.takes) else {
        (agenda.resend_ms, agenda.attempts) = (None, 0);
        return 0;
    };
    let say = std::mem::take(&mut agenda.say);
    let Some(agenda) = dispatch.agendas.get(&number) else { return 0 };
    let plan = dispatch.plan(agenda, session, now);
    let silent = plan.offers.is_empty() && plan.cancels.is_empty();
    let is_due = agenda.resend_ms.is_none_or(|at| at <= now.wall_ms);
    let tells = !silent && (say || plan.is_news || is_due);
    if tells {
        effects.orders.push((node.record.id.clone(), dispatch.orders(&plan, session, now)));
        dispatch.note_offers(number, &plan, session);
        for no in &plan.offers {
            sent(dispatch, effects, (*no, number), now);
        }
    }
    let Some(agenda) = dispatch.agendas.get_mut(&number) else { return 0 };
    if silent {
        (agenda.resend_ms, agenda.attempts) = (None, 0);
    } else if tells {
        let attempts = if say || plan.is_news { 0 } else { agenda.attempts.saturating_add(1) };
        agenda.attempts = attempts;
        agenda.resend_ms = Some(now.wall_ms.saturating_add(again_ms(attempts)));
    }
    if tells { plan.bytes } else { 0 }
}

fn sent(dispatch: &mut Dispatch, effects: &mut Effects, (no, number): (u64, NodeNo), now: Now) {
    let state = |agenda: &Agenda| agenda.open.get(&no).map(Execution::state);
    if dispatch.agendas.get(&number).and_then(state) != Some(State::Queued) {
        return;
    }
    let Some(command): Option<Arc<Command>> = dispatch.command(no).cloned() else { return };
    let mut told = None;
    dispatch.change(effects, (no, number), |execution| {
        execution.step(State::Sent, now.wall_ms, None);
        told = Some(Change::new(&command, number, execution));
    });
    effects.changes.extend(told);
}

impl Dispatch {
    /// Puts a node's next deadline into the queue of deadlines.
    fn plan_deadline(&mut self, number: NodeNo, now: Now) {
        let Some(agenda) = self.agendas.get(&number) else { return };
        let times = agenda.open.iter().filter_map(|(no, execution)| {
            let command = self.command(*no)?;
            Some(deadlines(command, execution))
        });
        let next = times.flatten().flatten().chain(agenda.resend_ms).filter(|at| *at > now.wall_ms).min();
        let Some(agenda) = self.agendas.get_mut(&number) else { return };
        if let Some(old) = agenda.due_ms.take() {
            self.due.remove(&(old, number));
        }
        agenda.due_ms = next;
        self.due.extend(next.map(|at| (at, number)));
        // A node that waits for nothing and takes nothing is not remembered.
        if agenda.open.is_empty() && !agenda.takes {
            self.agendas.remove(&number);
        }
    }

    /// Something happened to a node: it is looked at in this group.
    pub fn touch(&mut self, number: NodeNo) {
        if self.agendas.contains_key(&number) {
            self.touched.insert(number);
        }
    }
}

/// The times at which something may happen to an execution by itself.
fn deadlines(command: &Command, execution: &Execution) -> [Option<i64>; 3] {
    let state = execution.state();
    [
        Some(command.not_after_ms),
        (state == State::Queued).then_some(execution.slot_ms),
        (state > State::Queued).then(|| unsettled_ms(command, state)),
    ]
}
