//! One line of a driver: a JSON object with a sensor's values. Pure: reads no clock, starts nothing.

use std::collections::BTreeMap;

use fleet_schemas::{DeviceId, MetricName, limits, telemetry::Sample};
use serde::Deserialize;
use serde_json::Value;

/// Most values in one line: a sensor board has a dozen.
const VALUES: usize = 256;
/// Numbers from here on are milliseconds, below it seconds (it is the year 5138 in seconds, 1973 in milliseconds).
const SECONDS_BELOW: f64 = 1e11;

/// What a driver prints: `{"sensor", "values", "unit"?, "timestamp"?, "status"?}`.
#[derive(Debug, Deserialize)]
struct Line {
    sensor: String,
    #[serde(default)]
    values: BTreeMap<String, Value>,
    #[serde(default)]
    unit: Option<Unit>,
    #[serde(default)]
    timestamp: Option<Value>,
    #[serde(default)]
    status: Option<String>,
}

/// One unit for all values, or one each.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Unit {
    All(String),
    Each(BTreeMap<String, String>),
}

/// What a line said.
#[derive(Debug, PartialEq)]
pub(crate) struct Reading {
    pub(crate) sensor: DeviceId,
    /// The driver's word on the sensor, when it is not well.
    pub(crate) trouble: Option<String>,
    pub(crate) samples: Vec<Sample>,
}

/// Why a line was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LineError {
    #[error("not a JSON object with a sensor: {0}; print one object per line")]
    Json(String),
    #[error("{0}; shorten or rename it")]
    Name(#[from] fleet_schemas::id::IdError),
    #[error("the value of {0:?} is not a finite number; print numbers only")]
    Value(String),
    #[error("more than {VALUES} values in one line; print several lines")]
    Many,
}

impl LineError {
    /// A short stable word for counters.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Json(_) => "json",
            Self::Name(_) => "name",
            Self::Value(_) => "value",
            Self::Many => "many_values",
        }
    }
}

/// Reads a line; values without a readable time get `now_ms`. A sensor that is not well gives no samples.
pub(crate) fn parse(line: &[u8], now_ms: i64) -> Result<Reading, LineError> {
    let line: Line = serde_json::from_slice(line).map_err(|error| LineError::Json(error.to_string()))?;
    let sensor = DeviceId::parse(&line.sensor)?;
    if line.values.len() > VALUES {
        return Err(LineError::Many);
    }
    let trouble = line.status.filter(|status| !matches!(status.as_str(), "ok" | "online"));
    let mut samples = Vec::with_capacity(line.values.len());
    if trouble.is_none() {
        let time_ms = line.timestamp.as_ref().and_then(time).unwrap_or(now_ms);
        for (name, value) in line.values {
            let Some(value) = number(&name, &value)? else { continue };
            let unit = unit(line.unit.as_ref(), &name)?;
            let metric = MetricName::parse(&name)?;
            samples.push(Sample { time_ms, device: sensor.clone(), metric, unit, value });
        }
    }
    let trouble = trouble.map(|mut trouble| {
        trouble.truncate(trouble.floor_char_boundary(limits::LABEL_BYTES));
        trouble
    });
    Ok(Reading { sensor, trouble, samples })
}

/// `None` for null: the sensor has no value this time.
fn number(name: &str, value: &Value) -> Result<Option<f64>, LineError> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(on) => Ok(Some(f64::from(u8::from(*on)))),
        Value::Number(number) => Ok(number.as_f64().filter(|number| number.is_finite())),
        Value::String(_) | Value::Array(_) | Value::Object(_) => Err(LineError::Value(name.to_owned())),
    }
}

fn unit(unit: Option<&Unit>, name: &str) -> Result<Option<MetricName>, LineError> {
    let text = match unit {
        Some(Unit::All(text)) => text.as_str(),
        Some(Unit::Each(each)) => each.get(name).map_or("", String::as_str),
        None => "",
    };
    if text.is_empty() { Ok(None) } else { Ok(Some(MetricName::parse(ucum(text))?)) }
}

/// The units that drivers in the field write, in UCUM; others pass as they are.
pub(crate) fn ucum(unit: &str) -> &str {
    match unit {
        "C" | "°C" | "celsius" => "Cel",
        "F" | "°F" | "fahrenheit" => "[degF]",
        "lux" => "lx",
        "ppm" => "[ppm]",
        "percent" => "%",
        other => other,
    }
}

/// RFC 3339 text, or Unix time in seconds or milliseconds.
fn time(timestamp: &Value) -> Option<i64> {
    match timestamp {
        Value::String(text) => text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond),
        Value::Number(number) => {
            let number = number.as_f64()?;
            let millis = if number.abs() < SECONDS_BELOW { number * 1_000.0 } else { number };
            Some(millis.round() as i64)
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(time_ms: i64, metric: &str, unit: Option<&str>, value: f64) -> Sample {
        Sample {
            time_ms,
            device: DeviceId::parse("dht22").unwrap(),
            metric: MetricName::parse(metric).unwrap(),
            unit: unit.map(|unit| MetricName::parse(unit).unwrap()),
            value,
        }
    }

    #[test]
    fn a_whole_line_becomes_samples_of_the_sensor() {
        let line = r#"{"sensor":"dht22","values":{"humidity":40,"temperature":23.5,"gone":null,"on":true},
            "unit":{"temperature":"C"},"timestamp":"2026-08-01T00:00:01.5Z","status":"ok"}"#;
        let at = 1_785_542_401_500;
        let expected = vec![
            sample(at, "humidity", None, 40.0),
            sample(at, "on", None, 1.0),
            sample(at, "temperature", Some("Cel"), 23.5),
        ];
        assert_eq!(parse(line.as_bytes(), 7).unwrap().samples, expected);
    }

    #[test]
    fn times_in_seconds_milliseconds_or_missing_are_understood() {
        let at = |timestamp: &str| {
            let line = format!(r#"{{"sensor":"dht22","values":{{"t":1}},"unit":"V"{timestamp}}}"#);
            parse(line.as_bytes(), 7).unwrap().samples
        };
        assert_eq!(at(""), [sample(7, "t", Some("V"), 1.0)]);
        assert_eq!(at(r#","timestamp":"soon""#), [sample(7, "t", Some("V"), 1.0)]);
        assert_eq!(at(r#","timestamp":1785542401.5"#), [sample(1_785_542_401_500, "t", Some("V"), 1.0)]);
        assert_eq!(at(r#","timestamp":1785542401500"#), [sample(1_785_542_401_500, "t", Some("V"), 1.0)]);
    }

    #[test]
    fn a_sensor_in_trouble_gives_no_samples() {
        let reading = parse(br#"{"sensor":"dht22","values":{"t":-999},"status":"crc_error"}"#, 7).unwrap();
        assert_eq!(reading.trouble.as_deref(), Some("crc_error"));
        assert_eq!(reading.samples, []);
    }

    #[test]
    fn bad_lines_say_why() {
        let many: BTreeMap<_, _> = (0..=VALUES).map(|n| (format!("m{n}"), n)).collect();
        let many = serde_json::json!({"sensor": "x", "values": many}).to_string();
        for (line, reason) in [
            ("hello", "json"),
            ("[1]", "json"),
            (r#"{"values":{"t":1}}"#, "json"),
            (r#"{"sensor":"a\u0007","values":{}}"#, "name"),
            (r#"{"sensor":"a","values":{"":1}}"#, "name"),
            (r#"{"sensor":"a","values":{"t":"warm"}}"#, "value"),
            (r#"{"sensor":"a","values":{"t":NaN}}"#, "json"),
            (r#"{"sensor":"a","values":{"t":1e999}}"#, "json"),
            (&many, "many_values"),
        ] {
            assert_eq!(parse(line.as_bytes(), 0).unwrap_err().reason(), reason, "{line:.80}");
        }
    }
}
