//! What follows from states and time. Run at the end of every group, for the rollouts that something happened to and for
//! those whose deadline has passed.

use fleet_schemas::{event::Severity, update::State as Said};

use super::{
    end, hear,
    live::{Live, reason},
    model::{Id, Seat, Stand, State},
    wave,
};
use crate::core::{Now, command, fleet::Fleet, intake, presence};

/// Most steps in one group: rollouts touch each other, and never for ever.
const STEPS: usize = 1_000;

/// Takes what nodes said, and lets time pass for everything that is due.
pub fn advance(fleet: &mut Fleet, effects: &mut intake::Effects, now: Now) {
    if fleet.rollouts.live.is_empty() {
        effects.heard.clear();
        return;
    }
    hear::take(fleet, effects, now);
    while let Some((at, id)) = fleet.rollouts.due.first().cloned().filter(|(at, _)| *at <= now.wall_ms) {
        fleet.rollouts.due.remove(&(at, id.clone()));
        if let Some(live) = fleet.rollouts.live.get_mut(&id) {
            live.due_ms = None;
        }
        fleet.rollouts.touched.insert(id);
    }
    for _ in 0..STEPS {
        let Some(id) = fleet.rollouts.touched.pop_first() else { return };
        step(fleet, effects, &id, now);
    }
}

fn step(fleet: &mut Fleet, effects: &mut intake::Effects, id: &Id, now: Now) {
    let Some(mut live) = fleet.rollouts.live.remove(id) else { return };
    let before = live.head.state;
    time_out(fleet, effects, &mut live, now);
    if !live.head.state.is_final() {
        if now.wall_ms >= live.head.deadline_ms() {
            end::by_deadline(fleet, effects, &mut live, now);
        } else {
            match live.head.state {
                State::Running | State::Paused => wave::advance(fleet, effects, &mut live, now),
                State::RollingBack => end::watch_back(fleet, &mut live, now),
                State::WaitingApproval | State::Done | State::Stopped | State::RolledBack | State::Failed => {
                }
            }
        }
    }
    live.drifted = None;
    if live.head.state != before {
        tell(fleet, effects, &live, now);
        if let Some(of) = &live.head.spec.back_of {
            fleet.rollouts.touched.insert(of.clone());
        }
    }
    plan_deadline(fleet, &mut live, now);
    if std::mem::take(&mut live.is_dirty) {
        effects.rollouts.heads.insert(id.clone());
        effects.rollouts.changed.insert(id.clone());
    }
    fleet.rollouts.live.insert(id.clone(), live);
}

/// Puts the next deadline into the queue of deadlines.
fn plan_deadline(fleet: &mut Fleet, live: &mut Live, now: Now) {
    let id = live.head.spec.id.clone();
    let member = live.first_deadline(now).map(|(at, _)| at);
    let open = (!live.head.state.is_final()).then(|| live.head.deadline_ms());
    let runs = live.head.state == State::Running;
    let soak = live.current().filter(|_| runs).and_then(|at| wave::soaked_ms(live, at));
    let again = live.again_ms.filter(|_| runs);
    let next = [member, open, soak, again].into_iter().flatten().min().map(|at| at.max(now.wall_ms + 1));
    if let Some(old) = live.due_ms.take() {
        fleet.rollouts.due.remove(&(old, id.clone()));
    }
    live.due_ms = next;
    fleet.rollouts.due.extend(next.map(|at| (at, id)));
}

/// Gives up seats whose time is over: silence is failure.
fn time_out(fleet: &mut Fleet, effects: &mut intake::Effects, live: &mut Live, now: Now) {
    while let Some((at, seat)) = live.first_deadline(now)
        && at <= now.wall_ms
    {
        let Some(member) = live.members().get(&seat) else { return };
        let terms = &live.head.spec.terms;
        let offline = member.offline_ms.is_some_and(|at| at.saturating_add(terms.offline_ms) <= now.wall_ms);
        let said =
            if member.stand == Stand::Said(Said::Probation) { "on trial" } else { member.stand.as_str() };
        let why = if offline {
            let limit = super::span(terms.offline_ms);
            reason("offline", format!("it went offline while it was {said}, and was not back within {limit}"))
        } else if member.claimed_ms.is_some() {
            reason("not_running", "it said that the release is confirmed, and never said that it runs it")
        } else {
            let limit = super::span(terms.node_ms());
            reason("silent", format!("it was {said} and did not come to an end within {limit}"))
        };
        give_up(fleet, effects, live, &seat, why, now);
    }
}

/// Ends a seat that is under way as timed out, and calls its command off.
pub(super) fn give_up(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    live: &mut Live,
    seat: &Seat,
    why: fleet_schemas::command::Reason,
    now: Now,
) {
    cancel(fleet, effects, live, seat, now);
    hear::end(fleet, effects, live, seat, Stand::Said(Said::TimedOut), Some(why), now);
}

/// Calls the command of a seat off: at once if it waits here, else its node is asked.
pub(super) fn cancel(fleet: &mut Fleet, effects: &mut intake::Effects, live: &Live, seat: &Seat, now: Now) {
    let Some(command) = live.members().get(seat).and_then(|member| member.command) else { return };
    let Some(node) = fleet.ids.get(&seat.0).cloned() else { return };
    command::cancel(fleet, &mut effects.commands, command, Some(&[node]), now);
}

/// A rollout's state changed: an event at the node that made it so, for rules and for whoever reads events.
fn tell(fleet: &Fleet, effects: &mut intake::Effects, live: &Live, now: Now) {
    let number = live.cause.or_else(|| live.members().keys().next().map(|(node, _)| *node));
    let Some(node) = number.and_then(|number| fleet.nodes.get(fleet.ids.get(&number)?)) else { return };
    let state = live.head.state;
    let severity = match state {
        State::WaitingApproval | State::Running | State::Done => Severity::Info,
        State::Paused | State::RollingBack | State::Stopped | State::RolledBack => Severity::Warning,
        State::Failed => Severity::Error,
    };
    let message = format!("rollout {} is {}: {}", live.head.spec.id, state.as_str(), live.head.reason);
    effects.by_hub(node, &format!("rollout_{}", state.as_str()), severity, message, now);
}

/// Whether a seat's node is there now.
pub(super) fn is_online(fleet: &Fleet, seat: &Seat) -> bool {
    let node = fleet.ids.get(&seat.0).and_then(|id| fleet.nodes.get(id));
    node.is_some_and(|node| node.record.presence.state == presence::State::Online)
}
