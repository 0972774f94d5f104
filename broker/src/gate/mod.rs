//! The door: listeners, threads and everything between a socket and a session.
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
    PublishLimit, clock,
    identity::Directory,
    keys::Keys,
    router::{ear::Ears, pipe::Pipe},
    stats::{Reason, Stats},
};

pub(crate) mod admit;
pub(crate) mod conn;
pub(crate) mod judge;
pub(crate) mod outlet;
pub(crate) mod retained;
pub(crate) mod rivals;
pub(crate) mod session;
pub(crate) mod sessions;
pub(crate) mod talk;
pub(crate) mod tools;
pub(crate) mod transport;
pub(crate) use crate::{
    caps, pace,
    packets::{connect, encode, frame, wire},
};

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
    pub(crate) talk: Arc<talk::Talk>,
    pub(crate) crowd: Crowd,
    pub(crate) judge: judge::Judge,
    pub(crate) publish_limit: PublishLimit,
}

/// Where and how the gate listens.
pub(crate) struct Door {
    pub(crate) addr: SocketAddr,
    /// For TLS; without, it is plain MQTT.
    pub(crate) keys: Option<Arc<dyn Keys>>,
    /// Most connections from one address.
    pub(crate) per_address: usize,
}

/// Counts the sessions that are not over yet.
#[derive(Default)]
pub(crate) struct Crowd {
    count: AtomicUsize,
    empty: Notify,
}

/// The running threads.
pub(crate) struct Running {
    /// Where the doors are, in their order.
    pub(crate) addrs: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

/// How long a shutdown waits for last words to reach the nodes.
const CLOSE: Duration = Duration::from_secs(2);
/// Connections that wait to be accepted: a fleet that reconnects at once should not have to send SYN twice.
const BACKLOG: u32 = 4_096;
/// How long a full process (no file descriptors) waits before it accepts again, and how many connections without a
/// session it ends first: newcomers stand behind thousands of others in the system's queue.
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);
const MAKE_ROOM: usize = 128;

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

/// Binds the doors and starts `count` threads that serve them. The error comes with the door that it is about.
pub(crate) fn start(
    gate: &Arc<Gate>,
    doors: Vec<Door>,
    caps: &Arc<caps::Caps>,
    count: usize,
) -> Result<Running, (SocketAddr, io::Error)> {
    let first = doors[0].addr;
    let (stop, stopped) = watch::channel(false);
    let mut runtimes = Vec::new();
    for _ in 0..count.max(1) {
        let runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build();
        runtimes.push(runtime.map_err(|error| (first, error))?);
    }
    let handles: Vec<_> = runtimes.iter().map(|runtime| runtime.handle().clone()).collect();
    let mut addrs = Vec::new();
    for (at, door) in doors.into_iter().enumerate() {
        let listener = {
            let _context = runtimes[0].enter();
            bind(door.addr).map_err(|error| (door.addr, error))?
        };
        addrs.push(listener.local_addr().map_err(|error| (door.addr, error))?);
        // Each door begins with another thread.
        let handles = handles.iter().cycle().skip(at).take(handles.len()).cloned().collect();
        runtimes[0].spawn(accept(listener, door, gate.clone(), caps.clone(), handles));
    }
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
        threads.push(thread::Builder::new().name(format!("gate-{at}")).spawn(serve));
    }
    let threads: io::Result<_> = threads.into_iter().collect();
    Ok(Running { addrs, stop, threads: threads.map_err(|error| (first, error))? })
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
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
        gate.judge.stop();
    }
}

async fn accept(
    listener: TcpListener,
    door: Door,
    gate: Arc<Gate>,
    caps: Arc<caps::Caps>,
    handles: Vec<runtime::Handle>,
) {
    for handle in handles.iter().cycle() {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The peer gave up meanwhile: its affair.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                caps.crowd_out(MAKE_ROOM);
                gate.stats.note(Reason::Exhausted, clock::now(), &error);
                time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Ok(stream) = stream.into_std() else { continue };
        // Small answers must not wait for each other; a socket that refuses works without.
        let _ = stream.set_nodelay(true);
        match caps.enter(peer.ip(), door.per_address) {
            Ok(slot) => {
                drop(handle.spawn(conn::drive(stream, peer, gate.clone(), slot, door.keys.clone())));
            }
            Err(reason) => gate.stats.note(reason, clock::now(), &peer),
        }
    }
}
