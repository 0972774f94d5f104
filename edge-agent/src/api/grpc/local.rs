//! Commands of kind `local`: handed to programs on the node, which say what became of them.

use std::{sync::Arc, time::Duration};

use tokio::select;
use tonic::{Request, Response, Status};

use super::{
    super::{commands, http::Api, problem::Problem},
    Answering, Answers, Edge, given, json_in, pb,
};
use crate::{
    core::queue::{Command, LocalReport, Take},
    stop::Stop,
};

/// How long one look for a command waits; the stream looks again.
const WAIT: Duration = Duration::from_secs(60);

#[tonic::async_trait]
impl pb::local_server::Local for Edge {
    type TakeStream = Answers<pb::LocalCommand>;

    async fn take(&self, request: Request<pb::TakeRequest>) -> Result<Response<Self::TakeStream>, Status> {
        let pb::TakeRequest { kinds, lease_s } = request.into_inner();
        let lease = commands::lease(lease_s)?;
        let taking = Taking { api: self.0.clone(), stop: self.0.stop.clone(), take: Take { kinds, lease } };
        Ok(Response::new(taking.answers()))
    }

    async fn extend(&self, request: Request<pb::ExtendRequest>) -> Result<Response<pb::Done>, Status> {
        let pb::ExtendRequest { id, lease_s } = request.into_inner();
        let id = commands::parse_id(&id)?;
        let held = self.0.outbox.extend(id, commands::lease(lease_s)?).await;
        commands::done(id, held.map_err(Problem::from)?)?;
        Ok(Response::new(pb::Done {}))
    }

    async fn report(&self, request: Request<pb::ReportRequest>) -> Result<Response<pb::Done>, Status> {
        let (_, _held, message) = request.into_parts();
        let succeeded = match message.outcome() {
            pb::Outcome::Succeeded => true,
            pb::Outcome::Failed => false,
            pb::Outcome::Unspecified => {
                return Err(Problem::field("/outcome", "give succeeded or failed here").into());
            }
        };
        let id = commands::parse_id(&message.id)?;
        let result = json_in("/result_json", &message.result_json)?;
        let result = commands::result_of(result);
        let said = LocalReport {
            succeeded,
            exit_code: message.exit_code,
            message: given(message.message),
            result: result.map_err(|problem| problem.renamed("/result", "/result_json"))?,
            output: message.output.into_bytes(),
        };
        commands::done(id, self.0.outbox.report(id, said).await.map_err(Problem::from)?)?;
        Ok(Response::new(pb::Done {}))
    }
}

/// A program that takes commands.
struct Taking {
    api: Arc<Api>,
    stop: Stop,
    take: Take,
}

impl Answering for Taking {
    type Answer = pb::LocalCommand;

    async fn next(&mut self) -> Option<Result<pb::LocalCommand, Status>> {
        loop {
            let taken = select! {
                taken = self.api.outbox.take(self.take.clone(), WAIT) => taken,
                () = self.stop.wanted() => {
                    return Some(Err(Status::unavailable("the agent is stopping; try again when it runs")));
                }
            };
            match taken {
                Ok(Some(command)) => return Some(Ok(self.told(command))),
                Ok(None) => {}
                Err(silent) => return Some(Err(Problem::from(silent).into())),
            }
        }
    }
}

impl Taking {
    fn told(&self, command: Command) -> pb::LocalCommand {
        let Command { id, kind, queue, params, idempotent, timeout_ms, .. } = command;
        pb::LocalCommand {
            id: id.to_string(),
            kind: kind.to_string(),
            queue: queue.to_string(),
            params_json: commands::json_of(&params).to_string(),
            idempotent,
            timeout_s: Duration::from_millis(timeout_ms).as_secs_f64(),
            lease_s: self.take.lease.as_secs_f64(),
        }
    }
}
