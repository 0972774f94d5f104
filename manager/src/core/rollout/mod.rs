//! Rollouts at the hub, decided: who is told when, what its word makes of it, and when a wave halts.
//!
//! Pure. A rollout is planned once ([`plan()`]) and then stepped in the transaction that stores what nodes say
//! ([`advance`]); nothing polls. A node counts as confirmed only when it says so **and** says that the digest is what it
//! runs; silence is failure. Commands are made as an operator's are, so nothing here depends on one message arriving.

mod back;
mod end;
mod hear;
mod intent;
mod live;
mod model;
mod offer;
mod plan;
mod step;
mod wave;

#[cfg(test)]
mod invariants;
#[cfg(test)]
mod play;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use fleet_schemas::update::{Digest, Report, Running};

pub use hear::joins;
pub use intent::{
    Act, DEADLINE, Draft, GATES, RolloutError, TIMEOUT, Verdict, WAVES, Wanted, act, create, draft,
};
pub use live::Live;
pub use model::{
    Approval, Artifact, Head, Id, MaxUnavailable, Member, OnFailure, Release, STRIKES, Seat, Size, Spec,
    Stage, Stand, State, Strikes, Terms, Wave,
};
pub use plan::{
    Candidate, Forecast, LeftOut, Placed, Plan, Reach, TRAILING, forecast, goals, percent, plan, span,
};
pub use step::advance;

use super::{Now, fleet::NodeNo};

/// Most rollouts that are not over.
pub const OPEN: usize = 100;
/// Most rollouts that are over and kept; the oldest go.
pub const KEPT: usize = 100;
/// Most seats of rollouts that are kept: about 100 MB in memory.
pub const SEATS: usize = 300_000;
/// Most pairs of node and digest that are remembered as failed.
const STRIKES_KEPT: usize = 100_000;

/// All rollouts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rollouts {
    live: BTreeMap<Id, Box<Live>>,
    of_node: BTreeMap<NodeNo, BTreeSet<Id>>,
    strikes: BTreeMap<(NodeNo, Digest), Strikes>,
    // Unix milliseconds of the next deadline.
    due: BTreeSet<(i64, Id)>,
    touched: BTreeSet<Id>,
    last_no: u64,
}

/// Something that a node said of updates.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// Which node.
    pub node: NodeNo,
    /// What.
    pub word: Word,
}

/// What it was.
#[derive(Debug, Clone, PartialEq)]
pub enum Word {
    /// What it runs.
    Runs {
        /// All of it.
        running: Vec<Running>,
        /// It was a birth: nothing that was said before it is newer.
        born: bool,
    },
    /// A step of an update.
    Step(Box<Report>),
}

/// What a group of inputs comes to, as far as rollouts go. Rows are read from memory when they are written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effects {
    /// Rollouts whose row is to be written.
    pub heads: BTreeSet<Id>,
    /// Plans to write, once each.
    pub plans: Vec<(Id, Plan)>,
    /// Seats whose row is to be written.
    pub members: BTreeSet<(Id, Seat)>,
    /// Failures of a release at a node whose row is to be written.
    pub strikes: BTreeSet<(NodeNo, Digest)>,
    /// Rollouts to forget with all their rows.
    pub removed: Vec<Id>,
    /// Rollouts of which followers are told something new.
    pub changed: BTreeSet<Id>,
}

/// Rows to write.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Where rollouts stand.
    pub heads: Vec<Head>,
    /// Plans.
    pub plans: Vec<(Id, Plan)>,
    /// Seats.
    pub members: Vec<(Id, Seat, Member)>,
    /// Failures of releases at nodes; none: to be forgotten.
    pub strikes: Vec<((NodeNo, Digest), Option<Strikes>)>,
    /// Rollouts to forget.
    pub removed: Vec<Id>,
}

/// What the store has.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// Where rollouts stand.
    pub heads: Vec<Head>,
    /// Seats.
    pub members: Vec<(Id, Seat, Member)>,
    /// Failures of releases at nodes.
    pub strikes: Vec<((NodeNo, Digest), Strikes)>,
}

impl Effects {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn nothing_to_write(&self) -> bool {
        self.heads.is_empty()
            && self.plans.is_empty()
            && self.members.is_empty()
            && self.strikes.is_empty()
            && self.removed.is_empty()
    }
}

impl Rows {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
            && self.plans.is_empty()
            && self.members.is_empty()
            && self.strikes.is_empty()
            && self.removed.is_empty()
    }
}

impl Rollouts {
    /// What the store has. Nobody times out for as long as it takes nodes to be heard again.
    #[must_use]
    pub fn new(found: Found, now: Now) -> Self {
        let mut rollouts = Self { strikes: found.strikes.into_iter().collect(), ..Self::default() };
        let mut members: BTreeMap<Id, Vec<(Seat, Member)>> = BTreeMap::new();
        for (id, seat, member) in found.members {
            members.entry(id).or_default().push((seat, member));
        }
        for head in found.heads {
            let id = head.spec.id.clone();
            let of = members.remove(&id).unwrap_or_default();
            rollouts.insert(Live::new(head, of, now));
            rollouts.touched.insert(id);
        }
        rollouts
    }

    fn insert(&mut self, live: Live) {
        let id = live.head.spec.id.clone();
        self.last_no = self.last_no.max(live.head.spec.no);
        for (node, _) in live.members().keys() {
            self.of_node.entry(*node).or_default().insert(id.clone());
        }
        self.live.insert(id, Box::new(live));
    }

    fn remove(&mut self, id: &Id) {
        let Some(live) = self.live.remove(id) else { return };
        for (node, _) in live.members().keys() {
            if let Some(of) = self.of_node.get_mut(node) {
                of.remove(id);
                if of.is_empty() {
                    self.of_node.remove(node);
                }
            }
        }
        self.due.retain(|(_, due)| due != id);
        self.touched.remove(id);
    }

    /// Looks again whether anybody waits for hours: zones of sites have changed.
    pub(in crate::core) fn look_again(&mut self) {
        let waits = |live: &Live| !live.head.state.is_final() && live.head.spec.terms.window.is_some();
        let waiting = self.live.iter().filter(|(_, live)| waits(live)).map(|(id, _)| id.clone());
        self.touched.extend(waiting);
    }

    /// All that are known, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<&Live> {
        let mut all: Vec<&Live> = self.live.values().map(|live| &**live).collect();
        all.sort_by_key(|live| live.head.spec.no);
        all
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Live> {
        self.live.iter().find(|(known, _)| known.as_str() == id).map(|(_, live)| &**live)
    }

    /// Those that a node takes part in, oldest first.
    #[must_use]
    pub fn of_node(&self, node: NodeNo) -> Vec<&Live> {
        let of = self.of_node.get(&node).into_iter().flatten();
        let mut of: Vec<&Live> = of.filter_map(|id| self.live.get(id)).map(|live| &**live).collect();
        of.sort_by_key(|live| live.head.spec.no);
        of
    }

    /// The next name for a rollout of this release.
    #[must_use]
    pub fn next_id(&self, release: &Release) -> Id {
        let stem = format!("{}-{}", release.name, release.version);
        // Room for the number, and for the name of a way back.
        let stem: String = stem.chars().take(48).collect();
        let number = |id: &Id| id.as_str().strip_prefix(&stem)?.strip_prefix('-')?.parse::<u32>().ok();
        let next = self.live.keys().filter_map(number).max().map_or(1, |last| last.saturating_add(1));
        Id::parse(&format!("{stem}-{next}")).expect("parts of a release are printable and short")
    }

    /// How often a digest failed at a node.
    #[must_use]
    pub fn strikes(&self, node: NodeNo, digest: Digest) -> u32 {
        self.strikes.get(&(node, digest)).map_or(0, |strikes| strikes.count)
    }

    /// What failed at a node: digests with how often, when and why.
    pub fn failed_at(&self, node: NodeNo) -> impl Iterator<Item = (Digest, &Strikes)> {
        let all = (node, Digest([0; 32]))..=(node, Digest([u8::MAX; 32]));
        self.strikes.range(all).map(|((_, digest), strikes)| (*digest, strikes))
    }

    /// The rows that follow.
    #[must_use]
    pub fn rows(&self, effects: &Effects) -> Rows {
        let head = |id: &Id| Some(self.live.get(id)?.head.clone());
        let member = |(id, seat): &(Id, Seat)| {
            let member = self.live.get(id)?.members().get(seat)?.clone();
            Some((id.clone(), seat.clone(), member))
        };
        Rows {
            heads: effects.heads.iter().filter_map(head).collect(),
            plans: effects.plans.clone(),
            members: effects.members.iter().filter_map(member).collect(),
            strikes: effects.strikes.iter().map(|key| (*key, self.strikes.get(key).cloned())).collect(),
            removed: effects.removed.clone(),
        }
    }

    fn strike(&mut self, effects: &mut Effects, key: (NodeNo, Digest), reason: &str, now_ms: i64) {
        if self.strikes.len() >= STRIKES_KEPT
            && !self.strikes.contains_key(&key)
            && let Some((old, _)) = self.strikes.pop_first()
        {
            effects.strikes.insert(old);
        }
        let strikes =
            self.strikes.entry(key).or_insert(Strikes { count: 0, at_ms: 0, reason: String::new() });
        strikes.count = strikes.count.saturating_add(1);
        strikes.at_ms = now_ms;
        reason.clone_into(&mut strikes.reason);
        effects.strikes.insert(key);
    }
}
