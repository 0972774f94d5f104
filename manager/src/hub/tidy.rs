//! The tidier's thread: seals the inbox, lets old data go. Every step is idempotent; a failed one is tried again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::readiness::Health;
use crate::{
    clock::{self, HubClock},
    consume::Shared,
    core::time::millis,
};

/// Pause between looks at the inbox when there is nothing to seal.
const PAUSE: Duration = Duration::from_millis(500);
/// How often retention looks for what is too old or too much.
const RETAIN: Duration = Duration::from_secs(600);
/// Events removed in one transaction.
const EVENTS_AT_ONCE: usize = 2_000;

pub(super) struct Tidier {
    pub shared: Shared,
    pub health: Arc<Health>,
    pub clock: Arc<HubClock>,
    pub stop: Arc<AtomicBool>,
    pub retain_events: Duration,
}

impl Tidier {
    pub(super) fn run(&self) {
        let mut retain_due = Duration::ZERO;
        while !self.stop.load(Ordering::Acquire) {
            let more = self.health.failure().is_none() && self.seal();
            if clock::mono() >= retain_due && self.health.failure().is_none() {
                retain_due = clock::mono() + RETAIN;
                self.retain();
            }
            if !more {
                thread::park_timeout(PAUSE);
            }
        }
    }

    fn seal(&self) -> bool {
        match self.shared.telemetry.seal(self.clock.now().wall_ms) {
            Ok(report) => report.more,
            Err(error) => {
                self.health.failed(error.to_string());
                tracing::error!(%error, "failed to seal samples");
                false
            }
        }
    }

    fn retain(&self) {
        let (now, jumped) = self.clock.read();
        if jumped {
            // Expiry waits until somebody has set the clock.
            return;
        }
        if let Err(error) = self.shared.telemetry.retain(now.wall_ms) {
            self.health.failed(error.to_string());
            tracing::error!(%error, "failed to remove old samples");
        }
        let before_ms = now.wall_ms.saturating_sub(millis(self.retain_events));
        loop {
            match self.shared.state().expire_events(before_ms, EVENTS_AT_ONCE) {
                Ok(EVENTS_AT_ONCE..) if !self.stop.load(Ordering::Acquire) => {}
                Ok(_) => break,
                Err(error) => {
                    self.health.failed(error.to_string());
                    tracing::error!(%error, "failed to remove old events");
                    break;
                }
            }
        }
    }
}
