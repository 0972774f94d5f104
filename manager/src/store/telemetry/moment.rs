//! The store at one moment, to be copied, and what a copy lacks when it is opened again.
//!
//! Everything is looked at between two commits of the inbox, so that no week file has what the inbox has not.

use std::sync::Arc;

use fleet_schemas::Lane;
use redb::ReadableDatabase as _;

use super::{Config, Error, InboxWrite, TelemetryStore, inbox, rollup, week};
use crate::store::{
    disk::{Disk, DiskError, Open},
    moment::{Copier, Cut, Holds, Moment, Still},
    state,
};

pub(in crate::store) fn copy_inbox(copier: &mut Copier<'_>) -> Result<(), Cut> {
    inbox::copy(copier)
}

pub(in crate::store) fn copy_week(copier: &mut Copier<'_>) -> Result<(), Cut> {
    week::copy(copier)
}

pub(in crate::store) fn copy_rollups(copier: &mut Copier<'_>) -> Result<(), Cut> {
    rollup::copy(copier)
}

pub(in crate::store) fn week_content(
    read: &redb::ReadTransaction,
    show: &mut dyn FnMut(&[u8]),
) -> Result<(), redb::Error> {
    week::content(read, show)
}

/// Samples that a restored store says it has and that are in no file of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The node's number.
    pub node: u32,
    /// The lane.
    pub lane: Lane,
    /// How many.
    pub samples: u64,
}

impl TelemetryStore {
    /// Both stores at one moment: the state as it is before or after the group that the consumer is writing, as a crash
    /// would leave it. Waits for the transaction under way; nobody waits for what is done with it later, but the files
    /// grow while it is held.
    ///
    /// # Errors
    /// [`Error`] of this store; the state's own as it says it.
    pub fn moment(&self, state: &state::StateStore) -> Result<Result<Moment, state::Error>, Error> {
        let opened = self.opened()?;
        let _writer = self.turn();
        // The inbox stands still meanwhile, so the state is at most one group ahead of it, as a crash would leave them.
        let inbox = self.note(opened.inbox.db.begin_read().map_err(Error::from))?;
        let state = match state.still() {
            Ok(state) => state,
            Err(error) => return Ok(Err(error)),
        };
        let mut files =
            vec![state, Still::new(inbox::NAME.to_owned(), Holds::Inbox, inbox, Arc::clone(&opened))];
        for view in opened.weeks.views()? {
            let (name, read, file) = view.into_parts();
            files.push(Still::new(name, Holds::Week, read, file));
        }
        for (name, view) in opened.rollups.names().into_iter().zip(opened.rollups.views()?) {
            let (read, file) = view.into_parts();
            files.push(Still::new(name, Holds::Rollups, read, file));
        }
        Ok(Ok(Moment { files }))
    }

    /// Moves what is counted as stored and is in no file (of weeks that a backup left out) to what is lost, in one
    /// transaction. Reads everything. Gives what it moved.
    ///
    /// # Errors
    /// [`Error`]: nothing was moved.
    pub fn book_missing(&self) -> Result<Vec<Missing>, Error> {
        let mut missing = Vec::new();
        for (node, lane, counters) in self.counters_all()? {
            let found = self.recount(node, lane)?;
            let samples = counters.stored.saturating_sub(found);
            if samples > 0 {
                missing.push(Missing { node, lane, samples });
            }
        }
        if !missing.is_empty() {
            let mut write = InboxWrite::new(self, self.opened()?, self.turn());
            for Missing { node, lane, samples } in &missing {
                write.miss(*node, *lane, *samples);
            }
            write.commit()?;
        }
        Ok(missing)
    }
}

/// Every file of the store that is there, with how it is opened.
pub(in crate::store) fn formats(disk: &dyn Disk) -> Result<Vec<(String, Open)>, DiskError> {
    let Config { inbox_cache_bytes, week_cache_bytes, .. } = Config::default();
    let mut files = vec![(inbox::NAME.to_owned(), inbox::how(inbox_cache_bytes))];
    for name in disk.list(week::FOLDER)? {
        if week::FileId::parse(&name).is_some() {
            files.push((name, week::how(week_cache_bytes)));
        } else if rollup::parse(&name).is_some() {
            files.push((name, rollup::how(week_cache_bytes)));
        }
    }
    Ok(files)
}
