//! `fleet site`: where nodes are, and in which time zone.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Context, Failure,
    node::now,
    output::{Cell, Table, count, time_in},
};
use crate::api::shapes::Site;

/// The verbs on sites.
#[derive(Debug, Subcommand)]
pub(super) enum SiteVerb {
    /// List sites: their time zone, what the clock shows there, and how many nodes each has
    #[command(
        after_help = "A node's site is set by `fleet node set NODE --site SITE`.\n\nExamples:\n  fleet site ls"
    )]
    Ls,
    /// Say in which time zone a site is
    #[command(
        after_help = "The hours of rollouts (--window) are of this zone unless they name another, and times of the site's nodes are\n\
        shown in it. What the wall clock shows counts: hours that are skipped when clocks go forward do not come on that\n\
        day, and hours that come twice when they go back are open twice. The hub brings the rules of all zones with it; a\n\
        board needs its system's tzdata for hours in a zone that is not UTC, and refuses an update that it cannot place.\n\n\
        Examples:\n  fleet site set berlin --tz Europe/Berlin"
    )]
    Set {
        /// The site
        site: String,
        /// The zone's IANA name, such as Europe/Berlin
        #[arg(long)]
        tz: String,
    },
    /// Forget the time zone of a site; its nodes stay
    #[command(after_help = "Examples:\n  fleet site rm berlin")]
    Rm {
        /// The site
        site: String,
    },
}

const PATH: [&str; 3] = ["api", "v1", "sites"];

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: SiteVerb, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    match verb {
        SiteVerb::Ls => {
            let sites: Vec<Site> = client.list(&PATH, &[], None).await?;
            let now_ms = now(context).await?;
            out.show(&json!({ "items": sites, "next": null }), || {
                if sites.is_empty() {
                    "no sites; a node gets one by `fleet node set NODE --site SITE`\n".into()
                } else {
                    table(&sites, now_ms).text(out.color)
                }
            })
        }
        SiteVerb::Set { site, tz } => {
            let body = json!({ "tz": tz });
            let value = client.change(Method::PUT, &[&PATH[..], &[&site]].concat(), Some(&body)).await?;
            let made: Site = serde_json::from_value(value.clone())
                .map_err(|error| Failure::Failed(format!("the hub's site is not understood: {error}")))?;
            let now_ms = now(context).await?;
            out.show(&value, || table(&[made], now_ms).text(out.color))
        }
        SiteVerb::Rm { site } => {
            client.change(Method::DELETE, &[&PATH[..], &[&site]].concat(), None).await?;
            out.show(&Value::Null, || format!("the time zone of site {site} is forgotten: it is UTC\n"))
        }
    }
}

fn table(sites: &[Site], now_ms: i64) -> Table {
    let mut table = Table::new(&["site", "time zone", "time there", "nodes"]);
    for site in sites {
        table.row(vec![
            Cell::left(&site.site),
            Cell::left(site.tz.as_deref().unwrap_or("UTC, none was set")),
            Cell::left(time_in(now_ms, site.tz.as_deref())),
            Cell::right(count(site.nodes_count as u64)),
        ]);
    }
    table
}
