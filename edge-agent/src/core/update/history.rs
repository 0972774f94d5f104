//! What a node remembers of the releases of one name: what it confirmed, and how high their epochs were.

use fleet_schemas::{MetricName, update::Digest};
use serde::{Deserialize, Serialize};

/// Confirmed releases that are remembered of each name: those that a rollback may go to.
const CONFIRMED: usize = 8;

/// A release that ran here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Its version.
    pub version: MetricName,
    /// Its digest.
    pub digest: Digest,
    /// Its security epoch.
    #[serde(default)]
    pub epoch: u64,
}

/// Of one kind and name, for the node itself or one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The highest epoch that was confirmed.
    #[serde(default)]
    pub epoch: u64,
    /// What was confirmed, the latest first: the first is the last good one, the next is the one before.
    #[serde(default)]
    pub confirmed: Vec<Release>,
}

impl History {
    /// The last good release.
    #[must_use]
    pub fn last_good(&self) -> Option<&Release> {
        self.confirmed.first()
    }

    /// Whether a digest was confirmed here.
    #[must_use]
    pub fn knows(&self, digest: Digest) -> bool {
        self.confirmed.iter().any(|release| release.digest == digest)
    }

    /// With one more release confirmed.
    #[must_use]
    pub fn with(&self, release: Release) -> Self {
        let epoch = self.epoch.max(release.epoch);
        let digest = release.digest;
        let others = self.confirmed.iter().filter(|other| other.digest != digest).cloned();
        let confirmed = [release].into_iter().chain(others).take(CONFIRMED).collect();
        Self { epoch, confirmed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(n: u8, epoch: u64) -> Release {
        Release { version: MetricName::parse(&format!("1.{n}.0")).unwrap(), digest: Digest([n; 32]), epoch }
    }

    #[test]
    fn the_latest_is_first_once_and_the_highest_epoch_stays() {
        let mut history = History::default();
        for n in 0..20 {
            history = history.with(release(n, u64::from(n == 3)));
        }
        assert_eq!((history.confirmed.len(), history.epoch), (CONFIRMED, 1));
        assert!(history.knows(Digest([19; 32])) && !history.knows(Digest([3; 32])));
        let again = history.with(release(18, 0));
        assert_eq!(again.last_good(), Some(&release(18, 0)));
        assert_eq!(again.confirmed.len(), CONFIRMED);
        assert_eq!(again.confirmed[1], release(19, 0));
    }
}
