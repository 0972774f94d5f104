//! One connection: moves bytes and time between a socket and its session, and nothing else.
//!
//! Waits for readiness and reads without an await into one buffer per thread, so an idle session owns no buffer
//! (GATE-NOTES 1). Decides nothing: `admit` and `session` do.

use std::{cell::RefCell, future, io, mem, net::SocketAddr, sync::Arc, time::Duration, time::Instant};

use fleet_schemas::limits;
use tokio::{io::AsyncWriteExt, net::TcpStream, pin, select, task, time};

use crate::{
    clock,
    gate::{
        Gate,
        frame::{FrameError, FrameReader},
        outlet::{self, Outlet},
        session::{Cut, Delivery, Effects, Session},
        sessions::Slot,
    },
    stats::Reason,
};

struct Conn {
    gate: Arc<Gate>,
    peer: SocketAddr,
    reader: FrameReader,
    stage: Stage,
    /// Bytes the socket did not take yet.
    out: Vec<u8>,
    accepted: Instant,
    paused: bool,
    busy: Option<Busy>,
}

enum Stage {
    Fresh,
    Open {
        session: Box<Session>,
        outlet: Outlet,
    },
    /// The last bytes are on their way; whether the peer is still there to read them.
    Closing {
        reachable: bool,
    },
}

/// Counted from CONNACK until the connection is over; a shutdown waits for these.
struct Busy(Arc<Gate>);

enum Wake {
    Outlet,
    Readable,
    Writable,
    Room,
    Timer,
}

struct Scratch {
    bytes: Vec<u8>,
    effects: Effects,
}

/// Read at once, one buffer per thread.
const READ: usize = 64 * 1024;
/// CONNECT with the longest will a node needs, credentials included.
const CONNECT_BYTES: usize = 16 * 1024;
/// With more than this unsent, a session is not read: its peer does not read its acknowledgements either.
const OUT_READ: usize = 64 * 1024;
/// With more than this unsent, messages wait in the session's queue.
const OUT_DELIVER: usize = 16 * 1024;
/// An empty outgoing buffer above this is given back.
const OUT_KEPT: usize = 1024;
/// How long the last packet may take to reach the peer, and how much of what it still sends is thrown away.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { bytes: vec![0; READ], effects: Effects::default() });
}

/// Lends this thread's buffers. The effects are taken out, so that a panic cannot leave one session's to another.
fn with_scratch<T>(run: impl FnOnce(&mut [u8], &mut Effects) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut effects = mem::take(&mut scratch.effects);
        let outcome = run(&mut scratch.bytes, &mut effects);
        scratch.effects = effects;
        outcome
    })
}

/// Serves one accepted connection until it is over.
pub(crate) async fn drive(stream: std::net::TcpStream, peer: SocketAddr, gate: Arc<Gate>, slot: Slot) {
    let Ok(mut stream) = TcpStream::from_std(stream) else { return };
    let accepted = clock::now();
    let mut conn = Conn {
        gate,
        peer,
        reader: FrameReader::default(),
        stage: Stage::Fresh,
        out: Vec::new(),
        accepted,
        paused: false,
        busy: None,
    };
    let mut armed = conn.deadline();
    let timer = time::sleep_until(armed.into());
    pin!(timer);
    loop {
        let more = conn.serve_outlet(&stream, clock::now());
        if let Stage::Closing { reachable } = conn.stage {
            if reachable {
                linger(&mut stream, &conn.out).await;
            }
            break;
        }
        let wanted = conn.deadline();
        if wanted < armed {
            armed = wanted;
            timer.as_mut().reset(armed.into());
        }
        if more {
            // What else is due here comes to its turn, and then the rest of the queue.
            task::yield_now().await;
        }
        match conn.wait(&stream, timer.as_mut(), more).await {
            Wake::Outlet | Wake::Room => {}
            Wake::Readable => conn.read(&stream, clock::now()),
            Wake::Writable => conn.flush(&stream, clock::now()),
            Wake::Timer => {
                conn.expire(&stream, clock::now());
                armed = conn.deadline();
                timer.as_mut().reset(armed.into());
            }
        }
    }
    drop(slot);
}

impl Conn {
    async fn wait(&mut self, stream: &TcpStream, timer: std::pin::Pin<&mut time::Sleep>, more: bool) -> Wake {
        self.balance(clock::now());
        let outlet = async {
            match &self.stage {
                Stage::Open { outlet, .. } => outlet.wake().notified().await,
                Stage::Fresh | Stage::Closing { .. } => future::pending().await,
            }
        };
        // An error of either readiness shows in the read or write that follows.
        select! {
            biased;
            () = outlet => Wake::Outlet,
            _ = stream.writable(), if !self.out.is_empty() => Wake::Writable,
            _ = stream.readable(), if !self.paused && self.out.len() < OUT_READ => Wake::Readable,
            () = self.gate.up.wait_for_room(), if self.paused => Wake::Room,
            () = timer => Wake::Timer,
            () = future::ready(()), if more => Wake::Outlet,
        }
    }

    fn deadline(&self) -> Instant {
        match &self.stage {
            Stage::Fresh | Stage::Closing { .. } => self.accepted + limits::CONNECT,
            Stage::Open { session, .. } => session.poll_timeout(),
        }
    }

    /// Pauses or resumes reading as the consumer's backlog wants it.
    fn balance(&mut self, now: Instant) {
        let Stage::Open { session, outlet: Outlet::Node(_) } = &mut self.stage else { return };
        let pause = !self.gate.up.has_room();
        if pause != self.paused {
            self.paused = pause;
            if pause {
                session.handle_pause(now);
                self.gate.stats.pauses.add(1);
                self.gate.stats.paused_sessions.add(1);
            } else {
                session.handle_resume(now);
                self.gate.stats.paused_sessions.sub(1);
            }
        }
    }

    fn read(&mut self, stream: &TcpStream, now: Instant) {
        let speaks = matches!(self.stage, Stage::Open { outlet: Outlet::Node(_), .. });
        if speaks && !self.gate.up.has_room() {
            return;
        }
        with_scratch(|bytes, effects| {
            match stream.try_read(bytes) {
                Ok(0) => self.lose(effects),
                Ok(n) => self.digest(&bytes[..n], now, effects),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.lose(effects),
            }
            self.apply(stream, effects, now);
        });
    }

    fn digest(&mut self, mut input: &[u8], now: Instant, effects: &mut Effects) {
        while effects.end.is_none() {
            let Self { gate, peer, reader, stage, busy, .. } = self;
            match stage {
                Stage::Fresh => {
                    let first = reader.first().or(input.first().copied());
                    let failed = match reader.next(&mut input, CONNECT_BYTES) {
                        _ if first.is_some_and(|first| first >> 4 != 1) => Reason::ConnectFirst,
                        Ok(None) => return,
                        Ok(Some(frame)) => {
                            if let Some((session, outlet)) = outlet::open(gate, *peer, &frame, now, effects) {
                                *stage = Stage::Open { session: Box::new(session), outlet };
                                *busy = Some(Busy::new(gate));
                            }
                            continue;
                        }
                        Err(FrameError::TooLarge) => Reason::TooLarge,
                        Err(FrameError::First | FrameError::Length) => Reason::Malformed,
                    };
                    effects.end = Some(Some(failed));
                }
                Stage::Open { session, .. } => match reader.next(&mut input, limits::PACKET_BYTES) {
                    Ok(None) => return,
                    Ok(Some(frame)) => session.handle_packet(frame.first, frame.body, now, effects),
                    Err(error) => session.handle_broken_stream(error, effects),
                },
                Stage::Closing { .. } => return,
            }
        }
    }

    fn lose(&mut self, effects: &mut Effects) {
        match &mut self.stage {
            Stage::Open { session, .. } => session.handle_lost(effects),
            Stage::Fresh | Stage::Closing { .. } => effects.end = Some(Some(Reason::Lost)),
        }
    }

    fn expire(&mut self, stream: &TcpStream, now: Instant) {
        with_scratch(|_, effects| {
            match &mut self.stage {
                Stage::Open { session, .. } => session.handle_timeout(now, effects),
                Stage::Fresh if now >= self.accepted + limits::CONNECT => {
                    effects.end = Some(Some(Reason::ConnectLate));
                }
                Stage::Fresh | Stage::Closing { .. } => {}
            }
            self.apply(stream, effects, now);
        });
    }

    /// Takes what waits in the outlet as far as the session and the socket take it; says whether the socket would
    /// take more.
    fn serve_outlet(&mut self, stream: &TcpStream, now: Instant) -> bool {
        with_scratch(|_, effects| {
            let Stage::Open { session, outlet } = &mut self.stage else { return false };
            let mut full = false;
            if let Some(cut) = outlet.cut_due() {
                session.handle_cut(cut, effects);
                if let Cut::Kicked(why) = cut {
                    tracing::info!(who = %session.party(), why, "a session was ended");
                }
            } else {
                full = deliver(&self.gate, session, outlet, self.out.len(), effects);
            }
            self.apply(stream, effects, now);
            full && self.out.is_empty()
        })
    }

    /// Does what came out of the session, and leaves `effects` empty.
    fn apply(&mut self, stream: &TcpStream, effects: &mut Effects, now: Instant) {
        let stats = &self.gate.stats;
        if !effects.publish.is_empty() {
            stats.up_messages.add(effects.publish.len());
            stats.up_payload_bytes.add(effects.publish.iter().map(|parcel| parcel.parts().1.len()).sum());
            self.gate.up.push(&mut effects.publish);
        }
        if let (Some(filters), Stage::Open { outlet: Outlet::Tool(outlet), .. }) =
            (effects.listen.take(), &self.stage)
            && self.gate.tools.listen(outlet, filters)
        {
            self.gate.ears.start(outlet);
        }
        for reason in effects.notes.drain(..) {
            stats.note(reason, now, &self.who());
        }
        if !effects.write.is_empty() {
            let sent = if self.out.is_empty() { stream.try_write(&effects.write).unwrap_or(0) } else { 0 };
            self.out.extend_from_slice(&effects.write[sent..]);
            effects.write.clear();
        }
        if let Some(end) = effects.end.take() {
            if let Some(reason) = end {
                self.gate.stats.note(reason, now, &self.who());
            }
            self.close_session(Stage::Closing { reachable: end != Some(Reason::Lost) });
        }
    }

    fn flush(&mut self, stream: &TcpStream, now: Instant) {
        while !self.out.is_empty() {
            match stream.try_write(&self.out) {
                Ok(n) => drop(self.out.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // While reading is off nobody else would notice.
                Err(_) => {
                    return with_scratch(|_, effects| {
                        self.lose(effects);
                        self.apply(stream, effects, now);
                    });
                }
            }
        }
        if self.out.capacity() > OUT_KEPT {
            self.out = Vec::new();
        }
    }

    fn who(&self) -> String {
        match &self.stage {
            Stage::Open { session, .. } => format!("{} at {}", session.party(), self.peer),
            Stage::Fresh | Stage::Closing { .. } => self.peer.to_string(),
        }
    }

    fn close_session(&mut self, next: Stage) {
        if let Stage::Open { session, outlet } = &self.stage {
            outlet.close(&self.gate, session.party());
            if self.paused {
                self.gate.stats.paused_sessions.sub(1);
                self.paused = false;
            }
        }
        self.stage = next;
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.close_session(Stage::Closing { reachable: false });
    }
}

impl Busy {
    fn new(gate: &Arc<Gate>) -> Self {
        gate.crowd.enter();
        Self(gate.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.crowd.leave();
    }
}

/// Moves what waits for a session into `effects`, as far as the session takes it and up to a limit; says whether it
/// stopped at the limit. `unsent` bytes wait for the socket already.
fn deliver(
    gate: &Gate,
    session: &mut Session,
    outlet: &Outlet,
    unsent: usize,
    effects: &mut Effects,
) -> bool {
    if let Outlet::Tool(outlet) = outlet {
        session.handle_linked(outlet.linked(), effects);
    }
    while unsent + effects.write.len() < OUT_DELIVER {
        match outlet {
            Outlet::Node(outlet) => {
                let Some(parcel) = session.can_deliver().then(|| outlet.pop()).flatten() else {
                    return false;
                };
                match session.handle_delivery(&parcel, effects) {
                    Delivery::Sent => gate.stats.down_messages.add(1),
                    Delivery::Unwanted => gate.stats.down_unwanted.add(1),
                }
            }
            Outlet::Tool(outlet) => match gate.tools.pop(outlet) {
                Some(packets) => effects.write.extend_from_slice(&packets),
                None => return false,
            },
        }
    }
    true
}

/// Sends the last bytes, then reads what the peer still sends: closing a socket with unread bytes would reset the
/// connection and take the last packet with it.
async fn linger(stream: &mut TcpStream, out: &[u8]) {
    let last_words = async {
        stream.write_all(out).await?;
        stream.shutdown().await?;
        let mut left = LINGER_BYTES;
        while left > 0 {
            stream.readable().await?;
            let read = with_scratch(|bytes, _| stream.try_read(bytes));
            match read {
                Ok(0) => break,
                Ok(n) => left = left.saturating_sub(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        io::Result::Ok(())
    };
    // Late or failed, the connection ends all the same.
    let _ = time::timeout(LINGER, last_words).await;
}
