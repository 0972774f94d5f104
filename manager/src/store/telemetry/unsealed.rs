//! What of the inbox is not sealed yet, in memory, so that readers and the sealer find it: 32 bytes a batch.
//!
//! Knows rows by number only; their bytes stay in the inbox.

use std::collections::HashMap;

use fleet_schemas::Lane;

use super::row::Head;

/// One unsealed batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    pub seq: u64,
    /// Earliest corrected instant.
    pub start_ms: i64,
    /// Up to the latest; `u32::MAX` says "that or more".
    span_ms: u32,
    pub count: u32,
    /// Of the row's payload.
    pub bytes: u32,
    pub lane: Lane,
}

impl Batch {
    pub(super) fn new(seq: u64, head: &Head, bytes: usize) -> Self {
        let span = head.end_ms.saturating_sub(head.start_ms);
        Self {
            seq,
            start_ms: head.start_ms,
            span_ms: u32::try_from(span).unwrap_or(u32::MAX),
            count: head.count,
            bytes: bytes as u32,
            lane: head.lane,
        }
    }

    /// Whether a row's head says what it said when the index was made.
    pub(super) fn is_of(&self, node: u32, head: &Head) -> bool {
        head.node == node && (head.lane, head.count, head.start_ms) == (self.lane, self.count, self.start_ms)
    }

    /// Whether it may hold instants in `from_ms..to_ms`.
    pub(super) fn overlaps(&self, from_ms: i64, to_ms: i64) -> bool {
        let ends_before =
            self.span_ms != u32::MAX && self.start_ms.saturating_add(self.span_ms.into()) < from_ms;
        self.start_ms < to_ms && !ends_before
    }
}

/// The unsealed batches of one node, by ascending `seq`.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub batches: Vec<Batch>,
    pub bytes: u64,
    /// Receive time of the first.
    pub since_ms: i64,
}

/// The unsealed batches of all nodes.
#[derive(Debug, Default)]
pub(super) struct Unsealed {
    pub nodes: HashMap<u32, Node>,
    pub batches: u64,
    pub bytes: u64,
    pub samples: u64,
}

impl Unsealed {
    pub(super) fn push(&mut self, head: &Head, batch: Batch) {
        let node = self.nodes.entry(head.node).or_default();
        if node.batches.is_empty() {
            node.since_ms = head.recv_ms;
        }
        node.bytes += u64::from(batch.bytes);
        node.batches.push(batch);
        self.batches += 1;
        self.bytes += u64::from(batch.bytes);
        self.samples += u64::from(batch.count);
    }

    /// Forgets the batches of a node up to `cursor`; those that stay count as received at `since_ms`.
    pub(super) fn sealed(&mut self, node: u32, cursor: u64, since_ms: i64) {
        let Some(rows) = self.nodes.get_mut(&node) else { return };
        let taken = rows.batches.partition_point(|batch| batch.seq <= cursor);
        for batch in rows.batches.drain(..taken) {
            rows.bytes -= u64::from(batch.bytes);
            self.batches -= 1;
            self.bytes -= u64::from(batch.bytes);
            self.samples -= u64::from(batch.count);
        }
        rows.since_ms = since_ms;
        if rows.batches.is_empty() {
            self.nodes.remove(&node);
        }
    }

    /// The lowest number that is not sealed.
    pub(super) fn first(&self) -> Option<u64> {
        self.nodes.values().filter_map(|node| node.batches.first()).map(|batch| batch.seq).min()
    }
}
