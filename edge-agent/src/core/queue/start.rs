//! What may begin now, and what has waited, run or been left alone for too long.

use std::{cmp::Reverse, collections::BTreeMap, collections::BTreeSet, time::Duration};

use fleet_schemas::{CommandId, DeviceId, MetricName, command::State};

use super::{
    ATTEMPTS, Act, Effects, Ending, Held, Lease, Limit, PARALLEL, Passed, Queues, RESTART, Run,
    STOP_PATIENCE, Stage, Time, UPDATE_PATIENCE, device_of, end::Facts,
};

/// How often it is looked whether somebody has told the time, while commands wait for it.
const TIME_AGAIN: Duration = Duration::from_secs(60);

impl Queues {
    /// Does what is due: ends what is too old, and begins what may.
    pub fn advance(&mut self, time: &Time) -> Effects {
        let mut effects = Effects::default();
        if self.due().is_none_or(|due| due > time.now.up) {
            return effects;
        }
        let ids: Vec<_> = self.held.keys().copied().collect();
        for id in ids {
            self.settle(id, time, &mut effects);
            self.limit_run(id, time, &mut effects);
            self.expire(id, time, &mut effects);
        }
        for id in self.may_begin(time) {
            self.begin(id, None, time, &mut effects);
        }
        self.due = self.next_due(time);
        self.stirred = false;
        effects
    }

    /// What is made of a run whose process is gone.
    fn settle(&mut self, id: CommandId, time: &Time, effects: &mut Effects) {
        let Some(held) = self.held.get_mut(&id) else { return };
        let (local, restart) = (held.is_local(), held.command.kind.as_str() == RESTART);
        let update = held.is_update();
        let Stage::Running(run) = &mut held.stage else { return };
        if !std::mem::take(&mut run.live.found) {
            return;
        }
        if update {
            effects.acts.push(Act::Start(Box::new(held.command.clone())));
            return self.give_way(id, time, effects);
        }
        if restart {
            return self.end(id, Facts::new(State::Succeeded), time, effects);
        }
        match &mut run.lease {
            // The app may still be at it, and will say so.
            Some(lease) if local && lease.until.is_of(time.boot) => {
                lease.until = Limit::after(Duration::from_millis(lease.span_ms), time);
            }
            Some(_) => self.lose(
                id,
                "lease_lost",
                "the machine was started again while an app had it",
                time,
                effects,
            ),
            None => self.lose(id, "interrupted", "the agent was started again while it ran", time, effects),
        }
    }

    /// An update that runs is told to end when a newer one waits for its place.
    pub(super) fn give_way(&mut self, id: CommandId, time: &Time, effects: &mut Effects) {
        let Some(held) = self.held.get(&id).filter(|held| held.is_update()) else { return };
        let newer = self.held.values().any(|other| {
            let same = other.command.supersedes.is_some()
                && other.command.supersedes == held.command.supersedes
                && other.is_update();
            same && matches!(other.stage, Stage::Waiting { .. }) && other.command.no > held.command.no
        });
        let Some(Held { stage: Stage::Running(run), .. }) = self.held.get_mut(&id) else { return };
        if newer && run.live.ending.is_none() {
            run.live.ending = Some((Ending::Superseded, time.now.up + UPDATE_PATIENCE));
            effects.acts.push(Act::Stop(id, Ending::Superseded));
        }
    }

    /// A run is lost: it begins again if that does no harm.
    pub(super) fn lose(
        &mut self,
        id: CommandId,
        code: &str,
        message: &str,
        time: &Time,
        effects: &mut Effects,
    ) {
        let Some(held) = self.held.get_mut(&id) else { return };
        let Stage::Running(run) = &held.stage else { return };
        let begun = run.begun;
        if held.command.idempotent && begun < ATTEMPTS && held.command.closes.passed(time) != Passed::Yes {
            held.stage = Stage::Waiting { begun };
            let held = held.clone();
            return self.hold(held, effects);
        }
        self.end(id, Facts::because(State::Failed, code, message, true), time, effects);
    }

    fn limit_run(&mut self, id: CommandId, time: &Time, effects: &mut Effects) {
        let Some(held) = self.held.get_mut(&id) else { return };
        let local = held.is_local();
        let patience = held.patience();
        let Stage::Running(run) = &mut held.stage else { return };
        if let Some((why, give_up)) = run.live.ending {
            if give_up <= time.now.up {
                self.end(id, Facts::given_up(why), time, effects);
            }
        } else if run.until.passed(time) == Passed::Yes {
            if local {
                return self.end(id, Facts::ended(Ending::Timeout), time, effects);
            }
            run.live.ending = Some((Ending::Timeout, time.now.up + patience));
            effects.acts.push(Act::Stop(id, Ending::Timeout));
        } else if run.lease.is_some_and(|lease| lease.until.passed(time) == Passed::Yes) {
            let message = "the app that had it neither ended it nor asked for more time";
            self.lose(id, "lease_lost", message, time, effects);
        }
    }

    fn expire(&mut self, id: CommandId, time: &Time, effects: &mut Effects) {
        let Some(held) = self.held.get(&id) else { return };
        let Stage::Waiting { begun } = held.stage else { return };
        if held.command.closes.passed(time) != Passed::Yes {
            return;
        }
        let facts = if begun == 0 {
            let message = match device_of(&held.command) {
                Some(_) => "its time was over before the device heard commands and was free for it",
                None => "its time was over before its turn came",
            };
            Facts::because(State::Expired, "expired", message, false)
        } else {
            let message = "it was broken off, and its time was over before it could begin again";
            Facts::because(State::Failed, "interrupted", message, true)
        };
        self.end(id, facts, time, effects);
    }

    /// What is next in each queue that runs nothing and may begin, in the order in which it came.
    pub(super) fn heads(&self, time: &Time) -> Vec<&Held> {
        let running = |held: &&Held| matches!(held.stage, Stage::Running(_));
        let busy: BTreeSet<_> = self.held.values().filter(running).map(|held| &held.command.queue).collect();
        let at_work: BTreeSet<_> =
            self.held.values().filter(running).filter_map(|held| device_of(&held.command)).collect();
        let mut heads: BTreeMap<&MetricName, &Held> = BTreeMap::new();
        for held in self.held.values() {
            let Stage::Waiting { .. } = held.stage else { continue };
            // One whose time has not come is not yet in line.
            let early = held.command.opens.is_some_and(|opens| opens.passed(time) == Passed::No);
            if early || busy.contains(&held.command.queue) {
                continue;
            }
            // Nor is one whose device is asleep, away, or busy with another: others need not wait for it.
            let away = |device: &str| {
                let hears = DeviceId::parse(device).is_ok_and(|device| self.hearing.contains(&device));
                !hears || at_work.contains(device)
            };
            if device_of(&held.command).is_some_and(away) {
                continue;
            }
            let head = heads.entry(&held.command.queue).or_insert(held);
            if place(held) < place(head) {
                *head = held;
            }
        }
        let known = |limit: &Limit| limit.passed(time) != Passed::Unknown;
        let mut heads: Vec<_> = heads.into_values().collect();
        // One whose time cannot be told keeps its place, and its queue waits with it.
        heads.retain(|held| known(&held.command.closes) && held.command.opens.as_ref().is_none_or(known));
        heads.sort_by_key(|held| held.arrival);
        heads
    }

    fn may_begin(&self, time: &Time) -> Vec<CommandId> {
        let ours = |held: &&Held| matches!(held.stage, Stage::Running(_)) && !held.is_local();
        let free = PARALLEL.saturating_sub(self.held.values().filter(ours).count());
        let heads = self.heads(time).into_iter().filter(|held| !held.is_local());
        heads.take(free).map(|held| held.command.id).collect()
    }

    /// Begins: the intent is written before anything happens.
    pub(super) fn begin(
        &mut self,
        id: CommandId,
        lease: Option<Duration>,
        time: &Time,
        effects: &mut Effects,
    ) {
        let Some(held) = self.held.get(&id) else { return };
        let Stage::Waiting { begun } = held.stage else { return };
        let lease = lease.map(|span| Lease {
            span_ms: u64::try_from(span.as_millis()).unwrap_or(u64::MAX),
            until: Limit::after(span, time),
        });
        let until = Limit::after(Duration::from_millis(held.command.timeout_ms), time);
        let run = Run { begun: begun + 1, until, lease, live: super::Live::default() };
        let held = Held { stage: Stage::Running(run), ..held.clone() };
        if begun == 0 {
            effects.say(&held, time);
        }
        if !held.is_local() {
            effects.acts.push(Act::Start(Box::new(held.command.clone())));
        }
        self.hold(held, effects);
    }

    fn next_due(&self, time: &Time) -> Option<Duration> {
        let mut due: Option<Duration> = None;
        let mut note = |at: Duration| due = Some(due.map_or(at, |due| due.min(at)));
        let unknown = time.now.up + TIME_AGAIN;
        for held in self.held.values() {
            match &held.stage {
                Stage::Waiting { .. } => {
                    note(held.command.closes.up(time).unwrap_or(unknown));
                    let opens = held.command.opens.filter(|opens| opens.passed(time) != Passed::Yes);
                    if let Some(opens) = opens {
                        note(opens.up(time).unwrap_or(unknown));
                    }
                }
                Stage::Running(run) => match run.live.ending {
                    Some((_, give_up)) => note(give_up),
                    None => {
                        note(run.until.up(time).unwrap_or(unknown));
                        if let Some(lease) = run.lease {
                            note(lease.until.up(time).unwrap_or(unknown));
                        }
                    }
                },
            }
        }
        due
    }
}

impl Held {
    /// How long its end is waited for once it was told to.
    pub(super) fn patience(&self) -> Duration {
        if self.is_update() { UPDATE_PATIENCE } else { STOP_PATIENCE }
    }
}

/// The place in its queue: what was broken off goes on first.
fn place(held: &Held) -> (bool, Reverse<i8>, u64, u64) {
    let fresh = held.stage == (Stage::Waiting { begun: 0 });
    (fresh, Reverse(held.command.priority), held.command.no, held.arrival)
}
