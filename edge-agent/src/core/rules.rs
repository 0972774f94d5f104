//! Local rules judged: samples in, alerts out.
//!
//! Owns what is known of each series and where each (rule, device) stands. Pure: files, outputs and the clock are the
//! shell's. Times are milliseconds of a clock that never goes back while the agent runs.

mod known;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use fleet_schemas::{
    DeviceId, MetricName,
    event::Severity,
    limits,
    rule::{Phase, Rule, RuleId, State, Target, Transition},
};
use serde::{Deserialize, Serialize};

use self::known::{At, Known};

/// Most rules at one node: each is judged once a second for every device when time can change it.
pub const RULES: usize = 256;

/// Which samples rules want to hear of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    /// Whether there is any rule: then it counts that a device spoke.
    pub any: bool,
    /// Metrics whose values count.
    pub metrics: HashSet<MetricName>,
}

/// What was accepted together, as far as rules are interested.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// Devices that spoke.
    pub devices: BTreeSet<DeviceId>,
    /// Values, in the order in which they were accepted: device, metric, time (Unix milliseconds), value.
    pub values: Vec<(DeviceId, MetricName, i64, f64)>,
}

/// An alert that fires or is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Alert {
    /// The rule.
    pub rule: RuleId,
    /// The device; empty for the node itself.
    pub device: DeviceId,
    /// [`Transition::Firing`] or [`Transition::Resolved`].
    pub transition: Transition,
    /// As the rule says.
    pub severity: Severity,
    /// What people are told.
    pub message: String,
    /// The rule's field.
    pub metric: Option<MetricName>,
    /// The value that decided.
    pub value: Option<f64>,
    /// Who is told beside the hub.
    pub outputs: Vec<String>,
}

/// What outlives the process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Devices that spoke once: their silence counts after a restart too.
    pub devices: Vec<DeviceId>,
    /// Where each (rule, device) stands.
    pub states: Vec<(RuleId, DeviceId, State)>,
}

/// One rule with its devices.
#[derive(Debug)]
struct Judged {
    rule: Rule,
    // Time, a fact or another device may change it: judged by the clock too.
    by_clock: bool,
    states: BTreeMap<DeviceId, State>,
}

/// All rules of a node, and what they know.
#[derive(Debug, Default)]
pub struct Rules {
    node: Arc<str>,
    judged: Vec<Judged>,
    by_metric: HashMap<MetricName, Vec<usize>>,
    known: Known,
    // Where rules stood before the restart, until rules are taken.
    before: Vec<(RuleId, DeviceId, State)>,
    changed: bool,
}

impl Rules {
    /// No rules yet, and what was kept of earlier ones. Silence is counted from `now_ms` on.
    #[must_use]
    pub fn new(node: &str, kept: Kept, now_ms: i64) -> Self {
        let mut known = Known::default();
        for device in kept.devices.into_iter().take(limits::DEVICES_PER_NODE) {
            known.spoke(device, now_ms);
        }
        Self { node: node.into(), known, before: kept.states, ..Self::default() }
    }

    /// Takes other rules. Where a rule of the same id stood, it stands; one that is gone is over.
    pub fn replace(&mut self, rules: Vec<Rule>, now_ms: i64) -> Vec<Alert> {
        let before = std::mem::take(&mut self.before).into_iter();
        let mut gone = Vec::new();
        let mut states = BTreeMap::new();
        for (rule, device, state) in before {
            let fires = matches!(state.phase, Phase::Firing { .. });
            if fires && !rules.iter().any(|there| there.id == rule) {
                gone.push(removed(&rule, device.clone(), None));
            }
            states.insert((rule, device), state);
        }
        for judged in self.judged.drain(..) {
            let stays = rules.iter().any(|rule| rule.id == judged.rule.id);
            for (device, state) in judged.states {
                match (stays, state.phase) {
                    (true, _) => drop(states.insert((judged.rule.id.clone(), device), state)),
                    (false, Phase::Firing { .. }) => {
                        gone.push(removed(&judged.rule.id, device, Some(&judged.rule)));
                    }
                    (false, Phase::Ok | Phase::Pending { .. }) => {}
                }
            }
        }
        self.by_metric.clear();
        self.known.look_at(&rules);
        for (index, rule) in rules.into_iter().enumerate() {
            let mut metrics: HashSet<&MetricName> = rule.field.iter().collect();
            let conditions = || [Some(&rule.condition), rule.clear.as_ref()].into_iter().flatten();
            let mut by_clock = conditions().any(|condition| condition.uses_time());
            for condition in conditions() {
                let windows = condition.windows();
                let named = condition.series().into_iter().chain(windows.iter().map(|(series, _)| *series));
                for series in named {
                    metrics.insert(&series.metric);
                    by_clock |= series.device.is_some();
                }
            }
            for metric in metrics {
                self.by_metric.entry(metric.clone()).or_default().push(index);
            }
            if let Target::Device(device) = &rule.target {
                self.known.expect(device.clone(), now_ms);
            }
            let of_rule = states.iter().filter(|((id, _), _)| *id == rule.id);
            let states = of_rule.map(|((_, device), state)| (device.clone(), *state)).collect();
            self.judged.push(Judged { rule, by_clock, states });
        }
        self.changed = true;
        gone
    }

    /// What rules want to hear of.
    #[must_use]
    pub fn interest(&self) -> Interest {
        Interest { any: !self.judged.is_empty(), metrics: self.by_metric.keys().cloned().collect() }
    }

    /// How many rules there are, and how many alerts fire.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let firing = |judged: &Judged| {
            judged.states.values().filter(|state| matches!(state.phase, Phase::Firing { .. })).count()
        };
        (self.judged.len(), self.judged.iter().map(firing).sum())
    }

    /// Takes samples, each judged by itself. `wall_ms` tells late ones: they raise nothing.
    pub fn take(&mut self, seen: Seen, now_ms: i64, wall_ms: i64) -> Vec<Alert> {
        let mut alerts = Vec::new();
        for device in seen.devices {
            self.changed |= self.known.spoke(device, now_ms);
        }
        for (device, metric, time_ms, value) in seen.values {
            if !self.known.take(&device, &metric, (time_ms, value), now_ms, wall_ms) {
                continue;
            }
            for at in self.by_metric.get(&metric).cloned().unwrap_or_default() {
                alerts.extend(self.judge(at, &device, now_ms));
            }
        }
        alerts
    }

    /// Judges what time can change.
    pub fn tick(&mut self, now_ms: i64) -> Vec<Alert> {
        let mut alerts = Vec::new();
        for at in 0..self.judged.len() {
            for device in self.due(at) {
                alerts.extend(self.judge(at, &device, now_ms));
            }
        }
        alerts
    }

    /// What must outlive the process, if it changed since it was last asked for.
    pub fn kept(&mut self) -> Option<Kept> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let states = self.judged.iter().flat_map(|judged| {
            let telling = judged.states.iter().filter(|(_, state)| **state != State::default());
            telling.map(|(device, state)| (judged.rule.id.clone(), device.clone(), *state))
        });
        let states = self.before.iter().cloned().chain(states).collect();
        Some(Kept { devices: self.known.devices().cloned().collect(), states })
    }

    /// What was kept could not be written: it is asked for again.
    pub fn keep_again(&mut self) {
        self.changed = true;
    }

    /// Devices that a rule is judged for by the clock.
    fn due(&self, at: usize) -> Vec<DeviceId> {
        let judged = &self.judged[at];
        if !judged.by_clock {
            let waits =
                judged.states.iter().filter(|(_, state)| matches!(state.phase, Phase::Pending { .. }));
            return waits.map(|(device, _)| device.clone()).collect();
        }
        match &judged.rule.target {
            Target::Device(device) => vec![device.clone()],
            Target::Any => self.known.devices().cloned().collect(),
        }
    }

    fn judge(&mut self, at: usize, device: &DeviceId, now_ms: i64) -> Option<Alert> {
        let judged = &mut self.judged[at];
        // That the node itself is silent says nothing: it is the one that judges.
        let itself = device.is_node() && judged.rule.target == Target::Any && judged.rule.field.is_none();
        if itself || !judged.rule.target.fits(device) {
            return None;
        }
        let view = At { known: &self.known, device, now_ms };
        let before = judged.states.get(device).copied().unwrap_or_default();
        let mut state = before;
        let transition = state.step(&judged.rule, &view, now_ms);
        if state != before {
            judged.states.insert(device.clone(), state);
        }
        let transition =
            transition.filter(|told| matches!(told, Transition::Firing | Transition::Resolved))?;
        self.changed = true;
        let message = judged.rule.render(&self.node, device, &view);
        Some(Alert {
            rule: judged.rule.id.clone(),
            device: device.clone(),
            transition,
            severity: judged.rule.severity,
            message: if transition == Transition::Resolved { format!("over: {message}") } else { message },
            metric: judged.rule.field.clone(),
            value: judged.rule.value(&view),
            outputs: judged.rule.outputs.clone(),
        })
    }
}

/// An alert whose rule went away. Of one that went while the agent was down, only the name is known.
fn removed(id: &RuleId, device: DeviceId, rule: Option<&Rule>) -> Alert {
    Alert {
        rule: id.clone(),
        device,
        transition: Transition::Resolved,
        severity: rule.map_or(Severity::Info, |rule| rule.severity),
        message: format!("over: the rule {id} is no longer there"),
        metric: rule.and_then(|rule| rule.field.clone()),
        value: None,
        outputs: rule.map(|rule| rule.outputs.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
