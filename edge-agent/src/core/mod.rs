//! What the agent decides, as values: windows, credit, eviction, the devices, the command
//! queues, the configuration it follows, updates, which of its releases runs. Reads no clock, touches no disk or socket.

pub mod config;
pub mod cron;
pub mod devices;
pub mod hooks;
pub mod lanes;
pub mod launch;
pub mod now;
pub mod queue;
pub mod renewal;
pub mod rules;
pub mod share;
pub mod tuf;
pub mod update;
pub mod upload;

pub use now::Now;
