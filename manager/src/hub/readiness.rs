//! What keeps the hub from its work, in sentences for `/readyz`.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How long a store that was opened again is doubted while nobody has anything to store: longer than any node waits
/// before it sends again.
const DOUBT: Duration = Duration::from_secs(600);

/// The answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Whether batches are stored and acked.
    pub ready: bool,
    /// What is wrong, each with what to do.
    pub reasons: Vec<String>,
}

/// What the threads report.
#[derive(Debug, Default)]
pub(super) struct Health {
    store: Mutex<Store>,
    /// Rounds that the consumer has finished, those in which nothing could be stored too.
    rounds: AtomicU64,
}

#[derive(Debug, Default)]
struct Store {
    failed: Option<String>,
    // Open again, not yet proved by a commit; and since when.
    doubted: Option<(String, Duration)>,
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The consumer finished a round.
    pub(super) fn finished_round(&self) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
    }

    /// How many it has finished.
    pub(super) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// The store failed: nothing is taken until it was opened again.
    pub(super) fn failed(&self, why: String) {
        self.lock().failed = Some(why);
    }

    /// The store is open again. On a full disk it can always be opened, so this proves nothing yet.
    pub(super) fn reopened(&self, up: Duration) {
        let mut store = self.lock();
        store.doubted = store.failed.take().map(|why| (why, up));
    }

    /// Records or a change were stored.
    pub(super) fn stored(&self) {
        self.lock().doubted = None;
    }

    /// Why the store has to be opened again, if it has.
    pub(super) fn failure(&self) -> Option<String> {
        self.lock().failed.clone()
    }

    pub(super) fn readiness(
        &self,
        up: Duration,
        poisoned: Option<String>,
        clock: Option<String>,
    ) -> Readiness {
        let store = self.lock();
        let doubted = store.doubted.as_ref().filter(|(_, since)| up < *since + DOUBT);
        let why = store.failed.clone().or(poisoned).or_else(|| doubted.map(|(why, _)| why.clone()));
        let mut reasons: Vec<_> = why.into_iter().map(|why| format!("nothing is acked: {why}")).collect();
        let ready = reasons.is_empty();
        // A clock in doubt is not a reason to turn traffic away: data is still stored, with the time as it was reckoned.
        reasons.extend(clock);
        Readiness { ready, reasons }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(health: &Health, up_s: u64) -> bool {
        health.readiness(Duration::from_secs(up_s), None, None).ready
    }

    #[test]
    fn a_store_that_was_opened_again_is_ready_when_it_has_stored_something() {
        let health = Health::default();
        assert!(ready(&health, 0));
        health.failed("no space".to_owned());
        assert!(!ready(&health, 1) && health.failure().is_some());
        health.reopened(Duration::from_secs(2));
        assert!(!ready(&health, 3) && health.failure().is_none());
        health.stored();
        assert!(ready(&health, 4));
    }

    #[test]
    fn a_fleet_with_nothing_to_say_does_not_leave_the_hub_in_doubt_for_ever() {
        let health = Health::default();
        health.failed("no space".to_owned());
        health.reopened(Duration::from_secs(10));
        assert!(!ready(&health, 609));
        assert!(ready(&health, 610));
    }

    #[test]
    fn what_is_wrong_is_said_in_sentences() {
        let health = Health::default();
        let told = health.readiness(
            Duration::ZERO,
            Some("the disk is gone".to_owned()),
            Some("the clock".to_owned()),
        );
        assert!(!told.ready && told.reasons[0] == "nothing is acked: the disk is gone", "{told:?}");
        assert!(
            told.reasons[1].contains("clock")
                && health.readiness(Duration::ZERO, None, Some(String::new())).ready
        );
    }
}
