//! Shows executions live: output on stdout, states on stderr under a progress bar; or one JSON value a line.
//!
//! What comes from nodes is cleaned before it reaches a terminal; a pipe gets output as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use fleet_schemas::command::State;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::seen::{News, Seen, What};
use crate::cli::{
    Failure,
    output::{Format, Out, clean, hour_in, paint, tone},
    yaml,
};

/// With more nodes than these only ends are told.
const FEW: usize = 20;
/// Longest line that is kept back until it ends, in bytes.
const LINE: usize = 16 * 1024;
/// Names that a line lists.
const LISTED: usize = 5;
/// How often the bar moves by itself.
const TICK: Duration = Duration::from_millis(250);

/// Where news goes.
pub(super) struct Screen {
    out: Out,
    id: String,
    bar: Option<ProgressBar>,
    color: bool,
    // Stdout is a terminal.
    person: bool,
    // By node, the line of output that has not ended yet.
    lines: BTreeMap<String, String>,
    nodes: usize,
    noted: BTreeSet<&'static str>,
    // The last character on stdout was no line feed.
    open: bool,
}

impl Screen {
    /// Shows a command.
    pub(super) fn new(out: Out, id: &str) -> Self {
        let color = out.color && io::stderr().is_terminal();
        Self {
            out,
            id: id.to_owned(),
            bar: None,
            color,
            person: io::stdout().is_terminal(),
            lines: BTreeMap::new(),
            nodes: 0,
            noted: BTreeSet::new(),
            open: false,
        }
    }

    fn is_table(&self) -> bool {
        self.out.format == Format::Table
    }

    /// Tells what is new.
    ///
    /// # Errors
    /// [`Failure::Failed`] when the output is gone.
    pub(super) fn tell(&mut self, news: &[News], seen: &Seen) -> Result<(), Failure> {
        if seen.len() != self.nodes {
            self.nodes = seen.len();
            self.begin();
        }
        for one in news {
            if self.is_table() { self.line(one)? } else { self.value(&self.json(one))? }
        }
        if let Some(bar) = &self.bar {
            let open = seen.states().into_iter().filter(|(state, _)| !state.is_terminal());
            let words: Vec<_> = open.map(|(state, count)| format!("{count} {}", state.as_str())).collect();
            bar.set_message(words.join(", "));
            bar.set_position(seen.over() as u64);
        }
        Ok(())
    }

    /// The id, and a bar where somebody looks and there is more than one to wait for.
    fn begin(&mut self) {
        if !self.is_table() {
            return;
        }
        if self.noted.insert("begin") {
            let nodes = if self.nodes == 1 { "node" } else { "nodes" };
            self.say(&format!("command {} to {} {nodes}", self.id, self.nodes));
        }
        if self.nodes > 1 && io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} over  {msg}  {elapsed}")
                .expect("this is a template");
            let bar = self.bar.get_or_insert_with(|| {
                let bar = ProgressBar::new(0).with_style(style);
                bar.enable_steady_tick(TICK);
                bar
            });
            bar.set_length(self.nodes as u64);
        }
    }

    /// Says once who is waited for.
    ///
    /// # Errors
    /// [`Failure::Failed`] when the output is gone.
    pub(super) fn waits(&mut self, seen: &Seen) -> Result<(), Failure> {
        let waiting = seen.waiting();
        // What runs is not waited for in this sense.
        if !waiting.iter().any(|(_, state)| *state < State::Running) {
            return Ok(());
        }
        let mut names: Vec<_> =
            waiting.iter().take(LISTED).map(|(node, state)| format!("{node} {}", state.as_str())).collect();
        if waiting.len() > LISTED {
            names.push(format!("{} more", waiting.len() - LISTED));
        }
        let text = format!(
            "waiting for {} ({}); `fleet why {}` says why, Ctrl-C stops watching",
            waiting.len(),
            names.join(", "),
            self.id
        );
        self.note("waits", &text)
    }

    /// Says something about the watching itself, once for each kind.
    ///
    /// # Errors
    /// [`Failure::Failed`] when the output is gone.
    pub(super) fn note(&mut self, kind: &'static str, text: &str) -> Result<(), Failure> {
        if self.noted.insert(kind) {
            self.say(&clean(text));
        }
        Ok(())
    }

    /// The end: what is kept back, and what it came to.
    ///
    /// # Errors
    /// [`Failure::Failed`] when the output is gone.
    pub(super) fn end(&mut self, seen: &Seen, over: bool) -> Result<(), Failure> {
        for node in self.lines.keys().cloned().collect::<Vec<_>>() {
            self.flush(&node)?;
        }
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let states = seen.states();
        if !self.is_table() {
            let states: BTreeMap<_, _> =
                states.iter().map(|(state, count)| (state.as_str(), count)).collect();
            return self.value(&json!({ "id": self.id, "over": over, "states": states }));
        }
        if self.nodes > 1 {
            let words: Vec<_> =
                states.iter().map(|(state, count)| format!("{count} {}", state.as_str())).collect();
            self.say(&format!("{} nodes: {}", self.nodes, words.join(", ")));
        }
        Ok(())
    }

    fn json(&self, news: &News) -> Value {
        let News { node, at_ms, tz: _, what } = news;
        let mut value = json!({ "id": self.id, "node": node, "at_ms": at_ms });
        match what {
            What::State { state, reason, exit_code } => {
                value["state"] = json!(state.as_str());
                if let Some(reason) = reason {
                    value["reason"] = json!(reason);
                }
                if let Some(code) = exit_code {
                    value["exit_code"] = json!(code);
                }
            }
            What::Output { text, cut } => value["output"] = json!({ "text": text, "cut": cut }),
            What::Result(result) => value["result"] = result.clone(),
            What::CancelAsked => value["cancel_asked"] = json!(true),
            What::TooLate => value["too_late"] = json!(true),
        }
        value
    }

    fn value(&self, value: &Value) -> Result<(), Failure> {
        match self.out.format {
            Format::Yaml => self.out.print(&format!("---\n{}", yaml::text(value))),
            Format::Table | Format::Json | Format::Csv => self.out.print(&value.to_string()),
        }
    }

    fn line(&mut self, news: &News) -> Result<(), Failure> {
        let News { node, at_ms, tz, what } = news;
        let hour = hour_in(*at_ms, tz.as_deref());
        match what {
            What::State { state, reason, exit_code } => {
                if state.is_terminal() {
                    self.flush(node)?;
                } else if self.nodes > FEW || *state == State::Queued {
                    return Ok(());
                }
                let mut text = paint(state.as_str(), tone(state.as_str()), self.color);
                if let Some(code) = exit_code.filter(|code| *code != 0) {
                    text.push_str(&format!(", exit code {code}"));
                }
                if let Some(reason) = reason {
                    let lines: Vec<_> = reason.message.lines().map(clean).collect();
                    text.push_str(&format!(": {}", lines.join("\n          ")));
                    if reason.may_have_executed {
                        text.push_str(" (it may have been done)");
                    }
                }
                self.say(&format!("{hour}  {node}  {text}"));
                Ok(())
            }
            What::Output { text, cut } => self.output(node, text, *cut),
            What::Result(result) => self.output(node, &format!("{result}\n"), false),
            What::CancelAsked => {
                self.say(&format!("{hour}  {node}  asked to cancel it"));
                Ok(())
            }
            What::TooLate => {
                self.say(&format!("{hour}  {node}  too late to cancel it"));
                Ok(())
            }
        }
    }

    /// Output of one node as it comes; of several by whole lines, with the node's name.
    fn output(&mut self, node: &str, text: &str, cut: bool) -> Result<(), Failure> {
        if self.nodes == 1 {
            let shown = if self.person {
                text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
            } else {
                text.to_owned()
            };
            self.open = shown.chars().next_back().map_or(self.open, |last| last != '\n');
            self.write(&shown)?;
        } else {
            let mut line = self.lines.remove(node).unwrap_or_default();
            line.push_str(text);
            let mut whole = String::new();
            while let Some(at) = line.find('\n') {
                whole.push_str(&format!("{node} | {}\n", plain(line[..at].trim_end_matches('\r'))));
                line.drain(..=at);
            }
            self.write(&whole)?;
            let long = line.len() > LINE;
            self.lines.insert(node.to_owned(), line);
            if long {
                self.flush(node)?;
            }
        }
        if cut {
            self.say(&format!("{node}: there was more output, which was not kept"));
        }
        Ok(())
    }

    /// What was kept back of a node's output.
    fn flush(&mut self, node: &str) -> Result<(), Failure> {
        match self.lines.remove(node) {
            Some(line) if !line.is_empty() => self.write(&format!("{node} | {}\n", plain(&line))),
            Some(_) | None => Ok(()),
        }
    }

    fn write(&self, text: &str) -> Result<(), Failure> {
        let write = || {
            let mut stdout = io::stdout().lock();
            stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        };
        let written = match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
        written.map_err(|error| Failure::Failed(format!("cannot write the output: {error}")))
    }

    /// A line on stderr.
    fn say(&mut self, text: &str) {
        let mid_line = std::mem::take(&mut self.open) && self.person;
        let say = || eprintln!("{}{text}", if mid_line { "\n" } else { "" });
        match &self.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }
}

/// A line for a terminal; tabs stay.
fn plain(line: &str) -> String {
    line.split('\t').map(clean).collect::<Vec<_>>().join("\t")
}
