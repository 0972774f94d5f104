//! The hub and the operator's command line.
//!
//! `core/` decides and is pure; `store/` is the only room that names redb; `consume` commits what the core decides and
//! only then speaks; `api/`, `console/` and `cli/` show it. `run` starts and stops everything.

pub mod admit;
pub mod alerts;
pub mod api;
pub mod artifact;
mod attempts;
pub mod backup;
pub mod bench;
pub mod cli;
pub mod clock;
pub mod config;
pub mod console;
pub mod consume;
pub mod core;
pub mod dialect;
pub mod feed;
pub mod hub;
pub mod log;
pub mod metrics;
pub mod mirror;
pub mod node_port;
pub mod notify;
pub mod pki;
pub mod release;
pub mod rollouts;
pub mod run;
pub mod simulate;
pub mod store;
