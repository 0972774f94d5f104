//! The set of week files: opened together, written to one at a time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, RwLock},
};

use fleet_schemas::Lane;

use super::{
    Config, Error, read_lock,
    week::{FOLDER, FileId, View, WeekFile},
    write_lock,
};
use crate::store::disk::Disk;

pub(super) struct Weeks {
    files: RwLock<BTreeMap<FileId, Arc<WeekFile>>>,
    /// Damaged files that were set aside at opening, under their new names.
    pub aside: Vec<String>,
}

/// What the week files know of the inbox and the account.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// node → batches up to this inbox seq are sealed.
    pub cursors: HashMap<u32, u64>,
    /// The highest of them.
    pub floor: u64,
    /// Samples by (node, lane).
    pub stored: HashMap<(u32, Lane), u64>,
}

impl Weeks {
    /// Opens every week file; damaged ones are set aside.
    pub(super) fn open(disk: &dyn Disk, config: &Config) -> Result<Self, Error> {
        let ids: Vec<_> = disk.list(FOLDER)?.iter().filter_map(|name| FileId::parse(name)).collect();
        let newest = ids.iter().max().copied();
        let mut files = BTreeMap::new();
        let mut aside = Vec::new();
        for id in ids {
            let current = Some(id) == newest;
            match WeekFile::open(disk, id, current, config.week_cache_bytes, config.store_id) {
                Ok(file) => {
                    files.insert(id, Arc::new(file));
                }
                Err(Error::Disk(error)) if error.is_corrupt() => aside.push(disk.set_aside(&id.name())?),
                Err(error) => return Err(error),
            }
        }
        Ok(Self { files: RwLock::new(files), aside })
    }

    pub(super) fn all(&self) -> Vec<Arc<WeekFile>> {
        read_lock(&self.files).values().cloned().collect()
    }

    /// A snapshot of every file, oldest first.
    pub(super) fn views(&self) -> Result<Vec<View>, Error> {
        read_lock(&self.files).values().map(|file| file.view()).collect()
    }

    /// The file for batches received at an instant: the last part of that week, or a further one when it is
    /// full or was opened for reading only.
    pub(super) fn for_writing(
        &self,
        disk: &dyn Disk,
        config: &Config,
        recv_ms: i64,
    ) -> Result<Arc<WeekFile>, Error> {
        let mut id = FileId::of(recv_ms);
        let last = read_lock(&self.files).values().rev().find(|file| file.id.same_week(id)).cloned();
        if let Some(last) = last {
            if last.writable().is_some() && disk.size(&last.id.name()) < config.part_bytes {
                return Ok(last);
            }
            id.part = last.id.part.saturating_add(1);
        }
        let file = Arc::new(WeekFile::open(disk, id, true, config.week_cache_bytes, config.store_id)?);
        write_lock(&self.files).insert(id, Arc::clone(&file));
        Ok(file)
    }

    pub(super) fn forget(&self, id: FileId) {
        write_lock(&self.files).remove(&id);
    }

    /// Reads what all files know.
    pub(super) fn known(&self) -> Result<Known, Error> {
        let mut known = Known::default();
        for view in self.views()? {
            for (node, row) in view.nodes()? {
                let cursor = known.cursors.entry(node).or_default();
                *cursor = row.cursor.max(*cursor);
                known.floor = known.floor.max(row.cursor);
                for lane in [Lane::Telemetry, Lane::Backfill] {
                    *known.stored.entry((node, lane)).or_default() += row.stored(lane);
                }
            }
        }
        known.stored.retain(|_, count| *count > 0);
        Ok(known)
    }
}
