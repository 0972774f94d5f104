//! Commands that an app on the node takes with a lease, and either ends or leaves to the next.

use std::time::Duration;

use ciborium::Value;
use fleet_schemas::{CommandId, command::State};

use super::{Change, Command, Effects, Held, Limit, Queues, Stage, Time, end::Facts, reason};

/// What an app would take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Take {
    /// What it can do: matched with the `kind` in the command's parameters. Empty: anything.
    pub kinds: Vec<String>,
    /// How long it has the command until it must ask for more time.
    pub lease: Duration,
}

/// An app's last word.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalReport {
    /// Whether it was done.
    pub succeeded: bool,
    /// An exit code, if there is one.
    pub exit_code: Option<i32>,
    /// Why it was not done.
    pub message: Option<String>,
    /// What it gave; at most 32 KiB of CBOR.
    pub result: Option<Value>,
    /// What it printed.
    pub output: Vec<u8>,
}

impl Queues {
    /// Gives the oldest command that fits to an app.
    pub fn take_local(&mut self, take: &Take, time: &Time) -> Option<(Command, Effects)> {
        let fits = |held: &&Held| held.is_local() && fits(take, &held.command);
        let command = self.heads(time).into_iter().find(fits)?.command.clone();
        // Its time may have run out since the last look.
        if command.closes.passed(time) == super::Passed::Yes {
            self.stirred = true;
            return None;
        }
        let mut effects = Effects::default();
        self.begin(command.id, Some(take.lease), time, &mut effects);
        Some((command, effects))
    }

    /// The app wants more time. `None` when it does not have the command (any more).
    pub fn extend_local(&mut self, id: CommandId, lease: Duration, time: &Time) -> Option<Effects> {
        let held = self.held.get_mut(&id).filter(|held| held.is_local())?;
        let Stage::Running(run) = &mut held.stage else { return None };
        let old = run.lease.as_mut()?;
        let span_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        let changed = old.span_ms != span_ms;
        (old.span_ms, old.until) = (span_ms, Limit::after(lease, time));
        self.stirred = true;
        let mut effects = Effects::default();
        if changed {
            effects.writes.push(Change::Hold(Box::new(held.clone())));
        }
        Some(effects)
    }

    /// The app is done. `None` when it does not have the command (any more).
    pub fn report_local(
        &mut self,
        id: CommandId,
        said: LocalReport,
        room: bool,
        time: &Time,
    ) -> Option<Effects> {
        let held = self.held.get(&id).filter(|held| held.is_local())?;
        let Stage::Running(_) = held.stage else { return None };
        let LocalReport { succeeded, exit_code, message, result, output } = said;
        let mut effects = self.output(id, &output, room, time);
        let state = if succeeded { State::Succeeded } else { State::Failed };
        let code = if succeeded { "done" } else { "app_failed" };
        let reason = message.map(|message| reason(code, message, false));
        self.end(id, Facts { reason, exit_code, result, ..Facts::new(state) }, time, &mut effects);
        Some(effects)
    }
}

fn fits(take: &Take, command: &Command) -> bool {
    if take.kinds.is_empty() {
        return true;
    }
    let Value::Map(entries) = &command.params else { return false };
    let kind = entries.iter().find(|(key, _)| key.as_text() == Some("kind"));
    let kind = kind.and_then(|(_, value)| value.as_text());
    kind.is_some_and(|kind| take.kinds.iter().any(|one| one == kind))
}
