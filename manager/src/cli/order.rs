//! One command to one node, made and waited for: what the verbs on nodes are built on that need the node itself.

use std::time::Duration;

use fleet_schemas::{NodeId, command::State};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time;

use super::{Context, Failure, client::Events};
use crate::{
    api::shapes::{BriefCommand, Command, Execution, Reason},
    clock,
};

/// How often the hub is asked while its stream says nothing.
const ASK: Duration = Duration::from_secs(5);
/// How often it is asked while there is no stream.
const POLL: Duration = Duration::from_millis(500);

/// What a node is to do.
#[derive(Debug, Clone)]
pub(super) struct Order<'a> {
    /// Which node.
    pub node: &'a NodeId,
    /// What.
    pub kind: &'a str,
    /// With what.
    pub params: Value,
    /// How long it may wait to begin.
    pub ttl: Duration,
    /// How long it may run.
    pub timeout: Duration,
    /// Its queue; none: the one of its kind.
    pub queue: Option<&'a str>,
}

/// Makes the command and waits until it is over. `told` hears each change of its state.
///
/// # Errors
/// [`Failure`]; also when the command could not be made. How it ended is in the answer.
pub(super) async fn done(
    order: &Order<'_>,
    context: &Context,
    mut told: impl FnMut(&Execution),
) -> Result<Execution, Failure> {
    let body = json!({
        "nodes": [order.node], "kind": order.kind, "params": order.params, "ttl_s": order.ttl.as_secs_f64(),
        "timeout_s": order.timeout.as_secs_f64(), "queue": order.queue, "idempotent": true,
    });
    let value = context.client.change(Method::POST, &["api", "v1", "commands"], Some(&body)).await?;
    let made: BriefCommand = super::output::read(std::slice::from_ref(&value))?.remove(0);
    let query = [("kind", "execution"), ("command", made.id.as_str())];
    let mut state = String::new();
    loop {
        // First the stream, then all of it: what happens in between is told twice and never missed.
        let stream = context.client.events(&["api", "v1", "stream"], &query).await;
        let command: Command = context.client.get(&["api", "v1", "commands", &made.id], &[]).await?;
        let execution = command.executions.into_iter().next();
        let execution =
            execution.ok_or_else(|| Failure::Failed("the hub's command is for no node".to_owned()))?;
        if execution.state != state {
            state.clone_from(&execution.state);
            told(&execution);
        }
        if is_over(&execution.state) {
            return Ok(execution);
        }
        match stream {
            Ok(mut stream) => changed(&mut stream).await,
            Err(_) => time::sleep(POLL).await,
        }
    }
}

/// Until something changed, or it is time to ask again.
async fn changed(stream: &mut Events) {
    let until = clock::mono() + ASK;
    loop {
        let left = until.saturating_sub(clock::mono());
        match time::timeout(left, stream.next()).await {
            Ok(Ok(Some(message))) if message.event == "execution" => {
                let change: Value = serde_json::from_str(&message.data).unwrap_or_default();
                if change["output"].is_null() {
                    return;
                }
            }
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None) | Err(_)) | Err(_) => return,
        }
    }
}

fn is_over(word: &str) -> bool {
    State::ALL.into_iter().any(|state| state.as_str() == word && state.is_terminal())
}

/// Why an execution is where it is.
pub(super) fn reason(execution: &Execution) -> Option<&Reason> {
    execution.history.last()?.reason.as_ref()
}
