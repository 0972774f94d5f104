//! Processes of a test: a hub and agents that can be killed and started again, and the questions they are asked.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use fleet_manager::clock;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time;

/// Longest wait for anything: generous, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again and again until the answer pleases, and gives it.
pub(crate) async fn until<T: std::fmt::Debug>(
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
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    match time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer,
        Err(_) => panic!("never: {what}; the last answer is {:?}", ask().await),
    }
}

/// One question over HTTP: status and JSON (or text), nothing when nobody answers.
pub(crate) async fn ask(address: SocketAddr, path: &str) -> Option<(u16, Value)> {
    ask_as(None, address, path).await
}

/// The same with an operator's token.
async fn ask_as(token: Option<&str>, address: SocketAddr, path: &str) -> Option<(u16, Value)> {
    let mut request = reqwest::Client::new().get(format!("http://{address}{path}")).timeout(PATIENCE);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await.ok()?;
    let status = answer.status().as_u16();
    let text = answer.text().await.ok()?;
    Some((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

/// Ends a child: nobody is left behind when a test fails.
fn kill(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Asks a child to end and waits for it.
async fn end(child: &mut Option<Child>) {
    let mut running = child.take().expect("it runs");
    kill_process(Pid::from_child(&running), Signal::TERM).unwrap();
    let status = until("it ends", async || running.try_wait().unwrap(), Option::is_some).await;
    assert_eq!(status.and_then(|status| status.code()), Some(0), "it ends well");
}

/// A hub. Its addresses stay the same from the first start on.
pub(crate) struct Hub {
    pub(crate) data: PathBuf,
    pub(crate) http: SocketAddr,
    pub(crate) mqtt: SocketAddr,
    pub(crate) node_https: SocketAddr,
    mqtts: SocketAddr,
    // Put before the hub's own words, to run it under some restriction.
    wrapped: Vec<String>,
    child: Option<Child>,
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Hub {
    pub(crate) async fn start(data: &Path) -> Self {
        Self::start_wrapped(data, &[]).await
    }

    pub(crate) async fn start_wrapped(data: &Path, wrapped: &[&str]) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let wrapped = wrapped.iter().map(|word| (*word).to_owned()).collect();
        let data = data.to_owned();
        let mut hub = Self { data, http: any, mqtt: any, node_https: any, mqtts: any, wrapped, child: None };
        hub.up().await;
        hub
    }

    /// Starts it; returns when it answers. Another process may hold a port of ours for a moment: then again.
    pub(crate) async fn up(&mut self) {
        let deadline = clock::mono() + PATIENCE;
        while !self.try_up().await {
            assert!(clock::mono() < deadline, "the hub does not start; see {}", self.log().display());
        }
    }

    fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    async fn try_up(&mut self) -> bool {
        let mut words = self.wrapped.clone();
        words.push(env!("CARGO_BIN_EXE_fleet").to_owned());
        words.extend(["--data".to_owned(), self.data.display().to_string(), "hub".to_owned()]);
        words.extend(["--http".to_owned(), self.http.to_string()]);
        words.extend(["--mqtt".to_owned(), self.mqtt.to_string()]);
        words.extend(["--mqtts".to_owned(), self.mqtts.to_string()]);
        words.extend(["--node-https".to_owned(), self.node_https.to_string()]);
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let (program, arguments) = words.split_first().unwrap();
        let child = Command::new(program)
            .args(arguments)
            .env_remove("FLEET_HUB")
            .env_remove("FLEET_DATA")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        loop {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                self.child = None;
                return false;
            }
            if self.http.port() == 0 {
                self.read_addresses();
            }
            if self.http.port() != 0 && ask(self.http, "/livez").await.is_some() {
                return true;
            }
            time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn read_addresses(&mut self) {
        let Ok(text) = std::fs::read(self.data.join("addresses.json")) else { return };
        let addresses: Value = serde_json::from_slice(&text).unwrap();
        let of = |name: &str| addresses[name].as_str().unwrap().parse().unwrap();
        (self.http, self.mqtt) = (of("http"), of("mqtt"));
        (self.mqtts, self.node_https) = (of("mqtts"), of("node_https"));
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("the hub runs"))
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        kill(&mut self.child);
    }

    /// SIGTERM.
    pub(crate) async fn end(&mut self) {
        end(&mut self.child).await;
    }

    /// The token of its first admin.
    pub(crate) fn token(&self) -> String {
        let admin = std::fs::read_to_string(self.data.join(fleet_manager::cli::ADMIN)).unwrap();
        admin.lines().nth(1).unwrap().to_owned()
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        match ask_as(Some(&self.token()), self.http, path).await {
            Some((200, value)) => value,
            other => panic!("{path}: {other:?}"),
        }
    }

    /// The value of a metric with exactly these labels, as they are written; 0 when it is not there.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await;
        let mut lines = text.as_str().unwrap().lines();
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

/// Where the agent's binary is: beside the hub's. Made when it is missing.
pub(crate) fn agent_binary() -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _alone = MAKING.lock().unwrap();
    let path = Path::new(env!("CARGO_BIN_EXE_fleet")).with_file_name("fleet-agent");
    if !path.exists() {
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let made = Command::new(env!("CARGO"))
            .args([
                "build",
                "--quiet",
                "-p",
                "fleet-edge-agent",
                "--bin",
                "fleet-agent",
                "--profile",
                profile,
            ])
            .status()
            .unwrap();
        assert!(made.success() && path.exists(), "build the agent first: cargo build -p fleet-edge-agent");
    }
    path
}

/// Where an agent's edge API is; nothing while it is down. Shared with those who post to it.
pub(crate) type Door = Arc<Mutex<Option<SocketAddr>>>;

/// An agent. Its settings are those of the fastest node that makes sense.
pub(crate) struct Agent {
    pub(crate) node: String,
    pub(crate) door: Door,
    data: PathBuf,
    hub: SocketAddr,
    // It has a certificate, and knows where its hub is.
    has_joined: bool,
    settings: Vec<(String, String)>,
    child: Option<Child>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Agent {
    /// An agent that does not run yet. `settings` are `FLEET_…` variables without the prefix.
    pub(crate) fn new(folder: &Path, node: &str, hub: SocketAddr, settings: &[(&str, &str)]) -> Self {
        let usual = [
            ("SECRET", "the secret of a test"),
            ("SYSTEM_INTERVAL_S", "0"),
            ("CLOCK_TRUST", "synced"),
            ("OUTBOX_UPLOAD_S", "0.2"),
            ("NODE_HEARTBEAT_S", "1"),
            ("LOG", "info"),
        ];
        let all = usual.iter().chain(settings);
        let settings = all.map(|(key, value)| (format!("FLEET_{key}"), (*value).to_owned())).collect();
        let data = folder.join(node);
        let (node, door) = (node.to_owned(), Door::default());
        Self { node, door, data, hub, has_joined: false, settings, child: None }
    }

    /// One that joins by a token and speaks over TLS from then on.
    pub(crate) async fn joined(folder: &Path, node: &str, hub: &Hub, token: &str) -> Self {
        let mut agent = Self::new(folder, node, hub.mqtt, &[]);
        agent.has_joined = true;
        agent.settings.retain(|(key, _)| key != "FLEET_SECRET");
        let mut join = Command::new(agent_binary());
        join.arg("join").arg(hub.node_https.to_string()).args(["--token", token, "--node", node]);
        join.arg("--data").arg(&agent.data).stdin(Stdio::null()).stdout(Stdio::null());
        let output = tokio::task::spawn_blocking(move || join.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        agent.up().await;
        agent
    }

    pub(crate) async fn started(mut self) -> Self {
        self.up().await;
        self
    }

    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.settings.push((format!("FLEET_{key}"), value.to_owned()));
    }

    fn who(&self) -> Vec<String> {
        match self.has_joined {
            true => Vec::new(),
            false => {
                let hub = format!("mqtt://{}", self.hub);
                vec!["--hub".to_owned(), hub, "--node".to_owned(), self.node.clone()]
            }
        }
    }

    /// Starts it; returns when it tells where it listens.
    pub(crate) async fn up(&mut self) {
        let mut child = Command::new(agent_binary())
            .arg("run")
            .arg("--data")
            .arg(&self.data)
            .args(["--api", "127.0.0.1:0"])
            .args(self.who())
            .env_clear()
            .envs(self.settings.clone())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        self.child = Some(child);
        let node = self.node.clone();
        let listens = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            loop {
                let from = text.len();
                assert!(log.read_line(&mut text).unwrap() > 0, "agent {node} ended: {text}");
                if let Some((_, rest)) = text[from..].split_once("api=") {
                    let api = rest.split_whitespace().next().unwrap().parse::<SocketAddr>().unwrap();
                    // Somebody must read the log on, or the agent would wait for it.
                    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
                    return api;
                }
            }
        });
        *self.door.lock().unwrap() = Some(time::timeout(PATIENCE, listens).await.unwrap().unwrap());
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        *self.door.lock().unwrap() = None;
        kill(&mut self.child);
    }

    /// SIGTERM.
    pub(crate) async fn end(&mut self) {
        *self.door.lock().unwrap() = None;
        end(&mut self.child).await;
    }

    /// Asks the edge API.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let address = self.door.lock().unwrap().expect("the agent runs");
        match ask(address, path).await {
            Some((200, value)) => value,
            other => panic!("{}{path}: {other:?}", self.node),
        }
    }

    /// Waits until everything accepted was sealed and acked.
    pub(crate) async fn drained(&self) {
        let what = format!("{} has nothing more to deliver", self.node);
        let figures = async || self.get("/api/v1/outbox").await;
        let rest = |outbox: &Value| (outbox["pending_samples"].as_u64(), outbox["unacked_batches"].as_u64());
        until(&what, figures, |outbox| rest(outbox) == (Some(0), Some(0))).await;
    }
}
