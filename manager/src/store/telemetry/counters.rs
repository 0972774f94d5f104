//! The account of one (node, lane) as this store keeps it, in records.

/// Terms of the ledger that the hub books. `stored`, `expired` and `quarantined` follow from what the store
/// does; the rest is booked by the ledger core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Samples in the inbox and in the week files.
    pub stored: u64,
    /// Samples that retention removed.
    pub expired: u64,
    /// Records of batches whose body could not be read.
    pub quarantined: u64,
    /// Records that the edge declared lost, or that the hub booked lost.
    pub lost: u64,
    /// Records given up with a node that was removed or replaced.
    pub written_off: u64,
    /// Records received again after they had been stored; no term of the account.
    pub duplicates: u64,
}

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

impl Counters {
    pub(super) fn apply(&mut self, delta: &Delta) {
        let Self { stored, expired, quarantined, lost, written_off, duplicates } = self;
        let fields = [stored, expired, quarantined, lost, written_off, duplicates];
        for (field, change) in fields.into_iter().zip(delta.0) {
            *field = field.saturating_add_signed(change);
        }
    }

    pub(super) fn to_bytes(self) -> [u8; COUNTERS_BYTES] {
        let Self { stored, expired, quarantined, lost, written_off, duplicates } = self;
        let mut bytes = [0; COUNTERS_BYTES];
        let fields = [stored, expired, quarantined, lost, written_off, duplicates];
        for (slot, field) in bytes.chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (fields, rest) = bytes.as_chunks::<8>();
        let [stored, expired, quarantined, lost, written_off, duplicates] =
            *<&[[u8; 8]; 6]>::try_from(fields).ok().filter(|_| rest.is_empty())?;
        let number = u64::from_le_bytes;
        Some(Self {
            stored: number(stored),
            expired: number(expired),
            quarantined: number(quarantined),
            lost: number(lost),
            written_off: number(written_off),
            duplicates: number(duplicates),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_round_trip_and_expiry_moves_stored() {
        let mut counters = Counters { stored: 5, duplicates: 9, ..Counters::default() };
        counters.apply(&Delta::expired(3));
        counters.apply(&Booking { lost: 2, ..Booking::default() }.into());
        let expected = Counters { stored: 2, expired: 3, lost: 2, duplicates: 9, ..Counters::default() };
        assert_eq!(counters, expected);
        assert_eq!(Counters::from_bytes(&counters.to_bytes()), Some(expected));
        assert_eq!(Counters::from_bytes(&[0; 47]), None);
    }
}
