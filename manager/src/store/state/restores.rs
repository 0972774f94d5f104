//! Rows of restores from a backup: each, and which nodes came back after the last one. Decides nothing.

use fleet_schemas::cbor;
use redb::{ReadableDatabase, ReadableTable as _, TableDefinition};

use super::{Error, HUB, StateStore, decode, store};
use crate::core::{
    fleet::NodeNo,
    restored::{Homecoming, Restore, Restored},
};

// Number from 1 → CBOR `Restore`. One row a restore; never removed.
const RESTORES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("restores");
// Node → CBOR `Homecoming`, of the last restore. At most one row a node.
const HOME: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("restore_nodes");

/// Commands made after the backup had numbers that this store does not know of.
const COMMANDS_BETWEEN: u64 = 1 << 20;
const LAST_COMMAND: &str = "last_command";

/// Rows to write.
pub type Rows = Vec<(NodeNo, Homecoming)>;

pub(super) fn open(write: &redb::WriteTransaction) -> Result<(), Error> {
    write.open_table(RESTORES).map_err(store)?;
    write.open_table(HOME).map_err(store)?;
    Ok(())
}

/// Copies every table of this room.
pub(super) fn copy(copier: &mut crate::store::moment::Copier<'_>) -> Result<(), crate::store::moment::Cut> {
    copier.table(RESTORES)?;
    copier.table(HOME)
}

pub(super) fn apply(write: &redb::WriteTransaction, rows: &Rows) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut home = write.open_table(HOME).map_err(store)?;
    for (node, row) in rows {
        home.insert(node, cbor::encode(row).as_slice()).map_err(store)?;
    }
    Ok(())
}

impl StateStore {
    /// Notes that this file was restored; numbers the restore, and has commands numbered above all that were given
    /// before. To be done before a hub opens the file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn begin_restore(&self, restore: &Restore) -> Result<Restore, Error> {
        let write = self.begin_write()?;
        let restore = {
            let mut restores = write.open_table(RESTORES).map_err(store)?;
            let number = restores.last().map_err(store)?.map_or(1, |(number, _)| number.value() + 1);
            let restore = Restore { number, ..restore.clone() };
            restores.insert(number, cbor::encode(&restore).as_slice()).map_err(store)?;
            write.open_table(HOME).map_err(store)?.retain(|_, _| false).map_err(store)?;
            let mut hub = write.open_table(HUB).map_err(store)?;
            let last = hub.get(LAST_COMMAND).map_err(store)?.and_then(|row| row.value().try_into().ok());
            let next = last.map_or(0, u64::from_le_bytes).saturating_add(COMMANDS_BETWEEN);
            hub.insert(LAST_COMMAND, &next.to_le_bytes()[..]).map_err(store)?;
            restore
        };
        write.commit().map_err(store)?;
        Ok(restore)
    }

    /// The last restore, and who came back since; none when there was none.
    ///
    /// # Errors
    /// [`Error`].
    pub fn restored(&self) -> Result<Option<Restored>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let restores = read.open_table(RESTORES).map_err(store)?;
        let Some((_, row)) = restores.last().map_err(store)? else { return Ok(None) };
        let mut restored = Restored { restore: decode(row.value(), "a restore")?, ..Restored::default() };
        for row in read.open_table(HOME).map_err(store)?.iter().map_err(store)? {
            let (node, row) = row.map_err(store)?;
            restored.home.insert(node.value(), decode(row.value(), "a node's return")?);
        }
        Ok(Some(restored))
    }
}

#[cfg(test)]
mod tests {
    use fleet_schemas::StoreId;

    use super::*;
    use crate::store::{disk::Memory, state::Commit};

    #[test]
    fn the_last_restore_is_found_with_who_came_back() {
        let disk = Memory::default();
        let state = StateStore::open(&disk, StoreId([3; 16])).unwrap();
        assert_eq!(state.restored().unwrap(), None);
        let restore = Restore { at_ms: 9, backup_ms: 5, held: 2, ..Restore::default() };
        assert_eq!(state.begin_restore(&restore).unwrap().number, 1);
        let home = Homecoming { at_ms: 10, lost: 3, again: Vec::new() };
        let commit = Commit { home: vec![(7, home.clone())], ..Commit::default() };
        state.apply(&commit).unwrap();
        let found = state.restored().unwrap().unwrap();
        assert_eq!(found, Restored { restore: Restore { number: 1, ..restore }, home: [(7, home)].into() });
        assert_eq!(state.open_commands().unwrap().0, COMMANDS_BETWEEN);
        assert_eq!(state.begin_restore(&found.restore).unwrap().number, 2);
        assert!(state.restored().unwrap().unwrap().home.is_empty(), "they have to come back again");
    }
}
