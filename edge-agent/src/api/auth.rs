//! Who may use the edge API: this machine as it is, other machines with a token.
//!
//! Owns the token file. A client is of this machine when it comes from a loopback address or over the Unix socket.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{Config, ListenError, problem::Problem};
use crate::{clock, devices::offers};

/// The token file's name in the data folder.
pub(super) const FILE: &str = "api-token";
/// Shortest token, in bytes: 96 random bits as hexadecimal digits.
const SHORTEST: usize = 24;
/// Longest token, in bytes.
const LONGEST: usize = 1_024;

/// Knows the token, if one is needed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Auth(Option<Arc<[u8; 32]>>);

impl Auth {
    /// Reads the token when the address is not this machine's alone; makes one where none is configured.
    ///
    /// # Errors
    /// [`ListenError::Token`].
    pub(crate) fn load(config: &Config, data: &Path) -> Result<Self, ListenError> {
        if config.listen.ip().is_loopback() {
            return Ok(Self(None));
        }
        let path = path(config, data);
        let made = if config.token_file.is_none() { make(&path) } else { Ok(()) };
        let token = made.map_err(|error| error.to_string()).and_then(|()| read(&path));
        match token {
            Ok(token) => Ok(Self(Some(Arc::new(Sha256::digest(token).into())))),
            Err(problem) => Err(ListenError::Token { address: config.listen, path, problem }),
        }
    }

    /// Whether a client at this address has to bring the token.
    pub(super) fn is_needed(peer: SocketAddr) -> bool {
        !peer.ip().to_canonical().is_loopback()
    }

    fn allows(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = &self.0 else { return false };
        let text = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = text.and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        token.is_some_and(|token| Sha256::digest(token).ct_eq(expected.as_slice()).into())
    }
}

/// Lets a request of another machine through when it brings the token.
pub(super) async fn check(State(auth): State<Auth>, request: Request, next: Next) -> Response {
    // What is there is let out by the address alone, which only the device knows that was told it.
    let is_firmware = request.uri().path().starts_with(offers::PATH);
    if is_firmware || auth.allows(request.headers()) {
        return next.run(request).await;
    }
    let detail = "give the token in the node's `api-token` file as `Authorization: Bearer TOKEN`";
    let problem = Problem::new(StatusCode::UNAUTHORIZED, detail);
    let grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        return tonic::Status::from(problem).into_http::<axum::body::Body>();
    }
    let mut response = problem.into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    response
}

/// The token that a client of this address has to bring, where it needs one and this user can read it.
#[must_use]
pub fn token(config: &Config, data: &Path) -> Option<String> {
    if config.listen.ip().is_loopback() { None } else { read(&path(config, data)).ok() }
}

fn path(config: &Config, data: &Path) -> PathBuf {
    config.token_file.clone().unwrap_or_else(|| data.join(FILE))
}

/// The token in a file that nobody else can read.
fn read(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mode = file.metadata().map_err(|error| error.to_string())?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(format!("others can read it (mode {:o}); chmod 600", mode & 0o777));
    }
    let mut text = String::new();
    file.take(LONGEST as u64 + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let token = text.trim();
    if token.len() < SHORTEST || token.len() > LONGEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("it has to hold {SHORTEST} to {LONGEST} visible characters"));
    }
    Ok(token.to_owned())
}

/// Makes the file with a random token, unless it is there.
fn make(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let digits: String = clock::random::<32>().iter().map(|byte| format!("{byte:02x}")).collect();
    // Whole or not at all: a file that was half written would lock everybody out.
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    writeln!(file, "{digits}")?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outside(token_file: Option<std::path::PathBuf>) -> Config {
        Config { listen: "0.0.0.0:0".parse().unwrap(), token_file, ..Config::default() }
    }

    #[test]
    fn an_address_of_other_machines_gets_a_token_of_its_own_and_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let auth = Auth::load(&outside(None), folder.path()).unwrap();
        let token = fs::read_to_string(folder.path().join(FILE)).unwrap();
        let again = Auth::load(&outside(None), folder.path()).unwrap();
        assert_eq!(fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        for (text, allowed) in [
            (format!("Bearer {}", token.trim()), true),
            (format!("bearer  {}", token.trim()), true),
            (format!("Basic {}", token.trim()), false),
            (token.trim().to_owned(), false),
            (format!("Bearer {}0", token.trim()), false),
            ("Bearer ".to_owned(), false),
        ] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, text.parse().unwrap())]);
            assert_eq!((auth.allows(&headers), again.allows(&headers)), (allowed, allowed), "{text}");
        }
        assert!(!Auth::default().allows(&HeaderMap::new()));
    }

    #[test]
    fn a_token_that_is_none_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let refused = || match Auth::load(&outside(Some(path.clone())), folder.path()) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("taken"),
        };
        assert!(refused().contains("127.0.0.1"), "{}", refused());
        fs::write(&path, "short").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(refused().contains("24 to 1024"), "{}", refused());
        fs::write(&path, "x".repeat(40)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refused().contains("chmod 600"), "{}", refused());
        let inside = Config { token_file: Some("/nowhere".into()), ..Config::default() };
        assert!(Auth::load(&inside, folder.path()).is_ok(), "this machine needs none");
    }

    #[test]
    fn this_machine_is_known_by_its_address() {
        for (peer, needed) in [
            ("127.0.0.9:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("10.0.0.1:1", true),
        ] {
            assert_eq!(Auth::is_needed(peer.parse().unwrap()), needed, "{peer}");
        }
    }
}
