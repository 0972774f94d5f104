//! The power fails at every sync of a scripted life with the hub's configuration, before and after the sync reached the
//! card.
//!
//! Whatever happens: the node ends with what the hub desires, or with the one before it and one failure;
//! what failed is not tried again unasked, no document is tried without end, and nothing older is taken.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, time::Duration};

use fleet_edge_agent::{
    core::{
        Now,
        config::{Doc, Running, STARTS, failed},
    },
    store::sim_disk::SimFile,
    uplink::{Config, Error, Profile, Uplink},
};
use fleet_schemas::{
    NodeId, SessionId, StoreId, StreamId, Topic, VERSION,
    ack::{Ack, StreamAck, Verdict},
    batch::Clock,
    cbor::{self, Unpacker},
    config::{Desired, Failed, Held, Reported, Version, hash},
    session::{Birth, Heartbeat, Versions},
    topic::{Down, Up},
};
use serde_json::{Value, json};

const STORE: StoreId = StoreId([1; 16]);
/// How long a document has to prove itself, in seconds.
const PROBATION_S: u64 = 60;

/// What a document does to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Good,
    /// It does not pass the self-check.
    Bad,
    /// The hub cannot be reached while it runs.
    Cuts,
    /// No agent can read it.
    Unreadable,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The hub desires the next version.
    Want(Kind),
    /// An operator asks to try it again.
    Retry,
    /// The line is down, or no longer.
    Line(bool),
    /// Time passes, in seconds.
    Pass(u64),
    /// The agent is killed and started again.
    Restart,
    /// The machine is booted again.
    Reboot,
}

struct World {
    card: SimFile,
    uplink: Option<Uplink>,
    up_ms: u64,
    starts: u8,
    sessions: u8,
    session: Option<SessionId>,
    line: bool,
    // What the hub desires: version, kind, retry.
    desired: (u64, Kind, u64),
    kinds: BTreeMap<u64, Kind>,
    said: Option<(u64, u64, SessionId)>,
    reported: Option<Reported>,
    marks: BTreeMap<StreamId, u64>,
    unpacker: Unpacker,
    // The document that the node's programs see.
    runs: Option<Kind>,
    tried: BTreeMap<(u64, u64), u32>,
    // How each try ended: a failure as the hub heard it, or proven by the hub's word.
    over: BTreeMap<(u64, u64), String>,
    received: u64,
}

fn document(n: u64, kind: Kind) -> Vec<u8> {
    match kind {
        Kind::Good => cbor::encode(&json!({"n": n})),
        Kind::Bad => cbor::encode(&json!({"n": n, "apps": "bad"})),
        Kind::Cuts => cbor::encode(&json!({"n": n, "apps": "cuts"})),
        Kind::Unreadable => vec![0xff, u8::try_from(n).unwrap()],
    }
}

fn kind(doc: &Doc) -> Kind {
    let doc: Value = cbor::decode(&doc.bytes).unwrap();
    match doc["apps"].as_str() {
        Some("bad") => Kind::Bad,
        Some("cuts") => Kind::Cuts,
        _ => Kind::Good,
    }
}

impl World {
    fn new() -> Self {
        Self {
            card: SimFile::new(),
            uplink: None,
            up_ms: 0,
            starts: 0,
            sessions: 0,
            session: None,
            line: true,
            desired: (0, Kind::Good, 0),
            kinds: BTreeMap::new(),
            said: None,
            reported: None,
            marks: BTreeMap::new(),
            unpacker: Unpacker::default(),
            runs: None,
            tried: BTreeMap::new(),
            over: BTreeMap::new(),
            received: 0,
        }
    }

    fn now(&self) -> Now {
        Now { wall_ms: self.up_ms as i64, up: Duration::from_millis(self.up_ms), clock: Clock::Unsynced }
    }

    fn start(&mut self) -> Result<(), Error> {
        self.starts += 1;
        let profile = Profile {
            node: NodeId::parse("crash").unwrap(),
            boot: [1; 8],
            instance: None,
            kind: "picclaw".to_owned(),
            name: None,
            capabilities: Vec::new(),
            versions: Versions::default(),
            machine: BTreeMap::new(),
            heartbeat: Duration::from_secs(30),
        };
        let stream = StreamId([self.starts; 16]);
        let mut uplink = Uplink::open(self.card.backend(), profile, Config::default(), stream, self.now())?;
        // A start that only gets here has not tried anything.
        uplink.take_config(Duration::from_secs(PROBATION_S), Running::Unknown, None, self.now())?;
        self.uplink = Some(uplink);
        Ok(())
    }

    fn uplink(&mut self) -> &mut Uplink {
        self.uplink.as_mut().expect("the agent runs")
    }

    fn die(&mut self) {
        (self.uplink, self.session) = (None, None);
        self.runs = None;
    }

    /// The power fails and comes back.
    fn crash(&mut self) {
        self.die();
        self.card.crash();
        self.start().unwrap();
    }

    fn run(&mut self, step: Step) -> Result<(), Error> {
        match step {
            Step::Want(kind) => {
                self.desired = (self.desired.0 + 1, kind, 0);
                self.kinds.insert(self.desired.0, kind);
            }
            Step::Retry => self.desired.2 += 1,
            Step::Line(up) => self.line = up,
            Step::Pass(seconds) => {
                for _ in 0..seconds {
                    self.up_ms += 1_000;
                    self.talk()?;
                }
            }
            Step::Restart | Step::Reboot => {
                self.die();
                if matches!(step, Step::Reboot) {
                    self.up_ms = 1_000;
                }
                self.start()?;
            }
        }
        self.talk()
    }

    /// Applies what is handed out.
    fn apply(&mut self) -> Result<(), Error> {
        while let Some(run) = self.uplink().config_run() {
            let which = run.doc.as_ref().map(|doc| doc.held);
            let kind = run.doc.as_ref().map(kind);
            if let (true, Some(held)) = (run.trial, which) {
                let key = (held.version.n, held.retry);
                let tried = self.tried.entry(key).or_default();
                *tried += 1;
                assert!(*tried <= STARTS, "{key:?} is tried {tried} times");
                assert!(
                    self.over.get(&key).is_none_or(|code| code == "applied"),
                    "{key:?} is tried although it failed"
                );
            }
            let bad = kind == Some(Kind::Bad);
            assert!(run.trial || !bad, "what did not pass is not returned to");
            let end = if bad { Err(failed("self_check", "bad".to_owned())) } else { Ok(()) };
            if !bad {
                self.runs = kind;
            }
            let now = self.now();
            self.uplink().config_ran(which, end, now)?;
        }
        Ok(())
    }

    fn reached(&self) -> bool {
        self.line && self.runs != Some(Kind::Cuts)
    }

    fn talk(&mut self) -> Result<(), Error> {
        loop {
            self.apply()?;
            let now = self.now();
            match (self.reached(), self.session) {
                (true, None) => {
                    self.sessions += 1;
                    let session = SessionId([self.sessions; 8]);
                    self.session = Some(session);
                    self.uplink().connected(session, now);
                }
                (false, Some(_)) => {
                    self.session = None;
                    self.uplink().disconnected();
                }
                (true, Some(_)) | (false, None) => {}
            }
            let outgoing = self.uplink().poll(now)?;
            let Some(session) = self.session else {
                // What time brought may be applied.
                return self.apply();
            };
            if outgoing.is_empty() {
                // A change is said at once; later, as long as the node tells that it lacks it.
                let news = self.said.replace((self.desired.0, self.desired.2, session));
                let Some(desired) = self.wish(session).filter(|_| news != self.said) else { return Ok(()) };
                self.uplink().receive(Down::Config, &cbor::encode(&desired), now)?;
                continue;
            }
            for message in outgoing {
                let Topic::Up(_, up) = message.topic else { panic!("a node speaks upwards") };
                if let Some(ack) = self.hear(up, &message.payload, session) {
                    self.uplink().receive(Down::Ack, &cbor::encode(&ack), now)?;
                    self.note_applied();
                }
                if let Some(desired) = self.wish(session) {
                    self.uplink().receive(Down::Config, &cbor::encode(&desired), now)?;
                    self.apply()?;
                }
            }
        }
    }

    /// The hub's word proves what runs.
    fn note_applied(&mut self) {
        let view = self.uplink().config_view();
        if view.state == "applied"
            && let Some(held) = view.reported.received
        {
            let before = self.over.insert((held.version.n, held.retry), "applied".to_owned());
            assert!(before.is_none_or(|code| code == "applied"), "{held:?} ended otherwise before");
        }
    }

    /// What the hub says as long as the node has not received it.
    fn wish(&self, session: SessionId) -> Option<Desired> {
        let (n, kind, retry) = self.desired;
        let doc = document(n, kind);
        let held = Held { version: Version { epoch: 0, n }, hash: hash(&doc), retry };
        let received = self.reported.as_ref()?.received;
        (n > 0 && received != Some(held)).then_some(Desired {
            v: VERSION,
            store_id: STORE,
            session,
            hub_ms: 0,
            version: held.version,
            doc,
            retry,
        })
    }

    fn hear(&mut self, up: Up, payload: &[u8], session: SessionId) -> Option<Ack> {
        let lanes = BTreeMap::new();
        let mut ack =
            Ack { v: VERSION, store_id: STORE, session, birth: false, hub_ms: 0, credit: 16, lanes };
        let plain = self.unpacker.unpack(payload).unwrap();
        let mark = |marks: &BTreeMap<StreamId, u64>, stream| {
            let seq = marks.get(&stream).copied().unwrap_or(0);
            StreamAck { stream, seq, verdict: Verdict::Ok }
        };
        let reported = match up {
            Up::Birth => {
                let birth: Birth = cbor::decode(plain).unwrap();
                ack.birth = true;
                for (lane, states) in &birth.lanes {
                    let told = states.iter().map(|state| mark(&self.marks, state.stream));
                    ack.lanes.insert(*lane, told.collect());
                }
                birth.config
            }
            Up::Heartbeat => cbor::decode::<Heartbeat>(plain).unwrap().config,
            Up::Death => return None,
            Up::Lane(lane) => panic!("nothing is submitted: {lane:?}"),
        };
        let reported = reported.expect("it takes documents");
        let n = reported.received.map_or(0, |held| held.version.n);
        assert!(n >= self.received, "{n} was received after {}", self.received);
        self.received = n;
        if let (Some(held), Some(failed)) = (reported.received, &reported.failed) {
            let before = self.over.insert((held.version.n, held.retry), failed.code.clone());
            assert!(before.is_none_or(|code| code == failed.code), "{held:?} ended otherwise before");
        }
        self.reported = Some(reported);
        (up == Up::Birth).then_some(ack)
    }

    /// Everything comes to its end.
    fn settle(&mut self) {
        self.run(Step::Line(true)).unwrap();
        self.run(Step::Pass(2 * PROBATION_S)).unwrap();
        let (n, wanted, retry) = self.desired;
        let Reported { received, applied, failed } = self.reported.clone().unwrap();
        let (received, applied) = (received.unwrap().version.n, applied.map(|held| held.version.n));
        assert_eq!(received, n);
        match failed {
            None => assert_eq!((applied, wanted), (Some(n), Kind::Good)),
            Some(Failed { code, .. }) => {
                assert_ne!(applied, Some(n));
                // Power that fails at bad moments ends a good one's tries too, but never that early.
                let expected: &[&str] = match wanted {
                    Kind::Good => panic!("{code}"),
                    Kind::Bad => &["self_check"],
                    Kind::Cuts => &["lost_hub"],
                    Kind::Unreadable => &["invalid"],
                };
                assert!(expected.contains(&code.as_str()), "{wanted:?}: {code}");
                assert_eq!(self.over[&(n, retry)], code);
            }
        }
        assert!(applied.is_none_or(|n| self.kinds[&n] == Kind::Good), "{applied:?} runs");
    }
}

fn script() -> Vec<Step> {
    use Kind::{Bad, Cuts, Good, Unreadable};
    use Step::{Line, Pass, Reboot, Restart, Retry, Want};
    vec![
        Pass(1),
        Want(Good),
        Pass(10),
        // Killed on probation.
        Want(Good),
        Pass(1),
        Restart,
        Pass(10),
        Want(Bad),
        Pass(5),
        Restart,
        Pass(5),
        Retry,
        Pass(5),
        // Overtaken on probation.
        Want(Good),
        Want(Good),
        Pass(8),
        Want(Cuts),
        Pass(20),
        Reboot,
        Pass(PROBATION_S + 5),
        Retry,
        Pass(PROBATION_S + 5),
        Want(Unreadable),
        Pass(5),
        // The line is down when it matters, for a while.
        Want(Good),
        Pass(1),
        Line(false),
        Pass(PROBATION_S / 2),
        Line(true),
        Pass(5),
    ]
}

#[test]
fn the_power_may_fail_at_any_sync_while_documents_are_tried() {
    let whole = |endings: &[Step]| {
        let mut world = World::new();
        world.start().unwrap();
        for step in script().into_iter().chain(endings.iter().copied()) {
            world.run(step).unwrap();
        }
        let syncs = world.card.syncs();
        world.settle();
        (world, syncs)
    };
    let (world, script_syncs) = whole(&[]);
    let expected = BTreeMap::from([
        ((1, 0), "applied"),
        ((2, 0), "applied"),
        ((3, 0), "self_check"),
        ((3, 1), "self_check"),
        ((5, 0), "applied"),
        ((6, 0), "lost_hub"),
        ((6, 1), "lost_hub"),
        ((7, 0), "invalid"),
        ((8, 0), "applied"),
    ]);
    assert_eq!(
        world.over.iter().map(|(key, code)| (*key, code.as_str())).collect::<BTreeMap<_, _>>(),
        expected
    );
    for ending in [Kind::Cuts, Kind::Bad, Kind::Good] {
        let endings = [Step::Want(ending), Step::Pass(5)];
        let (_, syncs) = whole(&endings);
        assert!(syncs > 30, "{syncs}");
        // What comes before the ending is the same for all.
        let first = if ending == Kind::Cuts { 1 } else { script_syncs };
        for sync in first..=syncs {
            for reaches in [false, true] {
                let mut world = World::new();
                match reaches {
                    true => world.card.freeze_after(sync),
                    false => world.card.freeze_at(sync),
                }
                let mut crashed = world.start().is_err();
                if crashed {
                    world.crash();
                }
                for step in script().into_iter().chain(endings) {
                    if world.run(step).is_err() {
                        assert!(!crashed, "sync {sync}: the card failed a second time");
                        crashed = true;
                        world.crash();
                    }
                }
                world.settle();
            }
        }
    }
}

#[test]
fn a_card_that_knows_no_configuration_is_read_and_written() {
    // What an agent leaves that takes no documents.
    let mut world = World::new();
    let open = |world: &World| {
        let profile = Profile {
            node: NodeId::parse("older").unwrap(),
            boot: [1; 8],
            instance: None,
            kind: String::new(),
            name: None,
            capabilities: Vec::new(),
            versions: Versions::default(),
            machine: BTreeMap::new(),
            heartbeat: Duration::from_secs(30),
        };
        Uplink::open(world.card.backend(), profile, Config::default(), StreamId([9; 16]), world.now())
            .unwrap()
    };
    let mut older = open(&world);
    older.connected(SessionId([1; 8]), world.now());
    let birth = older.poll(world.now()).unwrap().remove(0);
    let birth: Birth = cbor::decode(Unpacker::default().unpack(&birth.payload).unwrap()).unwrap();
    assert_eq!(birth.config, None);
    drop(older);
    world.start().unwrap();
    world.run(Step::Want(Kind::Good)).unwrap();
    world.settle();
    // And back: it leaves the rows alone.
    world.die();
    drop(open(&world));
    world.start().unwrap();
    assert_eq!(world.uplink().config_view().state, "applied");
}
