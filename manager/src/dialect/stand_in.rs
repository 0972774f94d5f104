//! A stand-in: speaks on the bus for one node that speaks no MQTT, as an agent would, and waits until the hub has
//! committed what it said.
//!
//! One request of a node at a time, so that there is never more than one batch on its way. Whatever was not acked in time
//! is in doubt: the next request begins a session, and its numbers go on from what is committed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fleet_broker::{PublishError, Voice};
use fleet_schemas::{
    Lane, NodeId, SessionId,
    ack::{Ack, Verdict},
    cbor,
    topic::Up,
};
use tokio::{
    sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit, watch},
    time,
};

use super::{
    family::{self, Family},
    refusal::Refusal,
    said::Hello,
    seal::{self, Body, Sealer},
};
use crate::{
    clock,
    core::{
        Now,
        fleet::{Node, Record},
        time::millis,
    },
    hub::Hub,
};

/// How long a commit is waited for: PicClaw gives up after ten seconds.
const COMMIT: Duration = Duration::from_secs(8);
/// Requests of one node that may wait for each other.
const WAITING: usize = 16;

/// The stand-in of one node.
pub(super) struct StandIn {
    node: NodeId,
    talk: Mutex<Talk>,
    waiting: Semaphore,
    heard: watch::Sender<Heard>,
}

/// What the hub acked in the present session.
#[derive(Debug, Default)]
struct Heard {
    session: Option<SessionId>,
    born: bool,
    marks: BTreeMap<Lane, u64>,
    refused: bool,
}

/// One turn to speak.
pub(super) struct Turn<'a> {
    stand_in: &'a StandIn,
    talk: MutexGuard<'a, Talk>,
    _place: SemaphorePermit<'a>,
    hub: &'a Hub,
    voice: &'a Voice,
}

struct Talk {
    sealer: Sealer,
    // None: the next request begins one.
    session: Option<SessionId>,
    family: Family,
    beats: [Option<Duration>; 2],
    last_beat: Option<Duration>,
    status: Option<String>,
}

impl StandIn {
    pub(super) fn new(node: NodeId, boot: [u8; 8], family: Family) -> Self {
        let talk = Talk {
            sealer: Sealer::new(&node, boot),
            session: None,
            family,
            beats: [None; 2],
            last_beat: None,
            status: None,
        };
        Self {
            node,
            talk: Mutex::new(talk),
            waiting: Semaphore::new(WAITING),
            heard: watch::Sender::new(Heard::default()),
        }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// [`Refusal`] when too many requests of this node wait already.
    pub(super) async fn turn<'a>(&'a self, hub: &'a Hub, voice: &'a Voice) -> Result<Turn<'a>, Refusal> {
        let busy =
            || Refusal::too_many("too many requests of this node at once; send one after the other", 1);
        let place = self.waiting.try_acquire().map_err(|_| busy())?;
        let talk = self.talk.lock().await;
        Ok(Turn { stand_in: self, talk, _place: place, hub, voice })
    }

    /// An ack that the hub has committed; says whether it was for a session of this stand-in.
    pub(super) fn hear(&self, payload: &[u8]) -> bool {
        let Ok(ack) = cbor::decode::<Ack>(payload) else { return false };
        let mut mine = false;
        self.heard.send_if_modified(|heard| {
            mine = heard.session == Some(ack.session);
            if mine {
                heard.born |= ack.birth;
                for (lane, streams) in &ack.lanes {
                    for stream in streams.iter().filter(|stream| stream.stream.is_unsequenced()) {
                        heard.marks.insert(*lane, stream.seq);
                        heard.refused |= stream.verdict != Verdict::Ok;
                    }
                }
            }
            mine
        });
        mine
    }
}

impl Turn<'_> {
    /// How often this agent is heard.
    pub(super) fn interval(&self) -> Duration {
        family::interval(self.talk.family.interval(), self.talk.beats)
    }

    fn interval_ms(&self) -> u64 {
        u64::try_from(self.interval().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether there is a session that the hub knows.
    pub(super) fn is_live(&self) -> bool {
        let session = self.talk.session;
        let node = &self.stand_in.node;
        let known = |node: &Node| node.record.presence.session == session;
        session.is_some()
            && self.hub.with_fleet(|fleet| fleet.nodes.get(node).is_some_and(|node| known(node)))
    }

    /// Begins a session unless there is one, or an agent says who it is: then it was started.
    pub(super) async fn begin(&mut self, hello: Option<&Hello>, family: Family) -> Result<(), Refusal> {
        let node = &self.stand_in.node;
        if self.is_live() && hello.is_none() {
            return Ok(());
        }
        // A heartbeat of a family that has none of its own does not change whose agent it is.
        if hello.is_some() || self.talk.session.is_none() {
            self.talk.family = family;
        }
        if hello.is_some() {
            (self.talk.beats, self.talk.last_beat, self.talk.status) = ([None; 2], None, None);
        }
        let now = self.hub.clock().now();
        let known = self.hub.with_fleet(|fleet| fleet.nodes.get(node).map(|node| node.record.clone()));
        let known = known.unwrap_or_else(|| Record::new(node.clone(), now.wall_ms));
        let session = SessionId(clock::random());
        let nothing = Hello::default();
        let said = (hello.unwrap_or(&nothing), &known);
        let birth = self.talk.sealer.birth(session, said, self.talk.family, self.interval_ms(), now);
        birth.check().map_err(|why| Refusal::at("", why))?;
        self.talk.session = None;
        self.stand_in.heard.send_replace(Heard { session: Some(session), ..Heard::default() });
        self.say(Up::Birth, &cbor::encode(&birth))?;
        self.until(|heard| heard.born).await?;
        // All that was said before the birth was taken before it, or never will be.
        self.hub.with_fleet(|fleet| {
            let marks = fleet.nodes.get(node).map(|node| &node.marks);
            self.talk.sealer.resume(marks.into_iter().flatten());
        });
        self.talk.session = Some(session);
        Ok(())
    }

    /// A heartbeat. Latest wins; nothing waits for it.
    pub(super) fn beat(&mut self, figures: BTreeMap<String, f64>, now: Now) -> Result<(), Refusal> {
        let Some(session) = self.talk.session else { return Ok(()) };
        if let Some(last) = self.talk.last_beat {
            self.talk.beats = [self.talk.beats[1], Some(now.mono.saturating_sub(last))];
        }
        self.talk.last_beat = Some(now.mono);
        let heartbeat = self.talk.sealer.heartbeat(session, figures, self.interval_ms(), now);
        heartbeat.check().map_err(|why| Refusal::at("/metrics", why))?;
        self.say(Up::Heartbeat, &cbor::encode(&heartbeat))
    }

    /// The agent's own word for how it is; gives the one before when it changed.
    pub(super) fn status(&mut self, status: &str) -> Option<String> {
        let before = self.talk.status.replace(status.to_owned());
        before.filter(|before| before != status)
    }

    /// Records; returns when the hub has committed them. An error says nothing of what became of them.
    pub(super) async fn store(&mut self, bodies: Vec<Body>) -> Result<(), Refusal> {
        for body in bodies {
            // In doubt until it is acked, also when this request is given up.
            let Some(session) = self.talk.session.take() else {
                return Err(Refusal::unavailable("the hub has not answered what was said before; try again"));
            };
            let lane = body.lane;
            let (seq, payload) = self.talk.sealer.seal(body, self.hub.clock().now());
            self.say(Up::Lane(lane), &payload)?;
            self.until(|heard| heard.marks.get(&lane).is_some_and(|mark| *mark >= seq)).await?;
            self.talk.session = Some(session);
        }
        Ok(())
    }

    /// The agent ends.
    pub(super) fn end(&mut self) -> Result<(), Refusal> {
        let Some(session) = self.talk.session.take() else { return Ok(()) };
        self.say(Up::Death, &cbor::encode(&seal::death(session)))
    }

    fn say(&self, up: Up, payload: &[u8]) -> Result<(), Refusal> {
        self.voice.say(&self.stand_in.node, up, payload).map_err(|error| match error {
            PublishError::TooLarge => Refusal::new(
                axum::http::StatusCode::PAYLOAD_TOO_LARGE,
                "this is more than one message takes; send it in parts",
            ),
            PublishError::Speaks => Refusal::new(
                axum::http::StatusCode::FORBIDDEN,
                "this node has a session by MQTT and speaks for itself",
            ),
            PublishError::Full
            | PublishError::NotDown
            | PublishError::NotForTools
            | PublishError::RetainedFull => {
                Refusal::unavailable("the hub has more to do than it can take; try again")
            }
        })
    }

    async fn until(&self, done: impl Fn(&Heard) -> bool) -> Result<(), Refusal> {
        let mut heard = self.stand_in.heard.subscribe();
        let waiting = heard.wait_for(|heard| heard.refused || done(heard));
        let refused = match time::timeout(COMMIT, waiting).await {
            Ok(Ok(heard)) => heard.refused,
            Ok(Err(_)) | Err(_) => true,
        };
        if refused {
            let seconds = millis(COMMIT) / 1_000;
            return Err(Refusal::unavailable(format!(
                "the hub has not stored it within {seconds} s; it may or may not do so: try again"
            )));
        }
        Ok(())
    }
}

/// A stand-in that is shared.
pub(super) type Shared = Arc<StandIn>;
