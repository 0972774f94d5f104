//! The feed: everything that was committed, samples of both lanes and events, once and in order, from a cursor on.
//!
//! Two logs are read as one: batches of the inbox and events of the state file, each in the order of its commits, put
//! together by the time of receipt. A cursor names a place in both, so that it does not matter how they were put
//! together before. Reads pages and holds nothing between them; knows no connection and no text but the cursor's.
//!
//! Records of a node that was removed are passed over, as everywhere. Late data comes when it arrives, marked `late`.

mod cursor;
pub mod json;
#[cfg(test)]
mod tests;

use std::iter::Peekable;

use fleet_schemas::StoreId;

pub use cursor::{Cursor, CursorError};

use crate::{
    consume,
    core::fleet::NodeNo,
    store::{
        log::{Gone, Place},
        state::{EventPage, EventRow, StateStore},
        telemetry::{Followed, LogPage, TelemetryStore},
    },
};

/// Samples of one page, about: bounds what a follower holds in memory (a megabyte or two as JSON).
const PAGE_SAMPLES: u64 = 10_000;

/// Something that was committed.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A batch of samples.
    Samples {
        /// The batch.
        batch: Box<Followed>,
        /// As many of its samples, in the order of [`json::samples`], are known already.
        known: u16,
    },
    /// An event with its number.
    Event(u64, Box<EventRow>),
}

/// Some of what was committed, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// Each with the cursor after it.
    pub items: Vec<(Cursor, Item)>,
    /// The cursor after all of it, also of what was not wanted.
    pub after: Cursor,
    /// Whether there was no more when it was read.
    pub end: bool,
}

/// The stores that a feed reads, for a moment: don't keep it.
pub struct Logs<'a> {
    /// Batches.
    pub telemetry: &'a TelemetryStore,
    /// Events.
    pub state: StateStore,
}

impl Logs<'_> {
    /// Which store.
    #[must_use]
    pub fn store_id(&self) -> StoreId {
        self.state.store_id()
    }

    /// The cursor after everything that is committed now.
    ///
    /// # Errors
    /// [`consume::Error`].
    pub fn end(&self) -> Result<Cursor, consume::Error> {
        // In the order in which they are committed: what comes between is told as well.
        let (events, samples) = (self.state.events_end()?, self.telemetry.log_end()?);
        Ok(Cursor::new(self.store_id(), samples, events))
    }

    /// The cursor before everything that is held.
    ///
    /// # Errors
    /// [`consume::Error`].
    pub fn start(&self) -> Result<Cursor, consume::Error> {
        let (events, samples) = (self.state.events_start()?, self.telemetry.log_start()?);
        Ok(Cursor::new(self.store_id(), samples, events))
    }

    /// What follows a cursor, of the nodes that are wanted.
    ///
    /// # Errors
    /// [`consume::Error`]; the outer one of a store, the inner one of the cursor.
    pub fn page(
        &self,
        at: Cursor,
        wanted: impl Fn(NodeNo) -> bool,
    ) -> Result<Result<Page, Gone>, consume::Error> {
        self.page_of(at, &wanted, &wanted)
    }

    /// What follows a cursor: samples of some nodes, events of others.
    ///
    /// # Errors
    /// As of [`Logs::page`].
    pub fn page_of(
        &self,
        at: Cursor,
        samples: impl Fn(NodeNo) -> bool,
        events: impl Fn(NodeNo) -> bool,
    ) -> Result<Result<Page, Gone>, consume::Error> {
        if !at.is_of(self.store_id()) {
            return Ok(Err(Gone::Foreign));
        }
        let told = match self.state.events_page(at.events)? {
            Ok(told) => told,
            Err(gone) => return Ok(Err(gone)),
        };
        let batches = match self.telemetry.log_page(at.samples, PAGE_SAMPLES, samples)? {
            Ok(batches) => batches,
            Err(gone) => return Ok(Err(gone)),
        };
        Ok(Ok(merge(at, told, batches, events)))
    }
}

/// Puts both logs together by the time of receipt. Where one of them was not read to its end, what the other has
/// beyond waits for the next page.
fn merge(mut at: Cursor, events: EventPage, batches: LogPage, wanted: impl Fn(NodeNo) -> bool) -> Page {
    let (ends, afters) = ((events.end, batches.end), (events.after, batches.after));
    let mut events = events.events.into_iter().peekable();
    let mut batches = batches.batches.into_iter().peekable();
    let mut items = Vec::new();
    while let Some(next) = next(&mut events, &mut batches, ends) {
        match next {
            Next::Event(place, row) => {
                at.events = place;
                if wanted(row.node) {
                    items.push((at, Item::Event(place.seq, Box::new(row))));
                }
            }
            Next::Batch(batch) => {
                // Known in part only when it is the very next row.
                let known = if batch.before.seq == at.samples.seq { at.into } else { 0 };
                (at.samples, at.into) = (batch.after, 0);
                items.push((at, Item::Samples { batch: Box::new(batch), known }));
            }
        }
    }
    let (no_event, no_batch) = (events.peek().is_none(), batches.peek().is_none());
    if no_event {
        at.events = afters.0;
    }
    if no_batch && afters.1.seq != at.samples.seq {
        (at.samples, at.into) = (afters.1, 0);
    }
    Page { items, after: at, end: no_event && no_batch && ends == (true, true) }
}

enum Next {
    Event(Place, EventRow),
    Batch(Followed),
}

fn next(
    events: &mut Peekable<impl Iterator<Item = (Place, EventRow)>>,
    batches: &mut Peekable<impl Iterator<Item = Followed>>,
    (events_end, batches_end): (bool, bool),
) -> Option<Next> {
    let event_first = match (events.peek(), batches.peek()) {
        // What is committed together: the state file is first.
        (Some((_, event)), Some(batch)) => event.recv_ms <= batch.recv_ms,
        (Some(_), None) => batches_end,
        (None, Some(_)) => !events_end,
        (None, None) => return None,
    };
    if event_first {
        events.next().map(|(place, row)| Next::Event(place, row))
    } else {
        batches.next().map(Next::Batch)
    }
}
