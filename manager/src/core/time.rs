//! Time as an argument: the hub's own, and what it makes of the clocks of boards.

use std::{collections::VecDeque, time::Duration};

use fleet_schemas::batch::Clock;
use serde::{Deserialize, Serialize};

/// Difference above which a clock is called wrong instead of late: a day.
pub const WRONG_BY_MS: i64 = 24 * 3600 * 1000;
/// Boots remembered per node: a batch that was sealed before the last few reboots can still be put in time.
const BOOTS: usize = 8;

/// One reading of the hub's clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Wall clock, Unix milliseconds, after [`Steady`] has looked at it.
    pub wall_ms: i64,
    /// Time since the hub's start, monotonic.
    pub mono: Duration,
}

/// A wall clock that does not jump: one that moves by more than a day against the monotonic clock is not followed
/// until the hub is restarted.
#[derive(Debug, Clone, Copy)]
pub struct Steady {
    offset_ms: i64,
    jumped: bool,
}

impl Steady {
    /// Trusts the wall clock at the start.
    #[must_use]
    pub fn new(wall_ms: i64, mono: Duration) -> Self {
        Self { offset_ms: wall_ms.saturating_sub(millis(mono)), jumped: false }
    }

    /// The time to use, and whether the wall clock is not to be trusted at present.
    pub fn read(&mut self, wall_ms: i64, mono: Duration) -> (Now, bool) {
        let offset_ms = wall_ms.saturating_sub(millis(mono));
        self.jumped = offset_ms.abs_diff(self.offset_ms) > WRONG_BY_MS.unsigned_abs();
        if !self.jumped {
            // NTP's slewing and small steps are followed.
            self.offset_ms = offset_ms;
        }
        (Now { wall_ms: self.offset_ms.saturating_add(millis(mono)), mono }, self.jumped)
    }
}

/// A duration in milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// When a node's boots began by hub time; latest last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boots(VecDeque<([u8; 8], i64)>);

impl Boots {
    /// Learns from a message that was sent just now, `up_ms` after its boot: the earliest estimate is the best, since
    /// a message can be late but not early. Returns whether this is news worth keeping.
    pub fn learn(&mut self, boot: [u8; 8], up_ms: u64, hub_ms: i64) -> bool {
        let began = hub_ms.saturating_sub(i64::try_from(up_ms).unwrap_or(i64::MAX));
        if let Some((_, known)) = self.0.iter_mut().find(|(known, _)| *known == boot) {
            *known = began.min(*known);
            return false;
        }
        self.0.push_back((boot, began));
        if self.0.len() > BOOTS {
            self.0.pop_front();
        }
        true
    }

    /// The latest boot, if this one was seen before that began: a boot never comes back, so two machines use one
    /// identity.
    #[must_use]
    pub fn latest_before(&self, boot: [u8; 8]) -> Option<[u8; 8]> {
        let (latest, _) = self.0.back()?;
        let earlier = self.0.iter().rev().skip(1).any(|(known, _)| *known == boot);
        earlier.then_some(*latest)
    }

    /// Makes a boot the latest.
    pub fn latest(&mut self, boot: [u8; 8]) {
        if let Some(at) = self.0.iter().position(|(known, _)| *known == boot)
            && let Some(entry) = self.0.remove(at)
        {
            self.0.push_back(entry);
        }
    }

    /// What to add to an agent's times: 0 while its clock is synced and plausible, else the difference to the time
    /// reckoned from its boot. An unknown boot cannot be corrected.
    #[must_use]
    pub fn shift_ms(&self, boot: [u8; 8], up_ms: u64, clock: Clock, sealed_ms: i64) -> i64 {
        let Some((_, began)) = self.0.iter().find(|(known, _)| *known == boot) else { return 0 };
        let reckoned = began.saturating_add(i64::try_from(up_ms).unwrap_or(i64::MAX));
        let shift = reckoned.saturating_sub(sealed_ms);
        match clock {
            Clock::Synced if shift.abs() <= WRONG_BY_MS => 0,
            Clock::Synced | Clock::Unsynced => shift,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUB: i64 = 1_790_000_000_000;

    #[test]
    fn a_board_that_boots_in_1970_is_put_in_time() {
        let mut boots = Boots::default();
        assert!(boots.learn([1; 8], 60_000, HUB));
        assert_eq!(boots.shift_ms([1; 8], 50_000, Clock::Unsynced, 50_000), HUB - 60_000);
    }

    #[test]
    fn a_synced_clock_is_trusted_until_it_is_off_by_more_than_a_day() {
        let mut boots = Boots::default();
        boots.learn([1; 8], 60_000, HUB);
        assert_eq!(boots.shift_ms([1; 8], 60_000, Clock::Synced, HUB + 3_600_000), 0);
        let ten_years = 315_360_000_000;
        assert_eq!(boots.shift_ms([1; 8], 60_000, Clock::Synced, HUB + ten_years), -ten_years);
        assert_eq!(boots.shift_ms([2; 8], 60_000, Clock::Synced, HUB + ten_years), 0);
    }

    #[test]
    fn a_boot_that_comes_back_is_noticed() {
        let mut boots = Boots::default();
        boots.learn([1; 8], 0, HUB);
        assert_eq!(boots.latest_before([1; 8]), None);
        boots.learn([2; 8], 0, HUB);
        assert_eq!(boots.latest_before([1; 8]), Some([2; 8]));
        boots.latest([1; 8]);
        assert_eq!(boots.latest_before([2; 8]), Some([1; 8]));
    }

    #[test]
    fn a_jump_of_the_wall_clock_is_not_followed() {
        let second = Duration::from_secs(1);
        let mut steady = Steady::new(HUB, Duration::ZERO);
        assert_eq!(steady.read(HUB + 1_500, second), (Now { wall_ms: HUB + 1_500, mono: second }, false));
        let (now, jumped) = steady.read(HUB + 315_360_000_000, second * 2);
        assert!(jumped);
        assert_eq!(now.wall_ms, HUB + 2_500);
        assert!(!steady.read(HUB + 3_000, second * 3).1);
    }
}
