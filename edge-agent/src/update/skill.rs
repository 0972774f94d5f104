//! Skills: an archive unpacked beside the old one, and one link that says which runs.
//!
//! `releases/skill/{name}/` has a folder for each release (`{version}-{digest}`), a note beside it that says what it
//! is, and the link `current`. An app starts from `current`; what has to happen when that changes, `skill.toml` in the
//! archive says. Switching and returning are one rename.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fleet_schemas::{CommandId, DeviceId, MetricName, limits};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, task, time};
use tracing::{info, warn};

use super::{
    slot::{Plan, Slot, Surroundings},
    unpack::{self, disk},
};
use crate::{
    clock,
    config::{optional_seconds, seconds},
    core::{
        queue::Limit,
        update::{Health, Release, Switched, Trial, Trouble},
    },
    exec::{self, Bounds, Program},
    fetch::{self, Url},
    identity::folder::replace,
};

/// The folder of skills, in that of releases.
const KIND: &str = "skill";
/// What an archive says of itself.
const FILE: &str = "skill.toml";
/// Its largest size, in bytes.
const FILE_BYTES: u64 = 64 * 1024;
/// The link to the release that runs.
const CURRENT: &str = "current";
/// How names of things begin that are not finished.
const UNFINISHED: &str = ".new-";
/// An archive, and what is unpacked of it, together at most so many times the archive; more is found out on the way.
const SPACE: u64 = 3;
/// Failures in a row after which a release that was well counts as broken.
const FAILURES: u32 = 3;
/// What is kept of a hook's or probe's output, in bytes.
const WORDS: usize = 1_024;
/// How long the last words of a program that has ended are waited for: something that left its group may hold the pipe.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Longest limits that an archive may ask for.
const LONGEST: Duration = Duration::from_secs(600);

/// `skill.toml`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Manifest {
    health: Option<Probe>,
    hooks: Hooks,
}

/// `[health]`: exactly one of `command`, `http` and `heartbeat`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Probe {
    #[serde(default)]
    command: Option<Vec<String>>,
    #[serde(default)]
    http: Option<Url>,
    #[serde(default)]
    heartbeat: Option<DeviceId>,
    #[serde(default, rename = "timeout_s", with = "optional_seconds")]
    timeout: Option<Duration>,
    #[serde(default, rename = "interval_s", with = "optional_seconds")]
    interval: Option<Duration>,
}

/// `[hooks]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Hooks {
    started: Vec<String>,
    #[serde(rename = "timeout_s", with = "seconds")]
    timeout: Duration,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { started: Vec::new(), timeout: Duration::from_secs(60) }
    }
}

/// The note beside a release: written once it is whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    release: Release,
    command: CommandId,
}

/// How the release on trial has been.
#[derive(Debug, Default)]
struct Watched {
    looked: Option<Duration>,
    last: Option<Health>,
    was_well: bool,
    failures: u32,
}

/// The slot of skills.
pub(crate) struct Skill {
    surroundings: Surroundings,
    watched: Mutex<HashMap<CommandId, Watched>>,
}

impl Skill {
    pub(crate) fn new(surroundings: Surroundings) -> Self {
        Self { surroundings, watched: Mutex::default() }
    }

    fn place(&self, plan: &Plan) -> Place {
        let name = plan.order.target.name.as_str();
        Place { folder: self.surroundings.folder.join(KIND).join(name) }
    }

    /// Lets the app know that another release is current.
    async fn tell_app(&self, place: &Place, plan: &Plan) -> Result<(), Trouble> {
        let current = place.folder.join(CURRENT);
        let Some(note) = place.current() else { return Ok(()) };
        let Hooks { started, timeout } = manifest(&current)?.hooks;
        if started.is_empty() {
            return Ok(());
        }
        let version = note.release.version.as_str();
        run(&started, &current, plan, version, timeout).await.map_err(|why| {
            Trouble::lasting("hook_failed", format!("the hook `started` of {version} failed: {why}"))
        })
    }

    async fn look(&self, probe: &Probe, place: &Place, plan: &Plan, trial: &Trial) -> Result<(), String> {
        let limit = probe.timeout.unwrap_or(Duration::from_secs(10)).min(LONGEST);
        if let Some(command) = &probe.command {
            let version = plan.order.target.version.as_str();
            return run(command, &place.folder.join(CURRENT), plan, version, limit).await;
        }
        if let Some(url) = &probe.http {
            return fetch::get(url, WORDS * 64, limit).await.map(drop).map_err(|error| error.to_string());
        }
        let Some(device) = &probe.heartbeat else { return Ok(()) };
        let found =
            self.surroundings.outbox.device(device.clone()).await.map_err(|error| error.to_string())?;
        let seen_ms = found.and_then(|device| device.last_seen_ms).unwrap_or(i64::MIN);
        if seen_ms >= self.began_ms(&trial.since) {
            Ok(())
        } else {
            Err(format!("{device} has not been heard since the switch"))
        }
    }

    /// When the trial began, by the wall clock that devices are timed by.
    fn began_ms(&self, since: &Limit) -> i64 {
        let now = self.surroundings.clock.now();
        let time = crate::core::queue::Time { now, boot: clock::boot_id(), true_ms: None };
        let began = since.up(&time).unwrap_or(now.up);
        let ago = now.up.saturating_sub(began);
        now.wall_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX))
    }

    fn with<T>(&self, id: CommandId, look: impl FnOnce(&mut Watched) -> T) -> T {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        // One update at a time: what is known of others is of no use any more.
        watched.retain(|other, _| *other == id);
        look(watched.entry(id).or_default())
    }
}

impl Slot for Skill {
    fn needs(&self, length: u64) -> u64 {
        length.saturating_mul(SPACE)
    }

    fn admit(&self, plan: &Plan) -> Result<(), Trouble> {
        match plan.order.device {
            None => Ok(()),
            Some(_) => {
                Err(Trouble::lasting("bad_order", "a skill runs on the node; order it without a device"))
            }
        }
    }

    async fn runs(&self, plan: &Plan) -> Option<Release> {
        let place = self.place(plan);
        blocking(move || Ok(place.current().map(|note| note.release))).await.ok().flatten()
    }

    async fn install(&self, plan: &Plan) -> Result<(), Trouble> {
        let (place, plan) = (self.place(plan), plan.clone());
        blocking(move || place.install(&plan)).await
    }

    async fn switch(&self, plan: &Plan) -> Result<Switched, Trouble> {
        let place = self.place(plan);
        let name = place.name_of(&release(plan));
        let (placed, target) = (place.clone(), name);
        blocking(move || placed.point(Some(&target))).await?;
        self.tell_app(&place, plan).await?;
        Ok(Switched::Done)
    }

    async fn probe(&self, plan: &Plan, trial: &Trial) -> Health {
        let place = self.place(plan);
        // What runs is looked at where it runs: somebody may have changed it.
        if place.current().is_none_or(|note| note.release.digest != plan.order.digest) {
            return Health::Sick(Trouble::lasting(
                "replaced",
                "something else than the new release is current",
            ));
        }
        let probe = match manifest(&place.folder.join(CURRENT)) {
            Ok(Manifest { health: Some(probe), .. }) => probe,
            Ok(Manifest { health: None, .. }) => return Health::Well,
            Err(trouble) => return Health::Sick(trouble),
        };
        let now = self.surroundings.clock.now().up;
        let interval = probe.interval.unwrap_or(Duration::from_secs(5)).min(LONGEST);
        let known = self.with(plan.command, |watched| {
            let fresh = watched.looked.is_some_and(|looked| now < looked + interval);
            watched.last.clone().filter(|_| fresh)
        });
        if let Some(known) = known {
            return known;
        }
        let looked = self.look(&probe, &place, plan, trial).await;
        self.with(plan.command, |watched| watched.note(looked, now))
    }

    async fn commit(&self, plan: &Plan) -> Result<(), Trouble> {
        let (place, plan) = (self.place(plan), plan.clone());
        blocking(move || {
            let keep: Vec<_> = [Some(release(&plan)), plan.from].into_iter().flatten().collect();
            place.keep_only(&keep);
            Ok(())
        })
        .await
    }

    async fn undo(&self, plan: &Plan) -> Result<Switched, Trouble> {
        let place = self.place(plan);
        let name = plan.from.as_ref().map(|from| place.name_of(from));
        let placed = place.clone();
        blocking(move || placed.point(name.as_deref())).await?;
        if let Err(trouble) = self.tell_app(&place, plan).await {
            // The old release is current again, which is all that can be done for it.
            warn!(skill = %plan.order.target.name, "after returning: {}", trouble.message);
        }
        Ok(Switched::Done)
    }

    async fn discard(&self, plan: &Plan) {
        let (place, plan) = (self.place(plan), plan.clone());
        let _ = blocking(move || {
            place.discard(&release(&plan));
            Ok(())
        })
        .await;
    }
}

impl Watched {
    fn note(&mut self, looked: Result<(), String>, now: Duration) -> Health {
        self.looked = Some(now);
        let health = match looked {
            Ok(()) => {
                (self.was_well, self.failures) = (true, 0);
                Health::Well
            }
            Err(why) => {
                self.failures += 1;
                if self.was_well && self.failures >= FAILURES {
                    let message = format!("it was well, and failed {FAILURES} times in a row: {why}");
                    Health::Sick(Trouble::lasting("unhealthy", message))
                } else {
                    Health::NotYet(why)
                }
            }
        };
        self.last = Some(health.clone());
        health
    }
}

/// What runs in the folder of releases, by the notes that lie there: for an account that was lost.
pub(super) fn found(releases: &Path) -> Vec<(MetricName, Release)> {
    let Ok(skills) = fs::read_dir(releases.join(KIND)) else { return Vec::new() };
    let named = skills.flatten().filter_map(|entry| {
        let name = MetricName::parse(entry.file_name().to_str()?).ok()?;
        Some((name, Place { folder: entry.path() }.current()?.release))
    });
    named.take(limits::SKILLS_PER_NODE).collect()
}

/// The folder of one skill.
#[derive(Debug, Clone)]
struct Place {
    folder: PathBuf,
}

impl Place {
    fn name_of(&self, release: &Release) -> String {
        format!("{}-{}", release.version, &release.digest.to_string()[..16])
    }

    fn note_of(&self, name: &str) -> Option<Note> {
        let text = fs::read_to_string(self.folder.join(format!("{name}.json"))).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// What the link points to.
    fn current(&self) -> Option<Note> {
        let target = fs::read_link(self.folder.join(CURRENT)).ok()?;
        let name = target.to_str()?;
        self.folder.join(name).is_dir().then(|| self.note_of(name)).flatten()
    }

    fn install(&self, plan: &Plan) -> Result<(), Trouble> {
        let io = |error: io::Error| disk(&error);
        let release = release(plan);
        let name = self.name_of(&release);
        if self.note_of(&name).is_some_and(|note| note.command == plan.command)
            && self.folder.join(&name).is_dir()
        {
            return Ok(());
        }
        fs::create_dir_all(&self.folder).map_err(io)?;
        self.discard(&release);
        let random: [u8; 8] = clock::random();
        let unfinished = self.folder.join(format!("{UNFINISHED}{:016x}", u64::from_ne_bytes(random)));
        fs::create_dir(&unfinished).map_err(io)?;
        unpack::unpack(&plan.file, &unfinished)?;
        // Here it can still be refused without harm.
        manifest(&unfinished)?.check()?;
        fs::rename(&unfinished, self.folder.join(&name)).map_err(io)?;
        let note = Note { release, command: plan.command };
        let text = serde_json::to_string(&note).expect("texts and numbers under text keys");
        replace(&self.folder.join(format!("{name}.json")), &text).map_err(io)?;
        unpack::sync(&self.folder).map_err(io)
    }

    /// Points the link to a release, or removes it.
    fn point(&self, name: Option<&str>) -> Result<(), Trouble> {
        let io = |error: io::Error| disk(&error);
        let link = self.folder.join(CURRENT);
        match name {
            Some(name) if fs::read_link(&link).is_ok_and(|target| target == Path::new(name)) => {}
            Some(name) => {
                if !self.folder.join(name).is_dir() {
                    let message = format!("the release {name} is not in {}", self.folder.display());
                    return Err(Trouble::lasting("release_lost", message));
                }
                let new = self.folder.join(format!("{UNFINISHED}link"));
                let _ = fs::remove_file(&new);
                symlink(name, &new).map_err(io)?;
                fs::rename(&new, &link).map_err(io)?;
                info!(release = name, folder = %self.folder.display(), "the skill's release is another one");
            }
            None => match fs::remove_file(&link) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
                _ => {}
            },
        }
        match fs::File::open(&self.folder).and_then(|folder| folder.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(error)),
            _ => Ok(()),
        }
    }

    /// Removes a release, unless it is current, and all that is not finished.
    fn discard(&self, release: &Release) {
        let gone = self.name_of(release);
        self.remove(|name| name == gone);
    }

    fn keep_only(&self, releases: &[Release]) {
        let names: Vec<_> = releases.iter().map(|release| self.name_of(release)).collect();
        self.remove(|name| !names.iter().any(|kept| kept == name));
    }

    /// Best effort: what is left is found by the next update.
    fn remove(&self, is_gone: impl Fn(&str) -> bool) {
        let current = fs::read_link(self.folder.join(CURRENT)).ok();
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let Ok(file) = entry.file_name().into_string() else { continue };
            let name = file.strip_suffix(".json").unwrap_or(&file);
            let is_current = file == CURRENT || current.as_deref() == Some(Path::new(name));
            let unfinished = file.starts_with(UNFINISHED) || file.ends_with(".new");
            if is_current || !(unfinished || is_gone(name)) {
                continue;
            }
            let path = entry.path();
            let removed = match entry.file_type() {
                // A link is removed, never followed.
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            };
            if let Err(error) = removed {
                warn!(path = %path.display(), %error, "an old release cannot be removed");
            }
        }
    }
}

impl Manifest {
    fn check(&self) -> Result<(), Trouble> {
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

fn release(plan: &Plan) -> Release {
    Release {
        version: plan.order.target.version.clone(),
        digest: plan.order.digest,
        epoch: plan.custom.epoch,
    }
}

/// What the archive in this folder says of itself; nothing, when it has no such file.
fn manifest(folder: &Path) -> Result<Manifest, Trouble> {
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
async fn run(
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
    let words = words.trim();
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("{status}; it said: {words}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => {
            let _ = running.stop(exec::GRACE).await;
            Err(format!("it did not end within {} s; it said: {words}", limit.as_secs_f64()))
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

/// Off the threads that others run on.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    let ended = task::spawn_blocking(act).await;
    ended.unwrap_or_else(|_| Err(Trouble::passing("disk", "the thread that did it ended badly")))
}
