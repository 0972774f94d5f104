//! The hub's certificates: its CA, its own certificate, and those it gives to nodes and tools.
//!
//! Owns the keys in memory and on disk, and changes them while everything goes on. What is due and when is decided in
//! [`rotation`]; who may have a certificate is decided by [`crate::core::identity`].

pub mod file;
mod keys;
pub mod make;
pub mod peer;
pub mod readmit;
pub mod rotation;
#[cfg(test)]
mod tests;

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fleet_schemas::{
    NodeId,
    enrol::{HUB_NAME, Pin, Trust},
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::Serialize;

pub use keys::{Keys, KeysError};
pub use make::{Request, RequestError};
pub use peer::{Peer, Who};

use crate::core::{
    Now,
    identity::{Certificate, Hash, Identities, Standing, trail::Line},
};
use file::{FileError, Folder, Kept, KeptAuthority, KeptFormer, KeptServer};
use make::{Authority, Holder, Made};
use rotation::{Ring, Server, Stage, Step};

/// Reads the hub's clock, and whether it is in doubt ([`crate::clock::HubClock::read`]).
pub type Clock = Arc<dyn Fn() -> (Now, bool) + Send + Sync>;

/// The hub's certificates. All methods may be called from any thread; those that change keys write to the disk.
pub struct Pki {
    folder: Folder,
    names: Vec<String>,
    clock: Clock,
    state: Mutex<State>,
    keys: Arc<Keys>,
}

struct State {
    authorities: Vec<(Authority, rotation::Authority)>,
    server: (Made, String),
    by: Pin,
    names: Vec<String>,
    former: Vec<(CertificateDer<'static>, KeptFormer)>,
}

/// A tool's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCertificate {
    /// PEM.
    pub pem: String,
    /// SHA-256 of its public key, for [`crate::core::identity::Access::key`].
    pub key: Hash,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: i64,
}

/// What there is, for operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The CAs, oldest first; the last one signs for nodes and tools.
    pub authorities: Vec<AuthorityStatus>,
    /// Where a change of the CA stands: `settled`, `moving` or `draining`.
    pub stage: &'static str,
    /// When the server's certificate was made, Unix milliseconds.
    pub server_made_ms: i64,
    /// When the server's certificate ends, Unix milliseconds.
    pub server_not_after_ms: i64,
    /// The names in it.
    pub server_names: Vec<String>,
}

/// One CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuthorityStatus {
    /// As in join tokens.
    pub pin: String,
    /// When it was made, Unix milliseconds.
    pub made_ms: i64,
    /// When it ends, Unix milliseconds.
    pub not_after_ms: i64,
    /// Whether it signs the certificates of nodes and tools.
    pub signs_clients: bool,
    /// Whether it signed the server's certificate.
    pub signs_server: bool,
}

/// Why the keys are not made, given or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// Keys or certificates that cannot be used.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// The configuration.
    #[error("`listen.names` has {0:?}, which is neither a DNS name nor an IP address")]
    Name(String),
    /// The rules of the listeners.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A signing request.
    #[error("the signing request is refused: {0}")]
    Request(#[from] RequestError),
    /// Nothing is issued.
    #[error("nothing is issued while the hub's clock is in doubt: `fleet status` says why and what to do")]
    ClockInDoubt,
    /// A change of the CA is under way already.
    #[error(
        "a change of the CA is under way; see `fleet pki status`, or end it with `fleet pki rotate ca --finish`"
    )]
    Moving,
    /// There is nothing to finish.
    #[error("no change of the CA is under way; `fleet pki rotate ca` begins one")]
    Settled,
}

impl Pki {
    /// Reads the keys in `data`, or makes them at the first start. `names` are those that the server's certificate is
    /// to have beside [`HUB_NAME`] and those of this machine.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(data: &Path, names: &[String], clock: Clock) -> Result<Self, Error> {
        let folder = Folder::open(data)?;
        if let Some(wrong) = names.iter().find(|name| ServerName::try_from(name.as_str()).is_err()) {
            return Err(Error::Name(wrong.clone()));
        }
        let names = server_names(names);
        let now_ms = clock().0.wall_ms;
        let state = match folder.read()? {
            Some(kept) => State::load(&kept, &data.join(file::FOLDER))?,
            None => {
                let state = State::first(&names, now_ms)?;
                folder.write(&state.kept())?;
                state
            }
        };
        let keys = Arc::new(Keys::new(state.parts(&data.join(file::FOLDER))?)?);
        let pki = Self { folder, names, clock, state: Mutex::new(state), keys };
        if pki.lock().names != pki.names {
            pki.change(|state, now_ms| state.serve_by(state.by, &pki.names, now_ms))?;
        }
        let late = |authority: &rotation::Authority| authority.not_after_ms <= now_ms;
        if pki.lock().authorities.iter().any(|(_, authority)| late(authority)) {
            tracing::error!(
                "a CA of this hub has ended; if the clock is right, start a new one with `fleet pki rotate ca`"
            );
        }
        Ok(pki)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rules of the TLS listeners.
    #[must_use]
    pub fn keys(&self) -> Arc<Keys> {
        self.keys.clone()
    }

    /// The CA that signed what the hub shows at present: what a join token has to carry.
    #[must_use]
    pub fn pin(&self) -> Pin {
        self.lock().by
    }

    /// The pin of the CA that signs for nodes and tools.
    #[must_use]
    pub fn signer(&self) -> Pin {
        self.lock().ring().signer().pin
    }

    /// The trusted CAs, PEM, for tools: the one first that signed what the hub shows.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        let state = self.lock();
        let mut trusted: Vec<_> = state.authorities.iter().rev().map(|(authority, _)| authority).collect();
        trusted.sort_by_key(|authority| authority.pin != state.by);
        trusted.into_iter().map(|authority| pem(&authority.der)).collect()
    }

    /// What a node is told to trust.
    #[must_use]
    pub fn trust(&self) -> Trust {
        let ca = self.lock().authorities.iter().rev().map(|(authority, _)| pem(&authority.der)).collect();
        Trust { ca, hub_ms: (self.clock)().0.wall_ms, releases_root: None }
    }

    /// Signs a node's certificate. Nothing is written: it counts once it is part of a committed change.
    ///
    /// # Errors
    /// [`Error::ClockInDoubt`], [`Error::Make`].
    pub fn issue_node(&self, request: &Request, node: &NodeId) -> Result<Certificate, Error> {
        let now_ms = self.trusted_ms()?;
        let state = self.lock();
        let (signer, _) = state.signer();
        let made = signer.client(request, Holder::Node(node), now_ms)?;
        let (issued_ms, not_after_ms) = (made.made_ms, made.not_after_ms);
        Ok(Certificate { der: made.der.to_vec(), issued_ms, not_after_ms, ca: signer.pin.0 })
    }

    /// Signs a tool's certificate, from its signing request (PEM).
    ///
    /// # Errors
    /// [`Error`].
    pub fn issue_access(&self, csr: &str, name: &str) -> Result<ToolCertificate, Error> {
        let request = Request::read(csr)?;
        let now_ms = self.trusted_ms()?;
        if !self.lock().signer().1.tools {
            self.change(|state, _| {
                state.signer_mut().tools = true;
                Ok(())
            })?;
        }
        let state = self.lock();
        let made = state.signer().0.client(&request, Holder::Tool(name), now_ms)?;
        Ok(ToolCertificate { pem: pem(&made.der), key: request.key, not_after_ms: made.not_after_ms })
    }

    /// Makes a new server certificate at once.
    ///
    /// # Errors
    /// [`Error`].
    pub fn rotate_server(&self) -> Result<(), Error> {
        self.trusted_ms()?;
        self.change(|state, now_ms| state.serve_by(state.by, &self.names, now_ms))
    }

    /// Begins a change of the CA: nodes are given certificates of a new one from now on.
    ///
    /// # Errors
    /// [`Error`].
    pub fn rotate_ca(&self) -> Result<(), Error> {
        self.trusted_ms()?;
        let step = self.lock().ring().rotate().ok_or(Error::Moving)?;
        self.take(step)
    }

    /// Goes on with a change of the CA without waiting for nodes: shows a certificate of the new one, or, if it does
    /// so already, drops the oldest. Nodes that have not renewed have to join again.
    ///
    /// # Errors
    /// [`Error`].
    pub fn finish(&self) -> Result<(), Error> {
        self.trusted_ms()?;
        let step = self.lock().ring().finish().ok_or(Error::Settled)?;
        self.take(step)
    }

    /// Does what is due; to be called every minute or so. `waiting`: how many nodes [`Pki::waiting`] gives. Says what
    /// was done.
    ///
    /// # Errors
    /// [`Error`]: it is tried again at the next call.
    pub fn tick(&self, waiting: usize) -> Result<Option<Step>, Error> {
        let (now, in_doubt) = (self.clock)();
        if in_doubt {
            return Ok(None);
        }
        let is_over = |(_, former): &(CertificateDer<'_>, KeptFormer)| former.until_ms <= now.wall_ms;
        if self.lock().former.iter().any(is_over) {
            self.change(|state, _| {
                state.former.retain(|former| !is_over(former));
                Ok(())
            })?;
        }
        let due = self.lock().ring().due(waiting, now.wall_ms);
        if let Some(step) = due {
            self.take(step)?;
        }
        Ok(due)
    }

    /// The CAs as the [trail](crate::core::identity::trail) has them, oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let made = |(authority, facts): &(Authority, rotation::Authority)| Line::AuthorityMade {
            pin: authority.pin.to_string(),
            certificate: pem(authority.vouched.as_ref().unwrap_or(&authority.der)),
            at_ms: facts.made_ms,
        };
        self.lock().authorities.iter().map(made).collect()
    }

    /// The nodes that may come in and have no certificate of the newest CA yet.
    #[must_use]
    pub fn waiting(&self, identities: &Identities) -> Vec<NodeId> {
        let signer = self.signer();
        let old = identities.enrolments.iter().filter(|(_, node)| {
            // One whose certificate the store does not have: it was given after the backup that the store comes from.
            let other = node.certificate.as_ref().is_none_or(|certificate| certificate.ca != signer.0);
            node.standing == Standing::Enrolled && other
        });
        old.map(|(id, _)| id.clone()).collect()
    }

    /// What there is.
    #[must_use]
    pub fn status(&self) -> Status {
        let state = self.lock();
        let ring = state.ring();
        let authority = |authority: &rotation::Authority| AuthorityStatus {
            pin: authority.pin.to_string(),
            made_ms: authority.made_ms,
            not_after_ms: authority.not_after_ms,
            signs_clients: authority.pin == ring.signer().pin,
            signs_server: authority.pin == state.by,
        };
        Status {
            authorities: ring.authorities.iter().map(authority).collect(),
            stage: match ring.stage() {
                Stage::Settled => "settled",
                Stage::Moving => "moving",
                Stage::Draining => "draining",
            },
            server_made_ms: ring.server.made_ms,
            server_not_after_ms: ring.server.not_after_ms,
            server_names: state.names.clone(),
        }
    }

    fn trusted_ms(&self) -> Result<i64, Error> {
        match (self.clock)() {
            (_, true) => Err(Error::ClockInDoubt),
            (now, false) => Ok(now.wall_ms),
        }
    }

    fn take(&self, step: Step) -> Result<(), Error> {
        self.change(|state, now_ms| match step {
            Step::MakeAuthority => {
                let authority = state.signer().0.successor(now_ms)?;
                state.signer_mut().retired_ms = Some(now_ms);
                state.push(authority, now_ms);
                Ok(())
            }
            Step::MakeServer(by) => state.serve_by(by, &self.names, now_ms),
            Step::Drop(pin) => {
                state.authorities.retain(|(authority, _)| authority.pin != pin);
                Ok(())
            }
        })
    }

    /// Changes a copy, writes it, and only then lets everybody see it.
    fn change(&self, make: impl FnOnce(&mut State, i64) -> Result<(), Error>) -> Result<(), Error> {
        let mut state = self.lock();
        let mut next = State::load(&state.kept(), Path::new(file::FOLDER))?;
        make(&mut next, (self.clock)().0.wall_ms)?;
        let parts = next.parts(Path::new(file::FOLDER))?;
        self.folder.write(&next.kept())?;
        self.keys.swap(parts)?;
        *state = next;
        Ok(())
    }
}

impl State {
    fn first(names: &[String], now_ms: i64) -> Result<Self, Error> {
        let authority = Authority::make(now_ms)?;
        let server = authority.server(names, now_ms)?;
        let (by, names) = (authority.pin, names.to_owned());
        let mut state = Self { authorities: Vec::new(), server, by, names, former: Vec::new() };
        state.push(authority, now_ms);
        Ok(state)
    }

    fn push(&mut self, authority: Authority, now_ms: i64) {
        let facts = rotation::Authority {
            pin: authority.pin,
            made_ms: now_ms,
            not_after_ms: now_ms.saturating_add(crate::core::time::millis(rotation::AUTHORITY_LIFE)),
            retired_ms: None,
            tools: false,
        };
        self.authorities.push((authority, facts));
    }

    fn load(kept: &Kept, folder: &Path) -> Result<Self, Error> {
        let damaged = |why: &str| FileError::Damaged { path: folder.to_owned(), why: why.to_owned() };
        let mut authorities = Vec::new();
        for one in &kept.authorities {
            let mut authority = Authority::new(der(&one.certificate, &damaged)?, one.key.clone())
                .map_err(|error| damaged(&error.to_string()))?;
            authority.vouched = one.vouched.as_ref().map(|pem| der(pem, &damaged)).transpose()?;
            let facts = rotation::Authority {
                pin: authority.pin,
                made_ms: one.made_ms,
                not_after_ms: one.not_after_ms,
                retired_ms: one.retired_ms,
                tools: one.tools,
            };
            authorities.push((authority, facts));
        }
        let server = &kept.server;
        let by = server.by.parse().map_err(|_| damaged("the server certificate's CA"))?;
        if !authorities.iter().any(|(authority, _)| authority.pin == by) {
            return Err(damaged("the CA of the server's certificate is missing").into());
        }
        let (made_ms, not_after_ms) = (server.made_ms, server.not_after_ms);
        let made = Made { der: der(&server.certificate, &damaged)?, made_ms, not_after_ms };
        let former = |one: &KeptFormer| Ok::<_, FileError>((der(&one.certificate, &damaged)?, one.clone()));
        let former = kept.former.iter().map(former).collect::<Result<_, _>>()?;
        let (server, names) = ((made, server.key.clone()), server.names.clone());
        Ok(Self { authorities, server, by, names, former })
    }

    fn kept(&self) -> Kept {
        let authority = |(authority, facts): &(Authority, rotation::Authority)| KeptAuthority {
            certificate: pem(&authority.der),
            key: authority.key.clone(),
            vouched: authority.vouched.as_ref().map(|der| pem(der)),
            made_ms: facts.made_ms,
            not_after_ms: facts.not_after_ms,
            retired_ms: facts.retired_ms,
            tools: facts.tools,
        };
        let (made, key) = &self.server;
        let server = KeptServer {
            certificate: pem(&made.der),
            key: key.clone(),
            by: self.by.to_string(),
            names: self.names.clone(),
            made_ms: made.made_ms,
            not_after_ms: made.not_after_ms,
        };
        let former = self.former.iter().map(|(_, former)| former.clone()).collect();
        Kept { former, ..Kept::new(self.authorities.iter().map(authority).collect(), server) }
    }

    fn ring(&self) -> Ring {
        let (made, _) = &self.server;
        let (made_ms, not_after_ms) = (made.made_ms, made.not_after_ms);
        Ring {
            authorities: self.authorities.iter().map(|(_, facts)| *facts).collect(),
            server: Server { by: self.by, made_ms, not_after_ms },
        }
    }

    fn signer(&self) -> &(Authority, rotation::Authority) {
        self.authorities.last().expect("there is a CA from the first start on")
    }

    fn signer_mut(&mut self) -> &mut rotation::Authority {
        &mut self.authorities.last_mut().expect("there is a CA from the first start on").1
    }

    fn shown(&self) -> &Authority {
        let by = |(authority, _): &&(Authority, rotation::Authority)| authority.pin == self.by;
        &self.authorities.iter().find(by).expect("the CA of what the hub shows is not dropped").0
    }

    fn serve_by(&mut self, by: Pin, names: &[String], now_ms: i64) -> Result<(), Error> {
        self.by = by;
        self.names = names.to_owned();
        self.server = self.shown().server(names, now_ms)?;
        Ok(())
    }

    fn parts(&self, folder: &Path) -> Result<keys::Parts<'_>, Error> {
        let (made, key) = &self.server;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| FileError::Damaged { path: folder.to_owned(), why: error.to_string() })?;
        Ok(keys::Parts {
            chain: vec![made.der.clone(), self.shown().der.clone()],
            key,
            trusted: {
                let former = self.former.iter().map(|(der, _)| der);
                self.authorities.iter().map(|(authority, _)| &authority.der).chain(former).collect()
            },
        })
    }
}

/// A certificate as text.
#[must_use]
pub fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

fn der(pem: &str, damaged: &impl Fn(&str) -> FileError) -> Result<CertificateDer<'static>, FileError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(&error.to_string()))
}

/// The names in the server's certificate: ours, this machine's, then what the configuration asks for.
fn server_names(asked: &[String]) -> Vec<String> {
    let mut names: Vec<String> = [HUB_NAME, "localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let host = sysinfo::System::host_name().ok().map(|name| name.to_ascii_lowercase());
    let plain = |name: &String| {
        let byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        !name.is_empty() && name.len() <= 253 && name.bytes().all(byte)
    };
    for name in host.filter(plain).into_iter().chain(asked.iter().cloned()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
