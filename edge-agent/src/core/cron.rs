//! Times as `cron` writes them: `minute hour day-of-month month day-of-week`.
//!
//! Pure: the zone is an argument. A time that a clock change skips is taken right after it, one that it repeats is taken
//! once.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, ToSpan as _, civil, tz::TimeZone};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// How far ahead a time is looked for: the 29th of February comes every eighth year at the latest.
const YEARS: i16 = 9;

/// A schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    text: Box<str>,
    // A bit for each number that fits.
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    // Both the day of the month and of the week are given: one of them is enough.
    either_day: bool,
}

/// A text that is no such schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no schedule: {why}; write minute hour day month weekday, such as 0 */6 * * 1-5")]
pub struct BadCron {
    text: String,
    why: String,
}

const FIELDS: [(&str, u64, u64); 5] =
    [("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7)];

impl FromStr for Cron {
    type Err = BadCron;

    fn from_str(text: &str) -> Result<Self, BadCron> {
        let wrong = |why: String| BadCron { text: text.chars().take(100).collect(), why };
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        if words.len() != FIELDS.len() || text.len() > 200 {
            return Err(wrong(format!("it has {} fields in place of 5", words.len())));
        }
        let mut bits = [0; FIELDS.len()];
        for ((word, field), bits) in words.iter().zip(FIELDS).zip(&mut bits) {
            *bits = set(word, field).ok_or_else(|| wrong(format!("{word:?} is no {}", field.0)))?;
        }
        let [minutes, hours, days, months, weekdays] = bits;
        // Sunday is 0 and 7.
        let weekdays = (weekdays | weekdays >> 7) & 0x7f;
        let either_day = !words[2].starts_with('*') && !words[4].starts_with('*');
        let cron = Self { text: text.into(), minutes, hours, days, months, weekdays, either_day };
        let start = Timestamp::UNIX_EPOCH;
        cron.after(start, &TimeZone::UTC)
            .map(|_| cron.clone())
            .ok_or_else(|| wrong("there is no such day".to_owned()))
    }
}

/// The numbers of one field: a list of `*`, `n`, `a-b`, each with `/step`.
fn set(word: &str, (_, least, most): (&str, u64, u64)) -> Option<u64> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|number| digits && (least..=most).contains(number))
    };
    let mut bits = 0;
    for part in word.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                (range, step.parse::<u64>().ok().filter(|step| (1..=most).contains(step))?)
            }
            None => (part, 1),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (least, most),
            Some((from, to)) => (number(from)?, number(to)?),
            None if part.contains('/') => (number(range)?, most),
            None => (number(range)?, number(range)?),
        };
        if from > to {
            return None;
        }
        let mut at = from;
        while at <= to {
            bits |= 1 << at;
            at += step;
        }
    }
    Some(bits)
}

impl Cron {
    /// The first time after this one, in a zone's clock.
    #[must_use]
    pub fn after(&self, time: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start = zone.to_datetime(time);
        let last = start.year().saturating_add(YEARS);
        let mut at = start.with().second(0).subsec_nanosecond(0).build().ok()?;
        while at.year() <= last {
            at = if !has(self.months, i64::from(at.month())) {
                at.first_of_month().date().checked_add(1.month()).ok()?.to_datetime(civil::Time::midnight())
            } else if !self.fits_day(at.date()) {
                at.date().tomorrow().ok()?.to_datetime(civil::Time::midnight())
            } else if !has(self.hours, i64::from(at.hour())) {
                at.with().minute(0).build().ok()?.checked_add(1.hour()).ok()?
            } else if !has(self.minutes, i64::from(at.minute())) {
                at.checked_add(1.minute()).ok()?
            } else {
                let found = zone.to_ambiguous_zoned_datetime(at).compatible().ok()?.timestamp();
                if found > time {
                    return Some(found);
                }
                at.checked_add(1.minute()).ok()?
            };
        }
        None
    }

    fn fits_day(&self, date: civil::Date) -> bool {
        let day = has(self.days, i64::from(date.day()));
        let weekday = has(self.weekdays, i64::from(date.weekday().to_sunday_zero_offset()));
        if self.either_day { day || weekday } else { day && weekday }
    }
}

impl Serialize for Cron {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Cron {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn has(bits: u64, number: i64) -> bool {
    u32::try_from(number).is_ok_and(|number| bits.checked_shr(number).unwrap_or(0) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn next(cron: &str, after: &str) -> String {
        let cron: Cron = cron.parse().unwrap();
        cron.after(after.parse().unwrap(), &TimeZone::UTC).unwrap().to_string()
    }

    #[test]
    fn the_next_time_is_found() {
        for (cron, after, expected) in [
            ("* * * * *", "2026-11-29T21:03:23Z", "2026-11-29T21:04:00Z"),
            ("0 * * * *", "2026-11-29T21:00:00Z", "2026-11-29T22:00:00Z"),
            ("*/15 6-8 * * *", "2026-11-29T21:03:23Z", "2026-11-30T06:00:00Z"),
            ("30 4 1,15 * *", "2026-11-29T21:03:23Z", "2026-12-01T04:30:00Z"),
            ("0 0 * * 1-5", "2026-11-27T12:00:00Z", "2026-11-30T00:00:00Z"),
            ("0 0 * * 7", "2026-11-27T12:00:00Z", "2026-11-29T00:00:00Z"),
            ("0 0 13 * 5", "2026-11-28T00:00:00Z", "2026-12-04T00:00:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("59 23 31 12 *", "2026-12-31T23:59:00Z", "2027-12-31T23:59:00Z"),
            ("5/20 * * * *", "2026-11-29T21:26:00Z", "2026-11-29T21:45:00Z"),
        ] {
            assert_eq!(next(cron, after), expected, "{cron}");
        }
    }

    #[test]
    fn a_zone_of_its_own_is_kept() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let cron: Cron = "0 6 * * *".parse().unwrap();
        let found = cron.after("2026-11-29T21:03:23Z".parse().unwrap(), &zone).unwrap();
        assert_eq!(found.to_string(), "2026-11-30T04:00:00Z");
    }

    #[test]
    fn a_skipped_hour_is_made_up_for_and_a_repeated_one_counts_once() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let cron: Cron = "30 2 * * *".parse().unwrap();
        let after = |text: &str| cron.after(text.parse().unwrap(), &zone).unwrap().to_string();
        assert_eq!(after("2026-03-28T12:00:00Z"), "2026-03-29T01:30:00Z");
        assert_eq!(after("2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
        assert_eq!(after("2026-10-25T00:30:00Z"), "2026-10-26T01:30:00Z");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, hint) in [
            ("", "0 fields"),
            ("* * * *", "4 fields"),
            ("60 * * * *", "minute"),
            ("* 24 * * *", "hour"),
            ("* * 0 * *", "day"),
            ("* * * 13 *", "month"),
            ("* * * * 8", "weekday"),
            ("*/0 * * * *", "minute"),
            ("5-1 * * * *", "minute"),
            ("a * * * *", "minute"),
            ("+1 * * * *", "minute"),
            ("0 0 30 2 *", "no such day"),
        ] {
            let error = text.parse::<Cron>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_taken_amiss(text in "[0-9*/,\\- a]{0,30}", at in -1_000_000_000_i64..4_000_000_000) {
            if let Ok(cron) = text.parse::<Cron>() {
                let after = Timestamp::from_second(at).unwrap();
                prop_assert!(cron.after(after, &TimeZone::UTC).is_none_or(|next| next > after));
            }
        }
    }
}
