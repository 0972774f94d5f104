//! Updating the node's system by hooks: programs of whoever built the machine, run in the order of Mender's states.
//!
//! What a hook does is its own affair: RAUC, SWUpdate, mender-update or a script writes the other slot and makes the
//! machine boot from it. This slot says when, survives the reboot in between, and knows from the boot id that there was
//! one. `edge-agent/hooks/` has an example of each.

mod hooks;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use fleet_schemas::CommandId;
use serde::{Deserialize, Serialize};
use tokio::task;
use tracing::warn;

use self::hooks::Hooks;
use super::slot::{Plan, Slot, Surroundings};
use crate::{
    clock,
    config::seconds,
    core::{
        hooks::{Action, Moment, State},
        update::{Health, Release, Switched, Trial, Trouble, code},
    },
    identity::folder::replace,
};

/// Largest state that is read, in bytes.
const STATE_BYTES: usize = 64 * 1024;
/// Largest version file that is read, in bytes.
const VERSION_BYTES: usize = 4_096;
/// How often the hooks are asked for a reboot that does not come.
const REBOOTS: u32 = 5;

/// Who updates the node's system, and how long that may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The folder with the hooks; absent: the node's system is not updated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<PathBuf>,
    /// A file whose first line is the version of the system that runs: then an update counts only when it says the new
    /// one. Absent: the hooks of ArtifactVerifyReboot are believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_file: Option<PathBuf>,
    /// How long one hook may take, in seconds.
    #[serde(rename = "hook_s", with = "seconds")]
    pub hook: Duration,
    /// How long after it said "later" (exit code 21) a hook is run again, in seconds.
    #[serde(rename = "later_s", with = "seconds")]
    pub later: Duration,
    /// For how long it may say so, in seconds.
    #[serde(rename = "latest_s", with = "seconds")]
    pub latest: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hooks: None,
            version_file: None,
            // As Mender has them: a slot of some gigabytes on a slow card takes its time.
            hook: Duration::from_secs(3_600),
            later: Duration::from_secs(60),
            latest: Duration::from_secs(1_800),
        }
    }
}

/// The slot of the node's system.
pub(crate) struct Firmware {
    config: Config,
    /// `releases/firmware`.
    folder: PathBuf,
    /// The agent's data folder.
    data: PathBuf,
    boot: [u8; 8],
}

/// What is known of the system's releases, as it lies on disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// What was confirmed, by name.
    #[serde(default)]
    running: BTreeMap<String, Release>,
    /// The update that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    going: Option<Going>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Going {
    command: CommandId,
    phase: Phase,
    /// Whether the machine was booted for it.
    booted: bool,
    /// The boot in which the system was found to be the new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verified: Option<[u8; 8]>,
}

/// How far it is. Each is written down before its hooks are run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    Installing,
    Installed,
    /// Another boot than this one is waited for.
    Rebooting {
        boot: [u8; 8],
        asked: u32,
    },
    Verifying,
    Running,
    Returning,
    ReturnRebooting {
        boot: [u8; 8],
        asked: u32,
    },
    Returned,
}

impl Firmware {
    pub(crate) fn new(surroundings: &Surroundings) -> Self {
        let data = surroundings.folder.parent().unwrap_or(Path::new("."));
        Self {
            config: surroundings.config.firmware.clone(),
            folder: surroundings.folder.join("firmware"),
            // By the name that no other agent has for its own.
            data: fs::canonicalize(data).unwrap_or_else(|_| data.to_owned()),
            boot: clock::boot_id(),
        }
    }

    fn hooks(&self, plan: &Plan) -> Result<Hooks, Trouble> {
        let Some(folder) = &self.config.hooks else {
            let message = "this node has no hooks for its system; put them into a folder and name it in agent.toml: \
                           [update.firmware] hooks = \"DIR\" (edge-agent/hooks/README.md)";
            return Err(Trouble::lasting("no_hooks", message));
        };
        Hooks::read(folder, &self.config, &self.data, plan)
    }

    async fn load(&self) -> Result<Kept, Trouble> {
        let path = self.state();
        match fs::read(&path) {
            Ok(bytes) if bytes.len() <= STATE_BYTES => serde_json::from_slice(&bytes).map_err(|error| {
                let message = format!("{} is damaged ({error}); remove it", path.display());
                Trouble::lasting(code::DISK, message)
            }),
            Ok(_) => Err(Trouble::lasting(code::DISK, format!("{} is too large; remove it", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::default()),
            Err(error) => Err(Trouble::passing(code::DISK, format!("{}: {error}", path.display()))),
        }
    }

    async fn store(&self, kept: &Kept) -> Result<(), Trouble> {
        let (folder, path) = (self.folder.clone(), self.state());
        let text = serde_json::to_string_pretty(kept).expect("texts and numbers under text keys");
        let written = task::spawn_blocking(move || {
            fs::create_dir_all(&folder)?;
            replace(&path, &text)
        });
        let failed =
            |error: String| Trouble::passing(code::DISK, format!("the state of the update: {error}"));
        written.await.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    fn state(&self) -> PathBuf {
        self.folder.join("state.json")
    }

    /// The update of this plan, and all that is known.
    async fn going(&self, plan: &Plan) -> Result<(Kept, Going), Trouble> {
        let kept = self.load().await?;
        let fresh = Going { command: plan.command, phase: Phase::Installing, booted: false, verified: None };
        let going = kept.going.clone().filter(|going| going.command == plan.command).unwrap_or(fresh);
        Ok((kept, going))
    }

    /// Writes down how far it is.
    async fn enter(&self, going: &mut Going, phase: Phase) -> Result<(), Trouble> {
        going.phase = phase;
        let kept = Kept { going: Some(going.clone()), ..self.load().await? };
        self.store(&kept).await
    }

    /// The version that the system itself tells, if it does.
    fn told(&self) -> Option<String> {
        let bytes = fs::read(self.config.version_file.as_ref()?).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(VERSION_BYTES)]);
        Some(text.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// Whether the system that runs says that it is another one.
    fn is_other(&self, plan: &Plan) -> Result<(), Trouble> {
        let wanted = plan.order.target.version.as_str();
        match self.told() {
            Some(told) if told != wanted => {
                let message = format!("the system says that it is version {told:?}, not {wanted:?}");
                Err(Trouble::lasting("other_version", message))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Finds out whether the system that runs is the new one; once in each boot, for a boot loader may have gone back to the
    /// one before.
    async fn verify(&self, plan: &Plan, hooks: &Hooks, going: &mut Going) -> Result<(), Trouble> {
        let fresh = going.verified != Some(self.boot);
        if fresh {
            hooks.pass(State::ArtifactVerifyReboot).await?;
        }
        self.is_other(plan)?;
        if fresh {
            going.verified = Some(self.boot);
            self.enter(going, Phase::Running).await?;
        }
        Ok(())
    }

    /// Asks for a reboot, or says that it was one: `Some` once the machine was booted.
    async fn reboot(
        &self,
        going: &mut Going,
        hooks: &Hooks,
        state: State,
        phase: impl Fn([u8; 8], u32) -> Phase,
    ) -> Result<bool, Trouble> {
        let (boot, asked) = match going.phase {
            Phase::Rebooting { boot, asked } | Phase::ReturnRebooting { boot, asked } => (boot, asked),
            _ => (self.boot, 0),
        };
        if boot != self.boot {
            hooks.run_all(Moment(state, Action::Leave)).await?;
            return Ok(true);
        }
        if asked >= REBOOTS {
            let message =
                format!("the hooks of {state:?} were run {REBOOTS} times, and the machine did not boot");
            return Err(Trouble::lasting("no_reboot", message));
        }
        self.enter(going, phase(boot, asked + 1)).await?;
        hooks.run_all(Moment(state, Action::Enter)).await?;
        Ok(false)
    }
}

impl Slot for Firmware {
    fn needs(&self, length: u64) -> u64 {
        length
    }

    fn admit(&self, plan: &Plan) -> Result<(), Trouble> {
        let hooks = self.hooks(plan)?;
        let install = Moment(State::ArtifactInstall, Action::Enter);
        if !hooks.has(install) {
            let message = format!("there is no hook {install}_NN in {}", hooks.folder().display());
            return Err(Trouble::lasting("no_hooks", message));
        }
        let [reboots, verifies] = [State::ArtifactReboot, State::ArtifactVerifyReboot]
            .map(|state| hooks.has(Moment(state, Action::Enter)));
        if reboots && !verifies && self.config.version_file.is_none() {
            let message = format!(
                "nothing tells after a reboot which system runs, and boot loaders fall back by themselves: add a hook \
                 {}_NN to {}, or name a version_file in [update.firmware]",
                Moment(State::ArtifactVerifyReboot, Action::Enter),
                hooks.folder().display()
            );
            return Err(Trouble::lasting("no_hooks", message));
        }
        Ok(())
    }

    async fn runs(&self, plan: &Plan) -> Option<Release> {
        let running = self.load().await.ok()?.running.remove(plan.order.target.name.as_str())?;
        let agrees = self.told().is_none_or(|told| told == running.version.as_str());
        agrees.then_some(running)
    }

    async fn install(&self, plan: &Plan) -> Result<(), Trouble> {
        let hooks = self.hooks(plan)?;
        let (_, mut going) = self.going(plan).await?;
        if going.phase != Phase::Installing {
            return Ok(());
        }
        self.enter(&mut going, Phase::Installing).await?;
        for state in [State::Download, State::ArtifactInstall] {
            hooks.pass(state).await?;
        }
        self.enter(&mut going, Phase::Installed).await
    }

    async fn switch(&self, plan: &Plan) -> Result<Switched, Trouble> {
        let hooks = self.hooks(plan)?;
        let (_, mut going) = self.going(plan).await?;
        if let Phase::Installing | Phase::Installed | Phase::Rebooting { .. } = going.phase {
            if hooks.has(Moment(State::ArtifactReboot, Action::Enter)) {
                let phase = |boot, asked| Phase::Rebooting { boot, asked };
                if !self.reboot(&mut going, &hooks, State::ArtifactReboot, phase).await? {
                    return Ok(Switched::Away);
                }
                going.booted = true;
            }
            self.enter(&mut going, Phase::Verifying).await?;
        }
        self.verify(plan, &hooks, &mut going).await?;
        Ok(Switched::Done)
    }

    async fn probe(&self, plan: &Plan, _: &Trial) -> Health {
        let verified = async {
            let hooks = self.hooks(plan)?;
            let (_, mut going) = self.going(plan).await?;
            self.verify(plan, &hooks, &mut going).await
        };
        match verified.await {
            Ok(()) => Health::Well,
            Err(trouble) if trouble.passing => Health::NotYet(trouble.message),
            Err(trouble) => Health::Sick(trouble),
        }
    }

    async fn commit(&self, plan: &Plan) -> Result<(), Trouble> {
        let hooks = self.hooks(plan)?;
        let mut kept = self.load().await?;
        let Some(mut going) = kept.going.take().filter(|going| going.command == plan.command) else {
            // It was done, and the answer was lost.
            return Ok(());
        };
        self.verify(plan, &hooks, &mut going).await?;
        hooks.run_all(Moment(State::ArtifactCommit, Action::Enter)).await?;
        let target = &plan.order.target;
        let (version, digest, epoch) = (target.version.clone(), plan.order.digest, plan.custom.epoch);
        kept.running.insert(target.name.as_str().to_owned(), Release { version, digest, epoch });
        self.store(&kept).await?;
        // It stays, whatever they say.
        hooks.run_leniently(Moment(State::ArtifactCommit, Action::Leave)).await;
        Ok(())
    }

    async fn undo(&self, plan: &Plan) -> Result<Switched, Trouble> {
        let hooks = self.hooks(plan)?;
        let (_, mut going) = self.going(plan).await?;
        going.booted |= matches!(going.phase, Phase::Rebooting { boot, .. } if boot != self.boot);
        let going_on = |trouble: Trouble| Trouble { passing: true, ..trouble };
        if !matches!(going.phase, Phase::ReturnRebooting { .. } | Phase::Returned) {
            self.enter(&mut going, Phase::Returning).await?;
            hooks.pass(State::ArtifactRollback).await.map_err(going_on)?;
        }
        if going.booted && going.phase != Phase::Returned {
            // Those that have no way of their own to boot the slot of before have one to boot.
            let own = Moment(State::ArtifactRollbackReboot, Action::Enter);
            let state = if hooks.has(own) { State::ArtifactRollbackReboot } else { State::ArtifactReboot };
            let phase = |boot, asked| Phase::ReturnRebooting { boot, asked };
            if !self.reboot(&mut going, &hooks, state, phase).await.map_err(going_on)? {
                return Ok(Switched::Away);
            }
            hooks.pass(State::ArtifactVerifyRollbackReboot).await.map_err(going_on)?;
        }
        self.enter(&mut going, Phase::Returned).await?;
        Ok(Switched::Done)
    }

    async fn discard(&self, plan: &Plan) {
        let Ok(mut kept) = self.load().await else { return };
        if kept.going.take_if(|going| going.command == plan.command).is_none() {
            return;
        }
        if let Ok(hooks) = self.hooks(plan) {
            hooks.run_leniently(Moment(State::ArtifactFailure, Action::Enter)).await;
            hooks.run_leniently(Moment(State::ArtifactFailure, Action::Leave)).await;
        }
        if let Err(trouble) = self.store(&kept).await {
            warn!(error = trouble.message, "the state of a firmware update could not be removed");
        }
    }
}
