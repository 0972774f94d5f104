//! `fleet node logs`: what a node logs, asked for over its command queue, page by page.

use std::{sync::LazyLock, time::Duration};

use clap::{Args, ValueEnum};
use fleet_schemas::NodeId;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time;

use super::super::{
    Context, Failure,
    order::{self, Order},
    output::{Format, Tone, ago, clean, paint, time_in},
    period,
};
use crate::{api::shapes::Node, clock};

/// Lines that are shown unless asked otherwise.
const LINES: u32 = 100;
/// How long a node may take to begin: it answers at once when it is there.
const TTL: Duration = Duration::from_secs(60);
/// How long it may take to read its ring: a small board unpacks 10 MB in seconds.
const READ: Duration = Duration::from_secs(60);
/// How long it waits for lines while they are followed, in seconds; then it is asked again.
const WAIT_S: u64 = 20;
/// Shortest time between two questions while lines are followed: bounds what a chatty node costs its link.
const PACE: Duration = Duration::from_secs(1);
/// Pause before a node or a hub that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// Which lines.
#[derive(Debug, Args)]
pub(in crate::cli) struct LogsArgs {
    /// The node's id
    node: NodeId,
    /// Only lines of this long ago or later, such as 1h
    #[arg(long, value_name = "PERIOD", value_parser = period::parse)]
    since: Option<Duration>,
    /// The last so many lines [default: 100, or all with --since]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    lines: Option<u32>,
    /// Only of this unit or file; the agent's own lines are of fleet-agent
    #[arg(long, value_name = "NAME")]
    unit: Option<String>,
    /// Only with this text in them
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
    /// Only this grave or graver
    #[arg(long, value_enum)]
    level: Option<Level>,
    /// Go on with what comes, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
}

/// How grave.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Level {
    /// Errors and worse.
    Error,
    /// Warnings too.
    Warning,
    /// All but what is for debugging.
    Info,
    /// All.
    Debug,
}

impl Level {
    /// The priority of syslog.
    fn priority(self) -> u8 {
        match self {
            Self::Error => 3,
            Self::Warning => 4,
            Self::Info => 6,
            Self::Debug => 7,
        }
    }
}

/// A line as nodes tell it.
#[derive(Debug, Deserialize)]
struct Line {
    time_ms: i64,
    unit: String,
    priority: u8,
    message: String,
}

/// Where to go on, as nodes tell it.
#[derive(Debug, Deserialize)]
struct Next {
    next: u64,
    more: bool,
}

/// Why there is no page.
enum Missing {
    /// The node is not there, or not yet.
    Silent(String),
    /// It makes no sense to ask again.
    Final(Failure),
}

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(in crate::cli) async fn run(args: &LogsArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    if !matches!(out.format, Format::Table | Format::Json) {
        return Err(Failure::Usage(
            "lines are shown as text, or with -o json as one object a line".to_owned(),
        ));
    }
    let node: Node = client.get(&["api", "v1", "nodes", args.node.as_str()], &[]).await?;
    let now_ms = super::now(context).await?;
    if node.state != "online" {
        let since = ago(now_ms, node.last_seen_ms);
        eprintln!(
            "{} is {}, last seen {since} ago; its logs are there. Asking for {} s",
            node.id,
            node.state,
            TTL.as_secs()
        );
    }
    let mut params = first(args, now_ms);
    loop {
        let next = match page(args, &params, context).await {
            Ok(next) => next,
            Err(Missing::Silent(why)) if args.follow => {
                eprintln!("{why}; asking again");
                time::sleep(AGAIN).await;
                continue;
            }
            Err(Missing::Silent(why)) => return Err(Failure::Unreachable(why)),
            Err(Missing::Final(failure)) => return Err(failure),
        };
        for answered in ["last", "since_ms"] {
            params.remove(answered);
        }
        params.insert("after".to_owned(), json!(next.next));
        match (next.more, args.follow) {
            (true, _) => {}
            (false, true) => {
                params.insert("wait_s".to_owned(), json!(WAIT_S));
                time::sleep(PACE).await;
            }
            (false, false) => return Ok(()),
        }
    }
}

fn first(args: &LogsArgs, now_ms: i64) -> Map<String, Value> {
    let mut params = Map::new();
    let mut put = |key: &str, value: Option<Value>| params.extend(value.map(|value| (key.to_owned(), value)));
    put("unit", args.unit.as_ref().map(|unit| json!(unit)));
    put("grep", args.grep.as_ref().map(|text| json!(text)));
    put("priority", args.level.map(|level| json!(level.priority())));
    put("since_ms", args.since.map(|since| json!(now_ms.saturating_sub(period::ms(since)))));
    let last = args.lines.or_else(|| args.since.is_none().then_some(LINES));
    put("last", last.map(|last| json!(last)));
    params
}

/// Asks for one page and shows it.
async fn page(args: &LogsArgs, params: &Map<String, Value>, context: &Context) -> Result<Next, Missing> {
    /// A queue of its own: another that follows the same node waits for lines in its own.
    static QUEUE: LazyLock<String> = LazyLock::new(|| {
        let [one, two] = clock::random::<2>();
        format!("logs-{one:02x}{two:02x}")
    });
    let order = Order {
        node: &args.node,
        kind: "logs",
        params: Value::Object(params.clone()),
        ttl: TTL,
        timeout: READ + Duration::from_secs(WAIT_S),
        queue: Some(&QUEUE),
    };
    let execution = match order::done(&order, context, |_| ()).await {
        Ok(execution) => execution,
        Err(Failure::Unreachable(why)) => return Err(Missing::Silent(why)),
        Err(failure) => return Err(Missing::Final(failure)),
    };
    let why = order::reason(&execution);
    let message = || why.map_or("no reason is known", |why| why.message.as_str());
    match execution.state.as_str() {
        "succeeded" => {}
        "expired" => {
            let node = &args.node;
            return Err(Missing::Silent(format!("{node} did not answer: {}; `fleet why {node}`", message())));
        }
        "rejected" if why.is_some_and(|why| why.code == "unknown_kind") => {
            return Err(Missing::Final(Failure::Failed(format!(
                "the agent of {} is older than this and shows no logs; update it",
                args.node
            ))));
        }
        state => {
            let text = format!("{} could not show its logs ({state}): {}", args.node, message());
            return Err(Missing::Final(Failure::Failed(text)));
        }
    }
    let unread = |what: &str| Missing::Final(Failure::Failed(format!("the node's {what} is not understood")));
    let next = execution.result.ok_or_else(|| unread("answer"))?;
    let next: Next = serde_json::from_value(next).map_err(|_| unread("answer"))?;
    let text = show(execution.output.as_deref().unwrap_or_default(), execution.tz.as_deref(), context)
        .ok_or_else(|| unread("line"))?;
    if !text.is_empty() {
        context.out.print(&text).map_err(Missing::Final)?;
    }
    Ok(next)
}

/// The lines as they are asked for; `tz` is the zone of the node's site.
fn show(output: &str, tz: Option<&str>, context: &Context) -> Option<String> {
    if context.out.format == Format::Json {
        return Some(output.to_owned());
    }
    let lines = output.lines().map(|line| serde_json::from_str(line).ok());
    lines.map(|line| line.map(|line| text(&line, tz, context.out.color))).collect()
}

fn text(line: &Line, tz: Option<&str>, color: bool) -> String {
    let (word, tone) = match line.priority {
        0..=2 => ("critical", Tone::Bad),
        3 => ("error", Tone::Bad),
        4 => ("warning", Tone::Warning),
        5 | 6 => ("info", Tone::Plain),
        _ => ("debug", Tone::Faint),
    };
    let whole = time_in(line.time_ms, tz);
    let (second, zone) = whole.rsplit_once(' ').unwrap_or((&whole, ""));
    let when = format!("{second}.{:03} {zone}", line.time_ms.rem_euclid(1_000));
    format!(
        "{when}  {}  {}  {}\n",
        clean(&line.unit),
        paint(&format!("{word:<7}"), tone, color),
        clean(&line.message)
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line0 {
        #[command(flatten)]
        args: LogsArgs,
    }

    fn asked(words: &[&str]) -> Value {
        let line = Line0::try_parse_from([&["logs", "edge-1"], words].concat()).unwrap();
        Value::Object(first(&line.args, 10_000_000))
    }

    #[test]
    fn what_is_asked_for_is_what_was_said() {
        assert_eq!(asked(&[]), json!({ "last": 100 }));
        assert_eq!(asked(&["--since", "1h"]), json!({ "since_ms": 6_400_000 }));
        assert_eq!(asked(&["--since", "1h", "-n", "5"]), json!({ "since_ms": 6_400_000, "last": 5 }));
        let all = asked(&["--unit", "greeter", "--grep", "sensor", "--level", "warning", "-f"]);
        assert_eq!(all, json!({ "unit": "greeter", "grep": "sensor", "priority": 4, "last": 100 }));
    }

    #[test]
    fn a_line_cannot_steer_the_terminal() {
        let line = |priority, message: &str| Line {
            time_ms: 1_795_435_200_042,
            unit: "greeter.service".to_owned(),
            priority,
            message: message.to_owned(),
        };
        insta::assert_snapshot!(text(&line(4, "no sensor"), None, false), @"2026-11-23 12:00:00.042 UTC  greeter.service  warning  no sensor");
        let there = text(&line(4, "no sensor"), Some("Asia/Tokyo"), false);
        assert!(there.starts_with("2026-11-23 21:00:00.042 JST  greeter"), "{there}");
        assert!(!text(&line(3, "\x1b[2Jgone"), None, false).contains('\x1b'));
        assert!(text(&line(3, "bad"), None, true).contains("\x1b[31m"));
    }
}
