//! The agent's only clock and only source of randomness.
//!
//! Owns wall time, time since boot, the boot's identity and the judgement whether wall time can be trusted.
//! Everything behind the shell takes [`Now`] and random ids as arguments.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fleet_schemas::{batch, limits::BUILT_MS};
use rand::{TryRng as _, rngs::SysRng};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::core::Now;

/// A wall clock that shows less is wrong.
const PLAUSIBLE_FROM_MS: i64 = BUILT_MS;
/// Fifty years later: one that shows more is wrong too.
const PLAUSIBLE_UNTIL_MS: i64 = PLAUSIBLE_FROM_MS + 50 * 31_557_600_000;
/// How often the time daemon's word is read again: it changes once or twice in a boot.
const TRUST_EVERY: Duration = Duration::from_secs(10);
/// Where systemd-timesyncd says that it has set the clock.
const TIMESYNC: &str = "/run/systemd/timesync";

/// Whether the wall clock can be trusted: judged, or said by whoever installed the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// Plausible, and set by the time daemon where one tells.
    #[default]
    Auto,
    /// Always: a battery-backed or GPS clock.
    Synced,
    /// Never: the hub corrects times.
    Unsynced,
}

/// How the clock is judged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether the wall clock can be trusted.
    pub trust: Trust,
}

/// The node's clocks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    trust: Trust,
    daemon: AtomicBool,
    // Time since boot, in milliseconds, at which the time daemon is asked again.
    ask_at: AtomicU64,
}

impl Clock {
    /// A clock judged by `config`.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let inner = Inner { trust: config.trust, daemon: AtomicBool::new(true), ask_at: AtomicU64::new(0) };
        Self(Arc::new(inner))
    }

    /// One reading of all clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        let wall_ms = wall_ms();
        let up = up();
        let clock = match self.0.trust {
            Trust::Synced => batch::Clock::Synced,
            Trust::Unsynced => batch::Clock::Unsynced,
            Trust::Auto if plausible(wall_ms) && self.daemon_agrees(up) => batch::Clock::Synced,
            Trust::Auto => batch::Clock::Unsynced,
        };
        Now { wall_ms, up, clock }
    }

    fn daemon_agrees(&self, up: Duration) -> bool {
        let up = u64::try_from(up.as_millis()).unwrap_or(u64::MAX);
        if up >= self.0.ask_at.load(Ordering::Relaxed) {
            let every = u64::try_from(TRUST_EVERY.as_millis()).unwrap_or(u64::MAX);
            self.0.ask_at.store(up.saturating_add(every), Ordering::Relaxed);
            self.0.daemon.store(daemon_agrees(Path::new(TIMESYNC)), Ordering::Relaxed);
        }
        self.0.daemon.load(Ordering::Relaxed)
    }
}

/// The first 8 bytes of the kernel's boot id; random where there is none, so that each start counts as a boot.
#[must_use]
pub fn boot_id() -> [u8; 8] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    parse_boot_id(&text).unwrap_or_else(random)
}

/// Random bytes from the operating system's generator.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).expect("an operating system without randomness runs no agent");
    bytes
}

/// A random duration within half of `span` and all of it: spreads reconnects of a whole fleet.
#[must_use]
pub fn jitter(span: Duration) -> Duration {
    let share = f64::from(u32::from_le_bytes(random())) / f64::from(u32::MAX);
    span.mul_f64(0.5 + share / 2.0)
}

fn plausible(wall_ms: i64) -> bool {
    (PLAUSIBLE_FROM_MS..PLAUSIBLE_UNTIL_MS).contains(&wall_ms)
}

/// A time daemon that keeps a folder there but has not yet set the clock disagrees; without one, nobody does.
fn daemon_agrees(folder: &Path) -> bool {
    !folder.exists() || folder.join("synchronized").exists()
}

fn parse_boot_id(text: &str) -> Option<[u8; 8]> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).take(16).collect();
    let number = u64::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?;
    (digits.len() == 16).then(|| number.to_be_bytes())
}

#[expect(clippy::disallowed_methods, reason = "the agent's only wall clock")]
pub(crate) fn wall_ms() -> i64 {
    let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => millis(after),
        Err(before) => -millis(before.duration()),
    }
}

fn up() -> Duration {
    // Counts through suspend, unlike CLOCK_MONOTONIC.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const SINCE_BOOT: ClockId = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const SINCE_BOOT: ClockId = ClockId::Monotonic;
    let time = clock_gettime(SINCE_BOOT);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_that_boots_in_1970_is_not_trusted() {
        assert!(!plausible(0));
        assert!(!plausible(-5));
        assert!(!plausible(i64::MAX));
        assert!(plausible(PLAUSIBLE_FROM_MS + 86_400_000));
    }

    #[test]
    fn a_time_daemon_that_has_not_set_the_clock_disagrees() {
        let folder = tempfile::tempdir().unwrap();
        assert!(daemon_agrees(&folder.path().join("absent")));
        assert!(!daemon_agrees(folder.path()));
        fs::write(folder.path().join("synchronized"), "").unwrap();
        assert!(daemon_agrees(folder.path()));
    }

    #[test]
    fn the_installers_word_counts_more_than_judgement() {
        let clock = |trust| Clock::new(Config { trust }).now().clock;
        assert_eq!(clock(Trust::Synced), batch::Clock::Synced);
        assert_eq!(clock(Trust::Unsynced), batch::Clock::Unsynced);
    }

    #[test]
    fn boot_ids_are_the_first_eight_bytes() {
        let id = parse_boot_id("0011aabb-ccdd-eeff-0000-000000000000\n");
        assert_eq!(id, Some([0x00, 0x11, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]));
        assert_eq!(parse_boot_id("0011"), None);
    }

    #[test]
    fn time_since_boot_never_goes_back() {
        let clock = Clock::new(Config::default());
        let (first, second) = (clock.now().up, clock.now().up);
        assert!(first <= second && first > Duration::ZERO);
    }

    #[test]
    fn jitter_keeps_within_half_and_all() {
        let span = Duration::from_secs(10);
        for _ in 0..1_000 {
            assert!((span / 2..=span).contains(&jitter(span)));
        }
    }
}
