//! Lines of units of systemd: `journalctl` as a child that follows them.
//!
//! Owns the child and what it prints. After a start of the agent it goes on where the ring ends, as far as the journal
//! still has it. A machine without `journalctl` is told of once.

use std::{io, path::Path, time::Duration};

use serde::Deserialize;
use serde_json::Value;
use tokio::{select, time};
use tracing::warn;

use super::{
    Handle,
    line::{INFO, Line as LogLine, OWN_UNIT, Query},
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

/// What `journalctl -o json` prints of a line (systemd.journal-fields(7)).
#[derive(Debug, Deserialize)]
struct Entry {
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

/// Follows the units until told to stop.
pub(crate) async fn run(units: Vec<String>, logs: Handle, stop: Stop) {
    run_program("journalctl".into(), units, logs, stop).await;
}

async fn run_program(program: std::path::PathBuf, units: Vec<String>, logs: Handle, mut stop: Stop) {
    let mut after_ms = newest_ms(&units, &logs).await;
    let with = |args| Program { program: program.clone(), args, ..Program::default() };
    if after_ms.is_some() {
        // What was said before this boot: who follows is not shown that. Whatever is wrong is said below.
        let program = with(args(&units, after_ms, false));
        select! {
            _ = follow(&program, &units, &logs, &mut after_ms) => {}
            () = stop.wanted() => return,
        }
    }
    let mut pause = AGAIN[0];
    loop {
        let program = with(args(&units, after_ms, true));
        let (ended, lines) = select! {
            ended = follow(&program, &units, &logs, &mut after_ms) => ended,
            () = stop.wanted() => return,
        };
        if lines {
            pause = AGAIN[0];
        }
        match ended {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                warn!("this machine has no journalctl: the lines of {} are not kept", units.join(", "));
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

fn args(units: &[String], after_ms: Option<i64>, follows: bool) -> Vec<String> {
    let mut args: Vec<String> = ["--output=json", "--quiet", FIELDS].map(str::to_owned).into();
    match after_ms {
        // Whole seconds: what is told twice is left out by its time.
        Some(ms) => args.push(format!("--since=@{}", ms.div_euclid(1_000))),
        None => args.push(FIRST.to_owned()),
    }
    if follows {
        args.push("--follow".to_owned());
        args.extend(after_ms.map(|_| "--no-tail".to_owned()));
    }
    args.extend(units.iter().map(|unit| format!("--unit={unit}")));
    args
}

/// Until the child ends; says why, and whether it printed anything.
async fn follow(
    program: &Program,
    units: &[String],
    logs: &Handle,
    after_ms: &mut Option<i64>,
) -> (io::Result<String>, bool) {
    let started = program.start(Path::new("/"));
    let (mut running, mut lines, mut errors) = match started {
        Ok(started) => started,
        Err(error) => return (Err(error), false),
    };
    let known_ms = *after_ms;
    let (mut any, mut said, mut complains) = (false, String::new(), true);
    loop {
        select! {
            line = lines.next() => match line {
                Ok(Some(Line::Whole(line))) => {
                    any = true;
                    if let Some(line) = read(line, units).filter(|line| Some(line.time_ms) > known_ms) {
                        *after_ms = (*after_ms).max(Some(line.time_ms));
                        logs.push(line);
                    }
                }
                Ok(Some(Line::Long)) => {
                    let text = "(a line that is too long to be kept)";
                    logs.push(LogLine::new(clock::wall_ms(), OWN_UNIT, INFO, text));
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

fn read(json: &[u8], units: &[String]) -> Option<LogLine> {
    let entry: Entry = serde_json::from_slice(json).ok()?;
    let micros: i64 = entry.micros.parse().ok()?;
    let message = match entry.message {
        Value::String(text) => text,
        // Bytes that are no text come as numbers.
        Value::Array(bytes) => {
            let byte = |byte: &Value| byte.as_u64().and_then(|byte| u8::try_from(byte).ok());
            String::from_utf8_lossy(&bytes.iter().filter_map(byte).collect::<Vec<_>>()).into_owned()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => return None,
    };
    let priority = entry.priority.and_then(|text| text.parse().ok()).unwrap_or(INFO);
    let unit = entry.about.or(entry.unit).or_else(|| units.first().cloned())?;
    Some(LogLine::new(micros.div_euclid(1_000), &unit, priority, message.trim_end()))
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
            read(text.as_bytes(), &units),
            Some(LogLine::new(1_795_435_200_123, "greeter.service", 3, "no sensor"))
        );
        let bytes = r#"{"__REALTIME_TIMESTAMP":"1000","MESSAGE":[104,105,255,10],"UNIT":"a.service","_SYSTEMD_UNIT":"init.scope"}"#;
        assert_eq!(read(bytes.as_bytes(), &units), Some(LogLine::new(1, "a.service", INFO, "hi\u{fffd}")));
        for bad in
            [r#"{"MESSAGE":"no time"}"#, r#"{"__REALTIME_TIMESTAMP":"1000","MESSAGE":null}"#, "nonsense"]
        {
            assert_eq!(read(bad.as_bytes(), &units), None, "{bad}");
        }
    }

    #[test]
    fn it_goes_on_where_the_ring_ends() {
        let units = ["a.service".to_owned(), "b.service".to_owned()];
        let first = args(&units, None, true);
        assert!(
            first.contains(&FIRST.to_owned())
                && first.ends_with(&["--unit=a.service".to_owned(), "--unit=b.service".to_owned()])
        );
        assert!(args(&units, Some(1_795_435_200_999), true).contains(&"--since=@1795435200".to_owned()));
    }

    fn entry(ms: i64, text: &str) -> String {
        format!(
            r#"{{"__REALTIME_TIMESTAMP":"{ms}000","MESSAGE":"{text}","PRIORITY":"6","_SYSTEMD_UNIT":"a.service"}}"#
        )
    }

    /// Lines of `a.service` that come to be in the ring once it has `count` of them, by a stand-in for journalctl.
    async fn lines_by(script: &str, before: &[LogLine], count: u64) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let fake = folder.path().join("journalctl");
        std::fs::write(&fake, script).unwrap();
        std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o700)).unwrap();
        let (logs, thread) = logs::spawn(folder.path(), Clock::new(clock::Config::default())).unwrap();
        let mut news = logs.news();
        let first = *news.borrow();
        before.iter().for_each(|line| logs.push(line.clone()));
        let (stopper, stop) = stop::channel();
        let following = tokio::spawn(run_program(fake, vec!["a.service".to_owned()], logs.clone(), stop));
        time::timeout(Duration::from_secs(60), news.wait_for(|latest| *latest >= first + count))
            .await
            .unwrap()
            .unwrap();
        let page = logs.read(Query::default(), usize::MAX).await.unwrap();
        stopper.stop();
        following.await.unwrap();
        logs.stop().await;
        thread.join().unwrap();
        page.lines.into_iter().map(|line| line.message).collect()
    }

    #[tokio::test]
    async fn what_was_said_before_this_boot_comes_first() {
        let (old, new) = (entry(6_000, "before the power went"), entry(7_000, "after"));
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *--follow*) echo '{new}'; exec sleep 1000;; *--since=@5*) echo '{old}';; esac\n"
        );
        let known = LogLine::new(5_000, "a.service", INFO, "known");
        assert_eq!(lines_by(&script, &[known], 3).await, ["known", "before the power went", "after"]);
    }

    /// A stand-in that prints what journalctl does and ends, as it does when the journal is rotated away.
    #[tokio::test]
    async fn a_child_that_ends_is_started_again_and_nothing_is_kept_twice() {
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *--since=*) n=2;; *) n=1;; esac\necho '{}'\n[ $n = 1 ] && exit 0\necho '{}'\nexec sleep 1000\n",
            entry(5_000, "one"),
            entry(6_000, "two"),
        );
        assert_eq!(lines_by(&script, &[], 2).await, ["one", "two"]);
    }
}
