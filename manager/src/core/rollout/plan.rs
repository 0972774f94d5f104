//! Who is in which wave. Pure: the same nodes, release and terms give the same plan, which is stored and never changes.
//!
//! The order is one of hashes over rollout and node, woven so that every stretch of it has each kind of hardware, and
//! within that each site, in the proportion of the whole. Nodes that cannot be told now go to the trailing wave.

use std::collections::BTreeMap;

use fleet_schemas::{
    DeviceId, MetricName, NodeId,
    update::{ANY_ARCH, CAPABILITY, Digest, Kind, Target},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::model::{Artifact, Id, MaxUnavailable, Release, Seat, Size, Terms};
use crate::core::{
    fleet::{Node, NodeNo},
    presence,
};

/// What is known of somebody who may take part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Node.
    pub node: NodeNo,
    /// Its id.
    pub id: NodeId,
    /// The device behind it; of the node itself for all kinds but `device-firmware`.
    pub device: DeviceId,
    /// The kind of that device.
    pub device_kind: Option<String>,
    /// Site; empty: none.
    pub site: String,
    /// Architecture; empty: not known.
    pub arch: String,
    /// Kind of machine.
    pub kind: String,
    /// Whether it can be told now.
    pub reach: Reach,
    /// Whether its agent takes updates.
    pub takes: bool,
    /// What it runs under the release's name.
    pub runs: Option<(MetricName, Digest)>,
    /// How often the release failed there.
    pub strikes: u32,
}

/// Whether a node can be told something now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It is there, or was a moment ago.
    Online,
    /// It is not.
    Offline,
    /// It never was: nothing is known of it.
    Never,
}

/// Why somebody is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOut {
    /// Its agent takes no updates.
    TakesNone,
    /// The release has no bytes for it.
    NoTarget,
    /// It runs them.
    RunsAlready,
    /// They failed there too often.
    Quarantined,
    /// It never ran anything of the name: there is nothing to go back to.
    NothingBefore,
}

impl LeftOut {
    /// The code in REST.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::TakesNone => "takes_no_updates",
            Self::NoTarget => "no_target",
            Self::RunsAlready => "runs_already",
            Self::Quarantined => "quarantined",
            Self::NothingBefore => "nothing_before",
        }
    }

    /// In a sentence.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::TakesNone => "its agent takes no updates; install a newer one there by hand",
            Self::NoTarget => "the release has no artifact for its architecture or kind of device",
            Self::RunsAlready => "it runs this already",
            Self::Quarantined => {
                "this release failed there twice and is not tried again; make a new version of it"
            }
            Self::NothingBefore => "it ran nothing of this name before, or nothing that is still signed",
        }
    }
}

/// A seat in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// Who.
    pub seat: Seat,
    /// Its site, by its place in [`Plan::sites`].
    pub site: u16,
    /// What it is to run, by its place among the goals; none: not known yet.
    pub goal: Option<u16>,
    /// Why it is left out; none: it is not.
    pub left_out: Option<LeftOut>,
}

/// Who is in which wave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Names of the waves; the last is for latecomers.
    pub names: Vec<String>,
    /// The seats of each wave, in their order.
    pub waves: Vec<Vec<Placed>>,
    /// Sites; the first has no name.
    pub sites: Vec<String>,
    /// Seats that are left out.
    pub left_out: Vec<Placed>,
    /// The plan in sentences, for people.
    pub text: Vec<String>,
}

/// The name of the last wave.
pub const TRAILING: &str = "trailing";
/// Names of nodes that a sentence lists.
const LISTED: usize = 4;

impl Size {
    /// Reads `5` or `25%`.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no size of a wave; write a number of nodes, or a part such as 25%");
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent: f64 = percent.trim().parse().map_err(|_| wrong())?;
                (percent > 0.0 && percent <= 100.0).then_some(Self::Percent(percent)).ok_or_else(wrong)
            }
            None => {
                let nodes: u32 = text.trim().parse().map_err(|_| wrong())?;
                (nodes > 0).then_some(Self::Nodes(nodes)).ok_or_else(wrong)
            }
        }
    }

    /// As it is written.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Nodes(nodes) => nodes.to_string(),
            Self::Percent(percent) => format!("{percent}%"),
        }
    }

    /// Where a wave of this size ends, of so many nodes.
    #[must_use]
    pub fn ends(self, all: usize) -> usize {
        match self {
            Self::Nodes(nodes) => (nodes as usize).min(all),
            Self::Percent(percent) => {
                // Rounded up: a wave of some percent of a small fleet is one node.
                let part = (all as f64 * percent / 100.0).ceil();
                (part.max(0.0) as usize).min(all)
            }
        }
    }
}

impl Candidate {
    /// What is known of a node as far as this release goes.
    #[must_use]
    pub fn of(
        node: &Node,
        device: &DeviceId,
        device_kind: Option<&str>,
        release: &Release,
        strikes: u32,
    ) -> Self {
        let record = &node.record;
        Self {
            node: node.number,
            id: record.id.clone(),
            device: device.clone(),
            device_kind: device_kind.map(str::to_owned),
            site: record.site.clone().unwrap_or_default(),
            arch: record.machine.get("arch").cloned().unwrap_or_default(),
            kind: record.kind.clone(),
            reach: reach(record.presence.state),
            takes: !record.versions.running.is_empty()
                || record.capabilities.iter().any(|known| known == CAPABILITY),
            runs: runs(node, release.kind, &release.name, device),
            strikes,
        }
    }
}

/// Whether a node can be told something, by its state.
#[must_use]
pub(super) fn reach(state: presence::State) -> Reach {
    match state {
        presence::State::Online | presence::State::Suspect { .. } => Reach::Online,
        presence::State::Offline | presence::State::Sleeping { .. } => Reach::Offline,
        presence::State::New => Reach::Never,
    }
}

/// What a node runs under a name.
#[must_use]
pub(super) fn runs(
    node: &Node,
    kind: Kind,
    name: &MetricName,
    device: &DeviceId,
) -> Option<(MetricName, Digest)> {
    let of = |running: &&fleet_schemas::update::Running| {
        running.kind == kind
            && running.name == *name
            && running.device.as_ref().map_or(device.is_node(), |at| at == device)
    };
    node.record.versions.running.iter().find(of).map(|running| (running.version.clone(), running.digest))
}

/// The goal for an architecture and a kind of device, by its place.
#[must_use]
pub(super) fn goal(goals: &[(Target, Artifact)], arch: &str, device_kind: Option<&str>) -> Option<u16> {
    let fits = |(_, artifact): &(Target, Artifact)| {
        artifact.custom.device_kind.as_deref().is_none_or(|kind| Some(kind) == device_kind)
    };
    let of = |arch: &str| goals.iter().position(|goal| goal.0.arch.as_str() == arch && fits(goal));
    let place = of(arch).or_else(|| of(ANY_ARCH))?;
    u16::try_from(place).ok()
}

/// The targets of a release.
#[must_use]
pub fn goals(release: &Release) -> Vec<(Target, Artifact)> {
    let target = |(arch, artifact): (&MetricName, &Artifact)| {
        let (name, version, arch) = (release.name.clone(), release.version.clone(), arch.clone());
        (Target { kind: release.kind, name, version, arch }, artifact.clone())
    };
    release.targets.iter().map(target).collect()
}

/// The place of a node in the order of a rollout.
#[must_use]
pub(super) fn hash(rollout: &Id, node: &NodeId, device: &DeviceId) -> u64 {
    let mut hasher = Sha256::new();
    for part in [rollout.as_str(), node.as_str(), device.as_str()] {
        hasher.update(part);
        hasher.update([0]);
    }
    let bytes: [u8; 32] = hasher.finalize().into();
    u64::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]])
}

/// Makes the plan.
#[must_use]
pub fn plan(rollout: &Id, goals: &[(Target, Artifact)], terms: &Terms, candidates: &[Candidate]) -> Plan {
    let mut plan = Plan { sites: vec![String::new()], ..Plan::default() };
    let mut sites: BTreeMap<&str, u16> = [("", 0)].into();
    for candidate in candidates {
        if !sites.contains_key(candidate.site.as_str())
            && let Ok(next) = u16::try_from(plan.sites.len())
        {
            sites.insert(&candidate.site, next);
            plan.sites.push(candidate.site.clone());
        }
    }
    let (mut chosen, mut later) = (Vec::new(), Vec::new());
    for candidate in candidates {
        let (goal, left_out) = fits(goals, candidate);
        let site = sites.get(candidate.site.as_str()).copied().unwrap_or(0);
        let placed = Placed { seat: (candidate.node, candidate.device.clone()), site, goal, left_out };
        let late = candidate.reach != Reach::Online;
        match left_out {
            Some(_) => plan.left_out.push(placed),
            None if late => later.push((hash(rollout, &candidate.id, &candidate.device), placed)),
            None => chosen.push((candidate, placed)),
        }
    }
    later.sort_by_key(|(hash, _)| *hash);
    let order = weave(rollout, chosen);
    let mut order = order.into_iter();
    let all = order.len();
    let mut from = 0;
    for size in &terms.waves {
        let to = size.ends(all).max(from);
        plan.names.push(size.name());
        plan.waves.push(order.by_ref().take(to - from).collect());
        from = to;
    }
    // The last wave is all of them, whatever was written.
    if let Some(last) = plan.waves.last_mut() {
        last.extend(order);
    }
    plan.names.push(TRAILING.to_owned());
    plan.waves.push(later.into_iter().map(|(_, placed)| placed).collect());
    plan.text = explain(&plan, terms, candidates);
    plan
}

/// What somebody is to run, or why it is left out. Of a node that never spoke, neither is known.
pub(super) fn fits(goals: &[(Target, Artifact)], candidate: &Candidate) -> (Option<u16>, Option<LeftOut>) {
    if candidate.reach == Reach::Never && !candidate.takes {
        return (None, None);
    }
    if !candidate.takes {
        return (None, Some(LeftOut::TakesNone));
    }
    let Some(goal) = goal(goals, &candidate.arch, candidate.device_kind.as_deref()) else {
        return (None, Some(LeftOut::NoTarget));
    };
    let digest = goals[usize::from(goal)].1.digest;
    if candidate.runs.as_ref().is_some_and(|(_, runs)| *runs == digest) {
        return (Some(goal), Some(LeftOut::RunsAlready));
    }
    if candidate.strikes >= super::STRIKES {
        return (Some(goal), Some(LeftOut::Quarantined));
    }
    (Some(goal), None)
}

/// Puts those who take part into one order of which every stretch has each kind of hardware and each site in the
/// proportion of the whole.
fn weave(rollout: &Id, chosen: Vec<(&Candidate, Placed)>) -> Vec<Placed> {
    let mut sites: BTreeMap<[&str; 3], Vec<(u64, Placed)>> = BTreeMap::new();
    for (candidate, placed) in chosen {
        let of = [candidate.arch.as_str(), candidate.kind.as_str(), candidate.site.as_str()];
        let hash = hash(rollout, &candidate.id, &candidate.device);
        sites.entry(of).or_default().push((hash, placed));
    }
    // Within a kind of hardware, sites take turns; the turns of each are by hash.
    let mut hardware: BTreeMap<[&str; 2], Vec<(usize, u64, Placed)>> = BTreeMap::new();
    for ([arch, kind, _], mut of_site) in sites {
        of_site.sort_by_key(|(hash, _)| *hash);
        let turns = of_site.into_iter().enumerate().map(|(turn, (hash, placed))| (turn, hash, placed));
        hardware.entry([arch, kind]).or_default().extend(turns);
    }
    let mut order: Vec<(f64, u64, Placed)> = Vec::new();
    for (_, mut of_hardware) in hardware {
        of_hardware.sort_by_key(|(turn, hash, _)| (*turn, *hash));
        let all = of_hardware.len() as f64;
        for (place, (_, hash, placed)) in of_hardware.into_iter().enumerate() {
            order.push(((place as f64 + 0.5) / all, hash, placed));
        }
    }
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    order.into_iter().map(|(_, _, placed)| placed).collect()
}

/// How long a rollout may take and what it moves, as far as that can be told before.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// Milliseconds from the first node told to the last wave passed, if every node takes as long as a healthy one.
    pub duration_ms: i64,
    /// Bytes that nodes download.
    pub bytes: u64,
    /// What an operator should know before it begins.
    pub warnings: Vec<String>,
}

/// What a healthy node takes beside its probation, in milliseconds: to download, install and start.
const NODE_MS: i64 = 60_000;
/// A node's probation where the terms name none, in milliseconds.
const PROBATION_MS: i64 = 60_000;

/// What a plan comes to.
#[must_use]
pub fn forecast(
    plan: &Plan,
    goals: &[(Target, Artifact)],
    terms: &Terms,
    candidates: &[Candidate],
) -> Forecast {
    let node_ms = NODE_MS + terms.probation_ms.unwrap_or(PROBATION_MS);
    let mut duration_ms = 0_i64;
    let last = plan.waves.len().saturating_sub(1);
    for wave in plan.waves.iter().take(last).filter(|wave| !wave.is_empty()) {
        let told_ms = terms.rate.map_or(0.0, |rate| (wave.len() - 1) as f64 / rate * 60_000.0) as i64;
        let rounds = terms.max_unavailable.map_or(1, |most| rounds(wave, most));
        duration_ms += told_ms.max(rounds * node_ms - node_ms) + node_ms + terms.soak_ms;
    }
    let length =
        |placed: &Placed| placed.goal.and_then(|goal| goals.get(usize::from(goal))).map(|g| g.1.length);
    let bytes = plan.waves.iter().flatten().filter_map(length).sum();
    let mut warnings = Vec::new();
    let in_waves: usize = plan.waves.iter().take(last).map(Vec::len).sum();
    let later = plan.waves.last().map_or(0, Vec::len);
    if in_waves == 0 {
        warnings.push("no node can be told now: the waves are empty".to_owned());
    }
    if later > 0 {
        let later = count(later, "node");
        warnings.push(format!("{later} offline now, to be told in the trailing wave on coming back"));
    }
    if duration_ms > terms.deadline_ms {
        warnings.push(format!(
            "it takes about {} and its deadline is {}; raise the deadline or the rate",
            span(duration_ms),
            span(terms.deadline_ms)
        ));
    }
    if plan.waves.first().is_some_and(|first| first.len() * 2 > in_waves && in_waves > 1) {
        warnings.push("the first wave has most of the nodes: a bad release reaches them all".to_owned());
    }
    if terms.max_unavailable.is_none() && in_waves > 1 {
        warnings.push("any number of nodes may be down at once; max_unavailable limits that".to_owned());
    }
    let first = plan.waves.first().into_iter().flatten().map(|placed| placed.seat.0);
    let kinds = |nodes: &mut dyn Iterator<Item = NodeNo>| -> std::collections::BTreeSet<(String, String)> {
        let of: BTreeMap<NodeNo, &Candidate> = candidates.iter().map(|c| (c.node, c)).collect();
        nodes.filter_map(|node| of.get(&node)).map(|c| (c.arch.clone(), c.kind.clone())).collect()
    };
    let mut all = plan.waves.iter().take(last).flatten().map(|placed| placed.seat.0);
    let (of_first, of_all) = (kinds(&mut first.into_iter()), kinds(&mut all));
    if of_first.len() < of_all.len() && !of_first.is_empty() {
        let (some, all) = (of_first.len(), of_all.len());
        warnings.push(format!("the first wave has {some} of {all} kinds of hardware"));
    }
    Forecast { duration_ms, bytes, warnings }
}

/// How often a wave waits for nodes to be back before the next may be told, counting the first.
fn rounds(wave: &[Placed], most: MaxUnavailable) -> i64 {
    let longest = if most.per_site {
        let mut sites: BTreeMap<u16, usize> = BTreeMap::new();
        wave.iter().for_each(|placed| *sites.entry(placed.site).or_default() += 1);
        sites.into_values().max().unwrap_or(0)
    } else {
        wave.len()
    };
    i64::try_from(longest.div_ceil(most.nodes.max(1) as usize)).unwrap_or(i64::MAX / NODE_MS)
}

/// How many of so many a part, 0 to 1, is at most. A part was written in percent, and of 29 a float holds a little less.
pub(super) fn at_most(part: f64, all: u32) -> u32 {
    (f64::from(all) * part + 1e-6).floor() as u32
}

/// A part, 0 to 1: `2%`, `12.5%`.
#[must_use]
pub fn percent(part: f64) -> String {
    format!("{}%", (part * 1e6).round() / 1e4)
}

/// `90s`, `12m`, `3h 20m`, `2d 4h`.
#[must_use]
pub fn span(ms: i64) -> String {
    let seconds = ms / 1_000;
    let two = |large: i64, a: &str, small: i64, b: &str| match small {
        0 => format!("{large}{a}"),
        _ => format!("{large}{a} {small}{b}"),
    };
    match seconds {
        ..120 => format!("{seconds}s"),
        120..7_200 => two(seconds / 60, "m", seconds % 60, "s"),
        7_200..172_800 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

fn explain(plan: &Plan, terms: &Terms, candidates: &[Candidate]) -> Vec<String> {
    let of: BTreeMap<Seat, &Candidate> = candidates.iter().map(|c| ((c.node, c.device.clone()), c)).collect();
    let name = |placed: &Placed| {
        of.get(&placed.seat).map_or_else(
            || placed.seat.0.to_string(),
            |candidate| match candidate.device.as_str() {
                "" => candidate.id.to_string(),
                device => format!("{}/{device}", candidate.id),
            },
        )
    };
    let names = |wave: &[Placed]| -> String {
        let mut text = wave.iter().take(LISTED).map(name).collect::<Vec<_>>().join(", ");
        if wave.len() > LISTED {
            text += ", …";
        }
        text
    };
    let mut text = Vec::new();
    let last = plan.waves.len().saturating_sub(1);
    let mut told = 0;
    for (number, (wave, title)) in plan.waves.iter().zip(&plan.names).take(last).enumerate() {
        told += wave.len();
        let number = number + 1;
        if wave.is_empty() {
            text.push(format!("wave {number} ({title}): nobody; the waves before have them already"));
            continue;
        }
        let sites: std::collections::BTreeSet<u16> = wave.iter().map(|placed| placed.site).collect();
        let hardware: std::collections::BTreeSet<(&str, &str)> = (wave.iter())
            .filter_map(|placed| of.get(&placed.seat))
            .map(|candidate| (candidate.arch.as_str(), candidate.kind.as_str()))
            .collect();
        let (nodes, sites, hardware) =
            (count(wave.len(), "node"), count(sites.len(), "site"), count(hardware.len(), "kind"));
        let names = names(wave);
        text.push(format!(
            "wave {number} ({title}): {nodes} of {sites} and {hardware} of hardware, {told} in all: {names}"
        ));
    }
    if let Some(later) = plan.waves.last().filter(|later| !later.is_empty()) {
        let nodes = count(later.len(), "node");
        text.push(format!("{TRAILING}: {nodes} offline now, told when they come back: {}", names(later)));
    }
    let mut reasons: BTreeMap<LeftOut, Vec<Placed>> = BTreeMap::new();
    for placed in &plan.left_out {
        if let Some(why) = placed.left_out {
            reasons.entry(why).or_default().push(placed.clone());
        }
    }
    for (why, seats) in reasons {
        let nodes = count(seats.len(), "node");
        text.push(format!("left out: {nodes}, {}: {}", why.sentence(), names(&seats)));
    }
    text.push(format!(
        "between waves: {} of watching{}; more than {} failed of at least {} halts ({})",
        span(terms.soak_ms),
        if terms.gates.is_empty() {
            String::new()
        } else {
            format!(" and {}", count(terms.gates.len(), "gate"))
        },
        percent(terms.max_failures),
        terms.min_executed,
        match terms.on_failure {
            super::OnFailure::Pause => "pause",
            super::OnFailure::Stop => "stop",
            super::OnFailure::Rollback => "rollback",
        }
    ));
    text
}

/// `1 node`, `3 nodes`.
pub(super) fn count(many: usize, one: &str) -> String {
    format!("{many} {one}{}", if many == 1 { "" } else { "s" })
}
