//! The edge API's listeners: TCP and a Unix socket, with deadlines and a limit on connections.

use std::{
    fs, io, net::SocketAddr, os::unix::fs::FileTypeExt as _, path::PathBuf, sync::Arc, time::Duration,
};

use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time,
};
use tracing::{debug, warn};

use super::{
    Config, ListenError,
    http::{Api, router},
};
use crate::stop::Stop;

/// Pause after an accept failed, as when the process has no descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Time that requests have to end when the agent stops.
const DRAIN: Duration = Duration::from_secs(1);
/// Largest head of a request, in bytes.
const HEAD_BYTES: usize = 16 * 1024;
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
pub(crate) async fn serve(bound: Bound, api: Arc<Api>, mut stop: Stop) {
    let Bound { tcp, unix, address: _ } = bound;
    let permits = Arc::new(Semaphore::new(api.config.connections));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(api.config.read)
        .max_buf_size(HEAD_BYTES)
        .half_close(true);
    let server = Server { http, router: router(api), stop: stop.clone() };
    let mut connections = JoinSet::new();
    loop {
        let accepted = select! {
            () = stop.wanted() => break,
            accepted = tcp.accept() => accepted.map(|(stream, _)| {
                let _ = stream.set_nodelay(true);
                server.take(stream, &permits, &mut connections);
            }),
            accepted = accept_unix(unix.as_ref()) => accepted.map(|stream| {
                server.take(stream, &permits, &mut connections);
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
    http: http1::Builder,
    router: axum::Router,
    stop: Stop,
}

impl Server {
    fn take<S>(&self, stream: S, permits: &Arc<Semaphore>, connections: &mut JoinSet<()>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match permits.clone().try_acquire_owned() {
            Ok(permit) => {
                connections.spawn(connection(
                    self.http.clone(),
                    stream,
                    self.router.clone(),
                    self.stop.clone(),
                    permit,
                ));
            }
            Err(_) => {
                connections.spawn(refuse(stream));
            }
        }
    }
}

async fn connection<S>(
    http: http1::Builder,
    stream: S,
    router: axum::Router,
    mut stop: Stop,
    _permit: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut serving = std::pin::pin!(serving);
    let ended = select! {
        ended = serving.as_mut() => ended,
        () = stop.wanted() => {
            serving.as_mut().graceful_shutdown();
            serving.await
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
