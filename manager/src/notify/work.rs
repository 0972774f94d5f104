//! The tasks: one that hands words out, and one for each receiver that says them.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use fleet_schemas::StoreId;
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time,
};

use super::{
    Board, GIVE_UP, Kind, Receiver, form,
    post::{PostError, post},
};
use crate::{
    alerts::{Alerts, NOTICES},
    core::{
        alert::{Alert, Stage},
        time::millis,
    },
    hub::Hub,
    metrics::{Exporter, catalogue},
    store::state::{AlertFilter, Error, Notice},
};

/// Alerts of one request to an Alertmanager.
const AT_ONCE: usize = 64;
/// An Alertmanager is told again so often of what fires: otherwise it takes it to be over.
pub(super) const AGAIN: Duration = Duration::from_secs(60);
/// Pauses between attempts: doubled from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Alerts that fire and are told again, at most, of one receiver.
const FIRING: usize = 20_000;

struct Work {
    at: usize,
    receiver: Receiver,
    board: Board,
    hub: Hub,
    alerts: Alerts,
    store: StoreId,
    held: VecDeque<(u64, Notice)>,
    /// What an Alertmanager is told again and again.
    firing: BTreeMap<u64, Alert>,
    sent: metrics::Counter,
    failed: metrics::Counter,
    pending: metrics::Gauge,
}

/// Starts a task for each receiver, with the words that still wait for it, and one that hands new words out. All of
/// them end when `stop` says so.
///
/// # Errors
/// [`Error`] of the state file.
pub fn start(
    hub: &Hub,
    alerts: &Alerts,
    board: &Board,
    exporter: &Exporter,
    mut notices: mpsc::Receiver<(u64, Notice)>,
    stop: &watch::Receiver<bool>,
) -> Result<Vec<JoinHandle<()>>, Error> {
    let state = hub.state();
    let store = state.store_id();
    let mut waiting: BTreeMap<String, VecDeque<(u64, Notice)>> = BTreeMap::new();
    for (number, notice) in state.notices()? {
        waiting.entry(notice.receiver.clone()).or_default().push_back((number, notice));
    }
    let filter =
        AlertFilter { stages: vec![Stage::Firing], causes: true, limit: FIRING, ..AlertFilter::default() };
    let firing = state.alerts(&filter)?.0;
    let (mut tasks, mut ways) = (Vec::new(), BTreeMap::new());
    for (at, (receiver, _)) in board.0.iter().enumerate() {
        let wants = receiver.wants();
        let told = firing.iter().filter(|alert| alert.told && wants.fits(alert));
        let count = |outcome| exporter.counter(&catalogue::NOTICES, &[&receiver.name, outcome]);
        let work = Work {
            at,
            receiver: receiver.clone(),
            board: board.clone(),
            hub: hub.clone(),
            alerts: alerts.clone(),
            store,
            held: waiting.remove(&receiver.name).unwrap_or_default(),
            firing: match receiver.kind {
                Kind::Alertmanager => told.map(|alert| (alert.number, alert.clone())).collect(),
                Kind::Webhook => BTreeMap::new(),
            },
            sent: count("sent"),
            failed: count("failed"),
            pending: exporter.gauge(&catalogue::NOTICES_PENDING, &[&receiver.name]),
        };
        // Told from the start, so that a rate can be taken of the first.
        work.sent.increment(0);
        work.failed.increment(0);
        work.pending.set(work.held.len() as f64);
        let (way, words) = mpsc::channel(NOTICES);
        ways.insert(receiver.name.clone(), way);
        tasks.push(tokio::spawn(work.run(words, stop.clone())));
    }
    let orphans: Vec<u64> = waiting.into_values().flatten().map(|(number, _)| number).collect();
    let (alerts, mut stop) = (alerts.clone(), stop.clone());
    tasks.push(tokio::spawn(async move {
        if !orphans.is_empty() {
            tracing::warn!(count = orphans.len(), "notifications for receivers that are gone are given up");
            alerts.done(orphans).await;
        }
        loop {
            let notice = tokio::select! {
                notice = notices.recv() => notice,
                () = stopped(&mut stop) => return,
            };
            let Some((number, notice)) = notice else { return };
            if let Some(way) = ways.get(&notice.receiver) {
                // Never full: the engine keeps no more than fit.
                let _ = way.send((number, notice)).await;
            }
        }
    }));
    Ok(tasks)
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop too.
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Work {
    async fn run(mut self, mut words: mpsc::Receiver<(u64, Notice)>, mut stop: watch::Receiver<bool>) {
        let mut again = time::interval(AGAIN);
        again.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut pause = PAUSES.0;
        loop {
            while let Ok(word) = words.try_recv() {
                self.held.push_back(word);
            }
            self.pending.set(self.held.len() as f64);
            if self.held.is_empty() {
                tokio::select! {
                    word = words.recv() => match word {
                        Some(word) => self.held.push_back(word),
                        None => return,
                    },
                    _ = again.tick(), if self.receiver.kind == Kind::Alertmanager => self.refresh().await,
                    () = stopped(&mut stop) => return,
                }
                continue;
            }
            let said = tokio::select! {
                said = self.say() => said,
                () = stopped(&mut stop) => return,
            };
            match said {
                Ok(()) => pause = PAUSES.0,
                Err(why) => {
                    tracing::warn!(receiver = self.receiver.name, again_in = ?pause, "a notification was not taken: {why}");
                    self.board.set(self.at, self.held.len(), 0, Some(&why));
                    tokio::select! {
                        () = time::sleep(pause) => {}
                        () = stopped(&mut stop) => return,
                    }
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    /// Says the first words that wait; an error when they wait on.
    async fn say(&mut self) -> Result<(), String> {
        let now_ms = self.hub.clock().now().wall_ms;
        let old = |(_, notice): &&(u64, Notice)| notice.at_ms < now_ms.saturating_sub(millis(GIVE_UP));
        let old = self.held.iter().take_while(old).count();
        if old > 0 {
            tracing::error!(
                receiver = self.receiver.name,
                count = old,
                "notifications were not taken for a day and are given up"
            );
            self.failed.increment(old as u64);
            self.take(old).await;
            return Ok(());
        }
        let (count, posted) = match self.receiver.kind {
            Kind::Alertmanager => {
                let count = self.held.len().min(AT_ONCE);
                let said = self.held.iter().take(count).map(|(_, notice)| {
                    let ends_ms = match notice.word.as_str() {
                        "resolved" => Some(notice.alert.resolved_ms.unwrap_or(notice.at_ms)),
                        _ => None,
                    };
                    form::alertmanager(&notice.alert, ends_ms, now_ms)
                });
                let said: Vec<Value> = said.collect();
                (count, self.push(&said).await)
            }
            Kind::Webhook => {
                let Some((number, notice)) = self.held.front() else { return Ok(()) };
                let body = form::cloud_event(self.store, *number, notice).to_string().into_bytes();
                (1, post(&self.receiver, "", "application/cloudevents+json; charset=utf-8", body).await)
            }
        };
        match posted {
            Ok(()) => {
                self.sent.increment(count as u64);
                self.take(count).await;
                self.board.set(self.at, self.held.len(), count, None);
                Ok(())
            }
            Err(PostError::Never(why)) => {
                tracing::error!(receiver = self.receiver.name, "a notification is given up: {why}");
                self.failed.increment(count as u64);
                self.take(count).await;
                self.board.set(self.at, self.held.len(), 0, Some(&why));
                Ok(())
            }
            Err(PostError::Again(why)) => Err(why),
        }
    }

    async fn push(&self, alerts: &[Value]) -> Result<(), PostError> {
        let body = Value::from(alerts.to_vec()).to_string().into_bytes();
        post(&self.receiver, "/api/v2/alerts", "application/json", body).await
    }

    /// The first words are done with.
    async fn take(&mut self, count: usize) {
        let done: Vec<_> = self.held.drain(..count).collect();
        if self.receiver.kind == Kind::Alertmanager {
            for (_, notice) in &done {
                match notice.word.as_str() {
                    "firing" if self.firing.len() < FIRING => {
                        drop(self.firing.insert(notice.alert.number, notice.alert.clone()));
                    }
                    "resolved" => drop(self.firing.remove(&notice.alert.number)),
                    _ => {}
                }
            }
        }
        self.alerts.done(done.into_iter().map(|(number, _)| number).collect()).await;
    }

    /// Tells an Alertmanager again of what fires. What fails is tried at the next turn.
    async fn refresh(&mut self) {
        let now_ms = self.hub.clock().now().wall_ms;
        let all: Vec<Value> =
            self.firing.values().map(|alert| form::alertmanager(alert, None, now_ms)).collect();
        for part in all.chunks(AT_ONCE) {
            if let Err(error) = self.push(part).await {
                tracing::warn!(receiver = self.receiver.name, "it was not told again of what fires: {error}");
                self.board.set(self.at, self.held.len(), 0, Some(&error.to_string()));
                return;
            }
        }
    }
}
