//! The rules of a third-party session: it hears what its grants allow, at QoS 0, and says nothing yet.
//!
//! QoS 0 because that is the truth: a clean session on a stream that may be missed. What a tool loses it loses by
//! being cut off, never silently. A SUBACK waits until the router really listens for the filters it is about.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::{
    branch::Branches,
    gate::{
        encode::{self, code},
        session::Effects,
        wire::{Publish, Version},
    },
    identity::{Grants, Identity},
    policy::{self, Action, Denial},
    stats::Reason,
};

/// Who a third-party session is: a client id counts among the sessions of one user only, so that nobody ends
/// another's session by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ToolKey {
    pub(crate) user: String,
    pub(crate) client_id: String,
}

/// A third-party session's own state.
#[derive(Debug)]
pub(crate) struct Tool {
    pub(crate) key: ToolKey,
    identity: Identity,
    most_filters: usize,
    filters: Vec<String>,
    linked: Branches,
    /// SUBACKs that wait for the router, as bytes.
    held: Vec<u8>,
    /// When they have waited too long.
    link_by: Option<Instant>,
}

/// What becomes of a publish that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The session ends with this reason and code.
    End(Reason, u8),
    /// A PUBACK with this code.
    Refuse(u8),
}

/// How long the router has to listen for a tool's first filters.
const LINK: Duration = Duration::from_secs(5);
/// Most bytes of SUBACKs that wait: a tool that keeps subscribing meanwhile is up to something.
const HELD: usize = 4 * 1024;

impl Tool {
    pub(crate) fn new(key: ToolKey, grants: Grants, most_filters: usize) -> Self {
        Self {
            identity: Identity::Tool { name: key.user.clone(), grants },
            key,
            most_filters,
            filters: Vec::new(),
            linked: Branches::default(),
            held: Vec::new(),
            link_by: None,
        }
    }

    /// When [`Self::late`] may become true.
    pub(super) fn link_by(&self) -> Option<Instant> {
        self.link_by
    }

    /// How a publish is refused: all are, what was granted too, until the hub takes what tools say.
    pub(super) fn refuse(&self, version: Version, publish: &Publish<'_>) -> Answer {
        let action = Action::Publish { topic: publish.topic, qos: publish.qos, retain: publish.retain };
        let code = match policy::judge(&self.identity, action) {
            Err(Denial::Qos) => return Answer::End(Reason::Qos, code::QOS),
            Err(Denial::Retain) => return Answer::End(Reason::Retain, code::RETAIN),
            Err(Denial::Form) => code::TOPIC_NAME,
            Err(Denial::NotYours | Denial::Shared) | Ok(()) => code::NOT_AUTHORIZED,
        };
        match (version, publish.qos) {
            (Version::V5, 1..) => Answer::Refuse(code),
            (Version::V5 | Version::V4, _) => Answer::End(Reason::PublishDenied, code),
        }
    }

    /// Judges the filters one by one; `false` when the session asks too much and has to end.
    pub(super) fn subscribe(
        &mut self,
        version: Version,
        id: u16,
        filters: &[(&str, u8)],
        now: Instant,
        out: &mut Effects,
    ) -> bool {
        let before = self.filters.len();
        let codes: Vec<u8> = filters
            .iter()
            .map(|(filter, _)| match self.take(filter) {
                Ok(()) => 0,
                Err((reason, code)) => {
                    out.notes.push(reason);
                    if version == Version::V4 { 0x80 } else { code }
                }
            })
            .collect();
        if self.filters.len() > before {
            out.listen = Some(self.filters.clone());
        }
        encode::suback(&mut self.held, version, 0x90, id, &codes);
        self.link_by.get_or_insert(now + LINK);
        self.speak(out);
        self.held.len() <= HELD
    }

    fn take(&mut self, filter: &str) -> Result<(), (Reason, u8)> {
        match policy::judge(&self.identity, Action::Subscribe { filter }) {
            Ok(()) => {}
            Err(Denial::Shared) => return Err((Reason::SubscribeDenied, code::SHARED)),
            Err(Denial::Form) => return Err((Reason::SubscribeDenied, code::FILTER)),
            Err(Denial::NotYours | Denial::Retain | Denial::Qos) => {
                return Err((Reason::SubscribeDenied, code::NOT_AUTHORIZED));
            }
        }
        if self.filters.iter().any(|held| held == filter) {
            return Ok(());
        }
        if self.filters.len() >= self.most_filters {
            return Err((Reason::FilterLimit, code::QUOTA));
        }
        self.filters.push(filter.to_owned());
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, version: Version, id: u16, filters: &[&str], out: &mut Effects) {
        let mut codes = Vec::with_capacity(filters.len());
        for filter in filters {
            let before = self.filters.len();
            self.filters.retain(|held| held != filter);
            codes.push(if self.filters.len() < before { 0 } else { code::NO_SUBSCRIPTION });
        }
        if codes.contains(&0) {
            out.listen = Some(self.filters.clone());
        }
        let codes = if version == Version::V5 { &codes[..] } else { &[] };
        encode::suback(&mut out.write, version, 0xB0, id, codes);
        self.speak(out);
    }

    /// The router listens to these branches for the session now.
    pub(super) fn linked(&mut self, branches: Branches, out: &mut Effects) {
        self.linked = branches;
        self.speak(out);
    }

    /// Says the SUBACKs that wait, if the router listens to all they are about.
    fn speak(&mut self, out: &mut Effects) {
        if !self.held.is_empty() && Branches::of(&self.filters).inside(self.linked) {
            out.write.append(&mut self.held);
            self.held = Vec::new();
            self.link_by = None;
        }
    }
}

impl fmt::Display for ToolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {:?}", self.user, self.client_id)
    }
}
