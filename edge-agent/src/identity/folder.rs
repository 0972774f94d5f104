//! The folder `identity/`: what is in it, and how it changes.
//!
//! `joined.json` is replaced as a whole: written under another name, synced, renamed. A crash leaves the old one or
//! the new one. `joining.pem` is the key of a join that is not yet through, so that the next try asks with the same.
//! `left` says that the node was another hub's before, until what it trusted of that hub's releases is forgotten.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use super::{
    certificate::Key,
    record::{FORMAT, Joined},
};

/// Largest file that is read, in bytes: a pair has about 2,000, a CA 700.
const FILE_BYTES: u64 = 256 * 1024;

/// The folder cannot be used. The text fits after "failed to …: ".
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The disk.
    #[error("{path} cannot be {what}: {source}; check the disk and the rights on the data folder")]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Not ours, or damaged.
    #[error(
        "{path} is damaged ({message}): put it back from a backup, or join again with a new token and --force"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Written by a newer agent.
    #[error(
        "{path} has format {found}, this agent reads up to {FORMAT}: run the agent that wrote it, or a newer one"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Somebody else changes it.
    #[error(
        "{path} is in use: an agent runs on this data folder, or another `fleet-agent join`; end it first"
    )]
    InUse {
        /// The lock.
        path: PathBuf,
    },
}

/// The folder `identity/` in a data folder.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

/// As long as it lives, nobody else changes the folder.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing the file ends the lock")] File);

impl Folder {
    /// The one in this data folder; neither has to exist.
    #[must_use]
    pub fn new(data: &Path) -> Self {
        Self(data.join("identity"))
    }

    /// Who the node is; `None` when it has not joined.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn load(&self) -> Result<Option<Joined>, FolderError> {
        /// Read first: a newer format may differ in everything else.
        #[derive(serde::Deserialize)]
        struct Head {
            format: u32,
        }
        let path = self.joined();
        let Some(text) = read(&path)? else { return Ok(None) };
        let damaged = |message: String| FolderError::Damaged { path: path.clone(), message };
        let head: Head = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if head.format > FORMAT {
            return Err(FolderError::Newer { path, found: head.format });
        }
        let joined: Joined = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let public = joined.current.key.public_key().map_err(|error| damaged(format!("its key {error}")))?;
        let certificate = super::certificate::Certificate::from_pem(&joined.current.certificate)
            .map_err(|error| damaged(format!("its certificate {error}")))?;
        if certificate.public_key != public {
            return Err(damaged("its certificate is for another key".to_owned()));
        }
        Ok(Some(joined))
    }

    /// Writes down who the node is; on disk when it says `Ok`.
    ///
    /// # Errors
    /// [`FolderError`]: what was there before is still there.
    pub fn store(&self, joined: &Joined) -> Result<(), FolderError> {
        let text = serde_json::to_string_pretty(joined).expect("texts and numbers under text keys");
        self.replace(&self.joined(), &text)
    }

    /// The key to join with: the one of a try that did not come through, else a new one. Never `used`, the one of the
    /// certificate that is to be left.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn joining_key(&self, used: Option<&Key>) -> Result<Key, FolderError> {
        let path = self.joining();
        let kept = read(&path)?.and_then(|text| Key::from_pem(&text).ok());
        if let Some(key) = kept.filter(|key| Some(key) != used) {
            return Ok(key);
        }
        let key = Key::generate();
        self.replace(&path, key.pem())?;
        Ok(key)
    }

    /// The join is through: its key is stored with its certificate.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn end_joining(&self) -> Result<(), FolderError> {
        remove(self.joining())
    }

    /// What is stored next is of another hub than what was before.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn leave(&self) -> Result<(), FolderError> {
        self.replace(&self.left(), "")
    }

    /// Whether the node was another hub's before, and [`Folder::end_leaving`] has not been said.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.left().exists()
    }

    /// Nothing of the hub before is trusted any more.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn end_leaving(&self) -> Result<(), FolderError> {
        remove(self.left())
    }

    /// Keeps others from changing the folder; it is made if need be.
    ///
    /// # Errors
    /// [`FolderError::InUse`], or the disk.
    pub fn lock(&self) -> Result<Lock, FolderError> {
        self.make()?;
        let path = self.0.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(|source| FolderError::Io { path: path.clone(), what: "opened", source })?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(FolderError::InUse { path }),
            Err(error) => Err(FolderError::Io { path, what: "locked", source: error.into() }),
        }
    }

    fn joined(&self) -> PathBuf {
        self.0.join("joined.json")
    }

    fn joining(&self) -> PathBuf {
        self.0.join("joining.pem")
    }

    fn left(&self) -> PathBuf {
        self.0.join("left")
    }

    fn make(&self) -> Result<(), FolderError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.map_err(|source| FolderError::Io { path: self.0.clone(), what: "made", source })
    }

    fn replace(&self, path: &Path, text: &str) -> Result<(), FolderError> {
        self.make()?;
        replace(path, text).map_err(|source| FolderError::Io {
            path: path.to_owned(),
            what: "written",
            source,
        })
    }
}

/// Replaces a file as a whole, readable by its owner only: after a crash it has the old content or the new.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The rename is on disk with the folder.
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn remove(path: PathBuf) -> Result<(), FolderError> {
    match fs::remove_file(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(FolderError::Io { path, what: "removed", source }),
    }
}

fn read(path: &Path) -> Result<Option<String>, FolderError> {
    use std::io::Read as _;
    let io = |source| FolderError::Io { path: path.to_owned(), what: "read", source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io(source)),
    };
    let mut text = String::new();
    file.take(FILE_BYTES).read_to_string(&mut text).map_err(io)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::identity::given;

    #[test]
    fn what_is_stored_is_read_back_and_for_its_owner_only() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::new(data.path());
        assert_eq!(folder.load().unwrap(), None);
        let joined = given::joined("edge-1");
        folder.store(&joined).unwrap();
        assert_eq!(folder.load().unwrap(), Some(joined));
        let mode = |name: &str| fs::metadata(data.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("identity"), mode("identity/joined.json")), (0o700, 0o600));
        folder.joining_key(None).unwrap();
        assert_eq!(mode("identity/joining.pem"), 0o600);
    }

    #[test]
    fn a_crash_at_any_byte_of_a_write_leaves_a_whole_pair() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::new(data.path());
        let (old, new) = (given::joined("edge-1"), given::joined("edge-1"));
        assert_ne!(old.current.key, new.current.key);
        folder.store(&old).unwrap();
        let text = serde_json::to_string_pretty(&new).unwrap();
        for written in (0..=text.len()).step_by(97).chain([text.len()]) {
            fs::write(data.path().join("identity/joined.json.new"), &text[..written]).unwrap();
            assert_eq!(folder.load().unwrap().as_ref(), Some(&old), "{written} bytes were written");
        }
        // After the crash, the next try goes through.
        folder.store(&new).unwrap();
        assert_eq!(folder.load().unwrap(), Some(new));
    }

    #[test]
    fn the_key_of_an_unfinished_join_is_kept() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::new(data.path());
        let key = folder.joining_key(None).unwrap();
        assert_eq!(folder.joining_key(Some(&Key::generate())).unwrap(), key);
        let other = folder.joining_key(Some(&key)).unwrap();
        assert_ne!(other, key);
        folder.end_joining().unwrap();
        folder.end_joining().unwrap();
        assert_ne!(folder.joining_key(None).unwrap(), other);
    }

    #[test]
    fn damage_a_newer_format_and_a_parted_pair_are_named() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::new(data.path());
        folder.make().unwrap();
        let mut parted = given::joined("edge-1");
        parted.current.key = Key::generate();
        let parted = serde_json::to_string(&parted).unwrap();
        for (text, hint) in [
            ("", "damaged"),
            ("{\"format\":1}", "damaged"),
            ("{\"format\":99,\"soul\":1}", "format 99"),
            (&parted, "another key"),
        ] {
            fs::write(folder.joined(), text).unwrap();
            let error = folder.load().unwrap_err().to_string();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
    }

    #[test]
    fn two_may_not_change_it_at_a_time() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::new(data.path());
        let lock = folder.lock().unwrap();
        assert!(matches!(folder.lock(), Err(FolderError::InUse { .. })));
        drop(lock);
        folder.lock().unwrap();
    }
}
