//! `fleet-agent launch`, and `fleet-agent become`, by which it starts a release.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow};
use clap::Args;
use fleet_edge_agent::{
    config::Config,
    launch::{self, LaunchError},
    log,
};

use super::{Failure, logging, runtime};

/// Arguments of `run` that are the launcher's to give.
const OWN: &str = "--data";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Launch {
    /// The data folder: outbox, identity, agent.toml, releases [env: FLEET_DATA] [default: ./fleet-agent-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Seconds that the agent has to end when it is told to; then it is killed
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    grace_s: u64,
    /// What `fleet-agent run` is given, after --
    #[arg(last = true, value_name = "RUN-ARGUMENTS")]
    run: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  fleet-agent launch --data /var/lib/fleet-agent
  fleet-agent launch --data /var/lib/fleet-agent -- --api 127.0.0.1:9100

The agent runs as a child: the installed one, until the hub updates it. A new release is on trial first. It is returned
from when it ends 5 times before it is confirmed, when its time is over, and when its file is not the one that was
installed; the one before runs again, and reports why. What ends this ends the agent too.
DATA/releases/agent/launch.json says what runs. Remove it to go back to the agent that is installed.

A unit for systemd (/etc/systemd/system/fleet-agent.service; the Debian package brings a confined one):
  [Service]
  Type=notify
  NotifyAccess=all
  ExecStart=/usr/local/bin/fleet-agent launch --data /var/lib/fleet-agent
  Restart=always
  WatchdogSec=180

Exit codes: as fleet-agent run; 0 when it was told to end.";

#[derive(Debug, Args)]
pub(super) struct Become {
    /// The process of the launcher
    #[arg(long, value_name = "PID")]
    launcher: i32,
    /// The executable; absent: this one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Its arguments
    #[arg(last = true)]
    args: Vec<OsString>,
}

impl Launch {
    pub(super) fn main(self) -> Result<(), Failure> {
        let Self { data, grace_s, run } = self;
        let is_own = |word: &OsString| word.to_str().is_some_and(|word| word.split('=').next() == Some(OWN));
        if run.iter().any(is_own) {
            let error = anyhow!("{OWN} stands before the --: fleet-agent launch {OWN} DIR -- run-arguments");
            return Err(Failure::Usage(error));
        }
        // Nothing else of the configuration is read: a release may know keys that this one does not.
        let told = data.or_else(|| std::env::var_os("FLEET_DATA").map(PathBuf::from));
        let data = told.unwrap_or_else(|| Config::default().data);
        // Whoever turns this off wants to hear of trials all the same when they ask for it.
        logging::start(&log::Config::default());
        let grace = Duration::from_secs(grace_s);
        let code = runtime()?.block_on(launch::run(launch::Config { data, args: run, grace }));
        match code.map_err(failure)? {
            0 => Ok(()),
            code => Err(Failure::AsAgent(code)),
        }
    }
}

impl Become {
    pub(super) fn main(self) -> Result<(), Failure> {
        let Self { launcher, program, args } = self;
        let name = program.as_ref().map_or_else(|| "the agent".to_owned(), |path| path.display().to_string());
        let error = launch::become_release(launcher, program, &args);
        let unrunnable = error.unrunnable;
        let error = anyhow::Error::new(error).context(format!("failed to start {name}"));
        Err(if unrunnable { Failure::Unrunnable(error) } else { Failure::Failed(error) })
    }
}

fn failure(error: LaunchError) -> Failure {
    let conflict = matches!(error, LaunchError::Folder(launch::FolderError::InUse { .. }));
    let error = Err::<(), _>(error).context("failed to launch").expect_err("it was one");
    if conflict { Failure::Conflict(error) } else { Failure::Failed(error) }
}
