//! `fleet join-token`: what machines join with.

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, Subcommand};
use fleet_schemas::NodeId;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Context, Failure,
    node::now,
    output::{Cell, Table, clean, time, tone},
    period,
    place::{Place, joined},
};
use crate::api::shapes::{JoinToken, NewJoinToken};

/// The verbs on join tokens.
#[derive(Debug, Subcommand)]
pub(super) enum JoinTokenVerb {
    /// Make a token and print it, this once, with the line to paste at the machine
    #[command(
        after_help = "Examples:\n  fleet join-token create\n  fleet join-token create --ttl 7d --uses 50 --label site=berlin\n  \
        fleet join-token create --approve\n  fleet join-token create --replace edge-1"
    )]
    Create(CreateArgs),
    /// List tokens and who used them; ended ones for a week
    #[command(after_help = "Examples:\n  fleet join-token ls")]
    Ls,
    /// Take a token back; nodes that joined by it stay
    #[command(after_help = "Examples:\n  fleet join-token rm k3x9m2p7qa")]
    Rm {
        /// Its id
        id: String,
    },
}

/// What the token is good for.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// How long
    #[arg(long, default_value = "15m", value_parser = period::parse)]
    ttl: Duration,
    /// For how many nodes
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// A label that its nodes get; repeat for more
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Let each node wait for `fleet node approve`
    #[arg(long)]
    approve: bool,
    /// Give a new machine, or a node that was revoked, the place of this node
    #[arg(long, value_name = "NODE")]
    replace: Option<NodeId>,
}

const PATH: [&str; 3] = ["api", "v1", "join-tokens"];

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: JoinTokenVerb, context: &Context) -> Result<(), Failure> {
    match verb {
        JoinTokenVerb::Create(args) => create(args, context).await,
        JoinTokenVerb::Ls => ls(context).await,
        JoinTokenVerb::Rm { id } => {
            let path = [&PATH[..], &[&id]].concat();
            context.client.change(Method::DELETE, &path, None).await?;
            context.out.show(&Value::Null, || format!("join token {id} removed\n"))
        }
    }
}

async fn create(args: CreateArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let labels = labels(&args.labels)?;
    // Asked first: a token that cannot be pasted anywhere need not be made.
    let place = Place::of(client).await?;
    let body = json!({
        "ttl_s": args.ttl.as_secs().max(1), "uses": args.uses, "labels": labels, "approve": args.approve,
        "replace": args.replace,
    });
    let mut value = client.change(Method::POST, &PATH, Some(&body)).await?;
    let token: NewJoinToken = serde_json::from_value(value.clone())
        .map_err(|error| Failure::Failed(format!("the hub's token is not understood: {error}")))?;
    let address = place.address("node_https").map(|address| joined(&address));
    let join = address.map(|address| format!("fleet-agent join {address} --token {}", token.token));
    if let Some(join) = &join {
        value["join"] = json!(join);
    }
    out.show(&value, || text(&token, join.as_deref()))
}

fn text(token: &NewJoinToken, join: Option<&str>) -> String {
    let mut text = format!("{}\n\n", token.token);
    let uses = if token.uses == 1 { "one machine".to_owned() } else { format!("{} machines", token.uses) };
    text.push_str(&format!("For {uses}, until {} UTC; it is not shown again.\n", time(token.expires_ms)));
    match join {
        Some(join) => text.push_str(&format!("At the machine:\n  {join}\n")),
        None => text.push_str(
            "This hub serves no HTTPS for nodes, so nobody can join yet: start it with --node-https.\n",
        ),
    }
    if token.approve {
        text.push_str("Then let it in:\n  fleet node ls\n  fleet node approve NODE\n");
    }
    text
}

/// Reads KEY=VALUE pairs.
fn labels(texts: &[String]) -> Result<BTreeMap<&str, &str>, Failure> {
    let pair = |text: &'_ String| Failure::Usage(format!("--label {text}: write KEY=VALUE"));
    texts.iter().map(|text| text.split_once('=').ok_or_else(|| pair(text))).collect()
}

async fn ls(context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let items: Vec<Value> = client.list(&PATH, &[], None).await?;
    let now_ms = now(context).await?;
    let tokens: Vec<JoinToken> = super::output::read(&items)?;
    out.show(&json!({ "items": items, "next": null }), || {
        if tokens.is_empty() {
            "no join tokens; make one with `fleet join-token create`\n".to_owned()
        } else {
            table(&tokens, now_ms).text(out.color)
        }
    })
}

fn table(tokens: &[JoinToken], now_ms: i64) -> Table {
    let mut table = Table::new(&["id", "state", "expires", "used", "by", "labels", "made by", "notes"]);
    for token in tokens {
        let left = super::output::until(now_ms, Some(token.expires_ms));
        let labels: Vec<_> = token.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let replace = token.replace.as_ref().map(|node| format!("replaces {node}"));
        let approve = token.approve.then(|| "to be approved".to_owned());
        let notes: Vec<_> = replace.into_iter().chain(approve).collect();
        table.row(vec![
            Cell::left(&token.id),
            Cell::toned(&token.state, tone(&token.state)),
            Cell::left(left),
            Cell::right(format!("{}/{}", token.used_by.len(), token.uses)),
            Cell::left(clean(&token.used_by.join(","))),
            Cell::left(labels.join(",")),
            Cell::left(&token.created_by),
            Cell::left(notes.join(", ")),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> NewJoinToken {
        NewJoinToken { token: "fleet-join.a.b.c".into(), uses: 1, expires_ms: 0, ..NewJoinToken::default() }
    }

    #[test]
    fn a_token_comes_with_the_line_to_paste() {
        let join = "fleet-agent join 10.0.0.7:8443 --token fleet-join.a.b.c";
        insta::assert_snapshot!(text(&token(), Some(join)), @r"
        fleet-join.a.b.c

        For one machine, until 1970-01-01 00:00:00 UTC; it is not shown again.
        At the machine:
          fleet-agent join 10.0.0.7:8443 --token fleet-join.a.b.c
        ");
        let approve = text(&NewJoinToken { approve: true, uses: 5, ..token() }, None);
        assert!(
            approve.contains("5 machines")
                && approve.contains("node approve")
                && approve.contains("--node-https")
        );
    }

    #[test]
    fn labels_are_pairs() {
        assert_eq!(labels(&["a=b=c".to_owned()]).unwrap(), BTreeMap::from([("a", "b=c")]));
        assert_eq!(labels(&["a".to_owned()]).unwrap_err().code(), 2);
    }

    #[test]
    fn the_list_tells_what_became_of_each() {
        let used = JoinToken {
            id: "k3x9".into(),
            state: "used".into(),
            created_by: "admin".into(),
            expires_ms: 60_000,
            uses: 1,
            used_by: vec!["edge-1".into()],
            labels: [("site".to_owned(), "berlin".to_owned())].into(),
            ..JoinToken::default()
        };
        let waits = JoinToken {
            id: "m2p7".into(),
            state: "active".into(),
            created_by: "ada".into(),
            expires_ms: 900_000,
            uses: 20,
            approve: true,
            ..JoinToken::default()
        };
        insta::assert_snapshot!(table(&[used, waits], 120_000).text(false), @r##"
        ID    STATE   EXPIRES  USED  BY      LABELS       MADE BY  NOTES
        k3x9  used    over      1/1  edge-1  site=berlin  admin
        m2p7  active  13m0s    0/20                       ada      to be approved
        "##);
    }
}
