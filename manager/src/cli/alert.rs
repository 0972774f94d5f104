//! `fleet alert`: what fires, who takes care of it, who is told.

use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{
    Context, Failure,
    output::{Cell, Table, Tone, ago, clean, number, read, time_in, tone, until},
    period,
};
use crate::api::shapes::{Alert, Receiver, Silence};

/// How long a receiver that is tried is waited for.
const TRY: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(200);

/// The verbs on alerts.
#[derive(Debug, Subcommand)]
pub(super) enum AlertVerb {
    /// List alerts, newest first: those that are pending or fire, unless asked otherwise
    #[command(
        after_help = "Examples:\n  fleet alert ls\n  fleet alert ls --severity error --site berlin\n  \
        fleet alert ls --state resolved --rule hot -o json\n  fleet alert ls --all\n\n\
        Alerts behind one that stands for them (a gateway, a site) are left out; --behind shows them."
    )]
    Ls(LsArgs),
    /// Show one alert whole
    #[command(after_help = "Examples:\n  fleet alert get 17\n  fleet alert get 17 -o json")]
    Get {
        /// Its id
        id: String,
    },
    /// Say that you take care of alerts
    #[command(after_help = "Examples:\n  fleet alert ack 17\n  fleet alert ack 17 18 --comment 'on my way'")]
    Ack {
        /// Their ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// What others should know
        #[arg(long)]
        comment: Option<String>,
    },
    /// Tell nobody of an alert, or of a rule, a node, a site, for a while
    #[command(after_help = "Examples:\n  fleet alert silence 17 --for 2h --comment 'new fan is ordered'\n  \
        fleet alert silence --site berlin --for 30m\n  fleet alert silence --rule hot --node edge-1 --for 1d\n\n\
        What still fires when it ends is told then. `fleet alert unsilence` ends it before.")]
    Silence(SilenceArgs),
    /// List silences that have not ended
    #[command(after_help = "Examples:\n  fleet alert silences")]
    Silences,
    /// End a silence
    #[command(after_help = "Examples:\n  fleet alert unsilence 3")]
    Unsilence {
        /// Its id
        id: String,
    },
    /// List receivers: who is told of which alerts, and how that goes
    #[command(
        after_help = "Examples:\n  fleet alert receivers\n\nThey stand in fleet.toml:\n\n  [[alerts.receivers]]\n  \
        name = \"ops\"\n  kind = \"alertmanager\"             # or webhook: CloudEvents as JSON\n  \
        url = \"http://127.0.0.1:9093\"\n  severity = \"warning\"              # told of what is at least this bad\n  \
        labels = { team = \"lab\" }         # and has these labels\n  token_file = \"/etc/fleet/ops.token\""
    )]
    Receivers,
    /// Say something to a receiver, to try it; exits 1 when it does not take it
    #[command(after_help = "Examples:\n  fleet alert test ops")]
    Test {
        /// Its name
        receiver: String,
    },
}

/// Which alerts to list.
#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// Also those that are over
    #[arg(long, conflicts_with = "state")]
    all: bool,
    /// In these states: pending, firing, resolved
    #[arg(long, value_name = "STATES")]
    state: Option<String>,
    /// At least this bad
    #[arg(long)]
    severity: Option<String>,
    /// Of this rule
    #[arg(long)]
    rule: Option<String>,
    /// At this node
    #[arg(long)]
    node: Option<String>,
    /// At this site
    #[arg(long)]
    site: Option<String>,
    /// Also those that another one stands for
    #[arg(long)]
    behind: bool,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// What to be silent about, and for how long.
#[derive(Debug, Args)]
pub(super) struct SilenceArgs {
    /// An alert: its rule, node and device
    #[arg(value_name = "ID", conflicts_with_all = ["rule", "node", "device", "site"])]
    id: Option<String>,
    /// For how long
    #[arg(long = "for", value_name = "PERIOD", value_parser = period::parse)]
    period: Duration,
    /// Of this rule
    #[arg(long)]
    rule: Option<String>,
    /// At this node
    #[arg(long)]
    node: Option<String>,
    /// At this device
    #[arg(long)]
    device: Option<String>,
    /// At this site
    #[arg(long)]
    site: Option<String>,
    /// Why
    #[arg(long)]
    comment: Option<String>,
}

const ALERTS: [&str; 3] = ["api", "v1", "alerts"];
const SILENCES: [&str; 3] = ["api", "v1", "silences"];
const RECEIVERS: [&str; 3] = ["api", "v1", "receivers"];

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(verb: AlertVerb, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    match verb {
        AlertVerb::Ls(args) => ls(args, context).await,
        AlertVerb::Get { id } => {
            let value: Value = client.get(&[&ALERTS[..], &[&id]].concat(), &[]).await?;
            let alert: Alert = one(&value)?;
            let now_ms = super::node::now(context).await?;
            out.show(&value, || describe(&alert, now_ms, out.color))
        }
        AlertVerb::Ack { ids, comment } => {
            let mut seen = Vec::new();
            for id in &ids {
                let path = [&ALERTS[..], &[id, "acknowledge"]].concat();
                seen.push(client.change(Method::POST, &path, Some(&json!({ "comment": comment }))).await?);
            }
            out.show(&json!({ "items": seen, "next": null }), || {
                ids.iter().map(|id| format!("alert {id} is yours\n")).collect()
            })
        }
        AlertVerb::Silence(args) => silence(args, context).await,
        AlertVerb::Silences => {
            let items: Vec<Value> = client.list(&SILENCES, &[], None).await?;
            let silences: Vec<Silence> = read(&items)?;
            let now_ms = super::node::now(context).await?;
            out.show(&json!({ "items": items, "next": null }), || match silences.is_empty() {
                true => "no silences\n".to_owned(),
                false => silences_table(&silences, now_ms).text(out.color),
            })
        }
        AlertVerb::Unsilence { id } => {
            client.change(Method::DELETE, &[&SILENCES[..], &[&id]].concat(), None).await?;
            out.show(&Value::Null, || format!("silence {id} has ended\n"))
        }
        AlertVerb::Receivers => {
            let items: Vec<Value> = client.list(&RECEIVERS, &[], None).await?;
            let receivers: Vec<Receiver> = read(&items)?;
            out.show(&json!({ "items": items, "next": null }), || match receivers.is_empty() {
                true => "nobody is told but the log and MQTT; `fleet alert receivers --help` shows how\n"
                    .to_owned(),
                false => receivers_table(&receivers).text(out.color),
            })
        }
        AlertVerb::Test { receiver } => test(&receiver, context).await,
    }
}

fn one<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, Failure> {
    let mut read = read(std::slice::from_ref(value))?;
    read.pop().ok_or_else(|| Failure::Failed("the hub's answer is empty".to_owned()))
}

async fn ls(args: LsArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let LsArgs { all, state, severity, rule, node, site, behind, limit } = args;
    let state = state.unwrap_or_else(|| "open".to_owned());
    let mut query: Vec<(&str, &str)> = Vec::new();
    if !all {
        query.push(("state", &state));
    }
    if !behind {
        query.push(("causes", "true"));
    }
    let given = [("severity", &severity), ("rule", &rule), ("node", &node), ("site", &site)];
    query.extend(given.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?))));
    let items: Vec<Value> = client.list(&ALERTS, &query, limit).await?;
    let alerts: Vec<Alert> = read(&items)?;
    let now_ms = super::node::now(context).await?;
    out.show(&json!({ "items": items, "next": null }), || {
        if alerts.is_empty() {
            return "no alerts\n".to_owned();
        }
        let mut table = Table::new(&["id", "severity", "state", "rule", "where", "since", "message"]);
        for alert in &alerts {
            table.row(vec![
                Cell::left(&alert.id),
                Cell::toned(&alert.severity, tone(&alert.severity)),
                Cell::toned(standing(alert), standing_tone(alert)),
                Cell::left(&alert.rule),
                Cell::left(place(alert)),
                Cell::left(ago(now_ms, Some(alert.fired_ms.unwrap_or(alert.since_ms)))),
                Cell::left(&alert.message),
            ]);
        }
        table.text(out.color)
    })
}

fn place(alert: &Alert) -> String {
    alert.device.as_ref().map_or_else(|| alert.node.clone(), |device| format!("{}/{device}", alert.node))
}

/// The state, or why nobody is told.
fn standing(alert: &Alert) -> &str {
    match alert.state.as_str() {
        "firing" if alert.inhibited_by.is_some() => "inhibited",
        "firing" if alert.silenced_until_ms.is_some() => "silenced",
        "firing" if alert.acknowledged_by.is_some() => "acknowledged",
        state => state,
    }
}

fn standing_tone(alert: &Alert) -> Tone {
    match standing(alert) {
        "firing" => Tone::Bad,
        "pending" => Tone::Warning,
        _ => Tone::Faint,
    }
}

fn describe(alert: &Alert, now_ms: i64, color: bool) -> String {
    let mut table = Table::new(&["field", "value"]);
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            table.row(vec![Cell::left(name), Cell::left(value)]);
        }
    };
    let tz = alert.tz.as_deref();
    let at = |ms: Option<i64>| ms.map(|ms| format!("{} ({} ago)", time_in(ms, tz), ago(now_ms, Some(ms))));
    row("id", Some(alert.id.clone()));
    row("rule", Some(alert.rule.clone()));
    row("where", Some(place(alert)));
    row("site", alert.site.clone());
    row("severity", Some(alert.severity.clone()));
    row("state", Some(standing(alert).to_owned()));
    row("message", Some(clean(&alert.message)));
    row("value", alert.value.map(number));
    row("holds since", at(Some(alert.since_ms)));
    row("fires since", at(alert.fired_ms));
    row("over since", at(alert.resolved_ms));
    row("because", alert.reason.clone());
    row("taken care of by", alert.acknowledged_by.clone());
    row("comment", alert.comment.clone());
    let silent = |ms: i64| format!("{} ({} more)", time_in(ms, tz), until(now_ms, Some(ms)));
    row("silenced until", alert.silenced_until_ms.map(silent));
    row("stands behind", alert.inhibited_by.clone());
    row(
        "stands for",
        alert.outage.as_ref().map(|outage| {
            let part = outage.site.as_ref().map_or("the fleet".to_owned(), |site| format!("site {site}"));
            format!("{part}: {} of {} nodes do not answer", outage.down, outage.nodes)
        }),
    );
    for (key, value) in &alert.labels {
        row(key, Some(value.clone()));
    }
    table.text(color)
}

async fn silence(args: SilenceArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let mut body = Map::new();
    body.insert("for_s".to_owned(), json!(args.period.as_secs()));
    let given = [
        ("rule", args.rule),
        ("node", args.node),
        ("device", args.device),
        ("site", args.site),
        ("comment", args.comment),
    ];
    body.extend(given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?)))));
    let path = match &args.id {
        Some(id) => [&ALERTS[..], &[id, "silence"]].concat(),
        None => SILENCES.to_vec(),
    };
    let value = client.change(Method::POST, &path, Some(&Value::Object(body))).await?;
    let silence: Silence = one(&value)?;
    out.show(&value, || {
        let until = time_in(silence.until_ms, silence.tz.as_deref());
        format!("silence {} until {until}: {}\n", silence.id, about(&silence))
    })
}

fn about(silence: &Silence) -> String {
    let given = [
        ("rule", &silence.rule),
        ("node", &silence.node),
        ("device", &silence.device),
        ("site", &silence.site),
    ];
    let given = given.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)));
    let told: Vec<_> =
        given.filter(|(_, value)| !value.is_empty()).map(|(key, value)| format!("{key} {value}")).collect();
    clean(&told.join(", "))
}

fn silences_table(silences: &[Silence], now_ms: i64) -> Table {
    let mut table = Table::new(&["id", "about", "until", "ends in", "by", "comment"]);
    for silence in silences {
        table.row(vec![
            Cell::left(&silence.id),
            Cell::left(about(silence)),
            Cell::left(time_in(silence.until_ms, silence.tz.as_deref())),
            Cell::left(until(now_ms, Some(silence.until_ms))),
            Cell::left(&silence.by),
            Cell::left(silence.comment.as_deref().unwrap_or_default()),
        ]);
    }
    table
}

fn receivers_table(receivers: &[Receiver]) -> Table {
    let mut table = Table::new(&["name", "kind", "url", "severity", "labels", "waiting", "failure"]);
    for receiver in receivers {
        let labels: Vec<_> = receiver.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let failure = receiver.failure.as_deref().unwrap_or_default();
        table.row(vec![
            Cell::left(&receiver.name),
            Cell::left(&receiver.kind),
            Cell::left(&receiver.url),
            Cell::left(receiver.severity.as_deref().unwrap_or("any")),
            Cell::left(labels.join(",")),
            Cell::left(receiver.pending_count),
            Cell::toned(failure, Tone::Bad),
        ]);
    }
    table
}

/// Tries a receiver: it took it when a word was taken that it was not told before.
async fn test(name: &str, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let look = async || {
        let items: Vec<Value> = client.list(&RECEIVERS, &[], None).await?;
        let receivers: Vec<Receiver> = read(&items)?;
        let found = receivers.into_iter().find(|receiver| receiver.name == name);
        found.ok_or_else(|| {
            Failure::NotFound(format!("there is no receiver {name:?}; `fleet alert receivers` lists them"))
        })
    };
    let before = look().await?.sent_count;
    client.change(Method::POST, &[&RECEIVERS[..], &[name, "test"]].concat(), None).await?;
    let took = async {
        loop {
            let receiver = look().await?;
            if receiver.sent_count > before {
                return Ok(());
            }
            if let Some(why) = receiver.failure {
                return Err(Failure::Failed(format!("{name} does not take it: {why}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let slow = || {
        Failure::Failed(format!("{name} has not answered yet; `fleet alert receivers` shows when it does"))
    };
    tokio::time::timeout(TRY, took).await.unwrap_or_else(|_| Err(slow()))?;
    out.show(&json!({ "receiver": name, "taken": true }), || format!("{name} took it\n"))
}
