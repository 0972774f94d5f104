//! `operators` and `whoami`: who may use this API. A token is in the answer that makes it, and nowhere else.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;

use super::{
    Api,
    problem::Refusal,
    query::{Body, Params, json},
    rights::Caller,
    shapes::{self, Page},
    token,
};
use crate::{
    clock,
    core::{
        identity::{Change, Operator, Role},
        registry::Intent,
    },
};

/// Longest life of a token that ends.
const TTL_MOST_S: u64 = 10 * 366 * 24 * 3_600;

/// The body of a POST.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = OperatorBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    name: String,
    role: Role,
    #[serde(default)]
    ttl_s: Option<u64>,
    #[serde(default)]
    on: Option<String>,
}

/// `GET whoami`: the holder of the token.
pub(super) async fn whoami(caller: Caller, params: Params) -> Result<Response, Refusal> {
    params.only(&[])?;
    let Caller { name, role, expires_ms, token: _, on } = caller;
    Ok(Json(shapes::Whoami { name, role: role.to_string(), expires_ms, on }).into_response())
}

/// `POST operators {name, role, ttl_s?, on?}`: 201 with the token, shown this once.
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let wanted: Wanted = json(&headers, &body)?;
    let made = make(&api, &caller, wanted);
    api.keys.create(&headers, &caller, &[b"operators", &body], made).await
}

async fn make(api: &Api, caller: &Caller, wanted: Wanted) -> Result<shapes::NewOperator, Refusal> {
    let Wanted { name, role, ttl_s, on } = wanted;
    if ttl_s.is_some_and(|ttl_s| ttl_s == 0 || ttl_s > TTL_MOST_S) {
        return Err(Refusal::at("/ttl_s", format!("is not within 1 to {TTL_MOST_S}")));
    }
    let now_ms = api.hub.clock().now().wall_ms;
    let ends = |ttl_s: u64| now_ms.saturating_add(i64::try_from(ttl_s * 1_000).unwrap_or(i64::MAX));
    let expires_ms = ttl_s.map(ends);
    let text = token::text(&clock::random());
    let operator = Operator {
        name: name.clone(),
        role,
        token: token::hash(&text),
        created_ms: now_ms,
        created_by: caller.name.clone(),
        expires_ms,
        on: on.clone(),
        used_ms: None,
    };
    api.hub.intend(&caller.by(), Intent::Identity(Change::PutOperator(operator))).await?;
    Ok(shapes::NewOperator { name, role: role.to_string(), token: text, expires_ms, on })
}

/// `GET operators?limit=&cursor=`: by name.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    Ok(Json(read(&api, params.text("cursor").unwrap_or_default(), params.limit()?)).into_response())
}

/// A page of the operators, by name, after one of them.
pub(crate) fn read(api: &Api, after: &str, limit: usize) -> Page<shapes::Operator> {
    let now_ms = api.hub.clock().now().wall_ms;
    let (items, more) = api.hub.with_identities(|identities| {
        let mut rest = identities.operators.values().filter(|operator| operator.name.as_str() > after);
        let items: Vec<_> = rest.by_ref().take(limit).map(|operator| shown(api, operator, now_ms)).collect();
        (items, rest.next().is_some())
    });
    let next = items.last().filter(|_| more).map(|operator| operator.name.clone());
    Page { items, next }
}

fn shown(api: &Api, operator: &Operator, now_ms: i64) -> shapes::Operator {
    let ended = operator.expires_ms.is_some_and(|ends| ends <= now_ms);
    shapes::Operator {
        name: operator.name.clone(),
        role: operator.role.to_string(),
        state: if ended { "expired" } else { "active" }.to_owned(),
        created_ms: operator.created_ms,
        created_by: operator.created_by.clone(),
        expires_ms: operator.expires_ms,
        on: operator.on.clone(),
        last_used_ms: api.uses.last(operator),
    }
}

/// `DELETE operators/{name}`: its token is none from now on, and its streams end.
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(name): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    api.hub.intend(&caller.by(), Intent::Identity(Change::RemoveOperator(name))).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
