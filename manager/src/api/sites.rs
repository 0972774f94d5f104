//! `sites`: where nodes are, and in which time zone. A site is there while a node names it, or while it has a zone.

use std::{collections::BTreeMap, sync::Arc};

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
    shapes::{Page, Site},
};
use crate::core::{fleet::Fleet, registry::Intent};

/// The body of a PUT.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = SiteBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    tz: String,
}

/// All of them, by name.
pub(crate) fn all(fleet: &Fleet) -> BTreeMap<String, Site> {
    let mut sites: BTreeMap<String, Site> = BTreeMap::new();
    let known = fleet.nodes.values().filter_map(|node| node.record.site.as_deref());
    for name in known {
        match sites.get_mut(name) {
            Some(site) => site.nodes_count += 1,
            None => drop(sites.insert(name.to_owned(), Site { nodes_count: 1, ..named(name) })),
        }
    }
    for (name, tz) in &fleet.sites {
        sites.entry(name.clone()).or_insert_with(|| named(name)).tz = Some(tz.clone());
    }
    sites
}

fn named(name: &str) -> Site {
    Site { site: name.to_owned(), tz: None, nodes_count: 0 }
}

/// `GET sites?limit=&cursor=`: by name.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    let limit = params.limit()?;
    let after = params.text("cursor").unwrap_or_default();
    let mut rest = api.hub.with_fleet(all).into_values().filter(|site| site.site.as_str() > after);
    let items: Vec<Site> = rest.by_ref().take(limit).collect();
    let next = rest.next().and_then(|_| items.last()).map(|site| site.site.clone());
    Ok(Json(Page { items, next }).into_response())
}

fn found(api: &Api, name: &str) -> Option<Site> {
    api.hub.with_fleet(all).remove(name)
}

/// `GET sites/{name}`.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let unknown = || Refusal::NotFound(format!("there is no site {name:?}; `fleet site ls` lists them"));
    Ok(Json(found(&api, &name).ok_or_else(unknown)?).into_response())
}

/// `PUT sites/{name}` with `{tz}`; answers after commit.
pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(name): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let Wanted { tz } = json(&headers, &body)?;
    api.hub.intend(&caller.by(), Intent::PutSite { name: name.clone(), tz: tz.clone() }).await?;
    let site = found(&api, &name).unwrap_or(Site { tz: Some(tz), ..named(&name) });
    Ok(Json(site).into_response())
}

/// `DELETE sites/{name}`: its zone is forgotten; its nodes stay.
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(name): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    api.hub.intend(&caller.by(), Intent::RemoveSite(name)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
