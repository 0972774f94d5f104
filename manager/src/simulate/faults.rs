//! What goes wrong, and how often: drawn from the seed, step by step.

use rand::{RngExt as _, rngs::StdRng};

use super::net::Weather;
use crate::store::disk::When;

/// How much goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Faults {
    /// Nothing.
    None,
    /// Lost and late messages, cut links, killed processes.
    Light,
    /// Everything: also full disks, wrong clocks, cards set back or copied, hubs restored, nodes moved.
    Heavy,
}

/// One thing that goes wrong now. Indices are drawn modulo what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Weather(Weather),
    Partition { edge: usize, ms: u64 },
    KillAgent { edge: usize, ms: u64 },
    Reboot { edge: usize, ms: u64, loses_clock: bool },
    KillHub { how: super::site::Kill, ms: u64 },
    CardFull { edge: usize, ms: u64 },
    HubFull { ms: u64 },
    EdgeClock { edge: usize, offset_ms: i64 },
    HubClock { offset_ms: i64 },
    TakeImage { edge: usize },
    RestoreImage { edge: usize },
    WipeCard { edge: usize },
    CloneCard { edge: usize },
    BackUpHub,
    RestoreHub,
    MoveNode { edge: usize },
}

const TEN_YEARS_MS: i64 = 315_360_000_000;
const TEN_MONTHS_MS: i64 = TEN_YEARS_MS / 12;

/// Draws what goes wrong in this step, if anything does.
pub(super) fn draw(rng: &mut StdRng, faults: Faults) -> Option<Fault> {
    let often = match faults {
        Faults::None => return None,
        Faults::Light => 0.01,
        Faults::Heavy => 0.03,
    };
    if !rng.random_bool(often) {
        return None;
    }
    let kinds = if faults == Faults::Heavy { 22 } else { 12 };
    let edge = rng.random_range(0..64);
    let ms = rng.random_range(100..20_000);
    Some(match rng.random_range(0..kinds) {
        0..3 => Fault::Weather(weather(rng)),
        3..6 => Fault::Partition { edge, ms: ms * 3 },
        6..8 => Fault::KillAgent { edge, ms },
        8 => Fault::Reboot { edge, ms, loses_clock: faults == Faults::Heavy && rng.random_bool(0.3) },
        9..12 => Fault::KillHub { how: kill(rng), ms },
        12 => Fault::CardFull { edge, ms },
        13 => Fault::HubFull { ms },
        14 => {
            let offset_ms = [0, TEN_YEARS_MS, -TEN_YEARS_MS][rng.random_range(0..3)];
            Fault::EdgeClock { edge, offset_ms }
        }
        // A hub that starts with the one follows it, with the other it does not.
        15 => Fault::HubClock { offset_ms: [0, TEN_MONTHS_MS, -TEN_YEARS_MS][rng.random_range(0..3)] },
        16 => Fault::TakeImage { edge },
        17 if rng.random_bool(0.3) => Fault::WipeCard { edge },
        17 => Fault::RestoreImage { edge },
        18 => Fault::CloneCard { edge },
        19 => Fault::BackUpHub,
        20 => Fault::RestoreHub,
        _ => Fault::MoveNode { edge },
    })
}

fn weather(rng: &mut StdRng) -> Weather {
    if rng.random_bool(0.3) {
        return Weather::CALM;
    }
    Weather {
        lose: rng.random_range(0..150),
        double: rng.random_range(0..100),
        delay_ms: rng.random_range(0..3_000),
    }
}

fn kill(rng: &mut StdRng) -> super::site::Kill {
    use super::site::Kill;
    match rng.random_range(0..4) {
        0 => Kill::Idle,
        1 => Kill::AfterCommit,
        2 => Kill::AtSync(rng.random_range(1..4), When::Before),
        _ => Kill::AtSync(rng.random_range(1..4), When::After),
    }
}
