//! The engine against scenarios in `scenarios/`: rules, steps, and below each step what follows.
//!
//! A file is checked as a whole; `FLEET_BLESS=1` writes it anew, to be read before it is committed. Between steps the
//! clock ticks every second, and nodes that are online send a heartbeat every ten.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use fleet_schemas::{
    DeviceId, MetricName, NodeId,
    device::{Report, State as DeviceState},
    rule,
    telemetry::{Builder, Sample},
};

use super::{
    Acknowledged, Alert, Arrived, Effects, Engine, Facts, Found, Losses, Met, Silence, Stage, Word, scope,
};
use crate::core::{
    config,
    fleet::NodeNo,
    ledger::Standing,
    presence::{Cause, State},
};

/// Hub time at the start of every scenario, Unix milliseconds.
const START_MS: i64 = 1_790_000_000_000;
/// So many lines of one kind at one time are told as a number.
const LINES: usize = 4;

struct Play {
    engine: Engine,
    rules: Vec<rule::Rule>,
    nodes: BTreeMap<NodeNo, Facts>,
    numbers: BTreeMap<String, NodeNo>,
    /// What was committed.
    alerts: BTreeMap<u64, Alert>,
    silences: BTreeMap<u64, Silence>,
    losses: BTreeMap<NodeNo, Losses>,
    latest: BTreeMap<(NodeNo, DeviceId, MetricName), (i64, f64)>,
    second: i64,
    told: String,
}

impl Play {
    fn new(rules: Vec<rule::Rule>) -> Self {
        let mut engine = Engine::new(Found::default(), START_MS);
        engine.replace(rules.clone(), START_MS);
        Self {
            engine,
            rules,
            nodes: BTreeMap::new(),
            numbers: BTreeMap::new(),
            alerts: BTreeMap::new(),
            silences: BTreeMap::new(),
            losses: BTreeMap::new(),
            latest: BTreeMap::new(),
            second: 0,
            told: String::new(),
        }
    }

    fn now_ms(&self) -> i64 {
        START_MS + self.second * 1_000
    }

    fn wait_until(&mut self, second: i64) {
        while self.second < second {
            self.second += 1;
            let now_ms = self.now_ms();
            if self.second % 10 == 0 {
                let online: Vec<_> = self.nodes.values_mut().filter(|facts| facts.online()).collect();
                let facts: Vec<_> = online
                    .into_iter()
                    .map(|facts| {
                        facts.last_seen_ms = now_ms;
                        facts.clone()
                    })
                    .collect();
                facts.into_iter().for_each(|facts| self.engine.node(facts, now_ms));
            }
            self.engine.tick(now_ms);
            self.write();
        }
    }

    fn step(&mut self, words: &[&str]) {
        let now_ms = self.now_ms();
        match words {
            ["node", names, state, options @ ..] => {
                for name in names_of(names) {
                    self.node(&name, state, options);
                }
            }
            ["remove", name] => {
                let number = self.numbers[*name];
                self.nodes.remove(&number);
                self.engine.removed(number, now_ms);
            }
            ["sample", place, metric, value, options @ ..] => self.sample(place, metric, value, options),
            ["device", place, state] => {
                let (node, device) = self.place(place);
                let state =
                    [DeviceState::Online, DeviceState::Offline, DeviceState::Sleeping, DeviceState::Removed]
                        .into_iter()
                        .find(|known| known.as_str() == *state)
                        .unwrap();
                let report = Report {
                    device,
                    state,
                    kind: None,
                    name: None,
                    firmware: None,
                    capabilities: vec![],
                    heartbeat_ms: None,
                    sleep_ms: None,
                    until_ms: None,
                    last_seen_ms: None,
                    unsequenced: false,
                };
                self.engine.device(node, &report, now_ms);
            }
            ["lost", name, records] => {
                let number = self.numbers[*name];
                let at = Met { now_ms, is_old: false };
                self.engine.book(number, records.parse().unwrap(), 0, Some(Standing::Balanced), at);
                self.engine.node(self.nodes[&number].clone(), now_ms);
            }
            ["silence", options @ ..] => {
                let until_ms = now_ms + seconds(option(options, "for").unwrap()) * 1_000;
                let silence = Silence {
                    number: 0,
                    rule: option(options, "rule").map(|id| rule::RuleId::parse(id).unwrap()),
                    node: option(options, "node").map(|id| NodeId::parse(id).unwrap()),
                    device: None,
                    site: option(options, "site").map(str::to_owned),
                    until_ms,
                    since_ms: now_ms,
                    by: "operator ada".to_owned(),
                    comment: None,
                };
                self.engine.silence(silence).unwrap();
            }
            ["acknowledge", rule, place] => {
                let (node, device) = self.place(place);
                let is = |alert: &&Alert| {
                    alert.rule.as_str() == *rule && alert.node_no == node && alert.device == device
                };
                let number = self.engine.alerts().values().find(is).unwrap().number;
                let by = Acknowledged { by: "operator ada".to_owned(), at_ms: now_ms, comment: None };
                self.engine.acknowledge(number, by).unwrap();
            }
            ["restart", ..] => self.restart(),
            ["without", id] => {
                self.rules.retain(|rule| rule.id.as_str() != *id);
                self.engine.replace(self.rules.clone(), now_ms);
                self.tell_nodes();
            }
            ["narrow", id, device] => {
                let rule = self.rules.iter_mut().find(|rule| rule.id.as_str() == *id).unwrap();
                rule.target = rule::Target::Device(DeviceId::parse(device).unwrap());
                self.engine.replace(self.rules.clone(), now_ms);
                self.tell_nodes();
            }
            ["wait"] => {}
            other => panic!("{other:?} is no step"),
        }
        self.write();
    }

    /// The process ends, and another goes on from what was committed; `restart 60s` is away for that long.
    fn restart(&mut self) {
        let open = |alert: &&Alert| alert.stage != Stage::Resolved;
        let found = Found {
            open: self.alerts.values().filter(open).cloned().collect(),
            ended: self.alerts.values().filter(|alert| !open(alert)).cloned().collect(),
            silences: self.silences.values().cloned().collect(),
            losses: self.losses.clone().into_iter().collect(),
            last: self.alerts.keys().next_back().copied().unwrap_or(0),
            last_silence: self.silences.keys().next_back().copied().unwrap_or(0),
        };
        self.engine = Engine::new(found, self.now_ms());
        self.engine.replace(self.rules.clone(), self.now_ms());
        for facts in self.nodes.values_mut() {
            if matches!(facts.presence, State::Online | State::Suspect { .. }) {
                facts.presence = State::Suspect { cause: Cause::HubRestart };
            }
        }
        self.tell_nodes();
        self.engine.settle(self.now_ms());
        for number in self.nodes.keys() {
            let of_node = self.latest.iter().filter(|((node, ..), _)| node == number);
            let latest = of_node
                .map(|((_, device, metric), (at, value))| (device.clone(), metric.clone(), *at, *value));
            self.engine.know(*number, latest.collect());
        }
    }

    fn tell_nodes(&mut self) {
        let now_ms = self.now_ms();
        for facts in self.nodes.values_mut() {
            facts.applies = vec![true; self.rules.len()].into();
            self.engine.node(facts.clone(), now_ms);
        }
    }

    fn node(&mut self, name: &str, state: &str, options: &[&str]) {
        let next = NodeNo::try_from(self.numbers.len()).unwrap() + 1;
        let number = *self.numbers.entry(name.to_owned()).or_insert(next);
        let now_ms = self.now_ms();
        let applies = vec![true; self.rules.len()].into();
        let facts = self.nodes.entry(number).or_insert_with(|| Facts {
            number,
            id: NodeId::parse(name).unwrap(),
            site: option(options, "site").map(str::to_owned),
            kind: String::new(),
            presence: State::New,
            flapping: false,
            last_seen_ms: now_ms,
            outbox_records: 0,
            outbox_ratio: None,
            clock_offset_ms: None,
            certificate_ms: None,
            agent: "0.1.0".to_owned(),
            firmware: None,
            config: config::State::InSync,
            figures: Vec::new(),
            applies,
        });
        facts.presence = match state {
            "online" => State::Online,
            "late" => State::Suspect { cause: Cause::Late },
            "offline" => State::Offline,
            "sleeping" => State::Sleeping { until_ms: i64::MAX },
            other => panic!("{other:?} is no state"),
        };
        if facts.online() {
            facts.last_seen_ms = now_ms;
        }
        if let Some(ratio) = option(options, "outbox") {
            facts.outbox_ratio = Some(ratio.parse().unwrap());
        }
        let facts = facts.clone();
        self.engine.node(facts, now_ms);
    }

    fn place(&self, place: &str) -> (NodeNo, DeviceId) {
        let (node, device) = place.split_once('/').unwrap_or((place, ""));
        (self.numbers[node], DeviceId::parse(device).unwrap())
    }

    fn sample(&mut self, place: &str, metric: &str, values: &str, options: &[&str]) {
        let (node, device) = self.place(place);
        let age_s = option(options, "age").map_or(0, seconds);
        let mut builder = Builder::default();
        let values: Vec<f64> = values.split(',').map(|value| value.parse().unwrap()).collect();
        for (back, value) in values.iter().rev().enumerate().rev() {
            let time_ms = self.now_ms() - (age_s + i64::try_from(back).unwrap()) * 1_000;
            let metric = MetricName::parse(metric).unwrap();
            let key = (node, device.clone(), metric.clone());
            let newest = self.latest.entry(key).or_insert((time_ms, *value));
            if newest.0 <= time_ms {
                *newest = (time_ms, *value);
            }
            builder.push(Sample { time_ms, device: device.clone(), metric, unit: None, value: *value });
        }
        let samples = builder.build();
        let late = options.contains(&"backfill");
        let recv_ms = self.now_ms();
        self.engine.samples(Arrived { node, late, recv_ms, shift_ms: 0, samples: &samples });
    }

    /// Commits what follows, and writes down what changed.
    fn write(&mut self) {
        let Effects { alerts, words, silences, losses } = self.engine.take();
        let mut lines: Vec<(&'static str, String, String)> = Vec::new();
        let name = |alert: &Alert| match alert.device.as_str() {
            "" => format!("{} {}", alert.rule, alert.node),
            device => format!("{} {}/{device}", alert.rule, alert.node),
        };
        let both = self
            .alerts
            .iter()
            .chain(alerts.iter().filter_map(|(number, alert)| Some((number, alert.as_ref()?))));
        let names: BTreeMap<u64, String> = if alerts.is_empty() {
            BTreeMap::new()
        } else {
            both.map(|(number, alert)| (*number, name(alert))).collect()
        };
        for (number, alert) in alerts {
            let before = self.alerts.get(&number).cloned();
            let rule =
                alert.as_ref().or(before.as_ref()).map_or(String::new(), |alert| alert.rule.to_string());
            let mut line = |word, text| lines.push((word, rule.clone(), text));
            let Some(alert) = alert else {
                if let Some(before) = self.alerts.remove(&number) {
                    line("dropped", name(&before));
                }
                continue;
            };
            if before.as_ref().map(|before| before.stage) != Some(alert.stage) {
                let reason = alert.reason.as_ref().map_or(String::new(), |reason| format!(", {reason}"));
                line(alert.stage.as_str(), name(&alert) + &reason);
            }
            if before.as_ref().and_then(|before| before.inhibited_by) != alert.inhibited_by {
                match alert.inhibited_by {
                    Some(by) => line("inhibited", format!("{} by {}", name(&alert), names[&by])),
                    None => line("released", name(&alert)),
                }
            }
            if before.as_ref().and_then(|before| before.silenced_until_ms) != alert.silenced_until_ms {
                let word = if alert.silenced_until_ms.is_some() { "silenced" } else { "speaks again" };
                line(word, name(&alert));
            }
            if before.as_ref().is_none_or(|before| before.acknowledged.is_none())
                && let Some(by) = &alert.acknowledged
            {
                line("acknowledged", format!("{} by {}", name(&alert), by.by));
            }
            self.alerts.insert(number, alert);
        }
        for (number, word) in words {
            let alert = &self.alerts[&number];
            let told = match word {
                Word::Firing => ("told firing", format!("{}: {}", name(alert), alert.message)),
                Word::Resolved => ("told resolved", name(alert)),
            };
            lines.push((told.0, alert.rule.to_string(), told.1));
        }
        for (number, silence) in silences {
            match silence {
                Some(silence) => drop(self.silences.insert(number, silence)),
                None => drop(self.silences.remove(&number)),
            }
        }
        for (number, lost) in losses {
            match lost {
                Some(lost) => drop(self.losses.insert(number, lost)),
                None => drop(self.losses.remove(&number)),
            }
        }
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (word, rule, _) in &lines {
            *counts.entry((word, rule)).or_default() += 1;
        }
        let mut summed = std::collections::BTreeSet::new();
        for (word, rule, text) in &lines {
            let count = counts[&(*word, rule.as_str())];
            if count <= LINES {
                writeln!(self.told, "    {}s {word} {text}", self.second).unwrap();
            } else if summed.insert((word, rule)) {
                writeln!(self.told, "    {}s {word} {rule} at {count} nodes or devices", self.second)
                    .unwrap();
            }
        }
    }
}

/// `a`, or `n[1-40]`.
fn names_of(text: &str) -> Vec<String> {
    let Some((stem, range)) = text.split_once('[') else { return vec![text.to_owned()] };
    let (from, to) = range.trim_end_matches(']').split_once('-').unwrap();
    let (from, to): (u32, u32) = (from.parse().unwrap(), to.parse().unwrap());
    (from..=to).map(|n| format!("{stem}{n}")).collect()
}

fn option<'a>(options: &[&'a str], key: &str) -> Option<&'a str> {
    options.iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='))
}

fn seconds(text: &str) -> i64 {
    i64::try_from(rule::span(text).unwrap().as_secs()).unwrap()
}

fn play(text: &str) -> String {
    let (rules, steps) = text.split_once("\n---\n").expect("rules, a line of ---, steps");
    let body: String =
        rules.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    let read = rule::read(&body, scope()).unwrap();
    let mut stage = Play::new(read);
    stage.told = format!("{rules}\n---\n");
    for line in steps.lines().filter(|line| !line.starts_with("    ")) {
        if line.starts_with('#') || line.is_empty() {
            writeln!(stage.told, "{line}").unwrap();
            continue;
        }
        let words: Vec<_> = line.split_whitespace().collect();
        let at = if words[0] == "0s" { 0 } else { seconds(words[0]) };
        assert!(at >= stage.second, "{line}: time goes on");
        stage.wait_until(at);
        writeln!(stage.told, "{line}").unwrap();
        stage.step(&words[1..]);
    }
    stage.told
}

#[test]
fn scenarios_go_as_written() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/core/alert/scenarios"));
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 9, "{files:?}");
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let played = play(&text);
        if std::env::var_os("FLEET_BLESS").is_some() {
            fs::write(&path, &played).unwrap();
            continue;
        }
        assert!(played == text, "{} goes otherwise:\n{played}", path.display());
    }
}
