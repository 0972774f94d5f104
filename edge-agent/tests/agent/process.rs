//! The binary: signals, exit codes, and the words to ask it.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::{Value, json};
use tokio::time;

use crate::{post, until};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_fleet-agent");

/// A running agent; killed when a test fails.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) api: SocketAddr,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Starts it, and reads from its log where it listens.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let api = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the agent ended before it ran");
            if let Some((_, rest)) = line.split_once("api=") {
                break rest.split_whitespace().next().unwrap().parse().unwrap();
            }
        };
        // Somebody must read the log on, or the agent would wait for it.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, api }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal; the exit code, which must come within 5 s.
    pub(crate) async fn end(&mut self, signal: Signal) -> Option<i32> {
        kill_process(self.pid(), signal).unwrap();
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status.code();
                }
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        time::timeout(Duration::from_secs(5), ended).await.expect("it ends within 5 s")
    }
}

pub(crate) fn command(data: &Path, verb: &str) -> Command {
    let mut command = Command::new(BINARY);
    command.arg(verb).arg("--data").arg(data).env_clear();
    command
}

fn run(data: &Path) -> Command {
    let mut command = command(data, "run");
    command.args(["--api", "127.0.0.1:0", "--node", "process"]);
    command
}

/// A verb that ends by itself: exit code, output, errors.
pub(crate) fn ask(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

async fn post_sample(api: SocketAddr) {
    let body = json!({"samples": [{"metric": "m", "value": 1}]});
    assert_eq!(post(&format!("http://{api}/api/v1/telemetry"), body).await.0, 202);
}

#[tokio::test]
async fn signals_end_it_cleanly_and_nothing_accepted_is_lost() {
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let mut agent = Process::start(run(&data));
        for _ in 0..5 {
            post_sample(agent.api).await;
        }
        let code = agent.end(signal).await;
        assert_eq!(code, if signal == Signal::KILL { None } else { Some(0) });
        let before = std::fs::read(data.join("outbox.redb")).unwrap();
        let (code, out, errors) = ask(command(&data, "outbox").args(["--api", &free(), "-o", "json"]));
        assert_eq!(code, 0, "{errors}");
        let view: Value = serde_json::from_str(&out).unwrap();
        // The machine's own figures may have been written with them.
        assert!(view["held_records"].as_u64().unwrap() >= 5, "{view}");
        assert!(std::fs::read(data.join("outbox.redb")).unwrap() == before, "looking changes nothing");
    }
}

#[tokio::test]
async fn a_running_agent_is_asked_over_its_api() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Process::start(run(folder.path()));
    post_sample(agent.api).await;
    let api = agent.api.to_string();
    let (code, out, errors) = ask(command(folder.path(), "status").args(["--api", &api, "-o", "json"]));
    assert_eq!(code, 0, "{errors}");
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&status["node_id"], &status["status"]), (&json!("process"), &json!("offline")));
    let (code, out, _) = ask(command(folder.path(), "status").args(["--api", &api]));
    assert!(code == 0 && out.contains("process") && out.contains("never"), "{out}");
    let (code, out, _) = ask(command(folder.path(), "outbox").args(["--api", &api]));
    assert!(code == 0 && out.contains("LANE"), "{out}");
    // A second agent on the same folder is refused, and asking at the wrong place says so.
    let (code, _, errors) = ask(&mut run(folder.path()));
    assert!(code == 1 && errors.contains("another agent runs on this data folder"), "{errors}");
    let (code, _, errors) = ask(command(folder.path(), "outbox").args(["--api", &free()]));
    assert!(code == 5 && errors.contains("--api"), "{errors}");
    assert_eq!(agent.end(Signal::TERM).await, Some(0));
}

#[tokio::test]
async fn devices_are_added_listed_and_removed_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Process::start(run(folder.path()));
    let api = agent.api.to_string();
    let device = |words: &[&str]| ask(command(folder.path(), "device").args(words).args(["--api", &api]));
    let (code, out, errors) = device(&["add", "the shed", "--kind", "microclaw", "--heartbeat", "60"]);
    assert!(code == 0 && out.contains("password  "), "{out} {errors}");
    assert!(errors.contains("under [devices]"), "no listener, and it says so: {errors}");
    let (code, out, _) = device(&["add", "gw", "--gateway", "-o", "json"]);
    let added: Value = serde_json::from_str(&out).unwrap();
    let password = added["password"].as_str().unwrap();
    assert_eq!((code, password.len(), &added["registered"]), (0, 32, &json!(true)));
    let (code, out, _) = device(&["ls", "-o", "json"]);
    let list: Value = serde_json::from_str(&out).unwrap();
    let row = |at: usize| ["id", "kind", "password", "gateway"].map(|key| list["items"][at][key].clone());
    assert_eq!((code, json!(row(0))), (0, json!(["gw", null, true, true])));
    assert_eq!(json!(row(1)), json!(["the shed", "microclaw", true, false]));
    assert!(!out.contains(password), "{out}");
    assert_eq!(device(&["rm", "the shed"]).0, 0);
    assert_eq!(device(&["rm", "the shed"]).0, 3);
    assert!(!device(&["ls"]).1.contains("the shed"));
    assert_eq!(device(&["add", ""]).0, 2);
    assert_eq!(agent.end(Signal::TERM).await, Some(0));
    let (code, out, errors) = device(&["add", "pit"]);
    assert!(code == 0 && out.contains("by its first session"), "{out} {errors}");
    assert_eq!(device(&["add", "pit", "--kind", "microclaw"]).0, 5, "nobody is there to keep its kind");
}

#[test]
fn mistakes_have_exit_codes_and_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = |arguments: &[&str]| {
        let (code, _, errors) = ask(command(folder.path(), arguments[0]).args(&arguments[1..]));
        (code, errors)
    };
    for (arguments, expected, hint) in [
        (&["run", "--hub", "http://x"][..], 2, "mqtt://host:port"),
        (&["run", "--node", "Not Valid"], 2, "node id"),
        (&["run", "--config", "/nonexistent.toml"], 2, "/nonexistent.toml"),
        (
            &[
                "run",
                "--api",
                "127.0.0.1:0",
                "--hub",
                "mqtt://127.0.0.1:1",
                "--node",
                "a",
                "--secret-file",
                "/nowhere/secret",
            ],
            1,
            "--secret-file",
        ),
        (&["run", "--api", "203.0.113.1:1", "--node", "a"], 1, "--api"),
        (&["status", "--api", &free()], 5, "fleet-agent run"),
        (&["outbox", "--api", &free()], 1, "outbox.redb"),
    ] {
        let (code, errors) = wrong(arguments);
        assert_eq!(code, expected, "{arguments:?}: {errors}");
        assert!(errors.contains(hint), "{arguments:?}: {errors}");
    }
    let (code, out, _) = ask(Command::new(BINARY).args(["run", "--help"]));
    assert!(code == 0 && out.contains("Examples:") && out.contains("/api/v1/telemetry"));
    let (code, out, _) = ask(command(folder.path(), "run")
        .args(["--print-config", "--node", "a"])
        .env("FLEET_HUB", "mqtt://h:1"));
    assert!(code == 0 && out.contains("id = \"a\"") && out.contains("url = \"mqtt://h:1\""), "{out}");
}

#[tokio::test]
async fn a_corrupt_outbox_is_set_aside_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("outbox.redb"), vec![7; 100_000]).unwrap();
    let mut agent = Process::start(run(folder.path()));
    let view: Value = crate::get_json(&format!("http://{}/api/v1/outbox", agent.api)).await;
    assert_eq!(view["lanes"]["event"]["held_records"], 1, "{view}");
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let aside = names.iter().find(|name| name.starts_with("outbox.redb.corrupt-")).expect("it is set aside");
    assert_eq!(std::fs::read(folder.path().join(aside)).unwrap(), vec![7; 100_000]);
    assert_eq!(agent.end(Signal::TERM).await, Some(0));
}

#[tokio::test]
async fn a_full_disk_is_answered_503_and_recovered_from_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    // A limit on the size of files, with the signal ignored: the writes fail as on a full disk.
    let mut limited = Command::new("/bin/sh");
    limited.env_clear().args([
        "-c",
        "trap '' XFSZ; ulimit -S -f 6000; exec \"$0\" run --data \"$1\" --api 127.0.0.1:0 --node full",
        BINARY,
    ]);
    limited.arg(folder.path()).env("FLEET_SYSTEM_INTERVAL_S", "0");
    let mut agent = Process::start(limited);
    let address = format!("http://{}/api/v1/telemetry", agent.api);
    let client = reqwest::Client::new();
    let noise = || f64::from(u32::from_le_bytes(fleet_edge_agent::clock::random())) / 7.0;
    let mut accepted = 0;
    let mut send = async || {
        let samples: Vec<_> = (0..2_000).map(|_| json!({"metric": "m", "value": noise()})).collect();
        let body = json!({ "samples": samples }).to_string();
        let post = client.post(&address).header("content-type", "application/json").body(body);
        let answer = post.send().await.unwrap();
        let status = answer.status().as_u16();
        if status == 202 {
            accepted += 2_000;
        } else {
            assert_eq!((status, &answer.headers()["retry-after"]), (503, &"5".parse().unwrap()));
        }
        status
    };
    until("the disk is full", &mut send, |status| *status == 503).await;
    let health = reqwest::get(format!("http://{}/healthz", agent.api)).await.unwrap();
    assert_eq!(health.status(), 200);
    prlimit(Some(agent.pid()), Resource::Fsize, Rlimit { current: None, maximum: None }).unwrap();
    until("it accepts again", &mut send, |status| *status == 202).await;
    let view: Value = crate::get_json(&format!("http://{}/api/v1/outbox", agent.api)).await;
    assert_eq!(view["held_records"], accepted, "{view}");
    assert_eq!(agent.end(Signal::TERM).await, Some(0));
}

/// An address where nobody listens.
fn free() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}
