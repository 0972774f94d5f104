//! What goes on in the background while a hub runs: its keys are changed when that is due, and sessions are looked at a
//! second time after they were to end.

use std::{sync::Arc, time::Duration};

use fleet_broker::Broker;
use tokio::{sync::mpsc, task::JoinHandle, time};

use crate::{
    core::identity::{Cut, Identities, Standing},
    hub::{Door, Hub},
    pki::Pki,
};

/// How often it is looked whether keys are due.
const LOOK: Duration = Duration::from_secs(30);
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
            known.enrolments.get(node).is_some_and(|known| known.standing != Standing::Enrolled)
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
            let (pki, hub) = (pki.clone(), hub.clone());
            // It may make keys and write to the disk.
            let look = move || {
                let waiting = hub.with_identities(|known| pki.waiting(known)).len();
                pki.tick(waiting)
            };
            match tokio::task::spawn_blocking(look).await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(step))) => tracing::warn!(?step, "keys were changed"),
                Ok(Err(error)) => tracing::error!(%error, "failed to change keys; it is tried again"),
                Err(error) => tracing::error!(%error, "failed to look after the keys"),
            }
        }
    })
}
