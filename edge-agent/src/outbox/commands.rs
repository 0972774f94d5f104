//! Commands at the outbox's thread: the words of the runner and the edge API, and what comes out of the queues for them.
//!
//! Owns who is to be told. What begins, ends and is remembered is decided by the uplink.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use fleet_schemas::{CommandId, command::Reason};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

use super::{Handle, Request, Silent, thread::Keeper};
use crate::{
    core::{
        Now,
        queue::{Act, Ask, Command, End, Held, LocalReport, Over, Take},
    },
    uplink::{Judge, Uplink},
};

/// Apps that may wait for a command at a time: each holds a connection of the edge API.
const TAKERS: usize = 64;

/// A command that was asked for.
#[derive(Debug)]
pub(crate) enum Found {
    Held(Box<Held>),
    Over(Box<Over>),
}

pub(super) enum Word {
    Attach { acts: mpsc::Sender<Act>, judge: Arc<dyn Judge> },
    Output { id: CommandId, bytes: Bytes },
    Finished { id: CommandId, end: End, reply: oneshot::Sender<()> },
    Ask { ask: Box<Ask>, reply: oneshot::Sender<Result<(), Reason>> },
    Take { take: Take, wait: Duration, reply: oneshot::Sender<Option<Command>> },
    Extend { id: CommandId, lease: Duration, reply: oneshot::Sender<bool> },
    Report { id: CommandId, said: Box<LocalReport>, reply: oneshot::Sender<bool> },
    List { reply: oneshot::Sender<Vec<Held>> },
    Find { id: CommandId, reply: oneshot::Sender<Option<Found>> },
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Word")
    }
}

/// Those that have to do with commands.
#[derive(Default)]
pub(super) struct Desk {
    runner: Option<(mpsc::Sender<Act>, Arc<dyn Judge>)>,
    // Given to the runner and not yet ended by its word.
    alive: BTreeSet<CommandId>,
    takers: Vec<Taker>,
    // Tells those who watch commands that some changed, and how far it told.
    changes: watch::Sender<u64>,
    told: u64,
}

/// An app that waits for a command.
struct Taker {
    take: Take,
    until: Duration,
    reply: oneshot::Sender<Option<Command>>,
}

impl Desk {
    /// Tells an uplink that was opened (again) that commands are taken, and which runs go on.
    pub(super) fn equip(&self, uplink: &mut Uplink) {
        if let Some((_, judge)) = &self.runner {
            uplink.take_commands(judge.clone(), &self.alive);
        }
    }

    /// Sees a change whenever commands changed on disk.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// When the first app gives up waiting.
    pub(super) fn due(&self) -> Option<Duration> {
        self.takers.iter().map(|taker| taker.until).min()
    }
}

impl Keeper {
    /// What cannot be done is not answered: the asker sees that its question was dropped.
    pub(super) fn take_word(&mut self, word: Word, now: Now) {
        match word {
            Word::Attach { acts, judge } => {
                self.desk.runner = Some((acts, judge));
                if let Some(uplink) = &mut self.uplink {
                    self.desk.equip(uplink);
                }
            }
            Word::Output { id, bytes } => {
                if let Some(uplink) = &mut self.uplink {
                    uplink.output(id, &bytes, now);
                }
            }
            Word::Finished { id, end, reply } => {
                if self.with(|uplink| uplink.finished(id, end, now)).is_some() {
                    self.desk.alive.remove(&id);
                    let _ = reply.send(());
                }
            }
            Word::Ask { ask, reply } => answer(reply, self.with(|uplink| uplink.ask(*ask, now))),
            Word::Take { take, wait, reply } => {
                if self.desk.takers.len() < TAKERS {
                    self.desk.takers.push(Taker { take, until: now.up + wait, reply });
                }
            }
            Word::Extend { id, lease, reply } => {
                answer(reply, self.with(|uplink| uplink.extend_local(id, lease, now)));
            }
            Word::Report { id, said, reply } => {
                answer(reply, self.with(|uplink| uplink.report_local(id, *said, now)));
            }
            Word::List { reply } => answer(reply, self.with(|uplink| Ok(uplink.held_commands()))),
            Word::Find { id, reply } => answer(reply, self.with(|uplink| find(uplink, id))),
        }
    }

    /// Gives waiting apps what they wait for.
    pub(super) fn serve_takers(&mut self, now: Now) {
        for taker in std::mem::take(&mut self.desk.takers) {
            if taker.reply.is_closed() {
                continue;
            }
            match self.with(|uplink| uplink.take_local(&taker.take, now)) {
                Some(None) if taker.until > now.up => self.desk.takers.push(taker),
                // An app that is gone by now loses its lease.
                Some(command) => drop(taker.reply.send(command)),
                None => {}
            }
        }
    }

    /// Wakes those who watch commands, if any changed on disk.
    pub(super) fn tell_changes(&mut self) {
        let Some(uplink) = &self.uplink else { return };
        let count = uplink.command_changes();
        if count != self.desk.told {
            self.desk.told = count;
            self.desk.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// Hands the runner what is on disk and may be done.
    pub(super) fn pass_on_acts(&mut self) {
        let Some(uplink) = &mut self.uplink else { return };
        for act in uplink.acts() {
            if let Act::Start(command) = &act {
                self.desk.alive.insert(command.id);
            }
            let Some((acts, _)) = &self.desk.runner else { continue };
            if let Err(failure) = acts.try_send(act) {
                // The queues limit what runs, and time ends what was not begun.
                error!(error = %failure, "the runner does not listen");
            }
        }
    }
}

fn answer<T>(reply: oneshot::Sender<T>, done: Option<T>) {
    if let Some(done) = done {
        let _ = reply.send(done);
    }
}

fn find(uplink: &Uplink, id: CommandId) -> Result<Option<Found>, crate::uplink::Error> {
    if let Some(held) = uplink.held_command(id) {
        return Ok(Some(Found::Held(Box::new(held.clone()))));
    }
    Ok(uplink.over_command(id)?.map(|over| Found::Over(Box::new(over))))
}

impl Handle {
    /// From now on commands are taken: what begins comes out of the receiver.
    pub(crate) async fn attach(&self, judge: Arc<dyn Judge>, room: usize) -> mpsc::Receiver<Act> {
        let (acts, begun) = mpsc::channel(room);
        let _ = self.requests.send(Request::Commands(Word::Attach { acts, judge })).await;
        begun
    }

    /// A run said more.
    pub(crate) async fn output(&self, id: CommandId, bytes: Bytes) {
        let _ = self.requests.send(Request::Commands(Word::Output { id, bytes })).await;
    }

    /// A run ended; that is on disk when it says `Ok`.
    ///
    /// # Errors
    /// [`Silent`]: say it again.
    pub(crate) async fn finished(&self, id: CommandId, end: End) -> Result<(), Silent> {
        self.ask_for(|reply| Word::Finished { id, end, reply }).await
    }

    /// Takes a command of a program on the node; it is on disk when it says `Ok(Ok(()))`.
    ///
    /// # Errors
    /// [`Silent`]; inside, why the command is not taken.
    pub(crate) async fn enqueue(&self, ask: Ask) -> Result<Result<(), Reason>, Silent> {
        self.ask_for(|reply| Word::Ask { ask: Box::new(ask), reply }).await
    }

    /// Waits until there is a command that the app can do.
    ///
    /// # Errors
    /// [`Silent`], also when too many apps wait already.
    pub(crate) async fn take(&self, take: Take, wait: Duration) -> Result<Option<Command>, Silent> {
        self.ask_for(|reply| Word::Take { take, wait, reply }).await
    }

    /// An app wants more time. `false`: it does not have the command any more.
    ///
    /// # Errors
    /// [`Silent`].
    pub(crate) async fn extend(&self, id: CommandId, lease: Duration) -> Result<bool, Silent> {
        self.ask_for(|reply| Word::Extend { id, lease, reply }).await
    }

    /// An app is done. `false`: it does not have the command any more.
    ///
    /// # Errors
    /// [`Silent`].
    pub(crate) async fn report(&self, id: CommandId, said: LocalReport) -> Result<bool, Silent> {
        self.ask_for(|reply| Word::Report { id, said: Box::new(said), reply }).await
    }

    /// What is held, in the order in which it came.
    ///
    /// # Errors
    /// [`Silent`].
    pub(crate) async fn commands(&self) -> Result<Vec<Held>, Silent> {
        self.ask_for(|reply| Word::List { reply }).await
    }

    /// Sees a change whenever commands changed on disk.
    pub(crate) fn command_changes(&self) -> watch::Receiver<u64> {
        self.commands.clone()
    }

    /// One command.
    ///
    /// # Errors
    /// [`Silent`].
    pub(crate) async fn command(&self, id: CommandId) -> Result<Option<Found>, Silent> {
        self.ask_for(|reply| Word::Find { id, reply }).await
    }

    async fn ask_for<T>(&self, word: impl FnOnce(oneshot::Sender<T>) -> Word) -> Result<T, Silent> {
        self.ask(|reply| Request::Commands(word(reply))).await
    }
}
