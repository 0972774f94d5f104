//! What boards in the field say (MicroClaw), read: samples, and what it tells of the device. Pure.
//!
//! Their words carry neither time nor number as a rule: then they get those of their arrival, and the device counts as
//! unsequenced. Numbers are numbers and nothing else; units become UCUM.

use std::time::Duration;

use fleet_broker::local::On;
use fleet_schemas::{DeviceId, MetricName, telemetry::Sample, unit};
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::{core::devices::Sight, uplink::Told};

/// The kind of boards that speak so.
pub(super) const KIND: &str = "microclaw";
/// Numbers below this are seconds, those above milliseconds: the year 5138, or March 1973.
const SECONDS_BELOW: f64 = 1e11;

/// What a board said.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Read {
    pub(super) told: Told,
    /// What it says of itself, if this is its status.
    pub(super) status: Option<Status>,
}

/// How a board says that it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Status {
    /// In a word, such as `online` or `restarted`.
    pub(super) word: String,
    /// All of it.
    pub(super) whole: Value,
}

/// Why nothing is taken of what a board said.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum Wrong {
    /// No JSON.
    #[error("it is no JSON: {0}")]
    Json(String),
    /// JSON of another shape.
    #[error("it has another shape; give {0}")]
    Shape(&'static str),
    /// A name, unit or id that is none.
    #[error("a name, unit or id is wrong: {0}")]
    Name(String),
    /// It speaks for another device.
    #[error("it speaks for device {0}; allow it to: fleet-agent device add {1} --gateway")]
    Foreign(DeviceId, DeviceId),
}

impl Wrong {
    /// As a label of a metric.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Json(_) => "json",
            Self::Shape(_) => "shape",
            Self::Name(_) => "name",
            Self::Foreign(..) => "foreign",
        }
    }
}

/// What a figure without a unit is measured in, by the name that boards give it.
const FIGURES: [(&str, &str); 8] = [
    ("temperature", "Cel"),
    ("humidity", "%"),
    ("battery_voltage", "V"),
    ("battery_percent", "%"),
    ("pressure_hpa", "hPa"),
    ("uptime", "s"),
    ("wifi_rssi", "dB[mW]"),
    ("rssi", "dB[mW]"),
];
const ID: [&str; 5] = ["device", "device_id", "node_id", "node", "id"];
const METRIC: [&str; 5] = ["metric", "sensor", "sensor_type", "type", "name"];
const UNIT: [&str; 2] = ["unit", "units"];
const TIME: [&str; 4] = ["time_ms", "timestamp", "time", "ts"];
const FIRMWARE: [&str; 3] = ["version", "firmware", "fw"];
const SLEEP: [&str; 5] = ["sleep_s", "sleep_seconds", "sleep_duration_s", "sleep_for_s", "next_wake_s"];

/// Reads what `device` said. `relays`: whether it may speak for other devices.
pub(super) fn read(
    device: &DeviceId,
    on: &On,
    payload: &[u8],
    relays: bool,
    now_ms: i64,
) -> Result<Read, Wrong> {
    let mut reader = Reader { device, relays, now_ms, samples: Vec::new(), untimed: false };
    let value = match (on, serde_json::from_slice(payload)) {
        (_, Ok(value)) => value,
        // Some write the bare word.
        (On::Status, Err(_)) if is_word(payload) => String::from_utf8_lossy(payload).trim().into(),
        (_, Err(error)) => return Err(Wrong::Json(error.to_string())),
    };
    let mut status = None;
    match on {
        On::Sensor(kind) => reader.sensor(kind, &value)?,
        On::Sensors | On::Batch => reader.readings(&value)?,
        On::DeepSleep => reader.figures(object(&value)?)?,
        On::Status => status = Some(self::status(&value)?),
    }
    let Reader { samples, untimed, .. } = reader;
    let fields = value.as_object();
    let sleeps = match (on, &status) {
        (On::DeepSleep, _) => true,
        (_, Some(Status { word, .. })) => matches!(word.as_str(), "sleeping" | "sleep" | "deep_sleep"),
        (_, None) => false,
    };
    let sight = Sight {
        kind: MetricName::parse(KIND).ok(),
        firmware: fields.filter(|_| matches!(on, On::Status)).and_then(firmware),
        sleep: fields.filter(|_| sleeps).and_then(sleep),
        unsequenced: untimed,
    };
    Ok(Read { told: Told { device: device.clone(), sight, samples, events: Vec::new() }, status })
}

struct Reader<'a> {
    device: &'a DeviceId,
    relays: bool,
    now_ms: i64,
    samples: Vec<Sample>,
    untimed: bool,
}

impl Reader<'_> {
    /// `{"value": 23.5, "unit": "C"}`, a bare number, or named figures.
    fn sensor(&mut self, kind: &str, value: &Value) -> Result<(), Wrong> {
        match value {
            Value::Number(_) => self.sample(self.device.clone(), kind, value, None, None),
            Value::Object(fields) if fields.contains_key("value") => {
                let time = when(fields)?;
                self.sample(self.device.clone(), kind, &fields["value"], unit_in(fields)?, time)
            }
            Value::Object(fields) => self.figures(fields),
            _ => Err(Wrong::Shape("{\"value\": 23.5, \"unit\": \"C\"}")),
        }
    }

    /// One reading or a list of them, or named figures.
    fn readings(&mut self, value: &Value) -> Result<(), Wrong> {
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.reading(object(item)?)),
            Value::Object(fields) => self.reading(fields),
            _ => {
                Err(Wrong::Shape("a list of {\"sensor\": \"temperature\", \"value\": 23.5, \"unit\": \"C\"}"))
            }
        }
    }

    fn reading(&mut self, fields: &Map<String, Value>) -> Result<(), Wrong> {
        let Some(value) = fields.get("value") else { return self.figures(fields) };
        let Some(metric) = text(fields, &METRIC)? else {
            return Err(Wrong::Shape("a `sensor` beside each `value`"));
        };
        let device = self.whose(fields)?;
        self.sample(device, metric, value, unit_in(fields)?, when(fields)?)
    }

    /// Every number is a sample of its name, also below `values`.
    fn figures(&mut self, fields: &Map<String, Value>) -> Result<(), Wrong> {
        let device = self.whose(fields)?;
        let time = when(fields)?;
        let units = UNIT.iter().find_map(|key| fields.get(*key)).and_then(Value::as_object);
        let figures = fields.get("values").and_then(Value::as_object).unwrap_or(fields);
        let before = self.samples.len();
        for (name, value) in figures {
            let other = [&TIME[..], &SLEEP, &ID, &METRIC, &UNIT].concat().contains(&name.as_str());
            if other || !value.is_number() {
                continue;
            }
            let told = units.and_then(|units| units.get(name)).and_then(Value::as_str);
            let known = FIGURES.iter().find(|(figure, _)| figure == name).map(|(_, unit)| *unit);
            self.sample(device.clone(), name, value, told.or(known), time)?;
        }
        if self.samples.len() == before {
            return Err(Wrong::Shape("numbers under their names, such as {\"temperature\": 23.5}"));
        }
        Ok(())
    }

    fn sample(
        &mut self,
        device: DeviceId,
        metric: &str,
        value: &Value,
        unit: Option<&str>,
        time_ms: Option<i64>,
    ) -> Result<(), Wrong> {
        let name = |text| MetricName::parse(text).map_err(|error| Wrong::Name(error.to_string()));
        let Some(value) = value.as_f64().filter(|value| value.is_finite()) else {
            return Err(Wrong::Shape("a finite number as the value"));
        };
        let unit = unit.map(unit::ucum).filter(|unit| !unit.is_empty()).map(name).transpose()?;
        self.untimed |= time_ms.is_none();
        let time_ms = time_ms.unwrap_or(self.now_ms);
        self.samples.push(Sample { time_ms, device, metric: name(metric)?, unit, value });
        Ok(())
    }

    /// Of which device a reading is.
    fn whose(&self, fields: &Map<String, Value>) -> Result<DeviceId, Wrong> {
        let Some(id) = text(fields, &ID)? else { return Ok(self.device.clone()) };
        let device = DeviceId::parse(id).map_err(|error| Wrong::Name(error.to_string()))?;
        if device != *self.device && !self.relays {
            return Err(Wrong::Foreign(device, self.device.clone()));
        }
        Ok(device)
    }
}

fn status(value: &Value) -> Result<Status, Wrong> {
    let word = match value {
        Value::String(word) => Some(word.as_str()),
        Value::Object(fields) => fields.get("status").and_then(Value::as_str),
        _ => None,
    };
    let word = word.map(|word| word.trim().to_ascii_lowercase());
    let word = word.ok_or(Wrong::Shape("{\"status\": \"online\"}"))?;
    Ok(Status { word, whole: value.clone() })
}

fn firmware(fields: &Map<String, Value>) -> Option<MetricName> {
    let text = FIRMWARE.iter().find_map(|key| fields.get(*key)).and_then(Value::as_str)?;
    MetricName::parse(text).ok()
}

fn sleep(fields: &Map<String, Value>) -> Option<Duration> {
    let seconds = SLEEP.iter().find_map(|key| fields.get(*key)).and_then(Value::as_f64)?;
    Duration::try_from_secs_f64(seconds).ok().filter(|span| !span.is_zero())
}

fn object(value: &Value) -> Result<&Map<String, Value>, Wrong> {
    value.as_object().ok_or(Wrong::Shape("an object"))
}

/// The first of these fields that is there and not null.
fn text<'a>(fields: &'a Map<String, Value>, keys: &[&str]) -> Result<Option<&'a str>, Wrong> {
    let found = keys.iter().find_map(|key| fields.get(*key).filter(|value| !value.is_null()));
    match found {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
        Some(_) => Err(Wrong::Shape("texts as names and ids")),
    }
}

fn unit_in(fields: &Map<String, Value>) -> Result<Option<&str>, Wrong> {
    match UNIT.iter().find_map(|key| fields.get(*key)) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(unit)) => Ok(Some(unit)),
        Some(_) => Err(Wrong::Shape("the unit as a text")),
    }
}

/// When it was measured, where the board says so.
fn when(fields: &Map<String, Value>) -> Result<Option<i64>, Wrong> {
    let wrong = || Wrong::Shape("a time as RFC 3339 or as Unix seconds, or none");
    let Some((key, value)) = TIME.iter().find_map(|key| Some((*key, fields.get(*key)?))) else {
        return Ok(None);
    };
    match value {
        Value::Null => Ok(None),
        Value::Number(number) => {
            let number = number.as_f64().filter(|number| number.is_finite()).ok_or_else(wrong)?;
            let seconds = key != "time_ms" && number.abs() < SECONDS_BELOW;
            // Saturates, as times of a clock that was never set may.
            Ok(Some((if seconds { number * 1_000.0 } else { number }).round() as i64))
        }
        Value::String(text) => {
            let time = text.parse::<Timestamp>().or_else(|_| format!("{text}Z").parse());
            Ok(Some(time.map_err(|_| wrong())?.as_millisecond()))
        }
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => Err(wrong()),
    }
}

fn is_word(payload: &[u8]) -> bool {
    let text = payload.trim_ascii();
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NOW_MS: i64 = 1_790_000_000_000;

    fn device(id: &str) -> DeviceId {
        DeviceId::parse(id).unwrap()
    }

    fn said(on: &On, payload: &str) -> Result<Read, Wrong> {
        read(&device("shed"), on, payload.as_bytes(), false, NOW_MS)
    }

    fn samples(on: &On, payload: &str) -> Vec<(String, f64, Option<String>, i64)> {
        let Read { told, .. } = said(on, payload).unwrap();
        assert!(told.samples.iter().all(|sample| sample.device == told.device));
        let row = |sample: Sample| {
            let unit = sample.unit.map(|unit| unit.as_str().to_owned());
            (sample.metric.as_str().to_owned(), sample.value, unit, sample.time_ms)
        };
        told.samples.into_iter().map(row).collect()
    }

    fn row(metric: &str, value: f64, unit: Option<&str>) -> (String, f64, Option<String>, i64) {
        (metric.to_owned(), value, unit.map(str::to_owned), NOW_MS)
    }

    #[test]
    fn a_sensor_has_its_metric_in_the_topic_and_its_time_from_the_agent() {
        let on = On::Sensor("temperature".to_owned());
        let expected = [row("temperature", 23.5, Some("Cel"))];
        assert_eq!(samples(&on, r#"{"value":23.50,"unit":"C"}"#), expected);
        let read = said(&on, r#"{"value":23.50,"unit":"C"}"#).unwrap();
        assert!(read.told.sight.unsequenced);
        assert_eq!(read.told.sight.kind.unwrap().as_str(), "microclaw");
        assert_eq!(samples(&on, "23.5"), [row("temperature", 23.5, None)]);
        let dht = On::Sensor("dht22".to_owned());
        let both = [row("humidity", 40.0, Some("%")), row("temperature", 23.5, Some("Cel"))];
        assert_eq!(samples(&dht, r#"{"humidity":40,"temperature":23.5}"#), both);
        let timed = r#"{"value":1,"timestamp":"2026-08-01T00:00:00Z"}"#;
        assert_eq!(samples(&on, timed)[0].3, 1_785_542_400_000);
        assert!(!said(&on, timed).unwrap().told.sight.unsequenced);
    }

    #[test]
    fn a_status_tells_the_firmware_and_announces_sleep() {
        let read = said(&On::Status, r#"{"status":"online","version":"0.2.0"}"#).unwrap();
        assert_eq!(read.told.sight.firmware.unwrap().as_str(), "0.2.0");
        assert_eq!((read.status.unwrap().word.as_str(), read.told.samples.len()), ("online", 0));
        let asleep = said(&On::Status, r#"{"status":"sleeping","sleep_s":600}"#).unwrap();
        assert_eq!(asleep.told.sight.sleep, Some(Duration::from_secs(600)));
        let awake = said(&On::Status, r#"{"status":"online","sleep_s":600}"#).unwrap();
        assert_eq!(awake.told.sight.sleep, None);
        assert_eq!(said(&On::Status, "reconnected").unwrap().status.unwrap().word, "reconnected");
    }

    #[test]
    fn a_deep_sleeper_reports_all_its_figures() {
        let report = r#"{"boot_count":7,"temperature":21.5,"humidity":55,"battery_voltage":3.7,"uptime":12,"wifi_rssi":-61,"sleep_s":900}"#;
        let expected = [
            row("battery_voltage", 3.7, Some("V")),
            row("boot_count", 7.0, None),
            row("humidity", 55.0, Some("%")),
            row("temperature", 21.5, Some("Cel")),
            row("uptime", 12.0, Some("s")),
            row("wifi_rssi", -61.0, Some("dB[mW]")),
        ];
        assert_eq!(samples(&On::DeepSleep, report), expected);
        assert_eq!(said(&On::DeepSleep, report).unwrap().told.sight.sleep, Some(Duration::from_secs(900)));
    }

    #[test]
    fn a_gateway_speaks_for_others_only_by_permission() {
        let batch = r#"[{"sensor":"t","value":1,"unit":"C"},{"device":"barn","sensor":"t","value":2}]"#;
        let foreign = Wrong::Foreign(device("barn"), device("shed"));
        assert_eq!(said(&On::Batch, batch), Err(foreign));
        let read = read(&device("shed"), &On::Batch, batch.as_bytes(), true, NOW_MS).unwrap();
        let of: Vec<_> = read.told.samples.iter().map(|sample| sample.device.as_str()).collect();
        assert_eq!(of, ["shed", "barn"]);
        let own = r#"[{"device":"shed","sensor":"t","value":1}]"#;
        assert_eq!(samples(&On::Batch, own), [row("t", 1.0, None)]);
        let values = r#"{"sensor":"dht22","values":{"temperature":23.5},"unit":{"temperature":"F"}}"#;
        assert_eq!(samples(&On::Sensors, values), [row("temperature", 23.5, Some("[degF]"))]);
    }

    #[test]
    fn what_is_wrong_is_refused_whole() {
        let on = On::Sensor("t".to_owned());
        for (payload, reason) in [
            ("", "json"),
            (r#"{"value":nan,"unit":"C"}"#, "json"),
            (r#"{"value":"23.5"}"#, "shape"),
            (r#"{"value":null}"#, "shape"),
            (r#"{"value":true}"#, "shape"),
            (r#"{"value":1,"unit":7}"#, "shape"),
            (r#"{"value":1,"timestamp":"yesterday"}"#, "shape"),
            (r#""warm""#, "shape"),
            ("{}", "shape"),
            ("[1]", "shape"),
        ] {
            assert_eq!(said(&on, payload).unwrap_err().reason(), reason, "{payload}");
        }
        let long = format!(r#"[{{"sensor":"t","value":1}},{{"sensor":"{}","value":1}}]"#, "x".repeat(64));
        assert_eq!(said(&On::Batch, &long).unwrap_err().reason(), "name");
        assert_eq!(said(&On::Batch, r#"[{"value":1}]"#).unwrap_err().reason(), "shape");
        assert_eq!(said(&On::Status, "{}").unwrap_err().reason(), "shape");
        assert_eq!(said(&On::Status, "no word").unwrap_err().reason(), "json");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            payload in proptest::collection::vec(any::<u8>(), 0..512), which in 0_usize..5, relays: bool,
        ) {
            let on = [On::Sensor("t".to_owned()), On::Sensors, On::Status, On::DeepSleep, On::Batch];
            let _ = read(&device("shed"), &on[which], &payload, relays, NOW_MS);
        }

        #[test]
        fn only_a_gateway_is_heard_for_others(id in "[a-z]{1,6}", value: i32, relays: bool) {
            let payload = json!([{"device": id, "sensor": "t", "value": value}]).to_string();
            let read = read(&device("shed"), &On::Batch, payload.as_bytes(), relays, NOW_MS);
            prop_assert_eq!(read.is_ok(), relays || id == "shed");
        }
    }
}
