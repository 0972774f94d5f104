//! Rows of the configuration: every revision of a layer that is kept, and what each node is to have. Decides nothing.

use std::collections::BTreeMap;

use fleet_schemas::cbor;
use redb::{ReadableDatabase, ReadableTable, TableDefinition};

use super::{Error, HUB, StateStore, decode, store};
use crate::core::{
    config::{Layer, REVISIONS, Revision, Rows, Settings, Wanted},
    fleet::NodeNo,
};

// Layer, or `schema` → the number of the revision that counts. One row a layer; never removed.
const LAYERS: TableDefinition<'_, &str, u64> = TableDefinition::new("config_layers");
// (layer, or `schema`; number from 1) → CBOR `Revision`. Appended; the oldest of a layer go above the limit.
const HISTORY: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("config_revisions");
// Node → CBOR `Wanted`. One row a node that ever had a setting, rewritten when its document changes.
const WANTED: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("config_wanted");

/// Key of the schema among the layers; no layer is called so.
const SCHEMA: &str = "schema";
/// Key of the epoch in the table of the hub's own rows.
const EPOCH: &str = "config_epoch";

fn key(layer: Option<&Layer>) -> String {
    layer.map_or_else(|| SCHEMA.to_owned(), ToString::to_string)
}

pub(super) fn open(write: &redb::WriteTransaction) -> Result<(), Error> {
    write.open_table(LAYERS).map_err(store)?;
    write.open_table(HISTORY).map_err(store)?;
    write.open_table(WANTED).map_err(store)?;
    Ok(())
}

/// Copies every table of this room.
pub(super) fn copy(copier: &mut crate::store::moment::Copier<'_>) -> Result<(), crate::store::moment::Cut> {
    copier.table(LAYERS)?;
    copier.table(HISTORY)?;
    copier.table(WANTED)
}

pub(super) fn apply(write: &redb::WriteTransaction, rows: &Rows, removed: &[NodeNo]) -> Result<(), Error> {
    if rows.is_empty() && removed.is_empty() {
        return Ok(());
    }
    let mut layers = write.open_table(LAYERS).map_err(store)?;
    let mut history = write.open_table(HISTORY).map_err(store)?;
    for (layer, revision) in &rows.revisions {
        let key = key(layer.as_ref());
        layers.insert(key.as_str(), revision.number).map_err(store)?;
        history.insert((key.as_str(), revision.number), cbor::encode(revision).as_slice()).map_err(store)?;
        let kept = revision.number.saturating_sub(REVISIONS - 1);
        history.retain_in((key.as_str(), 0)..(key.as_str(), kept), |_, _| false).map_err(store)?;
    }
    let mut wanted = write.open_table(WANTED).map_err(store)?;
    for (node, row) in &rows.wanted {
        wanted.insert(node, cbor::encode(row).as_slice()).map_err(store)?;
    }
    for node in removed {
        wanted.remove(node).map_err(store)?;
    }
    Ok(())
}

impl StateStore {
    /// The layers as they count, and what each node is to have.
    ///
    /// # Errors
    /// [`Error`].
    pub fn settings(&self) -> Result<(Settings, BTreeMap<NodeNo, Wanted>), Error> {
        let read = self.db.begin_read().map_err(store)?;
        let history = read.open_table(HISTORY).map_err(store)?;
        let (mut layers, mut schema) = (BTreeMap::new(), None);
        for row in read.open_table(LAYERS).map_err(store)?.iter().map_err(store)? {
            let (name, number) = row.map_err(store)?;
            let revision = history.get((name.value(), number.value())).map_err(store)?;
            let revision =
                revision.ok_or_else(|| Error::Damaged("a layer without its revision".to_owned()))?;
            let revision: Revision = decode(revision.value(), "a revision")?;
            if name.value() == SCHEMA {
                schema = Some(revision);
            } else {
                let layer =
                    name.value().parse::<Layer>().map_err(|error| Error::Damaged(error.to_string()))?;
                layers.insert(layer, revision);
            }
        }
        let mut wanted = BTreeMap::new();
        for row in read.open_table(WANTED).map_err(store)?.iter().map_err(store)? {
            let (node, row) = row.map_err(store)?;
            wanted.insert(node.value(), decode(row.value(), "a wanted configuration")?);
        }
        let epoch = read.open_table(HUB).map_err(store)?.get(EPOCH).map_err(store)?;
        let epoch = epoch.and_then(|row| row.value().try_into().ok()).map_or(0, u64::from_le_bytes);
        Ok((Settings::new(layers, schema, epoch), wanted))
    }

    /// The revisions of a layer that are kept, newest first; of the schema without one. Only those numbered below
    /// `before`, at most `limit`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn revisions(
        &self,
        layer: Option<&Layer>,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Revision>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let history = read.open_table(HISTORY).map_err(store)?;
        let key = key(layer);
        let rows =
            history.range((key.as_str(), 0)..(key.as_str(), before.unwrap_or(u64::MAX))).map_err(store)?;
        rows.rev().take(limit).map(|row| decode(row.map_err(store)?.1.value(), "a revision")).collect()
    }

    /// One revision of a layer, if it is kept; of the schema without a layer.
    ///
    /// # Errors
    /// [`Error`].
    pub fn revision(&self, layer: Option<&Layer>, number: u64) -> Result<Option<Revision>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let history = read.open_table(HISTORY).map_err(store)?;
        let row = history.get((key(layer).as_str(), number)).map_err(store)?;
        row.map(|row| decode(row.value(), "a revision")).transpose()
    }

    /// Has versions counted in a new epoch, because the file was restored from a backup: what is given from now on is
    /// newer than anything that was given before. To be done before the consumer opens the file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn raise_config_epoch(&self) -> Result<u64, Error> {
        let write = self.begin_write()?;
        let epoch = {
            let mut hub = write.open_table(HUB).map_err(store)?;
            let known = hub.get(EPOCH).map_err(store)?.and_then(|row| row.value().try_into().ok());
            let epoch = known.map_or(0, u64::from_le_bytes).saturating_add(1);
            hub.insert(EPOCH, &epoch.to_le_bytes()[..]).map_err(store)?;
            epoch
        };
        write.commit().map_err(store)?;
        Ok(epoch)
    }
}

#[cfg(test)]
mod tests {
    use fleet_schemas::{NodeId, StoreId, config::Version};
    use serde_json::json;

    use super::*;
    use crate::store::{disk::Memory, state::Commit};

    const ID: StoreId = StoreId([3; 16]);

    fn revision(number: u64) -> Revision {
        let doc = json!({"a": {"b": [1, -2, 0.5, null, true, "x"]}, "n": number});
        Revision { number, doc, at_ms: 7, by: "operator ann".to_owned(), returned_to: None }
    }

    #[test]
    fn what_is_written_is_found_again_and_old_revisions_go() {
        let disk = Memory::default();
        let layer = Layer::Site("Hall 3/a".to_owned());
        let node = Layer::Node(NodeId::parse("edge-1").unwrap());
        let wanted = Wanted { version: Version { epoch: 1, n: 4 }, hash: [9; 32], retry: 2 };
        {
            let state = StateStore::open(&disk, ID).unwrap();
            for number in 1..=REVISIONS + 3 {
                let mut revisions = vec![(Some(layer.clone()), revision(number))];
                if number == 2 {
                    revisions.push((None, revision(1)));
                    revisions.push((Some(node.clone()), revision(1)));
                }
                let config = Rows { revisions, wanted: vec![(7, wanted), (8, wanted)] };
                state.apply(&Commit { config, ..Commit::default() }).unwrap();
            }
            state.apply(&Commit { removed: vec![8], ..Commit::default() }).unwrap();
            assert_eq!(state.raise_config_epoch().unwrap(), 1);
        }
        let state = StateStore::open(&disk, ID).unwrap();
        let (settings, rows) = state.settings().unwrap();
        assert_eq!(rows, [(7, wanted)].into());
        assert_eq!(settings.epoch, 1);
        assert_eq!(settings.schema, Some(revision(1)));
        assert_eq!(settings.current(&layer), Some(&revision(REVISIONS + 3)));
        assert_eq!(settings.current(&node), Some(&revision(1)));
        let numbers = |before, limit| -> Vec<u64> {
            let found = state.revisions(Some(&layer), before, limit).unwrap();
            found.iter().map(|revision| revision.number).collect()
        };
        assert_eq!(numbers(None, 2), [REVISIONS + 3, REVISIONS + 2]);
        assert_eq!(numbers(Some(6), 9), [5, 4]);
        assert_eq!(numbers(None, 999).len() as u64, REVISIONS);
        assert_eq!(state.revision(Some(&layer), 3).unwrap(), None);
        assert_eq!(state.revision(Some(&layer), 4).unwrap(), Some(revision(4)));
    }
}
