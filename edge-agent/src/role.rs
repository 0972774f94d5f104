//! Who the node is and how it reaches its hub: decided once, at the start.
//!
//! Reads configuration and the folder `identity/`; dials nobody.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use fleet_schemas::NodeId;

use crate::{
    clock,
    config::Config,
    identity::{
        first,
        folder::{Folder, replace},
        live::{self, Live},
        record::Joined,
    },
    mqtt::{HubUrl, Proof, Scheme, Secret},
    run::{StartError, make_folder},
};

/// Who the node is and how it reaches its hub.
pub(crate) struct Role {
    pub(crate) node: NodeId,
    pub(crate) name: Option<String>,
    pub(crate) way: Option<(HubUrl, Proof)>,
}

/// A hub on this machine is told a secret; any other is shown the certificate that the node was given when it joined.
pub(crate) fn role(config: &Config) -> Result<Role, StartError> {
    let folder = Folder::new(&config.data);
    let url = config.hub.url.clone();
    let joined = folder.load().map_err(live::OpenError::from)?;
    let own = |joined: Option<&Joined>| {
        let name = config.node.name.clone().or_else(|| joined.and_then(|joined| joined.name.clone()));
        let id = config.node.id.clone().or_else(|| joined.map(|joined| joined.node.clone()));
        Ok::<_, StartError>((id.map_or_else(|| config.node_id(), Ok)?, name))
    };
    match (url.as_ref().map(|url| url.scheme), url, joined) {
        (Some(Scheme::Mqtt), Some(hub), joined) => {
            let (node, name) = own(joined.as_ref())?;
            Ok(Role { node, name, way: Some((hub, Proof::Secret(read_secret(config)?))) })
        }
        // It is about to join.
        (Some(Scheme::Mqtts), Some(_), None) if invitation(config).is_some() => {
            let (node, name) = own(None)?;
            Ok(Role { node, name, way: None })
        }
        (Some(Scheme::Mqtts), Some(hub), None) => Err(StartError::NotJoined(hub)),
        (_, url, Some(joined)) => {
            let (node, name) = own(Some(&joined))?;
            if node != joined.node {
                return Err(StartError::OtherNode { joined: joined.node, told: node });
            }
            if config.commands.restarts {
                first::tidy(&config.data, &joined);
            }
            let host = url.as_ref().map(|url| url.host.clone());
            let hub = url.unwrap_or_else(|| HubUrl::from(&joined.hub));
            let live = Live::open(folder, joined, host)?;
            Ok(Role { node, name, way: Some((hub, Proof::Certificate(Arc::new(live)))) })
        }
        (_, _, None) => {
            let (node, name) = own(None)?;
            Ok(Role { node, name, way: None })
        }
    }
}

/// The file with the join token by which a machine that has not joined does so while it runs: only if whoever runs the
/// agent starts it again then.
pub(crate) fn invitation(config: &Config) -> Option<PathBuf> {
    first::find(&config.data).filter(|_| config.commands.restarts)
}

/// The node's secret. The default file is made at the first start: a hub on this machine takes the first secret that it
/// sees of a node.
fn read_secret(config: &Config) -> Result<Secret, StartError> {
    if let Some(secret) = &config.hub.secret {
        return Ok(secret.clone());
    }
    let own = config.data.join("identity").join("secret");
    let path = config.hub.secret_file.clone().unwrap_or_else(|| own.clone());
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => Ok(Secret(text.trim().to_owned())),
        Ok(_) => Err(StartError::Secret { path, source: io::Error::other("it is empty") }),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path == own => {
            make_secret(&path).map_err(|source| StartError::Secret { path, source })
        }
        Err(source) => Err(StartError::Secret { path, source }),
    }
}

fn make_secret(path: &Path) -> io::Result<Secret> {
    let secret: String = clock::random::<16>().iter().map(|byte| format!("{byte:02x}")).collect();
    if let Some(folder) = path.parent() {
        make_folder(folder).map_err(io::Error::other)?;
    }
    replace(path, &format!("{secret}\n"))?;
    Ok(Secret(secret))
}
