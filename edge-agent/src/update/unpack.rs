//! Archives of skills into a folder, whatever is in them: signed is not the same as harmless.
//!
//! Plain tar (POSIX ustar and pax, GNU long names), or tar in one zstd frame. Every name and link is judged before
//! anything is made of it, and nothing is ever written through a link. Blocks; the caller gives a folder that is empty
//! and its own.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    },
    path::{Component, Path, PathBuf},
};

use tar::{Archive, Entry, EntryType};

use crate::core::update::{RESERVE_BYTES, Trouble, code};

/// Most entries of an archive: each may cost an inode.
const ENTRIES: usize = 50_000;
/// Longest path, in bytes, and most folders in it.
const PATH_BYTES: usize = 1_024;
const DEPTH: usize = 32;
/// Longest name of one file or folder, as file systems have it.
const NAME_BYTES: usize = 255;
/// Longest record that describes the next entry (a long name, pax).
const RECORD_BYTES: u64 = 16 * 1024;
/// An archive may unpack to so many times its own bytes; text packs 20:1, a bomb 1,000:1.
const RATIO: u64 = 100;
/// But to so much in any case.
const ALWAYS_BYTES: u64 = 64 * 1024 * 1024;
/// And never to more.
const MOST_BYTES: u64 = 8 * 1024 * 1024 * 1024;
/// Largest window of a zstd frame, as a power of two: 8 MiB of memory, what `zstd -19` makes.
const WINDOW_LOG: u32 = 23;
/// Bytes that are copied at a time.
const PIECE: usize = 64 * 1024;
/// How often it is looked whether the disk still has room, in bytes.
const LOOK_BYTES: u64 = 16 * 1024 * 1024;
/// How zstd, gzip, bzip2 and xz begin.
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const OTHERS: [(&[u8], &str); 3] = [(&[0x1f, 0x8b], "gzip"), (b"BZh", "bzip2"), (&[0xfd, b'7', b'z'], "xz")];
/// Code of everything that is wrong with an archive.
pub(super) const BAD: &str = "bad_archive";

/// What is at a path so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Folder,
    File,
    Link,
}

/// Unpacks `file` into the empty folder `into`. What is there after an error is the caller's to remove.
///
/// # Errors
/// [`Trouble`] with [`BAD`], or what the disk said.
pub(super) fn unpack(file: &Path, into: &Path) -> Result<(), Trouble> {
    let mut file = File::open(file).map_err(|error| disk(&error))?;
    let length = file.metadata().map_err(|error| disk(&error))?.len();
    let mut head = [0; 4];
    let read = read_full(&mut file, &mut head).map_err(|error| disk(&error))?;
    file.seek(SeekFrom::Start(0)).map_err(|error| disk(&error))?;
    let head = &head[..read];
    let most = length.saturating_mul(RATIO).clamp(ALWAYS_BYTES, MOST_BYTES);
    if head.starts_with(ZSTD) {
        let mut plain = zstd::stream::read::Decoder::new(file).map_err(|error| bad(&error))?.single_frame();
        plain.window_log_max(WINDOW_LOG).map_err(|error| bad(&error))?;
        return Unpacking::new(into, most).all(plain);
    }
    if let Some((_, name)) = OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(wrong(format!("it is packed by {name}; pack it as tar, or as tar and `zstd -19`")));
    }
    Unpacking::new(into, most).all(BufReader::with_capacity(PIECE, file))
}

struct Unpacking<'a> {
    into: &'a Path,
    made: BTreeMap<PathBuf, Made>,
    entries: usize,
    // Bytes of files that may still come, and those until the disk is looked at again.
    left: u64,
    look_in: u64,
}

/// What a record before an entry says of it.
#[derive(Default)]
struct Told {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<'a> Unpacking<'a> {
    fn new(into: &'a Path, most: u64) -> Self {
        Self { into, made: BTreeMap::new(), entries: 0, left: most, look_in: 0 }
    }

    fn all(mut self, plain: impl Read) -> Result<(), Trouble> {
        // Headers and padding count as well: an endless archive of empty files ends too.
        let most = self.left.saturating_add(ENTRIES as u64 * 4 * 1024);
        let mut archive = Archive::new(plain.take(most));
        let mut told = Told::default();
        for entry in archive.entries().map_err(|error| bad(&error))?.raw(true) {
            let entry = entry.map_err(|error| bad(&error))?;
            self.entries += 1;
            if self.entries > ENTRIES {
                return Err(wrong(format!("it has more than {ENTRIES} entries")));
            }
            match entry.header().entry_type() {
                EntryType::GNULongName => told.path = Some(text(record(entry)?)),
                EntryType::GNULongLink => told.link = Some(text(record(entry)?)),
                EntryType::XHeader => pax(&record(entry)?, &mut told)?,
                // Comments, such as the commit of `git archive`.
                EntryType::XGlobalHeader => {
                    let mut global = Told::default();
                    pax(&record(entry)?, &mut global)?;
                    if global.path.is_some() || global.link.is_some() {
                        return Err(wrong("it names all its entries alike"));
                    }
                }
                _ => self.one(entry, std::mem::take(&mut told))?,
            }
        }
        if self.made.is_empty() {
            return Err(wrong("nothing is in it"));
        }
        sync(self.into).map_err(|error| disk(&error))
    }

    fn one(&mut self, entry: Entry<'_, impl Read>, told: Told) -> Result<(), Trouble> {
        let kind = entry.header().entry_type();
        let raw = told.path.unwrap_or_else(|| entry.header().path_bytes().into_owned());
        let link = told.link.or_else(|| entry.header().link_name_bytes().map(|name| name.into_owned()));
        let path = judge_path(&raw)?;
        let shown = path.display().to_string();
        if path.as_os_str().is_empty() {
            return match kind {
                // The folder itself, as `tar -C folder .` writes it.
                EntryType::Directory => Ok(()),
                _ => Err(wrong("an entry has no name")),
            };
        }
        self.make_parents(&path)?;
        match (self.made.get(&path), kind) {
            (None, _) => {}
            (Some(Made::Folder), EntryType::Directory) => return Ok(()),
            (Some(_), _) => return Err(wrong(format!("{shown} is in it twice"))),
        }
        let at = self.into.join(&path);
        let made = match kind {
            EntryType::Directory => {
                make_folder(&at)?;
                Made::Folder
            }
            EntryType::Regular | EntryType::Continuous => {
                let mode = entry.header().mode().map_err(|error| bad(&error))?;
                self.write(entry, &at, mode)?;
                Made::File
            }
            EntryType::Symlink => {
                let target = link.ok_or_else(|| wrong(format!("{shown} is a link to nothing")))?;
                let target = judge_symlink(&path, &target)?;
                symlink(target, &at).map_err(|error| disk(&error))?;
                Made::Link
            }
            EntryType::Link => {
                let target = link.ok_or_else(|| wrong(format!("{shown} is a link to nothing")))?;
                let target = judge_path(&target)?;
                // To a file that this archive made, and so through no link.
                if self.made.get(&target) != Some(&Made::File) {
                    return Err(wrong(format!(
                        "{shown} is a hard link to {}, which is no file before it",
                        target.display()
                    )));
                }
                fs::hard_link(self.into.join(target), &at).map_err(|error| disk(&error))?;
                Made::File
            }
            _ => return Err(wrong(format!("{shown} is a device, a pipe or something else that is no file"))),
        };
        self.made.insert(path, made);
        Ok(())
    }

    /// Folders that the archive does not name itself. Never through a link or a file.
    fn make_parents(&mut self, path: &Path) -> Result<(), Trouble> {
        let mut parents: Vec<_> =
            path.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
        parents.reverse();
        for parent in parents {
            match self.made.get(parent) {
                Some(Made::Folder) => {}
                Some(Made::File | Made::Link) => {
                    return Err(wrong(format!(
                        "{} would be behind {}, which is no folder",
                        path.display(),
                        parent.display()
                    )));
                }
                None => {
                    make_folder(&self.into.join(parent))?;
                    self.made.insert(parent.to_owned(), Made::Folder);
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, mut entry: Entry<'_, impl Read>, at: &Path, mode: u32) -> Result<(), Trouble> {
        let size = entry.header().entry_size().map_err(|error| bad(&error))?;
        if size > self.left {
            return Err(wrong("it unpacks to more than an archive of its size may"));
        }
        self.left -= size;
        // New, and so no link that was there before.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(at)
            .map_err(|error| disk(&error))?;
        let mut piece = vec![0; PIECE];
        let mut written = 0_u64;
        loop {
            let read = entry.read(&mut piece).map_err(|error| bad(&error))?;
            if read == 0 {
                break;
            }
            self.look(read as u64)?;
            file.write_all(&piece[..read]).map_err(|error| disk(&error))?;
            written += read as u64;
        }
        if written != size {
            return Err(wrong("it ends in the middle of a file"));
        }
        // Whose it is, and what else it may, is not the archive's to say.
        let mode = if mode & 0o111 == 0 { 0o644 } else { 0o755 };
        file.set_permissions(Permissions::from_mode(mode)).map_err(|error| disk(&error))
    }

    fn look(&mut self, coming: u64) -> Result<(), Trouble> {
        if self.look_in < coming {
            self.look_in = LOOK_BYTES;
            if let Some(free) = free(self.into).filter(|free| *free < RESERVE_BYTES) {
                let message =
                    format!("only {free} bytes of disk are left while it is unpacked; remove something");
                return Err(Trouble::lasting(code::NO_SPACE, message));
            }
        }
        self.look_in = self.look_in.saturating_sub(coming);
        Ok(())
    }
}

/// The path within the folder, of plain names only.
fn judge_path(raw: &[u8]) -> Result<PathBuf, Trouble> {
    let shown = || String::from_utf8_lossy(raw).chars().take(200).collect::<String>();
    if raw.len() > PATH_BYTES || raw.contains(&0) {
        return Err(wrong(format!("the path {:?} is too long or has a zero byte", shown())));
    }
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(raw)).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) if name.len() <= NAME_BYTES => path.push(name),
            _ => return Err(wrong(format!("the path {:?} leaves the folder", shown()))),
        }
    }
    if path.components().count() > DEPTH {
        return Err(wrong(format!("the path {:?} is in more than {DEPTH} folders", shown())));
    }
    Ok(path)
}

/// The target of a link at `path`: up first, as far as the folder goes, and then down. So it stays within, whatever
/// else is a link: the folders that it goes up through are real.
fn judge_symlink(path: &Path, raw: &[u8]) -> Result<PathBuf, Trouble> {
    let target = PathBuf::from(OsStr::from_bytes(raw));
    let leaves = || {
        wrong(format!("the link {} to {:?} leaves the folder", path.display(), target.display().to_string()))
    };
    if raw.is_empty() || raw.len() > PATH_BYTES || raw.contains(&0) {
        return Err(leaves());
    }
    let mut above = path.components().count() - 1;
    let mut down = false;
    for part in target.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(_) => down = true,
            Component::ParentDir if !down && above > 0 => above -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(leaves()),
        }
    }
    Ok(target)
}

/// What a record says, as far as it matters.
fn pax(bytes: &[u8], told: &mut Told) -> Result<(), Trouble> {
    let broken = || wrong("a pax record is broken");
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(broken)?;
        let length: usize =
            std::str::from_utf8(&rest[..space]).ok().and_then(|text| text.parse().ok()).ok_or_else(broken)?;
        if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
            return Err(broken());
        }
        let (line, after) = rest.split_at(length);
        let line = &line[space + 1..length - 1];
        let equals = line.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
        let (key, value) = (&line[..equals], &line[equals + 1..]);
        match key {
            b"path" => told.path = Some(value.to_vec()),
            b"linkpath" => told.link = Some(value.to_vec()),
            // It would take the place of the one in the header, by which the rest was judged.
            b"size" => return Err(wrong("a file has more than 8 GiB")),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(wrong("it has sparse files; pack it without"));
            }
            _ => {}
        }
        rest = after;
    }
    Ok(())
}

fn record(entry: Entry<'_, impl Read>) -> Result<Vec<u8>, Trouble> {
    let mut bytes = Vec::new();
    entry.take(RECORD_BYTES + 1).read_to_end(&mut bytes).map_err(|error| bad(&error))?;
    if bytes.len() as u64 > RECORD_BYTES {
        return Err(wrong("a name in it is too long"));
    }
    Ok(bytes)
}

/// A long name without the zero byte behind it.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

fn make_folder(path: &Path) -> Result<(), Trouble> {
    DirBuilder::new().mode(0o755).create(path).map_err(|error| disk(&error))
}

fn read_full(file: &mut File, into: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < into.len() {
        match file.read(&mut into[read..])? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

/// Bytes that are free where a path is, for this user.
pub(super) fn free(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// All that was written is on disk, names included.
pub(super) fn sync(folder: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    rustix::fs::syncfs(File::open(folder)?)?;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        File::open(folder)?.sync_all()?;
        rustix::fs::sync();
    }
    Ok(())
}

fn wrong(what: impl Into<String>) -> Trouble {
    Trouble::lasting(BAD, format!("the archive cannot be unpacked: {}", what.into()))
}

/// The archive's fault, as far as it is told apart from that of the disk it is read from.
fn bad(error: &io::Error) -> Trouble {
    match error.raw_os_error() {
        Some(_) => disk(error),
        None => wrong(error.to_string()),
    }
}

/// The disk's.
pub(super) fn disk(error: &io::Error) -> Trouble {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Trouble::lasting(code::NO_SPACE, "the disk is full; remove something and try again")
        }
        _ => Trouble::passing(code::DISK, format!("the disk failed: {error}; check it")),
    }
}

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    type Entries<'a> = &'a [(EntryType, &'a [u8], &'a str)];

    /// Headers are written byte by byte: the crate that writes them refuses what these tests are about.
    fn archive(entries: Entries<'_>) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (kind, path, content) in entries {
            let mut header = Header::new_ustar();
            header.as_old_mut().name[..path.len()].copy_from_slice(path);
            header.set_entry_type(*kind);
            header.set_mode(0o4_755);
            let is_link = [EntryType::Symlink, EntryType::Link].contains(kind);
            if is_link {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            let data = if is_link { "" } else { content };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpacked(bytes: &[u8]) -> (tempfile::TempDir, PathBuf, Result<(), Trouble>) {
        let folder = tempfile::tempdir().unwrap();
        let (file, into) = (folder.path().join("archive"), folder.path().join("into"));
        fs::write(&file, bytes).unwrap();
        fs::create_dir(&into).unwrap();
        let result = unpack(&file, &into);
        (folder, into, result)
    }

    fn refused(entries: Entries<'_>, hint: &str) {
        let (folder, _, result) = unpacked(&archive(entries));
        let trouble = result.unwrap_err();
        assert!(trouble.code == BAD && trouble.message.contains(hint), "{entries:?}: {trouble:?}");
        let outside: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(outside.len(), 2, "nothing is beside the folder: {outside:?}");
    }

    const FILE: EntryType = EntryType::Regular;
    const FOLDER: EntryType = EntryType::Directory;
    const SYMLINK: EntryType = EntryType::Symlink;
    const HARD: EntryType = EntryType::Link;

    #[test]
    fn a_sound_archive_is_unpacked_with_modes_that_are_harmless() {
        let entries: Entries<'_> = &[
            (FOLDER, b"./", ""),
            (FOLDER, b"./bin/", ""),
            (FILE, b"./bin/run", "#!/bin/sh"),
            (FILE, b"deep/er/data", "d"),
            (SYMLINK, b"deep/link", "../bin/run"),
            (HARD, b"hard", "bin/run"),
            (FOLDER, b"bin", ""),
        ];
        let plain = archive(entries);
        for bytes in [zstd::stream::encode_all(plain.as_slice(), 19).unwrap(), plain] {
            let (_folder, into, result) = unpacked(&bytes);
            result.unwrap();
            let run = into.join("bin/run");
            assert_eq!(fs::metadata(&run).unwrap().permissions().mode() & 0o7777, 0o755);
            assert_eq!(fs::read_to_string(into.join("deep/link")).unwrap(), "#!/bin/sh");
            assert_eq!(fs::read_to_string(into.join("hard")).unwrap(), "#!/bin/sh");
            assert_eq!(fs::read_to_string(into.join("deep/er/data")).unwrap(), "d");
        }
    }

    #[test]
    fn what_would_leave_the_folder_is_refused() {
        refused(&[(FILE, b"../evil", "x")], "leaves");
        refused(&[(FILE, b"a/../../evil", "x")], "leaves");
        refused(&[(FILE, b"/tmp/evil", "x")], "leaves");
        refused(&[(SYMLINK, b"a", "/etc/passwd")], "leaves");
        refused(&[(SYMLINK, b"a", "../evil")], "leaves");
        refused(&[(SYMLINK, b"a/b", "../../evil")], "leaves");
        refused(&[(SYMLINK, b"a/b", "c/../../../evil")], "leaves");
        refused(&[(SYMLINK, b"a", ".."), (FILE, b"a/evil", "x")], "leaves");
        refused(&[(SYMLINK, b"a", "b"), (FILE, b"a/evil", "x")], "no folder");
        refused(&[(SYMLINK, b"a", "b"), (FILE, b"a", "x")], "twice");
        refused(&[(FOLDER, b"d", ""), (SYMLINK, b"d", "b")], "twice");
        refused(&[(FILE, b"a", "x"), (FOLDER, b"a", "")], "twice");
        refused(&[(FILE, b"a", "x"), (FILE, b"a/b", "x")], "no folder");
        refused(&[(HARD, b"a", "/etc/passwd")], "leaves");
        refused(&[(HARD, b"a", "b")], "no file before");
        refused(&[(SYMLINK, b"l", "x"), (HARD, b"a", "l")], "no file before");
        // A link within the folder, and from there out.
        refused(&[(SYMLINK, b"s/d/l", "../.."), (SYMLINK, b"x", "s/d/l/../evil")], "leaves");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::GNUSparse] {
            refused(&[(kind, b"dev", "")], "no file");
        }
        refused(&[], "nothing");
        let pax = |record: &str| format!("{} {record}\n", record.len() + 4);
        let x = EntryType::XHeader;
        refused(&[(x, b"p", &pax("path=../evilevil")), (FILE, b"a", "x")], "leaves");
        refused(&[(x, b"p", "99 path=a\n"), (FILE, b"a", "x")], "pax");
        refused(&[(x, b"p", &pax("size=99999999")), (FILE, b"a", "x")], "8 GiB");
        refused(&[(EntryType::GNULongName, b"l", "../evil\0"), (FILE, b"a", "x")], "leaves");
        refused(&[(EntryType::GNULongName, b"l", &"x".repeat(20_000)), (FILE, b"a", "x")], "too long");
        refused(&[(EntryType::GNULongLink, b"l", "../evil\0"), (SYMLINK, b"a", "b")], "leaves");
        refused(&[(FILE, &[b'a', b'/'].repeat(40), "x")], "folders");
    }

    #[test]
    fn bombs_and_endless_data_end() {
        // A file of zeros that would fill the disk: 10 GiB in 1 MB.
        let mut header = Header::new_ustar();
        header.set_path("zeros").unwrap();
        header.set_entry_type(FILE);
        header.set_mode(0o644);
        header.set_size(10 << 30);
        header.set_cksum();
        let endless = header.as_bytes().chain(io::repeat(0)).take(70 << 20);
        let bytes = zstd::stream::encode_all(endless, 1).unwrap();
        let (_folder, _, result) = unpacked(&bytes);
        assert!(result.unwrap_err().message.contains("more than"));
        // Entries without end.
        let mut one = Header::new_ustar();
        one.set_entry_type(FOLDER);
        one.set_path("d").unwrap();
        one.set_mode(0o755);
        one.set_size(0);
        one.set_cksum();
        let many: Vec<u8> = one.as_bytes().repeat(ENTRIES + 1);
        let (_folder, _, result) = unpacked(&zstd::stream::encode_all(many.as_slice(), 1).unwrap());
        assert!(result.unwrap_err().message.contains("entries"));
        // A window that would take 128 MB of memory.
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.include_contentsize(false).unwrap();
        let plain = archive(&[(FILE, b"a", "x")]);
        io::copy(&mut plain.as_slice().chain(io::repeat(0).take(20 << 20)), &mut encoder).unwrap();
        let (_folder, _, result) = unpacked(&encoder.finish().unwrap());
        assert_eq!(result.unwrap_err().code, BAD);
    }

    #[test]
    fn what_is_cut_off_or_is_no_archive_is_refused() {
        let whole = archive(&[(FILE, b"a", &"x".repeat(5_000)), (FILE, b"b", "y")]);
        for cut in [100, 600, 3_000] {
            assert_eq!(unpacked(&whole[..cut]).2.unwrap_err().code, BAD, "{cut}");
        }
        let packed = zstd::stream::encode_all(whole.as_slice(), 3).unwrap();
        assert_eq!(unpacked(&packed[..packed.len() - 9]).2.unwrap_err().code, BAD);
        assert!(unpacked(&[0x1f, 0x8b, 8, 0]).2.unwrap_err().message.contains("gzip"));
        assert_eq!(unpacked(b"hello, this is no archive at all").2.unwrap_err().code, BAD);
        assert_eq!(unpacked(b"").2.unwrap_err().code, BAD);
    }
}
