//! Backups of a hub, made while it runs, and what a hub is after it was restored from one.
//!
//! Owns the form of a backup, what goes into one, and everything that a restore changes so that the new hub is not
//! taken for the old one. The stores' rooms copy and check redb files; the core decides what a restored hub may not
//! trust. Speaks to nobody.
//!
//! # What a backup is
//! One file: a tar, compressed by zstd, encrypted by age when there is a recipient. `zstd -dc FILE | tar t` lists it.
//!
//! | entry | what |
//! |---|---|
//! | `fleet-backup.json` | first: form, time, the store that it is of ([`Head`]) |
//! | `state.redb`, `telemetry/inbox.redb` | both as they were at one moment |
//! | `telemetry/…` | week files and rollups, when asked for |
//! | `pki/`, `releases/`, `artifacts/`, `access/`, `fleet.toml`, rules | as they lie in the data folder |
//! | `manifest.json` | last: length, SHA-256 and rows of everything before ([`Manifest`]) |
//!
//! In a folder, week files and artifacts lie beside the backups, in `objects/`, each once: a second backup has only what
//! changed. The [trail] of revocations is copied too, but its place is outside: a restored hub needs the lines that came
//! after the backup.
//!
//! # What it does not promise
//! The recovery point is the last backup plus what agents keep: 48 hours, or half their quota. There is one hub at a
//! time; nothing here is high availability.
#![doc = include_str!("operate.md")]

pub mod make;
pub mod prune;
pub mod read;
pub mod restore;
pub mod sealed;
pub mod trail;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::store::{
    disk::{Disk as _, Folder},
    moment::{CopyError, Rows},
};

/// The form of a backup that this build writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// First entry.
pub(crate) const HEAD: &str = "fleet-backup.json";
/// Last entry.
pub(crate) const MANIFEST: &str = "manifest.json";
/// What ends the name of a backup in a folder.
pub const SUFFIX: &str = ".fleet-backup";
/// Folder beside backups, with what they share.
pub const OBJECTS: &str = "objects";
/// Most bytes of [`HEAD`] and [`MANIFEST`]: an entry of 300 bytes for every artifact there may be, four times.
const JSON_BYTES: u64 = 32 * 1024 * 1024;

/// What a backup says of itself before anything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// [`FORMAT`].
    pub format: u32,
    /// When it was made, Unix milliseconds, hub time.
    pub made_ms: i64,
    /// The build that made it.
    pub version: String,
    /// The store that it is of.
    pub store_id: String,
    /// Whether it has the samples of all weeks.
    pub telemetry: bool,
}

/// What is in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// As at its beginning.
    #[serde(flatten)]
    pub head: Head,
    /// Every file in it, in order.
    pub files: Vec<Kept>,
    /// Files that lie beside it, in [`OBJECTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<Elsewhere>,
    /// What of the data folder is not in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// A file in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its name in the data folder.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// Of a redb file: rows by table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Rows>,
}

/// A file beside a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// Its name in the data folder.
    pub path: String,
    /// What it holds, in one word: the same word, the same content.
    pub tag: String,
}

/// Why a backup is not made, read or restored. The text fits after "failed to …: ".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk.
    #[error("{path}: {source}; check permissions and free space")]
    Io {
        /// What.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is too little room.
    #[error("{path}: {source}; {}", room(*needs, *free))]
    Full {
        /// What did not fit.
        path: PathBuf,
        /// Bytes that there have to be, at most.
        needs: u64,
        /// Bytes that there are, where that can be told.
        free: Option<u64>,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A redb file.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The state.
    #[error(transparent)]
    State(#[from] crate::store::state::Error),
    /// Samples.
    #[error(transparent)]
    Telemetry(#[from] crate::store::telemetry::Error),
    /// Both, by the consumer.
    #[error(transparent)]
    Consume(#[from] crate::consume::Error),
    /// Keys.
    #[error(transparent)]
    Pki(#[from] crate::pki::Error),
    /// Releases.
    #[error(transparent)]
    Releases(#[from] crate::release::Error),
    /// Artifacts.
    #[error(transparent)]
    Artifacts(#[from] crate::artifact::Error),
    /// Whoever takes the backup is gone.
    #[error("the backup cannot be handed on: {0}")]
    Out(#[source] io::Error),
    /// It ends too early, or is none.
    #[error("{path} is no whole backup: {why}; take another one")]
    Broken {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The folder's backups are for others.
    #[error(
        "what the backups in {folder} share is encrypted for {before}, and is not written again for anybody else: name the \
         same recipients, or another folder"
    )]
    Recipients {
        /// The folder.
        folder: PathBuf,
        /// For whom.
        before: String,
    },
    /// Its content is not what it says.
    #[error("{path} is damaged: {why}; take another backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Made by a newer build.
    #[error("{path} has format {found}, this build reads up to {FORMAT}; restore it with the newer build")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Encryption.
    #[error(transparent)]
    Sealed(#[from] sealed::SealError),
    /// The trail.
    #[error(transparent)]
    Trail(#[from] trail::TrailError),
    /// There is none.
    #[error("{0} has no backup in it; name a file, or a folder that `fleet backup` wrote to")]
    None(PathBuf),
    /// The folder is somebody's.
    #[error("{0} is not empty; restore into an empty folder, and move the old one away before")]
    NotEmpty(PathBuf),
    /// Somebody else writes to the folder.
    #[error("another backup is written to {0}; wait until it is done")]
    Busy(PathBuf),
    /// An encrypted backup, without the list of what it needs.
    #[error(
        "{0} is encrypted, and objects/ does not say what it needs; remove old backups by hand until it is old itself"
    )]
    NeedsUnknown(PathBuf),
    /// Nobody wants it any more.
    #[error("the backup was given up")]
    GivenUp,
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { path: path.clone(), source }
}

fn room(needs: u64, free: Option<u64>) -> String {
    let bytes = |size: u64| crate::cli::output::bytes(size as f64);
    let free = free.map_or_else(String::new, |free| format!(", {} are", bytes(free)));
    format!("up to {} have to be free there{free}", bytes(needs))
}

/// Bytes that are free for a file in a folder, where that can be told.
fn free(folder: &Path) -> Option<u64> {
    Folder::new(folder).space().map(|space| space.free)
}

fn is_for_room(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

impl Error {
    /// Says how much room is needed in a folder, where this is for want of it.
    #[must_use]
    pub fn with_room(self, folder: &Path, needs: u64) -> Self {
        match self {
            Self::Io { path, source } if is_for_room(&source) => {
                Self::Full { path, needs, free: free(folder), source }
            }
            other => other,
        }
    }

    /// Whether this is for want of room, and does not say yet how much.
    fn is_for_room(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_for_room(source))
    }
}

/// Whether a name may be one in a data folder: relative, plain parts, nothing that leads out of it.
fn is_inside(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']);
    !name.is_empty() && name.len() <= 512 && name.split('/').all(plain)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Rows of some tables, for people: the word, the file, the table.
const TOLD: [(&str, &str, &str); 6] = [
    ("nodes", "state.redb", "nodes"),
    ("events", "state.redb", "events"),
    ("commands", "state.redb", "commands"),
    ("alerts", "state.redb", "alerts"),
    ("enrolments", "state.redb", "enrolments"),
    ("batches_in_inbox", "telemetry/inbox.redb", "rows"),
];

impl Manifest {
    /// How much of what is in it, for people.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let rows = |(word, file, table): &(&'static str, &str, &str)| {
            let kept = self.files.iter().find(|kept| kept.path == *file)?;
            Some((*word, *kept.rows.as_ref()?.get(*table)?))
        };
        TOLD.iter().filter_map(rows).collect()
    }

    /// Bytes of all files in it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|kept| kept.bytes).sum()
    }
}
