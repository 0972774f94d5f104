//! A CA in memory, the hub's side of its handshakes, and a raw client that speaks TLS.

use std::{
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use fleet_broker::{Config, Credentials, Directory, Grants, Identity, Keys, Mqtts, Refusal, Verdict};
use fleet_schemas::{NodeId, enrol, topic::ALL_UP};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme, StreamOwned,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime},
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

/// A session's bytes over TLS.
pub(crate) type Secure = StreamOwned<ClientConnection, TcpStream>;

/// One hub's CA.
pub(crate) struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
}

/// Keys that can be replaced.
pub(crate) struct Held(pub(crate) Mutex<Arc<ServerConfig>>);

/// Knows nodes by the certificate that names them, and tools by a password.
pub(crate) struct ByCertificate;

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { ca: CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    /// A certificate and its key; `years` are those at whose beginnings it begins and ends.
    pub(crate) fn issue(
        &self,
        name: SanType,
        years: (i32, i32),
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        (params.not_before, params.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        (vec![certificate.der().clone()], key)
    }

    /// Trusts this CA.
    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        Arc::new(roots)
    }

    /// How the hub serves a connection.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        let (chain, key) = self.issue(SanType::DnsName(enrol::HUB_NAME.try_into().unwrap()), (2020, 2099));
        let builder = WebPkiClientVerifier::builder_with_provider(self.roots(), provider());
        let verifier = Whenever(builder.allow_unauthenticated().build().unwrap());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(chain, key)
            .unwrap();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// The keys of a plane.
    pub(crate) fn keys(&self) -> Arc<Held> {
        Arc::new(Held(Mutex::new(self.server())))
    }

    /// What a client of this CA's hub brings: a certificate with this URI, or none.
    pub(crate) fn client(&self, uri: Option<&str>) -> Arc<ClientConfig> {
        self.client_of(self, uri, (2020, 2099))
    }

    /// The same with a certificate of `issuer` and of these years.
    pub(crate) fn client_of(&self, issuer: &Self, uri: Option<&str>, years: (i32, i32)) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        Arc::new(match uri {
            Some(uri) => {
                let (chain, key) = issuer.issue(SanType::URI(uri.try_into().unwrap()), years);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        })
    }
}

/// A plane's configuration with both listeners on ports of their own.
pub(crate) fn config(keys: Arc<dyn Keys>) -> Config {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    Config { mqtt: any, mqtts: Some(Mqtts { addr: any, keys }), ..Config::default() }
}

/// The URI of a node.
pub(crate) fn node_uri(id: &str) -> String {
    format!("{}{id}", enrol::NODE_URI)
}

/// A connection whose handshake happens with the first bytes.
pub(crate) fn dial(addr: SocketAddr, config: &Arc<ClientConfig>) -> Secure {
    let socket = TcpStream::connect(addr).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.set_nodelay(true).unwrap();
    let name = enrol::HUB_NAME.try_into().unwrap();
    StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), socket)
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

impl Keys for Held {
    fn server_config(&self) -> Arc<ServerConfig> {
        self.0.lock().unwrap().clone()
    }
}

impl Directory for ByCertificate {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict {
        let Some(certificate) = credentials.certificate else {
            return match (credentials.user, credentials.password) {
                (Some(user), Some(b"tool")) => {
                    let grants = Grants { read: vec![ALL_UP.to_owned()], write: vec![] };
                    Ok(Identity::Tool { name: user.to_owned(), grants })
                }
                (Some(_) | None, _) => Err(Refusal::BadCredentials),
            }
            .into();
        };
        // A URI is a string behind its length (RFC 5280 §4.2.1.6).
        let prefix = enrol::NODE_URI.as_bytes();
        let at = certificate.windows(prefix.len()).position(|window| window == prefix).unwrap();
        let uri = &certificate[at..][..usize::from(certificate[at - 1])];
        let id = std::str::from_utf8(&uri[prefix.len()..]).unwrap();
        if id.starts_with("expired") {
            return Verdict::Now(Err(Refusal::Expired));
        }
        NodeId::parse(id).map(Identity::Node).map_err(|_| Refusal::NotAuthorized).into()
    }
}

/// Looks at signatures and issuers only: time is the directory's business.
#[derive(Debug)]
struct Whenever(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Whenever {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // Some day of 2001, of 2100 and of 2026, whose word counts.
        let times = [990_000_000, 4_110_000_000, 1_780_000_000];
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let judge = |seconds| self.0.verify_client_cert(end_entity, intermediates, at(seconds));
        times.into_iter().map(judge).reduce(Result::or).unwrap()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
