//! `fleet-agent join`.

use std::{
    io::{self, Read as _},
    path::PathBuf,
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use fleet_edge_agent::{
    config::Flags,
    identity::{
        certificate::Certificate,
        folder::FolderError,
        https::AskError,
        join::{HubAddress, JoinError, Outcome, Progress, Wish, join},
        record::Joined,
        trust::Trouble,
    },
};
use fleet_schemas::{
    NodeId,
    enrol::{JoinToken, RefusalCode},
};
use serde::Serialize;

use super::{Failure, Format, load, packaged, print, runtime, status::json};

/// Largest text that is read for a token, in bytes: one has about 110.
const TOKEN_BYTES: u64 = 4_096;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Join {
    /// The hub: host, host:port or https://host:port; the port is that of HTTPS for nodes, 8443 if none is given
    #[arg(value_name = "HUB")]
    hub: HubAddress,
    /// The join token that `fleet join-token create` printed; - reads it from standard input
    #[arg(long, value_name = "T", env = "FLEET_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File with the join token; - is standard input
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The id that the node would like to have; never to change [env: FLEET_NODE] [default: the host's name and 4 digits
    /// of its key's hash]
    #[arg(long, value_name = "ID")]
    node: Option<NodeId>,
    /// A name for people
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// The data folder [env: FLEET_DATA] [default: ./fleet-agent-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Leave the hub that was joined before, or join the same one anew with a new key
    #[arg(long)]
    force: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

const EXAMPLES: &str = "\
Examples:
  fleet-agent join hub.example --token-file token --node edge-1 --data /var/lib/fleet-agent
  fleet-agent join 192.168.1.10:8443 --token fleet-join.…
  ssh hub fleet join-token create | ssh edge fleet-agent join hub.example --token -
  FLEET_JOIN_TOKEN=fleet-join.… fleet-agent join hub.example     does not show in the list of processes

The key is made here and never leaves this machine. Nothing is said to a hub that does not show the CA of the token.
May be broken off and run again: it asks with the same key, and is given the same answer.

Exit codes: 0 done, 1 failed, 2 usage, 3 the hub does not know the token, 4 denied, 5 the hub is not reachable,
7 the node id is taken, or this machine belongs to another hub.";

/// What is printed with `-o json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    outcome: &'static str,
    node: &'a NodeId,
    hub: String,
    mqtts_port: u16,
    certificate_ends_ms: Option<i64>,
    data: &'a str,
}

impl Join {
    pub(super) fn main(self) -> Result<(), Failure> {
        let token = self.token()?;
        let Self { hub, node, name, data, force, output, .. } = self;
        let config = load(Flags { data, node, ..Flags::default() })?;
        let node = config.wished_id();
        let data = config.data;
        packaged::become_owner(&data, Some(token.to_string()))?;
        let name = name.or(config.node.name);
        let wish = Wish { hub, token, node, name, data, force };
        let joined = runtime()?.block_on(join(&wish, tell));
        let outcome = joined.map_err(failure)?;
        let data = wish.data.display().to_string();
        print(&match output {
            Format::Json => json(&report(&outcome, &data)),
            Format::Table => text(&outcome, &data),
        });
        Ok(())
    }

    fn token(&self) -> Result<JoinToken, Failure> {
        let usage = Failure::Usage;
        // The file is the stronger word: it is a flag, and the token may come from the surroundings.
        let text = match (&self.token_file, self.token.as_deref()) {
            (Some(path), _) if path.as_os_str() == "-" => stdin().map_err(usage)?,
            (Some(path), _) => {
                let read = |path| io::read_to_string(std::fs::File::open(path)?.take(TOKEN_BYTES));
                read(path)
                    .with_context(|| format!("the token file {} cannot be read", path.display()))
                    .map_err(usage)?
            }
            (None, Some("-")) => stdin().map_err(usage)?,
            (None, Some(text)) => text.to_owned(),
            (None, None) => {
                return Err(usage(anyhow!(
                    "no join token: give --token or --token-file; `fleet join-token create` on the hub makes one"
                )));
            }
        };
        text.parse().map_err(|error: fleet_schemas::enrol::TokenError| usage(error.into()))
    }
}

fn stdin() -> anyhow::Result<String> {
    io::read_to_string(io::stdin().take(TOKEN_BYTES)).context("the token cannot be read from standard input")
}

fn tell(progress: Progress<'_>) {
    match progress {
        Progress::Pending(pending) => eprintln!(
            "fleet-agent: {} waits for approval: run `fleet node approve {}` on the hub. \
             Ctrl-C is safe: the same command goes on with the same key",
            pending.node, pending.node
        ),
        Progress::Waiting(error) => eprintln!("fleet-agent: still waiting: {error}"),
    }
}

fn report<'a>(outcome: &'a Outcome, data: &'a str) -> Report<'a> {
    let (outcome, joined): (_, &Joined) = match outcome {
        Outcome::Joined(joined) => ("joined", joined),
        Outcome::Already(joined) => ("already_joined", joined),
        Outcome::Moved(joined) => ("moved", joined),
    };
    Report {
        outcome,
        node: &joined.node,
        hub: joined.hub.to_string(),
        mqtts_port: joined.hub.mqtts_port,
        certificate_ends_ms: ends(joined),
        data,
    }
}

fn ends(joined: &Joined) -> Option<i64> {
    Certificate::from_pem(&joined.current.certificate).ok().map(|certificate| certificate.not_after_ms)
}

fn text(outcome: &Outcome, data: &str) -> String {
    let next = format!("Next: fleet-agent run --data {data}");
    match outcome {
        Outcome::Joined(joined) => {
            format!("joined the hub at {} as node {}\n{next}\n", joined.hub, joined.node)
        }
        Outcome::Already(joined) => format!(
            "this machine is already node {} of the hub at {}; nothing changed (--force joins anew)\n{next}\n",
            joined.node, joined.hub
        ),
        Outcome::Moved(joined) => format!(
            "this machine is already node {} of this hub, which is found at {} from now on\n{next}\n",
            joined.node, joined.hub
        ),
    }
}

fn failure(error: JoinError) -> Failure {
    let class: fn(anyhow::Error) -> Failure = match &error {
        JoinError::Elsewhere { .. } | JoinError::Folder(FolderError::InUse { .. }) => Failure::Conflict,
        JoinError::Folder(
            FolderError::Io { .. } | FolderError::Damaged { .. } | FolderError::Newer { .. },
        )
        | JoinError::Unfit(_)
        | JoinError::Config(_)
        | JoinError::Key(_) => Failure::Failed,
        JoinError::Ask(ask) => match ask {
            AskError::Unreachable { .. } | AskError::Slow(_) | AskError::Broken(..) => Failure::Unreachable,
            AskError::Strange { .. } => Failure::Failed,
            AskError::Tls { trouble, .. } => match trouble {
                Trouble::WrongCa | Trouble::NotTheHub | Trouble::Ours(_) => Failure::Denied,
                Trouble::Ended | Trouble::Other(_) => Failure::Failed,
                Trouble::NotTls => Failure::Unreachable,
            },
            AskError::Refused(refused) => match refused.code {
                RefusalCode::TokenUnknown => Failure::NotFound,
                RefusalCode::TokenSecret
                | RefusalCode::TokenExpired
                | RefusalCode::TokenUsed
                | RefusalCode::Revoked
                | RefusalCode::BadCertificate
                | RefusalCode::TooLate => Failure::Denied,
                RefusalCode::NodeExists => Failure::Conflict,
                RefusalCode::Unavailable => Failure::Unreachable,
                RefusalCode::BadRequest | RefusalCode::ClockInDoubt | RefusalCode::Other => Failure::Failed,
            },
        },
    };
    class(anyhow::Error::new(error).context("failed to join"))
}
