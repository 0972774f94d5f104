//! What nodes say, decided: births, deaths, heartbeats and batches become effects.
//!
//! The fleet in memory is changed at once and the effects are collected; the consumer writes them in one transaction
//! and speaks afterwards. If that transaction fails, fleet and effects are thrown away and read from the store again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fleet_schemas::{
    Lane, NodeId, StreamId, VERSION,
    ack::Verdict,
    batch::{Batch, Digest, Head, Lost},
    command::Report,
    event::{Event, Severity},
    limits,
    session::{Birth, Death, Heartbeat, StreamState},
    telemetry::Samples,
    update,
};

use super::{
    Now, command, config,
    fleet::{Fleet, Node, NodeNo, Record, Vital},
    identity,
    ledger::Counters,
    mark::{self, Mark, Offer, Said},
    presence::State,
    rollout::{self, Heard, Word},
};

/// Everything a node says, decoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A session begins.
    Birth(Box<Birth>),
    /// A session ended.
    Death(Death),
    /// Still here.
    Heartbeat(Box<Heartbeat>),
    /// A batch.
    Batch {
        /// Its lane.
        lane: Lane,
        /// Its envelope; the body is in `body`.
        batch: Batch,
        /// Of the payload as it travelled.
        digest: Digest,
        /// What the body turned out to be.
        body: Body,
    },
    /// A batch of a version that this build does not read.
    Unknown {
        /// Its lane.
        lane: Lane,
        /// Enough of it to answer.
        head: Head,
    },
}

/// The body of a batch, checked.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Samples, as many as the envelope says.
    Samples(Box<SamplesBody>),
    /// Events, as many as the envelope says.
    Events(Vec<Event>),
    /// Reports on commands, as many as the envelope says.
    Reports(Vec<Report>),
    /// None: a tombstone.
    Tombstone,
    /// Unreadable: why, and the payload as it travelled.
    Bad(&'static str, Bytes),
}

/// Samples in the three forms that the store chooses from.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplesBody {
    /// Decoded.
    pub samples: Samples,
    /// As plain CBOR.
    pub plain: Vec<u8>,
    /// The whole batch as it travelled.
    pub payload: Bytes,
}

/// Samples to store.
#[derive(Debug, Clone, PartialEq)]
pub struct InboxRow {
    /// Whose.
    pub number: NodeNo,
    /// On which lane.
    pub lane: Lane,
    /// When they arrived, hub time.
    pub recv_ms: i64,
    /// What to add to their times.
    pub shift_ms: i64,
    /// The samples.
    pub body: Box<SamplesBody>,
}

/// A batch kept raw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Whose.
    pub number: NodeNo,
    /// On which lane.
    pub lane: Lane,
    /// When it arrived, hub time.
    pub recv_ms: i64,
    /// Records by its envelope.
    pub count: u64,
    /// Why.
    pub reason: &'static str,
    /// As it travelled.
    pub payload: Bytes,
}

/// An event to store.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// Where it happened.
    pub number: NodeNo,
    /// When it arrived, hub time.
    pub recv_ms: i64,
    /// What to add to its time.
    pub shift_ms: i64,
    /// Whether the hub noticed it itself.
    pub by_hub: bool,
    /// The event.
    pub event: Event,
}

/// What a node is told after the commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// Whether this answers a birth: then all streams are listed.
    pub birth: bool,
    /// The streams whose mark is told, each with a verdict.
    pub streams: BTreeMap<(Lane, StreamId), Option<Verdict>>,
}

/// What one group of inputs comes to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effects {
    /// Nodes whose row is to be written.
    pub nodes: BTreeSet<NodeId>,
    /// Marks whose row is to be written.
    pub marks: BTreeSet<(NodeId, Lane, StreamId)>,
    /// Differences of the counters, stored and quarantined aside (the store counts those as it writes).
    pub booked: BTreeMap<(NodeNo, Lane), Counters>,
    /// Samples to store, in order.
    pub inbox: Vec<InboxRow>,
    /// Batches to keep raw.
    pub quarantined: Vec<Quarantined>,
    /// Events to store, in order.
    pub events: Vec<NewEvent>,
    /// What to answer after the commit.
    pub replies: BTreeMap<NodeId, Reply>,
    /// Nodes whose presence or summary changed.
    pub changed: BTreeSet<NodeId>,
    /// What became of commands.
    pub commands: command::Effects,
    /// What becomes of configuration.
    pub config: config::Effects,
    /// What nodes said of updates, in order.
    pub heard: Vec<rollout::Heard>,
    /// What becomes of rollouts.
    pub rollouts: rollout::Effects,
    /// Rows of who may speak to the hub that are to be written.
    pub identities: BTreeSet<identity::Row>,
    /// Nodes whose return after a restore is to be written.
    pub home: BTreeSet<NodeId>,
    /// Sessions to end after the commit.
    pub cuts: BTreeSet<identity::Cut>,
    /// Nodes whose machine was shut out, or lost its place to another: what waits for it is given up.
    pub left: BTreeSet<NodeId>,
    /// Nodes to forget with all that is of them, each with its streams.
    pub forgotten: Vec<(NodeNo, Vec<(Lane, StreamId)>)>,
}

impl Effects {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn nothing_to_write(&self) -> bool {
        self.nodes.is_empty()
            && self.marks.is_empty()
            && self.booked.is_empty()
            && self.inbox.is_empty()
            && self.quarantined.is_empty()
            && self.events.is_empty()
            && self.commands.nothing_to_write()
            && self.config.rows.is_empty()
            && self.rollouts.nothing_to_write()
            && self.identities.is_empty()
            && self.home.is_empty()
            && self.forgotten.is_empty()
    }

    pub(super) fn book(&mut self, number: NodeNo, lane: Lane, counters: Counters) {
        if counters != Counters::default() {
            *self.booked.entry((number, lane)).or_default() += counters;
        }
    }

    pub(super) fn by_hub(&mut self, node: &Node, kind: &str, severity: Severity, message: String, now: Now) {
        let kind = fleet_schemas::MetricName::parse(kind).expect("our own kinds are short and printable");
        let event =
            Event { time_ms: now.wall_ms, kind, severity, message, data: None, device: None, id: None };
        self.events.push(NewEvent {
            number: node.number,
            recv_ms: now.wall_ms,
            shift_ms: 0,
            by_hub: true,
            event,
        });
    }
}

/// Takes one message of a node. `highest` is the highest node number the store ever gave.
pub fn take(fleet: &mut Fleet, effects: &mut Effects, id: &NodeId, input: Input, highest: NodeNo, now: Now) {
    // What was on its way when the node was removed.
    if fleet.gone.contains_key(id) || fleet.buried.contains(id) {
        return;
    }
    let is_new = !fleet.nodes.contains_key(id);
    if is_new {
        let number = fleet.number_after(highest);
        fleet.insert(Node::new(number, Record::new(id.clone(), now.wall_ms)));
        effects.nodes.insert(id.clone());
        effects.changed.insert(id.clone());
    }
    match input {
        Input::Birth(birth) => take_birth(fleet, effects, id, &birth, is_new, now),
        Input::Death(death) => {
            if let Some(node) = fleet.nodes.get_mut(id).filter(|node| node.moves) {
                node.vital = None;
            }
            if fleet.presence(id, |presence| presence.death(death.session, death.until_ms, now)) {
                effects.changed.insert(id.clone());
                effects.nodes.insert(id.clone());
            }
        }
        Input::Heartbeat(heartbeat) => take_heartbeat(fleet, effects, id, &heartbeat, now),
        Input::Batch { lane, batch, digest, body } => {
            seen(fleet, effects, id, now);
            let Fleet { nodes, commands, .. } = fleet;
            if let Some(node) = nodes.get_mut(id) {
                let reports = take_batch(node, effects, lane, &batch, digest, body, now);
                let mut leaves = None;
                for report in reports {
                    leaves = command::leaves_for(commands, &report).or(leaves);
                    command::report(commands, &mut effects.commands, report);
                }
                if lane == Lane::Command {
                    // A birth may have waited for this batch.
                    commands.touch(node.number);
                }
                if let Some(hub) = leaves {
                    let message =
                        format!("the node leaves for the hub at {hub}; what waited for it here is over");
                    node.moves = true;
                    effects.by_hub(node, "node_moved", Severity::Info, message, now);
                    command::moved(fleet, &mut effects.commands, id, now);
                }
            }
        }
        Input::Unknown { lane, head } => {
            seen(fleet, effects, id, now);
            let refused = Verdict::Refused {
                seq: head.seq,
                reason: format!("this hub reads payload versions up to {VERSION}"),
                max_v: VERSION,
            };
            reply(effects, id, lane, head.stream, Some(refused));
        }
    }
}

fn reply(effects: &mut Effects, id: &NodeId, lane: Lane, stream: StreamId, verdict: Option<Verdict>) {
    // A lookup before an entry: cloning the id for every batch would cost more than the rest.
    if !effects.replies.contains_key(id) {
        effects.replies.insert(id.clone(), Reply::default());
    }
    if let Some(reply) = effects.replies.get_mut(id) {
        let entry = reply.streams.entry((lane, stream)).or_default();
        *entry = verdict.or(entry.take());
    }
}

fn seen(fleet: &mut Fleet, effects: &mut Effects, id: &NodeId, now: Now) {
    if let Some(node) = fleet.nodes.get_mut(id) {
        node.record.last_seen_ms = now.wall_ms;
    }
    if fleet.presence(id, |presence| presence.seen(now)) {
        effects.changed.insert(id.clone());
        effects.nodes.insert(id.clone());
    }
}

fn take_birth(fleet: &mut Fleet, effects: &mut Effects, id: &NodeId, birth: &Birth, is_new: bool, now: Now) {
    let was = fleet.nodes.get(id).map(|node| node.record.presence.state);
    fleet.presence(id, |presence| presence.birth(birth.session, birth.interval_ms, now));
    let Some(node) = fleet.nodes.get_mut(id) else { return };
    // A node may be known by its batches before its first birth: then nothing of it is settled yet.
    let is_new = is_new || was == Some(State::New) && node.marks.is_empty();
    let record = &mut node.record;
    let boot_is_new = record.boots.learn(birth.boot, birth.up_ms, now.wall_ms);
    let meanwhile = record.boots.latest_before(birth.boot).filter(|_| !boot_is_new);
    let returned_boot = meanwhile.map(|other| (birth.boot, other));
    record.boots.latest(birth.boot);
    // The agent counts its sessions on disk: a count that does not grow was counted on another disk.
    let set_back =
        record.session.is_some_and(|known| known != birth.session) && birth.epoch <= record.session_epoch;
    record.last_seen_ms = now.wall_ms;
    record.session_epoch = birth.epoch;
    let is_next = record.session != Some(birth.session);
    record.session = Some(birth.session);
    record.kind.clone_from(&birth.kind);
    record.own_name.clone_from(&birth.name);
    record.capabilities.clone_from(&birth.capabilities);
    record.capabilities.truncate(limits::LABELS_PER_NODE);
    record.versions.clone_from(&birth.versions);
    record.machine.clone_from(&birth.machine);
    if node.twins.born(returned_boot, birth.instance) {
        let message = "two machines, or two agents on one, take turns under this id: a cloned card, or a copied identity".to_owned();
        effects.by_hub(node, "two_instances", Severity::Error, message, now);
    }
    // What the last heartbeat said of samples without a number: they have one by now, or are gone with the process.
    if let Some(vital) = node.vital.as_mut().filter(|_| is_next) {
        vital.pending_samples = birth.pending.samples;
    }
    let said = Said { boot: birth.boot, up_ms: birth.up_ms };
    let (rolled_back, lost) = settle(node, effects, birth, said, is_new, now);
    if fleet.restored.as_mut().is_some_and(|restored| restored.born(node, &birth.lanes, lost, now.wall_ms)) {
        effects.home.insert(id.clone());
    }
    let set_back = rolled_back || set_back;
    if set_back {
        let message =
            "the node's storage was set back to an earlier state (a restored image, a cloned or wiped \
                       card): records of the time between may be stored twice"
                .to_owned();
        effects.by_hub(node, "edge_rollback", Severity::Warning, message, now);
    }
    let number = node.number;
    let reports = birth.lanes.get(&Lane::Command).map(Vec::as_slice).unwrap_or_default();
    let upto = || reports.iter().map(|state| (state.stream, state.next_seq)).collect();
    let born = command::Born {
        session: birth.session,
        commands: birth.commands.as_deref(),
        upto: (!birth.partial).then(upto),
        set_back,
    };
    command::born(&mut fleet.commands, &mut effects.commands, number, &born);
    config::hear(&mut fleet.config, effects, node, birth.config.as_ref(), now);
    let events = birth.lanes.get(&Lane::Event).map(Vec::as_slice).unwrap_or_default();
    node.unborn = events.iter().map(|state| (state.stream, state.next_seq)).collect();
    let running = birth.versions.running.clone();
    effects.heard.push(Heard { node: number, word: Word::Runs { running, born: true } });
    let streams = birth.lanes.iter().flat_map(|(lane, states)| states.iter().map(|s| (*lane, s.stream)));
    for (lane, stream) in streams {
        reply(effects, id, lane, stream, None);
    }
    effects.replies.entry(id.clone()).or_default().birth = true;
    effects.nodes.insert(id.clone());
    effects.changed.insert(id.clone());
}

/// Compares what the birth says with the marks, and books what neither side has. Says whether the edge came back with
/// less than it had delivered, and how many records were booked as lost.
fn settle(
    node: &mut Node,
    effects: &mut Effects,
    birth: &Birth,
    said: Said,
    is_new: bool,
    now: Now,
) -> (bool, u64) {
    let (mut rolled_back, mut lost) = (false, 0);
    for (lane, states) in &birth.lanes {
        for state in states {
            let settled =
                node.marks.entry((*lane, state.stream)).or_default().birth(state, said, now.wall_ms);
            effects.marks.insert((node.record.id.clone(), *lane, state.stream));
            effects.book(node.number, *lane, Counters { lost: settled.hole, ..Counters::default() });
            rolled_back |= settled.rolled_back;
            lost += settled.hole;
            if settled.hole > 0 {
                let reason = mark::reason_for_hole(is_new);
                lost_event(node, effects, *lane, settled.hole, reason, now);
            }
        }
    }
    if !birth.partial {
        let listed = |lane: Lane, stream: StreamId| {
            birth
                .lanes
                .get(&lane)
                .is_some_and(|states| states.iter().any(|s: &StreamState| s.stream == stream))
        };
        let mut gone = Vec::new();
        for ((lane, stream), mark) in &mut node.marks {
            if !listed(*lane, *stream) && mark.life == mark::Life::Open && *stream != mark::FOLDED {
                let missing = mark.close(said, now.wall_ms);
                gone.push((*lane, *stream, missing));
                // An agent forgets a stream only when it has many newer ones to remember.
                let listed = birth.lanes.get(lane).map_or(0, Vec::len);
                // What was sealed on its behalf it never had.
                let own = !stream.is_unsequenced();
                rolled_back |= own && mark.is_over() && listed < limits::STREAMS_REMEMBERED;
            }
        }
        for (lane, stream, missing) in gone {
            effects.marks.insert((node.record.id.clone(), lane, stream));
            effects.book(node.number, lane, Counters { lost: missing, ..Counters::default() });
            lost += missing;
            if missing > 0 {
                lost_event(node, effects, lane, missing, Lost::EdgeStateLost, now);
            }
        }
    }
    (rolled_back, lost)
}

fn lost_event(node: &Node, effects: &mut Effects, lane: Lane, records: u64, reason: Lost, now: Now) {
    let message = format!("{records} records of lane {lane} are lost: {}", reason.as_str());
    effects.by_hub(node, "records_lost", Severity::Warning, message, now);
}

fn take_heartbeat(fleet: &mut Fleet, effects: &mut Effects, id: &NodeId, heartbeat: &Heartbeat, now: Now) {
    let known = fleet.nodes.get(id).and_then(|node| node.record.presence.session);
    if known.is_some_and(|session| session != heartbeat.session) {
        return;
    }
    let interval_ms = heartbeat.interval_ms;
    if fleet.presence(id, |presence| presence.heartbeat(heartbeat.session, interval_ms, now)) {
        effects.nodes.insert(id.clone());
        if let Some(node) = fleet.nodes.get(id) {
            // Back in a session that was given up: what waits goes on without a birth.
            fleet.commands.touch(node.number);
        }
    }
    let Some(node) = fleet.nodes.get_mut(id) else { return };
    node.record.last_seen_ms = now.wall_ms;
    node.record.boots.learn(heartbeat.boot, heartbeat.up_ms, now.wall_ms);
    if !heartbeat.partial {
        let reports = heartbeat.lanes.get(&Lane::Command).map(Vec::as_slice).unwrap_or_default();
        command::relisted(&mut fleet.commands, node.number, heartbeat.session, reports, &node.marks);
    }
    let said = Said { boot: heartbeat.boot, up_ms: heartbeat.up_ms };
    for (lane, states) in &heartbeat.lanes {
        for state in states {
            // A stream of which no batch and no birth came yet waits for them.
            if let Some(mark) = node.marks.get_mut(&(*lane, state.stream)) {
                mark.observe(state, said, now.wall_ms);
            }
        }
    }
    if let Some(reported) = &heartbeat.config
        && config::hear(&mut fleet.config, effects, node, Some(reported), now)
    {
        effects.nodes.insert(id.clone());
    }
    node.vital = Some(Vital::new(heartbeat, now.wall_ms));
    effects.changed.insert(id.clone());
}

fn take_batch(
    node: &mut Node,
    effects: &mut Effects,
    lane: Lane,
    batch: &Batch,
    digest: Digest,
    body: Body,
    now: Now,
) -> Vec<command::NewReport> {
    let key = (lane, batch.stream);
    let count = batch.count;
    let offer =
        node.marks.get(&key).map_or_else(|| Mark::default().offer(batch, digest), |m| m.offer(batch, digest));
    let id = &node.record.id;
    match offer {
        Offer::Gap => reply(effects, id, lane, batch.stream, None),
        Offer::Again => {
            effects.book(node.number, lane, Counters { duplicates: count, ..Counters::default() });
            reply(effects, id, lane, batch.stream, None);
        }
        Offer::Fork => {
            reply(effects, id, lane, batch.stream, Some(Verdict::Fork { seq: batch.seq }));
            let mark = node.marks.entry(key).or_default();
            if mark.fork(batch.seq, now.wall_ms) {
                effects.marks.insert((id.clone(), lane, batch.stream));
                let message = format!(
                    "lane {lane} delivered two different batches under number {}: a cloned card or a restored image",
                    batch.seq
                );
                effects.by_hub(node, "stream_forked", Severity::Error, message, now);
            }
        }
        Offer::Next { hole } => {
            reply(effects, id, lane, batch.stream, None);
            if hole > 0 {
                effects.book(node.number, lane, Counters { lost: hole, ..Counters::default() });
                lost_event(node, effects, lane, hole, Lost::EdgeCorrupt, now);
            }
            node.marks.entry(key).or_default().take(batch, digest, now.wall_ms);
            effects.marks.insert((node.record.id.clone(), lane, batch.stream));
            if let Body::Events(events) = &body {
                hear(node, effects, batch, events);
            }
            return store(node, effects, lane, batch, body, now);
        }
    }
    Vec::new()
}

/// What events say of updates. What ran when they were sealed is old news if a birth has come since: it told later.
fn hear(node: &mut Node, effects: &mut Effects, batch: &Batch, events: &[Event]) {
    let is_old = node.unborn.get(&batch.stream).is_some_and(|unborn| batch.seq < *unborn);
    for event in events {
        if let Some(report) = update::Report::of(event) {
            effects.heard.push(Heard { node: node.number, word: Word::Step(Box::new(report)) });
        } else if let Some(versions) = update::running(event).filter(|_| !is_old) {
            let running = versions.running.clone();
            node.record.versions = versions;
            effects.nodes.insert(node.record.id.clone());
            effects.changed.insert(node.record.id.clone());
            effects.heard.push(Heard { node: node.number, word: Word::Runs { running, born: false } });
        }
    }
}

/// Puts a batch where it belongs; gives the reports on commands that it has.
fn store(
    node: &Node,
    effects: &mut Effects,
    lane: Lane,
    batch: &Batch,
    body: Body,
    now: Now,
) -> Vec<command::NewReport> {
    let number = node.number;
    let recv_ms = now.wall_ms;
    let shift_ms = node.record.boots.shift_ms(batch.boot, batch.up_ms, batch.clock, batch.sealed_ms);
    match body {
        Body::Samples(body) => {
            effects.inbox.push(InboxRow { number, lane, recv_ms, shift_ms, body });
        }
        Body::Events(events) => {
            let stored = |event| NewEvent { number, recv_ms, shift_ms, by_hub: false, event };
            effects.events.extend(events.into_iter().map(stored));
        }
        Body::Reports(reports) => {
            let new = |report: Report| {
                let at_ms = report.time_ms.saturating_add(shift_ms);
                command::NewReport { node: number, recv_ms, at_ms, report, kept: command::Kept::Execution }
            };
            return reports.into_iter().map(new).collect();
        }
        Body::Tombstone => {
            effects.book(number, lane, Counters { lost: batch.count, ..Counters::default() });
            lost_event(node, effects, lane, batch.count, batch.lost.unwrap_or(Lost::Other), now);
        }
        Body::Bad(reason, payload) => {
            effects.quarantined.push(Quarantined {
                number,
                lane,
                recv_ms,
                count: batch.count,
                reason,
                payload,
            });
        }
    }
    Vec::new()
}

/// Lets deadlines pass.
pub fn handle_timeouts(fleet: &mut Fleet, effects: &mut Effects, now: Now) {
    for id in fleet.overdue(now.mono) {
        if fleet.presence(&id, |presence| presence.handle_timeout(now)) {
            effects.nodes.insert(id.clone());
            effects.changed.insert(id);
        }
    }
}

#[cfg(test)]
mod tests;
