//! `fleet gene`: what field agents published.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    Context, Failure,
    output::{Cell, Table, clean, read, time},
};
use crate::api::shapes::Gene;

/// The verbs on genes.
#[derive(Debug, Subcommand)]
pub(super) enum GeneVerb {
    /// List genes
    #[command(after_help = "Examples:\n  fleet gene ls")]
    Ls,
    /// Print one as JSON
    #[command(
        after_help = "Examples:\n  fleet gene get 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 -o json"
    )]
    Get {
        /// Its digest
        digest: String,
    },
}

const PATH: [&str; 3] = ["api", "v1", "genes"];

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: GeneVerb, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    match verb {
        GeneVerb::Ls => {
            let items: Vec<Value> = client.list(&PATH, &[], None).await?;
            let genes: Vec<Gene> = read(&items)?;
            out.show(&json!({ "items": items, "next": null }), || {
                if genes.is_empty() {
                    "no genes; field agents publish them by POST /fleet/genes/publish\n".to_owned()
                } else {
                    table(&genes).text(out.color)
                }
            })
        }
        GeneVerb::Get { digest } => {
            let gene: Value = client.get(&[&PATH[..], &[&digest]].concat(), &[]).await?;
            out.show(&gene, || super::output::json(&gene))
        }
    }
}

fn table(genes: &[Gene]) -> Table {
    let mut table = Table::new(&["digest", "type", "id", "verified", "node", "since"]);
    for gene in genes {
        table.row(vec![
            Cell::left(&gene.digest),
            Cell::left(clean(gene.kind.as_deref().unwrap_or_default())),
            Cell::left(clean(gene.id.as_deref().unwrap_or_default())),
            Cell::left(if gene.verified { "yes" } else { "no" }),
            Cell::left(&gene.node),
            Cell::left(time(gene.first_ms)),
        ]);
    }
    table
}
