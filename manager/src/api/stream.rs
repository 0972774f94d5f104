//! `stream`: what was committed, as server-sent events.
//!
//! `node` (presence, summary or figures changed), `event`, `samples` (every sample), `latest` (newest values, at most
//! once a second and node), `execution` (a command was made, or its state, output or cancel at a node changed),
//! `alert` (one changed; `dropped` is one that was pending and is over) and `rollout` (progress of one). A
//! reader who falls behind the feed is told by a last message `cut` and reads again; one who does not read at all loses
//! the stream. So does one whose token is taken away.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::State,
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use fleet_schemas::{CommandId, NodeId, telemetry::Samples};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{broadcast::error::RecvError, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Api, commands, enrolment, events,
    problem::Refusal,
    query::{Params, node_id},
    rights::Caller,
    rollouts, view,
};
use crate::{
    alerts,
    consume::FeedItem,
    core::{config, zones},
};

/// Streams at once: each has a task and a place in the feed.
pub(super) const STREAMS: usize = 128;
/// Messages between the feed and the socket; more waits in the feed, which all streams share. A message may be a
/// megabyte: a batch of 10,000 samples.
const WAITING: usize = 1;
/// How often an idle stream shows that it lives.
const ALIVE: Duration = Duration::from_secs(15);
/// A reader who takes nothing for so long gives its place to another.
const STALLED: Duration = Duration::from_secs(10);
/// How often newest values are told.
const LATEST: Duration = Duration::from_secs(1);
const KINDS: [&str; 8] = ["node", "event", "samples", "latest", "execution", "config", "alert", "rollout"];

/// Newest values of one node.
#[derive(Debug, Default, Serialize)]
struct Latest {
    time_ms: i64,
    values: BTreeMap<String, f64>,
    devices: BTreeMap<String, BTreeMap<String, f64>>,
}

/// What a stream wants.
#[derive(Debug)]
struct Filter {
    node: Option<NodeId>,
    command: Option<CommandId>,
    kinds: BTreeSet<String>,
}

/// `GET stream?node=&kind=&command=`: `kind` is a list of `node,event,samples,latest,execution,config,alert,rollout`; without it
/// `node,event,latest`. `command` leaves the executions of one command.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&["node", "kind", "command"])?;
    let command: Option<CommandId> = params.read("command")?;
    let node = params.text("node").map(node_id).transpose()?;
    let kinds: BTreeSet<String> =
        params.text("kind").unwrap_or("node,event,latest").split(',').map(str::to_owned).collect();
    if let Some(unknown) = kinds.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
        return Err(Refusal::query("kind", format!("{unknown:?} is none of {}", KINDS.join(", "))));
    }
    if api.streams.available_permits() == 0 {
        return Err(Refusal::Unavailable(format!("{STREAMS} streams are open already; close one")));
    }
    // Before the answer: what is committed after it will be told.
    let feed = api.hub.feed();
    let (messages, ready) = mpsc::channel(WAITING);
    tokio::spawn(follow(api, caller, Filter { node, command, kinds }, feed, messages));
    let alive = KeepAlive::new().interval(ALIVE).text("alive");
    Ok(Sse::new(ReceiverStream::new(ready)).keep_alive(alive).into_response())
}

type Message = Result<Event, Infallible>;

async fn follow(
    api: Arc<Api>,
    caller: Caller,
    filter: Filter,
    mut feed: tokio::sync::broadcast::Receiver<Arc<FeedItem>>,
    messages: mpsc::Sender<Message>,
) {
    let Ok(_place) = api.streams.acquire().await else { return };
    let mut stopping = api.stopping.clone();
    let mut latest: BTreeMap<NodeId, Latest> = BTreeMap::new();
    let mut tick = tokio::time::interval(LATEST);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A comment at once, so that the reader knows the stream is open.
    let mut out = vec![Event::default().comment("open")];
    loop {
        for message in out.drain(..) {
            let sent = tokio::select! {
                sent = tokio::time::timeout(STALLED, messages.send(Ok(message))) => match sent {
                    Ok(sent) => sent.is_ok(),
                    Err(_) => {
                        api.streams_cut.increment(1);
                        false
                    }
                },
                () = stop(&mut stopping) => false,
            };
            if !sent {
                return;
            }
        }
        tokio::select! {
            item = feed.recv() => match item {
                Ok(item) => match told(&api, &filter, &item, &mut latest).await {
                    Ok(message) => out.extend(message),
                    Err(refusal) => {
                        tracing::warn!(%refusal, "a stream could not show an item");
                        return;
                    }
                },
                Err(RecvError::Lagged(missed)) => {
                    api.streams_cut.increment(1);
                    let why = json!({ "missed": missed, "detail": "the reader is too slow; read the lists again" });
                    return cut(&messages, &why).await;
                }
                Err(RecvError::Closed) => return,
            },
            _ = tick.tick() => {
                if !api.still(&caller) {
                    let why = json!({ "missed": 0, "detail": "the API token was removed or has expired" });
                    return cut(&messages, &why).await;
                }
                let told = std::mem::take(&mut latest).into_iter();
                out.extend(told.map(|(node, latest)| {
                    let mut value = json!(latest);
                    value["node"] = json!(node);
                    message("latest", &value)
                }));
            }
            () = messages.closed() => return,
            () = stop(&mut stopping) => return,
        }
    }
}

/// Says why the stream ends. Nobody waits for a reader that does not read.
async fn cut(messages: &mpsc::Sender<Message>, why: &Value) {
    let _ = tokio::time::timeout(LATEST, messages.send(Ok(message("cut", why)))).await;
}

/// Until the API stops.
async fn stop(stopping: &mut watch::Receiver<bool>) {
    while !*stopping.borrow_and_update() {
        if stopping.changed().await.is_err() {
            return;
        }
    }
}

fn message(kind: &str, value: &Value) -> Event {
    Event::default().event(kind).data(value.to_string())
}

/// The message that an item makes, if it is wanted; newest values are only remembered.
async fn told(
    api: &Arc<Api>,
    filter: &Filter,
    item: &Arc<FeedItem>,
    latest: &mut BTreeMap<NodeId, Latest>,
) -> Result<Option<Event>, Refusal> {
    let wanted = |node: &NodeId| filter.node.as_ref().is_none_or(|only| only == node);
    let kind = |kind: &str| filter.kinds.contains(kind);
    match &**item {
        FeedItem::Node(node) if wanted(node) && kind("node") => {
            let known = api.hub.with_fleet(|fleet| {
                let known = fleet.nodes.get(node)?;
                Some((known.clone(), zones::of_node(fleet, known)))
            });
            let Some((found, tz)) = known else {
                return Ok(Some(message("node", &json!({ "id": node, "removed": true }))));
            };
            let id = [(node.clone(), found.number)];
            let counts = api.query(move |api| api.devices.counts(&api.hub, &id)).await?;
            let stands = api.hub.with_identities(|all| enrolment::shown(all.enrolments.get(node)));
            let shown = view::node(&found, tz, counts.first().copied().unwrap_or(0), stands);
            Ok(Some(message("node", &json!(shown))))
        }
        FeedItem::Event(event) if wanted(&event.node) && kind("event") => {
            Ok(Some(message("event", &json!(events::event(event)))))
        }
        FeedItem::Samples { node, late, shift_ms, samples } if wanted(node) => {
            if kind("latest") && !late {
                newest(samples, *shift_ms, latest.entry(node.clone()).or_default());
            }
            let all = || json!({ "node": node, "samples": all_samples(samples, *shift_ms, *late) });
            Ok(kind("samples").then(|| message("samples", &all())))
        }
        FeedItem::Execution(change) => {
            let node =
                change.node.and_then(|number| api.hub.with_fleet(|fleet| fleet.ids.get(&number).cloned()));
            let asked = filter.command.is_none_or(|only| only == change.command)
                && filter.node.as_ref().is_none_or(|only| node.as_ref() == Some(only));
            let shown = || message("execution", &commands::change(change, node.as_ref().map(NodeId::as_str)));
            Ok((asked && kind("execution")).then(shown))
        }
        FeedItem::Config(change) => {
            // Which nodes follow is told by their own items.
            let asked = filter.node.is_none() && filter.command.is_none();
            Ok((asked && kind("config")).then(|| message("config", &config_shown(change))))
        }
        FeedItem::Alert(change) => {
            let shown = match &change.alert {
                Some(alert) if wanted(&alert.node) => json!(alerts::shown(alert)),
                Some(_) => return Ok(None),
                // It was pending, and is over before anybody was told.
                None => json!({ "id": change.number.to_string(), "state": "dropped" }),
            };
            Ok(kind("alert").then(|| message("alert", &shown)))
        }
        FeedItem::Rollout(id) => {
            let asked = filter.node.is_none() && filter.command.is_none() && kind("rollout");
            // One that was forgotten meanwhile has nothing to tell.
            let shown =
                || api.hub.with_fleet(|fleet| Some(json!(rollouts::brief(fleet.rollouts.get(id.as_str())?))));
            Ok(asked.then(shown).flatten().map(|shown| message("rollout", &shown)))
        }
        FeedItem::Node(_) | FeedItem::Event(_) | FeedItem::Samples { .. } => Ok(None),
    }
}

fn config_shown(change: &config::Change) -> Value {
    let layer = change.layer.as_ref().map_or_else(|| "schema".to_owned(), ToString::to_string);
    json!({
        "layer": layer, "revision": change.revision, "by": change.by, "at_ms": change.at_ms,
        "nodes_count": change.nodes_count,
    })
}

fn all_samples(samples: &Samples, shift_ms: i64, late: bool) -> Vec<Value> {
    let times = samples.times();
    let mut all = Vec::new();
    for series in &samples.series {
        for (time, value) in times.iter().zip(samples.values(series)).filter(|(_, value)| !value.is_nan()) {
            all.push(json!({
                "time_ms": time.saturating_add(shift_ms), "device": series.d, "metric": series.m,
                "value": value, "unit": series.u, "late": late,
            }));
        }
    }
    all
}

fn newest(samples: &Samples, shift_ms: i64, latest: &mut Latest) {
    let times = samples.times();
    for series in &samples.series {
        let values = samples.values(series);
        let last =
            times.iter().zip(values).filter(|(_, value)| !value.is_nan()).max_by_key(|(time, _)| **time);
        let Some((time, value)) = last else { continue };
        latest.time_ms = latest.time_ms.max(time.saturating_add(shift_ms));
        let values = match series.d.as_str() {
            "" => &mut latest.values,
            device => latest.devices.entry(device.to_owned()).or_default(),
        };
        values.insert(series.m.to_string(), value);
    }
}
