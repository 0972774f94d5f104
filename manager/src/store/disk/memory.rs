//! Files in memory that can lose what was not synced, run full and fail: what a real disk does to us.
//!
//! Owns the faults. Counts bytes written, so that write amplification can be measured.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use redb::StorageBackend;

use super::{Disk, DiskError, Space, aside_name};

/// Where power fails around a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing of that sync reached the disk.
    Before,
    /// All of it did, but nobody was told.
    After,
}

/// A disk in memory. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, File>,
    // Bytes of files that were removed while somebody had them open: they are free when nobody has.
    unlinked: Vec<(Weak<()>, u64)>,
    syncs: u64,
    written: u64,
    freeze: Option<(u64, When)>,
    frozen: bool,
    capacity: Option<u64>,
}

/// Contents as readers see them, and what it takes to go back to the last sync.
#[derive(Debug, Default)]
struct File {
    live: Vec<u8>,
    durable: Vec<u8>,
    // Ranges written since the last sync.
    dirty: Vec<(usize, usize)>,
    resized: bool,
    generation: u64,
    // Whoever has it open has another of these.
    open: Arc<()>,
}

impl State {
    /// Bytes that cannot be had.
    fn taken(&mut self) -> u64 {
        self.unlinked.retain(|(open, _)| open.strong_count() > 0);
        let files = self.files.values().map(|file| file.live.len() as u64);
        files.chain(self.unlinked.iter().map(|(_, bytes)| *bytes)).sum()
    }
}

impl File {
    fn sync(&mut self) {
        if self.resized {
            self.durable.resize(self.live.len(), 0);
            self.resized = false;
        }
        for (from, to) in self.dirty.drain(..) {
            let to = to.min(self.live.len());
            if from < to {
                self.durable[from..to].copy_from_slice(&self.live[from..to]);
            }
        }
    }
}

impl Memory {
    /// Fails sync number `sync` (counted from 1 over all files, see [`Memory::syncs`]) and everything after it,
    /// until [`Memory::crash`].
    pub fn freeze_at(&self, sync: u64, when: When) {
        self.lock().freeze = Some((sync, when));
    }

    /// Power comes back: unsynced writes are forgotten, handles of before are dead, faults are lifted.
    pub fn crash(&self) {
        let mut state = self.lock();
        state.frozen = false;
        state.freeze = None;
        for file in state.files.values_mut() {
            file.live.clone_from(&file.durable);
            file.dirty.clear();
            file.resized = false;
            file.generation += 1;
        }
    }

    /// An independent copy of what is durable now: a backup made by copying the folder.
    #[must_use]
    pub fn image(&self) -> Self {
        let state = self.lock();
        let copy = |file: &File| {
            let durable = file.durable.clone();
            File { live: durable.clone(), durable, ..File::default() }
        };
        let files = state.files.iter().map(|(name, file)| (name.clone(), copy(file))).collect();
        Self(Arc::new(Mutex::new(State { files, ..State::default() })))
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.lock().files.values().map(|file| file.live.len() as u64).sum()
    }

    /// Bounds the bytes of all files together; growing beyond fails with "no space left".
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// Syncs so far, over all files.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Bytes written so far, over all files.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.lock().written
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for Memory {
    fn open(&self, name: &str) -> Result<Box<dyn StorageBackend>, DiskError> {
        let mut state = self.lock();
        if state.frozen {
            return Err(DiskError::Io { doing: "open", name: name.to_owned(), source: frozen() });
        }
        let file = state.files.entry(name.to_owned()).or_default();
        let (generation, open) = (file.generation, Arc::clone(&file.open));
        Ok(Box::new(Handle { disk: self.clone(), name: name.to_owned(), generation, _open: open }))
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, DiskError> {
        let prefix = format!("{folder}/");
        let within = |name: &&String| name.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('/'));
        Ok(self.lock().files.keys().filter(within).cloned().collect())
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        let mut state = self.lock();
        if state.frozen {
            return Err(DiskError::Io { doing: "remove", name: name.to_owned(), source: frozen() });
        }
        if let Some(file) = state.files.remove(name) {
            state.unlinked.push((Arc::downgrade(&file.open), file.live.len() as u64));
        }
        Ok(())
    }

    fn set_aside(&self, name: &str) -> Result<String, DiskError> {
        let mut state = self.lock();
        let free = (1_u32..).map(|n| aside_name(name, n)).find(|aside| !state.files.contains_key(aside));
        let aside = free.expect("the numbers do not run out");
        if let Some(file) = state.files.remove(name) {
            state.files.insert(aside.clone(), file);
        }
        Ok(aside)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut state = self.lock();
        let failed = |source| DiskError::Io { doing: "rename", name: from.to_owned(), source };
        if state.frozen {
            return Err(failed(frozen()));
        }
        let file = state.files.remove(from).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        state.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn size(&self, name: &str) -> u64 {
        self.lock().files.get(name).map_or(0, |file| file.live.len() as u64)
    }

    fn space(&self) -> Option<Space> {
        let mut state = self.lock();
        let taken = state.taken();
        state.capacity.map(|total| Space { free: total.saturating_sub(taken), total })
    }
}

fn frozen() -> io::Error {
    io::Error::other("the power is gone")
}

#[derive(Debug)]
struct Handle {
    disk: Memory,
    name: String,
    generation: u64,
    _open: Arc<()>,
}

impl Handle {
    fn with<T>(&self, act: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
        self.act(&mut self.disk.lock(), act)
    }

    fn act<T>(&self, state: &mut State, act: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
        if state.frozen {
            return Err(frozen());
        }
        match state.files.get_mut(&self.name) {
            Some(file) if file.generation == self.generation => act(file),
            Some(_) | None => Err(io::Error::other("a handle from before the crash")),
        }
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.with(|file| Ok(file.live.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|file| {
            let from = usize::try_from(offset).map_err(io::Error::other)?;
            let bytes = file.live.get(from..from + out.len());
            out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        let own = state.files.get(&self.name).map_or(0, |file| file.live.len() as u64);
        let others = state.taken() - own;
        let capacity = state.capacity;
        self.act(&mut state, |file| {
            if len > file.live.len() as u64 && capacity.is_some_and(|most| others + len > most) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let before = file.live.len();
            file.live.resize(len, 0);
            if len < before {
                // What grows again later is zero, also after the next sync.
                file.dirty.push((len, before));
            }
            file.resized = true;
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let state = &mut *state;
        state.syncs += 1;
        let fails = state.freeze.filter(|(at, _)| state.syncs >= *at).map(|(_, when)| when);
        if fails != Some(When::Before) {
            self.act(state, |file| {
                file.sync();
                Ok(())
            })?;
        }
        if fails.is_some() {
            state.frozen = true;
            return Err(frozen());
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.written += data.len() as u64;
        self.act(&mut state, |file| {
            let from = usize::try_from(offset).map_err(io::Error::other)?;
            let to = from + data.len();
            file.live.get_mut(from..to).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
            file.dirty.push((from, to));
            Ok(())
        })
    }
}
