//! SIGKILL of hub and agents under commands that leave a mark on disk: every execution ends in exactly one terminal
//! state, and the marks agree with it.
//!
//! Short unless `FLEET_COMMANDS`, `FLEET_COMMAND_NODES` and `FLEET_COMMAND_S` (how many commands, for how many nodes,
//! how many seconds of kills) say otherwise; the full size is 2000, 20 and 120.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fleet_manager::clock;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{sync::Mutex, time};

use crate::given::{Agent, Hub, until};

/// What a command does: leaves a mark, and takes a while, so that kills meet it running.
const PROGRAM: &str = "#!/bin/sh\necho run >> \"$1\"\n/bin/sleep \"$2\"\n";
/// Queues that commands are spread over, so that several run at once.
const QUEUES: u32 = 3;
/// Of so many commands one is for all nodes.
const TO_ALL: u32 = 50;
/// Of so many commands one is wanted back right after.
const TAKEN_BACK: u32 = 20;
/// How long most commands may wait: longer than the test.
const TTL_S: f64 = 3_600.0;

/// How much there is to do.
#[derive(Debug, Clone, Copy)]
struct Size {
    commands: u32,
    nodes: u32,
    kills: Duration,
}

impl Size {
    fn read() -> Self {
        let number = |name: &str, usual: u32| {
            std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
        };
        Self {
            commands: number("FLEET_COMMANDS", 200),
            nodes: number("FLEET_COMMAND_NODES", 6),
            kills: Duration::from_secs(number("FLEET_COMMAND_S", 12).into()),
        }
    }
}

/// What was asked of the hub, by the name of the mark.
#[derive(Debug, Default)]
struct Asked {
    /// Answered with this id.
    made: BTreeMap<String, String>,
    /// Without an answer: there is such a command, or not.
    maybe: BTreeSet<String>,
}

/// An agent with an allow-list of the one program.
async fn agent(folder: &Path, n: u32, hub: &Hub) -> Agent {
    let node = format!("cmd-{n}");
    let data = folder.join(&node);
    let program = folder.join("mark");
    std::fs::create_dir_all(data.join("marks")).unwrap();
    let allow = format!(
        "[command.mark]\nprogram = {program:?}\nargs = [\"{{file}}\", \"{{seconds}}\"]\ncwd = {:?}\n\
         [command.mark.params.file]\ntype = \"word\"\n[command.mark.params.seconds]\ntype = \"word\"\n",
        data.join("marks")
    );
    std::fs::write(data.join("commands.toml"), allow).unwrap();
    Agent::new(folder, &node, hub.mqtt, &[]).started().await
}

/// Asks for commands at a steady pace. A request that may have reached the hub is never repeated.
async fn ask_all(hub: Arc<Mutex<Hub>>, size: Size, mut rng: StdRng) -> Asked {
    let mut asked = Asked::default();
    let mut pace = time::interval(size.kills / size.commands);
    pace.set_missed_tick_behavior(time::MissedTickBehavior::Burst);
    let (http, token) = {
        let hub = hub.lock().await;
        (hub.http, hub.token())
    };
    let client = reqwest::Client::new();
    for n in 0..size.commands {
        pace.tick().await;
        let tag = format!("m{n}");
        let seconds = f64::from(rng.random_range(0..30_u32)) / 100.0;
        let mut body = json!({
            "kind": "exec",
            "params": { "name": "mark", "args": { "file": tag, "seconds": seconds.to_string() } },
            "queue": format!("q{}", rng.random_range(0..QUEUES)),
            "idempotent": n % 2 == 0,
            // Some are late for their nodes.
            "ttl_s": if n % 10 == 3 { 1.5 } else { TTL_S },
        });
        if n % TO_ALL == 0 {
            body["all"] = json!(true);
        } else {
            body["nodes"] = json!([format!("cmd-{}", rng.random_range(0..size.nodes))]);
        }
        let post = |path: String, body: String| {
            let request = client.post(format!("http://{http}/api/v1/{path}")).bearer_auth(&token);
            request.header("content-type", "application/json").body(body).send()
        };
        let answer = loop {
            match post("commands".to_owned(), body.to_string()).await {
                Err(error) if error.is_connect() => time::sleep(Duration::from_millis(50)).await,
                answer => break answer,
            }
        };
        let made = match answer {
            Ok(answer) if answer.status().as_u16() == 202 => answer.json::<Value>().await.ok(),
            // Stopping, or not yet ready: the body says that nothing was done, or nobody knows.
            Ok(answer) => {
                assert!(answer.status().is_server_error(), "{tag}: {}", answer.status());
                None
            }
            Err(_) => None,
        };
        let Some(id) = made.and_then(|made| Some(made["id"].as_str()?.to_owned())) else {
            asked.maybe.insert(tag);
            continue;
        };
        if n % TAKEN_BACK == 7 {
            // Whether it arrives is not the question: it may come too late anyway.
            let _ = post(format!("commands/{id}/cancel"), "{}".to_owned()).await;
        }
        asked.made.insert(tag, id);
    }
    asked
}

/// Kills one of them after another, at random moments, until time is over.
async fn kill_all(hub: Arc<Mutex<Hub>>, agents: Arc<Mutex<Vec<Agent>>>, size: Size, seed: u64) -> [u32; 2] {
    let until = clock::mono() + size.kills;
    let killer_of_hubs = async {
        let (mut rng, mut kills) = (StdRng::seed_from_u64(!seed), 0);
        while clock::mono() < until {
            time::sleep(Duration::from_millis(rng.random_range(1_500..4_000))).await;
            let mut hub = hub.lock().await;
            hub.kill();
            hub.up().await;
            kills += 1;
        }
        kills
    };
    let killer_of_agents = async {
        let (mut rng, mut kills) = (StdRng::seed_from_u64(seed), 0);
        while clock::mono() < until {
            time::sleep(Duration::from_millis(rng.random_range(300..1_500))).await;
            let mut agents = agents.lock().await;
            let which = rng.random_range(0..agents.len());
            agents[which].kill();
            agents[which].up().await;
            kills += 1;
        }
        kills
    };
    let (hubs, agents) = tokio::join!(killer_of_hubs, killer_of_agents);
    [hubs, agents]
}

/// Every command that the hub knows, whole.
async fn commands(hub: &Hub) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = hub.get(&format!("/api/v1/commands?limit=500{cursor}")).await;
        for item in page["items"].as_array().unwrap() {
            let id = item["id"].as_str().unwrap();
            all.push(hub.get(&format!("/api/v1/commands/{id}?limit=500")).await);
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return all,
        }
    }
}

/// How often a mark was left at a node.
fn marks(folder: &Path, node: &str, tag: &str) -> usize {
    let path: PathBuf = folder.join(node).join("marks").join(tag);
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

const OVER: [&str; 7] = ["succeeded", "failed", "timed_out", "rejected", "canceled", "expired", "superseded"];

/// What must hold of one execution; its state, and whether nobody can tell if it ran.
fn check(folder: &Path, tag: &str, idempotent: bool, execution: &Value) -> (String, bool) {
    let node = execution["node"].as_str().unwrap();
    let history = execution["history"].as_array().unwrap();
    let (last, before) = history.split_last().unwrap();
    let state = last["state"].as_str().unwrap();
    let over = |step: &Value| OVER.contains(&step["state"].as_str().unwrap());
    assert!(
        over(last) && !before.iter().any(over),
        "{tag} at {node}: exactly one terminal state: {execution}"
    );
    let in_doubt = last["reason"]["may_have_executed"] == json!(true);
    let ran = marks(folder, node, tag);
    assert!(idempotent || ran <= 1, "{tag} at {node} is not idempotent and ran {ran} times: {execution}");
    match state {
        "succeeded" => assert!(ran > 0, "{tag} at {node} never ran: {execution}"),
        // A cancel may meet it running; the node says so.
        _ if in_doubt => {}
        "canceled" | "expired" | "rejected" | "superseded" => {
            assert_eq!(ran, 0, "{tag} at {node} ran: {execution}");
        }
        _ => panic!("{tag} at {node}: nothing here fails without a doubt: {execution}"),
    }
    (state.to_owned(), in_doubt)
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_end_once_and_run_as_promised_whatever_is_killed() {
    let size = Size::read();
    let seed = std::env::var("FLEET_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from_le_bytes(clock::random()));
    println!("seed {seed}, {size:?}");
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("mark");
    std::fs::write(&program, PROGRAM).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let hub = Hub::start(&folder.path().join("hub")).await;
    let mut agents = Vec::new();
    for n in 0..size.nodes {
        agents.push(agent(folder.path(), n, &hub).await);
    }
    let known = async || hub.get("/api/v1/nodes?limit=500").await["items"].as_array().unwrap().len();
    until("all nodes are known", known, |count| *count == size.nodes as usize).await;
    let (hub, agents) = (Arc::new(Mutex::new(hub)), Arc::new(Mutex::new(agents)));
    let asking = tokio::spawn(ask_all(hub.clone(), size, StdRng::seed_from_u64(seed)));
    let kills = kill_all(hub.clone(), agents.clone(), size, seed).await;
    let asked = asking.await.unwrap();

    let hub = hub.lock().await;
    let mut agents = agents.lock().await;
    // Once more, so that none waits for long before it tries to connect.
    for agent in agents.iter_mut() {
        agent.kill();
        agent.up().await;
    }
    for state in ["queued", "sent", "accepted", "running"] {
        let path = format!("/api/v1/commands?state={state}&limit=5");
        let open = async || hub.get(&path).await["items"].clone();
        until(&format!("nothing is {state}"), open, |items| *items == json!([])).await;
    }
    let (mut ends, mut doubts, mut known) = (BTreeMap::<String, u32>::new(), 0, BTreeMap::new());
    for command in commands(&hub).await {
        let tag = command["params"]["args"]["file"].as_str().unwrap().to_owned();
        for execution in command["executions"].as_array().unwrap() {
            let (state, in_doubt) =
                check(folder.path(), &tag, command["idempotent"] == json!(true), execution);
            *ends.entry(state).or_default() += 1;
            doubts += u32::from(in_doubt);
        }
        let id = command["id"].as_str().unwrap().to_owned();
        assert_eq!(known.insert(tag.clone(), id), None, "{tag} is one command");
    }
    for (tag, id) in &asked.made {
        assert_eq!(known.get(tag), Some(id), "{tag} was answered 202 and is not there");
    }
    for n in 0..size.nodes {
        for mark in std::fs::read_dir(folder.path().join(format!("cmd-{n}/marks"))).unwrap() {
            let tag = mark.unwrap().file_name().into_string().unwrap();
            assert!(known.contains_key(&tag), "cmd-{n} ran {tag}, which the hub does not know");
        }
    }
    assert!(known.keys().all(|tag| asked.made.contains_key(tag) || asked.maybe.contains(tag)));
    let all: u32 = ends.values().sum();
    assert!(ends.get("succeeded").is_some_and(|done| *done > all / 2), "most are done: {ends:?}");
    println!(
        "{} commands ({} without an answer), {all} executions {ends:?}, {doubts} in doubt; kills: {} of the hub, {} of agents",
        known.len(),
        asked.maybe.len(),
        kills[0],
        kills[1]
    );
}
