//! Windows over samples: what a series did lately, in bounded memory however fast it is sampled.

use std::{collections::VecDeque, time::Duration};

/// Parts of a window: its edge is exact to a sixtieth.
const PARTS: i64 = 60;

/// What a series did in a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aggregate {
    /// Time (Unix milliseconds) and value of the first sample.
    pub first: (i64, f64),
    /// Time and value of the last sample.
    pub last: (i64, f64),
    /// The least value.
    pub least: f64,
    /// The greatest value.
    pub most: f64,
    /// The sum of all values.
    pub sum: f64,
    /// How many.
    pub count: u64,
}

impl Aggregate {
    /// Of one sample.
    #[must_use]
    pub fn of(time_ms: i64, value: f64) -> Self {
        let at = (time_ms, value);
        Self { first: at, last: at, least: value, most: value, sum: value, count: 1 }
    }

    /// Joined with what came after it.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        Self {
            first: self.first,
            last: later.last,
            least: self.least.min(later.least),
            most: self.most.max(later.most),
            sum: self.sum + later.sum,
            count: self.count + later.count,
        }
    }

    /// Change per second from the first sample to the last; unknown of one instant.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        let millis = self.last.0.saturating_sub(self.first.0);
        (millis > 0).then(|| (self.last.1 - self.first.1) / (millis as f64 / 1_000.0))
    }
}

/// The last `span` of one series, in at most 61 parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    part_ms: i64,
    span_ms: i64,
    // Number of the part since 1970, and what is in it; oldest first.
    parts: VecDeque<(i64, Aggregate)>,
}

impl Window {
    /// An empty window.
    #[must_use]
    pub fn new(span: Duration) -> Self {
        let span_ms = i64::try_from(span.as_millis()).unwrap_or(i64::MAX).max(1);
        Self { part_ms: (span_ms / PARTS).max(1), span_ms, parts: VecDeque::new() }
    }

    /// Takes a sample. One older than the newest is ignored.
    pub fn push(&mut self, time_ms: i64, value: f64) {
        let part = time_ms.div_euclid(self.part_ms);
        match self.parts.back_mut() {
            Some((newest, held)) if *newest == part && held.last.0 <= time_ms => {
                *held = held.then(Aggregate::of(time_ms, value));
            }
            Some((newest, _)) if *newest >= part => {}
            Some(_) | None => self.parts.push_back((part, Aggregate::of(time_ms, value))),
        }
        while self.parts.len() > usize::try_from(PARTS).unwrap_or(0) + 1 {
            self.parts.pop_front();
        }
    }

    /// What happened in the span before `now_ms`.
    #[must_use]
    pub fn over(&self, now_ms: i64) -> Option<Aggregate> {
        let from = now_ms.saturating_sub(self.span_ms).div_euclid(self.part_ms);
        let fresh = self.parts.iter().filter(|(part, _)| *part > from).map(|(_, held)| *held);
        fresh.reduce(Aggregate::then)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_forgets_what_is_older() {
        let mut window = Window::new(Duration::from_secs(60));
        assert_eq!(window.over(0), None);
        for second in 0..100 {
            window.push(second * 1_000, second as f64);
        }
        let found = window.over(99_000).unwrap();
        assert_eq!((found.first.1, found.last.1, found.count), (40.0, 99.0, 60));
        assert_eq!((found.least, found.most, found.rate()), (40.0, 99.0, Some(1.0)));
        assert_eq!(window.over(159_000), None, "all of it is old");
    }

    #[test]
    fn a_flood_costs_no_more_memory() {
        let mut window = Window::new(Duration::from_secs(60));
        for millis in 0..1_000_000 {
            window.push(millis, 1.0);
        }
        assert!(window.parts.len() <= 61);
        assert_eq!(window.over(999_999).unwrap().count, 60_000);
    }

    #[test]
    fn what_comes_late_or_of_one_instant_has_no_rate() {
        let mut window = Window::new(Duration::from_secs(60));
        window.push(10_000, 5.0);
        window.push(10_000, 7.0);
        window.push(9_000, 99.0);
        let found = window.over(10_000).unwrap();
        assert_eq!((found.most, found.rate()), (7.0, None));
    }
}
