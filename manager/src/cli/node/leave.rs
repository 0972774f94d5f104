//! `fleet node move` and `fleet node rm`: how a node leaves a hub, for another or for good.

use std::{collections::BTreeSet, ffi::OsString, time::Duration};

use clap::Args;
use fleet_schemas::{NodeId, enrol::JoinToken};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time;

use super::super::{
    Context, Failure,
    order::{self, Order},
    period,
};
use crate::{
    api::shapes::{Ledger, Node},
    clock,
};

/// How long the node may take to say goodbye once its new hub has said yes.
const GOODBYE: Duration = Duration::from_secs(120);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(500);

/// Where a node goes.
#[derive(Debug, Args)]
pub(in crate::cli) struct MoveArgs {
    /// The node's id
    node: NodeId,
    /// The new hub, as the node reaches it: host, host:port or https://host:port of HTTPS for nodes; --hub behind `move`
    /// is the same
    #[arg(long, value_name = "URL")]
    to_hub: String,
    /// A join token of the new hub; --token behind `move` is the same
    #[arg(long, value_name = "T")]
    to_token: JoinToken,
    /// How long it may take to deliver what it has to this hub
    #[arg(long, value_parser = period::parse, default_value = "1h")]
    timeout: Duration,
    /// How long it may be away before that
    #[arg(long, value_parser = period::parse, default_value = "10m")]
    ttl: Duration,
}

/// Which nodes go, and what becomes of what they told.
#[derive(Debug, Args)]
pub(in crate::cli) struct RmArgs {
    /// Their ids
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<NodeId>,
    /// Keep its history: it stays readable by the node's id
    #[arg(long, required_unless_present = "purge", conflicts_with = "purge")]
    keep_data: bool,
    /// Forget its history with it
    #[arg(long)]
    purge: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// The command line with `--hub` and `--token` behind `node move` as the new hub's: before it they are, as everywhere,
/// the hub that is asked and the operator's token.
pub(in crate::cli) fn new_hub(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<_> = words.collect();
    let Some(at) = words.windows(2).position(|pair| pair[0] == "node" && pair[1] == "move") else {
        return words;
    };
    for word in &mut words[at + 2..] {
        let Some(text) = word.to_str() else { continue };
        for (flag, own) in [("--hub", "--to-hub"), ("--token", "--to-token")] {
            let rest = text.strip_prefix(flag).filter(|rest| rest.is_empty() || rest.starts_with('='));
            if let Some(rest) = rest {
                *word = format!("{own}{rest}").into();
                break;
            }
        }
    }
    words
}

/// `fleet node move`.
///
/// # Errors
/// [`Failure`]; the node is still at this hub.
pub(in crate::cli) async fn leave(args: &MoveArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let node: Node = client.get(&["api", "v1", "nodes", args.node.as_str()], &[]).await?;
    if node.state != "online" {
        eprintln!("{} is {}; waiting for it for up to {:?}", node.id, node.state, args.ttl);
    }
    let order = Order {
        node: &args.node,
        kind: "move",
        params: json!({ "hub": args.to_hub, "token": args.to_token.to_string() }),
        ttl: args.ttl,
        timeout: args.timeout,
        queue: Some("move"),
    };
    let execution = order::done(&order, context, |execution| {
        let what = match execution.state.as_str() {
            "sent" => "told",
            "running" => "delivers what it has, and asks the new hub",
            other => other,
        };
        eprintln!("{}: {what}", execution.node);
    });
    let execution = execution.await?;
    if execution.state != "succeeded" {
        let why = order::reason(&execution).map_or_else(String::new, |why| format!(": {}", why.message));
        return Err(Failure::Failed(format!("{} stays at this hub ({}){why}", args.node, execution.state)));
    }
    eprintln!("{}: the new hub has taken it; it leaves once all is delivered here", args.node);
    gone(&args.node, context).await?;
    let account: Ledger = client.get(&["api", "v1", "ledger"], &[("node", args.node.as_str())]).await?;
    let at_edge: u64 = account.accounts.iter().map(|account| account.at_edge).sum();
    let result = execution.result.unwrap_or(Value::Null);
    let new = result["node"].as_str().unwrap_or(args.node.as_str()).to_owned();
    let value = json!({ "node": args.node, "hub": result["hub"], "new_node": new, "balanced": account.balanced, "at_edge": at_edge });
    out.show(&value, || {
        format!(
            "{node} has left for {hub}, where it is {new}; {at_edge} of its records are missing here\n\
             What it told stays here until you remove it: fleet node rm {node} --keep-data\n",
            node = args.node,
            hub = args.to_hub,
        )
    })
}

/// Until the node has said goodbye.
async fn gone(id: &NodeId, context: &Context) -> Result<(), Failure> {
    let until = clock::mono() + GOODBYE;
    loop {
        let node: Node = context.client.get(&["api", "v1", "nodes", id.as_str()], &[]).await?;
        if node.state != "online" {
            return Ok(());
        }
        if clock::mono() >= until {
            return Err(Failure::Partly(format!(
                "{id} has a place at the new hub and has not left this one within {GOODBYE:?}: it goes by itself once all is \
                 delivered; `fleet node get {id}`, `fleet node logs {id}`"
            )));
        }
        time::sleep(LOOK).await;
    }
}

/// `fleet node rm`.
///
/// # Errors
/// [`Failure`].
pub(in crate::cli) async fn rm(args: &RmArgs, context: &Context) -> Result<(), Failure> {
    let nodes: BTreeSet<&NodeId> = args.nodes.iter().collect();
    let names = nodes.iter().map(|node| node.as_str()).collect::<Vec<_>>().join(", ");
    let what = if args.purge { "forget them with all they ever told" } else { "keep what they told" };
    if !args.yes && !super::agreed(&format!("remove {names} from the fleet and {what}? [y/N] "))? {
        return Err(Failure::Failed("nothing was changed".to_owned()));
    }
    let data = if args.purge { "purge" } else { "keep" };
    let (mut removed, mut failures) = (Vec::new(), Vec::new());
    for node in &nodes {
        let path = ["api", "v1", "nodes", node.as_str()];
        match context.client.change_with(Method::DELETE, &path, &[("data", data)], None, None).await {
            Ok(_) => removed.push(node.to_string()),
            Err(failure) if nodes.len() == 1 => return Err(failure),
            Err(failure) => failures.push(format!("{node}: {failure}")),
        }
    }
    context.out.show(&json!({ "removed": removed, "data": data }), || {
        removed.iter().map(|node| format!("{node} removed\n")).collect()
    })?;
    match (failures.len(), removed.len()) {
        (0, _) => Ok(()),
        (_, 0) => Err(Failure::Failed(failures.join("\n"))),
        (bad, _) => Err(Failure::Partly(format!("{bad} not removed\n  {}", failures.join("\n  ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_move_the_hub_is_the_new_one() {
        let told = |line: &str| {
            let words = new_hub(line.split(' ').map(OsString::from));
            words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            told("fleet --hub http://a --token b node move edge-1 --hub c:8443 --token=d"),
            "fleet --hub http://a --token b node move edge-1 --to-hub c:8443 --to-token=d"
        );
        let other = "fleet node get move --hub http://a --token b";
        assert_eq!(told(other), other);
    }
}
