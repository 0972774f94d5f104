//! How many devices each node has, without reading the store for every list.
//!
//! A node's devices are read once and then kept up to date from the feed; whoever follows too slowly reads again.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use fleet_schemas::{
    DeviceId, NodeId,
    device::{Report, State},
};

use super::problem::Refusal;
use crate::{consume::FeedItem, hub::Hub};

/// Devices by node, as far as anybody asked.
#[derive(Debug, Default)]
pub(super) struct Devices(Mutex<HashMap<NodeId, Known>>);

#[derive(Debug, Default)]
struct Known {
    devices: BTreeSet<DeviceId>,
    /// Whether the store was read; until then the feed alone has told.
    whole: bool,
}

impl Devices {
    /// How many devices each of these nodes has; blocks on the store for nodes that nobody asked for before.
    ///
    /// # Errors
    /// [`Refusal`] of the store.
    pub(super) fn counts(&self, hub: &Hub, nodes: &[(NodeId, u32)]) -> Result<Vec<usize>, Refusal> {
        let mut counts = Vec::with_capacity(nodes.len());
        for (node, number) in nodes {
            let known = self.lock().get(node).filter(|known| known.whole).map(|known| known.devices.len());
            if let Some(count) = known {
                counts.push(count);
                continue;
            }
            // Entered before it is read: what the feed tells meanwhile is not lost.
            self.lock().entry(node.clone()).or_default();
            let series = hub.telemetry().series(*number)?;
            let reported = hub.devices(*number)?;
            let mut nodes = self.lock();
            // Gone when items were missed meanwhile: then the next one reads again.
            let mut missed = Known::default();
            let known = nodes.get_mut(node).unwrap_or(&mut missed);
            known
                .devices
                .extend(series.into_iter().map(|series| series.device).filter(|device| !device.is_node()));
            known.devices.extend(reported.into_iter().map(|(device, _)| device));
            known.whole = true;
            counts.push(known.devices.len());
        }
        Ok(counts)
    }

    /// Takes an item of the feed.
    pub(super) fn take(&self, item: &FeedItem) {
        if let FeedItem::Event(stored) = item
            && let Some(report) = Report::of(&stored.event).filter(|_| !stored.by_hub)
        {
            let mut nodes = self.lock();
            match (report.state, nodes.get_mut(&stored.node)) {
                (_, None) => {}
                // It may have series all the same.
                (State::Removed, Some(_)) => drop(nodes.remove(&stored.node)),
                (_, Some(known)) => drop(known.devices.insert(report.device)),
            }
        }
        if let FeedItem::Samples { node, samples, .. } = item
            && let Some(Known { devices, .. }) = self.lock().get_mut(node)
        {
            for series in samples.series.iter().filter(|series| !series.d.is_node()) {
                if !devices.contains(&series.d) {
                    devices.insert(series.d.clone());
                }
            }
        }
    }

    /// Forgets everything: items were missed.
    pub(super) fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
