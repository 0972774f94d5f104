//! Outputs of alerts beside the hub: a webhook, and programs such as a buzzer.
//!
//! Each waits in a queue of its own, so that one that hangs delays no other and no judgement. What does not fit is
//! dropped and counted: the event on its way to the hub is what counts.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fleet_schemas::{NodeId, rule::Rule};
use tokio::{io, select, sync::mpsc, task::JoinHandle, time};
use tracing::{debug, warn};

use super::{Config, ProgramConfig, Surroundings, Told};
use crate::{
    core::rules::Alert,
    exec::{self, Bounds, Program},
    fetch::{self, Url},
    metrics::Metrics,
    stop::Stop,
};

/// Alerts that may wait for one output.
const WAITING: usize = 64;
/// Pauses between the attempts of a webhook; after the last it is given up.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(120)];
/// Time a webhook has to answer.
const ANSWER: Duration = Duration::from_secs(10);
const WEBHOOK: &str = "webhook";
/// The agent's log, which every alert goes to anyway.
const LOG: &str = "log";

/// What is told, as JSON and as environment.
#[derive(Debug, Clone)]
pub(super) struct Word {
    json: Arc<[u8]>,
    env: BTreeMap<String, String>,
}

/// The way to all outputs.
pub(super) struct Telling {
    outputs: BTreeMap<String, Told>,
    metrics: Arc<Metrics>,
}

/// Starts what tells.
pub(super) fn start(
    config: &Config,
    surroundings: &Surroundings,
    stop: &Stop,
) -> (Telling, Vec<JoinHandle<()>>) {
    let (mut outputs, mut tellers) = (BTreeMap::new(), Vec::new());
    let metrics = surroundings.metrics.clone();
    if let Some(url) = config.webhook.clone() {
        let (told, words) = mpsc::channel(WAITING);
        outputs.insert(WEBHOOK.to_owned(), told);
        tellers.push(tokio::spawn(webhook(url, words, metrics.clone(), stop.clone())));
    }
    for (name, program) in config.program.clone() {
        let (told, words) = mpsc::channel(WAITING);
        outputs.insert(name.clone(), told);
        let folder = surroundings.folder.clone();
        tellers.push(tokio::spawn(programs(name, program, folder, words, metrics.clone(), stop.clone())));
    }
    (Telling { outputs, metrics }, tellers)
}

impl Telling {
    /// Says once which outputs of new rules nobody set up: kits name them all.
    pub(super) fn warn_of_unknown(&self, rules: &[Rule]) {
        let named: std::collections::BTreeSet<_> = rules.iter().flat_map(|rule| &rule.outputs).collect();
        for output in named.into_iter().filter(|name| *name != LOG && !self.outputs.contains_key(*name)) {
            warn!(output, "rules name an output that is not set up; see [rules] in agent.toml");
        }
    }

    pub(super) fn tell(&self, node: &NodeId, alert: &Alert, time_ms: i64) {
        let known: Vec<_> =
            alert.outputs.iter().filter_map(|name| self.outputs.get_key_value(name)).collect();
        if known.is_empty() {
            return;
        }
        let word = word(node, alert, time_ms);
        for (name, output) in known {
            if output.try_send(word.clone()).is_err() {
                self.metrics.alert_output(name, "dropped");
                warn!(output = name, "an alert is not told there: too many wait");
            }
        }
    }
}

fn word(node: &NodeId, alert: &Alert, time_ms: i64) -> Word {
    let metric = alert.metric.as_ref().map_or("", |metric| metric.as_str());
    let json = serde_json::json!({
        "node": node.as_str(),
        "rule": alert.rule.as_str(),
        "device": alert.device.as_str(),
        "metric": metric,
        "value": alert.value,
        "state": alert.transition.as_str(),
        "severity": alert.severity.as_str(),
        "message": alert.message,
        "time_ms": time_ms,
    });
    let value = alert.value.map(|value| value.to_string()).unwrap_or_default();
    let env = [
        ("NODE", node.as_str()),
        ("RULE", alert.rule.as_str()),
        ("DEVICE", alert.device.as_str()),
        ("METRIC", metric),
        ("VALUE", &value),
        ("STATE", alert.transition.as_str()),
        ("SEVERITY", alert.severity.as_str()),
        ("MESSAGE", &alert.message),
    ];
    // A program's environment has no zero bytes.
    let env = env.map(|(name, value)| (format!("FLEET_ALERT_{name}"), value.replace('\0', " ")));
    Word { json: json.to_string().into_bytes().into(), env: env.into() }
}

/// Posts one after the other, each until it is taken or given up.
async fn webhook(url: Url, mut words: mpsc::Receiver<Word>, metrics: Arc<Metrics>, mut stop: Stop) {
    while let Some(word) = next(&mut words, &mut stop).await {
        let mut pauses = PAUSES.into_iter();
        loop {
            let posted = select! {
                posted = fetch::post(&url, word.json.to_vec(), ANSWER) => posted,
                () = stop.wanted() => return,
            };
            let Err(error) = posted else {
                metrics.alert_output(WEBHOOK, "done");
                break;
            };
            let Some(pause) = pauses.next() else {
                metrics.alert_output(WEBHOOK, "failed");
                warn!("the webhook is given up for one alert: {error}");
                break;
            };
            debug!(again_in = ?pause, "the webhook failed: {error}");
            select! {
                () = time::sleep(pause) => {}
                () = stop.wanted() => return,
            }
        }
    }
}

/// Runs one after the other.
async fn programs(
    name: String,
    config: ProgramConfig,
    folder: std::path::PathBuf,
    mut words: mpsc::Receiver<Word>,
    metrics: Arc<Metrics>,
    mut stop: Stop,
) {
    while let Some(word) = next(&mut words, &mut stop).await {
        let program = Program { program: config.program.clone(), args: config.args.clone(), env: word.env };
        let bounds = Bounds { processor: config.timeout, ..Bounds::default() };
        let result = match program.start_bounded(&folder, &bounds) {
            Ok((mut running, mut pipe)) => {
                let ended = async {
                    let mut nowhere = io::sink();
                    // What it prints is nobody's business, but a full pipe would stop it.
                    let (ended, _) = tokio::join!(running.ended(), io::copy(&mut pipe, &mut nowhere));
                    ended
                };
                let ended = select! {
                    ended = ended => Some(ended),
                    () = time::sleep(config.timeout) => None,
                    () = stop.wanted() => None,
                };
                match ended {
                    Some(Ok(status)) if status.success() => "done",
                    Some(_) => "failed",
                    None => {
                        let _ = running.stop(exec::GRACE).await;
                        "timeout"
                    }
                }
            }
            Err(error) => {
                warn!(
                    output = name,
                    "the program cannot be started: {error}; check [rules.program] in agent.toml"
                );
                "failed"
            }
        };
        metrics.alert_output(&name, result);
    }
}

async fn next(words: &mut mpsc::Receiver<Word>, stop: &mut Stop) -> Option<Word> {
    select! {
        word = words.recv() => word,
        () = stop.wanted() => None,
    }
}
