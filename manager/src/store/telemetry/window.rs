//! How much of the inbox is where: bytes and receive times of its rows in slabs, so that a part of what is sealed
//! can be kept for the feed and the rest removed.
//!
//! Knows rows by number only; decides nothing about sealing.

use std::collections::VecDeque;

/// A slab is closed at this size, in bytes,
const SLAB_BYTES: u64 = 1024 * 1024;
/// or when it spans this time, milliseconds: 24 hours are 144 slabs at most.
const SLAB_MS: u64 = 600_000;

/// Rows from one number on, up to the next slab's.
#[derive(Debug, Clone, Copy)]
struct Slab {
    first: u64,
    bytes: u64,
    /// Receive time of the first of its batches, and of the last.
    since_ms: i64,
    until_ms: i64,
}

/// The rows that are in the file, oldest first.
#[derive(Debug, Default)]
pub(super) struct Window(VecDeque<Slab>);

impl Window {
    /// Counts a chunk of rows that was appended; notes alone have no time.
    pub(super) fn push(&mut self, first: u64, bytes: u64, recv_ms: Option<i64>) {
        let last = self.0.back_mut();
        let recv_ms = recv_ms.or(last.as_ref().map(|slab| slab.until_ms)).unwrap_or(i64::MIN);
        match last {
            Some(slab) if slab.bytes < SLAB_BYTES && recv_ms.abs_diff(slab.since_ms) < SLAB_MS => {
                slab.bytes += bytes;
                slab.until_ms = recv_ms;
            }
            Some(_) | None => self.0.push_back(Slab { first, bytes, since_ms: recv_ms, until_ms: recv_ms }),
        }
    }

    /// The first row of the newest that are at most this many bytes and were received since then. The newest slab
    /// is always among them, so that a follower who has everything can be told from one of another life.
    pub(super) fn newest(&self, most_bytes: u64, since_ms: i64) -> Option<u64> {
        let mut bytes = 0;
        let mut first = None;
        for slab in self.0.iter().rev() {
            bytes += slab.bytes;
            if first.is_some() && (bytes > most_bytes || slab.until_ms < since_ms) {
                break;
            }
            first = Some(slab.first);
        }
        first
    }

    /// About how many bytes are in the rows below `seq`.
    pub(super) fn bytes_below(&self, seq: u64) -> u64 {
        let mut bytes = 0;
        let mut slabs = self.0.iter().peekable();
        while let Some(slab) = slabs.next() {
            match slabs.peek() {
                Some(next) if next.first <= seq => bytes += slab.bytes,
                // Within this slab: nothing of it is sure to be below.
                Some(_) => break,
                None => {}
            }
        }
        bytes
    }

    /// When the oldest row was received, Unix milliseconds.
    pub(super) fn since_ms(&self) -> Option<i64> {
        self.0.front().map(|slab| slab.since_ms)
    }

    /// Rows below `front` are removed.
    pub(super) fn removed(&mut self, front: u64) {
        while self.0.get(1).is_some_and(|next| next.first <= front) {
            self.0.pop_front();
        }
        if let Some(slab) = self.0.front_mut() {
            slab.first = slab.first.max(front);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    fn window() -> Window {
        let mut window = Window::default();
        // A mebibyte each half hour, in two chunks.
        for n in 0..8 {
            let recv_ms = n as i64 * 30 * MINUTE;
            window.push(n * 10 + 1, SLAB_BYTES / 2, Some(recv_ms));
            window.push(n * 10 + 5, SLAB_BYTES / 2, None);
        }
        window
    }

    #[test]
    fn the_newest_are_held_by_bytes_and_by_age() {
        let window = window();
        assert_eq!(window.newest(3 * SLAB_BYTES, i64::MIN), Some(51));
        assert_eq!(window.newest(u64::MAX, 4 * 30 * MINUTE), Some(41));
        assert_eq!(window.newest(u64::MAX, i64::MIN), Some(1));
        assert_eq!(window.newest(0, i64::MAX), Some(71), "the newest slab stays");
        assert_eq!(Window::default().newest(0, 0), None);
    }

    #[test]
    fn what_can_go_is_counted_by_whole_slabs() {
        let mut window = window();
        assert_eq!((window.bytes_below(51), window.bytes_below(50)), (5 * SLAB_BYTES, 4 * SLAB_BYTES));
        window.removed(35);
        assert_eq!((window.bytes_below(71), window.since_ms()), (4 * SLAB_BYTES, Some(3 * 30 * MINUTE)));
        assert_eq!((window.bytes_below(35), window.newest(u64::MAX, i64::MIN)), (0, Some(35)));
    }
}
