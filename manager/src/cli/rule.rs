//! `fleet rule`: what raises alerts; checked, tried on samples, applied, imported.

mod replay;

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use fleet_schemas::{NodeId, rule};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Context, Failure,
    output::{Cell, Out, Table, Tone, count, time_in, tone},
    period, selector,
};
use crate::{
    alerts::rules::{OWN, read_one},
    api::shapes::{Page, Rule, Rules},
};

/// The verbs on rules.
#[derive(Debug, Subcommand)]
pub(super) enum RuleVerb {
    /// List the rules that count, and where each comes from
    #[command(
        after_help = "Examples:\n  fleet rule ls\n  fleet rule ls -o json\n  fleet rule ls --text > rules.yaml"
    )]
    Ls {
        /// Print rules.yaml as it is
        #[arg(long, conflicts_with = "defaults")]
        text: bool,
        /// Print the hub's own rules, to be copied and changed
        #[arg(long)]
        defaults: bool,
    },
    /// Check files of rules without a hub; exits 1 with file, line, column and reason when one is wrong
    #[command(
        after_help = "Examples:\n  fleet rule check rules.yaml\n  fleet rule check kits/*/alerts.yaml\n\n\
        A rule: {id, condition, sensor?, field?, severity?, message?, for?, cooldown_s?, hysteresis? | clear?, labels?,\n\
        selector?, enabled?}. A condition compares value, metric(\"m\"), last_seen_s, rate(\"5m\"), avg_over(\"m\", \"1h\"),\n\
        and presence, flapping, device_state, outbox_records, outbox_ratio, ledger, ledger_lost, ledger_quarantined,\n\
        clock_offset_s, certificate_days, agent_version, firmware_version, config, kind, site."
    )]
    Check {
        /// The files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Run rules over samples, recorded by the hub or given, and show when they would have fired
    #[command(
        after_help = "Examples:\n  fleet rule test rules.yaml --since 7d\n  fleet rule test rules.yaml -l site=berlin --since 1d\n  \
        fleet rule test kits/greenhouse/alerts.yaml --samples samples.csv\n\n\
        Given samples are CSV with the columns time_ms,device,metric,value (and node), or a JSON object a line with the\n\
        same keys, as on fleet/v1/hub/samples/NODE. Nodes count as online all the time: what else a hub knows of nodes at\n\
        a time is not recorded."
    )]
    Test(TestArgs),
    /// Put a file in the place of rules.yaml: all of it, or nothing
    #[command(
        after_help = "Examples:\n  fleet rule apply rules.yaml\n\nA rule of the same id takes the place of one of the hub's own, also with `enabled: false`."
    )]
    Apply {
        /// The file
        file: PathBuf,
    },
    /// Take a kit's alerts.yaml as it is; its rules are called KIT.ID
    #[command(
        after_help = "Examples:\n  fleet rule import kits/greenhouse/alerts.yaml\n  fleet rule import alerts.yaml --name greenhouse"
    )]
    Import {
        /// The file
        file: PathBuf,
        /// What the kit is called; the name of the file's folder unless given
        #[arg(long, value_name = "KIT")]
        name: Option<String>,
    },
    /// Remove a kit's rules; their alerts are over
    #[command(after_help = "Examples:\n  fleet rule rm greenhouse")]
    Rm {
        /// The kit
        kit: String,
    },
}

/// What to run over what.
#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// The rules
    file: PathBuf,
    /// Samples in a file, in place of a hub's
    #[arg(long, value_name = "FILE", conflicts_with_all = ["nodes", "selector", "since"])]
    samples: Option<PathBuf>,
    /// Only of these nodes
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<NodeId>,
    /// Only of nodes that match
    #[arg(short = 'l', long, conflicts_with = "nodes")]
    selector: Option<String>,
    /// How far back
    #[arg(long, value_name = "PERIOD", default_value = "1d", value_parser = period::parse)]
    since: Duration,
    /// Also what was pending
    #[arg(long)]
    all: bool,
}

const PATH: [&str; 3] = ["api", "v1", "rules"];
const YAML: &str = "application/yaml";

/// Runs a verb that needs no hub; gives back one that does.
///
/// # Errors
/// [`Failure`].
pub(super) fn run_here(verb: RuleVerb, out: Out) -> Result<Option<RuleVerb>, Failure> {
    match verb {
        RuleVerb::Check { files } => check(&files, out).map(|()| None),
        RuleVerb::Ls { defaults: true, .. } => out.print(OWN).map(|()| None),
        RuleVerb::Test(args) if args.samples.is_some() => test_given(&args, out).map(|()| None),
        other => Ok(Some(other)),
    }
}

/// Runs a verb at a hub.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: RuleVerb, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    match verb {
        RuleVerb::Ls { text: true, .. } => out.print(&client.text(&PATH, &[], YAML).await?),
        RuleVerb::Ls { .. } => {
            let value: Value = client.get(&PATH, &[]).await?;
            show(&value, *out)
        }
        RuleVerb::Check { files } => check(&files, *out),
        RuleVerb::Test(args) => test_recorded(&args, context).await,
        RuleVerb::Apply { file } => {
            let text = text_of(&file)?;
            let value: Value = client.send_file(Method::PUT, &PATH, &[], YAML, text.into_bytes()).await?;
            show(&value, *out)
        }
        RuleVerb::Import { file, name } => {
            let folder = || Some(file.canonicalize().ok()?.parent()?.file_name()?.to_str()?.to_owned());
            let name = name.or_else(folder).ok_or_else(|| {
                Failure::Usage(
                    "the file's folder has no name that a kit could have; give one with --name".to_owned(),
                )
            })?;
            let text = text_of(&file)?;
            let path = [&PATH[..], &["kits", &name]].concat();
            let value: Value = client.send_file(Method::PUT, &path, &[], YAML, text.into_bytes()).await?;
            show(&value, *out)
        }
        RuleVerb::Rm { kit } => {
            client.change(Method::DELETE, &[&PATH[..], &["kits", &kit]].concat(), None).await?;
            out.show(&Value::Null, || format!("the rules of kit {kit} are gone\n"))
        }
    }
}

fn text_of(file: &PathBuf) -> Result<String, Failure> {
    fs::read_to_string(file)
        .map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", file.display())))
}

fn check(files: &[PathBuf], out: Out) -> Result<(), Failure> {
    let mut checked = Vec::new();
    for file in files {
        let name = file.display().to_string();
        let rules =
            read_one(&name, &text_of(file)?).map_err(|refused| Failure::Failed(refused.to_string()))?;
        checked.push((name, rules.len()));
    }
    let items: Vec<_> = checked.iter().map(|(file, rules)| json!({ "file": file, "rules": rules })).collect();
    out.show(&json!({ "items": items, "next": null }), || {
        checked.iter().map(|(file, rules)| format!("{file}: {rules} rules\n")).collect()
    })
}

fn show(value: &Value, out: Out) -> Result<(), Failure> {
    let rules: Rules = serde_json::from_value(value.clone())
        .map_err(|error| Failure::Failed(format!("the hub's rules are not understood: {error}")))?;
    out.show(value, || {
        let mut text = table(&rules.items).text(out.color);
        if let Some(refused) = &rules.refused {
            text.push_str(&format!(
                "\nchanged files are not taken, and the rules above count:\n{}: line {}, column {}: {}\n",
                refused.file, refused.line, refused.column, refused.reason
            ));
        }
        text
    })
}

fn table(rules: &[Rule]) -> Table {
    let mut table = Table::new(&["rule", "severity", "open", "from", "for", "when"]);
    for rule in rules {
        let open = if rule.open_count > 0 { Tone::Bad } else { Tone::Faint };
        let severity = if rule.enabled { rule.severity.as_str() } else { "off" };
        table.row(vec![
            Cell::left(&rule.id),
            Cell::toned(severity, tone(severity)),
            Cell::toned(count(rule.open_count as u64), open),
            Cell::left(&rule.source),
            Cell::left(if rule.for_s > 0.0 { format!("{}s", rule.for_s) } else { String::new() }),
            Cell::left(&rule.condition),
        ]);
    }
    table
}

fn rules_of(args: &TestArgs) -> Result<Vec<rule::Rule>, Failure> {
    let name = args.file.display().to_string();
    let rules =
        read_one(&name, &text_of(&args.file)?).map_err(|refused| Failure::Failed(refused.to_string()))?;
    Ok(rules.into_iter().filter_map(|(rule, enabled)| enabled.then_some(rule)).collect())
}

fn test_given(args: &TestArgs, out: Out) -> Result<(), Failure> {
    let Some(file) = &args.samples else { return Ok(()) };
    let given = replay::read(&text_of(file)?)
        .map_err(|why| Failure::Usage(format!("{} is not understood: {why}", file.display())))?;
    tell(&replay::run(rules_of(args)?, given, None), &BTreeMap::new(), args.all, out)
}

async fn test_recorded(args: &TestArgs, context: &Context) -> Result<(), Failure> {
    use crate::api::shapes::{Node, Telemetry};
    let Context { client, out } = context;
    if let Some(selector) = &args.selector {
        selector::check(selector)?;
    }
    let rules = rules_of(args)?;
    let query: Vec<(&str, &str)> =
        args.selector.iter().map(|selector| ("selector", selector.as_str())).collect();
    let mut nodes: Vec<Node> = client.list(&["api", "v1", "nodes"], &query, None).await?;
    if !args.nodes.is_empty() {
        nodes.retain(|node| args.nodes.iter().any(|id| id.as_str() == node.id));
    }
    let now_ms = super::node::now(context).await?;
    let from_ms = (now_ms - period::ms(args.since)).to_string();
    let metrics = replay::metrics(&rules);
    let mut given = replay::Given::default();
    for node in &nodes {
        given.node(node);
        for metric in &metrics {
            let query = [("metric", metric.as_str()), ("from_ms", from_ms.as_str())];
            let path = ["api", "v1", "nodes", node.id.as_str(), "telemetry"];
            let found: Telemetry = client.get(&path, &query).await?;
            for series in found.series {
                given.series(&node.id, &series);
            }
        }
    }
    let zones = nodes.into_iter().filter_map(|node| Some((node.id, node.tz?))).collect();
    tell(&replay::run(rules, given, Some(now_ms)), &zones, args.all, *out)
}

/// Shows what would have happened; `zones` are those of nodes' sites.
fn tell(seen: &[replay::Seen], zones: &BTreeMap<String, String>, all: bool, out: Out) -> Result<(), Failure> {
    let told: Vec<_> =
        seen.iter().filter(|seen| all || matches!(seen.state, "firing" | "resolved")).collect();
    let items = told.iter().map(|seen| json!(seen)).collect();
    out.show(&json!(Page::<Value> { items, next: None }), || {
        if told.is_empty() {
            return "nothing would have fired\n".to_owned();
        }
        let mut table = Table::new(&["time", "state", "rule", "where", "value", "message"]);
        for seen in &told {
            let place = if seen.device.is_empty() {
                seen.node.clone()
            } else {
                format!("{}/{}", seen.node, seen.device)
            };
            let tone = if seen.state == "firing" { Tone::Bad } else { Tone::Good };
            table.row(vec![
                Cell::left(time_in(seen.at_ms, zones.get(&seen.node).map(String::as_str))),
                Cell::toned(seen.state, tone),
                Cell::left(&seen.rule),
                Cell::left(place),
                Cell::right(seen.value.map(super::output::number).unwrap_or_default()),
                Cell::left(&seen.message),
            ]);
        }
        let fired = seen.iter().filter(|seen| seen.state == "firing").count();
        format!("{}\n{fired} alerts would have fired\n", table.text(out.color))
    })
}
