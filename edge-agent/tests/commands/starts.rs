//! What a start makes of commands that were under way: the binary, killed and asked to start again.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use fleet_schemas::command::{Offer, State};
use rustix::process::Pid;
use serde_json::json;

use crate::{
    hub::{Hub, offer},
    until,
};

/// A running agent; killed when a test fails.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(data: &Path, hub: &Hub) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleet-agent"));
    command.args([
        "run",
        "--api",
        "127.0.0.1:0",
        "--node",
        "starts",
        "--hub",
        &format!("mqtt://{}", hub.address),
    ]);
    command.arg("--data").arg(data).env_clear().env("FLEET_SECRET", "secret-starts").stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("api=") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "the agent ended before it ran");
    }
    // Somebody must read the log on, or the agent would wait for it.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    Process(child)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_what_must_not_run_twice_and_repeats_what_may() {
    let hub = Hub::start("starts");
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let list = "[command.mark]\nprogram = \"/bin/sh\"\nargs = [\"-c\", \"{script}\"]\nparams.script.type = \"text\"\n";
    std::fs::write(data.join("commands.toml"), list).unwrap();
    let marks = |name: &str| folder.path().join(name);
    let script = |number: u64, name: &str| {
        // The second run finds the mark of the first, and ends.
        let file = marks(name).display().to_string();
        let text = format!("echo $$ >> {file}; [ $(wc -l < {file}) -gt 1 ] || sleep 1000");
        let queue = fleet_schemas::MetricName::parse(name).unwrap();
        Offer { queue, ..offer(number, "exec", &json!({"name": "mark", "args": {"script": text}})) }
    };
    let mut agent = start(&data, &hub);
    until("a birth", async || hub.births().len(), |births| *births == 1).await;
    let once = hub.want(script(1, "once"));
    let often = hub.want(Offer { idempotent: true, ..script(2, "often") });
    let (one, two) = (marks("once"), marks("often"));
    let runs = |path: &Path| -> Vec<i32> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    until("both run", async || (runs(&one), runs(&two)), |(one, two)| !one.is_empty() && !two.is_empty())
        .await;
    agent.0.kill().unwrap();
    agent.0.wait().unwrap();
    let _agent = start(&data, &hub);
    let (end, _) = hub.end(once).await;
    let reason = end.reason.unwrap();
    assert_eq!(
        (end.state, reason.code.as_str(), reason.may_have_executed),
        (State::Failed, "interrupted", true)
    );
    assert_eq!(hub.end(often).await.0.state, State::Succeeded);
    assert_eq!((runs(&one).len(), runs(&two).len()), (1, 2));
    let orphan = Pid::from_raw(runs(&one)[0]).unwrap();
    // Its parent is gone, so whoever reaps orphans here may take a moment.
    let state = async || std::fs::read_to_string(format!("/proc/{}/stat", orphan.as_raw_nonzero())).ok();
    let dead = |stat: &Option<String>| stat.as_ref().is_none_or(|stat| stat.contains(") Z "));
    until("the orphan is ended", state, dead).await;
    let held = hub.births().last().unwrap().commands.clone().unwrap();
    assert!(held.contains(&often) || hub.reports(often).len() > 2, "a birth says what is held");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_completed_by_the_next_start() {
    let hub = Hub::start("starts");
    let folder = tempfile::tempdir().unwrap();
    let mut agent = start(folder.path(), &hub);
    until("a birth", async || hub.births().len(), |births| *births == 1).await;
    let id = hub.want(offer(1, "restart", &json!({"what": "agent"})));
    let (end, _) = hub.end(id).await;
    assert_eq!(end.state, State::Succeeded);
    let births = hub.births();
    assert_ne!(births.first().unwrap().instance, births.last().unwrap().instance, "it is another start");
    assert!(agent.0.try_wait().unwrap().is_none(), "in the place of the first");
}
