//! The words a hub and its agents speak: ids, topics, payloads, limits and the arithmetic of the ledger.
//!
//! Owns every topic literal and every wire format of the workspace (`fleet.cddl` is their description).
//! Must not do IO, read a clock, draw randomness or be async: everything here is a value or a pure function.

pub mod ack;
pub mod batch;
pub mod cbor;
pub mod event;
pub mod id;
pub mod lane;
pub mod limits;
pub mod session;
pub mod telemetry;
pub mod topic;

pub use id::{DeviceId, MetricName, NodeId, SessionId, StoreId, StreamId};
pub use lane::Lane;
pub use topic::Topic;

/// The newest payload version this build writes and reads (`v` in every payload).
pub const VERSION: u16 = 1;
