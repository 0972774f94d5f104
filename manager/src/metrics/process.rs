//! Memory and processor time of this process.

use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, get_current_pid};

/// What the system says of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Process {
    /// Resident memory, in bytes.
    pub rss_bytes: u64,
    /// Processor time, user and system, in milliseconds.
    pub cpu_ms: u64,
    /// When it started, Unix seconds.
    pub start_s: u64,
    /// Files and sockets that it has open, and may have.
    pub open_files: Option<(usize, usize)>,
}

/// Asks the system; `None` where it does not tell.
#[must_use]
pub fn read() -> Option<Process> {
    let pid = get_current_pid().ok()?;
    let mut system = System::new().ok()?;
    let wanted = ProcessRefreshKind::nothing().with_memory().with_cpu();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, wanted);
    let process = system.process(pid)?;
    Some(Process {
        rss_bytes: process.memory(),
        cpu_ms: process.accumulated_cpu_time(),
        start_s: process.start_time(),
        open_files: process.open_files().zip(process.open_files_limit()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        let process = read().expect("the system tells");
        assert!(process.rss_bytes > 100_000 && process.start_s > 1_600_000_000);
        assert!(process.open_files.is_none_or(|(open, limit)| open > 2 && open <= limit), "{process:?}");
    }
}
