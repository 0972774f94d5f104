//! `groups`: saved selectors.

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
    query::{Body, Params, content_type},
    rights::Caller,
    selector::Selector,
    shapes::{Group, Page},
};
use crate::core::{fleet::Fleet, registry::Intent};

/// The body of a PUT.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = GroupBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    selector: String,
}

fn count(fleet: &Fleet, name: &str, saved: &str) -> Group {
    // What is saved was parsed before; a selector that a newer hub saved selects nothing here.
    let nodes_count = Selector::parse(saved)
        .map_or(0, |selector| fleet.nodes.values().filter(|node| selector.matches(&***node)).count());
    Group { name: name.to_owned(), selector: saved.to_owned(), nodes_count }
}

/// `GET groups`: by name, all on one page; there are at most 1,000.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    let limit = params.limit()?;
    let after = params.text("cursor").unwrap_or_default().to_owned();
    let page = move |api: &Api| {
        let (saved, more) = api.hub.with_fleet(|fleet| {
            let mut rest = fleet.groups.iter().filter(|(name, _)| name.as_str() > after.as_str());
            let saved: Vec<_> =
                rest.by_ref().take(limit).map(|(name, saved)| (name.clone(), saved.clone())).collect();
            (saved, rest.next().is_some())
        });
        // One after the other: each looks at all nodes, and the consumer waits meanwhile.
        let counted =
            |(name, saved): &(String, String)| api.hub.with_fleet(|fleet| count(fleet, name, saved));
        let items: Vec<Group> = saved.iter().map(counted).collect();
        let next = items.last().filter(|_| more).map(|group| group.name.clone());
        Ok(Page { items, next })
    };
    Ok(Json(api.query(page).await?).into_response())
}

fn found(api: &Api, name: &str) -> Result<Group, Refusal> {
    let found = api.hub.with_fleet(|fleet| fleet.groups.get(name).map(|saved| count(fleet, name, saved)));
    found.ok_or_else(|| Refusal::NotFound(format!("there is no group {name:?}; `fleet group ls` lists them")))
}

/// `GET groups/{name}`.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    Ok(Json(found(&api, &name)?).into_response())
}

/// `PUT groups/{name}` with `{selector}`; answers after commit.
pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(name): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    content_type(&headers, &["application/json"])?;
    let Wanted { selector } = serde_json::from_slice(&body)
        .map_err(|error| Refusal::BadRequest(format!("the body is not {{\"selector\": …}}: {error}")))?;
    Selector::parse(&selector).map_err(|error| Refusal::at("/selector", error.to_string()))?;
    let is_new = found(&api, &name).is_err();
    api.hub.intend(&caller.by(), Intent::PutGroup { name: name.clone(), selector }).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(found(&api, &name)?)).into_response())
}

/// `DELETE groups/{name}`; the nodes stay.
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(name): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    api.hub.intend(&caller.by(), Intent::RemoveGroup(name)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
