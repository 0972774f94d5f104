//! `join-tokens`: what machines join with. The secret is in the answer that makes a token, and nowhere else.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use fleet_schemas::{NodeId, enrol::JoinToken};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{
    Api,
    problem::Refusal,
    query::{Body, Params, json},
    rights::Caller,
    shapes::{self, Page},
};
use crate::{
    clock,
    core::{
        identity::{Change, Token},
        registry::Intent,
    },
};

/// Life of a token unless asked otherwise: long enough to walk to a machine.
const TTL_S: u64 = 15 * 60;
/// Longest life: a batch of boards may lie in a store room for a year.
const TTL_MOST_S: u64 = 366 * 24 * 3_600;
/// Most uses; the users are listed in one row.
const USES_MOST: u32 = 10_000;
/// Characters of a token's id: 50 bits, and short enough to be read out.
const ID_CHARS: usize = 10;

/// The body of a POST.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = JoinTokenBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    #[serde(default)]
    ttl_s: Option<u64>,
    #[serde(default)]
    uses: Option<u32>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    approve: bool,
    #[serde(default)]
    replace: Option<String>,
}

/// `POST join-tokens`: 201 with the token, shown this once.
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
    api.keys.create(&headers, &caller, &[b"join-tokens", &body], made).await
}

async fn make(api: &Api, caller: &Caller, wanted: Wanted) -> Result<shapes::NewJoinToken, Refusal> {
    let Wanted { ttl_s, uses, labels, approve, replace } = wanted;
    let (ttl_s, uses) = (ttl_s.unwrap_or(TTL_S), uses.unwrap_or(1));
    if ttl_s == 0 || ttl_s > TTL_MOST_S {
        return Err(Refusal::at("/ttl_s", format!("is not within 1 to {TTL_MOST_S}")));
    }
    if uses == 0 || uses > USES_MOST {
        return Err(Refusal::at("/uses", format!("is not within 1 to {USES_MOST}")));
    }
    let replace = replace.as_deref().map(|text| known(api, text)).transpose()?;
    let (now, in_doubt) = api.hub.clock().read();
    if in_doubt {
        return Err(Refusal::Unavailable(
            "nothing is issued while the hub's clock is in doubt: `fleet status` says why and what to do"
                .to_owned(),
        ));
    }
    let secret = clock::random::<32>();
    let token = Token {
        id: id(&clock::random()),
        secret: Sha256::digest(secret).into(),
        created_ms: now.wall_ms,
        created_by: caller.name.clone(),
        expires_ms: now.wall_ms.saturating_add(i64::try_from(ttl_s * 1_000).unwrap_or(i64::MAX)),
        uses,
        labels,
        approve,
        replace,
        used_by: Vec::new(),
    };
    let text = JoinToken { pin: api.config.pki.pin(), id: token.id.clone(), secret }.to_string();
    api.hub.intend(&caller.by(), Intent::Identity(Change::PutToken(token.clone()))).await?;
    Ok(shapes::NewJoinToken {
        id: token.id,
        token: text,
        expires_ms: token.expires_ms,
        uses,
        labels: token.labels,
        approve,
        replace: token.replace.map(|node| node.to_string()),
    })
}

/// The node that is to be replaced.
fn known(api: &Api, text: &str) -> Result<NodeId, Refusal> {
    let node = NodeId::parse(text).map_err(|error| Refusal::at("/replace", error.to_string()))?;
    let is_known = api.hub.with_fleet(|fleet| fleet.nodes.contains_key(&node))
        || api.hub.with_identities(|identities| identities.enrolments.contains_key(&node));
    if is_known {
        Ok(node)
    } else {
        Err(Refusal::at("/replace", format!("there is no node {text:?}; `fleet node ls` lists them")))
    }
}

/// A token's id, of letters and digits that are not mistaken for each other.
pub(super) fn id(random: &[u8; ID_CHARS]) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    random.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect()
}

/// `GET join-tokens?limit=&cursor=`: by id; ended ones are listed for a week.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    Ok(Json(read(&api, params.text("cursor").unwrap_or_default(), params.limit()?)).into_response())
}

/// A page of the join tokens, by id, after one of them.
pub(crate) fn read(api: &Api, after: &str, limit: usize) -> Page<shapes::JoinToken> {
    let now_ms = api.hub.clock().now().wall_ms;
    let (items, more) = api.hub.with_identities(|identities| {
        let mut rest = identities.tokens.values().filter(|token| token.id.as_str() > after);
        let items: Vec<_> = rest.by_ref().take(limit).map(|token| shown(token, now_ms)).collect();
        (items, rest.next().is_some())
    });
    let next = items.last().filter(|_| more).map(|token| token.id.clone());
    Page { items, next }
}

fn shown(token: &Token, now_ms: i64) -> shapes::JoinToken {
    let state = if token.used_by.len() >= token.uses as usize {
        "used"
    } else if token.expires_ms <= now_ms {
        "expired"
    } else {
        "active"
    };
    shapes::JoinToken {
        id: token.id.clone(),
        state: state.to_owned(),
        created_ms: token.created_ms,
        created_by: token.created_by.clone(),
        expires_ms: token.expires_ms,
        uses: token.uses,
        used_by: token.used_by.iter().map(ToString::to_string).collect(),
        labels: token.labels.clone(),
        approve: token.approve,
        replace: token.replace.as_ref().map(ToString::to_string),
    }
}

/// `DELETE join-tokens/{id}`; nodes that joined by it stay.
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    api.hub.intend(&caller.by(), Intent::Identity(Change::RemoveToken(id))).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_that_a_token_may_carry() {
        let id = id(&[0, 31, 32, 255, 7, 8, 9, 10, 11, 12]);
        assert_eq!(id.len(), ID_CHARS);
        let token = JoinToken { pin: fleet_schemas::enrol::Pin([1; 32]), id, secret: [2; 32] };
        assert_eq!(token.to_string().parse(), Ok(token));
    }
}
