//! Which hub a verb is meant for, and with which token: flags and variables before `--data DIR` or a hub that runs on
//! `./fleet-data`, before the current context of `fleet login`, before the hub of this machine's package.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use fleet_schemas::enrol::Pin;
use reqwest::Url;

use super::{
    Common, Failure,
    contexts::{Context, Contexts},
    trust::Trust,
};
use crate::{config, pki::file as pki, run};

/// The token that the hub leaves for the command line of its own machine: name and token, two lines.
pub const ADMIN: &str = "access/admin";
/// Time to find out whether a local hub runs.
const LOOK: Duration = Duration::from_millis(500);

/// A hub, and what is shown to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Its HTTP address.
    pub base: Url,
    /// The operator's token.
    pub token: Option<String>,
    /// Which CA vouches for it.
    pub trust: Option<Trust>,
}

/// The addresses that a hub writes beside its data.
#[derive(Debug, serde::Deserialize)]
struct Addresses {
    http: String,
    #[serde(default)]
    http_tls: bool,
}

/// Finds the hub that is meant.
///
/// # Errors
/// [`Failure::Usage`] for a bad address, [`Failure::Unreachable`] when there is no hub to be found.
pub(super) fn find(common: &Common) -> Result<Target, Failure> {
    find_among(common, Contexts::path().as_deref())
}

fn find_among(common: &Common, path: Option<&Path>) -> Result<Target, Failure> {
    let contexts = || path.map_or_else(|| Ok(Contexts::default()), Contexts::read);
    let given = given(common)?;
    let mut target = match (&common.hub, &common.data) {
        (Some(hub), data) => {
            let base = base(hub)?;
            let data = data.as_deref().unwrap_or(Path::new(config::DATA));
            let mut target = Target { base, token: None, trust: None };
            // What is kept for this very hub is for it, and for no other.
            if let Some(known) = contexts()?.contexts.values().find(|known| is(known, &target.base)) {
                target.token = Some(known.token.clone());
                target.trust = known.ca.clone().map(Trust::Ca);
            } else if let Some(local) = local(data).ok().filter(|local| local.base == target.base) {
                target = local;
            }
            target
        }
        (None, Some(data)) => local(data)?,
        (None, None) => match (local(Path::new(config::DATA)), contexts()?.current()) {
            (Ok(local), Some(_)) if runs(&local) => local,
            (_, Some((_, context))) => of_context(context)?,
            (Ok(local), None) => local,
            (Err(none), None) => packaged(Path::new(config::PACKAGED)).unwrap_or(Err(none))?,
        },
    };
    target.token = common.token.clone().or(target.token);
    target.trust = given.or(target.trust);
    if target.base.scheme() == "https" && target.trust.is_none() {
        return Err(Failure::Usage(format!(
            "{} needs the CA that vouches for it: --ca FILE (`fleet pki ca` on the hub's machine prints it) or --ca-pin PIN",
            target.base
        )));
    }
    Ok(target)
}

/// The trust that flags name.
fn given(common: &Common) -> Result<Option<Trust>, Failure> {
    if let Some(path) = &common.ca {
        let pem = fs::read_to_string(path)
            .map_err(|error| Failure::Usage(format!("--ca {}: {error}", path.display())))?;
        return Ok(Some(Trust::Ca(pem)));
    }
    let pin = common.ca_pin.as_deref().map(str::parse::<Pin>).transpose();
    let pin = pin.map_err(|_| {
        Failure::Usage(
            "--ca-pin is no pin of a CA; `fleet pki status` on the hub's machine shows it".to_owned(),
        )
    })?;
    Ok(pin.map(Trust::Pin))
}

fn is(context: &Context, base: &Url) -> bool {
    Url::parse(&context.hub).is_ok_and(|known| known == *base)
}

fn of_context(context: &Context) -> Result<Target, Failure> {
    Ok(Target {
        base: base(&context.hub)?,
        token: Some(context.token.clone()),
        trust: context.ca.clone().map(Trust::Ca),
    })
}

/// Reads what the user calls a hub: a URL, or host and port.
pub(super) fn base(text: &str) -> Result<Url, Failure> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let wrong =
        |why: String| Failure::Usage(format!("--hub {text}: {why}; an example is http://127.0.0.1:8080"));
    let url = Url::parse(&url).map_err(|error| wrong(error.to_string()))?;
    match url.scheme() {
        "http" | "https" if url.username().is_empty() && url.password().is_none() => Ok(url),
        "http" | "https" => Err(wrong("a user has no place in it; use --token".to_owned())),
        other => Err(wrong(format!("{other} is not spoken here"))),
    }
}

/// Finds the local hub.
pub(super) fn local(data: &Path) -> Result<Target, Failure> {
    let path = data.join(run::ADDRESSES);
    let text = fs::read_to_string(&path).map_err(|error| {
        Failure::Unreachable(format!(
            "no hub runs on {} ({error}); start one with `fleet hub`, name another with --hub or --data, or log in to \
             one with `fleet login`",
            data.display()
        ))
    })?;
    let addresses: Addresses = serde_json::from_str(&text).map_err(|error| {
        Failure::Failed(format!("{} is not readable ({error}); name the hub with --hub", path.display()))
    })?;
    let scheme = if addresses.http_tls { "https" } else { "http" };
    let base = base(&format!("{scheme}://{}", addresses.http))?;
    // Who may not read it is asked for a token by the hub.
    let admin = fs::read_to_string(data.join(ADMIN)).ok();
    let token = admin.and_then(|text| Some(text.lines().nth(1)?.trim().to_owned()));
    let ca = addresses.http_tls.then(|| fs::read_to_string(data.join(pki::FOLDER).join(pki::TRUSTED)));
    let trust = ca.and_then(Result::ok).map(Trust::Ca);
    Ok(Target { base, token, trust })
}

/// Finds the hub that came as a package; none when there is none, or when it is stopped.
fn packaged(data: &Path) -> Option<Result<Target, Failure>> {
    match fs::metadata(data.join(run::ADDRESSES)) {
        Ok(_) => Some(local(data)),
        // Its folder is closed to others, and the token with it.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Some(Err(Failure::Denied(format!(
                "the hub of this machine keeps its token in {}, which you may not read: use sudo, or log in with a token \
             of your own (`fleet login`)",
                data.display()
            ))))
        }
        Err(_) => None,
    }
}

/// Whether a hub runs on a data folder.
#[must_use]
pub(super) fn runs_on(data: &Path) -> bool {
    local(data).is_ok_and(|local| runs(&local))
}

/// Whether somebody listens there: a hub that was killed leaves its addresses behind.
fn runs(local: &Target) -> bool {
    let address = local.base.socket_addrs(|| None).ok().and_then(|found| found.first().copied());
    address.is_some_and(|address: SocketAddr| TcpStream::connect_timeout(&address, LOOK).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hubs_are_named_by_url_or_address() {
        assert_eq!(base("127.0.0.1:8080").unwrap().as_str(), "http://127.0.0.1:8080/");
        assert_eq!(base("https://h:1/under").unwrap().as_str(), "https://h:1/under");
        for wrong in ["", "ftp://x", "http://", "http://u:p@h"] {
            assert_eq!(base(wrong).unwrap_err().code(), 2, "{wrong}");
        }
    }

    #[test]
    fn the_hub_of_the_package_is_found_where_it_runs() {
        let data = tempfile::tempdir().unwrap();
        assert!(packaged(data.path()).is_none());
        fs::write(data.path().join(run::ADDRESSES), r#"{"http": "127.0.0.1:1"}"#).unwrap();
        assert_eq!(packaged(data.path()).unwrap().unwrap().base.as_str(), "http://127.0.0.1:1/");
    }

    #[test]
    fn a_folder_without_a_hub_is_unreachable() {
        assert_eq!(local(Path::new("/nonexistent")).unwrap_err().code(), 5);
    }

    #[test]
    fn the_local_token_lies_beside_the_data() {
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join(run::ADDRESSES), r#"{"http": "127.0.0.1:1"}"#).unwrap();
        assert_eq!(local(data.path()).unwrap().token, None);
        fs::create_dir(data.path().join("access")).unwrap();
        fs::write(data.path().join(ADMIN), "admin\nfleet_x\n").unwrap();
        let found = local(data.path()).unwrap();
        assert_eq!((found.token.as_deref(), found.base.as_str()), (Some("fleet_x"), "http://127.0.0.1:1/"));
        let common = |hub: &str| Common {
            hub: Some(hub.to_owned()),
            data: Some(data.path().to_owned()),
            ..Common::default()
        };
        let path = data.path().join("contexts.toml");
        let find = |common: &Common| find_among(common, Some(&path));
        assert_eq!(find(&common("127.0.0.1:1")).unwrap().token.as_deref(), Some("fleet_x"));
        assert_eq!(find(&common("127.0.0.1:2")).unwrap().token, None, "another hub is not shown it");
        assert_eq!(find(&common("https://127.0.0.1:1")).unwrap_err().code(), 2, "no CA, no https");
        let context =
            Context { hub: "http://127.0.0.1:2".into(), token: "fleet_y".into(), name: "a".into(), ca: None };
        let mut contexts = Contexts::default();
        contexts.put("two", context).unwrap();
        contexts.write(&path).unwrap();
        assert_eq!(find(&common("127.0.0.1:2")).unwrap().token.as_deref(), Some("fleet_y"));
        let stronger = Common { token: Some("fleet_z".to_owned()), ..common("127.0.0.1:2") };
        assert_eq!(find(&stronger).unwrap().token.as_deref(), Some("fleet_z"));
        let folder = Common { data: Some(data.path().to_owned()), ..Common::default() };
        assert_eq!(
            find(&folder).unwrap().token.as_deref(),
            Some("fleet_x"),
            "a folder that is named comes first"
        );
        assert_eq!(find(&Common::default()).unwrap().token.as_deref(), Some("fleet_y"));
    }
}
