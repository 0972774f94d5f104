//! Which backups of a folder stay, and what goes with those that do not.
//!
//! Only backups that have the name that a folder gives them, their time, are counted and removed; what else lies there
//! stays, and so does everything that it needs. A file beside the backups goes when no backup that is left needs it: so
//! every one of them is read first, and if one cannot be, nothing is removed at all. Backups go before what only they
//! need: killed at any step, whatever still has its name is whole.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    Error, Manifest, OBJECTS, SUFFIX, at,
    read::{self, PassOver},
    sealed::{self, Recipient},
};
use crate::pki::file::replace;

/// Ends the name of the list of what an encrypted backup needs, in [`OBJECTS`]: whoever removes cannot open it.
const NEEDS: &str = ".needs";
/// Most bytes of such a list: 64 for every artifact and week there may be.
const NEEDS_BYTES: u64 = 4 * 1024 * 1024;
/// How a name that a folder gives begins, `d` for a digit: the second in which it was made, UTC.
const NAME: &str = "dddd-dd-ddTddddddZ";

/// One backup at a time is written to a folder, and nothing is removed meanwhile.
#[derive(Debug)]
pub struct Alone {
    // Locked until it is closed.
    _folder: File,
}

/// What stays and what goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Backups that stay, of those that are counted; oldest first.
    pub kept: Vec<PathBuf>,
    /// Backups that go, oldest first.
    pub removed: Vec<PathBuf>,
    /// Files in [`OBJECTS`] that no backup that stays needs.
    pub objects: Vec<PathBuf>,
    /// Bytes of what goes.
    pub bytes: u64,
}

impl Alone {
    /// Locks a folder; nothing where its filesystem has no locks.
    ///
    /// # Errors
    /// [`Error::Busy`] while somebody else has it, [`Error::Io`].
    pub fn new(folder: &Path) -> Result<Option<Self>, Error> {
        let file = File::open(folder).map_err(at(folder))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _folder: file })),
            Err(fs::TryLockError::WouldBlock) => Err(Error::Busy(folder.to_owned())),
            Err(fs::TryLockError::Error(error)) => {
                tracing::debug!(%error, folder = %folder.display(), "the folder cannot be locked");
                Ok(None)
            }
        }
    }
}

/// For whom a folder's objects are encrypted, a line for each; nothing: they are not.
const RECIPIENTS: &str = "recipients";

/// How folders are called in which a backup is unpacked when it is verified.
pub const SCRATCH: &str = ".verify-";

/// What to remove so that `keep` backups stay, `newest` among them whatever its time. Without a `newest`: as it would be
/// after the next one, which is taken to need what the last one does.
///
/// # Errors
/// [`Error`]: a backup that would stay cannot be read to its end, and nothing may be removed.
pub fn plan(folder: &Path, newest: Option<&Path>, keep: usize) -> Result<Plan, Error> {
    let all = read::list(folder)?;
    let is_counted = |path: &&PathBuf| is_named_by_time(path) && newest.is_none_or(|newest| *path != newest);
    let counted: Vec<&PathBuf> = all.iter().filter(is_counted).collect();
    let (removed, kept) = counted.split_at(counted.len().saturating_sub(keep.saturating_sub(1)));
    let mut plan = Plan {
        kept: kept.iter().map(|path| path.to_path_buf()).chain(newest.map(Path::to_path_buf)).collect(),
        removed: removed.iter().map(|path| path.to_path_buf()).collect(),
        ..Plan::default()
    };
    if plan.removed.is_empty() {
        return Ok(plan);
    }
    let mut needed = BTreeSet::new();
    let next = counted.last().filter(|_| newest.is_none());
    for path in all.iter().filter(|path| !plan.removed.contains(path)).chain(next.copied()) {
        needed.append(&mut needs(folder, path)?);
    }
    let objects = read::objects(&folder.join(OBJECTS))?;
    let unneeded = objects.into_iter().filter(|(tag, _)| !needed.contains(tag));
    plan.objects = unneeded.map(|(_, (_, path))| path).collect();
    plan.objects.append(&mut rests(folder, &plan.removed)?);
    let gone = plan.removed.iter().chain(&plan.objects);
    plan.bytes = gone.map(|path| fs::metadata(path).map_or(0, |meta| meta.len())).sum();
    Ok(plan)
}

/// Removes what is to go, by `remove`; begun again after a failure, it goes on.
///
/// # Errors
/// [`Error::Io`]: some of it is still there.
pub fn carry_out(
    folder: &Path,
    plan: &Plan,
    remove: &mut dyn FnMut(&Path) -> io::Result<()>,
) -> Result<(), Error> {
    let mut gone = |path: &Path| match remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        Err(_) | Ok(()) => Ok(()),
    };
    plan.removed.iter().try_for_each(|path| gone(path))?;
    // A backup must not come back, after the power failed, when what it needs does not.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))?;
    plan.objects.iter().try_for_each(|path| gone(path))
}

/// Removes what a backup into this folder left that was killed: it holds the hub's keys, and takes up room. Call it while no
/// other backup goes on there.
///
/// # Errors
/// [`Error::Io`].
pub fn clear(folder: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let removed = if name.starts_with(SCRATCH) && path.is_dir() {
            fs::remove_dir_all(&path)
        } else if name.ends_with(&format!("{SUFFIX}.partial")) {
            fs::remove_file(&path)
        } else {
            continue;
        };
        removed.map_err(at(&path))?;
    }
    Ok(())
}

/// Holds a folder's objects to one set of recipients: what is shared is written once, for those that were named then.
///
/// # Errors
/// [`Error::Recipients`], or [`Error::Io`].
pub fn hold_to(folder: &Path, recipients: &[Recipient]) -> Result<(), Error> {
    let objects = folder.join(OBJECTS);
    let path = objects.join(RECIPIENTS);
    let mut names: Vec<String> = recipients.iter().map(ToString::to_string).collect();
    names.sort();
    let text = names.join("\n");
    match fs::read_to_string(&path) {
        Ok(before) if before == text => Ok(()),
        Ok(before) => {
            let before = if before.is_empty() { "nobody".to_owned() } else { before.replace('\n', ", ") };
            Err(Error::Recipients { folder: folder.to_owned(), before })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(&objects).map_err(at(&objects))?;
            replace(&path, text.as_bytes()).map_err(at(&path))
        }
        Err(error) => Err(at(&path)(error)),
    }
}

/// What is of use to nobody: what a backup that was killed left, and lists of backups that are gone or go.
fn rests(folder: &Path, removed: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let objects = folder.join(OBJECTS);
    let mut found = Vec::new();
    let entries = match fs::read_dir(&objects) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(at(&objects))?,
    };
    for entry in entries {
        let path = entry.map_err(at(&objects))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let backup = name.strip_suffix(NEEDS).map(|name| folder.join(name));
        let is_orphan = backup.is_some_and(|backup| removed.contains(&backup) || !backup.exists());
        if is_orphan || name.ends_with(".partial") || name.ends_with(&format!("{NEEDS}.new")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Writes down what an encrypted backup needs, beside it, before it has its name.
///
/// # Errors
/// [`Error::Io`].
pub fn write_needs(folder: &Path, backup: &Path, manifest: &Manifest) -> Result<(), Error> {
    let tags: BTreeSet<&str> = manifest.elsewhere.iter().map(|one| one.tag.as_str()).collect();
    let text = serde_json::to_vec(&tags).expect("texts make JSON");
    let path = needs_file(folder, backup);
    replace(&path, &text).map_err(at(&path))
}

fn needs_file(folder: &Path, backup: &Path) -> PathBuf {
    let mut name = backup.file_name().unwrap_or_default().to_owned();
    name.push(NEEDS);
    folder.join(OBJECTS).join(name)
}

/// Tags of what a backup needs beside it.
fn needs(folder: &Path, backup: &Path) -> Result<BTreeSet<String>, Error> {
    let mut file = File::open(backup).map_err(at(backup))?;
    let mut beginning = Vec::new();
    file.by_ref().take(32).read_to_end(&mut beginning).map_err(at(backup))?;
    if !sealed::is_sealed(&beginning) {
        let manifest = read::read_file(backup, None, &mut PassOver)?;
        return Ok(manifest.elsewhere.into_iter().map(|one| one.tag).collect());
    }
    let path = needs_file(folder, backup);
    let mut text = Vec::new();
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NeedsUnknown(backup.to_owned()));
        }
        file => file.and_then(|file| file.take(NEEDS_BYTES).read_to_end(&mut text)).map_err(at(&path))?,
    };
    serde_json::from_slice(&text).map_err(|_| Error::NeedsUnknown(backup.to_owned()))
}

/// The time that a backup was named by, Unix milliseconds.
pub(super) fn time_of(path: &Path) -> Option<i64> {
    let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX).filter(|_| is_named_by_time(path))?;
    let time = jiff::civil::DateTime::strptime("%Y-%m-%dT%H%M%SZ", name).ok()?;
    Some(jiff::tz::TimeZone::UTC.to_timestamp(time).ok()?.as_millisecond())
}

fn is_named_by_time(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
    let fits = |(is, wanted): (u8, u8)| if wanted == b'd' { is.is_ascii_digit() } else { is == wanted };
    name.is_some_and(|name| name.len() == NAME.len() && name.bytes().zip(NAME.bytes()).all(fits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_people_gave_are_not_counted() {
        let is = |name: &str| is_named_by_time(Path::new(name));
        assert!(is("/mnt/2026-11-30T031500Z.fleet-backup"));
        for other in [
            "monday.fleet-backup",
            "2026-11-30T031500Z",
            "2026-11-30T031500Z.fleet-backup.partial",
            "2026-11-30Txxxxxxz.fleet-backup",
            "2026-11-30T031500Z-before-upgrade.fleet-backup",
        ] {
            assert!(!is(other), "{other}");
        }
        assert_eq!(time_of(Path::new("/mnt/1970-01-02T000001Z.fleet-backup")), Some(86_401_000));
    }
}
