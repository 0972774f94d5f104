//! `fleet audit`: who changed what, when.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{
    Context, Failure,
    node::now,
    output::{Cell, Table, read, time},
    period,
};
use crate::api::shapes::AuditEntry;

/// Which changes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fleet audit\n  fleet audit --since 7d --who ada\n  fleet audit --action node.revoke -o json"
)]
pub(super) struct AuditArgs {
    /// How far back
    #[arg(long, value_parser = period::parse)]
    since: Option<Duration>,
    /// Only by this operator, node, or `hub`
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Only such as `node.revoke`, or all that begin with `node`
    #[arg(long)]
    action: Option<String>,
    /// Most entries
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(args: AuditArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let since_ms = match args.since {
        Some(since) => Some((now(context).await? - period::ms(since)).to_string()),
        None => None,
    };
    let mut query = Vec::new();
    query.extend(since_ms.as_deref().map(|since_ms| ("since_ms", since_ms)));
    query.extend(args.who.as_deref().map(|who| ("who", who)));
    query.extend(args.action.as_deref().map(|action| ("action", action)));
    let items: Vec<Value> = client.list(&["api", "v1", "audit"], &query, Some(args.limit)).await?;
    let entries: Vec<AuditEntry> = read(&items)?;
    out.show(&json!({ "items": items, "next": null }), || {
        if entries.is_empty() { "no changes\n".to_owned() } else { table(&entries).text(out.color) }
    })
}

fn table(entries: &[AuditEntry]) -> Table {
    let mut table = Table::new(&["time", "who", "action", "target", "detail"]);
    for entry in entries {
        let detail = entry.detail.as_ref().map_or_else(String::new, Value::to_string);
        table.row(vec![
            Cell::left(time(entry.at_ms)),
            Cell::left(&entry.who),
            Cell::left(&entry.action),
            Cell::left(&entry.target),
            Cell::left(detail),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_line() {
        let entry = AuditEntry {
            at_ms: 0,
            who: "operator ada".into(),
            action: "node.revoke".into(),
            target: "edge-1".into(),
            detail: Some(json!({ "reason": "stolen" })),
        };
        insta::assert_snapshot!(table(&[entry]).text(false), @r##"
        TIME                 WHO           ACTION       TARGET  DETAIL
        1970-01-01 00:00:00  operator ada  node.revoke  edge-1  {"reason":"stolen"}
        "##);
    }
}
