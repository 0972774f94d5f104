//! HTTP/1.1, over TLS or plain: accepts, shakes hands, and hands requests to a router with what is known of the peer.
//!
//! Owns the limits on connections; knows no route. Keys are asked for at every connection, so that they can change.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::ConnectInfo};
use fleet_broker::Keys;
use fleet_schemas::limits;
use hyper::{Request, body::Incoming, server::conn::http1, service::Service as _};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time,
};
use tokio_rustls::TlsAcceptor;

use crate::clock;

/// Most bytes of a request's head.
const HEAD_BYTES: usize = 32 * 1024;
/// Time that open requests have after a stop.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a peer may take none of what is sent to it.
const STALL: Duration = Duration::from_secs(60);
/// How often it is looked whether an old connection still moves.
const LOOK: Duration = Duration::from_secs(2);
/// How long a full process (no file descriptors) waits before it accepts again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What connections may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most connections.
    pub connections: usize,
    /// Most connections from one address (IPv6: from one /64).
    pub per_address: usize,
    /// How long a peer may take for the head of a request, and be silent between two.
    pub head: Duration,
    /// How long a connection may live, if it may not live on.
    pub life: Option<Duration>,
}

/// The other end of a connection; an extension of its requests.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// Its certificate (DER), signed by one of the CAs that the keys trust. Nothing else of it was judged.
    pub certificate: Option<Arc<[u8]>>,
    /// Whether what is said to it is encrypted.
    pub encrypted: bool,
}

/// Keeps a connection beyond its life while something long is sent over it, as long as that moves; an extension of its
/// requests.
#[derive(Debug, Clone, Default)]
pub struct Stay(Arc<Moves>);

#[derive(Debug, Default)]
struct Moves {
    held: AtomicUsize,
    moved_ms: AtomicU64,
}

/// One thing that is sent.
#[derive(Debug)]
pub struct Hold(Stay);

impl Stay {
    /// Begins to hold the connection.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.0.held.fetch_add(1, Ordering::Relaxed);
        let hold = Hold(self.clone());
        hold.moved();
        hold
    }

    fn keeps(&self, now: Duration) -> bool {
        let moved = Duration::from_millis(self.0.moved_ms.load(Ordering::Relaxed));
        self.0.held.load(Ordering::Relaxed) > 0 && now.saturating_sub(moved) < STALL
    }
}

impl Hold {
    /// Says that the peer took some of it.
    pub fn moved(&self) {
        let now_ms = u64::try_from(clock::mono().as_millis()).unwrap_or(u64::MAX);
        self.0.0.moved_ms.store(now_ms, Ordering::Relaxed);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves HTTPS until `stop`; then open requests have five seconds.
pub async fn serve(
    listener: TcpListener,
    keys: Arc<dyn Keys>,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    accept(listener, Some(keys), router, limits, stop).await;
}

/// Serves plain HTTP likewise.
pub async fn serve_plain(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    accept(listener, None, router, limits, stop).await;
}

async fn accept(
    listener: TcpListener,
    keys: Option<Arc<dyn Keys>>,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let crowd = Crowd::new(limits);
    let (stopped, stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            // The peer gave up meanwhile: its affair.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        // Beyond the limits it is closed without a word: an answer would need a handshake.
        let Some(place) = crowd.enter(peer.ip()) else { continue };
        let connection = Connection {
            peer,
            acceptor: keys.as_ref().map(|keys| TlsAcceptor::from(keys.server_config())),
            router: router.clone(),
            limits,
            stopping: stopping.clone(),
        };
        connections.spawn(async move {
            connection.drive(stream).await;
            drop(place);
        });
    }
    drop(listener);
    stopped.send_replace(true);
    let drained = time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        connections.shutdown().await;
    }
}

struct Connection {
    peer: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    stopping: watch::Receiver<bool>,
}

impl Connection {
    async fn drive(self, stream: TcpStream) {
        // Small answers must not wait for each other; a socket that refuses works without.
        let _ = stream.set_nodelay(true);
        let Some(acceptor) = &self.acceptor else {
            let peer = Peer { address: self.peer, certificate: None, encrypted: false };
            return self.talk(stream, peer).await;
        };
        let stream = match time::timeout(limits::HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(peer = %self.peer, %error, "a TLS handshake failed"),
            Err(_) => return tracing::debug!(peer = %self.peer, "a TLS handshake took too long"),
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let certificate = shown.map(|der| Arc::from(&der[..]));
        let peer = Peer { address: self.peer, certificate, encrypted: true };
        self.talk(stream, peer).await;
    }

    async fn talk(mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer) {
        let router = TowerToHyperService::new(self.router);
        let stay = Stay::default();
        let stays = stay.clone();
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer.address));
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(stays.clone());
            router.call(request)
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(serving);
        let life = async {
            match self.limits.life {
                Some(life) => {
                    time::sleep(life).await;
                    while stay.keeps(clock::mono()) {
                        time::sleep(LOOK).await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        let stopped = async {
            // An error means that the sender is gone, which is a stop too.
            let _ = self.stopping.wait_for(|stop| *stop).await;
        };
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            () = life => return tracing::debug!(peer = %self.peer, "a connection lived too long"),
            () = stopped => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %self.peer, %error, "a connection ended badly");
        }
    }
}

/// Counts connections.
struct Crowd {
    limits: Limits,
    places: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection's place in the crowd.
struct Place {
    network: IpAddr,
    places: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Crowd {
    fn new(limits: Limits) -> Self {
        Self { limits, places: Arc::default() }
    }

    fn enter(&self, address: IpAddr) -> Option<Place> {
        let network = network(address);
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let taken: usize = places.values().sum();
        let here = places.get(&network).copied().unwrap_or(0);
        if taken >= self.limits.connections || here >= self.limits.per_address {
            return None;
        }
        places.insert(network, here + 1);
        Some(Place { network, places: self.places.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        match places.get_mut(&self.network) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => drop(places.remove(&self.network)),
        }
    }
}

/// The network that one customer has: an IPv4 address, a /64 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_share_and_gives_it_back() {
        let limits = Limits { connections: 3, per_address: 2, head: Duration::ZERO, life: None };
        let crowd = Crowd::new(limits);
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let (first, second) = (crowd.enter(at("192.0.2.1")), crowd.enter(at("::ffff:192.0.2.1")));
        assert!(first.is_some() && second.is_some());
        assert!(crowd.enter(at("192.0.2.1")).is_none());
        let third = crowd.enter(at("2001:db8::1"));
        assert!(third.is_some() && crowd.enter(at("192.0.2.9")).is_none(), "full");
        drop((first, second, third));
        assert!(crowd.places.lock().unwrap().is_empty());
    }

    #[test]
    fn a_connection_stays_while_what_is_sent_moves() {
        let stay = Stay::default();
        let now = clock::mono();
        assert!(!stay.keeps(now));
        let hold = stay.hold();
        assert!(stay.keeps(now) && stay.keeps(now + STALL / 2));
        assert!(!stay.keeps(clock::mono() + STALL), "nobody took anything");
        hold.moved();
        drop(hold);
        assert!(!stay.keeps(now));
    }
}
