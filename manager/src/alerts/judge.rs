//! The engine with its stores: follows the log of batches from its own place, looks at nodes, commits what follows.
//!
//! Synchronous, time is an argument. Owns the order: judge, commit rows and place in one transaction, then speak. After
//! an error it is thrown away and made anew from the store, where it goes on from its place.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fleet_schemas::{Lane, NodeId, device::Report};

use super::{
    AlertChange,
    rules::{self, Files, Listed, Marks, Refused, Texts},
};
use crate::{
    consume::{Error, Shared},
    core::{
        Now,
        alert::{Alert, Arrived, Effects, Engine, Met, Stage, Word, route::Wants},
        audit::Entry,
        fleet::{Node, NodeNo},
        ledger::{Counters, Standing},
        time::millis,
    },
    store::{
        log::Place,
        state::{AlertCommit, Notice},
        telemetry::{Followed, Query},
    },
};

/// Nodes that are looked at in one hold of the registry's lock: the consumer waits for it.
const NODES_AT_ONCE: usize = 256;
/// Rows of one transaction: the consumer waits for it.
const ROWS_AT_ONCE: usize = 1_000;
/// Samples of one page of the log.
const PAGE_SAMPLES: u64 = 10_000;
/// How often time alone is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often every node and its ledger are looked at.
const SWEEP: Duration = Duration::from_secs(10);
/// How often the place is written although nothing followed.
const KEEP: Duration = Duration::from_secs(5);
/// How often files of rules are looked at.
const LOOK: Duration = Duration::from_secs(2);
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

/// A pass over all nodes that is under way.
struct Sweep {
    after: Option<NodeId>,
    counters: Option<Box<dyn Fn(NodeNo, Lane) -> Counters + Send>>,
}

/// What the ledger says of one node.
struct Booked {
    lost: u64,
    quarantined: u64,
    standing: Option<Standing>,
    is_old: bool,
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

    /// Files that are wrong at a start do not end the alerts of the rules that counted before.
    fn first_rules(&mut self, now: Now) -> Result<(), Error> {
        self.marks = self.files.marks();
        let read = self.files.read().and_then(|texts| Ok((rules::read_all(&texts)?, texts)));
        let (listed, texts) = match read {
            Ok(read) => read,
            Err(refused) => {
                tracing::error!("rules are refused, and those that counted before stay: {refused}");
                self.rules.refused = Some(refused);
                let texts = self.shared.state().kept_rules()?;
                let texts: Texts =
                    texts.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or_default();
                (rules::read_all(&texts).unwrap_or_default(), texts)
            }
        };
        self.take_rules(listed, texts, now)
    }

    fn take_rules(&mut self, listed: Vec<Listed>, texts: Texts, now: Now) -> Result<(), Error> {
        if self.texts != texts {
            let kept = serde_json::to_vec(&texts).expect("texts are JSON");
            self.shared.state().keep_rules(&kept)?;
        }
        let judged = listed.iter().filter(|listed| listed.enabled).map(|listed| listed.rule.clone());
        self.engine.replace(judged.collect(), now.wall_ms);
        self.rules.text = texts.file.as_str().into();
        self.rules.listed = Arc::new(listed);
        self.texts = texts;
        Ok(())
    }

    /// Takes files that changed: all of them, or none.
    fn watch_files(&mut self, now: Now) -> Result<(), Error> {
        if now.mono < self.looked + LOOK {
            return Ok(());
        }
        self.looked = now.mono;
        let marks = self.files.marks();
        if marks == self.marks {
            return Ok(());
        }
        self.marks = marks;
        match self.files.read().and_then(|texts| Ok((rules::read_all(&texts)?, texts))) {
            Ok((listed, texts)) => {
                tracing::info!(rules = listed.len(), "rules are taken");
                self.rules.refused = None;
                self.take_rules(listed, texts, now)?;
                self.look_at_all(now)
            }
            Err(refused) => {
                tracing::error!("rules are refused, and those before them stay: {refused}");
                self.rules.refused = Some(refused);
                Ok(())
            }
        }
    }

    /// Takes rules that an operator sent: writes their file first. `change` is made to the texts that count.
    ///
    /// # Errors
    /// The inner one: nothing was changed. The outer one: of a store.
    pub fn put_rules(
        &mut self,
        change: impl FnOnce(&mut Texts),
        write: impl FnOnce(&Files) -> std::io::Result<()>,
        audit: Entry,
        now: Now,
    ) -> Result<Result<(), PutError>, Error> {
        let mut texts = match self.rules.refused {
            // What counts is not what lies there.
            Some(_) => self.files.read().unwrap_or_else(|_| self.texts.clone()),
            None => self.texts.clone(),
        };
        change(&mut texts);
        let listed = match rules::read_all(&texts) {
            Ok(listed) => listed,
            Err(refused) => return Ok(Err(PutError::Refused(refused))),
        };
        if let Err(error) = write(&self.files) {
            return Ok(Err(PutError::Disk(error.to_string())));
        }
        self.marks = self.files.marks();
        self.rules.refused = None;
        self.take_rules(listed, texts, now)?;
        self.look_at_all(now)?;
        self.commit(vec![audit], Vec::new(), now)?;
        Ok(Ok(()))
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

    /// Reads what the store has of a node before a time: newest values, and devices that it reported.
    fn know(&mut self, number: NodeNo, before_ms: i64, now: Now) -> Result<(), Error> {
        let latest = self.shared.telemetry.latest(number)?.into_iter();
        let before = latest.filter(|latest| latest.time_ms < before_ms);
        let before = before.map(|latest| (latest.device, latest.metric, latest.time_ms, latest.value));
        self.engine.know(number, before.collect());
        for (_, device) in self.shared.state().devices(number)? {
            self.engine.device(number, &device.report, now.wall_ms);
        }
        Ok(())
    }

    /// Looks at every node at once.
    fn look_at_all(&mut self, now: Now) -> Result<(), Error> {
        self.begin_sweep()?;
        while self.sweep.is_some() {
            self.sweep_some(now, false)?;
        }
        self.swept = Some(now.mono);
        Ok(())
    }

    /// Goes on with the pass over all nodes, or begins one when it is time.
    fn sweep(&mut self, now: Now) -> Result<(), Error> {
        if self.sweep.is_none() {
            if self.swept.is_some_and(|swept| now.mono < swept + SWEEP) {
                return Ok(());
            }
            self.swept = Some(now.mono);
            self.begin_sweep()?;
        }
        self.sweep_some(now, true)
    }

    fn begin_sweep(&mut self) -> Result<(), Error> {
        let counters: Option<Box<dyn Fn(NodeNo, Lane) -> Counters + Send>> = match self.engine.wants_ledger()
        {
            true => Some(Box::new(self.shared.counters()?)),
            false => None,
        };
        self.sweep = Some(Sweep { after: None, counters });
        Ok(())
    }

    fn sweep_some(&mut self, now: Now, caught_up: bool) -> Result<(), Error> {
        use std::ops::Bound::{Excluded, Unbounded};
        let Some(mut sweep) = self.sweep.take() else { return Ok(()) };
        let mut seen = Vec::with_capacity(NODES_AT_ONCE);
        {
            let fleet = self.shared.fleet();
            let from = sweep.after.as_ref().map_or(Unbounded, Excluded);
            for (id, node) in fleet.nodes.range::<NodeId, _>((from, Unbounded)).take(NODES_AT_ONCE) {
                let booked = sweep.counters.as_ref().map(|counters| self.booked(node, counters));
                seen.push((id.clone(), self.engine.look(node, now.mono), booked));
            }
        }
        let more = seen.len() == NODES_AT_ONCE;
        sweep.after = seen.last().map(|(id, ..)| id.clone());
        for (id, mut facts, booked) in seen {
            facts.certificate_ms = self.certificate_ms(&id);
            let number = facts.number;
            if let Some(Booked { lost, quarantined, standing, is_old }) = booked {
                let met = Met { now_ms: now.wall_ms, is_old };
                self.engine.book(number, lost, quarantined, standing, met);
            }
            self.engine.node(facts, now.wall_ms);
            if caught_up && self.engine.wants_samples() && !self.engine.knows(number) {
                // What was committed since this start comes by the log.
                self.know(number, now.wall_ms.saturating_sub(millis(now.mono)), now)?;
            }
        }
        if more {
            self.sweep = Some(sweep);
            return Ok(());
        }
        let known = self.engine.nodes();
        let gone: Vec<_> = {
            let fleet = self.shared.fleet();
            known.into_iter().filter(|number| !fleet.ids.contains_key(number)).collect()
        };
        gone.into_iter().for_each(|number| self.engine.removed(number, now.wall_ms));
        Ok(())
    }

    fn booked(&self, node: &Node, counters: &dyn Fn(NodeNo, Lane) -> Counters) -> Booked {
        let is_old = node.record.first_seen_ms < self.since_ms;
        let mut booked = Booked { lost: 0, quarantined: 0, standing: None, is_old };
        for account in node.ledger(counters) {
            booked.lost += account.counters.lost;
            booked.quarantined += account.counters.quarantined;
            let worse = match (booked.standing, account.state) {
                (Some(Standing::Broken), _) | (_, Standing::Broken) => Standing::Broken,
                (Some(Standing::Pending), _) | (_, Standing::Pending) => Standing::Pending,
                (None | Some(Standing::Balanced), Standing::Balanced) => Standing::Balanced,
            };
            booked.standing = Some(worse);
        }
        booked
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

/// Why rules that were sent are not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// They are wrong.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// They cannot be kept.
    #[error("the file cannot be written: {0}; check the hub's disk")]
    Disk(String),
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
