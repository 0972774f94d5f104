//! What comes in: nodes as they change, samples as they are committed, reports of devices, the clock.

use std::time::Duration;

use fleet_schemas::{
    DeviceId, MetricName,
    device::{Report, State as DeviceState},
    limits,
    rule::{Phase, Window},
    telemetry::Samples,
};

use super::{
    Count, Engine, Facts, LATE, Member, Subject, WINDOWS,
    facts::{Book, Device, OfSeries},
};
use crate::core::{
    fleet::NodeNo,
    presence::{Cause, State},
    time::millis,
};

/// A time that is further ahead than this is a wrong clock, and does not make later samples old.
const AHEAD_MS: i64 = 60_000;

/// A batch of samples that was committed.
#[derive(Debug, Clone, Copy)]
pub struct Arrived<'a> {
    /// The node's number.
    pub node: NodeNo,
    /// Whether it came over the backfill lane.
    pub late: bool,
    /// When it arrived, hub time, Unix milliseconds.
    pub recv_ms: i64,
    /// To be added to the times of the samples.
    pub shift_ms: i64,
    /// The samples.
    pub samples: &'a Samples,
}

impl Engine {
    /// A node as it is now: judges what facts can change.
    pub fn node(&mut self, facts: Facts, now_ms: i64) {
        let number = facts.number;
        self.meet(facts, now_ms);
        let Some(member) = self.members.get(&number) else { return };
        let offline = matches!(member.facts.presence, State::Offline);
        let unselected: Vec<_> = member
            .states
            .iter()
            .filter(|(at, _)| !member.facts.applies.get(**at).is_some_and(|applies| *applies))
            .collect();
        let mut over: Vec<u64> = Vec::new();
        for (_, states) in unselected {
            over.extend(states.values().filter_map(|instance| instance.number));
        }
        for number in over {
            self.end(number, Some("the rule does not select the node any more"), None, now_ms);
        }
        if offline {
            self.drop_pending(number, now_ms);
        }
        for at in 0..self.judged.len() {
            if self.judged[at].by_fact {
                self.judge_all(number, at, now_ms, false);
            }
        }
    }

    /// Notes how a node is, and counts it among those that are dark.
    fn meet(&mut self, facts: Facts, now_ms: i64) {
        let number = facts.number;
        if let Some(member) = self.members.get_mut(&number) {
            let away = |presence| {
                !matches!(presence, State::Online | State::Suspect { cause: Cause::Late | Cause::Will })
            };
            if away(member.facts.presence) && facts.online() {
                member.back_ms = now_ms;
            }
            let before = std::mem::replace(&mut member.facts, facts);
            let after = member.facts.clone();
            if (before.counts(), before.dark(), &before.site) != (after.counts(), after.dark(), &after.site) {
                self.count(&before, -1);
                self.count(&after, 1);
            }
            return;
        }
        let mut member = Member {
            book: Book { losses: self.books.get(&number).cloned().unwrap_or_default(), standing: None },
            devices: [(DeviceId::node(), Device::default())].into(),
            states: std::collections::HashMap::new(),
            back_ms: now_ms,
            known: false,
            facts,
        };
        for (rule, device, instance) in self.waiting.remove(&number).unwrap_or_default() {
            if let Some(at) = self.by_rule.get(&rule) {
                member.devices.entry(device.clone()).or_default();
                member.states.entry(*at).or_default().insert(device, instance);
            }
        }
        let facts = member.facts.clone();
        self.members.insert(number, member);
        self.count(&facts, 1);
    }

    fn count(&mut self, facts: &Facts, by: isize) {
        if !facts.counts() {
            return;
        }
        let dark = if facts.dark() { by } else { 0 };
        let add = |count: &mut Count| {
            count.nodes = count.nodes.saturating_add_signed(by);
            count.dark = count.dark.saturating_add_signed(dark);
        };
        add(&mut self.all);
        let site = self.sites.entry(facts.site.clone()).or_default();
        add(site);
        if site.nodes == 0 {
            self.sites.remove(&facts.site);
        }
    }

    /// A node was removed: its alerts are over.
    pub fn removed(&mut self, number: NodeNo, now_ms: i64) {
        let of_node = self.alerts.values().filter(|alert| alert.node_no == number);
        let numbers: Vec<_> = of_node.map(|alert| alert.number).collect();
        for alert in numbers {
            self.end(alert, Some("the node was removed"), None, now_ms);
        }
        self.waiting.remove(&number);
        if self.books.remove(&number).is_some() {
            self.effects.losses.insert(number, None);
        }
        if let Some(member) = self.members.remove(&number) {
            let windows = member.devices.values().flat_map(|device| device.series.values());
            self.windows -= windows.map(|series| series.windows.len()).sum::<usize>().min(self.windows);
            self.count(&member.facts, -1);
        }
    }

    /// Every node was told after a start: alerts of those that are gone are over.
    pub fn settle(&mut self, now_ms: i64) {
        let gone: Vec<_> = self.waiting.keys().copied().collect();
        gone.into_iter().for_each(|number| self.removed(number, now_ms));
    }

    /// Whether the devices of a node were read from the store.
    #[must_use]
    pub fn knows(&self, number: NodeNo) -> bool {
        self.members.get(&number).is_none_or(|member| member.known)
    }

    /// Something that was said of devices was missed: all of them are read from the store again.
    pub fn missed(&mut self) {
        self.members.values_mut().for_each(|member| member.known = false);
    }

    /// The latest values of a node as the store has them, and the devices that it reported, before what is followed.
    pub fn know(&mut self, number: NodeNo, latest: Vec<(DeviceId, MetricName, i64, f64)>) {
        let Some(member) = self.members.get_mut(&number) else { return };
        member.known = true;
        for (id, metric, time_ms, value) in latest {
            if member.devices.len() > limits::DEVICES_PER_NODE && !member.devices.contains_key(&id) {
                continue;
            }
            let device = member.devices.entry(id).or_default();
            if self.by_metric.contains_key(&metric) {
                let series = device.series.entry(metric).or_default();
                if series.latest.is_none_or(|(known, _)| known < time_ms) {
                    series.latest = Some((time_ms, value));
                }
            }
        }
    }

    /// What a node said of a device, times by hub time.
    pub fn device(&mut self, number: NodeNo, report: &Report, now_ms: i64) {
        let Some(member) = self.members.get_mut(&number) else { return };
        if report.state == DeviceState::Removed {
            member.devices.remove(&report.device);
            let states = member.states.values().filter_map(|states| states.get(&report.device));
            let over: Vec<u64> = states.filter_map(|instance| instance.number).collect();
            for number in over {
                self.end(number, Some("the device was removed"), None, now_ms);
            }
            return;
        }
        if member.devices.len() > limits::DEVICES_PER_NODE && !member.devices.contains_key(&report.device) {
            return;
        }
        let device = member.devices.entry(report.device.clone()).or_default();
        device.state = Some(report.state);
        device.until_ms = report.until_ms;
        device.firmware = report.firmware.as_ref().map(ToString::to_string);
        device.seen_ms = device.seen_ms.max(report.last_seen_ms.unwrap_or(i64::MIN).min(now_ms));
        for at in 0..self.judged.len() {
            if self.judged[at].by_fact && self.judged[at].subject != Subject::Node {
                self.judge(number, at, &report.device, now_ms, false);
            }
        }
    }

    /// Series of a batch whose windows want history before it: device, metric, the longest window.
    #[must_use]
    pub fn wants_history(&self, arrived: Arrived<'_>) -> Vec<(DeviceId, MetricName, Duration)> {
        let Some(member) = self.members.get(&arrived.node).filter(|_| !arrived.late) else {
            return Vec::new();
        };
        let filled = |device: &DeviceId, metric: &MetricName| {
            let series = member.devices.get(device).and_then(|device| device.series.get(metric));
            series.is_some_and(|series| series.filled)
        };
        let wanted = arrived.samples.series.iter().filter_map(|series| {
            let span = self.spans.get(&series.m)?.iter().max()?;
            (!filled(&series.d, &series.m)).then(|| (series.d.clone(), series.m.clone(), *span))
        });
        wanted.collect()
    }

    /// History of a series before what is followed, oldest first.
    pub fn history(&mut self, number: NodeNo, device: DeviceId, metric: MetricName, points: &[(i64, f64)]) {
        let Some(series) = self.series(number, device, metric) else { return };
        series.filled = true;
        for (_, window) in &mut series.windows {
            points.iter().for_each(|(time, value)| window.push(*time, *value));
        }
    }

    /// A series with its windows, made when there is room.
    fn series(&mut self, number: NodeNo, device: DeviceId, metric: MetricName) -> Option<&mut OfSeries> {
        let member = self.members.get_mut(&number)?;
        if member.devices.len() > limits::DEVICES_PER_NODE && !member.devices.contains_key(&device) {
            return None;
        }
        let device = member.devices.entry(device).or_default();
        let spans = self.spans.get(&metric);
        let series = device.series.entry(metric).or_default();
        for span in spans.into_iter().flatten() {
            if self.windows < WINDOWS && !series.windows.iter().any(|(held, _)| held == span) {
                self.windows += 1;
                series.windows.push((*span, Window::new(*span)));
            }
        }
        Some(series)
    }

    /// Samples that were committed: each is judged by itself, in the order of their times.
    pub fn samples(&mut self, arrived: Arrived<'_>) {
        let Arrived { node, late, recv_ms, shift_ms, samples } = arrived;
        if late || !self.members.contains_key(&node) {
            return;
        }
        let times = samples.times();
        let oldest_ms = recv_ms.saturating_sub(millis(LATE));
        let newest_ms = times.iter().max().map_or(i64::MIN, |time| time.saturating_add(shift_ms));
        if newest_ms < oldest_ms {
            return;
        }
        let mut fresh = Vec::new();
        for (index, series) in samples.series.iter().enumerate() {
            if let Some(member) = self.members.get_mut(&node)
                && (member.devices.len() <= limits::DEVICES_PER_NODE
                    || member.devices.contains_key(&series.d))
            {
                let device = member.devices.entry(series.d.clone()).or_default();
                device.seen_ms = device.seen_ms.max(recv_ms);
            }
            if self.by_metric.contains_key(&series.m) {
                let values = times.iter().zip(samples.values(series)).filter(|(_, value)| !value.is_nan());
                let timed = values.map(|(time, value)| (time.saturating_add(shift_ms), index, value));
                fresh.extend(timed.filter(|(time, _, _)| *time >= oldest_ms));
            }
        }
        fresh.sort_by_key(|(time, _, _)| *time);
        for (time_ms, index, value) in fresh {
            let of = &samples.series[index];
            if self.take_sample(node, (&of.d, &of.m), (time_ms, value), recv_ms) {
                for at in 0..self.by_metric.get(&of.m).map_or(0, Vec::len) {
                    let at = self.by_metric[&of.m][at];
                    self.judge(node, at, &of.d, time_ms.min(recv_ms), false);
                }
            }
        }
    }

    /// Takes one sample; whether it is worth a judgement.
    fn take_sample(
        &mut self,
        node: NodeNo,
        (device, metric): (&DeviceId, &MetricName),
        (time_ms, value): (i64, f64),
        recv_ms: i64,
    ) -> bool {
        let known = |engine: &Self| {
            let device = engine.members.get(&node)?.devices.get(device)?;
            Some(device.series.get(metric)?.windows.len() == engine.spans.get(metric).map_or(0, Vec::len))
        };
        // The names are copied for a new series only.
        let series = if known(self) == Some(true) {
            let device = self.members.get_mut(&node).and_then(|member| member.devices.get_mut(device));
            device.and_then(|device| device.series.get_mut(metric))
        } else {
            self.series(node, device.clone(), metric.clone())
        };
        let Some(series) = series else { return false };
        let newer = |(latest, _): (i64, f64)| time_ms >= latest || latest > recv_ms.saturating_add(AHEAD_MS);
        if !series.latest.is_none_or(newer) {
            return false;
        }
        series.latest = Some((time_ms, value));
        series.filled = true;
        for (_, window) in &mut series.windows {
            window.push(time_ms.min(recv_ms), value);
        }
        true
    }

    /// Judges what time can change, and does what was to wait.
    pub fn tick(&mut self, now_ms: i64) {
        self.end_silences(now_ms);
        self.end_outages(now_ms);
        for at in 0..self.judged.len() {
            if self.judged[at].by_clock {
                let nodes: Vec<_> = self.members.keys().copied().collect();
                nodes.into_iter().for_each(|node| self.judge_all(node, at, now_ms, true));
            }
        }
        let pending: Vec<_> = self.pending.iter().copied().collect();
        for number in pending {
            let Some(alert) = self.alerts.get(&number) else { continue };
            let Some(at) = self.by_rule.get(&alert.rule).copied() else { continue };
            if !self.judged[at].by_clock {
                let (node, device) = (alert.node_no, alert.device.clone());
                self.judge(node, at, &device, now_ms, true);
            }
        }
        self.tell_due(now_ms);
    }

    /// Judges a rule for everything at a node that it is about.
    fn judge_all(&mut self, node: NodeNo, at: usize, now_ms: i64, by_clock: bool) {
        let Some(member) = self.members.get(&node) else { return };
        if member.facts.applies.get(at) != Some(&true) {
            return;
        }
        match &self.judged[at].subject {
            Subject::Node => self.judge(node, at, &DeviceId::node(), now_ms, by_clock),
            Subject::Device(device) => {
                let device = device.clone();
                self.judge(node, at, &device, now_ms, by_clock);
            }
            Subject::Each => {
                let devices: Vec<_> = member.devices.keys().cloned().collect();
                devices.into_iter().for_each(|device| self.judge(node, at, &device, now_ms, by_clock));
            }
        }
    }

    /// The node is away: what waited at its devices was not seen to last.
    fn drop_pending(&mut self, node: NodeNo, now_ms: i64) {
        let Some(member) = self.members.get_mut(&node) else { return };
        let mut dropped = Vec::new();
        for (at, states) in &mut member.states {
            for (device, instance) in states {
                let waits = matches!(instance.state.phase, Phase::Pending { .. });
                if waits && self.judged[*at].needs_node(device) {
                    instance.state.phase = Phase::Ok;
                    dropped.extend(instance.number.take());
                }
            }
        }
        for number in dropped {
            self.drop_alert(number, now_ms);
        }
    }
}
