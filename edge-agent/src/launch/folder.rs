//! The folder `releases/agent/`: the record of what runs, and an executable for each release that is kept.
//!
//! `launch.json` is replaced as a whole, and so is every executable: a crash leaves the old file or the new one. Decides
//! nothing.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use fleet_schemas::update::Digest;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use crate::{
    core::launch::{FORMAT, Record, Release},
    identity::folder::replace,
};

/// The record's name.
const RECORD: &str = "launch.json";
/// The executable's name.
const PROGRAM: &str = "fleet-agent";
/// Largest record that is read, in bytes: one has about 600.
const RECORD_BYTES: u64 = 64 * 1024;
/// Digits of the digest in a folder's name.
const DIGITS: usize = 16;

/// The folder cannot be used.
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
    /// The record is none.
    #[error(
        "{path} is damaged ({message}); it is set aside, and the installed agent runs until the next update"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Another launcher uses it.
    #[error("{path} is in use: another `fleet-agent launch` runs on this data folder; end it first")]
    InUse {
        /// The lock.
        path: PathBuf,
    },
    /// What was to be installed is something else.
    #[error("the file for release {version} has the digest {found}, not {wanted}")]
    Other {
        /// The release's version.
        version: String,
        /// The digest of the release.
        wanted: Digest,
        /// That of the file.
        found: Digest,
    },
}

/// The folder `releases/agent/` in a data folder.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

/// As long as it lives, nobody else launches from the folder.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing the file ends the lock")] File);

impl Folder {
    /// The one in this data folder; neither has to exist.
    #[must_use]
    pub fn new(data: &Path) -> Self {
        Self::within(&data.join("releases"))
    }

    /// The one in the folder `releases`.
    pub(crate) fn within(releases: &Path) -> Self {
        Self(releases.join("agent"))
    }

    /// Makes the folder, and keeps other launchers from it.
    ///
    /// # Errors
    /// [`FolderError::InUse`], or the disk.
    pub fn lock(&self) -> Result<Lock, FolderError> {
        self.make(&self.0)?;
        let path = self.0.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(io_of(&path, "opened"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(FolderError::InUse { path }),
            Err(error) => Err(io_of(&path, "locked")(error.into())),
        }
    }

    /// The record; the default where there is none.
    ///
    /// # Errors
    /// The disk; or [`FolderError::Damaged`], also for a record of a format that this build does not know.
    pub fn load(&self) -> Result<Record, FolderError> {
        let path = self.record();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Record::default()),
            Err(source) => return Err(io_of(&path, "read")(source)),
        };
        let mut text = String::new();
        let damaged = |message: String| FolderError::Damaged { path: path.clone(), message };
        match file.take(RECORD_BYTES).read_to_string(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(damaged(error.to_string()));
            }
            read => read.map_err(io_of(&path, "read"))?,
        };
        let record: Record = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        match record.format {
            FORMAT => Ok(record),
            other => Err(damaged(format!("format {other}; this build reads {FORMAT}"))),
        }
    }

    /// Writes the record; on disk when it says `Ok`.
    ///
    /// # Errors
    /// The disk: what was there before is still there.
    pub fn store(&self, record: &Record) -> Result<(), FolderError> {
        self.make(&self.0)?;
        let path = self.record();
        let text = serde_json::to_string_pretty(record).expect("texts and numbers under text keys");
        replace(&path, &text).map_err(io_of(&path, "written"))
    }

    /// Puts a record that cannot be read out of the way.
    pub(crate) fn set_aside(&self) {
        let path = self.record();
        // It is in the way at the next start again, otherwise.
        let _ = fs::rename(&path, path.with_extension("json.damaged"));
    }

    /// Where the executable of a release is.
    #[must_use]
    pub fn program(&self, release: &Release) -> PathBuf {
        self.home(release).join(PROGRAM)
    }

    /// Whether the executable of a release is on disk as it was installed.
    #[must_use]
    pub fn is_sound(&self, release: &Release) -> bool {
        let path = self.program(release);
        let Ok(meta) = fs::symlink_metadata(&path) else { return false };
        let executable = meta.is_file() && meta.permissions().mode() & 0o100 != 0;
        executable && digest_of(&path).is_ok_and(|digest| digest == release.digest)
    }

    /// Makes an executable of a file and puts it beside those that are there. Done again, it changes nothing.
    ///
    /// # Errors
    /// [`FolderError::Other`], or the disk: nothing that was there is touched.
    pub fn install(&self, release: &Release, from: &Path) -> Result<(), FolderError> {
        if self.is_sound(release) {
            return Ok(());
        }
        let home = self.home(release);
        self.make(&home)?;
        let program = self.program(release);
        let new = home.join("fleet-agent.new");
        let mut source = File::open(from).map_err(io_of(from, "read"))?;
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o700).open(&new);
        let mut file = opened.map_err(io_of(&new, "written"))?;
        let found = copy(&mut source, &mut file).map_err(io_of(&new, "written"))?;
        if found != release.digest {
            let _ = fs::remove_file(&new);
            let version = release.version.as_str().to_owned();
            return Err(FolderError::Other { version, wanted: release.digest, found });
        }
        file.sync_all().map_err(io_of(&new, "written"))?;
        // Executing a file that is open for writing fails (ETXTBSY).
        drop(file);
        fs::rename(&new, &program).map_err(io_of(&program, "put into place"))?;
        [&home, &self.0].into_iter().try_for_each(|folder| sync(folder))
    }

    /// Removes the executables of releases that are not kept.
    pub fn clean(&self, record: &Record) {
        let kept: BTreeSet<_> = record.kept().map(|release| self.home(release)).collect();
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() && !kept.contains(&path) {
                // What stays takes room, and is tried again at the next update.
                let _ = fs::remove_dir_all(&path);
            }
        }
    }

    fn record(&self) -> PathBuf {
        self.0.join(RECORD)
    }

    fn home(&self, release: &Release) -> PathBuf {
        let digits = &release.digest.to_string()[..DIGITS];
        self.0.join(format!("{}-{digits}", release.version.as_str()))
    }

    fn make(&self, path: &Path) -> Result<(), FolderError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(io_of(path, "made"))
    }
}

/// The digest of a file.
///
/// # Errors
/// What the system says.
pub fn digest_of(path: &Path) -> io::Result<Digest> {
    copy(&mut File::open(path)?, &mut io::sink())
}

/// Copies, and digests what is copied.
fn copy(from: &mut impl io::Read, to: &mut impl io::Write) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(Digest(hash.finalize().into())),
            Ok(n) => {
                hash.update(&buffer[..n]);
                to.write_all(&buffer[..n])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn sync(folder: &Path) -> Result<(), FolderError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_of(folder, "written"))
}

fn io_of(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { path, what, source }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fleet_schemas::MetricName;

    use super::*;

    fn release(version: &str, content: &[u8]) -> Release {
        let digest = Digest(Sha256::digest(content).into());
        Release { version: MetricName::parse(version).unwrap(), digest }
    }

    fn file(data: &Path, content: &[u8]) -> PathBuf {
        let path = data.join("download");
        fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn what_is_installed_is_sound_until_a_bit_of_it_changes() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::new(data.path());
        let new = release("1.2.0", b"#!/bin/sh\n");
        assert!(!folder.is_sound(&new));
        let from = file(data.path(), b"#!/bin/sh\n");
        folder.install(&new, &from).unwrap();
        folder.install(&new, &from).unwrap();
        assert!(folder.is_sound(&new));
        let name = format!("releases/agent/1.2.0-{}/fleet-agent", &new.digest.to_string()[..16]);
        let path = data.path().join(name);
        assert_eq!(folder.program(&new), path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        for damage in [&b"#!/bin/sj\n"[..], b"#!/bin/sh", b""] {
            fs::write(&path, damage).unwrap();
            assert!(!folder.is_sound(&new), "{damage:?}");
            folder.install(&new, &from).unwrap();
            assert!(folder.is_sound(&new), "installing it again mends it");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!folder.is_sound(&new));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&from, &path).unwrap();
        assert!(!folder.is_sound(&new), "a link is no release");
    }

    #[test]
    fn a_file_of_another_release_is_not_installed() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::new(data.path());
        let new = release("1.2.0", b"one");
        let error = folder.install(&new, &file(data.path(), b"two")).unwrap_err();
        assert!(matches!(error, FolderError::Other { .. }), "{error}");
        assert!(!folder.program(&new).exists());
    }

    #[test]
    fn a_crash_at_any_byte_of_a_write_leaves_a_whole_record() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::new(data.path());
        assert_eq!(folder.load().unwrap(), Record::default());
        let mut old = Record::default();
        old.offer(release("1.0.0", b"one"), Duration::from_secs(1));
        folder.store(&old).unwrap();
        let mut new = old.clone();
        new.begin(|_| true);
        let text = serde_json::to_string_pretty(&new).unwrap();
        for written in 0..=text.len() {
            fs::write(folder.record().with_extension("json.new"), &text[..written]).unwrap();
            assert_eq!(folder.load().unwrap(), old, "{written} bytes were written");
        }
        folder.store(&new).unwrap();
        assert_eq!(folder.load().unwrap(), new);
        for damage in [&text.as_bytes()[..40], b"\xff\xfe", b"", br#"{"format": 2}"#] {
            fs::write(folder.record(), damage).unwrap();
            assert!(matches!(folder.load(), Err(FolderError::Damaged { .. })));
        }
        folder.set_aside();
        assert_eq!(folder.load().unwrap(), Record::default());
    }

    #[test]
    fn only_what_may_run_again_is_kept() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::new(data.path());
        let mut record = Record::default();
        for version in ["1.0.0", "2.0.0", "3.0.0", "4.0.0"] {
            let new = release(version, version.as_bytes());
            folder.install(&new, &file(data.path(), version.as_bytes())).unwrap();
            record.offer(new.clone(), Duration::from_secs(1));
            if version != "4.0.0" {
                record.confirm(new.digest);
            }
        }
        folder.clean(&record);
        let there = |version: &str| folder.is_sound(&release(version, version.as_bytes()));
        assert!(!there("1.0.0") && there("2.0.0") && there("3.0.0") && there("4.0.0"));
    }

    #[test]
    fn one_launcher_at_a_time() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::new(data.path());
        let lock = folder.lock().unwrap();
        assert!(matches!(folder.lock(), Err(FolderError::InUse { .. })));
        drop(lock);
        folder.lock().unwrap();
    }
}
