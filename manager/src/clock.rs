//! The only ambient clock and the only ambient randomness of the hub. Everything else takes them as arguments.

use std::{
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::{TryRng as _, rngs::SysRng};

use crate::core::{Now, time::Steady};

#[expect(clippy::disallowed_methods, reason = "this is the ambient clock")]
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time since the process first asked, monotonic.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the ambient clock")]
pub fn mono() -> Duration {
    START.elapsed()
}

/// The system's wall clock, Unix milliseconds, as it is.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the ambient clock")]
pub fn wall_ms() -> i64 {
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    SystemTime::now().duration_since(UNIX_EPOCH).map_or_else(|early| -millis(early.duration()), millis)
}

/// Random bytes from the system.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).expect("the system gives random bytes");
    bytes
}

/// The hub's clock: steady against jumps of the system's.
#[derive(Debug)]
pub struct HubClock(Mutex<Steady>);

impl Default for HubClock {
    fn default() -> Self {
        Self(Mutex::new(Steady::new(wall_ms(), mono())))
    }
}

impl HubClock {
    /// The time to use, and whether the system's clock jumped and is not followed.
    pub fn read(&self) -> (Now, bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(wall_ms(), mono())
    }

    /// The time to use.
    pub fn now(&self) -> Now {
        self.read().0
    }
}
