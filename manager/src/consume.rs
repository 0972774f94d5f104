//! The consumer: a group of messages and intents becomes one transaction per file; then, and only then, it speaks.
//!
//! Synchronous and owned by one thread; time is an argument, so the simulator runs exactly this. When a commit fails,
//! what was decided is thrown away, the stores are opened again and nothing is acked: the agents send it again.

mod decode;
mod speak;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use fleet_schemas::{Lane, NodeId, StoreId, Topic, cbor::Unpacker};

use crate::{
    backup::trail::{Trail, TrailError},
    core::{
        Now,
        audit::{self, Entry},
        command::{self, Dispatch, Kept},
        config, devices,
        fleet::{Fleet, Node, NodeNo},
        identity::{Cut, Identities, Row, trail::Line},
        intake::{self, Effects},
        ledger::{Account, Counters},
        mark::{self, Mark},
        registry::{self, Intent, Order, RegistryError},
        rollout::{self, Rollouts},
    },
    store::{
        disk::Disk,
        state::{self, Changes, Commit, EventRow, QuarantineRow, StateStore},
        telemetry::{self, Booking, InboxBatch, MarkKey, Quarantined, TelemetryStore},
    },
};
pub use decode::Refusals;
pub use speak::{FeedItem, Spoken, StoredEvent};

/// Batches a node may have in flight while the hub keeps up.
pub const CREDIT: u32 = fleet_schemas::limits::IN_FLIGHT_BATCHES;

/// The stores failed. The text fits after "failed to ": nothing was acked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `state.redb`.
    #[error(transparent)]
    State(#[from] state::Error),
    /// `telemetry/`.
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    /// A row of the telemetry store that only this room can read.
    #[error("read a mark of the telemetry store: {0}; restore a backup")]
    Mark(String),
    /// The file of revocations.
    #[error(transparent)]
    Trail(#[from] TrailError),
}

/// What the threads of the hub share: the registry in memory, and the stores behind it.
#[derive(Clone)]
pub struct Shared {
    fleet: Arc<RwLock<Fleet>>,
    identities: Arc<RwLock<Identities>>,
    state: Arc<RwLock<StateStore>>,
    // Held by the consumer from its first change in memory until all of it is committed: whoever compares the two waits.
    group: Arc<RwLock<()>>,
    /// Samples.
    pub telemetry: Arc<TelemetryStore>,
}

impl Shared {
    /// Looks at the registry.
    pub fn fleet(&self) -> RwLockReadGuard<'_, Fleet> {
        self.fleet.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn fleet_mut(&self) -> RwLockWriteGuard<'_, Fleet> {
        self.fleet.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at who may speak to the hub.
    pub fn identities(&self) -> RwLockReadGuard<'_, Identities> {
        self.identities.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state store as it is open now.
    #[must_use]
    pub fn state(&self) -> StateStore {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Between two groups: what is in memory is committed while this is held. Not to be asked for by whoever looks at the
    /// registry already: the consumer takes them in the other order.
    pub fn settled(&self) -> RwLockReadGuard<'_, ()> {
        self.group.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters of an account, whichever file keeps them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn counters(&self) -> Result<impl Fn(NodeNo, Lane) -> Counters + use<>, Error> {
        let mut all = self.state().counters()?;
        let sampled = self.telemetry.counters_all()?;
        all.extend(sampled.into_iter().map(|(node, lane, counters)| ((node, lane), counters)));
        Ok(move |node, lane| all.get(&(node, lane)).copied().unwrap_or_default())
    }

    /// The accounts of a node. Only while things are [settled](Self::settled) the marks and the counters agree.
    ///
    /// # Errors
    /// [`Error`].
    pub fn accounts(&self, node: &Node) -> Result<Vec<Account>, Error> {
        let mut all = self.state().counters_of(node.number)?;
        for lane in Lane::ALL.into_iter().filter(|lane| lane.carries_samples()) {
            all.insert(lane, self.telemetry.counters(node.number, lane)?);
        }
        Ok(node.ledger(|_, lane| all.get(&lane).copied().unwrap_or_default()).collect())
    }
}

/// The consumer.
pub struct Consumer {
    shared: Shared,
    disk: Arc<dyn Disk>,
    highest_node: NodeNo,
    unpacker: Unpacker,
    refusals: Refusals,
    // When each node was last seen, as its row says.
    written_ms: BTreeMap<NodeNo, i64>,
    // Where revocations are written for hubs that are restored later.
    trail: Option<Trail>,
    // The CAs, for the same.
    authorities: Option<Authorities>,
    // What an error did not undo.
    settled: Settled,
}

/// What of a group's orders is done although the group failed: they were committed, and something after them was not.
#[derive(Debug, Default)]
pub struct Settled {
    /// What became of each order, in order; nothing where that is not known, or may not be said.
    pub outcomes: Vec<Result<(), RegistryError>>,
    /// Sessions to end.
    pub cuts: Vec<Cut>,
}

/// Gives the CAs that there are, as the trail has them.
pub type Authorities = Box<dyn Fn() -> Vec<Line> + Send>;

/// Rows that an intent names by itself: what is saved, or removed.
#[derive(Debug, Default)]
struct Names {
    groups: Vec<(String, Option<String>)>,
    sites: Vec<(String, Option<String>)>,
}

impl Names {
    fn of(intent: &Intent) -> Self {
        let (mut groups, mut sites) = (Vec::new(), Vec::new());
        match intent {
            Intent::PutGroup { name, selector } => groups.push((name.clone(), Some(selector.clone()))),
            Intent::RemoveGroup(name) => groups.push((name.clone(), None)),
            Intent::PutSite { name, tz } => sites.push((name.clone(), Some(tz.clone()))),
            Intent::RemoveSite(name) => sites.push((name.clone(), None)),
            Intent::PatchNode { .. }
            | Intent::RemoveNode(_)
            | Intent::ForgetNode(_)
            | Intent::ImportNodes(_)
            | Intent::Identity(_)
            | Intent::Rotated(_)
            | Intent::Noted(_)
            | Intent::Command(_)
            | Intent::CancelCommand { .. }
            | Intent::ApproveCommand { .. }
            | Intent::EditConfig { .. }
            | Intent::RetryConfig(_)
            | Intent::Rollout(_)
            | Intent::ActOnRollout { .. } => {}
        }
        Self { groups, sites }
    }

    fn extend(&mut self, Self { groups, sites }: Self) {
        self.groups.extend(groups);
        self.sites.extend(sites);
    }
}

impl Consumer {
    /// Opens the stores and reads the registry. Nodes that were online are suspected until they are heard.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(
        disk: Arc<dyn Disk>,
        telemetry: telemetry::Config,
        fresh: StoreId,
        now: Now,
    ) -> Result<Self, Error> {
        let state = StateStore::open(&*disk, fresh)?;
        let telemetry = telemetry::Config { store_id: Some(state.store_id().0), ..telemetry };
        let telemetry = Arc::new(TelemetryStore::open(disk.clone(), telemetry, now.wall_ms)?);
        let shared = Shared {
            fleet: Arc::default(),
            identities: Arc::default(),
            state: Arc::new(RwLock::new(state)),
            group: Arc::default(),
            telemetry,
        };
        let mut consumer = Self {
            shared,
            disk,
            highest_node: 0,
            unpacker: Unpacker::default(),
            refusals: Refusals::default(),
            written_ms: BTreeMap::new(),
            trail: None,
            authorities: None,
            settled: Settled::default(),
        };
        consumer.load(now)?;
        Ok(consumer)
    }

    /// From now on, whatever takes something back is written there, too, before it is answered.
    ///
    /// # Errors
    /// [`TrailError`].
    pub fn keep_trail(&mut self, path: &Path, now: Now) -> Result<(), TrailError> {
        self.trail = Some(Trail::open(path, &self.shared.identities(), now.wall_ms)?);
        Ok(())
    }

    /// From now on the CAs are written there, too: before a certificate that a new one signed is handed out.
    ///
    /// # Errors
    /// [`TrailError`].
    pub fn keep_authorities(&mut self, authorities: Authorities, now: Now) -> Result<(), TrailError> {
        self.authorities = Some(authorities);
        self.note_authorities(now)
    }

    fn note_authorities(&mut self, now: Now) -> Result<(), TrailError> {
        match (&mut self.trail, &self.authorities) {
            (Some(trail), Some(authorities)) => trail.append_authorities(authorities(), now.wall_ms),
            (Some(_) | None, _) => Ok(()),
        }
    }

    fn load(&mut self, now: Now) -> Result<(), Error> {
        let found = self.shared.state().find()?;
        let mut fleet = Fleet::default();
        fleet.groups = found.groups;
        fleet.sites = found.sites;
        self.highest_node = found.highest_node;
        let mut nodes: BTreeMap<_, _> = found
            .nodes
            .into_iter()
            .map(|(number, mut record)| {
                record.presence.hub_restart(now);
                (number, Node::new(number, record))
            })
            .collect();
        let marks = found.marks.into_iter().map(Ok::<_, Error>);
        let sampled = self.shared.telemetry.marks()?.into_iter().map(|(key, row)| {
            let mark = ciborium::from_reader(&row[..]).map_err(|error| Error::Mark(error.to_string()))?;
            Ok((key.node, key.lane, key.stream, mark))
        });
        for row in marks.chain(sampled) {
            let (number, lane, stream, mark): (_, _, _, Mark) = row?;
            if let Some(node) = nodes.get_mut(&number) {
                node.marks.insert((lane, stream), mark);
            }
        }
        let (settings, wanted) = self.shared.state().settings()?;
        for (number, wanted) in wanted {
            if let Some(node) = nodes.get_mut(&number) {
                node.wanted = Some(wanted);
            }
        }
        nodes.into_values().for_each(|node| fleet.insert(node));
        config::load(&mut fleet, settings);
        let (last, open) = self.shared.state().open_commands()?;
        fleet.commands = Dispatch::new(last, open);
        fleet.rollouts = Rollouts::new(self.shared.state().rollouts()?, now);
        fleet.restored = self.shared.state().restored()?;
        *self.shared.fleet_mut() = fleet;
        let identities = self.shared.state().identities()?;
        *self.shared.identities.write().unwrap_or_else(PoisonError::into_inner) = identities;
        Ok(())
    }

    /// What the other threads look at.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Which life of the store this is.
    #[must_use]
    pub fn store_id(&self) -> StoreId {
        self.shared.state().store_id()
    }

    /// Payloads that were refused, by reason.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Opens the stores again after an error, and reads the registry again.
    ///
    /// # Errors
    /// [`Error`]: try again later.
    pub fn reopen(&mut self, now: Now) -> Result<(), Error> {
        {
            let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
            let id = state.store_id();
            // The dead handle holds the file's lock until it is dropped; a closed stand-in takes its place.
            state.close();
            *state = StateStore::open(&*self.disk, id)?;
        }
        self.shared.telemetry.reopen(now.wall_ms)?;
        self.trail.as_mut().map_or(Ok(()), Trail::retry)?;
        let sessions: Vec<_> = {
            let fleet = self.shared.fleet();
            fleet
                .nodes
                .values()
                .map(|n| (n.record.id.clone(), n.record.presence.clone(), n.vital.clone()))
                .collect()
        };
        let before = std::mem::take(&mut self.shared.fleet_mut().commands);
        self.load(now)?;
        // Sessions outlive the stores: the gate kept them, and their nodes will not be born again.
        let mut fleet = self.shared.fleet_mut();
        for (id, presence, vital) in sessions {
            fleet.presence(&id, |known| {
                *known = presence;
                // Nobody was listening meanwhile.
                known.seen(now);
            });
            if let Some(node) = fleet.nodes.get_mut(&id) {
                node.vital = vital;
            }
        }
        fleet.commands.keep_sessions(&before);
        Ok(())
    }

    /// Writes the rows of nodes that were heard since their row was last written.
    ///
    /// # Errors
    /// [`Error`]: as of [`Consumer::consume`].
    pub fn snapshot(&mut self) -> Result<(), Error> {
        let seen: Vec<_> = {
            let fleet = self.shared.fleet();
            let news = |node: &Node| self.written_ms.get(&node.number) != Some(&node.record.last_seen_ms);
            let nodes = fleet.nodes.values().filter(|node| news(node));
            nodes.map(|node| (node.number, node.record.clone())).collect()
        };
        if !seen.is_empty() {
            self.written_ms.extend(seen.iter().map(|(number, record)| (*number, record.last_seen_ms)));
            self.shared.state().apply(&Commit { nodes: seen, ..Commit::default() })?;
        }
        Ok(())
    }

    /// Folds the rows of streams that are over, all but the newest, into one row per node and lane.
    ///
    /// # Errors
    /// [`Error`]: as of [`Consumer::consume`].
    pub fn fold(&mut self, now: Now) -> Result<(), Error> {
        let mut effects = Effects::default();
        let mut commit = Commit::default();
        let mut forgotten = Vec::new();
        let group = Arc::clone(&self.shared.group);
        let _group = group.write().unwrap_or_else(PoisonError::into_inner);
        for node in self.shared.clone().fleet_mut().nodes.values_mut() {
            for (lane, stream) in node.fold(now.wall_ms) {
                effects.marks.insert((node.record.id.clone(), lane, mark::FOLDED));
                match lane {
                    Lane::Telemetry | Lane::Backfill => {
                        forgotten.push(MarkKey { node: node.number, lane, stream });
                    }
                    Lane::Event | Lane::Command => commit.folded.push((node.number, lane, stream)),
                }
            }
        }
        if effects.marks.is_empty() {
            return Ok(());
        }
        let marks = self.state_commit(&effects, Names::default()).marks;
        self.shared.state().apply(&Commit { marks, ..commit })?;
        self.commit_telemetry(&effects, &forgotten)
    }

    /// Takes a group of messages and intents; commits; returns what may be said now.
    ///
    /// # Errors
    /// [`Error`]: nothing may be said but what is [settled](Consumer::settled), and the consumer must be
    /// [reopened](Consumer::reopen).
    pub fn consume<'a>(
        &mut self,
        messages: impl IntoIterator<Item = (&'a Topic, &'a bytes::Bytes)>,
        orders: Vec<Order>,
        credit: u32,
        now: Now,
    ) -> Result<Spoken, Error> {
        let mut effects = Effects::default();
        let (mut names, mut audit) = (Names::default(), Vec::new());
        let mut outcomes: Vec<Result<(), RegistryError>> = Vec::with_capacity(orders.len());
        // Before the lock: decoding a full group takes tens of milliseconds, and whoever asks for a node waits for it.
        let inputs: Vec<_> = (messages.into_iter())
            .filter_map(|(topic, payload)| {
                let Topic::Up(node, up) = topic else { return None };
                let input = decode::input(&mut self.unpacker, &mut self.refusals, *up, payload)?;
                Some((node, input))
            })
            .collect();
        let group = Arc::clone(&self.shared.group);
        let group = group.write().unwrap_or_else(PoisonError::into_inner);
        {
            let shared = self.shared.clone();
            let mut fleet = shared.fleet_mut();
            for (node, input) in inputs {
                intake::take(&mut fleet, &mut effects, node, input, self.highest_node, now);
            }
            if !orders.is_empty() {
                let mut identities = shared.identities.write().unwrap_or_else(PoisonError::into_inner);
                for Order { by, intent } in orders {
                    let named = Names::of(&intent);
                    let entry = audit::is_told(&intent).then(|| Entry::new(&intent, &by, now.wall_ms));
                    let highest = self.highest_node;
                    let order = Order { by, intent };
                    let outcome =
                        registry::take(&mut fleet, &mut identities, &mut effects, order, highest, now);
                    if outcome.is_ok() {
                        names.extend(named);
                    }
                    audit.extend(entry.filter(|_| outcome.is_ok()));
                    outcomes.push(outcome);
                }
            }
            intake::handle_timeouts(&mut fleet, &mut effects, now);
            for node in &effects.left {
                command::abandon(&mut fleet, &mut effects.commands, node, now);
            }
            command::advance(&mut fleet, &mut effects.commands, now);
            config::advance(&mut fleet, &mut effects, now);
            rollout::advance(&mut fleet, &mut effects, now);
        }
        self.ask_store(&mut effects)?;
        let mut commit = self.state_commit(&effects, names);
        let told = effects.commands.take_told();
        commit.commands = std::mem::replace(&mut effects.commands, told);
        commit.config = std::mem::take(&mut effects.config.rows);
        commit.rollouts = self.shared.fleet().rollouts.rows(&effects.rollouts);
        commit.identities = changes(&self.shared.identities(), &effects.identities);
        commit.identities.audit = audit;
        let is_about_keys = !commit.identities.audit.is_empty() || !effects.identities.is_empty();
        let first_event = if commit.is_empty() { 0 } else { self.shared.state().apply(&commit)? };
        if let Some(highest) = commit.nodes.iter().map(|(number, _)| *number).max() {
            self.highest_node = self.highest_node.max(highest);
        }
        // From here on the orders are done, whatever happens.
        if let Err(error) = self.note_keys(is_about_keys, &effects, now) {
            // Those may not be answered before they are in the trail.
            self.settled = Settled { outcomes: Vec::new(), cuts: effects.cuts.into_iter().collect() };
            return Err(error.into());
        }
        let streams = effects.forgotten.iter().flat_map(|(node, streams)| {
            let samples = streams.iter().filter(|(lane, _)| lane.carries_samples());
            samples.map(|(lane, stream)| MarkKey { node: *node, lane: *lane, stream: *stream })
        });
        let forgotten: Vec<_> = streams.collect();
        if let Err(error) = self.commit_telemetry(&effects, &forgotten) {
            self.settled = Settled { outcomes, cuts: effects.cuts.into_iter().collect() };
            return Err(error);
        }
        drop(group);
        Ok(speak::speak(&self.shared, effects, commit.events, first_event, outcomes, credit, now))
    }

    /// Asked after [`Consumer::consume`] failed: what it did all the same.
    pub fn settled(&mut self) -> Settled {
        std::mem::take(&mut self.settled)
    }

    /// Writes what changed of who may come in where it outlives this store.
    fn note_keys(&mut self, is_about_keys: bool, effects: &Effects, now: Now) -> Result<(), TrailError> {
        if is_about_keys {
            self.note_authorities(now)?;
        }
        match self.trail.as_mut().filter(|_| !effects.identities.is_empty()) {
            Some(trail) => trail.append(&self.shared.identities(), &effects.identities, now.wall_ms),
            None => Ok(()),
        }
    }

    /// Looks up what reports say of executions that are not in memory.
    fn ask_store(&self, effects: &mut Effects) -> Result<(), Error> {
        for index in 0..effects.commands.reports.len() {
            let new = &effects.commands.reports[index];
            if new.kept == Kept::Unsure {
                let stored = self.shared.state().execution(new.report.id, new.node)?;
                command::late(&mut effects.commands, index, stored);
            }
        }
        Ok(())
    }

    fn state_commit(&self, effects: &Effects, Names { groups, sites }: Names) -> Commit {
        let fleet = self.shared.fleet();
        let mut commit = Commit { groups, sites, ..Commit::default() };
        commit.removed = effects.forgotten.iter().map(|(number, _)| *number).collect();
        for id in &effects.nodes {
            if let Some(node) = fleet.known(id) {
                commit.nodes.push((node.number, node.record.clone()));
            }
        }
        for id in &effects.home {
            let node = fleet.nodes.get(id).map(|node| node.number);
            let home = |number| Some((number, fleet.restored.as_ref()?.home.get(&number)?.clone()));
            commit.home.extend(node.and_then(home));
        }
        for (id, lane, stream) in effects.marks.iter().filter(|(_, lane, _)| !lane.carries_samples()) {
            if let Some((node, mark)) = mark_of(&fleet, id, *lane, *stream) {
                commit.marks.push((node.number, *lane, *stream, mark.clone()));
            }
        }
        for ((number, lane), counters) in
            effects.booked.iter().filter(|((_, lane), _)| !lane.carries_samples())
        {
            *commit.counters.entry((*number, *lane)).or_default() += *counters;
        }
        for new in &effects.events {
            let time_ms = new.event.time_ms.saturating_add(new.shift_ms);
            let (node, recv_ms, by_hub, event) = (new.number, new.recv_ms, new.by_hub, new.event.clone());
            commit.events.push(EventRow { node, time_ms, recv_ms, by_hub, event });
            if !new.by_hub {
                commit.counters.entry((new.number, Lane::Event)).or_default().stored += 1;
            }
        }
        commit.devices = devices::fold(effects);
        for report in &effects.commands.reports {
            commit.counters.entry((report.node, Lane::Command)).or_default().stored += 1;
        }
        for raw in effects.quarantined.iter().filter(|raw| !raw.lane.carries_samples()) {
            commit.counters.entry((raw.number, raw.lane)).or_default().quarantined += raw.count;
            commit.quarantined.push(QuarantineRow {
                node: raw.number,
                lane: raw.lane,
                recv_ms: raw.recv_ms,
                reason: raw.reason.to_owned(),
                payload: raw.payload.to_vec(),
            });
        }
        commit
    }

    fn commit_telemetry(&self, effects: &Effects, forgotten: &[MarkKey]) -> Result<(), Error> {
        let samples = |lane: &Lane| lane.carries_samples();
        let marks = effects.marks.iter().any(|(_, lane, _)| samples(lane));
        if !marks && forgotten.is_empty() && !effects.booked.keys().any(|(_, lane)| samples(lane)) {
            return Ok(());
        }
        let mut write = self.shared.telemetry.begin()?;
        for row in &effects.inbox {
            write.append(&InboxBatch {
                node: row.number,
                lane: row.lane,
                recv_ms: row.recv_ms,
                shift_ms: row.shift_ms,
                samples: &row.body.samples,
                body: &row.body.plain,
                payload: Some(&row.body.payload),
            })?;
        }
        for raw in effects.quarantined.iter().filter(|raw| samples(&raw.lane)) {
            write.quarantine(&Quarantined {
                node: raw.number,
                lane: raw.lane,
                recv_ms: raw.recv_ms,
                records: raw.count,
                reason: raw.reason.to_owned(),
                payload: raw.payload.to_vec(),
            });
        }
        for ((number, lane), c) in effects.booked.iter().filter(|((_, lane), _)| samples(lane)) {
            let booking = Booking { lost: c.lost, written_off: c.written_off, duplicates: c.duplicates };
            write.book(*number, *lane, booking);
        }
        let fleet = self.shared.fleet();
        for (id, lane, stream) in effects.marks.iter().filter(|(_, lane, _)| samples(lane)) {
            if let Some((node, mark)) = mark_of(&fleet, id, *lane, *stream) {
                let key = MarkKey { node: node.number, lane: *lane, stream: *stream };
                write.set_mark(key, &fleet_schemas::cbor::encode(mark));
            }
        }
        drop(fleet);
        forgotten.iter().for_each(|key| write.remove_mark(*key));
        write.commit()?;
        Ok(())
    }
}

fn mark_of<'a>(
    fleet: &'a Fleet,
    id: &NodeId,
    lane: Lane,
    stream: fleet_schemas::StreamId,
) -> Option<(&'a Node, &'a Mark)> {
    let node = fleet.known(id)?;
    Some((node, node.marks.get(&(lane, stream))?))
}

/// The rows as they are to be written.
pub(crate) fn changes(identities: &Identities, rows: &std::collections::BTreeSet<Row>) -> Changes {
    let mut changes = Changes::default();
    for row in rows {
        match row {
            Row::Token(id) => changes.tokens.push((id.clone(), identities.tokens.get(id).cloned())),
            Row::Enrolment(node) => {
                changes.enrolments.push((node.clone(), identities.enrolments.get(node).cloned()));
            }
            Row::Access(name) => changes.access.push((name.clone(), identities.access.get(name).cloned())),
            Row::Field(id) => changes.field.push((id.clone(), identities.field.get(id).cloned())),
            Row::Operator(name) => {
                changes.operators.push((name.clone(), identities.operators.get(name).cloned()));
            }
        }
    }
    changes
}
