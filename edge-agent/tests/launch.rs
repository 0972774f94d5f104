//! The launcher over real processes: releases that crash, hang, say nothing or prove themselves, and a launcher that is
//! killed between any two steps.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use fleet_edge_agent::{
    core::launch::{Release, STARTS, Undone, Why},
    launch::Folder,
};
use fleet_schemas::{MetricName, update::Digest};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use sha2::{Digest as _, Sha256};

/// What says that it was started, and by whom, and then stays until a signal ends it.
const STAYS: &str =
    "#!/bin/sh\n# STAYS\necho \"$(basename $(dirname $0)) $$\" >> \"$3/starts\"\nexec sleep 1000\n";
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(3_600);

struct Node {
    data: tempfile::TempDir,
    folder: Folder,
}

/// A launcher; killed when a test fails.
struct Launcher(Child);

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Launcher {
    fn tell(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn ended(&mut self) -> Option<i32> {
        until("the launcher ends", || self.0.try_wait().unwrap()).code()
    }
}

impl Node {
    /// One whose current release stays.
    fn new() -> (Self, Release) {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::new(data.path());
        let node = Self { data, folder };
        let stays = node.offer("1.0.0", STAYS.as_bytes(), LONG);
        let mut record = node.folder.load().unwrap();
        assert!(record.confirm(stays.digest));
        node.folder.store(&record).unwrap();
        (node, stays)
    }

    /// Puts a release on trial.
    fn offer(&self, version: &str, content: &[u8], limit: Duration) -> Release {
        let digest = Digest(Sha256::digest(content).into());
        let release = Release { version: MetricName::parse(version).unwrap(), digest };
        let from = self.data.path().join("download");
        fs::write(&from, content).unwrap();
        self.folder.install(&release, &from).unwrap();
        let mut record = self.folder.load().unwrap();
        record.offer(release.clone(), limit);
        self.folder.store(&record).unwrap();
        release
    }

    fn launch(&self) -> Launcher {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fleet-agent"));
        command.arg("launch").arg("--data").arg(self.data.path()).args([
            "--grace-s",
            "1",
            "--",
            "--api",
            "x",
        ]);
        Launcher(command.env_clear().env("PATH", "/usr/bin:/bin").stderr(Stdio::null()).spawn().unwrap())
    }

    /// The releases that were started, by the names of their folders, and their processes.
    fn starts(&self) -> Vec<(String, Pid)> {
        let text = fs::read_to_string(self.data.path().join("starts")).unwrap_or_default();
        let whole = text.lines().take(text.matches('\n').count());
        let row = |line: &str| {
            let (name, pid) = line.split_once(' ').unwrap();
            (name.to_owned(), Pid::from_raw(pid.parse().unwrap()).unwrap())
        };
        whole.map(row).collect()
    }

    /// Waits until the latest start is of this release.
    fn runs(&self, release: &Release) -> Pid {
        let home = self.home(release);
        until(&format!("{home} runs"), || {
            let (name, pid) = self.starts().pop()?;
            (name == home && lives(pid)).then_some(pid)
        })
    }

    fn home(&self, release: &Release) -> String {
        let program = self.folder.program(release);
        program.parent().and_then(Path::file_name).unwrap().to_str().unwrap().to_owned()
    }

    fn started(&self, release: &Release) -> usize {
        let home = self.home(release);
        self.starts().iter().filter(|(name, _)| *name == home).count()
    }

    fn undone(&self) -> Option<Undone> {
        self.folder.load().unwrap().undone
    }

    fn confirm(&self, release: &Release) {
        let mut record = self.folder.load().unwrap();
        assert!(record.confirm(release.digest));
        self.folder.store(&record).unwrap();
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let pause = Duration::from_millis(10);
    for _ in 0..PATIENCE.as_millis() / pause.as_millis() {
        if let Some(found) = look() {
            return found;
        }
        thread::sleep(pause);
    }
    panic!("not in time: {what}");
}

fn lives(pid: Pid) -> bool {
    // Nobody may ever take leave of one whose parent was killed: it is over, all the same.
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    test_kill_process(pid).is_ok() && !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"))
}

fn gone(pid: Pid) {
    until("the process is gone", || (!lives(pid)).then_some(()));
}

/// As [`STAYS`], but another file, and with this before it stays.
fn script(first: &str) -> String {
    STAYS.replace("exec sleep", &format!("{first}\nexec sleep"))
}

#[test]
fn a_release_that_crashes_at_boot_is_returned_from() {
    let (node, stays) = Node::new();
    let bad = node.offer("2.0.0", script("kill -SEGV $$").as_bytes(), LONG);
    let mut launcher = node.launch();
    let pid = node.runs(&stays);
    assert_eq!(node.started(&bad), STARTS as usize);
    assert_eq!(node.undone(), Some(Undone { release: bad, why: Why::Crashed }));
    launcher.tell(Signal::TERM);
    assert_eq!(launcher.ended(), Some(128 + 15), "as its agent ended");
    gone(pid);
}

#[test]
fn a_release_that_ends_at_once_without_an_error_is_returned_from_too() {
    let (node, stays) = Node::new();
    let bad = node.offer("2.0.0", script("exit 0").as_bytes(), LONG);
    let _launcher = node.launch();
    node.runs(&stays);
    assert_eq!((node.started(&bad), node.undone().unwrap().why), (STARTS as usize, Why::Crashed));
}

#[test]
fn a_release_that_hangs_and_hears_no_signal_is_killed_when_its_time_is_over() {
    let (node, stays) = Node::new();
    let deaf = script("trap '' TERM INT");
    let bad = node.offer("2.0.0", deaf.as_bytes(), Duration::from_secs(1));
    let _launcher = node.launch();
    let hangs = node.runs(&bad);
    node.runs(&stays);
    assert!(!lives(hangs));
    assert_eq!(node.undone(), Some(Undone { release: bad.clone(), why: Why::Unconfirmed }));
    assert_eq!(node.started(&bad), 1);
}

#[test]
fn a_release_that_is_confirmed_stays_whatever_happens() {
    let (node, stays) = Node::new();
    let new = node.offer("2.0.0", script(": new").as_bytes(), Duration::from_secs(2));
    let mut launcher = node.launch();
    let first = node.runs(&new);
    node.confirm(&new);
    // It crashes, and its launcher is killed, more often than a trial may.
    kill_process(first, Signal::SEGV).unwrap();
    until("it runs again", || (node.started(&new) == 2).then_some(()));
    for n in 3..STARTS as usize + 4 {
        let pid = node.runs(&new);
        launcher.tell(Signal::KILL);
        launcher.ended();
        gone(pid);
        launcher = node.launch();
        until("it runs again", || (node.started(&new) == n).then_some(()));
    }
    let record = node.folder.load().unwrap();
    assert_eq!((record.current, record.previous, record.trial), (Some(new), Some(stays.clone()), None));
    assert_eq!(node.started(&stays), 0);
}

#[test]
fn the_time_of_a_trial_ends_for_a_release_that_was_confirmed_meanwhile() {
    let (node, stays) = Node::new();
    let new = node.offer("2.0.0", script(": new").as_bytes(), Duration::from_secs(1));
    let mut launcher = node.launch();
    let pid = node.runs(&new);
    node.confirm(&new);
    // Then it was for nothing; two seconds, as there is nothing to wait for.
    thread::sleep(Duration::from_secs(2));
    assert!(lives(pid) && node.started(&stays) == 0 && node.started(&new) == 1);
    launcher.tell(Signal::INT);
    launcher.ended();
    gone(pid);
}

#[test]
fn a_launcher_that_is_killed_counts_each_start_and_leaves_no_agent_behind() {
    let (node, stays) = Node::new();
    let new = node.offer("2.0.0", script(": new").as_bytes(), LONG);
    for start in 1..=STARTS {
        let mut launcher = node.launch();
        let counted = || node.folder.load().ok()?.trial.filter(|trial| trial.starts == start);
        // Killed as soon as the start is counted: before there is a process, or while there is one.
        until("the start is counted", counted);
        let pid = (start % 2 == 0).then(|| {
            until("it runs", || (node.started(&new) >= start as usize / 2).then_some(()));
            node.runs(&new)
        });
        launcher.tell(Signal::KILL);
        launcher.ended();
        if let Some(pid) = pid {
            gone(pid);
        }
        // A process that was just begun ends as well, whether or not it came to say so.
        until("no agent is left", || node.starts().iter().all(|(_, pid)| !lives(*pid)).then_some(()));
    }
    let _launcher = node.launch();
    node.runs(&stays);
    assert_eq!(node.undone(), Some(Undone { release: new, why: Why::Crashed }));
}

#[test]
fn a_file_that_is_not_what_was_installed_is_never_started() {
    let (node, stays) = Node::new();
    let new = node.offer("2.0.0", script(": new").as_bytes(), LONG);
    damage(&node.folder.program(&new));
    let mut launcher = node.launch();
    let pid = node.runs(&stays);
    assert_eq!((node.started(&new), node.undone().unwrap().why), (0, Why::Corrupt));
    launcher.tell(Signal::TERM);
    launcher.ended();
    gone(pid);
    // The one that stays is corrupt: the one before it runs.
    let new = node.offer("3.0.0", script(": newer").as_bytes(), LONG);
    node.confirm(&new);
    damage(&node.folder.program(&new));
    let before = node.started(&stays);
    let _launcher = node.launch();
    until("it runs", || (node.started(&stays) > before).then_some(()));
    assert_eq!(node.folder.load().unwrap().current, Some(new), "it is tried again when it is mended");
}

fn damage(program: &PathBuf) {
    let mut bytes = fs::read(program).unwrap();
    let at = bytes.len() - 2;
    bytes[at] ^= 1;
    fs::write(program, bytes).unwrap();
}

#[test]
fn a_program_for_another_machine_is_returned_from_at_once() {
    let (node, stays) = Node::new();
    let bad = node.offer("2.0.0", b"\x7fELF of another machine", LONG);
    let _launcher = node.launch();
    node.runs(&stays);
    assert_eq!(node.undone(), Some(Undone { release: bad, why: Why::Unrunnable }));
}

#[test]
fn an_agent_that_asks_for_a_start_gets_it_and_knows_who_gives_it() {
    let (node, _) = Node::new();
    // The first two runs ask for another; each tells whether it knows its launcher.
    let asks = script(
        "echo $FLEET_LAUNCHER $PPID $WATCHDOG_PID $NOTIFY_SOCKET $* >> $3/told\n\
         [ $(wc -l < $3/told) -gt 2 ] || exit 75",
    );
    let new = node.offer("2.0.0", asks.as_bytes(), LONG);
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleet-agent"));
    command.args(["launch", "--", "--node", "n"]).env_clear().env("PATH", "/usr/bin:/bin");
    command.env("FLEET_DATA", node.data.path()).env("WATCHDOG_PID", "1").env("NOTIFY_SOCKET", "/n");
    let launcher = Launcher(command.stderr(Stdio::null()).spawn().unwrap());
    until("it runs for the third time", || (node.started(&new) == 3).then_some(()));
    let pid = node.runs(&new);
    let own = launcher.0.id();
    let data = node.data.path().display();
    let told = fs::read_to_string(node.data.path().join("told")).unwrap();
    assert_eq!(told.lines().last().unwrap(), format!("{own} {own} {pid} /n run --data {data} --node n"));
    assert_eq!(
        node.folder.load().unwrap().trial.unwrap().starts,
        1,
        "starts that were wished for do not count"
    );
}

#[test]
fn without_a_release_the_installed_agent_runs_and_a_second_launcher_does_not() {
    let data = tempfile::tempdir().unwrap();
    let launch = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fleet-agent"));
        command.arg("launch").arg("--data").arg(data.path()).arg("--").args(words).env_clear();
        command
    };
    let lives = launch(&["--api", "127.0.0.1:0", "--node", "n"]).stderr(Stdio::null()).spawn();
    let mut launcher = Launcher(lives.unwrap());
    until("the agent runs", || data.path().join("outbox.redb").exists().then_some(()));
    let second = launch(&[]).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(second.status.code() == Some(7) && said.contains("in use"), "{said}");
    launcher.tell(Signal::TERM);
    assert_eq!(launcher.ended(), Some(0));
    // What is wrong with the arguments of the agent is said by it, once.
    assert_eq!(launch(&["--hub", "http://x"]).output().unwrap().status.code(), Some(2));
    let twice = launch(&["--data=/x"]).output().unwrap();
    assert!(
        twice.status.code() == Some(2) && String::from_utf8(twice.stderr).unwrap().contains("before the --")
    );
    // A record that is none is set aside.
    fs::write(data.path().join("releases/agent/launch.json"), "{").unwrap();
    assert_eq!(launch(&["--hub", "http://x"]).output().unwrap().status.code(), Some(2));
    assert!(data.path().join("releases/agent/launch.json.damaged").exists());
}
