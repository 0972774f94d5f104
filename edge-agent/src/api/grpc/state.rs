//! What the agent says of itself.

use fleet_schemas::batch::Clock;
use tonic::{Request, Response, Status};

use super::{
    super::{
        problem::Problem,
        view::{LedgerView, OutboxView, StatusView},
    },
    Edge, pb,
};
use crate::uplink;

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
        }))
    }
}

impl From<OutboxView> for pb::OutboxState {
    fn from(view: OutboxView) -> Self {
        Self {
            bytes: view.bytes,
            quota_bytes: view.quota_bytes,
            held_records: view.held_records,
            unacked_batches: view.unacked_batches,
            pending_samples: view.pending_samples,
            lost_records: view.lost_records,
            damaged_rows: view.damaged_rows,
        }
    }
}
