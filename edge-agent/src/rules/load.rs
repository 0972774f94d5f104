//! Files of rules: read when they change, taken or refused together.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use fleet_schemas::rule::{FILE_BYTES, Rule, Scope, read};

use super::Config;
use crate::core::rules::RULES;

/// Least time from one firing to the next of the same device: a value that flaps must not fill the outbox.
const LEAST_COOLDOWN: Duration = Duration::from_secs(10);

/// Why no rules are taken.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) file: PathBuf,
    /// Line and column, where the text is wrong.
    pub(super) place: Option<(u64, u64)>,
    pub(super) reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.place {
            write!(f, ", line {line}, column {column}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// What tells that a file changed: inode, size, time of change.
type Mark = Option<(u64, u64, i64, i64)>;

pub(super) struct Files {
    // With whether it may be missing.
    paths: Vec<(PathBuf, bool)>,
    marks: Option<Vec<Mark>>,
}

impl Files {
    pub(super) fn new(config: &Config, folder: &Path) -> Self {
        let optional = *config == Config { files: Config::default().files, ..config.clone() };
        let paths = config.files.iter().map(|file| (folder.join(file), optional)).collect();
        Self { paths, marks: None }
    }

    /// All rules, if any file changed since the last look.
    pub(super) fn read_if_changed(&mut self) -> Option<Result<Vec<Rule>, Refusal>> {
        let marks: Vec<_> = self.paths.iter().map(|(path, _)| mark(path)).collect();
        if self.marks.as_ref() == Some(&marks) {
            return None;
        }
        self.marks = Some(marks);
        Some(self.read_all())
    }

    fn read_all(&self) -> Result<Vec<Rule>, Refusal> {
        let mut rules: Vec<Rule> = Vec::new();
        for (path, optional) in &self.paths {
            let refuse = |place, reason| Refusal { file: path.clone(), place, reason };
            let text = match text(path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound && *optional => continue,
                Err(error) => return Err(refuse(None, format!("it cannot be read: {error}"))),
            };
            // What is known at a node is devices and samples: no facts beside them.
            let more = read(&text, Scope::default())
                .map_err(|error| refuse(Some((error.line, error.column)), error.reason))?;
            for mut rule in more {
                if rules.iter().any(|other| other.id == rule.id) {
                    return Err(refuse(None, format!("the id {} is taken in another file", rule.id)));
                }
                rule.cooldown = rule.cooldown.max(LEAST_COOLDOWN);
                rules.push(rule);
            }
            if rules.len() > RULES {
                return Err(refuse(None, format!("more than {RULES} rules; let the hub judge some of them")));
            }
        }
        Ok(rules)
    }
}

fn mark(path: &Path) -> Mark {
    let found = fs::metadata(path).ok()?;
    Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

fn text(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    // One byte more than allowed is enough to refuse it.
    file.take(FILE_BYTES as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "alerts: [{id: a, sensor: s, condition: 'last_seen_s > 9'}]";

    fn files(folder: &Path, names: &[&str]) -> Files {
        let config = Config { files: names.iter().map(PathBuf::from).collect(), ..Config::default() };
        Files::new(&config, folder)
    }

    #[test]
    fn files_are_read_when_they_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(super::super::FILE);
        let mut files = files(folder.path(), &[super::super::FILE]);
        assert_eq!(files.read_if_changed(), Some(Ok(Vec::new())), "the usual file may be missing");
        assert_eq!(files.read_if_changed(), None);
        fs::write(&path, ONE).unwrap();
        let rules = files.read_if_changed().unwrap().unwrap();
        assert_eq!((rules.len(), rules[0].cooldown), (1, LEAST_COOLDOWN));
        assert_eq!(files.read_if_changed(), None);
        fs::write(&path, "alerts:\n  - id: a\n    condition: 'last_seen_s >'").unwrap();
        let refusal = files.read_if_changed().unwrap().unwrap_err();
        assert_eq!(refusal.place, Some((3, 30)), "{refusal}");
        assert_eq!(files.read_if_changed(), None, "it is said once");
        fs::remove_file(&path).unwrap();
        assert_eq!(files.read_if_changed(), Some(Ok(Vec::new())));
    }

    #[test]
    fn a_file_that_was_asked_for_must_be_there_and_ids_are_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("one.yaml"), ONE).unwrap();
        fs::write(folder.path().join("two.yaml"), ONE).unwrap();
        let refused = |names: &[&str]| files(folder.path(), names).read_if_changed().unwrap().unwrap_err();
        assert!(refused(&["one.yaml", "missing.yaml"]).reason.contains("cannot be read"));
        assert!(refused(&["one.yaml", "two.yaml"]).reason.contains("another file"));
        assert!(refused(&["."]).reason.contains("not a file"));
        fs::write(folder.path().join("large.yaml"), "#".repeat(FILE_BYTES + 9)).unwrap();
        assert!(refused(&["large.yaml"]).reason.contains("larger"));
        fs::write(folder.path().join("bytes.yaml"), [0xff, 0xfe, 0]).unwrap();
        assert!(refused(&["bytes.yaml"]).reason.contains("cannot be read"));
    }
}
