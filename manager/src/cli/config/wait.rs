//! Follows a change until the nodes of its layer have applied it.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use super::{WaitArgs, parts, path, show};
use crate::{
    api::shapes::config::Layer as Shown,
    cli::{Context, Failure},
    clock,
    core::config::Layer,
};

/// Pause between looks.
const LOOK: Duration = Duration::from_millis(500);
/// Nodes that a failure names.
const NAMED: usize = 10;

/// Waits until no connected node is behind; progress goes to the standard error.
///
/// # Errors
/// [`Failure::Partly`] when some have failed, are not connected, or took too long.
pub(super) async fn layer(layer: &Layer, args: &WaitArgs, context: &Context) -> Result<(), Failure> {
    let end = clock::mono() + args.wait_timeout;
    let path = path(layer);
    let mut progress = Progress::default();
    loop {
        let shown: Shown = context.client.get(&parts(&path), &[]).await?;
        let of = |state: &str| shown.nodes.by_state.get(state).copied().unwrap_or(0);
        progress.show(&show::progress(&shown.nodes));
        let late = clock::mono() >= end;
        if of("pending") > 0 && !late {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        progress.end();
        let behind = of("pending") + of("failed") + of("offline");
        if behind == 0 {
            return Ok(());
        }
        let named: Vec<_> =
            shown.nodes.behind.iter().take(NAMED).map(|behind| format!("\n  {}", behind.reason)).collect();
        let more = if behind > NAMED { format!("\n  and {} more", behind - NAMED) } else { String::new() };
        let why = if of("pending") > 0 { "the time is up" } else { "the others follow" };
        return Err(Failure::Partly(format!("{why}; {behind} do not:{}{more}", named.concat())));
    }
}

/// One line that changes on a terminal; elsewhere a line a change.
#[derive(Default)]
struct Progress {
    last: String,
}

impl Progress {
    fn show(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        if io::stderr().is_terminal() {
            // Blanks cover what the line before had more.
            let pad = " ".repeat(self.last.len().saturating_sub(text.len()));
            eprint!("\r{text}{pad}");
            let _ = io::stderr().flush();
        } else {
            eprintln!("{text}");
        }
        text.clone_into(&mut self.last);
    }

    fn end(&self) {
        if io::stderr().is_terminal() && !self.last.is_empty() {
            eprintln!();
        }
    }
}
