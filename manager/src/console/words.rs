//! Times, figures and names as pages show them. Pure.

use askama::{Template, filters::HtmlSafe};

use crate::cli::output::{count, time};

/// Characters of a name or a message in a list; a node's own page has all of it.
const CLIP: usize = 160;

/// An instant, told as how long ago it was; pointed at, it tells the time. The script keeps it up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Template)]
#[template(
    ext = "html",
    source = r#"<time datetime="{{ self.iso() }}" title="{{ self.utc() }} UTC" data-ms="{{ at_ms }}">{{ self.ago() }}</time>"#
)]
pub(super) struct When {
    /// Unix milliseconds.
    pub(super) at_ms: i64,
    /// The hub's clock.
    pub(super) now_ms: i64,
}

impl HtmlSafe for When {}

impl When {
    fn iso(&self) -> String {
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

/// A whole number with its thousands apart.
pub(super) fn whole(value: usize) -> String {
    count(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_from_now() {
        let ago = |at_ms| When { at_ms, now_ms: 1_000_000_000 }.ago();
        assert_eq!(ago(1_000_000_000), "now");
        assert_eq!(ago(1_000_000_000 - 12_999), "12 s ago");
        assert_eq!(ago(1_000_000_000 - 3_600_000), "1 h ago");
        assert_eq!(ago(1_000_000_000 + 120_000), "in 2 min");
        assert_eq!(
            When { at_ms: 1_790_000_000_000, now_ms: 1_790_000_090_000 }.render().unwrap(),
            "<time datetime=\"2026-09-21T14:13:20Z\" title=\"2026-09-21 14:13:20 UTC\" \
             data-ms=\"1790000000000\">1 min ago</time>"
        );
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = "ß".repeat(CLIP + 1);
        assert_eq!(clip(&long).chars().count(), CLIP + 1);
        assert_eq!(clip("short"), "short");
    }
}
