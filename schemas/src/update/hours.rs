//! Times of day, as windows have them: `22:00-04:00`. What the wall clock shows counts.
//!
//! On the day on which a zone's clocks go forward, hours that do not exist are no hours: a window that lies within the
//! gap does not open on that day. When they go back, what comes twice is open twice.

const MINUTES_PER_DAY: u16 = 24 * 60;

/// Times of day; the end may lie on the next day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    from: u16,
    to: u16,
}

impl Hours {
    /// Reads them; `None` for what is no such text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (from, to) = text.split_once('-')?;
        let (from, to) = (minute(from)?, minute(to)?);
        Some(Self { from, to })
    }

    /// Whether a minute of the day is within. Two equal times are the whole day.
    #[must_use]
    pub fn contains(self, minute: u16) -> bool {
        let Self { from, to } = self;
        if from < to { (from..to).contains(&minute) } else { minute >= from || minute < to }
    }

    /// The minute of the day at which they begin; 1440 for `24:00`.
    #[must_use]
    pub fn begin(self) -> u16 {
        self.from
    }
}

fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let sound = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !sound(hours) || !sound(minutes) {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    let whole = hours * 60 + minutes;
    (minutes < 60 && whole <= MINUTES_PER_DAY).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_may_cross_midnight() {
        let night = Hours::parse("22:00-04:00").unwrap();
        let within = |hours: Hours, text| hours.contains(minute(text).unwrap());
        assert!(within(night, "22:00") && within(night, "03:59") && within(night, "00:00"));
        assert!(!within(night, "04:00") && !within(night, "21:59"));
        let day = Hours::parse("08:30-09:00").unwrap();
        assert!(within(day, "08:30") && !within(day, "09:00"));
        assert!(within(Hours::parse("05:00-05:00").unwrap(), "12:00"));
        for bad in ["", "22-04", "22:00", "25:00-01:00", "1:00-2:00", "10:60-11:00", "a:b-c:d"] {
            assert_eq!(Hours::parse(bad), None, "{bad}");
        }
    }
}
