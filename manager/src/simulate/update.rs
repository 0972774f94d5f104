//! Updates at a simulated node: the agent's real machine and the launcher's real record, over slots and bytes that are
//! pretended.
//!
//! What is written is on the card at once, and goes with it; everything else is gone with the process.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use ciborium::Value;
use fleet_edge_agent::core::{
    Now as EdgeNow,
    launch::{self, Exit, Pick, Record},
    queue::{End, Ending, Limit, Time},
    update::{
        Arrival, Effects, Found, Health, History, Input, Next, Refusal, Release, Runs, Signed, Stage, Step,
        Switched, Trouble, Update, View, Why, code, window::Gate,
    },
};
use fleet_schemas::{
    CommandId, MetricName, cbor,
    session::Versions,
    update::{AGENT, Custom, Digest, EVENT, Kind, Order, RUNNING, Report, Running, State, Target},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// How long a release is on trial when the order does not say.
const PROBATION: Duration = Duration::from_secs(5);
/// How long after that the hub is waited for.
const REACH: Duration = Duration::from_secs(30);
/// How long the launcher waits beyond that.
const SLACK: Duration = Duration::from_secs(20);
/// How long a broken release looks well.
const SICK_AFTER: Duration = Duration::from_secs(3);
/// The name of the skill that is updated.
pub(super) const SKILL: &str = "greeter";

/// What a release does to whoever runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Good,
    /// It crashes whenever it is started.
    Crashes,
    /// It runs, and is never well.
    Hangs,
    /// It is well for a while, within its trial.
    Sick,
    /// It passes, and what ran before comes back so many milliseconds later.
    Later(u64),
    /// Nobody signed these bytes: the signed ones of its name are others.
    Forged,
}

/// How a node takes orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    Honest,
    /// It says that it did, and did nothing.
    Lies,
    /// Its power goes for a while when it first switches.
    Vanishes,
}

/// Bytes that are ordered, and what they do.
#[derive(Debug, Clone)]
pub(super) struct Image {
    pub target: Target,
    pub digest: Digest,
    pub how: How,
}

/// All of them, by digest.
pub(super) type Images = BTreeMap<Digest, Image>;

/// What lies on the card beside the outbox.
#[derive(Debug, Clone)]
struct Card {
    journal: BTreeMap<CommandId, Vec<u8>>,
    ended: BTreeMap<CommandId, Report>,
    history: BTreeMap<Kind, History>,
    failed: BTreeMap<Digest, u8>,
    /// What was fetched, how many bytes of it, and whether they are sound.
    fetched: Option<(Digest, u64, bool)>,
    skill: Release,
    staged: Option<Release>,
    before: Option<Release>,
    /// What the agent says that runs.
    told: Release,
    launch: Record,
    /// When a release that was confirmed is left by itself.
    regret: Option<(u64, Digest)>,
}

enum Due {
    Input(Input),
    Step(Step),
}

/// What a step of the machine comes to.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Events to hand in: kind and data.
    pub events: Vec<(&'static str, Value)>,
    /// Commands that ended.
    pub ends: Vec<(CommandId, End)>,
    /// What the next birth says, if that changed.
    pub versions: Option<Versions>,
}

/// What becomes of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Lives,
    /// It ends, and is started again after so many milliseconds.
    Ends(u64),
    /// The power goes for so many milliseconds.
    PowerGoes(u64),
}

/// What is seen of the surroundings.
pub(super) struct Sight<'a> {
    pub images: &'a Images,
    pub connected: bool,
    /// Hub time of the last ack, and when that was.
    pub heard: Option<(i64, Duration)>,
    pub now: u64,
    pub at: EdgeNow,
    pub boot: [u8; 8],
    /// Whether things go wrong.
    pub chaos: bool,
}

/// The updates of one machine.
pub(super) struct Machine {
    pub manner: Manner,
    card: Card,
    rng: StdRng,
    waiting: VecDeque<Update>,
    asked: BTreeSet<CommandId>,
    stops: BTreeMap<CommandId, Why>,
    current: Option<(Update, u64, Due)>,
    own: Option<launch::Release>,
    pick: Option<(Pick, u64)>,
    /// The process runs and does nothing.
    pub hangs: bool,
    vanished: bool,
    /// What ran here at any time.
    pub ran: BTreeSet<Digest>,
    /// How often each release came to run.
    pub switches: BTreeMap<Digest, u32>,
    pub lines: Vec<String>,
}

/// What every node has from the start.
pub(super) fn first(kind: Kind) -> Release {
    let digest = Digest([if kind == Kind::Skill { 0x51 } else { 0xa1 }; 32]);
    Release { version: word("1.0.0"), digest, epoch: 0 }
}

impl Machine {
    pub(super) fn new(manner: Manner, rng: StdRng) -> Self {
        let skill = first(Kind::Skill);
        let history = [Kind::Skill, Kind::Agent].map(|kind| (kind, History::default().with(first(kind))));
        let card = Card {
            journal: BTreeMap::new(),
            ended: BTreeMap::new(),
            history: history.into(),
            failed: BTreeMap::new(),
            fetched: None,
            skill: skill.clone(),
            staged: None,
            before: None,
            told: skill,
            launch: Record::default(),
            regret: None,
        };
        Self {
            manner,
            card,
            rng,
            waiting: VecDeque::new(),
            asked: BTreeSet::new(),
            stops: BTreeMap::new(),
            current: None,
            own: None,
            pick: None,
            hangs: false,
            vanished: false,
            ran: [first(Kind::Skill).digest, first(Kind::Agent).digest].into(),
            switches: BTreeMap::new(),
            lines: Vec::new(),
        }
    }

    /// The same, on a copy of the card in another machine.
    pub(super) fn copy(&mut self) -> Self {
        let rng = self.fork();
        Self { card: self.card.clone(), ..Self::new(self.manner, rng) }
    }

    /// Another source of randomness, from this one.
    pub(super) fn fork(&mut self) -> StdRng {
        StdRng::seed_from_u64(self.rng.random())
    }

    /// Whether a command is one of an update that is under way.
    pub(super) fn knows(&self, command: CommandId) -> bool {
        self.asked.contains(&command)
    }

    /// The card is empty: what came with the machine runs.
    pub(super) fn wipe(&mut self) {
        self.card = Self::new(self.manner, self.fork()).card;
    }

    /// The card is set back.
    pub(super) fn restore(&mut self, image: &Self) {
        self.card = image.card.clone();
    }

    /// The launcher starts what it picks. Whether there is an agent now; else after how long it is tried again.
    pub(super) fn start(&mut self, images: &Images, now: u64) -> Result<(), u64> {
        let pick = self.card.launch.begin(|_| true);
        let how =
            pick.release.as_ref().and_then(|release| images.get(&release.digest)).map(|image| image.how);
        self.own = pick.release.clone();
        self.hangs = how == Some(How::Hangs);
        self.pick = Some((pick, now));
        let own = self.own_release();
        if how == Some(How::Crashes) {
            self.lines.push(format!("agent {} crashes at boot", own.version));
            self.book(Exit::Signal(11), false, now);
            return Err(400);
        }
        self.ran.insert(own.digest);
        let found = self.card.journal.values().filter_map(|bytes| cbor::decode::<Update>(bytes).ok());
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(|update| update.is_stoppable());
        self.waiting = found.into();
        Ok(())
    }

    /// The process is gone; the launcher saw it end, unless the power went.
    pub(super) fn die(&mut self, by_power: bool, now: u64) {
        if !by_power {
            self.book(Exit::Signal(9), false, now);
        }
        self.pick = None;
        self.hangs = false;
        self.current = None;
        self.waiting.clear();
        self.asked.clear();
        self.stops.clear();
    }

    fn book(&mut self, exit: Exit, over: bool, now: u64) {
        let Some((pick, since)) = self.pick.take() else { return };
        let lasted = Duration::from_millis(now - since);
        self.card.launch.ended(&pick, &launch::End { exit, told: false, over, lasted });
    }

    fn own_release(&self) -> Release {
        match &self.own {
            Some(own) => Release { version: own.version.clone(), digest: own.digest, epoch: 0 },
            None => first(Kind::Agent),
        }
    }

    /// What runs in truth: the agent and the skill.
    pub(super) fn truth(&self) -> [Digest; 2] {
        [self.own_release().digest, self.card.skill.digest]
    }

    /// Whether nothing is under way.
    pub(super) fn rests(&self) -> bool {
        self.current.is_none() && self.waiting.is_empty() && self.card.regret.is_none()
    }

    /// What a birth says.
    pub(super) fn versions(&self) -> Versions {
        let one = |kind, name: &str, release: &Release| Running {
            kind,
            name: word(name),
            version: release.version.clone(),
            digest: release.digest,
            device: None,
        };
        let own = self.own_release();
        let running = vec![one(Kind::Agent, AGENT, &own), one(Kind::Skill, SKILL, &self.card.told)];
        Versions { agent: own.version.to_string(), running, ..Versions::default() }
    }

    /// A command begins, or goes on.
    pub(super) fn order(
        &mut self,
        command: CommandId,
        params: &Value,
        timeout_ms: u64,
        sight: &Sight<'_>,
        said: &mut Said,
    ) {
        let Ok(order) = params.deserialized::<Order>() else { return };
        if let Some(report) = self.card.ended.get(&command) {
            said.ends.push((command, End::Updated(Box::new(report.clone()))));
            return;
        }
        let timeout = Duration::from_millis(timeout_ms);
        let update = Update::new(command, order, Limit::after(timeout, &time(sight)));
        if self.manner == Manner::Lies {
            return self.lie(&update, said);
        }
        self.asked.insert(command);
        let is_it = |other: &Update| other.command == command;
        if !self.current.as_ref().is_some_and(|(current, ..)| is_it(current))
            && !self.waiting.iter().any(is_it)
        {
            self.waiting.push_back(update);
        }
    }

    fn lie(&mut self, update: &Update, said: &mut Said) {
        let report = Report { state: State::Confirmed, ..update.report(None) };
        self.lines.push(format!("lies about {}", update.order.target));
        said.events.push((RUNNING, value(&self.versions())));
        said.events.push((EVENT, report.to_data()));
        self.card.ended.insert(update.command, report.clone());
        said.ends.push((update.command, End::Updated(Box::new(report))));
    }

    /// A command is told to end.
    pub(super) fn stop(&mut self, command: CommandId, why: Ending) {
        let why = match why {
            Ending::Cancel => Why::Cancel,
            Ending::Timeout => Why::Timeout,
            Ending::Superseded => Why::Superseded,
        };
        self.stops.insert(command, why);
    }

    /// Goes on with what is under way.
    pub(super) fn step(&mut self, sight: &Sight<'_>, said: &mut Said) -> Fate {
        if let Some((pick, since)) = &self.pick
            && self.card.launch.tries(pick)
            && pick.left.is_some_and(|left| Duration::from_millis(sight.now - since) >= left)
        {
            self.lines.push("the launcher ends the agent: its time is over".to_owned());
            self.book(Exit::Signal(15), true, sight.now);
            return Fate::Ends(200);
        }
        if self.hangs {
            return Fate::Lives;
        }
        // Not in the middle of an update, which knows what ran when it began.
        let idle = self.current.is_none() && self.waiting.is_empty();
        if let Some((_, digest)) = self.card.regret.take_if(|(at, _)| idle && *at <= sight.now)
            && let Some(fate) = self.regret(digest, said)
        {
            return fate;
        }
        // Each takes some time: no more than a few in one step of the world.
        for _ in 0..4 {
            let Some((mut update, at, due)) = self.current.take() else {
                let Some(update) = self.waiting.pop_front() else { return Fate::Lives };
                self.current = Some((update, sight.now, Due::Input(Input::Begin)));
                continue;
            };
            let stop = self.stops.get(&update.command).copied().filter(|_| update.is_stoppable());
            if at > sight.now && stop.is_none() {
                self.current = Some((update, at, due));
                return Fate::Lives;
            }
            let (input, mut fate) = match (stop, due) {
                (Some(why), _) => (Input::Stop(why), Fate::Lives),
                (None, Due::Input(input)) => (input, Fate::Lives),
                (None, Due::Step(step)) => self.outcome(step, &update, sight),
            };
            if fate != Fate::Lives {
                self.current = Some((update, sight.now, Due::Input(Input::Tick)));
                return fate;
            }
            let before = update.state();
            let effects = self.decide(&mut update, input, sight);
            if update.state() != before {
                self.lines.push(format!(
                    "{} {} {}",
                    update.command,
                    update.order.target,
                    update.state().as_str()
                ));
            }
            if self.manner == Manner::Vanishes && update.stage == Stage::Switching && !self.vanished {
                self.vanished = true;
                fate = Fate::PowerGoes(self.rng.random_range(5_000..120_000));
            } else if sight.chaos && effects.write && self.rng.random_bool(0.02) {
                // Just after it was written.
                fate = Fate::Ends(self.rng.random_range(200..5_000));
            }
            if fate != Fate::Lives {
                return fate;
            }
            self.tell(&update, &effects, said);
            match effects.next {
                Next::Nothing => self.end(&update, said),
                Next::Wait(span) | Next::Again(span) => {
                    self.current = Some((update, sight.now + millis(span), Due::Input(Input::Tick)));
                }
                Next::Do(step) => {
                    let takes = self.rng.random_range(100..900);
                    self.current = Some((update, sight.now + takes, Due::Step(step)));
                }
            }
        }
        Fate::Lives
    }

    /// Decides, and writes down what follows.
    fn decide(&mut self, update: &mut Update, input: Input, sight: &Sight<'_>) -> Effects {
        let kind = update.order.target.kind;
        let history = self.card.history.entry(kind).or_default().clone();
        let view = View {
            history: &history,
            failures: self.card.failed.get(&update.order.digest).copied().unwrap_or(0),
            arch: "sim",
            gate: Gate::Open,
            free: None,
            heard: sight.heard.map(|(_, at)| at),
            probation: PROBATION,
            reach: REACH,
        };
        let effects = update.decide(input, &view, &time(sight));
        if effects.write {
            self.card.journal.insert(update.command, cbor::encode(update));
        }
        if let Some(history) = effects.history.clone() {
            self.card.history.insert(kind, history);
        }
        if effects.failed {
            let count = self.card.failed.entry(update.order.digest).or_default();
            *count = count.saturating_add(1);
        }
        let runs = match effects.runs.filter(|_| kind == Kind::Skill) {
            Some(Runs::New) => Some(update.release()),
            Some(Runs::Before) => update.from.clone(),
            Some(Runs::Unknown) | None => None,
        };
        self.card.told = runs.unwrap_or_else(|| self.card.told.clone());
        effects
    }

    fn tell(&mut self, update: &Update, effects: &Effects, said: &mut Said) {
        let over = matches!(update.stage, Stage::Over(_));
        if effects.runs.is_some() || (effects.tell && (over || update.state().is_switched())) {
            let versions = self.versions();
            said.events.push((RUNNING, value(&versions)));
            said.versions = Some(versions);
        }
        if effects.tell {
            said.events.push((EVENT, update.report(None).to_data()));
        }
    }

    fn end(&mut self, update: &Update, said: &mut Said) {
        let report = update.report(None);
        self.card.journal.remove(&update.command);
        self.card.ended.insert(update.command, report.clone());
        self.stops.remove(&update.command);
        if self.asked.remove(&update.command) {
            said.ends.push((update.command, End::Updated(Box::new(report))));
        }
    }

    /// What a step comes to, now that its time is over.
    fn outcome(&mut self, step: Step, update: &Update, sight: &Sight<'_>) -> (Input, Fate) {
        let order = &update.order;
        let image = sight.images.get(&order.digest);
        let how = image.map_or(How::Forged, |image| image.how);
        let kind = order.target.kind;
        let input = match step {
            Step::Verify => Input::Verified(self.verify(order, sight)),
            Step::Download => Input::Arrived(self.fetch(update, sight)),
            Step::Install => Input::Installed(match &self.card.fetched {
                Some((digest, _, true)) if *digest == order.digest => {
                    self.card.staged = Some(update.release());
                    if kind == Kind::Agent {
                        self.card.launch.forgive(order.digest);
                    }
                    Ok(())
                }
                _ => Err(Trouble::lasting(code::DIGEST, "the file is not what was fetched")),
            }),
            Step::Switch if kind == Kind::Agent => return self.switch_agent(update),
            Step::Switch => {
                if self.card.skill.digest != order.digest {
                    let new = self.card.staged.clone().unwrap_or_else(|| update.release());
                    self.card.before = Some(std::mem::replace(&mut self.card.skill, new));
                    self.came_to_run(order.digest);
                }
                Input::Switched(Ok(Switched::Done))
            }
            Step::Probe => Input::Probed(self.probe(update, how, sight)),
            Step::Commit => {
                let done = kind != Kind::Agent || self.card.launch.confirm(order.digest);
                if let How::Later(after) = how {
                    self.card.regret = Some((sight.now + after, order.digest));
                }
                Input::Committed(match done {
                    true => Ok(()),
                    false => Err(Trouble::lasting("unconfirmed", "its trial was over")),
                })
            }
            Step::Undo if kind == Kind::Agent => {
                let is_new = self.own_release().digest == order.digest;
                self.card.launch.undo(order.digest, "undone");
                if is_new {
                    return (Input::Undone(Ok(Switched::Away)), self.restart(sight.now));
                }
                Input::Undone(Ok(Switched::Done))
            }
            Step::Undo => {
                if self.card.skill.digest == order.digest
                    && let Some(before) = self.card.before.take()
                {
                    self.card.skill = before;
                }
                Input::Undone(Ok(Switched::Done))
            }
            Step::Discard => {
                (self.card.staged, self.card.fetched) = (None, None);
                if kind == Kind::Agent {
                    self.card.launch.trial.take_if(|trial| trial.release.digest == order.digest);
                    self.card.launch.forgive(order.digest);
                }
                Input::Discarded
            }
        };
        (input, Fate::Lives)
    }

    fn verify(&self, order: &Order, sight: &Sight<'_>) -> Result<Found, Refusal> {
        if !sight.connected {
            return Err(Refusal::Later("the hub is not reached".to_owned()));
        }
        // The signed list has one digest for each target.
        let signed =
            sight.images.values().find(|image| image.target == order.target && image.how != How::Forged);
        let firsts = [Kind::Skill, Kind::Agent].map(|kind| (kind, first(kind)));
        let first = firsts
            .iter()
            .find(|(kind, first)| *kind == order.target.kind && first.version == order.target.version);
        let Some(digest) = signed.map(|image| image.digest).or(first.map(|(_, first)| first.digest)) else {
            return Err(Refusal::Never(Trouble::lasting("no_target", "nobody signed that")));
        };
        let runs = match order.target.kind {
            Kind::Agent => self.own_release(),
            _ => self.card.skill.clone(),
        };
        let signed = Signed { length: 1_000_000, custom: Custom::default() };
        Ok(Found { digest, signed, runs: Some(runs), needs: 2_000_000 })
    }

    fn fetch(&mut self, update: &Update, sight: &Sight<'_>) -> Arrival {
        let total = update.signed.as_ref().map_or(0, |signed| signed.length);
        let digest = update.order.digest;
        let (_, have, _) = self.card.fetched.take_if(|(of, ..)| *of == digest).unwrap_or((digest, 0, true));
        if !sight.connected {
            self.card.fetched = Some((digest, have, true));
            return Arrival::Broken { why: "the hub is not reached".to_owned(), moved: false };
        }
        let have = (have + self.rng.random_range(200_000..900_000)).min(total);
        // Rarely the card forgets some of it after it was checked.
        let sound = !(sight.chaos && self.rng.random_bool(0.02));
        self.card.fetched = Some((digest, have, sound));
        match have == total {
            true => Arrival::Whole,
            false => Arrival::Broken { why: "the connection broke".to_owned(), moved: true },
        }
    }

    fn switch_agent(&mut self, update: &Update) -> (Input, Fate) {
        let digest = update.order.digest;
        if self.own_release().digest == digest {
            return (Input::Switched(Ok(Switched::Done)), Fate::Lives);
        }
        let record = &mut self.card.launch;
        if let Some(undone) = record.undone.as_ref().filter(|undone| undone.release.digest == digest) {
            let trouble = Trouble::lasting(undone.why.code(), undone.why.message());
            return (Input::Switched(Err(trouble)), Fate::Lives);
        }
        if record.trial.as_ref().is_none_or(|trial| trial.release.digest != digest) {
            let probation = update.order.probation_ms.map_or(PROBATION, Duration::from_millis);
            let release = launch::Release { version: update.order.target.version.clone(), digest };
            record.offer(release, probation + REACH + SLACK);
            self.came_to_run(digest);
        }
        (Input::Switched(Ok(Switched::Away)), Fate::Ends(200))
    }

    /// The agent ends so that its launcher starts what is to run.
    fn restart(&mut self, now: u64) -> Fate {
        self.book(Exit::Code(launch::AGAIN), false, now);
        Fate::Ends(200)
    }

    fn probe(&self, update: &Update, how: How, sight: &Sight<'_>) -> Health {
        let kind = update.order.target.kind;
        let runs = if kind == Kind::Agent { self.own_release().digest } else { self.card.skill.digest };
        if runs != update.order.digest {
            let undone = self.card.launch.undone.as_ref();
            let code = undone.map_or("not_running", |undone| undone.why.code());
            return Health::Sick(Trouble::lasting(code, "another release runs"));
        }
        let Stage::Probation(trial) = &update.stage else { return Health::Well };
        let since = trial.since.up(&time(sight)).unwrap_or_default();
        match how {
            How::Good | How::Later(_) => Health::Well,
            How::Hangs => Health::NotYet("it says nothing".to_owned()),
            How::Sick if sight.at.up < since + SICK_AFTER => Health::Well,
            How::Sick | How::Crashes | How::Forged => {
                Health::Sick(Trouble::lasting("probe_failed", "it does not work"))
            }
        }
    }

    /// What was confirmed is left by itself; the process may have to end for it.
    fn regret(&mut self, digest: Digest, said: &mut Said) -> Option<Fate> {
        self.lines.push(format!("{digest:.8?} fails after it was confirmed"));
        if self.card.skill.digest == digest
            && let Some(before) = self.card.before.take()
        {
            self.card.skill = before.clone();
            self.card.told = before;
            let versions = self.versions();
            said.events.push((RUNNING, value(&versions)));
            said.versions = Some(versions);
        }
        let is_own = self.own_release().digest == digest && self.card.launch.undo(digest, "failed_later");
        is_own.then_some(Fate::Ends(500))
    }

    fn came_to_run(&mut self, digest: Digest) {
        self.ran.insert(digest);
        *self.switches.entry(digest).or_default() += 1;
    }
}

fn time(sight: &Sight<'_>) -> Time {
    let hub_ms = sight.heard.map(|(ms, at)| {
        ms.saturating_add(i64::try_from(sight.at.up.saturating_sub(at).as_millis()).unwrap_or(i64::MAX))
    });
    let own_ms = (sight.at.clock == fleet_schemas::batch::Clock::Synced).then_some(sight.at.wall_ms);
    Time { now: sight.at, boot: sight.boot, true_ms: hub_ms.or(own_ms) }
}

fn value(versions: &Versions) -> Value {
    Value::serialized(versions).expect("versions have only texts under text keys")
}

fn word(text: &str) -> MetricName {
    MetricName::parse(text).expect("our own words are valid")
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
