//! The loop of the launcher: picks a release, starts it, waits for its end, and picks again.
//!
//! Owns the processes and the signals. The record is written before each start, and read again after each end: the agent
//! may have written it meanwhile.

use std::{ffi::OsString, io, path::PathBuf, process::Command, time::Duration};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::{
    select,
    signal::unix::{Signal as Signals, SignalKind, signal},
    time,
};
use tracing::{error, info, warn};

use super::{
    folder::{Folder, FolderError},
    own,
};
use crate::{
    clock::{self, Clock},
    core::launch::{End, Exit, Next, Pick, Record, after, failed},
    supervised,
};

/// How the launcher works.
#[derive(Debug, Clone)]
pub struct Config {
    /// The agent's data folder.
    pub data: PathBuf,
    /// What the agent is run with.
    pub args: Vec<OsString>,
    /// How long an agent has to end once it was told to; then it is killed.
    pub grace: Duration,
}

/// The launcher cannot work. The text fits after "failed to launch: ".
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Signals.
    #[error("signals cannot be listened for: {0}")]
    Signals(io::Error),
    /// Its own program.
    #[error("{path} cannot be started: {source}")]
    Start {
        /// The program.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Runs the agent until told to stop. The exit code.
///
/// # Errors
/// [`LaunchError`]: nothing is left running.
pub async fn run(config: Config) -> Result<u8, LaunchError> {
    let folder = Folder::new(&config.data);
    let _lock = folder.lock()?;
    let mut ears = Ears::new().map_err(LaunchError::Signals)?;
    let clock = Clock::new(clock::Config::default());
    let mut failures = 0;
    loop {
        // Each agent has the watchdog's whole time to begin with its own pings.
        supervised::waiting();
        let pick = pick(&folder);
        let child = start(&config, &folder, &pick)?;
        let begun = clock.now().up;
        let mut end = ears.watch(child, &pick, &folder, config.grace).await;
        end.lasted = clock.now().up.saturating_sub(begun);
        let name = name(&pick);
        info!(agent = name, exit = ?end.exit, lasted_s = end.lasted.as_secs(), "the agent ended");
        let last = book(&folder, &pick, &end);
        match after(&pick, &end, failures, last) {
            Next::Quit(code) => return Ok(code),
            Next::Start(pause) => {
                failures = if failed(&end) && !last { failures + 1 } else { 0 };
                supervised::waiting();
                if let Some(code) = ears.pause(pause).await {
                    return Ok(code);
                }
            }
        }
    }
}

/// What is started, with its start counted on disk.
fn pick(folder: &Folder) -> Pick {
    let before = match folder.load() {
        Ok(record) => record,
        Err(error) => {
            error!(%error, "the record of releases cannot be used");
            if matches!(error, FolderError::Damaged { .. }) {
                folder.set_aside();
            }
            return Pick { release: None, left: None };
        }
    };
    let mut record = before.clone();
    let sound = |release: &_| {
        let sound = folder.is_sound(release);
        if !sound {
            warn!(path = %folder.program(release).display(), "the file is not the one that was installed");
        }
        sound
    };
    let pick = record.begin(sound);
    if before.trial.is_some() && record.trial.is_none() {
        let why = record.undone.as_ref().map_or_else(String::new, |undone| undone.why.message());
        warn!("the release on trial is returned from: {why}");
    }
    if record != before
        && let Err(error) = folder.store(&record)
    {
        // A start that is not counted could be repeated for ever.
        error!(%error, "the record of releases cannot be written: no trial begins");
        return before.settled(sound);
    }
    info!(agent = name(&pick), trial = pick.left.is_some(), "the agent is started");
    pick
}

/// Books the end of a trial's run. Whether it was its last.
fn book(folder: &Folder, pick: &Pick, end: &End) -> bool {
    if pick.left.is_none() {
        return false;
    }
    let booked = folder.load().and_then(|mut record: Record| {
        if record.ended(pick, end) {
            folder.store(&record)?;
        }
        Ok(record.is_spent() && record.current != pick.release)
    });
    booked.unwrap_or_else(|error| {
        warn!(%error, "the end of a trial's run is not on disk; its start is");
        false
    })
}

fn name(pick: &Pick) -> String {
    match &pick.release {
        Some(release) => format!("{} ({})", release.version.as_str(), &release.digest.to_string()[..16]),
        None => "as installed".to_owned(),
    }
}

/// Starts it by way of this executable, which makes it end with the launcher.
fn start(config: &Config, folder: &Folder, pick: &Pick) -> Result<Pid, LaunchError> {
    let path = own();
    let mut command = Command::new(&path);
    command.arg("become").arg("--launcher").arg(std::process::id().to_string());
    if let Some(release) = &pick.release {
        command.arg("--program").arg(folder.program(release));
    }
    command.args(["--", "run", "--data"]).arg(&config.data).args(&config.args);
    // Waited for with all the others that end: see `reap`.
    let child = command.spawn().map_err(|source| LaunchError::Start { path, source })?;
    Ok(Pid::from_child(&child))
}

/// The signals that are listened for.
struct Ears {
    terminate: Signals,
    interrupt: Signals,
    hang_up: Signals,
    child: Signals,
}

impl Ears {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            child: signal(SignalKind::child())?,
        })
    }

    /// Waits for the end of a child, and tells it what the launcher is told.
    async fn watch(&mut self, child: Pid, pick: &Pick, folder: &Folder, grace: Duration) -> End {
        let (mut told, mut hung_up, mut over) = (false, false, false);
        // When its trial is over; once it was told to end, when it is killed.
        let due = time::sleep(pick.left.unwrap_or_default());
        tokio::pin!(due);
        let mut timed = pick.left.is_some();
        loop {
            if let Some(exit) = reap(child) {
                // An agent that ends when its terminal does was told to.
                let hung_up = hung_up && exit == Exit::Signal(Signal::HUP.as_raw());
                return End { exit, told: told || hung_up, over, lasted: Duration::ZERO };
            }
            let ending = told || over;
            select! {
                _ = self.child.recv() => continue,
                _ = self.hang_up.recv() => {
                    hung_up = true;
                    tell(child, Signal::HUP);
                    continue;
                }
                _ = self.terminate.recv() => {
                    told = true;
                    supervised::stopping();
                    tell(child, Signal::TERM);
                }
                _ = self.interrupt.recv() => {
                    told = true;
                    supervised::stopping();
                    tell(child, Signal::INT);
                }
                () = &mut due, if timed => {
                    timed = false;
                    if ending {
                        warn!("the agent does not end and is killed");
                        tell(child, Signal::KILL);
                        continue;
                    }
                    // A record that cannot be read confirms nothing.
                    if folder.load().is_ok_and(|record| !record.tries(pick)) {
                        continue;
                    }
                    warn!("the agent's time on trial is over, and it was not confirmed");
                    over = true;
                    tell(child, Signal::TERM);
                }
            }
            if !ending {
                timed = true;
                due.set(time::sleep(grace));
            }
        }
    }

    /// Waits before the next start; the exit code when told to stop meanwhile.
    async fn pause(&mut self, pause: Duration) -> Option<u8> {
        let due = time::sleep(pause);
        tokio::pin!(due);
        loop {
            select! {
                () = &mut due => return None,
                _ = self.child.recv() => drop(reap(None)),
                _ = self.terminate.recv() => return Some(0),
                _ = self.interrupt.recv() => return Some(0),
                _ = self.hang_up.recv() => return Some(0),
            }
        }
    }
}

/// Takes leave of every process that ended: as the first process of a container, the launcher inherits those that others
/// left. How the child ended, if it did.
fn reap(child: impl Into<Option<Pid>>) -> Option<Exit> {
    let child = child.into();
    let mut ended = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if Some(pid) == child {
            ended = exit_of(status);
        }
    }
    ended
}

fn exit_of(status: WaitStatus) -> Option<Exit> {
    status.exit_status().map(Exit::Code).or_else(|| status.terminating_signal().map(Exit::Signal))
}

fn tell(child: Pid, signal: Signal) {
    // It fails when the child is gone, which is noticed by itself.
    let _ = kill_process(child, signal);
}
