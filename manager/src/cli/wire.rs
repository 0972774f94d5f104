//! HTTP/1.1 to one hub, over TCP or TLS: connects, sends, keeps one connection for the next request.
//!
//! Owns sockets and deadlines. Knows no verbs, no JSON and no tokens.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use reqwest::{Method, StatusCode, Url};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Mutex,
    time,
};
use tokio_rustls::TlsConnector;

/// Time for a connection to a hub, its handshake included.
const CONNECT: Duration = Duration::from_secs(5);
/// Largest answer, in bytes.
const ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// The way to one hub.
#[derive(Clone)]
pub(super) struct Wire {
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
    idle: Arc<Mutex<Option<Sender>>>,
}

type Sender = SendRequest<Full<Bytes>>;

/// An answer whose body was not yet read.
pub(super) struct Reply {
    response: Response<Incoming>,
    sender: Sender,
    wire: Wire,
}

/// Why there is no answer. The texts fit after "no hub answers at … (".
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// No connection.
    #[error("{0}")]
    Connect(io::Error),
    /// The hub did not prove that it is the one.
    #[error("{0}")]
    Trust(rustls::Error),
    /// It broke off.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// It took too long.
    #[error("no answer in time")]
    Slow,
    /// More than anybody wants.
    #[error("the answer is larger than 256 MiB; ask for less")]
    Large,
}

impl Wire {
    /// The way to the hub of `url`; `tls` is for https.
    pub(super) fn new(url: &Url, tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        Self {
            host: url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: url.port_or_known_default().unwrap_or(80),
            tls: tls.map(TlsConnector::from),
            idle: Arc::default(),
        }
    }

    /// Sends a request and waits for the answer's head.
    ///
    /// # Errors
    /// [`WireError`].
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        within: Option<Duration>,
    ) -> Result<Reply, WireError> {
        let kept = self.idle.lock().await.take();
        // A hub that closes a connection in that moment did not do what it was asked; only looking is asked again.
        let again = (kept.is_some() && *request.method() == Method::GET).then(|| request.clone());
        let mut sender = match kept {
            Some(sender) if sender.is_ready() => sender,
            Some(_) | None => self.connect().await?,
        };
        let answered = match (answer(&mut sender, request, within).await, again) {
            (Err(WireError::Http(_)), Some(again)) => {
                sender = self.connect().await?;
                answer(&mut sender, again, within).await
            }
            (answered, _) => answered,
        };
        Ok(Reply { response: answered?, sender, wire: self.clone() })
    }

    async fn connect(&self) -> Result<Sender, WireError> {
        time::timeout(CONNECT, self.dial()).await.unwrap_or(Err(WireError::Slow))
    }

    async fn dial(&self) -> Result<Sender, WireError> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(WireError::Connect)?;
        // Requests are small and wait for their answer.
        tcp.set_nodelay(true).map_err(WireError::Connect)?;
        let Some(tls) = &self.tls else { return open(tcp).await };
        let name = ServerName::try_from(self.host.clone())
            .map_err(|error| WireError::Connect(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let stream = tls.connect(name, tcp).await.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            inner.cloned().map_or(WireError::Connect(error), WireError::Trust)
        })?;
        open(stream).await
    }
}

async fn open(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Sender, WireError> {
    let (sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    // Its errors come back through the sender.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

async fn answer(
    sender: &mut Sender,
    request: Request<Full<Bytes>>,
    within: Option<Duration>,
) -> Result<Response<Incoming>, WireError> {
    let sent = sender.send_request(request);
    match within {
        None => Ok(sent.await?),
        Some(within) => Ok(time::timeout(within, sent).await.map_err(|_| WireError::Slow)??),
    }
}

impl Reply {
    /// Its status.
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header of it, where it is a text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// Its whole body; the connection is kept.
    ///
    /// # Errors
    /// [`WireError`].
    pub(super) async fn bytes(mut self, within: Duration) -> Result<Vec<u8>, WireError> {
        let mut bytes = Vec::new();
        let read = async {
            while let Some(chunk) = self.chunk().await? {
                if bytes.len() + chunk.len() > ANSWER_BYTES {
                    return Err(WireError::Large);
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(())
        };
        time::timeout(within, read).await.map_err(|_| WireError::Slow)??;
        *self.wire.idle.lock().await = Some(self.sender);
        Ok(bytes)
    }

    /// The next part of the body; none at its end.
    ///
    /// # Errors
    /// [`WireError::Http`].
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, WireError> {
        while let Some(frame) = self.response.body_mut().frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}
