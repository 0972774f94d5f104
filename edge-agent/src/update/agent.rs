//! Updating the agent itself: a file beside the one that runs, and a launcher that starts it on trial.
//!
//! Which release runs is the launcher's affair (`core::launch`); this slot writes into its record what is to come, and
//! asks for another start. Whether the new release is the one that runs, it sees by the digest of its own executable.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use fleet_schemas::{
    MetricName,
    update::{AGENT, Digest},
};
use tokio::{sync::watch, task};
use tracing::{info, warn};

use super::slot::{Plan, Slot, Surroundings};
use crate::{
    core::{
        launch::{self, Record},
        update::{Health, Release, Switched, Trial, Trouble, code},
    },
    launch::{Folder, FolderError, digest_of, fits, is_launched, own},
    run::VERSION,
};

/// Time that the launcher gives a release beyond the one that it gives itself: then it does not even do that.
const SLACK: Duration = Duration::from_secs(120);

/// The agent's own slot.
pub(crate) struct Agent {
    folder: Folder,
    /// Whether the agent is a program of its own, and started by a launcher.
    way: Way,
    /// How long a release has to be confirmed, when the order does not say how long it is on trial.
    probation: Duration,
    reach: Duration,
    restart: Arc<watch::Sender<bool>>,
    own: Arc<OnceLock<Option<Digest>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Launched,
    Alone,
    Embedded,
}

impl Agent {
    pub(crate) fn new(surroundings: &Surroundings) -> Self {
        let config = &surroundings.config;
        let way = match (config.own_executable, is_launched()) {
            (false, _) => Way::Embedded,
            (true, false) => Way::Alone,
            (true, true) => Way::Launched,
        };
        Self {
            folder: Folder::within(&surroundings.folder),
            way,
            probation: config.probation,
            reach: config.reach,
            restart: surroundings.restart.clone(),
            own: Arc::default(),
        }
    }

    /// The digest of the executable that runs; `None` when it cannot be read.
    async fn own(&self) -> Option<Digest> {
        let kept = self.own.clone();
        let read = task::spawn_blocking(move || {
            *kept.get_or_init(|| {
                let read = digest_of(&own());
                read.inspect_err(|error| warn!(%error, "the agent's own executable cannot be read")).ok()
            })
        });
        read.await.ok().flatten()
    }

    async fn is_new(&self, plan: &Plan) -> bool {
        self.own().await == Some(plan.order.digest)
    }

    /// Reads the record, lets it be changed, and writes it when it was.
    async fn with<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Record) -> T + Send + 'static,
    ) -> Result<T, Trouble> {
        let folder = self.folder.clone();
        blocking(move || {
            let before = folder.load()?;
            let mut record = before.clone();
            let answer = change(&mut record);
            if record != before {
                folder.store(&record)?;
            }
            Ok(answer)
        })
        .await
    }

    fn again(&self) -> Switched {
        self.restart.send_replace(true);
        Switched::Away
    }

    /// How long the launcher waits for the release to be confirmed.
    fn limit(&self, plan: &Plan) -> Duration {
        let probation = plan.order.probation_ms.map_or(self.probation, Duration::from_millis);
        probation + self.reach + SLACK
    }
}

impl Slot for Agent {
    fn needs(&self, length: u64) -> u64 {
        // What was fetched, and the executable that is made of it.
        length.saturating_mul(2)
    }

    fn admit(&self, plan: &Plan) -> Result<(), Trouble> {
        let target = &plan.order.target;
        if target.name.as_str() != AGENT || plan.order.device.is_some() {
            let message = format!("releases of kind agent are named {AGENT} and are for no device");
            return Err(Trouble::lasting("wrong_name", message));
        }
        match self.way {
            Way::Launched => Ok(()),
            Way::Alone => Err(Trouble::lasting(
                "no_launcher",
                "this agent was started by `fleet-agent run`, and nobody would bring it back if a release failed: \
                 start it by `fleet-agent launch` with the same --data (its --help has a unit for systemd)",
            )),
            Way::Embedded => {
                let message = "this agent is a part of another program; update that program";
                Err(Trouble::lasting("not_restartable", message))
            }
        }
    }

    async fn runs(&self, _: &Plan) -> Option<Release> {
        let digest = self.own().await?;
        let record = self.with(|record| record.clone()).await.unwrap_or_default();
        let name = |text| MetricName::parse(text).ok();
        let version = record.kept().find(|kept| kept.digest == digest).map(|kept| kept.version.clone());
        Some(Release { version: version.or_else(|| name(VERSION))?, digest, epoch: 0 })
    }

    async fn install(&self, plan: &Plan) -> Result<(), Trouble> {
        let (folder, file, release) = (self.folder.clone(), plan.file.clone(), release(plan));
        let digest = release.digest;
        blocking(move || {
            if !fits(&file).map_err(|source| FolderError::Io { path: file.clone(), what: "read", source })? {
                return Ok(false);
            }
            folder.install(&release, &file).map(|()| true)
        })
        .await
        .and_then(|fits| match fits {
            true => Ok(()),
            false => Err(Trouble::lasting(
                "not_executable",
                "the file is no program for this machine; build it for its architecture and release that",
            )),
        })?;
        // What became of it at an earlier try says nothing about this one.
        self.with(move |record| record.forgive(digest)).await.map(drop)
    }

    async fn switch(&self, plan: &Plan) -> Result<Switched, Trouble> {
        if self.is_new(plan).await {
            return Ok(Switched::Done);
        }
        let (release, limit) = (release(plan), self.limit(plan));
        let undone = self.with(move |record| {
            let is_it = |other: &launch::Release| other.digest == release.digest;
            if let Some(undone) = record.undone.as_ref().filter(|undone| is_it(&undone.release)) {
                return Some(undone.why.clone());
            }
            // Offered again, it would have all its starts again.
            if !record.trial.as_ref().is_some_and(|trial| is_it(&trial.release)) {
                record.offer(release, limit);
            }
            None
        });
        match undone.await? {
            Some(why) => Err(Trouble::lasting(why.code(), why.message())),
            None => {
                info!(version = plan.order.target.version.as_str(), "the agent restarts as another release");
                Ok(self.again())
            }
        }
    }

    async fn probe(&self, plan: &Plan, _: &Trial) -> Health {
        if self.is_new(plan).await {
            return Health::Well;
        }
        let digest = plan.order.digest;
        let undone = self.with(move |record| {
            record.undone.clone().filter(|undone| undone.release.digest == digest).map(|undone| undone.why)
        });
        match undone.await {
            Ok(Some(why)) => Health::Sick(Trouble::lasting(why.code(), why.message())),
            Ok(None) => {
                let message = "another release runs than the one on trial: its file may be damaged";
                Health::Sick(Trouble::lasting("not_running", message))
            }
            Err(trouble) => Health::NotYet(trouble.message),
        }
    }

    async fn commit(&self, plan: &Plan) -> Result<(), Trouble> {
        let digest = plan.order.digest;
        if !self.with(move |record| record.confirm(digest)).await? {
            let message = "the launcher ended its trial at the last moment";
            return Err(Trouble::lasting("unconfirmed", message));
        }
        self.clean().await;
        Ok(())
    }

    async fn undo(&self, plan: &Plan) -> Result<Switched, Trouble> {
        let (digest, is_new) = (plan.order.digest, self.is_new(plan).await);
        self.with(move |record| record.undo(digest, "undone")).await?;
        Ok(if is_new { self.again() } else { Switched::Done })
    }

    async fn discard(&self, plan: &Plan) {
        let digest = plan.order.digest;
        // Nothing of it may be left to be tried by a later start.
        let forgotten = self.with(move |record| {
            record.trial.take_if(|trial| trial.release.digest == digest);
            record.forgive(digest);
        });
        if let Err(trouble) = forgotten.await {
            warn!(error = trouble.message, "what is left of a release could not be removed");
            return;
        }
        self.clean().await;
    }
}

impl Agent {
    async fn clean(&self) {
        let folder = self.folder.clone();
        let _ = blocking(move || folder.load().map(|record| folder.clean(&record))).await;
    }
}

fn release(plan: &Plan) -> launch::Release {
    launch::Release { version: plan.order.target.version.clone(), digest: plan.order.digest }
}

/// Work on the disk, off the runtime's thread: a slow card must not hold up the link.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FolderError> + Send + 'static,
) -> Result<T, Trouble> {
    match task::spawn_blocking(work).await {
        Ok(done) => done.map_err(trouble),
        Err(error) => Err(Trouble::passing(code::DISK, format!("work on the disk ended badly: {error}"))),
    }
}

fn trouble(error: FolderError) -> Trouble {
    let message = error.to_string();
    match error {
        FolderError::Other { .. } => Trouble::lasting(code::DIGEST, message),
        FolderError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            Trouble::passing(code::NO_SPACE, message)
        }
        FolderError::Io { .. } | FolderError::Damaged { .. } | FolderError::InUse { .. } => {
            Trouble::passing(code::DISK, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use fleet_schemas::{
        CommandId,
        batch::Clock,
        update::{Custom, Order, Target},
    };
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::core::{
        Now,
        launch::{End, Exit, Pick, STARTS},
        queue::{Limit, Time},
    };

    const NEW: &[u8] = b"#!/bin/sh\n# new\n";

    struct Node {
        data: tempfile::TempDir,
        restart: Arc<watch::Sender<bool>>,
    }

    impl Node {
        fn new() -> Self {
            let node =
                Self { data: tempfile::tempdir().unwrap(), restart: Arc::new(watch::channel(false).0) };
            fs::write(node.data.path().join("artifact"), NEW).unwrap();
            node
        }

        /// The agent as it is when a release of this content runs.
        fn agent(&self, running: &[u8]) -> Agent {
            let own = OnceLock::new();
            own.set(Some(Digest(Sha256::digest(running).into()))).unwrap();
            self.restart.send_replace(false);
            Agent {
                folder: Folder::new(self.data.path()),
                way: Way::Launched,
                probation: Duration::from_secs(1),
                reach: Duration::from_secs(1),
                restart: self.restart.clone(),
                own: Arc::new(own),
            }
        }

        fn plan(&self) -> Plan {
            let order = Order {
                target: "agent/fleet-agent/9.0.0/any".parse().unwrap(),
                digest: Digest(Sha256::digest(NEW).into()),
                rollout: None,
                device: None,
                back: false,
                probation_ms: None,
                window: None,
                offline_ok: false,
            };
            Plan {
                command: CommandId([1; 16]),
                order,
                length: NEW.len() as u64,
                custom: Custom::default(),
                from: None,
                file: self.data.path().join("artifact"),
            }
        }

        /// What the launcher would start.
        fn start(&self) -> Pick {
            let folder = Folder::new(self.data.path());
            let mut record = folder.load().unwrap();
            let pick = record.begin(|release| folder.is_sound(release));
            folder.store(&record).unwrap();
            pick
        }

        fn crash(&self, pick: &Pick) {
            let folder = Folder::new(self.data.path());
            let mut record = folder.load().unwrap();
            let end = End { exit: Exit::Signal(11), told: false, over: false, lasted: Duration::ZERO };
            record.ended(pick, &end);
            folder.store(&record).unwrap();
        }

        fn is_told_to_restart(&self) -> bool {
            *self.restart.borrow()
        }
    }

    #[test]
    fn without_a_launcher_it_is_refused_and_the_way_out_is_named() {
        let node = Node::new();
        let mut agent = node.agent(b"old");
        agent.admit(&node.plan()).unwrap();
        agent.way = Way::Alone;
        let refused = agent.admit(&node.plan()).unwrap_err();
        assert!(
            refused.code == "no_launcher" && refused.message.contains("fleet-agent launch"),
            "{refused:?}"
        );
        agent.way = Way::Embedded;
        assert_eq!(agent.admit(&node.plan()).unwrap_err().code, "not_restartable");
        let mut other = node.plan();
        other.order.target = Target { name: MetricName::parse("tool").unwrap(), ..other.order.target };
        assert_eq!(agent.admit(&other).unwrap_err().code, "wrong_name");
    }

    #[tokio::test]
    async fn each_step_may_be_done_again_by_the_old_agent_and_the_new_one() {
        let node = Node::new();
        let plan = node.plan();
        let old = node.agent(b"old");
        assert_eq!(old.runs(&plan).await.unwrap().version.as_str(), VERSION);
        for _ in 0..2 {
            old.install(&plan).await.unwrap();
        }
        for _ in 0..2 {
            assert_eq!(old.switch(&plan).await, Ok(Switched::Away));
            assert!(node.is_told_to_restart());
        }
        assert_eq!(node.start().release, Some(release(&plan)));
        // The agent of before, started by hand meanwhile, does not give the trial its starts back.
        old.switch(&plan).await.unwrap();
        assert_eq!(old.folder.load().unwrap().trial.unwrap().starts, 1);
        let new = node.agent(NEW);
        for _ in 0..2 {
            assert_eq!(new.switch(&plan).await, Ok(Switched::Done));
        }
        assert!(!node.is_told_to_restart());
        assert_eq!(new.runs(&plan).await.unwrap().version.as_str(), "9.0.0");
        let limit = Limit::after(Duration::ZERO, &time());
        let trial = Trial { since: limit, until: limit, reach: limit, span_ms: 0, reach_ms: 0 };
        assert_eq!(new.probe(&plan, &trial).await, Health::Well);
        assert!(matches!(node.agent(b"old").probe(&plan, &trial).await, Health::Sick(_)));
        for _ in 0..2 {
            new.commit(&plan).await.unwrap();
        }
        assert_eq!(node.start(), Pick { release: Some(release(&plan)), left: None });
        // Undone although it was confirmed: what ran before comes back.
        assert_eq!(new.undo(&plan).await, Ok(Switched::Away));
        assert_eq!(node.start().release, None);
        let old = node.agent(b"old");
        assert_eq!(old.undo(&plan).await, Ok(Switched::Done));
        old.discard(&plan).await;
        assert!(!old.folder.program(&release(&plan)).exists());
    }

    #[tokio::test]
    async fn a_release_that_crashed_is_reported_and_may_be_tried_once_more() {
        let node = Node::new();
        let plan = node.plan();
        for _ in 0..2 {
            let old = node.agent(b"old");
            old.install(&plan).await.unwrap();
            old.switch(&plan).await.unwrap();
            for _ in 0..STARTS {
                let pick = node.start();
                assert_eq!(pick.release, Some(release(&plan)));
                node.crash(&pick);
            }
            assert_eq!(node.start().release, None);
            let old = node.agent(b"old");
            let why = old.switch(&plan).await.unwrap_err();
            assert!(why.code == "crashed" && !why.passing, "{why:?}");
            assert_eq!(old.undo(&plan).await, Ok(Switched::Done));
            assert!(!node.is_told_to_restart());
            old.discard(&plan).await;
            assert_eq!(old.folder.load().unwrap(), Record::default());
        }
    }

    #[tokio::test]
    async fn what_is_no_program_of_this_machine_is_not_installed() {
        let node = Node::new();
        let old = node.agent(b"old");
        let mut foreign = node.plan();
        let bytes = b"\x7fELF\x00 of no machine at all";
        fs::write(&foreign.file, bytes).unwrap();
        foreign.order.digest = Digest(Sha256::digest(bytes).into());
        assert_eq!(old.install(&foreign).await.unwrap_err().code, "not_executable");
        fs::write(&foreign.file, b"#!/bin/sh\nanother").unwrap();
        assert_eq!(old.install(&foreign).await.unwrap_err().code, code::DIGEST);
        let gone = Plan { file: Path::new("/nonexistent").into(), ..foreign };
        assert!(old.install(&gone).await.unwrap_err().passing);
    }

    fn time() -> Time {
        let now = Now { wall_ms: 0, up: Duration::ZERO, clock: Clock::Synced };
        Time { now, boot: [1; 8], true_ms: None }
    }
}
