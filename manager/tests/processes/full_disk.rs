//! The hub's disk runs full: nothing is acked, `/readyz` says why, sessions stay; when space returns it goes on without a
//! restart.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::{
    compare::{self, Stored},
    generator::Generator,
    given::{Agent, Hub, ask, until},
};

/// What the hub says of itself: status of `/readyz`, and its reasons.
pub(crate) async fn readiness(hub: &Hub) -> (u16, String) {
    let (status, answer) = ask(hub.http, "/readyz").await.expect("it answers whatever its disk does");
    let reasons = answer["reasons"].as_array().unwrap().iter();
    (status, reasons.map(|reason| reason.as_str().unwrap()).collect::<Vec<_>>().join("; "))
}

/// Fills the hub's disk with samples of an agent; makes room; compares.
async fn run_full(hub: &Hub, folder: &Path, reason: &str, make_room: impl FnOnce()) {
    // An outbox that could hold all of it: nothing may be lost for want of space at the edge.
    let agent = Agent::new(folder, "writer", hub.mqtt, &[]).started().await;
    let quiet = Agent::new(folder, "quiet", hub.mqtt, &[]).started().await;
    let mut generator = Generator::new(1, agent.door.clone());
    let mut other = Generator::new(2, quiet.door.clone());
    assert!(other.events(1).await);
    quiet.drained().await;
    let session = agent.get("/api/v1/status").await["session"].clone();
    let mut full = (200, String::new());
    while full.0 == 200 {
        assert!(generator.samples(2_000).await);
        full = readiness(hub).await;
    }
    assert_eq!(full.0, 503);
    assert!(full.1.starts_with("nothing is acked: ") && full.1.contains(reason), "{full:?}");
    // Readers are served, the edge accepts, and nobody is told that anything was stored.
    let outbox = async || agent.get("/api/v1/outbox").await["unacked_batches"].as_u64().unwrap();
    assert!(generator.samples(2_000).await);
    until("batches wait for an ack", outbox, |unacked| *unacked > 0).await;
    let nodes = hub.get("/api/v1/nodes").await;
    assert_eq!(nodes["items"].as_array().map(Vec::len), Some(2));
    // It stays full however often the stores are opened again.
    for _ in 0..3 {
        assert!(generator.samples(500).await);
        let again = readiness(hub).await;
        assert_eq!(again.0, 503, "it is full, and nothing was stored meanwhile");
    }

    make_room();
    agent.drained().await;
    quiet.drained().await;
    until("it is ready again", async || readiness(hub).await, |ready| *ready == (200, String::new())).await;
    assert_eq!(agent.get("/api/v1/status").await["session"], session, "the session stayed");
    assert_eq!(hub.metric("fleet_gate_sessions_opened_total").await, 2.0);
    assert!(other.events(1).await);
    quiet.drained().await;
    let ledger = compare::settled(hub).await;
    for (agent, generator) in [(&agent, &generator), (&quiet, &other)] {
        let stored = Stored::of(hub, &agent.node, generator.truth.last).await;
        stored.check_all(&agent.node, &generator.truth);
        compare::check_ledger(&ledger, &agent.node, &stored);
        assert_eq!(compare::term(&ledger, &agent.node, compare::ALL, "lost"), 0);
    }
    assert_eq!(ledger["balanced"], Value::Bool(true));
}

/// A small filesystem of its own, gone with the value.
pub(crate) struct Small(pub(crate) PathBuf);

impl Small {
    pub(crate) fn mount(at: &Path) -> Option<Self> {
        Self::mount_of(at, "16m")
    }

    /// One of a size, as `mount` writes it.
    pub(crate) fn mount_of(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_filesystem_stops_acks_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(&folder.path().join("small")) else {
        println!(
            "skipped: a_full_filesystem_stops_acks_until_there_is_room needs the right to mount a tmpfs"
        );
        return;
    };
    // Something else takes most of the space, and goes.
    let ballast = small.0.join("ballast");
    fs::write(&ballast, vec![1; 6 << 20]).unwrap();
    // Its log lies on the same filesystem: not even that it can write.
    let hub = Hub::start(&small.0.join("hub")).await;
    run_full(&hub, folder.path(), "No space left on device", || {
        fs::remove_file(&ballast).unwrap();
        let more = ["-o", "remount,size=256m"];
        assert!(Command::new("mount").args(more).arg(&small.0).status().unwrap().success());
    })
    .await;
    drop(hub);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_file_sizes_stops_acks_until_it_is_lifted() {
    let folder = tempfile::tempdir().unwrap();
    // Blocks of 512 bytes; with the signal ignored, writes beyond fail as on a full disk.
    let limited = ["/bin/sh", "-c", "trap '' XFSZ; ulimit -S -f 10000; exec \"$0\" \"$@\""];
    let hub = Hub::start_wrapped(&folder.path().join("hub"), &limited).await;
    run_full(&hub, folder.path(), "File too large", || {
        prlimit(Some(hub.pid()), Resource::Fsize, Rlimit { current: None, maximum: None }).unwrap();
    })
    .await;
}
