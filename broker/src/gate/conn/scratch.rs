//! The buffers that a thread lends to whichever connection it serves, so that an idle one owns none.

use std::{cell::RefCell, mem};

use crate::gate::{session::Effects, transport};

/// One thread's buffers.
#[derive(Default)]
pub(crate) struct Scratch {
    /// As read from the socket.
    pub(crate) bytes: Vec<u8>,
    /// The same out of TLS.
    pub(crate) plain: Vec<u8>,
    /// For the socket, in TLS.
    pub(crate) sealed: Vec<u8>,
    pub(crate) effects: Effects,
}

/// What a buffer may keep between two uses.
const KEPT: usize = 256 * 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Lends this thread's buffers. They are taken out, so that a panic cannot leave one session's bytes to another.
pub(crate) fn with_scratch<T>(run: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut lent = mem::take(scratch);
        lent.bytes.resize(transport::SCRATCH, 0);
        let outcome = run(&mut lent);
        lent.sealed.clear();
        lent.sealed.shrink_to(KEPT);
        lent.plain.clear();
        lent.plain.shrink_to(KEPT);
        *scratch = lent;
        outcome
    })
}
