//! Presence of one node: `new → online → suspect → offline`, and back. Driven by what it says and by one deadline on
//! the hub's monotonic clock; device time is never asked.

use std::time::Duration;

use fleet_schemas::SessionId;
use serde::{Deserialize, Serialize};

use super::Now;

/// From the will to offline: time for a node whose link merely flapped to come back.
pub const WILL_GRACE: Duration = Duration::from_secs(10);
/// Heartbeat interval assumed before a node has told its own.
pub const INTERVAL: Duration = Duration::from_secs(30);
/// Half-life of the flapping penalty.
const HALF_LIFE: Duration = Duration::from_secs(600);
/// Penalty above which a node is shown as flapping: about four losses in ten minutes.
const FLAPPING: f64 = 3.0;

/// States before the present one that are kept: three losses with their returns, enough to tell why.
pub const PAST: usize = 12;

/// A state that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// It.
    pub state: State,
    /// Since when it was, hub time, Unix milliseconds; it lasted until the next began.
    pub since_ms: i64,
}

/// Why a node is suspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A heartbeat is late.
    Late,
    /// Its will was published, or it said goodbye.
    Will,
    /// The hub was restarted and has yet to hear of it.
    HubRestart,
}

/// Presence states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// Known, but never heard.
    New,
    /// Heard within its interval.
    Online,
    /// About to be called offline.
    Suspect {
        /// Why.
        cause: Cause,
    },
    /// Silent for three of its intervals, or for ten seconds after its will.
    Offline,
    /// Silent by its own announcement.
    Sleeping {
        /// Until when, hub time, Unix milliseconds.
        until_ms: i64,
    },
}

impl State {
    /// The word in REST, CLI and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Online => "online",
            Self::Suspect { .. } => "suspect",
            Self::Offline => "offline",
            Self::Sleeping { .. } => "sleeping",
        }
    }
}

/// Presence of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Presence {
    /// The state.
    pub state: State,
    /// Since when, hub time, Unix milliseconds.
    pub since_ms: i64,
    /// The states before it, oldest first, at most [`PAST`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<Past>,
    /// The current session.
    pub session: Option<SessionId>,
    /// The node's own heartbeat interval, in milliseconds.
    pub interval_ms: u64,
    /// When to look again, on the hub's monotonic clock.
    #[serde(skip)]
    pub deadline: Option<Duration>,
    #[serde(skip)]
    penalty: (f64, Duration),
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            state: State::New,
            since_ms: 0,
            past: Vec::new(),
            session: None,
            interval_ms: u64::try_from(INTERVAL.as_millis()).unwrap_or(u64::MAX),
            deadline: None,
            penalty: (0.0, Duration::ZERO),
        }
    }
}

impl Presence {
    /// Never heard of yet.
    #[must_use]
    pub fn new(now_ms: i64) -> Self {
        Self { since_ms: now_ms, ..Self::default() }
    }

    /// The node's own heartbeat interval, as it is reckoned with.
    #[must_use]
    pub fn interval(&self) -> Duration {
        // Bounds keep a board with a nonsensical interval from never or always being late.
        Duration::from_millis(self.interval_ms).clamp(Duration::from_secs(1), Duration::from_secs(24 * 3600))
    }

    fn to(&mut self, state: State, now: Now) {
        if self.state != state {
            if self.past.len() >= PAST {
                self.past.drain(..=self.past.len() - PAST);
            }
            self.past.push(Past { state: self.state, since_ms: self.since_ms });
            self.state = state;
            self.since_ms = now.wall_ms;
        }
    }

    /// A session begins.
    pub fn birth(&mut self, session: SessionId, interval_ms: u64, now: Now) {
        self.session = Some(session);
        self.interval_ms = interval_ms;
        self.heard(now);
    }

    /// A heartbeat. One of another session is late and means nothing.
    pub fn heartbeat(&mut self, session: SessionId, interval_ms: u64, now: Now) {
        if self.session.is_none_or(|current| current == session) {
            self.birth(session, interval_ms, now);
        }
    }

    /// Any other message of a session that we know: it is there.
    pub fn seen(&mut self, now: Now) {
        let suspected = matches!(self.state, State::Suspect { cause: Cause::Late | Cause::HubRestart });
        if self.session.is_some() && (suspected || self.state == State::Online) {
            self.heard(now);
        }
    }

    fn heard(&mut self, now: Now) {
        self.to(State::Online, now);
        self.deadline = Some(now.mono + self.interval() * 3 / 2);
    }

    /// The session through which the node can be told something now.
    #[must_use]
    pub fn reached_by(&self) -> Option<SessionId> {
        match self.state {
            State::Online | State::Suspect { cause: Cause::Late } => self.session,
            // After a hub start nobody is connected before a birth says so.
            State::Suspect { cause: Cause::Will | Cause::HubRestart }
            | State::New
            | State::Offline
            | State::Sleeping { .. } => None,
        }
    }

    /// The will, or a goodbye. That of an earlier session means nothing.
    pub fn death(&mut self, session: SessionId, until_ms: Option<i64>, now: Now) {
        if self.session != Some(session) {
            return;
        }
        self.session = None;
        match until_ms {
            Some(until_ms) => {
                self.to(State::Sleeping { until_ms }, now);
                let left = u64::try_from(until_ms.saturating_sub(now.wall_ms)).unwrap_or(0);
                self.deadline = Some(now.mono + Duration::from_millis(left) + self.interval());
            }
            None => {
                self.to(State::Suspect { cause: Cause::Will }, now);
                self.deadline = Some(now.mono + WILL_GRACE);
            }
        }
    }

    /// The hub was started: what it remembers is suspected for three intervals.
    pub fn hub_restart(&mut self, now: Now) {
        match self.state {
            State::Online | State::Suspect { .. } => {
                self.to(State::Suspect { cause: Cause::HubRestart }, now);
                self.deadline = Some(now.mono + self.interval() * 3);
            }
            State::Sleeping { until_ms } => {
                let left = u64::try_from(until_ms.saturating_sub(now.wall_ms)).unwrap_or(0);
                self.deadline = Some(now.mono + Duration::from_millis(left) + self.interval());
            }
            State::New | State::Offline => self.deadline = None,
        }
    }

    /// The deadline passed.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.deadline.is_none_or(|deadline| deadline > now.mono) {
            return;
        }
        match self.state {
            State::Online => {
                self.to(State::Suspect { cause: Cause::Late }, now);
                self.deadline = Some(now.mono + self.interval() * 3 / 2);
            }
            State::Suspect { .. } | State::Sleeping { .. } => {
                self.penalty = (self.penalty_at(now.mono) + 1.0, now.mono);
                self.session = None;
                self.to(State::Offline, now);
                self.deadline = None;
            }
            State::New | State::Offline => self.deadline = None,
        }
    }

    fn penalty_at(&self, mono: Duration) -> f64 {
        let (penalty, at) = self.penalty;
        penalty * 0.5_f64.powf(mono.saturating_sub(at).as_secs_f64() / HALF_LIFE.as_secs_f64())
    }

    /// Whether it was lost so often lately that single losses mean little.
    #[must_use]
    pub fn is_flapping(&self, mono: Duration) -> bool {
        self.penalty_at(mono) > FLAPPING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId([1; 8]);
    const B: SessionId = SessionId([2; 8]);

    fn now(seconds: u64) -> Now {
        Now { wall_ms: i64::try_from(seconds * 1000).unwrap(), mono: Duration::from_secs(seconds) }
    }

    fn born() -> Presence {
        let mut presence = Presence::default();
        presence.birth(A, 30_000, now(0));
        presence
    }

    fn run_to(presence: &mut Presence, seconds: u64) -> Vec<(u64, State)> {
        let mut seen = Vec::new();
        for second in 0..=seconds {
            let before = presence.state;
            presence.handle_timeout(now(second));
            if presence.state != before {
                seen.push((second, presence.state));
            }
        }
        seen
    }

    #[test]
    fn silence_leads_to_suspect_and_offline_after_three_intervals() {
        let expected = [(45, State::Suspect { cause: Cause::Late }), (90, State::Offline)];
        assert_eq!(run_to(&mut born(), 200), expected);
    }

    #[test]
    fn late_node_returns_online_on_heartbeat() {
        let mut presence = born();
        run_to(&mut presence, 60);
        presence.heartbeat(A, 30_000, now(61));
        assert_eq!(presence.state, State::Online);
    }

    #[test]
    fn a_will_acts_on_its_own_session_only() {
        let mut presence = born();
        presence.birth(B, 30_000, now(5));
        presence.death(A, None, now(6));
        assert_eq!(presence.state, State::Online);
        presence.death(B, None, now(7));
        assert_eq!(run_to(&mut presence, 20), [(17, State::Offline)]);
    }

    #[test]
    fn a_sleeper_is_not_missed_before_its_time() {
        let mut presence = born();
        presence.death(A, Some(600_000), now(10));
        assert_eq!(run_to(&mut presence, 629), []);
        assert_eq!(run_to(&mut presence, 631), [(630, State::Offline)]);
    }

    #[test]
    fn after_a_hub_start_nodes_have_three_intervals() {
        let mut presence = born();
        presence.hub_restart(now(0));
        assert_eq!(presence.state, State::Suspect { cause: Cause::HubRestart });
        assert_eq!(run_to(&mut presence, 100), [(90, State::Offline)]);
    }

    #[test]
    fn the_last_states_are_kept() {
        let mut presence = born();
        run_to(&mut presence, 100);
        let states = |presence: &Presence| presence.past.iter().map(|past| past.state).collect::<Vec<_>>();
        assert_eq!(states(&presence), [State::New, State::Online, State::Suspect { cause: Cause::Late }]);
        assert_eq!(presence.past.last().map(|past| past.since_ms), Some(45_000));
        for n in 0..20 {
            presence.birth(A, 1_000, now(200 + n * 20));
            presence.death(A, None, now(201 + n * 20));
        }
        assert_eq!(presence.past.len(), PAST);
        assert_eq!(
            presence.past.last().map(|past| (past.state, past.since_ms)),
            Some((State::Online, 580_000))
        );
    }

    #[test]
    fn flapping_wears_off() {
        let mut presence = Presence::default();
        for n in 0..5 {
            presence.birth(A, 1_000, now(n * 20));
            presence.death(A, None, now(n * 20 + 1));
            presence.handle_timeout(now(n * 20 + 12));
        }
        assert!(presence.is_flapping(Duration::from_secs(100)));
        assert!(!presence.is_flapping(Duration::from_secs(2_000)));
    }
}
