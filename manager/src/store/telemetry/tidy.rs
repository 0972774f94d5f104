//! The daily pass over the week files: rolls up what was sealed since, then merges small blobs of a node into
//! larger ones. Runs in small steps while there is nothing to seal; starting over is harmless.
//!
//! Order matters: only blobs that are rolled up are merged, so that a blob is never half rolled up.

use std::sync::Arc;

use fleet_schemas::Lane;

use super::{
    Config, Error, Opened,
    blob::Merge,
    seal::{SealReport, Sealer},
    week::{BLOBS, Entry, FileId, NODES, NodeRow, Place, Sink, View, WeekFile},
};
use crate::store::disk::Disk;

/// Time from one pass to the next, milliseconds.
const PASS_MS: u64 = 86_400_000;
/// Small blobs of one node that are worth merging.
const MERGE_FROM: u32 = 8;
/// Nodes that one step looks at, and blobs that it may rewrite.
const STEP_NODES: usize = 1_000;
const STEP_BLOBS: u64 = 256;

/// Where the pass is.
#[derive(Default)]
pub(super) struct Progress {
    started_ms: Option<i64>,
    // The next file and node to look at, while a pass runs.
    at: Option<(FileId, u32)>,
}

/// One step of the pass, if one is due.
pub(super) fn step(
    disk: &dyn Disk,
    config: &Config,
    opened: &Opened,
    sealer: &mut Sealer,
    now_ms: i64,
    report: &mut SealReport,
) -> Result<(), Error> {
    let files = opened.weeks.all();
    let Some(first) = files.first() else { return Ok(()) };
    let idle = sealer.tidy.at.is_none();
    if idle && sealer.tidy.started_ms.is_some_and(|started| now_ms.abs_diff(started) < PASS_MS) {
        return Ok(());
    }
    if idle {
        sealer.tidy = Progress { started_ms: Some(now_ms), at: Some((first.id, 0)) };
    }
    let (id, from) = sealer.tidy.at.unwrap_or((first.id, 0));
    // A file that is gone meanwhile is passed over.
    let Some(file) = files.iter().find(|file| file.id >= id) else {
        sealer.tidy.at = None;
        return Ok(());
    };
    let from = if file.id == id { from } else { 0 };
    let next = tidy_file(disk, config, opened, sealer, (file, from), report)?;
    sealer.tidy.at = match next {
        Some(node) => Some((file.id, node)),
        None => files.iter().find(|other| other.id > file.id).map(|other| (other.id, 0)),
    };
    report.more |= sealer.tidy.at.is_some();
    Ok(())
}

/// Looks at some nodes of a file, from one on; gives the next to look at.
fn tidy_file(
    disk: &dyn Disk,
    config: &Config,
    opened: &Opened,
    sealer: &mut Sealer,
    (file, from): (&Arc<WeekFile>, u32),
    report: &mut SealReport,
) -> Result<Option<u32>, Error> {
    let view = file.view()?;
    for (looked, (node, row)) in view.nodes_from(from, STEP_NODES + 1)?.into_iter().enumerate() {
        if looked == STEP_NODES || report.merged >= STEP_BLOBS {
            return Ok(Some(node));
        }
        let tools = (&mut sealer.packer, &mut sealer.unpacker);
        if opened.rollups.rolled(file.id, node)? < row.cursor {
            let done = opened.rollups.roll(disk, config, opened, &view, (node, &row), tools)?;
            // A rollup is a transaction of its own: the step ends with it.
            return Ok(Some(if done && row.loose < MERGE_FROM { node.saturating_add(1) } else { node }));
        }
        if row.loose >= MERGE_FROM && file.writable().is_some() {
            report.merged += merge_node(opened, (&view, file), sealer, node, row)?;
            return Ok(Some(node.saturating_add(1)));
        }
    }
    Ok(None)
}

/// Merges a node's small blobs, in one transaction.
fn merge_node(
    opened: &Opened,
    (view, file): (&View, &WeekFile),
    sealer: &mut Sealer,
    node: u32,
    mut row: NodeRow,
) -> Result<u64, Error> {
    let mut old = Vec::new();
    let mut blobs = Vec::new();
    let mut bytes = view.bytes()?;
    let mut loose = view.blobs(node, &row, i64::MIN, i64::MAX)?;
    loose.retain(|(_, _, entry)| matches!(entry.place, Place::Loose { .. }));
    loose.sort_unstable_by_key(|(_, first_seq, _)| *first_seq);
    for lane in [Lane::Telemetry, Lane::Backfill] {
        let mut merge = Merge::default();
        let (mut first, mut last) = (0, 0);
        for blob in loose.iter().filter(|(_, _, entry)| entry.lane == lane) {
            let (start_ms, first_seq, entry) = blob;
            // What rotted stays where it is, and is not counted as small any more.
            let read = opened.blob(view.id, node, blob, &mut bytes, &mut sealer.unpacker)?;
            let Some(decoded) = read else { continue };
            if merge.is_empty() {
                first = *first_seq;
            } else if !merge.fits(&decoded.samples) {
                blobs.push((lane, first, last, merge.finish(lane, &mut sealer.packer)));
                first = *first_seq;
            }
            merge.add_blob(&decoded);
            last = entry.last_seq;
            old.push(((node, *start_ms, *first_seq), entry.place));
        }
        if !merge.is_empty() {
            blobs.push((lane, first, last, merge.finish(lane, &mut sealer.packer)));
        }
    }
    let mut sink = Sink::after(view)?;
    row.loose = 0;
    let mut entries = Vec::new();
    for (lane, first_seq, last_seq, blob) in blobs {
        row.span_ms = row.span_ms.max(blob.end_ms.saturating_sub(blob.start_ms));
        let place = sink.put(blob.bytes);
        row.loose += u32::from(matches!(place, Place::Loose { .. }));
        let entry = Entry { end_ms: blob.end_ms, last_seq, count: blob.count as u32, lane, place };
        entries.push(((node, blob.start_ms, first_seq), entry));
    }
    let numbers: Vec<u64> = (old.iter())
        .filter_map(|(_, place)| match place {
            Place::Loose { number } => Some(*number),
            Place::Dense { .. } => None,
        })
        .collect();
    let write = file.writable().ok_or(Error::Closed)?.begin_write()?;
    {
        sink.write(&write, &numbers)?;
        let mut table = write.open_table(BLOBS)?;
        for (key, _) in &old {
            table.remove(key)?;
        }
        for (key, entry) in &entries {
            table.insert(key, &entry.to_bytes()[..])?;
        }
        write.open_table(NODES)?.insert(node, &row.to_bytes()[..])?;
    }
    write.commit()?;
    Ok(old.len() as u64)
}
