//! The gate's door over real sockets: TLS and who it lets in, limits against abuse, and packets that break the rules.
//!
//! Every wait is for a condition with a deadline; nothing sleeps and hopes.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::{
    thread,
    time::{Duration, Instant},
};

use fleet_broker::{Link, Message};

#[path = "../common/pki.rs"]
mod pki;
#[path = "../common/wire.rs"]
mod wire;

mod bent;
mod corpus;
mod judge;
mod limits;
mod tls;

#[expect(clippy::disallowed_methods, reason = "tests have deadlines")]
fn now() -> Instant {
    Instant::now()
}

/// Waits for a condition, at most half a minute.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = now() + Duration::from_secs(30);
    while !holds() {
        assert!(now() < deadline, "never: {what}");
        thread::yield_now();
    }
}

/// Receives and takes messages until there are `count`.
#[track_caller]
fn receive(link: &mut Link, count: usize) -> Vec<Message> {
    let mut messages = vec![];
    let deadline = now() + Duration::from_secs(30);
    while messages.len() < count {
        let n = link.recv(&mut messages, 4_096, Duration::from_millis(200)).unwrap();
        let at = messages.len() - n;
        link.taken(&messages[at..]);
        assert!(now() < deadline, "{} of {count} messages came", messages.len());
    }
    messages
}
