//! `fleet hub` and `fleet demo`: flags, handed over to [`crate::run`].

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Common, Failure};
use crate::{
    config::{Config, Overrides},
    log,
    run::{self, StartError, demo},
};

/// Where to listen; port 0 picks a free one.
#[derive(Debug, Clone, Default, Args)]
pub struct ListenArgs {
    /// Operators' HTTP, 127.0.0.1:8080 unless configured
    #[arg(long, env = "FLEET_HTTP", value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// Serve operators by HTTPS, with the hub's own certificate
    #[arg(long, env = "FLEET_HTTP_TLS")]
    pub http_tls: bool,
    /// Plain MQTT, loopback only, 127.0.0.1:1883 unless configured
    #[arg(long, env = "FLEET_MQTT", value_name = "ADDR")]
    pub mqtt: Option<SocketAddr>,
    /// Let plain MQTT listen on other than loopback addresses: passwords and all that is said cross the network for
    /// everybody to read
    #[arg(long, env = "FLEET_PLAIN_MQTT_WITHOUT_ENCRYPTION_ON_EVERY_NETWORK")]
    pub plain_mqtt_without_encryption_on_every_network: bool,
    /// MQTT over TLS, for nodes and tools, 0.0.0.0:8883 unless configured
    #[arg(long, env = "FLEET_MQTTS", value_name = "ADDR")]
    pub mqtts: Option<SocketAddr>,
    /// HTTPS for nodes (joining, renewal, and agents in the field: /fleet/…, /api/v1/fleet/…, /report, /batch),
    /// 0.0.0.0:8443 unless configured
    #[arg(long, env = "FLEET_NODE_HTTPS", value_name = "ADDR")]
    pub node_https: Option<SocketAddr>,
    /// The paths of agents in the field without TLS, for boards that cannot: tokens and all that is said cross the
    /// network for everybody to read. Not served unless given
    #[arg(long, env = "FLEET_LEGACY_HTTP", value_name = "ADDR")]
    pub legacy_http: Option<SocketAddr>,
    /// The file of rules, rules.yaml in the data folder unless given
    #[arg(long, env = "FLEET_RULES", value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// The file that revocations are appended to, revocations.jsonl in the data folder unless given: on another disk it
    /// survives this one, and `fleet restore --revocations` shuts out again whom it names
    #[arg(long, env = "FLEET_REVOCATIONS", value_name = "FILE")]
    pub revocations: Option<PathBuf>,
}

/// How to log.
#[derive(Debug, Clone, Default, Args)]
pub struct LogArgs {
    /// The form of the log on the standard error; FLEET_LOG says how much, `fleet log-level` changes it
    #[arg(long, env = "FLEET_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: log::Format,
}

/// Flags of `fleet hub`; unset ones leave `fleet.toml` and the defaults alone.
#[derive(Debug, Clone, Default, Args)]
#[command(
    after_help = "Examples:\n  fleet hub\n  fleet hub --data /var/lib/fleet --http 127.0.0.1:0\n  fleet hub --print-config\n  \
    fleet hub --legacy-http 192.168.1.10:8880\n  FLEET_LOG=info fleet hub --log-format json\n\n\
    Agents in the field (PicClaw and forks, MoltClaw, NanoClaw) come by `Authorization: Bearer TOKEN`, a token of\n\
    `fleet field-token create`.\n\
    The bound addresses are printed and written to addresses.json in the data folder."
)]
pub struct HubArgs {
    /// Where to listen
    #[command(flatten)]
    pub listen: ListenArgs,
    /// Another file than fleet.toml in the data folder
    #[arg(long, env = "FLEET_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How to log
    #[command(flatten)]
    pub log: LogArgs,
    /// Announce nodes and devices to Home Assistant over MQTT
    #[arg(long, env = "FLEET_HOME_ASSISTANT")]
    pub home_assistant: bool,
    /// Print the configuration as it would be used, and leave
    #[arg(long)]
    pub print_config: bool,
}

/// Flags of `fleet demo`.
#[derive(Debug, Clone, Default, Args)]
#[command(
    after_help = "Examples:\n  fleet demo\n  fleet demo --nodes 5 --story\n  fleet demo --nodes 10 --data /tmp/demo\n\n\
    Takes free ports where the usual ones are taken. Ctrl-C stops it; the data stay.\n\n\
    A node is cut off from the hub while there is a file DATA/nodes/NODE/offline, and buffers meanwhile:\n  \
    touch fleet-data/nodes/demo-2/offline\n  rm fleet-data/nodes/demo-2/offline"
)]
pub struct DemoArgs {
    /// Where to listen
    #[command(flatten)]
    pub listen: ListenArgs,
    /// How to log
    #[command(flatten)]
    pub log: LogArgs,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub nodes: u16,
    /// Play a story of three minutes: a room overheats, a node loses its link and comes back with its backlog
    #[arg(long)]
    pub story: bool,
}

pub(super) async fn hub(args: HubArgs, common: &Common) -> Result<(), Failure> {
    let mut config = load(&args.listen, args.config, common)?;
    config.home_assistant.enabled |= args.home_assistant;
    if args.print_config {
        print!("{}", config.print());
        return Ok(());
    }
    log(&args.log);
    run::hub(&config, shutdown()?).await.map_err(|error| failed(&error))
}

pub(super) async fn demo(args: DemoArgs, common: &Common) -> Result<(), Failure> {
    let config = load(&args.listen, None, common)?;
    log(&args.log);
    let ListenArgs { http, mqtt, mqtts, node_https, .. } = &args.listen;
    let named = demo::Named {
        http: http.is_some(),
        mqtt: mqtt.is_some(),
        mqtts: mqtts.is_some(),
        node_https: node_https.is_some(),
    };
    demo::demo(&config, named, args.nodes, args.story, shutdown()?).await.map_err(|error| failed(&error))
}

fn load(listen: &ListenArgs, file: Option<PathBuf>, common: &Common) -> Result<Config, Failure> {
    let overrides = Overrides {
        file,
        http: listen.http,
        http_tls: listen.http_tls,
        mqtt: listen.mqtt,
        plain_anywhere: listen.plain_mqtt_without_encryption_on_every_network,
        mqtts: listen.mqtts,
        node_https: listen.node_https,
        legacy_http: listen.legacy_http,
        rules: listen.rules.clone(),
        revocations: listen.revocations.clone(),
    };
    Config::load(common.data(), &overrides).map_err(|error| failed(&StartError::Config(error)))
}

fn failed(error: &StartError) -> Failure {
    Failure::Failed(format!("failed to start: {error}"))
}

/// Logs to the standard error: warnings, or what `FLEET_LOG` asks for.
fn log(args: &LogArgs) {
    let level = std::env::var("FLEET_LOG").unwrap_or_else(|_| log::LEVEL.to_owned());
    log::start(args.log_format, &level);
}

/// Completes at SIGINT or SIGTERM, also at one that came before anybody waited for it: from this call on none ends the
/// process halfway.
fn shutdown() -> Result<impl Future<Output = ()>, Failure> {
    let signal = |kind, name| {
        signal(kind).map_err(|error| Failure::Failed(format!("failed to listen for {name}: {error}")))
    };
    let mut terminate = signal(SignalKind::terminate(), "SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt(), "SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
