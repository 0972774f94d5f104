//! Followers against power failures, reopening, sealing and a window that moves on: every record once, in order.

use std::sync::Arc;

use fleet_schemas::{
    DeviceId, Lane, MetricName,
    event::{Event, Severity},
    telemetry::{Builder, Sample},
};
use proptest::prelude::*;

use super::*;
use crate::store::{
    disk::{Memory, When},
    state::Commit,
    telemetry::{Config, InboxBatch},
};

const NOW: i64 = 1_795_000_000_000;
const MINUTE: i64 = 60_000;
const ID: StoreId = StoreId([5; 16]);

/// The stores, and what was written to them. A record is known by its number: they are given in order.
struct Site {
    disk: Memory,
    config: Config,
    now_ms: i64,
    open: Option<(TelemetryStore, StateStore)>,
    next: u64,
    /// Numbers of batches with their node and size, and of events.
    batches: Vec<(u64, u32, u16)>,
    events: Vec<(u64, u32)>,
    /// Their commit failed: they are there or not.
    doubtful: Vec<u64>,
}

impl Site {
    fn new(config: Config) -> Self {
        let (disk, now_ms) = (Memory::default(), NOW);
        let mut site = Self {
            disk,
            config,
            now_ms,
            open: None,
            next: 1,
            batches: vec![],
            events: vec![],
            doubtful: vec![],
        };
        site.reopen();
        site
    }

    fn reopen(&mut self) {
        self.open = None;
        let disk = Arc::new(self.disk.clone());
        let state = StateStore::open(&*disk, ID).unwrap();
        self.open = Some((TelemetryStore::open(disk, self.config, self.now_ms).unwrap(), state));
    }

    /// Power fails at the next sync of the next write, then everything is opened again.
    fn crash(&mut self, when: When, group: &[(u32, u8)], event: Option<u32>) {
        self.disk.freeze_at(self.disk.syncs() + 1, when);
        self.write(group, event);
        self.open = None;
        self.disk.crash();
        self.reopen();
    }

    /// One group: events first, then batches, as the consumer does.
    fn write(&mut self, group: &[(u32, u8)], event: Option<u32>) {
        let Some((telemetry, state)) = &self.open else { return };
        if let Some(node) = event {
            let number = self.next;
            self.next += 1;
            let kind = MetricName::parse("tick").unwrap();
            let (severity, message) = (Severity::Info, number.to_string());
            let event =
                Event { time_ms: self.now_ms, kind, severity, message, data: None, device: None, id: None };
            let row = EventRow { node, time_ms: self.now_ms, recv_ms: self.now_ms, by_hub: false, event };
            if state.apply(&Commit { events: vec![row], ..Commit::default() }).is_err() {
                self.doubtful.push(number);
                return;
            }
            self.events.push((number, node));
        }
        if group.is_empty() {
            return;
        }
        let first = self.next;
        self.next += group.len() as u64;
        let append = || {
            let mut write = telemetry.begin()?;
            for (number, (node, size)) in (first..).zip(group) {
                let mut builder = Builder::default();
                for at in 0..i64::from(*size) {
                    let metric = MetricName::parse(if at % 2 == 0 { "a" } else { "b" }).unwrap();
                    let (device, value) = (DeviceId::node(), number as f64);
                    let time_ms = self.now_ms + at;
                    assert_eq!(builder.push(Sample { time_ms, device, metric, unit: None, value }), None);
                }
                let samples = builder.build();
                let (body, lane) = (samples.encode(), Lane::Telemetry);
                let (recv_ms, samples) = (self.now_ms, &samples);
                let node = *node;
                write.append(&InboxBatch {
                    node,
                    lane,
                    recv_ms,
                    shift_ms: 7,
                    samples,
                    body: &body,
                    payload: None,
                })?;
            }
            write.commit()
        };
        let done = append();
        for (number, (node, size)) in (first..).zip(group) {
            match done {
                Ok(()) => self.batches.push((number, *node, u16::from(*size))),
                Err(_) => self.doubtful.push(number),
            }
        }
    }

    fn seal(&mut self, wait_ms: i64) {
        self.now_ms += wait_ms;
        let Some((telemetry, _)) = &self.open else { return };
        while telemetry.seal(self.now_ms).unwrap().more {}
    }

    fn logs(&self) -> Logs<'_> {
        let (telemetry, state) = self.open.as_ref().unwrap();
        Logs { telemetry, state: state.clone() }
    }
}

/// Somebody who keeps nothing but the text of a cursor and what it was told.
struct Follower {
    cursor: String,
    node: Option<u32>,
    /// Number and how many samples.
    batches: Vec<(u64, u16)>,
    events: Vec<u64>,
}

impl Follower {
    fn new(site: &Site, node: Option<u32>) -> Self {
        let cursor = site.logs().start().unwrap().to_string();
        Self { cursor, node, batches: Vec::new(), events: Vec::new() }
    }

    fn page(&self, site: &Site) -> Result<Page, Gone> {
        let at = self.cursor.parse().unwrap();
        site.logs().page(at, |node| self.node.is_none_or(|only| only == node)).unwrap()
    }

    /// Takes a page, or its beginning: so many samples and events, then the connection is lost.
    fn take(&mut self, page: Page, mut most: u16) -> bool {
        for (after, item) in page.items {
            if most == 0 {
                return false;
            }
            match item {
                Item::Event(_, row) => {
                    most -= 1;
                    self.events.push(row.event.message.parse().unwrap());
                    self.cursor = after.to_string();
                }
                Item::Samples { batch, known } => {
                    let all = json::samples(&batch);
                    let left = &all[usize::from(known)..];
                    let taken = left.len().min(usize::from(most)) as u16;
                    most -= taken;
                    let number = all[0].value as u64;
                    match self.batches.last_mut().filter(|_| known > 0) {
                        Some((last, count)) => {
                            assert_eq!((*last, *count), (number, known), "it goes on where it stopped");
                            *count += taken;
                        }
                        None => self.batches.push((number, taken)),
                    }
                    let whole = usize::from(known + taken) == all.len();
                    let cursor = if whole { after } else { after.within(&batch, known + taken) };
                    self.cursor = cursor.to_string();
                    if !whole {
                        return false;
                    }
                }
            }
        }
        self.cursor = page.after.to_string();
        page.end
    }

    fn catch_up(&mut self, site: &Site) {
        while !self.take(self.page(site).unwrap(), u16::MAX) {}
    }

    fn wants(&self, node: u32) -> bool {
        self.node.is_none_or(|only| only == node)
    }

    /// Everything that was committed, in order, once; of what is in doubt all or nothing.
    fn check(&self, site: &Site) {
        assert!(self.batches.is_sorted_by(|a, b| a.0 < b.0), "{:?}", self.batches);
        assert!(self.events.is_sorted_by(|a, b| a < b), "{:?}", self.events);
        let sure: Vec<_> = self.batches.iter().filter(|(n, _)| !site.doubtful.contains(n)).copied().collect();
        let wanted = site.batches.iter().filter(|(_, node, size)| self.wants(*node) && *size > 0);
        assert_eq!(sure, wanted.map(|(n, _, size)| (*n, *size)).collect::<Vec<_>>());
        let sure: Vec<_> = self.events.iter().filter(|n| !site.doubtful.contains(n)).copied().collect();
        let wanted = site.events.iter().filter(|(_, node)| self.wants(*node));
        assert_eq!(sure, wanted.map(|(n, _)| *n).collect::<Vec<_>>());
    }
}

#[derive(Debug, Clone)]
enum Act {
    Write(Vec<(u32, u8)>, Option<u32>),
    Crash(bool, Vec<(u32, u8)>, Option<u32>),
    Seal(i64),
    Reopen,
    Follow(bool, u16),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let group = || prop::collection::vec((1..4_u32, 1..40_u8), 0..5);
    let event = || prop::option::of(1..4_u32);
    let act = prop_oneof![
        6 => (group(), event()).prop_map(|(group, event)| Act::Write(group, event)),
        1 => (any::<bool>(), group(), event()).prop_map(|(before, group, event)| Act::Crash(before, group, event)),
        2 => prop_oneof![Just(0), Just(MINUTE), Just(20 * MINUTE)].prop_map(Act::Seal),
        1 => Just(Act::Reopen),
        6 => (any::<bool>(), prop_oneof![0..30_u16, Just(u16::MAX)]).prop_map(|(who, most)| Act::Follow(who, most)),
    ];
    prop::collection::vec(act, 1..50)
}

fn act(site: &mut Site, act: Act) {
    match act {
        Act::Write(group, event) => site.write(&group, event),
        Act::Crash(before, group, event) => {
            site.crash(if before { When::Before } else { When::After }, &group, event);
        }
        Act::Seal(wait_ms) => site.seal(wait_ms),
        Act::Reopen => site.reopen(),
        Act::Follow(..) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_record_is_told_once_and_in_order_whatever_happens(acts in acts()) {
        let mut site = Site::new(Config { seal_bytes: 400, ..Config::default() });
        let mut followers = [Follower::new(&site, None), Follower::new(&site, Some(2))];
        for next in acts {
            if let Act::Follow(who, most) = next {
                let follower = &mut followers[usize::from(who)];
                let page = follower.page(&site).unwrap();
                follower.take(page, most);
            }
            act(&mut site, next);
        }
        for follower in &mut followers {
            follower.catch_up(&site);
            follower.check(&site);
        }
        let mut late = Follower::new(&site, None);
        late.catch_up(&site);
        late.check(&site);
    }

    #[test]
    fn a_follower_who_comes_too_late_is_told_and_never_misses_in_silence(acts in acts()) {
        // Nothing is kept beyond what is not sealed, but for the newest.
        let mut site = Site::new(Config {
            seal_bytes: 400, feed_bytes: 0, feed_age: std::time::Duration::ZERO, ..Config::default()
        });
        let mut follower = Follower::new(&site, None);
        let mut gone = false;
        for next in acts {
            if let Act::Follow(_, most) = next {
                match follower.page(&site) {
                    Ok(page) => drop(follower.take(page, most)),
                    Err(Gone::Removed { .. }) => {
                        gone = true;
                        let (batches, events) = (follower.batches, follower.events);
                        follower = Follower { batches, events, ..Follower::new(&site, None) };
                    }
                    Err(Gone::Foreign) => panic!("it is the same store"),
                }
            }
            act(&mut site, next);
        }
        if !gone && follower.page(&site).is_ok() {
            follower.catch_up(&site);
            follower.check(&site);
        }
    }
}

/// Fills the inbox beyond a window of nothing: two slabs, of which the first can go.
fn outrun(site: &mut Site) {
    for _ in 0..4 {
        site.write(&[(1, 200), (2, 200)], None);
        site.seal(20 * MINUTE);
    }
    site.seal(2 * MINUTE);
}

#[test]
fn a_cursor_that_is_older_than_the_window_is_gone_and_the_newest_rows_stay() {
    let config =
        Config { seal_bytes: 100, feed_bytes: 0, feed_age: std::time::Duration::ZERO, ..Config::default() };
    let mut site = Site::new(config);
    site.write(&[(1, 10)], Some(1));
    let mut follower = Follower::new(&site, None);
    follower.catch_up(&site);
    let lagging = Follower { cursor: follower.cursor.clone(), ..Follower::new(&site, None) };
    outrun(&mut site);
    let since_ms = site.batches.len() as i64;
    assert!(since_ms > 4);
    assert!(matches!(lagging.page(&site), Err(Gone::Removed { since_ms: Some(since) }) if since > NOW));
    // At the end nothing is missing, however old that is.
    let mut last = Follower { cursor: site.logs().end().unwrap().to_string(), ..Follower::new(&site, None) };
    site.seal(100 * 24 * 60 * MINUTE);
    site.reopen();
    assert_eq!(last.page(&site).map(|page| page.items.len()), Ok(0));
    site.write(&[(3, 5)], None);
    last.catch_up(&site);
    assert_eq!(last.batches.len(), 1);
    // What is kept for the feed is not sealed again.
    let (telemetry, _) = site.open.as_ref().unwrap();
    assert_eq!(telemetry.recount(1, Lane::Telemetry).unwrap(), 10 + 4 * 200);
}

#[test]
fn the_window_keeps_what_is_sealed_by_bytes_and_age_over_a_restart() {
    let mut site = Site::new(Config { seal_bytes: 100, ..Config::default() });
    let follower = Follower::new(&site, None);
    outrun(&mut site);
    site.reopen();
    let (telemetry, _) = site.open.as_ref().unwrap();
    assert_eq!(telemetry.stats(site.now_ms).unwrap().unsealed_batches, 0);
    let mut late = Follower { cursor: follower.cursor.clone(), ..Follower::new(&site, None) };
    late.catch_up(&site);
    late.check(&site);
    site.seal(25 * 60 * MINUTE);
    assert!(matches!(follower.page(&site), Err(Gone::Removed { .. })), "it is a day old");
}

#[test]
fn a_store_that_was_set_back_is_told_from_the_one_it_was() {
    let mut site = Site::new(Config::default());
    site.write(&[(1, 5)], Some(1));
    let backup = site.disk.image();
    site.now_ms += 1;
    site.write(&[(1, 5)], Some(1));
    let mut follower = Follower::new(&site, None);
    follower.catch_up(&site);
    let ahead = follower.page(&site).map(|page| page.items.len());
    assert_eq!(ahead, Ok(0));
    // The backup is put back: first the cursor is ahead of it, then others stand where it was.
    site.open = None;
    site.disk = backup;
    site.reopen();
    assert_eq!(follower.page(&site), Err(Gone::Foreign));
    site.now_ms += 1;
    site.write(&[(1, 5), (1, 6)], Some(1));
    site.write(&[], Some(1));
    assert_eq!(follower.page(&site), Err(Gone::Foreign));
    let other = Cursor::new(StoreId([6; 16]), Place::default(), Place::default());
    assert_eq!(site.logs().page(other, |_| true).unwrap(), Err(Gone::Foreign));
}
