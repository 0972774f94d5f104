//! Keeps the log short: a client that is refused comes back every few seconds for ever.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::clock;

/// How often one client is complained about.
const AGAIN: Duration = Duration::from_secs(60);
/// Clients remembered; beyond them nobody is complained about for a while.
const CLIENTS: usize = 1_024;

/// When whom was complained about last.
#[derive(Debug, Default)]
pub(super) struct Complaints(Mutex<HashMap<String, Duration>>);

impl Complaints {
    /// Whether it is time for a line about this client.
    pub(super) fn is_due(&self, who: &str) -> bool {
        self.is_due_at(who, clock::mono())
    }

    fn is_due_at(&self, who: &str, now: Duration) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(who).is_some_and(|at| now < *at + AGAIN) {
            return false;
        }
        if told.len() >= CLIENTS {
            told.retain(|_, at| now < *at + AGAIN);
            if told.len() >= CLIENTS {
                return false;
            }
        }
        told.insert(who.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_is_one_line_a_minute_and_many_are_bounded() {
        let complaints = Complaints::default();
        let at = Duration::from_secs;
        assert!(complaints.is_due_at("a", at(0)) && !complaints.is_due_at("a", at(59)));
        assert!(complaints.is_due_at("b", at(59)) && complaints.is_due_at("a", at(60)));
        let lines = (0..5_000).filter(|n| complaints.is_due_at(&n.to_string(), at(70))).count();
        assert_eq!(lines, CLIENTS - 2);
        assert!(complaints.is_due_at("c", at(140)));
    }
}
