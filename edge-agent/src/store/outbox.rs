//! The outbox's file: what is written, in one transaction each time, and what is found when it is opened.
//!
//! Decides nothing: it applies [`Write`]s and reads rows back. After any error the handle is dead and the outbox is
//! opened anew.

use std::{collections::BTreeMap, fmt};

use fleet_schemas::{CommandId, Lane, StreamId, telemetry::Sample};
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use super::{
    commands::{self, FoundCommands},
    config, devices,
    fresh::Fresh,
    rows::{self, Held},
};
use crate::{
    core::{
        config::Kept,
        devices::{Change, Device},
        lanes::{Lanes, Stream, StreamNo},
        queue::{self, Over},
        upload::{Period, Spent},
    },
    uplink::Name,
};

/// Format of the file; a newer one is refused by name.
pub const FORMAT: u64 = 1;
/// redb's page cache: small, the outbox reads each batch once.
const CACHE_BYTES: usize = 512 * 1024;

// `format`, `epoch`, `{hour,day}_{number,used}`. A handful of rows.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
// Stream number → stream id. One row per opening that sealed anything and is not yet drained and evicted.
const STREAMS: TableDefinition<'_, u32, &[u8; 16]> = TableDefinition::new("streams");
// (lane, stream number) → next seq, next record, mark, sent. Same cardinality; rewritten in place.
const MARKS: TableDefinition<'_, (u8, u32), (u64, u64, u64, u64)> = TableDefinition::new("marks");
// (lane, stream number, seq) → `Held`. Appended, deleted from the front; never changed once sent.
const BATCHES: TableDefinition<'_, (u8, u32, u64), &[u8]> = TableDefinition::new("batches");
// Row number → samples accepted together and not yet sealed. Appended, deleted as a whole at sealing.
const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");

// Number → id (16 bytes) and digest of the content (8 bytes) of a write that named itself. Appended with its records,
// deleted from the front.
const NAMES: TableDefinition<'_, u64, &[u8; 24]> = TableDefinition::new("names");

/// Names in `meta`, of hour and day.
const SPENT: [[&str; 2]; 2] = [["hour_number", "hour_used"], ["day_number", "day_used"]];

/// The outbox's file cannot be used. The text fits after "failed to open the outbox: ".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Written by a newer agent.
    #[error(
        "its format is {found}, this agent reads up to {FORMAT}: run the agent that wrote it, or a newer one"
    )]
    Newer {
        /// The format found.
        found: u64,
    },
    /// redb or the disk failed; the handle is dead.
    #[error("{0}")]
    Store(#[source] Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Store(Box::new(error.into()))
    }
}

/// One change of the file. A list of them is one transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Samples that were accepted together.
    Rows {
        /// Row number.
        id: u64,
        /// See [`rows::encode_samples`].
        bytes: Vec<u8>,
    },
    /// Rows up to and including this number were sealed.
    DropRows {
        /// The last row sealed.
        to: u64,
    },
    /// A stream begins.
    Stream {
        /// Its number.
        number: StreamNo,
        /// Its id.
        id: StreamId,
    },
    /// A batch was sealed, or a tombstone takes the place of batches.
    Batch {
        /// Its lane.
        lane: Lane,
        /// Its stream.
        number: StreamNo,
        /// Its number.
        seq: u64,
        /// Its content.
        held: Held,
    },
    /// Batches `from … to` are no longer held.
    DropBatches {
        /// Their lane.
        lane: Lane,
        /// Their stream.
        number: StreamNo,
        /// First number.
        from: u64,
        /// Last number.
        to: u64,
    },
    /// Where the stream stands.
    Position {
        /// Its lane.
        lane: Lane,
        /// Its number.
        number: StreamNo,
        /// Next batch number, next record number, mark, highest number that may have been sent.
        at: (u64, u64, u64, u64),
    },
    /// Nothing of the stream is held on this lane any more.
    DropStream {
        /// Its lane.
        lane: Lane,
        /// Its number.
        number: StreamNo,
    },
    /// The count of sessions.
    Epoch(u64),
    /// A write that named itself.
    Name {
        /// Counts them.
        number: u64,
        /// The name.
        name: Name,
    },
    /// Names up to and including this number are forgotten.
    DropNames {
        /// The last one.
        to: u64,
    },
    /// Bytes used of this hour and day.
    Spent(Spent),
    /// A command changed, or is over.
    Command(queue::Change),
    /// A device changed, or is gone.
    Device(Change),
    /// The oldest results of those that may be forgotten early, or of the others, are forgotten.
    ForgetResults {
        /// Which of the two.
        harmless: bool,
        /// How many.
        count: usize,
    },
    /// The configuration changed, or got further.
    Config(Kept),
}

impl Write {
    /// Where a stream stands now.
    #[must_use]
    pub fn position(lane: Lane, number: StreamNo, stream: &Stream) -> Self {
        let at = (stream.next_seq, stream.next_record, stream.mark, stream.sent);
        Self::Position { lane, number, at }
    }
}

/// What was found in the file.
#[derive(Debug, Default)]
pub struct Found {
    /// Where the lanes stand; cursors are at the marks.
    pub lanes: Lanes,
    /// Unsealed samples by row number.
    pub rows: BTreeMap<u64, Vec<Sample>>,
    /// Bytes of those rows.
    pub row_bytes: u64,
    /// Number the next stream gets.
    pub next_stream: StreamNo,
    /// Sessions so far.
    pub epoch: u64,
    /// Rows that were damaged: their samples are gone, how many nobody knows.
    pub damaged_rows: u64,
    /// Names of writes, by number.
    pub names: BTreeMap<u64, Name>,
    /// Bytes used of the hour and day that were last written down.
    pub spent: Spent,
    /// The commands.
    pub commands: FoundCommands,
    /// The configuration.
    pub config: Kept,
    /// The devices.
    pub devices: Vec<Device>,
}

/// The open file.
pub struct Outbox {
    db: Database,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Outbox {
    /// Opens or makes the file, and counts what is held row by row.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(backend: impl StorageBackend) -> Result<(Self, Found), Error> {
        let db = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(Fresh::new(backend))?;
        let write = db.begin_write()?;
        let found = {
            let mut meta = write.open_table(META)?;
            let format = meta.get("format")?.map(|row| row.value());
            if let Some(found) = format.filter(|found| *found > FORMAT) {
                return Err(Error::Newer { found });
            }
            if format.is_none() {
                meta.insert("format", FORMAT)?;
            }
            let epoch = meta.get("epoch")?.map_or(0, |row| row.value());
            let number = |name: &str| meta.get(name).map(|row| row.map_or(0, |row| row.value()));
            let mut spent = Spent::default();
            for (period, [at, used]) in spent.iter_mut().zip(SPENT) {
                *period = Period { number: number(at)?, used: number(used)? };
            }
            Found { epoch, spent, ..find(&write)? }
        };
        write.commit()?;
        Ok((Self { db }, found))
    }

    /// Applies the changes in one transaction, durable when it returns.
    ///
    /// # Errors
    /// [`Error::Store`]: nothing was applied as far as we know, and the handle is dead.
    pub fn apply(&self, writes: &[Write]) -> Result<(), Error> {
        let write = self.db.begin_write()?;
        {
            let mut batches = write.open_table(BATCHES)?;
            let mut rows = write.open_table(ROWS)?;
            let mut marks = write.open_table(MARKS)?;
            let mut streams = write.open_table(STREAMS)?;
            for change in writes {
                match change {
                    Write::Rows { id, bytes } => drop(rows.insert(id, bytes.as_slice())?),
                    Write::DropRows { to } => rows.retain_in(..=*to, |_, _| false)?,
                    Write::Stream { number, id } => drop(streams.insert(number, &id.0)?),
                    Write::Batch { lane, number, seq, held } => {
                        drop(batches.insert((*lane as u8, *number, *seq), held.encode().as_slice())?);
                    }
                    Write::DropBatches { lane, number, from, to } => {
                        let range = (*lane as u8, *number, *from)..=(*lane as u8, *number, *to);
                        batches.retain_in(range, |_, _| false)?;
                    }
                    Write::Position { lane, number, at } => drop(marks.insert((*lane as u8, *number), *at)?),
                    Write::DropStream { lane, number } => {
                        marks.remove((*lane as u8, *number))?;
                        let used = |lane: &Lane| marks.get((*lane as u8, *number)).map(|row| row.is_some());
                        if !Lane::ALL.iter().map(used).collect::<Result<Vec<_>, _>>()?.contains(&true) {
                            streams.remove(*number)?;
                        }
                    }
                    Write::Epoch(epoch) => drop(write.open_table(META)?.insert("epoch", epoch)?),
                    Write::Name { number, name } => {
                        drop(write.open_table(NAMES)?.insert(number, &name_row(*name))?);
                    }
                    Write::DropNames { to } => write.open_table(NAMES)?.retain_in(..=*to, |_, _| false)?,
                    Write::Spent(spent) => {
                        let mut meta = write.open_table(META)?;
                        for (period, [at, used]) in spent.iter().zip(SPENT) {
                            meta.insert(at, period.number)?;
                            meta.insert(used, period.used)?;
                        }
                    }
                    Write::Command(change) => commands::apply(&write, change)?,
                    Write::Device(change) => devices::apply(&write, change)?,
                    Write::ForgetResults { harmless, count } => {
                        commands::forget(&write, *harmless, *count)?;
                    }
                    Write::Config(kept) => config::apply(&write, kept)?,
                }
            }
        }
        write.commit()?;
        Ok(())
    }

    /// What is remembered of a command that is over.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn result(&self, id: CommandId) -> Result<Option<Over>, Error> {
        commands::result(&self.db.begin_read()?, id)
    }

    /// The oldest remembered results whose order is `from` at least, at most `count`, of those that may be forgotten early,
    /// or of the others.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn oldest_results(&self, harmless: bool, from: u64, count: usize) -> Result<Vec<Over>, Error> {
        commands::oldest(&self.db.begin_read()?, harmless, from, count)
    }

    /// The held batch at or after `seq`, with its number; `Err` inside when it is damaged.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn batch(
        &self,
        lane: Lane,
        number: StreamNo,
        seq: u64,
    ) -> Result<Option<(u64, Option<Held>)>, Error> {
        let read = self.db.begin_read()?;
        let batches = read.open_table(BATCHES)?;
        let range = (lane as u8, number, seq)..=(lane as u8, number, u64::MAX);
        let Some(row) = batches.range(range)?.next() else { return Ok(None) };
        let (key, value) = row?;
        Ok(Some((key.value().2, Held::decode(value.value()).ok())))
    }

    /// Headers of the batches held from `seq` on, oldest first, until `take` says that it has enough. The second
    /// argument of `take` is the row's size in bytes.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn headers(
        &self,
        lane: Lane,
        number: StreamNo,
        seq: u64,
        mut take: impl FnMut(u64, u64, Option<Held>) -> bool,
    ) -> Result<(), Error> {
        let read = self.db.begin_read()?;
        let batches = read.open_table(BATCHES)?;
        for row in batches.range((lane as u8, number, seq)..=(lane as u8, number, u64::MAX))? {
            let (key, value) = row?;
            let bytes = value.value();
            if !take(key.value().2, bytes.len() as u64, Held::decode_header(bytes).ok()) {
                break;
            }
        }
        Ok(())
    }
}

fn find(write: &redb::WriteTransaction) -> Result<Found, Error> {
    let mut found = Found { next_stream: 1, ..Found::default() };
    let streams = write.open_table(STREAMS)?;
    let marks = write.open_table(MARKS)?;
    let batches = write.open_table(BATCHES)?;
    let rows = write.open_table(ROWS)?;
    for row in streams.iter()? {
        found.next_stream = found.next_stream.max(row?.0.value() + 1);
    }
    for row in marks.iter()? {
        let (key, value) = row?;
        let (lane, number) = key.value();
        let (next_seq, next_record, mark, sent) = value.value();
        let Some(id) = streams.get(number)? else { continue };
        let Some(lane) = Lane::ALL.get(usize::from(lane)).copied() else { continue };
        let mut stream = Stream {
            next_seq,
            next_record,
            mark,
            sent,
            cursor: mark + 1,
            floor_seq: next_seq,
            floor_record: next_record,
            ..Stream::new(StreamId(*id.value()))
        };
        let held = batches.range((lane as u8, number, 0)..=(lane as u8, number, u64::MAX))?;
        for (at, row) in held.enumerate() {
            let (key, value) = row?;
            stream.bytes += value.value().len() as u64;
            // A damaged header counts nothing: the hub sees that rows are missing, until the batch's turn to be
            // sent comes and it is declared lost.
            let Ok(header) = Held::decode_header(value.value()) else { continue };
            if at == 0 {
                stream.floor_seq = key.value().2;
                stream.floor_record = header.first;
            }
            match header.tombstone {
                true => stream.tombstoned += header.count,
                false => stream.counted += header.count,
            }
        }
        found.lanes.get_mut(lane).streams.insert(number, stream);
    }
    for row in rows.iter()? {
        let (id, value) = row?;
        found.row_bytes += value.value().len() as u64;
        match rows::decode_samples(value.value()) {
            Ok(samples) => drop(found.rows.insert(id.value(), samples)),
            Err(rows::Damaged) => found.damaged_rows += 1,
        }
    }
    for row in write.open_table(NAMES)?.iter()? {
        let (number, row) = row?;
        found.names.insert(number.value(), name_of(row.value()));
    }
    found.commands = commands::find(write)?;
    found.config = config::find(write)?;
    found.devices = devices::find(write)?;
    Ok(found)
}

fn name_row(name: Name) -> [u8; 24] {
    let mut row = [0; 24];
    row[..16].copy_from_slice(&name.id);
    row[16..].copy_from_slice(&name.content);
    row
}

fn name_of(row: &[u8; 24]) -> Name {
    let mut name = Name { id: [0; 16], content: [0; 8] };
    name.id.copy_from_slice(&row[..16]);
    name.content.copy_from_slice(&row[16..]);
    name
}
