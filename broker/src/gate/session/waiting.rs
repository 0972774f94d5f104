//! What waits for a third-party session: packets as the ear wrote them, and how far they may go out.
//!
//! Fills in what only the moment of sending knows: packet ids, and the seconds that are left of a message. One that
//! waited too long is left out (MQTT 5 §3.3.2.3.3).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::gate::{encode, wire::Version};

/// Whole PUBLISH packets in the session's version.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) bytes: Vec<u8>,
    /// Whether a packet wants an id.
    ids: bool,
    /// Where the packets begin that are worth so many seconds, in order.
    expiring: VecDeque<(usize, u32)>,
    /// When that was so; as late as the last of them was written.
    since: Option<Instant>,
}

/// What is left of a chunk of which a part was sent.
#[derive(Debug)]
pub(crate) struct Rest {
    chunk: Chunk,
    sent: usize,
}

impl Chunk {
    /// Appends a packet.
    pub(crate) fn push(&mut self, version: Version, packet: &encode::Forward<'_>, now: impl Fn() -> Instant) {
        if let Some(seconds) = packet.expiry {
            self.expiring.push_back((self.bytes.len(), seconds));
            self.since = Some(now());
        }
        self.ids |= packet.qos > 0;
        packet.write(&mut self.bytes, version);
    }

    /// Bytes of memory held.
    pub(crate) fn cost(&self) -> usize {
        self.bytes.capacity() + self.expiring.capacity() * size_of::<(usize, u32)>()
    }
}

impl Rest {
    pub(crate) fn new(chunk: Chunk) -> Self {
        Self { chunk, sent: 0 }
    }

    /// Appends to `out` as many packets as `next_id` has ids for; says whether that was all.
    pub(super) fn send(
        &mut self,
        version: Version,
        now: Instant,
        mut next_id: impl FnMut() -> Option<u16>,
        out: &mut Vec<u8>,
    ) -> bool {
        let chunk = &mut self.chunk;
        if !chunk.ids && chunk.expiring.is_empty() {
            out.extend_from_slice(&chunk.bytes[self.sent..]);
            return true;
        }
        let waited =
            chunk.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)).as_secs();
        while let Some(places) = encode::written(version, &chunk.bytes[self.sent..]) {
            let begin = self.sent;
            let worth = chunk.expiring.front().filter(|(at, _)| *at == begin).map(|(_, seconds)| *seconds);
            let left = worth.map(|seconds| u64::from(seconds).saturating_sub(waited));
            if left == Some(0) && waited > 0 {
                chunk.expiring.pop_front();
                self.sent += places.size;
                continue;
            }
            let packet = &mut chunk.bytes[begin..begin + places.size];
            if let Some(at) = places.id {
                let Some(id) = next_id() else { return false };
                packet[at..at + 2].copy_from_slice(&id.to_be_bytes());
            }
            if let (Some(at), Some(left)) = (places.expiry, left) {
                let left = u32::try_from(left).unwrap_or(u32::MAX);
                packet[at..at + 4].copy_from_slice(&left.to_be_bytes());
            }
            out.extend_from_slice(packet);
            if worth.is_some() {
                chunk.expiring.pop_front();
            }
            self.sent += places.size;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, gate::encode::Forward};

    fn chunk(version: Version, now: Instant, packets: &[(u8, Option<u32>)]) -> Chunk {
        let mut chunk = Chunk::default();
        for (qos, expiry) in packets {
            let packet =
                Forward { topic: b"t", payload: b"p", qos: *qos, expiry: *expiry, ..Forward::default() };
            chunk.push(version, &packet, || now);
        }
        chunk
    }

    fn packet(version: Version, qos: u8, id: u16, expiry: Option<u32>) -> Vec<u8> {
        let mut bytes = vec![];
        Forward { topic: b"t", payload: b"p", qos, id, expiry, ..Forward::default() }
            .write(&mut bytes, version);
        bytes
    }

    #[test]
    fn ids_are_filled_in_and_everything_waits_behind_the_packet_that_finds_none() {
        let now = clock::now();
        for version in [Version::V4, Version::V5] {
            let mut rest = Rest::new(chunk(version, now, &[(0, None), (1, None), (1, None), (0, None)]));
            let (mut ids, mut out) = (vec![9, 8], vec![]);
            assert!(!rest.send(version, now, || ids.pop().filter(|id| *id == 8), &mut out));
            assert_eq!(out, [packet(version, 0, 0, None), packet(version, 1, 8, None)].concat());
            out.clear();
            assert!(rest.send(version, now, || Some(10), &mut out));
            assert_eq!(out, [packet(version, 1, 10, None), packet(version, 0, 0, None)].concat());
        }
    }

    #[test]
    fn what_is_not_worth_sending_any_more_is_left_out_and_the_rest_says_how_long_it_is() {
        let start = clock::now();
        let packets = [(0, Some(5)), (1, Some(20)), (0, None), (0, Some(10))];
        let now = start + Duration::from_millis(10_500);
        let mut rest = Rest::new(chunk(Version::V5, start, &packets));
        let mut out = vec![];
        assert!(rest.send(Version::V5, now, || Some(3), &mut out));
        assert_eq!(out, [packet(Version::V5, 1, 3, Some(10)), packet(Version::V5, 0, 0, None)].concat());
        let mut rest = Rest::new(chunk(Version::V4, start, &packets));
        out.clear();
        assert!(rest.send(Version::V4, now, || Some(3), &mut out));
        assert_eq!(out, [packet(Version::V4, 1, 3, None), packet(Version::V4, 0, 0, None)].concat());
    }
}
