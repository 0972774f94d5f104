//! The configuration at the uplink: what the hub desires goes to the follower in `core`, what it decides goes to disk, and
//! to whoever applies documents only after that.

use std::time::Duration;

use fleet_schemas::config::{Desired, Failed, Held, Reported};

use super::{Config, Error, Uplink};
use crate::{
    core::{
        Now,
        config::{Doc, Effects, Follower, Kept, Run, Running, View},
    },
    store::outbox::Write,
};

/// The follower, and what belongs to it beside the outbox.
pub(super) struct Following {
    follower: Follower,
    // What waits for its transaction, and what may be applied.
    staged: Option<Run>,
    run: Option<Run>,
    // What the hub was told last.
    told: Option<Reported>,
    // From when on the hub may be asked again.
    pub(super) ask_again: Duration,
}

impl Following {
    pub(super) fn new(kept: Kept) -> Self {
        let follower = Follower::found(kept);
        Self { follower, staged: None, run: None, told: None, ask_again: Duration::ZERO }
    }

    /// The transaction is on disk.
    pub(super) fn committed(&mut self) {
        if let Some(run) = self.staged.take() {
            self.run = Some(run);
        }
    }

    /// When time changes something.
    pub(super) fn due(&self) -> Option<Duration> {
        self.follower.due()
    }

    /// When the hub is to be asked for an answer.
    pub(super) fn asks_at(&self) -> Option<Duration> {
        self.follower.asks_from().map(|from| from.max(self.ask_again))
    }

    /// Whether there is something that the hub was not told. Asked while it is told.
    pub(super) fn is_news(&self) -> bool {
        self.follower.reported() != self.told
    }

    /// What birth and heartbeat say.
    pub(super) fn tell(&mut self) -> Option<Reported> {
        self.told = self.follower.reported();
        self.told.clone()
    }
}

impl Uplink {
    /// From now on documents are taken, and a new one has `probation` to prove itself. `running` and `busy` are what
    /// [`Uplink::config_standing`] of the uplink before said, when this process goes on with a file that was opened anew.
    ///
    /// # Errors
    /// [`Error`].
    pub fn take_config(
        &mut self,
        probation: Duration,
        running: Running,
        busy: Option<Option<Doc>>,
        now: Now,
    ) -> Result<(), Error> {
        let effects = self.following.follower.attach(probation, running, busy, now);
        self.follow(effects, now)
    }

    /// What is known of whoever applies documents.
    #[must_use]
    pub fn config_standing(&self) -> (Running, Option<Option<Doc>>) {
        self.following.follower.standing()
    }

    /// What is to be applied now. It is on disk; [`Uplink::config_ran`] says what became of it.
    pub fn config_run(&mut self) -> Option<Run> {
        self.following.run.take()
    }

    /// What was handed out is applied, or is not.
    ///
    /// # Errors
    /// [`Error`]: say it again to the uplink that takes this one's place.
    pub fn config_ran(
        &mut self,
        which: Option<Held>,
        end: Result<(), Failed>,
        now: Now,
    ) -> Result<(), Error> {
        let effects = self.following.follower.ran(which, end, now);
        self.follow(effects, now)
    }

    /// Takes what the hub desires. What was meant for another session, or comes from another store than the one that
    /// answered, is ignored: the hub says it again.
    ///
    /// # Errors
    /// [`Error`]: nothing of it is taken, and the value is dead.
    pub fn take_desired(&mut self, desired: &Desired, now: Now) -> Result<(), Error> {
        let Some(session) = &self.session else { return Ok(()) };
        let stranger = session.answered && self.store_id.is_some_and(|store| store != desired.store_id);
        if !self.following.follower.is_attached() || session.id != desired.session || stranger {
            return Ok(());
        }
        let effects = self.following.follower.receive(desired, now);
        self.follow(effects, now)
    }

    /// Where the configuration stands.
    #[must_use]
    pub fn config_view(&self) -> View {
        self.following.follower.view()
    }

    /// From now on it behaves like this.
    pub fn set_config(&mut self, config: Config, heartbeat: Duration, now: Now) {
        self.seal_due = self.seal_due.min(self.meter.next_seal(config.upload, now));
        self.config = config;
        self.profile.heartbeat = heartbeat;
        let next = now.up + self.interval();
        if let Some(session) = &mut self.session {
            session.heartbeat_due = session.heartbeat_due.min(next);
        }
    }

    /// The hub answered.
    ///
    /// # Errors
    /// [`Error`].
    pub(super) fn config_heard(&mut self, now: Now) -> Result<(), Error> {
        let effects = self.following.follower.heard(now);
        self.follow(effects, now)
    }

    /// Stages what time asks for.
    pub(super) fn advance_config(&mut self, now: Now) {
        let mut effects = Effects::default();
        self.following.follower.advance(now, &mut effects);
        self.stage_config(effects, now);
    }

    fn follow(&mut self, effects: Effects, now: Now) -> Result<(), Error> {
        self.stage_config(effects, now);
        self.commit_staged()
    }

    fn stage_config(&mut self, effects: Effects, now: Now) {
        let Effects { write, run } = effects;
        self.staged.extend(write.map(Write::Config));
        if run.is_some() {
            self.following.staged = run;
        }
        if let Some(session) = &mut self.session
            && self.following.is_news()
        {
            session.heartbeat_due = session.heartbeat_due.min(now.up);
        }
    }
}
