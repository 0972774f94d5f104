//! Reads the certificates that peers show.
//!
//! Judges nothing: whether one of the hub's CAs signed it was checked in the handshake, whether it is still good is for
//! the directory to say.

use fleet_schemas::{
    NodeId,
    enrol::{ACCESS_URI, NODE_URI},
};
use rustls_pki_types::UnixTime;
use sha2::{Digest as _, Sha256};
use std::time::Duration;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

use super::make::BACKDATED;
use crate::core::{
    identity::{Hash, Shown},
    time::millis,
};

/// Who holds a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// A node.
    Node(NodeId),
    /// A tool with access of this name.
    Tool(String),
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Whose it is.
    pub who: Who,
    /// Its key and times.
    pub shown: Shown,
}

impl Peer {
    /// Reads a certificate of this hub's making (DER); none if it is another.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names =
            certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
                _ => None,
            })?;
        let [GeneralName::URI(uri)] = names[..] else { return None };
        let who = match (uri.strip_prefix(NODE_URI), uri.strip_prefix(ACCESS_URI)) {
            (Some(id), _) => Who::Node(NodeId::parse(id).ok()?),
            (None, Some(name)) => Who::Tool(name.to_owned()),
            (None, None) => return None,
        };
        let validity = certificate.validity();
        let issued_ms =
            validity.not_before.timestamp().saturating_mul(1000).saturating_add(millis(BACKDATED));
        let not_after_ms = validity.not_after.timestamp().saturating_mul(1000);
        let key: Hash = Sha256::digest(certificate.public_key().raw).into();
        Some(Self { who, shown: Shown { key, issued_ms, not_after_ms } })
    }
}

/// A time within the life of a certificate, as near to `now` as there is one; none if it cannot be read.
#[must_use]
pub fn clamped(der: &[u8], now: UnixTime) -> Option<UnixTime> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let seconds = |at: i64| u64::try_from(at).unwrap_or(0);
    let validity = certificate.validity();
    let (first, last) = (seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp()));
    let within = now.as_secs().max(first).min(last);
    Some(UnixTime::since_unix_epoch(Duration::from_secs(within)))
}
