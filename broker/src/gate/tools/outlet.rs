//! What one third-party session wants to hear, and the packets that wait for it.
//!
//! The session's thread takes them out and says what it wants; its ear, on a thread of its own, puts them in. Packets are
//! copies, so that a tool that reads slowly holds nothing of the router's.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    branch::{Branches, HubKinds},
    gate::{
        session::{
            Cut, Listen,
            subs::{Sub, Subs},
            tool::ToolKey,
            waiting::Chunk,
        },
        wire::Version,
    },
    stats::Gauge,
};

/// What one session wants, and what waits for it.
pub(crate) struct Outlet {
    pub(crate) key: ToolKey,
    pub(crate) version: Version,
    /// Largest packet the tool takes, in bytes.
    pub(crate) packet_max: usize,
    queue: Mutex<Queue>,
    /// Told when anything changed that the session has to see.
    pub(crate) wake: Notify,
    /// Told when packets were taken, or none ever will be.
    room: Condvar,
}

#[derive(Default)]
struct Queue {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    subs: Arc<Subs>,
    wanted: (Branches, HubKinds),
    replay: Vec<Replay>,
    linked: Branches,
    /// Whether something hears for it, and the router of which generation.
    heard: bool,
    hears: Option<u64>,
    cut: Option<Cut>,
    closed: bool,
}

/// A subscription that is to be answered with what is retained.
pub(crate) struct Replay {
    pub(crate) sub: Sub,
    /// The number of the newest retained message that belongs to the answer: what is kept later is heard as it is said.
    /// Known from the start where everything was heard already when the subscription came.
    pub(crate) upto: Option<u64>,
}

/// The session is over, or about to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended;

/// How long an answer waits for a session that takes nothing at all.
const PATIENCE: Duration = Duration::from_secs(30);

impl Outlet {
    pub(super) fn new(key: ToolKey, version: Version, packet_max: u32) -> Self {
        Self {
            key,
            version,
            packet_max: usize::try_from(packet_max).unwrap_or(usize::MAX),
            queue: Mutex::default(),
            wake: Notify::new(),
            room: Condvar::new(),
        }
    }

    /// What it hears from now on; gives what it reached before and reaches now, and whether an ear has to start.
    /// `number` is of the newest retained message.
    pub(super) fn listen(
        &self,
        listen: Listen,
        number: impl Fn() -> u64,
    ) -> ((Branches, HubKinds), (Branches, HubKinds), bool) {
        let now = (listen.subs.branches(), listen.subs.kinds());
        let mut queue = self.lock();
        queue.subs = listen.subs;
        for sub in listen.replay {
            let upto = sub.branches.inside(queue.linked).then(&number);
            queue.replay.push(Replay { sub, upto });
        }
        let start = !queue.heard && now.0 != Branches::default();
        queue.heard |= start;
        (mem::replace(&mut queue.wanted, now), now, start)
    }

    /// Appends packets, or cuts the session off because more than `share` bytes would wait.
    pub(super) fn queue(&self, chunk: Chunk, share: usize, waiting: &Gauge) -> Result<(), Ended> {
        let mut queue = self.lock();
        if queue.over() {
            return Err(Ended);
        }
        let within = queue.bytes + chunk.cost() <= share;
        if within {
            waiting.add(chunk.cost());
            queue.bytes += chunk.cost();
            queue.chunks.push_back(chunk);
        } else {
            queue.cut = Some(Cut::Slow);
            queue.clear(waiting);
        }
        drop(queue);
        self.wake.notify_one();
        if within { Ok(()) } else { Err(Ended) }
    }

    /// Waits until no more than `most` bytes wait, or cuts off a session that takes nothing for half a minute.
    pub(super) fn wait_for_room(&self, most: usize) -> Result<(), Ended> {
        let mut queue = self.lock();
        while !queue.over() && queue.bytes > most {
            let before = queue.bytes;
            let (woken, outcome) =
                self.room.wait_timeout(queue, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            if outcome.timed_out() && queue.bytes >= before {
                queue.cut.get_or_insert(Cut::Slow);
                self.wake.notify_one();
            }
        }
        if queue.over() { Err(Ended) } else { Ok(()) }
    }

    pub(super) fn pop(&self, waiting: &Gauge) -> Option<Chunk> {
        let mut queue = self.lock();
        let chunk = queue.chunks.pop_front()?;
        queue.bytes -= chunk.cost();
        waiting.sub(chunk.cost());
        drop(queue);
        self.room.notify_one();
        Some(chunk)
    }

    /// The session ended; gives what it reached.
    pub(super) fn close(&self, waiting: &Gauge) -> (Branches, HubKinds) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.clear(waiting);
        let reached = mem::take(&mut queue.wanted);
        drop(queue);
        self.room.notify_one();
        reached
    }

    /// Why the session is to end, if it is.
    pub(crate) fn cut_due(&self) -> Option<Cut> {
        self.lock().cut
    }

    pub(crate) fn cut(&self, cut: Cut) {
        self.lock().cut.get_or_insert(cut);
        self.wake.notify_one();
        self.room.notify_one();
    }

    /// What has to be heard for the session, and the subscriptions that wait for an answer, which are taken out.
    pub(crate) fn wanted(&self) -> Result<(Branches, Vec<Replay>), Ended> {
        let mut queue = self.lock();
        if queue.over() { Err(Ended) } else { Ok((queue.wanted.0, mem::take(&mut queue.replay))) }
    }

    /// What it is subscribed to.
    pub(crate) fn subs(&self) -> Result<Arc<Subs>, Ended> {
        let queue = self.lock();
        if queue.over() { Err(Ended) } else { Ok(queue.subs.clone()) }
    }

    /// What is heard for the session.
    pub(crate) fn linked(&self) -> Branches {
        self.lock().linked
    }

    pub(super) fn hears(&self) -> Option<u64> {
        self.lock().hears
    }

    pub(crate) fn set_hears(&self, generation: u64) {
        self.lock().hears = Some(generation);
    }

    pub(crate) fn set_linked(&self, linked: Branches) {
        self.lock().linked = linked;
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn over(&self) -> bool {
        self.cut.is_some() || self.closed
    }

    fn clear(&mut self, waiting: &Gauge) {
        self.chunks = VecDeque::new();
        waiting.sub(self.bytes);
        self.bytes = 0;
    }
}
