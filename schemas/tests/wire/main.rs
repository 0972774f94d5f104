//! The wire formats, held from outside the crate: what the encoder writes against `fleet.cddl`, golden bytes,
//! readers and writers of different age, limits.

mod cddl;
mod given;
mod golden;
mod limits;
mod newer;
mod vary;
