//! The keys on disk: one file, replaced whole, so that no crash leaves half of a change.
//!
//! Owns `pki/` in the data folder: `keys.json` (all certificates with their keys) and `ca.pem` (what others may trust,
//! written after it for whoever sets up a tool). Refuses keys that other users of the machine can read.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Name of the folder in the data folder.
pub const FOLDER: &str = "pki";
const KEYS: &str = "keys.json";
/// The trusted CAs, PEM.
pub const TRUSTED: &str = "ca.pem";
const FORMAT: u32 = 1;

/// All that is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// The layout's version.
    pub format: u32,
    /// The CAs, oldest first.
    pub authorities: Vec<KeptAuthority>,
    /// The server's certificate.
    pub server: KeptServer,
    /// CAs of the hub that this one was restored from, made after the backup: their keys are gone, their word counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<KeptFormer>,
}

/// A CA whose key is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFormer {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Until when it is trusted, Unix milliseconds.
    pub until_ms: i64,
}

/// A CA.
#[derive(Clone, Serialize, Deserialize)]
pub struct KeptAuthority {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its key, PKCS #8 PEM.
    pub key: String,
    /// The same signed by the CA before it, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vouched: Option<String>,
    /// When it was made, Unix milliseconds.
    pub made_ms: i64,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: i64,
    /// When its successor took over, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired_ms: Option<i64>,
    /// Whether it has signed a tool's certificate.
    #[serde(default)]
    pub tools: bool,
}

/// The server's certificate.
#[derive(Clone, Serialize, Deserialize)]
pub struct KeptServer {
    /// It, PEM.
    pub certificate: String,
    /// Its key, PKCS #8 PEM.
    pub key: String,
    /// The pin of the CA that signed it.
    pub by: String,
    /// The names in it.
    pub names: Vec<String>,
    /// When it was made, Unix milliseconds.
    pub made_ms: i64,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: i64,
}

/// The keys on disk cannot be used. The text fits after "failed to start: ".
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system says no.
    #[error("{path} cannot be used: {source}; check its owner, its permissions and the disk's free space")]
    Io {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others can read it.
    #[error("{path} is open to other users of this machine; close it with `chmod {mode} {path}`")]
    Open {
        /// What.
        path: PathBuf,
        /// What it should be.
        mode: &'static str,
    },
    /// Not what we wrote.
    #[error("{path} is damaged: {why}; restore it from a backup, every node trusts what is in it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Of a newer build.
    #[error("{path} has format {found}, this build knows {FORMAT}; use the newer `fleet`")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Lost.
    #[error(
        "{path} is missing although this hub had one; restore it from a backup, or remove the folder {FOLDER} to \
         start with a new CA: then every node has to join again"
    )]
    Lost {
        /// The file.
        path: PathBuf,
    },
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Kept {
    /// With this build's format.
    #[must_use]
    pub fn new(authorities: Vec<KeptAuthority>, server: KeptServer) -> Self {
        Self { format: FORMAT, authorities, server, former: Vec::new() }
    }
}

impl Folder {
    /// Makes the folder if there is none, and checks who may look into it.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(data: &Path) -> Result<Self, FileError> {
        let path = data.join(FOLDER);
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_at(&path)(error)),
            Err(_) | Ok(()) => {}
        }
        let mode = fs::metadata(&path).map_err(io_at(&path))?.permissions().mode();
        // Whoever may write here may put keys of his own here.
        if mode & 0o022 != 0 {
            return Err(FileError::Open { path, mode: "700" });
        }
        Ok(Self(path))
    }

    /// What is kept; none at the first start.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(&self) -> Result<Option<Kept>, FileError> {
        let path = self.0.join(KEYS);
        let mode = match fs::metadata(&path) {
            Ok(found) => found.permissions().mode(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Written after the keys: without them it is no rest of a first start.
                return match self.0.join(TRUSTED).exists() {
                    true => Err(FileError::Lost { path }),
                    false => Ok(None),
                };
            }
            Err(error) => return Err(io_at(&path)(error)),
        };
        if mode & 0o077 != 0 {
            return Err(FileError::Open { path, mode: "600" });
        }
        let text = fs::read_to_string(&path).map_err(io_at(&path))?;
        let damaged = |why: String| FileError::Damaged { path: path.clone(), why };
        // The format first: a newer one may have other fields.
        let any: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        match any
            .get("format")
            .and_then(serde_json::Value::as_u64)
            .and_then(|found| u32::try_from(found).ok())
        {
            Some(FORMAT) => {}
            Some(found) if found > FORMAT => return Err(FileError::Newer { path, found }),
            Some(_) | None => return Err(damaged("it has no format that was ever used".to_owned())),
        }
        let kept: Kept = serde_json::from_value(any).map_err(|error| damaged(error.to_string()))?;
        if kept.authorities.is_empty() {
            return Err(damaged("it has no CA".to_owned()));
        }
        Ok(Some(kept))
    }

    /// Replaces what is kept; durable when it returns.
    ///
    /// # Errors
    /// [`FileError`]: what was kept before is still there.
    pub fn write(&self, kept: &Kept) -> Result<(), FileError> {
        let text = serde_json::to_string_pretty(kept).expect("texts and numbers make JSON");
        self.replace(KEYS, text.as_bytes())?;
        // For people; made again at the next start if this fails.
        let trusted: String = kept.authorities.iter().rev().map(|one| one.certificate.as_str()).collect();
        if let Err(error) = self.replace(TRUSTED, trusted.as_bytes()) {
            tracing::warn!(%error, "a copy of the trusted CAs could not be written");
        }
        Ok(())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        replace(&self.0.join(name), bytes).map_err(io_at(&self.0.join(name)))
    }
}

/// Replaces a file whole, mode 0600; durable when it returns.
///
/// # Errors
/// What the system says; the file is as it was before.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.to_owned().into_os_string();
    new.push(".new");
    // What a crash left may have any mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) | Ok(()) => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&new, path)?;
    for folder in path.ancestors().skip(1).take(2).filter(|folder| !folder.as_os_str().is_empty()) {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn io_at(path: &Path) -> impl Fn(io::Error) -> FileError + use<> {
    let path = path.to_owned();
    move |source| FileError::Io { path: path.clone(), source }
}

impl std::fmt::Debug for KeptAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptAuthority").field("made_ms", &self.made_ms).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for KeptServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptServer").field("by", &self.by).field("names", &self.names).finish_non_exhaustive()
    }
}
