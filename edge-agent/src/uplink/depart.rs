//! Leaving a hub for another: what is delivered is forgotten, so that the next hub is not given it again.
//!
//! The account at the old hub comes out even because nothing that it was told of is taken along: the node leaves only
//! when every batch is acknowledged, and its last heartbeat counts nothing that is not sealed yet. That goes to the next
//! hub, under new streams.

use fleet_schemas::{Lane, SessionId};

use super::{Error, Outgoing, Uplink};
use crate::{
    core::{Now, config::Kept},
    store::outbox::Write,
};

impl Uplink {
    /// Everything accepted so far is sealed by the next poll, whatever its time is.
    pub fn seal_now(&mut self, now: Now) {
        if !self.pending.is_empty() || !self.lazy.is_empty() {
            self.seal_due = now.up;
        }
    }

    /// Whether the hub has every batch.
    #[must_use]
    pub fn is_delivered(&self) -> bool {
        Lane::ALL.iter().all(|lane| self.lanes.get(*lane).streams.values().all(|stream| stream.is_drained()))
    }

    /// Whether nothing was sealed that any hub was told of: a node that has left its hub, or a new one.
    #[must_use]
    pub fn is_unheard(&self) -> bool {
        Lane::ALL.iter().all(|lane| self.lanes.get(*lane).streams.is_empty())
    }

    /// The next goodbye is for good, if everything is delivered then.
    pub fn leave(&mut self) {
        self.leaving = true;
    }

    /// Whether the next goodbye is for good.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Leaves, if that is wanted and everything is delivered; gives the last heartbeat.
    pub(super) fn depart(&mut self, session: SessionId, now: Now) -> Result<Option<Outgoing>, Error> {
        if !self.leaving || !self.is_delivered() {
            return Ok(None);
        }
        let (pending, lazy) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.lazy));
        let last = self.heartbeat(session, now);
        (self.pending, self.lazy) = (pending, lazy);
        for lane in Lane::ALL {
            for (number, stream) in std::mem::take(&mut self.lanes.get_mut(lane).streams) {
                let to = stream.next_seq;
                self.staged.push(Write::DropBatches { lane, number, from: 0, to });
                self.staged.push(Write::DropStream { lane, number });
            }
        }
        self.moved.clear();
        (self.number, self.stream) = (None, self.derived_stream(now));
        self.forget_orders(now);
        self.staged.push(Write::Config(Kept::default()));
        self.commit()?;
        Ok(Some(last))
    }
}
