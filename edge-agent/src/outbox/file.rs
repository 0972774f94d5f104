//! The outbox's file in the data folder: opening it, setting a corrupt one aside, and looking at it while no agent runs.
//!
//! Hands redb its storage and knows nothing of what is in it.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Mutex,
};

use fleet_schemas::StreamId;
use redb::{
    BackendError, StorageBackend,
    backends::{FileBackend, InMemoryBackend},
};

use super::{Config, OpenError, Storage};
use crate::{
    clock::random,
    core::Now,
    uplink::{self, Profile, Status, Uplink},
};

/// The file's name in the data folder.
const NAME: &str = "outbox.redb";

/// An opened uplink, and where a corrupt file went before it.
pub(super) struct Opened {
    pub(super) uplink: Uplink,
    pub(super) set_aside: Option<PathBuf>,
}

/// Opens the outbox under a fresh stream. A corrupt file is set aside, never deleted.
pub(super) fn open(config: &Config, folder: &Path, profile: &Profile, now: Now) -> Result<Opened, OpenError> {
    let path = folder.join(NAME);
    match config.storage {
        Storage::Memory => {
            let uplink = attach(InMemoryBackend::new(), config, profile, &path, now)?;
            Ok(Opened { uplink, set_aside: None })
        }
        Storage::File => match attach(backend(&path)?, config, profile, &path, now) {
            Err(OpenError::Outbox { source, .. }) if is_corrupt(&source) => {
                let aside = folder.join(format!("{NAME}.corrupt-{}", now.wall_ms));
                fs::rename(&path, &aside).map_err(|source| OpenError::File { path: path.clone(), source })?;
                let uplink = attach(backend(&path)?, config, profile, &path, now)?;
                Ok(Opened { uplink, set_aside: Some(aside) })
            }
            opened => Ok(Opened { uplink: opened?, set_aside: None }),
        },
    }
}

/// Looks at the outbox of a stopped agent without changing a byte of it.
///
/// # Errors
/// [`OpenError`], also when an agent runs on it.
pub fn inspect(config: &Config, folder: &Path, profile: &Profile, now: Now) -> Result<Status, OpenError> {
    let path = folder.join(NAME);
    let wrong = |source| OpenError::File { path: path.clone(), source };
    // Opened for writing, so that it can be locked; what is written goes to memory.
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(wrong)?;
    Ok(attach(locked(file, &path)?, config, profile, &path, now)?.status())
}

fn attach(
    backend: impl StorageBackend,
    config: &Config,
    profile: &Profile,
    path: &Path,
    now: Now,
) -> Result<Uplink, OpenError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    Uplink::open(backend, profile.clone(), config.uplink(folder), StreamId(random()), now).map_err(|source| {
        match source {
            uplink::Error::Store(error) if matches!(*error, redb::Error::DatabaseAlreadyOpen) => {
                OpenError::InUse { path: path.to_owned() }
            }
            source => OpenError::Outbox { path: path.to_owned(), source },
        }
    })
}

fn backend(path: &Path) -> Result<FileBackend, OpenError> {
    let wrong = |source| OpenError::File { path: path.to_owned(), source };
    let fresh = !path.exists();
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(wrong)?;
    if let (true, Some(folder)) = (fresh, path.parent()) {
        // The file's name must survive a power cut as well as its bytes.
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(wrong)?;
    }
    FileBackend::new(file).map_err(|error| from_database(error, path))
}

fn from_database(error: redb::DatabaseError, path: &Path) -> OpenError {
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.to_owned() },
        error => OpenError::Outbox { path: path.to_owned(), source: error.into() },
    }
}

fn is_corrupt(error: &uplink::Error) -> bool {
    match error {
        uplink::Error::Store(error) => match &**error {
            redb::Error::Corrupted(_) => true,
            redb::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
            _ => false,
        },
        uplink::Error::Newer { .. } => false,
    }
}

/// Pages of this size are kept in memory once they are written.
const PAGE: u64 = 4096;

/// A file whose changes stay in memory.
#[derive(Debug)]
struct ReadOnly {
    file: FileBackend,
    // Bytes of the file itself.
    held: u64,
    len: Mutex<u64>,
    written: Mutex<BTreeMap<u64, Vec<u8>>>,
}

fn locked(file: File, path: &Path) -> Result<ReadOnly, OpenError> {
    let held = file.metadata().map_err(|source| OpenError::File { path: path.to_owned(), source })?.len();
    let file = FileBackend::new(file).map_err(|error| from_database(error, path))?;
    Ok(ReadOnly { file, held, len: Mutex::new(held), written: Mutex::default() })
}

const NEVER_POISONED: &str = "no holder of this lock panics";

impl ReadOnly {
    fn page(&self, written: &BTreeMap<u64, Vec<u8>>, number: u64) -> io::Result<Vec<u8>> {
        if let Some(page) = written.get(&number) {
            return Ok(page.clone());
        }
        let mut page = vec![0; PAGE as usize];
        let there = self.held.saturating_sub(number * PAGE).min(PAGE) as usize;
        if there > 0 {
            self.file.read(number * PAGE, &mut page[..there])?;
        }
        Ok(page)
    }
}

impl StorageBackend for ReadOnly {
    fn len(&self) -> io::Result<u64> {
        Ok(*self.len.lock().expect(NEVER_POISONED))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() as u64 > self.len()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let written = self.written.lock().expect(NEVER_POISONED);
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let page = self.page(&written, at / PAGE)?;
            let from = (at % PAGE) as usize;
            let (part, others) = rest.split_at_mut(rest.len().min(page.len() - from));
            part.copy_from_slice(&page[from..from + part.len()]);
            at += part.len() as u64;
            rest = others;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        *self.len.lock().expect(NEVER_POISONED) = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written.lock().expect(NEVER_POISONED);
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let mut page = self.page(&written, at / PAGE)?;
            let from = (at % PAGE) as usize;
            let (part, others) = rest.split_at(rest.len().min(page.len() - from));
            page[from..from + part.len()].copy_from_slice(part);
            written.insert(at / PAGE, page);
            at += part.len() as u64;
            rest = others;
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
