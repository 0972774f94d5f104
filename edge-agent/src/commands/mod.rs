//! Doing what the command queues begin: one task for each run, and what became of it said to the outbox.
//!
//! Decides nothing about states: the queues in `core` say what begins and what is stopped, and hear how it ended. When
//! the agent stops, programs are ended and nothing is said: the next start settles them as after a crash.

pub(crate) mod allow;
mod kinds;
pub(crate) mod orphans;
mod program;
mod query;

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use fleet_schemas::CommandId;
use serde::{Deserialize, Serialize};
use tokio::{
    select,
    sync::{mpsc, oneshot, watch},
    task::{self, JoinSet},
    time,
};
use tracing::{info, warn};

use self::{
    allow::{Plan, Source},
    kinds::{LOGS, Work},
};
use crate::{
    api::Facts,
    clock::Clock,
    core::queue::{Act, Command, End, Ending, Stage, reason},
    devices::Line,
    identity::moving::Mover,
    logs, outbox,
    stop::Stop,
    update::updater,
};

pub(crate) use kinds::{Kinds, Moves, Updates};

/// The allow-list's name in the data folder.
pub const FILE: &str = "commands.toml";
/// Pause before the end of a run is said again to an outbox that did not take it.
const AGAIN: Duration = Duration::from_secs(1);
/// Acts on their way to the runner: a start and a stop for each run that the queues allow, and some air.
pub(crate) const ACTS: usize = 32;

/// An allow-list that lets look and not touch: for demonstrations.
pub const LOOK_ONLY: &str = r#"[command.uptime]
program = "uptime"

[command.date]
program = "date"

[command.df]
program = "df"
args = ["-h", "{path}"]

[command.df.params.path]
type = "path"
default = "/"
"#;

/// Which programs may be run, and whether the agent may start itself again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The allow-list; absent: `commands.toml` in the data folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// An allow-list that counts while the file does not exist, for those who embed the agent.
    #[serde(skip)]
    pub allow: Option<Arc<str>>,
    /// Whether whoever runs the agent starts it again when it asks for that ([`Handle::restart`](crate::run::Handle)).
    #[serde(skip)]
    pub restarts: bool,
}

impl Config {
    /// `devices`: whether there is a listener over which devices hear commands.
    pub(crate) fn kinds(
        &self,
        data: &std::path::Path,
        devices: bool,
        updates: Updates,
        moves: Moves,
    ) -> Kinds {
        let file = self.file.clone().unwrap_or_else(|| data.join(FILE));
        Kinds {
            allow: Source { file, otherwise: self.allow.clone() },
            restarts: self.restarts,
            devices,
            updates,
            moves,
        }
    }
}

/// What runs meet.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) kinds: Kinds,
    /// The agent's data folder, which tells its programs from those of other agents.
    pub(crate) folder: PathBuf,
    pub(crate) facts: Facts,
    pub(crate) clock: Clock,
    pub(crate) outbox: outbox::Handle,
    /// What the node logs, where there is a place to keep it.
    pub(crate) logs: Option<logs::Handle>,
    /// Over which devices are told, if any are served.
    pub(crate) line: Option<Line>,
    /// Who does updates, if the node takes any.
    pub(crate) updater: Option<updater::Handle>,
    /// Who leads the node to another hub.
    pub(crate) mover: Mover,
    /// Told when the agent has to start again.
    pub(crate) restart: Arc<watch::Sender<bool>>,
}

/// Ends programs of commands that an earlier start of this agent began and did not end. Before anything else runs.
pub(crate) async fn end_orphans(folder: PathBuf, outbox: &outbox::Handle) {
    let Ok(held) = outbox.commands().await else { return };
    let running = held.iter().filter(|held| matches!(held.stage, Stage::Running(_)) && !held.is_local());
    let ids: Vec<_> = running.map(|held| held.command.id).collect();
    if ids.is_empty() {
        return;
    }
    // A slow look at all processes must not hold up others on this runtime.
    if let Ok(ended @ 1..) = task::spawn_blocking(move || orphans::end(&folder, &ids)).await {
        warn!(ended, "programs of an earlier start still ran and were ended");
    }
}

/// Does what comes out of `acts` until told to stop; then ends what runs.
pub(crate) async fn run(surroundings: Surroundings, mut acts: mpsc::Receiver<Act>, mut stop: Stop) {
    let mut runs = JoinSet::new();
    // How to stop each run.
    let mut stops: HashMap<CommandId, oneshot::Sender<Ending>> = HashMap::new();
    loop {
        select! {
            act = acts.recv() => match act {
                Some(Act::Start(command)) => {
                    let (stopper, stopping) = oneshot::channel();
                    stops.insert(command.id, stopper);
                    runs.spawn(one(*command, surroundings.clone(), stopping, stop.clone()));
                }
                Some(Act::Stop(id, why)) => {
                    let word = match why {
                        Ending::Cancel => "canceled",
                        Ending::Timeout => "too long",
                        Ending::Superseded => "superseded",
                    };
                    info!(command = %id, word, "the command is told to end");
                    if let Some(stopper) = stops.remove(&id) {
                        // An error says that it ended already.
                        let _ = stopper.send(why);
                    }
                }
                None => break,
            },
            Some(ended) = runs.join_next() => match ended {
                Ok(id) => drop(stops.remove(&id)),
                Err(error) => warn!(%error, "a command's task ended badly"),
            },
            () = stop.wanted() => break,
        }
    }
    stops.clear();
    while runs.join_next().await.is_some() {}
}

/// One run, from its start to the outbox knowing its end.
async fn one(
    command: Command,
    surroundings: Surroundings,
    mut stopping: oneshot::Receiver<Ending>,
    mut stop: Stop,
) -> CommandId {
    let id = command.id;
    // Whoever follows the log would make a line of it with every look.
    let is_told = command.kind.as_str() != LOGS;
    if is_told {
        info!(command = %id, kind = %command.kind, "a command begins");
    }
    let Some(end) = act(command, &surroundings, &mut stopping).await else { return id };
    if end == End::Stopped && stop.is_wanted() {
        return id;
    }
    if is_told {
        info!(command = %id, %end, "a command ended");
    }
    while surroundings.outbox.finished(id, end.clone()).await.is_err() {
        select! {
            () = time::sleep(AGAIN) => {}
            () = stop.wanted() => {
                warn!(command = %id, "the end of a command could not be written down");
                return id;
            }
        }
    }
    id
}

/// How it ended; `None` when it has no end in this process.
async fn act(
    command: Command,
    surroundings: &Surroundings,
    stopping: &mut oneshot::Receiver<Ending>,
) -> Option<End> {
    let Surroundings { kinds, folder, facts, clock, outbox, logs, line, updater, mover, restart } =
        surroundings;
    // Read again: the allow-list may have changed while the command waited.
    let work = match kinds.read(&command.kind, &command.params) {
        Ok(work) => work,
        Err(reason) => return Some(End::Refused(reason)),
    };
    match work {
        Work::Ping => Some(End::Done { result: query::ping(clock.now()) }),
        Work::Query(what) => Some(query::answer(what, facts, clock, outbox).await),
        Work::Logs(query) => match logs {
            Some(logs) => Some(logs::answer(command.id, query, logs, outbox, stopping).await),
            None => {
                let why = "the node's logs cannot be kept; look at the rights on DATA/logs, and start the agent again";
                Some(End::Failed(reason("no_logs", why, false)))
            }
        },
        Work::Exec(plan) => {
            let marks = [
                (orphans::ID.to_owned(), command.id.to_string()),
                (orphans::FOLDER.to_owned(), folder.display().to_string()),
            ];
            let plan = Plan { env: plan.env.into_iter().chain(marks).collect(), ..*plan };
            let timeout = Duration::from_millis(command.timeout_ms);
            Some(program::run(command.id, plan, timeout, outbox, stopping).await)
        }
        Work::Move(order) => {
            let name = facts.name.clone();
            Some(mover.run(command.id, *order, &facts.node, name, outbox, stopping).await)
        }
        Work::Restart => {
            // The next start completes it.
            restart.send_replace(true);
            None
        }
        Work::Device(order) => {
            // Without one, none would have been read.
            let line = line.as_ref()?;
            Some(line.tell(&order, Duration::from_millis(command.timeout_ms), stopping).await)
        }
        Work::Update(order) => {
            // Without one, none would have been read.
            let updater = updater.as_ref()?;
            let timeout = Duration::from_millis(command.timeout_ms);
            let report = updater.order(command.id, *order, timeout, stopping).await?;
            Some(End::Updated(Box::new(report)))
        }
        // An app takes it from the queue itself; none ever comes here.
        Work::Local => None,
    }
}
