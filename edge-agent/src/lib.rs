//! The agent: everything that is accepted at the edge reaches the hub once, or is accounted for.
//!
//! `core/` decides and is pure; `store/` is the only room that names redb (`outbox/file` hands it its file); `uplink`
//! joins the two and is what the simulator runs. Everything else is the shell that moves bytes and time in and out.

mod address;
pub mod api;
pub mod clock;
pub mod collect;
pub mod commands;
pub mod config;
pub mod core;
pub mod desired;
pub mod devices;
mod exec;
mod fetch;
pub mod identity;
pub mod launch;
pub mod log;
pub mod logs;
pub mod metrics;
pub mod mqtt;
pub mod outbox;
mod role;
pub mod rules;
pub mod run;
mod stop;
pub mod store;
mod supervised;
pub mod update;
pub mod uplink;
pub mod upload;
