//! The third-party sessions of the gate: which are open, what each wants to hear, and the bytes that wait for it.
//!
//! Bytes are whole PUBLISH packets in the session's version, copied from the router's memory where they are heard,
//! so that a tool that reads slowly holds nothing of the router's. What waits is bounded for all tools together;
//! a tool above its share is cut off, because a stream with a silent hole would be worse than an end.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use fleet_schemas::Topic;
use tokio::sync::Notify;

use crate::{
    branch::{Branch, Branches},
    gate::{
        session::{Cut, tool::ToolKey},
        wire::Version,
    },
    policy,
    stats::Stats,
};

/// All third-party sessions.
pub(crate) struct Tools {
    open: Mutex<Open>,
    /// Sessions that are open, and those of them that hear the hub; written under the lock, read without.
    count: AtomicUsize,
    hub: AtomicUsize,
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

/// What one session wants, and what waits for it.
pub(crate) struct Outlet {
    pub(crate) key: ToolKey,
    pub(crate) version: Version,
    /// Largest packet the tool takes, in bytes.
    pub(crate) packet_max: usize,
    queue: Mutex<Queue>,
    /// Told when anything changed that the session has to see.
    pub(crate) wake: Notify,
}

#[derive(Default)]
struct Queue {
    chunks: VecDeque<Vec<u8>>,
    bytes: usize,
    filters: Arc<[String]>,
    wanted: Branches,
    linked: Branches,
    /// Whether something hears for it, and the router of which generation.
    heard: bool,
    hears: Option<u64>,
    cut: Option<Cut>,
    closed: bool,
}

/// The session is over, or about to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended;

/// The budget is shared by at least so many: few tools may hold more each.
const SHARES_MIN: usize = 4;

impl Tools {
    pub(crate) fn new(max: usize, budget: usize, stats: Arc<Stats>) -> Self {
        let (count, hub) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { open: Mutex::default(), count, hub, max, budget, stats }
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
        let outlet = Arc::new(Outlet {
            key: key.clone(),
            version,
            packet_max: usize::try_from(packet_max).unwrap_or(usize::MAX),
            queue: Mutex::default(),
            wake: Notify::new(),
        });
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

    /// What the session hears from now on. Says whether something has to start hearing for it.
    pub(crate) fn listen(&self, outlet: &Outlet, filters: Vec<String>) -> bool {
        let wanted = Branches::of(&filters);
        let mut queue = lock(&outlet.queue);
        self.count_hub(queue.wanted, wanted);
        queue.wanted = wanted;
        queue.filters = filters.into();
        let start = !queue.heard && wanted != Branches::default();
        queue.heard |= start;
        start
    }

    fn count_hub(&self, before: Branches, now: Branches) {
        match (before.has(Branch::Hub), now.has(Branch::Hub)) {
            (false, true) => drop(self.hub.fetch_add(1, Ordering::AcqRel)),
            (true, false) => drop(self.hub.fetch_sub(1, Ordering::AcqRel)),
            (true, true) | (false, false) => {}
        }
    }

    /// Appends packets to what waits for a session, and cuts one off that has more than its share waiting.
    pub(crate) fn queue(&self, outlet: &Outlet, packets: Vec<u8>) -> Result<(), Ended> {
        let share = self.budget / self.count.load(Ordering::Acquire).max(SHARES_MIN);
        let mut queue = lock(&outlet.queue);
        if queue.cut.is_some() || queue.closed {
            return Err(Ended);
        }
        let within = queue.bytes + packets.capacity() <= share;
        if within {
            self.stats.tool_queue_bytes.add(packets.capacity());
            queue.bytes += packets.capacity();
            queue.chunks.push_back(packets);
        } else {
            queue.cut = Some(Cut::Slow);
            self.clear(&mut queue);
        }
        drop(queue);
        outlet.wake.notify_one();
        if within { Ok(()) } else { Err(Ended) }
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
    pub(crate) fn pop(&self, outlet: &Outlet) -> Option<Vec<u8>> {
        let mut queue = lock(&outlet.queue);
        let packets = queue.chunks.pop_front()?;
        queue.bytes -= packets.capacity();
        self.stats.tool_queue_bytes.sub(packets.capacity());
        Some(packets)
    }

    fn clear(&self, queue: &mut Queue) {
        queue.chunks = VecDeque::new();
        self.stats.tool_queue_bytes.sub(queue.bytes);
        queue.bytes = 0;
    }

    /// A session ended; a newer one of the same key stays.
    pub(crate) fn close(&self, outlet: &Arc<Outlet>) {
        let mut queue = lock(&outlet.queue);
        queue.closed = true;
        self.count_hub(queue.wanted, Branches::default());
        queue.wanted = Branches::default();
        self.clear(&mut queue);
        drop(queue);
        let mut open = lock(&self.open);
        if open.outlets.get(&outlet.key).is_some_and(|current| Arc::ptr_eq(current, outlet)) {
            open.outlets.remove(&outlet.key);
        }
        self.count.store(open.outlets.len(), Ordering::Release);
    }

    /// Whether any tool hears anything of the hub's own topics.
    pub(crate) fn hub_wanted(&self) -> bool {
        self.hub.load(Ordering::Acquire) > 0
    }

    /// Whether any tool hears this topic.
    pub(crate) fn wanted(&self, topic: &Topic) -> bool {
        let text = topic.to_string();
        self.outlets()
            .iter()
            .any(|outlet| lock(&outlet.queue).filters.iter().any(|filter| policy::covers(filter, &text)))
    }

    /// Ends the sessions that hear the router of this generation.
    pub(crate) fn cut_hearers(&self, generation: u64) {
        for outlet in self.outlets() {
            if lock(&outlet.queue).hears == Some(generation) {
                outlet.cut(Cut::RouterReplaced);
            }
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

impl Outlet {
    /// Why the session is to end, if it is.
    pub(crate) fn cut_due(&self) -> Option<Cut> {
        lock(&self.queue).cut
    }

    pub(crate) fn cut(&self, cut: Cut) {
        lock(&self.queue).cut.get_or_insert(cut);
        self.wake.notify_one();
    }

    /// What is to be heard for the session.
    pub(crate) fn wanted(&self) -> Result<(Branches, Arc<[String]>), Ended> {
        let queue = lock(&self.queue);
        if queue.cut.is_some() || queue.closed {
            Err(Ended)
        } else {
            Ok((queue.wanted, queue.filters.clone()))
        }
    }

    /// What is heard for the session.
    pub(crate) fn linked(&self) -> Branches {
        lock(&self.queue).linked
    }

    pub(crate) fn set_hears(&self, generation: u64) {
        lock(&self.queue).hears = Some(generation);
    }

    pub(crate) fn set_linked(&self, linked: Branches) {
        lock(&self.queue).linked = linked;
        self.wake.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use fleet_schemas::{NodeId, topic::Hub};

    use super::*;
    use crate::clock;

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

    #[test]
    fn a_tool_above_its_share_is_cut_off_and_holds_nothing_and_others_keep_theirs() {
        let (tools, stats) = tools();
        let (slow, other) = (open(&tools, "slow"), open(&tools, "other"));
        assert_eq!(tools.queue(&other, vec![0; 500]), Ok(()));
        assert_eq!(tools.queue(&slow, vec![0; 2_000]), Ok(()));
        assert_eq!(tools.queue(&slow, vec![0; 1]), Err(Ended));
        assert_eq!((slow.cut_due(), other.cut_due()), (Some(Cut::Slow), None));
        assert_eq!((tools.pop(&slow), stats.tool_queue_bytes.get()), (None, 500));
        for n in 0..6 {
            open(&tools, &n.to_string());
        }
        assert_eq!(tools.queue(&other, vec![0; 501]), Err(Ended), "eight share what four shared");
        tools.close(&other);
        assert_eq!(stats.tool_queue_bytes.get(), 0);
    }

    #[test]
    fn the_hub_is_wanted_while_a_filter_of_an_open_session_reaches_it() {
        let (tools, _) = tools();
        let node = Topic::Hub(Hub::Node(NodeId::parse("edge-1").unwrap()));
        let wanted = |tools: &Tools| (tools.hub_wanted(), tools.wanted(&node));
        let (a, b) = (open(&tools, "a"), open(&tools, "b"));
        assert!(tools.listen(&a, vec!["fleet/v1/+/up/#".into()]), "now it needs to be heard for");
        assert_eq!(wanted(&tools), (false, false));
        assert!(!tools.listen(&a, vec!["fleet/v1/+/up/#".into(), "fleet/v1/hub/event/+".into()]));
        assert_eq!(wanted(&tools), (true, false));
        tools.listen(&b, vec!["fleet/v1/hub/#".into()]);
        assert_eq!(wanted(&tools), (true, true));
        tools.close(&b);
        assert_eq!(wanted(&tools), (true, false));
        tools.listen(&a, vec![]);
        assert_eq!(wanted(&tools), (false, false));
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
