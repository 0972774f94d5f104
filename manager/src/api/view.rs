//! How nodes of the registry look outside, as JSON. Pure.

use super::shapes;
use crate::core::{
    fleet::{Location, Node, Vital},
    ledger::Account,
    presence::State,
};

/// A node's JSON.
#[must_use]
pub(super) fn node(node: &Node, devices_count: usize, enrolment: shapes::Enrolment) -> shapes::Node {
    let record = &node.record;
    let (versions, vital) = (&record.versions, node.vital.as_ref());
    let heard = record.presence.state != State::New;
    shapes::Node {
        id: record.id.to_string(),
        name: record.name.clone().or_else(|| record.own_name.clone()),
        kind: record.kind.clone(),
        state: record.presence.state.as_str().to_owned(),
        site: record.site.clone(),
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
        config: shapes::ConfigVersions::default(),
        enrolment,
    }
}

/// An account's JSON.
#[must_use]
pub(super) fn account(account: &Account) -> shapes::Account {
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
        as_of_ms: account.as_of_ms,
        reason: account.reason.clone(),
    }
}
