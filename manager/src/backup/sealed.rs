//! Encryption of backups, by age (age-encryption.org/v1): for recipients whose keys need not be here, and read with an
//! identity file. `age -d -i FILE` reads them, too.

use std::{
    fmt,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use age::{DecryptError, Decryptor, Encryptor, Identity, IdentityFile, stream::StreamWriter, x25519};

/// What a file of age begins with.
const MAGIC: &[u8] = b"age-encryption.org/v1";

/// Encryption fails, or cannot be undone.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// No recipient.
    #[error("{0:?} is no recipient of age, such as age1…; `age-keygen` makes a key and prints one")]
    Recipient(String),
    /// No identity.
    #[error("{path} is no identity file of age: {why}")]
    Identity {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It is encrypted, and nobody said by what it opens.
    #[error("it is encrypted; name the identity file that opens it with --identity FILE")]
    Closed,
    /// None of the identities opens it.
    #[error("no identity in that file opens it; it was encrypted for another recipient")]
    Other,
    /// It does not read.
    #[error("it does not decrypt: {0}")]
    Broken(String),
    /// It cannot be encrypted.
    #[error("it cannot be encrypted: {0}")]
    Seal(String),
}

/// Somebody who can read a backup.
#[derive(Clone)]
pub struct Recipient(x25519::Recipient);

/// Keys that open backups.
pub struct Identities(Vec<Box<dyn Identity + Send + Sync>>);

impl FromStr for Recipient {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        let key = text.trim().parse().map_err(|_| SealError::Recipient(text.to_owned()))?;
        Ok(Self(key))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({})", self.0)
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

impl Identities {
    /// Reads an identity file, as `age-keygen` makes it.
    ///
    /// # Errors
    /// [`SealError::Identity`].
    pub fn read(path: &Path) -> Result<Self, SealError> {
        let wrong = |why: String| SealError::Identity { path: path.to_owned(), why };
        let file = IdentityFile::from_file(path.display().to_string()).map_err(|e| wrong(e.to_string()))?;
        let keys = file.into_identities().map_err(|error| wrong(error.to_string()))?;
        if keys.is_empty() {
            return Err(wrong("it has no key".to_owned()));
        }
        Ok(Self(keys))
    }
}

/// Whether a file that begins so is encrypted.
#[must_use]
pub fn is_sealed(beginning: &[u8]) -> bool {
    beginning.starts_with(MAGIC)
}

/// Something to write to, perhaps encrypted.
pub enum Out<W: Write> {
    /// As it is.
    Plain(W),
    /// Encrypted.
    Sealed(StreamWriter<W>),
}

impl<W: Write> Out<W> {
    /// Encrypts for these recipients, if there are any.
    ///
    /// # Errors
    /// [`SealError::Seal`].
    pub fn new(to: W, recipients: &[Recipient]) -> Result<Self, SealError> {
        if recipients.is_empty() {
            return Ok(Self::Plain(to));
        }
        let all = recipients.iter().map(|recipient| &recipient.0 as &dyn age::Recipient);
        let seal = Encryptor::with_recipients(all).map_err(|error| SealError::Seal(error.to_string()))?;
        let writer = seal.wrap_output(to).map_err(|error| SealError::Seal(error.to_string()))?;
        Ok(Self::Sealed(writer))
    }

    /// Writes the end.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(to) => Ok(to),
            Self::Sealed(writer) => writer.finish(),
        }
    }
}

impl<W: Write> Write for Out<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(to) => to.write(bytes),
            Self::Sealed(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(to) => to.flush(),
            Self::Sealed(writer) => writer.flush(),
        }
    }
}

/// The plain bytes of a file that may be encrypted.
///
/// # Errors
/// [`SealError`].
pub fn open<'a>(
    mut from: impl Read + 'a,
    identities: Option<&Identities>,
) -> Result<Box<dyn Read + 'a>, SealError> {
    let mut beginning = Vec::new();
    let most = MAGIC.len() as u64;
    from.by_ref().take(most).read_to_end(&mut beginning).map_err(|e| SealError::Broken(e.to_string()))?;
    let sealed = is_sealed(&beginning);
    let from = io::Cursor::new(beginning).chain(from);
    if !sealed {
        return Ok(Box::new(from));
    }
    let identities = identities.ok_or(SealError::Closed)?;
    let broken = |error: DecryptError| match error {
        DecryptError::NoMatchingKeys => SealError::Other,
        error => SealError::Broken(error.to_string()),
    };
    let decryptor = Decryptor::new(from).map_err(broken)?;
    let keys = identities.0.iter().map(|key| &**key as &dyn Identity);
    Ok(Box::new(decryptor.decrypt(keys).map_err(broken)?))
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret as _;

    use super::*;

    fn identity(folder: &Path, name: &str) -> (Recipient, Identities) {
        let key = x25519::Identity::generate();
        let path = folder.join(name);
        std::fs::write(&path, key.to_string().expose_secret()).unwrap();
        (Recipient(key.to_public()), Identities::read(&path).unwrap())
    }

    #[test]
    fn what_is_encrypted_opens_with_its_identity_only() {
        let folder = tempfile::tempdir().unwrap();
        let (recipient, key) = identity(folder.path(), "mine");
        let (_, other) = identity(folder.path(), "other");
        let text = vec![7; 200_000];
        let mut out = Out::new(Vec::new(), &[recipient]).unwrap();
        out.write_all(&text).unwrap();
        let sealed = out.finish().unwrap();
        assert!(is_sealed(&sealed));
        let mut read = Vec::new();
        open(&sealed[..], Some(&key)).unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, text);
        assert!(matches!(open(&sealed[..], None).err(), Some(SealError::Closed)));
        assert!(matches!(open(&sealed[..], Some(&other)).err(), Some(SealError::Other)));
        let cut = &sealed[..sealed.len() - 70_000];
        assert!(open(cut, Some(&key)).unwrap().read_to_end(&mut read).is_err(), "a cut end is noticed");
        assert!("age1nonsense".parse::<Recipient>().is_err());
    }
}
