//! A rollout to a fleet that is too large for a disk and an outbox each: the hub's deciding half in memory, and every
//! node's real machine of updates, joined without a network.
//!
//! What can be lost, late or killed, the small fleets show; here it is about time: a rollout to all of them, from its plan
//! to its end, and how long the hub decides in one step.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fleet_edge_agent::core::{Now as EdgeNow, queue::End};
use fleet_schemas::{
    CommandId, Lane, NodeId, SessionId, StreamId, VERSION,
    batch::{Batch, Clock},
    command as wire,
    event::{Event, Severity},
    session::{Birth, Pending, StreamState},
    update::State as Said,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    rollouts::{BY, Rollouts, Wish},
    update::{Fate, How, Machine, Manner, Said as Words, Sight},
    world::START_MS,
};
use crate::{
    clock,
    core::{
        Now, command,
        fleet::{Fleet, Node as Known, NodeNo, Record},
        intake::{self, Body, Effects, Input},
        rollout::{self, State},
    },
};

/// Milliseconds per step.
const STEP_MS: u64 = 1_000;
/// Longest that is simulated: a day.
const STEPS: u64 = 86_400;
/// A heartbeat that is never late within that.
const HEARTBEAT_MS: u64 = 90_000_000;

/// What came of it.
#[derive(Debug, Clone)]
pub struct Large {
    /// Nodes that were confirmed.
    pub confirmed: u32,
    /// Nodes that failed.
    pub failed: u32,
    /// Simulated milliseconds until all rollouts were over.
    pub over_ms: u64,
    /// The longest that the hub took to decide in one step.
    pub longest: Duration,
    /// How each rollout ended.
    pub ends: Vec<String>,
    /// Rules that do not hold.
    pub wrong: Vec<String>,
}

struct Node {
    id: NodeId,
    machine: Machine,
    orders: BTreeMap<CommandId, wire::Offer>,
    sequences: BTreeMap<Lane, u64>,
    /// It is started again then.
    back_at: Option<u64>,
}

/// Rolls out to so many nodes.
#[must_use]
pub fn large(nodes: usize, seed: u64, count: usize) -> Large {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rollouts = Rollouts::large(count, seed);
    let mut fleet = Fleet::default();
    let mut all: BTreeMap<NodeNo, Node> = BTreeMap::new();
    let mut inputs: Vec<(NodeId, Input)> = Vec::new();
    for n in 0..nodes {
        let number = NodeNo::try_from(n + 1).unwrap_or(NodeNo::MAX);
        let id = NodeId::parse(&format!("node-{n}")).expect("a node id");
        let mut record = Record::new(id.clone(), START_MS);
        record.site = Some(format!("site-{}", n % 100));
        fleet.insert(Known::new(number, record));
        // One in a hundred lies; the releases do the rest.
        let manner = if rng.random_bool(0.01) { Manner::Lies } else { Manner::Honest };
        let machine = Machine::new(manner, StdRng::seed_from_u64(rng.random()));
        let node = Node { id, machine, orders: BTreeMap::new(), sequences: BTreeMap::new(), back_at: None };
        inputs.push(node.birth(number));
        all.insert(number, node);
    }
    // Only those that have something to do are looked at.
    let mut busy: BTreeSet<NodeNo> = BTreeSet::new();
    let mut longest = Duration::ZERO;
    let mut over_ms = 0;
    for step in 1..=STEPS {
        let now = step * STEP_MS;
        let at = Now {
            wall_ms: START_MS + i64::try_from(now).unwrap_or(i64::MAX),
            mono: Duration::from_millis(now),
        };
        for number in busy.clone() {
            let Some(node) = all.get_mut(&number) else { continue };
            if !node.step(number, &rollouts, now, &mut inputs) {
                busy.remove(&number);
            }
        }
        let mut effects = Effects::default();
        for (node, input) in std::mem::take(&mut inputs) {
            intake::take(&mut fleet, &mut effects, &node, input, 0, at);
        }
        intake::handle_timeouts(&mut fleet, &mut effects, at);
        command::advance(&mut fleet, &mut effects.commands, at);
        // What rollouts cost the hub: planning them, and stepping them by all that was heard.
        let begun = clock::mono();
        for wish in rollouts.ask(&fleet, now) {
            // What is refused is asked for again.
            let _ = match wish {
                Wish::Make(wanted) => rollout::create(&mut fleet, &mut effects, &wanted, at),
                Wish::Act(id, act) => rollout::act(&mut fleet, &mut effects, &id, act, BY, at),
            };
        }
        rollout::advance(&mut fleet, &mut effects, at);
        let rows = fleet.rollouts.rows(&effects.rollouts);
        longest = longest.max(clock::mono().saturating_sub(begun));
        drop(rows);
        for (id, orders) in effects.commands.orders {
            let Some(number) = fleet.nodes.get(&id).map(|node| node.number) else { continue };
            let Some(node) = all.get_mut(&number) else { continue };
            busy.insert(number);
            node.told(number, orders.offers, &rollouts, now, &mut inputs);
            for cancel in orders.cancels {
                node.machine.stop(cancel, fleet_edge_agent::core::queue::Ending::Cancel);
            }
        }
        rollouts.watch(&fleet, &[], false);
        let open = fleet.rollouts.all().iter().any(|live| !live.head.state.is_final());
        if rollouts.are_made() && !open && busy.is_empty() {
            over_ms = now;
            break;
        }
    }
    report(&fleet, &mut rollouts, &all, over_ms, longest)
}

fn report(
    fleet: &Fleet,
    rollouts: &mut Rollouts,
    all: &BTreeMap<NodeNo, Node>,
    over_ms: u64,
    longest: Duration,
) -> Large {
    let mut wrong = rollouts.take_wrong();
    if over_ms == 0 {
        wrong.push("it was not over within a day".to_owned());
    }
    let (mut confirmed, mut failed, mut ends) = (0, 0, Vec::new());
    for live in fleet.rollouts.all() {
        confirmed += live.head.waves.iter().map(rollout::Wave::confirmed).sum::<u32>();
        failed += live.head.waves.iter().map(rollout::Wave::bad).sum::<u32>();
        ends.push(format!("{} {}: {}", live.head.spec.id, live.head.state.as_str(), live.head.reason));
        let how = rollouts.how(live);
        if how == Some(How::Good) && live.head.state != State::Done {
            wrong.push(format!("{}: a good release is {}", live.head.spec.id, live.head.state.as_str()));
        }
        for ((number, _), member) in live.members() {
            let Some(node) = all.get(number) else { continue };
            let is_confirmed = member.stand == rollout::Stand::Said(Said::Confirmed);
            let goals = live.head.spec.goals.iter().map(|(_, artifact)| artifact.digest);
            if is_confirmed && !goals.into_iter().any(|digest| node.machine.ran.contains(&digest)) {
                wrong.push(format!("{} is confirmed and never ran it", node.id));
            }
        }
    }
    Large { confirmed, failed, over_ms, longest, ends, wrong }
}

impl Node {
    fn sight<'a>(&self, rollouts: &'a Rollouts, now: u64) -> Sight<'a> {
        let up = Duration::from_millis(now);
        let wall_ms = START_MS + i64::try_from(now).unwrap_or(i64::MAX);
        let at = EdgeNow { wall_ms, up, clock: Clock::Synced };
        let heard = Some((wall_ms, up));
        Sight { images: &rollouts.images, connected: true, heard, now, at, boot: [1; 8], chaos: false }
    }

    /// Whether it has something to do later.
    fn step(
        &mut self,
        number: NodeNo,
        rollouts: &Rollouts,
        now: u64,
        inputs: &mut Vec<(NodeId, Input)>,
    ) -> bool {
        if let Some(at) = self.back_at {
            if at > now {
                return true;
            }
            self.back_at = match self.machine.start(&rollouts.images, now) {
                Ok(()) => None,
                Err(pause) => Some(now + pause),
            };
            if self.back_at.is_some() {
                return true;
            }
            if !self.machine.hangs {
                inputs.push(self.birth(number));
                // The queue hands out again what was under way.
                let offers: Vec<_> = self.orders.values().cloned().collect();
                self.told(number, offers, rollouts, now, inputs);
            }
        }
        let mut said = Words::default();
        let fate = self.machine.step(&self.sight(rollouts, now), &mut said);
        self.say(number, said, now, inputs);
        match fate {
            Fate::Lives => {}
            Fate::Ends(down) | Fate::PowerGoes(down) => {
                self.machine.die(matches!(fate, Fate::PowerGoes(_)), now);
                self.back_at = Some(now + down);
            }
        }
        self.back_at.is_some() || self.machine.hangs || !self.machine.rests()
    }

    fn told(
        &mut self,
        number: NodeNo,
        offers: Vec<wire::Offer>,
        rollouts: &Rollouts,
        now: u64,
        inputs: &mut Vec<(NodeId, Input)>,
    ) {
        let mut said = Words::default();
        let sight = self.sight(rollouts, now);
        for offer in offers {
            self.machine.order(offer.id, &offer.params, offer.timeout_ms, &sight, &mut said);
            self.orders.insert(offer.id, offer);
        }
        self.say(number, said, now, inputs);
    }

    fn say(&mut self, number: NodeNo, said: Words, now: u64, inputs: &mut Vec<(NodeId, Input)>) {
        let time_ms = START_MS + i64::try_from(now).unwrap_or(i64::MAX);
        for (kind, data) in said.events {
            let event = Event {
                time_ms,
                kind: fleet_schemas::MetricName::parse(kind).expect("a kind"),
                severity: Severity::Info,
                message: String::new(),
                data: Some(data),
                device: None,
                id: None,
            };
            inputs.push(self.batch(number, Lane::Event, Body::Events(vec![event]), time_ms));
        }
        for (id, end) in said.ends {
            self.orders.remove(&id);
            let End::Updated(report) = end else { continue };
            let state = match report.state {
                Said::Confirmed | Said::Skipped => wire::State::Succeeded,
                Said::Rejected => wire::State::Rejected,
                Said::Canceled => wire::State::Canceled,
                Said::Superseded => wire::State::Superseded,
                _ => wire::State::Failed,
            };
            let body = wire::Report {
                id,
                state,
                time_ms,
                reason: report.reason.clone(),
                exit_code: None,
                output: None,
                result: Some(report.to_data()),
                too_late: false,
            };
            inputs.push(self.batch(number, Lane::Command, Body::Reports(vec![body]), time_ms));
        }
    }

    fn batch(&mut self, number: NodeNo, lane: Lane, body: Body, time_ms: i64) -> (NodeId, Input) {
        let seq = self.sequences.entry(lane).or_default();
        *seq += 1;
        let batch = Batch {
            v: VERSION,
            stream: stream(number, lane),
            seq: *seq,
            seq_to: None,
            first: *seq,
            count: 1,
            boot: [1; 8],
            up_ms: 0,
            clock: Clock::Synced,
            sealed_ms: time_ms,
            lost: None,
            body: Vec::new(),
        };
        let digest = seq.to_le_bytes();
        (self.id.clone(), Input::Batch { lane, batch, digest, body })
    }

    fn birth(&self, number: NodeNo) -> (NodeId, Input) {
        let state = |lane: Lane| {
            let next = self.sequences.get(&lane).copied().unwrap_or(0) + 1;
            let state = StreamState {
                stream: stream(number, lane),
                floor_seq: next,
                floor_record: next,
                next_seq: next,
                next_record: next,
                counted: 0,
                tombstoned: 0,
            };
            (lane, vec![state])
        };
        let mut session = [0; 8];
        session[..4].copy_from_slice(&number.to_be_bytes());
        let birth = Birth {
            v: VERSION,
            session: SessionId(session),
            epoch: 1,
            boot: [1; 8],
            instance: None,
            up_ms: 0,
            clock: Clock::Synced,
            time_ms: START_MS,
            interval_ms: HEARTBEAT_MS,
            kind: "picclaw".to_owned(),
            name: None,
            capabilities: Vec::new(),
            versions: self.machine.versions(),
            machine: [("arch".to_owned(), "sim".to_owned())].into(),
            lanes: [Lane::Event, Lane::Command].map(state).into(),
            partial: false,
            pending: Pending::default(),
            commands: Some(self.orders.keys().copied().collect()),
            config: None,
        };
        (self.id.clone(), Input::Birth(Box::new(birth)))
    }
}

fn stream(number: NodeNo, lane: Lane) -> StreamId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes[4] = lane as u8 + 1;
    StreamId(bytes)
}
