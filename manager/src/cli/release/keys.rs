//! The keys of releases in a folder on the operator's machine, and the passphrase that they are under.

use std::{
    env, fs,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::Failure;
use crate::release::{Key, KeyError};

/// The folder unless another is named.
pub const FOLDER: &str = "release-keys";
/// The first root, which the keys were made with: what the hub says is held against it.
pub(super) const ROOT: &str = "1.root.json";
const PASSPHRASE: &str = "FLEET_PASSPHRASE";
/// Longest passphrase, in bytes.
const PASSPHRASE_BYTES: usize = 1_024;

/// Where the keys are.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct KeyArgs {
    /// The folder with root.pem and targets.pem; without it: release-keys in the hub's data folder where there is one,
    /// else ./release-keys
    #[arg(long, env = "FLEET_RELEASE_KEYS", value_name = "DIR")]
    keys: Option<PathBuf>,
    /// A file with the passphrase; without it: FLEET_PASSPHRASE, else you are asked
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// The folder, opened.
#[derive(Debug)]
pub(super) struct Keys {
    folder: PathBuf,
    file: Option<PathBuf>,
    passphrase: Option<String>,
}

impl Keys {
    pub(super) fn new(args: KeyArgs, data: &Path) -> Self {
        let folder = args.keys.unwrap_or_else(|| {
            let demo = data.join(FOLDER);
            if demo.is_dir() { demo } else { PathBuf::from(FOLDER) }
        });
        Self { folder, file: args.passphrase_file, passphrase: None }
    }

    /// Where they are.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The root that was pinned when the keys were made.
    pub(super) fn root(&self) -> Option<Vec<u8>> {
        fs::read(self.folder.join(ROOT)).ok()
    }

    /// Keeps the root that is pinned.
    pub(super) fn pin(&self, root: &[u8]) -> Result<(), Failure> {
        let path = self.folder.join(ROOT);
        fs::write(&path, root).map_err(|error| unwritable(&path, &error))
    }

    /// The key of a role, such as `root`; none where there is no file.
    pub(super) fn find(&mut self, role: &str) -> Result<Option<Key>, Failure> {
        let path = self.folder.join(format!("{role}.pem"));
        let pem = match fs::read_to_string(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::Usage(format!("{} cannot be read: {error}", path.display()))),
        };
        let key = match Key::read(&pem, None) {
            Err(KeyError::Sealed) => Key::read(&pem, Some(&self.passphrase(false)?)),
            read => read,
        };
        key.map(Some).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
    }

    /// The key of a role.
    pub(super) fn get(&mut self, role: &str) -> Result<Key, Failure> {
        self.find(role)?.ok_or_else(|| {
            let path = self.folder.join(format!("{role}.pem"));
            Failure::Usage(format!(
                "there is no key {}; name the folder of your keys with --keys, or make some with `fleet release init`",
                path.display()
            ))
        })
    }

    /// A new key of a role, on disk when this returns; the one that is there where an earlier run was cut short.
    pub(super) fn make(&mut self, role: &str) -> Result<Key, Failure> {
        if let Some(key) = self.find(role)? {
            return Ok(key);
        }
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|error| unwritable(&self.folder, &error))?;
        let passphrase = self.passphrase(true)?;
        let failed = |error: KeyError| Failure::Failed(error.to_string());
        let key = Key::generate().map_err(failed)?;
        let pem = key.to_pem(&passphrase).map_err(failed)?;
        let path = self.folder.join(format!("{role}.pem"));
        let write = || {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(pem.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|error| unwritable(&path, &error))?;
        Ok(key)
    }

    /// Puts the new key of a role in the place of the old one, which is kept under its version.
    pub(super) fn promote(&self, role: &str, version: u64) -> Result<(), Failure> {
        let path = |name: String| self.folder.join(name);
        let (now, next) = (path(format!("{role}.pem")), path(format!("{role}.next.pem")));
        let old = path(format!("{role}.until-{version}.pem"));
        if now.exists() {
            fs::rename(&now, &old).map_err(|error| unwritable(&old, &error))?;
        }
        fs::rename(&next, &now).map_err(|error| unwritable(&now, &error))
    }

    /// From the file, the environment, or a person; asked once.
    fn passphrase(&mut self, new: bool) -> Result<String, Failure> {
        if let Some(known) = &self.passphrase {
            return Ok(known.clone());
        }
        let text = match (&self.file, env::var(PASSPHRASE)) {
            (Some(path), _) => fs::read_to_string(path)
                .map_err(|error| Failure::Usage(format!("{} cannot be read: {error}", path.display())))?,
            (None, Ok(text)) => text,
            (None, Err(_)) if io::stdin().is_terminal() => {
                let text = ask("passphrase of the release keys: ")?;
                if new && ask("the same again: ")? != text {
                    return Err(Failure::Usage("the two differ; nothing was made".to_owned()));
                }
                text
            }
            (None, Err(_)) => {
                return Err(Failure::Usage(format!(
                    "the release keys need a passphrase; give it by {PASSPHRASE} (empty: none) or --passphrase-file"
                )));
            }
        };
        let text = text.trim_end_matches(['\r', '\n']).to_owned();
        if text.len() > PASSPHRASE_BYTES {
            return Err(Failure::Usage(format!("a passphrase has at most {PASSPHRASE_BYTES} bytes")));
        }
        self.passphrase = Some(text.clone());
        Ok(text)
    }
}

/// Asks on the terminal, and does not show what is typed.
fn ask(question: &str) -> Result<String, Failure> {
    let failed = |error: io::Error| Failure::Failed(format!("the passphrase cannot be read: {error}"));
    eprint!("{question}");
    let before = tcgetattr(io::stdin()).map_err(|error| failed(error.into()))?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(io::stdin(), OptionalActions::Flush, &hidden).map_err(|error| failed(error.into()))?;
    let mut text = String::new();
    let read = io::stdin().read_line(&mut text);
    let shown = tcsetattr(io::stdin(), OptionalActions::Flush, &before);
    eprintln!();
    read.map_err(failed)?;
    shown.map_err(|error| failed(error.into()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("{} cannot be written: {error}", path.display()))
}
