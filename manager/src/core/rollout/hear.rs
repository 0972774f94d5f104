//! What nodes say, and what it makes of their seats: steps of updates, what runs, ends of commands, presence.

use fleet_schemas::{
    CommandId, DeviceId, NodeId,
    command::{Reason, State as Ended},
    update::{HARMLESS, INCONCLUSIVE, Report, Running, State as Said},
};

use super::{
    Heard, Rollouts, Word,
    live::{Live, reason},
    model::{Id, Member, Seat, Stand, State},
    plan::{Candidate, fits},
};
use crate::core::{
    Now,
    fleet::{Fleet, Node, NodeNo},
    intake, presence,
};

/// Codes of commands that the hub itself ended as failed, for it knows no better.
const BY_HUB: [&str; 5] = ["replaced", "moved", "agent_state_lost", "unsettled", "held"];

/// Takes everything that a group of inputs says of updates.
pub(super) fn take(fleet: &mut Fleet, effects: &mut intake::Effects, now: Now) {
    for Heard { node, word } in std::mem::take(&mut effects.heard) {
        match word {
            Word::Runs { running, born } => runs(fleet, effects, node, &running, born, now),
            Word::Step(report) => {
                step(fleet, effects, node, &report, true, now);
            }
        }
    }
    results(fleet, effects, now);
    ends(fleet, effects, now);
    // Rows of nodes are written when their presence changed, and at births.
    let ids: Vec<NodeId> = effects.nodes.iter().cloned().collect();
    for id in ids {
        met(fleet, effects, &id, now);
    }
    let forgotten: Vec<NodeNo> = effects.forgotten.iter().map(|(number, _)| *number).collect();
    forgotten.into_iter().for_each(|number| gone(fleet, effects, number));
}

/// Runs something for every rollout that a node takes part in.
fn each(fleet: &mut Fleet, node: NodeNo, mut work: impl FnMut(&mut Fleet, &mut Live)) {
    let ids: Vec<Id> = fleet.rollouts.of_node.get(&node).into_iter().flatten().cloned().collect();
    for id in ids {
        let Some(mut live) = fleet.rollouts.live.remove(&id) else { continue };
        work(fleet, &mut live);
        fleet.rollouts.live.insert(id, live);
    }
}

/// A step of an update, told by an event or by the end of its command.
fn step(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    node: NodeNo,
    report: &Report,
    by_event: bool,
    now: Now,
) {
    let seat = (node, report.device.clone().unwrap_or_else(DeviceId::node));
    each(fleet, node, |fleet, live| {
        let Some(member) = live.members().get(&seat) else { return };
        if member.command != Some(report.command) || live.digest(member) != Some(report.digest) {
            return;
        }
        hear(fleet, effects, live, &seat, report, by_event, now);
    });
}

fn hear(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    live: &mut Live,
    seat: &Seat,
    report: &Report,
    by_event: bool,
    now: Now,
) {
    let Some(member) = live.members().get(seat) else { return };
    let stand = member.stand;
    // What timed out here may have come to an end there: its own word tells more.
    let may = stand.is_under_way() || stand == Stand::Said(Said::TimedOut);
    if report.state == Said::Confirmed {
        if may {
            let is_running = does_run(fleet, live, seat);
            live.change(&mut effects.rollouts, seat, |member| {
                member.claimed_ms.get_or_insert(now.wall_ms);
                member.settled |= by_event;
            });
            confirm_or_doubt(fleet, effects, live, seat, is_running, now);
        } else if by_event && stand == Stand::Said(Said::Confirmed) && !member.settled {
            live.change(&mut effects.rollouts, seat, |member| member.settled = true);
        }
        return;
    }
    if report.state.is_terminal() {
        // That it was called off after it timed out is our own doing.
        let late = stand == Stand::Said(Said::TimedOut) && !Stand::Said(report.state).is_bad();
        if may && !late {
            let inconclusive = report.state == Said::RolledBack
                && report.reason.as_ref().is_some_and(|reason| reason.code == INCONCLUSIVE);
            let stand = if inconclusive { Stand::Inconclusive } else { Stand::Said(report.state) };
            end(fleet, effects, live, seat, stand, report.reason.clone(), now);
        }
        return;
    }
    let Stand::Said(before) = stand else { return };
    let bytes = report.bytes.zip(report.total);
    let is_news = before.may_become(report.state);
    if stand.is_under_way() && (is_news || bytes.is_some()) {
        live.change(&mut effects.rollouts, seat, |member| {
            if is_news {
                member.stand = Stand::Said(report.state);
                member.since_ms = now.wall_ms;
                member.reason = report.reason.clone().map(Box::new);
            }
            member.bytes = bytes.or(member.bytes);
        });
    }
}

/// Whether a node says that it runs what the rollout told it.
fn does_run(fleet: &Fleet, live: &Live, seat: &Seat) -> bool {
    let Some(node) = node_of(fleet, seat.0) else { return false };
    let Some((target, artifact)) = live.members().get(seat).and_then(|member| live.goal(member)) else {
        return false;
    };
    super::plan::runs(node, target.kind, &target.name, &seat.1)
        .is_some_and(|(_, digest)| digest == artifact.digest)
}

fn node_of(fleet: &Fleet, number: NodeNo) -> Option<&Node> {
    Some(&**fleet.nodes.get(fleet.ids.get(&number)?)?)
}

/// Confirms a seat whose node says so, if it runs the digest.
fn confirm_or_doubt(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    live: &mut Live,
    seat: &Seat,
    is_running: bool,
    now: Now,
) {
    if is_running {
        end(fleet, effects, live, seat, Stand::Said(Said::Confirmed), None, now);
        return;
    }
    let why = reason(
        "not_seen_running",
        "it says that the release is confirmed, and has not yet said that this is what it runs",
    );
    let late = live.members().get(seat).is_some_and(|member| !member.stand.is_under_way());
    if !late {
        live.stand(&mut effects.rollouts, seat, Stand::Said(Said::Probation), Some(why), now.wall_ms);
    }
}

/// A seat comes to an end.
pub(super) fn end(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    live: &mut Live,
    seat: &Seat,
    stand: Stand,
    why: Option<Reason>,
    now: Now,
) {
    let Some(member) = live.members().get(seat) else { return };
    // What timed out here was not held against the release yet; the node may tell now what was wrong.
    let was_bad = member.stand.is_bad() && member.stand != Stand::Said(Said::TimedOut);
    let digest = live.digest(member);
    let was_told = member.told_ms.is_some();
    let waits_for = node_of(fleet, seat.0).is_some_and(|node| !is_up(node));
    if !was_bad
        && was_told
        && tells_of_release(stand, why.as_ref())
        && let Some(digest) = digest
    {
        let text = why.as_ref().map_or_else(|| stand.as_str().to_owned(), |why| why.message.clone());
        fleet.rollouts.strike(&mut effects.rollouts, (seat.0, digest), &text, now.wall_ms);
    }
    live.stand(&mut effects.rollouts, seat, stand, why, now.wall_ms);
    live.change(&mut effects.rollouts, seat, |member| {
        member.down = was_told && waits_for;
        member.bytes = None;
    });
    live.cause = Some(seat.0);
    touch_all(&mut fleet.rollouts, seat.0, &live.head.spec.id);
}

/// Whether an end says something of the release: that the link, the disk or the time was not enough does not.
fn tells_of_release(stand: Stand, why: Option<&Reason>) -> bool {
    match stand {
        Stand::Drifted => true,
        Stand::Said(Said::RolledBack | Said::Failed) => {
            let harmless =
                |why: &Reason| HARMLESS.contains(&why.code.as_str()) || BY_HUB.contains(&why.code.as_str());
            !why.is_some_and(harmless)
        }
        _ => false,
    }
}

/// Whether others need not wait for a node to come back: it is there, or has left for another hub.
fn is_up(node: &Node) -> bool {
    node.moves || node.record.presence.state == presence::State::Online
}

/// Others may wait for this node.
fn touch_all(rollouts: &mut Rollouts, node: NodeNo, own: &Id) {
    let of: Vec<Id> = rollouts.of_node.get(&node).into_iter().flatten().cloned().collect();
    rollouts.touched.extend(of);
    rollouts.touched.insert(own.clone());
}

/// What a node runs, by a birth or by an event in the middle of a session.
fn runs(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    node: NodeNo,
    running: &[Running],
    born: bool,
    now: Now,
) {
    each(fleet, node, |fleet, live| {
        let seats: Vec<Seat> = seats_of(live, node);
        for seat in seats {
            let Some(member) = live.members().get(&seat) else { continue };
            let Some((target, artifact)) = live.goal(member) else { continue };
            let found = running.iter().find(|running| {
                running.kind == target.kind
                    && running.name == target.name
                    && running.device.as_ref().map_or(seat.1.is_node(), |at| *at == seat.1)
            });
            let is_it = found.is_some_and(|running| running.digest == artifact.digest);
            let claimed = member.claimed_ms.is_some();
            let confirmed = member.stand == Stand::Said(Said::Confirmed);
            let open = member.stand.is_under_way() || member.stand == Stand::Said(Said::TimedOut);
            // Events from before its confirmation may come after it by another lane.
            let is_newer = born || member.settled;
            let runs = found.map_or_else(|| "nothing".to_owned(), |running| running.version.to_string());
            if open && claimed && is_it {
                confirm_or_doubt(fleet, effects, live, &seat, true, now);
            } else if member.stand.is_under_way() && claimed && born {
                let why =
                    reason("not_running", format!("it said that the release is confirmed, and runs {runs}"));
                end(fleet, effects, live, &seat, Stand::Said(Said::Failed), Some(why), now);
            } else if confirmed && !is_it && is_newer && !taken_over(fleet, live, &seat) {
                drift(fleet, effects, live, &seat, &runs, now);
            }
        }
    });
}

/// A node runs something else than what was confirmed there.
fn drift(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    live: &mut Live,
    seat: &Seat,
    runs: &str,
    now: Now,
) {
    let name = node_of(fleet, seat.0).map_or_else(String::new, |node| node.record.id.to_string());
    let why = reason("drifted", format!("it was confirmed, and runs {runs} now"));
    end(fleet, effects, live, seat, Stand::Drifted, Some(why), now);
    live.drifted = Some(format!("{name} was confirmed and runs {runs} now"));
}

/// Whether a later rollout has told this seat to run something else.
fn taken_over(fleet: &Fleet, live: &Live, seat: &Seat) -> bool {
    let of = fleet.rollouts.of_node.get(&seat.0).into_iter().flatten();
    of.filter_map(|id| fleet.rollouts.live.get(id)).any(|other| {
        same_name(other, live)
            && other.head.spec.no > live.head.spec.no
            && other.members().get(seat).is_some_and(|member| member.told_ms.is_some())
    })
}

/// Whether two rollouts update the same thing.
pub(super) fn same_name(one: &Live, other: &Live) -> bool {
    let (one, other) = (&one.head.spec.release, &other.head.spec.release);
    one.kind == other.kind && one.name == other.name
}

fn seats_of(live: &Live, node: NodeNo) -> Vec<Seat> {
    let first = (node, DeviceId::node());
    let of = live.members().range(first..).take_while(|((at, _), _)| *at == node);
    of.map(|(seat, _)| seat.clone()).collect()
}

/// The results that ends of commands carry: a lost event costs only what lies between.
fn results(fleet: &mut Fleet, effects: &mut intake::Effects, now: Now) {
    let known = |node: &NodeNo| fleet.rollouts.of_node.contains_key(node);
    let results: Vec<(NodeNo, Report)> = (effects.commands.reports.iter())
        .filter(|new| known(&new.node))
        .filter_map(|new| Some((new.node, Report::read(new.report.result.as_ref()?)?)))
        .collect();
    for (node, report) in results {
        step(fleet, effects, node, &report, false, now);
    }
}

/// Commands that ended, whoever ended them.
fn ends(fleet: &mut Fleet, effects: &mut intake::Effects, now: Now) {
    let ended: Vec<(CommandId, NodeNo, Ended, Option<Reason>)> = (effects.commands.changes.iter())
        .filter(|change| {
            change.kind.as_str() == fleet_schemas::update::COMMAND && change.step.state.is_terminal()
        })
        .filter_map(|change| {
            let why = change.step.reason.as_ref().map(|why| (**why).clone());
            Some((change.command, change.node?, change.step.state, why))
        })
        .collect();
    for (command, node, state, why) in ended {
        each(fleet, node, |fleet, live| {
            let of =
                |seat: &Seat| live.members().get(seat).is_some_and(|member| member.command == Some(command));
            let Some(seat) = seats_of(live, node).into_iter().find(of) else { return };
            let is_open = |member: &Member| member.stand.is_under_way() && member.claimed_ms.is_none();
            if !live.members().get(&seat).is_some_and(is_open) {
                return;
            }
            let stand = match state {
                // It says that it is done and not what it did: what it runs tells.
                Ended::Succeeded => {
                    let is_running = does_run(fleet, live, &seat);
                    live.change(&mut effects.rollouts, &seat, |member| member.claimed_ms = Some(now.wall_ms));
                    confirm_or_doubt(fleet, effects, live, &seat, is_running, now);
                    return;
                }
                Ended::Failed => Stand::Said(Said::Failed),
                Ended::TimedOut | Ended::Expired => Stand::Said(Said::TimedOut),
                Ended::Rejected => Stand::Said(Said::Rejected),
                Ended::Canceled => Stand::Said(Said::Canceled),
                Ended::Superseded => Stand::Said(Said::Superseded),
                Ended::Queued | Ended::Sent | Ended::Accepted | Ended::Running => return,
            };
            end(fleet, effects, live, &seat, stand, why.clone(), now);
        });
    }
}

/// A node's presence may have changed, or it is new.
fn met(fleet: &mut Fleet, effects: &mut intake::Effects, id: &NodeId, now: Now) {
    let Some(node) = fleet.nodes.get(id) else {
        if let Some(number) = fleet.gone.get(id).map(|node| node.number) {
            gone(fleet, effects, number);
        }
        return;
    };
    let (number, state, is_back) = (node.number, node.record.presence.state, is_up(node));
    each(fleet, number, |fleet, live| {
        for seat in seats_of(live, number) {
            let Some(member) = live.members().get(&seat) else { continue };
            let is_gone = matches!(state, presence::State::Offline | presence::State::Sleeping { .. });
            if is_back && member.down {
                live.change(&mut effects.rollouts, &seat, |member| member.down = false);
            }
            let Some(member) = live.members().get(&seat) else { continue };
            if member.stand.is_under_way() {
                if is_gone && member.offline_ms.is_none() {
                    live.change(&mut effects.rollouts, &seat, |member| member.offline_ms = Some(now.wall_ms));
                } else if is_back && member.offline_ms.is_some() {
                    live.change(&mut effects.rollouts, &seat, |member| member.offline_ms = None);
                }
            }
            fleet.rollouts.touched.insert(live.head.spec.id.clone());
        }
    });
    join(fleet, effects, id, now);
}

/// Nobody waits for a node that was removed.
fn gone(fleet: &mut Fleet, effects: &mut intake::Effects, number: NodeNo) {
    each(fleet, number, |fleet, live| {
        for seat in seats_of(live, number) {
            if live.members().get(&seat).is_some_and(|member| member.down) {
                live.change(&mut effects.rollouts, &seat, |member| member.down = false);
            }
        }
        fleet.rollouts.touched.insert(live.head.spec.id.clone());
    });
}

/// Whether a rollout takes nodes that come after it was made.
#[must_use]
pub fn joins(live: &Live) -> bool {
    live.selector.is_some() && matches!(live.head.state, State::Running | State::Paused)
}

/// A node that matches a rollout's selector and is no member joins its trailing wave.
fn join(fleet: &mut Fleet, effects: &mut intake::Effects, id: &NodeId, now: Now) {
    let Some(node) = fleet.nodes.get(id) else { return };
    let number = node.number;
    let fits_one = |live: &Live| {
        let seat = (number, DeviceId::node());
        let release = &live.head.spec.release;
        if !joins(live)
            || release.kind == fleet_schemas::update::Kind::DeviceFirmware
            || live.members().contains_key(&seat)
            || !live.selector.as_ref().is_some_and(|selector| selector.matches(&**node))
        {
            return None;
        }
        let candidate = Candidate::of(node, &seat.1, None, release, 0);
        let (goal, left_out) = fits(&live.head.spec.goals, &candidate);
        (left_out.is_none() && goal.is_some()).then_some((seat, goal, candidate.site))
    };
    let joining: Vec<_> =
        (fleet.rollouts.live.iter()).filter_map(|(id, live)| Some((id.clone(), fits_one(live)?))).collect();
    for (id, (seat, goal, site)) in joining {
        let Some(live) = fleet.rollouts.live.get_mut(&id) else { continue };
        let site = live.site(&site);
        let wave = u16::try_from(live.head.waves.len().saturating_sub(1)).unwrap_or(0);
        let why = reason("late", "it joined after the rollout was made; its turn is in the trailing wave");
        let turn = u32::try_from(live.members().len()).unwrap_or(u32::MAX);
        let member =
            Member { reason: Some(Box::new(why)), ..Member::new(wave, turn, site, goal, now.wall_ms) };
        live.insert(&mut effects.rollouts, seat, member);
        effects.rollouts.changed.insert(id.clone());
        fleet.rollouts.of_node.entry(number).or_default().insert(id.clone());
        fleet.rollouts.touched.insert(id);
    }
}
