//! The hub's disk: how full it is, what fills it, how long it lasts, and which retention acts when.
//!
//! Levels are those of the filesystem as a whole, whoever fills it: at 95 % nobody on it can write for long. Telemetry is
//! held to 80 % of it unless told otherwise ([`Budget`]), so a hub that has filled its disk stands at the first level and
//! stays there: the first event says that from here on size decides what is kept. Knows no files and no clock.

use serde::{Deserialize, Serialize};

/// Use of a filesystem at which each level begins, in percent; a level ends [`HYSTERESIS`] below.
const HIGH: f64 = 80.0;
const FULL: f64 = 95.0;
/// Percent that use must fall below a level before it ends: retention, which removes a file at a time, must not make it come
/// and go.
const HYSTERESIS: f64 = 5.0;
/// Points that are kept: two weeks of them, one an hour.
pub const POINTS: usize = 14 * 24;
/// Time from one point to the next, milliseconds.
pub const EVERY_MS: i64 = 3_600_000;
/// The forecast looks back over this much: a week, so that days and nights are in it alike.
const BACK_MS: i64 = 7 * DAY_MS;
/// A forecast from less is none, milliseconds.
const LEAST_MS: i64 = 6 * EVERY_MS;
/// Beyond this a forecast says nothing, in days.
const FAR_DAYS: f64 = 3_650.0;
const DAY_MS: i64 = 86_400_000;

/// How full the filesystem is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// There is room.
    #[default]
    Fine,
    /// 80 % are used.
    High,
    /// 95 % are used: the next thing that fails is a write.
    Full,
}

impl Level {
    /// The word in REST and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::High => "high",
            Self::Full => "full",
        }
    }

    /// The level after this one, at this use in percent.
    #[must_use]
    pub fn next(self, used_percent: f64) -> Self {
        let at = |limit: f64, held: bool| used_percent >= if held { limit - HYSTERESIS } else { limit };
        if at(FULL, self == Self::Full) {
            Self::Full
        } else if at(HIGH, self >= Self::High) {
            Self::High
        } else {
            Self::Fine
        }
    }
}

/// What is used, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// Samples: inbox, week files, rollups.
    pub telemetry: u64,
    /// Registry, events, commands, alerts, keys.
    pub state: u64,
    /// Artifacts of releases.
    pub artifacts: u64,
    /// Everything else on the filesystem.
    pub elsewhere: u64,
}

impl Use {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.telemetry
            .saturating_add(self.state)
            .saturating_add(self.artifacts)
            .saturating_add(self.elsewhere)
    }
}

/// The use at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// When, Unix milliseconds.
    pub at_ms: i64,
    /// What was used.
    #[serde(flatten)]
    pub used: Use,
}

/// What the hub remembers of its disk. Derived: when it is lost, the forecast begins anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// The level that was announced last.
    pub level: Level,
    /// Points, oldest first.
    pub points: Vec<Point>,
}

impl History {
    /// Whether it is time for another point. A clock that went back makes it time, too.
    #[must_use]
    pub fn is_due(&self, now_ms: i64) -> bool {
        self.points.last().is_none_or(|last| now_ms.saturating_sub(last.at_ms).abs() >= EVERY_MS)
    }

    /// Takes one more; the oldest go, and those that the clock says are yet to come.
    pub fn push(&mut self, point: Point) {
        self.points.retain(|known| known.at_ms < point.at_ms);
        self.points.push(point);
        let over = self.points.len().saturating_sub(POINTS);
        self.points.drain(..over);
    }
}

/// What telemetry may take, and how long it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Size of the filesystem, in bytes.
    pub total: u64,
    /// Most bytes of telemetry, as retention reckons it now.
    pub telemetry: u64,
    /// Days that samples are kept unless size decides.
    pub days: u32,
    /// End of the oldest samples that a file has, Unix milliseconds.
    pub oldest_ms: Option<i64>,
}

/// Bytes that are added in a day, by what.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Growth {
    /// Samples.
    pub telemetry: f64,
    /// State.
    pub state: f64,
    /// Artifacts.
    pub artifacts: f64,
    /// Everything else.
    pub elsewhere: f64,
}

/// Which retention acts next on telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// The oldest is over age first.
    Age,
    /// It takes its room before anything is over age: size decides, and less is kept than was asked for.
    Size,
}

/// What is to come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// What is added in a day.
    pub growth: Growth,
    /// Which retention acts next, and in how many days; none: none within ten years.
    pub next: Option<(Act, f64)>,
    /// How many days of samples telemetry has room for at this growth, when that is less than was asked for.
    pub kept_days: Option<f64>,
    /// In how many days the filesystem is 95 % full although retention acts; none: not within ten years.
    pub full_days: Option<f64>,
}

/// Looks ahead from what was; none while there is too little of that.
#[must_use]
pub fn forecast(points: &[Point], now: &Point, budget: &Budget) -> Option<Forecast> {
    let growth = growth(points, now)?;
    let age = budget.oldest_ms.map(|oldest_ms| {
        let due_ms = oldest_ms.saturating_add(i64::from(budget.days).saturating_mul(DAY_MS));
        due_ms.saturating_sub(now.at_ms).max(0) as f64 / DAY_MS as f64
    });
    let room = budget.telemetry as f64 - now.used.telemetry as f64;
    let size = days(room, growth.telemetry);
    let next = match (age, size) {
        (Some(age), Some(size)) if size < age => Some((Act::Size, size)),
        (Some(age), _) => Some((Act::Age, age)),
        (None, size) => size.map(|size| (Act::Size, size)),
    };
    let kept = days(budget.telemetry as f64, growth.telemetry);
    let kept_days = kept.filter(|kept| *kept < f64::from(budget.days));
    Some(Forecast { growth, next, kept_days, full_days: full(now, budget, &growth) })
}

/// Days until the filesystem is full: telemetry grows only up to its room, the rest as it does.
fn full(now: &Point, budget: &Budget, growth: &Growth) -> Option<f64> {
    let most = budget.total as f64 * FULL / 100.0;
    let left = most - now.used.total() as f64;
    let others = growth.state + growth.artifacts + growth.elsewhere;
    let room = (budget.telemetry as f64 - now.used.telemetry as f64).max(0.0);
    let until_room = days(room, growth.telemetry);
    let all = days(left, others + growth.telemetry.max(0.0));
    match (all, until_room) {
        (None, _) => None,
        (Some(all), None) => Some(all),
        (Some(all), Some(until)) if all <= until => Some(all),
        // From there on only the others grow.
        (Some(_), Some(until)) => {
            let left = left - until * (others + growth.telemetry);
            days(left, others).map(|more| until + more).filter(|days| *days < FAR_DAYS)
        }
    }
}

/// How long bytes last at a growth in a day.
fn days(bytes: f64, growth: f64) -> Option<f64> {
    if growth <= 0.0 {
        return (bytes <= 0.0).then_some(0.0);
    }
    let days = (bytes / growth).max(0.0);
    (days < FAR_DAYS).then_some(days)
}

/// The slope of each, by least squares: one file that retention removes does not turn it.
fn growth(points: &[Point], now: &Point) -> Option<Growth> {
    let recent: Vec<_> = points
        .iter()
        .filter(|point| point.at_ms > now.at_ms.saturating_sub(BACK_MS) && point.at_ms < now.at_ms)
        .chain([now])
        .collect();
    let span_ms = now.at_ms.saturating_sub(recent.first()?.at_ms);
    if span_ms < LEAST_MS {
        return None;
    }
    let slope = |of: fn(&Use) -> u64| {
        let count = recent.len() as f64;
        // Days before now: small numbers, whose squares lose nothing.
        let day = |point: &Point| (point.at_ms - now.at_ms) as f64 / DAY_MS as f64;
        let mean_day = recent.iter().map(|point| day(point)).sum::<f64>() / count;
        let mean = recent.iter().map(|point| of(&point.used) as f64).sum::<f64>() / count;
        let (mut above, mut below) = (0.0, 0.0);
        for point in &recent {
            let x = day(point) - mean_day;
            above += x * (of(&point.used) as f64 - mean);
            below += x * x;
        }
        if below > 0.0 { above / below } else { 0.0 }
    };
    Some(Growth {
        telemetry: slope(|used| used.telemetry),
        state: slope(|used| used.state),
        artifacts: slope(|used| used.artifacts),
        elsewhere: slope(|used| used.elsewhere),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;
    const HOUR_MS: i64 = EVERY_MS;

    /// A hub that adds so many gigabytes a day to telemetry and elsewhere, hour by hour.
    fn history(hours: i64, telemetry: f64, elsewhere: f64) -> (Vec<Point>, Point) {
        let point = |hour: i64| {
            let grown = |base: u64, a_day: f64| base + (a_day * GB as f64 * hour as f64 / 24.0) as u64;
            let used = Use {
                telemetry: grown(10 * GB, telemetry),
                state: GB,
                artifacts: 0,
                elsewhere: grown(20 * GB, elsewhere),
            };
            Point { at_ms: hour * HOUR_MS, used }
        };
        ((0..hours).map(point).collect(), point(hours))
    }

    fn budget(total: u64, telemetry: u64) -> Budget {
        Budget { total: total * GB, telemetry: telemetry * GB, days: 90, oldest_ms: Some(0) }
    }

    fn near(found: Option<f64>, expected: f64) -> bool {
        found.is_some_and(|found| (found - expected).abs() < 0.01)
    }

    #[test]
    fn a_level_ends_five_points_below_where_it_begins() {
        let mut level = Level::Fine;
        let mut seen = Vec::new();
        for used in [79.9, 80.0, 79.0, 75.0, 74.9, 80.0, 94.9, 95.0, 91.0, 90.0, 89.9, 74.0, 99.0, 10.0] {
            level = level.next(used);
            seen.push(level.as_str());
        }
        let expected = [
            "fine", "high", "high", "high", "fine", "high", "high", "full", "full", "full", "high", "fine",
            "full", "fine",
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn nothing_is_foretold_from_a_few_hours() {
        let (points, now) = history(5, 1.0, 0.0);
        assert_eq!(forecast(&points, &now, &budget(100, 50)), None);
        let (points, now) = history(6, 1.0, 0.0);
        assert!(forecast(&points, &now, &budget(100, 50)).is_some());
    }

    #[test]
    fn size_acts_first_where_a_disk_is_too_small_for_what_was_asked_for() {
        let (points, now) = history(48, 1.0, 0.0);
        let told = forecast(&points, &now, &budget(100, 52)).unwrap();
        assert!((told.growth.telemetry / GB as f64 - 1.0).abs() < 0.01, "{told:?}");
        let Some((Act::Size, days)) = told.next else { panic!("{told:?}") };
        assert!(near(Some(days), 40.0) && near(told.kept_days, 52.0), "{told:?}");
        // Retention holds telemetry; nobody else grows.
        assert_eq!(told.full_days, None);
    }

    #[test]
    fn age_acts_first_where_there_is_room_for_all() {
        let (points, now) = history(48, 0.1, 0.0);
        let told = forecast(&points, &now, &budget(100, 50)).unwrap();
        let Some((Act::Age, days)) = told.next else { panic!("{told:?}") };
        assert!(near(Some(days), 88.0) && told.kept_days.is_none(), "{told:?}");
    }

    #[test]
    fn others_fill_the_disk_although_telemetry_is_held() {
        let (points, now) = history(48, 1.0, 2.0);
        // 12 + 1 + 24 GB are used; telemetry has 4 left, which lasts four days; 58 are left until 95 GB.
        let told = forecast(&points, &now, &budget(100, 16)).unwrap();
        assert!(near(told.full_days, 4.0 + (58.0 - 12.0) / 2.0), "{told:?}");
        let (points, now) = history(48, 0.0, 0.0);
        assert_eq!(forecast(&points, &now, &budget(100, 16)).unwrap().full_days, None);
    }

    #[test]
    fn points_are_hourly_and_few() {
        let mut history = History::default();
        for minute in 0..(POINTS as i64 + 50) * 60 {
            let at_ms = minute * 60_000;
            if history.is_due(at_ms) {
                history.push(Point { at_ms, used: Use::default() });
            }
        }
        assert_eq!(history.points.len(), POINTS);
        // A clock that was set back by a day: what it has not seen yet is forgotten.
        let back = history.points.last().unwrap().at_ms - DAY_MS;
        assert!(history.is_due(back));
        history.push(Point { at_ms: back, used: Use::default() });
        assert!(history.points.is_sorted_by_key(|point| point.at_ms) && history.points.len() < POINTS);
    }
}
