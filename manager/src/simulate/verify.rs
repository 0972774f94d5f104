//! What must hold when the dust has settled. A broken rule is a sentence.

use std::collections::{BTreeMap, BTreeSet};

use fleet_schemas::{Lane, NodeId};

use super::{work, world::World};
use crate::{
    consume::Shared,
    core::{fleet::Node, ledger::Standing, presence::State},
    store::{state::EventFilter, telemetry::Query},
};

/// Checks everything; gives what is wrong.
pub(super) fn check(world: &World) -> Vec<String> {
    let mut wrong: Vec<_> = world.sites.iter().flat_map(|site| site.wrong.iter().cloned()).collect();
    wrong.extend(work::check(&world.book, &world.sites, &world.tampered(), world.hub_restored));
    for (node, truth) in &world.truth {
        let homes: Vec<_> =
            world.edges.iter().filter(|edge| edge.node == *node).map(|edge| edge.hub).collect();
        let hub = homes[0];
        let Some(consumer) = &world.sites[hub].consumer else {
            wrong.push(format!("hub {hub} does not run"));
            continue;
        };
        let shared = consumer.shared();
        let fleet = shared.fleet();
        let Some(known) = fleet.nodes.get(node) else {
            wrong.push(format!("hub {hub} does not know {node}"));
            continue;
        };
        if known.record.presence.state != State::Online {
            wrong.push(format!("{node} is connected, but {}", known.record.presence.state.as_str()));
        }
        let stored = stored(shared, known, &mut wrong);
        let lost = accounts(shared, known, &mut wrong);
        let doubled: Vec<_> = stored.iter().filter(|(_, count)| **count > 1).collect();
        // What another hub stored before the node moved is not missing.
        let elsewhere = elsewhere(world, hub, node, &mut wrong);
        let missing = truth.accepted.iter().filter(|n| !stored.contains_key(n) && !elsewhere.contains_key(n));
        let first_missing = missing.clone().next();
        let missing = missing.count() as u64;
        let foreign = stored.keys().any(|n| !truth.accepted.contains(n) && !truth.maybe.contains(n));
        if foreign {
            wrong.push(format!("{node} has records that nobody submitted"));
        }
        unexplained(world, hub, known, truth.tampered, &mut wrong);
        if truth.tampered {
            let gone = truth.since.iter().filter(|n| !stored.contains_key(n) && !elsewhere.contains_key(n));
            let gone = gone.count() as u64;
            if gone > lost {
                wrong.push(format!("{node}: {gone} records of after its card was changed are missing, {lost} are booked as lost"));
            }
            let reported = is_reported(world, node, &mut wrong);
            if !doubled.is_empty() && !reported {
                wrong.push(format!("{node} has {} records twice and nothing says so", doubled.len()));
            }
            continue;
        }
        if !doubled.is_empty() {
            wrong.push(format!("{node} has {} records more than once: {:?}", doubled.len(), doubled.first()));
        }
        // Records under way when a disk failed may have been accepted after all, and then be lost as well.
        // A new hub books as lost what it never saw, also where the old one has it.
        let slack = truth.maybe.len() as u64 + if elsewhere.is_empty() { 0 } else { lost };
        if missing > lost || lost > missing + slack {
            let first = first_missing.map_or_else(String::new, |number| format!(", the first is {number}"));
            wrong.push(format!("{node}: {missing} records are missing{first}; {lost} are booked as lost"));
        }
    }
    wrong
}

/// Whether a hub ever said that the node's card was set back or copied. A hub that is killed between its commit and its
/// word has said it to its store.
fn is_reported(world: &World, node: &NodeId, wrong: &mut Vec<String>) -> bool {
    let mut kinds: BTreeSet<String> = BTreeSet::new();
    for site in &world.sites {
        kinds.extend(site.reports.get(node).into_iter().flatten().cloned());
        let Some(consumer) = &site.consumer else { continue };
        let fleet = consumer.shared().fleet();
        let Some(known) = fleet.nodes.get(node) else { continue };
        let filter = EventFilter { node: Some(known.number), limit: 1_000_000, ..EventFilter::default() };
        match consumer.shared().state().events(filter) {
            Ok(events) => {
                let by_hub = events.iter().filter(|(_, row)| row.by_hub);
                kinds.extend(by_hub.map(|(_, row)| row.event.kind.to_string()));
            }
            Err(error) => wrong.push(format!("{node}: events: {error}")),
        }
    }
    ["edge_rollback", "two_instances", "stream_forked"].iter().any(|kind| kinds.contains(*kind))
}

/// Losses that no fault explains: a hub that was never set back has no hole to book.
fn unexplained(world: &World, hub: usize, node: &Node, tampered: bool, wrong: &mut Vec<String>) {
    let Some(consumer) = &world.sites[hub].consumer else { return };
    let filter = EventFilter { node: Some(node.number), limit: 1_000_000, ..EventFilter::default() };
    let Ok(events) = consumer.shared().state().events(filter) else { return };
    let set_back = hub == 0 && world.hub_restored;
    for (_, row) in events.iter().filter(|(_, row)| row.by_hub && row.event.kind.as_str() == "records_lost") {
        let message = &row.event.message;
        let reason = message.rsplit(' ').next().unwrap_or_default();
        let explained = match reason {
            "outbox_full" | "budget" => true,
            "hub_rollback" | "moved" => set_back || hub == 1 || tampered,
            "edge_state_lost" | "edge_corrupt" => tampered,
            _ => false,
        };
        if !explained {
            wrong.push(format!("{}: nothing explains: {message}", node.record.id));
        }
    }
}

fn elsewhere(world: &World, home: usize, node: &NodeId, wrong: &mut Vec<String>) -> BTreeMap<u64, u64> {
    let mut found = BTreeMap::new();
    for (_, site) in world.sites.iter().enumerate().filter(|(index, _)| *index != home) {
        let Some(consumer) = &site.consumer else { continue };
        let fleet = consumer.shared().fleet();
        if let Some(known) = fleet.nodes.get(node) {
            found.extend(stored(consumer.shared(), known, wrong));
        }
    }
    found
}

fn stored(shared: &Shared, node: &Node, wrong: &mut Vec<String>) -> BTreeMap<u64, u64> {
    let mut stored = BTreeMap::new();
    let query = Query {
        node: node.number,
        device: None,
        metric: None,
        from_ms: i64::MIN / 4,
        to_ms: i64::MAX / 4,
        step: None,
        series_max: 100,
        points_max: 1_000_000,
    };
    match shared.telemetry.query(&query) {
        Ok(series) => {
            for (_, value) in series.iter().flat_map(|series| &series.points) {
                *stored.entry(*value as u64).or_default() += 1;
            }
        }
        Err(error) => wrong.push(format!("{}: query: {error}", node.record.id)),
    }
    let samples: u64 = stored.values().sum();
    let recounted: Result<u64, _> = [Lane::Telemetry, Lane::Backfill]
        .iter()
        .map(|lane| shared.telemetry.recount(node.number, *lane))
        .sum();
    if recounted.as_ref().ok() != Some(&samples) {
        wrong.push(format!("{}: {samples} samples by query, {recounted:?} by recount", node.record.id));
    }
    let filter = EventFilter { node: Some(node.number), limit: 1_000_000, ..EventFilter::default() };
    match shared.state().events(filter) {
        Ok(events) => {
            for (_, row) in events.iter().filter(|(_, row)| !row.by_hub) {
                *stored.entry(row.event.message.parse().unwrap_or(0)).or_default() += 1;
            }
        }
        Err(error) => wrong.push(format!("{}: events: {error}", node.record.id)),
    }
    stored
}

/// Checks a node's accounts and gives what they call lost.
fn accounts(shared: &Shared, node: &Node, wrong: &mut Vec<String>) -> u64 {
    let id: &NodeId = &node.record.id;
    let counters = match shared.counters() {
        Ok(counters) => counters,
        Err(error) => {
            wrong.push(format!("{id}: counters: {error}"));
            return 0;
        }
    };
    let mut lost = 0;
    for lane in Lane::ALL {
        let account = crate::core::ledger::account(id, lane, node.sum(lane), counters(node.number, lane));
        if account.state != Standing::Balanced {
            wrong.push(format!(
                "{id}: lane {lane} is {}, {} at the edge: {:?}",
                account.state.as_str(),
                account.at_edge,
                account.reason
            ));
        }
        // Reports are none of the records that were submitted; what commands came to is checked by itself.
        if lane != Lane::Command {
            lost += account.counters.lost;
        }
    }
    lost
}
