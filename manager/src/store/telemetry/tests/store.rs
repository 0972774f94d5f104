//! Facts about the store, one a test.

use super::*;

fn given(node: u32, lane: Lane, recv_ms: i64, count: i64) -> Given {
    let rows: Vec<_> = (0..count).map(|row| (recv_ms - 1_000 * row, "", "t", row as f64 / 10.0)).collect();
    Given { node, lane, recv_ms, shift_ms: 0, samples: samples(&rows) }
}

fn facts(given: &[Given]) -> Vec<Fact> {
    given.iter().flat_map(Given::facts).collect()
}

#[test]
fn a_dropped_transaction_leaves_nothing() {
    let store = open(&Memory::default(), config()).unwrap();
    let mut write = store.begin().unwrap();
    let batch = given(1, Lane::Telemetry, NOW, 3);
    let body = batch.samples.encode();
    let batch = InboxBatch {
        node: 1,
        lane: Lane::Telemetry,
        recv_ms: NOW,
        shift_ms: 0,
        samples: &batch.samples,
        body: &body,
        payload: None,
    };
    let first = write.append(&batch).unwrap();
    write.set_mark(mark_key(1, Lane::Telemetry), b"x");
    assert_eq!(write.mark(&mark_key(1, Lane::Telemetry)).unwrap().as_deref(), Some(&b"x"[..]));
    assert!(matches!(
        write.append(&InboxBatch { lane: Lane::Event, ..batch }),
        Err(Error::Lane(Lane::Event))
    ));
    drop(write);
    assert_eq!(store.query(&all(1)).unwrap(), []);
    let mut write = store.begin().unwrap();
    assert_eq!(write.mark(&mark_key(1, Lane::Telemetry)).unwrap(), None);
    assert_eq!(write.append(&batch).unwrap(), first);
    write.commit().unwrap();
    assert_eq!(store.counters(1, Lane::Telemetry).unwrap().stored, 3);
}

#[test]
fn marks_accounts_and_quarantine_survive_checkpoints_and_reopening() {
    let disk = Memory::default();
    let config = Config { quarantine_bytes: 100, ..config() };
    let store = open(&disk, config).unwrap();
    let key = |stream: u8| MarkKey { node: 9, lane: Lane::Backfill, stream: StreamId([stream; 16]) };
    let mut write = store.begin().unwrap();
    write.set_mark(key(1), b"one");
    write.set_mark(key(2), b"two");
    write.book(9, Lane::Backfill, Booking { lost: 3, written_off: 2, duplicates: 1 });
    for n in 0..3 {
        write.quarantine(&Quarantined {
            node: 9,
            lane: Lane::Backfill,
            recv_ms: NOW,
            records: 5,
            reason: "wrong shape".to_owned(),
            payload: vec![n; 20],
        });
    }
    write.commit().unwrap();
    let counters =
        Counters { quarantined: 15, lost: 3, written_off: 2, duplicates: 1, ..Counters::default() };
    let check = |store: &TelemetryStore, marks: &[(MarkKey, Vec<u8>)]| {
        assert_eq!(store.marks().unwrap(), marks);
        assert_eq!(store.counters_all().unwrap(), [(9, Lane::Backfill, counters)]);
        let kept = store.quarantined(10).unwrap();
        assert_eq!(kept.iter().map(|row| row.payload[0]).collect::<Vec<_>>(), [2]);
        assert_eq!((kept[0].records, kept[0].reason.as_str()), (5, "wrong shape"));
    };
    let both = [(key(1), b"one".to_vec()), (key(2), b"two".to_vec())];
    check(&store, &both);
    drop(store);
    let store = open(&disk, config).unwrap();
    check(&store, &both);
    // A checkpoint after a minute, then a removal in a note on top of it.
    seal_all(&store, NOW + 2 * MINUTE).unwrap();
    check(&store, &both);
    let mut write = store.begin().unwrap();
    write.remove_mark(key(1));
    write.commit().unwrap();
    check(&store, &both[1..]);
    drop(store);
    let store = open(&disk, config).unwrap();
    check(&store, &both[1..]);
    seal_all(&store, NOW + 2 * MINUTE).unwrap();
    drop(store);
    check(&open(&disk, config).unwrap(), &both[1..]);
}

#[test]
fn a_batch_waits_in_the_inbox_until_its_node_has_enough_or_it_is_old() {
    let store = open(&Memory::default(), Config { seal_bytes: 10_000, ..config() }).unwrap();
    let batches = [given(1, Lane::Telemetry, NOW, 50), given(2, Lane::Backfill, NOW + MINUTE, 50)];
    append(&store, &batches, 1).unwrap();
    assert_eq!(seal_all(&store, NOW + 14 * MINUTE).unwrap().batches, 0);
    assert_eq!(store.stats(NOW + 14 * MINUTE).unwrap().seal_lag_ms, 14 * MINUTE as u64);
    assert_eq!(seal_all(&store, NOW + 15 * MINUTE).unwrap().batches, 1);
    check(&store, &facts(&batches));
    // A clock that jumped ten years back seals too.
    assert_eq!(seal_all(&store, NOW - 3_650 * DAY).unwrap().batches, 1);
    check(&store, &facts(&batches));
    let stats = store.stats(NOW).unwrap();
    assert_eq!((stats.unsealed_batches, stats.sealed_samples, stats.week_files), (0, 100, 1));
}

#[test]
fn payloads_that_are_much_smaller_than_their_bodies_are_kept_as_they_came() {
    let disk = Memory::default();
    let store = open(&disk, config()).unwrap();
    let rows: Vec<_> = (0..500).map(|row| (NOW + row, "", "t", f64::from(row as u32 % 3) / 7.0)).collect();
    let samples = samples(&rows);
    let body = samples.encode();
    let batch = fleet_schemas::batch::Batch {
        v: 1,
        stream: StreamId([1; 16]),
        seq: 1,
        seq_to: None,
        first: 1,
        count: 500,
        boot: [0; 8],
        up_ms: 0,
        clock: fleet_schemas::batch::Clock::Synced,
        sealed_ms: NOW,
        lost: None,
        body: body.clone(),
    };
    let payload = fleet_schemas::cbor::Packer::new(3).pack(fleet_schemas::cbor::encode(&batch));
    assert!(payload.len() < body.len() / 2);
    let mut write = store.begin().unwrap();
    let batch = InboxBatch {
        node: 1,
        lane: Lane::Telemetry,
        recv_ms: NOW,
        shift_ms: -7,
        samples: &samples,
        body: &body,
        payload: Some(&payload),
    };
    write.append(&batch).unwrap();
    write.commit().unwrap();
    assert!(store.stats(NOW).unwrap().inbox_bytes < body.len() as u64);
    let given = Given { node: 1, lane: Lane::Telemetry, recv_ms: NOW, shift_ms: -7, samples };
    check(&store, &given.facts());
    seal_all(&store, NOW + DAY).unwrap();
    assert_eq!(store.stats(NOW).unwrap().unsealed_batches, 0);
    check(&store, &given.facts());
}

#[test]
fn small_blobs_are_merged_and_their_latest_values_found_again() {
    let disk = Memory::default();
    let mut store = open(&disk, config()).unwrap();
    let mut given_all = Vec::new();
    for n in 0..30 {
        let batch = given(1, Lane::Telemetry, NOW + n * 16 * MINUTE, 3);
        append(&store, std::slice::from_ref(&batch), 1).unwrap();
        given_all.push(batch);
        seal_all(&store, NOW + (n + 1) * 16 * MINUTE).unwrap();
    }
    let blobs = |store: &TelemetryStore| {
        let opened = store.opened().unwrap();
        let view = opened.weeks.views().unwrap().pop().unwrap();
        let row = view.node(1).unwrap().unwrap();
        view.blobs(1, &row, i64::MIN, i64::MAX).unwrap().len()
    };
    assert_eq!(blobs(&store), 30);
    let report = seal_all(&store, NOW + 2 * DAY).unwrap();
    assert_eq!((report.merged, blobs(&store)), (30, 1));
    check(&store, &facts(&given_all));
    drop(store);
    store = open(&disk, config()).unwrap();
    check(&store, &facts(&given_all));
    let latest = store.latest(1).unwrap();
    assert_eq!((latest.len(), latest[0].time_ms, latest[0].value), (1, NOW + 29 * 16 * MINUTE, 0.0));
    assert_eq!(store.series(1).unwrap()[0].metric.as_str(), "t");
    assert_eq!(store.latest(77).unwrap(), []);
}

#[test]
fn retention_moves_stored_to_expired_and_rollups_remain() {
    let disk = Memory::default();
    let store = open(&disk, config()).unwrap();
    let old = [given(1, Lane::Telemetry, NOW, 600), given(1, Lane::Backfill, NOW, 10)];
    append(&store, &old, 1).unwrap();
    seal_all(&store, NOW + 20 * MINUTE).unwrap();
    let new = [given(1, Lane::Telemetry, NOW + 30 * DAY, 5)];
    append(&store, &new, 2).unwrap();
    seal_all(&store, NOW + 30 * DAY + 20 * MINUTE).unwrap();
    assert_eq!(store.retain(NOW + 90 * DAY).unwrap(), RetainReport::default());
    let hourly = Query {
        from_ms: NOW - DAY,
        to_ms: NOW + DAY,
        step: Some(Step { ms: 60 * MINUTE, aggregate: Aggregate::Sum }),
        ..all(1)
    };
    let before = store.query(&hourly).unwrap();
    let raw = Query { step: None, ..hourly.clone() };
    let every = store.history(&raw, &|_, metric, _| metric.as_str() == "t").unwrap();
    assert_eq!(every, store.query(&raw).unwrap());
    assert_eq!(store.history(&raw, &|_, metric, _| metric.as_str() != "t").unwrap(), []);
    let mut removed = Vec::new();
    let mut expired = Vec::new();
    loop {
        let report = store.retain(NOW + 99 * DAY).unwrap();
        removed.extend(report.removed);
        expired.extend(report.expired);
        if !report.more {
            break;
        }
    }
    assert_eq!(removed.len(), 1);
    assert_eq!(expired, [(1, Lane::Telemetry, 600), (1, Lane::Backfill, 10)]);
    let counters = store.counters(1, Lane::Telemetry).unwrap();
    assert_eq!((counters.stored, counters.expired), (5, 600));
    check(&store, &facts(&new));
    // What was there is still told by the hour, and not twice.
    let after = store.query(&hourly).unwrap();
    assert_eq!(before.len(), 1);
    assert!(!before[0].points.is_empty());
    assert_eq!(after[0].points.len(), before[0].points.len());
    for ((time, sum), (time_before, sum_before)) in after[0].points.iter().zip(&before[0].points) {
        assert_eq!(time, time_before);
        assert!((sum - sum_before).abs() < 1e-6);
    }
    // Whoever draws by time has the last sample of every five minutes in place of the expired ones.
    let mut last = std::collections::BTreeMap::new();
    for point in &every[0].points {
        last.insert(point.0.div_euclid(5 * MINUTE), *point);
    }
    let drawn = store.history(&raw, &|_, _, _| true).unwrap();
    assert_eq!(drawn[0].points, last.into_values().collect::<Vec<_>>());
    assert_eq!(store.query(&raw).unwrap(), []);
    // Two years on the rollups go too.
    let report = store.retain(NOW + 1_000 * DAY).unwrap();
    assert!(report.removed.iter().any(|name| name.starts_with("telemetry/rollup-")), "{report:?}");
}

#[test]
fn size_removes_the_oldest_file_and_never_the_newest() {
    let disk = Memory::default();
    let config = Config { part_bytes: 1, max_disk_bytes: Some(1), ..config() };
    let store = open(&disk, config).unwrap();
    for n in 0..3 {
        append(&store, &[given(1, Lane::Telemetry, NOW + n, 200)], 1).unwrap();
        seal_all(&store, NOW + 20 * MINUTE).unwrap();
    }
    assert_eq!(store.stats(NOW).unwrap().week_files, 3);
    let mut removed = 0;
    loop {
        let report = store.retain(NOW + 20 * MINUTE).unwrap();
        removed += report.removed.len();
        if !report.more {
            assert!(report.full);
            break;
        }
    }
    let counters = store.counters(1, Lane::Telemetry).unwrap();
    assert_eq!((removed, counters.stored, counters.expired), (2, 200, 400));
    assert_eq!(store.recount(1, Lane::Telemetry).unwrap(), 200);
}

/// A backup has every file open: what is removed meanwhile is free when it is done.
#[test]
fn a_file_that_somebody_has_open_is_not_made_up_for_by_the_next() {
    let disk = Memory::default();
    let store = open(&disk, Config { part_bytes: 1, ..config() }).unwrap();
    let mut now_ms = NOW + 20 * MINUTE;
    for n in 0..4 {
        append(&store, &[given(1, Lane::Telemetry, NOW + n, 900)], 1).unwrap();
        seal_all(&store, now_ms).unwrap();
    }
    let retain = |now_ms| {
        let mut removed = 0;
        loop {
            let report = store.retain(now_ms).unwrap();
            removed += report.removed.len();
            if !report.more {
                return removed;
            }
        }
    };
    disk.set_capacity(Some(disk.used() * 100 / 82));
    let open = store.opened().unwrap().weeks.views().unwrap();
    assert_eq!((open.len(), retain(now_ms)), (4, 1));
    assert_eq!(retain(now_ms + DAY), 0);
    drop(open);
    now_ms += 2 * DAY;
    assert_eq!((retain(now_ms), retain(now_ms + MINUTE), retain(now_ms + DAY)), (0, 0, 0));
    // And what is over again goes again.
    disk.set_capacity(Some(disk.used() * 100 / 82));
    assert_eq!(retain(now_ms + DAY), 1);
}

#[test]
fn limits_of_a_query_are_told_by_name() {
    let store = open(&Memory::default(), config()).unwrap();
    append(&store, &[given(1, Lane::Telemetry, NOW, 100)], 1).unwrap();
    let points = store.query(&Query { points_max: 99, ..all(1) });
    assert!(matches!(points, Err(Error::TooMuch { most: 99, what: "points" })));
    let series = store.query(&Query { series_max: 0, ..all(1) });
    assert!(matches!(series, Err(Error::TooMuch { most: 0, what: "series" })));
    assert_eq!(store.poisoned(), None);
    assert_eq!(store.query(&Query { from_ms: 5, to_ms: 5, ..all(1) }).unwrap(), []);
}

#[test]
fn a_full_disk_is_told_and_the_store_works_again_when_space_returns() {
    let disk = Memory::default();
    let store = open(&disk, config()).unwrap();
    disk.set_capacity(Some(disk.size(inbox::NAME) + 200_000));
    let mut committed = Vec::new();
    let error = (0..).find_map(|n| {
        let batch = given(1, Lane::Telemetry, NOW + n, 2_000);
        match append(&store, std::slice::from_ref(&batch), n as u64) {
            Ok(()) => {
                committed.extend(batch.facts());
                None
            }
            Err(error) => Some(error),
        }
    });
    assert!(matches!(error, Some(Error::Redb(_))), "{error:?}");
    assert!(store.poisoned().is_some());
    disk.set_capacity(None);
    store.reopen(NOW).unwrap();
    assert_eq!(store.poisoned(), None);
    check(&store, &committed);
    let batch = given(1, Lane::Telemetry, NOW, 7);
    append(&store, std::slice::from_ref(&batch), 1).unwrap();
    committed.extend(batch.facts());
    seal_all(&store, NOW + DAY).unwrap();
    check(&store, &committed);
}

#[test]
fn a_damaged_week_file_and_a_damaged_inbox_are_set_aside() {
    let disk = Memory::default();
    let store = open(&disk, config()).unwrap();
    append(&store, &[given(1, Lane::Telemetry, NOW, 50)], 1).unwrap();
    seal_all(&store, NOW + DAY).unwrap();
    append(&store, &[given(1, Lane::Telemetry, NOW + 8 * DAY, 60)], 1).unwrap();
    seal_all(&store, NOW + 9 * DAY).unwrap();
    drop(store);
    let spoil = |name: &str| {
        let file = crate::store::disk::Disk::open(&disk, name).unwrap();
        file.write(0, &[0xaa; 4096]).unwrap();
    };
    spoil(inbox::NAME);
    let store = open(&disk, config()).unwrap();
    // The account begins anew with what is there.
    assert_eq!(store.counters(1, Lane::Telemetry).unwrap().stored, 110);
    assert_eq!(store.recount(1, Lane::Telemetry).unwrap(), 110);
    // New rows are numbered beyond everything that the week files know.
    append(&store, &[given(1, Lane::Telemetry, NOW + 9 * DAY, 5)], 1).unwrap();
    seal_all(&store, NOW + 10 * DAY).unwrap();
    assert_eq!(store.recount(1, Lane::Telemetry).unwrap(), 115);
    drop(store);
    spoil(&week::FileId::of(NOW).name());
    let store = open(&disk, config()).unwrap();
    assert_eq!(store.stats(NOW).unwrap().set_aside.len(), 1);
    assert_eq!(store.recount(1, Lane::Telemetry).unwrap(), 65);
}
