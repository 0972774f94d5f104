//! Lines that programs append to a file: looked for at intervals, also after the file was rotated away.
//!
//! Begins at the file's end: what was there before the agent is the program's past.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::Duration,
};

use tokio::{select, task, time};
use tracing::warn;

use super::{
    Handle,
    line::{INFO, Line, MESSAGE_BYTES},
};
use crate::{clock, stop::Stop};

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Most bytes that are read at one look.
const AT_ONCE: usize = 256 * 1024;

/// Follows a file until told to stop.
pub(crate) async fn run(path: PathBuf, logs: Handle, mut stop: Stop) {
    let mut tail = Tail::new(path);
    let mut troubled = false;
    loop {
        // A file on a network, or on a card that hangs, must not hold up the agent.
        let looked = task::spawn_blocking(move || {
            let looked = tail.look();
            (tail, looked)
        });
        let looked = select! {
            looked = looked => looked,
            () = stop.wanted() => return,
        };
        let Ok((back, lines)) = looked else { return };
        tail = back;
        match lines {
            Ok(lines) => {
                troubled = false;
                let unit = tail.path.display().to_string();
                for line in lines {
                    logs.push(Line::new(clock::wall_ms(), &unit, INFO, &line));
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut troubled, true) {
                    warn!("{} cannot be read, its lines are not kept: {error}", tail.path.display());
                }
            }
        }
        select! {
            () = time::sleep(LOOK) => {}
            () = stop.wanted() => return,
        }
    }
}

/// A file, and the bytes that were read of it.
#[derive(Debug)]
struct Held {
    file: File,
    which: (u64, u64),
    from: u64,
}

impl Held {
    fn new(file: File, from: u64) -> io::Result<Self> {
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        Ok(Self { file, which: (found.dev(), found.ino()), from })
    }

    /// What was added; one that was cut is read anew.
    fn read(&mut self) -> io::Result<(Vec<u8>, bool)> {
        let len = self.file.metadata()?.len();
        let was_cut = len < self.from;
        if was_cut {
            self.from = 0;
        }
        let mut bytes = Vec::new();
        if len > self.from {
            self.file.seek(SeekFrom::Start(self.from))?;
            (&self.file).take(AT_ONCE as u64).read_to_end(&mut bytes)?;
        }
        self.from += bytes.len() as u64;
        Ok((bytes, was_cut))
    }
}

/// How far a file was read.
#[derive(Debug)]
struct Tail {
    path: PathBuf,
    // Held open: when another file has its name, what was added to it last is read all the same, and its inode is nobody
    // else's.
    at: Option<Held>,
    // Looked for before: a file that appears later is read from its beginning.
    looked: bool,
    // The beginning of a line whose end is not there yet.
    part: Vec<u8>,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, at: None, looked: false, part: Vec::new() }
    }

    /// The lines that were added.
    fn look(&mut self) -> io::Result<Vec<String>> {
        let first = !std::mem::replace(&mut self.looked, true);
        let mut lines = Vec::new();
        if let Some(held) = &mut self.at {
            let (read, was_cut) = held.read()?;
            if was_cut {
                self.part.clear();
            }
            lines = self.lines(&read);
            if read.len() == AT_ONCE {
                // There may be more of it before another one has its name.
                return Ok(lines);
            }
        }
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(lines),
            Err(error) => return Err(error),
        };
        let mut found = Held::new(file, 0)?;
        match &self.at {
            Some(known) if known.which == found.which => return Ok(lines),
            // Another file has its name: all of it is new, and what the one before began is all that will come of it.
            Some(_) if !self.part.is_empty() => lines.append(&mut self.lines(b"\n")),
            None if first => found.from = found.file.metadata()?.len(),
            Some(_) | None => {}
        }
        let (read, _) = found.read()?;
        self.at = Some(found);
        lines.append(&mut self.lines(&read));
        Ok(lines)
    }

    fn lines(&mut self, read: &[u8]) -> Vec<String> {
        self.part.extend_from_slice(read);
        let mut lines = Vec::new();
        let whole = self.part.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in self.part[..whole].split(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(line);
            let line = line.trim_end_matches('\r');
            if !line.is_empty() {
                lines.push(line.to_owned());
            }
        }
        self.part.drain(..whole);
        // What never ends is cut anyhow.
        self.part.truncate(MESSAGE_BYTES + 1);
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, path::Path};

    use super::*;

    fn append(path: &Path, text: &str) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn what_is_appended_is_told_once_also_over_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.log");
        append(&path, "of before\n");
        let mut tail = Tail::new(path.clone());
        assert_eq!(tail.look().unwrap(), [""; 0]);
        append(&path, "one\r\n\ntw");
        assert_eq!(tail.look().unwrap(), ["one"]);
        append(&path, "o\n");
        assert_eq!(tail.look().unwrap(), ["two"]);
        // The program writes on until it is told, and the last of it ends without an end.
        append(&path, "last\n");
        let old = folder.path().join("app.log.1");
        fs::rename(&path, &old).unwrap();
        assert_eq!(tail.look().unwrap(), ["last"]);
        append(&old, "late\ncut of");
        append(&path, "three\n");
        assert_eq!(tail.look().unwrap(), ["late", "cut of", "three"]);
        // Gone and made anew between two looks.
        append(&path, "four\n");
        fs::remove_file(&path).unwrap();
        append(&path, "five\nsix and seven\n");
        assert_eq!(tail.look().unwrap(), ["four", "five", "six and seven"]);
        fs::write(&path, "x\n").unwrap();
        assert_eq!(tail.look().unwrap(), ["x"]);
        assert_eq!(tail.look().unwrap(), [""; 0]);
    }

    #[test]
    fn a_file_that_comes_later_is_read_from_its_beginning_and_a_long_line_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.log");
        let mut tail = Tail::new(path.clone());
        assert_eq!(tail.look().unwrap(), [""; 0]);
        append(&path, "first\n");
        assert_eq!(tail.look().unwrap(), ["first"]);
        append(&path, &"x".repeat(10 * MESSAGE_BYTES));
        assert_eq!(tail.look().unwrap(), [""; 0]);
        assert_eq!(tail.part.len(), MESSAGE_BYTES + 1);
        assert!(Tail::new(folder.path().to_owned()).look().is_err());
    }
}
