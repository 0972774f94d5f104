//! The agent's own lines on their way into the ring: a layer of `tracing` beside the one that writes them to the
//! terminal or the journal.

use std::{
    fmt::{self, Write as _},
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

use super::{
    Handle,
    line::{DEBUG, ERROR, INFO, Line, OWN_UNIT, WARNING},
};
use crate::clock;

/// Lines that are kept until there is a ring: what an agent says while it starts.
const EARLY: usize = 200;

/// Where the agent's own lines come out, once a ring is attached. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tap(Arc<Mutex<Flow>>);

/// Where they go.
enum Flow {
    /// There is no ring yet.
    Early(Vec<Line>),
    /// Into it.
    Ring(Handle),
}

impl Default for Flow {
    fn default() -> Self {
        Self::Early(Vec::new())
    }
}

impl Tap {
    /// From now on lines go into this ring, those of before first.
    pub(crate) fn attach(&self, ring: &Handle) {
        let mut flow = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Flow::Early(lines) = std::mem::replace(&mut *flow, Flow::Ring(ring.clone())) {
            lines.into_iter().for_each(|line| ring.push(line));
        }
    }

    fn push(&self, line: Line) {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Flow::Early(lines) if lines.len() < EARLY => lines.push(line),
            Flow::Early(_) => {}
            Flow::Ring(ring) => ring.push(line),
        }
    }
}

impl PartialEq for Tap {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tap {}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap")
    }
}

impl<S: Subscriber> Layer<S> for Tap {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        let priority = match level {
            Level::ERROR => ERROR,
            Level::WARN => WARNING,
            Level::INFO => INFO,
            _ => DEBUG,
        };
        let mut text = Text::default();
        event.record(&mut text);
        let text = text.message + &text.fields;
        self.push(Line::new(clock::wall_ms(), OWN_UNIT, priority, &text));
    }
}

/// An event as text: its message, then its fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a text never fails.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            _ => self.record_debug(field, &value),
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::{layer::SubscriberExt as _, registry};

    use super::*;

    #[test]
    fn an_event_becomes_a_line_with_its_fields() {
        let tap = Tap::default();
        tracing::subscriber::with_default(registry().with(tap.clone()), || {
            tracing::warn!(hub = %"10.0.0.7", attempt = 3, name = "shed", "not connected: {}", "refused");
            tracing::debug!("quiet");
        });
        let flow = tap.0.lock().unwrap();
        let Flow::Early(lines) = &*flow else { panic!("no ring was attached") };
        let told: Vec<_> = lines.iter().map(|line| (line.priority, line.message.as_str())).collect();
        let warning = "not connected: refused hub=10.0.0.7 attempt=3 name=\"shed\"";
        assert_eq!(told, [(WARNING, warning), (DEBUG, "quiet")]);
        assert!(lines[0].time_ms > 1_700_000_000_000);
    }
}
