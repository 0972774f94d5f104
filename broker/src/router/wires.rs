//! One router of rumqttd and the plane's links to it; with `tap` the only place that names rumqttd (beside `bare`, which measures it).
//!
//! Owns how a router is built, fed, probed and retired. Knows nothing of what it carries.

use std::{
    collections::{BTreeSet, HashMap},
    error,
    panic::{self, PanicHookInfo},
    pin::pin,
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Waker},
    thread,
    time::Duration,
};

use fleet_schemas::topic::{ALL_DOWN, ALL_UP};
use rumqttd::{
    Router, RouterConfig, SegmentConfig,
    local::{LinkBuilder, LinkRx, LinkTx},
    protocol::{Disconnect, DisconnectReasonCode, Packet, Publish},
};

use crate::{
    branch::Branch,
    router::{pipe::Carry, tap::Tap},
};

/// A spawned router with its links.
pub(super) struct Wires {
    /// Publishes what nodes say.
    pub(super) up: Feed,
    /// Hears the probe, and that its link is still there.
    pub(super) up_rx: LinkRx,
    /// Hears all that nodes say.
    pub(super) hub_rx: LinkRx,
    /// Publishes what nodes are told.
    pub(super) down: Feed,
    /// Hears all that nodes are told.
    pub(super) down_rx: LinkRx,
    /// Publishes the hub's own topics.
    pub(super) news: Feed,
    /// Hears that they went through.
    pub(super) news_rx: LinkRx,
    /// Publishes what tools say.
    pub(super) talk: Feed,
    /// Hears that it went through.
    pub(super) talk_rx: LinkRx,
    pub(super) linker: Linker,
    pub(super) fuse: Fuse,
}

/// The publishing half of a link.
pub(super) struct Feed(LinkTx);

/// Makes more links to a router, for those that come and go.
pub(super) struct Linker {
    link: Box<Build>,
    generation: u64,
}

type Build = dyn Fn(&str) -> Result<(LinkTx, LinkRx), SpawnError> + Send + Sync;

/// The asking half of such a link.
pub(super) struct Ask(LinkTx);

/// Probes a router and retires it.
pub(super) struct Fuse {
    link: LinkTx,
    dead: Box<dyn Fn() -> bool + Send>,
    retire: Box<dyn Fn() + Send>,
}

/// Routers that were told to end, by number: their panics are no news.
static RETIRED: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

/// No router, or no link to it.
#[derive(Debug, thiserror::Error)]
#[error("the router could not be started: {0}")]
pub(crate) struct SpawnError(#[source] Box<dyn error::Error + Send + Sync>);

/// The router is not there any more.
#[derive(Debug)]
pub(crate) struct Gone;

/// Where probes go; outside `fleet/`, so that no session can publish or hear them.
const PROBE: &str = "gate/probe";
/// The router slices a topic at byte 1 and panics inside a character. It has no other way to stop.
const RETIRE: &str = "é";
/// The name of threads that build links: they come and go.
const LINKER: &str = "router-linker";
/// Links of nodes do not exist: a few for the plane, the rest for third-party sessions.
const CONNECTIONS: usize = 1_024;
/// Messages the router reads from its log at once, the size of a link's own buffer.
const READ_AT_ONCE: u64 = 200;
/// Segments of a log. A fresh one evicts the oldest, so the room that is safe is one less times their size. What was read
/// stays until then: each log grows to all of them once, in minutes or in days, and then no more. So no log is larger than
/// it has to be; a message takes about 490 bytes beyond those that are counted (GATE-NOTES 3). And what a log holds goes up
/// and down by one of them: with many small ones a hub's memory stays where it is.
const SEGMENTS: usize = 32;
/// Of them, those beyond the budget: each thread may read a little more than there is room for.
const SPARE: usize = 6;
const SEGMENT_BYTES_MIN: usize = 256 * 1024;
/// Segments of a log that a window is fed through, in parts of the window: nearly three windows are left for tools
/// that are late.
const WINDOW_PARTS: usize = 8;
/// A probe is a few bytes, one a second: the smallest log there is, or it would grow for a week.
const PROBES: SegmentConfig = SegmentConfig { max_segment_size: 1_024, max_segment_count: 2 };
/// A link to a router that dies meanwhile may never be answered.
const BUILD: Duration = Duration::from_secs(5);

/// Spawns a router and links to it. Of what nodes say it holds `budget` bytes unread; of each other branch, nearly
/// four times of `window`.
pub(super) fn spawn(budget: usize, window: usize, generation: u64) -> Result<Wires, SpawnError> {
    static ROUTERS: AtomicUsize = AtomicUsize::new(0);
    quiet_retirement();
    let windowed = SegmentConfig { max_segment_size: window / WINDOW_PARTS, max_segment_count: SEGMENTS };
    let mut smaller: HashMap<_, _> =
        [Branch::Down, Branch::Hub, Branch::Tools].map(|branch| (branch.filter(), windowed.clone())).into();
    smaller.insert(PROBE.to_owned(), PROBES);
    let config = RouterConfig {
        max_connections: CONNECTIONS,
        max_outgoing_packet_count: READ_AT_ONCE,
        max_segment_size: (budget / (SEGMENTS - SPARE)).max(SEGMENT_BYTES_MIN),
        max_segment_count: SEGMENTS,
        custom_segment: Some(smaller),
        ..RouterConfig::default()
    };
    let id = ROUTERS.fetch_add(1, Ordering::Relaxed);
    let (built, wires) = mpsc::channel();
    let build = move || {
        // Nobody waits any more if this comes too late.
        let _ = built.send(link(id, config, generation));
    };
    thread::Builder::new().name(LINKER.into()).spawn(build).map_err(|e| SpawnError(e.into()))?;
    wires.recv_timeout(BUILD).map_err(|e| SpawnError(e.into()))?
}

fn link(id: usize, config: RouterConfig, generation: u64) -> Result<Wires, SpawnError> {
    let events = Router::new(id, config).spawn();
    let build =
        |name| LinkBuilder::new(name, events.clone()).build().map_err(|e| SpawnError(e.to_string().into()));
    let subscribe = |link: &mut LinkTx, filter: &str| {
        link.subscribe(filter).map(drop).map_err(|e| SpawnError(e.to_string().into()))
    };
    let (mut hub, hub_rx, _) = build("fleet-hub")?;
    let (mut down, down_rx, _) = build("fleet-down")?;
    let (mut up, up_rx, _) = build("fleet-up")?;
    let (mut news, news_rx, _) = build("fleet-news")?;
    let (mut talk, talk_rx, _) = build("fleet-talk")?;
    let (fuse, _, _) = build("fleet-fuse")?;
    subscribe(&mut hub, ALL_UP)?;
    subscribe(&mut down, ALL_DOWN)?;
    subscribe(&mut news, &Branch::Hub.filter())?;
    subscribe(&mut talk, &Branch::Tools.filter())?;
    subscribe(&mut up, PROBE)?;
    let linking = events.clone();
    let link = Box::new(move |name: &str| {
        let link = LinkBuilder::new(name, linking.clone()).build();
        link.map(|(tx, rx, _)| (tx, rx)).map_err(|e| SpawnError(e.to_string().into()))
    });
    let ending = events.clone();
    let retire = Box::new(move || {
        let events = ending.clone();
        let end = move || {
            if let Ok((mut link, _, _)) = LinkBuilder::new("fleet-end", events).build() {
                // If this fails, it is dead already.
                let _ = link.publish(RETIRE, "");
            }
        };
        RETIRED.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        if let Err(error) = thread::Builder::new().name(LINKER.into()).spawn(end) {
            tracing::error!(%error, "a router could not be told to end");
        }
    });
    let fuse = Fuse { link: fuse, dead: Box::new(move || events.is_disconnected()), retire };
    let linker = Linker { link, generation };
    Ok(Wires {
        up: Feed(up),
        up_rx,
        hub_rx,
        down: Feed(down),
        down_rx,
        news: Feed(news),
        news_rx,
        talk: Feed(talk),
        talk_rx,
        linker,
        fuse,
    })
}

impl Feed {
    /// Hands a batch over. Blocks while the router is busy, and for ever when it hangs.
    pub(super) fn hand_over<P: Carry>(&mut self, parcels: &mut Vec<P>) -> Result<(), Gone> {
        let Some(last) = parcels.pop() else { return Ok(()) };
        let mut buffer = self.0.buffer();
        buffer.extend(parcels.drain(..).map(|parcel| {
            let (topic, payload) = parcel.carried();
            Packet::Publish(Publish::new(topic, payload, false), None)
        }));
        drop(buffer);
        // The last one also tells the router to look.
        let (topic, payload) = last.carried();
        self.0.publish(topic, payload).map(drop).map_err(|_| Gone)
    }
}

impl Linker {
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// A new link under a name that no other has. Hangs for ever if the router dies meanwhile.
    pub(super) fn link(&self, name: &str) -> Result<(Ask, Tap), SpawnError> {
        let (tx, rx) = (self.link)(name)?;
        Ok((Ask(tx), Tap::new(rx, self.generation)))
    }
}

impl Ask {
    /// Asks for what a filter matches; the answer comes out of the tap.
    pub(super) fn subscribe(&mut self, filter: String) -> Result<(), Gone> {
        self.0.subscribe(filter).map(drop).map_err(|_| Gone)
    }

    /// Gives the link up; its tap has to be gone, for the router panics if it is answered after this.
    pub(super) fn leave(mut self) {
        let reason_code = DisconnectReasonCode::NormalDisconnection;
        let leave = pin!(self.0.send(Packet::Disconnect(Disconnect { reason_code }, None)));
        // It sends at once, whatever its signature says; a router that is gone needs no word.
        let _ = leave.poll(&mut Context::from_waker(Waker::noop()));
    }
}

impl Fuse {
    /// Sends a probe without waiting; a router that is too busy to take it will show by silence.
    pub(super) fn probe(&mut self) {
        let _ = self.link.try_publish(PROBE, "probe");
    }

    /// Stops the router by its panic, over a link of its own and without waiting. One that hangs keeps its thread.
    pub(super) fn retire(&self) {
        (self.retire)();
    }

    /// Makes the router drop the probe's link, as it does with any that publishes such a topic, and say nothing.
    #[cfg(test)]
    pub(super) fn deafen(&mut self) {
        self.link.publish(&b"\xFF"[..], "").unwrap();
    }

    /// Whether the router's thread is gone.
    pub(super) fn dead(&self) -> bool {
        (self.dead)()
    }
}

/// A router's panic is how it ends: it is logged, not printed as a crash of the program.
fn quiet_retirement() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
            let thread = thread::current();
            let router = thread.name().and_then(|name| name.strip_prefix("router-"));
            match router.map(str::parse::<usize>) {
                Some(Ok(id)) if RETIRED.lock().unwrap_or_else(PoisonError::into_inner).remove(&id) => {
                    tracing::debug!(id, "a router was retired");
                }
                Some(Ok(id)) => tracing::error!(id, %panic, "a router panicked"),
                Some(Err(_)) | None => print(panic),
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use fleet_schemas::{NodeId, Topic, topic::Down};

    use super::*;
    use crate::{
        clock,
        router::{
            pipe::Parcel,
            tap::{Heard, Letter},
        },
    };

    const WINDOW: usize = 64 * 1_024;
    const PAYLOAD: usize = 1_000;

    fn soon() -> Instant {
        clock::now() + Duration::from_secs(10)
    }

    /// A link that asked for a filter and was answered.
    fn late(linker: &Linker, filter: &str) -> (Ask, Tap) {
        let (mut ask, mut tap) = linker.link("fleet-tool-0").unwrap();
        ask.subscribe(filter.to_owned()).unwrap();
        let mut answered = false;
        tap.hear(soon(), 1, &mut |heard| answered |= matches!(heard, Heard::Answer)).unwrap();
        assert!(answered);
        (ask, tap)
    }

    /// Hears one message; the answer to the link's own subscription may come before.
    fn hear_one(tap: &mut Tap) {
        let mut heard = Vec::new();
        let mut answers = 0;
        while heard.is_empty() {
            tap.collect(soon(), 1, &mut heard).unwrap();
            answers += usize::from(heard.is_empty());
            assert!(answers <= 1, "nothing is heard");
        }
    }

    /// What a link that is late hears of `said` messages: those before the router's log had lost any, and those after.
    fn heard_late(mut tap: Tap, said: u64) -> (Vec<Letter>, Vec<Letter>) {
        let mut letters: Vec<Letter> = Vec::new();
        while letters.last().is_none_or(|last| last.offset.is_none_or(|offset| offset + 1 < said)) {
            let before = letters.len();
            let mut see = |heard| {
                if let Heard::Letter(letter) = heard {
                    letters.push(letter);
                }
            };
            tap.hear(soon(), 1, &mut see).unwrap();
            assert!(letters.len() > before, "{before} letters and no more of {said}");
        }
        let gap = letters.windows(2).position(|two| two[1].offset != two[0].offset.map(|offset| offset + 1));
        let after = letters.split_off(gap.expect("nothing was evicted") + 1);
        (letters, after)
    }

    #[test]
    fn a_log_that_a_window_is_fed_through_keeps_four_windows_or_little_less() {
        let Wires { mut down, down_rx, linker, fuse, .. } = spawn(1 << 20, WINDOW, 0).unwrap();
        let mut read = Tap::new(down_rx, 0);
        let (_ask, late) = late(&linker, ALL_DOWN);
        let topic = Topic::Down(NodeId::parse("edge-1").unwrap(), Down::Ack);
        let text = topic.to_string();
        let (each, count) = (4 + text.len() + PAYLOAD + 1, 16 * WINDOW / PAYLOAD);
        for _ in 0..count {
            let mut one = vec![Parcel::new(topic.clone(), &text, &[0; PAYLOAD], 0)];
            down.hand_over(&mut one).unwrap();
            hear_one(&mut read);
        }
        let (_, kept) = heard_late(late, count as u64);
        let bytes = kept.len() * each;
        let least = 4 * WINDOW - WINDOW / WINDOW_PARTS;
        assert!((least..=4 * WINDOW + SEGMENTS * each).contains(&bytes), "{bytes} of {}", count * each);
        fuse.retire();
    }

    #[test]
    fn probes_leave_next_to_nothing_behind() {
        let Wires { up_rx, linker, mut fuse, .. } = spawn(1 << 20, WINDOW, 0).unwrap();
        let mut read = Tap::new(up_rx, 0);
        let (_ask, late) = late(&linker, PROBE);
        let count = 1_000;
        for _ in 0..count {
            fuse.probe();
            hear_one(&mut read);
        }
        let (_, kept) = heard_late(late, count);
        assert!(kept.len() < 200, "{}", kept.len());
        fuse.retire();
    }
}
