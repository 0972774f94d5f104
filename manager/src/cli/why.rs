//! `fleet why`: the chain of causes for the present state of a node, a rollout or a command.

use clap::Args;
use fleet_schemas::{CommandId, NodeId};
use serde_json::{Value, json};

use super::{
    Context, Failure, node,
    output::{Format, Tone, clean, hour_in, paint, read, time_in},
};
use crate::api::shapes::{Cause, CommandWhy, ExecutionWhy, NodeWhy, RolloutWhy};

/// What to explain.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fleet why edge-1                      why a node is offline, and what else is the matter\n  \
    fleet why 0199…                       why a command is where it is, at every node where it did not succeed\n  \
    fleet why 0199… --node edge-1 -o json\n  \
    fleet why greeter-1.2.0-1             why a rollout is where it is, and which nodes failed with what reason\n\n\
    The present state comes first, what led to it is indented below it, newest first. Times at a node are told by the\n\
    clocks of its site (`fleet site set`), with the abbreviation of the zone."
)]
pub(super) struct WhyArgs {
    /// A node, a rollout, or a command's id
    #[arg(value_name = "NODE|ROLLOUT|COMMAND-ID")]
    what: String,
    /// Of a command: only at this node
    #[arg(long)]
    node: Option<NodeId>,
    /// Of a command: most nodes to tell of
    #[arg(long, default_value_t = 10)]
    limit: usize,
}

/// Executions of one page.
const PAGE: &str = "100";
const SUCCEEDED: &str = "succeeded";
/// A day: times within it are told without the date.
const DAY_MS: i64 = 86_400_000;

/// Runs the verb.
///
/// # Errors
/// [`Failure`].
pub(super) async fn run(args: WhyArgs, context: &Context) -> Result<(), Failure> {
    // A command's id is a node's name too, and no node is called so.
    match args.what.parse::<CommandId>() {
        Ok(id) => command(&id.to_string(), &args, context).await,
        Err(_) if args.node.is_some() => {
            Err(Failure::Usage(format!("{} is no command's id; leave --node away", args.what)))
        }
        // A rollout's name may be a node's too; then the node is meant.
        Err(_) => match of_node(&args.what, context).await {
            Err(missing @ (Failure::NotFound(_) | Failure::Usage(_))) => {
                of_rollout(&args.what, context, missing).await
            }
            done => done,
        },
    }
}

async fn of_node(what: &str, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let id = NodeId::parse(what).map_err(|_| {
        Failure::Usage(format!(
            "{what:?} is neither a node nor a rollout nor a command; `fleet node ls`, `fleet rollout ls` and `fleet \
             command ls` list them"
        ))
    })?;
    let value: Value = client.get(&["api", "v1", "nodes", id.as_str(), "why"], &[]).await?;
    let why: NodeWhy = read(std::slice::from_ref(&value))?.remove(0);
    let now_ms = node::now(context).await?;
    out.show(&value, || text(&why.causes, Clock { now_ms, tz: None }, out.color))
}

/// Of a rollout, if there is one; else what was missing before stays.
async fn of_rollout(what: &str, context: &Context, missing: Failure) -> Result<(), Failure> {
    let Context { client, out } = context;
    let value: Value = match client.get(&["api", "v1", "rollouts", what, "why"], &[]).await {
        Err(Failure::NotFound(_)) => return Err(missing),
        answer => answer?,
    };
    let why: RolloutWhy = read(std::slice::from_ref(&value))?.remove(0);
    let now_ms = node::now(context).await?;
    out.show(&value, || text(&why.causes, Clock { now_ms, tz: None }, out.color))
}

async fn command(id: &str, args: &WhyArgs, context: &Context) -> Result<(), Failure> {
    let path = ["api", "v1", "commands", id, "why"];
    let mut query = vec![("limit", PAGE)];
    query.extend(args.node.as_ref().map(|node| ("node", node.as_str())));
    let mut why: CommandWhy = context.client.get(&path, &query).await?;
    // A table tells of a few; whoever reads JSON wants all.
    let enough = |why: &CommandWhy| {
        context.out.format == Format::Table
            && why.items.iter().filter(|one| is_open(one)).count() > args.limit
    };
    while let Some(cursor) = why.next.clone().filter(|_| !enough(&why)) {
        let query = [&query[..], &[("cursor", cursor.as_str())]].concat();
        let mut page: CommandWhy = context.client.get(&path, &query).await?;
        why.items.append(&mut page.items);
        why.next = page.next;
    }
    let now_ms = node::now(context).await?;
    if args.node.is_some() {
        why.states = why.items.iter().map(|one| (one.state.clone(), 1)).collect();
    }
    context.out.show(&json!(why), || command_text(&why, args.limit, now_ms, context.out.color))
}

fn is_open(one: &ExecutionWhy) -> bool {
    one.state != SUCCEEDED
}

/// What did not go well comes first, and what is not over.
fn command_text(why: &CommandWhy, limit: usize, now_ms: i64, color: bool) -> String {
    let done = why.states.get(SUCCEEDED).copied().unwrap_or(0) as usize;
    let open = why.states.values().sum::<u32>() as usize - done;
    let clock = Clock { now_ms, tz: None };
    let told = why.items.iter().filter(|one| open == 0 || is_open(one));
    let mut shown: String = told.take(limit).map(|one| text(&one.causes, clock, color)).collect();
    let meant = if open == 0 { done } else { open };
    if meant > limit {
        shown.push_str(&format!("and {} more; --limit tells of more, --node of one\n", meant - limit));
    }
    if open > 0 && done > 0 {
        shown.push_str(&format!("{done} of {} nodes succeeded\n", open + done));
    }
    shown
}

/// By which times are told.
#[derive(Debug, Clone, Copy)]
struct Clock<'a> {
    now_ms: i64,
    /// The zone of the site, where there is one; UTC where not.
    tz: Option<&'a str>,
}

/// Causes as an indented list.
fn text(causes: &[Cause], clock: Clock<'_>, color: bool) -> String {
    let mut text = String::new();
    for cause in causes {
        write(cause, 0, clock, color, &mut text);
    }
    text
}

fn write(cause: &Cause, depth: usize, clock: Clock<'_>, color: bool, text: &mut String) {
    let clock = Clock { tz: cause.tz.as_deref().or(clock.tz), ..clock };
    let indent = "  ".repeat(depth);
    let when = match (cause.at_ms, cause.until_ms) {
        (None, None) => String::new(),
        (Some(at), None) => moment(at, clock),
        (Some(at), Some(until)) => format!("{} to {}", moment(at, clock), moment(until, clock)),
        (None, Some(until)) => format!("until {}", moment(until, clock)),
    };
    let when = if when.is_empty() { when } else { format!("{}  ", paint(&when, Tone::Faint, color)) };
    let mut lines = cause.what.lines().map(clean);
    let first = lines.next().unwrap_or_default();
    text.push_str(&format!("{indent}{when}{first}\n"));
    for line in lines {
        text.push_str(&format!("{indent}    {line}\n"));
    }
    for because in &cause.because {
        write(because, depth + 1, clock, color, text);
    }
}

/// A time, UTC or that of the site; without the date within a day.
fn moment(at_ms: i64, Clock { now_ms, tz }: Clock<'_>) -> String {
    let is_near = at_ms.abs_diff(now_ms) < DAY_MS.unsigned_abs();
    if is_near { hour_in(at_ms, tz) } else { time_in(at_ms, tz) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_indented_below_what_they_led_to() {
        let last = Cause {
            at_ms: Some(0),
            until_ms: Some(61_000),
            what: "it was offline".into(),
            ..Cause::default()
        };
        let rest = Cause { what: "add these lines\n[command.rm]".into(), ..Cause::default() };
        let cause = Cause {
            at_ms: Some(200_000_000),
            what: "exec is expired at a\u{1b}".to_owned(),
            because: vec![last, rest],
            ..Cause::default()
        };
        let clock = Clock { now_ms: 200_100_000, tz: None };
        // Of a rollout: its own times are UTC, those at a node its site's, with what led to them.
        let tokyo = Cause { tz: Some("Asia/Tokyo".to_owned()), ..cause.clone() };
        let all = Cause {
            at_ms: Some(200_000_000),
            what: "it is paused".into(),
            because: vec![tokyo],
            ..Cause::default()
        };
        insta::assert_snapshot!(text(&[all], clock, false), @r"
        07:33:20 UTC  it is paused
          16:33:20 JST  exec is expired at a�
            1970-01-01 09:00:00 JST to 1970-01-01 09:01:01 JST  it was offline
            add these lines
                [command.rm]
        ");
        insta::assert_snapshot!(text(&[cause], clock, false), @r"
        07:33:20 UTC  exec is expired at a�
          1970-01-01 00:00:00 UTC to 1970-01-01 00:01:01 UTC  it was offline
          add these lines
              [command.rm]
        ");
    }
}
