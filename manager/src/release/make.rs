//! Makes metadata (TUF 1.0 §4): roots, targets, snapshots, timestamps, and their signatures. Pure but for the keys.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU64,
    time::Duration,
};

use fleet_schemas::update::{Custom, Digest, Target};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tough::{
    TargetName,
    schema::{
        self, Hashes, Metafile, Role, RoleKeys, RoleType, Root, Signature, Signed, Snapshot, Targets,
        Timestamp, key,
    },
};

use super::{Key, MakeError};

/// The version of the specification.
const SPEC: &str = "1.0.31";
/// How long a root is good.
pub const ROOT_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long targets are good.
pub const TARGETS_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a snapshot is good; made anew after half of that.
pub const SNAPSHOT_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a timestamp is good; made anew after half of that.
pub const TIMESTAMP_LIFE: Duration = Duration::from_secs(24 * 3600);

/// A target and what is signed of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its length in bytes.
    pub length: u64,
    /// The SHA-256 of its bytes.
    pub digest: Digest,
    /// What else is signed.
    pub custom: Custom,
}

/// Whose signatures a root asks for.
#[derive(Debug, Clone)]
pub struct Signers {
    /// Keys of the root; one of them is enough.
    pub root: Vec<key::Key>,
    /// Keys of the targets; one of them is enough.
    pub targets: Vec<key::Key>,
    /// The hub's key for snapshots.
    pub snapshot: key::Key,
    /// The hub's key for timestamps.
    pub timestamp: key::Key,
}

/// A root of this version.
///
/// # Errors
/// [`MakeError`].
pub fn root(version: u64, signers: &Signers, now_ms: i64) -> Result<Root, MakeError> {
    let Signers { root, targets, snapshot, timestamp } = signers;
    let (mut keys, mut roles) = (HashMap::new(), HashMap::new());
    let of = [
        (RoleType::Root, &root[..]),
        (RoleType::Targets, &targets[..]),
        (RoleType::Snapshot, std::slice::from_ref(snapshot)),
        (RoleType::Timestamp, std::slice::from_ref(timestamp)),
    ];
    for (role, holders) in of {
        let mut ids = Vec::new();
        for key in holders {
            let id = key.key_id()?;
            keys.insert(id.clone(), key.clone());
            ids.push(id);
        }
        roles.insert(role, RoleKeys { keyids: ids, threshold: NonZeroU64::MIN, _extra: HashMap::new() });
    }
    Ok(Root {
        spec_version: SPEC.to_owned(),
        consistent_snapshot: true,
        version: number(version)?,
        expires: ends(now_ms, ROOT_LIFE)?,
        keys,
        roles,
        _extra: HashMap::new(),
    })
}

/// Targets of this version.
///
/// # Errors
/// [`MakeError`].
pub fn targets(version: u64, entries: &BTreeMap<Target, Entry>, now_ms: i64) -> Result<Targets, MakeError> {
    let mut targets = Targets::new(SPEC.to_owned(), number(version)?, ends(now_ms, TARGETS_LIFE)?);
    targets.delegations = None;
    for (target, entry) in entries {
        let custom = serde_json::to_value(&entry.custom)?;
        let listed = schema::Target {
            length: entry.length,
            hashes: hashes(&entry.digest.0),
            custom: serde_json::from_value(custom)?,
            _extra: HashMap::new(),
        };
        let name = TargetName::new(target.to_string()).map_err(|error| MakeError::Name(error.to_string()))?;
        targets.add_target(name, listed);
    }
    Ok(targets)
}

/// What is signed, by target.
///
/// # Errors
/// [`MakeError::Name`] and [`MakeError::Json`], when it is nothing that nodes would take.
pub fn entries(targets: &Targets) -> Result<BTreeMap<Target, Entry>, MakeError> {
    let mut entries = BTreeMap::new();
    for (name, listed) in &targets.targets {
        let target = name.raw().parse::<Target>().map_err(|error| MakeError::Name(error.to_string()))?;
        let digest: [u8; 32] = listed
            .hashes
            .sha256
            .to_vec()
            .try_into()
            .map_err(|_| MakeError::Name(format!("the SHA-256 of {target} does not have 32 bytes")))?;
        let custom = serde_json::to_value(&listed.custom)?;
        let custom = serde_json::from_value(custom)?;
        entries.insert(target, Entry { length: listed.length, digest: Digest(digest), custom });
    }
    Ok(entries)
}

/// A snapshot that names these targets.
pub(super) fn snapshot(version: u64, targets: (u64, &[u8]), now_ms: i64) -> Result<Snapshot, MakeError> {
    let mut snapshot = Snapshot::new(SPEC.to_owned(), number(version)?, ends(now_ms, SNAPSHOT_LIFE)?);
    snapshot.meta.insert("targets.json".to_owned(), listed(targets)?);
    Ok(snapshot)
}

/// A timestamp that names this snapshot.
pub(super) fn timestamp(version: u64, snapshot: (u64, &[u8]), now_ms: i64) -> Result<Timestamp, MakeError> {
    let mut timestamp = Timestamp::new(SPEC.to_owned(), number(version)?, ends(now_ms, TIMESTAMP_LIFE)?);
    timestamp.meta.insert("snapshot.json".to_owned(), listed(snapshot)?);
    Ok(timestamp)
}

/// Signs with these keys; the bytes of the file.
///
/// # Errors
/// [`MakeError`].
pub fn sign<T: Role + Serialize>(role: T, keys: &[&Key]) -> Result<String, MakeError> {
    let message = role.canonical_form()?;
    let mut signatures = Vec::new();
    for key in keys {
        let signature = Signature { keyid: key.public().key_id()?, sig: key.sign(&message).into() };
        // One key may hold two roles.
        if !signatures.contains(&signature) {
            signatures.push(signature);
        }
    }
    Ok(serde_json::to_string(&Signed { signed: role, signatures })? + "\n")
}

/// Reads a file of a role. Judges no signature.
///
/// # Errors
/// [`MakeError::Json`].
pub fn read<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<Signed<T>, MakeError> {
    Ok(serde_json::from_slice(bytes)?)
}

/// When a role ends, Unix milliseconds.
#[must_use]
pub fn expires_ms<T: Role>(role: &T) -> i64 {
    role.expires().as_millisecond()
}

fn listed((version, bytes): (u64, &[u8])) -> Result<Metafile, MakeError> {
    Ok(Metafile {
        length: Some(bytes.len() as u64),
        hashes: Some(hashes(&Sha256::digest(bytes).into())),
        version: number(version)?,
        _extra: HashMap::new(),
    })
}

fn hashes(sha256: &[u8; 32]) -> Hashes {
    Hashes { sha256: sha256.to_vec().into(), _extra: HashMap::new() }
}

fn number(version: u64) -> Result<NonZeroU64, MakeError> {
    NonZeroU64::new(version).ok_or(MakeError::Version)
}

/// So long from now on, in whole seconds, as metadata has times.
fn ends<T: std::str::FromStr>(now_ms: i64, life: Duration) -> Result<T, MakeError> {
    let at_s = now_ms.div_euclid(1000).saturating_add(i64::try_from(life.as_secs()).unwrap_or(i64::MAX));
    let at = jiff::Timestamp::from_second(at_s).map_err(|_| MakeError::Time(now_ms))?;
    at.to_string().parse().map_err(|_| MakeError::Time(now_ms))
}
