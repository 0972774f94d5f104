//! The door: listener, threads and everything between a socket and a session.
//!
//! Owns the sockets and the sessions. Never names the router: what nodes say goes into a [`Pipe`], what they are
//! told comes through [`sessions::Sessions`], what tools hear through [`tools::Tools`].

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket},
    runtime,
    sync::{Notify, watch},
    time,
};

use crate::{
    clock,
    identity::Directory,
    router::{ear::Ears, pipe::Pipe},
    stats::Stats,
};

pub(crate) mod admit;
pub(crate) mod conn;
pub(crate) mod connect;
pub(crate) mod encode;
pub(crate) mod frame;
pub(crate) mod outlet;
pub(crate) mod session;
pub(crate) mod sessions;
pub(crate) mod tools;
pub(crate) mod wire;

/// What all connections share.
pub(crate) struct Gate {
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) up: Arc<Pipe>,
    pub(crate) sessions: Arc<sessions::Sessions>,
    pub(crate) max_sessions: usize,
    pub(crate) tools: Arc<tools::Tools>,
    pub(crate) max_tool_filters: usize,
    pub(crate) ears: Arc<Ears>,
    pub(crate) crowd: Crowd,
}

/// Counts the sessions that are not over yet.
#[derive(Default)]
pub(crate) struct Crowd {
    count: AtomicUsize,
    empty: Notify,
}

/// The running threads.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

/// How long a shutdown waits for last words to reach the nodes.
const CLOSE: Duration = Duration::from_secs(2);
/// Connections that wait to be accepted: a fleet that reconnects at once should not have to send SYN twice.
const BACKLOG: u32 = 4_096;
/// How long a full process (no file descriptors) waits before it accepts again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

impl Crowd {
    pub(crate) fn enter(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn leave(&self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.empty.notify_waiters();
        }
    }

    async fn all_gone(&self) {
        loop {
            let empty = self.empty.notified();
            tokio::pin!(empty);
            empty.as_mut().enable();
            if self.count.load(Ordering::Acquire) == 0 {
                return;
            }
            empty.await;
        }
    }
}

/// Binds `addr` and starts `count` threads that serve it.
pub(crate) fn start(
    gate: &Arc<Gate>,
    addr: SocketAddr,
    caps: Arc<sessions::Caps>,
    count: usize,
) -> io::Result<Running> {
    let (stop, stopped) = watch::channel(false);
    let mut runtimes = Vec::new();
    for _ in 0..count.max(1) {
        runtimes.push(runtime::Builder::new_current_thread().enable_io().enable_time().build()?);
    }
    let handles: Vec<_> = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
    let listener = {
        let _context = runtimes[0].enter();
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)?
    };
    let addr = listener.local_addr()?;
    runtimes[0].spawn(accept(listener, gate.clone(), caps, handles));
    let mut threads = Vec::new();
    for (at, runtime) in runtimes.into_iter().enumerate() {
        let (gate, mut stopped) = (gate.clone(), stopped.clone());
        let serve = move || {
            runtime.block_on(async {
                // An error means that the other end is gone, which ends it just as well.
                let _ = stopped.wait_for(|stop| *stop).await;
                let _ = time::timeout(CLOSE, gate.crowd.all_gone()).await;
            });
            runtime.shutdown_background();
        };
        threads.push(thread::Builder::new().name(format!("gate-{at}")).spawn(serve)?);
    }
    Ok(Running { addr, stop, threads })
}

impl Running {
    /// Stops listening, ends all sessions and joins the threads.
    pub(crate) fn stop(self, gate: &Gate) {
        gate.sessions.close_all();
        gate.tools.close_all();
        self.stop.send_replace(true);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the gate had panicked");
            }
        }
    }
}

async fn accept(
    listener: TcpListener,
    gate: Arc<Gate>,
    caps: Arc<sessions::Caps>,
    handles: Vec<runtime::Handle>,
) {
    for handle in handles.iter().cycle() {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The peer gave up meanwhile: its affair.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Ok(stream) = stream.into_std() else { continue };
        // Small answers must not wait for each other; a socket that refuses works without.
        let _ = stream.set_nodelay(true);
        match caps.enter(peer.ip()) {
            Ok(slot) => drop(handle.spawn(conn::drive(stream, peer, gate.clone(), slot))),
            Err(reason) => gate.stats.note(reason, clock::now(), &peer),
        }
    }
}
