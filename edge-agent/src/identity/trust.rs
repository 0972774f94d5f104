//! Whether what answers is the hub, judged before anything is said to it.
//!
//! By the CA and [`HUB_NAME`], never by the address dialled, so that a hub may move; and never by the system's clock,
//! so that a board in 1970 and one ten years ahead both get in. Only a time that is surely past ([`Bound`]) ends a
//! certificate.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use fleet_schemas::enrol::{HUB_NAME, Pin};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{
    certificate::{Certificate, Unreadable},
    record::Pair,
};

/// Most certificates that a hub may show beside its own.
const CHAIN: usize = 4;

/// A time that is surely past: when this build was made, or what the hub said since. Shared by all that dial.
#[derive(Debug)]
pub struct Bound {
    ms: AtomicI64,
    // When the certificate that the hub showed last ends: a hub whose clock runs ahead of it is not believed, or it
    // would shut its nodes out for ever by one mistake.
    shown_until_ms: AtomicI64,
}

impl Bound {
    /// One that begins at the given time, Unix milliseconds.
    #[must_use]
    pub fn new(ms: i64) -> Self {
        Self { ms: AtomicI64::new(ms), shown_until_ms: AtomicI64::new(i64::MIN) }
    }

    /// The time, Unix milliseconds.
    #[must_use]
    pub fn ms(&self) -> i64 {
        self.ms.load(Ordering::Relaxed)
    }

    /// The hub said what time it is.
    pub fn hear(&self, hub_ms: i64) {
        if hub_ms <= self.shown_until_ms.load(Ordering::Relaxed) {
            self.ms.fetch_max(hub_ms, Ordering::Relaxed);
        }
    }

    pub(super) fn shown(&self, not_after_ms: i64) {
        self.shown_until_ms.store(not_after_ms, Ordering::Relaxed);
    }
}

/// Which CA the hub must show.
#[derive(Debug, Clone)]
pub enum Trusted<'a> {
    /// One with this public key, shown beside the hub's own certificate: the word of a join token.
    Pin(Pin),
    /// One of these.
    Cas(&'a [Certificate]),
}

/// A configuration for dialling the hub. With a pair the node can prove who it is.
///
/// # Errors
/// [`ConfigError`].
pub fn client_config(
    trusted: &Trusted<'_>,
    bound: Arc<Bound>,
    pair: Option<&Pair>,
) -> Result<Arc<ClientConfig>, ConfigError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let anchor = match trusted {
        Trusted::Pin(pin) => Anchor::Pin(*pin),
        Trusted::Cas(cas) => {
            Anchor::Cas(checker(cas.iter().map(|ca| ca.der.clone()), &provider).ok_or(ConfigError::NoCa)?)
        }
    };
    let verifier = Arc::new(Verifier { anchor, bound, provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has ciphers for TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match pair {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = vec![Certificate::from_pem(&pair.certificate)?.der];
            builder.with_client_auth_cert(chain, pair.key.der()?).map_err(ConfigError::Pair)?
        }
    };
    Ok(Arc::new(config))
}

/// Nothing to dial with. The text fits after "failed to …: ".
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No CA.
    #[error("none of the CAs in identity/joined.json can be read; join again with a new token and --force")]
    NoCa,
    /// The certificate or the key is damaged.
    #[error("the node's key or certificate {0}; join again with a new token and --force")]
    Unreadable(#[from] Unreadable),
    /// The two do not fit.
    #[error("the node's key and certificate cannot be used: {0}; join again with a new token and --force")]
    Pair(#[source] Error),
}

#[derive(Debug)]
enum Anchor {
    Pin(Pin),
    Cas(Arc<WebPkiServerVerifier>),
}

/// See the module.
#[derive(Debug)]
struct Verifier {
    anchor: Anchor,
    bound: Arc<Bound>,
    provider: Arc<CryptoProvider>,
}

/// What checks chains that end at one of these CAs; `None` when none of them can be read.
fn checker(
    cas: impl IntoIterator<Item = CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Option<Arc<WebPkiServerVerifier>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(cas);
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().ok()
}

impl Verifier {
    /// The CA among those shown that has the pinned key.
    fn pinned(&self, pin: Pin, shown: &[CertificateDer<'_>]) -> Result<Arc<WebPkiServerVerifier>, Error> {
        let certificates =
            shown.iter().filter_map(|der| Certificate::from_der(der.clone().into_owned()).ok());
        let ca = certificates.into_iter().find(|certificate| certificate.pin() == pin);
        ca.and_then(|ca| checker([ca.der], &self.provider))
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }

    /// The time at which the chain is judged: no earlier than any of it begins, for nobody is refused for being too
    /// early, and no earlier than what is surely past. What begins after the leaf has ended cannot be of its chain.
    fn judged_at_ms(&self, leaf: &Certificate, shown: &[CertificateDer<'_>]) -> i64 {
        let shown = shown.iter().filter_map(|der| Certificate::from_der(der.clone().into_owned()).ok());
        let begins = shown.map(|other| other.not_before_ms).filter(|begins| *begins <= leaf.not_after_ms);
        begins.chain([leaf.not_before_ms, self.bound.ms()]).max().unwrap_or(0)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp_response: &[u8],
        _system: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if intermediates.len() > CHAIN {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        let leaf = Certificate::from_der(end_entity.clone().into_owned())
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let pinned;
        let checker = match &self.anchor {
            Anchor::Pin(pin) => {
                pinned = self.pinned(*pin, intermediates)?;
                &pinned
            }
            Anchor::Cas(checker) => checker,
        };
        let name = ServerName::try_from(HUB_NAME).expect("a valid name");
        let at_ms = u64::try_from(self.judged_at_ms(&leaf, intermediates)).unwrap_or(0);
        // Whole seconds, rounded up: certificates begin at one.
        let at = UnixTime::since_unix_epoch(Duration::from_secs(at_ms.div_ceil(1_000)));
        let verified = checker.verify_server_cert(end_entity, intermediates, &name, ocsp_response, at)?;
        self.bound.shown(leaf.not_after_ms);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Why a handshake failed, in words that help. The text stands for itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Another hub, or somebody in between.
    #[error(
        "what answers has no certificate of the hub's CA: it is another hub, or somebody in between. \
         Nothing was sent to it. Check the address; a join token fits only the hub that made it. A node that was away \
         while its hub changed its CA joins again, with a new token and --force"
    )]
    WrongCa,
    /// A program that holds a certificate of the CA, and is no hub.
    #[error(
        "what answers has a certificate of the hub's CA that is not a hub's: nothing was sent to it; check the address"
    )]
    NotTheHub,
    /// Ended, by a clock that is surely not ahead.
    #[error("the hub's certificate has ended; renew it there with `fleet pki rotate`")]
    Ended,
    /// The hub looked at the node's certificate and hung up.
    #[error("the hub does not accept this node's certificate ({0}); join again with a new token and --force")]
    Ours(String),
    /// Not TLS.
    #[error("what answers does not speak TLS; check the port (HTTPS for nodes is 8443, MQTT over TLS 8883)")]
    NotTls,
    /// Anything else.
    #[error("the TLS handshake failed: {0}")]
    Other(String),
}

impl Trouble {
    /// Reads it out of what a TLS stream says; `None` when it is the network's trouble.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<Self> {
        let error = error.get_ref()?.downcast_ref::<Error>()?;
        Some(match error {
            Error::InvalidCertificate(reason) => match reason {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::WrongCa,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Ended,
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. }
                | CertificateError::InvalidPurpose
                | CertificateError::InvalidPurposeContext { .. } => Self::NotTheHub,
                other => Self::Other(format!("{other:?}")),
            },
            Error::AlertReceived(alert) => Self::Ours(format!("{alert:?}")),
            Error::InvalidMessage(_) => Self::NotTls,
            other => Self::Other(other.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::given::{Ca, YEAR_MS};

    const NOON_MS: i64 = 1_795_435_200_000;

    fn verifier(trusted: &Trusted<'_>, bound_ms: i64) -> Verifier {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let anchor = match trusted {
            Trusted::Pin(pin) => Anchor::Pin(*pin),
            Trusted::Cas(cas) => {
                Anchor::Cas(checker(cas.iter().map(|ca| ca.der.clone()), &provider).unwrap())
            }
        };
        Verifier { anchor, bound: Arc::new(Bound::new(bound_ms)), provider }
    }

    /// Judged on a board whose clock shows `clock_ms`.
    fn judge(verifier: &Verifier, chain: &[CertificateDer<'static>], clock_ms: i64) -> Result<(), Error> {
        let dialled = ServerName::try_from("10.1.2.3").unwrap();
        let clock = UnixTime::since_unix_epoch(Duration::from_millis(clock_ms.unsigned_abs()));
        verifier.verify_server_cert(&chain[0], &chain[1..], &dialled, &[], clock).map(|_| ())
    }

    fn refused(reason: CertificateError) -> Result<(), Error> {
        Err(Error::InvalidCertificate(reason))
    }

    #[test]
    fn the_clock_of_the_board_does_not_matter() {
        let ca = Ca::new("hub");
        let chain = ca.hub(HUB_NAME, NOON_MS, NOON_MS + YEAR_MS);
        let cas = [ca.certificate()];
        for trusted in [Trusted::Pin(ca.certificate().pin()), Trusted::Cas(&cas)] {
            for clock_ms in [0, NOON_MS, NOON_MS + 10 * YEAR_MS] {
                assert_eq!(judge(&verifier(&trusted, 0), &chain, clock_ms), Ok(()), "{clock_ms}");
            }
            // A build or a hub's word from before the certificate began, or within its time.
            for bound_ms in [NOON_MS - YEAR_MS, NOON_MS + YEAR_MS - 1_000] {
                assert_eq!(judge(&verifier(&trusted, bound_ms), &chain, 0), Ok(()));
            }
            let over = judge(&verifier(&trusted, NOON_MS + YEAR_MS + 1_000), &chain, 0).unwrap_err();
            let over = Trouble::of(&io::Error::other(over));
            assert_eq!(over, Some(Trouble::Ended));
        }
    }

    #[test]
    fn another_ca_is_refused_whatever_it_is_called() {
        let (ours, theirs) = (Ca::new("hub"), Ca::new("hub"));
        let chain = theirs.hub(HUB_NAME, NOON_MS, NOON_MS + YEAR_MS);
        let cas = [ours.certificate()];
        for trusted in [Trusted::Pin(ours.certificate().pin()), Trusted::Cas(&cas)] {
            let error = judge(&verifier(&trusted, 0), &chain, 0).unwrap_err();
            assert_eq!(Trouble::of(&io::Error::other(error)), Some(Trouble::WrongCa));
            // The right CA beside a leaf that it did not sign proves nothing: anybody can show it.
            let shown = [chain[0].clone(), ours.certificate().der];
            let error = judge(&verifier(&trusted, 0), &shown, 0).unwrap_err();
            assert_eq!(Trouble::of(&io::Error::other(error)), Some(Trouble::WrongCa));
        }
    }

    #[test]
    fn a_name_that_is_not_the_hubs_is_refused_also_when_it_was_dialled() {
        let ca = Ca::new("hub");
        let cas = [ca.certificate()];
        for name in ["other.fleet.internal", "10.1.2.3"] {
            let chain = ca.hub(name, NOON_MS, NOON_MS + YEAR_MS);
            let error = judge(&verifier(&Trusted::Cas(&cas), 0), &chain, 0).unwrap_err();
            assert_eq!(Trouble::of(&io::Error::other(error)), Some(Trouble::NotTheHub));
        }
        // A node's own certificate makes no hub.
        let key = super::super::certificate::Key::generate();
        let node = Certificate::from_pem(&ca.node("edge-1", &key, NOON_MS, NOON_MS + YEAR_MS)).unwrap();
        let error =
            judge(&verifier(&Trusted::Cas(&cas), 0), &[node.der, ca.certificate().der], 0).unwrap_err();
        assert_eq!(Trouble::of(&io::Error::other(error)), Some(Trouble::NotTheHub));
    }

    #[test]
    fn an_intermediate_that_is_not_pinned_is_refused_and_one_below_the_pin_is_not() {
        let (ours, theirs) = (Ca::new("hub"), Ca::new("other"));
        let pin = Trusted::Pin(ours.certificate().pin());
        for (root, expected) in [(&theirs, refused(CertificateError::UnknownIssuer)), (&ours, Ok(()))] {
            let middle = root.intermediate("middle");
            let mut chain = middle.hub(HUB_NAME, NOON_MS, NOON_MS + YEAR_MS);
            chain.push(root.certificate().der);
            assert_eq!(judge(&verifier(&pin, 0), &chain, 0), expected);
        }
    }

    #[test]
    fn a_leaf_that_signed_itself_is_refused_whatever_it_calls_itself() {
        let ours = Ca::new("hub");
        let pin = Trusted::Pin(ours.certificate().pin());
        let own = Ca::new("hub").self_signed_hub(NOON_MS, NOON_MS + YEAR_MS);
        for chain in
            [vec![own.clone()], vec![own.clone(), own.clone()], vec![own.clone(), ours.certificate().der]]
        {
            let error = judge(&verifier(&pin, 0), &chain, 0).unwrap_err();
            assert_eq!(Trouble::of(&io::Error::other(error)), Some(Trouble::WrongCa), "{}", chain.len());
        }
        // The CA's own certificate is no hub's either.
        let ca = ours.certificate().der;
        assert!(judge(&verifier(&pin, 0), &[ca.clone(), ca], 0).is_err());
    }

    #[test]
    fn a_hub_ahead_of_its_own_certificate_is_not_believed() {
        let ca = Ca::new("hub");
        let cas = [ca.certificate()];
        let verifier = verifier(&Trusted::Cas(&cas), NOON_MS);
        verifier.bound.hear(NOON_MS + 1);
        assert_eq!(verifier.bound.ms(), NOON_MS, "no certificate was shown");
        judge(&verifier, &ca.hub(HUB_NAME, NOON_MS, NOON_MS + YEAR_MS), 0).unwrap();
        verifier.bound.hear(NOON_MS + 5_000);
        verifier.bound.hear(NOON_MS + 4_000);
        verifier.bound.hear(NOON_MS + 10 * YEAR_MS);
        assert_eq!(verifier.bound.ms(), NOON_MS + 5_000);
    }
}
