//! The wire formats, held from outside the crate: what the encoder writes against `fleet.cddl`, golden bytes,
//! readers and writers of different age, limits.
#![expect(clippy::unwrap_used, reason = "functions of a test may fail it")]

mod cddl;
mod given;
mod golden;
mod limits;
mod newer;
mod vary;
