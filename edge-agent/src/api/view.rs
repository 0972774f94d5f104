//! What the edge API and the command line say of the agent, as JSON.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fleet_schemas::{Lane, NodeId, SessionId, StoreId, StreamId, session::StreamState};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::config::ConfigView;
use crate::{
    core::{Now, upload::Use},
    identity::live::{IdentityView, Live},
    update::view::UpdatesView,
    uplink::{LaneStatus, Status},
};

/// `GET /api/v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// The node.
    pub node_id: NodeId,
    /// Its name for people.
    pub node_name: String,
    /// What kind of machine.
    pub kind: String,
    /// The agent's version.
    pub version: String,
    /// `online` while the hub answers, else `offline`.
    pub status: String,
    /// Since the agent started, in seconds.
    pub uptime: u64,
    /// Where the hub is; absent when none is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// Whether a hub is reached (the word of older tools).
    pub cloud: bool,
    /// The session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// Sessions so far.
    pub session_epoch: u64,
    /// The hub's store, once it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_id: Option<StoreId>,
    /// Batches the hub lets us have in flight.
    pub credit: u32,
    /// Since the last ack, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_ack_s: Option<u64>,
    /// Hub time minus ours, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub_offset_ms: Option<i64>,
    /// The agent's wall clock, Unix milliseconds.
    pub time_ms: i64,
    /// `synced` or `unsynced`.
    pub clock: fleet_schemas::batch::Clock,
    /// What proves who the node is, once it has joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityView>,
    /// Where the configuration stands.
    pub config: ConfigView,
    /// How updates stand; absent when the node takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updates: Option<UpdatesView>,
    /// What the outbox holds.
    pub outbox: OutboxView,
}

/// `GET /api/v1/outbox`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutboxView {
    /// Bytes held.
    pub bytes: u64,
    /// Bytes it may hold.
    pub quota_bytes: u64,
    /// Records held, pending ones and those kept after their ack included.
    pub held_records: u64,
    /// Batches that the hub has not acknowledged.
    pub unacked_batches: u64,
    /// Samples that are on disk and not yet sealed into a batch.
    pub pending_samples: u64,
    /// Records declared lost since the agent started.
    pub lost_records: u64,
    /// Rows found damaged when the outbox was opened.
    pub damaged_rows: u64,
    /// This hour's budget of bytes, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hour_budget: Option<BudgetView>,
    /// This day's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day_budget: Option<BudgetView>,
    /// Whether batches wait for the next hour or day because a budget is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits_for_budget: bool,
    /// Each lane.
    pub lanes: BTreeMap<Lane, LaneView>,
}

/// Use of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetView {
    /// Bytes used, headers included.
    pub used_bytes: u64,
    /// Bytes there are.
    pub budget_bytes: u64,
}

/// One lane of the outbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneView {
    /// Batches in flight.
    pub in_flight: u32,
    /// Batches that the hub has not acknowledged.
    pub unacked_batches: u64,
    /// Records held.
    pub held_records: u64,
    /// Each stream.
    pub streams: Vec<StreamView>,
}

/// One stream of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamView {
    /// The stream.
    pub stream: StreamId,
    /// The hub's mark: everything up to it is stored.
    pub mark: u64,
    /// Number of the oldest batch still held.
    pub floor_seq: u64,
    /// Number the next batch will have.
    pub next_seq: u64,
    /// Number of the first record still held.
    pub floor_record: u64,
    /// Number the next record will have.
    pub next_record: u64,
    /// Records held.
    pub records: u64,
    /// Records that tombstones stand for.
    pub lost_records: u64,
}

/// `GET /api/v1/ledger`: the account of what was accepted, as far as the node knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LedgerView {
    /// Whether every account is.
    pub balanced: bool,
    /// Samples that are on disk and not yet on a lane.
    pub pending_samples: u64,
    /// One for each lane.
    pub accounts: Vec<AccountView>,
}

/// One lane's account, in records: `produced = evicted + held + lost`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountView {
    /// The lane.
    pub lane: Lane,
    /// `balanced` or `broken`.
    pub state: String,
    /// Records numbered in the streams that the node still knows.
    pub produced: u64,
    /// Acknowledged by the hub and no longer kept here.
    pub evicted: u64,
    /// Held here, acknowledged or not.
    pub held: u64,
    /// Declared lost, and still to be told to the hub.
    pub lost: u64,
}

impl From<&Status> for LedgerView {
    fn from(status: &Status) -> Self {
        let account = |(lane, lane_status): (&Lane, &LaneStatus)| {
            let sum =
                |of: fn(&StreamState) -> u64| lane_status.streams.iter().map(|(state, _)| of(state)).sum();
            // Records are numbered from 1.
            let produced = sum(|state| state.next_record.saturating_sub(1));
            let evicted = sum(|state| state.floor_record.saturating_sub(1));
            let (held, lost) = (sum(|state| state.counted), sum(|state| state.tombstoned));
            let state = if produced == evicted + held + lost { "balanced" } else { "broken" };
            AccountView { lane: *lane, state: state.to_owned(), produced, evicted, held, lost }
        };
        let accounts: Vec<_> = status.lanes.iter().map(account).collect();
        Self {
            balanced: accounts.iter().all(|account| account.state == "balanced"),
            pending_samples: status.pending.samples,
            accounts,
        }
    }
}

/// What the status adds to the outbox's own word.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The node.
    pub node: NodeId,
    /// Its name for people.
    pub name: Option<String>,
    /// What kind of machine.
    pub kind: String,
    /// The agent's version.
    pub version: &'static str,
    /// Where the hub is.
    pub hub: Option<String>,
    /// What proves who the node is, once it has joined.
    pub identity: Option<Arc<Live>>,
    /// How updates stand, if the node takes any.
    pub updates: Option<watch::Receiver<Arc<UpdatesView>>>,
    /// Time since boot at which the agent started.
    pub started: Duration,
}

impl StatusView {
    pub(crate) fn new(facts: &Facts, status: &Status, now: Now) -> Self {
        Self {
            node_id: facts.node.clone(),
            node_name: facts.name.clone().unwrap_or_else(|| facts.node.to_string()),
            kind: facts.kind.clone(),
            version: facts.version.to_owned(),
            status: if status.answered { "online" } else { "offline" }.to_owned(),
            uptime: now.up.saturating_sub(facts.started).as_secs(),
            hub: facts.hub.clone(),
            cloud: status.answered,
            session: status.session,
            session_epoch: status.epoch,
            store_id: status.store_id,
            credit: status.credit,
            last_ack_s: status.last_ack.map(|at| now.up.saturating_sub(at).as_secs()),
            hub_offset_ms: status.hub_offset_ms,
            time_ms: now.wall_ms,
            clock: now.clock,
            identity: facts.identity.as_ref().map(|live| live.view()),
            config: ConfigView::from(&status.config),
            updates: facts.updates.as_ref().map(|updates| (**updates.borrow()).clone()),
            outbox: OutboxView::from(status),
        }
    }
}

impl From<&Status> for OutboxView {
    fn from(status: &Status) -> Self {
        let lanes: BTreeMap<_, _> =
            status.lanes.iter().map(|(lane, state)| (*lane, LaneView::from(state))).collect();
        Self {
            held_records: lanes.values().map(|lane| lane.held_records).sum::<u64>() + status.pending.samples,
            unacked_batches: lanes.values().map(|lane| lane.unacked_batches).sum(),
            bytes: status.outbox.bytes,
            quota_bytes: status.outbox.quota_bytes,
            pending_samples: status.pending.samples,
            lost_records: status.lost,
            damaged_rows: status.damaged_rows,
            hour_budget: status.budgets.hour.map(BudgetView::from),
            day_budget: status.budgets.day.map(BudgetView::from),
            waits_for_budget: status.budgets.waiting,
            lanes,
        }
    }
}

impl From<Use> for BudgetView {
    fn from(Use { used, budget }: Use) -> Self {
        Self { used_bytes: used, budget_bytes: budget }
    }
}

impl From<&LaneStatus> for LaneView {
    fn from(lane: &LaneStatus) -> Self {
        let streams = lane.streams.iter().map(|(state, mark)| StreamView {
            stream: state.stream,
            mark: *mark,
            floor_seq: state.floor_seq,
            next_seq: state.next_seq,
            floor_record: state.floor_record,
            next_record: state.next_record,
            records: state.counted,
            lost_records: state.tombstoned,
        });
        Self {
            in_flight: lane.in_flight,
            unacked_batches: (lane.streams.iter())
                .map(|(state, mark)| state.next_seq.saturating_sub(mark.saturating_add(1)))
                .sum(),
            held_records: lane.streams.iter().map(|(state, _)| state.counted).sum(),
            streams: streams.collect(),
        }
    }
}
