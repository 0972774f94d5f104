//! What Home Assistant was told, so that only changes are said, and what is gone is taken back.

use std::collections::{BTreeMap, HashMap};

use fleet_broker::{PublishError, Publisher};
use fleet_schemas::{
    NodeId,
    batch::{Digest, digest},
};

use super::{
    discovery::{self, Called},
    latest::Table,
};
use crate::core::fleet::Record;

/// Announcements.
pub(super) struct Home {
    prefix: String,
    /// Topics of each node, and what was said there.
    told: HashMap<NodeId, BTreeMap<String, Digest>>,
}

impl Home {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), told: HashMap::new() }
    }

    /// Says what changed of a node.
    ///
    /// # Errors
    /// [`PublishError`]: what is left is said by the next call.
    pub(super) fn announce(
        &mut self,
        record: &Record,
        table: &Table,
        publisher: &Publisher,
    ) -> Result<(), PublishError> {
        let called = Called {
            id: &record.id,
            name: record.display_name(),
            kind: &record.kind,
            agent: &record.versions.agent,
            site: record.site.as_deref(),
        };
        let messages = discovery::messages(&self.prefix, &called, table);
        let told = self.told.entry(record.id.clone()).or_default();
        let gone: Vec<_> =
            told.keys().filter(|topic| !messages.iter().any(|(new, _)| new == *topic)).cloned().collect();
        for topic in gone {
            publisher.announce(&topic, &[], true)?;
            told.remove(&topic);
        }
        for (topic, payload) in messages {
            let digest = digest(&payload);
            if told.get(&topic) != Some(&digest) {
                publisher.announce(&topic, &payload, true)?;
                told.insert(topic, digest);
            }
        }
        Ok(())
    }

    /// Takes back what was said of a node that is gone.
    ///
    /// # Errors
    /// [`PublishError`]: call it again.
    pub(super) fn forget(&mut self, node: &NodeId, publisher: &Publisher) -> Result<(), PublishError> {
        if let Some(told) = self.told.get_mut(node) {
            while let Some(topic) = told.keys().next().cloned() {
                publisher.announce(&topic, &[], true)?;
                told.remove(&topic);
            }
            self.told.remove(node);
        }
        Ok(())
    }

    /// Everything is to be said again.
    pub(super) fn again(&mut self) {
        for told in self.told.values_mut() {
            told.values_mut().for_each(|digest| *digest = Digest::default());
        }
    }
}
