//! After a hub was restored from a backup: which nodes came back, what they delivered again, and what nobody has.
//!
//! Pure. The first birth of each node after the restore is compared with the marks, and remembered: what the node still
//! holds above them comes again, and what it no longer holds was booked as lost by the birth itself.

use std::collections::BTreeMap;

use fleet_schemas::{Lane, NodeId, StreamId};
use serde::{Deserialize, Serialize};

use super::fleet::{Fleet, Node, NodeNo};

/// A restore, as its row has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// Counts restores of this store from 1.
    pub number: u64,
    /// When, Unix milliseconds.
    pub at_ms: i64,
    /// When the backup was made, Unix milliseconds.
    pub backup_ms: i64,
    /// Samples of weeks that were not in the backup; booked as lost.
    pub samples_missing: u64,
    /// Executions of commands that wait for approval since.
    pub held: u64,
    /// Nodes, tokens, tools and operators that were shut out again, by the file of revocations.
    pub shut_out: u64,
    /// Join tokens that ended, because nobody can tell whether they were used since the backup.
    pub tokens_ended: u64,
    /// Rollouts that were paused.
    pub paused: u64,
}

/// Records of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The lane.
    pub lane: Lane,
    /// The stream.
    pub stream: StreamId,
    /// The first record that is not here.
    pub from: u64,
    /// The first that the node had not made yet.
    pub to: u64,
}

/// The first birth of a node after the restore.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Homecoming {
    /// When, hub time, Unix milliseconds.
    pub at_ms: i64,
    /// Records that neither side has; booked.
    pub lost: u64,
    /// What the node had then and this hub had not: from what it keeps of acked batches, and what was never delivered.
    pub again: Vec<Span>,
}

/// The last restore, and who came back since. In memory as in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// The restore.
    pub restore: Restore,
    /// Nodes that came back.
    pub home: BTreeMap<NodeNo, Homecoming>,
}

/// How far a restore has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Nodes that are known.
    pub nodes: usize,
    /// Those of them that were born since.
    pub back: usize,
    /// Those of them that delivered all they had then.
    pub settled: usize,
    /// Some of those that were not, in the order of their ids.
    pub missing: Vec<NodeId>,
    /// Records that came since, of those that nodes had at their first birth.
    pub again: u64,
    /// Records of those that did not come yet.
    pub due: u64,
    /// Records that were booked as lost at these births.
    pub lost: u64,
}

/// Nodes that [`Tally::missing`] names.
const NAMED: usize = 10;

impl Restored {
    /// Takes the first birth of a node; says whether it was that. `lost` was booked by it, and `node` has its marks.
    pub(super) fn born(
        &mut self,
        node: &Node,
        lanes: &BTreeMap<Lane, Vec<fleet_schemas::session::StreamState>>,
        lost: u64,
        at_ms: i64,
    ) -> bool {
        if self.home.contains_key(&node.number) {
            return false;
        }
        let span = |lane: Lane, state: &fleet_schemas::session::StreamState| {
            let mark = node.marks.get(&(lane, state.stream))?;
            let (from, to) = (mark.next_record, state.next_record);
            (from < to).then_some(Span { lane, stream: state.stream, from, to })
        };
        let again =
            lanes.iter().flat_map(|(lane, states)| states.iter().filter_map(|state| span(*lane, state)));
        let home = Homecoming { at_ms, lost, again: again.collect() };
        self.home.insert(node.number, home);
        true
    }
}

impl Homecoming {
    /// Records that came, and those that did not come yet.
    fn came(&self, node: &Node) -> (u64, u64) {
        let (mut again, mut due) = (0, 0);
        for Span { lane, stream, from, to } in &self.again {
            // A stream that is folded into another row is over.
            let next = node.marks.get(&(*lane, *stream)).map_or(*to, |mark| match mark.is_over() {
                true => *to,
                false => mark.next_record.clamp(*from, *to),
            });
            again += next - from;
            due += to - next;
        }
        (again, due)
    }
}

/// How far the last restore has come; none when there was none.
#[must_use]
pub fn tally(fleet: &Fleet) -> Option<Tally> {
    let restored = fleet.restored.as_ref()?;
    let mut tally = Tally { nodes: fleet.nodes.len(), ..Tally::default() };
    for node in fleet.nodes.values() {
        let Some(home) = restored.home.get(&node.number) else {
            if tally.missing.len() < NAMED {
                tally.missing.push(node.record.id.clone());
            }
            continue;
        };
        let (again, due) = home.came(node);
        tally.back += 1;
        tally.settled += usize::from(due == 0);
        tally.again += again;
        tally.due += due;
        tally.lost += home.lost;
    }
    Some(tally)
}

#[cfg(test)]
mod tests {
    use fleet_schemas::session::StreamState;

    use super::*;
    use crate::core::{fleet::Record, mark::Mark};

    const STREAM: StreamId = StreamId([1; 16]);

    #[test]
    fn what_comes_again_is_counted_until_nothing_is_due() {
        let mut fleet = Fleet::default();
        fleet.restored = Some(Restored::default());
        for (number, id) in [(1, "a"), (2, "b")] {
            fleet.insert(Node::new(number, Record::new(NodeId::parse(id).unwrap(), 0)));
        }
        let mut node = Node::new(1, Record::new(NodeId::parse("a").unwrap(), 0));
        let mark = |next_record| {
            let mut mark = Mark::default();
            (mark.seq, mark.next_record) = (1, next_record);
            mark
        };
        node.marks.insert((Lane::Event, STREAM), mark(11));
        let state = StreamState {
            stream: STREAM,
            floor_seq: 2,
            floor_record: 11,
            next_seq: 9,
            next_record: 31,
            counted: 20,
            tombstoned: 0,
        };
        let lanes = [(Lane::Event, vec![state])].into();
        let restored = fleet.restored.as_mut().unwrap();
        assert!(restored.born(&node, &lanes, 4, 7));
        assert!(!restored.born(&node, &lanes, 4, 8), "only the first counts");
        fleet.insert(node.clone());
        let expected = Tally {
            nodes: 2,
            back: 1,
            missing: vec![NodeId::parse("b").unwrap()],
            due: 20,
            lost: 4,
            ..Tally::default()
        };
        assert_eq!(tally(&fleet), Some(expected));
        node.marks.insert((Lane::Event, STREAM), mark(26));
        fleet.insert(node.clone());
        let half = tally(&fleet).unwrap();
        assert_eq!((half.again, half.due, half.settled), (15, 5, 0));
        node.marks.insert((Lane::Event, STREAM), mark(99));
        fleet.insert(node);
        let done = tally(&fleet).unwrap();
        assert_eq!((done.again, done.due, done.settled), (20, 0, 1));
    }
}
