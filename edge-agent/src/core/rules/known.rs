//! What rules know of the devices of a node: latest values, windows, when each spoke last. Bounded.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use fleet_schemas::{
    DeviceId, MetricName, limits,
    rule::{Aggregate, Fact, Rule, Series, View, Window},
};

/// Samples that are older than this raise nothing: they are a backlog.
const LATE_MS: i64 = 15 * 60 * 1_000;
/// A time that is further ahead than this is a wrong clock, and does not make later samples late.
const AHEAD_MS: i64 = 60 * 1_000;
/// Most windows, each of at most 5 kB.
const WINDOWS: usize = 512;

#[derive(Debug, Default)]
struct OfSeries {
    latest: Option<(i64, f64)>,
    windows: Vec<(Duration, Window)>,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    spoke: BTreeMap<DeviceId, i64>,
    series: HashMap<DeviceId, HashMap<MetricName, OfSeries>>,
    // Windows that rules look at, by metric.
    spans: HashMap<MetricName, Vec<Duration>>,
    series_count: usize,
    window_count: usize,
}

impl Known {
    /// Keeps what these rules look at, and no longer what others did.
    pub(super) fn look_at(&mut self, rules: &[Rule]) {
        let mut spans: HashMap<MetricName, Vec<Duration>> = HashMap::new();
        for rule in rules {
            for condition in [Some(&rule.condition), rule.clear.as_ref()].into_iter().flatten() {
                for (series, span) in condition.windows() {
                    let spans = spans.entry(series.metric.clone()).or_default();
                    if !spans.contains(&span) {
                        spans.push(span);
                    }
                }
            }
        }
        if spans != self.spans {
            self.spans = spans;
            let all = self.series.values_mut().flat_map(HashMap::values_mut);
            all.for_each(|series| series.windows.clear());
            self.window_count = 0;
        }
    }

    /// Notes that a device spoke; whether it is a new one.
    pub(super) fn spoke(&mut self, device: DeviceId, now_ms: i64) -> bool {
        if let Some(last) = self.spoke.get_mut(&device) {
            *last = now_ms;
            return false;
        }
        // The node itself beside its devices.
        let room = self.spoke.len() <= limits::DEVICES_PER_NODE;
        if room {
            self.spoke.insert(device, now_ms);
        }
        room
    }

    /// A device that a rule names: its silence counts from now on, even if it never spoke.
    pub(super) fn expect(&mut self, device: DeviceId, now_ms: i64) {
        if !self.spoke.contains_key(&device) {
            self.spoke(device, now_ms);
        }
    }

    pub(super) fn devices(&self) -> impl Iterator<Item = &DeviceId> {
        self.spoke.keys()
    }

    /// Takes a sample (time and value). Whether it is worth a judgement: neither late nor out of order.
    pub(super) fn take(
        &mut self,
        device: &DeviceId,
        metric: &MetricName,
        sample: (i64, f64),
        now_ms: i64,
        wall_ms: i64,
    ) -> bool {
        let (time_ms, value) = sample;
        if time_ms < wall_ms.saturating_sub(LATE_MS) {
            return false;
        }
        let known = self.series.get(device).is_some_and(|of| of.contains_key(metric));
        if !known && self.series_count >= limits::SERIES_PER_NODE {
            return false;
        }
        self.series_count += usize::from(!known);
        let of = self.series.entry(device.clone()).or_default().entry(metric.clone()).or_default();
        let newer = |(latest, _): (i64, f64)| time_ms >= latest || latest > wall_ms.saturating_add(AHEAD_MS);
        if !of.latest.is_none_or(newer) {
            return false;
        }
        of.latest = Some((time_ms, value));
        for span in self.spans.get(metric).into_iter().flatten() {
            if !of.windows.iter().any(|(held, _)| held == span) && self.window_count < WINDOWS {
                self.window_count += 1;
                of.windows.push((*span, Window::new(*span)));
            }
        }
        for (_, window) in &mut of.windows {
            window.push(now_ms, value);
        }
        true
    }
}

/// One device at one time.
pub(super) struct At<'a> {
    pub(super) known: &'a Known,
    pub(super) device: &'a DeviceId,
    pub(super) now_ms: i64,
}

impl At<'_> {
    fn of(&self, series: &Series) -> Option<&OfSeries> {
        self.known.series.get(series.device.as_ref().unwrap_or(self.device))?.get(&series.metric)
    }
}

impl View for At<'_> {
    fn value(&self, series: &Series) -> Option<f64> {
        self.of(series)?.latest.map(|(_, value)| value)
    }

    fn last_seen_s(&self) -> Option<f64> {
        let last = self.known.spoke.get(self.device)?;
        Some((self.now_ms.saturating_sub(*last)).max(0) as f64 / 1_000.0)
    }

    fn over(&self, series: &Series, span: Duration) -> Option<Aggregate> {
        let (_, window) = self.of(series)?.windows.iter().find(|(held, _)| *held == span)?;
        window.over(self.now_ms)
    }

    fn fact(&self, _: &str) -> Option<Fact<'_>> {
        None
    }
}
