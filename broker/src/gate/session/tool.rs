//! The rules of a third-party session: what it may hear and say by its grants.
//!
//! It is clean, so what it loses it loses by being cut off, never silently. A SUBACK waits until the router really
//! listens for the filters it is about.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    branch::{Branch, Branches},
    gate::{
        encode::{self, code},
        session::{
            Effects, Listen,
            asks::refused_filter,
            subs::{Sub, Subs},
            waiting::Rest,
        },
        wire::{self, Ask, Publish, Replay, Version},
    },
    identity::{Grants, Identity},
    policy::{self, Action, Denial},
    router::saying::{Said, Saying},
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
    subs: Arc<Subs>,
    linked: Branches,
    /// Packets that wait for acknowledgements of earlier ones.
    pub(super) rest: Option<Rest>,
    /// SUBACKs that wait for the router, as bytes.
    held: Vec<u8>,
    /// When they have waited too long.
    link_by: Option<Instant>,
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
            subs: Arc::default(),
            linked: Branches::default(),
            rest: None,
            held: Vec::new(),
            link_by: None,
        }
    }

    /// When [`Self::late`] may become true.
    pub(super) fn link_by(&self) -> Option<Instant> {
        self.link_by
    }

    /// Judges a publish.
    pub(super) fn publish(&self, publish: &Publish<'_>) -> Result<Saying, Denial> {
        let Publish { topic, payload, qos, retain, expiry, properties, .. } = *publish;
        let mut forwarded = Vec::new();
        wire::forwarded(properties, &mut forwarded);
        let sender = Some((&self.key.user[..], &self.key.client_id[..]));
        let said = Said { topic, payload, qos, retain, expiry, properties: &forwarded, sender };
        say(&self.identity, &said)
    }

    /// Judges the filters one by one; `false` when the session asks too much and has to end.
    pub(super) fn subscribe(
        &mut self,
        version: Version,
        id: u16,
        asks: &[Ask<'_>],
        identifier: Option<u32>,
        now: Instant,
        out: &mut Effects,
    ) -> bool {
        let mut replay = Vec::new();
        let (mut codes, mut changed) = (Vec::with_capacity(asks.len()), false);
        for ask in asks {
            codes.push(match self.judge(version, ask) {
                Ok(()) => {
                    changed = true;
                    let known = self.subs.has(ask.filter);
                    let sub = Sub::new(ask, identifier);
                    let kept = sub.branches.has(Branch::Hub) || sub.branches.has(Branch::Tools);
                    if kept && (ask.replay == Replay::Always || (ask.replay == Replay::New && !known)) {
                        replay.push(sub.clone());
                    }
                    let granted = sub.qos;
                    Arc::make_mut(&mut self.subs).insert(sub);
                    granted
                }
                Err((reason, code)) => {
                    out.notes.push(reason);
                    code
                }
            });
        }
        if changed {
            out.listen = Some(Listen { subs: self.subs.clone(), replay });
        }
        encode::suback(&mut self.held, version, 0x90, id, &codes);
        self.link_by.get_or_insert(now + LINK);
        self.speak(out);
        self.held.len() <= HELD
    }

    fn judge(&self, version: Version, ask: &Ask<'_>) -> Result<(), (Reason, u8)> {
        policy::judge(&self.identity, Action::Subscribe { filter: ask.filter })
            .map_err(|denial| (Reason::SubscribeDenied, refused_filter(version, denial)))?;
        if self.subs.len() >= self.most_filters && !self.subs.has(ask.filter) {
            let code = if version == Version::V4 { 0x80 } else { code::QUOTA };
            return Err((Reason::FilterLimit, code));
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, version: Version, id: u16, filters: &[&str], out: &mut Effects) {
        let mut codes = Vec::with_capacity(filters.len());
        for filter in filters {
            let held = self.subs.has(filter) && Arc::make_mut(&mut self.subs).remove(filter);
            codes.push(if held { 0 } else { code::NO_SUBSCRIPTION });
        }
        if codes.contains(&0) {
            out.listen = Some(Listen { subs: self.subs.clone(), replay: Vec::new() });
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
        if !self.held.is_empty() && self.subs.branches().inside(self.linked) {
            out.write.append(&mut self.held);
            self.held = Vec::new();
            self.link_by = None;
        }
    }
}

/// What a tool says, if it may: a publish, or the will that is one later.
pub(crate) fn say(identity: &Identity, said: &Said<'_>) -> Result<Saying, Denial> {
    let Said { topic, qos, retain, .. } = *said;
    policy::judge(identity, Action::Publish { topic, qos, retain }).map(|()| Saying::new(said))
}

impl fmt::Display for ToolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {:?}", self.user, self.client_id)
    }
}
