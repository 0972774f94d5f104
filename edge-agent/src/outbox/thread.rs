//! The thread that owns the uplink: takes requests, writes all submissions of a round in one transaction, answers,
//! and sends what is due. After a disk error it opens the outbox again, with patience.

use std::{io, path::PathBuf, sync::Arc, thread, time::Duration};

use fleet_schemas::{MetricName, SessionId, event::Event, event::Severity, limits, session::StreamState};
use metrics::Counter;
use tokio::{
    runtime, select,
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    time,
};
use tracing::{error, info, warn};

use super::{
    Config, Delivery, Handle, OpenError, REQUESTS, Request, SubmitError, commands::Desk, config::Clerk,
    devices::Links, file, tap::Tap,
};
use crate::{
    clock::Clock,
    core::Now,
    metrics::Metrics,
    uplink::{self, Handed, LaneStatus, Outgoing, Profile, Receipt, Submission, Uplink},
};

/// Records that one transaction takes together: bounds how long the first of them waits.
const ROUND_RECORDS: usize = 2 * limits::BATCH_RECORDS;
/// First pause before the outbox is opened again, doubled each time.
const REOPEN_FIRST: Duration = Duration::from_secs(1);
/// Longest such pause: space that somebody freed is found within a minute.
const REOPEN_LAST: Duration = Duration::from_secs(60);
/// Shortest pause between two rounds that nobody asked for.
const BREATH: Duration = Duration::from_millis(5);

/// Starts the thread and opens the outbox on it; returns once it is open.
///
/// # Errors
/// [`OpenError`]: nothing was started.
pub async fn spawn(
    config: Config,
    folder: PathBuf,
    profile: Profile,
    clock: Clock,
    metrics: Arc<Metrics>,
) -> Result<(Handle, thread::JoinHandle<()>), OpenError> {
    let (sender, requests) = mpsc::channel(REQUESTS);
    let (view, config_view) = watch::channel(Arc::default());
    let keeper = Keeper {
        config,
        folder,
        profile,
        clock,
        metrics,
        uplink: None,
        broken: "it was never opened".into(),
        retry_at: Duration::ZERO,
        patience: REOPEN_FIRST,
        link: None,
        desk: Desk::default(),
        clerk: Clerk::new(view),
        tap: None,
        links: Links::default(),
    };
    let handle = Handle { requests: sender, config: config_view, commands: keeper.desk.changes() };
    let (opened, open) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("outbox".to_owned())
        .spawn(move || keeper.main(requests, opened))
        .map_err(OpenError::Thread)?;
    match open.await {
        Ok(opened) => opened.map(|()| (handle, thread)),
        Err(_) => Err(OpenError::Thread(io::Error::other("it panicked; please report its message"))),
    }
}

fn delivery(uplink: &Uplink) -> Delivery {
    let status = uplink.status();
    let behind = |state: &LaneStatus| {
        let sealed = |(stream, mark): &(StreamState, u64)| match mark + 1 >= stream.next_seq {
            true => 0,
            // What is acknowledged is kept for a while, and is among those held.
            false => stream.next_record.saturating_sub(stream.floor_record),
        };
        state.streams.iter().map(sealed).sum::<u64>()
    };
    Delivery {
        connected: status.answered,
        records: status.lanes.values().map(behind).sum::<u64>() + status.pending.samples,
        delivered: uplink.is_delivered(),
        unheard: uplink.is_unheard(),
        leaving: uplink.is_leaving(),
    }
}

pub(super) struct Keeper {
    pub(super) config: Config,
    pub(super) folder: PathBuf,
    pub(super) profile: Profile,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    // Absent after a disk error, until it could be opened again.
    pub(super) uplink: Option<Uplink>,
    broken: Arc<str>,
    retry_at: Duration,
    patience: Duration,
    link: Option<Link>,
    // Those that have to do with commands.
    pub(super) desk: Desk,
    pub(super) clerk: Clerk,
    pub(super) links: Links,
    // Where rules hear what is accepted.
    pub(super) tap: Option<Tap>,
}

/// The connection that is up.
struct Link {
    session: SessionId,
    outgoing: mpsc::Sender<Outgoing>,
}

/// What came in together and is answered together.
#[derive(Default)]
struct Round {
    handed: Vec<Handed>,
    replies: Vec<oneshot::Sender<Result<Receipt, SubmitError>>>,
    records: usize,
    questions: Vec<oneshot::Sender<uplink::Status>>,
    stop: bool,
}

impl Keeper {
    fn main(mut self, requests: mpsc::Receiver<Request>, opened: oneshot::Sender<Result<(), OpenError>>) {
        // Timers of its own: a busy program around it must not delay a commit.
        let runtime = runtime::Builder::new_current_thread().enable_time().build().map_err(OpenError::Thread);
        let runtime = runtime.and_then(|runtime| self.open(self.clock.now()).map(|()| runtime));
        match runtime {
            Ok(runtime) => {
                let _ = opened.send(Ok(()));
                runtime.block_on(self.run(requests));
            }
            Err(error) => {
                let _ = opened.send(Err(error));
            }
        }
    }

    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        loop {
            let first = match self.wait() {
                None => requests.recv().await,
                Some(wait) => select! {
                    request = requests.recv() => request,
                    () = time::sleep(wait) => {
                        self.send_due();
                        continue;
                    }
                },
            };
            let mut round = Round::default();
            let mut next = first.or(Some(Request::Stop));
            while let Some(request) = next {
                self.take(request, &mut round);
                let more = round.records < ROUND_RECORDS && !round.stop;
                next = if more { requests.try_recv().ok() } else { None };
            }
            let stop = round.stop;
            self.finish(round);
            if stop {
                requests.close();
                break;
            }
        }
    }

    /// How long nothing is due; `None`: for ever.
    fn wait(&self) -> Option<Duration> {
        let due = match &self.uplink {
            Some(uplink) => uplink.deadline().into_iter().chain(self.desk.due()).min()?,
            None => self.retry_at,
        };
        Some(due.saturating_sub(self.clock.now().up).max(BREATH))
    }

    fn take(&mut self, request: Request, round: &mut Round) {
        let now = self.clock.now();
        match request {
            Request::Submit { handed, reply } => {
                round.records += handed.submission.len();
                round.handed.push(handed);
                round.replies.push(reply);
            }
            Request::Lazily(samples) => {
                if let Some(uplink) = &mut self.uplink {
                    if let Some(tap) = &mut self.tap {
                        self.metrics.rules_missed.increment(tap.pass(tap.pick_samples(&samples)));
                    }
                    uplink.submit_lazily(samples);
                }
            }
            Request::System(figures) => {
                if let Some(uplink) = &mut self.uplink {
                    uplink.set_system(figures);
                }
            }
            Request::Will { session, reply } => {
                if let Some(uplink) = &self.uplink {
                    let _ = reply.send(uplink.will(session));
                }
            }
            Request::Connected { session, outgoing } => {
                self.link = Some(Link { session, outgoing });
                if let Some(uplink) = &mut self.uplink {
                    uplink.connected(session, now);
                }
            }
            Request::Disconnected => {
                self.link = None;
                if let Some(uplink) = &mut self.uplink {
                    uplink.disconnected();
                }
            }
            Request::Receive { down, payload } => {
                self.with(|uplink| uplink.receive(down, &payload, now));
            }
            Request::Status { reply } => round.questions.push(reply),
            Request::Alive { reply } => {
                let _ = reply.send(());
            }
            Request::SealNow => {
                if let Some(uplink) = &mut self.uplink {
                    uplink.seal_now(now);
                }
            }
            Request::Leave => {
                if let Some(uplink) = &mut self.uplink {
                    uplink.leave();
                }
            }
            Request::Delivery { reply } => {
                if let Some(uplink) = &self.uplink {
                    let _ = reply.send(delivery(uplink));
                }
            }
            Request::Goodbye { reply } => {
                let goodbye = self.with(|uplink| uplink.goodbye(now)).unwrap_or_default();
                self.link = None;
                let _ = reply.send(goodbye);
            }
            Request::Commands(word) => self.take_word(word, now),
            Request::Config(word) => self.take_config_word(word, now),
            Request::Listen(tap) => self.tap = Some(tap),
            Request::Devices(word) => self.take_device_word(word, now),
            Request::Versions(versions) => {
                if let Some(uplink) = &mut self.uplink {
                    uplink.set_versions((*versions).clone());
                }
                self.profile.versions = *versions;
            }
            Request::Stop => round.stop = true,
        }
    }

    /// Commits, answers, then speaks to the hub.
    fn finish(&mut self, round: Round) {
        let Round { handed, replies, questions, stop, records: _ } = round;
        if !handed.is_empty() {
            self.submit(handed, replies);
        }
        if stop {
            let now = self.clock.now();
            self.with(|uplink| uplink.goodbye(now));
            self.uplink = None;
            return;
        }
        self.send_due();
        if let Some(uplink) = &self.uplink {
            for question in questions {
                let _ = question.send(uplink.status());
            }
        }
    }

    fn submit(&mut self, handed: Vec<Handed>, replies: Vec<oneshot::Sender<Result<Receipt, SubmitError>>>) {
        let now = self.clock.now();
        let kinds: Vec<_> = handed.iter().map(|handed| self.accepted(&handed.submission)).collect();
        let seen: Vec<_> = (handed.iter())
            .map(|handed| self.tap.as_ref().map(|tap| tap.pick(&handed.submission)).unwrap_or_default())
            .collect();
        let results = self.with(|uplink| uplink.submit_once(handed, now));
        let broken = || Err(SubmitError::Disk(self.broken.clone()));
        let results = match results {
            Some(results) => {
                // It writes again. That it could be opened says little: a full disk lets that pass.
                self.patience = REOPEN_FIRST;
                results.into_iter().map(|result| result.map_err(SubmitError::from)).collect()
            }
            None => replies.iter().map(|_| broken()).collect::<Vec<_>>(),
        };
        for (((result, accepted), reply), seen) in results.into_iter().zip(kinds).zip(replies).zip(seen) {
            match &result {
                Ok(receipt) => {
                    accepted.increment(receipt.records - receipt.repeated);
                    // What was on disk before was seen before.
                    if let (0, Some(tap)) = (receipt.repeated, &mut self.tap) {
                        self.metrics.rules_missed.increment(tap.pass(seen));
                    }
                }
                Err(error) => self.metrics.refused(error.reason()),
            }
            let _ = reply.send(result);
        }
    }

    fn accepted(&self, submission: &Submission) -> Counter {
        match submission {
            Submission::Samples(_) => self.metrics.accepted_samples.clone(),
            Submission::Events(_) => self.metrics.accepted_events.clone(),
        }
    }

    fn send_due(&mut self) {
        let now = self.clock.now();
        if self.uplink.is_none() && now.up >= self.retry_at {
            self.reopen(now);
        }
        self.serve_takers(now);
        let Some(outgoing) = self.with(|uplink| uplink.poll(now)) else { return };
        self.pass_on_acts();
        self.pass_on_config();
        self.tell_changes();
        let Some(link) = &self.link else { return };
        for message in outgoing {
            let bytes = message.payload.len() as u64;
            match link.outgoing.try_send(message) {
                Ok(()) => {
                    self.metrics.published.increment(1);
                    self.metrics.published_bytes.increment(bytes);
                }
                // The uplink sends it again after its timeout: better than to keep submitters waiting here.
                Err(TrySendError::Full(_)) => self.metrics.crowded.increment(1),
                // The connection went down and says so next.
                Err(TrySendError::Closed(_)) => return,
            }
        }
    }

    /// Does something with the uplink; after an error it is given up and opened again later.
    pub(super) fn with<T>(&mut self, act: impl FnOnce(&mut Uplink) -> Result<T, uplink::Error>) -> Option<T> {
        match act(self.uplink.as_mut()?) {
            Ok(done) => Some(done),
            Err(failure) => {
                let now = self.clock.now();
                error!(error = %failure, "the outbox's disk failed; nothing is accepted until it is opened again");
                self.broken = failure.to_string().into();
                self.uplink = None;
                self.wait_longer(now);
                None
            }
        }
    }

    fn wait_longer(&mut self, now: Now) {
        self.metrics.outbox_failures.increment(1);
        self.retry_at = now.up + self.patience;
        self.patience = (self.patience * 2).min(REOPEN_LAST);
    }

    fn reopen(&mut self, now: Now) {
        match self.open(now) {
            Ok(()) => info!("the outbox is open again"),
            Err(failure) => {
                warn!(error = %failure, again_in = ?self.patience, "the outbox cannot be opened yet");
                self.broken = failure.to_string().into();
                self.wait_longer(now);
            }
        }
    }

    fn open(&mut self, now: Now) -> Result<(), OpenError> {
        let file::Opened { mut uplink, set_aside } =
            file::open(&self.config, &self.folder, &self.profile, now)?;
        if let Some(link) = &self.link {
            uplink.connected(link.session, now);
        }
        self.desk.equip(&mut uplink);
        self.links.equip(&mut uplink, now);
        uplink.set_upload(self.config.policy.clone(), now);
        self.uplink = Some(uplink);
        self.equip_config(now);
        if let Some(aside) = set_aside {
            warn!(file = %aside.display(), "the outbox was corrupt; it is set aside and a new one begins");
            let event = Event {
                time_ms: now.wall_ms,
                kind: MetricName::parse("outbox_corrupt").expect("our kinds are valid"),
                severity: Severity::Error,
                message: format!("the outbox was corrupt and is set aside as {}", aside.display()),
                data: None,
                device: None,
                id: None,
            };
            self.with(|uplink| uplink.submit(vec![Submission::Events(vec![event])], now));
        }
        Ok(())
    }
}
