//! The configuration in the outbox's file: the newest document, how far it got, and the one before it. In the outbox's
//! file, and so in one transaction with whatever else is written then.

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

#[cfg(test)]
mod tests {
    use ciborium::Value;
    use fleet_schemas::{
        cbor,
        config::{Failed, Version},
    };

    use super::*;
    use crate::store::{
        outbox::{Outbox, Write},
        sim_disk::SimFile,
    };

    fn doc(n: u64) -> Doc {
        let bytes = cbor::encode(&n);
        let held = Held { version: Version { epoch: 1, n }, hash: hash(&bytes), retry: n };
        Doc { held, bytes: bytes.into() }
    }

    fn found(disk: &SimFile) -> Kept {
        Outbox::open(disk.backend()).unwrap().1.config
    }

    #[test]
    fn what_is_kept_survives_and_what_is_not_goes() {
        let disk = SimFile::new();
        let stages = [
            Stage::Received,
            Stage::Trying { starts: 2 },
            Stage::Probation { starts: 1 },
            Stage::Applied,
            Stage::Failed(Failed { code: "invalid".into(), message: "why".into() }),
        ];
        assert_eq!(found(&disk), Kept::default());
        for (n, stage) in (1..).zip(stages) {
            let store = Some(StoreId([3; 16]));
            let kept = Kept { store, newest: Some((doc(n), stage)), before: Some(doc(n + 10)) };
            let (outbox, _) = Outbox::open(disk.backend()).unwrap();
            outbox.apply(&[Write::Config(kept.clone())]).unwrap();
            drop(outbox);
            assert_eq!(found(&disk), kept);
        }
        // Documents that nothing names any more are gone.
        let db = redb::Database::builder().create_with_backend(disk.backend()).unwrap();
        let write = db.begin_write().unwrap();
        assert_eq!(redb::ReadableTableMetadata::len(&write.open_table(DOCS).unwrap()).unwrap(), 2);
        // A damaged one is as if it had not come.
        write.open_table(DOCS).unwrap().insert(&doc(15).held.hash, [0].as_slice()).unwrap();
        write.commit().unwrap();
        drop(db);
        let kept = found(&disk);
        assert_eq!((kept.newest.unwrap().0, kept.before), (doc(5), None));
    }

    #[test]
    fn the_row_keeps_its_format() {
        let row = Row {
            store: Some(StoreId([3; 16])),
            newest: Some((doc(1).held, Stage::Trying { starts: 1 })),
            before: Some(doc(2).held),
        };
        let read: Value = cbor::decode(&encode(&row)[8..]).unwrap();
        let keys = |value: &Value| -> Vec<String> {
            value.as_map().unwrap().iter().map(|(key, _)| key.as_text().unwrap().to_owned()).collect()
        };
        assert_eq!(keys(&read), ["store", "newest", "before"]);
        let newest = read.as_map().unwrap()[1].1.as_array().unwrap().clone();
        assert_eq!(keys(&newest[0]), ["version", "hash", "retry"]);
        assert_eq!(keys(&newest[1]), ["trying"]);
        let words: Vec<_> = [Stage::Received, Stage::Applied].iter().map(cbor::encode).collect();
        assert_eq!(words, [cbor::encode(&"received"), cbor::encode(&"applied")]);
    }
}
