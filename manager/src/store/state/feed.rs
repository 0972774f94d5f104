//! The feed's side of the events: page by page in the order of their commits, from a place in their log.

use redb::{ReadableDatabase as _, ReadableTable as _};

use super::{EVENTS, Error, EventRow, HUB, StateStore, decode, store};
use crate::store::log::{Gone, Place};

/// Events of a page, at most,
const PAGE: usize = 64;
/// and their bytes, unless the first alone has more.
const PAGE_BYTES: usize = 256 * 1024;

/// Some events in the order of their commits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EventPage {
    /// With the place after each; those that do not read any more are left out.
    pub events: Vec<(Place, EventRow)>,
    /// The place after the last.
    pub after: Place,
    /// Whether that was the last there is.
    pub end: bool,
}

impl StateStore {
    /// The place after every event that is committed.
    ///
    /// # Errors
    /// [`Error`].
    pub fn events_end(&self) -> Result<Place, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let last = next_event(&read)?.saturating_sub(1);
        place(&read.open_table(EVENTS).map_err(store)?, last)
    }

    /// The place before every event that is held.
    ///
    /// # Errors
    /// [`Error`].
    pub fn events_start(&self) -> Result<Place, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let next = next_event(&read)?;
        let events = read.open_table(EVENTS).map_err(store)?;
        let front = events.first().map_err(store)?.map_or(next, |(number, _)| number.value());
        Ok(Place { seq: front.saturating_sub(1), check: 0 })
    }

    /// The events after a place.
    ///
    /// # Errors
    /// [`Error`].
    pub fn events_page(&self, after: Place) -> Result<Result<EventPage, Gone>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let events = read.open_table(EVENTS).map_err(store)?;
        let next = next_event(&read)?;
        let (mut front, mut since_ms) = (next, None);
        if let Some((number, row)) = events.first().map_err(store)? {
            front = number.value();
            since_ms = decode(row.value(), "an event").ok().map(|row: EventRow| row.recv_ms);
        }
        if let Err(gone) = after.judge(front, next, place(&events, after.seq)?, since_ms) {
            return Ok(Err(gone));
        }
        let mut page = EventPage { after, end: true, ..EventPage::default() };
        let mut bytes = 0;
        for row in events.range(after.seq + 1..).map_err(store)? {
            if page.events.len() == PAGE || bytes >= PAGE_BYTES {
                page.end = false;
                break;
            }
            let (number, row) = row.map_err(store)?;
            page.after = Place::after(number.value(), row.value());
            bytes += row.value().len();
            match decode(row.value(), "an event") {
                Ok(event) => page.events.push((page.after, event)),
                Err(error) => tracing::warn!(%error, number = number.value(), "the feed leaves out an event"),
            }
        }
        Ok(Ok(page))
    }
}

fn next_event(read: &redb::ReadTransaction) -> Result<u64, Error> {
    let next = read.open_table(HUB).map_err(store)?.get("next_event").map_err(store)?;
    Ok(next.and_then(|row| row.value().try_into().ok()).map_or(1, u64::from_le_bytes))
}

fn place(events: &redb::ReadOnlyTable<u64, &'static [u8]>, number: u64) -> Result<Place, Error> {
    let row = events.get(number).map_err(store)?;
    Ok(row.map_or(Place { seq: number, check: 0 }, |row| Place::after(number, row.value())))
}
