//! The three branches of the topic tree that tools may hear: what a filter can reach of them.
//!
//! The router is asked for whole branches and never for a tool's own filters, because it keeps a log of megabytes
//! for every filter it has seen, for ever; a tool's filters are matched where its messages are copied. Pure.

use fleet_schemas::topic::{ALL_DOWN, ALL_HUB, ALL_UP, ROOT};

use crate::policy::meet;

/// A part of the topic tree that the router is subscribed to as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Branch {
    /// What nodes say.
    Up,
    /// What nodes are told.
    Down,
    /// What the hub tells everybody.
    Hub,
}

/// A set of branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Branches([bool; Branch::ALL.len()]);

/// The level that stands where a node's id does, and is reserved.
const HUB: &str = "hub";
/// The levels below it (DESIGN section 2).
const KINDS: [&str; 6] = ["node", "latest", "samples", "event", "alert", "rollout"];

impl Branch {
    pub(crate) const ALL: [Self; 3] = [Self::Up, Self::Down, Self::Hub];

    /// The filter that matches all of it, and no topic of another branch.
    pub(crate) fn filter(self) -> String {
        match self {
            Self::Up => ALL_UP.to_owned(),
            Self::Down => ALL_DOWN.to_owned(),
            Self::Hub => ALL_HUB.to_owned(),
        }
    }

    /// The branch of a topic that came out of the router.
    pub(crate) fn of(topic: &str) -> Self {
        let mut levels = topic.split('/').skip(2);
        match (levels.next(), levels.next()) {
            (Some(HUB), _) => Self::Hub,
            (_, Some("up")) => Self::Up,
            (_, _) => Self::Down,
        }
    }

    /// Whether a filter matches any topic of it.
    fn is_reached(self, filter: &str) -> bool {
        match self {
            Self::Up | Self::Down => filter.split('/').nth(2) != Some(HUB) && meet(filter, &self.filter()),
            Self::Hub => KINDS.iter().any(|kind| meet(filter, &format!("{ROOT}/{HUB}/{kind}/#"))),
        }
    }
}

impl Branches {
    /// The branches that any of the filters reaches.
    pub(crate) fn of<'a>(filters: impl IntoIterator<Item = &'a String>) -> Self {
        let mut branches = Self::default();
        for filter in filters {
            for branch in Branch::ALL {
                branches.0[branch as usize] |= branch.is_reached(filter);
            }
        }
        branches
    }

    pub(crate) fn has(self, branch: Branch) -> bool {
        self.0[branch as usize]
    }

    pub(crate) fn add(&mut self, branch: Branch) {
        self.0[branch as usize] = true;
    }

    /// Whether `other` has all that this has.
    pub(crate) fn inside(self, other: Self) -> bool {
        Branch::ALL.into_iter().all(|branch| !self.has(branch) || other.has(branch))
    }
}

#[cfg(test)]
mod tests {
    use fleet_schemas::{
        NodeId, Topic,
        topic::{Down, Hub, Up},
    };

    use super::*;
    use crate::policy::covers;

    fn reached(filter: &str) -> [bool; 3] {
        Branches::of([&filter.to_owned()]).0
    }

    #[test]
    fn a_filter_reaches_the_branches_whose_topics_it_can_match() {
        assert_eq!(reached("#"), [true, true, true]);
        assert_eq!(reached("fleet/v1/+/up/telemetry"), [true, false, false]);
        assert_eq!(reached("fleet/v1/edge-1/#"), [true, true, false]);
        assert_eq!(reached("fleet/v1/hub/#"), [false, false, true]);
        assert_eq!(reached("fleet/v1/+/+/edge-1"), [true, true, true]);
        assert_eq!(reached("fleet/v1/hub/alert/+/edge-1"), [false, false, true]);
        assert_eq!(reached("a/+/c"), [false, false, false]);
        assert_eq!(reached("fleet/v1/hub"), [false, false, false]);
    }

    #[test]
    fn every_topic_is_in_its_branch_and_in_no_other() {
        let node = NodeId::parse("edge-1").unwrap();
        let hubs = [
            Hub::Node(node.clone()),
            Hub::Latest(node.clone()),
            Hub::Samples(node.clone()),
            Hub::Event(node.clone()),
            Hub::Alert("hot".into(), node.clone()),
            Hub::Rollout("r1".into()),
        ];
        let mut topics: Vec<_> = hubs.map(|hub| (Branch::Hub, Topic::Hub(hub))).into();
        topics.push((Branch::Up, Topic::Up(node.clone(), Up::Birth)));
        topics.push((Branch::Down, Topic::Down(node, Down::Ack)));
        for (branch, topic) in topics {
            let text = topic.to_string();
            assert_eq!(Branch::of(&text), branch);
            assert_eq!(reached(&text), Branch::ALL.map(|other| other == branch), "{text}");
            for other in Branch::ALL {
                assert_eq!(covers(&other.filter(), &text), other == branch, "{text}");
            }
        }
    }
}
