//! The plane behind the gate: a supervised router, the threads that feed and hear it, and the pipes that outlive
//! it (DESIGN section 9).
//!
//! The rooms `wires` and `tap` are the only ones that name rumqttd. Knows sessions only as a place to deliver to.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use fleet_schemas::NodeId;

use crate::{
    clock,
    gate::{retained::Shelf, sessions::Sessions, tools::Tools},
    stats::Stats,
};

pub(crate) mod ear;
pub(crate) mod pipe;
pub(crate) mod saying;
pub(crate) mod tap;
pub(crate) mod wires;

use ear::Ears;
use pipe::{Carry, Pipe};
use saying::Saying;
use tap::Tap;
use wires::{Feed, Fuse, SpawnError, Wires};

/// What the gate, the hub's link and the router's threads share.
pub(crate) struct Plane {
    pub(crate) up: Arc<Pipe>,
    pub(crate) down: Arc<Pipe>,
    /// The hub's own topics: missed by whom they do not reach, so nothing of it is said twice.
    pub(crate) news: Arc<Pipe>,
    /// What tools say to each other, and the hub to them: missed likewise, and tools are cut off with their router.
    pub(crate) talk: Arc<Pipe<Saying>>,
    pub(crate) stats: Arc<Stats>,
    sessions: Arc<Sessions>,
    pub(crate) tools: Arc<Tools>,
    pub(crate) ears: Arc<Ears>,
    budget: usize,
    hub: Mutex<Hub>,
    hub_changed: Condvar,
    faults: Mutex<Sender<Fault>>,
}

#[derive(Default)]
struct Hub {
    tap: Option<Tap>,
    closed: bool,
}

enum Fault {
    /// A link of this generation's router is lost.
    Gone(u64),
    /// The router is to be killed, to see what happens.
    #[cfg(test)]
    Kill,
    /// The router is to fall silent, alive.
    #[cfg(test)]
    Deafen,
    Stop,
}

/// The thread that watches the router.
pub(crate) struct Supervisor {
    faults: Sender<Fault>,
    thread: JoinHandle<()>,
}

/// One router's life.
struct Life {
    generation: u64,
    fuse: Fuse,
    threads: Vec<JoinHandle<()>>,
    heard: Arc<AtomicBool>,
    asked: Option<Instant>,
}

/// A probe loops through the router this often.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A router that has not returned a probe for so long is deaf. Generous: a rebuild costs more than waiting for a
/// machine that is short of CPU.
const PROBE_LATE: Duration = Duration::from_secs(5);
/// How long a thread waits before it looks whether its router is still the current one.
const LOOK: Duration = Duration::from_millis(250);
/// How long after a failed spawn the next is tried.
const SPAWN_AGAIN: Duration = Duration::from_millis(200);
/// How long the threads of a router have to end.
const END: Duration = Duration::from_secs(2);
const END_STEP: Duration = Duration::from_millis(1);
/// Bytes in the router at once of what nodes are told, of the hub's own and of what tools say: it appends a whole batch
/// before any reader runs (GATE-NOTES 4).
const WINDOW: usize = 1024 * 1024;
/// Bytes of the hub's own topics that wait in the plane, above which more are dropped.
const NEWS_BUDGET: usize = 8 * 1024 * 1024;
/// Bytes of what tools say that wait in the plane, above which tools are not read.
const TALK_BUDGET: usize = 4 * 1024 * 1024;
/// Messages heard at once.
const HEAR: usize = 4_096;

impl Plane {
    /// Spawns the router and its threads.
    pub(crate) fn start(
        stats: Arc<Stats>,
        sessions: Arc<Sessions>,
        tools: Arc<Tools>,
        shelf: Arc<Shelf>,
        budget: usize,
        down_budget: usize,
    ) -> Result<(Arc<Self>, Supervisor), StartError> {
        let (faults, faulty) = mpsc::channel();
        let plane = Arc::new(Self {
            up: Arc::new(Pipe::new(budget, stats.in_flight_bytes.clone())),
            down: Arc::new(Pipe::new(down_budget, stats.down_in_flight_bytes.clone())),
            news: Arc::new(Pipe::new(NEWS_BUDGET, stats.hub_in_flight_bytes.clone())),
            talk: Arc::new(Pipe::new(TALK_BUDGET, stats.talk_in_flight_bytes.clone())),
            stats,
            sessions,
            ears: Ears::new(tools.clone(), shelf),
            tools,
            budget,
            hub: Mutex::default(),
            hub_changed: Condvar::new(),
            faults: Mutex::new(faults.clone()),
        });
        let life = plane.enliven(0, wires::spawn(budget, WINDOW, 0)?)?;
        let supervised = plane.clone();
        let thread = thread::Builder::new()
            .name("plane-watch".into())
            .spawn(move || supervised.supervise(life, &faulty))?;
        Ok((plane, Supervisor { faults, thread }))
    }

    /// The newest router's tap, if there is one that nobody took yet; waits for it until `deadline`.
    pub(crate) fn newest_tap(&self, deadline: Option<Instant>) -> Option<Tap> {
        let mut hub = self.hub();
        while let (None, false, Some(deadline)) = (&hub.tap, hub.closed, deadline) {
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() {
                return None;
            }
            hub = self.hub_changed.wait_timeout(hub, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        hub.tap.take()
    }

    /// Whether a node has a session here.
    pub(crate) fn has_session(&self, node: &NodeId) -> bool {
        self.sessions.has(node)
    }

    /// Whether the plane was shut down.
    pub(crate) fn closed(&self) -> bool {
        self.hub().closed
    }

    /// The router of this generation is not there any more.
    pub(crate) fn report_gone(&self, generation: u64) {
        // Without a supervisor the plane is closed, and everybody sees that soon.
        let _ = self.faults.lock().unwrap_or_else(PoisonError::into_inner).send(Fault::Gone(generation));
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a new router its threads, its backlog and the hub's ear.
    fn enliven(self: &Arc<Self>, generation: u64, wires: Wires) -> io::Result<Life> {
        let Wires { up, up_rx, hub_rx, down, down_rx, news, news_rx, talk, talk_rx, linker, fuse } = wires;
        self.up.restart(generation, &self.stats.router_quarantined);
        self.down.restart(generation, &self.stats.router_quarantined);
        self.news.forget();
        self.news.restart(generation, &self.stats.router_quarantined);
        self.talk.forget();
        self.talk.restart(generation, &self.stats.router_quarantined);
        let heard = Arc::new(AtomicBool::new(false));
        let thread = |name: &str, run: Box<dyn FnOnce(&Self) + Send>| {
            let plane = self.clone();
            thread::Builder::new().name(name.into()).spawn(move || run(&plane))
        };
        let probes = heard.clone();
        let (up_tap, down_tap) = (Tap::new(up_rx, generation), Tap::new(down_rx, generation));
        let (news_tap, talk_tap) = (Tap::new(news_rx, generation), Tap::new(talk_rx, generation));
        let threads = vec![
            thread("up-watch", Box::new(move |plane| plane.hear_probes(up_tap, &probes)))?,
            thread(
                "down-hear",
                Box::new(move |plane| plane.hear(&plane.down, down_tap, |it| plane.sessions.deliver(it))),
            )?,
            // Tools hear for themselves; this one only says what has left the pipe.
            thread("news-hear", Box::new(move |plane| plane.hear(&plane.news, news_tap, drop)))?,
            thread("talk-hear", Box::new(move |plane| plane.hear(&plane.talk, talk_tap, drop)))?,
            thread("talk-feed", Box::new(move |plane| plane.feed(&plane.talk, WINDOW, generation, talk)))?,
            thread("news-feed", Box::new(move |plane| plane.feed(&plane.news, WINDOW, generation, news)))?,
            thread("up-feed", Box::new(move |plane| plane.feed(&plane.up, usize::MAX, generation, up)))?,
            thread("down-feed", Box::new(move |plane| plane.feed(&plane.down, WINDOW, generation, down)))?,
        ];
        self.hub().tap = Some(Tap::new(hub_rx, generation));
        self.hub_changed.notify_all();
        self.ears.offer(linker);
        Ok(Life { generation, fuse, threads, heard, asked: None })
    }

    fn supervise(self: Arc<Self>, mut life: Life, faults: &Receiver<Fault>) {
        loop {
            match faults.recv_timeout(PROBE_EVERY) {
                Ok(Fault::Gone(generation)) if generation == life.generation => {}
                Ok(Fault::Gone(_)) => continue,
                #[cfg(test)]
                Ok(Fault::Kill) => {
                    life.fuse.retire();
                    continue;
                }
                #[cfg(test)]
                Ok(Fault::Deafen) => {
                    life.fuse.deafen();
                    continue;
                }
                Ok(Fault::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if life.answers(clock::now()) => continue,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.stats.router_rebuilds.add(1);
            tracing::error!(generation = life.generation, "the router is gone, a new one takes over");
            self.ears.retract(life.generation);
            life.fuse.retire();
            match self.next_life(life.generation + 1, faults) {
                Some(next) => life = next,
                None => break,
            }
        }
        self.up.close();
        self.down.close();
        self.news.close();
        self.talk.close();
        life.end();
        self.ears.close(clock::now() + END);
        let mut hub = self.hub();
        hub.closed = true;
        hub.tap = None;
        drop(hub);
        self.hub_changed.notify_all();
    }

    /// Spawns until there is a router again; `None` when the plane is to stop.
    fn next_life(self: &Arc<Self>, generation: u64, faults: &Receiver<Fault>) -> Option<Life> {
        loop {
            let life = wires::spawn(self.budget, WINDOW, generation).map_err(StartError::from);
            match life.and_then(|wires| self.enliven(generation, wires).map_err(StartError::from)) {
                Ok(life) => return Some(life),
                Err(error) => tracing::error!(%error, "no new router yet"),
            }
            match faults.recv_timeout(SPAWN_AGAIN) {
                Ok(Fault::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn feed<P: Carry>(&self, pipe: &Pipe<P>, window: usize, generation: u64, mut feed: Feed) {
        let mut batch = Vec::new();
        while pipe.next_batch(generation, window, &mut batch).is_ok() {
            if feed.hand_over(&mut batch).is_err() {
                return self.report_gone(generation);
            }
        }
    }

    /// Hears probes, and that the publishing link is still there: the router says Ok to what it has dropped.
    fn hear_probes(&self, mut tap: Tap, heard: &AtomicBool) {
        let mut probes = Vec::new();
        while self.down.is_current(tap.generation()) {
            if tap.collect(clock::now() + LOOK, 1, &mut probes).is_err() {
                return self.report_gone(tap.generation());
            }
            if !probes.is_empty() {
                heard.store(true, Ordering::Release);
                probes.clear();
            }
        }
    }

    fn hear<P: Carry>(&self, pipe: &Pipe<P>, mut tap: Tap, deliver: impl Fn(P)) {
        let (mut addresses, mut parcels) = (Vec::new(), Vec::new());
        loop {
            let gone = tap.collect(clock::now() + LOOK, HEAR, &mut addresses).is_err();
            let Ok(outcome) = pipe.receive(tap.generation(), &addresses, &mut parcels) else { return };
            addresses.clear();
            self.stats.router_recovered.add(outcome.recovered);
            self.stats.router_foreign.add(outcome.foreign);
            pipe.taken(parcels.len());
            parcels.drain(..).for_each(&deliver);
            if gone {
                return self.report_gone(tap.generation());
            }
            if !pipe.is_current(tap.generation()) {
                return;
            }
        }
    }
}

impl Life {
    /// Whether the router is there and returns probes; asks for the next one.
    fn answers(&mut self, now: Instant) -> bool {
        if self.fuse.dead() {
            return false;
        }
        if self.heard.swap(false, Ordering::AcqRel) {
            self.asked = None;
        }
        let asked = *self.asked.get_or_insert(now);
        if asked == now {
            self.fuse.probe();
        }
        now < asked + PROBE_LATE
    }

    /// Retires the router and joins its threads, those that end in time.
    fn end(self) {
        let deadline = clock::now() + END;
        self.fuse.retire();
        while clock::now() < deadline {
            if self.fuse.dead() && self.threads.iter().all(JoinHandle::is_finished) {
                break;
            }
            thread::sleep(END_STEP);
        }
        for thread in self.threads.into_iter().filter(JoinHandle::is_finished) {
            if thread.join().is_err() {
                tracing::error!("a thread of the router's had panicked");
            }
        }
    }
}

impl Supervisor {
    /// Retires the router and joins all threads. What is still in the up pipe stays there for the hub's link.
    pub(crate) fn stop(self) {
        // A supervisor that is gone has stopped already.
        let _ = self.faults.send(Fault::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the router's supervisor had panicked");
        }
    }

    #[cfg(test)]
    pub(crate) fn kill_router(&self) {
        self.faults.send(Fault::Kill).unwrap();
    }

    #[cfg(test)]
    pub(crate) fn deafen_router(&self) {
        self.faults.send(Fault::Deafen).unwrap();
    }
}

/// Why the plane does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("a thread could not be started: {0}")]
    Thread(#[from] io::Error),
}
