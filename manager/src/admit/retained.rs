//! What tools want retained, on its way to the store: gathered in memory, written by a thread of its own.
//!
//! The newest value of a topic replaces one that still waits, so what waits is bounded by what the gate keeps.

use std::{
    collections::BTreeMap,
    io, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use fleet_broker::Retained;

use crate::{consume::Shared, store::state::RetainedRow};

/// Pause after a failed write.
const AGAIN: Duration = Duration::from_secs(1);

type Waiting = BTreeMap<String, Option<RetainedRow>>;

/// Hands changes over to the thread.
pub(super) struct Writer {
    store: Arc<Store>,
    // None once it is closed.
    wake: Mutex<Option<mpsc::SyncSender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Store {
    shared: Shared,
    waiting: Mutex<Waiting>,
    // One writer at a time, so that an older value never follows a newer one.
    writing: Mutex<()>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(shared: Shared) -> io::Result<Self> {
        let store = Arc::new(Store { shared, waiting: Mutex::default(), writing: Mutex::default() });
        let (wake, wakes) = mpsc::sync_channel::<()>(1);
        let writes = store.clone();
        let thread = thread::Builder::new().name("retained".to_owned()).spawn(move || {
            while wakes.recv().is_ok() {
                while !writes.write() {
                    thread::sleep(AGAIN);
                    if let Err(mpsc::TryRecvError::Disconnected) = wakes.try_recv() {
                        return;
                    }
                }
            }
        })?;
        Ok(Self { store, wake: Mutex::new(Some(wake)), thread: Mutex::new(Some(thread)) })
    }

    /// All that is kept.
    pub(super) fn load(&self) -> Vec<Retained> {
        match self.store.shared.state().retained() {
            Ok(rows) => rows.into_iter().map(|(topic, row)| retained(topic, row)).collect(),
            Err(error) => {
                tracing::error!(%error, "failed to read what tools want retained; they have to say it again");
                Vec::new()
            }
        }
    }

    /// Takes a change; returns at once.
    pub(super) fn keep(&self, topic: &str, value: Option<&Retained>) {
        let row = value.map(|value| RetainedRow {
            qos: value.qos,
            payload: value.payload.clone(),
            properties: value.properties.clone(),
        });
        self.store.lock().insert(topic.to_owned(), row);
        if let Some(wake) = &*self.wake.lock().unwrap_or_else(PoisonError::into_inner) {
            // Full: it was woken already.
            let _ = wake.try_send(());
        }
    }

    /// Writes what waits, and ends the thread.
    pub(super) fn close(&self) {
        drop(self.wake.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that keeps what tools want retained had panicked");
        }
        self.store.write();
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing waits any more.
    fn write(&self) -> bool {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let rows: Vec<_> = mem::take(&mut *self.lock()).into_iter().collect();
        if rows.is_empty() {
            return true;
        }
        let Err(error) = self.shared.state().put_retained(&rows) else { return true };
        tracing::error!(topics = rows.len(), %error, "failed to keep what tools want retained; it is tried again");
        let mut waiting = self.lock();
        for (topic, row) in rows {
            // What came meanwhile is newer.
            waiting.entry(topic).or_insert(row);
        }
        false
    }
}

fn retained(topic: String, row: RetainedRow) -> Retained {
    let RetainedRow { qos, payload, properties } = row;
    Retained { topic, qos, payload, properties }
}
