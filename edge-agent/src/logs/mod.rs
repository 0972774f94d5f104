//! What the node logs, kept at the node in a ring and shown to the hub when it asks: the agent's own lines, those of
//! units of systemd, and those of files.
//!
//! Owns collecting, keeping and answering. Nothing is sent by itself: a line travels when a command of kind `logs` asks
//! for it. The agent's records never wait for a log, and a log never waits for the disk.

mod files;
mod journal;
pub mod line;
pub mod own;
mod ring;
mod thread;

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use ciborium::Value;
use fleet_schemas::{CommandId, limits};
use serde::{Deserialize, Serialize};
use tokio::{select, sync::oneshot, time};

use crate::{
    core::queue::{End, Ending, reason},
    outbox,
};
use line::{Page, Query};
pub use ring::RING_BYTES;
pub(crate) use thread::{Handle, spawn};

pub(crate) use files::run as follow_file;
pub(crate) use journal::run as follow_journal;

/// Most units and files.
pub const SOURCES: usize = 32;
/// Bytes of lines in one answer: what a command's output may have, less a little.
const ANSWER_BYTES: usize = limits::COMMAND_OUTPUT_BYTES - 1_024;
/// How long lines are gathered that came while an answer waited.
const GATHER: Duration = Duration::from_millis(300);

/// Whose lines are kept beside the agent's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Units of systemd, read with `journalctl`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<String>,
    /// Files that programs append lines to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
    /// Where the agent's own lines come from; absent where it is a part of another program, whose log is its own.
    #[serde(skip)]
    pub own: Option<own::Tap>,
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.units.len() + self.files.len() > SOURCES {
            return Err(format!("at most {SOURCES} units and files together may be listed"));
        }
        // journalctl would read one that begins so as an option.
        let bad = |unit: &&String| unit.is_empty() || unit.len() > line::UNIT_BYTES || unit.starts_with('-');
        if let Some(unit) = self.units.iter().find(bad) {
            return Err(format!("{unit:?} is no unit; write its name, such as greeter.service"));
        }
        match self.files.iter().find(|file| !file.is_absolute()) {
            Some(file) => Err(format!("{} is no absolute path", file.display())),
            None => Ok(()),
        }
    }
}

/// Does a command of kind `logs`: the lines as its output, where to go on as its result.
pub(crate) async fn answer(
    id: CommandId,
    query: Query,
    logs: &Handle,
    outbox: &outbox::Handle,
    stopping: &mut oneshot::Receiver<Ending>,
) -> End {
    let answered = select! {
        page = page(query, logs) => page,
        // An error says that the runner is gone.
        _ = stopping => return End::Stopped,
    };
    let page = match answered {
        Ok(page) => page,
        Err(why) => return End::Failed(reason("unreadable", why, false)),
    };
    let mut text = Vec::new();
    for line in &page.lines {
        serde_json::to_writer(&mut text, line).expect("numbers and texts are JSON");
        text.push(b'\n');
    }
    if !text.is_empty() {
        outbox.output(id, Bytes::from(text)).await;
    }
    let entry = |key: &str, value: Value| (Value::Text(key.to_owned()), value);
    let (lines, next) = (page.lines.len() as u64, page.next);
    let result =
        vec![entry("lines", lines.into()), entry("next", next.into()), entry("more", page.more.into())];
    End::Done { result: Value::Map(result) }
}

async fn page(query: Query, logs: &Handle) -> Result<Page, String> {
    let mut news = logs.news();
    let page = logs.read(query.clone(), ANSWER_BYTES).await?;
    let wait = Duration::from_secs(query.wait_s.unwrap_or(0));
    if !page.lines.is_empty() || wait.is_zero() {
        return Ok(page);
    }
    // From here on, what was looked at already is not looked at again.
    let mut query = Query { after: Some(page.next), last: None, ..query };
    let over = time::sleep(wait);
    tokio::pin!(over);
    loop {
        let nothing = Page { next: query.after.unwrap_or(page.next), ..Page::default() };
        select! {
            newer = news.wait_for(|latest| Some(*latest) > query.after) => match newer {
                Ok(_) => {}
                Err(_) => return Ok(nothing),
            },
            () = &mut over => return Ok(nothing),
        }
        time::sleep(GATHER).await;
        let page = logs.read(query.clone(), ANSWER_BYTES).await?;
        if !page.lines.is_empty() {
            return Ok(page);
        }
        query.after = Some(page.next);
    }
}
