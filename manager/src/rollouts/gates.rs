//! Gates: conditions over the telemetry of a wave's confirmed nodes.
//!
//! One that does not hold at one node fails; one that cannot be told at one node is no answer, and the wave waits.

use std::{collections::BTreeMap, time::Duration};

use fleet_schemas::{
    DeviceId,
    rule::{Aggregate, Condition, Fact, Scope, Series, View},
};

use crate::{
    core::{
        fleet::NodeNo,
        registry::Intent,
        rollout::{Act, Id, Verdict},
    },
    hub::Hub,
    store::telemetry::{self, Latest, Query, TelemetryStore},
};

/// Most samples of one window: a sample a second for the longest one.
const POINTS: usize = 700_000;
/// Most nodes that are asked in one look; of a larger wave an even choice.
const NODES: usize = 500;

/// What was answered last, so that the same is not said again.
#[derive(Debug, Default)]
pub(super) struct Asked(BTreeMap<Id, (usize, String)>);

/// A wave whose gates are asked.
#[derive(Debug)]
struct Wave {
    id: Id,
    at: usize,
    gates: Vec<String>,
    nodes: Vec<(NodeNo, String, i64)>,
}

/// What is known of a node.
struct Known<'a> {
    store: &'a TelemetryStore,
    node: NodeNo,
    latest: Vec<Latest>,
    now_ms: i64,
    last_seen_ms: i64,
}

impl Asked {
    /// Asks the gates of every wave that waits for them.
    pub(super) async fn ask(&mut self, hub: &Hub) {
        let waves = waves(hub);
        self.0.retain(|id, _| waves.iter().any(|wave| wave.id == *id));
        for wave in waves {
            let (verdict, why) = match judge(hub.telemetry(), &wave, hub.clock().now().wall_ms) {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(%error, rollout = %wave.id, "gates wait for the stores");
                    continue;
                }
            };
            let news = (wave.at, why.clone());
            if self.0.get(&wave.id) == Some(&news) {
                continue;
            }
            let act = Act::Gate { wave: wave.at, verdict, why };
            let intent = Intent::ActOnRollout { id: wave.id.clone(), act, by: "hub".to_owned() };
            match hub.intend("hub", intent).await {
                Ok(()) => drop(self.0.insert(wave.id, news)),
                // Asked again in a moment.
                Err(error) => tracing::debug!(%error, rollout = %wave.id, "a gate's answer was not taken"),
            }
        }
    }
}

fn waves(hub: &Hub) -> Vec<Wave> {
    hub.with_fleet(|fleet| {
        let asked = fleet.rollouts.all().into_iter().filter_map(|live| {
            let (at, nodes) = live.gating()?;
            let named = nodes.into_iter().filter_map(|number| {
                let node = fleet.nodes.get(fleet.ids.get(&number)?)?;
                Some((number, node.record.id.to_string(), node.record.last_seen_ms))
            });
            let mut nodes: Vec<_> = named.collect();
            let every = nodes.len().div_ceil(NODES).max(1);
            nodes = nodes.into_iter().step_by(every).collect();
            let spec = &live.head.spec;
            Some(Wave { id: spec.id.clone(), at, gates: spec.terms.gates.clone(), nodes })
        });
        asked.collect()
    })
}

/// What the gates of a wave say, and of whom.
fn judge(store: &TelemetryStore, wave: &Wave, now_ms: i64) -> Result<(Verdict, String), telemetry::Error> {
    let mut unknown = None;
    for text in &wave.gates {
        let Ok(condition) = Condition::parse(text, None, Scope::default()) else {
            return Ok((Verdict::NoData, format!("{text} is not understood by this hub")));
        };
        for (node, name, last_seen_ms) in &wave.nodes {
            let latest = store.latest(*node)?;
            let known = Known { store, node: *node, latest, now_ms, last_seen_ms: *last_seen_ms };
            match condition.holds(&known, 0.0) {
                Some(true) => {}
                Some(false) => {
                    let value =
                        value(&condition, &known).map_or_else(String::new, |value| format!(" has {value}:"));
                    return Ok((Verdict::Fail, format!("{name}{value} {text}")));
                }
                None => {
                    unknown.get_or_insert_with(|| format!("{name} has not the samples for {text}"));
                }
            }
        }
    }
    Ok(match unknown {
        Some(why) => (Verdict::NoData, why),
        None => (Verdict::Pass, format!("{} gates hold at {} nodes", wave.gates.len(), wave.nodes.len())),
    })
}

/// The first figure that a condition looks at, for people.
fn value(condition: &Condition, known: &Known<'_>) -> Option<String> {
    let window = condition.windows().first().and_then(|(series, span)| known.over(series, *span));
    let of_window = window.map(|found| found.sum / found.count as f64);
    let value = of_window.or_else(|| condition.series().first().and_then(|series| known.value(series)))?;
    Some(crate::cli::output::number(value))
}

impl View for Known<'_> {
    fn value(&self, series: &Series) -> Option<f64> {
        let device = series.device.clone().unwrap_or_else(DeviceId::node);
        let of = |latest: &&Latest| latest.device == device && latest.metric == series.metric;
        self.latest.iter().filter(of).max_by_key(|latest| latest.time_ms).map(|latest| latest.value)
    }

    fn last_seen_s(&self) -> Option<f64> {
        Some(self.now_ms.saturating_sub(self.last_seen_ms).max(0) as f64 / 1_000.0)
    }

    fn over(&self, series: &Series, span: Duration) -> Option<Aggregate> {
        let query = Query {
            node: self.node,
            device: Some(series.device.clone().unwrap_or_else(DeviceId::node)),
            metric: Some(series.metric.clone()),
            from_ms: self.now_ms.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)),
            to_ms: self.now_ms.saturating_add(1),
            step: None,
            series_max: 4,
            points_max: POINTS,
        };
        // What cannot be read is not known: the wave waits.
        let found = self.store.query(&query).ok()?;
        let mut points: Vec<(i64, f64)> = found.into_iter().flat_map(|series| series.points).collect();
        points.sort_by_key(|(time_ms, _)| *time_ms);
        points.into_iter().map(|(time_ms, value)| Aggregate::of(time_ms, value)).reduce(Aggregate::then)
    }

    fn fact(&self, _: &str) -> Option<Fact<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fleet_schemas::{
        Lane, MetricName, cbor,
        telemetry::{Builder, Sample},
    };

    use super::*;
    use crate::store::{disk::Memory, telemetry::InboxBatch};

    const NOW: i64 = 1_790_000_000_000;

    fn store(values: &[(NodeNo, f64)]) -> TelemetryStore {
        let store =
            TelemetryStore::open(Arc::new(Memory::default()), telemetry::Config::default(), NOW).unwrap();
        let mut write = store.begin().unwrap();
        for (node, value) in values {
            let mut builder = Builder::default();
            for back in 0..10 {
                let metric = MetricName::parse("cpu_percent").unwrap();
                let (time_ms, device) = (NOW - (10 - back) * 1_000, DeviceId::node());
                builder.push(Sample { time_ms, device, metric, unit: None, value: *value });
            }
            let samples = builder.build();
            let body = cbor::encode(&samples);
            let batch = InboxBatch {
                node: *node,
                lane: Lane::Telemetry,
                recv_ms: NOW,
                shift_ms: 0,
                samples: &samples,
                body: &body,
                payload: None,
            };
            write.append(&batch).unwrap();
        }
        write.commit().unwrap();
        store
    }

    fn ask(store: &TelemetryStore, gate: &str, nodes: &[NodeNo]) -> (Verdict, String) {
        let nodes = nodes.iter().map(|node| (*node, format!("n{node}"), NOW)).collect();
        let id = MetricName::parse("greeter-1.2.0-1").unwrap();
        judge(store, &Wave { id, at: 0, gates: vec![gate.to_owned()], nodes }, NOW).unwrap()
    }

    #[test]
    fn gates_pass_fail_or_wait_for_data() {
        let store = store(&[(1, 20.0), (2, 93.5)]);
        let gate = r#"avg_over("cpu_percent", "5m") < 80"#;
        assert_eq!(ask(&store, gate, &[1]), (Verdict::Pass, "1 gates hold at 1 nodes".to_owned()));
        assert_eq!(ask(&store, gate, &[1, 2]), (Verdict::Fail, format!("n2 has 93.5: {gate}")));
        assert_eq!(
            ask(&store, gate, &[1, 3]),
            (Verdict::NoData, format!("n3 has not the samples for {gate}"))
        );
        // One that does not hold is told although another cannot be.
        assert_eq!(ask(&store, gate, &[3, 2]).0, Verdict::Fail);
        let latest = r#"metric("cpu_percent") < 80"#;
        assert_eq!(ask(&store, latest, &[1]).0, Verdict::Pass);
        assert_eq!(ask(&store, latest, &[2]), (Verdict::Fail, format!("n2 has 93.5: {latest}")));
    }
}
