//! The demo comes signed: at its first start it makes the keys of its releases, without a passphrase, in its own folder.
//!
//! For playing only: a real fleet keeps these keys off the hub (`fleet release init`).

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use crate::{
    cli::RELEASE_KEYS,
    hub::Hub,
    release::{Error, Key, Signers, make},
};

/// Why the demo's releases have no keys.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The folder of the keys.
    #[error("the keys of the demo's releases cannot be kept: {0}")]
    Folder(#[from] io::Error),
    /// The releases.
    #[error("the demo's releases: {0}")]
    Releases(#[from] Error),
}

/// Makes the keys and signs that there are no releases yet; does nothing when that was done.
pub(super) fn init(hub: &Hub, data: &Path) -> Result<(), SignError> {
    let Some(releases) = hub.releases().filter(|releases| releases.first_root().is_none()) else {
        return Ok(());
    };
    let folder = data.join(RELEASE_KEYS);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let (root, targets) = (key(&folder.join("root.pem"))?, key(&folder.join("targets.pem"))?);
    let (snapshot, timestamp) = releases.online_keys();
    let signers = Signers { root: vec![root.public()], targets: vec![targets.public()], snapshot, timestamp };
    let now_ms = hub.clock().now().wall_ms;
    let first = make::root(1, &signers, now_ms).and_then(|made| make::sign(made, &[&root]));
    let first = first.map_err(Error::from)?;
    let nothing = make::targets(1, &BTreeMap::new(), now_ms).and_then(|made| make::sign(made, &[&targets]));
    releases.publish(Some(&first), Some(&nothing.map_err(Error::from)?))?;
    Ok(fs::write(folder.join("1.root.json"), first)?)
}

/// The key in a file; a new one where there is none.
fn key(path: &Path) -> Result<Key, SignError> {
    match fs::read_to_string(path) {
        Ok(pem) => return Ok(Key::read(&pem, None).map_err(Error::from)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let key = Key::generate().map_err(Error::from)?;
    let pem = key.to_pem("").map_err(Error::from)?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()?;
    Ok(key)
}
