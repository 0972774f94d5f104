//! What is said outside `fleet/`: where it is kept if it is to be, who hears of it, and the way into the router.
//!
//! One place for tools and the hub, so that a message is on the shelf before anybody can hear it: whoever subscribes
//! meanwhile gets it from one or the other.

use std::{sync::Arc, time::Instant};

use crate::{
    PublishLimit,
    gate::{
        retained::{Full, Shelf},
        tools::Tools,
    },
    identity::Directory,
    link::PublishError,
    router::{
        pipe::Pipe,
        saying::{Said, Saying},
    },
    stats::Stats,
};

/// The way of what is said outside `fleet/`.
pub(crate) struct Talk {
    pub(crate) pipe: Arc<Pipe<Saying>>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) tools: Arc<Tools>,
    /// How fast one tool may speak.
    pub(crate) limit: PublishLimit,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) stats: Arc<Stats>,
}

impl Talk {
    /// Takes what a tool says, over the budget if need be: it was already read.
    ///
    /// # Errors
    /// [`Full`] when it was to be retained and is not. At QoS 1 it goes nowhere then; at QoS 0 it is said all the same.
    pub(crate) fn say(&self, saying: Saying, now: Instant) -> Result<(), Full> {
        let said = saying.said();
        let kept = if said.retain { self.shelf.keep(&said, now) } else { Ok(()) };
        if kept.is_err() && said.qos > 0 {
            return kept;
        }
        if let Some((name, _)) = said.sender {
            self.directory.said(name, said.topic, said.payload);
        }
        self.hand_on(|| saying);
        kept
    }

    /// Says something for the hub.
    ///
    /// # Errors
    /// [`PublishError`] when there is no room; then nothing changed.
    pub(crate) fn announce(&self, said: &Said<'_>, now: Instant) -> Result<(), PublishError> {
        if self.tools.talk_wanted() && !self.pipe.has_room() {
            self.stats.talk_dropped.add(1);
            return Err(PublishError::Full);
        }
        if said.retain {
            self.shelf.keep(said, now).map_err(|Full| PublishError::RetainedFull)?;
        }
        self.hand_on(|| Saying::new(said));
        Ok(())
    }

    fn hand_on(&self, saying: impl FnOnce() -> Saying) {
        self.stats.talk_messages.add(1);
        if self.tools.talk_wanted() {
            self.pipe.push(&mut vec![saying()]);
        } else {
            self.stats.talk_unheard.add(1);
        }
    }
}
