//! The digests of a stream's recent batches, packed: there is a window for each stream that nodes had in the last 30 days,
//! a new one at each start of an agent.

use fleet_schemas::{batch::Digest, limits};
use serde::{Deserialize, Serialize};

/// First number, last number and digest of a batch.
type Entry = (u64, u64, Digest);

/// The last [`limits::DIGEST_WINDOW`] batches, oldest first. Its row is a list of [first, last, digest].
// Of each: how far the first number is from the end of the one before, how many more it has (LEB128), and the digest.
// Batches follow each other, mostly with one number each: 10 bytes instead of 24.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Entry>", into = "Vec<Entry>")]
pub(super) struct Window(Box<[u8]>);

impl Window {
    /// The batches, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Entry> {
        let (mut rest, mut after) = (&*self.0, 0_u64);
        std::iter::from_fn(move || {
            let first = after.wrapping_add(take(&mut rest)?);
            let last = first.wrapping_add(take(&mut rest)?);
            let (digest, more) = rest.split_first_chunk()?;
            (rest, after) = (more, last.wrapping_add(1));
            Some((first, last, *digest))
        })
    }

    /// The batch that has this number.
    pub(super) fn of(&self, seq: u64) -> Option<Entry> {
        self.iter().find(|(first, last, _)| (*first..=*last).contains(&seq))
    }

    /// Adds the newest; the oldest makes room.
    pub(super) fn push(&mut self, batch: Entry) {
        let mut all: Vec<Entry> = self.iter().collect();
        all.drain(..(all.len() + 1).saturating_sub(limits::DIGEST_WINDOW));
        all.push(batch);
        *self = all.into();
    }
}

impl From<Vec<Entry>> for Window {
    fn from(all: Vec<Entry>) -> Self {
        let (mut packed, mut after) = (Vec::with_capacity(all.len() * 12), 0);
        for (first, last, digest) in all {
            put(&mut packed, first.wrapping_sub(after));
            put(&mut packed, last.wrapping_sub(first));
            packed.extend(digest);
            after = last.wrapping_add(1);
        }
        Self(packed.into())
    }
}

impl From<Window> for Vec<Entry> {
    fn from(window: Window) -> Self {
        window.iter().collect()
    }
}

fn put(into: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn take(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_newest_are_kept_and_take_little() {
        let mut window = Window::default();
        for seq in 1..=100_u64 {
            window.push((seq, seq, seq.to_le_bytes()));
        }
        let kept: Vec<u64> = window.iter().map(|(first, ..)| first).collect();
        assert_eq!(kept, (69..=100).collect::<Vec<_>>());
        assert_eq!(window.0.len(), 32 * 10);
        assert_eq!(window.of(69), Some((69, 69, 69_u64.to_le_bytes())));
        assert_eq!(window.of(68), None);
    }

    #[test]
    fn rows_are_what_they_were() {
        let all = vec![(3_u64, 3_u64, [7_u8; 8]), (4, 90, [8; 8]), (200, 200, [9; 8])];
        let row = fleet_schemas::cbor::encode(&all);
        let window: Window = fleet_schemas::cbor::decode(&row).unwrap();
        assert_eq!(fleet_schemas::cbor::encode(&window), row);
        assert_eq!(window.of(50), Some((4, 90, [8; 8])));
    }

    proptest! {
        #[test]
        fn whatever_the_numbers_are_nothing_changes(
            all in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<Digest>()), 0..40),
        ) {
            prop_assert_eq!(Window::from(all.clone()).iter().collect::<Vec<_>>(), all);
        }
    }
}
