//! Genes that field agents published: rows that are written once, by digest.

use redb::{ReadableDatabase, ReadableTable as _, ReadableTableMetadata as _, TableDefinition};
use serde::{Deserialize, Serialize};

use super::{Error, StateStore, decode, store};
use fleet_schemas::cbor;

// Digest (hexadecimal) → CBOR `GeneRow`. At most `GENES` rows, never changed.
const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("genes");

/// Most genes kept: 64 KiB each, so 256 MB at the very most.
pub const GENES: u64 = 4_096;

/// A gene.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneRow {
    /// Its canonical JSON, without `asset_id`.
    pub json: String,
    /// The `asset_id` that its publisher gave it.
    pub asset_id: Option<String>,
    /// Whether that is its digest.
    pub verified: bool,
    /// The node that published it first.
    pub node: String,
    /// When, Unix milliseconds.
    pub first_ms: i64,
}

/// What became of a gene.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is new.
    New,
    /// It was here already.
    Known,
    /// There are [`GENES`] already.
    Full,
}

pub(super) fn open(write: &redb::WriteTransaction) -> Result<(), Error> {
    write.open_table(TABLE).map_err(store)?;
    Ok(())
}

/// Copies every table of this room.
pub(super) fn copy(copier: &mut crate::store::moment::Copier<'_>) -> Result<(), crate::store::moment::Cut> {
    copier.table(TABLE)
}

impl StateStore {
    /// Keeps a gene.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_gene(&self, digest: &str, row: &GeneRow) -> Result<Kept, Error> {
        let write = self.begin_write()?;
        {
            let mut table = write.open_table(TABLE).map_err(store)?;
            if table.get(digest).map_err(store)?.is_some() {
                return Ok(Kept::Known);
            }
            if table.len().map_err(store)? >= GENES {
                return Ok(Kept::Full);
            }
            table.insert(digest, cbor::encode(row).as_slice()).map_err(store)?;
        }
        write.commit().map_err(store)?;
        Ok(Kept::New)
    }

    /// Genes by digest, those after `after`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn genes(&self, after: &str, limit: usize) -> Result<Vec<(String, GeneRow)>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let table = read.open_table(TABLE).map_err(store)?;
        let rows = table.range(after..).map_err(store)?;
        let row = |row: Result<(redb::AccessGuard<'_, &str>, redb::AccessGuard<'_, &[u8]>), _>| {
            let (digest, row) = row.map_err(store)?;
            Ok((digest.value().to_owned(), decode(row.value(), "a gene")?))
        };
        let new =
            |row: &Result<(String, GeneRow), Error>| !row.as_ref().is_ok_and(|(digest, _)| digest == after);
        rows.map(row).filter(new).take(limit).collect()
    }

    /// One gene.
    ///
    /// # Errors
    /// [`Error`].
    pub fn gene(&self, digest: &str) -> Result<Option<GeneRow>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let row = read.open_table(TABLE).map_err(store)?.get(digest).map_err(store)?;
        row.map(|row| decode(row.value(), "a gene")).transpose()
    }
}

#[cfg(test)]
mod tests {
    use fleet_schemas::StoreId;

    use super::*;
    use crate::store::disk::Memory;

    #[test]
    fn a_gene_is_kept_once_and_listed_by_digest() {
        let state = StateStore::open(&Memory::default(), StoreId([1; 16])).unwrap();
        let row = |node: &str| GeneRow {
            json: "{}".to_owned(),
            asset_id: None,
            verified: false,
            node: node.to_owned(),
            first_ms: 7,
        };
        assert_eq!(state.put_gene("bb", &row("a")).unwrap(), Kept::New);
        assert_eq!(state.put_gene("bb", &row("b")).unwrap(), Kept::Known);
        assert_eq!(state.put_gene("aa", &row("b")).unwrap(), Kept::New);
        assert_eq!(state.gene("bb").unwrap(), Some(row("a")));
        let listed =
            |after: &str| state.genes(after, 9).unwrap().into_iter().map(|(d, _)| d).collect::<Vec<_>>();
        assert_eq!(
            (listed(""), listed("aa"), listed("bb")),
            (vec!["aa".into(), "bb".into()], vec!["bb".into()], vec![])
        );
    }
}
