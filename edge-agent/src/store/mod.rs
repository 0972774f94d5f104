//! The agent's disk: the only room that names redb.

pub mod commands;
mod config;
mod devices;
mod fresh;
pub mod outbox;
pub mod rows;
pub mod sim_disk;
pub mod update;
