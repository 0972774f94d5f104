//! What is known of a command's executions, and what is new when more is told. Pure.
//!
//! The hub tells each change on its stream, and all of it when it is asked; both end up here, in any order and any
//! number of times, and each thing becomes news once.

use std::collections::BTreeMap;

use fleet_schemas::command::State;
use serde_json::{Value, json};

use crate::{
    api::shapes::{Execution, Reason},
    cli::Failure,
};

/// Names that a sentence lists.
const LISTED: usize = 5;

/// What is known of all executions.
#[derive(Debug, Default)]
pub(super) struct Seen {
    nodes: BTreeMap<String, One>,
}

/// What is known of one.
#[derive(Debug, Default)]
struct One {
    tz: Option<String>,
    state: Option<State>,
    bytes: u64,
    exit_code: Option<i32>,
    cancel_asked: bool,
    too_late: bool,
    result: bool,
}

/// Something that was not known before.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct News {
    /// Where.
    pub node: String,
    /// When, Unix milliseconds; of output: since when the program runs.
    pub at_ms: i64,
    /// The time zone of the node's site.
    pub tz: Option<String>,
    /// What.
    pub what: What,
}

/// What is new.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    /// The state is another.
    State {
        /// It.
        state: State,
        /// Why.
        reason: Option<Reason>,
        /// The exit code of a program.
        exit_code: Option<i32>,
    },
    /// A program said more.
    Output {
        /// What.
        text: String,
        /// There was more, which was not kept.
        cut: bool,
    },
    /// It gave something.
    Result(Value),
    /// The node is asked to cancel it.
    CancelAsked,
    /// The node said that the cancel came too late.
    TooLate,
}

/// The state of a word that the hub uses.
fn state_of(word: &str) -> Option<State> {
    State::ALL.into_iter().find(|state| state.as_str() == word)
}

impl Seen {
    /// How many executions are known.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether all that are known are over.
    pub(super) fn is_over(&self) -> bool {
        !self.nodes.is_empty() && self.nodes.values().all(|one| one.state.is_some_and(State::is_terminal))
    }

    /// How many are over.
    pub(super) fn over(&self) -> usize {
        self.nodes.values().filter(|one| one.state.is_some_and(State::is_terminal)).count()
    }

    /// How many are in each state.
    pub(super) fn states(&self) -> BTreeMap<State, usize> {
        let mut states = BTreeMap::new();
        for state in self.nodes.values().filter_map(|one| one.state) {
            *states.entry(state).or_default() += 1;
        }
        states
    }

    /// Who is not done, with states.
    pub(super) fn waiting(&self) -> Vec<(&str, State)> {
        let open = |one: &One| one.state.filter(|state| !state.is_terminal());
        self.nodes.iter().filter_map(|(node, one)| Some((node.as_str(), open(one)?))).collect()
    }

    /// Takes what the hub says of one execution as a whole.
    pub(super) fn whole(&mut self, execution: &Execution) -> Vec<News> {
        let one = self.nodes.entry(execution.node.clone()).or_default();
        one.tz.clone_from(&execution.tz);
        let mut news = Vec::new();
        let last_ms = execution.history.last().map_or(0, |step| step.at_ms);
        let mut tell = |at_ms: i64, what: What| {
            news.push(News { node: execution.node.clone(), at_ms, tz: execution.tz.clone(), what });
        };
        let mut output =
            rest(execution, one.bytes).map(|text| What::Output { text, cut: execution.output_cut });
        for step in &execution.history {
            let Some(state) = state_of(&step.state).filter(|state| Some(*state) > one.state) else {
                continue;
            };
            // What a program said comes before its end.
            if state.is_terminal()
                && let Some(output) = output.take()
            {
                tell(step.at_ms, output);
            }
            one.state = Some(state);
            let exit_code = execution.exit_code.filter(|_| state.is_terminal());
            one.exit_code = exit_code.or(one.exit_code);
            tell(step.at_ms, What::State { state, reason: step.reason.clone(), exit_code });
        }
        if let Some(output) = output {
            tell(last_ms, output);
        }
        one.bytes = one.bytes.max(execution.output_bytes);
        if execution.cancel_asked_ms.is_some() && !std::mem::replace(&mut one.cancel_asked, true) {
            tell(execution.cancel_asked_ms.unwrap_or(last_ms), What::CancelAsked);
        }
        if execution.too_late && !std::mem::replace(&mut one.too_late, true) {
            tell(last_ms, What::TooLate);
        }
        if let Some(result) = &execution.result
            && !std::mem::replace(&mut one.result, true)
        {
            tell(last_ms, What::Result(result.clone()));
        }
        news
    }

    /// Takes a change as the hub's stream tells it.
    pub(super) fn change(&mut self, change: &Value) -> Vec<News> {
        let (Some(node), Some(state)) =
            (change["node"].as_str(), change["state"].as_str().and_then(state_of))
        else {
            return Vec::new();
        };
        let one = self.nodes.entry(node.to_owned()).or_default();
        let at_ms = change["at_ms"].as_i64().unwrap_or(0);
        let mut news = Vec::new();
        // The stream does not tell it; whoever asked for all of it has heard it.
        let tz = one.tz.clone();
        let mut tell = |what: What| news.push(News { node: node.to_owned(), at_ms, tz: tz.clone(), what });
        let output = &change["output"];
        // What does not follow on what is known was told before, or is told when all of it is asked for.
        if output["from"].as_u64() == Some(one.bytes) && output.is_object() {
            one.bytes += output["bytes"].as_u64().unwrap_or(0);
            let text = output["text"].as_str().unwrap_or_default().to_owned();
            tell(What::Output { text, cut: output["cut"] == json!(true) });
        }
        if Some(state) > one.state {
            one.state = Some(state);
            let exit_code = change["exit_code"].as_i64().and_then(|code| i32::try_from(code).ok());
            one.exit_code = exit_code.or(one.exit_code);
            let reason = serde_json::from_value(change["reason"].clone()).ok();
            tell(What::State { state, reason, exit_code });
        }
        if change["cancel_asked"] == json!(true) && !std::mem::replace(&mut one.cancel_asked, true) {
            tell(What::CancelAsked);
        }
        if change["too_late"] == json!(true) && !std::mem::replace(&mut one.too_late, true) {
            tell(What::TooLate);
        }
        news
    }

    /// What it all came to.
    ///
    /// # Errors
    /// [`Failure`] with the exit code of the worst node.
    pub(super) fn verdict(&self, id: &str) -> Result<(), Failure> {
        let bad: Vec<_> = self.nodes.iter().filter(|(_, one)| one.state != Some(State::Succeeded)).collect();
        match (&bad[..], self.nodes.len()) {
            ([], _) => Ok(()),
            ([(node, one)], 1) => {
                let code = one.exit_code.filter(|_| one.state == Some(State::Failed));
                match code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0) {
                    Some(code) => Err(Failure::Own {
                        code,
                        why: format!("the program ended with code {code} at {node}"),
                    }),
                    None => Err(Failure::Failed(format!(
                        "{node}: {}; `fleet why {id}` says why",
                        one.state.map_or("unknown", State::as_str)
                    ))),
                }
            }
            (bad, all) => {
                let word = |(node, one): &(&String, &One)| {
                    format!("{node} {}", one.state.map_or("unknown", State::as_str))
                };
                let mut names: Vec<_> = bad.iter().take(LISTED).map(word).collect();
                if bad.len() > LISTED {
                    names.push(format!("{} more", bad.len() - LISTED));
                }
                let why = format!(
                    "{} of {all} nodes did not succeed: {}; `fleet why {id}` says why",
                    bad.len(),
                    names.join(", ")
                );
                Err(if bad.len() == all { Failure::Failed(why) } else { Failure::Partly(why) })
            }
        }
    }
}

/// Output beyond what is known. Bytes that are no UTF-8 were replaced, each by one character.
fn rest(execution: &Execution, known: u64) -> Option<String> {
    let output = execution.output.as_deref().filter(|_| execution.output_bytes > known)?;
    let mut at = 0;
    let is_new = |c: &char| {
        let old = at < known;
        at += if *c == char::REPLACEMENT_CHARACTER { 1 } else { c.len_utf8() as u64 };
        !old
    };
    let rest: String = output.chars().filter(is_new).collect();
    (!rest.is_empty()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::shapes::Step;

    fn step(state: &str) -> Step {
        Step { state: state.to_owned(), at_ms: 5, reason: None }
    }

    fn execution(node: &str, states: &[&str], output: &str) -> Execution {
        Execution {
            node: node.to_owned(),
            state: (*states.last().unwrap()).to_owned(),
            history: states.iter().map(|state| step(state)).collect(),
            output: (!output.is_empty()).then(|| output.to_owned()),
            output_bytes: output.len() as u64,
            ..Execution::default()
        }
    }

    fn told(news: &[News]) -> Vec<String> {
        let word = |news: &News| match &news.what {
            What::State { state, .. } => state.as_str().to_owned(),
            What::Output { text, .. } => text.clone(),
            What::Result(value) => value.to_string(),
            What::CancelAsked => "asked".to_owned(),
            What::TooLate => "too late".to_owned(),
        };
        news.iter().map(word).collect()
    }

    fn piece(from: u64, text: &str, state: &str) -> Value {
        json!({ "node": "a", "state": state, "at_ms": 6,
            "output": { "from": from, "bytes": text.len(), "text": text, "cut": false } })
    }

    #[test]
    fn each_thing_is_news_once_whoever_tells_it() {
        let mut seen = Seen::default();
        let whole = execution("a", &["queued", "sent", "running"], "one\n");
        assert_eq!(told(&seen.whole(&whole)), ["queued", "sent", "running", "one\n"]);
        assert_eq!(told(&seen.whole(&whole)), Vec::<String>::new());
        assert_eq!(told(&seen.change(&piece(0, "one\n", "running"))), Vec::<String>::new());
        assert_eq!(told(&seen.change(&piece(4, "two\n", "running"))), ["two\n"]);
        assert_eq!(told(&seen.change(&piece(9, "after a gap", "running"))), Vec::<String>::new());
        assert_eq!(told(&seen.change(&json!({ "node": "a", "state": "sent" }))), Vec::<String>::new());
        assert!(!seen.is_over());
        let end = Execution {
            exit_code: Some(3),
            ..execution("a", &["queued", "sent", "accepted", "running", "failed"], "one\ntwo\nlast\n")
        };
        assert_eq!(told(&seen.whole(&end)), ["last\n", "failed"]);
        assert!(seen.is_over());
        assert_eq!(seen.verdict("ID").unwrap_err().code(), 3);
    }

    #[test]
    fn news_of_the_stream_has_the_zone_that_was_heard_before() {
        let mut seen = Seen::default();
        let tz = Some("Asia/Tokyo".to_owned());
        seen.whole(&Execution { tz: tz.clone(), ..execution("a", &["queued"], "") });
        let news = seen.change(&piece(0, "one\n", "running"));
        assert_eq!(told(&news), ["one\n", "running"]);
        assert!(news.iter().all(|news| news.tz == tz), "{news:?}");
    }

    #[test]
    fn output_that_is_no_text_is_not_told_twice() {
        let mut seen = Seen::default();
        let mut whole = execution("a", &["running"], "\u{fffd}ab");
        whole.output_bytes = 3;
        assert_eq!(told(&seen.whole(&whole)), ["running", "\u{fffd}ab"]);
        whole.output = Some("\u{fffd}ab\u{fffd}c".to_owned());
        whole.output_bytes = 5;
        assert_eq!(told(&seen.whole(&whole)), ["\u{fffd}c"]);
    }

    #[test]
    fn the_worst_node_gives_the_exit_code() {
        let code = |ends: &[(&str, Option<i32>)]| {
            let mut seen = Seen::default();
            for (at, (state, exit_code)) in ends.iter().enumerate() {
                let execution =
                    Execution { exit_code: *exit_code, ..execution(&at.to_string(), &[state], "") };
                seen.whole(&execution);
            }
            seen.verdict("ID").map_or_else(|failure| failure.code(), |()| 0)
        };
        assert_eq!(code(&[("succeeded", Some(0))]), 0);
        assert_eq!(code(&[("failed", Some(42))]), 42);
        assert_eq!(code(&[("failed", None)]), 1);
        assert_eq!(code(&[("failed", Some(-1))]), 1);
        assert_eq!(code(&[("expired", None)]), 1);
        assert_eq!(code(&[("succeeded", Some(0)), ("failed", Some(42))]), 6);
        assert_eq!(code(&[("rejected", None), ("failed", Some(42))]), 1);
        assert_eq!(code(&[("succeeded", None), ("succeeded", None)]), 0);
    }
}
