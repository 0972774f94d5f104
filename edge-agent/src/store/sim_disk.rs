//! A disk in memory that forgets what was not synced: for the simulator and for crash tests.
//!
//! Clones share the same bytes, as two handles of one file do. Never used for real data.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::StorageBackend;

/// One file on a simulated disk.
#[derive(Debug, Clone, Default)]
pub struct SimFile(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    // How to get back to the last sync, newest last.
    undo: Vec<Undo>,
    syncs: u64,
    written: u64,
    freeze_at: Option<u64>,
    // Whether the sync at which it freezes still reaches the disk.
    reaches: bool,
    capacity: Option<usize>,
    // Handles made before a crash stay dead, as a killed process does.
    life: u64,
}

#[derive(Debug)]
enum Undo {
    Write { at: usize, old: Vec<u8> },
    Length { old: usize, tail: Vec<u8> },
}

fn undo(bytes: &mut Vec<u8>, step: &Undo) {
    match step {
        Undo::Write { at, old } => bytes[*at..*at + old.len()].copy_from_slice(old),
        Undo::Length { old, tail } => {
            bytes.resize(*old, 0);
            bytes[*old - tail.len()..].copy_from_slice(tail);
        }
    }
}

impl SimFile {
    /// An empty file.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handle for redb, dead after the next [`SimFile::crash`].
    #[must_use]
    pub fn backend(&self) -> SimBackend {
        SimBackend { file: self.clone(), life: self.state().life }
    }

    /// The power goes: everything since the last sync is forgotten, and handles are dead.
    pub fn crash(&self) {
        let mut state = self.state();
        while let Some(step) = state.undo.pop() {
            undo(&mut state.bytes, &step);
        }
        state.life += 1;
        state.freeze_at = None;
    }

    /// From sync number `k` (counted from the file's making) on nothing becomes durable and every call fails.
    pub fn freeze_at(&self, k: u64) {
        let mut state = self.state();
        state.freeze_at = Some(k);
        state.reaches = false;
    }

    /// Sync number `k` reaches the disk, but nobody is told: it fails as everything after it does.
    pub fn freeze_after(&self, k: u64) {
        let mut state = self.state();
        state.freeze_at = Some(k);
        state.reaches = true;
    }

    /// How many syncs there were.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// How many bytes were written.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.state().written
    }

    /// The disk is full at this many bytes (`None`: never).
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.state().capacity = bytes;
    }

    /// Its size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state().bytes.len()
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An independent copy as it would be found after a crash now: an image of the card.
    #[must_use]
    pub fn image(&self) -> Self {
        let state = self.state();
        let mut bytes = state.bytes.clone();
        state.undo.iter().rev().for_each(|step| undo(&mut bytes, step));
        Self(Arc::new(Mutex::new(State { bytes, ..State::default() })))
    }
}

/// An open handle of a [`SimFile`].
#[derive(Debug)]
pub struct SimBackend {
    file: SimFile,
    life: u64,
}

impl SimBackend {
    fn live(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.file.state();
        if state.life != self.life {
            return Err(io::Error::other("this handle belongs to a process that was killed"));
        }
        if state.freeze_at.is_some_and(|k| state.syncs >= k) {
            return Err(io::Error::other("the disk is frozen"));
        }
        Ok(state)
    }
}

impl StorageBackend for SimBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.live()?.bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.live()?;
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let found = state.bytes.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.live()?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        if state.capacity.is_some_and(|capacity| len > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let old = state.bytes.len();
        let tail = state.bytes.get(len..).map_or_else(Vec::new, <[u8]>::to_vec);
        state.undo.push(Undo::Length { old, tail });
        state.bytes.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.live()?;
        state.syncs += 1;
        if state.freeze_at.is_some_and(|k| state.syncs >= k) {
            if state.reaches {
                state.undo.clear();
            }
            return Err(io::Error::other("the disk is frozen"));
        }
        state.undo.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.live()?;
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let old = state.bytes.get(at..at + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?.to_vec();
        state.undo.push(Undo::Write { at, old });
        state.bytes[at..at + data.len()].copy_from_slice(data);
        state.written += data.len() as u64;
        Ok(())
    }
}
