//! The four branches of the topic tree that tools may hear: what a filter can reach of them.
//!
//! The router is asked for whole branches and never for a tool's own filters, because it keeps a log of megabytes
//! for every filter it has seen, for ever; a tool's filters are matched where its messages are copied. Pure.

use fleet_schemas::topic::{ALL_DOWN, ALL_HUB, ALL_UP, Hub, ROOT};

use crate::{
    policy::{FLEET, meet},
    router::saying::SAYINGS,
};

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
    /// What tools say to each other, and the hub to them, outside `fleet/`.
    Tools,
}

/// What of the hub's own topics (DESIGN section 2) a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum HubKind {
    /// `hub/node/…`
    Node,
    /// `hub/latest/…`
    Latest,
    /// `hub/samples/…`
    Samples,
    /// `hub/event/…`
    Event,
    /// `hub/alert/…`
    Alert,
    /// `hub/rollout/…`
    Rollout,
}

/// A set of kinds, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct HubKinds(u8);

/// A set of branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Branches([bool; Branch::ALL.len()]);

/// The level that stands where a node's id does, and is reserved.
const HUB: &str = "hub";

impl HubKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Node, Self::Latest, Self::Samples, Self::Event, Self::Alert, Self::Rollout];

    /// The kind of a topic.
    #[must_use]
    pub fn of(hub: &Hub) -> Self {
        match hub {
            Hub::Node(_) => Self::Node,
            Hub::Latest(_) => Self::Latest,
            Hub::Samples(_) => Self::Samples,
            Hub::Event(_) => Self::Event,
            Hub::Alert(..) => Self::Alert,
            Hub::Rollout(_) => Self::Rollout,
        }
    }

    /// Whether a filter matches any topic of it.
    fn is_reached(self, filter: &str) -> bool {
        let level = match self {
            Self::Node => "node",
            Self::Latest => "latest",
            Self::Samples => "samples",
            Self::Event => "event",
            Self::Alert => "alert",
            Self::Rollout => "rollout",
        };
        meet(filter, &format!("{ROOT}/{HUB}/{level}/#"))
    }
}

impl Branch {
    pub(crate) const ALL: [Self; 4] = [Self::Up, Self::Down, Self::Hub, Self::Tools];

    /// The filter that matches all of it in the router, and no topic of another branch.
    pub(crate) fn filter(self) -> String {
        match self {
            Self::Up => ALL_UP.to_owned(),
            Self::Down => ALL_DOWN.to_owned(),
            Self::Hub => ALL_HUB.to_owned(),
            Self::Tools => SAYINGS.to_owned(),
        }
    }

    /// The branch of a topic that came out of the router.
    pub(crate) fn of(topic: &str) -> Self {
        if topic == SAYINGS {
            return Self::Tools;
        }
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
            Self::Hub => HubKind::ALL.iter().any(|kind| kind.is_reached(filter)),
            Self::Tools => !matches!(filter.split('/').next(), Some(FLEET)) && !filter.starts_with('$'),
        }
    }
}

impl HubKinds {
    /// The kinds that a filter reaches.
    pub(crate) fn of(filter: &str) -> Self {
        let bit = |kind: HubKind| u8::from(kind.is_reached(filter)) << kind as usize;
        Self(HubKind::ALL.into_iter().fold(0, |bits, kind| bits | bit(kind)))
    }

    pub(crate) fn has(self, kind: HubKind) -> bool {
        self.0 & (1 << kind as usize) != 0
    }

    /// All of both.
    pub(crate) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Branches {
    /// The branches that a filter reaches.
    pub(crate) fn of(filter: &str) -> Self {
        Self(Branch::ALL.map(|branch| branch.is_reached(filter)))
    }

    /// All of both.
    pub(crate) fn with(self, other: Self) -> Self {
        Self(Branch::ALL.map(|branch| self.has(branch) || other.has(branch)))
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

    fn reached(filter: &str) -> [bool; 4] {
        Branches::of(filter).0
    }

    #[test]
    fn a_filter_reaches_the_branches_whose_topics_it_can_match() {
        assert_eq!(reached("#"), [true, true, true, true]);
        assert_eq!(reached("fleet/v1/+/up/telemetry"), [true, false, false, false]);
        assert_eq!(reached("fleet/v1/edge-1/#"), [true, true, false, false]);
        assert_eq!(reached("fleet/v1/hub/#"), [false, false, true, false]);
        assert_eq!(reached("fleet/v1/+/+/edge-1"), [true, true, true, false]);
        assert_eq!(reached("fleet/v1/hub/alert/+/edge-1"), [false, false, true, false]);
        assert_eq!(reached("+/v1/hub/alert/+/edge-1"), [false, false, true, true]);
        assert_eq!(reached("a/+/c"), [false, false, false, true]);
        assert_eq!(reached("fleet/v1/hub"), [false; 4]);
        assert_eq!(reached("$SYS/#"), [false; 4]);
    }

    #[test]
    fn a_filter_reaches_the_kinds_of_the_hub_s_topics_that_it_can_match() {
        let kinds = |filter: &str| HubKind::ALL.map(|kind| HubKinds::of(filter).has(kind));
        assert_eq!(kinds("fleet/v1/hub/latest/+"), [false, true, false, false, false, false]);
        assert_eq!(kinds("fleet/v1/+/+/edge-1"), [true; 6]);
        assert_eq!(kinds("fleet/v1/+/up/#"), [false; 6]);
        for (at, kind) in HubKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
        }
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
