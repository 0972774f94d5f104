//! Takes a backup as it comes and writes it: beside its name, synced, read back, and only then under it.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc as sync,
    },
    thread,
};

use bytes::{Bytes, BytesMut};
use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::backup::{
    Error, HEAD, Head, MANIFEST, Manifest, OBJECTS, prune,
    read::{self, Checked, PassOver, Place, Sink},
    sealed::{Out, Recipient},
};

/// Pieces on their way.
const WAITING: usize = 8;
/// Bytes handed on at once.
const PIECE: usize = 256 * 1024;
/// zstd's level, as the hub's.
const LEVEL: i32 = 3;

/// A stream of bytes, read on a thread that may wait.
pub(super) struct Incoming {
    from: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

/// The other end, for whoever writes on a thread that may wait.
pub(super) struct Pipe {
    to: mpsc::Sender<io::Result<Bytes>>,
    piece: BytesMut,
}

impl Incoming {
    pub(super) fn pair() -> (mpsc::Sender<io::Result<Bytes>>, Self) {
        let (to, from) = mpsc::channel(WAITING);
        (to, Self { from, piece: Bytes::new() })
    }
}

impl Read for Incoming {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.from.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let most = bytes.len().min(self.piece.len());
        bytes[..most].copy_from_slice(&self.piece.split_to(most));
        Ok(most)
    }
}

impl Pipe {
    pub(super) fn new(to: mpsc::Sender<io::Result<Bytes>>) -> Self {
        Self { to, piece: BytesMut::with_capacity(2 * PIECE) }
    }

    /// Tells the reader that nothing more comes, and that it is not whole.
    pub(super) fn fail(&mut self, why: &str) {
        drop(self.to.blocking_send(Err(io::Error::other(why.to_owned()))));
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = self.piece.split().freeze();
        self.to.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Where a backup goes.
pub(super) struct Taking {
    /// The name it is to have.
    pub(super) file: PathBuf,
    /// Whether objects lie beside it.
    pub(super) is_folder: bool,
    /// For whom it is encrypted.
    pub(super) recipients: Vec<Recipient>,
    /// About how many bytes come; none were said while it is 0.
    pub(super) about: Arc<AtomicU64>,
    /// Shows how far it is.
    pub(super) bar: ProgressBar,
}

/// A file that is being written: removed unless it gets its name.
struct Beside {
    path: PathBuf,
    named: bool,
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.named {
            // What is left of it is no backup, and has no name of one.
            drop(fs::remove_file(&self.path));
        }
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { path: path.clone(), source }
}

impl Beside {
    fn new(name: &Path) -> Result<(Self, File), Error> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut path = name.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        // What a backup that was killed left there.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&path)(error)),
            Err(_) | Ok(()) => {}
        }
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(at(&path))?;
        Ok((Self { path, named: false }, file))
    }

    fn rename(mut self, name: &Path) -> Result<(), Error> {
        fs::rename(&self.path, name).map_err(at(name))?;
        self.named = true;
        if let Some(folder) = name.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))?;
        }
        Ok(())
    }
}

/// Writes on, and reckons the SHA-256 of what was written.
struct Hashed<W> {
    to: W,
    digest: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

type Sealed = Out<Hashed<BufWriter<File>>>;

fn sealed(file: File, recipients: &[Recipient]) -> Result<Sealed, Error> {
    let to = Hashed { to: BufWriter::with_capacity(PIECE, file), digest: Sha256::new() };
    Ok(Out::new(to, recipients)?)
}

/// Ends a file: everything is on the disk, and reads back as it was written.
fn finished(sealed: Sealed, path: &Path) -> Result<(), Error> {
    let Hashed { to, digest } = sealed.finish().map_err(at(path))?;
    let file = to.into_inner().map_err(|error| at(path)(error.into_error()))?;
    file.sync_all().map_err(at(path))?;
    drop(file);
    let mut again = Hashed { to: io::sink(), digest: Sha256::new() };
    io::copy(&mut File::open(path).map_err(at(path))?, &mut again).map_err(at(path))?;
    match again.digest.finalize() == digest.finalize() {
        true => Ok(()),
        false => Err(Error::Damaged {
            path: path.to_owned(),
            why: "it reads back other than it was written; check the disk".to_owned(),
        }),
    }
}

impl Taking {
    /// Writes it; gives what was found when it was checked.
    ///
    /// # Errors
    /// [`Error`]: there is nothing under its name.
    pub(super) fn run(self, incoming: Incoming) -> Result<Checked, Error> {
        let folder = match self.file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            Some(_) | None => PathBuf::from("."),
        };
        let about = self.about.clone();
        // Once as it is written, and once unpacked when it is read back.
        self.write(incoming)
            .map_err(|error| error.with_room(&folder, about.load(Ordering::Relaxed).saturating_mul(2)))
    }

    fn write(self, incoming: Incoming) -> Result<Checked, Error> {
        let folder = self.file.parent().unwrap_or(Path::new(".")).to_owned();
        let (beside, file) = Beside::new(&self.file)?;
        let manifest = match self.is_folder {
            true => self.demux(incoming, file, &beside.path)?,
            false => self.pass(incoming, file, &beside.path)?,
        };
        let mut checked = if self.recipients.is_empty() {
            let objects = self.file.parent().unwrap_or(Path::new(".")).join(OBJECTS);
            let place = Place { file: beside.path.clone(), objects };
            super::verify_at(&place, None, &self.bar).map_err(|error| set_aside(error, &place.objects))?
        } else {
            let size = fs::metadata(&beside.path).map_err(at(&beside.path))?.len();
            let files = manifest.files.len() + manifest.elsewhere.len();
            read::checked(&self.file, &manifest, (files, manifest.bytes(), size), true, 0)
        };
        checked.file.clone_from(&self.file);
        // One file in a folder of others needs nothing beside it, and nobody could read that out of it.
        if !self.recipients.is_empty() && (self.is_folder || folder.join(OBJECTS).is_dir()) {
            prune::write_needs(&folder, &self.file, &manifest)?;
        }
        beside.rename(&self.file)?;
        Ok(checked)
    }

    /// Writes the stream as it is, while another thread compares it with its manifest.
    fn pass(&self, mut incoming: Incoming, file: File, path: &Path) -> Result<Manifest, Error> {
        let (to, from) = sync::sync_channel::<Bytes>(WAITING);
        let name = self.file.clone();
        let check = move || {
            let mut tee = Tee { from, piece: Bytes::new() };
            read::read_stream(&mut tee, &name, &mut PassOver)
        };
        let checker =
            thread::Builder::new().name("backup-check".to_owned()).spawn(check).map_err(at(path))?;
        let mut out = sealed(file, &self.recipients)?;
        let mut piece = vec![0; PIECE];
        let copied = loop {
            match incoming.read(&mut piece) {
                Ok(0) => break Ok(()),
                Ok(read) => {
                    self.bar.inc(read as u64);
                    if let Err(error) = out.write_all(&piece[..read]) {
                        break Err(at(path)(error));
                    }
                    if to.send(Bytes::copy_from_slice(&piece[..read])).is_err() {
                        // The checker has found something wrong, and says it below.
                        break Ok(());
                    }
                }
                Err(error) => break Err(Error::Broken { path: self.file.clone(), why: error.to_string() }),
            }
        };
        drop(to);
        let checked = checker.join().map_err(|_| Error::GivenUp)?;
        copied?;
        let manifest = checked?;
        finished(out, path)?;
        Ok(manifest)
    }

    /// Takes the stream apart: what is shared goes to the folder of objects, the rest into the backup.
    fn demux(&self, incoming: Incoming, file: File, path: &Path) -> Result<Manifest, Error> {
        let objects = self.file.parent().unwrap_or(Path::new(".")).join(OBJECTS);
        fs::create_dir_all(&objects).map_err(at(&objects))?;
        let out = sealed(file, &self.recipients)?;
        let mut encoder = zstd::Encoder::new(out, LEVEL).map_err(at(path))?;
        // The manifest vouches for the files, and this for the manifest.
        encoder.include_checksum(true).map_err(at(path))?;
        let tar = tar::Builder::new(encoder);
        let mut demux = Demux { tar, taking: self, objects, at_s: 0, path };
        let manifest = read::read_stream(incoming, &self.file, &mut demux)?;
        let text = serde_json::to_vec_pretty(&manifest).expect("texts and numbers make JSON");
        demux.append(MANIFEST, text.len() as u64, &mut &text[..])?;
        let encoder = demux.tar.into_inner().map_err(at(path))?;
        finished(encoder.finish().map_err(at(path))?, path)?;
        Ok(manifest)
    }
}

/// A damaged object is taken out of the way, so that the next backup writes it anew.
fn set_aside(error: Error, objects: &Path) -> Error {
    let Error::Damaged { path, why } = &error else { return error };
    if path.parent() != Some(objects) {
        return error;
    }
    let mut aside = path.clone().into_os_string();
    aside.push(".damaged");
    match fs::rename(path, &aside) {
        Ok(()) => {
            let why = format!("{why}; it is {} now, and the next backup writes it anew", aside.display());
            Error::Damaged { path: path.clone(), why }
        }
        Err(_) => error,
    }
}

struct Tee {
    from: sync::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Tee {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.from.recv() {
                Ok(piece) => self.piece = piece,
                Err(sync::RecvError) => return Ok(0),
            }
        }
        let most = bytes.len().min(self.piece.len());
        bytes[..most].copy_from_slice(&self.piece.split_to(most));
        Ok(most)
    }
}

struct Demux<'a> {
    tar: tar::Builder<zstd::Encoder<'static, Sealed>>,
    taking: &'a Taking,
    objects: PathBuf,
    at_s: u64,
    path: &'a Path,
}

impl Demux<'_> {
    fn append(&mut self, name: &str, bytes: u64, from: &mut dyn Read) -> Result<(), Error> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(0o600);
        header.set_mtime(self.at_s);
        self.tar.append_data(&mut header, name, from).map_err(at(self.path))
    }

    /// One that is shared: its name tells what it holds, and the SHA-256 of its bytes.
    fn object(&self, tag: &str, from: &mut dyn Read) -> Result<(), Error> {
        let name = self.objects.join(tag);
        let (beside, file) = Beside::new(&name)?;
        let out = sealed(file, &self.taking.recipients)?;
        let encoder = zstd::Encoder::new(out, LEVEL).map_err(at(&name))?;
        let mut hashed = Hashed { to: encoder, digest: Sha256::new() };
        io::copy(from, &mut hashed).map_err(at(&name))?;
        let Hashed { to, digest } = hashed;
        finished(to.finish().map_err(at(&name))?, &beside.path)?;
        let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        beside.rename(&self.objects.join(format!("{tag}.{digest}")))
    }
}

impl Sink for Demux<'_> {
    fn head(&mut self, head: &Head) -> Result<(), Error> {
        self.at_s = u64::try_from(head.made_ms / 1_000).unwrap_or(0);
        let text = serde_json::to_vec_pretty(head).expect("texts and numbers make JSON");
        self.append(HEAD, text.len() as u64, &mut &text[..])
    }

    fn take(&mut self, name: &str, bytes: u64, from: &mut dyn Read) -> Result<(), Error> {
        self.taking.bar.set_message(name.to_owned());
        self.taking.bar.inc(bytes);
        let below = name.strip_prefix(OBJECTS).and_then(|rest| rest.strip_prefix('/'));
        match below.and_then(|below| below.split_once('/')) {
            Some((tag, _)) => self.object(tag, from),
            None => self.append(name, bytes, from),
        }
    }
}
