//! The command line: one file per verb, one place that maps what happened to an exit code.

mod ask;
mod device;
mod join;
mod launch;
mod logging;
mod outbox;
mod packaged;
mod run;
#[cfg(test)]
mod shipped;
mod status;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use fleet_edge_agent::config::{Config, ConfigError, Flags};
use fleet_schemas::NodeId;

/// The Clawland Fleet agent for one edge machine.
#[derive(Debug, Parser)]
#[command(name = "fleet-agent", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  fleet-agent join hub.example --token-file token --data /var/lib/fleet-agent
  fleet-agent run --data /var/lib/fleet-agent
  fleet-agent run --hub mqtt://127.0.0.1:1883 --node edge-1     a hub on this machine
  fleet-agent launch --data /var/lib/fleet-agent                as run, and the hub can update the agent
  fleet-agent run --print-config > agent.toml
  fleet-agent status
  fleet-agent outbox -o json
  fleet-agent device add shed                                   prints its password, once

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 denied, 5 not reachable, 7 conflict.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make this machine a node of a hub, with a join token
    Join(join::Join),
    /// Run the agent until SIGTERM or SIGINT
    Run(run::Run),
    /// Run the agent as its child, so that the hub can update it: a release that fails is returned from
    Launch(launch::Launch),
    /// Become a release of the agent: how the launcher starts one
    #[command(hide = true)]
    Become(launch::Become),
    /// Tell how the running agent is
    Status(status::Status),
    /// Tell what the outbox holds, also while the agent is stopped
    Outbox(outbox::Outbox),
    /// Register, list and remove the devices behind the node, and give them passwords
    Device(device::Device),
}

/// Where the agent lives and where it is asked: the same for every verb.
#[derive(Debug, Clone, Args)]
struct Place {
    /// The data folder: outbox, identity, agent.toml [env: FLEET_DATA] [default: ./fleet-agent-data, else the package's]
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<PathBuf>,
    /// Address of the edge API; port 0 picks one [env: FLEET_API] [default: 127.0.0.1:9099]
    #[arg(long, value_name = "ADDR", global = true)]
    api: Option<SocketAddr>,
    /// The hub, as mqtts://host:port, or mqtt://host:port on this machine [env: FLEET_HUB] [default: where it joined]
    #[arg(long, value_name = "URL", global = true)]
    hub: Option<fleet_edge_agent::mqtt::HubUrl>,
    /// The node's id, never to change [env: FLEET_NODE] [default: as joined, else the host's name]
    #[arg(long, value_name = "ID", global = true)]
    node: Option<NodeId>,
    /// File with the node's secret [env: FLEET_SECRET_FILE] [default: identity/secret in the data folder]
    #[arg(long, value_name = "FILE", global = true)]
    secret_file: Option<PathBuf>,
    /// Another file than agent.toml in the data folder [env: FLEET_CONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl Place {
    fn load(self) -> Result<Config, ConfigError> {
        let Self { data, api, hub, node, secret_file, config } = self;
        load(Flags { data, file: config, node, hub, api, secret_file })
    }
}

fn load(flags: Flags) -> Result<Config, ConfigError> {
    let flags = packaged::places(flags);
    let variables: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("FLEET_"))
        .collect();
    Config::load(flags, &variables)
}

/// What ends a verb early, by exit code.
enum Failure {
    /// 1.
    Failed(anyhow::Error),
    /// 2: flags, variables or `agent.toml` are wrong.
    Usage(anyhow::Error),
    /// 3.
    NotFound(anyhow::Error),
    /// 4.
    Denied(anyhow::Error),
    /// 5.
    Unreachable(anyhow::Error),
    /// 7.
    Conflict(anyhow::Error),
    /// 75 (`EX_TEMPFAIL` of sysexits): not a failure, but a wish to be started again.
    Again,
    /// 126: a release cannot be executed.
    Unrunnable(anyhow::Error),
    /// The code with which the launcher's agent ended.
    AsAgent(u8),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.into())
    }
}

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let done = match cli.verb {
        Verb::Join(verb) => verb.main(),
        Verb::Run(verb) => verb.main(),
        Verb::Launch(verb) => verb.main(),
        Verb::Become(verb) => verb.main(),
        Verb::Status(verb) => verb.main(),
        Verb::Outbox(verb) => verb.main(),
        Verb::Device(verb) => verb.main(),
    };
    let (code, error) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => (1, error),
        Err(Failure::Usage(error)) => (2, error),
        Err(Failure::NotFound(error)) => (3, error),
        Err(Failure::Denied(error)) => (4, error),
        Err(Failure::Unreachable(error)) => (5, error),
        Err(Failure::Conflict(error)) => (7, error),
        Err(Failure::Again) => return ExitCode::from(75),
        Err(Failure::Unrunnable(error)) => (126, error),
        Err(Failure::AsAgent(code)) => return ExitCode::from(code),
    };
    eprintln!("fleet-agent: {error:#}");
    ExitCode::from(code)
}

/// Prints to standard output; a reader that went away is no failure.
fn print(text: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A runtime with one thread: the agent is small.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(anyhow::Error::new(error).context("failed to start the runtime")))
}
