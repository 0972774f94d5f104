//! The edge API's listeners: TCP and a Unix socket, with deadlines and a limit on connections. HTTP/1.1 and HTTP/2
//! (by its preface) share them, and so do TLS, where it is on, and plain text from this machine.

use std::{
    fs, io, net::SocketAddr, os::unix::fs::FileTypeExt as _, path::PathBuf, sync::Arc, time::Duration,
};

use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    select,
    sync::Semaphore,
    task::JoinSet,
    time,
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::{
    Auth, Config, ListenError, Tls, auth,
    http::{Api, router},
    preface::{self, Version},
};
use crate::stop::Stop;

/// Pause after an accept failed, as when the process has no descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Time that requests have to end when the agent stops.
const DRAIN: Duration = Duration::from_secs(1);
/// Largest head of a request, in bytes.
const HEAD_BYTES: usize = 16 * 1024;
/// Requests that a connection of HTTP/2 may have open at a time: a write waits for one or two syncs of the disk, and at
/// 500 a second over one connection a slow one must not make them queue up at the client.
const STREAMS: u32 = 32;
/// Bytes that a request, and all requests of a connection, may send before somebody reads them.
const WINDOW_BYTES: u32 = 256 * 1024;
/// Bytes of an answer that wait for a client to read.
const SEND_BYTES: usize = 64 * 1024;
/// How often a quiet connection of HTTP/2 is asked whether it is still there, and how long it has to say so.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// Time to tell a client that there are too many.
const REFUSE: Duration = Duration::from_secs(1);
/// What a client hears when there are too many.
const CROWDED: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\
    retry-after: 1\r\ncontent-length: 128\r\nconnection: close\r\n\r\n\
    {\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\"detail\":\"too many connections; \
    close some, and keep one open\"}";

/// What another machine hears that speaks plain text where TLS is on.
const PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\n\
    content-length: 137\r\nconnection: close\r\n\r\n\
    {\"type\":\"about:blank\",\"title\":\"Bad Request\",\"status\":400,\"detail\":\"other machines have to speak TLS \
    here; use https and its certificate\"}";
/// The first byte of TLS: a handshake record (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// Listeners that are bound and not yet served.
pub(crate) struct Bound {
    tcp: TcpListener,
    tls: Option<Tls>,
    unix: Option<Socket>,
    /// Where TCP is bound.
    pub(crate) address: SocketAddr,
}

/// A Unix socket; its file goes with it.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Binds the listeners.
///
/// # Errors
/// [`ListenError`].
pub(crate) async fn bind(config: &Config, tls: Option<Tls>) -> Result<Bound, ListenError> {
    let wrong = |source| ListenError::Address { address: config.listen, source };
    let tcp = TcpListener::bind(config.listen).await.map_err(wrong)?;
    let address = tcp.local_addr().map_err(wrong)?;
    let unix = config.socket.as_ref().map(|path| {
        // What an agent that was killed left behind; anything but a socket is not ours to remove.
        if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            let _ = fs::remove_file(path);
        }
        let wrong = |source| ListenError::Socket { path: path.clone(), source };
        UnixListener::bind(path).map(|listener| Socket { listener, path: path.clone() }).map_err(wrong)
    });
    Ok(Bound { tcp, tls, unix: unix.transpose()?, address })
}

/// Serves until told to stop; requests that are under way are then answered.
pub(crate) async fn serve(bound: Bound, api: Arc<Api>, auth: Auth, mut stop: Stop) {
    let Bound { tcp, tls, unix, address: _ } = bound;
    let permits = Arc::new(Semaphore::new(api.config.connections));
    let clock = api.clock.clone();
    let read = api.config.read;
    let mut http1 = http1::Builder::new();
    http1.timer(TokioTimer::new()).header_read_timeout(read).max_buf_size(HEAD_BYTES).half_close(true);
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_header_list_size(HEAD_BYTES as u32)
        .max_send_buf_size(SEND_BYTES)
        .keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1);
    let open = router(api).await;
    let guarded = open.clone().layer(axum::middleware::from_fn_with_state(auth, auth::check));
    let server = Server { http1, http2, read, open, guarded, stop: stop.clone() };
    let mut connections = JoinSet::new();
    loop {
        let accepted = select! {
            () = stop.wanted() => break,
            accepted = tcp.accept() => accepted.map(|(stream, peer)| {
                let _ = stream.set_nodelay(true);
                let router = if Auth::is_needed(peer) { &server.guarded } else { &server.open };
                let tls = tls.as_ref().map(|tls| tls.acceptor(clock.now().up));
                let own = stream.local_addr().is_ok_and(|local| is_own(peer, local));
                server.take(Caller::Tcp { stream, tls, own }, router, &permits, &mut connections);
            }),
            accepted = accept_unix(unix.as_ref()) => accepted.map(|stream| {
                server.take(Caller::Unix(stream), &server.open, &permits, &mut connections);
            }),
            Some(_) = connections.join_next() => Ok(()),
        };
        if let Err(error) = accepted {
            warn!(%error, "the edge API cannot accept a connection; raise the limit on open files if this stays");
            time::sleep(ACCEPT_AGAIN).await;
        }
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    if time::timeout(DRAIN, drained).await.is_err() {
        debug!("connections of the edge API were cut");
    }
}

async fn accept_unix(socket: Option<&Socket>) -> io::Result<UnixStream> {
    match socket {
        Some(socket) => socket.listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// Whether a client is on this machine, at whatever address it found the agent.
fn is_own(peer: SocketAddr, local: SocketAddr) -> bool {
    let ip = peer.ip().to_canonical();
    ip.is_loopback() || ip == local.ip().to_canonical()
}

/// Somebody who comes in.
enum Caller {
    Tcp { stream: TcpStream, tls: Option<TlsAcceptor>, own: bool },
    Unix(UnixStream),
}

/// A connection as it is spoken over, whatever carries it.
trait Carries: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Carries for S {}
type Wire = Box<dyn Carries>;

impl Caller {
    /// What to speak over. `None`: plain text is not for this caller, and it was told so.
    async fn greet(self) -> io::Result<Option<Wire>> {
        match self {
            Self::Unix(stream) => Ok(Some(Box::new(stream))),
            Self::Tcp { stream, tls: None, own: _ } => Ok(Some(Box::new(stream))),
            Self::Tcp { stream, tls: Some(tls), own } => {
                let mut first = [0];
                let read = stream.peek(&mut first).await?;
                if read == 1 && first[0] == HANDSHAKE {
                    return Ok(Some(Box::new(tls.accept(stream).await?)));
                }
                if own {
                    return Ok(Some(Box::new(stream)));
                }
                say(PLAIN, Box::new(stream)).await;
                Ok(None)
            }
        }
    }

    /// Tells why, instead of letting the client wait for a place.
    async fn refuse(self) {
        match self {
            Self::Tcp { stream, .. } => say(CROWDED, Box::new(stream)).await,
            Self::Unix(stream) => say(CROWDED, Box::new(stream)).await,
        }
    }
}

/// Says a last word.
async fn say(text: &[u8], mut wire: Wire) {
    let told = async {
        wire.write_all(text).await?;
        wire.shutdown().await
    };
    let _ = time::timeout(REFUSE, told).await;
}

struct Server {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    // Time to shake hands, and to tell which of the two it is.
    read: Duration,
    // For this machine, and for others.
    open: axum::Router,
    guarded: axum::Router,
    stop: Stop,
}

impl Server {
    fn take(
        &self,
        caller: Caller,
        router: &axum::Router,
        permits: &Arc<Semaphore>,
        connections: &mut JoinSet<()>,
    ) {
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            connections.spawn(caller.refuse());
            return;
        };
        let (http1, http2, read) = (self.http1.clone(), self.http2.clone(), self.read);
        let (router, stop) = (TowerToHyperService::new(router.clone()), self.stop.clone());
        connections.spawn(async move {
            let _permit = permit;
            let told = async {
                let Some(wire) = caller.greet().await? else { return Ok(None) };
                preface::tell(wire).await.map(Some)
            };
            match time::timeout(read, told).await {
                Ok(Ok(Some((Version::Http1, wire)))) => {
                    one(http1.serve_connection(TokioIo::new(wire), router), stop).await;
                }
                Ok(Ok(Some((Version::Http2, wire)))) => {
                    two(http2.serve_connection(TokioIo::new(wire), router), stop).await;
                }
                Ok(Ok(None)) => debug!("a connection of the edge API did not speak TLS"),
                Ok(Err(error)) => debug!(%error, "a connection of the edge API ended"),
                Err(_) => debug!("a connection of the edge API said nothing in time"),
            }
        });
    }
}

type Router = TowerToHyperService<axum::Router>;
type Io = TokioIo<preface::Rewound<Wire>>;

async fn one(connection: http1::Connection<Io, Router>, mut stop: Stop) {
    let mut connection = std::pin::pin!(connection);
    let ended = select! {
        ended = connection.as_mut() => ended,
        () = stop.wanted() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection of the edge API ended");
    }
}

async fn two(connection: http2::Connection<Io, Router, TokioExecutor>, mut stop: Stop) {
    let mut connection = std::pin::pin!(connection);
    let ended = select! {
        ended = connection.as_mut() => ended,
        () = stop.wanted() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection of the edge API ended");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn refusals_are_as_long_as_they_say() {
        for refusal in [CROWDED, PLAIN] {
            let text = std::str::from_utf8(refusal).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
            assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
        }
    }

    #[test]
    fn this_machine_is_known_also_by_an_address_of_its_own() {
        for (peer, local, own) in [
            ("127.0.0.1:5", "127.0.0.1:9099", true),
            ("[::ffff:127.0.0.1]:5", "[::]:9099", true),
            ("10.0.0.7:5", "10.0.0.7:9099", true),
            ("[::ffff:10.0.0.7]:5", "10.0.0.7:9099", true),
            ("10.0.0.8:5", "10.0.0.7:9099", false),
        ] {
            assert_eq!(is_own(peer.parse().unwrap(), local.parse().unwrap()), own, "{peer}");
        }
    }

    #[tokio::test]
    async fn another_machine_is_told_to_speak_tls() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { tls: true, ..Config::default() };
        let node = fleet_schemas::NodeId::parse("edge-1").unwrap();
        let tls = Tls::load(&config, folder.path(), &node).unwrap().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let caller = Caller::Tcp { stream, tls: Some(tls.acceptor(Duration::ZERO)), own: false };
        assert!(caller.greet().await.unwrap().is_none());
        let mut answer = vec![0; PLAIN.len()];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, PLAIN);
    }
}
