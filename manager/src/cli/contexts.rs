//! The hubs that an operator has logged in to: `fleet/contexts.toml` under `$XDG_CONFIG_HOME`, or `~/.config`.
//!
//! Holds tokens, so the file is for its owner only, and is replaced whole.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Failure;

/// Most contexts.
const CONTEXTS: usize = 256;

/// One hub.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Context {
    /// Its HTTP address.
    pub hub: String,
    /// The operator's token.
    pub token: String,
    /// Who that is, as the hub said at login.
    pub name: String,
    /// The CAs to trust, PEM; none for a hub without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contexts {
    /// The one in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// By name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// Where they are kept; none when there is no home.
    #[must_use]
    pub(super) fn path() -> Option<PathBuf> {
        let folder = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let config = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")))?;
        Some(config.join("fleet").join("contexts.toml"))
    }

    /// Reads them; none when there is no file.
    ///
    /// # Errors
    /// [`Failure`] when the file cannot be read or others can read it too.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |why: String| Failure::Failed(format!("{} {why}", path.display()));
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(format!("cannot be read: {error}"))),
        };
        let mode = fs::metadata(path).map_err(|error| failed(error.to_string()))?.permissions().mode();
        if mode & 0o077 != 0 {
            let close =
                format!("holds tokens and is open to others; close it with `chmod 600 {}`", path.display());
            return Err(failed(close));
        }
        toml::from_str(&text)
            .map_err(|error| failed(format!("is damaged: {error}; log in again after removing it")))
    }

    /// Adds or replaces one and makes it the current one.
    ///
    /// # Errors
    /// [`Failure::Usage`] for a name that is none, or one too many.
    pub(super) fn put(&mut self, name: &str, context: Context) -> Result<(), Failure> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
            return Err(Failure::Usage(format!("--name {name}: 1 to 63 of a-z A-Z 0-9 . _ - are allowed")));
        }
        if self.contexts.len() >= CONTEXTS && !self.contexts.contains_key(name) {
            return Err(Failure::Usage(format!(
                "there are {CONTEXTS} contexts; `fleet login --rm NAME` first"
            )));
        }
        self.contexts.insert(name.to_owned(), context);
        self.current = Some(name.to_owned());
        Ok(())
    }

    /// The one in use.
    #[must_use]
    pub(super) fn current(&self) -> Option<(&str, &Context)> {
        let name = self.current.as_deref()?;
        Some((name, self.contexts.get(name)?))
    }

    /// Writes them; after a crash either the old file is there or the new one.
    ///
    /// # Errors
    /// [`Failure::Failed`].
    pub(super) fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = toml::to_string_pretty(self).expect("contexts have TOML's shapes");
        let written = || {
            let folder = path.parent().unwrap_or(Path::new("."));
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let new = path.with_extension(format!("toml.{}.new", std::process::id()));
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            fs::File::open(folder)?.sync_all()
        };
        written().map_err(|error: io::Error| {
            Failure::Failed(format!("{} cannot be written: {error}", path.display()))
        })
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("hub", &self.hub).field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(token: &str) -> Context {
        Context { hub: "https://h:8080".into(), token: token.into(), name: "ada".into(), ca: None }
    }

    #[test]
    fn contexts_are_kept_for_their_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fleet/contexts.toml");
        let mut contexts = Contexts::read(&path).unwrap();
        assert_eq!(contexts, Contexts::default());
        contexts.put("berlin", context("fleet_a")).unwrap();
        contexts.put("lab", Context { ca: Some("-----BEGIN\n".into()), ..context("fleet_b") }).unwrap();
        contexts.write(&path).unwrap();
        assert_eq!(Contexts::read(&path).unwrap(), contexts);
        assert_eq!(contexts.current().map(|(name, _)| name), Some("lab"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Contexts::read(&path).unwrap_err().to_string().contains("chmod 600"));
        assert!(!format!("{contexts:?}").contains("fleet_a"));
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        let mut contexts = Contexts::default();
        for bad in ["", "a b", "ä", &"x".repeat(64)] {
            assert_eq!(contexts.put(bad, context("t")).unwrap_err().code(), 2, "{bad}");
        }
    }
}
