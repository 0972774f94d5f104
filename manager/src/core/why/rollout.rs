//! Why a rollout is where it is, and what updates a node takes part in.

use std::collections::BTreeMap;

use fleet_schemas::NodeId;

use super::{Cause, LISTED, count};
use crate::core::{
    fleet::{Fleet, NodeNo},
    rollout::{Live, Member, Stage, Stand, State, Wave},
    zones,
};

/// The state first, then what holds it up, then its waves, newest first, with who failed in them.
#[must_use]
pub fn rollout(fleet: &Fleet, live: &Live) -> Cause {
    let head = &live.head;
    let spec = &head.spec;
    let mut because = vec![Cause::still(head.reason.clone())];
    if !live.blocked().is_empty() {
        because.push(Cause::still(live.blocked().to_owned()));
    }
    if !head.state.is_final() {
        let what = "its time ends; whoever is not done by then is given up";
        because.push(Cause { until_ms: Some(head.deadline_ms()), what: what.to_owned(), ..Cause::default() });
    }
    let begun = |wave: &&(usize, &Wave)| wave.1.stage != Stage::Waiting;
    let waves: Vec<(usize, &Wave)> = head.waves.iter().enumerate().collect();
    because.extend(waves.iter().rev().filter(begun).map(|(at, wave)| of_wave(fleet, live, *at, wave)));
    let by = match &head.approved_by {
        Some(who) => format!("made by {}, approved by {who}", spec.by),
        None => format!("made by {}", spec.by),
    };
    because.push(Cause::new(spec.created_ms, by));
    let release = format!("{}@{}", spec.release.name, spec.release.version);
    let what = match &spec.back_of {
        Some(of) => format!(
            "rollout {} takes nodes back from {release} (rollout {of}): {}",
            spec.id,
            phrase(head.state)
        ),
        None => format!("rollout {} of {release} {}", spec.id, phrase(head.state)),
    };
    Cause::new(head.since_ms, what).because(because)
}

fn phrase(state: State) -> &'static str {
    match state {
        State::WaitingApproval => "waits to be approved: `fleet rollout approve` lets it begin",
        State::Running => "is running",
        State::Paused => "is paused: `fleet rollout resume` goes on, `fleet rollout rollback` takes it back",
        State::RollingBack => "is rolling back",
        State::Done => "is done",
        State::Stopped => "is stopped",
        State::RolledBack => "is rolled back",
        State::Failed => "has failed",
    }
}

fn of_wave(fleet: &Fleet, live: &Live, at: usize, wave: &Wave) -> Cause {
    let counts: Vec<String> =
        wave.tally.iter().map(|(stand, many)| format!("{many} {}", words(*stand))).collect();
    let why = if wave.reason.is_empty() { String::new() } else { format!(": {}", wave.reason) };
    let what = format!("wave {} is {}{why} ({})", wave.name, wave.stage.as_str(), counts.join(", "));
    let bad =
        live.members().iter().filter(|(_, member)| usize::from(member.wave) == at && member.stand.is_bad());
    let all: Vec<_> = bad.collect();
    let mut because: Vec<Cause> = all
        .iter()
        .take(LISTED)
        .map(|((node, device), member)| {
            let id = fleet.ids.get(node);
            let tz = id.and_then(|id| zones::at(fleet, id));
            let name = id.map_or_else(|| node.to_string(), NodeId::to_string);
            let name = if device.is_node() { name } else { format!("{name}/{device}") };
            Cause::new(member.since_ms, format!("{name} is {}{}", words(member.stand), reason(member))).at(tz)
        })
        .collect();
    if all.len() > LISTED {
        because.push(Cause::still(format!(
            "and {} more; `fleet rollout get {}` lists them",
            all.len() - LISTED,
            live.head.spec.id
        )));
    }
    Cause::new(wave.since_ms, what).because(because)
}

fn words(stand: Stand) -> String {
    stand.as_str().replace('_', " ")
}

fn reason(member: &Member) -> String {
    member.reason.as_ref().map_or_else(String::new, |why| format!(": {} ({})", why.message, why.code))
}

/// What updates a node takes part in: those that are not over, and the last one of each name that did not go well.
#[must_use]
pub fn of_node(fleet: &Fleet, number: NodeNo) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut last: BTreeMap<String, Cause> = BTreeMap::new();
    for live in fleet.rollouts.of_node(number) {
        let of = live.members().iter().filter(|((node, _), _)| *node == number);
        for ((_, device), member) in of {
            let waits = member.stand == Stand::Waiting || member.again || member.stand.is_under_way();
            let is_open = waits && (!live.head.state.is_final() || member.stand.is_under_way());
            let key = format!("{}/{device}", live.head.spec.release.name);
            let good = !member.stand.is_bad();
            let cause = seat(live, member);
            if is_open {
                causes.push(cause);
            } else if good && member.told_ms.is_some() {
                last.remove(&key);
            } else if !good {
                last.insert(key, cause);
            }
        }
    }
    causes.extend(last.into_values());
    for (digest, strikes) in fleet.rollouts.failed_at(number).filter(|(_, strikes)| strikes.count > 1) {
        let short: String = digest.to_string().chars().take(12).collect();
        let what = format!(
            "a release (digest {short}…) failed here {} and is not tried again: {}",
            count(strikes.count as usize, "time"),
            strikes.reason
        );
        causes.push(Cause::new(strikes.at_ms, what));
    }
    causes
}

fn seat(live: &Live, member: &Member) -> Cause {
    let head = &live.head;
    let spec = &head.spec;
    let wave = head.waves.get(usize::from(member.wave));
    let name = wave.map_or("", |wave| wave.name.as_str());
    let what = format!(
        "update to {}@{} is {}{}",
        spec.release.name,
        spec.release.version,
        words(member.stand),
        reason(member)
    );
    let mut because = Vec::new();
    if let Some((bytes, total)) = member.bytes {
        because.push(Cause::still(format!("{bytes} of {total} bytes are there")));
    }
    if let Some((version, _)) = &member.from {
        because.push(Cause::still(format!("it ran {version} before")));
    }
    if let Some(at_ms) = member.offline_ms {
        because.push(Cause::new(at_ms, "it went offline in the middle"));
    }
    if (member.stand == Stand::Waiting || member.again) && !head.state.is_final() {
        let why = match (head.state, wave.map(|wave| wave.stage)) {
            (State::Running, Some(Stage::Running)) if !live.blocked().is_empty() => live.blocked().to_owned(),
            (State::Running, Some(Stage::Running)) => "its turn comes".to_owned(),
            (State::Running, _) => match live.current().and_then(|at| head.waves.get(at)) {
                Some(before) => {
                    format!("wave {} has to pass first; it is {}", before.name, before.stage.as_str())
                }
                None => "its turn comes".to_owned(),
            },
            (state, _) => format!("the rollout is {}: {}", state.as_str().replace('_', " "), head.reason),
        };
        because.push(Cause::still(why));
    }
    because.push(Cause::still(format!("it is in wave {name} of rollout {}", spec.id)));
    Cause::new(member.since_ms, what).because(because)
}
