//! The thread that finds out what takes long: slow hashes of passwords, one after the other.
//!
//! Owns the queue and its bounds. Knows no connection: whoever asked holds a [`Judgement`] and waits for it.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use tokio::sync::Notify;

use crate::{
    gate::caps,
    identity::{Identity, Refusal},
};

/// What is asked.
pub(crate) type Work = Box<dyn FnOnce() -> Result<Identity, Refusal> + Send>;

/// The thread's queue.
pub(crate) struct Judge {
    queue: Mutex<Option<mpsc::SyncSender<Case>>>,
    waiting: Arc<Mutex<HashMap<IpAddr, usize>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// An answer to come.
#[derive(Default)]
pub(crate) struct Judgement {
    outcome: Mutex<Option<Result<Identity, Refusal>>>,
    done: Notify,
}

struct Case {
    work: Work,
    address: IpAddr,
    judgement: Arc<Judgement>,
}

/// Most that wait.
const QUEUE: usize = 64;
/// And from one address, so that who guesses passwords leaves room for the others.
const QUEUE_PER_ADDRESS: usize = 16;

impl Judge {
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Self> {
        let (queue, cases) = mpsc::sync_channel::<Case>(QUEUE);
        let waiting = Arc::new(Mutex::new(HashMap::new()));
        let counted = waiting.clone();
        let thread = thread::Builder::new().name("gate-judge".to_owned()).spawn(move || {
            for case in cases {
                leave(&counted, case.address);
                // Nobody waits any more: the connection is gone.
                if Arc::strong_count(&case.judgement) > 1 {
                    let outcome = panic::catch_unwind(AssertUnwindSafe(case.work));
                    *lock(&case.judgement.outcome) = Some(outcome.unwrap_or(Err(Refusal::Unavailable)));
                    case.judgement.done.notify_one();
                }
            }
        })?;
        Ok(Self { queue: Mutex::new(Some(queue)), waiting, thread: Mutex::new(Some(thread)) })
    }

    /// Queues work for a client at `address`; `None` when too much waits.
    pub(crate) fn ask(&self, work: Work, address: IpAddr) -> Option<Arc<Judgement>> {
        let address = caps::neighbourhood(address);
        let mut waiting = lock(&self.waiting);
        let here = waiting.entry(address).or_insert(0);
        if *here >= QUEUE_PER_ADDRESS {
            return None;
        }
        *here += 1;
        drop(waiting);
        let judgement = Arc::new(Judgement::default());
        let case = Case { work, address, judgement: judgement.clone() };
        let queued = lock(&self.queue).as_ref().is_some_and(|queue| queue.try_send(case).is_ok());
        if !queued {
            leave(&self.waiting, address);
        }
        queued.then_some(judgement)
    }

    /// Ends the thread, after the work that it has begun or that waits.
    pub(crate) fn stop(&self) {
        drop(lock(&self.queue).take());
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the gate's judge had panicked");
        }
    }
}

impl Judgement {
    /// Ends when there is an outcome.
    pub(crate) async fn done(&self) {
        self.done.notified().await;
    }

    /// The outcome, once.
    pub(crate) fn take(&self) -> Option<Result<Identity, Refusal>> {
        lock(&self.outcome).take()
    }
}

fn leave(waiting: &Mutex<HashMap<IpAddr, usize>>, address: IpAddr) {
    let mut waiting = lock(waiting);
    if let Some(here) = waiting.get_mut(&address) {
        *here -= 1;
        if *here == 0 {
            waiting.remove(&address);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn outcome(judgement: &Judgement) -> Result<Identity, Refusal> {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(judgement.done());
        judgement.take().unwrap()
    }

    #[test]
    fn a_panic_is_unavailable_and_the_next_is_judged() {
        let judge = Judge::start().unwrap();
        let bad = judge.ask(Box::new(|| panic!("expected: a directory's fault")), address(1)).unwrap();
        let good = judge.ask(Box::new(|| Err(Refusal::Banned)), address(1)).unwrap();
        assert_eq!(outcome(&bad), Err(Refusal::Unavailable));
        assert_eq!(outcome(&good), Err(Refusal::Banned));
        judge.stop();
        assert!(judge.ask(Box::new(|| Err(Refusal::Banned)), address(1)).is_none());
        assert!(lock(&judge.waiting).is_empty());
    }

    #[test]
    fn the_queue_is_bounded_and_no_address_takes_it_all() {
        let judge = Judge::start().unwrap();
        let (go, held) = mpsc::channel::<()>();
        let (begun, began) = mpsc::channel::<()>();
        let first = judge.ask(
            Box::new(move || {
                begun.send(()).unwrap();
                held.recv().ok();
                Err(Refusal::Banned)
            }),
            address(0),
        );
        began.recv().unwrap();
        let ask = |n| judge.ask(Box::new(|| Err(Refusal::BadCredentials)), address(n));
        let flood: Vec<_> = (0..100).filter_map(|_| ask(1)).collect();
        assert_eq!(flood.len(), QUEUE_PER_ADDRESS);
        let other = ask(2).unwrap();
        let rest: Vec<_> = (3..100).filter_map(ask).collect();
        assert_eq!(flood.len() + 1 + rest.len(), QUEUE);
        drop(rest);
        go.send(()).unwrap();
        assert_eq!(outcome(&first.unwrap()), Err(Refusal::Banned));
        assert_eq!(outcome(&other), Err(Refusal::BadCredentials));
        judge.stop();
        assert!(lock(&judge.waiting).is_empty());
    }
}
