//! The words a hub and its agents speak: ids, topics, payloads, limits and the arithmetic of the ledger.
//!
//! Owns every topic literal and every wire format of the workspace (`fleet.cddl` is their description).
//! Must not do IO, read a clock, draw randomness or be async: everything here is a value or a pure function.
//!
//! # For other programs
//! `fleet.cddl` is the grammar of every CBOR payload (RFC 8610), `asyncapi.yaml` the list of topics, `golden/` an
//! example of each payload in bytes, with the samples of telemetry as JSON beside it. [`telemetry`] shows a reader
//! in Python.
//!
//! # Changing a format
//! A key may be added when an older reader can do without it: it is ignored there. Anything else is a new
//! [`VERSION`], because sealed batches of the old one are still in outboxes and inboxes. The tests hold the encoder
//! to the grammar and to the golden bytes; `FLEET_BLESS=1 cargo test -p fleet-schemas golden` writes those anew.

pub mod ack;
pub mod batch;
pub mod cbor;
pub mod command;
pub mod config;
pub mod device;
pub mod enrol;
pub mod event;
pub mod id;
pub mod lane;
pub mod limits;
pub mod rule;
pub mod session;
pub mod telemetry;
pub mod topic;
pub mod unit;
pub mod update;

pub use id::{CommandId, DeviceId, MetricName, NodeId, SessionId, StoreId, StreamId};
pub use lane::Lane;
pub use topic::Topic;

/// The newest payload version this build writes and reads (`v` in every payload).
pub const VERSION: u16 = 1;
