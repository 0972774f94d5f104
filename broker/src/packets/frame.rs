//! Cuts a byte stream into MQTT frames (MQTT 3.1.1 §2.2, MQTT 5 §2.1).
//!
//! Type, flags and length are checked before anything is kept; what is kept is at most one partial frame below
//! the limit, and it grows with the bytes that came, never with the length that was claimed.

/// One whole packet: its first byte and what follows the fixed header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) first: u8,
    pub(crate) body: &'a [u8],
}

/// Why the stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// No packet type, or flags that its type does not have.
    First,
    /// A length of more than four bytes.
    Length,
    /// A claimed length above the limit.
    TooLarge,
}

/// A stream's partial frame. Empty, it owns no memory.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    partial: Vec<u8>,
    whole: bool,
}

struct Header {
    head: usize,
    total: usize,
}

impl FrameReader {
    /// The next whole frame of what was kept and of `input`, from which it takes what it uses. `None` when all of
    /// `input` is used up. `max` bounds a whole frame in bytes.
    pub(crate) fn next<'s, 'i: 's>(
        &'s mut self,
        input: &mut &'i [u8],
        max: usize,
    ) -> Result<Option<Frame<'s>>, FrameError> {
        if self.whole {
            *self = Self::default();
        }
        if self.partial.is_empty() {
            match header(input, max)? {
                Some(Header { head, total }) if input.len() >= total => {
                    let (frame, rest) = input.split_at(total);
                    *input = rest;
                    return Ok(Some(Frame { first: frame[0], body: &frame[head..] }));
                }
                Some(_) | None => {
                    self.partial.extend_from_slice(input);
                    *input = &[];
                    return Ok(None);
                }
            }
        }
        loop {
            let missing = match header(&self.partial, max)? {
                Some(Header { head, total }) if self.partial.len() >= total => {
                    self.whole = true;
                    return Ok(Some(Frame { first: self.partial[0], body: &self.partial[head..total] }));
                }
                Some(Header { total, .. }) => total - self.partial.len(),
                None => 1,
            };
            if input.is_empty() {
                return Ok(None);
            }
            let (taken, rest) = input.split_at(missing.min(input.len()));
            self.partial.extend_from_slice(taken);
            *input = rest;
        }
    }

    /// The first byte of the partial frame, if there is one.
    pub(crate) fn first(&self) -> Option<u8> {
        if self.whole { None } else { self.partial.first().copied() }
    }

    /// Bytes of memory held.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.partial.capacity()
    }
}

fn header(bytes: &[u8], max: usize) -> Result<Option<Header>, FrameError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let flags = first & 0x0F;
    let sound = match first >> 4 {
        0 => false,
        3 => true,
        6 | 8 | 10 => flags == 2,
        _ => flags == 0,
    };
    if !sound {
        return Err(FrameError::First);
    }
    let mut length = 0;
    for (at, byte) in bytes.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * at);
        let head = at + 2;
        if head + length > max {
            return Err(FrameError::TooLarge);
        }
        if byte & 0x80 == 0 {
            return Ok(Some(Header { head, total: head + length }));
        }
        if at == 3 {
            return Err(FrameError::Length);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1024;

    fn all(reader: &mut FrameReader, mut input: &[u8]) -> Result<Vec<(u8, Vec<u8>)>, FrameError> {
        let mut frames = vec![];
        while let Some(frame) = reader.next(&mut input, MAX)? {
            frames.push((frame.first, frame.body.to_vec()));
        }
        assert!(input.is_empty());
        Ok(frames)
    }

    #[test]
    fn a_claim_of_256_mb_is_refused_at_its_header() {
        let mut reader = FrameReader::default();
        assert_eq!(all(&mut reader, &[0x30, 0xFF, 0xFF, 0xFF, 0x7F]), Err(FrameError::TooLarge));
        assert_eq!(reader.held(), 0);
    }

    #[test]
    fn a_fifth_length_byte_and_wrong_flags_are_refused() {
        assert_eq!(
            all(&mut FrameReader::default(), &[0x30, 0x80, 0x80, 0x80, 0x80]),
            Err(FrameError::Length)
        );
        for first in [0x00, 0x0F, 0x11, 0x80, 0x62 | 1, 0xC1, 0xE1, 0xF1] {
            assert_eq!(all(&mut FrameReader::default(), &[first]), Err(FrameError::First), "{first:x}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_stay_bounded(pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..700), 0..12,
        )) {
            let mut reader = FrameReader::default();
            for piece in &pieces {
                if all(&mut reader, piece).is_err() {
                    break;
                }
                prop_assert!(reader.held() <= 2 * MAX);
            }
        }

        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..8),
            cuts in proptest::collection::vec(1_usize..64, 1..64),
        ) {
            let mut stream = vec![];
            for body in &bodies {
                stream.push(0x30);
                crate::packets::encode::length(&mut stream, body.len());
                stream.extend_from_slice(body);
            }
            let (mut reader, mut frames, mut rest) = (FrameReader::default(), vec![], &stream[..]);
            for cut in cuts.iter().cycle() {
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                frames.extend(all(&mut reader, piece).unwrap());
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            all(&mut reader, &[]).unwrap();
            prop_assert_eq!(reader.held(), 0);
            let got: Vec<_> = frames.into_iter().map(|(_, body)| body).collect();
            prop_assert_eq!(got, bodies);
        }
    }
}
