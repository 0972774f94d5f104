//! The document that the hub desires, followed: received, tried, on probation, applied or failed; the one before it is
//! kept, and returned to.
//!
//! Owns what is held, what is to run and when it is proven. It is level-triggered: what runs is compared with what should
//! run, whatever message was missed. Reads no document and applies none; nothing is handed out before the intent is to be
//! written, so that the next start returns or completes.

mod reach;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use fleet_schemas::{
    StoreId,
    config::{Desired, Failed, Held, Reported, hash},
    limits,
};
use serde::{Deserialize, Serialize};

use super::Now;

/// Starts of the agent that may try a document: one that ends the agent, or the machine, is given up. Power cuts and
/// updates at a bad moment need some air.
pub const STARTS: u32 = 3;
/// The part of the probation that passes before the hub's word counts: what programs on the node make of a document
/// shows a little later.
const SETTLING: u32 = 20;

/// A document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doc {
    /// Its version, hash, and the retry that it is tried for.
    pub held: Held,
    /// Its CBOR.
    pub bytes: Arc<[u8]>,
}

/// How far the newest document got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// On disk.
    Received,
    /// Handed out to be applied: the start of the agent that dies now has tried it.
    Trying {
        /// How many starts of the agent have.
        starts: u32,
    },
    /// It runs; the hub was not heard since.
    Probation {
        /// How many starts of the agent have tried it.
        starts: u32,
    },
    /// It runs, and the hub was heard.
    Applied,
    /// The one before it runs.
    Failed(Failed),
}

impl Stage {
    /// A word for people.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Trying { .. } => "trying",
            Self::Probation { .. } => "probation",
            Self::Applied => "applied",
            Self::Failed(_) => "failed",
        }
    }

    fn starts(&self) -> u32 {
        match self {
            Self::Trying { starts } | Self::Probation { starts } => *starts,
            Self::Received | Self::Applied | Self::Failed(_) => 0,
        }
    }
}

/// What is on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// The hub's store that the newest document came from.
    pub store: Option<StoreId>,
    /// The newest document.
    pub newest: Option<(Doc, Stage)>,
    /// The last one before it that was applied: what is returned to.
    pub before: Option<Doc>,
}

/// What runs, as whoever applies documents said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Running {
    /// Nobody knows: nothing was applied yet, or what was tried last failed half-way.
    #[default]
    Unknown,
    /// This document, or the node's own configuration alone.
    Is(Option<Doc>),
}

/// Something to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The document that goes over the node's own configuration; `None`: that one alone.
    pub doc: Option<Doc>,
    /// Whether it is tried: then it has to pass the self-check.
    pub trial: bool,
}

/// What has to be done, in this order: written, then handed out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// What is to be on disk.
    pub write: Option<Kept>,
    /// What is to be applied.
    pub run: Option<Run>,
}

/// What the agent says of its configuration to those on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// How far the newest document got: a word of [`Stage::word`], or `none`.
    pub state: &'static str,
    /// What the hub is told.
    pub reported: Reported,
    /// The document that runs.
    pub doc: Option<Arc<[u8]>>,
}

/// Since when a document is on trial.
#[derive(Debug, Clone, Copy)]
struct Trial {
    // The hub's word counts from here on.
    from: Duration,
    until: Duration,
}

/// Follows what the hub desires.
#[derive(Debug, Default)]
pub struct Follower {
    kept: Kept,
    // Absent while nobody applies documents: then none are taken.
    probation: Option<Duration>,
    running: Running,
    // Handed out and not yet answered.
    busy: Option<Option<Doc>>,
    // The one to return to cannot be applied any more.
    before_is_bad: bool,
    trial: Option<Trial>,
}

impl Follower {
    /// Goes on with what was found on disk.
    #[must_use]
    pub fn found(kept: Kept) -> Self {
        Self { kept, ..Self::default() }
    }

    /// From now on documents are taken. `running` and `busy` are what is known of whoever applies them, when the disk was
    /// opened anew under a process that goes on; for a process that begins they are unknown and absent.
    pub fn attach(
        &mut self,
        probation: Duration,
        running: Running,
        busy: Option<Option<Doc>>,
        now: Now,
    ) -> Effects {
        (self.probation, self.running, self.busy) = (Some(probation), running, busy);
        let mut effects = Effects::default();
        if let Some((doc, stage @ (Stage::Trying { .. } | Stage::Probation { .. }))) = &mut self.kept.newest {
            let runs = matches!(&self.running, Running::Is(Some(running)) if doc.is(running));
            let tried = matches!(&self.busy, Some(Some(busy)) if doc.is(busy));
            if runs {
                *stage = Stage::Probation { starts: stage.starts() };
                self.trial = Some(trial(probation, now));
            } else if !tried && stage.starts() >= STARTS {
                let message = format!(
                    "the agent ended {STARTS} times while it tried this document; look into its log, change the document, \
                     or ask for another try"
                );
                self.fail("crashed", message, &mut effects);
            }
        }
        self.advance(now, &mut effects);
        effects
    }

    /// Whether documents are taken.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.probation.is_some()
    }

    /// The hub desires this document. Older ones and known ones change nothing.
    pub fn receive(&mut self, desired: &Desired, now: Now) -> Effects {
        let mut effects = Effects::default();
        let Desired { version, retry, store_id, .. } = *desired;
        let held = Held { version, hash: hash(&desired.doc), retry };
        match &mut self.kept.newest {
            Some((doc, stage)) if doc.holds(held) => {
                let news = retry > doc.held.retry || self.kept.store != Some(store_id);
                if !news {
                    return effects;
                }
                if retry > doc.held.retry && matches!(stage, Stage::Failed(_)) {
                    *stage = Stage::Received;
                }
                doc.held.retry = doc.held.retry.max(retry);
            }
            // From before: a message that was long under way, or the hub's store was set back, and then it counts in a
            // higher epoch. A version that is the same and another document is of a past that nobody remembers.
            Some((doc, _)) if version < doc.held.version && self.kept.store == Some(store_id) => {
                return effects;
            }
            Some(_) | None => self.replace(held, desired, &mut effects),
        }
        self.kept.store = Some(store_id);
        effects.write = Some(self.kept.clone());
        self.advance(now, &mut effects);
        effects
    }

    fn replace(&mut self, held: Held, desired: &Desired, effects: &mut Effects) {
        if let Some((doc, Stage::Applied)) = self.kept.newest.take() {
            self.kept.before = Some(doc);
            self.before_is_bad = false;
        }
        self.trial = None;
        let readable = desired.document();
        let bytes = if readable.is_ok() { desired.doc.as_slice().into() } else { Arc::from([]) };
        self.kept.newest = Some((Doc { held, bytes }, Stage::Received));
        if let Err(error) = readable {
            self.fail("invalid", format!("the document cannot be read: {error}"), effects);
        }
    }

    /// What was handed out is applied, or is not.
    pub fn ran(&mut self, which: Option<Held>, end: Result<(), Failed>, now: Now) -> Effects {
        let mut effects = Effects::default();
        let asked = |busy: &mut Option<Doc>| match (busy, which) {
            (Some(doc), Some(held)) => doc.holds(held),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        // Another answer is one to what another file asked for.
        let Some(done) = self.busy.take_if(asked) else { return effects };
        match (end, done) {
            (Ok(()), done) => {
                if let (Some((doc, stage @ Stage::Trying { .. })), Some(done)) =
                    (&mut self.kept.newest, &done)
                    && doc.is(done)
                {
                    *stage = Stage::Probation { starts: stage.starts() };
                    self.trial = self.probation.map(|probation| trial(probation, now));
                    effects.write = Some(self.kept.clone());
                }
                self.running = Running::Is(done);
            }
            // The node's own configuration is what it began with.
            (Err(_), None) => self.running = Running::Is(None),
            (Err(Failed { code, message }), Some(done)) => {
                self.running = Running::Unknown;
                let newest = (self.kept.newest.as_ref())
                    .is_some_and(|(doc, stage)| doc.is(&done) && !matches!(stage, Stage::Failed(_)));
                if newest {
                    self.fail(&code, message, &mut effects);
                } else if self.kept.before.as_ref().is_some_and(|doc| doc.is(&done)) {
                    self.before_is_bad = true;
                }
            }
        }
        self.advance(now, &mut effects);
        effects
    }

    /// What should run: the newest document unless it failed, then the one before it.
    fn target(&self) -> Option<(&Doc, bool)> {
        match &self.kept.newest {
            Some((doc, Stage::Received | Stage::Trying { .. } | Stage::Probation { .. })) => {
                Some((doc, true))
            }
            Some((doc, Stage::Applied)) => Some((doc, false)),
            Some((_, Stage::Failed(_))) | None => {
                self.kept.before.as_ref().filter(|_| !self.before_is_bad).map(|doc| (doc, false))
            }
        }
    }

    fn fail(&mut self, code: &str, message: String, effects: &mut Effects) {
        let Some((_, stage)) = &mut self.kept.newest else { return };
        *stage = Stage::Failed(failed(code, message));
        effects.write = Some(self.kept.clone());
        self.trial = None;
    }

    /// Does what time asks for, and hands out what should run and does not.
    pub fn advance(&mut self, now: Now, effects: &mut Effects) {
        if let Some(trial) = self.trial
            && trial.until <= now.up
        {
            self.give_up(effects);
        }
        if self.probation.is_none() || self.busy.is_some() {
            return;
        }
        let target = self.target();
        let runs = match (&self.running, target) {
            (Running::Is(Some(running)), Some((doc, _))) => doc.is(running),
            (Running::Is(None), None) => true,
            (Running::Is(_) | Running::Unknown, _) => false,
        };
        if runs {
            return;
        }
        let trial = target.is_some_and(|(_, trial)| trial);
        let doc = target.map(|(doc, _)| doc.clone());
        if let (true, Some((_, stage))) = (trial, &mut self.kept.newest) {
            *stage = Stage::Trying { starts: stage.starts() + 1 };
            effects.write = Some(self.kept.clone());
        }
        self.busy = Some(doc.clone());
        effects.run = Some(Run { doc, trial });
    }

    /// What is known of whoever applies documents.
    #[must_use]
    pub fn standing(&self) -> (Running, Option<Option<Doc>>) {
        (self.running.clone(), self.busy.clone())
    }

    /// What birth and heartbeat say; `None` from an agent that takes no documents.
    #[must_use]
    pub fn reported(&self) -> Option<Reported> {
        self.probation?;
        let failed = match &self.kept.newest {
            Some((_, Stage::Failed(failed))) => Some(failed.clone()),
            Some(_) | None => None,
        };
        let received = self.kept.newest.as_ref().map(|(doc, _)| doc.held);
        Some(Reported { received, applied: self.runs().map(|doc| doc.held), failed })
    }

    /// What those on the node are told.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            state: self.kept.newest.as_ref().map_or("none", |(_, stage)| stage.word()),
            reported: self.reported().unwrap_or_default(),
            doc: self.runs().map(|doc| doc.bytes.clone()),
        }
    }

    /// The document that runs; until somebody knows, the last one that was proven.
    fn runs(&self) -> Option<&Doc> {
        let newest = self.kept.newest.as_ref();
        match &self.running {
            // How often it was asked for is known of the newest.
            Running::Is(Some(doc)) => {
                newest.map(|(newest, _)| newest).filter(|newest| newest.is(doc)).or(Some(doc))
            }
            Running::Is(None) => None,
            Running::Unknown => match newest {
                Some((doc, Stage::Applied)) => Some(doc),
                Some(_) | None => self.kept.before.as_ref().filter(|_| !self.before_is_bad),
            },
        }
    }
}

impl Doc {
    /// Whether it is the same document of the same version; how often it was asked for aside.
    fn holds(&self, held: Held) -> bool {
        (self.held.version, self.held.hash) == (held.version, held.hash)
    }

    fn is(&self, other: &Self) -> bool {
        self.holds(other.held)
    }
}

/// A document that failed, with texts that fit.
#[must_use]
pub fn failed(code: &str, mut message: String) -> Failed {
    message.truncate(message.floor_char_boundary(limits::EVENT_MESSAGE_BYTES));
    Failed { code: code.to_owned(), message }
}

fn trial(probation: Duration, now: Now) -> Trial {
    Trial { from: now.up + probation / SETTLING, until: now.up + probation }
}
