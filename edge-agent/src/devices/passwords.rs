//! The passwords of devices: a file in the data folder that `fleet-agent device` writes and the listener reads.
//!
//! A password is 128 random bits, shown once. What is kept is a salted SHA-256 of it: nobody guesses 128 bits, so a slow
//! hash would only slow down a small machine. Owns the file's form and how it is replaced.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use fleet_schemas::{DeviceId, limits};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::clock;

/// The file's name in the data folder.
pub const FILE: &str = "devices.toml";
/// Largest file that is read, in bytes: 256 entries have about 60 kB.
const FILE_BYTES: u64 = 256 * 1024;

/// What is kept of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Entry {
    /// Of its password; absent: it has none, and comes in only where the listener is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    salt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    /// Whether it may speak for other devices.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gateway: bool,
}

type Entries = BTreeMap<DeviceId, Entry>;

/// The file cannot be used. The text fits after "failed to …: ".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read or written.
    #[error("{path}: {source}; it belongs to the agent's user, and so must whoever changes it")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what this program writes.
    #[error("{path} is wrong: {message}; mend it, or move it away and add the devices again")]
    Form {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// There are as many as there may be.
    #[error("there are {} devices already; remove one: fleet-agent device rm ID", limits::DEVICES_PER_NODE)]
    Full,
}

/// The file as the listener knows it.
#[derive(Debug)]
pub(crate) struct Passwords {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    entries: Entries,
    stamp: Option<Stamp>,
    // Let in by a version of the file that was not read as a whole yet: with the next one they may be gone again.
    let_in: Entries,
}

/// Tells one version of the file from another.
type Stamp = (u64, i64, i64, u64);

/// All devices of the file in this folder.
///
/// # Errors
/// [`Error`].
pub fn list(folder: &Path) -> Result<BTreeMap<DeviceId, Entry>, Error> {
    load(&folder.join(FILE))
}

impl Entry {
    /// Whether it has a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.hash.is_some()
    }

    fn takes(&self, password: &[u8]) -> bool {
        let (Some(salt), Some(hash)) = (&self.salt, &self.hash) else { return false };
        digest(salt, password).as_bytes().ct_eq(hash.as_bytes()).into()
    }
}

/// Gives a device a new password and returns it, or none at all; says whether it may speak for others.
///
/// # Errors
/// [`Error`]: nothing changed.
pub fn set(folder: &Path, device: &DeviceId, password: bool, gateway: bool) -> Result<Option<String>, Error> {
    change(folder, |entries| {
        if !entries.contains_key(device) && entries.len() >= limits::DEVICES_PER_NODE {
            return Err(Error::Full);
        }
        let word = password.then(|| hex(&clock::random::<16>()));
        let salt = hex(&clock::random::<16>());
        let entry = match &word {
            Some(word) => Entry { hash: Some(digest(&salt, word.as_bytes())), salt: Some(salt), gateway },
            None => Entry { gateway, ..Entry::default() },
        };
        entries.insert(device.clone(), entry);
        Ok(word)
    })
}

/// Forgets a device. `false`: it was not there.
///
/// # Errors
/// [`Error`]: nothing changed.
pub fn remove(folder: &Path, device: &DeviceId) -> Result<bool, Error> {
    change(folder, |entries| Ok(entries.remove(device).is_some()))
}

impl Passwords {
    /// Reads the file, which may be missing.
    ///
    /// # Errors
    /// [`Error`].
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        let passwords = Self { path: folder.join(FILE), known: Mutex::default() };
        passwords.refresh()?;
        Ok(passwords)
    }

    /// Reads the file again if it is another; gives the devices that are gone, or come in otherwise from now on, and
    /// whether each had a password until now.
    ///
    /// # Errors
    /// [`Error`]: what was known stays.
    pub(crate) fn refresh(&self) -> Result<Vec<(DeviceId, bool)>, Error> {
        let stamp = stamp(&self.path).map_err(|source| Error::Io { path: self.path.clone(), source })?;
        if self.lock().stamp == stamp {
            return Ok(Vec::new());
        }
        let entries = load(&self.path)?;
        let mut known = self.lock();
        known.stamp = stamp;
        let old = std::mem::replace(&mut known.entries, entries);
        // One that had none and has one now comes in with it from now on.
        let new = (known.entries.iter())
            .filter(|(device, entry)| entry.has_password() && !old.contains_key(*device))
            .map(|(device, _)| (device.clone(), false));
        let new: Vec<_> = new.collect();
        let let_in = std::mem::take(&mut known.let_in);
        let changed = old.into_iter().chain(let_in).filter_map(|(device, entry)| {
            let same = known.entries.get(&device).is_some_and(|now| now.hash == entry.hash);
            (!same).then(|| (device, entry.has_password()))
        });
        Ok(changed.chain(new).collect())
    }

    /// Whether this is the device's password, also if it was given in this moment.
    pub(crate) fn takes(&self, device: &DeviceId, password: &[u8]) -> bool {
        let stamp = {
            let known = self.lock();
            if known.entries.get(device).is_some_and(|entry| entry.takes(password)) {
                return true;
            }
            known.stamp
        };
        if !self::stamp(&self.path).is_ok_and(|now| now != stamp) {
            return false;
        }
        let entry = load(&self.path).ok().and_then(|mut new| new.remove(device));
        let Some(entry) = entry.filter(|entry| entry.takes(password)) else { return false };
        // What else changed is for the next refresh to tell.
        self.lock().let_in.insert(device.clone(), entry);
        true
    }

    /// Whether the device has a password.
    pub(crate) fn has(&self, device: &DeviceId) -> bool {
        self.lock().entries.get(device).is_some_and(Entry::has_password)
    }

    /// Whether the device may speak for others.
    pub(crate) fn is_gateway(&self, device: &DeviceId) -> bool {
        self.lock().entries.get(device).is_some_and(|entry| entry.gateway)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(salt: &str, password: &[u8]) -> String {
    hex(&Sha256::new().chain_update(salt).chain_update(b"\n").chain_update(password).finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn stamp(path: &Path) -> io::Result<Option<Stamp>> {
    match fs::metadata(path) {
        // A replaced file is another inode, whatever its times.
        Ok(meta) => Ok(Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn load(path: &Path) -> Result<Entries, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let form = |message: String| Error::Form { path: path.to_owned(), message };
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => drop(file.take(FILE_BYTES + 1).read_to_string(&mut text).map_err(io)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Entries::new()),
        Err(error) => return Err(io(error)),
    }
    if text.len() as u64 > FILE_BYTES {
        return Err(form(format!("it has more than {FILE_BYTES} bytes")));
    }
    let entries: Entries = toml::from_str(&text).map_err(|error| form(error.to_string()))?;
    if entries.len() > limits::DEVICES_PER_NODE {
        return Err(form(format!("it has more than {} devices", limits::DEVICES_PER_NODE)));
    }
    Ok(entries)
}

/// Changes the file, one program at a time, whole or not at all.
fn change<T>(folder: &Path, act: impl FnOnce(&mut Entries) -> Result<T, Error>) -> Result<T, Error> {
    let path = folder.join(FILE);
    let io = |source| Error::Io { path: path.clone(), source };
    // The data folder is the agent's alone: it holds secrets.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
    // Held by whoever changes the file, never replaced itself.
    let mut lock = OpenOptions::new();
    let lock = lock.write(true).create(true).truncate(false).mode(0o600);
    let lock = lock.open(path.with_extension("lock")).map_err(io)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| io(error.into()))?;
    let mut entries = load(&path)?;
    let done = act(&mut entries)?;
    let text = toml::to_string(&entries).expect("entries have only texts and truth values");
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new();
    let file = file.write(true).create(true).truncate(true).mode(0o600);
    let mut file = file.open(&fresh).map_err(io)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
    fs::rename(&fresh, &path).map_err(io)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn device(id: &str) -> DeviceId {
        DeviceId::parse(id).unwrap()
    }

    #[test]
    fn a_password_is_shown_once_and_only_its_hash_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let known = Passwords::open(folder.path()).unwrap();
        let shed = device("shed 1");
        let password = set(folder.path(), &shed, true, false).unwrap().unwrap();
        assert_eq!(password.len(), 32);
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert!(!text.contains(&password), "{text}");
        assert_eq!(fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(known.takes(&shed, password.as_bytes()), "at once");
        assert_eq!(known.refresh().unwrap(), [(shed.clone(), false)]);
        assert!(known.takes(&shed, password.as_bytes()) && known.has(&shed));
        assert!(!known.takes(&shed, b"") && !known.takes(&shed, &password.as_bytes()[1..]));
        assert!(!known.takes(&device("barn"), password.as_bytes()));
        assert_eq!(known.refresh().unwrap(), []);
    }

    #[test]
    fn a_password_that_came_and_went_between_two_looks_ends_whom_it_let_in() {
        let folder = tempfile::tempdir().unwrap();
        let shed = device("shed");
        let known = Passwords::open(folder.path()).unwrap();
        let password = set(folder.path(), &shed, true, false).unwrap().unwrap();
        assert!(known.takes(&shed, password.as_bytes()));
        assert!(remove(folder.path(), &shed).unwrap());
        assert_eq!(known.refresh().unwrap(), [(shed, true)]);
        assert_eq!(known.refresh().unwrap(), []);
    }

    #[test]
    fn a_new_password_ends_the_old_and_a_removed_device_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let shed = device("shed");
        let old = set(folder.path(), &shed, true, false).unwrap().unwrap();
        let known = Passwords::open(folder.path()).unwrap();
        let new = set(folder.path(), &shed, true, true).unwrap().unwrap();
        assert_eq!(known.refresh().unwrap(), [(shed.clone(), true)]);
        assert!(!known.takes(&shed, old.as_bytes()) && known.takes(&shed, new.as_bytes()));
        assert!(known.is_gateway(&shed));
        assert!(remove(folder.path(), &shed).unwrap());
        assert!(!remove(folder.path(), &shed).unwrap());
        assert_eq!(known.refresh().unwrap(), [(shed.clone(), true)]);
        assert!(!known.takes(&shed, new.as_bytes()) && !known.is_gateway(&shed));
        assert_eq!(set(folder.path(), &shed, false, true).unwrap(), None);
        known.refresh().unwrap();
        assert!(!known.takes(&shed, b"") && !known.has(&shed) && known.is_gateway(&shed));
    }

    #[test]
    fn a_file_that_cannot_be_read_keeps_what_was_known() {
        let folder = tempfile::tempdir().unwrap();
        let shed = device("shed");
        let password = set(folder.path(), &shed, true, false).unwrap().unwrap();
        let known = Passwords::open(folder.path()).unwrap();
        fs::write(folder.path().join(FILE), "[shed]\nhash = 7").unwrap();
        let error = known.refresh().unwrap_err().to_string();
        assert!(error.contains("devices.toml is wrong"), "{error}");
        assert!(known.takes(&shed, password.as_bytes()));
        assert!(matches!(set(folder.path(), &shed, true, false), Err(Error::Form { .. })));
    }

    #[test]
    fn there_are_at_most_as_many_as_devices() {
        let folder = tempfile::tempdir().unwrap();
        let entries: Entries =
            (0..limits::DEVICES_PER_NODE).map(|n| (device(&format!("d{n}")), Entry::default())).collect();
        fs::write(folder.path().join(FILE), toml::to_string(&entries).unwrap()).unwrap();
        assert!(matches!(set(folder.path(), &device("more"), true, false), Err(Error::Full)));
        assert!(set(folder.path(), &device("d7"), true, false).is_ok());
        assert!(list(folder.path()).unwrap()[&device("d7")].has_password());
    }
}
