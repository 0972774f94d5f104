//! Cancels: what waits is taken back, what runs is told to stop, and for the rest it is too late.

use fleet_schemas::{
    CommandId,
    command::{Report, State},
};

use super::{
    Act, Change, Effects, Ending, Held, Origin, Over, Queues, RESTART, Stage, Time, View, effects::report,
    end::Facts, reason,
};

impl Queues {
    /// The node leaves its hub: what that hub asked for is over here. Nobody is told, since the hub that asked ends it
    /// by itself.
    pub fn leave(&mut self, time: &Time) -> Effects {
        let mut effects = Effects::default();
        let of_hub = |held: &&Held| held.command.origin == Origin::Hub;
        let all: Vec<_> =
            self.held.values().filter(of_hub).map(|held| (held.command.id, held.state())).collect();
        for (id, state) in all {
            let begun = state == State::Running;
            let facts = Facts::because(State::Failed, "moved", "the node has moved to another hub", begun);
            self.end(id, facts, time, &mut effects);
        }
        effects.reports.clear();
        effects
    }

    pub(super) fn cancel(&mut self, id: CommandId, view: &View, time: &Time, effects: &mut Effects) {
        if self.held.contains_key(&id) {
            self.cancel_held(id, view.drained, time, effects);
        } else if let Some(over) = view.known.get(&id) {
            if !over.too_late && over.state != State::Canceled {
                let over = Over { too_late: true, ..over.clone() };
                effects.say_over(&over);
                effects.writes.push(Change::Amend(Box::new(over)));
            } else if view.drained {
                effects.say_over(over);
            }
        } else {
            self.cancel_unseen(id, time, effects);
        }
    }

    fn cancel_held(&mut self, id: CommandId, drained: bool, time: &Time, effects: &mut Effects) {
        let Some(held) = self.held.get_mut(&id) else { return };
        let local = held.is_local();
        let restart = held.command.kind.as_str() == RESTART;
        let begun = held.state() == State::Running;
        let patience = held.patience();
        match &mut held.stage {
            Stage::Running(run) if restart => {
                if !run.live.told_late || drained {
                    run.live.told_late = true;
                    let said = Report { too_late: true, ..report(id, State::Running, time) };
                    effects.reports.extend((held.command.origin == Origin::Hub).then_some(said));
                }
            }
            // Told to stop already: its end is on the way.
            Stage::Running(run) if run.live.ending.is_some() => {}
            Stage::Running(run) if !local => {
                run.live.ending = Some((Ending::Cancel, time.now.up + patience));
                effects.acts.push(Act::Stop(id, Ending::Cancel));
                self.stirred = true;
            }
            Stage::Running(_) | Stage::Waiting { .. } => {
                let message =
                    if begun { "it was canceled while it ran" } else { "it was canceled before it began" };
                let facts =
                    Facts { reason: Some(reason("canceled", message, begun)), ..Facts::new(State::Canceled) };
                self.end(id, facts, time, effects);
            }
        }
    }

    /// Canceled before it came: remembered, so that it does not run when it comes all the same.
    fn cancel_unseen(&mut self, id: CommandId, time: &Time, effects: &mut Effects) {
        let over = Over {
            id,
            kind: None,
            state: State::Canceled,
            time_ms: time.now.wall_ms,
            true_ms: time.true_ms,
            lived_ms: None,
            reason: Some(reason("canceled", "it was canceled before it arrived", false)),
            exit_code: None,
            result: None,
            output: Vec::new(),
            origin: Origin::Hub,
            too_late: false,
            harmless: false,
            order: self.take_order(),
        };
        effects.say_over(&over);
        effects.writes.push(Change::Over(Box::new(over)));
    }
}
