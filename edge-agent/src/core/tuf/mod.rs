//! What may run, by signed metadata: the client of TUF 1.0.31 and later (§5.3, the four roles at the top). Pure.
//!
//! [`Trusted`] is what a node has seen and verified; the shell keeps it on disk. An [`Update`] says which file it wants
//! next ([`Update::wants`]), is handed its bytes ([`Update::take`]), and ends with a newer [`Trusted`]. Signatures,
//! thresholds over distinct keys, versions that never go back, files that belong together, and expiry against the
//! time at which the update began are all judged here.
//!
//! Delegated roles are not followed: what only they name is [`TufError::UnknownTarget`].

mod json;
mod key;
mod meta;
#[cfg(test)]
mod tests;

use fleet_schemas::update::{Custom, Digest, Target};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use meta::Role;

use json::{Wrong, field};
use meta::{File, Listed, Root, Snapshot, Timestamp};

/// Largest root, in bytes: 32 keys and as many signatures have a tenth of that.
pub const ROOT_BYTES: u64 = 128 * 1024;
/// Largest timestamp, in bytes.
pub const TIMESTAMP_BYTES: u64 = 16 * 1024;
/// Largest snapshot, in bytes: it names one file.
pub const SNAPSHOT_BYTES: u64 = 64 * 1024;
/// Largest list of targets, in bytes: about 5,000 of them. A node reads it whole.
pub const TARGETS_BYTES: u64 = 2 * 1024 * 1024;
/// Most roots that one update follows; the next update goes on.
pub const ROOTS: usize = 64;
/// The file of targets, as a snapshot names it.
const TARGETS_FILE: &str = "targets.json";

/// Metadata that was verified, as its files have it. Serialised by the shell, whole: a new root and what it makes void
/// change together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trusted {
    root: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timestamp: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    targets: Option<String>,
}

/// The versions of what is trusted; 0 for what is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Of the root.
    pub root: u64,
    /// Of the timestamp.
    pub timestamp: u64,
    /// Of the snapshot.
    pub snapshot: u64,
    /// Of the targets.
    pub targets: u64,
}

/// A target as the holders of the targets' keys signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Its length in bytes.
    pub length: u64,
    /// The SHA-256 of its bytes.
    pub digest: Digest,
    /// What else was signed.
    pub custom: Custom,
}

/// A file that an update needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Its name below `update::TUF_PATH`.
    pub name: String,
    /// Most bytes that it may have: read no more than one byte beyond.
    pub limit: u64,
}

/// Why metadata is not taken. What was verified before stays: see [`Update::finish`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TufError {
    /// A file that must be there is not.
    #[error("the hub has no {name}; ask it again later, or look at `fleet release ls`")]
    Missing {
        /// Which.
        name: String,
    },
    /// A file is longer than it may be.
    #[error("{name} has more than {limit} bytes")]
    TooLarge {
        /// Which.
        name: String,
        /// Most bytes.
        limit: u64,
    },
    /// A file is no metadata.
    #[error("{name} is no metadata: {why}")]
    Malformed {
        /// Which.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Too few of the keys that the root names for the role signed a file.
    #[error("{name} has {good} good signatures of the {needed} that it needs")]
    BadSignature {
        /// Which.
        name: String,
        /// Distinct keys that signed.
        good: usize,
        /// How many are needed.
        needed: usize,
    },
    /// A new root is not signed by the root before, or is not the next one.
    #[error(
        "{name} does not follow the root that this node trusts: {why}. A node that moved to another hub must join there"
    )]
    WrongRoot {
        /// Which.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A file is out of date: perhaps somebody holds newer ones back.
    #[error(
        "{name} expired at {at_ms} (Unix milliseconds); renew it with `fleet release sign` or `rotate`, or set the clock"
    )]
    Expired {
        /// Which.
        name: String,
        /// When.
        at_ms: i64,
    },
    /// A file is older than one that was seen before.
    #[error("{name} is of version {has}, and {seen} was seen before")]
    Rollback {
        /// Which.
        name: String,
        /// The version that was seen.
        seen: u64,
        /// The version of the file.
        has: u64,
    },
    /// A file is not the one that was signed together with the others.
    #[error("{name} is not the file that belongs to the others: {why}")]
    MixAndMatch {
        /// Which.
        name: String,
        /// What differs.
        why: String,
    },
    /// No such target was signed.
    #[error("no release {target} was signed; sign it with `fleet release sign`")]
    UnknownTarget {
        /// Which.
        target: String,
    },
    /// More was handed over than was asked for.
    #[error("this update asks for no more files")]
    Over,
}

impl TufError {
    /// The stable code, for reports and for whoever counts them.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing_metadata",
            Self::TooLarge { .. } => "too_large",
            Self::Malformed { .. } => "malformed",
            Self::BadSignature { .. } => "bad_signature",
            Self::WrongRoot { .. } => "wrong_root",
            Self::Expired { .. } => "expired",
            Self::Rollback { .. } => "rollback",
            Self::MixAndMatch { .. } => "mix_and_match",
            Self::UnknownTarget { .. } => "unknown_target",
            Self::Over => "over",
        }
    }

    /// Whether it may be gone when it is tried again, though nobody signs anything: a hub between two of its steps.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Missing { .. } | Self::MixAndMatch { .. } | Self::Expired { .. } => true,
            Self::TooLarge { .. }
            | Self::Malformed { .. }
            | Self::BadSignature { .. }
            | Self::WrongRoot { .. }
            | Self::Rollback { .. }
            | Self::UnknownTarget { .. }
            | Self::Over => false,
        }
    }
}

/// What an update waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Root,
    Timestamp,
    Snapshot(Listed),
    Targets(Listed),
    Done,
    Failed,
}

/// One look at the repository, from the root to the targets.
#[derive(Debug, Clone)]
pub struct Update {
    trusted: Trusted,
    root: Root,
    now_ms: i64,
    roots: usize,
    stage: Stage,
}

impl Trusted {
    /// Trusts a root that was handed over in person: at enrolment, or at the first update by the node's own hub.
    ///
    /// # Errors
    /// [`TufError`] when it is none, or is not signed by its own keys.
    pub fn pin(root: &[u8]) -> Result<Self, TufError> {
        let name = "the pinned root";
        if root.len() as u64 > ROOT_BYTES {
            return Err(TufError::TooLarge { name: name.to_owned(), limit: ROOT_BYTES });
        }
        let file = File::read(root).map_err(|error| malformed(name, &error))?;
        let read = file.root().map_err(|error| malformed(name, &error))?;
        check(&read, Role::Root, &file, name)?;
        Ok(Self { root: text(root, name)?, timestamp: None, snapshot: None, targets: None })
    }

    /// A target, as it was signed. Judges no expiry: ask the [`Trusted`] of an update that came to its end.
    ///
    /// # Errors
    /// [`TufError::UnknownTarget`], or [`TufError::Malformed`].
    pub fn target(&self, target: &Target) -> Result<Signed, TufError> {
        let unknown = || TufError::UnknownTarget { target: target.to_string() };
        let text = self.targets.as_ref().ok_or_else(unknown)?;
        let wrong = |error: Wrong| malformed(TARGETS_FILE, &error);
        let targets = File::read(text.as_bytes()).and_then(|file| file.targets()).map_err(wrong)?.targets;
        let entry = targets.get(&target.to_string()).ok_or_else(unknown)?;
        let read = || {
            let map = entry.map()?;
            let custom = match map.get("custom") {
                Some(custom) => serde_json::from_value(custom.to_value())
                    .map_err(|error| json::wrong(format!("\"custom\" of {target}: {error}")))?,
                None => Custom::default(),
            };
            let digest = Digest(meta::sha256(field(map, "hashes")?.map()?)?);
            Ok(Signed { length: field(map, "length")?.count()?, digest, custom })
        };
        read().map_err(wrong)
    }

    /// The versions of what is trusted.
    #[must_use]
    pub fn seen(&self) -> Seen {
        let version = |text: Option<&String>, head: fn(&File) -> Result<meta::Head, Wrong>| {
            let read = text.map(|text| File::read(text.as_bytes()).and_then(|file| head(&file)));
            read.and_then(Result::ok).map_or(0, |head| head.version)
        };
        Seen {
            root: version(Some(&self.root), |file| file.root().map(|root| root.head)),
            timestamp: version(self.timestamp.as_ref(), |file| file.timestamp().map(|file| file.head)),
            snapshot: version(self.snapshot.as_ref(), |file| file.snapshot().map(|file| file.head)),
            targets: version(self.targets.as_ref(), |file| file.targets().map(|file| file.head)),
        }
    }
}

impl Update {
    /// Begins, with what is trusted; expiry is judged by the time `now_ms` (Unix milliseconds) to the end (§5.2).
    ///
    /// # Errors
    /// [`TufError::Malformed`] when what is trusted cannot be read: it was damaged on disk.
    pub fn new(trusted: Trusted, now_ms: i64) -> Result<Self, TufError> {
        let wrong = |error| malformed("the trusted root", &error);
        let root = File::read(trusted.root.as_bytes()).and_then(|file| file.root()).map_err(wrong)?;
        Ok(Self { trusted, root, now_ms, roots: 0, stage: Stage::Root })
    }

    /// The file that it needs next; `None` when it came to its end, or failed.
    #[must_use]
    pub fn wants(&self) -> Option<Want> {
        let versioned = |version: u64, role: Role| match self.root.consistent {
            true => format!("{version}.{}.json", role.as_str()),
            false => format!("{}.json", role.as_str()),
        };
        let within = |listed: &Listed, limit: u64| listed.length.map_or(limit, |length| length.min(limit));
        let (name, limit) = match &self.stage {
            Stage::Root => (format!("{}.root.json", self.root.head.version + 1), ROOT_BYTES),
            Stage::Timestamp => ("timestamp.json".to_owned(), TIMESTAMP_BYTES),
            Stage::Snapshot(listed) => {
                (versioned(listed.version, Role::Snapshot), within(listed, SNAPSHOT_BYTES))
            }
            Stage::Targets(listed) => {
                (versioned(listed.version, Role::Targets), within(listed, TARGETS_BYTES))
            }
            Stage::Done | Stage::Failed => return None,
        };
        Some(Want { name, limit })
    }

    /// Takes the file that was wanted; `None` when the repository does not have it, which ends the chain of roots.
    ///
    /// # Errors
    /// Why it is not taken: the update is over then.
    pub fn take(&mut self, bytes: Option<&[u8]>) -> Result<(), TufError> {
        let Want { name, limit } = self.wants().ok_or(TufError::Over)?;
        let stage = std::mem::replace(&mut self.stage, Stage::Failed);
        if bytes.is_some_and(|bytes| bytes.len() as u64 > limit) {
            return Err(TufError::TooLarge { name, limit });
        }
        self.stage = match (stage, bytes) {
            (Stage::Root, Some(bytes)) => self.next_root(bytes, &name)?,
            (Stage::Root, None) => self.last_root()?,
            (Stage::Timestamp, Some(bytes)) => self.timestamp(bytes, &name)?,
            (Stage::Snapshot(listed), Some(bytes)) => self.snapshot(bytes, &name, &listed)?,
            (Stage::Targets(listed), Some(bytes)) => self.targets(bytes, &name, &listed)?,
            (Stage::Timestamp | Stage::Snapshot(_) | Stage::Targets(_), None) => {
                return Err(TufError::Missing { name });
            }
            (Stage::Done | Stage::Failed, _) => return Err(TufError::Over),
        };
        Ok(())
    }

    /// Whether everything was seen and verified.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// What is trusted now: to be kept also after an error, so that no version that was seen is forgotten. Only when
    /// [`Update::is_done`] may a release be taken from it.
    #[must_use]
    pub fn finish(self) -> Trusted {
        self.trusted
    }

    /// §5.3.3 to §5.3.9.
    fn next_root(&mut self, bytes: &[u8], name: &str) -> Result<Stage, TufError> {
        let file = File::read(bytes).map_err(|error| malformed(name, &error))?;
        let next = file.root().map_err(|error| malformed(name, &error))?;
        self.root.check(Role::Root, &file).map_err(|short| {
            let why = format!("{} of its keys signed, {} are needed", short.good, short.needed);
            TufError::WrongRoot { name: name.to_owned(), why }
        })?;
        check(&next, Role::Root, &file, name)?;
        if next.head.version != self.root.head.version + 1 {
            let why = format!("version {} does not follow {}", next.head.version, self.root.head.version);
            return Err(TufError::WrongRoot { name: name.to_owned(), why });
        }
        self.trusted.root = text(bytes, name)?;
        // Versions that a thief of these keys drove up are forgotten with the keys (§5.3.11).
        let changed = |role| next.signers(role) != self.root.signers(role);
        if changed(Role::Timestamp) || changed(Role::Snapshot) {
            self.trusted.timestamp = None;
            self.trusted.snapshot = None;
        }
        self.root = next;
        self.roots += 1;
        match self.roots < ROOTS {
            true => Ok(Stage::Root),
            false => self.last_root(),
        }
    }

    fn last_root(&self) -> Result<Stage, TufError> {
        self.fresh(self.root.head, "the root")?;
        Ok(Stage::Timestamp)
    }

    /// §5.4.
    fn timestamp(&mut self, bytes: &[u8], name: &str) -> Result<Stage, TufError> {
        let file = File::read(bytes).map_err(|error| malformed(name, &error))?;
        check(&self.root, Role::Timestamp, &file, name)?;
        let new = file.timestamp().map_err(|error| malformed(name, &error))?;
        let new = match self.held_timestamp() {
            Some(held) => {
                not_back(name, held.head.version, new.head.version)?;
                not_back("snapshot.json", held.snapshot.version, new.snapshot.version)?;
                // Nothing new: then the one that was seen first stays.
                if held.head.version == new.head.version {
                    held
                } else {
                    self.keep_timestamp(new, bytes, name)?
                }
            }
            None => self.keep_timestamp(new, bytes, name)?,
        };
        self.fresh(new.head, name)?;
        match self.held_snapshot().filter(|(bytes, _)| belongs(bytes, &new.snapshot).is_ok()) {
            Some((_, held)) if held.head.version == new.snapshot.version => self.after_snapshot(&held),
            Some(_) | None => Ok(Stage::Snapshot(new.snapshot)),
        }
    }

    fn keep_timestamp(&mut self, new: Timestamp, bytes: &[u8], name: &str) -> Result<Timestamp, TufError> {
        self.fresh(new.head, name)?;
        self.trusted.timestamp = Some(text(bytes, name)?);
        Ok(new)
    }

    /// §5.5.
    fn snapshot(&mut self, bytes: &[u8], name: &str, listed: &Listed) -> Result<Stage, TufError> {
        belongs(bytes, listed).map_err(|why| mixed(name, why))?;
        let file = File::read(bytes).map_err(|error| malformed(name, &error))?;
        check(&self.root, Role::Snapshot, &file, name)?;
        let new = file.snapshot().map_err(|error| malformed(name, &error))?;
        same_version(name, listed, new.head.version)?;
        if let Some((_, held)) = self.held_snapshot() {
            for (file, before) in &held.files {
                let now = new.files.get(file).map_or(0, |listed| listed.version);
                not_back(file, before.version, now)?;
            }
        }
        self.fresh(new.head, name)?;
        self.trusted.snapshot = Some(text(bytes, name)?);
        self.after_snapshot(&new)
    }

    fn after_snapshot(&self, snapshot: &Snapshot) -> Result<Stage, TufError> {
        self.fresh(snapshot.head, "snapshot.json")?;
        let Some(listed) = snapshot.files.get(TARGETS_FILE) else {
            return Err(malformed("snapshot.json", &json::wrong("it does not name targets.json")));
        };
        // What is held is read anew: the root may have other keys for it by now.
        let held = self.trusted.targets.as_ref().filter(|text| belongs(text.as_bytes(), listed).is_ok());
        let held = held.and_then(|text| File::read(text.as_bytes()).ok());
        let held = held.filter(|file| self.root.check(Role::Targets, file).is_ok());
        match held.and_then(|file| file.targets().ok()) {
            Some(held) if held.head.version == listed.version => {
                self.fresh(held.head, TARGETS_FILE)?;
                Ok(Stage::Done)
            }
            Some(_) | None => Ok(Stage::Targets(listed.clone())),
        }
    }

    /// §5.6.
    fn targets(&mut self, bytes: &[u8], name: &str, listed: &Listed) -> Result<Stage, TufError> {
        belongs(bytes, listed).map_err(|why| mixed(name, why))?;
        let file = File::read(bytes).map_err(|error| malformed(name, &error))?;
        check(&self.root, Role::Targets, &file, name)?;
        let new = file.targets().map_err(|error| malformed(name, &error))?;
        same_version(name, listed, new.head.version)?;
        self.fresh(new.head, name)?;
        self.trusted.targets = Some(text(bytes, name)?);
        Ok(Stage::Done)
    }

    /// What was seen before, if the root of today still vouches for it.
    fn held_timestamp(&self) -> Option<Timestamp> {
        let file = File::read(self.trusted.timestamp.as_ref()?.as_bytes()).ok()?;
        self.root.check(Role::Timestamp, &file).ok()?;
        file.timestamp().ok()
    }

    fn held_snapshot(&self) -> Option<(&[u8], Snapshot)> {
        let bytes = self.trusted.snapshot.as_ref()?.as_bytes();
        let file = File::read(bytes).ok()?;
        self.root.check(Role::Snapshot, &file).ok()?;
        Some((bytes, file.snapshot().ok()?))
    }

    fn fresh(&self, head: meta::Head, name: &str) -> Result<(), TufError> {
        match head.expires_ms > self.now_ms {
            true => Ok(()),
            false => Err(TufError::Expired { name: name.to_owned(), at_ms: head.expires_ms }),
        }
    }
}

fn check(root: &Root, role: Role, file: &File, name: &str) -> Result<(), TufError> {
    let short = |short: meta::Short| TufError::BadSignature {
        name: name.to_owned(),
        good: short.good,
        needed: short.needed,
    };
    root.check(role, file).map_err(short)
}

/// Whether bytes have the length and the digest that another file says of them; its version is judged after its
/// signatures.
fn belongs(bytes: &[u8], listed: &Listed) -> Result<(), &'static str> {
    if listed.length.is_some_and(|length| length != bytes.len() as u64) {
        return Err("its length differs");
    }
    if listed.sha256.is_some_and(|digest| digest[..] != Sha256::digest(bytes)[..]) {
        return Err("its digest differs");
    }
    Ok(())
}

fn same_version(name: &str, listed: &Listed, has: u64) -> Result<(), TufError> {
    match has == listed.version {
        true => Ok(()),
        false => Err(mixed(name, &format!("it is of version {has}, not {}", listed.version))),
    }
}

fn not_back(name: &str, seen: u64, has: u64) -> Result<(), TufError> {
    match has >= seen {
        true => Ok(()),
        false => Err(TufError::Rollback { name: name.to_owned(), seen, has }),
    }
}

fn mixed(name: &str, why: &str) -> TufError {
    TufError::MixAndMatch { name: name.to_owned(), why: why.to_owned() }
}

fn malformed(name: &str, error: &Wrong) -> TufError {
    TufError::Malformed { name: name.to_owned(), why: error.to_string() }
}

fn text(bytes: &[u8], name: &str) -> Result<String, TufError> {
    let text = std::str::from_utf8(bytes).map_err(|_| malformed(name, &json::wrong("it is no UTF-8")))?;
    Ok(text.to_owned())
}
