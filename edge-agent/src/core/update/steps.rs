//! What follows from each input.

use std::time::Duration;

use fleet_schemas::update::{HARMLESS, INCONCLUSIVE, State};

use super::{
    Arrival, COMMITS, DENIALS, Effects, Found, Health, Input, LOOKS, Next, PROBE_EVERY, RETRY_FIRST,
    RETRY_LAST, Refusal, Runs, Stage, Step, Switched, TRIES, Trial, Trouble, UNDOS, Update, Verdict, View,
    Why, check, code, window::Gate,
};
use crate::core::queue::{Limit, Passed, Time};

/// How long the end of this process is waited for before what should bring it about is done again.
const AWAY: Duration = Duration::from_secs(120);

impl Effects {
    fn only(next: Next) -> Self {
        Self { write: false, history: None, failed: false, runs: None, tell: false, next }
    }
}

impl Update {
    /// Takes an input. An outcome of a step that is not the one of this stage changes nothing.
    pub fn decide(&mut self, input: Input, view: &View<'_>, time: &Time) -> Effects {
        match (input, &self.stage) {
            (Input::Begin, _) => self.begin(time),
            (Input::Tick, _) => self.go(view, time),
            (Input::Stop(why), _) => self.stop(why, view, time),
            (Input::Verified(verified), Stage::Accepted) => self.verified(verified, view),
            (Input::Arrived(arrival), Stage::Downloading) => self.arrived(arrival, view, time),
            (Input::Installed(done), Stage::Installing) => match done {
                Ok(()) => self.enter(Stage::Switching),
                Err(trouble) => self.retry(COMMITS, &trouble, Stage::Discarding),
            },
            (Input::Switched(done), Stage::Switching) => self.switched(done, view, time),
            (Input::Probed(health), Stage::Probation(trial)) => {
                let trial = *trial;
                self.probed(&health, trial, view, time)
            }
            (Input::Committed(Ok(())), Stage::Committing) => {
                let effects = self.enter(Stage::Over(Verdict { state: State::Confirmed, reason: None }));
                // What ran before is known to be good, also if it came with the machine: a way back leads there.
                let before =
                    self.from.clone().map_or_else(|| view.history.clone(), |from| view.history.with(from));
                Effects { history: Some(before.with(self.release())), ..effects }
            }
            (Input::Committed(Err(trouble)), Stage::Committing) => {
                self.retry(COMMITS, &Trouble { passing: true, ..trouble }, |verdict| {
                    Stage::Undoing(Verdict { state: State::RolledBack, ..verdict })
                })
            }
            (Input::Undone(done), Stage::Undoing(verdict)) => {
                let verdict = verdict.clone();
                self.undone(done, verdict, view, time)
            }
            (Input::Discarded, Stage::Discarding(verdict)) => {
                let verdict = verdict.clone();
                self.over(verdict)
            }
            (_, _) => self.go(view, time),
        }
    }

    /// Whether it can still be called off.
    #[must_use]
    pub fn is_stoppable(&self) -> bool {
        match self.stage {
            Stage::Accepted | Stage::Downloading | Stage::Downloaded | Stage::Installing => true,
            Stage::Switching
            | Stage::Probation(_)
            | Stage::Committing
            | Stage::Undoing(_)
            | Stage::Judging(..)
            | Stage::Discarding(_)
            | Stage::Over(_) => false,
        }
    }

    /// The process has just begun, or the update has.
    fn begin(&mut self, time: &Time) -> Effects {
        let fresh = |since: &Limit| !since.is_of(time.boot);
        match &mut self.stage {
            // The machine was booted: a trial is of one boot, and begins again.
            Stage::Probation(trial) | Stage::Judging(_, trial) if fresh(&trial.since) => {
                trial.begin_again(time);
            }
            _ => {}
        }
        let counted = match self.stage {
            Stage::Installing | Stage::Switching | Stage::Probation(_) | Stage::Committing => true,
            Stage::Accepted
            | Stage::Downloading
            | Stage::Downloaded
            | Stage::Undoing(_)
            | Stage::Judging(..)
            | Stage::Discarding(_)
            | Stage::Over(_) => false,
        };
        self.tries = self.tries.saturating_add(u8::from(counted));
        if self.tries > TRIES {
            let message = "the agent or the machine ended again and again while it was done";
            let verdict = |state| Verdict::new(state, code::RESTARTS, message);
            return match self.stage {
                Stage::Installing => self.enter(Stage::Discarding(verdict(State::Failed))),
                _ => self.enter(Stage::Undoing(verdict(State::RolledBack))),
            };
        }
        Effects { write: true, tell: true, ..Effects::only(self.next()) }
    }

    /// Goes on in its stage.
    fn go(&mut self, view: &View<'_>, time: &Time) -> Effects {
        if self.is_stoppable() && self.deadline.passed(time) == Passed::Yes {
            return self.stop(Why::Timeout, view, time);
        }
        match (&self.stage, view.gate) {
            (Stage::Downloading | Stage::Downloaded, Gate::Closed(_, again)) => {
                Effects::only(Next::Wait(again))
            }
            (Stage::Downloading, Gate::Open) => Effects::only(Next::Do(Step::Download)),
            (Stage::Downloaded, Gate::Open) => self.enter(Stage::Installing),
            (Stage::Judging(verdict, trial), _) => {
                let (verdict, trial) = (verdict.clone(), *trial);
                self.judge(verdict, trial, view, time)
            }
            (_, _) => Effects::only(self.next()),
        }
    }

    fn next(&self) -> Next {
        match self.stage {
            Stage::Accepted => Next::Do(Step::Verify),
            // The window is looked at first.
            Stage::Downloading | Stage::Downloaded => Next::Wait(Duration::ZERO),
            Stage::Installing => Next::Do(Step::Install),
            Stage::Switching => Next::Do(Step::Switch),
            Stage::Probation(_) => Next::Do(Step::Probe),
            Stage::Committing => Next::Do(Step::Commit),
            Stage::Undoing(_) => Next::Do(Step::Undo),
            Stage::Judging(..) => Next::Wait(PROBE_EVERY),
            Stage::Discarding(_) => Next::Do(Step::Discard),
            Stage::Over(_) => Next::Nothing,
        }
    }

    fn stop(&mut self, why: Why, view: &View<'_>, time: &Time) -> Effects {
        let verdict = match why {
            Why::Cancel => Verdict::new(State::Canceled, code::CANCELED, "it was called off"),
            Why::Timeout => Verdict::new(State::TimedOut, code::TIMED_OUT, self.too_late(view)),
            Why::Superseded => {
                Verdict::new(State::Superseded, code::SUPERSEDED, "a newer order took its place")
            }
        };
        match (&self.stage, why) {
            (Stage::Accepted, _) => self.over(verdict),
            (Stage::Downloading | Stage::Downloaded | Stage::Installing, _) => {
                self.enter(Stage::Discarding(verdict))
            }
            (Stage::Probation(_), Why::Timeout) => self.enter(Stage::Undoing(verdict)),
            // Too late: it is seen to its end.
            (_, _) => match self.stage {
                Stage::Judging(..) => self.go(view, time),
                _ => Effects::only(self.next()),
            },
        }
    }

    fn too_late(&self, view: &View<'_>) -> String {
        let (what, why) = match (&self.stage, view.gate) {
            (Stage::Accepted, _) => ("its signed metadata was not had", "the link may be down"),
            (Stage::Downloading | Stage::Downloaded, Gate::Closed(why, _)) => ("it had not begun", why),
            (Stage::Downloading, Gate::Open) => ("its bytes had not all come", "the link may be slow"),
            (_, _) => ("it was not confirmed", "give it more time"),
        };
        format!("{what} when its time was over: {why}")
    }

    fn verified(&mut self, verified: Result<Found, Refusal>, view: &View<'_>) -> Effects {
        let found = match verified {
            Ok(found) => found,
            Err(Refusal::Later(_)) => return self.again(),
            Err(Refusal::Soon(_)) if self.denials < LOOKS => {
                // Each counts by itself: a link that was down for a day says nothing about the metadata.
                self.failures = self.denials;
                self.denials += 1;
                return self.again();
            }
            Err(Refusal::Soon(trouble)) => return self.over(Verdict::of(State::Rejected, &trouble)),
            Err(Refusal::Never(trouble)) => return self.over(Verdict::of(State::Rejected, &trouble)),
        };
        self.from.clone_from(&found.runs);
        self.signed = Some(found.signed.clone());
        match check::check(self, &found, view) {
            Ok(()) => self.enter(Stage::Downloading),
            Err(verdict) if verdict.state == State::Confirmed => {
                let effects = self.over(verdict);
                Effects { history: Some(view.history.with(self.release())), runs: Some(Runs::New), ..effects }
            }
            Err(verdict) => self.over(verdict),
        }
    }

    fn arrived(&mut self, arrival: Arrival, view: &View<'_>, time: &Time) -> Effects {
        match arrival {
            Arrival::Whole => self.enter(Stage::Downloaded),
            Arrival::Paused => self.go(view, time),
            Arrival::Broken { moved, .. } => {
                if moved {
                    (self.failures, self.denials) = (0, 0);
                }
                self.again()
            }
            Arrival::Denied(why) if self.denials >= DENIALS => {
                self.enter(Stage::Discarding(Verdict::new(State::Failed, code::DENIED, why)))
            }
            Arrival::Denied(_) => {
                self.denials += 1;
                self.again()
            }
            Arrival::Failed(trouble) => self.enter(Stage::Discarding(Verdict::of(State::Failed, &trouble))),
        }
    }

    fn switched(&mut self, done: Result<Switched, Trouble>, view: &View<'_>, time: &Time) -> Effects {
        match done {
            Ok(Switched::Done) => {
                let probation = self.order.probation_ms.map_or(view.probation, Duration::from_millis);
                let trial = Trial {
                    since: Limit::after(Duration::ZERO, time),
                    until: Limit::after(probation, time),
                    reach: Limit::after(probation + view.reach, time),
                    span_ms: millis(probation),
                    reach_ms: millis(probation + view.reach),
                };
                Effects { runs: Some(Runs::New), ..self.enter(Stage::Probation(trial)) }
            }
            Ok(Switched::Away) => Effects::only(Next::Wait(AWAY)),
            Err(trouble) => self.retry(COMMITS, &trouble, Stage::Undoing),
        }
    }

    fn probed(&mut self, health: &Health, trial: Trial, view: &View<'_>, time: &Time) -> Effects {
        let reached = self.order.offline_ok || reached(&trial.since, view, time);
        let passed = |limit: &Limit| limit.passed(time) == Passed::Yes;
        let over = passed(&trial.until);
        let back = |verdict| Stage::Undoing(verdict);
        match health {
            Health::Sick(trouble) => self.enter(back(Verdict::of(State::RolledBack, trouble))),
            Health::Well if over && reached => self.enter(Stage::Committing),
            _ if passed(&self.deadline) => self.stop(Why::Timeout, view, time),
            Health::Well if over && passed(&trial.reach) => {
                let message = "while it ran, the hub was not reached";
                self.enter(back(Verdict::new(State::RolledBack, code::NO_HUB, message)))
            }
            Health::NotYet(why) if over => {
                let message = format!("it was not healthy when its trial ended: {why}");
                self.enter(back(Verdict::new(State::RolledBack, code::UNHEALTHY, message)))
            }
            Health::Well | Health::NotYet(_) => Effects::only(Next::Wait(PROBE_EVERY)),
        }
    }

    fn undone(
        &mut self,
        done: Result<Switched, Trouble>,
        verdict: Verdict,
        view: &View<'_>,
        time: &Time,
    ) -> Effects {
        match done {
            Ok(Switched::Done) => {
                let stage = if verdict.code() == Some(code::NO_HUB) {
                    let since = Limit::after(Duration::ZERO, time);
                    let reach = Limit::after(view.reach, time);
                    let trial =
                        Trial { since, until: since, reach, span_ms: 0, reach_ms: millis(view.reach) };
                    Stage::Judging(verdict, trial)
                } else {
                    Stage::Discarding(verdict)
                };
                Effects { runs: Some(Runs::Before), ..self.enter(stage) }
            }
            Ok(Switched::Away) => Effects::only(Next::Wait(AWAY)),
            Err(trouble) if trouble.code == code::UNSURE => {
                let verdict = verdict.unsure(&trouble.message);
                Effects { runs: Some(Runs::Unknown), ..self.enter(Stage::Discarding(verdict)) }
            }
            Err(trouble) => {
                let message = format!(
                    "{}: what ran before could not be brought back; put it right by hand",
                    trouble.message
                );
                // Where there is nothing to bring back, trying again would but hold up the node's other updates.
                let passing = trouble.code != code::UNDO;
                let trouble = Trouble { code: code::UNDO.to_owned(), message, passing };
                self.retry(UNDOS, &trouble, |verdict| Stage::Over(verdict.in_doubt()))
            }
        }
    }

    /// Whether the link failed the new release, or the new release the link.
    fn judge(&mut self, verdict: Verdict, trial: Trial, view: &View<'_>, time: &Time) -> Effects {
        if reached(&trial.since, view, time) {
            return self.enter(Stage::Discarding(verdict));
        }
        if trial.reach.passed(time) == Passed::Yes {
            let message =
                "neither the new release nor the one before it reached the hub: the link is to blame";
            return self.enter(Stage::Discarding(Verdict::new(State::RolledBack, INCONCLUSIVE, message)));
        }
        Effects::only(Next::Wait(PROBE_EVERY))
    }

    fn over(&mut self, verdict: Verdict) -> Effects {
        let failed = match verdict.state {
            State::RolledBack | State::Failed => verdict.code().is_none_or(|code| !HARMLESS.contains(&code)),
            _ => false,
        };
        Effects { failed, ..self.enter(Stage::Over(verdict)) }
    }

    fn enter(&mut self, stage: Stage) -> Effects {
        let before = self.state();
        self.stage = stage;
        (self.tries, self.failures, self.denials) = (0, 0, 0);
        Effects { write: true, tell: self.state() != before, ..Effects::only(self.next()) }
    }

    /// Tries the step of this stage again, as long as that may help.
    fn retry(&mut self, most: u32, trouble: &Trouble, end: impl FnOnce(Verdict) -> Stage) -> Effects {
        if trouble.passing && self.failures < most {
            return self.again();
        }
        match end(Verdict::of(State::Failed, trouble)) {
            Stage::Over(verdict) => self.over(verdict),
            stage => self.enter(stage),
        }
    }

    fn again(&mut self) -> Effects {
        let pause = RETRY_FIRST.saturating_mul(1 << self.failures.min(16)).min(RETRY_LAST);
        self.failures += 1;
        Effects::only(Next::Again(pause))
    }
}

impl Trial {
    fn begin_again(&mut self, time: &Time) {
        self.since = Limit::after(Duration::ZERO, time);
        self.until = Limit::after(Duration::from_millis(self.span_ms), time);
        self.reach = Limit::after(Duration::from_millis(self.reach_ms), time);
    }
}

/// Whether the hub stored something since then.
fn reached(since: &Limit, view: &View<'_>, time: &Time) -> bool {
    let Some(heard) = view.heard else { return false };
    !since.is_of(time.boot) || since.up(time).is_some_and(|since| heard >= since)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
