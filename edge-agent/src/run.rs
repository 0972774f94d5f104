//! One whole agent: opens the outbox, starts every task by name, and ends them in order.
//!
//! Owns no state beside its tasks, so that many agents can run in one process.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use fleet_schemas::{NodeId, session::Versions, update::CAPABILITY};
use tokio::{
    select,
    sync::{mpsc, oneshot, watch},
    task::{self, JoinHandle},
    time,
};
use tracing::{Instrument as _, error, info, info_span, warn};

use crate::{
    api::{self, Facts, ListenError, StatusView},
    clock::{self, Clock},
    collect::{self, file, scrape, system},
    commands,
    config::{Config, ConfigError},
    core::{
        config::{Run, View},
        queue::Act,
    },
    desired,
    devices::{self, Line},
    identity::{
        first, live,
        moving::{self, Mover},
        upkeep,
    },
    launch, logs,
    metrics::Metrics,
    mqtt::{self, HubUrl, Proof},
    outbox::{self, OpenError, Silent, SubmitError},
    role::{Role, invitation, role},
    rules,
    stop::{self, Stop, Stopper},
    supervised,
    update::{self, slot, updater, view::UpdatesView},
    uplink::{Profile, Submission},
};

/// This build's version, as it is told to the hub.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Time that what hands records in has to end before it is cut: requests are answered, programs ended. With the two
/// below it makes the 5 s that a stop may take.
const SOURCES: Duration = Duration::from_millis(2_000);
/// Time that the session has to say goodbye.
const LINK: Duration = Duration::from_millis(1_700);
/// Time that a hub which the node leaves has to acknowledge what came last; the node leaves later if it does not.
const LAST_ACK: Duration = Duration::from_millis(1_000);
/// How often that is looked for.
const ACK_LOOK: Duration = Duration::from_millis(20);
/// Time that the outbox has for its last write.
const OUTBOX: Duration = Duration::from_millis(1_000);
/// Time that the last lines have.
const LOGS: Duration = Duration::from_millis(100);

/// The agent cannot start. The text fits after "failed to start: ".
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data folder.
    #[error("the data folder {path} cannot be made: {source}; choose another with --data")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The secret.
    #[error(
        "the node's secret {path} cannot be read: {source}; put it there (mode 0600), or give --secret-file"
    )]
    Secret {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The identity.
    #[error(transparent)]
    Identity(#[from] live::OpenError),
    /// TLS to a hub that the node has not joined.
    #[error(
        "this machine has not joined a hub, and {0} takes only nodes that have; run \
         `fleet-agent join HUB --token T` first, with a token that `fleet join-token create` prints on the hub"
    )]
    NotJoined(HubUrl),
    /// Told to be another node.
    #[error(
        "this machine has joined as node {joined}, and is told to be {told}; leave --node (or `id` under [node]) \
         away, or join anew: fleet-agent join HUB --token T --node {told} --force"
    )]
    OtherNode {
        /// Who it is.
        joined: NodeId,
        /// Who it is told to be.
        told: NodeId,
    },
    /// The outbox.
    #[error(transparent)]
    Outbox(#[from] OpenError),
    /// The edge API.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The listener of devices.
    #[error(transparent)]
    Devices(#[from] devices::ListenError),
}

/// A running agent.
///
/// Dropping it stops the agent as well, but does not wait for it.
#[derive(Debug)]
pub struct Handle {
    node: NodeId,
    address: SocketAddr,
    devices: Option<SocketAddr>,
    pub(crate) outbox: outbox::Handle,
    clock: Clock,
    facts: Facts,
    metrics: Arc<Metrics>,
    stop: Stopper,
    restart: watch::Receiver<bool>,
    ended: JoinHandle<()>,
    #[cfg(test)]
    pub(crate) line: Option<devices::Line>,
}

/// Why an agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to by whoever runs it.
    Stopped,
    /// A command asks to start it again.
    Restart,
}

impl Handle {
    /// The node it is.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Where its edge API listens.
    #[must_use]
    pub fn api(&self) -> SocketAddr {
        self.address
    }

    /// Where devices are served over MQTT, if they are.
    #[must_use]
    pub fn devices(&self) -> Option<SocketAddr> {
        self.devices
    }

    /// What `GET /api/v1/status` says.
    ///
    /// # Errors
    /// [`Silent`] when the outbox cannot be asked.
    pub async fn status(&self) -> Result<StatusView, Silent> {
        Ok(StatusView::new(&self.facts, &self.outbox.status().await?, self.clock.now()))
    }

    /// Where the configuration stands; the receiver is told whenever that changes.
    #[must_use]
    pub fn config(&self) -> watch::Receiver<Arc<View>> {
        self.outbox.config()
    }

    /// Hands records in as the edge API does: they are on disk when it says `Ok`.
    ///
    /// # Errors
    /// [`SubmitError`]: none of them is accepted.
    pub async fn submit(&self, submission: Submission) -> Result<(), SubmitError> {
        self.outbox.submit(submission).await
    }

    /// The page that Prometheus reads.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.metrics.render()
    }

    /// Returns once a command asks to start the agent again: only if [`commands::Config::restarts`] promises that.
    pub async fn restart(&self) {
        let mut restart = self.restart.clone();
        if restart.wait_for(|wanted| *wanted).await.is_err() {
            // The agent is gone, and asks for nothing any more.
            std::future::pending::<()>().await;
        }
    }

    /// Stops it: collectors first, then the session with a goodbye, the outbox last. Takes at most 5 s.
    pub async fn stop(self) {
        self.stop.stop();
        if let Err(error) = self.ended.await {
            error!(%error, "the agent ended badly");
        }
    }
}

/// Runs an agent until `shutdown` completes, or until a command asks to start it again; then stops it cleanly. For a
/// program that is an agent and nothing else: it speaks to the service manager.
///
/// # Errors
/// [`StartError`]: nothing is left running.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<Ended, StartError> {
    let handle = start(config).await?;
    supervised::ready();
    let ended = select! {
        () = shutdown => Ended::Stopped,
        () = handle.restart() => Ended::Restart,
        never = supervised::watch(&handle) => match never {},
    };
    // Told to end by its launcher, an agent may be started again: the launcher knows.
    if ended == Ended::Stopped && !launch::is_launched() {
        supervised::stopping();
    }
    handle.stop().await;
    Ok(ended)
}

/// Starts an agent. It runs on the calling runtime, with one thread of its own for the outbox.
///
/// # Errors
/// [`StartError`]: nothing is left running.
pub async fn start(mut config: Config) -> Result<Handle, StartError> {
    config.check()?;
    config.outbox.policy = config.upload.policy().map_err(ConfigError::upload)?;
    make_folder(&config.data)?;
    let invitation = invitation(&config);
    let Role { node, name, way } = role(&config)?;
    let invitation = invitation.filter(|_| way.is_none());
    // Bound first: an address that is taken must not cost an opening of the outbox.
    let auth = api::Auth::load(&config.api, &config.data)?;
    let tls = api::Tls::load(&config.api, &config.data, &node)?;
    let tls_at_api = tls.is_some();
    let bound = api::bind(&config.api, tls).await?;
    let front = devices::listen::bind(&config.devices, &config.data)?;
    let clock = Clock::new(config.clock);
    let metrics = Arc::new(Metrics::new(node.as_str(), VERSION));
    let now = clock.now();
    let mut profile = Profile { name: name.clone(), ..profile(&config, &node) };
    let (updates, opened) = updates(&config, way.as_ref().map(|(_, proof)| proof), now.wall_ms).await;
    if let Some(opened) = &opened {
        profile.versions = opened.versions();
        // A node on which nothing runs yet that could be updated takes updates all the same.
        if !profile.capabilities.iter().any(|known| known == CAPABILITY) {
            profile.capabilities.push(CAPABILITY.to_owned());
        }
    }
    let (view, viewed) = watch::channel(Arc::new(UpdatesView {
        running: profile.versions.running.clone(),
        ..UpdatesView::default()
    }));
    let machine = (profile.boot, profile.machine.get("arch").cloned().unwrap_or_default());
    let (outbox, thread) = outbox::spawn(
        outbox::Config { devices: config.devices.policy(), ..config.outbox.clone() },
        config.data.clone(),
        profile,
        clock.clone(),
        metrics.clone(),
    )
    .await?;
    let (way, again) = resumed(way, &config, &outbox).await;
    let facts = Facts {
        node: node.clone(),
        name,
        kind: config.node.kind.clone(),
        version: VERSION,
        hub: way.as_ref().map(|(hub, _)| hub.to_string()),
        identity: way.as_ref().and_then(|(_, proof)| proof.identity().cloned()),
        updates: opened.as_ref().map(|_| viewed),
        started: now.up,
    };
    let address = bound.address;
    let devices = front.as_ref().map(|front| front.address);
    if let Some(front) = &front {
        front.line.offers().found_at(devices::offers::base(address, tls_at_api, front.address));
    }
    let (kept, keeping) = kept(&config, &clock);
    let (stop, stopping) = stop::channel();
    let (restarter, restart) = watch::channel(again);
    let parts = Parts {
        restart: Arc::new(restarter),
        invitation,
        mover: Mover::new(&config.data),
        config,
        updates,
        node: node.clone(),
        way,
        clock: clock.clone(),
        outbox: outbox.clone(),
        metrics: metrics.clone(),
        logs: kept,
    };
    info!(%node, api = %address, hub = facts.hub.as_deref().unwrap_or("none"), "the agent runs");
    if let Some(file) = &parts.invitation {
        info!(file = %file.display(), "this machine joins by the token that it was given; until then records are kept");
    } else if facts.hub.is_none() {
        warn!(
            "no hub: records are only collected until this machine joins one (`fleet-agent join HUB --token T`)"
        );
    }
    let opened = opened.map(|opened| Releases { opened, view, boot: machine.0, arch: machine.1 });
    #[cfg(test)]
    let line = front.as_ref().map(|front| front.line.clone());
    let doors = Doors { bound, auth, front };
    let threads = Threads { outbox: thread, logs: keeping };
    let ended = tokio::spawn(parts.run(doors, opened, facts.clone(), threads, stopping));
    Ok(Handle {
        node,
        address,
        devices,
        outbox,
        clock,
        facts,
        metrics,
        stop,
        restart,
        ended,
        #[cfg(test)]
        line,
    })
}

/// The way to the hub, or none where the node has just left it and is to start again as another's.
async fn resumed(
    way: Option<(HubUrl, Proof)>,
    config: &Config,
    outbox: &outbox::Handle,
) -> (Option<(HubUrl, Proof)>, bool) {
    let Some(live) = way.as_ref().and_then(|(_, proof)| proof.identity().cloned()) else {
        return (way, false);
    };
    let Ok(delivery) = outbox.delivery().await else { return (way, false) };
    let data = config.data.clone();
    let resumed = task::spawn_blocking(move || moving::resume(&data, &live, delivery.unheard)).await;
    match resumed {
        Ok(true) => (None, true),
        Ok(false) | Err(_) => (way, false),
    }
}

/// The ring of logs, and its thread. A node without one works all the same.
fn kept(config: &Config, clock: &Clock) -> (Option<logs::Handle>, Option<thread::JoinHandle<()>>) {
    match logs::spawn(&config.data, clock.clone()) {
        Ok((logs, thread)) => {
            if let Some(own) = &config.logs.own {
                own.attach(&logs);
            }
            (Some(logs), Some(thread))
        }
        Err(error) => {
            warn!(
                "the logs of this node cannot be kept: {error}; check the disk and the rights on the data folder"
            );
            (None, None)
        }
    }
}

/// Who the node is, as it is told to the hub.
#[must_use]
pub fn profile(config: &Config, node: &NodeId) -> Profile {
    Profile {
        node: node.clone(),
        boot: clock::boot_id(),
        instance: Some(clock::random()),
        kind: config.node.kind.clone(),
        name: config.node.name.clone(),
        capabilities: config.node.capabilities.clone(),
        versions: Versions { agent: VERSION.to_owned(), ..Versions::default() },
        machine: system::describe(),
        heartbeat: config.node.heartbeat,
    }
}

/// Whether updates are taken, and their account if they are. It may read the whole executable, and so not on this thread.
async fn updates(
    config: &Config,
    proof: Option<&Proof>,
    now_ms: i64,
) -> (commands::Updates, Option<update::Opened>) {
    if !config.update.enabled {
        return (commands::Updates::Off, None);
    }
    if proof.and_then(Proof::identity).is_none() {
        return (commands::Updates::NotJoined, None);
    }
    let (settings, data) = (config.update.clone(), config.data.clone());
    match task::spawn_blocking(move || update::open(&settings, &data, now_ms)).await {
        Ok(Some(opened)) => (commands::Updates::Taken, Some(opened)),
        Ok(None) | Err(_) => (commands::Updates::Broken, None),
    }
}

/// What the loop of updates begins with.
struct Releases {
    opened: update::Opened,
    view: watch::Sender<Arc<UpdatesView>>,
    boot: [u8; 8],
    arch: String,
}

struct Parts {
    restart: Arc<watch::Sender<bool>>,
    invitation: Option<PathBuf>,
    mover: Mover,
    config: Config,
    updates: commands::Updates,
    node: NodeId,
    way: Option<(HubUrl, Proof)>,
    clock: Clock,
    outbox: outbox::Handle,
    metrics: Arc<Metrics>,
    logs: Option<logs::Handle>,
}

/// Threads that are waited for at the end.
struct Threads {
    outbox: thread::JoinHandle<()>,
    logs: Option<thread::JoinHandle<()>>,
}

/// Where others come in.
struct Doors {
    bound: api::Bound,
    auth: api::Auth,
    front: Option<devices::listen::Bound>,
}

/// Tasks that end together.
struct Tasks(Vec<(String, JoinHandle<()>)>);

impl Tasks {
    fn spawn(&mut self, name: String, task: impl Future<Output = ()> + Send + 'static) {
        let span = info_span!("task", name);
        self.0.push((name, tokio::spawn(task.instrument(span))));
    }

    /// Waits until all have ended; those that take longer than `limit` are cut.
    async fn join(self, limit: Duration) {
        let cut = time::sleep(limit);
        tokio::pin!(cut);
        for (name, mut task) in self.0 {
            tokio::select! {
                ended = &mut task => if let Err(error) = ended {
                    error!(task = name, %error, "a task ended badly");
                },
                () = &mut cut => {
                    warn!(task = name, "a task did not end in time and is cut");
                    task.abort();
                }
            }
        }
    }
}

impl Parts {
    async fn run(
        self,
        doors: Doors,
        releases: Option<Releases>,
        facts: Facts,
        threads: Threads,
        mut stopping: Stop,
    ) {
        let (hang_up, hanging_up) = stop::channel();
        // Before the hub can send any.
        commands::end_orphans(self.own_folder(), &self.outbox).await;
        let kinds = self.kinds();
        let acts = self.outbox.attach(Arc::new(kinds), commands::ACTS).await;
        let runs = self.outbox.attach_config(self.config.desired.probation, desired::RUNS).await;
        let listener = self.outbox.listen().await;
        let mut tasks = Tasks(Vec::new());
        let line = doors.front.as_ref().map(|front| front.line.clone());
        let updater = releases.and_then(|releases| self.updater(releases, line, &mut tasks, &stopping));
        let sources = self.sources(tasks, doors, updater, facts, (acts, runs, listener), &stopping);
        let link = self.link(hanging_up);
        stopping.wanted().await;
        info!("stopping");
        sources.join(SOURCES).await;
        // Nothing more comes; what came last is to be acknowledged before the last goodbye.
        let _ = time::timeout(LAST_ACK, self.last_acks()).await;
        hang_up.stop();
        link.join(LINK).await;
        self.settle().await;
        let (joined, done) = oneshot::channel();
        let last = async {
            self.outbox.stop().await;
            // A thread blocks who joins it, and this one may be in the middle of a write.
            thread::spawn(move || joined.send(threads.outbox.join().is_ok()));
            done.await
        };
        match time::timeout(OUTBOX, last).await {
            Ok(Ok(true)) => info!("stopped"),
            Ok(Ok(false) | Err(_)) => error!("the outbox's thread ended badly"),
            Err(_) => error!("the outbox's thread did not end in time: the disk hangs"),
        }
        if let (Some(logs), Some(thread)) = (self.logs, threads.logs) {
            // Nothing is lost that a disk which hangs would have kept.
            let _ = time::timeout(LOGS, logs.stop()).await;
            let _ = time::timeout(LOGS, task::spawn_blocking(move || thread.join())).await;
        }
    }

    /// Until the hub that the node leaves has everything; at once if it leaves none.
    async fn last_acks(&self) {
        while self.outbox.delivery().await.is_ok_and(|delivery| delivery.leaving && !delivery.delivered) {
            time::sleep(ACK_LOOK).await;
        }
    }

    /// A node that has said its last goodbye is another hub's.
    async fn settle(&self) {
        let Some(live) = self.way.as_ref().and_then(|(_, proof)| proof.identity().cloned()) else { return };
        if let Ok(delivery) = self.outbox.delivery().await {
            let mover = self.mover.clone();
            let _ = task::spawn_blocking(move || mover.settle(&live, delivery.unheard)).await;
        }
    }

    /// The data folder by the name that no other agent has for its own.
    fn own_folder(&self) -> PathBuf {
        fs::canonicalize(&self.config.data).unwrap_or_else(|_| self.config.data.clone())
    }

    fn kinds(&self) -> commands::Kinds {
        let devices = self.config.devices.listen.is_some();
        let joined = self.way.as_ref().is_some_and(|(_, proof)| proof.identity().is_some());
        let moves = match (joined, &self.config.hub.url) {
            (false, _) => commands::Moves::NotJoined,
            (true, Some(_)) => commands::Moves::Bound,
            (true, None) => commands::Moves::Can,
        };
        self.config.commands.kinds(&self.config.data, devices, self.updates, moves)
    }

    /// What does updates.
    fn updater(
        &self,
        Releases { opened, view, boot, arch }: Releases,
        line: Option<Line>,
        tasks: &mut Tasks,
        stop: &Stop,
    ) -> Option<updater::Handle> {
        let live = self.way.as_ref().and_then(|(_, proof)| proof.identity().cloned())?;
        let update::Opened { folder, ledger, own } = opened;
        let slots = slot::Slots::new(&slot::Surroundings {
            config: self.config.update.clone(),
            folder: folder.clone(),
            clock: self.clock.clone(),
            outbox: self.outbox.clone(),
            line,
            restart: self.restart.clone(),
        });
        let (handle, words) = updater::channel();
        let surroundings = updater::Surroundings {
            config: self.config.update.clone(),
            folder,
            ledger,
            slots,
            live,
            clock: self.clock.clone(),
            outbox: self.outbox.clone(),
            metrics: self.metrics.clone(),
            boot,
            arch,
            own,
            view,
        };
        tasks.spawn("updates".to_owned(), updater::run(surroundings, words, stop.clone()));
        Some(handle)
    }

    /// What hands records in.
    fn sources(
        &self,
        mut tasks: Tasks,
        Doors { bound, auth, front }: Doors,
        updater: Option<updater::Handle>,
        facts: Facts,
        (acts, runs, listener): (mpsc::Receiver<Act>, mpsc::Receiver<Run>, outbox::Listener),
        stop: &Stop,
    ) -> Tasks {
        let surroundings = commands::Surroundings {
            kinds: self.kinds(),
            line: front.as_ref().map(|front| front.line.clone()),
            updater,
            folder: self.own_folder(),
            facts: facts.clone(),
            clock: self.clock.clone(),
            outbox: self.outbox.clone(),
            logs: self.logs.clone(),
            mover: self.mover.clone(),
            restart: self.restart.clone(),
        };
        tasks.spawn("commands".to_owned(), commands::run(surroundings, acts, stop.clone()));
        let offers = front.as_ref().map(|front| front.line.offers().clone());
        if let Some(front) = front {
            let surroundings = devices::listen::Surroundings {
                clock: self.clock.clone(),
                outbox: self.outbox.clone(),
                metrics: self.metrics.clone(),
            };
            tasks.spawn("devices".to_owned(), devices::listen::run(front, surroundings, stop.clone()));
        }
        let api = Arc::new(api::Api {
            places: api::Places::new(self.config.api.connections),
            config: self.config.api.clone(),
            facts,
            clock: self.clock.clone(),
            outbox: self.outbox.clone(),
            metrics: self.metrics.clone(),
            stop: stop.clone(),
            offers,
        });
        tasks.spawn("api".to_owned(), api::serve(bound, api, auth, stop.clone()));
        let surroundings = rules::Surroundings {
            node: self.node.clone(),
            folder: self.own_folder(),
            clock: self.clock.clone(),
            outbox: self.outbox.clone(),
            metrics: self.metrics.clone(),
        };
        tasks.spawn(
            "rules".to_owned(),
            rules::run(self.config.rules.clone(), surroundings, listener, stop.clone()),
        );
        let surroundings = desired::Surroundings {
            own: self.config.clone(),
            clock: self.clock.clone(),
            outbox: self.outbox.clone(),
            metrics: self.metrics.clone(),
        };
        tasks.spawn("config".to_owned(), desired::run(surroundings, runs, stop.clone()));
        let leave = self.mover.clone().leave(self.outbox.clone(), self.restart.clone(), stop.clone());
        tasks.spawn("move".to_owned(), leave);
        self.collectors(&mut tasks, stop);
        tasks
    }

    /// What reads files and exporters.
    fn collectors(&self, tasks: &mut Tasks, stop: &Stop) {
        let surroundings = collect::Surroundings {
            clock: self.clock.clone(),
            outbox: self.outbox.clone(),
            metrics: self.metrics.clone(),
        };
        for config in &self.config.file {
            let name = format!("file {}", config.path);
            tasks.spawn(name, file::run(config.clone(), surroundings.clone(), stop.clone()));
        }
        for config in &self.config.scrape {
            let name = format!("scrape {}", config.url);
            tasks.spawn(name, scrape::run(config.clone(), surroundings.clone(), stop.clone()));
        }
        let Some(logs) = &self.logs else { return };
        let logs::Config { units, files, own: _ } = &self.config.logs;
        if !units.is_empty() {
            let follow = logs::follow_journal(units.clone(), &self.config.data, logs.clone(), stop.clone());
            tasks.spawn("journal".to_owned(), follow);
        }
        for path in files {
            let name = format!("log {}", path.display());
            tasks.spawn(name, logs::follow_file(path.clone(), logs.clone(), stop.clone()));
        }
    }

    /// What speaks to the hub.
    fn link(&self, stop: Stop) -> Tasks {
        let mut tasks = Tasks(Vec::new());
        if let Some(file) = self.invitation.clone() {
            let surroundings = first::Surroundings {
                data: self.config.data.clone(),
                file,
                hub: self.config.hub.url.clone(),
                node: self.config.wished_id(),
                name: self.config.node.name.clone(),
                restart: self.restart.clone(),
            };
            tasks.spawn("join".to_owned(), first::run(surroundings, stop.clone()));
        }
        let Some((hub, proof)) = self.way.clone() else { return tasks };
        let (clock, outbox, metrics) = (self.clock.clone(), self.outbox.clone(), self.metrics.clone());
        if let Some(live) = proof.identity().cloned() {
            let upkeep =
                upkeep::run(live, self.config.hub.trust, clock.clone(), outbox.clone(), stop.clone());
            tasks.spawn("identity".to_owned(), upkeep);
        }
        let keep_alive = self.config.hub.keep_alive;
        let account = mqtt::Account { hub, node: self.node.clone(), proof, keep_alive };
        tasks.spawn("mqtt".to_owned(), mqtt::run(account, clock, outbox, metrics, stop));
        tasks
    }
}

/// The data folder is the agent's alone: it holds a secret.
pub(crate) fn make_folder(path: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| StartError::Folder { path: path.to_owned(), source })
}
