//! Rollouts against scenarios in `scenarios/`: who is there, what is asked for, and below each step what follows.
//!
//! A file is checked as a whole; `FLEET_BLESS=1` writes it anew, to be read before it is committed. A node that is told
//! takes half a minute unless its manner says otherwise.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use fleet_schemas::{DeviceId, update::State as Said};

use super::{
    Act, Head, Id, Seat, Stand, Verdict,
    play::{Manner, Play, millis, name, read_terms},
};

/// So many lines of one kind at one time are told as a number.
const LINES: usize = 4;

struct Script {
    play: Play,
    heads: BTreeMap<Id, Head>,
    stands: BTreeMap<(Id, Seat), Stand>,
    blocked: BTreeMap<Id, String>,
    told: String,
}

impl Script {
    fn wait_until(&mut self, second: i64) {
        while self.play.second < second {
            self.play.tick();
            self.check();
            self.write();
        }
    }

    /// What must hold at any time.
    fn check(&self) {
        for live in self.play.fleet.rollouts.all() {
            let Some(most) = live.head.spec.terms.max_unavailable else { continue };
            if most.per_site {
                assert!(live.down_by_site().values().all(|down| *down <= most.nodes), "{}", self.told);
            } else {
                assert!(live.down() <= most.nodes, "{}", self.told);
            }
        }
    }

    fn step(&mut self, words: &[&str]) {
        match words {
            ["node", names, options @ ..] => {
                for id in names_of(names) {
                    let of = |key| option(options, key);
                    let runs = of("runs").unwrap_or("1.1.0");
                    let runs = (runs != "none").then_some(runs);
                    let (arch, kind) = (of("arch").unwrap_or("aarch64"), of("kind").unwrap_or("picclaw"));
                    self.play.add(&id, of("site").unwrap_or(""), arch, kind, runs);
                    if options.contains(&"old-agent") {
                        self.play.sims.get_mut(&id).unwrap().takes = false;
                    }
                    if !options.contains(&"never") {
                        self.play.online(&id);
                    }
                    if options.contains(&"offline") {
                        self.play.group();
                        self.play.offline(&id);
                    }
                }
                self.play.group();
            }
            ["device", node, names, options @ ..] => {
                let of = |key| option(options, key);
                let sim = self.play.sims.get_mut(*node).unwrap();
                for device in names_of(names) {
                    let runs = of("runs").unwrap_or("1.1.0").to_owned();
                    let kind = of("kind").unwrap_or("esp32").to_owned();
                    sim.devices.insert(DeviceId::parse(&device).unwrap(), (kind, Some(runs)));
                }
                self.play.online(node);
                self.play.group();
            }
            ["zone", site, "none"] => {
                self.play.zone(site, None);
            }
            ["zone", site, zone] => {
                self.play.zone(site, Some(zone));
            }
            ["online", names] => {
                names_of(names).iter().for_each(|id| self.play.online(id));
                self.play.group();
            }
            ["offline", names] => {
                names_of(names).iter().for_each(|id| self.play.offline(id));
                self.play.group();
            }
            ["remove", id] => self.play.remove(id),
            ["runs", names, version] => {
                names_of(names).iter().for_each(|id| self.play.run(id, version));
                self.play.group();
            }
            ["manner", names, manner @ ..] => {
                for id in names_of(names) {
                    self.play.sims.get_mut(&id).unwrap().manner = read_manner(manner);
                }
            }
            ["create", version, options @ ..] => {
                let archs: Vec<_> = option(options, "arch").unwrap_or("any").split(',').collect();
                let mut wanted =
                    self.play.wanted(version, &archs, read_terms(options), option(options, "select"));
                if let Some(kind) = option(options, "device-kind") {
                    wanted = self.play.wanted_for(kind, wanted);
                }
                let draft = super::draft(&self.play.fleet, &wanted, self.play.now());
                match draft {
                    Ok(draft) => {
                        draft.plan.text.iter().for_each(|line| self.line(&format!("plan: {line}")));
                        let forecast = &draft.forecast;
                        let (span, mb) = (super::span(forecast.duration_ms), forecast.bytes / 1_000_000);
                        self.line(&format!("forecast: about {span}, {mb} MB"));
                        forecast.warnings.iter().for_each(|line| self.line(&format!("warning: {line}")));
                        if let Err(error) = self.play.create(&wanted) {
                            self.line(&format!("refused: {error}"));
                        }
                    }
                    Err(error) => self.line(&format!("refused: {error}")),
                }
            }
            ["pause", id, ..] => self.act(id, Act::Pause { reason: None }),
            ["resume", id] => self.act(id, Act::Resume),
            ["abort", id] => self.act(id, Act::Abort { reason: None }),
            ["rollback", id] => self.act(id, Act::Rollback { reason: None }),
            ["approve", id, by] => {
                if let Err(error) = self.play.act(id, Act::Approve, &format!("operator {by}")) {
                    self.line(&format!("refused: {error}"));
                }
            }
            ["gate", id, wave, verdict, why @ ..] => {
                let verdict = match *verdict {
                    "pass" => Verdict::Pass,
                    "fail" => Verdict::Fail,
                    "no-data" => Verdict::NoData,
                    other => panic!("{other} is no verdict"),
                };
                let wave = wave.parse::<usize>().unwrap() - 1;
                self.act(id, Act::Gate { wave, verdict, why: why.join(" ") });
            }
            ["restart"] => {
                self.play.restart();
                let ids: Vec<String> =
                    self.play.sims.iter().filter(|(_, sim)| sim.online).map(|(id, _)| id.clone()).collect();
                self.play.group();
                ids.iter().for_each(|id| self.play.online(id));
                self.play.group();
            }
            ["away", span] => {
                self.play.away(millis(span) / 1_000);
                self.play.group();
            }
            ["show", id] => {
                let Some(live) = self.play.fleet.rollouts.get(id) else {
                    self.line(&format!("there is no {id}"));
                    return;
                };
                let tally = live.head.tally();
                let counts: Vec<_> =
                    tally.iter().map(|(stand, many)| format!("{many} {}", stand.as_str())).collect();
                let line = format!("{id} is {}: {}", live.head.state.as_str(), counts.join(", "));
                self.line(&line);
            }
            ["wait"] => {}
            other => panic!("{other:?} is no step"),
        }
        self.check();
        self.write();
    }

    fn act(&mut self, id: &str, act: Act) {
        if let Err(error) = self.play.act(id, act, "operator ada") {
            self.line(&format!("refused: {error}"));
        }
    }

    fn line(&mut self, text: &str) {
        writeln!(self.told, "    {}s {text}", self.play.second).unwrap();
    }

    /// Writes down what changed.
    fn write(&mut self) {
        let mut lines: Vec<(String, String)> = Vec::new();
        let mut states = Vec::new();
        for live in self.play.fleet.rollouts.all() {
            let id = &live.head.spec.id;
            for (seat, member) in live.members() {
                let before = self.stands.insert((id.clone(), seat.clone()), member.stand);
                if before == Some(member.stand) || is_between(member.stand) {
                    continue;
                }
                if before.is_none() && member.stand == Stand::Waiting {
                    continue;
                }
                let node = &self.play.fleet.ids[&seat.0];
                let why = member.reason.as_ref().map_or_else(String::new, |why| format!(": {}", why.message));
                let key = format!("{id} {{}} {}{why}", member.stand.as_str().replace('_', " "));
                let device = if seat.1.is_node() { String::new() } else { format!("/{}", seat.1) };
                lines.push((key, format!("{node}{device}")));
            }
            let before = self.heads.insert(id.clone(), live.head.clone());
            if before.as_ref().map(|head| head.state) != Some(live.head.state) {
                states.push(format!("{id} is {}: {}", live.head.state.as_str(), live.head.reason));
            }
            for (at, wave) in live.head.waves.iter().enumerate() {
                let was = before.as_ref().and_then(|head| head.waves.get(at));
                let is_news = was.is_none_or(|was| was.stage != wave.stage || was.reason != wave.reason);
                if is_news && wave.stage != super::Stage::Waiting {
                    let why =
                        if wave.reason.is_empty() { String::new() } else { format!(": {}", wave.reason) };
                    states.push(format!("{id} wave {} {}{why}", wave.name, wave.stage.as_str()));
                }
            }
            let blocked = live.blocked();
            if self.blocked.get(id).map_or("", String::as_str) != blocked {
                if !blocked.is_empty() {
                    states.push(format!("{id} waits: {blocked}"));
                }
                self.blocked.insert(id.clone(), blocked.to_owned());
            }
        }
        let mut summed: Vec<(String, Vec<String>)> = Vec::new();
        for (key, node) in lines {
            match summed.iter_mut().find(|(known, _)| *known == key) {
                Some((_, nodes)) => nodes.push(node),
                None => summed.push((key, vec![node])),
            }
        }
        for (key, nodes) in summed {
            let who = if nodes.len() > LINES { format!("{} nodes", nodes.len()) } else { nodes.join(", ") };
            self.line(&key.replace("{}", &who));
        }
        states.iter().for_each(|line| self.line(line));
    }
}

/// What an operator need not read of every node.
fn is_between(stand: Stand) -> bool {
    let between = Said::Accepted..=Said::Switching;
    matches!(stand, Stand::Said(said) if between.contains(&said) || said == Said::Probation)
}

fn read_manner(words: &[&str]) -> Manner {
    let text = || words[1..].join(" ");
    match words[0] {
        "good" => Manner::Good,
        "rolls-back" => Manner::RollsBack(text()),
        "fails" => Manner::Fails(text()),
        "full" => Manner::Full,
        "stays" => Manner::Stays,
        "sticks" => Manner::Sticks,
        "rejects" => Manner::Rejects(text()),
        "silent" => Manner::Silent,
        "lies" => Manner::Lies,
        "vanishes" => Manner::Vanishes,
        "unlinked" => Manner::Unlinked,
        "mute" => Manner::Mute,
        "regrets" => Manner::Regrets(millis(words[1]) / 1_000),
        "slow" => Manner::Slow(millis(words[1]) / 1_000),
        other => panic!("{other} is no manner"),
    }
}

/// `a`, `n[1-40]`, or several with commas.
fn names_of(text: &str) -> Vec<String> {
    let one = |text: &str| -> Vec<String> {
        let Some((stem, range)) = text.split_once('[') else { return vec![text.to_owned()] };
        let (from, to) = range.trim_end_matches(']').split_once('-').unwrap();
        let (from, to): (u32, u32) = (from.parse().unwrap(), to.parse().unwrap());
        (from..=to).map(|n| format!("{stem}{n}")).collect()
    };
    text.split(',').flat_map(one).collect()
}

fn option<'a>(options: &[&'a str], key: &str) -> Option<&'a str> {
    options.iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='))
}

fn play(text: &str) -> String {
    let mut script = Script {
        play: Play::new(),
        heads: BTreeMap::new(),
        stands: BTreeMap::new(),
        blocked: BTreeMap::new(),
        told: String::new(),
    };
    for line in text.lines().filter(|line| !line.starts_with("    ")) {
        if line.starts_with('#') || line.is_empty() {
            writeln!(script.told, "{line}").unwrap();
            continue;
        }
        let words: Vec<_> = line.split_whitespace().collect();
        let at = millis(words[0]) / 1_000;
        assert!(at >= script.play.second, "{line}: time goes on");
        script.wait_until(at);
        writeln!(script.told, "{line}").unwrap();
        script.step(&words[1..]);
    }
    script.told
}

/// Four nodes, and a rollout to them.
fn four(terms: super::Terms, ahead_ms: i64) -> Play {
    let mut play = Play::new();
    play.ahead_ms = ahead_ms;
    for node in ["a", "b", "c", "d"] {
        play.add(node, "", "any", "", Some("1.1.0"));
        play.online(node);
    }
    play.group();
    let wanted = play.wanted("1.2.0", &["any"], terms, None);
    play.create(&wanted).unwrap();
    play
}

fn ends(mut play: Play) -> (super::State, String) {
    let until = play.second + 1_000;
    while play.second < until {
        play.tick();
    }
    let live = play.fleet.rollouts.get("greeter-1.2.0-1").unwrap();
    (live.head.state, live.head.reason.clone())
}

#[test]
fn a_clock_that_was_ahead_holds_nobody_up_once_it_is_set() {
    let terms = super::Terms { rate: Some(60.0), ..super::play::terms() };
    let mut play = four(terms, 60 * 86_400_000);
    // The first is confirmed, and the wave is watched.
    for _ in 0..40 {
        play.tick();
    }
    play.ahead_ms = 0;
    play.away(1);
    assert_eq!(ends(play), (super::State::Done, "4 nodes confirmed".to_owned()));
}

#[test]
fn a_clock_that_is_set_right_after_a_start_gives_nobody_up() {
    let mut play = four(super::play::terms(), 0);
    for _ in 0..10 {
        play.tick();
    }
    play.away(1);
    // By as much as the hub was off, and more than a node has.
    play.ahead_ms += 20 * 60_000;
    assert_eq!(ends(play), (super::State::Done, "4 nodes confirmed".to_owned()));
}

#[test]
fn scenarios_go_as_written() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/core/rollout/scenarios"));
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 29, "{files:?}");
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let played = play(&text);
        if std::env::var_os("FLEET_BLESS").is_some() {
            fs::write(&path, &played).unwrap();
            continue;
        }
        assert!(played == text, "{} goes otherwise:\n{played}", path.display());
    }
}

#[test]
fn a_name_counts_on_and_leaves_room() {
    let mut play = Play::new();
    play.add("a", "", "any", "", Some("1.1.0"));
    play.online("a");
    play.group();
    let wanted = play.wanted("1.2.0", &["any"], super::play::terms(), None);
    assert_eq!(wanted.id, name("greeter-1.2.0-1"));
    play.create(&wanted).unwrap();
    assert_eq!(play.wanted("1.2.0", &["any"], super::play::terms(), None).id, name("greeter-1.2.0-2"));
    let long = super::Release {
        name: name(&"n".repeat(60)),
        version: name(&"1".repeat(60)),
        ..super::play::release("1.2.0", &["any"])
    };
    assert!(play.fleet.rollouts.next_id(&long).as_str().len() <= 51);
}

#[test]
fn a_part_in_percent_is_as_many_as_it_says() {
    use super::plan::{at_most, percent};
    for written in 0..=1_000_u32 {
        let part = f64::from(written) / 10.0 / 100.0;
        assert_eq!(at_most(part, 1_000), written);
        assert_eq!(percent(part), format!("{}%", f64::from(written) / 10.0));
    }
    assert_eq!((at_most(0.02, 49), at_most(0.02, 50), at_most(1.0, 7)), (0, 1, 7));
}
