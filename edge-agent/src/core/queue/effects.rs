//! What follows from an input: rows to write and reports to seal in one transaction, and then acts.

use fleet_schemas::{
    CommandId, MetricName,
    command::{Output, Reason, Report, State},
    limits,
};

use super::{Command, Ending, Held, Origin, Over, Queues, RESULT_BYTES, Stage, Time, end::Facts};

/// What follows.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// Rows.
    pub writes: Vec<Change>,
    /// For the hub, on the command lane.
    pub reports: Vec<Report>,
    /// Ends of the node's own commands, for the event lane.
    pub notes: Vec<Note>,
    /// For the runner, once the rest is on disk.
    pub acts: Vec<Act>,
}

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A command that is held, new or changed.
    Hold(Box<Held>),
    /// It is over: what is remembered takes its place.
    Over(Box<Over>),
    /// What is remembered changed.
    Amend(Box<Over>),
}

/// What the runner does.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Begin.
    Start(Box<Command>),
    /// End it, and tell that it ended.
    Stop(CommandId, Ending),
}

/// The end of a command of the node itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// Which.
    pub id: CommandId,
    /// What was done.
    pub kind: MetricName,
    /// How it ended.
    pub state: State,
    /// Why.
    pub reason: Option<Reason>,
    /// The exit code of a program.
    pub exit_code: Option<i32>,
}

/// A reason within its limits.
#[must_use]
pub fn reason(code: &str, message: impl Into<String>, may_have_executed: bool) -> Reason {
    let mut message = message.into();
    if message.len() > limits::EVENT_MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(limits::EVENT_MESSAGE_BYTES - 3));
        message.push('…');
    }
    Reason { code: code.to_owned(), message, may_have_executed }
}

/// A report of a state alone.
pub(super) fn report(id: CommandId, state: State, time: &Time) -> Report {
    Report {
        id,
        state,
        time_ms: time.now.wall_ms,
        reason: None,
        exit_code: None,
        output: None,
        result: None,
        too_late: false,
    }
}

impl Effects {
    /// Tells whoever asked that a command that goes on has this state.
    pub(super) fn say(&mut self, held: &Held, time: &Time) {
        match held.command.origin {
            Origin::Hub => self.reports.push(report(held.command.id, held.state(), time)),
            Origin::Node => {}
        }
    }

    pub(super) fn say_output(&mut self, command: &Command, output: Output, time: &Time) {
        match command.origin {
            Origin::Hub => {
                let said = report(command.id, State::Running, time);
                self.reports.push(Report { output: Some(output), ..said });
            }
            Origin::Node => {}
        }
    }

    /// Says again how one ended.
    pub(super) fn say_over(&mut self, over: &Over) {
        match over.origin {
            Origin::Hub => self.reports.push(Report {
                id: over.id,
                state: over.state,
                time_ms: over.time_ms,
                reason: over.reason.clone(),
                exit_code: over.exit_code,
                output: None,
                result: over.result.clone(),
                too_late: over.too_late,
            }),
            Origin::Node => {}
        }
    }
}

impl Queues {
    /// Ends a command that is held, and tells so.
    pub(super) fn end(&mut self, id: CommandId, facts: Facts, time: &Time, effects: &mut Effects) {
        let Some(held) = self.held.remove(&id) else { return };
        self.bytes -= super::size(&held.command);
        let output = match held.stage {
            Stage::Waiting { .. } => Vec::new(),
            Stage::Running(run) => run.live.kept,
        };
        self.remember(&held.command, facts, output, time, effects);
    }

    /// Remembers how a command ended, and tells so.
    pub(super) fn remember(
        &mut self,
        command: &Command,
        facts: Facts,
        output: Vec<u8>,
        time: &Time,
        effects: &mut Effects,
    ) {
        self.stirred = true;
        let Facts { state, reason, exit_code, result, too_late } = facts;
        let small = |value: &ciborium::Value| fleet_schemas::cbor::encode(value).len() <= RESULT_BYTES;
        let over = Over {
            id: command.id,
            kind: Some(command.kind.clone()),
            state,
            time_ms: time.now.wall_ms,
            true_ms: time.true_ms.or(command.closes.ms()),
            lived_ms: None,
            reason,
            exit_code,
            result: result.clone().filter(small),
            output,
            origin: command.origin,
            too_late,
            harmless: command.idempotent || command.origin == Origin::Node,
            order: self.take_order(),
        };
        match command.origin {
            Origin::Hub => {
                effects.say_over(&over);
                if let Some(said) = effects.reports.last_mut() {
                    said.result = result;
                }
            }
            Origin::Node => effects.notes.push(Note {
                id: command.id,
                kind: command.kind.clone(),
                state,
                reason: over.reason.clone(),
                exit_code,
            }),
        }
        effects.writes.push(Change::Over(Box::new(over)));
    }

    /// Remembers the end of a command of which nothing else is known.
    pub fn give_up(&mut self, over: Over) -> Effects {
        let mut effects = Effects::default();
        let over = Over { order: self.take_order(), ..over };
        effects.say_over(&over);
        effects.writes.push(Change::Over(Box::new(over)));
        effects
    }

    /// Above the order of every result.
    #[must_use]
    pub fn next_order(&self) -> u64 {
        self.next_order
    }

    pub(super) fn take_order(&mut self) -> u64 {
        self.next_order += 1;
        self.next_order - 1
    }
}
