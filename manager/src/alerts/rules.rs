//! Where rules come from: the hub's own, `rules.yaml`, and the `alerts.yaml` of kits in `rules.d/`, as they were made.
//!
//! All of them are taken together or refused together; a refusal has the file, the line, the column and the reason.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use fleet_schemas::rule::{self, Rule, RuleId};
use serde::{Deserialize, Serialize};

use crate::core::alert::scope;

/// The file's name in the data folder.
pub const FILE: &str = "rules.yaml";
/// The folder with kits' files, in the data folder.
pub const FOLDER: &str = "rules.d";
/// The hub's own rules.
pub const OWN: &str = include_str!("default.yaml");
/// Most kits that are imported.
pub const KITS: usize = 64;

/// Where a rule comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The hub's own.
    Own,
    /// `rules.yaml`.
    File,
    /// A kit, by the name it was imported under; its rules are called `NAME.ID`.
    Kit(String),
}

impl Source {
    /// The word in REST and CLI.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Own => "default".to_owned(),
            Self::File => FILE.to_owned(),
            Self::Kit(name) => format!("kit {name}"),
        }
    }
}

/// One rule, where it comes from, and whether it is judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// It.
    pub rule: Rule,
    /// Where it comes from.
    pub source: Source,
    /// Whether it is judged.
    pub enabled: bool,
}

/// Why rules are refused. Fits after "failed to read ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: line {line}, column {column}: {reason}")]
pub struct Refused {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// The column, from 1.
    pub column: u64,
    /// What is wrong, and what would be right.
    pub reason: String,
}

/// The files: read, watched, written.
#[derive(Debug, Clone)]
pub struct Files {
    file: PathBuf,
    folder: PathBuf,
}

/// What the files looked like: another look tells whether they changed.
pub type Marks = Vec<(PathBuf, Option<(SystemTime, u64)>)>;

/// The texts of all files, by source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Texts {
    /// `rules.yaml`; empty when there is none.
    pub file: String,
    /// Kits by name.
    pub kits: BTreeMap<String, String>,
}

impl Files {
    /// The files of a data folder; `file` is another place of `rules.yaml`.
    #[must_use]
    pub fn new(data: &Path, file: Option<&Path>) -> Self {
        Self { file: file.map_or_else(|| data.join(FILE), Path::to_owned), folder: data.join(FOLDER) }
    }

    /// What the files look like now.
    #[must_use]
    pub fn marks(&self) -> Marks {
        let look = |path: PathBuf| {
            let seen = fs::metadata(&path).ok();
            let mark = seen.and_then(|seen| Some((seen.modified().ok()?, seen.len())));
            (path, mark)
        };
        let mut marks = vec![look(self.file.clone())];
        marks.extend(self.kit_paths().unwrap_or_default().into_iter().map(look));
        marks
    }

    fn kit_paths(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        let mut paths: Vec<_> =
            paths.into_iter().filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
        paths.sort();
        paths.truncate(KITS);
        Ok(paths)
    }

    /// Reads all of them.
    ///
    /// # Errors
    /// [`Refused`], also when a file cannot be read.
    pub fn read(&self) -> Result<Texts, Refused> {
        let mut texts = Texts { file: bounded(&self.file)?.unwrap_or_default(), kits: BTreeMap::new() };
        for path in self.kit_paths().map_err(|error| unread(&self.folder, &error))? {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(text) = bounded(&path)? {
                texts.kits.insert(name, text);
            }
        }
        Ok(texts)
    }

    /// Writes `rules.yaml`.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&self, text: &str) -> io::Result<()> {
        replace(&self.file, text)
    }

    /// Writes a kit's file, or removes it.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write_kit(&self, name: &str, text: Option<&str>) -> io::Result<()> {
        let path = self.folder.join(format!("{name}.yaml"));
        match text {
            Some(text) => {
                fs::create_dir_all(&self.folder)?;
                replace(&path, text)
            }
            None => fs::remove_file(path),
        }
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("yaml.new");
    let file = fs::File::create(&temporary)?;
    io::Write::write_all(&mut &file, text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn unread(path: &Path, error: &io::Error) -> Refused {
    let reason = format!("cannot be read: {error}");
    Refused { file: path.display().to_string(), line: 1, column: 1, reason }
}

/// A file's text, not read when it is larger than a file of rules may be; none where there is none.
fn bounded(path: &Path) -> Result<Option<String>, Refused> {
    match fs::metadata(path) {
        Ok(seen) if seen.len() > rule::FILE_BYTES as u64 => {
            let reason = format!("larger than {} bytes; keep rules apart", rule::FILE_BYTES);
            Err(Refused { file: path.display().to_string(), line: 1, column: 1, reason })
        }
        Ok(_) => fs::read_to_string(path).map(Some).map_err(|error| unread(path, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unread(path, &error)),
    }
}

/// Reads one text as the hub's rules.
///
/// # Errors
/// [`Refused`].
pub fn read_one(file: &str, text: &str) -> Result<Vec<(Rule, bool)>, Refused> {
    rule::read_all(text, scope()).map_err(|error| Refused {
        file: file.to_owned(),
        line: error.line,
        column: error.column,
        reason: error.reason,
    })
}

/// All rules of these texts. One of `rules.yaml` takes the place of the hub's own of the same id.
///
/// # Errors
/// [`Refused`]: none of them is taken.
pub fn read_all(texts: &Texts) -> Result<Vec<Listed>, Refused> {
    let mut all: BTreeMap<RuleId, Listed> = BTreeMap::new();
    for (source, file, text) in [(Source::Own, "default", OWN), (Source::File, FILE, texts.file.as_str())] {
        for (rule, enabled) in read_one(file, text)? {
            all.insert(rule.id.clone(), Listed { rule, source: source.clone(), enabled });
        }
    }
    for (name, text) in &texts.kits {
        let file = format!("{FOLDER}/{name}.yaml");
        let wrong = |reason: String| Refused { file: file.clone(), line: 1, column: 1, reason };
        for (mut rule, enabled) in read_one(&file, text)? {
            rule.id = RuleId::parse(&format!("{name}.{}", rule.id))
                .map_err(|reason| wrong(format!("with the kit's name before it, {}: {reason}", rule.id)))?;
            let id = rule.id.clone();
            let listed = Listed { rule, source: Source::Kit(name.clone()), enabled };
            if all.insert(id.clone(), listed).is_some() {
                return Err(wrong(format!("the id {id} is taken by a rule of {FILE}")));
            }
        }
    }
    if all.len() > rule::RULES {
        let reason = format!("more than {} rules together; remove some", rule::RULES);
        return Err(Refused { file: FILE.to_owned(), line: 1, column: 1, reason });
    }
    Ok(all.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIT: &str = r#"
alerts:
  - {id: hot, sensor: dht22, field: temperature, condition: "value > 27.0", severity: warn, message: "{{ value }}", outputs: [log, webhook, buzzer], cooldown_s: 300}
  - {id: silent, sensor: any, condition: "last_seen_s > 120", severity: critical}
"#;

    fn texts(file: &str) -> Texts {
        Texts { file: file.to_owned(), kits: [("greenhouse".to_owned(), KIT.to_owned())].into() }
    }

    #[test]
    fn kits_are_taken_as_they_were_made_and_own_rules_can_be_replaced() {
        let all =
            read_all(&texts("rules: [{id: node-offline, condition: 'flapping', enabled: false}]")).unwrap();
        let find = |id: &str| all.iter().find(|listed| listed.rule.id.as_str() == id).unwrap();
        assert_eq!(find("greenhouse.hot").source, Source::Kit("greenhouse".to_owned()));
        assert!(find("ledger-loss").enabled && !find("node-offline").enabled);
        assert_eq!(find("node-offline").source, Source::File);
    }

    #[test]
    fn a_mistake_is_told_with_its_place_and_takes_everything_with_it() {
        let wrong =
            read_all(&texts("rules:\n  - {id: a, condition: 'precense == \"offline\"'}")).unwrap_err();
        assert_eq!((wrong.file.as_str(), wrong.line, wrong.column), (FILE, 2, 25));
        assert!(wrong.reason.contains("precense") && wrong.reason.contains("outbox_records"), "{wrong}");
        let wrong =
            read_all(&texts("rules:\n  - {id: a, condition: flapping, selector: 'site in (,'}")).unwrap_err();
        assert_eq!((wrong.line, wrong.column), (2, 44), "{wrong}");
        let taken = read_all(&texts("rules: [{id: greenhouse.hot, condition: flapping}]")).unwrap_err();
        assert!(taken.reason.contains("taken"), "{taken}");
    }

    #[test]
    fn the_hubs_own_rules_are_right() {
        assert!(read_all(&Texts::default()).unwrap().len() >= 9);
    }
}
