//! Retention: unlinks whole files, oldest first, by age and by size, and keeps the account straight.
//!
//! A file goes in three steps: what it holds is rolled up; its samples are booked from `stored` to `expired` in the
//! transaction that dooms it; it is unlinked. A crash in between is finished at the next opening. The caller
//! must not call this while it doubts its clock.

use std::sync::{Arc, Mutex, Weak};

use fleet_schemas::Lane;

use super::{
    Error, InboxWrite, Opened, TelemetryStore, inbox, lock, read_lock,
    seal::Sealer,
    week::{FileId, WeekFile},
};

/// Share of the filesystem that telemetry may fill when no size is configured.
const DISK_SHARE_PERCENT: u64 = 80;
/// Nodes that one call rolls up before it removes a file: about a second of work.
const ROLL_NODES: usize = 500;
/// Rows that one checkpoint removes.
const CHECKPOINT_ROWS: u64 = 50_000;

/// What one call of [`TelemetryStore::retain`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetainReport {
    /// Files that were unlinked; announce them by an event.
    pub removed: Vec<String>,
    /// Samples that went from `stored` to `expired`, by node and lane.
    pub expired: Vec<(u32, Lane, u64)>,
    /// There is more to do: call again.
    pub more: bool,
    /// The size limit is exceeded by the newest file, which is never removed: free space or raise the limit.
    pub full: bool,
}

/// The room that telemetry has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Bytes that it takes.
    pub bytes: u64,
    /// Most bytes that it may take, as retention reckons it now; none: nobody knows.
    pub most_bytes: Option<u64>,
    /// When the week of the oldest file ends, Unix milliseconds.
    pub oldest_ms: Option<i64>,
}

/// How long after a file was closed the filesystem may take to give its room back, in milliseconds.
const GIVEN_BACK_MS: i64 = 60_000;

/// Files that were removed and whose room is not back yet: a backup or a reader has them open, or the filesystem takes its
/// time. Without them every file would look as if its removal had helped nothing, and the next one would go.
#[derive(Debug, Default)]
pub(super) struct Leaving(Mutex<Vec<Removed>>);

#[derive(Debug)]
struct Removed {
    file: Weak<WeekFile>,
    bytes: u64,
    /// Since when nobody has it open, Unix milliseconds.
    closed_ms: Option<i64>,
}

impl Leaving {
    fn add(&self, file: &Arc<WeekFile>, bytes: u64) {
        lock(&self.0).push(Removed { file: Arc::downgrade(file), bytes, closed_ms: None });
    }

    fn look(&self, now_ms: i64) {
        lock(&self.0).retain_mut(|removed| {
            if removed.file.strong_count() > 0 {
                return true;
            }
            let closed_ms = *removed.closed_ms.get_or_insert(now_ms);
            (closed_ms..closed_ms.saturating_add(GIVEN_BACK_MS)).contains(&now_ms)
        });
    }

    fn bytes(&self) -> u64 {
        lock(&self.0).iter().map(|removed| removed.bytes).sum()
    }
}

/// Whether a file may go.
enum Ready {
    Now,
    Rolling,
    Later,
}

impl TelemetryStore {
    /// Removes at most one week file that is over age or over the size limit, and rollups that are over age.
    ///
    /// # Errors
    /// [`Error`]; the next call goes on where this one stopped.
    pub fn retain(&self, now_ms: i64) -> Result<RetainReport, Error> {
        let opened = self.opened()?;
        let mut sealer = lock(&opened.sealer);
        self.note(self.retain_one(&opened, &mut sealer, now_ms))
    }

    fn retain_one(
        &self,
        opened: &Arc<Opened>,
        sealer: &mut Sealer,
        now_ms: i64,
    ) -> Result<RetainReport, Error> {
        let mut report = RetainReport::default();
        let ago = |age: std::time::Duration| {
            now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
        };
        report.removed = opened.rollups.expire(&*self.disk, ago(self.config.retain_rollups))?;
        let files = opened.weeks.all();
        let Some(oldest) = files.first() else { return Ok(report) };
        let newest = files.last().is_some_and(|newest| newest.id == oldest.id);
        let aged = oldest.id.end_ms() < ago(self.config.retain);
        self.leaving.look(now_ms);
        let large = self.is_over_size(opened);
        if newest {
            // A file that is still written to stays: what is in it is wanted.
            report.full = large;
        }
        if !aged && (newest || !large) {
            return Ok(report);
        }
        match self.make_ready(opened, sealer, oldest)? {
            Ready::Now => {}
            Ready::Rolling => {
                report.more = true;
                return Ok(report);
            }
            // The sealer has to go on first.
            Ready::Later => return Ok(report),
        }
        self.unlink(opened, oldest, &mut report)?;
        report.more = true;
        Ok(report)
    }

    fn is_over_size(&self, opened: &Opened) -> bool {
        let used = self.bytes(opened);
        self.most(used).is_some_and(|most| used > most)
    }

    /// Bytes that telemetry may take while it takes `used`: as configured, or what the others leave of its share of the
    /// filesystem.
    fn most(&self, used: u64) -> Option<u64> {
        self.config.max_disk_bytes.or_else(|| {
            let space = self.disk.space()?;
            let taken = space.total.saturating_sub(space.free);
            let elsewhere = taken.saturating_sub(used).saturating_sub(self.leaving.bytes());
            Some((space.total / 100 * DISK_SHARE_PERCENT).saturating_sub(elsewhere))
        })
    }

    /// What telemetry takes and may take.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn held(&self) -> Result<Held, Error> {
        let opened = self.opened()?;
        let bytes = self.bytes(&opened);
        let oldest_ms = opened.weeks.all().first().map(|file| file.id.end_ms());
        Ok(Held { bytes, most_bytes: self.most(bytes), oldest_ms })
    }

    /// Bytes of a file beside the telemetry, by its name in the data folder; 0 when it is missing.
    #[must_use]
    pub fn size_beside(&self, name: &str) -> u64 {
        self.disk.size(name)
    }

    pub(super) fn bytes(&self, opened: &Opened) -> u64 {
        let weeks = opened.weeks.all();
        let names = weeks.iter().map(|file| file.id.name()).chain(opened.rollups.names());
        names.chain([inbox::NAME.to_owned()]).map(|name| self.disk.size(&name)).sum()
    }

    /// Rolls up what the file has, and removes from the inbox what its cursors stand for: without them it would be
    /// sealed again.
    fn make_ready(&self, opened: &Opened, sealer: &mut Sealer, file: &Arc<WeekFile>) -> Result<Ready, Error> {
        let view = file.view()?;
        let nodes = view.nodes()?;
        let mut rolled = 0;
        for (node, row) in &nodes {
            if opened.rollups.rolled(file.id, *node)? < row.cursor {
                let tools = (&mut sealer.packer, &mut sealer.unpacker);
                let done =
                    opened.rollups.roll(&*self.disk, &self.config, opened, &view, (*node, row), tools)?;
                rolled += 1;
                if !done || rolled == ROLL_NODES {
                    return Ok(Ready::Rolling);
                }
            }
        }
        let last = nodes.iter().map(|(_, row)| row.cursor).max().unwrap_or(0);
        if read_lock(&opened.inbox.memory).front <= last {
            // The feed gives up what it still has of this file.
            let wanted = opened.inbox.rows()?.chunk_after(last)?;
            let _writer = self.turn();
            opened.inbox.checkpoint(CHECKPOINT_ROWS, wanted)?;
        }
        let gone = read_lock(&opened.inbox.memory).front > last;
        Ok(if gone { Ready::Now } else { Ready::Later })
    }

    fn unlink(
        &self,
        opened: &Arc<Opened>,
        file: &Arc<WeekFile>,
        report: &mut RetainReport,
    ) -> Result<(), Error> {
        let name = file.id.name();
        for (node, row) in file.view()?.nodes()? {
            for lane in [Lane::Telemetry, Lane::Backfill] {
                let rotten = read_lock(&opened.inbox.memory).rotten_of(file.id, node, lane);
                let stored = row.stored(lane).saturating_sub(rotten);
                if stored > 0 {
                    report.expired.push((node, lane, stored));
                }
            }
        }
        let mut write = InboxWrite::new(self, Arc::clone(opened), self.turn());
        write.doom(file.id, &report.expired);
        write.commit()?;
        self.leaving.add(file, self.disk.size(&name));
        self.remove_doomed(opened, file.id)?;
        report.removed.push(name);
        Ok(())
    }

    fn remove_doomed(&self, opened: &Opened, id: FileId) -> Result<(), Error> {
        opened.weeks.forget(id);
        self.disk.remove(&id.name())?;
        let _writer = self.turn();
        opened.inbox.unlinked(&id.name())
    }
}
