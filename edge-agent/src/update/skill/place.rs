//! The folder of one skill: its releases, the notes beside them, and the link to the one that runs.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use fleet_schemas::{CommandId, MetricName, limits};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{
    super::{
        slot::Plan,
        unpack::{self, disk},
    },
    manifest::manifest,
    release,
};
use crate::{
    clock,
    core::update::{Release, Trouble},
    identity::folder::replace,
};

/// The folder of skills, in that of releases.
pub(super) const KIND: &str = "skill";
/// The link to the release that runs.
pub(super) const CURRENT: &str = "current";
/// How names of things begin that are not finished.
const UNFINISHED: &str = ".new-";

/// The note beside a release: written once it is whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) release: Release,
    pub(super) command: CommandId,
}

/// What runs in the folder of releases, by the notes that lie there: for an account that was lost.
pub(in crate::update) fn found(releases: &Path) -> Vec<(MetricName, Release)> {
    let Ok(skills) = fs::read_dir(releases.join(KIND)) else { return Vec::new() };
    let named = skills.flatten().filter_map(|entry| {
        let name = MetricName::parse(entry.file_name().to_str()?).ok()?;
        Some((name, Place { folder: entry.path() }.current()?.release))
    });
    named.take(limits::SKILLS_PER_NODE).collect()
}

/// The folder of one skill.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) folder: PathBuf,
}

impl Place {
    pub(super) fn name_of(&self, release: &Release) -> String {
        format!("{}-{}", release.version, &release.digest.to_string()[..16])
    }

    fn note_of(&self, name: &str) -> Option<Note> {
        let text = fs::read_to_string(self.folder.join(format!("{name}.json"))).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// What the link points to.
    pub(super) fn current(&self) -> Option<Note> {
        let target = fs::read_link(self.folder.join(CURRENT)).ok()?;
        let name = target.to_str()?;
        self.folder.join(name).is_dir().then(|| self.note_of(name)).flatten()
    }

    pub(super) fn install(&self, plan: &Plan) -> Result<(), Trouble> {
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
    pub(super) fn point(&self, name: Option<&str>) -> Result<(), Trouble> {
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
    pub(super) fn discard(&self, release: &Release) {
        let gone = self.name_of(release);
        self.remove(|name| name == gone);
    }

    pub(super) fn keep_only(&self, releases: &[Release]) {
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
