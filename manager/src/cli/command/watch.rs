//! Follows executions until all are over: by the hub's stream while there is one, by asking again and again while not.
//!
//! Level-triggered: after each opening of the stream, and every half minute, the hub is asked for all of it.

use std::time::Duration;

use fleet_schemas::NodeId;
use serde_json::Value;
use tokio::{signal, time};

use super::{screen::Screen, seen::Seen, show};
use crate::{
    cli::{Context, Failure, client::Events},
    clock,
};

/// How often the hub is asked while there is no stream.
const POLL: Duration = Duration::from_secs(2);
/// How often it is asked for all of it all the same.
const ALL: Duration = Duration::from_secs(30);
/// Silence after which it is said who is waited for.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a hub may be away.
const AWAY: Duration = Duration::from_secs(120);
/// The exit code of whoever is interrupted, as shells tell it: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// What to follow.
#[derive(Debug)]
pub(super) struct Whole {
    /// The command.
    pub id: String,
    /// Only at this node.
    pub node: Option<NodeId>,
}

/// Follows to the end.
///
/// # Errors
/// [`Failure`] with the exit code of the worst node, or when the hub is away for too long.
pub(super) async fn until_over(whole: &Whole, context: &Context) -> Result<(), Failure> {
    let mut seen = Seen::default();
    let mut screen = Screen::new(context.out, &whole.id);
    let followed = tokio::select! {
        followed = follow(whole, context, &mut seen, &mut screen) => followed,
        interrupt = signal::ctrl_c() => Err(match interrupt {
            Ok(()) => Failure::Own {
                code: INTERRUPTED,
                why: format!(
                    "no longer watching; nothing is canceled. `fleet command get {id} --follow` watches on, \
                     `fleet command cancel {id}` takes it back", id = whole.id
                ),
            },
            Err(error) => Failure::Failed(format!("cannot listen for Ctrl-C: {error}")),
        }),
    };
    screen.end(&seen, followed.is_ok())?;
    followed?;
    seen.verdict(&whole.id)
}

async fn follow(
    whole: &Whole,
    context: &Context,
    seen: &mut Seen,
    screen: &mut Screen,
) -> Result<(), Failure> {
    let mut answered = clock::mono();
    let mut query = vec![("kind", "execution"), ("command", whole.id.as_str())];
    query.extend(whole.node.as_ref().map(|node| ("node", node.as_str())));
    loop {
        // First the stream, then all of it: what happens in between is told twice and never missed.
        let stream = context.client.events(&["api", "v1", "stream"], &query).await;
        match all(whole, context, seen, screen).await {
            Ok(()) => answered = clock::mono(),
            Err(Failure::Unreachable(why))
                if clock::mono().saturating_sub(answered) < AWAY && seen.len() > 0 =>
            {
                screen.note("away", &format!("{why}; trying again"))?;
                time::sleep(POLL).await;
                continue;
            }
            Err(failure) => return Err(failure),
        }
        if seen.is_over() {
            return Ok(());
        }
        match stream {
            Ok(mut stream) => read(&mut stream, seen, screen).await?,
            Err(why) => {
                screen.note("poll", &format!("{why}; asking every {} s instead", POLL.as_secs()))?;
                time::sleep(POLL).await;
            }
        }
    }
}

/// Asks for everything.
async fn all(whole: &Whole, context: &Context, seen: &mut Seen, screen: &mut Screen) -> Result<(), Failure> {
    let command = show::whole(&whole.id, whole.node.as_ref(), context).await?;
    let news: Vec<_> = command.executions.iter().flat_map(|execution| seen.whole(execution)).collect();
    screen.tell(&news, seen)
}

/// Reads the stream until everything is over, it ends, or it is time to ask for all of it.
async fn read(stream: &mut Events, seen: &mut Seen, screen: &mut Screen) -> Result<(), Failure> {
    let until = clock::mono() + ALL;
    while !seen.is_over() {
        let left = until.saturating_sub(clock::mono());
        if left.is_zero() {
            return Ok(());
        }
        let message = match time::timeout(left.min(SILENCE), stream.next()).await {
            Ok(Ok(Some(message))) => message,
            // Ended or cut: opened again, and nothing is missed.
            Ok(Ok(None) | Err(_)) => return Ok(()),
            Err(_) => {
                screen.waits(seen)?;
                continue;
            }
        };
        match message.event.as_str() {
            "execution" => {
                let change: Value = serde_json::from_str(&message.data).map_err(|error| {
                    Failure::Failed(format!("the hub's stream is not understood ({error})"))
                })?;
                screen.tell(&seen.change(&change), seen)?;
            }
            "cut" => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}
