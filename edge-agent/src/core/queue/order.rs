//! Taking commands in: from the hub's orders, and from programs on the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ciborium::Value;
use fleet_schemas::{
    CommandId, MetricName,
    command::{Offer, Orders, Reason, State},
    limits,
};

use super::{
    Command, Effects, Held, LIFE, Limit, Origin, Over, QUEUE_BYTES, Queues, Stage, Time, end::Facts, reason,
};

/// What is known beside the queues when orders come in.
#[derive(Debug, Default)]
pub struct View {
    /// Those of the ids in the orders that are over and remembered.
    pub known: BTreeMap<CommandId, Over>,
    /// Those of the new offers that this node does not do, and why.
    pub refused: BTreeMap<CommandId, Reason>,
    /// Whether the hub has acknowledged every report: if it still asks, it has lost one.
    pub drained: bool,
    /// How long the orders were under way, as far as that is known.
    pub age: Duration,
    /// Whether one more result can be remembered.
    pub room: bool,
}

/// A command that a program on the node asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// A fresh id.
    pub id: CommandId,
    /// Its queue.
    pub queue: MetricName,
    /// Higher goes first.
    pub priority: i8,
    /// What to do.
    pub kind: MetricName,
    /// With what.
    pub params: Value,
    /// How long it may wait to begin; at most [`LIFE`].
    pub ttl: Duration,
    /// How long it may run; at most [`LIFE`].
    pub timeout: Duration,
    /// Whether doing it twice is the same as doing it once.
    pub idempotent: bool,
}

impl Queues {
    /// Takes the hub's orders: cancels first, so that what is offered and canceled at once never begins.
    pub fn take_orders(&mut self, orders: &Orders, view: &View, time: &Time) -> Effects {
        let mut effects = Effects::default();
        let mut seen = BTreeSet::new();
        for id in orders.cancels.iter().take(limits::QUEUE_LENGTH) {
            if seen.insert(*id) {
                self.cancel(*id, view, time, &mut effects);
            }
        }
        for offer in orders.offers.iter().take(limits::QUEUE_LENGTH) {
            if seen.insert(offer.id) {
                self.take_offer(offer, view, time, &mut effects);
            }
        }
        effects
    }

    /// Takes a command of a program on the node.
    ///
    /// # Errors
    /// Why it is not taken; nothing changed.
    pub fn ask(&mut self, ask: Ask, time: &Time) -> Result<Effects, Reason> {
        let Ask { id, queue, priority, kind, params, ttl, timeout, idempotent } = ask;
        // Behind what waits in its queue now, and before what comes later.
        let no = self.held.values().filter(|held| held.command.queue == queue).map(|held| held.command.no);
        let command = Command {
            id,
            no: no.max().unwrap_or(0),
            queue,
            priority,
            kind,
            params,
            timeout_ms: millis(timeout.min(LIFE)),
            idempotent,
            supersedes: None,
            origin: Origin::Node,
            opens: None,
            closes: Limit::after(ttl.min(LIFE), time),
        };
        self.check_room(&command)?;
        let mut effects = Effects::default();
        self.accept(command, time, &mut effects);
        Ok(effects)
    }

    fn take_offer(&mut self, offer: &Offer, view: &View, time: &Time, effects: &mut Effects) {
        if let Some(held) = self.held.get(&offer.id) {
            if view.drained {
                effects.say(held, time);
            }
            return;
        }
        if let Some(over) = view.known.get(&offer.id) {
            if view.drained {
                effects.say_over(over);
            }
            return;
        }
        let command = command(offer, view.age, time);
        match self.judge(offer, &command, view) {
            Ok(()) => self.accept(command, time, effects),
            Err(facts) => self.remember(&command, facts, Vec::new(), time, effects),
        }
    }

    fn judge(&self, offer: &Offer, command: &Command, view: &View) -> Result<(), Facts> {
        let rejected = |reason| Facts { reason: Some(reason), ..Facts::new(State::Rejected) };
        offer.check().map_err(|what| rejected(reason("bad_params", what, false)))?;
        if let Some(reason) = view.refused.get(&offer.id) {
            return Err(rejected(reason.clone()));
        }
        if Duration::from_millis(offer.left_ms) <= view.age {
            let late = reason("expired", "its time was over when it arrived", false);
            return Err(Facts { reason: Some(late), ..Facts::new(State::Expired) });
        }
        if !view.room && !command.idempotent {
            let message = format!(
                "the node remembers {} results that it must not forget yet; wait a day, or send fewer commands",
                super::REMEMBERED
            );
            return Err(rejected(reason("memory_full", message, false)));
        }
        self.check_room(command).map_err(rejected)
    }

    fn check_room(&self, command: &Command) -> Result<(), Reason> {
        if self.held.len() >= limits::QUEUE_LENGTH {
            let message = format!("the node holds {} commands; wait until some are over", self.held.len());
            return Err(reason("queue_full", message, false));
        }
        if self.bytes + super::size(command) > QUEUE_BYTES {
            let message = format!(
                "the parameters of all waiting commands exceed {QUEUE_BYTES} bytes; wait, or send less"
            );
            return Err(reason("queue_full", message, false));
        }
        Ok(())
    }

    fn accept(&mut self, command: Command, time: &Time, effects: &mut Effects) {
        let rivals = self.held.values().filter(|held| {
            let same = held.command.supersedes.is_some() && held.command.supersedes == command.supersedes;
            same && held.stage == (Stage::Waiting { begun: 0 })
        });
        let (newer, older): (Vec<_>, Vec<_>) =
            rivals.map(|held| (held.command.no, held.command.id)).partition(|(no, _)| *no > command.no);
        let superseded = |by: CommandId| {
            let why = reason("superseded", format!("command {by} took its place"), false);
            Facts { reason: Some(why), ..Facts::new(State::Superseded) }
        };
        let id = command.id;
        let held = Held { command, arrival: self.next_arrival, stage: Stage::Waiting { begun: 0 } };
        self.next_arrival += 1;
        effects.say(&held, time);
        self.hold(held, effects);
        for (_, rival) in older {
            self.end(rival, superseded(id), time, effects);
        }
        let running: Vec<_> =
            self.held.values().filter(|held| held.is_update()).map(|held| held.command.id).collect();
        for rival in running {
            self.give_way(rival, time, effects);
        }
        if let Some((_, newest)) = newer.into_iter().max() {
            self.end(id, superseded(newest), time, effects);
        }
    }
}

fn command(offer: &Offer, age: Duration, time: &Time) -> Command {
    let left = Duration::from_millis(offer.left_ms).saturating_sub(age).min(LIFE);
    let delay = Duration::from_millis(offer.delay_ms).saturating_sub(age);
    Command {
        id: offer.id,
        no: offer.no,
        queue: offer.queue.clone(),
        priority: offer.priority,
        kind: offer.kind.clone(),
        params: offer.params.clone(),
        timeout_ms: offer.timeout_ms.min(millis(LIFE)),
        idempotent: offer.idempotent,
        supersedes: offer.supersedes.clone(),
        origin: Origin::Hub,
        opens: (!delay.is_zero()).then(|| Limit::after(delay, time)),
        closes: Limit::after(left, time),
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
