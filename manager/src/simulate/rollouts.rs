//! Rollouts in the simulation: what the operator makes of releases that work or do not, and what must hold of it.
//!
//! Everything that decides is real, at the hub and at the nodes. What a release does to a node is drawn.

use std::collections::{BTreeMap, BTreeSet};

use fleet_schemas::{
    DeviceId, MetricName, NodeId,
    update::{AGENT, Custom, Digest, Kind, State as Said, Target},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    edge::Edge,
    update::{How, Image, Images, Machine, Manner, SKILL, first},
    world::World,
};
use crate::core::{
    fleet::Fleet,
    rollout::{
        self, Act, Approval, Artifact, Id, Live, MaxUnavailable, OnFailure, Release, Size, Stage, Stand,
        State, Terms, Wanted,
    },
};

/// How long a wave is watched, in milliseconds.
const SOAK_MS: i64 = 15_000;
/// How long a release is on trial, in milliseconds.
const TRIAL_MS: i64 = 5_000;
/// How long a rollout may take, in milliseconds: the fleet must settle after it.
const DEADLINE_MS: i64 = 420_000;
/// The part of a wave that may fail.
const MAX_FAILURES: f64 = 0.3;
/// Times that a node may come to run a release that fails there: the node quarantines it after two failures, and a
/// process that ends just after the switch does that again.
const SWITCHES: u32 = 4;

/// Who makes them.
pub(super) const BY: &str = "operator simulated";

/// What the operator wants.
#[derive(Debug)]
pub(super) enum Wish {
    Make(Box<Wanted>),
    Act(Id, Act),
}

/// A rollout that the operator makes.
#[derive(Debug)]
struct Planned {
    /// Not before this simulated time.
    at: u64,
    id: Id,
    release: Release,
    how: How,
    terms: Terms,
    /// The hub has it.
    made: bool,
}

/// What was seen of a rollout.
#[derive(Debug, Default)]
struct Seen {
    stages: Vec<Stage>,
    /// Seats that were confirmed at any time.
    confirmed: BTreeSet<NodeId>,
    /// Waves that had begun when the first confirmed node drifted.
    drifted: Option<usize>,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Rollouts {
    /// What is ordered, by digest.
    pub images: Images,
    rng: StdRng,
    planned: Vec<Planned>,
    seen: BTreeMap<Id, Seen>,
    /// What was heard last of each, for the log.
    told: BTreeMap<Id, (State, String)>,
    /// Promises that were found broken on the way.
    wrong: Vec<String>,
}

impl Rollouts {
    /// So many rollouts, and nodes that take part in them.
    pub(super) fn new(count: usize, seed: u64, edges: &mut [Edge]) -> Self {
        // Its own, so that without rollouts everything else is as it was.
        let mut rng = StdRng::seed_from_u64(seed ^ 0x726f_6c6c);
        let mut rollouts = Self {
            images: Images::new(),
            planned: Vec::new(),
            seen: BTreeMap::new(),
            told: BTreeMap::new(),
            wrong: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
        };
        if count == 0 {
            return rollouts;
        }
        for edge in edges.iter_mut() {
            let manner = match rng.random_range(0..10) {
                0 => Manner::Lies,
                1 | 2 => Manner::Vanishes,
                _ => Manner::Honest,
            };
            edge.updates = Some(Machine::new(manner, StdRng::seed_from_u64(rng.random())));
        }
        for nth in 0..count {
            let planned = rollouts.plan(&mut rng, nth);
            rollouts.planned.push(planned);
        }
        rollouts.rng = rng;
        rollouts
    }

    /// Rollouts to a large fleet, in waves that suit it.
    pub(super) fn large(count: usize, seed: u64) -> Self {
        let mut rollouts = Self::new(0, seed, &mut []);
        let mut rng = StdRng::seed_from_u64(seed ^ 0x6c61_7267);
        for nth in 0..count {
            let mut planned = rollouts.plan(&mut rng, nth);
            // The first of them goes to everybody.
            if nth == 0 {
                planned.how = How::Good;
                rollouts.images.values_mut().for_each(|image| image.how = How::Good);
            }
            let percent = |percent| Size::Percent(percent);
            planned.terms.waves = vec![Size::Nodes(1), percent(5.0), percent(25.0), percent(100.0)];
            planned.terms.min_executed = 5;
            (planned.terms.max_unavailable, planned.terms.rate) = (None, None);
            planned.terms.deadline_ms = 6 * 3_600_000;
            rollouts.planned.push(planned);
        }
        rollouts
    }

    /// Whether the hub has all of them.
    pub(super) fn are_made(&self) -> bool {
        self.planned.iter().all(|planned| planned.made)
    }

    /// Promises that were found broken on the way.
    pub(super) fn take_wrong(&mut self) -> Vec<String> {
        std::mem::take(&mut self.wrong)
    }

    fn plan(&mut self, rng: &mut StdRng, nth: usize) -> Planned {
        let kind = if nth.is_multiple_of(2) { Kind::Skill } else { Kind::Agent };
        let name = word(if kind == Kind::Skill { SKILL } else { AGENT });
        let version = word(&format!("1.{}.0", nth + 1));
        let how = match rng.random_range(0..10) {
            0 => How::Crashes,
            1 => How::Hangs,
            2 => How::Sick,
            3 => How::Later(rng.random_range(1_000..10_000)),
            4 => How::Later(rng.random_range(60_000..200_000)),
            5 => How::Forged,
            _ => How::Good,
        };
        let number = u8::try_from(nth + 1).unwrap_or(u8::MAX);
        let digest = Digest([if kind == Kind::Skill { number } else { 0x80 | number }; 32]);
        let arch = word("any");
        let target = Target { kind, name: name.clone(), version: version.clone(), arch: arch.clone() };
        self.images.insert(digest, Image { target: target.clone(), digest, how });
        if how == How::Forged {
            let signed = Digest([!number; 32]);
            self.images.insert(signed, Image { target, digest: signed, how: How::Good });
        }
        let artifact = Artifact { digest, length: 1_000_000, custom: Custom::default() };
        let id = word(&format!("{name}-{version}-1"));
        let release = Release { name, version, kind, targets: [(arch, artifact)].into() };
        let most = rng.random_range(1..3);
        let terms = Terms {
            waves: vec![Size::Nodes(1), Size::Percent(50.0), Size::Percent(100.0)],
            soak_ms: SOAK_MS,
            max_failures: MAX_FAILURES,
            min_executed: 1,
            max_unavailable: Some(MaxUnavailable { nodes: most, per_site: false }),
            rate: rng.random_bool(0.3).then_some(30.0),
            window: None,
            gates: Vec::new(),
            on_failure: [OnFailure::Pause, OnFailure::Stop, OnFailure::Rollback][rng.random_range(0..3)],
            approval: Approval::No,
            deadline_ms: DEADLINE_MS,
            timeout_ms: 90_000,
            offline_ms: 45_000,
            probation_ms: Some(TRIAL_MS),
            offline_ok: false,
            allowance: 0.25,
        };
        Planned { at: rng.random_range(5_000..100_000), id, release, how, terms, made: false }
    }

    /// What the operator does in this step, if anything.
    pub(super) fn ask(&mut self, fleet: &Fleet, now: u64) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for planned in &mut self.planned {
            if let Some(live) = fleet.rollouts.get(planned.id.as_str()) {
                planned.made = true;
                if live.head.state == State::Paused && self.rng.random_bool(0.01) {
                    let act = match self.rng.random_range(0..3) {
                        0 => Act::Resume,
                        1 => Act::Abort { reason: None },
                        _ => Act::Rollback { reason: None },
                    };
                    wishes.push(Wish::Act(planned.id.clone(), act));
                }
                continue;
            }
            if planned.made || now < planned.at || fleet.nodes.is_empty() || !self.rng.random_bool(0.1) {
                continue;
            }
            let arch = word("any");
            let before = first(planned.release.kind);
            let target = Target {
                kind: planned.release.kind,
                name: planned.release.name.clone(),
                version: before.version.clone(),
                arch,
            };
            let artifact = Artifact { digest: before.digest, length: 1_000_000, custom: Custom::default() };
            let seats = fleet.nodes.keys().map(|id| (id.clone(), DeviceId::node(), None)).collect();
            let wanted = Wanted {
                id: planned.id.clone(),
                release: planned.release.clone(),
                before: [(before.digest, (target, artifact))].into(),
                seats,
                selector: None,
                terms: planned.terms.clone(),
                by: BY.to_owned(),
            };
            wishes.push(Wish::Make(Box::new(wanted)));
        }
        wishes
    }

    /// Looks at all rollouts after a step; lines for the log.
    pub(super) fn watch(&mut self, fleet: &Fleet, edges: &[Edge], restored: bool) -> Vec<String> {
        let mut lines = Vec::new();
        for edge in edges {
            self.verified(edge);
        }
        for live in fleet.rollouts.all() {
            let id = &live.head.spec.id;
            let told = (live.head.state, live.head.reason.clone());
            if self.told.get(id) != Some(&told) {
                lines.push(format!("rollout {id} is {}: {}", told.0.as_str(), told.1));
                self.told.insert(id.clone(), told);
            }
            if restored {
                // What was seen may not have been, for the hub that was set back.
                self.seen.remove(id);
            }
            let found = look(live, fleet, edges, self.how(live), self.seen.entry(id.clone()).or_default());
            self.wrong.extend(found.into_iter().filter(|_| !restored).map(|wrong| format!("{id}: {wrong}")));
        }
        lines
    }

    pub(super) fn how(&self, live: &Live) -> Option<How> {
        if live.head.spec.back_of.is_some() {
            return None;
        }
        self.planned.iter().find(|planned| planned.id == live.head.spec.id).map(|planned| planned.how)
    }

    /// A node always runs what was signed.
    fn verified(&mut self, edge: &Edge) {
        let Some(updates) = &edge.updates else { return };
        for digest in updates.truth() {
            let is_first = [Kind::Skill, Kind::Agent].iter().any(|kind| first(*kind).digest == digest);
            let signed = self.images.get(&digest).is_some_and(|image| image.how != How::Forged);
            if !is_first && !signed {
                self.wrong.push(format!("{} runs {digest}, which nobody signed", edge.node));
            }
        }
    }
}

/// What holds of a rollout after every step.
fn look(live: &Live, fleet: &Fleet, edges: &[Edge], how: Option<How>, seen: &mut Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    let head = &live.head;
    // Never more down through it than may be.
    let down = live.members().values().filter(|member| member.stand.is_under_way() || member.down).count();
    // Those that ended badly while they were offline are down without anybody's doing.
    let told = live.members().values().filter(|member| member.stand.is_under_way()).count();
    if let Some(most) = head.spec.terms.max_unavailable
        && told > most.nodes as usize
    {
        wrong.push(format!("{told} nodes are under way and {down} down, of {} that may be", most.nodes));
    }
    let stages: Vec<Stage> = head.waves.iter().map(|wave| wave.stage).collect();
    for (at, pair) in stages.windows(2).enumerate() {
        if pair[1] != Stage::Waiting && pair[1] != Stage::Halted && pair[0] != Stage::Passed {
            wrong.push(format!(
                "wave {} is {} and the one before is {}",
                at + 1,
                pair[1].as_str(),
                pair[0].as_str()
            ));
        }
    }
    for (at, wave) in head.waves.iter().enumerate() {
        let just =
            wave.stage == Stage::Passed && seen.stages.get(at).is_some_and(|stage| *stage != Stage::Passed);
        if !just {
            continue;
        }
        let (bad, confirmed) = (f64::from(wave.bad()), f64::from(wave.confirmed()));
        let bad = bad - f64::from(wave.forgiven);
        // By its deadline a last wave passes as it is.
        let is_last = at + 1 == head.waves.len();
        if bad > 0.0 && bad / (bad + confirmed) > head.spec.terms.max_failures && !is_last {
            wrong.push(format!("wave {} passed with {bad} failed of {}", wave.name, bad + confirmed));
        }
    }
    if !live.members().values().any(|member| member.stand == Stand::Drifted) {
        // Seen before it was written, on a disk that was full: the hub heard nothing, then, and may not hear it again.
        seen.drifted = None;
    }
    for (seat, member) in live.members() {
        let Some(node) = fleet.ids.get(&seat.0) else { continue };
        match member.stand {
            Stand::Said(Said::Confirmed) if seen.confirmed.insert(node.clone()) => {
                wrong.extend(confirmed(live, node, edges, how));
            }
            Stand::Drifted if seen.drifted.is_none() => {
                seen.drifted = Some(stages.iter().filter(|stage| **stage != Stage::Waiting).count());
            }
            _ => {}
        }
    }
    let begun = stages.iter().filter(|stage| **stage != Stage::Waiting).count();
    let resumed = head.waves.iter().any(|wave| wave.forgiven > 0);
    if seen.drifted.is_some_and(|before| begun > before) && !resumed && head.spec.back_of.is_none() {
        wrong.push("a wave began after a node drifted".to_owned());
    }
    seen.stages = stages;
    wrong
}

/// A node counts as confirmed only when it came to run what was ordered, and that can pass.
fn confirmed(live: &Live, node: &NodeId, edges: &[Edge], how: Option<How>) -> Option<String> {
    let goals: BTreeSet<Digest> = live.head.spec.goals.iter().map(|(_, artifact)| artifact.digest).collect();
    let ran = edges.iter().filter(|edge| edge.node == *node).filter_map(|edge| edge.updates.as_ref());
    let ran: Vec<_> = ran.collect();
    let never = !ran.is_empty() && !ran.iter().any(|updates| !updates.ran.is_disjoint(&goals));
    if never {
        return Some(format!("{node} is confirmed and never ran it"));
    }
    match how {
        Some(how @ (How::Crashes | How::Hangs | How::Sick | How::Forged)) => {
            Some(format!("{node} is confirmed with a release that {how:?}"))
        }
        Some(How::Good | How::Later(_)) | None => None,
    }
}

/// Rollouts and updates that are not over.
pub(super) fn open(world: &World) -> Vec<String> {
    let rollouts = &world.rollouts;
    if rollouts.planned.is_empty() {
        return Vec::new();
    }
    let Some(consumer) = &world.sites[0].consumer else { return vec!["the hub does not run".to_owned()] };
    let fleet = consumer.shared().fleet();
    let mut open = Vec::new();
    // By a wrong clock its deadline may be years away.
    let timed = !world.book.clocks_wrong;
    for live in fleet.rollouts.all().into_iter().filter(|live| timed && !live.head.state.is_final()) {
        open.push(format!("{} is {}", live.head.spec.id, live.head.state.as_str()));
    }
    for planned in rollouts.planned.iter().filter(|planned| !planned.made && timed) {
        open.push(format!("{} is not made", planned.id));
    }
    let tampered = world.tampered();
    for edge in world.edges.iter().filter(|edge| !tampered.contains(&edge.node)) {
        let Some(updates) = &edge.updates else { continue };
        if !updates.rests() && timed {
            open.push(format!("{} has an update under way", edge.node));
        }
    }
    open
}

/// What must hold when the dust has settled. `quiet`: nothing went wrong but the releases.
pub(super) fn check(world: &World, quiet: bool) -> Vec<String> {
    let rollouts = &world.rollouts;
    let mut wrong: BTreeSet<String> = rollouts.wrong.iter().cloned().collect();
    if rollouts.planned.is_empty() {
        return Vec::new();
    }
    wrong.extend(open(world).into_iter().map(|open| format!("rollouts do not settle: {open}")));
    let tampered = world.tampered();
    let Some(consumer) = &world.sites[0].consumer else { return wrong.into_iter().collect() };
    let fleet = consumer.shared().fleet();
    for edge in world.edges.iter().filter(|edge| !tampered.contains(&edge.node)) {
        let Some(updates) = &edge.updates else { continue };
        let said =
            fleet.nodes.get(&edge.node).map(|node| node.record.versions.running.clone()).unwrap_or_default();
        let said: BTreeSet<Digest> = said.iter().map(|running| running.digest).collect();
        if said != BTreeSet::from(updates.truth()) {
            wrong.insert(format!("{} runs {:?}, and its hub knows {said:?}", edge.node, updates.truth()));
        }
        for (digest, count) in &updates.switches {
            let how = rollouts.images.get(digest).map(|image| image.how);
            let bad = matches!(how, Some(How::Crashes | How::Hangs | How::Sick));
            if bad && *count > SWITCHES {
                wrong.insert(format!("{} came to run {digest} {count} times, which fails there", edge.node));
            }
        }
    }
    for live in fleet.rollouts.all() {
        wrong.extend(outcome(world, live, quiet).map(|what| format!("{}: {what}", live.head.spec.id)));
    }
    wrong.into_iter().collect()
}

/// What came of a rollout fits what its release does.
fn outcome(world: &World, live: &Live, quiet: bool) -> Option<String> {
    let how = world.rollouts.how(live)?;
    let all_well = world.edges.iter().filter_map(|edge| edge.updates.as_ref());
    let all_well = all_well.into_iter().all(|updates| updates.manner == Manner::Honest);
    let state = live.head.state;
    let confirmed: u32 = live.head.waves.iter().map(rollout::Wave::confirmed).sum();
    match how {
        How::Good if quiet && all_well && state != State::Done => {
            Some(format!("a good release is {}: {}", state.as_str(), live.head.reason))
        }
        // Nobody can have it, so it cannot be done: unless nobody was there to try.
        How::Crashes | How::Hangs | How::Sick | How::Forged if confirmed > 0 => {
            Some(format!("{confirmed} nodes are confirmed with a release that {how:?}"))
        }
        How::Crashes | How::Hangs | How::Sick | How::Forged if quiet && state == State::Done => {
            Some(format!("a release that {how:?} is done: {}", live.head.reason))
        }
        _ => None,
    }
}

fn word(text: &str) -> MetricName {
    MetricName::parse(text).expect("our own words are valid")
}
