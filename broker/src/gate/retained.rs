//! The retained messages outside `fleet/`: of tools, kept over restarts by the [`Directory`], and of the hub, which
//! says them anew at every start.
//!
//! Bounded in topics and bytes, each side for itself. A message with an expiry lives in memory only: the gate knows no
//! wall clock to judge it by after a restart.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    identity::{Directory, Retained},
    policy,
    router::saying::Said,
    stats::Stats,
};

/// All of them.
pub(crate) struct Shelf {
    kept: Mutex<Kept>,
    room: Room,
    directory: Arc<dyn Directory>,
    stats: Arc<Stats>,
}

/// How much one side may keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) topics: usize,
    pub(crate) bytes: usize,
}

/// There is no room for one more retained message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// A retained message as it is shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) qos: u8,
    pub(crate) properties: &'a [u8],
    /// Seconds that are left of it.
    pub(crate) expiry: Option<u32>,
}

#[derive(Default)]
struct Kept {
    by_topic: BTreeMap<String, Entry>,
    /// Counts what was ever kept.
    number: u64,
    tools: Used,
    hub: Used,
}

struct Entry {
    retained: Retained,
    number: u64,
    expires: Option<Instant>,
    hub: bool,
}

#[derive(Debug, Default)]
struct Used {
    topics: usize,
    bytes: usize,
}

/// What one costs beyond its bytes.
const OVERHEAD: usize = 256;
/// Topics looked at in one go, and bytes shown: whoever publishes waits meanwhile.
const PAGE_TOPICS: usize = 1_024;
const PAGE_BYTES: usize = 64 * 1024;

impl Shelf {
    /// With what the directory kept; may do IO.
    pub(crate) fn load(directory: Arc<dyn Directory>, room: Room, stats: Arc<Stats>) -> Self {
        let mut kept = Kept::default();
        for retained in directory.load_retained() {
            let sound = policy::is_for_tools(&retained.topic) && !retained.payload.is_empty();
            if sound && kept.tools.fits(room, retained.cost(), true) {
                let qos = retained.qos.min(1);
                let entry =
                    Entry { retained: Retained { qos, ..retained }, number: 0, expires: None, hub: false };
                kept.put(entry);
            }
        }
        let shelf = Self { kept: Mutex::new(kept), room, directory, stats };
        shelf.count(&shelf.kept());
        shelf
    }

    /// Takes note of a retained message; an empty one clears its topic. The one that was there is gone in any case, but
    /// where a message that is to be acknowledged finds no room.
    pub(crate) fn keep(&self, said: &Said<'_>, now: Instant) -> Result<(), Full> {
        let mut kept = self.kept();
        let outcome = self.change(&mut kept, said, now);
        self.count(&kept);
        outcome
    }

    fn change(&self, kept: &mut Kept, said: &Said<'_>, now: Instant) -> Result<(), Full> {
        let hub = said.sender.is_none();
        let retained = Retained {
            topic: said.topic.to_owned(),
            qos: said.qos,
            payload: said.payload.to_owned(),
            properties: said.properties.to_owned(),
        };
        let expires =
            said.expiry.and_then(|seconds| now.checked_add(Duration::from_secs(u64::from(seconds))));
        if retained.payload.is_empty() {
            self.clear(kept, said.topic);
            return Ok(());
        }
        kept.number += 1;
        let entry = Entry { retained, number: kept.number, expires, hub };
        if !kept.fits(self.room, &entry) {
            let late = kept.late(now);
            late.iter().for_each(|topic| self.clear(kept, topic));
        }
        if !kept.fits(self.room, &entry) {
            self.stats.retained_refused.add(1);
            // A retained message of QoS 0 may be thrown away at any time, the one before must (MQTT 3.1.1 §3.3.1.3).
            if said.qos == 0 {
                self.clear(kept, said.topic);
            }
            return Err(Full);
        }
        let was = kept.by_topic.get(said.topic).is_some_and(Entry::is_stored);
        if entry.is_stored() {
            self.directory.keep_retained(said.topic, Some(&entry.retained));
        } else if was {
            self.directory.keep_retained(said.topic, None);
        }
        kept.put(entry);
        Ok(())
    }

    fn clear(&self, kept: &mut Kept, topic: &str) {
        if kept.take(topic).is_some_and(|entry| entry.is_stored()) {
            self.directory.keep_retained(topic, None);
        }
    }

    /// How much was ever kept: what is kept from now on has a higher number.
    pub(crate) fn number(&self) -> u64 {
        self.kept().number
    }

    /// Shows some of those up to number `upto` that a filter matches, on topics after `after`; gives the topic to go on
    /// after, or `None` at the end.
    pub(crate) fn page(
        &self,
        (filter, upto): (&str, u64),
        after: Option<&str>,
        now: Instant,
        mut show: impl FnMut(&Shown<'_>),
    ) -> Option<String> {
        let kept = self.kept();
        let stem = &filter[..filter.find(['+', '#']).unwrap_or(filter.len())];
        // `a/#` is about `a` too (MQTT 5 §4.7.1.2).
        let stem = stem.strip_suffix('/').unwrap_or(stem);
        let from = after.map_or(Bound::Included(stem), Bound::Excluded);
        let (mut topics, mut bytes) = (0, 0);
        for (topic, entry) in kept.by_topic.range::<str, _>((from, Bound::Unbounded)) {
            if !topic.starts_with(stem) {
                return None;
            }
            let asked = entry.number <= upto && policy::covers(filter, topic);
            if let Some(shown) = entry.shown(now).filter(|_| asked) {
                show(&shown);
                bytes += entry.retained.cost();
            }
            topics += 1;
            if topics >= PAGE_TOPICS || bytes >= PAGE_BYTES {
                return Some(topic.clone());
            }
        }
        None
    }

    /// Shows what the hub keeps of its own topics and a filter may match, until `show` breaks.
    pub(crate) fn of_hub(&self, filter: &str, show: &mut dyn FnMut(&Shown<'_>) -> ControlFlow<()>) {
        self.directory.retained(filter, &mut |topic, payload| {
            show(&Shown { topic, payload, qos: 1, properties: &[], expiry: None })
        });
    }

    fn count(&self, kept: &Kept) {
        self.stats.retained_topics.set(kept.by_topic.len());
        self.stats.retained_bytes.set(kept.tools.bytes + kept.hub.bytes);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn put(&mut self, entry: Entry) {
        let topic = entry.retained.topic.clone();
        self.take(&topic);
        let used = self.used(entry.hub);
        used.topics += 1;
        used.bytes += entry.retained.cost();
        self.by_topic.insert(topic, entry);
    }

    fn take(&mut self, topic: &str) -> Option<Entry> {
        let entry = self.by_topic.remove(topic)?;
        let used = self.used(entry.hub);
        used.topics -= 1;
        used.bytes -= entry.retained.cost();
        Some(entry)
    }

    fn used(&mut self, hub: bool) -> &mut Used {
        if hub { &mut self.hub } else { &mut self.tools }
    }

    /// Whether its side has room for it, in place of the one of the same topic.
    fn fits(&self, room: Room, entry: &Entry) -> bool {
        let old = self.by_topic.get(&entry.retained.topic).filter(|old| old.hub == entry.hub);
        let used = if entry.hub { &self.hub } else { &self.tools };
        let room = if entry.hub { room.of_hub() } else { room };
        let freed = old.map_or(0, |old| old.retained.cost());
        let used = Used { topics: used.topics, bytes: used.bytes - freed };
        used.fits(room, entry.retained.cost(), old.is_none())
    }

    /// The topics whose messages are not worth showing any more.
    fn late(&self, now: Instant) -> Vec<String> {
        let late = |entry: &Entry| entry.expires.is_some_and(|expires| expires <= now);
        self.by_topic.iter().filter(|(_, entry)| late(entry)).map(|(topic, _)| topic.clone()).collect()
    }
}

impl Entry {
    /// Whether the directory keeps it.
    fn is_stored(&self) -> bool {
        !self.hub && self.expires.is_none()
    }

    fn shown(&self, now: Instant) -> Option<Shown<'_>> {
        let Retained { topic, qos, payload, properties } = &self.retained;
        let left = self.expires.map(|expires| expires.saturating_duration_since(now));
        if left == Some(Duration::ZERO) {
            return None;
        }
        let expiry = left.map(|left| u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1));
        Some(Shown { topic, payload, qos: *qos, properties, expiry })
    }
}

impl Room {
    /// What the hub may keep: discovery of 10,000 nodes for Home Assistant, in a few kilobytes each.
    fn of_hub(self) -> Self {
        Self { topics: self.topics * 2, bytes: self.bytes * 4 }
    }
}

impl Used {
    fn fits(&self, room: Room, cost: usize, another: bool) -> bool {
        self.topics + usize::from(another) <= room.topics && self.bytes + cost <= room.bytes
    }
}

impl Retained {
    /// Bytes that it counts for.
    fn cost(&self) -> usize {
        2 * self.topic.len() + self.payload.len() + self.properties.len() + OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, iter};

    use super::*;
    use crate::{Credentials, Refusal, Verdict, clock};

    /// Keeps what it is told to, and what it had.
    #[derive(Default)]
    struct Store {
        kept: Mutex<HashMap<String, Retained>>,
        changes: Mutex<usize>,
    }

    impl Directory for Store {
        fn authenticate(&self, _: &Credentials<'_>) -> Verdict {
            Err(Refusal::Banned).into()
        }

        fn load_retained(&self) -> Vec<Retained> {
            self.kept.lock().unwrap().values().cloned().collect()
        }

        fn keep_retained(&self, topic: &str, value: Option<&Retained>) {
            *self.changes.lock().unwrap() += 1;
            let mut kept = self.kept.lock().unwrap();
            match value {
                Some(value) => drop(kept.insert(topic.to_owned(), value.clone())),
                None => assert!(kept.remove(topic).is_some(), "{topic} was not kept"),
            }
        }
    }

    fn shelf(store: &Arc<Store>, topics: usize) -> Shelf {
        let stats = Arc::new(Stats::new(clock::now()));
        Shelf::load(store.clone(), Room { topics, bytes: 100_000 }, stats)
    }

    fn said<'a>(topic: &'a str, payload: &'a [u8]) -> Said<'a> {
        let sender = Some(("nodered", "n"));
        Said { topic, payload, qos: 1, retain: true, expiry: None, properties: &[], sender }
    }

    fn all(shelf: &Shelf, filter: &str, now: Instant) -> Vec<(String, Vec<u8>, Option<u32>)> {
        let mut shown = vec![];
        let mut after = None;
        let pages = iter::from_fn(|| {
            after = shelf.page((filter, shelf.number()), after.as_deref(), now, |it| {
                shown.push((it.topic.to_owned(), it.payload.to_owned(), it.expiry));
            });
            after.clone()
        });
        pages.for_each(drop);
        shown
    }

    fn topics(shelf: &Shelf, filter: &str) -> Vec<String> {
        all(shelf, filter, clock::now()).into_iter().map(|(topic, _, _)| topic).collect()
    }

    #[test]
    fn what_tools_retain_is_shown_to_filters_that_match_and_kept_over_a_restart() {
        let (store, now) = (Arc::new(Store::default()), clock::now());
        let first = shelf(&store, 10);
        for topic in ["a", "a/b", "a/b/c", "a-b", "z/b"] {
            first.keep(&Said { properties: &[1, 1], ..said(topic, topic.as_bytes()) }, now).unwrap();
        }
        first.keep(&said("a/b", b"newer"), now).unwrap();
        first.keep(&said("a-b", b""), now).unwrap();
        first.keep(&said("never/was", b""), now).unwrap();
        let before = first.number();
        first.keep(&said("z/b", b"z/b"), now).unwrap();
        assert_eq!(first.page(("z/b", before), None, now, |it| panic!("{it:?} was kept later")), None);
        let second = shelf(&store, 10);
        for shelf in [&first, &second] {
            assert_eq!(topics(shelf, "#"), ["a", "a/b", "a/b/c", "z/b"]);
            assert_eq!(topics(shelf, "a/#"), ["a", "a/b", "a/b/c"]);
            assert_eq!(topics(shelf, "+/b"), ["a/b", "z/b"]);
            assert_eq!(topics(shelf, "a/b"), ["a/b"]);
            assert_eq!(all(shelf, "a/b", now)[0].1, b"newer");
            assert_eq!(shelf.stats.retained_topics.get(), 4);
        }
    }

    #[test]
    fn what_expires_is_shown_with_what_is_left_of_it_and_never_stored() {
        let (store, now) = (Arc::new(Store::default()), clock::now());
        let shelf = shelf(&store, 2);
        shelf.keep(&said("a", b"for ever"), now).unwrap();
        shelf.keep(&Said { expiry: Some(10), ..said("a", b"a while") }, now).unwrap();
        assert!(store.kept.lock().unwrap().is_empty());
        let later = now + Duration::from_secs(4);
        assert_eq!(all(&shelf, "a", later), [("a".to_owned(), b"a while".to_vec(), Some(6))]);
        let late = now + Duration::from_secs(10);
        assert_eq!(all(&shelf, "a", late), []);
        shelf.keep(&said("b", b"x"), late).unwrap();
        assert_eq!(shelf.keep(&said("c", b"x"), late), Ok(()), "what expired makes room");
        assert_eq!(topics(&shelf, "#"), ["b", "c"]);
    }

    #[test]
    fn room_is_bounded_in_topics_and_bytes_and_each_side_has_its_own() {
        let (store, now) = (Arc::new(Store::default()), clock::now());
        let shelf = shelf(&store, 2);
        for topic in ["a", "b", "a"] {
            assert_eq!(shelf.keep(&said(topic, b"x"), now), Ok(()));
        }
        assert_eq!(shelf.keep(&said("c", b"x"), now), Err(Full));
        assert_eq!(shelf.keep(&Said { sender: None, ..said("c", b"x") }, now), Ok(()), "the hub's");
        let large = vec![0; 200_000];
        assert_eq!(shelf.keep(&said("a", &large), now), Err(Full));
        assert_eq!(all(&shelf, "a", now)[0].1, b"x", "not acknowledged, so nothing changed");
        assert_eq!(shelf.keep(&Said { qos: 0, ..said("a", &large) }, now), Err(Full));
        assert_eq!(topics(&shelf, "#"), ["b", "c"], "but not the older one in place of a newer");
        assert_eq!(store.kept.lock().unwrap().len(), 1, "the hub says its own anew");
        shelf.keep(&Said { sender: None, ..said("b", b"the hub's now") }, now).unwrap();
        assert_eq!((store.kept.lock().unwrap().len(), shelf.kept().tools.bytes), (0, 0));
        assert_eq!((*store.changes.lock().unwrap(), shelf.stats.retained_refused.get()), (5, 3));
    }

    #[test]
    fn long_answers_come_in_pages_without_holes() {
        let (store, now) = (Arc::new(Store::default()), clock::now());
        let shelf = Shelf::load(
            store,
            Room { topics: 5_000, bytes: 100_000_000 },
            Arc::new(Stats::new(clock::now())),
        );
        let expected: Vec<_> = (0..5_000).map(|n| format!("apps/{n:04}")).collect();
        for topic in &expected {
            shelf.keep(&said(topic, &[7; 50]), now).unwrap();
        }
        assert_eq!(topics(&shelf, "apps/+"), expected);
        assert_eq!(topics(&shelf, "apps/4999"), expected[4_999..]);
    }
}
