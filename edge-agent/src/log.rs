//! How much the agent logs and in which form, and the dial that changes how much while the agent runs.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// How much is logged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `error`, `warn`, `info`, `debug` or `trace`, or directives such as `info,fleet_edge_agent::mqtt=debug`. The
    /// variable `FLEET_LOG` is stronger at the start; a document of the hub is stronger than both.
    pub level: String,
    /// In which form.
    pub format: Format,
    /// Turns the level of this process; absent where the agent is a part of another program, whose log is its own.
    #[serde(skip)]
    pub dial: Option<Dial>,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::default(), dial: None }
    }
}

/// The form of what is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As the journal wants it when the standard error is the journal, else text.
    #[default]
    Auto,
    /// Text with time and level.
    Text,
    /// One JSON object a line.
    Json,
    /// Text without time and colours, its priority in front as `<6>` (sd-daemon(3)).
    Journal,
}

impl Format {
    /// The form to use: `stream` is `JOURNAL_STREAM` (systemd.exec(5)), `error` device and inode of the standard error.
    #[must_use]
    pub fn settled(self, stream: Option<&str>, error: Option<(u64, u64)>) -> Self {
        let is_journal = || {
            let (device, inode) = stream?.split_once(':')?;
            Some((device.parse().ok()?, inode.parse().ok()?))
        };
        match self {
            Self::Auto if error.is_some() && is_journal() == error => Self::Journal,
            Self::Auto => Self::Text,
            Self::Text | Self::Json | Self::Journal => self,
        }
    }
}

/// Changes the level of this process.
#[derive(Clone)]
pub struct Dial(Arc<dyn Fn(&str) + Send + Sync>);

impl Dial {
    /// `turn` is given a level that [`is_level`] accepts.
    pub fn new(turn: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(turn))
    }

    pub(crate) fn turn(&self, level: &str) {
        (self.0)(level);
    }
}

impl PartialEq for Dial {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dial")
    }
}

/// Whether it can be given as a level.
#[must_use]
pub fn is_level(text: &str) -> bool {
    const WORDS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level = |part: &str| match part.split_once('=') {
        Some((target, level)) => !target.is_empty() && WORDS.contains(&level),
        None => WORDS.contains(&part),
    };
    text.split(',').all(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journals_form_is_for_the_journal_alone() {
        let at = Some((8, 1_234));
        assert_eq!(Format::Auto.settled(Some("8:1234"), at), Format::Journal);
        for (stream, error) in
            [(None, at), (Some("8:1235"), at), (Some("nonsense"), at), (Some("8:1234"), None), (None, None)]
        {
            assert_eq!(Format::Auto.settled(stream, error), Format::Text, "{stream:?}");
        }
        assert_eq!(Format::Json.settled(Some("8:1234"), at), Format::Json);
        assert_eq!(Format::Text.settled(Some("8:1234"), at), Format::Text);
    }

    #[test]
    fn levels_are_words_or_directives() {
        for good in ["info", "off", "warn,fleet_edge_agent::mqtt=debug"] {
            assert!(is_level(good), "{good}");
        }
        for bad in ["", "loud", "info,", "=debug", "a=loud", "INFO!"] {
            assert!(!is_level(bad), "{bad}");
        }
    }
}
