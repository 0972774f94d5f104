//! What one node is told: everything that it has not said it accepted, per queue in the order in which it is to run,
//! as much as fits, and what is to be canceled. What was offered in this session is offered on when its time is over,
//! with nothing left of it: an agent that knows it answers, and one that does not says that it came too late.

use fleet_schemas::{
    SessionId, StoreId, VERSION,
    command::{Offer, Orders, State},
};

use super::{Agenda, Command, Dispatch, Execution, Place};
use crate::core::{Now, fleet::NodeNo, time::millis};

/// Most offers of one message: a node accepts them within one write.
pub(super) const OFFERS: usize = 64;
/// Most bytes of their parameters and frames: with the cancels the message fits a packet.
const BYTES: usize = 200 * 1024;
/// What an offer takes beside its parameters, at most.
const FRAME: usize = 384;
/// Most cancels of one message, 17 bytes each.
const CANCELS: usize = 1_000;

/// What one node is to be told.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Numbers of what is offered, in order.
    pub offers: Vec<u64>,
    /// Numbers of what is to be canceled.
    pub cancels: Vec<u64>,
    /// About the size of the message.
    pub bytes: usize,
    /// Whether anything was not offered in this session before.
    pub is_news: bool,
}

/// Whether the hub wants the node to have it now, or to say what became of it.
fn is_wanted(command: &Command, execution: &Execution, session: SessionId, now: Now) -> bool {
    if execution.cancel_ms.is_some() || execution.doubt || execution.held {
        return false;
    }
    // The birth of a session proves nothing of what was offered in it, and no other may come for long: the offer may
    // have been lost, or answered by a report that this hub has lost.
    if command.has_ended(now) && execution.offered_in != Some(session) {
        return false;
    }
    match execution.state() {
        State::Queued => execution.slot_ms <= now.wall_ms,
        // It was never accepted: whatever became of it, the agent knows what it has.
        State::Sent => true,
        // Given away once, and gone: only what may be done twice is offered twice.
        State::Accepted | State::Running => command.idempotent && execution.place != Place::Unsure,
        State::Succeeded
        | State::Failed
        | State::TimedOut
        | State::Rejected
        | State::Canceled
        | State::Expired
        | State::Superseded => false,
    }
}

impl Dispatch {
    /// What a node is to be told in this session.
    pub(super) fn plan(&self, agenda: &Agenda, session: SessionId, now: Now) -> Plan {
        let mut plan = Plan::default();
        let mut wanted: Vec<(&Command, &Execution)> = Vec::new();
        for (no, execution) in &agenda.open {
            let Some(command) = self.command(*no) else { continue };
            if is_wanted(command, execution, session, now) {
                wanted.push((command, execution));
            } else if execution.cancel_ms.is_some()
                && execution.state() > State::Queued
                && plan.cancels.len() < CANCELS
            {
                plan.cancels.push(*no);
                plan.bytes += 17;
            }
        }
        // As the agent runs them: a queue that is cut off is cut off at its end. What will not run takes nobody's room.
        wanted.sort_by_key(|(command, _)| {
            (command.has_ended(now), std::cmp::Reverse(command.priority), command.no)
        });
        for (command, execution) in wanted.into_iter().take(OFFERS) {
            let bytes = command.params_bytes as usize + FRAME;
            if plan.bytes + bytes > BYTES {
                break;
            }
            plan.bytes += bytes;
            plan.is_news |= execution.offered_in != Some(session);
            plan.offers.push(command.no);
        }
        plan
    }

    /// The message of a plan; what is left of a command's time is counted from now.
    pub(super) fn orders(&self, plan: &Plan, session: SessionId, now: Now) -> Orders {
        let offers = plan.offers.iter().filter_map(|no| self.command(*no)).map(|command| offer(command, now));
        let cancels = plan.cancels.iter().filter_map(|no| self.command(*no)).map(|command| command.id);
        Orders {
            v: VERSION,
            // Filled in by whoever speaks: the core knows no store.
            store_id: StoreId([0; 16]),
            session,
            hub_ms: now.wall_ms,
            offers: offers.collect(),
            cancels: cancels.collect(),
        }
    }

    /// Notes that a node is told something.
    pub(super) fn note_offers(&mut self, node: NodeNo, plan: &Plan, session: SessionId) {
        let Some(agenda) = self.agendas.get_mut(&node) else { return };
        for no in &plan.offers {
            if let Some(execution) = agenda.open.get_mut(no) {
                execution.offered_in = Some(session);
                execution.place = match execution.place {
                    Place::Absent if execution.state() > State::Sent => Place::Anew,
                    Place::Absent | Place::Unsure => Place::Unsure,
                    Place::Anew => Place::Anew,
                };
            }
        }
    }
}

fn offer(command: &Command, now: Now) -> Offer {
    let left = |until: i64| u64::try_from(until.saturating_sub(now.wall_ms)).unwrap_or(0);
    // What a clock made that was years ahead has ended, whatever its deadline says.
    let left_ms = if command.has_ended(now) { 0 } else { left(command.not_after_ms) };
    Offer {
        id: command.id,
        no: command.no,
        queue: command.queue.clone(),
        priority: command.priority,
        kind: command.kind.clone(),
        params: command.params.clone(),
        left_ms,
        delay_ms: command.not_before_ms.map_or(0, left),
        timeout_ms: command.timeout_ms,
        idempotent: command.idempotent,
        supersedes: command.supersedes.clone(),
        signature: None,
    }
}

/// When a node that has not accepted is told again, in milliseconds.
pub(super) fn again_ms(attempts: u32) -> i64 {
    let seconds = [10, 30, 60];
    let nth = usize::try_from(attempts).unwrap_or(usize::MAX).min(seconds.len() - 1);
    millis(std::time::Duration::from_secs(seconds[nth]))
}
