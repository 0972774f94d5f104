//! Updates: the shell around `core::update`, and what each kind of artifact does at each step.

pub(crate) mod agent;
pub mod device;
mod download;
pub mod firmware;
mod moment;
mod skill;
pub(crate) mod slot;
mod tell;
mod unpack;
pub(crate) mod updater;
mod verify;
pub mod view;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use fleet_schemas::{
    session::Versions,
    update::{Kind, Running},
};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use crate::{
    config::seconds,
    identity::{folder::Folder, moving},
    store::update::{Key, Ledger, Write},
};

/// The folder of releases, in the data folder.
const FOLDER: &str = "releases";

/// How the node takes updates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether it takes any.
    pub enabled: bool,
    /// How long a new release is on trial when the order does not say, in seconds.
    #[serde(rename = "probation_s", with = "seconds")]
    pub probation: Duration,
    /// How long after the trial the hub is waited for before what ran before comes back, in seconds.
    #[serde(rename = "reach_s", with = "seconds")]
    pub reach: Duration,
    /// Bytes of artifacts that may be fetched in a day (of UTC); absent: as many as there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_day: Option<u64>,
    /// Whether the link is paid by the byte: rollouts can wait for one that is not.
    pub metered: bool,
    /// A file that is there while the link is paid by the byte, for links that change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metered_while: Option<PathBuf>,
    /// Who updates the node's system.
    pub firmware: firmware::Config,
    /// How devices are updated.
    pub device: device::Config,
    /// Whether the running executable is the agent's release; not when the agent is a part of another program.
    #[serde(skip)]
    pub own_executable: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            probation: Duration::from_secs(60),
            reach: Duration::from_secs(600),
            bytes_per_day: None,
            metered: false,
            metered_while: None,
            firmware: firmware::Config::default(),
            device: device::Config::default(),
            own_executable: false,
        }
    }
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        const DAY: Duration = Duration::from_secs(86_400);
        if self.probation > DAY {
            return Err("probation_s may be 0 to 86400".to_owned());
        }
        if self.reach > 7 * DAY {
            return Err("reach_s may be 0 to 604800".to_owned());
        }
        if self.bytes_per_day == Some(0) {
            return Err("bytes_per_day may be 1 or more; write enabled = false to take no updates".to_owned());
        }
        Ok(())
    }
}

/// What the loop of updates begins with.
pub(crate) struct Opened {
    /// `DATA/releases`.
    pub(crate) folder: PathBuf,
    pub(crate) ledger: Ledger,
    /// What the agent itself is, if it is a release.
    pub(crate) own: Option<Running>,
}

impl Opened {
    /// What runs, for the birth.
    pub(crate) fn versions(&self) -> Versions {
        tell::versions(self.ledger.account(), self.own.as_ref())
    }
}

/// Opens the account of updates. Without it the agent runs on, and takes none. Blocks, and may read the whole executable.
pub(crate) fn open(config: &Config, data: &Path, now_ms: i64) -> Option<Opened> {
    match try_open(config, data, now_ms) {
        Ok(opened) => Some(opened),
        Err(error) => {
            error!("no updates are taken: {error}");
            None
        }
    }
}

fn try_open(config: &Config, data: &Path, now_ms: i64) -> Result<Opened, crate::store::update::Error> {
    // Whole: what is started from it runs in folders of its own.
    let folder = std::path::absolute(data).unwrap_or_else(|_| data.to_owned()).join(FOLDER);
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.map_err(|source: io::Error| crate::store::update::Error::File { path: folder.clone(), source })?;
    let crate::store::update::Opened { mut ledger, set_aside } = Ledger::open(&folder, now_ms)?;
    if let Some(aside) = set_aside {
        warn!(file = %aside.display(), "the account of updates was corrupt; it is set aside and a new one begins");
    }
    let identity = Folder::new(data);
    if moving::has_left(data) || identity.has_left() {
        ledger.apply(&[Write::Untrust])?;
        if let Err(error) = identity.end_leaving() {
            warn!("what is trusted of releases is begun anew by the next start, too: {error}");
        }
    }
    let differing = differing(&folder, &ledger);
    if !differing.is_empty() {
        ledger.apply(&differing)?;
    }
    let known = ledger.account().own.clone();
    let own = if config.own_executable { tell::own(known.as_ref()) } else { None };
    if let Some((_, own)) = own.as_ref().filter(|(_, own)| Some(own) != known.as_ref()) {
        ledger.apply(&[Write::Own(own.clone())])?;
    }
    Ok(Opened { folder, ledger, own: own.map(|(running, _)| running) })
}

/// Where the folders say something else than the account: somebody changed the link by hand, or the account was lost.
fn differing(folder: &Path, ledger: &Ledger) -> Vec<Write> {
    let account = ledger.account();
    let under_way = |key: &Key| account.updates.values().any(|update| Key::of(&update.order) == *key);
    let key = |name| Key { kind: Kind::Skill, name, device: None };
    let found: BTreeMap<_, _> = skill::found(folder).into_iter().collect();
    let of_account = account.runs.values().filter(|running| running.kind == Kind::Skill);
    let gone = of_account.filter(|running| !found.contains_key(&running.name));
    let mut rows: Vec<_> = gone.map(|running| Write::Runs(key(running.name.clone()), None)).collect();
    for (name, release) in found {
        let key = key(name.clone());
        if account.runs_of(&key).is_some_and(|running| running.digest == release.digest) {
            continue;
        }
        let (version, digest) = (release.version.clone(), release.digest);
        rows.push(Write::Runs(
            key.clone(),
            Some(Running { kind: Kind::Skill, name, version, digest, device: None }),
        ));
        let history = account.history_of(&key);
        // All that is known of it: with the account, how high its epoch was is lost as well.
        if history.confirmed.is_empty() {
            rows.push(Write::History(key, history.with(release)));
        }
    }
    // What is under way is put right by its next step.
    rows.retain(|row| match row {
        Write::Runs(key, _) | Write::History(key, _) => !under_way(key),
        _ => true,
    });
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tuf::Trusted;

    #[test]
    fn a_node_of_another_hub_trusts_nothing_of_the_one_before() {
        let data = tempfile::tempdir().unwrap();
        let opened = || try_open(&Config::default(), data.path(), 0).unwrap().ledger;
        let trusted: Trusted = serde_json::from_str(r#"{"root": "of the first hub"}"#).unwrap();
        let tuf = |ledger: &Ledger| ledger.account().tuf.clone();
        let mut ledger = opened();
        ledger.apply(&[Write::Tuf(Box::new(trusted.clone()))]).unwrap();
        drop(ledger);
        assert_eq!(tuf(&opened()), Some(trusted.clone()));
        Folder::new(data.path()).leave().unwrap();
        let mut ledger = opened();
        assert_eq!(tuf(&ledger), None);
        // Once: what is trusted of the hub that it has now stays.
        ledger.apply(&[Write::Tuf(Box::new(trusted.clone()))]).unwrap();
        drop(ledger);
        assert_eq!(tuf(&opened()), Some(trusted));
    }
}
