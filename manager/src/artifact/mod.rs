//! Bytes that nodes may run, by their SHA-256: kept once however often they are pushed.
//!
//! Owns `artifacts/` in the data folder: `{digest}` (the bytes), `{digest}.json` (under which names they were pushed),
//! and `uploads/` (what has not arrived whole). Bytes get their name only after all of them were read back from the
//! disk and have the digest; so what has a name is whole, also after a crash. Knows nothing of signatures.

mod file;
#[cfg(test)]
mod tests;
mod upload;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fleet_schemas::{
    limits,
    update::{Digest, Target},
};
use serde::{Deserialize, Serialize};

pub use file::{Pieces, Reader};
pub use upload::{Offset, Upload};

use crate::pki::file::replace;

/// Name of the folder in the data folder.
pub const FOLDER: &str = "artifacts";
const UPLOADS: &str = "uploads";
/// Most artifacts.
pub const ARTIFACTS: usize = 10_000;
/// Most uploads that have not come to their end.
pub const OPEN: usize = 64;
/// Most names of one artifact.
pub const NAMES: usize = 16;
/// How long an upload may rest before it is removed.
pub const REST: Duration = Duration::from_secs(24 * 3600);
/// What is left free of the disk: the stores need room to go on.
const SPARE_BYTES: u64 = 64 * 1024 * 1024;

/// What an artifact was pushed as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// Kind, name, version and arch.
    pub target: Target,
    /// When, Unix milliseconds.
    pub at_ms: i64,
    /// By whom, such as `operator NAME`.
    pub by: String,
    /// The lowest version that may be updated from, as its maker wishes; what counts is what is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_from: Option<String>,
    /// For `device-firmware`: the kind of device that it fits, as its maker wishes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_kind: Option<String>,
}

/// An artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Its SHA-256.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// What it was pushed as, oldest first.
    pub pushed: Vec<Pushed>,
}

/// Why an artifact is not taken, given or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk.
    #[error("{path} cannot be used: {source}; check the disk and its free space")]
    Io {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No such artifact.
    #[error("there is no artifact {0}; `fleet artifact ls` lists them")]
    Unknown(Digest),
    /// No such upload.
    #[error("no upload of {0} is under way; begin it with POST artifacts")]
    NoUpload(Digest),
    /// The length is none that an artifact may have.
    #[error("an artifact has 1 to {} bytes", limits::ARTIFACT_BYTES)]
    Length,
    /// The same bytes cannot have two lengths.
    #[error("an artifact of this digest has {has} bytes, not {asked}")]
    OtherLength {
        /// What is known.
        has: u64,
        /// What was said.
        asked: u64,
    },
    /// Too much.
    #[error("{0}")]
    Full(String),
    /// The upload stands elsewhere.
    #[error("the upload stands at {has}, not at {asked}; ask where it stands, and go on from there")]
    Offset {
        /// Where it stands.
        has: u64,
        /// Where it was to go on.
        asked: u64,
    },
    /// More bytes than were announced.
    #[error("more bytes came than the {0} that were announced")]
    TooLong(u64),
    /// Somebody else writes to it.
    #[error("another request writes to this upload; wait until it is over")]
    Busy,
    /// All bytes are there, and are others.
    #[error("what arrived has the digest {has}, not {asked}; it was removed, push the file again")]
    Digest {
        /// The digest of what arrived.
        has: Digest,
        /// The digest that was announced.
        asked: Digest,
    },
}

/// The store. All methods may be called from any thread; they wait for the disk.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    known: Mutex<BTreeMap<Digest, Artifact>>,
    open: Mutex<BTreeMap<Digest, Arc<Upload>>>,
    sent: Arc<AtomicU64>,
}

/// What is kept beside the bytes.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    length: u64,
    pushed: Vec<Pushed>,
}

impl Store {
    /// Reads what is in the data folder, and goes on with uploads that were broken off.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(data: &Path, now_ms: i64) -> Result<Self, Error> {
        let folder = data.join(FOLDER);
        let uploads = folder.join(UPLOADS);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&uploads).map_err(at(&uploads))?;
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let entry = entry.map_err(at(&folder))?;
            let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok()) else {
                continue;
            };
            let length = entry.metadata().map_err(at(&entry.path()))?.len();
            let kept = upload::read::<Kept>(&folder.join(format!("{digest}.json")));
            let pushed = kept.filter(|kept| kept.length == length).map(|kept| kept.pushed);
            known.insert(digest, Artifact { digest, length, pushed: pushed.unwrap_or_default() });
        }
        let open = upload::resume(&uploads)?;
        let store = Self { folder, known: Mutex::new(known), open: Mutex::new(open), sent: Arc::default() };
        store.tidy(now_ms);
        Ok(store)
    }

    /// All artifacts, by digest.
    #[must_use]
    pub fn all(&self) -> Vec<Artifact> {
        self.known().values().cloned().collect()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<Artifact> {
        self.known().get(digest).cloned()
    }

    /// Its bytes, to be read anywhere.
    ///
    /// # Errors
    /// [`Error::Unknown`] and [`Error::Io`].
    pub fn reader(&self, digest: &Digest) -> Result<Reader, Error> {
        let length = self.get(digest).ok_or(Error::Unknown(*digest))?.length;
        let path = self.path(digest);
        Reader::open(&path, length, self.sent.clone()).map_err(at(&path))
    }

    /// Begins an upload, or goes on with one; of an artifact that is there only the name is kept.
    ///
    /// # Errors
    /// [`Error`].
    pub fn begin(&self, digest: Digest, length: u64, pushed: Pushed) -> Result<Offset, Error> {
        if length == 0 || length > limits::ARTIFACT_BYTES {
            return Err(Error::Length);
        }
        let mut known = self.known();
        if let Some(artifact) = known.get_mut(&digest) {
            if artifact.length != length {
                return Err(Error::OtherLength { has: artifact.length, asked: length });
            }
            let names = with(&artifact.pushed, pushed)?;
            self.keep(&digest, length, &names)?;
            artifact.pushed = names;
            return Ok(Offset { offset: length, length, complete: true });
        }
        if known.len() >= ARTIFACTS {
            return Err(Error::Full(format!(
                "there are {ARTIFACTS} artifacts; remove some with `fleet artifact rm`"
            )));
        }
        drop(known);
        let mut open = self.uploads();
        if let Some(upload) = open.get(&digest) {
            if upload.length() != length {
                return Err(Error::OtherLength { has: upload.length(), asked: length });
            }
            upload.name(pushed)?;
            return Ok(upload.at());
        }
        if open.len() >= OPEN {
            return Err(Error::Full(format!("{OPEN} uploads are under way; wait until one is over")));
        }
        self.has_room(length)?;
        let upload = Arc::new(Upload::begin(&self.folder.join(UPLOADS), digest, length, pushed)?);
        let stands = upload.at();
        open.insert(digest, upload);
        Ok(stands)
    }

    /// Where an upload stands.
    ///
    /// # Errors
    /// [`Error::NoUpload`].
    pub fn stands(&self, digest: &Digest) -> Result<Offset, Error> {
        if let Some(upload) = self.uploads().get(digest) {
            return Ok(upload.at());
        }
        let length = self.get(digest).ok_or(Error::NoUpload(*digest))?.length;
        Ok(Offset { offset: length, length, complete: true })
    }

    /// The upload to write to with [`Store::append`]; the last write ends it with [`Store::complete`].
    ///
    /// # Errors
    /// [`Error::NoUpload`].
    pub fn upload(&self, digest: &Digest) -> Result<Arc<Upload>, Error> {
        self.uploads().get(digest).cloned().ok_or(Error::NoUpload(*digest))
    }

    /// Appends bytes to an upload, where they belong and while the disk has room for more than them.
    ///
    /// # Errors
    /// [`Error`]; what was written before stays.
    pub fn append(&self, upload: &Upload, offset: u64, bytes: &[u8]) -> Result<Offset, Error> {
        self.has_room(bytes.len() as u64)?;
        upload.append(offset, bytes)
    }

    /// Ends an upload of which all bytes are there: reads them all, and gives them their name. One that was ended
    /// meanwhile stays what it is.
    ///
    /// # Errors
    /// [`Error::Digest`]: the bytes are removed. [`Error::Busy`]: another request ends it.
    pub fn complete(&self, upload: &Upload) -> Result<Artifact, Error> {
        let digest = *upload.digest();
        let _turn = upload.turn()?;
        if let Some(artifact) = self.get(&digest) {
            return Ok(artifact);
        }
        let (length, found) = (upload.length(), upload.check()?);
        if found != digest {
            self.uploads().remove(&digest);
            upload.remove();
            return Err(Error::Digest { has: found, asked: digest });
        }
        let pushed = upload.pushed();
        // Its names first: bytes without a name would be whole, and nobody would know what for.
        self.keep(&digest, length, &pushed)?;
        let path = self.path(&digest);
        upload.finish(&path)?;
        let artifact = Artifact { digest, length, pushed };
        self.known().insert(digest, artifact.clone());
        self.uploads().remove(&digest);
        Ok(artifact)
    }

    /// Removes an artifact, or an upload of it. Who does so has seen that no release names it.
    ///
    /// # Errors
    /// [`Error::Unknown`] and [`Error::Io`].
    pub fn remove(&self, digest: &Digest) -> Result<(), Error> {
        let upload = self.uploads().remove(digest);
        if let Some(upload) = &upload {
            upload.remove();
        }
        if self.known().remove(digest).is_none() {
            return upload.map(|_| ()).ok_or(Error::Unknown(*digest));
        }
        let path = self.path(digest);
        fs::remove_file(&path).map_err(at(&path))?;
        // Without the bytes it says nothing.
        drop(fs::remove_file(self.folder.join(format!("{digest}.json"))));
        Ok(())
    }

    /// Removes uploads that rest too long; to be called now and then.
    pub fn tidy(&self, now_ms: i64) {
        let mut open = self.uploads();
        let resting: Vec<Digest> =
            open.iter().filter(|(_, upload)| upload.rests(now_ms)).map(|(digest, _)| *digest).collect();
        for digest in resting {
            if let Some(upload) = open.remove(&digest) {
                tracing::info!(%digest, "an upload that nobody went on with was removed");
                upload.remove();
            }
        }
    }

    /// Bytes of all artifacts.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.known().values().map(|artifact| artifact.length).sum()
    }

    /// Bytes that were read of artifacts since the start.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn has_room(&self, length: u64) -> Result<(), Error> {
        let found = rustix::fs::statvfs(&self.folder).map_err(|error| at(&self.folder)(error.into()))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        match free >= length.saturating_add(SPARE_BYTES) {
            true => Ok(()),
            false => Err(Error::Full(format!(
                "the hub's disk has {free} bytes free, which is too few for {length} more"
            ))),
        }
    }

    fn keep(&self, digest: &Digest, length: u64, pushed: &[Pushed]) -> Result<(), Error> {
        let path = self.folder.join(format!("{digest}.json"));
        let kept = Kept { length, pushed: pushed.to_vec() };
        let text = serde_json::to_vec(&kept).expect("texts and numbers make JSON");
        replace(&path, &text).map_err(at(&path))
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Digest, Artifact>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uploads(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<Upload>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names with one more; pushed again, the newer one counts.
fn with(names: &[Pushed], pushed: Pushed) -> Result<Vec<Pushed>, Error> {
    let mut names: Vec<Pushed> =
        names.iter().filter(|known| known.target != pushed.target).cloned().collect();
    if names.len() >= NAMES {
        return Err(Error::Full(format!("these bytes were pushed under {NAMES} names already")));
    }
    names.push(pushed);
    Ok(names)
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { path: path.clone(), source }
}
