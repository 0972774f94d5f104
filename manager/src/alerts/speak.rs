//! Alerts as JSON, and what is retained of them on `fleet/v1/hub/alert/{rule}/{node}`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use bytes::Bytes;
use fleet_broker::{HubKind, Publisher};
use fleet_schemas::{NodeId, Topic, rule::RuleId, topic::Hub as Told};
use serde_json::{Value, json};

use super::AlertChange;
use crate::{
    api::shapes,
    core::alert::{Alert, Silence, Stage},
    store::state::{AlertFilter, Error, StateStore},
};

/// Alerts that are read for one subscriber, at most.
const RETAINED: usize = 20_000;

/// An alert as `GET alerts` shows it.
#[must_use]
pub fn shown(alert: &Alert) -> shapes::Alert {
    shapes::Alert {
        id: alert.number.to_string(),
        rule: alert.rule.to_string(),
        node: alert.node.to_string(),
        device: (!alert.device.is_node()).then(|| alert.device.to_string()),
        site: alert.site.clone(),
        tz: None,
        metric: alert.metric.as_ref().map(ToString::to_string),
        severity: alert.severity.as_str().to_owned(),
        state: alert.stage.as_str().to_owned(),
        since_ms: alert.since_ms,
        fired_ms: alert.fired_ms,
        resolved_ms: alert.resolved_ms,
        reason: alert.reason.clone(),
        value: alert.value,
        message: alert.message.clone(),
        labels: alert.labels.clone(),
        acknowledged_by: alert.acknowledged.as_ref().map(|acknowledged| acknowledged.by.clone()),
        acknowledged_ms: alert.acknowledged.as_ref().map(|acknowledged| acknowledged.at_ms),
        comment: alert.acknowledged.as_ref().and_then(|acknowledged| acknowledged.comment.clone()),
        silenced_until_ms: alert.silenced_until_ms,
        inhibited_by: alert.inhibited_by.map(|number| number.to_string()),
        outage: alert.outage.as_ref().map(|outage| shapes::Outage {
            site: outage.site.clone(),
            down: outage.down,
            nodes: outage.nodes,
        }),
    }
}

/// A silence as JSON.
pub(super) fn silence(silence: &Silence) -> Value {
    json!({
        "rule": silence.rule, "node": silence.node, "device": silence.device, "site": silence.site,
        "until_ms": silence.until_ms, "comment": silence.comment,
    })
}

/// Whether an alert is on its topic: while it fires, and no other stands for it.
fn is_retained(alert: &Alert) -> bool {
    alert.stage == Stage::Firing && alert.inhibited_by.is_none()
}

/// The payload of a topic: the worst of those that fire, the oldest of these; how many there are stands beside it.
fn payload(firing: &[&Alert]) -> Vec<u8> {
    let worst = firing.iter().max_by_key(|alert| (alert.severity, std::cmp::Reverse(alert.number)));
    let Some(worst) = worst else { return Vec::new() };
    let mut value = json!(shown(worst));
    value["firing_count"] = json!(firing.len());
    value.to_string().into_bytes()
}

/// Says on the topics of alerts that changed what is retained there now.
pub(super) fn publish(publisher: &Publisher, open: &BTreeMap<u64, Alert>, changes: &[AlertChange]) {
    if changes.is_empty() || !publisher.wanted_kind(HubKind::Alert) {
        return;
    }
    let told = changes.iter().filter_map(|change| change.alert.as_ref());
    let told = told.filter(|alert| alert.stage != Stage::Pending);
    let changed: BTreeSet<(&RuleId, &NodeId)> = told.map(|alert| (&alert.rule, &alert.node)).collect();
    let mut firing: BTreeMap<(&RuleId, &NodeId), Vec<&Alert>> =
        changed.iter().map(|key| (*key, Vec::new())).collect();
    for alert in open.values().filter(|alert| is_retained(alert)) {
        if let Some(firing) = firing.get_mut(&(&alert.rule, &alert.node)) {
            firing.push(alert);
        }
    }
    for ((rule, node), firing) in firing {
        let topic = Topic::Hub(Told::Alert(rule.to_string(), node.clone()));
        if publisher.wanted(&topic)
            && let Err(error) = publisher.publish(&topic, Bytes::from(payload(&firing)))
        {
            tracing::warn!(%error, %topic, "an alert was not said on its topic: subscribers do not keep up");
        }
    }
}

/// Shows what is retained on the topics of alerts, until `visit` breaks.
///
/// # Errors
/// [`Error`] of the state file.
pub fn retained(
    state: &StateStore,
    only: Option<&NodeId>,
    visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>,
) -> Result<(), Error> {
    let filter =
        AlertFilter { stages: vec![Stage::Firing], causes: true, limit: RETAINED, ..AlertFilter::default() };
    let (alerts, _) = state.alerts(&filter)?;
    let mut firing: BTreeMap<(&RuleId, &NodeId), Vec<&Alert>> = BTreeMap::new();
    for alert in
        alerts.iter().filter(|alert| is_retained(alert) && only.is_none_or(|only| *only == alert.node))
    {
        firing.entry((&alert.rule, &alert.node)).or_default().push(alert);
    }
    for ((rule, node), firing) in firing {
        let topic = Topic::Hub(Told::Alert(rule.to_string(), node.clone()));
        if visit(&topic.to_string(), &payload(&firing)).is_break() {
            break;
        }
    }
    Ok(())
}
