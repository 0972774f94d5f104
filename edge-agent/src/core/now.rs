//! Time as an argument.

use std::time::Duration;

use fleet_schemas::batch::Clock;

/// One reading of the node's clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Wall clock, Unix milliseconds; may be wrong by years.
    pub wall_ms: i64,
    /// Time since boot, monotonic.
    pub up: Duration,
    /// Whether the wall clock can be trusted.
    pub clock: Clock,
}

impl Now {
    /// Time since boot in milliseconds, as it travels.
    #[must_use]
    pub fn up_ms(self) -> u64 {
        u64::try_from(self.up.as_millis()).unwrap_or(u64::MAX)
    }
}
