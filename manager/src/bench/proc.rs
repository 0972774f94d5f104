//! What the kernel knows of a process: processor time by thread, resident memory, bytes written. Linux only, read from
//! `/proc` (proc(5)).

use std::{collections::BTreeMap, fs, time::Duration};

use super::Error;

/// A unit of processor time in `/proc`: `USER_HZ` is 100 in Linux's ABI on every architecture we build for.
const TICK: Duration = Duration::from_millis(10);

/// Processor time of a process so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cpu {
    /// All of it, threads that ended included.
    pub(super) total: Duration,
    /// By name of the threads that run; to the nanosecond where the kernel keeps that (proc(5), `schedstat`), which
    /// `total` is not.
    pub(super) threads: BTreeMap<String, Duration>,
}

impl Cpu {
    /// What was used since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let threads = self.threads.iter().map(|(name, now)| {
            let was = before.threads.get(name).copied().unwrap_or_default();
            (name.clone(), now.saturating_sub(was))
        });
        Self { total: self.total.saturating_sub(before.total), threads: threads.collect() }
    }

    /// The sum over threads whose name `wanted` accepts.
    pub(super) fn of(&self, wanted: impl Fn(&str) -> bool) -> Duration {
        self.threads.iter().filter(|(name, _)| wanted(name)).map(|(_, time)| *time).sum()
    }
}

/// Processor time so far.
pub(super) fn cpu(pid: u32) -> Result<Cpu, Error> {
    let (_, total) = stat(&read(&format!("/proc/{pid}/stat"))?)?;
    let folder = format!("/proc/{pid}/task");
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(&folder).map_err(Error::io(format!("list {folder}")))? {
        let Ok(task) = task else { continue };
        // A thread may end between the two reads.
        let Ok(text) = fs::read_to_string(task.path().join("stat")) else { continue };
        let (name, ticks) = stat(&text)?;
        let fine = fs::read_to_string(task.path().join("schedstat")).ok();
        let time = fine.and_then(|text| on_cpu(&text)).unwrap_or(ticks);
        *threads.entry(name).or_default() += time;
    }
    Ok(Cpu { total, threads })
}

/// Resident memory in bytes.
pub(super) fn rss(pid: u32) -> Result<u64, Error> {
    number(&read(&format!("/proc/{pid}/status"))?, "VmRSS:").map(|kib| kib * 1_024)
}

/// Bytes that the process made the kernel write to disks.
pub(super) fn written(pid: u32) -> Result<u64, Error> {
    number(&read(&format!("/proc/{pid}/io"))?, "write_bytes:")
}

fn read(path: &str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(Error::io(format!("read {path}")))
}

/// Name and processor time of a `stat` line. The name may hold spaces and parentheses.
fn stat(text: &str) -> Result<(String, Duration), Error> {
    let unreadable = || Error::Answer(format!("unreadable processor time: {text:?}"));
    let (head, tail) = text.rsplit_once(')').ok_or_else(unreadable)?;
    let (_, name) = head.split_once('(').ok_or_else(unreadable)?;
    let mut fields = tail.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<u32>().ok()).ok_or_else(unreadable);
    Ok((name.to_owned(), TICK * ticks()? + TICK * ticks()?))
}

/// Time on a processor of a `schedstat` line: nanoseconds, the first field.
fn on_cpu(text: &str) -> Option<Duration> {
    text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

fn number(text: &str, key: &str) -> Result<u64, Error> {
    (text.lines().find_map(|line| line.strip_prefix(key)))
        .and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
        .ok_or_else(|| Error::Answer(format!("the kernel does not tell {key}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let line = "7 (a) b (c) S 1 7 7 0 -1 4194304 90 0 0 0 12 30 0 0 20 0 1 0 1 2 3\n";
        assert_eq!(stat(line).unwrap(), ("a) b (c".to_owned(), Duration::from_millis(420)));
        assert!(stat("7 (a) S 1").is_err());
        assert_eq!(on_cpu("142701 880077 2\n"), Some(Duration::from_nanos(142_701)));
    }

    #[test]
    fn this_process_is_known() {
        let pid = std::process::id();
        let before = cpu(pid).unwrap();
        assert!(!before.threads.is_empty());
        assert!(rss(pid).unwrap() > 100_000);
        written(pid).unwrap();
        assert_eq!(before.since(&before).total, Duration::ZERO);
    }
}
