//! Passwords of tools: reckoned once (argon2id, on purpose slow), then known again while the hub runs.
//!
//! What is remembered is a hash with a salt of this process, beside the stored hash it was checked against: an access
//! that is made anew is reckoned anew.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use argon2::{Argon2, password_hash::PasswordVerifier as _};
use sha2::{Digest as _, Sha256};

use super::same;
use crate::{clock, core::identity::Hash};

/// Passwords that were right.
pub(super) struct Passwords {
    salt: [u8; 32],
    known: Mutex<HashMap<String, (Hash, String)>>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self { salt: clock::random(), known: Mutex::default() }
    }
}

impl Passwords {
    /// Whether this password was right before, against this stored hash.
    pub(super) fn remembers(&self, user: &str, password: &[u8], stored: &str) -> bool {
        let salted = self.salted(password);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(user).is_some_and(|(known, against)| against == stored && same(known, &salted))
    }

    /// Checks a password against its stored hash (PHC string): tens of milliseconds and 19 MiB.
    pub(super) fn check(&self, user: &str, password: &[u8], stored: &str) -> bool {
        if Argon2::default().verify_password(password, stored).is_err() {
            return false;
        }
        // One entry a user, and users have a limit.
        let right = (self.salted(password), stored.to_owned());
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(user.to_owned(), right);
        true
    }

    fn salted(&self, password: &[u8]) -> Hash {
        Sha256::new().chain_update(self.salt).chain_update(password).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use argon2::password_hash::PasswordHasher as _;

    use super::*;

    #[test]
    fn a_password_is_reckoned_once_for_each_access() {
        let hashed = |password: &[u8]| Argon2::default().hash_password(password).unwrap().to_string();
        let (passwords, stored) = (Passwords::default(), hashed(b"right"));
        assert!(!passwords.remembers("grafana", b"right", &stored));
        assert!(!passwords.check("grafana", b"wrong", &stored));
        assert!(!passwords.check("grafana", b"right", "no hash"));
        assert!(passwords.check("grafana", b"right", &stored));
        assert!(passwords.remembers("grafana", b"right", &stored));
        assert!(!passwords.remembers("grafana", b"wrong", &stored));
        assert!(!passwords.remembers("telegraf", b"right", &stored));
        assert!(!passwords.remembers("grafana", b"right", &hashed(b"right")), "an access made anew");
    }
}
