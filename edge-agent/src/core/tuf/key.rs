//! Keys of roles, and whether a signature is one of theirs: ed25519 and ecdsa-sha2-nistp256 (TUF 1.0 §4.2.1).
//!
//! A key of another scheme may stand in a root; it signs nothing here.

use ring::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm};
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};

use super::json::{Json, Wrong, field, wrong};

/// What stands before the point in the SubjectPublicKeyInfo of a key on P-256 (RFC 5480 §2).
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// An uncompressed point of P-256, in bytes.
const POINT: usize = 65;

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Ed25519([u8; 32]),
    P256([u8; POINT]),
    /// Of a scheme that is not known here.
    Other(Vec<u8>),
}

impl Key {
    /// Reads a key, and holds it against the id under which it stands.
    pub(super) fn read(id: &str, key: &Json) -> Result<Self, Wrong> {
        let canonical = key.canonical();
        let digest = Sha256::digest(&canonical);
        if hex(id).is_none_or(|id| id[..] != digest[..]) {
            return Err(wrong("a key does not have the id under which it stands"));
        }
        let map = key.map()?;
        let (kind, scheme) = (field(map, "keytype")?.text()?, field(map, "scheme")?.text()?);
        let public = || field(field(map, "keyval")?.map()?, "public")?.text();
        match (kind, scheme) {
            ("ed25519", "ed25519") => {
                let bytes = hex(public()?).and_then(|bytes| bytes.try_into().ok());
                bytes.map(Self::Ed25519).ok_or_else(|| wrong("an ed25519 key does not have 32 bytes"))
            }
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => {
                point(public()?).map(Self::P256).ok_or_else(|| wrong("an ecdsa key is no point of P-256"))
            }
            _ => Ok(Self::Other(canonical)),
        }
    }

    /// Whether this key signed the message.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let (scheme, public): (&dyn VerificationAlgorithm, &[u8]) = match self {
            Self::Ed25519(public) => (&ED25519, public),
            Self::P256(public) => (&ECDSA_P256_SHA256_ASN1, public),
            Self::Other(_) => return false,
        };
        UnparsedPublicKey::new(scheme, public).verify(message, signature).is_ok()
    }
}

/// The bytes of hexadecimal digits in lower case.
pub(super) fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// The point of a public key in PEM, or in hexadecimal digits, as some tools write it.
fn point(text: &str) -> Option<[u8; POINT]> {
    if let Some(bytes) = hex(text) {
        return bytes.try_into().ok();
    }
    let der = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).ok()?;
    der.strip_prefix(&P256)?.try_into().ok()
}
