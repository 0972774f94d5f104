//! The engine with its stores: follows the log of batches from its own place, looks at nodes, commits what follows.
//!
//! Synchronous, time is an argument. Owns the order: judge, commit rows and place in one transaction, then speak. After
//! an error it is thrown away and made anew from the store, where it goes on from its place.

mod files;
mod sweep;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fleet_schemas::{Lane, NodeId, device::Report};

pub use files::PutError;
use sweep::Sweep;

use super::{
    AlertChange,
    rules::{Files, Listed, Marks, Refused, Texts},
};
use crate::{
    consume::{Error, Shared},
    core::{
        Now,
        alert::{Alert, Arrived, Effects, Engine, Stage, Word, route::Wants},
        audit::Entry,
        time::millis,
    },
    store::{
        log::Place,
        state::{AlertCommit, Notice},
        telemetry::{Followed, Query},
    },
};

/// Rows of one transaction: the consumer waits for it.
const ROWS_AT_ONCE: usize = 1_000;
/// Samples of one page of the log.
const PAGE_SAMPLES: u64 = 10_000;
/// How often time alone is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often the place is written although nothing followed.
const KEEP: Duration = Duration::from_secs(5);
/// Words that may wait for receivers (about 1 kB each); beyond it new ones are dropped, and counted.
pub const NOTICES: usize = 10_000;
/// Most points of history that one window is filled with.
const POINTS: usize = 10_000;

/// What a round did.
#[derive(Debug, Default)]
pub struct Told {
    /// Alerts that changed, as committed.
    pub changes: Vec<AlertChange>,
    /// Words that went into the log.
    pub logged: u64,
    /// Words that wait for receivers now, with their numbers.
    pub notices: Vec<(u64, Notice)>,
    /// How long the oldest batch of the round had waited since its receipt, milliseconds.
    pub lag_ms: i64,
}

/// What is told of the engine to whoever asks.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// All rules, also those that are not judged.
    pub listed: Arc<Vec<Listed>>,
    /// The text of `rules.yaml` that counts.
    pub text: Arc<str>,
    /// Why files that changed are not taken, if they are not.
    pub refused: Option<Refused>,
}

/// The engine with its stores.
pub struct Judge {
    shared: Shared,
    files: Files,
    routes: Vec<(String, Wants)>,
    engine: Engine,
    rules: Rules,
    texts: Texts,
    marks: Marks,
    place: Place,
    kept: Place,
    since_ms: i64,
    waiting: usize,
    dropped: u64,
    committed: Told,
    ticked: Option<Duration>,
    looked: Duration,
    kept_at: Duration,
    swept: Option<Duration>,
    sweep: Option<Sweep>,
}

impl Judge {
    /// Goes on from what the store has.
    ///
    /// # Errors
    /// [`Error`] of a store.
    pub fn open(
        shared: &Shared,
        files: Files,
        routes: Vec<(String, Wants)>,
        now: Now,
    ) -> Result<Self, Error> {
        let state = shared.state();
        let found = state.find_alerts()?;
        let (since_ms, place) = match (found.since_ms, found.place) {
            (Some(since_ms), Some(place)) => (since_ms, place),
            _ => {
                // What was stored before there was an engine is history.
                let place = shared.telemetry.log_end()?;
                state.begin_alerts(now.wall_ms, place)?;
                (now.wall_ms, place)
            }
        };
        let waiting = state.notices()?.len();
        let mut judge = Self {
            shared: shared.clone(),
            files,
            routes,
            engine: Engine::new(found.engine, now.wall_ms),
            rules: Rules::default(),
            texts: Texts::default(),
            marks: Marks::default(),
            place,
            kept: place,
            since_ms,
            waiting,
            dropped: 0,
            committed: Told::default(),
            ticked: None,
            looked: now.mono,
            kept_at: now.mono,
            swept: None,
            sweep: None,
        };
        judge.first_rules(now)?;
        judge.look_at_all(now)?;
        judge.engine.settle(now.wall_ms);
        Ok(judge)
    }

    /// The rules that count.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The engine, to be asked and told; what follows is committed with the next [`Judge::commit`].
    pub fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Words that were dropped because too many waited.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What was committed since it was last asked.
    pub fn told(&mut self) -> Told {
        std::mem::take(&mut self.committed)
    }

    /// Follows what was committed, looks at some nodes and at the clock, commits what follows.
    ///
    /// # Errors
    /// [`Error`] of a store: make another.
    pub fn round(&mut self, now: Now) -> Result<(), Error> {
        self.watch_files(now)?;
        self.follow(now)?;
        self.sweep(now)?;
        if self.ticked.is_none_or(|ticked| now.mono >= ticked + TICK) {
            self.ticked = Some(now.mono);
            self.engine.tick(now.wall_ms);
        }
        self.commit(Vec::new(), Vec::new(), now)
    }

    /// Whether a pass over all nodes is under way: then the next round should not wait.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.sweep.is_some()
    }

    /// A node changed, or is gone.
    pub fn node(&mut self, id: &NodeId, now: Now) {
        let facts = {
            let fleet = self.shared.fleet();
            fleet.nodes.get(id).map(|node| self.engine.look(node, now.mono))
        };
        // A node that is gone is found by the next pass over all of them.
        if let Some(mut facts) = facts {
            facts.certificate_ms = self.certificate_ms(id);
            self.engine.node(facts, now.wall_ms);
        }
    }

    /// A node reported a device; times are hub time.
    pub fn device(&mut self, node: &NodeId, report: &Report, now: Now) {
        let number = self.shared.fleet().nodes.get(node).map(|node| node.number);
        if let Some(number) = number {
            self.engine.device(number, report, now.wall_ms);
        }
    }

    /// Something of what changed was missed: the next pass over all nodes finds it.
    pub fn missed(&mut self) {
        self.engine.missed();
    }

    fn certificate_ms(&self, id: &NodeId) -> Option<i64> {
        let identities = self.shared.identities();
        Some(identities.enrolments.get(id)?.certificate.as_ref()?.not_after_ms)
    }

    fn follow(&mut self, now: Now) -> Result<(), Error> {
        if !self.engine.wants_samples() {
            self.place = self.shared.telemetry.log_end()?;
            return Ok(());
        }
        loop {
            let page = match self.shared.telemetry.log_page(self.place, PAGE_SAMPLES, |_| true)? {
                Ok(page) => page,
                Err(gone) => {
                    tracing::warn!(
                        ?gone,
                        "samples that were not judged are gone; alerts go on from the newest"
                    );
                    self.place = self.shared.telemetry.log_end()?;
                    return Ok(());
                }
            };
            for batch in &page.batches {
                let waited_ms = now.wall_ms.saturating_sub(batch.recv_ms);
                self.committed.lag_ms = self.committed.lag_ms.max(waited_ms);
                self.batch(batch, now)?;
            }
            self.place = page.after;
            if self.engine.has_effects() {
                self.commit(Vec::new(), Vec::new(), now)?;
            }
            if page.end {
                return Ok(());
            }
        }
    }

    fn batch(&mut self, batch: &Followed, now: Now) -> Result<(), Error> {
        if batch.lane != Lane::Telemetry {
            return Ok(());
        }
        if !self.engine.has(batch.node) {
            let id = self.shared.fleet().ids.get(&batch.node).cloned();
            let Some(id) = id else { return Ok(()) };
            self.node(&id, now);
        }
        let times = batch.samples.times();
        let first_ms = times.iter().min().map_or(i64::MAX, |time| time.saturating_add(batch.shift_ms));
        if !self.engine.knows(batch.node) {
            self.know(batch.node, first_ms, now)?;
        }
        let arrived = Arrived {
            node: batch.node,
            late: false,
            recv_ms: batch.recv_ms,
            shift_ms: batch.shift_ms,
            samples: &batch.samples,
        };
        for (device, metric, span) in self.engine.wants_history(arrived) {
            let query = Query {
                node: batch.node,
                device: Some(device.clone()),
                metric: Some(metric.clone()),
                from_ms: first_ms.saturating_sub(millis(span)),
                to_ms: first_ms,
                step: None,
                series_max: 16,
                points_max: POINTS,
            };
            // Too much of it: the window fills from now on.
            let points = self.shared.telemetry.query(&query).unwrap_or_default();
            let mut points: Vec<_> = points.into_iter().flat_map(|series| series.points).collect();
            points.sort_by_key(|(time, _)| *time);
            self.engine.history(batch.node, device, metric, &points);
        }
        self.engine.samples(arrived);
        Ok(())
    }

    /// Words that a receiver took, or that were given up.
    ///
    /// # Errors
    /// [`Error`] of a store.
    pub fn done(&mut self, numbers: Vec<u64>, now: Now) -> Result<(), Error> {
        self.waiting = self.waiting.saturating_sub(numbers.len());
        self.commit(Vec::new(), numbers, now)
    }

    /// Writes what follows, with the place up to which everything was judged.
    ///
    /// # Errors
    /// [`Error`] of a store.
    pub fn commit(&mut self, audit: Vec<Entry>, done: Vec<u64>, now: Now) -> Result<(), Error> {
        let mut effects = self.engine.take();
        let due = self.place != self.kept && now.mono >= self.kept_at + KEEP;
        if effects.is_empty() && audit.is_empty() && done.is_empty() && !due {
            return Ok(());
        }
        // Of many changes the first are written first, so that nobody waits long for the file.
        while effects.alerts.len() > ROWS_AT_ONCE {
            let bound = effects.alerts.keys().nth(ROWS_AT_ONCE).copied().unwrap_or(u64::MAX);
            let rest = effects.alerts.split_off(&bound);
            let (words, later) =
                std::mem::take(&mut effects.words).into_iter().partition(|(number, _)| *number < bound);
            let first =
                Effects { alerts: std::mem::replace(&mut effects.alerts, rest), words, ..Effects::default() };
            effects.words = later;
            self.write(first, AlertCommit { last: self.engine.last(), ..AlertCommit::default() }, now)?;
        }
        let place = Some(self.place);
        self.write(
            effects,
            AlertCommit { place, audit, done, last: self.engine.last(), ..AlertCommit::default() },
            now,
        )?;
        (self.kept, self.kept_at) = (self.place, now.mono);
        Ok(())
    }

    fn write(&mut self, effects: Effects, mut commit: AlertCommit, now: Now) -> Result<(), Error> {
        for (number, word) in &effects.words {
            let Some(Some(alert)) = effects.alerts.get(number) else { continue };
            log(alert, *word);
            self.committed.logged += 1;
            for (receiver, wants) in &self.routes {
                if !wants.fits(alert) {
                    continue;
                }
                if self.waiting + commit.notices.len() >= NOTICES {
                    self.dropped += 1;
                    continue;
                }
                let (receiver, word, at_ms) = (receiver.clone(), word.as_str().to_owned(), now.wall_ms);
                commit.notices.push(Notice { receiver, word, alert: alert.clone(), at_ms });
            }
        }
        commit.effects = effects;
        let first = self.shared.state().apply_alerts(&commit)?;
        self.waiting += commit.notices.len();
        self.committed.notices.extend((first..).zip(commit.notices));
        let changes = commit.effects.alerts.into_iter();
        self.committed.changes.extend(changes.map(|(number, alert)| AlertChange { number, alert }));
        Ok(())
    }

    /// Keeps a word that no alert asked for: to try a receiver.
    ///
    /// # Errors
    /// [`Error`] of a store.
    pub fn notice(&mut self, notice: Notice, audit: Entry, now: Now) -> Result<(), Error> {
        let commit = AlertCommit {
            notices: vec![notice],
            audit: vec![audit],
            last: self.engine.last(),
            ..AlertCommit::default()
        };
        self.write(Effects::default(), commit, now)
    }

    /// Open alerts by stage and severity, for whoever counts; those that are told to nobody apart.
    #[must_use]
    pub fn count(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        let mut counts = BTreeMap::new();
        for alert in self.engine.alerts().values() {
            let state = match alert.stage {
                Stage::Firing if alert.inhibited_by.is_some() => "inhibited",
                Stage::Firing if alert.silenced_until_ms.is_some() => "silenced",
                Stage::Firing if alert.acknowledged.is_some() => "acknowledged",
                stage => stage.as_str(),
            };
            *counts.entry((state, alert.severity.as_str())).or_default() += 1;
        }
        counts
    }
}

/// Every alert that anybody is told of is in the log, too.
fn log(alert: &Alert, word: Word) {
    let Alert { rule, node, device, severity, message, .. } = alert;
    match word {
        Word::Firing => {
            tracing::warn!(%rule, %node, %device, severity = severity.as_str(), "alert: {message}");
        }
        Word::Resolved => tracing::info!(%rule, %node, %device, "alert is over: {message}"),
    }
}
