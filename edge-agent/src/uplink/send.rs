//! Sending: what is due now, in order of precedence, within the hub's credit.

use std::time::Duration;

use fleet_schemas::{Lane, Topic, batch::Lost, limits, topic::Up};

use super::{BIRTH_AGAIN, Error, Outgoing, PROBE, Uplink};
use crate::{
    core::{
        Now,
        lanes::StreamNo,
        share::{self, Want},
        upload::Verdict,
    },
    store::{outbox::Write, rows::Held},
};

/// Batches ahead that are noted as sent in one transaction while a backlog drains.
const SENT_AHEAD: u64 = 32;

impl Uplink {
    /// What is due: birth or heartbeat, and batches within credit. Seals, evicts, and writes before it speaks.
    ///
    /// # Errors
    /// [`Error`]: nothing may be sent, and the value is dead.
    pub fn poll(&mut self, now: Now) -> Result<Vec<Outgoing>, Error> {
        if self.session.is_some() {
            for lane in Lane::ALL {
                self.lanes.get_mut(lane).handle_timeout(now.up);
            }
        }
        self.make_room(now)?;
        self.seal_if_due(now);
        self.advance(now);
        self.advance_config(now);
        self.advance_devices(now);
        let mut outgoing = Vec::new();
        self.choose(now, &mut outgoing)?;
        self.staged.extend(self.meter.to_save().map(Write::Spent));
        if !self.staged.is_empty() || self.marks_due.is_some_and(|due| due <= now.up) {
            self.commit()?;
        } else {
            self.committed();
        }
        // After the choice and the commit, so that it tells what is on disk.
        let hello = self.hello(now);
        if let Some(hello) = &hello {
            self.meter.spend(hello.payload.len(), now);
        }
        Ok(hello.into_iter().chain(outgoing).collect())
    }

    /// Time since boot at which `poll` wants to be called again at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let waiting = !self.pending.is_empty() || !self.lazy.is_empty();
        let mut due = Vec::from_iter((!self.is_announced()).then_some(self.sweep_due));
        due.extend(waiting.then_some(self.seal_due));
        due.extend(self.marks_due);
        due.extend(self.commands.due());
        due.extend(self.meter.due());
        due.extend(self.following.due());
        due.extend(self.devices.due());
        if let Some(session) = &self.session {
            due.push(session.heartbeat_due);
            due.extend((!session.answered).then_some(session.birth_due));
            due.extend(self.following.asks_at().filter(|_| session.answered));
            due.extend((session.answered && session.credit == 0).then_some(session.probe_due));
            due.extend(Lane::ALL.iter().filter_map(|lane| self.lanes.get(*lane).resend_at()));
        }
        due.into_iter().min()
    }

    fn hello(&mut self, now: Now) -> Option<Outgoing> {
        let next = now.up + self.interval();
        let session = self.session.as_mut()?;
        let id = session.id;
        // A birth is what the hub answers, also when there is nothing to acknowledge.
        let asks = session.answered && self.following.asks_at().is_some_and(|at| at <= now.up);
        if asks {
            self.following.ask_again = now.up + BIRTH_AGAIN;
        }
        if asks || (!session.answered && session.birth_due <= now.up) {
            session.birth_due = now.up + BIRTH_AGAIN;
            session.heartbeat_due = next;
            return Some(self.birth(id, now));
        }
        if session.heartbeat_due <= now.up {
            session.heartbeat_due = next;
            return Some(self.heartbeat(id, now));
        }
        None
    }

    fn credit(&mut self, now: Now) -> u32 {
        let idle = self.lanes.in_flight() == 0;
        let Some(session) = &mut self.session else { return 0 };
        match session.credit {
            0 if session.probe_due <= now.up && idle => {
                session.probe_due = now.up + PROBE;
                1
            }
            credit => credit.min(limits::IN_FLIGHT_BATCHES),
        }
    }

    fn choose(&mut self, now: Now, outgoing: &mut Vec<Outgoing>) -> Result<(), Error> {
        let credit = self.credit(now);
        let mut held_back = [false; Lane::ALL.len()];
        self.meter.look_anew();
        loop {
            let wants = Lane::ALL.map(|lane| {
                let state = self.lanes.get(lane);
                let waiting = !held_back[lane as usize] && state.next_to_send().is_some();
                Want { waiting, in_flight: state.in_flight() }
            });
            let Some(lane) = share::next(&wants, credit) else { return Ok(()) };
            let Some((number, seq)) = self.lanes.get(lane).next_to_send() else { return Ok(()) };
            let (seq, held) = self.held(lane, number, seq, now)?;
            if self.meter.judge(lane, held.payload.len(), held.tombstone, now) == Verdict::Wait {
                held_back[lane as usize] = true;
                if lane.carries_samples() && self.meter.gives_up(held.payload.len(), now) {
                    self.give_up_unsent(lane, number, now)?;
                }
                continue;
            }
            self.meter.spend_batch(held.payload.len(), now);
            self.note_sent(lane, number, held.seq_to);
            self.lanes.get_mut(lane).sent(number, held.seq_to.max(seq), now.up);
            let topic = Topic::Up(self.profile.node.clone(), Up::Lane(lane));
            outgoing.push(Outgoing { topic, payload: held.payload, qos: 1 });
        }
    }

    /// The batch with this number, or what must be declared in its place.
    fn held(&mut self, lane: Lane, number: StreamNo, seq: u64, now: Now) -> Result<(u64, Held), Error> {
        if let Some(held) = self.fresh.get(&(lane, number, seq)) {
            return Ok((seq, held.clone()));
        }
        let found = self.outbox.batch(lane, number, seq)?;
        match found {
            Some((at, Some(held))) if at == seq && Self::fits_packet(&held.payload) => Ok((seq, held)),
            // Damaged, missing, or too large for any hub: declared, so that the lane goes on.
            Some(_) | None => self.declare_damaged(lane, number, seq, now),
        }
    }

    fn declare_damaged(
        &mut self,
        lane: Lane,
        number: StreamNo,
        seq: u64,
        now: Now,
    ) -> Result<(u64, Held), Error> {
        let Some(stream) = self.lanes.get(lane).streams.get(&number) else {
            unreachable!("a batch to send belongs to a stream")
        };
        let (floor, floor_record, next_record) = (stream.floor_seq, stream.floor_record, stream.next_record);
        let (mut first, mut next) = (floor_record, None);
        let (mut seq_to, mut size, mut counted) = (stream.next_seq - 1, 0, 0);
        self.outbox.headers(lane, number, floor, |at, row, held| {
            if at < seq {
                first = held.map_or(first, |held| held.first + held.count);
                return true;
            }
            if at == seq {
                size = row;
                counted = held.filter(|held| !held.tombstone).map_or(0, |held| held.count);
                return true;
            }
            seq_to = at - 1;
            next = held.map(|held| held.first);
            false
        })?;
        let count = next.unwrap_or(next_record).saturating_sub(first);
        let held = self.tombstone(number, lane, (seq, seq_to), (first, count), Lost::EdgeCorrupt, now);
        self.staged.push(Write::DropBatches { lane, number, from: seq, to: seq_to });
        self.staged.push(Write::Batch { lane, number, seq, held: held.clone() });
        self.fresh.insert((lane, number, seq), held.clone());
        if let Some(stream) = self.lanes.get_mut(lane).streams.get_mut(&number) {
            stream.counted = stream.counted.saturating_sub(counted);
            stream.tombstoned += count;
            stream.bytes = stream.bytes.saturating_sub(size) + held.row_bytes();
        }
        self.lost += count;
        Ok((seq, held))
    }

    /// Makes sure that the file knows before the wire does.
    fn note_sent(&mut self, lane: Lane, number: StreamNo, seq_to: u64) {
        // What may yet be given up must not count as sent.
        let ahead = if self.meter.drops() { 0 } else { SENT_AHEAD };
        let Some(stream) = self.lanes.get_mut(lane).streams.get_mut(&number) else { return };
        if stream.sent < seq_to {
            stream.sent = (seq_to + ahead).min(stream.next_seq - 1).max(seq_to);
            let write = Write::position(lane, number, stream);
            self.moved.remove(&(lane, number));
            self.staged.push(write);
        }
    }
}
