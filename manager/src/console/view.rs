//! The pages that are kept up to date: which changes touch them, and their parts.

use std::sync::Arc;

use fleet_schemas::NodeId;

use super::{
    fleet,
    live::{Part, Tick},
};
use crate::api::{Api, problem::Refusal};

/// An open page.
#[derive(Debug, Clone)]
pub(super) enum View {
    /// The fleet, with these nodes in its list.
    Fleet(Vec<NodeId>),
}

impl View {
    /// Whether a tick may have changed what it shows.
    pub(super) fn touched(&self, tick: &Tick) -> bool {
        match self {
            Self::Fleet(_) => tick.all || !tick.nodes.is_empty() || !tick.told.is_empty(),
        }
    }

    /// Its parts that a tick touches, as they are now.
    pub(super) async fn parts(&self, api: &Arc<Api>, tick: &Tick) -> Result<Vec<Part>, Refusal> {
        match self {
            Self::Fleet(rows) => fleet::parts(api, rows, tick).await,
        }
    }
}
