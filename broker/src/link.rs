//! The hub's own client: the one consumer of what nodes say, and publishers of what they are told.
//!
//! Blocking, for threads without a runtime. Durability is not here: a message is safe when the hub committed it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fleet_schemas::{
    NodeId, Topic, limits,
    topic::{Up, check_form},
};

use crate::{
    branch::HubKind,
    clock,
    gate::talk::Talk,
    policy,
    router::{
        Plane,
        pipe::{Parcel, Received},
        saying::Said,
        tap::Tap,
    },
};

/// A message of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Always a [`Topic::Up`] of the node whose session it came in.
    pub topic: Topic,
    /// Its own copy: keeping it keeps no reader's buffer alive.
    pub payload: Bytes,
}

/// The consumer's end. One per broker; it lives on one thread.
pub struct Link {
    plane: Arc<Plane>,
    talk: Arc<Talk>,
    tap: Option<Tap>,
    addresses: Vec<usize>,
    /// Received from the plane beyond what the last call asked for.
    parcels: Vec<Parcel>,
    /// Given to the consumer and not yet taken.
    open: usize,
}

/// Publishes to nodes and to tools from any thread.
#[derive(Clone)]
pub struct Publisher {
    plane: Arc<Plane>,
    talk: Arc<Talk>,
}

/// Says on the bus what nodes say that speak no MQTT: the hub received it otherwise, and judged who they are.
#[derive(Clone)]
pub struct Voice {
    plane: Arc<Plane>,
}

/// The broker was shut down and every message was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker was shut down")]
pub struct LinkClosed;

/// Why a message was not published. All are counted but `NotDown` and what is said for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The plane holds as much as it may, or is shut down. The message is dropped: nothing may depend on one
    /// message arriving (DESIGN section 6).
    #[error("the down path is full or closed; the message was dropped")]
    Full,
    /// Longer than [`limits::PACKET_BYTES`] with its topic.
    #[error("the message is larger than a packet may be")]
    TooLarge,
    /// The hub does not speak for nodes.
    #[error("the topic is one that nodes publish")]
    NotDown,
    /// The node has a session of its own here.
    #[error("the node speaks for itself")]
    Speaks,
    /// Below `fleet/` or with a wildcard, empty, too long or not ASCII.
    #[error("the topic is none outside fleet/ that tools could hear")]
    NotForTools,
    /// The hub has retained as much outside `fleet/` as it may; the message went nowhere.
    #[error("too much is retained already outside fleet/; the message was dropped")]
    RetainedFull,
}

/// The link looks for a new router at least this often.
const LOOK: Duration = Duration::from_millis(100);

impl Link {
    pub(crate) fn new(plane: Arc<Plane>, talk: Arc<Talk>) -> Self {
        Self { plane, talk, tap: None, addresses: Vec::new(), parcels: Vec::new(), open: 0 }
    }

    /// Waits up to `timeout` for messages, then moves all that are there, up to `max`, into `into`, and says how
    /// many. The order of each node's messages is kept, through rebuilds of the router too.
    ///
    /// # Errors
    /// [`LinkClosed`] after a shutdown, when nothing is left.
    pub fn recv(
        &mut self,
        into: &mut Vec<Message>,
        max: usize,
        timeout: Duration,
    ) -> Result<usize, LinkClosed> {
        let deadline = clock::now() + timeout;
        let max = max.max(1);
        loop {
            if self.parcels.is_empty() {
                self.hear(max, deadline)?;
            }
            let count = max.min(self.parcels.len());
            if count > 0 {
                self.open += count;
                into.extend(self.parcels.drain(..count).map(|parcel| {
                    let payload = parcel.payload();
                    Message { topic: parcel.topic, payload }
                }));
                return Ok(count);
            }
            if clock::now() >= deadline {
                return Ok(0);
            }
        }
    }

    /// Says that messages were consumed (stored or refused), in the order they were received; call it after the
    /// commit. Until then their bytes count against the budget and hold back the reading of sockets.
    pub fn taken(&mut self, messages: &[Message]) {
        let count = messages.len().min(self.open);
        self.open -= count;
        self.plane.up.taken(count);
    }

    /// A publisher to nodes and tools.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        Publisher { plane: self.plane.clone(), talk: self.talk.clone() }
    }

    /// Speaks for nodes that speak no MQTT.
    #[must_use]
    pub fn voice(&self) -> Voice {
        Voice { plane: self.plane.clone() }
    }

    fn hear(&mut self, max: usize, deadline: std::time::Instant) -> Result<(), LinkClosed> {
        let until = deadline.min(clock::now() + LOOK);
        let wait = self.tap.is_none().then_some(until);
        if let Some(tap) = self.plane.newest_tap(wait) {
            self.tap = Some(tap);
        }
        if self.plane.closed() {
            self.plane.up.drain(max, &mut self.parcels);
            return if self.parcels.is_empty() { Err(LinkClosed) } else { Ok(()) };
        }
        let Some(tap) = &mut self.tap else { return Ok(()) };
        self.addresses.clear();
        let gone = tap.collect(until, max, &mut self.addresses).is_err();
        let generation = tap.generation();
        let heard = self.plane.up.receive(generation, &self.addresses, &mut self.parcels);
        if let Ok(Received { recovered, foreign }) = heard {
            self.plane.stats.router_recovered.add(recovered);
            self.plane.stats.router_foreign.add(foreign);
        }
        if gone || heard.is_err() {
            self.plane.report_gone(generation);
            self.tap = None;
        }
        Ok(())
    }
}

impl Publisher {
    /// Queues a message for a node, at the QoS its subscription was granted, at most 1, or one on a topic of the
    /// hub's own (`fleet/v1/hub/…`) for the tools that hear it, at the QoS their subscriptions were granted. Never
    /// waits. What is retained of the hub's topics is asked for when somebody subscribes
    /// ([`Directory::retained`](crate::Directory::retained)), so nothing says so here.
    ///
    /// What no tool wants to hear is accepted and goes nowhere; ask [`Self::wanted_kind`] before encoding it.
    ///
    /// # Errors
    /// [`PublishError`] when the message was not queued.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers are done with it; the copy stays with the parcel"
    )]
    pub fn publish(&self, topic: &Topic, payload: Bytes) -> Result<(), PublishError> {
        let stats = &self.plane.stats;
        let (pipe, dropped) = match topic {
            Topic::Down(..) => (&self.plane.down, &stats.down_dropped),
            Topic::Hub(hub) if self.wanted_kind(HubKind::of(hub)) => (&self.plane.news, &stats.hub_dropped),
            Topic::Hub(_) => {
                stats.hub_unheard.add(1);
                return Ok(());
            }
            Topic::Up(..) => return Err(PublishError::NotDown),
        };
        let text = topic.to_string();
        if text.len() + payload.len() + HEAD > limits::PACKET_BYTES {
            dropped.add(1);
            return Err(PublishError::TooLarge);
        }
        pipe.try_push(Parcel::new(topic.clone(), &text, &payload, 1)).map_err(|_| {
            dropped.add(1);
            PublishError::Full
        })
    }

    /// Whether any tool is subscribed to something of the hub's own topics: one atomic load. While not, nothing for
    /// them needs to be encoded.
    #[must_use]
    pub fn hub_wanted(&self) -> bool {
        self.plane.tools.hub_wanted()
    }

    /// Whether any tool is subscribed to something of this kind of the hub's own topics: one atomic load.
    #[must_use]
    pub fn wanted_kind(&self, kind: HubKind) -> bool {
        self.plane.tools.kind_wanted(kind)
    }

    /// Says something outside `fleet/`, where tools speak (discovery for Home Assistant), at the QoS that subscriptions
    /// were granted. Retained, it stays in memory until the hub or a tool says something else there; an empty payload
    /// clears it. The hub says it anew after a start. Never waits.
    ///
    /// # Errors
    /// [`PublishError`] when the message was not queued; then nothing changed either.
    pub fn announce(&self, topic: &str, payload: &[u8], retain: bool) -> Result<(), PublishError> {
        if !policy::is_for_tools(topic) || check_form(topic).is_err() {
            return Err(PublishError::NotForTools);
        }
        if topic.len() + payload.len() + HEAD > limits::PACKET_BYTES {
            self.plane.stats.talk_dropped.add(1);
            return Err(PublishError::TooLarge);
        }
        let said = Said { topic, payload, qos: 1, retain, expiry: None, properties: &[], sender: None };
        self.talk.announce(&said, clock::now())
    }

    /// Whether any tool is subscribed to this topic. Looks at every filter of every tool: for topics whose payload
    /// costs more than that.
    #[must_use]
    pub fn wanted(&self, topic: &Topic) -> bool {
        self.plane.tools.wanted(topic)
    }

    /// Publishes each, and says how many were queued.
    pub fn publish_many(&self, messages: impl IntoIterator<Item = (Topic, Bytes)>) -> usize {
        messages.into_iter().map(|(topic, payload)| usize::from(self.publish(&topic, payload).is_ok())).sum()
    }
}

impl Voice {
    /// Says something for a node, as if it came in a session of its own: tools hear it, and the consumer takes it.
    /// Never waits. One node's messages keep the order of the calls.
    ///
    /// # Errors
    /// [`PublishError`] when it was not said: too large, too much waits for the consumer already, or the node has a
    /// session here and speaks for itself.
    pub fn say(&self, node: &NodeId, up: Up, payload: &[u8]) -> Result<(), PublishError> {
        if self.plane.has_session(node) {
            return Err(PublishError::Speaks);
        }
        let topic = Topic::Up(node.clone(), up);
        let text = topic.to_string();
        if text.len() + payload.len() + HEAD > limits::PACKET_BYTES {
            return Err(PublishError::TooLarge);
        }
        self.plane.up.try_push(Parcel::new(topic, &text, payload, 1)).map_err(|_| PublishError::Full)?;
        self.plane.stats.up_messages.add(1);
        self.plane.stats.up_payload_bytes.add(payload.len());
        Ok(())
    }
}

/// The most a PUBLISH has beyond topic and payload: header, topic length, packet id, properties.
const HEAD: usize = 10;
