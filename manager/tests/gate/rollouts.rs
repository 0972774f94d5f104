//! Rollouts of a whole hub over real agents and sockets: gates over what the agents measured, the verbs, what is told of
//! them over SSE and MQTT, and firmware of a board behind a node.

use std::{collections::BTreeMap, fmt::Debug, net::SocketAddr, path::PathBuf, sync::Mutex, time::Duration};

use fleet_edge_agent::{
    config::Config,
    identity::join::{Outcome, Wish, WishedId, join},
    run as agent,
};
use fleet_manager::{
    artifact::Pushed,
    clock,
    release::{Entry, Key, Signers, make},
};
use fleet_schemas::{
    NodeId,
    update::{Custom, Digest, Target},
};
use futures_util::StreamExt as _;
use reqwest::{Method, StatusCode};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{sync::mpsc, time};

use crate::given::{PATIENCE, Site};

/// A hub with signed releases, and agents that joined it.
struct Fleet {
    site: Site,
    keys: [Key; 2],
    entries: Mutex<BTreeMap<Target, Entry>>,
    agents: BTreeMap<String, agent::Handle>,
    folder: TempDir,
    admin: String,
}

impl Fleet {
    async fn new(nodes: &[&str]) -> Self {
        let site = Site::start().await;
        let keys = [Key::generate().unwrap(), Key::generate().unwrap()];
        let releases = site.running.hub.releases().unwrap();
        let (snapshot, timestamp) = releases.online_keys();
        let [root, targets] = [0, 1].map(|at: usize| vec![keys[at].public()]);
        let signers = Signers { root, targets, snapshot, timestamp };
        let now_ms = clock::wall_ms();
        let root = make::sign(make::root(1, &signers, now_ms).unwrap(), &[&keys[0]]).unwrap();
        let none = make::sign(make::targets(1, &BTreeMap::new(), now_ms).unwrap(), &[&keys[1]]).unwrap();
        releases.publish(Some(&root), Some(&none)).unwrap();
        let admin = site.running.admin.clone().unwrap();
        let folder = TempDir::new().unwrap();
        let mut fleet =
            Self { site, keys, entries: Mutex::default(), agents: BTreeMap::new(), folder, admin };
        for node in nodes {
            fleet.joins(node).await;
        }
        fleet
    }

    fn data(&self, node: &str) -> PathBuf {
        self.folder.path().join(node)
    }

    async fn joins(&mut self, node: &str) {
        let data = self.data(node);
        let token = self.site.token(|_| ()).await;
        let hub = self.site.running.addresses.node_https.unwrap().to_string().parse().unwrap();
        let id = NodeId::parse(node).unwrap();
        let wish =
            Wish { hub, token, node: WishedId::Told(id), name: None, data: data.clone(), force: false };
        assert!(matches!(join(&wish, |_| ()).await.unwrap(), Outcome::Joined(_)));
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut config = Config { data, ..Config::default() };
        config.api.listen = any;
        config.devices.listen = Some(any);
        config.devices.open = true;
        config.system.interval = Duration::from_millis(500);
        config.outbox.upload = Duration::from_millis(500);
        config.outbox.prompt = Duration::from_millis(500);
        self.agents.insert(node.to_owned(), agent::start(config).await.unwrap());
        let online = async || self.get(&format!("nodes/{node}")).await["state"].clone();
        until("it is online", online, |state| *state == "online").await;
    }

    /// Pushes and signs something, whatever was signed before.
    fn release(&self, target: &str, bytes: &[u8], device_kind: Option<&str>) {
        let target: Target = target.parse().unwrap();
        let digest = Digest(Sha256::digest(bytes).into());
        let pushed = Pushed {
            target: target.clone(),
            at_ms: clock::wall_ms(),
            by: "operator test".to_owned(),
            min_from: None,
            device_kind: device_kind.map(str::to_owned),
        };
        let releases = self.site.running.hub.releases().unwrap();
        let length = bytes.len() as u64;
        releases.artifacts().begin(digest, length, pushed).unwrap();
        let upload = releases.artifacts().upload(&digest).unwrap();
        upload.append(0, bytes).unwrap();
        releases.artifacts().complete(&upload).unwrap();
        let mut entries = self.entries.lock().unwrap();
        let custom = Custom { device_kind: device_kind.map(str::to_owned), ..Custom::default() };
        entries.insert(target, Entry { length, digest, custom });
        let version = 1 + entries.len() as u64;
        let listed = make::targets(version, &entries, clock::wall_ms()).unwrap();
        releases.publish(None, Some(&make::sign(listed, &[&self.keys[1]]).unwrap())).unwrap();
    }

    fn skill(&self, version: &str) {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(version.len() as u64);
        builder.append_data(&mut header, "version", version.as_bytes()).unwrap();
        let bytes = builder.into_inner().unwrap();
        self.release(&format!("skill/greeter/{version}/any"), &bytes, None);
    }

    fn runs(&self, node: &str) -> Option<String> {
        std::fs::read_to_string(self.data(node).join("releases/skill/greeter/current/version")).ok()
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/v1/{path}", self.site.running.addresses.http_url())
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
    ) -> (StatusCode, Value) {
        let mut request = reqwest::Client::new().request(method, self.url(path)).bearer_auth(&self.admin);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn get(&self, path: &str) -> Value {
        self.ask(Method::GET, path, None, None).await.1
    }

    /// Makes a rollout to all, with terms beside what is quick.
    async fn create(&self, release: &str, more: Value) -> String {
        let mut terms = json!({
            "waves": ["1", "100%"], "soak_s": 0.3, "probation_s": 0, "max_failures": "0%", "min_executed": 1,
        });
        terms.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let body = json!({"release": release, "all": true, "terms": terms});
        let (status, made) = self.ask(Method::POST, "rollouts", Some(&body), None).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        made["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a rollout looks so.
    async fn sees(&self, id: &str, what: &str, pleases: impl FnMut(&Value) -> bool) -> Value {
        until(what, async || self.get(&format!("rollouts/{id}")).await, pleases).await
    }

    async fn act(&self, id: &str, verb: &str, reason: Option<&str>) -> (StatusCode, Value) {
        let body = reason.map_or(json!({}), |reason| json!({ "reason": reason }));
        self.ask(Method::POST, &format!("rollouts/{id}/{verb}"), Some(&body), None).await
    }

    async fn stop(self) {
        for agent in self.agents.into_values() {
            agent.stop().await;
        }
        self.site.stop().await;
    }
}

async fn until<T: Debug>(
    what: &str,
    mut ask: impl AsyncFnMut() -> T,
    mut pleases: impl FnMut(&T) -> bool,
) -> T {
    let asked = async {
        loop {
            let answer = ask().await;
            if pleases(&answer) {
                return answer;
            }
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    match time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer,
        Err(_) => panic!("never: {what}; the last answer is {:?}", ask().await),
    }
}

fn is(state: &'static str) -> impl FnMut(&Value) -> bool {
    move |shown| shown["state"] == state
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_ask_the_store_for_what_the_nodes_measured() {
    let fleet = Fleet::new(&["gate-1", "gate-2", "gate-3"]).await;
    fleet.skill("1.0.0");
    // What the agents measure by themselves, over the window that they have been there.
    let holds = r#"metric("cpu_percent") >= 0 && avg_over("cpu_percent", "5m") <= 100.5"#;
    let id = fleet.create("greeter@1.0.0", json!({ "gates": [holds] })).await;
    let done = fleet.sees(&id, "it is done", is("done")).await;
    assert_eq!(done["waves"][0]["reason"], "1 gates hold at 1 nodes", "{done}");
    assert_eq!(done["nodes_by_state"], json!({"confirmed": 3}));
    for node in fleet.agents.keys() {
        assert_eq!(fleet.runs(node).as_deref(), Some("1.0.0"));
    }

    // One that does not hold stops it in its first wave, and says at whom and why.
    fleet.skill("1.1.0");
    let fails = r#"metric("cpu_percent") > 1000"#;
    let id = fleet.create("greeter@1.1.0", json!({ "gates": [fails], "on_failure": "pause" })).await;
    let paused = fleet.sees(&id, "it stops itself", is("paused")).await;
    let first = paused["nodes"].as_array().unwrap().iter().find(|node| node["state"] == "confirmed").unwrap();
    let (first, reason) = (first["node"].as_str().unwrap(), paused["reason"].as_str().unwrap());
    assert!(reason.contains(first) && reason.contains(fails), "{reason}");
    assert_eq!(paused["waves"][0]["state"], "halted");
    let new = fleet.agents.keys().filter(|node| fleet.runs(node).as_deref() == Some("1.1.0"));
    assert_eq!(new.collect::<Vec<_>>(), [first], "nobody else was told");
    assert_eq!(fleet.act(&id, "abort", None).await.0, StatusCode::OK);

    // One that cannot be told holds the wave, until the figure is there.
    fleet.skill("1.2.0");
    let asks = r#"metric("battery_percent") > 20"#;
    let id = fleet.create("greeter@1.2.0", json!({ "gates": [asks] })).await;
    let held = fleet.sees(&id, "it waits", |shown| {
        shown["waves"][0]["reason"].as_str().is_some_and(|why| why.starts_with("a gate cannot be told"))
    });
    let held = held.await;
    assert_eq!((&held["state"], &held["waves"][0]["state"]), (&json!("running"), &json!("gating")));
    let body = json!({"samples": [{"metric": "battery_percent", "value": 80}]}).to_string();
    for agent in fleet.agents.values() {
        let url = format!("http://{}/api/v1/telemetry", agent.api());
        let request = reqwest::Client::new().post(url).header("content-type", "application/json");
        assert_eq!(request.body(body.clone()).send().await.unwrap().status(), StatusCode::ACCEPTED);
    }
    fleet.sees(&id, "it goes on to its end", is("done")).await;
    fleet.stop().await;
}

/// Hears a topic: whether it was retained, and the JSON.
async fn hear(
    mqtt: SocketAddr,
    login: &str,
    name: &str,
    filter: &str,
) -> mpsc::UnboundedReceiver<(String, bool, Value)> {
    let mut options = MqttOptions::new(name, mqtt.ip().to_string(), mqtt.port());
    let (user, password) = login.trim().split_once(char::is_whitespace).unwrap();
    options.set_credentials(user, password.trim());
    options.set_max_packet_size(256 * 1024, 256 * 1024);
    let (client, mut events) = AsyncClient::new(options, 8);
    let (says, heard) = mpsc::unbounded_channel();
    client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
    tokio::spawn(async move {
        // It lives as long as it is polled.
        let _client = client;
        while let Ok(event) = events.poll().await {
            if let Event::Incoming(Packet::Publish(said)) = event {
                let json = serde_json::from_slice(&said.payload).unwrap_or(Value::Null);
                if says.send((said.topic, said.retain, json)).is_err() {
                    return;
                }
            }
        }
    });
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_are_done_once_and_told_over_sse_and_mqtt() {
    let fleet = Fleet::new(&["verb-1", "verb-2"]).await;
    fleet.skill("1.0.0");
    let url = fleet.url("stream?kind=rollout");
    let stream = reqwest::Client::new().get(url).bearer_auth(&fleet.admin).send().await.unwrap();
    let mut stream = stream.bytes_stream();
    let login = std::fs::read_to_string(fleet.site.data.path().join("access/local")).unwrap();
    let mqtt = fleet.site.running.addresses.mqtt;
    let mut live = hear(mqtt, &login, "tool-1", "fleet/v1/hub/rollout/#").await;

    // It waits for somebody; another operator, when asked.
    let id = fleet.create("greeter@1.0.0", json!({ "approve": "any" })).await;
    assert_eq!(fleet.get(&format!("rollouts/{id}")).await["state"], "waiting_approval");
    assert_eq!(fleet.act(&id, "pause", None).await.0, StatusCode::CONFLICT);
    let (status, shown) = fleet.act(&id, "approve", None).await;
    assert_eq!(
        (status, &shown["state"], &shown["approved_by"]),
        (StatusCode::OK, &json!("running"), &json!("operator admin"))
    );
    let (status, paused) = fleet.act(&id, "pause", Some("lunch")).await;
    assert_eq!(status, StatusCode::OK);
    assert!(paused["reason"].as_str().unwrap().contains("lunch"), "{paused}");
    // The same request again, with its key, gets the same answer; another with it is refused.
    let path = format!("rollouts/{id}/resume");
    let body = json!({});
    let (status, first) = fleet.ask(Method::POST, &path, Some(&body), Some("key-1")).await;
    assert_eq!((status, &first["state"]), (StatusCode::OK, &json!("running")), "{first}");
    assert_eq!(fleet.act(&id, "pause", None).await.1["state"], "paused");
    let (status, again) = fleet.ask(Method::POST, &path, Some(&body), Some("key-1")).await;
    assert_eq!((status, again), (StatusCode::OK, first), "it was not done again");
    assert_eq!(fleet.get(&format!("rollouts/{id}")).await["state"], "paused");
    let other = format!("rollouts/{id}/abort");
    assert_eq!(fleet.ask(Method::POST, &other, Some(&body), Some("key-1")).await.0, StatusCode::CONFLICT);
    assert_eq!(fleet.act(&id, "resume", None).await.0, StatusCode::OK);
    fleet.sees(&id, "it is done", is("done")).await;
    for verb in ["pause", "resume", "abort", "approve"] {
        assert_eq!(fleet.act(&id, verb, None).await.0, StatusCode::CONFLICT, "{verb}: it is over");
        assert_eq!(fleet.act("nothing-1.0.0-1", verb, None).await.0, StatusCode::NOT_FOUND, "{verb}");
    }

    // Back to nothing is nowhere to go; back to a release is.
    assert_eq!(fleet.act(&id, "rollback", None).await.0, StatusCode::CONFLICT);
    fleet.skill("1.1.0");
    let next = fleet.create("greeter@1.1.0", json!({})).await;
    fleet.sees(&next, "it is done", is("done")).await;
    let (status, back) = fleet.act(&next, "rollback", Some("it hums")).await;
    assert_eq!(status, StatusCode::OK, "{back}");
    let back = back["back"].as_str().unwrap().to_owned();
    fleet.sees(&back, "they are back", is("done")).await;
    assert!(fleet.agents.keys().all(|node| fleet.runs(node).as_deref() == Some("1.0.0")));

    // Everybody who listened heard it, and who comes late finds how each stands.
    let mut heard = BTreeMap::new();
    let told = async {
        while heard.get(&back).is_none_or(|state| *state != "done") {
            let (topic, _, shown) = live.recv().await.unwrap();
            let name = topic.strip_prefix("fleet/v1/hub/rollout/").unwrap().to_owned();
            assert_eq!(shown["id"], json!(name));
            heard.insert(name, shown["state"].clone());
        }
    };
    time::timeout(PATIENCE, told).await.unwrap();
    assert_eq!(heard.len(), 3, "{heard:?}");
    let mut late = hear(mqtt, &login, "tool-2", &format!("fleet/v1/hub/rollout/{id}")).await;
    let (_, retained, shown) = time::timeout(PATIENCE, late.recv()).await.unwrap().unwrap();
    assert!(retained && shown["state"] == "done", "{shown}");
    let mut text = String::new();
    let streamed = async {
        while !(text.contains("waiting_approval") && text.contains(&back) && text.contains("\"paused\"")) {
            text.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
        }
    };
    time::timeout(PATIENCE, streamed).await.unwrap();
    let messages: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    assert!(messages.iter().any(|one| one["id"] == json!(id) && one["state"] == "paused"), "{text}");
    fleet.stop().await;
}

/// A board behind a node, as its firmware speaks: it says what it runs, and fetches what it is told to run.
async fn board(listener: SocketAddr, id: &str) -> tokio::task::JoinHandle<()> {
    let mut options = MqttOptions::new(id, listener.ip().to_string(), listener.port());
    options.set_keep_alive(Duration::from_secs(60));
    let (client, mut events) = AsyncClient::new(options, 16);
    client.subscribe(format!("clawland/{id}/cmd"), QoS::AtMostOnce).await.unwrap();
    let status = format!("clawland/{id}/status");
    let first = r#"{"status":"online","version":"1.0.0"}"#;
    client.publish(&status, QoS::AtLeastOnce, false, first).await.unwrap();
    tokio::spawn(async move {
        while let Ok(event) = events.poll().await {
            let Event::Incoming(Packet::Publish(said)) = event else { continue };
            let told: Value = serde_json::from_slice(&said.payload).unwrap();
            assert_eq!(told["action"], "update");
            let (client, status) = (client.clone(), status.clone());
            tokio::spawn(async move {
                let bytes = reqwest::get(told["url"].as_str().unwrap()).await.unwrap().bytes().await.unwrap();
                let digest = Digest(Sha256::digest(&bytes).into()).to_string();
                assert_eq!(digest, told["sha256"].as_str().unwrap());
                let runs = json!({"status": "online", "version": told["version"]}).to_string();
                client.publish(&status, QoS::AtLeastOnce, false, runs).await.unwrap();
            });
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn firmware_of_boards_counts_when_each_board_says_that_it_runs_it() {
    let fleet = Fleet::new(&["gateway-1"]).await;
    let listener = fleet.agents["gateway-1"].devices().unwrap();
    let boards = [board(listener, "probe-1").await, board(listener, "probe-2").await];
    let devices = async || fleet.get("nodes/gateway-1/devices").await["items"].clone();
    let all_run = |version: &'static str| {
        move |devices: &Value| {
            let devices = devices.as_array().map(Vec::as_slice).unwrap_or_default();
            let of = |id: &str| devices.iter().any(|one| one["id"] == id && one["firmware"] == version);
            of("probe-1") && of("probe-2")
        }
    };
    until("the boards are known", devices, all_run("1.0.0")).await;
    fleet.release("device-firmware/probe/2.0.0/any", b"another firmware", None);
    let id = fleet.create("probe@2.0.0", json!({})).await;
    let done = fleet.sees(&id, "both run it", is("done")).await;
    assert_eq!((&done["kind"], &done["nodes_count"]), (&json!("device-firmware"), &json!(2)));
    let seats = done["nodes"].as_array().unwrap().iter();
    let seats: Vec<_> = seats.map(|seat| (seat["device"].clone(), seat["state"].clone())).collect();
    assert!(seats.iter().all(|(_, state)| state == "confirmed"), "{seats:?}");
    until("their own word", devices, all_run("2.0.0")).await;
    boards.iter().for_each(tokio::task::JoinHandle::abort);
    fleet.stop().await;
}
