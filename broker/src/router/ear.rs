//! The ears of third-party sessions: each hears the router over a link and a thread of its own, copies what its
//! session subscribed to, answers its subscriptions with retained messages, and is gone with the session.
//!
//! Owns the manners of links that come and go (DESIGN section 9): `build` may hang beside a dying router and then
//! keeps its thread only; nothing is written to a link after its DISCONNECT; names are used again, because a router
//! remembers every name it has seen. What is heard never waits for the session's socket; an answer does, because it is
//! as long as the fleet is large.

use std::{
    io,
    ops::ControlFlow,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    branch::Branch,
    clock,
    gate::{
        encode::Forward,
        retained::{Shelf, Shown},
        session::{
            Cut,
            subs::{Manner, Sub, Subs},
            waiting::Chunk,
        },
        tools::{Ended, Outlet, Replay, Tools},
    },
    router::{
        pipe,
        saying::{self, Said},
        tap::{Heard, Letter, Tap},
        wires::{Gone, Linker},
    },
};

/// All ears, and the router they hear.
pub(crate) struct Ears {
    state: Mutex<State>,
    changed: Condvar,
    tools: Arc<Tools>,
    shelf: Arc<Shelf>,
}

#[derive(Default)]
struct State {
    linker: Option<Arc<Linker>>,
    /// Names that are free to be used again, by number.
    names: Vec<usize>,
    named: usize,
    alive: usize,
    closed: bool,
}

/// One ear at work.
struct Ear<'a> {
    outlet: &'a Outlet,
    tools: &'a Tools,
    shelf: &'a Shelf,
    /// Where each branch's log goes on; a router that laps a slow reader jumps ahead without a word.
    next: [Option<u64>; Branch::ALL.len()],
    packets: Chunk,
}

/// Why an ear stops.
#[derive(Debug, PartialEq, Eq)]
enum Deaf {
    /// Its session is over.
    Ended,
    /// The router is gone.
    Gone,
    /// The router dropped messages that it had not yet heard.
    Lapped,
}

/// An ear looks up at least this often, to see what its session wants now.
const LOOK: Duration = Duration::from_millis(100);
/// How long a session waits for a router to link to.
const LINK: Duration = Duration::from_secs(5);
/// Messages heard at once: what the router puts into a link at once.
const HEAR: usize = 256;
/// Packets are passed on in pieces of about this size.
const CHUNK: usize = 64 * 1024;

impl Ears {
    pub(crate) fn new(tools: Arc<Tools>, shelf: Arc<Shelf>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), tools, shelf })
    }

    /// Starts to hear for a session. Never waits; what goes wrong ends the session.
    pub(crate) fn start(self: &Arc<Self>, outlet: &Arc<Outlet>) {
        self.state().alive += 1;
        let (ears, heard) = (self.clone(), outlet.clone());
        let run = move || {
            ears.hear_for(&heard);
            ears.state().alive -= 1;
            ears.changed.notify_all();
        };
        if let Err(error) = thread::Builder::new().name("tool-ear".into()).spawn(run) {
            self.failed(&error, outlet);
        }
    }

    fn failed(&self, error: &io::Error, outlet: &Outlet) {
        tracing::error!(%error, "nothing can hear for a tool");
        self.state().alive -= 1;
        outlet.cut(Cut::RouterReplaced);
    }

    /// The router of this generation is gone: sessions that heard it end, and come back to the next one.
    pub(super) fn retract(&self, generation: u64) {
        let mut state = self.state();
        if state.linker.as_ref().is_some_and(|linker| linker.generation() == generation) {
            state.linker = None;
        }
        drop(state);
        self.tools.cut_hearers(generation);
    }

    /// There is a router to hear.
    pub(super) fn offer(&self, linker: Linker) {
        self.state().linker = Some(Arc::new(linker));
        self.changed.notify_all();
    }

    /// Ends all sessions, and waits until `deadline` for their threads.
    pub(super) fn close(&self, deadline: Instant) {
        self.tools.close_all();
        let mut state = self.state();
        state.linker = None;
        state.closed = true;
        self.changed.notify_all();
        while state.alive > 0 {
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() {
                return tracing::warn!(count = state.alive, "ears of tools did not end");
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Threads that hear.
    #[cfg(test)]
    pub(crate) fn alive(&self) -> usize {
        self.state().alive
    }

    /// Names that this router has seen.
    #[cfg(test)]
    pub(crate) fn named(&self) -> usize {
        self.state().named
    }

    fn hear_for(&self, outlet: &Outlet) {
        let Some((linker, number)) = self.router(outlet) else { return outlet.cut(Cut::RouterReplaced) };
        let generation = linker.generation();
        let Ok((mut ask, mut tap)) = linker.link(&format!("fleet-tool-{number}")) else {
            return self.retract(generation);
        };
        drop(linker);
        let mut ear = Ear::new(outlet, &self.tools, &self.shelf);
        match ear.hear(&mut |branch| ask.subscribe(branch.filter()), &mut tap) {
            Deaf::Ended => {}
            Deaf::Gone => self.retract(generation),
            Deaf::Lapped => outlet.cut(Cut::Slow),
        }
        // The tap answers pause notices: it has to be gone before the link is.
        drop(tap);
        ask.leave();
        self.state().names.push(number);
    }

    /// A router to link to, and a name to do it under; waits for a new one, but not for ever.
    fn router(&self, outlet: &Outlet) -> Option<(Arc<Linker>, usize)> {
        let deadline = clock::now() + LINK;
        let mut state = self.state();
        loop {
            if let Some(linker) = state.linker.clone() {
                // Under the lock: whoever retracts the router afterwards has to see it.
                outlet.set_hears(linker.generation());
                let number = state.names.pop().unwrap_or(state.named);
                state.named = state.named.max(number + 1);
                return Some((linker, number));
            }
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() || state.closed {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Ear<'a> {
    fn new(outlet: &'a Outlet, tools: &'a Tools, shelf: &'a Shelf) -> Self {
        Self { outlet, tools, shelf, next: [None; Branch::ALL.len()], packets: Chunk::default() }
    }

    /// Hears until it cannot or need not any more.
    fn hear(&mut self, ask: &mut dyn FnMut(Branch) -> Result<(), Gone>, tap: &mut Tap) -> Deaf {
        loop {
            if let Err(deaf) = self.listen(ask, tap) {
                return deaf;
            }
        }
    }

    fn listen(&mut self, ask: &mut dyn FnMut(Branch) -> Result<(), Gone>, tap: &mut Tap) -> Result<(), Deaf> {
        let mut linked = self.outlet.linked();
        let (wanted, replay) = self.outlet.wanted()?;
        for branch in Branch::ALL.into_iter().filter(|branch| wanted.has(*branch)) {
            if !linked.has(branch) {
                ask(branch)?;
                self.await_answer(tap)?;
                linked.add(branch);
            }
        }
        // What is kept from here on is heard as it is said, and belongs to no answer: asked before the session may say
        // so, or it would come twice.
        let number = self.shelf.number();
        if linked != self.outlet.linked() {
            self.outlet.set_linked(linked);
        }
        for Replay { sub, upto } in replay {
            self.answer(&sub, upto.unwrap_or(number))?;
        }
        let mut letters = Vec::new();
        tap.hear(clock::now() + LOOK, HEAR, &mut |heard| match heard {
            Heard::Letter(letter) => letters.push(letter),
            Heard::Answer => {}
        })?;
        self.pass_on(&letters)
    }

    /// Waits until the router has subscribed the link; what is heard meanwhile is passed on.
    fn await_answer(&mut self, tap: &mut Tap) -> Result<(), Deaf> {
        let deadline = clock::now() + LINK;
        let mut answered = false;
        while !answered {
            let mut letters = Vec::new();
            // One at a time, so that it returns with the answer.
            tap.hear(clock::now() + LOOK, 1, &mut |heard| match heard {
                Heard::Letter(letter) => letters.push(letter),
                Heard::Answer => answered = true,
            })?;
            self.pass_on(&letters)?;
            if clock::now() >= deadline {
                return Err(Deaf::Gone);
            }
        }
        Ok(())
    }

    fn pass_on(&mut self, letters: &[Letter]) -> Result<(), Deaf> {
        // Asked after hearing: a filter that was acknowledged to the tool counts for all that came later.
        let subs = self.outlet.subs()?;
        for letter in letters {
            let Ok(topic) = str::from_utf8(&letter.topic) else { continue };
            let branch = Branch::of(topic);
            self.follow(branch, letter.offset)?;
            let said = match branch {
                Branch::Up | Branch::Down | Branch::Hub => {
                    let (payload, qos) = pipe::unpack(&letter.payload);
                    Said { topic, payload, qos, retain: false, expiry: None, properties: &[], sender: None }
                }
                Branch::Tools => match saying::open(&letter.payload) {
                    Some(said) => said,
                    None => continue,
                },
            };
            self.pass(&subs, &said)?;
        }
        self.flush()
    }

    /// Notices a jump in a branch's log.
    fn follow(&mut self, branch: Branch, offset: Option<u64>) -> Result<(), Deaf> {
        let Some(offset) = offset else { return Ok(()) };
        let next = self.next[branch as usize].replace(offset + 1);
        if next.is_none_or(|next| next == offset) { Ok(()) } else { Err(Deaf::Lapped) }
    }

    fn pass(&mut self, subs: &Subs, said: &Said<'_>) -> Result<(), Deaf> {
        let key = &self.outlet.key;
        let own = said.sender == Some((&key.user, &key.client_id));
        let manner = Manner { qos: said.qos, retain: said.retain, own };
        let Some(heard) = subs.hear(said.topic, manner) else { return Ok(()) };
        self.copy(&Forward {
            topic: said.topic.as_bytes(),
            payload: said.payload,
            qos: heard.qos,
            retain: heard.retain,
            id: 0,
            expiry: said.expiry,
            subscriptions: &heard.identifiers,
            properties: said.properties,
        });
        if self.packets.bytes.len() < CHUNK { Ok(()) } else { self.flush() }
    }

    /// Answers a subscription with what is retained, all of it; of tools, up to a number. The hub may show what is on its
    /// way too.
    fn answer(&mut self, sub: &Sub, upto: u64) -> Result<(), Deaf> {
        if sub.branches.has(Branch::Hub) {
            let shelf = self.shelf;
            let mut outcome = Ok(());
            shelf.of_hub(&sub.filter, &mut |shown| {
                if sub.covers(shown.topic) {
                    self.show(sub, shown);
                    outcome = self.flush_patiently(CHUNK);
                }
                if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            outcome?;
        }
        if sub.branches.has(Branch::Tools) {
            let mut after = None;
            loop {
                after = self
                    .shelf
                    .page((&sub.filter, upto), after.as_deref(), clock::now(), |shown| self.show(sub, shown));
                self.flush_patiently(CHUNK)?;
                if after.is_none() {
                    break;
                }
            }
        }
        self.flush_patiently(0)
    }

    fn show(&mut self, sub: &Sub, shown: &Shown<'_>) {
        self.copy(&Forward {
            topic: shown.topic.as_bytes(),
            payload: shown.payload,
            qos: sub.qos.min(shown.qos),
            retain: true,
            id: 0,
            expiry: shown.expiry,
            subscriptions: sub.identifier.as_slice(),
            properties: shown.properties,
        });
    }

    fn copy(&mut self, packet: &Forward<'_>) {
        let Outlet { version, packet_max, .. } = *self.outlet;
        if packet.size(version) > packet_max {
            return self.tools.skipped();
        }
        self.packets.push(version, packet, clock::now);
        self.tools.copied();
    }

    fn flush(&mut self) -> Result<(), Deaf> {
        if self.packets.bytes.is_empty() {
            return Ok(());
        }
        Ok(self.tools.queue(self.outlet, std::mem::take(&mut self.packets))?)
    }

    /// Passes on what is more than `least` bytes, and waits for a tool that reads slowly.
    fn flush_patiently(&mut self, least: usize) -> Result<(), Deaf> {
        if self.packets.bytes.len() <= least {
            return Ok(());
        }
        Ok(self.tools.queue_patiently(self.outlet, std::mem::take(&mut self.packets))?)
    }
}

impl From<Ended> for Deaf {
    fn from(Ended: Ended) -> Self {
        Self::Ended
    }
}

impl From<Gone> for Deaf {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        Credentials, Directory, Refusal, Verdict,
        gate::{
            retained::Room,
            session::{Listen, tool::ToolKey},
            wire::{self, Ask, Version},
        },
        router::{pipe::Carry, saying::Saying},
        stats::Stats,
    };

    struct Hub;

    impl Directory for Hub {
        fn authenticate(&self, _: &Credentials<'_>) -> Verdict {
            Err(Refusal::Banned).into()
        }

        fn retained(&self, _: &str, visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>) {
            for node in ["a", "b", "c"] {
                if visit(&format!("fleet/v1/hub/node/{node}"), node.as_bytes()).is_break() {
                    return;
                }
            }
        }
    }

    /// As a parcel carries it, published at QoS 1.
    fn letter(topic: &'static str, payload: &[u8], offset: u64) -> Letter {
        let payload = [payload, &[1]].concat().into();
        Letter { topic: Bytes::from_static(topic.as_bytes()), payload, offset: Some(offset) }
    }

    fn spoken(said: &Said<'_>, offset: u64) -> Letter {
        let (topic, payload) = Saying::new(said).carried();
        Letter { topic, payload, offset: Some(offset) }
    }

    fn ask(filter: &str, qos: u8) -> Ask<'_> {
        Ask { filter, qos, no_local: false, as_published: false, replay: wire::Replay::Always }
    }

    fn listen(asks: &[(Ask<'_>, Option<u32>)]) -> Listen {
        let mut subs = Subs::default();
        asks.iter().for_each(|(ask, identifier)| subs.insert(Sub::new(ask, *identifier)));
        let replay = asks.iter().map(|(ask, identifier)| Sub::new(ask, *identifier)).collect();
        Listen { subs: Arc::new(subs), replay }
    }

    struct Place {
        stats: Arc<Stats>,
        tools: Tools,
        shelf: Shelf,
        outlet: Arc<Outlet>,
    }

    fn place(version: Version, packet_max: u32) -> Place {
        let stats = Arc::new(Stats::new(clock::now()));
        let tools = Tools::new(4, 1_000_000, stats.clone());
        let shelf = Shelf::load(Arc::new(Hub), Room { topics: 100, bytes: 1_000_000 }, stats.clone());
        let key = ToolKey { user: "grafana".into(), client_id: "g".into() };
        let outlet = tools.open(key, version, packet_max).unwrap();
        Place { stats, tools, shelf, outlet }
    }

    fn packet(version: Version, packet: &Forward<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        packet.write(&mut bytes, version);
        bytes
    }

    #[test]
    fn an_ear_copies_what_matches_counts_what_does_not_fit_and_notices_a_jump_in_any_log() {
        let Place { stats, tools, shelf, outlet } = place(Version::V4, 60);
        let filters = [(ask("fleet/v1/+/up/event", 1), None), (ask("fleet/v1/hub/#", 0), None)];
        tools.listen(&outlet, listen(&filters), || 0);
        let mut ear = Ear::new(&outlet, &tools, &shelf);
        let (event, news) = ("fleet/v1/a/up/event", "fleet/v1/hub/rollout/r");
        let said = [
            letter(event, b"1", 700),
            letter("fleet/v1/a/up/birth", b"2", 701),
            letter(news, b"3", 5),
            letter(event, &[0; 60], 702),
        ];
        assert_eq!(ear.pass_on(&said), Ok(()));
        let event_packet = Forward { topic: event.as_bytes(), payload: b"1", qos: 1, ..Forward::default() };
        let news_packet = Forward { topic: news.as_bytes(), payload: b"3", ..Forward::default() };
        let packets = [event_packet, news_packet].map(|it| packet(Version::V4, &it)).concat();
        assert_eq!(tools.pop(&outlet).map(|chunk| chunk.bytes), Some(packets));
        assert_eq!(tools.pop(&outlet), None);
        assert_eq!((stats.tool_messages.get(), stats.tool_skipped.get()), (2, 1));
        assert_eq!(ear.pass_on(&[letter(news, b"", 6), letter(event, b"", 703)]), Ok(()));
        assert_eq!(ear.pass_on(&[letter(event, b"", 705)]), Err(Deaf::Lapped));
        outlet.cut(Cut::Slow);
        assert_eq!(ear.pass_on(&[]), Err(Deaf::Ended));
    }

    #[test]
    fn what_tools_say_is_passed_on_with_all_that_belongs_to_it_but_not_to_who_wants_none_of_its_own() {
        let Place { tools, shelf, outlet, .. } = place(Version::V5, u32::MAX);
        let no_local = Ask { no_local: true, ..ask("apps/#", 1) };
        tools.listen(&outlet, listen(&[(no_local, Some(7))]), || 0);
        let mut ear = Ear::new(&outlet, &tools, &shelf);
        let own = Said {
            topic: "apps/a",
            payload: b"x",
            qos: 1,
            retain: true,
            expiry: Some(60),
            properties: &[0x01, 1],
            sender: Some(("grafana", "g")),
        };
        let other = Said { sender: Some(("grafana", "other")), ..own };
        assert_eq!(ear.pass_on(&[spoken(&own, 0), spoken(&other, 1)]), Ok(()));
        let expected = Forward {
            topic: b"apps/a",
            payload: b"x",
            qos: 1,
            retain: false,
            id: 0,
            expiry: Some(60),
            subscriptions: &[7],
            properties: &[0x01, 1],
        };
        let chunk = tools.pop(&outlet).unwrap();
        assert_eq!(chunk.bytes, packet(Version::V5, &expected));
    }

    #[test]
    fn a_subscription_is_answered_with_what_is_retained_of_the_hub_and_of_tools() {
        let Place { tools, shelf, outlet, .. } = place(Version::V5, u32::MAX);
        let kept = |topic, qos| Said {
            topic,
            payload: b"kept",
            qos,
            retain: true,
            expiry: None,
            properties: &[],
            sender: Some(("nodered", "n")),
        };
        assert_eq!(shelf.keep(&kept("apps/b", 0), clock::now()), Ok(()));
        assert_eq!(shelf.keep(&kept("other", 1), clock::now()), Ok(()));
        tools.listen(
            &outlet,
            listen(&[(ask("+/v1/hub/node/b", 1), None), (ask("apps/#", 1), Some(300))]),
            || 0,
        );
        let mut ear = Ear::new(&outlet, &tools, &shelf);
        let (_, replay) = outlet.wanted().unwrap();
        assert!(outlet.wanted().unwrap().1.is_empty(), "taken once");
        replay.iter().for_each(|replay| assert_eq!(ear.answer(&replay.sub, shelf.number()), Ok(())));
        let hub = Forward {
            topic: b"fleet/v1/hub/node/b",
            payload: b"b",
            qos: 1,
            retain: true,
            ..Forward::default()
        };
        let tool = Forward {
            topic: b"apps/b",
            payload: b"kept",
            retain: true,
            subscriptions: &[300],
            ..Forward::default()
        };
        for expected in [hub, tool] {
            assert_eq!(tools.pop(&outlet).unwrap().bytes, packet(Version::V5, &expected));
        }
        assert_eq!(tools.pop(&outlet), None);
    }
}
