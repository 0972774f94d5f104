//! `nodes/{id}/approve`, `nodes/{id}/revoke` and DELETE of `nodes/{id}`: who of the nodes may come in.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;

use super::{
    Api, nodes,
    problem::Refusal,
    query::{Body, Params, json, node_id},
    rights::Caller,
    shapes,
};
use crate::core::{
    identity::{Change, Enrolment, Standing},
    registry::Intent,
};

/// Longest reason, in bytes: a sentence.
const REASON_BYTES: usize = 256;

/// The body of an approval: nothing.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = Nothing))]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// The body of a revocation.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = RevokeBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Why {
    #[serde(default)]
    reason: Option<String>,
}

/// `POST nodes/{id}/approve`: lets a node in that waits; the node is the answer.
pub(super) async fn approve(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let Nothing {} = json(&headers, &body)?;
    let id = node_id(&id)?;
    nodes::number(&api, &id)?;
    api.hub.intend(&caller.by(), Intent::Identity(Change::Approve(id.clone()))).await?;
    nodes::answer(&api, &id).await
}

/// `POST nodes/{id}/revoke {reason?}`: shuts a node out and cuts its session; the node is the answer.
pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let Why { reason } = json(&headers, &body)?;
    let reason = reason.unwrap_or_default();
    if reason.len() > REASON_BYTES || reason.chars().any(char::is_control) {
        let why = format!("at most {REASON_BYTES} bytes without control characters are allowed");
        return Err(Refusal::at("/reason", why));
    }
    let id = node_id(&id)?;
    nodes::number(&api, &id)?;
    api.hub.intend(&caller.by(), Intent::Identity(Change::Revoke { node: id.clone(), reason })).await?;
    nodes::answer(&api, &id).await
}

/// `DELETE nodes/{id}?data=keep|purge`: takes a node out of the fleet. Its history stays readable by its id, or goes.
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&["data"])?;
    let purge = match params.text("data") {
        Some("keep") => false,
        Some("purge") => true,
        Some(_) | None => return Err(Refusal::query("data", "say `keep` or `purge`")),
    };
    let id = node_id(&id)?;
    nodes::number(&api, &id)?;
    api.hub.intend(&caller.by(), Intent::RemoveNode(id.clone())).await?;
    if purge {
        // By itself: what was removed and could not be forgotten is removed still, and the same again forgets it.
        api.hub.intend(&caller.by(), Intent::ForgetNode(id)).await?;
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Where a node stands, as JSON.
#[must_use]
pub(super) fn shown(enrolment: Option<&Enrolment>) -> shapes::Enrolment {
    let Some(enrolment) = enrolment else { return shapes::Enrolment::default() };
    let not_after_ms = enrolment.certificate.as_ref().map(|certificate| certificate.not_after_ms);
    let (state, revoked_ms, reason) = match &enrolment.standing {
        Standing::Pending => ("pending", None, None),
        Standing::Enrolled => ("enrolled", None, None),
        Standing::Revoked { at_ms, reason } => {
            ("revoked", Some(*at_ms), Some(reason.clone()).filter(|reason| !reason.is_empty()))
        }
    };
    shapes::Enrolment { state: state.to_owned(), not_after_ms, revoked_ms, reason }
}
