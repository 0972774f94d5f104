//! The registry in memory: every node with its presence and its marks. What the consumer decides on and readers look
//! at; the store holds the same rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fleet_schemas::{
    Lane, NodeId, SessionId, StreamId,
    batch::Clock,
    cbor,
    config::Reported,
    session::{Heartbeat, OutboxUse, Versions},
};
use serde::{Deserialize, Serialize};

use super::{
    command::Dispatch,
    config,
    ledger::{self, Account, Counters},
    mark::{self, Mark},
    presence::Presence,
    restored::Restored,
    rollout::Rollouts,
    time::{Boots, millis},
    twins::Twins,
};

/// Short for a node within one store; never reused.
pub type NodeNo = u32;
/// The number of the hub itself in events: nodes count from 1.
pub const HUB: NodeNo = 0;

/// How long the row of a stream that is over is kept by itself: long enough to know it again when an old card comes
/// back.
const FOLD_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);
/// How many such rows of a lane are kept, the newest: a machine that starts again and again opens a stream each time.
const OVER_KEPT: usize = 64;
/// How long each is kept at least: what is on its way from it is still known again.
const FOLD_REST: Duration = Duration::from_secs(3600);

/// Where a node is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Location {
    /// Degrees north.
    pub lat: f64,
    /// Degrees east.
    pub lon: f64,
}

/// What is known of a node and kept; its row in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: NodeId,
    /// A name for people; set by an operator, else the node's own, else the id.
    pub name: Option<String>,
    /// What the node calls itself.
    pub own_name: Option<String>,
    /// What kind of machine.
    pub kind: String,
    /// The site it belongs to.
    pub site: Option<String>,
    /// Where it is.
    pub location: Option<Location>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What it can do, by its own word.
    pub capabilities: Vec<String>,
    /// What it runs.
    pub versions: Versions,
    /// The machine, by its own word.
    pub machine: BTreeMap<String, String>,
    /// First heard, hub time, Unix milliseconds.
    pub first_seen_ms: i64,
    /// Last heard, hub time, Unix milliseconds; written with other changes and periodically.
    pub last_seen_ms: i64,
    /// The node's count of its sessions.
    pub session_epoch: u64,
    /// The session that count belongs to.
    pub session: Option<SessionId>,
    /// When its boots began.
    pub boots: Boots,
    /// Presence as of the last write.
    pub presence: Presence,
    /// What configuration it has, by its own word; none while its agent takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Box<Reported>>,
    /// When an operator removed it, Unix milliseconds; its history is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_ms: Option<i64>,
}

impl Record {
    /// A node of which nothing is known but its id.
    #[must_use]
    pub fn new(id: NodeId, now_ms: i64) -> Self {
        Self {
            id,
            name: None,
            own_name: None,
            kind: String::new(),
            site: None,
            location: None,
            labels: BTreeMap::new(),
            capabilities: Vec::new(),
            versions: Versions::default(),
            machine: BTreeMap::new(),
            first_seen_ms: now_ms,
            last_seen_ms: now_ms,
            session_epoch: 0,
            session: None,
            boots: Boots::default(),
            presence: Presence::new(now_ms),
            config: None,
            removed_ms: None,
        }
    }

    /// The name to show.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.name.as_deref().or(self.own_name.as_deref()).unwrap_or(self.id.as_str())
    }
}

/// The last heartbeat; in memory only.
#[derive(Debug, Clone, PartialEq)]
pub struct Vital {
    // CBOR, a quarter of the map's size: it is there for every node, and looked at for a few.
    system: Box<[u8]>,
    /// Size and quota of the outbox.
    pub outbox: OutboxUse,
    /// Samples not yet sealed.
    pub pending_samples: u64,
    /// When it arrived, hub time, Unix milliseconds.
    pub at_ms: i64,
    /// How far the node's clock was ahead of the hub's then, in milliseconds, if it claims to be right.
    pub clock_offset_ms: Option<i64>,
}

impl Vital {
    /// What a heartbeat said.
    #[must_use]
    pub fn new(heartbeat: &Heartbeat, at_ms: i64) -> Self {
        Self {
            system: cbor::encode(&heartbeat.system).into(),
            outbox: heartbeat.outbox,
            pending_samples: heartbeat.pending.samples,
            at_ms,
            clock_offset_ms: (heartbeat.clock == Clock::Synced)
                .then(|| heartbeat.time_ms.saturating_sub(at_ms)),
        }
    }

    /// The machine's figures by metric name.
    #[must_use]
    pub fn system(&self) -> BTreeMap<String, f64> {
        cbor::decode(&self.system).expect("these bytes were encoded from such a map")
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its number in the store.
    pub number: NodeNo,
    /// What is kept.
    pub record: Record,
    /// The last heartbeat, if there was one since the hub's start.
    pub vital: Option<Vital>,
    /// Marks per lane and stream.
    pub marks: BTreeMap<(Lane, StreamId), Mark>,
    /// What configuration it is to have; none while it never had any setting.
    pub wanted: Option<config::Wanted>,
    /// When it was told so.
    pub(super) told: Option<config::Told>,
    /// It has said that it leaves for another hub: what it had not numbered by then goes there.
    pub(super) moves: bool,
    /// Who speaks under this id.
    pub(super) twins: Twins,
    /// By stream of the event lane: the first batch that was not sealed yet at the birth of this session.
    pub(super) unborn: BTreeMap<StreamId, u64>,
}

impl Node {
    /// A node with what the store has of it.
    #[must_use]
    pub fn new(number: NodeNo, record: Record) -> Self {
        let (marks, twins) = (BTreeMap::new(), Twins::default());
        let (moves, unborn) = (false, BTreeMap::new());
        Self { number, record, vital: None, marks, wanted: None, told: None, moves, twins, unborn }
    }

    /// Records announced and not yet here, and not yet sealed, over all lanes.
    #[must_use]
    pub fn at_edge(&self) -> u64 {
        let pending = self.vital.as_ref().map_or(0, |vital| vital.pending_samples);
        self.marks.values().map(Mark::at_edge).sum::<u64>() + pending
    }

    /// Gives up what is still at the edge: whoever had it is not this node any more. Gives the streams that were open,
    /// each with its records. What was not sealed yet was never numbered, and is forgotten with the last heartbeat.
    pub fn write_off(&mut self, now_ms: i64) -> Vec<(Lane, StreamId, u64)> {
        self.vital = None;
        let open = self.marks.iter_mut().filter(|(_, mark)| !mark.is_over());
        open.map(|((lane, stream), mark)| (*lane, *stream, mark.write_off(now_ms))).collect()
    }

    /// Folds streams that have been over for long, or of which too many newer ones are over, into one row per lane. Gives
    /// the rows that are gone; those they went into are of the stream [`mark::FOLDED`].
    pub fn fold(&mut self, now_ms: i64) -> Vec<(Lane, StreamId)> {
        let at_rest = now_ms.saturating_sub(millis(FOLD_REST));
        let old = now_ms.saturating_sub(millis(FOLD_AFTER));
        let mut gone = Vec::new();
        for lane in Lane::ALL {
            let over = |(key, mark): (&(Lane, StreamId), &Mark)| {
                let may_go = mark.is_over() && key.1 != mark::FOLDED && mark.at_ms < at_rest;
                may_go.then_some((mark.at_ms, *key))
            };
            let mut over: Vec<_> = self.of_lane(lane).filter_map(over).collect();
            over.sort_unstable();
            let too_many = over.len().saturating_sub(OVER_KEPT);
            let go = over.iter().enumerate().filter(|(place, (at_ms, _))| *place < too_many || *at_ms < old);
            gone.extend(go.map(|(_, (_, key))| *key));
        }
        for key in &gone {
            if let Some(mark) = self.marks.remove(key) {
                self.marks.entry((key.0, mark::FOLDED)).or_default().absorb(&mark, now_ms);
            }
        }
        gone
    }

    fn of_lane(&self, lane: Lane) -> impl Iterator<Item = (&(Lane, StreamId), &Mark)> {
        self.marks.range((lane, StreamId([0; 16]))..=(lane, StreamId([u8::MAX; 16])))
    }

    /// The accounts of every lane on which anything was ever produced.
    pub fn ledger(&self, counters: impl Fn(NodeNo, Lane) -> Counters) -> impl Iterator<Item = Account> {
        let account =
            move |lane| ledger::account(&self.record.id, lane, self.sum(lane), counters(self.number, lane));
        let told = |account: &Account| account.produced > 0 || account.counters != Counters::default();
        Lane::ALL.into_iter().map(account).filter(told)
    }

    /// What the marks of a lane say together.
    #[must_use]
    pub fn sum(&self, lane: Lane) -> ledger::Sum {
        let mut sum = ledger::Sum { as_of_ms: self.record.last_seen_ms, ..ledger::Sum::default() };
        for (_, mark) in self.of_lane(lane) {
            sum.accounted += mark.accounted();
            sum.at_edge += mark.at_edge();
            sum.fault = sum.fault.or(mark.fault_now());
        }
        if let Some(vital) = &self.vital {
            sum.as_of_ms = vital.at_ms;
            if lane == Lane::Telemetry {
                sum.at_edge += vital.pending_samples;
            }
        }
        sum
    }
}

/// All nodes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fleet {
    /// By id.
    // Boxed: the leaves of a tree that grows in order stay half empty.
    pub nodes: BTreeMap<NodeId, Box<Node>>,
    /// Ids by number, also of those that were removed and whose history is kept.
    pub ids: BTreeMap<NodeNo, NodeId>,
    /// Nodes that were removed and whose history is kept, by id.
    pub gone: BTreeMap<NodeId, Box<Node>>,
    /// Nodes that were removed with their history since the hub's start: what is still on its way from them makes none
    /// anew.
    pub buried: BTreeSet<NodeId>,
    /// Saved selectors by name.
    pub groups: BTreeMap<String, String>,
    /// Time zones of sites, by their IANA names.
    pub sites: BTreeMap<String, String>,
    /// Commands that are not over.
    pub commands: Dispatch,
    /// Settings, and who is still to be told.
    pub config: config::Plan,
    /// Rollouts, and who takes part in them.
    pub rollouts: Rollouts,
    /// The last restore from a backup, and who came back since.
    pub restored: Option<Restored>,
    deadlines: BTreeSet<(Duration, NodeId)>,
}

impl Fleet {
    /// Whom an event is about: a node by its number, or the hub itself ([`HUB`]).
    #[must_use]
    pub fn subject(&self, number: NodeNo) -> Option<NodeId> {
        if number == HUB { Some(NodeId::hub()) } else { self.ids.get(&number).cloned() }
    }

    /// Takes a node that the store has.
    pub fn insert(&mut self, node: Node) {
        let id = node.record.id.clone();
        self.ids.insert(node.number, id.clone());
        if node.record.removed_ms.is_some() {
            self.gone.insert(id, Box::new(node));
            return;
        }
        self.buried.remove(&id);
        self.forget_deadline(&id);
        if let Some(deadline) = node.record.presence.deadline {
            self.deadlines.insert((deadline, id.clone()));
        }
        self.nodes.insert(id, Box::new(node));
    }

    /// A node, also one that was removed and whose history is kept.
    #[must_use]
    pub fn known(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.get(id).or_else(|| self.gone.get(id)).map(|node| &**node)
    }

    /// All that are a part of the fleet, and those that were: of each of them something may be known elsewhere.
    pub fn ever(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes.keys().chain(self.gone.keys()).chain(&self.buried)
    }

    /// A node is a part of the fleet no more; its history is kept.
    pub fn retire(&mut self, id: &NodeId, now_ms: i64) {
        self.forget_deadline(id);
        if let Some(mut node) = self.nodes.remove(id) {
            node.record.presence.deadline = None;
            node.record.removed_ms = Some(now_ms);
            self.gone.insert(id.clone(), node);
        }
    }

    /// A node that was removed is a part of the fleet again.
    pub fn restore(&mut self, id: &NodeId) {
        if let Some(mut node) = self.gone.remove(id) {
            node.record.removed_ms = None;
            self.insert(*node);
        }
    }

    /// Forgets a node that was removed.
    pub fn forget(&mut self, id: &NodeId) -> Option<Box<Node>> {
        let node = self.gone.remove(id)?;
        self.ids.remove(&node.number);
        self.buried.insert(id.clone());
        Some(node)
    }

    fn forget_deadline(&mut self, id: &NodeId) {
        if let Some(deadline) = self.nodes.get(id).and_then(|node| node.record.presence.deadline) {
            self.deadlines.remove(&(deadline, id.clone()));
        }
    }

    /// Changes a node's presence and keeps its deadline in the queue. Returns whether the state changed.
    pub fn presence(&mut self, id: &NodeId, change: impl FnOnce(&mut Presence)) -> bool {
        let Some(node) = self.nodes.get_mut(id) else { return false };
        let presence = &mut node.record.presence;
        let (state, deadline) = (presence.state, presence.deadline);
        change(presence);
        if presence.deadline != deadline {
            if let Some(deadline) = deadline {
                self.deadlines.remove(&(deadline, id.clone()));
            }
            if let Some(deadline) = presence.deadline {
                self.deadlines.insert((deadline, id.clone()));
            }
        }
        presence.state != state
    }

    /// The nodes whose deadline has passed.
    #[must_use]
    pub fn overdue(&self, mono: Duration) -> Vec<NodeId> {
        let passed = |(deadline, _): &&(Duration, NodeId)| *deadline <= mono;
        self.deadlines.iter().take_while(passed).map(|(_, id)| id.clone()).collect()
    }

    /// When the next deadline is.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The number that a new node gets, given the highest the store ever gave.
    #[must_use]
    pub fn number_after(&self, highest: NodeNo) -> NodeNo {
        self.ids.keys().next_back().copied().unwrap_or(0).max(highest) + 1
    }

    /// The ledger: every lane of every node on which anything was ever produced.
    #[must_use]
    pub fn ledger(&self, counters: impl Fn(NodeNo, Lane) -> Counters) -> Vec<Account> {
        let mut accounts = Vec::new();
        for node in self.nodes.values() {
            accounts.extend(node.ledger(&counters));
        }
        accounts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn mark(next_record: u64) -> Mark {
        let mut mark = Mark::default();
        mark.next_record = next_record;
        mark
    }

    fn node(over: impl IntoIterator<Item = i64>) -> Node {
        let mut node = Node::new(1, Record::new(NodeId::parse("a").unwrap(), 0));
        for (n, at_ms) in over.into_iter().enumerate() {
            let mut mark = mark(11);
            mark.write_off(at_ms);
            node.marks.insert((Lane::Event, StreamId([n as u8 + 1; 16])), mark);
        }
        node
    }

    #[test]
    fn folding_keeps_the_account() {
        let mut node = node([5, 5]);
        node.marks.insert((Lane::Event, StreamId([9; 16])), mark(31));
        let before = node.sum(Lane::Event);
        let old = 30 * 24 * HOUR_MS;
        assert_eq!(node.fold(old + 5), []);
        assert_eq!(node.fold(old + 6).len(), 2);
        assert_eq!(node.marks.len(), 2);
        assert_eq!(node.sum(Lane::Event), before);
        assert_eq!(node.fold(old + 6), []);
    }

    #[test]
    fn who_was_removed_is_named_with_those_that_are_there() {
        let mut fleet = Fleet::default();
        let ids = ["a", "b", "c"].map(|id| NodeId::parse(id).unwrap());
        for (id, number) in ids.iter().zip(1..) {
            fleet.insert(Node::new(number, Record::new(id.clone(), 0)));
        }
        fleet.retire(&ids[0], 5);
        fleet.retire(&ids[1], 5);
        fleet.forget(&ids[1]).unwrap();
        let mut ever: Vec<_> = fleet.ever().cloned().collect();
        ever.sort();
        assert_eq!(ever, ids);
        assert_eq!(fleet.nodes.len(), 1);
    }

    #[test]
    fn of_a_machine_that_starts_again_and_again_the_newest_streams_are_kept() {
        let mut node = node((0..100).map(|n| n * 60_000));
        let before = node.sum(Lane::Event);
        let gone = node.fold(90 * 60_000 + HOUR_MS);
        let expected: Vec<_> = (1..=26).map(|n| (Lane::Event, StreamId([n; 16]))).collect();
        assert_eq!(
            gone, expected,
            "90 have been over for an hour: the 64 newest of them stay, and the 10 that have not"
        );
        assert_eq!(node.marks.len(), 64 + 10 + 1);
        assert_eq!(node.sum(Lane::Event), before);
    }
}
