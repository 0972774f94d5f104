//! How a machine becomes a node: join tokens, and the JSON that is said on the hub's port for nodes (HTTPS).
//!
//! Owns the token's text, the paths, the bodies, and the names in certificates that both sides check. Judges no
//! certificate and no secret: that is the business of whoever holds the keys.
//!
//! A machine that has a token knows the hash of the public key of the hub's CA, so it can tell the hub before it says
//! anything (kubeadm's `discovery-token-ca-cert-hash`). The hub keeps a hash of the secret only.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::id::NodeId;

/// The DNS name in every server certificate of a hub. Agents check this name and the pinned CA and never the address
/// they dial, so that a hub may move.
pub const HUB_NAME: &str = "hub.fleet.internal";
/// Begins the URI (subject alternative name) of a node's certificate; its id follows.
pub const NODE_URI: &str = "urn:fleet:node:";
/// Begins the URI (subject alternative name) of a third-party tool's certificate; its name follows.
pub const ACCESS_URI: &str = "urn:fleet:access:";
/// Where an [`Enrol`] is posted, without a client certificate.
pub const ENROL_PATH: &str = "/v1/enrol";
/// Where a [`Renew`] is posted, with the client certificate that is to be replaced.
pub const RENEW_PATH: &str = "/v1/renew";
/// Where [`Trust`] is read, with or without a client certificate.
pub const TRUST_PATH: &str = "/v1/trust";
/// Default port of the hub's HTTPS for nodes.
pub const NODE_HTTPS_PORT: u16 = 8443;
/// Default port of MQTT over TLS.
pub const MQTTS_PORT: u16 = 8883;
/// Largest body on these paths, in bytes: a signing request has about 500.
pub const BODY_BYTES: usize = 16 * 1024;

const PREFIX: &str = "fleet-join";
const ID_BYTES: usize = 16;

/// SHA-256 of a CA's public key (its DER `SubjectPublicKeyInfo`, as in RFC 7469 §2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin(pub [u8; 32]);

/// A join token as text: `fleet-join.{pin}.{id}.{secret}`, pin and secret of 32 bytes in base64url without padding,
/// the id of 1 to 16 characters `a-z0-9`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The CA that the hub must show.
    pub pin: Pin,
    /// Names the token at the hub; no secret.
    pub id: String,
    /// The secret.
    pub secret: [u8; 32],
}

/// A text is no join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else.
    #[error("this is no join token; one looks like {PREFIX}.….….… and is made by `fleet join-token create`")]
    Form,
    /// Cut off or mistyped.
    #[error(
        "the {0} of the join token is incomplete or mistyped; copy the whole line that `fleet join-token create` printed"
    )]
    Part(&'static str),
}

/// Asks for a first certificate; body of a POST to [`ENROL_PATH`].
///
/// Idempotent: the same key with the same token is given the same answer, and uses the token up once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrol {
    /// The token's id.
    pub id: String,
    /// The token's secret, base64url without padding.
    pub secret: String,
    /// The certificate signing request, PEM (PKCS #10, RFC 2986). Of it only the public key is used: the hub decides
    /// on the subject.
    pub csr: String,
    /// The id that the machine would like to have.
    pub node: NodeId,
}

/// Asks for the next certificate; body of a POST to [`RENEW_PATH`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// As in [`Enrol::csr`], with a new key.
    pub csr: String,
}

/// Answer 200 to [`Enrol`] and [`Renew`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// The node's id, as decided by the hub.
    pub node: NodeId,
    /// The certificate, PEM.
    pub certificate: String,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: i64,
    /// What to trust from now on.
    #[serde(flatten)]
    pub trust: Trust,
    /// Port of MQTT over TLS, at the address that was asked.
    pub mqtts_port: u16,
}

/// Answer 202 to [`Enrol`]: an operator has to approve first. Ask again with the same key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The node that waits for approval.
    pub node: NodeId,
    /// When to ask again, in seconds.
    pub retry_s: u64,
}

/// The CAs that a node is to trust, all of them; answer to [`TRUST_PATH`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// Certificates of the hub's CAs, PEM, the one that signs new certificates first. More than one while the hub
    /// changes its CA; a node whose own certificate is not signed by the first one renews at once.
    pub ca: Vec<String>,
    /// The hub's time, Unix milliseconds.
    pub hub_ms: i64,
    /// The first root of the hub's releases (the text of `1.root.json`, TUF 1.0 §4.3): a node that has none pins it.
    /// Absent: there are no releases yet, and a node asks the port for nodes for it when it is first told to update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub releases_root: Option<String>,
}

/// Why a hub refuses [`Enrol`] or [`Renew`]: the `code` of its problem body (RFC 9457), beside `detail`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// No token of this id: never made, removed, or long expired.
    TokenUnknown,
    /// The secret is not the token's.
    TokenSecret,
    /// Its time is over.
    TokenExpired,
    /// It was used as often as it may.
    TokenUsed,
    /// The id belongs to another key.
    NodeExists,
    /// An operator shut this node out.
    Revoked,
    /// Not a signing request, or of a key that is not offered.
    BadRequest,
    /// The certificate is not one of this hub's, or was replaced.
    BadCertificate,
    /// The certificate ended too long ago to be renewed.
    TooLate,
    /// Nothing is issued while the hub's clock is in doubt.
    ClockInDoubt,
    /// The hub cannot store it now; ask again.
    Unavailable,
    /// A code of a newer hub.
    #[serde(other)]
    Other,
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        let mut part = || parts.next().ok_or(TokenError::Form);
        if part()? != PREFIX {
            return Err(TokenError::Form);
        }
        let (pin, id, secret) = (part()?, part()?, part()?);
        if parts.next().is_some() {
            return Err(TokenError::Form);
        }
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if id.is_empty() || id.len() > ID_BYTES || !id.bytes().all(plain) {
            return Err(TokenError::Part("id"));
        }
        Ok(Self {
            pin: pin.parse()?,
            id: id.to_owned(),
            secret: bytes(secret).ok_or(TokenError::Part("secret"))?,
        })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}.{}", self.pin, self.id, secret_text(&self.secret))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("pin", &self.pin).field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for Pin {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        bytes(text).map(Self).ok_or(TokenError::Part("pin"))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&secret_text(&self.0))
    }
}

/// 32 bytes as they stand in [`Enrol::secret`].
#[must_use]
pub fn secret_text(secret: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(secret)
}

/// Reads what [`secret_text`] wrote.
#[must_use]
pub fn secret_bytes(text: &str) -> Option<[u8; 32]> {
    bytes(text)
}

fn bytes(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken { pin: Pin([7; 32]), id: "k3x9".into(), secret: [9; 32] }
    }

    #[test]
    fn a_token_that_was_cut_says_which_part_is_missing() {
        let text = token().to_string();
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert_eq!(text[..text.len() - 3].parse::<JoinToken>(), Err(TokenError::Part("secret")));
        assert_eq!(text.replace("k3x9", "K").parse::<JoinToken>(), Err(TokenError::Part("id")));
        assert_eq!(text.replacen("Bw", "", 1).parse::<JoinToken>(), Err(TokenError::Part("pin")));
        for bad in ["", "fleet-join", "hunter2", "fleet-join.a.b", &format!("{text}.x")] {
            assert_eq!(bad.parse::<JoinToken>(), Err(TokenError::Form), "{bad}");
        }
        assert!(!format!("{:?}", token()).contains("CQkJ"));
    }

    #[test]
    fn an_unknown_code_of_a_newer_hub_is_read() {
        let read = |text| serde_json::from_str::<RefusalCode>(text).unwrap();
        assert_eq!(read("\"node_exists\""), RefusalCode::NodeExists);
        assert_eq!(read("\"brand_new\""), RefusalCode::Other);
    }

    proptest! {
        #[test]
        fn tokens_round_trip(pin: [u8; 32], secret: [u8; 32], id in "[a-z0-9]{1,16}") {
            let token = JoinToken { pin: Pin(pin), id, secret };
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }
    }
}
