//! Reads an artifact piece by piece, from any place in it.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

/// Bytes of one piece: few enough for thousands of nodes at once, enough that asking costs little.
pub(super) const PIECE: usize = 128 * 1024;

/// An open artifact. It stays readable when it is removed meanwhile.
#[derive(Debug, Clone)]
pub struct Reader {
    file: Arc<File>,
    length: u64,
    sent: Arc<AtomicU64>,
}

impl Reader {
    pub(super) fn open(path: &Path, length: u64, sent: Arc<AtomicU64>) -> io::Result<Self> {
        Ok(Self { file: Arc::new(File::open(path)?), length, sent })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The bytes from `at` on, up to `end` and at most [`PIECE`] of them. Waits for the disk.
    ///
    /// # Errors
    /// What the system says; also when the file was cut.
    pub fn piece(&self, at: u64, end: u64) -> io::Result<Bytes> {
        let wanted = usize::try_from(end.min(self.length).saturating_sub(at)).unwrap_or(PIECE).min(PIECE);
        let mut bytes = vec![0; wanted];
        self.file.read_exact_at(&mut bytes, at)?;
        self.sent.fetch_add(wanted as u64, Ordering::Relaxed);
        Ok(bytes.into())
    }
}
