//! Who the node is to its hub: key, certificate, whom it trusts, and how it comes to them.
//!
//! The only room that makes keys, judges the hub's certificate and changes the folder `identity/`. A node that has not
//! joined has none of it.

pub mod certificate;
pub mod first;
pub mod folder;
pub mod https;
pub mod join;
pub mod live;
pub(crate) mod moving;
pub mod record;
pub mod trust;
pub(crate) mod upkeep;

#[cfg(test)]
mod given;
