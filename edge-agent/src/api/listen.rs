//! The edge API's listeners: TCP and a Unix socket, with deadlines and a limit on connections. HTTP/1.1 and HTTP/2
//! (without TLS, by its preface) share them.

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
    net::{TcpListener, UnixListener},
    select,
    sync::Semaphore,
    task::JoinSet,
    time,
};
use tracing::{debug, warn};

use super::{
    Auth, Config, ListenError, auth,
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
/// Requests that a connection of HTTP/2 may have open at a time.
const STREAMS: u32 = 16;
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

/// Listeners that are bound and not yet served.
pub(crate) struct Bound {
    tcp: TcpListener,
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
pub(crate) async fn bind(config: &Config) -> Result<Bound, ListenError> {
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
    Ok(Bound { tcp, unix: unix.transpose()?, address })
}

/// Serves until told to stop; requests that are under way are then answered.
pub(crate) async fn serve(bound: Bound, api: Arc<Api>, auth: Auth, mut stop: Stop) {
    let Bound { tcp, unix, address: _ } = bound;
    let permits = Arc::new(Semaphore::new(api.config.connections));
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
                server.take(stream, router, &permits, &mut connections);
            }),
            accepted = accept_unix(unix.as_ref()) => accepted.map(|stream| {
                server.take(stream, &server.open, &permits, &mut connections);
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

async fn accept_unix(socket: Option<&Socket>) -> io::Result<tokio::net::UnixStream> {
    match socket {
        Some(socket) => socket.listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

struct Server {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    // Time to tell which of the two it is.
    read: Duration,
    // For this machine, and for others.
    open: axum::Router,
    guarded: axum::Router,
    stop: Stop,
}

impl Server {
    fn take<S>(
        &self,
        stream: S,
        router: &axum::Router,
        permits: &Arc<Semaphore>,
        connections: &mut JoinSet<()>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            connections.spawn(refuse(stream));
            return;
        };
        let (http1, http2, read) = (self.http1.clone(), self.http2.clone(), self.read);
        let (router, stop) = (TowerToHyperService::new(router.clone()), self.stop.clone());
        connections.spawn(async move {
            let _permit = permit;
            match time::timeout(read, preface::tell(stream)).await {
                Ok(Ok((Version::Http1, stream))) => {
                    one(http1.serve_connection(TokioIo::new(stream), router), stop).await;
                }
                Ok(Ok((Version::Http2, stream))) => {
                    two(http2.serve_connection(TokioIo::new(stream), router), stop).await;
                }
                Ok(Err(error)) => debug!(%error, "a connection of the edge API ended"),
                Err(_) => debug!("a connection of the edge API said nothing in time"),
            }
        });
    }
}

type Router = TowerToHyperService<axum::Router>;

async fn one<S>(connection: http1::Connection<TokioIo<S>, Router>, mut stop: Stop)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
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

async fn two<S>(connection: http2::Connection<TokioIo<S>, Router, TokioExecutor>, mut stop: Stop)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
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

/// Tells why, instead of letting the client wait for a place.
async fn refuse(mut stream: impl AsyncWrite + Unpin) {
    let told = async {
        stream.write_all(CROWDED).await?;
        stream.shutdown().await
    };
    let _ = time::timeout(REFUSE, told).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let text = std::str::from_utf8(CROWDED).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
