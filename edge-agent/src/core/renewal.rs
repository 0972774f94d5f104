//! When a node's certificate is renewed, and by what time that is judged. Pure.

use std::time::Duration;

use super::Now;

/// By what time certificates are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// A time that is surely past, Unix milliseconds.
    pub bound_ms: i64,
    /// What the hub said last, Unix milliseconds, and the time since boot at which it said so.
    pub heard: Option<(i64, Duration)>,
}

impl Hours {
    /// The time, Unix milliseconds: the hub's where it was heard since the start; else the system's, where that is
    /// trusted and not surely wrong.
    #[must_use]
    pub fn at(self, now: Now) -> i64 {
        match self.heard {
            Some((hub_ms, at)) => {
                let since = i64::try_from(now.up.saturating_sub(at).as_millis()).unwrap_or(i64::MAX);
                hub_ms.saturating_add(since)
            }
            None => match now.clock {
                fleet_schemas::batch::Clock::Synced => self.bound_ms.max(now.wall_ms),
                fleet_schemas::batch::Clock::Unsynced => self.bound_ms,
            },
        }
    }
}

/// The life of the certificate that a node uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Life {
    /// When it begins, Unix milliseconds.
    pub not_before_ms: i64,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: i64,
    /// 0 to 1, another one for each certificate: spreads the renewals of a fleet that joined at once.
    pub share: f64,
}

impl Life {
    /// When it is to be renewed: after two thirds to three quarters of its life.
    #[must_use]
    pub fn renew_ms(self) -> i64 {
        self.not_before_ms.saturating_add((self.span_ms() * (2.0 / 3.0 + self.share / 12.0)) as i64)
    }

    /// When a session that it opened makes way for one of its successor: after five sixths of its life. Until then
    /// the next reconnect does.
    #[must_use]
    pub fn outdated_ms(self) -> i64 {
        self.not_before_ms.saturating_add((self.span_ms() * 5.0 / 6.0) as i64)
    }

    fn span_ms(self) -> f64 {
        self.not_after_ms.saturating_sub(self.not_before_ms) as f64
    }
}

/// The pause after so many failures in a row, before jitter: doubled each time, up to `last`.
#[must_use]
pub fn pause(failures: u32, first: Duration, last: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(last)
}

#[cfg(test)]
mod tests {
    use fleet_schemas::batch::Clock;

    use super::*;

    const DAY_MS: i64 = 86_400_000;

    fn now(wall_ms: i64, up_s: u64, clock: Clock) -> Now {
        Now { wall_ms, up: Duration::from_secs(up_s), clock }
    }

    #[test]
    fn a_board_in_1970_goes_by_the_bound_and_then_by_the_hub() {
        let hours = Hours { bound_ms: 1_000 * DAY_MS, heard: None };
        assert_eq!(hours.at(now(0, 10, Clock::Unsynced)), 1_000 * DAY_MS);
        let heard = Some((1_200 * DAY_MS, Duration::from_secs(10)));
        assert_eq!(Hours { heard, ..hours }.at(now(0, 15, Clock::Unsynced)), 1_200 * DAY_MS + 5_000);
    }

    #[test]
    fn a_board_ten_years_ahead_is_set_right_by_the_hub() {
        let hours = Hours { bound_ms: 1_000 * DAY_MS, heard: None };
        let ahead = now(5_000 * DAY_MS, 15, Clock::Synced);
        assert_eq!(hours.at(ahead), 5_000 * DAY_MS);
        let heard = Some((1_200 * DAY_MS, Duration::from_secs(15)));
        assert_eq!(Hours { heard, ..hours }.at(ahead), 1_200 * DAY_MS);
        // A system clock behind what is surely past is wrong, whatever the time daemon says.
        assert_eq!(hours.at(now(999 * DAY_MS, 15, Clock::Synced)), 1_000 * DAY_MS);
    }

    #[test]
    fn thirty_days_are_renewed_from_the_twentieth_on_and_spread() {
        let life = |share| Life { not_before_ms: 0, not_after_ms: 30 * DAY_MS, share };
        assert_eq!(life(0.0).renew_ms(), 20 * DAY_MS);
        assert!((22 * DAY_MS..=23 * DAY_MS).contains(&life(1.0).renew_ms()));
        assert_eq!(life(0.5).outdated_ms(), 25 * DAY_MS);
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let (first, last) = (Duration::from_secs(60), Duration::from_secs(3_600));
        let pauses: Vec<_> = [1, 2, 3, 7, 40].map(|failures| pause(failures, first, last).as_secs()).into();
        assert_eq!(pauses, [60, 120, 240, 3_600, 3_600]);
    }
}
