//! `fleet field-token`: what agents come with that speak a field dialect over HTTP.

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, Subcommand};
use fleet_schemas::NodeId;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Context, Failure,
    output::{Cell, Table, read, time, tone, until},
    period,
    place::{Place, joined},
};
use crate::api::shapes::{FieldToken, NewFieldToken};

/// The verbs on field tokens.
#[derive(Debug, Subcommand)]
pub(super) enum FieldTokenVerb {
    /// Make a token for one agent (PicClaw, MoltClaw, NanoClaw, …) and print it, this once
    #[command(
        after_help = "Examples:\n  fleet field-token create\n  fleet field-token create --node dc-rack-a1 --label site=berlin\n  \
        fleet field-token create -o json | jq -r .token\n\n\
        The agent sends it as `Authorization: Bearer TOKEN` to the hub's port for nodes. The token serves the first\n\
        node that comes with it, or the one that --node names, and no other."
    )]
    Create(CreateArgs),
    /// List tokens and the nodes they serve
    #[command(after_help = "Examples:\n  fleet field-token ls")]
    Ls,
    /// Take a token back; whoever comes with it is refused at once
    #[command(after_help = "Examples:\n  fleet field-token rm k3x9m2p7qa")]
    Rm {
        /// Its id
        id: String,
    },
}

/// What the token is good for.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The node that it serves; also one that is known already. Without it: the first that comes
    #[arg(long, value_name = "NODE")]
    node: Option<NodeId>,
    /// How long it lives; for ever unless given
    #[arg(long, value_parser = period::parse)]
    ttl: Option<Duration>,
    /// A label that its node gets; repeat for more
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
}

const PATH: [&str; 3] = ["api", "v1", "field-tokens"];

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: FieldTokenVerb, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    match verb {
        FieldTokenVerb::Create(args) => create(args, context).await,
        FieldTokenVerb::Ls => {
            let items: Vec<Value> = client.list(&PATH, &[], None).await?;
            let now_ms = super::node::now(context).await?;
            let tokens: Vec<FieldToken> = read(&items)?;
            out.show(&json!({ "items": items, "next": null }), || {
                if tokens.is_empty() {
                    "no field tokens; make one with `fleet field-token create`\n".to_owned()
                } else {
                    table(&tokens, now_ms).text(out.color)
                }
            })
        }
        FieldTokenVerb::Rm { id } => {
            client.change(Method::DELETE, &[&PATH[..], &[&id]].concat(), None).await?;
            out.show(&Value::Null, || format!("field token {id} removed\n"))
        }
    }
}

async fn create(args: CreateArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let pair = |text: &'_ String| Failure::Usage(format!("--label {text}: write KEY=VALUE"));
    let labels: Result<BTreeMap<&str, &str>, Failure> =
        args.labels.iter().map(|text| text.split_once('=').ok_or_else(|| pair(text))).collect();
    let place = Place::of(client).await?;
    let ttl_s = args.ttl.map(|ttl| ttl.as_secs().max(1));
    let body = json!({ "node": args.node, "ttl_s": ttl_s, "labels": labels? });
    let value = client.change(Method::POST, &PATH, Some(&body)).await?;
    let made: NewFieldToken = serde_json::from_value(value.clone())
        .map_err(|error| Failure::Failed(format!("the hub's answer is not understood: {error}")))?;
    let at = |name: &str, scheme: &str| Some(format!("{scheme}://{}", joined(&place.address(name)?)));
    let urls = [at("node_https", "https"), at("legacy_http", "http")];
    out.show(&value, || text(&made, &urls.into_iter().flatten().collect::<Vec<_>>()))
}

fn text(made: &NewFieldToken, urls: &[String]) -> String {
    let node = made.node.as_deref().unwrap_or("the first node that comes with it");
    let until = made.expires_ms.map_or_else(String::new, |ends| format!(" until {} UTC", time(ends)));
    let mut text = format!("{}\n\nFor {node}, and no other{until}; it is not shown again.\n", made.token);
    for url in urls {
        text.push_str(&format!("The agent's endpoint:\n  {url}\n"));
    }
    text
}

fn table(tokens: &[FieldToken], now_ms: i64) -> Table {
    let mut table = Table::new(&["id", "state", "node", "expires", "labels", "made", "made by"]);
    for token in tokens {
        let labels: Vec<_> = token.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        table.row(vec![
            Cell::left(&token.id),
            Cell::toned(&token.state, tone(&token.state)),
            Cell::left(token.node.as_deref().unwrap_or_default()),
            Cell::left(until(now_ms, token.expires_ms)),
            Cell::left(labels.join(",")),
            Cell::left(time(token.created_ms)),
            Cell::left(&token.created_by),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_with_whom_it_serves_and_where() {
        let made = NewFieldToken { token: "fleet-field.a.b".into(), ..NewFieldToken::default() };
        insta::assert_snapshot!(text(&made, &["https://10.0.0.7:8443".to_owned()]), @r"
        fleet-field.a.b

        For the first node that comes with it, and no other; it is not shown again.
        The agent's endpoint:
          https://10.0.0.7:8443
        ");
    }
}
