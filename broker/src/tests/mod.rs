//! The plane over real sockets: a running broker, and a client that speaks raw bytes so that it can also say what
//! no client library would.
//!
//! Every wait is for a condition with a deadline; nothing sleeps and hopes.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use fleet_schemas::NodeId;

use crate::{
    Broker, Config, Credentials, Directory, Grants, Identity, Link, Message, Refusal, Verdict, clock,
    gate::{encode, wire::Version},
};

mod budget;
mod down;
mod protocol;
mod rebuild;
mod tools;
mod tools_retained;
mod tools_talk;
mod up;

pub(crate) use Version::{V4, V5};

/// Knows every node by the password `secret-{node}`, but for the names that tests are about.
struct Fleet;

impl Directory for Fleet {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict {
        Self::judge(credentials).into()
    }
}

impl Fleet {
    fn judge(credentials: &Credentials<'_>) -> Result<Identity, Refusal> {
        let user = credentials.user.ok_or(Refusal::BadCredentials)?;
        match user {
            "banned" => return Err(Refusal::Banned),
            "tool" => return Ok(Identity::Tool { name: user.to_owned(), grants: Grants::default() }),
            "later" => return Err(Refusal::Unavailable),
            _ => {}
        }
        if credentials.password == Some(b"tool") {
            let read = |filters: &[&str]| filters.iter().map(ToString::to_string).collect();
            let (read, write) = match user {
                "grafana" => (read(&["fleet/v1/+/up/#"]), vec![]),
                "nodered" => (read(&["fleet/v1/#"]), read(&["fleet/v1/#"])),
                _ => return Err(Refusal::BadCredentials),
            };
            return Ok(Identity::Tool { name: user.to_owned(), grants: Grants { read, write } });
        }
        if credentials.password != Some(format!("secret-{user}").as_bytes()) {
            return Err(Refusal::BadCredentials);
        }
        NodeId::parse(user).map(Identity::Node).map_err(|_| Refusal::NotAuthorized)
    }
}

/// A plane with default limits on a port of its own.
pub(crate) fn plane() -> (Broker, Link) {
    plane_with(|_| ())
}

pub(crate) fn plane_with(change: impl FnOnce(&mut Config)) -> (Broker, Link) {
    let mut config = Config { mqtt: "127.0.0.1:0".parse().unwrap(), ..Config::default() };
    change(&mut config);
    Broker::start(config, Arc::new(Fleet)).unwrap()
}

pub(crate) fn node(id: &str) -> NodeId {
    NodeId::parse(id).unwrap()
}

/// Waits for a condition, at most half a minute.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = clock::now() + Duration::from_secs(30);
    while !holds() {
        assert!(clock::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}

/// Receives and takes messages until there are `count`.
#[track_caller]
pub(crate) fn receive(link: &mut Link, count: usize) -> Vec<Message> {
    let mut messages = vec![];
    let deadline = clock::now() + Duration::from_secs(30);
    while messages.len() < count {
        let n = link.recv(&mut messages, 4_096, Duration::from_millis(200)).unwrap();
        let at = messages.len() - n;
        link.taken(&messages[at..]);
        assert!(clock::now() < deadline, "{} of {count} messages came", messages.len());
    }
    messages
}

/// A CONNECT to be sent; the fields are what tests vary.
pub(crate) struct Hello<'a> {
    pub(crate) version: Version,
    pub(crate) client_id: &'a str,
    pub(crate) user: &'a str,
    pub(crate) password: &'a str,
    pub(crate) keepalive: u16,
    pub(crate) will: Option<(&'a str, &'a [u8], u8)>,
}

impl<'a> Hello<'a> {
    pub(crate) fn new(version: Version, id: &'a str) -> Self {
        Self { version, client_id: id, user: id, password: "", keepalive: 60, will: None }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let properties: &[u8] = if self.version == V5 { &[0] } else { &[] };
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', if self.version == V5 { 5 } else { 4 }];
        // The will's third field is its bits of the flags: QoS and retain (MQTT 5 §3.1.2).
        body.push(0xC2 | self.will.map_or(0, |(_, _, bits)| 0x04 | bits));
        body.extend(self.keepalive.to_be_bytes());
        body.extend(properties);
        text(&mut body, self.client_id.as_bytes());
        if let Some((topic, payload, _)) = self.will {
            body.extend(properties);
            text(&mut body, topic.as_bytes());
            text(&mut body, payload);
        }
        text(&mut body, self.user.as_bytes());
        let secret = format!("secret-{}", self.user);
        text(&mut body, if self.password.is_empty() { secret.as_bytes() } else { self.password.as_bytes() });
        packet(0x10, &body)
    }
}

pub(crate) fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend(bytes);
}

pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    encode::length(&mut out, body.len());
    out.extend(body);
    out
}

/// A PUBLISH; `first` has type and flags.
pub(crate) fn publish(version: Version, first: u8, topic: &str, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![];
    text(&mut body, topic.as_bytes());
    if first & 6 != 0 {
        body.extend(id.to_be_bytes());
    }
    if version == V5 {
        body.push(0);
    }
    body.extend(payload);
    packet(first, &body)
}

/// A SUBSCRIBE of one filter with packet id 9.
pub(crate) fn subscribe(version: Version, filter: &str, qos: u8) -> Vec<u8> {
    let mut body = vec![0, 9];
    if version == V5 {
        body.push(0);
    }
    text(&mut body, filter.as_bytes());
    body.push(qos);
    packet(0x82, &body)
}

/// A raw client.
pub(crate) struct Client {
    pub(crate) socket: TcpStream,
}

impl Client {
    /// A connection without a word said.
    pub(crate) fn silent(addr: SocketAddr) -> Self {
        let socket = TcpStream::connect(addr).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket }
    }

    /// A connection that said hello.
    pub(crate) fn hello(addr: SocketAddr, hello: &Hello<'_>) -> Self {
        let mut client = Self::silent(addr);
        client.send(&hello.bytes());
        client
    }

    /// An opened session.
    #[track_caller]
    pub(crate) fn open(addr: SocketAddr, hello: &Hello<'_>) -> Self {
        let mut client = Self::hello(addr, hello);
        let (first, body) = client.read().expect("CONNACK");
        assert_eq!((first, &body[..2]), (0x20, &[0, 0][..]));
        client
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// The next packet; `None` when the connection ended.
    #[track_caller]
    pub(crate) fn read(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.fill(&mut head)?;
        let (mut length, mut shift) = (usize::from(head[1] & 0x7F), 7);
        while head[1] & 0x80 != 0 {
            self.fill(&mut head[1..])?;
            length |= usize::from(head[1] & 0x7F) << shift;
            shift += 7;
        }
        let mut body = vec![0; length];
        self.fill(&mut body)?;
        Some((head[0], body))
    }

    /// Reads until the end, past anything still on its way.
    #[track_caller]
    pub(crate) fn expect_end(&mut self) {
        assert_eq!(self.read(), None);
    }

    #[track_caller]
    fn fill(&mut self, bytes: &mut [u8]) -> Option<()> {
        match self.socket.read_exact(bytes) {
            Ok(()) => Some(()),
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                None
            }
            Err(error) => panic!("nothing came: {error}"),
        }
    }
}
