//! The way back: a rollout of its own to each node's last good release.

use std::collections::BTreeMap;

use fleet_schemas::update::{Digest, State as Said, Target};

use super::{
    live::Live,
    model::{Approval, Artifact, Head, Id, Member, OnFailure, Size, Spec, Stage, Stand, State, Terms, Wave},
    plan::{LeftOut, Placed, Plan, TRAILING, count},
};
use crate::core::{Now, fleet::Fleet, intake};

/// The name of the only wave.
const ALL: &str = "100%";

/// Makes the rollout that undoes another; none when no node can go back. Gives how many nodes have it and nothing to go
/// back to.
pub(super) fn make(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    of: &Live,
    by: &str,
    now: Now,
) -> (Option<Id>, usize) {
    let mut goals: Vec<(Target, Artifact)> = Vec::new();
    let mut places: BTreeMap<Digest, u16> = BTreeMap::new();
    let (mut placed, mut left_out) = (Vec::new(), Vec::new());
    for (seat, member) in of.members() {
        // Also those that may run it, or may come to: they are looked at when their turn comes.
        let may_have_it = member.reason.as_ref().is_some_and(|reason| reason.may_have_executed);
        let has_it = member.stand.is_under_way()
            || matches!(member.stand, Stand::Said(Said::Confirmed | Said::TimedOut))
            || (member.stand == Stand::Said(Said::Failed) && may_have_it);
        if !has_it || member.told_ms.is_none() {
            continue;
        }
        let goal = goal_of(of, member).and_then(|(target, artifact)| {
            let digest = artifact.digest;
            let known = places.get(&digest).copied();
            known.or_else(|| {
                let place = u16::try_from(goals.len()).ok()?;
                goals.push((target, artifact));
                places.insert(digest, place);
                Some(place)
            })
        });
        let why = goal.is_none().then_some(LeftOut::NothingBefore);
        let one = Placed { seat: seat.clone(), site: member.site, goal, left_out: why };
        if why.is_some() { left_out.push(one) } else { placed.push(one) }
    }
    let stay = left_out.len();
    if placed.is_empty() {
        return (None, stay);
    }
    let id = name(fleet, &of.head.spec.id);
    let spec = spec(fleet, of, &id, goals, by, now);
    let mut text = vec![format!(
        "{} go back from {}@{}",
        count(placed.len(), "node"),
        spec.release.name,
        spec.release.version
    )];
    if !left_out.is_empty() {
        text.push(format!(
            "left out: {}, {}",
            count(left_out.len(), "node"),
            LeftOut::NothingBefore.sentence()
        ));
    }
    let names = vec![ALL.to_owned(), TRAILING.to_owned()];
    let plan = Plan { names, waves: vec![placed, Vec::new()], sites: of.head.sites.clone(), left_out, text };
    let reason = format!("nodes go back from rollout {}", of.head.spec.id);
    start(fleet, effects, spec, plan, State::Running, reason, now);
    (Some(id), stay)
}

/// What a seat ran before, as a target: what nobody signed, no node takes.
fn goal_of(of: &Live, member: &Member) -> Option<(Target, Artifact)> {
    let (_, digest) = member.from.as_ref()?;
    of.head.spec.before.get(digest).cloned()
}

fn name(fleet: &Fleet, of: &Id) -> Id {
    let stem: String = of.as_str().chars().take(55).collect();
    let names = (1_u32..).map(|n| if n == 1 { format!("{stem}-back") } else { format!("{stem}-back{n}") });
    let ids = names.filter_map(|name| Id::parse(&name).ok());
    ids.into_iter().find(|id| !fleet.rollouts.live.contains_key(id)).expect("some number is free")
}

fn spec(fleet: &Fleet, of: &Live, id: &Id, goals: Vec<(Target, Artifact)>, by: &str, now: Now) -> Spec {
    let terms = Terms {
        waves: vec![Size::Percent(100.0)],
        soak_ms: 0,
        max_failures: 1.0,
        min_executed: 1,
        window: None,
        gates: Vec::new(),
        on_failure: OnFailure::Pause,
        approval: Approval::No,
        allowance: 1.0,
        ..of.head.spec.terms.clone()
    };
    Spec {
        id: id.clone(),
        no: fleet.rollouts.last_no + 1,
        release: of.head.spec.release.clone(),
        goals,
        before: BTreeMap::new(),
        selector: None,
        terms,
        by: by.to_owned(),
        created_ms: now.wall_ms,
        back_of: Some(of.head.spec.id.clone()),
    }
}

/// Takes a planned rollout into the fleet.
pub(super) fn start(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    spec: Spec,
    plan: Plan,
    state: State,
    reason: String,
    now: Now,
) {
    let id = spec.id.clone();
    let wave = |name: &String| Wave {
        name: name.clone(),
        stage: Stage::Waiting,
        since_ms: now.wall_ms,
        reason: String::new(),
        moved: 0,
        forgiven: 0,
        tally: BTreeMap::new(),
    };
    let head = Head {
        state,
        since_ms: now.wall_ms,
        reason,
        approved_by: None,
        waves: plan.names.iter().map(wave).collect(),
        sites: plan.sites.clone(),
        next_us: 0,
        back: None,
        spec,
    };
    let mut members = Vec::new();
    for (wave, seats) in plan.waves.iter().enumerate() {
        let wave = u16::try_from(wave).unwrap_or(u16::MAX);
        for (turn, placed) in seats.iter().enumerate() {
            let turn = u32::try_from(turn).unwrap_or(u32::MAX);
            members
                .push((placed.seat.clone(), Member::new(wave, turn, placed.site, placed.goal, now.wall_ms)));
        }
    }
    let last = u16::try_from(plan.waves.len().saturating_sub(1)).unwrap_or(0);
    for placed in &plan.left_out {
        let why = placed.left_out.map(|why| super::live::reason(why.code(), why.sentence()));
        let member = Member {
            stand: Stand::Said(Said::Skipped),
            reason: why.map(Box::new),
            ..Member::new(last, 0, placed.site, placed.goal, now.wall_ms)
        };
        members.push((placed.seat.clone(), member));
    }
    effects.rollouts.members.extend(members.iter().map(|(seat, _)| (id.clone(), seat.clone())));
    effects.rollouts.heads.insert(id.clone());
    effects.rollouts.changed.insert(id.clone());
    effects.rollouts.plans.push((id.clone(), plan));
    fleet.rollouts.insert(Live::fresh(head, members, now));
    fleet.rollouts.touched.insert(id);
}
