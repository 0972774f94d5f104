//! What the agent reads out of a certificate, and its keys.
//!
//! Owns parsing and making; judges nothing: whom to trust is said in `trust`, when to renew in `core::renewal`.

use std::fmt;

use fleet_schemas::{
    NodeId,
    enrol::{NODE_URI, Pin},
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{ASN1Time, FromDer as _},
};

/// A text is not what it should be. The text fits after "the certificate …" or "the key …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot be read: {0}")]
pub struct Unreadable(String);

/// A certificate, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate itself.
    pub der: CertificateDer<'static>,
    /// When it begins, Unix milliseconds.
    pub not_before_ms: i64,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: i64,
    /// Its public key: the DER `SubjectPublicKeyInfo`.
    pub public_key: Vec<u8>,
    /// The node it names, if it names one.
    pub node: Option<NodeId>,
}

impl Certificate {
    /// Reads the first certificate of a PEM text.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn from_pem(text: &str) -> Result<Self, Unreadable> {
        let der =
            CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| Unreadable(error.to_string()))?;
        Self::from_der(der)
    }

    /// Reads a certificate.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, Unreadable> {
        let parsed = parse(&der)?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let node =
            names.into_iter().flat_map(|names| &names.value.general_names).find_map(|name| match name {
                GeneralName::URI(uri) => NodeId::parse(uri.strip_prefix(NODE_URI)?).ok(),
                _ => None,
            });
        let ms = |time: ASN1Time| time.timestamp().saturating_mul(1_000);
        Ok(Self {
            not_before_ms: ms(parsed.validity().not_before),
            not_after_ms: ms(parsed.validity().not_after),
            public_key: parsed.public_key().raw.to_vec(),
            node,
            der,
        })
    }

    /// SHA-256 of its public key.
    #[must_use]
    pub fn pin(&self) -> Pin {
        Pin(Sha256::digest(&self.public_key).into())
    }

    /// Whether `ca` signed it.
    #[must_use]
    pub fn is_signed_by(&self, ca: &Self) -> bool {
        let (Ok(own), Ok(ca)) = (parse(&self.der), parse(&ca.der)) else { return false };
        own.issuer() == ca.subject() && own.verify_signature(Some(ca.public_key())).is_ok()
    }

    /// A number from 0 to 1 that is the same whenever this certificate is asked, and differs between certificates.
    #[must_use]
    pub fn share(&self) -> f64 {
        let digest = Sha256::digest(&self.der);
        f64::from(u16::from_be_bytes([digest[0], digest[1]])) / f64::from(u16::MAX)
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Unreadable> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(|error| Unreadable(error.to_string()))?;
    Ok(parsed)
}

/// A private key (ECDSA P-256), PEM of its PKCS #8. Its text never appears in a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// A new one, from the operating system's randomness.
    #[must_use]
    pub fn generate() -> Self {
        let pair = KeyPair::generate().expect("an operating system without randomness runs no agent");
        Self(pair.serialize_pem())
    }

    /// Reads a PEM text.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn from_pem(text: &str) -> Result<Self, Unreadable> {
        let key = Self(text.to_owned());
        key.pair().map(|_| key)
    }

    /// The PEM text.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.0
    }

    /// A certificate signing request for it, PEM. It names nobody: the hub decides on the subject.
    ///
    /// # Errors
    /// [`Unreadable`] when this is no key.
    pub fn request(&self) -> Result<String, Unreadable> {
        let pair = self.pair()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let unreadable = |error: rcgen::Error| Unreadable(error.to_string());
        params.serialize_request(&pair).and_then(|request| request.pem()).map_err(unreadable)
    }

    /// Its public half: the DER `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// [`Unreadable`] when this is no key.
    pub fn public_key(&self) -> Result<Vec<u8>, Unreadable> {
        Ok(self.pair()?.subject_public_key_info())
    }

    pub(super) fn der(&self) -> Result<PrivateKeyDer<'static>, Unreadable> {
        PrivateKeyDer::from_pem_slice(self.0.as_bytes()).map_err(|error| Unreadable(error.to_string()))
    }

    fn pair(&self) -> Result<KeyPair, Unreadable> {
        KeyPair::from_pem(&self.0).map_err(|error| Unreadable(error.to_string()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::given::{Ca, YEAR_MS};

    #[test]
    fn a_certificate_tells_its_node_its_times_and_its_signer() {
        let (one, two) = (Ca::new("one"), Ca::new("one"));
        let key = Key::generate();
        let pem = one.node("edge-7", &key, 0, YEAR_MS);
        let certificate = Certificate::from_pem(&pem).unwrap();
        assert_eq!(certificate.node.as_ref().map(NodeId::as_str), Some("edge-7"));
        assert_eq!((certificate.not_before_ms, certificate.not_after_ms), (0, YEAR_MS));
        assert_eq!(certificate.public_key, key.public_key().unwrap());
        let ca = Certificate::from_pem(&one.pem()).unwrap();
        assert!(certificate.is_signed_by(&ca));
        // The same name, another key.
        assert!(!certificate.is_signed_by(&Certificate::from_pem(&two.pem()).unwrap()));
        assert!((0.0..=1.0).contains(&certificate.share()));
        assert!(Certificate::from_pem("nonsense").is_err());
    }

    #[test]
    fn keys_stay_out_of_logs_and_read_back() {
        let key = Key::generate();
        assert_eq!(format!("{key:?}"), "Key(…)");
        assert_eq!(Key::from_pem(key.pem()).unwrap(), key);
        assert!(Key::from_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").is_err());
        assert!(key.request().unwrap().contains("CERTIFICATE REQUEST"));
    }
}
