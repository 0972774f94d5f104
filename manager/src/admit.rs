//! Who may connect to the plain loopback listener: nodes by their secret, and one local tool that may read.
//!
//! A node that nobody knows is admitted with whatever secret it brings and held to it from then on (trust on first
//! use): only programs of this machine reach a loopback address. Certificates and enrolment are for every other way in.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{PoisonError, RwLock, mpsc},
    thread,
};

use fleet_broker::{Credentials, Directory, Grants, Identity, Refusal, Verdict};
use fleet_schemas::{NodeId, topic};
use sha2::{Digest as _, Sha256};

use crate::{clock, consume::Shared, store::state};

/// User name of the local tool.
const TOOL: &str = "local";
/// Where its user name and password are kept, in the data folder: two lines, mode 0600.
pub const TOOL_FILE: &str = "access/local";
/// Secrets that may wait to be written.
const WAITING: usize = 16_384;

type Hash = [u8; 32];

/// The directory of the plain listener.
pub struct Plain {
    secrets: RwLock<BTreeMap<NodeId, Hash>>,
    tool: Hash,
    learned: mpsc::SyncSender<(NodeId, Hash)>,
}

impl Plain {
    /// Reads the known secrets and the tool's password, which is made when there is none. New secrets are written by
    /// a thread of their own, so that admission never waits for a disk.
    ///
    /// # Errors
    /// When the store or the tool's file cannot be used.
    pub fn open(shared: Shared, data: &Path) -> Result<Self, OpenError> {
        let secrets = shared.state().secrets()?.into_iter().collect();
        let tool = tool_password(&data.join(TOOL_FILE))?;
        let (learned, writes) = mpsc::sync_channel::<(NodeId, Hash)>(WAITING);
        thread::Builder::new().name("secrets".to_owned()).spawn(move || {
            while let Ok(first) = writes.recv() {
                // All that wait in one transaction: a whole fleet may come at once.
                let secrets: Vec<_> = std::iter::once(first).chain(writes.try_iter().take(WAITING)).collect();
                if let Err(error) = shared.state().put_secrets(&secrets) {
                    // Held in memory; after a restart the nodes are trusted on first use again.
                    tracing::error!(nodes = secrets.len(), %error, "failed to keep the secrets of nodes");
                }
            }
        })?;
        Ok(Self { secrets: RwLock::new(secrets), tool, learned })
    }
}

/// The directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The tool's file.
    #[error("{TOOL_FILE} in the data folder cannot be used: {0}; check its permissions")]
    Tool(#[from] io::Error),
}

impl Directory for Plain {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict {
        self.judge(credentials).into()
    }
}

impl Plain {
    fn judge(&self, credentials: &Credentials<'_>) -> Result<Identity, Refusal> {
        let password = credentials.password.ok_or(Refusal::BadCredentials)?;
        let user = credentials.user.ok_or(Refusal::BadCredentials)?;
        let hash: Hash = Sha256::digest(password).into();
        if user == TOOL {
            let read = vec![topic::ALL_UP.to_owned(), topic::ALL_HUB.to_owned()];
            let tool = Identity::Tool { name: TOOL.to_owned(), grants: Grants { read, write: Vec::new() } };
            return same(&hash, &self.tool).then_some(tool).ok_or(Refusal::BadCredentials);
        }
        let node = NodeId::parse(user).map_err(|_| Refusal::BadCredentials)?;
        // The gate holds client ids to identities too; asked here, a stranger's mistake binds no secret.
        if credentials.client_id != user || password.is_empty() {
            return Err(Refusal::ClientId);
        }
        let known = self.secrets.read().unwrap_or_else(PoisonError::into_inner).get(&node).copied();
        match known {
            Some(known) if same(&hash, &known) => Ok(Identity::Node(node)),
            Some(_) => Err(Refusal::BadCredentials),
            None => {
                let mut secrets = self.secrets.write().unwrap_or_else(PoisonError::into_inner);
                let known = *secrets.entry(node.clone()).or_insert(hash);
                if !same(&hash, &known) {
                    return Err(Refusal::BadCredentials);
                }
                if self.learned.try_send((node.clone(), hash)).is_err() {
                    secrets.remove(&node);
                    return Err(Refusal::Unavailable);
                }
                Ok(Identity::Node(node))
            }
        }
    }
}

/// Compares hashes of secrets: an attacker who could time this would learn about a hash, not about a secret; all the
/// same every byte is looked at.
fn same(a: &Hash, b: &Hash) -> bool {
    a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn tool_password(path: &Path) -> io::Result<Hash> {
    let password = match fs::read_to_string(path) {
        Ok(text) => text.lines().nth(1).unwrap_or_default().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let password: String = clock::random::<16>().iter().map(|byte| format!("{byte:02x}")).collect();
            if let Some(folder) = path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            write!(file, "{TOOL}\n{password}\n")?;
            file.sync_all()?;
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
