//! Makes keys and certificates: X.509 (RFC 5280) on ECDSA P-256.
//!
//! Decides what stands in a certificate, and takes nothing of a signing request but its public key. Keeps no keys.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use fleet_schemas::{
    NodeId,
    enrol::{ACCESS_URI, HUB_NAME, NODE_URI, Pin},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use super::rotation::{AUTHORITY_LIFE, NODE_LIFE, SERVER_LIFE, TOOL_LIFE};
use crate::{
    clock,
    core::{identity::Hash, time::millis},
};

/// How much earlier than now a certificate begins: clocks of boards and tools may be late.
pub const BACKDATED: Duration = Duration::from_secs(3600);

/// A CA with its key.
pub struct Authority {
    /// Names it.
    pub pin: Pin,
    /// Its certificate.
    pub der: CertificateDer<'static>,
    /// Its key, PKCS #8 PEM.
    pub key: String,
    /// A certificate of the same name and key, signed by the CA before it: whoever knows that one may trust this one.
    pub vouched: Option<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
}

/// A public key that wants a certificate, and has proved that somebody holds its other half.
pub struct Request {
    /// SHA-256 of it.
    pub key: Hash,
    spki: SubjectPublicKeyInfo,
}

/// A certificate that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// It.
    pub der: CertificateDer<'static>,
    /// When it was made, Unix milliseconds, whole seconds.
    pub made_ms: i64,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: i64,
}

/// Whom a certificate is for.
#[derive(Debug, Clone, Copy)]
pub enum Holder<'a> {
    /// A node.
    Node(&'a NodeId),
    /// A tool.
    Tool(&'a str),
}

/// Why a signing request is no use. The text fits after "the signing request is refused: ".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Something else.
    #[error("it is no PKCS #10 request in PEM")]
    Form,
    /// Whoever sent it does not have the key.
    #[error("its signature is wrong")]
    Signature,
    /// RSA, or something rare.
    #[error("its key is neither ECDSA P-256 or P-384 nor Ed25519")]
    Algorithm,
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// What the library says.
    pub fn make(now_ms: i64) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = authority_params(pin(&key), now_ms);
        params.use_authority_key_identifier_extension = false;
        let der = params.self_signed(&key)?.der().clone();
        Self::new(der, key.serialize_pem())
    }

    /// Makes one whose successor it is known to be: this one vouches for it.
    ///
    /// # Errors
    /// What the library says.
    pub fn successor(&self, now_ms: i64) -> Result<Self, rcgen::Error> {
        let made = Self::make(now_ms)?;
        let params = authority_params(made.pin, now_ms);
        let vouched = params.signed_by(&KeyPair::from_pem(&made.key)?, &self.issuer)?.der().clone();
        Ok(Self { vouched: Some(vouched), ..made })
    }

    /// Takes one that was kept.
    ///
    /// # Errors
    /// What the library says.
    pub fn new(der: CertificateDer<'static>, key: String) -> Result<Self, rcgen::Error> {
        let pair = KeyPair::from_pem(&key)?;
        let pin = pin(&pair);
        let issuer = Issuer::from_ca_cert_der(&der, pair)?;
        Ok(Self { pin, der, key, vouched: None, issuer })
    }

    /// Makes the certificate of the hub's own listeners, with its key (PKCS #8 PEM).
    ///
    /// # Errors
    /// What the library says, such as of a name that is none.
    pub fn server(&self, names: &[String], now_ms: i64) -> Result<(Made, String), rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let (mut params, made_ms, not_after_ms) = params(now_ms, SERVER_LIFE);
        params.distinguished_name.push(DnType::CommonName, HUB_NAME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let der = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok((Made { der, made_ms, not_after_ms }, key.serialize_pem()))
    }

    /// Makes a client's certificate.
    ///
    /// # Errors
    /// What the library says.
    pub fn client(&self, request: &Request, holder: Holder<'_>, now_ms: i64) -> Result<Made, rcgen::Error> {
        let (name, uri, life) = match holder {
            Holder::Node(node) => (node.as_str(), format!("{NODE_URI}{node}"), NODE_LIFE),
            Holder::Tool(name) => (name, format!("{ACCESS_URI}{name}"), TOOL_LIFE),
        };
        let (mut params, made_ms, not_after_ms) = params(now_ms, life);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
        let der = params.signed_by(&request.spki, &self.issuer)?.der().clone();
        Ok(Made { der, made_ms, not_after_ms })
    }
}

impl Request {
    /// Reads a signing request (PKCS #10, PEM) and checks its signature.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn read(pem: &str) -> Result<Self, RequestError> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|_| RequestError::Form)?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| RequestError::Form)?;
        if !rest.is_empty() {
            return Err(RequestError::Form);
        }
        let raw = request.certification_request_info.subject_pki.raw;
        let spki = SubjectPublicKeyInfo::from_der(raw).map_err(|_| RequestError::Algorithm)?;
        let offered = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
        if !offered.contains(&spki.algorithm()) {
            return Err(RequestError::Algorithm);
        }
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        // Of the certificate's own encoding, as it is reckoned when it is shown.
        Ok(Self { key: Sha256::digest(spki.subject_public_key_info()).into(), spki })
    }
}

fn pin(key: &KeyPair) -> Pin {
    Pin(Sha256::digest(key.subject_public_key_info()).into())
}

/// What all certificates of a CA have in common.
fn authority_params(pin: Pin, now_ms: i64) -> CertificateParams {
    let short: String = pin.0[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let (mut params, _, _) = params(now_ms, AUTHORITY_LIFE);
    params.distinguished_name.push(DnType::CommonName, format!("Clawland Fleet CA {short}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// What all certificates have in common; when it is made and when it ends.
fn params(now_ms: i64, life: Duration) -> (CertificateParams, i64, i64) {
    let made_s = now_ms.max(0) / 1000;
    let at = |seconds: i64| {
        let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        (SystemTime::UNIX_EPOCH + since).into()
    };
    let ends_s = made_s + millis(life) / 1000;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = at(made_s - millis(BACKDATED) / 1000);
    params.not_after = at(ends_s);
    params.use_authority_key_identifier_extension = true;
    // Positive, and as long as it looks (RFC 5280 §4.1.2.2).
    let mut serial = clock::random::<17>();
    serial[0] = 1;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    (params, made_s * 1000, ends_s * 1000)
}
