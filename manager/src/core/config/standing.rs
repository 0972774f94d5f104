//! Where a node stands with its configuration, and why: sentences for `fleet why` and for whoever looks at the node.

use std::collections::BTreeMap;

use fleet_schemas::config::Reported;

use super::{Layer, docs::Docs, place, settings::Settled, version};
use crate::core::fleet::{Fleet, Node};

/// Whether a node follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It never had a setting, or its agent takes none.
    Unmanaged,
    /// It runs what it is to have.
    InSync,
    /// It is connected and does not run it yet.
    Pending,
    /// It could not apply it, and runs what it had before.
    Failed,
    /// It does not run it and is not connected.
    Offline,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Unmanaged, Self::InSync, Self::Pending, Self::Failed, Self::Offline];

    /// The word in REST, CLI and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unmanaged => "unmanaged",
            Self::InSync => "in_sync",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Offline => "offline",
        }
    }
}

/// Whether a node follows, by its last word.
#[must_use]
pub fn state(node: &Node) -> State {
    let Some(wanted) = node.wanted else { return State::Unmanaged };
    let Some(Reported { received, applied, failed }) = node.record.config.as_deref() else {
        // One that was never heard may take some.
        return if node.record.session.is_some() { State::Unmanaged } else { State::Offline };
    };
    let has = received.is_some_and(|held| wanted.is(&held));
    let runs = applied.is_some_and(|held| (held.version, held.hash) == (wanted.version, wanted.hash));
    match (has, runs) {
        (true, _) if failed.is_some() => State::Failed,
        (true, true) => State::InSync,
        _ if node.record.presence.reached_by().is_none() => State::Offline,
        _ => State::Pending,
    }
}

/// Nodes by state.
#[must_use]
pub fn count<'a>(nodes: impl Iterator<Item = &'a Node>) -> BTreeMap<State, usize> {
    let mut counts: BTreeMap<_, _> = State::ALL.into_iter().map(|state| (state, 0)).collect();
    for node in nodes {
        *counts.entry(state(node)).or_default() += 1;
    }
    counts
}

/// Why a node follows or does not, in sentences: where it stands, what it says, where its settings come from.
#[must_use]
pub fn why(fleet: &Fleet, node: &Node) -> Vec<String> {
    let mut told = vec![stands(node)];
    told.extend(unfit(fleet, node));
    told.extend(sources(fleet, node));
    told
}

/// Where a node stands, in a sentence.
#[must_use]
pub fn stands(node: &Node) -> String {
    let id = &node.record.id;
    let Some(wanted) = node.wanted else {
        return match node.record.config {
            Some(_) => format!("{id} never had a setting here: it runs its own"),
            None => format!("{id} never had a setting here, and its agent takes none"),
        };
    };
    let version_wanted = version(wanted.version);
    let Some(reported) = node.record.config.as_deref() else {
        return if node.record.session.is_some() {
            format!(
                "{id} is to have version {version_wanted}, but its agent takes no configuration; update it"
            )
        } else {
            format!("{id} was never connected: version {version_wanted} waits at the hub until it is")
        };
    };
    let runs = match reported.applied {
        Some(held) => format!("runs version {}", version(held.version)),
        None => "runs its own settings".to_owned(),
    };
    match state(node) {
        State::InSync => format!("{id} runs version {version_wanted}, which it is to have"),
        State::Failed => {
            let failed = reported.failed.as_ref();
            let (code, message) = failed.map_or(("unknown", ""), |failed| (&failed.code, &failed.message));
            format!(
                "{id} could not apply version {version_wanted} ({code}): {message}; it {runs}. It is not tried again before \
                 there is another version; `fleet config retry {id}` has it tried again"
            )
        }
        State::Pending if reported.received.is_some_and(|held| wanted.is(&held)) => {
            format!("{id} has received version {version_wanted} and has not applied it yet; it {runs}")
        }
        State::Pending => match node.told {
            Some(_) => {
                format!("{id} was told version {version_wanted} and has not said it received it; it {runs}")
            }
            None => format!("{id} is to be told version {version_wanted}; it {runs}"),
        },
        State::Offline => {
            let presence = node.record.presence.state.as_str();
            format!(
                "{id} is {presence}: version {version_wanted} waits at the hub until it is back; it {runs}"
            )
        }
        State::Unmanaged => format!("{id} takes no configuration"),
    }
}

/// Why a node is not given what its layers say, if it is not.
#[must_use]
pub fn unfit(fleet: &Fleet, node: &Node) -> Option<String> {
    let plan = &fleet.config;
    let place = place(plan, node);
    let mut docs = Docs::new(plan.settings());
    let doc = docs.of(&place);
    match plan.settings().settled(&docs, &place, &doc) {
        Settled::Unfit(unfit) => Some(format!(
            "what its layers say now is not given to it: the document {unfit}; change a layer, or the schema"
        )),
        Settled::Same | Settled::New(_) => None,
    }
}

fn sources(fleet: &Fleet, node: &Node) -> Vec<String> {
    let plan = &fleet.config;
    let place = place(plan, node);
    let layers = place.layers().filter_map(|layer| {
        let revision = plan.settings().current(&layer)?;
        let whose = match &layer {
            Layer::Fleet => "all nodes".to_owned(),
            Layer::Group(name) => format!("group {name}"),
            Layer::Site(name) => format!("site {name}"),
            Layer::Node(_) => "this node alone".to_owned(),
        };
        Some(format!("{layer} (for {whose}) is at revision {}, by {}", revision.number, revision.by))
    });
    layers.collect()
}
