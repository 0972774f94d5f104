//! Writes a backup: files of one moment, one after the other, each with its length and SHA-256.
//!
//! redb files are copied to a folder beside the stores first, one at a time, checked there, and removed again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Elsewhere, Error, FORMAT, HEAD, Head, Kept, MANIFEST, Manifest, OBJECTS, at, hex, trail};
use crate::{
    artifact, release, run,
    store::{
        moment::{self, Holds, Moment, Still},
        state,
    },
};

/// Where copies lie while they are written out, in the data folder.
pub const COPIES: &str = "backup.tmp";
/// Header of a hub's answer: about how many bytes are read for it, before they are compressed.
pub const BYTES_HEADER: &str = "fleet-backup-bytes";
/// zstd's level: a tenth of the size at the speed of a disk.
const LEVEL: i32 = 3;
/// Bytes handed on at once.
const PIECE: usize = 128 * 1024;
/// Largest file of the data folder that is taken without being an artifact or a store, in bytes: rules, keys, settings.
const PLAIN_BYTES: u64 = 64 * 1024 * 1024;
/// What a copy leaves free on the hub's disk, bytes: the hub goes on writing while it is made.
const SPARE_BYTES: u64 = 16 * 1024 * 1024;
/// What of a data folder is never taken: made anew, handled by the stores, or somebody else's.
const NOT_TAKEN: [&str; 6] =
    [COPIES, "telemetry", state::FILE, run::ADDRESSES, "nodes", super::restore::MARKER];

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ask {
    /// With the samples of all weeks.
    pub telemetry: bool,
    /// Week files and artifacts are to lie beside the backup: they come as `objects/TAG/PATH` and are no part of it.
    pub objects: bool,
    /// Tags of those that need not come.
    pub have: BTreeSet<String>,
}

/// A hub at one moment.
pub struct Sources {
    /// The data folder.
    pub data: PathBuf,
    /// The stores.
    pub moment: Moment,
    /// Files of releases that belong together; none: as they lie in the folder.
    pub releases: Option<BTreeMap<String, Bytes>>,
    /// The file of revocations, where it lies elsewhere.
    pub trail: Option<PathBuf>,
    /// The store's id.
    pub store_id: String,
    /// The time, Unix milliseconds.
    pub now_ms: i64,
}

/// A file of the data folder to be taken.
struct Plain {
    name: String,
    path: PathBuf,
    bytes: u64,
}

/// Copies that go when this does.
struct Copies(PathBuf);

struct Writer<'a, W: Write> {
    tar: tar::Builder<zstd::Encoder<'static, W>>,
    ask: &'a Ask,
    go_on: &'a dyn Fn() -> bool,
    made_ms: i64,
    manifest: Manifest,
}

/// Reads on, and reckons the SHA-256.
pub(super) struct Hashing<R> {
    pub(super) from: R,
    pub(super) digest: Sha256,
    pub(super) bytes: u64,
    /// Why it could not be read, once it could not.
    pub(super) failed: Option<String>,
}

impl<R> Hashing<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, digest: Sha256::new(), bytes: 0, failed: None }
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(bytes).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failed = Some(error.to_string());
            }
        })?;
        self.digest.update(&bytes[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

impl Copies {
    fn new(data: &Path) -> Result<Self, Error> {
        let path = data.join(COPIES);
        remove(data)?;
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(at(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "copies of a backup could not be removed");
        }
    }
}

/// Removes copies that a crash left.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(data: &Path) -> Result<(), Error> {
    let path = data.join(COPIES);
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// The file of revocations, where it does not lie in the data folder.
#[must_use]
pub fn trail_elsewhere(data: &Path, trail: &Path) -> Option<PathBuf> {
    let whole = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    (!whole(trail).starts_with(whole(data))).then(|| trail.to_owned())
}

/// About how many bytes [`write`] reads, for whoever shows how far it is.
#[must_use]
pub fn estimate(sources: &Sources, ask: &Ask) -> u64 {
    let wanted = |still: &&Still| ask.telemetry || matches!(still.holds(), Holds::State | Holds::Inbox);
    let size = |still: &Still| fs::metadata(sources.data.join(still.name())).map_or(0, |meta| meta.len());
    let stores: u64 = sources.moment.files.iter().filter(wanted).map(size).sum();
    let plain = plain(&sources.data, &mut Vec::new()).unwrap_or_default();
    stores + plain.iter().map(|plain| plain.bytes).sum::<u64>()
}

/// Whether there is room for the copies that are made in any case, one at a time.
///
/// # Errors
/// [`Error::Full`].
pub fn has_room(sources: &Sources, ask: &Ask) -> Result<(), Error> {
    let copied = |still: &&Still| match still.holds() {
        Holds::State | Holds::Inbox => true,
        Holds::Week | Holds::Rollups => ask.telemetry && !ask.objects,
    };
    let files = sources.moment.files.iter().filter(copied);
    files.map(Still::name).try_for_each(|name| fits(&sources.data, name))
}

/// Whether there is room for a copy of a file of the data folder, beside what the hub writes meanwhile.
fn fits(data: &Path, name: &str) -> Result<(), Error> {
    let needs = fs::metadata(data.join(name)).map_or(0, |meta| meta.len()).saturating_add(SPARE_BYTES);
    match super::free(data) {
        Some(free) if free < needs => {
            let source = io::Error::new(io::ErrorKind::StorageFull, format!("a copy of {name} does not fit"));
            Err(Error::Full { path: data.join(COPIES), needs, free: Some(free), source })
        }
        Some(_) | None => Ok(()),
    }
}

/// Writes a backup. `go_on` is asked now and then.
///
/// # Errors
/// [`Error`]: what was written is no backup.
pub fn write<W: Write>(
    sources: Sources,
    ask: &Ask,
    out: W,
    go_on: &dyn Fn() -> bool,
) -> Result<Manifest, Error> {
    let Sources { data, moment, releases, trail: elsewhere, store_id, now_ms } = sources;
    let elsewhere = elsewhere.filter(|path| path.exists());
    let head = Head {
        format: FORMAT,
        made_ms: now_ms,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        store_id,
        telemetry: ask.telemetry,
    };
    let mut encoder = zstd::Encoder::new(out, LEVEL).map_err(Error::Out)?;
    // The manifest vouches for the files, and this for the manifest.
    encoder.include_checksum(true).map_err(Error::Out)?;
    let mut writer = Writer {
        tar: tar::Builder::new(encoder),
        ask,
        go_on,
        made_ms: now_ms,
        manifest: Manifest {
            head: head.clone(),
            files: Vec::new(),
            elsewhere: Vec::new(),
            left_out: Vec::new(),
        },
    };
    writer.json(HEAD, &head)?;
    let copies = Copies::new(&data)?;
    for still in moment.files {
        writer.store(&copies, &still)?;
        // What it holds open is let go of before the next is copied.
        drop(still);
    }
    drop(copies);
    let is_release =
        |name: &str| name.strip_prefix(release::FOLDER).is_some_and(|rest| rest.starts_with('/'));
    for (name, bytes) in releases.iter().flatten() {
        writer.file(&format!("{}/{name}", release::FOLDER), bytes.len() as u64, &bytes[..], None)?;
    }
    let mut left_out = Vec::new();
    for plain in plain(&data, &mut left_out)? {
        // Those that belong together were taken together; the hub's own keys are not among them.
        let file = plain.name.rsplit('/').next().unwrap_or_default();
        let taken =
            releases.as_ref().is_some_and(|taken| taken.contains_key(file) || release::is_metadata(file));
        // One that the hub wrote before it was told another place is older, and all of it is in the newer one.
        let is_older = plain.name == trail::FILE && elsewhere.is_some();
        if !(is_release(&plain.name) && taken || is_older) {
            writer.plain(&plain)?;
        }
    }
    if let Some(path) = elsewhere {
        let bytes = fs::metadata(&path).map_err(at(&path))?.len();
        writer.plain(&Plain { name: trail::FILE.to_owned(), path, bytes })?;
    }
    writer.manifest.left_out.extend(left_out);
    writer.end()
}

impl<W: Write> Writer<'_, W> {
    fn store(&mut self, copies: &Copies, still: &Still) -> Result<(), Error> {
        let wanted = self.ask.telemetry || matches!(still.holds(), Holds::State | Holds::Inbox);
        if !wanted {
            self.manifest.left_out.push(still.name().to_owned());
            return Ok(());
        }
        let tag = if self.ask.objects { still.tag()? } else { None };
        if let Some(tag) = &tag {
            let elsewhere = Elsewhere { path: still.name().to_owned(), tag: tag.clone() };
            self.manifest.elsewhere.push(elsewhere);
            if self.ask.have.contains(tag) {
                return Ok(());
            }
        }
        fits(copies.0.parent().unwrap_or(Path::new(".")), still.name())?;
        let path = copies.0.join("copy.redb");
        let rows = still.copy(&path, self.go_on)?;
        let found = moment::check(&path, still.name())?;
        if found != rows {
            let why = format!("a copy of it has {found:?} rows instead of {rows:?}");
            return Err(Error::Damaged { path: PathBuf::from(still.name()), why });
        }
        let file = File::open(&path).map_err(at(&path))?;
        let bytes = file.metadata().map_err(at(&path))?.len();
        match tag {
            Some(tag) => self.object(&tag, still.name(), bytes, file)?,
            None => self.file(still.name(), bytes, file, Some(rows))?,
        }
        fs::remove_file(&path).map_err(at(&path))
    }

    fn plain(&mut self, plain: &Plain) -> Result<(), Error> {
        let Plain { name, path, .. } = plain;
        let file = match File::open(path) {
            Ok(file) => file,
            // Gone since the folder was read: an artifact that was removed, or a file that was replaced.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(at(path)(error)),
        };
        let bytes = file.metadata().map_err(at(path))?.len();
        match artifact_digest(name).filter(|_| self.ask.objects) {
            Some(digest) => {
                let elsewhere = Elsewhere { path: name.clone(), tag: digest.to_owned() };
                self.manifest.elsewhere.push(elsewhere);
                match self.ask.have.contains(digest) {
                    true => Ok(()),
                    false => self.object(digest, name, bytes, file),
                }
            }
            None => self.file(name, bytes, file, None),
        }
    }

    fn file(
        &mut self,
        name: &str,
        bytes: u64,
        from: impl Read,
        rows: Option<moment::Rows>,
    ) -> Result<(), Error> {
        let sha256 = self.append(name, bytes, from)?;
        self.manifest.files.push(Kept { path: name.to_owned(), bytes, sha256, rows });
        Ok(())
    }

    fn object(&mut self, tag: &str, name: &str, bytes: u64, from: impl Read) -> Result<(), Error> {
        self.append(&format!("{OBJECTS}/{tag}/{name}"), bytes, from).map(drop)
    }

    fn append(&mut self, name: &str, bytes: u64, from: impl Read) -> Result<String, Error> {
        if !(self.go_on)() {
            return Err(Error::GivenUp);
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(self.made_ms / 1_000).unwrap_or(0));
        let mut from = Hashing::new(Padded { from, left: bytes, go_on: self.go_on });
        self.tar.append_data(&mut header, name, &mut from).map_err(|error| match (self.go_on)() {
            true => Error::Out(error),
            false => Error::GivenUp,
        })?;
        Ok(hex(&from.digest.finalize()))
    }

    fn json(&mut self, name: &str, value: &impl serde::Serialize) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(value).expect("texts and numbers make JSON");
        self.append(name, text.len() as u64, &text[..]).map(drop)
    }

    fn end(mut self) -> Result<Manifest, Error> {
        let manifest = self.manifest.clone();
        self.json(MANIFEST, &manifest)?;
        let encoder = self.tar.into_inner().map_err(Error::Out)?;
        let mut out = encoder.finish().map_err(Error::Out)?;
        out.flush().map_err(Error::Out)?;
        Ok(manifest)
    }
}

/// Exactly as many bytes as were announced: a file that shrank meanwhile is an error, one that grew is cut.
struct Padded<'a, R> {
    from: R,
    left: u64,
    go_on: &'a dyn Fn() -> bool,
}

impl<R: Read> Read for Padded<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if !(self.go_on)() {
            return Err(io::Error::other("given up"));
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len()).min(PIECE);
        let read = self.from.read(&mut bytes[..most])?;
        if read == 0 && self.left > 0 && !bytes.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was read",
            ));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn is_artifact(name: &str) -> bool {
    artifact_digest(name).is_some()
}

/// The digest of an artifact's bytes, out of their name.
fn artifact_digest(name: &str) -> Option<&str> {
    let file = name.strip_prefix(artifact::FOLDER)?.strip_prefix('/')?;
    file.parse::<fleet_schemas::update::Digest>().is_ok().then_some(file)
}

/// The plain files of a data folder, in order.
fn plain(data: &Path, left_out: &mut Vec<String>) -> Result<Vec<Plain>, Error> {
    let mut found = Vec::new();
    walk(data, "", &mut found, left_out)?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn walk(folder: &Path, below: &str, found: &mut Vec<Plain>, left_out: &mut Vec<String>) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let entry = entry.map_err(at(folder))?;
        let path = entry.path();
        let Some(file) = entry.file_name().to_str().map(str::to_owned) else {
            left_out.push(path.display().to_string());
            continue;
        };
        let name = if below.is_empty() { file.clone() } else { format!("{below}/{file}") };
        if below.is_empty() && NOT_TAKEN.contains(&file.as_str()) {
            if file == "nodes" {
                left_out.push(name);
            }
            continue;
        }
        // What lies on another disk is a link in the folder itself.
        let meta = if below.is_empty() { fs::metadata(&path) } else { entry.metadata() };
        let Ok(meta) = meta else { continue };
        // Uploads that have not come to their end, and files that are being written.
        if name == format!("{}/uploads", artifact::FOLDER) || file.ends_with(".new") {
            continue;
        }
        if meta.is_dir() {
            walk(&path, &name, found, left_out)?;
        } else if !meta.is_file() || (meta.len() > PLAIN_BYTES && !is_artifact(&name) && name != trail::FILE)
        {
            left_out.push(name);
        } else {
            found.push(Plain { name, path, bytes: meta.size() });
        }
    }
    Ok(())
}

/// Makes a folder, for its owner only.
pub(super) fn make_folder(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))
}

/// Makes a file, for its owner only; it must not be there.
pub(super) fn make_file(path: &Path) -> Result<File, Error> {
    let file = File::options().write(true).create_new(true).open(path).map_err(at(path))?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(at(path))?;
    Ok(file)
}
