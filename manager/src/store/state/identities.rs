//! Rows of who may speak to the hub, the trail of changes, and what tools want retained.

use fleet_schemas::{NodeId, cbor};
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata as _, TableDefinition};
use serde::{Deserialize, Serialize};

use super::{Error, StateStore, decode, store};
use crate::core::{
    audit::Entry,
    identity::{Access, Enrolment, FieldToken, Identities, Operator, Token},
};

// Token id → CBOR `Token`. A few rows; ended ones go after a week.
const TOKENS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("join_tokens");
// Node id → CBOR `Enrolment`. One row a node, kept when the node is removed: it holds the revocation.
const ENROLMENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("enrolments");
// User name → CBOR `Access`. A few rows.
const ACCESS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("access");
// Name → CBOR `Operator`. A few rows.
const OPERATORS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("operators");
// Token id → CBOR `FieldToken`. One row a field agent, kept until it is removed.
const FIELD: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("field_tokens");
// Number → CBOR `Entry`. Appended; the front is removed above the limit.
const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit");
// Topic → CBOR `RetainedRow`, what tools want retained. Bounded by the gate.
const RETAINED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("retained");

/// Changes kept in the trail: years of work of a few operators; the oldest go.
const AUDIT_ROWS: u64 = 200_000;

/// A changed row: its key, and its value unless it is gone.
pub type Changed<K, V> = Vec<(K, Option<V>)>;

/// Changes of who may speak to the hub, part of a [`super::Commit`].
#[derive(Debug, Default)]
pub struct Changes {
    /// Join tokens.
    pub tokens: Changed<String, Token>,
    /// Nodes that joined.
    pub enrolments: Changed<NodeId, Enrolment>,
    /// Third-party tools.
    pub access: Changed<String, Access>,
    /// Operators.
    pub operators: Changed<String, Operator>,
    /// Tokens of field agents.
    pub field: Changed<String, FieldToken>,
    /// What was changed, by whom.
    pub audit: Vec<Entry>,
}

/// What a tool wants retained on a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainedRow {
    /// 0 or 1.
    pub qos: u8,
    /// The message.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// Its MQTT 5 properties, as the gate gave them.
    #[serde(default, with = "serde_bytes", skip_serializing_if = "Vec::is_empty")]
    pub properties: Vec<u8>,
}

/// Which entries of the trail to list.
#[derive(Debug, Clone, Copy)]
pub struct AuditFilter {
    /// Only those numbered below this (the cursor of the page before).
    pub before: Option<u64>,
    /// At most this many.
    pub limit: usize,
}

impl Changes {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
            && self.enrolments.is_empty()
            && self.access.is_empty()
            && self.operators.is_empty()
            && self.field.is_empty()
            && self.audit.is_empty()
    }
}

pub(super) fn open(write: &redb::WriteTransaction) -> Result<(), Error> {
    for table in [TOKENS, ENROLMENTS, ACCESS, OPERATORS, FIELD, RETAINED] {
        write.open_table(table).map_err(store)?;
    }
    write.open_table(AUDIT).map_err(store)?;
    Ok(())
}

/// Copies every table of this room.
pub(super) fn copy(copier: &mut crate::store::moment::Copier<'_>) -> Result<(), crate::store::moment::Cut> {
    copier.table(TOKENS)?;
    copier.table(ENROLMENTS)?;
    copier.table(ACCESS)?;
    copier.table(OPERATORS)?;
    copier.table(FIELD)?;
    copier.table(AUDIT)?;
    copier.table(RETAINED)
}

pub(super) fn apply(write: &redb::WriteTransaction, changes: &Changes) -> Result<(), Error> {
    put(write, TOKENS, changes.tokens.iter().map(|(key, row)| (key.as_str(), row.as_ref())))?;
    put(write, ENROLMENTS, changes.enrolments.iter().map(|(key, row)| (key.as_str(), row.as_ref())))?;
    put(write, ACCESS, changes.access.iter().map(|(key, row)| (key.as_str(), row.as_ref())))?;
    put(write, OPERATORS, changes.operators.iter().map(|(key, row)| (key.as_str(), row.as_ref())))?;
    put(write, FIELD, changes.field.iter().map(|(key, row)| (key.as_str(), row.as_ref())))?;
    let mut audit = write.open_table(AUDIT).map_err(store)?;
    for entry in &changes.audit {
        let next = audit.last().map_err(store)?.map_or(1, |(number, _)| number.value() + 1);
        audit.insert(next, cbor::encode(entry).as_slice()).map_err(store)?;
        if audit.len().map_err(store)? > AUDIT_ROWS {
            audit.pop_first().map_err(store)?;
        }
    }
    Ok(())
}

fn put<'a, V: Serialize + 'a>(
    write: &redb::WriteTransaction,
    table: TableDefinition<'_, &'static str, &'static [u8]>,
    rows: impl Iterator<Item = (&'a str, Option<&'a V>)>,
) -> Result<(), Error> {
    let mut table = write.open_table(table).map_err(store)?;
    for (key, row) in rows {
        match row {
            Some(row) => drop(table.insert(key, cbor::encode(row).as_slice()).map_err(store)?),
            None => drop(table.remove(key).map_err(store)?),
        }
    }
    Ok(())
}

impl StateStore {
    /// Everybody who may speak to the hub.
    ///
    /// # Errors
    /// [`Error`].
    pub fn identities(&self) -> Result<Identities, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let mut found = Identities::default();
        each(&read, TOKENS, |id, row| {
            found.tokens.insert(id.to_owned(), decode(row, "a join token")?);
            Ok(())
        })?;
        each(&read, ENROLMENTS, |id, row| {
            let node = NodeId::parse(id).map_err(|error| Error::Damaged(error.to_string()))?;
            found.enrolments.insert(node, decode(row, "an enrolment")?);
            Ok(())
        })?;
        each(&read, ACCESS, |name, row| {
            found.access.insert(name.to_owned(), decode(row, "an access")?);
            Ok(())
        })?;
        each(&read, OPERATORS, |name, row| {
            found.operators.insert(name.to_owned(), decode(row, "an operator")?);
            Ok(())
        })?;
        each(&read, FIELD, |id, row| {
            found.field.insert(id.to_owned(), decode(row, "a field token")?);
            Ok(())
        })?;
        Ok(found)
    }

    /// The trail of changes, newest first, with their numbers.
    ///
    /// # Errors
    /// [`Error`].
    pub fn audit(&self, filter: AuditFilter) -> Result<Vec<(u64, Entry)>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let table = read.open_table(AUDIT).map_err(store)?;
        let newest = table.range(..filter.before.unwrap_or(u64::MAX)).map_err(store)?.rev();
        let entry = |row: Result<_, redb::StorageError>| {
            let (number, row): (redb::AccessGuard<'_, u64>, redb::AccessGuard<'_, &[u8]>) =
                row.map_err(store)?;
            Ok((number.value(), decode(row.value(), "an entry of the trail")?))
        };
        newest.take(filter.limit).map(entry).collect()
    }

    /// What tools want retained, by topic.
    ///
    /// # Errors
    /// [`Error`].
    pub fn retained(&self) -> Result<Vec<(String, RetainedRow)>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let mut found = Vec::new();
        each(&read, RETAINED, |topic, row| {
            found.push((topic.to_owned(), decode(row, "a retained message")?));
            Ok(())
        })?;
        Ok(found)
    }

    /// Keeps or forgets what tools want retained.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_retained(&self, rows: &Changed<String, RetainedRow>) -> Result<(), Error> {
        let write = self.begin_write()?;
        put(&write, RETAINED, rows.iter().map(|(topic, row)| (topic.as_str(), row.as_ref())))?;
        write.commit().map_err(store)
    }
}

fn each(
    read: &redb::ReadTransaction,
    table: TableDefinition<'_, &'static str, &'static [u8]>,
    mut visit: impl FnMut(&str, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    for row in read.open_table(table).map_err(store)?.iter().map_err(store)? {
        let (key, row) = row.map_err(store)?;
        visit(key.value(), row.value())?;
    }
    Ok(())
}
