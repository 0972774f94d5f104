//! Files of older builds: copied, then brought to today's format step by step.
//!
//! Owns the order: the copy is whole before the first step, a step is one transaction with the place where the next
//! goes on, and the last one sets the format. So whatever is killed goes on where it was, and until the hub has written
//! anything the copy can be put back. Must not know what is in a file: each room brings its own [`Migration`]s.

use redb::{Builder, Database, ReadableDatabase as _, ReadableTable as _, WriteTransaction};

use super::{Disk, DiskError, FORMAT, Held, META, Open, classify, failed};

/// In [`META`]: where the migration under way goes on.
const MIGRATING: &str = "migrating";
/// In [`META`] of a file that was migrated and not written to since.
const UNTOUCHED: &str = "untouched";
/// Bytes copied at once.
const PIECE: usize = 1024 * 1024;
/// Most steps of one migration: one that never ends is a mistake of ours.
const STEPS: u64 = 10_000_000;

/// The way from one format to the next.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// The format that it takes.
    pub from: u32,
    /// What it changes, for people.
    pub says: &'static str,
    /// One transaction's worth of it, from a place on. May be done again when it was not committed.
    pub step: Step,
}

/// One transaction's worth of a migration: what is to be changed is in the transaction, with where to go on.
pub type Step = fn(&WriteTransaction, Option<Vec<u8>>) -> Result<Next, redb::Error>;

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// There is more from there on.
    More(Vec<u8>),
    /// The file has the next format.
    Done,
}

/// How far a migration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The file.
    pub name: String,
    /// Its format now.
    pub format: u32,
    /// The format that it is to have.
    pub to: u32,
    /// What is being done.
    pub says: &'static str,
    /// Steps that were committed.
    pub steps: u64,
}

/// The name of the copy of a file as it was.
pub(super) fn copy_name(name: &str, format: u32) -> String {
    format!("{name}.format-{format}")
}

/// The format that a file says it has, and whether it was not written to since it was migrated.
pub(super) fn format_of(name: &str, read: &redb::ReadTransaction) -> Result<(Option<u32>, bool), DiskError> {
    let wrong = |error: redb::Error| failed(name, error);
    let meta = match read.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok((None, false)),
        Err(error) => return Err(wrong(error.into())),
    };
    let format = meta.get(FORMAT).map_err(|error| wrong(error.into()))?;
    let format = format.and_then(|row| Some(u32::from_le_bytes(row.value().try_into().ok()?)));
    let untouched = meta.get(UNTOUCHED).map_err(|error| wrong(error.into()))?.is_some();
    Ok((format, untouched))
}

/// Brings a file to a format: copies it first, then goes on from wherever it was. `told` hears of every step.
///
/// # Errors
/// [`DiskError::Older`] when there is no way, else what the disk or redb says: the next call goes on.
pub fn migrate(
    disk: &dyn Disk,
    name: &str,
    how: Open,
    told: &mut dyn FnMut(&Progress),
) -> Result<(), DiskError> {
    let (mut format, _) = look(disk, name, how)?;
    let way = |format: u32| how.migrations.iter().find(|migration| migration.from == format);
    // Before anything is changed it is known that there is a whole way.
    for from in format..how.format {
        way(from).ok_or_else(|| DiskError::Older {
            name: name.to_owned(),
            found: from,
            known: how.format,
        })?;
    }
    copy(disk, name, (&copy_name(name, format), how.format), format < how.format)?;
    let database = open(disk, name, how)?;
    let wrong = |error: redb::Error| failed(name, error);
    let mut steps = 0;
    while format < how.format {
        let migration = way(format).expect("it was looked for above");
        told(&Progress { name: name.to_owned(), format, to: how.format, says: migration.says, steps });
        let last = format + 1 == how.format;
        if one(&database, migration, last).map_err(wrong)? {
            format += 1;
        }
        steps += 1;
        if steps > STEPS {
            let why = format!("the migration from format {format} comes to no end; report this");
            return Err(DiskError::Corrupt { name: name.to_owned(), why });
        }
    }
    told(&Progress { name: name.to_owned(), format, to: how.format, says: "done", steps });
    Ok(())
}

/// One step; says whether the file has the next format.
fn one(database: &Database, migration: &Migration, last: bool) -> Result<bool, redb::Error> {
    let write = database.begin_write()?;
    let at = write.open_table(META)?.get(MIGRATING)?.map(|row| row.value().to_vec());
    let next = (migration.step)(&write, at)?;
    {
        let mut meta = write.open_table(META)?;
        match &next {
            Next::More(at) => drop(meta.insert(MIGRATING, &at[..])?),
            Next::Done => {
                meta.remove(MIGRATING)?;
                meta.insert(FORMAT, &(migration.from + 1).to_le_bytes()[..])?;
                if last {
                    meta.insert(UNTOUCHED, &[][..])?;
                }
            }
        }
    }
    write.commit()?;
    Ok(next == Next::Done)
}

fn open(disk: &dyn Disk, name: &str, how: Open) -> Result<Database, DiskError> {
    (Builder::new().set_cache_size(how.cache_bytes))
        .create_with_backend(Held::for_writing(disk.open(name)?))
        .map_err(|error| classify(name, error))
}

fn look(disk: &dyn Disk, name: &str, how: Open) -> Result<(u32, bool), DiskError> {
    let database = open(disk, name, how)?;
    let read = database.begin_read().map_err(|error| failed(name, error.into()))?;
    let (format, untouched) = format_of(name, &read)?;
    let damaged =
        || DiskError::Corrupt { name: name.to_owned(), why: "it does not tell its format".to_owned() };
    Ok((format.ok_or_else(damaged)?, untouched))
}

/// Copies a file beside it, unless that was done: the copy has its name only when it is whole. The file that a step was
/// done to already has a copy.
fn copy(disk: &dyn Disk, name: &str, (to, before): (&str, u32), wanted: bool) -> Result<(), DiskError> {
    if !wanted || !copies(disk, name, before).is_empty() {
        return Ok(());
    }
    let wrong = |doing| move |source| DiskError::Io { doing, name: name.to_owned(), source };
    let new = format!("{to}.new");
    disk.remove(&new)?;
    let (from, into) = (disk.open(name)?, disk.open(&new)?);
    let len = from.len().map_err(wrong("read"))?;
    into.set_len(len).map_err(wrong("copy"))?;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < len {
        let most = usize::try_from(len - at).unwrap_or(PIECE).min(PIECE);
        from.read(at, &mut piece[..most]).map_err(wrong("read"))?;
        into.write(at, &piece[..most]).map_err(wrong("copy"))?;
        at += most as u64;
    }
    into.sync_data().map_err(wrong("copy"))?;
    into.close().map_err(wrong("copy"))?;
    from.close().map_err(wrong("read"))?;
    drop((from, into));
    disk.rename(&new, to)
}

/// The copies of a file that there are, oldest format first.
fn copies(disk: &dyn Disk, name: &str, before: u32) -> Vec<String> {
    (1..before).map(|format| copy_name(name, format)).filter(|copy| disk.size(copy) > 0).collect()
}

/// Removes the copies of a file that was written to since: there is no way back any more.
pub(super) fn forget_copies(disk: &dyn Disk, name: &str, before: u32) -> Result<(), DiskError> {
    for copy in copies(disk, name, before) {
        disk.remove(&copy)?;
    }
    Ok(())
}

/// Puts the copy of a file back, if the file was not written to since it was migrated. Gives the format that it has
/// then; none where there is no copy.
///
/// # Errors
/// [`DiskError::Touched`] when it was written to, else what the disk says.
pub fn way_back(disk: &dyn Disk, name: &str, how: Open) -> Result<Option<u32>, DiskError> {
    may_go_back(disk, name, how)?;
    let Some(copy) = copies(disk, name, how.format).pop() else { return Ok(None) };
    disk.rename(&copy, name)?;
    Ok(look(disk, name, how).ok().map(|(format, _)| format))
}

/// Whether nothing would be lost by [`way_back`].
///
/// # Errors
/// As [`way_back`] has them.
pub(in crate::store) fn may_go_back(disk: &dyn Disk, name: &str, how: Open) -> Result<(), DiskError> {
    if copies(disk, name, how.format).is_empty() {
        return Ok(());
    }
    let (format, untouched) = look(disk, name, how)?;
    // One that is under way was not written to either.
    match format == how.format && !untouched {
        true => Err(DiskError::Touched { name: name.to_owned() }),
        false => Ok(()),
    }
}

/// Whether a file was migrated and not written to since; for whoever writes first.
pub(in crate::store) fn is_untouched(database: &Database) -> Result<bool, redb::Error> {
    let read = database.begin_read()?;
    Ok(read.open_table(META)?.get(UNTOUCHED)?.is_some())
}

/// Notes in a transaction that the file is written to: from its commit on there is no way back.
pub(in crate::store) fn touch(write: &WriteTransaction) -> Result<(), redb::Error> {
    write.open_table(META)?.remove(UNTOUCHED)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    //! A file of a format that never was, brought to one that is not yet, and killed at every sync on the way.

    use redb::TableDefinition;

    use super::*;
    use crate::store::disk::{self, Folder, Memory, When};

    const ROWS: TableDefinition<'_, u64, &str> = TableDefinition::new("rows");
    const NAMES: TableDefinition<'_, &str, u64> = TableDefinition::new("names");
    const COUNT: u64 = 10;
    const NAME: &str = "telemetry/old.redb";
    const OLD: Open = Open { format: 1, cache_bytes: 1 << 20, store_id: Some([7; 16]), migrations: &[] };
    const TODAY: Open = Open { format: 3, migrations: &WAY, ..OLD };
    static WAY: [Migration; 2] = [
        Migration { from: 1, says: "write names in capitals", step: capitals },
        Migration { from: 2, says: "find rows by name", step: by_name },
    ];

    /// Three rows a step.
    fn capitals(write: &WriteTransaction, at: Option<Vec<u8>>) -> Result<Next, redb::Error> {
        let from = at.map_or(0, |at| u64::from_le_bytes(at.try_into().unwrap()));
        let mut rows = write.open_table(ROWS)?;
        for row in from..(from + 3).min(COUNT) {
            let text = rows.get(row)?.unwrap().value().to_uppercase();
            rows.insert(row, text.as_str())?;
        }
        let next = from + 3;
        Ok(if next < COUNT { Next::More(next.to_le_bytes().to_vec()) } else { Next::Done })
    }

    fn by_name(write: &WriteTransaction, _: Option<Vec<u8>>) -> Result<Next, redb::Error> {
        let rows = write.open_table(ROWS)?;
        let mut names = write.open_table(NAMES)?;
        for row in rows.iter()? {
            let (number, name) = row?;
            names.insert(name.value(), number.value())?;
        }
        Ok(Next::Done)
    }

    fn old(disk: &dyn Disk) {
        let database = disk::open(disk, NAME, OLD).unwrap();
        let write = database.begin_write().unwrap();
        for row in 0..COUNT {
            write.open_table(ROWS).unwrap().insert(row, format!("name-{row}").as_str()).unwrap();
        }
        write.commit().unwrap();
    }

    fn names(database: &Database) -> Vec<String> {
        let read = database.begin_read().unwrap();
        let rows = read.open_table(ROWS).unwrap();
        rows.iter().unwrap().map(|row| row.unwrap().1.value().to_owned()).collect()
    }

    fn is_today(disk: &dyn Disk) {
        let database = disk::open(disk, NAME, TODAY).unwrap();
        assert_eq!(names(&database), (0..COUNT).map(|row| format!("NAME-{row}")).collect::<Vec<_>>());
        let read = database.begin_read().unwrap();
        let names = read.open_table(NAMES).unwrap();
        assert_eq!(names.get("NAME-7").unwrap().unwrap().value(), 7);
    }

    fn is_old(disk: &dyn Disk) {
        let database = disk::open(disk, NAME, OLD).unwrap();
        assert_eq!(names(&database), (0..COUNT).map(|row| format!("name-{row}")).collect::<Vec<_>>());
    }

    #[test]
    fn killed_at_every_sync_it_goes_on_or_goes_back() {
        let whole = Memory::default();
        old(&whole);
        let before = whole.syncs();
        is_today(&whole);
        let (mut killed, mut back) = (0, 0);
        for sync in before + 1..=whole.syncs() {
            for when in [When::Before, When::After] {
                for forward in [true, false] {
                    let disk = Memory::default();
                    old(&disk);
                    disk.freeze_at(sync, when);
                    // The last syncs are those of closing the file.
                    killed += u32::from(disk::open(&disk, NAME, TODAY).map(drop).is_err());
                    disk.crash();
                    if forward {
                        is_today(&disk);
                    } else if way_back(&disk, NAME, TODAY).unwrap().is_some() {
                        is_old(&disk);
                        back += 1;
                        // And forward again, whenever the operator likes.
                        is_today(&disk);
                    }
                }
            }
        }
        assert!(killed > 10 && back > 10, "{killed} were cut short, {back} went back");
    }

    #[test]
    fn on_a_real_folder_there_is_a_way_back_until_the_first_write() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Folder::new(folder.path());
        old(&disk);
        let mut told = Vec::new();
        migrate(&disk, NAME, TODAY, &mut |progress| told.push((progress.format, progress.says))).unwrap();
        assert_eq!(told.len(), 4 + 1 + 1, "{told:?}");
        assert_eq!(way_back(&disk, NAME, TODAY).unwrap(), Some(1));
        is_old(&disk);
        assert_eq!(way_back(&disk, NAME, TODAY).unwrap(), None, "there is one copy, and it is in its place");
        is_today(&disk);
        is_today(&disk);
        let database = disk::open(&disk, NAME, TODAY).unwrap();
        assert!(is_untouched(&database).unwrap());
        let write = database.begin_write().unwrap();
        touch(&write).unwrap();
        write.commit().unwrap();
        drop(database);
        let gone = way_back(&disk, NAME, TODAY);
        assert!(matches!(gone, Err(DiskError::Touched { .. })), "{gone:?}");
        drop(disk::open(&disk, NAME, TODAY).unwrap());
        assert!(copies(&disk, NAME, 3).is_empty(), "the copy is no use any more");
        is_today(&disk);
    }

    #[test]
    fn without_a_way_nothing_is_changed() {
        let disk = Memory::default();
        old(&disk);
        let how = Open { format: 4, ..TODAY };
        let refused = disk::open(&disk, NAME, how);
        assert!(matches!(refused, Err(DiskError::Older { found: 3, known: 4, .. })), "{refused:?}");
        is_old(&disk);
        assert!(copies(&disk, NAME, 4).is_empty());
    }
}
