//! The configuration at the outbox's thread: who applies documents, and those who want to know where it stands.

use std::{sync::Arc, time::Duration};

use fleet_schemas::config::{Failed, Held};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::{Config, Handle, Request, Silent, thread::Keeper};
use crate::core::{
    Now,
    config::{Doc, Run, Running, View},
};

#[derive(Debug)]
pub(super) enum Word {
    Attach { probation: Duration, runs: mpsc::Sender<Run> },
    Ran { which: Option<Held>, end: Result<(), Failed>, reply: oneshot::Sender<()> },
    Set { config: Box<Config>, heartbeat: Duration },
}

/// Who applies documents, and what is known of it beside the uplink, which may be opened anew.
pub(super) struct Clerk {
    runner: Option<(mpsc::Sender<Run>, Duration)>,
    standing: (Running, Option<Option<Doc>>),
    view: watch::Sender<Arc<View>>,
}

impl Clerk {
    pub(super) fn new(view: watch::Sender<Arc<View>>) -> Self {
        Self { runner: None, standing: <_>::default(), view }
    }
}

impl Keeper {
    pub(super) fn take_config_word(&mut self, word: Word, now: Now) {
        match word {
            Word::Attach { probation, runs } => {
                self.clerk.runner = Some((runs, probation));
                self.equip_config(now);
            }
            Word::Ran { which, end, reply } => {
                // Without an answer it is said again.
                if self.with(|uplink| uplink.config_ran(which, end, now)).is_some() {
                    let _ = reply.send(());
                }
            }
            Word::Set { config, heartbeat } => {
                if let Some(uplink) = &mut self.uplink {
                    uplink.set_config(config.uplink(&self.folder), heartbeat, now);
                    uplink.set_upload(config.policy.clone(), now);
                }
                self.config = *config;
                self.profile.heartbeat = heartbeat;
            }
        }
    }

    /// Tells an uplink that was opened (again) that documents are taken, and what runs.
    pub(super) fn equip_config(&mut self, now: Now) {
        let Some((_, probation)) = self.clerk.runner else { return };
        let (running, busy) = self.clerk.standing.clone();
        self.with(|uplink| uplink.take_config(probation, running, busy, now));
    }

    /// Hands out what is on disk and may be applied, and tells where the configuration stands.
    pub(super) fn pass_on_config(&mut self) {
        let (Some(uplink), Some((runs, _))) = (&mut self.uplink, &self.clerk.runner) else { return };
        if let Some(run) = uplink.config_run()
            && let Err(failure) = runs.try_send(run)
        {
            // The next start finds it on disk.
            error!(error = %failure, "nobody applies the configuration");
        }
        self.clerk.standing = uplink.config_standing();
        let view = uplink.config_view();
        self.clerk.view.send_if_modified(|known| {
            let news = **known != view;
            if news {
                tell(known, &view);
                *known = Arc::new(view);
            }
            news
        });
    }
}

fn tell(before: &View, view: &View) {
    let Some(version) = view.reported.received.map(|held| held.version) else { return };
    match &view.reported.failed {
        Some(Failed { code, message }) if before.reported.failed.is_none() => {
            warn!(version.epoch, version.n, code, "the configuration failed: {message}");
        }
        Some(_) | None => info!(version.epoch, version.n, state = view.state, "configuration"),
    }
}

impl Handle {
    /// From now on documents are taken: what is to be applied comes out of the receiver.
    pub(crate) async fn attach_config(&self, probation: Duration, room: usize) -> mpsc::Receiver<Run> {
        let (runs, receiver) = mpsc::channel(room);
        let _ = self.requests.send(Request::Config(Word::Attach { probation, runs })).await;
        receiver
    }

    /// What was handed out is applied, or is not; that is on disk when it says `Ok`.
    ///
    /// # Errors
    /// [`Silent`]: say it again.
    pub(crate) async fn config_ran(
        &self,
        which: Option<Held>,
        end: Result<(), Failed>,
    ) -> Result<(), Silent> {
        self.ask(|reply| Request::Config(Word::Ran { which, end, reply })).await
    }

    /// From now on the outbox behaves like this.
    pub(crate) async fn set_config(&self, config: Config, heartbeat: Duration) {
        let config = Box::new(config);
        let _ = self.requests.send(Request::Config(Word::Set { config, heartbeat })).await;
    }

    /// Where the configuration stands; the receiver is told whenever that changes.
    #[must_use]
    pub fn config(&self) -> watch::Receiver<Arc<View>> {
        self.config.clone()
    }
}
