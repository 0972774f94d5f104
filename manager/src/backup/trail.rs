//! `revocations.jsonl`: the [lines](crate::core::identity::trail) of what was taken back, appended and synced before a
//! revocation is answered. Never rewritten; a line that a crash cut short is passed over.
//!
//! Lies in the data folder, or where `--revocations` says: on another disk it survives the one that the hub is on.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use crate::core::identity::{
    Identities, Row,
    trail::{Line, Said},
};

/// The file's name in the data folder.
pub const FILE: &str = "revocations.jsonl";
/// Longest line that is read, in bytes: a token that 10,000 nodes joined by.
const LINE_BYTES: usize = 1024 * 1024;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; revocations have to be written there, check the disk and its free space")]
pub struct TrailError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// The file, open for appending.
#[derive(Debug)]
pub struct Trail {
    path: PathBuf,
    file: File,
    said: Said,
    // What is to be written and is not yet.
    waiting: Vec<u8>,
}

/// What is in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The lines that read.
    pub lines: Vec<Line>,
    /// How many do not.
    pub unreadable: u64,
    /// Whether the last one was cut short.
    pub is_cut: bool,
}

/// Reads a file of lines.
///
/// # Errors
/// [`TrailError`].
pub fn read(path: &Path) -> Result<Found, TrailError> {
    let failed = |source| TrailError { path: path.to_owned(), source };
    let mut reader = BufReader::new(File::open(path).map_err(failed)?);
    let mut found = Found::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = io::Read::take(&mut reader, LINE_BYTES as u64).read_until(b'\n', &mut line);
        if read.map_err(failed)? == 0 {
            return Ok(found);
        }
        found.is_cut = !line.ends_with(b"\n");
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        match serde_json::from_slice(text) {
            Ok(line) => found.lines.push(line),
            Err(_) if text.is_empty() => {}
            Err(_) => found.unreadable += 1,
        }
    }
}

impl Trail {
    /// Opens or makes the file, and writes what it lacks of what the hub knows.
    ///
    /// # Errors
    /// [`TrailError`].
    pub fn open(path: &Path, identities: &Identities, now_ms: i64) -> Result<Self, TrailError> {
        let failed = |source| TrailError { path: path.to_owned(), source };
        let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        let file = open().map_err(failed)?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        let found = read(path)?;
        if found.unreadable > 0 {
            tracing::warn!(path = %path.display(), lines = found.unreadable, "lines of revocations do not read");
        }
        let mut trail = Self { path: path.to_owned(), file, said: Said::default(), waiting: Vec::new() };
        found.lines.iter().for_each(|line| trail.said.take(line));
        if found.is_cut {
            // What comes next begins on a line of its own.
            trail.waiting.push(b'\n');
        }
        let missing = trail.said.missing(identities, now_ms);
        trail.add(&missing)?;
        Ok(trail)
    }

    /// Appends what follows from changed rows; durable when this returns.
    ///
    /// # Errors
    /// [`TrailError`]: it is kept, and written by [`Trail::retry`].
    pub fn append<'a>(
        &mut self,
        identities: &Identities,
        rows: impl IntoIterator<Item = &'a Row>,
        now_ms: i64,
    ) -> Result<(), TrailError> {
        let lines = self.said.news(identities, rows, now_ms);
        self.add(&lines)
    }

    /// Appends what follows from the CAs that there are; durable when this returns.
    ///
    /// # Errors
    /// [`TrailError`]: it is kept, and written by [`Trail::retry`].
    pub fn append_authorities(&mut self, there: Vec<Line>, now_ms: i64) -> Result<(), TrailError> {
        let lines = self.said.authorities(there, now_ms);
        self.add(&lines)
    }

    /// Writes what waits since an error.
    ///
    /// # Errors
    /// [`TrailError`].
    pub fn retry(&mut self) -> Result<(), TrailError> {
        self.add(&[])
    }

    fn add(&mut self, lines: &[Line]) -> Result<(), TrailError> {
        for line in lines {
            serde_json::to_writer(&mut self.waiting, line).expect("texts and numbers make JSON");
            self.waiting.push(b'\n');
            self.said.take(line);
        }
        if self.waiting.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.waiting).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Half of it may be there: what is written next begins on a line of its own.
            if self.waiting.first() != Some(&b'\n') {
                self.waiting.insert(0, b'\n');
            }
            return Err(TrailError { path: self.path.clone(), source });
        }
        self.waiting.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use fleet_schemas::NodeId;

    use super::*;
    use crate::core::identity::{Enrolment, Standing};

    #[test]
    fn lines_are_appended_once_and_a_cut_one_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let node = NodeId::parse("a").unwrap();
        let mut known = Identities::default();
        let enrolment = Enrolment {
            standing: Standing::Revoked { at_ms: 5, reason: "stolen".to_owned() },
            key: [1; 32],
            certificate: None,
            barred: Vec::new(),
            token: String::new(),
            since_ms: 1,
        };
        known.enrolments.insert(node.clone(), enrolment);
        drop(Trail::open(&path, &known, 9).unwrap());
        assert_eq!(read(&path).unwrap().lines.len(), 1, "what the hub knew is written at the start");
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"what\":\"node_re")
            .unwrap();
        let mut trail = Trail::open(&path, &known, 9).unwrap();
        trail.append(&known, &[Row::Access("t".to_owned())], 11).unwrap();
        let found = read(&path).unwrap();
        assert_eq!((found.lines.len(), found.unreadable, found.is_cut), (2, 1, false), "{found:?}");
        trail.append(&known, &[Row::Enrolment(node)], 12).unwrap();
        assert_eq!(read(&path).unwrap(), found, "it is said already");
    }
}
