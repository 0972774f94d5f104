//! `releases`: what is signed, and the signed metadata itself.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::{
    Api,
    artifacts::releases,
    problem::{Denied, Refusal},
    query::{Body, Params, json},
    rights::Caller,
    shapes::{self, Page},
};
use crate::{
    core::{
        bounds::Touch,
        identity::Role,
        registry::{Intent, Noted},
    },
    release::{self, Release, Releases},
};

/// Largest body of signed metadata, in bytes: the largest targets and root, as text in JSON.
pub(super) const BODY_BYTES: usize = 6 * 1024 * 1024;
/// Releases that are named in the trail.
const LISTED: usize = 100;

/// The body of a PUT: the files as they were signed.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = ReleaseMetadataBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// The text of the next `root.json`; takes an admin.
    root: Option<String>,
    /// The text of the next `targets.json`.
    targets: Option<String>,
}

/// `GET releases?limit=&cursor=`: by kind, name and version.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    let (limit, after) = (params.limit()?, params.read::<usize>("cursor")?.unwrap_or(0));
    let all = releases(&api)?.all();
    let items: Vec<_> = all.iter().skip(after).take(limit).map(shown).collect();
    let next = after.saturating_add(items.len());
    let next = (next < all.len()).then(|| next.to_string());
    Ok(Json(Page { items, next }).into_response())
}

/// `GET releases/metadata`: versions, ends, and the hub's keys.
pub(super) async fn metadata(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&[])?;
    Ok(Json(standing(releases(&api)?)?).into_response())
}

/// `GET releases/metadata/{file}`: a file as nodes get it.
pub(super) async fn file(
    State(api): State<Arc<Api>>,
    Path(file): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let unknown = || Refusal::NotFound(format!("there is no metadata {file:?}; see GET releases/metadata"));
    let bytes = releases(&api)?.file(&file).ok_or_else(unknown)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

/// `PUT releases/metadata {root?, targets?}`: takes what people signed; both at once count from the same moment on.
pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let Wanted { root, targets } = json(&headers, &body)?;
    if root.is_none() && targets.is_none() {
        return Err(Refusal::at("", "there is neither a root nor targets"));
    }
    api.hub.may(&caller.by(), Touch::Whole("signed releases"))?;
    if root.is_some() && caller.role < Role::Admin {
        return Err(Denied::Role { name: caller.name, has: caller.role, needs: Role::Admin }.into());
    }
    let releases = releases(&api)?.clone();
    let before = release::names(&releases.entries());
    let takes = releases.clone();
    api.query(move |_| Ok(takes.publish(root.as_deref(), targets.as_deref())?)).await?;
    let after = release::names(&releases.entries());
    let version = |of: &str| {
        let standing = releases.standings().into_iter().find(|standing| standing.role == of);
        standing.map_or(0, |standing| standing.version)
    };
    let detail = json!({
        "root": version("root"), "targets": version("targets"),
        "added": after.difference(&before).take(LISTED).collect::<Vec<_>>(),
        "removed": before.difference(&after).take(LISTED).collect::<Vec<_>>(),
    });
    let noted = Noted { action: "release.publish", target: "metadata".to_owned(), detail };
    api.hub.intend(&caller.by(), Intent::Noted(noted)).await?;
    Ok(Json(standing(&releases)?).into_response())
}

fn standing(releases: &Releases) -> Result<shapes::ReleaseMetadata, Refusal> {
    let (snapshot, timestamp) = releases.online_keys();
    let key = |key| serde_json::to_value(key).map_err(|error| Refusal::Internal(error.to_string()));
    let role = |standing: release::Standing| shapes::ReleaseRole {
        role: standing.role.to_owned(),
        version: standing.version,
        expires_ms: standing.expires_ms,
    };
    let roles: Vec<_> = releases.standings().into_iter().map(role).collect();
    Ok(shapes::ReleaseMetadata {
        initialised: !roles.is_empty(),
        next_targets: releases.next_targets(),
        roles,
        snapshot_key: key(snapshot)?,
        timestamp_key: key(timestamp)?,
    })
}

/// A release as `GET releases` shows it.
pub(crate) fn shown(release: &Release) -> shapes::Release {
    let target = |(target, entry): (&fleet_schemas::update::Target, &release::Entry)| shapes::ReleaseTarget {
        target: target.to_string(),
        arch: target.arch.as_str().to_owned(),
        digest: entry.digest.to_string(),
        length: entry.length,
        epoch: entry.custom.epoch,
        min_from: entry.custom.min_from.clone(),
        downgrade: entry.custom.downgrade,
        device_kind: entry.custom.device_kind.clone(),
        signed_ms: entry.custom.signed_ms,
    };
    shapes::Release {
        id: format!("{}@{}", release.name, release.version),
        kind: release.kind.to_string(),
        name: release.name.clone(),
        version: release.version.clone(),
        targets: release.targets.iter().map(target).collect(),
    }
}
