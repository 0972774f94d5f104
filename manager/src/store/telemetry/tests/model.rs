//! Any order of appending, sealing, merging, retaining and reopening, against the list.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Act {
    Append(Vec<(u32, bool, i64, i64, u8)>),
    Wait(i64),
    Seal,
    SealAll,
    Reopen,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    // node, late, age of the samples, shift, shape
    let batch = (1..4_u32, any::<bool>(), 0..20 * DAY, prop_oneof![Just(0), -DAY..DAY], any::<u8>());
    let act = prop_oneof![
        5 => prop::collection::vec(batch, 1..5).prop_map(Act::Append),
        2 => prop_oneof![0..MINUTE, 0..DAY, 0..8 * DAY].prop_map(Act::Wait),
        3 => Just(Act::Seal),
        1 => Just(Act::SealAll),
        1 => Just(Act::Reopen),
    ];
    prop::collection::vec(act, 1..40)
}

fn batch(now: i64, (node, late, age, shift_ms, shape): (u32, bool, i64, i64, u8)) -> Given {
    let lane = if late { Lane::Backfill } else { Lane::Telemetry };
    let from = now - if late { age } else { 0 };
    let mut rows = Vec::new();
    for row in 0..i64::from(shape % 16) {
        // Some instants repeat, some series are missing in some rows.
        let time = from + row / 2 * 1_000;
        for metric in 0..shape / 32 {
            if (row + i64::from(metric)) % 3 != 0 {
                let device = if metric % 2 == 0 { "" } else { "board" };
                rows.push((time, device, ["a", "b", "c", "d", "e", "f", "g"][usize::from(metric)], row));
            }
        }
    }
    let rows: Vec<_> = rows.iter().map(|(t, d, m, row)| (*t, *d, *m, *row as f64 * 0.37)).collect();
    Given { node, lane, recv_ms: now, shift_ms, samples: samples(&rows) }
}

type Cells = BTreeMap<(String, String, i64), Vec<(i64, f64)>>;

fn aggregated(facts: &[Fact], query: &Query, step: Step) -> Vec<(String, String, i64, f64)> {
    let floor = |time: i64| time.div_euclid(step.ms) * step.ms;
    let (from, to) = (floor(query.from_ms), floor(query.to_ms - 1) + step.ms);
    let mut cells = Cells::new();
    for (node, _, time, device, metric, bits) in facts {
        if *node == query.node && (from..to).contains(time) {
            let key = (device.clone(), metric.clone(), floor(*time));
            cells.entry(key).or_default().push((*time, f64::from_bits(*bits)));
        }
    }
    let value = |mut samples: Vec<(i64, f64)>| {
        samples.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let values = samples.iter().map(|(_, value)| *value);
        match step.aggregate {
            Aggregate::Min => values.fold(f64::INFINITY, f64::min),
            Aggregate::Max => values.fold(f64::NEG_INFINITY, f64::max),
            Aggregate::Sum => values.sum(),
            Aggregate::Avg => values.sum::<f64>() / samples.len() as f64,
            Aggregate::Last => samples[samples.len() - 1].1,
            Aggregate::Count => samples.len() as f64,
        }
    };
    cells.into_iter().map(|((device, metric, at), samples)| (device, metric, at, value(samples))).collect()
}

fn check_steps(store: &TelemetryStore, facts: &[Fact], now: i64) {
    let aggregates =
        [Aggregate::Min, Aggregate::Max, Aggregate::Avg, Aggregate::Last, Aggregate::Sum, Aggregate::Count];
    for (aggregate, ms) in aggregates.into_iter().flat_map(|a| [(a, 7_000), (a, 15 * MINUTE), (a, DAY)]) {
        for (from_ms, to_ms) in [(now - 25 * DAY, now + DAY), (now - DAY, now - DAY / 2 + 1)] {
            let step = Step { ms, aggregate };
            let query = Query { from_ms, to_ms, step: Some(step), ..all(1) };
            let mut found = Vec::new();
            for series in store.query(&query).unwrap() {
                for (at, value) in series.points {
                    found.push((series.device.to_string(), series.metric.to_string(), at, value));
                }
            }
            let expected = aggregated(facts, &query, step);
            assert_eq!(found.len(), expected.len(), "{step:?}");
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!((&found.0, &found.1, found.2), (&expected.0, &expected.1, expected.2));
                assert!((found.3 - expected.3).abs() < 1e-9, "{step:?}: {found:?} {expected:?}");
            }
        }
    }
}

fn check_ranges_and_filters(store: &TelemetryStore, facts: &[Fact], now: i64) {
    for (from_ms, to_ms) in [(now - 3 * DAY, now), (now - 9 * DAY, now - 2 * DAY), (now, now + DAY)] {
        let within: Vec<Fact> =
            facts.iter().filter(|fact| (from_ms..to_ms).contains(&fact.2)).cloned().collect();
        let query = Query { from_ms, to_ms, ..all(2) };
        assert_eq!(found(store, &query), expected(&within, 2));
        let device = Some(DeviceId::parse("board").unwrap());
        let metric = Some(MetricName::parse("b").unwrap());
        let only: Vec<Fact> = within.into_iter().filter(|fact| fact.3 == "board" && fact.4 == "b").collect();
        assert_eq!(found(store, &Query { device, metric, ..query }), expected(&only, 2));
    }
}

fn check_latest(store: &TelemetryStore, facts: &[Fact]) {
    let mut newest = BTreeMap::new();
    for (_, _, time, device, metric, bits) in facts.iter().filter(|fact| fact.0 == 1) {
        let entry = newest.entry((device.clone(), metric.clone())).or_insert((i64::MIN, 0.0));
        let value = f64::from_bits(*bits);
        if (*time, value) > *entry {
            *entry = (*time, value);
        }
    }
    let found: BTreeMap<_, _> = (store.latest(1).unwrap().into_iter())
        .map(|latest| {
            ((latest.device.to_string(), latest.metric.to_string()), (latest.time_ms, latest.value))
        })
        .collect();
    assert_eq!(found, newest);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_order_every_sample_is_found_once(acts in acts(), small_parts in any::<bool>()) {
        let disk = Memory::default();
        let part_bytes = if small_parts { 1 } else { u64::MAX };
        let config = Config { part_bytes, ..config() };
        let mut store = open(&disk, config).unwrap();
        let mut now = NOW;
        let mut facts = Vec::new();
        for act in acts {
            match act {
                Act::Append(batches) => {
                    let group: Vec<_> = batches.into_iter().map(|given| batch(now, given)).collect();
                    append(&store, &group, 1).unwrap();
                    facts.extend(group.iter().flat_map(Given::facts));
                }
                Act::Wait(ms) => now += ms,
                Act::Seal => {
                    store.seal(now).unwrap();
                }
                Act::SealAll => {
                    seal_all(&store, now).unwrap();
                }
                Act::Reopen => {
                    drop(store);
                    store = open(&disk, config).unwrap();
                }
            }
        }
        check(&store, &facts);
        check_ranges_and_filters(&store, &facts, now);
        check_steps(&store, &facts, now);
        check_latest(&store, &facts);
        seal_all(&store, now + 2 * DAY).unwrap();
        prop_assert_eq!(store.stats(now).unwrap().unsealed_batches, 0);
        check(&store, &facts);
        check_steps(&store, &facts, now);
        check_latest(&store, &facts);
    }
}

#[test]
fn readers_see_every_sample_once_while_the_sealer_runs() {
    let store = open(&Memory::default(), Config { seal_age: Duration::ZERO, ..config() }).unwrap();
    let rounds = 150;
    std::thread::scope(|scope| {
        let sealer = scope.spawn(|| {
            let mut sealed = 0;
            while sealed < rounds {
                sealed += store.seal(NOW + DAY).unwrap().batches;
            }
        });
        let reader = scope.spawn(|| {
            let mut most = 0;
            while most < 10 * rounds as usize {
                let found = found(&store, &all(1)).len();
                assert!(found.is_multiple_of(10) && found >= most, "{found} after {most}");
                most = found;
            }
        });
        for n in 0..rounds {
            let rows: Vec<_> = (0..10).map(|row| (NOW + n as i64 * 10 + row, "", "t", 1.0)).collect();
            let recv_ms = NOW + n as i64;
            let lane = Lane::Telemetry;
            let batch = Given { node: 1, lane, recv_ms, shift_ms: 0, samples: samples(&rows) };
            append(&store, &[batch], n).unwrap();
        }
        sealer.join().unwrap();
        reader.join().unwrap();
    });
}
