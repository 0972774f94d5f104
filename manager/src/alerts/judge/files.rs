//! Files of rules: taken at the start, watched, written for operators. All of them are taken, or none.

use std::{sync::Arc, time::Duration};

use super::Judge;
use crate::{
    alerts::rules::{self, Files, Listed, Refused, Texts},
    consume::Error,
    core::{Now, audit::Entry},
};

/// How often files of rules are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Why rules that were sent are not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// They are wrong.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// They cannot be kept.
    #[error("the file cannot be written: {0}; check the hub's disk")]
    Disk(String),
}

impl Judge {
    /// Files that are wrong at a start do not end the alerts of the rules that counted before.
    pub(super) fn first_rules(&mut self, now: Now) -> Result<(), Error> {
        self.marks = self.files.marks();
        let read = self.files.read().and_then(|texts| Ok((rules::read_all(&texts)?, texts)));
        let (listed, texts) = match read {
            Ok(read) => read,
            Err(refused) => {
                tracing::error!("rules are refused, and those that counted before stay: {refused}");
                self.rules.refused = Some(refused);
                let texts = self.shared.state().kept_rules()?;
                let texts: Texts =
                    texts.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or_default();
                (rules::read_all(&texts).unwrap_or_default(), texts)
            }
        };
        self.take_rules(listed, texts, now)
    }

    fn take_rules(&mut self, listed: Vec<Listed>, texts: Texts, now: Now) -> Result<(), Error> {
        if self.texts != texts {
            let kept = serde_json::to_vec(&texts).expect("texts are JSON");
            self.shared.state().keep_rules(&kept)?;
        }
        let judged = listed.iter().filter(|listed| listed.enabled).map(|listed| listed.rule.clone());
        self.engine.replace(judged.collect(), now.wall_ms);
        self.rules.text = texts.file.as_str().into();
        self.rules.listed = Arc::new(listed);
        self.texts = texts;
        Ok(())
    }

    /// Takes files that changed: all of them, or none.
    pub(super) fn watch_files(&mut self, now: Now) -> Result<(), Error> {
        if now.mono < self.looked + LOOK {
            return Ok(());
        }
        self.looked = now.mono;
        let marks = self.files.marks();
        if marks == self.marks {
            return Ok(());
        }
        self.marks = marks;
        match self.files.read().and_then(|texts| Ok((rules::read_all(&texts)?, texts))) {
            Ok((listed, texts)) => {
                tracing::info!(rules = listed.len(), "rules are taken");
                self.rules.refused = None;
                self.take_rules(listed, texts, now)?;
                self.look_at_all(now)
            }
            Err(refused) => {
                tracing::error!("rules are refused, and those before them stay: {refused}");
                self.rules.refused = Some(refused);
                Ok(())
            }
        }
    }

    /// Takes rules that an operator sent: writes their file first. `change` is made to the texts that count.
    ///
    /// # Errors
    /// The inner one: nothing was changed. The outer one: of a store.
    pub fn put_rules(
        &mut self,
        change: impl FnOnce(&mut Texts),
        write: impl FnOnce(&Files) -> std::io::Result<()>,
        audit: Entry,
        now: Now,
    ) -> Result<Result<(), PutError>, Error> {
        let mut texts = match self.rules.refused {
            // What counts is not what lies there.
            Some(_) => self.files.read().unwrap_or_else(|_| self.texts.clone()),
            None => self.texts.clone(),
        };
        change(&mut texts);
        let listed = match rules::read_all(&texts) {
            Ok(listed) => listed,
            Err(refused) => return Ok(Err(PutError::Refused(refused))),
        };
        if let Err(error) = write(&self.files) {
            return Ok(Err(PutError::Disk(error.to_string())));
        }
        self.marks = self.files.marks();
        self.rules.refused = None;
        self.take_rules(listed, texts, now)?;
        self.look_at_all(now)?;
        self.commit(vec![audit], Vec::new(), now)?;
        Ok(Ok(()))
    }
}
