//! What the service manager is told (sd_notify(3)): that the agent is ready, how it is, that it works, that it stops.
//! Where nobody listens, nothing is said.
//!
//! Pings follow the agent's loop and its outbox's thread: each of them may hang by itself. Only a program that is an
//! agent and nothing else may speak here.

use std::{convert::Infallible, env, future, time::Duration};

use sd_notify::NotifyState;
use tokio::time;
use tracing::debug;

use crate::run::Handle;

/// Pings within the watchdog's time: one that comes late must not be the last.
const PINGS: u32 = 4;
/// How often the line for people is looked at when nobody wants pings.
const LOOK: Duration = Duration::from_secs(30);

/// The agent runs: records are taken.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The service ends: only its main process knows.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("writing what was taken")]);
}

/// A ping of whoever starts agents, for the time in which none runs.
pub(crate) fn waiting() {
    if sd_notify::watchdog_enabled().is_some() {
        tell(&[NotifyState::Watchdog]);
    }
}

/// Pings while the agent works, and says how it is.
pub(crate) async fn watch(agent: &Handle) -> Infallible {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return future::pending().await;
    }
    let limit = sd_notify::watchdog_enabled();
    let mut looks = time::interval(limit.map_or(LOOK, |limit| limit / PINGS).max(Duration::from_millis(100)));
    looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut told = String::new();
    loop {
        looks.tick().await;
        // A thread that hangs does not answer, and then there is no ping.
        if agent.outbox.alive().await.is_ok() && limit.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
        let line = line(agent).await;
        if line != told {
            tell(&[NotifyState::Status(&line)]);
            told = line;
        }
    }
}

/// The agent in one line.
async fn line(agent: &Handle) -> String {
    let node = agent.node();
    let Ok(status) = agent.status().await else {
        return format!("{node}: the outbox's disk is out of order");
    };
    let hub = status.hub.unwrap_or_else(|| "no hub yet (fleet-agent join)".to_owned());
    let waits = status.outbox.unacked_batches;
    format!("{node}: {}, {hub}, {waits} batches wait for their ack", status.status)
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        debug!(%error, "the service manager does not listen");
    }
}
