//! Applying what the hub desires: drivers, the machine's figures, the outbox's pace, heartbeat and log, changed while the
//! agent runs.
//!
//! Owns what runs by the configuration. Decides nothing about documents: the follower in `core` says what should run, and
//! hears what became of it. What did not change goes on undisturbed.

mod document;

use std::{mem, sync::Arc, time::Duration};

use fleet_schemas::config::Failed;
use serde::{Deserialize, Serialize};
use tokio::{
    select,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time,
};
use tracing::{Instrument as _, info_span, warn};

use crate::{
    clock::Clock,
    collect::{driver, system},
    config::{Config as Whole, seconds},
    core::config::{Run, failed},
    metrics::Metrics,
    outbox,
    stop::{self, Stop, Stopper},
};

/// How long a new driver is watched before it counts as started.
const WATCHED: Duration = Duration::from_secs(2);
/// Pause before the end is said again to an outbox that did not take it.
const AGAIN: Duration = Duration::from_secs(1);
/// Handed out one at a time.
pub(crate) const RUNS: usize = 4;

/// What documents of the hub may do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long a new document has to prove that the hub is still reached with it, in seconds. RFC 6241 gives a
    /// confirmed commit as long.
    #[serde(rename = "probation_s", with = "seconds")]
    pub probation: Duration,
    /// Programs that drivers of a document may run beside those of `agent.toml`: paths or names as they stand there, or
    /// folders with a `/` at the end.
    pub programs: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { probation: Duration::from_secs(600), programs: Vec::new() }
    }
}

/// What configuration meets.
pub(crate) struct Surroundings {
    /// The node's own configuration.
    pub(crate) own: Whole,
    pub(crate) clock: Clock,
    pub(crate) outbox: outbox::Handle,
    pub(crate) metrics: Arc<Metrics>,
}

/// Runs what is configured until told to stop; then ends it.
pub(crate) async fn run(surroundings: Surroundings, mut runs: mpsc::Receiver<Run>, mut stop: Stop) {
    let mut crew = Crew { surroundings, level: None, system: None, drivers: Vec::new() };
    loop {
        let run = select! {
            run = runs.recv() => run,
            () = stop.wanted() => None,
        };
        let Some(run) = run else { break };
        let which = run.doc.as_ref().map(|doc| doc.held);
        // Without an answer the next start tries again.
        let end = select! {
            end = crew.apply(&run) => end,
            () = stop.wanted() => break,
        };
        while crew.surroundings.outbox.config_ran(which, end.clone()).await.is_err() {
            select! {
                () = time::sleep(AGAIN) => {}
                () = stop.wanted() => break,
            }
        }
    }
    let Crew { system, drivers, .. } = crew;
    end(drivers.into_iter().map(|(_, part)| part).chain(system.map(|(_, part)| part))).await;
}

/// What runs.
struct Crew {
    surroundings: Surroundings,
    // The log's level that a document set.
    level: Option<String>,
    system: Option<(system::Config, Part)>,
    drivers: Vec<(driver::Config, Part)>,
}

impl Crew {
    /// # Errors
    /// What is wrong with the document: nothing changed if it cannot be read, and something may have if the self-check
    /// failed.
    async fn apply(&mut self, run: &Run) -> Result<(), Failed> {
        let own = &self.surroundings.own;
        let wanted =
            run.doc.as_ref().map_or_else(|| Ok(own.clone()), |doc| document::over(own, &doc.bytes))?;
        let policy = wanted.upload.policy().map_err(|why| failed("invalid", format!("/upload: {why}")))?;
        let outbox = outbox::Config { policy, devices: wanted.devices.policy(), ..wanted.outbox.clone() };
        self.set_log(&wanted);
        self.surroundings.outbox.set_config(outbox, wanted.node.heartbeat).await;
        self.set_system(&wanted.system).await;
        let watched = self.set_drivers(&wanted.driver).await;
        if !run.trial {
            return Ok(());
        }
        let mut wrong = Vec::new();
        let limit = time::sleep(WATCHED);
        tokio::pin!(limit);
        for (name, mut watched) in watched {
            let heard = select! {
                heard = &mut watched => heard.ok(),
                () = &mut limit => watched.try_recv().ok(),
            };
            // Silence is health: it runs.
            if let Some(Err(why)) = heard {
                wrong.push(format!("driver {name}: {why}"));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(failed("self_check", wrong.join("; "))) }
    }

    fn set_log(&mut self, wanted: &Whole) {
        let level = &wanted.log.level;
        let own = &self.surroundings.own.log;
        // What the process began with stays until a document says otherwise.
        if self.level.as_ref().unwrap_or(&own.level) != level
            && let Some(dial) = &own.dial
        {
            dial.turn(level);
            self.level = Some(level.clone());
        }
    }

    async fn set_system(&mut self, wanted: &system::Config) {
        if self.system.as_ref().is_some_and(|(running, _)| running == wanted) {
            return;
        }
        if let Some((_, part)) = self.system.take() {
            end([part]).await;
        }
        let Surroundings { own, clock, outbox, .. } = &self.surroundings;
        let (wanted, data, clock, outbox) = (wanted.clone(), own.data.clone(), clock.clone(), outbox.clone());
        let config = wanted.clone();
        let part = Part::spawn("system", |stop| system::run(config, data, clock, outbox, stop));
        self.system = Some((wanted, part));
    }

    /// Ends drivers that are not wanted, and starts those that are missing; these can be watched.
    async fn set_drivers(
        &mut self,
        wanted: &[driver::Config],
    ) -> Vec<(String, oneshot::Receiver<Result<(), String>>)> {
        let mut running = mem::take(&mut self.drivers);
        let mut missing = Vec::new();
        for config in wanted {
            match running.iter().position(|(running, _)| running == config) {
                Some(at) => self.drivers.push(running.swap_remove(at)),
                None => missing.push(config.clone()),
            }
        }
        // One after the other: a serial port has one user at a time.
        end(running.into_iter().map(|(_, part)| part)).await;
        let mut watched = Vec::new();
        for config in missing {
            let Surroundings { own, clock, outbox, metrics } = &self.surroundings;
            let surroundings = driver::Surroundings {
                folder: own.data.clone(),
                clock: clock.clone(),
                outbox: outbox.clone(),
                metrics: metrics.clone(),
            };
            let (first, watch) = oneshot::channel();
            watched.push((config.name.clone(), watch));
            let driver = config.clone();
            let part = Part::spawn(&format!("driver {}", config.name), |stop| {
                driver::run(driver, surroundings, first, stop)
            });
            self.drivers.push((config, part));
        }
        watched
    }
}

/// A task that ends by itself when told to, and with its owner in any case.
struct Part {
    stopper: Stopper,
    task: Owned,
}

struct Owned(JoinHandle<()>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Part {
    fn spawn<F>(name: &str, task: impl FnOnce(Stop) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stopper, stop) = stop::channel();
        let span = info_span!("task", name);
        Self { stopper, task: Owned(tokio::spawn(task(stop).instrument(span))) }
    }
}

/// Tells all of them first, then waits.
async fn end(parts: impl IntoIterator<Item = Part>) {
    let parts: Vec<_> = parts.into_iter().collect();
    parts.iter().for_each(|part| part.stopper.stop());
    for mut part in parts {
        if let Err(error) = (&mut part.task.0).await {
            warn!(%error, "a task ended badly");
        }
    }
}
