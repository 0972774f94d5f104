//! The mirror's thread: looks who is subscribed, follows what is committed, says it.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc::SyncSender},
    time::Duration,
};

use bytes::Bytes;
use fleet_broker::{HubKind, PublishError, Publisher};
use fleet_schemas::{NodeId, Topic, topic::Hub as Told};
use tokio::sync::{
    broadcast::{self, error::RecvError, error::TryRecvError},
    mpsc, watch,
};

use super::{Ask, Config, due::Due, home::Home, latest::Table, say};
use crate::{
    clock,
    consume::{FeedItem, Shared},
    core::fleet::{Node, NodeNo},
    feed::{Cursor, Item, json},
    hub::Hub,
    store::telemetry::Followed,
};

/// How often it looks who is subscribed; how much may be told that was committed just before.
const LOOK: Duration = Duration::from_millis(100);
/// Shortest time between two looks at the stores.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a message waits for room in the plane before it is dropped.
const ROOM: Duration = Duration::from_millis(20);
const ROOM_TIMES: u32 = 50;
/// Nodes that are told of between two looks at what was committed.
const AT_ONCE: usize = 256;
/// Series in memory, over all nodes (about 150 bytes each); beyond it all are read again when they change.
const SERIES: usize = 1_000_000;

/// What somebody is subscribed to.
#[derive(Debug, Clone, Copy, Default)]
struct Wants {
    node: bool,
    latest: bool,
    samples: bool,
    event: bool,
}

pub(super) struct Follower {
    hub: Hub,
    shared: Shared,
    publisher: Publisher,
    wants: Wants,
    /// Everything up to here was told, or happened before anybody wanted it.
    at: Option<Cursor>,
    changes: Option<broadcast::Receiver<Arc<FeedItem>>>,
    tables: HashMap<NodeNo, Table>,
    series: usize,
    nodes: Due<NodeId>,
    latest: Due<NodeId>,
    home: Option<Home>,
    announce: Due<NodeId>,
}

/// The hub stops.
struct Over;

impl Follower {
    pub(super) fn new(hub: Hub, shared: Shared, publisher: Publisher, config: &Config) -> Self {
        Self {
            hub,
            shared,
            publisher,
            wants: Wants::default(),
            at: None,
            changes: None,
            tables: HashMap::new(),
            series: 0,
            nodes: Due::default(),
            latest: Due::default(),
            home: config.home_assistant.as_deref().map(Home::new),
            announce: Due::default(),
        }
    }

    /// Runs until the hub stops.
    pub(super) async fn run(mut self, asked: &mut mpsc::Receiver<Ask>, stop: &mut watch::Receiver<bool>) {
        let mut committed = self.hub.committed();
        if self.home.is_some() {
            self.announce_all();
        }
        // An error is the end, and the end is nothing to tell anybody of.
        while !*stop.borrow() {
            self.attend();
            while let Ok(ask) = asked.try_recv() {
                self.answer(ask);
            }
            if self.follow(stop).await.is_err() || self.speak(stop).await.is_err() {
                return;
            }
            let busy = self.nodes.is_waiting() || self.latest.is_waiting() || self.announce.is_waiting();
            tokio::select! {
                _ = stop.changed() => return,
                ask = asked.recv() => match ask {
                    Some(ask) => self.answer(ask),
                    None => return,
                },
                item = change(&mut self.changes) => self.changed(item),
                news = committed.changed(), if self.is_following() => {
                    if news.is_err() {
                        return;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                () = tokio::time::sleep(if busy { PAUSE } else { LOOK }) => {}
            }
        }
    }

    fn is_following(&self) -> bool {
        let Wants { node: _, latest, samples, event } = self.wants;
        latest || samples || event || self.home.is_some()
    }

    /// Looks who is subscribed, and begins or ends to follow.
    fn attend(&mut self) {
        let kind = |kind| self.publisher.wanted_kind(kind);
        self.wants = if self.publisher.hub_wanted() {
            Wants {
                node: kind(HubKind::Node),
                latest: kind(HubKind::Latest),
                samples: kind(HubKind::Samples),
                event: kind(HubKind::Event),
            }
        } else {
            Wants::default()
        };
        // Whoever reads newest values hears of it, too, when a node goes.
        match (self.wants.node || self.wants.latest || self.home.is_some(), &self.changes) {
            (true, None) => self.changes = Some(self.hub.feed()),
            (false, Some(_)) => {
                self.changes = None;
                self.nodes.clear();
            }
            (true, Some(_)) | (false, None) => {}
        }
        if !self.is_following() || self.at.is_none() {
            // From now on; while nobody listens, now moves on.
            self.at = self.hub.logs().end().ok();
        }
        if !self.wants.latest && self.home.is_none() && self.series > 0 {
            self.forget_tables();
            self.latest.clear();
        }
    }

    fn forget_tables(&mut self) {
        self.tables = HashMap::new();
        self.series = 0;
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Attend(answer) => {
                self.attend();
                self.drain_changes();
                reply(&answer);
            }
            Ask::Announce => {
                if let Some(home) = &mut self.home {
                    home.again();
                    self.announce_all();
                }
            }
        }
    }

    fn announce_all(&mut self) {
        let ids: Vec<_> = self.hub.with_fleet(|fleet| fleet.nodes.keys().cloned().collect());
        ids.into_iter().for_each(|id| self.announce.changed(id));
    }

    fn drain_changes(&mut self) {
        while let Some(changes) = &mut self.changes {
            match changes.try_recv() {
                Ok(item) => self.changed(Ok(item)),
                Err(TryRecvError::Lagged(missed)) => self.changed(Err(RecvError::Lagged(missed))),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn changed(&mut self, item: Result<Arc<FeedItem>, RecvError>) {
        match item {
            Ok(item) => {
                if let FeedItem::Node(id) = &*item {
                    self.node_changed(id.clone());
                }
            }
            // Any of them may have changed, or may have been removed.
            Err(RecvError::Lagged(_)) => {
                let ids: Vec<_> = self.hub.with_fleet(|fleet| fleet.ever().cloned().collect());
                ids.into_iter().for_each(|id| self.node_changed(id));
            }
            Err(RecvError::Closed) => self.changes = None,
        }
    }

    fn node_changed(&mut self, id: NodeId) {
        if self.home.is_some() {
            self.announce.changed(id.clone());
        }
        if self.wants.node || self.wants.latest {
            self.nodes.changed(id);
        }
    }

    /// Says what was committed since.
    async fn follow(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), Over> {
        while let Some(at) = self.at.filter(|_| self.is_following()) {
            let Wants { latest, samples, event, .. } = self.wants;
            let batches = samples || latest || self.home.is_some();
            let page = match self.hub.logs().page_of(at, |_| batches, |_| event) {
                Ok(Ok(page)) => page,
                Ok(Err(gone)) => {
                    tracing::warn!(?gone, "the mirror fell behind what is held, and goes on from now");
                    self.at = None;
                    self.forget_tables();
                    return Ok(());
                }
                Err(error) => {
                    // The stores are being opened again; the cursor stays.
                    tracing::debug!(%error, "the mirror waits for the stores");
                    return Ok(());
                }
            };
            for (_, item) in page.items {
                match item {
                    Item::Samples { batch, .. } => self.samples(&batch, stop).await?,
                    Item::Event(number, row) => {
                        let Some(node) = self.id(row.node) else { continue };
                        let topic = Topic::Hub(Told::Event(node.clone()));
                        if self.publisher.wanted(&topic) {
                            self.say(&topic, say::event(number, node, *row), stop).await?;
                        }
                    }
                }
            }
            self.at = Some(page.after);
            if page.end {
                break;
            }
        }
        Ok(())
    }

    fn id(&self, number: NodeNo) -> Option<NodeId> {
        self.hub.with_fleet(|fleet| fleet.subject(number))
    }

    async fn samples(&mut self, batch: &Followed, stop: &mut watch::Receiver<bool>) -> Result<(), Over> {
        let Some(node) = self.id(batch.node) else { return Ok(()) };
        let samples = json::samples(batch);
        if self.wants.samples {
            let topic = Topic::Hub(Told::Samples(node.clone()));
            if self.publisher.wanted(&topic) {
                for message in say::samples(&samples) {
                    self.say(&topic, message, stop).await?;
                }
            }
        }
        if self.wants.latest || self.home.is_some() {
            let (any, more) = self.newest(batch.node, &samples);
            if any && self.wants.latest {
                self.latest.changed(node.clone());
            }
            if more && self.home.is_some() {
                self.announce.changed(node);
            }
        }
        Ok(())
    }

    /// Takes samples into a node's table; says whether it changed, and whether it has more series.
    fn newest(&mut self, number: NodeNo, samples: &[json::Sample<'_>]) -> (bool, bool) {
        match self.tables.get_mut(&number) {
            Some(table) => {
                let before = table.len();
                let any = table.take(samples);
                self.series += table.len() - before;
                (any, table.len() > before)
            }
            // Read when it is told: the store has these samples already.
            None => (true, true),
        }
    }

    /// Says what is due.
    async fn speak(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), Over> {
        let now = clock::mono();
        for id in self.nodes.take(now, AT_ONCE) {
            let topic = Topic::Hub(Told::Node(id.clone()));
            if !self.hub.with_fleet(|fleet| fleet.nodes.contains_key(&id)) {
                // Nothing is retained of it any more.
                for topic in [Topic::Hub(Told::Latest(id)), topic] {
                    if self.publisher.wanted(&topic) {
                        self.say(&topic, Vec::new(), stop).await?;
                    }
                }
                continue;
            }
            let node = self.look(&id).filter(|_| self.publisher.wanted(&topic));
            if let Some(node) = node {
                let devices = self.table(node.number).map_or(0, |table| table.devices_count());
                let payload = say::node(&self.shared, &node, devices);
                self.say(&topic, payload, stop).await?;
            }
        }
        for id in self.latest.take(now, AT_ONCE) {
            let topic = Topic::Hub(Told::Latest(id.clone()));
            let number = self.look(&id).map(|node| node.number).filter(|_| self.publisher.wanted(&topic));
            if let Some(payload) = number.and_then(|n| self.table(n)).map(|t| t.json(say::MESSAGE_BYTES)) {
                self.say(&topic, payload, stop).await?;
            }
        }
        self.announce_due(now);
        Ok(())
    }

    fn announce_due(&mut self, now: Duration) {
        let Some(mut home) = self.home.take() else { return };
        let publisher = self.publisher.clone();
        for id in self.announce.take(now, AT_ONCE) {
            let said = match self.look(&id) {
                Some(node) => match self.table(node.number) {
                    Some(table) => home.announce(&node.record, table, &publisher),
                    None => Err(PublishError::Full),
                },
                None => home.forget(&id, &publisher),
            };
            match said {
                Ok(()) => {}
                Err(PublishError::Full) => self.announce.changed(id),
                Err(error) => tracing::warn!(%error, node = %id, "a node is not announced to Home Assistant"),
            }
        }
        self.home = Some(home);
    }

    fn look(&self, id: &NodeId) -> Option<Node> {
        self.hub.with_fleet(|fleet| fleet.nodes.get(id).map(|node| Node::clone(node)))
    }

    /// The newest values of a node: kept up to date while they are followed, else read.
    fn table(&mut self, number: NodeNo) -> Option<&Table> {
        if self.series > SERIES {
            self.forget_tables();
        }
        let kept = self.wants.latest || self.home.is_some();
        if !kept || !self.tables.contains_key(&number) {
            let latest = self.hub.telemetry().latest(number);
            let latest = latest.map_err(|error| tracing::debug!(%error, "the mirror waits for the stores"));
            let table = Table::of(latest.ok()?);
            self.series += table.len();
            if let Some(before) = self.tables.insert(number, table) {
                self.series -= before.len();
            }
        }
        self.tables.get(&number)
    }

    /// Publishes; waits a little for room in the plane.
    async fn say(
        &self,
        topic: &Topic,
        payload: Vec<u8>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), Over> {
        let payload = Bytes::from(payload);
        for _ in 0..ROOM_TIMES {
            match self.publisher.publish(topic, payload.clone()) {
                Ok(()) => return Ok(()),
                Err(PublishError::Full) => {}
                Err(error) => {
                    tracing::warn!(%error, %topic, "the mirror could not say something");
                    return Ok(());
                }
            }
            tokio::select! {
                () = tokio::time::sleep(ROOM) => {}
                _ = stop.changed() => return Err(Over),
            }
        }
        tracing::warn!(%topic, "the mirror dropped a message: subscribers do not keep up");
        Ok(())
    }
}

/// The next change of a node's presence or summary, where they are followed.
async fn change(
    changes: &mut Option<broadcast::Receiver<Arc<FeedItem>>>,
) -> Result<Arc<FeedItem>, RecvError> {
    match changes {
        Some(changes) => changes.recv().await,
        None => std::future::pending().await,
    }
}

fn reply(answer: &SyncSender<()>) {
    // Whoever asked may have given up.
    let _ = answer.try_send(());
}
