//! Every metric of the hub: name, kind, labels, help. Dashboards and rules may name nothing else.
//!
//! Base units, told by the name's last words. Per node there are exactly four; never a histogram, never a sample.

/// What a metric does over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the hub restarts.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations in buckets.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub kind: Kind,
    /// The names of its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// What it says, in one sentence.
    pub help: &'static str,
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, labels: &[], help }
}

macro_rules! catalogue {
    ($($constant:ident = $metric:expr;)*) => {
        $(
            #[doc = "See its `help`."]
            pub const $constant: Metric = $metric;
        )*
        /// All of them.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

catalogue! {
    HUB_INFO = gauge("fleet_hub_info", &["version"], "The hub's version; always 1.");
    HUB_READY = gauge("fleet_hub_ready", &[], "1 when the hub takes data, 0 when /readyz says why not.");
    NODE_INFO = gauge("fleet_node_info", &["node", "kind", "site", "agent_version"], "What a node is; always 1.");
    NODE_UP = gauge("fleet_node_up", &["node"], "1 while the node is online or suspect, 0 otherwise.");
    NODE_LAST_SEEN = gauge("fleet_node_last_seen_timestamp_seconds", &["node"], "When the node was last heard, hub time.");
    NODE_OUTBOX = gauge("fleet_node_outbox_records", &["node"], "Records at the node that the hub has not yet accounted for.");
    NODES = gauge("fleet_nodes", &["state"], "Nodes by presence state.");
    CONFIG_NODES = gauge("fleet_config_nodes", &["state"], "Nodes by whether they follow their configuration.");
    NODES_UNLISTED = gauge("fleet_nodes_unlisted", &[], "Nodes beyond the cap, left out of the per-node metrics.");
    MESSAGES = counter("fleet_ingest_messages_total", &[], "Messages of nodes consumed.");
    PAYLOAD_BYTES = counter("fleet_ingest_payload_bytes_total", &[], "Their payloads.");
    SAMPLES = counter("fleet_ingest_samples_total", &[], "Samples stored since the start.");
    EVENTS = counter("fleet_ingest_events_total", &[], "Events stored since the start, the hub's own included.");
    RECORDS = gauge("fleet_ledger_records", &["lane", "term"], "Records in the ledger, by lane and term.");
    ACCOUNTS = gauge("fleet_ledger_accounts", &["state"], "Accounts of the ledger by state; broken must be 0.");
    COMMANDS_OPEN = gauge("fleet_commands_open", &[], "Commands that are not over at every node.");
    EXECUTIONS_OPEN = gauge("fleet_command_executions_open", &[], "Executions, one for each node of a command, that are not over.");
    EXECUTIONS_FINISHED = counter("fleet_command_executions_finished_total", &["state"], "Executions that ended, by their last state.");
    REFUSED_PAYLOADS = counter("fleet_ingest_refused_total", &["message", "reason"], "Payloads that could not be read, by message and reason.");
    COMMIT_FAILURES = counter("fleet_store_commit_failures_total", &[], "Groups of messages whose commit failed; nothing of them was acked.");
    COMMIT_SECONDS = histogram("fleet_store_commit_duration_seconds", "Time from taking a group of messages to its commit.");
    SEAL_LAG = gauge("fleet_store_seal_lag_seconds", &[], "How long the oldest batch in the inbox has waited for its week file.");
    INBOX_BYTES = gauge("fleet_store_inbox_bytes", &[], "Batches in the inbox, sealed ones that wait for the feed's readers too.");
    ROLLUP_FILES = gauge("fleet_store_rollup_files", &[], "Files of five-minute rollups.");
    UNSEALED_BATCHES = gauge("fleet_store_unsealed_batches", &[], "Batches in the inbox that are not yet in a week file.");
    UNSEALED = gauge("fleet_store_unsealed_samples", &[], "Samples in the inbox that are not yet in a week file.");
    SEALED = gauge("fleet_store_sealed_samples", &[], "Samples in week files.");
    WEEK_FILES = gauge("fleet_store_week_files", &[], "Week files.");
    SET_ASIDE = gauge("fleet_store_set_aside_files", &[], "Damaged files that were set aside when the store was opened.");
    STORE_BYTES = gauge("fleet_store_bytes", &[], "Size of the telemetry store's files.");
    DISK_FREE = gauge("fleet_disk_free_bytes", &[], "Bytes that are left for the hub on its filesystem.");
    DISK_SIZE = gauge("fleet_disk_size_bytes", &[], "Size of the hub's filesystem.");
    DISK_USED = gauge("fleet_disk_used_bytes", &["by"], "Bytes used on the hub's filesystem: telemetry, state, artifacts, everything else.");
    GATE_CONNECTIONS = gauge("fleet_gate_connections", &[], "Open sockets at the gate, sessions or not.");
    GATE_SESSIONS = gauge("fleet_gate_sessions", &[], "MQTT sessions.");
    GATE_SESSIONS_OPENED = counter("fleet_gate_sessions_opened_total", &[], "MQTT sessions opened.");
    GATE_ENDED = counter("fleet_gate_refusals_total", &["reason"], "Connections, sessions and messages refused or ended, by reason.");
    GATE_UP_MESSAGES = counter("fleet_gate_up_messages_total", &[], "Messages taken from nodes.");
    GATE_UP_BYTES = counter("fleet_gate_up_payload_bytes_total", &[], "Payloads of messages taken from nodes.");
    GATE_IN_FLIGHT = gauge("fleet_gate_in_flight_bytes", &[], "Messages taken from nodes that the consumer has not yet taken.");
    GATE_PAUSED = gauge("fleet_gate_paused_sessions", &[], "Sessions whose reading waits for the consumer.");
    GATE_PAUSES = counter("fleet_gate_pauses_total", &[], "Times that a session's reading was paused.");
    GATE_DOWN_MESSAGES = counter("fleet_gate_down_messages_total", &[], "Messages written to nodes.");
    GATE_DOWN_LOST = counter("fleet_gate_down_lost_total", &["reason"], "Messages to nodes that were not written, by reason.");
    GATE_THROTTLES = counter("fleet_gate_throttles_total", &[], "Times that a session was not read for a while because it published above its limit.");
    GATE_TOOLS = gauge("fleet_gate_tool_sessions", &[], "MQTT sessions of third-party tools.");
    GATE_TOOL_QUEUE = gauge("fleet_gate_tool_queue_bytes", &[], "Messages that wait for third-party tools.");
    GATE_TOOLS_OPENED = counter("fleet_gate_tool_sessions_opened_total", &[], "MQTT sessions of third-party tools opened.");
    GATE_TOOL_MESSAGES = counter("fleet_gate_tool_messages_total", &[], "Messages copied for third-party tools.");
    GATE_DOWN_IN_FLIGHT = gauge("fleet_gate_down_in_flight_bytes", &[], "Messages to nodes that wait in the plane.");
    HUB_IN_FLIGHT = gauge("fleet_gate_hub_in_flight_bytes", &[], "Messages on the hub's own topics that wait in the plane.");
    HUB_LOST = counter("fleet_gate_hub_lost_total", &["reason"], "Messages on the hub's own topics that nobody got, by reason.");
    GATE_RETAINED_REFUSED = counter("fleet_gate_retained_refused_total", &[], "Messages of tools that were not retained for want of room.");
    GATE_TALK = counter("fleet_gate_tool_said_total", &["fate"], "Messages that tools published: heard by tools, unheard, or dropped because the plane was full.");
    GATE_RETAINED = gauge("fleet_gate_retained_topics", &[], "Topics on which tools have something retained.");
    GATE_RETAINED_BYTES = gauge("fleet_gate_retained_bytes", &[], "What tools have retained.");
    ROUTER_REBUILDS = counter("fleet_router_rebuilds_total", &[], "Routers that had to be replaced.");
    ROUTER_RECOVERED = counter("fleet_router_recovered_total", &[], "Messages that the router did not deliver and the replay ring did.");
    ROUTER_QUARANTINED = counter("fleet_router_quarantined_total", &[], "Messages kept away from the router after two of its deaths.");
    ROUTER_FOREIGN = counter("fleet_router_foreign_total", &[], "Messages on the hub's link that the gate never sent; must stay 0.");
    HTTP_REQUESTS = counter("fleet_http_requests_total", &["method", "code"], "HTTP requests answered, by method and status.");
    HTTP_SECONDS = histogram("fleet_http_request_duration_seconds", "Time to the first byte of an HTTP answer.");
    HTTP_DENIED = counter("fleet_http_denied_total", &["reason"], "HTTP requests refused for want of a token or a right, by reason.");
    STREAMS = gauge("fleet_http_streams", &[], "Open event streams.");
    STREAMS_CUT = counter("fleet_http_streams_cut_total", &[], "Event streams that were cut because their reader was too slow.");
    HISTORY_READS = counter("fleet_history_reads_total", &["outcome"], "Remote reads of Prometheus, by outcome.");
    HISTORY_SECONDS = histogram("fleet_history_read_duration_seconds", "Time for answering a remote read.");
    HISTORY_NODES = counter("fleet_history_nodes_read_total", &[], "Nodes whose samples were looked at for remote reads.");
    HISTORY_SAMPLES = counter("fleet_history_samples_read_total", &[], "Samples given to remote reads.");
    ALERTS = gauge("fleet_alerts", &["state", "severity"], "Open alerts: pending, firing, and those of which nobody is told because they are acknowledged, silenced or inhibited.");
    ALERT_RULES = gauge("fleet_alert_rules", &[], "Rules that are judged.");
    ALERT_RULES_REFUSED = gauge("fleet_alert_rules_refused", &[], "1 while files of rules that changed are refused, and the old rules count.");
    ALERT_JUDGEMENTS = counter("fleet_alert_judgements_total", &[], "Judgements: one rule for one device at one time.");
    ALERT_SECONDS = histogram("fleet_alert_evaluation_duration_seconds", "Time of one round of the alert engine, its commit included.");
    ALERT_LAG = gauge("fleet_alert_lag_seconds", &[], "How long the oldest batch of the last round had waited to be judged.");
    NOTICES = counter("fleet_alert_notifications_total", &["receiver", "outcome"], "Notifications by outcome: sent, or failed after all attempts.");
    NOTICES_DROPPED = counter("fleet_alert_notifications_dropped_total", &[], "Notifications that were dropped because too many waited.");
    NOTICES_PENDING = gauge("fleet_alert_notifications_pending", &["receiver"], "Notifications that wait for a receiver.");
    CERTIFICATE_EXPIRES = gauge("fleet_certificate_expiry_timestamp_seconds", &["certificate"], "When a certificate ends: that of the hub's CA (the newest), that of its server, and the soonest of nodes that are online (soonest_node).");
    RELEASE_EXPIRES = gauge("fleet_release_expiry_timestamp_seconds", &["role"], "When signed metadata of releases ends; the hub renews snapshot and timestamp, people root and targets.");
    RELEASES = gauge("fleet_releases", &[], "Releases that are signed.");
    ARTIFACTS = gauge("fleet_artifacts", &[], "Artifacts that are stored.");
    ARTIFACT_BYTES = gauge("fleet_artifact_bytes", &[], "Their bytes.");
    ARTIFACT_SENT = counter("fleet_artifact_sent_bytes_total", &[], "Bytes of artifacts sent to nodes.");
    ROLLOUTS = gauge("fleet_rollouts", &["state"], "Rollouts by state; those that are over while they are kept.");
    ROLLOUT_NODES = gauge("fleet_rollout_nodes", &["rollout", "state"], "Nodes of rollouts that are not over, by where they stand.");
    ROLLOUT_WAVES = gauge("fleet_rollout_waves", &["rollout", "state"], "Waves of rollouts that are not over, by where they stand.");
    ROLLOUT_DOWN = gauge("fleet_rollout_down_nodes", &["rollout"], "Nodes that are down through a rollout that is not over.");
    PROCESS_RSS = gauge("fleet_process_resident_memory_bytes", &[], "Resident memory of the hub.");
    PROCESS_CPU = counter("fleet_process_cpu_seconds_total", &[], "Processor time of the hub, user and system.");
    PROCESS_FILES = gauge("fleet_process_open_files", &[], "Files and sockets that the hub has open.");
    PROCESS_FILES_LIMIT = gauge("fleet_process_open_files_limit", &[], "Most that it may have open.");
    PROCESS_START = gauge("fleet_process_start_timestamp_seconds", &[], "When the hub started.");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_tell_kind_and_unit() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            let name = metric.name;
            assert!(name.starts_with("fleet_") && !metric.help.is_empty(), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
            assert!(metric.kind != Kind::Histogram || name.ends_with("_seconds"), "{name}");
            assert!(!["_ms", "_percent", "_kb"].iter().any(|unit| name.contains(unit)), "{name}");
        }
    }

    #[test]
    fn per_node_metrics_are_the_four_of_the_contract() {
        let per_node: Vec<_> = ALL.iter().filter(|m| m.labels.contains(&"node")).map(|m| m.name).collect();
        assert_eq!(
            per_node,
            [
                "fleet_node_info",
                "fleet_node_up",
                "fleet_node_last_seen_timestamp_seconds",
                "fleet_node_outbox_records"
            ]
        );
    }
}
