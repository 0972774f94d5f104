//! Alerts: the engine's thread, and the handle on it.
//!
//! A derived consumer of telemetry (DESIGN section 4): it follows what is committed by a place of its own, which is
//! committed with what follows from it, and speaks afterwards. The hub's consumer never waits for it.

mod judge;
pub mod rules;
mod speak;
#[cfg(test)]
mod tests;
mod thread;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::{mpsc, oneshot};

pub use judge::{Judge, NOTICES, PutError, Rules, Told};
pub use speak::{retained, shown};
pub use thread::{Asked, Running, start};

use crate::{
    api::shapes,
    core::alert::{Alert, AlertError, Silence, route::Wants},
    notify::Board,
};

/// Questions that may wait for the engine.
const ASKS: usize = 256;

/// How the engine is set up.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The data folder.
    pub data: PathBuf,
    /// Where `rules.yaml` is, if not there.
    pub rules: Option<PathBuf>,
    /// Receivers, and what they want to be told of.
    pub routes: Vec<(String, Wants)>,
}

/// An alert that changed; none: it was pending, and is over before anybody was told.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertChange {
    /// Its number.
    pub number: u64,
    /// As it stands.
    pub alert: Option<Alert>,
}

/// Why something about alerts was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It does not fit what is there.
    #[error(transparent)]
    Alert(#[from] AlertError),
    /// Rules are not taken.
    #[error(transparent)]
    Put(#[from] PutError),
    /// There is no such receiver.
    #[error("there is no receiver {0:?}; `fleet alert receivers` lists them")]
    NoReceiver(String),
    /// There is no such kit.
    #[error("no kit {0:?} was imported; `fleet rule ls` shows where rules come from")]
    NoKit(String),
    /// The engine cannot do it now.
    #[error("alerts cannot be changed now: {0}")]
    Unavailable(String),
}

/// Figures of the engine for `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Open alerts by state and severity.
    pub open: BTreeMap<(&'static str, &'static str), u64>,
    /// Rules that are judged.
    pub rules: usize,
    /// Whether files of rules that changed are not taken.
    pub refused: bool,
    /// Judgements since the start.
    pub judgements: u64,
    /// How long the oldest batch of the last round had waited, in seconds.
    pub lag_s: f64,
    /// Words to receivers that were dropped because too many waited.
    pub dropped: u64,
}

enum Ask {
    Acknowledge { number: u64, by: String, comment: Option<String>, answer: Answer<()> },
    Silence { silence: Box<Silence>, answer: Answer<Silence> },
    Unsilence { number: u64, by: String, answer: Answer<()> },
    PutRules { text: String, by: String, answer: Answer<()> },
    PutKit { name: String, text: Option<String>, by: String, answer: Answer<()> },
    Test { receiver: String, by: String, answer: Answer<()> },
    Done(Vec<u64>),
}

type Answer<T> = oneshot::Sender<Result<T, Error>>;

/// A handle on the engine. Cheap to clone.
#[derive(Clone)]
pub struct Alerts {
    asks: mpsc::Sender<Ask>,
    shown: Arc<RwLock<(Rules, Figures)>>,
    board: Board,
}

impl Alerts {
    /// A handle, and what the engine hears by it.
    #[must_use]
    pub fn new(board: Board) -> (Self, Asked) {
        let (asks, asked) = mpsc::channel(ASKS);
        (Self { asks, shown: Arc::default(), board }, Asked(asked))
    }

    /// Who is told of alerts, and how that goes.
    #[must_use]
    pub fn receivers(&self) -> Vec<shapes::Receiver> {
        self.board.shown()
    }

    async fn ask<T>(&self, ask: impl FnOnce(Answer<T>) -> Ask) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let busy = |_| Error::Unavailable("too many changes are waiting; try again".to_owned());
        self.asks.try_send(ask(answer)).map_err(busy)?;
        answered.await.map_err(|_| Error::Unavailable("the hub is stopping, or its disk fails".to_owned()))?
    }

    /// Somebody takes care of an alert.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn acknowledge(&self, number: u64, by: String, comment: Option<String>) -> Result<(), Error> {
        self.ask(|answer| Ask::Acknowledge { number, by, comment, answer }).await
    }

    /// Nobody is told of what it fits, until it ends.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn silence(&self, silence: Silence) -> Result<Silence, Error> {
        self.ask(|answer| Ask::Silence { silence: Box::new(silence), answer }).await
    }

    /// Ends a silence.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn unsilence(&self, number: u64, by: String) -> Result<(), Error> {
        self.ask(|answer| Ask::Unsilence { number, by, answer }).await
    }

    /// Puts another text into `rules.yaml`.
    ///
    /// # Errors
    /// [`Error`]: the old rules stay.
    pub async fn put_rules(&self, text: String, by: String) -> Result<(), Error> {
        self.ask(|answer| Ask::PutRules { text, by, answer }).await
    }

    /// Imports a kit's `alerts.yaml` under a name, or removes it.
    ///
    /// # Errors
    /// [`Error`]: the old rules stay.
    pub async fn put_kit(&self, name: String, text: Option<String>, by: String) -> Result<(), Error> {
        self.ask(|answer| Ask::PutKit { name, text, by, answer }).await
    }

    /// Says something to a receiver, to try it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn test(&self, receiver: String, by: String) -> Result<(), Error> {
        self.ask(|answer| Ask::Test { receiver, by, answer }).await
    }

    /// Words that a receiver took, or that were given up.
    pub(crate) async fn done(&self, numbers: Vec<u64>) {
        // The hub stops: they are said again at the next start, under the same id.
        let _ = self.asks.send(Ask::Done(numbers)).await;
    }

    /// The rules that count.
    #[must_use]
    pub fn rules(&self) -> Rules {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Figures.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}
