//! Configuration over a real gate: a document comes, is applied while the agent runs, and is left behind when it fails.

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use fleet_edge_agent::{clock::Clock, run::Handle};
use fleet_schemas::{
    NodeId, SessionId, StoreId, Topic, VERSION, cbor,
    config::{Desired, Held, Reported, Version, hash},
    topic::Down,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    drivers::driver,
    get_json,
    hub::{Hub, Said, connected},
    process::{Process, command},
    script, start, until, url,
};

/// The hub's wish for one node; said by the tests as a hub does, until it is received.
struct Wish {
    n: u64,
    doc: Value,
    retry: u64,
}

impl Wish {
    fn held(&self) -> Held {
        let version = Version { epoch: 3, n: self.n };
        Held { version, hash: hash(&cbor::encode(&self.doc)), retry: self.retry }
    }

    fn say(&self, hub: &Hub, node: &str, session: SessionId) {
        let Held { version, retry, .. } = self.held();
        let desired = Desired {
            v: VERSION,
            store_id: StoreId([9; 16]),
            session,
            hub_ms: Clock::new(Default::default()).now().wall_ms,
            version,
            doc: cbor::encode(&self.doc),
            retry,
        };
        let topic = Topic::Down(NodeId::parse(node).unwrap(), Down::Config);
        hub.publisher.publish(&topic, cbor::encode(&desired).into()).unwrap();
    }
}

/// Hears what the node reports until it pleases; says the wish as long as it is not received.
fn hears(hub: &Hub, node: &str, wish: &Wish, mut pleases: impl FnMut(&Reported) -> bool) -> Reported {
    hub.hear("a report of the configuration", |said| {
        let (session, reported) = match said {
            Said::Birth(birth) => (birth.session, birth.config),
            Said::Heartbeat(heartbeat) => (heartbeat.session, heartbeat.config),
            Said::Death(_) | Said::Batch(..) => return None,
        };
        let reported = reported.expect("it takes documents");
        if reported.received != Some(wish.held()) {
            wish.say(hub, node, session);
        }
        pleases(&reported).then_some(reported)
    })
}

async fn view(agent: &Handle) -> Value {
    get_json(&url(agent, "/api/v1/config")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_is_applied_while_the_agent_runs() {
    let hub = Hub::start("127.0.0.1:0", true);
    let (folder, mut config) = connected("config-1", hub.address);
    config.desired.probation = Duration::from_secs(20);
    // Nothing but news is told at once.
    config.node.heartbeat = Duration::from_secs(600);
    let kept = folder.path().join("kept");
    let lines = |file: &Path, value: u64| {
        let line = format!(r#"{{"sensor":"s","values":{{"v":{value}}}}}"#);
        format!("echo $$ >> {0}\necho '{line}'\nexec sleep 1000 >/dev/null", file.display())
    };
    let program = script(folder.path(), "kept", &lines(&kept.with_extension("pid"), 1));
    config.driver = vec![driver("kept", program.clone(), None, Duration::from_secs(600))];
    let agent = start(config).await;
    let wish = Wish {
        n: 1,
        doc: json!({
            "node": {"heartbeat_s": 0.5},
            "system": {"interval_s": 0.1},
            "driver": [{"name": "kept", "program": program, "timeout_s": 600}],
            "apps": {"modem": {"apn": "field"}},
        }),
        retry: 0,
    };
    let watched = agent.config();
    let reported = hears(&hub, "config-1", &wish, |reported| reported.applied == Some(wish.held()));
    assert_eq!((reported.received, reported.failed), (Some(wish.held()), None));
    // It lives by it: the heartbeats tell the new interval and the machine's figures.
    hub.hear("a heartbeat by the new interval", |said| match said {
        Said::Heartbeat(heartbeat) if heartbeat.interval_ms == 500 && !heartbeat.system.is_empty() => {
            Some(())
        }
        Said::Heartbeat(_) | Said::Birth(_) | Said::Death(_) | Said::Batch(..) => None,
    });
    let seen = until("applied", async || view(&agent).await, |view| view["state"] == "applied").await;
    assert_eq!(seen["doc"]["apps"]["modem"]["apn"], "field");
    assert_eq!(seen["applied"]["version"], json!({"epoch": 3, "n": 1}));
    assert_eq!(watched.borrow().state, "applied");
    // What did not change was not disturbed.
    assert_eq!(std::fs::read_to_string(kept.with_extension("pid")).unwrap().lines().count(), 1);
    // The next one is waited for, and is not allowed: the first one runs on.
    let tag = seen["tag"].as_str().unwrap().to_owned();
    let waits = url(&agent, &format!("/api/v1/config?wait_s=60&after={tag}"));
    let waiting = tokio::spawn(async move { get_json(&waits).await });
    let bad = Wish {
        n: 2,
        doc: json!({"driver": [
            {"name": "kept", "program": program, "timeout_s": 600},
            {"name": "more", "program": program, "args": ["x"], "timeout_s": 600},
        ]}),
        retry: 0,
    };
    let reported = hears(&hub, "config-1", &bad, |reported| reported.failed.is_some());
    assert_eq!((reported.received, reported.applied), (Some(bad.held()), Some(wish.held())));
    let failed = reported.failed.unwrap();
    assert_eq!(failed.code, "not_allowed", "{}", failed.message);
    assert!(failed.message.contains("agent.toml"), "{}", failed.message);
    assert_ne!(waiting.await.unwrap()["tag"], json!(tag));
    until("the first runs on", async || view(&agent).await, |view| view["doc"] == wish.doc).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_does_not_start_fails_the_self_check_and_is_returned_from() {
    let hub = Hub::start("127.0.0.1:0", true);
    let (folder, mut config) = connected("config-2", hub.address);
    config.desired.programs = vec![format!("{}/", folder.path().display())];
    let agent = start(config).await;
    let fails = script(folder.path(), "fails", "exit 3");
    let driver = |program: &Path| json!({"driver": [{"name": "d", "program": program, "every_s": 3600}]});
    let wish = Wish { n: 1, doc: driver(&fails), retry: 0 };
    let reported = hears(&hub, "config-2", &wish, |reported| reported.failed.is_some());
    let failed = reported.failed.unwrap();
    assert_eq!((failed.code.as_str(), reported.applied), ("self_check", None));
    assert!(failed.message.contains("driver d") && failed.message.contains('3'), "{}", failed.message);
    // It is mended on the node, and an operator asks for another try.
    std::fs::write(&fails, "#!/bin/sh\nexit 0\n").unwrap();
    std::fs::set_permissions(&fails, std::fs::Permissions::from_mode(0o755)).unwrap();
    let again = Wish { retry: 1, ..wish };
    let reported = hears(&hub, "config-2", &again, |reported| reported.applied == Some(again.held()));
    assert_eq!(reported.failed, None);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_does_not_answer_any_more_is_returned_for() {
    // It answers no birth: whatever runs then cannot prove itself.
    let hub = Hub::start("127.0.0.1:0", false);
    let (_folder, mut config) = connected("config-3", hub.address);
    config.desired.probation = Duration::from_secs(1);
    let agent = start(config).await;
    let wish = Wish { n: 1, doc: json!({"apps": {"modem": "off"}}), retry: 0 };
    let returned = |reported: &Reported| reported.failed.is_some() && reported.applied.is_none();
    let reported = hears(&hub, "config-3", &wish, returned);
    assert_eq!(reported.failed.unwrap().code, "lost_hub");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_while_it_applies_goes_on_at_the_next_start() {
    let hub = Hub::start("127.0.0.1:0", true);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir_all(data.join("identity")).unwrap();
    std::fs::write(data.join("identity/secret"), "secret-config-4\n").unwrap();
    let runs = || {
        let mut run = command(&data, "run");
        run.args(["--api", "127.0.0.1:0", "--node", "config-4", "--hub", &format!("mqtt://{}", hub.address)]);
        run.env("FLEET_NODE_HEARTBEAT_S", "0.3").env("FLEET_DESIRED_PROBATION_S", "20");
        run.env("FLEET_DESIRED_PROGRAMS", format!("[\"{}/\"]", folder.path().display()))
            .env("PATH", "/bin:/usr/bin");
        run
    };
    // The self-check watches it for two seconds: time to kill.
    let slow = script(folder.path(), "slow", "exec sleep 1000 >/dev/null");
    let wish = Wish {
        n: 1,
        doc: json!({"driver": [{"name": "slow", "program": slow, "timeout_s": 600}], "log": {"level": "debug"}}),
        retry: 0,
    };
    let mut agent = Process::start(runs());
    hears(&hub, "config-4", &wish, |reported| {
        assert_eq!(reported.applied, None);
        reported.received == Some(wish.held())
    });
    agent.end(Signal::KILL).await;
    let mut agent = Process::start(runs());
    let at = format!("http://{}/api/v1/config", agent.api);
    let state = until("applied", async || get_json(&at).await, |view| view["state"] == "applied").await;
    assert_eq!(state["doc"], wish.doc);
    let reported = hears(&hub, "config-4", &wish, |reported| reported.applied == Some(wish.held()));
    assert_eq!(reported.failed, None);
    // Killed when it is applied: it begins with it.
    agent.end(Signal::KILL).await;
    let mut agent = Process::start(runs());
    let at = format!("http://{}/api/v1/config", agent.api);
    let running = async || get_json(&at).await;
    until("it runs at once", running, |view| view["state"] == "applied" && view["doc"] == wish.doc).await;
    // One that ends the agent each time is given up.
    let fatal =
        Wish { n: 2, doc: json!({"driver": [{"name": "slow", "program": slow, "every_s": 600}]}), retry: 0 };
    for _ in 0..3 {
        let at = format!("http://{}/api/v1/config", agent.api);
        let trying = async || get_json(&at).await;
        hears(&hub, "config-4", &fatal, |reported| reported.received == Some(fatal.held()));
        until("it is tried", trying, |view| view["state"] == "trying").await;
        agent.end(Signal::KILL).await;
        agent = Process::start(runs());
    }
    let reported = hears(&hub, "config-4", &fatal, |reported| reported.failed.is_some());
    assert_eq!((reported.failed.unwrap().code.as_str(), reported.applied), ("crashed", Some(wish.held())));
    assert_eq!(agent.end(Signal::TERM).await, Some(0));
}
