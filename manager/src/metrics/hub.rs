//! Reads the hub into a scrape.
//!
//! Owns which of the hub's figures becomes which metric. Asks the registry once and briefly.

use std::collections::BTreeMap;

use fleet_broker::{Reason, Stats as Broker};
use fleet_schemas::{command::State as CommandState, event::Severity};

use super::{
    Exporter, Scrape,
    catalogue::{self as c, Metric},
    process,
};
use crate::{
    core::{
        config,
        fleet::Node,
        identity,
        ledger::{Account, Standing},
        presence::State,
        rollout,
    },
    hub::{Hub, Observer, Round},
    pki::{self, Pki},
};

/// Most nodes with metrics of their own: four series each are what a scrape can bear.
const NODES: usize = 10_000;
const STATES: [&str; 6] = ["new", "online", "suspect", "offline", "sleeping", "unknown"];

/// What the hub's consumer calls after every round: it counts into the exporter.
#[must_use]
pub fn observer(exporter: &Exporter) -> Observer {
    let count = |metric| exporter.counter(metric, &[]);
    let (messages, bytes) = (count(&c::MESSAGES), count(&c::PAYLOAD_BYTES));
    let (samples, events) = (count(&c::SAMPLES), count(&c::EVENTS));
    let (failures, seconds) = (count(&c::COMMIT_FAILURES), exporter.histogram(&c::COMMIT_SECONDS));
    // Told from the start, so that a rate can be taken of the first.
    let ended = CommandState::ALL.map(|state| {
        state.is_terminal().then(|| exporter.counter(&c::EXECUTIONS_FINISHED, &[state.as_str()]))
    });
    std::sync::Arc::new(move |round: &Round| {
        if round.failed {
            failures.increment(1);
            return;
        }
        messages.increment(round.messages as u64);
        bytes.increment(round.bytes);
        samples.increment(round.samples);
        events.increment(round.events);
        for (counter, count) in ended.iter().zip(round.ended) {
            counter.iter().for_each(|counter| counter.increment(count));
        }
        // A round without messages commits nothing but deadlines.
        if round.messages > 0 {
            seconds.record(round.commit.as_secs_f64());
        }
    })
}

/// One scrape of the hub; `streams` are the open event streams.
///
/// # Errors
/// What the ledger's store says.
pub fn scrape(hub: &Hub, pki: &Pki, streams: usize) -> Result<Scrape, crate::consume::Error> {
    let mut scrape = Scrape::default();
    scrape.set(&c::HUB_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
    scrape.set(&c::HUB_READY, &[], f64::from(u8::from(hub.readiness().ready)));
    scrape.set(&c::STREAMS, &[], streams as f64);
    nodes(hub, &mut scrape);
    ledger(&hub.ledger()?, &mut scrape);
    store(hub, &mut scrape)?;
    let stats = hub.stats();
    for (message, reason, count) in stats.refusals {
        scrape.count(&c::REFUSED_PAYLOADS, &[message, reason], count);
    }
    broker(&stats.broker, &mut scrape);
    alerts(hub, &mut scrape);
    certificates(hub, pki, &mut scrape);
    releases(hub, &mut scrape);
    rollouts(hub, &mut scrape);
    if let Some(process) = process::read() {
        scrape.set(&c::PROCESS_RSS, &[], process.rss_bytes as f64);
        scrape.amount(&c::PROCESS_CPU, &[], process.cpu_ms as f64 / 1_000.0);
        scrape.set(&c::PROCESS_START, &[], process.start_s as f64);
        if let Some((open, limit)) = process.open_files {
            scrape.set(&c::PROCESS_FILES, &[], open as f64);
            scrape.set(&c::PROCESS_FILES_LIMIT, &[], limit as f64);
        }
    }
    Ok(scrape)
}

fn nodes(hub: &Hub, scrape: &mut Scrape) {
    let (listed, states, follow, all, waiting) = hub.with_fleet(|fleet| {
        let mut states: BTreeMap<&str, u64> = STATES.map(|state| (state, 0)).into();
        for node in fleet.nodes.values() {
            *states.entry(node.record.presence.state.as_str()).or_default() += 1;
        }
        let listed: Vec<_> = fleet.nodes.values().take(NODES).map(|node| Listed::of(node)).collect();
        let follow = config::count(fleet.nodes.values().map(|node| &**node));
        (listed, states, follow, fleet.nodes.len(), fleet.commands.waiting())
    });
    scrape.set(&c::COMMANDS_OPEN, &[], waiting.commands as f64);
    scrape.set(&c::EXECUTIONS_OPEN, &[], waiting.executions as f64);
    for (state, count) in states {
        scrape.set(&c::NODES, &[state], count as f64);
    }
    for (state, count) in follow {
        scrape.set(&c::CONFIG_NODES, &[state.as_str()], count as f64);
    }
    scrape.set(&c::NODES_UNLISTED, &[], (all - listed.len()) as f64);
    for node in listed {
        let id = node.id.as_str();
        scrape.set(&c::NODE_INFO, &[id, &node.kind, &node.site, &node.agent], 1.0);
        scrape.set(&c::NODE_UP, &[id], f64::from(u8::from(node.up)));
        scrape.set(&c::NODE_LAST_SEEN, &[id], node.last_seen_ms as f64 / 1_000.0);
        scrape.set(&c::NODE_OUTBOX, &[id], node.outbox as f64);
    }
}

fn alerts(hub: &Hub, scrape: &mut Scrape) {
    let Some(alerts) = hub.alerts() else { return };
    let figures = alerts.figures();
    for severity in [Severity::Info, Severity::Warning, Severity::Error, Severity::Critical] {
        for state in ["pending", "firing", "acknowledged", "silenced", "inhibited"] {
            let count = figures.open.get(&(state, severity.as_str())).copied().unwrap_or(0);
            scrape.set(&c::ALERTS, &[state, severity.as_str()], count as f64);
        }
    }
    scrape.set(&c::ALERT_RULES, &[], figures.rules as f64);
    scrape.set(&c::ALERT_RULES_REFUSED, &[], f64::from(u8::from(figures.refused)));
    scrape.count(&c::ALERT_JUDGEMENTS, &[], figures.judgements);
    scrape.set(&c::ALERT_LAG, &[], figures.lag_s);
    scrape.count(&c::NOTICES_DROPPED, &[], figures.dropped);
}

/// Which node it is that has the soonest end, `fleet doctor` says: as a label it would be one of ten thousand.
fn certificates(hub: &Hub, pki: &Pki, scrape: &mut Scrape) {
    let pki::Status { authorities, server_not_after_ms, .. } = pki.status();
    let ca = authorities.iter().map(|authority| authority.not_after_ms).max();
    // One that is away renews when it is back; until then its absence is what is wrong with it.
    let here = |node: &Node| matches!(node.record.presence.state, State::Online | State::Suspect { .. });
    let soonest = hub.with_fleet(|fleet| {
        hub.with_identities(|known| {
            let ends = known.enrolments.iter().filter(|(id, known)| {
                known.standing == identity::Standing::Enrolled
                    && fleet.nodes.get(*id).is_some_and(|node| here(node))
            });
            ends.filter_map(|(_, known)| Some(known.certificate.as_ref()?.not_after_ms)).min()
        })
    });
    for (certificate, ends_ms) in
        [("ca", ca), ("server", Some(server_not_after_ms)), ("soonest_node", soonest)]
    {
        if let Some(ends_ms) = ends_ms {
            scrape.set(&c::CERTIFICATE_EXPIRES, &[certificate], ends_ms as f64 / 1_000.0);
        }
    }
}

fn releases(hub: &Hub, scrape: &mut Scrape) {
    let Some(releases) = hub.releases() else { return };
    for standing in releases.standings() {
        scrape.set(&c::RELEASE_EXPIRES, &[standing.role], standing.expires_ms as f64 / 1_000.0);
    }
    scrape.set(&c::RELEASES, &[], releases.all().len() as f64);
    scrape.set(&c::ARTIFACTS, &[], releases.artifacts().all().len() as f64);
    scrape.set(&c::ARTIFACT_BYTES, &[], releases.artifacts().bytes() as f64);
    scrape.count(&c::ARTIFACT_SENT, &[], releases.artifacts().sent());
}

/// At most a hundred are not over: names as labels stay few.
fn rollouts(hub: &Hub, scrape: &mut Scrape) {
    hub.with_fleet(|fleet| {
        let all = fleet.rollouts.all();
        for state in rollout::State::ALL {
            let count = all.iter().filter(|live| live.head.state == state).count();
            scrape.set(&c::ROLLOUTS, &[state.as_str()], count as f64);
        }
        for live in all.iter().filter(|live| !live.head.state.is_final()) {
            let id = live.head.spec.id.as_str();
            for (stand, count) in live.head.tally() {
                scrape.set(&c::ROLLOUT_NODES, &[id, stand.as_str()], f64::from(count));
            }
            for stage in rollout::Stage::ALL {
                let count = live.head.waves.iter().filter(|wave| wave.stage == stage).count();
                scrape.set(&c::ROLLOUT_WAVES, &[id, stage.as_str()], count as f64);
            }
            scrape.set(&c::ROLLOUT_DOWN, &[id], f64::from(live.down()));
        }
    });
}

/// What is told of one node: copied, so that the registry is free while labels are made.
struct Listed {
    id: fleet_schemas::NodeId,
    kind: String,
    site: String,
    agent: String,
    up: bool,
    last_seen_ms: i64,
    outbox: u64,
}

impl Listed {
    fn of(node: &Node) -> Self {
        let record = &node.record;
        Self {
            id: record.id.clone(),
            kind: record.kind.clone(),
            site: record.site.clone().unwrap_or_default(),
            agent: record.versions.agent.clone(),
            up: matches!(record.presence.state, State::Online | State::Suspect { .. }),
            last_seen_ms: record.last_seen_ms,
            outbox: node.at_edge(),
        }
    }
}

fn store(hub: &Hub, scrape: &mut Scrape) -> Result<(), crate::consume::Error> {
    let stats = hub.telemetry().stats(hub.clock().now().wall_ms)?;
    scrape.set(&c::INBOX_BYTES, &[], stats.inbox_bytes as f64);
    scrape.set(&c::ROLLUP_FILES, &[], stats.rollup_files as f64);
    scrape.set(&c::UNSEALED_BATCHES, &[], stats.unsealed_batches as f64);
    scrape.set(&c::SEAL_LAG, &[], stats.seal_lag_ms as f64 / 1_000.0);
    scrape.set(&c::UNSEALED, &[], stats.unsealed_samples as f64);
    scrape.set(&c::SEALED, &[], stats.sealed_samples as f64);
    scrape.set(&c::WEEK_FILES, &[], stats.week_files as f64);
    scrape.set(&c::SET_ASIDE, &[], stats.set_aside.len() as f64);
    scrape.set(&c::STORE_BYTES, &[], stats.file_bytes as f64);
    if let Some(view) = hub.disk() {
        scrape.set(&c::DISK_FREE, &[], view.free as f64);
        scrape.set(&c::DISK_SIZE, &[], view.total as f64);
        for (by, bytes) in [
            ("telemetry", view.used.telemetry),
            ("state", view.used.state),
            ("artifacts", view.used.artifacts),
            ("elsewhere", view.used.elsewhere),
        ] {
            scrape.set(&c::DISK_USED, &[by], bytes as f64);
        }
    }
    Ok(())
}

fn ledger(accounts: &[Account], scrape: &mut Scrape) {
    for state in [Standing::Balanced, Standing::Pending, Standing::Broken] {
        let count = accounts.iter().filter(|account| account.state == state).count();
        scrape.set(&c::ACCOUNTS, &[state.as_str()], count as f64);
    }
    let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for account in accounts {
        for (term, records) in terms(account) {
            *sums.entry((account.lane.as_str(), term)).or_default() += records;
        }
    }
    for ((lane, term), records) in sums {
        scrape.set(&c::RECORDS, &[lane, term], records as f64);
    }
}

/// The terms of an account by their names.
#[must_use]
pub fn terms(account: &Account) -> [(&'static str, u64); 8] {
    let counters = account.counters;
    [
        ("produced", account.produced),
        ("stored", counters.stored),
        ("expired", counters.expired),
        ("quarantined", counters.quarantined),
        ("lost", counters.lost),
        ("written_off", counters.written_off),
        ("at_edge", account.at_edge),
        ("duplicates", counters.duplicates),
    ]
}

fn broker(stats: &Broker, scrape: &mut Scrape) {
    let gauges: [(&Metric, u64); 10] = [
        (&c::GATE_DOWN_IN_FLIGHT, stats.down_in_flight_bytes.get()),
        (&c::HUB_IN_FLIGHT, stats.hub_in_flight_bytes.get()),
        (&c::GATE_TOOLS, stats.tools.get()),
        (&c::GATE_TOOL_QUEUE, stats.tool_queue_bytes.get()),
        (&c::GATE_RETAINED, stats.retained_topics.get()),
        (&c::GATE_RETAINED_BYTES, stats.retained_bytes.get()),
        (&c::GATE_CONNECTIONS, stats.connections.get()),
        (&c::GATE_SESSIONS, stats.sessions.get()),
        (&c::GATE_IN_FLIGHT, stats.in_flight_bytes.get()),
        (&c::GATE_PAUSED, stats.paused_sessions.get()),
    ];
    for (metric, value) in gauges {
        scrape.set(metric, &[], value as f64);
    }
    let counters: [(&Metric, u64); 13] = [
        (&c::GATE_TOOLS_OPENED, stats.tools_opened.get()),
        (&c::GATE_TOOL_MESSAGES, stats.tool_messages.get()),
        (&c::GATE_RETAINED_REFUSED, stats.retained_refused.get()),
        (&c::ROUTER_FOREIGN, stats.router_foreign.get()),
        (&c::GATE_THROTTLES, stats.throttles.get()),
        (&c::GATE_SESSIONS_OPENED, stats.sessions_opened.get()),
        (&c::GATE_UP_MESSAGES, stats.up_messages.get()),
        (&c::GATE_UP_BYTES, stats.up_payload_bytes.get()),
        (&c::GATE_PAUSES, stats.pauses.get()),
        (&c::GATE_DOWN_MESSAGES, stats.down_messages.get()),
        (&c::ROUTER_REBUILDS, stats.router_rebuilds.get()),
        (&c::ROUTER_RECOVERED, stats.router_recovered.get()),
        (&c::ROUTER_QUARANTINED, stats.router_quarantined.get()),
    ];
    for (metric, value) in counters {
        scrape.count(metric, &[], value);
    }
    for (fate, count) in [
        ("heard", stats.talk_messages.get().saturating_sub(stats.talk_unheard.get())),
        ("unheard", stats.talk_unheard.get()),
        ("dropped", stats.talk_dropped.get()),
    ] {
        scrape.count(&c::GATE_TALK, &[fate], count);
    }
    for (reason, counter) in [("unheard", &stats.hub_unheard), ("plane_full", &stats.hub_dropped)] {
        scrape.count(&c::HUB_LOST, &[reason], counter.get());
    }
    for reason in Reason::ALL {
        scrape.count(&c::GATE_ENDED, &[reason.as_str()], stats.reason(reason));
    }
    for (reason, counter) in [
        ("plane_full", &stats.down_dropped),
        ("no_session", &stats.down_unrouted),
        ("slow_session", &stats.down_overflow),
        ("unwanted", &stats.down_unwanted),
    ] {
        scrape.count(&c::GATE_DOWN_LOST, &[reason], counter.get());
    }
}
