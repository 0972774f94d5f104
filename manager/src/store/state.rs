//! `state.redb`: what is small and precious. Nodes, events with the marks of their lanes, groups, secrets.
//!
//! One writer, one transaction per group of inputs. Decides nothing; readers see what was committed.

mod alerts;
mod commands;
mod config;
mod devices;
mod disk;
mod feed;
mod genes;
mod identities;
mod restores;
mod rollouts;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use fleet_schemas::{Lane, NodeId, StoreId, StreamId, cbor, event::Event};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::{Deserialize, Serialize};

pub use alerts::{AlertCommit, AlertFilter, FoundAlerts, KEPT as ALERTS_KEPT, Notice};
pub use commands::{CommandFilter, CommandPage, Counts, ExecutionFilter, OpenCommand, ReportRow};
pub use feed::EventPage;
pub use genes::{GENES, GeneRow, Kept};
pub use identities::{AuditFilter, Changed, Changes, RetainedRow};
pub use restores::Rows as HomeRows;

use super::{
    disk::{
        self as files, Disk, DiskError, Open,
        migrate::{self, Migration},
    },
    moment::{Copier, Cut, Holds, Still},
};
use crate::core::{
    command,
    config::Rows,
    devices::Changes as DeviceChanges,
    fleet::{NodeNo, Record},
    ledger::Counters,
    mark::Mark,
    rollout,
};

/// The file's name in the data folder.
pub const FILE: &str = "state.redb";
const FORMAT: u32 = 1;
/// The ways from older formats; there is none yet.
const MIGRATIONS: &[Migration] = &[];
/// What a hub on a small machine can spare; the system's own cache has the rest of the file. It fills up as the file
/// grows, so a larger one would look like a leak for days.
const CACHE_BYTES: usize = 8 * 1024 * 1024;
/// Raw batches kept of the event and command lanes; the oldest go.
const QUARANTINE_ROWS: u64 = 10_000;

// `store_id` (16 bytes), `next_event` (u64), `highest_node` (u32), `last_command` (u64), `config_epoch` (u64), `disk`
// (CBOR `History`). Six rows.
const HUB: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("hub");
// Node number → CBOR `Record`. One row a node, rewritten when it changes.
const NODES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("nodes");
// (node, lane, stream) → CBOR `Mark`, event and command lanes only. A few rows a node.
const MARKS: TableDefinition<'_, (u32, u8, &[u8; 16]), &[u8]> = TableDefinition::new("marks");
// (node, lane) → CBOR `Counters`, event and command lanes only.
const COUNTERS: TableDefinition<'_, (u32, u8), &[u8]> = TableDefinition::new("counters");
// Event number → CBOR `EventRow`. Appended; the front is removed by retention.
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
// (node, event number). One row an event.
const EVENTS_OF: TableDefinition<'_, (u32, u64), ()> = TableDefinition::new("events_of");
// Name → selector.
const GROUPS: TableDefinition<'_, &str, &str> = TableDefinition::new("groups");
// Site → the IANA name of its time zone. One row a site that somebody gave one.
const SITES: TableDefinition<'_, &str, &str> = TableDefinition::new("sites");
// Node id → SHA-256 of its secret.
const SECRETS: TableDefinition<'_, &str, &[u8; 32]> = TableDefinition::new("secrets");
// Number → CBOR `QuarantineRow`. Appended; the front is removed above the limit.
const QUARANTINE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("quarantine");

/// The state file failed. The text fits after "failed to …: ".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// redb or the disk failed; the handle is dead until the store is opened again.
    #[error("use {FILE}: {0}; check free space and the disk")]
    Store(#[source] Box<redb::Error>),
    /// A row is not what we wrote.
    #[error("{FILE} is damaged: {0}; restore a backup")]
    Damaged(String),
}

/// How the file is opened.
pub(in crate::store) fn how() -> Open {
    Open { format: FORMAT, cache_bytes: CACHE_BYTES, store_id: None, migrations: MIGRATIONS }
}

/// What redb says, in our words.
fn store(error: impl Into<redb::Error>) -> Error {
    Error::Store(Box::new(error.into()))
}

/// An event as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    /// The node's number.
    pub node: NodeNo,
    /// When it happened, corrected, Unix milliseconds.
    pub time_ms: i64,
    /// When it arrived, hub time.
    pub recv_ms: i64,
    /// Whether the hub noticed it itself; such events are not part of the node's ledger.
    pub by_hub: bool,
    /// The event with the node's own time.
    pub event: Event,
}

/// A batch kept raw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineRow {
    /// The node's number.
    pub node: NodeNo,
    /// The lane.
    pub lane: Lane,
    /// When it arrived, hub time.
    pub recv_ms: i64,
    /// Why.
    pub reason: String,
    /// As it travelled.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
}

/// One transaction.
#[derive(Debug, Default)]
pub struct Commit {
    /// Node rows.
    pub nodes: Vec<(NodeNo, Record)>,
    /// Nodes to forget, with their marks and counters.
    pub removed: Vec<NodeNo>,
    /// Marks of event and command lanes.
    pub marks: Vec<(NodeNo, Lane, StreamId, Mark)>,
    /// Marks of event and command lanes to forget.
    pub folded: Vec<(NodeNo, Lane, StreamId)>,
    /// Differences of counters of event and command lanes, stored and quarantined included.
    pub counters: BTreeMap<(NodeNo, Lane), Counters>,
    /// Events, in order.
    pub events: Vec<EventRow>,
    /// Batches to keep raw.
    pub quarantined: Vec<QuarantineRow>,
    /// Groups to save (`Some`) or remove.
    pub groups: Vec<(String, Option<String>)>,
    /// Time zones of sites to save (`Some`) or to forget.
    pub sites: Vec<(String, Option<String>)>,
    /// Who may speak to the hub, and the trail of changes.
    pub identities: Changes,
    /// Commands, their executions, and reports on them.
    pub commands: command::Effects,
    /// Layers of the configuration, and what nodes are to have.
    pub config: Rows,
    /// Devices behind nodes, in order.
    pub devices: DeviceChanges,
    /// Rollouts, and who takes part in them.
    pub rollouts: rollout::Rows,
    /// Nodes that came back after a restore.
    pub home: restores::Rows,
}

impl Commit {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
            && self.removed.is_empty()
            && self.marks.is_empty()
            && self.folded.is_empty()
            && self.counters.is_empty()
            && self.events.is_empty()
            && self.quarantined.is_empty()
            && self.groups.is_empty()
            && self.sites.is_empty()
            && self.identities.is_empty()
            && self.commands.nothing_to_write()
            && self.config.is_empty()
            && self.devices.is_empty()
            && self.rollouts.is_empty()
            && self.home.is_empty()
    }
}

/// Everything that is held in memory, as found in the file.
#[derive(Debug, Default)]
pub struct Found {
    /// Nodes.
    pub nodes: Vec<(NodeNo, Record)>,
    /// Marks of event and command lanes.
    pub marks: Vec<(NodeNo, Lane, StreamId, Mark)>,
    /// Groups.
    pub groups: BTreeMap<String, String>,
    /// Time zones of sites.
    pub sites: BTreeMap<String, String>,
    /// Highest node number ever given.
    pub highest_node: NodeNo,
}

/// Which events to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventFilter {
    /// Of one node only.
    pub node: Option<NodeNo>,
    /// Only those numbered below this (the cursor of the page before).
    pub before: Option<u64>,
    /// Only those numbered above this.
    pub after: Option<u64>,
    /// At most this many.
    pub limit: usize,
}

/// The open file. Cheap to clone; one clone writes.
#[derive(Clone)]
pub struct StateStore {
    db: Arc<Database>,
    store_id: StoreId,
    // Migrated, and not written to since.
    untouched: Arc<AtomicBool>,
}

impl std::fmt::Debug for StateStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateStore").field("store_id", &self.store_id).finish_non_exhaustive()
    }
}

impl StateStore {
    /// Opens or makes the file. A new store takes `fresh` as its id.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(disk: &dyn Disk, fresh: StoreId) -> Result<Self, Error> {
        let db = files::open(disk, FILE, how())?;
        let untouched = migrate::is_untouched(&db).map_err(store)?;
        let write = db.begin_write().map_err(store)?;
        let store_id = {
            let mut hub = write.open_table(HUB).map_err(store)?;
            let known = hub.get("store_id").map_err(store)?.map(|row| row.value().try_into());
            match known {
                Some(id) => StoreId(id.map_err(|_| Error::Damaged("the store id".to_owned()))?),
                None => {
                    hub.insert("store_id", &fresh.0[..]).map_err(store)?;
                    fresh
                }
            }
        };
        // Readers may come before the first write.
        write.open_table(NODES).map_err(store)?;
        write.open_table(MARKS).map_err(store)?;
        write.open_table(COUNTERS).map_err(store)?;
        write.open_table(EVENTS).map_err(store)?;
        write.open_table(EVENTS_OF).map_err(store)?;
        write.open_table(GROUPS).map_err(store)?;
        write.open_table(SITES).map_err(store)?;
        write.open_table(SECRETS).map_err(store)?;
        write.open_table(QUARANTINE).map_err(store)?;
        identities::open(&write)?;
        commands::open(&write)?;
        config::open(&write)?;
        genes::open(&write)?;
        devices::open(&write)?;
        rollouts::open(&write)?;
        alerts::open(&write)?;
        restores::open(&write)?;
        write.commit().map_err(store)?;
        Ok(Self { db: Arc::new(db), store_id, untouched: Arc::new(AtomicBool::new(untouched)) })
    }

    /// Lets go of the file, so that it can be opened again: every later use fails.
    pub fn close(&mut self) {
        let stand_in = Database::builder().create_with_backend(redb::backends::InMemoryBackend::new());
        if let Ok(stand_in) = stand_in {
            self.db = Arc::new(stand_in);
        }
    }

    fn begin_write(&self) -> Result<redb::WriteTransaction, Error> {
        let write = self.db.begin_write().map_err(store)?;
        if self.untouched.swap(false, Ordering::Relaxed) {
            migrate::touch(&write).map_err(store)?;
        }
        Ok(write)
    }

    /// The file as it is now, to be copied later.
    ///
    /// # Errors
    /// [`Error`].
    pub fn still(&self) -> Result<Still, Error> {
        let read = self.db.begin_read().map_err(store)?;
        Ok(Still::new(FILE.to_owned(), Holds::State, read, self.clone()))
    }

    /// Which life of the store this is.
    #[must_use]
    pub fn store_id(&self) -> StoreId {
        self.store_id
    }

    /// Reads what is held in memory.
    ///
    /// # Errors
    /// [`Error`].
    pub fn find(&self) -> Result<Found, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let mut found = Found::default();
        for row in read.open_table(NODES).map_err(store)?.iter().map_err(store)? {
            let (number, record) = row.map_err(store)?;
            found.nodes.push((number.value(), decode(record.value(), "a node")?));
        }
        for row in read.open_table(MARKS).map_err(store)?.iter().map_err(store)? {
            let (key, mark) = row.map_err(store)?;
            let (number, lane, stream) = key.value();
            let lane = lane_of(lane)?;
            found.marks.push((number, lane, StreamId(*stream), decode(mark.value(), "a mark")?));
        }
        for row in read.open_table(GROUPS).map_err(store)?.iter().map_err(store)? {
            let (name, selector) = row.map_err(store)?;
            found.groups.insert(name.value().to_owned(), selector.value().to_owned());
        }
        for row in read.open_table(SITES).map_err(store)?.iter().map_err(store)? {
            let (name, tz) = row.map_err(store)?;
            found.sites.insert(name.value().to_owned(), tz.value().to_owned());
        }
        let hub = read.open_table(HUB).map_err(store)?;
        let highest = hub.get("highest_node").map_err(store)?;
        found.highest_node =
            highest.and_then(|row| row.value().try_into().ok()).map_or(0, u32::from_le_bytes);
        Ok(found)
    }

    /// Writes one transaction, durable when it returns. Returns the number of the first event.
    ///
    /// # Errors
    /// [`Error`]: open the store again.
    pub fn apply(&self, commit: &Commit) -> Result<u64, Error> {
        let write = self.begin_write()?;
        let first_event = {
            let mut hub = write.open_table(HUB).map_err(store)?;
            let mut nodes = write.open_table(NODES).map_err(store)?;
            for (number, record) in &commit.nodes {
                nodes.insert(number, cbor::encode(record).as_slice()).map_err(store)?;
            }
            if let Some(highest) = commit.nodes.iter().map(|(number, _)| *number).max() {
                let known =
                    hub.get("highest_node").map_err(store)?.and_then(|row| row.value().try_into().ok());
                if known.map_or(0, u32::from_le_bytes) < highest {
                    hub.insert("highest_node", &highest.to_le_bytes()[..]).map_err(store)?;
                }
            }
            let next = hub.get("next_event").map_err(store)?.and_then(|row| row.value().try_into().ok());
            let first_event = next.map_or(1, u64::from_le_bytes);
            if !commit.events.is_empty() {
                let next = first_event + commit.events.len() as u64;
                hub.insert("next_event", &next.to_le_bytes()[..]).map_err(store)?;
            }
            first_event
        };
        apply_lanes(&write, commit)?;
        apply_events(&write, commit, first_event)?;
        identities::apply(&write, &commit.identities)?;
        commands::apply(&write, &commit.commands)?;
        config::apply(&write, &commit.config, &commit.removed)?;
        devices::apply(&write, &commit.devices, &commit.removed)?;
        rollouts::apply(&write, &commit.rollouts)?;
        restores::apply(&write, &commit.home)?;
        for (table, rows) in [(GROUPS, &commit.groups), (SITES, &commit.sites)] {
            let mut table = write.open_table(table).map_err(store)?;
            for (name, value) in rows {
                match value {
                    Some(value) => drop(table.insert(name.as_str(), value.as_str()).map_err(store)?),
                    None => drop(table.remove(name.as_str()).map_err(store)?),
                }
            }
        }
        write.commit().map_err(store)?;
        Ok(first_event)
    }

    /// Counters of an event or command lane.
    ///
    /// # Errors
    /// [`Error`].
    pub fn counters(&self) -> Result<BTreeMap<(NodeNo, Lane), Counters>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let mut counters = BTreeMap::new();
        for row in read.open_table(COUNTERS).map_err(store)?.iter().map_err(store)? {
            let (key, value) = row.map_err(store)?;
            let (number, lane) = key.value();
            counters.insert((number, lane_of(lane)?), decode(value.value(), "a counter")?);
        }
        Ok(counters)
    }

    /// The same of one node.
    ///
    /// # Errors
    /// [`Error`].
    pub fn counters_of(&self, node: NodeNo) -> Result<BTreeMap<Lane, Counters>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let table = read.open_table(COUNTERS).map_err(store)?;
        let mut counters = BTreeMap::new();
        for row in table.range((node, 0)..=(node, u8::MAX)).map_err(store)? {
            let (key, value) = row.map_err(store)?;
            counters.insert(lane_of(key.value().1)?, decode(value.value(), "a counter")?);
        }
        Ok(counters)
    }

    /// Events, newest first (oldest first when only `after` is given), with their numbers.
    ///
    /// # Errors
    /// [`Error`].
    pub fn events(&self, filter: EventFilter) -> Result<Vec<(u64, EventRow)>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let events = read.open_table(EVENTS).map_err(store)?;
        let from = filter.after.map_or(0, |after| after.saturating_add(1));
        let to = filter.before.unwrap_or(u64::MAX);
        let forward = filter.after.is_some() && filter.before.is_none();
        let mut numbers = Vec::new();
        if from < to {
            match filter.node {
                Some(node) => {
                    let table = read.open_table(EVENTS_OF).map_err(store)?;
                    let range = table.range((node, from)..(node, to)).map_err(store)?;
                    let number = |row: Result<(redb::AccessGuard<'_, (u32, u64)>, _), _>| {
                        row.map(|(key, _): (_, redb::AccessGuard<'_, ()>)| key.value().1)
                    };
                    numbers = pick(range.map(number), forward, filter.limit)?;
                }
                None => {
                    let range = events.range(from..to).map_err(store)?;
                    let number = |row: Result<(redb::AccessGuard<'_, u64>, _), _>| {
                        row.map(|(key, _): (_, redb::AccessGuard<'_, &[u8]>)| key.value())
                    };
                    numbers = pick(range.map(number), forward, filter.limit)?;
                }
            }
        }
        let mut found = Vec::with_capacity(numbers.len());
        for number in numbers {
            if let Some(row) = events.get(number).map_err(store)? {
                found.push((number, decode(row.value(), "an event")?));
            }
        }
        Ok(found)
    }

    /// Counts the events of nodes themselves, for `ledger --verify`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn recount_events(&self) -> Result<BTreeMap<NodeNo, u64>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let mut counts = BTreeMap::new();
        for row in read.open_table(EVENTS).map_err(store)?.iter().map_err(store)? {
            let (_, value) = row.map_err(store)?;
            let event: EventRow = decode(value.value(), "an event")?;
            if !event.by_hub {
                *counts.entry(event.node).or_default() += 1;
            }
        }
        Ok(counts)
    }

    /// Removes events that arrived before `before_ms`, at most `limit` at once; moves them from stored to expired.
    /// Returns how many.
    ///
    /// # Errors
    /// [`Error`].
    pub fn expire_events(&self, before_ms: i64, limit: usize) -> Result<usize, Error> {
        let write = self.begin_write()?;
        let mut gone = Vec::new();
        {
            let mut events = write.open_table(EVENTS).map_err(store)?;
            for row in events.iter().map_err(store)?.take(limit) {
                let (number, value) = row.map_err(store)?;
                let event: EventRow = decode(value.value(), "an event")?;
                if event.recv_ms >= before_ms {
                    break;
                }
                gone.push((number.value(), event));
            }
            let mut events_of = write.open_table(EVENTS_OF).map_err(store)?;
            let mut counters = write.open_table(COUNTERS).map_err(store)?;
            for (number, event) in &gone {
                events.remove(number).map_err(store)?;
                events_of.remove((event.node, *number)).map_err(store)?;
                if !event.by_hub {
                    let key = (event.node, Lane::Event as u8);
                    let mut known = counters_at(&counters, key)?;
                    known.stored = known.stored.saturating_sub(1);
                    known.expired += 1;
                    counters.insert(key, cbor::encode(&known).as_slice()).map_err(store)?;
                }
            }
        }
        write.commit().map_err(store)?;
        Ok(gone.len())
    }

    /// SHA-256 of the nodes' secrets.
    ///
    /// # Errors
    /// [`Error`].
    pub fn secrets(&self) -> Result<Vec<(NodeId, [u8; 32])>, Error> {
        let read = self.db.begin_read().map_err(store)?;
        let mut secrets = Vec::new();
        for row in read.open_table(SECRETS).map_err(store)?.iter().map_err(store)? {
            let (id, hash) = row.map_err(store)?;
            let id = NodeId::parse(id.value()).map_err(|error| Error::Damaged(error.to_string()))?;
            secrets.push((id, *hash.value()));
        }
        Ok(secrets)
    }

    /// Remembers secrets of nodes by their SHA-256.
    ///
    /// # Errors
    /// [`Error`].
    pub fn put_secrets(&self, secrets: &[(NodeId, [u8; 32])]) -> Result<(), Error> {
        let write = self.begin_write()?;
        {
            let mut table = write.open_table(SECRETS).map_err(store)?;
            for (node, hash) in secrets {
                table.insert(node.as_str(), hash).map_err(store)?;
            }
        }
        write.commit().map_err(store)
    }
}

/// Copies every table that this build knows.
pub(in crate::store) fn copy(copier: &mut Copier<'_>) -> Result<(), Cut> {
    copier.table(HUB)?;
    copier.table(NODES)?;
    copier.table(MARKS)?;
    copier.table(COUNTERS)?;
    copier.table(EVENTS)?;
    copier.table(EVENTS_OF)?;
    copier.table(GROUPS)?;
    copier.table(SITES)?;
    copier.table(SECRETS)?;
    copier.table(QUARANTINE)?;
    identities::copy(copier)?;
    commands::copy(copier)?;
    config::copy(copier)?;
    genes::copy(copier)?;
    devices::copy(copier)?;
    rollouts::copy(copier)?;
    alerts::copy(copier)?;
    restores::copy(copier)
}

/// Gives the store another id, in a file that has one of its own.
pub(in crate::store) fn rename_store(
    write: &redb::WriteTransaction,
    id: [u8; 16],
) -> Result<(), redb::Error> {
    if write.list_tables()?.any(|table| redb::TableHandle::name(&table) == redb::TableHandle::name(&HUB)) {
        write.open_table(HUB)?.insert("store_id", &id[..])?;
    }
    Ok(())
}

fn apply_lanes(write: &redb::WriteTransaction, commit: &Commit) -> Result<(), Error> {
    let mut marks = write.open_table(MARKS).map_err(store)?;
    for (number, lane, stream, mark) in &commit.marks {
        let key = (*number, *lane as u8, &stream.0);
        marks.insert(key, cbor::encode(mark).as_slice()).map_err(store)?;
    }
    for (number, lane, stream) in &commit.folded {
        marks.remove((*number, *lane as u8, &stream.0)).map_err(store)?;
    }
    let mut counters = write.open_table(COUNTERS).map_err(store)?;
    for ((number, lane), difference) in &commit.counters {
        let key = (*number, *lane as u8);
        let mut known = counters_at(&counters, key)?;
        known += *difference;
        counters.insert(key, cbor::encode(&known).as_slice()).map_err(store)?;
    }
    let mut nodes = write.open_table(NODES).map_err(store)?;
    for number in &commit.removed {
        nodes.remove(number).map_err(store)?;
        let all = (*number, 0, &[0; 16])..=(*number, u8::MAX, &[u8::MAX; 16]);
        marks.retain_in(all, |_, _| false).map_err(store)?;
        counters.retain_in((*number, 0)..=(*number, u8::MAX), |_, _| false).map_err(store)?;
    }
    Ok(())
}

fn apply_events(write: &redb::WriteTransaction, commit: &Commit, first_event: u64) -> Result<(), Error> {
    let mut events = write.open_table(EVENTS).map_err(store)?;
    let mut events_of = write.open_table(EVENTS_OF).map_err(store)?;
    for (number, event) in (first_event..).zip(&commit.events) {
        events.insert(number, cbor::encode(event).as_slice()).map_err(store)?;
        events_of.insert((event.node, number), ()).map_err(store)?;
    }
    for node in &commit.removed {
        let of = events_of.range((*node, 0)..=(*node, u64::MAX)).map_err(store)?;
        let numbers: Vec<_> =
            of.map(|row| row.map(|(key, _)| key.value().1)).collect::<Result<_, _>>().map_err(store)?;
        for number in numbers {
            events.remove(number).map_err(store)?;
            events_of.remove((*node, number)).map_err(store)?;
        }
    }
    let mut quarantine = write.open_table(QUARANTINE).map_err(store)?;
    for row in &commit.quarantined {
        let next = quarantine.last().map_err(store)?.map_or(1, |(number, _)| number.value() + 1);
        quarantine.insert(next, cbor::encode(row).as_slice()).map_err(store)?;
        if quarantine.len().map_err(store)? > QUARANTINE_ROWS {
            quarantine.pop_first().map_err(store)?;
        }
    }
    Ok(())
}

fn counters_at(
    table: &impl ReadableTable<(u32, u8), &'static [u8]>,
    key: (NodeNo, u8),
) -> Result<Counters, Error> {
    let row = table.get(key).map_err(store)?;
    row.map_or(Ok(Counters::default()), |row| decode(row.value(), "a counter"))
}

fn pick(
    mut numbers: impl DoubleEndedIterator<Item = Result<u64, redb::StorageError>>,
    forward: bool,
    limit: usize,
) -> Result<Vec<u64>, Error> {
    let mut picked = Vec::new();
    while picked.len() < limit {
        let next = if forward { numbers.next() } else { numbers.next_back() };
        match next {
            Some(number) => picked.push(number.map_err(store)?),
            None => break,
        }
    }
    Ok(picked)
}

fn lane_of(lane: u8) -> Result<Lane, Error> {
    Lane::ALL.get(usize::from(lane)).copied().ok_or_else(|| Error::Damaged("a lane".to_owned()))
}

fn decode<T: for<'de> Deserialize<'de>>(row: &[u8], what: &str) -> Result<T, Error> {
    ciborium::from_reader(row).map_err(|error| Error::Damaged(format!("{what}: {error}")))
}

#[cfg(test)]
mod tests {
    use fleet_schemas::{MetricName, event::Severity};

    use super::*;
    use crate::store::disk::Memory;

    const ID: StoreId = StoreId([3; 16]);

    fn event(node: NodeNo, recv_ms: i64) -> EventRow {
        let event = Event {
            time_ms: recv_ms - 1,
            kind: MetricName::parse("door_opened").unwrap(),
            severity: Severity::Info,
            message: "the door was opened".to_owned(),
            data: Some(ciborium::Value::from(7)),
            device: None,
            id: None,
        };
        EventRow { node, time_ms: recv_ms - 1, recv_ms, by_hub: false, event }
    }

    fn record(id: &str) -> Record {
        let mut record = Record::new(NodeId::parse(id).unwrap(), 5);
        record.presence.session = Some(fleet_schemas::SessionId([1; 8]));
        record.presence.state =
            crate::core::presence::State::Suspect { cause: crate::core::presence::Cause::Will };
        record.boots.learn([1; 8], 10, 500);
        record
    }

    #[test]
    fn what_is_committed_is_found_again() {
        let disk = Memory::default();
        let (record, mark) = (record("a"), Mark::default());
        {
            let state = StateStore::open(&disk, ID).unwrap();
            let counters = Counters { stored: 2, ..Counters::default() };
            let commit = Commit {
                nodes: vec![(7, record.clone())],
                marks: vec![(7, Lane::Event, StreamId([1; 16]), mark.clone())],
                counters: [((7, Lane::Event), counters)].into(),
                events: vec![event(7, 10), event(7, 20)],
                groups: vec![("roof".to_owned(), Some("site=roof".to_owned()))],
                sites: vec![("roof".to_owned(), Some("Europe/Berlin".to_owned()))],
                ..Commit::default()
            };
            assert_eq!(state.apply(&commit).unwrap(), 1);
            assert_eq!(state.apply(&Commit { events: vec![event(8, 30)], ..Commit::default() }).unwrap(), 3);
        }
        let state = StateStore::open(&disk, StoreId([9; 16])).unwrap();
        assert_eq!(state.store_id(), ID);
        let found = state.find().unwrap();
        assert_eq!(found.nodes, [(7, record)]);
        assert_eq!(found.marks, [(7, Lane::Event, StreamId([1; 16]), mark)]);
        assert_eq!(found.groups["roof"], "site=roof");
        assert_eq!(found.sites["roof"], "Europe/Berlin");
        assert_eq!(found.highest_node, 7);
        let numbers = |filter| state.events(filter).unwrap().iter().map(|(n, _)| *n).collect::<Vec<_>>();
        assert_eq!(numbers(EventFilter { limit: 2, ..EventFilter::default() }), [3, 2]);
        assert_eq!(numbers(EventFilter { node: Some(7), limit: 9, ..EventFilter::default() }), [2, 1]);
        assert_eq!(numbers(EventFilter { after: Some(1), limit: 1, ..EventFilter::default() }), [2]);
        assert_eq!(numbers(EventFilter { before: Some(2), limit: 9, ..EventFilter::default() }), [1]);
    }

    #[test]
    fn expired_events_move_in_the_account() {
        let disk = Memory::default();
        let state = StateStore::open(&disk, ID).unwrap();
        let counters = Counters { stored: 2, ..Counters::default() };
        let commit = Commit {
            counters: [((7, Lane::Event), counters)].into(),
            events: vec![event(7, 10), event(7, 20)],
            ..Commit::default()
        };
        state.apply(&commit).unwrap();
        assert_eq!(state.expire_events(15, 100).unwrap(), 1);
        let expected = Counters { stored: 1, expired: 1, ..Counters::default() };
        assert_eq!(state.counters().unwrap()[&(7, Lane::Event)], expected);
        assert_eq!(state.recount_events().unwrap()[&7], 1);
    }

    #[test]
    fn a_removed_node_leaves_no_rows_but_its_number_is_not_given_again() {
        let disk = Memory::default();
        let state = StateStore::open(&disk, ID).unwrap();
        let commit = Commit {
            nodes: vec![(7, record("a"))],
            marks: vec![(7, Lane::Event, StreamId([1; 16]), Mark::default())],
            counters: [((7, Lane::Event), Counters::default())].into(),
            ..Commit::default()
        };
        state.apply(&commit).unwrap();
        state.apply(&Commit { removed: vec![7], ..Commit::default() }).unwrap();
        let found = state.find().unwrap();
        assert!(found.nodes.is_empty() && found.marks.is_empty());
        assert_eq!(found.highest_node, 7);
        assert!(state.counters().unwrap().is_empty());
    }
}
