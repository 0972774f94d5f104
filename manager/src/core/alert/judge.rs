//! One judgement: a rule, a node, a device, a time; and what follows for its alert.

use fleet_schemas::{
    DeviceId,
    rule::{Phase, Transition},
};

use super::{Alert, Engine, HOLD, Instance, LATE, OPEN, Stage, Word, facts::At};
use crate::core::{fleet::NodeNo, time::millis};

/// The time of a judgement: samples come a little later than ticks, and time does not go back for an instance.
fn not_before(phase: Phase, now_ms: i64) -> i64 {
    match phase {
        Phase::Pending { since_ms } | Phase::Firing { since_ms }
            // Beyond that the hub's clock was set back.
            if since_ms.saturating_sub(now_ms) <= millis(LATE) =>
        {
            now_ms.max(since_ms)
        }
        Phase::Ok | Phase::Pending { .. } | Phase::Firing { .. } => now_ms,
    }
}

impl Engine {
    /// Judges a rule once more. By the clock alone nothing is said of what a node would have to tell.
    pub(super) fn judge(&mut self, node: NodeNo, at: usize, device: &DeviceId, now_ms: i64, by_clock: bool) {
        let (Some(member), judged) = (self.members.get_mut(&node), &self.judged[at]) else { return };
        if !judged.is_about(device) || member.facts.applies.get(at) != Some(&true) {
            return;
        }
        if by_clock && !member.facts.online() && judged.needs_node(device) {
            return;
        }
        if by_clock && judged.lacks_history(member, device, now_ms.saturating_sub(self.started_ms)) {
            return;
        }
        self.judgements += 1;
        let before =
            member.states.get(&at).and_then(|states| states.get(device)).copied().unwrap_or_default();
        let now_ms = not_before(before.state.phase, now_ms);
        let mut after = before;
        let view = At { member, device, started_ms: self.started_ms, now_ms };
        let transition = after.state.step(&judged.rule, &view, now_ms);
        if after.state == before.state {
            return;
        }
        let told = transition.map(|transition| {
            let value = judged.rule.value(&view);
            let message = || judged.rule.render(member.facts.id.as_str(), device, &view);
            let message = (transition != Transition::Resolved).then(message);
            (transition, value, message)
        });
        let states = member.states.entry(at).or_default();
        states.insert(device.clone(), after);
        match told {
            None => {}
            Some((Transition::Pending, value, message)) => {
                self.open(node, at, device, (Stage::Pending, before), (value, message), now_ms);
            }
            Some((Transition::Firing, value, message)) => {
                self.open(node, at, device, (Stage::Firing, before), (value, message), now_ms);
            }
            Some((Transition::Dropped, ..)) => {
                if let Some(number) = before.number {
                    self.forget(node, at, device);
                    self.drop_alert(number, now_ms);
                }
            }
            Some((Transition::Resolved, value, _)) => match before.number {
                // One alert stands for a part of the fleet that is still dark: the node it began with may be back.
                Some(number) if self.stands_for_dark(number) => self.restore(node, at, device, before),
                Some(number) => self.end(number, None, value, now_ms),
                None => {}
            },
        }
    }

    fn restore(&mut self, node: NodeNo, at: usize, device: &DeviceId, before: Instance) {
        let states = self.members.get_mut(&node).and_then(|member| member.states.get_mut(&at));
        if let Some(instance) = states.and_then(|states| states.get_mut(device)) {
            *instance = before;
        }
    }

    fn instance(&mut self, node: NodeNo, at: usize, device: &DeviceId) -> Option<&mut Instance> {
        self.members.get_mut(&node)?.states.get_mut(&at)?.get_mut(device)
    }

    /// The alert of an instance is over; of one that never fired nothing needs to be remembered.
    pub(super) fn forget(&mut self, node: NodeNo, at: usize, device: &DeviceId) {
        if let Some(instance) = self.instance(node, at, device) {
            instance.number = None;
            instance.state.phase = Phase::Ok;
            if instance.state.fired_ms.is_none()
                && let Some(member) = self.members.get_mut(&node)
                && let Some(states) = member.states.get_mut(&at)
            {
                states.remove(device);
            }
        }
    }

    /// An alert begins to wait, or to fire.
    fn open(
        &mut self,
        node: NodeNo,
        at: usize,
        device: &DeviceId,
        (stage, before): (Stage, Instance),
        (value, message): (Option<f64>, Option<String>),
        now_ms: i64,
    ) {
        if before.number.is_none() && self.alerts.len() >= OPEN {
            // It is judged again, and opened when there is room.
            self.restore(node, at, device, before);
            return;
        }
        let number = before.number.unwrap_or_else(|| {
            self.last += 1;
            self.last
        });
        if let Some(instance) = self.instance(node, at, device) {
            instance.number = Some(number);
        }
        let Some(member) = self.members.get(&node) else { return };
        let (rule, facts) = (&self.judged[at].rule, &member.facts);
        let new = || Alert {
            number,
            rule: rule.id.clone(),
            node_no: node,
            node: facts.id.clone(),
            device: device.clone(),
            site: facts.site.clone(),
            metric: rule.field.clone(),
            severity: rule.severity,
            labels: rule.labels.clone(),
            stage,
            since_ms: now_ms,
            fired_ms: None,
            resolved_ms: None,
            reason: None,
            value: None,
            message: String::new(),
            acknowledged: None,
            silenced_until_ms: None,
            inhibited_by: None,
            outage: None,
            told: false,
        };
        let mut alert = self.alerts.remove(&number).unwrap_or_else(new);
        alert.stage = stage;
        alert.value = value;
        alert.message = message.unwrap_or_default();
        if stage == Stage::Pending {
            self.pending.insert(number);
            self.put(alert);
            return;
        }
        self.pending.remove(&number);
        alert.fired_ms = Some(now_ms);
        alert.silenced_until_ms = self.silenced_until(&alert);
        let (down, dark) = (self.judged[at].down, member.facts.dark());
        let needs_node = self.judged[at].needs_node(device);
        if needs_node {
            alert.inhibited_by = self.down_alert(node);
        }
        self.put(alert);
        if down && dark {
            self.untold.insert(number, now_ms.saturating_add(millis(HOLD)));
            self.join_outage(number);
            self.inhibit_behind(node, number);
        } else {
            self.untold.insert(number, now_ms);
            self.tell(number, now_ms);
        }
    }

    /// A pending alert is over; nobody was told.
    pub(super) fn drop_alert(&mut self, number: u64, _now_ms: i64) {
        self.pending.remove(&number);
        if self.alerts.remove(&number).is_some() {
            self.effects.alerts.insert(number, None);
        }
    }

    /// An alert is over.
    pub(super) fn end(&mut self, number: u64, reason: Option<&str>, value: Option<f64>, now_ms: i64) {
        let Some(mut alert) = self.alerts.remove(&number) else { return };
        self.pending.remove(&number);
        self.untold.remove(&number);
        if let Some(at) = self.by_rule.get(&alert.rule).copied() {
            self.forget(alert.node_no, at, &alert.device);
        }
        if alert.stage == Stage::Pending {
            self.effects.alerts.insert(number, None);
            return;
        }
        alert.stage = Stage::Resolved;
        alert.resolved_ms = Some(now_ms);
        alert.reason = reason.map(str::to_owned);
        alert.value = value.or(alert.value);
        if alert.told {
            self.effects.words.push((number, Word::Resolved));
        }
        self.effects.alerts.insert(number, Some(alert));
        self.release_behind(number, now_ms);
    }

    /// Keeps an alert, and has it written.
    pub(super) fn put(&mut self, alert: Alert) {
        self.effects.alerts.insert(alert.number, Some(alert.clone()));
        self.alerts.insert(alert.number, alert);
    }

    /// Changes an open alert, and has it written.
    pub(super) fn change(&mut self, number: u64, change: impl FnOnce(&mut Alert)) {
        if let Some(alert) = self.alerts.get_mut(&number) {
            change(alert);
            self.effects.alerts.insert(number, Some(alert.clone()));
        }
    }
}
