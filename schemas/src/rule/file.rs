//! The file of rules: YAML in, rules out, or the line and column of what is wrong.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_saphyr::{DuplicateKeyPolicy, Location, Spanned};

use super::{Condition, FILE_BYTES, LONGEST, Message, OUTPUTS, RULES, RuleId, Scope, View, message, span};
use crate::{
    event::Severity,
    id::{DeviceId, MetricName},
    limits,
};

/// One rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name.
    pub id: RuleId,
    /// Which devices it judges.
    pub target: Target,
    /// The metric that `value` means.
    pub field: Option<MetricName>,
    /// When it fires.
    pub condition: Condition,
    /// When it resolves, in place of the condition's opposite.
    pub clear: Option<Condition>,
    /// How far thresholds of the field move away while it fires.
    pub hysteresis: f64,
    /// How long the condition holds before it fires.
    pub wait: Duration,
    /// Least time from one firing to the next of the same device.
    pub cooldown: Duration,
    /// How bad it is.
    pub severity: Severity,
    /// What people are told; absent: the condition itself.
    pub message: Option<Message>,
    /// Who is told beside the hub: names that the agent's configuration knows.
    pub outputs: Vec<String>,
    /// Labels of its alerts.
    pub labels: BTreeMap<String, String>,
    /// Which nodes it is for, as the hub reads selectors.
    pub selector: Option<String>,
}

/// Which devices a rule judges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Each of them by itself.
    Any,
    /// One; the node itself when empty.
    Device(DeviceId),
}

impl Target {
    /// Whether it is for this device.
    #[must_use]
    pub fn fits(&self, device: &DeviceId) -> bool {
        match self {
            Self::Any => true,
            Self::Device(id) => id == device,
        }
    }
}

/// Where a file of rules is wrong, and why. The text fits after "failed to read …: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct FileError {
    /// The line, from 1.
    pub line: u64,
    /// The column, from 1.
    pub column: u64,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Rule {
    /// The value that its alert tells: of its field, else how long ago the device was seen.
    #[must_use]
    pub fn value(&self, view: &dyn View) -> Option<f64> {
        match &self.field {
            Some(metric) => view.value(&super::Series { device: None, metric: metric.clone() }),
            None => view.last_seen_s(),
        }
    }

    /// What people are told of this device.
    #[must_use]
    pub fn render(&self, node: &str, device: &DeviceId, view: &dyn View) -> String {
        let name = if device.is_node() { node } else { device.as_str() };
        let seconds = |seconds: f64| message::number(seconds.floor());
        let of = |what: &str| match what {
            "value" => Some(self.value(view).map_or_else(|| "unknown".to_owned(), message::number)),
            "sensor" | "device" => Some(name.to_owned()),
            "field" | "metric" => self.field.as_ref().map(|field| field.as_str().to_owned()),
            "id" | "rule" => Some(self.id.as_str().to_owned()),
            "node" => Some(node.to_owned()),
            "severity" => Some(self.severity.as_str().to_owned()),
            "last_seen_s" => Some(view.last_seen_s().map_or_else(|| "unknown".to_owned(), seconds)),
            _ => self.labels.get(what).cloned(),
        };
        match &self.message {
            Some(message) => message.render(of),
            None => format!("{}: {} holds at {name}", self.id, self.condition.text()),
        }
    }
}

#[derive(Deserialize)]
struct RawFile {
    #[serde(default, alias = "rules")]
    alerts: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    id: Spanned<String>,
    #[serde(default, alias = "device")]
    sensor: Option<Spanned<String>>,
    #[serde(default, alias = "metric")]
    field: Option<Spanned<String>>,
    condition: Spanned<String>,
    #[serde(default)]
    clear: Option<Spanned<String>>,
    #[serde(default)]
    hysteresis: Option<Spanned<f64>>,
    #[serde(default, rename = "for", alias = "for_s")]
    wait: Option<Spanned<Span>>,
    #[serde(default, rename = "cooldown_s", alias = "cooldown")]
    cooldown: Option<Spanned<Span>>,
    #[serde(default)]
    severity: Option<Severity>,
    #[serde(default)]
    message: Option<Spanned<String>>,
    #[serde(default)]
    outputs: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    labels: Option<Spanned<BTreeMap<String, String>>>,
    #[serde(default)]
    selector: Option<Spanned<String>>,
    #[serde(default = "yes")]
    enabled: bool,
    #[serde(default, rename = "name")]
    _name: Option<String>,
    #[serde(default, rename = "description")]
    _description: Option<String>,
}

fn yes() -> bool {
    true
}

/// Seconds, or a text such as `5m`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Span {
    Seconds(f64),
    Text(String),
}

/// Reads a whole file. Rules that are not enabled are left out once they were checked.
///
/// # Errors
/// [`FileError`]: none of it is taken.
pub fn read(text: &str, scope: Scope<'_>) -> Result<Vec<Rule>, FileError> {
    let rules = read_all(text, scope)?.into_iter();
    Ok(rules.filter_map(|(rule, enabled)| enabled.then_some(rule)).collect())
}

/// Reads a whole file: every rule, and whether it is enabled.
///
/// # Errors
/// [`FileError`]: none of it is taken.
pub fn read_all(text: &str, scope: Scope<'_>) -> Result<Vec<(Rule, bool)>, FileError> {
    let top = |reason: String| FileError { line: 1, column: 1, reason };
    if text.len() > FILE_BYTES {
        return Err(top(format!("larger than {FILE_BYTES} bytes; keep rules apart")));
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::Error,
        with_snippet: false,
        budget: serde_saphyr::budget! { max_depth: 16, max_aliases: 0, max_anchors: 0, max_documents: 1 },
    };
    let file: RawFile = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
        let reason = error.without_snippet().to_string();
        let place = format!(" at line {line}, column {column}");
        let reason = reason.strip_suffix(&place).map_or_else(|| reason.clone(), str::to_owned);
        FileError { line, column, reason }
    })?;
    if file.alerts.len() > RULES {
        return Err(top(format!("more than {RULES} rules; keep them apart")));
    }
    let mut rules: Vec<(Rule, bool)> = Vec::with_capacity(file.alerts.len());
    for raw in file.alerts {
        let (at, enabled) = (raw.id.referenced, raw.enabled);
        let rule = raw.check(text, scope)?;
        if rules.iter().any(|(other, _)| other.id == rule.id) {
            return Err(wrong(at, format!("the id {} is taken by another rule", rule.id)));
        }
        rules.push((rule, enabled));
    }
    Ok(rules)
}

fn wrong(at: Location, reason: impl Into<String>) -> FileError {
    FileError { line: at.line(), column: at.column(), reason: reason.into() }
}

impl RawRule {
    fn check(self, text: &str, scope: Scope<'_>) -> Result<Rule, FileError> {
        let id = RuleId::parse(&self.id.value).map_err(|reason| wrong(self.id.referenced, reason))?;
        let field = match &self.field {
            Some(field) => Some(
                MetricName::parse(&field.value)
                    .map_err(|error| wrong(field.referenced, error.to_string()))?,
            ),
            None => None,
        };
        let target = match &self.sensor {
            None => Target::Any,
            Some(sensor) if matches!(sensor.value.as_str(), "any" | "*") => Target::Any,
            Some(sensor) if sensor.value == "node" => Target::Device(DeviceId::node()),
            Some(sensor) => Target::Device(
                DeviceId::parse(&sensor.value)
                    .map_err(|error| wrong(sensor.referenced, error.to_string()))?,
            ),
        };
        let condition = condition(text, &self.condition, field.as_ref(), scope)?;
        let clear = self
            .clear
            .as_ref()
            .map(|clear| self::condition(text, clear, field.as_ref(), scope))
            .transpose()?;
        let hysteresis = match &self.hysteresis {
            Some(given) if given.value.is_finite() && given.value >= 0.0 => given.value,
            Some(given) => return Err(wrong(given.referenced, "hysteresis is a number from 0 on")),
            None => 0.0,
        };
        let message = match &self.message {
            Some(message) => {
                Some(Message::parse(&message.value).map_err(|reason| wrong(message.referenced, reason))?)
            }
            None => None,
        };
        Ok(Rule {
            id,
            target,
            field,
            condition,
            clear,
            hysteresis,
            wait: seconds(self.wait.as_ref())?,
            cooldown: seconds(self.cooldown.as_ref())?,
            severity: self.severity.unwrap_or(Severity::Warning),
            message,
            outputs: outputs(self.outputs)?,
            labels: labels(self.labels)?,
            selector: selector(self.selector, scope)?,
        })
    }
}

/// A condition's error, with its place in the file.
fn condition(
    text: &str,
    given: &Spanned<String>,
    field: Option<&MetricName>,
    scope: Scope<'_>,
) -> Result<Condition, FileError> {
    Condition::parse(&given.value, field, scope).map_err(|error| {
        let at = given.referenced;
        let index = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).saturating_sub(1);
        let line = text.lines().nth(index(at.line())).unwrap_or_default();
        let first = line.chars().nth(index(at.column()));
        match first {
            // A block that begins on another line: only the character within it can be told.
            Some('|' | '>') | None => wrong(at, error.to_string()),
            Some(first) => {
                let quote = u64::from(matches!(first, '"' | '\''));
                let column = at.column() + quote + error.at as u64 - 1;
                FileError { line: at.line(), column, reason: error.reason }
            }
        }
    })
}

fn seconds(given: Option<&Spanned<Span>>) -> Result<Duration, FileError> {
    let Some(given) = given else { return Ok(Duration::ZERO) };
    let read = match &given.value {
        Span::Seconds(seconds) => Duration::try_from_secs_f64(*seconds).ok().filter(|span| *span <= LONGEST),
        Span::Text(text) => span(text),
    };
    read.ok_or_else(|| wrong(given.referenced, "give seconds, or a time such as 90s, 5m, 2h; at most 7 days"))
}

fn selector(given: Option<Spanned<String>>, scope: Scope<'_>) -> Result<Option<String>, FileError> {
    let Some(given) = given else { return Ok(None) };
    if let Some(check) = scope.selector {
        check(&given.value).map_err(|reason| wrong(given.referenced, reason))?;
    }
    Ok(Some(given.value))
}

fn outputs(given: Option<Spanned<Vec<String>>>) -> Result<Vec<String>, FileError> {
    let Some(given) = given else { return Ok(Vec::new()) };
    let fits = |name: &String| !name.is_empty() && name.len() <= limits::LABEL_BYTES;
    if given.value.len() > OUTPUTS || !given.value.iter().all(fits) {
        return Err(wrong(given.referenced, format!("at most {OUTPUTS} outputs of 1 to 63 bytes each")));
    }
    Ok(given.value)
}

fn labels(given: Option<Spanned<BTreeMap<String, String>>>) -> Result<BTreeMap<String, String>, FileError> {
    let Some(given) = given else { return Ok(BTreeMap::new()) };
    let fits = |(key, value): (&String, &String)| {
        !key.is_empty() && key.len() <= limits::LABEL_BYTES && value.len() <= limits::LABEL_BYTES
    };
    if given.value.len() > limits::LABELS_PER_NODE || !given.value.iter().all(fits) {
        return Err(wrong(given.referenced, "at most 32 labels of 1 to 63 bytes each"));
    }
    Ok(given.value)
}

#[cfg(test)]
mod tests;
