//! Releases: which artifacts may run, by metadata that their makers signed (TUF 1.0, four roles, no delegations).
//!
//! Keys of the root and of the targets are not the hub's: it takes `root.json` and `targets.json` only when they are
//! rightly signed, follow what it has, and name artifacts that it stores. Its own two keys say which files belong
//! together (snapshot) and which are the newest (timestamp). What it serves was read by the agent's own verifier first.

mod folder;
mod keys;
pub mod make;
#[cfg(test)]
mod tests;
mod who;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use fleet_edge_agent::core::tuf::{self, TufError};
use fleet_schemas::update::{Custom, Digest, Kind, Target};
use tough::schema::{self, Root, Signed, Snapshot, Targets, Timestamp, key};

pub use keys::{Key, KeyError};
pub use make::{Entry, Signers};

use crate::{
    artifact::{self, Artifact},
    core::{Now, time::millis},
};
use folder::{Files, Folder, Next, Online, TIMESTAMP, versioned};

pub use folder::FOLDER;
pub use who::may_have;

/// Most targets that are signed at once; with them the file stays below what nodes read.
pub const TARGETS: usize = 4_000;
/// Snapshots and lists of targets that stay readable for nodes in the middle of their look.
const KEPT: u64 = 4;
/// Least time that a root or targets must be good for when they come.
const LEAST: Duration = Duration::from_secs(3_600);

/// Reads the hub's clock, and whether it is in doubt.
pub type Clock = Arc<dyn Fn() -> (Now, bool) + Send + Sync>;

/// Why metadata cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// What tough says.
    #[error("{0}")]
    Schema(#[from] schema::Error),
    /// It is no metadata.
    #[error("it is no metadata: {0}")]
    Json(#[from] serde_json::Error),
    /// A target that no node would take.
    #[error("{0}")]
    Name(String),
    /// Versions count from 1.
    #[error("a version is 0; the first is 1")]
    Version,
    /// A clock far from anything.
    #[error("the time {0} is none that metadata can have")]
    Time(i64),
}

/// Why metadata is not taken, or releases cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk.
    #[error("{path} cannot be used: {source}; check the disk and its free space")]
    Io {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not what we wrote.
    #[error(
        "{path} is damaged: {why}; restore the folder {FOLDER} from a backup, every node trusts what is in it"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It cannot be made.
    #[error(transparent)]
    Make(#[from] MakeError),
    /// Nothing is signed.
    #[error("nothing is signed while the hub's clock is in doubt: `fleet status` says why and what to do")]
    ClockInDoubt,
    /// There is no root.
    #[error("releases have no keys yet; make them with `fleet release init`")]
    NoRoot,
    /// What came does not fit.
    #[error("{file} is refused: {why}")]
    Refused {
        /// `root.json` or `targets.json`.
        file: &'static str,
        /// Why.
        why: String,
    },
    /// Somebody else was quicker.
    #[error(
        "{file} has version {has}, and {wanted} is the next one; look again with `fleet release ls`, then sign anew"
    )]
    Version {
        /// `root.json` or `targets.json`.
        file: &'static str,
        /// The version that came.
        has: u64,
        /// The version that follows.
        wanted: u64,
    },
    /// No node would take it.
    #[error("nodes would refuse this: {0}")]
    Nodes(#[from] TufError),
    /// A release names it.
    #[error(
        "artifact {digest} is signed as {target}; take it out of the releases first with `fleet release rm`"
    )]
    Named {
        /// Which.
        digest: Digest,
        /// As what.
        target: Target,
    },
    /// The artifacts.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
}

/// A version of a name, for one or more architectures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// What for.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What is signed, by target: one for each architecture.
    pub targets: BTreeMap<Target, Entry>,
}

/// Where a role stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// `root`, `targets`, `snapshot` or `timestamp`.
    pub role: &'static str,
    /// Its version.
    pub version: u64,
    /// When it ends, Unix milliseconds.
    pub expires_ms: i64,
}

/// The releases of a hub. All methods may be called from any thread; those that change something wait for the disk.
pub struct Releases {
    folder: Folder,
    online: Online,
    artifacts: Arc<artifact::Store>,
    clock: Clock,
    state: RwLock<Arc<State>>,
    changes: Mutex<()>,
    // Targets of lower versions may have been signed for the hub that this one was restored from.
    floor: AtomicU64,
}

/// All that is known of the repository.
#[derive(Default)]
struct State {
    files: Files,
    root: Option<Signed<Root>>,
    targets: Option<Signed<Targets>>,
    snapshot: Option<Signed<Snapshot>>,
    timestamp: Option<Signed<Timestamp>>,
    entries: BTreeMap<Target, Entry>,
}

impl Releases {
    /// Reads what is in the data folder, ends a change that was cut short, and renews what is due.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(data: &Path, artifacts: Arc<artifact::Store>, clock: Clock) -> Result<Self, Error> {
        let folder = Folder::open(data)?;
        let online = folder.online()?;
        let state = State::read(folder.files()?)
            .map_err(|error| Error::Damaged { path: data.join(FOLDER), why: error.to_string() })?;
        let state = RwLock::new(Arc::new(state));
        let floor = AtomicU64::new(folder.floor()?);
        let releases = Self { folder, online, artifacts, clock, state, changes: Mutex::default(), floor };
        // A hub without sound releases is a hub all the same; what goes on trying says so again.
        if let Err(error) = releases.renew() {
            tracing::error!(%error, "releases cannot be renewed, and nodes take no updates until they are");
        }
        Ok(releases)
    }

    /// A file of the repository, such as `timestamp.json` or `3.targets.json`.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<Bytes> {
        self.state().files.get(name).cloned()
    }

    /// The root that machines pin when they join; none before `fleet release init`.
    #[must_use]
    pub fn first_root(&self) -> Option<String> {
        let bytes = self.file("1.root.json")?;
        String::from_utf8(bytes.to_vec()).ok()
    }

    /// The roles that there are.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        let state = self.state();
        fn of<T: schema::Role>(role: &'static str, file: Option<&Signed<T>>) -> Option<Standing> {
            let signed = &file?.signed;
            Some(Standing { role, version: signed.version().get(), expires_ms: make::expires_ms(signed) })
        }
        let all = [
            of("root", state.root.as_ref()),
            of("targets", state.targets.as_ref()),
            of("snapshot", state.snapshot.as_ref()),
            of("timestamp", state.timestamp.as_ref()),
        ];
        all.into_iter().flatten().collect()
    }

    /// The hub's own keys, for whoever makes a root: for snapshots, and for timestamps.
    #[must_use]
    pub fn online_keys(&self) -> (key::Key, key::Key) {
        (self.online.snapshot.public(), self.online.timestamp.public())
    }

    /// Everything that is signed, by target.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<Target, Entry> {
        self.state().entries.clone()
    }

    /// What is signed of a target.
    #[must_use]
    pub fn entry(&self, target: &Target) -> Option<Entry> {
        self.state().entries.get(target).cloned()
    }

    /// All releases, by kind, name and version.
    #[must_use]
    pub fn all(&self) -> Vec<Release> {
        let state = self.state();
        let mut all: Vec<Release> = Vec::new();
        // Targets of one release lie beside each other.
        for (target, entry) in &state.entries {
            let same = |last: &&mut Release| {
                (last.kind, last.name.as_str(), last.version.as_str())
                    == (target.kind, target.name.as_str(), target.version.as_str())
            };
            match all.last_mut().filter(same) {
                Some(last) => drop(last.targets.insert(target.clone(), entry.clone())),
                None => all.push(Release {
                    kind: target.kind,
                    name: target.name.as_str().to_owned(),
                    version: target.version.as_str().to_owned(),
                    targets: [(target.clone(), entry.clone())].into(),
                }),
            }
        }
        all
    }

    /// The release of this name and version.
    #[must_use]
    pub fn release(&self, name: &str, version: &str) -> Option<Release> {
        self.all().into_iter().find(|release| release.name == name && release.version == version)
    }

    /// Takes a new root, new targets, or both at once; makes the snapshot and the timestamp that belong to them.
    ///
    /// # Errors
    /// [`Error`]: nothing was changed.
    pub fn publish(&self, root: Option<&str>, targets: Option<&str>) -> Result<(), Error> {
        let _alone = self.alone();
        let now_ms = self.now_ms()?;
        let before = self.state();
        let mut next = Next::default();
        let new_root = root.map(|text| self.check_root(&before, text, now_ms)).transpose()?;
        if let (Some(root), Some(text)) = (&new_root, root) {
            next.write.insert(format!("{}.root.json", root.signed.version), text.to_owned());
        }
        let root = new_root.as_ref().or(before.root.as_ref()).ok_or(Error::NoRoot)?;
        let new_targets = targets.map(|text| self.check_targets(&before, root, text, now_ms)).transpose()?;
        if let (Some(targets), Some(text)) = (&new_targets, targets) {
            next.write.insert(format!("{}.targets.json", targets.signed.version), text.to_owned());
        }
        if let (None, Some(old)) = (&new_targets, &before.targets)
            && root.signed.verify_role(old).is_err()
        {
            let why =
                "the present targets are not signed by its keys; send targets that are, in the same request";
            return Err(Error::Refused { file: "root.json", why: why.to_owned() });
        }
        self.make_online(&before, &mut next, (true, 0), now_ms)?;
        self.apply(&before, &next, now_ms)
    }

    /// Makes a new snapshot and timestamp when half of their life is over. Says whether it did.
    ///
    /// # Errors
    /// [`Error`]: nothing was changed.
    pub fn renew(&self) -> Result<bool, Error> {
        let _alone = self.alone();
        let before = self.state();
        if before.targets.is_none() {
            return Ok(false);
        }
        let now_ms = self.now_ms()?;
        let due = |ends: Option<i64>, life: Duration| {
            ends.is_none_or(|ends| ends.saturating_sub(now_ms) < millis(life) / 2)
        };
        let snapshot =
            due(before.snapshot.as_ref().map(|it| make::expires_ms(&it.signed)), make::SNAPSHOT_LIFE);
        let timestamp =
            due(before.timestamp.as_ref().map(|it| make::expires_ms(&it.signed)), make::TIMESTAMP_LIFE);
        if !snapshot && !timestamp {
            return Ok(false);
        }
        let mut next = Next::default();
        self.make_online(&before, &mut next, (snapshot, 0), now_ms)?;
        let state = State::read(overlaid(&before.files, &next))?;
        state.is_signed_by_its_root()?;
        self.folder.change(&next)?;
        self.set(state);
        Ok(true)
    }

    /// The files of the repository as they belong together, for a backup.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, Bytes> {
        self.state().files.clone()
    }

    /// After a restore: makes a snapshot and a timestamp whose versions are at least `floor`, so that nodes which saw
    /// later ones of the hub before take these for newer, and has the next targets begin there, too. Gives the versions
    /// of timestamp and snapshot; none where nothing was released.
    ///
    /// # Errors
    /// [`Error`]: nothing was changed.
    pub fn reissue(&self, floor: u64) -> Result<Option<(u64, u64)>, Error> {
        let _alone = self.alone();
        let before = self.state();
        if before.targets.is_none() {
            return Ok(None);
        }
        let now_ms = self.now_ms()?;
        self.folder.raise(floor)?;
        self.floor.store(self.floor.load(Ordering::Acquire).max(floor), Ordering::Release);
        let mut next = Next::default();
        self.make_online(&before, &mut next, (true, floor), now_ms)?;
        let state = State::read(overlaid(&before.files, &next))?;
        state.is_signed_by_its_root()?;
        self.folder.change(&next)?;
        let version = |file: Option<u64>| file.unwrap_or(0);
        let timestamp = version(state.timestamp.as_ref().map(|file| file.signed.version.get()));
        let snapshot = version(state.snapshot.as_ref().map(|file| file.signed.version.get()));
        self.set(state);
        Ok(Some((timestamp, snapshot)))
    }

    /// The version that the next targets have to have.
    #[must_use]
    pub fn next_targets(&self) -> u64 {
        self.targets_after(&self.state())
    }

    fn targets_after(&self, before: &State) -> u64 {
        let next = before.targets.as_ref().map_or(1, |targets| targets.signed.version.get() + 1);
        next.max(self.floor.load(Ordering::Acquire))
    }

    /// Removes an artifact that no release names.
    ///
    /// # Errors
    /// [`Error::Named`] and [`Error::Artifact`].
    pub fn remove_artifact(&self, digest: &Digest) -> Result<(), Error> {
        // Nothing is published meanwhile.
        let _alone = self.alone();
        match self.state().entries.iter().find(|(_, entry)| entry.digest == *digest) {
            Some((target, _)) => Err(Error::Named { digest: *digest, target: target.clone() }),
            None => Ok(self.artifacts.remove(digest)?),
        }
    }

    /// The targets as which an artifact is signed.
    #[must_use]
    pub fn named(&self, digest: &Digest) -> Vec<Target> {
        let state = self.state();
        let named = state.entries.iter().filter(|(_, entry)| entry.digest == *digest);
        named.map(|(target, _)| target.clone()).collect()
    }

    /// The artifacts.
    #[must_use]
    pub fn artifacts(&self) -> &Arc<artifact::Store> {
        &self.artifacts
    }

    fn check_root(&self, before: &State, text: &str, now_ms: i64) -> Result<Signed<Root>, Error> {
        const FILE: &str = "root.json";
        let refused = |why: String| Error::Refused { file: FILE, why };
        if text.len() as u64 > tuf::ROOT_BYTES {
            return Err(refused(format!("it has more than {} bytes", tuf::ROOT_BYTES)));
        }
        let root: Signed<Root> = make::read(text.as_bytes()).map_err(|error| refused(error.to_string()))?;
        let wanted = before.root.as_ref().map_or(1, |root| root.signed.version.get() + 1);
        let has = root.signed.version.get();
        if has != wanted {
            return Err(Error::Version { file: FILE, has, wanted });
        }
        let signed = |by: &Root, whose: &str| {
            by.verify_role(&root)
                .map_err(|error| refused(format!("the keys of {whose} did not sign it: {error}")))
        };
        signed(&root.signed, "its own")?;
        if let Some(before) = &before.root {
            signed(&before.signed, "the root before")?;
        }
        if !root.signed.consistent_snapshot {
            return Err(refused("it has no consistent snapshots".to_owned()));
        }
        let (snapshot, timestamp) = self.online_keys();
        for (role, key) in
            [(schema::RoleType::Snapshot, &snapshot), (schema::RoleType::Timestamp, &timestamp)]
        {
            let holders = root.signed.roles.get(&role);
            let id = key.key_id().map_err(MakeError::from)?;
            if holders.is_none_or(|holders| holders.threshold.get() != 1 || !holders.keyids.contains(&id)) {
                return Err(refused(format!(
                    "this hub's key cannot sign a {role} by it; make it with `fleet release`"
                )));
            }
        }
        good_for_a_while(FILE, &root.signed, now_ms)?;
        Ok(root)
    }

    fn check_targets(
        &self,
        before: &State,
        root: &Signed<Root>,
        text: &str,
        now_ms: i64,
    ) -> Result<Signed<Targets>, Error> {
        const FILE: &str = "targets.json";
        let refused = |why: String| Error::Refused { file: FILE, why };
        if text.len() as u64 > tuf::TARGETS_BYTES {
            return Err(refused(format!("it has more than {} bytes", tuf::TARGETS_BYTES)));
        }
        let targets: Signed<Targets> =
            make::read(text.as_bytes()).map_err(|error| refused(error.to_string()))?;
        let wanted = self.targets_after(before);
        let has = targets.signed.version.get();
        if has != wanted {
            return Err(Error::Version { file: FILE, has, wanted });
        }
        root.signed.verify_role(&targets).map_err(|error| refused(error.to_string()))?;
        if targets.signed.delegations.as_ref().is_some_and(|delegations| !delegations.roles.is_empty()) {
            return Err(refused("it delegates; nodes do not follow that".to_owned()));
        }
        let entries = make::entries(&targets.signed).map_err(|error| refused(error.to_string()))?;
        if entries.len() > TARGETS {
            return Err(refused(format!("it names {} targets; {TARGETS} are the most", entries.len())));
        }
        let mut kinds: BTreeMap<&str, Kind> = BTreeMap::new();
        for (target, entry) in &entries {
            self.check_entry(before, target, entry).map_err(refused)?;
            if *kinds.entry(target.name.as_str()).or_insert(target.kind) != target.kind {
                return Err(refused(format!("{:?} is of two kinds; a name has one", target.name.as_str())));
            }
        }
        good_for_a_while(FILE, &targets.signed, now_ms)?;
        Ok(targets)
    }

    fn check_entry(&self, before: &State, target: &Target, entry: &Entry) -> Result<(), String> {
        let semantic = matches!(target.kind, Kind::Skill | Kind::Agent);
        if semantic && semver::Version::parse(target.version.as_str()).is_err() {
            return Err(format!("the version of {target} is none of semantic versioning, such as 1.4.2"));
        }
        let stored = self.artifacts.get(&entry.digest);
        match stored {
            None => {
                return Err(format!(
                    "the artifact of {target} is not here; push it with `fleet artifact push`"
                ));
            }
            Some(Artifact { length, .. }) if length != entry.length => {
                return Err(format!(
                    "{target} is signed with {} bytes, and its artifact has {length}",
                    entry.length
                ));
            }
            Some(_) => {}
        }
        match before.entries.get(target) {
            Some(known) if known.digest != entry.digest => {
                Err(format!("{target} was released with other bytes; release them under another version"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Adds the snapshot and the timestamp that belong to the targets, with versions from `floor` on, and removes what
    /// nobody reads any more.
    fn make_online(
        &self,
        before: &State,
        next: &mut Next,
        (snapshot, floor): (bool, u64),
        now_ms: i64,
    ) -> Result<(), Error> {
        let files = overlaid(&before.files, next);
        let newest = |role: &str| {
            let of = files.keys().filter_map(|name| versioned(name)).filter(|(_, of)| *of == role);
            of.map(|(version, _)| version).max()
        };
        let Some(targets) = newest("targets") else { return Ok(()) };
        let mut current = before.snapshot.as_ref().map_or(0, |file| file.signed.version.get());
        if snapshot || current == 0 {
            current = (current + 1).max(floor);
            let made =
                make::snapshot(current, (targets, &files[&format!("{targets}.targets.json")]), now_ms)?;
            next.write
                .insert(format!("{current}.snapshot.json"), make::sign(made, &[&self.online.snapshot])?);
        }
        let name = format!("{current}.snapshot.json");
        let bytes = next.write.get(&name).map(String::as_bytes).or(files.get(&name).map(|bytes| &bytes[..]));
        let bytes = bytes
            .ok_or_else(|| Error::Refused { file: "snapshot.json", why: format!("{name} is missing") })?;
        let version = before.timestamp.as_ref().map_or(0, |file| file.signed.version.get()) + 1;
        let version = version.max(floor);
        let made = make::timestamp(version, (current, bytes), now_ms)?;
        next.write.insert(TIMESTAMP.to_owned(), make::sign(made, &[&self.online.timestamp])?);
        for name in files.keys() {
            let old = match versioned(name) {
                Some((version, "snapshot")) => version + KEPT <= current,
                Some((version, "targets")) => version + KEPT <= targets,
                Some(_) | None => false,
            };
            if old {
                next.remove.insert(name.clone());
            }
        }
        Ok(())
    }

    /// Has the agent's verifier read the repository as it will be, then makes it so.
    fn apply(&self, before: &State, next: &Next, now_ms: i64) -> Result<(), Error> {
        let files = overlaid(&before.files, next);
        let state = State::read(files)?;
        if state.targets.is_some() {
            verify(&state.files, now_ms)?;
        }
        self.folder.change(next)?;
        self.set(state);
        Ok(())
    }

    fn now_ms(&self) -> Result<i64, Error> {
        match (self.clock)() {
            (now, false) => Ok(now.wall_ms),
            (_, true) => Err(Error::ClockInDoubt),
        }
    }

    fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, state: State) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether the hub's keys are those that the root names: a folder that was restored in part has others.
    fn is_signed_by_its_root(&self) -> Result<(), Error> {
        let (Some(root), Some(snapshot), Some(timestamp)) = (&self.root, &self.snapshot, &self.timestamp)
        else {
            return Ok(());
        };
        let signed = root.signed.verify_role(snapshot).and(root.signed.verify_role(timestamp));
        signed.map_err(|error| {
            let why = format!("this hub's keys are not those of the root ({error}); `fleet release rotate --renew` names them in a new one");
            Error::Refused { file: "timestamp.json", why }
        })
    }

    fn read(files: Files) -> Result<Self, MakeError> {
        let newest = |role: &str| {
            let of = files.iter().filter_map(|(name, bytes)| Some((versioned(name)?, bytes)));
            of.filter(|((_, of), _)| *of == role)
                .max_by_key(|((version, _), _)| *version)
                .map(|(_, bytes)| bytes)
        };
        let targets: Option<Signed<Targets>> =
            newest("targets").map(|bytes| make::read(bytes)).transpose()?;
        let entries = targets.as_ref().map(|targets| make::entries(&targets.signed)).transpose()?;
        Ok(Self {
            root: newest("root").map(|bytes| make::read(bytes)).transpose()?,
            snapshot: newest("snapshot").map(|bytes| make::read(bytes)).transpose()?,
            timestamp: files.get(TIMESTAMP).map(|bytes| make::read(bytes)).transpose()?,
            targets,
            entries: entries.unwrap_or_default(),
            files,
        })
    }
}

/// Reads a repository as a node does that pinned its first root: what is trusted then.
///
/// # Errors
/// Why a node would refuse it.
pub fn verify(files: &BTreeMap<String, Bytes>, now_ms: i64) -> Result<tuf::Trusted, TufError> {
    let missing = || TufError::Missing { name: "1.root.json".to_owned() };
    let mut trusted = tuf::Trusted::pin(files.get("1.root.json").ok_or_else(missing)?)?;
    // A long chain of roots takes more than one look.
    loop {
        let root = trusted.seen().root;
        let mut update = tuf::Update::new(trusted, now_ms)?;
        let mut ended = Ok(());
        while let (Ok(()), Some(want)) = (&ended, update.wants()) {
            ended = update.take(files.get(&want.name).map(|bytes| &bytes[..]));
        }
        trusted = update.finish();
        if !files.contains_key(&format!("{}.root.json", trusted.seen().root + 1))
            || trusted.seen().root == root
        {
            return ended.map(|()| trusted);
        }
    }
}

/// Whether a file of the folder is part of the repository, and not the hub's own.
#[must_use]
pub fn is_metadata(name: &str) -> bool {
    name == TIMESTAMP || versioned(name).is_some()
}

/// The lowest version that a hub gives which was restored then: seconds since 1970. Versions grow by one a change, so no
/// hub has counted up to there, and one that is restored again begins higher.
#[must_use]
pub fn restored_from(now_ms: i64) -> u64 {
    u64::try_from(now_ms / 1_000).unwrap_or(0)
}

fn overlaid(files: &Files, next: &Next) -> Files {
    let mut files = files.clone();
    files.extend(next.write.iter().map(|(name, text)| (name.clone(), Bytes::from(text.clone()))));
    files.retain(|name, _| !next.remove.contains(name));
    files
}

fn good_for_a_while<T: schema::Role>(file: &'static str, role: &T, now_ms: i64) -> Result<(), Error> {
    match make::expires_ms(role) > now_ms.saturating_add(millis(LEAST)) {
        true => Ok(()),
        false => Err(Error::Refused { file, why: "it expires within an hour, or has expired".to_owned() }),
    }
}

/// What may be signed next to what is signed: the checks that a maker wants to hear before it signs.
///
/// # Errors
/// [`MakeError::Name`] when a name has another kind already.
pub fn add(
    entries: &mut BTreeMap<Target, Entry>,
    target: Target,
    artifact: &Artifact,
    custom: Custom,
) -> Result<(), MakeError> {
    let other = entries.keys().find(|known| known.name == target.name && known.kind != target.kind);
    if let Some(other) = other {
        return Err(MakeError::Name(format!(
            "{:?} is released as a {} already; a name has one kind",
            target.name.as_str(),
            other.kind
        )));
    }
    entries.insert(target, Entry { length: artifact.length, digest: artifact.digest, custom });
    Ok(())
}

/// Names of all releases, for whoever asks what there is.
#[must_use]
pub fn names(entries: &BTreeMap<Target, Entry>) -> BTreeSet<String> {
    entries.keys().map(|target| format!("{}@{}", target.name.as_str(), target.version.as_str())).collect()
}

impl std::fmt::Debug for Releases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Releases").field("standings", &self.standings()).finish_non_exhaustive()
    }
}
