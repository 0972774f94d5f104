//! How a rollout ends: done, called off, gone back, or by its deadline.

use fleet_schemas::update::State as Said;

use super::{
    back,
    live::{Live, reason},
    model::{Seat, Stage, Stand, State},
    plan::{LeftOut, at_most, count},
    step,
};
use crate::core::{Now, fleet::Fleet, intake};

/// Every wave passed.
pub(super) fn done(live: &mut Live, now: Now) {
    let reason = outcome(live);
    live.turn(State::Done, reason, now.wall_ms);
}

/// What came of it, in a sentence.
fn outcome(live: &Live) -> String {
    let tally = live.head.tally();
    let of = |stand: Stand| tally.get(&stand).copied().unwrap_or(0) as usize;
    let bad: u32 = tally.iter().filter(|(stand, _)| stand.is_bad()).map(|(_, count)| count).sum();
    let skipped = of(Stand::Said(Said::Skipped));
    let mut text = format!("{} confirmed", count(of(Stand::Said(Said::Confirmed)), "node"));
    if bad > 0 {
        text += &format!(", {bad} failed");
    }
    if skipped > 0 {
        text += &format!(", {skipped} skipped");
    }
    text
}

/// Nobody is told any more. Those that have not switched are asked to let it be; the others come to their end.
pub(super) fn call_off(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    live: &mut Live,
    why: &str,
    now: Now,
) {
    let open = |(seat, member): (&Seat, &super::Member)| {
        let waits = member.stand == Stand::Waiting || member.again;
        let may_cancel = matches!(member.stand, Stand::Said(said) if said < Said::Switching);
        (waits || may_cancel).then(|| (seat.clone(), waits))
    };
    let seats: Vec<(Seat, bool)> = live.members().iter().filter_map(open).collect();
    for (seat, waits) in seats {
        if waits {
            let why = reason("canceled", why);
            live.stand(&mut effects.rollouts, &seat, Stand::Said(Said::Canceled), Some(why), now.wall_ms);
        } else {
            step::cancel(fleet, effects, live, &seat, now);
        }
    }
    release(fleet, live);
}

/// Lets others have the nodes that waited here.
fn release(fleet: &mut Fleet, live: &Live) {
    let others: Vec<_> = (fleet.rollouts.live.iter())
        .filter(|(_, other)| super::hear::same_name(other, live))
        .map(|(id, _)| id.clone())
        .collect();
    fleet.rollouts.touched.extend(others);
}

/// It is called off.
pub(super) fn stop(fleet: &mut Fleet, effects: &mut intake::Effects, live: &mut Live, why: String, now: Now) {
    call_off(fleet, effects, live, "the rollout was called off", now);
    live.turn(State::Stopped, why, now.wall_ms);
}

/// Nodes that have it go back.
pub(super) fn roll_back(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    live: &mut Live,
    why: &str,
    by: &str,
    now: Now,
) {
    call_off(fleet, effects, live, "the rollout goes back", now);
    match back::make(fleet, effects, live, by, now) {
        (Some(back), _) => {
            live.head.back = Some(back.clone());
            let why = format!("{why}; rollout {back} takes the nodes back");
            live.turn(State::RollingBack, why, now.wall_ms);
        }
        (None, 0) => live.turn(State::RolledBack, format!("{why}; no node has to go back"), now.wall_ms),
        (None, stay) => {
            let stay = count(stay, "node");
            let why = format!("{why}; {stay} run it on: nothing that is still signed ran there before");
            live.turn(State::Failed, why, now.wall_ms);
        }
    }
}

/// Nodes are on their way back.
pub(super) fn watch_back(fleet: &Fleet, live: &mut Live, now: Now) {
    let back = live.head.back.as_ref().and_then(|id| fleet.rollouts.live.get(id));
    let Some(back) = back else {
        live.turn(
            State::RolledBack,
            "the rollout that took the nodes back is not known any more",
            now.wall_ms,
        );
        return;
    };
    let state = back.head.state;
    if !state.is_final() || back.under_way() > 0 {
        return;
    }
    let id = &back.head.spec.id;
    let came = outcome(back);
    let why = live.head.reason.split("; rollout ").next().unwrap_or_default();
    let stays = |member: &super::Member| match member.stand {
        // It was away all the time, or has nothing to go back to.
        Stand::Said(Said::Skipped) => {
            let why = member.reason.as_ref().map(|why| why.code.as_str());
            why.is_some_and(|code| ["offline", LeftOut::NothingBefore.code()].contains(&code))
        }
        stand => stand.is_bad(),
    };
    let all_went = state == State::Done && !back.members().values().any(stays);
    let (state, took) = match all_went {
        true => (State::RolledBack, "took the nodes back"),
        false => (State::Failed, "did not take all nodes back"),
    };
    let why = format!("{why}; rollout {id} {took}: {came}");
    live.turn(state, why, now.wall_ms);
}

/// Its time is over.
pub(super) fn by_deadline(fleet: &mut Fleet, effects: &mut intake::Effects, live: &mut Live, now: Now) {
    let state = live.head.state;
    let last = live.head.waves.len().saturating_sub(1);
    let passed = live.head.waves.iter().take(last).all(|wave| wave.stage == Stage::Passed);
    let left = live.waiting();
    let under_way: Vec<Seat> =
        live.members().iter().filter(|(_, m)| m.stand.is_under_way()).map(|(seat, _)| seat.clone()).collect();
    for seat in under_way {
        let why = reason("deadline", "the rollout's time ended before it came to an end");
        step::give_up(fleet, effects, live, &seat, why, now);
    }
    let waiting = |(seat, member): (&Seat, &super::Member)| {
        (member.stand == Stand::Waiting || member.again).then(|| seat.clone())
    };
    let waiting: Vec<Seat> = live.members().iter().filter_map(waiting).collect();
    for seat in waiting {
        let why = if step::is_online(fleet, &seat) {
            reason("deadline", "the rollout's time ended before its turn came")
        } else {
            reason("offline", "it was offline until the rollout's time ended")
        };
        live.stand(&mut effects.rollouts, &seat, Stand::Said(Said::Skipped), Some(why), now.wall_ms);
        live.change(&mut effects.rollouts, &seat, |member| member.again = false);
    }
    release(fleet, live);
    let all = live.members().len();
    let terms = &live.head.spec.terms;
    let allowed = at_most(terms.allowance, u32::try_from(all).unwrap_or(u32::MAX)) as usize;
    let came = outcome(live);
    let account = super::wave::account(live, last);
    let is_bad = account.bad > at_most(terms.max_failures, account.executed);
    match state {
        State::WaitingApproval => {
            live.turn(State::Stopped, "nobody approved it before its deadline", now.wall_ms);
        }
        State::RollingBack => {
            let why = "its deadline passed while nodes went back; the rollout that takes them goes on";
            live.turn(State::Failed, why, now.wall_ms);
        }
        State::Running if passed && left <= allowed && !is_bad => {
            live.stage(last, Stage::Passed, "its time ended", now.wall_ms);
            live.turn(State::Done, format!("{came}, at its deadline"), now.wall_ms);
        }
        State::Running | State::Paused => {
            if let Some(at) = live.current() {
                live.stage(at, Stage::Halted, "the rollout's time ended", now.wall_ms);
            }
            let was = if state == State::Paused { "while it was paused" } else { "before all waves passed" };
            live.turn(State::Failed, format!("its deadline passed {was}: {came}"), now.wall_ms);
        }
        State::Done | State::Stopped | State::RolledBack | State::Failed => {}
    }
}
