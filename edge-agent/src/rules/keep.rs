//! Where rules stand, on disk: `rules.state` in the data folder, replaced as a whole.
//!
//! CBOR of [`Kept`]. A file that cannot be read costs a second telling of what fires, so it is left behind.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use fleet_schemas::cbor;
use tracing::warn;

use crate::core::rules::Kept;

const NAME: &str = "rules.state";
/// Largest file that is read: 1,000 devices with 256 rules each stay below it.
const BYTES: u64 = 16 * 1024 * 1024;

pub(super) fn read(folder: &Path) -> Kept {
    let path = folder.join(NAME);
    if fs::metadata(&path).is_ok_and(|found| found.len() > BYTES) {
        return Kept::default();
    }
    let Ok(bytes) = fs::read(&path) else { return Kept::default() };
    cbor::decode(&bytes).unwrap_or_else(|error| {
        warn!(%error, "where rules stood cannot be read; what fires is told again");
        Kept::default()
    })
}

pub(super) fn write(folder: &Path, kept: &Kept) -> io::Result<()> {
    let (path, part) = (folder.join(NAME), folder.join("rules.state.part"));
    let mut file = File::create(&part)?;
    file.write_all(&cbor::encode(kept))?;
    file.sync_all()?;
    fs::rename(part, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_rubbish_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()), Kept::default());
        let device = fleet_schemas::DeviceId::parse("d").unwrap();
        let kept = Kept { devices: vec![device], states: Vec::new() };
        write(folder.path(), &kept).unwrap();
        assert_eq!(read(folder.path()), kept);
        fs::write(folder.path().join(NAME), b"rubbish").unwrap();
        assert_eq!(read(folder.path()), Kept::default());
    }
}
