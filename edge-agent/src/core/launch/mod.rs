//! Which release of the agent runs: the one that stays, one on trial, or what ran before. Pure.
//!
//! The launcher asks [`Record::begin`] before each start and [`after`] behind each end; the agent that runs says with
//! [`Record::offer`], [`Record::confirm`] and [`Record::undo`] what is to come. Nobody else changes a record, and never
//! both at a time: the launcher only while no agent runs. A trial that says nothing is returned from all the same.

#[cfg(test)]
mod tests;

use std::time::Duration;

use fleet_schemas::{MetricName, update::Digest};
use serde::{Deserialize, Serialize};

/// Format of the record. Launchers are older than the releases that they start: keys may be added, and mean nothing to
/// those that do not know them; the number stays as long as the others mean what they mean.
pub const FORMAT: u32 = 1;
/// Times that a release on trial is started: a power cut or two are no fault of its own, and one that crashes at boot is
/// left within seconds.
pub const STARTS: u32 = 5;
/// Longest trial. One that nobody confirms for a day is never confirmed.
pub const TRIAL_MOST: Duration = Duration::from_secs(86_400);
/// Exit code that asks for another start (`EX_TEMPFAIL` of sysexits).
pub const AGAIN: i32 = 75;
/// Exit code of an agent whose arguments or configuration are wrong: starting it again changes nothing.
pub const USAGE: i32 = 2;
/// Exit code of a program that could not be executed.
pub const UNRUNNABLE: i32 = 126;
/// First pause before another start.
const PAUSE_LEAST: Duration = Duration::from_millis(200);
/// Longest pause before another start.
const PAUSE_MOST: Duration = Duration::from_secs(30);
/// An agent that ran for so long has not failed at its start.
const SETTLED: Duration = Duration::from_secs(60);

/// A release of the agent on this node's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Its version.
    pub version: MetricName,
    /// The digest of its executable.
    pub digest: Digest,
}

/// A release that runs to show what it is worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Which one.
    pub release: Release,
    /// Starts that it had, written down before each of them.
    pub starts: u32,
    /// Time that it ran, in milliseconds; without starts whose end nobody saw.
    pub ran_ms: u64,
    /// Time in which it is confirmed, in milliseconds.
    pub limit_ms: u64,
}

/// Why a trial was ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// All its starts were used up: it crashed, or the power failed each time.
    Crashed,
    /// It was not confirmed in its time.
    Unconfirmed,
    /// Its file is not the one that was installed.
    Corrupt,
    /// The system cannot execute it.
    Unrunnable,
    /// The agent itself ended it; a code such as `unhealthy`.
    Said(String),
}

/// A trial that did not pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// Which release was on trial.
    pub release: Release,
    /// Why it is over.
    pub why: Why,
}

/// What is known of the agent's releases. Where there is none, the launcher's own executable runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Format of the file.
    pub format: u32,
    /// What runs; absent: the launcher's own executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Release>,
    /// What ran before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Release>,
    /// What runs next, until it is confirmed or returned from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
    /// The last trial that did not pass, until the next one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone: Option<Undone>,
}

/// What is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    /// The release; `None`: the launcher's own executable.
    pub release: Option<Release>,
    /// For one on trial: how long it may run on unconfirmed.
    pub left: Option<Duration>,
}

/// How a run of the agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// How.
    pub exit: Exit,
    /// Whether whoever runs the launcher told it to end.
    pub told: bool,
    /// Whether the launcher ended it because its trial was over.
    pub over: bool,
    /// How long it ran.
    pub lasted: Duration,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With a code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// What follows the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The launcher ends, with this code.
    Quit(u8),
    /// Another start, after this pause.
    Start(Duration),
}

impl Default for Record {
    fn default() -> Self {
        Self { format: FORMAT, current: None, previous: None, trial: None, undone: None }
    }
}

impl Record {
    /// What is to be started. The record has to be on disk before that: the start is counted in it.
    ///
    /// `sound` says whether a release is on disk as it was installed.
    pub fn begin(&mut self, mut sound: impl FnMut(&Release) -> bool) -> Pick {
        if let Some(trial) = &mut self.trial {
            let left = trial.limit_ms.saturating_sub(trial.ran_ms);
            let why = if !sound(&trial.release) {
                Why::Corrupt
            } else if left == 0 {
                Why::Unconfirmed
            } else if trial.starts >= STARTS {
                Why::Crashed
            } else {
                trial.starts += 1;
                let release = Some(trial.release.clone());
                return Pick { release, left: Some(Duration::from_millis(left)) };
            };
            self.end_trial(why);
        }
        self.settled(sound)
    }

    /// What is to be started when no trial can be, for once.
    pub fn settled(&self, mut sound: impl FnMut(&Release) -> bool) -> Pick {
        let order = self.current.iter().chain(self.previous.iter().filter(|_| self.current.is_some()));
        let release = order.into_iter().find(|release| sound(release)).cloned();
        Pick { release, left: None }
    }

    /// Books the end of a run. Whether the record changed.
    pub fn ended(&mut self, pick: &Pick, end: &End) -> bool {
        let Some(trial) = self.trial_of(pick) else { return false };
        trial.ran_ms = trial.ran_ms.saturating_add(millis(end.lasted));
        if end.over {
            trial.ran_ms = trial.limit_ms;
        }
        // A start that ended as was wished for is none that failed; the time counts all the same.
        if end.exit == Exit::Code(AGAIN) || end.told {
            trial.starts = trial.starts.saturating_sub(1);
        }
        if end.exit == Exit::Code(UNRUNNABLE) {
            self.end_trial(Why::Unrunnable);
        }
        true
    }

    /// Whether what was picked is still on trial.
    #[must_use]
    pub fn tries(&self, pick: &Pick) -> bool {
        pick.left.is_some()
            && self.trial.as_ref().is_some_and(|trial| Some(&trial.release) == pick.release.as_ref())
    }

    /// Whether the trial has no start left, so that the next is of what ran before.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.trial.as_ref().is_none_or(|trial| trial.starts >= STARTS || trial.ran_ms >= trial.limit_ms)
    }

    /// The next start tries this release: it is confirmed within `limit`, or returned from.
    pub fn offer(&mut self, release: Release, limit: Duration) {
        let limit_ms = millis(limit.min(TRIAL_MOST)).max(1);
        self.undone = None;
        self.trial = Some(Trial { release, starts: 0, ran_ms: 0, limit_ms });
    }

    /// The release on trial stays. Whether this one is what stays now; also when it did before.
    pub fn confirm(&mut self, digest: Digest) -> bool {
        let passed = self.trial.take_if(|trial| trial.release.digest == digest);
        if let Some(Trial { release, .. }) = passed {
            // One that ran before and was installed anew takes nobody's place.
            if self.current.as_ref() != Some(&release) {
                self.previous = self.current.replace(release);
            }
            self.undone = None;
        }
        self.current.as_ref().is_some_and(|current| current.digest == digest)
    }

    /// The agent itself ends the trial of this release, or leaves it although it stayed. Whether it was either.
    pub fn undo(&mut self, digest: Digest, code: &str) -> bool {
        let is_it = |release: &Release| release.digest == digest;
        let why = Why::Said(code.to_owned());
        if let Some(trial) = &self.trial {
            let tried = is_it(&trial.release);
            if tried {
                self.end_trial(why);
            }
            return tried;
        }
        let Some(release) = self.current.take_if(|release| is_it(release)) else { return false };
        self.current = self.previous.take();
        self.undone = Some(Undone { release, why });
        true
    }

    /// Forgets that this release did not pass. Whether it had not.
    pub fn forgive(&mut self, digest: Digest) -> bool {
        self.undone.take_if(|undone| undone.release.digest == digest).is_some()
    }

    /// Every release whose files are to be kept.
    pub fn kept(&self) -> impl Iterator<Item = &Release> {
        let trial = self.trial.as_ref().map(|trial| &trial.release);
        self.current.iter().chain(&self.previous).chain(trial)
    }

    fn trial_of(&mut self, pick: &Pick) -> Option<&mut Trial> {
        if !self.tries(pick) {
            return None;
        }
        self.trial.as_mut()
    }

    fn end_trial(&mut self, why: Why) {
        let Some(Trial { release, .. }) = self.trial.take() else { return };
        if self.current.as_ref() == Some(&release) {
            // It was installed anew because something was wrong with it, and still is.
            self.current = self.previous.take();
        }
        self.undone = Some(Undone { release, why });
    }
}

impl Why {
    /// In a word, as the code of a reason.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Crashed => "crashed",
            Self::Unconfirmed => "unconfirmed",
            Self::Corrupt => "corrupt",
            Self::Unrunnable => "not_executable",
            Self::Said(code) => code,
        }
    }

    /// For people; follows "the release was returned from: ".
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Crashed => {
                format!("it was started {STARTS} times and ended each time before it was confirmed")
            }
            Self::Unconfirmed => "it ran for the whole time of its trial and was not confirmed".to_owned(),
            Self::Corrupt => "its file on the node's disk is not the one that was installed".to_owned(),
            Self::Unrunnable => {
                "the node's system cannot execute it: is it built for this machine?".to_owned()
            }
            Self::Said(code) => format!("it gave itself up ({code})"),
        }
    }
}

/// What follows a run. `failures`: runs before it that ended badly, one after the other. `last`: whether another release
/// is started next.
#[must_use]
pub fn after(pick: &Pick, end: &End, failures: u32, last: bool) -> Next {
    let trial = pick.left.is_some();
    let code = match end.exit {
        Exit::Code(code) => u8::try_from(code).unwrap_or(1),
        // As shells say it.
        Exit::Signal(signal) => u8::try_from(128 + signal).unwrap_or(1),
    };
    if end.told {
        return Next::Quit(code);
    }
    match end.exit {
        _ if end.over || last => Next::Start(Duration::ZERO),
        Exit::Code(AGAIN) if end.lasted >= PAUSE_LEAST => Next::Start(Duration::ZERO),
        // Somebody ended it by hand, or nobody can help it by starting it again.
        Exit::Code(0 | USAGE) if !trial => Next::Quit(code),
        Exit::Code(_) | Exit::Signal(_) => {
            let pause = PAUSE_LEAST.saturating_mul(1 << failures.min(16));
            Next::Start(pause.min(PAUSE_MOST))
        }
    }
}

/// Whether a run counts as one that failed at its start.
#[must_use]
pub fn failed(end: &End) -> bool {
    !end.over && end.lasted < SETTLED
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
