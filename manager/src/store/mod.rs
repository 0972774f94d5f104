//! The hub's durable state. The only room of the manager that names redb.

pub mod disk;
pub mod log;
pub mod moment;
pub mod state;
pub mod telemetry;
pub mod upgrade;
