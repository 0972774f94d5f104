//! Rules over samples of the past: the engine itself, fed in the order of their times. Pure.

use std::collections::{BTreeMap, BTreeSet};

use fleet_schemas::{
    DeviceId, MetricName, NodeId,
    rule::Rule,
    telemetry::{Builder, Sample},
};
use serde::{Deserialize, Serialize};

use crate::{
    api::shapes,
    core::{
        alert::{Alert, Arrived, Engine, Found, Stage},
        fleet::{Node, NodeNo, Record},
        presence::State,
    },
};

/// Most samples of one run.
const SAMPLES: usize = 2_000_000;
/// The clock ticks once a second, and more seldom when the samples span more than this many of them.
const TICKS: i64 = 100_000;
/// The node of samples that name none.
const NODE: &str = "node";

/// Samples and the nodes they are of.
#[derive(Debug, Default)]
pub(super) struct Given {
    nodes: BTreeMap<String, Record>,
    samples: Vec<One>,
}

/// One sample.
#[derive(Debug, Clone, Deserialize)]
struct One {
    #[serde(alias = "time")]
    time_ms: i64,
    #[serde(default)]
    node: String,
    #[serde(default)]
    device: Option<String>,
    metric: String,
    value: f64,
}

/// What would have happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Seen {
    /// When, Unix milliseconds.
    pub at_ms: i64,
    /// `pending`, `dropped`, `firing` or `resolved`.
    pub state: &'static str,
    /// The rule.
    pub rule: String,
    /// The node.
    pub node: String,
    /// The device; empty for the node itself.
    pub device: String,
    /// The value that decided.
    pub value: Option<f64>,
    /// What people would have been told.
    pub message: String,
}

impl Given {
    /// A node as the hub has it: selectors look at it.
    pub(super) fn node(&mut self, node: &shapes::Node) {
        let Ok(id) = NodeId::parse(&node.id) else { return };
        let mut record = Record::new(id, 0);
        record.site.clone_from(&node.site);
        record.kind.clone_from(&node.kind);
        record.name.clone_from(&node.name);
        record.labels.clone_from(&node.labels);
        record.capabilities.clone_from(&node.capabilities);
        record.versions.agent.clone_from(&node.versions.agent);
        self.nodes.insert(node.id.clone(), record);
    }

    /// A series of a node.
    pub(super) fn series(&mut self, node: &str, series: &shapes::Series) {
        let one = |(time_ms, value): &(i64, f64)| One {
            time_ms: *time_ms,
            node: node.to_owned(),
            device: Some(series.device.clone()),
            metric: series.metric.clone(),
            value: *value,
        };
        let room = SAMPLES.saturating_sub(self.samples.len());
        self.samples.extend(series.points.iter().take(room).map(one));
    }
}

/// Reads samples: CSV with a header, or a JSON object a line.
///
/// # Errors
/// A sentence with the line.
pub(super) fn read(text: &str) -> Result<Given, String> {
    let mut given = Given::default();
    if text.trim_start().starts_with('{') {
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let one = serde_json::from_str(line).map_err(|error| format!("line {}: {error}", at + 1))?;
            given.samples.push(one);
        }
    } else {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
        for (at, row) in reader.deserialize().enumerate() {
            given.samples.push(row.map_err(|error| format!("line {}: {error}", at + 2))?);
        }
    }
    if given.samples.len() > SAMPLES {
        return Err(format!("there are more than {SAMPLES} samples; give fewer"));
    }
    for one in &mut given.samples {
        if one.node.is_empty() {
            NODE.clone_into(&mut one.node);
        }
        let id = NodeId::parse(&one.node).map_err(|error| error.to_string())?;
        MetricName::parse(&one.metric).map_err(|error| error.to_string())?;
        DeviceId::parse(one.device.as_deref().unwrap_or_default()).map_err(|error| error.to_string())?;
        given.nodes.entry(one.node.clone()).or_insert_with(|| Record::new(id, 0));
    }
    Ok(given)
}

/// The metrics that rules look at.
pub(super) fn metrics(rules: &[Rule]) -> BTreeSet<String> {
    let mut metrics = BTreeSet::new();
    for rule in rules {
        metrics.extend(rule.field.iter().map(ToString::to_string));
        for condition in [Some(&rule.condition), rule.clear.as_ref()].into_iter().flatten() {
            metrics.extend(condition.series().into_iter().map(|series| series.metric.to_string()));
            metrics.extend(condition.windows().into_iter().map(|(series, _)| series.metric.to_string()));
        }
    }
    metrics
}

/// Runs rules over samples, up to the last of them or to `until_ms`.
pub(super) fn run(rules: Vec<Rule>, given: Given, until_ms: Option<i64>) -> Vec<Seen> {
    let Given { nodes, mut samples } = given;
    samples.sort_by_key(|one| one.time_ms);
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Vec::new() };
    let (start_ms, end_ms) = (first.time_ms, until_ms.unwrap_or(last.time_ms).max(last.time_ms));
    let tick_ms = ((end_ms - start_ms) / TICKS).max(1_000);
    let mut replay = Replay {
        engine: Engine::new(Found::default(), start_ms),
        nodes: BTreeMap::new(),
        before: BTreeMap::new(),
        seen: Vec::new(),
        at_ms: start_ms,
        tick_ms,
    };
    replay.engine.replace(rules, start_ms);
    for (number, (name, mut record)) in (1..).zip(nodes) {
        record.presence.state = State::Online;
        record.last_seen_ms = start_ms;
        replay.nodes.insert(name, Node::new(number, record));
    }
    replay.look();
    let mut samples = samples.into_iter().peekable();
    while let Some(one) = samples.next() {
        replay.wait_until(one.time_ms);
        // What was measured together is judged together.
        let mut together = vec![one];
        while let Some(next) =
            samples.next_if(|next| next.time_ms == together[0].time_ms && next.node == together[0].node)
        {
            together.push(next);
        }
        replay.take(&together);
    }
    replay.wait_until(end_ms);
    replay.seen
}

struct Replay {
    engine: Engine,
    nodes: BTreeMap<String, Node>,
    before: BTreeMap<u64, Alert>,
    seen: Vec<Seen>,
    at_ms: i64,
    tick_ms: i64,
}

impl Replay {
    /// Nodes are there all the time.
    fn look(&mut self) {
        for node in self.nodes.values_mut() {
            node.record.last_seen_ms = self.at_ms;
            let facts = self.engine.look(node, std::time::Duration::ZERO);
            self.engine.node(facts, self.at_ms);
        }
        self.note(self.at_ms);
    }

    fn wait_until(&mut self, at_ms: i64) {
        while self.at_ms + self.tick_ms <= at_ms {
            self.at_ms += self.tick_ms;
            self.look();
            self.engine.tick(self.at_ms);
            self.note(self.at_ms);
        }
    }

    fn take(&mut self, samples: &[One]) {
        let Some(number) = self.nodes.get(&samples[0].node).map(|node| node.number) else { return };
        let mut builder = Builder::default();
        for one in samples {
            let (Ok(device), Ok(metric)) =
                (DeviceId::parse(one.device.as_deref().unwrap_or_default()), MetricName::parse(&one.metric))
            else {
                continue;
            };
            let sample = Sample { time_ms: one.time_ms, device, metric, unit: None, value: one.value };
            if let Some(sample) = builder.push(sample) {
                self.judge(number, std::mem::take(&mut builder));
                // An empty builder takes any sample.
                drop(builder.push(sample));
            }
        }
        self.judge(number, builder);
        self.note(samples[0].time_ms);
    }

    fn judge(&mut self, node: NodeNo, builder: Builder) {
        if builder.is_empty() {
            return;
        }
        let samples = builder.build();
        let recv_ms = samples.times().into_iter().max().unwrap_or(self.at_ms);
        self.engine.samples(Arrived { node, late: false, recv_ms, shift_ms: 0, samples: &samples });
    }

    fn note(&mut self, at_ms: i64) {
        for (number, alert) in self.engine.take().alerts {
            let before = match &alert {
                Some(alert) => self.before.insert(number, alert.clone()),
                None => self.before.remove(&number),
            };
            let state = match &alert {
                Some(alert) if before.as_ref().map(|before| before.stage) == Some(alert.stage) => continue,
                Some(alert) => alert.stage.as_str(),
                None => "dropped",
            };
            let Some(alert) = alert.or(before) else { continue };
            let at_ms = match alert.stage {
                Stage::Resolved => alert.resolved_ms.unwrap_or(at_ms),
                Stage::Firing => alert.fired_ms.unwrap_or(at_ms),
                Stage::Pending => at_ms,
            };
            self.seen.push(Seen {
                at_ms,
                state,
                rule: alert.rule.to_string(),
                node: alert.node.to_string(),
                device: alert.device.to_string(),
                value: alert.value,
                message: alert.message,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use fleet_schemas::rule;

    use super::*;
    use crate::core::alert::scope;

    const RULES: &str =
        r#"rules: [{id: hot, sensor: any, field: t, condition: "value > 27", for: 5s, selector: "!spare"}]"#;

    fn seen(text: &str) -> Vec<(i64, &'static str, String, String)> {
        let rules = rule::read(RULES, scope()).unwrap();
        let seen = run(rules, read(text).unwrap(), None).into_iter();
        seen.map(|seen| (seen.at_ms, seen.state, seen.node, seen.device)).collect()
    }

    #[test]
    fn samples_of_a_file_say_when_a_rule_would_have_fired() {
        let csv = "time_ms,device,metric,value\n1000,d,t,28\n2000,d,t,29\n20000,d,t,20\n30000,d,t,30\n31000,d,t,10\n";
        let told = |at, state| (at, state, NODE.to_owned(), "d".to_owned());
        let expected = [
            told(1_000, "pending"),
            told(6_000, "firing"),
            told(20_000, "resolved"),
            told(30_000, "pending"),
            told(31_000, "dropped"),
        ];
        assert_eq!(seen(csv), expected);
        let lines: String = csv
            .lines()
            .skip(1)
            .map(|line| {
                let cells: Vec<_> = line.split(',').collect();
                format!(
                    "{{\"time_ms\":{},\"device\":\"d\",\"metric\":\"t\",\"value\":{},\"late\":false}}\n",
                    cells[0], cells[3]
                )
            })
            .collect();
        assert_eq!(seen(&lines), expected);
    }

    #[test]
    fn what_is_no_sample_is_told_with_its_line() {
        assert!(read("time_ms,metric,value\n1,t,x\n").unwrap_err().contains("line 2"));
        assert!(read("{\"time_ms\":1,\"metric\":\"t\",\"value\":1}\n{}\n").unwrap_err().contains("line 2"));
        assert!(read("time_ms,node,metric,value\n1,NO,t,1\n").unwrap_err().contains("node id"));
    }
}
