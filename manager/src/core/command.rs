//! Commands at the hub, decided: what waits for which node, what is offered to it, and where every execution stands.
//!
//! Owns the states of executions. An execution that is over leaves the memory; its rows are in the store. Nothing here
//! remembers that a message arrived: what is offered follows from the states, from births and from time.

mod advance;
mod hold;
mod make;
mod orders;
mod settle;
mod view;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ciborium::Value;
use fleet_schemas::{
    CommandId, MetricName, NodeId, SessionId, StreamId,
    command::{Orders, Reason, Report, State},
};
use serde::{Deserialize, Serialize};

pub use advance::advance;
pub use hold::{approve, hold};
pub use make::{KINDS, LIFE, OPEN, Rate, TIMEOUT, TTL, Wanted, cancel, make};
pub use settle::{Born, abandon, born, late, leaves_for, moved, relisted, report};
pub use view::{Change, Due, OpenAt, Waiting};

use super::{Now, fleet::NodeNo, time::WRONG_BY_MS};

/// One instruction, to one node or to many.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Its id.
    pub id: CommandId,
    /// Its place among all commands: grows.
    pub no: u64,
    /// What to do.
    pub kind: MetricName,
    /// With what. Kept in a row of its own: lists do without it.
    #[serde(skip, default = "nothing")]
    pub params: Value,
    /// Its size as CBOR, in bytes.
    pub params_bytes: u32,
    /// The queue.
    pub queue: MetricName,
    /// Higher goes first.
    pub priority: i8,
    /// Whether doing it twice is the same as doing it once.
    pub idempotent: bool,
    /// Waiting commands with the same key give way to it.
    pub supersedes: Option<MetricName>,
    /// When it was made, hub time, Unix milliseconds.
    pub created_ms: i64,
    /// It must not begin before, hub time, Unix milliseconds.
    pub not_before_ms: Option<i64>,
    /// It must not begin after, hub time, Unix milliseconds.
    pub not_after_ms: i64,
    /// Most milliseconds that it may run.
    pub timeout_ms: u64,
    /// Who wanted it, such as `operator NAME`.
    pub by: String,
    /// The selector that chose the nodes, where one did.
    pub selector: Option<String>,
}

impl Command {
    /// Whether it may not begin any more. One that was made long after now was made by a clock that has been set back
    /// since: what is left of its time cannot be told, so nothing is.
    #[must_use]
    pub fn has_ended(&self, now: Now) -> bool {
        now.wall_ms >= self.not_after_ms || self.created_ms.saturating_sub(now.wall_ms) > WRONG_BY_MS
    }
}

/// A change of an execution's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The state since then.
    pub state: State,
    /// When, Unix milliseconds: hub time, or the node's corrected.
    pub at_ms: i64,
    /// Why, where there is more to say.
    pub reason: Option<Box<Reason>>,
}

/// A command at one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Execution {
    /// Every state it had, oldest first; the last is the present one. Never empty.
    pub history: Vec<Step>,
    /// The hub keeps it back until then, Unix milliseconds.
    pub slot_ms: i64,
    /// When an operator wanted it canceled.
    pub cancel_ms: Option<i64>,
    /// The node said that a cancel came too late.
    pub too_late: bool,
    /// The exit code of a program.
    pub exit_code: Option<i32>,
    /// Bytes of output that are kept.
    pub output_bytes: u32,
    /// There was more output, which was not kept.
    pub cut: bool,
    /// The node's storage was set back after this was sent: nobody can tell whether it ran.
    pub doubt: bool,
    /// The hub was restored from a backup that has this as not accepted yet: nobody can tell whether it was sent and done
    /// since, so it waits for an operator's word.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// What the node said after it was over here.
    pub after: Option<Step>,
    /// Where it is, as far as births tell.
    #[serde(skip)]
    place: Place,
    /// The session in which it was last offered.
    #[serde(skip)]
    offered_in: Option<SessionId>,
}

/// What births tell of where an execution is. In memory only: the next birth tells it again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    /// At the node, on the way, or not: nothing proves either.
    #[default]
    Unsure,
    /// Not at the node: its birth did not list it, and all it had to report before is here.
    Absent,
    /// Was absent, and was offered again since.
    Anew,
}

/// A command with executions that are not over.
#[derive(Debug, Clone, PartialEq)]
struct Open {
    command: Arc<Command>,
    nodes: BTreeSet<NodeNo>,
}

/// One node's executions that are not over, and what is known of its session.
#[derive(Debug, Clone, Default, PartialEq)]
struct Agenda {
    // By the command's number.
    open: BTreeMap<u64, Execution>,
    // Whether its agent takes commands, by its last birth.
    takes: bool,
    awaiting: Option<Awaiting>,
    // Something is to be said that no state tells: a birth is answered, a cancel is new.
    say: bool,
    resend_ms: Option<i64>,
    attempts: u32,
    due_ms: Option<i64>,
}

/// A birth whose word counts once all that was reported before it is here.
#[derive(Debug, Clone, PartialEq)]
struct Awaiting {
    session: SessionId,
    // Per stream of the command lane, the number of the next batch as the birth told it.
    upto: Vec<(StreamId, u64)>,
    // Executions that it should have listed.
    unlisted: Vec<u64>,
}

/// All executions that are not over.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dispatch {
    commands: BTreeMap<CommandId, Open>,
    // Command numbers back to ids.
    ids: BTreeMap<u64, CommandId>,
    agendas: BTreeMap<NodeNo, Agenda>,
    // Unix milliseconds of the next deadline, by node.
    due: BTreeSet<(i64, NodeNo)>,
    touched: BTreeSet<NodeNo>,
    // Whose turn it is among those: in a group that is full, high numbers wait for low ones only once.
    turn: NodeNo,
    last_no: u64,
    executions: usize,
    params_bytes: usize,
}

/// An execution to write, and the state that the store has of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// None: the row is new.
    pub was: Option<State>,
    /// As it is to be.
    pub execution: Execution,
}

/// A report to keep.
#[derive(Debug, Clone, PartialEq)]
pub struct NewReport {
    /// Whose.
    pub node: NodeNo,
    /// When it arrived, hub time, Unix milliseconds.
    pub recv_ms: i64,
    /// When it was said, corrected, Unix milliseconds.
    pub at_ms: i64,
    /// What was said.
    pub report: Report,
    /// With what it is kept.
    pub kept: Kept,
}

/// With what a report is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// With its execution.
    Execution,
    /// Its execution is over or unknown: the store has to be asked.
    Unsure,
    /// By itself: nobody here made its command.
    Stray,
}

/// What a group of inputs comes to, as far as commands go.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effects {
    /// Commands to write.
    pub made: Vec<Arc<Command>>,
    /// Executions to write.
    pub rows: BTreeMap<(CommandId, NodeNo), Row>,
    /// Reports to keep, in order.
    pub reports: Vec<NewReport>,
    /// What to tell nodes after the commit; store and time are filled in then.
    pub orders: Vec<(NodeId, Orders)>,
    /// What to tell whoever follows, in order.
    pub changes: Vec<Change>,
}

fn nothing() -> Value {
    Value::Null
}

/// A reason in the hub's words.
fn reason(code: &str, message: impl Into<String>) -> Reason {
    Reason { code: code.to_owned(), message: message.into(), may_have_executed: false }
}

/// A reason of an execution that nobody can tell about.
fn doubtful(code: &str, message: impl Into<String>) -> Reason {
    Reason { may_have_executed: true, ..reason(code, message) }
}

fn millis(duration: Duration) -> i64 {
    super::time::millis(duration)
}

impl Execution {
    /// Queued since `at_ms`, kept back until `slot_ms`.
    #[must_use]
    pub fn new(at_ms: i64, slot_ms: i64) -> Self {
        Self {
            history: vec![Step { state: State::Queued, at_ms, reason: None }],
            slot_ms,
            cancel_ms: None,
            too_late: false,
            exit_code: None,
            output_bytes: 0,
            cut: false,
            doubt: false,
            held: false,
            after: None,
            place: Place::Unsure,
            offered_in: None,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.history.last().map_or(State::Queued, |step| step.state)
    }

    /// Whether it waits for an operator's word since a restore.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held && !self.state().is_terminal()
    }

    fn step(&mut self, state: State, at_ms: i64, reason: Option<Reason>) -> bool {
        let may = self.state().may_become(state);
        if may {
            self.history.push(Step { state, at_ms, reason: reason.map(Box::new) });
        }
        may
    }
}

impl Effects {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn nothing_to_write(&self) -> bool {
        self.made.is_empty() && self.rows.is_empty() && self.reports.is_empty()
    }

    /// Takes out what is to be said, which leaves what is to be written.
    #[must_use]
    pub fn take_told(&mut self) -> Self {
        let orders = std::mem::take(&mut self.orders);
        Self { orders, changes: std::mem::take(&mut self.changes), ..Self::default() }
    }

    /// Notes an execution to be written; `was` counts only at the first note.
    pub fn write(&mut self, command: CommandId, node: NodeNo, was: Option<State>, execution: &Execution) {
        let row =
            self.rows.entry((command, node)).or_insert_with(|| Row { was, execution: execution.clone() });
        row.execution.clone_from(execution);
    }
}

impl Dispatch {
    /// What the store has: the last number given, and every command with its executions that are not over.
    #[must_use]
    pub fn new(last_no: u64, open: Vec<(Command, Vec<(NodeNo, Execution)>)>) -> Self {
        let mut dispatch = Self { last_no, ..Self::default() };
        for (command, executions) in open {
            let command = Arc::new(command);
            for (node, execution) in executions {
                dispatch.insert(&command, node, execution);
            }
        }
        dispatch
    }

    /// Takes over what is known of sessions from a memory that is given up, because the stores were opened again.
    pub fn keep_sessions(&mut self, before: &Self) {
        for (number, old) in &before.agendas {
            let agenda = self.agendas.entry(*number).or_default();
            agenda.takes = old.takes;
            agenda.say = true;
            for (no, execution) in &mut agenda.open {
                if let Some(old) = old.open.get(no) {
                    execution.offered_in = old.offered_in;
                }
            }
            self.touched.insert(*number);
        }
    }

    fn insert(&mut self, command: &Arc<Command>, node: NodeNo, execution: Execution) {
        if !self.commands.contains_key(&command.id) {
            self.ids.insert(command.no, command.id);
            self.params_bytes += command.params_bytes as usize;
        }
        let open = (self.commands.entry(command.id))
            .or_insert_with(|| Open { command: command.clone(), nodes: BTreeSet::new() });
        open.nodes.insert(node);
        self.agendas.entry(node).or_default().open.insert(command.no, execution);
        self.executions += 1;
        self.touched.insert(node);
    }

    /// The next node to be looked at.
    fn next_touched(&mut self) -> Option<NodeNo> {
        let next = self.touched.range(self.turn..).next().or_else(|| self.touched.first()).copied()?;
        self.touched.remove(&next);
        self.turn = next.saturating_add(1);
        Some(next)
    }

    fn command(&self, no: u64) -> Option<&Arc<Command>> {
        Some(&self.commands.get(self.ids.get(&no)?)?.command)
    }

    /// Changes one open execution; what is over leaves the memory.
    fn change(
        &mut self,
        effects: &mut Effects,
        (no, node): (u64, NodeNo),
        change: impl FnOnce(&mut Execution),
    ) {
        let Some(command) = self.command(no).cloned() else { return };
        let Some(execution) = self.agendas.get_mut(&node).and_then(|agenda| agenda.open.get_mut(&no)) else {
            return;
        };
        let was = execution.state();
        change(execution);
        effects.write(command.id, node, Some(was), execution);
        self.touched.insert(node);
        if execution.state().is_terminal() {
            self.drop_execution(&command, node);
        }
    }

    /// Changes the state of one open execution by the hub's own decision, and tells it.
    fn end(
        &mut self,
        effects: &mut Effects,
        key: (u64, NodeNo),
        state: State,
        at_ms: i64,
        reason: Option<Reason>,
    ) {
        let Some(command) = self.command(key.0).cloned() else { return };
        let mut told = None;
        self.change(effects, key, |execution| {
            if execution.step(state, at_ms, reason) {
                told = Some(Change::new(&command, key.1, execution));
            }
        });
        effects.changes.extend(told);
    }

    fn drop_execution(&mut self, command: &Command, node: NodeNo) {
        if let Some(agenda) = self.agendas.get_mut(&node)
            && agenda.open.remove(&command.no).is_some()
        {
            self.executions -= 1;
        }
        if let Some(open) = self.commands.get_mut(&command.id) {
            open.nodes.remove(&node);
            if open.nodes.is_empty() {
                self.commands.remove(&command.id);
                self.ids.remove(&command.no);
                self.params_bytes -= command.params_bytes as usize;
            }
        }
    }
}
