//! Which of the hub's retained messages a filter may match. Pure.

use fleet_broker::HubKind;
use fleet_schemas::{NodeId, topic::ROOT};

/// What a filter reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reach {
    /// `hub/node/…`
    pub node: bool,
    /// `hub/latest/…`
    pub latest: bool,
    /// `hub/alert/…`
    pub alert: bool,
    /// Of this node only.
    pub only: Option<NodeId>,
}

impl Reach {
    /// Reads a filter; `None` when it can match none of them.
    pub(super) fn of(filter: &str) -> Option<Self> {
        let mut levels = filter.split('/');
        for level in ROOT.split('/').chain(["hub"]) {
            match levels.next()? {
                "#" => return Some(Self { node: true, latest: true, alert: true, only: None }),
                "+" => {}
                other if other == level => {}
                _ => return None,
            }
        }
        let kind = levels.next()?;
        let names = |of: HubKind| {
            let name = match of {
                HubKind::Node => "node",
                HubKind::Latest => "latest",
                HubKind::Alert => "alert",
                HubKind::Samples | HubKind::Event | HubKind::Rollout => return false,
            };
            matches!(kind, "#" | "+") || kind == name
        };
        let (mut node, mut latest, mut alert) =
            (names(HubKind::Node), names(HubKind::Latest), names(HubKind::Alert));
        let below: Vec<&str> = levels.collect();
        // An alert's topic has a level for its rule before that of its node.
        match below.as_slice() {
            [] | [_] if below.first() == Some(&"#") || (below.is_empty() && kind == "#") => {}
            [_] => alert = false,
            [_, "#"] => {}
            [_, _] => (node, latest) = (false, false),
            _ => return None,
        }
        if !(node || latest || alert) {
            return None;
        }
        let of_node = if node || latest { below.first() } else { below.get(1).or(below.first()) };
        let only = match of_node.copied() {
            Some("#" | "+") => None,
            Some(id) => Some(NodeId::parse(id).ok()?),
            // `…/hub/#` reaches all of them.
            None if kind == "#" => None,
            None => return None,
        };
        Some(Self { node, latest, alert, only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_reach_what_they_match() {
        let reach = |filter: &str| {
            Reach::of(filter).map(|reach| (reach.node, reach.latest, reach.only.map(|id| id.to_string())))
        };
        let alerts = |filter: &str| {
            Reach::of(filter).filter(|reach| reach.alert).map(|reach| reach.only.map(|id| id.to_string()))
        };
        for all in ["#", "fleet/v1/hub/#", "fleet/v1/hub/alert/#", "fleet/v1/hub/alert/+/+", "+/+/+/+/+/+"] {
            assert_eq!(alerts(all), Some(None), "{all}");
        }
        assert_eq!(alerts("fleet/v1/hub/alert/hot/edge-1"), Some(Some("edge-1".to_owned())));
        assert_eq!(alerts("fleet/v1/hub/alert/hot/#"), Some(None));
        for none in ["fleet/v1/hub/node/edge-1", "fleet/v1/hub/alert/hot", "fleet/v1/hub/alert", "+/+/+/+/+"]
        {
            assert_eq!(alerts(none), None, "{none}");
        }
        for all in ["#", "fleet/#", "fleet/v1/hub/#", "+/+/+/+/+", "fleet/v1/hub/+/#"] {
            assert_eq!(reach(all), Some((true, true, None)), "{all}");
        }
        assert_eq!(reach("fleet/v1/hub/latest/+"), Some((false, true, None)));
        assert_eq!(reach("fleet/v1/hub/node/edge-1"), Some((true, false, Some("edge-1".to_owned()))));
        assert_eq!(reach("fleet/v1/hub/+/edge-1"), Some((true, true, Some("edge-1".to_owned()))));
        for none in
            ["fleet/v1/hub", "fleet/v1/hub/samples/+", "fleet/v1/+/up/#", "a/b", "fleet/v1/hub/node/HUB"]
        {
            assert_eq!(reach(none), None, "{none}");
        }
    }
}
