//! Starts and stops the whole hub, and the demo around it: everything is bound, spawned, joined and drained here.

mod admin;
pub mod demo;
mod supervised;
mod upkeep;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use fleet_broker::Broker;
use fleet_schemas::{StoreId, enrol};
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    admit::{self, Admission},
    alerts::{self, Alerts},
    api, artifact, backup,
    clock::{self, HubClock},
    config::{Config, ConfigError},
    console::Sessions,
    consume::{self, Consumer},
    dialect,
    hub::{self, Hub, Running},
    metrics,
    mirror::{self, Mirror},
    node_port, notify,
    pki::{self, Pki},
    release::{self, Releases},
    rollouts,
    store::disk::Folder,
};

/// Name of the file with the bound addresses, in the data folder.
pub const ADDRESSES: &str = "addresses.json";

/// The bound addresses; what this build does not serve is null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Operators' HTTP.
    pub http: SocketAddr,
    /// Whether that is HTTPS.
    #[serde(default)]
    pub http_tls: bool,
    /// Plain MQTT.
    pub mqtt: SocketAddr,
    /// MQTT over TLS.
    pub mqtts: Option<SocketAddr>,
    /// HTTPS for nodes.
    pub node_https: Option<SocketAddr>,
    /// Field dialects without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub legacy_http: Option<SocketAddr>,
}

impl Addresses {
    /// Operators' HTTP as a URL.
    #[must_use]
    pub fn http_url(&self) -> String {
        let scheme = if self.http_tls { "https" } else { "http" };
        format!("{scheme}://{}", self.http)
    }
}

/// The hub cannot start. The text fits after "failed to start: ".
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data folder.
    #[error("the data folder {path} cannot be used: {source}; choose another with --data")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The stores.
    #[error(transparent)]
    Store(#[from] consume::Error),
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// Artifacts.
    #[error(transparent)]
    Artifacts(#[from] artifact::Error),
    /// Releases.
    #[error(transparent)]
    Releases(#[from] release::Error),
    /// The file of revocations, or what a backup left.
    #[error(transparent)]
    Backup(#[from] backup::Error),
    /// The data folder is no hub's yet.
    #[error(
        "a restore into {0} came to no end; begin it again with `fleet restore`, it empties the folder first"
    )]
    Unfinished(PathBuf),
    /// Who may connect.
    #[error(transparent)]
    Admit(#[from] admit::OpenError),
    /// Gate or router.
    #[error(transparent)]
    Broker(#[from] fleet_broker::Error),
    /// The HTTP port.
    #[error("{address} cannot be listened on: {source}; choose another with --http, port 0 picks a free one")]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The port for nodes.
    #[error(
        "{address} cannot be listened on: {source}; choose another with --node-https, port 0 picks a free one"
    )]
    NodeHttps {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Field dialects without TLS.
    #[error(
        "{address} cannot be listened on: {source}; choose another with --legacy-http, port 0 picks a free one"
    )]
    LegacyHttp {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The first operator.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The way of a node of the demo to the hub.
    #[error("no port is free for a node of the demo: {0}")]
    Link(#[source] io::Error),
    /// The demo's releases.
    #[error(transparent)]
    Sign(#[from] demo::releases::SignError),
    /// A node of the demo that does not join.
    #[error("node {node} of the demo: failed to join: {source}")]
    Join {
        /// Which.
        node: String,
        /// Why.
        source: Box<fleet_edge_agent::identity::join::JoinError>,
    },
    /// The registry refuses what the demo needs.
    #[error("the demo's join token cannot be made: {0}")]
    Token(#[from] hub::IntentError),
    /// A thread.
    #[error("a thread cannot be had: {0}")]
    Thread(io::Error),
    /// An agent of the demo.
    #[error("agent {node}: {source}")]
    Agent {
        /// Which.
        node: String,
        /// Why.
        source: Box<fleet_edge_agent::run::StartError>,
    },
}

/// A running hub.
pub struct RunningHub {
    /// A handle on it.
    pub hub: Hub,
    /// Where it listens.
    pub addresses: Addresses,
    /// The hub's certificates.
    pub pki: Arc<Pki>,
    /// Who is logged in to the console.
    pub sessions: Arc<Sessions>,
    /// The first admin's token, when this start made it: to be shown once.
    pub admin: Option<String>,
    data: PathBuf,
    broker: Arc<Broker>,
    admission: Arc<Admission>,
    threads: Running,
    mirror: mirror::Running,
    rollouts: rollouts::Running,
    alerts: alerts::Running,
    upkeep: Vec<JoinHandle<()>>,
    stop_http: watch::Sender<bool>,
    http: JoinHandle<io::Result<()>>,
    node_https: JoinHandle<()>,
    legacy_http: Option<JoinHandle<()>>,
}

/// Starts a hub on the calling runtime; the broker, the consumer and the tidier have threads of their own.
///
/// # Errors
/// [`StartError`]: nothing is left running.
pub async fn start(config: &Config) -> Result<RunningHub, StartError> {
    let folder = |source| StartError::Folder { path: config.data.clone(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.data).map_err(folder)?;
    if backup::restore::is_unfinished(&config.data) {
        return Err(StartError::Unfinished(config.data.clone()));
    }
    let clock = Arc::new(HubClock::open(&config.data));
    let disk = Arc::new(Folder::new(&config.data));
    let store = config.store();
    let fresh = StoreId(clock::random());
    let mut consumer = Consumer::open(disk, store.telemetry, fresh, clock.now())?;
    // Not before the stores are this hub's: somebody else may be backing them up.
    if let Err(error) = backup::make::remove(&config.data) {
        tracing::warn!(%error, "copies that a backup left are still there");
    }
    let trail = config.trail();
    consumer.keep_trail(&trail, clock.now()).map_err(backup::Error::from)?;
    let http = config.listen.http;
    let listener =
        TcpListener::bind(http).await.map_err(|source| StartError::Http { address: http, source })?;
    let http = listener.local_addr().map_err(|source| StartError::Http { address: http, source })?;
    let (node_listener, node_https) = bind_node_https(config.listen.node_https).await?;
    let legacy = bind_legacy(config.listen.legacy_http).await?;
    let reads = clock.clone();
    let pki = Arc::new(Pki::open(&config.data, &config.listen.names, Arc::new(move || reads.read()))?);
    let signed = pki.clone();
    let authorities = Box::new(move || signed.lines());
    consumer.keep_authorities(authorities, clock.now()).map_err(backup::Error::from)?;
    let artifacts = Arc::new(artifact::Store::open(&config.data, clock.now().wall_ms)?);
    let reads = clock.clone();
    let releases = Releases::open(&config.data, artifacts, Arc::new(move || reads.read()))?;
    let admission = Arc::new(Admission::open(consumer.shared().clone(), clock.clone(), &config.data)?);
    let mirror = Arc::new(Mirror::new(consumer.shared().clone(), config.mirror()));
    admission.set_mirror(Box::new(mirror.clone()));
    let (broker, link) = Broker::start(config.broker(pki.keys()), admission.clone())?;
    let broker = Arc::new(broker);
    let (publisher, voice) = (link.publisher(), link.voice());
    let exporter = Arc::new(metrics::Exporter::default());
    let observer = metrics::observer(&exporter);
    let (hub, threads) =
        hub::start(consumer, link, broker.stats(), clock, &store, observer).map_err(StartError::Thread)?;
    let (door, second_looks) = upkeep::door(&broker, &hub);
    hub.set_door(door);
    hub.set_releases(Arc::new(releases));
    let admin = match admin::first(&hub, &config.data).await {
        Ok(admin) => admin,
        Err(error) => {
            stop_threads(broker, &admission, threads).await;
            return Err(error.into());
        }
    };
    let mirror = mirror.start(hub.clone(), publisher.clone()).map_err(StartError::Thread)?;
    let rollouts = rollouts::start(hub.clone(), publisher.clone()).map_err(StartError::Thread)?;
    let stop_http = watch::Sender::new(false);
    let board = notify::Board::new(config.alerts.receivers.clone());
    let (handle, asked) = Alerts::new(board.clone());
    let (notices, waiting) = mpsc::channel(alerts::NOTICES);
    let mut upkeep = notify::start(&hub, &handle, &board, &exporter, waiting, &stop_http.subscribe())
        .map_err(consume::Error::State)?;
    let alerts = alerts::start(&hub, publisher, config.alerts(&board), (handle, asked), &exporter, notices)
        .map_err(StartError::Thread)?;
    let (mqtt, mqtts) = (broker.mqtt_addr(), broker.mqtts_addr());
    let http_tls = config.listen.http_tls;
    let legacy_http = legacy.as_ref().map(|(_, bound)| *bound);
    let addresses = Addresses { http, http_tls, mqtt, mqtts, node_https: Some(node_https), legacy_http };
    if let Some(legacy_http) = legacy_http.filter(|at| !at.ip().is_loopback()) {
        tracing::warn!(%legacy_http, "field agents' tokens and all they say cross the network in the clear");
    }
    if !http_tls && !http.ip().is_loopback() {
        tracing::warn!(
            %http,
            "API tokens cross the network in the clear: serve HTTPS with --http-tls, or bind --http to 127.0.0.1"
        );
    }
    write_addresses(&config.data, &addresses).map_err(folder)?;
    let stop = || {
        let mut stopping = stop_http.subscribe();
        async move {
            // An error means that the sender is gone, which is a stop too.
            let _ = stopping.wait_for(|stop| *stop).await;
        }
    };
    let listeners = [
        (if http_tls { "https" } else { "http" }, Some(http)),
        ("mqtt", Some(mqtt)),
        ("mqtts", mqtts),
        ("node_https", Some(node_https)),
        ("legacy_http", legacy_http),
    ];
    let listeners = listeners.into_iter().filter_map(|(name, at)| Some((name.to_owned(), at?.to_string())));
    let sessions = Arc::new(Sessions::default());
    let serves = api::Config {
        data: config.data.clone(),
        trail,
        pki: pki.clone(),
        listeners: listeners.collect(),
        tls: http_tls,
        anonymous_viewer: config.anonymous_viewer,
        sessions: sessions.clone(),
    };
    let http = tokio::spawn(api::serve(listener, hub.clone(), exporter, serves, stop()));
    let room = dialect::Room::new(&hub, voice, mqtts.map(|at| at.port()));
    let field = dialect::router(&room);
    let legacy_http = legacy.map(|(listener, _)| {
        let routes = node_port::legacy(field.clone());
        tokio::spawn(node_port::serve::serve_plain(listener, routes, node_port::LIMITS, stop()))
    });
    let mqtts_port = mqtts.map_or(enrol::MQTTS_PORT, |at| at.port());
    let routes = node_port::router(hub.clone(), pki.clone(), mqtts_port, field);
    let node_https = node_port::serve::serve(node_listener, pki.keys(), routes, node_port::LIMITS, stop());
    let node_https = tokio::spawn(node_https);
    upkeep.extend([second_looks, upkeep::keys(pki.clone(), hub.clone()), upkeep::releases(hub.clone())]);
    let data = config.data.clone();
    tracing::info!(?addresses, data = %data.display(), "the hub runs");
    Ok(RunningHub {
        hub,
        addresses,
        pki,
        sessions,
        admin,
        data,
        broker,
        admission,
        threads,
        mirror,
        rollouts,
        alerts,
        upkeep,
        stop_http,
        http,
        node_https,
        legacy_http,
    })
}

async fn bind_legacy(address: Option<SocketAddr>) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    let Some(address) = address else { return Ok(None) };
    let failed = |source| StartError::LegacyHttp { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok(Some((listener, bound)))
}

async fn bind_node_https(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::NodeHttps { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

async fn stop_threads(broker: Arc<Broker>, admission: &Arc<Admission>, threads: Running) {
    let admission = admission.clone();
    let stopping = tokio::task::spawn_blocking(move || {
        // Nobody else holds it for longer than a cut takes; then the last one stops it.
        if let Some(broker) = Arc::into_inner(broker) {
            broker.shutdown();
        }
        threads.stop();
        admission.close();
    });
    if stopping.await.is_err() {
        tracing::error!("stopping the hub's threads panicked");
    }
}

impl RunningHub {
    /// Stops: no new sessions, what was received is committed, open requests are answered.
    pub async fn stop(self) {
        let Self {
            hub,
            data,
            broker,
            admission,
            threads,
            mirror,
            rollouts,
            alerts,
            upkeep,
            stop_http,
            http,
            node_https,
            legacy_http,
            ..
        } = self;
        drop(hub);
        stop_http.send_replace(true);
        for task in upkeep {
            task.abort();
            // Ended by that, most likely; what it holds of the stores is let go of.
            let _ = task.await;
        }
        if tokio::task::spawn_blocking(|| alerts.stop()).await.is_err() {
            tracing::error!("stopping alerts panicked");
        }
        if tokio::task::spawn_blocking(|| mirror.stop()).await.is_err() {
            tracing::error!("stopping the mirror panicked");
        }
        if tokio::task::spawn_blocking(|| rollouts.stop()).await.is_err() {
            tracing::error!("stopping the thread of rollouts panicked");
        }
        stop_threads(broker, &admission, threads).await;
        if let Err(error) = node_https.await {
            tracing::error!(%error, "the task of the port for nodes ended badly");
        }
        if let Some(legacy_http) = legacy_http
            && let Err(error) = legacy_http.await
        {
            tracing::error!(%error, "the task of the field dialects without TLS ended badly");
        }
        match http.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the HTTP server ended badly"),
            Err(error) => tracing::error!(%error, "the HTTP server's task ended badly"),
        }
        // A stale file would send the command line to somebody else's port.
        drop(fs::remove_file(data.join(ADDRESSES)));
        tracing::info!("the hub stopped");
    }
}

fn write_addresses(data: &Path, addresses: &Addresses) -> io::Result<()> {
    let text = serde_json::to_string_pretty(addresses).map_err(io::Error::other)?;
    let temporary = data.join(format!("{ADDRESSES}.new"));
    fs::write(&temporary, text + "\n")?;
    fs::rename(temporary, data.join(ADDRESSES))
}

/// Runs a hub until `shutdown`.
///
/// # Errors
/// [`StartError`].
pub async fn hub(config: &Config, shutdown: impl Future<Output = ()>) -> Result<(), StartError> {
    supervised::opening();
    let mut running = start(config).await?;
    running.upkeep.extend(supervised::watch(running.hub.clone()));
    let addresses = &running.addresses;
    let Addresses { mqtt, mqtts, node_https, .. } = addresses;
    println!("hub     {}", addresses.http_url());
    if let (Some(mqtts), Some(node_https)) = (mqtts, node_https) {
        println!(
            "nodes   https://{node_https} to join, mqtts://{mqtts} (`fleet join-token create` lets one in)"
        );
    }
    if let Some(legacy_http) = addresses.legacy_http {
        println!("field   http://{legacy_http} without TLS (`fleet field-token create` lets one in)");
    }
    println!("mqtt    {mqtt} (loopback; nodes bring a secret, tools use {})", admit::TOOL_FILE);
    if let Some(token) = &running.admin {
        println!("admin   {}", admin::shown(token, crate::cli::ADMIN));
    }
    println!("data    {}", config.data.display());
    supervised::ready(&running.hub);
    shutdown.await;
    supervised::stopping();
    println!("stopping");
    running.stop().await;
    Ok(())
}
