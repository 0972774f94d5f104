//! Shows commands as they stand: one with its executions, or a list; and takes one back.

use fleet_schemas::{CommandId, NodeId};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    GetArgs, LsArgs,
    watch::{self, Whole},
};
use crate::{
    api::shapes::{BriefCommand, Command, Execution},
    cli::{
        Context, Failure, node,
        output::{Cell, Table, Tone, ago, clean, paint, read, time_in, tone, until},
    },
};

/// Executions of one page.
const PAGE: &str = "500";
/// Most executions whose output is shown.
const OUTPUTS: usize = 50;

/// A command with all its executions, page by page.
///
/// # Errors
/// [`Failure`].
pub(super) async fn whole(id: &str, node: Option<&NodeId>, context: &Context) -> Result<Command, Failure> {
    let path = ["api", "v1", "commands", id];
    let mut query = vec![("limit", PAGE)];
    query.extend(node.map(|node| ("node", node.as_str())));
    let mut whole: Command = context.client.get(&path, &query).await?;
    while let Some(cursor) = whole.next.take() {
        let query = [&query[..], &[("cursor", cursor.as_str())]].concat();
        let mut page: Command = context.client.get(&path, &query).await?;
        whole.executions.append(&mut page.executions);
        (whole.states, whole.next) = (page.states, page.next);
    }
    Ok(whole)
}

/// `fleet command get`.
///
/// # Errors
/// [`Failure`].
pub(super) async fn get(args: &GetArgs, context: &Context) -> Result<(), Failure> {
    let id = args.id.to_string();
    if args.follow {
        return watch::until_over(&Whole { id, node: args.node.clone() }, context).await;
    }
    let command = whole(&id, args.node.as_ref(), context).await?;
    let now_ms = node::now(context).await?;
    let color = context.out.color;
    context.out.show(&json!(command), || description(&command, now_ms, color))
}

fn description(command: &Command, now_ms: i64, color: bool) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<12}{value}\n"));
    line("id", &command.id);
    let params = command.params.as_ref().filter(|params| !params.is_null());
    line("kind", &clean(&format!("{} {}", command.kind, params.map(Value::to_string).unwrap_or_default())));
    line("made", &format!("{} ago by {}", ago(now_ms, Some(command.created_ms)), clean(&command.by)));
    if let Some(selector) = &command.selector {
        line("selector", &clean(selector));
    }
    if let Some(at_ms) = command.not_before_ms {
        line("not before", &time_in(at_ms, command.tz.as_deref()));
    }
    let (end_ms, tz) = (command.not_after_ms, command.tz.as_deref());
    line("expires", &format!("{} ({})", time_in(end_ms, tz), until(now_ms, Some(end_ms))));
    line("queue", &clean(&command.queue));
    line("states", &states(command, color));
    let mut table = Table::new(&["node", "state", "since", "exit", "why"]);
    for execution in &command.executions {
        table.row(row(execution, now_ms));
    }
    text.push('\n');
    text.push_str(&table.text(color));
    let gave = command.executions.iter().filter(|one| one.output.is_some() || one.result.is_some());
    for execution in gave.take(OUTPUTS) {
        text.push_str(&format!("\n{}\n", paint(&execution.node, Tone::Faint, color)));
        if let Some(result) = &execution.result {
            text.push_str(&format!("  {}\n", clean(&result.to_string())));
        }
        for line in execution.output.iter().flat_map(|output| output.lines()) {
            text.push_str(&format!("  {}\n", clean(&line.replace('\t', "    "))));
        }
        if execution.output_cut {
            text.push_str("  (there was more)\n");
        }
    }
    text
}

fn row(execution: &Execution, now_ms: i64) -> Vec<Cell> {
    let last = execution.history.last();
    let why = last.and_then(|step| step.reason.as_ref()).map(|reason| {
        let doubt = if reason.may_have_executed { " (it may have been done)" } else { "" };
        format!("{}{doubt}", reason.message.lines().next().unwrap_or_default())
    });
    let why = match (why, execution.not_before_ms) {
        (Some(why), _) => why,
        (None, _) if execution.held => "held since the hub was restored: approve or cancel it".to_owned(),
        (None, Some(at_ms)) if execution.state == "queued" => {
            format!("its turn comes at {}", time_in(at_ms, execution.tz.as_deref()))
        }
        (None, _) if execution.too_late => "the cancel came too late".to_owned(),
        (None, _) if execution.cancel_asked_ms.is_some() && execution.state != "canceled" => {
            "the node is asked to cancel it".to_owned()
        }
        (None, _) => String::new(),
    };
    vec![
        Cell::left(&execution.node),
        Cell::toned(&execution.state, tone(&execution.state)),
        Cell::right(ago(now_ms, last.map(|step| step.at_ms))),
        Cell::right(execution.exit_code.map_or_else(String::new, |code| code.to_string())),
        Cell::left(why),
    ]
}

fn states(command: &Command, color: bool) -> String {
    let words = command.states.iter();
    let words = words.map(|(state, count)| format!("{count} {}", paint(state, tone(state), color)));
    let mut words = words.collect::<Vec<_>>();
    if command.held_count > 0 {
        words.push(format!("{} of them {}", command.held_count, paint("held", Tone::Warning, color)));
    }
    words.join(", ")
}

/// `fleet command ls`.
///
/// # Errors
/// [`Failure`].
pub(super) async fn ls(args: &LsArgs, context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let mut query = Vec::new();
    query.extend(args.node.as_ref().map(|node| ("node", node.as_str())));
    query.extend(args.state.as_deref().map(|state| ("state", state)));
    query.extend(args.kind.as_deref().map(|kind| ("kind", kind)));
    let items: Vec<Value> = client.list(&["api", "v1", "commands"], &query, Some(args.limit)).await?;
    let now_ms = node::now(context).await?;
    let commands: Vec<Command> = read(&items)?;
    out.show(&json!({ "items": items, "next": null }), || {
        if commands.is_empty() {
            "no commands match\n".to_owned()
        } else {
            table(&commands, now_ms).text(out.color)
        }
    })
}

fn table(commands: &[Command], now_ms: i64) -> Table {
    let mut table = Table::new(&["id", "kind", "queue", "made", "by", "nodes", "states"]);
    for command in commands {
        table.row(vec![
            Cell::left(&command.id),
            Cell::left(&command.kind),
            Cell::left(&command.queue),
            Cell::right(ago(now_ms, Some(command.created_ms))),
            Cell::left(&command.by),
            Cell::right(command.nodes_count),
            Cell::left(states(command, false)),
        ]);
    }
    table
}

/// `fleet command approve`.
///
/// # Errors
/// [`Failure`], also when it is held nowhere.
pub(super) async fn approve(id: CommandId, nodes: &[NodeId], context: &Context) -> Result<(), Failure> {
    let text = id.to_string();
    let body = if nodes.is_empty() { json!({}) } else { json!({ "nodes": nodes }) };
    let path = ["api", "v1", "commands", text.as_str(), "approve-held"];
    let value = context.client.change(Method::POST, &path, Some(&body)).await?;
    let brief: BriefCommand = read(std::slice::from_ref(&value))?.remove(0);
    context.out.show(&value, || {
        let held = brief.executions.iter().filter(|one| one.held).count();
        match held {
            0 => format!("it goes on; `fleet command get {text} --follow` watches it\n"),
            held => format!("it goes on there, and is held at {held} others still\n"),
        }
    })
}

/// `fleet command cancel`.
///
/// # Errors
/// [`Failure`], also when it was over already everywhere.
pub(super) async fn cancel(id: CommandId, nodes: &[NodeId], context: &Context) -> Result<(), Failure> {
    let Context { client, out } = context;
    let text = id.to_string();
    let body = if nodes.is_empty() { json!({}) } else { json!({ "nodes": nodes }) };
    let path = ["api", "v1", "commands", text.as_str(), "cancel"];
    let value = client.change(Method::POST, &path, Some(&body)).await?;
    let brief: BriefCommand = read(std::slice::from_ref(&value))?.remove(0);
    let asked = |node: &str| nodes.is_empty() || nodes.iter().any(|id| id.as_str() == node);
    let meant: Vec<_> = brief.executions.iter().filter(|one| asked(&one.node)).collect();
    out.show(&value, || {
        let mut table = Table::new(&["node", "state", "cancel"]);
        for one in &meant {
            let word = match (one.state.as_str(), one.cancel_asked) {
                ("canceled", _) => "done",
                ("queued" | "sent" | "accepted" | "running", true) => "the node is asked",
                (_, _) => "was over already",
            };
            table.row(vec![
                Cell::left(&one.node),
                Cell::toned(&one.state, tone(&one.state)),
                Cell::left(word),
            ]);
        }
        table.text(out.color)
    })?;
    let open = ["queued", "sent", "accepted", "running", "canceled"];
    if meant.iter().any(|one| open.contains(&one.state.as_str())) {
        Ok(())
    } else {
        Err(Failure::Conflict(format!("it was over already; `fleet command get {text}` shows how it ended")))
    }
}
