//! How fast a node publishes, held against its limit (a token bucket, kept as the time at which it would be full).
//!
//! Pure: counts what came and says until when nothing more is to be read.

use std::time::{Duration, Instant};

use crate::PublishLimit;

/// What one session has used of its limit.
#[derive(Debug)]
pub(crate) struct Pace {
    messages_paid: Instant,
    bytes_paid: Instant,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self { messages_paid: now, bytes_paid: now }
    }

    /// Counts what came at `now`; gives the time until which reading has to wait, if it has to.
    pub(crate) fn spend(
        &mut self,
        limit: &PublishLimit,
        messages: usize,
        bytes: usize,
        now: Instant,
    ) -> Option<Instant> {
        let messages = spend(&mut self.messages_paid, limit.messages_per_s, messages, limit.burst, now);
        let bytes = spend(&mut self.bytes_paid, limit.bytes_per_s, bytes, limit.burst, now);
        messages.max(bytes)
    }
}

fn spend(paid: &mut Instant, rate: u64, spent: usize, burst: Duration, now: Instant) -> Option<Instant> {
    if rate == 0 {
        return None;
    }
    let nanos = u128::try_from(spent).unwrap_or(u128::MAX).saturating_mul(1_000_000_000) / u128::from(rate);
    *paid = (*paid).max(now) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    let ahead = paid.duration_since(now);
    (ahead > burst).then(|| now + (ahead - burst))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const LIMIT: PublishLimit =
        PublishLimit { messages_per_s: 10, bytes_per_s: 1_000, burst: Duration::from_secs(2) };

    #[test]
    fn a_burst_passes_and_what_is_above_it_waits_as_long_as_it_takes() {
        let start = clock::now();
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(start);
        assert_eq!(pace.spend(&LIMIT, 20, 100, start), None);
        assert_eq!(pace.spend(&LIMIT, 10, 100, start), Some(start + second));
        assert_eq!(pace.spend(&LIMIT, 0, 2_800, start), Some(start + second), "the worse of both");
        assert_eq!(pace.spend(&LIMIT, 10, 0, start + second), Some(start + 2 * second));
        assert_eq!(
            pace.spend(&LIMIT, 10, 0, start + 60 * second),
            None,
            "rest is not saved beyond the burst"
        );
        assert_eq!(pace.spend(&LIMIT, 11, 0, start + 60 * second), Some(start + 60 * second + second / 10));
    }

    #[test]
    fn zero_is_no_limit() {
        let now = clock::now();
        let off = PublishLimit { messages_per_s: 0, bytes_per_s: 0, ..LIMIT };
        assert_eq!(Pace::new(now).spend(&off, usize::MAX, usize::MAX, now), None);
    }
}
