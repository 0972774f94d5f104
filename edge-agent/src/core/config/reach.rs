//! Probation: whether the hub is still reached with the new document, and the way back when it is not.

use std::time::Duration;

use super::{Effects, Follower, Stage};
use crate::core::Now;

impl Follower {
    /// The hub answered in a live session.
    pub fn heard(&mut self, now: Now) -> Effects {
        let mut effects = Effects::default();
        let proven = self.trial.is_some_and(|trial| trial.from <= now.up && now.up < trial.until);
        if let (true, Some((_, stage))) = (proven, &mut self.kept.newest) {
            *stage = Stage::Applied;
            effects.write = Some(self.kept.clone());
            self.trial = None;
        }
        effects
    }

    /// From when on an answer of the hub is missing.
    #[must_use]
    pub fn asks_from(&self) -> Option<Duration> {
        self.trial.map(|trial| trial.from)
    }

    /// When the hub is given up.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.trial.map(|trial| trial.until)
    }

    /// The hub was not reached in time.
    pub(super) fn give_up(&mut self, effects: &mut Effects) {
        let probation = self.probation.unwrap_or_default().as_secs();
        let message = format!(
            "the hub was not reached within {probation} s after the document was applied; if the line was down for \
             another reason, ask for another try"
        );
        self.fail("lost_hub", message, effects);
    }
}
