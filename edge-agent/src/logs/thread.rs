//! The thread that owns the ring: takes lines, writes blocks seldom, answers.
//!
//! A thread of its own, because reading unpacks megabytes. Lines that come faster than a node's flash should bear are
//! counted and left out.

use std::{
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time,
};

use super::{
    line::{Line, OWN_UNIT, Page, Query, WARNING},
    ring::Ring,
};
use crate::clock::Clock;

/// Lines and questions that may wait for the thread.
const WORDS: usize = 1_024;
/// How long lines wait in memory for others: each write costs the flash some pages.
const FLUSH: Duration = Duration::from_secs(300);
/// The same of warnings and errors: what an agent says before it dies.
const FLUSH_GRAVE: Duration = Duration::from_secs(10);
/// Bytes of text that are taken in one [`WINDOW`]; compressed, some 40 MB a day at worst.
const WINDOW_BYTES: usize = 256 * 1024;
/// See [`WINDOW_BYTES`].
const WINDOW: Duration = Duration::from_secs(60);
/// Pause before a question is put again to a thread that has no room for it.
const AGAIN: Duration = Duration::from_millis(10);

/// What the thread is told.
pub(super) enum Word {
    Line(Line),
    Read { query: Box<Query>, bytes: usize, reply: oneshot::Sender<Result<Page, String>> },
    Stop,
}

/// Speaks to the ring. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    words: SyncSender<Word>,
    news: watch::Receiver<u64>,
}

/// Opens the ring and starts its thread. Without a disk the lines are kept in memory until a block is full.
pub(crate) fn spawn(data: &Path, clock: Clock) -> std::io::Result<(Handle, JoinHandle<()>)> {
    let ring = Ring::open(data)?;
    let (words, heard) = sync_channel(WORDS);
    let (latest, news) = watch::channel(ring.latest());
    let keeper = Keeper {
        ring,
        clock,
        latest,
        due: None,
        window: Duration::ZERO,
        taken: 0,
        left_out: 0,
        failed: false,
    };
    let thread = thread::Builder::new().name("logs".to_owned()).spawn(move || keeper.main(&heard))?;
    Ok((Handle { words, news }, thread))
}

impl Handle {
    /// Hands a line in. One for which there is no room is left out.
    pub(crate) fn push(&self, line: Line) {
        let _ = self.words.try_send(Word::Line(line));
    }

    /// Told the number of the latest line.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.news.clone()
    }

    /// What is asked for, as much as fits into `bytes`.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub(super) async fn read(&self, query: Query, bytes: usize) -> Result<Page, String> {
        let gone = || "the agent is stopping".to_owned();
        let (reply, answer) = oneshot::channel();
        let mut word = Word::Read { query: Box::new(query), bytes, reply };
        loop {
            match self.words.try_send(word) {
                Ok(()) => return answer.await.map_err(|_| gone())?,
                Err(TrySendError::Full(back)) => word = back,
                Err(TrySendError::Disconnected(_)) => return Err(gone()),
            }
            time::sleep(AGAIN).await;
        }
    }

    /// Writes what waits and ends the thread.
    pub(crate) async fn stop(&self) {
        while let Err(TrySendError::Full(_)) = self.words.try_send(Word::Stop) {
            time::sleep(AGAIN).await;
        }
    }
}

struct Keeper {
    ring: Ring,
    clock: Clock,
    latest: watch::Sender<u64>,
    due: Option<Duration>,
    window: Duration,
    taken: usize,
    left_out: u64,
    failed: bool,
}

impl Keeper {
    fn main(mut self, heard: &Receiver<Word>) {
        loop {
            let up = self.clock.now().up;
            let word = match self.due.map(|due| due.saturating_sub(up)) {
                None => heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(left) => heard.recv_timeout(left),
            };
            match word {
                Ok(Word::Line(line)) => self.take(line),
                Ok(Word::Read { query, bytes, reply }) => {
                    let page = self.ring.read(&query, bytes);
                    let _ = reply.send(
                        page.map_err(|error| format!("the logs cannot be read: {error}; check the disk")),
                    );
                }
                Err(RecvTimeoutError::Timeout) => self.flush(),
                Ok(Word::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.flush();
    }

    fn take(&mut self, line: Line) {
        let now = self.clock.now();
        if now.up.saturating_sub(self.window) >= WINDOW {
            (self.window, self.taken) = (now.up, 0);
            if let Some(lost) = (self.left_out > 0).then(|| std::mem::take(&mut self.left_out)) {
                let text =
                    format!("{lost} lines were left out: more than {WINDOW_BYTES} bytes came in a minute");
                self.push(Line::new(now.wall_ms, OWN_UNIT, WARNING, &text), now.up);
            }
        }
        self.taken += line.size();
        if self.taken > WINDOW_BYTES {
            self.left_out += 1;
            return;
        }
        self.push(line, now.up);
    }

    fn push(&mut self, line: Line, up: Duration) {
        let pause = if line.priority <= WARNING { FLUSH_GRAVE } else { FLUSH };
        let due = up + pause;
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
        if self.ring.push(line) {
            self.flush();
        }
        self.latest.send_replace(self.ring.latest());
    }

    fn flush(&mut self) {
        self.due = None;
        match self.ring.flush() {
            Ok(()) => self.failed = false,
            // Said once: saying it is a line, too.
            Err(error) if !self.failed => {
                self.failed = true;
                tracing::warn!(
                    "the logs cannot be written, those of the last minutes are gone: {error}; check the disk"
                );
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, logs::line::INFO};

    fn keeper(data: &Path) -> Keeper {
        let ring = Ring::open(data).unwrap();
        let (latest, _) = watch::channel(0);
        let clock = Clock::new(clock::Config::default());
        Keeper {
            ring,
            clock,
            latest,
            due: None,
            window: Duration::ZERO,
            taken: 0,
            left_out: 0,
            failed: false,
        }
    }

    #[test]
    fn a_program_that_floods_its_log_costs_the_flash_little_and_is_told_of() {
        let data = tempfile::tempdir().unwrap();
        let mut keeper = keeper(data.path());
        keeper.window = keeper.clock.now().up;
        for n in 0..10_000 {
            keeper.take(Line::new(n, "chatty", INFO, &"x".repeat(200)));
        }
        let kept = keeper.ring.read(&Query::default(), usize::MAX).unwrap().lines.len();
        assert!((800..1_000).contains(&kept), "{kept}");
        keeper.window = Duration::ZERO;
        keeper.left_out = 9_000;
        // A minute later, on a machine that has been up for one.
        if keeper.clock.now().up >= WINDOW {
            keeper.take(Line::new(0, "chatty", INFO, "again"));
            let last = keeper.ring.read(&Query { last: Some(2), ..Query::default() }, usize::MAX).unwrap();
            assert!(last.lines[0].message.starts_with("9000 lines were left out"), "{last:?}");
            assert_eq!(last.lines[1].message, "again");
        }
    }

    #[test]
    fn grave_lines_are_written_soon_and_others_wait_for_company() {
        let data = tempfile::tempdir().unwrap();
        let mut keeper = keeper(data.path());
        let up = keeper.clock.now().up;
        keeper.push(Line::new(0, "a", INFO, "quiet"), up);
        assert_eq!(keeper.due, Some(up + FLUSH));
        keeper.push(Line::new(0, "a", WARNING, "trouble"), up);
        assert_eq!(keeper.due, Some(up + FLUSH_GRAVE));
        keeper.push(Line::new(0, "a", INFO, "quiet"), up);
        assert_eq!(keeper.due, Some(up + FLUSH_GRAVE));
        keeper.flush();
        assert_eq!(keeper.due, None);
    }

    #[tokio::test]
    async fn what_is_pushed_is_read_and_survives_a_stop() {
        let data = tempfile::tempdir().unwrap();
        let start = || spawn(data.path(), Clock::new(clock::Config::default())).unwrap();
        let (handle, thread) = start();
        let mut news = handle.news();
        let before = *news.borrow();
        handle.push(Line::new(1, "a", INFO, "one"));
        news.wait_for(|latest| *latest > before).await.unwrap();
        assert_eq!(handle.read(Query::default(), 9_999).await.unwrap().lines.len(), 1);
        handle.stop().await;
        thread.join().unwrap();
        assert!(handle.read(Query::default(), 9_999).await.is_err());
        let (handle, thread) = start();
        assert_eq!(handle.read(Query::default(), 9_999).await.unwrap().lines[0].message, "one");
        drop(handle);
        thread.join().unwrap();
    }
}
