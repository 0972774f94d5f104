//! What the hub tells everybody: JSON on `fleet/v1/hub/…`, and, behind a switch, discovery for Home Assistant.
//!
//! A thread of its own follows what was committed by a cursor of the [feed](crate::feed), so that it can lag and miss
//! nothing, and encodes only what somebody is subscribed to. Nothing is told twice; of what is older than
//! the first subscription nothing is told but the last tenth of a second. The consumer never waits for any of this.

mod discovery;
mod due;
mod filter;
mod follow;
mod home;
mod latest;
mod say;
mod units;

use std::{
    io,
    ops::ControlFlow,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, PoisonError, mpsc as blocking},
    thread::{self, JoinHandle},
    time::Duration,
};

use fleet_broker::Publisher;
use fleet_schemas::{NodeId, Topic, topic::Hub as Told};
use tokio::sync::{mpsc, watch};

use crate::{admit, alerts, consume::Shared, core::fleet::Node, hub::Hub, rollouts};
use filter::Reach;
use latest::Table;

/// What the mirror does beyond the topics of the contract.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The prefix under which Home Assistant discovers devices; absent: it is told of none.
    pub home_assistant: Option<String>,
}

/// Questions that may wait for the mirror's thread.
const ASKS: usize = 64;
/// How long a subscriber waits for the mirror to begin to follow, so that nothing falls between what is retained and
/// what is told.
const ATTEND: Duration = Duration::from_secs(1);
/// Nodes that are read in one hold of the registry's lock: the consumer waits for it.
const NODES_AT_ONCE: usize = 256;

/// What the mirror's thread is asked.
enum Ask {
    /// To look who is subscribed, and to say when it follows.
    Attend(blocking::SyncSender<()>),
    /// Home Assistant has started.
    Announce,
}

/// The side of the mirror that the broker's directory asks. Any thread may.
pub struct Mirror {
    shared: Shared,
    config: Config,
    asks: mpsc::Sender<Ask>,
    asked: Mutex<Option<mpsc::Receiver<Ask>>>,
}

/// The mirror's thread. Call [`Running::stop`].
pub struct Running {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Mirror {
    /// A mirror that answers what is retained; it tells nothing before [`Mirror::start`].
    #[must_use]
    pub fn new(shared: Shared, config: Config) -> Self {
        let (asks, asked) = mpsc::channel(ASKS);
        Self { shared, config, asks, asked: Mutex::new(Some(asked)) }
    }

    /// Shows the current `hub/node/…`, `hub/latest/…` and `hub/rollout/…` that a filter may match, as topic and payload,
    /// until `visit` breaks. Reads the stores; waits for `visit`.
    pub fn retained(&self, filter: &str, visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>) {
        rollouts::retained(&self.shared, filter, visit);
        let Some(reach) = Reach::of(filter) else { return };
        self.attend();
        if reach.alert
            && let Err(error) = alerts::retained(&self.shared.state(), reach.only.as_ref(), visit)
        {
            tracing::warn!(%error, "failed to read the alerts that fire");
        }
        if !(reach.node || reach.latest) {
            return;
        }
        let mut after = None;
        loop {
            let nodes = self.nodes(reach.only.as_ref(), after.as_ref());
            for node in &nodes {
                if self.show(node, &reach, visit).is_break() {
                    return;
                }
            }
            match nodes.last() {
                Some(last) if reach.only.is_none() => after = Some(last.record.id.clone()),
                Some(_) | None => return,
            }
        }
    }

    /// Some nodes, in the order of their ids.
    fn nodes(&self, only: Option<&NodeId>, after: Option<&NodeId>) -> Vec<Node> {
        use std::ops::Bound::{Excluded, Unbounded};
        let fleet = self.shared.fleet();
        if let Some(only) = only {
            return fleet.nodes.get(only).map(|node| Node::clone(node)).into_iter().collect();
        }
        let from = after.map_or(Unbounded, Excluded);
        let range = fleet.nodes.range::<NodeId, _>((from, Unbounded));
        range.take(NODES_AT_ONCE).map(|(_, node)| Node::clone(node)).collect()
    }

    fn show(
        &self,
        node: &Node,
        reach: &Reach,
        visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let table = match self.shared.telemetry.latest(node.number) {
            Ok(latest) => Table::of(latest),
            Err(error) => {
                tracing::warn!(%error, node = %node.record.id, "failed to read the newest values of a node");
                return ControlFlow::Continue(());
            }
        };
        let id = &node.record.id;
        if reach.node {
            let topic = Topic::Hub(Told::Node(id.clone()));
            visit(&topic.to_string(), &say::node(&self.shared, node, table.devices_count()))?;
        }
        if reach.latest && table.len() > 0 {
            let topic = Topic::Hub(Told::Latest(id.clone()));
            visit(&topic.to_string(), &table.json(say::MESSAGE_BYTES))?;
        }
        ControlFlow::Continue(())
    }

    /// Hears what a tool said: Home Assistant tells that it has started, and is told of everything again.
    pub fn said(&self, _tool: &str, topic: &str, payload: &[u8]) {
        let Some(prefix) = &self.config.home_assistant else { return };
        let is_status = topic.strip_prefix(prefix.as_str()).is_some_and(|rest| rest == "/status");
        if is_status && payload == b"online" {
            // When so many wait, one of them is the same.
            drop(self.asks.try_send(Ask::Announce));
        }
    }

    /// Waits until the mirror's thread follows what somebody has just subscribed to.
    fn attend(&self) {
        let (answer, answered) = blocking::sync_channel(1);
        if self.asks.try_send(Ask::Attend(answer)).is_ok() {
            // Without an answer the thread is busy or gone; then changes are told late, and not twice.
            let _ = answered.recv_timeout(ATTEND);
        }
    }

    /// Starts the thread that tells. Once.
    ///
    /// # Errors
    /// When a thread cannot be had.
    pub fn start(self: &Arc<Self>, hub: Hub, publisher: Publisher) -> io::Result<Running> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut asked = asked.ok_or_else(|| io::Error::other("the mirror was started before"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (stop, mut stopping) = watch::channel(false);
        let config = self.config.clone();
        let shared = self.shared.clone();
        let thread = thread::Builder::new().name("mirror".to_owned()).spawn(move || {
            // After a panic it begins anew, from now on.
            while panic::catch_unwind(AssertUnwindSafe(|| {
                let follower = follow::Follower::new(hub.clone(), shared.clone(), publisher.clone(), &config);
                runtime.block_on(follower.run(&mut asked, &mut stopping));
            }))
            .is_err()
            {
                tracing::error!("the mirror panicked and begins anew. Please report its message");
            }
        })?;
        Ok(Running { stop, thread })
    }
}

impl admit::Mirror for Arc<Mirror> {
    fn retained(&self, filter: &str, visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>) {
        Mirror::retained(self, filter, visit);
    }

    fn said(&self, tool: &str, topic: &str, payload: &[u8]) {
        Mirror::said(self, tool, topic, payload);
    }
}

impl Running {
    /// Stops the thread and waits for it.
    pub fn stop(self) {
        self.stop.send_replace(true);
        if self.thread.join().is_err() {
            tracing::error!("the mirror's thread had panicked");
        }
    }
}
