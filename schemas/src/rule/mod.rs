//! Rules: when a device's samples become an alert. One language for local rules at the agent and for the hub's engine.
//!
//! Owns the file (`alerts.yaml` as kits ship it, `rules.yaml`), the condition's language, windows over samples, and
//! the states of one (rule, device). Pure: what is known of a device comes in as a [`View`], time as an argument, and
//! [`State::step`] says what changed. Who is told, silences and inhibition are the business of whoever runs it.
//!
//! # A file
//! ```yaml
//! alerts:
//!   - id: rack-hot
//!     sensor: dht22                 # a device, or `any`
//!     field: temperature            # the metric that `value` means
//!     condition: "value > 27.0"
//!     severity: critical            # info, warning (warn), error, critical
//!     message: "{{ sensor }} is at {{ value }}"
//!     outputs: [log, webhook, buzzer]
//!     cooldown_s: 300               # from one firing to the next of the same device
//!     for: 2m                       # how long the condition holds before it fires
//!     hysteresis: 1.0               # how far a threshold moves away while it fires; absent: 0
//!     clear: "value < 25"           # in place of hysteresis
//!   - {id: silent, sensor: any, condition: "last_seen_s > 120", severity: warn}
//! ```
//! Also `enabled`, `name`, `description`, `labels` and `selector` (the hub's). Any other key of a rule is a mistake. The
//! list may be called `rules`. A file is taken or refused as a whole; [`FileError`] has line, column and reason.
//!
//! # A condition
//! The part of CEL (Common Expression Language) that conditions need: `|| && ! == != < <= > >= + - * / %`, brackets,
//! numbers (all of them doubles), `true`, `false`, `"text"`. Types are checked when it is read.
//!
//! | term | is |
//! |---|---|
//! | `value` | the latest value of the rule's `field` |
//! | `metric("m")`, `metric("device", "m")` | the latest value of another series |
//! | `has("m")`, `has("device", "m")` | whether it has one |
//! | `last_seen_s` | seconds since the device said anything |
//! | `rate("5m")`, `rate("m", "5m")` | change per second over the window |
//! | `avg_over`, `min_over`, `max_over`, `sum_over`, `count_over` | likewise |
//! | `abs(x)`, `min(x, y)`, `max(x, y)` | of numbers |
//!
//! Names beside these are facts that the [`Scope`] lists: the hub has more of them than an agent. What is not known (no
//! sample yet, a division by zero) is neither true nor false: `false && unknown` is false, `true || unknown` is true,
//! and a rule whose condition is unknown stays as it is.

mod eval;
mod file;
mod message;
mod parse;
mod state;
mod window;

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use eval::{Fact, Series, View};
pub use file::{FileError, Rule, Target, read, read_all};
pub use message::Message;
pub use parse::{CheckSelector, Condition, ConditionError, Kind, Scope};
pub use state::{Phase, State, Transition};
pub use window::{Aggregate, Window};

/// Largest file of rules, in bytes: a kit ships a dozen rules of 300 bytes.
pub const FILE_BYTES: usize = 256 * 1024;
/// Most rules in a file.
pub const RULES: usize = 1_000;
/// Longest condition, in bytes.
pub const CONDITION_BYTES: usize = 1_024;
/// Deepest nesting of brackets, calls and signs: bounds the recursion of reading and judging.
pub const CONDITION_DEPTH: usize = 16;
/// Most terms and operators of a condition: bounds the work of one judgement.
pub const CONDITION_TERMS: usize = 128;
/// Longest window and longest time of any kind in a rule.
pub const LONGEST: Duration = Duration::from_secs(7 * 86_400);
/// Longest message, in bytes.
pub const MESSAGE_BYTES: usize = 1_024;
/// Most outputs of a rule.
pub const OUTPUTS: usize = 8;

/// A rule's name: 1 to 63 of `A-Z a-z 0-9 . _ -`, so that it can be a level of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(std::sync::Arc<str>);

impl RuleId {
    /// Checks the grammar above.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        match text.len() {
            0 => Err("the id is empty; give every rule one"),
            1..=crate::limits::LABEL_BYTES if text.bytes().all(fits) => Ok(Self(text.into())),
            1..=crate::limits::LABEL_BYTES => Err("the id may have A-Z a-z 0-9 . _ - only"),
            _ => Err("the id is longer than 63 bytes"),
        }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for RuleId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RuleId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Reads `90s`, `5m`, `2h` or `1d`: more than nothing, at most [`LONGEST`].
#[must_use]
pub fn span(text: &str) -> Option<Duration> {
    let unit = text.char_indices().find(|(_, c)| c.is_ascii_alphabetic())?.0;
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    let span = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
    (!span.is_zero() && span <= LONGEST).then_some(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_unit_and_a_limit() {
        assert_eq!(span("90s"), Some(Duration::from_secs(90)));
        assert_eq!(span("1.5m"), Some(Duration::from_secs(90)));
        assert_eq!(span("7d"), Some(LONGEST));
        for bad in ["", "5", "m", "0s", "-5m", "8d", "5 m", "5min", "infs", "NaNs", "1e99h"] {
            assert_eq!(span(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_rules_id_can_be_a_level_of_a_topic() {
        assert!(RuleId::parse("rack-hot.2").is_ok());
        for bad in ["", "a/b", "a+", "#", "ä", "a b", &"x".repeat(64)] {
            assert!(RuleId::parse(bad).is_err(), "{bad}");
        }
    }
}
