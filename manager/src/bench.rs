//! `fleet bench`: load generators that measure a hub and an agent from outside, on real sockets and files.
//!
//! Runs in a process of its own, starts what it measures as child processes in a temporary folder, is bounded in count
//! and time, and stays on the loopback address. Judges nothing by itself: figures carry their targets.

pub mod agent;
mod certificates;
mod child;
pub mod commands;
pub mod console;
mod data;
pub mod event;
pub mod fan_in;
pub mod flash;
pub mod ingest;
mod node;
mod proc;
pub mod sessions;
mod stream;
mod wire;

use std::{io, path::PathBuf};

use hdrhistogram::Histogram;
use serde::Serialize;

/// What a benchmark found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Which benchmark.
    pub bench: &'static str,
    /// Its figures, in the order in which they are shown.
    pub figures: Vec<Figure>,
    /// What a reader of the figures must know.
    pub notes: Vec<String>,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What it should be, if somebody promised something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Not less.
    AtLeast(f64),
    /// Not more.
    AtMost(f64),
}

/// A benchmark could not be run. The text fits after "failed to measure: ".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of the system.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program that is to be measured is not there.
    #[error("{0} is not there; build it (cargo build --release) and leave it beside `fleet`")]
    Missing(PathBuf),
    /// It did not come up, or went down.
    #[error("{0}")]
    Child(String),
    /// HTTP did not go through.
    #[error("ask over HTTP: {0}")]
    Http(#[from] reqwest::Error),
    /// An answer that was not expected.
    #[error("{0}")]
    Answer(String),
    /// There are no certificates for the load.
    #[error("make certificates: {0}")]
    Certificate(String),
    /// A session broke.
    #[error("session of {node}: {why}")]
    Session {
        /// Whose.
        node: String,
        /// Why.
        why: String,
    },
    /// It did not end in its time.
    #[error("{0} took longer than its time; the machine is too busy, or the hub hangs")]
    Late(&'static str),
}

impl Error {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl Report {
    fn new(bench: &'static str) -> Self {
        Self { bench, figures: Vec::new(), notes: Vec::new() }
    }

    fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.figures.push(Figure { name: name.into(), value, unit, target: None });
    }

    fn judge(&mut self, name: impl Into<String>, value: f64, unit: &'static str, target: Target) {
        self.figures.push(Figure { name: name.into(), value, unit, target: Some(target) });
    }

    fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// A figure by its name.
    #[must_use]
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
    }

    /// Whether every figure with a target meets it.
    #[must_use]
    pub fn met(&self) -> bool {
        self.figures.iter().all(|figure| figure.met() != Some(false))
    }
}

impl Figure {
    /// Whether the target is met; `None` without a target.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        self.target.map(|target| match target {
            Target::AtLeast(least) => self.value >= least,
            Target::AtMost(most) => self.value <= most,
        })
    }
}

/// Latencies in microseconds, up to a minute.
fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are in order")
}

fn note_latency(latencies: &mut Histogram<u64>, took: std::time::Duration) {
    latencies.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
}

/// A quantile in milliseconds.
fn quantile_ms(latencies: &Histogram<u64>, quantile: f64) -> f64 {
    latencies.value_at_quantile(quantile) as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_met_when_every_promise_is_kept() {
        let mut report = Report::new("x");
        report.add("free", 1.0, "s");
        report.judge("rate", 5.0, "1/s", Target::AtLeast(5.0));
        assert!(report.met());
        report.judge("delay", 5.1, "ms", Target::AtMost(5.0));
        assert_eq!(
            report.figures.iter().map(Figure::met).collect::<Vec<_>>(),
            [None, Some(true), Some(false)]
        );
        assert!(!report.met());
    }
}
