//! Operators' API tokens as text: `fleet_` and 32 random bytes in base64url. The hub keeps a hash of the text only.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use crate::core::identity::Hash;

/// Begins every token, so that a secret scanner and a person know what it is.
const PREFIX: &str = "fleet_";

/// The text of a token made of these random bytes.
#[must_use]
pub fn text(random: &[u8; 32]) -> String {
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random))
}

/// What the hub keeps of a token: SHA-256 of its text. A slow hash would add nothing to 256 random bits.
#[must_use]
pub fn hash(text: &str) -> Hash {
    Sha256::digest(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_told_apart_by_its_prefix() {
        let token = text(&[0xff; 32]);
        assert_eq!((token.len(), token.starts_with(PREFIX)), (PREFIX.len() + 43, true));
        assert_ne!(hash(&token), hash(&text(&[0xfe; 32])));
    }
}
