//! Time as an argument: the hub's own, and what it makes of the clocks of boards.

use std::{collections::VecDeque, time::Duration};

use fleet_schemas::{batch::Clock, limits::BUILT_MS};
use serde::{Deserialize, Serialize};

/// Difference above which a clock is called wrong instead of late: a day.
pub const WRONG_BY_MS: i64 = 24 * 3600 * 1000;
/// Longest time that a hub is thought to have been off: 400 days.
pub const AWAY_MS: i64 = 400 * 24 * 3600 * 1000;
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

/// What the system says of the time.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Wall clock, Unix milliseconds, as it is.
    pub wall_ms: i64,
    /// Time since the hub's start, monotonic.
    pub mono: Duration,
    /// Whether its time daemon has set the clock since the machine started. `None`: there is no daemon that tells, or it does
    /// not matter.
    pub set: Option<bool>,
}

/// Why the system's clock is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// At the hub's start it was more than a day behind when the hub last ran: a board without a battery that was not
    /// told the time yet.
    Behind,
    /// At the hub's start it was more than 400 days beyond when the hub last ran.
    Ahead,
    /// It moved by more than a day while the hub ran.
    Jumped,
}

/// A wall clock that does not jump. One that is out of line with when the hub last ran is followed as soon as the time
/// daemon has set it, or it shows a time that can be; one that moves by more than a day against the monotonic clock while the
/// hub runs is not, until the hub is restarted, unless that was the daemon setting it for the first time.
#[derive(Debug, Clone, Copy)]
pub struct Steady {
    offset_ms: i64,
    doubt: Option<Doubt>,
    /// The daemon has not yet set the clock.
    waits: bool,
}

impl Steady {
    /// Trusts the wall clock at the start, unless it is out of line with `known_ms`, when the hub last ran. While it is,
    /// time goes on from there.
    #[must_use]
    pub fn new(at: Reading, known_ms: Option<i64>) -> Self {
        let doubt = Doubt::at_start(at, known_ms);
        let known_ms = known_ms.unwrap_or(BUILT_MS).max(BUILT_MS);
        let wall_ms = if doubt.is_some() { known_ms } else { at.wall_ms };
        let offset_ms = wall_ms.saturating_sub(millis(at.mono));
        Self { offset_ms, doubt, waits: at.set == Some(false) }
    }

    /// Whether it matters what the time daemon says.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.waits || self.doubt.is_some()
    }

    /// The time to use, and why it is not the wall clock's.
    pub fn read(&mut self, at: Reading) -> (Now, Option<Doubt>) {
        let offset_ms = at.wall_ms.saturating_sub(millis(at.mono));
        self.doubt = match self.doubt {
            Some(Doubt::Behind | Doubt::Ahead) => {
                Doubt::at_start(at, Some(self.offset_ms.saturating_add(millis(at.mono))))
            }
            None | Some(Doubt::Jumped) => {
                let set_now = self.waits && at.set == Some(true);
                let jumped = offset_ms.abs_diff(self.offset_ms) > WRONG_BY_MS.unsigned_abs();
                (jumped && !set_now).then_some(Doubt::Jumped)
            }
        };
        self.waits &= at.set != Some(true);
        if self.doubt.is_none() {
            // NTP's slewing and small steps are followed.
            self.offset_ms = offset_ms;
        }
        (Now { wall_ms: self.offset_ms.saturating_add(millis(at.mono)), mono: at.mono }, self.doubt)
    }
}

impl Doubt {
    fn at_start(at: Reading, known_ms: Option<i64>) -> Option<Self> {
        let least_ms = known_ms.unwrap_or(BUILT_MS).max(BUILT_MS).saturating_sub(WRONG_BY_MS);
        if at.set == Some(true) {
            None
        } else if at.wall_ms < least_ms {
            Some(Self::Behind)
        } else {
            known_ms
                .is_some_and(|known_ms| at.wall_ms > known_ms.saturating_add(AWAY_MS))
                .then_some(Self::Ahead)
        }
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
    /// a message can be late but not early. One that is a day off was made before the hub's clock was set. Returns whether
    /// this is news worth keeping.
    pub fn learn(&mut self, boot: [u8; 8], up_ms: u64, hub_ms: i64) -> bool {
        let began = hub_ms.saturating_sub(i64::try_from(up_ms).unwrap_or(i64::MAX));
        if let Some((_, known)) = self.0.iter_mut().find(|(known, _)| *known == boot) {
            let is_off = began.saturating_sub(*known) > WRONG_BY_MS;
            *known = if is_off { began } else { began.min(*known) };
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
    fn a_boot_that_was_reckoned_before_the_hubs_clock_was_set_is_reckoned_again() {
        let mut boots = Boots::default();
        let minute = 60_000;
        let days = 3 * WRONG_BY_MS;
        boots.learn([1; 8], minute, HUB - days);
        assert!(!boots.learn([1; 8], 2 * minute, HUB + 60_000));
        assert_eq!(boots.shift_ms([1; 8], 0, Clock::Unsynced, 0), HUB - 60_000);
        boots.learn([1; 8], 3 * minute, HUB + 5_000_000);
        assert_eq!(boots.shift_ms([1; 8], 0, Clock::Unsynced, 0), HUB - 60_000, "that one was late");
    }

    fn at(wall_ms: i64, second: u64, set: Option<bool>) -> Reading {
        Reading { wall_ms, mono: Duration::from_secs(second), set }
    }

    fn read(steady: &mut Steady, wall_ms: i64, second: u64, set: Option<bool>) -> (i64, Option<Doubt>) {
        let (now, doubt) = steady.read(at(wall_ms, second, set));
        (now.wall_ms - HUB, doubt)
    }

    const TEN_YEARS: i64 = 315_360_000_000;
    const DAY: i64 = WRONG_BY_MS;
    const HUB: i64 = BUILT_MS + DAY;

    #[test]
    fn a_jump_of_the_wall_clock_is_not_followed() {
        for set in [None, Some(true)] {
            let mut steady = Steady::new(at(HUB, 0, set), None);
            assert_eq!(read(&mut steady, HUB + 1_500, 1, set), (1_500, None));
            assert_eq!(read(&mut steady, HUB + TEN_YEARS, 2, set), (2_500, Some(Doubt::Jumped)));
            assert_eq!(read(&mut steady, HUB + 3_000, 3, set), (3_000, None));
        }
    }

    #[test]
    fn the_time_daemon_may_set_the_clock_once() {
        let mut steady = Steady::new(at(HUB, 0, Some(false)), Some(HUB));
        assert_eq!(
            read(&mut steady, HUB + 3 * DAY, 1, Some(false)),
            (1_000, Some(Doubt::Jumped)),
            "not the daemon"
        );
        assert_eq!(read(&mut steady, HUB + 3 * DAY, 2, Some(true)), (3 * DAY, None));
        assert_eq!(read(&mut steady, HUB + 6 * DAY, 3, Some(true)), (3 * DAY + 1_000, Some(Doubt::Jumped)));
        let mut steady = Steady::new(at(HUB, 0, Some(false)), Some(HUB));
        assert_eq!(read(&mut steady, HUB + 1_000, 1, Some(true)), (1_000, None), "it was right before");
        assert_eq!(read(&mut steady, HUB + 3 * DAY, 2, Some(true)), (2_000, Some(Doubt::Jumped)));
    }

    #[test]
    fn time_goes_on_where_it_was_until_a_board_without_a_battery_is_told_it() {
        for (known, wall) in [(Some(HUB), HUB - DAY - 1), (Some(HUB), 0), (Some(0), 0), (None, 0)] {
            let goes_on = known.map_or(BUILT_MS, |known| known.max(BUILT_MS)) - HUB;
            for set in [None, Some(false)] {
                let mut steady = Steady::new(at(wall, 0, set), known);
                assert_eq!(read(&mut steady, wall + 5_000, 5, set), (goes_on + 5_000, Some(Doubt::Behind)));
                assert_eq!(read(&mut steady, HUB + TEN_YEARS / 20, 6, set), (TEN_YEARS / 20, None));
                assert_eq!(read(&mut steady, 0, 7, set), (TEN_YEARS / 20 + 1_000, Some(Doubt::Jumped)));
            }
            let mut steady = Steady::new(at(wall, 0, Some(false)), known);
            assert_eq!(
                read(&mut steady, wall + 2_000, 2, Some(true)),
                (wall + 2_000 - HUB, None),
                "set, so known better"
            );
        }
        let mut steady = Steady::new(at(HUB - DAY, 0, None), Some(HUB));
        assert_eq!(read(&mut steady, HUB - DAY, 0, None), (-DAY, None), "that much somebody may set it back");
    }

    #[test]
    fn a_clock_far_beyond_when_the_hub_last_ran_is_doubted_unless_the_daemon_set_it() {
        let mut steady = Steady::new(at(HUB + TEN_YEARS, 0, None), Some(HUB));
        assert_eq!(read(&mut steady, HUB + TEN_YEARS, 1, None), (1_000, Some(Doubt::Ahead)));
        assert_eq!(read(&mut steady, HUB - 2 * DAY, 2, None), (2_000, Some(Doubt::Behind)), "overshot");
        assert_eq!(read(&mut steady, HUB + AWAY_MS, 3, None), (AWAY_MS, None));
        let mut steady = Steady::new(at(HUB + TEN_YEARS, 0, Some(true)), Some(HUB));
        assert_eq!(read(&mut steady, HUB + TEN_YEARS, 0, Some(true)), (TEN_YEARS, None));
        let mut steady = Steady::new(at(HUB + TEN_YEARS, 0, None), None);
        assert_eq!(
            read(&mut steady, HUB + TEN_YEARS, 0, None),
            (TEN_YEARS, None),
            "a new hub knows nothing better"
        );
    }
}
