//! The command queues joined to the outbox: a state and its report are one transaction, and nothing acts before it.
//!
//! What may begin comes out of [`Uplink::acts`]; whoever runs it says what became of it by [`Uplink::output`] and
//! [`Uplink::finished`]. Without a [`Judge`] the agent takes no commands.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ciborium::Value;
use fleet_schemas::{
    CommandId, DeviceId, Lane, MetricName,
    batch::Clock,
    command::{Orders, Reason, State},
    event::{Event, Severity},
};

use super::{Error, Uplink};
use crate::{
    core::{
        Now,
        lanes::Stream,
        queue::{
            self, Act, Ask, Change, Effects, End, Held, LocalReport, Note, Over, Queues, REMEMBER,
            REMEMBER_AT_LEAST, REMEMBERED, REMEMBERED_WHOLE, Take, Time, View, reason,
        },
    },
    store::{commands::FoundCommands, outbox::Write},
};

/// Longest that a message of the hub is believed to have been under way: a connection that is slower is dead.
const UNDER_WAY: Duration = Duration::from_secs(60);
/// Results that are forgotten in one go: bounds the transaction.
const FORGET_AT_ONCE: usize = 1_000;
/// When the next ones are forgotten, if there were so many.
const SWEEP_ON: Duration = Duration::from_secs(5);

/// Knows what this node does: asked for every new command, so that what is not done is refused at once.
pub trait Judge: Send + Sync {
    /// Whether the node would do this.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    fn judge(&self, kind: &MetricName, params: &Value) -> Result<(), Reason>;
}

/// The queues, and what belongs to them beside the outbox.
pub(super) struct Commands {
    pub(super) queues: Queues,
    judge: Option<Arc<dyn Judge>>,
    // Acts that wait for their transaction, and those that may be done.
    staged: Vec<Act>,
    acts: Vec<Act>,
    // Changes in the next transaction, and those that are on disk.
    staged_changes: u64,
    changes: u64,
    // Rows that were damaged, until they are reported.
    damaged: Vec<CommandId>,
    // Results remembered: those that may be forgotten early, and the others.
    harmless: u64,
    others: u64,
    // Up to which order those that may be forgotten early, and the others, are known to be thin.
    thin: [u64; 2],
    // The hub's wall clock, and the time since boot at which it was heard.
    heard: Option<(i64, Duration)>,
    // How long the agent had run at least, all its starts together, and the time since boot at which this one began.
    lived_ms: u64,
    began: Duration,
}

impl Commands {
    pub(super) fn new(found: FoundCommands, now: Now) -> Self {
        let FoundCommands { held, damaged, harmless, others, next_order, lived_ms } = found;
        Self {
            queues: Queues::found(held, next_order),
            judge: None,
            staged: Vec::new(),
            acts: Vec::new(),
            staged_changes: 0,
            changes: 0,
            damaged,
            harmless,
            others,
            thin: [0; 2],
            heard: None,
            lived_ms,
            began: now.up,
        }
    }

    /// The transaction is on disk.
    pub(super) fn committed(&mut self) {
        self.acts.append(&mut self.staged);
        self.changes += std::mem::take(&mut self.staged_changes);
    }

    pub(super) fn due(&self) -> Option<Duration> {
        self.judge.as_ref()?;
        self.queues.due()
    }
}

impl Uplink {
    /// From now on commands are taken. `alive` are those that this process runs although the file was opened anew;
    /// other runs found in it are broken off.
    pub fn take_commands(&mut self, judge: Arc<dyn Judge>, alive: &BTreeSet<CommandId>) {
        self.commands.judge = Some(judge);
        self.commands.queues.claim(alive);
    }

    /// What the runner has to do now. All of it is on disk.
    pub fn acts(&mut self) -> Vec<Act> {
        std::mem::take(&mut self.commands.acts)
    }

    /// Takes the hub's orders. Those of another session are ignored: the hub says them again.
    ///
    /// # Errors
    /// [`Error`]: nothing of it is taken, and the value is dead.
    pub fn take_orders(&mut self, orders: &Orders, now: Now) -> Result<(), Error> {
        let Some(judge) = self.commands.judge.clone() else { return Ok(()) };
        if self.session.as_ref().is_none_or(|session| session.id != orders.session) {
            return Ok(());
        }
        let age = self.age(orders.hub_ms, now);
        self.hear(orders.hub_ms, now);
        let view = self.view(orders, judge.as_ref(), age, now)?;
        // By the estimate that gave the age: by this message alone, what it was late would be taken off twice, and what
        // must wait would begin too early after a reboot.
        let late_ms = u64::try_from(age.as_millis()).unwrap_or(0);
        let true_ms = Some(orders.hub_ms.saturating_add_unsigned(late_ms));
        let time = Time { true_ms, ..self.time(now) };
        let effects = self.commands.queues.take_orders(orders, &view, &time);
        self.carry_out(effects, now);
        self.advance(now);
        self.commit_staged()
    }

    /// Takes a command of a program on the node; it is on disk when it says `Ok(Ok(()))`.
    ///
    /// # Errors
    /// [`Error`]; inside, why the command is not taken.
    pub fn ask(&mut self, ask: Ask, now: Now) -> Result<Result<(), Reason>, Error> {
        let Some(judge) = self.commands.judge.clone() else {
            return Ok(Err(reason("no_commands", "this agent takes no commands", false)));
        };
        if let Some(same) = self.knows_ask(&ask)? {
            let reused = || reason("reused", "this id was used for another command; choose another", false);
            return Ok(same.then_some(()).ok_or_else(reused));
        }
        if let Err(reason) = self.judge(judge.as_ref(), &ask.kind, &ask.params) {
            return Ok(Err(reason));
        }
        match self.commands.queues.ask(ask, &self.time(now)) {
            Ok(effects) => {
                self.carry_out(effects, now);
                self.advance(now);
                self.commit_staged().map(Ok)
            }
            Err(reason) => Ok(Err(reason)),
        }
    }

    /// Whether it is the same, if a command was asked for by this id before; of one that is over, its kind is known.
    fn knows_ask(&self, ask: &Ask) -> Result<Option<bool>, Error> {
        if let Some(held) = self.commands.queues.get(ask.id) {
            let same = held.command.kind == ask.kind && held.command.params == ask.params;
            return Ok(Some(same));
        }
        let over = self.outbox.result(ask.id)?;
        Ok(over.map(|over| over.kind.is_none_or(|kind| kind == ask.kind)))
    }

    /// A run said more. Written with whatever is written next.
    pub fn output(&mut self, id: CommandId, bytes: &[u8], now: Now) {
        let room = self.used_bytes() < self.config.quota_bytes;
        let effects = self.commands.queues.output(id, bytes, room, &self.time(now));
        self.carry_out(effects, now);
    }

    /// A run ended. `false`: it was over already, and its end is not news.
    ///
    /// # Errors
    /// [`Error`]: say it again to the uplink that takes this one's place.
    pub fn finished(&mut self, id: CommandId, end: End, now: Now) -> Result<bool, Error> {
        let Some(effects) = self.commands.queues.finish(id, end, &self.time(now)) else { return Ok(false) };
        self.carry_out(effects, now);
        self.advance(now);
        self.commit_staged().map(|()| true)
    }

    /// Gives an app on the node the oldest command that it can do.
    ///
    /// # Errors
    /// [`Error`].
    pub fn take_local(&mut self, take: &Take, now: Now) -> Result<Option<queue::Command>, Error> {
        self.advance(now);
        let taken = self.commands.queues.take_local(take, &self.time(now));
        let command = taken.map(|(command, effects)| {
            self.carry_out(effects, now);
            command
        });
        self.commit_staged().map(|()| command)
    }

    /// An app wants more time for what it took. `false`: it does not have it any more.
    ///
    /// # Errors
    /// [`Error`].
    pub fn extend_local(&mut self, id: CommandId, lease: Duration, now: Now) -> Result<bool, Error> {
        let effects = self.commands.queues.extend_local(id, lease, &self.time(now));
        self.carry_out_some(effects, now)
    }

    /// An app is done with what it took. `false`: it does not have it any more.
    ///
    /// # Errors
    /// [`Error`].
    pub fn report_local(&mut self, id: CommandId, said: LocalReport, now: Now) -> Result<bool, Error> {
        let room = self.used_bytes() < self.config.quota_bytes;
        let effects = self.commands.queues.report_local(id, said, room, &self.time(now));
        self.carry_out_some(effects, now)
    }

    /// Counts what changed of commands and is on disk.
    #[must_use]
    pub fn command_changes(&self) -> u64 {
        self.commands.changes
    }

    /// A device hears commands from now on, or does not any more.
    pub fn device_hears(&mut self, id: &DeviceId, hears: bool) {
        self.commands.queues.hears(id, hears);
    }

    /// What is held, in the order in which it came.
    #[must_use]
    pub fn held_commands(&self) -> Vec<Held> {
        let mut held: Vec<_> = self.commands.queues.held().cloned().collect();
        held.sort_by_key(|held| held.arrival);
        held
    }

    /// One command that is held.
    #[must_use]
    pub fn held_command(&self, id: CommandId) -> Option<&Held> {
        self.commands.queues.get(id)
    }

    /// One command that is over and remembered.
    ///
    /// # Errors
    /// [`Error`].
    pub fn over_command(&self, id: CommandId) -> Result<Option<Over>, Error> {
        self.outbox.result(id)
    }

    /// The hub told its time.
    pub(super) fn hear(&mut self, hub_ms: i64, now: Now) {
        self.commands.heard = Some((hub_ms, now.up));
        self.commands.queues.stir();
    }

    /// What a birth says: the hub's commands that are not over.
    pub(super) fn held_ids(&self) -> Option<Vec<CommandId>> {
        self.commands.judge.as_ref()?;
        let ours = self.commands.queues.held().filter(|held| held.command.origin == queue::Origin::Hub);
        Some(ours.map(|held| held.command.id).collect())
    }

    /// Stages what is due in the queues.
    pub(super) fn advance(&mut self, now: Now) {
        if self.commands.judge.is_none() {
            return;
        }
        for id in std::mem::take(&mut self.commands.damaged) {
            self.give_up_damaged(id, now);
        }
        let effects = self.commands.queues.advance(&self.time(now));
        self.carry_out(effects, now);
    }

    /// Forgets results that are old, or too many, and what all but the newest gave.
    ///
    /// # Errors
    /// [`Error`].
    pub(super) fn forget_results(&mut self, now: Now) -> Result<(), Error> {
        if self.commands.judge.is_none() {
            return Ok(());
        }
        for harmless in [true, false] {
            // First: a row is not to come back when it was forgotten.
            let more = self.thin_results(harmless)?;
            let total = self.commands.harmless + self.commands.others;
            let oldest = self.outbox.oldest_results(harmless, 0, FORGET_AT_ONCE)?;
            let old = |(at, over): &(usize, &Over)| {
                let age = self.age_of(over, now);
                let older = |than: Duration| age.is_some_and(|age| age > than);
                let crowded = total - *at as u64 > REMEMBERED && (harmless || older(REMEMBER_AT_LEAST));
                crowded || older(REMEMBER)
            };
            let count = oldest.iter().enumerate().take_while(old).count();
            if count > 0 {
                let kept = if harmless { &mut self.commands.harmless } else { &mut self.commands.others };
                *kept = kept.saturating_sub(count as u64);
                self.staged.push(Write::ForgetResults { harmless, count });
            }
            if more || count == FORGET_AT_ONCE {
                // There are more: an hour could bring more than one sweep takes away.
                self.sweep_due = now.up + SWEEP_ON;
            }
        }
        Ok(())
    }

    /// Stages that some results are remembered without what they gave; whether there may be more of those.
    fn thin_results(&mut self, harmless: bool) -> Result<bool, Error> {
        let whole_from = self.commands.queues.next_order().saturating_sub(REMEMBERED_WHOLE);
        let thin = &mut self.commands.thin[usize::from(!harmless)];
        let next = self.outbox.oldest_results(harmless, *thin, FORGET_AT_ONCE)?;
        let old: Vec<_> = next.iter().take_while(|over| over.order < whole_from).collect();
        if let Some(last) = old.last() {
            *thin = last.order + 1;
        }
        let more = old.len() == FORGET_AT_ONCE;
        let thinned = old.into_iter().filter_map(Over::thinned);
        self.staged.extend(thinned.map(|over| Write::Command(Change::Amend(Box::new(over)))));
        Ok(more)
    }

    fn carry_out_some(&mut self, effects: Option<Effects>, now: Now) -> Result<bool, Error> {
        let Some(effects) = effects else { return Ok(false) };
        self.carry_out(effects, now);
        self.advance(now);
        self.commit_staged().map(|()| true)
    }

    /// What the hub asked for is over: the node leaves it.
    pub(super) fn forget_orders(&mut self, now: Now) {
        let effects = self.commands.queues.leave(&self.time(now));
        self.carry_out(effects, now);
    }

    /// Writes what is staged; marks alone can wait.
    pub(super) fn commit_staged(&mut self) -> Result<(), Error> {
        if self.staged.is_empty() {
            self.committed();
            return Ok(());
        }
        self.commit()
    }

    /// Stages rows, reports and events; acts wait for the commit.
    fn carry_out(&mut self, effects: Effects, now: Now) {
        let Effects { writes, reports, notes, acts } = effects;
        let lived_ms = self.lived_ms(now);
        for mut change in writes {
            self.commands.staged_changes += 1;
            match &mut change {
                Change::Over(over) => {
                    over.lived_ms = Some(lived_ms);
                    let kept =
                        if over.harmless { &mut self.commands.harmless } else { &mut self.commands.others };
                    *kept += 1;
                }
                Change::Hold(_) | Change::Amend(_) => {}
            }
            self.staged.push(Write::Command(change));
        }
        self.seal_records(Lane::Command, &reports, now);
        let events: Vec<_> = notes.into_iter().map(|note| event(note, now)).collect();
        self.seal_records(Lane::Event, &events, now);
        self.commands.staged.extend(acts);
    }

    /// A command whose row is damaged: it may have run.
    fn give_up_damaged(&mut self, id: CommandId, now: Now) {
        let message = "the node's record of it is damaged; check its storage";
        let over = Over {
            id,
            kind: None,
            state: State::Failed,
            time_ms: now.wall_ms,
            true_ms: self.time(now).true_ms,
            lived_ms: None,
            reason: Some(reason("agent_state_lost", message, true)),
            exit_code: None,
            result: None,
            output: Vec::new(),
            origin: queue::Origin::Hub,
            too_late: false,
            harmless: false,
            order: 0,
        };
        let effects = self.commands.queues.give_up(over);
        self.carry_out(effects, now);
    }

    fn view(&self, orders: &Orders, judge: &dyn Judge, age: Duration, now: Now) -> Result<View, Error> {
        let mut view = View { age, drained: self.is_drained(), room: self.has_room(now)?, ..View::default() };
        let offered = orders.offers.iter().map(|offer| offer.id);
        for id in offered.chain(orders.cancels.iter().copied()) {
            if self.commands.queues.get(id).is_none()
                && let Some(over) = self.outbox.result(id)?
            {
                view.known.insert(id, over);
            }
        }
        for offer in &orders.offers {
            let new = self.commands.queues.get(offer.id).is_none() && !view.known.contains_key(&offer.id);
            if new && let Err(reason) = self.judge(judge, &offer.kind, &offer.params) {
                view.refused.insert(offer.id, reason);
            }
        }
        Ok(view)
    }

    /// Whether the node would do this: the judge knows kinds, the registry devices.
    fn judge(&self, judge: &dyn Judge, kind: &MetricName, params: &Value) -> Result<(), Reason> {
        judge.judge(kind, params)?;
        let named = queue::device_in(kind, params);
        match named.map(DeviceId::parse) {
            Some(Ok(id)) if self.devices.get(&id).is_none() => {
                let message =
                    format!("this node has no device {id}; `fleet node describe` lists those it has");
                Err(reason("unknown_device", message, false))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn is_drained(&self) -> bool {
        self.lanes.get(Lane::Command).streams.values().all(Stream::is_drained)
    }

    /// Whether one more result can be remembered without forgetting one too early.
    fn has_room(&self, now: Now) -> Result<bool, Error> {
        if self.commands.others < REMEMBERED {
            return Ok(true);
        }
        let oldest = self.outbox.oldest_results(false, 0, 1)?;
        Ok(oldest.first().and_then(|over| self.age_of(over, now)).is_some_and(|age| age > REMEMBER_AT_LEAST))
    }

    /// How long ago it ended at least, where that can be told. Not by wall clocks: one that is wrong by years would have
    /// everything forgotten, and what must not run twice would.
    fn age_of(&self, over: &Over, now: Now) -> Option<Duration> {
        Some(Duration::from_millis(self.lived_ms(now).saturating_sub(over.lived_ms?)))
    }

    fn lived_ms(&self, now: Now) -> u64 {
        let since = now.up.saturating_sub(self.commands.began).as_millis();
        self.commands.lived_ms.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }

    fn time(&self, now: Now) -> Time {
        let synced = (now.clock == Clock::Synced).then_some(now.wall_ms);
        let true_ms = self.hub_now(now).or(synced);
        Time { now, boot: self.profile.boot, true_ms }
    }

    /// The hub's wall clock by what was heard of it.
    fn hub_now(&self, now: Now) -> Option<i64> {
        let (hub_ms, at) = self.commands.heard?;
        let since = u64::try_from(now.up.saturating_sub(at).as_millis()).unwrap_or(u64::MAX);
        Some(hub_ms.saturating_add_unsigned(since))
    }

    /// How long a message of the hub was under way at least.
    fn age(&self, hub_ms: i64, now: Now) -> Duration {
        let late = self.hub_now(now).map_or(0, |hub_now| hub_now.saturating_sub(hub_ms));
        Duration::from_millis(u64::try_from(late).unwrap_or(0)).min(UNDER_WAY)
    }
}

fn event(note: Note, now: Now) -> Event {
    let Note { id, kind, state, reason, exit_code } = note;
    let severity = if state == State::Succeeded { Severity::Info } else { Severity::Warning };
    let why = reason.as_ref().map_or(String::new(), |reason| format!(": {}", reason.message));
    let text = |text: &str| Value::Text(text.to_owned());
    let mut data = BTreeMap::from([
        ("id", text(&id.to_string())),
        ("kind", text(kind.as_str())),
        ("state", text(state.as_str())),
    ]);
    data.extend(reason.map(|reason| ("reason", Value::Text(reason.code))));
    data.extend(exit_code.map(|code| ("exit_code", Value::from(code))));
    let mut message = format!("the node's own {kind} command {}{why}", state.as_str());
    message.truncate(message.floor_char_boundary(fleet_schemas::limits::EVENT_MESSAGE_BYTES));
    Event {
        time_ms: now.wall_ms,
        kind: MetricName::parse("local_command").expect("our kinds are valid"),
        severity,
        message,
        data: Some(Value::Map(data.into_iter().map(|(key, value)| (text(key), value)).collect())),
        device: None,
        id: Some(id.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        store::{outbox::Outbox, sim_disk::SimFile},
        uplink::once::tests::{NOW, open},
    };

    struct Anything;

    impl Judge for Anything {
        fn judge(&self, _: &MetricName, _: &Value) -> Result<(), Reason> {
            Ok(())
        }
    }

    fn id(order: u64) -> CommandId {
        let [low, high] = [order.to_be_bytes(), [9; 8]];
        CommandId([low, high].concat().try_into().unwrap())
    }

    fn over(order: u64) -> Over {
        Over {
            id: id(order),
            kind: None,
            state: State::Succeeded,
            time_ms: 5,
            true_ms: None,
            lived_ms: Some(order),
            reason: None,
            exit_code: Some(0),
            result: Some(Value::Text("it is warm".to_owned())),
            output: vec![1; 100],
            origin: queue::Origin::Node,
            too_late: false,
            harmless: order.is_multiple_of(3),
            order,
        }
    }

    #[test]
    fn of_all_but_the_newest_results_only_how_they_ended_is_remembered() {
        let (card, all) = (SimFile::new(), 2 * FORGET_AT_ONCE as u64 + REMEMBERED_WHOLE);
        let (outbox, _) = Outbox::open(card.backend()).unwrap();
        let rows = (1..=all).map(|order| Write::Command(Change::Over(Box::new(over(order)))));
        outbox.apply(&rows.collect::<Vec<_>>()).unwrap();
        drop(outbox);
        let mut uplink = open(&card, 1).unwrap();
        uplink.take_commands(Arc::new(Anything), &BTreeSet::new());
        let (mut now, mut sweeps) = (NOW, 0);
        loop {
            uplink.sweep_due = Duration::MAX;
            uplink.forget_results(now).unwrap();
            uplink.commit_staged().unwrap();
            sweeps += 1;
            if uplink.sweep_due == Duration::MAX {
                break;
            }
            now = Now { up: uplink.sweep_due, ..now };
        }
        assert_eq!(sweeps, 2, "1,333 of one kind");
        for order in 1..=all {
            let kept = uplink.outbox.result(id(order)).unwrap().unwrap();
            let is_whole = order > all - REMEMBERED_WHOLE;
            assert_eq!(
                (kept.result.is_some(), kept.output.len()),
                (is_whole, if is_whole { 100 } else { 0 }),
                "{order}"
            );
            assert_eq!((kept.state, kept.exit_code, kept.order), (State::Succeeded, Some(0), order));
        }
    }
}
