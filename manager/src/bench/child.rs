//! The processes that are measured: a hub, an agent, a foreign broker, in a temporary folder. They end with their
//! guard, whatever happens to the benchmark's own work.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use reqwest::header::{self, HeaderMap, HeaderValue};
use rustix::process::{Pid, Signal};

use super::Error;
use crate::{clock, run};

/// Time a process has to come up or to go down.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between looks at it.
const LOOK: Duration = Duration::from_millis(20);

/// A folder that goes with its guard.
pub(super) struct Folder(PathBuf);

/// A process that goes with its guard.
pub(super) struct Process {
    child: Child,
    name: &'static str,
}

/// A hub of our own.
pub(super) struct OwnHub {
    pub(super) process: Process,
    pub(super) addresses: run::Addresses,
    /// Its data folder.
    pub(super) data: PathBuf,
    /// Sends the token that the hub left in its data folder.
    pub(super) http: reqwest::Client,
}

impl Folder {
    pub(super) fn new(parent: Option<&Path>) -> Result<Self, Error> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let name: String = clock::random::<6>().iter().map(|byte| format!("{byte:02x}")).collect();
        let path = parent.join(format!("fleet-bench-{name}"));
        fs::create_dir_all(&path).map_err(Error::io(format!("make {}", path.display())))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on it: it is in the folder for temporary files.
        drop(fs::remove_dir_all(&self.0));
    }
}

impl Process {
    /// Starts `program`; what it would read of our environment is taken away.
    pub(super) fn start(
        name: &'static str,
        program: &Path,
        args: &[&str],
        log: &Path,
    ) -> Result<Self, Error> {
        let file = fs::File::create(log).map_err(Error::io(format!("make {}", log.display())))?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(file));
        for (key, _) in std::env::vars_os() {
            if key.to_str().is_some_and(|key| key.starts_with("FLEET_") && key != "FLEET_LOG") {
                command.env_remove(key);
            }
        }
        match command.spawn() {
            Ok(child) => Ok(Self { child, name }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Missing(program.to_owned())),
            Err(error) => Err(Error::io(format!("start {}", program.display()))(error)),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `done` gives something, while the process runs.
    pub(super) async fn until<T>(&mut self, mut done: impl AsyncFnMut() -> Option<T>) -> Result<T, Error> {
        let deadline = clock::mono() + PATIENCE;
        loop {
            if let Some(it) = done().await {
                return Ok(it);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Error::Child(format!("{} ended with {status} instead of coming up", self.name)));
            }
            if clock::mono() > deadline {
                return Err(Error::Child(format!("{} did not come up within {PATIENCE:?}", self.name)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Asks it to end, and waits until it did.
    pub(super) async fn stop(mut self) -> Result<(), Error> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let asked = pid.map(|pid| rustix::process::kill_process(pid, Signal::TERM));
        if let Some(Err(error)) = asked {
            return Err(Error::io(format!("stop {}", self.name))(error.into()));
        }
        let deadline = clock::mono() + PATIENCE;
        while clock::mono() < deadline {
            if let Ok(Some(_)) = self.child.try_wait() {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(Error::Child(format!("{} did not stop within {PATIENCE:?} and was killed", self.name)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Starts a hub with free ports (or the MQTT port given), and waits until it serves.
pub(super) async fn hub(fleet: &Path, folder: &Path, mqtt: Option<SocketAddr>) -> Result<OwnHub, Error> {
    let data = folder.join("hub");
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).to_string();
    let mqtt = mqtt.map_or_else(|| free.clone(), |address| address.to_string());
    let text = data.display().to_string();
    let args =
        ["hub", "--data", &text, "--http", &free, "--mqtt", &mqtt, "--mqtts", &free, "--node-https", &free];
    let mut process = Process::start("the hub", fleet, &args, &folder.join("hub.log"))?;
    let path = data.join(run::ADDRESSES);
    let addresses = process
        .until(async || serde_json::from_str(&fs::read_to_string(&path).ok()?).ok())
        .await
        .map_err(|error| explained(error, &folder.join("hub.log")))?;
    let admin = fs::read_to_string(data.join(crate::cli::ADMIN)).unwrap_or_default();
    let http = client(admin.lines().nth(1))?;
    Ok(OwnHub { process, addresses, data, http })
}

/// A client that sends a token, if there is one.
pub(super) fn client(token: Option<&str>) -> Result<reqwest::Client, Error> {
    let mut headers = HeaderMap::new();
    if let Some(token) = token {
        let value = HeaderValue::from_str(&format!("Bearer {}", token.trim()));
        let value = value.map_err(|_| Error::Answer("the token is none".to_owned()))?;
        headers.insert(header::AUTHORIZATION, value);
    }
    Ok(reqwest::Client::builder().default_headers(headers).build()?)
}

/// A running agent and where its edge API is.
pub(super) struct OwnAgent {
    pub(super) process: Process,
    pub(super) api: String,
}

/// Starts an agent with default settings for the hub at `mqtt`, and waits until its edge API answers.
pub(super) async fn agent(
    program: &Path,
    folder: &Path,
    node: &str,
    mqtt: SocketAddr,
) -> Result<OwnAgent, Error> {
    let data = folder.join(node);
    let secret = folder.join(format!("{node}.secret"));
    fs::write(&secret, "a secret of a benchmark\n").map_err(Error::io("write the agent's secret"))?;
    let listen = free_address()?;
    let (data, secret) = (data.display().to_string(), secret.display().to_string());
    let (listen_text, hub) = (listen.to_string(), format!("mqtt://{mqtt}"));
    let args = ["run", "--data", &data, "--api", &listen_text, "--hub", &hub, "--node", node];
    let args: Vec<&str> = args.into_iter().chain(["--secret-file", &secret]).collect();
    let log = folder.join(format!("{node}.log"));
    let mut process = Process::start("the agent", program, &args, &log)?;
    let api = format!("http://{listen}");
    let health = format!("{api}/healthz");
    process
        .until(async || reqwest::get(&health).await.ok()?.status().is_success().then_some(()))
        .await
        .map_err(|error| explained(error, &log))?;
    Ok(OwnAgent { process, api })
}

/// An address that was free a moment ago.
pub(super) fn free_address() -> Result<SocketAddr, Error> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    bound.map_err(Error::io("find a free port"))
}

/// The program beside the one that runs.
pub(super) fn beside(fleet: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = fleet.with_file_name(name);
    if path.is_file() { Ok(path) } else { Err(Error::Missing(path)) }
}

fn explained(error: Error, log: &Path) -> Error {
    let text = fs::read_to_string(log).unwrap_or_default();
    match text.lines().last() {
        Some(last) => Error::Child(format!("{error}; its last words: {last}")),
        None => error,
    }
}
