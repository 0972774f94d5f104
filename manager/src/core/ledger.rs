//! The ledger's arithmetic: `produced = stored + expired + quarantined + lost + written_off + at_edge`, in records,
//! per node and lane.

use std::ops::AddAssign;

use fleet_schemas::{Lane, NodeId};
use serde::{Deserialize, Serialize};

use super::mark::Fault;

/// What became of records, per node and lane. Also used as a difference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// In the store.
    pub stored: u64,
    /// Removed by retention.
    pub expired: u64,
    /// Kept raw because they could not be read.
    pub quarantined: u64,
    /// Declared lost by the edge, or booked as lost by the hub.
    pub lost: u64,
    /// Given up by an operator.
    pub written_off: u64,
    /// Came again after they were stored; not part of the sum.
    pub duplicates: u64,
}

impl Counters {
    /// Records accounted for.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.stored + self.expired + self.quarantined + self.lost + self.written_off
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.stored += other.stored;
        self.expired += other.expired;
        self.quarantined += other.quarantined;
        self.lost += other.lost;
        self.written_off += other.written_off;
        self.duplicates += other.duplicates;
    }
}

/// What an account says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Everything produced is accounted for.
    Balanced,
    /// Records are still at the edge.
    Pending,
    /// The sum does not come out, or the edge misses rows.
    Broken,
}

impl Standing {
    /// The word in REST, CLI and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Balanced => "balanced",
            Self::Pending => "pending",
            Self::Broken => "broken",
        }
    }
}

/// One account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Whose.
    pub node: NodeId,
    /// Which lane.
    pub lane: Lane,
    /// How it stands.
    pub state: Standing,
    /// Why it is broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Records that the edge numbered, and those not yet sealed.
    pub produced: u64,
    /// What became of them.
    #[serde(flatten)]
    pub counters: Counters,
    /// Announced and not yet here.
    pub at_edge: u64,
    /// When the edge last told where it stands, Unix milliseconds, hub time.
    pub as_of_ms: i64,
}

/// What the marks of one lane say together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// Records below the marks.
    pub accounted: u64,
    /// Records announced above them, and not yet sealed.
    pub at_edge: u64,
    /// The worst that the edge's last word showed.
    pub fault: Option<Fault>,
    /// When that was.
    pub as_of_ms: i64,
}

/// Draws up one account: the marks count what passed, the counters what became of it; they are kept apart, and must
/// agree.
#[must_use]
pub fn account(node: &NodeId, lane: Lane, sum: Sum, counters: Counters) -> Account {
    let reason = match sum.fault {
        Some(Fault::FloorAboveMark) => Some("the edge no longer holds records that are not here".to_owned()),
        Some(Fault::NextBelowMark) => Some("the edge reuses numbers that are already stored".to_owned()),
        Some(Fault::Miscounted) => Some("rows at the edge are missing".to_owned()),
        None if counters.sum() != sum.accounted => {
            let (marks, found) = (sum.accounted, counters.sum());
            Some(format!("the marks cover {marks} records, the counters {found}"))
        }
        None => None,
    };
    let state = match (&reason, sum.at_edge) {
        (Some(_), _) => Standing::Broken,
        (None, 0) => Standing::Balanced,
        (None, _) => Standing::Pending,
    };
    Account {
        node: node.clone(),
        lane,
        state,
        reason,
        produced: sum.accounted + sum.at_edge,
        counters,
        at_edge: sum.at_edge,
        as_of_ms: sum.as_of_ms,
    }
}
