//! Who gets in, over real sockets: joining, renewing, being shut out, and keys that change meanwhile.
//!
//! A whole hub runs, in this process or in one of its own; what speaks to it is written here from the specifications
//! (TLS by rustls, HTTP/1.1 and MQTT 5 by hand), so that it may misbehave.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod field;
mod first_start;
mod given;
mod join;
mod keys;
mod rollouts;
mod sessions;
mod tools;
mod updates;
