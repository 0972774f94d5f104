//! An upload that has not come to its end: what was announced, and the bytes so far.
//!
//! The file's length is where it stands, so it goes on after a crash; whether the bytes are the right ones is found out
//! when all of them are there.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    time::UNIX_EPOCH,
};

use fleet_schemas::update::Digest;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

use super::{Error, Pushed, REST, at, with};
use crate::{core::time::millis, pki::file::replace};

/// Bytes that are read at once for the digest.
const PIECE: usize = 256 * 1024;

/// Where an upload stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// Bytes that are there.
    pub offset: u64,
    /// Bytes that it will have.
    pub length: u64,
    /// Whether it is an artifact by now.
    pub complete: bool,
}

/// One upload.
#[derive(Debug)]
pub struct Upload {
    digest: Digest,
    length: u64,
    part: PathBuf,
    note: PathBuf,
    pushed: Mutex<Vec<Pushed>>,
    offset: Mutex<u64>,
    /// Held by who writes to it or ends it.
    turn: Mutex<()>,
}

/// What is kept of it.
#[derive(Debug, Serialize, Deserialize)]
struct Announced {
    length: u64,
    pushed: Vec<Pushed>,
}

impl Upload {
    pub(super) fn begin(folder: &Path, digest: Digest, length: u64, pushed: Pushed) -> Result<Self, Error> {
        let upload = Self::new(folder, digest, length, vec![pushed], 0);
        upload.keep(&upload.pushed())?;
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&upload.part)
            .map_err(at(&upload.part))?;
        Ok(upload)
    }

    fn new(folder: &Path, digest: Digest, length: u64, pushed: Vec<Pushed>, offset: u64) -> Self {
        let (part, note) = (folder.join(format!("{digest}.part")), folder.join(format!("{digest}.json")));
        Self {
            digest,
            length,
            part,
            note,
            pushed: pushed.into(),
            offset: offset.into(),
            turn: Mutex::default(),
        }
    }

    /// Its digest, as it was announced.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Where it stands.
    #[must_use]
    pub fn at(&self) -> Offset {
        Offset { offset: *lock(&self.offset), length: self.length, complete: false }
    }

    /// What it is pushed as.
    pub(super) fn pushed(&self) -> Vec<Pushed> {
        lock(&self.pushed).clone()
    }

    pub(super) fn name(&self, pushed: Pushed) -> Result<(), Error> {
        let mut names = lock(&self.pushed);
        let more = with(&names, pushed)?;
        self.keep(&more)?;
        *names = more;
        Ok(())
    }

    /// Appends bytes that belong at `offset`.
    ///
    /// # Errors
    /// [`Error`]; what was written before stays.
    pub fn append(&self, offset: u64, bytes: &[u8]) -> Result<Offset, Error> {
        let _turn = self.turn()?;
        let stands = self.at();
        if stands.offset != offset {
            return Err(Error::Offset { has: stands.offset, asked: offset });
        }
        let after = offset.saturating_add(bytes.len() as u64);
        if after > self.length {
            return Err(Error::TooLong(self.length));
        }
        let write = || {
            let mut file = OpenOptions::new().append(true).open(&self.part)?;
            // A write that broke off left something behind.
            file.set_len(offset)?;
            file.write_all(bytes)
        };
        write().map_err(at(&self.part))?;
        *lock(&self.offset) = after;
        Ok(self.at())
    }

    /// What only one may hold: who appends, or ends it.
    pub(super) fn turn(&self) -> Result<MutexGuard<'_, ()>, Error> {
        match self.turn.try_lock() {
            Ok(turn) => Ok(turn),
            Err(TryLockError::Poisoned(turn)) => Ok(turn.into_inner()),
            Err(TryLockError::WouldBlock) => Err(Error::Busy),
        }
    }

    /// The digest of what is on the disk, after it is surely there.
    pub(super) fn check(&self) -> Result<Digest, Error> {
        let read = || {
            let mut file = File::open(&self.part)?;
            file.sync_all()?;
            let (mut sha, mut piece) = (Sha256::new(), vec![0; PIECE]);
            loop {
                match file.read(&mut piece)? {
                    0 => return Ok::<_, io::Error>(Digest(sha.finalize().into())),
                    read => sha.update(&piece[..read]),
                }
            }
        };
        read().map_err(at(&self.part))
    }

    /// Gives the bytes their name.
    pub(super) fn finish(&self, path: &Path) -> Result<(), Error> {
        fs::rename(&self.part, path).map_err(at(path))?;
        for folder in [path.parent(), self.part.parent()].into_iter().flatten() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))?;
        }
        drop(fs::remove_file(&self.note));
        Ok(())
    }

    /// Removes all of it; what the disk does not let go is found again at the next start.
    pub(super) fn remove(&self) {
        for path in [&self.part, &self.note] {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "the rest of an upload cannot be removed");
            }
        }
    }

    /// Whether nobody wrote to it for too long.
    pub(super) fn rests(&self, now_ms: i64) -> bool {
        let written = fs::metadata(&self.part).and_then(|found| found.modified()).ok();
        let written = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        written.is_none_or(|at| millis(at).saturating_add(millis(REST)) <= now_ms)
    }

    fn keep(&self, pushed: &[Pushed]) -> Result<(), Error> {
        let note = Announced { length: self.length, pushed: pushed.to_vec() };
        let text = serde_json::to_vec(&note).expect("texts and numbers make JSON");
        replace(&self.note, &text).map_err(at(&self.note))
    }
}

/// The uploads of an earlier run.
pub(super) fn resume(folder: &Path) -> Result<BTreeMap<Digest, Arc<Upload>>, Error> {
    let mut open = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        let name = entry.file_name();
        let digest = name.to_str().and_then(|name| name.strip_suffix(".part")).map(str::parse::<Digest>);
        let note = digest.and_then(Result::ok).and_then(|digest| {
            let note: Announced = read(&folder.join(format!("{digest}.json")))?;
            Some((digest, note))
        });
        let there = entry.metadata().map_err(at(&entry.path()))?.len();
        match note {
            Some((digest, note)) if there <= note.length => {
                let upload = Upload::new(folder, digest, note.length, note.pushed, there);
                open.insert(digest, Arc::new(upload));
            }
            // Its note is written first, so it is a rest of something; a note alone is written over.
            Some(_) | None if name.to_str().is_some_and(|name| name.ends_with(".part")) => {
                drop(fs::remove_file(entry.path()));
            }
            Some(_) | None => {}
        }
    }
    Ok(open)
}

/// A small file of JSON, if it is there and whole.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
