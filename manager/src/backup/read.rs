//! Reads a backup: every byte against its manifest, and redb files page by page.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::Digest as _;

use super::{
    Error, FORMAT, HEAD, Head, JSON_BYTES, Kept, MANIFEST, Manifest, OBJECTS, SUFFIX, at, hex, is_inside,
    make::{Hashing, make_file, make_folder},
    sealed::{self, Identities},
    trail,
};
use crate::store::moment::{self, Rows};

/// Most entries of a backup: artifacts with their names, and whatever else there is.
const ENTRIES: usize = 100_000;

/// What stores write when they are opened and a restored hub's first changes are made, at most.
const UNPACKED_MORE: u64 = 16 << 20;

/// Where a backup lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its file.
    pub file: PathBuf,
    /// What it shares with others, where there is such a folder.
    pub objects: PathBuf,
}

/// Takes files out of a backup.
pub trait Sink {
    /// Hears what the backup says of itself, before anything else.
    ///
    /// # Errors
    /// [`Error`].
    fn head(&mut self, head: &Head) -> Result<(), Error> {
        let _ = head;
        Ok(())
    }

    /// Takes one file; everything is to be read.
    ///
    /// # Errors
    /// [`Error`].
    fn take(&mut self, name: &str, bytes: u64, from: &mut dyn Read) -> Result<(), Error>;
}

/// What is compared and not kept.
#[derive(Debug, Clone, Copy)]
pub struct PassOver;

impl Sink for PassOver {
    fn take(&mut self, _: &str, _: u64, _: &mut dyn Read) -> Result<(), Error> {
        Ok(())
    }
}

/// A backup that was read to its end, and found good.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Checked {
    /// The file.
    pub file: PathBuf,
    /// When it was made, Unix milliseconds.
    pub made_ms: i64,
    /// The build that made it.
    pub version: String,
    /// The store that it is of.
    pub store_id: String,
    /// Whether it has the samples of all weeks.
    pub telemetry: bool,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Files in it, with those beside it.
    pub files: usize,
    /// Bytes of those.
    pub bytes: u64,
    /// Bytes of the backup itself.
    pub size: u64,
    /// How much of what is in it.
    pub counts: BTreeMap<&'static str, u64>,
    /// redb files that were opened, and whose pages and rows were checked.
    pub opened: usize,
    /// What of the data folder is not in it.
    pub left_out: Vec<String>,
}

/// The backup that a file or folder means: of a folder, the newest.
///
/// # Errors
/// [`Error::None`] and [`Error::Io`].
pub fn find(path: &Path) -> Result<Place, Error> {
    let meta = fs::metadata(path).map_err(at(path))?;
    if meta.is_dir() {
        let newest = list(path)?.into_iter().max_by_key(|file| (made_ms(file), file.clone()));
        let newest = newest.ok_or_else(|| Error::None(path.to_owned()))?;
        return Ok(Place { file: newest, objects: path.join(OBJECTS) });
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    Ok(Place { file: path.to_owned(), objects: folder.join(OBJECTS) })
}

/// When a backup was made, Unix milliseconds: as it says itself, else as its name says, else when its file was changed.
/// Names that people gave tell nothing.
fn made_ms(file: &Path) -> i64 {
    struct Beginning(Option<i64>);
    impl Sink for Beginning {
        fn head(&mut self, head: &Head) -> Result<(), Error> {
            self.0 = Some(head.made_ms);
            Err(Error::GivenUp)
        }
        fn take(&mut self, _: &str, _: u64, _: &mut dyn Read) -> Result<(), Error> {
            Err(Error::GivenUp)
        }
    }
    let mut beginning = Beginning(None);
    // Of an encrypted one nothing can be read.
    let _ = read_file(file, None, &mut beginning);
    let of_name = || super::prune::time_of(file);
    let of_file = || {
        let changed = fs::metadata(file).and_then(|meta| meta.modified()).ok()?;
        let since = changed.duration_since(std::time::UNIX_EPOCH).ok()?;
        i64::try_from(since.as_millis()).ok()
    };
    beginning.0.or_else(of_name).or_else(of_file).unwrap_or(i64::MIN)
}

/// The backups in a folder, by name: those that were named by their time are oldest first.
///
/// # Errors
/// [`Error::Io`].
pub fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        let is_one =
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(SUFFIX));
        if is_one && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The objects in a folder: tag → SHA-256 and file.
///
/// # Errors
/// [`Error::Io`].
pub fn objects(folder: &Path) -> Result<BTreeMap<String, (String, PathBuf)>, Error> {
    let mut found = BTreeMap::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(at(folder)(error)),
    };
    for entry in entries {
        let path = entry.map_err(at(folder))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some((tag, digest)) = name.split_once('.')
            && digest.len() == 64
        {
            found.insert(tag.to_owned(), (digest.to_owned(), path.clone()));
        }
    }
    Ok(found)
}

/// Reads a backup to its end and compares everything with its manifest; `sink` takes the files.
///
/// # Errors
/// [`Error`]: what the sink took is not to be used.
pub fn read(place: &Place, identities: Option<&Identities>, sink: &mut dyn Sink) -> Result<Manifest, Error> {
    let manifest = read_file(&place.file, identities, sink)?;
    let known = objects(&place.objects)?;
    for elsewhere in &manifest.elsewhere {
        let (path, tag) = (&elsewhere.path, &elsewhere.tag);
        let damaged = |why: String| Error::Damaged { path: place.file.clone(), why };
        let (digest, file) = known
            .get(tag)
            .ok_or_else(|| damaged(format!("{path} is to be in {} and is not", place.objects.display())))?;
        if !is_inside(path) {
            return Err(damaged(format!("{path:?} is no name of a file in a data folder")));
        }
        read_object(file, digest, path, identities, sink)?;
    }
    Ok(manifest)
}

/// The same of its own file alone, without what lies beside it.
///
/// # Errors
/// [`Error`].
pub fn read_file(
    path: &Path,
    identities: Option<&Identities>,
    sink: &mut dyn Sink,
) -> Result<Manifest, Error> {
    let file = File::open(path).map_err(at(path))?;
    read_stream(sealed::open(io::BufReader::new(file), identities)?, path, sink)
}

fn read_object(
    file: &Path,
    digest: &str,
    name: &str,
    identities: Option<&Identities>,
    sink: &mut dyn Sink,
) -> Result<(), Error> {
    let damaged = |why: String| Error::Damaged { path: file.to_owned(), why };
    let from = sealed::open(io::BufReader::new(File::open(file).map_err(at(file))?), identities)?;
    let from = zstd::Decoder::new(from).map_err(|error| damaged(error.to_string()))?;
    let mut from = Hashing::new(from);
    let taken = sink.take(name, 0, &mut from);
    if let Some(why) = from.failed.take() {
        return Err(damaged(why));
    }
    taken?;
    io::copy(&mut from, &mut io::sink()).map_err(|error| damaged(error.to_string()))?;
    match hex(&from.digest.finalize()) == digest {
        true => Ok(()),
        false => Err(damaged(format!("its SHA-256 is not {digest}"))),
    }
}

/// The same for what is plain already, such as what a hub sends. `path` is for messages.
///
/// # Errors
/// [`Error`].
pub fn read_stream(plain: impl Read, path: &Path, sink: &mut dyn Sink) -> Result<Manifest, Error> {
    let broken = |error: io::Error| Error::Broken { path: path.to_owned(), why: error.to_string() };
    let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
    let decoder = zstd::Decoder::new(plain).map_err(broken)?;
    let mut archive = tar::Archive::new(decoder);
    let mut head: Option<Head> = None;
    let mut manifest: Option<Manifest> = None;
    let mut found: Vec<Kept> = Vec::new();
    for (nth, entry) in archive.entries().map_err(broken)?.enumerate() {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.to_string_lossy().into_owned();
        let plain = entry.header().entry_type() == tar::EntryType::Regular;
        if manifest.is_some() || nth >= ENTRIES || !plain || !is_inside(&name) {
            return Err(damaged(format!("it has an entry {name:?} that does not belong there")));
        }
        let bytes = entry.header().size().map_err(broken)?;
        if name == HEAD {
            let found: Head = json(&mut entry, bytes, path)?;
            if found.format == FORMAT {
                sink.head(&found)?;
            }
            head = Some(found);
            continue;
        }
        let is_read = head.as_ref().map(|head| head.format);
        match is_read {
            Some(FORMAT) => {}
            Some(found) => return Err(Error::Newer { path: path.to_owned(), found }),
            None => return Err(damaged("it does not begin as a backup does".to_owned())),
        }
        if name == MANIFEST {
            manifest = Some(json(&mut entry, bytes, path)?);
            continue;
        }
        // Builds before took the file of revocations twice, where the hub had been told another place for it.
        if found.iter().any(|kept| kept.path == name) && name != trail::FILE {
            return Err(damaged(format!("it has {name} twice")));
        }
        let mut from = Hashing::new(&mut entry);
        let taken = sink.take(&name, bytes, &mut from);
        // What cannot be read is not the fault of whoever takes it.
        if let Some(why) = from.failed.take() {
            return Err(Error::Broken { path: path.to_owned(), why });
        }
        taken?;
        io::copy(&mut from, &mut io::sink()).map_err(broken)?;
        let sha256 = hex(&from.digest.finalize());
        if !name.starts_with(OBJECTS) {
            found.push(Kept { path: name, bytes: from.bytes, sha256, rows: None });
        }
    }
    // The end of the compressed stream vouches for its own.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(broken)?;
    let cut = || Error::Broken { path: path.to_owned(), why: "it ends before its manifest".to_owned() };
    let manifest = manifest.ok_or_else(cut)?;
    compare(&manifest, &found).map_err(damaged)?;
    Ok(manifest)
}

fn json<T: serde::de::DeserializeOwned>(from: &mut impl Read, bytes: u64, path: &Path) -> Result<T, Error> {
    let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
    if bytes > JSON_BYTES {
        return Err(damaged(format!("its list has more than {JSON_BYTES} bytes")));
    }
    let mut text = Vec::new();
    from.read_to_end(&mut text)
        .map_err(|error| Error::Broken { path: path.to_owned(), why: error.to_string() })?;
    serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))
}

fn compare(manifest: &Manifest, found: &[Kept]) -> Result<(), String> {
    if manifest.files.len() != found.len() {
        return Err(format!("it has {} files, its manifest lists {}", found.len(), manifest.files.len()));
    }
    for (listed, found) in manifest.files.iter().zip(found) {
        if (&listed.path, listed.bytes, &listed.sha256) != (&found.path, found.bytes, &found.sha256) {
            return Err(format!("{} is not what its manifest lists", listed.path));
        }
    }
    Ok(())
}

/// Takes files to a folder.
pub struct Unpack<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// Only redb files.
    pub stores_only: bool,
    /// Told of each file with the bytes so far.
    pub told: &'a mut dyn FnMut(&str, u64),
    /// Names of redb files that were taken.
    pub stores: Vec<String>,
    /// Bytes that were taken or passed over.
    pub bytes: u64,
    /// Files that were taken or passed over.
    pub files: usize,
}

impl<'a> Unpack<'a> {
    /// Everything, or redb files only.
    pub fn new(folder: &'a Path, stores_only: bool, told: &'a mut dyn FnMut(&str, u64)) -> Self {
        Self { folder, stores_only, told, stores: Vec::new(), bytes: 0, files: 0 }
    }
}

impl Sink for Unpack<'_> {
    fn take(&mut self, name: &str, _: u64, from: &mut dyn Read) -> Result<(), Error> {
        (self.told)(name, self.bytes);
        self.files += 1;
        let is_store = is_store(name);
        if self.stores_only && !is_store {
            self.bytes += io::copy(from, &mut io::sink()).map_err(Error::Out)?;
            return Ok(());
        }
        let path = self.folder.join(name);
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        if name == trail::FILE && path.exists() {
            // The later one has all of it.
            fs::remove_file(&path).map_err(at(&path))?;
        }
        let mut file = make_file(&path)?;
        self.bytes += io::copy(from, &mut file).map_err(at(&path))?;
        file.sync_all().map_err(at(&path))?;
        if is_store {
            self.stores.push(name.to_owned());
        }
        Ok(())
    }
}

/// Bytes of what a backup holds: all of it, or its redb files.
struct Weigh {
    stores_only: bool,
    bytes: u64,
}

impl Sink for Weigh {
    fn take(&mut self, name: &str, _: u64, from: &mut dyn Read) -> Result<(), Error> {
        let bytes = io::copy(from, &mut io::sink()).map_err(Error::Out)?;
        self.bytes += if self.stores_only && !is_store(name) { 0 } else { bytes };
        Ok(())
    }
}

fn is_store(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "redb")
}

/// Says how much room unpacking needs in a folder, where this is for want of it: the backup is read again for that.
pub(super) fn with_room(
    error: Error,
    (place, identities): (&Place, Option<&Identities>),
    stores_only: bool,
    folder: &Path,
) -> Error {
    if !error.is_for_room() {
        return error;
    }
    let mut weigh = Weigh { stores_only, bytes: 0 };
    match read(place, identities, &mut weigh) {
        Ok(_) => error.with_room(folder, weigh.bytes + UNPACKED_MORE),
        Err(_) => error,
    }
}

/// Checks the redb files that were taken: their pages, and their rows against the manifest's.
///
/// # Errors
/// [`Error::Damaged`] and [`Error::Copy`].
pub fn check_stores(folder: &Path, stores: &[String], manifest: &Manifest, path: &Path) -> Result<(), Error> {
    let listed: BTreeMap<&str, Option<&Rows>> =
        manifest.files.iter().map(|kept| (kept.path.as_str(), kept.rows.as_ref())).collect();
    for name in stores {
        let rows = moment::check(&folder.join(name), name)?;
        if let Some(Some(listed)) = listed.get(name.as_str())
            && rows != **listed
        {
            let why = format!("{name} has {rows:?} rows, its manifest lists {listed:?}");
            return Err(Error::Damaged { path: path.to_owned(), why });
        }
    }
    Ok(())
}

/// Reads a backup to its end, compares all of it with its manifest, and opens its redb files in `scratch`, an empty
/// folder. `told` hears of each file.
///
/// # Errors
/// [`Error`]; [`Error::Full`] where the redb files have no room.
pub fn verify(
    place: &Place,
    identities: Option<&Identities>,
    scratch: &Path,
    told: &mut dyn FnMut(&str, u64),
) -> Result<Checked, Error> {
    open_all(place, identities, scratch, told)
        .map_err(|error| with_room(error, (place, identities), true, scratch))
}

fn open_all(
    place: &Place,
    identities: Option<&Identities>,
    scratch: &Path,
    told: &mut dyn FnMut(&str, u64),
) -> Result<Checked, Error> {
    let mut unpack = Unpack::new(scratch, true, told);
    let manifest = read(place, identities, &mut unpack)?;
    let (stores, bytes, files) = (unpack.stores, unpack.bytes, unpack.files);
    check_stores(scratch, &stores, &manifest, &place.file)?;
    let mut beginning = [0; 32];
    let file = File::open(&place.file).map_err(at(&place.file))?;
    let read = (&file).read(&mut beginning).map_err(at(&place.file))?;
    let size = file.metadata().map_err(at(&place.file))?.len();
    let encrypted = sealed::is_sealed(&beginning[..read]);
    Ok(checked(&place.file, &manifest, (files, bytes, size), encrypted, stores.len()))
}

/// What is told of a backup that was found good.
#[must_use]
pub fn checked(
    file: &Path,
    manifest: &Manifest,
    (files, bytes, size): (usize, u64, u64),
    encrypted: bool,
    opened: usize,
) -> Checked {
    let Head { made_ms, version, store_id, telemetry, .. } = manifest.head.clone();
    Checked {
        file: file.to_owned(),
        made_ms,
        version,
        store_id,
        telemetry,
        encrypted,
        files,
        bytes,
        size,
        counts: manifest.counts(),
        opened,
        left_out: manifest.left_out.clone(),
    }
}
