//! What goes on in the background while a hub runs: its keys are changed and its releases renewed when that is due, and
//! sessions are looked at a second time after they were to end.

use std::{sync::Arc, time::Duration};

use fleet_broker::Broker;
use tokio::{sync::mpsc, task::JoinHandle, time};

use crate::{
    core::{
        identity::{self, Cut, Identities},
        registry::Intent,
        time::millis,
    },
    hub::{Door, Hub},
    pki::{Pki, rotation::Step},
    release::{self, Standing},
};

/// How often it is looked whether keys are due.
const LOOK: Duration = Duration::from_secs(30);
/// How often it is looked whether metadata of releases is due, and what rests.
const LOOK_AT_RELEASES: Duration = Duration::from_secs(300);
/// How long before its end what only people can renew is complained of.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// When a session is looked at a second time: a CONNECT that was judged just before the change may have come after it.
const AGAIN: Duration = Duration::from_secs(1);
/// Sessions that may wait for their second look.
const WAITING: usize = 4_096;

/// Ends sessions through the broker, and again a moment later if they should not be there.
pub(super) fn door(broker: &Arc<Broker>, hub: &Hub) -> (Door, JoinHandle<()>) {
    let (again, mut cuts) = mpsc::channel::<Cut>(WAITING);
    let broker = Arc::downgrade(broker);
    let late = broker.clone();
    let cut = move |broker: &std::sync::Weak<Broker>, cut: &Cut| {
        let Some(broker) = broker.upgrade() else { return };
        match cut {
            Cut::Node { node, why } => broker.kick(node, why),
            Cut::Tool(name) => broker.kick_tool(name, "its access was removed"),
        }
    };
    let door: Door = Arc::new(move |which| {
        cut(&broker, which);
        // Full: thousands were cut within a second; each of them was cut once.
        let _ = again.try_send(which.clone());
    });
    let hub = hub.clone();
    let task = tokio::spawn(async move {
        while let Some(which) = cuts.recv().await {
            time::sleep(AGAIN).await;
            if hub.with_identities(|known| stays_out(known, &which)) {
                cut(&late, &which);
            }
        }
    });
    (door, task)
}

fn stays_out(known: &Identities, cut: &Cut) -> bool {
    match cut {
        Cut::Node { node, .. } => {
            known.enrolments.get(node).is_some_and(|known| known.standing != identity::Standing::Enrolled)
        }
        Cut::Tool(name) => !known.access.contains_key(name),
    }
}

/// Changes keys when that is due, until it is aborted.
pub(super) fn keys(pki: Arc<Pki>, hub: Hub) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut looks = time::interval(LOOK);
        looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let (pki, hub, noted) = (pki.clone(), hub.clone(), hub.clone());
            // It may make keys and write to the disk.
            let look = move || {
                let waiting = hub.with_identities(|known| pki.waiting(known)).len();
                pki.tick(waiting)
            };
            match tokio::task::spawn_blocking(look).await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(step))) => {
                    tracing::warn!(?step, "keys were changed");
                    // Written down with the time, for hubs that are restored later.
                    if let Err(error) = noted.intend("hub", Intent::Rotated(word(step).to_owned())).await {
                        tracing::warn!(%error, "a change of keys is not in the trail of changes");
                    }
                }
                Ok(Err(error)) => tracing::error!(%error, "failed to change keys; it is tried again"),
                Err(error) => tracing::error!(%error, "failed to look after the keys"),
            }
        }
    })
}

/// A step as the trail of changes has it.
fn word(step: Step) -> &'static str {
    match step {
        Step::MakeAuthority => "ca",
        Step::MakeServer(_) => "server",
        Step::Drop(_) => "ca.drop",
    }
}

/// Renews metadata of releases when that is due, complains of what people have to renew, and removes uploads that rest,
/// until it is aborted.
pub(super) fn releases(hub: Hub) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut looks = time::interval(LOOK_AT_RELEASES);
        looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            looks.tick().await;
            let Some(releases) = hub.releases().cloned() else { continue };
            let now_ms = hub.clock().now().wall_ms;
            let people = |standing: &Standing| ["root", "targets"].contains(&standing.role);
            for Standing { role, expires_ms, .. } in releases.standings().into_iter().filter(people) {
                let soon = expires_ms.saturating_sub(now_ms) < millis(SOON);
                // Once a day is enough.
                if soon && told.replace(now_ms / millis(DAY)) != Some(now_ms / millis(DAY)) {
                    tracing::warn!(
                        role,
                        expires_ms,
                        "what is signed of releases expires soon, and nodes update no more then: `fleet release rotate --renew`"
                    );
                }
            }
            // It waits for the disk.
            let look = move || {
                releases.artifacts().tidy(now_ms);
                releases.renew()
            };
            match tokio::task::spawn_blocking(look).await {
                Ok(Ok(true)) => tracing::info!("the snapshot and timestamp of releases were renewed"),
                Ok(Ok(false) | Err(release::Error::ClockInDoubt)) => {}
                Ok(Err(error)) => tracing::error!(%error, "failed to renew releases; it is tried again"),
                Err(error) => tracing::error!(%error, "failed to look after releases"),
            }
        }
    })
}
