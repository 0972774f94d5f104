//! What the hub tells Prometheus: a catalogue of every metric, and the exporter that renders it.
//!
//! Owns names and forms; [`exporter::Scrape`] is filled from the hub's own counters at every scrape. Nothing is
//! installed globally: several hubs may live in one process.

pub mod catalogue;
pub mod exporter;
mod hub;
pub mod process;
#[cfg(test)]
mod shipped;

pub use exporter::{Exporter, Scrape};
pub use hub::{observer, scrape, terms};
