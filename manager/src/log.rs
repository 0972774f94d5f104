//! How much the hub logs and in which form, and the dial that changes how much while it runs.
//!
//! One for the process, since `tracing` has one subscriber. A program that runs a hub within itself has set up a log of
//! its own; there the dial says so.

use std::{
    fmt,
    io::IsTerminal as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter, Registry,
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer},
    layer::{Layer, SubscriberExt as _},
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

/// What is logged unless asked otherwise.
pub const LEVEL: &str = "warn";
/// Longest text of levels, in bytes: some dozens of modules.
const LEVEL_BYTES: usize = 1_024;

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

/// The dial of this process.
static DIAL: Mutex<Option<Dial>> = Mutex::new(None);

struct Dial {
    turn: reload::Handle<EnvFilter, Registry>,
    level: String,
    at_start: String,
}

fn dial() -> MutexGuard<'static, Option<Dial>> {
    DIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Logs to the standard error from now on, unless somebody set up a log before.
pub fn start(format: Format, level: &str) {
    let at_start = level.to_owned();
    let (filter, turn) = reload::Layer::new(filter(level).unwrap_or_else(|_| EnvFilter::new(LEVEL)));
    if tracing_subscriber::registry().with(filter).with(form(format)).try_init().is_ok() {
        *dial() = Some(Dial { turn, level: at_start.clone(), at_start });
    } else {
        tracing::debug!("logging was set up before");
    }
}

/// What is logged now, and what was when the hub started.
#[must_use]
pub fn level() -> (String, String) {
    match &*dial() {
        Some(dial) => (dial.level.clone(), dial.at_start.clone()),
        None => (LEVEL.to_owned(), LEVEL.to_owned()),
    }
}

/// Whether this can be given as a level.
///
/// # Errors
/// What is wrong with it.
pub fn check(level: &str) -> Result<(), String> {
    filter(level).map(drop)
}

/// Changes what is logged.
///
/// # Errors
/// What is wrong with the level, or that the log is another program's.
pub fn turn(level: &str) -> Result<(), String> {
    let filter = filter(level)?;
    let mut dial = dial();
    let Some(dial) = &mut *dial else {
        return Err("this hub is a part of another program, whose log is its own".to_owned());
    };
    dial.turn.reload(filter).map_err(|error| format!("nobody logs any more: {error}"))?;
    level.clone_into(&mut dial.level);
    tracing::info!(level, "the level of the log was changed");
    Ok(())
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    let hint = "write off, error, warn, info, debug or trace, or a list with modules, such as warn,fleet_broker=debug";
    if level.is_empty() || level.len() > LEVEL_BYTES {
        return Err(format!("it has {} bytes, 1 to {LEVEL_BYTES} are allowed; {hint}", level.len()));
    }
    const WORDS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let known = |part: &str| {
        let word = part.rsplit_once('=').map_or(part, |(_, word)| word);
        WORDS.contains(&word.to_ascii_lowercase().as_str())
    };
    // The parser takes a misspelt level for the name of a module.
    if let Some(part) = level.split(',').find(|part| !known(part.trim())) {
        return Err(format!("{part:?} is no level; {hint}"));
    }
    // Formatting a span for every message would cost more than routing it.
    let whole = format!("{level},{}", fleet_broker::LOG_FILTER);
    EnvFilter::builder().parse(whole).map_err(|error| format!("{error}; {hint}"))
}

fn form<S>(format: Format) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let stream = std::env::var("JOURNAL_STREAM").ok();
    let error = rustix::fs::fstat(std::io::stderr()).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // A log that cannot be written, on a full disk, must not panic whoever logs.
        .log_internal_errors(false);
    match format.settled(stream.as_deref(), error) {
        Format::Json => layer.json().flatten_event(true).boxed(),
        Format::Journal => layer.with_ansi(false).event_format(Journal).boxed(),
        Format::Auto | Format::Text => layer.with_ansi(std::io::stderr().is_terminal()).boxed(),
    }
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

/// Lines as the journal reads them: it adds time and unit itself.
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        write!(writer, "<{priority}>{}: ", event.metadata().target())?;
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            write!(writer, "{}", span.name())?;
            if let Some(fields) =
                span.extensions().get::<FormattedFields<N>>().filter(|fields| !fields.is_empty())
            {
                write!(writer, "{{{fields}}}")?;
            }
            write!(writer, ": ")?;
        }
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_words_or_words_by_module() {
        for good in ["warn", "off", "WARN", "warn,fleet_broker=debug", "info,fleet_manager::store=trace"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", "loud", "warn,", "fleet_broker", "fleet_broker=loud", &"warn,".repeat(500)] {
            assert!(check(bad).unwrap_err().contains("fleet_broker=debug"), "{bad}");
        }
    }

    #[test]
    fn the_journals_form_is_for_the_journal_alone() {
        let at = Some((8, 1_234));
        assert_eq!(Format::Auto.settled(Some("8:1234"), at), Format::Journal);
        for (stream, error) in
            [(None, at), (Some("8:1235"), at), (Some("nonsense"), at), (Some("8:1234"), None)]
        {
            assert_eq!(Format::Auto.settled(stream, error), Format::Text, "{stream:?}");
        }
        assert_eq!(Format::Json.settled(Some("8:1234"), at), Format::Json);
    }

    /// What a subscriber of this form writes.
    #[test]
    fn lines_for_the_journal_have_a_priority_and_no_time() {
        use std::sync::Arc;
        #[derive(Clone, Default)]
        struct Out(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Out {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let out = Out::default();
        let writer = out.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(Journal);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _span = tracing::info_span!("task", name = "mqtt").entered();
            tracing::error!(target: "fleet", disk = 3, "it is full");
            tracing::debug!(target: "fleet", "quiet");
        });
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let name = "task{name=\"mqtt\"}: ";
        assert_eq!(text, format!("<3>fleet: {name}it is full disk=3\n<7>fleet: {name}quiet\n"));
    }
}
