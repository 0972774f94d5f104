//! One POST: over TCP or TLS, bounded in time and in what is read of the answer.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use rustls::{ClientConfig, RootCertStore, crypto::ring, version};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time,
};
use tokio_rustls::TlsConnector;

use super::Receiver;

/// Where systems keep the CAs that they trust.
const SYSTEM: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// Of an answer that is a refusal so much is told, in bytes.
const ANSWER_BYTES: usize = 300;

/// Why a word was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostError {
    /// It may be taken another time.
    #[error("{0}")]
    Again(String),
    /// It never will.
    #[error("{0}")]
    Never(String),
}

fn again(error: impl std::fmt::Display) -> PostError {
    PostError::Again(error.to_string())
}

/// Posts a body to a receiver; `path` is appended to its URL.
///
/// # Errors
/// [`PostError`].
pub(super) async fn post(
    receiver: &Receiver,
    path: &str,
    content_type: &'static str,
    body: Vec<u8>,
) -> Result<(), PostError> {
    let within = Duration::from_secs(receiver.timeout_s.into());
    let sent = time::timeout(within, send(receiver, path, content_type, body));
    sent.await.unwrap_or_else(|_| Err(again(format!("no answer within {} s", receiver.timeout_s))))
}

async fn send(
    receiver: &Receiver,
    path: &str,
    content_type: &'static str,
    body: Vec<u8>,
) -> Result<(), PostError> {
    let text = format!("{}{path}", receiver.url.trim_end_matches(if path.is_empty() { ' ' } else { '/' }));
    let url = Url::parse(&text).map_err(|error| PostError::Never(error.to_string()))?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or(80);
    let tcp = TcpStream::connect((host.as_str(), port)).await.map_err(again)?;
    let target = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let authority = url.authority();
    let mut request = Request::post(target)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::USER_AGENT, concat!("fleet/", env!("CARGO_PKG_VERSION")));
    if let Some(file) = &receiver.token_file {
        // Read each time: it may be changed while the hub runs.
        let token =
            fs::read_to_string(file).map_err(|error| again(format!("{}: {error}", file.display())))?;
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(again)?;
    if url.scheme() == "http" {
        return exchange(tcp, request).await;
    }
    let rules = trusted(receiver.ca_file.as_deref()).map_err(again)?;
    let name = ServerName::try_from(host).map_err(again)?;
    let tls = TlsConnector::from(rules).connect(name, tcp).await.map_err(again)?;
    exchange(tls, request).await
}

async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(), PostError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(again)?;
    // Its errors come back through the sender.
    let connection = tokio::spawn(async move { drop(connection.await) });
    let answered = sender.send_request(request).await.map_err(again);
    let told = match answered {
        Ok(response) if response.status().is_success() => Ok(()),
        Ok(mut response) => {
            let status = response.status();
            let mut said = Vec::new();
            while said.len() < ANSWER_BYTES
                && let Some(Ok(frame)) = response.body_mut().frame().await
            {
                said.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            }
            said.truncate(ANSWER_BYTES);
            let why = format!("{status}: {}", String::from_utf8_lossy(&said).trim());
            // A client's mistake is not cured by repetition, but for these.
            let cured = [
                StatusCode::UNAUTHORIZED,
                StatusCode::FORBIDDEN,
                StatusCode::NOT_FOUND,
                StatusCode::REQUEST_TIMEOUT,
                StatusCode::TOO_MANY_REQUESTS,
            ];
            let never = status.is_client_error() && !cured.contains(&status);
            Err(if never { PostError::Never(why) } else { PostError::Again(why) })
        }
        Err(error) => Err(error),
    };
    connection.abort();
    told
}

/// The rules of a TLS connection to whom these CAs vouch for.
fn trusted(ca_file: Option<&Path>) -> io::Result<Arc<ClientConfig>> {
    let pem = match ca_file {
        Some(file) => fs::read(file)?,
        None => SYSTEM
            .iter()
            .find_map(|file| fs::read(file).ok())
            .ok_or_else(|| io::Error::other("this system has no list of CAs; name one with ca_file"))?,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem).flatten() {
        // One that this TLS cannot read vouches for nobody.
        let _ = roots.add(certificate);
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
