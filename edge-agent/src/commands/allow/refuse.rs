//! Refusals: they name the file and the exact lines that would allow what was wished.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use fleet_schemas::command::Reason;

use super::{Entry, Source, list};
use crate::core::queue::reason;

/// Where a program without a path is looked for.
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

impl Source {
    pub(super) fn refuse_named(
        &self,
        name: &str,
        args: &BTreeMap<String, String>,
        entries: &BTreeMap<String, Entry>,
    ) -> Reason {
        let words: Vec<_> = args.keys().map(|key| format!("{{{key}}}")).collect();
        let mut lines = lines(name, Path::new(name), &words);
        for key in args.keys() {
            let _ = write!(lines, "\n[command.{}.params.{}]\ntype = \"word\"\n", key_of(name), key_of(key));
        }
        let known: Vec<_> = entries.keys().map(String::as_str).collect();
        self.refuse(&format!("there is no command {name:?}"), &known, &lines)
    }

    pub(super) fn refuse_typed(&self, argv: &[String], entries: &BTreeMap<String, Entry>) -> Reason {
        let Some((program, args)) = argv.split_first() else {
            return reason("bad_params", "give a program: `argv` is empty", false);
        };
        let base =
            Path::new(program).file_name().map_or(program.clone(), |name| name.to_string_lossy().into());
        let free = |name: &String| !entries.contains_key(name);
        let mut names = std::iter::once(base.clone()).chain((2..).map(|number| format!("{base}-{number}")));
        let name = names.find(free).unwrap_or(base);
        let words: Vec<_> = args.iter().map(|word| word.replace('{', "{{").replace('}', "}}")).collect();
        let lines = lines(&name, Path::new(program), &words);
        let known: Vec<_> = entries.keys().map(String::as_str).collect();
        self.refuse(&format!("{:?} is not allowed", argv.join(" ")), &known, &lines)
    }

    fn refuse(&self, what: &str, known: &[&str], lines: &str) -> Reason {
        let file = self.file.display();
        let message = format!(
            "{what}; {file} allows {}. To allow it, add these lines to that file:\n{lines}",
            list(known)
        );
        reason("not_allowed", message, false)
    }
}

fn lines(name: &str, program: &Path, args: &[String]) -> String {
    let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut lines =
        format!("[command.{}]\nprogram = {}\n", key_of(name), text(&located(program).to_string_lossy()));
    if !args.is_empty() {
        let args: Vec<_> = args.iter().map(|arg| text(arg)).collect();
        let _ = writeln!(lines, "args = [{}]", args.join(", "));
    }
    lines
}

fn key_of(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(bare) {
        name.to_owned()
    } else {
        toml::Value::String(name.to_owned()).to_string()
    }
}

/// The program's path, where it is found.
fn located(program: &Path) -> PathBuf {
    if program.is_absolute() {
        return program.to_owned();
    }
    let at = |folder: &str| Path::new(folder).join(program);
    FOLDERS.into_iter().map(at).find(|path| path.is_file()).unwrap_or_else(|| at("/usr/bin"))
}
