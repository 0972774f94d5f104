//! Bytes rot on the disk, one body at a time: the rest can be read, the account balances, sealing and retention go on.

use redb::{ReadableTable as _, TableDefinition};

use super::*;

const ROWS: TableDefinition<u64, &[u8]> = TableDefinition::new("rows");
const LOOSE: TableDefinition<u64, &[u8]> = TableDefinition::new("loose");
const DENSE: TableDefinition<u64, &[u8]> = TableDefinition::new("dense");

/// Which bytes of a row of the inbox go bad.
#[derive(Debug, Clone, Copy)]
enum Bad {
    Length,
    Head,
    Payload,
}

fn batch(node: u32, recv_ms: i64, rows: i64) -> Given {
    let rows: Vec<_> = (0..rows)
        .map(|row| (recv_ms - row * 500, "", "t", (row * row * 7_919 % 100_003) as f64 / 7.0))
        .collect();
    Given { node, lane: Lane::Telemetry, recv_ms, shift_ms: 0, samples: samples(&rows) }
}

/// Spoils the row that is `at` in its chunk.
fn spoil_row(store: &TelemetryStore, at: usize, bad: Bad) {
    let opened = store.opened().unwrap();
    let write = opened.inbox.db.begin_write().unwrap();
    {
        let mut table = write.open_table(ROWS).unwrap();
        let (key, mut chunk) = {
            let (key, chunk) = table.first().unwrap().unwrap();
            (key.value(), chunk.value().to_vec())
        };
        let start: usize = row::each(&chunk).take(at).map(|row| row::LENGTH + row.len()).sum();
        let row = start + row::LENGTH;
        match bad {
            Bad::Length => chunk[start + 3] = 0xff,
            Bad::Head => chunk[row] = 99,
            Bad::Payload => chunk[row + row::HEAD_BYTES] = 0xff,
        }
        table.insert(key, &chunk[..]).unwrap();
    }
    write.commit().unwrap();
}

/// Spoils the first bytes of every blob of the newest week file that lies by itself, or of the segments.
fn spoil_blobs(store: &TelemetryStore, table: TableDefinition<u64, &[u8]>) {
    let opened = store.opened().unwrap();
    let file = opened.weeks.all().pop().unwrap();
    let write = file.writable().unwrap().begin_write().unwrap();
    {
        let mut table = write.open_table(table).unwrap();
        let rows: Vec<_> = table
            .iter()
            .unwrap()
            .map(|row| row.unwrap())
            .map(|(k, v)| (k.value(), v.value().to_vec()))
            .collect();
        assert!(!rows.is_empty());
        for (key, mut bytes) in rows {
            bytes[4..8].fill(0xff);
            table.insert(key, &bytes[..]).unwrap();
        }
    }
    write.commit().unwrap();
}

fn counters(store: &TelemetryStore, node: u32) -> (u64, u64, u64) {
    let counters = store.counters(node, Lane::Telemetry).unwrap();
    (counters.stored, counters.expired, counters.quarantined)
}

#[test]
fn a_rotten_row_goes_raw_into_quarantine_and_the_rest_is_sealed() {
    for bad in [Bad::Length, Bad::Head, Bad::Payload] {
        for reopened in [false, true] {
            let disk = Memory::default();
            let mut store = open(&disk, config()).unwrap();
            let given: Vec<_> = (0..4).map(|n| batch(n % 2 + 1, NOW + i64::from(n), 10)).collect();
            append(&store, &given, 1).unwrap();
            spoil_row(&store, 2, bad);
            // Readers pass over it, whatever the sealer has done so far.
            let expected_of_1 = expected(&given[0].facts(), 1);
            assert_eq!(found(&store, &all(1)), expected_of_1, "{bad:?}");
            let report = seal_all(&store, NOW + DAY).unwrap();
            assert_eq!(store.stats(NOW).unwrap().unsealed_batches, 0);
            // After a broken length no row of the chunk can be found any more.
            let gone_of_2 = if matches!(bad, Bad::Length) { 10 } else { 0 };
            assert_eq!(counters(&store, 1), (10, 0, 10), "{bad:?}");
            assert_eq!(counters(&store, 2), (20 - gone_of_2, 0, gone_of_2), "{bad:?}");
            assert_eq!(report.rotten.iter().map(|rotten| rotten.records).sum::<u64>(), 10 + gone_of_2);
            assert!(report.rotten.iter().all(|rotten| rotten.reason.contains("inbox")), "{report:?}");
            let kept = store.quarantined(10).unwrap();
            assert!(kept.iter().any(|raw| raw.node == 1 && raw.records == 10 && raw.payload.len() > 50));
            if reopened {
                drop(store);
                store = open(&disk, config()).unwrap();
            }
            for node in [1, 2] {
                let stored = counters(&store, node).0;
                assert_eq!(store.recount(node, Lane::Telemetry).unwrap(), stored);
                assert_eq!(found(&store, &all(node)).len() as u64, stored);
            }
            // Nothing is booked again, and the store goes on.
            append(&store, &[batch(1, NOW + DAY, 7)], 2).unwrap();
            assert_eq!(seal_all(&store, NOW + 2 * DAY).unwrap().rotten, []);
            assert_eq!(counters(&store, 1), (17, 0, 10));
            assert_eq!(store.poisoned(), None);
        }
    }
}

#[test]
fn a_store_with_a_rotten_row_opens_and_tells_what_it_can() {
    for bad in [Bad::Length, Bad::Head, Bad::Payload] {
        let disk = Memory::default();
        let store = open(&disk, config()).unwrap();
        let given = [batch(1, NOW, 10), batch(2, NOW, 10), batch(1, NOW + 1, 10)];
        append(&store, &given, 1).unwrap();
        let numbered = read_lock(&store.opened().unwrap().inbox.memory).next_seq;
        spoil_row(&store, 1, bad);
        drop(store);
        let store = open(&disk, config()).unwrap();
        assert!(read_lock(&store.opened().unwrap().inbox.memory).next_seq >= numbered, "no number twice");
        let report = seal_all(&store, NOW + DAY).unwrap();
        assert_eq!(report.rotten.len(), 1, "{bad:?}");
        // The payload's rot leaves the head, which says whose it is.
        let whose = if matches!(bad, Bad::Payload) { 2 } else { 0 };
        assert_eq!(report.rotten[0].node, whose, "{bad:?}");
        assert_eq!(store.quarantined(9).unwrap().len(), 1);
        let left = if matches!(bad, Bad::Length) { 10 } else { 20 };
        assert_eq!(found(&store, &all(1)).len(), left);
        drop(store);
        let store = open(&disk, config()).unwrap();
        assert_eq!(seal_all(&store, NOW + 2 * DAY).unwrap().rotten, []);
    }
}

#[test]
fn a_rotten_blob_is_passed_over_by_readers_merging_rollups_and_retention() {
    for (rows, table) in [(10, LOOSE), (3_000, DENSE)] {
        let disk = Memory::default();
        let mut store = open(&disk, config()).unwrap();
        append(&store, &[batch(1, NOW, rows)], 1).unwrap();
        seal_all(&store, NOW + 16 * MINUTE).unwrap();
        spoil_blobs(&store, table);
        // Latest values are known until somebody has to find them again.
        drop(store);
        store = open(&disk, config()).unwrap();
        for n in 1..10 {
            append(&store, &[batch(1, NOW + n, 10)], 1 + n as u64).unwrap();
            seal_all(&store, NOW + n * 16 * MINUTE).unwrap();
        }
        assert_eq!(found(&store, &all(1)).len(), 90);
        assert_eq!(store.latest(1).unwrap().len(), 1);
        let report = seal_all(&store, NOW + 2 * DAY).unwrap();
        assert!(report.merged >= 9, "{report:?}");
        assert_eq!(counters(&store, 1), (90, 0, rows as u64));
        assert_eq!(store.recount(1, Lane::Telemetry).unwrap(), 90);
        assert_eq!(store.quarantined(9).unwrap().len(), 1);
        let hourly = Step { ms: 60 * MINUTE, aggregate: Aggregate::Count };
        // A longer range is answered from rollups, which were made before.
        let step = Query { from_ms: NOW - DAY, to_ms: NOW + DAY / 2, step: Some(hourly), ..all(1) };
        let points = store.query(&step).unwrap();
        assert_eq!(points[0].points.iter().map(|(_, count)| count).sum::<f64>(), 90.0);
        drop(store);
        store = open(&disk, config()).unwrap();
        append(&store, &[batch(1, NOW + 30 * DAY, 5)], 99).unwrap();
        seal_all(&store, NOW + 31 * DAY).unwrap();
        while store.retain(NOW + 99 * DAY).unwrap().more {}
        assert_eq!(counters(&store, 1), (5, 90, rows as u64), "what was quarantined does not expire");
        assert_eq!(store.poisoned(), None);
    }
}

#[test]
fn the_power_may_fail_while_rot_is_booked() {
    use crate::store::disk::When;
    let prepare = |disk: &Memory| {
        let store = open(disk, config()).unwrap();
        append(&store, &[batch(1, NOW, 10), batch(1, NOW + 1, 20), batch(1, NOW + 2, 30)], 1).unwrap();
        spoil_row(&store, 1, Bad::Payload);
        store
    };
    let disk = Memory::default();
    let store = prepare(&disk);
    let before = disk.syncs();
    seal_all(&store, NOW + DAY).unwrap();
    let after = disk.syncs();
    assert!(after > before + 2);
    for (sync, when) in (before + 1..=after).flat_map(|sync| [(sync, When::Before), (sync, When::After)]) {
        let disk = Memory::default();
        let store = prepare(&disk);
        disk.freeze_at(sync, when);
        assert!(seal_all(&store, NOW + DAY).is_err() || sync == after, "{sync}");
        drop(store);
        disk.crash();
        let store = open(&disk, config()).unwrap();
        seal_all(&store, NOW + DAY).unwrap();
        assert_eq!(counters(&store, 1), (40, 0, 20), "sync {sync} {when:?}");
        assert_eq!(store.recount(1, Lane::Telemetry).unwrap(), 40);
        assert_eq!(store.quarantined(9).unwrap().len(), 1);
    }
}
