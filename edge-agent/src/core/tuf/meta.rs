//! The four roles as they stand in their files (TUF 1.0 §4), and who signed them.
//!
//! Judges one file by itself; what it means beside the others is decided in the room above.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    json::{Json, Map, Wrong, field, wrong},
    key::{Key, hex},
};

/// Most keys of a root, and of one of its roles.
const KEYS: usize = 32;
/// Most signatures of a file.
const SIGNATURES: usize = 32;
/// Last version that a file may have: the next one can still be counted.
const VERSION: u64 = u64::MAX - 1;

/// A role at the top; there are no others here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Says who may sign what.
    Root,
    /// Says which snapshot is the last, at short intervals.
    Timestamp,
    /// Says which files of metadata belong together.
    Snapshot,
    /// Says what may run.
    Targets,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Root, Self::Timestamp, Self::Snapshot, Self::Targets];

    /// As it stands in metadata.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Timestamp => "timestamp",
            Self::Snapshot => "snapshot",
            Self::Targets => "targets",
        }
    }
}

/// A file, taken apart: what is signed, and the signatures.
pub(super) struct File {
    signed: Json,
    signatures: Vec<(String, Vec<u8>)>,
}

/// What every role begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) version: u64,
    pub(super) expires_ms: i64,
}

/// Whose signatures a role needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signers {
    ids: BTreeSet<String>,
    threshold: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) head: Head,
    pub(super) consistent: bool,
    keys: BTreeMap<String, Key>,
    signers: BTreeMap<Role, Signers>,
}

/// What one file says of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) version: u64,
    pub(super) length: Option<u64>,
    pub(super) sha256: Option<[u8; 32]>,
}

pub(super) struct Timestamp {
    pub(super) head: Head,
    pub(super) snapshot: Listed,
}

pub(super) struct Snapshot {
    pub(super) head: Head,
    pub(super) files: BTreeMap<String, Listed>,
}

pub(super) struct Targets {
    pub(super) head: Head,
    pub(super) targets: Map,
}

/// How many distinct keys signed, and how many are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Short {
    pub(super) good: usize,
    pub(super) needed: usize,
}

impl File {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Wrong> {
        let Json::Map(mut file) = Json::read(bytes)? else { return Err(wrong("it is no object")) };
        let listed = field(&file, "signatures")?.list()?;
        if listed.len() > SIGNATURES {
            return Err(wrong(format!("it has {} signatures; {SIGNATURES} are the most", listed.len())));
        }
        let mut signatures: Vec<(String, Vec<u8>)> = Vec::with_capacity(listed.len());
        for one in listed {
            let (id, bytes) = (field(one.map()?, "keyid")?.text()?, field(one.map()?, "sig")?.text()?);
            if signatures.iter().any(|(known, _)| known == id) {
                return Err(wrong("one key signs it twice"));
            }
            let bytes =
                hex(bytes).ok_or_else(|| wrong("a signature is not written in hexadecimal digits"))?;
            signatures.push((id.to_owned(), bytes));
        }
        let signed = file.remove("signed").ok_or_else(|| wrong("\"signed\" is missing"))?;
        Ok(Self { signed, signatures })
    }

    /// The map of a role, and its head.
    fn role(&self, role: Role) -> Result<(&Map, Head), Wrong> {
        let map = self.signed.map()?;
        let kind = field(map, "_type")?.text()?;
        if kind != role.as_str() {
            return Err(wrong(format!("it is of the role {kind:.20}, not {}", role.as_str())));
        }
        let spec = field(map, "spec_version")?.text()?;
        if spec.split('.').next() != Some("1") {
            return Err(wrong(format!("it is of version {spec:.20} of the specification; 1 is known here")));
        }
        let version = version(field(map, "version")?)?;
        let expires_ms = time(field(map, "expires")?.text()?)?;
        Ok((map, Head { version, expires_ms }))
    }

    pub(super) fn root(&self) -> Result<Root, Wrong> {
        let (map, head) = self.role(Role::Root)?;
        let listed = field(map, "keys")?.map()?;
        if listed.len() > KEYS {
            return Err(wrong(format!("it has {} keys; {KEYS} are the most", listed.len())));
        }
        let read = |(id, key): (&String, &Json)| Ok((id.clone(), Key::read(id, key)?));
        let keys: BTreeMap<_, _> = listed.iter().map(read).collect::<Result<_, Wrong>>()?;
        let roles = field(map, "roles")?.map()?;
        let mut signers = BTreeMap::new();
        for role in Role::ALL {
            signers.insert(role, Signers::read(field(roles, role.as_str())?.map()?, &keys)?);
        }
        let consistent = field(map, "consistent_snapshot")?.truth()?;
        Ok(Root { head, consistent, keys, signers })
    }

    pub(super) fn timestamp(&self) -> Result<Timestamp, Wrong> {
        let (map, head) = self.role(Role::Timestamp)?;
        let snapshot = Listed::read(field(field(map, "meta")?.map()?, "snapshot.json")?.map()?)?;
        Ok(Timestamp { head, snapshot })
    }

    pub(super) fn snapshot(&self) -> Result<Snapshot, Wrong> {
        let (map, head) = self.role(Role::Snapshot)?;
        let read = |(name, listed): (&String, &Json)| Ok((name.clone(), Listed::read(listed.map()?)?));
        let files = field(map, "meta")?.map()?.iter().map(read).collect::<Result<_, Wrong>>()?;
        Ok(Snapshot { head, files })
    }

    pub(super) fn targets(&self) -> Result<Targets, Wrong> {
        let (map, head) = self.role(Role::Targets)?;
        Ok(Targets { head, targets: field(map, "targets")?.map()?.clone() })
    }
}

impl Signers {
    fn read(map: &Map, keys: &BTreeMap<String, Key>) -> Result<Self, Wrong> {
        let listed = field(map, "keyids")?.list()?;
        let ids: BTreeSet<String> =
            listed.iter().map(|id| id.text().map(str::to_owned)).collect::<Result<_, _>>()?;
        if ids.len() != listed.len() {
            return Err(wrong("a role names a key twice"));
        }
        if ids.iter().any(|id| !keys.contains_key(id)) {
            return Err(wrong("a role names a key that is not there"));
        }
        // Two ids may be one key, written in two ways.
        let distinct: BTreeSet<&Key> = ids.iter().filter_map(|id| keys.get(id)).collect();
        let threshold = usize::try_from(field(map, "threshold")?.count()?).unwrap_or(usize::MAX);
        if threshold == 0 || threshold > distinct.len() {
            return Err(wrong(format!("a role asks for {threshold} of {} keys", distinct.len())));
        }
        Ok(Self { ids, threshold })
    }
}

impl Root {
    /// Whether enough distinct keys of a role signed a file.
    pub(super) fn check(&self, role: Role, file: &File) -> Result<(), Short> {
        let signers = &self.signers[&role];
        let message = file.signed.canonical();
        let mut good: BTreeSet<&Key> = BTreeSet::new();
        for (id, signature) in file.signatures.iter().filter(|(id, _)| signers.ids.contains(id)) {
            let key = &self.keys[id];
            if !good.contains(key) && key.signed(&message, signature) {
                good.insert(key);
            }
        }
        match good.len() >= signers.threshold {
            true => Ok(()),
            false => Err(Short { good: good.len(), needed: signers.threshold }),
        }
    }

    /// Whose signatures a role needs.
    pub(super) fn signers(&self, role: Role) -> &Signers {
        &self.signers[&role]
    }
}

impl Listed {
    fn read(map: &Map) -> Result<Self, Wrong> {
        let sha256 = map.get("hashes").map(|hashes| sha256(hashes.map()?)).transpose()?;
        Ok(Self {
            version: version(field(map, "version")?)?,
            length: map.get("length").map(Json::count).transpose()?,
            sha256,
        })
    }
}

/// The SHA-256 in a map of hashes.
pub(super) fn sha256(hashes: &Map) -> Result<[u8; 32], Wrong> {
    let bytes = hex(field(hashes, "sha256")?.text()?).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| wrong("a SHA-256 does not have 64 hexadecimal digits"))
}

fn version(json: &Json) -> Result<u64, Wrong> {
    match json.count()? {
        0 => Err(wrong("a version is 0; the first is 1")),
        VERSION.. => Err(wrong("a version is too high")),
        version => Ok(version),
    }
}

/// A time as metadata has it, `2026-11-30T12:00:00Z`, in Unix milliseconds.
fn time(text: &str) -> Result<i64, Wrong> {
    let shaped = text.len() == 20
        && text.bytes().zip(*b"0000-00-00T00:00:00Z").all(|(byte, like)| match like {
            b'0' => byte.is_ascii_digit(),
            like => byte == like,
        });
    let read = shaped.then(|| text.parse::<jiff::Timestamp>().ok()).flatten();
    let read = read.ok_or_else(|| wrong("a time is not written as 2026-11-30T12:00:00Z"))?;
    Ok(read.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_one_way() {
        assert_eq!(time("1970-01-01T00:00:01Z"), Ok(1_000));
        for bad in [
            "",
            "1970-01-01T00:00:01",
            "1970-01-01T00:00:01+00:00",
            "1970-01-01T00:00:01.5Z",
            "1970-01-01t00:00:01Z",
            "1970-13-01T00:00:01Z",
            "19700101T000001Z0000",
        ] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }
}
