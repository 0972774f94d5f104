//! `nodes`: list, one, change, import, devices.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use fleet_schemas::{NodeId, batch::digest};

use super::{
    Api, enrolment,
    idempotency::Turn,
    patch::{self, Line},
    problem::Refusal,
    query::{Body, Params, content_type, no_node, node_id},
    rights::Caller,
    selector::Selector,
    shapes, view,
};
use crate::core::{
    Now, devices,
    fleet::{Fleet, Node},
    identity::Identities,
    intake::Effects,
    presence::State as Presence,
    registry::{self, Intent, Order},
    zones,
};

/// `GET nodes?selector=&group=&limit=&cursor=`: ordered by id.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["selector", "group", "limit", "cursor"])?;
    let selector = Selector::parse(params.text("selector").unwrap_or_default())?;
    let group = params.text("group").map(|name| group(&api, name)).transpose()?.unwrap_or_default();
    let after = params.text("cursor").map(NodeId::parse).transpose();
    let after = after.map_err(|_| Refusal::query("cursor", "is none that this list gave"))?;
    let limit = params.limit()?;
    let (found, more) = api.hub.with_fleet(|fleet| {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let wanted = |node: &&Node| selector.matches(*node) && group.matches(*node);
        let mut nodes = fleet.nodes.range((from, Bound::Unbounded)).map(|(_, node)| &**node).filter(wanted);
        let found: Vec<Node> = nodes.by_ref().take(limit).cloned().collect();
        (found, nodes.next().is_some())
    });
    let next = found.last().filter(|_| more).map(|node| node.record.id.to_string());
    let items = shown(&api, found).await?;
    Ok(Json(shapes::Page { items, next }).into_response())
}

/// The selector of a saved group.
pub(super) fn group(api: &Api, name: &str) -> Result<Selector, Refusal> {
    let saved = api.hub.with_fleet(|fleet| fleet.groups.get(name).cloned());
    let saved = saved.ok_or_else(|| Refusal::query("group", format!("there is no group {name:?}")))?;
    Ok(Selector::parse(&saved)?)
}

/// Nodes as `GET nodes` shows them.
pub(crate) async fn shown(api: &Arc<Api>, nodes: Vec<Node>) -> Result<Vec<shapes::Node>, Refusal> {
    api.query(move |api| {
        let ids: Vec<_> = nodes.iter().map(|node| (node.record.id.clone(), node.number)).collect();
        let counts = api.devices.counts(&api.hub, &ids)?;
        let stand = api.hub.with_identities(|identities| {
            let of = |(id, _): &(NodeId, _)| enrolment::shown(identities.enrolments.get(id));
            ids.iter().map(of).collect::<Vec<_>>()
        });
        let zones: Vec<_> =
            api.hub.with_fleet(|fleet| nodes.iter().map(|node| zones::of_node(fleet, node)).collect());
        let all = nodes.iter().zip(zones).zip(counts).zip(stand);
        Ok(all.map(|(((node, tz), devices), stands)| view::node(node, tz, devices, stands)).collect())
    })
    .await
}

fn found(api: &Api, id: &NodeId) -> Result<Node, Refusal> {
    api.hub.with_fleet(|fleet| fleet.known(id).cloned()).ok_or_else(|| no_node(id.as_str()))
}

/// The number of a node, also of one that was removed and whose history is kept.
pub(crate) fn number(api: &Api, id: &NodeId) -> Result<u32, Refusal> {
    let number = api.hub.with_fleet(|fleet| fleet.known(id).map(|node| node.number));
    number.ok_or_else(|| no_node(id.as_str()))
}

/// `GET nodes/{id}`, with an `ETag` over what an operator may change.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    answer(&api, &node_id(&id)?).await
}

/// A node as `GET nodes/{id}` shows it.
pub(crate) async fn one(api: &Arc<Api>, id: &NodeId) -> Result<shapes::Node, Refusal> {
    let node = found(api, id)?;
    shown(api, vec![node]).await?.pop().ok_or_else(|| no_node(id.as_str()))
}

/// A node as it is now, with its `ETag`.
pub(super) async fn answer(api: &Arc<Api>, id: &NodeId) -> Result<Response, Refusal> {
    let node = found(api, id)?;
    let tag = etag(&node);
    let mut items = shown(api, vec![node]).await?;
    let mut response = Json(items.pop()).into_response();
    let tag = HeaderValue::from_str(&tag).map_err(|error| Refusal::Internal(error.to_string()))?;
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

/// Changes exactly when name, site, location or labels do.
fn etag(node: &Node) -> String {
    let record = &node.record;
    let kept = (&record.name, &record.site, &record.location, &record.labels);
    let digest = digest(&fleet_schemas::cbor::encode(&kept));
    format!("\"{}\"", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// `PATCH nodes/{id}`: a merge patch; answers after commit. `If-Match` makes it depend on the node's `ETag`.
pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    content_type(&headers, &["application/merge-patch+json", "application/json"])?;
    let id = node_id(&id)?;
    let patch = patch::merge_patch(&body)?;
    let wanted = headers.get(header::IF_MATCH).and_then(|tag| tag.to_str().ok());
    match wanted {
        Some(wanted) => {
            let _alone = api.changes.write().await;
            let tag = etag(&found(&api, &id)?);
            if wanted != "*" && !wanted.split(',').any(|wanted| wanted.trim() == tag) {
                return Err(Refusal::Stale("the node was changed meanwhile; read it again".to_owned()));
            }
            api.hub.intend(&caller.by(), Intent::PatchNode { node: id.clone(), patch }).await?;
        }
        None => {
            let _among = api.changes.read().await;
            api.hub.intend(&caller.by(), Intent::PatchNode { node: id.clone(), patch }).await?;
        }
    }
    answer(&api, &id).await
}

/// `GET nodes/{id}/devices`: those that the node reported, and those that its series tell of.
pub(super) async fn devices(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let items = devices_of(&api, &node_id(&id)?).await?;
    Ok(Json(shapes::Page::<shapes::Device> { items, next: None }).into_response())
}

/// The devices behind a node, by id.
pub(crate) async fn devices_of(api: &Arc<Api>, node: &NodeId) -> Result<Vec<shapes::Device>, Refusal> {
    let (number, node) = (number(api, node)?, node.clone());
    api.query(move |api| {
        let presence = api.hub.with_fleet(|fleet| {
            fleet.nodes.get(&node).map_or(Presence::New, |node| node.record.presence.state)
        });
        let reported = api.hub.devices(number)?.into_iter();
        let mut all: BTreeMap<_, _> =
            reported.map(|(id, device)| (id.to_string(), view::device(presence, &device))).collect();
        for one in api.hub.telemetry().latest(number)?.into_iter().filter(|one| !one.device.is_node()) {
            let id = one.device.to_string();
            let unreported = || shapes::Device {
                id: id.clone(),
                state: devices::state(presence, None).to_owned(),
                ..shapes::Device::default()
            };
            let device = all.entry(id.clone()).or_insert_with(unreported);
            device.last_ms = device.last_ms.max(Some(one.time_ms));
            device.last_seen_ms = device.last_seen_ms.max(device.last_ms);
            device.metrics.push(one.metric.to_string());
        }
        for device in all.values_mut() {
            device.metrics.sort_unstable();
            device.metrics.dedup();
            view::sleep_on(device);
        }
        Ok(all.into_values().collect())
    })
    .await
}

/// `POST nodes/import?dry_run=`: CSV. Good lines are applied in one transaction, bad ones are reported.
pub(super) async fn import(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&["dry_run"])?;
    let dry_run = params.flag("dry_run")?;
    content_type(&headers, &["text/csv"])?;
    let json = |body: Bytes| ([(header::CONTENT_TYPE, "application/json")], body).into_response();
    let flags: &[u8] = if dry_run { b"dry" } else { b"" };
    let claim = match api.keys.turn(&headers, &caller, &[b"nodes/import", flags, &body])? {
        Turn::Again(answer) => return Ok(json(answer)),
        Turn::First(claim) => claim,
    };
    let lines = patch::import(&body)?;
    let _among = api.changes.read().await;
    let (report, changes) = api.hub.with_fleet(|fleet| judge(fleet, lines, dry_run, api.hub.clock().now()));
    let changes_something = !changes.is_empty();
    let intent = Intent::ImportNodes(changes);
    if dry_run {
        api.hub.within(&caller.by(), intent)?;
    } else if changes_something {
        api.hub.intend(&caller.by(), intent).await?;
    }
    let answer = serde_json::to_vec(&report).map_err(|error| Refusal::Internal(error.to_string()))?;
    let answer = Bytes::from(answer);
    claim.done(&answer);
    Ok(json(answer))
}

type Changes = Vec<(NodeId, registry::NodePatch)>;

/// What the registry would say to each line: asked of a copy of the node, one by one.
fn judge(fleet: &Fleet, lines: Vec<Line>, dry_run: bool, now: Now) -> (shapes::Import, Changes) {
    let mut report = shapes::Import { dry_run, ..shapes::Import::default() };
    let mut changes = Vec::new();
    for Line { number, id, asked } in lines {
        let mut told = shapes::ImportLine { line: number, id, ..shapes::ImportLine::default() };
        let judged = asked.and_then(|(node, change)| {
            let known = fleet.nodes.get(&node);
            let mut copy = Fleet::default();
            if let Some(known) = known {
                copy.insert(Node::clone(known));
            }
            let intent = Intent::ImportNodes(vec![(node.clone(), change.clone())]);
            let (nobody, by) = (&mut Identities::default(), "hub".to_owned());
            registry::take(&mut copy, nobody, &mut Effects::default(), Order { by, intent }, 0, now)
                .map_err(|error| error.to_string())?;
            let result = match (known, copy.nodes.get(&node)) {
                (None, _) => "created",
                (Some(before), Some(after)) if before.record == after.record => "unchanged",
                (Some(_), _) => "changed",
            };
            Ok((result, (node, change)))
        });
        match judged {
            Ok((result, change)) => {
                report.applied += 1;
                result.clone_into(&mut told.result);
                if result != "unchanged" {
                    changes.push(change);
                }
            }
            Err(why) => {
                report.failed += 1;
                "failed".clone_into(&mut told.result);
                told.error = Some(why);
            }
        }
        report.lines.push(told);
    }
    (report, changes)
}
