//! The local front over real sockets: boards as they are in the field, spoken by hand where no library would say it.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests")]
#![expect(clippy::disallowed_methods, reason = "deadlines of a test that waits for another thread")]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use fleet_broker::{
    Credentials, PublishLimit, Reason, Refusal, Stats,
    local::{Config, Front, Gatekeeper, Heard, On, PACKET_BYTES, Speaker, Untold, Word},
};
use fleet_schemas::DeviceId;
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    time,
};

/// Open, but for users: those need the password `secret`.
struct Keeper;

impl Gatekeeper for Keeper {
    fn admit(&self, credentials: &Credentials<'_>) -> Result<Option<DeviceId>, Refusal> {
        match (credentials.user, credentials.password) {
            (None, None) => Ok(None),
            (Some(user), Some(b"secret")) => Ok(Some(device(user))),
            _ => Err(Refusal::BadCredentials),
        }
    }
}

/// A running front, and what it hears.
struct Site {
    address: SocketAddr,
    heard: mpsc::Receiver<Heard>,
    speaker: Speaker,
    stats: Arc<Stats>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    runtime: runtime::Runtime,
}

const PATIENCE: Duration = Duration::from_secs(20);

fn device(id: &str) -> DeviceId {
    DeviceId::parse(id).unwrap()
}

fn site(change: impl FnOnce(&mut Config)) -> Site {
    let mut config = Config { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..Config::default() };
    change(&mut config);
    let (ready, front) = std::sync::mpsc::channel();
    let (stop, stopping) = oneshot::channel::<()>();
    let thread = thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let front = Front::bind(config).unwrap();
            // Little room: whoever floods is held up.
            let (heard, hearing) = mpsc::channel(4);
            ready.send((front.address(), front.speaker(), front.stats(), hearing)).unwrap();
            let stop = async move { drop(stopping.await) };
            front.serve(Arc::new(Keeper), heard, stop).await;
        });
    });
    let (address, speaker, stats, heard) = front.recv().unwrap();
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    Site { address, heard, speaker, stats, stop: Some(stop), thread: Some(thread), runtime }
}

impl Site {
    fn next(&mut self) -> Heard {
        let next = async { time::timeout(PATIENCE, self.heard.recv()).await };
        self.runtime.block_on(next).expect("nothing was heard in time").expect("the front is gone")
    }

    fn tell(&self, id: &str, payload: &[u8]) -> Result<(), Untold> {
        let told = async { time::timeout(PATIENCE, self.speaker.tell(&device(id), payload)).await };
        self.runtime.block_on(told).expect("it was neither told nor not")
    }

    fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !done(self) {
            assert!(std::time::Instant::now() < deadline, "{what}");
            thread::yield_now();
        }
    }

    fn client(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }

    /// A board without a password.
    fn board(&self, client_id: &str) -> Client {
        let mut client = self.client();
        client.say(&connect(client_id, None, 4, false));
        assert_eq!(client.read(4), [0x20, 2, 0, 0], "{client_id}");
        client
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.heard.close();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Client(TcpStream);

impl Client {
    fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Whether the other end closed, after what else it said.
    fn closed(&mut self) -> bool {
        let mut rest = vec![];
        match self.0.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut length = body.len();
    loop {
        let byte = u8::try_from(length & 0x7F).unwrap();
        length >>= 7;
        out.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

fn connect(client_id: &str, login: Option<(&str, &str)>, version: u8, will: bool) -> Vec<u8> {
    let mut body = vec![];
    text(&mut body, "MQTT");
    let flags = 2 | if login.is_some() { 0xC0 } else { 0 } | if will { 4 } else { 0 };
    body.extend_from_slice(&[version, flags, 0, 60]);
    if version == 5 {
        body.push(0);
    }
    text(&mut body, client_id);
    if will {
        text(&mut body, "clawland/x/status");
        text(&mut body, "{}");
    }
    if let Some((user, password)) = login {
        text(&mut body, user);
        text(&mut body, password);
    }
    packet(0x10, &body)
}

fn publish(topic: &str, payload: &[u8], id: Option<u16>) -> Vec<u8> {
    let mut body = vec![];
    text(&mut body, topic);
    if let Some(id) = id {
        body.extend_from_slice(&id.to_be_bytes());
    }
    body.extend_from_slice(payload);
    packet(if id.is_some() { 0x32 } else { 0x30 }, &body)
}

fn subscribe(filter: &str) -> Vec<u8> {
    let mut body = vec![0, 1];
    text(&mut body, filter);
    body.push(0);
    packet(0x82, &body)
}

#[test]
fn what_a_board_says_is_heard_in_order_and_what_it_is_told_arrives() {
    let mut site = site(|_| {});
    let mut board = site.board("esp-1");
    let said = [
        publish("clawland/shed/status", b"{\"status\":\"online\"}", None),
        publish("clawland/shed/sensors/temperature", b"{\"value\":23.50,\"unit\":\"C\"}", None),
        subscribe("clawland/shed/cmd"),
    ];
    board.say(&said.concat());
    let words: Vec<_> = (0..4).map(|_| site.next()).collect();
    assert!(words.iter().all(|heard| heard.device == device("shed") && heard.session == words[0].session));
    assert!(matches!(words[0].word, Word::Bound { proven: false }));
    assert!(matches!(&words[1].word, Word::Said { on: On::Status, ack: None, .. }));
    let Word::Said { on: On::Sensor(kind), payload, .. } = &words[2].word else { panic!("{:?}", words[2]) };
    assert_eq!(
        (kind.as_str(), payload.as_slice()),
        ("temperature", &b"{\"value\":23.50,\"unit\":\"C\"}"[..])
    );
    assert!(matches!(words[3].word, Word::Hears(true)));
    assert_eq!(board.read(5), [0x90, 3, 0, 1, 0]);
    assert_eq!(site.speaker.presence(&device("shed")), (true, true));

    assert_eq!(site.tell("shed", b"{\"action\":\"restart\"}"), Ok(()));
    let command = publish("clawland/shed/cmd", b"{\"action\":\"restart\"}", None);
    assert_eq!(board.read(command.len()), command);
    assert_eq!(site.tell("barn", b"{}"), Err(Untold::Away));
    assert_eq!(site.tell("shed", &[b'x'; PACKET_BYTES]), Err(Untold::TooLarge));

    board.say(&[0xE0, 0]);
    assert!(matches!(site.next().word, Word::Gone));
    assert_eq!(site.speaker.presence(&device("shed")), (false, false));
    assert_eq!(site.tell("shed", b"{}"), Err(Untold::Away));
}

#[test]
fn a_message_at_qos_1_is_acknowledged_when_the_listener_says_so() {
    let mut site = site(|_| {});
    let mut board = site.board("esp-1");
    board.say(&publish("clawland/shed/status", b"{}", Some(513)));
    assert!(matches!(site.next().word, Word::Bound { proven: false }));
    let Word::Said { ack: Some(ack), .. } = site.next().word else { panic!("no ack is asked for") };
    // An answer to this comes before the acknowledgement, which is not due.
    board.say(&[0xC0, 0]);
    assert_eq!(board.read(2), [0xD0, 0]);
    ack.done();
    assert_eq!(board.read(4), [0x40, 2, 2, 1]);
}

#[test]
fn a_password_says_whose_session_it_is_and_a_wrong_one_opens_none() {
    let mut site = site(|_| {});
    let mut wrong = site.client();
    wrong.say(&connect("c", Some(("shed", "guess")), 4, false));
    assert_eq!(wrong.read(4), [0x20, 2, 0, 4]);
    assert!(wrong.closed());
    let mut right = site.client();
    right.say(&connect("c", Some(("shed", "secret")), 4, false));
    assert_eq!(right.read(4), [0x20, 2, 0, 0]);
    let bound = site.next();
    assert!(bound.device == device("shed") && matches!(bound.word, Word::Bound { proven: true }));
    // Held to it, whatever its client id and topics say.
    right.say(&publish("clawland/barn/status", b"{}", None));
    assert!(right.closed());
    assert!(matches!(site.next().word, Word::Gone));
    assert_eq!(site.stats.reason(Reason::BadCredentials), 1);
    assert_eq!(site.stats.reason(Reason::PublishDenied), 1);
    assert_eq!(site.stats.up_messages.get(), 0);
}

#[test]
fn what_a_board_would_not_say_is_refused_and_neighbours_go_on() {
    let mut site = site(|_| {});
    let mut neighbour = site.board("neighbour");
    let topic = "clawland/shed/status";
    let most = PACKET_BYTES - 3 - 2 - topic.len();
    let mut fits = site.board("fits");
    fits.say(&publish(topic, &vec![b' '; most], None));
    assert!(matches!(site.next().word, Word::Bound { proven: false }));
    assert!(matches!(site.next().word, Word::Said { .. }));
    for (packet, reason) in [
        (publish(topic, &vec![b' '; most + 1], None), Reason::TooLarge),
        (vec![0x30, 0xFF, 0xFF, 0xFF, 0x7F], Reason::TooLarge),
        (publish("clawland/shed/cmd", b"{}", None), Reason::PublishDenied),
        (publish("fleet/v1/edge-1/up/event", b"{}", None), Reason::PublishDenied),
        (vec![0x34, 6, 0, 1, b'a', 0, 1, b'x'], Reason::Qos),
        (vec![0x00, 0], Reason::Malformed),
        (connect("again", None, 4, false), Reason::Protocol),
    ] {
        let before = site.stats.reason(reason);
        let mut bad = site.board("bad");
        bad.say(&packet);
        assert!(bad.closed(), "{reason:?}");
        assert_eq!(site.stats.reason(reason), before + 1, "{reason:?}");
    }
    for (first, answer, reason) in [
        (connect("v5", None, 5, false), &[0x20, 3, 0, 0x84, 0][..], Reason::Version),
        (connect("v3", None, 3, false), &[0x20, 2, 0, 1], Reason::Version),
        (connect("will", None, 4, true), &[0x20, 2, 0, 5], Reason::WillDenied),
        (connect(&"x".repeat(129), None, 4, false), &[0x20, 2, 0, 2], Reason::ClientId),
        (publish(topic, b"{}", None), &[], Reason::ConnectFirst),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), &[], Reason::ConnectFirst),
    ] {
        let before = site.stats.reason(reason);
        let mut bad = site.client();
        bad.say(&first);
        assert_eq!(bad.read(answer.len()), answer);
        assert!(bad.closed(), "{reason:?}");
        assert_eq!(site.stats.reason(reason), before + 1, "{reason:?}");
    }
    neighbour.say(&[0xC0, 0]);
    assert_eq!(neighbour.read(2), [0xD0, 0]);
}

#[test]
fn who_floods_is_held_up_while_a_neighbour_is_heard() {
    let limit = PublishLimit { messages_per_s: 50, bytes_per_s: 1 << 20, burst: Duration::from_secs(1) };
    let mut site = site(|config| config.publish_limit = limit);
    let mut flood = site.board("flood");
    let line = publish("clawland/flood/sensors/t", b"{\"value\":1}", None);
    let writer = {
        let mut socket = flood.0.try_clone().unwrap();
        thread::spawn(move || {
            // Until the socket is closed, or takes no more.
            socket.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
            while socket.write_all(&line).is_ok() {}
        })
    };
    let mut neighbour = site.board("calm");
    neighbour.say(&publish("clawland/calm/sensors/t", b"{\"value\":2}", None));
    let mut flooded = 0;
    loop {
        let heard = site.next();
        if heard.device == device("calm") && matches!(heard.word, Word::Said { .. }) {
            break;
        }
        flooded += 1;
        assert!(flooded < 2_000, "the neighbour is not heard");
    }
    while site.stats.throttles.get() == 0 {
        site.next();
    }
    assert_eq!(site.stats.sessions.get(), 2, "nobody is cut off for it");
    flood.0.shutdown(std::net::Shutdown::Both).unwrap();
    writer.join().unwrap();
    assert_eq!(flood.0.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn sessions_are_bounded_and_the_same_client_takes_its_own_place() {
    let site = site(|config| config.max_sessions = 2);
    let mut one = site.board("one");
    let _two = site.board("two");
    let mut three = site.client();
    three.say(&connect("three", None, 4, false));
    assert_eq!(three.read(4), [0x20, 2, 0, 3]);
    let mut again = site.board("one");
    assert!(one.closed());
    again.say(&[0xC0, 0]);
    assert_eq!(again.read(2), [0xD0, 0]);
    site.until("one session is over", |site| site.stats.sessions.get() == 2);
}

#[test]
fn a_stop_ends_all_sessions() {
    let mut site = site(|_| {});
    let mut board = site.board("one");
    board.say(&publish("clawland/shed/status", b"{}", None));
    assert!(matches!(site.next().word, Word::Bound { proven: false }));
    drop(site.stop.take());
    let mut gone = false;
    while !gone {
        gone = matches!(site.next().word, Word::Gone);
    }
    assert!(board.closed());
    assert!(TcpStream::connect(site.address).is_err());
}
