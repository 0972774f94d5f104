//! A cursor: where a follower is in everything that was committed, as an opaque word.
//!
//! Owns the layout, which is frozen: base64url without padding of `1, store id (first 8 bytes), row u64, check u32,
//! into u16, event u64, check u32` (little-endian). Must not read a store.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fleet_schemas::StoreId;

use crate::store::{log::Place, telemetry::Followed};

const VERSION: u8 = 1;
const BYTES: usize = 35;

/// Everything up to here is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    store: [u8; 8],
    /// In the log of batches,
    pub samples: Place,
    /// and how many samples of the batch after that.
    pub into: u16,
    /// In the log of events.
    pub events: Place,
}

/// A text that is no cursor. Fits after "the query's after is not understood: ".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is none that this feed gave; `start` is the oldest that is held")]
pub struct CursorError;

impl Cursor {
    /// A cursor of a store.
    #[must_use]
    pub fn new(store: StoreId, samples: Place, events: Place) -> Self {
        let mut first = [0; 8];
        first.copy_from_slice(&store.0[..8]);
        Self { store: first, samples, into: 0, events }
    }

    /// Of the cursor after a batch: the one when only the first `known` of its samples are known.
    #[must_use]
    pub fn within(self, batch: &Followed, known: u16) -> Self {
        Self { samples: batch.before, into: known, ..self }
    }

    /// Whether it is of this store.
    #[must_use]
    pub fn is_of(&self, store: StoreId) -> bool {
        self.store == store.0[..8]
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, samples, into, events } = self;
        let mut bytes = [0; BYTES];
        bytes[0] = VERSION;
        bytes[1..9].copy_from_slice(store);
        bytes[9..17].copy_from_slice(&samples.seq.to_le_bytes());
        bytes[17..21].copy_from_slice(&samples.check.to_le_bytes());
        bytes[21..23].copy_from_slice(&into.to_le_bytes());
        bytes[23..31].copy_from_slice(&events.seq.to_le_bytes());
        bytes[31..].copy_from_slice(&events.check.to_le_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        // Decoded only when it can be one: the text is anybody's.
        if text.len() != (BYTES * 4).div_ceil(3) {
            return Err(CursorError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError)?;
        let read = || {
            let (version, rest) = bytes.split_first()?;
            let (store, rest) = rest.split_first_chunk()?;
            let (row, rest) = rest.split_first_chunk()?;
            let (row_check, rest) = rest.split_first_chunk()?;
            let (into, rest) = rest.split_first_chunk()?;
            let (event, rest) = rest.split_first_chunk()?;
            let place = |seq, check| Place { seq: u64::from_le_bytes(seq), check: u32::from_le_bytes(check) };
            (*version == VERSION).then_some(Self {
                store: *store,
                samples: place(*row, *row_check),
                into: u16::from_le_bytes(*into),
                events: place(*event, rest.try_into().ok()?),
            })
        };
        read().ok_or(CursorError)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_layout_is_frozen() {
        let cursor = Cursor {
            into: 0x0304,
            ..Cursor::new(StoreId([9; 16]), Place { seq: 1, check: 2 }, Place { seq: 5, check: 6 })
        };
        assert_eq!(cursor.to_string(), "AQkJCQkJCQkJAQAAAAAAAAACAAAABAMFAAAAAAAAAAYAAAA");
        assert!(cursor.is_of(StoreId([9; 16])) && !cursor.is_of(StoreId([8; 16])));
    }

    proptest! {
        #[test]
        fn cursors_round_trip(seqs in any::<[u64; 2]>(), checks in any::<[u32; 2]>(), into in any::<u16>()) {
            let [samples, events] = [0, 1].map(|at| Place { seq: seqs[at], check: checks[at] });
            let cursor = Cursor { into, ..Cursor::new(StoreId([7; 16]), samples, events) };
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn arbitrary_texts_never_panic(text in "[A-Za-z0-9_=+/ -]{0,60}", long in "[A-Za-z0-9_-]{47}") {
            let _ = text.parse::<Cursor>();
            let _ = long.parse::<Cursor>();
        }
    }
}
