//! The third-party sessions of the gate: which are open, and what of the hub's and of each other's messages any of them
//! wants to hear.
//!
//! What waits for them is bounded for all together; a tool above its share is cut off, because a stream with a silent
//! hole would be worse than an end.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use fleet_schemas::Topic;

use crate::{
    branch::{Branch, Branches, HubKind, HubKinds},
    gate::{
        session::{Cut, Listen, tool::ToolKey, waiting::Chunk},
        wire::Version,
    },
    stats::Stats,
};

mod outlet;

pub(crate) use outlet::{Ended, Outlet, Replay};

/// All third-party sessions.
pub(crate) struct Tools {
    open: Mutex<Open>,
    /// Sessions that are open, and those of them that hear a kind of the hub's topics, and each other; written when that
    /// changes, read without a lock.
    count: AtomicUsize,
    kinds: [AtomicUsize; HubKind::ALL.len()],
    talk: AtomicUsize,
    max: usize,
    budget: usize,
    stats: Arc<Stats>,
}

#[derive(Default)]
struct Open {
    outlets: HashMap<ToolKey, Arc<Outlet>>,
    named: u64,
    closed: bool,
}

/// The budget is shared by at least so many: few tools may hold more each.
const SHARES_MIN: usize = 4;

impl Tools {
    pub(crate) fn new(max: usize, budget: usize, stats: Arc<Stats>) -> Self {
        Self {
            open: Mutex::default(),
            count: AtomicUsize::new(0),
            kinds: Default::default(),
            talk: AtomicUsize::new(0),
            max,
            budget,
            stats,
        }
    }

    /// Whether there is no room for a session of this key; one that takes another's place always has room.
    pub(crate) fn full(&self, key: &ToolKey) -> bool {
        let open = lock(&self.open);
        open.outlets.len() >= self.max && !open.outlets.contains_key(key)
    }

    /// A client id for a tool that brought none.
    pub(crate) fn name(&self) -> String {
        let mut open = lock(&self.open);
        open.named += 1;
        format!("tool-{}", open.named)
    }

    /// Makes a new session the key's current one and ends the one before. `None` when the gate closes.
    pub(crate) fn open(&self, key: ToolKey, version: Version, packet_max: u32) -> Option<Arc<Outlet>> {
        let outlet = Arc::new(Outlet::new(key.clone(), version, packet_max));
        let mut open = lock(&self.open);
        if open.closed {
            return None;
        }
        let old = open.outlets.insert(key, outlet.clone());
        self.count.store(open.outlets.len(), Ordering::Release);
        drop(open);
        if let Some(old) = old {
            old.cut(Cut::TakenOver);
        }
        Some(outlet)
    }

    /// What the session hears from now on; `number` is of the newest retained message. Says whether something has to
    /// start hearing for it.
    pub(crate) fn listen(&self, outlet: &Outlet, listen: Listen, number: impl Fn() -> u64) -> bool {
        let (before, now, start) = outlet.listen(listen, number);
        self.recount(before, now);
        start
    }

    fn recount(&self, before: (Branches, HubKinds), now: (Branches, HubKinds)) {
        let count = |counter: &AtomicUsize, before: bool, now: bool| match (before, now) {
            (false, true) => drop(counter.fetch_add(1, Ordering::AcqRel)),
            (true, false) => drop(counter.fetch_sub(1, Ordering::AcqRel)),
            (true, true) | (false, false) => {}
        };
        for kind in HubKind::ALL {
            count(&self.kinds[kind as usize], before.1.has(kind), now.1.has(kind));
        }
        count(&self.talk, before.0.has(Branch::Tools), now.0.has(Branch::Tools));
    }

    /// Appends packets to what waits for a session, and cuts one off that has more than its share waiting.
    pub(crate) fn queue(&self, outlet: &Outlet, chunk: Chunk) -> Result<(), Ended> {
        outlet.queue(chunk, self.share(), &self.stats.tool_queue_bytes)
    }

    /// The same for what answers a subscription: waits for a session that reads slowly, as long as it reads at all.
    pub(crate) fn queue_patiently(&self, outlet: &Outlet, chunk: Chunk) -> Result<(), Ended> {
        // The other half is for what comes meanwhile.
        outlet.wait_for_room(self.share() / 2)?;
        self.queue(outlet, chunk)
    }

    fn share(&self) -> usize {
        self.budget / self.count.load(Ordering::Acquire).max(SHARES_MIN)
    }

    /// A message was copied for a tool.
    pub(crate) fn copied(&self) {
        self.stats.tool_messages.add(1);
    }

    /// A message was too large for a tool.
    pub(crate) fn skipped(&self) {
        self.stats.tool_skipped.add(1);
    }

    /// The next packets for a session's socket.
    pub(crate) fn pop(&self, outlet: &Outlet) -> Option<Chunk> {
        outlet.pop(&self.stats.tool_queue_bytes)
    }

    /// A session ended; a newer one of the same key stays.
    pub(crate) fn close(&self, outlet: &Arc<Outlet>) {
        self.recount(outlet.close(&self.stats.tool_queue_bytes), Default::default());
        let mut open = lock(&self.open);
        if open.outlets.get(&outlet.key).is_some_and(|current| Arc::ptr_eq(current, outlet)) {
            open.outlets.remove(&outlet.key);
        }
        self.count.store(open.outlets.len(), Ordering::Release);
    }

    /// Whether any tool hears anything of the hub's own topics.
    pub(crate) fn hub_wanted(&self) -> bool {
        HubKind::ALL.into_iter().any(|kind| self.kind_wanted(kind))
    }

    /// Whether any tool hears anything of this kind.
    pub(crate) fn kind_wanted(&self, kind: HubKind) -> bool {
        self.kinds[kind as usize].load(Ordering::Acquire) > 0
    }

    /// Whether any tool hears anything of what tools say.
    pub(crate) fn talk_wanted(&self) -> bool {
        self.talk.load(Ordering::Acquire) > 0
    }

    /// Whether any tool hears this topic.
    pub(crate) fn wanted(&self, topic: &Topic) -> bool {
        let text = topic.to_string();
        self.outlets().iter().any(|outlet| outlet.subs().is_ok_and(|subs| subs.cover(&text)))
    }

    /// Ends the sessions that hear the router of this generation.
    pub(crate) fn cut_hearers(&self, generation: u64) {
        for outlet in self.outlets() {
            if outlet.hears() == Some(generation) {
                outlet.cut(Cut::RouterReplaced);
            }
        }
    }

    /// Ends the sessions of the tool of this name.
    pub(crate) fn cut(&self, name: &str, cut: Cut) {
        for outlet in self.outlets().iter().filter(|outlet| outlet.key.user == name) {
            outlet.cut(cut);
        }
    }

    /// Ends all sessions and opens none from now on.
    pub(crate) fn close_all(&self) {
        lock(&self.open).closed = true;
        for outlet in self.outlets() {
            outlet.cut(Cut::Shutdown);
        }
    }

    fn outlets(&self) -> Vec<Arc<Outlet>> {
        lock(&self.open).outlets.values().cloned().collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use fleet_schemas::{NodeId, topic::Hub};

    use super::*;
    use crate::{
        clock,
        gate::{
            encode::Forward,
            session::subs::{Sub, Subs},
            wire::{Ask, Replay},
        },
    };

    fn key(client_id: &str) -> ToolKey {
        ToolKey { user: "grafana".into(), client_id: client_id.into() }
    }

    fn tools() -> (Tools, Arc<Stats>) {
        let stats = Arc::new(Stats::new(clock::now()));
        (Tools::new(8, 8_000, stats.clone()), stats)
    }

    fn open(tools: &Tools, id: &str) -> Arc<Outlet> {
        tools.open(key(id), Version::V4, u32::MAX).unwrap()
    }

    fn chunk(bytes: usize) -> Chunk {
        let mut chunk = Chunk::default();
        chunk.bytes.reserve_exact(bytes);
        chunk.push(Version::V4, &Forward { topic: b"t", ..Forward::default() }, clock::now);
        chunk
    }

    fn listen(filters: &[&str]) -> Listen {
        let mut subs = Subs::default();
        for filter in filters {
            let ask = Ask { filter, qos: 0, no_local: false, as_published: false, replay: Replay::Never };
            subs.insert(Sub::new(&ask, None));
        }
        Listen { subs: Arc::new(subs), replay: vec![] }
    }

    #[test]
    fn a_tool_above_its_share_is_cut_off_and_holds_nothing_and_others_keep_theirs() {
        let (tools, stats) = tools();
        let (slow, other) = (open(&tools, "slow"), open(&tools, "other"));
        assert_eq!(tools.queue(&other, chunk(500)), Ok(()));
        assert_eq!(tools.queue(&slow, chunk(2_000)), Ok(()));
        assert_eq!(tools.queue(&slow, chunk(10)), Err(Ended));
        assert_eq!((slow.cut_due(), other.cut_due()), (Some(Cut::Slow), None));
        assert_eq!((tools.pop(&slow), stats.tool_queue_bytes.get()), (None, 500));
        for n in 0..6 {
            open(&tools, &n.to_string());
        }
        assert_eq!(tools.queue(&other, chunk(501)), Err(Ended), "eight share what four shared");
        tools.close(&other);
        assert_eq!(stats.tool_queue_bytes.get(), 0);
    }

    #[test]
    fn an_answer_waits_for_room_and_leaves_half_of_it_for_what_comes_meanwhile() {
        let (tools, stats) = tools();
        let outlet = open(&tools, "slow");
        thread::scope(|scope| {
            let answer = scope.spawn(|| (0..20).try_for_each(|_| tools.queue_patiently(&outlet, chunk(500))));
            let mut got = 0;
            while got < 20 {
                assert!(stats.tool_queue_bytes.get() <= 1_500);
                got += usize::from(tools.pop(&outlet).is_some());
            }
            assert_eq!(answer.join().unwrap(), Ok(()));
            let waits = scope.spawn(|| (0..20).try_for_each(|_| tools.queue_patiently(&outlet, chunk(500))));
            while stats.tool_queue_bytes.get() < 1_000 {
                thread::yield_now();
            }
            outlet.cut(Cut::TakenOver);
            assert_eq!(waits.join().unwrap(), Err(Ended));
        });
    }

    #[test]
    fn kinds_of_the_hub_s_topics_are_wanted_while_a_filter_of_an_open_session_reaches_them() {
        let (tools, _) = tools();
        let node = Topic::Hub(Hub::Node(NodeId::parse("edge-1").unwrap()));
        let wanted =
            |tools: &Tools| (tools.hub_wanted(), tools.wanted(&node), tools.kind_wanted(HubKind::Node));
        let (a, b) = (open(&tools, "a"), open(&tools, "b"));
        assert!(tools.listen(&a, listen(&["fleet/v1/+/up/#"]), || 0), "now it needs to be heard for");
        assert_eq!(wanted(&tools), (false, false, false));
        assert!(!tools.listen(&a, listen(&["fleet/v1/+/up/#", "fleet/v1/hub/event/+"]), || 0));
        assert_eq!(wanted(&tools), (true, false, false));
        tools.listen(&b, listen(&["fleet/v1/hub/#", "apps/#"]), || 0);
        assert_eq!((wanted(&tools), tools.talk_wanted()), ((true, true, true), true));
        tools.close(&b);
        assert_eq!((wanted(&tools), tools.talk_wanted()), ((true, false, false), false));
        tools.listen(&a, listen(&[]), || 0);
        assert_eq!(wanted(&tools), (false, false, false));
    }

    #[test]
    fn a_key_has_one_session_and_only_new_keys_find_the_gate_full() {
        let (tools, _) = tools();
        let outlets: Vec<_> = (0..8).map(|n| open(&tools, &n.to_string())).collect();
        assert!(tools.full(&key("another")) && !tools.full(&key("0")));
        let newer = open(&tools, "0");
        assert_eq!((outlets[0].cut_due(), newer.cut_due()), (Some(Cut::TakenOver), None));
        tools.close(&outlets[0]);
        assert!(!tools.full(&key("0")), "the newer one stays");
        tools.close(&newer);
        assert!(!tools.full(&key("another")));
        tools.close_all();
        assert!(tools.open(key("late"), Version::V5, 1).is_none());
    }
}
