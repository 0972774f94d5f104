//! `alerts`, `silences` and `receivers`: what fires, who takes care of it, who is told.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use fleet_schemas::{DeviceId, event::Severity, rule::RuleId};
use serde::Deserialize;

use super::{
    Api, nodes,
    problem::Refusal,
    query::{Body, Params, json, node_id},
    rights::Caller,
    shapes::{self, Page},
};
use crate::{
    alerts::{self, Alerts},
    core::{
        alert::{Alert, Silence, Stage},
        bounds::Touch,
        zones,
    },
    store::state::AlertFilter,
};

/// Longest comment, in bytes.
const COMMENT_BYTES: usize = 1_024;

impl Api {
    /// The engine of alerts.
    pub(super) fn alerts(&self) -> Result<&Alerts, Refusal> {
        self.hub.alerts().ok_or_else(|| Refusal::Unavailable("alerts are not judged here".to_owned()))
    }
}

/// Reads `warning` and what else a severity is called.
fn severity(text: &str) -> Result<Severity, Refusal> {
    let read = serde_json::from_value(serde_json::Value::from(text));
    read.map_err(|_| Refusal::query("severity", "is none of info, warning, error, critical"))
}

/// Which alerts, in the words of a query.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wants<'a> {
    /// A list of `pending,firing,resolved`, or `open`.
    pub(crate) state: Option<&'a str>,
    /// The least severity.
    pub(crate) severity: Option<&'a str>,
    /// Of this rule.
    pub(crate) rule: Option<&'a str>,
    /// At this node.
    pub(crate) node: Option<&'a str>,
    /// At this site.
    pub(crate) site: Option<&'a str>,
    /// Without those that another stands for.
    pub(crate) causes: bool,
    /// Where the page begins.
    pub(crate) cursor: Option<&'a str>,
    /// At most so many.
    pub(crate) limit: usize,
}

/// `GET alerts?state=&severity=&rule=&node=&site=&causes=&limit=&cursor=`: newest first. `state` is a list of
/// `pending,firing,resolved`, or `open`; `severity` the least; `causes=true` leaves out those that another stands for.
pub(super) async fn list(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["state", "severity", "rule", "node", "site", "causes", "limit", "cursor"])?;
    let wants = Wants {
        state: params.text("state"),
        severity: params.text("severity"),
        rule: params.text("rule"),
        node: params.text("node"),
        site: params.text("site"),
        causes: params.flag("causes")?,
        cursor: params.text("cursor"),
        limit: params.limit()?,
    };
    Ok(Json(read(&api, wants).await?).into_response())
}

/// A page of alerts, newest first.
pub(crate) async fn read(api: &Arc<Api>, wants: Wants<'_>) -> Result<Page<shapes::Alert>, Refusal> {
    let stages = match wants.state {
        None => Vec::new(),
        Some("open") => vec![Stage::Pending, Stage::Firing],
        Some(states) => {
            let known = |state: &str| {
                Stage::parse(state).ok_or_else(|| {
                    Refusal::query("state", format!("{state:?} is none of pending, firing, resolved, open"))
                })
            };
            states.split(',').map(known).collect::<Result<_, _>>()?
        }
    };
    let rule = wants.rule.map(RuleId::parse).transpose();
    let node = wants.node.map(node_id).transpose()?;
    let before = wants.cursor.map(str::parse).transpose();
    let filter = AlertFilter {
        stages,
        node: node.map(|node| nodes::number(api, &node)).transpose()?,
        rule: rule.map_err(|why| Refusal::query("rule", why))?,
        site: wants.site.map(str::to_owned),
        least: wants.severity.map(severity).transpose()?,
        causes: wants.causes,
        before: before.map_err(|_| Refusal::query("cursor", "is none that this list gave"))?,
        limit: wants.limit,
    };
    let (found, next) = api.query(move |api| Ok(api.hub.state().alerts(&filter)?)).await?;
    let items = found.iter().map(|alert| told(api, alert)).collect();
    Ok(Page { items, next: next.map(|number: u64| number.to_string()) })
}

/// An alert, with the zone of its site.
fn told(api: &Api, alert: &Alert) -> shapes::Alert {
    let tz = api.hub.with_fleet(|fleet| zones::of_site(fleet, alert.site.as_deref()));
    shapes::Alert { tz, ..alerts::shown(alert) }
}

async fn find(api: &Arc<Api>, id: &str) -> Result<Alert, Refusal> {
    let unknown = || Refusal::NotFound(format!("there is no alert {id:?}; `fleet alert ls` lists them"));
    let number: u64 = id.parse().map_err(|_| unknown())?;
    api.query(move |api| Ok(api.hub.state().alert(number)?)).await?.ok_or_else(unknown)
}

/// `GET alerts/{id}`.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    Ok(Json(told(&api, &find(&api, &id).await?)).into_response())
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = AcknowledgeBody))]
#[serde(deny_unknown_fields)]
pub(super) struct Acknowledge {
    #[serde(default)]
    comment: Option<String>,
}

fn comment(given: Option<String>) -> Result<Option<String>, Refusal> {
    match given {
        Some(text) if text.len() > COMMENT_BYTES => {
            Err(Refusal::at("/comment", format!("at most {COMMENT_BYTES} bytes are kept")))
        }
        given => Ok(given.filter(|text| !text.is_empty())),
    }
}

/// `POST alerts/{id}/acknowledge` with `{comment?}`: somebody takes care of it.
pub(super) async fn acknowledge(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let Acknowledge { comment: said } = json(&headers, &body)?;
    let request: [&[u8]; 3] = [b"acknowledge", id.as_bytes(), &body];
    let done = take_care(&api, &caller, &id, said);
    api.keys.once(StatusCode::OK, &headers, &caller, &request, done).await
}

/// Acknowledges an alert; gives it as it is then.
pub(crate) async fn take_care(
    api: &Arc<Api>,
    caller: &Caller,
    id: &str,
    said: Option<String>,
) -> Result<shapes::Alert, Refusal> {
    let alert = find(api, id).await?;
    api.hub.may(&caller.by(), Touch::Node(&alert.node))?;
    api.alerts()?.acknowledge(alert.number, caller.by(), comment(said)?).await?;
    Ok(told(api, &find(api, id).await?))
}

/// How long, and about what.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema), schema(as = SilenceBody))]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wanted {
    #[cfg_attr(test, schema(value_type = Option<String>))]
    rule: Option<RuleId>,
    node: Option<String>,
    #[cfg_attr(test, schema(value_type = Option<String>))]
    device: Option<DeviceId>,
    site: Option<String>,
    for_s: Option<u32>,
    until_ms: Option<i64>,
    comment: Option<String>,
}

impl Wanted {
    fn silence(self, caller: &Caller, now_ms: i64) -> Result<Silence, Refusal> {
        let until_ms = match (self.for_s, self.until_ms) {
            (Some(seconds), None) => now_ms.saturating_add(i64::from(seconds) * 1_000),
            (None, Some(until_ms)) => until_ms,
            (None, None) => return Err(Refusal::at("/for_s", "say for how many seconds, or until_ms")),
            (Some(_), Some(_)) => return Err(Refusal::at("/for_s", "give for_s or until_ms, not both")),
        };
        Ok(Silence {
            number: 0,
            rule: self.rule,
            node: self.node.as_deref().map(node_id).transpose()?,
            device: self.device,
            site: self.site,
            until_ms,
            since_ms: now_ms,
            by: caller.by(),
            comment: comment(self.comment)?,
        })
    }
}

/// `POST alerts/{id}/silence` with `{for_s | until_ms, comment?}`: of its rule, node and device.
pub(super) async fn silence(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let wanted: Wanted = json(&headers, &body)?;
    if wanted.rule.is_some() || wanted.node.is_some() || wanted.device.is_some() || wanted.site.is_some() {
        return Err(Refusal::at(
            "",
            "the alert says what it is about; `silences` takes a rule, a node, a site",
        ));
    }
    let request: [&[u8]; 3] = [b"silence", id.as_bytes(), &body];
    api.keys.create(&headers, &caller, &request, quieten(&api, &caller, &id, wanted)).await
}

/// Keeps people from being told of what an alert is about, for a while.
pub(crate) async fn keep_quiet(
    api: &Arc<Api>,
    caller: &Caller,
    id: &str,
    for_s: u32,
    comment: Option<String>,
) -> Result<shapes::Silence, Refusal> {
    quieten(api, caller, id, Wanted { for_s: Some(for_s), comment, ..Wanted::default() }).await
}

async fn quieten(
    api: &Arc<Api>,
    caller: &Caller,
    id: &str,
    wanted: Wanted,
) -> Result<shapes::Silence, Refusal> {
    let alert = find(api, id).await?;
    let mut silence = wanted.silence(caller, api.hub.clock().now().wall_ms)?;
    silence.rule = Some(alert.rule);
    silence.node = Some(alert.node);
    silence.device = Some(alert.device);
    may(api, caller, &silence)?;
    Ok(shown(api, &api.alerts()?.silence(silence).await?))
}

/// Whether a caller may keep people from being told of that.
fn may(api: &Api, caller: &Caller, silence: &Silence) -> Result<(), Refusal> {
    let touch = match (&silence.node, &silence.site) {
        (Some(node), _) => Touch::Node(node),
        (None, Some(site)) => Touch::Site(site),
        (None, None) => Touch::Whole("silences that name neither a node nor a site"),
    };
    Ok(api.hub.may(&caller.by(), touch)?)
}

fn shown(api: &Api, silence: &Silence) -> shapes::Silence {
    let tz = api.hub.with_fleet(|fleet| match &silence.node {
        Some(node) => zones::at(fleet, node),
        None => zones::of_site(fleet, silence.site.as_deref()),
    });
    shapes::Silence {
        id: silence.number.to_string(),
        rule: silence.rule.as_ref().map(ToString::to_string),
        node: silence.node.as_ref().map(ToString::to_string),
        device: silence.device.as_ref().map(ToString::to_string),
        site: silence.site.clone(),
        tz,
        since_ms: silence.since_ms,
        until_ms: silence.until_ms,
        by: silence.by.clone(),
        comment: silence.comment.clone(),
    }
}

/// `GET silences`: those that have not ended, all on one page.
pub(super) async fn silences(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    Ok(Json(read_silences(&api).await?).into_response())
}

/// Silences that have not ended.
pub(crate) async fn read_silences(api: &Arc<Api>) -> Result<Page<shapes::Silence>, Refusal> {
    let found = api.query(|api| Ok(api.hub.state().silences()?)).await?;
    Ok(Page { items: found.iter().map(|silence| shown(api, silence)).collect(), next: None })
}

/// `POST silences` with `{rule?, node?, device?, site?, for_s | until_ms, comment?}`.
pub(super) async fn create_silence(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let wanted: Wanted = json(&headers, &body)?;
    let made = async {
        let silence = wanted.silence(&caller, api.hub.clock().now().wall_ms)?;
        may(&api, &caller, &silence)?;
        Ok(shown(&api, &api.alerts()?.silence(silence).await?))
    };
    api.keys.create(&headers, &caller, &[b"silences", &body], made).await
}

/// `DELETE silences/{id}`: what still fires is told at once.
pub(super) async fn remove_silence(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    speak_again(&api, &caller, &id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Ends a silence.
pub(crate) async fn speak_again(api: &Arc<Api>, caller: &Caller, id: &str) -> Result<(), Refusal> {
    let unknown =
        || Refusal::NotFound(format!("there is no silence {id:?}; `fleet alert silences` lists them"));
    let number: u64 = id.parse().map_err(|_| unknown())?;
    let silences = api.query(|api| Ok(api.hub.state().silences()?)).await?;
    let known = silences.iter().find(|silence| silence.number == number);
    may(api, caller, known.ok_or_else(unknown)?)?;
    Ok(api.alerts()?.unsilence(number, caller.by()).await?)
}

/// `GET receivers`.
pub(super) async fn receivers(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Refusal> {
    params.only(&["limit", "cursor"])?;
    let items: Vec<shapes::Receiver> = api.alerts()?.receivers();
    Ok(Json(Page { items, next: None }).into_response())
}

/// `POST receivers/{name}/test`: says to it that somebody tries it. 202: whether it took it is in `GET receivers`.
pub(super) async fn test_receiver(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(name): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    api.alerts()?.test(name.clone(), caller.by()).await?;
    let items = api.alerts()?.receivers().into_iter().find(|receiver| receiver.name == name);
    Ok((StatusCode::ACCEPTED, Json(items)).into_response())
}
