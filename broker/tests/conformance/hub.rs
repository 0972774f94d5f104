//! A running gate, with the users of the matrix, that remembers what was said.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use fleet_broker::{Broker, Config, Credentials, Directory, Grants, Identity, Link, Refusal, Verdict};
use fleet_schemas::NodeId;

use crate::client::{Client, Hello};

/// What everybody says for a password.
pub(crate) const PASSWORD: &str = "tool";

/// A gate and its directory.
pub(crate) struct Hub {
    pub(crate) broker: Broker,
    link: Mutex<Link>,
    desk: Arc<Desk>,
}

/// Knows nodes named `edge-…`, and the tools of the matrix.
#[derive(Default)]
struct Desk {
    said: Mutex<Vec<String>>,
}

impl Directory for Desk {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict {
        let user = credentials.user.unwrap_or_default();
        if credentials.password != Some(PASSWORD.as_bytes()) {
            return Err(Refusal::BadCredentials).into();
        }
        let of = |filters: &[&str]| filters.iter().map(ToString::to_string).collect();
        let (read, write) = match user {
            "nobody" => (vec![], vec![]),
            "reader" => (of(&["fleet/v1/+/up/telemetry", "fleet/v1/hub/#"]), vec![]),
            "apps" => (of(&["apps/#", "homeassistant/+/set"]), of(&["apps/+/state", "homeassistant/#"])),
            "all" => (of(&["#"]), of(&["#"])),
            node => {
                return NodeId::parse(node).map(Identity::Node).map_err(|_| Refusal::NotAuthorized).into();
            }
        };
        Ok(Identity::Tool { name: user.into(), grants: Grants { read, write } }).into()
    }

    fn said(&self, _: &str, topic: &str, _: &[u8]) {
        self.said.lock().unwrap().push(topic.to_owned());
    }
}

impl Hub {
    pub(crate) fn start() -> Self {
        let config = Config { mqtt: "127.0.0.1:0".parse().unwrap(), ..Config::default() };
        let desk = Arc::new(Desk::default());
        let (broker, link) = Broker::start(config, desk.clone()).unwrap();
        Self { broker, link: Mutex::new(link), desk }
    }

    /// A connection without a word said.
    pub(crate) fn connect(&self, version: u8) -> Client {
        Client::connect(self.broker.mqtt_addr(), version)
    }

    /// A session of a user whose client id is its name.
    #[track_caller]
    pub(crate) fn session(&self, version: u8, user: &str) -> Client {
        self.open(version, &Hello::new(user))
    }

    #[track_caller]
    pub(crate) fn open(&self, version: u8, hello: &Hello<'_>) -> Client {
        let mut client = self.connect(version);
        let (first, body) = client.hello(hello).expect("CONNACK");
        assert_eq!((first, &body[..2]), (0x20, &[0, 0][..]));
        client
    }

    /// What was said by nodes and tools since the last call, and before `client`'s ping was answered.
    pub(crate) fn said(&self, client: Option<&mut Client>) -> Vec<String> {
        if let Some(client) = client {
            client.ping();
        }
        let marker = "fleet/v1/edge-marker/up/event";
        let mut node = self.session(4, "edge-marker");
        node.publish(0x32, marker, 1, b"marker");
        assert_eq!(node.read(), Some((0x40, vec![0, 1])));
        let mut said = std::mem::take(&mut *self.desk.said.lock().unwrap());
        let mut link = self.link.lock().unwrap();
        loop {
            let mut messages = vec![];
            link.recv(&mut messages, 1, Duration::from_secs(30)).unwrap();
            link.taken(&messages);
            let topic = messages.pop().expect("the marker comes").topic.to_string();
            if topic == marker {
                return said;
            }
            said.push(topic);
        }
    }
}
