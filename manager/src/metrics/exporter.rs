//! Renders the catalogue in the text format of Prometheus.
//!
//! Histograms and the API's own counters live as long as the exporter; everything else is read from the hub at each
//! scrape into a [`Scrape`], so that a removed node is gone from the next one.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::catalogue::{self, Kind, Metric};

/// Buckets of durations, in seconds: from an SSD's sync to a stalled disk.
const SECONDS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 20.0];
const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// What lives as long as the hub.
pub struct Exporter {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

/// One scrape, being filled: the lines of each family, as they will stand. Text at once, because a large fleet is
/// forty thousand series that nobody asks for by name.
#[derive(Default)]
pub struct Scrape(BTreeMap<&'static str, (Metric, String)>);

impl Default for Exporter {
    fn default() -> Self {
        let builder = PrometheusBuilder::new();
        let recorder = (catalogue::ALL.iter().filter(|metric| metric.kind == Kind::Histogram))
            .try_fold(builder, |builder, metric| {
                builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), &SECONDS)
            })
            .expect("the buckets are not empty")
            .build_recorder();
        for metric in catalogue::ALL {
            let (name, help) = (metric.name.into(), metric.help.into());
            match metric.kind {
                Kind::Counter => recorder.describe_counter(name, None, help),
                Kind::Gauge => recorder.describe_gauge(name, None, help),
                Kind::Histogram => recorder.describe_histogram(name, None, help),
            }
        }
        let handle = recorder.handle();
        Self { recorder, handle }
    }
}

impl Exporter {
    /// A counter that the caller keeps and increments; `values` are its labels' in the catalogue's order.
    ///
    /// # Panics
    /// When the metric is no counter or the number of values is not the catalogue's: a bug of the caller.
    pub fn counter(&self, metric: &Metric, values: &[&str]) -> Counter {
        assert_eq!(metric.kind, Kind::Counter, "{} is no counter", metric.name);
        self.recorder.register_counter(&key(metric, values), &METADATA)
    }

    /// A gauge that the caller keeps and sets.
    ///
    /// # Panics
    /// As [`Exporter::counter`].
    pub fn gauge(&self, metric: &Metric, values: &[&str]) -> Gauge {
        assert_eq!(metric.kind, Kind::Gauge, "{} is no gauge", metric.name);
        self.recorder.register_gauge(&key(metric, values), &METADATA)
    }

    /// A histogram that the caller keeps and records into, in seconds.
    ///
    /// # Panics
    /// When the metric is no histogram.
    pub fn histogram(&self, metric: &Metric) -> Histogram {
        assert_eq!(metric.kind, Kind::Histogram, "{} is no histogram", metric.name);
        self.recorder.register_histogram(&key(metric, &[]), &METADATA)
    }

    /// The text of what it keeps and of one scrape; a family is in one of the two.
    #[must_use]
    pub fn render(&self, scrape: &Scrape) -> String {
        self.handle.run_upkeep();
        let mut text = self.handle.render();
        text.reserve(scrape.0.values().map(|(_, lines)| lines.len() + 200).sum());
        for (name, (metric, lines)) in &scrape.0 {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            // Writing into a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}\n{lines}", metric.help);
        }
        text
    }
}

impl Scrape {
    /// Tells a counter's value, as the hub counted it itself.
    pub fn count(&mut self, metric: &Metric, values: &[&str], value: u64) {
        self.line(metric, Kind::Counter, values, value);
    }

    /// Tells a counter's value that is no whole number.
    pub fn amount(&mut self, metric: &Metric, values: &[&str], value: f64) {
        self.line(metric, Kind::Counter, values, value);
    }

    /// Tells a gauge's value.
    pub fn set(&mut self, metric: &Metric, values: &[&str], value: f64) {
        self.line(metric, Kind::Gauge, values, value);
    }

    fn line(&mut self, metric: &Metric, kind: Kind, values: &[&str], value: impl Display) {
        assert_eq!(metric.kind, kind, "kind of {}", metric.name);
        assert_eq!(metric.labels.len(), values.len(), "labels of {}", metric.name);
        let (_, text) = self.0.entry(metric.name).or_insert_with(|| (*metric, String::new()));
        text.push_str(metric.name);
        for (position, (name, value)) in metric.labels.iter().zip(values).enumerate() {
            text.push_str(if position == 0 { "{" } else { "," });
            text.push_str(name);
            text.push_str("=\"");
            escape(value, text);
            text.push('"');
        }
        text.push_str(if values.is_empty() { " " } else { "} " });
        let _ = writeln!(text, "{value}");
    }
}

/// A label's value as it stands in the text format.
fn escape(value: &str, into: &mut String) {
    for char in value.chars() {
        match char {
            '\\' => into.push_str("\\\\"),
            '"' => into.push_str("\\\""),
            '\n' => into.push_str("\\n"),
            other => into.push(other),
        }
    }
}

fn key(metric: &Metric, values: &[&str]) -> Key {
    assert_eq!(metric.labels.len(), values.len(), "labels of {}", metric.name);
    let labels: Vec<Label> = (metric.labels.iter().zip(values))
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect();
    Key::from_parts(metric.name, labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_stands_beside_what_is_kept() {
        let exporter = Exporter::default();
        exporter.histogram(&catalogue::COMMIT_SECONDS).record(0.015);
        exporter.counter(&catalogue::HTTP_REQUESTS, &["GET", "200"]).increment(2);
        let mut scrape = Scrape::default();
        scrape.set(&catalogue::NODE_UP, &["edge-1"], 1.0);
        scrape.set(&catalogue::NODE_INFO, &["edge-1", "a\\b\"c\nd", "", "1"], 1.0);
        scrape.amount(&catalogue::PROCESS_CPU, &[], 1.25);
        scrape.count(&catalogue::ROUTER_REBUILDS, &[], 3);
        let text = exporter.render(&scrape);
        for line in [
            "# TYPE fleet_store_commit_duration_seconds histogram",
            "fleet_store_commit_duration_seconds_bucket{le=\"0.01\"} 0",
            "fleet_store_commit_duration_seconds_bucket{le=\"0.02\"} 1",
            "fleet_store_commit_duration_seconds_count 1",
            "fleet_http_requests_total{method=\"GET\",code=\"200\"} 2",
            "# HELP fleet_node_up 1 while the node is online or suspect, 0 otherwise.",
            "fleet_node_up{node=\"edge-1\"} 1",
            "fleet_node_info{node=\"edge-1\",kind=\"a\\\\b\\\"c\\nd\",site=\"\",agent_version=\"1\"} 1",
            "fleet_process_cpu_seconds_total 1.25",
            "# TYPE fleet_router_rebuilds_total counter",
            "fleet_router_rebuilds_total 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let next = exporter.render(&Scrape::default());
        assert!(!next.contains("edge-1"), "a node that is gone is not told again");
    }

    #[test]
    #[should_panic(expected = "labels of fleet_node_up")]
    fn labels_are_the_catalogues() {
        Scrape::default().set(&catalogue::NODE_UP, &[], 1.0);
    }
}
