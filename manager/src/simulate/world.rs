//! The simulated fleet: one queue of time, one source of randomness, everything else real.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fleet_schemas::{NodeId, SessionId, Topic, batch::Clock};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sha2::{Digest as _, Sha256};

use super::{
    Args,
    edge::{Edge, Truth},
    faults::{self, Fault, Faults},
    net::{self, Net, Way, Weather},
    rollouts::{BY, Rollouts, Wish},
    settings,
    site::Site,
    update::{self, Fate},
    work::Book,
};

use crate::core::registry::{Intent, Order};

/// Milliseconds per step.
const STEP_MS: u64 = 200;
/// When the simulation begins, Unix milliseconds.
pub(super) const START_MS: i64 = 1_790_000_000_000;
/// Twins that may be made in one run.
const TWINS: usize = 2;

/// Everything there is.
pub(super) struct World {
    pub edges: Vec<Edge>,
    pub sites: Vec<Site>,
    pub truth: BTreeMap<NodeId, Truth>,
    pub now: u64,
    rng: StdRng,
    nets: Vec<Net>,
    weather: Weather,
    next_record: u64,
    backup: Option<crate::store::disk::Memory>,
    twins: usize,
    log: Sha256,
    trace: bool,
    pub hub_restored: bool,
    pub book: Book,
    /// Nodes that moved to another hub.
    pub moved: BTreeSet<NodeId>,
    busy: bool,
    /// Draws what the operator sets; absent: nothing. Its own, so that without it everything else is as it was.
    sets: Option<StdRng>,
    /// What is rolled out, if anything is.
    pub rollouts: Rollouts,
    chaos: bool,
}

impl World {
    pub(super) fn new(args: Args) -> Self {
        let Args { nodes, seed, faults, config, rollouts, trace } = args;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut edges = Vec::new();
        let mut truth = BTreeMap::new();
        for n in 0..nodes {
            let node = NodeId::parse(&format!("node-{n}")).expect("a node id");
            truth.insert(node.clone(), Truth::default());
            // Some cards are small, so that outboxes run full.
            let quota = if rng.random_bool(0.3) { 6_000 } else { 200_000 };
            edges.push(Edge::new(node, &mut rng, quota));
        }
        let rollouts = Rollouts::new(rollouts, seed, &mut edges);
        Self {
            edges,
            sites: vec![Site::new(), Site::new()],
            truth,
            now: 0,
            rng,
            nets: vec![Net::default(), Net::default()],
            weather: Weather::CALM,
            next_record: 1,
            backup: None,
            twins: 0,
            log: Sha256::new(),
            trace,
            hub_restored: false,
            book: Book::default(),
            moved: BTreeSet::new(),
            busy: false,
            sets: config.then(|| StdRng::seed_from_u64(!seed)),
            rollouts,
            chaos: faults != Faults::None,
        }
    }

    fn log(&mut self, line: std::fmt::Arguments<'_>) {
        let line = format!("{:>8} {line}\n", self.now);
        self.log.update(&line);
        if self.trace {
            eprint!("{line}");
        }
    }

    /// A message in full below its line of the trace, as `fleet decode` reads it.
    fn show(&self, topic: &Topic, payload: &[u8]) {
        if self.trace {
            let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("{topic} {hex}");
        }
    }

    /// The digest of everything that happened.
    pub(super) fn log_digest(&self) -> [u8; 32] {
        self.log.clone().finalize().into()
    }

    /// One step; `busy` while nodes produce records and things go wrong.
    pub(super) fn step(&mut self, faults: Faults, busy: bool) {
        self.now += STEP_MS;
        self.busy = busy;
        if busy && let Some(fault) = faults::draw(&mut self.rng, faults) {
            self.log(format_args!("fault {fault:?}"));
            self.strike(fault);
        }
        for site in 0..self.sites.len() {
            self.step_site(site);
        }
        for edge in 0..self.edges.len() {
            self.step_edge(edge, busy);
        }
        self.deliver();
        self.watch_rollouts();
        for line in std::mem::take(&mut self.book.lines) {
            self.log(format_args!("{line}"));
        }
    }

    /// The faults end: what is down comes up, clocks are right, disks have room. Twins are thrown away.
    pub(super) fn calm(&mut self) {
        self.weather = Weather::CALM;
        for index in (0..self.edges.len()).rev() {
            let twin = self.edges[..index].iter().any(|edge| edge.node == self.edges[index].node);
            if twin {
                self.drop_connection(index, false);
                self.edges.remove(index);
            }
        }
        for edge in &mut self.edges {
            edge.partitioned_until = 0;
            edge.card_full_until = 0;
            edge.card.set_capacity(None);
            edge.set_clock(0, Clock::Synced);
        }
        for site in &mut self.sites {
            site.disk.set_capacity(None);
            site.full_until = 0;
        }
        // Indices moved: sessions of the gate are told apart by connection, so all connect anew.
        for index in 0..self.edges.len() {
            self.drop_connection(index, false);
        }
    }

    fn step_site(&mut self, index: usize) {
        let site = &mut self.sites[index];
        if site.full_until > 0 && site.full_until <= self.now {
            site.full_until = 0;
            site.disk.set_capacity(None);
        }
        if site.consumer.is_none() {
            if site.wait_until <= self.now {
                site.start(&mut self.rng, self.now, START_MS);
                self.log(format_args!("hub {index} starts"));
            }
            return;
        }
        let mut orders = Vec::new();
        if self.busy && index == 0 {
            let nodes: Vec<_> = self.truth.keys().cloned().collect();
            orders = self.book.ask(&mut self.rng, &nodes, self.now, START_MS);
        }
        if let Some(rng) = self.sets.as_mut().filter(|_| self.busy) {
            let nodes: Vec<_> = self.truth.keys().cloned().collect();
            orders.extend(settings::ask(rng, &nodes));
        }
        if index == 0
            && let Some(consumer) = &site.consumer
        {
            let at = self.now;
            let wishes = self.rollouts.ask(&consumer.shared().fleet(), at);
            orders.extend(wishes.into_iter().map(|wish| {
                let by = BY.to_owned();
                let intent = match wish {
                    Wish::Make(wanted) => Intent::Rollout(wanted),
                    Wish::Act(id, act) => Intent::ActOnRollout { id, act, by: by.clone() },
                };
                Order { by, intent }
            }));
        }
        let spoken = site.round(&mut self.rng, self.now, START_MS, orders);
        match spoken {
            Some(spoken) => {
                spoken.items.iter().for_each(|item| self.book.note(index, item));
                for (topic, payload) in spoken.downs {
                    let Topic::Down(node, _) = &topic else { continue };
                    let Some((connection, _)) = self.nets[index].session(node) else { continue };
                    self.log(format_args!(
                        "hub {index} to {node}: {} bytes {}",
                        payload.len(),
                        short(&payload)
                    ));
                    self.show(&topic, &payload);
                    let (weather, at) = (self.weather, (self.now, 0));
                    let payload = Bytes::from(payload);
                    self.nets[index].send(
                        &mut self.rng,
                        weather,
                        at,
                        Way::Down(connection),
                        (&topic, &payload),
                    );
                }
            }
            None => self.kill_hub(index, 1_000),
        }
    }

    fn kill_hub(&mut self, index: usize, down: u64) {
        self.log(format_args!("hub {index} dies"));
        self.sites[index].kill(self.now, down);
        self.nets[index].clear();
        for edge in self.edges.iter_mut().filter(|edge| edge.hub == index) {
            if let (Some(uplink), Some(_)) = (&mut edge.uplink, edge.connection.take()) {
                uplink.disconnected();
            }
            edge.connection = None;
        }
    }

    fn step_edge(&mut self, index: usize, busy: bool) {
        let now = self.now;
        let edge = &mut self.edges[index];
        if edge.card_full_until > 0 && edge.card_full_until <= now {
            edge.card_full_until = 0;
            edge.card.set_capacity(None);
        }
        if edge.hangs() {
            self.drop_connection(index, true);
            self.update(index);
            return;
        }
        if edge.uplink.is_none() {
            if edge.wait_until <= now {
                edge.start(&mut self.rng, &self.rollouts.images, now, START_MS);
                let node = edge.node.clone();
                self.log(format_args!("agent {index} of {node} starts"));
            } else {
                self.drop_connection(index, true);
            }
            return;
        }
        if busy && self.rng.random_bool(0.3) {
            let truth = self.truth.get_mut(&edge.node).expect("every node has its truth");
            edge.submit(&mut self.rng, truth, &mut self.next_record, now, START_MS);
        }
        let cuts = edge.machine.cuts();
        if cuts && edge.connection.is_some() {
            self.drop_connection(index, true);
        }
        let edge = &mut self.edges[index];
        let hub_is_up = self.sites[edge.hub].consumer.is_some();
        if edge.connection.is_none()
            && !cuts
            && hub_is_up
            && edge.partitioned_until <= now
            && self.rng.random_bool(0.2)
        {
            self.connect(index);
        }
        let edge = &mut self.edges[index];
        edge.run(&mut self.book, now, START_MS);
        edge.configure(now, START_MS);
        if self.update(index) {
            return;
        }
        let edge = &mut self.edges[index];
        let outgoing = edge.poll(now, START_MS);
        let Some((connection, _)) = edge.connection else { return };
        if edge.uplink.is_none() {
            self.drop_connection(index, true);
            return;
        }
        let hub = edge.hub;
        for message in outgoing {
            self.log(format_args!("agent {index} says {} {}", message.topic, short(&message.payload)));
            self.show(&message.topic, &message.payload);
            let (weather, at) = (self.weather, (now, 0));
            let payload = Bytes::from(message.payload);
            self.nets[hub].send(&mut self.rng, weather, at, Way::Up(connection), (&message.topic, &payload));
        }
    }

    /// Goes on with the updates of a node. Whether its process ended for that.
    fn update(&mut self, index: usize) -> bool {
        let edge = &mut self.edges[index];
        let truth = self.truth.get_mut(&edge.node).expect("every node has its truth");
        let chaos = self.chaos && self.busy;
        let fate =
            edge.update(&self.rollouts.images, (truth, &mut self.next_record), chaos, self.now, START_MS);
        let lines =
            edge.updates.as_mut().map(|updates| std::mem::take(&mut updates.lines)).unwrap_or_default();
        for line in lines {
            self.log(format_args!("agent {index} update {line}"));
        }
        if fate == Fate::Lives {
            return false;
        }
        self.drop_connection(index, true);
        let now = self.now;
        match fate {
            Fate::Lives => {}
            Fate::Ends(down) => self.edges[index].kill(now, down),
            Fate::PowerGoes(down) => {
                self.log(format_args!("agent {index} vanishes"));
                self.edges[index].reboot(&mut self.rng, now, down);
            }
        }
        true
    }

    /// Looks at the rollouts after every step.
    fn watch_rollouts(&mut self) {
        let Some(consumer) = &self.sites[0].consumer else { return };
        let fleet = consumer.shared().fleet();
        let lines = self.rollouts.watch(&fleet, &self.edges, self.hub_restored);
        drop(fleet);
        for line in lines {
            self.log(format_args!("{line}"));
        }
    }

    fn connect(&mut self, index: usize) {
        let (node, hub) = (self.edges[index].node.clone(), self.edges[index].hub);
        let session = SessionId(net::bytes(&mut self.rng));
        let (connection, taken_over) = self.nets[hub].connect(&node, index);
        self.log(format_args!("agent {index} connects as {session}"));
        if let Some(other) = taken_over.filter(|other| *other != index)
            && let Some(other) = self.edges.get_mut(other)
            && let (Some(uplink), Some((_, session))) = (&mut other.uplink, other.connection.take())
        {
            uplink.disconnected();
            self.will(index, hub, session);
        }
        let now = self.edges[index].now(self.now, START_MS);
        self.edges[index].connection = Some((connection, session));
        if let Some(uplink) = &mut self.edges[index].uplink {
            uplink.connected(session, now);
        }
    }

    /// The link breaks; the gate notices some time later and publishes the will.
    fn drop_connection(&mut self, index: usize, with_will: bool) {
        let edge = &mut self.edges[index];
        let (node, hub) = (edge.node.clone(), edge.hub);
        let held = edge.connection.take().or_else(|| {
            // The process died: the gate still has its session.
            let (connection, holder) = self.nets[hub].session(&node)?;
            (holder == index).then_some((connection, SessionId([0; 8])))
        });
        let Some((connection, session)) = held else { return };
        if let Some(uplink) = &mut edge.uplink {
            uplink.disconnected();
        }
        self.nets[hub].disconnect(&node, connection);
        if with_will {
            self.will(index, hub, session);
        }
    }

    fn will(&mut self, index: usize, hub: usize, session: SessionId) {
        let Some(uplink) = &self.edges[index].uplink else { return };
        let (topic, payload) = uplink.will(session);
        let after = self.rng.random_range(0..45_000);
        let at = (self.now, after);
        self.nets[hub].send(&mut self.rng, Weather::CALM, at, Way::Gate, (&topic, &Bytes::from(payload)));
    }

    fn deliver(&mut self) {
        for hub in 0..self.nets.len() {
            for (way, topic, payload) in self.nets[hub].arrived(self.now) {
                match way {
                    Way::Up(_) | Way::Gate => {
                        if self.sites[hub].consumer.is_some() {
                            self.sites[hub].queue.push((topic, payload));
                        }
                    }
                    Way::Down(connection) => self.deliver_down(connection, &topic, &payload),
                }
            }
        }
    }

    fn deliver_down(&mut self, connection: u64, topic: &Topic, payload: &Bytes) {
        let Topic::Down(node, down) = topic else { return };
        let holds =
            |edge: &&mut Edge| edge.node == *node && edge.connection.is_some_and(|(c, _)| c == connection);
        let Some(edge) = self.edges.iter_mut().find(holds) else { return };
        let at = edge.now(self.now, START_MS);
        if let Some(uplink) = &mut edge.uplink
            && uplink.receive(*down, payload, at).is_err()
        {
            edge.kill(self.now, 500);
        }
    }

    fn strike(&mut self, fault: Fault) {
        let now = self.now;
        let at = |edge: usize, world: &Self| edge % world.edges.len();
        match fault {
            Fault::Weather(weather) => self.weather = weather,
            Fault::Partition { edge, ms } => {
                let edge = at(edge, self);
                self.drop_connection(edge, true);
                self.edges[edge].partitioned_until = now + ms;
            }
            Fault::KillAgent { edge, ms } => {
                let edge = at(edge, self);
                self.drop_connection(edge, true);
                self.edges[edge].kill(now, ms);
            }
            Fault::Reboot { edge, ms, loses_clock } => {
                let edge = at(edge, self);
                self.drop_connection(edge, true);
                self.edges[edge].reboot(&mut self.rng, now, ms);
                let clock = if loses_clock { Clock::Unsynced } else { Clock::Synced };
                self.book.clocks_wrong |= loses_clock;
                self.edges[edge].set_clock(0, clock);
            }
            Fault::KillHub { how, ms: _ } => {
                if self.sites[0].consumer.is_some() {
                    self.sites[0].doom(how);
                }
            }
            Fault::CardFull { edge, ms } => {
                let edge = at(edge, self);
                let edge = &mut self.edges[edge];
                edge.card.set_capacity(Some(edge.card.len()));
                edge.card_full_until = now + ms;
            }
            Fault::HubFull { ms } => {
                let used = self.sites[0].disk.used();
                self.sites[0].disk.set_capacity(Some(used));
                self.sites[0].full_until = now + ms;
            }
            Fault::EdgeClock { edge, offset_ms } => {
                self.book.clocks_wrong |= offset_ms != 0;
                let edge = at(edge, self);
                self.edges[edge].set_clock(offset_ms, Clock::Synced);
            }
            Fault::HubClock { offset_ms } => {
                self.book.clocks_wrong |= offset_ms != 0;
                self.book.hub_clock_wrong |= offset_ms != 0;
                self.sites[0].set_clock(offset_ms);
            }
            Fault::BackUpHub => self.backup = Some(self.sites[0].disk.image()),
            Fault::RestoreHub => {
                if let Some(backup) = self.backup.take() {
                    self.kill_hub(0, 2_000);
                    self.sites[0].disk = backup;
                    self.sites[0].acked.clear();
                    self.sites[0].recounts = self.sets.as_mut().is_some_and(|rng| rng.random_bool(0.5));
                    self.book.forget(0);
                    self.hub_restored = true;
                }
            }
            Fault::TakeImage { edge }
            | Fault::RestoreImage { edge }
            | Fault::WipeCard { edge }
            | Fault::CloneCard { edge }
            | Fault::MoveNode { edge } => self.strike_card(fault, at(edge, self)),
        }
    }

    fn strike_card(&mut self, fault: Fault, edge: usize) {
        let now = self.now;
        let tamper = |world: &mut Self| {
            let node = world.edges[edge].node.clone();
            let truth = world.truth.get_mut(&node).expect("every node has its truth");
            truth.tampered = true;
            truth.since.clear();
            world.edges[edge].machine.forget();
        };
        match fault {
            Fault::TakeImage { .. } => {
                let edge = &mut self.edges[edge];
                edge.image = Some(edge.card.image());
                edge.updates_image = edge.updates.as_mut().map(update::Machine::copy);
            }
            Fault::RestoreImage { .. } => {
                if let Some(image) = self.edges[edge].image.take() {
                    tamper(self);
                    self.drop_connection(edge, true);
                    self.edges[edge].reboot(&mut self.rng, now, 2_000);
                    let edge = &mut self.edges[edge];
                    edge.card = image;
                    if let (Some(updates), Some(image)) = (&mut edge.updates, edge.updates_image.take()) {
                        updates.restore(&image);
                    }
                }
            }
            Fault::WipeCard { .. } => {
                tamper(self);
                self.drop_connection(edge, true);
                self.edges[edge].reboot(&mut self.rng, now, 2_000);
                self.edges[edge].card = fleet_edge_agent::store::sim_disk::SimFile::new();
                self.edges[edge].updates.as_mut().map(update::Machine::wipe);
            }
            Fault::CloneCard { .. } if self.twins < TWINS => {
                self.twins += 1;
                tamper(self);
                let twin = self.edges[edge].clone_of(&mut self.rng, now);
                self.edges.push(twin);
            }
            Fault::MoveNode { .. } => {
                self.drop_connection(edge, true);
                self.edges[edge].hub = 1;
                self.edges[edge].machine.forget();
                let node = self.edges[edge].node.clone();
                self.moved.insert(node);
            }
            _ => {}
        }
    }

    /// Nodes of whose commands nothing can be said: their cards were set back or copied, or they moved.
    pub(super) fn tampered(&self) -> BTreeSet<NodeId> {
        let tampered = self.truth.iter().filter(|(_, truth)| truth.tampered).map(|(node, _)| node.clone());
        tampered.chain(self.moved.iter().cloned()).collect()
    }

    /// Whether no command waits that may still be waited for. When a clock was wrong, its time may be years away.
    fn commands_are_over(&self) -> bool {
        if self.book.clocks_wrong {
            return true;
        }
        let moved = |node: &NodeId| self.moved.contains(node);
        self.sites.iter().filter_map(|site| site.consumer.as_ref()).all(|consumer| {
            let fleet = consumer.shared().fleet();
            let stay = fleet.nodes.values().filter(|node| !moved(&node.record.id));
            stay.map(|node| fleet.commands.waiting_for(node.number)).sum::<usize>() == 0
        })
    }

    /// Commands that are not over, by hub.
    pub(super) fn commands_waiting(&self) -> Vec<String> {
        let open = |consumer: &crate::consume::Consumer| {
            format!("{:?}", consumer.shared().fleet().commands.waiting())
        };
        self.sites.iter().filter_map(|site| site.consumer.as_ref()).map(open).collect()
    }

    /// Whether nothing is left to do: no message under way, every account settled, everybody connected.
    pub(super) fn is_settled(&self) -> bool {
        self.commands_are_over()
            && settings::open(self).is_empty()
            && super::rollouts::open(self).is_empty()
            && self.nets.iter().all(Net::is_quiet)
            && self.edges.iter().all(|edge| {
                let status = edge.uplink.as_ref().map(fleet_edge_agent::uplink::Uplink::status);
                status.is_some_and(|status| {
                    let drained = |(state, mark): &(fleet_schemas::session::StreamState, u64)| {
                        mark + 1 >= state.next_seq
                    };
                    status.answered
                        && status.pending.samples == 0
                        && status.lanes.values().all(|lane| lane.streams.iter().all(drained))
                })
            })
    }
}

/// A few bytes that tell payloads apart in the log.
fn short(payload: &[u8]) -> String {
    Sha256::digest(payload)[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}
