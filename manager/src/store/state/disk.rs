//! What the hub remembers of its disk: one row beside the hub's others.

use fleet_schemas::cbor;
use redb::ReadableDatabase as _;

use super::{Error, HUB, StateStore, store};
use crate::core::disk::History;

// CBOR `History`, rewritten once an hour: at most 14 days of points, 20 kB.
const DISK: &str = "disk";

impl StateStore {
    /// What was remembered; nothing of a row that does not read, which is derived anyway.
    ///
    /// # Errors
    /// [`Error`].
    pub fn disk_history(&self) -> Result<History, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let table = read.open_table(HUB).map_err(store)?;
        let row = table.get(DISK).map_err(store)?;
        Ok(row.and_then(|row| ciborium::from_reader(row.value()).ok()).unwrap_or_default())
    }

    /// Remembers it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_disk_history(&self, history: &History) -> Result<(), Error> {
        let write = self.begin_write()?;
        write.open_table(HUB).map_err(store)?.insert(DISK, &cbor::encode(history)[..]).map_err(store)?;
        write.commit().map_err(store)
    }
}
