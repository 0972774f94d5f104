//! `POST /report` and `/batch`: the shapes that gateways in the field send (NanoClaw). Answers in their words.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::StatusCode,
};
use fleet_schemas::{DeviceId, limits, telemetry::Sample};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{
    body::{self, Raw},
    http::{Answer, Api, Text, json, name_in, read},
    problem::Problem,
    view::OutboxView,
    write,
};

type Shared = State<Arc<Api>>;

/// Numbers below this are seconds, those above milliseconds: the year 5138, or March 1973.
const SECONDS_BELOW: f64 = 1e11;

/// `201` of both.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub(super) struct Taken {
    status: &'static str,
    node_id: String,
    /// Records that the outbox holds.
    buffer_size: u64,
}

pub(super) async fn report(State(api): Shared, request: Request) -> Answer {
    let name = name_in(request.headers())?;
    let Text { bytes, place } = read(&api, request).await?;
    let tree = tree(&bytes)?;
    let node = text(&tree, "node_id")?.to_owned();
    let read = |now_ms| Ok(vec![sample(&api, &tree, now_ms)?]);
    let handed = write::samples(name.as_deref(), api.clock.now().wall_ms, read)?;
    drop((tree, bytes));
    api.write(handed, place).await?;
    taken(&api, node).await
}

pub(super) async fn batch(State(api): Shared, request: Request) -> Answer {
    let name = name_in(request.headers())?;
    let Text { bytes, place } = read(&api, request).await?;
    let tree = tree(&bytes)?;
    let gateway = text(&tree, "gateway_id")?.to_owned();
    let Some(Value::Array(readings)) = tree.get("readings") else {
        return Err(Problem::field("/readings", "give a list of readings here"));
    };
    if readings.len() > limits::BATCH_RECORDS {
        let detail = format!("more than {} readings; send them in parts", limits::BATCH_RECORDS);
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    let read = |now_ms| {
        let time_ms = time(&tree, "batch_timestamp")?.unwrap_or(now_ms);
        let samples = readings.iter().enumerate().map(|(at, reading)| {
            sample(&api, reading, time_ms).map_err(|problem| problem.below(&format!("/readings/{at}")))
        });
        samples.collect()
    };
    let handed = write::samples(name.as_deref(), api.clock.now().wall_ms, read)?;
    drop((tree, bytes));
    api.write(handed, place).await?;
    taken(&api, gateway).await
}

async fn taken(api: &Api, node_id: String) -> Answer {
    // It is on disk: whatever keeps this from being told is no reason to have it sent again.
    let status = api.outbox.status().await;
    let buffer_size = status.map_or(0, |status| OutboxView::from(&status).held_records);
    let mut response = json(&Taken { status: "accepted", node_id, buffer_size })?;
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

fn tree(body: &[u8]) -> Result<Value, Problem> {
    let tree: Value = serde_json::from_slice(body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))?;
    if tree.is_object() { Ok(tree) } else { Err(Problem::field("", "give an object here")) }
}

fn sample(api: &Api, reading: &Value, now_ms: i64) -> Result<Sample, Problem> {
    if !reading.is_object() {
        return Err(Problem::field("", "give an object with `node_id`, `sensor_type` and `value` here"));
    }
    let node = text(reading, "node_id")?;
    // What the gateway measures itself is the node's own.
    let device = if node == api.facts.node.as_str() { "" } else { node };
    DeviceId::parse(device).map_err(|error| Problem::field("/node_id", error.to_string()))?;
    let unit = match reading.get("unit") {
        None | Some(Value::Null) => None,
        Some(_) => Some(text(reading, "unit")?),
    };
    let Some(value) = reading.get("value").and_then(Value::as_f64) else {
        return Err(Problem::field("/value", "give a finite number here"));
    };
    let raw = Raw {
        metric: text(reading, "sensor_type")?,
        value: Some(value),
        unit,
        time_ms: time(reading, "timestamp")?,
    };
    body::one_sample(Some(device), raw, now_ms).map_err(|problem| problem.renamed("/metric", "/sensor_type"))
}

fn text<'a>(parent: &'a Value, field: &str) -> Result<&'a str, Problem> {
    let text = parent.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    text.ok_or_else(|| Problem::field(format!("/{field}"), format!("`{field}` is missing; give a text")))
}

/// RFC 3339, or Unix time in seconds or milliseconds.
fn time(parent: &Value, field: &str) -> Result<Option<i64>, Problem> {
    let wrong = || Problem::field(format!("/{field}"), "give a time as RFC 3339 or as Unix seconds");
    match parent.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => {
            // Python's isoformat() of a naive UTC time has no zone.
            let zoned = text.parse::<Timestamp>().or_else(|_| format!("{text}Z").parse());
            Ok(Some(zoned.map_err(|_| wrong())?.as_millisecond()))
        }
        Some(Value::Number(number)) => {
            let number = number.as_f64().filter(|number| number.is_finite()).ok_or_else(wrong)?;
            let millis = if number.abs() < SECONDS_BELOW { number * 1_000.0 } else { number };
            // Saturates, as times of a clock that was never set may.
            Ok(Some(millis.round() as i64))
        }
        Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_read_as_the_field_writes_them() {
        for (told, expected) in [
            (json!("2026-08-01T00:00:00Z"), Some(1_785_542_400_000)),
            (json!("2026-08-01T02:00:00.5+02:00"), Some(1_785_542_400_500)),
            (json!("2026-08-01T00:00:00.250000"), Some(1_785_542_400_250)),
            (json!(1_785_542_400), Some(1_785_542_400_000)),
            (json!(1_785_542_400.25), Some(1_785_542_400_250)),
            (json!(1_785_542_400_000_i64), Some(1_785_542_400_000)),
            (Value::Null, None),
        ] {
            assert_eq!(time(&json!({"t": told}), "t").ok(), Some(expected), "{told}");
        }
        for wrong in [json!("yesterday"), json!(true), json!([1])] {
            assert!(time(&json!({"t": wrong}), "t").is_err(), "{wrong}");
        }
    }
}
