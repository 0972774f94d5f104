//! Devices that were told what to run and have not said since what they run.
//!
//! On disk before a device is told: it may come up with what it fetched long after this process, or the whole node, has
//! started anew, and what it said before proves nothing any more.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use fleet_schemas::{DeviceId, update::Digest};
use tracing::warn;

use crate::identity::folder::replace;

/// All of them.
#[derive(Debug)]
pub(super) struct Doubts {
    path: PathBuf,
    told: BTreeMap<String, Told>,
}

#[derive(Debug)]
struct Told {
    /// To run which file.
    digest: Digest,
    /// Words on its firmware that had been heard when it fell into doubt, by the count of this process.
    since: u64,
    /// By this process, which knows whether the file was fetched.
    by_us: bool,
}

impl Doubts {
    /// As they are on disk.
    pub(super) fn open(path: PathBuf) -> Self {
        let read = super::by_device::<Digest>(&path)
            .inspect_err(
                |error| warn!(path = %path.display(), %error, "which devices are in doubt cannot be read"),
            )
            .unwrap_or_default();
        let told = |digest| Told { digest, since: 0, by_us: false };
        Self { path, told: read.into_iter().map(|(id, digest)| (id, told(digest))).collect() }
    }

    /// A device is going to be told; `words` is how many words on its firmware were heard of it so far.
    ///
    /// # Errors
    /// It is not on disk: the device must not be told.
    pub(super) fn begin(&mut self, id: &DeviceId, digest: Digest, words: u64) -> io::Result<()> {
        // What it was told before, and has not answered for, may be what it comes up with.
        let by_us = !self.holds(id, words);
        self.told.insert(id.as_str().to_owned(), Told { digest, since: words, by_us });
        self.save()
    }

    /// It is known what the device runs.
    pub(super) fn settle(&mut self, id: &DeviceId) {
        if self.told.remove(id.as_str()).is_some()
            && let Err(error) = self.save()
        {
            // After the next start it is in doubt again until it says something.
            warn!(path = %self.path.display(), %error, "that a device is not in doubt any more is not on disk");
        }
    }

    /// What the device said before now proves nothing.
    pub(super) fn renew(&mut self, id: &DeviceId, words: u64) {
        if let Some(told) = self.told.get_mut(id.as_str()) {
            told.since = words;
        }
    }

    /// Whether the last word of the device is older than what it was told.
    pub(super) fn holds(&self, id: &DeviceId, words: u64) -> bool {
        self.told.get(id.as_str()).is_some_and(|told| words <= told.since)
    }

    /// Whether the device may have this file, or another that it was told to run before; `fetched`: somebody fetched it
    /// from this process.
    pub(super) fn may_have_it(&self, id: &DeviceId, digest: Digest, fetched: bool) -> bool {
        self.told.get(id.as_str()).is_some_and(|told| fetched || !told.by_us || told.digest != digest)
    }

    fn save(&self) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let all: BTreeMap<_, _> = self.told.iter().map(|(id, told)| (id, told.digest)).collect();
        replace(&self.path, &serde_json::to_string_pretty(&all).expect("texts under text keys"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_is_there_after_a_start_and_ends_with_a_word() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("devices/told.json");
        let (id, one, other) = (DeviceId::parse("shed").unwrap(), Digest([1; 32]), Digest([2; 32]));
        let mut doubts = Doubts::open(path.clone());
        assert!(!doubts.holds(&id, 0) && !doubts.may_have_it(&id, one, true), "it was told nothing");
        doubts.begin(&id, one, 3).unwrap();
        assert!(doubts.holds(&id, 3) && !doubts.holds(&id, 4));
        assert!(doubts.may_have_it(&id, one, true) && !doubts.may_have_it(&id, one, false));
        doubts.renew(&id, 4);
        assert!(doubts.holds(&id, 4));
        // Who fetched what from the process before, nobody knows.
        let mut doubts = Doubts::open(path.clone());
        assert!(doubts.holds(&id, 0) && !doubts.holds(&id, 1) && doubts.may_have_it(&id, one, false));
        doubts.begin(&id, other, 0).unwrap();
        assert!(doubts.may_have_it(&id, other, false), "it may have the first");
        doubts.begin(&id, other, 1).unwrap();
        assert!(!doubts.may_have_it(&id, other, false), "it said what it runs before it was told that");
        doubts.settle(&id);
        assert!(!doubts.holds(&id, 0));
        assert!(!Doubts::open(path.clone()).holds(&id, 0));
        fs::write(&path, "rubbish").unwrap();
        assert!(!Doubts::open(path).holds(&id, 0));
    }
}
