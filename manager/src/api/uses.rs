//! When operators' tokens were last used: known at once, written down at most once an hour for each, so that looking does
//! not write.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Api, rights::Caller};
use crate::core::{
    identity::{Change, Hash, NAMES, Operator, USE_KEPT_MS},
    registry::Intent,
};

/// Last uses by the hash of the token, since the start.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<HashMap<Hash, Use>>);

#[derive(Debug, Clone, Copy)]
struct Use {
    at_ms: i64,
    /// When it was last handed to the store.
    told_ms: i64,
}

impl Uses {
    /// Takes a use; whether it is to be written.
    fn take(&self, token: Hash, kept_ms: Option<i64>, now_ms: i64) -> bool {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Of operators that were removed since: there are never more than so many.
        if uses.len() >= 2 * NAMES {
            uses.clear();
        }
        let known = uses.entry(token).or_insert(Use { at_ms: now_ms, told_ms: kept_ms.unwrap_or(i64::MIN) });
        known.at_ms = now_ms;
        // A clock that was set back makes it due, too.
        let is_due = now_ms.saturating_sub(known.told_ms) >= USE_KEPT_MS || known.told_ms > now_ms;
        if is_due {
            known.told_ms = now_ms;
        }
        is_due
    }

    /// When an operator's token was last used; none: never.
    pub(super) fn last(&self, operator: &Operator) -> Option<i64> {
        let uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uses.get(&operator.token).map(|known| known.at_ms).or(operator.used_ms)
    }
}

impl Api {
    /// Notes that a caller's token is used.
    pub(super) fn used(self: &Arc<Self>, caller: &Caller) {
        let Some(token) = caller.token else { return };
        let now_ms = self.hub.clock().now().wall_ms;
        let kept_ms = self.hub.with_identities(|known| known.operators.get(&caller.name)?.used_ms);
        if !self.uses.take(token, kept_ms, now_ms) {
            return;
        }
        let (api, name) = (self.clone(), caller.name.clone());
        tokio::spawn(async move {
            let used = Intent::Identity(Change::Used { name, at_ms: now_ms });
            // One that was removed meanwhile has none; a store that fails has more to say than this.
            if let Err(error) = api.hub.intend("hub", used).await {
                tracing::debug!(%error, "the use of a token was not written down");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_written_once_an_hour() {
        let uses = Uses::default();
        let hour = USE_KEPT_MS;
        assert!(uses.take([1; 32], None, 10), "it was never used");
        assert!(!uses.take([1; 32], None, 11) && !uses.take([1; 32], None, 9 + hour));
        assert!(uses.take([2; 32], None, 12), "another");
        assert!(uses.take([1; 32], None, 10 + hour));
        assert!(!uses.take([3; 32], Some(5), 6), "it was written before the start");
        assert!(uses.take([3; 32], Some(5), 5 + hour));
        assert!(uses.take([1; 32], None, 3), "the clock was set back");
    }
}
