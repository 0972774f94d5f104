//! `events` and `nodes/{id}/events`: what happened, newest first.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};

use super::{
    Api, any, nodes,
    problem::Refusal,
    query::{Params, node_id},
    shapes,
};
use crate::{consume::StoredEvent, store::state::EventFilter};

/// `GET events?limit=&cursor=`.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    page(api, params, None).await
}

/// `GET nodes/{id}/events?limit=&cursor=`.
pub(super) async fn of_node(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    let number = nodes::number(&api, &node_id(&id)?)?;
    page(api, params, Some(number)).await
}

async fn page(api: Arc<Api>, params: Params, node: Option<u32>) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    Ok(Json(read(&api, node, params.read("cursor")?, params.limit()?).await?).into_response())
}

/// A page of the events of one node or of all, newest first.
pub(crate) async fn read(
    api: &Arc<Api>,
    node: Option<u32>,
    before: Option<u64>,
    limit: usize,
) -> Result<shapes::Page<shapes::Event>, Refusal> {
    // One more than asked tells whether there is a next page.
    let filter = EventFilter { node, before, after: None, limit: limit + 1 };
    let mut found = api.query(move |api| Ok(api.hub.events(filter)?)).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|event| event.number.to_string());
    let items = found.iter().map(event).collect();
    Ok(shapes::Page { items, next })
}

/// An event's JSON.
#[must_use]
pub(super) fn event(stored: &StoredEvent) -> shapes::Event {
    let event = &stored.event;
    shapes::Event {
        node: stored.node.to_string(),
        time_ms: stored.time_ms,
        stored_ms: stored.recv_ms,
        kind: event.kind.to_string(),
        severity: event.severity.as_str().to_owned(),
        message: event.message.clone(),
        device: event.device.as_ref().map(ToString::to_string),
        id: event.id.clone(),
        data: event.data.as_ref().map(any::json),
    }
}
