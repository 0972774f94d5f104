//! Where the store's files live: a folder of the filesystem, or memory for the simulator and the crash tests.
//!
//! Owns creating, listing, setting aside and unlinking files, and the `meta` check every redb file passes when
//! it is opened. Must not know what is in a file.

mod held;
mod memory;
pub mod migrate;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, StorageBackend, TableDefinition, TableError,
};

use held::Held;

pub use memory::{Memory, When};

/// The table that every file of ours has: `format` (u32, little-endian) and `store_id` (16 bytes, where known).
pub(in crate::store) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

const FORMAT: &str = "format";
const STORE_ID: &str = "store_id";

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The filesystem refused.
    #[error("{doing} {name}: {source}; check permissions and free space")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file, relative to the data folder.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Written by a newer build.
    #[error(
        "{name} has format {found}, this build reads up to {known}; run the newer build again, or restore a backup"
    )]
    Newer {
        /// The file.
        name: String,
        /// Its format.
        found: u32,
        /// The newest we read.
        known: u32,
    },
    /// Written by an older build that this one does not know any more.
    #[error(
        "{name} has format {found}, and this build knows no way from there to {known}; run the builds in between first, \
         one after the other"
    )]
    Older {
        /// The file.
        name: String,
        /// Its format.
        found: u32,
        /// The one that it is to have.
        known: u32,
    },
    /// There is no way back.
    #[error(
        "{name} was written to since it was brought to today's format; restore a backup of before instead"
    )]
    Touched {
        /// The file.
        name: String,
    },
    /// Not a redb file of ours, or its pages contradict each other.
    #[error("{name} is damaged: {why}")]
    Corrupt {
        /// The file.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The file belongs to another store.
    #[error("{name} belongs to another store; put the data folder back as a whole, from one backup")]
    Foreign {
        /// The file.
        name: String,
    },
    /// Another process holds it.
    #[error("{name} is in use by another process; stop the other hub")]
    Locked {
        /// The file.
        name: String,
    },
    /// redb refused for another reason.
    #[error("open {name}: {source}")]
    Redb {
        /// The file.
        name: String,
        /// What redb said.
        #[source]
        source: Box<redb::Error>,
    },
}

impl DiskError {
    /// Whether the file itself is bad, so that it should be set aside (an I/O error may pass).
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt { .. })
    }
}

/// Bytes of the filesystem that holds the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Left for us.
    pub free: u64,
    /// In all: used and left.
    pub total: u64,
}

/// A place for files. Names are relative, with `/`: `telemetry/inbox.redb`.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file, which is created (and its folder) when missing.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    fn open(&self, name: &str) -> Result<Box<dyn StorageBackend>, DiskError>;
    /// Names of the files in a folder, sorted; a missing folder has none.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    fn list(&self, folder: &str) -> Result<Vec<String>, DiskError>;
    /// Unlinks a file. A missing file is no error.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    fn remove(&self, name: &str) -> Result<(), DiskError>;
    /// Moves a damaged file out of the way, never deletes it; gives its new name.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    fn set_aside(&self, name: &str) -> Result<String, DiskError>;
    /// Gives a file another name, in the place of whatever has it.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError>;
    /// Bytes a file takes; 0 when it is missing.
    fn size(&self, name: &str) -> u64;
    /// Space on the filesystem, where it can be told.
    fn space(&self) -> Option<Space>;
}

/// The real one: a folder of the filesystem.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// Files below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    fn io(doing: &'static str, name: &str) -> impl FnOnce(io::Error) -> DiskError {
        let name = name.to_owned();
        move |source| DiskError::Io { doing, name, source }
    }

    /// A directory entry is durable only when the directory is synced.
    fn sync_folder(path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
    }
}

impl Disk for Folder {
    fn open(&self, name: &str) -> Result<Box<dyn StorageBackend>, DiskError> {
        let path = self.0.join(name);
        let open = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let fresh = !path.exists();
            let file =
                fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            if fresh {
                Self::sync_folder(&path)?;
            }
            Ok(file)
        };
        let file = open().map_err(Self::io("open", name))?;
        let backend = redb::backends::FileBackend::new(file).map_err(|error| classify(name, error))?;
        Ok(Box::new(backend))
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, DiskError> {
        let entries = match fs::read_dir(self.0.join(folder)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Self::io("list", folder)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Self::io("list", folder))?;
            if entry.path().is_file() {
                names.push(format!("{folder}/{}", entry.file_name().to_string_lossy()));
            }
        }
        names.sort();
        Ok(names)
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        let path = self.0.join(name);
        match fs::remove_file(&path) {
            Ok(()) => Self::sync_folder(&path).map_err(Self::io("sync the folder of", name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Self::io("remove", name)(error)),
        }
    }

    fn set_aside(&self, name: &str) -> Result<String, DiskError> {
        let free = (1_u32..).map(|n| aside_name(name, n)).find(|aside| !self.0.join(aside).exists());
        let aside = free.expect("the numbers do not run out");
        let path = self.0.join(&aside);
        fs::rename(self.0.join(name), &path)
            .and_then(|()| Self::sync_folder(&path))
            .map_err(Self::io("set aside", name))?;
        Ok(aside)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let path = self.0.join(to);
        fs::rename(self.0.join(from), &path)
            .and_then(|()| Self::sync_folder(&path))
            .map_err(Self::io("rename", from))
    }

    fn size(&self, name: &str) -> u64 {
        fs::metadata(self.0.join(name)).map_or(0, |meta| meta.len())
    }

    fn space(&self) -> Option<Space> {
        let found = rustix::fs::statvfs(&self.0).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        // As df(1) reckons: what is kept for root is neither used nor the hub's to use.
        let used = found.f_blocks.saturating_sub(found.f_bfree);
        Some(Space { free: bytes(found.f_bavail), total: bytes(used.saturating_add(found.f_bavail)) })
    }
}

fn aside_name(name: &str, n: u32) -> String {
    format!("{name}.damaged-{n}")
}

/// How to open a redb file.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    /// Newest format this build reads, and the one it writes.
    pub format: u32,
    /// Bytes of redb's page cache.
    pub cache_bytes: usize,
    /// Identity of the store: written to a new file, compared with that of an existing one.
    pub store_id: Option<[u8; 16]>,
    /// The ways from older formats, one for each.
    pub migrations: &'static [migrate::Migration],
}

/// Opens a redb database for writing, creates it when missing, and checks its `meta`. A file of an older format is
/// copied and migrated first.
///
/// # Errors
/// [`DiskError`]; [`DiskError::is_corrupt`] tells whether setting the file aside helps.
pub fn open(disk: &dyn Disk, name: &str, how: Open) -> Result<Database, DiskError> {
    match open_as_it_is(disk, name, how) {
        Err(DiskError::Older { found, .. }) => {
            tracing::warn!(
                name,
                from = found,
                to = how.format,
                "a file of an older format is brought to today's"
            );
            migrate::migrate(disk, name, how, &mut |progress| {
                tracing::info!(?progress, "a file is brought to today's format");
            })?;
            open_as_it_is(disk, name, how)
        }
        opened => opened,
    }
}

fn open_as_it_is(disk: &dyn Disk, name: &str, how: Open) -> Result<Database, DiskError> {
    let database = (Builder::new().set_cache_size(how.cache_bytes))
        .create_with_backend(Held::for_writing(disk.open(name)?))
        .map_err(|error| classify(name, error))?;
    let wrong = |error: redb::Error| failed(name, error);
    let read = database.begin_read().map_err(|error| wrong(error.into()))?;
    match read.open_table(META) {
        Ok(meta) => check(name, &meta, how)?,
        Err(TableError::TableDoesNotExist(_)) => stamp(&database, how).map_err(wrong)?,
        Err(error) => return Err(wrong(error.into())),
    }
    if !how.migrations.is_empty() && !migrate::format_of(name, &read)?.1 {
        migrate::forget_copies(disk, name, how.format)?;
    }
    Ok(database)
}

/// Opens an existing redb file for reading only. A crash never leaves such a file in need of repair.
///
/// # Errors
/// [`DiskError`]; a file that needs repair is refused: open it with [`open`].
pub fn open_read_only(disk: &dyn Disk, name: &str, how: Open) -> Result<redb::ReadOnlyDatabase, DiskError> {
    let database = (Builder::new().set_cache_size(how.cache_bytes))
        .open_read_only_with_backend(Held::for_reading(disk.open(name)?))
        .map_err(|error| classify(name, error))?;
    let wrong = |error: redb::Error| failed(name, error);
    let read = database.begin_read().map_err(|error| wrong(error.into()))?;
    let meta = read.open_table(META).map_err(|error| wrong(error.into()))?;
    check(name, &meta, how)?;
    Ok(database)
}

fn check(name: &str, meta: &redb::ReadOnlyTable<&str, &[u8]>, how: Open) -> Result<(), DiskError> {
    let get = |key| {
        let value = meta.get(key).map_err(|error| failed(name, error.into()))?;
        Ok::<_, DiskError>(value.map(|value| value.value().to_vec()))
    };
    let corrupt = |why: &str| DiskError::Corrupt { name: name.to_owned(), why: why.to_owned() };
    let format = get(FORMAT)?.and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)));
    let format = format.ok_or_else(|| corrupt("it does not tell its format"))?;
    if format > how.format {
        return Err(DiskError::Newer { name: name.to_owned(), found: format, known: how.format });
    }
    if format < how.format {
        return Err(DiskError::Older { name: name.to_owned(), found: format, known: how.format });
    }
    match (how.store_id, get(STORE_ID)?) {
        (Some(ours), Some(theirs)) if ours[..] != theirs[..] => {
            Err(DiskError::Foreign { name: name.to_owned() })
        }
        (Some(_) | None, Some(_) | None) => Ok(()),
    }
}

fn stamp(database: &Database, how: Open) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut meta = write.open_table(META)?;
        meta.insert(FORMAT, &how.format.to_le_bytes()[..])?;
        if let Some(id) = how.store_id {
            meta.insert(STORE_ID, &id[..])?;
        }
    }
    Ok(write.commit()?)
}

fn classify(name: &str, error: DatabaseError) -> DiskError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => DiskError::Locked { name: name.to_owned() },
        error => failed(name, error.into()),
    }
}

fn failed(name: &str, error: redb::Error) -> DiskError {
    let name = name.to_owned();
    match error {
        redb::Error::Corrupted(why) => DiskError::Corrupt { name, why },
        // What redb says of a file that does not begin with its magic number, or ends too early.
        redb::Error::Io(error)
            if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            DiskError::Corrupt { name, why: error.to_string() }
        }
        redb::Error::Io(source) => DiskError::Io { doing: "open", name, source },
        source => DiskError::Redb { name, source: Box::new(source) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOW: Open = Open { format: 2, cache_bytes: 1 << 20, store_id: Some([7; 16]), migrations: &[] };

    #[test]
    fn a_newer_format_and_another_store_are_refused_by_name() {
        let disk = Memory::default();
        drop(open(&disk, "a.redb", HOW).unwrap());
        drop(open(&disk, "a.redb", HOW).unwrap());
        let older = open(&disk, "a.redb", Open { format: 1, ..HOW });
        assert!(matches!(older, Err(DiskError::Newer { name, found: 2, known: 1 }) if name == "a.redb"));
        let foreign = open(&disk, "a.redb", Open { store_id: Some([8; 16]), ..HOW });
        assert!(matches!(foreign, Err(DiskError::Foreign { .. })));
        drop(open_read_only(&disk, "a.redb", HOW).unwrap());
    }

    #[test]
    fn a_file_that_is_not_ours_is_corrupt_and_set_aside() {
        let disk = Memory::default();
        let file = disk.open("a.redb").unwrap();
        file.set_len(5_000).unwrap();
        file.write(0, &[0x55; 5_000]).unwrap();
        let error = open(&disk, "a.redb", HOW).unwrap_err();
        assert!(error.is_corrupt(), "{error:?}");
        let aside = disk.set_aside("a.redb").unwrap();
        assert_eq!((disk.size("a.redb"), disk.size(&aside)), (0, 5_000));
    }

    #[test]
    fn a_file_whose_making_was_interrupted_is_made_again() {
        let whole = Memory::default();
        drop(open(&whole, "a.redb", HOW).unwrap());
        let mut interrupted = 0;
        for sync in 1..=whole.syncs() {
            for when in [When::Before, When::After] {
                let disk = Memory::default();
                disk.freeze_at(sync, when);
                // The last syncs are those of closing the file.
                interrupted += u32::from(open(&disk, "a.redb", HOW).is_err());
                disk.crash();
                drop(open(&disk, "a.redb", HOW).unwrap_or_else(|e| panic!("sync {sync} {when:?}: {e}")));
            }
        }
        assert!(interrupted > 2);
        // One byte of data makes it a damaged file, which is nobody's to throw away.
        let disk = Memory::default();
        let file = disk.open("a.redb").unwrap();
        file.set_len(1 << 20).unwrap();
        file.write(700_000, &[1]).unwrap();
        assert!(open(&disk, "a.redb", HOW).unwrap_err().is_corrupt());
        assert_eq!(disk.size("a.redb"), 1 << 20);
    }

    #[test]
    fn a_folder_keeps_files_and_is_held_by_one_process_at_a_time() {
        let root = std::env::temp_dir().join(format!("fleet-disk-{}", std::process::id()));
        let disk = Folder::new(&root);
        let database = open(&disk, "t/a.redb", HOW).unwrap();
        assert!(matches!(open(&disk, "t/a.redb", HOW), Err(DiskError::Locked { .. })));
        drop(database);
        drop(open(&disk, "t/a.redb", HOW).unwrap());
        assert_eq!(disk.list("t").unwrap(), ["t/a.redb"]);
        assert!(disk.size("t/a.redb") > 0);
        let aside = disk.set_aside("t/a.redb").unwrap();
        assert_eq!(disk.list("t").unwrap(), [aside.as_str()]);
        disk.remove(&aside).unwrap();
        disk.remove(&aside).unwrap();
        assert_eq!(disk.list("absent").unwrap(), Vec::<String>::new());
        fs::remove_dir_all(root).unwrap();
    }
}
