//! The account of one (node, lane) as this store keeps it: changes, and the bytes of its row. `stored`, `expired` and
//! `quarantined` follow from what the store does; the rest is booked by the ledger core.

use crate::core::ledger::Counters;

/// What the ledger core books itself, to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Booking {
    /// See [`Counters::lost`].
    pub lost: u64,
    /// See [`Counters::written_off`].
    pub written_off: u64,
    /// See [`Counters::duplicates`].
    pub duplicates: u64,
}

/// Bytes of [`Counters`] as a row: six u64, little-endian, in the order of the fields.
pub(super) const COUNTERS_BYTES: usize = 48;

/// A change of [`Counters`], in the order of its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Delta(pub [i64; 6]);

impl Delta {
    pub(super) fn stored(count: u64) -> Self {
        Self([count.cast_signed(), 0, 0, 0, 0, 0])
    }

    pub(super) fn expired(count: u64) -> Self {
        Self([-count.cast_signed(), count.cast_signed(), 0, 0, 0, 0])
    }

    pub(super) fn quarantined(count: u64) -> Self {
        Self([0, 0, count.cast_signed(), 0, 0, 0])
    }

    pub(super) fn rotten(count: u64) -> Self {
        Self([-count.cast_signed(), 0, count.cast_signed(), 0, 0, 0])
    }

    pub(super) fn missing(count: u64) -> Self {
        Self([-count.cast_signed(), 0, 0, count.cast_signed(), 0, 0])
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (number, other) in self.0.iter_mut().zip(other.0) {
            *number = number.saturating_add(other);
        }
    }
}

impl From<Booking> for Delta {
    fn from(booking: Booking) -> Self {
        let Booking { lost, written_off, duplicates } = booking;
        Self([0, 0, 0, lost.cast_signed(), written_off.cast_signed(), duplicates.cast_signed()])
    }
}

pub(super) fn apply(counters: &mut Counters, delta: &Delta) {
    let Counters { stored, expired, quarantined, lost, written_off, duplicates } = counters;
    let fields = [stored, expired, quarantined, lost, written_off, duplicates];
    for (field, change) in fields.into_iter().zip(delta.0) {
        *field = field.saturating_add_signed(change);
    }
}

pub(super) fn to_bytes(counters: Counters) -> [u8; COUNTERS_BYTES] {
    let Counters { stored, expired, quarantined, lost, written_off, duplicates } = counters;
    let mut bytes = [0; COUNTERS_BYTES];
    let fields = [stored, expired, quarantined, lost, written_off, duplicates];
    for (slot, field) in bytes.chunks_exact_mut(8).zip(fields) {
        slot.copy_from_slice(&field.to_le_bytes());
    }
    bytes
}

pub(super) fn from_bytes(bytes: &[u8]) -> Option<Counters> {
    let (fields, rest) = bytes.as_chunks::<8>();
    let [stored, expired, quarantined, lost, written_off, duplicates] =
        *<&[[u8; 8]; 6]>::try_from(fields).ok().filter(|_| rest.is_empty())?;
    let number = u64::from_le_bytes;
    Some(Counters {
        stored: number(stored),
        expired: number(expired),
        quarantined: number(quarantined),
        lost: number(lost),
        written_off: number(written_off),
        duplicates: number(duplicates),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_round_trip_and_expiry_moves_stored() {
        let mut counters = Counters { stored: 5, duplicates: 9, ..Counters::default() };
        apply(&mut counters, &Delta::expired(3));
        apply(&mut counters, &Booking { lost: 2, ..Booking::default() }.into());
        let expected = Counters { stored: 2, expired: 3, lost: 2, duplicates: 9, ..Counters::default() };
        assert_eq!(counters, expected);
        assert_eq!(from_bytes(&to_bytes(counters)), Some(expected));
        assert_eq!(from_bytes(&[0; 47]), None);
    }
}
