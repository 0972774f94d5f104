//! The first admin: made at the first start, with a token that is shown once, at a terminal, and kept for the local command line.

use std::{
    fs,
    io::{self, IsTerminal as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use crate::{
    api::token,
    cli::ADMIN as FILE,
    clock,
    core::{
        identity::{Change, Operator, Role},
        registry::Intent,
    },
    hub::{Hub, IntentError},
    pki::file,
};

/// The first admin's name.
const NAME: &str = "admin";

/// The first admin cannot be made. The text fits after "failed to start: ".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error("{path} cannot be used: {source}; check its owner, its permissions and the disk's free space")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store.
    #[error("the first admin cannot be stored: {0}")]
    Store(#[from] IntentError),
}

/// Makes the first admin of a hub that has no operator; gives the token that is to be shown then.
///
/// The file comes first: a start that is killed in between leaves a token that the next start takes.
///
/// # Errors
/// [`Error`].
pub(super) async fn first(hub: &Hub, data: &Path) -> Result<Option<String>, Error> {
    if hub.with_identities(|known| !known.operators.is_empty()) {
        return Ok(None);
    }
    let path = data.join(FILE);
    let token = kept(&path).map_err(|source| Error::File { path, source })?;
    let operator = Operator {
        name: NAME.to_owned(),
        role: Role::Admin,
        token: token::hash(&token),
        created_ms: hub.clock().now().wall_ms,
        created_by: "hub".to_owned(),
        expires_ms: None,
        on: None,
        used_ms: None,
    };
    hub.intend("hub", Intent::Identity(Change::PutOperator(operator))).await?;
    Ok(Some(token))
}

/// What is said of the new admin where the hub prints: the token itself only to a person at a terminal. What else takes
/// the output keeps it, and has other readers.
pub(super) fn shown(token: &str, kept: &str) -> String {
    if io::stdout().is_terminal() {
        format!("{token} (shown once; kept for this machine's command line in {kept})")
    } else {
        format!("a token, in {kept}")
    }
}

/// The token that an interrupted start left behind, or a new one.
fn kept(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        // Whoever could read it meanwhile must not become admin.
        Ok(text) if fs::metadata(path)?.permissions().mode() & 0o077 == 0 => {
            let token = text.lines().nth(1).unwrap_or_default().trim();
            if !token.is_empty() {
                return Ok(token.to_owned());
            }
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(_) | Err(_) => {}
    }
    let token = token::text(&clock::random());
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    file::replace(path, format!("{NAME}\n{token}\n").as_bytes())?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_start_leaves_its_token_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let token = kept(&path).unwrap();
        assert_eq!(kept(&path).unwrap(), token);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_ne!(kept(&path).unwrap(), token, "others could have read it");
    }
}
