//! A rollout in memory: its seats, and the indexes that make a step cost what changed, not what there is.
//!
//! Every change of a seat goes through [`Live::change`], which keeps the indexes right.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fleet_schemas::{
    command::Reason,
    update::{Digest, State as Said, Target},
};

use super::{
    Effects,
    model::{Artifact, Head, Member, Seat, Stage, Stand, State},
};
use crate::core::{Now, fleet::NodeNo, selector::Selector};

/// After a start of the hub nobody times out for so long: what nodes have to say is on its way.
const GRACE: Duration = Duration::from_secs(180);

/// A rollout with its seats.
#[derive(Debug, Clone, PartialEq)]
pub struct Live {
    /// Where it stands.
    pub head: Head,
    members: BTreeMap<Seat, Member>,
    /// Whoever matches it and is no member yet joins.
    pub(super) selector: Option<Selector>,
    // By wave: whose turn is still to come.
    queue: Vec<BTreeSet<(u32, Seat)>>,
    // By wave: how many are told and not at an end.
    under_way: Vec<u32>,
    // By site: how many are down through this rollout.
    down: BTreeMap<u16, u32>,
    down_all: u32,
    deadlines: BTreeSet<(i64, Seat)>,
    // Monotonic: right after a start the wall clock may be set, by as much as the hub was off.
    not_before: Duration,
    /// What holds it up, for people.
    pub(super) blocked: String,
    /// Which node was heard last, and so made happen what happens.
    pub(super) cause: Option<NodeNo>,
    /// A confirmed node runs something else: what to say of it.
    pub(super) drifted: Option<String>,
    pub(super) due_ms: Option<i64>,
    pub(super) is_dirty: bool,
    pub(super) again_ms: Option<i64>,
}

impl Live {
    /// As the store has it.
    #[must_use]
    pub fn new(mut head: Head, members: impl IntoIterator<Item = (Seat, Member)>, now: Now) -> Self {
        let waves = head.waves.len();
        // By a clock that was ahead and has been set since: from what lies in the future, nothing is reckoned.
        let past = |at_ms: &mut i64| *at_ms = (*at_ms).min(now.wall_ms);
        past(&mut head.spec.created_ms);
        head.waves.iter_mut().for_each(|wave| past(&mut wave.since_ms));
        head.waves.iter_mut().for_each(|wave| {
            if !head.state.is_final() {
                wave.tally.clear();
            }
        });
        let selector = head.spec.selector.as_deref().and_then(|text| Selector::parse(text).ok());
        let mut live = Self {
            head,
            members: BTreeMap::new(),
            selector,
            queue: vec![BTreeSet::new(); waves],
            under_way: vec![0; waves],
            down: BTreeMap::new(),
            down_all: 0,
            deadlines: BTreeSet::new(),
            not_before: now.mono + GRACE,
            blocked: String::new(),
            cause: None,
            drifted: None,
            due_ms: None,
            is_dirty: false,
            again_ms: None,
        };
        // Collected, its leaves are full: one by one, in order, each would stay half empty.
        let mut members: BTreeMap<Seat, Member> = members.into_iter().collect();
        for member in members.values_mut() {
            [&mut member.told_ms, &mut member.offline_ms].into_iter().flatten().for_each(past);
        }
        if !members.is_empty() {
            // The seats are there: they are counted anew.
            live.head.waves.iter_mut().for_each(|wave| wave.tally.clear());
        }
        members.iter().for_each(|(seat, member)| live.count(seat, member, true));
        live.members = members;
        live
    }

    /// As it is just made: nothing has to be waited for.
    pub(super) fn fresh(head: Head, members: impl IntoIterator<Item = (Seat, Member)>, now: Now) -> Self {
        Self { not_before: now.mono, ..Self::new(head, members, now) }
    }

    /// Its seats.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<Seat, Member> {
        &self.members
    }

    /// What a member is to run.
    #[must_use]
    pub fn goal(&self, member: &Member) -> Option<&(Target, Artifact)> {
        self.head.spec.goals.get(usize::from(member.goal?))
    }

    /// The digest of that.
    #[must_use]
    pub fn digest(&self, member: &Member) -> Option<Digest> {
        self.goal(member).map(|(_, artifact)| artifact.digest)
    }

    /// What holds it up now; empty: nothing.
    #[must_use]
    pub fn blocked(&self) -> &str {
        if self.head.state == State::Running { &self.blocked } else { "" }
    }

    /// How many nodes are told and not at an end.
    #[must_use]
    pub fn under_way(&self) -> u32 {
        self.under_way.iter().sum()
    }

    /// How many seats are down through it at once, of all sites.
    #[must_use]
    pub fn down(&self) -> u32 {
        self.down_all
    }

    /// How many seats are down through it at each site.
    #[must_use]
    pub fn down_by_site(&self) -> &BTreeMap<u16, u32> {
        &self.down
    }

    /// Seats whose turn is still to come.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.iter().map(BTreeSet::len).sum()
    }

    /// The wave that is at work, by its place.
    #[must_use]
    pub fn current(&self) -> Option<usize> {
        self.head.waves.iter().position(|wave| wave.stage != Stage::Passed)
    }

    pub(super) fn queue(&self, wave: usize) -> &BTreeSet<(u32, Seat)> {
        &self.queue[wave]
    }

    pub(super) fn is_settled(&self, wave: usize) -> bool {
        self.queue[wave].is_empty() && self.under_way[wave] == 0
    }

    pub(super) fn is_last(&self, wave: usize) -> bool {
        wave + 1 == self.head.waves.len()
    }

    /// Whether one more node of a site may be down.
    pub(super) fn has_room(&self, site: u16) -> bool {
        self.head.spec.terms.max_unavailable.is_none_or(|most| {
            let down = if most.per_site { self.down.get(&site).copied().unwrap_or(0) } else { self.down_all };
            down < most.nodes
        })
    }

    /// Whose time is over first, and when, Unix milliseconds.
    pub(super) fn first_deadline(&self, now: Now) -> Option<(i64, Seat)> {
        let (at, seat) = self.deadlines.first()?;
        let left = self.not_before.saturating_sub(now.mono);
        let not_before_ms = now.wall_ms.saturating_add(i64::try_from(left.as_millis()).unwrap_or(i64::MAX));
        Some(((*at).max(if left.is_zero() { *at } else { not_before_ms }), seat.clone()))
    }

    /// The place of a site among those of the rollout.
    pub(super) fn site(&mut self, name: &str) -> u16 {
        let known = self.head.sites.iter().position(|site| site == name);
        let place = known.unwrap_or_else(|| {
            self.head.sites.push(name.to_owned());
            self.is_dirty = true;
            self.head.sites.len() - 1
        });
        u16::try_from(place).unwrap_or(0)
    }

    pub(super) fn insert(&mut self, effects: &mut Effects, seat: Seat, member: Member) {
        self.count(&seat, &member, true);
        effects.members.insert((self.head.spec.id.clone(), seat.clone()));
        self.members.insert(seat, member);
    }

    /// Changes a seat.
    pub(super) fn change(&mut self, effects: &mut Effects, seat: &Seat, change: impl FnOnce(&mut Member)) {
        // Where it is: taken out and put in again, it would leave the map's leaves half empty.
        let Some(mut member) = self.members.get(seat).cloned() else { return };
        self.count(seat, &member, false);
        change(&mut member);
        self.count(seat, &member, true);
        effects.members.insert((self.head.spec.id.clone(), seat.clone()));
        effects.changed.insert(self.head.spec.id.clone());
        self.members.insert(seat.clone(), member);
    }

    /// Changes where a seat stands.
    pub(super) fn stand(
        &mut self,
        effects: &mut Effects,
        seat: &Seat,
        stand: Stand,
        reason: Option<Reason>,
        now_ms: i64,
    ) {
        self.change(effects, seat, |member| {
            member.stand = stand;
            member.since_ms = now_ms;
            member.reason = reason.map(Box::new);
            if !stand.is_under_way() {
                member.offline_ms = None;
            }
            if stand != Stand::Said(Said::Skipped) {
                member.again = false;
            }
        });
    }

    fn count(&mut self, seat: &Seat, member: &Member, there: bool) {
        let wave = usize::from(member.wave).min(self.head.waves.len().saturating_sub(1));
        let step = |count: &mut u32| {
            *count = if there { count.saturating_add(1) } else { count.saturating_sub(1) };
        };
        if let Some(wave) = self.head.waves.get_mut(wave) {
            let count = wave.tally.entry(member.stand).or_default();
            step(count);
            if *count == 0 {
                wave.tally.remove(&member.stand);
            }
        }
        if member.stand == Stand::Waiting || member.again {
            let key = (member.turn, seat.clone());
            if there {
                self.queue[wave].insert(key)
            } else {
                self.queue[wave].remove(&key)
            };
        }
        if member.stand.is_under_way() {
            step(&mut self.under_way[wave]);
            let key = (self.deadline_of(member), seat.clone());
            if there {
                self.deadlines.insert(key)
            } else {
                self.deadlines.remove(&key)
            };
        }
        if member.stand.is_under_way() || member.down {
            step(self.down.entry(member.site).or_default());
            step(&mut self.down_all);
        }
    }

    /// When a seat that is under way times out, hub time, Unix milliseconds.
    pub(super) fn deadline_of(&self, member: &Member) -> i64 {
        let terms = &self.head.spec.terms;
        let told = member.told_ms.unwrap_or(member.since_ms).saturating_add(terms.node_ms());
        let offline = member.offline_ms.map_or(i64::MAX, |at| at.saturating_add(terms.offline_ms));
        told.min(offline)
    }

    /// Changes where the rollout stands.
    pub(super) fn turn(&mut self, state: State, reason: impl Into<String>, now_ms: i64) {
        if self.head.state != state {
            self.head.state = state;
            self.head.since_ms = now_ms;
        }
        self.head.reason = reason.into();
        self.is_dirty = true;
    }

    /// Changes where a wave stands.
    pub(super) fn stage(&mut self, wave: usize, stage: Stage, reason: impl Into<String>, now_ms: i64) {
        if let Some(wave) = self.head.waves.get_mut(wave) {
            wave.stage = stage;
            wave.since_ms = now_ms;
            wave.reason = reason.into();
        }
        self.is_dirty = true;
    }
}

/// A reason in the hub's words.
pub(super) fn reason(code: &str, message: impl Into<String>) -> Reason {
    Reason { code: code.to_owned(), message: message.into(), may_have_executed: false }
}
