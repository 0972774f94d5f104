//! Commands over the edge API: programs on the node ask for them, look at the queue, and do those of kind `local`.
//!
//! Parses, asks the outbox, and puts answers into JSON. What may be run is decided by the allow-list, as for the hub.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Path, Request, State},
    http::StatusCode,
    response::IntoResponse as _,
};
use ciborium::Value as Cbor;
use fleet_schemas::{
    CommandId, MetricName, cbor,
    command::{DEFAULT_QUEUE, Reason},
    limits,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::select;

use super::{
    body::{DATA_DEPTH, depth},
    http::{Answer, Api, json, name_in, read},
    parse::parse,
    problem::Problem,
};
use crate::{
    clock,
    core::queue::{Ask, Command, Held, LIFE, LocalReport, Origin, Over, Stage, Take},
    outbox::Found,
};

/// How long a command may wait to begin, unless told otherwise.
const TTL: Duration = Duration::from_secs(3_600);
/// How long it may run, unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long an app may wait for a command in one request.
const WAIT: Duration = Duration::from_secs(60);
/// How long an app has a command, unless told otherwise.
const LEASE: Duration = Duration::from_secs(60);
/// Longest that an app may have a command without saying anything.
const LEASE_MOST: Duration = Duration::from_secs(3_600);
/// How long a client waits before it tries again what a full queue refused, in seconds.
const AGAIN_SECONDS: u16 = 5;

type Shared = State<Arc<Api>>;

/// `POST /api/v1/command`, also in the words of older agents (`type`, `payload`).
#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    #[serde(alias = "type", alias = "command_type")]
    kind: MetricName,
    #[serde(default, alias = "payload")]
    params: Value,
    queue: Option<MetricName>,
    #[serde(default)]
    priority: Priority,
    ttl_s: Option<f64>,
    #[serde(alias = "timeout_seconds")]
    timeout_s: Option<f64>,
    #[serde(default)]
    idempotent: bool,
}

/// A number, or one of the words of older agents.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Priority {
    Number(i8),
    Word(PriorityWord),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PriorityWord {
    Low,
    Normal,
    High,
    Urgent,
}

impl Default for Priority {
    fn default() -> Self {
        Self::Number(0)
    }
}

/// `202` of that post.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub(super) struct Enqueued {
    id: CommandId,
    status: &'static str,
    command: MetricName,
}

/// `GET /api/v1/queue`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(bound(deserialize = "'de: 'static")))]
pub(super) struct QueueView {
    pub(super) running: Vec<CommandView>,
    pub(super) waiting: Vec<CommandView>,
    pub(super) limit: usize,
}

/// One command, held or over.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub(super) struct CommandView {
    pub(super) id: CommandId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<MetricName>,
    pub(super) origin: Origin,
    pub(super) state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) queue: Option<MetricName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) priority: Option<i8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) params: Option<Value>,
    /// When it ended, by the agent's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) at_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<Value>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) output: String,
}

/// `POST /api/v1/local/take`.
#[derive(Debug, Deserialize)]
pub(super) struct TakeBody {
    #[serde(default)]
    kinds: Vec<String>,
    #[serde(default)]
    wait_s: f64,
    lease_s: Option<f64>,
}

/// What an app gets.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub(super) struct Taken {
    id: CommandId,
    kind: MetricName,
    queue: MetricName,
    params: Value,
    idempotent: bool,
    timeout_s: f64,
    lease_s: f64,
}

/// `POST /api/v1/local/{id}/extend`.
#[derive(Debug, Deserialize)]
pub(super) struct ExtendBody {
    lease_s: Option<f64>,
}

/// `POST /api/v1/local/{id}/report`.
#[derive(Debug, Deserialize)]
pub(super) struct ReportBody {
    state: Outcome,
    exit_code: Option<i32>,
    message: Option<String>,
    result: Option<Value>,
    #[serde(default)]
    output: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Succeeded,
    Failed,
}

/// A command as it is asked for, in whatever form.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) kind: MetricName,
    pub(super) params: Value,
    pub(super) queue: Option<MetricName>,
    pub(super) priority: i8,
    pub(super) ttl_s: Option<f64>,
    pub(super) timeout_s: Option<f64>,
    pub(super) idempotent: bool,
    /// Makes a repeated request one command.
    pub(super) name: Option<String>,
}

pub(super) async fn enqueue(State(api): Shared, request: Request) -> Answer {
    let name = name_in(request.headers())?;
    let Wanted { kind, params, queue, priority, ttl_s, timeout_s, idempotent } =
        parse(&read(&api, request).await?)?;
    let priority = match priority {
        Priority::Number(number) => number,
        Priority::Word(PriorityWord::Low) => -1,
        Priority::Word(PriorityWord::Normal) => 0,
        Priority::Word(PriorityWord::High) => 1,
        Priority::Word(PriorityWord::Urgent) => 2,
    };
    let command = kind.clone();
    let asked = Asked { kind, params, queue, priority, ttl_s, timeout_s, idempotent, name };
    let id = ask(&api, asked).await?;
    let mut response = json(&Enqueued { id, status: "accepted", command })?;
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

/// Asks for a command; it is on disk when its id comes back.
pub(super) async fn ask(api: &Api, asked: Asked) -> Result<CommandId, Problem> {
    let Asked { kind, params, queue, priority, ttl_s, timeout_s, idempotent, name } = asked;
    let id = match name {
        Some(name) => uuid8(&name),
        None => uuid7(api.clock.now().wall_ms, clock::random()),
    };
    let main = || MetricName::parse(DEFAULT_QUEUE).expect("our queue's name is valid");
    let params = cbor_of("/params", &params)?;
    if cbor::encode(&params).len() > limits::COMMAND_PARAMS_BYTES {
        return Err(Problem::field("/params", "the parameters are larger than 65536 bytes"));
    }
    let ask = Ask {
        id,
        queue: queue.unwrap_or_else(main),
        priority,
        kind,
        params,
        ttl: span("/ttl_s", ttl_s, TTL, LIFE)?,
        timeout: span("/timeout_s", timeout_s, TIMEOUT, LIFE)?,
        idempotent,
    };
    api.outbox.enqueue(ask).await?.map_err(refused)?;
    Ok(id)
}

pub(super) async fn queue(State(api): Shared) -> Answer {
    json(&list(&api).await?)
}

pub(super) async fn one(State(api): Shared, Path(id): Path<String>) -> Answer {
    json(&find(&api, parse_id(&id)?).await?)
}

/// How one command stands.
pub(super) async fn find(api: &Api, id: CommandId) -> Result<CommandView, Problem> {
    match api.outbox.command(id).await? {
        Some(Found::Held(held)) => Ok(CommandView::from(*held)),
        Some(Found::Over(over)) => Ok(CommandView::from(*over)),
        None => Err(Problem::new(StatusCode::NOT_FOUND, format!("this node knows no command {id}"))),
    }
}

/// What runs and what waits.
pub(super) async fn list(api: &Api) -> Result<QueueView, Problem> {
    let held = api.outbox.commands().await?;
    let (running, waiting): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|held| matches!(held.stage, Stage::Running(_)));
    let views = |held: Vec<Held>| held.into_iter().map(CommandView::from).collect();
    Ok(QueueView { running: views(running), waiting: views(waiting), limit: limits::QUEUE_LENGTH })
}

pub(super) async fn take(State(api): Shared, request: Request) -> Answer {
    let TakeBody { kinds, wait_s, lease_s } = parse(&read(&api, request).await?)?;
    let wait = span_or_none("/wait_s", wait_s, WAIT)?;
    let lease = lease(lease_s)?;
    let mut stop = api.stop.clone();
    let taken = select! {
        taken = api.outbox.take(Take { kinds, lease }, wait) => taken?,
        () = stop.wanted() => None,
    };
    let Some(command) = taken else { return Ok(StatusCode::NO_CONTENT.into_response()) };
    let Command { id, kind, queue, params, idempotent, timeout_ms, .. } = command;
    let timeout_s = Duration::from_millis(timeout_ms).as_secs_f64();
    let lease_s = lease.as_secs_f64();
    json(&Taken { id, kind, queue, params: json_of(&params), idempotent, timeout_s, lease_s })
}

pub(super) async fn extend(State(api): Shared, Path(id): Path<String>, request: Request) -> Answer {
    let id = parse_id(&id)?;
    let ExtendBody { lease_s } = parse(&read(&api, request).await?)?;
    done(id, api.outbox.extend(id, lease(lease_s)?).await?)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn report(State(api): Shared, Path(id): Path<String>, request: Request) -> Answer {
    let id = parse_id(&id)?;
    let ReportBody { state, exit_code, message, result, output } = parse(&read(&api, request).await?)?;
    let succeeded = state == Outcome::Succeeded;
    let result = result_of(result)?;
    let said = LocalReport { succeeded, exit_code, message, result, output: output.into_bytes() };
    done(id, api.outbox.report(id, said).await?)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// What an app says came out of a command.
pub(super) fn result_of(result: Option<Value>) -> Result<Option<Cbor>, Problem> {
    let result = result.map(|result| cbor_of("/result", &result)).transpose()?;
    if result.as_ref().is_some_and(|result| cbor::encode(result).len() > limits::EVENT_DATA_BYTES) {
        return Err(Problem::field("/result", "the result is larger than 32768 bytes"));
    }
    Ok(result)
}

/// How long an app has a command.
pub(super) fn lease(lease_s: Option<f64>) -> Result<Duration, Problem> {
    span("/lease_s", lease_s, LEASE, LEASE_MOST)
}

pub(super) fn done(id: CommandId, held: bool) -> Result<(), Problem> {
    if held {
        return Ok(());
    }
    let detail =
        format!("command {id} is not yours (any more): it was canceled, took too long, or its lease ran out");
    Err(Problem::new(StatusCode::CONFLICT, detail))
}

pub(super) fn parse_id(text: &str) -> Result<CommandId, Problem> {
    text.parse().map_err(|error| Problem::new(StatusCode::NOT_FOUND, format!("{text:?}: {error}")))
}

fn span(field: &str, seconds: Option<f64>, or: Duration, most: Duration) -> Result<Duration, Problem> {
    match seconds.map(|seconds| span_or_none(field, seconds, most)).transpose()? {
        Some(span) if span.is_zero() => Err(Problem::field(field, "give more than 0 seconds")),
        span => Ok(span.unwrap_or(or)),
    }
}

fn span_or_none(field: &str, seconds: f64, most: Duration) -> Result<Duration, Problem> {
    let span = Duration::try_from_secs_f64(seconds).ok().filter(|span| *span <= most);
    span.ok_or_else(|| Problem::field(field, format!("give 0 to {} seconds", most.as_secs())))
}

fn refused(reason: Reason) -> Problem {
    let status = match reason.code.as_str() {
        "queue_full" => StatusCode::TOO_MANY_REQUESTS,
        "reused" => StatusCode::CONFLICT,
        "not_allowed" | "bad_allow_list" | "not_restartable" => StatusCode::FORBIDDEN,
        "no_commands" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    };
    let problem = Problem::new(status, reason.message);
    if status == StatusCode::TOO_MANY_REQUESTS { problem.retry_after(AGAIN_SECONDS) } else { problem }
}

fn cbor_of(field: &str, value: &Value) -> Result<Cbor, Problem> {
    if depth(value) > DATA_DEPTH {
        return Err(Problem::field(field, format!("it is nested deeper than {DATA_DEPTH}; flatten it")));
    }
    // Parameters that are not there, rather than a null of their own.
    if value.is_null() {
        return Ok(Cbor::Null);
    }
    Cbor::serialized(value).map_err(|error| Problem::field(field, error.to_string()))
}

pub(super) fn json_of(value: &Cbor) -> Value {
    value.deserialized().unwrap_or(Value::Null)
}

impl From<Held> for CommandView {
    fn from(held: Held) -> Self {
        let state = held.state().as_str();
        let Command { id, kind, queue, priority, params, origin, .. } = held.command;
        Self {
            id,
            kind: Some(kind),
            origin,
            state,
            queue: Some(queue),
            priority: Some(priority),
            params: Some(json_of(&params)),
            at_ms: None,
            reason: None,
            exit_code: None,
            result: None,
            output: String::new(),
        }
    }
}

impl From<Over> for CommandView {
    fn from(over: Over) -> Self {
        let Over { id, kind, state, time_ms, reason, exit_code, result, output, origin, .. } = over;
        Self {
            id,
            kind,
            origin,
            state: state.as_str(),
            queue: None,
            priority: None,
            params: None,
            at_ms: Some(time_ms),
            reason,
            exit_code,
            result: result.as_ref().map(json_of),
            output: String::from_utf8_lossy(&output).into_owned(),
        }
    }
}

/// A UUIDv8 (RFC 9562 §5.8) made of the name that a client gave.
fn uuid8(name: &str) -> CommandId {
    let digest = Sha256::new().chain_update("command\0").chain_update(name).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    CommandId(bytes)
}

/// A UUIDv7 (RFC 9562 §5.7).
fn uuid7(wall_ms: i64, random: [u8; 10]) -> CommandId {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&wall_ms.max(0).to_be_bytes()[2..]);
    bytes[6..].copy_from_slice(&random);
    bytes[6] = bytes[6] & 0x0f | 0x70;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    CommandId(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_of_version_seven_and_sort_by_time() {
        let id = uuid7(0x0194_a3f0_5b6c, [0xff; 10]);
        assert_eq!(id.to_string(), "0194a3f0-5b6c-7fff-bfff-ffffffffffff");
        assert!(uuid7(1_790_000_000_000, [0xff; 10]) < uuid7(1_790_000_000_001, [0; 10]));
        assert_eq!(uuid7(-5, [0; 10]).to_string(), "00000000-0000-7000-8000-000000000000");
    }

    #[test]
    fn older_words_are_understood() {
        let wanted: Wanted =
            parse(br#"{"type":"exec","payload":{"name":"df"},"priority":"urgent","timeout_seconds":5}"#)
                .unwrap();
        assert_eq!((wanted.kind.as_str(), wanted.timeout_s), ("exec", Some(5.0)));
        assert!(matches!(wanted.priority, Priority::Word(PriorityWord::Urgent)));
        assert!(
            parse::<Wanted>(b"{}").is_err() && parse::<Wanted>(br#"{"kind":"a","priority":1000}"#).is_err()
        );
    }
}
