//! Things that change often and are told once a second. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Time between two messages of one thing, at least.
const EVERY: Duration = Duration::from_secs(1);

/// What waits to be told.
#[derive(Debug)]
pub(super) struct Due<K> {
    waiting: BTreeSet<K>,
    told: BTreeMap<K, Duration>,
}

impl<K> Default for Due<K> {
    fn default() -> Self {
        Self { waiting: BTreeSet::new(), told: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Due<K> {
    /// It changed.
    pub(super) fn changed(&mut self, key: K) {
        self.waiting.insert(key);
    }

    /// What may be told now, at most `most`; the clock is monotonic. It counts as told.
    pub(super) fn take(&mut self, now: Duration, most: usize) -> Vec<K> {
        // What was told long ago holds nothing back.
        self.told.retain(|_, told| now < *told + EVERY);
        let ready: Vec<_> =
            self.waiting.iter().filter(|key| !self.told.contains_key(key)).take(most).cloned().collect();
        for key in &ready {
            self.waiting.remove(key);
            self.told.insert(key.clone(), now);
        }
        ready
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.told.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_told_at_once_and_then_once_a_second() {
        let ms = Duration::from_millis;
        let mut due = Due::default();
        due.changed("a");
        assert_eq!(due.take(ms(0), 9), ["a"]);
        due.changed("a");
        due.changed("a");
        due.changed("b");
        assert_eq!(due.take(ms(999), 9), ["b"]);
        assert!(due.is_waiting());
        assert_eq!(due.take(ms(1_000), 9), ["a"]);
        assert_eq!(due.take(ms(5_000), 9), [""; 0]);
        for key in ["c", "d", "e"] {
            due.changed(key);
        }
        assert_eq!((due.take(ms(5_000), 2), due.take(ms(5_000), 2)), (vec!["c", "d"], vec!["e"]));
    }
}
