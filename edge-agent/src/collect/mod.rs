//! What the agent measures by itself: the machine's figures, and what drivers print.

mod complaints;
pub mod driver;
mod line;
pub mod system;

#[cfg(test)]
pub(crate) use line::parse as parse_line;
