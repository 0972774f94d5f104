//! `genes`: what field agents published, by digest.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};

use super::{
    Api,
    problem::Refusal,
    query::Params,
    shapes::{self, Page},
};
use crate::store::state::GeneRow;

/// `GET genes?limit=&cursor=`: by digest.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    let (limit, after) = (params.limit()?, params.text("cursor").unwrap_or_default().to_owned());
    let mut rows = api.query(move |api| Ok(api.hub.state().genes(&after, limit + 1)?)).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let items: Vec<_> = rows.into_iter().map(|(digest, row)| shown(digest, row, false)).collect();
    let next = items.last().filter(|_| more).map(|gene| gene.digest.clone());
    Ok(Json(Page { items, next }).into_response())
}

/// `GET genes/{digest}`: with its JSON.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(digest): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let asked = digest.clone();
    let row = api.query(move |api| Ok(api.hub.state().gene(&asked)?)).await?;
    let unknown = || Refusal::NotFound(format!("there is no gene {digest:?}; `fleet gene ls` lists them"));
    let row = row.ok_or_else(unknown)?;
    Ok(Json(shown(digest, row, true)).into_response())
}

fn shown(digest: String, row: GeneRow, whole: bool) -> shapes::Gene {
    let gene: serde_json::Value = serde_json::from_str(&row.json).unwrap_or_default();
    let text = |key: &str| gene[key].as_str().map(ToOwned::to_owned);
    shapes::Gene {
        digest,
        asset_id: row.asset_id,
        verified: row.verified,
        id: text("id"),
        kind: text("type"),
        node: row.node,
        first_ms: row.first_ms,
        gene: whole.then_some(gene),
    }
}
