//! One connection of a device: moves bytes and time between a socket and its session, and nothing else.

use std::{collections::VecDeque, future, io, net::SocketAddr, sync::Arc, time::Duration, time::Instant};

use fleet_schemas::limits;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, select, sync::oneshot, time};

use super::{
    Ack, Heard, PACKET_BYTES, Shared, Word,
    crowd::{Key, Order, Place},
    session::{self, Effects, Session},
};
use crate::{
    caps::Slot,
    clock,
    identity::Credentials,
    pace::Pace,
    packets::{
        connect::{self, ConnectError},
        encode::{self, Welcome},
        frame::{FrameError, FrameReader},
        wire::Version,
    },
    stats::Reason,
};

struct Conn {
    shared: Arc<Shared>,
    peer: SocketAddr,
    slot: Slot,
    reader: FrameReader,
    since: Instant,
    open: Option<Open>,
    /// Bytes the socket did not take yet, and since when it took none.
    out: Vec<u8>,
    stuck: Option<Instant>,
    /// Who is told when all of `out` is on its way.
    told: Vec<oneshot::Sender<()>>,
    /// What the listener has no room for yet; while there is any, nothing is read.
    words: VecDeque<Heard>,
    /// Until when the publish limit keeps the session from being read.
    throttled: Option<Instant>,
    held: bool,
}

struct Open {
    session: Session,
    /// Whether a password says whose it is.
    proven: bool,
    place: Place,
    pace: Pace,
}

enum Wake {
    Readable,
    Writable,
    Sent,
    Order(Option<Order>),
    Cut,
    Crowded,
    Timer,
}

/// Read at once.
const READ: usize = 1024;
/// With more than this unsent, a session is neither read nor told anything.
const OUT: usize = 4 * 1024;
/// A device whose socket took nothing for so long is gone.
const DEAF: Duration = Duration::from_secs(20);
/// The keepalive of a client that wants none, in seconds: a session whose peer vanished would stay for ever.
const KEEPALIVE: u16 = 600;
/// Longest client id, in bytes: it is logged.
const CLIENT_ID_BYTES: usize = 128;
/// MQTT 5 §3.2.2.2: unsupported protocol version.
const VERSION_V5: u8 = 0x84;
/// Return codes of MQTT 3.1.1 §3.2.2.3.
const VERSION_V4: u8 = 0x01;
const IDENTIFIER: u8 = 0x02;
const UNAVAILABLE: u8 = 0x03;
const NOT_AUTHORIZED: u8 = 0x05;
/// How long the last bytes may take, and how much of what still comes is thrown away meanwhile.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 256 * 1024;

/// Serves one accepted connection until it is over.
pub(super) async fn serve(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>, slot: Slot) {
    let mut conn = Conn {
        shared,
        peer,
        slot,
        reader: FrameReader::default(),
        since: clock::now(),
        open: None,
        out: Vec::new(),
        stuck: None,
        told: Vec::new(),
        words: VecDeque::new(),
        throttled: None,
        held: false,
    };
    let reachable = loop {
        let mut effects = Effects::default();
        match conn.wait(&stream).await {
            Wake::Sent => {}
            Wake::Readable => conn.read(&stream, clock::now(), &mut effects),
            Wake::Writable => conn.flush(&stream, clock::now(), &mut effects),
            Wake::Order(order) => conn.order(order, &mut effects),
            Wake::Cut => conn.cut(&mut effects),
            Wake::Crowded => {
                conn.shared.stats.note(Reason::Crowded, clock::now(), &conn.peer);
                break false;
            }
            Wake::Timer => conn.expire(clock::now(), &mut effects),
        }
        if let Some(reachable) = conn.apply(&stream, effects, clock::now()) {
            break reachable;
        }
    };
    conn.leave().await;
    if reachable {
        linger(stream, &conn.out).await;
    }
}

impl Conn {
    async fn wait(&mut self, stream: &TcpStream) -> Wake {
        self.resume(clock::now());
        let deadline = self.deadline();
        let room = self.out.len() < OUT;
        let reading = room && self.words.is_empty() && self.throttled.is_none();
        let waiting = !self.words.is_empty();
        let Self { shared, open, slot, words, out, .. } = self;
        let (order, cut) = match open {
            Some(Open { place, .. }) => (Some(&mut place.orders), Some(&mut place.cut)),
            None => (None, None),
        };
        let order = async {
            match order {
                Some(orders) => orders.recv().await,
                None => future::pending().await,
            }
        };
        let cut = async {
            match cut {
                // The seat is gone: its session was taken over, and the reason stands.
                Some(cut) => drop(cut.wait_for(Option::is_some).await),
                None => future::pending().await,
            }
        };
        // An error of either readiness shows in the read or write that follows.
        select! {
            biased;
            () = cut => Wake::Cut,
            () = slot.crowded_out() => Wake::Crowded,
            _ = stream.writable(), if !out.is_empty() => Wake::Writable,
            permit = shared.heard.reserve(), if waiting => match permit {
                Ok(permit) => {
                    if let Some(word) = words.pop_front() {
                        permit.send(word);
                    }
                    Wake::Sent
                }
                // Nobody listens any more: the front is being stopped.
                Err(_) => {
                    words.clear();
                    Wake::Sent
                }
            },
            order = order, if room => Wake::Order(order),
            _ = stream.readable(), if reading => Wake::Readable,
            () = time::sleep_until(deadline.into()) => Wake::Timer,
        }
    }

    /// Reading goes on: what kept it up was not the device's fault.
    fn resume(&mut self, now: Instant) {
        if self.throttled.is_some_and(|until| now >= until) {
            self.throttled = None;
        }
        let held = self.throttled.is_some() || !self.words.is_empty();
        if let (true, false, Some(open)) = (self.held, held, &mut self.open) {
            open.session.handle_resume(now);
        }
        self.held = held;
    }

    fn deadline(&self) -> Instant {
        let Some(open) = &self.open else { return self.since + limits::CONNECT };
        let stuck = self.stuck.map(|since| since + DEAF);
        let due = if self.held { self.throttled } else { Some(open.session.poll_timeout()) };
        [stuck, due].into_iter().flatten().min().unwrap_or_else(|| clock::now() + DEAF)
    }

    fn expire(&mut self, now: Instant, effects: &mut Effects) {
        if now < self.deadline() {
            return;
        }
        let deaf = self.stuck.is_some_and(|since| now >= since + DEAF);
        match &mut self.open {
            None => effects.end = Some(Some(Reason::ConnectLate)),
            Some(_) if deaf => effects.end = Some(Some(Reason::NodeSlow)),
            Some(_) if self.held => {}
            Some(open) => open.session.handle_timeout(now, effects),
        }
    }

    fn cut(&mut self, effects: &mut Effects) {
        let reason = self.open.as_ref().and_then(|open| *open.place.cut.borrow());
        effects.end = Some(Some(reason.unwrap_or(Reason::TakenOver)));
    }

    fn read(&mut self, stream: &TcpStream, now: Instant, effects: &mut Effects) {
        let mut bytes = [0; READ];
        match stream.try_read(&mut bytes) {
            Ok(0) => effects.end = Some(Some(Reason::Lost)),
            Ok(read) => {
                let before = effects.words.len();
                self.digest(&bytes[..read], now, effects);
                let said = effects.words.len() - before;
                if let Some(open) = &mut self.open
                    && let Some(until) = open.pace.spend(&self.shared.config.publish_limit, said, read, now)
                {
                    self.throttled = Some(until);
                    self.shared.stats.throttles.add(1);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => effects.end = Some(Some(Reason::Lost)),
        }
    }

    fn digest(&mut self, mut input: &[u8], now: Instant, effects: &mut Effects) {
        while effects.end.is_none() {
            let first = self.reader.first().or(input.first().copied());
            if self.open.is_none() && first.is_some_and(|first| first >> 4 != 1) {
                effects.end = Some(Some(Reason::ConnectFirst));
                return;
            }
            match self.reader.next(&mut input, PACKET_BYTES) {
                Ok(None) => return,
                Ok(Some(frame)) => match &mut self.open {
                    Some(open) => open.session.handle_packet(frame.first, frame.body, now, effects),
                    None => {
                        let body = frame.body.to_vec();
                        self.meet(&body, now, effects);
                    }
                },
                Err(error) => match &mut self.open {
                    Some(open) => open.session.handle_broken_stream(error, effects),
                    None => {
                        let large = error == FrameError::TooLarge;
                        effects.end = Some(Some(if large { Reason::TooLarge } else { Reason::Malformed }));
                    }
                },
            }
        }
    }

    /// A CONNECT came.
    fn meet(&mut self, body: &[u8], now: Instant, effects: &mut Effects) {
        match self.admit(body, now) {
            Ok(open) => {
                self.slot.settle();
                let stats = &self.shared.stats;
                stats.sessions.add(1);
                stats.sessions_opened.add(1);
                let welcome = Welcome { keepalive: None, assigned: None, tool: false };
                encode::welcome(&mut effects.write, Version::V4, welcome);
                if let Some(device) = open.session.device() {
                    effects.words.push(session::Word::Bound(device.clone()));
                }
                self.open = Some(open);
            }
            Err((reason, answer)) => {
                if let Some((version, code)) = answer {
                    encode::refuse(&mut effects.write, version, code);
                }
                effects.end = Some(Some(reason));
            }
        }
    }

    fn admit(&self, body: &[u8], now: Instant) -> Result<Open, (Reason, Option<(Version, u8)>)> {
        let no = |reason, code| (reason, Some((Version::V4, code)));
        let connect = connect::decode(body).map_err(|error| match error {
            ConnectError::Mute => (Reason::Malformed, None),
            ConnectError::Version => no(Reason::Version, VERSION_V4),
            ConnectError::Unreadable(_) => (Reason::Version, Some((Version::V5, VERSION_V5))),
        })?;
        if connect.version == Version::V5 {
            return Err((Reason::Version, Some((Version::V5, VERSION_V5))));
        }
        let nameless = connect.client_id.is_empty() && !connect.clean;
        if nameless || connect.client_id.len() > CLIENT_ID_BYTES {
            return Err(no(Reason::ClientId, IDENTIFIER));
        }
        let credentials = Credentials {
            client_id: connect.client_id,
            user: connect.user,
            password: connect.password,
            certificate: None,
            encrypted: false,
            peer: self.peer,
        };
        let device = self.shared.gatekeeper.admit(&credentials);
        let device = device.map_err(|refusal| no(Reason::from(refusal), refusal.v4()))?;
        if connect.will.is_some() {
            return Err(no(Reason::WillDenied, NOT_AUTHORIZED));
        }
        let key = Key { device: device.clone(), client_id: connect.client_id.to_owned() };
        let place = self.shared.crowd.enter(key).ok_or_else(|| no(Reason::Busy, UNAVAILABLE))?;
        let keepalive = if connect.keepalive == 0 { KEEPALIVE } else { connect.keepalive };
        let keepalive = Duration::from_secs(u64::from(keepalive));
        let proven = device.is_some();
        let session = Session::new(device, connect.client_id, keepalive, now);
        Ok(Open { session, proven, place, pace: Pace::new(now) })
    }

    fn order(&mut self, order: Option<Order>, effects: &mut Effects) {
        let Some(open) = &self.open else { return };
        match order {
            Some(Order::Tell { payload, done }) => {
                // Dropped, `done` says that it was not told.
                if open.session.handle_command(&payload, &mut effects.write) {
                    self.shared.stats.down_messages.add(1);
                    self.told.push(done);
                } else {
                    self.shared.stats.down_unwanted.add(1);
                }
            }
            Some(Order::Ack(id)) => encode::puback(&mut effects.write, Version::V4, id, 0),
            // The seat is gone.
            None => effects.end = Some(Some(Reason::TakenOver)),
        }
    }

    /// Does what came out of the session; tells, once it is over, whether the peer can be told so.
    fn apply(&mut self, stream: &TcpStream, effects: Effects, now: Instant) -> Option<bool> {
        let Effects { write, words, notes, end } = effects;
        for word in words {
            self.pass(word);
        }
        for reason in notes {
            self.shared.stats.note(reason, now, &self.who());
        }
        let mut end = end;
        if !write.is_empty() {
            let idle = self.out.is_empty();
            self.out.extend_from_slice(&write);
            if idle {
                self.stuck = Some(now);
                let mut lost = Effects::default();
                self.flush(stream, now, &mut lost);
                end = end.or(lost.end);
            }
        }
        let end = end?;
        if let Some(reason) = end {
            self.shared.stats.note(reason, now, &self.who());
        }
        Some(end != Some(Reason::Lost))
    }

    /// Queues for the listener what a session says.
    fn pass(&mut self, word: session::Word) {
        let Some(open) = &self.open else { return };
        let Some(device) = open.session.device().cloned() else { return };
        let Shared { crowd, stats, .. } = &*self.shared;
        let number = open.place.number;
        let word = match word {
            session::Word::Bound(device) => {
                crowd.bind(number, &device);
                Word::Bound { proven: open.proven }
            }
            session::Word::Hears(hears) => {
                crowd.hears(number, hears);
                Word::Hears(hears)
            }
            session::Word::Said { on, payload, id } => {
                stats.up_messages.add(1);
                stats.up_payload_bytes.add(payload.len());
                let ack = id.and_then(|id| Some(Ack { orders: crowd.orders(number)?, id }));
                Word::Said { on, payload, ack }
            }
        };
        self.words.push_back(Heard { session: number, device, word });
    }

    fn flush(&mut self, stream: &TcpStream, now: Instant, effects: &mut Effects) {
        while !self.out.is_empty() {
            match stream.try_write(&self.out) {
                Ok(sent) => {
                    self.out.drain(..sent);
                    self.stuck = Some(now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    effects.end = Some(Some(Reason::Lost));
                    return;
                }
            }
        }
        self.stuck = None;
        self.out = Vec::new();
        for done in self.told.drain(..) {
            // Whoever asked may have gone.
            let _ = done.send(());
        }
    }

    /// The session is over: what it said before is passed on, and that it is gone.
    async fn leave(&mut self) {
        self.told.clear();
        let Some(open) = self.open.take() else { return };
        let number = open.place.number;
        self.shared.crowd.leave(number);
        self.shared.stats.sessions.sub(1);
        if let Some(device) = open.session.device().cloned() {
            self.words.push_back(Heard { session: number, device, word: Word::Gone });
        }
        for word in self.words.drain(..) {
            if self.shared.heard.send(word).await.is_err() {
                return;
            }
        }
    }

    fn who(&self) -> String {
        match self.open.as_ref().and_then(|open| open.session.device()) {
            Some(device) => format!("device {device} at {}", self.peer),
            None => self.peer.to_string(),
        }
    }
}

/// Sends the last bytes, then reads what the peer still sends: closing a socket with unread bytes would reset the
/// connection and take the last packet with it.
async fn linger(mut stream: TcpStream, out: &[u8]) {
    let last_words = async {
        stream.write_all(out).await?;
        stream.shutdown().await?;
        let mut left = LINGER_BYTES;
        while left > 0 {
            stream.readable().await?;
            let mut bytes = [0; READ];
            match stream.try_read(&mut bytes) {
                Ok(0) => break,
                Ok(read) => left = left.saturating_sub(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        io::Result::Ok(())
    };
    // Late or failed, the connection ends all the same.
    let _ = time::timeout(LINGER, last_words).await;
}
