//! `fleet log-level`: how much the hub logs, changed while it runs.

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Context, Failure};
use crate::api::shapes::LogLevel;

const PATH: [&str; 3] = ["api", "v1", "log-level"];

/// What to log.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fleet log-level                                   what it is\n  \
    fleet log-level info\n  fleet log-level warn,fleet_broker=debug           by module\n  \
    fleet config set node/edge-1 log.level=info,fleet_edge_agent::mqtt=debug   the same of a node's agent\n\n\
    In force at once, until the hub starts again; for good: FLEET_LOG.")]
pub(super) struct LogLevelArgs {
    /// off, error, warn, info, debug or trace, or a list with MODULE=LEVEL
    level: Option<String>,
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(args: &LogLevelArgs, context: &Context) -> Result<(), Failure> {
    let value: Value = match &args.level {
        None => context.client.get(&PATH, &[]).await?,
        Some(level) => context.client.change(Method::PUT, &PATH, Some(&json!({ "level": level }))).await?,
    };
    let shown: LogLevel = super::output::read(std::slice::from_ref(&value))?.remove(0);
    context.out.show(&value, || {
        if shown.level == shown.at_start {
            format!("{}\n", shown.level)
        } else {
            format!("{}   ({} when the hub started)\n", shown.level, shown.at_start)
        }
    })
}
