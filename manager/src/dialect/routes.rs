//! The paths: reads a request, lets the node's stand-in say it, and answers in the dialect.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use fleet_schemas::{
    DeviceId, MetricName, NodeId,
    event::{Event, Severity},
    telemetry::Sample,
};
use serde_json::{Value, json};
use tokio::time;

use super::{
    commands,
    family::{About, Answer, Family},
    genes,
    read::Fault,
    refusal::Refusal,
    room::{Asks, Known, Room},
    said::{self, Beat, Told},
    seal,
};
use crate::{
    core::{Now, fleet::Node},
    node_port::Peer,
    store::state::{GENES, GeneRow, Kept},
};

/// Largest body, in bytes.
const BODY_BYTES: usize = 256 * 1024;
/// Deepest JSON that is looked at.
const DEPTH: usize = 64;
/// Nodes of a page unless asked otherwise, and at most.
const PAGE: usize = 100;
const PAGE_MOST: usize = 1_000;
/// How often it is looked whether commands ran out of time.
const LOOK: std::time::Duration = std::time::Duration::from_secs(5);

/// What every request has.
struct Ask {
    room: Arc<Room>,
    headers: HeaderMap,
    peer: Peer,
    body: Value,
    family: Family,
    now: Now,
}

type Given = (State<Arc<Room>>, Extension<Peer>, HeaderMap, Result<Bytes, BytesRejection>);

/// The routes, to be merged into those of a port whose requests have a [`Peer`]. Looks after commands until the room is
/// dropped; needs a runtime.
pub fn router(room: &Arc<Room>) -> Router {
    let mut router = Router::new()
        .route("/report", post(async |given: Given| ask(given, true, Some(Family::NanoClaw), report).await))
        .route("/batch", post(async |given: Given| ask(given, true, Some(Family::NanoClaw), batch).await));
    for (prefix, versioned) in [("/fleet", false), ("/api/v1/fleet", true)] {
        let path = |path: &str| format!("{prefix}/{path}");
        router = router
            .route(
                &path("register"),
                post(async move |given: Given| ask(given, versioned, None, register).await),
            )
            .route(
                &path("heartbeat"),
                post(async move |given: Given| ask(given, versioned, None, heartbeat).await),
            )
            .route(&path("events"), post(async move |given: Given| ask(given, versioned, None, events).await))
            .route(
                &path("genes/publish"),
                post(async move |given: Given| ask(given, versioned, None, publish).await),
            )
            .route(
                &path("command"),
                post(async move |given: Given| ask(given, versioned, None, command).await)
                    .get(async move |given: Given| ask(given, versioned, None, command).await),
            )
            .route(
                &path("command/ack"),
                post(async move |given: Given| ask(given, versioned, None, ack).await),
            )
            .route(
                &path("nodes"),
                get(async move |pages: Query<Pages>, given: Given| {
                    look(given, versioned, |ask, asks| nodes(&ask, &asks, &pages)).await
                }),
            )
            .route(
                &path("nodes/{id}"),
                get(async move |Path(id): Path<String>, given: Given| {
                    look(given, versioned, |ask, asks| node(&ask, &asks, &id)).await
                }),
            );
    }
    tokio::spawn(sweep(Arc::downgrade(room)));
    router.layer(DefaultBodyLimit::max(BODY_BYTES)).with_state(room.clone())
}

async fn ask<F>(given: Given, versioned: bool, family: Option<Family>, tell: F) -> Response
where
    F: AsyncFnOnce(&Ask) -> Result<Answer, Refusal>,
{
    let read = read(given, versioned, family);
    let (family, answer) = match read {
        Err(refusal) => (None, Err(refusal)),
        Ok(ask) => (Some(ask.family), tell(&ask).await),
    };
    answered(family, answer)
}

async fn look(
    given: Given,
    versioned: bool,
    show: impl FnOnce(Ask, Asks) -> Result<Answer, Refusal>,
) -> Response {
    let family = if versioned { Family::OpenApi } else { Family::Fork };
    let answer = read(given, versioned, Some(family)).and_then(|ask| {
        let asks = ask.room.looks(&ask.headers, &ask.peer)?;
        show(ask, asks)
    });
    answered(Some(family), answer)
}

fn answered(family: Option<Family>, answer: Result<Answer, Refusal>) -> Response {
    let mut response = match answer {
        Ok((status, body)) => (status, Json(body)).into_response(),
        Err(refusal) => match family {
            Some(family) => refusal.by(family).into_response(),
            None => refusal.into_response(),
        },
    };
    // An agent that keeps its connection would meet the end of it in the middle of a heartbeat, and not ask again.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn read(given: Given, versioned: bool, family: Option<Family>) -> Result<Ask, Refusal> {
    let (State(room), Extension(peer), headers, body) = given;
    room.pace(&peer)?;
    let body = body.map_err(|rejected| Refusal::new(rejected.status(), rejected.body_text()))?;
    let body = if body.trim_ascii().is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let why = format!("the body is not JSON (line {line}, column {column})");
            Refusal::new(StatusCode::BAD_REQUEST, why)
        })?
    };
    if super::read::depth(&body) > DEPTH {
        return Err(Refusal::at("", format!("nested deeper than {DEPTH}")));
    }
    let family = family.unwrap_or_else(|| Family::of(versioned, &body));
    let now = room.hub.clock().now();
    Ok(Ask { room, headers, peer, body, family, now })
}

impl Ask {
    async fn served(&self, asked: Option<&NodeId>) -> Result<Known, Refusal> {
        self.room.serve(&self.headers, &self.peer, asked).await
    }

    /// A field's fault, but first whoever has no token hears that.
    fn wrong(&self, refusal: impl Into<Refusal>) -> Refusal {
        match self.room.looks(&self.headers, &self.peer) {
            Err(denied) if denied.status == StatusCode::UNAUTHORIZED => denied,
            Ok(_) | Err(_) => refusal.into(),
        }
    }

    fn about(&self, known: &Known) -> About {
        let host = self.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.map(|host| host.rsplit_once(':').map_or(host, |(name, _)| name));
        let plain = |host: &&str| host.chars().all(|c| c.is_ascii_alphanumeric() || ".-[]:".contains(c));
        let broker = host.filter(plain).zip(self.room.mqtts_port);
        About {
            node: self.called(&known.node),
            now_ms: self.now.wall_ms,
            token: known.token.clone(),
            expires_ms: known.expires_ms,
            broker: broker.map(|(host, port)| format!("mqtts://{host}:{port}")),
            ..About::default()
        }
    }

    /// The node as the request calls it.
    fn called(&self, node: &NodeId) -> String {
        let text = ["node_id", "id", "agentId"].iter().find_map(|key| self.body.get(key)?.as_str());
        text.filter(|text| text.to_ascii_lowercase() == node.as_str()).unwrap_or(node.as_str()).to_owned()
    }
}

async fn register(ask: &Ask) -> Result<Answer, Refusal> {
    let hello = said::hello(&ask.body).map_err(|fault| ask.wrong(fault))?;
    let known = ask.served(hello.node.as_ref()).await?;
    let stand_in = ask.room.stand_in(&known.node, ask.family);
    let mut turn = stand_in.turn(&ask.room.hub, &ask.room.voice).await?;
    turn.begin(Some(&hello), ask.family).await?;
    let about = About { interval_s: turn.interval().as_secs(), ..ask.about(&known) };
    Ok(ask.family.registered(&about))
}

async fn heartbeat(ask: &Ask) -> Result<Answer, Refusal> {
    let beat = said::beat(&ask.body, ask.now.wall_ms).map_err(|fault| ask.wrong(fault))?;
    let known = ask.served(beat.node.as_ref()).await?;
    let stand_in = ask.room.stand_in(&known.node, ask.family);
    let mut turn = stand_in.turn(&ask.room.hub, &ask.room.voice).await?;
    turn.begin(None, ask.family).await?;
    turn.beat(beat.figures.clone(), ask.now)?;
    let status = beat.status.clone().unwrap_or_else(|| "online".to_owned());
    let changed = turn.status(&status).filter(|before| !is_well(before) || !is_well(&status));
    let mut bodies = seal::samples(samples(&beat, ask.now));
    if let Some(before) = changed {
        bodies.extend(seal::events(vec![status_event(&status, &before, ask.now)]));
    }
    turn.store(bodies).await?;
    commands::settle(&mut turn, &ask.room.hub, &known.node).await?;
    let ends = matches!(status.as_str(), "offline" | "down" | "stopping" | "shutdown");
    if ends {
        turn.end()?;
    }
    let about = About {
        interval_s: turn.interval().as_secs(),
        pending: commands::pending(&ask.room.hub, &known.node),
        warning: beat.time.is_some_and(|time| time.wrong_ms.is_some()) || !is_well(&status),
        ..ask.about(&known)
    };
    Ok(ask.family.heard(&about))
}

/// The words of agents that are well.
fn is_well(status: &str) -> bool {
    matches!(status, "online" | "ok" | "idle" | "healthy" | "running" | "busy" | "active")
}

fn samples(beat: &Beat, now: Now) -> Vec<Sample> {
    let time_ms = beat.time.map_or(now.wall_ms, |time| time.time_ms);
    let sample = |(name, value): (&String, &f64)| {
        let metric = MetricName::parse(name).ok()?;
        Some(Sample { time_ms, device: DeviceId::node(), metric, unit: None, value: *value })
    };
    beat.figures.iter().filter_map(sample).collect()
}

fn status_event(status: &str, before: &str, now: Now) -> Event {
    Event {
        time_ms: now.wall_ms,
        kind: MetricName::parse("status_change").expect("a short name"),
        severity: if is_well(status) { Severity::Info } else { Severity::Warning },
        message: format!("the agent says it is {status} (it was {before})"),
        data: ciborium::Value::serialized(&json!({ "status": status, "was": before, "unsequenced": true }))
            .ok(),
        device: None,
        id: None,
    }
}

async fn events(ask: &Ask) -> Result<Answer, Refusal> {
    let bound = ask.room.bound(&ask.headers);
    let told = said::events(&ask.body, bound.as_ref(), ask.now.wall_ms).map_err(|wrong| ask.wrong(wrong))?;
    store(ask, told).await
}

async fn report(ask: &Ask) -> Result<Answer, Refusal> {
    let told = said::report(&ask.body, ask.now.wall_ms).map_err(|wrong| ask.wrong(wrong))?;
    store(ask, told).await
}

async fn batch(ask: &Ask) -> Result<Answer, Refusal> {
    let told = said::batch(&ask.body, ask.now.wall_ms).map_err(|wrong| ask.wrong(wrong))?;
    store(ask, told).await
}

async fn store(ask: &Ask, told: Told) -> Result<Answer, Refusal> {
    let known = ask.served(told.node.as_ref()).await?;
    let about = About {
        received: told.received,
        stored: told.events.len() + told.samples.len(),
        ..ask.about(&known)
    };
    if about.stored > 0 {
        let stand_in = ask.room.stand_in(&known.node, ask.family);
        let mut turn = stand_in.turn(&ask.room.hub, &ask.room.voice).await?;
        turn.begin(None, ask.family).await?;
        // Events first: they are what somebody waits for.
        let mut bodies = seal::events(told.events);
        bodies.extend(seal::samples(told.samples));
        turn.store(bodies).await?;
    }
    Ok(ask.family.stored(&about))
}

async fn publish(ask: &Ask) -> Result<Answer, Refusal> {
    let gene = genes::gene(&ask.body).map_err(|fault| ask.wrong(fault))?;
    let node = match ask.body.get("gene") {
        Some(_) => said::named(&ask.body).map_err(|fault| ask.wrong(fault))?,
        // Then `id` is the gene's.
        None => None,
    };
    let known = ask.served(node.as_ref()).await?;
    let row = GeneRow {
        json: gene.json,
        asset_id: gene.asset_id.clone(),
        verified: gene.verified,
        node: known.node.to_string(),
        first_ms: ask.now.wall_ms,
    };
    let (state, digest) = (ask.room.hub.state(), gene.digest.clone());
    let kept = tokio::task::spawn_blocking(move || state.put_gene(&digest, &row)).await;
    let kept = kept.map_err(|error| Refusal::unavailable(error.to_string()))?;
    match kept.map_err(|error| Refusal::unavailable(error.to_string()))? {
        Kept::Known => {}
        Kept::Full => {
            let why = format!("there are {GENES} genes already; no more are kept");
            return Err(Refusal::new(StatusCode::INSUFFICIENT_STORAGE, why));
        }
        Kept::New => {
            let stand_in = ask.room.stand_in(&known.node, ask.family);
            let mut turn = stand_in.turn(&ask.room.hub, &ask.room.voice).await?;
            turn.begin(None, ask.family).await?;
            let data = json!({
                "digest": gene.digest, "asset_id": gene.asset_id, "verified": gene.verified, "type": gene.kind,
                "unsequenced": true,
            });
            let event = Event {
                time_ms: ask.now.wall_ms,
                kind: MetricName::parse("gene_published").expect("a short name"),
                severity: Severity::Info,
                message: format!("the gene {} was published", gene.digest),
                data: ciborium::Value::serialized(&data).ok(),
                device: None,
                id: None,
            };
            turn.store(seal::events(vec![event])).await?;
        }
    }
    Ok(ask.family.published(&gene.digest, gene.asset_id.as_deref(), gene.verified))
}

async fn command(ask: &Ask) -> Result<Answer, Refusal> {
    let node = said::named(&ask.body).map_err(|fault| ask.wrong(fault))?;
    let known = ask.served(node.as_ref()).await?;
    let stand_in = ask.room.stand_in(&known.node, ask.family);
    let mut turn = stand_in.turn(&ask.room.hub, &ask.room.voice).await?;
    turn.begin(None, ask.family).await?;
    let given = commands::poll(&mut turn, &ask.room.hub, &known.node).await?;
    Ok(ask.family.commands(&given))
}

async fn ack(ask: &Ask) -> Result<Answer, Refusal> {
    let report = said::ack(&ask.body, ask.now.wall_ms).map_err(|fault| ask.wrong(fault))?;
    let node = said::named(&ask.body).map_err(|fault: Fault| ask.wrong(fault))?;
    let known = ask.served(node.as_ref()).await?;
    let stand_in = ask.room.stand_in(&known.node, ask.family);
    let mut turn = stand_in.turn(&ask.room.hub, &ask.room.voice).await?;
    turn.begin(None, ask.family).await?;
    commands::ack(&mut turn, &ask.room.hub, &known.node, report).await?;
    Ok(ask.family.acked())
}

/// `?node_type=&status=&location=&page=&limit=`.
#[derive(Debug, Default, serde::Deserialize)]
struct Pages {
    node_type: Option<String>,
    status: Option<String>,
    location: Option<String>,
    page: Option<usize>,
    limit: Option<usize>,
}

fn nodes(ask: &Ask, asks: &Asks, pages: &Pages) -> Result<Answer, Refusal> {
    let page = pages.page.unwrap_or(1).max(1);
    // A bare list has no pages to turn.
    let usual = if ask.family == Family::OpenApi { PAGE } else { PAGE_MOST };
    let limit = pages.limit.unwrap_or(usual);
    if limit == 0 || limit > PAGE_MOST {
        return Err(Refusal::at("?limit", format!("is not within 1 to {PAGE_MOST}")));
    }
    let fits = |node: &Node| {
        let record = &node.record;
        let mine = match asks {
            Asks::Operator => true,
            Asks::Node(known) => record.id == known.node,
        };
        let place = record.machine.get("location").or(record.labels.get("location")).or(record.site.as_ref());
        let is = |wanted: &Option<String>, has: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| has == Some(wanted))
        };
        mine && is(&pages.node_type, Some(&record.kind))
            && is(&pages.status, Some(ask.family.status(record.presence.state)))
            && is(&pages.location, place.map(String::as_str))
    };
    let (items, total) = ask.room.hub.with_fleet(|fleet| {
        let fitting = || fleet.nodes.values().filter(|node| fits(node));
        let skip = limit.saturating_mul(page - 1);
        let items: Vec<_> = fitting().skip(skip).take(limit).map(|node| ask.family.node(node)).collect();
        (items, fitting().count())
    });
    Ok(ask.family.nodes(items, total, page, limit))
}

fn node(ask: &Ask, asks: &Asks, id: &str) -> Result<Answer, Refusal> {
    let id = id.to_ascii_lowercase();
    let mine = match asks {
        Asks::Operator => true,
        Asks::Node(known) => known.node.as_str() == id,
    };
    let shown = ask
        .room
        .hub
        .with_fleet(|fleet| fleet.nodes.get(id.as_str()).filter(|_| mine).map(|node| ask.family.node(node)));
    let shown =
        shown.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, format!("there is no node {id:?}")))?;
    Ok((StatusCode::OK, shown))
}

/// Ends commands that ran out of time, at nodes that are there.
async fn sweep(room: std::sync::Weak<Room>) {
    let mut looks = time::interval(LOOK);
    looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Some(room) = room.upgrade() else { return };
        for (node, stand_in) in room.stand_ins() {
            if commands::is_overdue(&room.hub, &node)
                && let Ok(mut turn) = stand_in.turn(&room.hub, &room.voice).await
                && turn.is_live()
                && let Err(refusal) = commands::settle(&mut turn, &room.hub, &node).await
            {
                tracing::debug!(%node, detail = refusal.detail, "commands could not be settled");
            }
        }
    }
}
