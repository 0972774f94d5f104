//! The running hub: a thread that consumes, a thread that tidies the store, and the handle that everybody else holds.
//!
//! Moves bytes and time in and out of [`Consumer`]; decides nothing. Nothing is published, acked or answered before the
//! commit that justifies it.

mod disk;
mod readiness;
mod round;
mod tidy;

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use fleet_broker::{Link, Stats as BrokerStats};
use fleet_schemas::{DeviceId, Lane, NodeId};
use tokio::sync::{broadcast, oneshot, watch};

pub use disk::DiskView;
pub use readiness::Readiness;
pub use round::Round;

use crate::{
    alerts::Alerts,
    clock::{self, HubClock},
    consume::{self, Consumer, FeedItem, Shared, StoredEvent},
    core::{
        audit::Entry,
        bounds::{self, Touch},
        devices::Device,
        fleet::{Fleet, NodeNo},
        identity::{Cut, Identities},
        ledger::Account,
        registry::{Intent, Order, RegistryError},
    },
    feed::Logs,
    release::Releases,
    store::{
        state::{AuditFilter, Error as StateError, EventFilter},
        telemetry::{Config as TelemetryConfig, TelemetryStore},
    },
};
use readiness::Health;

/// Intents that may wait for the consumer.
const INTENTS: usize = 1_024;
/// Feed items a follower may be behind before it misses some.
const FEED: usize = 8_192;

/// How the hub's store behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Samples.
    pub telemetry: TelemetryConfig,
    /// How long events are kept.
    pub retain_events: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { telemetry: TelemetryConfig::default(), retain_events: Duration::from_secs(90 * 24 * 3600) }
    }
}

/// Why an operator's change was not made.
#[derive(Debug, thiserror::Error)]
pub enum IntentError {
    /// The registry refuses it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The hub cannot write at present; nothing was changed, as far as anybody knows.
    #[error("the hub cannot store changes now: {0}")]
    Unavailable(String),
}

/// A waiting intent.
type Pending = (Order, oneshot::Sender<Result<(), IntentError>>);

/// Called after every round of the consumer; must be quick.
pub type Observer = Arc<dyn Fn(&Round) + Send + Sync>;

/// Called for every session that a committed change ends; must be quick.
pub type Door = Arc<dyn Fn(&Cut) + Send + Sync>;

/// Called with every ack (CBOR) that the hub has committed, before it is published; says whether it was for a node that
/// the hub itself speaks for. Must be quick.
pub type Ear = Arc<dyn Fn(&NodeId, &[u8]) -> bool + Send + Sync>;

/// Where artifacts and releases are, once that is said.
type Artifacts = Arc<OnceLock<Arc<Releases>>>;

struct Inner {
    shared: Shared,
    door: Arc<OnceLock<Door>>,
    ear: Arc<OnceLock<Ear>>,
    alerts: OnceLock<Alerts>,
    releases: Artifacts,
    disk: disk::Seen,
    clock: Arc<HubClock>,
    intents: mpsc::SyncSender<Pending>,
    feed: broadcast::Sender<Arc<FeedItem>>,
    committed: watch::Sender<u64>,
    health: Arc<Health>,
    broker: Arc<BrokerStats>,
    refusals: Arc<Mutex<consume::Refusals>>,
}

/// A handle on the running hub. Cheap to clone; any thread may hold one.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

/// The hub's threads. Dropping it does not stop them: call [`Running::stop`] after the broker was shut down.
pub struct Running {
    stop: Arc<AtomicBool>,
    consumer: JoinHandle<()>,
    tidier: JoinHandle<()>,
}

/// Figures of the hub for `/metrics`.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Gate and router.
    pub broker: Arc<BrokerStats>,
    /// Payloads that were refused: message, reason, count.
    pub refusals: Vec<(&'static str, &'static str, u64)>,
}

/// What `ledger --verify` found for one node and lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The account as the counters have it.
    pub account: Account,
    /// Records found by counting what is in the store.
    pub found: u64,
}

/// Starts consuming.
///
/// # Errors
/// When a thread cannot be had.
pub fn start(
    consumer: Consumer,
    link: Link,
    broker: Arc<BrokerStats>,
    clock: Arc<HubClock>,
    config: &Config,
    observer: Observer,
) -> io::Result<(Hub, Running)> {
    let (intents, waiting) = mpsc::sync_channel(INTENTS);
    let (feed, _) = broadcast::channel(FEED);
    let committed = watch::Sender::new(0);
    let health = Arc::new(Health::default());
    let stop = Arc::new(AtomicBool::new(false));
    let refusals = Arc::new(Mutex::new(consume::Refusals::default()));
    let shared = consumer.shared().clone();
    let (door, ear) = (Arc::default(), Arc::default());
    let (releases, seen) = (Artifacts::default(), disk::Seen::default());
    let inner = Inner {
        shared: shared.clone(),
        door: Arc::clone(&door),
        ear: Arc::clone(&ear),
        alerts: OnceLock::new(),
        releases: releases.clone(),
        disk: seen.clone(),
        clock: clock.clone(),
        intents,
        feed: feed.clone(),
        committed: committed.clone(),
        health: health.clone(),
        broker: broker.clone(),
        refusals: refusals.clone(),
    };
    let rounds = round::Rounds {
        consumer,
        link,
        intents: waiting,
        feed,
        committed: committed.clone(),
        health: health.clone(),
        broker,
        clock: clock.clone(),
        refusals,
        stop: stop.clone(),
        observer,
        door,
        ear,
        told: Vec::new(),
        logged: std::collections::BTreeMap::new(),
    };
    let (feels, mut rounds) = (health.clone(), rounds);
    let consumer = thread::Builder::new()
        .name("consumer".to_owned())
        .spawn(move || outlive(&feels, "consumer", || rounds.run()))?;
    let tidier = tidy::Tidier {
        shared,
        committed,
        health: health.clone(),
        clock,
        stop: stop.clone(),
        retain_events: config.retain_events,
        disk: disk::Watch::new(config.telemetry.retain, releases, seen),
    };
    let mut tidier = tidier;
    let tidier = thread::Builder::new()
        .name("tidier".to_owned())
        .spawn(move || outlive(&health, "tidier", || tidier.run()))?;
    Ok((Hub(Arc::new(inner)), Running { stop, consumer, tidier }))
}

/// Runs a thread's work to its end. After a panic what was in memory is not trusted: the stores are opened again, the
/// registry is read from them, and the work goes on. (The panic's own message is on the standard error.)
fn outlive(health: &Health, name: &str, mut work: impl FnMut()) {
    while panic::catch_unwind(AssertUnwindSafe(&mut work)).is_err() {
        if health.failure().is_none() {
            health.failed(format!(
                "the {name} panicked; the stores are opened again. Please report its message"
            ));
        }
    }
}

impl Running {
    /// Stops the threads and waits for them: what was received is committed.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Release);
        self.tidier.thread().unpark();
        for thread in [self.consumer, self.tidier] {
            if thread.join().is_err() {
                tracing::error!("a thread of the hub had panicked");
            }
        }
    }
}

impl Hub {
    /// Looks at the registry. The consumer waits meanwhile: be quick.
    pub fn with_fleet<R>(&self, look: impl FnOnce(&Fleet) -> R) -> R {
        look(&self.0.shared.fleet())
    }

    /// The samples.
    #[must_use]
    pub fn telemetry(&self) -> &Arc<TelemetryStore> {
        &self.0.shared.telemetry
    }

    /// What is small and precious, as it is open now; for reading.
    #[must_use]
    pub fn state(&self) -> crate::store::state::StateStore {
        self.0.shared.state()
    }

    /// Which life of the store this is.
    #[must_use]
    pub fn store_id(&self) -> fleet_schemas::StoreId {
        self.0.shared.state().store_id()
    }

    /// The hub's clock.
    #[must_use]
    pub fn clock(&self) -> &HubClock {
        &self.0.clock
    }

    /// The devices that a node reported, by id.
    ///
    /// # Errors
    /// What the store says.
    pub fn devices(&self, node: NodeNo) -> Result<Vec<(DeviceId, Device)>, StateError> {
        self.0.shared.state().devices(node)
    }

    /// Stored events, newest first unless only `after` is given.
    ///
    /// # Errors
    /// [`consume::Error`].
    pub fn events(&self, filter: EventFilter) -> Result<Vec<StoredEvent>, consume::Error> {
        let rows = self.0.shared.state().events(filter)?;
        let fleet = self.0.shared.fleet();
        let named = rows.into_iter().filter_map(|(number, row)| {
            let node = fleet.subject(row.node)?;
            let (time_ms, recv_ms, by_hub, event) = (row.time_ms, row.recv_ms, row.by_hub, row.event);
            Some(StoredEvent { number, node, time_ms, recv_ms, by_hub, event })
        });
        Ok(named.collect())
    }

    /// The ledger, from marks and counters.
    ///
    /// # Errors
    /// [`consume::Error`].
    pub fn ledger(&self) -> Result<Vec<Account>, consume::Error> {
        let _settled = self.0.shared.settled();
        let counters = self.0.shared.counters()?;
        Ok(self.0.shared.fleet().ledger(counters))
    }

    /// The ledger of one node; nothing of one that is not known.
    ///
    /// # Errors
    /// [`consume::Error`].
    pub fn ledger_of(&self, node: &NodeId) -> Result<Vec<Account>, consume::Error> {
        let _settled = self.0.shared.settled();
        let fleet = self.0.shared.fleet();
        let accounts = fleet.nodes.get(node).map(|node| self.0.shared.accounts(node));
        Ok(accounts.transpose()?.unwrap_or_default())
    }

    /// The ledger against a count of what is really stored. Slow: reads everything.
    ///
    /// A node that delivers meanwhile is counted between two commits; its two figures may differ by what arrived in
    /// between, so a difference is counted a second time.
    ///
    /// # Errors
    /// [`consume::Error`].
    pub fn verify_ledger(&self, node: Option<&NodeId>) -> Result<Vec<Verified>, consume::Error> {
        let mut verified = Vec::new();
        let events = self.0.shared.state().recount_events()?;
        let reports = self.0.shared.state().recount_reports()?;
        for account in self.ledger()? {
            if node.is_some_and(|node| *node != account.node) {
                continue;
            }
            let number = self.0.shared.fleet().nodes.get(&account.node).map(|node| node.number);
            let Some(number) = number else { continue };
            let found = match account.lane {
                Lane::Telemetry | Lane::Backfill => self.0.shared.telemetry.recount(number, account.lane)?,
                Lane::Event => events.get(&number).copied().unwrap_or(0),
                Lane::Command => reports.get(&number).copied().unwrap_or(0),
            };
            verified.push(Verified { account, found });
        }
        Ok(verified)
    }

    /// Looks at who may speak to the hub.
    pub fn with_identities<R>(&self, look: impl FnOnce(&Identities) -> R) -> R {
        look(&self.0.shared.identities())
    }

    /// Whether somebody, such as `operator NAME`, may change what is no intent of the registry.
    ///
    /// # Errors
    /// [`RegistryError::Outside`].
    pub fn may(&self, by: &str, touch: Touch<'_>) -> Result<(), RegistryError> {
        // In the order in which the consumer takes them.
        let fleet = self.0.shared.fleet();
        bounds::may(&fleet, &self.0.shared.identities(), by, touch)
    }

    /// Whether an intent is within what somebody may touch, for whoever only tells what it would do.
    ///
    /// # Errors
    /// [`RegistryError::Outside`].
    pub fn within(&self, by: &str, mut intent: Intent) -> Result<(), RegistryError> {
        let now_ms = self.clock().now().wall_ms;
        let fleet = self.0.shared.fleet();
        bounds::check(&fleet, &self.0.shared.identities(), by, &mut intent, now_ms)
    }

    /// Says who ends sessions; once, before anything is changed.
    pub fn set_door(&self, door: Door) {
        let _ = self.0.door.set(door);
    }

    /// Says who hears acks for nodes that the hub speaks for; once, before it speaks.
    pub fn set_ear(&self, ear: Ear) {
        let _ = self.0.ear.set(ear);
    }

    /// What the threads share.
    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// Says who judges alerts; once.
    pub fn set_alerts(&self, alerts: Alerts) {
        let _ = self.0.alerts.set(alerts);
    }

    /// Who judges alerts, where somebody does.
    #[must_use]
    pub fn alerts(&self) -> Option<&Alerts> {
        self.0.alerts.get()
    }

    /// Says where artifacts and releases are; once.
    pub fn set_releases(&self, releases: Arc<Releases>) {
        let _ = self.0.releases.set(releases);
    }

    /// The disk as it was a minute ago at most; none while nobody looked, or where the system does not tell.
    #[must_use]
    pub fn disk(&self) -> Option<DiskView> {
        *self.0.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Artifacts and releases, where there are any.
    #[must_use]
    pub fn releases(&self) -> Option<&Arc<Releases>> {
        self.0.releases.get()
    }

    /// Tells followers of something that was committed elsewhere.
    pub(crate) fn tell(&self, item: Arc<FeedItem>) {
        // Nobody may be listening.
        let _ = self.0.feed.send(item);
    }

    /// The trail of changes, newest first, with their numbers.
    ///
    /// # Errors
    /// [`consume::Error`].
    pub fn audit(&self, filter: AuditFilter) -> Result<Vec<(u64, Entry)>, consume::Error> {
        Ok(self.0.shared.state().audit(filter)?)
    }

    /// Asks for a change in the name of `by` (`operator NAME`, `node ID` or `hub`); answers after it was committed.
    ///
    /// # Errors
    /// [`IntentError`].
    pub async fn intend(&self, by: &str, intent: Intent) -> Result<(), IntentError> {
        let (answer, answered) = oneshot::channel();
        let busy = || IntentError::Unavailable("too many changes are waiting; try again".to_owned());
        self.0.intents.try_send((Order { by: by.to_owned(), intent }, answer)).map_err(|_| busy())?;
        let stopped = || IntentError::Unavailable("the hub is stopping".to_owned());
        answered.await.map_err(|_| stopped())?
    }

    /// Everything that is committed from now on.
    #[must_use]
    pub fn feed(&self) -> broadcast::Receiver<Arc<FeedItem>> {
        self.0.feed.subscribe()
    }

    /// Changes whenever samples or events were committed: wakes whoever follows [`Hub::logs`].
    #[must_use]
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.0.committed.subscribe()
    }

    /// Everything that was committed, to be followed by a cursor. For a moment: don't keep it.
    #[must_use]
    pub fn logs(&self) -> Logs<'_> {
        Logs { telemetry: &self.0.shared.telemetry, state: self.0.shared.state() }
    }

    /// Whether the hub does its work, and what keeps it from it.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.0.health.readiness(clock::mono(), self.telemetry().poisoned(), self.0.clock.doubt())
    }

    /// Rounds that the consumer has finished since the start: it stands still when its disk hangs. At least one every
    /// few seconds while it does not.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.0.health.rounds()
    }

    /// Figures.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let refusals = self.0.refusals.lock().unwrap_or_else(PoisonError::into_inner).iter().collect();
        Stats { broker: self.0.broker.clone(), refusals }
    }
}
