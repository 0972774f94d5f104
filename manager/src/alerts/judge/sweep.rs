//! Looks at nodes: each of them every few seconds, with its ledger, and what the store has of its devices.

use std::time::Duration;

use fleet_schemas::NodeId;

use super::Judge;
use crate::{
    consume::Error,
    core::{
        Now,
        alert::Met,
        fleet::{Node, NodeNo},
        ledger::Standing,
        time::millis,
    },
};

/// Nodes that are looked at between two groups of the consumer, which waits for it.
const NODES_AT_ONCE: usize = 256;
/// How often every node and its ledger are looked at.
const SWEEP: Duration = Duration::from_secs(10);

/// A pass over all nodes that is under way.
#[derive(Default)]
pub(super) struct Sweep {
    after: Option<NodeId>,
}

/// What the ledger says of one node.
struct Booked {
    lost: u64,
    quarantined: u64,
    standing: Option<Standing>,
    is_old: bool,
}

impl Judge {
    /// Reads what the store has of a node before a time: newest values, and devices that it reported.
    pub(super) fn know(&mut self, number: NodeNo, before_ms: i64, now: Now) -> Result<(), Error> {
        let latest = self.shared.telemetry.latest(number)?.into_iter();
        let before = latest.filter(|latest| latest.time_ms < before_ms);
        let before = before.map(|latest| (latest.device, latest.metric, latest.time_ms, latest.value));
        self.engine.know(number, before.collect());
        for (_, device) in self.shared.state().devices(number)? {
            self.engine.device(number, &device.report, now.wall_ms);
        }
        Ok(())
    }

    /// Looks at every node at once.
    pub(super) fn look_at_all(&mut self, now: Now) -> Result<(), Error> {
        self.sweep = Some(Sweep::default());
        while self.sweep.is_some() {
            self.sweep_some(now, false)?;
        }
        self.swept = Some(now.mono);
        Ok(())
    }

    /// Goes on with the pass over all nodes, or begins one when it is time.
    pub(super) fn sweep(&mut self, now: Now) -> Result<(), Error> {
        if self.sweep.is_none() {
            if self.swept.is_some_and(|swept| now.mono < swept + SWEEP) {
                return Ok(());
            }
            self.swept = Some(now.mono);
            self.sweep = Some(Sweep::default());
        }
        self.sweep_some(now, true)
    }

    fn sweep_some(&mut self, now: Now, caught_up: bool) -> Result<(), Error> {
        use std::ops::Bound::{Excluded, Unbounded};
        let Some(mut sweep) = self.sweep.take() else { return Ok(()) };
        let mut seen = Vec::with_capacity(NODES_AT_ONCE);
        {
            let wants_ledger = self.engine.wants_ledger();
            // A group that is under way has moved marks, and no counters yet.
            let _settled = wants_ledger.then(|| self.shared.settled());
            let fleet = self.shared.fleet();
            let from = sweep.after.as_ref().map_or(Unbounded, Excluded);
            for (id, node) in fleet.nodes.range::<NodeId, _>((from, Unbounded)).take(NODES_AT_ONCE) {
                let booked = wants_ledger.then(|| self.booked(node)).transpose()?;
                seen.push((id.clone(), self.engine.look(node, now.mono), booked));
            }
        }
        let more = seen.len() == NODES_AT_ONCE;
        sweep.after = seen.last().map(|(id, ..)| id.clone());
        for (id, mut facts, booked) in seen {
            facts.certificate_ms = self.certificate_ms(&id);
            let number = facts.number;
            if let Some(Booked { lost, quarantined, standing, is_old }) = booked {
                let met = Met { now_ms: now.wall_ms, is_old };
                self.engine.book(number, lost, quarantined, standing, met);
            }
            self.engine.node(facts, now.wall_ms);
            if caught_up && self.engine.wants_devices() && !self.engine.knows(number) {
                // What was committed since this start comes by the log.
                self.know(number, now.wall_ms.saturating_sub(millis(now.mono)), now)?;
            }
        }
        if more {
            self.sweep = Some(sweep);
            return Ok(());
        }
        let known = self.engine.nodes();
        let gone: Vec<_> = {
            let fleet = self.shared.fleet();
            // A node that was removed keeps its number where its history is kept.
            let is_there = |number: &NodeNo| {
                let node = fleet.ids.get(number).and_then(|id| fleet.nodes.get(id));
                node.is_some_and(|node| node.number == *number)
            };
            known.into_iter().filter(|number| !is_there(number)).collect()
        };
        gone.into_iter().for_each(|number| self.engine.removed(number, now.wall_ms));
        Ok(())
    }

    fn booked(&self, node: &Node) -> Result<Booked, Error> {
        let is_old = node.record.first_seen_ms < self.since_ms;
        let mut booked = Booked { lost: 0, quarantined: 0, standing: None, is_old };
        for account in self.shared.accounts(node)? {
            booked.lost += account.counters.lost;
            booked.quarantined += account.counters.quarantined;
            let worse = match (booked.standing, account.state) {
                (Some(Standing::Broken), _) | (_, Standing::Broken) => Standing::Broken,
                (Some(Standing::Pending), _) | (_, Standing::Pending) => Standing::Pending,
                (None | Some(Standing::Balanced), Standing::Balanced) => Standing::Balanced,
            };
            booked.standing = Some(worse);
        }
        Ok(booked)
    }
}
