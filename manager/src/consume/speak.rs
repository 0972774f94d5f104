//! What may be said after the commit: acks to nodes, and items for whoever follows the hub.

use std::sync::Arc;

use fleet_schemas::{
    Lane, NodeId, Topic, VERSION,
    ack::{Ack, StreamAck, Verdict},
    cbor,
    event::Event,
    telemetry::Samples,
    topic::Down,
};

use super::Shared;
use crate::{
    alerts::AlertChange,
    core::{
        Now,
        command::Change,
        config,
        fleet::{Fleet, Node},
        identity::Cut,
        intake::{Effects, Reply},
        registry::RegistryError,
        rollout,
    },
    store::state::EventRow,
};

/// Something that was committed.
#[derive(Debug, Clone)]
pub enum FeedItem {
    /// A node's presence, summary or figures changed.
    Node(NodeId),
    /// An event was stored.
    Event(Box<StoredEvent>),
    /// Samples were stored.
    Samples {
        /// Whose.
        node: NodeId,
        /// Whether they came over the backfill lane.
        late: bool,
        /// Add this to their times.
        shift_ms: i64,
        /// The samples.
        samples: Box<Samples>,
    },
    /// A command was made, or an execution changed.
    Execution(Box<Change>),
    /// A layer of the configuration, or its schema, has a new revision.
    Config(Box<config::Change>),
    /// An alert changed.
    Alert(Box<AlertChange>),
    /// A rollout, a wave or a seat of it changed.
    Rollout(rollout::Id),
}

/// An event with its number and its node.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// Its number: the cursor of event pages.
    pub number: u64,
    /// Where it happened.
    pub node: NodeId,
    /// When, corrected, Unix milliseconds.
    pub time_ms: i64,
    /// When it arrived, hub time.
    pub recv_ms: i64,
    /// Whether the hub noticed it itself.
    pub by_hub: bool,
    /// The event.
    pub event: Event,
}

/// What may be said now.
#[derive(Debug, Default)]
pub struct Spoken {
    /// Messages to nodes.
    pub downs: Vec<(Topic, Vec<u8>)>,
    /// Items for followers.
    pub items: Vec<Arc<FeedItem>>,
    /// Sessions to end.
    pub cuts: Vec<Cut>,
    /// What became of the intents, in order.
    pub outcomes: Vec<Result<(), RegistryError>>,
}

pub(super) fn speak(
    shared: &Shared,
    effects: Effects,
    events: Vec<EventRow>,
    first_event: u64,
    outcomes: Vec<Result<(), RegistryError>>,
    credit: u32,
    now: Now,
) -> Spoken {
    let store_id = shared.state().store_id();
    let fleet = shared.fleet();
    let cuts = effects.cuts.into_iter().collect();
    let mut spoken = Spoken { outcomes, cuts, ..Spoken::default() };
    for (id, reply) in &effects.replies {
        let Some(node) = fleet.nodes.get(id) else { continue };
        // Without a session there is nobody to tell; the birth will ask.
        let Some(session) = node.record.presence.session else { continue };
        let mut ack = Ack {
            v: VERSION,
            store_id,
            session,
            birth: reply.birth,
            hub_ms: now.wall_ms,
            credit,
            lanes: std::collections::BTreeMap::new(),
        };
        for (lane, stream) in stream_acks(node, reply) {
            ack.lanes.entry(lane).or_default().push(stream);
        }
        spoken.downs.push((Topic::Down(id.clone(), Down::Ack), cbor::encode(&ack)));
    }
    for (id, mut orders) in effects.commands.orders {
        orders.store_id = store_id;
        spoken.downs.push((Topic::Down(id, Down::Command), cbor::encode(&orders)));
    }
    for (id, mut desired) in effects.config.desired {
        desired.store_id = store_id;
        spoken.downs.push((Topic::Down(id, Down::Config), cbor::encode(&desired)));
    }
    for (number, row) in (first_event..).zip(events) {
        let Some(node) = fleet.ids.get(&row.node) else { continue };
        let EventRow { time_ms, recv_ms, by_hub, event, .. } = row;
        let event = StoredEvent { number, node: node.clone(), time_ms, recv_ms, by_hub, event };
        spoken.items.push(Arc::new(FeedItem::Event(Box::new(event))));
    }
    spoken.items.extend(samples(&fleet, effects.inbox));
    let changes = effects.commands.changes.into_iter();
    spoken.items.extend(changes.map(|change| Arc::new(FeedItem::Execution(Box::new(change)))));
    let changes = effects.config.changes.into_iter();
    spoken.items.extend(changes.map(|change| Arc::new(FeedItem::Config(Box::new(change)))));
    let changes = effects.rollouts.changed.into_iter();
    spoken.items.extend(changes.map(|id| Arc::new(FeedItem::Rollout(id))));
    spoken.items.extend(effects.changed.into_iter().map(|id| Arc::new(FeedItem::Node(id))));
    spoken
}

fn stream_acks<'a>(node: &'a Node, reply: &'a Reply) -> impl Iterator<Item = (Lane, StreamAck)> + 'a {
    reply.streams.iter().map(|((lane, stream), verdict)| {
        let seq = node.marks.get(&(*lane, *stream)).map_or(0, |mark| mark.seq);
        let verdict = verdict.clone().unwrap_or(Verdict::Ok);
        (*lane, StreamAck { stream: *stream, seq, verdict })
    })
}

fn samples(
    fleet: &Fleet,
    rows: Vec<crate::core::intake::InboxRow>,
) -> impl Iterator<Item = Arc<FeedItem>> + '_ {
    rows.into_iter().filter_map(|row| {
        let node = fleet.ids.get(&row.number)?.clone();
        let late = row.lane == Lane::Backfill;
        let samples = Box::new(row.body.samples);
        Some(Arc::new(FeedItem::Samples { node, late, shift_ms: row.shift_ms, samples }))
    })
}
