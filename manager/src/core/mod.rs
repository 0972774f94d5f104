//! What the hub decides, as values: the ledger, presence, the registry. Reads no clock, touches no store, bus or
//! socket; the consumer around it commits what is decided here and only then speaks.

pub mod alert;
pub mod audit;
pub mod bounds;
pub mod command;
pub mod config;
pub mod devices;
pub mod disk;
pub mod fleet;
pub mod identity;
pub mod intake;
pub mod ledger;
pub mod mark;
pub mod presence;
pub mod registry;
pub mod restored;
pub mod rollout;
pub mod selector;
pub mod time;
pub mod twins;
pub mod why;
pub mod zones;

pub use time::Now;
