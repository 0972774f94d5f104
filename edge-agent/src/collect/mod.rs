//! What the agent measures by itself: the machine's figures, and what drivers print, files hold
//! and local exporters show.

mod complaints;
pub mod driver;
mod exposition;
pub mod file;
mod line;
mod rounds;
pub mod scrape;
pub mod system;

pub(crate) use rounds::Surroundings;

#[cfg(test)]
pub(crate) use line::parse as parse_line;
