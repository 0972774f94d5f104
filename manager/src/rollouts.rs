//! Rollouts beside the consumer: their gates are asked of the telemetry, and their progress is said over MQTT.
//!
//! A thread of its own: what it finds enters the consumer as an intent, and nobody waits for it. Decides nothing but
//! whether a condition holds.

mod gates;
mod say;

use std::{
    collections::BTreeSet,
    io,
    panic::{self, AssertUnwindSafe},
    thread::{self, JoinHandle},
    time::Duration,
};

use fleet_broker::Publisher;
use tokio::sync::{broadcast::error::RecvError, watch};

pub(crate) use say::retained;

use crate::{consume::FeedItem, core::rollout::Id, hub::Hub};

/// How often gates are asked.
const ASK: Duration = Duration::from_secs(2);
/// How often progress is said, at most.
const SAY: Duration = Duration::from_millis(250);

/// The thread. Call [`Running::stop`].
pub struct Running {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// Starts the thread.
///
/// # Errors
/// When a thread cannot be had.
pub fn start(hub: Hub, publisher: Publisher) -> io::Result<Running> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (stop, mut stopping) = watch::channel(false);
    let thread = thread::Builder::new().name("rollouts".to_owned()).spawn(move || {
        // After a panic it begins anew.
        while panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(&hub, &publisher, &mut stopping))))
            .is_err()
        {
            tracing::error!("the thread of rollouts panicked and begins anew. Please report its message");
        }
    })?;
    Ok(Running { stop, thread })
}

impl Running {
    /// Stops the thread and waits for it.
    pub fn stop(self) {
        self.stop.send_replace(true);
        if self.thread.join().is_err() {
            tracing::error!("the thread of rollouts had panicked");
        }
    }
}

async fn run(hub: &Hub, publisher: &Publisher, stop: &mut watch::Receiver<bool>) {
    let mut feed = hub.feed();
    let mut asked = gates::Asked::default();
    let mut changed: BTreeSet<Id> = BTreeSet::new();
    let mut ask = tokio::time::interval(ASK);
    ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut say = tokio::time::interval(SAY);
    say.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !*stop.borrow() {
        tokio::select! {
            _ = stop.changed() => return,
            _ = ask.tick() => asked.ask(hub).await,
            _ = say.tick() => say::publish(hub, publisher, &std::mem::take(&mut changed)),
            item = feed.recv() => match item {
                Ok(item) => {
                    if let FeedItem::Rollout(id) = &*item {
                        changed.insert(id.clone());
                    }
                }
                // Any of them may have changed.
                Err(RecvError::Lagged(_)) => hub.with_fleet(|fleet| {
                    changed.extend(fleet.rollouts.all().iter().map(|live| live.head.spec.id.clone()));
                }),
                Err(RecvError::Closed) => return,
            },
        }
    }
}
