//! `config`: the layers of settings, their revisions, the schema. Changes say which nodes follow, also before they are
//! made.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequestParts, RawPathParams, State},
    http::{HeaderMap, HeaderValue, header, request::Parts},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Api,
    idempotency::Turn,
    problem::Refusal,
    query::{Body, Params, content_type},
    rights::Caller,
    shapes::{self, config as shape},
};
use crate::{
    core::{
        config::{self, ConfigError, Edit, Edited, Layer},
        registry::{Intent, RegistryError},
    },
    hub::IntentError,
};

mod node;
mod show;

pub(crate) use node::shown as read_of;
pub(super) use node::{get as of_node, retry};

/// Times that a change is decided anew because another was faster, where the caller expects no revision.
const ATTEMPTS: usize = 5;

/// The layer in a path, and the revision, where one stands there.
pub(super) struct At {
    layer: Layer,
    revision: Option<u64>,
}

impl FromRequestParts<Arc<Api>> for At {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Refusal> {
        let none = || Refusal::NotFound("layers are fleet, group/NAME, site/NAME and node/ID".to_owned());
        let params = RawPathParams::from_request_parts(parts, api).await.map_err(|_| none())?;
        let param = |name: &str| params.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
        let layer = match (param("kind"), param("name")) {
            (Some(kind), Some(name)) => format!("{kind}/{name}").parse().map_err(|_| none())?,
            (Some(_) | None, None) | (None, Some(_)) => Layer::Fleet,
        };
        let number = |text: &str| text.parse().map_err(|_| no_revision(text));
        Ok(Self { layer, revision: param("revision").map(number).transpose()? })
    }
}

/// The body of a rollback.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = RollbackBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Back {
    to: u64,
}

fn no_revision(number: impl std::fmt::Display) -> Refusal {
    Refusal::NotFound(format!(
        "revision {number} is not kept; `fleet config history LAYER` lists those that are"
    ))
}

/// The revision that a change is meant to follow: by `If-Match: "N"` or `?revision=N`.
fn expected(headers: &HeaderMap, params: &Params) -> Result<Option<u64>, Refusal> {
    let asked: Option<u64> = params.read("revision")?;
    let Some(tag) = headers.get(header::IF_MATCH) else { return Ok(asked) };
    let tag = tag.to_str().unwrap_or_default().trim();
    if tag == "*" {
        return Ok(asked);
    }
    let number = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).and_then(|tag| tag.parse().ok());
    let number =
        number.ok_or_else(|| Refusal::BadRequest("If-Match is no revision such as \"3\"".to_owned()))?;
    if asked.is_some_and(|asked| asked != number) {
        return Err(Refusal::BadRequest("If-Match and ?revision= contradict each other".to_owned()));
    }
    Ok(Some(number))
}

/// A body that is a JSON object; anything else is refused where it would be stored.
fn doc(headers: &HeaderMap, kinds: &[&str], body: &[u8]) -> Result<Value, Refusal> {
    content_type(headers, kinds)?;
    serde_json::from_slice(body)
        .map_err(|error| Refusal::BadRequest(format!("the body is not JSON: {error}")))
}

fn tagged<T: serde::Serialize>(value: &T, revision: u64) -> Response {
    let mut response = Json(value).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{revision}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// `GET config?limit=&cursor=`: the layers that there are, lowest first.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    let limit = params.limit()?;
    let after: Option<Layer> = params.read("cursor")?;
    let page = api
        .query(move |api| Ok(api.hub.with_fleet(|fleet| show::list(fleet, after.as_ref(), limit))))
        .await?;
    Ok(Json(page).into_response())
}

/// `GET config/{layer}`: its document, its revision (also as `ETag`), and who follows. One that was never set is empty.
pub(super) async fn get(State(api): State<Arc<Api>>, at: At, params: Params) -> Result<Response, Refusal> {
    params.only(&[])?;
    let layer = at.layer;
    let shown = api.query(move |api| api.hub.with_fleet(|fleet| show::layer(fleet, &layer))).await?;
    Ok(tagged(&shown, shown.revision))
}

/// `PUT config/{layer}?dry_run=&revision=`: makes the body the layer's document.
pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    at: At,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&["dry_run", "revision"])?;
    let doc = doc(&headers, &["application/json"], &body)?;
    let edit = Edit::Put { layer: at.layer, doc, expected: expected(&headers, &params)? };
    change(&api, &caller, edit, params.flag("dry_run")?).await
}

/// `PATCH config/{layer}?dry_run=&revision=`: a merge patch of the layer's document.
pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    caller: Caller,
    at: At,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&["dry_run", "revision"])?;
    let patch = doc(&headers, &["application/merge-patch+json", "application/json"], &body)?;
    let edit = Edit::Patch { layer: at.layer, patch, expected: expected(&headers, &params)? };
    change(&api, &caller, edit, params.flag("dry_run")?).await
}

/// `DELETE config/{layer}?dry_run=&revision=`: empties the layer; its revisions stay, and it can return to them.
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    at: At,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    params.only(&["dry_run", "revision"])?;
    let expected = expected(&headers, &params)?;
    change(
        &api,
        &caller,
        Edit::Put { layer: at.layer, doc: config::empty(), expected },
        params.flag("dry_run")?,
    )
    .await
}

/// `POST config/{layer}/rollback?dry_run=&revision=` with `{to}`: makes an earlier revision's document the newest.
pub(super) async fn rollback(
    State(api): State<Arc<Api>>,
    caller: Caller,
    at: At,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&["dry_run", "revision"])?;
    let Back { to } = super::query::json(&headers, &body)?;
    let dry_run = params.flag("dry_run")?;
    let expected = expected(&headers, &params)?;
    let layer = at.layer;
    let name = layer.to_string();
    let said = format!("{dry_run} {expected:?}");
    let claim = match api.keys.turn(
        &headers,
        &caller,
        &[b"config/rollback", name.as_bytes(), said.as_bytes(), &body],
    )? {
        Turn::Again(answer) => {
            return Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response());
        }
        Turn::First(claim) => claim,
    };
    let wanted = layer.clone();
    let found = api.query(move |api| Ok(api.hub.state().revision(Some(&wanted), to)?)).await?;
    let doc = found.ok_or_else(|| no_revision(to))?.doc;
    let changed = changed(&api, &caller, Edit::Return { layer, to, doc, expected }, dry_run).await?;
    let answer = serde_json::to_vec(&changed).map_err(|error| Refusal::Internal(error.to_string()))?;
    claim.done(&Bytes::from(answer));
    Ok(tagged(&changed, changed.revision))
}

/// `GET config/{layer}/revisions?limit=&cursor=`: those that are kept, newest first, without their documents.
pub(super) async fn revisions(
    State(api): State<Arc<Api>>,
    at: At,
    params: Params,
) -> Result<Response, Refusal> {
    listed(&api, Some(at.layer), &params).await
}

/// `GET config-schema/revisions?limit=&cursor=`: as of a layer.
pub(super) async fn schema_revisions(
    State(api): State<Arc<Api>>,
    params: Params,
) -> Result<Response, Refusal> {
    listed(&api, None, &params).await
}

async fn listed(api: &Arc<Api>, layer: Option<Layer>, params: &Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    let (limit, before) = (params.limit()?, params.read("cursor")?);
    let mut found =
        api.query(move |api| Ok(api.hub.state().revisions(layer.as_ref(), before, limit + 1)?)).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|revision| revision.number.to_string());
    let items = found.into_iter().map(|revision| shape::Revision { doc: None, ..show::revision(revision) });
    Ok(Json(shapes::Page { items: items.collect(), next }).into_response())
}

/// `GET config/{layer}/revisions/{revision}`: one, with its document.
pub(super) async fn revision(
    State(api): State<Arc<Api>>,
    at: At,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let number = at.revision.unwrap_or_default();
    let found = api.query(move |api| Ok(api.hub.state().revision(Some(&at.layer), number)?)).await?;
    Ok(Json(show::revision(found.ok_or_else(|| no_revision(number))?)).into_response())
}

/// `GET config-schema`: what every node's document has to satisfy.
pub(super) async fn schema(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&[])?;
    let shown = api.hub.with_fleet(|fleet| show::schema(fleet.config.settings().schema.as_ref()));
    Ok(tagged(&shown, shown.revision))
}

/// `PUT config-schema?dry_run=&revision=`: makes the body the schema. One that a node's document breaks is refused.
pub(super) async fn put_schema(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&["dry_run", "revision"])?;
    let schema = Some(doc(&headers, &["application/schema+json", "application/json"], &body)?);
    let edit = Edit::Schema { schema, expected: expected(&headers, &params)? };
    change(&api, &caller, edit, params.flag("dry_run")?).await
}

/// `DELETE config-schema?dry_run=&revision=`: any document will do.
pub(super) async fn remove_schema(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    params.only(&["dry_run", "revision"])?;
    let edit = Edit::Schema { schema: None, expected: expected(&headers, &params)? };
    change(&api, &caller, edit, params.flag("dry_run")?).await
}

async fn change(api: &Arc<Api>, caller: &Caller, edit: Edit, dry_run: bool) -> Result<Response, Refusal> {
    let changed = changed(api, caller, edit, dry_run).await?;
    Ok(tagged(&changed, changed.revision))
}

/// Decides on a change, makes it as it was decided, and tells what it does.
async fn changed(
    api: &Arc<Api>,
    caller: &Caller,
    edit: Edit,
    dry_run: bool,
) -> Result<shape::Changed, Refusal> {
    let by = caller.by();
    let strict = edit.expected().is_some();
    for _ in 0..ATTEMPTS {
        let (wanted, who, now_ms) = (edit.clone(), by.clone(), api.hub.clock().now().wall_ms);
        let decided = api
            .query(move |api| {
                api.hub
                    .with_fleet(|fleet| {
                        let edited = config::decide(fleet, &wanted, &who, now_ms)?;
                        let settings = fleet.config.settings();
                        let current = match &edited.layer {
                            Some(layer) => settings.current(layer),
                            None => settings.schema.as_ref(),
                        };
                        let doc = current.map_or_else(config::empty, |current| current.doc.clone());
                        Ok::<_, ConfigError>((edited, doc))
                    })
                    .map_err(Refusal::from)
            })
            .await?;
        let (edited, doc): (Edited, Value) = decided;
        if edited.revision.is_some() {
            let edit = Box::new(edit.clone().expecting(edited.base));
            let intent = Intent::EditConfig { edit, by: by.clone() };
            if dry_run {
                api.hub.within(&by, intent)?;
                return Ok(show::changed(edited, doc, dry_run));
            }
            match api.hub.intend(&by, intent).await {
                Err(IntentError::Registry(RegistryError::Config(ConfigError::Conflict { .. })))
                    if !strict =>
                {
                    continue;
                }
                made => made?,
            }
        }
        return Ok(show::changed(edited, doc, dry_run));
    }
    Err(Refusal::Conflict("others change this layer all the time; try again".to_owned()))
}
