//! Two instances with one identity: each new session ends the other's, and without a rule they would do so for ever.
//!
//! Owns the rule, and what is remembered for it of nodes that were taken over lately. Pure.
//!
//! A node that roams or restarts takes its own session over now and then and is never delayed. After more than
//! [`FREE`] takeovers within [`WINDOW`], the next has to come [`HOLD_MIN`] after the last one, and each that is let in
//! doubles that up to [`HOLD_MAX`]; [`QUIET`] without an attempt ends it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use fleet_schemas::NodeId;

/// Nodes that were taken over lately.
#[derive(Debug, Default)]
pub(crate) struct Rivals {
    nodes: HashMap<NodeId, Rivalry>,
    swept_len: usize,
}

#[derive(Debug)]
struct Rivalry {
    /// Times of the takeovers within the window, until there are too many.
    recent: Vec<Instant>,
    last: Instant,
    attempt: Instant,
    hold: Duration,
}

/// Takeovers that are nobody's business.
pub(crate) const FREE: usize = 4;
/// Within this time.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// First distance of further ones.
pub(crate) const HOLD_MIN: Duration = Duration::from_secs(4);
/// Longest distance.
pub(crate) const HOLD_MAX: Duration = Duration::from_secs(60);
/// Without an attempt for so long, all is forgotten. An instance that is refused tries again sooner.
pub(crate) const QUIET: Duration = Duration::from_secs(180);
/// Below so many entries nobody looks for old ones.
const SWEEP_ABOVE: usize = 256;

impl Rivals {
    /// A node that has a session opens another: whether it may.
    pub(crate) fn take_over(&mut self, node: &NodeId, now: Instant) -> bool {
        self.sweep(now);
        let rivalry = self.nodes.entry(node.clone()).or_insert_with(|| Rivalry::new(now));
        if rivalry.quiet(now) {
            *rivalry = Rivalry::new(now);
        }
        rivalry.take_over(now)
    }

    fn sweep(&mut self, now: Instant) {
        if self.nodes.len() > SWEEP_ABOVE + 2 * self.swept_len {
            self.nodes.retain(|_, rivalry| !rivalry.quiet(now));
            self.swept_len = self.nodes.len();
        }
    }
}

impl Rivalry {
    fn new(now: Instant) -> Self {
        Self { recent: Vec::new(), last: now, attempt: now, hold: Duration::ZERO }
    }

    fn quiet(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.attempt) > QUIET
    }

    fn take_over(&mut self, now: Instant) -> bool {
        self.attempt = now;
        if !self.hold.is_zero() {
            if now < self.last + self.hold {
                return false;
            }
            self.hold = (self.hold * 2).min(HOLD_MAX);
        } else {
            self.recent.retain(|at| now.saturating_duration_since(*at) < WINDOW);
            self.recent.push(now);
            if self.recent.len() > FREE {
                self.recent = Vec::new();
                self.hold = HOLD_MIN;
            }
        }
        self.last = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const SECOND: Duration = Duration::from_secs(1);

    fn node(n: usize) -> NodeId {
        NodeId::parse(&format!("edge-{n}")).unwrap()
    }

    #[test]
    fn two_instances_that_try_every_second_end_each_other_once_a_minute() {
        let (mut rivals, start) = (Rivals::default(), clock::now());
        let let_in: Vec<u32> = (0..600).filter(|s| rivals.take_over(&node(1), start + *s * SECOND)).collect();
        assert_eq!(let_in[..10], [0, 1, 2, 3, 4, 8, 16, 32, 64, 124]);
        assert!(let_in[9..].windows(2).all(|pair| pair[1] - pair[0] == 60));
    }

    #[test]
    fn a_node_that_roams_is_never_delayed_and_after_a_quiet_time_all_is_forgotten() {
        let (mut rivals, start) = (Rivals::default(), clock::now());
        for n in 0..100 {
            assert!(rivals.take_over(&node(1), start + n * 16 * SECOND), "at {n}");
        }
        let start = start + 5_000 * SECOND;
        for _ in 0..=FREE {
            assert!(rivals.take_over(&node(1), start));
        }
        assert!(!rivals.take_over(&node(1), start + SECOND));
        assert!(rivals.take_over(&node(2), start + SECOND), "others are not concerned");
        assert!((0..=FREE).all(|_| rivals.take_over(&node(1), start + QUIET + 2 * SECOND)));
    }

    #[test]
    fn what_is_remembered_is_bounded_by_what_is_recent() {
        let (mut rivals, start) = (Rivals::default(), clock::now());
        for n in 0..10_000 {
            rivals.take_over(&node(n), start + u32::try_from(n).unwrap() * SECOND);
        }
        assert!(rivals.nodes.len() <= SWEEP_ABOVE + 3 * 181, "{}", rivals.nodes.len());
    }
}
