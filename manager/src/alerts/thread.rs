//! The engine's thread: wakes when something was committed, changed or asked, and once a quarter of a second.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, PoisonError, RwLock},
    thread::{self, JoinHandle},
    time::Duration,
};

use fleet_broker::Publisher;
use fleet_schemas::{DeviceId, NodeId, device::Report, event::Severity, rule::RuleId};
use tokio::sync::{
    broadcast::{
        self,
        error::{RecvError, TryRecvError},
    },
    mpsc, watch,
};

use super::{Alerts, Ask, Config, Error, Figures, Judge, Rules, rules::Files, speak};
use crate::{
    clock,
    consume::{self, FeedItem, Shared},
    core::{
        Now,
        alert::{Acknowledged, Alert, Stage},
        audit::Entry,
    },
    hub::Hub,
    metrics::{Exporter, catalogue},
    store::state::Notice,
};

/// How long it waits when nothing happens.
const WAIT: Duration = Duration::from_millis(250);
/// Shortest time between two rounds: what is committed meanwhile is judged together.
const PAUSE: Duration = Duration::from_millis(20);
/// Alerts that followers are told of without a pause.
const ITEMS: usize = 1_000;
/// How long it waits before it tries again after a store failed.
const AGAIN: Duration = Duration::from_secs(1);

/// The engine's thread. Call [`Running::stop`].
pub struct Running {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Stops the thread and waits for it.
    pub fn stop(self) {
        self.stop.send_replace(true);
        if self.thread.join().is_err() {
            tracing::error!("the thread of alerts had panicked");
        }
    }
}

/// What the thread works with.
struct Work {
    hub: Hub,
    shared: Shared,
    publisher: Publisher,
    config: Config,
    notices: mpsc::Sender<(u64, Notice)>,
    // The last word that was handed over to be sent, and those that were sent and not written off yet.
    handed: u64,
    done: Vec<u64>,
    shown: Arc<RwLock<(Rules, Figures)>>,
    seconds: metrics::Histogram,
    logged: metrics::Counter,
}

/// What the engine is asked by its handles.
pub struct Asked(pub(super) mpsc::Receiver<Ask>);

/// The hub stops.
struct Over;

/// Starts the engine; `notices` takes words for receivers that were committed. The hub gets the handle.
///
/// # Errors
/// When a thread cannot be had.
pub fn start(
    hub: &Hub,
    publisher: Publisher,
    config: Config,
    (alerts, Asked(mut asked)): (Alerts, Asked),
    exporter: &Exporter,
    notices: mpsc::Sender<(u64, Notice)>,
) -> io::Result<Running> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (stop, mut stopping) = watch::channel(false);
    let (shared, shown) = (hub.shared().clone(), Arc::clone(&alerts.shown));
    hub.set_alerts(alerts);
    let seconds = exporter.histogram(&catalogue::ALERT_SECONDS);
    // The log is told of everything, and takes everything.
    let logged = exporter.counter(&catalogue::NOTICES, &["log", "sent"]);
    logged.increment(0);
    exporter.gauge(&catalogue::NOTICES_PENDING, &["log"]).set(0.0);
    // Words of earlier starts are read by whoever sends them.
    let handed = shared.state().notices().map_err(io::Error::other)?.last().map_or(0, |(number, _)| *number);
    let mut work = Work {
        hub: hub.clone(),
        shared,
        publisher,
        config,
        notices,
        handed,
        done: Vec::new(),
        shown,
        seconds,
        logged,
    };
    let thread = thread::Builder::new().name("alerts".to_owned()).spawn(move || {
        // After a panic it goes on from what was committed.
        while panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(work.run(&mut asked, &mut stopping))))
            .is_err()
        {
            tracing::error!("alerts panicked and go on from what was committed. Please report the message");
        }
    })?;
    Ok(Running { stop, thread })
}

impl Work {
    /// Runs until the hub stops.
    async fn run(&mut self, asked: &mut mpsc::Receiver<Ask>, stop: &mut watch::Receiver<bool>) {
        while !*stop.borrow() {
            let now = self.hub.clock().now();
            let files = Files::new(&self.config.data, self.config.rules.as_deref());
            // Before the first look: what changes meanwhile is told.
            let feed = self.hub.feed();
            let opened = Judge::open(&self.shared, files, self.config.routes.clone(), now);
            let failed = match opened {
                Ok(judge) => match self.judge(judge, feed, asked, stop).await {
                    Ok(Over) => return,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            tracing::warn!(error = %failed, "alerts wait for the stores, and go on from what was judged");
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                _ = stop.changed() => return,
            }
        }
    }

    async fn judge(
        &mut self,
        mut judge: Judge,
        feed: broadcast::Receiver<Arc<FeedItem>>,
        asked: &mut mpsc::Receiver<Ask>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Over, consume::Error> {
        // What was committed before a store failed is as good as said.
        let unsaid = self.shared.state().notices()?;
        for notice in unsaid {
            self.hand_over(notice).await;
        }
        if !self.done.is_empty() {
            judge.done(self.done.clone(), self.hub.clock().now())?;
            self.done.clear();
        }
        let over = self.rounds(&mut judge, feed, asked, stop).await;
        if over.is_err() {
            self.speak(&mut judge).await;
        }
        over
    }

    async fn rounds(
        &mut self,
        judge: &mut Judge,
        mut feed: broadcast::Receiver<Arc<FeedItem>>,
        asked: &mut mpsc::Receiver<Ask>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Over, consume::Error> {
        let mut committed = self.hub.committed();
        loop {
            if *stop.borrow() {
                return Ok(Over);
            }
            let began = clock::mono();
            let now = self.hub.clock().now();
            loop {
                match feed.try_recv() {
                    Ok(item) => changed(judge, &item, now),
                    Err(TryRecvError::Lagged(_)) => judge.missed(),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            committed.mark_unchanged();
            judge.round(now)?;
            while let Ok(ask) = asked.try_recv() {
                self.answer(judge, ask, now)?;
            }
            self.speak(judge).await;
            self.seconds.record(clock::mono().saturating_sub(began).as_secs_f64());
            if judge.is_busy() {
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                _ = stop.changed() => return Ok(Over),
                ask = asked.recv() => match ask {
                    Some(ask) => self.answer(judge, ask, self.hub.clock().now())?,
                    None => return Ok(Over),
                },
                item = feed.recv() => match item {
                    Ok(item) => {
                        changed(judge, &item, self.hub.clock().now());
                        tokio::time::sleep(PAUSE).await;
                    }
                    Err(RecvError::Lagged(_)) => judge.missed(),
                    Err(RecvError::Closed) => return Ok(Over),
                },
                news = committed.changed() => match news {
                    Ok(()) => tokio::time::sleep(PAUSE).await,
                    Err(_) => return Ok(Over),
                },
                () = tokio::time::sleep(WAIT) => {}
            }
        }
    }

    /// Says what was committed: to followers, on the hub's topics, to receivers; and shows figures.
    async fn speak(&mut self, judge: &mut Judge) {
        let told = judge.told();
        self.logged.increment(told.logged);
        speak::publish(&self.publisher, judge.engine().alerts(), &told.changes);
        for (told, change) in told.changes.into_iter().enumerate() {
            if told > 0 && told.is_multiple_of(ITEMS) {
                // Followers have only so much room, and follow other things, too.
                tokio::time::sleep(PAUSE).await;
            }
            self.hub.tell(Arc::new(FeedItem::Alert(Box::new(change))));
        }
        for notice in told.notices {
            self.hand_over(notice).await;
        }
        let figures = Figures {
            open: judge.count(),
            rules: judge.engine().rules(),
            refused: judge.rules().refused.is_some(),
            judgements: judge.engine().judgements(),
            lag_s: told.lag_ms as f64 / 1_000.0,
            dropped: judge.dropped(),
        };
        let rules = judge.rules().clone();
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = (rules, figures);
    }

    async fn hand_over(&mut self, (number, notice): (u64, Notice)) {
        if number > self.handed {
            self.handed = number;
            // Whoever sends them is gone: they wait in the store for the next start.
            drop(self.notices.send((number, notice)).await);
        }
    }

    /// Does what was asked; answers after the commit.
    fn answer(&mut self, judge: &mut Judge, ask: Ask, now: Now) -> Result<(), consume::Error> {
        let entry = |who: &str, action: &str, target: String, detail: Option<serde_json::Value>| Entry {
            at_ms: now.wall_ms,
            who: who.to_owned(),
            action: action.to_owned(),
            target,
            detail: detail.map(|detail| detail.to_string()),
        };
        match ask {
            Ask::Acknowledge { number, by, comment, answer } => {
                let detail = comment.as_ref().map(|comment| serde_json::json!({ "comment": comment }));
                let audit = entry(&by, "alert.acknowledge", number.to_string(), detail);
                let by = Acknowledged { by, at_ms: now.wall_ms, comment };
                let done = judge.engine().acknowledge(number, by).map_err(Error::Alert);
                if done.is_ok() {
                    judge.commit(vec![audit], Vec::new(), now)?;
                }
                drop(answer.send(done));
            }
            Ask::Silence { mut silence, answer } => {
                let made = judge.engine().silence((*silence).clone()).map_err(Error::Alert);
                let made = made.map(|number| {
                    silence.number = number;
                    *silence
                });
                if let Ok(made) = &made {
                    let detail = speak::silence(made);
                    let audit = entry(&made.by, "alert.silence", made.number.to_string(), Some(detail));
                    judge.commit(vec![audit], Vec::new(), now)?;
                }
                drop(answer.send(made));
            }
            Ask::Unsilence { number, by, answer } => {
                let ended = judge.engine().unsilence(number, now.wall_ms).map_err(Error::Alert);
                if ended.is_ok() {
                    let audit = entry(&by, "alert.unsilence", number.to_string(), None);
                    judge.commit(vec![audit], Vec::new(), now)?;
                }
                drop(answer.send(ended.map(drop)));
            }
            Ask::PutRules { text, by, answer } => {
                let audit = entry(&by, "rules.put", super::rules::FILE.to_owned(), None);
                let kept = text.clone();
                let put =
                    judge.put_rules(|texts| texts.file = kept, |files| files.write(&text), audit, now)?;
                self.show_rules(judge);
                drop(answer.send(put.map_err(Error::Put)));
            }
            Ask::PutKit { name, text, by, answer } => {
                let put = self.kit(
                    judge,
                    &name,
                    text.as_deref(),
                    entry(&by, "rules.kit", name.clone(), None),
                    now,
                )?;
                self.show_rules(judge);
                drop(answer.send(put));
            }
            Ask::Test { receiver, by, answer } => {
                if !self.config.routes.iter().any(|(name, _)| *name == receiver) {
                    drop(answer.send(Err(Error::NoReceiver(receiver))));
                    return Ok(());
                }
                let audit = entry(&by, "alert.test", receiver.clone(), None);
                let alert = example(&receiver, &by, now);
                let notice = Notice { receiver, word: "test".to_owned(), alert, at_ms: now.wall_ms };
                judge.notice(notice, audit, now)?;
                drop(answer.send(Ok(())));
            }
            Ask::Done(numbers) => {
                self.done.extend(numbers);
                judge.done(self.done.clone(), now)?;
                self.done.clear();
            }
        }
        Ok(())
    }

    fn kit(
        &self,
        judge: &mut Judge,
        name: &str,
        text: Option<&str>,
        audit: Entry,
        now: Now,
    ) -> Result<Result<(), Error>, consume::Error> {
        use super::rules::Source;
        let known = judge.rules().listed.iter().any(|listed| listed.source == Source::Kit(name.to_owned()));
        if text.is_none() && !known {
            return Ok(Err(Error::NoKit(name.to_owned())));
        }
        let change = |texts: &mut super::rules::Texts| match text {
            Some(text) => drop(texts.kits.insert(name.to_owned(), text.to_owned())),
            None => drop(texts.kits.remove(name)),
        };
        let put = judge.put_rules(change, |files| files.write_kit(name, text), audit, now)?;
        Ok(put.map_err(Error::Put))
    }

    /// Whoever asked reads them at once.
    fn show_rules(&self, judge: &Judge) {
        self.shown.write().unwrap_or_else(PoisonError::into_inner).0 = judge.rules().clone();
    }
}

fn changed(judge: &mut Judge, item: &FeedItem, now: Now) {
    match item {
        FeedItem::Node(id) => judge.node(id, now),
        FeedItem::Event(event) => {
            if let Some(mut report) = Report::of(&event.event) {
                let shift_ms = event.time_ms.saturating_sub(event.event.time_ms);
                for time in [&mut report.until_ms, &mut report.last_seen_ms].into_iter().flatten() {
                    *time = time.saturating_add(shift_ms);
                }
                judge.device(&event.node, &report, now);
            }
        }
        FeedItem::Samples { .. }
        | FeedItem::Execution(_)
        | FeedItem::Config(_)
        | FeedItem::Alert(_)
        | FeedItem::Rollout(_) => {}
    }
}

/// An alert that says that somebody tries a receiver.
fn example(receiver: &str, by: &str, now: Now) -> Alert {
    Alert {
        number: 0,
        rule: RuleId::parse("receiver-test").expect("the id keeps to the grammar"),
        node_no: 0,
        node: NodeId::parse("none").expect("the id keeps to the grammar"),
        device: DeviceId::node(),
        site: None,
        metric: None,
        severity: Severity::Info,
        labels: [("test".to_owned(), "true".to_owned())].into(),
        stage: Stage::Firing,
        since_ms: now.wall_ms,
        fired_ms: Some(now.wall_ms),
        resolved_ms: None,
        reason: None,
        value: None,
        message: format!("{by} tries the receiver {receiver}; nothing is wrong"),
        acknowledged: None,
        silenced_until_ms: None,
        inhibited_by: None,
        outage: None,
        told: true,
    }
}
