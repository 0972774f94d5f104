//! Times, figures and names as pages show them. Pure.

use askama::{Template, filters::HtmlSafe};

use crate::cli::output::{bytes, count, number, time, time_in};

/// Characters of a name or a message in a list; a node's own page has all of it.
const CLIP: usize = 160;

/// An instant, told as how long ago it was; pointed at, it tells the time, at a node by the clocks of its site. The
/// script keeps it up to date.
#[derive(Debug, Clone, PartialEq, Eq, Template)]
#[template(
    ext = "html",
    source = r#"<time datetime="{{ self.iso() }}" title="{{ self.shown() }}" data-ms="{{ at_ms }}"{% if let Some(there) = self.there() %} data-there="{{ there }}"{% endif %}>{{ self.ago() }}</time>"#
)]
pub(super) struct When {
    /// Unix milliseconds.
    pub(super) at_ms: i64,
    /// The hub's clock.
    pub(super) now_ms: i64,
    /// The zone of the site that it concerns, where it has one.
    pub(super) tz: Option<String>,
}

impl HtmlSafe for When {}

impl When {
    /// An instant, seen from another.
    pub(super) fn at(at_ms: &i64, now_ms: &i64) -> Self {
        Self { at_ms: *at_ms, now_ms: *now_ms, tz: None }
    }

    /// The same at a site, by its clocks.
    pub(super) fn of(at_ms: &i64, now_ms: &i64, tz: &Option<String>) -> Self {
        Self { tz: tz.clone(), ..Self::at(at_ms, now_ms) }
    }

    /// By the clocks of the site, where it has some.
    fn there(&self) -> Option<String> {
        self.tz.as_deref().map(|tz| time_in(self.at_ms, Some(tz)))
    }

    /// By the clocks of the site, and UTC. The script puts the time of whoever looks in the place of UTC.
    fn shown(&self) -> String {
        let there = self.there().map(|there| there + ", ").unwrap_or_default();
        format!("{there}{} UTC", self.utc())
    }

    /// RFC 3339, UTC.
    pub(super) fn iso(&self) -> String {
        self.utc().replacen(' ', "T", 1) + "Z"
    }

    fn utc(&self) -> String {
        time(self.at_ms)
    }

    fn ago(&self) -> String {
        let ms = self.now_ms.saturating_sub(self.at_ms);
        let span = span(ms.saturating_abs());
        match ms {
            ..=-1_000 => format!("in {span}"),
            -999..1_000 => "now".to_owned(),
            _ => format!("{span} ago"),
        }
    }
}

/// A span in its largest unit: `12 s`, `3 min`, `2 h`, `4 d`.
pub(super) fn span(ms: i64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// At most so much of a text as a list has room for.
pub(super) fn clip(text: &str) -> String {
    match text.char_indices().nth(CLIP) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

/// A value with its unit.
pub(super) fn value(value: f64, metric: &str, unit: Option<&str>) -> String {
    match unit {
        _ if !value.is_finite() => value.to_string(),
        _ if is_size(metric, unit) => bytes(value),
        Some("%") => format!("{} %", number(value)),
        None if metric.ends_with("_percent") => format!("{} %", number(value)),
        Some("Cel") => format!("{} °C", number(value)),
        None if metric.ends_with("_celsius") => format!("{} °C", number(value)),
        // UCUM's word for a mere number.
        Some("1") => number(value),
        Some(unit) => format!("{} {unit}", number(value)),
        None => number(value),
    }
}

/// Whether a metric is a number of bytes.
pub(super) fn is_size(metric: &str, unit: Option<&str>) -> bool {
    matches!(unit, Some("By" | "byte" | "bytes")) || unit.is_none() && metric.ends_with("_bytes")
}

/// A whole number with its thousands apart.
pub(super) fn whole(value: &usize) -> String {
    count(*value as u64)
}

/// `1 node`, `2 nodes`.
pub(super) fn nodes(value: usize) -> String {
    format!("{} {}", whole(&value), if value == 1 { "node" } else { "nodes" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_from_now() {
        let ago = |at_ms| When { at_ms, now_ms: 1_000_000_000, tz: None }.ago();
        assert_eq!(ago(1_000_000_000), "now");
        assert_eq!(ago(1_000_000_000 - 12_999), "12 s ago");
        assert_eq!(ago(1_000_000_000 - 3_600_000), "1 h ago");
        assert_eq!(ago(1_000_000_000 + 120_000), "in 2 min");
        assert_eq!(
            When::at(&1_790_000_000_000, &1_790_000_090_000).render().unwrap(),
            "<time datetime=\"2026-09-21T14:13:20Z\" title=\"2026-09-21 14:13:20 UTC\" \
             data-ms=\"1790000000000\">1 min ago</time>"
        );
        let there = When::of(&1_790_000_000_000, &1_790_000_090_000, &Some("Europe/Berlin".to_owned()));
        assert_eq!(there.shown(), "2026-09-21 16:13:20 CEST, 2026-09-21 14:13:20 UTC");
        let text = there.render().unwrap();
        assert!(text.contains(" data-there=\"2026-09-21 16:13:20 CEST\">1 min ago<"), "{text}");
    }

    #[test]
    fn values_have_their_units() {
        assert_eq!(value(2_048.0, "mem_used_bytes", None), "2.0 KiB");
        assert_eq!(value(12.5, "cpu_percent", None), "12.5 %");
        assert_eq!(value(21.0, "t", Some("Cel")), "21 °C");
        assert_eq!(value(3.0, "flow", Some("L/s")), "3 L/s");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = "ß".repeat(CLIP + 1);
        assert_eq!(clip(&long).chars().count(), CLIP + 1);
        assert_eq!(clip("short"), "short");
    }
}
