//! The rules of the hub's TLS listeners, made from the newest certificates; swapped whole when these change.
//!
//! A client's certificate is optional, and asked for one thing only: that a trusted CA signed it. Its time, and whether
//! its holder is still welcome, is for the directory to judge, so that a refusal carries a reason.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, ring},
    server::{
        NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::peer::{self, Peer, Who};
use crate::clock;

/// How often it is complained of strangers, at most.
const AGAIN: Duration = Duration::from_secs(60);

/// Hands out the rules for the next connection.
pub struct Keys(RwLock<Arc<ServerConfig>>);

/// Why certificates make no rules.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The server's.
    #[error("the server's certificate cannot be used: {0}")]
    Server(#[from] Error),
    /// The clients' CAs.
    #[error("the CAs cannot be used: {0}")]
    Clients(#[from] VerifierBuilderError),
}

/// What the listeners are made from.
pub(super) struct Parts<'a> {
    /// The server's certificate, then its CA's: whoever knows only the CA's pin finds it there.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the first.
    pub key: PrivateKeyDer<'static>,
    /// CAs of clients.
    pub trusted: Vec<&'a CertificateDer<'static>>,
}

impl Keys {
    pub(super) fn new(parts: Parts<'_>) -> Result<Self, KeysError> {
        Ok(Self(RwLock::new(config(parts)?)))
    }

    pub(super) fn swap(&self, parts: Parts<'_>) -> Result<(), KeysError> {
        let config = config(parts)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }
}

impl fleet_broker::Keys for Keys {
    fn server_config(&self) -> Arc<ServerConfig> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

fn config(parts: Parts<'_>) -> Result<Arc<ServerConfig>, KeysError> {
    let provider = Arc::new(ring::default_provider());
    let clients = Clients::new(&provider, parts.trusted)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
        .with_client_cert_verifier(Arc::new(clients))
        .with_single_cert(parts.chain, parts.key)?;
    // No resumption: a full handshake costs a millisecond and keeps nothing, and a CA that is dropped is dropped.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Judges a client's certificate as if the time were within its life.
#[derive(Debug)]
struct Clients {
    verifier: Arc<dyn ClientCertVerifier>,
    strangers: Strangers,
}

/// Complains of nodes whose certificate is of another CA, once in a while: anybody can show one.
#[derive(Debug, Default)]
struct Strangers {
    // Seconds of the monotonic clock; 0: never.
    again_s: AtomicU64,
}

impl Strangers {
    fn complain(&self, der: &[u8]) {
        let Some(Peer { who: Who::Node(node), .. }) = Peer::read(der) else { return };
        if self.is_due(clock::mono()) {
            tracing::warn!(
                %node,
                "a certificate in the name of this node was signed by no CA of this hub; if the hub was restored from a \
                 backup of before a change of its CA, the node has to join again: `fleet join-token create --replace NODE`"
            );
        }
    }

    fn is_due(&self, now: Duration) -> bool {
        let (now_s, again_s) = (now.as_secs(), self.again_s.load(Ordering::Relaxed));
        let next_s = (now + AGAIN).as_secs();
        let swap = || self.again_s.compare_exchange(again_s, next_s, Ordering::Relaxed, Ordering::Relaxed);
        now_s >= again_s && swap().is_ok()
    }
}

impl Clients {
    fn new(
        provider: &Arc<CryptoProvider>,
        trusted: Vec<&CertificateDer<'static>>,
    ) -> Result<Self, KeysError> {
        let mut roots = RootCertStore::empty();
        for authority in trusted {
            roots.add(authority.clone())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .clear_root_hint_subjects()
            .allow_unauthenticated();
        Ok(Self { verifier: verifier.build()?, strangers: Strangers::default() })
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let now = peer::clamped(end_entity, now).ok_or(rustls::CertificateError::BadEncoding)?;
        let verified = self.verifier.verify_client_cert(end_entity, &[], now);
        verified.inspect_err(|_| self.strangers.complain(end_entity))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_fill_no_log() {
        let (strangers, at) = (Strangers::default(), Duration::from_secs);
        let due = [0, 0, 59, 60, 61, 200].map(|now| strangers.is_due(at(now)));
        assert_eq!(due, [true, false, false, true, false, true]);
    }
}
