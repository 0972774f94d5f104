//! One connection: moves bytes and time between a transport and its session, and nothing else.
//!
//! Waits for readiness and reads without an await into one buffer per thread, so an idle session owns no buffer
//! (GATE-NOTES 1). Decides nothing: `admit` and `session` do.

use std::{future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration, time::Instant};

use fleet_schemas::limits;
use tokio::{net::TcpStream, pin, select, task, time};

use crate::{
    clock,
    gate::{
        Gate,
        caps::Slot,
        frame::FrameReader,
        outlet::{Opened, Outlet},
        session::{Cut, Effects},
        talk::Talk,
        transport::Transport,
    },
    keys::Keys,
    router::pipe::Pipe,
    stats::Reason,
};

mod intake;
mod linger;
mod outgo;
mod scratch;

use intake::Judging;
use scratch::with_scratch;

struct Conn {
    gate: Arc<Gate>,
    peer: SocketAddr,
    slot: Slot,
    reader: FrameReader,
    stage: Stage,
    /// Bytes the socket did not take yet, as they go over the network.
    out: Vec<u8>,
    /// Since when it took none of them.
    stuck: Option<Instant>,
    paused: bool,
    /// Until when the session's publish limit keeps it from being read.
    throttled: Option<Instant>,
    busy: Option<Busy>,
}

enum Stage {
    /// TLS is not up.
    Handshake {
        since: Instant,
    },
    /// CONNECT may come.
    Fresh {
        since: Instant,
    },
    /// CONNECT came, and somebody finds out who that is.
    Judging(Box<Judging>),
    Open(Box<Opened>),
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
    Judged,
    Crowded,
    Timer,
}

/// The pipe that a session fills.
enum Room<'a> {
    Up(&'a Pipe),
    Talk(&'a Talk),
}

/// With more than this unsent, a session is not read: its peer does not read its acknowledgements either.
const OUT_READ: usize = 64 * 1024;
/// A node that loses messages, and whose socket took nothing for so long, is cut off: longer than a bad radio link
/// is silent as a rule.
const DEAF: Duration = Duration::from_secs(10);

/// Serves one accepted connection until it is over; `keys` for TLS.
pub(crate) async fn drive(
    stream: std::net::TcpStream,
    peer: SocketAddr,
    gate: Arc<Gate>,
    slot: Slot,
    keys: Option<Arc<dyn Keys>>,
) {
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let mut transport = Transport::new(stream, keys);
    let mut conn = Conn::new(gate, peer, slot, transport.handshaking(), clock::now());
    let mut armed = conn.deadline();
    let timer = time::sleep_until(armed.into());
    pin!(timer);
    loop {
        let more = conn.serve_outlet(&mut transport, clock::now());
        if let Stage::Closing { reachable } = conn.stage {
            if reachable {
                select! {
                    () = linger::linger(&mut transport.stream, &conn.out) => {}
                    () = conn.slot.crowded_out() => {}
                }
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
        match conn.wait(&transport.stream, timer.as_mut(), more).await {
            Wake::Outlet | Wake::Room => {}
            Wake::Readable => conn.read(&mut transport, clock::now()),
            Wake::Writable => conn.flush(&mut transport, clock::now()),
            Wake::Judged => conn.judged(&mut transport, clock::now()),
            Wake::Crowded => conn.make_room(clock::now()),
            Wake::Timer => {
                conn.expire(&mut transport, clock::now());
                armed = conn.deadline();
                timer.as_mut().reset(armed.into());
            }
        }
    }
}

impl Conn {
    fn new(gate: Arc<Gate>, peer: SocketAddr, slot: Slot, handshaking: bool, now: Instant) -> Self {
        let stage = if handshaking { Stage::Handshake { since: now } } else { Stage::Fresh { since: now } };
        Self {
            gate,
            peer,
            slot,
            reader: FrameReader::default(),
            stage,
            out: Vec::new(),
            stuck: None,
            paused: false,
            throttled: None,
            busy: None,
        }
    }

    async fn wait(&mut self, stream: &TcpStream, timer: Pin<&mut time::Sleep>, more: bool) -> Wake {
        // Asked once: room that comes between two looks would be waited for by neither.
        let full = self.balance(clock::now());
        let room = self.room();
        let reading = !self.paused && self.out.len() < OUT_READ;
        let (outlet, judgement) = match &self.stage {
            Stage::Open(open) => (Some(open.outlet.wake()), None),
            Stage::Judging(judging) => (None, Some(&judging.judgement)),
            Stage::Handshake { .. } | Stage::Fresh { .. } | Stage::Closing { .. } => (None, None),
        };
        let reading = reading && judgement.is_none();
        let outlet = async {
            match outlet {
                Some(wake) => wake.notified().await,
                None => future::pending().await,
            }
        };
        let judged = async {
            match judgement {
                Some(judgement) => judgement.done().await,
                None => future::pending().await,
            }
        };
        // An error of either readiness shows in the read or write that follows.
        select! {
            biased;
            () = outlet => Wake::Outlet,
            () = judged => Wake::Judged,
            () = self.slot.crowded_out() => Wake::Crowded,
            _ = stream.writable(), if !self.out.is_empty() => Wake::Writable,
            _ = stream.readable(), if reading => Wake::Readable,
            () = room.wait(), if full => Wake::Room,
            () = timer => Wake::Timer,
            () = future::ready(()), if more => Wake::Outlet,
        }
    }

    /// Where what the session says has to find room.
    fn room(&self) -> Room<'_> {
        match &self.stage {
            Stage::Open(open) if matches!(open.outlet, Outlet::Tool(_)) => Room::Talk(&self.gate.talk),
            Stage::Open(_)
            | Stage::Handshake { .. }
            | Stage::Fresh { .. }
            | Stage::Judging(_)
            | Stage::Closing { .. } => Room::Up(&self.gate.up),
        }
    }

    fn deadline(&self) -> Instant {
        match &self.stage {
            Stage::Handshake { since } => *since + limits::HANDSHAKE,
            Stage::Fresh { since } => *since + limits::CONNECT,
            Stage::Judging(judging) => judging.since + limits::CONNECT,
            // Nothing is waited for any more.
            Stage::Closing { .. } => clock::now() + limits::CONNECT,
            Stage::Open(open) => {
                let stuck = self.stuck.map(|since| since + open.patience);
                let dues = [stuck, self.throttled];
                dues.into_iter().flatten().fold(open.session.poll_timeout(), Instant::min)
            }
        }
    }

    /// Pauses or resumes reading, as the consumer's backlog and the session's publish limit want it; says whether
    /// reading waits for room.
    fn balance(&mut self, now: Instant) -> bool {
        let full = !self.room().is_free();
        let Stage::Open(open) = &mut self.stage else { return false };
        if self.throttled.is_some_and(|until| now >= until) {
            self.throttled = None;
        }
        let stats = &self.gate.stats;
        let pause = full || self.throttled.is_some();
        if pause != self.paused {
            self.paused = pause;
            if pause {
                open.session.handle_pause(now);
                stats.paused_sessions.add(1);
                if full {
                    stats.pauses.add(1);
                }
            } else {
                open.session.handle_resume(now);
                stats.paused_sessions.sub(1);
            }
        }
        full
    }

    /// Ends a session whose peer takes nothing; says so if it did.
    fn cut_deaf(&mut self, now: Instant, effects: &mut Effects) -> bool {
        let (Stage::Open(open), Some(since)) = (&mut self.stage, self.stuck) else { return false };
        let silent = now.saturating_duration_since(since);
        // What it says is not read, because it does not read what it is told: no fault of its keepalive.
        let unread = !self.paused && self.out.len() >= OUT_READ && now >= open.session.poll_timeout();
        let deaf = unread || silent >= open.patience || (silent >= DEAF && open.outlet.overflowed());
        if deaf {
            open.session.handle_cut(Cut::Slow, effects);
        }
        deaf
    }

    fn expire(&mut self, transport: &mut Transport, now: Instant) {
        with_scratch(|scratch| {
            let effects = &mut scratch.effects;
            if now >= self.deadline() && !self.cut_deaf(now, effects) {
                match &mut self.stage {
                    Stage::Open(open) => open.session.handle_timeout(now, effects),
                    Stage::Handshake { .. } => effects.end = Some(Some(Reason::HandshakeLate)),
                    Stage::Fresh { .. } => effects.end = Some(Some(Reason::ConnectLate)),
                    Stage::Judging(judging) => judging.give_up(&self.gate, now, effects),
                    Stage::Closing { .. } => {}
                }
            }
            self.apply(transport, scratch, now);
        });
    }

    /// Others need the place of this connection, which has no session.
    fn make_room(&mut self, now: Instant) {
        self.gate.stats.note(Reason::Crowded, now, &self.peer);
        self.close_session(Stage::Closing { reachable: false });
    }

    fn who(&self) -> String {
        match &self.stage {
            Stage::Open(open) => format!("{} at {}", open.session.party(), self.peer),
            Stage::Handshake { .. } | Stage::Fresh { .. } | Stage::Judging(_) | Stage::Closing { .. } => {
                self.peer.to_string()
            }
        }
    }

    fn close_session(&mut self, next: Stage) {
        if let Stage::Open(open) = &self.stage {
            open.outlet.close(&self.gate, open.session.party());
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

impl Room<'_> {
    fn is_free(&self) -> bool {
        match self {
            Self::Up(pipe) => pipe.has_room(),
            Self::Talk(talk) => talk.pipe.has_room(),
        }
    }

    async fn wait(&self) {
        match self {
            Self::Up(pipe) => pipe.wait_for_room().await,
            Self::Talk(talk) => talk.pipe.wait_for_room().await,
        }
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
