//! When records go up, and how many bytes they may take: the policy for metered links.
//!
//! Pure. Counts what is handed to the connection; what a budget leaves undone waits, or is given up by tombstone, as the
//! policy says.

use std::time::Duration;

use fleet_schemas::Lane;
use jiff::{Timestamp, tz::TimeZone};

use super::{Now, cron::Cron};

/// Bytes beside a message's payload: its topic, and the headers of MQTT, TLS, TCP and IP.
const HEADERS: u64 = 160;
/// The part of a budget that is kept for events, reports and heartbeats.
const RESERVE: u64 = 10;
/// Heartbeats may take one part of so many of a budget: the rest is for records.
const HELLOS: u64 = 4;
/// The part of a budget that is written down ahead of its use, so that a crash never forgets a use.
const AHEAD: u64 = 32;
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// When samples are sealed and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// Again and again.
    Every(Duration),
    /// At times of the zone's clock.
    Cron(Cron),
}

/// What becomes of samples when the budget is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenGone {
    /// They wait for the next hour or day.
    #[default]
    Wait,
    /// They are given up: a tombstone says how many and why.
    Drop,
}

/// How records go up.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// When samples are sealed; absent: as the outbox says.
    pub schedule: Option<Schedule>,
    /// Whose hours and days.
    pub zone: TimeZone,
    /// Bytes of an hour.
    pub hour_bytes: Option<u64>,
    /// Bytes of a day.
    pub day_bytes: Option<u64>,
    /// The part of a budget that a backlog leaves to live samples, 0 to 1.
    pub live_share: f64,
    /// What becomes of samples when the budget is gone.
    pub when_gone: WhenGone,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            schedule: None,
            zone: TimeZone::UTC,
            hour_bytes: None,
            day_bytes: None,
            live_share: 0.5,
            when_gone: WhenGone::Wait,
        }
    }
}

/// An hour or a day: which, and the bytes used in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Period {
    /// Counts hours or days of the zone's clock.
    pub number: u64,
    /// Bytes.
    pub used: u64,
}

/// What is on disk of the use: hour and day.
pub type Spent = [Period; 2];

/// What the status says of one budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Bytes used.
    pub used: u64,
    /// Bytes there are.
    pub budget: u64,
}

/// What the status says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budgets {
    /// This hour's.
    pub hour: Option<Use>,
    /// This day's.
    pub day: Option<Use>,
    /// Whether anything waits for the next hour or day.
    pub waiting: bool,
}

/// Whether a batch may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes.
    Go,
    /// Not in this hour or day.
    Wait,
}

/// Counts bytes against the policy.
#[derive(Debug, Clone)]
pub struct Meter {
    policy: Policy,
    periods: Spent,
    // Time since boot at which each began: a clock that is set back does not begin one anew.
    began: [Duration; 2],
    // What the disk has: never less than what is used.
    saved: Spent,
    // Whether a batch went in this hour.
    sent: bool,
    // Time since boot at which what waits may go.
    due: Option<Duration>,
    // Bytes of the latest birth or heartbeat.
    hello: usize,
}

impl Meter {
    /// Goes on from what the disk has.
    #[must_use]
    pub fn new(policy: Policy, spent: Spent, now: Now) -> Self {
        Self { policy, periods: spent, began: [now.up; 2], saved: spent, sent: false, due: None, hello: 0 }
    }

    /// Another policy; what was used stays used.
    pub fn set(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Bytes that a payload takes on the wire.
    #[must_use]
    pub fn wire(payload: usize) -> u64 {
        payload as u64 + HEADERS
    }

    /// Whether a batch of `payload` bytes may go on this lane.
    pub fn judge(&mut self, lane: Lane, payload: usize, tombstone: bool, now: Now) -> Verdict {
        self.turn(now);
        let bytes = Self::wire(payload);
        let budgets = [self.policy.hour_bytes, self.policy.day_bytes];
        let fits = budgets.into_iter().zip(self.periods).all(|(budget, period)| {
            let Some(budget) = budget else { return true };
            let most = match lane {
                Lane::Event | Lane::Command => budget,
                // How many were lost is worth as much as an event.
                Lane::Telemetry | Lane::Backfill if tombstone => budget,
                Lane::Telemetry => budget - budget / RESERVE,
                Lane::Backfill => {
                    let share = budget as f64 * (1.0 - self.policy.live_share);
                    (budget - budget / RESERVE).min(share as u64)
                }
            };
            // What is larger than all of it goes when nothing else did, and the next hours or days pay for it: else it
            // would never go.
            period.used.saturating_add(bytes) <= most || (bytes > most && !self.sent && period.used < budget)
        });
        if fits {
            return Verdict::Go;
        }
        let left = HOUR_MS - local_ms(&self.policy.zone, now).rem_euclid(HOUR_MS);
        self.due = Some(now.up + Duration::from_millis(left.unsigned_abs()));
        Verdict::Wait
    }

    /// A new look at what waits begins.
    pub fn look_anew(&mut self) {
        self.due = None;
    }

    /// Whether samples are given up when a budget is gone.
    #[must_use]
    pub fn drops(&self) -> bool {
        self.limits() && self.policy.when_gone == WhenGone::Drop
    }

    /// Whether live samples must be given up that do not fit any more.
    pub fn gives_up(&mut self, payload: usize, now: Now) -> bool {
        self.drops() && self.judge(Lane::Telemetry, payload, false, now) == Verdict::Wait
    }

    /// A birth or heartbeat of `payload` bytes goes.
    pub fn spend(&mut self, payload: usize, now: Now) {
        self.hello = payload;
        self.spend_bytes(payload, now);
    }

    /// How far heartbeats are apart at least, so that records have their share of each budget: else a node would say nothing
    /// but that it is there.
    #[must_use]
    pub fn hello_every(&self) -> Duration {
        let bytes = Self::wire(self.hello).saturating_mul(HELLOS);
        let of = |budget: Option<u64>, span: i64| {
            let apart = bytes.saturating_mul(span.unsigned_abs()).checked_div(budget?)?;
            // The hub takes no longer interval at its word.
            Some(Duration::from_millis(apart.min(DAY_MS.unsigned_abs())))
        };
        let all = [of(self.policy.hour_bytes, HOUR_MS), of(self.policy.day_bytes, DAY_MS)];
        all.into_iter().flatten().max().unwrap_or_default()
    }

    /// A batch of `payload` bytes goes.
    pub fn spend_batch(&mut self, payload: usize, now: Now) {
        self.spend_bytes(payload, now);
        self.sent = true;
    }

    fn spend_bytes(&mut self, payload: usize, now: Now) {
        if !self.limits() {
            return;
        }
        self.turn(now);
        for period in &mut self.periods {
            period.used = period.used.saturating_add(Self::wire(payload));
        }
    }

    /// What is to be written down before anything more goes; `None`: the disk has enough.
    pub fn to_save(&mut self) -> Option<Spent> {
        let budgets = [self.policy.hour_bytes, self.policy.day_bytes];
        let counted = self.periods.iter().zip(&self.saved).zip(budgets);
        let behind = counted
            .filter(|(_, budget)| budget.is_some())
            .any(|((period, saved), _)| period.number != saved.number || period.used > saved.used);
        if !behind {
            return None;
        }
        for ((saved, period), budget) in self.saved.iter_mut().zip(self.periods).zip(budgets) {
            let ahead = budget.map_or(0, |budget| budget / AHEAD);
            *saved = Period { used: period.used.saturating_add(ahead), ..period };
        }
        Some(self.saved)
    }

    /// Whether there is any budget.
    #[must_use]
    pub fn limits(&self) -> bool {
        self.policy.hour_bytes.is_some() || self.policy.day_bytes.is_some()
    }

    /// Time since boot at which what waits may go, at the earliest; `None`: nothing waits.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Samples of one batch, at most `most`, so that one batch is no more than a part of a budget.
    #[must_use]
    pub fn batch_samples(&self, most: usize) -> usize {
        let least = [self.policy.hour_bytes, self.policy.day_bytes].into_iter().flatten().min();
        let Some(budget) = least else { return most };
        // An eighth of a budget at 16 bytes a sample: twice what a sample that does not compress takes.
        usize::try_from(budget / 8 / 16).unwrap_or(most).clamp(1, most)
    }

    /// When samples are sealed next; `every` is the outbox's word.
    #[must_use]
    pub fn next_seal(&self, every: Duration, now: Now) -> Duration {
        match &self.policy.schedule {
            None => now.up + every,
            Some(Schedule::Every(every)) => now.up + *every,
            Some(Schedule::Cron(cron)) => {
                let wall = Timestamp::from_millisecond(now.wall_ms).unwrap_or(Timestamp::UNIX_EPOCH);
                let next = cron.after(wall, &self.policy.zone).map(Timestamp::as_millisecond);
                let left = next.map_or(HOUR_MS, |next| next.saturating_sub(now.wall_ms));
                // Within a day: the clock may be set meanwhile.
                now.up + Duration::from_millis(left.clamp(1, DAY_MS).unsigned_abs())
            }
        }
    }

    /// When samples are sealed that were to be sealed at `due`: sooner, when the clock was set meanwhile.
    #[must_use]
    pub fn sooner(&self, due: Duration, now: Now) -> Duration {
        match &self.policy.schedule {
            Some(Schedule::Cron(_)) => due.min(self.next_seal(due, now)),
            Some(Schedule::Every(_)) | None => due,
        }
    }

    /// Whether samples wait for the schedule, whoever hands them in.
    #[must_use]
    pub fn has_schedule(&self) -> bool {
        self.policy.schedule.is_some()
    }

    /// What the status says.
    #[must_use]
    pub fn view(&self) -> Budgets {
        let of =
            |budget: Option<u64>, at: usize| budget.map(|budget| Use { used: self.periods[at].used, budget });
        Budgets {
            hour: of(self.policy.hour_bytes, 0),
            day: of(self.policy.day_bytes, 1),
            waiting: self.due.is_some(),
        }
    }

    /// Begins the hour or day that it is. What was used beyond a budget is paid by the next ones.
    fn turn(&mut self, now: Now) {
        let local = local_ms(&self.policy.zone, now);
        let budgets = [self.policy.hour_bytes, self.policy.day_bytes];
        for (at, (span, budget)) in [HOUR_MS, DAY_MS].into_iter().zip(budgets).enumerate() {
            let number = u64::try_from(local.div_euclid(span)).unwrap_or(0);
            let period = &mut self.periods[at];
            let passed = now.up.saturating_sub(self.began[at]) >= Duration::from_millis(span.unsigned_abs());
            // A number that is less is a clock that was set back: then the time since boot counts.
            if number > period.number || (number < period.number && passed) {
                let periods = if number > period.number { number - period.number } else { 1 };
                let paid = budget.unwrap_or(u64::MAX).saturating_mul(periods);
                *period = Period { number, used: period.used.saturating_sub(paid) };
                self.began[at] = now.up;
                self.sent = false;
            }
        }
    }
}

/// Milliseconds of the zone's clock.
fn local_ms(zone: &TimeZone, now: Now) -> i64 {
    let time = Timestamp::from_millisecond(now.wall_ms).unwrap_or(Timestamp::UNIX_EPOCH);
    now.wall_ms.saturating_add(i64::from(zone.to_offset(time).seconds()) * 1_000)
}

#[cfg(test)]
mod tests;
