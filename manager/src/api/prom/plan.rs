//! How fine a query's samples are read: every one of them, or one of each step. Pure.
//!
//! Prometheus evaluates at `start + n × step` and looks back five minutes, or over the selector's own range; less than
//! that needs not travel. A thinned series keeps one sample of each step at that sample's own time, so that a value is
//! never seen before it was measured.

use super::wire::{Query, ReadHints};
use crate::store::telemetry::{Aggregate, Step};

/// Length of the store's rollups, and Prometheus' lookback: the coarsest step that leaves no hole.
const ROLLUP_MS: i64 = 300_000;
/// The finest step that is worth thinning to.
const FINEST_MS: i64 = 1_000;
/// From this range on rollups are read at once: two days, as the store does.
const LONG_MS: i64 = 2 * 86_400_000;

/// The ways to read a query, the finest first: the next is for when there are too many samples.
pub(super) fn ways(query: &Query) -> Vec<Option<Step>> {
    let range_ms = query.end_timestamp_ms.saturating_sub(query.start_timestamp_ms);
    let coarse = query.hints.as_ref().and_then(coarse);
    match coarse {
        None => vec![None],
        Some(step) if step.ms == ROLLUP_MS && range_ms >= LONG_MS => vec![Some(step)],
        Some(step) => vec![None, Some(step)],
    }
}

/// The coarsest step that draws the same line.
fn coarse(hints: &ReadHints) -> Option<Step> {
    let ranged = hints.range_ms > 0;
    let aggregate = if ranged { over_range(&hints.func)? } else { Aggregate::Last };
    let mut ms = hints.step_ms.min(ROLLUP_MS);
    if ranged {
        // A function over a long range at one instant has no step: its range is the measure.
        ms = if hints.step_ms == 0 { ROLLUP_MS } else { ms }.min(hints.range_ms);
    }
    (ms >= FINEST_MS).then_some(Step { ms, aggregate })
}

/// What stands for the samples of a step below a function over a range; `None` where all of them are needed.
fn over_range(func: &str) -> Option<Aggregate> {
    match func {
        "min_over_time" => Some(Aggregate::Min),
        "max_over_time" => Some(Aggregate::Max),
        "avg_over_time" => Some(Aggregate::Avg),
        "last_over_time" | "present_over_time" | "absent_over_time" | "delta" | "deriv"
        | "predict_linear" => Some(Aggregate::Last),
        // Counting, summing, spread, changes and resets see each sample.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn plan(range_ms: i64, step_ms: i64, func: &str, selector_ms: i64) -> Vec<Option<(i64, Aggregate)>> {
        let hints = ReadHints { step_ms, func: func.to_owned(), range_ms: selector_ms };
        let query = Query { end_timestamp_ms: range_ms, hints: Some(hints), ..Query::default() };
        ways(&query).into_iter().map(|way| way.map(|step| (step.ms, step.aggregate))).collect()
    }

    #[test]
    fn short_ranges_are_read_whole_and_thinned_when_that_is_too_much() {
        assert_eq!(plan(HOUR, 15_000, "", 0), [None, Some((15_000, Aggregate::Last))]);
        assert_eq!(plan(24 * HOUR, 600_000, "avg", 0), [None, Some((ROLLUP_MS, Aggregate::Last))]);
        assert_eq!(plan(HOUR, 0, "", 0), [None], "an instant");
        assert_eq!(ways(&Query { end_timestamp_ms: 100 * HOUR, ..Query::default() }), [None]);
    }

    #[test]
    fn long_ranges_are_read_from_rollups_where_these_say_the_same() {
        let week = 7 * 24 * HOUR;
        assert_eq!(plan(week, 600_000, "", 0), [Some((ROLLUP_MS, Aggregate::Last))]);
        assert_eq!(plan(week, HOUR, "max_over_time", HOUR), [Some((ROLLUP_MS, Aggregate::Max))]);
        assert_eq!(plan(week, 0, "avg_over_time", week), [Some((ROLLUP_MS, Aggregate::Avg))]);
        assert_eq!(plan(week, HOUR, "count_over_time", HOUR), [None]);
        assert_eq!(plan(week, HOUR, "max_over_time", 60_000), [None, Some((60_000, Aggregate::Max))]);
        assert_eq!(plan(week, 60_000, "", 0), [None, Some((60_000, Aggregate::Last))]);
    }
}
