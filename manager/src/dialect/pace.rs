//! How often somebody may ask. Pure.

use std::{collections::BTreeMap, time::Duration};

/// Who is remembered; the one that was quiet the longest is forgotten first.
const REMEMBERED: usize = 16_384;

/// One bucket for each of them.
#[derive(Debug)]
pub(super) struct Pace<K> {
    each: Duration,
    burst: u32,
    // The time by which the bucket is full again.
    full_at: BTreeMap<K, Duration>,
}

impl<K: Ord + Clone> Pace<K> {
    /// One more every `each`, and `burst` after a rest.
    pub(super) fn new(each: Duration, burst: u32) -> Self {
        Self { each, burst, full_at: BTreeMap::new() }
    }

    /// Takes one.
    ///
    /// # Errors
    /// When there is one again, in whole seconds.
    pub(super) fn take(&mut self, key: K, now: Duration) -> Result<(), u64> {
        if self.full_at.len() >= REMEMBERED && !self.full_at.contains_key(&key) {
            self.full_at.retain(|_, full_at| *full_at > now);
            let quiet = self.full_at.iter().min_by_key(|(_, full_at)| **full_at).map(|(key, _)| key.clone());
            if let Some(quiet) = quiet.filter(|_| self.full_at.len() >= REMEMBERED) {
                self.full_at.remove(&quiet);
            }
        }
        let full_at = self.full_at.entry(key).or_insert(now);
        let next = (*full_at).max(now) + self.each;
        let over = next.saturating_sub(now + self.each * self.burst);
        if !over.is_zero() {
            return Err(over.as_secs().max(1));
        }
        *full_at = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_at_a_time() {
        let mut pace = Pace::new(Duration::from_secs(2), 3);
        let at = Duration::from_secs;
        assert_eq!([0; 4].map(|_| pace.take("a", at(10))), [Ok(()), Ok(()), Ok(()), Err(2)]);
        assert_eq!(pace.take("b", at(10)), Ok(()));
        assert_eq!([pace.take("a", at(12)), pace.take("a", at(12))], [Ok(()), Err(2)]);
        assert_eq!(pace.take("a", at(60)), Ok(()));
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut pace = Pace::new(Duration::from_secs(2), 3);
        for who in 0..20_000 {
            pace.take(who, Duration::from_secs(10)).unwrap();
        }
        assert_eq!(pace.full_at.len(), REMEMBERED);
    }
}
