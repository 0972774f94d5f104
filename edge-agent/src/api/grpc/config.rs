//! The configuration as programs on the node see it.

use std::sync::Arc;

use fleet_schemas::config::Failed;
use tokio::{select, sync::watch};
use tonic::{Request, Response, Status};

use super::{
    super::config::{ConfigView, HeldView},
    Answering, Answers, Edge, pb,
};
use crate::{core::config::View, stop::Stop};

#[tonic::async_trait]
impl pb::config_server::Config for Edge {
    type WatchStream = Answers<pb::NodeConfig>;

    async fn get(&self, _: Request<pb::GetConfigRequest>) -> Result<Response<pb::NodeConfig>, Status> {
        let view = ConfigView::from(&**self.0.outbox.config().borrow());
        Ok(Response::new(view.into()))
    }

    async fn watch(
        &self,
        request: Request<pb::WatchConfigRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let told = request.into_inner().after;
        let watching = Watching { known: self.0.outbox.config(), stop: self.0.stop.clone(), told };
        Ok(Response::new(watching.answers()))
    }
}

/// A program that watches the configuration.
struct Watching {
    known: watch::Receiver<Arc<View>>,
    stop: Stop,
    // The tag of what was told last.
    told: String,
}

impl Answering for Watching {
    type Answer = pb::NodeConfig;

    async fn next(&mut self) -> Option<Result<pb::NodeConfig, Status>> {
        loop {
            let view = ConfigView::from(&**self.known.borrow_and_update());
            if view.tag != self.told {
                self.told.clone_from(&view.tag);
                return Some(Ok(view.into()));
            }
            let stopping = || Status::unavailable("the agent is stopping; try again when it runs");
            select! {
                changed = self.known.changed() => if changed.is_err() {
                    return Some(Err(stopping()));
                },
                () = self.stop.wanted() => return Some(Err(stopping())),
            }
        }
    }
}

impl From<ConfigView> for pb::NodeConfig {
    fn from(view: ConfigView) -> Self {
        let failed = |Failed { code, message }| pb::ConfigFailure { code, message };
        Self {
            state: view.state,
            received: view.received.map(Into::into),
            applied: view.applied.map(Into::into),
            failed: view.failed.map(failed),
            doc_json: view.doc.to_string(),
            tag: view.tag,
        }
    }
}

impl From<HeldView> for pb::HeldConfig {
    fn from(held: HeldView) -> Self {
        Self { epoch: held.version.epoch, n: held.version.n, hash: held.hash, retry: held.retry }
    }
}
