//! The identity of a running agent: what its connections prove themselves with, and what they learn.
//!
//! Held in memory and shared; only `upkeep` writes it to disk. A pair that was renewed waits beside the old one until
//! it has opened a session: whichever of the two the hub takes, the node gets in.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fleet_schemas::{NodeId, batch::Clock, limits};
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    certificate::{Certificate, Key},
    folder::{Folder, FolderError, Lock},
    record::{Joined, Next, Pair},
    trust::{Bound, ConfigError, Trusted, client_config},
};
use crate::{
    address::Address,
    core::{
        Now,
        renewal::{Hours, Life},
    },
};

/// How far the hub's time has to move before it is worth a write to flash.
const HUB_MS_STEP: i64 = 86_400_000;

/// Which of the pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// The one that has opened a session before.
    Current,
    /// The one that is to take its place.
    Next,
}

impl Which {
    fn other(self) -> Self {
        match self {
            Self::Current => Self::Next,
            Self::Next => Self::Current,
        }
    }
}

/// The identity of a running agent. While it lives, nobody else changes the folder.
#[derive(Debug)]
pub struct Live {
    node: NodeId,
    folder: Folder,
    // Where the hub is said to be now, when not where the node joined.
    host: Option<String>,
    bound: Arc<Bound>,
    state: Mutex<State>,
    stage: watch::Sender<Stage>,
    // Whether the node has become another hub's. Held while the folder is written.
    left: Mutex<bool>,
    _lock: Lock,
}

#[derive(Debug)]
struct State {
    joined: Joined,
    // What is on disk.
    stored: Joined,
    current: Dial,
    next: Option<Dial>,
    // Which is tried by the next connection, while there are two.
    turn: Which,
    opened: Option<Which>,
    // The hub did not take the next pair: it gave it and forgot it (a backup was restored), or takes none of ours.
    next_refused: bool,
    refused: Option<String>,
    heard: Option<(i64, Duration)>,
}

/// A pair, ready to dial with.
#[derive(Debug, Clone)]
struct Dial {
    certificate: Certificate,
    tls: Arc<ClientConfig>,
}

/// What connections wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Stage {
    /// The certificate is in its time, as far as anybody can tell, or renewing it was tried.
    settled: bool,
    /// The session should make way for one with the new pair.
    outdated: bool,
}

/// What `fleet-agent status` says of the identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityView {
    /// HTTPS of the hub, as host and port.
    pub hub: String,
    /// When the node's certificate ends, Unix milliseconds.
    pub certificate_ends_ms: i64,
    /// When it will be renewed, Unix milliseconds.
    pub certificate_renews_ms: i64,
    /// Whether a renewed one waits for its first session.
    pub renewed: bool,
    /// The CAs it trusts, by the hash of their public keys as in a join token.
    pub trust: Vec<String>,
    /// Why the hub refused the last session, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl Live {
    /// The identity in a folder; `host` is said to be the hub's, when it is not where the node joined.
    ///
    /// # Errors
    /// [`FolderError`], [`ConfigError`].
    pub fn open(folder: Folder, joined: Joined, host: Option<String>) -> Result<Self, OpenError> {
        let lock = folder.lock()?;
        let bound = Arc::new(Bound::new(joined.hub_ms.max(limits::BUILT_MS)));
        let cas = joined.cas();
        let current = Dial::new(&cas, &bound, &joined.current)?;
        let next = joined.next.as_ref().and_then(Next::pair);
        // One that cannot be used is made again: the old one is still there.
        let next = next.and_then(|pair| Dial::new(&cas, &bound, &pair).ok());
        let state = State {
            turn: if next.is_some() { Which::Next } else { Which::Current },
            stored: joined.clone(),
            joined,
            current,
            next,
            opened: None,
            next_refused: false,
            refused: None,
            heard: None,
        };
        let stage = watch::Sender::new(Stage::default());
        Ok(Self {
            node: state.joined.node.clone(),
            folder,
            host,
            bound,
            state: Mutex::new(state),
            stage,
            left: Mutex::new(false),
            _lock: lock,
        })
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The first root of the hub's releases, where one came with the certificate: what an update pins.
    #[must_use]
    pub fn releases_root(&self) -> Option<String> {
        self.state().joined.releases_root.clone()
    }

    /// Whether this is the identity, by the CA of its hub and its key.
    pub(crate) fn is(&self, joined: &Joined) -> bool {
        let state = self.state();
        state.joined.pin == joined.pin && state.joined.hub.host == joined.hub.host
    }

    /// What the next session proves itself with.
    pub(crate) fn dial(&self) -> (Which, Arc<ClientConfig>) {
        let state = self.state();
        match (&state.next, state.turn) {
            (Some(next), Which::Next) => (Which::Next, next.tls.clone()),
            (_, Which::Current | Which::Next) => (Which::Current, state.current.tls.clone()),
        }
    }

    /// A session is open. The new pair takes the place of the old one.
    pub(crate) fn opened(&self, which: Which) {
        let mut state = self.state();
        state.refused = None;
        state.opened = Some(which);
        match which {
            Which::Next => {
                let pair = state.joined.next.take().and_then(|next| next.pair());
                if let (Some(pair), Some(next)) = (pair, state.next.take()) {
                    state.joined.current = pair;
                    state.current = next;
                    state.opened = Some(Which::Current);
                }
                state.turn = Which::Current;
                state.next_refused = false;
            }
            Which::Current if state.next_refused => {}
            Which::Current => state.turn = Which::Next,
        }
        drop(state);
        self.stage.send_if_modified(|stage| std::mem::take(&mut stage.outdated));
    }

    /// No session came about: the other pair is tried next, where there are two.
    pub(crate) fn failed(&self, which: Which, refused: Option<String>) {
        let mut state = self.state();
        state.opened = None;
        state.next_refused |= which == Which::Next && refused.is_some();
        state.refused = refused;
        state.turn = which.other();
    }

    /// The hub did not take this one: the other is tried next, where there are two.
    pub(crate) fn take_turns(&self, which: Which) {
        self.state().turn = which.other();
    }

    /// Returns once a session may be tried: at once, unless the certificate seems to have ended.
    pub(crate) async fn settled(&self) {
        // An error says that the identity is gone, and so is whoever waits.
        let _ = self.stage.subscribe().wait_for(|stage| stage.settled).await;
    }

    pub(crate) fn settle(&self) {
        self.stage.send_if_modified(|stage| !std::mem::replace(&mut stage.settled, true));
    }

    /// Returns once the session should make way for one with the new pair.
    pub(crate) async fn outdated(&self) {
        let _ = self.stage.subscribe().wait_for(|stage| stage.outdated).await;
    }

    /// Says so, when it is time.
    pub(crate) fn judge_session(&self, now_ms: i64) {
        let state = self.state();
        let old = state.opened == Some(Which::Current) && state.next.is_some() && !state.next_refused;
        let outdated = old && now_ms >= state.current.life().outdated_ms();
        drop(state);
        self.stage.send_if_modified(|stage| std::mem::replace(&mut stage.outdated, outdated) != outdated);
    }

    /// The hub said at `up` what time it is. By a synced clock of its own a node knows a hub that is in the future: what it
    /// believed of that would shut the hub out once it is right again.
    pub(crate) fn hear(&self, hub_ms: i64, up: Duration, now: Now) {
        let is_ahead = now.clock == Clock::Synced && hub_ms > now.wall_ms.saturating_add(HUB_MS_STEP);
        if !is_ahead {
            self.bound.hear(hub_ms);
        }
        let mut state = self.state();
        if state.heard.is_none_or(|(_, at)| at <= up) {
            state.heard = Some((hub_ms, up));
        }
        let bound_ms = self.bound.ms();
        if bound_ms >= state.joined.hub_ms.saturating_add(HUB_MS_STEP) {
            state.joined.hub_ms = bound_ms;
        }
    }

    /// The time by which certificates are judged, Unix milliseconds.
    pub(crate) fn now_ms(&self, now: Now) -> i64 {
        Hours { bound_ms: self.bound.ms(), heard: self.state().heard }.at(now)
    }

    /// The life of the newest certificate that the hub may take.
    pub(crate) fn life(&self) -> Life {
        self.state().newest().life()
    }

    /// Whether a renewed pair waits for its first session.
    pub(crate) fn waits(&self) -> bool {
        self.state().next.is_some()
    }

    /// Whether the first CA signed the newest certificate; if not, the hub changes its CA.
    pub(crate) fn is_of_first_ca(&self) -> bool {
        let state = self.state();
        state.joined.cas().first().is_none_or(|ca| state.newest().certificate.is_signed_by(ca))
    }

    /// Where HTTPS for nodes is served.
    pub(crate) fn https(&self) -> Address {
        let state = self.state();
        let joined = state.joined.hub.https();
        Address { host: self.host.clone().unwrap_or(joined.host), ..joined }
    }

    /// A configuration that trusts the hub and proves nothing.
    pub(crate) fn anonymous(&self) -> Result<Arc<ClientConfig>, ConfigError> {
        let cas = self.state().joined.cas();
        client_config(&Trusted::Cas(&cas), self.bound.clone(), None)
    }

    /// The CAs to trust from now on, and the first root of the releases: of that, the one that was heard first stays.
    pub(crate) fn trust(&self, ca: Vec<String>, releases_root: Option<String>) -> Result<(), ConfigError> {
        let mut state = self.state();
        let releases_root = state.joined.releases_root.clone().or(releases_root);
        if state.joined.ca == ca && state.joined.releases_root == releases_root {
            return Ok(());
        }
        let joined = Joined { ca, releases_root, ..state.joined.clone() };
        let cas = joined.cas();
        state.current = Dial::new(&cas, &self.bound, &joined.current)?;
        let next = joined.next.as_ref().and_then(Next::pair);
        state.next = next.and_then(|pair| Dial::new(&cas, &self.bound, &pair).ok());
        state.joined = joined;
        Ok(())
    }

    /// The key of the next certificate: the one of a try that did not come through, else a new one.
    pub(crate) fn next_key(&self) -> Key {
        let mut state = self.state();
        match &state.joined.next {
            Some(Next { key, certificate: None }) => key.clone(),
            // One that waits for its first session is replaced only when it is due itself.
            Some(Next { certificate: Some(_), .. }) | None => {
                let key = Key::generate();
                if state.next.is_none() || state.next_refused {
                    state.next = None;
                    state.joined.next = Some(Next { key: key.clone(), certificate: None });
                }
                key
            }
        }
    }

    /// The hub gave the next certificate; it takes effect with the next session.
    pub(crate) fn renewed(&self, pair: Pair) -> Result<(), ConfigError> {
        let mut state = self.state();
        let dial = Dial::new(&state.joined.cas(), &self.bound, &pair)?;
        let Pair { key, certificate } = pair;
        state.joined.next = Some(Next { key, certificate: Some(certificate) });
        state.next = Some(dial);
        // After one that was not taken, the old one gets the node in first.
        let refused = std::mem::take(&mut state.next_refused) && state.opened.is_none();
        state.turn = if refused { Which::Current } else { Which::Next };
        Ok(())
    }

    /// Writes down what changed, if anything did. Blocks.
    ///
    /// # Errors
    /// [`FolderError`]: it is still to be written.
    pub(crate) fn save(&self) -> Result<(), FolderError> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = {
            let state = self.state();
            if *left || state.joined == state.stored {
                return Ok(());
            }
            state.joined.clone()
        };
        self.folder.store(&joined)?;
        self.state().stored = joined;
        // Held until now: nothing is written over what [`Live::leave`] wrote.
        drop(left);
        Ok(())
    }

    /// The node is another hub's from now on, once the agent starts again. Nothing of this identity is written any more.
    /// Blocks.
    ///
    /// # Errors
    /// [`FolderError`]: the node is still this hub's.
    pub(crate) fn leave(&self, joined: &Joined) -> Result<(), FolderError> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        self.folder.store(joined)?;
        *left = true;
        Ok(())
    }

    pub(crate) fn view(&self) -> IdentityView {
        let hub = self.https().to_string();
        let state = self.state();
        let life = state.current.life();
        IdentityView {
            hub,
            certificate_ends_ms: life.not_after_ms,
            certificate_renews_ms: state.newest().life().renew_ms(),
            renewed: state.next.is_some(),
            trust: state.joined.cas().iter().map(|ca| ca.pin().to_string()).collect(),
            refused: state.refused.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An identity cannot be used. The text fits after "failed to start: ".
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its content.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl State {
    fn newest(&self) -> &Dial {
        self.next.as_ref().filter(|_| !self.next_refused).unwrap_or(&self.current)
    }
}

impl Dial {
    fn new(cas: &[Certificate], bound: &Arc<Bound>, pair: &Pair) -> Result<Self, ConfigError> {
        let tls = client_config(&Trusted::Cas(cas), bound.clone(), Some(pair))?;
        let certificate = Certificate::from_pem(&pair.certificate)?;
        Ok(Self { certificate, tls })
    }

    fn life(&self) -> Life {
        let Certificate { not_before_ms, not_after_ms, .. } = self.certificate;
        Life { not_before_ms, not_after_ms, share: self.certificate.share() }
    }
}

impl Next {
    fn pair(&self) -> Option<Pair> {
        let certificate = self.certificate.clone()?;
        Some(Pair { key: self.key.clone(), certificate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::given::{self, Ca, YEAR_MS};

    /// An identity, and a pair that its CA renewed.
    fn live() -> (tempfile::TempDir, Live, Pair) {
        let data = tempfile::tempdir().unwrap();
        let ca = Ca::new("hub");
        let pair = || {
            let key = Key::generate();
            Pair { certificate: ca.node("edge-1", &key, 0, YEAR_MS), key }
        };
        let joined = Joined { ca: vec![ca.pem()], current: pair(), ..given::joined("edge-1") };
        let live = Live::open(Folder::new(data.path()), joined, None).unwrap();
        (data, live, pair())
    }

    #[test]
    fn the_pairs_take_turns_until_the_new_one_opened_a_session() {
        let (_data, live, pair) = live();
        let which = || live.dial().0;
        assert_eq!(which(), Which::Current);
        live.failed(Which::Current, None);
        assert_eq!(which(), Which::Current, "there is no other");
        live.renewed(pair.clone()).unwrap();
        assert_eq!(which(), Which::Next);
        live.failed(Which::Next, None);
        assert_eq!(which(), Which::Current);
        live.opened(Which::Current);
        assert_eq!(which(), Which::Next, "the next session tries it again");
        live.opened(Which::Next);
        assert_eq!((which(), live.waits()), (Which::Current, false));
        assert_eq!(live.state().joined.current, pair);
    }

    #[test]
    fn a_pair_that_was_refused_is_not_pushed_and_makes_the_old_one_due_again() {
        let (_data, live, pair) = live();
        let key = live.next_key();
        assert_eq!(live.next_key(), key, "one key until there is an answer");
        live.renewed(pair).unwrap();
        live.opened(Which::Current);
        live.judge_session(YEAR_MS);
        assert!(live.stage.borrow().outdated);
        live.failed(Which::Next, Some("no".to_owned()));
        live.opened(Which::Current);
        live.judge_session(YEAR_MS);
        assert!(!live.stage.borrow().outdated, "no session ends for a pair that was refused");
        assert_eq!(live.life(), live.state().current.life());
        assert_ne!(live.next_key(), key);
    }

    #[test]
    fn the_time_is_written_once_a_day_at_most() {
        let (_data, live, _) = live();
        let start = limits::BUILT_MS;
        live.bound.shown(start + YEAR_MS);
        let now = |clock, wall_ms| Now { wall_ms, up: Duration::from_secs(9), clock };
        let hear = |hub_ms, up| live.hear(hub_ms, Duration::from_secs(up), now(Clock::Unsynced, 0));
        hear(start + HUB_MS_STEP, 1);
        live.save().unwrap();
        let kept = || live.folder.load().unwrap().unwrap().hub_ms;
        assert_eq!(kept(), start + HUB_MS_STEP);
        hear(start + 2 * HUB_MS_STEP - 1, 2);
        live.save().unwrap();
        assert_eq!(kept(), start + HUB_MS_STEP);
        hear(start + 2 * HUB_MS_STEP, 3);
        live.save().unwrap();
        assert_eq!(kept(), start + 2 * HUB_MS_STEP);
        // A node that knows the time does not follow a hub whose clock was set wrong.
        let synced = now(Clock::Synced, start + 2 * HUB_MS_STEP);
        live.hear(start + 300 * HUB_MS_STEP, Duration::from_secs(4), synced);
        assert_eq!(live.bound.ms(), start + 2 * HUB_MS_STEP);
        live.hear(start + 3 * HUB_MS_STEP, Duration::from_secs(5), synced);
        assert_eq!(live.bound.ms(), start + 3 * HUB_MS_STEP);
    }
}
