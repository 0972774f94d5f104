//! What changed, told to open pages once a second.
//!
//! One follower of the hub's feed gathers changes into a [`Tick`]; each page draws those of its parts again that a tick
//! touches, and sends those that differ from what it sent before. So a thousand changes a second cost an open page one
//! look a second. A page that falls behind misses nothing: it draws everything again.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::response::{
    IntoResponse as _, Response,
    sse::{Event, KeepAlive, Sse},
};
use fleet_schemas::{CommandId, NodeId};
use serde_json::json;
use tokio::sync::{
    Mutex, Semaphore, broadcast,
    broadcast::error::{RecvError, TryRecvError},
    mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{page::Visitor, view::View};
use crate::{
    api::{Api, problem::Refusal},
    consume::FeedItem,
};

/// Pages that are kept up to date at once: each has a task and a connection.
const PAGES: usize = 512;
/// How often changes are told.
const TICK: Duration = Duration::from_secs(1);
/// Ticks that a page may be behind before it draws everything again.
const BEHIND: usize = 4;
/// How often an idle stream shows that it lives.
const ALIVE: Duration = Duration::from_secs(15);
/// A reader who takes nothing for so long loses the stream.
const STALLED: Duration = Duration::from_secs(20);

/// Tells open pages what changed.
#[derive(Debug)]
pub(crate) struct Live {
    ticks: broadcast::Sender<Arc<Tick>>,
    places: Arc<Semaphore>,
    /// How often anything was found changed.
    changes: AtomicU64,
    /// The parts that every fleet page has, until something changes.
    overview: Mutex<Option<Vec<Part>>>,
}

/// What changed since the last.
#[derive(Debug, Default)]
pub(super) struct Tick {
    /// Something was missed: anything may have changed.
    pub(super) all: bool,
    /// Nodes of which anything but samples changed.
    pub(super) nodes: BTreeSet<NodeId>,
    /// Nodes of which samples came.
    pub(super) sampled: BTreeSet<NodeId>,
    /// Nodes of which events came.
    pub(super) told: BTreeSet<NodeId>,
    /// Commands of which anything changed.
    pub(super) commands: BTreeSet<CommandId>,
    /// An alert changed.
    pub(super) alerts: bool,
    /// A rollout changed.
    pub(super) rollouts: bool,
    /// A layer of the configuration changed.
    pub(super) config: bool,
    /// Lines of lists of nodes; drawn by the first page that shows them.
    pub(super) rows: Mutex<HashMap<NodeId, Part>>,
}

/// A part of a page: the element of that id, and what is to stand in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// The element.
    pub(super) id: Arc<str>,
    /// Its content.
    pub(super) html: Arc<str>,
}

impl Default for Live {
    fn default() -> Self {
        let (changes, overview) = (AtomicU64::default(), Mutex::default());
        Self {
            ticks: broadcast::channel(BEHIND).0,
            places: Arc::new(Semaphore::new(PAGES)),
            changes,
            overview,
        }
    }
}

impl Live {
    /// The parts that every fleet page has, drawn by the first that needs them since the last change.
    pub(super) async fn overview(
        &self,
        draw: impl Future<Output = Result<Vec<Part>, Refusal>>,
    ) -> Result<Vec<Part>, Refusal> {
        let mut kept = self.overview.lock().await;
        if let Some(parts) = &*kept {
            return Ok(parts.clone());
        }
        let before = self.changes.load(Ordering::Acquire);
        let parts = draw.await?;
        // What changed while it was drawn is perhaps not in it.
        if self.changes.load(Ordering::Acquire) == before {
            *kept = Some(parts.clone());
        }
        Ok(parts)
    }

    /// What was drawn before is old.
    async fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        *self.overview.lock().await = None;
    }
}

impl Tick {
    /// Everything.
    pub(super) fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    fn is_empty(&self) -> bool {
        !self.all
            && !self.config
            && !self.alerts
            && !self.rollouts
            && self.nodes.is_empty()
            && self.sampled.is_empty()
            && self.told.is_empty()
            && self.commands.is_empty()
    }

    fn take(&mut self, item: &FeedItem) {
        match item {
            FeedItem::Node(node) => note(&mut self.nodes, node),
            FeedItem::Event(event) => note(&mut self.told, &event.node),
            FeedItem::Samples { node, .. } => note(&mut self.sampled, node),
            FeedItem::Execution(change) => drop(self.commands.insert(change.command)),
            FeedItem::Config(_) => self.config = true,
            FeedItem::Alert(_) => self.alerts = true,
            FeedItem::Rollout(_) => self.rollouts = true,
        }
    }
}

/// Most items repeat one that is known: no copy for those.
fn note(nodes: &mut BTreeSet<NodeId>, node: &NodeId) {
    if !nodes.contains(node) {
        nodes.insert(node.clone());
    }
}

impl Part {
    /// A part.
    pub(super) fn new(id: impl Into<Arc<str>>, html: impl Into<Arc<str>>) -> Self {
        Self { id: id.into(), html: html.into() }
    }
}

/// Gathers what the feed tells, until the hub is gone.
pub(crate) async fn gather(api: Arc<Api>) {
    let mut feed = api.hub.feed();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut gathered = Tick::default();
    loop {
        tick.tick().await;
        // Looked at once a second and not at every item: waking up costs more than taking.
        loop {
            match feed.try_recv() {
                Ok(item) => gathered.take(&item),
                Err(TryRecvError::Lagged(_)) => gathered.all = true,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Closed) => return,
            }
        }
        if gathered.is_empty() {
            continue;
        }
        api.live.changed().await;
        // An error means that no page is open.
        let _ = api.live.ticks.send(Arc::new(std::mem::take(&mut gathered)));
    }
}

/// A stream of a page's parts: first all, then those that change.
pub(super) fn stream(api: Arc<Api>, visitor: Visitor, view: View) -> Result<Response, Refusal> {
    let place = api.live.places.clone().try_acquire_owned();
    let place = place
        .map_err(|_| Refusal::Unavailable(format!("{PAGES} pages are kept up to date already; close one")))?;
    // Before the first look: what is committed after it will be told.
    let ticks = api.live.ticks.subscribe();
    let (messages, ready) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut page = Page { api, visitor, view, messages, sent: HashMap::new() };
        page.follow(ticks).await;
        drop(place);
    });
    let alive = KeepAlive::new().interval(ALIVE).text("alive");
    Ok(Sse::new(ReceiverStream::new(ready)).keep_alive(alive).into_response())
}

/// An open page.
struct Page {
    api: Arc<Api>,
    visitor: Visitor,
    view: View,
    messages: mpsc::Sender<Result<Event, Infallible>>,
    /// Digests of the parts as they were sent.
    sent: HashMap<Arc<str>, u64>,
}

impl Page {
    async fn follow(&mut self, mut ticks: broadcast::Receiver<Arc<Tick>>) {
        let mut stopping = self.api.stopping();
        let mut tick = Arc::new(Tick::all());
        loop {
            if !self.visitor.still(&self.api) {
                self.say("over", "the session is over").await;
                return;
            }
            if self.view.touched(&tick) {
                match self.view.parts(&self.api, &tick).await {
                    Ok(parts) => {
                        // Its parts may be cut otherwise than those that were sent.
                        if tick.all {
                            self.sent.clear();
                        }
                        let fresh = self.fresh(parts);
                        if !fresh.is_empty() && !self.say("put", &json!(fresh).to_string()).await {
                            return;
                        }
                    }
                    // What it shows is gone, or the store does not answer: the page says so when it is read again.
                    Err(refusal) => {
                        self.say("gone", &refusal.to_string()).await;
                        return;
                    }
                }
            }
            tick = tokio::select! {
                next = ticks.recv() => match next {
                    Ok(tick) => tick,
                    Err(RecvError::Lagged(_)) => Arc::new(Tick::all()),
                    Err(RecvError::Closed) => return,
                },
                // Nothing changed; whether the session lasts is looked at all the same.
                () = tokio::time::sleep(ALIVE) => Arc::default(),
                () = self.messages.closed() => return,
                // An error means that the hub is gone, which is a stop too.
                _ = stopping.wait_for(|stop| *stop) => return,
            };
        }
    }

    /// Those that differ from what was sent.
    fn fresh(&mut self, parts: Vec<Part>) -> Vec<(Arc<str>, Arc<str>)> {
        let mut fresh = Vec::new();
        for Part { id, html } in parts {
            let mut hasher = DefaultHasher::new();
            html.hash(&mut hasher);
            let digest = hasher.finish();
            if self.sent.insert(id.clone(), digest) != Some(digest) {
                fresh.push((id, html));
            }
        }
        fresh
    }

    async fn say(&self, kind: &str, data: &str) -> bool {
        let message = Event::default().event(kind).data(data.replace(['\r', '\n'], " "));
        let sent = tokio::time::timeout(STALLED, self.messages.send(Ok(message))).await;
        matches!(sent, Ok(Ok(())))
    }
}
