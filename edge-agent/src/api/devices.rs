//! `devices`: which there are, and what somebody declares of them.
//!
//! Parses and puts answers into JSON; what becomes of a device is decided in `core/devices`.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Path, Request, State},
    http::StatusCode,
    response::IntoResponse as _,
};
use fleet_schemas::{DeviceId, MetricName, limits};
use serde::{Deserialize, Serialize};

use super::{
    http::{Answer, Api, json, read},
    parse::parse,
    problem::Problem,
};
use crate::core::devices::{Declared, Device, Refused};

type Shared = State<Arc<Api>>;

/// Longest heartbeat and sleep, in seconds.
const LONGEST_S: f64 = 31.0 * 86_400.0;

/// What a body may say of a device; what is absent stays as it is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) kind: Option<String>,
    pub(super) name: Option<String>,
    pub(super) firmware: Option<String>,
    pub(super) capabilities: Option<Vec<String>>,
    pub(super) heartbeat_s: Option<f64>,
    pub(super) sleep_s: Option<f64>,
}

/// How long it sleeps.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sleep {
    for_s: f64,
}

/// A device as it is shown.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub(super) struct View {
    pub(super) id: DeviceId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<MetricName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) firmware: Option<MetricName>,
    pub(super) capabilities: Vec<MetricName>,
    pub(super) state: &'static str,
    pub(super) since_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_seen_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) until_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) heartbeat_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sleep_s: Option<f64>,
    pub(super) registered: &'static str,
    pub(super) registered_ms: i64,
    pub(super) unsequenced: bool,
}

/// `GET /api/v1/devices`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(bound(deserialize = "'de: 'static")))]
pub(super) struct List {
    items: Vec<View>,
    limit: usize,
}

impl From<Device> for View {
    fn from(device: Device) -> Self {
        let seconds = |millis: u64| millis as f64 / 1_000.0;
        Self {
            id: device.id,
            kind: device.kind,
            name: device.name,
            firmware: device.firmware,
            capabilities: device.capabilities,
            state: device.state.as_str(),
            since_ms: device.since_ms,
            last_seen_ms: device.last_seen_ms,
            until_ms: device.until_ms,
            heartbeat_s: device.heartbeat_ms.map(seconds),
            sleep_s: device.schedule_ms.map(seconds),
            registered: if device.explicit { "explicit" } else { "auto" },
            registered_ms: device.registered_ms,
            unsequenced: device.unsequenced,
        }
    }
}

pub(super) async fn list(State(api): Shared) -> Answer {
    let items = api.outbox.devices().await?.into_iter().map(View::from).collect();
    json(&List { items, limit: limits::DEVICES_PER_NODE })
}

pub(super) async fn one(State(api): Shared, Path(id): Path<String>) -> Answer {
    json(&find(&api, &device_id(&id)?).await?)
}

/// How a device is shown.
pub(super) async fn find(api: &Api, id: &DeviceId) -> Result<View, Problem> {
    let device = api.outbox.device(id.clone()).await?.ok_or_else(|| unknown(id))?;
    Ok(View::from(device))
}

/// `PUT` or `POST /api/v1/devices/{id}`: 201 when it is new, else 200.
pub(super) async fn declare(State(api): Shared, Path(id): Path<String>, request: Request) -> Answer {
    let id = device_id(&id)?;
    let body = parse(&read(&api, request).await?)?;
    let (new, view) = register(&api, id, body).await?;
    let mut answer = json(&view)?;
    if new {
        *answer.status_mut() = StatusCode::CREATED;
    }
    Ok(answer)
}

/// Declares a device; whether it is new, and how it is shown.
pub(super) async fn register(api: &Api, id: DeviceId, body: Body) -> Result<(bool, View), Problem> {
    let new = api.outbox.declare_device(id.clone(), declared(body)?).await??;
    Ok((new, find(api, &id).await?))
}

pub(super) async fn remove(State(api): Shared, Path(id): Path<String>) -> Answer {
    forget(&api, device_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Forgets a device that is known.
pub(super) async fn forget(api: &Api, id: DeviceId) -> Result<(), Problem> {
    if api.outbox.remove_device(id.clone()).await? { Ok(()) } else { Err(unknown(&id)) }
}

/// `POST /api/v1/devices/{id}/sleep`.
pub(super) async fn sleep(State(api): Shared, Path(id): Path<String>, request: Request) -> Answer {
    let id = device_id(&id)?;
    let Sleep { for_s } = parse(&read(&api, request).await?)?;
    json(&sleeps(&api, id, for_s).await?)
}

/// Lets a device be silent for so many seconds.
pub(super) async fn sleeps(api: &Api, id: DeviceId, for_s: f64) -> Result<View, Problem> {
    api.outbox.device_sleeps(id.clone(), span("/for_s", for_s)?).await??;
    find(api, &id).await
}

pub(super) fn device_id(text: &str) -> Result<DeviceId, Problem> {
    let id =
        DeviceId::parse(text).map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    if id.is_node() {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "give the device's id in the path"));
    }
    Ok(id)
}

fn unknown(id: &DeviceId) -> Problem {
    let detail = format!("there is no device {id}; GET /api/v1/devices lists those there are");
    Problem::new(StatusCode::NOT_FOUND, detail)
}

fn declared(body: Body) -> Result<Declared, Problem> {
    let word = |pointer: &str, text: String| {
        MetricName::parse(&text).map_err(|error| Problem::field(pointer, error.to_string()))
    };
    if let Some(name) = &body.name
        && (name.len() > limits::TEXT_BYTES || name.chars().any(char::is_control))
    {
        let detail = format!("at most {} bytes without control characters are allowed", limits::TEXT_BYTES);
        return Err(Problem::field("/name", detail));
    }
    let capabilities = body.capabilities.map(|list| {
        if list.len() > limits::LABELS_PER_NODE {
            let detail = format!("at most {} capabilities are allowed", limits::LABELS_PER_NODE);
            return Err(Problem::field("/capabilities", detail));
        }
        let numbered = list.into_iter().enumerate();
        numbered.map(|(at, text)| word(&format!("/capabilities/{at}"), text)).collect()
    });
    Ok(Declared {
        kind: body.kind.map(|kind| word("/kind", kind)).transpose()?,
        name: body.name,
        firmware: body.firmware.map(|firmware| word("/firmware", firmware)).transpose()?,
        capabilities: capabilities.transpose()?,
        heartbeat: body.heartbeat_s.map(|every| span("/heartbeat_s", every)).transpose()?,
        schedule: body.sleep_s.map(|every| span("/sleep_s", every)).transpose()?,
    })
}

fn span(pointer: &str, seconds: f64) -> Result<Duration, Problem> {
    if (0.0..=LONGEST_S).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(Problem::field(pointer, format!("it may be 0 to {LONGEST_S} seconds")))
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let detail = refused.to_string();
        match refused {
            Refused::Unknown(_) => Self::field("/device", detail),
            Refused::Full => Self::new(StatusCode::CONFLICT, detail),
        }
    }
}
