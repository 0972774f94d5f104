//! What the gate claims of MQTT 3.1.1 and 5, over real sockets: the statements of the standards, and the matrix of who
//! may do what.
//!
//! Written from the standards; a test names the statements it is about by their numbers in Appendix B. What is not
//! claimed (QoS 2, kept sessions, shared subscriptions, topic aliases, extended authentication, WebSockets) is refused
//! by the standards' codes, and that is tried here too.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod client;
mod hub;
#[path = "../matrix/mod.rs"]
mod matrix;
mod packets;
mod publishes;
mod retained;
mod sessions;
mod subscriptions;
