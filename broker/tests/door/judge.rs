//! Verdicts that take time: the connection waits, the others do not.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
};

use fleet_broker::{Broker, Config, Credentials, Directory, Identity, Reason, Refusal, Verdict};
use fleet_schemas::NodeId;

use crate::{
    receive, until,
    wire::{Client, Hello, publish},
};

/// Lets nodes called `quick-…` in at once, and all others when the test says so.
struct Thinking {
    go: Arc<Mutex<mpsc::Receiver<()>>>,
    /// Verdicts that somebody thought about.
    begun: Arc<AtomicUsize>,
}

impl Directory for Thinking {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict {
        let node = NodeId::parse(credentials.client_id).map_err(|_| Refusal::ClientId);
        if credentials.client_id.starts_with("quick") {
            return node.map(Identity::Node).into();
        }
        let (go, begun) = (self.go.clone(), self.begun.clone());
        Verdict::Later(Box::new(move || {
            begun.fetch_add(1, SeqCst);
            go.lock().unwrap().recv().map_err(|_| Refusal::Unavailable)?;
            node.map(Identity::Node)
        }))
    }
}

fn plane() -> (Broker, fleet_broker::Link, mpsc::Sender<()>) {
    let (broker, link, say, _) = plane_that_counts();
    (broker, link, say)
}

fn plane_that_counts() -> (Broker, fleet_broker::Link, mpsc::Sender<()>, Arc<AtomicUsize>) {
    let (say, go) = mpsc::channel();
    let config = Config { mqtt: "127.0.0.1:0".parse().unwrap(), gate_threads: 1, ..Config::default() };
    let begun = Arc::new(AtomicUsize::new(0));
    let directory = Thinking { go: Arc::new(Mutex::new(go)), begun: begun.clone() };
    let (broker, link) = Broker::start(config, Arc::new(directory)).unwrap();
    (broker, link, say, begun)
}

#[test]
fn a_session_waits_for_its_verdict_with_all_it_said_and_others_do_not() {
    let (broker, mut link, say) = plane();
    let mut slow = Client::plain(broker.mqtt_addr());
    let topic = "fleet/v1/slow-1/up/event";
    let mut bytes = Hello::new(5, "slow-1").bytes();
    bytes.extend(publish(5, 0x32, topic, 1, b"at once"));
    let (head, tail) = bytes.split_at(bytes.len() - 3);
    slow.send(head);
    let mut quick = Client::plain(broker.mqtt_addr()).open(&Hello::new(4, "quick-1"));
    quick.say(4, "fleet/v1/quick-1/up/event", b"x");
    slow.send(tail);
    slow.send(&publish(5, 0x32, topic, 2, b"later"));
    assert_eq!(receive(&mut link, 1)[0].topic.to_string(), "fleet/v1/quick-1/up/event");
    assert_eq!(broker.stats().sessions_opened.get(), 1);
    say.send(()).unwrap();
    let (first, body) = slow.read().unwrap();
    assert_eq!((first, body[1]), (0x20, 0));
    assert_eq!((slow.read(), slow.read()), (Some((0x40, vec![0, 1])), Some((0x40, vec![0, 2]))));
    let said: Vec<_> = receive(&mut link, 2).into_iter().map(|message| message.payload).collect();
    assert_eq!(said, [&b"at once"[..], b"later"]);
}

#[test]
fn a_verdict_that_takes_too_long_is_server_busy_and_comes_too_late() {
    let (broker, _link, say) = plane();
    Client::plain(broker.mqtt_addr()).refused(&Hello::new(4, "slow-1"), 3);
    assert_eq!(broker.stats().reason(Reason::Busy), 1);
    say.send(()).unwrap();
    let mut next = Client::plain(broker.mqtt_addr());
    next.send(&Hello::new(4, "slow-2").bytes());
    say.send(()).unwrap();
    assert_eq!(next.read(), Some((0x20, vec![0, 0])));
    assert_eq!(broker.stats().sessions_opened.get(), 1);
}

#[test]
fn who_guesses_passwords_fills_its_own_share_of_the_queue() {
    let (broker, _link, say, begun) = plane_that_counts();
    let addr = broker.mqtt_addr();
    let guess = |n: usize| {
        let mut client = Client::plain(addr);
        client.send(&Hello::new(5, &format!("slow-{n}")).bytes());
        client
    };
    let mut guesses = vec![guess(0)];
    until("the first is being judged", || begun.load(SeqCst) == 1);
    // And sixteen wait.
    guesses.extend((1..20).map(guess));
    until("three are refused", || broker.stats().reason(Reason::Busy) >= 3);
    for _ in 0..20 {
        say.send(()).unwrap();
    }
    let let_in = guesses.into_iter().filter_map(|mut client| client.read()).filter(|(_, body)| body[1] == 0);
    assert_eq!(let_in.count(), 17);
}

#[test]
fn whoever_is_gone_before_the_verdict_opens_nothing() {
    let (broker, _link, say) = plane();
    let mut first = Client::plain(broker.mqtt_addr());
    first.send(&Hello::new(4, "slow-0").bytes());
    let mut gone = Client::plain(broker.mqtt_addr());
    gone.send(&Hello::new(4, "slow-1").bytes());
    until("both are there", || broker.stats().connections.get() == 2);
    drop((first, gone));
    for _ in 0..2 {
        say.send(()).unwrap();
    }
    until("all is closed", || broker.stats().connections.get() == 0);
    let closing = thread::spawn(move || broker.shutdown());
    until("it stops", || closing.is_finished());
    closing.join().unwrap();
}
