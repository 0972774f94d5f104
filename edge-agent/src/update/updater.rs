//! The loop that does what `core::update` decides: one update after the other, each step written down before it is done,
//! told when it is written.
//!
//! Owns the account of updates and the folder of downloads. Decides nothing about states; what a step does to a skill,
//! the agent, the firmware or a device is its slot's affair.

mod steps;

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fleet_schemas::{
    CommandId,
    session::Versions,
    update::{Kind, Order, Report, Running, State},
};
use tokio::{
    select,
    sync::{mpsc, oneshot, watch},
    task, time,
};
use tracing::{info, warn};

use self::steps::{Fetched, is_droppable};
use super::{
    Config,
    download::{self, Partial},
    moment,
    slot::{Plan, Slots},
    tell::{self, Told},
    view::UpdatesView,
};
use crate::{
    clock::{self, Clock},
    core::{
        queue::{Ending, Limit, Time},
        update::{
            Effects, History, Input, Next, Runs, Stage, Trouble, Update, View, Why, code,
            window::{self, Gate, Moment},
        },
    },
    identity::live::Live,
    metrics::Metrics,
    outbox,
    stop::Stop,
    store::update::{Key, Ledger, Spent, Write},
};

/// Words on their way to the loop: at most one order and one stop for each queue that runs.
const WORDS: usize = 32;
/// Pause before a write is tried again that the disk did not take.
const AGAIN: Duration = Duration::from_secs(1);
/// A day in milliseconds.
const DAY_MS: i64 = 86_400_000;
/// The folder of what is fetched, in that of releases.
const DOWNLOADS: &str = "downloads";

/// What the loop is told.
#[derive(Debug)]
pub(crate) enum Word {
    /// A command begins; the answer is how the update ended.
    Order { command: CommandId, order: Box<Order>, timeout: Duration, reply: oneshot::Sender<Report> },
    /// It is to end, as far as it still can be called off.
    Stop(CommandId, Why),
}

/// Speaks to the loop. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Handle(mpsc::Sender<Word>);

/// The other end of [`Handle`].
pub(crate) type Words = mpsc::Receiver<Word>;

pub(crate) fn channel() -> (Handle, Words) {
    let (words, heard) = mpsc::channel(WORDS);
    (Handle(words), heard)
}

impl Handle {
    /// Has it done, or goes on with it when it was begun before. `None`: the agent is going down, and the next start
    /// goes on.
    pub(crate) async fn order(
        &self,
        command: CommandId,
        order: Order,
        timeout: Duration,
        stopping: &mut oneshot::Receiver<Ending>,
    ) -> Option<Report> {
        let (reply, mut ended) = oneshot::channel();
        self.0.send(Word::Order { command, order: Box::new(order), timeout, reply }).await.ok()?;
        select! {
            report = &mut ended => return report.ok(),
            why = stopping => if let Ok(why) = why {
                let why = match why {
                    Ending::Cancel => Why::Cancel,
                    Ending::Timeout => Why::Timeout,
                    Ending::Superseded => Why::Superseded,
                };
                self.0.send(Word::Stop(command, why)).await.ok()?;
            },
        }
        ended.await.ok()
    }
}

/// What the loop meets.
pub(crate) struct Surroundings {
    pub(crate) config: Config,
    /// `DATA/releases`.
    pub(crate) folder: PathBuf,
    pub(crate) ledger: Ledger,
    pub(crate) slots: Slots,
    pub(crate) live: Arc<Live>,
    pub(crate) clock: Clock,
    pub(crate) outbox: outbox::Handle,
    pub(crate) metrics: Arc<Metrics>,
    /// The boot that time is counted from.
    pub(crate) boot: [u8; 8],
    /// The machine's architecture.
    pub(crate) arch: String,
    /// What the agent itself is, if it is a release.
    pub(crate) own: Option<Running>,
    /// Where the status reads how updates stand.
    pub(crate) view: watch::Sender<Arc<UpdatesView>>,
}

/// Does what is ordered until told to stop. What is under way then, the next start goes on with.
pub(crate) async fn run(surroundings: Surroundings, mut words: Words, mut stop: Stop) {
    let tools = Tools {
        downloads: surroundings.folder.join(DOWNLOADS),
        ledger: Arc::new(Mutex::new(surroundings.ledger)),
        config: surroundings.config,
        folder: surroundings.folder,
        slots: surroundings.slots,
        live: surroundings.live,
        clock: surroundings.clock,
        outbox: surroundings.outbox,
        metrics: surroundings.metrics,
        boot: surroundings.boot,
        arch: surroundings.arch,
        own: surroundings.own,
        view: surroundings.view,
    };
    let mut desk = Desk::default();
    let mut found: Vec<_> = tools.ledger().account().updates.values().cloned().collect();
    // What has switched is on trial, and does not wait behind a download.
    found.sort_by_key(|update| update.is_stoppable());
    desk.waiting.extend(found);
    tools.clear_downloads(&desk).await;
    loop {
        tools.show(None, &desk);
        if let Some(update) = desk.waiting.pop_front() {
            if tools.drive(update, &mut desk, &mut words, &mut stop).await.is_none() {
                return;
            }
            continue;
        }
        select! {
            word = words.recv() => match word {
                Some(word) => desk.hear(word, &tools, None).await,
                None => return,
            },
            () = stop.wanted() => return,
        }
    }
}

/// Orders, and who waits for their end.
#[derive(Default)]
struct Desk {
    waiting: VecDeque<Update>,
    replies: HashMap<CommandId, oneshot::Sender<Report>>,
    stops: HashMap<CommandId, Why>,
}

impl Desk {
    async fn hear(&mut self, word: Word, tools: &Tools, current: Option<CommandId>) {
        match word {
            Word::Order { command, order, timeout, reply } => {
                if let Some(report) = tools.ledger().account().end_of(command) {
                    // An error says that the command's task is gone.
                    let _ = reply.send(report.clone());
                    return;
                }
                let known =
                    current == Some(command) || self.waiting.iter().any(|update| update.command == command);
                if !known {
                    // By the hub's time, too: without it the limit would be over by the next boot of a node that knows no
                    // time of its own.
                    let time = tools.time(tools.heard().await);
                    self.waiting.push_back(Update::new(command, *order, Limit::after(timeout, &time)));
                }
                self.replies.insert(command, reply);
            }
            Word::Stop(command, why) => {
                self.stops.insert(command, why);
            }
        }
    }

    /// Whether an update is to stop and still can.
    fn stops(&self, update: &Update) -> Option<Why> {
        self.stops.get(&update.command).copied().filter(|_| update.is_stoppable())
    }
}

struct Tools {
    config: Config,
    folder: PathBuf,
    downloads: PathBuf,
    ledger: Arc<Mutex<Ledger>>,
    slots: Slots,
    live: Arc<Live>,
    clock: Clock,
    outbox: outbox::Handle,
    metrics: Arc<Metrics>,
    boot: [u8; 8],
    arch: String,
    own: Option<Running>,
    view: watch::Sender<Arc<UpdatesView>>,
}

/// What was seen before a decision.
struct Sight {
    time: Time,
    history: History,
    failures: u8,
    gate: Gate,
    free: Option<u64>,
    heard: Option<Duration>,
}

impl Tools {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Each change is whole: a panic elsewhere leaves nothing half done.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings one update to its end; `None`: the agent stops first.
    async fn drive(
        &self,
        mut update: Update,
        desk: &mut Desk,
        words: &mut Words,
        stop: &mut Stop,
    ) -> Option<()> {
        let id = update.command;
        let mut fetched = Fetched::default();
        let mut input = Input::Begin;
        loop {
            if let Some(why) = desk.stops(&update) {
                input = Input::Stop(why);
            }
            let sight = self.see(&update).await;
            let before = update.state();
            let began = input == Input::Begin;
            let effects = update.decide(input, &self.view_of(&sight), &sight.time);
            if update.state() != before || began {
                info!(command = %id, target = %update.order.target, state = update.state().as_str(), "update");
            }
            self.carry_out(&update, &effects, fetched.partial.as_ref(), stop).await?;
            self.show(Some((&update, &sight, fetched.partial.as_ref())), desk);
            input = match effects.next {
                Next::Nothing => break,
                Next::Wait(span) => wait(span, &update, self, desk, words, stop).await?,
                Next::Again(span) => {
                    let span = clock::jitter(span);
                    wait(span, &update, self, desk, words, stop).await?
                }
                Next::Do(step) => {
                    let done = self.step(step, &update, &sight, &mut fetched);
                    tokio::pin!(done);
                    loop {
                        select! {
                            outcome = &mut done => break outcome,
                            Some(word) = words.recv() => {
                                desk.hear(word, self, Some(id)).await;
                                if is_droppable(step) && desk.stops(&update).is_some() {
                                    break Input::Tick;
                                }
                            }
                            // What it began is done again by the next start.
                            () = stop.wanted() => return None,
                        }
                    }
                }
            };
        }
        self.end(&update, desk, stop).await
    }

    /// The hub's time, and the time since boot at which it said so.
    async fn heard(&self) -> Option<(i64, Duration)> {
        let status = self.outbox.status().await.ok()?;
        Some((status.hub_ms?, status.last_ack?))
    }

    async fn see(&self, update: &Update) -> Sight {
        let hub = self.heard().await;
        let time = self.time(hub);
        let fetching = matches!(update.stage, Stage::Accepted | Stage::Downloading);
        let (history, failures, spent) = {
            let ledger = self.ledger();
            let account = ledger.account();
            let history = account.history_of(&Key::of(&update.order));
            (history, account.failures(update.order.digest), self.spent_today(account.spent))
        };
        let moment = self.moment(&update.order, spent, time.true_ms);
        let window = update.order.window.as_ref();
        let gate =
            if fetching { window::download_gate(window, &moment) } else { window::gate(window, &moment) };
        let free = super::unpack::free(&self.folder);
        Sight { time, history, failures, gate, free, heard: hub.map(|(_, at)| at) }
    }

    fn view_of<'a>(&'a self, sight: &'a Sight) -> View<'a> {
        View {
            history: &sight.history,
            failures: sight.failures,
            arch: &self.arch,
            gate: sight.gate,
            free: sight.free,
            heard: sight.heard,
            probation: self.config.probation,
            reach: self.config.reach,
        }
    }

    /// `hub`: its time, and the time since boot at which it said so.
    fn time(&self, hub: Option<(i64, Duration)>) -> Time {
        let now = self.clock.now();
        let hub_ms = hub.map(|(ms, at)| {
            let since = i64::try_from(now.up.saturating_sub(at).as_millis()).unwrap_or(i64::MAX);
            ms.saturating_add(since)
        });
        let own_ms = (now.clock == fleet_schemas::batch::Clock::Synced).then_some(now.wall_ms);
        Time { now, boot: self.boot, true_ms: hub_ms.or(own_ms) }
    }

    fn spent_today(&self, spent: Spent) -> Spent {
        let day = self.clock.now().wall_ms.div_euclid(DAY_MS);
        if spent.day == day { spent } else { Spent { day, bytes: 0 } }
    }

    fn moment(&self, order: &Order, spent: Spent, true_ms: Option<i64>) -> Moment {
        Moment {
            local: moment::local(order.window.as_ref(), true_ms),
            on_power: moment::on_power(),
            metered: moment::metered(&self.config),
            spent: spent.bytes,
            budget: self.config.bytes_per_day,
        }
    }

    fn plan(&self, update: &Update) -> Plan {
        let signed = update.signed.clone();
        let (length, custom) = signed.map(|signed| (signed.length, signed.custom)).unwrap_or_default();
        Plan {
            command: update.command,
            order: update.order.clone(),
            length,
            custom,
            from: update.from.clone(),
            file: download::file(&self.downloads, update.order.digest),
        }
    }

    /// Writes, then tells. `None`: the agent stops first.
    async fn carry_out(
        &self,
        update: &Update,
        effects: &Effects,
        partial: Option<&Partial>,
        stop: &mut Stop,
    ) -> Option<()> {
        let mut changes = Vec::new();
        if effects.write {
            changes.push(Write::Update(Box::new(update.clone())));
        }
        let key = Key::of(&update.order);
        changes.extend(effects.history.clone().map(|history| Write::History(key.clone(), history)));
        changes.extend(effects.failed.then_some(Write::Failed(update.order.digest)));
        // What the agent itself is, it knows by its own executable.
        if let Some(runs) = effects.runs.filter(|_| key.kind != Kind::Agent) {
            let release = match runs {
                Runs::New => Some(update.release()),
                Runs::Before => update.from.clone(),
                Runs::Unknown => None,
            };
            let running = release.map(|release| Running {
                kind: key.kind,
                name: key.name.clone(),
                version: release.version,
                digest: release.digest,
                device: key.device.clone(),
            });
            changes.push(Write::Runs(key, running));
        }
        self.surely(changes, stop).await?;
        let time_ms = self.clock.now().wall_ms;
        let over = matches!(update.stage, Stage::Over(_));
        if effects.runs.is_some() || (effects.tell && (over || update.state().is_switched())) {
            let versions = self.versions();
            self.outbox.set_versions(versions.clone()).await;
            self.say(tell::running(update, &versions, time_ms), stop).await?;
        }
        if effects.tell {
            let bytes = partial.map(Partial::at);
            self.say(tell::report(&update.report(bytes), time_ms), stop).await?;
        }
        Some(())
    }

    fn versions(&self) -> Versions {
        tell::versions(self.ledger().account(), self.own.as_ref())
    }

    /// It is over: told, and its command may end.
    async fn end(&self, update: &Update, desk: &mut Desk, stop: &mut Stop) -> Option<()> {
        let report = update.report(None);
        self.surely(vec![Write::Ended(Box::new(report.clone()))], stop).await?;
        self.metrics.update_ended(report.target.kind.as_str(), report.state.as_str());
        let (folder, digest) = (self.downloads.clone(), report.digest);
        let wanted = desk.waiting.iter().any(|other| other.order.digest == digest);
        if !wanted {
            let _ = blocking(move || {
                download::remove(&folder, digest);
                Ok(())
            })
            .await;
        }
        desk.stops.remove(&report.command);
        if let Some(reply) = desk.replies.remove(&report.command) {
            // An error says that the command's task is gone.
            let _ = reply.send(report);
        }
        Some(())
    }

    /// Writes until it is written; `None`: the agent stops first.
    async fn surely(&self, changes: Vec<Write>, stop: &mut Stop) -> Option<()> {
        if changes.is_empty() {
            return Some(());
        }
        while let Err(error) = self.write(changes.clone()).await {
            warn!(%error, "an update waits: its step cannot be written down; check the disk");
            select! {
                () = time::sleep(AGAIN) => {}
                () = stop.wanted() => return None,
            }
        }
        Some(())
    }

    async fn write(&self, changes: Vec<Write>) -> Result<(), String> {
        let ledger = self.ledger.clone();
        let written = task::spawn_blocking(move || {
            ledger.lock().unwrap_or_else(PoisonError::into_inner).apply(&changes)
        });
        match written.await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Hands an event in, once. A full outbox loses a report, and the command's result says the same in the end; what runs
    /// it takes all the same.
    async fn say(&self, told: Told, stop: &mut Stop) -> Option<()> {
        for _ in 0..tell::TRIES {
            let handed = async { self.outbox.hand_in(told.clone().into()).await?.done().await };
            match handed.await {
                Ok(_) => return Some(()),
                Err(error) => warn!(%error, "a step of an update cannot be told"),
            }
            select! {
                () = time::sleep(AGAIN) => {}
                () = stop.wanted() => return None,
            }
        }
        Some(())
    }

    fn show(&self, current: Option<(&Update, &Sight, Option<&Partial>)>, desk: &Desk) {
        let current = current.map(|(update, sight, partial)| {
            let waits = match sight.gate {
                Gate::Closed(why, _) if update.state() <= State::Downloaded => Some(why),
                _ => None,
            };
            (update, partial.map(Partial::at), waits)
        });
        let versions = self.versions();
        let view = UpdatesView::new(current, desk.waiting.iter(), self.ledger().account(), versions.running);
        self.view.send_replace(Arc::new(view));
    }
}

/// Waits; `None`: the agent stops first.
async fn wait(
    span: Duration,
    update: &Update,
    tools: &Tools,
    desk: &mut Desk,
    words: &mut Words,
    stop: &mut Stop,
) -> Option<Input> {
    let over = time::sleep(span);
    tokio::pin!(over);
    loop {
        select! {
            () = &mut over => return Some(Input::Tick),
            Some(word) = words.recv() => {
                desk.hear(word, tools, Some(update.command)).await;
                if desk.stops(update).is_some() {
                    return Some(Input::Tick);
                }
            }
            () = stop.wanted() => return None,
        }
    }
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Trouble> {
    match task::spawn_blocking(act).await {
        Ok(done) => done.map_err(|error| super::unpack::disk(&error)),
        Err(_) => Err(Trouble::passing(code::DISK, "the disk's thread ended badly")),
    }
}
