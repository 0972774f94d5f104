//! `fleet command`: tell nodes what to do, watch them do it, look at what became of it, take it back.
//!
//! Owns the verbs and their flags; [`watch`] follows executions, [`screen`] shows them live, [`show`] shows them still.

mod ask;
mod screen;
mod seen;
mod show;
mod watch;

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use fleet_schemas::{CommandId, NodeId};

use super::{Context, Failure, period};

const RULE: &str = "\
Exit code: 0 when it succeeded at every node. Otherwise, of one node whose program ended with a code: that code. \
Else 6 when some nodes succeeded and some did not, 1 when none did (failed, timed_out, rejected, canceled, expired, \
superseded); 2 to 7 as for every verb when it could not be made or watched; 130 after Ctrl-C. With --no-wait: 0 once \
the hub has it.";

const RUN: &str = "\
Examples:
  fleet command run edge-1 -- uptime
  fleet command run -l 'site=berlin,state=online' -- df -h
  fleet command run --all --kind ping --ttl 10m
  fleet command run edge-1 edge-2 --kind query --param what=system -o json
  fleet command run --all --dry-run --kind ping                   which nodes would get it
  fleet command run edge-1 --kind device --param device=shed --param action=restart   a board behind it
  fleet command run -l site=berlin --rate 5 --rate-per-site 1 --kind restart --param what=agent

Output of programs goes to stdout (behind NODE | when there are several nodes), states go to stderr. Ctrl-C stops \
watching and cancels nothing.";

/// The verbs on commands.
#[derive(Debug, Subcommand)]
pub(super) enum CommandVerb {
    /// Tell nodes to do something, and watch until it is over everywhere
    #[command(after_help = format!("{RUN}\n\n{RULE}"))]
    Run(Box<RunArgs>),
    /// Show a command: where it stands at each node, with output and results
    #[command(
        after_help = format!("Examples:\n  fleet command get 0199…\n  fleet command get 0199… --node edge-1 -o json\n  \
        fleet command get 0199… --follow                                watch on, as `fleet command run` does\n\n\
        With --follow: {RULE}")
    )]
    Get(GetArgs),
    /// List commands, newest first
    #[command(
        after_help = "Examples:\n  fleet command ls\n  fleet command ls --node edge-1 --state queued\n  \
        fleet command ls --kind exec --limit 200 -o json"
    )]
    Ls(LsArgs),
    /// Take a command back: at once where it waits at the hub, elsewhere the nodes are asked
    #[command(
        after_help = "Examples:\n  fleet command cancel 0199…\n  fleet command cancel 0199… edge-1 edge-2\n\n\
        A node may answer that it is too late. Exit code 7 when it was over already at every node."
    )]
    Cancel {
        /// The command's id
        id: CommandId,
        /// Only at these nodes
        #[arg(value_name = "NODE")]
        nodes: Vec<NodeId>,
    },
    /// Let a command go on that is held since the hub was restored from a backup: it may have been done already
    #[command(
        after_help = "Examples:\n  fleet command approve 0199…\n  fleet command approve 0199… edge-1\n\n\
        Look first what became of it at the node. `fleet command cancel` ends it instead."
    )]
    Approve {
        /// The command's id
        id: CommandId,
        /// Only at these nodes
        #[arg(value_name = "NODE")]
        nodes: Vec<NodeId>,
    },
}

/// Whom to tell, what, and how.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("whom").required(true).args(["nodes", "selector", "all"]),
    group = ArgGroup::new("what").required(true).args(["kind", "program"]),
)]
pub(super) struct RunArgs {
    /// Their ids
    #[arg(value_name = "NODE")]
    nodes: Vec<NodeId>,
    /// All nodes that match; as in `fleet node ls -l`
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Every node
    #[arg(long)]
    all: bool,
    /// What to do: ping, exec, restart, config, update, query, logs, local, device or move
    #[arg(long)]
    kind: Option<String>,
    /// A parameter of the kind; the value is JSON where it reads as such, else text. Repeat for more
    #[arg(long = "param", value_name = "KEY=VALUE", requires = "kind")]
    params: Vec<String>,
    /// A program of the nodes' allow-lists and its arguments
    #[arg(last = true, value_name = "PROGRAM", conflicts_with = "kind")]
    program: Vec<String>,
    /// How long it may wait to begin, such as 10m; then it expires
    #[arg(long, value_parser = period::parse, default_value = "1h")]
    ttl: Duration,
    /// How long it may run
    #[arg(long, value_parser = period::parse, default_value = "60s")]
    timeout: Duration,
    /// Commands of one queue run one after the other, queues beside each other
    #[arg(long)]
    queue: Option<String>,
    /// Within its queue, higher goes first: -128 to 127
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i8,
    /// Commands with the same key that still wait give way to this one
    #[arg(long, value_name = "KEY")]
    supersedes: Option<String>,
    /// Doing it twice is the same as doing it once: a node that lost it gets it again
    #[arg(long)]
    idempotent: bool,
    /// Not to begin before: a period from now, such as 30m, or a time, such as 2026-12-01T06:00:00Z
    #[arg(long, value_name = "WHEN")]
    not_before: Option<String>,
    /// How many nodes a second
    #[arg(long, value_name = "NODES", value_parser = per_second)]
    rate: Option<f64>,
    /// How many nodes a second of one site
    #[arg(long, value_name = "NODES", value_parser = per_second)]
    rate_per_site: Option<f64>,
    /// Given again with the same request, such as by a script that repeats, it makes no second command
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Do not watch
    #[arg(long)]
    no_wait: bool,
    /// Only show which nodes it would be for
    #[arg(long)]
    dry_run: bool,
}

/// Which command to show.
#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// Its id
    id: CommandId,
    /// Only at this node
    #[arg(long)]
    node: Option<NodeId>,
    /// Watch until it is over
    #[arg(long)]
    follow: bool,
}

/// Which commands to list.
#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Only of this node
    #[arg(long)]
    node: Option<NodeId>,
    /// Only with an execution in this state
    #[arg(long)]
    state: Option<String>,
    /// Only of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Most commands to list
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

fn per_second(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| format!("{text:?} is no number of nodes; examples are 5 and 0.5"))
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: CommandVerb, context: &Context) -> Result<(), Failure> {
    match verb {
        CommandVerb::Run(args) => ask::run(&args, context).await,
        CommandVerb::Get(args) => show::get(&args, context).await,
        CommandVerb::Ls(args) => show::ls(&args, context).await,
        CommandVerb::Cancel { id, nodes } => show::cancel(id, &nodes, context).await,
        CommandVerb::Approve { id, nodes } => show::approve(id, &nodes, context).await,
    }
}
