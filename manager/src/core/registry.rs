//! What an operator changes in the registry, decided: names, sites, locations, labels, groups.

use std::collections::BTreeMap;

use fleet_schemas::{CommandId, NodeId, event::Severity, limits};
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    Now,
    bounds::{self, Outside},
    command,
    config::{self, ConfigError},
    fleet::{Fleet, Location, Node, NodeNo, Record},
    identity::{self, Change, Identities, NotServed, Refused},
    intake::Effects,
    rollout::{self, RolloutError},
    zones,
};

/// Longest name and site, in bytes.
pub const NAME_BYTES: usize = 128;
/// Most saved selectors.
pub const GROUPS: usize = 1_000;
/// Most sites with a time zone.
pub const SITES: usize = 10_000;
/// Longest selector, in bytes.
pub const SELECTOR_BYTES: usize = 1_024;

/// A change of one node (RFC 7396): an absent field stays, `null` clears, labels are merged key by key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePatch {
    /// The name for people.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub name: Option<Option<String>>,
    /// The site.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub site: Option<Option<String>>,
    /// Where it is.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub location: Option<Option<Location>>,
    /// Labels to set, or to remove by `null`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
}

fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A change and who wants it: `operator NAME`, `node ID` or `hub`, as it stands in the trail.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// Who.
    pub by: String,
    /// What.
    pub intent: Intent,
}

/// What is to be changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Intent {
    /// Change a node.
    PatchNode {
        /// Which.
        node: NodeId,
        /// How.
        patch: NodePatch,
    },
    /// Take a node out of the fleet and shut it out; its history is kept.
    RemoveNode(NodeId),
    /// Forget a node that was removed, with its history.
    ForgetNode(NodeId),
    /// Change nodes, making those that are unknown: all or none.
    ImportNodes(Vec<(NodeId, NodePatch)>),
    /// Save a selector that the caller has checked.
    PutGroup {
        /// Its name.
        name: String,
        /// The selector.
        selector: String,
    },
    /// Remove a saved selector.
    RemoveGroup(String),
    /// Say in which time zone a site is.
    PutSite {
        /// The site.
        name: String,
        /// The zone's IANA name.
        tz: String,
    },
    /// Forget the time zone of a site; its nodes stay.
    RemoveSite(String),
    /// Change who may speak to the hub.
    Identity(Change),
    /// Make a command.
    Command(Box<command::Wanted>),
    /// Cancel a command.
    CancelCommand {
        /// Which.
        id: CommandId,
        /// At which nodes; none: at all.
        nodes: Option<Vec<NodeId>>,
    },
    /// Let a command go on that waits since a restore.
    ApproveCommand {
        /// Which.
        id: CommandId,
        /// At which nodes; none: at all.
        nodes: Option<Vec<NodeId>>,
    },
    /// Change a layer of the configuration, or its schema.
    EditConfig {
        /// How.
        edit: Box<config::Edit>,
        /// Who wants it, such as `operator NAME`.
        by: String,
    },
    /// Have a node try again the configuration that it failed to apply.
    RetryConfig(NodeId),
    /// Make a rollout.
    Rollout(Box<rollout::Wanted>),
    /// Do something with a rollout.
    ActOnRollout {
        /// Which.
        id: rollout::Id,
        /// What.
        act: rollout::Act,
        /// Who wants it, such as `operator NAME`.
        by: String,
    },
    /// Keys of the hub were changed: `server`, `ca` or `ca.finish`. They lie elsewhere; only the trail has it here.
    Rotated(String),
    /// Something was done to what lies elsewhere, such as artifacts; only the trail has it here.
    Noted(Noted),
}

/// A change of what lies elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Noted {
    /// What was done, such as `artifact.push`.
    pub action: &'static str,
    /// To what.
    pub target: String,
    /// With what.
    pub detail: serde_json::Value,
}

/// Why a change is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No such node, group or whatever else.
    #[error("there is no {what} {name:?}")]
    Unknown {
        /// Such as `node` or `group`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The name is taken.
    #[error("there is {what} {name:?} already; remove it first, or choose another name")]
    Exists {
        /// Such as `operator`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Somebody stays outside.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Configuration stays as it is.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A rollout is not made, or stays as it is.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// A field agent is not served.
    #[error(transparent)]
    NotServed(#[from] NotServed),
    /// It is not for whoever wants it to change.
    #[error(transparent)]
    Outside(Box<Outside>),
    /// A field breaks a rule.
    #[error("{pointer}: {why}")]
    Field {
        /// JSON pointer to the field.
        pointer: String,
        /// What is wrong.
        why: String,
    },
}

fn field(pointer: impl Into<String>, why: impl Into<String>) -> RegistryError {
    RegistryError::Field { pointer: pointer.into(), why: why.into() }
}

/// Applies a change to the fleet and to who may speak to the hub, or nothing of it.
///
/// # Errors
/// [`RegistryError`].
pub fn take(
    fleet: &mut Fleet,
    identities: &mut Identities,
    effects: &mut Effects,
    Order { by, mut intent }: Order,
    highest: NodeNo,
    now: Now,
) -> Result<(), RegistryError> {
    bounds::check(fleet, identities, &by, &mut intent, now.wall_ms)?;
    match intent {
        Intent::PatchNode { node, patch } => {
            if !fleet.nodes.contains_key(&node) {
                return Err(RegistryError::Unknown { what: "node", name: node.to_string() });
            }
            patch_all(fleet, effects, vec![(node, patch)], highest, now)
        }
        Intent::RemoveNode(node) => remove(fleet, identities, effects, &node, now),
        Intent::ForgetNode(node) => forget(fleet, effects, &node, now),
        Intent::ImportNodes(patches) => patch_all(fleet, effects, patches, highest, now),
        Intent::PutGroup { name, selector } => {
            fleet_schemas::MetricName::parse(&name).map_err(|error| field("/name", error.to_string()))?;
            if selector.len() > SELECTOR_BYTES {
                return Err(field("/selector", format!("longer than {SELECTOR_BYTES} bytes")));
            }
            if fleet.groups.len() >= GROUPS && !fleet.groups.contains_key(&name) {
                return Err(field("/name", format!("there are {GROUPS} groups already; remove one first")));
            }
            config::may_select(fleet, &name, &selector)?;
            fleet.groups.insert(name, selector);
            config::regroup(fleet);
            Ok(())
        }
        Intent::RemoveGroup(name) => match fleet.groups.remove(&name) {
            Some(_) => {
                config::regroup(fleet);
                Ok(())
            }
            None => Err(RegistryError::Unknown { what: "group", name }),
        },
        Intent::PutSite { name, tz } => put_site(fleet, name, tz),
        Intent::RemoveSite(name) => match fleet.sites.remove(&name) {
            Some(_) => {
                fleet.rollouts.look_again();
                Ok(())
            }
            None => Err(RegistryError::Unknown { what: "time zone of site", name }),
        },
        Intent::Rotated(_) | Intent::Noted(_) => Ok(()),
        Intent::EditConfig { edit, by } => Ok(config::take(fleet, &mut effects.config, &edit, &by, now)?),
        Intent::RetryConfig(node) => Ok(config::retry(fleet, &mut effects.config, &node)?),
        Intent::Rollout(wanted) => Ok(rollout::create(fleet, effects, &wanted, now)?),
        Intent::ActOnRollout { id, act, by } => Ok(rollout::act(fleet, effects, &id, act, &by, now)?),
        Intent::Identity(change) => identity::take(identities, fleet, effects, change, highest, now),
        Intent::Command(wanted) => command::make(fleet, &mut effects.commands, *wanted, now),
        Intent::CancelCommand { id, nodes } => {
            command::cancel(fleet, &mut effects.commands, id, nodes.as_deref(), now);
            Ok(())
        }
        Intent::ApproveCommand { id, nodes } => {
            command::approve(fleet, &mut effects.commands, id, nodes.as_deref());
            Ok(())
        }
    }
}

fn put_site(fleet: &mut Fleet, name: String, tz: String) -> Result<(), RegistryError> {
    let name = label("/name", name)?;
    if zones::get(&tz).is_none() {
        let why = format!("{tz:?} is no time zone; an example is Europe/Berlin (IANA names)");
        return Err(field("/tz", why));
    }
    if fleet.sites.len() >= SITES && !fleet.sites.contains_key(&name) {
        return Err(field("/name", format!("{SITES} sites have a time zone already; remove one first")));
    }
    fleet.sites.insert(name, tz);
    fleet.rollouts.look_again();
    Ok(())
}

/// Takes a node out of the fleet: what it still has is written off, what waits for it is over, and its certificate is
/// worth nothing any more.
fn remove(
    fleet: &mut Fleet,
    identities: &mut Identities,
    effects: &mut Effects,
    id: &NodeId,
    now: Now,
) -> Result<(), RegistryError> {
    if fleet.gone.contains_key(id) {
        return Ok(());
    }
    let unknown = || RegistryError::Unknown { what: "node", name: id.to_string() };
    let number = fleet.nodes.get(id).map(|node| node.number).ok_or_else(unknown)?;
    let revoke = Change::Revoke { node: id.clone(), reason: "removed".to_owned() };
    identity::take(identities, fleet, effects, revoke, number, now)?;
    command::abandon(fleet, &mut effects.commands, id, now);
    if let Some(node) = fleet.nodes.get_mut(id) {
        let records = identity::write_off(node, effects, now);
        let message = format!("the node was removed from the fleet; {records} records at it are written off");
        effects.by_hub(node, "node_removed", Severity::Info, message, now);
    }
    fleet.retire(id, now.wall_ms);
    effects.nodes.insert(id.clone());
    effects.changed.insert(id.clone());
    Ok(())
}

/// Forgets a node that was removed, and the settings that are its own.
fn forget(fleet: &mut Fleet, effects: &mut Effects, id: &NodeId, now: Now) -> Result<(), RegistryError> {
    let layer = config::Layer::Node(id.clone());
    if fleet.config.settings().current(&layer).is_some() {
        let doc = serde_json::json!({});
        let edit = config::Edit::Put { layer, doc, expected: None };
        config::take(fleet, &mut effects.config, &edit, "hub", now)?;
    }
    let node = fleet
        .forget(id)
        .ok_or_else(|| RegistryError::Unknown { what: "removed node", name: id.to_string() })?;
    effects.forgotten.push((node.number, node.marks.keys().copied().collect()));
    effects.changed.insert(id.clone());
    Ok(())
}

fn patch_all(
    fleet: &mut Fleet,
    effects: &mut Effects,
    patches: Vec<(NodeId, NodePatch)>,
    highest: NodeNo,
    now: Now,
) -> Result<(), RegistryError> {
    let mut records = BTreeMap::new();
    for (id, patch) in patches {
        let known = fleet.known(&id).map(|node| node.record.clone());
        let before = records.remove(&id).or(known).unwrap_or_else(|| Record::new(id.clone(), now.wall_ms));
        records.insert(id, patched(before, patch)?);
    }
    for (id, record) in records {
        // One that was removed is listed again.
        fleet.restore(&id);
        match fleet.nodes.get_mut(&id) {
            Some(node) => node.record = Record { removed_ms: None, ..record },
            None => fleet.insert(Node::new(fleet.number_after(highest), record)),
        }
        effects.nodes.insert(id.clone());
        effects.changed.insert(id);
    }
    Ok(())
}

/// A name or a site, if it may be one.
fn label(pointer: &str, text: String) -> Result<String, RegistryError> {
    if text.is_empty() || text.len() > NAME_BYTES || text.chars().any(char::is_control) {
        return Err(field(
            pointer,
            format!("1 to {NAME_BYTES} bytes without control characters are allowed"),
        ));
    }
    Ok(text)
}

/// A record with a patch applied.
///
/// # Errors
/// [`RegistryError::Field`].
pub(super) fn patched(mut record: Record, patch: NodePatch) -> Result<Record, RegistryError> {
    let text = |pointer: &str, text: Option<String>| text.map(|text| label(pointer, text)).transpose();
    if let Some(name) = patch.name {
        record.name = text("/name", name)?;
    }
    if let Some(site) = patch.site {
        record.site = text("/site", site)?;
    }
    if let Some(location) = patch.location {
        if location.is_some_and(|at| !(-90.0..=90.0).contains(&at.lat) || !(-180.0..=180.0).contains(&at.lon))
        {
            return Err(field("/location", "lat is within -90 to 90 and lon within -180 to 180"));
        }
        record.location = location;
    }
    for (key, value) in patch.labels {
        let pointer = format!("/labels/{}", key.replace('~', "~0").replace('/', "~1"));
        fleet_schemas::MetricName::parse(&key).map_err(|error| field(pointer.clone(), error.to_string()))?;
        match value {
            None => drop(record.labels.remove(&key)),
            Some(value) if value.len() > limits::LABEL_BYTES || value.chars().any(char::is_control) => {
                return Err(field(pointer, "at most 63 bytes without control characters are allowed"));
            }
            Some(value) => drop(record.labels.insert(key, value)),
        }
    }
    if record.labels.len() > limits::LABELS_PER_NODE {
        return Err(field("/labels", format!("at most {} labels are allowed", limits::LABELS_PER_NODE)));
    }
    Ok(record)
}
