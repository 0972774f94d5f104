//! Running hooks: one after the other, within their time, with their last words kept.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{select, time};
use tracing::{info, warn};

use super::Config;
use crate::{
    commands::orphans,
    core::{
        hooks::{self, Action, LATER, Moment, State},
        update::Trouble,
    },
    exec::{GRACE, Line, Program},
    update::slot::Plan,
};

/// Files that are looked at in a folder of hooks.
const FILES: usize = 1_000;
/// Longest last word of a hook that is told, in characters.
const WORD: usize = 200;

/// The hooks of a node, and what they are told of an update.
pub(super) struct Hooks {
    folder: PathBuf,
    names: Vec<String>,
    env: BTreeMap<String, String>,
    limit: Duration,
    later: Duration,
    latest: Duration,
}

/// How a hook ended.
enum Ended {
    Well,
    Later,
    Badly(Trouble),
}

impl Hooks {
    pub(super) fn read(folder: &Path, config: &Config, data: &Path, plan: &Plan) -> Result<Self, Trouble> {
        let unreadable = |error: std::io::Error| {
            let message = format!("the folder of hooks {}: {error}", folder.display());
            Trouble::lasting("no_hooks", message)
        };
        let mut names = Vec::new();
        check(folder)?;
        for entry in fs::read_dir(folder).map_err(unreadable)?.take(FILES) {
            let Ok(name) = entry.map_err(unreadable)?.file_name().into_string() else { continue };
            if hooks::moment(&name).is_some() {
                check(&folder.join(&name))?;
                names.push(name);
            }
        }
        let target = &plan.order.target;
        let from = plan.from.as_ref().map_or("", |from| from.version.as_str());
        let env = [
            ("FLEET_ARTIFACT", plan.file.display().to_string()),
            ("FLEET_NAME", target.name.as_str().to_owned()),
            ("FLEET_VERSION", target.version.as_str().to_owned()),
            ("FLEET_DIGEST", plan.order.digest.to_string()),
            ("FLEET_FROM_VERSION", from.to_owned()),
            ("FLEET_ROLLOUT", plan.order.rollout.as_ref().map_or("", |name| name.as_str()).to_owned()),
            // By these a hook that outlived a killed agent is found and ended.
            (orphans::ID, plan.command.to_string()),
            (orphans::FOLDER, data.display().to_string()),
        ];
        Ok(Self {
            folder: folder.to_owned(),
            names,
            env: env.map(|(name, value)| (name.to_owned(), value)).into(),
            limit: config.hook,
            later: config.later,
            latest: config.latest,
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn has(&self, moment: Moment) -> bool {
        !hooks::of(moment, &self.names).is_empty()
    }

    /// Enters a state and leaves it; when one of its hooks fails, those for the error are run as well.
    pub(super) async fn pass(&self, state: State) -> Result<(), Trouble> {
        for action in [Action::Enter, Action::Leave] {
            if let Err(trouble) = self.run_all(Moment(state, action)).await {
                self.run_leniently(Moment(state, Action::Error)).await;
                return Err(trouble);
            }
        }
        Ok(())
    }

    /// Runs all of a moment, until one fails.
    pub(super) async fn run_all(&self, moment: Moment) -> Result<(), Trouble> {
        for name in hooks::of(moment, &self.names) {
            self.run(name, moment).await?;
        }
        Ok(())
    }

    /// Runs all of a moment, whatever they say.
    pub(super) async fn run_leniently(&self, moment: Moment) {
        for name in hooks::of(moment, &self.names) {
            if let Err(trouble) = self.run(name, moment).await {
                warn!(hook = name, error = trouble.message, "a hook failed, and that changes nothing");
            }
        }
    }

    async fn run(&self, name: &str, moment: Moment) -> Result<(), Trouble> {
        let mut waited = Duration::ZERO;
        loop {
            match self.once(name, moment).await {
                Ended::Well => return Ok(()),
                Ended::Badly(trouble) => return Err(trouble),
                Ended::Later if waited >= self.latest => {
                    let message =
                        format!("hook {name} asked to be run later for {} s", self.latest.as_secs());
                    return Err(Trouble::lasting("hook_later", message));
                }
                Ended::Later => {
                    info!(hook = name, "the hook asks to be run later");
                    time::sleep(self.later).await;
                    waited += self.later.max(Duration::from_millis(1));
                }
            }
        }
    }

    async fn once(&self, name: &str, moment: Moment) -> Ended {
        info!(hook = name, "a hook is run");
        let mut env = self.env.clone();
        env.insert("FLEET_STATE".to_owned(), moment.to_string());
        let program = Program { program: self.folder.join(name), args: Vec::new(), env };
        let bad =
            |code: &str, what: String| Ended::Badly(Trouble::lasting(code, format!("hook {name} {what}")));
        let (mut running, mut lines, mut errors) = match program.start(&self.folder) {
            Ok(started) => started,
            Err(error) => return bad("hook_failed", format!("cannot be run: {error}; make it executable")),
        };
        let limit = time::sleep(self.limit);
        tokio::pin!(limit);
        let mut word = String::new();
        let (mut talks, mut complains) = (true, true);
        let status = loop {
            select! {
                biased;
                line = lines.next(), if talks => talks = keep(name, &line, &mut word),
                line = errors.next(), if complains => complains = keep(name, &line, &mut word),
                () = &mut limit => {
                    let _ = running.stop(GRACE).await;
                    return bad("hook_timeout", format!("took longer than {} s", self.limit.as_secs()));
                }
                // What it left running holds the pipes no longer than this.
                status = running.ended() => break status,
            }
        };
        let rest = async {
            while keep(name, &lines.next().await, &mut word) {}
            while keep(name, &errors.next().await, &mut word) {}
        };
        // One that cannot be ended may hold them on.
        let _ = time::timeout(GRACE, rest).await;
        match status.map(|status| status.code()) {
            Ok(Some(0)) => Ended::Well,
            Ok(Some(LATER)) => Ended::Later,
            Ok(Some(code)) => bad("hook_failed", format!("ended with code {code}: {word}")),
            Ok(None) => bad("hook_failed", format!("was ended by a signal: {word}")),
            Err(error) => bad("hook_failed", format!("could not be waited for: {error}")),
        }
    }
}

/// Logs a line and keeps it as the last word. Whether there may be more.
fn keep(name: &str, line: &std::io::Result<Option<Line<'_>>>, word: &mut String) -> bool {
    let Ok(Some(line)) = line else { return false };
    if let Line::Whole(line) = line {
        let text = String::from_utf8_lossy(line);
        info!(hook = name, "{text}");
        if !text.trim().is_empty() {
            *word = text.trim().chars().take(WORD).collect();
        }
    }
    true
}

/// Hooks run with the agent's rights: nobody else may change them.
fn check(path: &Path) -> Result<(), Trouble> {
    let meta = fs::metadata(path)
        .map_err(|error| Trouble::lasting("no_hooks", format!("{}: {error}", path.display())))?;
    let own = rustix::process::geteuid().as_raw();
    let others = meta.permissions().mode() & 0o022 != 0 || ![0, own].contains(&meta.uid());
    if others {
        let message = format!("others may change {}: chown it to root, and chmod go-w", path.display());
        return Err(Trouble::lasting("unsafe_hooks", message));
    }
    Ok(())
}
