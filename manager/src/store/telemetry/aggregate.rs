//! What happens in one bucket of time: enough to tell any aggregate, mergeable in any order.

/// How the samples of one step become one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Aggregate {
    /// The least.
    Min,
    /// The greatest.
    Max,
    /// Sum by count.
    Avg,
    /// The one of the latest instant, of several there the greatest.
    Last,
    /// Their sum.
    Sum,
    /// How many.
    Count,
}

/// One bucket of one series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cell {
    pub min: f64,
    pub max: f64,
    pub sum: f64,
    pub count: f64,
    pub last_ms: i64,
    pub last: f64,
}

impl Cell {
    pub(super) fn of(time_ms: i64, value: f64) -> Self {
        Self { min: value, max: value, sum: value, count: 1.0, last_ms: time_ms, last: value }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum += other.sum;
        self.count += other.count;
        let later = self.last_ms.cmp(&other.last_ms).then_with(|| self.last.total_cmp(&other.last));
        if later.is_lt() {
            (self.last_ms, self.last) = (other.last_ms, other.last);
        }
    }

    pub(super) fn value(&self, aggregate: Aggregate) -> f64 {
        match aggregate {
            Aggregate::Min => self.min,
            Aggregate::Max => self.max,
            Aggregate::Avg => self.sum / self.count,
            Aggregate::Last => self.last,
            Aggregate::Sum => self.sum,
            Aggregate::Count => self.count,
        }
    }
}

/// The start of the step that an instant is in; steps are counted from 1970.
pub(super) fn floor(time_ms: i64, step_ms: i64) -> i64 {
    time_ms.saturating_sub(time_ms.rem_euclid(step_ms))
}
