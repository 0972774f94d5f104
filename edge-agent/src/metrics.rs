//! The agent's metrics: one catalogue, one registry per agent, so that many agents can share a process.
//!
//! Owns names, labels and help texts. Installs no global recorder.

use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// One family of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name on `/metrics`.
    pub name: &'static str,
    /// What it counts or measures.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// One sentence for people.
    pub help: &'static str,
}

/// What a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, kind: Kind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, labels, help }
}

const INFO: Family = gauge("fleet_agent_info", &["node", "version"], "Always 1; tells who this agent is.");
const CONNECTED: Family = gauge("fleet_agent_connected", &[], "1 while a session with the hub is open.");
const SESSIONS: Family = counter("fleet_agent_sessions_total", &[], "Sessions opened with the hub.");
const CONNECT_FAILURES: Family =
    counter("fleet_agent_connect_failures_total", &[], "Attempts and sessions that ended in an error.");
const PUBLISHED: Family = counter("fleet_agent_published_total", &[], "Messages handed to the connection.");
const PUBLISHED_BYTES: Family =
    counter("fleet_agent_published_bytes_total", &[], "Payload bytes handed to the connection.");
const CROWDED: Family = counter(
    "fleet_agent_crowded_total",
    &[],
    "Messages dropped before a slow connection; they are sent again.",
);
const ACCEPTED: Family =
    counter("fleet_agent_accepted_records_total", &["kind"], "Records that are on disk, by sample or event.");
const REFUSED: Family =
    counter("fleet_agent_refused_total", &["reason"], "Submissions that were not accepted, by reason.");
const REQUESTS: Family =
    counter("fleet_agent_http_requests_total", &["code"], "Answers of the edge API, by status code.");
const DRIVER_LINES: Family =
    counter("fleet_agent_driver_lines_total", &["driver"], "Lines that drivers printed and that were taken.");
const DRIVER_BAD_LINES: Family = counter(
    "fleet_agent_driver_bad_lines_total",
    &["driver", "reason"],
    "Lines that drivers printed and that were not taken, by reason.",
);
const DRIVER_ENDS: Family =
    counter("fleet_agent_driver_ends_total", &["driver", "reason"], "Ends of driver programs, by reason.");
const OUTBOX_RECORDS: Family =
    gauge("fleet_agent_outbox_records", &[], "Records held, those kept after their ack included.");
const OUTBOX_UNACKED: Family =
    gauge("fleet_agent_outbox_unacked_batches", &[], "Batches that the hub has not acknowledged.");
const OUTBOX_LOST: Family =
    gauge("fleet_agent_outbox_lost_records", &[], "Records declared lost since the agent started.");
const OUTBOX_BYTES: Family = gauge("fleet_agent_outbox_bytes", &[], "Bytes held in the outbox.");
const OUTBOX_QUOTA: Family = gauge("fleet_agent_outbox_quota_bytes", &[], "Bytes the outbox may hold.");
const OUTBOX_FAILURES: Family = counter(
    "fleet_agent_outbox_failures_total",
    &[],
    "Times the outbox had to be opened again after an error.",
);

const BUDGET_USED: Family =
    gauge("fleet_agent_budget_used_bytes", &["period"], "Bytes used of this hour's or day's budget.");
const BUDGET: Family = gauge("fleet_agent_budget_bytes", &["period"], "Bytes of an hour's or day's budget.");
const RULES: Family = gauge("fleet_agent_rules", &[], "Local rules that are judged.");
const RULES_MISSED: Family = counter(
    "fleet_agent_rules_missed_samples_total",
    &[],
    "Samples that were accepted and that no local rule judged, because they came faster than rules can judge.",
);
const ALERTS_FIRING: Family = gauge("fleet_agent_alerts_firing", &[], "Alerts of local rules that fire.");
const ALERT_OUTPUTS: Family = counter(
    "fleet_agent_alert_outputs_total",
    &["output", "result"],
    "Alerts told to a webhook or program, by result.",
);
const COLLECTED: Family =
    counter("fleet_agent_collected_samples_total", &["kind"], "Samples read from files and exporters.");
const COLLECT_FAILURES: Family = counter(
    "fleet_agent_collect_failures_total",
    &["kind", "reason"],
    "Reads that failed, and lines, values and samples of files and exporters that were not taken, by reason.",
);
const DEVICE_SESSIONS: Family =
    gauge("fleet_agent_device_sessions", &[], "Sessions of devices at the MQTT listener.");
const DEVICE_SESSIONS_OPENED: Family = counter(
    "fleet_agent_device_sessions_opened_total",
    &[],
    "Sessions of devices opened at the MQTT listener.",
);
const DEVICE_MESSAGES: Family = counter(
    "fleet_agent_device_messages_total",
    &["result"],
    "What devices said over MQTT: taken, or why it was not kept.",
);
const DEVICE_TOLD: Family =
    counter("fleet_agent_device_told_total", &[], "Messages written to connections of devices.");
const DEVICE_THROTTLES: Family = counter(
    "fleet_agent_device_throttles_total",
    &[],
    "Times that a device was not read because it said too much.",
);
const DEVICE_REFUSALS: Family = counter(
    "fleet_agent_device_refusals_total",
    &["reason"],
    "Connections, sessions and subscriptions of devices that were refused or ended, by reason.",
);

const UPDATES: Family =
    counter("fleet_agent_updates_total", &["kind", "state"], "Updates that ended, by kind and final state.");
const UPDATE_BYTES: Family =
    counter("fleet_agent_update_bytes_total", &[], "Bytes of artifacts that were fetched from the hub.");

/// Every family there is, in the order of this page.
pub const CATALOGUE: &[Family] = &[
    INFO,
    CONNECTED,
    SESSIONS,
    CONNECT_FAILURES,
    PUBLISHED,
    PUBLISHED_BYTES,
    CROWDED,
    ACCEPTED,
    REFUSED,
    REQUESTS,
    DRIVER_LINES,
    DRIVER_BAD_LINES,
    DRIVER_ENDS,
    OUTBOX_RECORDS,
    OUTBOX_UNACKED,
    OUTBOX_LOST,
    OUTBOX_BYTES,
    OUTBOX_QUOTA,
    OUTBOX_FAILURES,
    BUDGET_USED,
    BUDGET,
    RULES,
    RULES_MISSED,
    ALERTS_FIRING,
    ALERT_OUTPUTS,
    COLLECTED,
    COLLECT_FAILURES,
    DEVICE_SESSIONS,
    DEVICE_SESSIONS_OPENED,
    DEVICE_MESSAGES,
    DEVICE_TOLD,
    DEVICE_THROTTLES,
    DEVICE_REFUSALS,
    UPDATES,
    UPDATE_BYTES,
];

/// One agent's registry.
#[derive(Debug)]
pub struct Metrics {
    recorder: PrometheusRecorder,
    page: PrometheusHandle,
    pub(crate) connected: Gauge,
    pub(crate) sessions: Counter,
    pub(crate) connect_failures: Counter,
    pub(crate) published: Counter,
    pub(crate) published_bytes: Counter,
    pub(crate) crowded: Counter,
    pub(crate) accepted_samples: Counter,
    pub(crate) accepted_events: Counter,
    pub(crate) outbox_records: Gauge,
    pub(crate) outbox_unacked: Gauge,
    pub(crate) outbox_lost: Gauge,
    pub(crate) outbox_bytes: Gauge,
    pub(crate) outbox_quota: Gauge,
    pub(crate) outbox_failures: Counter,
    pub(crate) rules: Gauge,
    pub(crate) rules_missed: Counter,
    pub(crate) alerts_firing: Gauge,
    pub(crate) update_bytes: Counter,
}

impl Metrics {
    /// A registry that says who the agent is.
    #[must_use]
    pub fn new(node: &str, version: &str) -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        for family in CATALOGUE {
            match family.kind {
                Kind::Counter => recorder.describe_counter(family.name.into(), None, family.help.into()),
                Kind::Gauge => recorder.describe_gauge(family.name.into(), None::<Unit>, family.help.into()),
            }
        }
        register_gauge(&recorder, &INFO, &[node, version]).set(1.0);
        Self {
            page: recorder.handle(),
            connected: register_gauge(&recorder, &CONNECTED, &[]),
            sessions: register_counter(&recorder, &SESSIONS, &[]),
            connect_failures: register_counter(&recorder, &CONNECT_FAILURES, &[]),
            published: register_counter(&recorder, &PUBLISHED, &[]),
            published_bytes: register_counter(&recorder, &PUBLISHED_BYTES, &[]),
            crowded: register_counter(&recorder, &CROWDED, &[]),
            accepted_samples: register_counter(&recorder, &ACCEPTED, &["sample"]),
            accepted_events: register_counter(&recorder, &ACCEPTED, &["event"]),
            outbox_records: register_gauge(&recorder, &OUTBOX_RECORDS, &[]),
            outbox_unacked: register_gauge(&recorder, &OUTBOX_UNACKED, &[]),
            outbox_lost: register_gauge(&recorder, &OUTBOX_LOST, &[]),
            outbox_bytes: register_gauge(&recorder, &OUTBOX_BYTES, &[]),
            outbox_quota: register_gauge(&recorder, &OUTBOX_QUOTA, &[]),
            outbox_failures: register_counter(&recorder, &OUTBOX_FAILURES, &[]),
            rules: register_gauge(&recorder, &RULES, &[]),
            rules_missed: register_counter(&recorder, &RULES_MISSED, &[]),
            alerts_firing: register_gauge(&recorder, &ALERTS_FIRING, &[]),
            update_bytes: register_counter(&recorder, &UPDATE_BYTES, &[]),
            recorder,
        }
    }

    /// The page that Prometheus reads.
    #[must_use]
    pub fn render(&self) -> String {
        self.page.render()
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        register_counter(&self.recorder, &REFUSED, &[reason]).increment(1);
    }

    pub(crate) fn answered(&self, code: u16) {
        register_counter(&self.recorder, &REQUESTS, &[&code.to_string()]).increment(1);
    }

    pub(crate) fn budget(&self, period: &str, used: u64, budget: u64) {
        register_gauge(&self.recorder, &BUDGET_USED, &[period]).set(used as f64);
        register_gauge(&self.recorder, &BUDGET, &[period]).set(budget as f64);
    }

    pub(crate) fn alert_output(&self, output: &str, result: &'static str) {
        register_counter(&self.recorder, &ALERT_OUTPUTS, &[output, result]).increment(1);
    }

    pub(crate) fn collected(&self, kind: &'static str, count: u64) {
        register_counter(&self.recorder, &COLLECTED, &[kind]).increment(count);
    }

    pub(crate) fn collect_failed(&self, kind: &'static str, reason: &'static str, count: u64) {
        register_counter(&self.recorder, &COLLECT_FAILURES, &[kind, reason]).increment(count);
    }

    pub(crate) fn update_ended(&self, kind: &str, state: &str) {
        register_counter(&self.recorder, &UPDATES, &[kind, state]).increment(1);
    }

    pub(crate) fn device_message(&self, result: &'static str) {
        register_counter(&self.recorder, &DEVICE_MESSAGES, &[result]).increment(1);
    }

    /// What the listener counts by itself.
    pub(crate) fn device_front(&self, stats: &fleet_broker::Stats) {
        register_gauge(&self.recorder, &DEVICE_SESSIONS, &[]).set(stats.sessions.get() as f64);
        let absolute = |family, labels: &[&str], value| {
            register_counter(&self.recorder, family, labels).absolute(value);
        };
        absolute(&DEVICE_SESSIONS_OPENED, &[], stats.sessions_opened.get());
        absolute(&DEVICE_TOLD, &[], stats.down_messages.get());
        absolute(&DEVICE_THROTTLES, &[], stats.throttles.get());
        for reason in fleet_broker::Reason::ALL {
            let count = stats.reason(reason);
            if count > 0 {
                absolute(&DEVICE_REFUSALS, &[reason.as_str()], count);
            }
        }
    }

    pub(crate) fn driver_lines(&self, driver: &str) -> Counter {
        register_counter(&self.recorder, &DRIVER_LINES, &[driver])
    }

    pub(crate) fn driver_bad_line(&self, driver: &str, reason: &'static str) {
        register_counter(&self.recorder, &DRIVER_BAD_LINES, &[driver, reason]).increment(1);
    }

    pub(crate) fn driver_ended(&self, driver: &str, reason: &'static str) {
        register_counter(&self.recorder, &DRIVER_ENDS, &[driver, reason]).increment(1);
    }
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

fn key(family: &Family, values: &[&str]) -> Key {
    debug_assert_eq!(family.labels.len(), values.len(), "{} has other labels", family.name);
    let labels = family.labels.iter().zip(values).map(|(name, value)| Label::new(*name, (*value).to_owned()));
    Key::from_parts(family.name, labels.collect::<Vec<_>>())
}

fn register_counter(recorder: &PrometheusRecorder, family: &Family, values: &[&str]) -> Counter {
    recorder.register_counter(&key(family, values), &METADATA)
}

fn register_gauge(recorder: &PrometheusRecorder, family: &Family, values: &[&str]) -> Gauge {
    recorder.register_gauge(&key(family, values), &METADATA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_agents_in_one_process_count_apart() {
        let (one, two) = (Metrics::new("one", "1"), Metrics::new("two", "1"));
        one.sessions.increment(3);
        assert!(one.render().contains("fleet_agent_sessions_total 3"), "{}", one.render());
        assert!(two.render().contains("fleet_agent_sessions_total 0"), "{}", two.render());
        assert!(two.render().contains(r#"fleet_agent_info{node="two",version="1"} 1"#));
    }

    #[test]
    fn names_are_prefixed_unique_and_explained() {
        let mut names: Vec<_> = CATALOGUE.iter().map(|family| family.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CATALOGUE.len());
        for family in CATALOGUE {
            assert!(family.name.starts_with("fleet_agent_") && family.help.ends_with('.'), "{family:?}");
            assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{family:?}");
        }
    }
}
