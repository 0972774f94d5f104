//! Places in the two logs of the stores, batches of samples and events: what a follower goes on from.
//!
//! Both number their rows ascending, append at the end and remove from the front.

use fleet_schemas::batch::digest;

/// A place in a log: everything up to row `seq` is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Place {
    /// The row; 0 before the first.
    pub seq: u64,
    /// Of that row's first bytes, to tell this log from that of another life of the store; 0 when the row was gone
    /// already.
    pub check: u32,
}

/// Why a follower cannot go on from its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// Rows after it were removed.
    Removed {
        /// When the oldest of those that are left was received, Unix milliseconds, where there is one.
        since_ms: Option<i64>,
    },
    /// The row there is not the one it knew: the store was replaced, or set back to a backup.
    Foreign,
}

/// Bytes of a row that tell it from others: its time of receipt is among them.
const CHECKED: usize = 48;

impl Place {
    /// The place after a row.
    pub(super) fn after(seq: u64, row: &[u8]) -> Self {
        let [a, b, c, d, ..] = digest(&row[..row.len().min(CHECKED)]);
        Self { seq, check: u32::from_le_bytes([a, b, c, d]).max(1) }
    }

    /// Whether a log that has the rows `front..next`, and `known` at the place's seq, has what follows it.
    ///
    /// A row that is gone together with everything before it vouches for nothing, and neither does a place that was
    /// made when it was.
    pub(super) fn judge(self, front: u64, next: u64, known: Self, since_ms: Option<i64>) -> Result<(), Gone> {
        if self.seq >= next {
            Err(Gone::Foreign)
        } else if self.seq.saturating_add(1) < front {
            Err(Gone::Removed { since_ms })
        } else if known.check != self.check && known.check != 0 && self.check != 0 {
            Err(Gone::Foreign)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_good_in_its_own_log_while_what_follows_is_held() {
        let known = Place::after(7, b"seven");
        let judge = |place: Place, front, next, known| place.judge(front, next, known, Some(5));
        assert_eq!(judge(known, 1, 8, known), Ok(()));
        assert_eq!(judge(known, 8, 8, Place { seq: 7, check: 0 }), Ok(()), "the last row may be gone");
        assert_eq!(judge(known, 9, 12, known), Err(Gone::Removed { since_ms: Some(5) }));
        assert_eq!(judge(known, 1, 7, known), Err(Gone::Foreign), "it is ahead of the log");
        assert_eq!(judge(known, 1, 9, Place::after(7, b"other")), Err(Gone::Foreign));
        assert_eq!(judge(Place { seq: 0, check: 0 }, 1, 1, Place::default()), Ok(()));
    }
}
