//! What a connection takes in: bytes, packets, and the way from the first byte to a session.

use std::{io, mem, sync::Arc, time::Instant};

use fleet_schemas::limits;

use crate::{
    gate::{
        Gate,
        admit::{self, Origin},
        conn::{Busy, Conn, Stage, scratch::with_scratch},
        frame::FrameError,
        judge::Judgement,
        outlet,
        session::{Effects, Say},
        transport::{Got, Transport},
    },
    identity::{Identity, Refusal, Verdict},
    stats::Reason,
};

/// A CONNECT whose sender is not known yet.
pub(super) struct Judging {
    pub(super) since: Instant,
    pub(super) judgement: Arc<Judgement>,
    /// The body of the CONNECT.
    connect: Vec<u8>,
    /// What came behind it in the same read.
    rest: Vec<u8>,
}

/// CONNECT with the longest will a node needs, credentials included.
const CONNECT_BYTES: usize = 16 * 1024;

impl Conn {
    pub(super) fn read(&mut self, transport: &mut Transport, now: Instant) {
        if matches!(self.stage, Stage::Open(_)) && !self.room().is_free() {
            return;
        }
        with_scratch(|scratch| {
            let effects = &mut scratch.effects;
            match transport.read(&mut scratch.bytes, &mut scratch.plain, &mut scratch.sealed) {
                Ok((got, input)) => {
                    if matches!(self.stage, Stage::Handshake { .. }) && !transport.handshaking() {
                        self.stage = Stage::Fresh { since: now };
                    }
                    self.digest(input, transport, now, effects);
                    self.pace(input.len(), effects.publish.len() + effects.said, now);
                    match got {
                        Got::Bytes => {}
                        Got::End if effects.end.is_none() => self.lose(effects),
                        Got::Broken if effects.end.is_none() => self.break_off(effects),
                        Got::End | Got::Broken => {}
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.lose(effects),
            }
            self.apply(transport, scratch, now);
        });
    }

    /// Somebody found out who sent the CONNECT.
    pub(super) fn judged(&mut self, transport: &mut Transport, now: Instant) {
        let Stage::Judging(judging) = &mut self.stage else { return };
        let Some(identity) = judging.judgement.take() else { return };
        let (connect, rest) = (mem::take(&mut judging.connect), mem::take(&mut judging.rest));
        with_scratch(|scratch| {
            self.open(&connect, identity, now, &mut scratch.effects);
            self.digest(&rest, transport, now, &mut scratch.effects);
            self.apply(transport, scratch, now);
        });
    }

    fn digest(&mut self, mut input: &[u8], transport: &Transport, now: Instant, effects: &mut Effects) {
        while effects.end.is_none() {
            match &mut self.stage {
                Stage::Fresh { .. } => {
                    let first = self.reader.first().or(input.first().copied());
                    let failed = match self.reader.next(&mut input, CONNECT_BYTES) {
                        _ if first.is_some_and(|first| first >> 4 != 1) => Reason::ConnectFirst,
                        Ok(None) => return,
                        Ok(Some(frame)) => {
                            let connect = frame.body.to_vec();
                            self.meet(connect, input, transport, now, effects);
                            continue;
                        }
                        Err(FrameError::TooLarge) => Reason::TooLarge,
                        Err(FrameError::First | FrameError::Length) => Reason::Malformed,
                    };
                    effects.end = Some(Some(failed));
                }
                Stage::Open(open) => match self.reader.next(&mut input, limits::PACKET_BYTES) {
                    Ok(None) => return,
                    Ok(Some(frame)) => {
                        open.session.handle_packet(frame.first, frame.body, now, effects);
                        if let Some(Say { saying, id }) = effects.say.take() {
                            effects.said += 1;
                            open.session.handle_said(id, self.gate.talk.say(saying, now), effects);
                        }
                    }
                    Err(error) => open.session.handle_broken_stream(error, effects),
                },
                // What came behind the CONNECT is held with it.
                Stage::Judging(_) | Stage::Handshake { .. } | Stage::Closing { .. } => return,
            }
        }
    }

    /// A CONNECT came, and `rest` behind it.
    fn meet(
        &mut self,
        connect: Vec<u8>,
        rest: &[u8],
        transport: &Transport,
        now: Instant,
        effects: &mut Effects,
    ) {
        let origin = Origin {
            peer: self.peer,
            encrypted: transport.encrypted(),
            certificate: transport.certificate(),
        };
        match admit::ask(&connect, origin, &*self.gate.directory) {
            Err(refused) => refused.say(effects),
            Ok(Verdict::Now(identity)) => self.open(&connect, identity, now, effects),
            Ok(Verdict::Later(work)) => match self.gate.judge.ask(work, self.peer.ip()) {
                Some(judgement) => {
                    let judging = Judging { since: now, judgement, connect, rest: rest.to_vec() };
                    self.stage = Stage::Judging(Box::new(judging));
                }
                None => self.open(&connect, Err(Refusal::Busy), now, effects),
            },
        }
    }

    fn open(
        &mut self,
        connect: &[u8],
        identity: Result<Identity, Refusal>,
        now: Instant,
        effects: &mut Effects,
    ) {
        if let Some(opened) = outlet::open(&self.gate, connect, identity, now, effects) {
            self.slot.settle();
            self.busy = Some(Busy::new(&self.gate));
            self.stage = Stage::Open(Box::new(opened));
        }
    }

    /// Holds what came against the session's publish limit.
    fn pace(&mut self, bytes: usize, messages: usize, now: Instant) {
        if let Stage::Open(open) = &mut self.stage
            && let Some(until) = open.pace.spend(open.limit(&self.gate), messages, bytes, now)
        {
            self.throttled = Some(until);
            self.gate.stats.throttles.add(1);
        }
    }

    /// The peer is gone.
    pub(super) fn lose(&mut self, effects: &mut Effects) {
        match &mut self.stage {
            Stage::Open(open) => open.session.handle_lost(effects),
            Stage::Handshake { .. } | Stage::Fresh { .. } | Stage::Judging(_) | Stage::Closing { .. } => {
                effects.end = Some(Some(Reason::Lost));
            }
        }
    }

    /// TLS cannot go on.
    fn break_off(&mut self, effects: &mut Effects) {
        match &mut self.stage {
            Stage::Open(open) => {
                effects.notes.push(Reason::TlsFailed);
                open.session.handle_lost(effects);
            }
            Stage::Handshake { .. } | Stage::Fresh { .. } | Stage::Judging(_) | Stage::Closing { .. } => {
                effects.end = Some(Some(Reason::TlsFailed));
            }
        }
    }
}

impl Judging {
    /// It took too long.
    pub(super) fn give_up(&self, gate: &Arc<Gate>, now: Instant, effects: &mut Effects) {
        outlet::open(gate, &self.connect, Err(Refusal::Busy), now, effects);
    }
}
