//! Secrets of nodes on the plain listener, and the local tool's password.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    sync::{Mutex, PoisonError, RwLock, mpsc},
    thread::{self, JoinHandle},
};

use fleet_broker::Refusal;
use fleet_schemas::NodeId;
use sha2::{Digest as _, Sha256};

use super::{OpenError, TOOL, same};
use crate::{clock, consume::Shared, core::identity::Hash, pki::file};

/// Secrets that may wait to be written.
const WAITING: usize = 16_384;

/// What nodes brought the first time they came.
pub(super) struct Secrets {
    known: RwLock<BTreeMap<NodeId, Hash>>,
    // None once it is closed.
    learned: Mutex<Option<mpsc::SyncSender<(NodeId, Hash)>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Secrets {
    /// Reads them. New ones are written by a thread of their own, so that admission never waits for a disk.
    pub(super) fn open(shared: Shared) -> Result<Self, OpenError> {
        let known = shared.state().secrets()?.into_iter().collect();
        let (learned, writes) = mpsc::sync_channel::<(NodeId, Hash)>(WAITING);
        let writer = thread::Builder::new().name("secrets".to_owned()).spawn(move || {
            while let Ok(first) = writes.recv() {
                // All that wait in one transaction: a whole fleet may come at once.
                let secrets: Vec<_> = std::iter::once(first).chain(writes.try_iter().take(WAITING)).collect();
                if let Err(error) = shared.state().put_secrets(&secrets) {
                    // Held in memory; after a restart the nodes are trusted on first use again.
                    tracing::error!(nodes = secrets.len(), %error, "failed to keep the secrets of nodes");
                }
            }
        })?;
        let (learned, writer) = (Mutex::new(Some(learned)), Mutex::new(Some(writer)));
        Ok(Self { known: RwLock::new(known), learned, writer })
    }

    /// Waits until everything is written, and learns nothing from then on.
    pub(super) fn close(&self) {
        drop(self.learned.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the thread that keeps the secrets of nodes had panicked");
        }
    }

    /// Holds a node to its secret; one that has none yet is bound to this one if it may be.
    pub(super) fn admit(&self, node: &NodeId, secret: &[u8], may_bind: bool) -> Result<(), Refusal> {
        let hash: Hash = Sha256::digest(secret).into();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(node).copied();
        match known {
            Some(known) if same(&hash, &known) => Ok(()),
            Some(_) => Err(Refusal::BadCredentials),
            None if !may_bind => Err(Refusal::BadCredentials),
            None => {
                let mut secrets = self.known.write().unwrap_or_else(PoisonError::into_inner);
                let known = *secrets.entry(node.clone()).or_insert(hash);
                if !same(&hash, &known) {
                    return Err(Refusal::BadCredentials);
                }
                let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
                let told =
                    learned.as_ref().is_some_and(|learned| learned.try_send((node.clone(), hash)).is_ok());
                if !told {
                    secrets.remove(node);
                    return Err(Refusal::Unavailable);
                }
                Ok(())
            }
        }
    }
}

/// Reads the local tool's password, or makes it.
pub(super) fn tool_password(path: &Path) -> io::Result<Hash> {
    let password = match fs::read_to_string(path) {
        Ok(text) => text.lines().nth(1).unwrap_or_default().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let password: String = clock::random::<16>().iter().map(|byte| format!("{byte:02x}")).collect();
            if let Some(folder) = path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            }
            file::replace(path, format!("{TOOL}\n{password}\n").as_bytes())?;
            password
        }
        Err(error) => return Err(error),
    };
    if password.is_empty() {
        return Err(io::Error::other(
            "its second line, the password, is empty; remove the file to make a new one",
        ));
    }
    Ok(Sha256::digest(&password).into())
}
