//! Whether the hub at the other end is the one that is meant: its CA, and its name.
//!
//! A hub's certificate carries a fixed name besides its own, so a hub may be dialled by any address. Which CA is
//! trusted is said by whoever logs in; nothing is trusted by default.

use std::sync::Arc;

use fleet_schemas::enrol::{HUB_NAME, Pin};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    version,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The CAs that vouch for a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trust {
    /// Certificates, PEM.
    Ca(String),
    /// SHA-256 of the public key of one that the hub shows.
    Pin(Pin),
}

/// A CA that is to be trusted cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TrustError {
    /// Not PEM.
    #[error("it holds no certificate in PEM; `fleet pki ca` on the hub's machine prints one")]
    Empty,
    /// Not X.509.
    #[error("a certificate in it cannot be read: {0}")]
    Certificate(String),
}

/// The rules of a TLS connection to a hub of this trust.
///
/// # Errors
/// [`TrustError`].
pub(super) fn rules(trust: &Trust) -> Result<Arc<ClientConfig>, TrustError> {
    let provider = Arc::new(ring::default_provider());
    let anchors = match trust {
        Trust::Pin(pin) => Anchors::Pin(*pin),
        Trust::Ca(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|error| TrustError::Certificate(error.to_string()))?;
                roots.add(certificate).map_err(|error| TrustError::Certificate(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(TrustError::Empty);
            }
            Anchors::Roots(Arc::new(roots))
        }
    };
    let verifier = Verifier { anchors, provider: provider.clone() };
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .expect("ring speaks both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
enum Anchors {
    Roots(Arc<RootCertStore>),
    Pin(Pin),
}

#[derive(Debug)]
struct Verifier {
    anchors: Anchors,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn roots(&self, shown: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, Error> {
        let pin = match &self.anchors {
            Anchors::Roots(roots) => return Ok(roots.clone()),
            Anchors::Pin(pin) => pin,
        };
        let pinned = |certificate: &&CertificateDer<'_>| pin_of(certificate).as_ref() == Some(pin);
        let found = shown.iter().find(pinned).ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(found.clone().into_owned())?;
        Ok(Arc::new(roots))
    }
}

/// SHA-256 of a certificate's public key.
fn pin_of(certificate: &CertificateDer<'_>) -> Option<Pin> {
    let (_, read) = X509Certificate::from_der(certificate).ok()?;
    Some(Pin(Sha256::digest(read.public_key().raw).into()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier =
            WebPkiServerVerifier::builder_with_provider(self.roots(intermediates)?, self.provider.clone())
                .build()
                .map_err(|error| Error::General(error.to_string()))?;
        let hub = ServerName::try_from(HUB_NAME).map_err(|_| CertificateError::NotValidForName)?;
        let verify = |name| verifier.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
        match verify(&hub) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => verify(server_name),
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a failed handshake means, and what to do.
#[must_use]
pub(super) fn explain(error: &Error) -> String {
    let what = match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is not signed by the CA that is trusted here; if the hub has changed its CA, log in again \
             with `fleet login --ca FILE` (`fleet pki ca` on the hub's machine prints it)"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for another name; dial a name that is in it",
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has ended; check this machine's clock, then `fleet pki rotate server` at the hub"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "its certificate is not valid yet; check this machine's clock",
        other => return format!("no TLS: {other}; is it an https address?"),
    };
    what.to_owned()
}
