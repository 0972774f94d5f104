//! The broker's only clock: monotonic time, read here and passed on as an argument.
//!
//! Must not be called from a pure room (`policy`, `gate::session`, `gate::wire`, `router::pipe`).

use std::time::Instant;

/// Now, on the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "the one place of this crate that reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
