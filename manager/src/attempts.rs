//! Failed attempts to show a token (an operator's or a join token), by address: what slows a guesser's requests and
//! keeps the log short. Pure.
//!
//! A good token is never refused here: many operators may share one address with somebody who guesses, and 256 random
//! bits are not found by guessing however fast.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

/// Failed attempts that an address has at once.
const BURST: u32 = 20;
/// How soon it has one more.
const REFILL: Duration = Duration::from_secs(3);
/// Addresses remembered; the one that was quiet the longest is forgotten first.
const ADDRESSES: usize = 4_096;

/// What every address has left.
#[derive(Debug, Default)]
pub(crate) struct Attempts(BTreeMap<IpAddr, Bucket>);

#[derive(Debug)]
struct Bucket {
    // The time by which the bucket is full again.
    full_at: Duration,
    seen: Duration,
}

/// What a failed attempt is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The reason; worth a line in the log when it is the first in a while.
    Told {
        /// Whether it is.
        first: bool,
    },
    /// Come back later.
    TooMany {
        /// When, in whole seconds.
        retry_s: u64,
    },
}

impl Attempts {
    /// Counts a failed attempt.
    pub(crate) fn fail(&mut self, from: IpAddr, now: Duration) -> Failed {
        let from = network(from);
        if !self.0.contains_key(&from) && self.0.len() >= ADDRESSES {
            self.0.retain(|_, bucket| bucket.full_at > now);
            let quiet = self.0.iter().min_by_key(|(_, bucket)| bucket.seen).map(|(from, _)| *from);
            if let Some(quiet) = quiet.filter(|_| self.0.len() >= ADDRESSES) {
                self.0.remove(&quiet);
            }
        }
        let bucket = self.0.entry(from).or_insert(Bucket { full_at: now, seen: now });
        bucket.seen = now;
        let first = bucket.full_at <= now;
        let full_at = bucket.full_at.max(now) + REFILL;
        let over = full_at.saturating_sub(now + REFILL * BURST);
        if !over.is_zero() {
            return Failed::TooMany { retry_s: over.as_secs().max(1) };
        }
        bucket.full_at = full_at;
        Failed::Told { first }
    }
}

/// The network that one customer has: an IPv4 address, a /64 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1_000 + seconds)
    }

    #[test]
    fn a_guesser_is_slowed_and_forgiven() {
        let mut attempts = Attempts::default();
        let from: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(attempts.fail(from, at(0)), Failed::Told { first: true });
        for _ in 1..BURST {
            assert_eq!(attempts.fail(from, at(0)), Failed::Told { first: false });
        }
        assert_eq!(attempts.fail(from, at(0)), Failed::TooMany { retry_s: 3 });
        assert_eq!(attempts.fail("192.0.2.2".parse().unwrap(), at(0)), Failed::Told { first: true });
        assert_eq!(attempts.fail(from, at(3)), Failed::Told { first: false });
        assert_eq!(attempts.fail(from, at(3)), Failed::TooMany { retry_s: 3 });
        assert_eq!(attempts.fail(from, at(100)), Failed::Told { first: true });
    }

    #[test]
    fn a_network_of_ipv6_is_one_and_the_memory_is_bounded() {
        let mut attempts = Attempts::default();
        for host in 0..u64::from(BURST) {
            let address = IpAddr::V6(Ipv6Addr::from((0x2001_0db8_u128 << 96) | u128::from(host)));
            attempts.fail(address, at(0));
        }
        assert_eq!(attempts.fail("2001:db8::ffff".parse().unwrap(), at(0)), Failed::TooMany { retry_s: 3 });
        for n in 0..10_000_u32 {
            attempts.fail(IpAddr::V4(n.into()), at(1));
        }
        assert_eq!(attempts.0.len(), ADDRESSES);
    }
}
