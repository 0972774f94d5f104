//! `fleet group`: saved selectors.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Context, Failure,
    output::{Cell, Table, count},
};
use crate::api::shapes::Group;

/// The verbs on groups.
#[derive(Debug, Subcommand)]
pub(super) enum GroupVerb {
    /// List groups and how many nodes each has now
    #[command(after_help = "Examples:\n  fleet group ls")]
    Ls,
    /// Save a selector under a name
    #[command(
        after_help = "Examples:\n  fleet group set spares 'state=offline,!site'\n  fleet node ls --group spares"
    )]
    Set {
        /// The group
        name: String,
        /// What it selects
        selector: String,
    },
    /// Remove a group; its nodes stay
    #[command(after_help = "Examples:\n  fleet group rm spares")]
    Rm {
        /// The group
        name: String,
    },
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: GroupVerb, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let table = |groups: &[Group]| {
        let mut table = Table::new(&["name", "nodes", "selector"]);
        for group in groups {
            let nodes = Cell::right(count(group.nodes_count as u64));
            table.row(vec![Cell::left(&group.name), nodes, Cell::left(&group.selector)]);
        }
        table.text(out.color)
    };
    match verb {
        GroupVerb::Ls => {
            let groups: Vec<Group> = client.list(&["api", "v1", "groups"], &[], None).await?;
            out.show(&json!({ "items": groups, "next": null }), || {
                if groups.is_empty() {
                    "no groups; make one with `fleet group set`\n".into()
                } else {
                    table(&groups)
                }
            })
        }
        GroupVerb::Set { name, selector } => {
            let body = json!({ "selector": selector });
            let value = client.change(Method::PUT, &["api", "v1", "groups", &name], Some(&body)).await?;
            let group: Group = serde_json::from_value(value.clone())
                .map_err(|error| Failure::Failed(format!("the hub's group is not understood: {error}")))?;
            out.show(&value, || table(&[group]))
        }
        GroupVerb::Rm { name } => {
            client.change(Method::DELETE, &["api", "v1", "groups", &name], None).await?;
            out.show(&Value::Null, || format!("group {name} removed\n"))
        }
    }
}
