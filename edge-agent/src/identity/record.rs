//! What a node knows of itself and its hub: the content of `identity/joined.json`.
//!
//! Key and certificate live in one file, so that no crash can part them. Owns the shape; `folder` writes it.

use std::fmt;

use fleet_schemas::{
    NodeId,
    enrol::{Issued, JoinToken, Pin},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::certificate::{Certificate, Key, Unreadable};
use crate::address::Address;

/// Format of the file; a newer one is refused by name.
pub const FORMAT: u32 = 1;
/// Most CAs that are trusted at a time: a hub has two while it changes.
pub const CAS: usize = 8;

/// A node that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Format of the file.
    pub format: u32,
    /// The node's id, as the hub decided.
    pub node: NodeId,
    /// A name for people, as given when it joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where the hub is.
    pub hub: Place,
    /// The CA of the token that was used.
    #[serde(serialize_with = "pin_text", deserialize_with = "text_pin")]
    pub pin: Pin,
    /// The CAs to trust, PEM, the one that signs new certificates first.
    pub ca: Vec<String>,
    /// The latest hub time worth a write, Unix milliseconds.
    pub hub_ms: i64,
    /// The first root of the hub's releases, as it came with the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub releases_root: Option<String>,
    /// What proves who the node is.
    pub current: Pair,
    /// What will prove it, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
}

/// Where the hub is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Host name or address; an IPv6 address without its brackets.
    pub host: String,
    /// Port of HTTPS for nodes.
    pub https_port: u16,
    /// Port of MQTT over TLS.
    pub mqtts_port: u16,
}

/// A key and its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The key.
    pub key: Key,
    /// The certificate, PEM.
    pub certificate: String,
}

/// A pair in the making: the key is written down before the hub is asked, so that an answer that was lost is given
/// again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// The key.
    pub key: Key,
    /// The certificate, PEM, once the hub gave it; it has not opened a session yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// Why an answer of the hub cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A certificate cannot be read.
    #[error("a certificate in it {0}")]
    Unreadable(#[from] Unreadable),
    /// For somebody else.
    #[error("its certificate is for another key or another node")]
    Other,
    /// Signed by nobody it tells us to trust.
    #[error("its certificate is signed by none of its CAs")]
    Signer,
    /// None, or too many.
    #[error("it names {0} CAs; 1 to {CAS} would be allowed")]
    Cas(usize),
}

impl Joined {
    /// What a hub's first answer makes of a machine.
    ///
    /// # Errors
    /// [`Unfit`].
    pub(crate) fn new(
        hub: &Address,
        token: &JoinToken,
        name: Option<String>,
        key: Key,
        issued: Issued,
    ) -> Result<Self, Unfit> {
        check_issued(&issued, &key)?;
        let Issued { node, certificate, not_after_ms: _, trust, mqtts_port } = issued;
        Ok(Self {
            format: FORMAT,
            node,
            name,
            hub: Place { host: hub.host.clone(), https_port: hub.port, mqtts_port },
            pin: token.pin,
            ca: trust.ca,
            hub_ms: 0,
            releases_root: trust.releases_root,
            current: Pair { key, certificate },
            next: None,
        })
    }

    /// Whether a token is of the hub that this node has joined.
    #[must_use]
    pub fn is_of(&self, pin: Pin) -> bool {
        self.pin == pin || self.cas().iter().any(|ca| ca.pin() == pin)
    }

    /// The CAs, read; what cannot be read is left out.
    #[must_use]
    pub fn cas(&self) -> Vec<Certificate> {
        self.ca.iter().filter_map(|pem| Certificate::from_pem(pem).ok()).collect()
    }
}

/// Checks that an answer is for this key and fits together.
///
/// # Errors
/// [`Unfit`].
pub fn check_issued(issued: &Issued, key: &Key) -> Result<Certificate, Unfit> {
    let certificate = Certificate::from_pem(&issued.certificate)?;
    if certificate.public_key != key.public_key()? || certificate.node.as_ref() != Some(&issued.node) {
        return Err(Unfit::Other);
    }
    let cas = check_cas(&issued.trust.ca)?;
    match cas.iter().any(|ca| certificate.is_signed_by(ca)) {
        true => Ok(certificate),
        false => Err(Unfit::Signer),
    }
}

/// Reads a list of CAs.
///
/// # Errors
/// [`Unfit`].
pub fn check_cas(ca: &[String]) -> Result<Vec<Certificate>, Unfit> {
    if ca.is_empty() || ca.len() > CAS {
        return Err(Unfit::Cas(ca.len()));
    }
    Ok(ca.iter().map(|pem| Certificate::from_pem(pem)).collect::<Result<_, _>>()?)
}

impl Place {
    /// Where HTTPS for nodes is served.
    pub(crate) fn https(&self) -> Address {
        Address { host: self.host.clone(), port: self.https_port }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.https().fmt(f)
    }
}

fn pin_text<S: Serializer>(pin: &Pin, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(pin)
}

fn text_pin<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Pin, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}
