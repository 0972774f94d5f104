//! Rows of commands: what was asked, where every execution stands, and each report as it came.
//!
//! Keys begin with the command's id, a UUIDv7: rows lie in the order of time, and pages never walk what they do not
//! show. Decides nothing.

mod read;

use std::{collections::BTreeMap, sync::Arc};

use ciborium::Value;
use fleet_schemas::{
    CommandId, Lane, cbor,
    command::{Report, State},
};
use redb::{ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

pub use read::{CommandFilter, CommandPage, ExecutionFilter, OpenCommand};

use super::{COUNTERS, Error, HUB, StateStore, counters_at, decode, store};
use crate::core::{
    command::{Command, Effects, Kept, NewReport, Row},
    fleet::NodeNo,
};

type Id = &'static [u8; 16];

// Command id → CBOR `Command` without its parameters. One row a command; removed by retention, oldest first.
const COMMANDS: TableDefinition<'_, Id, &[u8]> = TableDefinition::new("commands");
// Command id → CBOR of its parameters, where it has any.
const PARAMS: TableDefinition<'_, Id, &[u8]> = TableDefinition::new("command_params");
// Command id → executions by state: a little-endian u32 for each of `State::ALL`. One row a command.
const COUNTS: TableDefinition<'_, Id, &[u8]> = TableDefinition::new("command_counts");
// (`kind/…` or `state/…`, command id). One row for the kind, one for each state that an execution of it is in.
const BY_WORD: TableDefinition<'_, (&str, Id), ()> = TableDefinition::new("commands_by");
// (command id, node) → CBOR `Execution`. One row an execution, rewritten when it changes.
const EXECUTIONS: TableDefinition<'_, (Id, u32), &[u8]> = TableDefinition::new("executions");
// (node, command id) → the state as its place in `State::ALL`. One row an execution.
const EXECUTIONS_OF: TableDefinition<'_, (u32, Id), u8> = TableDefinition::new("executions_of");
// (command id, node) of executions that are not over: what a start has to read.
const OPEN: TableDefinition<'_, (Id, u32), ()> = TableDefinition::new("executions_open");
// (command id, node, number from 1) → CBOR `ReportRow`. Appended; these are the records of the command lane.
const REPORTS: TableDefinition<'_, (Id, u32, u32), &[u8]> = TableDefinition::new("reports");

/// Key of reports on commands that nobody here made; no UUIDv7.
const STRAY: [u8; 16] = [0; 16];
/// Key of the last command number in the table of the hub's own rows.
const LAST_NO: &str = "last_command";
/// Most rows that a page may look at before it ends early, with a cursor: keeps any page within some milliseconds.
const LOOKS: usize = 5_000;
const STATES: usize = State::ALL.len();

/// Executions by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([u32; STATES]);

/// A report as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportRow {
    /// When it arrived, hub time, Unix milliseconds.
    pub recv_ms: i64,
    /// When it was said, corrected, Unix milliseconds.
    pub at_ms: i64,
    /// What was said.
    pub report: Report,
}

fn place(state: State) -> u8 {
    u8::try_from(State::ALL.iter().position(|known| *known == state).unwrap_or(0)).unwrap_or(0)
}

fn state_word(state: State) -> String {
    format!("state/{}", state.as_str())
}

fn kind_word(kind: &str) -> String {
    format!("kind/{kind}")
}

impl Counts {
    /// How many executions are in a state.
    #[must_use]
    pub fn of(&self, state: State) -> u32 {
        self.0[usize::from(place(state))]
    }

    /// How many executions there are.
    #[must_use]
    pub fn sum(&self) -> u32 {
        self.0.iter().sum()
    }

    fn read(row: &[u8]) -> Result<Self, Error> {
        let mut counts = Self::default();
        if row.len() != 4 * STATES {
            return Err(Error::Damaged("counts of a command".to_owned()));
        }
        for (count, bytes) in counts.0.iter_mut().zip(row.chunks_exact(4)) {
            *count = bytes.try_into().map_or(0, u32::from_le_bytes);
        }
        Ok(counts)
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|count| count.to_le_bytes()).collect()
    }

    fn change(&mut self, was: Option<State>, is: State) {
        if let Some(was) = was {
            let count = &mut self.0[usize::from(place(was))];
            *count = count.saturating_sub(1);
        }
        self.0[usize::from(place(is))] += 1;
    }
}

pub(super) fn open(write: &redb::WriteTransaction) -> Result<(), Error> {
    for table in [COMMANDS, PARAMS, COUNTS] {
        write.open_table(table).map_err(store)?;
    }
    write.open_table(BY_WORD).map_err(store)?;
    write.open_table(EXECUTIONS).map_err(store)?;
    write.open_table(EXECUTIONS_OF).map_err(store)?;
    write.open_table(OPEN).map_err(store)?;
    write.open_table(REPORTS).map_err(store)?;
    Ok(())
}

/// Copies every table of this room.
pub(super) fn copy(copier: &mut crate::store::moment::Copier<'_>) -> Result<(), crate::store::moment::Cut> {
    copier.table(COMMANDS)?;
    copier.table(PARAMS)?;
    copier.table(COUNTS)?;
    copier.table(BY_WORD)?;
    copier.table(EXECUTIONS)?;
    copier.table(EXECUTIONS_OF)?;
    copier.table(OPEN)?;
    copier.table(REPORTS)
}

pub(super) fn apply(write: &redb::WriteTransaction, effects: &Effects) -> Result<(), Error> {
    if effects.nothing_to_write() {
        return Ok(());
    }
    apply_made(write, &effects.made)?;
    apply_executions(write, &effects.rows)?;
    apply_reports(write, &effects.reports)
}

fn apply_made(write: &redb::WriteTransaction, made: &[Arc<Command>]) -> Result<(), Error> {
    let mut commands = write.open_table(COMMANDS).map_err(store)?;
    let mut params = write.open_table(PARAMS).map_err(store)?;
    let mut by_word = write.open_table(BY_WORD).map_err(store)?;
    for command in made {
        commands.insert(&command.id.0, cbor::encode(&**command).as_slice()).map_err(store)?;
        if command.params != Value::Null {
            params.insert(&command.id.0, cbor::encode(&command.params).as_slice()).map_err(store)?;
        }
        by_word.insert((kind_word(command.kind.as_str()).as_str(), &command.id.0), ()).map_err(store)?;
    }
    if let Some(last) = made.iter().map(|command| command.no).max() {
        let mut hub = write.open_table(HUB).map_err(store)?;
        hub.insert(LAST_NO, &last.to_le_bytes()[..]).map_err(store)?;
    }
    Ok(())
}

fn apply_executions(
    write: &redb::WriteTransaction,
    rows: &BTreeMap<(CommandId, NodeNo), Row>,
) -> Result<(), Error> {
    let mut executions = write.open_table(EXECUTIONS).map_err(store)?;
    let mut executions_of = write.open_table(EXECUTIONS_OF).map_err(store)?;
    let mut open = write.open_table(OPEN).map_err(store)?;
    let mut changed: BTreeMap<CommandId, Vec<(Option<State>, State)>> = BTreeMap::new();
    for ((command, node), row) in rows {
        let (key, state) = ((&command.0, *node), row.execution.state());
        executions.insert(key, cbor::encode(&row.execution).as_slice()).map_err(store)?;
        if row.was == Some(state) {
            continue;
        }
        changed.entry(*command).or_default().push((row.was, state));
        executions_of.insert((*node, &command.0), place(state)).map_err(store)?;
        match (row.was, state.is_terminal()) {
            (None, false) => drop(open.insert(key, ()).map_err(store)?),
            (Some(_), true) => drop(open.remove(key).map_err(store)?),
            (None, true) | (Some(_), false) => {}
        }
    }
    let mut counts = write.open_table(COUNTS).map_err(store)?;
    let mut by_word = write.open_table(BY_WORD).map_err(store)?;
    for (command, steps) in changed {
        let known =
            counts.get(&command.0).map_err(store)?.map(|row| Counts::read(row.value())).transpose()?;
        let before = known.unwrap_or_default();
        let mut after = before;
        steps.into_iter().for_each(|(was, is)| after.change(was, is));
        counts.insert(&command.0, after.bytes().as_slice()).map_err(store)?;
        for state in State::ALL {
            let word = state_word(state);
            match (before.of(state) > 0, after.of(state) > 0) {
                (false, true) => drop(by_word.insert((word.as_str(), &command.0), ()).map_err(store)?),
                (true, false) => drop(by_word.remove((word.as_str(), &command.0)).map_err(store)?),
                (true, true) | (false, false) => {}
            }
        }
    }
    Ok(())
}

fn apply_reports(write: &redb::WriteTransaction, new: &[NewReport]) -> Result<(), Error> {
    let mut reports = write.open_table(REPORTS).map_err(store)?;
    for NewReport { node, recv_ms, at_ms, report, kept } in new {
        let id = if *kept == Kept::Stray { &STRAY } else { &report.id.0 };
        let all = (id, *node, 0)..=(id, *node, u32::MAX);
        let last = reports.range(all).map_err(store)?.next_back().transpose().map_err(store)?;
        let next = last.map_or(1, |(key, _)| key.value().2.saturating_add(1));
        let row = ReportRow { recv_ms: *recv_ms, at_ms: *at_ms, report: report.clone() };
        reports.insert((id, *node, next), cbor::encode(&row).as_slice()).map_err(store)?;
    }
    Ok(())
}

impl StateStore {
    /// Removes commands that were made before `before_ms` and are over everywhere, at most `limit` at once, oldest
    /// first; moves their reports from stored to expired. Returns how many.
    ///
    /// # Errors
    /// [`Error`].
    pub fn expire_commands(&self, before_ms: i64, limit: usize) -> Result<usize, Error> {
        let write = self.begin_write()?;
        let gone = {
            let commands = write.open_table(COMMANDS).map_err(store)?;
            let counts = write.open_table(COUNTS).map_err(store)?;
            let mut gone = Vec::new();
            for row in commands.iter().map_err(store)?.take(LOOKS) {
                let (id, row) = row.map_err(store)?;
                let command: Command = decode(row.value(), "a command")?;
                if gone.len() == limit || command.created_ms >= before_ms {
                    break;
                }
                let row = counts.get(id.value()).map_err(store)?;
                let known = row.map(|row| Counts::read(row.value())).transpose()?.unwrap_or_default();
                if State::ALL.iter().all(|state| state.is_terminal() || known.of(*state) == 0) {
                    gone.push((command.id, command.kind, known));
                }
            }
            gone
        };
        for (id, kind, counts) in &gone {
            remove(&write, *id, kind.as_str(), counts)?;
        }
        remove_strays(&write, before_ms)?;
        write.commit().map_err(store)?;
        Ok(gone.len())
    }
}

fn remove(write: &redb::WriteTransaction, id: CommandId, kind: &str, known: &Counts) -> Result<(), Error> {
    for table in [COMMANDS, PARAMS, COUNTS] {
        write.open_table(table).map_err(store)?.remove(&id.0).map_err(store)?;
    }
    let mut by_word = write.open_table(BY_WORD).map_err(store)?;
    by_word.remove((kind_word(kind).as_str(), &id.0)).map_err(store)?;
    for state in State::ALL.into_iter().filter(|state| known.of(*state) > 0) {
        by_word.remove((state_word(state).as_str(), &id.0)).map_err(store)?;
    }
    let all = (&id.0, 0)..=(&id.0, u32::MAX);
    let mut executions_of = write.open_table(EXECUTIONS_OF).map_err(store)?;
    let mut executions = write.open_table(EXECUTIONS).map_err(store)?;
    for row in executions.range(all.clone()).map_err(store)? {
        let (key, _) = row.map_err(store)?;
        executions_of.remove((key.value().1, &id.0)).map_err(store)?;
    }
    executions.retain_in(all, |_, _| false).map_err(store)?;
    let mut reports = write.open_table(REPORTS).map_err(store)?;
    let mut expired: BTreeMap<NodeNo, u64> = BTreeMap::new();
    reports
        .retain_in((&id.0, 0, 0)..=(&id.0, u32::MAX, u32::MAX), |(_, node, _), _| {
            *expired.entry(node).or_default() += 1;
            false
        })
        .map_err(store)?;
    drop(reports);
    book_expired(write, expired)
}

fn remove_strays(write: &redb::WriteTransaction, before_ms: i64) -> Result<(), Error> {
    let mut reports = write.open_table(REPORTS).map_err(store)?;
    let mut old = Vec::new();
    for row in reports.range((&STRAY, 0, 0)..=(&STRAY, u32::MAX, u32::MAX)).map_err(store)?.take(LOOKS) {
        let (key, row) = row.map_err(store)?;
        let row: ReportRow = decode(row.value(), "a report")?;
        if row.recv_ms < before_ms {
            old.push((key.value().1, key.value().2));
        }
    }
    let mut expired: BTreeMap<NodeNo, u64> = BTreeMap::new();
    for (node, number) in old {
        reports.remove((&STRAY, node, number)).map_err(store)?;
        *expired.entry(node).or_default() += 1;
    }
    drop(reports);
    book_expired(write, expired)
}

fn book_expired(write: &redb::WriteTransaction, expired: BTreeMap<NodeNo, u64>) -> Result<(), Error> {
    let mut counters = write.open_table(COUNTERS).map_err(store)?;
    for (node, count) in expired {
        let key = (node, Lane::Command as u8);
        let mut known = counters_at(&counters, key)?;
        known.stored = known.stored.saturating_sub(count);
        known.expired += count;
        counters.insert(key, cbor::encode(&known).as_slice()).map_err(store)?;
    }
    Ok(())
}
