//! What keeps the hub from its work, in sentences for `/readyz`.

use std::sync::{Mutex, PoisonError};

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
    store: Mutex<Option<String>>,
}

impl Health {
    /// The store failed, or works again.
    pub(super) fn set_store(&self, error: Option<String>) {
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    pub(super) fn store(&self) -> Option<String> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn readiness(&self, poisoned: Option<String>, clock_jumped: bool) -> Readiness {
        let store = self.store().or(poisoned);
        let ready = store.is_none();
        let mut reasons: Vec<_> = store.into_iter().map(|why| format!("nothing is acked: {why}")).collect();
        if clock_jumped {
            // Not a reason to turn traffic away: data is still stored, with the time reckoned from the start.
            reasons.push(
                "the system clock jumped by more than a day and is not followed: set it, then restart".into(),
            );
        }
        Readiness { ready, reasons }
    }
}
