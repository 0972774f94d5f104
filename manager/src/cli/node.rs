//! `fleet node`: list, look at and describe nodes; change what the registry says of them.

pub(super) mod leave;
mod logs;

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use fleet_schemas::NodeId;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{
    Context, Failure, figure,
    output::{Cell, Table, Tone, ago, bytes, clean, count, number, paint, read, time_in, tone, until},
    selector,
};
use crate::api::shapes::{Account, Device, Event, Import, Ledger, Node, Page};

/// The verbs on nodes.
#[derive(Debug, Subcommand)]
pub(super) enum NodeVerb {
    /// List nodes
    #[command(
        after_help = "Examples:\n  fleet node ls\n  fleet node ls -l 'site in (berlin,hamburg),state!=online'\n  \
        fleet node ls --group spares -o json"
    )]
    Ls(LsArgs),
    /// Show nodes in one line each, or whole with -o json
    #[command(after_help = "Examples:\n  fleet node get edge-1\n  fleet node get edge-1 edge-2 -o yaml")]
    Get {
        /// Their ids
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<NodeId>,
    },
    /// Show all that is known of a node: figures, devices, events, accounts
    #[command(after_help = "Examples:\n  fleet node describe edge-1")]
    Describe {
        /// Its id
        node: NodeId,
    },
    /// Change name, site, location and labels
    #[command(after_help = "Examples:\n  fleet node set edge-1 --site berlin --label rack=12\n  \
        fleet node set edge-1 --lat 52.52 --lon 13.405\n  fleet node set edge-1 --name '' --label rack-\n  \
        fleet node set -l site=hall-3 --label gate=north")]
    Set(SetArgs),
    /// Let a node in that joined by a token made with --approve
    #[command(after_help = "Examples:\n  fleet node approve edge-1")]
    Approve {
        /// Its id
        node: NodeId,
    },
    /// Shut a node out: its session is cut, its certificate is worth nothing any more
    #[command(after_help = "Examples:\n  fleet node revoke edge-1 --reason 'stolen from hall 3'\n  \
        fleet node revoke edge-1 --yes\n\nA token of `fleet join-token create --replace NODE` lets it in again.")]
    Revoke {
        /// Its id
        node: NodeId,
        /// Why, for the audit trail
        #[arg(long)]
        reason: Option<String>,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Send a node to another hub, once this one has everything it told
    #[command(
        after_help = "Examples:\n  fleet node move edge-1 --hub hub-2.example --token fleet-join.…\n  \
        fleet --hub http://127.0.0.1:8080 node move edge-1 --to-hub 10.0.0.9:8443 --to-token fleet-join.…\n\n\
        TOKEN is of `fleet join-token create` at the new hub; one with --replace NODE gives it that node's place there. The\n\
        node delivers what it has, asks the new hub, and leaves when its last word is here: each record is at one hub. If the\n\
        new hub cannot be reached or refuses it, the node stays, and says so. Behind `move`, --hub and --token are the new\n\
        hub's; before `node` they are this hub's, as everywhere."
    )]
    Move(leave::MoveArgs),
    /// Take nodes out of the fleet: shut out, retained topics cleared, what they still have written off
    #[command(
        after_help = "Examples:\n  fleet node rm edge-1 --keep-data\n  fleet node rm edge-1 edge-2 --purge --yes\n\n\
        With --keep-data its history stays readable: `fleet telemetry NODE`, `fleet node get NODE`. With --purge its events,\n\
        devices, settings and accounts go at once; its samples cannot be read any more, and leave the disk with the files\n\
        of their weeks. A machine that is to have the id again joins by `fleet join-token create --replace NODE`."
    )]
    Rm(leave::RmArgs),
    /// Show what a node logs: its agent, and the units and files that its agent.toml names
    #[command(
        after_help = "Examples:\n  fleet node logs edge-1\n  fleet node logs edge-1 --since 1h --level warning\n  \
        fleet node logs edge-1 --unit greeter.service --grep sensor -n 20\n  fleet node logs edge-1 -f\n  \
        fleet node logs edge-1 --since 1d -o json > edge-1.jsonl          one object a line\n\n\
        The node keeps the last 10 MB and is asked by its command queue, so it may be behind NAT. Times are by its clock.\n\
        Other units and files: [logs] in the node's agent.toml."
    )]
    Logs(logs::LogsArgs),
    /// Register nodes from CSV: id,name,site,lat,lon, and every further column a label
    #[command(
        after_help = "Examples:\n  fleet node import nodes.csv --dry-run\n  fleet node import nodes.csv"
    )]
    Import {
        /// The file
        file: PathBuf,
        /// Only report what would be done
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which nodes to list.
#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// A selector over labels and id, name, site, kind, state, capability, agent-version
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// A saved selector
    #[arg(long)]
    group: Option<String>,
    /// Most nodes to list
    #[arg(long)]
    limit: Option<usize>,
}

/// What to change, and on which nodes.
#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// Their ids
    #[arg(value_name = "NODE", required_unless_present = "selector", conflicts_with = "selector")]
    nodes: Vec<NodeId>,
    /// All nodes that match
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// A name for people; '' takes it away
    #[arg(long)]
    name: Option<String>,
    /// Where it belongs; '' takes it away
    #[arg(long)]
    site: Option<String>,
    /// Latitude in degrees
    #[arg(long, requires = "lon", allow_negative_numbers = true)]
    lat: Option<f64>,
    /// Longitude in degrees
    #[arg(long, requires = "lat", allow_negative_numbers = true)]
    lon: Option<f64>,
    /// Take the location away
    #[arg(long, conflicts_with = "lat")]
    no_location: bool,
    /// KEY=VALUE gives a label, KEY- takes it away; repeat for more
    #[arg(long = "label", value_name = "KEY=VALUE|KEY-")]
    labels: Vec<String>,
}

/// Events that `describe` shows.
const EVENTS: &str = "5";
/// Largest CSV file, in bytes: 10,000 nodes with all their labels.
const IMPORT_BYTES: u64 = 16 * 1024 * 1024;

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: NodeVerb, context: &Context) -> Result<(), Failure> {
    match verb {
        NodeVerb::Ls(args) => ls(&args, context).await,
        NodeVerb::Get { nodes } => get(&nodes, context).await,
        NodeVerb::Describe { node } => describe(&node, context).await,
        NodeVerb::Set(args) => set(args, context).await,
        NodeVerb::Approve { node } => change(&node, "approve", &json!({}), context).await,
        NodeVerb::Revoke { node, reason, yes } => {
            if !yes && !agreed(&format!("shut {node} out? its session is cut at once [y/N] "))? {
                return Err(Failure::Failed("nothing was changed".to_owned()));
            }
            change(&node, "revoke", &json!({ "reason": reason }), context).await
        }
        NodeVerb::Move(args) => leave::leave(&args, context).await,
        NodeVerb::Rm(args) => leave::rm(&args, context).await,
        NodeVerb::Logs(args) => logs::run(&args, context).await,
        NodeVerb::Import { file, dry_run } => import(&file, dry_run, context).await,
    }
}

async fn ls(args: &LsArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    args.selector.as_deref().map_or(Ok(()), selector::check)?;
    let mut query = Vec::new();
    query.extend(args.selector.as_deref().map(|selector| ("selector", selector)));
    query.extend(args.group.as_deref().map(|group| ("group", group)));
    let items: Vec<Value> = client.list(&["api", "v1", "nodes"], &query, args.limit).await?;
    let now_ms = now(context).await?;
    let nodes: Vec<Node> = read(&items)?;
    out.show(&json!({ "items": items, "next": null }), || {
        if nodes.is_empty() { "no nodes match\n".to_owned() } else { table(&nodes, now_ms).text(out.color) }
    })
}

async fn get(ids: &[NodeId], context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let mut items: Vec<Value> = Vec::new();
    for id in ids {
        items.push(client.get(&["api", "v1", "nodes", id.as_str()], &[]).await?);
    }
    let now_ms = now(context).await?;
    let nodes: Vec<Node> = read(&items)?;
    let value = if items.len() == 1 { items.remove(0) } else { json!({ "items": items, "next": null }) };
    out.show(&value, || table(&nodes, now_ms).text(out.color))
}

/// A change of who may come in; the node as it is then is the answer.
async fn change(node: &NodeId, what: &str, body: &Value, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let path = ["api", "v1", "nodes", node.as_str(), what];
    let value = client.change(Method::POST, &path, Some(body)).await?;
    let now_ms = now(context).await?;
    let nodes: Vec<Node> = read(std::slice::from_ref(&value))?;
    out.show(&value, || table(&nodes, now_ms).text(out.color))
}

/// Asks on a terminal; elsewhere nobody could answer, and whoever wrote the script has decided.
fn agreed(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Ok(true);
    }
    eprint!("{question}");
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    read.map_err(|error| Failure::Failed(format!("the answer cannot be read: {error}")))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// The hub's clock: ages are told by the clock that made the times.
///
/// # Errors
/// [`Failure`].
pub(super) async fn now(context: &Context) -> Result<i64, Failure> {
    let version: Value = context.client.get(&["version"], &[]).await?;
    version["now_ms"].as_i64().ok_or_else(|| Failure::Failed("the hub does not tell its time".to_owned()))
}

/// Nodes, one a line.
#[must_use]
pub(super) fn table(nodes: &[Node], now_ms: i64) -> Table {
    let mut table = Table::new(&[
        "id",
        "name",
        "state",
        "enrolment",
        "site",
        "kind",
        "agent",
        "seen",
        "cpu",
        "mem",
        "outbox",
    ]);
    for node in nodes {
        let percent =
            |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}%"));
        table.row(vec![
            Cell::left(&node.id),
            Cell::left(node.name.as_deref().unwrap_or("-")),
            Cell::toned(&node.state, tone(&node.state)),
            Cell::toned(&node.enrolment.state, tone(&node.enrolment.state)),
            Cell::left(node.site.as_deref().unwrap_or("-")),
            Cell::left(&node.kind),
            Cell::left(&node.versions.agent),
            Cell::right(ago(now_ms, node.last_seen_ms)),
            Cell::right(percent(figure::cpu(node))),
            Cell::right(percent(figure::mem(node))),
            Cell::right(node.outbox.map_or_else(|| "-".to_owned(), |outbox| count(outbox.records))),
        ]);
    }
    table
}

async fn describe(id: &NodeId, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let node_path = ["api", "v1", "nodes", id.as_str()];
    let value: Value = client.get(&node_path, &[]).await?;
    let devices: Page<Device> = client.get(&[&node_path[..], &["devices"]].concat(), &[]).await?;
    let events: Page<Event> =
        client.get(&[&node_path[..], &["events"]].concat(), &[("limit", EVENTS)]).await?;
    let ledger: Ledger = client.get(&["api", "v1", "ledger"], &[("node", id.as_str())]).await?;
    let now_ms = now(context).await?;
    let node: Node = read(std::slice::from_ref(&value))?.remove(0);
    let whole = json!({ "node": value, "devices": devices.items, "events": events.items,
        "accounts": ledger.accounts });
    out.show(&whole, || {
        description(&node, &devices.items, &events.items, &ledger.accounts, now_ms, out.color)
    })
}

fn device_line(device: &Device, tz: Option<&str>, now_ms: i64, color: bool) -> String {
    let state = paint(&format!("{:<9}", device.state), tone(&device.state), color);
    let mut facts = Vec::new();
    facts.extend(device.kind.clone());
    facts.extend(device.firmware.as_ref().map(|firmware| format!("firmware {firmware}")));
    facts.extend((!device.metrics.is_empty()).then(|| device.metrics.join(", ")));
    let seen = device.last_seen_ms.map(|seen| format!("{} ago", ago(now_ms, Some(seen))));
    let end = device.until_ms.filter(|_| device.state == "sleeping");
    let asleep = end.map(|end| format!("until {}", time_in(end, tz)));
    let when: Vec<_> = seen.into_iter().chain(asleep).collect();
    let when = if when.is_empty() { String::new() } else { format!(" ({})", when.join(", ")) };
    format!("  {:<20}{state} {}{when}\n", clean(&device.id), clean(&facts.join(", ")))
}

fn description(
    node: &Node,
    devices: &[Device],
    events: &[Event],
    accounts: &[Account],
    now_ms: i64,
    color: bool,
) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<14}{value}\n"));
    line("id", &node.id);
    line("name", &clean(node.name.as_deref().unwrap_or("-")));
    line("kind", &clean(&node.kind));
    line("state", &paint(&node.state, tone(&node.state), color));
    line("enrolment", &stands(node, now_ms, color));
    line("seen", &format!("{} ago", ago(now_ms, node.last_seen_ms)));
    let tz = node.tz.as_deref();
    line("first seen", &node.first_seen_ms.map_or_else(|| "never".to_owned(), |seen| time_in(seen, tz)));
    line("site", &clean(node.site.as_deref().unwrap_or("-")));
    if let Some(tz) = tz {
        line("time there", &format!("{} ({})", time_in(now_ms, Some(tz)), clean(tz)));
    }
    let location = node.location.map_or_else(|| "-".to_owned(), |at| format!("{}, {}", at.lat, at.lon));
    line("location", &location);
    let labels: Vec<_> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    line("labels", &clean(&or_dash(&labels)));
    line("capabilities", &clean(&or_dash(&node.capabilities)));
    line("agent", &clean(&node.versions.agent));
    line("firmware", &clean(node.versions.firmware.as_deref().unwrap_or("-")));
    for (skill, version) in &node.versions.skills {
        line("skill", &clean(&format!("{skill} {version}")));
    }
    for (key, value) in &node.machine {
        line(&clean(key), &clean(value));
    }
    if let Some(outbox) = node.outbox {
        let (held, quota) = (bytes(outbox.bytes as f64), bytes(outbox.quota_bytes as f64));
        line("outbox", &format!("{} records, {held} of {quota}", count(outbox.records)));
    }
    let heading = |title: &str| format!("\n{}\n", paint(title, Tone::Faint, color));
    if !node.system.is_empty() {
        text.push_str(&heading("LAST HEARTBEAT"));
        for (metric, value) in &node.system {
            let figure = if metric.ends_with("_bytes") { bytes(*value) } else { number(*value) };
            text.push_str(&format!("  {:<26}{figure}\n", clean(metric)));
        }
    }
    if !devices.is_empty() {
        text.push_str(&heading("DEVICES"));
        for device in devices {
            text.push_str(&device_line(device, tz, now_ms, color));
        }
    }
    text.push_str(&heading("LAST EVENTS"));
    if events.is_empty() {
        text.push_str("  none\n");
    }
    for event in events {
        let severity = paint(&event.severity, tone(&event.severity), color);
        let what = clean(&format!("{}: {}", event.kind, event.message));
        text.push_str(&format!("  {}  {severity}  {what}\n", time_in(event.time_ms, tz)));
    }
    text.push_str(&heading("LEDGER"));
    text.push_str(&super::ledger::table(accounts).text(color));
    text
}

/// Whether it may come in, and until when.
fn stands(node: &Node, now_ms: i64, color: bool) -> String {
    let enrolment = &node.enrolment;
    let mut text = paint(&clean(&enrolment.state), tone(&enrolment.state), color);
    if let Some(revoked_ms) = enrolment.revoked_ms {
        text.push_str(&format!(" {} ago", ago(now_ms, Some(revoked_ms))));
    } else if enrolment.not_after_ms.is_some() {
        text.push_str(&format!(", certificate ends in {}", until(now_ms, enrolment.not_after_ms)));
    }
    if let Some(reason) = &enrolment.reason {
        text.push_str(&format!(": {}", clean(reason)));
    }
    text
}

fn or_dash(words: &[String]) -> String {
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

async fn set(args: SetArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let patch = patch(&args)?;
    let ids: Vec<String> = match &args.selector {
        None => args.nodes.iter().map(ToString::to_string).collect(),
        Some(selector) => {
            selector::check(selector)?;
            let nodes: Vec<Node> =
                client.list(&["api", "v1", "nodes"], &[("selector", selector)], None).await?;
            nodes.into_iter().map(|node| node.id).collect()
        }
    };
    let (mut changed, mut failures) = (Vec::new(), Vec::new());
    for id in &ids {
        match client.change(Method::PATCH, &["api", "v1", "nodes", id], Some(&patch)).await {
            Ok(node) => changed.push(node),
            Err(failure) if ids.len() == 1 => return Err(failure),
            Err(failure) => failures.push(format!("{id}: {failure}")),
        }
    }
    let now_ms = now(context).await?;
    let nodes: Vec<Node> = read(&changed)?;
    out.show(&json!({ "items": changed, "next": null }), || {
        if nodes.is_empty() { "no nodes match\n".to_owned() } else { table(&nodes, now_ms).text(out.color) }
    })?;
    match (failures.len(), ids.len()) {
        (0, _) => Ok(()),
        (bad, all) => {
            Err(Failure::Partly(format!("{bad} of {all} nodes not changed\n  {}", failures.join("\n  "))))
        }
    }
}

/// The merge patch (RFC 7386) that the flags ask for.
fn patch(args: &SetArgs) -> Result<Value, Failure> {
    let mut patch = Map::new();
    let text = |text: &String| if text.is_empty() { Value::Null } else { Value::from(text.as_str()) };
    patch.extend(args.name.as_ref().map(|name| ("name".to_owned(), text(name))));
    patch.extend(args.site.as_ref().map(|site| ("site".to_owned(), text(site))));
    if let (Some(lat), Some(lon)) = (args.lat, args.lon) {
        patch.insert("location".to_owned(), json!({ "lat": lat, "lon": lon }));
    }
    if args.no_location {
        patch.insert("location".to_owned(), Value::Null);
    }
    let mut labels = Map::new();
    for label in &args.labels {
        let (key, value) = match (label.split_once('='), label.strip_suffix('-')) {
            (Some((key, value)), _) => (key, Value::from(value)),
            (None, Some(key)) => (key, Value::Null),
            (None, None) => {
                return Err(Failure::Usage(format!(
                    "--label {label}: write KEY=VALUE, or KEY- to take it away"
                )));
            }
        };
        labels.insert(key.to_owned(), value);
    }
    if !labels.is_empty() {
        patch.insert("labels".to_owned(), Value::Object(labels));
    }
    if patch.is_empty() {
        return Err(Failure::Usage(
            "nothing to change; name --name, --site, --lat and --lon, or --label".into(),
        ));
    }
    Ok(Value::Object(patch))
}

async fn import(file: &PathBuf, dry_run: bool, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let unreadable = |why: String| Failure::Usage(format!("cannot import {}: {why}", file.display()));
    let size = std::fs::metadata(file).map_err(|error| unreadable(error.to_string()))?.len();
    if size > IMPORT_BYTES {
        return Err(unreadable(format!("it is larger than {IMPORT_BYTES} bytes; split it")));
    }
    let body = std::fs::read(file).map_err(|error| unreadable(error.to_string()))?;
    let query: &[(&str, &str)] = if dry_run { &[("dry_run", "true")] } else { &[] };
    let value: Value = client.upload(&["api", "v1", "nodes", "import"], query, "text/csv", body).await?;
    let report: Import = serde_json::from_value(value.clone())
        .map_err(|error| Failure::Failed(format!("the hub's report is not understood: {error}")))?;
    out.show(&value, || import_table(&report, out.color))?;
    match (report.failed, report.applied) {
        (0, _) => Ok(()),
        (bad, 0) => Err(Failure::Failed(format!("none of {bad} lines could be imported"))),
        (bad, done) => Err(Failure::Partly(format!("{bad} of {} lines not imported", bad + done))),
    }
}

fn import_table(report: &Import, color: bool) -> String {
    let mut table = Table::new(&["line", "node", "result", "why"]);
    for line in &report.lines {
        let why = line.error.as_deref().unwrap_or_default();
        let result = Cell::toned(&line.result, tone(&line.result));
        table.row(vec![Cell::right(line.line), Cell::left(&line.id), result, Cell::left(why)]);
    }
    let tense = if report.dry_run { "would be applied" } else { "applied" };
    format!("{}{} {tense}, {} failed\n", table.text(color), report.applied, report.failed)
}

#[cfg(test)]
mod tests;
