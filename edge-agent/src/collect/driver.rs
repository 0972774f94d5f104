//! Drivers: programs that print one JSON object per line, kept running or run on a schedule.
//!
//! Owns their lives and what becomes of their lines. The line's grammar is in `line`, the process in `exec`.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    ops::ControlFlow,
    path::PathBuf,
    pin::Pin,
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use fleet_schemas::{DeviceId, MetricName, event::Event, event::Severity, limits, telemetry::Sample};
use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use tokio::{select, sync::oneshot, time};
use tracing::{info, warn};

use super::{
    complaints::{Chatter, Complaints},
    line,
};
use crate::{
    clock::Clock,
    config::{optional_seconds, seconds},
    core::{Now, cron::Cron},
    exec::{self, Line, Program},
    metrics::Metrics,
    outbox::{self, SubmitError},
    stop::Stop,
    uplink::{self, Submission},
};

/// How long lines are gathered before they are written: a chatty driver must not wear out the flash.
const GATHER: Duration = Duration::from_secs(1);
/// Records that are written without waiting longer: far fewer than one submission may have.
const GATHER_RECORDS: usize = 1_000;
/// First pause before a driver is started again, doubled each time it ends early.
const RESTART_FIRST: Duration = Duration::from_secs(1);
/// Longest such pause.
const RESTART_LAST: Duration = Duration::from_secs(300);
/// A driver that ran this long has proved itself: its next end is waited for only shortly.
const PROVED: Duration = Duration::from_secs(60);
/// How often a driver that waits for its time looks at the clock.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Pause before records are handed in again after the outbox refused them.
const AGAIN: Duration = Duration::from_secs(5);

/// One driver of `agent.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its name in logs and metrics.
    pub name: String,
    /// The program: a path, or a name that is looked up in `PATH`.
    pub program: PathBuf,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Variables beside the agent's own environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// How often to run it, in seconds; absent: it is kept running.
    #[serde(default, rename = "every_s", with = "optional_seconds", skip_serializing_if = "Option::is_none")]
    pub every: Option<Duration>,
    /// When to run it, by the machine's clock: `minute hour day month weekday`, in place of `every_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<Cron>,
    /// A scheduled driver is killed when it runs longer, one that is kept running when it is silent for longer; in
    /// seconds.
    #[serde(default = "default_timeout", rename = "timeout_s", with = "seconds")]
    pub timeout: Duration,
}

impl Config {
    /// Whether it is run on a schedule, and not kept running.
    #[must_use]
    pub fn is_scheduled(&self) -> bool {
        self.every.is_some() || self.cron.is_some()
    }
}

fn default_timeout() -> Duration {
    Duration::from_secs(60)
}

/// What a driver's lines meet.
#[derive(Clone)]
pub(crate) struct Surroundings {
    /// Where programs are started.
    pub(crate) folder: PathBuf,
    pub(crate) clock: Clock,
    pub(crate) outbox: outbox::Handle,
    pub(crate) metrics: Arc<Metrics>,
}

/// Keeps one driver going until told to stop; then ends its process group. `first` is told how its first run ended.
pub(crate) async fn run(
    config: Config,
    surroundings: Surroundings,
    first: oneshot::Sender<Result<(), String>>,
    stop: Stop,
) {
    let program =
        Program { program: config.program.clone(), args: config.args.clone(), env: config.env.clone() };
    let mut driver = Driver {
        lines: surroundings.metrics.driver_lines(&config.name),
        config,
        program,
        surroundings,
        stop,
        complaints: Complaints::default(),
        chatter: Chatter::default(),
        troubles: HashMap::new(),
        samples: Vec::new(),
        events: Vec::new(),
    };
    let mut patience = Patience(RESTART_FIRST);
    let mut first = Some(first);
    loop {
        if driver.wait_for_its_time().await.is_break() {
            return;
        }
        let started = driver.surroundings.clock.now().up;
        let end = driver.run_once().await;
        if let Some(first) = first.take() {
            let _ = first.send(end.wrong().map_or(Ok(()), Err));
        }
        driver.hand_in().await;
        let ran = driver.surroundings.clock.now().up.saturating_sub(started);
        let pause = patience.pause(
            &end,
            ran,
            driver.config.every.or(driver.config.cron.as_ref().map(|_| Duration::ZERO)),
        );
        match end {
            End::Stopped => return,
            end => driver.report(&end, pause),
        }
        let mut stop = driver.stop.clone();
        select! {
            () = time::sleep(pause) => {}
            () = stop.wanted() => return,
        }
    }
}

/// How a run ended.
#[derive(Debug)]
enum End {
    /// With status 0.
    Done,
    /// With another status.
    Failed(ExitStatus),
    /// Killed by us: it took, or was silent for, too long.
    Timeout,
    /// It could not be started or read.
    Io(io::Error),
    /// The agent stops.
    Stopped,
}

impl End {
    /// What went wrong, if anything did.
    fn wrong(&self) -> Option<String> {
        match self {
            Self::Done | Self::Stopped => None,
            Self::Failed(status) => Some(format!("it ended with {status}")),
            Self::Timeout => Some("it took, or was silent for, too long".to_owned()),
            Self::Io(error) => Some(format!("it could not be run: {error}")),
        }
    }
}

/// The pause before the next run.
#[derive(Debug)]
struct Patience(Duration);

impl Patience {
    fn pause(&mut self, end: &End, ran: Duration, every: Option<Duration>) -> Duration {
        let scheduled = every.map(|every| every.saturating_sub(ran));
        if ran >= PROVED || (scheduled.is_some() && matches!(end, End::Done)) {
            self.0 = RESTART_FIRST;
        }
        if let (Some(scheduled), End::Done) = (scheduled, end) {
            return scheduled;
        }
        let pause = self.0.max(scheduled.unwrap_or_default());
        self.0 = (self.0 * 2).min(RESTART_LAST);
        pause
    }
}

struct Driver {
    config: Config,
    program: Program,
    surroundings: Surroundings,
    stop: Stop,
    lines: metrics::Counter,
    complaints: Complaints,
    chatter: Chatter,
    // Sensors that are not well, with the driver's word.
    troubles: HashMap<DeviceId, String>,
    // Gathered and not yet handed in.
    samples: Vec<Sample>,
    events: Vec<Event>,
}

impl Driver {
    /// Waits for the next time of its `cron`. Looks at the clock again and again: it may be set meanwhile.
    async fn wait_for_its_time(&mut self) -> ControlFlow<()> {
        let Some(cron) = self.config.cron.clone() else { return ControlFlow::Continue(()) };
        let zone = TimeZone::system();
        loop {
            let now = self.surroundings.clock.now().wall_ms;
            let next = Timestamp::from_millisecond(now).ok().and_then(|at| cron.after(at, &zone));
            let left = next.map_or(LOOK_AGAIN, |next| {
                Duration::from_millis(next.as_millisecond().saturating_sub(now).unsigned_abs())
            });
            select! {
                // A little more, so that a clock that is slewed does not strike twice.
                () = time::sleep(left.min(LOOK_AGAIN) + Duration::from_millis(100)) => {}
                () = self.stop.wanted() => return ControlFlow::Break(()),
            }
            if left <= LOOK_AGAIN && next.is_some() {
                return ControlFlow::Continue(());
            }
        }
    }

    async fn run_once(&mut self) -> End {
        let (mut running, mut stdout, mut stderr) = match self.program.start(&self.surroundings.folder) {
            Ok(started) => started,
            Err(error) => return End::Io(error),
        };
        let mut stop = self.stop.clone();
        tokio::pin! {
            let limit = time::sleep(self.config.timeout);
            let gathered = time::sleep(GATHER);
        }
        let mut status = None;
        let mut complains = true;
        let end = loop {
            select! {
                line = stdout.next() => match line {
                    Ok(Some(line)) => {
                        if self.samples.is_empty() && self.events.is_empty() {
                            gathered.set(time::sleep(GATHER));
                        }
                        self.take(line);
                        if !self.config.is_scheduled() {
                            limit.set(time::sleep(self.config.timeout));
                        }
                        if self.samples.len() + self.events.len() >= GATHER_RECORDS {
                            self.hand_in_within(limit.as_mut()).await;
                        }
                    }
                    // Whoever closes the output has nothing more to say; it has until the limit to end.
                    Ok(None) => {
                        self.hand_in_within(limit.as_mut()).await;
                        match status.take() {
                            Some(status) => break end(status),
                            None => select! {
                                status = running.ended() => break end(status),
                                () = &mut limit => break End::Timeout,
                                () = stop.wanted() => break End::Stopped,
                            },
                        }
                    }
                    Err(error) => break End::Io(error),
                },
                line = stderr.next(), if complains => match line {
                    Ok(Some(line)) => self.pass_on(line),
                    Ok(None) | Err(_) => complains = false,
                },
                // What it left behind is ended with it, so the output ends too.
                ended = running.ended(), if status.is_none() => status = Some(ended),
                () = &mut gathered, if !(self.samples.is_empty() && self.events.is_empty()) => {
                    self.hand_in_within(limit.as_mut()).await;
                }
                () = &mut limit => break End::Timeout,
                () = stop.wanted() => break End::Stopped,
            }
        };
        match &end {
            End::Done | End::Failed(_) => {}
            End::Timeout | End::Io(_) | End::Stopped => {
                if let Err(error) = running.stop(exec::GRACE).await {
                    warn!(driver = self.config.name, %error, "the driver cannot be waited for");
                }
            }
        }
        end
    }

    /// Hands in, and moves the limit by how long that took: the outbox held the driver up, and not the driver the outbox.
    async fn hand_in_within(&mut self, mut limit: Pin<&mut time::Sleep>) {
        let began = self.surroundings.clock.now().up;
        self.hand_in().await;
        let held = self.surroundings.clock.now().up.saturating_sub(began);
        let until = limit.deadline() + held;
        limit.as_mut().reset(until);
    }

    fn take(&mut self, line: Line<'_>) {
        let now = self.surroundings.clock.now();
        let line = match line {
            Line::Whole(line) if line.trim_ascii().is_empty() => return,
            Line::Whole(line) => line,
            Line::Long => {
                let why = format!("longer than {} bytes; print shorter lines", exec::LINE_BYTES);
                return self.bad_line("long", &why, now);
            }
        };
        match line::parse(line, now.wall_ms) {
            Ok(line::Reading { sensor, trouble, samples }) => {
                self.lines.increment(1);
                self.samples.extend(samples);
                self.note(sensor, trouble, now);
            }
            Err(error) => self.bad_line(error.reason(), &error.to_string(), now),
        }
    }

    fn bad_line(&mut self, reason: &'static str, why: &str, now: Now) {
        self.surroundings.metrics.driver_bad_line(&self.config.name, reason);
        if let Some(unsaid) = self.complaints.due(reason, now.up) {
            warn!(driver = self.config.name, unsaid, "a line was not taken: {why}");
        }
    }

    /// A sensor that falls ill or recovers is an event; one that stays as it is, is none.
    fn note(&mut self, sensor: DeviceId, trouble: Option<String>, now: Now) {
        let known = self.troubles.get(&sensor);
        // One that recovers makes room.
        let is_beyond = known.is_none() && self.troubles.len() >= limits::DEVICES_PER_NODE;
        if known == trouble.as_ref() || is_beyond {
            return;
        }
        let (severity, message) = match &trouble {
            Some(trouble) => (Severity::Warning, format!("sensor {sensor} reports {trouble}")),
            None => (Severity::Info, format!("sensor {sensor} is well again")),
        };
        match trouble {
            Some(trouble) => self.troubles.insert(sensor.clone(), trouble),
            None => self.troubles.remove(&sensor),
        };
        let kind = MetricName::parse("sensor_status").expect("our kinds are valid");
        let time_ms = now.wall_ms;
        self.events.push(Event {
            time_ms,
            kind,
            severity,
            message,
            data: None,
            device: Some(sensor),
            id: None,
        });
    }

    /// What it says on standard error goes to our log.
    fn pass_on(&mut self, line: Line<'_>) {
        let up = self.surroundings.clock.now().up;
        if let (Line::Whole(line), true) = (line, self.chatter.may(up)) {
            info!(driver = self.config.name, "{}", String::from_utf8_lossy(line));
        }
    }

    /// Hands in what was gathered, again and again until it is accepted: the driver waits at its pipe meanwhile. Gives
    /// up only when the agent stops.
    async fn hand_in(&mut self) {
        let samples = std::mem::take(&mut self.samples);
        let events = std::mem::take(&mut self.events);
        for (empty, submission) in [
            (samples.is_empty(), Submission::Samples(samples)),
            (events.is_empty(), Submission::Events(events)),
        ] {
            if !empty {
                let refused = self.submit(&submission).await;
                if refused {
                    for part in submission.by_device() {
                        self.submit(&part).await;
                    }
                }
            }
        }
    }

    /// Whether it was refused for one of its several devices: each is to be handed in by itself.
    async fn submit(&mut self, submission: &Submission) -> bool {
        let mut stop = self.stop.clone();
        loop {
            let Err(error) = self.surroundings.outbox.submit(submission.clone()).await else { return false };
            if error == SubmitError::Stopped || stop.is_wanted() {
                warn!(driver = self.config.name, "the last lines of the driver are lost: {error}");
                return false;
            }
            if let SubmitError::Refused(uplink::SubmitError::Device(_)) = error {
                if submission.has_devices() {
                    return true;
                }
                // To wait would not help: somebody has to register it, or to remove others.
                self.surroundings.metrics.driver_bad_line(&self.config.name, "device");
                let up = self.surroundings.clock.now().up;
                if let Some(unsaid) = self.complaints.due(error.reason(), up) {
                    warn!(driver = self.config.name, unsaid, "lines of the driver are not taken: {error}");
                }
                return false;
            }
            let up = self.surroundings.clock.now().up;
            if let Some(unsaid) = self.complaints.due(error.reason(), up) {
                warn!(driver = self.config.name, unsaid, "lines of the driver wait: {error}");
            }
            select! {
                () = time::sleep(AGAIN) => {}
                () = stop.wanted() => {}
            }
        }
    }

    fn report(&self, end: &End, pause: Duration) {
        let name = &self.config.name;
        let (reason, why) = match end {
            End::Done if self.config.is_scheduled() => {
                return self.surroundings.metrics.driver_ended(name, "done");
            }
            End::Done => ("done", "it ended by itself".to_owned()),
            End::Failed(status) => ("failed", format!("it ended with {status}")),
            End::Timeout if self.config.is_scheduled() => {
                ("timeout", "it took too long and was killed".to_owned())
            }
            End::Timeout => ("timeout", "it was silent for too long and was killed".to_owned()),
            End::Io(error) => ("io", format!("it cannot be run: {error}; check `program` in agent.toml")),
            End::Stopped => return,
        };
        self.surroundings.metrics.driver_ended(name, reason);
        warn!(driver = name, again_in = ?pause, "the driver ended: {why}");
    }
}

fn end(status: io::Result<ExitStatus>) -> End {
    match status {
        Ok(status) if status.success() => End::Done,
        Ok(status) => End::Failed(status),
        Err(error) => End::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_keeps_failing_is_started_ever_more_rarely() {
        let mut patience = Patience(RESTART_FIRST);
        let short = Duration::from_millis(10);
        let pauses: Vec<_> = (0..10).map(|_| patience.pause(&End::Timeout, short, None).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(
            patience.pause(&End::Done, PROVED, None),
            RESTART_FIRST,
            "one that ran long starts afresh"
        );
    }

    #[test]
    fn a_scheduled_driver_keeps_its_schedule_and_never_runs_before_it() {
        let (every, ran) = (Duration::from_secs(60), Duration::from_secs(2));
        let mut patience = Patience(RESTART_FIRST);
        assert_eq!(patience.pause(&End::Done, ran, Some(every)), every - ran);
        assert_eq!(patience.pause(&End::Timeout, ran, Some(every)), every - ran);
        assert_eq!(patience.pause(&End::Done, every * 2, Some(every)), Duration::ZERO);
        let often = Duration::from_millis(10);
        let pauses: Vec<_> =
            (0..3).map(|_| patience.pause(&End::Timeout, ran, Some(often)).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4]);
    }
}
