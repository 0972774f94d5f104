//! The JSON of the HTTP API, as the hub writes it and the CLI reads it.
//!
//! Owns field names only, one room per resource. Holds no logic; times are Unix milliseconds, lists are `{items, next}`.

mod access;
mod account;
mod alert;
mod commands;
pub mod config;
mod nodes;
mod records;
mod releases;
mod rollouts;

use serde::{Deserialize, Serialize};

pub use access::*;
pub use account::*;
pub use alert::*;
pub use commands::*;
pub use nodes::*;
pub use records::*;
pub use releases::*;
pub use rollouts::*;

/// One page of a list; `next` is the cursor of the following page, absent on the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Hand it back as `cursor`.
    pub next: Option<String>,
}

/// How much the hub logs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct LogLevel {
    /// A word, or words by module.
    pub level: String,
    /// The same when it started: what it is after the next start.
    pub at_start: String,
}

/// A problem (RFC 9457).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Problem {
    /// A stable word: `about:blank` or `urn:clawland:fleet:…`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The status in words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong and what to do.
    #[serde(default)]
    pub detail: String,
    /// Which members of the input are wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
    /// The revision that counts, where another was expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

/// One wrong member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub struct Fault {
    /// JSON pointer (RFC 6901) into the body, or `?name` for a query parameter.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}
