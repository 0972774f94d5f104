//! Backed up under load, killed, restored, again and again at random moments: everything that was accepted is there
//! once, nobody goes to a node, and keys, settings and releases go on working.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use fleet_manager::clock;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tokio::{sync::watch, task::JoinHandle, time};

use crate::{
    compare::{self, ALL, EVENTS, SAMPLES, Stored},
    generator::{Generator, Truth},
    given::{Agent, Hub, until},
};

/// Pause between two requests of one generator.
const PACE: Duration = Duration::from_millis(15);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How often the hub is backed up, killed and restored.
fn rounds() -> u64 {
    std::env::var("FLEET_RESTORES").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

fn seed() -> u64 {
    let given = std::env::var("FLEET_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| u64::from_le_bytes(clock::random()))
}

fn load(mut generator: Generator, stop: watch::Receiver<bool>) -> JoinHandle<Truth> {
    tokio::spawn(async move {
        let mut pace = time::interval(PACE);
        pace.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        while !*stop.borrow() {
            pace.tick().await;
            generator.load().await;
        }
        generator.truth
    })
}

/// Runs a verb; without a hub's address where `hub` is none.
pub(crate) async fn fleet(data: &Path, hub: Option<&Hub>, keys: &Path, verb: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleet"));
    command.arg("--data").arg(data).args(["-o", "json"]);
    if let Some(hub) = hub {
        command.args(["--hub", &format!("http://{}", hub.http), "--token", &hub.token()]);
    }
    command.args(verb).env_remove("FLEET_HUB").env("FLEET_PASSPHRASE", "").env("FLEET_RELEASE_KEYS", keys);
    command.stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// The same, which has to succeed; gives its JSON.
pub(crate) async fn done(data: &Path, hub: Option<&Hub>, keys: &Path, verb: &[&str]) -> Value {
    let output = fleet(data, hub, keys, verb).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{verb:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

/// Pushes, signs and rolls a release out to a node that joined, and waits until it runs there.
async fn release(hub: &Hub, folder: &Path, keys: &Path, node: &str, version: &str) {
    let file = folder.join("greeter.tar");
    let mut archive = tar::Builder::new(fs::File::create(&file).unwrap());
    for (name, text) in [
        ("greet", format!("#!/bin/sh\necho {version}\n")),
        ("skill.toml", "[health]\ncommand = [\"./greet\"]\n".to_owned()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap();
    let file = file.to_str().unwrap();
    let push = ["artifact", "push", file, "--name", "greeter", "--version", version, "--kind", "skill"];
    done(&hub.data, Some(hub), keys, &push).await;
    let release = format!("greeter@{version}");
    done(&hub.data, Some(hub), keys, &["release", "sign", &release]).await;
    let create = [
        "rollout",
        "create",
        &release,
        "--node",
        node,
        "--waves",
        "100%",
        "--soak",
        "1s",
        "--probation",
        "1s",
    ];
    done(&hub.data, Some(hub), keys, &create).await;
    let runs =
        async || hub.get(&format!("/api/v1/nodes/{node}")).await["versions"]["skills"]["greeter"].clone();
    until("the release runs", runs, |runs| runs == version).await;
    let state = async || hub.get("/api/v1/rollouts").await["items"][0]["state"].clone();
    until("the rollout is done", state, |state| state == "done").await;
}

/// Away with the old hub, and a new one out of the backup.
async fn restore(hub: &mut Hub, keys: &Path, backup: &Path, trail: Option<&Path>) -> Value {
    hub.kill();
    fs::remove_dir_all(&hub.data).unwrap();
    let mut verb = vec!["restore", backup.to_str().unwrap()];
    verb.extend(trail.iter().flat_map(|trail| ["--revocations", trail.to_str().unwrap()]));
    let report = done(&hub.data, None, keys, &verb).await;
    hub.up().await;
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_backed_up_under_load_is_restored_and_no_agent_needs_a_hand() {
    let (rounds, seed) = (rounds(), seed());
    println!("seed {seed}: FLEET_SEED={seed} FLEET_RESTORES={rounds} draws the same moments again");
    let mut rng = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let mut hub = Hub::start(&folder.path().join("hub")).await;
    let data = hub.data.clone();
    done(&data, Some(&hub), &keys, &["release", "init"]).await;
    let plain = Agent::new(folder.path(), "plain", hub.mqtt, &[]).started().await;
    let token = done(&data, Some(&hub), &keys, &["join-token", "create"]).await;
    let joined = Agent::joined(folder.path(), "joined", &hub, token["token"].as_str().unwrap()).await;
    // A node that is away for good: what it is told once stays in doubt.
    let ghost = folder.path().join("ghost.csv");
    fs::write(&ghost, "id,site\nghost,nowhere\n").unwrap();
    done(&data, Some(&hub), &keys, &["node", "import", ghost.to_str().unwrap()]).await;
    let told = ["command", "run", "ghost", "--kind", "restart", "--param", "what=agent", "--no-wait"];
    done(&data, Some(&hub), &keys, &told).await;
    release(&hub, folder.path(), &keys, "joined", "1.0.0").await;

    let (stop, stopping) = watch::channel(false);
    let agents = [&plain, &joined];
    let loads: Vec<_> = (agents.iter().zip(seed..))
        .map(|(agent, seed)| load(Generator::new(seed, agent.door.clone()), stopping.clone()))
        .collect();
    let pause = |rng: &mut StdRng| time::sleep(Duration::from_millis(rng.random_range(0..1_500)));
    let into = folder.path().join("backups");
    fs::create_dir(&into).unwrap();
    for round in 0..rounds {
        pause(&mut rng).await;
        let file = folder.path().join(format!("round-{round}.fleet-backup"));
        // Sometimes into a folder, sometimes with everything.
        let is_folder = rng.random_bool(0.5);
        let to = if is_folder { into.clone() } else { file };
        let mut verb = vec!["backup", to.to_str().unwrap()];
        verb.extend(rng.random_bool(0.5).then_some("--telemetry"));
        let made = done(&data, Some(&hub), &keys, &verb).await;
        assert!(made["opened"].as_u64().unwrap() >= 2, "{made}");
        pause(&mut rng).await;
        // All this the backup does not know of.
        let value = format!("apps.round={round}");
        done(&data, Some(&hub), &keys, &["config", "set", "fleet", &value]).await;
        let trail = folder.path().join("survived.jsonl");
        let survives = rng.random_bool(0.5);
        fs::copy(data.join("revocations.jsonl"), &trail).unwrap();
        let report = restore(&mut hub, &keys, &to, survives.then_some(&*trail)).await;
        assert_eq!(report["held"], u64::from(round == 0), "it is held once, and stays so: {report}");
        for agent in agents {
            let answered = async || agent.get("/api/v1/status").await["cloud"] == true;
            until("the birth is answered", answered, |answered| *answered).await;
        }
        let ledger = hub.get("/api/v1/ledger").await;
        assert_eq!(ledger["balanced"], true, "{ledger:#}");
        println!("round {round}: {report}");
    }
    stop.send_replace(true);
    let mut truths = Vec::new();
    for load in loads {
        truths.push(load.await.unwrap());
    }
    for agent in agents {
        agent.drained().await;
    }
    let drained = clock::mono();
    let ledger = compare::settled(&hub).await;
    let took = clock::mono().saturating_sub(drained);
    assert!(took < 2 * HEARTBEAT + Duration::from_secs(3), "settled {took:?} after all was delivered");
    for (agent, truth) in agents.iter().zip(&truths) {
        let stored = Stored::of(&hub, &agent.node, truth.last).await;
        stored.check_all(&agent.node, truth);
        let booked = |lanes| compare::term(&ledger, &agent.node, lanes, "stored");
        assert_eq!(booked(SAMPLES), stored.samples.len() as u64, "{}", agent.node);
        // The agent tells of its updates by events of its own.
        assert!(booked(EVENTS) >= stored.events.len() as u64, "{}", agent.node);
        assert_eq!(compare::term(&ledger, &agent.node, ALL, "lost"), 0);
        assert!(truth.samples.len() > 50, "{} was under load", agent.node);
    }
    let restored = hub.get("/api/v1/status").await["restored"].clone();
    assert_eq!((restored["nodes_back"].as_u64(), restored["nodes"].as_u64()), (Some(2), Some(3)));
    assert_eq!((restored["nodes_settled"].as_u64(), restored["records_lost"].as_u64()), (Some(2), Some(0)));
    assert!(restored["records_again"].as_u64().unwrap() > 0, "{restored}");
    println!("{restored}");

    // Settings reach nodes, whatever they were told by the hub that is gone.
    for node in ["plain", "joined"] {
        let layer = format!("node/{node}");
        let set = ["config", "set", &layer, "apps.after=true", "--wait"];
        done(&data, Some(&hub), &keys, &set).await;
    }
    // Releases that the node had not seen are installed, although it has seen later metadata than the backup's.
    release(&hub, folder.path(), &keys, "joined", "2.0.0").await;
    // Certificates are given: another machine joins, and what was held goes on by an operator's word.
    let token = done(&data, Some(&hub), &keys, &["join-token", "create"]).await;
    let late = Agent::joined(folder.path(), "late", &hub, token["token"].as_str().unwrap()).await;
    late.drained().await;
    let commands = hub.get("/api/v1/commands?node=ghost").await;
    assert_eq!(commands["items"][0]["held_count"], 1, "{commands}");
    let id = commands["items"][0]["id"].as_str().unwrap();
    done(&data, Some(&hub), &keys, &["command", "approve", id]).await;
    assert_eq!(hub.get("/api/v1/status").await["restored"]["held"], 0);
    let again = fleet(&data, Some(&hub), &keys, &["command", "approve", id]).await;
    assert_eq!(again.status.code(), Some(7), "it is held no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_does_not_run_is_backed_up_from_its_folder_and_only_a_whole_backup_has_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let mut hub = Hub::start(&folder.path().join("hub")).await;
    let data = hub.data.clone();
    let agent = Agent::new(folder.path(), "plain", hub.mqtt, &[]).started().await;
    let mut generator = Generator::new(1, agent.door.clone());
    assert!(generator.samples(200).await);
    agent.drained().await;
    hub.end().await;
    let file = folder.path().join("cold.fleet-backup");
    let cold = ["backup", file.to_str().unwrap()];
    let made = done(&data, None, &keys, &cold).await;
    assert_eq!(made["counts"]["nodes"], 1, "{made}");
    assert_eq!(fleet(&data, None, &keys, &cold).await.status.code(), Some(7), "it is not written over");
    done(&data, None, &keys, &["backup", "verify", file.to_str().unwrap()]).await;
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let bad = folder.path().join("bad.fleet-backup");
    fs::write(&bad, bytes).unwrap();
    assert_eq!(
        fleet(&data, None, &keys, &["backup", "verify", bad.to_str().unwrap()]).await.status.code(),
        Some(1)
    );
    assert_eq!(fleet(&data, None, &keys, &["backup", "verify", "nowhere"]).await.status.code(), Some(3));
    // Night after night into a folder: one stays.
    let nights = folder.path().join("nights");
    fs::create_dir(&nights).unwrap();
    let night = ["backup", nights.to_str().unwrap(), "--keep", "1"];
    let first = done(&data, None, &keys, &night).await;
    assert_eq!(first["pruned"]["removed"].as_array().map(Vec::len), Some(0), "{first}");
    let dry = done(&data, None, &keys, &[&night[..], &["--dry-run"]].concat()).await;
    assert_eq!(dry["pruned"]["removed"], Value::from(vec![first["file"].clone()]), "{dry}");
    // Its name is the second in which it was made.
    let next = async || fleet(&data, None, &keys, &night).await;
    let next = until("the next second", next, |ended| ended.status.code() != Some(7)).await;
    let second: Value = serde_json::from_slice(&next.stdout).unwrap();
    assert_eq!(second["pruned"]["removed"], Value::from(vec![first["file"].clone()]), "{second}");
    done(&data, None, &keys, &["backup", "verify", nights.to_str().unwrap()]).await;
    let misused = fleet(&data, None, &keys, &["backup", "x.fleet-backup", "--keep", "1"]).await;
    assert_eq!(misused.status.code(), Some(2), "only a folder has several");
    let full = fleet(&data, None, &keys, &["restore", file.to_str().unwrap()]).await;
    assert_eq!(full.status.code(), Some(7), "the folder is somebody's");

    // A hub that dies in the middle leaves nothing under the name, and removes what it left itself.
    hub.up().await;
    let (cut, pid) = (folder.path().join("cut.fleet-backup"), hub.pid());
    let verb = ["backup", cut.to_str().unwrap()];
    let (ended, ()) = tokio::join!(fleet(&data, Some(&hub), &keys, &verb), async {
        let partial = folder.path().join("cut.fleet-backup.partial");
        until("it begins", async || partial.exists() || cut.exists(), |begun| *begun).await;
        kill_process(pid, Signal::KILL).unwrap();
    });
    // It may have been quicker than the kill.
    assert_eq!(ended.status.success(), cut.exists());
    assert!(!folder.path().join("cut.fleet-backup.partial").exists());
    hub.kill();
    hub.up().await;
    assert!(!data.join("backup.tmp").exists());
    if cut.exists() {
        done(&data, None, &keys, &["backup", "verify", cut.to_str().unwrap()]).await;
    }
}

/// Waits until every node has a certificate of the newest CA.
async fn renewed(hub: &Hub) {
    let waiting = async || hub.get("/api/v1/pki").await["nodes_waiting_count"].clone();
    until("every node has renewed", waiting, |waiting| *waiting == 0).await;
}

async fn is_back(agent: &Agent) {
    let answered = async || agent.get("/api/v1/status").await["cloud"] == true;
    until("the birth is answered", answered, |answered| *answered).await;
}

/// The backup is older than a change of the CA. Nodes that renewed by the new one come back by what the file of
/// revocations says of it; those that trust only CAs that are lost are named, and come back with the old keys.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_come_back_to_a_hub_whose_backup_is_older_than_its_ca() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let mut hub = Hub::start(&folder.path().join("hub")).await;
    let data = hub.data.clone();
    let token = done(&data, Some(&hub), &keys, &["join-token", "create"]).await;
    let mut agent = Agent::joined(folder.path(), "joined", &hub, token["token"].as_str().unwrap()).await;
    agent.end().await;
    agent.set("HUB_TRUST_S", "1");
    agent.up().await;
    let mut generator = Generator::new(1, agent.door.clone());
    let (first, second) = (folder.path().join("1.fleet-backup"), folder.path().join("2.fleet-backup"));
    done(&data, Some(&hub), &keys, &["backup", first.to_str().unwrap()]).await;
    let rotate = async |hub: &Hub, more: &[&str]| {
        done(&data, Some(hub), &keys, &[&["pki", "rotate", "ca"], more].concat()).await
    };
    rotate(&hub, &[]).await;
    renewed(&hub).await;
    rotate(&hub, &["--finish"]).await;
    assert!(generator.samples(50).await);
    agent.drained().await;
    let trail = folder.path().join("survived.jsonl");
    fs::copy(data.join("revocations.jsonl"), &trail).unwrap();

    let report = restore(&mut hub, &keys, &first, Some(&trail)).await;
    assert_eq!((&report["authorities"], &report["join_again"]), (&Value::from(1), &Value::Null), "{report}");
    is_back(&agent).await;
    renewed(&hub).await;
    assert!(generator.samples(50).await);
    agent.drained().await;
    // By its new certificate, too.
    agent.end().await;
    agent.up().await;
    is_back(&agent).await;

    // The change goes to its end: the node hears that the CA of the backup is one no more.
    done(&data, Some(&hub), &keys, &["backup", second.to_str().unwrap()]).await;
    rotate(&hub, &[]).await;
    renewed(&hub).await;
    rotate(&hub, &["--finish"]).await;
    let settled = rotate(&hub, &["--finish"]).await;
    let pin = settled["authorities"][0]["pin"].as_str().unwrap().to_owned();
    let trusts = async || agent.get("/api/v1/status").await["identity"]["trust"].clone();
    until("it has heard", trusts, |trusts| *trusts == Value::from(vec![pin.clone()])).await;
    fs::copy(data.join("revocations.jsonl"), &trail).unwrap();
    let survived = folder.path().join("keys.json");
    fs::copy(data.join("pki/keys.json"), &survived).unwrap();
    let report = restore(&mut hub, &keys, &second, Some(&trail)).await;
    assert!(report["ca_dropped_ms"].is_i64(), "{report}");
    assert_eq!(report["join_again"], Value::from(vec!["joined"]), "{report}");
    hub.end().await;
    fs::copy(&survived, data.join("pki/keys.json")).unwrap();
    hub.up().await;
    is_back(&agent).await;
    assert!(generator.samples(50).await);
    agent.drained().await;
    let stored = Stored::of(&hub, "joined", generator.truth.last).await;
    stored.check_all("joined", &generator.truth);
}
