//! A short story for people who look on: a node's room overheats and cools again, another node loses its link and comes
//! back with what it measured meanwhile.
//!
//! The plot is a table of moments. What happens is real: readings go through the node's edge API, the link is cut, the
//! hub's own rules judge.

use std::{fs, io, net::SocketAddr, path::PathBuf, time::Duration};

use fleet_schemas::NodeId;
use serde_json::json;
use tokio::time;

use super::link::OFFLINE;
use crate::{
    alerts::{self, Alerts},
    clock,
};

/// The device whose room overheats.
const ROOM: &str = "room";
/// How often it measures.
const BEAT: Duration = Duration::from_secs(1);
/// Longest wait for the node's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The name under which the story's rules are kept.
const KIT: &str = "story";
/// A kit's `alerts.yaml`, as kits ship it.
const RULES: &str = include_str!("story.yaml");

/// What happens at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The room gets warm.
    Heat,
    /// A fan starts.
    Cool,
    /// The other node's link is cut.
    Cut,
    /// The link is back.
    Mend,
    /// Nothing more happens.
    End,
}

/// Moments of the plot, in seconds since its beginning, and what is told of them.
const PLOT: [(u64, Turn, &str); 5] = [
    (
        15,
        Turn::Heat,
        "the room behind {warm} gets hot. Look: fleet alert ls, or the console's page of alerts",
    ),
    (50, Turn::Cool, "a fan starts: the room cools, and the alert is resolved by itself"),
    (80, Turn::Cut, "{away} loses its link. It goes on measuring. Look: fleet why {away}"),
    (
        125,
        Turn::Mend,
        "{away} has its link again and sends its backlog. Look: fleet telemetry {away} --metric load1 --since 5m, without a gap",
    ),
    (
        180,
        Turn::End,
        "that was the story. Everything goes on until Ctrl-C: fleet ledger shows that nothing was lost",
    ),
];

/// The nodes that it is about.
#[derive(Debug, Clone)]
pub(super) struct Cast {
    /// The one whose room overheats, and its edge API.
    pub warm: (NodeId, SocketAddr),
    /// The one that loses its link, and its data folder; the same one in a fleet of one.
    pub away: (NodeId, PathBuf),
}

/// Plays it once; returns when it is over.
///
/// # Errors
/// [`alerts::Error`] when the hub does not take the story's rules.
pub(super) async fn play(
    alerts: &Alerts,
    cast: Cast,
    mut tell: impl FnMut(&str),
) -> Result<(), alerts::Error> {
    alerts.put_kit(KIT.to_owned(), Some(RULES.to_owned()), "hub".to_owned()).await?;
    let Cast { warm: (warm, api), away: (away, folder) } = cast;
    let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap_or_default();
    let url = format!("http://{api}/api/v1/telemetry");
    let began = clock::mono();
    let mut plot = PLOT.into_iter().peekable();
    let mut room = Room::default();
    let mut beat = time::interval(BEAT);
    loop {
        beat.tick().await;
        let at = clock::mono().saturating_sub(began);
        while let Some((_, turn, told)) = plot.next_if(|(second, ..)| at >= Duration::from_secs(*second)) {
            tell(&told.replace("{warm}", warm.as_str()).replace("{away}", away.as_str()));
            let done = match turn {
                Turn::Heat => room.heats(true),
                Turn::Cool => room.heats(false),
                Turn::Cut => fs::write(folder.join(OFFLINE), "the demo's story\n"),
                Turn::Mend => mend(&folder),
                Turn::End => return Ok(()),
            };
            if let Err(error) = done {
                tell(&format!("the story cannot go on as it should: {}: {error}", folder.display()));
            }
        }
        let reading = json!({
            "device": ROOM,
            "samples": [{ "metric": "temperature", "value": room.next(), "unit": "Cel" }],
        });
        if let Err(error) =
            client.post(&url).json(&reading).send().await.and_then(reqwest::Response::error_for_status)
        {
            tracing::warn!(%error, "{warm} did not take a reading of the story");
        }
    }
}

/// Gives a link back that an earlier story left cut.
///
/// # Errors
/// What the system says.
pub(super) fn mend(folder: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(folder.join(OFFLINE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A room with a heater: nears what it is heated to by a tenth of the way each second.
#[derive(Debug)]
struct Room {
    degrees: f64,
    aim: f64,
}

impl Default for Room {
    fn default() -> Self {
        Self { degrees: 21.0, aim: 21.0 }
    }
}

impl Room {
    fn heats(&mut self, on: bool) -> io::Result<()> {
        self.aim = if on { 42.0 } else { 21.0 };
        Ok(())
    }

    /// Its temperature a second later, in tenths of a degree.
    fn next(&mut self) -> f64 {
        self.degrees += (self.aim - self.degrees) / 10.0;
        (self.degrees * 10.0).round() / 10.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_gets_too_hot_within_its_chapter_and_cools_before_the_next() {
        let rules = crate::alerts::rules::read_one("story.yaml", RULES).unwrap();
        assert_eq!(rules.len(), 1);
        let chapter = |from: Turn, to: Turn| {
            let at = |turn| PLOT.iter().find(|(_, other, _)| *other == turn).unwrap().0;
            at(to) - at(from)
        };
        let mut room = Room::default();
        room.heats(true).unwrap();
        let hot = (0..chapter(Turn::Heat, Turn::Cool)).filter(|_| room.next() > 35.0).count();
        assert!(hot > 15, "hot for {hot} s only");
        room.heats(false).unwrap();
        let warm = (0..chapter(Turn::Cool, Turn::Cut)).filter(|_| room.next() > 30.0).count();
        assert!(warm < 15, "warm for {warm} s");
    }

    #[test]
    fn the_plot_is_in_order_and_ends_with_every_link_whole() {
        assert!(PLOT.is_sorted_by_key(|(second, ..)| *second));
        let turns = PLOT.map(|(_, turn, _)| turn);
        assert_eq!(turns, [Turn::Heat, Turn::Cool, Turn::Cut, Turn::Mend, Turn::End]);
    }
}
