//! How layers and changes of them look outside. Pure.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::{
    api::{
        problem::Refusal,
        shapes::{Page, config as shape},
    },
    core::{
        config::{self, ConfigError, Edited, Layer, Place, Plan, Revision, State},
        fleet::{Fleet, Node},
    },
};

/// Nodes that do not follow and are listed with their reasons.
const BEHIND: usize = 100;
/// Groups of nodes whose changes are listed.
const CHANGES: usize = 1_000;

/// A page of the layers.
pub(super) fn list(fleet: &Fleet, after: Option<&Layer>, limit: usize) -> Page<shape::BriefLayer> {
    let plan = &fleet.config;
    let layers = plan.settings().layers();
    let mut rest = layers.iter().filter(|(layer, _)| after.is_none_or(|after| *layer > after));
    let page: Vec<_> = rest.by_ref().take(limit).collect();
    let mut counts: BTreeMap<&Layer, usize> = page.iter().map(|(layer, _)| (*layer, 0)).collect();
    for node in fleet.nodes.values() {
        for layer in config::place(plan, node).layers() {
            if let Some(count) = counts.get_mut(&layer) {
                *count += 1;
            }
        }
    }
    let brief = |(layer, revision): &(&Layer, &Revision)| shape::BriefLayer {
        layer: layer.to_string(),
        revision: revision.number,
        at_ms: revision.at_ms,
        by: revision.by.clone(),
        keys_count: revision.doc.as_object().map_or(0, serde_json::Map::len),
        nodes_count: counts.get(layer).copied().unwrap_or(0),
    };
    let next = page.last().filter(|_| rest.next().is_some()).map(|(layer, _)| layer.to_string());
    Page { items: page.iter().map(brief).collect(), next }
}

/// A layer, also one that was never set.
pub(super) fn layer(fleet: &Fleet, layer: &Layer) -> Result<shape::Layer, Refusal> {
    let plan = &fleet.config;
    let current = plan.settings().current(layer);
    let is_there = current.is_some()
        || match layer {
            Layer::Fleet | Layer::Site(_) => true,
            Layer::Group(name) => fleet.groups.contains_key(name),
            Layer::Node(id) => fleet.nodes.contains_key(id),
        };
    if !is_there {
        return Err(ConfigError::Nobody(layer.clone()).into());
    }
    Ok(shape::Layer {
        layer: layer.to_string(),
        revision: current.map_or(0, |current| current.number),
        doc: current.map_or_else(config::empty, |current| current.doc.clone()),
        at_ms: current.map(|current| current.at_ms),
        by: current.map(|current| current.by.clone()),
        returned_to: current.and_then(|current| current.returned_to),
        nodes: follow(fleet, layer),
    })
}

fn follow(fleet: &Fleet, layer: &Layer) -> shape::Follow {
    let member = |node: &&Node| is_member(&fleet.config, layer, node);
    let nodes: Vec<&Node> = fleet.nodes.values().map(|node| &**node).filter(member).collect();
    let by_state = config::count(nodes.iter().copied());
    let mut behind = Vec::new();
    for state in [State::Failed, State::Pending, State::Offline] {
        let room = BEHIND - behind.len();
        let these = nodes.iter().filter(|node| config::state(node) == state).take(room);
        behind.extend(these.map(|node| shape::Behind {
            node: node.record.id.to_string(),
            state: state.as_str().to_owned(),
            reason: config::stands(node),
        }));
    }
    let by_state = by_state.into_iter().map(|(state, count)| (state.as_str().to_owned(), count));
    shape::Follow { count: nodes.len(), by_state: by_state.collect(), behind }
}

fn is_member(plan: &Plan, layer: &Layer, node: &Node) -> bool {
    match layer {
        Layer::Fleet => true,
        Layer::Site(name) => node.record.site.as_ref() == Some(name),
        Layer::Node(id) => node.record.id == *id,
        Layer::Group(_) => {
            let place: Place = config::place(plan, node);
            place.has(layer)
        }
    }
}

/// What a change did, or would do. `doc` is the document before it.
pub(super) fn changed(edited: Edited, doc: Value, dry_run: bool) -> shape::Changed {
    let layer = edited.layer.map_or_else(|| "schema".to_owned(), |layer| layer.to_string());
    let nodes_count = edited.affected.len();
    // Differences are shared among nodes of the same layers; their texts tell whether those of others are equal.
    let mut texts: HashMap<usize, usize> = HashMap::new();
    let mut groups: HashMap<String, usize> = HashMap::new();
    let mut changes: Vec<shape::Changes> = Vec::new();
    for affected in edited.affected {
        let address = affected.differences.as_ptr().addr();
        let group = *texts.entry(address).or_insert_with(|| {
            let differences: Vec<_> = affected.differences.iter().map(difference).collect();
            let text = serde_json::to_string(&differences).unwrap_or_default();
            *groups.entry(text).or_insert_with(|| {
                changes.push(shape::Changes { nodes: Vec::new(), differences });
                changes.len() - 1
            })
        });
        changes[group].nodes.push(affected.node.to_string());
    }
    changes.truncate(CHANGES);
    let changed = edited.revision.is_some();
    let (revision, doc) = match edited.revision {
        Some(revision) => (revision.number, revision.doc),
        None => (edited.base, doc),
    };
    shape::Changed { layer, revision, changed, dry_run, doc, nodes_count, changes }
}

/// A difference.
pub(super) fn difference(difference: &config::Difference) -> shape::Difference {
    let config::Difference { pointer, before, after } = difference.clone();
    shape::Difference { pointer, before, after }
}

/// A revision with its document.
pub(super) fn revision(revision: Revision) -> shape::Revision {
    let Revision { number, doc, at_ms, by, returned_to } = revision;
    shape::Revision { revision: number, at_ms, by, returned_to, doc: Some(doc) }
}

/// The schema.
pub(super) fn schema(current: Option<&Revision>) -> shape::Schema {
    let Some(current) = current else { return shape::Schema::default() };
    shape::Schema {
        revision: current.number,
        schema: Some(current.doc.clone()).filter(|schema| *schema != config::empty()),
        at_ms: Some(current.at_ms),
        by: Some(current.by.clone()),
    }
}
