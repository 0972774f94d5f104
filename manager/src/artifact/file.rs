//! Reads an artifact piece by piece, from any place in it.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};

/// Bytes of one piece: few enough for thousands of nodes at once, enough that asking costs little.
pub(super) const PIECE: usize = 64 * 1024;

/// An open artifact. It stays readable when it is removed meanwhile.
#[derive(Debug)]
pub struct Reader {
    file: File,
    length: u64,
    sent: Arc<AtomicU64>,
}

/// What is left of a part of an artifact.
#[derive(Debug)]
pub struct Pieces {
    file: File,
    left: Range<u64>,
    sent: Arc<AtomicU64>,
    /// Filled in turn: by when one is wanted again, what was in it was taken. Mapping fresh memory for each piece took a fifth
    /// of the time.
    buffers: [BytesMut; 2],
}

impl Reader {
    pub(super) fn open(path: &Path, length: u64, sent: Arc<AtomicU64>) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, length, sent })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The bytes of a part of it; there is nothing beyond its end.
    #[must_use]
    pub fn pieces(self, part: Range<u64>) -> Pieces {
        let left = part.start..part.end.min(self.length);
        Pieces { file: self.file, left, sent: self.sent, buffers: Default::default() }
    }
}

impl Pieces {
    /// Whether all of them were given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// The next piece: at most [`PIECE`] bytes, and nothing after the last one. Waits for the disk.
    ///
    /// # Errors
    /// What the system says; also when the file was cut.
    pub fn read(&mut self) -> io::Result<Bytes> {
        let at = self.left.start;
        self.fill(|file, buffer| file.read_exact_at(buffer, at).map(|()| buffer.len()))
    }

    /// The next piece as far as it is in memory. `None` if the disk would be waited for, or nobody can say.
    pub fn ready(&mut self) -> Option<Bytes> {
        let at = self.left.start;
        self.fill(|file, buffer| in_memory(file, buffer, at)).ok().filter(|piece| !piece.is_empty())
    }

    fn fill(&mut self, read: impl FnOnce(&File, &mut [u8]) -> io::Result<usize>) -> io::Result<Bytes> {
        let left = self.left.end.saturating_sub(self.left.start);
        let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let buffer = &mut self.buffers[0];
        buffer.clear();
        buffer.resize(wanted, 0);
        let got = read(&self.file, buffer)?;
        let piece = buffer.split_to(got).freeze();
        self.left.start += got as u64;
        self.sent.fetch_add(got as u64, Ordering::Relaxed);
        self.buffers.swap(0, 1);
        Ok(piece)
    }
}

/// Reads what the system has in memory (`preadv2(2)`, `RWF_NOWAIT`).
#[cfg(target_os = "linux")]
fn in_memory(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let flags = rustix::io::ReadWriteFlags::NOWAIT;
    Ok(rustix::io::preadv2(file, &mut [io::IoSliceMut::new(buffer)], at, flags)?)
}

#[cfg(not(target_os = "linux"))]
fn in_memory(_: &File, _: &mut [u8], _: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}
