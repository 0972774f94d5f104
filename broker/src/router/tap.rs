//! The hearing half of a link to the router: gives what came out of it, or the addresses of it.
//!
//! Owns the manners of a link: spurious wake-ups, and the answer to every pause notice.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rumqttd::{Forward, Notification, local::LinkRx};

use crate::{clock, router::wires::Gone};

/// What comes out of a link.
pub(super) enum Heard {
    Letter(Letter),
    /// The router did what the link asked for.
    Answer,
}

/// A message as the router has it: these bytes are its own, or the up path's.
pub(super) struct Letter {
    pub(super) topic: Bytes,
    pub(super) payload: Bytes,
    /// Its place in the log of its filter, counted without gaps.
    pub(super) offset: Option<u64>,
}

/// A link's receiver and the generation of its router.
pub(crate) struct Tap {
    link: LinkRx,
    generation: u64,
}

/// How long a router may be too busy to take one event before its link counts as lost.
const BUSY: Duration = Duration::from_secs(2);
const BUSY_STEP: Duration = Duration::from_millis(1);

impl Tap {
    pub(super) fn new(link: LinkRx, generation: u64) -> Self {
        Self { link, generation }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Waits until `deadline` for messages, then takes all that are there, up to `max`.
    pub(crate) fn collect(
        &mut self,
        deadline: Instant,
        max: usize,
        addresses: &mut Vec<usize>,
    ) -> Result<(), Gone> {
        self.hear(deadline, max, &mut |heard| match heard {
            Heard::Letter(letter) => addresses.push(letter.topic.as_ptr().addr()),
            Heard::Answer => {}
        })
    }

    /// Like [`Self::collect`], whatever comes.
    pub(super) fn hear(
        &mut self,
        deadline: Instant,
        max: usize,
        see: &mut impl FnMut(Heard),
    ) -> Result<(), Gone> {
        let past = clock::now();
        let (mut until, mut count) = (deadline, 0);
        while count < max {
            match self.link.recv_deadline(until) {
                Ok(Some(Notification::Forward(Forward { publish, cursor, .. }))) => {
                    let offset = cursor.map(|(_, offset)| offset);
                    see(Heard::Letter(Letter { topic: publish.topic, payload: publish.payload, offset }));
                    (until, count) = (past, count + 1);
                }
                Ok(Some(Notification::DeviceAck(_))) => {
                    see(Heard::Answer);
                    (until, count) = (past, count + 1);
                }
                Ok(Some(Notification::Unschedule)) => self.answer()?,
                Ok(Some(Notification::Disconnect(..))) => return Err(Gone),
                // Wake-ups without cause.
                Ok(_) => {}
                Err(_) if clock::now() >= until => break,
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }

    /// Tells the router that the link reads on. It waits while the router is busy, but not for ever.
    fn answer(&self) -> Result<(), Gone> {
        let started = clock::now();
        let mut answer = pin!(self.link.wake());
        loop {
            match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => return Ok(()),
                Poll::Ready(Err(_)) => return Err(Gone),
                Poll::Pending if clock::now() >= started + BUSY => return Err(Gone),
                Poll::Pending => thread::sleep(BUSY_STEP),
            }
        }
    }
}
