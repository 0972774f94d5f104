//! How rollouts look to whoever asks.

use std::collections::BTreeMap;

use fleet_schemas::{DeviceId, NodeId, update::State as Said};

use crate::{
    api::shapes,
    core::{
        fleet::Fleet,
        rollout::{Draft, LeftOut, Live, Placed, Seat, Stage, Stand, State, Wave},
        zones,
    },
};

/// A rollout without its nodes.
pub(crate) fn brief(live: &Live) -> shapes::Rollout {
    let head = &live.head;
    let spec = &head.spec;
    let tally = head.tally();
    shapes::Rollout {
        id: spec.id.to_string(),
        release: format!("{}@{}", spec.release.name, spec.release.version),
        kind: spec.release.kind.to_string(),
        state: head.state.as_str().to_owned(),
        since_ms: head.since_ms,
        reason: head.reason.clone(),
        waits_for: live.blocked().to_owned(),
        waves: head.waves.iter().map(|wave| shown(live, wave)).collect(),
        nodes_by_state: tally.iter().map(|(stand, many)| (stand.as_str().to_owned(), *many)).collect(),
        nodes_count: tally.values().sum(),
        created_ms: spec.created_ms,
        by: spec.by.clone(),
        approved_by: head.approved_by.clone(),
        deadline_ms: head.deadline_ms(),
        eta_ms: eta_ms(live),
        back: head.back.as_ref().map(ToString::to_string),
        back_of: spec.back_of.as_ref().map(ToString::to_string),
        selector: spec.selector.clone(),
        ..shapes::Rollout::default()
    }
}

fn shown(live: &Live, wave: &Wave) -> shapes::RolloutWave {
    let under_way = wave.tally.iter().filter(|(stand, _)| stand.is_under_way()).map(|(_, many)| many).sum();
    let left = [Said::Skipped, Said::Superseded, Said::Canceled];
    let skipped = left.iter().map(|said| wave.of(Stand::Said(*said))).sum::<u32>();
    let soaks = wave.stage == Stage::Soaking;
    shapes::RolloutWave {
        name: wave.name.clone(),
        state: wave.stage.as_str().to_owned(),
        since_ms: wave.since_ms,
        reason: wave.reason.clone(),
        nodes: wave.nodes(),
        confirmed: wave.confirmed(),
        failed: wave.bad(),
        under_way,
        skipped: skipped + wave.of(Stand::Inconclusive),
        waiting: wave.of(Stand::Waiting),
        moved: wave.moved,
        soaks_until_ms: soaks.then(|| wave.since_ms.saturating_add(live.head.spec.terms.soak_ms)),
    }
}

/// When the waves will have passed: what is left of them, at the pace of those that have.
fn eta_ms(live: &Live) -> Option<i64> {
    let head = &live.head;
    if head.state != State::Running {
        return None;
    }
    let last = head.waves.len().saturating_sub(1);
    let terms = &head.spec.terms;
    let node_ms = 60_000 + terms.probation_ms.unwrap_or(60_000);
    let mut end_ms = head.waves.iter().map(|wave| wave.since_ms).max()?;
    for wave in head.waves.iter().take(last).filter(|wave| wave.nodes() > 0) {
        let waiting = f64::from(wave.of(Stand::Waiting));
        let told_ms = terms.rate.map_or(0.0, |rate| waiting / rate * 60_000.0) as i64;
        end_ms = end_ms.saturating_add(match wave.stage {
            Stage::Waiting | Stage::Running => told_ms + node_ms + terms.soak_ms,
            Stage::Soaking => terms.soak_ms,
            Stage::Gating | Stage::Passed | Stage::Halted => 0,
        });
    }
    Some(end_ms.min(head.deadline_ms()))
}

fn name(fleet: &Fleet, (node, device): &Seat) -> String {
    let node = fleet.ids.get(node).map_or_else(|| format!("#{node}"), NodeId::to_string);
    if device.is_node() { node } else { format!("{node}/{device}") }
}

/// A page of a rollout's nodes, by name, and the cursor of the next.
pub(super) fn nodes(
    fleet: &Fleet,
    live: &Live,
    states: &[String],
    after: &str,
    limit: usize,
) -> (Vec<shapes::RolloutNode>, Option<String>) {
    let mut names: BTreeMap<String, &Seat> = BTreeMap::new();
    for (seat, member) in live.members() {
        if states.is_empty() || states.iter().any(|state| state == member.stand.as_str()) {
            let name = name(fleet, seat);
            if name.as_str() > after {
                names.insert(name, seat);
                if names.len() > limit + 1 {
                    names.pop_last();
                }
            }
        }
    }
    let more = names.len() > limit;
    let found: Vec<(String, &Seat)> = names.into_iter().take(limit).collect();
    let next = found.last().filter(|_| more).map(|(name, _)| name.clone());
    (found.iter().filter_map(|(_, seat)| node(fleet, live, seat)).collect(), next)
}

/// Where a node stands.
pub(super) fn node(fleet: &Fleet, live: &Live, seat: &Seat) -> Option<shapes::RolloutNode> {
    let member = live.members().get(seat)?;
    let wave = live.head.waves.get(usize::from(member.wave)).map(|wave| wave.name.clone());
    let tz = fleet.ids.get(&seat.0).and_then(|id| zones::at(fleet, id));
    Some(shapes::RolloutNode {
        node: name(fleet, &(seat.0, DeviceId::node())),
        device: seat.1.to_string(),
        wave: wave.unwrap_or_default(),
        state: member.stand.as_str().to_owned(),
        tz,
        since_ms: member.since_ms,
        code: member.reason.as_ref().map(|reason| reason.code.clone()),
        reason: member.reason.as_ref().map(|reason| reason.message.clone()),
        command: member.command.map(|command| command.to_string()),
        from: member.from.as_ref().map(|(version, _)| version.to_string()),
        bytes: member.bytes.map(|(bytes, _)| bytes),
        total: member.bytes.map(|(_, total)| total),
    })
}

/// A rollout that would be.
pub(super) fn draft(fleet: &Fleet, draft: &Draft, most: usize) -> shapes::RolloutDraft {
    let named = |placed: &Placed| name(fleet, &placed.seat);
    let waves = draft.plan.waves.iter().zip(&draft.plan.names).map(|(seats, name)| shapes::DraftWave {
        name: name.clone(),
        nodes: seats.iter().take(most).map(named).collect(),
        nodes_count: seats.len(),
    });
    let mut left_out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for placed in draft.plan.left_out.iter().take(most) {
        let code = placed.left_out.map_or("", LeftOut::code);
        left_out.entry(code.to_owned()).or_default().push(named(placed));
    }
    let spec = &draft.spec;
    shapes::RolloutDraft {
        id: spec.id.to_string(),
        release: format!("{}@{}", spec.release.name, spec.release.version),
        waves: waves.collect(),
        left_out,
        plan: draft.plan.text.clone(),
        duration_s: draft.forecast.duration_ms as f64 / 1_000.0,
        bytes: draft.forecast.bytes,
        warnings: draft.forecast.warnings.clone(),
    }
}
