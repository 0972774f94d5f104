//! Rows of the inbox as bytes: a batch as received, or a note of what else the same transaction moved.
//!
//! Owns the layout, which is frozen: golden bytes below. Rows of one transaction stand end to end in chunks, each
//! with its length before it (u32). Layouts (little-endian):
//! batch: `1|2, lane u8, node u32, recv i64, shift i64, start i64, end i64, count u32, payload`
//! (1: payload is the plain body; 2: it is the whole batch as it travelled). About 10^6 rows at most, never
//! changed, removed from the front once sealed.
//! note: `3, marks u32, {node u32, lane u8, stream 16, len u32 (2^32−1: removed), bytes}…, counters u32,
//! {node u32, lane u8, mask u8, delta i64 for every bit set}…`. A few a transaction.

use fleet_schemas::{Lane, StreamId};

use super::{Error, MarkKey, counters::Delta};

const PLAIN: u8 = 1;
const WIRE: u8 = 2;
const NOTE: u8 = 3;
const REMOVED: u32 = u32::MAX;
/// About the most bytes of one note.
const NOTE_BYTES: usize = 4_000;

/// Bytes of a row's length in a chunk.
pub(super) const LENGTH: usize = 4;
/// Bytes of a batch row before its payload.
pub(super) const HEAD_BYTES: usize = 42;

/// What a batch row says of its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub wire: bool,
    pub lane: Lane,
    pub node: u32,
    pub recv_ms: i64,
    pub shift_ms: i64,
    /// Earliest and latest corrected instant.
    pub start_ms: i64,
    pub end_ms: i64,
    pub count: u32,
}

/// What a transaction moved besides its batches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Note {
    /// `None`: removed.
    pub marks: Vec<(MarkKey, Option<Box<[u8]>>)>,
    pub counters: Vec<((u32, Lane), Delta)>,
}

pub(super) enum Row<'a> {
    Batch(Head, &'a [u8]),
    Note(Note),
}

impl Head {
    pub(super) fn write(&self, into: &mut Vec<u8>) {
        into.push(if self.wire { WIRE } else { PLAIN });
        into.push(lane_code(self.lane));
        into.extend_from_slice(&self.node.to_le_bytes());
        for number in [self.recv_ms, self.shift_ms, self.start_ms, self.end_ms] {
            into.extend_from_slice(&number.to_le_bytes());
        }
        into.extend_from_slice(&self.count.to_le_bytes());
    }
}

impl Note {
    /// The same as notes of bounded size: a large value would take twice its pages.
    pub(super) fn parts(&self) -> Vec<Self> {
        let (mut parts, mut part, mut bytes) = (Vec::new(), Self::default(), 0);
        for (key, mark) in &self.marks {
            bytes += 32 + mark.as_ref().map_or(0, |mark| mark.len());
            part.marks.push((*key, mark.clone()));
            if bytes > NOTE_BYTES {
                parts.push(std::mem::take(&mut part));
                bytes = 0;
            }
        }
        for counters in self.counters.chunks(NOTE_BYTES / 54) {
            part.counters = counters.to_vec();
            parts.push(std::mem::take(&mut part));
        }
        if !part.marks.is_empty() {
            parts.push(part);
        }
        parts
    }

    pub(super) fn write(&self, into: &mut Vec<u8>) {
        into.push(NOTE);
        into.extend_from_slice(&(self.marks.len() as u32).to_le_bytes());
        for (key, mark) in &self.marks {
            into.extend_from_slice(&key.node.to_le_bytes());
            into.push(lane_code(key.lane));
            into.extend_from_slice(&key.stream.0);
            into.extend_from_slice(&mark.as_ref().map_or(REMOVED, |mark| mark.len() as u32).to_le_bytes());
            into.extend_from_slice(mark.as_deref().unwrap_or_default());
        }
        into.extend_from_slice(&(self.counters.len() as u32).to_le_bytes());
        for ((node, lane), delta) in &self.counters {
            into.extend_from_slice(&node.to_le_bytes());
            into.push(lane_code(*lane));
            let mask = (delta.0.iter().enumerate())
                .fold(0_u8, |mask, (bit, number)| mask | u8::from(*number != 0) << bit);
            into.push(mask);
            for number in delta.0.iter().filter(|number| **number != 0) {
                into.extend_from_slice(&number.to_le_bytes());
            }
        }
    }
}

/// Reads a row.
pub(super) fn read(seq: u64, bytes: &[u8]) -> Result<Row<'_>, Error> {
    let mut reader = Reader(bytes);
    let row = match reader.byte() {
        Some(kind @ (PLAIN | WIRE)) => head(kind == WIRE, &mut reader).map(|head| Row::Batch(head, reader.0)),
        Some(NOTE) => note(&mut reader).map(Row::Note),
        Some(_) | None => None,
    };
    row.ok_or_else(|| Error::Damaged { what: format!("inbox row {seq}") })
}

fn head(wire: bool, reader: &mut Reader<'_>) -> Option<Head> {
    Some(Head {
        wire,
        lane: lane_of(reader.byte()?)?,
        node: reader.u32()?,
        recv_ms: reader.i64()?,
        shift_ms: reader.i64()?,
        start_ms: reader.i64()?,
        end_ms: reader.i64()?,
        count: reader.u32()?,
    })
}

fn note(reader: &mut Reader<'_>) -> Option<Note> {
    let mut note = Note::default();
    for _ in 0..reader.u32()? {
        let (node, lane) = (reader.u32()?, lane_of(reader.byte()?)?);
        let key = MarkKey { node, lane, stream: StreamId(reader.array()?) };
        let mark = match reader.u32()? {
            REMOVED => None,
            len => Some(reader.take(len as usize)?.into()),
        };
        note.marks.push((key, mark));
    }
    for _ in 0..reader.u32()? {
        let (node, lane, mask) = (reader.u32()?, lane_of(reader.byte()?)?, reader.byte()?);
        let mut delta = Delta::default();
        for (bit, number) in delta.0.iter_mut().enumerate() {
            if mask >> bit & 1 == 1 {
                *number = reader.i64()?;
            }
        }
        note.counters.push(((node, lane), delta));
    }
    Some(note)
}

/// Begins a row in a chunk: its length is not known yet.
pub(super) fn begin(chunk: &mut Vec<u8>) -> usize {
    chunk.extend_from_slice(&[0; LENGTH]);
    chunk.len()
}

/// Ends the row that began at `start`.
pub(super) fn end(chunk: &mut [u8], start: usize) {
    let len = (chunk.len() - start) as u32;
    chunk[start - LENGTH..start].copy_from_slice(&len.to_le_bytes());
}

/// The rows of a chunk, in order; stops at the first that is not whole.
pub(super) fn each(chunk: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut reader = Reader(chunk);
    std::iter::from_fn(move || {
        let len = reader.u32()?;
        reader.take(len as usize)
    })
}

/// A lane's number in keys and rows, for ever.
pub(super) fn lane_code(lane: Lane) -> u8 {
    match lane {
        Lane::Event => 0,
        Lane::Command => 1,
        Lane::Telemetry => 2,
        Lane::Backfill => 3,
    }
}

pub(super) fn lane_of(code: u8) -> Option<Lane> {
    Lane::ALL.into_iter().find(|lane| lane_code(*lane) == code)
}

/// Takes little-endian numbers off the front.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_layout_of_a_batch_row_is_frozen() {
        let head = Head {
            wire: true,
            lane: Lane::Backfill,
            node: 7,
            recv_ms: 1_790_000_000_000,
            shift_ms: -5,
            start_ms: 1,
            end_ms: 2,
            count: 10,
        };
        let mut bytes = Vec::new();
        head.write(&mut bytes);
        assert_eq!(bytes.len(), HEAD_BYTES);
        assert_eq!(
            hex(&bytes),
            "020307000000006c50c4a0010000fbffffffffffffff010000000000000002000000000000000a000000"
        );
        bytes.extend([1, 2, 3]);
        assert!(matches!(read(1, &bytes), Ok(Row::Batch(found, [1, 2, 3])) if found == head));
    }

    #[test]
    fn the_layout_of_a_note_is_frozen() {
        let key = MarkKey { node: 1, lane: Lane::Telemetry, stream: StreamId([9; 16]) };
        let mut delta = Delta::default();
        delta.0[0] = -1;
        delta.0[3] = 2;
        let note = Note {
            marks: vec![(key, Some(Box::new([4, 5]))), (key, None)],
            counters: vec![((1, Lane::Telemetry), delta)],
        };
        let mut bytes = Vec::new();
        note.write(&mut bytes);
        let stream = "09".repeat(16);
        assert_eq!(
            hex(&bytes),
            format!(
                "03020000000100000002{stream}0200000004050100000002{stream}ffffffff\
                 01000000010000000209ffffffffffffffff0200000000000000"
            )
        );
        assert!(matches!(read(1, &bytes), Ok(Row::Note(found)) if found == note));
    }

    #[test]
    fn the_layout_of_a_chunk_is_frozen() {
        let mut chunk = Vec::new();
        for row in [&[1, 2, 3][..], &[4]] {
            let start = begin(&mut chunk);
            chunk.extend_from_slice(row);
            end(&mut chunk, start);
        }
        assert_eq!(hex(&chunk), "030000000102030100000004");
        assert_eq!(each(&chunk).collect::<Vec<_>>(), [&[1, 2, 3][..], &[4]]);
        assert_eq!(each(&chunk[..8]).count(), 1);
    }

    proptest! {
        #[test]
        fn arbitrary_rows_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..5_u8) {
            let mut row = vec![kind];
            row.extend(bytes);
            let _ = read(1, &row);
        }
    }
}
