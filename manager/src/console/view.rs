//! The pages that are kept up to date: which changes touch them, and their parts.

use std::sync::Arc;

use fleet_schemas::NodeId;

use super::{
    alerts, commands, fleet,
    live::{Part, Tick},
    node, rollouts,
};
use crate::api::{Api, problem::Refusal};

/// An open page.
#[derive(Debug, Clone)]
pub(super) enum View {
    /// The fleet, with these nodes in its list.
    Fleet(Vec<NodeId>),
    /// Alerts.
    Alerts(Box<alerts::Asked>),
    /// Commands, or one of them.
    Commands(commands::Asked),
    /// Rollouts, or one of them.
    Rollouts(Box<rollouts::Asked>),
    /// A node.
    Node(Box<node::Open>),
}

impl View {
    /// Whether a tick may have changed what it shows.
    pub(super) fn touched(&self, tick: &Tick) -> bool {
        match self {
            Self::Fleet(_) => tick.all || !tick.nodes.is_empty() || !tick.told.is_empty(),
            Self::Alerts(asked) => asked.touched(tick),
            Self::Commands(asked) => asked.touched(tick),
            Self::Rollouts(asked) => asked.touched(tick),
            Self::Node(open) => open.touched(tick),
        }
    }

    /// Its parts that a tick touches, as they are now.
    pub(super) async fn parts(&mut self, api: &Arc<Api>, tick: &Tick) -> Result<Vec<Part>, Refusal> {
        match self {
            Self::Fleet(rows) => fleet::parts(api, rows, tick).await,
            Self::Alerts(asked) => alerts::parts(api, asked).await,
            Self::Commands(asked) => commands::parts(api, asked).await,
            Self::Rollouts(asked) => rollouts::parts(api, asked).await,
            Self::Node(open) => open.parts(api, tick).await,
        }
    }
}
