//! CAs, hubs and nodes for tests. Knows no check.

use fleet_schemas::{
    NodeId,
    enrol::{HUB_NAME, NODE_URI, Pin},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use super::{
    certificate::{Certificate, Key},
    record::{FORMAT, Joined, Pair, Place},
};

/// A year in milliseconds.
pub(crate) const YEAR_MS: i64 = 31_536_000_000;

/// A CA.
pub(crate) struct Ca {
    pem: String,
    key: KeyPair,
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn hub_params(name: &str, from_ms: i64, until_ms: i64) -> CertificateParams {
    let mut params = named(name);
    params.subject_alt_names = vec![match name.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(name.try_into().unwrap()),
    }];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    within(&mut params, from_ms, until_ms);
    params
}

fn within(params: &mut CertificateParams, from_ms: i64, until_ms: i64) {
    let at = |ms: i64| rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_millis(ms.unsigned_abs());
    (params.not_before, params.not_after) = (at(from_ms), at(until_ms));
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let pem = ca_params(name).self_signed(&key).unwrap().pem();
        Self { pem, key }
    }

    /// One below this one.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let pem = ca_params(name).signed_by(&key, &self.issuer()).unwrap().pem();
        Self { pem, key }
    }

    pub(crate) fn pem(&self) -> String {
        self.pem.clone()
    }

    pub(crate) fn certificate(&self) -> Certificate {
        Certificate::from_pem(&self.pem).unwrap()
    }

    /// A hub's certificate and this CA.
    pub(crate) fn hub(&self, name: &str, from_ms: i64, until_ms: i64) -> Vec<CertificateDer<'static>> {
        let key = KeyPair::generate().unwrap();
        let leaf = hub_params(name, from_ms, until_ms).signed_by(&key, &self.issuer()).unwrap();
        vec![leaf.der().clone(), CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()]
    }

    /// A hub's certificate that the key of this CA signed, without being one of a CA.
    pub(crate) fn self_signed_hub(&self, from_ms: i64, until_ms: i64) -> CertificateDer<'static> {
        let mut params = hub_params(HUB_NAME, from_ms, until_ms);
        params.distinguished_name = named("hub").distinguished_name;
        params.self_signed(&self.key).unwrap().der().clone()
    }

    /// A node's certificate, PEM.
    pub(crate) fn node(&self, id: &str, key: &Key, from_ms: i64, until_ms: i64) -> String {
        let mut params = named(id);
        params.subject_alt_names = vec![SanType::URI(format!("{NODE_URI}{id}").try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        within(&mut params, from_ms, until_ms);
        let key = KeyPair::from_pem(key.pem()).unwrap();
        params.signed_by(&key, &self.issuer()).unwrap().pem()
    }

    fn issuer(&self) -> Issuer<'static, &KeyPair> {
        Issuer::from_ca_cert_pem(&self.pem, &self.key).unwrap()
    }
}

/// A node that has joined a hub of its own, with a new key each time.
pub(crate) fn joined(id: &str) -> Joined {
    let (ca, key) = (Ca::new("hub"), Key::generate());
    let certificate = ca.node(id, &key, 0, YEAR_MS);
    Joined {
        format: FORMAT,
        node: NodeId::parse(id).unwrap(),
        name: Some("Shed".into()),
        hub: Place { host: "hub.example".into(), https_port: 8443, mqtts_port: 8883 },
        pin: Pin(ca.certificate().pin().0),
        ca: vec![ca.pem()],
        releases_root: None,
        hub_ms: 0,
        current: Pair { key, certificate },
        next: None,
    }
}
