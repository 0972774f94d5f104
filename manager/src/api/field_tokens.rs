//! `field-tokens`: what agents come with that speak a field dialect over HTTP. The text is in the answer that makes a
//! token, and nowhere else.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fleet_schemas::NodeId;
use serde::Deserialize;

use super::{
    Api, join_tokens,
    problem::Refusal,
    query::{Body, Params, json},
    rights::Caller,
    shapes::{self, Page},
    token,
};
use crate::{
    clock,
    core::{
        identity::{Change, FieldToken},
        registry::Intent,
    },
};

/// Begins the text of a field token; its id and its secret follow, each after a dot.
pub(crate) const PREFIX: &str = "fleet-field";
/// Longest life of a token that ends.
const TTL_MOST_S: u64 = 10 * 366 * 24 * 3_600;

/// The body of a POST.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = FieldTokenBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    #[serde(default)]
    node: Option<String>,
    #[serde(default)]
    ttl_s: Option<u64>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// `POST field-tokens {node?, ttl_s?, labels?}`: 201 with the token, shown this once.
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
    api.keys.create(&headers, &caller, &[b"field-tokens", &body], made).await
}

async fn make(api: &Api, caller: &Caller, wanted: Wanted) -> Result<shapes::NewFieldToken, Refusal> {
    let Wanted { node, ttl_s, labels } = wanted;
    if ttl_s.is_some_and(|ttl_s| ttl_s == 0 || ttl_s > TTL_MOST_S) {
        return Err(Refusal::at("/ttl_s", format!("is not within 1 to {TTL_MOST_S}")));
    }
    let node = node.as_deref().map(NodeId::parse).transpose();
    let node = node.map_err(|error| Refusal::at("/node", error.to_string()))?;
    let now_ms = api.hub.clock().now().wall_ms;
    let ends = |ttl_s: u64| now_ms.saturating_add(i64::try_from(ttl_s * 1_000).unwrap_or(i64::MAX));
    let id = join_tokens::id(&clock::random());
    let text = format!("{PREFIX}.{id}.{}", URL_SAFE_NO_PAD.encode(clock::random::<32>()));
    let token = FieldToken {
        id: id.clone(),
        text: token::hash(&text),
        created_ms: now_ms,
        created_by: caller.name.clone(),
        expires_ms: ttl_s.map(ends),
        labels,
        named: node.is_some(),
        node,
        bound_ms: None,
    };
    api.hub.intend(&caller.by(), Intent::Identity(Change::PutField(token.clone()))).await?;
    Ok(shapes::NewFieldToken {
        id,
        token: text,
        node: token.node.as_ref().map(ToString::to_string),
        expires_ms: token.expires_ms,
        labels: token.labels,
    })
}

/// `GET field-tokens?limit=&cursor=`: by id.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    Ok(Json(read(&api, params.text("cursor").unwrap_or_default(), params.limit()?)).into_response())
}

/// A page of the tokens of agents in the field, by id, after one of them.
pub(crate) fn read(api: &Api, after: &str, limit: usize) -> Page<shapes::FieldToken> {
    let now_ms = api.hub.clock().now().wall_ms;
    let (items, more) = api.hub.with_identities(|identities| {
        let mut rest = identities.field.values().filter(|token| token.id.as_str() > after);
        let items: Vec<_> = rest.by_ref().take(limit).map(|token| shown(token, now_ms)).collect();
        (items, rest.next().is_some())
    });
    let next = items.last().filter(|_| more).map(|token| token.id.clone());
    Page { items, next }
}

fn shown(token: &FieldToken, now_ms: i64) -> shapes::FieldToken {
    let state = if token.expires_ms.is_some_and(|ends| ends <= now_ms) {
        "expired"
    } else if token.bound_ms.is_some() {
        "bound"
    } else {
        "unused"
    };
    shapes::FieldToken {
        id: token.id.clone(),
        state: state.to_owned(),
        node: token.node.as_ref().map(ToString::to_string),
        bound_ms: token.bound_ms,
        created_ms: token.created_ms,
        created_by: token.created_by.clone(),
        expires_ms: token.expires_ms,
        labels: token.labels.clone(),
    }
}

/// `DELETE field-tokens/{id}`: whoever comes with it is refused from now on; its node stays listed.
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    api.hub.intend(&caller.by(), Intent::Identity(Change::RemoveField(id))).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
