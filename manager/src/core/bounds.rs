//! Whom an operator may touch: a role can be bound to a selector, and every change is held to that before it is made.
//!
//! Looking is a matter of the role alone: whoever may look sees all nodes. An operator who is bound changes only nodes
//! that the selector matches before and after the change, so that no node is moved into its reach or out of it. What is of
//! the whole fleet (groups, the settings of all nodes, rules) it does not change. Pure; asked by the consumer with the
//! change in hand, in the same group, and so by API and console alike.

use std::borrow::Cow;

use fleet_schemas::NodeId;

use super::{
    config::{Edit, Layer},
    fleet::{Fleet, Node, NodeNo},
    identity::Identities,
    registry::{Intent, NodePatch, RegistryError, patched},
    selector::{FIELDS, Selector, Subject},
};

/// Keys beside labels that a role can be bound by. What a node says of itself, and what changes by itself, is none.
pub const KEYS: [&str; 2] = ["id", "site"];
/// Nodes that a refusal names.
const LISTED: usize = 10;
/// How operators stand in the trail of changes.
const OPERATOR: &str = "operator ";

/// Why a change is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{who} may change only what matches {on}, and {what}; nothing was changed. Choose nodes by `-l {on}`, or have \
     somebody do it who may"
)]
pub struct Outside {
    /// Who wanted it.
    pub who: String,
    /// What the role is bound to.
    pub on: String,
    /// What is outside of it.
    pub what: String,
}

/// What somebody is about to touch that is no intent of the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch<'a> {
    /// A node.
    Node(&'a NodeId),
    /// Whatever is or comes to a site.
    Site(&'a str),
    /// Something of the whole fleet, such as `rules`.
    Whole(&'static str),
}

/// The bounds of one operator.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bounds {
    who: String,
    on: String,
    selector: Selector,
}

/// Reads what a role is to be bound to.
///
/// # Errors
/// A sentence: it is no selector, selects everything, or asks for what a node says of itself.
pub fn read(text: &str) -> Result<Selector, String> {
    let selector = Selector::parse(text).map_err(|error| error.to_string())?;
    if selector.is_empty() {
        return Err("it selects everything; leave it out for an operator of the whole fleet".to_owned());
    }
    let loose = FIELDS.into_iter().filter(|key| !KEYS.contains(key)).find(|key| selector.names(key));
    match loose {
        Some(key) => Err(format!(
            "{key} changes by itself, or by what a node says; bind a role by id, site or labels, such as site=berlin"
        )),
        None => Ok(selector),
    }
}

/// Holds a change to the bounds of whoever wants it. A rollout's selector is narrowed to them, for nodes that come later.
///
/// # Errors
/// [`RegistryError::Outside`].
pub fn check(
    fleet: &Fleet,
    identities: &Identities,
    by: &str,
    intent: &mut Intent,
    now_ms: i64,
) -> Result<(), RegistryError> {
    let Some(bounds) = Bounds::of(identities, by)? else { return Ok(()) };
    match intent {
        Intent::PatchNode { node, patch } => bounds.patches(fleet, &[(node, patch)], now_ms)?,
        Intent::ImportNodes(patches) => {
            let patches: Vec<_> = patches.iter().map(|(node, patch)| (node, patch)).collect();
            bounds.patches(fleet, &patches, now_ms)?;
        }
        Intent::PutGroup { name, .. } | Intent::RemoveGroup(name) => {
            return Err(bounds.outside(format!("group {name} is of the whole fleet")).into());
        }
        Intent::PutSite { name, .. } | Intent::RemoveSite(name) if bounds.covers(name) => {}
        Intent::PutSite { name, .. } | Intent::RemoveSite(name) => {
            return Err(bounds.outside(format!("site {name} may have nodes that do not")).into());
        }
        // Only admins are asked for these, and they are not bound; but for the hub's own word of its use.
        Intent::Identity(_) | Intent::RemoveNode(_) | Intent::ForgetNode(_) | Intent::Rotated(_) => {
            return Err(bounds.outside("who gets in is decided for the whole fleet").into());
        }
        // An artifact that nobody rolled out runs nowhere.
        Intent::Noted(_) => {}
        Intent::Command(wanted) => bounds.nodes(fleet, wanted.nodes.iter())?,
        Intent::CancelCommand { id, nodes } | Intent::ApproveCommand { id, nodes } => match nodes {
            Some(nodes) => bounds.nodes(fleet, nodes.iter())?,
            None => bounds.numbers(fleet, fleet.commands.nodes_of(*id))?,
        },
        Intent::EditConfig { edit, .. } => bounds.edit(fleet, edit)?,
        Intent::RetryConfig(node) => bounds.nodes(fleet, [&*node])?,
        Intent::Rollout(wanted) => {
            bounds.nodes(fleet, wanted.seats.iter().map(|(node, ..)| node))?;
            if let Some(selector) = &mut wanted.selector {
                let comma = if selector.trim().is_empty() { "" } else { "," };
                *selector = format!("{selector}{comma}{}", bounds.on);
            }
        }
        Intent::ActOnRollout { id, .. } => {
            // One that is not known is refused as that.
            let members = fleet.rollouts.get(id.as_str()).map(|live| live.members());
            let numbers = members.into_iter().flatten().map(|((node, _), _)| *node);
            bounds.numbers(fleet, numbers)?;
        }
    }
    Ok(())
}

/// Holds what is no intent of the registry to the same bounds.
///
/// # Errors
/// [`RegistryError::Outside`].
pub fn may(fleet: &Fleet, identities: &Identities, by: &str, touch: Touch<'_>) -> Result<(), RegistryError> {
    let Some(bounds) = Bounds::of(identities, by)? else { return Ok(()) };
    match touch {
        Touch::Node(node) if fleet.nodes.contains_key(node) => bounds.nodes(fleet, [node]),
        // Nobody knows any more where it was.
        Touch::Node(node) => Err(bounds.outside(format!("{node} is no node any more")).into()),
        Touch::Site(site) if bounds.covers(site) => Ok(()),
        Touch::Site(site) => Err(bounds.outside(format!("site {site} may have nodes that do not")).into()),
        Touch::Whole(what) => Err(bounds.outside(format!("{what} are of the whole fleet")).into()),
    }
}

impl Bounds {
    /// Of whoever `by` names; none: there are none.
    fn of(identities: &Identities, by: &str) -> Result<Option<Self>, RegistryError> {
        let Some(who) = by.strip_prefix(OPERATOR) else { return Ok(None) };
        let bound = identities.operators.get(who).map(|operator| operator.on.as_deref());
        // One that was removed while its request was on the way must not lose its bounds by that.
        let on = match bound {
            Some(on) => on,
            None => identities.removed.get(who).map(String::as_str),
        };
        let Some(on) = on else { return Ok(None) };
        // It was read before it was kept; what cannot be read any more matches nothing.
        let selector = Selector::parse(on).map_err(|error| Outside {
            who: who.to_owned(),
            on: on.to_owned(),
            what: format!("that cannot be read: {error}"),
        })?;
        Ok(Some(Self { who: who.to_owned(), on: on.to_owned(), selector }))
    }

    fn outside(&self, what: impl Into<String>) -> Outside {
        Outside { who: self.who.clone(), on: self.on.clone(), what: what.into() }
    }

    fn fits(&self, node: &Node) -> bool {
        self.selector.matches(node)
    }

    /// Also those that were removed: a patch brings them back. Nodes that are not known are refused by whoever looks them up.
    fn nodes<'a>(
        &self,
        fleet: &Fleet,
        nodes: impl IntoIterator<Item = &'a NodeId>,
    ) -> Result<(), RegistryError> {
        let out = |id: &&NodeId| fleet.known(id).is_some_and(|node| !self.fits(node));
        self.none(nodes.into_iter().filter(out).map(ToString::to_string).collect(), "does not", "do not")
    }

    fn numbers(&self, fleet: &Fleet, numbers: impl IntoIterator<Item = NodeNo>) -> Result<(), RegistryError> {
        let ids: Vec<_> = numbers.into_iter().filter_map(|number| fleet.ids.get(&number)).collect();
        self.nodes(fleet, ids)
    }

    fn none(&self, mut out: Vec<String>, one: &str, more: &str) -> Result<(), RegistryError> {
        out.sort_unstable();
        out.dedup();
        let verb = if out.len() == 1 { one } else { more };
        let what = match out.len() {
            0 => return Ok(()),
            all if all > LISTED => format!("{} and {} more {verb}", out[..LISTED].join(", "), all - LISTED),
            _ => format!("{} {verb}", out.join(", ")),
        };
        Err(self.outside(what).into())
    }

    /// Each matches before, if it is there, and after.
    fn patches(
        &self,
        fleet: &Fleet,
        patches: &[(&NodeId, &NodePatch)],
        now_ms: i64,
    ) -> Result<(), RegistryError> {
        self.nodes(fleet, patches.iter().map(|(id, _)| *id))?;
        let mut out = Vec::new();
        for (id, patch) in patches {
            let known = fleet.known(id).map(|node| node.record.clone());
            let record = known.unwrap_or_else(|| super::fleet::Record::new((*id).clone(), now_ms));
            // What breaks a rule is refused as that.
            let Ok(after) = patched(record, (*patch).clone()) else { continue };
            if !self.fits(&Node::new(0, after)) {
                out.push(id.to_string());
            }
        }
        self.none(out, "would not any more", "would not any more")
    }

    fn edit(&self, fleet: &Fleet, edit: &Edit) -> Result<(), RegistryError> {
        match edit.layer() {
            Some(Layer::Node(node)) => self.nodes(fleet, [node]),
            // Also for nodes that come to the site later.
            Some(Layer::Site(site)) if self.covers(site) => Ok(()),
            Some(layer @ (Layer::Site(_) | Layer::Group(_) | Layer::Fleet)) => {
                Err(self.outside(format!("the settings of {layer} may reach nodes that do not")).into())
            }
            None => Err(self.outside("the schema of settings is of the whole fleet").into()),
        }
    }

    /// Whether every node that a site has or may come to have matches.
    fn covers(&self, site: &str) -> bool {
        self.selector.is_about("site") && self.selector.matches(&Site(site))
    }
}

/// A node of which nothing is known but where it is.
struct Site<'a>(&'a str);

impl Subject for Site<'_> {
    fn values(&self, key: &str) -> Vec<Cow<'_, str>> {
        if key == "site" { vec![Cow::Borrowed(self.0)] } else { Vec::new() }
    }
}

impl From<Outside> for RegistryError {
    fn from(outside: Outside) -> Self {
        Self::Outside(Box::new(outside))
    }
}

#[cfg(test)]
mod tests;
