//! The outbox as the rest of the agent sees it: a handle to the one thread that owns the [`uplink`](crate::uplink).
//!
//! Owns the channel and its words. What is accepted, sent and forgotten is decided by the uplink; who connects and
//! who submits is none of this room's business.

mod commands;
mod config;
mod devices;
mod file;
mod tap;
mod thread;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fleet_schemas::{SessionId, Topic, session::Versions, telemetry::Sample, topic::Down};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use commands::Found;
pub use file::inspect;
pub(crate) use tap::Listener;
pub use thread::spawn;

use crate::{
    config::seconds,
    core::config::View,
    core::{devices::Policy, upload},
    uplink::{self, Handed, Outgoing, Receipt, Status, Submission},
};

/// Requests that may wait for the thread: a commit takes milliseconds, and callers wait at the channel.
const REQUESTS: usize = 64;

/// Least bytes that an outbox may hold: some hours of a small node.
pub const QUOTA_LEAST: u64 = 1024 * 1024;

/// How the outbox behaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Bytes it may hold; absent: 256 MiB, or a tenth of its filesystem where that is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// How often the agent's own samples are sealed and sent, in seconds.
    #[serde(rename = "upload_s", with = "seconds")]
    pub upload: Duration,
    /// How soon samples are sealed and sent that somebody submitted, in seconds.
    #[serde(rename = "prompt_s", with = "seconds")]
    pub prompt: Duration,
    /// Samples that make a batch at once, at most 10,000.
    pub batch_samples: usize,
    /// How long acked batches are kept for a hub that is restored from a backup, in seconds.
    #[serde(rename = "keep_s", with = "seconds")]
    pub keep: Duration,
    /// Where it lives.
    #[serde(skip)]
    pub storage: Storage,
    /// How devices are kept; `[devices]` says so.
    #[serde(skip, default = "no_devices")]
    pub devices: Policy,
    /// When records go up; `[upload]` says so.
    #[serde(skip)]
    pub policy: upload::Policy,
}

fn no_devices() -> Policy {
    uplink::Config::default().devices
}

/// Where the outbox lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Storage {
    /// In `outbox.redb` of the data folder.
    #[default]
    File,
    /// In memory: for load generators, which have nothing to keep.
    Memory,
}

impl Default for Config {
    fn default() -> Self {
        let uplink::Config { quota_bytes: _, upload, prompt, batch_samples, keep, devices } =
            uplink::Config::default();
        Self {
            quota_bytes: None,
            upload,
            prompt,
            batch_samples,
            keep,
            storage: Storage::default(),
            devices,
            policy: upload::Policy::default(),
        }
    }
}

impl Config {
    pub(crate) fn uplink(&self, folder: &Path) -> uplink::Config {
        let Self { quota_bytes: _, upload, prompt, batch_samples, keep, storage: _, devices, policy: _ } =
            *self;
        uplink::Config { quota_bytes: self.quota(folder), upload, prompt, batch_samples, keep, devices }
    }

    /// Bytes that an outbox in this folder may hold: as configured, else 256 MiB, or a tenth of the filesystem where that
    /// is less, and never less than [`QUOTA_LEAST`].
    #[must_use]
    pub fn quota(&self, folder: &Path) -> u64 {
        let most = uplink::Config::default().quota_bytes;
        let tenth = || match self.storage {
            // One that does not tell its size is taken to be large.
            Storage::File => rustix::fs::statvfs(folder).ok().map(|found| tenth_of(&found)),
            Storage::Memory => None,
        };
        self.quota_bytes.unwrap_or_else(|| tenth().map_or(most, |tenth| tenth.clamp(QUOTA_LEAST, most)))
    }
}

/// A tenth of a filesystem as df(1) reckons it: without what is kept for root.
fn tenth_of(found: &rustix::fs::StatVfs) -> u64 {
    let blocks = found.f_blocks.saturating_sub(found.f_bfree).saturating_add(found.f_bavail);
    blocks.saturating_mul(found.f_frsize) / 10
}

/// The outbox cannot be used at all. The text fits after "failed to start: ".
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be created or opened.
    #[error(
        "{path} cannot be opened: {source}; check that the data folder exists and belongs to the agent's user"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process holds it.
    #[error("{path} is in use: another agent runs on this data folder; stop it, or choose another --data")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is there and cannot be used.
    #[error("the outbox {path} cannot be opened: {source}")]
    Outbox {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: uplink::Error,
    },
    /// The system gives no thread.
    #[error("the outbox's thread cannot be started: {0}; free some memory or raise the process limit")]
    Thread(#[source] io::Error),
}

/// Why records were not accepted. The caller keeps them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The uplink said no.
    #[error(transparent)]
    Refused(#[from] uplink::SubmitError),
    /// The disk failed; the outbox is being opened again.
    #[error("the outbox's disk failed ({0}); it is opened again by itself: try again, and check the disk")]
    Disk(Arc<str>),
    /// The agent is going down.
    #[error("the agent is stopping; try again when it runs")]
    Stopped,
}

impl SubmitError {
    /// A short stable word for counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused(uplink::SubmitError::Full) => "full",
            Self::Refused(uplink::SubmitError::Large) => "large",
            Self::Refused(uplink::SubmitError::Reused { .. }) => "reused",
            Self::Refused(uplink::SubmitError::Device(_)) => "device",
            Self::Disk(_) => "disk",
            Self::Stopped => "stopped",
        }
    }
}

/// The agent is going down, or its disk is out of order: there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the outbox does not answer: its disk failed, or the agent is stopping")]
pub struct Silent;

/// How far the hub has what was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// Whether a session is open whose birth was answered.
    pub(crate) connected: bool,
    /// Records that the hub does not have, sealed or not.
    pub(crate) records: u64,
    /// Whether the hub has every batch.
    pub(crate) delivered: bool,
    /// Whether no hub was ever told of any batch that is held.
    pub(crate) unheard: bool,
    /// Whether the next goodbye is for good.
    pub(crate) leaving: bool,
}

#[derive(Debug)]
enum Request {
    Submit { handed: Handed, reply: oneshot::Sender<Result<Receipt, SubmitError>> },
    Lazily(Vec<Sample>),
    System(BTreeMap<String, f64>),
    Will { session: SessionId, reply: oneshot::Sender<(Topic, Vec<u8>)> },
    Connected { session: SessionId, outgoing: mpsc::Sender<Outgoing> },
    Disconnected,
    Receive { down: Down, payload: Bytes },
    Status { reply: oneshot::Sender<Status> },
    Alive { reply: oneshot::Sender<()> },
    SealNow,
    Leave,
    Delivery { reply: oneshot::Sender<Delivery> },
    Goodbye { reply: oneshot::Sender<Vec<Outgoing>> },
    Commands(commands::Word),
    Config(config::Word),
    Listen(tap::Tap),
    Devices(devices::Word),
    Versions(Box<Versions>),
    Stop,
}

/// Speaks to the outbox. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    config: watch::Receiver<Arc<View>>,
    commands: watch::Receiver<u64>,
}

/// The answer to records that were handed in, yet to come.
#[derive(Debug)]
pub(crate) struct Pending(oneshot::Receiver<Result<Receipt, SubmitError>>);

impl Pending {
    /// Returns once the records are on disk. Safe to cancel; it must not be asked again after it answered.
    ///
    /// # Errors
    /// [`SubmitError`]: none of them is accepted.
    pub(crate) async fn done(&mut self) -> Result<Receipt, SubmitError> {
        (&mut self.0).await.unwrap_or(Err(SubmitError::Stopped))
    }
}

impl Handle {
    /// Hands records in; all of them are on disk when it says `Ok`. Concurrent calls share one write.
    ///
    /// # Errors
    /// [`SubmitError`]: none of them is accepted.
    pub async fn submit(&self, submission: Submission) -> Result<(), SubmitError> {
        self.hand_in(submission.into()).await?.done().await.map(|_| ())
    }

    /// Hands records in and does not wait for the disk: those handed in one after the other are written in this order.
    ///
    /// # Errors
    /// [`SubmitError::Stopped`].
    pub(crate) async fn hand_in(&self, handed: Handed) -> Result<Pending, SubmitError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Submit { handed, reply }).await.map_err(|_| SubmitError::Stopped)?;
        Ok(Pending(answer))
    }

    /// Hands in samples that are worth no write of their own. Lost when the power goes before the next write, or
    /// when the outbox is too busy to listen.
    pub fn submit_lazily(&self, samples: Vec<Sample>) {
        let _ = self.requests.try_send(Request::Lazily(samples));
    }

    /// Sets the figures that the next heartbeats carry. The next call replaces them, so none is waited for.
    pub fn set_system(&self, figures: BTreeMap<String, f64>) {
        let _ = self.requests.try_send(Request::System(figures));
    }

    /// What the next birth says of what runs.
    pub(crate) async fn set_versions(&self, versions: Versions) {
        let _ = self.requests.send(Request::Versions(Box::new(versions))).await;
    }

    /// From now on the listener hears what is accepted, as far as it is interested.
    pub(crate) async fn listen(&self) -> Listener {
        let (tap, listener) = tap::channel();
        let _ = self.requests.send(Request::Listen(tap)).await;
        listener
    }

    /// Where everything stands.
    ///
    /// # Errors
    /// [`Silent`].
    pub async fn status(&self) -> Result<Status, Silent> {
        self.ask(|reply| Request::Status { reply }).await
    }

    /// Returns once the thread has taken this word, also while its disk is out of order.
    ///
    /// # Errors
    /// [`Silent`] when the thread is gone.
    pub(crate) async fn alive(&self) -> Result<(), Silent> {
        self.ask(|reply| Request::Alive { reply }).await
    }

    /// The will of a session: topic and payload.
    ///
    /// # Errors
    /// [`Silent`].
    pub(crate) async fn will(&self, session: SessionId) -> Result<(Topic, Vec<u8>), Silent> {
        self.ask(|reply| Request::Will { session, reply }).await
    }

    /// A connection is up and subscribed; what is to be sent on it comes out of the receiver, never more than
    /// `room` messages ahead.
    pub(crate) async fn connected(&self, session: SessionId, room: usize) -> mpsc::Receiver<Outgoing> {
        let (outgoing, messages) = mpsc::channel(room);
        let _ = self.requests.send(Request::Connected { session, outgoing }).await;
        messages
    }

    /// The connection is gone.
    pub(crate) async fn disconnected(&self) {
        let _ = self.requests.send(Request::Disconnected).await;
    }

    /// The hub said something.
    pub(crate) async fn receive(&self, down: Down, payload: Bytes) {
        let _ = self.requests.send(Request::Receive { down, payload }).await;
    }

    /// Everything accepted so far is sealed and sent at once.
    pub(crate) async fn seal_now(&self) {
        let _ = self.requests.send(Request::SealNow).await;
    }

    /// The next goodbye is for good, if everything is delivered then.
    pub(crate) async fn leave(&self) {
        let _ = self.requests.send(Request::Leave).await;
    }

    /// How far the hub has what was accepted.
    ///
    /// # Errors
    /// [`Silent`].
    pub(crate) async fn delivery(&self) -> Result<Delivery, Silent> {
        self.ask(|reply| Request::Delivery { reply }).await
    }

    /// Writes down what is only in memory, ends the session, and gives the messages that say so.
    pub(crate) async fn goodbye(&self) -> Vec<Outgoing> {
        self.ask(|reply| Request::Goodbye { reply }).await.unwrap_or_default()
    }

    /// Writes down what is only in memory and ends the thread. What comes later is not accepted.
    pub(crate) async fn stop(&self) {
        let _ = self.requests.send(Request::Stop).await;
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Silent> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Silent)?;
        answer.await.map_err(|_| Silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outbox_takes_a_tenth_of_a_small_disk_and_256_mebibytes_of_a_large_one() {
        let folder = tempfile::tempdir().unwrap();
        let tenth = tenth_of(&rustix::fs::statvfs(folder.path()).unwrap());
        let quota = Config::default().quota(folder.path());
        // Others write to the same disk meanwhile, which changes nothing of 256 MiB.
        assert!(quota == 256 * 1024 * 1024 || quota.abs_diff(tenth) < tenth / 100, "{quota} of {tenth}");
        // Of /proc nothing is known, and it is no disk: the least there may be.
        assert_eq!(Config::default().quota(Path::new("/proc")), QUOTA_LEAST);
        let told = Config { quota_bytes: Some(7_000_000), ..Config::default() };
        assert_eq!(told.quota(folder.path()), 7_000_000);
        let memory = Config { storage: Storage::Memory, ..Config::default() };
        assert_eq!(memory.quota(Path::new("/proc")), 256 * 1024 * 1024);
    }
}
