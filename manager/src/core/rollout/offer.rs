//! Whose turn it is: nodes of the running wave are told, as many as the rate and the number that may be down allow.

use std::collections::BTreeMap;

use ciborium::Value;
use fleet_schemas::{
    CommandId, DeviceId, MetricName, NodeId,
    update::{self, Order, State as Said, Target, Window},
};
use sha2::{Digest as _, Sha256};

use super::{
    hear::same_name,
    live::{Live, reason},
    model::{Id, Seat, Stand},
    plan::{Candidate, Reach, fits, runs},
};
use crate::core::{
    Now, command,
    fleet::{Fleet, NodeNo},
    intake,
    presence::State as Presence,
    zones::{self, Opens},
};

/// Most seats told or passed over in one step: bounds one transaction; the others come in the next.
const SEATS: usize = 1_000;
/// How long a rate that was not used is made up for, in microseconds: steps come every few milliseconds, not at will.
const CATCH_UP_US: i64 = 1_000_000;
/// When a command that could not be made is tried again, in milliseconds.
const AGAIN_MS: i64 = 10_000;

/// What holds a wave up.
#[derive(Debug, Default)]
struct Held {
    down: usize,
    by: Option<(Id, usize)>,
    unheard: usize,
    offline: usize,
    refused: Option<String>,
    by_rate: bool,
    // By hours: how many, and when the first of them are open, Unix milliseconds.
    closed: usize,
    opens_ms: Option<i64>,
}

/// What nodes are told alike: the goal, the device, and the zone of their hours.
type Told = (u16, DeviceId, Option<String>);

/// Whether the hours of a rollout are open, by zone: many nodes have the same.
#[derive(Debug, Default)]
struct Hours(BTreeMap<String, Opens>);

impl Hours {
    /// The zone that counts for a seat, if there are hours, and when they are open there.
    fn of(&mut self, fleet: &Fleet, live: &Live, seat: &Seat, now_ms: i64) -> (Option<String>, Opens) {
        let window = live.head.spec.terms.window.as_ref().filter(|window| window.hours.is_some());
        let Some(window) = window else { return (None, Opens::Now) };
        let node = fleet.ids.get(&seat.0).and_then(|id| fleet.nodes.get(id));
        let site = node.and_then(|node| node.record.site.as_deref());
        let zone = zones::of(window, site, &fleet.sites);
        let opens = match self.0.get(zone) {
            Some(opens) => *opens,
            None => {
                let opens = zones::opens(window, zone, now_ms);
                self.0.insert(zone.to_owned(), opens);
                opens
            }
        };
        (Some(zone.to_owned()), opens)
    }
}

enum Turn {
    /// It is told now.
    Tell(u16),
    /// It is left out for good.
    Skip(&'static str, &'static str),
    /// It is not there: the trailing wave has it.
    Later,
    /// It has to be heard first.
    Unheard,
    /// It is not there, and this is the last wave.
    Offline,
}

/// Tells those of a wave whose turn has come.
pub(super) fn offer(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    live: &mut Live,
    wave: usize,
    now: Now,
) {
    let now_us = now.wall_ms.saturating_mul(1_000);
    let mut held = Held::default();
    let mut orders: BTreeMap<Told, (CommandId, Vec<Seat>)> = BTreeMap::new();
    let mut hours = Hours::default();
    let (mut done, mut is_cut) = (0, false);
    let is_limited = live.head.spec.terms.rate.is_some();
    if live.head.next_us > now_us.saturating_add(gap_us(live)) {
        // By a clock that was ahead.
        live.head.next_us = now_us;
    }
    if is_limited && live.head.next_us > now_us {
        held.by_rate = true;
    } else {
        let seats: Vec<Seat> = live.queue(wave).iter().map(|(_, seat)| seat.clone()).collect();
        for seat in seats {
            if done == SEATS {
                is_cut = true;
                break;
            }
            if is_limited && live.head.next_us > now_us {
                held.by_rate = true;
                break;
            }
            let Some(member) = live.members().get(&seat) else { continue };
            // The node looks at its hours, too. Told early it would only wait, as one that is down and may time out.
            let (zone, opens) = hours.of(fleet, live, &seat, now.wall_ms);
            if let Opens::At(at) = opens {
                held.closed += 1;
                held.opens_ms = Some(held.opens_ms.map_or(at, |first| first.min(at)));
                continue;
            }
            if !live.has_room(member.site) {
                held.down += 1;
                continue;
            }
            if let Some(by) = claimed(fleet, live, &seat) {
                let count = held.by.map_or(0, |(_, count)| count);
                held.by = Some((by, count + 1));
                continue;
            }
            match turn(fleet, live, &seat, wave) {
                Turn::Unheard => held.unheard += 1,
                Turn::Offline => held.offline += 1,
                Turn::Skip(code, why) => {
                    done += 1;
                    let why = reason(code, why);
                    live.stand(
                        &mut effects.rollouts,
                        &seat,
                        Stand::Said(Said::Skipped),
                        Some(why),
                        now.wall_ms,
                    );
                }
                Turn::Later => {
                    done += 1;
                    later(effects, live, &seat, wave, now);
                }
                Turn::Tell(goal) => {
                    done += 1;
                    let id = command_id(&live.head.spec.id, &seat, now);
                    let told = (goal, seat.1.clone(), zone);
                    let (id, of) = orders.entry(told).or_insert_with(|| (id, Vec::new()));
                    of.push(seat.clone());
                    tell(fleet, effects, live, &seat, (wave, goal, *id), now);
                    spend(live, now_us);
                }
            }
        }
    }
    for (told, (id, seats)) in orders {
        if let Err(error) = make(fleet, effects, live, &told, id, &seats, now) {
            held.refused = Some(error);
            for seat in seats {
                live.stand(&mut effects.rollouts, &seat, Stand::Waiting, None, now.wall_ms);
                live.change(&mut effects.rollouts, &seat, |member| {
                    (member.command, member.told_ms, member.from) = (None, None, None);
                });
            }
        }
    }
    live.again_ms = if is_cut {
        Some(now.wall_ms)
    } else if held.refused.is_some() {
        Some(now.wall_ms.saturating_add(AGAIN_MS))
    } else if held.by_rate {
        Some(live.head.next_us.saturating_add(999) / 1_000)
    } else {
        None
    };
    live.again_ms = [live.again_ms, held.opens_ms].into_iter().flatten().min();
    live.blocked = held.sentence(live);
}

/// Between two nodes; nothing without a rate.
fn gap_us(live: &Live) -> i64 {
    live.head.spec.terms.rate.map_or(0, |rate| (60_000_000.0 / rate) as i64)
}

fn spend(live: &mut Live, now_us: i64) {
    let gap_us = gap_us(live);
    if gap_us > 0 {
        // Not before the step itself: what was not used is made up for within a second only.
        let from_us =
            if live.head.next_us == 0 { now_us } else { live.head.next_us.max(now_us - CATCH_UP_US) };
        live.head.next_us = from_us.saturating_add(gap_us);
        live.is_dirty = true;
    }
}

/// The rollout that a seat belongs to for now, if it is another one: whoever is under way there, else the older.
fn claimed(fleet: &Fleet, live: &Live, seat: &Seat) -> Option<Id> {
    let of = fleet.rollouts.of_node.get(&seat.0)?;
    let holds = |other: &&Live| {
        let Some(member) = other.members().get(seat) else { return false };
        let waits = (member.stand == Stand::Waiting || member.again) && !other.head.state.is_final();
        same_name(other, live)
            && (member.stand.is_under_way() || waits && other.head.spec.no < live.head.spec.no)
    };
    let others = of.iter().filter_map(|id| fleet.rollouts.live.get(id)).map(|other| &**other);
    others.filter(holds).map(|other| other.head.spec.id.clone()).next()
}

fn turn(fleet: &Fleet, live: &Live, seat: &Seat, wave: usize) -> Turn {
    let Some(node) = fleet.ids.get(&seat.0).and_then(|id| fleet.nodes.get(id)) else {
        return Turn::Skip("gone", "the node is not in the registry any more");
    };
    let away = if live.is_last(wave) { Turn::Offline } else { Turn::Later };
    match node.record.presence.state {
        Presence::Online => {}
        Presence::Suspect { .. } => return Turn::Unheard,
        Presence::New | Presence::Offline | Presence::Sleeping { .. } => return away,
    }
    let Some(member) = live.members().get(seat) else { return away };
    let planned = member.goal;
    let release = &live.head.spec.release;
    let device_kind = planned.and_then(|goal| live.head.spec.goals.get(usize::from(goal)));
    let device_kind = device_kind.and_then(|(_, artifact)| artifact.custom.device_kind.clone());
    let mut candidate = Candidate::of(node, &seat.1, device_kind.as_deref(), release, 0);
    candidate.reach = Reach::Online;
    // What a node goes back to was planned for it: the architecture does not tell.
    let goals = &live.head.spec.goals;
    let (goal, left_out) = match planned.filter(|_| live.head.spec.back_of.is_some()) {
        Some(goal) => {
            let digest = goals[usize::from(goal)].1.digest;
            let same = candidate.runs.as_ref().is_some_and(|(_, runs)| *runs == digest);
            (Some(goal), same.then_some(super::LeftOut::RunsAlready))
        }
        None => {
            let (goal, _) = fits(goals, &candidate);
            let digest =
                goal.and_then(|goal| goals.get(usize::from(goal))).map(|(_, artifact)| artifact.digest);
            candidate.strikes = digest.map_or(0, |digest| fleet.rollouts.strikes(seat.0, digest));
            fits(goals, &candidate)
        }
    };
    match (goal, left_out) {
        (_, Some(why)) => Turn::Skip(why.code(), why.sentence()),
        (Some(goal), None) => Turn::Tell(goal),
        (None, None) => Turn::Unheard,
    }
}

/// A node that is not there when its turn comes waits for the trailing wave.
fn later(effects: &mut intake::Effects, live: &mut Live, seat: &Seat, wave: usize, now: Now) {
    let name = live.head.waves.get(wave).map_or_else(String::new, |wave| wave.name.clone());
    let last = u16::try_from(live.head.waves.len().saturating_sub(1)).unwrap_or(0);
    let why = reason(
        "offline",
        format!(
            "it was offline when wave {name} came to it; it is told in the trailing wave when it is back"
        ),
    );
    live.stand(&mut effects.rollouts, seat, Stand::Said(Said::Skipped), Some(why), now.wall_ms);
    live.change(&mut effects.rollouts, seat, |member| (member.again, member.wave) = (true, last));
    if let Some(wave) = live.head.waves.get_mut(wave) {
        wave.moved = wave.moved.saturating_add(1);
    }
    live.is_dirty = true;
}

fn tell(
    fleet: &Fleet,
    effects: &mut intake::Effects,
    live: &mut Live,
    seat: &Seat,
    (wave, goal, id): (usize, u16, CommandId),
    now: Now,
) {
    let node = fleet.ids.get(&seat.0).and_then(|id| fleet.nodes.get(id));
    let release = &live.head.spec.release;
    let from = node.and_then(|node| runs(node, release.kind, &release.name, &seat.1));
    live.stand(&mut effects.rollouts, seat, Stand::Said(Said::Offered), None, now.wall_ms);
    // Only now: the deadline of a seat follows from when it was told.
    live.change(&mut effects.rollouts, seat, |member| {
        member.wave = u16::try_from(wave).unwrap_or(member.wave);
        (member.goal, member.command) = (Some(goal), Some(id));
        (member.told_ms, member.from) = (Some(now.wall_ms), from);
        (member.claimed_ms, member.settled) = (None, false);
    });
}

/// An id that follows from what it is for: the core has no randomness. A UUIDv7 (RFC 9562 §5.7).
fn command_id(rollout: &Id, seat: &Seat, now: Now) -> CommandId {
    let mut hasher = Sha256::new();
    hasher.update(rollout.as_str());
    hasher.update(seat.0.to_be_bytes());
    hasher.update(seat.1.as_str());
    hasher.update(now.wall_ms.to_be_bytes());
    hasher.update(now.mono.as_nanos().to_be_bytes());
    let hash: [u8; 32] = hasher.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    bytes[..6].copy_from_slice(&u64::try_from(now.wall_ms).unwrap_or(0).to_be_bytes()[2..]);
    bytes[6] = 0x70 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    CommandId(bytes)
}

/// The key by which a later order of the same thing takes an earlier one's place.
pub(super) fn supersedes(target: &Target, device: &DeviceId) -> MetricName {
    let mut text = format!("update/{}/{}", target.kind, target.name);
    if !device.is_node() {
        text = format!("{text}/{device}");
    }
    MetricName::parse(&text).unwrap_or_else(|_| {
        // Too long for a key: a hash of it is as good.
        let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let hash: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        MetricName::parse(&format!("update/{hash}")).expect("a hash is short and printable")
    })
}

/// Makes the command that tells nodes, as an operator's is made.
fn make(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    live: &Live,
    (goal, device, zone): &Told,
    id: CommandId,
    seats: &[Seat],
    now: Now,
) -> Result<(), String> {
    let spec = &live.head.spec;
    let Some((target, artifact)) = spec.goals.get(usize::from(*goal)) else {
        return Err("the release has no such target".to_owned());
    };
    let probation_ms = spec.terms.probation_ms.and_then(|ms| u64::try_from(ms).ok());
    let order = Order {
        target: target.clone(),
        digest: artifact.digest,
        rollout: Some(spec.id.clone()),
        device: (!device.is_node()).then(|| device.clone()),
        back: spec.back_of.is_some(),
        probation_ms,
        window: spec
            .terms
            .window
            .clone()
            .map(|window| Window { zone: zone.clone().or(window.zone), ..window }),
        offline_ok: spec.terms.offline_ok,
    };
    let time = std::time::Duration::from_millis(u64::try_from(spec.terms.node_ms()).unwrap_or(0));
    let time = time.clamp(std::time::Duration::from_secs(1), command::LIFE);
    let named = |word: &str| MetricName::parse(word).expect("our own words are short and printable");
    let numbers: Vec<NodeNo> = seats.iter().map(|(node, _)| *node).collect();
    let nodes: Vec<NodeId> = numbers.iter().filter_map(|number| fleet.ids.get(number).cloned()).collect();
    let wanted = command::Wanted {
        id,
        by: format!("rollout {}", spec.id),
        nodes,
        kind: named(update::COMMAND),
        params: Value::serialized(&order).map_err(|error| error.to_string())?,
        queue: named(update::QUEUE),
        priority: 0,
        idempotent: true,
        supersedes: Some(supersedes(target, device)),
        ttl: time,
        timeout: time,
        not_before_ms: None,
        rate: None,
        selector: None,
    };
    command::make(fleet, &mut effects.commands, wanted, now).map_err(|error| error.to_string())
}

impl Held {
    fn sentence(&self, live: &Live) -> String {
        let mut parts = Vec::new();
        let say = |many: usize, one: &str, more: &str| match many {
            1 => format!("1 node {one}"),
            _ => format!("{many} nodes {more}"),
        };
        if self.down > 0
            && let Some(most) = live.head.spec.terms.max_unavailable
        {
            let of = if most.per_site { " of a site" } else { "" };
            let most = super::plan::count(most.nodes as usize, "node");
            parts.push(format!(
                "{} because only {most}{of} may be down at once",
                say(self.down, "waits", "wait")
            ));
        }
        if self.closed > 0
            && let Some((window, at)) = live.head.spec.terms.window.as_ref().zip(self.opens_ms)
        {
            let hours = window.hours.as_deref().unwrap_or_default();
            let whose = window.zone.as_deref().unwrap_or("the time of their sites");
            let at = zones::shown(at, &jiff::tz::TimeZone::UTC);
            let many = say(self.closed, "waits", "wait");
            parts.push(format!("{many} for {hours} ({whose}), which begins at {at}"));
        }
        if let Some((id, many)) = &self.by {
            parts.push(format!(
                "{} to rollout {id} until it is done with them; abort it to go on at once",
                say(*many, "belongs", "belong")
            ));
        }
        if self.unheard > 0 {
            parts.push(say(self.unheard, "has to be heard first", "have to be heard first"));
        }
        if self.offline > 0 {
            let one = "is offline and is told when it comes back";
            parts.push(say(self.offline, one, "are offline and are told when they come back"));
        }
        if let Some(error) = &self.refused {
            parts.push(format!("commands could not be made: {error}"));
        }
        if self.by_rate
            && let Some(rate) = live.head.spec.terms.rate
        {
            parts.push(format!("{rate} nodes a minute are told"));
        }
        parts.join("; ")
    }
}
