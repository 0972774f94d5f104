//! How nodes of the registry look outside, as JSON. Pure.

use fleet_schemas::MetricName;

use super::shapes;
use crate::core::{
    config,
    devices::{self, Device},
    fleet::{Location, Node, Vital},
    ledger::Account,
    presence::State,
};

/// A node's JSON.
#[must_use]
pub(super) fn node(
    node: &Node,
    tz: Option<String>,
    devices_count: usize,
    enrolment: shapes::Enrolment,
) -> shapes::Node {
    let record = &node.record;
    let (versions, vital) = (&record.versions, node.vital.as_ref());
    let heard = record.presence.state != State::New;
    shapes::Node {
        id: record.id.to_string(),
        name: record.name.clone().or_else(|| record.own_name.clone()),
        kind: record.kind.clone(),
        state: match record.removed_ms {
            Some(_) => "removed".to_owned(),
            None => record.presence.state.as_str().to_owned(),
        },
        site: record.site.clone(),
        tz,
        location: record.location.map(|Location { lat, lon }| shapes::Location { lat, lon }),
        labels: record.labels.clone(),
        capabilities: record.capabilities.clone(),
        versions: shapes::Versions {
            agent: versions.agent.clone(),
            firmware: versions.firmware.clone(),
            skills: versions.skills.clone(),
        },
        first_seen_ms: heard.then_some(record.first_seen_ms),
        last_seen_ms: heard.then_some(record.last_seen_ms),
        session_epoch: record.session_epoch,
        system: vital.map(Vital::system).unwrap_or_default(),
        machine: record.machine.clone(),
        outbox: vital.map(|vital| shapes::Outbox {
            records: node.at_edge(),
            bytes: vital.outbox.bytes,
            quota_bytes: vital.outbox.quota_bytes,
        }),
        devices_count,
        config: versions_of(node),
        enrolment,
        removed_ms: record.removed_ms,
    }
}

/// JSON of a device that a node reported.
#[must_use]
pub(super) fn device(node: State, device: &Device) -> shapes::Device {
    let report = &device.report;
    let text = |word: &MetricName| word.to_string();
    shapes::Device {
        id: report.device.to_string(),
        state: devices::state(node, Some(device)).to_owned(),
        since_ms: Some(device.at_ms),
        kind: report.kind.as_ref().map(text),
        name: report.name.clone(),
        firmware: report.firmware.as_ref().map(text),
        capabilities: report.capabilities.iter().map(text).collect(),
        last_seen_ms: report.last_seen_ms,
        until_ms: report.until_ms,
        heartbeat_ms: report.heartbeat_ms,
        sleep_ms: report.sleep_ms,
        unsequenced: report.unsequenced,
        metrics: Vec::new(),
        last_ms: None,
    }
}

/// A device that sleeps again after each word says so once: what it said since moves the end of its sleep.
pub(super) fn sleep_on(device: &mut shapes::Device) {
    let again =
        device.last_seen_ms.zip(device.sleep_ms).map(|(seen, span)| seen.saturating_add_unsigned(span));
    if device.until_ms.is_some() {
        device.until_ms = device.until_ms.max(again);
    }
}

fn versions_of(node: &Node) -> shapes::ConfigVersions {
    let reported = node.record.config.as_ref();
    shapes::ConfigVersions {
        desired_version: node.wanted.map(|wanted| config::version(wanted.version)),
        reported_version: reported.and_then(|told| told.applied).map(|held| config::version(held.version)),
        state: config::state(node).as_str().to_owned(),
    }
}

/// An account's JSON; `tz` is the zone of the node's site.
#[must_use]
pub(super) fn account(account: &Account, tz: Option<String>) -> shapes::Account {
    let counters = account.counters;
    shapes::Account {
        node: account.node.to_string(),
        lane: account.lane.to_string(),
        state: account.state.as_str().to_owned(),
        produced: account.produced,
        stored: counters.stored,
        expired: counters.expired,
        quarantined: counters.quarantined,
        lost: counters.lost,
        written_off: counters.written_off,
        at_edge: account.at_edge,
        duplicates: counters.duplicates,
        tz,
        as_of_ms: account.as_of_ms,
        reason: account.reason.clone(),
    }
}
