//! The hub and agents as processes of their own, on real sockets and real disks: killed, starved, set back, lied to.
//!
//! What is compared in the end are records: each that was accepted against each that is stored.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[cfg(all(target_env = "gnu", target_pointer_width = "64"))]
mod allocator;
mod backup;
mod bad_input;
mod commands;
mod compare;
mod devices;
mod full_backup;
mod full_disk;
mod full_outbox;
mod generator;
mod given;
mod kill;
mod lifecycle;
mod load;
mod releases;
mod restore;
