//! The consumer's thread: receive, consume, speak, again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use bytes::Bytes;
use fleet_broker::{Link, Message, Publisher, Stats as BrokerStats};
use fleet_schemas::{Topic, command::State, topic::Down};
use tokio::sync::{broadcast, watch};

use super::{Door, Ear, IntentError, Observer, Pending, readiness::Health};
use crate::{
    clock::{self, HubClock},
    consume::{CREDIT, Consumer, FeedItem, Refusals, Settled, Spoken},
    core::command::Change,
};

/// Most messages in one transaction: bounds how long the first of them waits for its ack.
const GROUP: usize = 1_000;
/// How long to wait for messages before deadlines, intents and the stop are looked at again.
const WAIT: Duration = Duration::from_millis(20);
/// Pause between attempts to open failed stores again.
const REOPEN: Duration = Duration::from_secs(1);
/// How often last-seen times are written although nothing else of a node changed.
const SNAPSHOT: Duration = Duration::from_secs(300);

/// How often one kind of refusal is logged.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// What one round did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Round {
    /// Messages taken.
    pub messages: usize,
    /// Their payload bytes.
    pub bytes: u64,
    /// Samples stored.
    pub samples: u64,
    /// Events stored.
    pub events: u64,
    /// Executions that came to their last state, in the order of [`State::ALL`].
    pub ended: [u64; State::ALL.len()],
    /// Time from the first message taken to the end of the commit.
    pub commit: Duration,
    /// Whether the commit failed.
    pub failed: bool,
}

pub(super) struct Rounds {
    pub consumer: Consumer,
    pub link: Link,
    pub intents: mpsc::Receiver<Pending>,
    pub feed: broadcast::Sender<Arc<FeedItem>>,
    /// Counts commits of samples and events.
    pub committed: watch::Sender<u64>,
    pub health: Arc<Health>,
    pub broker: Arc<BrokerStats>,
    pub clock: Arc<HubClock>,
    pub refusals: Arc<Mutex<Refusals>>,
    pub stop: Arc<AtomicBool>,
    pub observer: Observer,
    pub door: Arc<OnceLock<Door>>,
    pub ear: Arc<OnceLock<Ear>>,
    /// What the round before told followers. Kept until they have let go of it, so that this thread frees what it
    /// allocated: a follower that does makes both wait for the allocator's lock.
    pub told: Vec<Arc<FeedItem>>,
    /// Refusals by message and reason: how many were logged, and when.
    pub logged: BTreeMap<(&'static str, &'static str), (u64, Duration)>,
}

impl Rounds {
    /// Runs until the broker is shut down and everything received was consumed.
    pub(super) fn run(&mut self) {
        let publisher = self.link.publisher();
        let mut messages = Vec::new();
        let mut snapshot_due = clock::mono() + SNAPSHOT;
        loop {
            messages.clear();
            let open = self.link.recv(&mut messages, GROUP, WAIT).is_ok();
            let pending: Vec<Pending> = self.intents.try_iter().take(GROUP).collect();
            self.round(&publisher, &messages, pending);
            self.link.taken(&messages);
            if clock::mono() >= snapshot_due {
                snapshot_due = clock::mono() + SNAPSHOT;
                self.snapshot();
            }
            self.health.finished_round();
            if !open || (messages.is_empty() && self.stop.load(Ordering::Acquire)) {
                break;
            }
        }
        self.snapshot();
    }

    fn round(&mut self, publisher: &Publisher, messages: &[Message], pending: Vec<Pending>) {
        let began = clock::mono();
        if let Some(why) = self.trouble() {
            // Nothing is acked; what the nodes send they send again. Sessions stay open.
            refuse(pending, &why);
            self.try_reopen();
            return;
        }
        let (intents, answers): (Vec<_>, Vec<_>) = pending.into_iter().unzip();
        let group = messages.iter().map(|message| (&message.topic, &message.payload));
        let result = self.consumer.consume(group, intents, self.credit(), self.clock.now());
        let mut round = Round {
            messages: messages.len(),
            bytes: messages.iter().map(|message| message.payload.len() as u64).sum(),
            commit: clock::mono().saturating_sub(began),
            ..Round::default()
        };
        match result {
            Ok(spoken) => {
                for item in &spoken.items {
                    match &**item {
                        FeedItem::Samples { samples, .. } => round.samples += samples.count(),
                        FeedItem::Event(_) => round.events += 1,
                        FeedItem::Execution(change) => count_ended(&mut round.ended, change),
                        FeedItem::Node(_)
                        | FeedItem::Config(_)
                        | FeedItem::Alert(_)
                        | FeedItem::Rollout(_) => {}
                    }
                }
                if round.samples + round.events > 0 {
                    self.committed.send_modify(|count| *count = count.wrapping_add(1));
                }
                if round.samples + round.events > 0 || spoken.outcomes.iter().any(Result::is_ok) {
                    self.health.stored();
                }
                self.speak(publisher, spoken, answers);
                self.show_refusals();
            }
            Err(error) => {
                round.failed = true;
                let why = error.to_string();
                // Known before it is logged: the log may lie on the same full disk.
                self.health.failed(why.clone());
                tracing::error!(%error, "failed to store a group of messages; nothing of it was acked");
                let Settled { outcomes, cuts } = self.consumer.settled();
                if let Some(door) = self.door.get() {
                    cuts.iter().for_each(|cut| door(cut));
                }
                let mut outcomes = outcomes.into_iter();
                for answer in answers {
                    let unavailable = || Err(IntentError::Unavailable(why.clone()));
                    let outcome = outcomes.next().map(|outcome| outcome.map_err(IntentError::Registry));
                    drop(answer.send(outcome.unwrap_or_else(unavailable)));
                }
            }
        }
        (self.observer)(&round);
    }

    fn speak(
        &mut self,
        publisher: &Publisher,
        spoken: Spoken,
        answers: Vec<tokio::sync::oneshot::Sender<Result<(), IntentError>>>,
    ) {
        if let Some(door) = self.door.get() {
            spoken.cuts.iter().for_each(|cut| door(cut));
        }
        let ear = self.ear.get();
        for (topic, payload) in spoken.downs {
            if let (Topic::Down(node, Down::Ack), Some(ear)) = (&topic, ear)
                && ear(node, &payload)
            {
                continue;
            }
            // A full down path drops the ack; the node sends again and is answered again.
            if publisher.publish(&topic, Bytes::from(payload)).is_err() {
                tracing::debug!(%topic, "an ack was dropped");
            }
        }
        for (answer, outcome) in answers.into_iter().zip(spoken.outcomes) {
            // Whoever asked may be gone.
            drop(answer.send(outcome.map_err(IntentError::Registry)));
        }
        self.told.clear();
        if self.feed.receiver_count() > 0 {
            spoken.items.iter().for_each(|item| drop(self.feed.send(item.clone())));
            self.told = spoken.items;
        }
    }

    /// Shows the refusals to whoever asks, and logs each kind once a minute at most: a node that sends rubbish must not
    /// fill the log.
    fn show_refusals(&mut self) {
        let mut shown = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if *shown == *self.consumer.refusals() {
            return;
        }
        shown.clone_from(self.consumer.refusals());
        let now = clock::mono();
        for (message, reason, count) in shown.iter() {
            let (counted, at) = self.logged.get(&(message, reason)).copied().unwrap_or_default();
            if count > counted && (counted == 0 || now.saturating_sub(at) >= LOG_AGAIN) {
                let more = count - counted;
                tracing::warn!(message, reason, more, "payloads of nodes could not be read");
                self.logged.insert((message, reason), (count, now));
            }
        }
    }

    /// Less credit while the consumer lags behind what the gate has read.
    fn credit(&self) -> u32 {
        let waiting = self.broker.in_flight_bytes.get();
        match waiting {
            0..2_000_000 => CREDIT,
            2_000_000..4_000_000 => CREDIT / 2,
            _ => CREDIT / 4,
        }
    }

    /// Why the stores must be opened again. A query may have been the first to see that the disk fails.
    fn trouble(&self) -> Option<String> {
        let poisoned = || self.consumer.shared().telemetry.poisoned();
        let why = self.health.failure().or_else(poisoned)?;
        self.health.failed(why.clone());
        Some(why)
    }

    fn try_reopen(&mut self) {
        std::thread::sleep(REOPEN);
        match self.consumer.reopen(self.clock.now()) {
            Ok(()) => {
                self.health.reopened(clock::mono());
                tracing::warn!("the stores are open again");
            }
            Err(error) => self.health.failed(error.to_string()),
        }
    }

    fn snapshot(&mut self) {
        if self.health.failure().is_none()
            && let Err(error) = self.consumer.snapshot().and_then(|()| self.consumer.fold(self.clock.now()))
        {
            self.health.failed(error.to_string());
        }
    }
}

/// A last state is told once: nothing of an execution is told after it. That a command was made tells of no node.
fn count_ended(ended: &mut [u64; State::ALL.len()], change: &Change) {
    let state = change.step.state;
    let place = State::ALL.iter().position(|known| *known == state);
    if let Some(place) = place.filter(|_| change.node.is_some() && state.is_terminal()) {
        ended[place] += 1;
    }
}

fn refuse(pending: Vec<Pending>, why: &str) {
    for (_, answer) in pending {
        drop(answer.send(Err(IntentError::Unavailable(why.to_owned()))));
    }
}
