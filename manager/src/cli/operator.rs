//! `fleet operator`: who may use the hub's API.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Context, Failure,
    node::now,
    output::{Cell, Table, ago, read, time, tone, until},
    period,
};
use crate::api::shapes::{NewOperator, Operator};

/// The verbs on operators.
#[derive(Debug, Subcommand)]
pub(super) enum OperatorVerb {
    /// Let somebody in; the token is printed this once
    #[command(
        after_help = "An operator with --on sees the whole fleet and changes only nodes that match: commands, settings, rollouts,\n\
        alerts, labels and sites, and no change may move a node in or out. It is refused with the nodes that are outside.\n\
        A selector of sites alone also covers the settings of those sites.\n\n\
        Examples:\n  fleet operator create ada --role operator\n  fleet operator create ben --role operator --on site=berlin\n  fleet operator create grafana --role viewer --ttl 365d\n  \
        fleet operator create ci --role operator -o json | jq -r .token"
    )]
    Create(CreateArgs),
    /// List operators
    #[command(after_help = "Examples:\n  fleet operator ls")]
    Ls,
    /// Shut somebody out; the token is none at once
    #[command(after_help = "Examples:\n  fleet operator rm ada")]
    Rm {
        /// The name
        name: String,
    },
}

/// Who, and what the token may do.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The name; it stands in the audit trail
    name: String,
    /// viewer looks; operator changes nodes; admin decides who gets in
    #[arg(long, value_enum)]
    role: RoleName,
    /// The nodes that an operator may change, by id, site or labels; all of them unless given
    #[arg(long, value_name = "SELECTOR")]
    on: Option<String>,
    /// How long the token lives; for ever unless given
    #[arg(long, value_parser = period::parse)]
    ttl: Option<Duration>,
}

/// What an operator may do.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleName {
    Viewer,
    Operator,
    Admin,
}

const PATH: [&str; 3] = ["api", "v1", "operators"];

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: OperatorVerb, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    match verb {
        OperatorVerb::Create(CreateArgs { name, role, on, ttl }) => {
            let role = match role {
                RoleName::Viewer => "viewer",
                RoleName::Operator => "operator",
                RoleName::Admin => "admin",
            };
            let ttl_s = ttl.map(|ttl| ttl.as_secs().max(1));
            let body = json!({ "name": name, "role": role, "ttl_s": ttl_s, "on": on });
            let value = client.change(Method::POST, &PATH, Some(&body)).await?;
            let made: NewOperator = serde_json::from_value(value.clone())
                .map_err(|error| Failure::Failed(format!("the hub's answer is not understood: {error}")))?;
            out.show(&value, || text(&made, client.base()))
        }
        OperatorVerb::Ls => {
            let items: Vec<Value> = client.list(&PATH, &[], None).await?;
            let now_ms = now(context).await?;
            let operators: Vec<Operator> = read(&items)?;
            out.show(&json!({ "items": items, "next": null }), || table(&operators, now_ms).text(out.color))
        }
        OperatorVerb::Rm { name } => {
            client.change(Method::DELETE, &[&PATH[..], &[&name]].concat(), None).await?;
            out.show(&Value::Null, || format!("operator {name} removed\n"))
        }
    }
}

fn text(made: &NewOperator, base: &str) -> String {
    let on = made.on.as_ref().map_or_else(String::new, |on| format!(" on {on}"));
    let until = made.expires_ms.map_or_else(String::new, |ends| format!(" until {} UTC", time(ends)));
    format!(
        "{}\n\n{} is {}{on}{until}. The token is not shown again; it goes in by:\n  fleet login --hub {base} --token-file -\n",
        made.token, made.name, made.role,
    )
}

fn table(operators: &[Operator], now_ms: i64) -> Table {
    let mut table = Table::new(&["name", "role", "on", "state", "expires", "last used", "made", "made by"]);
    for operator in operators {
        table.row(vec![
            Cell::left(&operator.name),
            Cell::left(&operator.role),
            Cell::left(operator.on.as_deref().unwrap_or("all nodes")),
            Cell::toned(&operator.state, tone(&operator.state)),
            Cell::left(until(now_ms, operator.expires_ms)),
            Cell::left(ago(now_ms, operator.last_used_ms)),
            Cell::left(time(operator.created_ms)),
            Cell::left(&operator.created_by),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_operator_is_told_what_to_do() {
        let made = NewOperator {
            name: "ada".into(),
            role: "viewer".into(),
            token: "fleet_x".into(),
            expires_ms: Some(0),
            on: None,
        };
        insta::assert_snapshot!(text(&made, "https://hub:8080"), @r##"
        fleet_x

        ada is viewer until 1970-01-01 00:00:00 UTC. The token is not shown again; it goes in by:
          fleet login --hub https://hub:8080 --token-file -
        "##);
    }
}
