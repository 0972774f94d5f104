//! Follows a rollout to its end: a screen that changes where somebody looks, else a line for each change.
//!
//! Level-triggered: the stream only says that something changed; after each opening of it, and every half minute, the
//! hub is asked for all of it.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::{signal, time};

use super::{Context, Failure, ROLLOUTS, head, is_table, one, waves, words};
use crate::{
    api::shapes::Rollout,
    cli::{client::Events, node, output::Format, yaml},
    clock,
};

/// How often the hub is asked while there is no stream.
const POLL: Duration = Duration::from_secs(2);
/// How often it is asked all the same.
const ALL: Duration = Duration::from_secs(30);
/// How long a hub may be away.
const AWAY: Duration = Duration::from_secs(120);
/// How long is waited for the way back of a rollout to end, after itself.
const FINAL: [&str; 4] = ["done", "stopped", "rolled_back", "failed"];
/// The exit code of whoever is interrupted, as shells tell it: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// Watches to the end.
///
/// # Errors
/// [`Failure`] by the outcome, or when the hub is away for too long.
pub(super) async fn until_over(id: &str, context: &Context) -> Result<(), Failure> {
    let mut screen = Screen::new(context);
    let watched = tokio::select! {
        watched = follow(id, context, &mut screen) => watched,
        interrupt = signal::ctrl_c() => Err(match interrupt {
            Ok(()) => Failure::Own {
                code: INTERRUPTED,
                why: format!("no longer watching; the rollout goes on. `fleet rollout pause {id}` pauses it"),
            },
            Err(error) => Failure::Failed(format!("cannot listen for Ctrl-C: {error}")),
        }),
    };
    screen.end()?;
    verdict(&watched?)
}

/// The exit code of an outcome.
fn verdict(rollout: &Rollout) -> Result<(), Failure> {
    let failed: u32 = rollout.waves.iter().map(|wave| wave.failed).sum();
    let told = format!("rollout {} is {}: {}", rollout.id, words(&rollout.state), rollout.reason);
    let more = format!("`fleet why {}` says why", rollout.id);
    match (rollout.state.as_str(), failed) {
        ("done", 0) => Ok(()),
        ("done", _) => Err(Failure::Partly(format!("{told}; {more}"))),
        _ => Err(Failure::Failed(format!("{told}; {more}"))),
    }
}

async fn follow(id: &str, context: &Context, screen: &mut Screen<'_>) -> Result<Rollout, Failure> {
    let mut answered = clock::mono();
    let path = [&ROLLOUTS[..], &[id]].concat();
    loop {
        // First the stream, then all of it: what happens in between is told twice and never missed.
        let stream = context.client.events(&["api", "v1", "stream"], &[("kind", "rollout")]).await;
        match all(&path, context, screen).await {
            Ok(rollout) => {
                answered = clock::mono();
                if FINAL.contains(&rollout.state.as_str()) {
                    return Ok(rollout);
                }
            }
            // One that never answered is not there, or elsewhere.
            Err(Failure::Unreachable(why))
                if clock::mono().saturating_sub(answered) < AWAY && screen.last.is_some() =>
            {
                screen.note(&format!("{why}; trying again"));
                time::sleep(POLL).await;
                continue;
            }
            Err(failure) => return Err(failure),
        }
        match stream {
            Ok(mut stream) => {
                if let Some(rollout) = read(id, &mut stream, screen).await? {
                    return Ok(rollout);
                }
            }
            Err(_) => time::sleep(POLL).await,
        }
    }
}

/// Asks for all of it.
async fn all(path: &[&str], context: &Context, screen: &mut Screen<'_>) -> Result<Rollout, Failure> {
    let value = context.client.get::<Value>(path, &[("limit", "1")]).await?;
    let rollout: Rollout = one(&value)?;
    if screen.hub.is_none() {
        screen.hub = Some((node::now(context).await?, clock::mono()));
    }
    screen.show(&rollout)?;
    Ok(rollout)
}

/// Reads the stream until the rollout is over, the stream ends, or it is time to ask for all of it.
async fn read(id: &str, stream: &mut Events, screen: &mut Screen<'_>) -> Result<Option<Rollout>, Failure> {
    let until = clock::mono() + ALL;
    loop {
        let left = until.saturating_sub(clock::mono());
        if left.is_zero() {
            return Ok(None);
        }
        let message = match time::timeout(left, stream.next()).await {
            Ok(Ok(Some(message))) => message,
            // Ended or cut, or it is time: opened again, and nothing is missed.
            Ok(Ok(None) | Err(_)) | Err(_) => return Ok(None),
        };
        if message.event == "cut" {
            return Ok(None);
        }
        let value: Value = serde_json::from_str(&message.data)
            .map_err(|error| Failure::Failed(format!("the hub's stream is not understood ({error})")))?;
        if message.event != "rollout" || value["id"] != json!(id) {
            continue;
        }
        let rollout: Rollout = one(&value)?;
        screen.show(&rollout)?;
        if FINAL.contains(&rollout.state.as_str()) {
            return Ok(Some(rollout));
        }
    }
}

/// Where it is shown.
struct Screen<'a> {
    context: &'a Context,
    /// A text that is drawn over itself, where somebody looks.
    live: Option<ProgressBar>,
    last: Option<Rollout>,
    /// A time of the hub, Unix milliseconds, and when that was by our own monotonic clock.
    hub: Option<(i64, Duration)>,
    /// Whether it was said that the hub is away.
    is_noted: bool,
}

impl<'a> Screen<'a> {
    fn new(context: &'a Context) -> Self {
        let live =
            (is_table(context) && io::stdout().is_terminal() && io::stderr().is_terminal()).then(|| {
                let style = ProgressStyle::with_template("{msg}").expect("this is a template");
                ProgressBar::new_spinner().with_style(style)
            });
        Self { context, live, last: None, hub: None, is_noted: false }
    }

    /// Says once what holds the watching up, beside the output.
    fn note(&mut self, text: &str) {
        if !std::mem::replace(&mut self.is_noted, true) {
            match &self.live {
                Some(live) => live.suspend(|| eprintln!("{text}")),
                None => eprintln!("{text}"),
            }
        }
    }

    /// The hub's time.
    fn now_ms(&self) -> i64 {
        let Some((at_ms, at)) = self.hub else { return 0 };
        let since = clock::mono().saturating_sub(at).as_millis();
        at_ms.saturating_add(i64::try_from(since).unwrap_or(i64::MAX))
    }

    fn show(&mut self, rollout: &Rollout) -> Result<(), Failure> {
        self.is_noted = false;
        let (out, now_ms) = (self.context.out, self.now_ms());
        if let Some(live) = &self.live {
            live.set_message(head(rollout, now_ms) + &waves(rollout, now_ms, out.color));
            live.tick();
        } else if is_table(self.context) {
            for line in news(self.last.as_ref(), rollout) {
                out.print(&line)?;
            }
        } else if self.last.as_ref() != Some(rollout) {
            let value = json!(rollout);
            let text = if out.format == Format::Yaml {
                format!("---\n{}", yaml::text(&value))
            } else {
                value.to_string()
            };
            out.print(&text)?;
        }
        self.last = Some(rollout.clone());
        Ok(())
    }

    fn end(&mut self) -> Result<(), Failure> {
        let Some(live) = self.live.take() else { return Ok(()) };
        // What was drawn last stays.
        live.abandon();
        self.context.out.print("")
    }
}

/// What changed, a line each.
fn news(before: Option<&Rollout>, now: &Rollout) -> Vec<String> {
    let mut lines = Vec::new();
    if before.is_none_or(|before| before.state != now.state || before.reason != now.reason) {
        lines.push(format!("{} is {}: {}", now.id, words(&now.state), now.reason));
    }
    for (at, wave) in now.waves.iter().enumerate() {
        let was = before.and_then(|before| before.waves.get(at));
        let is_quiet = wave.state == "waiting" || (wave.name == "trailing" && wave.nodes == 0);
        if is_quiet && was.is_none_or(|was| was.state == wave.state) {
            continue;
        }
        let count =
            |wave: &crate::api::shapes::RolloutWave| (wave.state.clone(), wave.confirmed, wave.failed);
        if was.is_none_or(|was| count(was) != count(wave)) {
            let why = if wave.reason.is_empty() { String::new() } else { format!(": {}", wave.reason) };
            lines.push(format!(
                "wave {} {}, {} of {} confirmed, {} failed{why}",
                wave.name, wave.state, wave.confirmed, wave.nodes, wave.failed
            ));
        }
    }
    if !now.waits_for.is_empty() && before.is_none_or(|before| before.waits_for != now.waits_for) {
        lines.push(format!("waits: {}", now.waits_for));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::shapes::RolloutWave;

    fn rollout(state: &str, wave: &str, confirmed: u32, failed: u32) -> Rollout {
        let wave = RolloutWave {
            name: "1".into(),
            state: wave.into(),
            nodes: 2,
            confirmed,
            failed,
            ..RolloutWave::default()
        };
        Rollout {
            id: "a".into(),
            state: state.into(),
            reason: "so".into(),
            waves: vec![wave],
            ..Rollout::default()
        }
    }

    #[test]
    fn only_what_changed_is_a_line() {
        let first = rollout("running", "running", 0, 0);
        assert_eq!(news(None, &first), ["a is running: so", "wave 1 running, 0 of 2 confirmed, 0 failed"]);
        assert_eq!(news(Some(&first), &first), Vec::<String>::new());
        let second = rollout("paused", "running", 1, 1);
        assert_eq!(
            news(Some(&first), &second),
            ["a is paused: so", "wave 1 running, 1 of 2 confirmed, 1 failed"]
        );
    }

    #[test]
    fn the_exit_code_is_the_outcome() {
        let code = |rollout: &Rollout| verdict(rollout).err().map(|failure| failure.code());
        assert_eq!(code(&rollout("done", "passed", 2, 0)), None);
        assert_eq!(code(&rollout("done", "passed", 1, 1)), Some(6));
        assert_eq!(code(&rollout("rolled_back", "halted", 0, 1)), Some(1));
        assert_eq!(code(&rollout("stopped", "halted", 1, 0)), Some(1));
    }
}
