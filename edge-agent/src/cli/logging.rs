//! Where the agent's log goes: the standard error, in the form that was asked for, and the ring.

use std::{fmt, io::IsTerminal as _};

use fleet_edge_agent::{
    log::{Config, Dial, Format},
    logs::own::Tap,
};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    filter::Targets,
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer},
    layer::{Layer, SubscriberExt as _},
    registry,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

/// Logs from now on; the dial turns the level, the tap is for the ring.
pub(super) fn start(config: &Config) -> Option<(Dial, Tap)> {
    // Targets and levels; the filter that also knows spans and their fields would bring a regex engine along.
    let filter = std::env::var("FLEET_LOG").ok().and_then(|given| given.parse().ok());
    let filter: Targets = filter.or_else(|| config.level.parse().ok())?;
    let (filter, turn) = reload::Layer::new(filter);
    let tap = Tap::default();
    registry().with(filter).with(tap.clone()).with(form(config.format)).try_init().ok()?;
    let dial = Dial::new(move |level| {
        if let Ok(filter) = level.parse::<Targets>() {
            // An error says that nobody logs any more.
            let _ = turn.reload(filter);
        }
    });
    Some((dial, tap))
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
        .log_internal_errors(false)
        .with_target(false);
    match format.settled(stream.as_deref(), error) {
        Format::Json => layer.with_target(true).json().flatten_event(true).boxed(),
        Format::Journal => layer.with_ansi(false).event_format(Journal).boxed(),
        Format::Auto | Format::Text => layer.with_ansi(std::io::stderr().is_terminal()).boxed(),
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
        write!(writer, "<{priority}>")?;
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
