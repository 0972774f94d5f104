//! The fleet follows: what changes for a node settles what it is to have, and what it says it has decides whether it is
//! told.
//!
//! Run at the end of every group. Nothing depends on one message arriving: a node that has not what it is to have is
//! told again by its next birth or heartbeat.

use std::{collections::BTreeSet, time::Duration};

use fleet_schemas::{
    NodeId, SessionId, StoreId, VERSION,
    config::{Desired, Reported, Version},
    event::Severity,
};

use super::{
    ConfigError, Edit, Edited, Layer, Place, Revision, Settings, Wanted, docs::Docs, settings::Settled,
    version,
};
use crate::core::{
    Now,
    fleet::{Fleet, Node, NodeNo},
    intake,
    selector::Selector,
};

/// Most nodes told in one group: bounds one burst of news; the others come next.
const NODES: usize = 1_000;
/// Most bytes of documents in one group: half of what the bus takes at once.
const BYTES: usize = 4 * 1024 * 1024;
/// How long a node that goes on without its document is let alone, by how often it was told.
const PAUSES: [Duration; 5] = [
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(600),
];

/// The layers, and who is still to be looked at because of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    settings: Settings,
    // Those that have a layer, by name.
    groups: Vec<(String, Selector)>,
    // Every node is looked at in the next group.
    all: bool,
    untold: BTreeSet<NodeNo>,
}

/// When a node was told, so that it is let alone for a while. In memory only, and never a reason not to tell it at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    session: SessionId,
    again: Duration,
    times: usize,
}

/// Rows to write.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// New revisions, in order; of the schema without a layer.
    pub revisions: Vec<(Option<Layer>, Revision)>,
    /// What nodes are to have.
    pub wanted: Vec<(NodeNo, Wanted)>,
}

/// A layer, or the schema, changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which; none for the schema.
    pub layer: Option<Layer>,
    /// Its new revision.
    pub revision: u64,
    /// Who made it.
    pub by: String,
    /// When, hub time, Unix milliseconds.
    pub at_ms: i64,
    /// How many nodes have another document by it.
    pub nodes_count: usize,
}

/// What a group of inputs comes to, as far as configuration goes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effects {
    /// What to write.
    pub rows: Rows,
    /// What to tell nodes after the commit; the store is filled in then.
    pub desired: Vec<(NodeId, Desired)>,
    /// What to tell whoever follows, in order.
    pub changes: Vec<Change>,
}

impl Rows {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.revisions.is_empty() && self.wanted.is_empty()
    }
}

impl Plan {
    /// The layers.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// Takes what the store has. Every node is looked at once: the rules may be newer than the rows.
pub fn load(fleet: &mut Fleet, settings: Settings) {
    fleet.config = Plan { settings, all: true, ..Plan::default() };
    regroup(fleet);
}

/// The groups that have a layer, with their selectors.
pub(in crate::core) fn regroup(fleet: &mut Fleet) {
    let Fleet { groups: saved, config: plan, .. } = fleet;
    let names = plan.settings.layers().keys().filter_map(|layer| match layer {
        Layer::Group(name) => Some(name),
        Layer::Fleet | Layer::Site(_) | Layer::Node(_) => None,
    });
    // A group that is gone, or that a newer hub saved, has no nodes here.
    let groups = names.filter_map(|name| Some((name.clone(), Selector::parse(saved.get(name)?).ok()?)));
    let groups: Vec<_> = groups.collect();
    if groups != plan.groups {
        plan.groups = groups;
        plan.all = true;
    }
}

/// Whether a group may have this selector, as far as its settings go.
pub(in crate::core) fn may_select(fleet: &Fleet, name: &str, selector: &str) -> Result<(), ConfigError> {
    let has_layer = fleet.config.settings.current(&Layer::Group(name.to_owned())).is_some();
    if has_layer && Selector::parse(selector).is_ok_and(|selector| selector.names("state")) {
        return Err(ConfigError::Unsteady(name.to_owned()));
    }
    Ok(())
}

/// What of a node decides its settings.
#[must_use]
pub fn place(plan: &Plan, node: &Node) -> Place {
    place_of(&plan.groups, node)
}

fn place_of(groups: &[(String, Selector)], node: &Node) -> Place {
    let groups = groups.iter().filter(|(_, selector)| selector.matches(node));
    Place {
        node: node.record.id.clone(),
        site: node.record.site.clone(),
        groups: groups.map(|(name, _)| name.clone()).collect(),
        wanted: node.wanted,
        received: node.record.config.as_ref().and_then(|reported| reported.received),
    }
}

/// Decides on a change of a layer or of the schema. Changes nothing.
///
/// # Errors
/// [`ConfigError`].
pub fn decide(fleet: &Fleet, edit: &Edit, by: &str, now_ms: i64) -> Result<Edited, ConfigError> {
    let plan = &fleet.config;
    let mut joined = None;
    if let Some(layer) = edit.layer().filter(|layer| plan.settings.current(layer).is_none()) {
        let is_there = match layer {
            Layer::Fleet | Layer::Site(_) => true,
            Layer::Group(name) => fleet.groups.contains_key(name),
            Layer::Node(id) => fleet.nodes.contains_key(id),
        };
        if !is_there {
            return Err(ConfigError::Nobody(layer.clone()));
        }
        if let Layer::Group(name) = layer
            && let Some(selector) = fleet.groups.get(name).and_then(|saved| Selector::parse(saved).ok())
        {
            if selector.names("state") {
                return Err(ConfigError::Unsteady(name.clone()));
            }
            joined = Some((name, selector));
        }
    }
    let place = |node: &Node| {
        let mut place = place(plan, node);
        if let Some((name, selector)) = &joined
            && selector.matches(node)
        {
            place.groups.push((*name).clone());
            place.groups.sort_unstable();
        }
        place
    };
    plan.settings.decide(edit, fleet.nodes.values().map(|node| place(node)), by, now_ms)
}

/// Makes a change, or nothing of it.
///
/// # Errors
/// [`ConfigError`].
pub fn take(
    fleet: &mut Fleet,
    effects: &mut Effects,
    edit: &Edit,
    by: &str,
    now: Now,
) -> Result<(), ConfigError> {
    let edited = decide(fleet, edit, by, now.wall_ms)?;
    let Some(revision) = edited.revision else { return Ok(()) };
    effects.changes.push(Change {
        layer: edited.layer.clone(),
        revision: revision.number,
        by: revision.by.clone(),
        at_ms: revision.at_ms,
        nodes_count: edited.affected.len(),
    });
    fleet.config.settings.put(edited.layer.as_ref(), revision.clone());
    for affected in &edited.affected {
        if let Some(node) = fleet.nodes.get_mut(&affected.node) {
            want(&mut fleet.config, effects, node, affected.wanted, true);
        }
    }
    match &edited.layer {
        // What did not suit the old schema may suit the new one.
        None => fleet.config.all = true,
        Some(Layer::Group(_)) => {
            let all = fleet.config.all;
            regroup(fleet);
            // Those who follow were found already.
            fleet.config.all = all;
        }
        Some(Layer::Fleet | Layer::Site(_) | Layer::Node(_)) => {}
    }
    effects.rows.revisions.push((edited.layer, revision));
    Ok(())
}

/// Has a node try again what it failed to apply.
///
/// # Errors
/// [`ConfigError::Nobody`] and [`ConfigError::NotFailed`].
pub fn retry(fleet: &mut Fleet, effects: &mut Effects, id: &NodeId) -> Result<(), ConfigError> {
    let node = fleet.nodes.get_mut(id).ok_or_else(|| ConfigError::Nobody(Layer::Node(id.clone())))?;
    let wanted = node.wanted.filter(|_| super::state(node) == super::State::Failed);
    let wanted = wanted.ok_or_else(|| ConfigError::NotFailed(id.clone()))?;
    // A hub that was set back may have asked more often than it knows.
    let heard =
        node.record.config.as_ref().and_then(|reported| reported.received).map_or(0, |held| held.retry);
    let again = Wanted { retry: wanted.retry.max(heard).saturating_add(1), ..wanted };
    want(&mut fleet.config, effects, node, again, true);
    Ok(())
}

fn want(plan: &mut Plan, effects: &mut Effects, node: &mut Node, wanted: Wanted, now: bool) {
    node.wanted = Some(wanted);
    if now {
        node.told = None;
    }
    effects.rows.wanted.push((node.number, wanted));
    plan.untold.insert(node.number);
}

/// Takes what a node says of its configuration, in a birth or in a heartbeat. Says whether its row changed.
pub fn hear(
    plan: &mut Plan,
    effects: &mut intake::Effects,
    node: &mut Node,
    reported: Option<&Reported>,
    now: Now,
) -> bool {
    if reported != node.record.config.as_deref() {
        if let Some(reported) = reported {
            complain(effects, node, reported, now);
        }
        node.record.config = reported.map(|reported| Box::new(reported.clone()));
        plan.untold.insert(node.number);
        return true;
    }
    if lacks(node) {
        plan.untold.insert(node.number);
    }
    false
}

/// Tells once per version that a node could not apply it.
fn complain(effects: &mut intake::Effects, node: &Node, reported: &Reported, now: Now) {
    let (Some(failed), Some(received)) = (&reported.failed, reported.received) else { return };
    let known = node.record.config.as_deref();
    if known.is_some_and(|known| known.failed.is_some() && known.received == Some(received)) {
        return;
    }
    let message = format!(
        "configuration {} was not applied ({}): {}; the one before it runs",
        version(received.version),
        failed.code,
        failed.message
    );
    effects.by_hub(node, "config_failed", Severity::Warning, message, now);
}

/// Whether a node is to be told what it should have.
fn lacks(node: &Node) -> bool {
    let (Some(wanted), Some(reported)) = (node.wanted, &node.record.config) else { return false };
    !reported.received.is_some_and(|held| wanted.is(&held))
}

/// Settles what nodes are to have whose row changes in this group, and tells those that lack it.
pub fn advance(fleet: &mut Fleet, effects: &mut intake::Effects, now: Now) {
    settle(fleet, effects, now);
    tell(fleet, effects, now);
}

fn settle(fleet: &mut Fleet, effects: &mut intake::Effects, now: Now) {
    let Fleet { nodes, config: plan, .. } = fleet;
    let all = std::mem::take(&mut plan.all);
    let mut docs = Docs::new(&plan.settings);
    let mut new = Vec::new();
    let mut look = |node: &Node| {
        let place = place(plan, node);
        let doc = docs.of(&place);
        if let Settled::New(wanted) = plan.settings.settled(&docs, &place, &doc) {
            new.push((place, wanted));
        }
    };
    if all {
        nodes.values().for_each(|node| look(node));
    } else {
        effects.nodes.iter().filter_map(|id| nodes.get(id)).for_each(|node| look(node));
    }
    for (place, wanted) in new {
        let Some(node) = nodes.get_mut(&place.node) else { continue };
        let moved = place.wanted.is_none_or(|before| before.hash != wanted.hash);
        let floor = place.wanted.map_or(Version::default(), |before| before.version);
        if let Some(held) = place.received.filter(|held| held.version > floor && held.hash != wanted.hash) {
            let message = format!(
                "the node has configuration {}, which this hub did not give: the hub was restored, or the node came from \
                 another; it is to have {}",
                version(held.version),
                version(wanted.version)
            );
            effects.by_hub(node, "config_foreign", Severity::Warning, message, now);
        }
        want(plan, &mut effects.config, node, wanted, moved);
    }
}

fn tell(fleet: &mut Fleet, effects: &mut intake::Effects, now: Now) {
    let Fleet { nodes, ids, config: plan, .. } = fleet;
    let mut docs = Docs::new(&plan.settings);
    let (mut bytes, mut told) = (0, 0);
    while told < NODES && bytes < BYTES {
        let Some(number) = plan.untold.pop_first() else { return };
        let Some(node) = ids.get(&number).and_then(|id| nodes.get_mut(id)) else { continue };
        told += 1;
        effects.changed.insert(node.record.id.clone());
        let Some(wanted) = node.wanted.filter(|_| lacks(node)) else {
            node.told = None;
            continue;
        };
        let Some(session) = node.record.presence.reached_by() else { continue };
        let before = node.told.filter(|told| told.session == session);
        if before.is_some_and(|told| told.again > now.mono) {
            continue;
        }
        let doc = docs.of(&place_of(&plan.groups, node));
        if doc.hash != wanted.hash {
            // What its layers say does not suit it, and what it was to have is gone: `why` says so.
            continue;
        }
        let times = before.map_or(0, |told| told.times);
        let pause = PAUSES[times.min(PAUSES.len() - 1)];
        node.told = Some(Told { session, again: now.mono + pause, times: times + 1 });
        bytes += doc.bytes.len();
        let desired = Desired {
            v: VERSION,
            // Filled in by whoever speaks: the core knows no store.
            store_id: StoreId([0; 16]),
            session,
            hub_ms: now.wall_ms,
            version: wanted.version,
            doc: doc.bytes.clone(),
            retry: wanted.retry,
        };
        effects.config.desired.push((node.record.id.clone(), desired));
    }
}
