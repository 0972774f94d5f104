//! The only ambient clock and the only ambient randomness of the hub. Everything else takes them as arguments.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rand::{TryRng as _, rngs::SysRng};

use crate::{
    core::{
        Now,
        time::{Doubt, Reading, Steady},
    },
    pki::file::replace,
};

/// Name of the file in the data folder that says when the hub last ran, in Unix milliseconds.
const FILE: &str = "clock";
/// Where systemd-timesyncd says that it has set the clock (systemd-timesyncd.service(8)).
const TIMESYNC: &str = "/run/systemd/timesync";
/// How often it is looked at, while it matters.
const ASK_AGAIN: Duration = Duration::from_secs(1);

#[expect(clippy::disallowed_methods, reason = "this is the ambient clock")]
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Time since the process first asked, monotonic.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the ambient clock")]
pub fn mono() -> Duration {
    START.elapsed()
}

/// The system's wall clock, Unix milliseconds, as it is.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the ambient clock")]
pub fn wall_ms() -> i64 {
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    SystemTime::now().duration_since(UNIX_EPOCH).map_or_else(|early| -millis(early.duration()), millis)
}

/// Random bytes from the system.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).expect("the system gives random bytes");
    bytes
}

/// The hub's clock: steady against jumps of the system's, also over a restart.
#[derive(Debug)]
pub struct HubClock {
    steady: Mutex<(Steady, Daemon)>,
    /// Where it is kept when the hub last ran.
    file: Option<PathBuf>,
}

/// The machine's time daemon.
#[derive(Debug)]
struct Daemon {
    /// Where it says what it did.
    folder: PathBuf,
    set: Option<bool>,
    ask_at: Duration,
}

impl Default for HubClock {
    fn default() -> Self {
        Self::new(None, TIMESYNC.into())
    }
}

impl HubClock {
    /// The clock of the hub with this data folder.
    #[must_use]
    pub fn open(data: &Path) -> Self {
        Self::new(Some(data.join(FILE)), TIMESYNC.into())
    }

    fn new(file: Option<PathBuf>, folder: PathBuf) -> Self {
        let mut daemon = Daemon { folder, set: None, ask_at: Duration::ZERO };
        let at = reading(daemon.set());
        let steady = Steady::new(at, file.as_deref().and_then(last_ran));
        Self { steady: Mutex::new((steady, daemon)), file }
    }

    /// The time to use, and whether the system's clock is not followed.
    pub fn read(&self) -> (Now, bool) {
        let (now, doubt) = self.look();
        (now, doubt.is_some())
    }

    /// The time to use.
    pub fn now(&self) -> Now {
        self.look().0
    }

    /// Why the system's clock is not followed, and what to do, as a sentence.
    pub fn doubt(&self) -> Option<String> {
        let (now, doubt) = self.look();
        let out_of_line = |how: &str| {
            let at = jiff::Timestamp::from_millisecond(now.wall_ms).unwrap_or_default();
            format!(
                "the system clock is {how}, and is not followed (by the hub it is {at:.0}): set it; if it is right, stop \
                 the hub, remove the file {FILE} in its data folder, and start it"
            )
        };
        doubt.map(|doubt| match doubt {
            Doubt::Behind => out_of_line("more than a day behind when this hub last ran, or was built"),
            Doubt::Ahead => out_of_line("more than 400 days beyond when this hub last ran"),
            Doubt::Jumped => {
                "the system clock jumped by more than a day and is not followed: set it, then restart"
                    .to_owned()
            }
        })
    }

    /// Keeps the time for the next start, if it is to be trusted.
    ///
    /// # Errors
    /// What the system says; then what was kept before is.
    pub fn keep(&self) -> io::Result<()> {
        let (Some(file), (now, None)) = (&self.file, self.look()) else { return Ok(()) };
        replace(file, format!("{}\n", now.wall_ms).as_bytes())
    }

    fn look(&self) -> (Now, Option<Doubt>) {
        let mut inner = self.steady.lock().unwrap_or_else(PoisonError::into_inner);
        let (steady, daemon) = &mut *inner;
        // It is asked before the clock is read: it says so after it has set it.
        let set = if steady.asks() { daemon.set() } else { None };
        steady.read(reading(set))
    }
}

impl Daemon {
    /// Whether it has set the clock, as it said within the last second; `None` if there is none that tells.
    fn set(&mut self) -> Option<bool> {
        if mono() >= self.ask_at {
            self.ask_at = mono() + ASK_AGAIN;
            self.set = self.folder.exists().then(|| self.folder.join("synchronized").exists());
        }
        self.set
    }
}

fn reading(set: Option<bool>) -> Reading {
    Reading { wall_ms: wall_ms(), mono: mono(), set }
}

fn last_ran(file: &Path) -> Option<i64> {
    match fs::read_to_string(file) {
        Ok(text) => {
            let known = text.trim().parse().ok();
            if known.is_none() {
                tracing::warn!(file = %file.display(), "this is no time: the system's clock is trusted");
            }
            known
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "when the hub last ran cannot be read");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_kept_holds_at_the_next_start_until_the_daemon_sets_the_clock() {
        let folder = tempfile::tempdir().unwrap();
        let (file, daemon) = (folder.path().join(FILE), folder.path().join("timesync"));
        let open = || HubClock::new(Some(file.clone()), daemon.clone());
        let clock = open();
        assert_eq!((clock.read().1, clock.doubt()), (false, None));
        clock.keep().unwrap();
        let kept: i64 = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        assert!((0..60_000).contains(&(clock.now().wall_ms - kept)));
        assert_eq!(open().doubt(), None);
        let ahead_ms = wall_ms() + 40 * 24 * 3_600_000;
        fs::write(&file, format!("{ahead_ms}\n")).unwrap();
        let clock = open();
        assert!((0..60_000).contains(&(clock.now().wall_ms - ahead_ms)));
        assert!(clock.doubt().unwrap().contains("more than a day behind"), "{:?}", clock.doubt());
        clock.keep().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap().trim(), ahead_ms.to_string(), "not what is in doubt");
        fs::create_dir(&daemon).unwrap();
        let clock = open();
        assert!(clock.read().1, "it has not set it yet");
        fs::write(daemon.join("synchronized"), "").unwrap();
        let given_up = mono() + Duration::from_secs(60);
        while clock.read().1 {
            assert!(mono() < given_up, "it is never asked again");
            std::thread::yield_now();
        }
        assert!(clock.now().wall_ms < ahead_ms - 24 * 3_600_000);
        assert_eq!(open().doubt(), None, "it had set it before");
        fs::write(&file, "rubbish").unwrap();
        assert_eq!(open().doubt(), None);
    }
}
