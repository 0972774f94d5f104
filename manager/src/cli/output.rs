//! How answers are shown: tables, JSON, YAML; colours only where a person looks.
//!
//! Text from nodes is cleaned of control characters before it reaches a terminal.

use std::{
    env, fmt,
    io::{self, IsTerminal as _, Write as _},
};

use jiff::tz::TimeZone;
use ratatui::text::Span;
use serde::Serialize;
use serde_json::Value;

use super::{exit::Failure, yaml};
use crate::core::zones;

/// The form of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For people who keep it in files.
    Yaml,
    /// For spreadsheets; telemetry only.
    Csv,
}

/// Where answers go, and in which form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out {
    /// The form.
    pub format: Format,
    /// Whether to colour.
    pub color: bool,
}

/// What a word means, for its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// Nothing special.
    Plain,
    /// All is well.
    Good,
    /// Look at it some time.
    Warning,
    /// Broken.
    Bad,
    /// Less important.
    Faint,
}

/// Rows of text under a header.
#[derive(Debug)]
pub(super) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// One cell.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
    right: bool,
}

impl Out {
    /// Colours when standard output is a terminal and `NO_COLOR` is not set.
    #[must_use]
    pub(super) fn new(format: Format) -> Self {
        let quiet = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { format, color: io::stdout().is_terminal() && !quiet && !dumb }
    }

    /// Shows a value: as it is in JSON and YAML, by `table` for people.
    ///
    /// # Errors
    /// [`Failure::Usage`] for CSV, [`Failure::Failed`] when the output is gone.
    pub(super) fn show(self, value: &Value, table: impl FnOnce() -> String) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.print(&table()),
            Format::Json => self.print(&json(value)),
            Format::Yaml => self.print(&yaml::text(value)),
            Format::Csv => Err(Failure::Usage("csv is only for `fleet telemetry`; use -o json".to_owned())),
        }
    }

    /// Prints a text that ends with a line feed or is given one.
    ///
    /// # Errors
    /// [`Failure::Failed`] when the output is gone.
    pub(super) fn print(self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        let written = write!(stdout, "{text}{newline}").and_then(|()| stdout.flush());
        written.map_err(|error| Failure::Failed(format!("cannot write the answer: {error}")))
    }
}

/// Pretty JSON.
#[must_use]
pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).expect("our values have text keys")
}

impl Table {
    /// An empty table.
    #[must_use]
    pub(super) fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The text: columns two spaces apart, the header in capitals, no trailing spaces.
    #[must_use]
    pub(super) fn text(&self, color: bool) -> String {
        let columns = self.header.len();
        let mut widths: Vec<usize> = self.header.iter().map(|title| title.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(Span::raw(cell.text.as_str()).width());
            }
        }
        let right: Vec<bool> = (0..columns)
            .map(|column| self.rows.first().and_then(|row| row.get(column)).is_some_and(|cell| cell.right))
            .collect();
        let mut text = String::new();
        let header: Vec<Cell> = (self.header.iter().zip(&right))
            .map(|(title, right)| Cell { text: title.to_uppercase(), tone: Tone::Faint, right: *right })
            .collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let pad = " ".repeat(width - Span::raw(cell.text.as_str()).width());
                let word = paint(&cell.text, cell.tone, color);
                let last = at + 1 == columns;
                match (cell.right, last) {
                    (true, true) => line.push_str(&format!("{pad}{word}")),
                    (true, false) => line.push_str(&format!("{pad}{word}  ")),
                    (false, true) => line.push_str(&word),
                    (false, false) => line.push_str(&format!("{word}{pad}  ")),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

impl Cell {
    /// Text, left.
    #[must_use]
    pub(super) fn left(text: impl fmt::Display) -> Self {
        Self { text: clean(&text.to_string()), tone: Tone::Plain, right: false }
    }

    /// A number, right.
    #[must_use]
    pub(super) fn right(text: impl fmt::Display) -> Self {
        Self { right: true, ..Self::left(text) }
    }

    /// Text with a meaning.
    #[must_use]
    pub(super) fn toned(text: impl fmt::Display, tone: Tone) -> Self {
        Self { tone, ..Self::left(text) }
    }
}

/// The tone of a state's word, of a node or an account.
#[must_use]
pub(super) fn tone(state: &str) -> Tone {
    match state {
        "online" | "balanced" | "ready" | "active" | "enrolled" | "succeeded" | "in_sync" => Tone::Good,
        "suspect" | "late" | "pending" | "warning" => Tone::Warning,
        "offline" | "broken" | "error" | "critical" | "failed" | "revoked" | "timed_out" | "rejected" => {
            Tone::Bad
        }
        "sleeping" | "unknown" | "used" | "expired" | "none" | "canceled" | "superseded" | "unmanaged" => {
            Tone::Faint
        }
        _ => Tone::Plain,
    }
}

/// The text in its tone's colour.
#[must_use]
pub(super) fn paint(text: &str, tone: Tone, color: bool) -> String {
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Good => "32",
        Tone::Warning => "33",
        Tone::Bad => "31",
        Tone::Faint => "2",
    };
    if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// The text with control characters replaced, so that a node cannot steer the operator's terminal.
#[must_use]
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// How long ago, in the two largest units: `5s`, `3m20s`, `2h5m`, `4d1h`.
#[must_use]
pub(super) fn ago(now_ms: i64, then_ms: Option<i64>) -> String {
    let Some(then) = then_ms else { return "never".to_owned() };
    let seconds = now_ms.saturating_sub(then).max(0) / 1_000;
    let (days, hours, minutes, rest) =
        (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, m) => format!("{m}m{rest}s"),
        (0, h, m) => format!("{h}h{m}m"),
        (d, h, _) => format!("{d}d{h}h"),
    }
}

/// How long until then, as [`ago`] tells it: `never` when there is no then, `over` when it has passed.
#[must_use]
pub(super) fn until(now_ms: i64, then_ms: Option<i64>) -> String {
    match then_ms {
        Some(then) if then <= now_ms => "over".to_owned(),
        then => ago(then.unwrap_or(now_ms), then.map(|_| now_ms)),
    }
}

/// Items of a list, decoded.
///
/// # Errors
/// [`Failure::Failed`] when hub and CLI are of different versions.
pub(super) fn read<T: serde::de::DeserializeOwned>(items: &[Value]) -> Result<Vec<T>, Failure> {
    let read: Result<_, _> = items.iter().map(T::deserialize).collect();
    read.map_err(|error| {
        Failure::Failed(format!(
            "the hub's answer is not understood ({error}); are hub and CLI of one version?"
        ))
    })
}

/// A time of the hub's own for people, UTC; the number itself when no calendar has it. What concerns a node or a site is
/// told by [`time_in`].
#[must_use]
pub(crate) fn time(ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(ms) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => ms.to_string(),
    }
}

/// A time as the clocks of a site show it, with the abbreviation of the zone; UTC where there is no zone, or none that
/// this program knows.
#[must_use]
pub(crate) fn time_in(ms: i64, tz: Option<&str>) -> String {
    zones::shown(ms, &tz.and_then(zones::get).unwrap_or(TimeZone::UTC))
}

/// The same without the date.
#[must_use]
pub(crate) fn hour_in(ms: i64, tz: Option<&str>) -> String {
    let whole = time_in(ms, tz);
    whole.split_once(' ').map_or_else(|| whole.clone(), |(_, of_day)| of_day.to_owned())
}

/// A number with at most four significant decimals and no needless zeros.
#[must_use]
pub(crate) fn number(value: f64) -> String {
    if value != 0.0 && (value.abs() >= 1e15 || value.abs() < 1e-4) {
        return format!("{value:.3e}");
    }
    let decimals = if value.abs() >= 1_000.0 { 1 } else { 3 };
    let text = format!("{value:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A count with thousands apart: `12,345`.
#[must_use]
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size: `3.2 MiB`.
#[must_use]
pub(crate) fn bytes(value: f64) -> String {
    let mut value = value;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value.abs() < 1_024.0 || unit == "TiB" {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1_024.0;
    }
    unreachable!("the last unit returns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_colours_do_not_move_them() {
        let mut table = Table::new(&["node", "state", "age"]);
        table.row(vec![Cell::left("a"), Cell::toned("online", tone("online")), Cell::right(5)]);
        table.row(vec![Cell::left("日本"), Cell::toned("offline", tone("offline")), Cell::right(1_200)]);
        let plain = table.text(false);
        insta::assert_snapshot!(plain, @r"
        NODE  STATE     AGE
        a     online      5
        日本  offline  1200
        ");
        let mut bare = table.text(true);
        for code in ["\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[0m"] {
            assert!(bare.contains(code));
            bare = bare.replace(code, "");
        }
        assert_eq!(bare, plain);
    }

    #[test]
    fn a_node_cannot_steer_the_terminal() {
        assert_eq!(Cell::left("a\x1b[2Jb\n").text, "a\u{fffd}[2Jb\u{fffd}");
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(ago(10_000, None), "never");
        assert_eq!(
            [0, 61_000, 7_500_000, 349_200_000, -5].map(|age| ago(0, Some(-age))),
            ["0s", "1m1s", "2h5m", "4d1h", "0s"]
        );
        assert_eq!(
            [0.0, 1.5, 20.0, 1234.56, -0.25, 3e20, 1e-9].map(number),
            ["0", "1.5", "20", "1234.6", "-0.25", "3.000e20", "1.000e-9"]
        );
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.0, 1_536.0, 5e15].map(bytes), ["0 B", "1.5 KiB", "4547.5 TiB"]);
        assert_eq!([None, Some(5), Some(61_000)].map(|then| until(10, then)), ["never", "over", "1m0s"]);
        assert_eq!(time(0), "1970-01-01 00:00:00");
        assert_eq!(time(i64::MAX), i64::MAX.to_string());
        assert_eq!(time_in(0, Some("Asia/Tokyo")), "1970-01-01 09:00:00 JST");
        assert_eq!(
            (hour_in(0, Some("Asia/Tokyo")), hour_in(0, None)),
            ("09:00:00 JST".into(), "00:00:00 UTC".into())
        );
        assert_eq!(time_in(0, Some("Mars/Olympus")), "1970-01-01 00:00:00 UTC", "a zone that nobody knows");
        assert_eq!(hour_in(i64::MAX, None), i64::MAX.to_string());
    }
}
