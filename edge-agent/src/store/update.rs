//! The account of updates, in a file of its own (`releases/update.redb`): those under way, how the last ones ended, what
//! runs, what was confirmed, what failed. A list of changes is one transaction, synced before it returns.
//!
//! In its own file because the outbox may be given up and begun anew, and what runs must be known all the same. A row is
//! as those of commands: a digest, then CBOR; a key may be added when an older agent can do without it.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use fleet_schemas::{
    CommandId, DeviceId, MetricName,
    update::{Digest, Kind, Order, Report, Running},
};
use redb::{Database, ReadableTable, TableDefinition, WriteTransaction, backends::FileBackend};
use serde::{Deserialize, Serialize};

use super::commands::{decode, encode};
use crate::core::{
    tuf,
    update::{History, Update},
};

/// The file's name in the folder of releases.
const NAME: &str = "update.redb";
/// redb's page cache: rows are few and small.
const CACHE_BYTES: usize = 64 * 1024;
/// Ends that are remembered: a command of which the outbox does not know the end yet asks for it again.
const ENDS: usize = 64;
/// Digests of which it is remembered that they failed.
const FAILED: usize = 256;

// Command id → `Update`. One row for each that is under way, at most as many as commands may wait; rewritten at each step.
const UPDATES: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("updates");
// Number → `Report`. At most 64 rows, appended, deleted from the front.
const ENDED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("ended");
// `Key` as text → `History`. One row for each name that was ever confirmed; rewritten in place.
const HISTORY: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("history");
// `Key` as text → `Running`. At most 320 rows; rewritten in place.
const RUNS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("runs");
// Number → `Failed`. At most 256 rows, appended, deleted from the front.
const FAILURES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("failures");
// `spent`, `own`, `tuf` → a row each. Rewritten in place.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// The account cannot be used. The text fits after "failed to open ".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error("{path} cannot be opened: {source}; check that the data folder belongs to the agent's user")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// redb or the disk failed.
    #[error("{0}; check the disk")]
    Store(#[source] Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Store(Box::new(error.into()))
    }
}

/// What has one release at a time: a name of a kind, on the node or on one device behind it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: MetricName,
    /// The device.
    pub device: Option<DeviceId>,
}

impl Key {
    /// What an order is about.
    #[must_use]
    pub fn of(order: &Order) -> Self {
        Self { kind: order.target.kind, name: order.target.name.clone(), device: order.device.clone() }
    }

    fn text(&self) -> String {
        let device = self.device.as_ref().map_or("", |device| device.as_str());
        format!("{}/{}/{device}", self.kind, self.name)
    }
}

/// How often a digest failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Which.
    pub digest: Digest,
    /// How often.
    pub times: u8,
}

/// Bytes that were fetched in a day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Days since 1970, by the agent's clock.
    pub day: i64,
    /// Bytes.
    pub bytes: u64,
}

/// The digest of the agent's executable, and by what it is known that it is still the same file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// When it was written, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Which file it is.
    pub inode: u64,
    /// Its digest.
    pub digest: Digest,
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// An update that is under way, new or changed.
    Update(Box<Update>),
    /// One is over, and was told.
    Ended(Box<Report>),
    /// What is remembered of a name.
    History(Key, History),
    /// What runs of a name; `None`: nothing.
    Runs(Key, Option<Running>),
    /// A digest failed once more.
    Failed(Digest),
    /// Bytes of this day.
    Spent(Spent),
    /// The agent's own digest.
    Own(Own),
    /// The metadata that is trusted.
    Tuf(Box<tuf::Trusted>),
    /// No metadata is trusted any more: the node has another hub.
    Untrust,
}

/// Everything in the file.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// Under way.
    pub updates: BTreeMap<CommandId, Update>,
    /// The last ends, oldest first.
    pub ended: Vec<Report>,
    /// By name.
    pub history: BTreeMap<String, History>,
    /// By name.
    pub runs: BTreeMap<String, Running>,
    /// Oldest first.
    pub failed: Vec<Failed>,
    /// Today's bytes.
    pub spent: Spent,
    /// The agent's own digest.
    pub own: Option<Own>,
    /// The metadata that is trusted.
    pub tuf: Option<tuf::Trusted>,
}

impl Account {
    /// What is remembered of a name.
    #[must_use]
    pub fn history_of(&self, key: &Key) -> History {
        self.history.get(&key.text()).cloned().unwrap_or_default()
    }

    /// What runs of a name.
    #[must_use]
    pub fn runs_of(&self, key: &Key) -> Option<&Running> {
        self.runs.get(&key.text())
    }

    /// How often a digest failed.
    #[must_use]
    pub fn failures(&self, digest: Digest) -> u8 {
        self.failed.iter().find(|failed| failed.digest == digest).map_or(0, |failed| failed.times)
    }

    /// How an update ended, if that is remembered.
    #[must_use]
    pub fn end_of(&self, id: CommandId) -> Option<&Report> {
        self.ended.iter().find(|report| report.command == id)
    }

    fn apply(&mut self, write: &Write) {
        match write {
            Write::Update(update) => {
                self.updates.insert(update.command, (**update).clone());
            }
            Write::Ended(report) => {
                self.updates.remove(&report.command);
                self.ended.push((**report).clone());
                let over = self.ended.len().saturating_sub(ENDS);
                self.ended.drain(..over);
            }
            Write::History(key, history) => {
                self.history.insert(key.text(), history.clone());
            }
            Write::Runs(key, Some(running)) => {
                self.runs.insert(key.text(), running.clone());
            }
            Write::Runs(key, None) => {
                self.runs.remove(&key.text());
            }
            Write::Failed(digest) => {
                let times = self.failures(*digest).saturating_add(1);
                self.failed.retain(|failed| failed.digest != *digest);
                self.failed.push(Failed { digest: *digest, times });
                let over = self.failed.len().saturating_sub(FAILED);
                self.failed.drain(..over);
            }
            Write::Spent(spent) => self.spent = *spent,
            Write::Own(own) => self.own = Some(own.clone()),
            Write::Tuf(trusted) => self.tuf = Some((**trusted).clone()),
            Write::Untrust => self.tuf = None,
        }
    }
}

/// The file, with what is in it in memory.
#[derive(Debug)]
pub struct Ledger {
    db: Database,
    account: Account,
}

/// What was found, and where a file went that could not be read.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub ledger: Ledger,
    /// A corrupt one, set aside.
    pub set_aside: Option<PathBuf>,
}

impl Ledger {
    /// Opens the file in the folder of releases, or makes it. A corrupt one is set aside, never deleted. `now_ms` names
    /// it. Blocks.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(folder: &Path, now_ms: i64) -> Result<Opened, Error> {
        let path = folder.join(NAME);
        let wrong = |source| Error::File { path: path.clone(), source };
        match Self::at(&path) {
            Err(Error::Store(error)) if matches!(*error, redb::Error::Corrupted(_)) || is_invalid(&error) => {
                let aside = folder.join(format!("{NAME}.corrupt-{now_ms}"));
                fs::rename(&path, &aside).map_err(wrong)?;
                Ok(Opened { ledger: Self::at(&path)?, set_aside: Some(aside) })
            }
            opened => Ok(Opened { ledger: opened?, set_aside: None }),
        }
    }

    fn at(path: &Path) -> Result<Self, Error> {
        let wrong = |source| Error::File { path: path.to_owned(), source };
        let fresh = !path.exists();
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let backend = FileBackend::new(file.map_err(wrong)?)?;
        let db = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?;
        if let (true, Some(folder)) = (fresh, path.parent()) {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(wrong)?;
        }
        let write = db.begin_write()?;
        let account = find(&write)?;
        write.commit()?;
        Ok(Self { db, account })
    }

    /// All of it.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Writes changes in one transaction. Blocks.
    ///
    /// # Errors
    /// [`Error`]: none of them is written.
    pub fn apply(&mut self, changes: &[Write]) -> Result<(), Error> {
        let mut account = self.account.clone();
        changes.iter().for_each(|change| account.apply(change));
        let write = self.db.begin_write()?;
        for change in changes {
            put(&write, change, &account)?;
        }
        write.commit()?;
        self.account = account;
        Ok(())
    }
}

fn is_invalid(error: &redb::Error) -> bool {
    matches!(error, redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData)
}

fn put(write: &WriteTransaction, change: &Write, after: &Account) -> Result<(), Error> {
    match change {
        Write::Update(update) => {
            write.open_table(UPDATES)?.insert(&update.command.0, encode(update).as_slice())?;
        }
        Write::Ended(report) => {
            write.open_table(UPDATES)?.remove(&report.command.0)?;
            append(write, ENDED, report, ENDS as u64)?;
        }
        Write::History(key, history) => {
            write.open_table(HISTORY)?.insert(key.text().as_str(), encode(history).as_slice())?;
        }
        Write::Runs(key, Some(running)) => {
            write.open_table(RUNS)?.insert(key.text().as_str(), encode(running).as_slice())?;
        }
        Write::Runs(key, None) => {
            write.open_table(RUNS)?.remove(key.text().as_str())?;
        }
        Write::Failed(digest) => {
            let failed = Failed { digest: *digest, times: after.failures(*digest) };
            let mut table = write.open_table(FAILURES)?;
            table.retain(|_, row| decode::<Failed>(row).is_ok_and(|row| row.digest != *digest))?;
            drop(table);
            append(write, FAILURES, &failed, FAILED as u64)?;
        }
        Write::Spent(spent) => meta(write, "spent", spent)?,
        Write::Own(own) => meta(write, "own", own)?,
        Write::Tuf(trusted) => meta(write, "tuf", trusted)?,
        Write::Untrust => drop(write.open_table(META)?.remove("tuf")?),
    }
    Ok(())
}

fn meta(write: &WriteTransaction, name: &str, value: &impl Serialize) -> Result<(), Error> {
    write.open_table(META)?.insert(name, encode(value).as_slice())?;
    Ok(())
}

fn append(
    write: &WriteTransaction,
    table: TableDefinition<'_, u64, &[u8]>,
    value: &impl Serialize,
    most: u64,
) -> Result<(), Error> {
    let mut table = write.open_table(table)?;
    let next = table.last()?.map_or(1, |(last, _)| last.value() + 1);
    table.insert(next, encode(value).as_slice())?;
    table.retain(|number, _| number + most > next)?;
    Ok(())
}

/// Rows that are damaged are not there.
fn find(write: &WriteTransaction) -> Result<Account, Error> {
    let mut account = Account::default();
    for row in write.open_table(UPDATES)?.iter()? {
        let (id, row) = row?;
        if let Ok(update) = decode(row.value()) {
            account.updates.insert(CommandId(*id.value()), update);
        }
    }
    for row in write.open_table(ENDED)?.iter()? {
        account.ended.extend(decode::<Report>(row?.1.value()));
    }
    for row in write.open_table(HISTORY)?.iter()? {
        let (key, row) = row?;
        account.history.extend(decode(row.value()).ok().map(|row| (key.value().to_owned(), row)));
    }
    for row in write.open_table(RUNS)?.iter()? {
        let (key, row) = row?;
        account.runs.extend(decode(row.value()).ok().map(|row| (key.value().to_owned(), row)));
    }
    for row in write.open_table(FAILURES)?.iter()? {
        account.failed.extend(decode::<Failed>(row?.1.value()));
    }
    let meta = write.open_table(META)?;
    account.spent = meta.get("spent")?.and_then(|row| decode(row.value()).ok()).unwrap_or_default();
    account.own = meta.get("own")?.and_then(|row| decode(row.value()).ok());
    account.tuf = meta.get("tuf")?.and_then(|row| decode(row.value()).ok());
    Ok(account)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fleet_schemas::{batch::Clock, update::State};

    use super::*;
    use crate::core::{
        Now,
        queue::{Limit, Time},
        update::Release,
    };

    fn update(n: u8) -> Update {
        let order = format!(r#"{{"target": "skill/greeter/1.2.{n}/any", "digest": "{}"}}"#, Digest([n; 32]));
        let now = Now { wall_ms: 0, up: Duration::ZERO, clock: Clock::Synced };
        let time = Time { now, boot: [1; 8], true_ms: None };
        Update::new(
            CommandId([n; 16]),
            serde_json::from_str(&order).unwrap(),
            Limit::after(Duration::from_secs(1), &time),
        )
    }

    #[test]
    fn what_is_written_is_found_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path(), 0).unwrap().ledger;
        let key = Key::of(&update(1).order);
        let release = update(1).release();
        let running = Running {
            kind: key.kind,
            name: key.name.clone(),
            version: release.version.clone(),
            digest: release.digest,
            device: None,
        };
        let history = History::default().with(Release { epoch: 3, ..release });
        let changes = [
            Write::Update(Box::new(update(1))),
            Write::Update(Box::new(update(2))),
            Write::History(key.clone(), history.clone()),
            Write::Runs(key.clone(), Some(running.clone())),
            Write::Failed(Digest([5; 32])),
            Write::Failed(Digest([6; 32])),
            Write::Failed(Digest([5; 32])),
            Write::Spent(Spent { day: 3, bytes: 7 }),
        ];
        ledger.apply(&changes).unwrap();
        for n in 0..100 {
            let report = fleet_schemas::update::Report { state: State::Confirmed, ..update(n).report(None) };
            ledger.apply(&[Write::Ended(Box::new(report))]).unwrap();
            ledger.apply(&[Write::Failed(Digest([n; 32]))]).unwrap();
        }
        ledger.apply(&[Write::Update(Box::new(update(2)))]).unwrap();
        let before = ledger.account().clone();
        drop(ledger);
        let ledger = Ledger::open(folder.path(), 0).unwrap().ledger;
        let account = ledger.account();
        assert_eq!(account.updates, [(CommandId([2; 16]), update(2))].into());
        assert_eq!((account.ended.len(), &account.ended), (ENDS, &before.ended));
        assert_eq!(account.end_of(CommandId([99; 16])).unwrap().state, State::Confirmed);
        assert_eq!(account.end_of(CommandId([1; 16])), None);
        assert_eq!(account.history_of(&key), history);
        assert_eq!(account.runs_of(&key), Some(&running));
        assert_eq!((account.failures(Digest([5; 32])), account.failures(Digest([6; 32]))), (3, 2));
        assert_eq!(account.failed, before.failed);
        assert_eq!(account.spent, Spent { day: 3, bytes: 7 });
    }

    #[test]
    fn a_corrupt_file_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(NAME), [7; 9_000]).unwrap();
        let opened = Ledger::open(folder.path(), 5).unwrap();
        assert!(opened.set_aside.unwrap().exists());
        assert!(opened.ledger.account().updates.is_empty());
    }
}
