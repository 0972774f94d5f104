//! Receivers of alerts: each has a task that says its words in order, again and again until they are taken.
//!
//! Words lie in the store until then, so that none is lost by a restart; each has an id that stays the same however
//! often it is said. Owns configuration, retries and what is shown of receivers. Decides nothing about alerts.

mod form;
mod post;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fleet_schemas::{event::Severity, limits, rule::RuleId};
use reqwest::Url;
use serde::{Deserialize, Serialize};

pub use work::start;

use crate::{api::shapes, core::alert::route::Wants};

/// Most receivers: each is a task, and a label of metrics.
pub const RECEIVERS: usize = 32;
/// A word that no receiver took for so long is given up: it says nothing of now.
pub const GIVE_UP: Duration = Duration::from_secs(24 * 3600);

/// Who is told of alerts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receiver {
    /// Its name: 1 to 63 of `A-Z a-z 0-9 . _ -`.
    pub name: String,
    /// What it understands.
    pub kind: Kind,
    /// Where it is: of an Alertmanager its root, of a webhook all of it.
    pub url: String,
    /// Told of alerts that are at least this bad; absent: of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// A file with a bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The CAs that vouch for an https receiver, PEM; absent: those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Time it has to answer, in seconds.
    #[serde(default = "ten")]
    pub timeout_s: u32,
    /// Told of alerts with all of these labels: a rule's own, or `rule`, `node`, `device`, `site`, `severity`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

fn ten() -> u32 {
    10
}

/// What a receiver understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The Alertmanager of Prometheus, API v2.
    Alertmanager,
    /// CloudEvents 1.0 as JSON, structured mode, one a request.
    Webhook,
}

impl Kind {
    /// The word in configuration, REST and CLI.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alertmanager => "alertmanager",
            Self::Webhook => "webhook",
        }
    }
}

impl Receiver {
    /// What it wants to be told of.
    #[must_use]
    pub fn wants(&self) -> Wants {
        Wants { least: self.severity, labels: self.labels.clone() }
    }

    fn check(&self) -> Result<(), String> {
        RuleId::parse(&self.name).map_err(|why| format!("the name of {:?}: {why}", self.name))?;
        let url = Url::parse(&self.url).map_err(|error| format!("{}: the url: {error}", self.name))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(format!("{}: the url is http://… or https://…", self.name));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!("{}: secrets are not for the url; use token_file", self.name));
        }
        if self.timeout_s == 0 || self.timeout_s > 300 {
            return Err(format!("{}: timeout_s is 1 to 300", self.name));
        }
        let fits = |(key, value): (&String, &String)| {
            key.len() <= limits::LABEL_BYTES && value.len() <= limits::LABEL_BYTES
        };
        match self.labels.len() <= limits::LABELS_PER_NODE && self.labels.iter().all(fits) {
            true => Ok(()),
            false => Err(format!("{}: at most 32 labels of 63 bytes", self.name)),
        }
    }
}

/// Checks all receivers together.
///
/// # Errors
/// A sentence that names the receiver.
pub fn check(receivers: &[Receiver]) -> Result<(), String> {
    if receivers.len() > RECEIVERS {
        return Err(format!("at most {RECEIVERS} are told"));
    }
    let names: BTreeSet<_> = receivers.iter().map(|receiver| &receiver.name).collect();
    if names.len() != receivers.len() {
        return Err("two receivers have one name".to_owned());
    }
    receivers.iter().try_for_each(Receiver::check)
}

/// What is shown of receivers.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Vec<(Receiver, Mutex<Standing>)>>);

#[derive(Debug, Default)]
struct Standing {
    pending: usize,
    sent: u64,
    failure: Option<String>,
}

impl Board {
    /// Of these receivers.
    #[must_use]
    pub fn new(receivers: Vec<Receiver>) -> Self {
        Self(Arc::new(receivers.into_iter().map(|receiver| (receiver, Mutex::default())).collect()))
    }

    /// Receivers, and what they want to be told of.
    #[must_use]
    pub fn routes(&self) -> Vec<(String, Wants)> {
        self.0.iter().map(|(receiver, _)| (receiver.name.clone(), receiver.wants())).collect()
    }

    /// Receivers as `GET receivers` shows them.
    #[must_use]
    pub fn shown(&self) -> Vec<shapes::Receiver> {
        let shown = |(receiver, standing): &(Receiver, Mutex<Standing>)| {
            let standing = standing.lock().unwrap_or_else(PoisonError::into_inner);
            shapes::Receiver {
                name: receiver.name.clone(),
                kind: receiver.kind.as_str().to_owned(),
                url: receiver.url.clone(),
                severity: receiver.severity.map(|severity| severity.as_str().to_owned()),
                labels: receiver.labels.clone(),
                pending_count: standing.pending,
                sent_count: standing.sent,
                failure: standing.failure.clone(),
            }
        };
        self.0.iter().map(shown).collect()
    }

    fn set(&self, at: usize, pending: usize, sent: usize, failure: Option<&str>) {
        if let Some((_, standing)) = self.0.get(at) {
            let mut standing = standing.lock().unwrap_or_else(PoisonError::into_inner);
            let sent = standing.sent + sent as u64;
            *standing = Standing { pending, sent, failure: failure.map(str::to_owned) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver(change: impl FnOnce(&mut Receiver)) -> Receiver {
        let mut receiver: Receiver =
            toml::from_str("name = \"ops\"\nkind = \"webhook\"\nurl = \"http://127.0.0.1:1/hook\"").unwrap();
        change(&mut receiver);
        receiver
    }

    #[test]
    fn receivers_are_checked_with_their_names() {
        assert_eq!(check(&[receiver(|_| {})]), Ok(()));
        assert!(check(&[receiver(|_| {}), receiver(|_| {})]).unwrap_err().contains("one name"));
        let wrong: [fn(&mut Receiver); 5] = [
            |receiver| receiver.url = "ftp://x".to_owned(),
            |receiver| receiver.url = "http://user:secret@x/".to_owned(),
            |receiver| receiver.url = "nonsense".to_owned(),
            |receiver| receiver.timeout_s = 0,
            |receiver| receiver.name = "a/b".to_owned(),
        ];
        for change in wrong {
            let refused = check(&[receiver(change)]);
            assert!(refused.is_err(), "{refused:?}");
        }
    }
}
