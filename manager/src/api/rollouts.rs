//! `rollouts`: made, planned without being made, listed, looked at, paused, resumed, called off, taken back, approved.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State as Shared},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use fleet_schemas::{
    DeviceId, MetricName, NodeId,
    update::{Digest, Kind, Target},
};

use super::{
    Api,
    artifacts::releases,
    commands,
    idempotency::Turn,
    problem::Refusal,
    query::{Body, Params, content_type, json},
    rights::Caller,
    shapes,
};
use crate::core::{
    registry::{Intent, RegistryError},
    rollout::{self, Act, Artifact, Id, Release, RolloutError, Rollouts, Wanted},
};

mod show;
mod terms;

pub(crate) use show::brief;

/// Largest body of a new rollout, in bytes: 10,000 nodes by name.
pub(super) const BODY_BYTES: usize = 2 * 1024 * 1024;
/// So often a name is asked for anew when somebody else took it meanwhile.
const NAMES: usize = 5;
/// Nodes that a draft lists of each wave.
const LISTED: usize = 1_000;

/// `POST rollouts?dry_run=`: 201 once it is committed.
pub(super) async fn create(
    Shared(api): Shared<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&["dry_run"])?;
    content_type(&headers, &["application/json"])?;
    if params.flag("dry_run")? {
        let wanted = wanted(&api, &caller, json(&headers, &body)?).await?;
        api.hub.within(&caller.by(), Intent::Rollout(Box::new(wanted.clone())))?;
        let now = api.hub.clock().now();
        let draft = api.hub.with_fleet(|fleet| {
            let draft = rollout::draft(fleet, &wanted, now)?;
            Ok::<_, RolloutError>(show::draft(fleet, &draft, LISTED))
        })?;
        return Ok(Json(draft).into_response());
    }
    let answer = make(&api, &caller, &headers, body).await?;
    Ok((StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

/// Makes a rollout of the JSON that `POST rollouts` takes; gives the JSON that it answers.
pub(crate) async fn make(
    api: &Arc<Api>,
    caller: &Caller,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Bytes, Refusal> {
    let claim = match api.keys.turn(headers, caller, &[b"rollouts", &body])? {
        Turn::Again(answer) => return Ok(answer),
        Turn::First(claim) => claim,
    };
    let mut wanted = wanted(api, caller, json(headers, &body)?).await?;
    for again in (0..NAMES).rev() {
        let intent = Intent::Rollout(Box::new(wanted.clone()));
        match api.hub.intend(&caller.by(), intent).await {
            Ok(()) => break,
            Err(crate::hub::IntentError::Registry(RegistryError::Rollout(RolloutError::Exists(_))))
                if again > 0 =>
            {
                wanted.id = api.hub.with_fleet(|fleet| fleet.rollouts.next_id(&wanted.release));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let answer = api.hub.with_fleet(|fleet| Some(brief(fleet.rollouts.get(wanted.id.as_str())?)));
    let answer = answer.ok_or_else(|| no_rollout(wanted.id.as_str()))?;
    let answer =
        serde_json::to_vec(&answer).map(Bytes::from).map_err(|error| Refusal::Internal(error.to_string()))?;
    claim.done(&answer);
    Ok(answer)
}

/// What somebody asks for, with names looked up.
async fn wanted(api: &Arc<Api>, caller: &Caller, ask: shapes::RolloutAsk) -> Result<Wanted, Refusal> {
    let (release, before) = signed(api, &ask.release)?;
    let nodes = commands::chosen(api, ask.nodes.as_deref(), ask.selector.as_deref(), ask.all)?;
    let seats = match release.kind {
        Kind::Skill | Kind::Agent | Kind::Firmware => {
            nodes.into_iter().map(|node| (node, DeviceId::node(), None)).collect()
        }
        Kind::DeviceFirmware => devices(api, nodes, &release).await?,
    };
    if seats.is_empty() {
        return Err(Refusal::at("/release", "no node has a device that it fits"));
    }
    let selector = if ask.all { Some(String::new()) } else { ask.selector };
    Ok(Wanted {
        id: api.hub.with_fleet(|fleet| fleet.rollouts.next_id(&release)),
        release,
        before,
        seats,
        selector,
        terms: terms::read(&ask.terms)?,
        by: caller.by(),
    })
}

/// Releases by digest.
type Before = BTreeMap<Digest, (Target, Artifact)>;

/// The release that a text names, and the others of its name.
fn signed(api: &Api, text: &str) -> Result<(Release, Before), Refusal> {
    let unknown =
        || Refusal::at("/release", format!("{text:?} is no signed release; `fleet release ls` lists them"));
    let (name, version) =
        text.rsplit_once('@').ok_or_else(|| Refusal::at("/release", "is written NAME@VERSION"))?;
    let mut release: Option<Release> = None;
    let mut before = BTreeMap::new();
    for (target, entry) in releases(api)?.entries() {
        if target.name.as_str() != name {
            continue;
        }
        let artifact = Artifact { digest: entry.digest, length: entry.length, custom: entry.custom.clone() };
        if target.version.as_str() == version {
            let (name, version, kind) = (target.name.clone(), target.version.clone(), target.kind);
            let release = release.get_or_insert(Release { name, version, kind, targets: BTreeMap::new() });
            release.targets.insert(target.arch.clone(), artifact);
        } else {
            before.insert(entry.digest, (target, artifact));
        }
    }
    Ok((release.ok_or_else(unknown)?, before))
}

/// Devices behind nodes that a release of device firmware fits.
async fn devices(
    api: &Arc<Api>,
    nodes: Vec<NodeId>,
    release: &Release,
) -> Result<Vec<(NodeId, DeviceId, Option<String>)>, Refusal> {
    let kinds: Vec<Option<String>> =
        release.targets.values().map(|artifact| artifact.custom.device_kind.clone()).collect();
    api.query(move |api| {
        let mut seats = Vec::new();
        for node in nodes {
            let Some(number) = api.hub.with_fleet(|fleet| Some(fleet.nodes.get(&node)?.number)) else {
                continue;
            };
            for (device, known) in api.hub.state().devices(number)? {
                let kind = known.report.kind.as_ref().map(ToString::to_string);
                if kinds.iter().any(|wanted| wanted.is_none() || *wanted == kind) {
                    seats.push((node.clone(), device, kind));
                }
            }
        }
        Ok(seats)
    })
    .await
}

/// No such rollout.
pub(super) fn no_rollout(id: &str) -> Refusal {
    RolloutError::Unknown(id.to_owned()).into()
}

fn rollout_id(text: &str) -> Result<Id, Refusal> {
    MetricName::parse(text).map_err(|_| no_rollout(text))
}

/// `GET rollouts?state=&limit=&cursor=`: newest first.
pub(super) async fn list(Shared(api): Shared<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["state", "limit", "cursor"])?;
    let states = states(&params)?;
    let before: Option<u64> = params.read("cursor")?;
    let limit = params.limit()?;
    Ok(Json(listed(&api, &states, before, limit)).into_response())
}

/// A page of the rollouts in these states, or in any, newest first.
pub(crate) fn listed(
    api: &Api,
    states: &[rollout::State],
    before: Option<u64>,
    limit: usize,
) -> shapes::Page<shapes::Rollout> {
    api.hub.with_fleet(|fleet| page(&fleet.rollouts, states, before, limit))
}

fn states(params: &Params) -> Result<Vec<rollout::State>, Refusal> {
    let word = |text: &str| {
        let known = rollout::State::ALL.into_iter().find(|state| state.as_str() == text);
        let words = || rollout::State::ALL.map(rollout::State::as_str).join(", ");
        known.ok_or_else(|| Refusal::query("state", format!("{text:?} is none of {}", words())))
    };
    params.text("state").map_or(Ok(Vec::new()), |text| text.split(',').map(word).collect())
}

fn page(
    rollouts: &Rollouts,
    states: &[rollout::State],
    before: Option<u64>,
    limit: usize,
) -> shapes::Page<shapes::Rollout> {
    let all = rollouts.all();
    let fits = |live: &&&rollout::Live| {
        (states.is_empty() || states.contains(&live.head.state))
            && before.is_none_or(|before| live.head.spec.no < before)
    };
    let mut found: Vec<_> = all.iter().rev().filter(fits).take(limit + 1).collect();
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|live| live.head.spec.no.to_string());
    shapes::Page { items: found.into_iter().map(|live| brief(live)).collect(), next }
}

/// `GET rollouts/{id}?state=&limit=&cursor=`: with a page of its nodes.
pub(super) async fn get(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&["state", "limit", "cursor"])?;
    let limit = params.limit()?;
    let after = params.text("cursor").unwrap_or_default().to_owned();
    let wanted: Vec<String> =
        params.text("state").map(|text| text.split(',').map(str::to_owned).collect()).unwrap_or_default();
    Ok(Json(whole(&api, &id, &wanted, &after, limit).await?).into_response())
}

/// A rollout with a page of its nodes: those in these states, or in any, after the one of that name.
pub(crate) async fn whole(
    api: &Arc<Api>,
    id: &str,
    wanted: &[String],
    after: &str,
    limit: usize,
) -> Result<shapes::Rollout, Refusal> {
    let plan = {
        let id = id.to_owned();
        api.query(move |api| Ok(api.hub.state().rollout_plan(&id)?)).await?
    };
    let shown = api.hub.with_fleet(|fleet| {
        let live = fleet.rollouts.get(id)?;
        let mut shown = brief(live);
        shown.terms = Some(terms::shown(&live.head.spec.terms));
        shown.plan = plan.map(|plan| plan.text).unwrap_or_default();
        (shown.nodes, shown.next) = show::nodes(fleet, live, wanted, after, limit);
        Some(shown)
    });
    shown.ok_or_else(|| no_rollout(id))
}

/// `POST rollouts/{id}/pause`.
pub(super) async fn pause(
    Shared(api): Shared<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    let act = |reason| Act::Pause { reason };
    post(&api, &caller, Post { id, verb: "pause", params, headers, body }, act).await
}

/// `POST rollouts/{id}/resume`.
pub(super) async fn resume(
    Shared(api): Shared<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    let act = |_| Act::Resume;
    post(&api, &caller, Post { id, verb: "resume", params, headers, body }, act).await
}

/// `POST rollouts/{id}/abort`.
pub(super) async fn abort(
    Shared(api): Shared<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    let act = |reason| Act::Abort { reason };
    post(&api, &caller, Post { id, verb: "abort", params, headers, body }, act).await
}

/// `POST rollouts/{id}/rollback`.
pub(super) async fn rollback(
    Shared(api): Shared<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    let act = |reason| Act::Rollback { reason };
    post(&api, &caller, Post { id, verb: "rollback", params, headers, body }, act).await
}

/// `POST rollouts/{id}/approve`.
pub(super) async fn approve(
    Shared(api): Shared<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    let act = |_| Act::Approve;
    post(&api, &caller, Post { id, verb: "approve", params, headers, body }, act).await
}

/// A verb as it was sent.
struct Post {
    id: String,
    verb: &'static str,
    params: Params,
    headers: HeaderMap,
    body: Bytes,
}

async fn post(
    api: &Arc<Api>,
    caller: &Caller,
    Post { id, verb, params, headers, body }: Post,
    act: impl FnOnce(Option<String>) -> Act,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let shapes::RolloutReason { reason } = json(&headers, &body)?;
    let request: [&[u8]; 4] = [b"rollouts", verb.as_bytes(), id.as_bytes(), &body];
    let done = carry_out(api, caller, &id, act(reason));
    api.keys.once(StatusCode::OK, &headers, caller, &request, done).await
}

/// Does something with a rollout; how it is afterwards.
pub(crate) async fn carry_out(
    api: &Arc<Api>,
    caller: &Caller,
    id: &str,
    act: Act,
) -> Result<shapes::Rollout, Refusal> {
    let by = caller.by();
    let id = rollout_id(id)?;
    api.hub.intend(&by, Intent::ActOnRollout { id: id.clone(), act, by: by.clone() }).await?;
    let shown = api.hub.with_fleet(|fleet| Some(brief(fleet.rollouts.get(id.as_str())?)));
    shown.ok_or_else(|| no_rollout(id.as_str()))
}
