//! Programs that the agent starts: in a process group of their own, with bounded lines of output, and ended whole.
//!
//! Owns starting, reading and killing. Does not know why a program runs or what its lines mean.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group, setpriority_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    net::unix::pipe,
    process::{Child, ChildStderr, ChildStdout, Command},
    time,
};

/// Longest line that is kept, in bytes: a line of JSON with 256 values has about 10 kB.
pub(crate) const LINE_BYTES: usize = 16 * 1024;
/// How long a program has to end by itself once it was asked to.
pub(crate) const GRACE: Duration = Duration::from_millis(1_500);

/// Where programs with an environment of their own are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to start. No shell is involved.
#[derive(Debug, Clone, Default)]
pub(crate) struct Program {
    /// The program: a path, or a name that is looked up in `PATH`.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// Variables beside the agent's own environment.
    pub(crate) env: BTreeMap<String, String>,
}

/// As whom a program runs, and what it may use.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bounds {
    /// User and group, if not the agent's: only root may switch.
    pub(crate) user: Option<(u32, u32)>,
    /// How much others go before it, -20 to 19.
    pub(crate) nice: Option<i32>,
    /// Bytes of address space.
    pub(crate) memory_bytes: Option<u64>,
    /// Time on the processor.
    pub(crate) processor: Duration,
}

/// A program that runs. Dropping it kills its whole process group.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Program {
    /// Starts it in `folder`, with its output in pipes and nothing to read.
    pub(crate) fn start(
        &self,
        folder: &Path,
    ) -> io::Result<(Running, Lines<ChildStdout>, Lines<ChildStderr>)> {
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .envs(&self.env)
            // The hub's secret is the agent's alone.
            .env_remove("FLEET_SECRET")
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        Ok((Running { child, group }, Lines::new(stdout), Lines::new(stderr)))
    }

    /// Starts it in `folder` with nothing of the agent's environment, both outputs in one pipe, and within bounds.
    pub(crate) fn start_bounded(
        &self,
        folder: &Path,
        bounds: &Bounds,
    ) -> io::Result<(Running, pipe::Receiver)> {
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .env("PATH", PATH)
            .env("LANG", "C.UTF-8")
            .envs(&self.env)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0)
            .kill_on_drop(true);
        if let Some((user, group)) = bounds.user {
            // The agent's other groups are dropped with its user.
            command.uid(user).gid(group);
        }
        let child = command.spawn()?;
        // The agent's ends of the pipe are in it: the output ends with the program.
        drop(command);
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let running = Running { child, group };
        bounds.set(group);
        Ok((running, pipe::Receiver::from_owned_fd(reader.into())?))
    }
}

impl Bounds {
    /// Sets them on a program that has just begun: setting them before needs code between fork and exec, which is unsafe.
    /// So the program's first moments are unbounded; what it starts later inherits them.
    fn set(&self, program: Option<Pid>) {
        if let Some(nice) = self.nice {
            // It fails when the program is over already, or when the agent may not put it before others.
            let _ = setpriority_process(program, nice);
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        self.set_limits(program);
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn set_limits(&self, program: Option<Pid>) {
        use rustix::process::{Resource, Rlimit, prlimit};
        // Each fails only when the program is over already.
        let limit = |resource, most: u64| {
            let _ = prlimit(program, resource, Rlimit { current: Some(most), maximum: Some(most) });
        };
        limit(Resource::Core, 0);
        // Beside the timeout, which a program that stops the clock of the agent would outlive.
        limit(Resource::Cpu, self.processor.as_secs().saturating_add(1));
        if let Some(bytes) = self.memory_bytes {
            limit(Resource::As, bytes);
        }
    }
}

impl Running {
    /// Waits until it ends by itself, then ends what it left behind in its group. Safe to cancel.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.signal(Signal::KILL);
        self.group = None;
        Ok(status)
    }

    /// Asks it to end, and kills its group when it does not within `grace`.
    pub(crate) async fn stop(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM);
        if let Ok(status) = time::timeout(grace, self.ended()).await {
            return status;
        }
        self.signal(Signal::KILL);
        self.ended().await
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It fails only when the group is gone already, which is what is wanted.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Lines of at most [`LINE_BYTES`], whatever the program prints.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    // The line's rest is being skipped.
    long: bool,
    // The line was given out: clear it first.
    given: bool,
}

/// A line, or the news that one was too long and is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    Whole(&'a [u8]),
    Long,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        let reader = BufReader::with_capacity(4 * 1024, reader);
        Self { reader, line: Vec::new(), long: false, given: false }
    }

    /// The next line without its end, `None` at the end of the output. Safe to cancel.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        if std::mem::take(&mut self.given) {
            self.line.clear();
        }
        loop {
            let read = self.reader.fill_buf().await?;
            if read.is_empty() {
                let long = std::mem::take(&mut self.long);
                if long {
                    return Ok(Some(Line::Long));
                }
                self.given = true;
                return Ok((!self.line.is_empty()).then_some(Line::Whole(&self.line)));
            }
            let end = read.iter().position(|byte| *byte == b'\n');
            let part = &read[..end.unwrap_or(read.len())];
            if self.long || self.line.len() + part.len() > LINE_BYTES {
                self.long = true;
                self.line.clear();
            } else {
                self.line.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                if std::mem::take(&mut self.long) {
                    return Ok(Some(Line::Long));
                }
                self.given = true;
                return Ok(Some(Line::Whole(&self.line)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::test_kill_process_group;

    use super::*;

    fn shell(script: &str) -> Program {
        Program { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()], ..Program::default() }
    }

    #[tokio::test]
    async fn lines_are_bounded_and_the_next_one_is_whole() {
        let long = "x".repeat(LINE_BYTES + 1);
        let text = format!("one\n{long}\n\ntwo");
        let mut lines = Lines::new(text.as_bytes());
        assert_eq!(lines.next().await.unwrap(), Some(Line::Whole(b"one")));
        assert_eq!(lines.next().await.unwrap(), Some(Line::Long));
        assert_eq!(lines.next().await.unwrap(), Some(Line::Whole(b"")));
        assert_eq!(lines.next().await.unwrap(), Some(Line::Whole(b"two")));
        assert_eq!(lines.next().await.unwrap(), None);
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_program_that_ignores_the_request_is_killed_with_its_children() {
        let script = "trap '' TERM; sleep 1000 & echo ready; while true; do wait; done";
        let (mut running, mut lines, _errors) = shell(script).start(Path::new("/")).unwrap();
        assert_eq!(lines.next().await.unwrap(), Some(Line::Whole(b"ready")));
        let group = running.group.unwrap();
        assert!(test_kill_process_group(group).is_ok());
        let status = running.stop(Duration::from_millis(50)).await.unwrap();
        assert!(!status.success());
        // The pipe closes once the last process that holds it is gone: the sleeping child too.
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_a_program_leaves_behind_ends_with_it() {
        let (mut running, mut lines, _errors) = shell("sleep 1000 &").start(Path::new("/")).unwrap();
        assert!(running.ended().await.unwrap().success());
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_program_that_does_not_exist_is_an_error() {
        let program = Program { program: "/nonexistent/driver".into(), ..Program::default() };
        assert_eq!(program.start(Path::new("/")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
