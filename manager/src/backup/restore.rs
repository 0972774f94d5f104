//! Makes a hub's data folder of a backup, and a new hub of it: one that nobody takes for the old one.
//!
//! Everything happens in the folder itself, which may be a disk of its own; until all of it is done a marker lies there,
//! and no hub starts on it. Begun again, it begins from the start.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use fleet_schemas::{MetricName, StoreId, event::Severity};
use rustix::{
    fs::{AtFlags, Dir, Gid, Mode, OFlags, Uid, chownat, open, openat},
    io::Errno,
};
use serde::Serialize;

use super::{
    Error, Manifest, at,
    make::{make_file, make_folder},
    read::{self, Place, Unpack},
    sealed::Identities as Keys,
    trail,
};
use crate::{
    artifact, clock,
    consume::{CREDIT, Consumer},
    core::{
        Now,
        audit::Entry,
        command,
        identity::{Identities, Row, trail as lines},
        registry::{Intent, Noted, Order},
        restored::Restore,
        rollout,
    },
    pki::{self, file::replace, readmit::Readmitted},
    release::{self, Releases},
    store::{
        disk::Folder,
        moment,
        state::{self, Changes, Commit, EventRow, StateStore},
        telemetry::{self, Missing},
    },
};

/// Lies in a folder that is being restored.
pub const MARKER: &str = "restore.unfinished";
/// By whom a restore's changes are in the trail of changes.
const BY: &str = "restore";

/// What is to be restored, and where.
#[derive(Debug)]
pub struct Options<'a> {
    /// The backup.
    pub place: &'a Place,
    /// What opens it, where it is encrypted.
    pub keys: Option<&'a Keys>,
    /// The data folder.
    pub data: &'a Path,
    /// The file of revocations that outlived the old hub.
    pub trail: Option<&'a Path>,
    /// The time.
    pub now: Now,
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// The backup.
    pub file: String,
    /// When it was made, Unix milliseconds.
    pub backup_ms: i64,
    /// When it was restored, Unix milliseconds.
    pub restored_ms: i64,
    /// Files, and their bytes.
    pub files: usize,
    /// Bytes of those.
    pub bytes: u64,
    /// The store's new id.
    pub store_id: String,
    /// The epoch that versions of configuration count in from now on.
    pub config_epoch: u64,
    /// Nodes that the hub knows.
    pub nodes: usize,
    /// Whether a file of revocations was applied.
    pub revocations_given: bool,
    /// Nodes, tokens, tools and operators that are shut out now and were not in the backup.
    pub shut_out: u64,
    /// Lines of that file that do not read.
    pub unreadable_lines: u64,
    /// CAs of after the backup that are trusted again: whom they signed comes in.
    pub authorities: u64,
    /// When the old hub trusted the CA no more that this one has, Unix milliseconds; absent: it did to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_dropped_ms: Option<i64>,
    /// Nodes that may have heard of that: they do not trust this hub, and have to join again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub join_again: Vec<String>,
    /// Join tokens that ended, because nobody can tell whether they were used since.
    pub tokens_ended: u64,
    /// Executions of commands that wait for approval.
    pub held: u64,
    /// Rollouts that were paused.
    pub paused: Vec<String>,
    /// Samples of weeks that are not in the backup; booked as lost.
    pub samples_missing: u64,
    /// The versions that the timestamp and the snapshot of releases have now; none where nothing was released.
    pub releases: Option<(u64, u64)>,
}

/// Whether a data folder was not restored to its end; no hub may start on it.
#[must_use]
pub fn is_unfinished(data: &Path) -> bool {
    data.join(MARKER).exists()
}

/// Restores a backup into an empty folder. `told` hears what is being done, and the bytes so far.
///
/// # Errors
/// [`Error`]: the folder is marked as unfinished; the next restore into it begins again. [`Error::Full`] where it has no
/// room for what the backup holds.
pub fn restore(options: &Options<'_>, told: &mut dyn FnMut(&str, u64)) -> Result<Report, Error> {
    let Options { place, keys, data, .. } = options;
    make(options, told).map_err(|error| read::with_room(error, (place, *keys), false, data))
}

fn make(options: &Options<'_>, told: &mut dyn FnMut(&str, u64)) -> Result<Report, Error> {
    let Options { place, keys, data, now, .. } = options;
    // Read before anything is made: a wrong name must not leave a folder behind.
    let given = options.trail.map(trail::read).transpose()?;
    begin(data)?;
    let mut unpack = Unpack::new(data, false, told);
    let manifest = read::read(place, *keys, &mut unpack)?;
    let (stores, files, bytes) = (unpack.stores, unpack.files, unpack.bytes);
    told("check the stores", bytes);
    read::check_stores(data, &stores, &manifest, &place.file)?;
    told("make it a hub of its own", bytes);
    let id = StoreId(clock::random());
    for name in &stores {
        moment::rename_store(&data.join(name), name, id.0)?;
    }
    let mut report = Report {
        file: place.file.display().to_string(),
        backup_ms: manifest.head.made_ms,
        restored_ms: now.wall_ms,
        files,
        bytes,
        store_id: id.to_string(),
        revocations_given: given.is_some(),
        ..Report::default()
    };
    distrust(data, given.as_ref(), id, *now, &mut report)?;
    readmit(data, given.as_ref(), id, *now, &mut report)?;
    told("account for what is not in it", bytes);
    settle(data, &manifest, id, *now, &mut report)?;
    report.releases = reissue(data, *now)?;
    keep_trail(data, options.trail)?;
    note(data, id, &report)?;
    finish(data)?;
    Ok(report)
}

/// Empty, or ours from a restore that came to no end.
fn begin(data: &Path) -> Result<(), Error> {
    make_folder(data)?;
    if is_unfinished(data) {
        for entry in fs::read_dir(data).map_err(at(data))? {
            let path = entry.map_err(at(data))?.path();
            if path.file_name().is_some_and(|name| name == MARKER) {
                continue;
            }
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(at(&path))?;
        }
        return Ok(());
    }
    // A disk of its own has this.
    let others = fs::read_dir(data)
        .map_err(at(data))?
        .filter(|entry| entry.as_ref().map_or(true, |entry| entry.file_name() != "lost+found"));
    if others.count() > 0 {
        return Err(Error::NotEmpty(data.to_owned()));
    }
    let path = data.join(MARKER);
    make_file(&path)?.sync_all().map_err(at(&path))?;
    sync_folder(data)
}

fn finish(data: &Path) -> Result<(), Error> {
    give_to_owner(data)?;
    sync_folder(data)?;
    let path = data.join(MARKER);
    fs::remove_file(&path).map_err(at(&path))?;
    sync_folder(data)
}

/// Root restores into a folder of the hub's user: what was made there is that user's, or the hub could not read it.
///
/// By descriptors, and never through a link: who owns the folder can lay one in the way, and root would give away what
/// it leads to.
pub(super) fn give_to_owner(data: &Path) -> Result<(), Error> {
    let owner = fs::metadata(data).map_err(at(data))?;
    if !rustix::process::geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let given = || -> rustix::io::Result<()> {
        let (user, group) = (Some(Uid::from_raw(owner.uid())), Some(Gid::from_raw(owner.gid())));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut folders = vec![open(data, flags - OFlags::NOFOLLOW, Mode::empty())?];
        while let Some(folder) = folders.pop() {
            for entry in Dir::read_from(&folder)? {
                let entry = entry?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                chownat(&folder, name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
                match openat(&folder, name, flags, Mode::empty()) {
                    Ok(inner) => folders.push(inner),
                    Err(Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    };
    given().map_err(|error| at(data)(error.into()))
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    fs::File::open(path).and_then(|folder| folder.sync_all()).map_err(at(path))
}

/// What the state may not be trusted with any more: who is shut out, which tokens are open, which commands were sent.
fn distrust(
    data: &Path,
    given: Option<&trail::Found>,
    id: StoreId,
    now: Now,
    report: &mut Report,
) -> Result<(), Error> {
    let state = StateStore::open(&Folder::new(data), id)?;
    report.config_epoch = state.raise_config_epoch()?;
    let mut identities = state.identities()?;
    let rows = match given {
        Some(found) => {
            let applied = lines::apply(&mut identities, &found.lines);
            (report.shut_out, report.unreadable_lines) = (applied.shut_out, found.unreadable);
            applied.rows
        }
        None => {
            let rows = lines::end_tokens(&mut identities, now.wall_ms);
            report.tokens_ended = rows.len() as u64;
            rows
        }
    };
    let (_, mut open) = state.open_commands()?;
    let mut commands = command::Effects::default();
    report.held = command::hold(&mut commands, &mut open);
    let audit = vec![entry(report, now)];
    let identities = Changes { audit, ..changed(&identities, &rows) };
    state.apply(&Commit { identities, commands, ..Commit::default() })?;
    Ok(())
}

/// Lets in again whom a CA of after the backup signed, and names those who do not trust this hub's any more.
fn readmit(
    data: &Path,
    given: Option<&trail::Found>,
    id: StoreId,
    now: Now,
    report: &mut Report,
) -> Result<(), Error> {
    let Some(found) = given else { return Ok(()) };
    let Readmitted { trusted, dropped_ms } = pki::readmit::readmit(data, &found.lines, now.wall_ms)?;
    (report.authorities, report.ca_dropped_ms) = (trusted, dropped_ms);
    if dropped_ms.is_some() {
        let identities = StateStore::open(&Folder::new(data), id)?.identities()?;
        let nodes = lines::let_in_since(&identities, &found.lines);
        report.join_again = nodes.iter().map(ToString::to_string).collect();
    }
    Ok(())
}

fn changed(identities: &Identities, rows: &std::collections::BTreeSet<Row>) -> Changes {
    crate::consume::changes(identities, rows)
}

fn entry(report: &Report, now: Now) -> Entry {
    let detail = serde_json::json!({
        "backup_ms": report.backup_ms, "held": report.held, "shut_out": report.shut_out,
        "tokens_ended": report.tokens_ended,
    });
    let noted = Noted { action: "hub.restore", target: report.store_id.clone(), detail };
    Entry::new(&Intent::Noted(noted), BY, now.wall_ms)
}

/// Opens the hub's own stores once: books what the backup left out, and pauses what must not go on by itself.
fn settle(data: &Path, manifest: &Manifest, id: StoreId, now: Now, report: &mut Report) -> Result<(), Error> {
    let disk = Arc::new(Folder::new(data));
    let mut consumer = Consumer::open(disk, telemetry::Config::default(), id, now)?;
    let shared = consumer.shared().clone();
    let missing = shared.telemetry.book_missing()?;
    report.samples_missing = missing.iter().map(|missing| missing.samples).sum();
    if !missing.is_empty() {
        let why = match manifest.head.telemetry {
            true => "they are in no file of the backup",
            false => "the backup was made without --telemetry",
        };
        let events = missing.iter().map(|missing| lost(missing, why, now)).collect();
        shared.state().apply(&Commit { events, ..Commit::default() })?;
    }
    let running: Vec<rollout::Id> = {
        let fleet = shared.fleet();
        report.nodes = fleet.nodes.len();
        let goes_on = |live: &&rollout::Live| {
            matches!(live.head.state, rollout::State::Running | rollout::State::RollingBack)
        };
        fleet.rollouts.all().into_iter().filter(goes_on).map(|live| live.head.spec.id.clone()).collect()
    };
    let pause = |id: &rollout::Id| {
        let reason =
            Some("the hub was restored from a backup; look what became of it, then resume it".to_owned());
        let act = rollout::Act::Pause { reason };
        Order { by: BY.to_owned(), intent: Intent::ActOnRollout { id: id.clone(), act, by: BY.to_owned() } }
    };
    let orders: Vec<Order> = running.iter().map(pause).collect();
    let spoken = consumer.consume(std::iter::empty(), orders, CREDIT, now)?;
    for (id, outcome) in running.iter().zip(spoken.outcomes) {
        if outcome.is_ok() {
            report.paused.push(id.to_string());
        }
    }
    Ok(())
}

fn lost(missing: &Missing, why: &str, now: Now) -> EventRow {
    let Missing { node, lane, samples } = *missing;
    let message =
        format!("{samples} records of lane {lane} are lost: {why}, and the hub was restored from it");
    let kind = MetricName::parse("records_lost").expect("our own kinds are short and printable");
    let (time_ms, severity) = (now.wall_ms, Severity::Warning);
    let event =
        fleet_schemas::event::Event { time_ms, kind, severity, message, data: None, device: None, id: None };
    EventRow { node, time_ms, recv_ms: time_ms, by_hub: true, event }
}

/// Issues a timestamp and a snapshot above any that the old hub can have issued.
fn reissue(data: &Path, now: Now) -> Result<Option<(u64, u64)>, Error> {
    if !data.join(release::FOLDER).exists() {
        return Ok(None);
    }
    let artifacts = Arc::new(artifact::Store::open(data, now.wall_ms)?);
    let releases = Releases::open(data, artifacts, Arc::new(move || (now, false)))?;
    Ok(releases.reissue(release::restored_from(now.wall_ms))?)
}

/// The file that outlived the old hub is the new one's beginning.
fn keep_trail(data: &Path, given: Option<&Path>) -> Result<(), Error> {
    let Some(given) = given else { return Ok(()) };
    let bytes = fs::read(given).map_err(at(given))?;
    let path = data.join(trail::FILE);
    replace(&path, &bytes).map_err(at(&path))
}

/// The row by which the hub tells later how far its nodes have come.
fn note(data: &Path, id: StoreId, report: &Report) -> Result<(), Error> {
    let state = StateStore::open(&Folder::new(data), id)?;
    let restore = Restore {
        number: 0,
        at_ms: report.restored_ms,
        backup_ms: report.backup_ms,
        samples_missing: report.samples_missing,
        held: report.held,
        shut_out: report.shut_out,
        tokens_ended: report.tokens_ended,
        paused: report.paused.len() as u64,
    };
    state.begin_restore(&restore)?;
    Ok(())
}

/// Opens the stores of a folder on which no hub runs, to back them up.
///
/// # Errors
/// [`Error`]; another process that holds them is told of by name.
pub fn stores(data: &Path, now: Now) -> Result<(StateStore, telemetry::TelemetryStore), Error> {
    if !data.join(state::FILE).exists() {
        let source = io::Error::new(io::ErrorKind::NotFound, "there is no hub's data here");
        return Err(Error::Io { path: data.join(state::FILE), source });
    }
    let disk = Arc::new(Folder::new(data));
    let state = StateStore::open(&*disk, StoreId(clock::random()))?;
    let config = telemetry::Config { store_id: Some(state.store_id().0), ..telemetry::Config::default() };
    let samples = telemetry::TelemetryStore::open(disk, config, now.wall_ms)?;
    Ok((state, samples))
}
