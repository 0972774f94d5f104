//! Bodies of telemetry and event posts: JSON in, records out, and a pointer to the field that is wrong.
//!
//! The straight way parses without building a tree. Only when it fails, the body is read again as a tree to tell where.

use std::{borrow::Cow, collections::HashMap};

use axum::http::StatusCode;
use fleet_schemas::{
    DeviceId, MetricName,
    event::{Event, Severity},
    limits,
    telemetry::Sample,
};
use serde::Deserialize;
use serde_json::Value;

use super::{parse, problem::Problem};

/// Most events in one request.
pub(crate) const EVENTS: usize = 100;
/// Deepest nesting of an event's data: batch, array, event and map take four of the levels that the wire allows.
pub(super) const DATA_DEPTH: usize = limits::CBOR_DEPTH - 6;

/// `{device?, samples: [{metric, value, unit?, time_ms?}]}`.
#[derive(Debug, Deserialize)]
pub(super) struct Telemetry<'a> {
    #[serde(borrow, default)]
    device: Option<Text<'a>>,
    #[serde(borrow)]
    samples: Vec<RawSample<'a>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawSample<'a> {
    #[serde(borrow)]
    metric: Cow<'a, str>,
    value: f64,
    #[serde(borrow, default)]
    unit: Option<Text<'a>>,
    #[serde(default)]
    time_ms: Option<i64>,
}

/// Borrowed from the body where nothing is escaped, also inside of an option.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A sample as it came, in whatever form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw<'a> {
    pub(super) metric: &'a str,
    pub(super) value: Option<f64>,
    pub(super) unit: Option<&'a str>,
    pub(super) time_ms: Option<i64>,
}

/// Names that were checked once and are shared by all samples of a request.
#[derive(Default)]
struct Names<'a>(HashMap<&'a str, MetricName>);

impl<'a> Names<'a> {
    fn get(&mut self, text: &'a str) -> Result<MetricName, String> {
        if let Some(name) = self.0.get(text) {
            return Ok(name.clone());
        }
        let name = MetricName::parse(text).map_err(|error| error.to_string())?;
        self.0.insert(text, name.clone());
        Ok(name)
    }
}

/// The samples of a body; those without a time get `now_ms`.
pub(crate) fn telemetry(body: &[u8], now_ms: i64) -> Result<Vec<Sample>, Problem> {
    let telemetry: Telemetry<'_> =
        serde_json::from_slice(body).map_err(|_| locate::<Telemetry<'_>>(body, in_telemetry))?;
    let raw = telemetry.samples.iter().map(|raw| Raw {
        metric: &raw.metric,
        value: Some(raw.value),
        unit: raw.unit.as_ref().map(|text| &*text.0),
        time_ms: raw.time_ms,
    });
    samples(telemetry.device.as_ref().map(|text| &*text.0), raw, now_ms)
}

/// The samples of one device; those without a time get `now_ms`.
pub(super) fn samples<'a>(
    of: Option<&str>,
    raw: impl ExactSizeIterator<Item = Raw<'a>>,
    now_ms: i64,
) -> Result<Vec<Sample>, Problem> {
    if raw.len() > limits::BATCH_RECORDS {
        let detail = format!("more than {} samples; send them in parts", limits::BATCH_RECORDS);
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    let device = device(of)?.unwrap_or_else(DeviceId::node);
    let mut names = Names::default();
    let mut samples = Vec::with_capacity(raw.len());
    for (at, raw) in raw.enumerate() {
        let made = sample(&device, raw, &mut names, now_ms);
        samples.push(made.map_err(|problem| problem.below(&format!("/samples/{at}")))?);
    }
    Ok(samples)
}

fn sample<'a>(
    device: &DeviceId,
    raw: Raw<'a>,
    names: &mut Names<'a>,
    now_ms: i64,
) -> Result<Sample, Problem> {
    let Some(value) = raw.value else {
        return Err(Problem::field("/value", "`value` is missing; give a finite number"));
    };
    if !value.is_finite() {
        return Err(Problem::field("/value", "the value is not a finite number"));
    }
    let metric = names.get(raw.metric).map_err(|detail| Problem::field("/metric", detail))?;
    let unit = match raw.unit {
        None | Some("") => None,
        Some(unit) => Some(names.get(unit).map_err(|detail| Problem::field("/unit", detail))?),
    };
    let time_ms = raw.time_ms.unwrap_or(now_ms);
    Ok(Sample { time_ms, device: device.clone(), metric, unit, value })
}

/// One sample of one device; without a time it gets `now_ms`.
pub(super) fn one_sample(of: Option<&str>, raw: Raw<'_>, now_ms: i64) -> Result<Sample, Problem> {
    let device = device(of)?.unwrap_or_else(DeviceId::node);
    sample(&device, raw, &mut Names::default(), now_ms)
}

/// `{kind, severity, message, data?, device?, time_ms?, id?}`.
#[derive(Debug, Deserialize)]
pub(super) struct RawEvent {
    pub(super) kind: String,
    pub(super) severity: Severity,
    pub(super) message: String,
    #[serde(default)]
    pub(super) data: Option<Value>,
    #[serde(default)]
    pub(super) device: Option<String>,
    #[serde(default)]
    pub(super) time_ms: Option<i64>,
    #[serde(default)]
    pub(super) id: Option<String>,
}

/// The events of a body: one, or a list of at most [`EVENTS`].
pub(crate) fn events(body: &[u8], now_ms: i64) -> Result<Vec<Event>, Problem> {
    if body.trim_ascii_start().first() != Some(&b'[') {
        let raw: RawEvent = serde_json::from_slice(body).map_err(|_| locate::<RawEvent>(body, in_events))?;
        return Ok(vec![event(raw, now_ms)?]);
    }
    let raw: Vec<RawEvent> =
        serde_json::from_slice(body).map_err(|_| locate::<Vec<RawEvent>>(body, in_events))?;
    check_events(raw.len())?;
    let numbered = raw.into_iter().enumerate();
    numbered.map(|(at, raw)| event(raw, now_ms).map_err(|problem| problem.below(&format!("/{at}")))).collect()
}

pub(super) fn check_events(count: usize) -> Result<(), Problem> {
    if count > EVENTS {
        let detail = format!("more than {EVENTS} events; send them in parts");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    Ok(())
}

pub(super) fn event(raw: RawEvent, now_ms: i64) -> Result<Event, Problem> {
    let kind = MetricName::parse(&raw.kind).map_err(|error| Problem::field("/kind", error.to_string()))?;
    let data = match raw.data {
        None | Some(Value::Null) => None,
        Some(data) => {
            if depth(&data) > DATA_DEPTH {
                let detail = format!("data is nested deeper than {DATA_DEPTH}; flatten it");
                return Err(Problem::field("/data", detail));
            }
            let data = ciborium::Value::serialized(&data);
            Some(data.map_err(|error| Problem::field("/data", error.to_string()))?)
        }
    };
    let device = device(raw.device.as_deref())?.filter(|device| !device.is_node());
    let time_ms = raw.time_ms.unwrap_or(now_ms);
    let event =
        Event { time_ms, kind, severity: raw.severity, message: raw.message, data, device, id: raw.id };
    event.check().map_err(|what| {
        let field = what.split(' ').next().unwrap_or_default();
        Problem::field(format!("/{field}"), what)
    })?;
    Ok(event)
}

fn device(text: Option<&str>) -> Result<Option<DeviceId>, Problem> {
    let parsed = text.map(DeviceId::parse).transpose();
    parsed.map_err(|error| Problem::field("/device", error.to_string()))
}

pub(super) fn depth(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 1,
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(items) => 1 + items.values().map(depth).max().unwrap_or(0),
    }
}

/// Tells where a body that could not be read as a `T` is wrong: 400 when it is no JSON, 422 with a pointer otherwise.
fn locate<'a, T: Deserialize<'a>>(body: &'a [u8], search: fn(&Value) -> Option<Problem>) -> Problem {
    match serde_json::from_slice::<Value>(body) {
        Err(syntax) => Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {syntax}")),
        // What the tree does not show, as a field that is given twice, is found by reading it once more.
        Ok(tree) => search(&tree)
            .or_else(|| parse::read::<T>(body).err())
            .unwrap_or_else(|| Problem::field("", "it cannot be read")),
    }
}

fn in_telemetry(tree: &Value) -> Option<Problem> {
    if !tree.is_object() {
        return Some(Problem::field("", "give an object with `samples` here"));
    }
    let samples = match tree.get("samples") {
        Some(Value::Array(samples)) => samples,
        Some(_) | None => return Some(Problem::field("/samples", "give a list of samples here")),
    };
    if let Some(problem) = optional(tree, "", "device", "a text", Value::is_string) {
        return Some(problem);
    }
    samples.iter().enumerate().find_map(|(at, sample)| {
        let at = format!("/samples/{at}");
        if !sample.is_object() {
            return Some(Problem::field(at, "give an object with `metric` and `value` here"));
        }
        required(sample, &at, "metric", "a text", Value::is_string)
            .or_else(|| required(sample, &at, "value", "a finite number", Value::is_number))
            .or_else(|| optional(sample, &at, "unit", "a text", Value::is_string))
            .or_else(|| optional(sample, &at, "time_ms", "whole Unix milliseconds", Value::is_i64))
    })
}

fn in_events(tree: &Value) -> Option<Problem> {
    match tree {
        Value::Array(events) => {
            events.iter().enumerate().find_map(|(at, event)| in_event(event, &format!("/{at}")))
        }
        event => in_event(event, ""),
    }
}

fn in_event(event: &Value, at: &str) -> Option<Problem> {
    if !event.is_object() {
        return Some(Problem::field(at, "give an object with `kind`, `severity` and `message` here"));
    }
    let severity = |value: &Value| Severity::deserialize(value).is_ok();
    required(event, at, "kind", "a text", Value::is_string)
        .or_else(|| required(event, at, "severity", "info, warning, error or critical", severity))
        .or_else(|| required(event, at, "message", "a text", Value::is_string))
        .or_else(|| optional(event, at, "device", "a text", Value::is_string))
        .or_else(|| optional(event, at, "time_ms", "whole Unix milliseconds", Value::is_i64))
        .or_else(|| optional(event, at, "id", "a text", Value::is_string))
}

fn required(
    parent: &Value,
    at: &str,
    field: &str,
    what: &str,
    fits: impl FnOnce(&Value) -> bool,
) -> Option<Problem> {
    let pointer = format!("{at}/{field}");
    match parent.get(field) {
        Some(value) if fits(value) => None,
        Some(_) => Some(Problem::field(pointer, format!("give {what} here"))),
        None => Some(Problem::field(pointer, format!("`{field}` is missing; give {what}"))),
    }
}

fn optional(
    parent: &Value,
    at: &str,
    field: &str,
    what: &str,
    fits: impl FnOnce(&Value) -> bool,
) -> Option<Problem> {
    match parent.get(field) {
        None | Some(Value::Null) => None,
        Some(_) => required(parent, at, field, what, fits),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn samples_take_the_requests_device_and_time() {
        let body = r#"{"device":"shed","samples":[{"metric":"t","value":1,"unit":"Cel"},{"metric":"\u0074","value":-0.5,"time_ms":5}]}"#;
        let samples = telemetry(body.as_bytes(), 7).unwrap();
        let told: Vec<_> = samples
            .iter()
            .map(|s| {
                (
                    s.device.as_str(),
                    s.metric.as_str(),
                    s.unit.as_ref().map(MetricName::as_str),
                    s.time_ms,
                    s.value,
                )
            })
            .collect();
        assert_eq!(told, [("shed", "t", Some("Cel"), 7, 1.0), ("shed", "t", None, 5, -0.5)]);
    }

    #[test]
    fn a_field_given_twice_is_a_mistake() {
        let problem = telemetry(br#"{"samples":[{"metric":"t","metric":"u","value":1}]}"#, 0).unwrap_err();
        let text = serde_json::to_string(&problem).unwrap();
        assert!(text.contains("422") && text.contains("duplicate field"), "{text}");
    }

    #[test]
    fn what_events_carry_survives() {
        let body = br#"[{"kind":"k","severity":"emergency","message":"m","data":{"a":[1,2.5,null,"x"]},"device":"d","id":"i"}]"#;
        let events = events(body, 7).unwrap();
        assert_eq!((events[0].severity, events[0].time_ms), (Severity::Critical, 7));
        let data = events[0].data.as_ref().unwrap();
        let value: Value = data.deserialized().unwrap();
        assert_eq!(value, serde_json::json!({"a": [1, 2.5, null, "x"]}));
        let encoded = fleet_schemas::cbor::encode(&events);
        assert_eq!(fleet_schemas::event::decode(&encoded).unwrap(), events);
    }

    proptest! {
        #[test]
        fn no_bytes_are_taken_amiss(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = telemetry(&body, 0);
            let _ = events(&body, 0);
            let _ = crate::collect::parse_line(&body, 0);
        }

        #[test]
        fn no_json_is_taken_amiss(body in "[\\[\\]{}:, ]{0,3}(\"(samples|metric|value|kind|severity|message|data|sensor|values)\"[:,]|[\\[\\]{}:,0-9.\"-]|null|true|1e400){0,30}") {
            let _ = telemetry(body.as_bytes(), 0);
            let _ = events(body.as_bytes(), 0);
            let _ = crate::collect::parse_line(body.as_bytes(), 0);
        }
    }
}
