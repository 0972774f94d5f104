//! `artifacts`: bytes by digest, pushed piece by piece.
//!
//! An upload goes on where it was cut (as tus 1.0 and draft-ietf-httpbis-resumable-upload have it): GET or HEAD tells
//! `Upload-Offset`, PATCH appends from there.

use std::sync::Arc;

use axum::{
    Json,
    body::Body as Stream,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse as _, Response},
};
use bytes::{Bytes, BytesMut};
use fleet_schemas::{
    limits,
    update::{Digest, Kind, Target, is_part},
};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::json;

use super::{
    Api,
    problem::Refusal,
    query::{Body, Params, content_type, json},
    rights::Caller,
    shapes::{self, Page},
};
use crate::{
    artifact::{self, Artifact, Offset, Pushed},
    core::{
        bounds::Touch,
        registry::{Intent, Noted},
    },
    release::Releases,
};

/// Bytes that are written to the disk at once.
const PIECE: usize = 1024 * 1024;
const OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const LENGTH: HeaderName = HeaderName::from_static("upload-length");
/// The types that the two protocols have for a piece.
const PIECES: [&str; 2] = ["application/offset+octet-stream", "application/partial-upload"];

/// The body of a POST.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = ArtifactBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// `skill|agent|firmware|device-firmware`.
    kind: String,
    name: String,
    version: String,
    arch: String,
    length: u64,
    sha256: String,
    min_from: Option<String>,
    device_kind: Option<String>,
}

/// Artifacts and releases of this hub.
pub(super) fn releases(api: &Api) -> Result<&Arc<Releases>, Refusal> {
    api.hub.releases().ok_or_else(|| Refusal::Unavailable("this hub keeps no releases".to_owned()))
}

/// A digest out of the path; what cannot be one is not found.
fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|_| {
        Refusal::NotFound(format!("there is no artifact {text:?}; `fleet artifact ls` lists them"))
    })
}

/// `GET artifacts?limit=&cursor=`: by digest.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    let (limit, after) = (params.limit()?, params.text("cursor").unwrap_or_default());
    let releases = releases(&api)?;
    let all = releases.artifacts().all();
    let mut rest =
        all.iter().map(|artifact| shown(artifact, releases)).filter(|one| one.digest.as_str() > after);
    let items: Vec<_> = rest.by_ref().take(limit).collect();
    let next = items.last().filter(|_| rest.next().is_some()).map(|one| one.digest.clone());
    Ok(Json(Page { items, next }).into_response())
}

/// `GET artifacts/{digest}`.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(text): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let releases = releases(&api)?;
    let digest = digest(&text)?;
    let artifact = releases.artifacts().get(&digest).ok_or(artifact::Error::Unknown(digest))?;
    Ok(Json(shown(&artifact, releases)).into_response())
}

/// `POST artifacts`: begins an upload, or tells where it stands; of bytes that are here only the name is kept.
pub(super) async fn begin(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let Wanted { kind, name, version, arch, length, sha256, min_from, device_kind } = json(&headers, &body)?;
    let kind: Kind = kind.parse().map_err(|error| Refusal::at("/kind", format!("{error}")))?;
    let target =
        Target::new(kind, &name, &version, &arch).map_err(|error| Refusal::at("", error.to_string()))?;
    if matches!(kind, Kind::Skill | Kind::Agent) && semver::Version::parse(&version).is_err() {
        return Err(Refusal::at("/version", "is none of semantic versioning, such as 1.4.2"));
    }
    let digest: Digest = sha256.parse().map_err(|error| Refusal::at("/sha256", format!("{error}")))?;
    if length == 0 || length > limits::ARTIFACT_BYTES {
        return Err(Refusal::at("/length", artifact::Error::Length.to_string()));
    }
    if min_from.as_deref().is_some_and(|version| !is_part(version)) {
        return Err(Refusal::at("/min_from", "is no version"));
    }
    if device_kind.as_deref().is_some_and(|kind| !is_part(kind)) {
        return Err(Refusal::at("/device_kind", "is no kind of device"));
    }
    let by = caller.by();
    let at_ms = api.hub.clock().now().wall_ms;
    let named = target.to_string();
    let pushed = Pushed { target, at_ms, by: by.clone(), min_from, device_kind };
    let stands = api.query(move |api| Ok(releases(api)?.artifacts().begin(digest, length, pushed)?)).await?;
    if stands.complete {
        note(&api, &by, "artifact.push", &digest, json!({ "target": named, "length": length })).await?;
    }
    Ok((StatusCode::CREATED, told(&digest, stands)).into_response())
}

/// `GET artifacts/{digest}/upload`: where it stands.
pub(super) async fn stands(
    State(api): State<Arc<Api>>,
    Path(text): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let digest = digest(&text)?;
    Ok(told(&digest, releases(&api)?.artifacts().stands(&digest)?).into_response())
}

/// `PATCH artifacts/{digest}/upload`: more bytes, from `Upload-Offset` on; the last ones make it an artifact.
pub(super) async fn append(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(text): Path<String>,
    params: Params,
    headers: HeaderMap,
    body: Stream,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    content_type(&headers, &PIECES)?;
    let offset =
        headers.get(OFFSET).and_then(|offset| offset.to_str().ok()).and_then(|text| text.parse().ok());
    let mut offset: u64 = offset.ok_or_else(|| {
        Refusal::BadRequest("Upload-Offset has to tell where these bytes belong, such as 0".to_owned())
    })?;
    let digest = digest(&text)?;
    let store = releases(&api)?.artifacts().clone();
    let upload = store.upload(&digest)?;
    let mut stands = upload.at();
    if stands.offset != offset {
        return Err(artifact::Error::Offset { has: stands.offset, asked: offset }.into());
    }
    let (mut frames, mut piece) = (body.into_data_stream(), BytesMut::new());
    loop {
        let frame = frames.next().await.transpose();
        // What came before it broke off is kept.
        let ended = !matches!(frame, Ok(Some(_)));
        if let Ok(Some(bytes)) = &frame {
            piece.extend_from_slice(bytes);
        }
        if (ended && !piece.is_empty()) || piece.len() >= PIECE {
            let (bytes, upload): (Bytes, _) = (piece.split().freeze(), upload.clone());
            let store = store.clone();
            stands = tokio::task::spawn_blocking(move || store.append(&upload, offset, &bytes)).await??;
            offset = stands.offset;
        }
        match frame {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                return Err(Refusal::BadRequest(format!(
                    "the bytes broke off: {error}; go on from {offset}"
                )));
            }
        }
    }
    if stands.offset == stands.length {
        let artifact = api.query(move |api| Ok(releases(api)?.artifacts().complete(&upload)?)).await?;
        stands.complete = true;
        let named: Vec<String> = artifact.pushed.iter().map(|pushed| pushed.target.to_string()).collect();
        let detail = json!({ "target": named.join(", "), "length": artifact.length });
        note(&api, &caller.by(), "artifact.push", &digest, detail).await?;
    }
    Ok(told(&digest, stands).into_response())
}

/// `DELETE artifacts/{digest}`: unless a release names it; also of an upload that is under way.
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(text): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let digest = digest(&text)?;
    api.hub.may(&caller.by(), Touch::Whole("artifacts"))?;
    api.query(move |api| Ok(releases(api)?.remove_artifact(&digest)?)).await?;
    note(&api, &caller.by(), "artifact.remove", &digest, serde_json::Value::Null).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn note(
    api: &Api,
    by: &str,
    action: &'static str,
    digest: &Digest,
    detail: serde_json::Value,
) -> Result<(), Refusal> {
    let noted = Noted { action, target: digest.to_string(), detail };
    Ok(api.hub.intend(by, Intent::Noted(noted)).await?)
}

fn told(digest: &Digest, stands: Offset) -> Response {
    let Offset { offset, length, complete } = stands;
    let upload = shapes::Upload { digest: digest.to_string(), offset, length, complete };
    let headers = [(OFFSET, HeaderValue::from(offset)), (LENGTH, HeaderValue::from(length))];
    (headers, Json(upload)).into_response()
}

fn shown(artifact: &Artifact, releases: &Releases) -> shapes::Artifact {
    let pushed = |pushed: &Pushed| shapes::Pushed {
        target: pushed.target.to_string(),
        at_ms: pushed.at_ms,
        by: pushed.by.clone(),
        min_from: pushed.min_from.clone(),
        device_kind: pushed.device_kind.clone(),
    };
    shapes::Artifact {
        digest: artifact.digest.to_string(),
        length: artifact.length,
        pushed: artifact.pushed.iter().map(pushed).collect(),
        released: releases.named(&artifact.digest).iter().map(ToString::to_string).collect(),
    }
}
