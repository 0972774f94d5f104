//! One line of a log, and which lines are asked for. Pure.

use ciborium::Value;
use serde::{Deserialize, Serialize};

/// What the agent's own lines are filed under.
pub const OWN_UNIT: &str = "fleet-agent";
/// Longest text of a line that is kept, in bytes; the rest is cut.
pub const MESSAGE_BYTES: usize = 4 * 1024;
/// Longest name of a unit, in bytes: systemd's limit.
pub const UNIT_BYTES: usize = 255;
/// Most lines that one answer counts back.
pub const LAST: u32 = 100_000;
/// Longest that an answer waits for lines, in seconds.
pub const WAIT_S: u64 = 60;

/// Priorities of syslog (RFC 5424 §6.2.1), as far as they are named here.
pub const ERROR: u8 = 3;
/// See [`ERROR`].
pub const WARNING: u8 = 4;
/// See [`ERROR`].
pub const INFO: u8 = 6;
/// See [`ERROR`].
pub const DEBUG: u8 = 7;

/// A line, as it lies in the ring and as it travels: one JSON object on a line of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its number: grows, and is never given twice.
    pub n: u64,
    /// When, Unix milliseconds, by the node's clock.
    pub time_ms: i64,
    /// Whose: `fleet-agent`, a unit of systemd, or a file.
    pub unit: String,
    /// Priority of syslog: 0 (emergency) to 7 (debug).
    pub priority: u8,
    /// The text.
    pub message: String,
}

impl Line {
    /// A line without a number yet; text and unit are cut to their limits.
    pub(crate) fn new(time_ms: i64, unit: &str, priority: u8, message: &str) -> Self {
        let cut = |text: &str, most: usize| text[..text.floor_char_boundary(most)].to_owned();
        let message = match message.len() {
            0..=MESSAGE_BYTES => message.to_owned(),
            _ => format!("{}…", cut(message, MESSAGE_BYTES - 3)),
        };
        Self { n: 0, time_ms, unit: cut(unit, UNIT_BYTES), priority: priority.min(DEBUG), message }
    }

    /// Bytes that it takes.
    pub(crate) fn size(&self) -> usize {
        // What is around the texts, and what escaping adds at worst in ordinary text.
        self.message.len() + self.unit.len() + 80
    }
}

/// Parameters of a command of kind `logs`: which lines, and where to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Query {
    /// Only of this unit; `.service` may be left away.
    pub unit: Option<String>,
    /// Only with this text in it.
    pub grep: Option<String>,
    /// Only this priority and the graver ones: `3` are errors and what is worse.
    pub priority: Option<u8>,
    /// Not before, Unix milliseconds.
    pub since_ms: Option<i64>,
    /// Only with a number above: the `next` of the answer before.
    pub after: Option<u64>,
    /// Only the last so many of them.
    pub last: Option<u32>,
    /// How long to wait while there is none, in seconds.
    pub wait_s: Option<u64>,
}

impl Query {
    /// Reads parameters; nothing at all asks for everything.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn read(params: &Value) -> Result<Self, String> {
        if params.is_null() {
            return Ok(Self::default());
        }
        let query: Self = params.deserialized().map_err(|error| error.to_string())?;
        if query.last.is_some_and(|last| last == 0 || last > LAST) {
            return Err(format!("last may be 1 to {LAST}"));
        }
        if query.wait_s.is_some_and(|wait| wait > WAIT_S) {
            return Err(format!("wait_s may be 0 to {WAIT_S}"));
        }
        Ok(query)
    }

    /// Whether a line is asked for.
    #[must_use]
    pub fn takes(&self, line: &Line) -> bool {
        let is_of = |unit: &String| {
            line.unit == *unit || line.unit.strip_suffix(".service").is_some_and(|name| name == unit)
        };
        self.after.is_none_or(|after| line.n > after)
            && self.since_ms.is_none_or(|since| line.time_ms >= since)
            && self.priority.is_none_or(|most| line.priority <= most)
            && self.unit.as_ref().is_none_or(is_of)
            && self.grep.as_ref().is_none_or(|text| line.message.contains(text.as_str()))
    }
}

/// Lines, oldest first, and where to go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The lines.
    pub lines: Vec<Line>,
    /// Everything up to here was looked at.
    pub next: u64,
    /// Whether there are more already.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(n: u64, unit: &str, priority: u8, message: &str) -> Line {
        Line { n, ..Line::new(1_000 + i64::try_from(n).unwrap(), unit, priority, message) }
    }

    fn query(json: &serde_json::Value) -> Result<Query, String> {
        Query::read(&Value::serialized(json).unwrap())
    }

    #[test]
    fn a_query_chooses_by_everything_it_names() {
        let error = line(7, "greeter.service", ERROR, "no sensor at 0x76");
        let info = line(8, OWN_UNIT, INFO, "connected");
        for (asked, takes) in [
            (json!({}), [true, true]),
            (json!({"unit": "greeter"}), [true, false]),
            (json!({"unit": "greeter.service"}), [true, false]),
            (json!({"unit": "greet"}), [false, false]),
            (json!({"grep": "0x76"}), [true, false]),
            (json!({"priority": 4}), [true, false]),
            (json!({"since_ms": 1_008}), [false, true]),
            (json!({"after": 7}), [false, true]),
            (json!({"after": 7, "grep": "sensor"}), [false, false]),
        ] {
            let query = query(&asked).unwrap();
            assert_eq!([query.takes(&error), query.takes(&info)], takes, "{asked}");
        }
        for bad in [json!({"last": 0}), json!({"wait_s": 3_600}), json!({"shell": "rm"}), json!("x")] {
            assert!(query(&bad).is_err(), "{bad}");
        }
        assert_eq!(Query::read(&Value::Null), Ok(Query::default()));
    }

    #[test]
    fn lines_are_cut_between_characters() {
        let long = line(1, "u", 9, &"ö".repeat(MESSAGE_BYTES));
        assert!(
            long.message.len() <= MESSAGE_BYTES && long.message.ends_with("ö…"),
            "{}",
            long.message.len()
        );
        assert_eq!(long.priority, DEBUG);
        let exact = "x".repeat(MESSAGE_BYTES);
        assert_eq!(line(1, "u", 3, &exact).message, exact);
    }
}
