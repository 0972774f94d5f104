//! Keys that sign releases: ed25519, PKCS #8 in PEM (RFC 8410), under a passphrase where somebody gives one (PBES2 with
//! scrypt and AES-256, RFC 8018; `openssl pkey` reads them).

use pkcs8::{
    EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument, der::zeroize::Zeroizing,
};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use tough::schema::key;

const PLAIN: &str = "PRIVATE KEY";
const SEALED: &str = "ENCRYPTED PRIVATE KEY";

/// A key that signs.
pub struct Key {
    document: SecretDocument,
    pair: Ed25519KeyPair,
}

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It needs a passphrase.
    #[error(
        "the key is under a passphrase; give it by FLEET_PASSPHRASE, --passphrase-file, or at the prompt"
    )]
    Sealed,
    /// The passphrase does not open it.
    #[error("the passphrase does not open the key")]
    Passphrase,
    /// It is none.
    #[error("this is no ed25519 key in PEM (PKCS #8): {0}")]
    Form(String),
    /// The system has no randomness.
    #[error("the system gives no random bytes; try again")]
    Random,
}

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Random)?;
        let document = SecretDocument::try_from(der.as_ref()).map_err(form)?;
        Self::new(document)
    }

    fn new(document: SecretDocument) -> Result<Self, KeyError> {
        // A key of another tool may come without its public half.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(document.as_bytes())
            .map_err(|error| KeyError::Form(error.to_string()))?;
        Ok(Self { document, pair })
    }

    /// Reads a key, with the passphrase where it is under one.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read(pem: &str, passphrase: Option<&str>) -> Result<Self, KeyError> {
        let (label, document) = SecretDocument::from_pem(pem).map_err(form)?;
        match (label, passphrase) {
            (PLAIN, _) => Self::new(document),
            (SEALED, None) => Err(KeyError::Sealed),
            (SEALED, Some(passphrase)) => {
                let sealed = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(form)?;
                Self::new(sealed.decrypt(passphrase).map_err(|_| KeyError::Passphrase)?)
            }
            (other, _) => Err(KeyError::Form(format!("it is a {other}"))),
        }
    }

    /// The key as PEM, under a passphrase unless that is empty.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn to_pem(&self, passphrase: &str) -> Result<Zeroizing<String>, KeyError> {
        let plain = PrivateKeyInfoRef::try_from(self.document.as_bytes()).map_err(form)?;
        let (label, document) = match passphrase.is_empty() {
            true => (PLAIN, SecretDocument::try_from(&plain).map_err(form)?),
            false => (SEALED, plain.encrypt(passphrase).map_err(form)?),
        };
        document.to_pem(label, LineEnding::LF).map_err(form)
    }

    /// Its public half, as metadata has it.
    #[must_use]
    pub fn public(&self) -> key::Key {
        let public = key::Ed25519Key {
            public: self.pair.public_key().as_ref().to_vec().into(),
            _extra: std::collections::HashMap::new(),
        };
        key::Key::Ed25519 {
            keyval: public,
            scheme: key::Ed25519Scheme::Ed25519,
            _extra: std::collections::HashMap::new(),
        }
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

fn form(error: impl std::fmt::Display) -> KeyError {
    KeyError::Form(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_were_written() {
        let key = Key::generate().unwrap();
        let plain = key.to_pem("").unwrap();
        assert_eq!(Key::read(&plain, None).unwrap().public(), key.public());
        let sealed = key.to_pem("pass phrase").unwrap();
        assert!(sealed.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
        assert_eq!(Key::read(&sealed, None).unwrap_err(), KeyError::Sealed);
        assert_eq!(Key::read(&sealed, Some("other")).unwrap_err(), KeyError::Passphrase);
        let read = Key::read(&sealed, Some("pass phrase")).unwrap();
        assert_eq!(read.sign(b"m"), key.sign(b"m"));
        assert!(matches!(Key::read("nonsense", None), Err(KeyError::Form(_))));
    }

    #[test]
    fn keys_of_openssl_are_read() {
        // RFC 8410 §10.3: without the public half.
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let public = serde_json::to_value(Key::read(pem, None).unwrap().public()).unwrap();
        let wanted = "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";
        assert_eq!(public["keyval"]["public"], wanted);
    }
}
