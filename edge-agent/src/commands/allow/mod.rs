//! The allow-list, `commands.toml`: which programs the hub and the node's own programs may run, with which arguments.
//!
//! Read at each use, so that a change counts at once. Runs nothing and knows no shell; whatever is not listed is refused
//! with the lines that would allow it.
//!
//! ```toml
//! [command.df]
//! program = "/usr/bin/df"
//! args = ["-h", "{path}"]
//! # user = "nobody", timeout_s = 60, cwd = "/", env = { LANG = "C" }, nice = 10, memory_mb = 64
//!
//! [command.df.params.path]
//! type = "path"           # or int, word, text, enum
//! default = "/"           # also: min, max, values, pattern, under, dash
//! ```

mod param;
mod refuse;
mod template;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fleet_schemas::command::Reason;
use serde::Deserialize;

use self::{param::Param, template::Template};
use crate::{config::optional_seconds, core::queue::reason};

/// Largest allow-list, in bytes: it is read whenever a command comes.
const FILE_BYTES: u64 = 256 * 1024;
/// The permission that lets everybody write a file.
const WORLD_WRITES: u32 = 0o002;
/// Most commands in it.
const COMMANDS: usize = 256;
/// Most arguments of one command.
const ARGS: usize = 64;

/// Where the allow-list is.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The file.
    pub(crate) file: PathBuf,
    /// What counts while there is no file.
    pub(crate) otherwise: Option<Arc<str>>,
}

/// The allow-list.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    command: BTreeMap<String, RawEntry>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    program: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    user: Option<String>,
    #[serde(default, rename = "timeout_s", with = "optional_seconds")]
    timeout: Option<Duration>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    cwd: Option<PathBuf>,
    nice: Option<i32>,
    memory_mb: Option<u64>,
    #[serde(default)]
    params: BTreeMap<String, Param>,
}

/// One allowed command.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    raw: RawEntry,
    args: Vec<Template>,
}

/// What to run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// Its variables.
    pub(crate) env: BTreeMap<String, String>,
    /// Where it runs.
    pub(crate) folder: PathBuf,
    /// As whom it runs, if not as the agent.
    pub(crate) user: Option<String>,
    /// How long it may run, beside what the command says.
    pub(crate) timeout: Option<Duration>,
    /// How much others go before it.
    pub(crate) nice: Option<i32>,
    /// How much memory it may have.
    pub(crate) memory_bytes: Option<u64>,
}

/// What somebody wants to run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Wish {
    /// A command by its name in the allow-list, with values for its placeholders.
    Named { name: String, args: BTreeMap<String, String> },
    /// A program and its arguments, as typed.
    Typed(Vec<String>),
}

impl Source {
    /// What to run, if it is allowed.
    ///
    /// # Errors
    /// `not_allowed` with the lines that would allow it, `bad_params`, or `bad_allow_list`.
    pub(crate) fn plan(&self, wish: &Wish) -> Result<Plan, Reason> {
        let entries = self.read()?;
        match wish {
            Wish::Named { name, args } => match entries.get(name) {
                Some(entry) => entry.named(name, args),
                None => Err(self.refuse_named(name, args, &entries)),
            },
            Wish::Typed(argv) => {
                // What does not fit is told only when nothing fits.
                let mut wrong = None;
                for (name, entry) in &entries {
                    match entry.typed(name, argv) {
                        Some(Ok(plan)) => return Ok(plan),
                        Some(Err(reason)) => drop(wrong.get_or_insert(reason)),
                        None => {}
                    }
                }
                Err(wrong.unwrap_or_else(|| self.refuse_typed(argv, &entries)))
            }
        }
    }

    fn read(&self) -> Result<BTreeMap<String, Entry>, Reason> {
        let file = self.file.display();
        let broken = |what: String| reason("bad_allow_list", what, false);
        let text = match read_bounded(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.otherwise.as_deref().unwrap_or_default().to_owned()
            }
            Err(error) => return Err(broken(format!("{file} cannot be used: {error}"))),
        };
        let raw: Raw = toml::from_str(&text).map_err(|error| {
            broken(format!("{file} is wrong, so nothing is allowed: {}", error.to_string().trim()))
        })?;
        if raw.command.len() > COMMANDS {
            return Err(broken(format!("{file} lists more than {COMMANDS} commands")));
        }
        let entry = |(name, raw): (String, RawEntry)| {
            let line = line_of(&text, &name);
            let wrong = |what| broken(format!("{file} line {line}: command.{name}: {what}"));
            Entry::new(raw).map(|entry| (name.clone(), entry)).map_err(wrong)
        };
        raw.command.into_iter().map(entry).collect()
    }
}

impl Entry {
    fn new(raw: RawEntry) -> Result<Self, String> {
        if raw.args.len() > ARGS {
            return Err(format!("it has more than {ARGS} arguments"));
        }
        if raw.program.as_os_str().is_empty() {
            return Err("`program` is empty".to_owned());
        }
        let args = raw.args.iter().map(|text| Template::parse(text)).collect::<Result<Vec<_>, _>>()?;
        for name in args.iter().filter_map(|template| template.name.as_ref()) {
            if !raw.params.contains_key(name) {
                return Err(format!("{{{name}}} has no type; add [command.….params.{name}] with `type`"));
            }
        }
        for (name, param) in &raw.params {
            if let Some(flaw) = param.flaw() {
                return Err(format!("params.{name}: {flaw}"));
            }
        }
        Ok(Self { raw, args })
    }

    fn named(&self, name: &str, values: &BTreeMap<String, String>) -> Result<Plan, Reason> {
        if let Some(unknown) = values.keys().find(|key| !self.raw.params.contains_key(*key)) {
            let known: Vec<_> = self.raw.params.keys().map(String::as_str).collect();
            let message = format!("{name} takes no `{unknown}`; it takes {}", list(&known));
            return Err(reason("bad_params", message, false));
        }
        let args = self.args.iter().map(|template| {
            let Some(key) = &template.name else { return Ok(template.fill("")) };
            let param = &self.raw.params[key];
            let missing = || reason("bad_params", format!("{name} needs a value for `{key}`"), false);
            let value = values.get(key).or(param.default.as_ref()).ok_or_else(missing)?;
            let wrong = |what| reason("bad_params", format!("`{key}` is {value:?}: {what}"), false);
            param.check(value).map_err(wrong)?;
            Ok(template.fill(value))
        });
        args.collect::<Result<_, _>>().map(|args| self.plan(args))
    }

    /// `None` when the words are not of this command; an error when they are, and a value does not fit.
    fn typed(&self, name: &str, argv: &[String]) -> Option<Result<Plan, Reason>> {
        let (first, rest) = argv.split_first()?;
        let program = &self.raw.program;
        let called = first == name || Path::new(first) == program || {
            !first.contains('/') && program.file_name().is_some_and(|file| file == first.as_str())
        };
        if !called || rest.len() > self.args.len() {
            return None;
        }
        let mut args = Vec::new();
        let mut wrong = None;
        for (at, template) in self.args.iter().enumerate() {
            let param = template.name.as_ref().map(|name| &self.raw.params[name]);
            let Some(word) = rest.get(at) else {
                // What is left away at the end has a default.
                args.push(template.fill(param?.default.as_ref()?));
                continue;
            };
            let value = template.value(word)?;
            if let Some(Err(what)) = param.map(|param| param.check(value)) {
                wrong.get_or_insert(reason("bad_params", format!("{word:?} of {name}: {what}"), false));
            }
            args.push(word.clone());
        }
        Some(wrong.map_or_else(|| Ok(self.plan(args)), Err))
    }

    fn plan(&self, args: Vec<String>) -> Plan {
        let RawEntry { program, user, timeout, env, cwd, nice, memory_mb, .. } = &self.raw;
        Plan {
            program: program.clone(),
            args,
            env: env.clone(),
            folder: cwd.clone().unwrap_or_else(|| PathBuf::from("/")),
            user: user.clone(),
            timeout: *timeout,
            nice: *nice,
            memory_bytes: memory_mb.map(|mb| mb.saturating_mul(1024 * 1024)),
        }
    }
}

fn read_bounded(file: &Path) -> io::Result<String> {
    use std::{io::Read as _, os::unix::fs::PermissionsExt as _};
    let mut text = String::new();
    let file = fs::File::open(file)?;
    if file.metadata()?.permissions().mode() & WORLD_WRITES != 0 {
        return Err(io::Error::other("everybody on the node may write it; take that right away (chmod o-w)"));
    }
    file.take(FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES {
        return Err(io::Error::other(format!("it is larger than {FILE_BYTES} bytes")));
    }
    Ok(text)
}

/// The line on which a command begins, counted from 1.
fn line_of(text: &str, name: &str) -> usize {
    let heads = |line: &str| {
        let line: String = line.chars().filter(|c| !c.is_whitespace() && *c != '"' && *c != '\'').collect();
        line.strip_prefix("[command.")
            .and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with(']'))
    };
    text.lines().position(heads).map_or(1, |at| at + 1)
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests;
