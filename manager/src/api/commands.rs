//! `commands`: made for nodes or for a selection, listed, looked at, canceled. Every answer is read from the store after
//! the commit.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State as Shared},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use ciborium::Value as Cbor;
use fleet_schemas::{CommandId, MetricName, NodeId, command::DEFAULT_QUEUE, command::State};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Api,
    idempotency::Turn,
    nodes,
    problem::Refusal,
    query::{Body, Params, content_type, node_id},
    rights::Caller,
    selector::Selector,
    shapes,
};
use crate::{
    clock,
    core::{
        command::{Command, Rate, TIMEOUT, TTL, Wanted},
        registry::Intent,
        zones,
    },
    store::state::{CommandFilter, Counts, ExecutionFilter},
};

mod show;

pub(super) use show::change;

/// Largest body of a new command, in bytes: its parameters, and 10,000 nodes by name.
pub(super) const BODY_BYTES: usize = 2 * 1024 * 1024;
/// Executions that an answer to a change lists; the others are on the pages of `commands/{id}`.
const ANSWERED: usize = 10_000;

/// The body of a new command.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = CommandBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Ask {
    #[serde(default)]
    nodes: Option<Vec<String>>,
    #[serde(default)]
    selector: Option<String>,
    #[serde(default)]
    all: bool,
    kind: String,
    #[serde(default)]
    params: Value,
    #[serde(default)]
    ttl_s: Option<f64>,
    #[serde(default)]
    timeout_s: Option<f64>,
    #[serde(default)]
    queue: Option<String>,
    #[serde(default)]
    priority: i8,
    #[serde(default)]
    idempotent: bool,
    #[serde(default)]
    supersedes: Option<String>,
    #[serde(default)]
    not_before_ms: Option<i64>,
    #[serde(default)]
    rate: Option<Rate>,
}

/// The body of a cancel; nothing at all cancels everywhere.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = CancelBody))]
#[serde(deny_unknown_fields)]
pub(super) struct CancelAsk {
    #[serde(default)]
    nodes: Option<Vec<String>>,
}

/// The body of an approval; nothing at all approves everywhere.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = ApproveHeldBody))]
#[serde(deny_unknown_fields)]
pub(super) struct ApproveAsk {
    #[serde(default)]
    nodes: Option<Vec<String>>,
}

/// `POST commands`: 202 once it is committed, with the state at every node.
pub(super) async fn create(
    Shared(api): Shared<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    content_type(&headers, &["application/json"])?;
    Ok(accepted(make(&api, &caller, &headers, body).await?))
}

/// Makes a command of the JSON that `POST commands` takes; gives the JSON that it answers.
pub(crate) async fn make(
    api: &Arc<Api>,
    caller: &Caller,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Bytes, Refusal> {
    let claim = match api.keys.turn(headers, caller, &[b"commands", &body])? {
        Turn::Again(answer) => return Ok(answer),
        Turn::First(claim) => claim,
    };
    let ask: Ask = serde_json::from_slice(&body)
        .map_err(|error| Refusal::BadRequest(format!("the body is not a command: {error}")))?;
    let nodes = chosen(api, ask.nodes.as_deref(), ask.selector.as_deref(), ask.all)?;
    let wanted = wanted(ask, nodes, caller, api.hub.clock().now().wall_ms)?;
    let id = wanted.id;
    api.hub.intend(&caller.by(), Intent::Command(Box::new(wanted))).await?;
    let answer = brief(api, id, ExecutionFilter { limit: ANSWERED, ..ExecutionFilter::default() }).await?;
    claim.done(&answer);
    Ok(answer)
}

fn accepted(answer: Bytes) -> Response {
    (StatusCode::ACCEPTED, [(header::CONTENT_TYPE, "application/json")], answer).into_response()
}

/// The nodes that something is for, each once: by name, by selector, or all.
pub(super) fn chosen(
    api: &Api,
    nodes: Option<&[String]>,
    selector: Option<&str>,
    all: bool,
) -> Result<Vec<NodeId>, Refusal> {
    let ways = usize::from(nodes.is_some()) + usize::from(selector.is_some()) + usize::from(all);
    if ways != 1 {
        return Err(Refusal::at("/nodes", "give exactly one of nodes, selector and all"));
    }
    if let Some(nodes) = nodes {
        return named(api, nodes);
    }
    let selector = match selector {
        // Selecting everything takes a word of its own: an empty variable in a script must not.
        Some(text) if text.trim().is_empty() => {
            return Err(Refusal::at("/selector", "is empty; `\"all\": true` selects every node"));
        }
        Some(text) => Selector::parse(text).map_err(|error| Refusal::at("/selector", error.to_string()))?,
        None => Selector::default(),
    };
    let nodes: Vec<NodeId> = api.hub.with_fleet(|fleet| {
        let matching = fleet.nodes.iter().filter(|(_, node)| selector.matches(&***node));
        matching.map(|(id, _)| id.clone()).collect()
    });
    if nodes.is_empty() {
        return Err(Refusal::at(
            "/selector",
            "matches no node; `fleet node ls -l SELECTOR` shows what one matches",
        ));
    }
    Ok(nodes)
}

/// Nodes by name; every name that is wrong is told.
fn named(api: &Api, names: &[String]) -> Result<Vec<NodeId>, Refusal> {
    let mut nodes = BTreeSet::new();
    let mut faults = Vec::new();
    api.hub.with_fleet(|fleet| {
        for (index, name) in names.iter().enumerate() {
            match NodeId::parse(name) {
                Ok(id) if fleet.nodes.contains_key(&id) => drop(nodes.insert(id)),
                Ok(_) | Err(_) => faults.push((
                    format!("/nodes/{index}"),
                    format!("there is no node {name:?}; `fleet node ls` lists them"),
                )),
            }
        }
    });
    match (faults.is_empty(), nodes.is_empty()) {
        (true, false) => Ok(nodes.into_iter().collect()),
        (true, true) => Err(Refusal::at("/nodes", "is empty")),
        (false, _) => Err(Refusal::Invalid { detail: "nothing was sent".to_owned(), faults }),
    }
}

fn wanted(ask: Ask, nodes: Vec<NodeId>, caller: &Caller, now_ms: i64) -> Result<Wanted, Refusal> {
    let word = |pointer: &str, text: &str| {
        MetricName::parse(text)
            .map_err(|error| Refusal::at(pointer, error.to_string().replace("metric name", "text")))
    };
    let seconds = |pointer: &str, seconds: Option<f64>, usual: Duration| match seconds {
        None => Ok(usual),
        Some(seconds) => Duration::try_from_secs_f64(seconds)
            .map_err(|_| Refusal::at(pointer, "is no number of seconds above 0")),
    };
    Ok(Wanted {
        id: new_id(now_ms),
        by: caller.by(),
        nodes,
        kind: word("/kind", &ask.kind)?,
        params: cbor(&ask.params)?,
        queue: word("/queue", ask.queue.as_deref().unwrap_or(DEFAULT_QUEUE))?,
        priority: ask.priority,
        idempotent: ask.idempotent,
        supersedes: ask.supersedes.as_deref().map(|key| word("/supersedes", key)).transpose()?,
        ttl: seconds("/ttl_s", ask.ttl_s, TTL)?,
        timeout: seconds("/timeout_s", ask.timeout_s, TIMEOUT)?,
        not_before_ms: ask.not_before_ms,
        rate: ask.rate,
        selector: ask.selector,
    })
}

fn cbor(value: &Value) -> Result<Cbor, Refusal> {
    Cbor::serialized(value).map_err(|error| Refusal::at("/params", error.to_string()))
}

/// A UUIDv7 (RFC 9562 §5.7).
fn new_id(now_ms: i64) -> CommandId {
    let mut bytes: [u8; 16] = clock::random();
    bytes[..6].copy_from_slice(&u64::try_from(now_ms).unwrap_or(0).to_be_bytes()[2..]);
    bytes[6] = 0x70 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    CommandId(bytes)
}

/// `{id, executions:[{node, state}], next?}`.
async fn brief(api: &Arc<Api>, id: CommandId, filter: ExecutionFilter) -> Result<Bytes, Refusal> {
    let page = api.query(move |api| Ok(api.hub.state().executions(id, &filter)?)).await?;
    let executions = api.hub.with_fleet(|fleet| {
        let named = page.items.iter().filter_map(|(number, execution)| {
            let node = fleet.ids.get(number)?.to_string();
            let state = execution.state().as_str().to_owned();
            let cancel_asked = execution.cancel_ms.is_some();
            Some(shapes::BriefExecution { node, state, cancel_asked, held: execution.is_held() })
        });
        named.collect()
    });
    let next = page.next.map(|number| number.to_string());
    let brief = shapes::BriefCommand { id: id.to_string(), executions, next };
    serde_json::to_vec(&brief).map(Bytes::from).map_err(|error| Refusal::Internal(error.to_string()))
}

/// The id in a path.
pub(crate) fn command_id(text: &str) -> Result<CommandId, Refusal> {
    text.parse().map_err(|_| no_command(text))
}

/// No such command.
pub(super) fn no_command(text: &str) -> Refusal {
    Refusal::NotFound(format!("there is no command {text:?}; `fleet command ls` lists them"))
}

/// The state that a query names.
pub(super) fn state(params: &Params) -> Result<Option<State>, Refusal> {
    let Some(text) = params.text("state") else { return Ok(None) };
    let known = State::ALL.into_iter().find(|state| state.as_str() == text);
    let words = || State::ALL.map(State::as_str).join(", ");
    known.map(Some).ok_or_else(|| Refusal::query("state", format!("{text:?} is none of {}", words())))
}

/// `GET commands?node=&state=&kind=&limit=&cursor=`: newest first.
pub(super) async fn list(Shared(api): Shared<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["node", "state", "kind", "limit", "cursor"])?;
    let node = params.text("node").map(|id| nodes::number(&api, &node_id(id)?)).transpose()?;
    let filter = CommandFilter {
        node,
        state: state(&params)?,
        kind: params.text("kind").map(str::to_owned),
        before: params.read("cursor")?,
        limit: params.limit()?,
    };
    Ok(Json(read(&api, filter).await?).into_response())
}

/// A page of commands, newest first.
pub(crate) async fn read(
    api: &Arc<Api>,
    filter: CommandFilter,
) -> Result<shapes::Page<shapes::Command>, Refusal> {
    api.query(move |api| {
        let page = api.hub.state().commands(&filter)?;
        let held = |id: &CommandId| api.hub.with_fleet(|fleet| fleet.commands.held_of(id));
        let shown = |(command, counts): &(Command, Counts)| {
            Ok::<_, Refusal>(shapes::Command {
                tz: show::zone(api, command, counts)?,
                held_count: u32::try_from(held(&command.id)).unwrap_or(u32::MAX),
                ..show::command(command, counts)
            })
        };
        let items = page.items.iter().map(shown).collect::<Result<_, _>>()?;
        Ok(shapes::Page { items, next: page.next.map(|id| id.to_string()) })
    })
    .await
}

/// `GET nodes/{id}/commands?state=&kind=&limit=&cursor=`: what this node was asked, newest first.
pub(super) async fn of_node(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&["state", "kind", "limit", "cursor"])?;
    let id = node_id(&id)?;
    let filter = CommandFilter {
        node: Some(nodes::number(&api, &id)?),
        state: state(&params)?,
        kind: params.text("kind").map(str::to_owned),
        before: params.read("cursor")?,
        limit: params.limit()?,
    };
    Ok(Json(read_of(&api, id, filter).await?).into_response())
}

/// What a node was asked, newest first, with what became of it there; `filter` names the node, too.
pub(crate) async fn read_of(
    api: &Arc<Api>,
    id: NodeId,
    filter: CommandFilter,
) -> Result<shapes::Page<shapes::Command>, Refusal> {
    let number = nodes::number(api, &id)?;
    api.query(move |api| {
        let store = api.hub.state();
        let tz = api.hub.with_fleet(|fleet| zones::at(fleet, &id));
        let page = store.commands(&filter)?;
        let mut items = Vec::with_capacity(page.items.len());
        for (command, counts) in &page.items {
            let Some(execution) = store.execution(command.id, number)? else { continue };
            let mut shown = show::command(command, counts);
            shown.tz = tz.clone().filter(|_| shown.nodes_count == 1);
            shown.executions = vec![show::execution(&id, tz.clone(), command, &execution)];
            items.push(shown);
        }
        Ok(shapes::Page { items, next: page.next.map(|id| id.to_string()) })
    })
    .await
}

/// `GET commands/{id}?node=&state=&limit=&cursor=`: with its parameters, and its executions with their history, output
/// and result, by node; a page ends early when their output is large.
pub(super) async fn get(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&["node", "state", "limit", "cursor"])?;
    let id = command_id(&id)?;
    let filter = ExecutionFilter {
        after: params.read("cursor")?,
        node: params.text("node").map(|id| nodes::number(&api, &node_id(id)?)).transpose()?,
        state: state(&params)?,
        limit: params.limit()?,
    };
    Ok(Json(whole(&api, id, filter).await?).into_response())
}

/// A command with a page of its executions.
pub(crate) async fn whole(
    api: &Arc<Api>,
    id: CommandId,
    filter: ExecutionFilter,
) -> Result<shapes::Command, Refusal> {
    let shown = api.query(move |api| show::whole(api, id, &filter)).await?;
    shown.ok_or_else(|| no_command(&id.to_string()))
}

/// `POST commands/{id}/cancel` with `{nodes?}`: at once what waits at the hub; the nodes are asked for the rest.
pub(super) async fn cancel(
    Shared(api): Shared<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let id = command_id(&id)?;
    if !body.is_empty() {
        content_type(&headers, &["application/json"])?;
    }
    Ok(accepted(unmake(&api, &caller, &headers, id, body).await?))
}

/// `POST commands/{id}/approve-held` with `{nodes?}`: what is held since the hub was restored goes on.
pub(super) async fn approve(
    Shared(api): Shared<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let id = command_id(&id)?;
    let ask: ApproveAsk = match body.is_empty() {
        true => ApproveAsk::default(),
        false => super::query::json(&headers, &body)?,
    };
    let nodes = ask.nodes.map(|names| named(&api, &names)).transpose()?;
    let known = api.query(move |api| Ok(api.hub.state().command(id)?)).await?;
    if known.is_none() {
        return Err(no_command(&id.to_string()));
    }
    if api.hub.with_fleet(|fleet| fleet.commands.held_of(&id)) == 0 {
        let why = "it is held nowhere: `fleet why` says what it waits for";
        return Err(Refusal::Conflict(why.to_owned()));
    }
    api.hub.intend(&caller.by(), Intent::ApproveCommand { id, nodes }).await?;
    let filter = ExecutionFilter { limit: ANSWERED, ..ExecutionFilter::default() };
    Ok(accepted(brief(&api, id, filter).await?))
}

/// Cancels a command by the JSON that `POST commands/{id}/cancel` takes; gives the JSON that it answers.
pub(crate) async fn unmake(
    api: &Arc<Api>,
    caller: &Caller,
    headers: &HeaderMap,
    id: CommandId,
    body: Bytes,
) -> Result<Bytes, Refusal> {
    let ask = if body.is_empty() {
        CancelAsk::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| Refusal::BadRequest(format!("the body is not {{\"nodes\": […]}}: {error}")))?
    };
    let claim = match api.keys.turn(headers, caller, &[b"cancel", &id.0, &body])? {
        Turn::Again(answer) => return Ok(answer),
        Turn::First(claim) => claim,
    };
    let nodes = ask.nodes.map(|names| named(api, &names)).transpose()?;
    let known = api.query(move |api| Ok(api.hub.state().command(id)?)).await?;
    if known.is_none() {
        return Err(no_command(&id.to_string()));
    }
    api.hub.intend(&caller.by(), Intent::CancelCommand { id, nodes }).await?;
    let answer = brief(api, id, ExecutionFilter { limit: ANSWERED, ..ExecutionFilter::default() }).await?;
    claim.done(&answer);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ids_are_uuids_of_version_7_in_the_order_of_time() {
        let (first, second) = (new_id(1_790_000_000_000), new_id(1_790_000_000_001));
        assert!(first < second);
        let text = first.to_string();
        assert_eq!(&text[..14], "01a0c450-6c00-");
        assert_eq!((&text[14..15], "89ab".contains(&text[19..20])), ("7", true), "{text}");
    }
}
