//! What the service manager is told (sd_notify(3)): that the hub is ready, how it is, that it works, that it stops.
//! Where nobody listens, nothing is said.
//!
//! Pings follow the consumer's rounds: a hub that answers HTTP while its disk hangs is not alive.

use std::{env, time::Duration};

use sd_notify::NotifyState;
use tokio::{task::JoinHandle, time};

use crate::{core::presence::State, hub::Hub};

/// Pings within the watchdog's time: one that comes late must not be the last.
const PINGS: u32 = 4;
/// How often the line for people is looked at when nobody wants pings.
const LOOK: Duration = Duration::from_secs(30);

/// The stores are being opened.
pub(super) fn opening() {
    tell(&[NotifyState::Status("opening the stores")]);
}

/// Everything is bound and consumed.
pub(super) fn ready(hub: &Hub) {
    tell(&[NotifyState::Ready, NotifyState::Status(&line(hub))]);
}

/// No new sessions from here on.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("committing what was received")]);
}

/// Pings while the consumer finishes rounds, and says how the hub is, until it is aborted.
pub(super) fn watch(hub: Hub) -> Option<JoinHandle<()>> {
    env::var_os("NOTIFY_SOCKET")?;
    let limit = sd_notify::watchdog_enabled();
    let mut looks = time::interval(limit.map_or(LOOK, |limit| limit / PINGS).max(Duration::from_millis(100)));
    looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    Some(tokio::spawn(async move {
        let (mut seen, mut told) = (None, String::new());
        loop {
            looks.tick().await;
            let rounds = hub.rounds();
            if limit.is_some() && seen.replace(rounds) != Some(rounds) {
                tell(&[NotifyState::Watchdog]);
            }
            let line = line(&hub);
            if line != told {
                tell(&[NotifyState::Status(&line)]);
                told = line;
            }
        }
    }))
}

/// The hub in one line.
fn line(hub: &Hub) -> String {
    let readiness = hub.readiness();
    if !readiness.ready
        && let Some(reason) = readiness.reasons.first()
    {
        return format!("not ready: {reason}");
    }
    let (online, all) = hub.with_fleet(|fleet| {
        let online = fleet.nodes.values().filter(|node| matches!(node.record.presence.state, State::Online));
        (online.count(), fleet.nodes.len())
    });
    format!("{online} of {all} nodes online")
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}
