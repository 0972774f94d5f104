//! Points in time that outlive a reboot: told by the time since boot while the boot lasts, by trusted time after it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::Now;

/// One reading of the clocks, as commands need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// The node's clocks.
    pub now: Now,
    /// The boot that `now.up` counts from.
    pub boot: [u8; 8],
    /// Unix milliseconds that can be trusted: by the hub's word since the start, else by a wall clock that is set.
    pub true_ms: Option<i64>,
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The boot that it was set in.
    #[serde(with = "serde_bytes")]
    boot: [u8; 8],
    /// Milliseconds since that boot.
    up_ms: u64,
    /// Unix milliseconds, where trusted time was known.
    ms: Option<i64>,
}

/// Whether a point in time is past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// It is.
    Yes,
    /// Not yet.
    No,
    /// The machine was booted since, and nobody has told the time.
    Unknown,
}

impl Limit {
    /// `wait` from now.
    #[must_use]
    pub fn after(wait: Duration, time: &Time) -> Self {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let ms = time.true_ms.map(|ms| ms.saturating_add_unsigned(wait_ms));
        Self { boot: time.boot, up_ms: time.now.up_ms().saturating_add(wait_ms), ms }
    }

    /// Whether it is past. One of another boot whose trusted time was never known is: nothing can be said for it.
    #[must_use]
    pub fn passed(&self, time: &Time) -> Passed {
        let passed = |yes| if yes { Passed::Yes } else { Passed::No };
        if self.boot == time.boot {
            return passed(time.now.up_ms() >= self.up_ms);
        }
        match (self.ms, time.true_ms) {
            (None, _) => Passed::Yes,
            (Some(_), None) => Passed::Unknown,
            (Some(ms), Some(now)) => passed(now >= ms),
        }
    }

    /// Time since the present boot at which it will be past; `None` while that cannot be told.
    #[must_use]
    pub fn up(&self, time: &Time) -> Option<Duration> {
        if self.boot == time.boot {
            return Some(Duration::from_millis(self.up_ms));
        }
        let left = self.ms?.saturating_sub(time.true_ms?);
        Some(time.now.up + Duration::from_millis(u64::try_from(left).unwrap_or(0)))
    }

    /// Unix milliseconds, where trusted time was known when it was set.
    #[must_use]
    pub fn ms(&self) -> Option<i64> {
        self.ms
    }

    /// Whether it was set in the present boot.
    #[must_use]
    pub fn is_of(&self, boot: [u8; 8]) -> bool {
        self.boot == boot
    }

    /// The earlier of two points of one boot.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        if self.up_ms <= other.up_ms { self } else { other }
    }
}

#[cfg(test)]
mod tests {
    use fleet_schemas::batch::Clock;

    use super::*;

    fn time(boot: u8, up_s: u64, true_ms: Option<i64>) -> Time {
        let now = Now { wall_ms: 0, up: Duration::from_secs(up_s), clock: Clock::Unsynced };
        Time { now, boot: [boot; 8], true_ms }
    }

    #[test]
    fn within_a_boot_the_wall_clock_has_no_say() {
        let limit = Limit::after(Duration::from_secs(10), &time(1, 5, Some(1_000)));
        assert_eq!(limit.passed(&time(1, 14, Some(i64::MAX))), Passed::No);
        assert_eq!(limit.passed(&time(1, 15, None)), Passed::Yes);
        assert_eq!(limit.up(&time(1, 6, None)), Some(Duration::from_secs(15)));
    }

    #[test]
    fn after_a_reboot_only_trusted_time_tells() {
        let limit = Limit::after(Duration::from_secs(10), &time(1, 5, Some(1_000)));
        assert_eq!(limit.passed(&time(2, 500, None)), Passed::Unknown);
        assert_eq!(limit.passed(&time(2, 1, Some(10_999))), Passed::No);
        assert_eq!(limit.passed(&time(2, 1, Some(11_000))), Passed::Yes);
        assert_eq!(limit.up(&time(2, 1, Some(9_000))), Some(Duration::from_secs(3)));
        let blind = Limit::after(Duration::from_secs(10), &time(1, 5, None));
        assert_eq!(blind.passed(&time(2, 1, Some(0))), Passed::Yes, "nobody can say that it may begin");
    }
}
