//! Fields of JSON bodies under any of their spellings, with a pointer to the one that is wrong. Pure.

use fleet_schemas::{MetricName, NodeId};
use serde_json::{Map, Value};

/// Below this a number is Unix seconds, from it on Unix milliseconds: the year 5138 and March 1973.
const SECONDS_BELOW: f64 = 100_000_000_000.0;
/// How far ahead of the hub's clock a time may lie; beyond it the sender's clock is wrong.
const AHEAD_MS: i64 = 5 * 60_000;
/// How far back it may lie: a board that buffered, but not one that woke up in 1970.
const BACK_MS: i64 = 366 * 24 * 3_600_000;

/// A field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// JSON pointer to it.
    pub pointer: String,
    /// What to give there.
    pub why: String,
}

/// A time that a sender gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Given {
    /// The time to use, Unix milliseconds.
    pub time_ms: i64,
    /// What was given, where that cannot be true.
    pub wrong_ms: Option<i64>,
}

/// An object of a body.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    at: String,
    map: &'a Map<String, Value>,
}

impl Fault {
    pub(crate) fn new(pointer: impl Into<String>, why: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), why: why.into() }
    }
}

impl<'a> Fields<'a> {
    /// Takes an object.
    pub(crate) fn of(value: &'a Value, at: &str) -> Result<Self, Fault> {
        match value {
            Value::Object(map) => Ok(Self { at: at.to_owned(), map }),
            _ => Err(Fault::new(at, "give an object here")),
        }
    }

    /// All of them.
    pub(crate) fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// The pointer to a field.
    pub(crate) fn pointer(&self, key: &str) -> String {
        format!("{}/{}", self.at, key.replace('~', "~0").replace('/', "~1"))
    }

    /// A field that is wrong, under the first of its spellings.
    pub(crate) fn wrong(&self, keys: &[&str], why: impl Into<String>) -> Fault {
        let key = self.find(keys).map_or(keys[0], |(key, _)| key);
        Fault::new(self.pointer(key), why)
    }

    /// The first of the spellings that is there and not null.
    pub(crate) fn find<'k>(&self, keys: &[&'k str]) -> Option<(&'k str, &'a Value)> {
        keys.iter().find_map(|key| Some((*key, self.map.get(*key).filter(|value| !value.is_null())?)))
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A text of at most `most` bytes without control characters; a number is one too.
    pub(crate) fn text(&self, keys: &[&str], most: usize) -> Result<Option<String>, Fault> {
        let Some((key, value)) = self.find(keys) else { return Ok(None) };
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return Err(Fault::new(self.pointer(key), "give a text here")),
        };
        if text.len() > most || text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
            return Err(Fault::new(
                self.pointer(key),
                format!("give at most {most} bytes without control characters"),
            ));
        }
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// A node's id. Ids in the field may have capital letters; here they have none.
    pub(crate) fn node(&self, keys: &[&str]) -> Result<Option<NodeId>, Fault> {
        let Some((key, value)) = self.find(keys) else { return Ok(None) };
        let text = match value {
            Value::String(text) => text.to_ascii_lowercase(),
            Value::Number(number) => number.to_string(),
            _ => return Err(Fault::new(self.pointer(key), "give the node's id as a text")),
        };
        let node = NodeId::parse(&text).map_err(|error| Fault::new(self.pointer(key), error.to_string()))?;
        Ok(Some(node))
    }

    /// A name such as a kind of event; blanks become underscores.
    pub(crate) fn name(&self, keys: &[&str]) -> Result<Option<MetricName>, Fault> {
        let Some(text) = self.text(keys, 256)? else { return Ok(None) };
        let text = text.trim().replace(char::is_whitespace, "_");
        MetricName::parse(&text).map(Some).map_err(|error| self.wrong(keys, error.to_string()))
    }

    /// An object.
    pub(crate) fn object(&self, keys: &[&str]) -> Result<Option<Self>, Fault> {
        self.find(keys).map(|(key, value)| Self::of(value, &self.pointer(key))).transpose()
    }

    /// A list of at most `most`.
    pub(crate) fn list(&self, keys: &[&str]) -> Result<Option<(String, &'a Vec<Value>)>, Fault> {
        match self.find(keys) {
            None => Ok(None),
            Some((key, Value::Array(items))) => Ok(Some((self.pointer(key), items))),
            Some((key, _)) => Err(Fault::new(self.pointer(key), "give a list here")),
        }
    }

    /// A finite number.
    pub(crate) fn number(&self, keys: &[&str]) -> Result<Option<f64>, Fault> {
        let Some((key, value)) = self.find(keys) else { return Ok(None) };
        number(value).map(Some).ok_or_else(|| Fault::new(self.pointer(key), "give a finite number here"))
    }

    /// A time: RFC 3339, or Unix time in seconds or milliseconds. One that cannot be true gives way to the hub's.
    pub(crate) fn time(&self, keys: &[&str], now_ms: i64) -> Result<Option<Given>, Fault> {
        let Some((key, value)) = self.find(keys) else { return Ok(None) };
        let why = "give RFC 3339, such as 2026-11-29T20:00:00Z, or Unix time in seconds or milliseconds";
        let given = match value {
            Value::String(text) => {
                text.trim().parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond)
            }
            value => number(value).map(|number| {
                let millis = if number.abs() < SECONDS_BELOW { number * 1_000.0 } else { number };
                millis.round() as i64
            }),
        };
        let given = given.ok_or_else(|| Fault::new(self.pointer(key), why))?;
        let off = given.saturating_sub(now_ms);
        Ok(Some(if (-BACK_MS..=AHEAD_MS).contains(&off) {
            Given { time_ms: given, wrong_ms: None }
        } else {
            Given { time_ms: now_ms, wrong_ms: Some(given) }
        }))
    }
}

/// A number that can be stored; a switch is 0 or 1.
pub(crate) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64().filter(|number| number.is_finite()),
        Value::Bool(on) => Some(f64::from(u8::from(*on))),
        Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// How deeply a value is nested.
pub(crate) fn depth(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 1,
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(items) => 1 + items.values().map(depth).max().unwrap_or(0),
    }
}
