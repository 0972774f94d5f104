//! The backend that redb is given: a boxed one, and a file whose making was interrupted begins again.
//!
//! redb writes its magic number last when it makes a file. A process that dies before leaves a file that redb refuses
//! for ever, although nobody was ever told that anything is in it.

use std::{
    io,
    ops::Bound,
    sync::atomic::{AtomicBool, Ordering},
};

use redb::{BackendError, StorageBackend};

/// Bytes of redb's magic number; zero while a file is being made.
const MAGIC_BYTES: usize = 9;
/// The first page holds redb's header; what it writes of it before the magic number is the same for every file.
const HEADER_BYTES: u64 = 4_096;
/// A file that is being made is smaller than this; larger ones hold something, whatever their head says.
const MADE_BYTES: u64 = 16 * 1024 * 1024;

/// redb takes a sized backend; a disk gives a boxed one.
#[derive(Debug)]
pub(super) struct Held {
    backend: Box<dyn StorageBackend>,
    // Cleared by the first look at the length, which redb takes under its lock.
    unseen: AtomicBool,
}

impl Held {
    /// For a file that may be made.
    pub(super) fn for_writing(backend: Box<dyn StorageBackend>) -> Self {
        Self { backend, unseen: AtomicBool::new(true) }
    }

    /// For a file that is never changed.
    pub(super) fn for_reading(backend: Box<dyn StorageBackend>) -> Self {
        Self { backend, unseen: AtomicBool::new(false) }
    }

    /// Whether redb began to make the file and got no further than its header.
    fn is_unmade(&self, len: u64) -> io::Result<bool> {
        if len == 0 || len > MADE_BYTES {
            return Ok(false);
        }
        let mut page = [0; HEADER_BYTES as usize];
        let mut at = 0;
        while at < len {
            let part =
                &mut page[..usize::try_from((len - at).min(HEADER_BYTES)).map_err(io::Error::other)?];
            self.backend.read(at, part)?;
            let zero = if at == 0 { part.len().min(MAGIC_BYTES) } else { part.len() };
            if part[..zero].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += HEADER_BYTES;
        }
        Ok(true)
    }
}

impl StorageBackend for Held {
    fn len(&self) -> Result<u64, io::Error> {
        let len = self.backend.len()?;
        if self.unseen.swap(false, Ordering::Relaxed) && self.is_unmade(len)? {
            self.backend.set_len(0)?;
            return Ok(0);
        }
        Ok(len)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.backend.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.backend.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.backend.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.backend.write(offset, data)
    }
    fn close(&self) -> Result<(), io::Error> {
        self.backend.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}
