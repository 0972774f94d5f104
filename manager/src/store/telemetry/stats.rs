//! What the store tells about itself, and the recount that trusts no counter.

use fleet_schemas::{Lane, cbor::Unpacker};

use super::{Error, TelemetryStore, query::Snapshot, read_lock};
use crate::store::disk::Space;

/// The store in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Batches that are not sealed yet, their bytes and samples.
    pub unsealed_batches: u64,
    /// Bytes of those.
    pub unsealed_bytes: u64,
    /// Samples of those.
    pub unsealed_samples: u64,
    /// Bytes of the rows that are in the inbox, sealed ones too.
    pub inbox_bytes: u64,
    /// How long the oldest unsealed batch has waited, milliseconds.
    pub seal_lag_ms: u64,
    /// Samples in week files.
    pub sealed_samples: u64,
    /// How many week files.
    pub week_files: u64,
    /// How many rollup files.
    pub rollup_files: u64,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// Files that were damaged when the store was opened, under the names they were set aside with.
    pub set_aside: Vec<String>,
}

impl TelemetryStore {
    /// The filesystem that holds the files, where that can be told.
    #[must_use]
    pub fn space(&self) -> Option<Space> {
        self.disk.space()
    }

    /// The store in numbers.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn stats(&self, now_ms: i64) -> Result<Stats, Error> {
        let opened = self.opened()?;
        let mut stats = Stats {
            week_files: opened.weeks.all().len() as u64,
            rollup_files: opened.rollups.names().len() as u64,
            file_bytes: self.bytes(&opened),
            set_aside: opened.set_aside.clone(),
            ..Stats::default()
        };
        let memory = read_lock(&opened.inbox.memory);
        let unsealed = &memory.unsealed;
        stats.unsealed_batches = unsealed.batches;
        stats.unsealed_bytes = unsealed.bytes;
        stats.unsealed_samples = unsealed.samples;
        stats.inbox_bytes = memory.row_bytes;
        let oldest = unsealed.nodes.values().map(|node| node.since_ms).min();
        stats.seal_lag_ms = oldest.map_or(0, |since| now_ms.saturating_sub(since).max(0).cast_unsigned());
        let stored: u64 = memory.counters.values().map(|counters| counters.stored).sum();
        stats.sealed_samples = stored.saturating_sub(unsealed.samples);
        Ok(stats)
    }

    /// Counts the samples of a (node, lane) that are really there, by decoding every body. Takes as long as reading
    /// all of them does.
    ///
    /// What rotted on the disk is not counted; it is booked as quarantined by the next [`TelemetryStore::seal`].
    ///
    /// # Errors
    /// [`Error`] when a file cannot be read.
    pub fn recount(&self, node: u32, lane: Lane) -> Result<u64, Error> {
        let opened = self.opened()?;
        let count = || {
            let mut snapshot = Snapshot::take(&opened, node)?;
            let mut unpacker = Unpacker::default();
            let mut count = 0;
            for view in &snapshot.views {
                let Some(row) = view.node(node)? else { continue };
                let mut bytes = view.bytes()?;
                for blob in view.blobs(node, &row, i64::MIN, i64::MAX)? {
                    let decoded = opened.blob(view.id, node, &blob, &mut bytes, &mut unpacker)?;
                    let found = decoded.filter(|decoded| decoded.lane == lane);
                    count += found.map_or(0, |found| found.samples.count());
                }
            }
            let wanted = |batch: &super::unsealed::Batch| batch.lane == lane;
            snapshot.each_unsealed(&opened, &mut unpacker, wanted, |_, samples, _| {
                count += samples.count();
                Ok(())
            })?;
            Ok(count)
        };
        self.note(count())
    }
}
