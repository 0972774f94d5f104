//! What is particular about a machine on which the agent came as a package: its folder and settings have places of their
//! own, and the folder belongs to a user of its own.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
};

use anyhow::anyhow;
use fleet_edge_agent::config::{Config, Flags};
use rustix::process::geteuid;

use super::Failure;

/// Its data.
const DATA: &str = "/var/lib/clawland-fleet-agent";
/// Its settings.
const CONFIG: &str = "/etc/clawland-fleet-agent/agent.toml";
/// The variable by which a join token passes, unseen by others.
pub(super) const TOKEN: &str = "FLEET_JOIN_TOKEN";

/// Fills in the package's places where nothing else is said: neither flag nor variable, nor is there a folder here.
pub(super) fn places(flags: Flags) -> Flags {
    let told = flags.data.is_some() || env::var_os("FLEET_DATA").is_some();
    if told || Config::default().data.exists() || !Path::new(DATA).exists() {
        return flags;
    }
    let file = env::var_os("FLEET_CONFIG").map(Into::into);
    let file = flags.file.clone().or(file).or_else(|| Path::new(CONFIG).exists().then(|| CONFIG.into()));
    Flags { data: Some(DATA.into()), file, ..flags }
}

/// Root makes no files in another user's data folder, which the agent could not read: it begins anew as that user. Returns
/// where there is nothing to change.
///
/// # Errors
/// [`Failure::Failed`] when that cannot be done.
pub(super) fn become_owner(data: &Path, token: Option<String>) -> Result<(), Failure> {
    let Ok(folder) = fs::metadata(data) else { return Ok(()) };
    if !geteuid().is_root() || folder.uid() == 0 {
        return Ok(());
    }
    let failed = |error: std::io::Error| {
        let owner = folder.uid();
        let data = data.display();
        Failure::Failed(anyhow!("failed to become the owner of {data}, user {owner}: {error}"))
    };
    let mut words = env::args_os();
    let called = words.next().unwrap_or_else(|| "fleet-agent".into());
    let words: Vec<_> = words.collect();
    let mut command = Command::new(env::current_exe().map_err(failed)?);
    // It drops root's other groups, too.
    command.arg0(called).uid(folder.uid()).gid(folder.gid());
    match token {
        // The owner may not read what root can: a file of root's, or a pipe a second time.
        Some(token) => command.args(without_token(&words)).env(TOKEN, token),
        None => command.args(words),
    };
    Err(failed(command.exec()))
}

/// The arguments without `--token` and `--token-file`, and what they say.
fn without_token(words: &[OsString]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--token" | "--token-file") => drop(words.next()),
            Some(text) if text.starts_with("--token=") || text.starts_with("--token-file=") => {}
            Some(_) | None => kept.push(word.clone()),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_does_not_pass_by_the_arguments() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for token in ["--token t", "--token=t", "--token-file /t", "--token-file=-"] {
            let given = words(&format!("join hub {token} --node n"));
            assert_eq!(without_token(&given), words("join hub --node n"), "{token}");
        }
    }

    #[test]
    fn a_folder_that_is_named_is_the_one() {
        let flags = Flags { data: Some("/somewhere".into()), ..Flags::default() };
        assert_eq!(places(flags).data.as_deref(), Some(Path::new("/somewhere")));
    }
}
