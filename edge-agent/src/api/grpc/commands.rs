//! Commands: asking for one, looking at them, and watching them.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use fleet_schemas::{CommandId, MetricName};
use serde_json::Value;
use tokio::{select, sync::watch};
use tonic::{Request, Response, Status};

use super::{
    super::{
        commands::{self, Asked, CommandView},
        http::Api,
        problem::Problem,
        write,
    },
    Answering, Answers, Edge, given, json_in, pb,
};
use crate::{core::queue::Origin, stop::Stop};

#[tonic::async_trait]
impl pb::commands_server::Commands for Edge {
    type WatchStream = Answers<pb::Command>;

    async fn enqueue(&self, request: Request<pb::EnqueueRequest>) -> Result<Response<pb::Enqueued>, Status> {
        let (_, _held, message) = request.into_parts();
        let id = commands::ask(&self.0, asked(message)?).await;
        let id = id.map_err(|problem| problem.renamed("/params", "/params_json"))?;
        Ok(Response::new(pb::Enqueued { id: id.to_string() }))
    }

    async fn get(&self, request: Request<pb::GetCommandRequest>) -> Result<Response<pb::Command>, Status> {
        let id = commands::parse_id(&request.into_inner().id)?;
        Ok(Response::new(commands::find(&self.0, id).await?.into()))
    }

    async fn list(&self, _: Request<pb::ListCommandsRequest>) -> Result<Response<pb::Queue>, Status> {
        let queue = commands::list(&self.0).await?;
        Ok(Response::new(pb::Queue {
            running: queue.running.into_iter().map(Into::into).collect(),
            waiting: queue.waiting.into_iter().map(Into::into).collect(),
            limit: u32::try_from(queue.limit).unwrap_or(u32::MAX),
        }))
    }

    async fn watch(
        &self,
        request: Request<pb::WatchCommandsRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let id = given(request.into_inner().id).map(|id| commands::parse_id(&id)).transpose()?;
        let mut watching = Watching {
            api: self.0.clone(),
            stop: self.0.stop.clone(),
            changes: self.0.outbox.command_changes(),
            id,
            told: BTreeMap::new(),
            ready: VecDeque::new(),
        };
        // What there is now: a command that nobody knows is refused at once.
        watching.look().await?;
        Ok(Response::new(watching.answers()))
    }
}

fn asked(message: pb::EnqueueRequest) -> Result<Asked, Problem> {
    let name = |field: &str, text: &str| {
        MetricName::parse(text).map_err(|error| Problem::field(field, error.to_string()))
    };
    let priority = i8::try_from(message.priority);
    let id = write::check_name(&message.id).map_err(|detail| Problem::field("/id", detail))?;
    Ok(Asked {
        kind: name("/kind", &message.kind)?,
        params: json_in("/params_json", &message.params_json)?.unwrap_or(Value::Null),
        queue: given(message.queue).map(|queue| name("/queue", &queue)).transpose()?,
        priority: priority.map_err(|_| Problem::field("/priority", "give -128 to 127 here"))?,
        ttl_s: message.ttl_s,
        timeout_s: message.timeout_s,
        idempotent: message.idempotent,
        name: id.map(str::to_owned),
    })
}

/// Somebody who watches one command, or all.
struct Watching {
    api: Arc<Api>,
    stop: Stop,
    changes: watch::Receiver<u64>,
    id: Option<CommandId>,
    // The state that was told last, of those that are not over.
    told: BTreeMap<CommandId, &'static str>,
    ready: VecDeque<pb::Command>,
}

impl Answering for Watching {
    type Answer = pb::Command;

    async fn next(&mut self) -> Option<Result<pb::Command, Status>> {
        loop {
            if let Some(command) = self.ready.pop_front() {
                return Some(Ok(command));
            }
            // One that is over never changes again.
            if self.id.is_some() && self.told.is_empty() {
                return None;
            }
            let stopping = || Status::unavailable("the agent is stopping; try again when it runs");
            select! {
                changed = self.changes.changed() => if changed.is_err() {
                    return Some(Err(stopping()));
                },
                () = self.stop.wanted() => return Some(Err(stopping())),
            }
            if let Err(problem) = self.look().await {
                return Some(Err(problem.into()));
            }
        }
    }
}

impl Watching {
    /// Finds what is new.
    async fn look(&mut self) -> Result<(), Problem> {
        self.changes.borrow_and_update();
        let (held, ended) = match self.id {
            Some(id) => (vec![commands::find(&self.api, id).await?], Vec::new()),
            None => {
                let queue = commands::list(&self.api).await?;
                let held: Vec<_> = queue.running.into_iter().chain(queue.waiting).collect();
                let gone = |id: &&CommandId| !held.iter().any(|view| view.id == **id);
                let ended: Vec<_> = self.told.keys().filter(gone).copied().collect();
                (held, ended)
            }
        };
        for view in held {
            self.tell(view);
        }
        for id in ended {
            let view = commands::find(&self.api, id).await?;
            self.tell(view);
        }
        Ok(())
    }

    fn tell(&mut self, view: CommandView) {
        let new = self.told.get(&view.id) != Some(&view.state);
        if is_over(&view) {
            self.told.remove(&view.id);
        } else {
            self.told.insert(view.id, view.state);
        }
        if new {
            self.ready.push_back(view.into());
        }
    }
}

fn is_over(view: &CommandView) -> bool {
    view.at_ms.is_some()
}

impl From<CommandView> for pb::Command {
    fn from(view: CommandView) -> Self {
        let text = |value: Option<Value>| value.map_or(String::new(), |value| value.to_string());
        let over = is_over(&view);
        let origin = match view.origin {
            Origin::Hub => "hub",
            Origin::Node => "node",
        };
        Self {
            id: view.id.to_string(),
            kind: view.kind.map_or(String::new(), |kind| kind.to_string()),
            origin: origin.to_owned(),
            state: view.state.to_owned(),
            queue: view.queue.map_or(String::new(), |queue| queue.to_string()),
            priority: view.priority.map_or(0, i32::from),
            params_json: text(view.params),
            at_ms: view.at_ms,
            reason: view.reason.map(|reason| pb::Reason {
                code: reason.code,
                message: reason.message,
                may_have_executed: reason.may_have_executed,
            }),
            exit_code: view.exit_code,
            result_json: text(view.result),
            output: view.output,
            over,
        }
    }
}
