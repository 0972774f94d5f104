//! What the agent says of itself.

use fleet_schemas::{Lane, batch::Clock, update::Running};
use tonic::{Request, Response, Status};

use super::{
    super::{
        problem::Problem,
        view::{BudgetView, LaneView, LedgerView, OutboxView, StatusView, StreamView},
    },
    Edge, pb,
};
use crate::{
    identity::live::IdentityView,
    update::view::{UpdateView, UpdatesView},
    uplink,
};

impl Edge {
    async fn stand(&self) -> Result<uplink::Status, Status> {
        self.0.outbox.status().await.map_err(|silent| Problem::from(silent).into())
    }
}

#[tonic::async_trait]
impl pb::outbox_server::Outbox for Edge {
    async fn get(&self, _: Request<pb::GetOutboxRequest>) -> Result<Response<pb::OutboxState>, Status> {
        Ok(Response::new(OutboxView::from(&self.stand().await?).into()))
    }
}

#[tonic::async_trait]
impl pb::ledger_server::Ledger for Edge {
    async fn get(&self, _: Request<pb::GetLedgerRequest>) -> Result<Response<pb::LedgerState>, Status> {
        let LedgerView { balanced, pending_samples, accounts } = LedgerView::from(&self.stand().await?);
        let accounts = accounts.into_iter().map(|account| pb::Account {
            lane: account.lane.as_str().to_owned(),
            state: account.state,
            produced: account.produced,
            evicted: account.evicted,
            held: account.held,
            lost: account.lost,
        });
        Ok(Response::new(pb::LedgerState { balanced, pending_samples, accounts: accounts.collect() }))
    }
}

#[tonic::async_trait]
impl pb::status_server::Status for Edge {
    async fn get(&self, _: Request<pb::GetStatusRequest>) -> Result<Response<pb::AgentStatus>, Status> {
        let status = self.stand().await?;
        let view = StatusView::new(&self.0.facts, &status, self.0.clock.now());
        let clock = match view.clock {
            Clock::Synced => "synced",
            Clock::Unsynced => "unsynced",
        };
        Ok(Response::new(pb::AgentStatus {
            node_id: view.node_id.to_string(),
            node_name: view.node_name,
            kind: view.kind,
            version: view.version,
            status: view.status,
            uptime_s: view.uptime,
            hub: view.hub.unwrap_or_default(),
            session_epoch: view.session_epoch,
            credit: view.credit,
            last_ack_s: view.last_ack_s,
            hub_offset_ms: view.hub_offset_ms,
            time_ms: view.time_ms,
            clock: clock.to_owned(),
            outbox: Some(view.outbox.into()),
            session: view.session.map(|session| session.to_string()).unwrap_or_default(),
            store_id: view.store_id.map(|store| store.to_string()).unwrap_or_default(),
            identity: view.identity.map(Into::into),
            config: Some(view.config.into()),
            updates: view.updates.map(Into::into),
        }))
    }
}

impl From<OutboxView> for pb::OutboxState {
    fn from(view: OutboxView) -> Self {
        let budget = |BudgetView { used_bytes, budget_bytes }| pb::Budget { used_bytes, budget_bytes };
        Self {
            bytes: view.bytes,
            quota_bytes: view.quota_bytes,
            held_records: view.held_records,
            unacked_batches: view.unacked_batches,
            pending_samples: view.pending_samples,
            lost_records: view.lost_records,
            damaged_rows: view.damaged_rows,
            hour_budget: view.hour_budget.map(budget),
            day_budget: view.day_budget.map(budget),
            waits_for_budget: view.waits_for_budget,
            lanes: view.lanes.into_iter().map(lane).collect(),
        }
    }
}

fn lane((lane, view): (Lane, LaneView)) -> pb::OutboxLane {
    pb::OutboxLane {
        lane: lane.as_str().to_owned(),
        in_flight: view.in_flight,
        unacked_batches: view.unacked_batches,
        held_records: view.held_records,
        streams: view.streams.iter().map(stream).collect(),
    }
}

fn stream(view: &StreamView) -> pb::OutboxStream {
    pb::OutboxStream {
        stream: view.stream.to_string(),
        mark: view.mark,
        floor_seq: view.floor_seq,
        next_seq: view.next_seq,
        floor_record: view.floor_record,
        next_record: view.next_record,
        records: view.records,
        lost_records: view.lost_records,
    }
}

impl From<UpdatesView> for pb::Updates {
    fn from(view: UpdatesView) -> Self {
        let UpdatesView { running, updates, last, quarantined } = view;
        Self {
            running: running.iter().map(running_of).collect(),
            updates: updates.iter().map(update).collect(),
            last: last.as_ref().map(update),
            quarantined: quarantined.iter().map(ToString::to_string).collect(),
        }
    }
}

fn running_of(running: &Running) -> pb::Running {
    pb::Running {
        kind: running.kind.to_string(),
        name: running.name.to_string(),
        version: running.version.to_string(),
        digest: running.digest.to_string(),
        device: running.device.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn update(view: &UpdateView) -> pb::Update {
    pb::Update {
        command: view.command.to_string(),
        target: view.target.to_string(),
        digest: view.digest.to_string(),
        rollout: view.rollout.as_ref().map(ToString::to_string).unwrap_or_default(),
        device: view.device.as_ref().map(ToString::to_string).unwrap_or_default(),
        state: view.state.as_str().to_owned(),
        reason: view.reason.clone().unwrap_or_default(),
        bytes: view.bytes,
        total: view.total,
    }
}

impl From<IdentityView> for pb::Identity {
    fn from(view: IdentityView) -> Self {
        Self {
            hub: view.hub,
            certificate_ends_ms: view.certificate_ends_ms,
            certificate_renews_ms: view.certificate_renews_ms,
            renewed: view.renewed,
            trust: view.trust,
            refused: view.refused.unwrap_or_default(),
        }
    }
}
