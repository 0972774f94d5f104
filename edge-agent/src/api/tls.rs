//! TLS on the edge API: which certificate is shown, and looking at its files again when clients come.
//!
//! Two files are given, and whoever renews them just replaces them; or the agent makes a certificate of its own once,
//! which clients pin: the hub's CA signs nodes as clients, and no machine should trust a node's key as a server's.
//! Owns these files of the data folder; what is said over a connection is none of its business.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use fleet_schemas::NodeId;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use super::{Config, ListenError};

/// The certificate that the agent makes for itself, in the data folder: what clients pin.
const CERTIFICATE: &str = "api-certificate.pem";
/// Its key.
const KEY: &str = "api-key.pem";
/// A name in it that holds wherever the node is: `curl --connect-to fleet-agent::10.0.0.7: https://fleet-agent:9099/`.
const NAME: &str = "fleet-agent";
/// How long files that were looked at are taken to be as they were.
const LOOK: Duration = Duration::from_secs(2);
/// Largest file that is read, in bytes: a chain of a few certificates.
const FILE_BYTES: u64 = 64 * 1024;
/// What clients may go on to speak (RFC 7301), as without TLS.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The certificate and key that are shown to clients.
#[derive(Debug)]
pub(crate) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    shown: Mutex<Shown>,
}

#[derive(Debug)]
struct Shown {
    config: Arc<ServerConfig>,
    seen: Seen,
    looked: Duration,
}

/// When the files changed last, and how long they are.
type Seen = [Option<(SystemTime, u64)>; 2];

impl Tls {
    /// Reads the certificate that is configured, or makes one where only TLS is; `None` where it is not.
    ///
    /// # Errors
    /// [`ListenError::Tls`].
    pub(crate) fn load(config: &Config, data: &Path, node: &NodeId) -> Result<Option<Self>, ListenError> {
        let (certificate, key) = match (&config.certificate_file, &config.key_file) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            (None, None) if !config.tls => return Ok(None),
            (None, None) => {
                let (certificate, key) = (data.join(CERTIFICATE), data.join(KEY));
                let made = make(&certificate, &key, config.listen.ip(), node);
                made.map_err(|problem| ListenError::Tls { path: certificate.clone(), problem })?;
                (certificate, key)
            }
            (Some(path), None) | (None, Some(path)) => {
                let problem = "certificate_file and key_file go together; give both under [api]".to_owned();
                return Err(ListenError::Tls { path: path.clone(), problem });
            }
        };
        let seen = look([&certificate, &key]);
        let config = read(&certificate, &key)?;
        let shown = Mutex::new(Shown { config, seen, looked: Duration::ZERO });
        Ok(Some(Self { certificate, key, shown }))
    }

    /// What the next client is met with; `up` is the time since boot.
    pub(super) fn acceptor(&self, up: Duration) -> TlsAcceptor {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if up >= shown.looked + LOOK {
            shown.looked = up;
            let seen = look([&self.certificate, &self.key]);
            if seen != shown.seen {
                shown.seen = seen;
                match read(&self.certificate, &self.key) {
                    Ok(config) => {
                        shown.config = config;
                        info!(certificate = %self.certificate.display(), "the edge API shows another certificate");
                    }
                    // One file is replaced before the other: then this was too early.
                    Err(error) => warn!("the edge API goes on with the certificate that it has: {error}"),
                }
            }
        }
        TlsAcceptor::from(shown.config.clone())
    }
}

fn look(paths: [&Path; 2]) -> Seen {
    paths.map(|path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

fn read(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, ListenError> {
    let wrong = |path: &Path, problem: String| ListenError::Tls { path: path.to_owned(), problem };
    let text = text(certificate, 0).map_err(|problem| wrong(certificate, problem))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let chain = chain.map_err(|error| wrong(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong(certificate, "there is no certificate in it; give PEM".to_owned()));
    }
    let text = self::text(key, 0o007).map_err(|problem| wrong(key, problem))?;
    let pair = PrivateKeyDer::from_pem_slice(text.as_bytes());
    let pair =
        pair.map_err(|error| wrong(key, format!("there is no private key in it; give PEM ({error})")))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has ciphers for TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, pair)
        .map_err(|error| wrong(key, format!("it does not go with {}: {error}", certificate.display())))?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(Arc::new(config))
}

/// The text of a file that has none of these rights.
fn text(path: &Path, none_of: u32) -> Result<String, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mode = file.metadata().map_err(|error| error.to_string())?.permissions().mode();
    if mode & none_of != 0 {
        return Err(format!("everybody can use it (mode {:o}); chmod 600", mode & 0o777));
    }
    let mut text = String::new();
    file.take(FILE_BYTES).read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

/// Makes both files, unless both are there.
fn make(certificate: &Path, key: &Path, listen: IpAddr, node: &NodeId) -> Result<(), String> {
    if certificate.exists() && key.exists() {
        return Ok(());
    }
    let pair = KeyPair::generate().map_err(|error| error.to_string())?;
    let mut names = vec![NAME.to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.push(node.to_string());
    if let Ok(host) = sysinfo::System::host_name() {
        names.extend([format!("{host}.local"), host]);
    }
    names.extend(addresses(listen).iter().map(ToString::to_string));
    names.sort_unstable();
    names.dedup();
    // Host names may have what a certificate cannot carry.
    names.retain(|name| CertificateParams::new(vec![name.clone()]).is_ok());
    let mut params = CertificateParams::new(names).map_err(|error| error.to_string())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{NAME} {node}"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let made = params.self_signed(&pair).map_err(|error| error.to_string())?;
    // The key first: a certificate without one is made again.
    write(key, 0o600, &pair.serialize_pem()).map_err(|error| format!("its key: {error}"))?;
    write(certificate, 0o644, &made.pem()).map_err(|error| error.to_string())
}

/// Where other machines may reach the agent, as of now.
fn addresses(listen: IpAddr) -> Vec<IpAddr> {
    if !listen.is_unspecified() {
        return vec![listen];
    }
    let networks = sysinfo::Networks::new_with_refreshed_list();
    let networks = networks.iter().flat_map(|networks| networks.values());
    networks.flat_map(|network| network.ip_networks()).map(|network| network.addr).collect()
}

/// Whole or not at all.
fn write(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeId {
        NodeId::parse("edge-1").unwrap()
    }

    fn refused(config: &Config, folder: &Path) -> String {
        Tls::load(config, folder, &node()).expect_err("refused").to_string()
    }

    #[test]
    fn one_of_its_own_is_made_once_with_a_key_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Tls::load(&Config::default(), folder.path(), &node()).unwrap().is_none());
        let config = Config { tls: true, ..Config::default() };
        let load = || Tls::load(&config, folder.path(), &node()).unwrap().unwrap();
        load();
        let (certificate, key) = (folder.path().join(CERTIFICATE), folder.path().join(KEY));
        let made = fs::read_to_string(&certificate).unwrap();
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        load();
        assert_eq!(fs::read_to_string(&certificate).unwrap(), made, "clients pin it");
        fs::remove_file(&certificate).unwrap();
        load();
        assert_ne!(fs::read_to_string(&certificate).unwrap(), made);
    }

    #[test]
    fn files_that_are_none_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let own = Config { tls: true, ..Config::default() };
        Tls::load(&own, folder.path(), &node()).unwrap();
        let at = |name: &str| Some(folder.path().join(name));
        let config = |certificate: &str, key: &str| Config {
            certificate_file: at(certificate),
            key_file: at(key),
            ..Config::default()
        };
        assert!(Tls::load(&config(CERTIFICATE, KEY), folder.path(), &node()).unwrap().is_some());
        let alone = Config { certificate_file: at(CERTIFICATE), ..Config::default() };
        assert!(refused(&alone, folder.path()).contains("give both"));
        assert!(refused(&config("none.pem", KEY), folder.path()).contains("none.pem"));
        assert!(refused(&config(KEY, KEY), folder.path()).contains("no certificate"));
        assert!(refused(&config(CERTIFICATE, CERTIFICATE), folder.path()).contains("chmod 600"));
        let other = KeyPair::generate().unwrap().serialize_pem();
        write(&folder.path().join("other.pem"), 0o600, &other).unwrap();
        assert!(refused(&config(CERTIFICATE, "other.pem"), folder.path()).contains("does not go with"));
    }

    #[test]
    fn files_that_are_replaced_are_shown_and_broken_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let own = Config { tls: true, ..Config::default() };
        let tls = Tls::load(&own, folder.path(), &node()).unwrap().unwrap();
        let shown = |up: u64| Arc::as_ptr(tls.acceptor(Duration::from_secs(up)).config());
        let first = shown(100);
        assert_eq!(shown(200), first, "nothing changed");
        let (certificate, key) = (folder.path().join(CERTIFICATE), folder.path().join(KEY));
        let whole = fs::read_to_string(&certificate).unwrap();
        fs::write(&certificate, "-----BEGIN").unwrap();
        assert_eq!(shown(201), first, "it was looked at a moment ago");
        assert_eq!(shown(300), first, "broken");
        fs::write(&certificate, &whole).unwrap();
        let again = shown(400);
        assert_ne!(again, first);
        fs::remove_file(&key).unwrap();
        assert_eq!(shown(500), again, "it is gone");
    }
}
