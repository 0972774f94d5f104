//! Starts and stops the whole hub, and the demo around it: everything is bound, spawned, joined and drained here.

pub mod demo;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use fleet_broker::Broker;
use fleet_schemas::StoreId;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    admit, api,
    clock::{self, HubClock},
    config::{Config, ConfigError},
    consume::{self, Consumer},
    hub::{self, Hub, Running},
    metrics,
    pki::{self, Pki},
    store::disk::Folder,
};

/// Name of the file with the bound addresses, in the data folder.
pub const ADDRESSES: &str = "addresses.json";

/// The bound addresses; what this build does not serve is null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Operators' HTTP.
    pub http: SocketAddr,
    /// Plain MQTT.
    pub mqtt: SocketAddr,
    /// MQTT over TLS.
    pub mqtts: Option<SocketAddr>,
    /// HTTPS for nodes.
    pub node_https: Option<SocketAddr>,
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
    data: PathBuf,
    broker: Broker,
    threads: Running,
    stop_http: watch::Sender<bool>,
    http: JoinHandle<io::Result<()>>,
}

/// Starts a hub on the calling runtime; the broker, the consumer and the tidier have threads of their own.
///
/// # Errors
/// [`StartError`]: nothing is left running.
pub async fn start(config: &Config) -> Result<RunningHub, StartError> {
    let folder = |source| StartError::Folder { path: config.data.clone(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.data).map_err(folder)?;
    let clock = Arc::new(HubClock::default());
    let disk = Arc::new(Folder::new(&config.data));
    let store = config.store();
    let fresh = StoreId(clock::random());
    let consumer = Consumer::open(disk, store.telemetry, fresh, clock.now())?;
    let http = config.listen.http;
    let listener =
        TcpListener::bind(http).await.map_err(|source| StartError::Http { address: http, source })?;
    let http = listener.local_addr().map_err(|source| StartError::Http { address: http, source })?;
    let reads = clock.clone();
    let pki = Arc::new(Pki::open(&config.data, &[], Arc::new(move || reads.read()))?);
    let directory = Arc::new(admit::Admission::open(consumer.shared().clone(), clock.clone(), &config.data)?);
    let (broker, link) = Broker::start(config.broker(), directory)?;
    let exporter = Arc::new(metrics::Exporter::default());
    let observer = metrics::observer(&exporter);
    let (hub, threads) =
        hub::start(consumer, link, broker.stats(), clock, &store, observer).map_err(StartError::Thread)?;
    let addresses = Addresses { http, mqtt: broker.mqtt_addr(), mqtts: None, node_https: None };
    write_addresses(&config.data, &addresses).map_err(folder)?;
    let (stop_http, mut stopping) = watch::channel(false);
    let stop = async move {
        // An error means that the sender is gone, which is a stop too.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let data = config.data.clone();
    let listeners = [("http", addresses.http), ("mqtt", addresses.mqtt)];
    let listeners = listeners.map(|(name, address)| (name.to_owned(), address.to_string())).into();
    let config = api::Config { pki, listeners, anonymous_viewer: true };
    let http = tokio::spawn(api::serve(listener, hub.clone(), exporter, config, stop));
    tracing::info!(http = %addresses.http, mqtt = %addresses.mqtt, data = %data.display(), "the hub runs");
    Ok(RunningHub { hub, addresses, data, broker, threads, stop_http, http })
}

impl RunningHub {
    /// Stops: no new sessions, what was received is committed, open requests are answered.
    pub async fn stop(self) {
        let Self { hub, addresses: _, data, broker, threads, stop_http, http } = self;
        drop(hub);
        stop_http.send_replace(true);
        let stopping = tokio::task::spawn_blocking(move || {
            broker.shutdown();
            threads.stop();
        });
        if stopping.await.is_err() {
            tracing::error!("stopping the hub's threads panicked");
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
    let running = start(config).await?;
    println!("hub     http://{}", running.addresses.http);
    println!(
        "mqtt    {} (loopback; nodes bring a secret, tools use {})",
        running.addresses.mqtt,
        admit::TOOL_FILE
    );
    println!("data    {}", config.data.display());
    shutdown.await;
    println!("stopping");
    running.stop().await;
    Ok(())
}
