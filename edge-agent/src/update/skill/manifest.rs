//! What an archive says of itself, and the programs that it names.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use fleet_schemas::DeviceId;
use serde::Deserialize;
use tokio::{io::AsyncReadExt as _, net::unix::pipe, time};

use super::super::{
    slot::Plan,
    unpack::{self, disk},
};
use crate::{
    config::{optional_seconds, seconds},
    core::update::Trouble,
    exec::{self, Bounds, Program},
    fetch::Url,
};

/// What an archive says of itself.
const FILE: &str = "skill.toml";
/// Its largest size, in bytes.
const FILE_BYTES: u64 = 64 * 1024;
/// What is kept of a hook's or probe's output, in bytes.
pub(super) const WORDS: usize = 1_024;
/// How long the last words of a program that has ended are waited for: something that left its group may hold the pipe.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Longest limits that an archive may ask for.
pub(super) const LONGEST: Duration = Duration::from_secs(600);

/// `skill.toml`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Manifest {
    pub(super) health: Option<Probe>,
    pub(super) hooks: Hooks,
}

/// `[health]`: exactly one of `command`, `http` and `heartbeat`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Probe {
    #[serde(default)]
    pub(super) command: Option<Vec<String>>,
    #[serde(default)]
    pub(super) http: Option<Url>,
    #[serde(default)]
    pub(super) heartbeat: Option<DeviceId>,
    #[serde(default, rename = "timeout_s", with = "optional_seconds")]
    pub(super) timeout: Option<Duration>,
    #[serde(default, rename = "interval_s", with = "optional_seconds")]
    pub(super) interval: Option<Duration>,
}

/// `[hooks]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Hooks {
    pub(super) started: Vec<String>,
    #[serde(rename = "timeout_s", with = "seconds")]
    pub(super) timeout: Duration,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { started: Vec::new(), timeout: Duration::from_secs(60) }
    }
}

impl Manifest {
    /// Checks what types cannot.
    pub(super) fn check(&self) -> Result<(), Trouble> {
        let wrong = |what: &str| Err(Trouble::lasting(unpack::BAD, format!("{FILE}: {what}")));
        let Some(probe) = &self.health else { return Ok(()) };
        let Probe { command, http, heartbeat, .. } = probe;
        let ways = [command.is_some(), http.is_some(), heartbeat.is_some()];
        if ways.iter().filter(|way| **way).count() != 1 {
            return wrong("[health] takes one of command, http and heartbeat");
        }
        if command.as_ref().is_some_and(Vec::is_empty) {
            return wrong("[health] command is empty; name a program");
        }
        Ok(())
    }
}

/// What the archive in this folder says of itself; nothing, when it has no such file.
pub(super) fn manifest(folder: &Path) -> Result<Manifest, Trouble> {
    let path = folder.join(FILE);
    let wrong = |what: String| Trouble::lasting(unpack::BAD, format!("{FILE} is wrong: {what}"));
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Manifest::default()),
        Ok(data) if data.len() > FILE_BYTES => {
            return Err(wrong(format!("it has more than {FILE_BYTES} bytes")));
        }
        Ok(_) => {}
        Err(error) => return Err(disk(&error)),
    }
    let text = fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
    toml::from_str(&text).map_err(|error| wrong(error.to_string()))
}

/// Runs a program of the archive in its folder. A relative path with a slash in it is one of the archive's.
///
/// # Errors
/// How it failed, with its last words.
pub(super) async fn run(
    words: &[String],
    folder: &Path,
    plan: &Plan,
    version: &str,
    limit: Duration,
) -> Result<(), String> {
    let [program, args @ ..] = words else { return Err("no program is named".to_owned()) };
    let path = if program.contains('/') { folder.join(program) } else { PathBuf::from(program) };
    let env = [
        ("FLEET_SKILL", plan.order.target.name.to_string()),
        ("FLEET_VERSION", version.to_owned()),
        ("FLEET_RELEASE", folder.display().to_string()),
    ];
    let program = Program {
        program: path,
        args: args.to_vec(),
        env: env.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    };
    let limit = limit.min(LONGEST);
    let bounds = Bounds { processor: limit, ..Bounds::default() };
    let started = program.start_bounded(folder, &bounds);
    let (mut running, mut pipe) =
        started.map_err(|error| format!("{} cannot be started: {error}", program.program.display()))?;
    let mut said = Vec::new();
    let ended = {
        let ends = time::timeout(limit, running.ended());
        tokio::pin!(ends);
        loop {
            tokio::select! {
                // What it said last is in the pipe when it has ended.
                biased;
                true = listen(&mut pipe, &mut said) => {}
                ended = &mut ends => break ended,
            }
        }
    };
    while let Ok(true) = time::timeout(LAST_WORDS, listen(&mut pipe, &mut said)).await {}
    let words = String::from_utf8_lossy(&said);
    let words = match words.trim() {
        "" => "it said nothing".to_owned(),
        words => format!("it said: {words}"),
    };
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("{status}; {words}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => {
            let _ = running.stop(exec::GRACE).await;
            Err(format!("it did not end within {} s; {words}", limit.as_secs_f64()))
        }
    }
}

/// Reads on, and keeps the end. `false`: it said its last. Safe to cancel.
async fn listen(pipe: &mut pipe::Receiver, said: &mut Vec<u8>) -> bool {
    let mut part = [0; 512];
    match pipe.read(&mut part).await {
        Ok(0) | Err(_) => false,
        Ok(read) => {
            said.extend_from_slice(&part[..read]);
            let over = said.len().saturating_sub(WORDS);
            said.drain(..over);
            true
        }
    }
}
