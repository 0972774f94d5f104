//! What a connection gives out: what waits for its session, and the bytes that go to the socket.

use std::{io, time::Instant};

use crate::{
    gate::{
        Gate,
        conn::{
            Conn, Stage,
            scratch::{Scratch, with_scratch},
        },
        outlet::{Opened, Outlet},
        session::{Cut, Delivery, Effects, waiting::Rest},
        transport::Transport,
    },
    stats::Reason,
};

/// With more than this unsent, messages wait in the session's queue.
const OUT_DELIVER: usize = 16 * 1024;
/// An empty outgoing buffer above this is given back.
const OUT_KEPT: usize = 1024;

impl Conn {
    /// Takes what waits in the outlet as far as the session and the socket take it; says whether the socket would
    /// take more.
    pub(super) fn serve_outlet(&mut self, transport: &mut Transport, now: Instant) -> bool {
        if !matches!(self.stage, Stage::Open(_)) {
            return false;
        }
        with_scratch(|scratch| {
            let effects = &mut scratch.effects;
            let mut full = false;
            if !self.cut_deaf(now, effects)
                && let Stage::Open(open) = &mut self.stage
            {
                if let Some(cut) = open.outlet.cut_due() {
                    open.session.handle_cut(cut, effects);
                    if let Cut::Kicked(why) = cut {
                        tracing::info!(who = %open.session.party(), why, "a session was ended");
                    }
                } else {
                    full = deliver(&self.gate, open, self.out.len(), now, effects);
                }
            }
            self.apply(transport, scratch, now);
            full && self.out.is_empty()
        })
    }

    /// Does what came out of the session and of TLS, and leaves both buffers empty.
    pub(super) fn apply(&mut self, transport: &mut Transport, scratch: &mut Scratch, now: Instant) {
        let Scratch { effects, sealed, .. } = scratch;
        if transport.encrypted() && !effects.write.is_empty() {
            if transport.seal(&effects.write, sealed).is_err() && effects.end.is_none() {
                self.lose(effects);
            }
            effects.write.clear();
        }
        let stats = &self.gate.stats;
        if !effects.publish.is_empty() {
            stats.up_messages.add(effects.publish.len());
            stats.up_payload_bytes.add(effects.publish.iter().map(|parcel| parcel.parts().1.len()).sum());
            self.gate.up.push(&mut effects.publish);
        }
        effects.said = 0;
        if let Some(word) = effects.last_word.take()
            && self.gate.talk.say(word, now).is_err()
        {
            effects.notes.push(Reason::RetainedFull);
        }
        if let (Some(listen), Stage::Open(open)) = (effects.listen.take(), &self.stage)
            && let Outlet::Tool(outlet) = &open.outlet
            && self.gate.tools.listen(outlet, listen, || self.gate.talk.shelf.number())
        {
            self.gate.ears.start(outlet);
        }
        for reason in effects.notes.drain(..) {
            stats.note(reason, now, &self.who());
        }
        if effects.end.is_some() {
            transport.close(sealed);
        }
        self.send(transport, if transport.encrypted() { sealed } else { &effects.write }, now);
        sealed.clear();
        effects.write.clear();
        if let Some(end) = effects.end.take() {
            if let Some(reason) = end {
                self.gate.stats.note(reason, now, &self.who());
            }
            self.close_session(Stage::Closing { reachable: end != Some(Reason::Lost) });
        }
    }

    fn send(&mut self, transport: &Transport, bytes: &[u8], now: Instant) {
        if bytes.is_empty() {
            return;
        }
        let idle = self.out.is_empty();
        let sent = if idle { transport.try_write(bytes).unwrap_or(0) } else { 0 };
        self.out.extend_from_slice(&bytes[sent..]);
        if idle && !self.out.is_empty() {
            self.stuck = Some(now);
        }
    }

    pub(super) fn flush(&mut self, transport: &mut Transport, now: Instant) {
        while !self.out.is_empty() {
            match transport.try_write(&self.out) {
                Ok(n) => {
                    self.out.drain(..n);
                    self.stuck = Some(now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // While reading is off nobody else would notice.
                Err(_) => {
                    return with_scratch(|scratch| {
                        self.lose(&mut scratch.effects);
                        self.apply(transport, scratch, now);
                    });
                }
            }
        }
        self.stuck = None;
        if self.out.capacity() > OUT_KEPT {
            self.out = Vec::new();
        }
    }
}

/// Moves what waits for a session into `effects`, as far as the session takes it and up to a limit; says whether it
/// stopped at the limit. `unsent` bytes wait for the socket already.
fn deliver(gate: &Gate, open: &mut Opened, unsent: usize, now: Instant, effects: &mut Effects) -> bool {
    let Opened { session, outlet, .. } = open;
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
            Outlet::Tool(outlet) => {
                let Some(rest) = session.rest().or_else(|| gate.tools.pop(outlet).map(Rest::new)) else {
                    return false;
                };
                // The acknowledgement of a subscription goes before what answers it.
                session.handle_linked(outlet.linked(), effects);
                if !session.handle_chunk(rest, now, effects) {
                    return false;
                }
            }
        }
    }
    true
}
