//! Reading rows of commands: what a start needs, one command, and pages.

use std::collections::BTreeMap;

use fleet_schemas::{CommandId, command::State};
use redb::{ReadableDatabase, ReadableTable};

use super::{
    super::{Error, HUB, StateStore, decode, store},
    BY_WORD, COMMANDS, COUNTS, Counts, EXECUTIONS, EXECUTIONS_OF, LAST_NO, LOOKS, OPEN, PARAMS, REPORTS,
    ReportRow, kind_word, state_word,
};
use crate::core::{
    command::{Command, Execution},
    fleet::NodeNo,
};

/// A command with its executions that are not over, by the numbers of their nodes.
pub type OpenCommand = (Command, Vec<(NodeNo, Execution)>);

/// Which commands to list.
#[derive(Debug, Clone, Default)]
pub struct CommandFilter {
    /// With an execution at this node.
    pub node: Option<NodeNo>,
    /// With an execution in this state (at that node, where one is given).
    pub state: Option<State>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Only those older than this (the cursor of the page before).
    pub before: Option<CommandId>,
    /// At most this many.
    pub limit: usize,
}

/// Which executions of a command to list.
#[derive(Debug, Clone, Default)]
pub struct ExecutionFilter {
    /// Only of nodes numbered above this (the cursor of the page before).
    pub after: Option<NodeNo>,
    /// Only of this node.
    pub node: Option<NodeNo>,
    /// Only in this state.
    pub state: Option<State>,
    /// At most this many.
    pub limit: usize,
}

/// A page, and where the next begins: a page may have fewer items than asked for although there is a next.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandPage<T, C> {
    /// The items.
    pub items: Vec<T>,
    /// The cursor of the next page.
    pub next: Option<C>,
}

impl StateStore {
    /// The last command number given, and every command with its executions that are not over.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open_commands(&self) -> Result<(u64, Vec<OpenCommand>), Error> {
        let read = self.db.begin_read().map_err(store)?;
        let hub = read.open_table(HUB).map_err(store)?;
        let last = hub.get(LAST_NO).map_err(store)?.and_then(|row| row.value().try_into().ok());
        let last = last.map_or(0, u64::from_le_bytes);
        let executions = read.open_table(EXECUTIONS).map_err(store)?;
        let mut found: Vec<OpenCommand> = Vec::new();
        for row in read.open_table(OPEN).map_err(store)?.iter().map_err(store)? {
            let (key, _) = row.map_err(store)?;
            let (id, node) = key.value();
            if found.last().is_none_or(|(command, _)| command.id.0 != *id) {
                let command = command_in(&read, CommandId(*id))?;
                found.push((command.ok_or_else(|| Error::Damaged("a command".to_owned()))?, Vec::new()));
            }
            let row = executions.get((id, node)).map_err(store)?;
            let row = row.ok_or_else(|| Error::Damaged("an execution".to_owned()))?;
            if let Some((_, executions)) = found.last_mut() {
                executions.push((node, decode(row.value(), "an execution")?));
            }
        }
        Ok((last, found))
    }

    /// One command with its parameters, and its executions by state.
    ///
    /// # Errors
    /// [`Error`].
    pub fn command(&self, id: CommandId) -> Result<Option<(Command, Counts)>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let Some(command) = command_in(&read, id)? else { return Ok(None) };
        let counts = read.open_table(COUNTS).map_err(store)?;
        let counts = counts.get(&id.0).map_err(store)?.map(|row| Counts::read(row.value())).transpose()?;
        Ok(Some((command, counts.unwrap_or_default())))
    }

    /// Commands without their parameters, newest first, with their executions by state.
    ///
    /// # Errors
    /// [`Error`].
    pub fn commands(
        &self,
        filter: &CommandFilter,
    ) -> Result<CommandPage<(Command, Counts), CommandId>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let commands = read.open_table(COMMANDS).map_err(store)?;
        let counts = read.open_table(COUNTS).map_err(store)?;
        let mut page = CommandPage { items: Vec::new(), next: None };
        let mut last = None;
        for (looked, found) in candidates(&read, filter)?.enumerate() {
            if page.items.len() == filter.limit || looked == LOOKS {
                page.next = last;
                break;
            }
            let (id, is_in_state) = found?;
            last = Some(id);
            if !is_in_state {
                continue;
            }
            let Some(row) = commands.get(&id.0).map_err(store)? else { continue };
            let command: Command = decode(row.value(), "a command")?;
            let row = counts.get(&id.0).map_err(store)?;
            let counts = row.map(|row| Counts::read(row.value())).transpose()?.unwrap_or_default();
            let in_state = filter.node.is_some() || filter.state.is_none_or(|state| counts.of(state) > 0);
            let of_kind = filter.kind.as_ref().is_none_or(|kind| command.kind.as_str() == kind);
            if in_state && of_kind {
                page.items.push((command, counts));
            }
        }
        Ok(page)
    }

    /// Executions of a command, by the numbers of their nodes.
    ///
    /// # Errors
    /// [`Error`].
    pub fn executions(
        &self,
        id: CommandId,
        filter: &ExecutionFilter,
    ) -> Result<CommandPage<(NodeNo, Execution), NodeNo>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let table = read.open_table(EXECUTIONS).map_err(store)?;
        let from = filter.node.or(filter.after.map(|after| after.saturating_add(1))).unwrap_or(0);
        let to = filter.node.unwrap_or(u32::MAX);
        let mut page = CommandPage { items: Vec::new(), next: None };
        let mut last = None;
        for (looked, row) in table.range((&id.0, from)..=(&id.0, to)).map_err(store)?.enumerate() {
            if page.items.len() == filter.limit || looked == LOOKS {
                page.next = last;
                break;
            }
            let (key, row) = row.map_err(store)?;
            let node = key.value().1;
            last = Some(node);
            let execution: Execution = decode(row.value(), "an execution")?;
            if filter.state.is_none_or(|state| execution.state() == state) {
                page.items.push((node, execution));
            }
        }
        Ok(page)
    }

    /// One execution.
    ///
    /// # Errors
    /// [`Error`].
    pub fn execution(&self, id: CommandId, node: NodeNo) -> Result<Option<Execution>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let table = read.open_table(EXECUTIONS).map_err(store)?;
        let row = table.get((&id.0, node)).map_err(store)?;
        row.map(|row| decode(row.value(), "an execution")).transpose()
    }

    /// What a node reported of an execution, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn reports(&self, id: CommandId, node: NodeNo, limit: usize) -> Result<Vec<ReportRow>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let table = read.open_table(REPORTS).map_err(store)?;
        let rows = table.range((&id.0, node, 0)..=(&id.0, node, u32::MAX)).map_err(store)?;
        let mut reports = Vec::new();
        for row in rows.take(limit) {
            let (_, row) = row.map_err(store)?;
            reports.push(decode(row.value(), "a report")?);
        }
        Ok(reports)
    }

    /// Counts the stored reports by node, for `ledger --verify`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn recount_reports(&self) -> Result<BTreeMap<NodeNo, u64>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let mut counts = BTreeMap::new();
        for row in read.open_table(REPORTS).map_err(store)?.iter().map_err(store)? {
            let (key, _) = row.map_err(store)?;
            *counts.entry(key.value().1).or_default() += 1;
        }
        Ok(counts)
    }
}

fn state_at(place: u8) -> Result<State, Error> {
    State::ALL.get(usize::from(place)).copied().ok_or_else(|| Error::Damaged("a state".to_owned()))
}

fn command_in(read: &redb::ReadTransaction, id: CommandId) -> Result<Option<Command>, Error> {
    let table = read.open_table(COMMANDS).map_err(store)?;
    let Some(row) = table.get(&id.0).map_err(store)? else { return Ok(None) };
    let mut command: Command = decode(row.value(), "a command")?;
    if let Some(params) = read.open_table(PARAMS).map_err(store)?.get(&id.0).map_err(store)? {
        command.params = decode(params.value(), "the parameters of a command")?;
    }
    Ok(Some(command))
}

type Candidates = Box<dyn Iterator<Item = Result<(CommandId, bool), Error>>>;

/// Ids newest first from the narrowest index that the filter has, and whether the node's execution is in the state.
fn candidates(read: &redb::ReadTransaction, filter: &CommandFilter) -> Result<Candidates, Error> {
    let (first, last) = ([0; 16], filter.before.map_or([u8::MAX; 16], |before| before.0));
    let (state, before) = (filter.state, filter.before.is_some());
    let fresh = move |id: &[u8; 16]| !before || *id != last;
    if let Some(node) = filter.node {
        let table = read.open_table(EXECUTIONS_OF).map_err(store)?;
        let rows = table.range((node, &first)..=(node, &last)).map_err(store)?.rev();
        let found = rows.map(move |row| {
            let (key, place) = row.map_err(store)?;
            let id = *key.value().1;
            Ok((id, state.is_none_or(|state| state_at(place.value()).is_ok_and(|known| known == state))))
        });
        return Ok(without(found, fresh));
    }
    let word = state.map(state_word).or_else(|| filter.kind.as_deref().map(kind_word));
    if let Some(word) = word {
        let table = read.open_table(BY_WORD).map_err(store)?;
        let rows = table.range((word.as_str(), &first)..=(word.as_str(), &last)).map_err(store)?.rev();
        let found = rows.map(|row| row.map(|(key, _)| (*key.value().1, true)).map_err(store));
        return Ok(without(found, fresh));
    }
    let table = read.open_table(COMMANDS).map_err(store)?;
    let rows = table.range::<&[u8; 16]>(&first..=&last).map_err(store)?.rev();
    let found = rows.map(|row| row.map(|(key, _)| (*key.value(), true)).map_err(store));
    Ok(without(found, fresh))
}

fn without(
    found: impl Iterator<Item = Result<([u8; 16], bool), Error>> + 'static,
    fresh: impl Fn(&[u8; 16]) -> bool + 'static,
) -> Candidates {
    let kept = found.filter(move |row| row.as_ref().map_or(true, |(id, _)| fresh(id)));
    Box::new(kept.map(|row| row.map(|(id, is_in_state)| (CommandId(id), is_in_state))))
}
