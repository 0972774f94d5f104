//! `fleet hub` and `fleet demo`: flags, handed over to [`crate::run`].

use std::net::SocketAddr;

use clap::Args;

use super::{Common, Failure};

/// Where to listen; port 0 picks a free one.
#[derive(Debug, Clone, Default, Args)]
pub struct ListenArgs {
    /// Operators' HTTP, 127.0.0.1:8080 unless configured
    #[arg(long, env = "FLEET_HTTP", value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// Plain MQTT, loopback only, 127.0.0.1:1883 unless configured
    #[arg(long, env = "FLEET_MQTT", value_name = "ADDR")]
    pub mqtt: Option<SocketAddr>,
    /// MQTT over TLS
    #[arg(long, env = "FLEET_MQTTS", value_name = "ADDR")]
    pub mqtts: Option<SocketAddr>,
    /// HTTPS for nodes
    #[arg(long, env = "FLEET_NODE_HTTPS", value_name = "ADDR")]
    pub node_https: Option<SocketAddr>,
}

/// Flags of `fleet hub`; unset ones leave `fleet.toml` and the defaults alone.
#[derive(Debug, Clone, Default, Args)]
#[command(
    after_help = "Examples:\n  fleet hub\n  fleet hub --data /var/lib/fleet --http 127.0.0.1:0\n  fleet hub --print-config\n\n\
    The bound addresses are printed and written to addresses.json in the data folder."
)]
pub struct HubArgs {
    /// Where to listen
    #[command(flatten)]
    pub listen: ListenArgs,
    /// Print the configuration as it would be used, and leave
    #[arg(long)]
    pub print_config: bool,
}

/// Flags of `fleet demo`.
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "Examples:\n  fleet demo\n  fleet demo --nodes 10 --data /tmp/demo\n\n\
    Takes free ports where the usual ones are taken. Ctrl-C stops it; the data stay.")]
pub struct DemoArgs {
    /// Where to listen
    #[command(flatten)]
    pub listen: ListenArgs,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub nodes: u16,
}

pub(super) async fn hub(_args: HubArgs, _common: &Common) -> Result<(), Failure> {
    Err(Failure::Failed(String::new()))
}

pub(super) async fn demo(_args: DemoArgs, _common: &Common) -> Result<(), Failure> {
    Err(Failure::Failed(String::new()))
}
