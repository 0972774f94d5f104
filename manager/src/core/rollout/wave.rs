//! Waves: one after the other, each told, watched, asked at its gates; and what halts them.

use fleet_schemas::update::State as Said;

use super::{
    end,
    live::Live,
    model::{OnFailure, Stage, Stand, State, Wave},
    offer,
    plan::{at_most, count, percent},
};
use crate::core::{Now, fleet::Fleet, intake};

/// Nodes that a reason names.
const LISTED: usize = 3;

/// What a wave's account says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    /// Failed, those that an operator has gone on from not.
    pub bad: u32,
    /// Were offline when their turn came, beyond the allowance.
    pub absent: u32,
    /// Came to an end: confirmed or failed.
    pub executed: u32,
    /// Those that can come to such an end, and the absent.
    pub all: u32,
}

/// Steps the waves as far as they go now.
pub(super) fn advance(fleet: &mut Fleet, effects: &mut intake::Effects, live: &mut Live, now: Now) {
    live.blocked.clear();
    live.again_ms = None;
    if let Some(what) = live.drifted.take()
        && live.head.spec.back_of.is_none()
    {
        halt(fleet, effects, live, live.current(), format!("{what}; nothing further is updated"), now);
        return;
    }
    // Every turn moves a wave to its next stage, or ends this.
    loop {
        let Some(at) = live.current() else {
            end::done(live, now);
            return;
        };
        if let Some(why) = verdict(fleet, live, at) {
            halt(fleet, effects, live, Some(at), why, now);
            return;
        }
        let is_running = live.head.state == State::Running;
        let Some(wave) = live.head.waves.get(at) else { return };
        let next =
            match wave.stage {
                _ if !is_running => None,
                Stage::Waiting => Some((Stage::Running, String::new())),
                Stage::Running => {
                    offer::offer(fleet, effects, live, at, now);
                    live.is_settled(at).then(|| settled(live, at))
                }
                Stage::Soaking => (soaked_ms(live, at).is_some_and(|due| due <= now.wall_ms)).then(|| {
                    match live.head.spec.terms.gates.is_empty() {
                        true => (Stage::Passed, String::new()),
                        false => (Stage::Gating, "its gates are asked".to_owned()),
                    }
                }),
                Stage::Gating | Stage::Halted | Stage::Passed => None,
            };
        let Some((stage, why)) = next else { return };
        live.stage(at, stage, why, now.wall_ms);
    }
}

/// What follows when all nodes of a wave came to an end.
fn settled(live: &Live, at: usize) -> (Stage, String) {
    let wave = &live.head.waves[at];
    if account(live, at).executed + wave.forgiven == 0 {
        // Nobody ran it, so there is nothing to watch.
        return (Stage::Passed, "nobody had to be told".to_owned());
    }
    (
        Stage::Soaking,
        format!("all came to an end; it is watched for {}", super::span(live.head.spec.terms.soak_ms)),
    )
}

/// When a wave that is watched has been watched long enough, Unix milliseconds.
pub(super) fn soaked_ms(live: &Live, at: usize) -> Option<i64> {
    let wave = live.head.waves.get(at)?;
    (wave.stage == Stage::Soaking).then(|| wave.since_ms.saturating_add(live.head.spec.terms.soak_ms))
}

/// The account of a wave.
pub(super) fn account(live: &Live, at: usize) -> Account {
    let wave = &live.head.waves[at];
    let absent = excess(live, wave).saturating_sub(wave.forgiven.saturating_sub(wave.bad()));
    let bad = wave.bad().saturating_sub(wave.forgiven);
    let executed = wave.confirmed().saturating_add(bad);
    let neutral = [Said::Skipped, Said::Superseded, Said::Canceled].map(|said| wave.of(Stand::Said(said)));
    let neutral = neutral.iter().sum::<u32>() + wave.of(Stand::Inconclusive) + wave.forgiven;
    let all = (wave.nodes() + absent).saturating_sub(neutral);
    Account { bad, absent, executed, all }
}

/// Nodes that were offline when their turn came, beyond the allowance.
fn excess(live: &Live, wave: &Wave) -> u32 {
    let planned = wave.nodes().saturating_add(wave.moved);
    wave.moved.saturating_sub(at_most(live.head.spec.terms.allowance, planned))
}

/// Why a wave must not go on, if so.
fn verdict(fleet: &Fleet, live: &Live, at: usize) -> Option<String> {
    let (wave, terms) = (live.head.waves.get(at)?, &live.head.spec.terms);
    if matches!(wave.stage, Stage::Waiting | Stage::Halted | Stage::Passed) {
        return None;
    }
    let Account { bad, absent, executed, all } = account(live, at);
    let is_settled = live.is_settled(at);
    let enough = executed >= terms.min_executed.min(all) || is_settled;
    if enough && bad > at_most(terms.max_failures, executed) {
        let share = f64::from(bad) / f64::from(executed.max(1)) * 100.0;
        let (of, most) = (count(executed as usize, "node"), percent(terms.max_failures));
        let (name, who) = (&wave.name, who(fleet, live, at));
        return Some(format!("{bad} of {of} of wave {name} failed ({share:.0}%; at most {most} may){who}"));
    }
    // Whatever becomes of the others, too many did not take it.
    if absent > 0 && bad + absent > at_most(terms.max_failures, all) {
        let (of, name) = (count(all as usize, "node"), &wave.name);
        return Some(format!(
            "{absent} of {of} of wave {name} were offline when their turn came, beyond the {} that may be, and {bad} \
             failed: a wave of so few proves nothing",
            percent(terms.allowance)
        ));
    }
    let unproven = wave.of(Stand::Inconclusive);
    if is_settled && wave.confirmed() == 0 && unproven > 0 && bad == 0 && wave.forgiven == 0 {
        return Some(format!(
            "no node of wave {} could keep it: {} lost the link to the hub with both releases",
            wave.name,
            count(unproven as usize, "node")
        ));
    }
    None
}

/// Who failed, and why, in the nodes' own words.
fn who(fleet: &Fleet, live: &Live, at: usize) -> String {
    let bad =
        live.members().iter().filter(|(_, member)| usize::from(member.wave) == at && member.stand.is_bad());
    let named: Vec<String> = bad
        .take(LISTED)
        .filter_map(|(seat, member)| {
            let name = fleet.ids.get(&seat.0)?;
            let why = member.reason.as_ref().map_or_else(String::new, |why| format!(", {}", why.message));
            Some(format!("{name}: {}{why}", member.stand.as_str().replace('_', " ")))
        })
        .collect();
    if named.is_empty() { String::new() } else { format!(": {}", named.join("; ")) }
}

/// A wave does not go on.
pub(super) fn halt(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    live: &mut Live,
    at: Option<usize>,
    why: String,
    now: Now,
) {
    if let Some(at) = at {
        live.stage(at, Stage::Halted, why.clone(), now.wall_ms);
    }
    match live.head.spec.terms.on_failure {
        OnFailure::Pause => live.turn(State::Paused, why, now.wall_ms),
        OnFailure::Stop => end::stop(fleet, effects, live, why, now),
        OnFailure::Rollback => end::roll_back(fleet, effects, live, &why, "hub", now),
    }
}

/// An operator goes on after a halt: what failed until now is seen, and does not count again.
pub(super) fn forgive(live: &mut Live, now: Now) {
    for at in 0..live.head.waves.len() {
        let failed = live.head.waves[at].bad() + excess(live, &live.head.waves[at]);
        let wave = &mut live.head.waves[at];
        wave.forgiven = failed.max(wave.forgiven);
        if wave.stage == Stage::Halted {
            live.stage(at, Stage::Running, "", now.wall_ms);
        }
    }
    live.is_dirty = true;
}
