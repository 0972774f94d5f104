//! Bytes of an artifact onto the disk: from where they ended, each once, in constant memory.
//!
//! Beside the file lie the digests of its pieces, written once a piece is synced: after a kill or a power cut what is
//! there is read and verified piece by piece, and only what is not sound is fetched again. The whole has its signed
//! digest, or it is not whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use fleet_schemas::update::{ARTIFACT_PATH, Digest};
use hyper::{
    StatusCode,
    body::Bytes,
    header::{self, HeaderValue},
};
use sha2::{Digest as _, Sha256};
use tokio::{select, sync::mpsc, task, time};

use super::unpack;
use crate::{
    core::update::{Arrival, Trouble, code},
    identity::{https, live::Live},
};

/// A piece that has a digest of its own.
const PIECE_BYTES: u64 = 1024 * 1024;
/// Bytes between two syncs: a sync costs flash a page, and a kill costs at most so many bytes a second time.
const SYNC_BYTES: u64 = 4 * 1024 * 1024;
/// A connection that brings nothing for so long is given up.
const STALL: Duration = Duration::from_secs(30);
/// How often it is looked whether bytes may still be fetched.
const LOOK: Duration = Duration::from_secs(1);
/// Parts that may wait for the disk: each has at most some hundred kilobytes.
const WAITING: usize = 4;

/// A file that grows until it is whole.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    length: u64,
    digest: Digest,
    file: File,
    sums: File,
    whole: Sha256,
    piece: Sha256,
    at: u64,
    synced: u64,
    // Of pieces that are not synced.
    waiting: Vec<u8>,
    // The hub's tag of what came so far.
    tag: Option<HeaderValue>,
}

/// The file of an artifact in the folder of downloads.
pub(super) fn file(folder: &Path, digest: Digest) -> PathBuf {
    folder.join(digest.to_string())
}

fn sums(path: &Path) -> PathBuf {
    path.with_extension("pieces")
}

/// Removes what there is of an artifact. Blocks.
pub(super) fn remove(folder: &Path, digest: Digest) {
    let path = file(folder, digest);
    // What is left is found by the next update of this digest.
    let _ = fs::remove_file(sums(&path));
    let _ = fs::remove_file(path);
}

/// Whether the file is whole and has its digest. Blocks.
pub(super) fn is_sound(folder: &Path, digest: Digest, length: u64) -> io::Result<bool> {
    let mut file = match File::open(file(folder, digest)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut hasher = Sha256::new();
    let mut read = 0;
    let mut bytes = vec![0; 64 * 1024];
    loop {
        match file.read(&mut bytes)? {
            0 => break,
            more => {
                hasher.update(&bytes[..more]);
                read += more as u64;
            }
        }
    }
    Ok(read == length && <[u8; 32]>::from(hasher.finalize()) == digest.0)
}

impl Partial {
    /// What there is of an artifact, as far as it is sound. Blocks.
    ///
    /// # Errors
    /// What the disk said.
    pub(super) fn open(folder: &Path, digest: Digest, length: u64) -> io::Result<Self> {
        let path = file(folder, digest);
        let open = |path: &Path| {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
        };
        let mut partial = Self {
            file: open(&path)?,
            sums: open(&sums(&path))?,
            path,
            length,
            digest,
            whole: Sha256::new(),
            piece: Sha256::new(),
            at: 0,
            synced: 0,
            waiting: Vec::new(),
            tag: None,
        };
        partial.verify()?;
        Ok(partial)
    }

    /// Bytes that are there.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    fn verify(&mut self) -> io::Result<()> {
        let mut piece = vec![0; usize::try_from(PIECE_BYTES.min(self.length)).unwrap_or(0)];
        let mut sum = [0; 32];
        while self.at < self.length && self.sums.read_exact(&mut sum).is_ok() {
            let size = usize::try_from(PIECE_BYTES.min(self.length - self.at)).unwrap_or(0);
            let bytes = &mut piece[..size];
            if self.file.read_exact(bytes).is_err() || <[u8; 32]>::from(Sha256::digest(&*bytes)) != sum {
                break;
            }
            self.whole.update(&*bytes);
            self.at += size as u64;
        }
        self.cut()
    }

    /// Both files end where it is known that they are sound.
    fn cut(&mut self) -> io::Result<()> {
        self.synced = self.at;
        self.waiting.clear();
        self.piece = Sha256::new();
        self.file.set_len(self.at)?;
        self.file.seek(SeekFrom::Start(self.at))?;
        let sums = self.at.div_ceil(PIECE_BYTES) * 32;
        self.sums.set_len(sums)?;
        self.sums.seek(SeekFrom::Start(sums)).map(drop)
    }

    /// Begins anew.
    pub(super) fn reset(&mut self) -> io::Result<()> {
        self.at = 0;
        self.whole = Sha256::new();
        self.tag = None;
        self.cut()
    }

    fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = PIECE_BYTES - self.at % PIECE_BYTES;
            let (part, rest) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.file.write_all(part)?;
            self.whole.update(part);
            self.piece.update(part);
            self.at += part.len() as u64;
            if self.at.is_multiple_of(PIECE_BYTES) || self.at == self.length {
                let sum = std::mem::take(&mut self.piece).finalize();
                self.waiting.extend_from_slice(&sum);
                if self.at - self.synced >= SYNC_BYTES || self.at == self.length {
                    self.sync()?;
                }
            }
            bytes = rest;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.sums.write_all(&self.waiting)?;
        self.sums.sync_data()?;
        self.waiting.clear();
        self.synced = self.at;
        Ok(())
    }

    /// Whether all of it is there, has its digest, and is synced with its name.
    fn is_whole(&self) -> io::Result<bool> {
        if self.at != self.length || <[u8; 32]>::from(self.whole.clone().finalize()) != self.digest.0 {
            return Ok(false);
        }
        self.file.sync_all()?;
        self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())?;
        Ok(true)
    }
}

/// Writes what comes, on a thread that may block.
struct Writer {
    bytes: mpsc::Sender<Bytes>,
    thread: task::JoinHandle<(Partial, io::Result<()>)>,
}

impl Writer {
    fn start(mut partial: Partial) -> Self {
        let (bytes, mut waiting) = mpsc::channel::<Bytes>(WAITING);
        let thread = task::spawn_blocking(move || {
            let mut written = Ok(());
            while let (Ok(()), Some(bytes)) = (&written, waiting.blocking_recv()) {
                written = partial.take(&bytes);
            }
            (partial, written)
        });
        Self { bytes, thread }
    }

    async fn end(self) -> Option<(Partial, io::Result<()>)> {
        drop(self.bytes);
        self.thread.await.ok()
    }
}

/// Fetches what is missing. `may` says whether that many more bytes may be fetched; it is asked about once a second.
/// Gives what is there then, how it went, and how many bytes came. Safe to cancel: what was synced stays.
pub(super) async fn fetch(
    live: &Live,
    mut partial: Partial,
    may: impl Fn(u64) -> bool,
) -> (Option<Partial>, Arrival, u64) {
    let (digest, length, before) = (partial.digest, partial.length, partial.at);
    if before == length {
        return whole(partial, 0).await;
    }
    let path = format!("{ARTIFACT_PATH}/{digest}");
    let broken = |why: String, moved| Arrival::Broken { why, moved };
    let tag = partial.tag.clone();
    let answer = match https::get(&live.https(), live.dial().1, &path, before, tag.as_ref()).await {
        Ok(answer) => answer,
        Err(error) => return (Some(partial), broken(error.to_string(), false), 0),
    };
    let said = |status: StatusCode| format!("the hub answers {path} with status {status}");
    let begins = match answer.status {
        StatusCode::OK => 0,
        StatusCode::PARTIAL_CONTENT if range_begins(&answer.headers) == Some(before) => before,
        StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT => {
            return restarted(partial, broken(said(answer.status), false)).await;
        }
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED | StatusCode::GONE => {
            return (Some(partial), Arrival::Denied(said(answer.status)), 0);
        }
        status => return (Some(partial), broken(said(status), false), 0),
    };
    partial.tag = answer.headers.get(header::ETAG).cloned();
    if begins != before {
        let tag = partial.tag.take();
        match task::spawn_blocking(move || partial.reset().map(|()| partial)).await {
            Ok(Ok(fresh)) => partial = Partial { tag, ..fresh },
            Ok(Err(error)) => return (None, failed(&error, length), 0),
            Err(_) => return (None, broken("the disk's thread ended".to_owned(), false), 0),
        }
    }
    let writer = Writer::start(partial);
    let (end, moved) = pump(answer, &writer, length - begins, may).await;
    let Some((partial, written)) = writer.end().await else {
        return (None, broken("the disk's thread ended".to_owned(), moved > 0), moved);
    };
    if let Err(error) = written {
        return (None, failed(&error, length - partial.at), moved);
    }
    match end {
        End::All => whole(partial, moved).await,
        End::More => {
            let message = format!("the hub sends more than the {length} bytes that were signed");
            let (_, _, _) = restarted(partial, Arrival::Paused).await;
            (None, Arrival::Failed(Trouble::lasting(code::LENGTH, message)), moved)
        }
        End::Paused => (Some(partial), Arrival::Paused, moved),
        End::Broken(why) => (Some(partial), broken(why, moved > 0), moved),
    }
}

/// Why no more bytes come.
enum End {
    All,
    More,
    Paused,
    Broken(String),
}

/// Passes bytes on to the disk, until there are as many as are missing.
async fn pump(
    mut answer: https::Answer,
    writer: &Writer,
    missing: u64,
    may: impl Fn(u64) -> bool,
) -> (End, u64) {
    let mut moved = 0;
    let mut look = time::interval(LOOK);
    loop {
        let stalled = time::sleep(STALL);
        tokio::pin!(stalled);
        let read = loop {
            select! {
                read = answer.more() => break read,
                () = &mut stalled => {
                    return (End::Broken(format!("nothing came for {} s", STALL.as_secs())), moved);
                }
                _ = look.tick() => if !may(moved) {
                    return (End::Paused, moved);
                },
            }
        };
        match read {
            Ok(Some(bytes)) => {
                moved += bytes.len() as u64;
                if moved > missing {
                    return (End::More, moved);
                }
                // An error says that the disk failed, which is told at the end.
                if writer.bytes.send(bytes).await.is_err() {
                    return (End::Broken("the disk failed".to_owned()), moved);
                }
            }
            Ok(None) if moved == missing => return (End::All, moved),
            Ok(None) => return (End::Broken("the answer ended early".to_owned()), moved),
            Err(error) => return (End::Broken(error.to_string()), moved),
        }
    }
}

async fn whole(partial: Partial, moved: u64) -> (Option<Partial>, Arrival, u64) {
    let checked = task::spawn_blocking(move || (partial.is_whole(), partial)).await;
    match checked {
        Ok((Ok(true), partial)) => (Some(partial), Arrival::Whole, moved),
        Ok((Ok(false), partial)) => {
            let message = "the bytes that came are not those that were signed";
            let (partial, _, _) = restarted(partial, Arrival::Paused).await;
            (partial, Arrival::Failed(Trouble::lasting(code::DIGEST, message)), moved)
        }
        Ok((Err(error), partial)) => (None, failed(&error, partial.length), moved),
        Err(_) => (None, Arrival::Broken { why: "the disk's thread ended".to_owned(), moved: false }, moved),
    }
}

async fn restarted(mut partial: Partial, arrival: Arrival) -> (Option<Partial>, Arrival, u64) {
    let reset = task::spawn_blocking(move || partial.reset().map(|()| partial)).await;
    (reset.ok().and_then(Result::ok), arrival, 0)
}

fn failed(error: &io::Error, missing: u64) -> Arrival {
    let trouble = unpack::disk(error);
    let trouble = match trouble.code == code::NO_SPACE {
        true => Trouble {
            message: format!(
                "the disk is full, and {missing} bytes are still to come; remove something and try again"
            ),
            ..trouble
        },
        false => trouble,
    };
    if trouble.passing {
        Arrival::Broken { why: trouble.message, moved: false }
    } else {
        Arrival::Failed(trouble)
    }
}

/// Where the part begins that an answer has.
fn range_begins(headers: &hyper::HeaderMap) -> Option<u64> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn what_was_synced_is_found_and_what_is_not_sound_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let all = bytes(6 * 1024 * 1024 + 100);
        let (digest, length) = (digest(&all), all.len() as u64);
        let open = || Partial::open(folder.path(), digest, length).unwrap();
        let mut partial = open();
        partial.take(&all[..5 * 1024 * 1024 + 7]).unwrap();
        drop(partial);
        assert_eq!(open().at(), SYNC_BYTES, "the rest was not synced");
        let mut partial = open();
        partial.take(&all[SYNC_BYTES as usize..]).unwrap();
        assert!(partial.is_whole().unwrap());
        drop(partial);
        assert!(is_sound(folder.path(), digest, length).unwrap());
        assert!(open().is_whole().unwrap(), "also when it is found whole");
        // One bit of the third piece.
        let path = file(folder.path(), digest);
        let mut spoilt = fs::read(&path).unwrap();
        spoilt[2 * 1024 * 1024 + 5] ^= 1;
        fs::write(&path, spoilt).unwrap();
        assert!(!is_sound(folder.path(), digest, length).unwrap());
        let mut partial = open();
        assert_eq!(partial.at(), 2 * 1024 * 1024);
        partial.take(&all[2 * 1024 * 1024..]).unwrap();
        assert!(partial.is_whole().unwrap());
        partial.reset().unwrap();
        partial.take(&vec![0; all.len()]).unwrap();
        assert!(!partial.is_whole().unwrap());
        remove(folder.path(), digest);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(!is_sound(folder.path(), digest, length).unwrap());
    }

    #[test]
    fn an_empty_artifact_is_whole_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let partial = Partial::open(folder.path(), digest(b""), 0).unwrap();
        assert!(partial.is_whole().unwrap());
    }
}
