//! `feed`: everything that was committed, as NDJSON, gapless and without repeats from a cursor on.
//!
//! A line is `samples` (a batch or a part of one), `event`, `mark` (nothing for this reader, but a newer cursor; also
//! shows that the feed lives) or, last, `cut`. Whoever reads slowly is waited for: a feed holds one page. Its place in
//! the stores is the cursor that the reader has, nothing else.

use std::{cell::RefCell, collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use fleet_schemas::NodeId;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Api, events, nodes,
    problem::Refusal,
    query::{Params, node_id},
    rights::Caller,
    selector::Selector,
    shapes,
};
use crate::{
    clock,
    consume::StoredEvent,
    core::fleet::{HUB, NodeNo},
    feed::{Cursor, Item, Page, json},
    store::log::Gone,
};

/// Feeds at once: each holds a page, a megabyte or two.
pub(super) const FEEDS: usize = 32;
/// Lines between the store and the socket: about 100 kB each.
const WAITING: usize = 1;
/// How often a quiet feed says where it is.
const ALIVE: Duration = Duration::from_secs(15);
/// A reader who takes nothing for so long gives its place to another; its cursor is good all the same.
const STALLED: Duration = Duration::from_secs(60);
/// Shortest time between two looks at the stores: what is committed meanwhile comes in one page.
const PAUSE: Duration = Duration::from_millis(50);
/// How long to wait for stores that are being opened again.
const AGAIN: Duration = Duration::from_secs(1);
/// Samples of one line, at most.
const LINE_SAMPLES: usize = 1_000;

/// What a feed was asked for.
struct Ask {
    filter: Filter,
    follow: bool,
    /// Lines with records that are still wanted.
    left: u64,
}

/// Whose records.
struct Filter {
    node: Option<NodeId>,
    selector: Selector,
    group: Selector,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    Samples {
        cursor: String,
        node: &'a NodeId,
        samples: &'a [json::Sample<'a>],
    },
    Event {
        cursor: String,
        #[serde(flatten)]
        event: shapes::Event,
    },
    Mark {
        cursor: String,
    },
    Cut {
        cursor: String,
        detail: String,
    },
}

/// `GET feed?after=&follow=&limit=&node=&selector=&group=`: `after` is a cursor or `start`, from now on unless given;
/// `follow=false` ends when there is no more, `limit` after so many lines with records.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&["after", "follow", "limit", "node", "selector", "group"])?;
    let node = params.text("node").map(node_id).transpose()?;
    if let Some(node) = &node {
        nodes::number(&api, node)?;
    }
    let selector = Selector::parse(params.text("selector").unwrap_or_default())?;
    let group = params.text("group").map(|name| nodes::group(&api, name)).transpose()?.unwrap_or_default();
    let left = params.read("limit")?.unwrap_or(u64::MAX);
    if left == 0 {
        return Err(Refusal::query("limit", "is not above 0"));
    }
    let follow = params.read("follow")?.unwrap_or(true);
    let after = match params.text("after") {
        None => After::Now,
        Some("start") => After::Start,
        Some(_) => params.read("after")?.map_or(After::Now, After::Cursor),
    };
    let place = api.feeds.clone().try_acquire_owned();
    let place =
        place.map_err(|_| Refusal::Unavailable(format!("{FEEDS} feeds are open already; close one")))?;
    // Before the first look: what is committed after it wakes the feed.
    let news = api.hub.committed();
    let filter = Filter { node, selector, group };
    let (page, filter) = api.query(move |api| first(api, after, filter)).await?;
    let (lines, ready) = mpsc::channel(WAITING);
    let spoke = clock::mono();
    tokio::spawn(Feed { api, caller, news, lines, spoke, place }.run(page, Ask { filter, follow, left }));
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(ReceiverStream::new(ready))).into_response())
}

/// Where to begin.
#[derive(Clone, Copy)]
enum After {
    Now,
    Start,
    Cursor(Cursor),
}

/// The first page: a cursor that leads nowhere is refused before the answer begins.
fn first(api: &Api, after: After, filter: Filter) -> Result<(Paged, Filter), Refusal> {
    let cursor = match after {
        After::Now => api.hub.logs().end()?,
        After::Start => api.hub.logs().start()?,
        After::Cursor(cursor) => cursor,
    };
    match read(api, cursor, &filter)? {
        Ok(paged) => Ok((paged, filter)),
        Err(gone) => Err(Refusal::Gone(why(gone))),
    }
}

/// A page, and the nodes that it names.
struct Paged {
    page: Page,
    names: HashMap<NodeNo, Option<NodeId>>,
}

fn read(api: &Api, at: Cursor, filter: &Filter) -> Result<Result<Paged, Gone>, Refusal> {
    let names: RefCell<HashMap<NodeNo, Option<NodeId>>> = RefCell::default();
    let page = api.hub.logs().page(at, |number| {
        let mut names = names.borrow_mut();
        names.entry(number).or_insert_with(|| filter.name(api, number)).is_some()
    })?;
    Ok(page.map(|page| Paged { page, names: names.into_inner() }))
}

impl Filter {
    /// The id of a node that is wanted.
    fn name(&self, api: &Api, number: NodeNo) -> Option<NodeId> {
        if number == HUB {
            // Its own events, unless some nodes are asked for.
            let all = self.node.is_none() && self.selector.is_empty() && self.group.is_empty();
            return all.then(NodeId::hub);
        }
        api.hub.with_fleet(|fleet| {
            let id = fleet.ids.get(&number)?;
            let node = &**fleet.nodes.get(id)?;
            let only = self.node.as_ref().is_none_or(|only| only == id);
            (only && self.selector.matches(node) && self.group.matches(node)).then(|| id.clone())
        })
    }
}

fn why(gone: Gone) -> String {
    match gone {
        Gone::Removed { since_ms } => {
            let since = since_ms.map_or_else(String::new, |since| {
                format!("; what is held arrived since {since} (Unix milliseconds)")
            });
            format!(
                "what follows this cursor is not held any more{since}. Read what lies between from \
                 /api/v1/nodes/{{id}}/telemetry and /api/v1/events, and go on with after=start"
            )
        }
        Gone::Foreign => {
            "this cursor is of another life of the hub's store, which was replaced or set back to a \
                          backup: go on with after=start, and compare with what you have"
                .to_owned()
        }
    }
}

/// One reader.
struct Feed {
    api: Arc<Api>,
    caller: Caller,
    news: watch::Receiver<u64>,
    lines: mpsc::Sender<Result<Bytes, Infallible>>,
    /// When the last line was sent, monotonic.
    spoke: Duration,
    place: OwnedSemaphorePermit,
}

/// The reader is gone, or the hub stops.
struct Over;

impl Feed {
    async fn run(mut self, first: Paged, ask: Ask) {
        // However it ends, there is nobody left to tell.
        drop(self.follow(first, ask).await);
        drop(self.place);
    }

    async fn follow(&mut self, first: Paged, ask: Ask) -> Result<(), Over> {
        let Ask { filter, follow, mut left } = ask;
        let filter = Arc::new(filter);
        let mut paged = first;
        // A first line at once: it says where the feed begins.
        let mut told = None;
        loop {
            let (after, end) = (paged.page.after, paged.page.end);
            for (cursor, item) in std::mem::take(&mut paged.page.items) {
                for line in told_of(&item, cursor, &paged.names) {
                    self.send(line).await?;
                    left -= 1;
                    if left == 0 {
                        return Ok(());
                    }
                }
                told = Some(cursor);
            }
            // What others committed is no line for this reader: its cursor moves on all the same.
            let is_silent = clock::mono().saturating_sub(self.spoke) >= ALIVE;
            if is_silent || (end && (told.is_none() || (!follow && told != Some(after)))) {
                self.mark(after).await?;
                told = Some(after);
            }
            if end && !follow {
                return Ok(());
            }
            paged = self.next(after, &filter, end, &mut told).await?;
        }
    }

    /// The next page; where there was nothing more, when there is something or it is time for a mark.
    async fn next(
        &mut self,
        at: Cursor,
        filter: &Arc<Filter>,
        mut wait: bool,
        told: &mut Option<Cursor>,
    ) -> Result<Paged, Over> {
        loop {
            if wait && !self.news().await? {
                self.mark(at).await?;
                *told = Some(at);
            }
            // Nothing that was committed after a token was taken back is told to its holder.
            if !self.api.still(&self.caller) {
                let detail = "the API token was removed or has expired".to_owned();
                self.send(line(&Line::Cut { cursor: at.to_string(), detail })).await?;
                return Err(Over);
            }
            let wanted = filter.clone();
            match self.api.query(move |api| read(api, at, &wanted)).await {
                Ok(Ok(paged)) => return Ok(paged),
                Ok(Err(gone)) => {
                    self.send(line(&Line::Cut { cursor: at.to_string(), detail: why(gone) })).await?;
                    return Err(Over);
                }
                Err(refusal) => {
                    tracing::debug!(%refusal, "a feed waits for the stores");
                    self.pause(AGAIN).await?;
                    wait = false;
                }
            }
        }
    }

    /// Waits for news; says false when there was none for long.
    async fn news(&mut self) -> Result<bool, Over> {
        self.pause(PAUSE).await?;
        let mut stopping = self.api.stopping.clone();
        tokio::select! {
            news = self.news.changed() => news.map(|()| true).map_err(|_| Over),
            () = tokio::time::sleep(ALIVE) => Ok(false),
            () = self.lines.closed() => Err(Over),
            _ = stopping.wait_for(|stop| *stop) => Err(Over),
        }
    }

    async fn pause(&self, time: Duration) -> Result<(), Over> {
        let mut stopping = self.api.stopping.clone();
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = self.lines.closed() => Err(Over),
            _ = stopping.wait_for(|stop| *stop) => Err(Over),
        }
    }

    async fn mark(&mut self, cursor: Cursor) -> Result<(), Over> {
        self.send(line(&Line::Mark { cursor: cursor.to_string() })).await
    }

    async fn send(&mut self, line: Bytes) -> Result<(), Over> {
        let mut stopping = self.api.stopping.clone();
        let sent = tokio::select! {
            sent = tokio::time::timeout(STALLED, self.lines.send(Ok(line))) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(Over),
                Err(_) => {
                    self.api.streams_cut.increment(1);
                    Err(Over)
                }
            },
            _ = stopping.wait_for(|stop| *stop) => Err(Over),
        };
        self.spoke = clock::mono();
        sent
    }
}

/// The lines of an item; the cursor of each counts the samples up to it.
fn told_of<'a>(
    item: &'a Item,
    after: Cursor,
    names: &'a HashMap<NodeNo, Option<NodeId>>,
) -> Box<dyn Iterator<Item = Bytes> + Send + 'a> {
    let name = |number| names.get(number).and_then(Option::as_ref);
    match item {
        Item::Samples { batch, known } => {
            let Some(node) = name(&batch.node) else { return Box::new(std::iter::empty()) };
            let samples = json::samples(batch);
            let mut at = usize::from(*known).min(samples.len());
            Box::new(std::iter::from_fn(move || {
                let part = samples.get(at..).filter(|rest| !rest.is_empty())?;
                let part = &part[..part.len().min(LINE_SAMPLES)];
                at += part.len();
                let known = u16::try_from(at).ok().filter(|_| at < samples.len());
                let cursor = known.map_or(after, |known| after.within(batch, known));
                Some(line(&Line::Samples { cursor: cursor.to_string(), node, samples: part }))
            }))
        }
        Item::Event(number, row) => {
            let Some(node) = name(&row.node).cloned() else { return Box::new(std::iter::empty()) };
            let event = StoredEvent {
                number: *number,
                node,
                time_ms: row.time_ms,
                recv_ms: row.recv_ms,
                by_hub: row.by_hub,
                event: row.event.clone(),
            };
            let event = Line::Event { cursor: after.to_string(), event: events::event(&event) };
            Box::new(std::iter::once(line(&event)))
        }
    }
}

fn line(line: &Line<'_>) -> Bytes {
    let mut text = serde_json::to_vec(line).expect("our own lines are JSON");
    text.push(b'\n');
    text.into()
}
