//! The seam between the machine of updates and what is updated.
//!
//! `core::update` decides which step comes next and writes that down; a [`Slot`] does it. There is one for each kind:
//! `skill`, `agent`, `firmware`, `device`. A slot decides nothing about states, tells the hub nothing, and downloads
//! nothing: it finds the artifact whole and verified at [`Plan::file`].
//!
//! What every step promises:
//! - **It may be done again.** The process can be killed, or the power can go, at any moment: before, during and just
//!   after a step. The next start calls the same step with the same plan. A step that finds its work done says so.
//! - **It is durable before it says `Ok`.** Files, folders and links are synced.
//! - **Until [`Slot::switch`], what runs is not touched.** From `switch` until [`Slot::commit`], what ran before is kept
//!   whole, so that [`Slot::undo`] brings it back without the network.
//! - **It comes to an end.** Every step has a limit of its own for how long it takes.
//!
//! Steps of one update are called one after the other, and updates one after the other, never two at once.

use std::{path::PathBuf, sync::Arc};

use fleet_schemas::{
    CommandId,
    update::{Custom, Kind, Order},
};
use tokio::sync::watch;

use super::{Config, agent::Agent, device::Device, firmware::Firmware, skill::Skill};
use crate::{
    clock::Clock,
    core::update::{Health, Release, Switched, Trial, Trouble},
    devices::Line,
    outbox,
};

/// What a slot is told of an update. The same at every call, apart from `from` before anything was verified.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The command that ordered it.
    pub(crate) command: CommandId,
    /// What was ordered: target, digest, device, …
    pub(crate) order: Order,
    /// Bytes of the artifact.
    pub(crate) length: u64,
    /// What was signed beside the digest.
    pub(crate) custom: Custom,
    /// What ran when it was ordered, as [`Slot::runs`] said then.
    pub(crate) from: Option<Release>,
    /// The artifact: whole, synced and of the ordered digest from `install` on, until the update is over.
    pub(crate) file: PathBuf,
}

/// One kind of thing that is updated.
pub(crate) trait Slot {
    /// Bytes of disk that an artifact of this length needs at most, itself included, while it is put into place.
    fn needs(&self, length: u64) -> u64;

    /// Whether this node could do it at all: hooks are there, the device is known and of the right kind. Asked before
    /// anything is downloaded.
    ///
    /// # Errors
    /// Why not; the update ends `rejected` with it.
    fn admit(&self, plan: &Plan) -> Result<(), Trouble>;

    /// What runs now; `None`: nothing of this name, or nobody knows. Its epoch is filled in by the caller.
    fn runs(&self, plan: &Plan) -> impl Future<Output = Option<Release>> + Send;

    /// Puts the artifact beside what runs.
    ///
    /// # Errors
    /// Nothing changed that [`Slot::discard`] does not remove; the update ends `failed` with it.
    fn install(&self, plan: &Plan) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Lets the new one run. [`Switched::Away`] when this process, or the machine, has to end for it: it was told to,
    /// and the next start calls this again, which then says `Done` once the new one runs.
    ///
    /// # Errors
    /// The new one does not come to run, or did and fell back by itself. [`Slot::undo`] follows.
    fn switch(&self, plan: &Plan) -> impl Future<Output = Result<Switched, Trouble>> + Send;

    /// How the new one is, on trial. Called about once a second, so it may well remember when it last looked.
    /// Whether the hub is reached is none of its business.
    fn probe(&self, plan: &Plan, trial: &Trial) -> impl Future<Output = Health> + Send;

    /// It passed: makes it final. What is needed only to go back to releases older than the one before may go.
    ///
    /// # Errors
    /// After some tries [`Slot::undo`] follows.
    fn commit(&self, plan: &Plan) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Lets run what ran before, from wherever `switch` came to; nothing, when nothing ran. Says `Away` as `switch`
    /// does.
    ///
    /// # Errors
    /// It is tried again, with growing pauses, unless there is no way back
    /// ([`UNDO`](crate::core::update::code::UNDO)), or nobody can tell
    /// ([`UNSURE`](crate::core::update::code::UNSURE)).
    fn undo(&self, plan: &Plan) -> impl Future<Output = Result<Switched, Trouble>> + Send;

    /// The update is over and was not confirmed: removes what `install` put there. The file of the artifact is the
    /// caller's. Best effort: what is left is found by the next.
    fn discard(&self, plan: &Plan) -> impl Future<Output = ()> + Send;
}

/// What slots meet.
#[derive(Clone)]
pub(crate) struct Surroundings {
    /// `[update]`.
    pub(crate) config: Config,
    /// `DATA/releases`, the agent's alone; slots keep what they have in folders named by their kind.
    pub(crate) folder: PathBuf,
    pub(crate) clock: Clock,
    pub(crate) outbox: outbox::Handle,
    /// Over which devices are told, if any are served.
    pub(crate) line: Option<Line>,
    /// Told when the agent has to start again.
    pub(crate) restart: Arc<watch::Sender<bool>>,
}

/// The slots of this node.
pub(crate) struct Slots {
    skill: Skill,
    agent: Agent,
    firmware: Firmware,
    device: Device,
}

/// One of them.
#[derive(Clone, Copy)]
pub(crate) enum Any<'a> {
    Skill(&'a Skill),
    Agent(&'a Agent),
    Firmware(&'a Firmware),
    Device(&'a Device),
}

impl Slots {
    pub(crate) fn new(surroundings: &Surroundings) -> Self {
        Self {
            skill: Skill::new(surroundings.clone()),
            agent: Agent::new(surroundings),
            firmware: Firmware::new(surroundings),
            device: Device::new(surroundings),
        }
    }

    pub(crate) fn of(&self, kind: Kind) -> Any<'_> {
        match kind {
            Kind::Skill => Any::Skill(&self.skill),
            Kind::Agent => Any::Agent(&self.agent),
            Kind::Firmware => Any::Firmware(&self.firmware),
            Kind::DeviceFirmware => Any::Device(&self.device),
        }
    }
}

impl Slot for Any<'_> {
    fn needs(&self, length: u64) -> u64 {
        match self {
            Self::Skill(slot) => slot.needs(length),
            Self::Agent(slot) => slot.needs(length),
            Self::Firmware(slot) => slot.needs(length),
            Self::Device(slot) => slot.needs(length),
        }
    }

    fn admit(&self, plan: &Plan) -> Result<(), Trouble> {
        match self {
            Self::Skill(slot) => slot.admit(plan),
            Self::Agent(slot) => slot.admit(plan),
            Self::Firmware(slot) => slot.admit(plan),
            Self::Device(slot) => slot.admit(plan),
        }
    }

    async fn runs(&self, plan: &Plan) -> Option<Release> {
        match self {
            Self::Skill(slot) => slot.runs(plan).await,
            Self::Agent(slot) => slot.runs(plan).await,
            Self::Firmware(slot) => slot.runs(plan).await,
            Self::Device(slot) => slot.runs(plan).await,
        }
    }

    async fn install(&self, plan: &Plan) -> Result<(), Trouble> {
        match self {
            Self::Skill(slot) => slot.install(plan).await,
            Self::Agent(slot) => slot.install(plan).await,
            Self::Firmware(slot) => slot.install(plan).await,
            Self::Device(slot) => slot.install(plan).await,
        }
    }

    async fn switch(&self, plan: &Plan) -> Result<Switched, Trouble> {
        match self {
            Self::Skill(slot) => slot.switch(plan).await,
            Self::Agent(slot) => slot.switch(plan).await,
            Self::Firmware(slot) => slot.switch(plan).await,
            Self::Device(slot) => slot.switch(plan).await,
        }
    }

    async fn probe(&self, plan: &Plan, trial: &Trial) -> Health {
        match self {
            Self::Skill(slot) => slot.probe(plan, trial).await,
            Self::Agent(slot) => slot.probe(plan, trial).await,
            Self::Firmware(slot) => slot.probe(plan, trial).await,
            Self::Device(slot) => slot.probe(plan, trial).await,
        }
    }

    async fn commit(&self, plan: &Plan) -> Result<(), Trouble> {
        match self {
            Self::Skill(slot) => slot.commit(plan).await,
            Self::Agent(slot) => slot.commit(plan).await,
            Self::Firmware(slot) => slot.commit(plan).await,
            Self::Device(slot) => slot.commit(plan).await,
        }
    }

    async fn undo(&self, plan: &Plan) -> Result<Switched, Trouble> {
        match self {
            Self::Skill(slot) => slot.undo(plan).await,
            Self::Agent(slot) => slot.undo(plan).await,
            Self::Firmware(slot) => slot.undo(plan).await,
            Self::Device(slot) => slot.undo(plan).await,
        }
    }

    async fn discard(&self, plan: &Plan) {
        match self {
            Self::Skill(slot) => slot.discard(plan).await,
            Self::Agent(slot) => slot.discard(plan).await,
            Self::Firmware(slot) => slot.discard(plan).await,
            Self::Device(slot) => slot.discard(plan).await,
        }
    }
}
