//! The topics of DESIGN section 2: the only topic literals of the workspace.
//!
//! `fleet/v1/{node}/up/…` and `…/down/…` are a node's two prefixes; `fleet/v1/hub/…` is for tools that speak JSON.

use std::fmt;

use crate::{
    id::{IdError, NodeId},
    lane::Lane,
    limits,
};

/// The root of every topic of this version.
pub const ROOT: &str = "fleet/v1";
/// What the hub's own client subscribes to: everything that nodes say.
pub const ALL_UP: &str = "fleet/v1/+/up/#";
/// What the gate subscribes to once for all node sessions.
pub const ALL_DOWN: &str = "fleet/v1/+/down/#";

/// Everything that the hub tells everybody.
pub const ALL_HUB: &str = "fleet/v1/hub/#";

/// A topic of the contract.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// From a node to the hub.
    Up(NodeId, Up),
    /// From the hub to a node.
    Down(NodeId, Down),
    /// From the hub to everybody, JSON.
    Hub(Hub),
}

/// What a node says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Up {
    /// First message of a session.
    Birth,
    /// The will.
    Death,
    /// Still here; QoS 0, latest wins.
    Heartbeat,
    /// A batch.
    Lane(Lane),
}

/// What a node is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Down {
    /// Marks, credit and hub time.
    Ack,
    /// A command.
    Command,
    /// Desired configuration.
    Config,
}

/// What the hub tells everybody, after commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Hub {
    /// Presence and summary, retained.
    Node(NodeId),
    /// Latest values, retained, at most one a second.
    Latest(NodeId),
    /// Samples as stored.
    Samples(NodeId),
    /// Events as stored.
    Event(NodeId),
    /// An alert, retained while it fires: rule, node.
    Alert(String, NodeId),
    /// Progress of a rollout, retained.
    Rollout(String),
}

/// Why a text is not a topic of the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Longer or deeper than the limits, or not ASCII (the router would panic on it).
    #[error("the topic is too long, too deep or not ASCII")]
    Form,
    /// Not below `fleet/v1/`.
    #[error("the topic is not below fleet/v1/")]
    Foreign,
    /// The node's level is no node id.
    #[error("the topic's node is wrong: {0}")]
    Node(#[from] IdError),
    /// The levels below the node are none of the contract's.
    #[error("the topic names nothing that a node or the hub says")]
    Unknown,
}

impl Up {
    /// The levels below the node.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Birth => "up/birth",
            Self::Death => "up/death",
            Self::Heartbeat => "up/heartbeat",
            Self::Lane(Lane::Event) => "up/event",
            Self::Lane(Lane::Command) => "up/command",
            Self::Lane(Lane::Telemetry) => "up/telemetry",
            Self::Lane(Lane::Backfill) => "up/backfill",
        }
    }
}

impl Down {
    /// The levels below the node.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ack => "down/ack",
            Self::Command => "down/command",
            Self::Config => "down/config",
        }
    }
}

impl Topic {
    /// Reads a topic.
    ///
    /// # Errors
    /// [`TopicError`] when the text is none of the contract's topics.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        check_form(text)?;
        let rest = text.strip_prefix("fleet/v1/").ok_or(TopicError::Foreign)?;
        let (first, rest) = rest.split_once('/').ok_or(TopicError::Unknown)?;
        if first == "hub" {
            return parse_hub(rest).map(Topic::Hub);
        }
        let node = NodeId::parse(first)?;
        Ok(match rest {
            "up/birth" => Topic::Up(node, Up::Birth),
            "up/death" => Topic::Up(node, Up::Death),
            "up/heartbeat" => Topic::Up(node, Up::Heartbeat),
            "up/event" => Topic::Up(node, Up::Lane(Lane::Event)),
            "up/command" => Topic::Up(node, Up::Lane(Lane::Command)),
            "up/telemetry" => Topic::Up(node, Up::Lane(Lane::Telemetry)),
            "up/backfill" => Topic::Up(node, Up::Lane(Lane::Backfill)),
            "down/ack" => Topic::Down(node, Down::Ack),
            "down/command" => Topic::Down(node, Down::Command),
            "down/config" => Topic::Down(node, Down::Config),
            _ => return Err(TopicError::Unknown),
        })
    }
}

fn parse_hub(rest: &str) -> Result<Hub, TopicError> {
    let (kind, rest) = rest.split_once('/').ok_or(TopicError::Unknown)?;
    Ok(match kind {
        "node" => Hub::Node(NodeId::parse(rest)?),
        "latest" => Hub::Latest(NodeId::parse(rest)?),
        "samples" => Hub::Samples(NodeId::parse(rest)?),
        "event" => Hub::Event(NodeId::parse(rest)?),
        "alert" => {
            let (rule, node) = rest.split_once('/').ok_or(TopicError::Unknown)?;
            Hub::Alert(rule.to_owned(), NodeId::parse(node)?)
        }
        "rollout" if !rest.is_empty() && !rest.contains('/') => Hub::Rollout(rest.to_owned()),
        _ => return Err(TopicError::Unknown),
    })
}

/// Checks what the router needs of any topic or filter: ASCII without control characters, bounded length and
/// depth, not empty.
///
/// # Errors
/// [`TopicError::Form`].
pub fn check_form(text: &str) -> Result<(), TopicError> {
    let ascii = text.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_control());
    let levels = text.bytes().filter(|byte| *byte == b'/').count() + 1;
    if text.is_empty() || text.len() > limits::TOPIC_BYTES || levels > limits::TOPIC_LEVELS || !ascii {
        return Err(TopicError::Form);
    }
    Ok(())
}

/// The one filter a node subscribes to: `fleet/v1/{node}/down/#`.
#[must_use]
pub fn down_filter(node: &NodeId) -> String {
    format!("{ROOT}/{node}/down/#")
}

/// The prefix a node publishes below: `fleet/v1/{node}/up/`.
#[must_use]
pub fn up_prefix(node: &NodeId) -> String {
    format!("{ROOT}/{node}/up/")
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(node, up) => write!(f, "{ROOT}/{node}/{}", up.as_str()),
            Self::Down(node, down) => write!(f, "{ROOT}/{node}/{}", down.as_str()),
            Self::Hub(hub) => write!(f, "{ROOT}/hub/{hub}"),
        }
    }
}

impl fmt::Display for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node/{node}"),
            Self::Latest(node) => write!(f, "latest/{node}"),
            Self::Samples(node) => write!(f, "samples/{node}"),
            Self::Event(node) => write!(f, "event/{node}"),
            Self::Alert(rule, node) => write!(f, "alert/{rule}/{node}"),
            Self::Rollout(rollout) => write!(f, "rollout/{rollout}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeId {
        NodeId::parse("edge-1").unwrap()
    }

    #[test]
    fn topics_round_trip() {
        let ups = [Up::Birth, Up::Death, Up::Heartbeat].into_iter().chain(Lane::ALL.map(Up::Lane));
        let downs = [Down::Ack, Down::Command, Down::Config];
        let hubs = [
            Hub::Node(node()),
            Hub::Latest(node()),
            Hub::Samples(node()),
            Hub::Event(node()),
            Hub::Alert("hot".into(), node()),
            Hub::Rollout("r1".into()),
        ];
        let all = (ups.map(|up| Topic::Up(node(), up)))
            .chain(downs.map(|down| Topic::Down(node(), down)))
            .chain(hubs.map(Topic::Hub));
        for topic in all {
            assert_eq!(Topic::parse(&topic.to_string()), Ok(topic));
        }
    }

    #[test]
    fn foreign_and_malformed_topics_are_refused() {
        for bad in ["", "fleet", "fleet/v1/", "fleet/v2/a/up/birth", "fleet/v1/a/up", "fleet/v1/a/up/birth/x"]
        {
            assert!(Topic::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Topic::parse("fleet/v1/ä/up/birth"), Err(TopicError::Form));
        assert!(matches!(Topic::parse("fleet/v1/A/up/birth"), Err(TopicError::Node(_))));
        assert_eq!(Topic::parse("fleet/v1/hub/up/birth"), Err(TopicError::Unknown));
    }
}
