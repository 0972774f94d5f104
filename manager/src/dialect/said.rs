//! What agents in the field say, under every spelling of theirs, as one set of words. Pure.

use std::collections::BTreeMap;

use fleet_schemas::{
    CommandId, DeviceId, MetricName, NodeId,
    command::{Reason, Report, State},
    event::{Event, Severity},
    limits,
    telemetry::Sample,
    unit,
};
use serde_json::{Map, Value, json};

use super::read::{Fault, Fields, Given, depth, number};

/// Most events of one request (the proposed OpenAPI's own limit).
pub(crate) const EVENTS: usize = 100;
/// Most readings of one request.
pub(crate) const READINGS: usize = 1_000;
/// Deepest data of an event: batch, array, event and map take four of the levels that the wire allows.
const DEPTH: usize = limits::CBOR_DEPTH - 6;
/// Deepest figures of a heartbeat.
const FIGURES_DEPTH: usize = 3;

/// How a node may be called.
pub(crate) const NODE: [&str; 3] = ["node_id", "id", "agentId"];
const NODE_ONLY: [&str; 3] = ["node_id", "agentId", "nodeId"];
const TIME: [&str; 4] = ["timestamp", "time", "ts", "executed_at"];

/// Who an agent is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Hello {
    pub node: Option<NodeId>,
    pub kind: Option<String>,
    pub name: Option<String>,
    pub capabilities: Vec<String>,
    pub version: Option<String>,
    pub firmware: Option<String>,
    pub machine: BTreeMap<String, String>,
}

/// Still here.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Beat {
    pub node: Option<NodeId>,
    /// Its own word for how it is.
    pub status: Option<String>,
    pub figures: BTreeMap<String, f64>,
    pub time: Option<Given>,
}

/// What happened, and what was measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Told {
    pub node: Option<NodeId>,
    /// Entries of the request.
    pub received: usize,
    pub events: Vec<Event>,
    pub samples: Vec<Sample>,
}

/// More than one request may bring, or a field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wrong {
    Field(Fault),
    Many(String),
}

impl From<Fault> for Wrong {
    fn from(fault: Fault) -> Self {
        Self::Field(fault)
    }
}

/// Reads a register.
pub(crate) fn hello(body: &Value) -> Result<Hello, Fault> {
    let fields = Fields::of(body, "")?;
    let mut machine = BTreeMap::new();
    let metadata = fields.object(&["metadata"])?;
    let parts = [fields.object(&["hardware"]).ok().flatten(), metadata.clone()];
    for part in parts.iter().flatten() {
        for (key, value) in part.map() {
            describe(&mut machine, key, value);
        }
    }
    if let Some((key, value @ (Value::String(_) | Value::Number(_)))) = fields.find(&["hardware"]) {
        describe(&mut machine, key, value);
    }
    for key in ["location", "node_group", "group", "description"] {
        if let Some(value) = fields.map().get(key) {
            describe(&mut machine, key, value);
        }
    }
    let mut capabilities = Vec::new();
    if let Some((at, items)) = fields.list(&["capabilities"])? {
        if items.len() > limits::LABELS_PER_NODE {
            return Err(Fault::new(at, format!("give at most {} capabilities", limits::LABELS_PER_NODE)));
        }
        for (index, item) in items.iter().enumerate() {
            match item.as_str() {
                Some(text) if text.len() <= limits::LABEL_BYTES => capabilities.push(text.to_owned()),
                Some(_) | None => {
                    let why = format!("give a text of at most {} bytes", limits::LABEL_BYTES);
                    return Err(Fault::new(format!("{at}/{index}"), why));
                }
            }
        }
    }
    let version = ["version", "agent_version"];
    let inner = metadata.as_ref().map(|meta| meta.text(&version, limits::LABEL_BYTES)).transpose()?.flatten();
    Ok(Hello {
        node: fields.node(&NODE)?,
        kind: fields.text(&["node_type", "type", "kind"], limits::LABEL_BYTES)?,
        name: fields.text(&["node_name", "name", "hostname"], limits::TEXT_BYTES)?,
        capabilities,
        version: fields.text(&version, limits::LABEL_BYTES)?.or(inner),
        firmware: fields.text(&["firmware", "firmware_version"], limits::LABEL_BYTES)?,
        machine,
    })
}

fn describe(machine: &mut BTreeMap<String, String>, key: &str, value: &Value) {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => return,
        other => other.to_string(),
    };
    let fits = !key.is_empty() && key.len() <= limits::LABEL_BYTES && text.len() <= limits::TEXT_BYTES;
    // Two are the hub's own words.
    if fits && machine.len() < limits::LABELS_PER_NODE - 2 {
        machine.entry(key.to_owned()).or_insert(text);
    }
}

/// Reads a heartbeat.
pub(crate) fn beat(body: &Value, now_ms: i64) -> Result<Beat, Fault> {
    let fields = Fields::of(body, "")?;
    let mut figures = BTreeMap::new();
    if let Some(metrics) = fields.object(&["metrics"])? {
        for (key, value) in metrics.map() {
            let fault = |why: &str| Fault::new(metrics.pointer(key), why);
            let number = number(value).ok_or_else(|| fault("give a finite number here"))?;
            MetricName::parse(key).map_err(|error| fault(&error.to_string()))?;
            figures.insert(key.clone(), number);
        }
    }
    for (key, value) in fields.map() {
        match key.as_str() {
            "metrics" | "node_id" | "id" | "agentId" | "nodeId" | "timestamp" | "time" | "ts" | "status" => {}
            "system" => collect(&mut figures, "", value, 0),
            key => collect(&mut figures, key, value, 0),
        }
    }
    if figures.len() > limits::FIGURES_PER_NODE {
        let why = format!("give at most {} figures in a heartbeat", limits::FIGURES_PER_NODE);
        return Err(Fault::new("/metrics", why));
    }
    Ok(Beat {
        node: fields.node(&NODE)?,
        status: fields.text(&["status"], limits::LABEL_BYTES)?.map(|text| text.to_ascii_lowercase()),
        figures,
        time: fields.time(&TIME, now_ms)?,
    })
}

/// The numbers in a value, by path.
fn collect(figures: &mut BTreeMap<String, f64>, path: &str, value: &Value, level: usize) {
    match value {
        Value::Object(map) if level < FIGURES_DEPTH => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect(figures, &path, value, level + 1);
            }
        }
        Value::Number(_) => {
            // A name that cannot be one, or one too many: heartbeats are no place for refusals over a detail.
            if let (Some(number), Ok(_)) = (number(value), MetricName::parse(path))
                && figures.len() < limits::FIGURES_PER_NODE
            {
                figures.insert(path.to_owned(), number);
            }
        }
        Value::Object(_) | Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) => {}
    }
}

/// Reads events: one, `{events: […]}`, or a bare list. `bound` is the node that the token serves already: then an `id`
/// that is not its own names the event.
pub(crate) fn events(body: &Value, bound: Option<&NodeId>, now_ms: i64) -> Result<Told, Wrong> {
    let mut told = Told::default();
    let items: Vec<(String, &Value)> = match body {
        Value::Array(items) => numbered("", items),
        body => {
            let fields = Fields::of(body, "")?;
            let list = fields.list(&["events"])?;
            told.node = fields.node(&NODE_ONLY)?;
            if told.node.is_none() && fields.has("id") {
                let named = fields.node(&["id"]);
                told.node = match bound {
                    Some(bound) => named.ok().flatten().filter(|named| named == bound),
                    None => named?,
                };
            }
            match list {
                Some((at, items)) => numbered(&at, items),
                None => vec![(String::new(), body)],
            }
        }
    };
    if items.len() > EVENTS {
        return Err(Wrong::Many(format!("more than {EVENTS} events; send them in parts")));
    }
    told.received = items.len();
    for (at, item) in items {
        let fields = Fields::of(item, &at)?;
        event(&mut told, &fields, now_ms)?;
    }
    Ok(told)
}

fn numbered<'a>(at: &str, items: &'a [Value]) -> Vec<(String, &'a Value)> {
    items.iter().enumerate().map(|(index, item)| (format!("{at}/{index}"), item)).collect()
}

/// Field names of an event that the record itself has.
const OWN: [&str; 20] = [
    "node_id",
    "agentId",
    "nodeId",
    "id",
    "event_id",
    "type",
    "event_type",
    "kind",
    "severity",
    "level",
    "message",
    "timestamp",
    "time",
    "ts",
    "device",
    "device_id",
    "data",
    "payload",
    "events",
    "unsequenced",
];

fn event(told: &mut Told, fields: &Fields<'_>, now_ms: i64) -> Result<(), Fault> {
    let kinds = ["event_type", "type", "kind"];
    let kind = fields.name(&kinds)?.ok_or_else(|| fields.wrong(&["type"], "give the type of the event"))?;
    let data = fields.find(&["data", "payload"]).map(|(_, value)| value);
    let inner = data.and_then(|data| Fields::of(data, &fields.pointer("data")).ok());
    let severity =
        match fields.text(&["severity", "level"], limits::LABEL_BYTES)? {
            Some(word) => Some(severity(&word).ok_or_else(|| {
                fields.wrong(&["severity", "level"], "give info, warning, error or critical")
            })?),
            None => None,
        };
    let word = inner.as_ref().and_then(|inner| inner.find(&["severity", "level"])?.1.as_str());
    let severity = severity.or_else(|| word.and_then(self::severity)).unwrap_or(match kind.as_str() {
        "alert" | "warning" => Severity::Warning,
        "error" => Severity::Error,
        _ => Severity::Info,
    });
    let time = fields.time(&TIME, now_ms)?;
    let at = Given { time_ms: now_ms, wrong_ms: None };
    let (time, stamped) = (time.unwrap_or(at), time.is_some());
    let device = device(fields)?;
    if is_reading(kind.as_str()) {
        let before = told.samples.len();
        samples_of_event(told, fields, inner.as_ref(), device.as_ref(), time.time_ms)?;
        // A reading that is nothing to worry about is a sample and no more.
        if told.samples.len() > before && severity == Severity::Info {
            return Ok(());
        }
    }
    let spoken = inner.as_ref().and_then(|inner| inner.find(&["message", "text", "summary"])?.1.as_str());
    let message = fields.text(&["message"], limits::EVENT_MESSAGE_BYTES)?;
    let message = message.or_else(|| spoken.map(|text| clip(text, limits::EVENT_MESSAGE_BYTES)));
    let event = Event {
        time_ms: time.time_ms,
        message: message.unwrap_or_else(|| kind.as_str().replace('_', " ")),
        kind,
        severity,
        data: Some(carried(fields, data, time.wrong_ms, stamped)?),
        device,
        id: id_of(fields, told.node.as_ref())?,
    };
    event.check().map_err(|why| {
        let field = why.split(' ').next().unwrap_or_default();
        Fault::new(fields.pointer(field), why)
    })?;
    told.events.push(event);
    Ok(())
}

fn id_of(fields: &Fields<'_>, node: Option<&NodeId>) -> Result<Option<String>, Fault> {
    let id = fields.text(&["event_id", "id"], limits::LABEL_BYTES)?;
    Ok(id.filter(|id| node.is_none_or(|node| node.as_str() != id.to_ascii_lowercase())))
}

/// What the record carries beside its own fields, and that it came without a sequence.
fn carried(
    fields: &Fields<'_>,
    data: Option<&Value>,
    wrong_ms: Option<i64>,
    stamped: bool,
) -> Result<ciborium::Value, Fault> {
    let mut map = match data {
        Some(Value::Object(map)) => map.clone(),
        Some(other) => Map::from_iter([("value".to_owned(), other.clone())]),
        None => Map::new(),
    };
    for (key, value) in fields.map().iter().filter(|(key, _)| !OWN.contains(&key.as_str())) {
        map.entry(key.clone()).or_insert_with(|| value.clone());
    }
    if let Some(wrong_ms) = wrong_ms {
        map.insert("reported_ms".to_owned(), json!(wrong_ms));
    } else if !stamped {
        map.insert("unstamped".to_owned(), json!(true));
    }
    map.insert("unsequenced".to_owned(), json!(true));
    let map = Value::Object(map);
    if depth(&map) > DEPTH {
        return Err(Fault::new(fields.pointer("data"), format!("nested deeper than {DEPTH}; flatten it")));
    }
    ciborium::Value::serialized(&map).map_err(|error| Fault::new(fields.pointer("data"), error.to_string()))
}

fn is_reading(kind: &str) -> bool {
    matches!(kind, "sensor_reading" | "sensor" | "reading" | "telemetry" | "measurement")
}

/// Severities of every dialect.
pub(crate) fn severity(word: &str) -> Option<Severity> {
    Some(match word.to_ascii_lowercase().as_str() {
        "debug" | "info" | "information" | "notice" | "normal" | "low" => Severity::Info,
        "warning" | "warn" | "medium" => Severity::Warning,
        "error" | "err" | "high" => Severity::Error,
        "critical" | "crit" | "emergency" | "fatal" | "urgent" => Severity::Critical,
        _ => return None,
    })
}

fn clip(text: &str, most: usize) -> String {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn device(fields: &Fields<'_>) -> Result<Option<DeviceId>, Fault> {
    let keys = ["device", "device_id"];
    let Some(text) = fields.text(&keys, limits::LABEL_BYTES)? else { return Ok(None) };
    DeviceId::parse(&text).map(Some).map_err(|error| fields.wrong(&keys, error.to_string()))
}

fn samples_of_event(
    told: &mut Told,
    fields: &Fields<'_>,
    inner: Option<&Fields<'_>>,
    device: Option<&DeviceId>,
    time_ms: i64,
) -> Result<(), Fault> {
    let device = device.cloned().unwrap_or_else(DeviceId::node);
    for part in [Some(fields), inner].into_iter().flatten() {
        let unit = part.find(&["unit", "units"]).map(|(_, unit)| unit);
        if let Some(values) = part.object(&["values"])? {
            for (key, value) in values.map() {
                if let Some(value) = number(value) {
                    let metric = MetricName::parse(key)
                        .map_err(|error| Fault::new(values.pointer(key), error.to_string()))?;
                    let unit = unit_of(unit, key);
                    told.samples.push(Sample { time_ms, device: device.clone(), metric, unit, value });
                }
            }
        } else if let Some((_, value @ Value::Number(_))) = part.find(&["value"]) {
            let names = ["sensor_type", "metric", "sensor"];
            let metric = match part.name(&names)? {
                Some(metric) => Some(metric),
                None => fields.name(&names)?,
            };
            if let (Some(metric), Some(value)) = (metric, number(value)) {
                let unit = unit_of(unit, metric.as_str());
                told.samples.push(Sample { time_ms, device: device.clone(), metric, unit, value });
            }
        }
    }
    Ok(())
}

fn unit_of(unit: Option<&Value>, name: &str) -> Option<MetricName> {
    let text = match unit? {
        Value::String(text) => text.as_str(),
        Value::Object(each) => each.get(name)?.as_str()?,
        _ => return None,
    };
    MetricName::parse(unit::ucum(text)).ok()
}

/// Reads one reading of a NanoClaw: `{node_id, sensor_type, value, unit, timestamp?}`.
pub(crate) fn report(body: &Value, now_ms: i64) -> Result<Told, Wrong> {
    let fields = Fields::of(body, "")?;
    let mut told = Told { received: 1, ..Told::default() };
    let gateway = fields.node(&["gateway_id"])?;
    told.node = match &gateway {
        Some(gateway) => Some(gateway.clone()),
        None => fields.node(&NODE)?,
    };
    reading(&mut told, &fields, now_ms)?;
    Ok(told)
}

/// Reads what a NanoClaw says upwards: `{gateway_id, readings[], batch_timestamp}`. The node is the gateway; each
/// reading is of a device behind it.
pub(crate) fn batch(body: &Value, now_ms: i64) -> Result<Told, Wrong> {
    let fields = Fields::of(body, "")?;
    let at = fields.time(&["batch_timestamp", "timestamp"], now_ms)?.map_or(now_ms, |given| given.time_ms);
    let (pointer, items) = fields
        .list(&["readings", "samples"])?
        .ok_or_else(|| Fault::new("/readings", "give a list of readings here"))?;
    if items.len() > READINGS {
        return Err(Wrong::Many(format!("more than {READINGS} readings; send them in parts")));
    }
    let node = fields.node(&["gateway_id", "gateway", "node_id"])?;
    let mut told = Told { node, received: items.len(), ..Told::default() };
    for (at_item, item) in numbered(&pointer, items) {
        reading(&mut told, &Fields::of(item, &at_item)?, at)?;
    }
    Ok(told)
}

fn reading(told: &mut Told, fields: &Fields<'_>, now_ms: i64) -> Result<(), Fault> {
    let names = ["sensor_type", "sensor", "metric", "type"];
    let time_ms = fields.time(&TIME, now_ms)?.map_or(now_ms, |given| given.time_ms);
    let device = match device(fields)? {
        Some(device) => device,
        None => match fields.node(&["node_id"])? {
            Some(board) if Some(&board) != told.node.as_ref() => DeviceId::parse(board.as_str())
                .map_err(|error| fields.wrong(&["node_id"], error.to_string()))?,
            Some(_) | None => DeviceId::node(),
        },
    };
    let unit = fields.find(&["unit", "units"]).map(|(_, unit)| unit);
    if let Some(values) = fields.object(&["values"])? {
        for (key, value) in values.map() {
            let metric =
                MetricName::parse(key).map_err(|error| Fault::new(values.pointer(key), error.to_string()))?;
            let value =
                number(value).ok_or_else(|| Fault::new(values.pointer(key), "give a finite number here"))?;
            let unit = unit_of(unit, key);
            told.samples.push(Sample { time_ms, device: device.clone(), metric, unit, value });
        }
        return Ok(());
    }
    let metric = fields.name(&names)?;
    let metric = metric.ok_or_else(|| fields.wrong(&["sensor_type"], "give what is measured"))?;
    let value = fields.number(&["value"])?;
    let value = value.ok_or_else(|| fields.wrong(&["value"], "give a finite number here"))?;
    let unit = unit_of(unit, metric.as_str());
    told.samples.push(Sample { time_ms, device, metric, unit, value });
    Ok(())
}

/// The node that a request names, if it names one.
pub(crate) fn named(body: &Value) -> Result<Option<NodeId>, Fault> {
    match body {
        Value::Null => Ok(None),
        body => Fields::of(body, "")?.node(&NODE),
    }
}

/// Reads `command/ack`: `{command_id, status: success|failed|timeout, executed_at, result}`.
pub(crate) fn ack(body: &Value, now_ms: i64) -> Result<Report, Fault> {
    let fields = Fields::of(body, "")?;
    let keys = ["command_id", "commandId"];
    let id = fields.text(&keys, limits::LABEL_BYTES)?;
    let id = id.ok_or_else(|| Fault::new("/command_id", "give the command's id"))?;
    let id: CommandId = id.parse().map_err(|_| fields.wrong(&keys, "this is no command's id"))?;
    let word = fields.text(&["status"], limits::LABEL_BYTES)?.unwrap_or_default().to_ascii_lowercase();
    let state = match word.as_str() {
        "success" | "succeeded" | "ok" | "completed" | "done" => State::Succeeded,
        "failed" | "failure" | "error" => State::Failed,
        "timeout" | "timed_out" => State::TimedOut,
        "rejected" => State::Rejected,
        "running" | "in_progress" => State::Running,
        _ => return Err(Fault::new("/status", "give success, failed or timeout")),
    };
    let result = fields.find(&["result", "output"]).map(|(_, value)| value);
    let inner = result.and_then(|result| Fields::of(result, "/result").ok());
    let spoken = result.and_then(Value::as_str).or_else(|| {
        [Some(&fields), inner.as_ref()]
            .into_iter()
            .flatten()
            .find_map(|part| part.find(&["error", "message"])?.1.as_str())
    });
    let reason = (state > State::Succeeded).then(|| Reason {
        code: word.clone(),
        message: spoken.map_or_else(|| format!("the agent said {word}"), |text| clip(text, 1_024)),
        may_have_executed: matches!(state, State::Failed | State::TimedOut),
    });
    if result.is_some_and(|result| depth(result) > DEPTH) {
        return Err(Fault::new("/result", format!("nested deeper than {DEPTH}; flatten it")));
    }
    let exit = inner.as_ref().and_then(|inner| inner.find(&["exit_code"])?.1.as_i64());
    let report = Report {
        id,
        state,
        time_ms: fields.time(&TIME, now_ms)?.map_or(now_ms, |given| given.time_ms),
        reason,
        exit_code: exit.and_then(|code| i32::try_from(code).ok()),
        output: None,
        result: result
            .map(ciborium::Value::serialized)
            .transpose()
            .map_err(|error| Fault::new("/result", error.to_string()))?,
        too_late: false,
    };
    report.check().map_err(|why| Fault::new("/result", why))?;
    Ok(report)
}
