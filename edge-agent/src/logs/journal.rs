//! Lines of units of systemd: `journalctl` as a child that follows them.
//!
//! Owns the child, what it prints, and `logs/boot`. After a start of the agent it goes on where the ring ends, as far as the
//! journal still has it: within one boot by the lines' time, after another boot with all that this one has said, whatever
//! its clock shows. A machine without `journalctl` is told of once.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use tokio::{select, task, time};
use tracing::warn;

use super::{
    Handle,
    line::{INFO, Line as LogLine, OWN_UNIT, Query},
    ring,
};
use crate::{
    clock,
    exec::{GRACE, Line, Program},
    stop::Stop,
};

/// Pauses before it is started again: doubled from one to the other.
const AGAIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(300)];
/// Lines of before that are taken by the first start of all.
const FIRST: &str = "--lines=100";
/// What is asked for of each line: the rest of a journal entry is ten times as long.
const FIELDS: &str = "--output-fields=MESSAGE,PRIORITY,_SYSTEMD_UNIT,UNIT";

/// Name of the file that says in which boot of the machine lines were followed last.
const BOOT: &str = "boot";

/// What is known already.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    Nothing,
    /// What was said before this boot of the machine.
    Earlier,
    /// What was said until then; Unix milliseconds.
    Until(i64),
    /// That line, by the journal's own word for its place, and what was said before.
    Line(String),
}

/// What `journalctl -o json` prints of a line (systemd.journal-fields(7)).
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "__CURSOR", default)]
    cursor: String,
    #[serde(rename = "_BOOT_ID", default)]
    boot: String,
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    micros: String,
    #[serde(rename = "MESSAGE", default)]
    message: Value,
    #[serde(rename = "PRIORITY")]
    priority: Option<String>,
    #[serde(rename = "_SYSTEMD_UNIT")]
    unit: Option<String>,
    // What systemd itself says of a unit.
    #[serde(rename = "UNIT")]
    about: Option<String>,
}

/// Follows the units until told to stop. `data`: the agent's folder.
pub(crate) fn run(
    units: Vec<String>,
    data: &Path,
    logs: Handle,
    stop: Stop,
) -> impl Future<Output = ()> + use<> {
    let boot = clock::boot_id().iter().map(|byte| format!("{byte:02x}")).collect();
    let journal = Journal { program: "journalctl".into(), units, boot, logs };
    journal.run(data.join(ring::FOLDER).join(BOOT), stop)
}

struct Journal {
    program: PathBuf,
    units: Vec<String>,
    /// The first digits of this boot's id.
    boot: String,
    logs: Handle,
}

impl Journal {
    async fn run(self, file: PathBuf, mut stop: Stop) {
        let (reads, boot) = (file.clone(), self.boot.clone());
        let same_boot = move || fs::read_to_string(reads).is_ok_and(|last| last == boot);
        let same_boot = task::spawn_blocking(same_boot).await.unwrap_or(false);
        let mut known = match newest_ms(&self.units, &self.logs).await {
            None => Known::Nothing,
            // Unless the clock is behind what it was: lines of this boot come twice then, rather than not at all.
            Some(ms) if same_boot && ms <= clock::wall_ms() => Known::Until(ms),
            Some(ms) => {
                // What was said before this boot: who follows is not shown that. Whatever is wrong is said below.
                let mut earlier = Known::Until(ms);
                select! {
                    _ = self.follow(&mut earlier, false) => {}
                    () = stop.wanted() => return,
                }
                Known::Earlier
            }
        };
        let boot = self.boot.clone();
        if let Ok(Err(error)) = task::spawn_blocking(move || fs::write(file, boot)).await {
            warn!("lines of the journal may be kept twice after a start of the agent: {error}");
        }
        let mut pause = AGAIN[0];
        loop {
            let (ended, lines) = select! {
                ended = self.follow(&mut known, true) => ended,
                () = stop.wanted() => return,
            };
            if lines {
                pause = AGAIN[0];
            }
            match ended {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    warn!(
                        "this machine has no journalctl: the lines of {} are not kept",
                        self.units.join(", ")
                    );
                    return;
                }
                Err(error) => warn!(again_in = ?pause, "the journal cannot be followed: {error}"),
                Ok(why) => warn!(again_in = ?pause, "journalctl ended: {why}"),
            }
            select! {
                () = time::sleep(pause) => {}
                () = stop.wanted() => return,
            }
            pause = (pause * 2).min(AGAIN[1]);
        }
    }

    /// Until the child ends; says why, and whether it printed anything. What it does not follow is of earlier boots.
    async fn follow(&self, known: &mut Known, follows: bool) -> (io::Result<String>, bool) {
        let args = args(&self.units, known, follows);
        let program = Program { program: self.program.clone(), args, ..Program::default() };
        let (mut running, mut lines, mut errors) = match program.start(Path::new("/")) {
            Ok(started) => started,
            Err(error) => return (Err(error), false),
        };
        let until_ms = match known {
            Known::Until(ms) => *ms,
            Known::Nothing | Known::Earlier | Known::Line(_) => i64::MIN,
        };
        let (mut any, mut said, mut complains) = (false, String::new(), true);
        loop {
            select! {
                line = lines.next() => match line {
                    Ok(Some(Line::Whole(line))) => {
                        any = true;
                        let Some((entry, line)) = read(line, &self.units) else { continue };
                        let is_new = line.time_ms > until_ms && (follows || !entry.boot.starts_with(&self.boot));
                        if is_new {
                            self.logs.push(line);
                        }
                        if !entry.cursor.is_empty() {
                            *known = Known::Line(entry.cursor);
                        }
                    }
                    Ok(Some(Line::Long)) => {
                        let text = "(a line that is too long to be kept)";
                        self.logs.push(LogLine::new(clock::wall_ms(), OWN_UNIT, INFO, text));
                    }
                    Ok(None) => break,
                    Err(error) => return (Err(error), any),
                },
                error = errors.next(), if complains => match error {
                    Ok(Some(Line::Whole(error))) => said = String::from_utf8_lossy(error).into_owned(),
                    Ok(Some(Line::Long)) => {}
                    // It says no more there, and goes on all the same.
                    Ok(None) | Err(_) => complains = false,
                },
            }
        }
        let status = match time::timeout(GRACE, running.ended()).await {
            Ok(status) => status,
            Err(_) => running.stop(GRACE).await,
        };
        (status.map(|status| if said.is_empty() { status.to_string() } else { said }), any)
    }
}

/// When the newest line of theirs was said that the ring has.
async fn newest_ms(units: &[String], logs: &Handle) -> Option<i64> {
    let mut newest = None;
    for unit in units {
        let query = Query { unit: Some(unit.clone()), last: Some(1), ..Query::default() };
        let page = logs.read(query, usize::MAX).await.ok()?;
        newest = newest.max(page.lines.last().map(|line| line.time_ms));
    }
    newest
}

fn args(units: &[String], known: &Known, follows: bool) -> Vec<String> {
    let mut args: Vec<String> = ["--output=json", "--quiet", FIELDS].map(str::to_owned).into();
    match known {
        Known::Nothing => args.push(FIRST.to_owned()),
        Known::Earlier => args.push("--boot".to_owned()),
        // Whole seconds: what is told twice is left out by its time.
        Known::Until(ms) => args.push(format!("--since=@{}", ms.div_euclid(1_000))),
        Known::Line(cursor) => args.push(format!("--after-cursor={cursor}")),
    }
    if follows {
        args.push("--follow".to_owned());
        if *known != Known::Nothing {
            args.push("--no-tail".to_owned());
        }
    }
    args.extend(units.iter().map(|unit| format!("--unit={unit}")));
    args
}

fn read(json: &[u8], units: &[String]) -> Option<(Entry, LogLine)> {
    let mut entry: Entry = serde_json::from_slice(json).ok()?;
    let micros: i64 = entry.micros.parse().ok()?;
    let message = match entry.message.take() {
        Value::String(text) => text,
        // Bytes that are no text come as numbers.
        Value::Array(bytes) => {
            let byte = |byte: &Value| byte.as_u64().and_then(|byte| u8::try_from(byte).ok());
            String::from_utf8_lossy(&bytes.iter().filter_map(byte).collect::<Vec<_>>()).into_owned()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => return None,
    };
    let priority = entry.priority.as_deref().and_then(|text| text.parse().ok()).unwrap_or(INFO);
    let unit = entry.about.as_ref().or(entry.unit.as_ref()).or(units.first())?;
    let line = LogLine::new(micros.div_euclid(1_000), unit, priority, message.trim_end());
    Some((entry, line))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::{
        clock::{self, Clock},
        logs, stop,
    };

    #[test]
    fn entries_of_the_journal_become_lines() {
        let units = ["greeter.service".to_owned()];
        let text = r#"{"__REALTIME_TIMESTAMP":"1795435200123456","MESSAGE":"no sensor","PRIORITY":"3","_SYSTEMD_UNIT":"greeter.service"}"#;
        assert_eq!(
            read(text.as_bytes(), &units).unwrap().1,
            LogLine::new(1_795_435_200_123, "greeter.service", 3, "no sensor")
        );
        let bytes = r#"{"__REALTIME_TIMESTAMP":"1000","MESSAGE":[104,105,255,10],"UNIT":"a.service","_SYSTEMD_UNIT":"init.scope"}"#;
        assert_eq!(
            read(bytes.as_bytes(), &units).unwrap().1,
            LogLine::new(1, "a.service", INFO, "hi\u{fffd}")
        );
        for bad in
            [r#"{"MESSAGE":"no time"}"#, r#"{"__REALTIME_TIMESTAMP":"1000","MESSAGE":null}"#, "nonsense"]
        {
            assert!(read(bad.as_bytes(), &units).is_none(), "{bad}");
        }
    }

    #[test]
    fn it_goes_on_where_the_ring_ends() {
        let units = ["a.service".to_owned(), "b.service".to_owned()];
        let first = args(&units, &Known::Nothing, true);
        assert!(
            first.contains(&FIRST.to_owned())
                && first.ends_with(&["--unit=a.service".to_owned(), "--unit=b.service".to_owned()])
        );
        assert!(
            args(&units, &Known::Until(1_795_435_200_999), true).contains(&"--since=@1795435200".to_owned())
        );
    }

    fn entry(n: u64, boot: char, ms: i64) -> String {
        let boot = String::from(boot).repeat(32);
        format!(
            r#"echo '{{"__CURSOR":"c{n}","_BOOT_ID":"{boot}","__REALTIME_TIMESTAMP":"{ms}000","MESSAGE":"{n}","PRIORITY":"6","_SYSTEMD_UNIT":"a.service"}}'"#
        )
    }

    /// Lines of `a.service` that come to be in the ring once it has `count` of them, by a stand-in for journalctl: what it
    /// does by its arguments. The machine's boot is `b`; the one before, as the ring's folder has it, is `last`.
    async fn lines_by(cases: &[(&str, String)], last: char, before: &[LogLine], count: u64) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("journalctl");
        let cases = cases.iter().map(|(args, does)| format!("{args}) {does};;\n")).collect::<String>();
        fs::write(&program, format!("#!/bin/sh\ncase \"$*\" in\n{cases}esac\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let (logs, thread) = logs::spawn(folder.path(), Clock::new(clock::Config::default())).unwrap();
        let (file, boot) = (folder.path().join(ring::FOLDER).join(BOOT), "b".repeat(16));
        fs::write(&file, String::from(last).repeat(16)).unwrap();
        let mut news = logs.news();
        let first = *news.borrow();
        before.iter().for_each(|line| logs.push(line.clone()));
        let (stopper, stop) = stop::channel();
        let journal =
            Journal { program, units: vec!["a.service".to_owned()], boot: boot.clone(), logs: logs.clone() };
        let told = file.clone();
        let following = tokio::spawn(async move { journal.run(told, stop).await });
        time::timeout(Duration::from_secs(60), news.wait_for(|latest| *latest >= first + count))
            .await
            .unwrap()
            .unwrap();
        let page = logs.read(Query::default(), usize::MAX).await.unwrap();
        stopper.stop();
        following.await.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), boot);
        logs.stop().await;
        thread.join().unwrap();
        page.lines.into_iter().map(|line| line.message).collect()
    }

    const WAITS: &str = "exec sleep 1000";

    /// The machine's clock went back to 1970 with the power.
    #[tokio::test]
    async fn after_another_boot_what_that_said_last_comes_first_and_then_all_of_this_one() {
        let all = format!("{}; {}; {}", entry(1, 'a', 5_000), entry(2, 'a', 6_000), entry(3, 'b', 7_000));
        let this = format!("{}; {}; {WAITS}", entry(4, 'b', 1_000), entry(5, 'b', 7_000));
        let cases = [("*--boot*--follow*--no-tail*", this), ("*--since=@5*", all)];
        let known = LogLine::new(5_000, "a.service", INFO, "known");
        assert_eq!(lines_by(&cases, 'a', &[known], 4).await, ["known", "2", "4", "5"]);
    }

    #[tokio::test]
    async fn within_a_boot_the_agent_goes_on_where_the_ring_ends() {
        let this = format!("{}; {}; {WAITS}", entry(1, 'b', 5_000), entry(2, 'b', 6_000));
        let cases = [("*--since=@5*--follow*--no-tail*", this)];
        let known = LogLine::new(5_000, "a.service", INFO, "known");
        assert_eq!(lines_by(&cases, 'b', &[known], 2).await, ["known", "2"]);
    }

    #[tokio::test]
    async fn where_the_clock_is_not_set_yet_nothing_of_this_boot_is_passed_over() {
        let ahead = clock::wall_ms() + 86_400_000;
        let this = format!("{}; {WAITS}", entry(1, 'b', 5_000));
        let cases = [("*--boot*--follow*--no-tail*", this), ("*--since=*", String::new())];
        let known = LogLine::new(ahead, "a.service", INFO, "known");
        assert_eq!(lines_by(&cases, 'b', &[known], 2).await, ["known", "1"]);
    }

    /// It ends when the journal is rotated away.
    #[tokio::test]
    async fn a_child_that_ends_is_started_again_after_the_last_line_whatever_its_time() {
        let first = format!("{}; {}", entry(1, 'b', 6_000), entry(2, 'b', 7_000));
        let cases = [
            ("*--after-cursor=c2*", format!("{}; {WAITS}", entry(3, 'b', 1_000))),
            ("*--lines=100*--follow*", first),
        ];
        assert_eq!(lines_by(&cases, 'a', &[], 3).await, ["1", "2", "3"]);
    }
}
