//! `log-level`: how much the hub logs, by module, changed while it runs.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::{
    Api,
    problem::Refusal,
    query::{Body, Params, json},
    rights::Caller,
    shapes,
};
use crate::{
    core::registry::{Intent, Noted},
    log,
};

/// The body of a PUT.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = LogLevelBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    level: String,
}

/// `GET log-level`.
pub(super) async fn get(params: Params) -> Result<Response, Refusal> {
    params.only(&[])?;
    Ok(Json(shown()).into_response())
}

/// `PUT log-level {level}`: in force at once, until the hub starts again; answers as `GET`.
pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let Wanted { level } = json(&headers, &body)?;
    log::check(&level).map_err(|why| Refusal::at("/level", why))?;
    let noted = Noted { action: "log.level", target: "hub".to_owned(), detail: json!({ "level": level }) };
    api.hub.intend(&caller.by(), Intent::Noted(noted)).await?;
    log::turn(&level).map_err(|why| Refusal::at("/level", why))?;
    Ok(Json(shown()).into_response())
}

fn shown() -> shapes::LogLevel {
    let (level, at_start) = log::level();
    shapes::LogLevel { level, at_start }
}
