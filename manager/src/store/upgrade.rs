//! The formats of all files of a data folder, brought to today's without a hub, or back.

use super::{
    disk::{
        Disk, DiskError, Open,
        migrate::{self, Progress},
    },
    state, telemetry,
};

/// What became of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The file.
    pub name: String,
    /// The format that it has now.
    pub format: u32,
    /// Whether that changed.
    pub changed: bool,
}

/// Every redb file that is there, with how it is opened. The state comes first.
fn files(disk: &dyn Disk) -> Result<Vec<(String, Open)>, DiskError> {
    let mut files = vec![(state::FILE.to_owned(), state::how())];
    files.extend(telemetry::formats(disk)?);
    files.retain(|(name, _)| disk.size(name) > 0);
    Ok(files)
}

/// Brings every file to the format of this build. `told` hears of every step.
///
/// # Errors
/// [`DiskError`]: the next call goes on.
pub fn upgrade(disk: &dyn Disk, told: &mut dyn FnMut(&Progress)) -> Result<Vec<Outcome>, DiskError> {
    let mut outcomes = Vec::new();
    for (name, how) in files(disk)? {
        let mut changed = false;
        migrate::migrate(disk, &name, how, &mut |progress| {
            changed |= progress.format < progress.to;
            told(progress);
        })?;
        outcomes.push(Outcome { name, format: how.format, changed });
    }
    Ok(outcomes)
}

/// Puts the copies of before the upgrade back: all of them, or none.
///
/// # Errors
/// [`DiskError::Touched`] when a hub has written anything since: nothing was changed.
pub fn back(disk: &dyn Disk) -> Result<Vec<Outcome>, DiskError> {
    let files = files(disk)?;
    for (name, how) in &files {
        migrate::may_go_back(disk, name, *how)?;
    }
    let mut outcomes = Vec::new();
    for (name, how) in files {
        let format = migrate::way_back(disk, &name, how)?;
        outcomes.push(Outcome { name, format: format.unwrap_or(how.format), changed: format.is_some() });
    }
    Ok(outcomes)
}
