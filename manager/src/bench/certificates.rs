//! Certificates for the load: signed by the CA that a hub of the benchmark left in its data folder, all of one key.
//!
//! Makes no CA. A hub lets nodes in that it does not know but whose certificate its own CA signed.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use fleet_schemas::NodeId;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore, client::Resumption, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};

use super::Error;
use crate::{
    clock,
    pki::{
        Request,
        file::{self, Kept},
        make::{Authority, Holder},
    },
};

/// What nodes of the load are given.
pub(super) struct Certificates {
    kept: Kept,
    authority: Authority,
    request: Request,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

/// The same certificates for a broker that reads files, PEM.
pub(super) struct Files {
    /// What it trusts.
    pub(super) ca: PathBuf,
    /// What it shows.
    pub(super) certificate: PathBuf,
    /// The key of that.
    pub(super) key: PathBuf,
}

impl Certificates {
    /// Reads the CA of the hub whose data folder this is.
    pub(super) fn of(data: &Path) -> Result<Self, Error> {
        let kept = file::Folder::open(data).and_then(|folder| folder.read()).map_err(wrong)?;
        let kept = kept.ok_or_else(|| wrong(format!("{} has no CA", data.display())))?;
        let newest = kept.authorities.last().ok_or_else(|| wrong("the hub has no CA"))?;
        let der = CertificateDer::from_pem_slice(newest.certificate.as_bytes()).map_err(wrong)?;
        let authority = Authority::new(der.clone(), newest.key.clone()).map_err(wrong)?;
        let mut roots = RootCertStore::empty();
        roots.add(der).map_err(wrong)?;
        let pair = KeyPair::generate().map_err(wrong)?;
        let request = CertificateParams::default().serialize_request(&pair).map_err(wrong)?;
        let request = Request::read(&request.pem().map_err(wrong)?).map_err(wrong)?;
        let key = PrivatePkcs8KeyDer::from(pair.serialize_der()).into();
        Ok(Self { kept, authority, request, key, roots: Arc::new(roots) })
    }

    /// What this node brings and trusts. Sessions are never resumed: every handshake is a whole one.
    pub(super) fn node(&self, node: &NodeId) -> Result<Arc<ClientConfig>, Error> {
        let made = self.authority.client(&self.request, Holder::Node(node), clock::wall_ms());
        let chain = vec![made.map_err(wrong)?.der];
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(chain, self.key.clone_key())
            .map_err(wrong)?;
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// Writes the hub's own certificate, its key and its CA where another broker finds them.
    pub(super) fn write(&self, folder: &Path) -> Result<Files, Error> {
        let ca: String = self.kept.authorities.iter().map(|one| one.certificate.as_str()).collect();
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            file::replace(&path, text.as_bytes()).map_err(Error::io(format!("write {}", path.display())))?;
            Ok::<_, Error>(path)
        };
        Ok(Files {
            ca: put("ca.pem", &ca)?,
            certificate: put("server.pem", &self.kept.server.certificate)?,
            key: put("server.key", &self.kept.server.key)?,
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "fits `map_err`")]
fn wrong(error: impl ToString) -> Error {
    Error::Certificate(error.to_string())
}
