//! `fleet config`: settings of all nodes, of groups, sites and single nodes; who follows, and why one does not.

mod keys;
mod show;
mod wait;

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use fleet_schemas::NodeId;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{
    Context, Failure, node,
    output::{self, read},
};
use crate::{
    api::shapes::config::{BriefLayer, Changed, Layer as Shown, NodeConfig, Revision, Schema},
    core::config::{self, Layer},
};

/// Largest file with a document, in bytes: as JSON it is larger than as it travels.
const FILE_BYTES: u64 = 256 * 1024;

/// The verbs on configuration.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Show the layers there are, one layer, or what a node is to have and where that comes from
    #[command(after_help = "Examples:\n  fleet config get                  the layers there are\n  \
        fleet config get site/roof        one of them, and who follows\n  \
        fleet config get edge-1           what a node is to have\n  \
        fleet config get edge-1 --why     and who set each of its settings, when\n  \
        fleet config get edge-1 -o json")]
    Get(GetArgs),
    /// Set keys of a layer, or its whole document from a file
    #[command(after_help = "Examples:\n  fleet config set fleet upload.every_s=90\n  \
        fleet config set site/roof upload.every_s=30 --dry-run       which nodes would change\n  \
        fleet config set site/roof upload.every_s=30 --expect 4      only if revision 4 is still the newest\n  \
        fleet config set node/edge-1 node.heartbeat_s=10 --wait\n  \
        fleet config set group/old apps.note='\"7\"'           a text that looks like a number\n  \
        fleet config set site/roof upload.cron=null              take away what lower layers set\n  \
        fleet config set fleet --file settings.json            the whole document\n\n\
        A later kind of layer goes over an earlier one: fleet, group/NAME, site/NAME, node/ID.")]
    Set(SetArgs),
    /// Take keys out of a layer: what lower layers say counts again
    #[command(after_help = "Examples:\n  fleet config unset site/roof upload.every_s\n  \
        fleet config unset node/edge-1 node.heartbeat_s --dry-run\n  fleet config unset site/roof --all")]
    Unset(UnsetArgs),
    /// What a node is to have against what it runs, or a layer's newest revision against an earlier one
    #[command(
        after_help = "Examples:\n  fleet config diff edge-1          a node that does not follow yet\n  \
        fleet config diff site/roof       the last change\n  fleet config diff site/roof 3     since revision 3"
    )]
    Diff(DiffArgs),
    /// List the revisions of a layer that are kept
    #[command(after_help = "Examples:\n  fleet config history site/roof")]
    History {
        /// fleet, group/NAME, site/NAME or node/ID
        layer: Layer,
    },
    /// Make an earlier revision of a layer the newest
    #[command(after_help = "Examples:\n  fleet config rollback site/roof 3 --dry-run\n  \
        fleet config rollback site/roof 3 --wait")]
    Rollback(RollbackArgs),
    /// The JSON Schema that every node's document has to satisfy
    #[command(subcommand)]
    Schema(SchemaVerb),
    /// Have a node try again what it failed to apply
    #[command(after_help = "Examples:\n  fleet config retry edge-1\n  fleet config retry edge-1 --wait")]
    Retry {
        /// Its id
        node: NodeId,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

/// What to show.
#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// A node's id, or a layer: fleet, group/NAME, site/NAME, node/ID
    #[arg(value_name = "NODE|LAYER")]
    what: Option<String>,
    /// Of a node: who set each of its settings, when
    #[arg(long)]
    why: bool,
}

/// How a change is made.
#[derive(Debug, Clone, Args)]
pub(super) struct HowArgs {
    /// Only show which nodes would change, and how
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Only if this revision is still the newest; 0 for none
    #[arg(long, value_name = "REV")]
    expect: Option<u64>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Whether to wait.
#[derive(Debug, Clone, Args)]
pub(super) struct WaitArgs {
    /// Follow until every connected node has applied it; exits 6 when some have not
    #[arg(long)]
    wait: bool,
    /// Longest wait
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = super::period::parse)]
    wait_timeout: Duration,
}

/// What to set.
#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// fleet, group/NAME, site/NAME or node/ID
    layer: Layer,
    /// KEY.PATH=VALUE, the value as JSON or else as text; a dot inside of a key is written \.
    #[arg(value_name = "KEY=VALUE", required_unless_present = "file", conflicts_with = "file")]
    keys: Vec<String>,
    /// The whole document, JSON; - reads it from the standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    how: HowArgs,
}

/// What to take out.
#[derive(Debug, Args)]
pub(super) struct UnsetArgs {
    /// fleet, group/NAME, site/NAME or node/ID
    layer: Layer,
    /// KEY.PATH
    #[arg(value_name = "KEY", required_unless_present = "all", conflicts_with = "all")]
    keys: Vec<String>,
    /// Empty the layer
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    how: HowArgs,
}

/// What to compare.
#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// A node's id, or a layer
    #[arg(value_name = "NODE|LAYER")]
    what: String,
    /// The earlier revision of the layer; without it: the one before the newest
    revision: Option<u64>,
}

/// Where to return to.
#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// fleet, group/NAME, site/NAME or node/ID
    layer: Layer,
    /// The revision, as `fleet config history` lists it
    revision: u64,
    #[command(flatten)]
    how: HowArgs,
}

/// The verbs on the schema.
#[derive(Debug, Subcommand)]
pub(super) enum SchemaVerb {
    /// Show it
    #[command(after_help = "Examples:\n  fleet config schema get\n  fleet config schema get -o json")]
    Get,
    /// Set it; refused while a node's document breaks it
    #[command(after_help = "Examples:\n  fleet config schema set schema.json --dry-run\n  \
        fleet config schema set schema.json")]
    Set {
        /// A JSON Schema; - reads it from the standard input
        file: PathBuf,
        /// Only check it against what nodes have
        #[arg(long)]
        dry_run: bool,
        /// Only if this revision is still the newest; 0 for none
        #[arg(long, value_name = "REV")]
        expect: Option<u64>,
    },
    /// Take it away: any document will do
    #[command(after_help = "Examples:\n  fleet config schema rm")]
    Rm,
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: ConfigVerb, context: &Context) -> Result<(), Failure> {
    match verb {
        ConfigVerb::Get(args) => get(&args, context).await,
        ConfigVerb::Set(args) => set(args, context).await,
        ConfigVerb::Unset(args) => unset(args, context).await,
        ConfigVerb::Diff(args) => diff(&args, context).await,
        ConfigVerb::History { layer } => history(&layer, context).await,
        ConfigVerb::Rollback(RollbackArgs { layer, revision, how }) => {
            let path = [&path(&layer)[..], &["rollback".to_owned()]].concat();
            change(Method::POST, path, Some(&json!({ "to": revision })), &layer, &how, context).await
        }
        ConfigVerb::Schema(verb) => schema(verb, context).await,
        ConfigVerb::Retry { node, wait } => retry(&node, &wait, context).await,
    }
}

/// The path of a layer.
fn path(layer: &Layer) -> Vec<String> {
    let mut path = vec!["api".to_owned(), "v1".to_owned(), "config".to_owned()];
    match layer {
        Layer::Fleet => path.push("fleet".to_owned()),
        Layer::Group(name) => path.extend(["group".to_owned(), name.clone()]),
        Layer::Site(name) => path.extend(["site".to_owned(), name.clone()]),
        Layer::Node(id) => path.extend(["node".to_owned(), id.to_string()]),
    }
    path
}

fn parts(path: &[String]) -> Vec<&str> {
    path.iter().map(String::as_str).collect()
}

/// What is looked at: layers have a slash or are called fleet, nodes neither.
enum What {
    Layer(Layer),
    Node(NodeId),
}

fn what(text: &str) -> Result<What, Failure> {
    if text == "fleet" || text.contains('/') {
        let layer = text.parse().map_err(|error: config::UnknownLayer| Failure::Usage(error.to_string()));
        return layer.map(What::Layer);
    }
    NodeId::parse(text).map(What::Node).map_err(|error| Failure::Usage(format!("{text:?}: {error}")))
}

async fn get(args: &GetArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let Some(text) = &args.what else {
        let layers: Vec<BriefLayer> = client.list(&["api", "v1", "config"], &[], None).await?;
        let now_ms = node::now(context).await?;
        return out
            .show(&json!({ "items": layers, "next": null }), || show::layers(&layers, now_ms, out.color));
    };
    match what(text)? {
        What::Layer(layer) => {
            let value: Value = client.get(&parts(&path(&layer)), &[]).await?;
            let now_ms = node::now(context).await?;
            let shown: Shown = one(&value)?;
            out.show(&value, || show::layer(&shown, now_ms, out.color))
        }
        What::Node(id) => {
            let value: Value = client.get(&["api", "v1", "nodes", id.as_str(), "config"], &[]).await?;
            let now_ms = node::now(context).await?;
            let shown: NodeConfig = one(&value)?;
            out.show(&value, || show::node(&shown, args.why, now_ms, out.color))
        }
    }
}

fn one<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, Failure> {
    Ok(read(std::slice::from_ref(value))?.remove(0))
}

async fn set(args: SetArgs, context: &Context) -> Result<(), Failure> {
    let SetArgs { layer, keys, file, mut how } = args;
    if let Some(file) = file {
        let doc = document(&file)?;
        return change(Method::PUT, path(&layer), Some(&doc), &layer, &how, context).await;
    }
    let mut settings = Vec::new();
    for key in &keys {
        settings.push(keys::setting(key).map_err(Failure::Usage)?);
    }
    if settings.iter().all(|(_, value)| !value.is_null()) {
        let mut patch = Value::Object(Map::new());
        for (key, value) in settings {
            keys::put(&mut patch, &key, value);
        }
        return change(Method::PATCH, path(&layer), Some(&patch), &layer, &how, context).await;
    }
    // A merge patch cannot say null: the document is changed here, and only if nobody else does meanwhile.
    let known: Shown = context.client.get(&parts(&path(&layer)), &[]).await?;
    let mut doc = known.doc;
    for (key, value) in settings {
        keys::put(&mut doc, &key, value);
    }
    how.expect = how.expect.or(Some(known.revision));
    change(Method::PUT, path(&layer), Some(&doc), &layer, &how, context).await
}

async fn unset(args: UnsetArgs, context: &Context) -> Result<(), Failure> {
    let UnsetArgs { layer, keys, all, how } = args;
    if all {
        return change(Method::DELETE, path(&layer), None, &layer, &how, context).await;
    }
    let mut patch = Value::Object(Map::new());
    for key in &keys {
        keys::put(&mut patch, &keys::path(key).map_err(Failure::Usage)?, Value::Null);
    }
    change(Method::PATCH, path(&layer), Some(&patch), &layer, &how, context).await
}

/// A document from a file or from the standard input.
fn document(file: &Path) -> Result<Value, Failure> {
    let unreadable = |error: io::Error| Failure::Usage(format!("{} cannot be read: {error}", file.display()));
    let mut text = String::new();
    if file == Path::new("-") {
        io::stdin().take(FILE_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    } else {
        fs::File::open(file)
            .and_then(|open| open.take(FILE_BYTES + 1).read_to_string(&mut text))
            .map_err(unreadable)?;
    }
    if text.len() as u64 > FILE_BYTES {
        return Err(Failure::Usage(format!("{} is larger than {FILE_BYTES} bytes", file.display())));
    }
    serde_json::from_str(&text)
        .map_err(|error| Failure::Usage(format!("{} is no JSON: {error}", file.display())))
}

async fn change(
    method: Method,
    path: Vec<String>,
    body: Option<&Value>,
    layer: &Layer,
    how: &HowArgs,
    context: &Context,
) -> Result<(), Failure> {
    let Context { client, out } = context;
    let expect = how.expect.map(|revision| revision.to_string());
    let mut query = Vec::new();
    query.extend(how.dry_run.then_some(("dry_run", "true")));
    query.extend(expect.as_deref().map(|revision| ("revision", revision)));
    let value = client.change_with(method, &parts(&path), &query, body, None).await?;
    let changed: Changed = one(&value)?;
    out.show(&value, || show::changed(&changed, out.color))?;
    if how.wait.wait {
        wait::layer(layer, &how.wait, context).await?;
    }
    Ok(())
}

async fn diff(args: &DiffArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let layer = match what(&args.what)? {
        What::Node(_) if args.revision.is_some() => {
            return Err(Failure::Usage(
                "revisions are of layers; a node is compared with what it runs".to_owned(),
            ));
        }
        What::Node(id) => {
            let value: Value = client.get(&["api", "v1", "nodes", id.as_str(), "config"], &[]).await?;
            let shown: NodeConfig = one(&value)?;
            let told = json!({ "node": shown.node, "state": shown.state, "diff": shown.diff });
            return out.show(&told, || show::node_diff(&shown, out.color));
        }
        What::Layer(layer) => layer,
    };
    let known: Shown = client.get(&parts(&path(&layer)), &[]).await?;
    let revision = args.revision.unwrap_or_else(|| known.revision.saturating_sub(1));
    let earlier = if revision == 0 {
        config::empty()
    } else {
        let number = revision.to_string();
        let path = [&path(&layer)[..], &["revisions".to_owned(), number]].concat();
        let found: Revision = client.get(&parts(&path), &[]).await?;
        found.doc.unwrap_or_else(config::empty)
    };
    let differences = show::differences(&earlier, &known.doc);
    let told = json!({
        "layer": known.layer, "from": revision, "to": known.revision, "diff": differences,
    });
    out.show(&told, || {
        let head = format!("{}, revision {revision} against {}\n", known.layer, known.revision);
        head + &show::diff(&differences, out.color)
    })
}

async fn history(layer: &Layer, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let path = [&path(layer)[..], &["revisions".to_owned()]].concat();
    let revisions: Vec<Revision> = client.list(&parts(&path), &[], None).await?;
    let now_ms = node::now(context).await?;
    out.show(&json!({ "items": revisions, "next": null }), || show::history(&revisions, now_ms, out.color))
}

async fn schema(verb: SchemaVerb, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let path = ["api", "v1", "config-schema"];
    let (method, body, query) = match verb {
        SchemaVerb::Get => {
            let value: Value = client.get(&path, &[]).await?;
            let shown: Schema = one(&value)?;
            return out.show(&value, || match &shown.schema {
                Some(schema) => output::json(schema) + "\n",
                None => {
                    "no schema: any document will do; `fleet config schema set FILE` sets one\n".to_owned()
                }
            });
        }
        SchemaVerb::Set { file, dry_run, expect } => {
            let query: Vec<_> = [
                dry_run.then(|| ("dry_run", "true".to_owned())),
                expect.map(|revision| ("revision", revision.to_string())),
            ]
            .into_iter()
            .flatten()
            .collect();
            (Method::PUT, Some(document(&file)?), query)
        }
        SchemaVerb::Rm => (Method::DELETE, None, Vec::new()),
    };
    let query: Vec<_> = query.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let value = client.change_with(method, &path, &query, body.as_ref(), None).await?;
    let changed: Changed = one(&value)?;
    out.show(&value, || show::changed(&changed, out.color))
}

async fn retry(id: &NodeId, args: &WaitArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let path = ["api", "v1", "nodes", id.as_str(), "config", "retry"];
    let value = client.change(Method::POST, &path, None).await?;
    let shown: NodeConfig = one(&value)?;
    out.show(&value, || shown.reasons.first().cloned().unwrap_or_default() + "\n")?;
    if args.wait {
        wait::layer(&Layer::Node(id.clone()), args, context).await?;
    }
    Ok(())
}
