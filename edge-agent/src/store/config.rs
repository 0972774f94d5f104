//! The configuration in the outbox's file: the newest document, how far it got, and the one before it. In the same file
//! as the outbox, so that a state and the event that tells it are one transaction.

use std::sync::Arc;

use fleet_schemas::{
    StoreId,
    config::{Hash, Held, hash},
};
use redb::{ReadableTable as _, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{commands::decode, commands::encode, outbox::Error};
use crate::core::config::{Doc, Kept, Stage};

// `row` → `Row`, as a row of the commands is written. One row; rewritten in place.
const STATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("config");
// SHA-256 → the document. At most two; written once, deleted when `Row` names them no more.
const DOCS: TableDefinition<'_, &Hash, &[u8]> = TableDefinition::new("config_docs");
const ROW: &str = "row";

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<StoreId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    newest: Option<(Held, Stage)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<Held>,
}

pub(super) fn apply(write: &WriteTransaction, kept: &Kept) -> Result<(), Error> {
    let Kept { store, newest, before } = kept;
    let row = Row {
        store: *store,
        newest: newest.as_ref().map(|(doc, stage)| (doc.held, stage.clone())),
        before: before.as_ref().map(|doc| doc.held),
    };
    write.open_table(STATE)?.insert(ROW, encode(&row).as_slice())?;
    let mut docs = write.open_table(DOCS)?;
    let named: Vec<_> = newest.iter().map(|(doc, _)| doc).chain(before).collect();
    docs.retain(|hash, _| named.iter().any(|doc| doc.held.hash == *hash))?;
    for doc in named {
        if docs.get(&doc.held.hash)?.is_none() {
            docs.insert(&doc.held.hash, doc.bytes.as_ref())?;
        }
    }
    Ok(())
}

/// What is damaged is not there: the hub sends it again.
pub(super) fn find(write: &WriteTransaction) -> Result<Kept, Error> {
    let state = write.open_table(STATE)?;
    let docs = write.open_table(DOCS)?;
    let Some(row) = state.get(ROW)?.and_then(|row| decode::<Row>(row.value()).ok()) else {
        return Ok(Kept::default());
    };
    let doc = |held: Held, failed: bool| -> Result<Option<Doc>, Error> {
        let bytes: Arc<[u8]> = docs.get(&held.hash)?.map(|row| row.value().into()).unwrap_or_default();
        // One that could not even be read is kept by its hash alone.
        let whole = hash(&bytes) == held.hash || failed;
        Ok(whole.then_some(Doc { held, bytes }))
    };
    let newest = match row.newest {
        Some((held, stage)) => doc(held, matches!(stage, Stage::Failed(_)))?.map(|doc| (doc, stage)),
        None => None,
    };
    let before = row.before.map(|held| doc(held, false)).transpose()?.flatten();
    Ok(Kept { store: row.store, newest, before })
}
