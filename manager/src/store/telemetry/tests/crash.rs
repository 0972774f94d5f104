//! Power fails at every sync of a scripted run; what was committed is there once, and the account is right.

use super::*;
use crate::store::disk::When;

/// What the run knows when it ends.
#[derive(Default)]
struct Ran {
    committed: Vec<Vec<Given>>,
    /// The group whose commit failed: it may be there as a whole, or not at all.
    doubtful: Option<Vec<Given>>,
}

fn group(n: i64, now: i64) -> Vec<Given> {
    let batch = |node: u32, lane: Lane| {
        let rows: Vec<_> =
            (0..4 + n % 7).map(|row| (now - row * 500, "", "t", (n * 100 + row) as f64)).collect();
        Given { node, lane, recv_ms: now, shift_ms: n % 2 * 10, samples: samples(&rows) }
    };
    vec![batch(1, Lane::Telemetry), batch(2, Lane::Telemetry), batch(1, Lane::Backfill)]
}

/// Appends, seals across two weeks, merges, and lets retention take the first week.
fn script(store: &TelemetryStore, ran: &mut Ran) -> Result<(), Error> {
    let mut now = NOW;
    for n in 0..14 {
        let group = group(n, now);
        ran.doubtful = Some(group);
        append(store, ran.doubtful.as_deref().unwrap_or_default(), n as u64 + 1)?;
        ran.committed.extend(ran.doubtful.take());
        now += if n == 9 { 7 * DAY } else { 16 * MINUTE };
        seal_all(store, now)?;
    }
    // The daily pass merges; then the first week is over age.
    seal_all(store, now + 2 * DAY)?;
    while store.retain(now + 91 * DAY)?.more {}
    append(store, &[], 0)?;
    Ok(())
}

/// Checks a store that was opened after the crash.
fn check_after(store: &TelemetryStore, ran: &Ran) {
    let groups = ran.committed.len() as u64;
    let mark = store
        .marks()
        .unwrap()
        .first()
        .map_or(0, |(_, mark)| u64::from_le_bytes(mark.as_slice().try_into().unwrap()));
    // The mark moves with the group: it tells whether the doubtful one is there.
    let mut known: Vec<&Given> = ran.committed.iter().flatten().collect();
    if mark == groups + 1 {
        known.extend(ran.doubtful.iter().flatten());
    } else {
        assert_eq!(mark, groups);
    }
    let facts: Vec<_> = known.iter().flat_map(|given| given.facts()).collect();
    for (node, lane) in [(1, Lane::Telemetry), (1, Lane::Backfill), (2, Lane::Telemetry)] {
        let counters = store.counters(node, lane).unwrap();
        let total = facts.iter().filter(|fact| (fact.0, fact.1) == (node, lane)).count() as u64;
        assert_eq!(counters.stored + counters.expired, total, "node {node} {lane}");
        assert_eq!(store.recount(node, lane).unwrap(), counters.stored, "node {node} {lane}");
    }
    for node in [1, 2] {
        let expired: u64 = [Lane::Telemetry, Lane::Backfill]
            .map(|lane| store.counters(node, lane).unwrap().expired)
            .iter()
            .sum();
        let week = week::FileId::of(NOW);
        let left: Vec<_> = (known.iter())
            .filter(|given| expired == 0 || week::FileId::of(given.recv_ms) != week)
            .flat_map(|given| given.facts())
            .collect();
        assert_eq!(found(store, &all(node)), expected(&left, node));
    }
}

#[test]
fn the_power_may_fail_at_any_sync() {
    let disk = Memory::default();
    let mut ran = Ran::default();
    let store = open(&disk, config()).unwrap();
    script(&store, &mut ran).unwrap();
    check_after(&store, &ran);
    assert!(store.counters(1, Lane::Telemetry).unwrap().expired > 0);
    assert!(store.counters(1, Lane::Telemetry).unwrap().stored > 0);
    drop(store);
    let syncs = disk.syncs();
    assert!(syncs > 60, "{syncs}");
    for (sync, when) in (1..=syncs).flat_map(|sync| [(sync, When::Before), (sync, When::After)]) {
        let disk = Memory::default();
        disk.freeze_at(sync, when);
        let mut ran = Ran::default();
        if let Ok(store) = open(&disk, config()) {
            let _ = script(&store, &mut ran);
        }
        disk.crash();
        let store = open(&disk, config()).unwrap_or_else(|error| panic!("sync {sync} {when:?}: {error}"));
        check_after(&store, &ran);
        // Going on doubles nothing either.
        seal_all(&store, NOW + 20 * DAY).unwrap();
        check_after(&store, &ran);
        drop(store);
        let store = open(&disk, config()).unwrap();
        check_after(&store, &ran);
    }
}
