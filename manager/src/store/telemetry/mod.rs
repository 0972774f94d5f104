//! The hub's telemetry store: inbox, week files, rollups, retention, queries (DESIGN.md, section 10).
//!
//! The consumer appends batches to the inbox in group commits ([`TelemetryStore::begin`]); the sealer moves them
//! into week files in small steps ([`TelemetryStore::seal`], [`TelemetryStore::retain`]); readers see both
//! without waiting for either. Every call may come from any thread. Samples are counted per (node, lane) in the
//! transaction that moves them. Must not know topics, sessions, the registry, or what is in a mark.
//!
//! | who | calls |
//! |---|---|
//! | consumer | [`TelemetryStore::begin`], then [`InboxWrite`]: `append`, `mark`, `set_mark`, `quarantine`, `book`, `commit` |
//! | sealer | [`TelemetryStore::seal`], [`TelemetryStore::retain`] |
//! | the feed | [`TelemetryStore::log_page`], `log_start`, `log_end`, `log_has` |
//! | readers | [`TelemetryStore::query`], `latest`, `series`, `marks`, `quarantined`, `counters`, `recount`, `stats` |
//! | whoever watches health | [`TelemetryStore::poisoned`], [`TelemetryStore::reopen`] |

mod aggregate;
mod blob;
mod counters;
mod follow;
mod inbox;
mod latest;
mod moment;
mod query;
mod retain;
mod rollup;
mod rot;
mod row;
mod seal;
mod stats;
mod tidy;
mod unsealed;
mod week;
mod weeks;
mod window;
mod write;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, Weak,
    },
    time::Duration,
};

use fleet_schemas::{Lane, StreamId, cbor::DecodeError};

use super::disk::{Disk, DiskError};
use crate::core::ledger::Counters;
use inbox::Inbox;
use rollup::Rollups;
use seal::Sealer;
use weeks::Weeks;

pub use aggregate::Aggregate;
pub use counters::Booking;
pub use follow::{Followed, LogPage};
pub use latest::{Latest, SeriesName};
pub use moment::Missing;
pub(in crate::store) use moment::{copy_inbox, copy_rollups, copy_week, formats, week_content};
pub use query::{Query, SeriesPoints, Step, Wants};
pub use retain::{Held, RetainReport};
pub use rot::Rotten;
pub use seal::SealReport;
pub use stats::Stats;
pub use write::{InboxBatch, InboxWrite};

/// How the store behaves; the defaults are those of DESIGN.md.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Identity of the store; a file of another one is refused.
    pub store_id: Option<[u8; 16]>,
    /// A node's unsealed batches are sealed when they are this many bytes,
    pub seal_bytes: u64,
    /// or when the first of them is this old,
    pub seal_age: Duration,
    /// or when the inbox has more bytes than this from the first unsealed batch on, and the node holds its front.
    pub inbox_bytes: u64,
    /// Sealed batches stay in the inbox for the feed while they are not more bytes than this,
    pub feed_bytes: u64,
    /// and not older. Retention by size may cut that short.
    pub feed_age: Duration,
    /// A week file that has grown to this is followed by another part of the same week: bounds what a crash
    /// makes redb repair, and what retention by size removes at once.
    pub part_bytes: u64,
    /// How long samples are kept,
    pub retain: Duration,
    /// and their 5-minute rollups.
    pub retain_rollups: Duration,
    /// Most bytes of all telemetry files together; absent: 80 % of the filesystem.
    pub max_disk_bytes: Option<u64>,
    /// Most bytes of quarantined payloads that are kept.
    pub quarantine_bytes: u64,
    /// redb's page cache for the inbox, bytes.
    pub inbox_cache_bytes: usize,
    /// redb's page cache for each week file, bytes.
    pub week_cache_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        Self {
            store_id: None,
            seal_bytes: 8 * 1024,
            seal_age: Duration::from_secs(15 * 60),
            inbox_bytes: 256 * 1024 * 1024,
            feed_bytes: 128 * 1024 * 1024,
            feed_age: DAY,
            part_bytes: 1024 * 1024 * 1024,
            retain: 90 * DAY,
            retain_rollups: 730 * DAY,
            max_disk_bytes: None,
            quarantine_bytes: 64 * 1024 * 1024,
            // It fills up as the inbox grows, for hours: see the cache of the state.
            inbox_cache_bytes: 8 * 1024 * 1024,
            // There are two files for each week that is kept, and a question may be about all of them.
            week_cache_bytes: 4 * 1024 * 1024,
        }
    }
}

/// Whose mark it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MarkKey {
    /// The node's number.
    pub node: u32,
    /// The lane.
    pub lane: Lane,
    /// The opening of the node's outbox.
    pub stream: StreamId,
}

/// A payload that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The node's number.
    pub node: u32,
    /// The lane it came on.
    pub lane: Lane,
    /// The hub's clock at receipt, Unix milliseconds.
    pub recv_ms: i64,
    /// Records it claims to hold.
    pub records: u64,
    /// What is wrong with it, at most 255 bytes.
    pub reason: String,
    /// As it travelled.
    pub payload: Vec<u8>,
}

/// Why the store cannot do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be had.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// redb failed; see [`TelemetryStore::poisoned`].
    #[error("telemetry store: {0}; free space or repair the disk, then the store reopens")]
    Redb(#[source] Box<redb::Error>),
    /// It was closed by a failed reopening.
    #[error("the telemetry store is closed after an I/O error; it opens again when the disk works")]
    Closed,
    /// Somebody still reads or writes through the handles that are to be replaced.
    #[error("the telemetry store is in use; try to reopen it again")]
    Busy,
    /// A row does not read as what it should be.
    #[error("{what} is damaged; `fleet ledger --verify` tells what is missing")]
    Damaged {
        /// Which row.
        what: String,
    },
    /// A stored body does not decode.
    #[error("a stored batch does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// A lane without samples.
    #[error("lane {0} carries no samples")]
    Lane(Lane),
    /// A query beyond its limits.
    #[error(
        "the query gives more than {most} {what}; ask for a shorter range, fewer series or a larger step"
    )]
    TooMuch {
        /// The limit.
        most: usize,
        /// Of what.
        what: &'static str,
    },
}

macro_rules! from_redb {
    ($($name:ident)*) => { $(
        impl From<redb::$name> for Error {
            fn from(error: redb::$name) -> Self {
                Self::Redb(Box::new(error.into()))
            }
        }
    )* };
}
from_redb!(StorageError TableError TransactionError CommitError DatabaseError);

impl Error {
    /// Whether the handle it came from is of no more use, so that the store must be [reopened].
    ///
    /// [reopened]: TelemetryStore::reopen
    #[must_use]
    pub fn poisons(&self) -> bool {
        match self {
            Self::Redb(_) => true,
            Self::Disk(error) => matches!(error, DiskError::Io { .. } | DiskError::Redb { .. }),
            Self::Closed
            | Self::Busy
            | Self::Damaged { .. }
            | Self::Decode(_)
            | Self::Lane(_)
            | Self::TooMuch { .. } => false,
        }
    }

    /// Whether something stored does not read as what it should be: reading it again will not help, and everything
    /// around it can still be read.
    fn is_rot(&self) -> bool {
        match self {
            Self::Damaged { .. } | Self::Decode(_) => true,
            Self::Redb(_)
            | Self::Disk(_)
            | Self::Closed
            | Self::Busy
            | Self::Lane(_)
            | Self::TooMuch { .. } => false,
        }
    }
}

/// The telemetry store.
pub struct TelemetryStore {
    disk: Arc<dyn Disk>,
    config: Config,
    opened: RwLock<Option<Arc<Opened>>>,
    // What reopening replaced, while somebody may still use it.
    retired: Mutex<Weak<Opened>>,
    // Held by whoever writes to the inbox,
    writer: Mutex<()>,
    // and, while waiting for it, by whoever is next: a busy consumer would starve the sealer otherwise.
    next: Mutex<()>,
    poisoned: Mutex<Option<String>>,
    // What retention removed and the filesystem has not given back.
    leaving: retain::Leaving,
}

/// One opening of the files.
struct Opened {
    inbox: Inbox,
    weeks: Weeks,
    rollups: Rollups,
    set_aside: Vec<String>,
    sealer: Mutex<Sealer>,
    latest: Mutex<latest::Cache>,
    found: Mutex<rot::Found>,
}

impl TelemetryStore {
    /// Opens or creates the store and rebuilds the index of unsealed batches.
    ///
    /// # Errors
    /// [`Error::Disk`] names the file and what to do.
    pub fn open(disk: Arc<dyn Disk>, config: Config, now_ms: i64) -> Result<Self, Error> {
        let opened = Opened::open(&*disk, &config, now_ms)?;
        Ok(Self {
            disk,
            config,
            opened: RwLock::new(Some(Arc::new(opened))),
            retired: Mutex::default(),
            writer: Mutex::default(),
            next: Mutex::default(),
            poisoned: Mutex::default(),
            leaving: retain::Leaving::default(),
        })
    }

    /// Starts a transaction. There is one at a time: the call waits for the one before.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn begin(&self) -> Result<InboxWrite<'_>, Error> {
        let writer = self.turn();
        Ok(InboxWrite::new(self, self.opened()?, writer))
    }

    /// All marks as committed, in the order of their keys.
    ///
    /// # Errors
    /// [`Error`] when the inbox cannot be read.
    pub fn marks(&self) -> Result<Vec<(MarkKey, Vec<u8>)>, Error> {
        self.note(self.opened()?.inbox.marks())
    }

    /// The newest quarantined payloads, newest first, at most `most`.
    ///
    /// # Errors
    /// [`Error`] when the inbox cannot be read.
    pub fn quarantined(&self, most: usize) -> Result<Vec<Quarantined>, Error> {
        self.note(self.opened()?.inbox.quarantined(most))
    }

    /// The account of one (node, lane), as of the last commit.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn counters(&self, node: u32, lane: Lane) -> Result<Counters, Error> {
        let opened = self.opened()?;
        let memory = read_lock(&opened.inbox.memory);
        Ok(memory.counters.get(&(node, lane)).copied().unwrap_or_default())
    }

    /// The accounts of all (node, lane) that have one, in order.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn counters_all(&self) -> Result<Vec<(u32, Lane, Counters)>, Error> {
        let opened = self.opened()?;
        let memory = read_lock(&opened.inbox.memory);
        let mut all: Vec<_> =
            memory.counters.iter().map(|((node, lane), counters)| (*node, *lane, *counters)).collect();
        all.sort_unstable_by_key(|(node, lane, _)| (*node, *lane));
        Ok(all)
    }

    /// Why the store must be reopened, if it must: an I/O error poisons redb's handles for good. While this is
    /// `Some`, don't ack.
    pub fn poisoned(&self) -> Option<String> {
        lock(&self.poisoned).clone()
    }

    /// Opens the files anew after an I/O error. Call it again until it succeeds.
    ///
    /// # Errors
    /// [`Error::Busy`] while a transaction or query of before runs; else what opening says.
    pub fn reopen(&self, now_ms: i64) -> Result<(), Error> {
        let _writer = match self.writer.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Error::Busy),
        };
        let mut opened = write_lock(&self.opened);
        if let Some(before) = opened.take() {
            *lock(&self.retired) = Arc::downgrade(&before);
        }
        if lock(&self.retired).strong_count() > 0 {
            return Err(Error::Busy);
        }
        *opened = Some(Arc::new(Opened::open(&*self.disk, &self.config, now_ms)?));
        *lock(&self.poisoned) = None;
        Ok(())
    }

    /// Waits for the turn to write to the inbox.
    fn turn(&self) -> MutexGuard<'_, ()> {
        let _next = lock(&self.next);
        lock(&self.writer)
    }

    fn opened(&self) -> Result<Arc<Opened>, Error> {
        read_lock(&self.opened).clone().ok_or(Error::Closed)
    }

    /// Remembers an error that poisons.
    fn note<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && error.poisons()
        {
            lock(&self.poisoned).get_or_insert_with(|| error.to_string());
        }
        result
    }
}

impl Opened {
    fn open(disk: &dyn Disk, config: &Config, now_ms: i64) -> Result<Self, Error> {
        let mut weeks = Weeks::open(disk, config)?;
        let mut rollups = Rollups::open(disk, config)?;
        let mut set_aside = std::mem::take(&mut weeks.aside);
        set_aside.append(&mut rollups.aside);
        let known = weeks.known()?;
        let open = || Inbox::open(disk, config, &known.cursors, known.floor);
        let inbox = match open() {
            Err(Error::Disk(error)) if error.is_corrupt() => {
                set_aside.push(disk.set_aside(inbox::NAME)?);
                open()?
            }
            Ok(inbox) => inbox,
            Err(error) => return Err(error),
        };
        for name in inbox.doomed()? {
            if let Some(id) = week::FileId::parse(&name) {
                weeks.forget(id);
            }
            disk.remove(&name)?;
            inbox.unlinked(&name)?;
        }
        inbox.adopt(&known.stored)?;
        inbox.forget_rotten(&weeks.all().iter().map(|file| file.id.key()).collect())?;
        let sealer = Mutex::new(Sealer::new(now_ms));
        let found = std::mem::take(&mut write_lock(&inbox.memory).unreadable);
        let found = Mutex::new(found.into_iter().map(|rot| (rot.spot, rot)).collect());
        Ok(Self { inbox, weeks, rollups, set_aside, sealer, latest: Mutex::default(), found })
    }
}

impl Quarantined {
    fn write(&self) -> Vec<u8> {
        let end = (0..=self.reason.len().min(255)).rev().find(|at| self.reason.is_char_boundary(*at));
        let reason = &self.reason.as_bytes()[..end.unwrap_or(0)];
        let mut row = Vec::with_capacity(22 + reason.len() + self.payload.len());
        row.extend_from_slice(&self.node.to_le_bytes());
        row.push(row::lane_code(self.lane));
        row.extend_from_slice(&self.recv_ms.to_le_bytes());
        row.extend_from_slice(&self.records.to_le_bytes());
        row.push(reason.len() as u8);
        row.extend_from_slice(reason);
        row.extend_from_slice(&self.payload);
        row
    }

    fn read(row: &[u8]) -> Option<Self> {
        let mut reader = row::Reader(row);
        Some(Self {
            node: reader.u32()?,
            lane: row::lane_of(reader.byte()?)?,
            recv_ms: reader.i64()?,
            records: reader.u64()?,
            reason: {
                let len = reader.byte()?;
                String::from_utf8(reader.take(len.into())?.to_vec()).ok()?
            },
            payload: reader.0.to_vec(),
        })
    }
}

// A panic while a lock was held leaves no half-made state behind: what it guards moves only after a commit.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_lock<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write_lock<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
