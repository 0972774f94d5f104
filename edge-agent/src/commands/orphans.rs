//! Programs that outlived the agent that ran them: a killed agent cannot end what it started.
//!
//! Every program is told its command and the agent's folder by its environment; the next start looks for them before
//! anything runs again. Knows nothing of queues.

use std::path::Path;

use fleet_schemas::CommandId;

/// The variable with the command's id.
pub(crate) const ID: &str = "FLEET_COMMAND_ID";
/// The variable with the data folder of the agent.
pub(crate) const FOLDER: &str = "FLEET_COMMAND_FOLDER";

/// Kills what is left of these commands; how many processes that were.
///
/// Looks at all processes of the machine, so it is only for a start that found commands under way.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn end(folder: &Path, ids: &[CommandId]) -> usize {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    let wanted: Vec<_> = ids.iter().map(|id| format!("{ID}={id}").into_bytes()).collect();
    let folder = format!("{FOLDER}={}", folder.display()).into_bytes();
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut ended = 0;
    for number in numbers {
        // Held while it is looked at, so that nobody else is hit who gets its number.
        let Some(handle) = Pid::from_raw(number).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        else {
            continue;
        };
        let Ok(environment) = std::fs::read(format!("/proc/{number}/environ")) else { continue };
        let has = |wanted: &[u8]| environment.split(|byte| *byte == 0).any(|variable| variable == wanted);
        if has(&folder) && wanted.iter().any(|id| has(id)) && pidfd_send_signal(handle, Signal::KILL).is_ok()
        {
            ended += 1;
        }
    }
    ended
}

/// There is no way to look here.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn end(_: &Path, _: &[CommandId]) -> usize {
    0
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_what_is_left_of_these_commands_is_ended() {
        let (mine, other) = (CommandId([1; 16]), CommandId([2; 16]));
        let folder = tempfile::tempdir().unwrap();
        let start = |id: CommandId, folder: &Path| {
            let mut command = Command::new("sleep");
            command.arg("1000").env(ID, id.to_string()).env(FOLDER, folder.display().to_string());
            let child = command.spawn().unwrap();
            // The kernel shows the environment only at the end of exec, which spawn does not wait for.
            let environment = format!("/proc/{}/environ", child.id());
            while std::fs::read(&environment).unwrap().is_empty() {
                std::thread::yield_now();
            }
            child
        };
        let mut orphan = start(mine, folder.path());
        let mut others = [start(other, folder.path()), start(mine, Path::new("/nonexistent"))];
        assert_eq!(end(folder.path(), &[mine]), 1);
        assert!(!orphan.wait().unwrap().success());
        for other in &mut others {
            assert_eq!(other.try_wait().unwrap(), None);
            other.kill().unwrap();
            other.wait().unwrap();
        }
    }
}
