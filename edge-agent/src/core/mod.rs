//! What the agent decides, as values: windows, credit, eviction. Reads no clock, touches no disk or socket.

pub mod lanes;
pub mod now;
pub mod renewal;
pub mod share;

pub use now::Now;
