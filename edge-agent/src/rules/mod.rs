//! Local rules: files of rules read again when they change, samples judged as they are accepted, alerts told at once.
//!
//! Owns the task and what it keeps on disk. What fires is decided in `core::rules`; an alert is an event on the event
//! lane first, then what its outputs do. It needs no hub.

mod event;
mod keep;
mod load;
mod output;

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use fleet_schemas::{NodeId, event::Event, rule::Transition};
use serde::{Deserialize, Serialize};
use tokio::{select, sync::mpsc, time};
use tracing::{error, info, warn};

use self::{load::Files, output::Telling};
use crate::{
    clock::Clock,
    config::seconds,
    core::{
        Now,
        rules::{Alert, Kept, Rules},
    },
    fetch::Url,
    metrics::Metrics,
    outbox::{self, Listener},
    stop::Stop,
    uplink::{Handed, Submission},
};

/// The file's name in the data folder.
pub const FILE: &str = "alerts.yaml";
/// How often what time can change is judged, and files are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Events that wait for an outbox that takes none; older ones go first.
const WAITING: usize = 1_000;

/// Where rules are, and what their outputs are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Files of rules, in the data folder where they have no folder of their own.
    pub files: Vec<PathBuf>,
    /// What the output `webhook` posts to, as JSON: `http://…`, on this machine or its network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Url>,
    /// Other outputs, such as `buzzer`: a program each.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub program: BTreeMap<String, ProgramConfig>,
}

/// A program that tells of an alert. It finds `FLEET_ALERT_STATE` (`firing` or `resolved`), `_RULE`, `_NODE`,
/// `_DEVICE`, `_METRIC`, `_VALUE`, `_SEVERITY` and `_MESSAGE` in its environment, and nothing else of the agent's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramConfig {
    /// The program: a path, or a name that is looked up in the usual folders.
    pub program: PathBuf,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// It is ended when it runs longer, in seconds.
    #[serde(default = "default_timeout", rename = "timeout_s", with = "seconds")]
    pub timeout: Duration,
}

fn default_timeout() -> Duration {
    Duration::from_secs(10)
}

impl Default for Config {
    fn default() -> Self {
        Self { files: vec![PathBuf::from(FILE)], webhook: None, program: BTreeMap::new() }
    }
}

/// What rules meet.
pub(crate) struct Surroundings {
    pub(crate) node: NodeId,
    pub(crate) folder: PathBuf,
    pub(crate) clock: Clock,
    pub(crate) outbox: outbox::Handle,
    pub(crate) metrics: Arc<Metrics>,
}

/// Judges until told to stop.
pub(crate) async fn run(config: Config, surroundings: Surroundings, mut listener: Listener, mut stop: Stop) {
    let start = surroundings.clock.now();
    let kept = keep::read(&surroundings.folder);
    let rules = Rules::new(surroundings.node.as_str(), kept, start.wall_ms);
    let (telling, tellers) = output::start(&config, &surroundings, &stop);
    let mut judge = Judge {
        files: Files::new(&config, &surroundings.folder),
        surroundings,
        rules,
        start,
        waiting: VecDeque::new(),
        telling,
    };
    judge.reload(&listener);
    judge.tell().await;
    let mut ticks = time::interval(TICK);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        select! {
            seen = listener.seen.recv() => {
                let Some(seen) = seen else { break };
                let (now, at) = judge.now();
                let alerts = judge.rules.take(seen, at, now.wall_ms);
                judge.note(alerts, now);
            }
            _ = ticks.tick() => {
                judge.reload(&listener);
                let (now, at) = judge.now();
                let alerts = judge.rules.tick(at);
                judge.note(alerts, now);
            }
            () = stop.wanted() => break,
        }
        judge.tell().await;
    }
    judge.tell().await;
    drop(judge);
    for teller in tellers {
        // Each ends with the agent; a panic was logged.
        let _ = teller.await;
    }
}

struct Judge {
    surroundings: Surroundings,
    files: Files,
    rules: Rules,
    start: Now,
    // Events that are not yet on disk.
    waiting: VecDeque<Event>,
    telling: Telling,
}

impl Judge {
    /// The clocks, and milliseconds that go on from where the wall clock was at the start and never go back.
    fn now(&self) -> (Now, i64) {
        let now = self.surroundings.clock.now();
        let passed = now.up.saturating_sub(self.start.up).as_millis();
        (now, self.start.wall_ms.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX)))
    }

    /// Takes files that changed: all of them, or none.
    fn reload(&mut self, listener: &Listener) {
        let Some(read) = self.files.read_if_changed() else { return };
        let (now, at) = self.now();
        match read {
            Ok(rules) => {
                info!(rules = rules.len(), "rules are taken");
                self.telling.warn_of_unknown(&rules);
                let over = self.rules.replace(rules, at);
                self.note(over, now);
                listener.interest.send_replace(Arc::new(self.rules.interest()));
            }
            Err(refusal) => {
                error!("rules are refused, and those before them stay: {refusal}");
                self.wait(event::refused(&refusal, now.wall_ms));
            }
        }
        self.surroundings.metrics.rules.set(self.rules.count().0 as f64);
    }

    fn note(&mut self, alerts: Vec<Alert>, now: Now) {
        if alerts.is_empty() {
            return;
        }
        for alert in alerts {
            match alert.transition {
                Transition::Firing => warn!(rule = %alert.rule, device = %alert.device, "{}", alert.message),
                Transition::Resolved | Transition::Pending | Transition::Dropped => {
                    info!(rule = %alert.rule, device = %alert.device, "{}", alert.message);
                }
            }
            self.wait(event::alert(&alert, now.wall_ms));
            self.telling.tell(&self.surroundings.node, &alert, now.wall_ms);
        }
        self.surroundings.metrics.alerts_firing.set(self.rules.count().1 as f64);
    }

    fn wait(&mut self, event: Event) {
        if self.waiting.len() >= WAITING {
            self.waiting.pop_front();
            warn!("an alert is not told to the hub: the outbox takes no events; check its disk");
        }
        self.waiting.push_back(event);
    }

    /// Hands events in; then writes down where rules stand. In this order a crash tells an alert twice, never not at all.
    async fn tell(&mut self) {
        while !self.waiting.is_empty() {
            let part: Vec<_> = self.waiting.iter().take(100).cloned().collect();
            let told = part.len();
            // A device that is silent is not heard by that, and one that nobody knows is named all the same.
            let handed = Handed { by_agent: true, ..Submission::Events(part).into() };
            let told_of = async { self.surroundings.outbox.hand_in(handed).await?.done().await };
            if let Err(error) = told_of.await {
                warn!("alerts wait: {error}");
                return;
            }
            self.waiting.drain(..told);
        }
        if let Some(kept) = self.rules.kept()
            && !self.write(kept).await
        {
            self.rules.keep_again();
        }
    }

    async fn write(&self, kept: Kept) -> bool {
        let folder = self.surroundings.folder.clone();
        let written = tokio::task::spawn_blocking(move || keep::write(&folder, &kept)).await;
        match written {
            Ok(Ok(())) => true,
            Ok(Err(failure)) => {
                warn!(error = %failure, "where rules stand cannot be written; after a restart alerts may fire again");
                false
            }
            Err(_) => false,
        }
    }
}

/// What is told to outputs.
type Told = mpsc::Sender<output::Word>;
