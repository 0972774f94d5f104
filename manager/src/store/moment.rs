//! All files of the stores as they were at one moment, to be copied while the hub goes on.
//!
//! Owns how a redb file is copied: row by row out of a read transaction, so that nobody waits for it and the copy has
//! no holes. A table that this build does not know makes the copy fail: a backup without it would be none. Must not
//! know what the copies are for.

use std::{any::Any, collections::BTreeMap, fs, io, path::Path};

use redb::{
    Database, Key, ReadTransaction, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
    TableDefinition, TableError, TableHandle as _, Value, WriteTransaction,
};
use sha2::{Digest as _, Sha256};

use super::disk::META;

/// Rows between two looks at whether anybody still wants the copy.
const LOOK_ROWS: u64 = 4_096;
/// redb's page cache while a copy is made or checked, bytes.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// Rows by table.
pub type Rows = BTreeMap<String, u64>;

/// Why a copy is not made, or not good.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// redb or the disk.
    #[error("{name}: {source}; check the disk and its free space")]
    Redb {
        /// The file.
        name: String,
        /// What redb said.
        #[source]
        source: Box<redb::Error>,
    },
    /// The filesystem.
    #[error("{name}: {source}; check permissions and free space")]
    Io {
        /// The file.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A newer build has been at work.
    #[error("{name} has a table {table:?} that this build does not know; use the build that wrote it")]
    Unknown {
        /// The file.
        name: String,
        /// The table.
        table: String,
    },
    /// Its pages contradict each other.
    #[error("{name} is damaged: {why}")]
    Damaged {
        /// The file.
        name: String,
        /// Why.
        why: String,
    },
    /// Nobody wants it any more.
    #[error("{name}: the copy was given up, because the hub stops or nobody takes it any more")]
    GivenUp {
        /// The file.
        name: String,
    },
}

/// What a file holds: which tables it may have, and whether it is left out of a small backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// `state.redb`.
    State,
    /// The inbox.
    Inbox,
    /// Samples of one week.
    Week,
    /// Five-minute rollups of a quarter.
    Rollups,
}

/// One file at that moment.
pub struct Still {
    name: String,
    holds: Holds,
    read: ReadTransaction,
    // Whatever keeps the file open.
    _kept: Box<dyn Any + Send + Sync>,
}

/// All files at that moment, in the order in which they are to be restored.
pub struct Moment {
    /// The files.
    pub files: Vec<Still>,
}

/// Copies tables of one file.
pub(in crate::store) struct Copier<'a> {
    from: &'a ReadTransaction,
    to: &'a WriteTransaction,
    go_on: &'a dyn Fn() -> bool,
    rows: Rows,
}

/// What keeps a table from being copied.
pub(in crate::store) enum Cut {
    Redb(redb::Error),
    GivenUp,
}

impl<E: Into<redb::Error>> From<E> for Cut {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

impl Copier<'_> {
    /// Copies a table, if the file has it.
    pub(in crate::store) fn table<K: Key + 'static, V: Value + 'static>(
        &mut self,
        table: TableDefinition<'_, K, V>,
    ) -> Result<(), Cut> {
        let from = match self.from.open_table(table) {
            Ok(from) => from,
            // A file of an older build has fewer.
            Err(TableError::TableDoesNotExist(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut to = self.to.open_table(table)?;
        for (nth, row) in (0_u64..).zip(from.iter()?) {
            if nth % LOOK_ROWS == 0 && !(self.go_on)() {
                return Err(Cut::GivenUp);
            }
            let (key, value) = row?;
            to.insert(key.value(), value.value())?;
        }
        self.rows.insert(table.name().to_owned(), from.len()?);
        Ok(())
    }
}

impl Holds {
    fn tables(self, copier: &mut Copier<'_>) -> Result<(), Cut> {
        copier.table(META)?;
        match self {
            Self::State => super::state::copy(copier),
            Self::Inbox => super::telemetry::copy_inbox(copier),
            Self::Week => super::telemetry::copy_week(copier),
            Self::Rollups => super::telemetry::copy_rollups(copier),
        }
    }
}

impl Still {
    pub(in crate::store) fn new(
        name: String,
        holds: Holds,
        read: ReadTransaction,
        kept: impl Any + Send + Sync,
    ) -> Self {
        Self { name, holds, read, _kept: Box::new(kept) }
    }

    /// Its name in the data folder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it holds.
    #[must_use]
    pub fn holds(&self) -> Holds {
        self.holds
    }

    /// Copies it to a new file, durable when this returns; gives the rows by table. `go_on` is asked now and then.
    ///
    /// # Errors
    /// [`CopyError`]; what there is at `to` is to be removed.
    pub fn copy(&self, to: &Path, go_on: &dyn Fn() -> bool) -> Result<Rows, CopyError> {
        let name = || self.name.clone();
        let wrong = |source: redb::Error| CopyError::Redb { name: name(), source: Box::new(source) };
        let database =
            Database::builder().set_cache_size(CACHE_BYTES).create(to).map_err(|e| wrong(e.into()))?;
        let write = database.begin_write().map_err(|e| wrong(e.into()))?;
        let mut copier = Copier { from: &self.read, to: &write, go_on, rows: Rows::new() };
        self.holds.tables(&mut copier).map_err(|cut| match cut {
            Cut::Redb(error) => wrong(error),
            Cut::GivenUp => CopyError::GivenUp { name: name() },
        })?;
        let rows = copier.rows;
        for table in self.read.list_tables().map_err(|e| wrong(e.into()))? {
            if !rows.contains_key(table.name()) {
                return Err(CopyError::Unknown { name: name(), table: table.name().to_owned() });
            }
        }
        write.commit().map_err(|e| wrong(e.into()))?;
        drop(database);
        let sync = || fs::File::open(to)?.sync_all();
        sync().map_err(|source| CopyError::Io { name: name(), source })?;
        Ok(rows)
    }

    /// What the file holds in one word: it changes whenever the samples in a week file do, so that a copy of before need
    /// not be made again. None for files that change all the time.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn tag(&self) -> Result<Option<String>, CopyError> {
        if self.holds != Holds::Week {
            return Ok(None);
        }
        let wrong =
            |source: redb::Error| CopyError::Redb { name: self.name.clone(), source: Box::new(source) };
        let mut digest = Sha256::new();
        digest.update(self.name.as_bytes());
        super::telemetry::week_content(&self.read, &mut |bytes| digest.update(bytes)).map_err(wrong)?;
        Ok(Some(digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()))
    }
}

/// Opens a copied file, checks all its pages, and counts the rows by table. The file may be changed by that, as far as
/// redb's own bookkeeping goes.
///
/// # Errors
/// [`CopyError::Damaged`] names the file.
pub fn check(path: &Path, name: &str) -> Result<Rows, CopyError> {
    let damaged = |why: String| CopyError::Damaged { name: name.to_owned(), why };
    let mut database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .open(path)
        .map_err(|error| damaged(error.to_string()))?;
    match database.check_integrity() {
        Ok(true) => {}
        Ok(false) => return Err(damaged("its pages needed a repair".to_owned())),
        Err(error) => return Err(damaged(error.to_string())),
    }
    let count = || -> Result<Rows, redb::Error> {
        let read = database.begin_read()?;
        let mut rows = Rows::new();
        for table in read.list_tables()? {
            let name = table.name().to_owned();
            rows.insert(name, read.open_untyped_table(table)?.len()?);
        }
        Ok(rows)
    };
    count().map_err(|error| damaged(error.to_string()))
}

/// Gives a file that was restored a new identity, so that nobody takes it for the store it is a copy of.
///
/// # Errors
/// [`CopyError`].
pub fn rename_store(path: &Path, name: &str, id: [u8; 16]) -> Result<(), CopyError> {
    let wrong = |source: redb::Error| CopyError::Redb { name: name.to_owned(), source: Box::new(source) };
    let change = || -> Result<(), redb::Error> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).open(path)?;
        let write = database.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            if meta.get("store_id")?.is_some() {
                meta.insert("store_id", &id[..])?;
            }
        }
        super::state::rename_store(&write, id)?;
        Ok(write.commit()?)
    };
    change().map_err(wrong)
}

impl std::fmt::Debug for Still {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Still").field("name", &self.name).field("holds", &self.holds).finish_non_exhaustive()
    }
}
