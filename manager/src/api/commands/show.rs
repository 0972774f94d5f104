//! How commands and executions look outside.

use fleet_schemas::{
    CommandId, NodeId,
    command::{Reason, State},
};
use serde_json::{Value, json};

use super::super::{Api, any, problem::Refusal, shapes};
use crate::{
    core::{
        command::{Change, Command, Execution, Step},
        zones,
    },
    store::state::{Counts, ExecutionFilter, ReportRow, StateStore},
};

/// Reports of one execution that are read for its output.
const REPORTS: usize = 70_000;
/// Output and results on one page, in bytes; it ends when they are more.
const OUTPUT_BYTES: usize = 4 * 1024 * 1024;

/// A command without executions.
pub(super) fn command(command: &Command, counts: &Counts) -> shapes::Command {
    let states = State::ALL.into_iter().filter(|state| counts.of(*state) > 0);
    shapes::Command {
        id: command.id.to_string(),
        kind: command.kind.to_string(),
        params: None,
        queue: command.queue.to_string(),
        priority: command.priority,
        idempotent: command.idempotent,
        supersedes: command.supersedes.as_ref().map(ToString::to_string),
        created_ms: command.created_ms,
        not_before_ms: command.not_before_ms,
        not_after_ms: command.not_after_ms,
        timeout_ms: command.timeout_ms,
        by: command.by.clone(),
        selector: command.selector.clone(),
        tz: None,
        nodes_count: counts.sum(),
        held_count: 0,
        states: states.map(|state| (state.as_str().to_owned(), counts.of(state))).collect(),
        executions: Vec::new(),
        next: None,
    }
}

/// The zone of a command to one node: that of its site.
///
/// # Errors
/// The store's.
pub(super) fn zone(api: &Api, command: &Command, counts: &Counts) -> Result<Option<String>, Refusal> {
    if counts.sum() != 1 {
        return Ok(None);
    }
    let only = ExecutionFilter { limit: 1, ..ExecutionFilter::default() };
    let only = api.hub.state().executions(command.id, &only)?.items;
    Ok(only.first().and_then(|(number, _)| {
        api.hub.with_fleet(|fleet| fleet.ids.get(number).and_then(|id| zones::at(fleet, id)))
    }))
}

/// An execution without output and result; `tz` is the zone of the node's site.
pub(super) fn execution(
    node: &NodeId,
    tz: Option<String>,
    command: &Command,
    execution: &Execution,
) -> shapes::Execution {
    let state = execution.state();
    let waits_ms = execution.slot_ms.max(command.not_before_ms.unwrap_or(i64::MIN));
    let waits = state == State::Queued && waits_ms > command.created_ms;
    shapes::Execution {
        node: node.to_string(),
        state: state.as_str().to_owned(),
        tz,
        history: execution.history.iter().map(step).collect(),
        not_before_ms: waits.then_some(waits_ms),
        cancel_asked_ms: execution.cancel_ms,
        too_late: execution.too_late,
        held: execution.is_held(),
        exit_code: execution.exit_code,
        output: None,
        output_bytes: u64::from(execution.output_bytes),
        output_cut: execution.cut,
        result: None,
        after: execution.after.as_ref().map(step),
    }
}

fn step(step: &Step) -> shapes::Step {
    shapes::Step {
        state: step.state.as_str().to_owned(),
        at_ms: step.at_ms,
        reason: step.reason.as_deref().map(reason),
    }
}

fn reason(reason: &Reason) -> shapes::Reason {
    let Reason { code, message, may_have_executed } = reason.clone();
    shapes::Reason { code, message, may_have_executed }
}

/// The parameter that is a secret: of `move`, a join token of another hub.
const TOKEN: &str = "token";

/// A command with its parameters and a page of its executions, with what they gave.
pub(super) fn whole(
    api: &Api,
    id: CommandId,
    filter: &ExecutionFilter,
) -> Result<Option<shapes::Command>, Refusal> {
    let store = api.hub.state();
    let Some((known, counts)) = store.command(id)? else { return Ok(None) };
    let mut shown = command(&known, &counts);
    shown.tz = zone(api, &known, &counts)?;
    shown.params = Some(any::json(&known.params));
    let held = api.hub.with_fleet(|fleet| fleet.commands.held_of(&id));
    shown.held_count = u32::try_from(held).unwrap_or(u32::MAX);
    if let Some(token) = shown.params.as_mut().and_then(|params| params.get_mut(TOKEN)) {
        *token = "(not shown)".into();
    }
    let page = store.executions(id, filter)?;
    let mut next = page.next;
    let mut bytes = 0;
    for (number, found) in page.items {
        if bytes > OUTPUT_BYTES {
            next = Some(number.saturating_sub(1));
            break;
        }
        let node = api.hub.with_fleet(|fleet| {
            let id = fleet.ids.get(&number)?;
            Some((id.clone(), zones::at(fleet, id)))
        });
        let Some((node, tz)) = node else { continue };
        let mut one = execution(&node, tz, &known, &found);
        bytes += give(&store, id, number, &mut one)?;
        shown.executions.push(one);
    }
    shown.next = next.map(|number| number.to_string());
    Ok(Some(shown))
}

/// Adds what an execution gave; says about how many bytes that is.
fn give(
    store: &StateStore,
    id: CommandId,
    number: u32,
    shown: &mut shapes::Execution,
) -> Result<usize, Refusal> {
    let mut output = Vec::new();
    let mut gave = 256;
    for ReportRow { report, .. } in store.reports(id, number, REPORTS)? {
        if let Some(piece) = report.output {
            output.extend(piece.bytes);
        }
        if let Some(result) = report.result {
            let result = any::json(&result);
            gave += result.to_string().len();
            shown.result = Some(result);
        }
    }
    gave += output.len();
    shown.output = (!output.is_empty()).then(|| String::from_utf8_lossy(&output).into_owned());
    Ok(gave)
}

/// A change as the stream tells it. Output comes in pieces: `from` is where one begins, in bytes, `bytes` how
/// long it is, and a character that was cut
/// between two pieces is whole only in `commands/{id}`.
pub(in crate::api) fn change(change: &Change, node: Option<&str>) -> Value {
    let mut value = json!({
        "id": change.command, "kind": change.kind, "state": change.step.state, "at_ms": change.step.at_ms,
    });
    if let Some(node) = node {
        value["node"] = json!(node);
    }
    if let Some(why) = &change.step.reason {
        value["reason"] = json!(reason(why));
    }
    if let Some(code) = change.exit_code {
        value["exit_code"] = json!(code);
    }
    if let Some(output) = &change.output {
        let text = String::from_utf8_lossy(&output.bytes);
        value["output"] = json!({
            "from": output.from, "bytes": output.bytes.len(), "text": text, "cut": output.cut,
        });
    }
    if change.cancel_asked {
        value["cancel_asked"] = json!(true);
    }
    if change.too_late {
        value["too_late"] = json!(true);
    }
    value
}
