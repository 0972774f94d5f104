//! Keeps the log readable: what is wrong is said once per reason and minute, and programs get a ration of lines.

use std::{collections::HashMap, time::Duration};

/// How long a reason stays quiet after it was logged.
const QUIET: Duration = Duration::from_secs(60);

/// What was complained about lately. Reasons are words of ours, so there are few.
#[derive(Debug, Default)]
pub(crate) struct Complaints(HashMap<&'static str, Quiet>);

#[derive(Debug)]
struct Quiet {
    until: Duration,
    unsaid: u64,
}

impl Complaints {
    /// Whether to log now; then, how many of the same reason went unsaid before.
    pub(crate) fn due(&mut self, reason: &'static str, up: Duration) -> Option<u64> {
        let quiet = self.0.entry(reason).or_insert(Quiet { until: Duration::ZERO, unsaid: 0 });
        if up < quiet.until {
            quiet.unsaid += 1;
            return None;
        }
        quiet.until = up + QUIET;
        Some(std::mem::take(&mut quiet.unsaid))
    }
}

/// Lines that a program may put into our log in a minute.
const LINES: u32 = 60;

/// Passes what a program says on, but not so much that it drowns the log.
#[derive(Debug, Default)]
pub(crate) struct Chatter {
    said: u32,
    until: Duration,
}

impl Chatter {
    /// Whether one more line may be logged.
    pub(crate) fn may(&mut self, up: Duration) -> bool {
        if up >= self.until {
            *self = Self { said: 0, until: up + QUIET };
        }
        self.said += 1;
        self.said <= LINES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_complains_without_end_is_cut_short() {
        let mut chatter = Chatter::default();
        let mut said = |at| (0..1_000).filter(|_| chatter.may(Duration::from_secs(at))).count();
        assert_eq!([said(5), said(6), said(65)], [60, 0, 60]);
    }

    #[test]
    fn a_reason_is_said_once_a_minute() {
        let mut complaints = Complaints::default();
        let at = Duration::from_secs;
        assert_eq!(complaints.due("json", at(1)), Some(0));
        assert_eq!(complaints.due("json", at(2)), None);
        assert_eq!(complaints.due("long", at(2)), Some(0));
        assert_eq!(complaints.due("json", at(60)), None);
        assert_eq!(complaints.due("json", at(61)), Some(2));
    }
}
