//! The launcher: a small parent of the agent that starts one of its releases, and returns from one that does not prove
//! itself.
//!
//! `core::launch` decides; [`folder`] has the files, [`run`] the processes. It is the launcher's own build, installed by
//! hand, that does all this: a new release is asked for nothing.

pub mod folder;
pub mod run;

use std::{
    env,
    ffi::OsString,
    fs::File,
    io::{self, ErrorKind, Read as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{self, Command},
};

use rustix::process::{Pid, getppid};

pub use folder::{Folder, FolderError, digest_of};
pub use run::{Config, LaunchError, run};

/// The variable that tells an agent its launcher, by the process id.
const LAUNCHER: &str = "FLEET_LAUNCHER";
/// The variable that tells whom a service manager's watchdog watches (sd_watchdog_enabled(3)).
const WATCHED: &str = "WATCHDOG_PID";
/// This executable, also after its file was replaced.
const OWN: &str = "/proc/self/exe";
/// How a program begins (ELF), up to and with its machine.
const ELF: &[u8] = b"\x7fELF";
const HEAD: usize = 20;

/// Why a release was not started.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotStarted {
    /// What the system said.
    #[source]
    pub error: io::Error,
    /// Whether it will say so again: the file is no program of this machine.
    pub unrunnable: bool,
}

/// Whether this process was started by a launcher, which starts it again when it ends with
/// [`AGAIN`](crate::core::launch::AGAIN).
#[must_use]
pub fn is_launched() -> bool {
    let told = env::var(LAUNCHER).ok().and_then(|told| told.parse::<i32>().ok());
    told.is_some() && told == getppid().map(Pid::as_raw_pid)
}

/// Becomes `program` with these arguments, as a child of `launcher` that does not outlive it. Returns why it could not.
///
/// Without a program, it is this executable.
#[must_use]
pub fn become_release(launcher: i32, program: Option<PathBuf>, args: &[OsString]) -> NotStarted {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use rustix::process::{Signal, set_parent_process_death_signal};
        // Two agents on one data folder would stand in each other's way until the older one ends. It survives exec.
        if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
            return NotStarted { error: error.into(), unrunnable: false };
        }
    }
    if getppid().map(Pid::as_raw_pid) != Some(launcher) {
        return NotStarted { error: io::Error::other("the launcher is gone"), unrunnable: false };
    }
    // A file that is no program would be handed to a shell by the C library.
    match program.as_deref().map_or(Ok(true), fits) {
        Ok(true) => {}
        Ok(false) => {
            let error = io::Error::other("it is no program for this machine");
            return NotStarted { error, unrunnable: true };
        }
        Err(error) => return NotStarted { error, unrunnable: false },
    }
    let mut command = Command::new(program.unwrap_or_else(own));
    command.arg0("fleet-agent").args(args).env(LAUNCHER, launcher.to_string());
    if env::var_os(WATCHED).is_some() {
        command.env(WATCHED, process::id().to_string());
    }
    let error = command.exec();
    let kinds = [ErrorKind::OutOfMemory, ErrorKind::ExecutableFileBusy, ErrorKind::WouldBlock];
    NotStarted { unrunnable: !kinds.contains(&error.kind()), error }
}

/// Whether a file can be a program of this machine: one like this executable (ELF, by class, byte order and machine), or
/// a script that names its interpreter.
///
/// # Errors
/// What the system says when it cannot be read.
pub fn fits(program: &Path) -> io::Result<bool> {
    let (file, own) = (head(program)?, head(&own())?);
    let kind = |head: &[u8; HEAD]| -> [u8; 9] {
        let [a, b, c, d, class, order, version, .., low, high] = *head;
        [a, b, c, d, class, order, version, low, high]
    };
    Ok(file.starts_with(b"#!") || !own.starts_with(ELF) || kind(&file) == kind(&own))
}

fn head(path: &Path) -> io::Result<[u8; HEAD]> {
    let mut head = [0; HEAD];
    match File::open(path)?.read_exact(&mut head) {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(error),
        _ => Ok(head),
    }
}

/// This executable.
pub(crate) fn own() -> PathBuf {
    let own = PathBuf::from(OWN);
    match own.exists() {
        true => own,
        false => env::current_exe().unwrap_or_else(|_| "fleet-agent".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_one_for_this_machine_or_a_script() {
        let folder = tempfile::tempdir().unwrap();
        let file = |bytes: &[u8]| {
            let path = folder.path().join("program");
            std::fs::write(&path, bytes).unwrap();
            fits(&path).unwrap()
        };
        assert!(fits(&own()).unwrap() && file(b"#!/bin/sh\n"));
        let own = head(&own()).unwrap();
        assert!(file(&own));
        let mut foreign = own;
        foreign[18] ^= 0x40;
        assert!(!file(&foreign) && !file(b"\x7fELF") && !file(b"") && !file(b"echo hello\n"));
    }
}
