//! Metadata on disk, changed as a whole: what is to be written is noted first, then written file by file, the timestamp
//! last. A change that a crash cut short is written again at the next start.
//!
//! Owns `releases/` in the data folder: the files of the repository, `next.json` (a change under way), and `online.json`
//! (the hub's own keys, 0600).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Error, Key};
use crate::pki::file::replace;

/// Name of the folder in the data folder.
pub const FOLDER: &str = "releases";
const NEXT: &str = "next.json";
/// The lowest version of the next targets, after a restore.
const FLOOR: &str = "floor.json";
const ONLINE: &str = "online.json";
/// The file that makes a change count.
pub(super) const TIMESTAMP: &str = "timestamp.json";

/// The files of the repository, by name.
pub(super) type Files = BTreeMap<String, Bytes>;

/// A change of the files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Next {
    pub(super) write: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) remove: BTreeSet<String>,
}

/// One step of a change; each may be done again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step<'a> {
    Note,
    Write(&'a str, &'a str),
    Remove(&'a str),
    Forget,
}

/// The hub's own keys.
#[derive(Debug)]
pub(super) struct Online {
    pub(super) snapshot: Key,
    pub(super) timestamp: Key,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    format: u32,
    snapshot: String,
    timestamp: String,
}

#[derive(Serialize, Deserialize)]
struct Floor {
    targets: u64,
}

#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Next {
    /// The order: first it is noted, and the timestamp is the last file that is written.
    pub(super) fn steps(&self) -> Vec<Step<'_>> {
        let mut steps = vec![Step::Note];
        let last = self.write.get_key_value(TIMESTAMP);
        let first = self.write.iter().filter(|(name, _)| *name != TIMESTAMP);
        steps.extend(first.chain(last).map(|(name, text)| Step::Write(name, text)));
        steps.extend(self.remove.iter().map(|name| Step::Remove(name)));
        steps.push(Step::Forget);
        steps
    }
}

impl Folder {
    pub(super) fn open(data: &Path) -> Result<Self, Error> {
        let path = data.join(FOLDER);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(at(&path))?;
        let folder = Self(path);
        let next = folder.0.join(NEXT);
        match fs::read(&next) {
            Ok(bytes) => {
                let damaged =
                    |error: serde_json::Error| Error::Damaged { path: next.clone(), why: error.to_string() };
                let next: Next = serde_json::from_slice(&bytes).map_err(damaged)?;
                folder.change(&next)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at(&next)(error)),
        }
        Ok(folder)
    }

    /// The lowest version that the next targets may have; 0 unless the hub was restored.
    pub(super) fn floor(&self) -> Result<u64, Error> {
        let path = self.0.join(FLOOR);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(at(&path)(error)),
        };
        let floor: Floor = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Damaged { path: path.clone(), why: error.to_string() })?;
        Ok(floor.targets)
    }

    /// Raises it; durable when this returns.
    pub(super) fn raise(&self, targets: u64) -> Result<(), Error> {
        let targets = targets.max(self.floor()?);
        let text = serde_json::to_vec(&Floor { targets }).expect("numbers make JSON");
        self.replace(FLOOR, &text)
    }

    /// Changes files; durable when it returns.
    pub(super) fn change(&self, next: &Next) -> Result<(), Error> {
        next.steps().iter().try_for_each(|step| self.step(next, step))
    }

    pub(super) fn step(&self, next: &Next, step: &Step<'_>) -> Result<(), Error> {
        match step {
            Step::Note => {
                let text = serde_json::to_vec(next).expect("texts make JSON");
                self.replace(NEXT, &text)
            }
            Step::Write(name, text) => self.replace(name, text.as_bytes()),
            Step::Remove(name) => self.remove(name),
            Step::Forget => self.remove(NEXT),
        }
    }

    /// The files of the repository.
    pub(super) fn files(&self) -> Result<Files, Error> {
        let mut files = Files::new();
        for entry in fs::read_dir(&self.0).map_err(at(&self.0))? {
            let entry = entry.map_err(at(&self.0))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if name == TIMESTAMP || versioned(&name).is_some() {
                let bytes = fs::read(entry.path()).map_err(at(&entry.path()))?;
                files.insert(name, bytes.into());
            }
        }
        Ok(files)
    }

    /// The hub's own keys; made at the first start.
    pub(super) fn online(&self) -> Result<Online, Error> {
        let path = self.0.join(ONLINE);
        let damaged = |why: String| Error::Damaged { path: path.clone(), why };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let online = Online { snapshot: Key::generate()?, timestamp: Key::generate()? };
                let pem = |key: &Key| key.to_pem("").map(|pem| pem.to_string());
                let kept =
                    Kept { format: 1, snapshot: pem(&online.snapshot)?, timestamp: pem(&online.timestamp)? };
                let text = serde_json::to_vec_pretty(&kept).expect("texts make JSON");
                self.replace(ONLINE, &text)?;
                return Ok(online);
            }
            Err(error) => return Err(at(&path)(error)),
        };
        if fs::metadata(&path).map_err(at(&path))?.permissions().mode() & 0o077 != 0 {
            return Err(damaged(
                "it is open to other users of this machine; close it with `chmod 600`".to_owned(),
            ));
        }
        let kept: Kept = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if kept.format != 1 {
            return Err(damaged(format!("it has format {}; use the newer `fleet`", kept.format)));
        }
        Ok(Online {
            snapshot: Key::read(&kept.snapshot, None)?,
            timestamp: Key::read(&kept.timestamp, None)?,
        })
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.0.join(name);
        replace(&path, bytes).map_err(at(&path))
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.0.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
            Err(_) | Ok(()) => Ok(()),
        }
    }
}

/// The version and role of a file such as `7.targets.json`.
pub(super) fn versioned(name: &str) -> Option<(u64, &str)> {
    let (version, rest) = name.split_once('.')?;
    let role = rest.strip_suffix(".json")?;
    let known = ["root", "snapshot", "targets"].contains(&role);
    let version: u64 = version.parse().ok().filter(|read: &u64| read.to_string() == version)?;
    known.then_some((version, role))
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { path: path.clone(), source }
}
