//! The fleet in one look: nodes by state and by site, and what changed last. Pure but for its one look at the registry.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use askama::Template;

use super::words::{self, When, whole};
use crate::{
    api::shapes::Event,
    core::{fleet::Fleet, presence::State},
};

/// Presence states in the order in which pages show them: what needs a look first.
pub(super) const STATES: [&str; 5] = ["offline", "suspect", "online", "sleeping", "new"];
/// Sites that the matrix shows; those with the most trouble.
const SITES: usize = 24;
/// Nodes of a site up to which each has a square of its own.
const SQUARES: usize = 60;
/// Squares of a line.
const ACROSS: usize = 20;
/// Changes that are shown.
const CHANGES: usize = 12;

/// Nodes by state, in the order of [`STATES`].
pub(super) type Counts = [usize; STATES.len()];

/// What is found at a site: its nodes by state, and the first of them with the places of their states.
type At<'a> = (Counts, Vec<(&'a str, usize)>);

/// What one look at the registry gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Overview {
    /// All nodes.
    pub(super) counts: Counts,
    /// By site, those with the most trouble; nodes without a site under the empty name.
    pub(super) sites: Vec<Site>,
    /// Sites that are not shown.
    pub(super) more_sites: usize,
    /// Nodes that went into their state last: when, which, to what. Newest first.
    pub(super) moved: Vec<(i64, String, &'static str)>,
}

/// One site.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Site {
    /// Its name, empty for none.
    pub(super) name: String,
    /// Its nodes by state.
    pub(super) counts: Counts,
    /// Each of its nodes with its state, by id; nothing when they are too many.
    pub(super) nodes: Vec<(String, &'static str)>,
}

/// The counts by state.
#[derive(Template)]
#[template(path = "tiles.html")]
pub(super) struct Tiles {
    pub(super) counts: Counts,
}

/// The sites.
#[derive(Template)]
#[template(path = "sites.html")]
pub(super) struct Sites {
    pub(super) sites: Vec<Site>,
    pub(super) more: usize,
}

/// What changed last.
#[derive(Template)]
#[template(path = "changes.html")]
pub(super) struct Changes {
    pub(super) changes: Vec<Change>,
}

/// One change.
pub(super) struct Change {
    pub(super) when: When,
    pub(super) node: String,
    /// The state it went to, or how severe the event is.
    pub(super) word: String,
    /// What happened.
    pub(super) what: String,
}

fn place(state: State) -> usize {
    STATES.iter().position(|known| *known == state.as_str()).expect("every state has a place")
}

impl Overview {
    /// Looks at every node once.
    pub(super) fn of(fleet: &Fleet) -> Self {
        let mut all = Self::default();
        let mut sites: BTreeMap<&str, At<'_>> = BTreeMap::new();
        let mut moved = BinaryHeap::with_capacity(CHANGES + 1);
        for (id, node) in &fleet.nodes {
            let presence = &node.record.presence;
            let place = place(presence.state);
            all.counts[place] += 1;
            let (counts, nodes) = sites.entry(node.record.site.as_deref().unwrap_or_default()).or_default();
            counts[place] += 1;
            if nodes.len() <= SQUARES {
                nodes.push((id.as_str(), place));
            }
            if presence.state != State::New {
                moved.push(Reverse((presence.since_ms, id.as_str(), place)));
                if moved.len() > CHANGES {
                    moved.pop();
                }
            }
        }
        let owned = |(since_ms, id, place): (i64, &str, usize)| (since_ms, id.to_owned(), STATES[place]);
        all.moved = moved.into_sorted_vec().into_iter().map(|Reverse(moved)| owned(moved)).collect();
        let mut sites: Vec<_> = sites.into_iter().collect();
        all.more_sites = sites.len().saturating_sub(SITES);
        if all.more_sites > 0 {
            // Chosen by trouble, shown by name: lines keep their place while they are there.
            sites.sort_by_key(|(name, (counts, _))| (Reverse(counts[0] + counts[1]), *name));
            sites.truncate(SITES);
            sites.sort_by_key(|(name, _)| *name);
        }
        let named = |(name, (counts, nodes)): (&str, At<'_>)| {
            let nodes = if nodes.len() > SQUARES { Vec::new() } else { nodes };
            let nodes = nodes.into_iter().map(|(id, place)| (id.to_owned(), STATES[place])).collect();
            Site { name: name.to_owned(), counts, nodes }
        };
        all.sites = sites.into_iter().map(named).collect();
        all
    }

    /// The last changes of presence and the last events, as one list; `zone` gives that of a node's site.
    pub(super) fn changes(
        &self,
        events: &[Event],
        now_ms: i64,
        zone: impl Fn(&str) -> Option<String>,
    ) -> Changes {
        let moved = self.moved.iter().map(|(at_ms, node, state)| Change {
            when: When::of(at_ms, &now_ms, &zone(node)),
            node: node.clone(),
            word: (*state).to_owned(),
            what: format!("is {state}"),
        });
        let told = events.iter().map(|event| Change {
            when: When::of(&event.stored_ms, &now_ms, &zone(&event.node)),
            node: event.node.clone(),
            word: event.severity.clone(),
            what: words::clip(&event.message),
        });
        let mut changes: Vec<Change> = moved.chain(told).collect();
        changes.sort_by_key(|change| Reverse(change.when.at_ms));
        changes.truncate(CHANGES);
        Changes { changes }
    }
}

impl Tiles {
    fn total(&self) -> String {
        whole(&self.counts.iter().sum())
    }

    fn states(&self) -> impl Iterator<Item = (&'static str, String)> {
        STATES.into_iter().zip(self.counts.map(|count| whole(&count)))
    }
}

impl Site {
    fn total(&self) -> usize {
        self.counts.iter().sum()
    }

    fn shown(&self) -> &str {
        if self.name.is_empty() { "no site" } else { &self.name }
    }

    /// The query that lists its nodes.
    fn query(&self) -> String {
        let site = if self.name.is_empty() { "-" } else { &self.name };
        form_urlencoded::Serializer::new(String::new()).append_pair("site", site).finish()
    }

    /// Its states in words: `2 offline, 3 online`.
    fn words(&self) -> String {
        let some = STATES.into_iter().zip(self.counts).filter(|(_, count)| *count > 0);
        some.map(|(state, count)| format!("{} {state}", whole(&count))).collect::<Vec<_>>().join(", ")
    }

    fn good(&self) -> bool {
        self.counts[0] + self.counts[1] == 0
    }

    /// Where the squares are: x, y, state, node.
    fn squares(&self) -> impl Iterator<Item = (usize, usize, &str, &str)> {
        self.nodes
            .iter()
            .enumerate()
            .map(|(n, (id, state))| (n % ACROSS * 12, n / ACROSS * 12, *state, id.as_str()))
    }

    fn height(&self) -> usize {
        self.nodes.len().div_ceil(ACROSS) * 12 - 2
    }

    /// Where the pieces of the bar are: x, width, state; of 240.
    fn pieces(&self) -> Vec<(f64, f64, &'static str)> {
        let mut x = 0.0;
        let mut pieces = Vec::new();
        for (state, count) in STATES.into_iter().zip(self.counts).filter(|(_, count)| *count > 0) {
            let width = 240.0 * count as f64 / self.total() as f64;
            // One of thousands is to be seen, too.
            let width = width.max(2.0).min(240.0 - x);
            pieces.push((x, width, state));
            x += width;
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use fleet_schemas::NodeId;

    use super::*;
    use crate::core::fleet::{Node, Record};

    fn fleet(nodes: impl IntoIterator<Item = (String, &'static str, State, i64)>) -> Fleet {
        let mut fleet = Fleet::default();
        for (n, (id, site, state, since_ms)) in nodes.into_iter().enumerate() {
            let mut record = Record::new(NodeId::parse(&id).unwrap(), 0);
            record.site = (!site.is_empty()).then(|| site.to_owned());
            (record.presence.state, record.presence.since_ms) = (state, since_ms);
            fleet.insert(Node::new(u32::try_from(n).unwrap(), record));
        }
        fleet
    }

    #[test]
    fn nodes_are_counted_by_state_and_site() {
        let nodes = [
            ("a".to_owned(), "berlin", State::Online, 5),
            ("b".to_owned(), "berlin", State::Offline, 9),
            ("c".to_owned(), "", State::New, 7),
        ];
        let all = Overview::of(&fleet(nodes));
        assert_eq!(all.counts, [1, 0, 1, 0, 1]);
        let names: Vec<_> = all.sites.iter().map(|site| (site.shown(), site.words())).collect();
        assert_eq!(names, [("no site", "1 new".to_owned()), ("berlin", "1 offline, 1 online".to_owned())]);
        assert_eq!(all.moved, [(9, "b".to_owned(), "offline"), (5, "a".to_owned(), "online")]);
    }

    #[test]
    fn large_sites_have_a_bar_and_one_lost_node_is_seen_in_it() {
        let state = |n| if n == 7 { State::Offline } else { State::Online };
        let all = Overview::of(&fleet((0..5_000).map(|n| (format!("n{n}"), "big", state(n), 1))));
        assert_eq!((all.sites.len(), all.sites[0].nodes.len()), (1, 0));
        let pieces = all.sites[0].pieces();
        assert_eq!(pieces[0], (0.0, 2.0, "offline"));
        assert!(pieces.iter().map(|(_, width, _)| width).sum::<f64>() <= 240.0);
    }

    #[test]
    fn of_many_sites_those_in_trouble_are_shown() {
        let name = |n: usize| ["x", "trouble"][usize::from(n == 39)].to_owned() + &n.to_string();
        let names: Vec<&'static str> = (0..40).map(|n| &*name(n).leak()).collect();
        let state = |n| if n == 39 { State::Offline } else { State::Online };
        let nodes = names.iter().enumerate().map(|(n, site)| (format!("n{n}"), *site, state(n), 1));
        let all = Overview::of(&fleet(nodes));
        assert_eq!((all.sites.len(), all.more_sites), (SITES, 40 - SITES));
        assert!(all.sites.iter().any(|site| site.name == "trouble39"));
    }
}
