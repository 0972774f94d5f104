//! `[upload]` of `agent.toml`: the policy for metered links, as it is written.
//!
//! Owns reading it and finding the zone; what it means is in `core::upload`.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::{
    config::optional_seconds,
    core::upload::{Policy, Schedule, WhenGone},
};

/// When records go up, and how many bytes they may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How often samples are sealed and sent, in seconds, whoever handed them in; absent, and without `cron`: as
    /// `[outbox]` says.
    #[serde(rename = "every_s", with = "optional_seconds", skip_serializing_if = "Option::is_none")]
    pub every: Option<Duration>,
    /// When samples are sealed and sent: `minute hour day month weekday`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// Whose clock `cron`, hours and days follow, such as `Europe/Berlin`; absent: the machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Bytes of an hour; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hour_bytes: Option<u64>,
    /// Bytes of a day; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day_bytes: Option<u64>,
    /// The part of a budget that a backlog leaves to live samples, 0 to 1.
    pub live_share: f64,
    /// What becomes of samples when a budget is gone: they `wait`, or are given up (`drop`) and accounted for.
    pub when_gone: Gone,
}

/// What becomes of samples when a budget is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gone {
    /// They wait for the next hour or day.
    #[default]
    Wait,
    /// They are given up: a tombstone says how many and why.
    Drop,
}

/// Smallest budget: less than this is not enough for the heartbeats of an hour.
const LEAST_BYTES: u64 = 16 * 1024;
/// Longest and shortest time between two uploads.
const EVERY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(7 * 86_400));

impl Default for Config {
    fn default() -> Self {
        Self {
            every: None,
            cron: None,
            zone: None,
            hour_bytes: None,
            day_bytes: None,
            live_share: 0.5,
            when_gone: Gone::Wait,
        }
    }
}

impl Config {
    /// The policy. Looks the zone up in the machine's table of zones.
    ///
    /// # Errors
    /// A sentence on what is wrong and what would be right.
    pub fn policy(&self) -> Result<Policy, String> {
        let schedule = match (self.every, &self.cron) {
            (Some(_), Some(_)) => return Err("it has every_s and cron; choose one".to_owned()),
            (Some(every), None) if every < EVERY.0 || every > EVERY.1 => {
                return Err("every_s may be 0.1 to 604800 seconds".to_owned());
            }
            (Some(every), None) => Some(Schedule::Every(every)),
            (None, Some(cron)) => Some(Schedule::Cron(
                cron.parse().map_err(|error: crate::core::cron::BadCron| error.to_string())?,
            )),
            (None, None) => None,
        };
        for (name, budget) in [("hour_bytes", self.hour_bytes), ("day_bytes", self.day_bytes)] {
            if budget.is_some_and(|budget| budget < LEAST_BYTES) {
                return Err(format!("{name} may be {LEAST_BYTES} or more; leave it away for no limit"));
            }
        }
        if !(0.0..=1.0).contains(&self.live_share) {
            return Err("live_share may be 0 to 1".to_owned());
        }
        let zone = match &self.zone {
            None => TimeZone::system(),
            Some(name) => TimeZone::get(name).map_err(|_| {
                format!("the zone {name:?} is not known here; write one such as Europe/Berlin or UTC")
            })?,
        };
        let when_gone = match self.when_gone {
            Gone::Wait => WhenGone::Wait,
            Gone::Drop => WhenGone::Drop,
        };
        let (hour_bytes, day_bytes, live_share) = (self.hour_bytes, self.day_bytes, self.live_share);
        Ok(Policy { schedule, zone, hour_bytes, day_bytes, live_share, when_gone })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Result<Policy, String> {
        toml::from_str::<Config>(text).map_err(|error| error.to_string())?.policy()
    }

    #[test]
    fn what_is_written_is_meant() {
        let read =
            policy("cron = \"0 */6 * * *\"\nzone = \"UTC\"\nhour_bytes = 100000\nwhen_gone = \"drop\"")
                .unwrap();
        assert_eq!(read.schedule, Some(Schedule::Cron("0 */6 * * *".parse().unwrap())));
        assert_eq!((read.hour_bytes, read.day_bytes, read.when_gone), (Some(100_000), None, WhenGone::Drop));
        assert_eq!(policy("").unwrap().schedule, None);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, hint) in [
            ("every_s = 5\ncron = \"* * * * *\"", "choose one"),
            ("every_s = 0", "every_s"),
            ("cron = \"often\"", "schedule"),
            ("zone = \"Mars/Olympus\"", "zone"),
            ("hour_bytes = 1", "hour_bytes"),
            ("live_share = 2", "live_share"),
            ("when_gone = \"panic\"", "panic"),
            ("hours_bytes = 1", "hours_bytes"),
        ] {
            let error = policy(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
